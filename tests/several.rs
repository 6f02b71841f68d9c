//! One daemon with several mounts, from a configuration file: they are independent of each other, and a reload changes what
//! can be changed under running programs.

mod support;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::mount::MntFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rstest::rstest;
use support::service::{GOOD, Service, config, health_of, mount, mount_of, reasons_of, spawn, table, write_config};
use support::{
    Backend, COMMAND_LIMIT, Mount, ROOT_DIRECT, Sandbox, Tier, USER_FUSERMOUNT3, require_root, unless_skipped, wait_for,
};

#[test]
fn several_mounts_of_one_daemon() {
    for way in [ROOT_DIRECT, USER_FUSERMOUNT3] {
        unless_skipped(way.possible(), || {
            let service = Service::start(way, |_| String::new());
            assert!(service.log().contains("serving 2 of 2 mounts"), "{}", service.log());
            for name in GOOD {
                service.write(name).unwrap();
                assert_eq!(fs::read(service.sandbox.source().join(name).join("file")).unwrap(), name.as_bytes());
            }
            assert_ne!(service.server("one"), service.server("two"));
            service.stop();
        });
    }
}

#[test]
fn one_bad_mount_holds_up_none_of_the_others_and_is_tried_again() {
    unless_skipped(ROOT_DIRECT.possible(), || {
        let service = Service::start(ROOT_DIRECT, |sandbox| {
            let table = mount(sandbox, "bad", "");
            fs::remove_dir(sandbox.source().join("bad")).unwrap();
            table
        });
        service.wait_until("says what is bad", |status| {
            health_of(status, "bad") == "unhealthy" && reasons_of(status, "bad").contains("does not exist")
        });
        assert!(service.log().contains("serving 2 of 3 mounts"), "{}", service.log());
        assert_eq!(service.ask(&["health"]).status.code(), Some(1));
        assert_eq!(service.ask(&["health", "--mount", "one"]).status.code(), Some(0));
        let refused = service.ask(&["switch", "bad", "fuse2"]);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");

        fs::create_dir(service.sandbox.source().join("bad")).unwrap();
        service.wait_until("serves what was bad", |status| health_of(status, "bad") == "healthy");
        service.stop();
    });
}

#[test]
fn a_server_that_dies_is_no_news_for_the_others() {
    unless_skipped(ROOT_DIRECT.possible(), || {
        let service = Service::start(ROOT_DIRECT, |_| String::new());
        let (one, two) = (service.server("one"), service.server("two"));
        let open = File::create(service.place("two").join("open")).unwrap();
        kill(Pid::from_raw(one.try_into().unwrap()), Signal::SIGKILL).unwrap();
        service.wait_until("replaces the server", |status| {
            let server = mount_of(status, "one")["server_pid"].as_i64();
            health_of(status, "one") == "healthy" && server.is_some_and(|server| server != one)
        });
        assert_eq!(service.server("two"), two);
        std::io::Write::write_all(&mut &open, b"never noticed").unwrap();
        service.stop();
    });
}

#[test]
fn a_killed_daemon_leaves_all_and_the_next_adopts_what_is_still_wanted() {
    unless_skipped(ROOT_DIRECT.possible(), || {
        let mut service = Service::start(ROOT_DIRECT, |_| String::new());
        let (one, two) = (service.server("one"), service.server("two"));
        service.daemon.kill().unwrap();
        service.daemon.wait().unwrap();
        for name in GOOD {
            service.write(name).unwrap();
        }
        let file = mount(&service.sandbox, "one", "");
        write_config(&service.sandbox, file).unwrap();
        service.daemon = spawn(&service.sandbox);
        service.wait_until("adopts", |status| health_of(status, "one") == "healthy");
        assert_eq!(service.server("one"), one);
        wait_for("the other to be unmounted", COMMAND_LIMIT, || (service.sandbox.mounts().len() == 1).then_some(()));
        let two = Pid::from_raw(two.try_into().unwrap());
        wait_for("its server to end", COMMAND_LIMIT, || kill(two, None).is_err().then_some(()));
        service.stop();
    });
}

