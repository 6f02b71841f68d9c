//! A shared map and a descriptor of one file, which must agree: what is written through one is read by the other.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use fastrand::Rng;
use memmap2::MmapMut;
use rustix::fs::{Advice, fadvise};

use super::{Counted, Tally, Worker, map, open, pattern};

/// Bytes that are written at once; more than a page, so that msync and faults have several.
const CHUNK: usize = 16 << 10;
/// Chunks of the file.
const CHUNKS: usize = 64;
/// Chunks that are written before the map is made anew and its pages have to be read again.
const TOUCHES: usize = 16;

/// A file that is mapped again and again, and what is in it.
pub struct Mapped {
    path: PathBuf,
    file: File,
    rng: Rng,
    /// Stamp of each chunk; none after a failed write, whose effect nobody knows.
    stamps: Vec<Option<u64>>,
    buffer: Vec<u8>,
}

impl Mapped {
    pub fn start(place: &Path, mut rng: Rng, tally: &mut Tally) -> Result<Self, Counted> {
        let path = place.join("mapped");
        let file = open(tally, &path, OpenOptions::new().write(true))?;
        let stamps: Vec<_> = (0..CHUNKS).map(|_| Some(rng.u64(..))).collect();
        let mut this = Self { path, file, rng, stamps, buffer: vec![0; CHUNK] };
        for (chunk, stamp) in this.stamps.clone().into_iter().enumerate() {
            this.expect(chunk, stamp);
            this.write(chunk, tally)?;
        }
        Ok(this)
    }

    /// Puts what belongs into a chunk into the buffer.
    fn expect(&mut self, chunk: usize, stamp: Option<u64>) {
        if let Some(stamp) = stamp {
            pattern::fill(&mut self.buffer, stamp, offset(chunk));
        }
    }

    fn write(&self, chunk: usize, tally: &mut Tally) -> Result<(), Counted> {
        let written = tally.run("write", &self.path, || self.file.write_at(&self.buffer, offset(chunk)))?;
        tally.check("bytes written", &self.path, &written, &CHUNK);
        Ok(())
    }

    fn touch(&mut self, map: &mut MmapMut, tally: &mut Tally) -> Result<(), Counted> {
        let chunk = self.rng.usize(..CHUNKS);
        let place = chunk * CHUNK..(chunk + 1) * CHUNK;
        if let Some(stamp) = self.stamps[chunk] {
            self.expect(chunk, Some(stamp));
            let before =
                tally.run("read the map", &self.path, || Ok::<_, std::io::Error>(map[place.clone()].to_vec()))?;
            tally.check_content(&self.path, offset(chunk), &before, &self.buffer);
        }
        let stamp = self.rng.u64(..);
        self.stamps[chunk] = None;
        pattern::fill(&mut self.buffer, stamp, offset(chunk));
        if self.rng.bool() {
            map[place.clone()].copy_from_slice(&self.buffer);
            tally.run("msync", &self.path, || map.flush_range(place.start, CHUNK))?;
            let mut got = vec![0; CHUNK];
            let read = tally.run("read", &self.path, || self.file.read_at(&mut got, offset(chunk)))?;
            tally.check_content(&self.path, offset(chunk), &got[..read], &self.buffer);
        } else {
            self.write(chunk, tally)?;
            tally.check_content(&self.path, offset(chunk), &map[place], &self.buffer);
        }
        self.stamps[chunk] = Some(stamp);
        Ok(())
    }
}

fn offset(chunk: usize) -> u64 {
    (chunk * CHUNK) as u64
}

impl Worker for Mapped {
    fn step(&mut self, tally: &mut Tally) -> Result<(), Counted> {
        tally.run("fadvise", &self.path, || fadvise(&self.file, 0, None, Advice::DontNeed))?;
        let mut map = tally.run("mmap", &self.path, || map::shared(&self.file))?;
        (0..TOUCHES).try_for_each(|_| self.touch(&mut map, tally))
    }
}
