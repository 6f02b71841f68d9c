//! Random reads and writes of whole blocks: small or large, through the page cache or past it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use fastrand::Rng;
use rustix::fs::{Advice, fadvise, fsync};

use super::pattern::{self, Aligned};
use super::{Counted, Tally, Worker, open};

/// Kind [`Small`](super::Kind::Small).
pub const SMALL: Habit = Habit { block: 4 << 10, blocks: 1024, cache: Cache::SyncedEvery(64) };
/// Kind [`LargeDirect`](super::Kind::LargeDirect).
pub const LARGE_DIRECT: Habit = Habit { block: 1 << 20, blocks: 8, cache: Cache::Bypassed };
/// Kind [`LargeBuffered`](super::Kind::LargeBuffered).
pub const LARGE_BUFFERED: Habit = Habit { block: 1 << 20, blocks: 8, cache: Cache::SyncedEvery(16) };

/// How a file is used.
#[derive(Clone, Copy, Debug)]
pub struct Habit {
    /// Size of a block in bytes.
    block: usize,
    /// Blocks in the file.
    blocks: usize,
    /// What the page cache may do.
    cache: Cache,
}

#[derive(Clone, Copy, Debug)]
enum Cache {
    /// O_DIRECT.
    Bypassed,
    /// Written out and dropped after so many steps, so that the file system itself is read again.
    SyncedEvery(u32),
}

/// A file of blocks, and what is in them.
pub struct Blocks {
    path: PathBuf,
    file: File,
    habit: Habit,
    rng: Rng,
    /// Stamp of each block; none after a failed write, whose effect nobody knows.
    stamps: Vec<Option<u64>>,
    buffer: Aligned,
    expected: Vec<u8>,
    steps: u32,
}

impl Blocks {
    pub fn start(place: &Path, rng: Rng, habit: Habit, tally: &mut Tally) -> Result<Self, Counted> {
        let path = place.join("blocks");
        let flags = match habit.cache {
            Cache::Bypassed => libc::O_DIRECT,
            Cache::SyncedEvery(_) => 0,
        };
        let mut this = Self {
            file: open(tally, &path, OpenOptions::new().write(true).custom_flags(flags))?,
            path,
            rng,
            stamps: vec![None; habit.blocks],
            buffer: Aligned::new(habit.block),
            expected: vec![0; habit.block],
            steps: 0,
            habit,
        };
        for block in 0..habit.blocks {
            this.write(block, tally)?;
        }
        Ok(this)
    }

    fn offset(&self, block: usize) -> u64 {
        (block * self.habit.block) as u64
    }

    fn write(&mut self, block: usize, tally: &mut Tally) -> Result<(), Counted> {
        let (stamp, offset) = (self.rng.u64(..), self.offset(block));
        pattern::fill(&mut self.buffer, stamp, offset);
        self.stamps[block] = None;
        let written = tally.run("write", &self.path, || self.file.write_at(&self.buffer, offset))?;
        tally.check("bytes written", &self.path, &written, &self.habit.block);
        self.stamps[block] = (written == self.habit.block).then_some(stamp);
        Ok(())
    }

    fn read(&mut self, block: usize, tally: &mut Tally) -> Result<(), Counted> {
        let offset = self.offset(block);
        // Else an answer without content would be taken for what the last one left here.
        self.buffer.fill(0);
        let read = tally.run("read", &self.path, || self.file.read_at(&mut self.buffer, offset))?;
        if let Some(stamp) = self.stamps[block] {
            pattern::fill(&mut self.expected, stamp, offset);
            tally.check_content(&self.path, offset, &self.buffer[..read], &self.expected);
        }
        Ok(())
    }

    fn sync(&self, tally: &mut Tally) -> Result<(), Counted> {
        tally.run("fsync", &self.path, || fsync(&self.file))?;
        tally.run("fadvise", &self.path, || fadvise(&self.file, 0, None, Advice::DontNeed))
    }
}

impl Worker for Blocks {
    fn step(&mut self, tally: &mut Tally) -> Result<(), Counted> {
        self.steps += 1;
        if let Cache::SyncedEvery(steps) = self.habit.cache
            && self.steps.is_multiple_of(steps)
        {
            self.sync(tally)?;
        }
        let block = self.rng.usize(..self.habit.blocks);
        if self.rng.bool() {
            self.write(block, tally)?;
        }
        self.read(block, tally)
    }

    fn finish(&mut self, tally: &mut Tally) -> Result<(), Counted> {
        self.sync(tally)?;
        (0..self.habit.blocks).try_for_each(|block| self.read(block, tally))
    }
}
