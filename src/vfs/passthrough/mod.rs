//! Pass-through of a source directory.
//!
//! Every call on the source is relative to a descriptor and takes one component, so no symbolic link leads a request out
//! of it, and `..` never does. Every call is repeated when a signal interrupts it: the reader threads are signalled
//! during a switch.

mod attributes;
mod creator;
mod files;
mod names;
mod set_id;
mod source;
mod stream;

use std::ffi::OsStr;
use std::fmt;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

use super::table::{HandleKind, HandleTable, NodeTable};
use super::{
    Attr, Caller, Created, DirEntry, Entry, Errno, HandleId, ListFlow, NodeId, Operation, ROOT, Result, SetAttr,
    StatFs, Vfs, XattrSize,
};
use crate::vfs::table::Identity;
use creator::Creator;
pub use set_id::strip_set_id_on_write;
use source::{ProcPath, component, identity, retry, stat};
use stream::Streams;

/// As many as a process can ever have descriptors (`fs.nr_open`, by default).
const CAPACITY: u32 = 1 << 20;

/// Whether writing is allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Everything that the source allows.
    ReadWrite,
    /// What changes anything is refused with EROFS.
    ReadOnly,
}

/// Serves a source directory.
///
/// Nodes are O_PATH descriptors, so a file stays the same through renames. A node's number is its inode number in the
/// source. Run by root, new files belong to the caller. The kernel checks permissions (`default_permissions`), not this.
///
/// The process's umask must be 0, since the kernel has applied the caller's already, and a server of root calls
/// [`strip_set_id_on_write`] before it has threads.
pub struct PassThrough {
    access: Access,
    /// Whether any call on the source may wait for a network or another process.
    answers_from_afar: bool,
    creator: Creator,
    nodes: NodeTable,
    handles: HandleTable,
    streams: Streams,
}

/// What a [`PassThrough`] holds for the kernel. Both fall back to 0 when nothing uses the mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counts {
    /// Nodes with lookups that were not taken back, apart from the root. Each holds a descriptor.
    pub nodes: usize,
    /// Open files and directories. Each holds a descriptor.
    pub handles: usize,
}

impl fmt::Debug for PassThrough {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PassThrough")
            .field("access", &self.access)
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

impl PassThrough {
    /// Opens the source directory.
    ///
    /// # Errors
    /// What opening it gives, or ENOENT if `/proc` is not mounted.
    pub fn new(source: &Path, access: Access) -> Result<Self> {
        let root = retry(|| {
            rustix::fs::openat(CWD, source, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        })?;
        rustix::fs::stat(ProcPath::of(&root).as_c_str())?;
        Ok(Self {
            access,
            answers_from_afar: answers_from_afar(rustix::fs::fstatfs(&root)?.f_type),
            creator: Creator::of_this_process()?,
            nodes: NodeTable::new(CAPACITY, identity(&stat(&root)?), root)?,
            handles: HandleTable::new(CAPACITY)?,
            streams: Streams::default(),
        })
    }

    /// How many nodes and handles the kernel holds now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts { nodes: self.nodes.known(), handles: self.handles.open() }
    }

    fn check_writable(&self) -> Result<()> {
        if self.access == Access::ReadOnly { Err(Errno::EROFS) } else { Ok(()) }
    }

    /// The one way to make or remove a name or an extended attribute: what must not run twice when the kernel sends a
    /// request again goes through here.
    fn change<T>(&self, run: impl FnOnce() -> Result<T>) -> Result<T> {
        self.check_writable()?;
        run()
    }
}

/// Whether a file system of this type (`f_type` of `statfs(2)`; numbers from the kernel's `magic.h` and its file systems)
/// has its answers from a network or from another process.
fn answers_from_afar(kind: rustix::fs::FsWord) -> bool {
    const FUSE: u32 = 0x6573_5546;
    const NFS: u32 = 0x6969;
    const SMB: u32 = 0x517B;
    const SMB2: u32 = 0xFE53_4D42;
    const CIFS: u32 = 0xFF53_4D42;
    const V9FS: u32 = 0x0102_1997;
    const CEPH: u32 = 0x00C3_6400;
    const AFS: u32 = 0x5346_414F;
    const AUTOFS: u32 = 0x0187;
    matches!(kind as u32, FUSE | NFS | SMB | SMB2 | CIFS | V9FS | CEPH | AFS | AUTOFS)
}

impl Vfs for PassThrough {
    fn may_block(&self, operation: Operation) -> bool {
        // FORGET and its like only close what is open.
        let is_local = matches!(
            operation,
            Operation::FSync | Operation::FSyncDir | Operation::FAllocate | Operation::CopyFileRange
        );
        is_local || self.answers_from_afar
    }

