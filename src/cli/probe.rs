//! `probe`: asks through a mount, for `serve`, which must never do that itself. It may hang here, and nowhere else.

use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::process::{Signal, set_parent_process_death_signal};

use super::{absolute, exit, fail};
use crate::daemon::prober::{Answer, misplaced};

/// Answer each line on standard input with a line that says whether a mount answers; `serve` starts it
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the mount is
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    mountpoint: PathBuf,
    /// Device number of the mount, as in mountinfo
    #[arg(long, value_name = "MAJOR:MINOR", value_parser = device)]
    device: (u32, u32),
}

/// Answers until standard input ends.
pub fn run(args: &Args) -> ExitCode {
    // Should the parent be gone already, standard input has ended.
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return fail(exit::FAILED, format_args!("the end of the parent cannot be watched: {error}"));
    }
    match answer_all(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(exit::FAILED, format_args!("the prober cannot be asked, or not answer: {error}")),
    }
}

fn answer_all(args: &Args) -> io::Result<()> {
    let mut answers = io::stdout().lock();
    for question in io::stdin().lock().lines() {
        question?;
        let began = Instant::now();
        let answer = match ask(&args.mountpoint, args.device) {
            Ok(()) => Answer::Answered { took: began.elapsed() },
            Err(why) => Answer::Failed { why },
        };
        serde_json::to_writer(&mut answers, &answer)?;
        writeln!(answers)?;
    }
    Ok(())
}

/// Asks for what no cache can answer. Whatever else lies at the place is a failure, however well it answers.
fn ask(place: &Path, device: (u32, u32)) -> Result<(), String> {
    let failed = |call| move |error: rustix::io::Errno| format!("{call}: {}", io::Error::from(error));
    // Finding the root of a mount asks nobody. Held, so that both questions are about the same mount.
    let path_only = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, place, path_only, Mode::empty()).map_err(failed("open"))?;
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    let found = rustix::fs::statx(&root, c"", flags, StatxFlags::BASIC_STATS).map_err(failed("statx"))?;
    if (found.stx_dev_major, found.stx_dev_minor) != device {
        return Err(misplaced(place));
    }
    rustix::fs::fstatfs(&root).map_err(failed("statfs"))?;
    Ok(())
}

/// Reads a device number as in mountinfo.
pub(super) fn device(text: &str) -> Result<(u32, u32), &'static str> {
    let numbers = text.split_once(':').and_then(|(major, minor)| major.parse().ok().zip(minor.parse().ok()));
    numbers.ok_or("use two numbers, as in 0:31")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn only_the_right_mount_is_a_success() {
        let place = tempfile::tempdir().unwrap();
        let number = place.path().metadata().unwrap().dev();
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        assert_eq!(ask(place.path(), (major, minor)), Ok(()));
        assert_eq!(ask(place.path(), (major, minor + 1)), Err(misplaced(place.path())));
        let nowhere = place.path().join("nowhere");
        assert_eq!(ask(&nowhere, (major, minor)).unwrap_err(), "open: No such file or directory (os error 2)");
    }

    #[test]
    fn devices_are_two_numbers() {
        assert_eq!(device("0:31"), Ok((0, 31)));
        assert!(device("31").is_err() && device("0:31:1").is_err());
    }
}
