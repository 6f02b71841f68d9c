//! What a mount outlives, and what it recovers from: the death of its daemon, the death of its server, an aborted
//! connection, an unmount by somebody else.

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::process::Output;
#[cfg(all(feature = "fuse2", feature = "fuse3"))]
use std::time::Duration;

#[cfg(all(feature = "fuse2", feature = "fuse3"))]
use lighthouse_fs::bench::{Crew, load::Kind};
use nix::mount::MsFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rstest::rstest;
use support::{
    Backend, COMMAND_LIMIT, Mount, ROOT_DIRECT, USER_FUSERMOUNT3, Way, require_root, unless_skipped, wait_for,
};
#[cfg(all(feature = "fuse2", feature = "fuse3"))]
use support::{Sandbox, User};

fn send(signal: Signal, pid: i32) {
    kill(Pid::from_raw(pid), signal).expect("a running process");
}

/// Any backend that this build has.
fn any() -> Backend {
    Backend::ALL.into_iter().find(|backend| backend.is_built_in()).expect("a backend")
}

/// Root and an ordinary user, as far as they can mount here.
fn every_user(test: impl Fn(Way)) {
    for way in [ROOT_DIRECT, USER_FUSERMOUNT3] {
        unless_skipped(way.possible(), || test(way));
    }
}

#[test]
fn the_death_of_a_daemon_is_not_noticed_and_the_next_one_adopts() {
    every_user(|way| {
        let mut mount = Mount::builder(any(), way).start();
        let server = mount.server_pid().expect("a server");
        let mut open = mount.act(|| File::create(mount.path("file")).unwrap());
        open.write_all(b"before ").unwrap();
        if cfg!(all(feature = "fuse2", feature = "fuse3")) {
            mount.switch(any().other());
        }
        let active = mount.active();

        mount.kill_daemon();
        open.write_all(b"between ").unwrap();
        assert_eq!(mount.act(|| fs::read(mount.path("file")).unwrap()), b"before between ");

        mount.start_next_daemon();
        assert_eq!(mount.server_pid(), Some(server), "the same server serves on");
        assert_eq!(mount.active(), active, "by the same backend");
        open.write_all(b"after").unwrap();
        assert_eq!(fs::read(mount.source_path("file")).unwrap(), b"before between after");
        if cfg!(all(feature = "fuse2", feature = "fuse3")) {
            assert_eq!(mount.status()["last_switch"]["to"], active.name(), "what was done before is known");
            mount.switch(active.other());
        }
        drop(open);
        mount.stop();
    });
}

#[test]
fn a_server_that_dies_is_replaced_and_its_dead_mount_cleared_away() {
    every_user(|way| {
        let mount = Mount::builder(any(), way).start();
        let open = mount.act(|| {
            fs::write(mount.path("file"), "kept").unwrap();
            File::open(mount.path("file")).unwrap()
        });
        let server = mount.server_pid().expect("a server");
        send(Signal::SIGKILL, server);
        mount.wait_for_successor(server);
        assert_eq!(mount.sandbox.mounts().len(), 1, "the dead mount is gone");
        assert_eq!(mount.act(|| fs::read(mount.path("file")).unwrap()), b"kept");
        let error = open.read_at(&mut [0; 1], 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN), "what was open belonged to the dead mount");
        drop(open);
        mount.stop();
    });
}

#[cfg(all(feature = "fuse2", feature = "fuse3"))]
#[test]
fn a_replaced_server_keeps_what_an_operator_has_switched_to() {
    unless_skipped(require_root(), || {
        let mount = Mount::builder(Backend::Fuse2, ROOT_DIRECT).start();
        mount.switch(Backend::Fuse3);
        let server = mount.server_pid().expect("a server");
        send(Signal::SIGKILL, server);
        mount.wait_for_successor(server);
        assert_eq!(mount.active(), Backend::Fuse3);
        mount.stop();
    });
}

#[test]
fn an_aborted_connection_is_mounted_again() {
    unless_skipped(require_root(), || {
        let mount = Mount::builder(any(), ROOT_DIRECT).start();
        let server = mount.server_pid().expect("a server");
        fs::write(format!("/sys/fs/fuse/connections/{}/abort", mount.connection_id()), "1").unwrap();
        mount.wait_for_successor(server);
        fs::write(mount.path("file"), "served").unwrap();
        mount.stop();
    });
}

