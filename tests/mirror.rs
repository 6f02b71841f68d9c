//! The shadow mount: the candidate serves the same tree at a second place, and what it says otherwise is found, while nothing
//! that happens to it reaches the mount.

mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat;
use nix::unistd::Pid;
use rstest::rstest;
use serde_json::Value;
use support::http::{Answer, ask, connect};
use support::service::{Service, config, health_of, mount, mount_of, reasons_of, serve_command, spawn};
use support::{
    Backend, COMMAND_LIMIT, ROOT_DIRECT, Sandbox, Tier, USER_FUSERMOUNT, USER_FUSERMOUNT3, Way, processes_of,
    require_root, unless_skipped, wait_for,
};

/// A pass, the pause after it and two more looks, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(50);
const GET: &str = "GET /health/ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

fn place(sandbox: &Sandbox) -> PathBuf {
    sandbox.path().join("run/one-shadow")
}

fn another_place(sandbox: &Sandbox) -> PathBuf {
    sandbox.path().join("run/another")
}

/// A file with one mount, and its shadow if it is to have one.
fn file(sandbox: &Sandbox, candidate: Backend, shadow: Option<&Path>) -> String {
    let shadow = shadow.map_or_else(String::new, |place| format!("shadow_mountpoint = \"{}\"\n", place.display()));
    let more = format!(
        "drill = true\n{shadow}[mount.deadlines]\nprobe = \"1s\"\nunmount = \"3s\"\n[mount.rollout]\ncandidate = \"{candidate}\"\n"
    );
    let listen = "[api]\nlisten = \"\"\nshadow_listen = \"127.0.0.1:0\"\nmetrics_listen = \"\"\n";
    listen.to_owned() + &mount(sandbox, "one", &more)
}

/// When there is time for a test.
#[derive(Clone, Copy)]
enum Length {
    Quick,
    Full,
}

/// A service whose mount has a shadow, with this in its source.
fn on_a_shadow(candidate: Backend, length: Length, ways: &[Way], fill: impl FnOnce(&Path), test: impl FnOnce(Service)) {
    if !Backend::ALL.into_iter().all(Backend::is_built_in) {
        return;
    }
    let has_time = || match (Tier::current(), length) {
        (Tier::Quick, Length::Full) => Err("the full tier runs it with this backend too".into()),
        _ => Ok(()),
    };
    // Only root can make everything that a tree can have.
    let possible = ways.iter().try_fold((), |(), way| way.possible()).and_then(|()| require_root());
    let possible = possible.and_then(|()| has_time());
    unless_skipped(possible, || {
        let sandbox = Sandbox::new(ways[0].user, Duration::from_secs(120));
        for place in [place(&sandbox), another_place(&sandbox)] {
            sandbox.user().act(|| fs::create_dir_all(place)).unwrap();
        }
        fs::write(config(&sandbox), file(&sandbox, candidate, Some(&place(&sandbox)))).unwrap();
        fill(&sandbox.source().join("one"));
        let mut command = serve_command(&sandbox);
        command.arg("--config").arg(config(&sandbox));
        test(Service::of(sandbox, command));
    });
}

fn shadow_of(status: &Value) -> &Value {
    &mount_of(status, "one")["shadow"]
}

fn wait_for_shadow(service: &Service, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let found = wait_for(what, PATIENCE, || service.status().filter(|status| is_so(shadow_of(status))));
    shadow_of(&found).clone()
}

fn wait_until_healthy(service: &Service) -> Value {
    wait_for_shadow(service, "the shadow mount to answer", |shadow| shadow["health"] == "healthy")
}

fn ready(service: &Service) -> Answer {
    let status = service.status().unwrap();
    let listeners = status["daemon"]["listeners"].as_array().unwrap();
    let shadow = listeners.iter().find(|listener| listener["name"] == "shadow").unwrap();
    ask(connect(shadow["address"].as_str().unwrap().parse().unwrap()), GET)
}