#[test]
fn a_reload_adds_removes_and_changes() {
    unless_skipped(ROOT_DIRECT.possible(), || {
        let service = Service::start(ROOT_DIRECT, |_| String::new());
        let one = service.server("one");
        let sandbox = &service.sandbox;
        service.reload(
            &("[daemon]\nlog_level = \"debug\"\n".to_owned()
                + &mount(sandbox, "one", "read_only = true\n[mount.deadlines]\ndrain = \"1s\"")
                + &mount(sandbox, "three", "")),
        );
        service.wait_until("takes the new configuration", |status| {
            health_of(status, "three") == "healthy" && health_of(status, "two") == "unknown"
        });
        assert_eq!(service.server("one"), one, "what stays is not touched");
        wait_for("the removed one to be unmounted", COMMAND_LIMIT, || (sandbox.mounts().len() == 2).then_some(()));
        let log = service.log();
        assert!(
            log.contains("mount.read_only: true instead of false counts when this mount is mounted again"),
            "{log}"
        );
        assert!(log.contains("mount.deadlines.drain: \"1s\" instead of \"2s\""), "{log}");
        service.write("one").unwrap();
        service.stop();
    });
}

#[test]
fn processes_show_what_they_are() {
    unless_skipped(ROOT_DIRECT.possible(), || {
        let service = Service::start(ROOT_DIRECT, |_| String::new());
        let processes = support::processes_of(service.sandbox.path());
        let lines: Vec<_> = processes.iter().filter_map(|process| Some(process.cmdline().ok()?.join(" "))).collect();
        // Some may have ended meanwhile.
        for name in processes.iter().filter_map(|process| process.stat().ok()).map(|stat| stat.comm) {
            assert_eq!(name, "lighthouse-fs", "{lines:?}");
        }
        for name in GOOD {
            let place = service.place(name);
            assert!(lines.iter().any(|line| line.ends_with(&format!("server --mount {name}"))), "{lines:?}");
            assert!(
                lines.iter().any(|line| line.contains("probe") && line.ends_with(place.to_str().unwrap())),
                "{lines:?}"
            );
        }
        service.stop();
    });
}

#[test]
fn a_reload_compares_with_what_is_in_force() {
    unless_skipped(ROOT_DIRECT.possible(), || {
        let service = Service::start(ROOT_DIRECT, |_| String::new());
        let sandbox = &service.sandbox;
        let file = "[daemon]\nlog_format = \"json\"\n".to_owned() + &mount(sandbox, "one", "read_only = true");
        let told = |times: usize| {
            wait_for("the reload", COMMAND_LIMIT, || {
                (service.log().matches("the configuration was read again").count() == times).then_some(())
            });
            let log = service.log();
            for change in [
                "daemon.log_format: \"json\" instead of \"text\" needs a restart of the daemon",
                "mount.read_only: true instead of false counts when this mount is mounted again",
            ] {
                assert_eq!(log.matches(change).count(), times, "{log}");
            }
        };
        service.reload(&file);
        told(1);
        // It still waits for a restart, and a server that starts now logs as the others do.
        service.reload(&(file + &mount(sandbox, "three", "")));
        told(2);
        service.wait_until("serves the new one", |status| health_of(status, "three") == "healthy");
        let server = procfs::process::Process::new(service.server("three").try_into().unwrap()).unwrap();
        let line = server.cmdline().unwrap();
        assert!(line.contains(&"--log-format=text".to_owned()), "{line:?}");
        service.stop();
    });
}

#[test]
fn mounts_in_each_other_are_wrong_before_anything_is_mounted() {
    let sandbox = Sandbox::new(support::User::Ordinary, Duration::from_secs(30));
    let mut file = mount(&sandbox, "one", "");
    // By the text alone they are apart.
    std::os::unix::fs::symlink(sandbox.path().join("run"), sandbox.path().join("link")).unwrap();
    sandbox.user().act(|| fs::create_dir_all(sandbox.source().join("two")).unwrap());
    file += &table("two", &sandbox.source().join("two"), &sandbox.path().join("link/one/two"), "");
    write_config(&sandbox, file).unwrap();
    let mut daemon = spawn(&sandbox);
    let status = wait_for("the daemon to end", COMMAND_LIMIT, || daemon.try_wait().expect("the daemon"));
    let log = fs::read_to_string(sandbox.log()).unwrap();
    assert_eq!(status.code(), Some(78), "{log}");
    assert!(log.contains("choose places side by side"), "{log}");
    sandbox.assert_nothing_left();
}

