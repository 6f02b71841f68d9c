//! Two backends share a mount: the candidate gets its share of the operations, and nobody notices.

// A build with one backend has nothing to share with.
#![cfg(all(feature = "fuse2", feature = "fuse3"))]

#[macro_use]
mod support;
#[path = "stage/mod.rs"]
mod stage;

use std::fs;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use lighthouse_fs::bench::{Crew, load::Kind};
use rstest::rstest;
use stage::{DRAIN, Handlers, Stage};
use support::{Backend, Tier, require_root, unless_skipped, wait_for};

/// For the share to settle after a change.
const SETTLING: Duration = Duration::from_secs(1);
/// For the workers to finish what they are at, on a loaded machine.
const WORKERS_LIMIT: Duration = Duration::from_secs(60);
const SEED: u64 = 20_261_124;

/// Not a test: the serving process of the others.
#[test]
fn stage() {
    stage::serve_if_told();
}

fn on_a_stage(first: Backend, handlers: Handlers, limit: Duration, test: impl FnOnce(&mut Stage)) {
    unless_skipped(require_root(), || {
        let mut stage = Stage::start_for(first, handlers, "stage", limit);
        test(&mut stage);
        stage.stop();
    });
}

/// The promise holds for ten seconds of steady load on a machine that has time; a short look on one that has not may be
/// further off now and then.
#[rstest]
fn the_candidate_gets_its_share(#[values(Backend::Fuse2, Backend::Fuse3)] candidate: Backend) {
    let (weights, length, attempts): (&[u8], _, _) = match Tier::current() {
        Tier::Quick => (&[10, 50, 90], Duration::from_secs(3), 5),
        _ => (&[1, 10, 25, 50, 75, 90], Duration::from_secs(10), 2),
    };
    on_a_stage(candidate.other(), Handlers::Inline, Duration::from_secs(400), |stage| {
        let crew = Crew::start(stage.program_path(), &stage.path(""), &Kind::ALL, SEED).expect("workers");
        for weight in weights {
            assert!(stage.weigh(candidate, *weight).is_none(), "both serve");
            std::thread::sleep(SETTLING);
            let is_kept = (0..attempts).any(|_| {
                let share = share_of(stage, candidate, length);
                println!("{candidate} at {weight} %: {share:.2} %");
                let off = (share - f64::from(*weight)).abs();
                assert!(off < 10., "{share} % instead of {weight} %");
                off < 2.
            });
            assert!(is_kept, "{candidate} never got {weight} %");
        }
        assert_eq!(stage.weigh(candidate, 100).expect("a switch").to, candidate);
        assert!(stage.weigh(candidate, 100).is_none(), "it is so already");
        stage.weigh(candidate, 50);
        assert_eq!(stage.weigh(candidate, 0).expect("a switch").to, candidate.other());
        let tally = crew.stop(WORKERS_LIMIT);
        assert!(tally.is_clean(), "{tally:#?}");
        stage.assert_all_answered();
    });
}

/// Percent of the operations that a backend serves in the next `length`.
fn share_of(stage: &Stage, backend: Backend, length: Duration) -> f64 {
    let before = stage.served();
    // This is the measurement, not a wait for something.
    std::thread::sleep(length);
    let after = stage.served();
    let [fuse2, fuse3] = [after[0] - before[0], after[1] - before[1]];
    let of = if backend == Backend::Fuse2 { fuse2 } else { fuse3 };
    100. * of as f64 / (fuse2 + fuse3) as f64
}

/// A turn that ends waits for no handler and answers nobody EIO, however long that takes; the others are served.
#[rstest]
#[case::threads(Backend::Fuse2, Handlers::Inline)]
#[case::pool(Backend::Fuse3, Handlers::OnPool)]
#[case::the_runtime_itself(Backend::Fuse3, Handlers::Inline)]
fn a_slow_handler_holds_nobody_up(#[case] slow: Backend, #[case] handlers: Handlers) {
    on_a_stage(slow, handlers, Duration::from_secs(60), |stage| {
        fs::write(stage.source_path("slow"), "content").unwrap();
        for number in 0..100 {
            fs::write(stage.source_path(&format!("other{number}")), "content").unwrap();
        }
        stage.hang("read");
        let done = AtomicU64::new(0);
        let is_over = AtomicBool::new(false);
        let stage = &*stage;
        std::thread::scope(|threads| {
            let path = stage.path("slow");
            let stuck = threads.spawn(move || {
                let mut byte = [0];
                let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)?;
                file.read_exact_at(&mut byte, 0).map(|()| byte[0])
            });
            wait_for("the handler to hang", SETTLING * 10, || (stage.hanging() > 0).then_some(()));
            stage.hang("nothing");
            stage.weigh(slow.other(), 50);
            let worker = threads.spawn(|| {
                while !is_over.load(SeqCst) {
                    for number in 0..100 {
                        fs::metadata(stage.path(&format!("other{number}"))).expect("an answer");
                        fs::metadata(stage.path(&format!("missing{number}"))).expect_err("nothing");
                        done.fetch_add(2, SeqCst);
                    }
                }
            });
            let began = Instant::now();
            wait_for("more work than one deadline's", SETTLING * 20, || {
                (began.elapsed() > DRAIN * 2 && done.load(SeqCst) > 1000).then_some(())
            });
            stage.release();
            assert_eq!(stuck.join().expect("a thread").expect("no EIO"), b'c');
            // With its handler back, the slow one takes its turns again.
            let before = stage.served();
            wait_for("both to serve", SETTLING * 20, || {
                let now = stage.served();
                (now[0] > before[0] + 100 && now[1] > before[1] + 100).then_some(())
            });
            is_over.store(true, SeqCst);
            worker.join().expect("no operation fails");
        });
        stage.weigh(slow.other(), 0);
        stage.assert_all_answered();
    });
}

#[rstest]
fn a_session_that_ends_while_both_serve(#[values(Backend::Fuse2, Backend::Fuse3)] candidate: Backend) {
    on_a_stage(candidate.other(), Handlers::Inline, Duration::from_secs(90), |stage| {
        let crew = Crew::start(stage.program_path(), &stage.path(""), &Kind::ALL, SEED).expect("workers");
        for _ in 0..5 {
            stage.weigh(candidate, 50);
            std::thread::sleep(SETTLING / 4);
            let ended = stage.end_active();
            assert_eq!(ended.from, ended.to.other());
            let before = stage.served();
            wait_for("the survivor to serve", SETTLING * 10, || {
                let now = stage.served();
                (now[ended.to.index()] > before[ended.to.index()] + 100).then_some(())
            });
        }
        let tally = crew.stop(WORKERS_LIMIT);
        assert!(tally.is_clean(), "{tally:#?}");
        stage.assert_all_answered();
    });
}