fn reload(service: &Service, shadow: Option<&Path>) {
    fs::write(config(&service.sandbox), file(&service.sandbox, Backend::Fuse2, shadow)).unwrap();
    service.send(Signal::SIGHUP);
}

fn end(pid: &Value) {
    kill(Pid::from_raw(pid.as_i64().unwrap().try_into().unwrap()), Signal::SIGKILL).unwrap();
}

/// Everything that a tree can have.
fn everything(source: &Path) {
    fs::create_dir_all(source.join("folder/below")).unwrap();
    let large = File::create(source.join("folder/large")).unwrap();
    large.write_all_at(b"end", 3_000_000).unwrap();
    fs::write(source.join("folder/below/small"), "content").unwrap();
    fs::write(source.join("empty"), "").unwrap();
    fs::hard_link(source.join("empty"), source.join("linked")).unwrap();
    fs::set_permissions(source.join("folder/below/small"), fs::Permissions::from_mode(0o4751)).unwrap();
    symlink("/somewhere else/\u{e4}", source.join("link")).unwrap();
    symlink("..", source.join("folder/up")).unwrap();
    fs::write(source.join(OsStr::from_bytes(b"not \xff UTF-8\n")), "x").unwrap();
    nix::unistd::mkfifo(&source.join("fifo"), stat::Mode::S_IRWXU).unwrap();
    stat::mknod(&source.join("device"), stat::SFlag::S_IFCHR, stat::Mode::S_IRWXU, stat::makedev(1, 3)).unwrap();
    std::os::unix::net::UnixListener::bind(source.join("socket")).unwrap();
    let file = File::open(source.join("folder/large")).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + Duration::new(1_234_567, 123_456_789)).unwrap();
    for number in 0..10 {
        fs::write(source.join(format!("folder/{number}")), vec![b'x'; 70_000 * (number % 3)]).unwrap();
    }
}

#[rstest]
#[case(Backend::Fuse2, Length::Full, &[ROOT_DIRECT])]
#[case(Backend::Fuse3, Length::Quick, &[USER_FUSERMOUNT, USER_FUSERMOUNT3])]
fn what_the_candidate_says_otherwise_is_found(
    #[case] candidate: Backend,
    #[case] length: Length,
    #[case] ways: &[Way],
) {
    on_a_shadow(candidate, length, ways, everything, |service| {
        // A tree that lives.
        let is_over = AtomicBool::new(false);
        let source = service.sandbox.source().join("one");
        std::thread::scope(|scope| {
            for (name, pause) in [("busy", 3), ("calm", 700)] {
                let (source, is_over) = (&source, &is_over);
                scope.spawn(move || {
                    for number in 0.. {
                        let mut file = File::create(source.join(name)).unwrap();
                        write!(file, "{number:.>0$}", number % 500).unwrap();
                        let entry = source.join(format!("{name}-{}", number % 2));
                        drop(fs::remove_file(&entry));
                        fs::write(source.join(format!("{name}-{}", (number + 1) % 2)), name).unwrap();
                        std::thread::sleep(Duration::from_millis(pause));
                        if is_over.load(Relaxed) {
                            return;
                        }
                    }
                });
            }
            let passed = wait_for("a pass", PATIENCE, || {
                service.status().filter(|status| shadow_of(status)["passes"].as_u64() > Some(0))
            });
            is_over.store(true, Relaxed);
            let shadow = shadow_of(&passed);
            assert_eq!((&shadow["diverged"], &shadow["backend"]), (&0.into(), &candidate.name().into()), "{shadow}");
            assert!(shadow["compared"].as_u64() > Some(100), "{shadow}");
            assert_eq!(shadow["paused"], Value::Null);
        });
        let (shadow, user) = (place(&service.sandbox), service.sandbox.user());
        assert_eq!(user.act(|| fs::read(shadow.join("folder/1"))).unwrap().len(), 70_000);
        let refused = user.act(|| fs::write(shadow.join("new"), "")).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
        service.write("one").unwrap();

        let begun = service.ask(&["drill", "one", "--backend", candidate.name(), "--fault", "diverge", "--for", "10m"]);
        assert!(begun.status.success(), "{begun:?}");
        let has_example = |shadow: &Value, operation: &str| {
            let examples = shadow["examples"].as_array().unwrap();
            examples.iter().any(|example| example["operation"] == operation)
        };
        let found = wait_for_shadow(&service, "differences", |shadow| {
            ["getattr", "readlink", "read", "statfs"].iter().all(|operation| has_example(shadow, operation))
        });
        let examples = found["examples"].as_array().unwrap();
        let size = examples.iter().find(|example| example["operation"] == "getattr" && example["field"] == "size");
        let size = size.unwrap_or_else(|| panic!("{examples:?}"));
        let number = |side: &str| size[side].as_str().unwrap().parse::<u64>().unwrap();
        assert_eq!(number("shadow"), number("mount") + 1, "{size}");
        let told = service.ask(&["status", "one"]);
        let told = String::from_utf8(told.stdout).unwrap();
        assert!(told.contains("shadow mount ") && told.contains(size["path"].as_str().unwrap()), "{told}");
        assert!(service.ask(&["drill", "one", "--stop"]).status.success());
        service.stop();
    });
}

