//! The measured work: one request an operation, which no cache of the kernel can answer.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use memmap2::MmapMut;
use rustix::fs::{AtFlags, StatxFlags, statx};

/// Name of the file.
pub const FILE: &str = "file";
const SIZE: usize = 1 << 20;
const BLOCK: usize = 4096;

/// Makes the file in the source.
pub fn fill(source: &Path) {
    std::fs::write(source.join(FILE), vec![7; SIZE]).expect("a file");
}

/// What a client does all the time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// `statx(2)` with AT_STATX_FORCE_SYNC: a GETATTR.
    Stat,
    /// 4 KiB by O_DIRECT: a READ.
    Read,
}

impl Work {
    pub const ALL: [Self; 2] = [Self::Stat, Self::Read];

    pub fn name(self) -> &'static str {
        match self {
            Self::Stat => "stat",
            Self::Read => "4 KiB read",
        }
    }
}

/// A client that has opened the file.
pub struct Hand {
    work: Work,
    file: File,
    /// O_DIRECT wants it aligned; a map is.
    buffer: MmapMut,
    block: usize,
}

impl Hand {
    pub fn new(work: Work, path: &Path) -> Self {
        let flags = match work {
            Work::Stat => libc::O_PATH,
            Work::Read => libc::O_DIRECT,
        };
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).expect("the file");
        Self { work, file, buffer: MmapMut::map_anon(BLOCK).expect("memory"), block: 0 }
    }

    /// One operation.
    pub fn act(&mut self) {
        match self.work {
            Work::Stat => {
                let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
                let attributes = statx(&self.file, "", flags, StatxFlags::BASIC_STATS).expect("attributes");
                assert_eq!(attributes.stx_size, SIZE as u64);
            }
            Work::Read => {
                self.block = (self.block + 1) % (SIZE / BLOCK);
                let read = self.file.read_at(&mut self.buffer, (self.block * BLOCK) as u64).expect("content");
                assert_eq!(read, BLOCK);
            }
        }
    }
}
