//! The harness for everything that touches a mount: each test has a folder and a daemon of its own, and a watchdog that
//! ends it when it hangs.
//!
//! The test process is a client of its mount and nothing else: daemon and server are other processes, so a mount that
//! hangs can be aborted from here, and the thread that hangs on it gets an error.

// Each test program compiles this module for itself and uses its own part of it.
#![allow(dead_code, unused_imports, unused_macros)]

/// Makes tests of functions `fn(Backend, Way)`: one for each backend of this build and each way to mount.
macro_rules! for_each_way {
    ($($test:ident)*) => { $(
        mod $test {
            use crate::support::*;

            #[cfg(feature = "fuse2")]
            #[rstest::rstest]
            fn fuse2(
                #[values(ROOT_DIRECT, ROOT_FUSERMOUNT, ROOT_FUSERMOUNT3, USER_FUSERMOUNT, USER_FUSERMOUNT3)] way: Way,
            ) {
                unless_skipped(way.possible(), || super::$test(Backend::Fuse2, way));
            }

            #[cfg(feature = "fuse3")]
            #[rstest::rstest]
            fn fuse3(
                #[values(ROOT_DIRECT, ROOT_FUSERMOUNT, ROOT_FUSERMOUNT3, USER_FUSERMOUNT, USER_FUSERMOUNT3)] way: Way,
            ) {
                unless_skipped(way.possible(), || super::$test(Backend::Fuse3, way));
            }
        }
    )* };
}

mod cgroup;
pub mod http;
mod machine;
mod mount;
mod sandbox;
mod scrape;
pub mod service;
mod watchdog;
mod way;

use std::time::{Duration, Instant};

pub use cgroup::Cgroup;
pub use lighthouse_fs::config::{Backend, Helper};
pub use machine::{MountPoint, is_gone, mounts_below, processes_of};
pub use mount::{Mount, Switched};
pub use sandbox::{Sandbox, end_everything};
pub use scrape::Scrape;
pub use way::{ROOT_DIRECT, ROOT_FUSERMOUNT, ROOT_FUSERMOUNT3, USER_FUSERMOUNT, USER_FUSERMOUNT3, User, Way, run_as};

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_lighthouse-fs");

/// How long a command of the program may take before it counts as hanging.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(15);

/// How much a test does: `quick` is what `make test` has time for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tier {
    /// `make test`.
    Quick,
    /// `make test-full`.
    Full,
    /// `make soak`.
    Soak,
}

impl Tier {
    /// What LIGHTHOUSE_TEST_TIER says; `quick` without it.
    pub fn current() -> Self {
        match std::env::var("LIGHTHOUSE_TEST_TIER").as_deref() {
            Err(_) | Ok("quick") => Self::Quick,
            Ok("full") => Self::Full,
            Ok("soak") => Self::Soak,
            Ok(other) => panic!("LIGHTHOUSE_TEST_TIER is \"{other}\": use quick, full or soak"),
        }
    }
}

/// Runs a test if it can run here, and says so, for the runner to count, if it cannot.
pub fn unless_skipped(possible: Result<(), String>, test: impl FnOnce()) {
    match possible {
        Ok(()) => test(),
        Err(reason) => skip(&reason),
    }
}

/// Says that the calling test did not run, and why.
pub fn skip(reason: &str) {
    // libtest names the thread after the test, nextest an environment variable.
    let from_runner = std::env::var("NEXTEST_TEST_NAME").ok();
    let thread = std::thread::current();
    let test = from_runner.as_deref().or(thread.name()).unwrap_or("unknown");
    println!("SKIPPED: {test}: {reason}");
}

/// For tests that nobody but root can run.
pub fn require_root() -> Result<(), String> {
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err("needs root".into()) }
}

/// Asks again and again until there is an answer; panics when there is none within `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(began.elapsed() < limit, "waited {limit:?} for {what}, in vain");
        std::thread::sleep(Duration::from_millis(10));
    }
}