#[test]
fn a_shadow_server_comes_and_goes_beside_its_mount() {
    on_a_shadow(
        Backend::Fuse2,
        Length::Quick,
        &[ROOT_DIRECT],
        |source| fs::write(source.join("file"), "x").unwrap(),
        |mut service| {
            let open = File::open(service.place("one").join("file")).unwrap();
            let server = service.server("one");
            let begun = wait_until_healthy(&service);
            let answer = ready(&service);
            assert_eq!((answer.status, &answer.json()["mounts"]["one"]), (200, &"healthy".into()));
            let status = service.status().unwrap();
            assert_eq!(status["mounts"].as_array().unwrap().len(), 1, "it is no mount of its own: {status}");
            for command in ["switch one@shadow fuse3", "rollout start one@shadow", "drill one@shadow --stop"] {
                let refused = service.ask(&command.split(' ').collect::<Vec<_>>());
                assert!(!refused.status.success(), "{refused:?}");
            }

            end(&begun["server_pid"]);
            let again = wait_for_shadow(&service, "another server", |shadow| {
                shadow["health"] == "healthy" && shadow["server_pid"] != begun["server_pid"]
            });
            assert_eq!(service.server("one"), server);

            service.daemon.kill().unwrap();
            service.daemon.wait().unwrap();
            service.daemon = spawn(&service.sandbox);
            let adopted = wait_until_healthy(&service);
            assert_eq!((&adopted["server_pid"], service.server("one")), (&again["server_pid"], server));

            reload(&service, Some(&another_place(&service.sandbox)));
            wait_for_shadow(&service, "another place", |shadow| {
                shadow["health"] == "healthy"
                    && shadow["mountpoint"] == another_place(&service.sandbox).to_str().unwrap()
            });
            assert_eq!(service.sandbox.mounts().len(), 2, "the other one is unmounted first");

            reload(&service, None);
            wait_for_shadow(&service, "no shadow mount", Value::is_null);
            wait_for("its unmount", COMMAND_LIMIT, || (service.sandbox.mounts().len() == 1).then_some(()));
            assert!(ready(&service).problem(404).contains("there is no shadow mount"));

            // A place that cannot be used.
            fs::remove_dir(place(&service.sandbox)).unwrap();
            reload(&service, Some(&place(&service.sandbox)));
            let missing =
                wait_for_shadow(&service, "why not", |shadow| shadow["reasons"].to_string().contains("does not exist"));
            assert_eq!(missing["health"], "unhealthy");
            let status = service.status().unwrap();
            assert_eq!(health_of(&status, "one"), "degraded");
            assert!(reasons_of(&status, "one").contains("shadow mount /"), "{status}");
            assert!(ready(&service).problem(503).contains("does not exist"));
            fs::create_dir(place(&service.sandbox)).unwrap();
            let begun = wait_until_healthy(&service);

            // The other backend would take over, of which nobody wants to know.
            let ended = service.ask(&["drill", "one", "--backend", "fuse2", "--fault", "end", "--for", "10m"]);
            assert!(ended.status.success(), "{ended:?}");
            let again = wait_for_shadow(&service, "the candidate", |shadow| {
                shadow["health"] == "healthy" && shadow["server_pid"] != begun["server_pid"]
            });
            assert!(service.log().contains("does not serve its shadow mount any more"), "{}", service.log());

            // What was started otherwise than it is to be now is not adopted.
            service.daemon.kill().unwrap();
            service.daemon.wait().unwrap();
            let text = fs::read_to_string(config(&service.sandbox)).unwrap();
            fs::write(config(&service.sandbox), text.replace("drill = true", "drill = false")).unwrap();
            service.daemon = spawn(&service.sandbox);
            wait_for_shadow(&service, "another server", |shadow| {
                shadow["health"] == "healthy" && shadow["server_pid"] != again["server_pid"]
            });

            assert_eq!(service.server("one"), server);
            let mut byte = [0];
            assert_eq!(open.read_at(&mut byte, 0).unwrap(), 1, "what is open lives on");
            drop(open);
            service.stop();
        },
    );
}