#[test]
fn a_bad_file_changes_nothing() {
    unless_skipped(ROOT_DIRECT.possible(), || {
        let service = Service::start(ROOT_DIRECT, |_| String::new());
        let before = (service.server("one"), service.server("two"));
        service.reload("[[mount]]\nname = \"one\"\nsauce = \"/srv\"\n");
        wait_for("the error", COMMAND_LIMIT, || service.log().contains("nothing has changed").then_some(()));
        assert!(service.log().contains("sauce"), "{}", service.log());
        assert_eq!((service.server("one"), service.server("two")), before);
        service.stop();
    });
}

#[test]
fn what_counts_later_is_told_and_counts_for_the_next_server() {
    unless_skipped(ROOT_DIRECT.possible(), || {
        let service = Service::start(ROOT_DIRECT, |_| String::new());
        let sandbox = &service.sandbox;
        let one = service.server("one");
        service.reload(&(mount(sandbox, "one", "read_only = true") + &mount(sandbox, "two", "")));
        service.wait_until("says what does not count yet", |status| {
            health_of(status, "one") == "degraded" && reasons_of(status, "one").contains("read_only counts when")
        });
        service.write("one").unwrap();
        kill(Pid::from_raw(one.try_into().unwrap()), Signal::SIGKILL).unwrap();
        service.wait_until("replaces the server", |status| health_of(status, "one") == "healthy");
        assert_eq!(service.write("one").unwrap_err().raw_os_error(), Some(libc::EROFS));
        service.stop();
    });
}

#[test]
fn what_has_changed_while_there_was_no_daemon() {
    unless_skipped(ROOT_DIRECT.possible(), || {
        let mut service = Service::start(ROOT_DIRECT, |_| String::new());
        service.daemon.kill().unwrap();
        service.daemon.wait().unwrap();
        let sandbox = &service.sandbox;
        let file = mount(sandbox, "one", "[mount.deadlines]\nunmount = \"200ms\"")
            + &mount(sandbox, "two", "read_only = true");
        write_config(sandbox, file).unwrap();
        let daemon = spawn(sandbox);
        service.daemon = daemon;
        service.wait_until("adopts", |status| {
            health_of(status, "one") == "healthy" && health_of(status, "two") == "degraded"
        });
        // The server heeds the new deadline: a busy mount is detached, and nobody has to be killed.
        let busy = File::create(service.place("one").join("busy")).unwrap();
        service.send(Signal::SIGTERM);
        let daemon = &mut service.daemon;
        let status = wait_for("the daemon to end", COMMAND_LIMIT * 2, || daemon.try_wait().expect("the daemon"));
        assert!(status.success(), "{status}\n{}", service.log());
        drop(busy);
        service.sandbox.assert_nothing_left();
    });
}

#[test]
fn a_reload_disturbs_nobodys_health() {
    unless_skipped(ROOT_DIRECT.possible(), || {
        let service = Service::start(ROOT_DIRECT, |_| String::new());
        for _ in 0..5 {
            service.send(Signal::SIGHUP);
            let health = service.ask(&["health"]);
            assert_eq!(health.status.code(), Some(0), "{health:?}");
        }
        service.stop();
    });
}

#[test]
fn a_bad_source_does_not_end_what_still_serves() {
    unless_skipped(ROOT_DIRECT.possible(), || {
        let mut service = Service::start(ROOT_DIRECT, |_| String::new());
        service.daemon.kill().unwrap();
        service.daemon.wait().unwrap();
        let sandbox = &service.sandbox;
        let good = mount(sandbox, "one", "") + &mount(sandbox, "two", "");
        write_config(sandbox, good.replace("source/one", "source/typo")).unwrap();
        let daemon = spawn(sandbox);
        service.daemon = daemon;
        service.wait_until("says what is wrong", |status| reasons_of(status, "one").contains("does not exist"));
        service.write("one").unwrap();
        service.reload(&good);
        service.wait_until("adopts", |status| health_of(status, "one") == "healthy");
        service.stop();
    });
}