#[test]
fn both_may_die_at_once() {
    unless_skipped(require_root(), || {
        let mut mount = Mount::builder(any(), ROOT_DIRECT).start();
        let server = mount.server_pid().expect("a server");
        send(Signal::SIGSTOP, mount.daemon_pid());
        send(Signal::SIGKILL, server);
        wait_for("the server to end", COMMAND_LIMIT, || support::is_gone(server).then_some(()));
        mount.kill_daemon();
        assert_eq!(mount.sandbox.mounts().len(), 1, "a dead mount is left");
        mount.start_next_daemon();
        fs::write(mount.path("file"), "served").unwrap();
        mount.stop();
    });
}

#[rstest]
#[case::of_the_daemon(false)]
#[case::of_the_server(true)]
fn a_pause_ends_as_if_nothing_had_been(#[case] of_the_server: bool) {
    unless_skipped(require_root(), || {
        let mount = Mount::builder(any(), ROOT_DIRECT).start();
        let server = mount.server_pid().expect("a server");
        let paused = if of_the_server { server } else { mount.daemon_pid() };
        send(Signal::SIGSTOP, paused);
        let path = mount.path("file");
        let writer = std::thread::spawn(move || fs::write(path, "written"));
        if !of_the_server {
            // Without its daemon a server serves.
            wait_for("the file", COMMAND_LIMIT, || mount.source_path("file").exists().then_some(()));
        }
        send(Signal::SIGCONT, paused);
        writer.join().unwrap().unwrap();
        assert_eq!(mount.server_pid(), Some(server), "nobody was replaced");
        mount.stop();
    });
}

/// Everything that must not disturb a program, done again and again while seven of them work.
#[cfg(all(feature = "fuse2", feature = "fuse3"))]
#[test]
fn nobody_notices_under_load_that_daemons_come_and_go() {
    unless_skipped(require_root(), || {
        let mut mount = Mount::builder(any(), ROOT_DIRECT).limit(Duration::from_secs(120)).start();
        let server = mount.server_pid().expect("a server");
        let crew = Crew::start(mount.sandbox.program_path(), &mount.path(""), &Kind::ALL, 1).expect("workers");
        for round in 0..6 {
            if round % 3 == 2 {
                send(Signal::SIGSTOP, mount.daemon_pid());
            }
            mount.kill_daemon();
            mount.start_next_daemon();
            mount.switch(mount.active().other());
        }
        let tally = crew.stop(Duration::from_secs(60));
        assert!(tally.operations > 0, "{tally:?}");
        assert!(tally.failed == 0 && tally.wrong.is_empty(), "{tally:?}");
        assert_eq!(mount.server_pid(), Some(server));
        mount.stop();
    });
}

/// Backends are tried, and the other one serves in place of one that does not come up.
#[cfg(all(feature = "fuse2", feature = "fuse3"))]
#[test]
fn a_backend_without_its_helper_gives_way_to_the_other() {
    unless_skipped(USER_FUSERMOUNT3.possible(), || {
        // Libfuse 3's helper is found without PATH, libfuse 2's is not.
        let mount = Mount::builder(Backend::Fuse2, USER_FUSERMOUNT3).any_helper().env("PATH", "/nowhere").start();
        assert_eq!(mount.active(), Backend::Fuse3);
        let status = mount.status();
        assert_eq!((&status["health"], &status["stable"]), (&"degraded".into(), &"fuse2".into()));
        let reasons = status["reasons"].to_string();
        assert!(reasons.contains("fusermount is not in PATH: install libfuse 2"), "reason and remedy: {reasons}");
        let log = fs::read_to_string(mount.sandbox.log()).unwrap();
        assert!(log.contains("a backend does not come up") && log.contains("install libfuse 2"), "{log}");
        assert_eq!(mount.ask(&["health"]).status.code(), Some(2));
        // Only its helper is missing: it can be switched to.
        mount.switch(Backend::Fuse2);
        mount.stop();
    });
}

#[cfg(all(feature = "fuse2", feature = "fuse3"))]
#[test]
fn without_fallback_it_is_this_backend_or_none() {
    unless_skipped(USER_FUSERMOUNT3.possible(), || {
        let sandbox = Sandbox::new(User::Ordinary, Duration::from_secs(30));
        let mut command = sandbox.program();
        command.args(["serve", "--backend", "fuse2", "--source"]).arg(sandbox.source());
        command.arg("--mountpoint").arg(sandbox.mountpoint()).arg("--socket").arg(sandbox.socket());
        command.env("PATH", "/nowhere").env("LIGHTHOUSE_FUSE_FALLBACK", "false");
        let output = assert_cmd::Command::from_std(command).timeout(COMMAND_LIMIT).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.contains("fusermount is not in PATH: install libfuse 2"), "{errors}");
        sandbox.assert_nothing_left();
    });
}

