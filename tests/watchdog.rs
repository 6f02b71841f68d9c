//! The guard of all other tests: a mount that hangs fails its test, and goes.

#[macro_use]
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Backend, Mount, Way, unless_skipped};

#[test]
fn a_mount_that_hangs_fails_its_test_and_goes() {
    unless_skipped(Way::any().possible(), || {
        let backend = Backend::ALL.into_iter().find(|backend| backend.is_built_in()).expect("a backend");
        let mount = Mount::builder(backend, Way::any()).limit(Duration::from_secs(5)).start();
        let (folder, began) = (mount.sandbox.path().to_owned(), Instant::now());
        let server = mount.status()["server_pid"].as_i64().expect("a server").try_into().expect("a process id");

        kill(Pid::from_raw(server), Signal::SIGSTOP).unwrap();
        mount.act(|| std::fs::metadata(mount.path("file"))).expect_err("nobody answers this before it is aborted");
        catch_unwind(AssertUnwindSafe(|| drop(mount))).expect_err("a test that hung passes");

        assert!(began.elapsed() < Duration::from_secs(30), "it took {:?}", began.elapsed());
        assert!(support::mounts_below(&folder).is_empty(), "still mounted");
        assert!(!folder.exists(), "files are left");
    });
}
