//! The load itself: on an ordinary directory it must find nothing wrong, and it must be able to find what is.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lighthouse_fs::bench::Crew;
use lighthouse_fs::bench::load::{Kind, Tally};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rstest::rstest;
use tempfile::TempDir;

/// For a worker that answers.
const LIMIT: Duration = Duration::from_secs(10);

fn start(kinds: &[Kind]) -> (TempDir, Crew) {
    let dir = tempfile::tempdir().unwrap();
    let crew = Crew::start(Path::new(env!("CARGO_BIN_EXE_lighthouse-fs")), dir.path(), kinds, 42).unwrap();
    (dir, crew)
}

fn send(crew: &Crew, signal: Signal) {
    for pid in crew.pids() {
        kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
    }
}

#[rstest]
fn every_kind_is_clean_on_a_plain_directory(
    #[values(
        Kind::Metadata,
        Kind::Small,
        Kind::LargeDirect,
        Kind::LargeBuffered,
        Kind::Mapped,
        Kind::Append,
        Kind::Held
    )]
    kind: Kind,
) {
    let (_dir, crew) = start(&[kind]);
    sleep(Duration::from_secs(1));
    let tally = crew.stop(LIMIT);
    assert!(tally.is_clean(), "{tally:?}");
    assert!(tally.operations > 20, "{}", tally.operations);
    assert_eq!(tally.latency.len(), tally.operations);
}

#[test]
fn a_crew_works_side_by_side_and_is_added_up() {
    let (dir, crew) = start(&[Kind::Append, Kind::Append, Kind::Held]);
    sleep(Duration::from_millis(500));
    let tally = crew.stop(LIMIT);
    assert!(tally.is_clean(), "{tally:?}");
    let mut places: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    places.sort();
    assert_eq!(places, ["0-append", "1-append", "2-held"]);
}

/// Turns one bit in each 4 KiB.
fn flip(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    for place in (10..file.metadata()?.len()).step_by(4096) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, place)?;
        file.write_all_at(&[byte[0] ^ 1], place)?;
    }
    Ok(())
}

fn truncate(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.set_len(0)
}

fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)
}

/// Lets a worker start, damages its file a few times, and gives what the worker has noticed.
fn damaged(kind: Kind, file: &str, damage: fn(&Path) -> io::Result<()>) -> Tally {
    let (dir, crew) = start(&[kind]);
    let path = dir.path().join(format!("0-{kind}")).join(file);
    let begin = Instant::now();
    while !path.exists() {
        assert!(begin.elapsed() < LIMIT, "{} is not made", path.display());
        sleep(Duration::from_millis(10));
    }
    let done = (0..10).filter(|_| {
        sleep(Duration::from_millis(50));
        match damage(&path) {
            Ok(()) => true,
            // Removed already, or emptied by its worker under our hands.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) => false,
            Err(error) => panic!("{}: {error}", path.display()),
        }
    });
    assert!(done.count() > 0);
    crew.stop(LIMIT)
}

#[rstest]
#[case(Kind::Small, "blocks", flip, "content")]
#[case(Kind::LargeDirect, "blocks", flip, "content")]
#[case(Kind::LargeBuffered, "blocks", flip, "content")]
#[case(Kind::Mapped, "mapped", flip, "content")]
#[case(Kind::Append, "log", flip, "content")]
#[case(Kind::Small, "blocks", truncate, "content")]
#[case(Kind::LargeDirect, "blocks", truncate, "content")]
#[case(Kind::Append, "log", truncate, "content")]
#[case(Kind::Held, "home/here", flip, "content")]
#[case(Kind::Metadata, "names/00000050", remove, "missing names")]
fn damage_is_a_mismatch(
    #[case] kind: Kind,
    #[case] file: &str,
    #[case] damage: fn(&Path) -> io::Result<()>,
    #[case] what: &str,
) {
    let tally = damaged(kind, file, damage);
    assert!(tally.mismatches > 0, "{tally:?}");
    assert!(tally.wrong.iter().any(|mismatch| mismatch.what == what), "{:?}", tally.wrong);
}

#[rstest]
#[case(Kind::Held, "home/here", "read of here: No such file or directory (os error 2)")]
#[case(Kind::Append, "log", "read of ")]
fn what_is_gone_is_a_failure(#[case] kind: Kind, #[case] file: &str, #[case] message: &str) {
    let tally = damaged(kind, file, remove);
    assert!(tally.failed > 0, "{tally:?}");
    assert!(tally.failures[0].to_string().starts_with(message), "{}", tally.failures[0]);
    assert_eq!(tally.failures[0].errno, Some(libc::ENOENT));
}

#[test]
fn a_page_that_cannot_be_had_ends_the_worker_and_counts() {
    let tally = damaged(Kind::Mapped, "mapped", truncate);
    assert!(!tally.is_clean(), "{tally:?}");
}

#[test]
fn a_worker_ends_as_soon_as_its_input_does() {
    let (_dir, crew) = start(&Kind::ALL);
    sleep(Duration::from_millis(500));
    let begin = Instant::now();
    let tally = crew.stop(LIMIT);
    assert!(tally.is_clean(), "{tally:?}");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[test]
fn a_killed_worker_is_a_failure() {
    let (_dir, crew) = start(&[Kind::Small]);
    send(&crew, Signal::SIGKILL);
    let tally = crew.stop(LIMIT);
    assert_eq!(tally.failed, 1);
    assert!(tally.failures[0].error.contains("signal: 9"), "{}", tally.failures[0]);
}

#[test]
fn a_worker_that_does_not_end_is_killed_and_counts() {
    let (_dir, crew) = start(&[Kind::Small]);
    send(&crew, Signal::SIGSTOP);
    let tally = crew.stop(Duration::from_millis(300));
    assert_eq!(tally.failed, 1);
    assert_eq!(tally.failures[0].error, "did not end within 300ms, and was killed");
}

#[test]
fn a_program_that_reports_nothing_is_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let crew = Crew::start(Path::new("/bin/true"), dir.path(), &[Kind::Held], 1).unwrap();
    let tally = crew.stop(LIMIT);
    assert_eq!(tally.failures[0].error, "ended without a report: exit status: 0");
}
