//! Attributes, free space and extended attributes of one node. Nothing here follows a symbolic link, although some calls
//! take a path: the path of a descriptor leads to what is open there and no further.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid, XattrFlags};

use super::set_id;
use super::source::{ProcPath, attr, retry, stat};
use crate::vfs::{Attr, Errno, NodeId, Result, SetAttr, StatFs, TimeSet, XattrSize};

/// Sets attributes through a descriptor that is open for reading or writing.
pub(super) fn set_by_handle(node: NodeId, file: BorrowedFd<'_>, set: &SetAttr) -> Result<Attr> {
    if let Some(mode) = set.mode {
        set_id::keep(mode, || Ok(retry(|| rustix::fs::fchmod(file, Mode::from_raw_mode(mode)))?))?;
    }
    set_owner(file, set)?;
    if let Some(size) = set.size {
        retry(|| rustix::fs::ftruncate(file, size))?;
    }
    set_times(file, set)?;
    Ok(attr(node, &stat(file)?))
}

/// Sets attributes through an O_PATH descriptor, which `fchmod` and `ftruncate` do not take.
pub(super) fn set_by_node(node: NodeId, fd: BorrowedFd<'_>, set: &SetAttr) -> Result<Attr> {
    let path = ProcPath::of(fd);
    if let Some(mode) = set.mode {
        set_id::keep(mode, || Ok(retry(|| rustix::fs::chmod(path.as_c_str(), Mode::from_raw_mode(mode)))?))?;
    }
    set_owner(fd, set)?;
    if let Some(size) = set.size {
        truncate(&path, size)?;
    }
    set_times(fd, set)?;
    Ok(attr(node, &stat(fd)?))
}

fn set_owner(fd: BorrowedFd<'_>, set: &SetAttr) -> Result<()> {
    if set.uid.is_none() && set.gid.is_none() {
        return Ok(());
    }
    let (uid, gid) = (set.uid.map(Uid::from_raw), set.gid.map(Gid::from_raw));
    Ok(retry(|| rustix::fs::chownat(fd, "", uid, gid, AtFlags::EMPTY_PATH))?)
}

fn truncate(path: &ProcPath, size: u64) -> Result<()> {
    let size = i64::try_from(size).map_err(|_| Errno::EFBIG)?;
    loop {
        match nix::unistd::truncate(path.as_c_str(), size) {
            Err(nix::errno::Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
}

fn set_times(fd: BorrowedFd<'_>, set: &SetAttr) -> Result<()> {
    if set.atime.is_none() && set.mtime.is_none() {
        return Ok(());
    }
    let times = Timestamps { last_access: timespec(set.atime), last_modification: timespec(set.mtime) };
    Ok(retry(|| rustix::fs::utimensat(fd, "", &times, AtFlags::EMPTY_PATH))?)
}

fn timespec(time: Option<TimeSet>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(TimeSet::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(TimeSet::At(time)) => Timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() },
    }
}

pub(super) fn statfs(fd: BorrowedFd<'_>) -> Result<StatFs> {
    let found = retry(|| rustix::fs::fstatvfs(fd))?;
    Ok(StatFs {
        blocks: found.f_blocks,
        bfree: found.f_bfree,
        bavail: found.f_bavail,
        files: found.f_files,
        ffree: found.f_ffree,
        bsize: found.f_bsize as u32,
        namelen: found.f_namemax as u32,
        frsize: found.f_frsize as u32,
    })
}

pub(super) fn set_xattr(node: BorrowedFd<'_>, name: &OsStr, value: &[u8], flags: i32) -> Result<()> {
    let flags = XattrFlags::from_bits_retain(flags as u32);
    Ok(retry(|| rustix::fs::setxattr(ProcPath::of(node).as_c_str(), name, value, flags))?)
}

pub(super) fn get_xattr(node: BorrowedFd<'_>, name: &OsStr, size: XattrSize<'_>) -> Result<usize> {
    let path = ProcPath::of(node);
    answer(
        size,
        || rustix::fs::getxattr_query(path.as_c_str(), name),
        |buffer| rustix::fs::getxattr(path.as_c_str(), name, buffer),
    )
}

pub(super) fn list_xattrs(node: BorrowedFd<'_>, size: XattrSize<'_>) -> Result<usize> {
    let path = ProcPath::of(node);
    answer(
        size,
        || rustix::fs::listxattr_query(path.as_c_str()),
        |buffer| rustix::fs::listxattr(path.as_c_str(), buffer),
    )
}

fn answer(
    size: XattrSize<'_>,
    query: impl Fn() -> rustix::io::Result<usize>,
    read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
) -> Result<usize> {
    match size {
        XattrSize::Query => Ok(retry(query)?),
        // To the kernel a buffer of no bytes is a question for the size.
        XattrSize::Into([]) => match retry(query)? {
            0 => Ok(0),
            _ => Err(Errno::ERANGE),
        },
        XattrSize::Into(buffer) => Ok(retry(|| read(buffer))?),
    }
}

pub(super) fn remove_xattr(node: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    Ok(retry(|| rustix::fs::removexattr(ProcPath::of(node).as_c_str(), name))?)
}