/// What it asks would be evidence that no program has given.
#[test]
fn a_candidate_that_has_a_share_is_not_compared() {
    on_a_shadow(Backend::Fuse3, Length::Quick, &[ROOT_DIRECT], everything, |service| {
        wait_for_shadow(&service, "is compared", |shadow| shadow["compared"].as_u64() > Some(0));
        for step in [["rollout", "start"], ["rollout", "promote"]] {
            assert!(service.ask(&[&step[..], &["one"]].concat()).status.success());
        }
        let is_paused =
            |shadow: &Value| shadow["paused"].as_str().is_some_and(|why| why.contains("in the mount itself"));
        wait_for_shadow(&service, "is not compared", is_paused);
        assert!(service.ask(&["rollout", "abort", "one"]).status.success());
        wait_for_shadow(&service, "is compared again", |shadow| shadow["paused"].is_null());
        service.stop();
    });
}

#[rstest]
#[case(Backend::Fuse2, Length::Full)]
#[case(Backend::Fuse3, Length::Quick)]
fn a_candidate_that_hangs_holds_up_only_who_compares(#[case] candidate: Backend, #[case] length: Length) {
    on_a_shadow(candidate, length, &[ROOT_DIRECT], everything, |service| {
        wait_until_healthy(&service);
        let server = service.server("one");
        let begun = service.ask(&["drill", "one", "--backend", candidate.name(), "--fault", "hang", "--for", "10m"]);
        assert!(begun.status.success(), "{begun:?}");
        wait_for_shadow(&service, "a mount that hangs", |shadow| shadow["health"] == "unhealthy");
        let ready = ready(&service).problem(503);
        assert!(ready.contains("has not answered the prober"), "{ready}");
        wait_for("a comparer that hangs", PATIENCE, || {
            service.log().contains("the comparer has said nothing for").then_some(())
        });
        // A second one may be stuck too, and no third is started.
        let comparers = || {
            let processes = processes_of(service.sandbox.path());
            let is_one = |arguments: Vec<String>| arguments.iter().any(|argument| argument == "compare");
            processes.iter().filter(|process| process.cmdline().is_ok_and(is_one)).count()
        };
        wait_for("two that are stuck", PATIENCE, || (comparers() <= 4).then_some(()));
        let status = service.status().unwrap();
        assert_eq!(health_of(&status, "one"), "degraded", "{status}");
        let began = Instant::now();
        service.write("one").unwrap();
        assert_eq!(fs::read(service.place("one").join("folder/below/small")).unwrap(), b"content");
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert_eq!(service.server("one"), server);
        let began = Instant::now();
        service.stop();
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    });
}
