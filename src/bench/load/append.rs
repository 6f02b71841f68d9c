//! Records that two descriptors append in turn: none may be lost, doubled, torn or out of order.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use fastrand::Rng;

use super::{Counted, Tally, Worker, open, pattern};

/// Bytes of a record; not a divisor of the page size, so that records cross pages.
const RECORD: usize = 104;
/// Records between two looks at the whole.
const INTERVAL: usize = 64;
/// Records after which the file is emptied.
const MOST: usize = 4096;

/// A log file and how long it must be.
pub struct Append {
    path: PathBuf,
    writers: [File; 2],
    rng: Rng,
    stamp: u64,
    records: usize,
}

impl Append {
    pub fn start(place: &Path, mut rng: Rng, tally: &mut Tally) -> Result<Self, Counted> {
        let path = place.join("log");
        let stamp = rng.u64(..);
        let mut writer = || open(tally, &path, OpenOptions::new().append(true));
        let writers = [writer()?, writer()?];
        Ok(Self { path, writers, rng, stamp, records: 0 })
    }

    fn append(&mut self, tally: &mut Tally) -> Result<(), Counted> {
        let record = pattern::content(RECORD, self.stamp, (self.records * RECORD) as u64);
        let mut writer = &self.writers[self.records % 2];
        // In one call, for the other writer's record must not come in between; a short one is a full disk.
        tally.run("append", &self.path, || match writer.write(&record) {
            Ok(RECORD) => Ok(()),
            Ok(written) => Err(io::Error::other(format!("only {written} of {RECORD} bytes were written"))),
            Err(error) => Err(error),
        })?;
        self.records += 1;
        Ok(())
    }

    fn empty(&mut self, tally: &mut Tally) -> Result<(), Counted> {
        tally.run("truncate", &self.path, || self.writers[0].set_len(0))?;
        self.stamp = self.rng.u64(..);
        self.records = 0;
        Ok(())
    }

    fn check(&self, tally: &mut Tally) -> Result<(), Counted> {
        let whole = tally.run("read", &self.path, || fs::read(&self.path))?;
        tally.check_content(&self.path, 0, &whole, &pattern::content(self.records * RECORD, self.stamp, 0));
        Ok(())
    }
}

impl Worker for Append {
    fn step(&mut self, tally: &mut Tally) -> Result<(), Counted> {
        if self.records >= MOST {
            self.empty(tally)?;
        }
        // Whether a failed append has reached the file nobody knows: begin anew.
        if let Err(Counted) = (0..INTERVAL).try_for_each(|_| self.append(tally)) {
            return self.empty(tally);
        }
        self.check(tally)
    }

    fn finish(&mut self, tally: &mut Tally) -> Result<(), Counted> {
        self.check(tally)
    }
}
