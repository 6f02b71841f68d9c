//! Types of crate fuse3 and of the vfs, into each other.

use fuse3::FileType;
use fuse3::raw::prelude::{FileAttr, Request};

use crate::vfs::{Attr, Caller, Errno, FileKind, TimeSet, Timestamp};

pub(super) fn caller(request: &Request) -> Caller {
    // CREATE and MKNOD come without the program's umask through this crate; the kernel has applied it.
    Caller { uid: request.uid, gid: request.gid, pid: request.pid, umask: 0 }
}

pub(super) fn errno(error: Errno) -> fuse3::Errno {
    error.raw().into()
}

fn timestamp(time: Timestamp) -> fuse3::Timestamp {
    fuse3::Timestamp::new(time.sec, time.nsec)
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
    }
}

pub(super) fn attributes(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: attr.node.0,
        size: attr.size,
        blocks: attr.blocks,
        atime: timestamp(attr.atime),
        mtime: timestamp(attr.mtime),
        ctime: timestamp(attr.ctime),
        kind: file_type(attr.kind()),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
    }
}

pub(super) fn time_set(time: fuse3::Timestamp) -> TimeSet {
    // "Now" arrives as the time at which the crate decoded it.
    TimeSet::At(Timestamp { sec: time.sec, nsec: time.nsec })
}