    fn lookup(&self, _caller: &Caller, parent: NodeId, name: &OsStr) -> Result<Entry> {
        let parent = self.nodes.pin(parent)?;
        match component(name)? {
            name if name == ".." => self.parent_of(&parent),
            name => self.find(&parent, name),
        }
    }

    fn lookup_listed(&self, _caller: &Caller, parent: NodeId, entry: &DirEntry<'_>) -> Result<Option<Entry>> {
        let parent = self.nodes.pin(parent)?;
        let name = component(entry.name)?;
        // An unknown node needs a descriptor anyway; to open it first saves one walk to it.
        let found = if self.nodes.knows(entry.node) { self.find(&parent, name) } else { self.open_node(&parent, name) };
        match found {
            Ok(found) => Ok(Some(found)),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn forget(&self, node: NodeId, count: u64) {
        self.nodes.forget(node, count);
    }

    fn known_nodes(&self, visit: &mut dyn FnMut(NodeId)) {
        self.nodes.each_known(visit);
    }

    fn getattr(&self, _caller: &Caller, node: NodeId, handle: Option<HandleId>) -> Result<Attr> {
        let stat = match handle {
            Some(handle) => stat(self.handles.pin_any(handle)?)?,
            None => stat(self.nodes.pin(node)?)?,
        };
        Ok(source::attr(node, &stat))
    }

    fn setattr(&self, _caller: &Caller, node: NodeId, handle: Option<HandleId>, set: &SetAttr) -> Result<Attr> {
        self.check_writable()?;
        match handle {
            Some(handle) => attributes::set_by_handle(node, self.handles.pin_any(handle)?.as_fd(), set),
            None => attributes::set_by_node(node, self.nodes.pin(node)?.as_fd(), set),
        }
    }

    fn readlink(&self, _caller: &Caller, node: NodeId) -> Result<Vec<u8>> {
        let node = self.nodes.pin(node)?;
        Ok(retry(|| rustix::fs::readlinkat(&node, "", Vec::new()))?.into_bytes())
    }

    fn symlink(&self, caller: &Caller, parent: NodeId, name: &OsStr, target: &OsStr) -> Result<Entry> {
        self.make(caller, parent, name, |parent, name| rustix::fs::symlinkat(target, parent, name))
    }

    fn mknod(&self, caller: &Caller, parent: NodeId, name: &OsStr, mode: u32, rdev: u64) -> Result<Entry> {
        let kind = match mode & libc::S_IFMT {
            0 => rustix::fs::FileType::RegularFile,
            _ => rustix::fs::FileType::from_raw_mode(mode),
        };
        self.make(caller, parent, name, |parent, name| {
            rustix::fs::mknodat(parent, name, kind, Mode::from_raw_mode(mode), rdev)
        })
    }

    fn mkdir(&self, caller: &Caller, parent: NodeId, name: &OsStr, mode: u32) -> Result<Entry> {
        self.make(caller, parent, name, |parent, name| rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(mode)))
    }

    fn unlink(&self, _caller: &Caller, parent: NodeId, name: &OsStr) -> Result<()> {
        self.remove(parent, name, rustix::fs::AtFlags::empty())
    }

    fn rmdir(&self, _caller: &Caller, parent: NodeId, name: &OsStr) -> Result<()> {
        self.remove(parent, name, rustix::fs::AtFlags::REMOVEDIR)
    }

    fn rename(
        &self,
        _caller: &Caller,
        parent: NodeId,
        name: &OsStr,
        new_parent: NodeId,
        new_name: &OsStr,
        flags: u32,
    ) -> Result<()> {
        self.rename_entry((parent, name), (new_parent, new_name), flags)
    }

    fn link(&self, _caller: &Caller, node: NodeId, new_parent: NodeId, new_name: &OsStr) -> Result<Entry> {
        self.link_entry(node, new_parent, new_name)
    }

    fn open(&self, _caller: &Caller, node: NodeId, flags: i32) -> Result<HandleId> {
        self.open_file(node, flags)
    }

    fn create(&self, caller: &Caller, parent: NodeId, name: &OsStr, mode: u32, flags: i32) -> Result<Created> {
        self.create_file(caller, parent, name, mode, flags)
    }

    fn read(&self, _: &Caller, _node: NodeId, handle: HandleId, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        files::read(self.file(handle)?.as_fd(), offset, buffer)
    }

    fn write(&self, _: &Caller, _node: NodeId, handle: HandleId, offset: u64, data: &[u8]) -> Result<u32> {
        files::write(self.file(handle)?.as_fd(), offset, data)
    }

    fn flush(&self, _caller: &Caller, _node: NodeId, handle: HandleId) -> Result<()> {
        files::flush(self.file(handle)?.as_fd())
    }

    fn release(&self, _node: NodeId, handle: HandleId) {
        self.handles.release(handle);
    }

    fn fsync(&self, _caller: &Caller, _node: NodeId, handle: HandleId, data_only: bool) -> Result<()> {
        files::sync(self.file(handle)?.as_fd(), data_only)
    }

    fn opendir(&self, _caller: &Caller, node: NodeId, _flags: i32) -> Result<HandleId> {
        let node = self.nodes.pin(node)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = retry(|| rustix::fs::openat(&node, ".", flags, Mode::empty()))?;
        self.handles.insert(directory, HandleKind::Directory)
    }

    fn readdir(
        &self,
        _caller: &Caller,
        node: NodeId,
        handle: HandleId,
        offset: u64,
        sink: &mut dyn FnMut(&DirEntry<'_>) -> ListFlow,
    ) -> Result<()> {
        let directory = self.handles.pin(handle, HandleKind::Directory)?;
        let stream = self.streams.of(handle, &directory)?;
        let mut stream = stream.lock();
        let device = stream.device;
        stream.list(directory.as_fd(), offset, |listed| {
            let node = if node == ROOT && listed.name == ".." {
                ROOT
            } else {
                self.nodes.id_of(Identity { device, inode: listed.inode })
            };
            sink(&DirEntry { node, offset: listed.offset, kind: listed.kind, name: listed.name })
        })
    }

    fn releasedir(&self, _node: NodeId, handle: HandleId) {
        self.handles.release(handle);
        self.streams.remove(handle);
    }

    fn fsyncdir(&self, _caller: &Caller, _node: NodeId, handle: HandleId, data_only: bool) -> Result<()> {
        files::sync(self.handles.pin(handle, HandleKind::Directory)?.as_fd(), data_only)
    }

    fn statfs(&self, _caller: &Caller, node: NodeId) -> Result<StatFs> {
        attributes::statfs(self.nodes.pin(node)?.as_fd())
    }

    fn setxattr(&self, _caller: &Caller, node: NodeId, name: &OsStr, value: &[u8], flags: i32) -> Result<()> {
        let node = self.nodes.pin(node)?;
        self.change(|| attributes::set_xattr(node.as_fd(), name, value, flags))
    }

    fn getxattr(&self, _caller: &Caller, node: NodeId, name: &OsStr, size: XattrSize<'_>) -> Result<usize> {
        attributes::get_xattr(self.nodes.pin(node)?.as_fd(), name, size)
    }

    fn listxattr(&self, _caller: &Caller, node: NodeId, size: XattrSize<'_>) -> Result<usize> {
        attributes::list_xattrs(self.nodes.pin(node)?.as_fd(), size)
    }

    fn removexattr(&self, _caller: &Caller, node: NodeId, name: &OsStr) -> Result<()> {
        let node = self.nodes.pin(node)?;
        self.change(|| attributes::remove_xattr(node.as_fd(), name))
    }

    fn lseek(&self, _: &Caller, _node: NodeId, handle: HandleId, offset: i64, whence: i32) -> Result<i64> {
        files::seek(self.file(handle)?.as_fd(), offset, whence)
    }

    fn fallocate(
        &self,
        _caller: &Caller,
        _node: NodeId,
        handle: HandleId,
        offset: u64,
        length: u64,
        mode: i32,
    ) -> Result<()> {
        self.check_writable()?;
        files::allocate(self.file(handle)?.as_fd(), offset, length, mode)
    }

    fn copy_file_range(
        &self,
        _caller: &Caller,
        (_, from, from_offset): (NodeId, HandleId, u64),
        (_, to, to_offset): (NodeId, HandleId, u64),
        length: u64,
    ) -> Result<usize> {
        self.check_writable()?;
        files::copy((self.file(from)?.as_fd(), from_offset), (self.file(to)?.as_fd(), to_offset), length)
    }
}