#[test]
fn a_failed_mount_alone_in_a_file_is_ready_and_retried() {
    unless_skipped(ROOT_DIRECT.possible(), || {
        let sandbox = Sandbox::new(ROOT_DIRECT.user, Duration::from_secs(60));
        let file = mount(&sandbox, "one", "");
        fs::remove_dir(sandbox.source().join("one")).unwrap();
        write_config(&sandbox, file).unwrap();
        let service = Service { daemon: spawn(&sandbox), sandbox };
        wait_for("readiness", COMMAND_LIMIT, || service.log().contains("serving 0 of 1 mounts").then_some(()));
        fs::create_dir(service.sandbox.source().join("one")).unwrap();
        service.wait_until("serves", |status| health_of(status, "one") == "healthy");
        service.stop();
    });
}

#[test]
fn two_daemons_do_not_stack_their_mounts() {
    unless_skipped(ROOT_DIRECT.possible(), || {
        let sandbox = Sandbox::new(ROOT_DIRECT.user, Duration::from_secs(60));
        let start = |name: &str| {
            let mut command = sandbox.program();
            command.args(["serve", "--source"]).arg(sandbox.source()).arg("--mountpoint").arg(sandbox.mountpoint());
            command.arg("--socket").arg(sandbox.path().join("run").join(name).join("control.sock"));
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a daemon")
        };
        for _ in 0..5 {
            let mut daemons = [start("a"), start("b")];
            let loser = wait_for("one of them to give up", COMMAND_LIMIT, || {
                daemons.iter_mut().position(|daemon| daemon.try_wait().expect("a daemon").is_some())
            });
            assert_eq!(daemons[loser].wait().unwrap().code(), Some(1));
            wait_for("the other to serve", COMMAND_LIMIT, || (sandbox.mounts().len() == 1).then_some(()));
            let winner = &mut daemons[1 - loser];
            kill(Pid::from_raw(winner.id().cast_signed()), Signal::SIGTERM).unwrap();
            let status = wait_for("it to end", COMMAND_LIMIT, || winner.try_wait().expect("a daemon"));
            assert!(status.success(), "{status}");
            sandbox.assert_nothing_left();
        }
    });
}

#[test]
fn unmounted_by_somebody_else_it_stays_so_until_a_reload() {
    unless_skipped(require_root(), || {
        let service = Service::start(ROOT_DIRECT, |_| String::new());
        let file = fs::read_to_string(config(&service.sandbox)).unwrap();
        nix::mount::umount(&service.place("one")).unwrap();
        service.wait_until("sees it", |status| reasons_of(status, "one").contains("somebody else has unmounted it"));
        assert_eq!(service.sandbox.mounts().len(), 1);
        service.reload(&file);
        service.wait_until("mounts again", |status| health_of(status, "one") == "healthy");
        nix::mount::umount(&service.place("one")).unwrap();
        service.wait_until("sees it", |status| reasons_of(status, "one").contains("somebody else has unmounted it"));
        service.stop();
    });
}

/// Unmounts `one` as somebody else does, and waits until its daemon knows that it is still used.
fn unmount_in_use(service: &Service, flags: MntFlags) {
    nix::mount::umount2(&service.place("one"), flags).unwrap();
    service.wait_until("sees it", |status| {
        health_of(status, "one") == "unhealthy" && reasons_of(status, "one").contains("mounts it again; programs that")
    });
}

fn wait_for_end(server: i64) {
    let server = Pid::from_raw(server.try_into().unwrap());
    wait_for("the old server to end", COMMAND_LIMIT, || kill(server, None).is_err().then_some(()));
}

