//! Drills: each fault by the command, what programs see of it, what is counted, and that it ends.

#[macro_use]
mod support;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rstest::rstest;
use serde_json::Value;
use support::{Backend, COMMAND_LIMIT, Mount, ROOT_DIRECT, require_root, unless_skipped, wait_for};

const OPERATIONS: &str = "lighthouse_fuse_operations_total";
const LOST: &str = "lighthouse_fuse_lost_requests_total";
/// A switch away from what does not answer waits for the deadline, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn on_a_mount(backend: Backend, test: impl FnOnce(&mut Mount)) {
    if !backend.is_built_in() {
        return;
    }
    unless_skipped(require_root(), || {
        let mut mount =
            Mount::builder(backend, ROOT_DIRECT).drill().without_prober().limit(Duration::from_secs(120)).start();
        fs::write(mount.sandbox.source().join("file"), "content").unwrap();
        test(&mut mount);
        mount.assert_all_answered();
        mount.stop();
    });
}

fn answer(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn drill(mount: &Mount, backend: Backend, fault: &str, more: &[&str]) -> Value {
    let arguments = ["drill", "default", "--backend", backend.name(), "--fault", fault];
    answer(&mount.ask(&[&arguments, more].concat()))
}

/// Ends it, and says how many requests were struck.
fn stop_drill(mount: &Mount) -> u64 {
    answer(&mount.ask(&["drill", "default", "--stop"]))["stopped"]["struck"].as_u64().expect("a drill that ran")
}

fn is_drilled(mount: &Mount) -> bool {
    !mount.status()["drill"].is_null()
}

fn wait_for_end(mount: &Mount) {
    wait_for("the drill to end", COMMAND_LIMIT, || (!is_drilled(mount)).then_some(()));
}

fn wait_until_held(mount: &Mount, requests: u64) {
    wait_for("requests to be held up", COMMAND_LIMIT, || (mount.status()["in_flight"] == requests).then_some(()));
}

fn backend_errors(mount: &Mount, backend: Backend, operation: &str) -> f64 {
    let labels = [format!("backend=\"{backend}\""), format!("operation=\"{operation}\"")];
    mount.scrape().sum(OPERATIONS, &[&labels[0], &labels[1], "status=\"backend_error\""])
}

/// By direct I/O: what is cached is asked of nobody.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)
}

