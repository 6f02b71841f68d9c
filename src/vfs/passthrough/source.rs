//! Small pieces for calls on the source: names, descriptors as paths, attributes.

use std::ffi::{CStr, OsStr};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::Stat;
pub(super) use rustix::io::retry_on_intr as retry;

use crate::vfs::table::Identity;
use crate::vfs::{Attr, Errno, NodeId, Result, Timestamp};

/// A name for a lookup: one component, so that no call can leave the directory it is made in. `.` and `..` pass.
pub(super) fn component(name: &OsStr) -> Result<&OsStr> {
    match name.as_bytes() {
        [] => Err(Errno::ENOENT),
        bytes if bytes.iter().any(|byte| matches!(byte, b'/' | 0)) => Err(Errno::EINVAL),
        _ => Ok(name),
    }
}

/// A name to make, remove or rename: never `.` or `..`, which the kernel refuses before it asks.
pub(super) fn new_component(name: &OsStr) -> Result<&OsStr> {
    if name == "." || name == ".." { Err(Errno::EINVAL) } else { component(name) }
}

/// The path of an open descriptor, for calls that do not take an O_PATH descriptor itself.
pub(super) struct ProcPath([u8; 32]);

impl ProcPath {
    pub(super) fn of(fd: impl AsFd) -> Self {
        let mut path = [0; 32];
        write!(&mut path[..], "/proc/self/fd/{}", fd.as_fd().as_raw_fd()).expect("14 + 10 bytes fit into 32");
        Self(path)
    }

    pub(super) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).expect("at most 24 of 32 bytes are not zero")
    }
}

pub(super) fn stat(fd: impl AsFd) -> Result<Stat> {
    Ok(retry(|| rustix::fs::fstat(&fd))?)
}

pub(super) fn identity(stat: &Stat) -> Identity {
    Identity { device: stat.st_dev, inode: stat.st_ino }
}

#[allow(clippy::unnecessary_cast, reason = "the types differ between architectures")]
pub(super) fn attr(node: NodeId, stat: &Stat) -> Attr {
    let time = |sec, nsec| Timestamp { sec: sec as i64, nsec: nsec as u32 };
    Attr {
        node,
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        mode: stat.st_mode,
        nlink: stat.st_nlink as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        // The lower 32 bits of a device number are the kernel's 32-bit encoding (12 bits major, 20 bits minor).
        rdev: stat.st_rdev as u32,
        blksize: stat.st_blksize as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::BorrowedFd;

    #[test]
    fn names_are_one_component() {
        for good in ["a", ".", "..", "...", "ä b"] {
            assert_eq!(component(OsStr::new(good)), Ok(OsStr::new(good)));
        }
        for bad in ["a/b", "/", "../x", "a\0b"] {
            assert_eq!(component(OsStr::new(bad)), Err(Errno::EINVAL));
        }
        assert_eq!(component(OsStr::new("")), Err(Errno::ENOENT));
        assert_eq!(new_component(OsStr::new("..")), Err(Errno::EINVAL));
        assert_eq!(new_component(OsStr::new(".x")), Ok(OsStr::new(".x")));
    }

    #[test]
    fn the_longest_descriptor_number_fits() {
        // SAFETY: the number is only printed, never used as a descriptor.
        let fd = unsafe { BorrowedFd::borrow_raw(i32::MAX) };
        assert_eq!(ProcPath::of(fd).as_c_str(), c"/proc/self/fd/2147483647");
    }
}
