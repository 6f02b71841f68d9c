//! Crate fuser with its own mounting and as many threads as ours.

use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, Session, WriteFlags,
};
use lighthouse_fs::vfs::{self, Caller, HandleId, NodeId, PassThrough, Vfs};

struct Bare(PassThrough);

pub fn serve(vfs: PassThrough, mountpoint: &Path) {
    let mut config = Config::default();
    // Its own `Subtype` does not reach the kernel, and by the subtype a mount of the tests is known.
    let subtype = MountOption::CUSTOM(format!("subtype={}", super::SUBTYPE));
    config.mount_options = vec![subtype, MountOption::DefaultPermissions];
    config.n_threads = Some(super::settings().1.threads);
    Session::new(Bare(vfs), mountpoint, &config).expect("a session").run().expect("a mount to its end");
}

fn caller(request: &Request) -> Caller {
    super::caller(request.uid(), request.gid(), request.pid())
}

fn errno(error: vfs::Errno) -> Errno {
    Errno::from_i32(error.raw())
}

fn attributes(attr: &vfs::Attr) -> FileAttr {
    let time = |time: vfs::Timestamp| UNIX_EPOCH + Duration::new(time.sec as u64, time.nsec);
    FileAttr {
        ino: INodeNo(attr.node.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: time(attr.atime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: if attr.kind() == vfs::FileKind::Directory { FileType::Directory } else { FileType::RegularFile },
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: 0,
    }
}

impl Filesystem for Bare {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let same_as_ours =
            InitFlags::FUSE_ASYNC_DIO | InitFlags::FUSE_PARALLEL_DIROPS | InitFlags::FUSE_AUTO_INVAL_DATA;
        config.add_capabilities(same_as_ours).expect("a kernel that has them");
        config.set_max_write(super::settings().1.max_write).expect("a kernel that takes it");
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.0.lookup(&caller(request), NodeId(parent.0), name) {
            Ok(it) => reply.entry(&super::settings().0.entries, &attributes(&it.attr), Generation(it.generation)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn forget(&self, _request: &Request, node: INodeNo, count: u64) {
        self.0.forget(NodeId(node.0), count);
    }

    fn getattr(&self, request: &Request, node: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.getattr(&caller(request), NodeId(node.0), handle.map(|handle| HandleId(handle.0))) {
            Ok(attr) => reply.attr(&super::settings().0.attributes, &attributes(&attr)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn open(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.0.open(&caller(request), NodeId(node.0), flags.0) {
            Ok(handle) => reply.opened(FileHandle(handle.0), FopenFlags::empty()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn read(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut buffer = vec![0; size as usize];
        match self.0.read(&caller(request), NodeId(node.0), HandleId(handle.0), offset, &mut buffer) {
            Ok(length) => reply.data(&buffer[..length]),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn write(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.0.write(&caller(request), NodeId(node.0), HandleId(handle.0), offset, data) {
            Ok(written) => reply.written(written),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn flush(&self, request: &Request, node: INodeNo, handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        match self.0.flush(&caller(request), NodeId(node.0), HandleId(handle.0)) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn release(
        &self,
        _request: &Request,
        node: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.0.release(NodeId(node.0), HandleId(handle.0));
        reply.ok();
    }

    fn statfs(&self, request: &Request, node: INodeNo, reply: ReplyStatfs) {
        match self.0.statfs(&caller(request), NodeId(node.0)) {
            Ok(it) => reply.statfs(it.blocks, it.bfree, it.bavail, it.files, it.ffree, it.bsize, it.namelen, it.frsize),
            Err(error) => reply.error(errno(error)),
        }
    }
}
