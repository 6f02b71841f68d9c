//! What a program holds on to for hours and a change underneath must not take away: an open file without a name, both
//! kinds of locks, a half-read directory, a working directory, and the identity of the file system.

use std::env;
use std::fs::{self, File, OpenOptions, ReadDir};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{FlockOperation, flock};

use super::names::Names;
use super::{Counted, Tally, Worker, close, open, pattern};

/// Bytes of the unlinked file.
const LENGTH: usize = 64 << 10;
/// Between two rounds: what is held is to be looked at often, but not to be the load.
const PAUSE: Duration = Duration::from_millis(1);

/// All that is held.
pub struct Held {
    unlinked: Unlinked,
    locks: Locks,
    listing: Listing,
    home: Home,
}

impl Held {
    pub fn start(place: &Path, rng: Rng, tally: &mut Tally) -> Result<Self, Counted> {
        Ok(Self {
            unlinked: Unlinked::start(place, rng, tally)?,
            locks: Locks::start(place, tally)?,
            listing: Listing::start(place, tally)?,
            home: Home::start(place, tally)?,
        })
    }
}

impl Worker for Held {
    fn step(&mut self, tally: &mut Tally) -> Result<(), Counted> {
        thread::sleep(PAUSE);
        // Each is looked at, whatever happens to the others.
        let all =
            [self.unlinked.check(tally), self.locks.check(tally), self.listing.check(tally), self.home.check(tally)];
        all.into_iter().collect()
    }
}

/// An open file that has no name any more.
struct Unlinked {
    path: PathBuf,
    file: File,
    rng: Rng,
    /// None after a failed write.
    stamp: Option<u64>,
}

impl Unlinked {
    fn start(place: &Path, rng: Rng, tally: &mut Tally) -> Result<Self, Counted> {
        let path = place.join("unlinked");
        let file = open(tally, &path, OpenOptions::new().write(true))?;
        tally.run("unlink", &path, || fs::remove_file(&path))?;
        let mut this = Self { path, file, rng, stamp: None };
        this.write(tally)?;
        Ok(this)
    }

    fn write(&mut self, tally: &mut Tally) -> Result<(), Counted> {
        let stamp = self.rng.u64(..);
        self.stamp = None;
        let content = pattern::content(LENGTH, stamp, 0);
        let written = tally.run("write", &self.path, || self.file.write_at(&content, 0))?;
        tally.check("bytes written", &self.path, &written, &LENGTH);
        self.stamp = Some(stamp);
        Ok(())
    }

    fn check(&mut self, tally: &mut Tally) -> Result<(), Counted> {
        if self.rng.u8(..16) == 0 {
            self.write(tally)?;
        }
        let found = tally.run("fstat", &self.path, || self.file.metadata())?;
        tally.check("size", &self.path, &found.len(), &(LENGTH as u64));
        let mut got = vec![0; LENGTH];
        let read = tally.run("read", &self.path, || self.file.read_at(&mut got, 0))?;
        if let Some(stamp) = self.stamp {
            tally.check_content(&self.path, 0, &got[..read], &pattern::content(LENGTH, stamp, 0));
        }
        Ok(())
    }
}

/// One file under flock(2), one under a POSIX lock, and for each a second descriptor to which the lock must be refused.
struct Locks {
    whole: Locked,
    range: Locked,
}

struct Locked {
    path: PathBuf,
    // Only kept: closing any descriptor of the file would give the POSIX lock up.
    holder: File,
    other: File,
}

impl Locks {
    fn start(place: &Path, tally: &mut Tally) -> Result<Self, Counted> {
        let whole = Locked::start(place.join("flock"), tally)?;
        tally.run("flock", &whole.path, || flock(&whole.holder, FlockOperation::NonBlockingLockExclusive))?;
        let range = Locked::start(place.join("posix-lock"), tally)?;
        tally.run("lock", &range.path, || fcntl(&range.holder, FcntlArg::F_SETLK(&whole_file())))?;
        Ok(Self { whole, range })
    }

