//! What the file system does.
//!
//! [`Vfs`] is the whole FUSE operation set as a synchronous trait that knows no FUSE crate, so that any file system
//! written against it can be served by either backend and be switched between them while programs use it. One instance
//! serves a mount; both backends call it, from any thread, and any call may come through either.
//!
//! An implementation must not use the mount that it serves: a thread that waits on its own mount survives SIGKILL.

mod errno;
mod types;

pub mod passthrough;
mod table;

use std::ffi::OsStr;

pub use crate::ledger::Operation;
pub use errno::{Errno, Result};
pub use passthrough::{Access, Counts, PassThrough};
pub use types::{
    Attr, Caller, Created, DirEntry, Entry, FileKind, HandleId, ListFlow, NodeId, ROOT, SetAttr, StatFs, TimeSet,
    Timestamp, XattrSize,
};

/// A file system, as FUSE sees it (`struct fuse_lowlevel_ops` of libfuse, `include/uapi/linux/fuse.h` of the kernel).
///
/// Node ids and handle ids are the implementation's own numbers; the kernel gives them back unchanged. The root is
/// [`ROOT`]. Each [`Entry`] that is returned counts one lookup of its node, which [`forget`](Vfs::forget) takes back.
///
/// Attribute and entry lifetimes are not decided here: they belong to the mount, so that both backends give the same.
///
/// The provided methods succeed or answer `EOPNOTSUPP`, never `ENOSYS`: the kernel remembers one ENOSYS
/// for the life of the connection and stops asking either backend.
#[allow(clippy::too_many_arguments)]
pub trait Vfs: Send + Sync + 'static {
    /// Whether a call of this kind may wait for something slow (a disk flush, a network). The asynchronous backend then
    /// runs it on a pool of threads, so that its one runtime thread never hangs in a handler; the synchronous backend
    /// has a thread for each request anyway.
    fn may_block(&self, _operation: Operation) -> bool {
        false
    }

    /// Finds `name` in the directory `parent`. Counts one lookup.
    fn lookup(&self, caller: &Caller, parent: NodeId, name: &OsStr) -> Result<Entry>;

    /// Takes back `count` lookups of `node`. Never fails; an unknown node is ignored.
    fn forget(&self, node: NodeId, count: u64);

    /// Shows each node that has lookups which were not taken back, and the root. After a rollback the kernel is told to forget
    /// what it keeps of these; what is not shown is kept until its lifetime is over. `visit` may take its time: no lock is
    /// held meanwhile that another call needs.
    fn known_nodes(&self, _visit: &mut dyn FnMut(NodeId)) {}

    /// Attributes of `node`, by `handle` where the caller has the file open.
    fn getattr(&self, caller: &Caller, node: NodeId, handle: Option<HandleId>) -> Result<Attr>;

    /// Changes what is `Some` in `set` and returns the new attributes.
    fn setattr(&self, caller: &Caller, node: NodeId, handle: Option<HandleId>, set: &SetAttr) -> Result<Attr>;

    /// Target of a symbolic link.
    fn readlink(&self, caller: &Caller, node: NodeId) -> Result<Vec<u8>>;

    /// Makes the symbolic link `name` that points to `target`. Counts one lookup.
    fn symlink(&self, caller: &Caller, parent: NodeId, name: &OsStr, target: &OsStr) -> Result<Entry>;

    /// Makes a file, device node, FIFO or socket. `mode` has the file type; the kernel has applied the umask already.
    /// Counts one lookup.
    fn mknod(&self, caller: &Caller, parent: NodeId, name: &OsStr, mode: u32, rdev: u64) -> Result<Entry>;

    /// Makes a directory; the kernel has applied the umask already. Counts one lookup.
    fn mkdir(&self, caller: &Caller, parent: NodeId, name: &OsStr, mode: u32) -> Result<Entry>;

    /// Removes a name that is not a directory.
    fn unlink(&self, caller: &Caller, parent: NodeId, name: &OsStr) -> Result<()>;

    /// Removes an empty directory.
    fn rmdir(&self, caller: &Caller, parent: NodeId, name: &OsStr) -> Result<()>;

    /// Renames; `flags` are those of `renameat2(2)`.
    fn rename(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &OsStr,
        new_parent: NodeId,
        new_name: &OsStr,
        flags: u32,
    ) -> Result<()>;

    /// Makes another name for `node`. Counts one lookup of it.
    fn link(&self, caller: &Caller, node: NodeId, new_parent: NodeId, new_name: &OsStr) -> Result<Entry>;

    /// Opens a file; `flags` are those of `open(2)` without `O_CREAT` and `O_EXCL`. `O_TRUNC` is to be obeyed.
    fn open(&self, caller: &Caller, node: NodeId, flags: i32) -> Result<HandleId>;

    /// Makes and opens a file in one step. Counts one lookup.
    fn create(&self, caller: &Caller, parent: NodeId, name: &OsStr, mode: u32, flags: i32) -> Result<Created>;

    /// Reads at `offset` into `buffer` and returns the number of bytes; less than asked for only at the end of the file.
    fn read(&self, caller: &Caller, node: NodeId, handle: HandleId, offset: u64, buffer: &mut [u8]) -> Result<usize>;

    /// Writes all of `data` at `offset` and returns the number of bytes.
    fn write(&self, caller: &Caller, node: NodeId, handle: HandleId, offset: u64, data: &[u8]) -> Result<u32>;

    /// Called for each `close(2)` of a descriptor of this handle; what it returns is what `close` returns.
    fn flush(&self, _caller: &Caller, _node: NodeId, _handle: HandleId) -> Result<()> {
        Ok(())
    }

    /// The last use of a file handle is over. An unknown handle is ignored (it was released before).
    fn release(&self, node: NodeId, handle: HandleId);

    /// Writes the file (only its data with `data_only`) to stable storage.
    fn fsync(&self, caller: &Caller, node: NodeId, handle: HandleId, data_only: bool) -> Result<()>;

    /// Opens a directory.
    fn opendir(&self, caller: &Caller, node: NodeId, flags: i32) -> Result<HandleId>;

    /// Lists from `offset` (0, or the `offset` of the last entry taken) and hands each entry to `sink` until it answers
    /// [`ListFlow::Full`] (that entry was not taken and comes again) or the directory ends. Lists `.` and `..` too.
    fn readdir(
        &self,
        caller: &Caller,
        node: NodeId,
        handle: HandleId,
        offset: u64,
        sink: &mut dyn FnMut(&DirEntry<'_>) -> ListFlow,
    ) -> Result<()>;

    /// The second half of READDIRPLUS: the entry behind one name of a listing, or `None` if it is gone by now. Counts one
    /// lookup. Never called for `.` and `..`, whose lookups the kernel does not count.
    fn lookup_listed(&self, caller: &Caller, parent: NodeId, entry: &DirEntry<'_>) -> Result<Option<Entry>> {
        match self.lookup(caller, parent, entry.name) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error == Errno::ENOENT => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The last use of a directory handle is over. An unknown handle is ignored.
    fn releasedir(&self, node: NodeId, handle: HandleId);

    /// Writes a directory to stable storage.
    fn fsyncdir(&self, caller: &Caller, node: NodeId, handle: HandleId, data_only: bool) -> Result<()>;

    /// Free space and limits of the file system.
    fn statfs(&self, caller: &Caller, node: NodeId) -> Result<StatFs>;

    /// Sets an extended attribute; `flags` are those of `setxattr(2)`.
    fn setxattr(&self, _caller: &Caller, _node: NodeId, _name: &OsStr, _value: &[u8], _flags: i32) -> Result<()> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Reads an extended attribute into `buffer`, or tells its size.
    fn getxattr(&self, _caller: &Caller, _node: NodeId, _name: &OsStr, _size: XattrSize<'_>) -> Result<usize> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Lists the names of extended attributes, each ended by a zero byte, into `buffer`, or tells the size of that list.
    fn listxattr(&self, _caller: &Caller, _node: NodeId, _size: XattrSize<'_>) -> Result<usize> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Removes an extended attribute.
    fn removexattr(&self, _caller: &Caller, _node: NodeId, _name: &OsStr) -> Result<()> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Checks access (`R_OK`, `W_OK`, `X_OK`). Mounts have `default_permissions`, so the kernel decides and does not ask.
    fn access(&self, _caller: &Caller, _node: NodeId, _mask: u32) -> Result<()> {
        Ok(())
    }

    /// Finds the next data or hole (`SEEK_DATA`, `SEEK_HOLE`); the kernel does the other kinds itself.
    fn lseek(&self, _caller: &Caller, _node: NodeId, _handle: HandleId, _offset: i64, _whence: i32) -> Result<i64> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Reserves or frees space; `mode` is that of `fallocate(2)`.
    fn fallocate(
        &self,
        _caller: &Caller,
        _node: NodeId,
        _handle: HandleId,
        _offset: u64,
        _length: u64,
        _mode: i32,
    ) -> Result<()> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Copies between two open files and returns the number of bytes, which may be less than `length`.
    fn copy_file_range(
        &self,
        _caller: &Caller,
        _from: (NodeId, HandleId, u64),
        _to: (NodeId, HandleId, u64),
        _length: u64,
    ) -> Result<usize> {
        Err(Errno::EOPNOTSUPP)
    }

    /// A restricted `ioctl(2)`. Only what a file system can answer from its own state is sensible through FUSE; crate
    /// fuse3 cannot decode it at all, so a backend refuses it with ENOTTY before it comes here.
    fn ioctl(
        &self,
        _caller: &Caller,
        _node: NodeId,
        _handle: HandleId,
        _command: u32,
        _input: &[u8],
    ) -> Result<Vec<u8>> {
        Err(Errno::ENOTTY)
    }
}