/// What systemd is told, and when.
#[test]
fn systemd_is_told() {
    unless_skipped(Way::any().possible(), || {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        socket.set_read_timeout(Some(COMMAND_LIMIT)).unwrap();
        let hear = |what: &str| {
            let mut message = [0; 4096];
            loop {
                let length = socket.recv(&mut message).unwrap_or_else(|error| panic!("no {what}: {error}"));
                let message = String::from_utf8_lossy(&message[..length]);
                if message.lines().any(|line| line == what) {
                    return message.into_owned();
                }
            }
        };
        let mount = Mount::builder(any(), Way::any())
            .env("NOTIFY_SOCKET", path.to_str().unwrap())
            .env("WATCHDOG_USEC", "300000")
            .start();
        let ready = hear("READY=1");
        assert!(ready.contains("STATUS=serving "), "{ready}");
        hear("WATCHDOG=1");
        // The watchdog is about the daemon, not about a mount that hangs.
        let server = mount.server_pid().expect("a server");
        send(Signal::SIGSTOP, server);
        hear("WATCHDOG=1");
        hear("WATCHDOG=1");
        send(Signal::SIGCONT, server);
        mount.stop();
        hear("STOPPING=1");
    });
}

#[test]
fn servers_that_a_daemon_has_left_end_when_told() {
    every_user(|way| {
        let mut mount = Mount::builder(any(), way).start();
        let socket = mount.sandbox.socket();
        let end = |arguments: &[&str]| {
            let mut all: Vec<std::ffi::OsString> = vec!["end-servers".into(), "--socket".into(), socket.clone().into()];
            all.extend(arguments.iter().map(Into::into));
            mount.sandbox.run(all)
        };
        let refused = end(&[]);
        assert_eq!(refused.status.code(), Some(1), "they have a daemon: {refused:?}");
        mount.kill_daemon();

        let spared = end_after_stop(&mount, "signal");
        assert_eq!(spared.status.code(), Some(0), "{spared:?}");
        assert_eq!(mount.sandbox.mounts().len(), 1, "after a crash the next daemon adopts it");
        let ended = end_after_stop(&mount, "success");
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        mount.sandbox.assert_nothing_left();
    });
}

/// What systemd runs after the end of the service, which it calls `result`.
fn end_after_stop(mount: &Mount, result: &str) -> Output {
    let mut command = mount.sandbox.program();
    command.args(["end-servers", "--after-stop", "--socket"]).arg(mount.sandbox.socket());
    command.env("SERVICE_RESULT", result);
    assert_cmd::Command::from_std(command).timeout(COMMAND_LIMIT * 2).output().expect("the program")
}

#[test]
fn a_stop_that_fails_is_no_crash() {
    unless_skipped(require_root(), || {
        let is_taken_for_a_crash = |mount: &Mount| {
            let output = end_after_stop(mount, "exit-code");
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap().contains("has crashed")
        };
        let fail_to_stop = |mount: &mut Mount| {
            let place = mount.sandbox.mountpoint();
            nix::mount::mount(Some("theirs"), &place, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            assert_eq!(mount.terminate().code(), Some(1), "ours cannot be unmounted below theirs");
            nix::mount::umount(&place).unwrap();
        };
        let mut mount = Mount::builder(any(), ROOT_DIRECT).start();
        fail_to_stop(&mut mount);
        mount.start_next_daemon();
        mount.kill_daemon();
        assert!(is_taken_for_a_crash(&mount), "the next daemon begins afresh");
        mount.start_next_daemon();
        fail_to_stop(&mut mount);
        assert!(!is_taken_for_a_crash(&mount));
        assert!(!mount.sandbox.path().join("run/servers").exists(), "what was noted is gone");
    });
}

#[test]
fn whoever_is_impatient_is_told_what_a_stop_waits_for() {
    every_user(|way| {
        let mut mount = Mount::builder(any(), way).start();
        let log = mount.sandbox.log();
        let said = |what: &str| {
            wait_for(what, COMMAND_LIMIT, || fs::read_to_string(&log).unwrap().contains(what).then_some(()));
        };
        let busy = mount.act(|| File::create(mount.path("file")).unwrap());
        send(Signal::SIGTERM, mount.daemon_pid());
        said("SIGTERM: unmounting");
        send(Signal::SIGINT, mount.daemon_pid());
        said("SIGINT: still unmounting default, for 1");
        drop(busy);
        assert!(mount.wait().success());
        mount.sandbox.assert_nothing_left();
    });
}