/// With `umount -l`, or as here by a plain one, if another mount namespace has a copy.
#[rstest]
fn unmounted_in_use_it_is_mounted_anew_beside_the_last_users(#[values(false, true)] in_a_namespace: bool) {
    unless_skipped(require_root(), || {
        let service = Service::start(ROOT_DIRECT, |_| String::new());
        let (one, two) = (service.server("one"), service.server("two"));
        let place = service.place("one");
        service.write("one").unwrap();
        let mut user = if in_a_namespace {
            // A private one that was unshared before, so that the copy stays.
            let mut user = service.sandbox.client("unshare");
            user.args(["--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep 100"]);
            let mut user = user.stdout(Stdio::piped()).spawn().unwrap();
            std::io::Read::read_exact(user.stdout.as_mut().unwrap(), &mut [0; 1]).unwrap();
            user
        } else {
            let mut user = service.sandbox.client("sleep");
            user.arg("100").stdin(File::open(place.join("file")).unwrap()).spawn().unwrap()
        };
        unmount_in_use(&service, if in_a_namespace { MntFlags::empty() } else { MntFlags::MNT_DETACH });
        assert_eq!(service.server("one"), one, "it serves on");
        let through = |path: &str| fs::read(format!("/proc/{}/{path}", user.id()));
        let old = if in_a_namespace { format!("root{}", place.join("file").display()) } else { "fd/0".into() };
        assert_eq!(through(&old).unwrap(), b"one");

        service.send(Signal::SIGHUP);
        service.wait_until("mounts anew", |status| health_of(status, "one") == "healthy");
        assert_ne!(service.server("one"), one);
        assert_eq!(service.server("two"), two);
        service.write("one").unwrap();
        assert_eq!(through(&old).unwrap(), b"one", "the last users are served on");

        user.kill().unwrap();
        user.wait().unwrap();
        wait_for_end(one);
        service.write("one").unwrap();
        service.stop();
    });
}

/// The same for a daemon that ends, in order or not.
#[rstest]
fn unmounted_in_use_it_is_mounted_anew_by_the_next_daemon(#[values(Signal::SIGTERM, Signal::SIGKILL)] how: Signal) {
    unless_skipped(require_root(), || {
        let mut service = Service::start(ROOT_DIRECT, |_| String::new());
        let one = service.server("one");
        service.write("one").unwrap();
        let open = File::open(service.place("one").join("file")).unwrap();
        unmount_in_use(&service, MntFlags::MNT_DETACH);
        service.send(how);
        let daemon = &mut service.daemon;
        let status = wait_for("the daemon to end", COMMAND_LIMIT, || daemon.try_wait().expect("the daemon"));
        assert_eq!(status.success(), how == Signal::SIGTERM, "{status}\n{}", service.log());
        assert_eq!(std::io::read_to_string(&open).unwrap(), "one", "the last users are served on");

        let next = spawn(&service.sandbox);
        service.daemon = next;
        service.wait_until("mounts anew", |status| GOOD.iter().all(|name| health_of(status, name) == "healthy"));
        assert_ne!(service.server("one"), one);
        drop(open);
        wait_for_end(one);
        service.write("one").unwrap();
        service.stop();
    });
}

#[test]
fn a_reload_may_come_before_the_daemon_knows_that_it_is_unmounted() {
    unless_skipped(require_root(), || {
        let service = Service::start(ROOT_DIRECT, |_| String::new());
        let one = service.server("one");
        let open = File::create(service.place("one").join("file")).unwrap();
        nix::mount::umount2(&service.place("one"), MntFlags::MNT_DETACH).unwrap();
        service.send(Signal::SIGHUP);
        service.wait_until("mounts anew", |status| {
            health_of(status, "one") == "healthy" && mount_of(status, "one")["server_pid"] != one
        });
        drop(open);
        wait_for_end(one);
        service.stop();
    });
}

/// By a source on a mount that does not answer: nobody looks at that but the server, whose start has half a minute.
#[test]
fn a_reload_gives_a_start_that_hangs_another_chance_at_once() {
    unless_skipped(require_root(), || {
        let backend = Backend::ALL.into_iter().find(|backend| backend.is_built_in()).expect("a backend");
        let below = Mount::builder(backend, ROOT_DIRECT).without_prober().start();
        let frozen = Pid::from_raw(below.server_pid().expect("a server"));
        kill(frozen, Signal::SIGSTOP).unwrap();
        let service = Service::start(ROOT_DIRECT, |sandbox| {
            mount(sandbox, "three", "");
            table("three", &below.path(""), &sandbox.path().join("run/three"), "")
        });
        service.wait_until("starts", |status| {
            reasons_of(status, "three").contains("it is starting: its server mounts")
                && mount_of(status, "three")["server_pid"].is_number()
        });
        let sandbox = &service.sandbox;
        let file: String = ["one", "two", "three"].map(|name| mount(sandbox, name, "")).concat();
        service.reload(&file);
        service.wait_until("serves what hung", |status| health_of(status, "three") == "healthy");
        service.write("three").unwrap();
        kill(frozen, Signal::SIGCONT).unwrap();
        service.stop();
        below.stop();
    });
}