    fn check(&self, tally: &mut Tally) -> Result<(), Counted> {
        let Locked { path, other, .. } = &self.whole;
        let held = tally.run("flock", path, || refused(flock(other, FlockOperation::NonBlockingLockExclusive)))?;
        tally.check("flock is held", path, &held, &true);
        let Locked { path, other, .. } = &self.range;
        // A lock of the open file description: only such a one is in conflict with one of the same process.
        let lock = || fcntl(other, FcntlArg::F_OFD_SETLK(&whole_file()));
        let held = tally.run("lock", path, || refused(lock().map_err(io::Error::from)))?;
        tally.check("POSIX lock is held", path, &held, &true);
        Ok(())
    }
}

impl Locked {
    fn start(path: PathBuf, tally: &mut Tally) -> Result<Self, Counted> {
        let holder = open(tally, &path, OpenOptions::new().write(true))?;
        let other = open(tally, &path, OpenOptions::new().write(true))?;
        Ok(Self { path, holder, other })
    }
}

/// An exclusive lock from the start to wherever the end is.
fn whole_file() -> libc::flock {
    libc::flock { l_type: libc::F_WRLCK as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 }
}

fn refused<T>(attempt: Result<T, impl Into<io::Error>>) -> io::Result<bool> {
    match attempt.map_err(Into::into) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

/// A directory that is read one name a round, so that nearly every change meets it half-read. Its names are long: the C
/// library reads ahead 32 KiB.
struct Listing {
    names: Names,
    rest: Option<ReadDir>,
    seen: Vec<std::ffi::OsString>,
}

impl Listing {
    fn start(place: &Path, tally: &mut Tally) -> Result<Self, Counted> {
        Ok(Self { names: Names::make(place.join("listing"), 400, 200, tally)?, rest: None, seen: Vec::new() })
    }

    fn check(&mut self, tally: &mut Tally) -> Result<(), Counted> {
        let dir = &self.names.dir;
        let Some(rest) = &mut self.rest else {
            self.rest = Some(tally.run("opendir", dir, || fs::read_dir(dir))?);
            self.seen.clear();
            return Ok(());
        };
        match tally.run("readdir", dir, || rest.next().transpose()) {
            Ok(Some(entry)) => self.seen.push(entry.file_name()),
            Ok(None) => {
                self.names.check(std::mem::take(&mut self.seen), tally);
                self.rest = None;
            }
            Err(Counted) => self.rest = None,
        }
        Ok(())
    }
}

/// The working directory of the process.
struct Home {
    path: PathBuf,
    identity: (u64, u64),
    content: Vec<u8>,
}

impl Home {
    fn start(place: &Path, tally: &mut Tally) -> Result<Self, Counted> {
        let home = place.join("home");
        tally.run("mkdir", &home, || fs::create_dir(&home))?;
        tally.run("chdir", &home, || env::set_current_dir(&home))?;
        let content = pattern::content(100, 1, 0);
        tally.run("write", Path::new("here"), || fs::write("here", &content))?;
        // As the kernel names it: the way there may have led over symbolic links.
        let path = tally.run("getcwd", &home, env::current_dir)?;
        Ok(Self { path, identity: identity(tally)?, content })
    }

    fn check(&self, tally: &mut Tally) -> Result<(), Counted> {
        let path = tally.run("getcwd", &self.path, env::current_dir)?;
        tally.check("working directory", &self.path, &path, &self.path);
        let identity = identity(tally)?;
        tally.check("device and inode", &self.path, &identity, &self.identity);
        let (here, new) = (Path::new("here"), Path::new("new"));
        let read = tally.run("read", here, || fs::read(here))?;
        tally.check_content(here, 0, &read, &self.content);
        let file = tally.run("create", new, || File::create(new))?;
        close(tally, new, file)?;
        tally.run("unlink", new, || fs::remove_file(new))
    }
}

fn identity(tally: &mut Tally) -> Result<(u64, u64), Counted> {
    let found = tally.run("stat", Path::new("."), || fs::metadata("."))?;
    Ok((found.dev(), found.ino()))
}
