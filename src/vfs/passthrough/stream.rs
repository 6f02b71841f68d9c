//! Reading directories. A stream's buffer is nothing that another process would miss: every READDIR carries the place
//! to go on from, and a stream that is elsewhere seeks.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rustix::fs::{AtFlags, SeekFrom};
use zerocopy::{FromBytes, KnownLayout};

use super::source::{retry, stat};
use crate::vfs::table::HandlePin;
use crate::vfs::{Errno, FileKind, HandleId, ListFlow, Result};

/// Bytes asked of the source at once: about 1,000 names.
const BUFFER: usize = 32 * 1024;
const SHARDS: u64 = 16;

/// `struct linux_dirent64` of `getdents64(2)`; records follow each other at multiples of 8.
#[repr(C)]
#[derive(FromBytes, KnownLayout)]
struct Dirent {
    inode: u64,
    offset: i64,
    length: u16,
    kind: u8,
    name: [u8; 5],
}

/// One name as the source lists it.
pub(super) struct Listed<'a> {
    pub(super) inode: u64,
    pub(super) offset: u64,
    pub(super) kind: FileKind,
    pub(super) name: &'a OsStr,
}

/// Where one open directory is being read.
pub(super) struct Stream {
    /// `st_dev` of the directory.
    pub(super) device: u64,
    buffer: Box<[u8]>,
    /// What of the buffer was filled and not yet taken.
    pending: std::ops::Range<usize>,
    /// Offset of the first pending entry, if this stream has read at all.
    position: Option<u64>,
}

impl Stream {
    fn new(directory: BorrowedFd<'_>) -> Result<Self> {
        let device = stat(directory)?.st_dev;
        Ok(Self { device, buffer: vec![0; BUFFER].into(), pending: 0..0, position: None })
    }

    /// Hands the entries from `offset` on to `sink`, until that is full or the directory ends.
    pub(super) fn list(
        &mut self,
        directory: BorrowedFd<'_>,
        offset: u64,
        mut sink: impl FnMut(&Listed<'_>) -> ListFlow,
    ) -> Result<()> {
        // From the start means afresh: `rewinddir` must show what has changed.
        if offset == 0 || self.position != Some(offset) {
            self.pending = 0..0;
            retry(|| rustix::fs::seek(directory, SeekFrom::Start(offset)))?;
            self.position = Some(offset);
        }
        loop {
            while !self.pending.is_empty() {
                let (listed, length) = parse(directory, &self.buffer[self.pending.clone()])?;
                if sink(&listed) == ListFlow::Full {
                    return Ok(());
                }
                self.position = Some(listed.offset);
                self.pending.start += length;
            }
            self.pending = 0..get_entries(directory, &mut self.buffer)?;
            if self.pending.is_empty() {
                return Ok(());
            }
        }
    }
}

fn parse<'a>(directory: BorrowedFd<'_>, bytes: &'a [u8]) -> Result<(Listed<'a>, usize)> {
    let (entry, _) = Dirent::read_from_prefix(bytes).map_err(|_| Errno::EIO)?;
    let length = usize::from(entry.length);
    let name = bytes.get(offset_of!(Dirent, name)..length).ok_or(Errno::EIO)?;
    let name = OsStr::from_bytes(name.split(|byte| *byte == 0).next().unwrap_or_default());
    let kind = if entry.kind == libc::DT_UNKNOWN {
        // Some file systems do not say. A name that is gone by now may be of any kind.
        rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_or(FileKind::File, |stat| FileKind::from_mode(stat.st_mode))
    } else {
        // DTTOIF of <dirent.h>.
        FileKind::from_mode(u32::from(entry.kind) << 12)
    };
    Ok((Listed { inode: entry.inode, offset: entry.offset as u64, kind, name }, length))
}

fn get_entries(directory: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
    let fd = directory.as_raw_fd();
    let filled = retry(|| {
        // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`, which is ours alone.
        let filled = unsafe { libc::syscall(libc::SYS_getdents64, fd, buffer.as_mut_ptr(), buffer.len()) };
        usize::try_from(filled).map_err(|_| last_error())
    })?;
    Ok(filled)
}

fn last_error() -> rustix::io::Errno {
    rustix::io::Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(rustix::io::Errno::IO)
}

/// The streams of open directories.
#[derive(Default)]
pub(super) struct Streams {
    shards: [RwLock<HashMap<u64, Arc<Mutex<Stream>>>>; SHARDS as usize],
}

impl Streams {
    /// The stream of an open directory; made when it is first listed.
    pub(super) fn of(&self, handle: HandleId, pin: &HandlePin<'_>) -> Result<Arc<Mutex<Stream>>> {
        let shard = self.shard(handle);
        if let Some(stream) = shard.read().get(&handle.0) {
            return Ok(Arc::clone(stream));
        }
        let stream = Arc::new(Mutex::new(Stream::new(pin.as_fd())?));
        let mut streams = shard.write();
        // A handle that was released meanwhile gets a stream of its own: nobody would come to remove it from here.
        if !pin.is_open() {
            return Ok(stream);
        }
        Ok(Arc::clone(streams.entry(handle.0).or_insert(stream)))
    }

    /// Forgets the stream of a handle, which must have been released before.
    pub(super) fn remove(&self, handle: HandleId) {
        let stream = self.shard(handle).write().remove(&handle.0);
        drop(stream);
    }

    fn shard(&self, handle: HandleId) -> &RwLock<HashMap<u64, Arc<Mutex<Stream>>>> {
        &self.shards[(handle.0 % SHARDS) as usize]
    }
}