/// Longer than the half minute that a server has that does not say how long it may take.
#[test]
fn what_is_no_longer_configured_has_its_own_deadline_for_being_busy() {
    if Tier::current() == Tier::Quick {
        return support::skip("takes 32 s: `make test-full`");
    }
    unless_skipped(require_root(), || {
        let mut service =
            Service::start(ROOT_DIRECT, |sandbox| mount(sandbox, "three", "[mount.deadlines]\nunmount = \"1m\""));
        service.wait_until("serves", |status| health_of(status, "three") == "healthy");
        service.write("three").unwrap();
        let open = File::open(service.place("three").join("file")).unwrap();
        service.daemon.kill().unwrap();
        service.daemon.wait().unwrap();
        let began = Instant::now();
        fs::write(config(&service.sandbox), GOOD.map(|name| mount(&service.sandbox, name, "")).concat()).unwrap();
        let next = spawn(&service.sandbox);
        service.daemon = next;
        service.wait_until("adopts", |status| GOOD.iter().all(|name| health_of(status, name) == "healthy"));
        std::thread::sleep(Duration::from_secs(32).saturating_sub(began.elapsed()));
        assert_eq!(std::io::read_to_string(&open).unwrap(), "three", "it is served as long as it may be busy");
        drop(open);
        wait_for("it to be unmounted", COMMAND_LIMIT, || (service.sandbox.mounts().len() == 2).then_some(()));
        service.stop();
    });
}

#[test]
fn what_a_start_waits_for_is_said() {
    unless_skipped(ROOT_DIRECT.possible(), || {
        let mut service = Service::start(ROOT_DIRECT, |_| String::new());
        let one = service.server("one");
        service.daemon.kill().unwrap();
        service.daemon.wait().unwrap();
        let server = Pid::from_raw(one.try_into().unwrap());
        kill(server, Signal::SIGSTOP).unwrap();
        let next = spawn(&service.sandbox);
        service.daemon = next;
        service.wait_until("says what it does", |status| {
            reasons_of(status, "one").contains("it is starting: whether an earlier daemon has left its server is seen")
        });
        kill(server, Signal::SIGCONT).unwrap();
        service.wait_until("adopts", |status| health_of(status, "one") == "healthy");
        assert_eq!(service.server("one"), one);
        service.stop();
    });
}

/// A program that has a file open keeps the server of a mount that nobody finds any more; then too it is not made again.
#[test]
fn unmounted_lazily_by_somebody_else_it_stays_so_until_a_restart() {
    unless_skipped(require_root(), || {
        let mut service = Service::start(ROOT_DIRECT, |_| String::new());
        let open = File::create(service.place("one").join("open")).unwrap();
        nix::mount::umount2(&service.place("one"), nix::mount::MntFlags::MNT_DETACH).unwrap();
        service
            .wait_until("sees it", |status| reasons_of(status, "one").contains("programs that still use the old one"));
        std::io::Write::write_all(&mut &open, b"written to the end").unwrap();
        drop(open);
        wait_for("the log to say so", COMMAND_LIMIT, || {
            service.log().contains("it stays so until a reload (SIGHUP) or a restart").then_some(())
        });
        assert!(reasons_of(&service.status().unwrap(), "one").contains("somebody else has unmounted it"));
        assert_eq!(service.sandbox.mounts().len(), 1);
        service.write("two").unwrap();

        service.send(Signal::SIGTERM);
        let daemon = &mut service.daemon;
        wait_for("the daemon to end", COMMAND_LIMIT * 2, || daemon.try_wait().expect("the daemon"));
        let daemon = spawn(&service.sandbox);
        service.daemon = daemon;
        service.wait_until("mounts again", |status| health_of(status, "one") == "healthy");
        service.stop();
    });
}

