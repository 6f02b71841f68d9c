//! Health is what the prober sees through the mount: a mount that hangs is unhealthy within the prober's deadline, and
//! nobody who asks hangs with it.

#[macro_use]
mod support;

use std::fs;
use std::process::Output;
use std::time::{Duration, Instant};

use lighthouse_fs::cli::exit;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::{FDTarget, Process};
use rstest::rstest;
use serde_json::Value;
use support::{
    Backend, Mount, ROOT_DIRECT, Sandbox, USER_FUSERMOUNT3, User, Way, processes_of, require_root, unless_skipped,
    wait_for,
};

/// The prober's, in these tests.
const DEADLINE: Duration = Duration::from_secs(1);
/// What a loaded machine may add.
const SLACK: Duration = Duration::from_secs(10);
/// For whoever asks: far below the client's own deadline of five seconds, and long enough for a loaded machine to start
/// a program.
const AT_ONCE: Duration = Duration::from_secs(4);

for_each_way! {
    a_mount_that_answers_is_healthy
}

fn any_backend() -> Backend {
    Backend::ALL.into_iter().find(|backend| backend.is_built_in()).expect("a build with a backend")
}

/// Runs `health --json` and gives exit code and answer; asserts that it does not hang.
fn health(mount: &Mount, arguments: &[&str]) -> (i32, Value) {
    let began = Instant::now();
    let output = mount.ask(&[&["health"], arguments].concat());
    assert!(began.elapsed() < AT_ONCE, "asking has taken {:?}", began.elapsed());
    let answer = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (code(&output), answer)
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("no exit code: {output:?}"))
}

fn wait_for_code(mount: &Mount, wanted: u8) -> Value {
    wait_for(&format!("health to exit with {wanted}"), DEADLINE + SLACK, || {
        let (code, answer) = health(mount, &[]);
        (code == i32::from(wanted)).then_some(answer)
    })
}

fn reason(answer: &Value) -> &str {
    answer["reasons"][0].as_str().unwrap_or_else(|| panic!("no reason in {answer}"))
}

fn misplaced(mount: &Mount) -> String {
    let place = mount.sandbox.mountpoint();
    format!("default: the mount does not answer: nothing, or something else, is mounted at {}", place.display())
}

/// The probers of a mount that are alive; not those that are dead and not buried.
fn probers(mount: &Mount) -> Vec<Process> {
    let is_prober =
        |process: &Process| process.cmdline().is_ok_and(|line| line.get(1).is_some_and(|word| word == "probe"));
    processes_of(mount.sandbox.path()).into_iter().filter(is_prober).collect()
}

fn prober(mount: &Mount) -> Process {
    wait_for("a prober", SLACK, || probers(mount).pop())
}

fn server(mount: &Mount) -> Pid {
    let pid = mount.status()["server_pid"].as_i64().expect("a server");
    Pid::from_raw(pid.try_into().expect("a process id"))
}

fn a_mount_that_answers_is_healthy(backend: Backend, way: Way) {
    let mount = Mount::builder(backend, way).start();
    assert_eq!(mount.status()["probe"]["state"], "answered", "a mount is served when it answers");
    let (code, answer) = health(&mount, &["--mount", "default"]);
    assert_eq!((code, answer["health"].as_str(), answer["schema"].as_i64()), (0, Some("healthy"), Some(1)));
    assert_eq!(answer["mounts"]["default"], "healthy");

    let prober = prober(&mount);
    assert_eq!(prober.status().unwrap().euid, way.user.ids().0, "the kernel admits nobody else");
    // The rest was open before the daemon began.
    let open: Vec<_> = prober.fd().unwrap().flatten().map(|fd| fd.target).collect();
    let is_leak = |target: &FDTarget| match target {
        FDTarget::Path(path) => path.ends_with("fuse"),
        FDTarget::MemFD(_) | FDTarget::AnonInode(_) => true,
        _ => false,
    };
    assert!(!open.iter().any(is_leak), "what is the daemon's or the server's alone: {open:?}");
    mount.stop();
}

#[rstest]
fn a_server_that_is_stopped_is_noticed(#[values(ROOT_DIRECT, USER_FUSERMOUNT3)] way: Way) {
    unless_skipped(way.possible(), || {
        let mount = Mount::builder(any_backend(), way).probe_deadline(DEADLINE).start();
        let server = server(&mount);
        let began = Instant::now();
        kill(server, Signal::SIGSTOP).unwrap();
        let answer = wait_for_code(&mount, exit::FAILED);
        assert!(reason(&answer).starts_with("default: the mount has not answered the prober for"), "{answer}");
        assert!(began.elapsed() >= DEADLINE / 2, "it was given its time");

        let asked = Instant::now();
        let status = mount.status();
        assert!(asked.elapsed() < AT_ONCE, "status has taken {:?}", asked.elapsed());
        assert_eq!((&status["health"], &status["probe"]["state"]), (&"unhealthy".into(), &"silent".into()));
        assert_eq!(health(&mount, &["--probe"]).0, 1, "for containers too");

        kill(server, Signal::SIGCONT).unwrap();
        wait_for_code(&mount, 0);
        mount.stop();
    });
}

