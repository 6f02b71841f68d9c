//! What one load process does: it works in a directory of its own, checks every byte and every answer, and reports.
//!
//! It works on any file system and knows nothing of FUSE, so that a failure speaks about the mount and not about the
//! load. Everything follows from the seed but the order in which several workers meet.

mod append;
mod blocks;
mod held;
mod map;
mod mapped;
mod metadata;
mod names;
pub mod pattern;
mod tally;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use serde::{Deserialize, Serialize};

use crate::config::UnknownName;
pub use tally::{Counted, Failure, Mismatch, Tally};

/// After a failed step: a dead mount need not be asked a million times a second.
const REST: Duration = Duration::from_millis(2);

/// What a worker does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Makes, renames, links, lists and removes names.
    Metadata,
    /// Reads and writes 4 KiB at random, through the page cache.
    Small,
    /// Reads and writes 1 MiB at random, past the page cache.
    LargeDirect,
    /// Reads and writes 1 MiB at random, through the page cache.
    LargeBuffered,
    /// Writes through a shared map and reads by descriptor, and the other way round.
    Mapped,
    /// Appends records by two descriptors.
    Append,
    /// Holds on to what must survive: an unlinked file, locks, a listing, a working directory.
    Held,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 7] =
        [Self::Metadata, Self::Small, Self::LargeDirect, Self::LargeBuffered, Self::Mapped, Self::Append, Self::Held];

    /// The name in options and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Metadata => "metadata",
            Self::Small => "small",
            Self::LargeDirect => "large-direct",
            Self::LargeBuffered => "large-buffered",
            Self::Mapped => "mapped",
            Self::Append => "append",
            Self::Held => "held",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Kind {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| UnknownName {
            what: "kind of load",
            given: name.into(),
            expected: "metadata, small, large-direct, large-buffered, mapped, append or held",
        })
    }
}

/// What one worker is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Task {
    /// How it works.
    pub kind: Kind,
    /// Where it makes its own directory, see [`place`](Self::place).
    pub dir: PathBuf,
    /// What the content and the choices follow from.
    pub seed: u64,
    /// Its number among the workers of that directory.
    pub index: u32,
}

impl Task {
    /// The worker's own directory. It must not exist when the worker starts, and is left behind.
    #[must_use]
    pub fn place(&self) -> PathBuf {
        self.dir.join(format!("{}-{}", self.index, self.kind))
    }

    /// Works until `ended` says so; it is asked many times a second. Changes the working directory of the process for
    /// kind [`Held`](Kind::Held), therefore `dir` must be absolute.
    #[must_use]
    pub fn run(&self, ended: impl Fn() -> bool) -> LoadReport {
        let mut tally = Tally::default();
        // A worker that cannot even start has a failure in its tally.
        if let Ok(mut worker) = self.start(&mut tally) {
            while !ended() {
                if let Err(Counted) = worker.step(&mut tally) {
                    thread::sleep(REST);
                }
            }
            match worker.finish(&mut tally) {
                Ok(()) | Err(Counted) => {}
            }
        }
        LoadReport { kind: self.kind, index: self.index, seed: self.seed, tally }
    }

    fn start(&self, tally: &mut Tally) -> Result<Box<dyn Worker>, Counted> {
        let place = self.place();
        tally.run("mkdir", &place, || std::fs::create_dir(&place))?;
        let rng = Rng::with_seed(self.seed ^ (u64::from(self.index) << 32));
        Ok(match self.kind {
            Kind::Metadata => Box::new(metadata::Metadata::start(&place, rng, tally)?),
            Kind::Small => Box::new(blocks::Blocks::start(&place, rng, blocks::SMALL, tally)?),
            Kind::LargeDirect => Box::new(blocks::Blocks::start(&place, rng, blocks::LARGE_DIRECT, tally)?),
            Kind::LargeBuffered => Box::new(blocks::Blocks::start(&place, rng, blocks::LARGE_BUFFERED, tally)?),
            Kind::Mapped => Box::new(mapped::Mapped::start(&place, rng, tally)?),
            Kind::Append => Box::new(append::Append::start(&place, rng, tally)?),
            Kind::Held => Box::new(held::Held::start(&place, rng, tally)?),
        })
    }
}

/// One way to work. What fails is in the tally already; a step that failed leaves a state from which the next can go on.
trait Worker {
    /// Does a little: well below a second, if the file system answers.
    fn step(&mut self, tally: &mut Tally) -> Result<(), Counted>;

    /// Checks at the end what no step may have looked at since it was written.
    fn finish(&mut self, _tally: &mut Tally) -> Result<(), Counted> {
        Ok(())
    }
}

/// What a worker says at its end, as one line of JSON.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct LoadReport {
    /// How it worked.
    pub kind: Kind,
    /// Its number.
    pub index: u32,
    /// Its seed, to do the same again.
    pub seed: u64,
    /// What it did.
    #[serde(flatten)]
    pub tally: Tally,
}

/// Opens or makes the file at `path` for reading and writing.
fn open(tally: &mut Tally, path: &Path, options: &mut std::fs::OpenOptions) -> Result<std::fs::File, Counted> {
    tally.run("open", path, || options.read(true).create(true).open(path))
}

/// Closes a file; `drop` would keep to itself what the file system answers to FLUSH.
fn close(tally: &mut Tally, path: &Path, file: std::fs::File) -> Result<(), Counted> {
    tally.run("close", path, || nix::unistd::close(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_one_name_everywhere() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
        assert!("random".parse::<Kind>().unwrap_err().to_string().contains("use metadata, small"));
    }
}
