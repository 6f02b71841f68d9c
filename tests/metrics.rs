//! What the metrics show of a mount that is used: counted by the server, read by the daemon, and still there when either
//! is gone.

#[macro_use]
mod support;

use std::fs;
use std::io::ErrorKind;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Backend, COMMAND_LIMIT, Mount, ROOT_DIRECT, Scrape, Way, require_root, unless_skipped, wait_for};

const OPERATIONS: &str = "lighthouse_fuse_operations_total";

for_each_way! {
    answers_are_counted
}

fn answers_are_counted(backend: Backend, way: Way) {
    let mount = Mount::builder(backend, way).start();
    mount.act(|| {
        fs::write(mount.path("file"), vec![7; 10_000]).unwrap();
        assert_eq!(fs::read(mount.path("file")).unwrap().len(), 10_000);
        assert_eq!(fs::read(mount.path("missing")).unwrap_err().kind(), ErrorKind::NotFound);
    });
    let of = format!("backend=\"{backend}\"");
    let scrape = mount.scrape();
    let count = |operation: &str, status: &str| {
        scrape.sum(OPERATIONS, &[&of, &format!("operation=\"{operation}\""), &format!("status=\"{status}\"")])
    };
    assert!(count("create", "ok") >= 1.);
    assert!(count("write", "ok") >= 1.);
    assert!(count("lookup", "client_error") >= 1., "a name that does not exist is nobody's fault");
    assert_eq!(scrape.sum(OPERATIONS, &["status=\"backend_error\""]), 0.);
    assert_eq!(scrape.sum("lighthouse_fuse_bytes_total", &[&of, "direction=\"write\""]), 10_000.);
    let writes = [of.as_str(), "operation=\"write\""];
    assert_eq!(scrape.sum("lighthouse_fuse_operation_duration_seconds_count", &writes), count("write", "ok"));
    assert!(scrape.sum("lighthouse_fuse_operation_duration_seconds_sum", &writes) > 0.);
    assert_eq!(scrape.sum("lighthouse_fuse_backend_active", &[&of]), 1.);
    assert_eq!(scrape.sum("lighthouse_fuse_backend_weight", &[]), 100., "the other one has none");
    assert_eq!(scrape.sum("lighthouse_fuse_mount_up", &["mount=\"default\""]), 1.);
    assert_eq!(scrape.sum("lighthouse_fuse_kernel_waiting", &["mount=\"default\""]), mount.waiting() as f64);
    assert!(scrape.has("lighthouse_fuse_build_info", &["fuser=\"0.18.0\""]));
    wait_for("the prober's answer to be counted", COMMAND_LIMIT, || {
        (mount.scrape().sum("lighthouse_fuse_probe_duration_seconds_count", &[&of]) > 0.).then_some(())
    });
    mount.stop();
}

#[cfg(all(feature = "fuse2", feature = "fuse3"))]
#[test_log::test]
fn a_switch_is_counted_and_the_next_backend_counts_for_itself() {
    unless_skipped(require_root(), || {
        let mount = Mount::builder(Backend::Fuse2, ROOT_DIRECT).without_prober().start();
        fs::write(mount.path("file"), "text").unwrap();
        // The kernel's RELEASE comes when it likes.
        mount.assert_all_answered();
        let before = mount.scrape().sum(OPERATIONS, &["backend=\"fuse2\""]);
        mount.switch(Backend::Fuse3);
        fs::metadata(mount.path("missing")).unwrap_err();
        let scrape = mount.scrape();
        let labels = ["from=\"fuse2\"", "to=\"fuse3\"", "reason=\"operator\"", "outcome=\"done\""];
        assert_eq!(scrape.sum("lighthouse_fuse_switches_total", &labels), 1.);
        assert_eq!(scrape.sum("lighthouse_fuse_switch_pause_seconds_count", &[]), 1.);
        assert_eq!(scrape.sum(OPERATIONS, &["backend=\"fuse2\""]), before);
        assert!(scrape.sum(OPERATIONS, &["backend=\"fuse3\"", "operation=\"lookup\""]) >= 1.);
        assert_eq!(scrape.sum("lighthouse_fuse_backend_weight", &["backend=\"fuse3\""]), 100.);
        mount.stop();
    });
}

#[test_log::test]
fn what_was_counted_survives_server_and_daemon() {
    unless_skipped(require_root(), || {
        let backend = Backend::ALL.into_iter().find(|backend| backend.is_built_in()).expect("a backend");
        let mut mount = Mount::builder(backend, ROOT_DIRECT).without_prober().start();
        for number in 0..50 {
            fs::write(mount.path(&format!("file{number}")), "text").unwrap();
        }
        let created = |scrape: &Scrape| scrape.sum(OPERATIONS, &["operation=\"create\"", "status=\"ok\""]);
        assert_eq!(created(&mount.scrape()), 50.);

        let server = mount.server_pid().expect("a server");
        kill(Pid::from_raw(server), Signal::SIGKILL).unwrap();
        mount.wait_for_successor(server);
        assert_eq!(created(&mount.scrape()), 50., "after the death of the server");

        fs::write(mount.path("one more"), "text").unwrap();
        mount.kill_daemon();
        mount.start_next_daemon();
        assert_eq!(created(&mount.scrape()), 51., "after the death of the daemon");

        let server = mount.server_pid().expect("a server");
        kill(Pid::from_raw(server), Signal::SIGKILL).unwrap();
        mount.wait_for_successor(server);
        assert_eq!(created(&mount.scrape()), 51., "after both");
        mount.stop();
    });
}
