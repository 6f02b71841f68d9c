//! Which of the daemons that share a state directory may use a mount's state.
//!
//! Two with a mount of the same name would take each other's pins for their own, and lift them. So a daemon locks a file
//! beside the state, which cannot be locked itself because it is replaced, and holds the lock as long as it has the mount.
//! The lock goes with the process, however that ends: whoever comes after a SIGKILL need not wait. Servers do not inherit it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(10);
/// Longer than any number of a process.
const LONGEST: u64 = 32;

/// The right to use a mount's state, for as long as this lives.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    /// Closed on exec, as all files that the standard library opens.
    _locked: File,
}

/// Why there is none.
#[derive(Debug)]
pub(super) enum NoClaim {
    /// Another has it: the process of this number, as far as that is known.
    Taken(Option<u32>),
    /// The file cannot be made or locked.
    Failed(io::Error),
}

impl Claim {
    /// Locks the file, which is made for that. Waits so long for one that is about to let it go.
    pub(super) fn take(path: &Path, patience: Duration) -> Result<Self, NoClaim> {
        let end = Instant::now() + patience;
        loop {
            let mut file = open(path).map_err(NoClaim::Failed)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_at(&file, path).map_err(NoClaim::Failed)? => {
                    // For whoever finds it taken. On a full disk that one learns no number.
                    let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
                    return Ok(Self { path: path.into(), _locked: file });
                }
                // Its owner has taken it away meanwhile: another one is made.
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) if Instant::now() < end => sleep(PAUSE),
                Err(Errno::WOULDBLOCK) => return Err(NoClaim::Taken(owner(&mut file))),
                Err(error) => return Err(NoClaim::Failed(error.into())),
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Still locked: it is nobody else's. One that stays is no harm.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn open(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(path)
}

/// Whether the file still has this name.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let locked = file.metadata()?;
    match path.symlink_metadata() {
        Ok(named) => Ok((named.dev(), named.ino()) == (locked.dev(), locked.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn owner(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(LONGEST).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".projects.lock");
        let first = Claim::take(&path, Duration::ZERO).unwrap();
        let Err(NoClaim::Taken(owner)) = Claim::take(&path, PAUSE * 2) else { panic!("it is taken") };
        assert_eq!(owner, Some(std::process::id()));
        drop(first);
        assert!(!path.exists(), "nothing is left");
        let second = Claim::take(&path, Duration::ZERO).unwrap();
        drop(second);
        // What a killed process leaves.
        std::fs::write(&path, "4194304").unwrap();
        drop(Claim::take(&path, Duration::ZERO).unwrap());
    }

    #[test]
    fn whoever_ends_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".projects.lock");
        let first = Claim::take(&path, Duration::ZERO).unwrap();
        let waits = std::thread::spawn({
            let path = path.clone();
            move || Claim::take(&path, Duration::from_secs(30)).map(drop)
        });
        sleep(PAUSE * 3);
        drop(first);
        waits.join().unwrap().unwrap();
    }

    #[test]
    fn a_program_that_is_started_does_not_hold_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".projects.lock");
        let first = Claim::take(&path, Duration::ZERO).unwrap();
        // So that it is this file which is locked again, and not another of that name.
        let other = folder.path().join("other");
        std::fs::hard_link(&path, &other).unwrap();
        let mut program = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        drop(first);
        let second = Claim::take(&other, Duration::ZERO);
        drop(program.stdin.take());
        program.wait().unwrap();
        second.unwrap();
    }
}
