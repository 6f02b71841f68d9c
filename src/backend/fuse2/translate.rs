//! Types of crate fuser and of the vfs, into each other.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileHandle, FileType, INodeNo, TimeOrNow};

use crate::vfs::{Attr, Errno, FileKind, HandleId, TimeSet, Timestamp};

pub(super) fn errno(error: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(error.raw())
}

fn system_time(time: Timestamp) -> SystemTime {
    match u64::try_from(time.sec) {
        Ok(sec) => UNIX_EPOCH + Duration::new(sec, time.nsec),
        Err(_) => UNIX_EPOCH - Duration::from_secs(time.sec.unsigned_abs()) + Duration::from_nanos(time.nsec.into()),
    }
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
        ino: INodeNo(attr.node.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind()),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: 0,
    }
}

pub(super) fn time_set(time: TimeOrNow) -> TimeSet {
    match time {
        TimeOrNow::Now => TimeSet::Now,
        TimeOrNow::SpecificTime(time) => TimeSet::At(timestamp(time)),
    }
}

/// Before 1970 the crate takes the nanoseconds, which count forward, for such that count back; here this is undone
/// (`system_time_from_time` of its `time.rs`).
fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(_) => time.into(),
        Err(before) => {
            let before = before.duration();
            Timestamp { sec: -(before.as_secs() as i64), nsec: before.subsec_nanos() }
        }
    }
}

pub(super) fn handle_id(handle: FileHandle) -> HandleId {
    HandleId(handle.0)
}