/// The prober is killed, and that does not end it: the server has read its question.
#[test]
fn a_source_that_hangs_is_noticed_and_hangs_two_probers_at_most() {
    unless_skipped(require_root(), || {
        let below = Mount::builder(any_backend(), ROOT_DIRECT).start();
        let mount =
            Mount::builder(any_backend(), ROOT_DIRECT).source(&below.path("")).probe_deadline(DEADLINE / 2).start();
        let server = server(&below);
        kill(server, Signal::SIGSTOP).unwrap();
        wait_for("probers to have hung for several deadlines", SLACK, || {
            assert!(probers(&mount).len() <= 2, "too many probers: {:?}", probers(&mount));
            let (code, answer) = health(&mount, &[]);
            (code == 1 && reason(&answer).ends_with("for 4 s")).then_some(())
        });
        assert_eq!(probers(&mount).len(), 2, "the one that is stuck, and one more");

        kill(server, Signal::SIGCONT).unwrap();
        wait_for_code(&mount, 0);
        wait_for("the stuck prober to go", SLACK, || (probers(&mount).len() == 1).then_some(()));
        mount.stop();
        below.stop();
    });
}

#[test]
fn a_prober_that_dies_is_replaced_unseen() {
    unless_skipped(Way::any().possible(), || {
        let mount = Mount::builder(any_backend(), Way::any()).start();
        let first = prober(&mount).pid;
        kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
        wait_for("another prober", SLACK, || {
            assert_eq!(health(&mount, &[]).0, 0, "what dies is not the mount");
            probers(&mount).into_iter().find(|prober| prober.pid != first)
        });
        mount.stop();
    });
}

#[test]
fn a_prober_that_dies_while_it_asks_is_replaced() {
    unless_skipped(require_root(), || {
        let mount = Mount::builder(any_backend(), ROOT_DIRECT).start();
        let server = server(&mount);
        kill(server, Signal::SIGSTOP).unwrap();
        wait_for("a question", SLACK, || (mount.waiting() > 0).then_some(()));
        let first = prober(&mount).pid;
        kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
        wait_for("another prober", SLACK, || probers(&mount).into_iter().find(|prober| prober.pid != first));
        assert!(mount.log().contains("the prober has ended; the next one follows in 100ms"), "{}", mount.log());
        kill(server, Signal::SIGCONT).unwrap();
        wait_for("an answer", SLACK, || (mount.status()["probe"]["state"] == "answered").then_some(()));
        wait_for_code(&mount, 0);
        mount.stop();
    });
}

/// The kernel knows the root's attributes for a second; a prober that was answered from there would see nothing.
#[test]
fn every_question_goes_to_the_server() {
    const QUESTIONS: u64 = 5;
    unless_skipped(require_root(), || {
        for backend in Backend::ALL.into_iter().filter(|backend| backend.is_built_in()) {
            let mount = Mount::builder(backend, ROOT_DIRECT).without_prober().start();
            let answered = || {
                let status = mount.status();
                let backends = status["backends"].as_array().unwrap();
                backends.iter().map(|backend| backend["operations"].as_u64().unwrap()).sum::<u64>()
            };
            // Now the kernel knows them.
            fs::metadata(mount.path("")).unwrap();
            let before = answered();
            let mut command = mount.sandbox.program();
            command.args(["probe", "--device", &format!("0:{}", mount.connection_id()), "--mountpoint"]);
            command.arg(mount.sandbox.mountpoint());
            let mut command = assert_cmd::Command::from_std(command);
            let output = command.write_stdin("\n".repeat(QUESTIONS as usize)).timeout(SLACK).output().unwrap();
            let answers = String::from_utf8(output.stdout).unwrap();
            assert_eq!(answers.matches("\"mount\":\"answered\"").count() as u64, QUESTIONS, "{answers}");
            // Each asks twice, for attributes and for the file system.
            assert_eq!(answered() - before, 2 * QUESTIONS, "{backend}");
            mount.stop();
        }
    });
}

