//! With the switch machinery idle, a request costs the server the same system calls as it costs the bare crate.

#[path = "../benches/bare/mod.rs"]
mod bare;
#[macro_use]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;

use bare::{Bare, Hand, Served, Work};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Backend, COMMAND_LIMIT, Mount, ROOT_DIRECT, require_root, unless_skipped, wait_for};

const OPERATIONS: u32 = 2_000;
/// Of a call per operation: the control loop looks around twice a second, tokio's clock now and then.
const TOLERANCE: f64 = 0.01;
const LIMIT: Duration = Duration::from_secs(90);

/// Not a test: the serving process of the reference.
#[test]
fn reference() {
    bare::serve_if_told();
}

#[cfg(feature = "fuse2")]
#[test]
fn fuse2_calls_the_kernel_as_often_as_the_bare_crate() {
    unless_skipped(possible(), || compare(Backend::Fuse2));
}

#[cfg(feature = "fuse3")]
#[test]
fn fuse3_calls_the_kernel_as_often_as_the_bare_crate() {
    unless_skipped(possible(), || compare(Backend::Fuse3));
}

/// Root may trace every process, unless a container's seccomp profile forbids it.
fn possible() -> Result<(), String> {
    require_root()?;
    let mut strace = std::process::Command::new("strace");
    let tried = strace.args(["-o", "/dev/null", "true"]).output().map_err(|error| format!("strace: {error}"))?;
    if tried.status.success() {
        Ok(())
    } else {
        Err(format!("processes cannot be traced here: {}", String::from_utf8_lossy(&tried.stderr).trim()))
    }
}

fn compare(backend: Backend) {
    let arguments = ["--exact", "reference", "--nocapture", "--test-threads=1"];
    let reference = Bare::start(backend, LIMIT, &arguments);
    let ours = Mount::builder(backend, ROOT_DIRECT).without_prober().limit(LIMIT).start();
    for served in [&reference as &dyn Served, &ours] {
        bare::fill(&served.sandbox().source());
    }
    for work in Work::ALL {
        let (bare, ours) = (calls_per_operation(&reference, work), calls_per_operation(&ours, work));
        println!("{backend}, {}: bare {bare:.3?}, ours {ours:.3?}", work.name());
        let names: BTreeSet<_> = bare.keys().chain(ours.keys()).collect();
        for name in names {
            let count = |calls: &BTreeMap<String, f64>| calls.get(name).copied().unwrap_or_default();
            assert!(
                (count(&ours) - count(&bare)).abs() <= TOLERANCE,
                "{backend}, {}: {name} is called {:.3} times for an operation, by the bare crate {:.3} times",
                work.name(),
                count(&ours),
                count(&bare),
            );
        }
    }
    ours.stop();
}

/// How often each system call is made, by its name.
fn calls_per_operation(served: &dyn Served, work: Work) -> BTreeMap<String, f64> {
    let mut hand = Hand::new(work, &served.file());
    // What is done once for the first request is no part of the price.
    (0..100).for_each(|_| hand.act());
    let trace = Trace::start(served);
    (0..OPERATIONS).for_each(|_| hand.act());
    let calls = trace.stop();
    assert!(calls.values().sum::<u32>() >= 2 * OPERATIONS, "a request is read and answered: {calls:?}");
    calls.into_iter().map(|(name, count)| (name, f64::from(count) / f64::from(OPERATIONS))).collect()
}

struct Trace {
    strace: Child,
    summary: std::path::PathBuf,
}

impl Trace {
    fn start(served: &dyn Served) -> Self {
        let server = served.server();
        let summary = served.sandbox().path().join("calls");
        let strace = served
            .sandbox()
            .client("strace")
            .args(["--quiet=all", "-f", "-c", "-U", "calls,name", "-o"])
            .arg(&summary)
            .args(["-p", &server.to_string()])
            .stdin(Stdio::null())
            .spawn()
            .expect("strace");
        let trace = Self { strace, summary };
        let tasks = format!("/proc/{server}/task");
        wait_for("every thread to be traced", COMMAND_LIMIT, || {
            let mut statuses = fs::read_dir(&tasks).expect("threads").flatten().map(|task| {
                // A thread that has just ended is none to wait for.
                fs::read_to_string(task.path().join("status")).unwrap_or_default()
            });
            statuses.all(|status| !status.contains("TracerPid:\t0\n")).then_some(())
        });
        trace
    }

    fn stop(mut self) -> BTreeMap<String, u32> {
        let pid = self.strace.id().try_into().expect("a process id");
        kill(Pid::from_raw(pid), Signal::SIGINT).expect("a running strace");
        wait_for("strace to end", COMMAND_LIMIT, || self.strace.try_wait().expect("strace"));
        let summary = fs::read_to_string(&self.summary).expect("a summary");
        let line = |line: &str| {
            let (count, name) = line.trim().split_once(char::is_whitespace)?;
            Some((name.trim().to_owned(), count.parse().ok()?))
        };
        summary.lines().filter_map(line).filter(|(name, _)| name != "total").collect()
    }
}
