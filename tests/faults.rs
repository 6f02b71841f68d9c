//! What happens when a handler hangs or a session ends: everyone else is served at once, the stuck requests get an error
//! at the deadline, and nothing of them remains.

// A build with one backend has nothing to switch to.
#![cfg(all(feature = "fuse2", feature = "fuse3"))]

#[macro_use]
mod support;
#[path = "stage/mod.rs"]
mod stage;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use rstest::rstest;
use stage::{DRAIN, Handlers, Stage};
use support::{Backend, require_root, unless_skipped, wait_for};

/// What a loaded machine may add to a deadline.
const SLACK: Duration = Duration::from_secs(10);

/// Not a test: the serving process of the others.
#[test]
fn stage() {
    stage::serve_if_told();
}

fn on_a_stage(first: Backend, handlers: Handlers, test: impl FnOnce(&mut Stage)) {
    unless_skipped(require_root(), || {
        let mut stage = Stage::start(first, handlers, "stage");
        test(&mut stage);
        stage.stop();
    });
}

/// Ends the workers of a test also when it fails.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Works in the mount until told to stop; returns the operations, the failures, and the longest. Nothing here reads, which
/// is what hangs. What changes something must be asked for once only: a second time it fails.
fn work(stage: &Stage, worker: usize, stop: &AtomicBool) -> (u64, Vec<String>, Duration) {
    let (mut done, mut failures, mut longest) = (0, Vec::new(), Duration::ZERO);
    let (made, moved) = (stage.path(&format!("made{worker}")), stage.path(&format!("moved{worker}")));
    while !stop.load(SeqCst) {
        let round: [(&str, &dyn Fn() -> io::Result<()>); 5] = [
            ("stat", &|| fs::symlink_metadata(stage.path("other")).map(drop)),
            ("list", &|| fs::read_dir(stage.path("folder")).map(drop)),
            ("mkdir", &|| fs::create_dir(&made)),
            ("rename", &|| fs::rename(&made, &moved)),
            ("rmdir", &|| fs::remove_dir(&moved)),
        ];
        for (name, operation) in round {
            let began = Instant::now();
            if let Err(error) = operation() {
                failures.push(format!("{name}: {error}"));
            }
            longest = longest.max(began.elapsed());
            done += 1;
        }
    }
    (done, failures, longest)
}

/// By direct I/O: when read-ahead gets an error, the kernel asks once more, and the program would never know.
fn read_first_byte(path: &std::path::Path) -> io::Result<u8> {
    let mut byte = [0];
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)?.read_exact_at(&mut byte, 0)?;
    Ok(byte[0])
}

#[rstest]
#[case::threads(Backend::Fuse2, Handlers::Inline)]
#[case::pool(Backend::Fuse3, Handlers::OnPool)]
#[case::the_runtime_itself(Backend::Fuse3, Handlers::Inline)]
fn a_hung_handler(#[case] hung: Backend, #[case] handlers: Handlers) {
    on_a_stage(hung, handlers, |stage| {
        let victims = ["victim1", "victim2", "victim3"];
        fs::create_dir(stage.source_path("folder")).unwrap();
        for name in victims.iter().chain(&["other"]) {
            fs::write(stage.source_path(name), "content").unwrap();
        }
        let before = stage.counts();
        stage.hang("read");
        let stop = AtomicBool::new(false);
        let worked = AtomicU64::new(0);
        std::thread::scope(|threads| {
            let _stops = Stops(&stop);
            let stuck: Vec<_> = victims
                .iter()
                .map(|name| {
                    let path = stage.path(name);
                    threads.spawn(move || read_first_byte(&path))
                })
                .collect();
            // On the runtime's own thread only one handler can hang: the others wait behind it.
            let hanging = if (hung, handlers) == (Backend::Fuse3, Handlers::Inline) { 1 } else { victims.len() };
            wait_for("the handlers to hang", SLACK, || (stage.hanging() >= hanging).then_some(()));
            // From here on reading hangs no more, for those who have not begun.
            stage.hang("nothing");
            let worker = threads.spawn(|| {
                let (done, failures, longest) = work(stage, 0, &stop);
                worked.store(done, SeqCst);
                (failures, longest)
            });
            let switched = stage.switch(hung.other()).expect("the other backend takes over");
            assert_eq!(switched.answered_for_hung, hanging, "those that hung are answered");
            let errors: Vec<_> = stuck.into_iter().map(|thread| thread.join().unwrap()).collect();
            let failed = errors
                .iter()
                .filter(|result| result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EIO)));
            assert_eq!(failed.count(), hanging, "EIO for those that hung, an answer for the rest: {errors:?}");
            // The others go on while the handlers still hang.
            for name in ["victim1", "other"] {
                assert_eq!(read_first_byte(&stage.path(name)).unwrap(), b'c');
            }
            stop.store(true, SeqCst);
            let (failures, longest) = worker.join().unwrap();
            // Not while somebody still works: on a loaded machine one of its requests may be under way at every look.
            stage.assert_all_answered();
            assert!(failures.is_empty(), "{failures:?}");
            assert!(worked.load(SeqCst) > 0);
            // With every other thread free, nobody waits for the deadline of those that hang.
            if hung == Backend::Fuse2 {
                assert!(longest < DRAIN, "somebody waited {longest:?}");
            }
        });
        // The hung backend comes back as a fresh session, beside the one that still hangs.
        let switched = stage.switch(hung).expect("a fresh session");
        assert_eq!((switched.to, switched.answered_for_hung), (hung, 0));
        assert_eq!(read_first_byte(&stage.path("victim2")).unwrap(), b'c');
        stage.release();
        wait_for("the handlers to come back", SLACK, || (stage.hanging() == 0).then_some(()));
        assert_eq!(read_first_byte(&stage.path("victim3")).unwrap(), b'c');
        stage.switch(hung.other()).expect("once more");
        stage.forget_everything();
        wait_for("nothing to remain", SLACK, || (stage.counts() == before).then_some(()));
    });
}