#[test]
fn a_prober_that_is_stopped_is_replaced() {
    unless_skipped(Way::any().possible(), || {
        let mount = Mount::builder(any_backend(), Way::any()).probe_deadline(DEADLINE).start();
        let first = prober(&mount).pid;
        kill(Pid::from_raw(first), Signal::SIGSTOP).unwrap();
        wait_for("another prober alone", DEADLINE + SLACK, || {
            let pids: Vec<_> = probers(&mount).iter().map(|prober| prober.pid).collect();
            (pids.len() == 1 && pids[0] != first).then_some(())
        });
        wait_for_code(&mount, 0);
        mount.stop();
    });
}

#[test]
fn the_prober_goes_with_the_daemon_however_that_goes() {
    unless_skipped(Way::any().possible(), || {
        let mut mount = Mount::builder(any_backend(), Way::any()).start();
        // One that hangs does not see that its questions have ended.
        kill(server(&mount), Signal::SIGSTOP).unwrap();
        wait_for("a prober to hang", SLACK, || (mount.waiting() > 0).then(|| prober(&mount)));
        kill(Pid::from_raw(mount.daemon_pid()), Signal::SIGKILL).unwrap();
        mount.wait();
        wait_for("the prober to end", SLACK, || probers(&mount).is_empty().then_some(()));
    });
}

/// An open file keeps the server alive, though nobody finds the mount any more.
#[test]
fn a_mount_that_somebody_has_detached_is_not_healthy() {
    unless_skipped(require_root(), || {
        let mut mount = Mount::builder(any_backend(), ROOT_DIRECT).start();
        fs::write(mount.source_path("file"), "served").unwrap();
        let open = fs::File::open(mount.path("file")).unwrap();
        let place = mount.sandbox.mountpoint();
        assert!(mount.sandbox.client("umount").arg("-l").arg(&place).status().unwrap().success());
        // At first it may only be missing.
        wait_for("the daemon to say why", SLACK, || {
            let answer = wait_for_code(&mount, exit::FAILED);
            let is_why = reason(&answer).starts_with("default: somebody else has unmounted it");
            is_why.then(|| assert!(reason(&answer).ends_with("the daemon ends with the last of them"), "{answer}"))
        });
        assert_eq!(std::io::read_to_string(&open).unwrap(), "served");
        drop(open);
        assert!(mount.wait().success(), "an unmounted mount is no failure");
        mount.sandbox.assert_nothing_left();
    });
}

#[test]
fn what_others_mount_on_top_is_no_success() {
    unless_skipped(require_root(), || {
        let mut mount = Mount::builder(any_backend(), ROOT_DIRECT).start();
        let place = mount.sandbox.mountpoint();
        let nothing = None::<&str>;
        nix::mount::mount(Some("theirs"), &place, Some("tmpfs"), nix::mount::MsFlags::empty(), nothing).unwrap();
        let answer = wait_for_code(&mount, exit::FAILED);
        assert_eq!(reason(&answer), misplaced(&mount));
        nix::mount::umount(&place).unwrap();
        wait_for_code(&mount, 0);
        assert!(mount.terminate().success());
    });
}

#[test]
fn what_cannot_be_asked_is_said() {
    unless_skipped(Way::any().possible(), || {
        let mount = Mount::builder(any_backend(), Way::any()).without_prober().start();
        assert_eq!(mount.status()["probe"]["state"], "not probed");
        assert!(probers(&mount).is_empty());
        assert_eq!(health(&mount, &[]).0, 0, "nobody asks, and that is no fault");
        let text = |arguments: &[&str]| {
            let socket = mount.sandbox.socket().into_os_string().into_string().unwrap();
            let output = mount.sandbox.run(arguments.iter().copied().chain(["--socket", &socket]));
            (code(&output), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
        };
        assert_eq!(text(&["health"]), (0, "default is healthy\n".into(), String::new()));
        assert!(text(&["status"]).1.ends_with("\ndefault: not probed: probing is turned off\n"));
        let (code, _, said) = text(&["health", "--mount", "other"]);
        assert!(code == 1 && said.starts_with("error: no mount is called \"other\""), "{code} {said}");
        mount.stop();
    });
}

#[test]
fn nobody_listens() {
    let sandbox = Sandbox::new(User::Ordinary, Duration::from_secs(30));
    let socket = sandbox.socket().into_os_string().into_string().unwrap();
    let ask = || sandbox.run(["health", "--probe", "--socket", &socket]);
    let output = ask();
    assert_eq!(code(&output), i32::from(exit::NO_DAEMON), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("error: no daemon answers on "), "{output:?}");

    // One that accepts and is silent, as a stopped daemon.
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::os::unix::fs::chown(&socket, Some(sandbox.user().ids().0), None).unwrap();
    let output = ask();
    assert_eq!(code(&output), i32::from(exit::NO_DAEMON), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("has not answered within 5s"), "{output:?}");
}