fn read(file: &File) -> io::Result<String> {
    let mut bytes = [0; 512];
    let length = file.read_at(&mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

#[track_caller]
fn assert_eio<T: std::fmt::Debug>(result: io::Result<T>) {
    assert_eq!(result.expect_err("it is struck").raw_os_error(), Some(libc::EIO));
}

#[rstest]
fn errors_and_panics(
    #[values(Backend::Fuse2, Backend::Fuse3)] backend: Backend,
    #[values("error", "panic")] fault: &str,
) {
    on_a_mount(backend, |mount| {
        let file = open(&mount.path("file")).unwrap();
        let begun = drill(mount, backend, fault, &["--operation", "read", "--for", "10m"]);
        assert_eq!((&begun["drill"]["fault"], &begun["drill"]["rate"]), (&fault.into(), &1.0.into()));
        for _ in 0..5 {
            assert_eio(read(&file));
        }
        let status = mount.status();
        assert_eq!(status["health"], "degraded");
        let reason = status["reasons"][0].as_str().expect("a reason");
        assert!(reason.contains(&format!("{fault} to all read requests of {backend}")), "{reason}");
        fs::write(mount.path("other"), "only reading is struck").unwrap();
        assert_eq!(backend_errors(mount, backend, "read"), 5.);
        assert_eq!(stop_drill(mount), 5);
        assert_eq!(read(&file).unwrap(), "content");
        assert_eq!((backend_errors(mount, backend, "read"), mount.status()["health"].as_str()), (5., Some("healthy")));
        let log = fs::read_to_string(mount.sandbox.log()).unwrap();
        assert!(log.contains("a drill begins") && log.contains("the drill is stopped"), "{log}");
    });
}

/// What may block runs on a pool of threads in fuse3.
#[rstest]
fn on_the_pool_too(#[values(Backend::Fuse2, Backend::Fuse3)] backend: Backend) {
    on_a_mount(backend, |mount| {
        let file = File::create(mount.path("made")).unwrap();
        for (fault, fails, errors) in
            [("error", true, 1.), ("panic", true, 2.), ("delay", false, 2.), ("lose", false, 2.)]
        {
            let more: &[&str] = if fault == "delay" { &["--delay", "50ms"] } else { &[] };
            drill(mount, backend, fault, &[&["--operation", "fsync"], more].concat());
            assert_eq!(
                file.sync_all().err().and_then(|error| error.raw_os_error()),
                fails.then_some(libc::EIO),
                "{fault}"
            );
            assert_eq!(stop_drill(mount), 1, "{fault}");
            assert_eq!(backend_errors(mount, backend, "fsync"), errors, "{fault}");
        }
        assert_eq!(mount.scrape().sum(LOST, &[]), 1.);
    });
}

#[rstest]
fn a_rate_strikes_some(#[values(Backend::Fuse2, Backend::Fuse3)] backend: Backend) {
    on_a_mount(backend, |mount| {
        let file = open(&mount.path("file")).unwrap();
        drill(mount, backend, "error", &["--rate", "0.25", "--operation", "read"]);
        let failed = (0..1000).filter(|_| read(&file).is_err()).count();
        assert!((150..350).contains(&failed), "{failed} of 1000");
        assert_eq!(stop_drill(mount), failed as u64);
    });
}

/// Shorter than the deadline, so a switch loses nothing; and nobody waits for those who are delayed.
#[cfg(all(feature = "fuse2", feature = "fuse3"))]
#[rstest]
fn delays(#[values(Backend::Fuse2, Backend::Fuse3)] backend: Backend) {
    /// The deadline of a switch is two seconds.
    const DELAY: Duration = Duration::from_millis(1500);
    on_a_mount(backend, |mount| {
        let files: Vec<_> = (0..4).map(|_| open(&mount.path("file")).unwrap()).collect();
        drill(mount, backend, "delay", &["--delay", "1500ms", "--operation", "read"]);
        std::thread::scope(|threads| {
            let began = Instant::now();
            let delayed: Vec<_> = files.iter().map(|file| threads.spawn(move || read(file))).collect();
            wait_until_held(mount, 4);
            for number in 0..100 {
                fs::create_dir(mount.path(&format!("made{number}"))).unwrap();
            }
            assert_eq!(mount.status()["in_flight"], 4, "others go on meanwhile");
            let switched = mount.switch(backend.other());
            assert_eq!((switched.in_flight, switched.answered_for_hung), (4, 0));
            for thread in delayed {
                assert_eq!(thread.join().unwrap().unwrap(), "content");
            }
            assert!(began.elapsed() >= DELAY);
        });
        assert_eq!(read(&files[0]).unwrap(), "content", "the other backend is not struck");
        assert_eq!((stop_drill(mount), backend_errors(mount, backend, "read")), (4, 0.));
    });
}

#[cfg(all(feature = "fuse2", feature = "fuse3"))]
#[rstest]
fn hung_requests_are_answered_at_the_deadline(#[values(Backend::Fuse2, Backend::Fuse3)] backend: Backend) {
    on_a_mount(backend, |mount| {
        let files: Vec<_> = (0..3).map(|_| open(&mount.path("file")).unwrap()).collect();
        drill(mount, backend, "hang", &["--operation", "read", "--for", "10m"]);
        std::thread::scope(|threads| {
            let hung: Vec<_> = files.iter().map(|file| threads.spawn(move || read(file))).collect();
            wait_until_held(mount, 3);
            let switched = mount.switch(backend.other());
            assert_eq!((switched.in_flight, switched.answered_for_hung), (3, 3));
            for thread in hung {
                assert_eio(thread.join().unwrap());
            }
        });
        assert_eq!(backend_errors(mount, backend, "read"), 3.);
        assert_eq!(stop_drill(mount), 3);
        // It comes back as a fresh session, and the one that hung goes.
        mount.switch(backend);
        assert_eq!(read(&files[0]).unwrap(), "content");
        assert_eq!(mount.status()["health"], "healthy");
        assert_eq!(backend_errors(mount, backend, "read"), 3., "late answers are counted once");
    });
}

/// Nobody has to give orders for that.
#[rstest]
fn a_drill_ends_by_itself(#[values(Backend::Fuse2, Backend::Fuse3)] backend: Backend) {
    on_a_mount(backend, |mount| {
        let file = open(&mount.path("file")).unwrap();
        let began = Instant::now();
        drill(mount, backend, "hang", &["--operation", "read", "--for", "2s"]);
        std::thread::scope(|threads| {
            let hung = threads.spawn(|| read(&file));
            wait_until_held(mount, 1);
            mount.kill_daemon();
            assert_eq!(hung.join().unwrap().unwrap(), "content", "late, and right");
        });
        assert!(began.elapsed() >= Duration::from_secs(2));
        mount.start_next_daemon();
        wait_for_end(mount);
        assert_eq!(read(&file).unwrap(), "content");
        assert_eq!(backend_errors(mount, backend, "read"), 0.);
        let log = fs::read_to_string(mount.sandbox.log()).unwrap();
        assert!(log.contains("the drill is over"), "{log}");
    });
}

/// Or it would stay busy.
#[rstest]
fn a_mount_that_ends_ends_its_drill(#[values(Backend::Fuse2, Backend::Fuse3)] backend: Backend) {
    on_a_mount(backend, |mount| {
        drill(mount, backend, "hang", &["--operation", "read", "--for", "10m"]);
        std::thread::scope(|threads| {
            let path = mount.path("file");
            let hung = threads.spawn(move || read(&open(&path)?));
            wait_until_held(mount, 1);
            assert!(mount.terminate().success());
            assert_eq!(hung.join().unwrap().unwrap(), "content");
        });
        let log = fs::read_to_string(mount.sandbox.log()).unwrap();
        assert!(!log.contains("unmounting lazily"), "{log}");
        mount.start_next_daemon();
    });
}

#[test]
fn the_next_daemon_knows_of_it_and_the_next_server_has_none() {
    let backend = Backend::ALL.into_iter().find(|backend| backend.is_built_in()).expect("a backend");
    on_a_mount(backend, |mount| {
        drill(mount, backend, "error", &["--operation", "mkdir", "--for", "10m"]);
        assert_eio(fs::create_dir(mount.path("folder")));
        mount.kill_daemon();
        mount.start_next_daemon();
        assert!(is_drilled(mount));
        assert_eio(fs::create_dir(mount.path("folder")));
        let server = mount.server_pid().expect("a server");
        kill(Pid::from_raw(server), Signal::SIGKILL).unwrap();
        mount.wait_for_successor(server);
        assert!(!is_drilled(mount));
        fs::create_dir(mount.path("folder")).unwrap();
    });
}

#[cfg(all(feature = "fuse2", feature = "fuse3"))]
#[rstest]
fn a_session_ends_once(#[values(Backend::Fuse2, Backend::Fuse3)] backend: Backend) {
    on_a_mount(backend, |mount| {
        let file = open(&mount.path("file")).unwrap();
        drill(mount, backend, "end", &[]);
        for _ in 0..100 {
            assert_eq!(read(&file).unwrap(), "content");
        }
        wait_for("the other backend", COMMAND_LIMIT, || (mount.active() == backend.other()).then_some(()));
        wait_for_end(mount);
        assert_eq!(backend_errors(mount, backend, "other"), 1., "an ended session is an error of its backend");
        // `status` says that the log says why.
        for told in ["the drill ends a session", "its session has ended by itself", "tells of no error"] {
            wait_for(told, COMMAND_LIMIT, || mount.log().contains(told).then_some(()));
        }
        let labels = ["reason=\"failover\"", "outcome=\"done\""];
        assert_eq!(mount.scrape().sum("lighthouse_fuse_switches_total", &labels), 1.);
        mount.switch(backend);
        assert_eq!(read(&file).unwrap(), "content", "it ends once");
        assert_eq!(mount.active(), backend);
    });
}

#[rstest]
fn answers_diverge(#[values(Backend::Fuse2, Backend::Fuse3)] backend: Backend) {
    on_a_mount(backend, |mount| {
        fs::create_dir(mount.sandbox.source().join("folder")).unwrap();
        fs::write(mount.sandbox.source().join("folder/listed"), "content").unwrap();
        std::os::unix::fs::symlink("target", mount.sandbox.source().join("link")).unwrap();
        let files = || nix::sys::statvfs::statvfs(&mount.path("")).unwrap().files();
        let before = files();
        drill(mount, backend, "diverge", &[]);
        let file = open(&mount.path("file")).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 8);
        assert_eq!(read(&file).unwrap(), "conten");
        assert_eq!(fs::read_link(mount.path("link")).unwrap(), Path::new("targex"));
        assert_eq!(files(), before + 1);
        let listed = fs::read_dir(mount.path("folder")).unwrap().next().expect("a file").unwrap();
        assert_eq!(listed.metadata().unwrap().len(), 8);
        fs::write(mount.path("made"), "12345").unwrap();
        assert_eq!(fs::read_to_string(mount.sandbox.source().join("made")).unwrap(), "12345");
        assert!(stop_drill(mount) >= 5);
        assert_eq!((read(&file).unwrap().as_str(), files()), ("content", before));
        assert_eq!(fs::read_link(mount.path("link")).unwrap(), Path::new("target"));
        wait_for("the cache to forget", COMMAND_LIMIT, || (file.metadata().unwrap().len() == 7).then_some(()));
        assert_eq!(mount.scrape().sum(OPERATIONS, &["status=\"backend_error\""]), 0., "nobody can tell");
    });
}

#[rstest]
fn lost_requests_are_found_and_answered(#[values(Backend::Fuse2, Backend::Fuse3)] backend: Backend) {
    on_a_mount(backend, |mount| {
        let file = open(&mount.path("file")).unwrap();
        let mut lost = 0;
        // Found again and again, and as soon.
        for (round, readers) in [1, 5, 3].into_iter().enumerate() {
            drill(mount, backend, "lose", &["--operation", "read", "--for", "10m"]);
            let began = Instant::now();
            std::thread::scope(|threads| {
                let readers: Vec<_> = (0..readers).map(|_| threads.spawn(|| read(&file))).collect();
                for reader in readers {
                    assert_eq!(reader.join().unwrap().unwrap(), "content");
                }
            });
            assert!(began.elapsed() < Duration::from_secs(8), "round {round} has taken {:?}", began.elapsed());
            assert_eq!(stop_drill(mount), readers);
            lost += readers;
            let scrape = mount.scrape();
            assert_eq!(scrape.sum(LOST, &[&format!("backend=\"{backend}\"")]), lost as f64);
            assert_eq!(scrape.sum(LOST, &[]), lost as f64);
            assert_eq!(backend_errors(mount, backend, "other"), lost as f64);
        }
        assert_eq!(backend_errors(mount, backend, "read"), 0.);
        // It is told with its number: each loss in a line of its own, or two of them if the daemon looks in between.
        let told = || -> u64 {
            let log = mount.log();
            let lines = log.lines().filter(|line| line.contains("the kernel has sent them again"));
            lines
                .filter(|line| line.contains("mount=\"default\"") && line.contains(&format!("backend={backend}")))
                .filter_map(|line| line.split("count=").nth(1)?.split(' ').next()?.parse::<u64>().ok())
                .sum()
        };
        wait_for("all of them to be in the log", COMMAND_LIMIT, || (told() == lost).then_some(()));
    });
}

/// What reads the log of a machine must find objects in it and nothing else.
#[test]
fn a_panic_is_one_object_of_a_json_log() {
    let backend = Backend::ALL.into_iter().find(|backend| backend.is_built_in()).expect("a backend");
    unless_skipped(require_root(), || {
        let mount =
            Mount::builder(backend, ROOT_DIRECT).drill().without_prober().env("RUST_BACKTRACE", "1").start_with(
                |_, command| {
                    command.arg("--log-format=json");
                },
            );
        fs::write(mount.sandbox.source().join("file"), "content").unwrap();
        let file = open(&mount.path("file")).unwrap();
        drill(&mount, backend, "panic", &["--operation", "read"]);
        read(&file).unwrap_err();
        stop_drill(&mount);
        let log = mount.log();
        // The one line of standard output, which is here too, is no part of the log.
        let lines = log.lines().filter(|line| !line.starts_with("serving "));
        let objects: Vec<Value> = lines.map(|line| serde_json::from_str(line).expect(line)).collect();
        let panic =
            objects.iter().find(|object| object["message"].as_str().is_some_and(|text| text.contains("has panicked")));
        let panic = panic.unwrap_or_else(|| panic!("{log}"));
        assert_eq!(panic["message"], "a thread has panicked: a drill makes this handler panic");
        assert!(panic["location"].as_str().is_some_and(|place| place.contains("backend/mod.rs:")), "{panic}");
        assert!(panic["backtrace"].as_str().is_some_and(|trace| trace.contains("lighthouse_fs")), "{panic}");
        mount.stop();
    });
}

/// Ends the workers of a test also when it fails.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// What changes something is run once only: a second time it would fail.
#[rstest]
fn requests_are_lost_under_load(#[values(Backend::Fuse2, Backend::Fuse3)] backend: Backend) {
    on_a_mount(backend, |mount| {
        fs::create_dir(mount.path("folder")).unwrap();
        let stop = AtomicBool::new(false);
        let work = |worker: u64| {
            let (made, moved) = (mount.path(&format!("made{worker}")), mount.path(&format!("moved{worker}")));
            let mut rounds = 0_u64;
            while !stop.load(SeqCst) {
                fs::symlink_metadata(mount.path("file"))?;
                fs::read_dir(mount.path("folder"))?.for_each(drop);
                fs::create_dir(&made)?;
                fs::rename(&made, &moved)?;
                fs::remove_dir(&moved)?;
                rounds += 1;
            }
            Ok::<_, io::Error>(rounds)
        };
        let struck = std::thread::scope(|threads| {
            let _stops = Stops(&stop);
            let workers: Vec<_> = (0..4).map(|worker| threads.spawn(move || work(worker))).collect();
            drill(mount, backend, "lose", &["--rate", "0.001", "--for", "10m"]);
            let found = || mount.scrape().sum(LOST, &[]) >= 10.;
            wait_for("ten requests to be lost", PATIENCE, || {
                (found() || workers.iter().any(ScopedJoinHandle::is_finished)).then_some(())
            });
            let struck = stop_drill(mount);
            // Only what is lost now keeps its worker.
            stop.store(true, SeqCst);
            for worker in workers {
                assert!(worker.join().unwrap().expect("no operation fails") > 0);
            }
            struck
        });
        mount.assert_all_answered();
        assert_eq!(mount.scrape().sum(LOST, &[]), struck as f64);
    });
}

#[test]
fn what_is_not_allowed_is_refused() {
    let backend = Backend::ALL.into_iter().find(|backend| backend.is_built_in()).expect("a backend");
    let name = backend.name();
    unless_skipped(require_root(), || {
        let mount = Mount::builder(backend, ROOT_DIRECT).without_prober().start();
        let output = mount.ask(&["drill", "default", "--backend", name, "--fault", "error"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("allows no drill: set drill = true"), "{said}");
        assert_eq!(fs::read_dir(mount.path("")).unwrap().count(), 0);
        assert!(answer(&mount.ask(&["drill", "default", "--stop"]))["stopped"].is_null());
        mount.stop();
    });
    on_a_mount(backend, |mount| {
        drill(mount, backend, "delay", &["--delay", "1ms"]);
        for (arguments, code, why) in [
            (vec!["default", "--backend", name, "--fault", "error"], 1, "a drill runs already"),
            (vec!["unknown", "--backend", name, "--fault", "error"], 1, "no mount is called"),
            (vec!["default", "--backend", name, "--fault", "fire"], 64, "error, delay, hang"),
            (vec!["default", "--backend", name], 64, "--fault"),
            (vec!["default", "--backend", name, "--fault", "error", "--rate", "2"], 64, "no share"),
            (vec!["default", "--stop", "--rate", "1"], 64, "cannot be used"),
        ] {
            let output = mount.ask(&[&["drill"], &arguments[..]].concat());
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
            assert!(said.contains(why), "{arguments:?}: {said}");
        }
        stop_drill(mount);
    });
}
