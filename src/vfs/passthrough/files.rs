//! Opening files, and what is done with open ones. All positions come with the request: the position of the descriptor
//! itself is never used, so a request may run again in another process.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};

use nix::unistd::Whence;
use rustix::fs::{FallocateFlags, Mode, OFlags};

use super::PassThrough;
use super::source::{ProcPath, new_component, retry};
use crate::vfs::table::{HandleKind, HandlePin};
use crate::vfs::{Caller, Created, Errno, HandleId, NodeId, Result};

/// Flags that do not reach the source. O_APPEND: the kernel gives the offset, and a write that runs again must land in
/// the same place. O_DIRECT: requests are not aligned. O_NOFOLLOW: what is opened is known already.
const STRIPPED: OFlags =
    OFlags::CREATE.union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::APPEND).union(OFlags::DIRECT);

impl PassThrough {
    pub(super) fn file(&self, handle: HandleId) -> Result<HandlePin<'_>> {
        self.handles.pin(handle, HandleKind::File)
    }

    pub(super) fn open_file(&self, node: NodeId, flags: i32) -> Result<HandleId> {
        let flags = OFlags::from_bits_retain(flags as u32);
        if flags & OFlags::ACCMODE != OFlags::RDONLY || flags.contains(OFlags::TRUNC) {
            self.check_writable()?;
        }
        let node = self.nodes.pin(node)?;
        let path = ProcPath::of(&node);
        let flags = (flags - STRIPPED) | OFlags::CLOEXEC;
        let file = retry(|| rustix::fs::open(path.as_c_str(), flags, Mode::empty()))?;
        self.handles.insert(file, HandleKind::File)
    }

    pub(super) fn create_file(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        flags: i32,
    ) -> Result<Created> {
        let name = new_component(name)?;
        let parent = self.nodes.pin(parent)?;
        let flags = OFlags::from_bits_retain(flags as u32);
        // O_NONBLOCK: a FIFO that has just taken the name would hold the call until somebody opens its other end.
        let own = OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let flags = (flags - STRIPPED) | (flags & OFlags::EXCL) | own;
        let mode = Mode::from_raw_mode(mode);
        let file = self
            .change(|| self.creator.run_as(caller, || Ok(retry(|| rustix::fs::openat(&parent, name, flags, mode))?)))?;
        // By the open file, not by the name: that may be another file's by now.
        let entry = self.node_of(file.as_fd())?;
        match self.handles.insert(file, HandleKind::File) {
            Ok(handle) => Ok(Created { entry, handle }),
            Err(error) => {
                self.nodes.forget(entry.attr.node, 1);
                Err(error)
            }
        }
    }
}

/// Reads until `buffer` is full or the file ends: to the kernel a short answer means the end.
pub(super) fn read(file: BorrowedFd<'_>, offset: u64, buffer: &mut [u8]) -> Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match retry(|| rustix::io::pread(file, &mut buffer[done..], offset + done as u64))? {
            0 => break,
            count => done += count,
        }
    }
    Ok(done)
}

/// Writes all of `data`. If the source stops in the middle, says how far it came, as `write(2)` does.
pub(super) fn write(file: BorrowedFd<'_>, offset: u64, data: &[u8]) -> Result<u32> {
    let mut done = 0;
    while done < data.len() {
        match retry(|| rustix::io::pwrite(file, &data[done..], offset + done as u64)) {
            Ok(0) if done == 0 => return Err(Errno::EIO),
            Err(error) if done == 0 => return Err(error.into()),
            Ok(0) | Err(_) => break,
            Ok(count) => done += count,
        }
    }
    Ok(done as u32)
}

/// Closes a duplicate, so that the source can report what only `close(2)` reports.
pub(super) fn flush(file: BorrowedFd<'_>) -> Result<()> {
    match nix::unistd::close(rustix::io::fcntl_dupfd_cloexec(file, 0)?) {
        // Linux closes the descriptor before a signal can interrupt.
        Ok(()) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn sync(file: BorrowedFd<'_>, data_only: bool) -> Result<()> {
    Ok(retry(|| if data_only { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) })?)
}

/// Moves the position of the descriptor too, which nothing reads: reads and writes bring their offset.
pub(super) fn seek(file: BorrowedFd<'_>, offset: i64, whence: i32) -> Result<i64> {
    let whence = match whence {
        libc::SEEK_SET => Whence::SeekSet,
        libc::SEEK_CUR => Whence::SeekCur,
        libc::SEEK_END => Whence::SeekEnd,
        libc::SEEK_DATA => Whence::SeekData,
        libc::SEEK_HOLE => Whence::SeekHole,
        _ => return Err(Errno::EINVAL),
    };
    loop {
        match nix::unistd::lseek(file, offset, whence) {
            Err(nix::errno::Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
}

pub(super) fn allocate(file: BorrowedFd<'_>, offset: u64, length: u64, mode: i32) -> Result<()> {
    let mode = FallocateFlags::from_bits_retain(mode as u32);
    Ok(retry(|| rustix::fs::fallocate(file, mode, offset, length))?)
}

pub(super) fn copy(from: (BorrowedFd<'_>, u64), to: (BorrowedFd<'_>, u64), length: u64) -> Result<usize> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    Ok(retry(|| {
        let (mut from_offset, mut to_offset) = (from.1, to.1);
        rustix::fs::copy_file_range(from.0, Some(&mut from_offset), to.0, Some(&mut to_offset), length)
    })?)
}