/// Late answers that would hand out a lookup or a handle.
#[rstest]
fn a_late_answer_leaves_no_trace(
    #[values("lookup", "open", "create", "mkdir", "symlink", "link", "opendir", "readdirplus")] operation: &str,
    #[values(Backend::Fuse2, Backend::Fuse3)] hung: Backend,
) {
    let handlers = if hung == Backend::Fuse3 { Handlers::OnPool } else { Handlers::Inline };
    on_a_stage(hung, handlers, |stage| {
        fs::create_dir(stage.source_path("folder")).unwrap();
        fs::write(stage.source_path("folder/inside"), "").unwrap();
        fs::write(stage.source_path("file"), "content").unwrap();
        let before = stage.counts();
        stage.hang(operation);
        std::thread::scope(|threads| {
            let act: fn(&Stage) -> io::Result<()> = match operation {
                "lookup" | "open" => |stage: &Stage| File::open(stage.path("file")).map(drop),
                "create" => {
                    |stage: &Stage| OpenOptions::new().write(true).create_new(true).open(stage.path("new")).map(drop)
                }
                "mkdir" => |stage: &Stage| fs::create_dir(stage.path("new")),
                "symlink" => |stage: &Stage| std::os::unix::fs::symlink("target", stage.path("new")),
                "link" => |stage: &Stage| fs::hard_link(stage.path("file"), stage.path("new")),
                "opendir" | "readdirplus" => {
                    |stage: &Stage| fs::read_dir(stage.path("folder"))?.try_for_each(|entry| entry.map(drop))
                }
                other => panic!("no action for {other}"),
            };
            let shared = &*stage;
            let stuck = threads.spawn(move || act(shared));
            wait_for("the handler to hang", SLACK, || (stage.hanging() == 1).then_some(()));
            stage.hang("nothing");
            let switched = stage.switch(hung.other()).expect("the other backend takes over");
            assert_eq!(switched.answered_for_hung, 1);
            let error = stuck.join().unwrap().expect_err("it was answered at the deadline");
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
        });
        stage.release();
        wait_for("the handler to come back", SLACK, || (stage.hanging() == 0).then_some(()));
        stage.forget_everything();
        wait_for("nothing to remain", SLACK, || (stage.counts() == before).then_some(()));
        stage.assert_all_answered();
    });
}

/// A session that has ended still owes answers. What it does not give, the deadline does.
#[rstest]
#[case(Backend::Fuse2, Handlers::Inline)]
#[case(Backend::Fuse3, Handlers::OnPool)]
fn a_handler_that_hangs_in_a_session_that_ended(#[case] ending: Backend, #[case] handlers: Handlers) {
    on_a_stage(ending, handlers, |stage| {
        fs::write(stage.source_path("victim"), "content").unwrap();
        let before = stage.counts();
        stage.hang("read");
        let path = stage.path("victim");
        std::thread::scope(|threads| {
            let stuck = threads.spawn(|| read_first_byte(&path));
            wait_for("the handler to hang", SLACK, || (stage.hanging() == 1).then_some(()));
            stage.hang("nothing");
            let failed_over = stage.end_active();
            assert_eq!((failed_over.to, failed_over.answered_for_hung), (ending.other(), 1));
            let error = stuck.join().unwrap().expect_err("it was answered at the deadline");
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
        });
        assert_eq!(read_first_byte(&path).unwrap(), b'c');
        stage.switch(ending).expect("a fresh session");
        stage.release();
        wait_for("the handler to come back", SLACK, || (stage.hanging() == 0).then_some(()));
        stage.forget_everything();
        wait_for("nothing to remain", SLACK, || (stage.counts() == before).then_some(()));
        stage.assert_all_answered();
    });
}

/// Without its helper a session of fuse3 cannot start.
#[test]
fn a_switch_whose_target_cannot_start() {
    on_a_stage(Backend::Fuse3, Handlers::Inline, |stage| {
        fs::write(stage.source_path("file"), "content").unwrap();
        stage.end_active();
        stage.remove_helper();
        let error = stage.switch(Backend::Fuse3).expect_err("there is no helper");
        assert!(error.contains("fuse2 serves on") && error.contains("fusermount3"), "{error}");
        assert_eq!(stage.active(), Backend::Fuse2);
        assert_eq!(read_first_byte(&stage.path("file")).unwrap(), b'c');
    });
}

#[rstest]
fn a_session_that_ends_by_itself(#[values(Backend::Fuse2, Backend::Fuse3)] ending: Backend) {
    on_a_stage(ending, Handlers::Inline, |stage| {
        fs::create_dir(stage.source_path("folder")).unwrap();
        fs::write(stage.source_path("other"), "content").unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|threads| {
            let _stops = Stops(&stop);
            let workers: Vec<_> = (0..4)
                .map(|worker| {
                    let (stage, stop) = (&*stage, &stop);
                    threads.spawn(move || work(stage, worker, stop))
                })
                .collect();
            for round in 0..20 {
                let serving = stage.active();
                let failed_over = stage.end_active();
                assert_eq!((failed_over.from, failed_over.to), (serving, serving.other()), "round {round}");
                assert_eq!(read_first_byte(&stage.path("other")).unwrap(), b'c');
            }
            stop.store(true, SeqCst);
            for worker in workers {
                let (done, failures, _) = worker.join().unwrap();
                assert!(failures.is_empty(), "after {done} operations: {failures:?}");
            }
        });
        stage.assert_all_answered();
    });
}