/// A daemon of the same sandbox with a file and a socket of its own.
fn start_another(sandbox: &Sandbox, socket: &Path, name: &str, file: &str) -> (Another, PathBuf) {
    let config = sandbox.path().join(format!("{name}.toml"));
    fs::write(&config, format!("[api]\nlisten = \"\"\nshadow_listen = \"\"\nmetrics_listen = \"\"\n{file}")).unwrap();
    let path = sandbox.path().join(format!("{name}.log"));
    let log = File::create(&path).unwrap();
    let mut command = sandbox.program();
    command.arg("serve").arg("--config").arg(config).arg("--socket").arg(socket);
    let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().expect("a daemon");
    (Another(child), path)
}

struct Another(Child);

impl Another {
    fn end(&mut self, signal: Signal) -> ExitStatus {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).unwrap();
        wait_for("the other daemon to end", COMMAND_LIMIT * 2, || self.0.try_wait().expect("a daemon"))
    }
}

impl Drop for Another {
    fn drop(&mut self) {
        // A second time is no harm.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for_words(log: &Path, words: &str) {
    wait_for(words, COMMAND_LIMIT, || fs::read_to_string(log).unwrap().contains(words).then_some(()));
}

#[test]
fn daemons_whose_sockets_have_names_alike_leave_each_other_alone() {
    unless_skipped(ROOT_DIRECT.possible(), || {
        let sandbox = Sandbox::new(ROOT_DIRECT.user, Duration::from_secs(60));
        let run = |socket: &str, name: &str| {
            let file = mount(&sandbox, name, "");
            let started = start_another(&sandbox, &sandbox.path().join("run").join(socket), name, &file);
            wait_for_words(&started.1, "serving ");
            started.0
        };
        let mut prod = run("fs.prod", "one");
        let mut test = run("fs.test", "two");
        let mut bare = run("fs", "three");
        assert_eq!(sandbox.mounts().len(), 3, "nobody's was unmounted");
        for daemon in [&mut test, &mut bare, &mut prod] {
            assert!(daemon.end(Signal::SIGTERM).success());
        }
        sandbox.assert_nothing_left();
    });
}

/// Somebody removes the control socket, and a second daemon takes its place.
#[test]
fn servers_that_obey_a_living_daemon_are_left_alone() {
    unless_skipped(ROOT_DIRECT.possible(), || {
        let service = Service::start(ROOT_DIRECT, |_| String::new());
        let (one, two) = (service.server("one"), service.server("two"));
        let sandbox = &service.sandbox;
        fs::remove_file(sandbox.socket()).unwrap();
        let file = mount(sandbox, "one", "") + &mount(sandbox, "three", "");
        let (mut second, log) = start_another(sandbox, &sandbox.socket(), "second", &file);
        wait_for_words(&log, "serving 1 of 2 mounts");
        wait_for_words(&log, "another daemon gives its server orders: left alone");
        wait_for_words(&log, "obeys another daemon");
        assert!(second.end(Signal::SIGTERM).success());
        for server in [one, two] {
            kill(Pid::from_raw(server.try_into().unwrap()), None).expect("the server serves on");
        }
        for name in GOOD {
            service.write(name).unwrap();
        }
        service.stop();
    });
}

/// As whoever clears /tmp does.
#[test]
fn the_folder_of_the_servers_may_be_removed() {
    unless_skipped(ROOT_DIRECT.possible(), || {
        let service = Service::start(ROOT_DIRECT, |_| String::new());
        let one = service.server("one");
        fs::remove_dir_all(service.sandbox.path().join("run/servers")).unwrap();
        kill(Pid::from_raw(one.try_into().unwrap()), Signal::SIGKILL).unwrap();
        service.wait_until("replaces the server", |status| {
            health_of(status, "one") == "healthy" && mount_of(status, "one")["server_pid"].as_i64() != Some(one)
        });
        service.stop();
    });
}

#[test]
fn a_configuration_that_hangs_stops_nobody() {
    unless_skipped(ROOT_DIRECT.possible(), || {
        let service = Service::start(ROOT_DIRECT, |_| String::new());
        let sandbox = &service.sandbox;
        let path = config(sandbox);
        let text = fs::read_to_string(&path).unwrap();
        let inside = service.place("one").join("config.toml");
        fs::write(&inside, &text).unwrap();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&inside, &path).unwrap();
        let said = |words: &str| wait_for_words(&sandbox.log(), words);
        service.send(Signal::SIGHUP);
        said("lies in the mount point");
        // And now it does not answer.
        let server = Pid::from_raw(service.server("one").try_into().unwrap());
        kill(server, Signal::SIGSTOP).unwrap();
        service.send(Signal::SIGHUP);
        let asked = Instant::now();
        service.status().expect("a status");
        assert!(asked.elapsed() < Duration::from_secs(4), "the reload gives up after five: {:?}", asked.elapsed());
        said("was not read within 5s");
        service.send(Signal::SIGHUP);
        said("is still being read for an earlier reload");
        kill(server, Signal::SIGCONT).unwrap();
        fs::remove_file(&path).unwrap();
        service.reload(&text);
        wait_for("a reload", COMMAND_LIMIT, || {
            service.send(Signal::SIGHUP);
            service.log().contains("the configuration was read again").then_some(())
        });
        service.stop();
    });
}

