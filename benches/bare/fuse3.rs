//! Crate fuse3 through the real `fusermount3`, on a `current_thread` runtime with tokio's own settings. (`mount` instead of
//! `mount_with_unprivileged` reads on a pool of threads, and has a third of the speed.)

use std::ffi::OsStr;
use std::num::NonZeroU32;
use std::path::Path;

use fuse3::raw::prelude::{
    FileAttr, ReplyAttr, ReplyData, ReplyEntry, ReplyInit, ReplyOpen, ReplyStatFs, ReplyWrite, Request,
};
use fuse3::raw::{Filesystem, Session};
use fuse3::{FileType, MountOptions, Result, Timestamp};
use lighthouse_fs::vfs::{self, Caller, HandleId, NodeId, PassThrough, Vfs};

struct Bare(PassThrough);

pub fn serve(vfs: PassThrough, mountpoint: &Path) {
    let mut options = MountOptions::default();
    // Not `default_permissions`: it would bring POSIX ACLs with it.
    options.fs_name("bare").custom_options(format!("subtype={},default_permissions", super::SUBTYPE));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mount = Session::new(options).mount_with_unprivileged(Bare(vfs), mountpoint).await.expect("a mount");
        mount.await.expect("a mount to its end");
    });
}

fn caller(request: &Request) -> Caller {
    super::caller(request.uid, request.gid, request.pid)
}

fn errno(error: vfs::Errno) -> fuse3::Errno {
    error.raw().into()
}

fn attributes(attr: &vfs::Attr) -> FileAttr {
    let time = |time: vfs::Timestamp| Timestamp::new(time.sec, time.nsec);
    FileAttr {
        ino: attr.node.0,
        size: attr.size,
        blocks: attr.blocks,
        atime: time(attr.atime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
        kind: if attr.kind() == vfs::FileKind::Directory { FileType::Directory } else { FileType::RegularFile },
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
    }
}

impl Filesystem for Bare {
    async fn init(&self, _request: Request) -> Result<ReplyInit> {
        Ok(ReplyInit::new(NonZeroU32::new(super::settings().1.max_write).expect("not 0")))
    }

    async fn destroy(&self, _request: Request) {}

    async fn lookup(&self, request: Request, parent: u64, name: &OsStr) -> Result<ReplyEntry> {
        let it = self.0.lookup(&caller(&request), NodeId(parent), name).map_err(errno)?;
        Ok(ReplyEntry { ttl: super::settings().0.entries, attr: attributes(&it.attr), generation: it.generation })
    }

    async fn forget(&self, _request: Request, node: u64, count: u64) {
        self.0.forget(NodeId(node), count);
    }

    async fn batch_forget(&self, _request: Request, nodes: &[(u64, u64)]) {
        nodes.iter().for_each(|(node, count)| self.0.forget(NodeId(*node), *count));
    }

    async fn getattr(&self, request: Request, node: u64, handle: Option<u64>, _flags: u32) -> Result<ReplyAttr> {
        let attr = self.0.getattr(&caller(&request), NodeId(node), handle.map(HandleId)).map_err(errno)?;
        Ok(ReplyAttr { ttl: super::settings().0.attributes, attr: attributes(&attr) })
    }

    async fn open(&self, request: Request, node: u64, flags: u32) -> Result<ReplyOpen> {
        let handle = self.0.open(&caller(&request), NodeId(node), flags as i32).map_err(errno)?;
        Ok(ReplyOpen { fh: handle.0, flags: 0 })
    }

    async fn read(&self, request: Request, node: u64, handle: u64, offset: u64, size: u32) -> Result<ReplyData> {
        let mut buffer = vec![0; size as usize];
        let read = self.0.read(&caller(&request), NodeId(node), HandleId(handle), offset, &mut buffer);
        buffer.truncate(read.map_err(errno)?);
        Ok(ReplyData { data: buffer.into() })
    }

    async fn write(
        &self,
        request: Request,
        node: u64,
        handle: u64,
        offset: u64,
        data: &[u8],
        _write_flags: u32,
        _flags: u32,
    ) -> Result<ReplyWrite> {
        let written = self.0.write(&caller(&request), NodeId(node), HandleId(handle), offset, data).map_err(errno)?;
        Ok(ReplyWrite { written })
    }

    async fn flush(&self, request: Request, node: u64, handle: u64, _lock_owner: u64) -> Result<()> {
        self.0.flush(&caller(&request), NodeId(node), HandleId(handle)).map_err(errno)
    }

    async fn release(
        &self,
        _request: Request,
        node: u64,
        handle: u64,
        _flags: u32,
        _lock_owner: u64,
        _flush: bool,
    ) -> Result<()> {
        self.0.release(NodeId(node), HandleId(handle));
        Ok(())
    }

    async fn statfs(&self, request: Request, node: u64) -> Result<ReplyStatFs> {
        let it = self.0.statfs(&caller(&request), NodeId(node)).map_err(errno)?;
        Ok(ReplyStatFs {
            blocks: it.blocks,
            bfree: it.bfree,
            bavail: it.bavail,
            files: it.files,
            ffree: it.ffree,
            bsize: it.bsize,
            namelen: it.namelen,
            frsize: it.frsize,
        })
    }
}