#[test]
fn systemd_is_told_what_is_served_now() {
    unless_skipped(require_root(), || {
        let sandbox = Sandbox::new(ROOT_DIRECT.user, Duration::from_secs(60));
        let both = mount(&sandbox, "one", "") + &mount(&sandbox, "two", "");
        write_config(&sandbox, both).unwrap();
        let path = sandbox.path().join("notify");
        let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(COMMAND_LIMIT)).unwrap();
        let hear = |what: &str| {
            let mut message = [0; 4096];
            loop {
                let length = socket.recv(&mut message).unwrap_or_else(|error| panic!("no {what}: {error}"));
                let message = String::from_utf8_lossy(&message[..length]);
                if message.lines().any(|line| line.starts_with("STATUS=") && line.contains(what)) {
                    return;
                }
            }
        };
        let log = File::create(sandbox.log()).unwrap();
        let mut command = sandbox.program();
        command.arg("serve").arg("--config").arg(config(&sandbox)).arg("--socket").arg(sandbox.socket());
        command.env("NOTIFY_SOCKET", &path).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let service = Service { daemon: command.spawn().expect("a daemon"), sandbox };
        hear("serving 2 of 2 mounts");
        nix::mount::umount(&service.place("one")).unwrap();
        hear("serving 1 of 2 mounts");
        service.reload(&mount(&service.sandbox, "two", ""));
        hear("/source/two at ");
        service.send(Signal::SIGTERM);
        hear("unmounting");
        service.stop();
    });
}

/// As with a log collector that is stopped: nobody reads the pipe that standard error is.
#[test]
fn a_log_that_nobody_reads_stops_no_daemon() {
    unless_skipped(ROOT_DIRECT.possible(), || {
        let sandbox = Sandbox::new(ROOT_DIRECT.user, Duration::from_secs(60));
        let file = mount(&sandbox, "one", "");
        write_config(&sandbox, &file).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = sandbox.program();
        command.arg("serve").arg("--config").arg(config(&sandbox)).arg("--socket").arg(sandbox.socket());
        command.stdin(Stdio::null()).stdout(File::create(sandbox.log()).unwrap()).stderr(writer.try_clone().unwrap());
        let service = Service { daemon: command.spawn().expect("a daemon"), sandbox };
        drop(command);
        service.wait_until("serves", |status| health_of(status, "one") == "healthy");
        fill(&writer);
        for table in [mount(&service.sandbox, "two", ""), String::new()] {
            // Each reload logs.
            service.reload(&(file.clone() + &table));
            let wanted = if table.is_empty() { 1 } else { 2 };
            service.wait_until("reloads", |status| status["mounts"].as_array().unwrap().len() == wanted);
        }
        drop(reader);
        service.stop();
    });
}

/// Fills a pipe to the last byte.
fn fill(mut writer: &std::io::PipeWriter) {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    let flags = fcntl_getfl(writer).unwrap();
    fcntl_setfl(writer, flags | OFlags::NONBLOCK).unwrap();
    for size in [4096, 1] {
        while std::io::Write::write(&mut writer, &[b'x'; 4096][..size]).is_ok() {}
    }
    fcntl_setfl(writer, flags).unwrap();
}
