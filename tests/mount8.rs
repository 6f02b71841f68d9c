//! `mount.lighthouse-fs`: mounting as mount(8) and fstab do.

mod support;

use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use procfs::process::{FDTarget, Process};
use rstest::rstest;
use support::{
    Backend, COMMAND_LIMIT, PROGRAM, ROOT_DIRECT, ROOT_FUSERMOUNT3, Sandbox, Scrape, USER_FUSERMOUNT3, User, Way,
    processes_of, require_root, run_as, skip, unless_skipped, wait_for,
};

const TEST_LIMIT: Duration = Duration::from_secs(60);
/// Where mount(8) looks for helpers: of the type as people write it, and as the kernel shows it.
const HELPERS: [&str; 2] = [HELPER, "/sbin/mount.fuse.lighthouse-fs"];
const HELPER: &str = "/sbin/mount.lighthouse-fs";

fn sandbox(user: User) -> Sandbox {
    Sandbox::new(user, TEST_LIMIT)
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// The helper as mount(8) calls it, on the sandbox's source and mount point.
fn helper(sandbox: &Sandbox, options: &str) -> Command {
    let mut command = sandbox.program();
    command.arg0(HELPER).args([sandbox.source(), sandbox.mountpoint()]).args(["-o", options]);
    command
}

/// Options by which nothing of the test lies outside of its folder, which root's control socket would by default, and an
/// ordinary user's mount needs one helper only, whatever the backends of this build.
fn inside(sandbox: &Sandbox, options: &str) -> String {
    let helper = if sandbox.user() == User::Root { "auto" } else { "fusermount3" };
    format!("helper={helper},{options},socket={}", text(&sandbox.socket()))
}

/// Runs a command to its end. Would the daemon keep one of its outputs open, this would not end.
fn run(command: Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } =
        assert_cmd::Command::from_std(command).timeout(COMMAND_LIMIT).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().expect("an end in time"), text(stdout), text(stderr))
}

#[track_caller]
fn assert_silent_success(command: Command) {
    assert_eq!(run(command), (0, String::new(), String::new()));
}

fn mount(sandbox: &Sandbox, options: &str) {
    assert_silent_success(helper(sandbox, &inside(sandbox, options)));
}

/// Ends the mount as its user does, and asserts that the daemon goes with it.
fn unmount(sandbox: &Sandbox) {
    let program = if sandbox.user().is_another() { "fusermount3" } else { "umount" };
    let mut command = sandbox.client(program);
    if program == "fusermount3" {
        command.arg("-u");
    }
    command.arg(sandbox.mountpoint());
    let unmounted = sandbox.user().act(|| run(command));
    assert_eq!(unmounted, (0, String::new(), String::new()));
    sandbox.assert_nothing_left();
    assert!(!sandbox.socket().exists(), "the control socket stays behind");
}

/// The daemon, among the test's processes.
fn daemon(sandbox: &Sandbox) -> Process {
    let is_daemon =
        |process: &Process| process.cmdline().is_ok_and(|line| line.iter().any(|word| word == "--foreground"));
    let mut daemons: Vec<_> = processes_of(sandbox.path()).into_iter().filter(is_daemon).collect();
    assert_eq!(daemons.len(), 1, "one daemon");
    daemons.remove(0)
}

#[rstest]
fn the_daemon_is_left_behind(#[values(ROOT_DIRECT, USER_FUSERMOUNT3)] way: Way) {
    unless_skipped(way.possible(), || {
        let sandbox = sandbox(way.user);
        mount(&sandbox, "rw");
        // As soon as the helper has returned.
        sandbox.user().act(|| fs::write(sandbox.mountpoint().join("file"), "content").unwrap());
        assert_eq!(fs::read_to_string(sandbox.source().join("file")).unwrap(), "content");

        let daemon = daemon(&sandbox);
        let stat = daemon.stat().unwrap();
        assert_eq!(stat.session, daemon.pid, "a session of its own");
        assert_eq!(daemon.cwd().unwrap(), Path::new("/"), "it keeps no folder busy");
        for number in 0..3 {
            match daemon.fd_from_fd(number).unwrap().target {
                FDTarget::Path(path) => assert_eq!(path, Path::new("/dev/null")),
                // The journal.
                FDTarget::Socket(_) => assert_eq!(number, 2),
                other => panic!("descriptor {number} is {other:?}"),
            }
        }
        unmount(&sandbox);
        let left = fs::read_dir(sandbox.path().join("run")).unwrap().count();
        assert_eq!(left, 0, "nothing stays in the folder of the control socket");
    });
}

#[test]
fn the_socket_is_named_after_the_mount_point() {
    unless_skipped(USER_FUSERMOUNT3.possible(), || {
        let sandbox = sandbox(User::Ordinary);
        if !sandbox.user().is_another() {
            return skip("needs root, to be another user");
        }
        assert_silent_success(helper(&sandbox, "rw,helper=fusermount3"));
        let name = text(&sandbox.mountpoint()).trim_start_matches('/').replace('-', r"\x2d").replace('/', "-");
        let sockets = || {
            let entries = fs::read_dir(sandbox.path().join("run/lighthouse-fs/mounts")).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.filter(|name| name.ends_with(".sock")).collect::<Vec<_>>()
        };
        // In a deep folder its end, or even all of it, is a hash.
        let [socket] = &sockets()[..] else { panic!("one socket: {:?}", sockets()) };
        let kept = socket.trim_end_matches(".sock").split('_').next().unwrap_or_default();
        assert!(name.starts_with(kept), "{socket} is not of {name}");
        // It is found without being named, and the mount has a name of its own.
        let status = sandbox.run(["status", "mountpoint", "--json"]);
        assert!(status.status.success(), "{status:?}");
        unmount(&sandbox);
        let left = fs::read_dir(sandbox.path().join("run/lighthouse-fs/mounts")).unwrap().count();
        assert_eq!(left, 0, "neither a socket nor a folder stays");
    });
}

/// Each mount has a daemon, and a socket that nobody has named.
#[cfg(all(feature = "fuse2", feature = "fuse3"))]
#[test]
fn commands_find_a_mount_by_its_name_or_mount_point() {
    unless_skipped(USER_FUSERMOUNT3.possible(), || {
        use nix::sys::signal::{Signal, kill};
        let sandbox = sandbox(User::Ordinary);
        if !sandbox.user().is_another() {
            return skip("needs root, to be another user");
        }
        let places = ["here", "there"].map(|folder| sandbox.path().join("run").join(folder).join("name"));
        for place in &places {
            sandbox.user().act(|| fs::create_dir_all(place).unwrap());
            let mut command = sandbox.program();
            command.arg0(HELPER).arg(sandbox.source()).arg(place).args(["-o", "helper=fusermount3,backend=fuse3"]);
            assert_silent_success(command);
        }
        let [here, there] = places.each_ref().map(|place| text(place));
        let ask = |arguments: &[&str]| {
            let Output { status, stdout, stderr } = sandbox.run(arguments);
            (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
        };
        let (code, answer, _) = ask(&["switch", &here, "fuse2"]);
        assert!(code == 0 && answer.starts_with("switched name from fuse3 to fuse2"), "{answer}");
        assert_eq!(ask(&["health", "--mount", &format!("{there}/")]), (0, "name is healthy\n".into(), String::new()));
        for ambiguous in [&["switch", "name", "fuse3"][..], &["health", "--mount", "name"]] {
            let (code, _, errors) = ask(ambiguous);
            assert_eq!(code, 1);
            assert!(errors.contains(&here) && errors.contains(&there), "which of the two: {errors}");
        }
        let (code, answer, errors) = ask(&["status"]);
        assert_eq!((code, errors.as_str()), (0, ""));
        let head = answer.lines().next().unwrap();
        assert!(head.ends_with("SOCKET") && answer.matches("/mounts/").count() == 2, "{answer}");

        // The name is known by one daemon, or by none.
        let daemon = |status: &str| {
            let status: serde_json::Value = serde_json::from_str(status).unwrap();
            let socket = PathBuf::from(status["daemon"]["socket"].as_str().unwrap());
            let [daemon, server] = [&status["daemon"]["pid"], &status["mounts"][0]["server_pid"]]
                .map(|pid| nix::unistd::Pid::from_raw(pid.as_i64().unwrap().try_into().unwrap()));
            (socket, daemon, server)
        };
        let (socket, killed, server) = daemon(&ask(&["status", &there, "--json"]).1);
        kill(killed, Signal::SIGKILL).unwrap();
        wait_for("the daemon to end", COMMAND_LIMIT, || kill(killed, None).is_err().then_some(()));
        let (code, answer, errors) = ask(&["status"]);
        assert!(code == 0 && !answer.contains("SOCKET"), "{answer}");
        assert!(errors.contains("its mount is served on") && socket.exists(), "{errors}");
        assert_eq!(ask(&["switch", "name", "fuse3"]).0, 0);

        kill(server, Signal::SIGTERM).unwrap();
        wait_for("the server to end", COMMAND_LIMIT, || kill(server, None).is_err().then_some(()));
        assert_eq!((ask(&["status"]).0, socket.exists()), (0, false), "a dead socket is taken away");

        let (_, last, _) = daemon(&ask(&["status", "name", "--json"]).1);
        kill(last, Signal::SIGTERM).unwrap();
        wait_for("it to end", COMMAND_LIMIT, || kill(last, None).is_err().then_some(()));
        sandbox.assert_nothing_left();
        assert_eq!(ask(&["health", "--mount", "name"]).0, 3);
    });
}

#[test]
fn ro_and_noexec_have_their_effect() {
    unless_skipped(Way::any().possible(), || {
        let sandbox = sandbox(Way::any().user);
        fs::write(sandbox.source().join("file"), "content").unwrap();
        mount(&sandbox, "ro,noexec,nosuid,nodev");
        let path = sandbox.mountpoint().join("file");
        sandbox.user().act(|| {
            assert_eq!(fs::read_to_string(&path).unwrap(), "content");
            assert_eq!(fs::write(&path, "other").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
        });
        let options = sandbox.mounts()[0].options.clone();
        for expected in ["noexec", "nosuid", "nodev"] {
            assert!(options.contains(expected), "{expected} is missing in {options}");
        }
        unmount(&sandbox);
    });
}

#[rstest]
#[case("rw", false)]
#[case("rw,allow_other", true)]
fn another_user_sees_it_with_allow_other(#[case] options: &str, #[case] admitted: bool) {
    unless_skipped(require_root(), || {
        let sandbox = sandbox(User::Root);
        fs::write(sandbox.source().join("file"), "content").unwrap();
        mount(&sandbox, options);
        let seen = run_as(60001, 60001, || fs::read_to_string(sandbox.mountpoint().join("file")));
        match (admitted, seen) {
            (true, seen) => assert_eq!(seen.unwrap(), "content"),
            (false, seen) => assert_eq!(seen.unwrap_err().kind(), ErrorKind::PermissionDenied),
        }
        unmount(&sandbox);
    });
}

#[test]
fn the_backend_and_the_name_are_options() {
    unless_skipped(Way::any().possible(), || {
        let backend = Backend::ALL.into_iter().find(|backend| backend.is_built_in()).unwrap();
        let sandbox = sandbox(Way::any().user);
        mount(&sandbox, &format!("backend={backend},name=other,nofallback,log_level=\"debug,fuse3=warn\""));
        let status = sandbox.run(["status", "other", "--json", "--socket", &text(&sandbox.socket())]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        assert!(status["mounts"][0]["active"][backend.name()].is_number(), "{status}");
        unmount(&sandbox);
    });
}

#[test]
fn sync_reaches_the_kernel() {
    unless_skipped(Way::any().possible(), || {
        let sandbox = sandbox(Way::any().user);
        mount(&sandbox, "sync");
        let options = sandbox.mounts()[0].options.clone();
        assert!(options.contains("\"sync\""), "{options}");
        let synced = || Scrape::of(&sandbox.socket()).sum("lighthouse_fuse_operations_total", &["operation=\"fsync\""]);
        let before = synced();
        sandbox.user().act(|| fs::write(sandbox.mountpoint().join("file"), "content").unwrap());
        assert!(synced() > before, "a write that does not wait for the disk");
        unmount(&sandbox);
    });
}

#[test]
fn what_is_mounted_is_not_mounted_again() {
    unless_skipped(Way::any().possible(), || {
        let sandbox = sandbox(Way::any().user);
        mount(&sandbox, "rw");
        let (code, answer, errors) = run(helper(&sandbox, &inside(&sandbox, "rw")));
        let why = format!("error: {} is mounted already: `umount` it first", sandbox.mountpoint().display());
        assert!((code, answer.as_str()) == (32, "") && errors.starts_with(&why), "{errors}");
        sandbox.user().act(|| fs::write(sandbox.mountpoint().join("file"), "it serves on").unwrap());
        unmount(&sandbox);
    });
}

#[rstest]
#[case(&["-o", "color=blue"], 1, "unknown option \"color=blue\"")]
#[case(&["-o", "ro", "-o", "backend=fuse4"], 1, "use auto, fuse2 or fuse3")]
#[case(&["-o", "dirsync"], 1, "option \"dirsync\": FUSE has none")]
#[case(&["-x"], 1, "-x")]
#[case(&["third"], 1, "third")]
#[case(&["-o", "remount,ro"], 32, "mountpoint cannot be remounted: Lighthouse FS is not mounted there")]
#[case(&["-o", "remount,user_id=0,color=blue"], 1, "unknown option \"color=blue\"")]
#[case(&["-o", "user_id=0"], 1, "unknown option \"user_id=0\"")]
#[case(&["-o", "color=blue", "-f"], 1, "unknown option")]
#[case(&["-f", "-v", "-n", "-o", "ro"], 0, "")]
#[case(&["-s", "-f", "-t", "fuse.lighthouse-fs", "-o", "color=blue"], 0, "")]
fn nothing_is_mounted_after_wrong_usage(#[case] arguments: &[&str], #[case] expected: i32, #[case] why: &str) {
    let sandbox = sandbox(Way::any().user);
    for name in [HELPER, "mount.fuse.lighthouse-fs"] {
        let mut command = sandbox.program();
        command.arg0(name).args([sandbox.source(), sandbox.mountpoint()]).args(arguments);
        let (code, answer, errors) = run(command);
        assert_eq!((code, answer.as_str()), (expected, ""), "{errors}");
        assert!(errors.contains(why), "{errors}");
        sandbox.assert_nothing_left();
    }
}

#[test]
fn the_daemons_error_is_passed_on_with_32() {
    unless_skipped(Way::any().possible(), || {
        let sandbox = sandbox(Way::any().user);
        let fail = |source: PathBuf, mountpoint: PathBuf| {
            let mut command = sandbox.program();
            command.arg0(HELPER).args([source, mountpoint]).args(["-o", &inside(&sandbox, "rw")]);
            let (code, answer, errors) = run(command);
            assert_eq!((code, answer.as_str()), (32, ""), "{errors}");
            errors
        };
        let missing = sandbox.path().join("missing");
        assert!(fail(missing.clone(), sandbox.mountpoint()).contains("missing does not exist: make it"));
        assert!(fail(sandbox.source(), missing).contains("the mount point"));
        assert!(fail(sandbox.source(), sandbox.source()).contains("lie in each other"));
        sandbox.assert_nothing_left();
        mount(&sandbox, "rw");
        fail(sandbox.source(), sandbox.mountpoint());
        unmount(&sandbox);
    });
}

#[test]
fn umount_ends_the_daemon_with_0() {
    unless_skipped(require_root(), || {
        let sandbox = sandbox(User::Root);
        let manager = UnixDatagram::bind(sandbox.path().join("notify")).unwrap();
        manager.set_read_timeout(Some(COMMAND_LIMIT)).unwrap();
        let mut command = helper(&sandbox, &inside(&sandbox, "rw"));
        command.arg("--foreground").env("NOTIFY_SOCKET", sandbox.path().join("notify")).stdout(Stdio::null());
        let mut daemon = command.spawn().unwrap();
        let mut message = [0; 256];
        let length = manager.recv(&mut message).unwrap();
        assert!(message[..length].starts_with(b"READY=1\n"), "the first news");
        assert_eq!(sandbox.mounts().len(), 1);
        unmount(&sandbox);
        let status = wait_for("the daemon to end", COMMAND_LIMIT, || daemon.try_wait().unwrap());
        assert!(status.success(), "{status}");
    });
}

#[rstest]
fn a_lazy_umount_ends_the_daemon_with_0_after_the_last_user_or_when_told(#[values(false, true)] is_told: bool) {
    unless_skipped(require_root(), || {
        let sandbox = sandbox(User::Root);
        fs::write(sandbox.source().join("file"), "content").unwrap();
        let mut command = helper(&sandbox, &inside(&sandbox, "rw"));
        let mut daemon = command.arg("--foreground").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for("the mount", COMMAND_LIMIT, || (sandbox.mounts().len() == 1).then_some(()));
        let open = fs::File::open(sandbox.mountpoint().join("file")).unwrap();
        let mut umount = sandbox.client("umount");
        umount.arg("--lazy").arg(sandbox.mountpoint());
        assert_silent_success(umount);
        let socket = text(&sandbox.socket());
        wait_for("the daemon to say so", COMMAND_LIMIT, || {
            let said = sandbox.run(["health", "--socket", &socket]).stdout;
            String::from_utf8(said).unwrap().contains("the daemon ends with the last of them").then_some(())
        });
        assert_eq!(std::io::read_to_string(&open).unwrap(), "content");
        assert_eq!(daemon.try_wait().unwrap(), None);
        if is_told {
            let pid = nix::unistd::Pid::from_raw(daemon.id().cast_signed());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        }
        let held = is_told.then_some(open);
        let status = wait_for("the daemon to end", COMMAND_LIMIT, || daemon.try_wait().unwrap());
        assert!(status.success(), "{status}");
        if let Some(open) = held {
            // Its server is left with the last user, and the same place is free.
            mount(&sandbox, "rw");
            assert_eq!(std::os::unix::fs::FileExt::read_at(&open, &mut [0; 16], 0).unwrap(), 7);
            drop(open);
            unmount(&sandbox);
        }
        sandbox.assert_nothing_left();
    });
}

/// A journal of the test's own stands where journald would, in a mount namespace that nobody else is in.
#[test]
fn the_daemon_logs_to_the_journal() {
    unless_skipped(require_root(), || {
        let sandbox = sandbox(User::Root);
        let [lines, entries] = ["stdout", "socket"].map(|name| sandbox.path().join(name));
        let stream = UnixListener::bind(&lines).unwrap();
        let journal = UnixDatagram::bind(&entries).unwrap();
        journal.set_read_timeout(Some(COMMAND_LIMIT)).unwrap();
        let script = "mount -t tmpfs none /run && mkdir -p /run/systemd/journal \
                      && ln -s \"$1\" \"$2\" /run/systemd/journal && shift 2 && exec \"$@\"";
        let mut command = sandbox.client("unshare");
        command.args(["--mount", "sh", "-c", script, "sh"]).args([&lines, &entries]);
        // exec(1) of a POSIX shell sets no argv[0].
        let link = sandbox.path().join("mount.lighthouse-fs");
        symlink(sandbox.program_path(), &link).unwrap();
        command.arg(link).args([sandbox.source(), sandbox.mountpoint()]).args(["-o", &inside(&sandbox, "rw")]);
        assert_silent_success(command);

        let mut head = [0; 25];
        stream.accept().unwrap().0.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"lighthouse-fs\n\n6\n1\n0\n0\n0\n");
        let pid = nix::unistd::Pid::from_raw(daemon(&sandbox).pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let entry = wait_for("an entry about it", COMMAND_LIMIT, || {
            let mut entry = vec![0; 1 << 16];
            let length = journal.recv(&mut entry).expect("an entry");
            let entry = String::from_utf8_lossy(&entry[..length]).into_owned();
            entry.contains("SIGTERM: unmounting").then_some(entry)
        });
        assert!(entry.contains("SYSLOG_IDENTIFIER") && entry.contains("PRIORITY"), "{entry}");
        sandbox.assert_nothing_left();
    });
}

#[test]
fn the_mount_outlives_its_daemon_and_gets_another() {
    unless_skipped(Way::any().possible(), || {
        let sandbox = sandbox(Way::any().user);
        mount(&sandbox, "rw");
        let first = daemon(&sandbox);
        let pid = nix::unistd::Pid::from_raw(first.pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        wait_for("the daemon to end", COMMAND_LIMIT, || (!first.is_alive()).then_some(()));
        sandbox.user().act(|| fs::write(sandbox.mountpoint().join("file"), "content").unwrap());
        mount(&sandbox, "rw");
        assert_ne!(daemon(&sandbox).pid, first.pid);
        assert_eq!(sandbox.mounts().len(), 1);
        unmount(&sandbox);
    });
}

#[test]
fn a_start_that_is_stopped_leaves_nothing() {
    unless_skipped(ROOT_FUSERMOUNT3.possible(), || {
        let sandbox = sandbox(User::Root);
        // libfuse's helper, once the test says so. It is preferred to a later one in PATH by its set-uid bit.
        let script = "#!/bin/sh\n[ \"$1\" = -V ] || { touch reached; until [ -e go ]; do sleep 0.01; done; }\n\
                      PATH=${PATH#*:} exec fusermount3 \"$@\"\n";
        let script = script.replace("reached", &text(&sandbox.path().join("reached")));
        let script = script.replace("-e go", &format!("-e {}", text(&sandbox.path().join("go"))));
        // Written by another process: one of this, forked by another thread, could still have it open.
        let mut write = sandbox.client("sh");
        write.args(["-c", "printf %s \"$1\" > \"$2\" && chmod 4755 \"$2\"", "sh", &script]);
        write.arg(sandbox.path().join("fusermount3"));
        assert_silent_success(write);

        let mut command = helper(&sandbox, &inside(&sandbox, "nofallback,helper=fusermount3"));
        command.env("PATH", format!("{}:{}", text(sandbox.path()), std::env::var("PATH").unwrap()));
        let mut helper = command.stderr(Stdio::null()).spawn().unwrap();
        wait_for("the mount to be tried", COMMAND_LIMIT, || sandbox.path().join("reached").exists().then_some(()));
        let pid = nix::unistd::Pid::from_raw(helper.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let status = wait_for("the helper to end", COMMAND_LIMIT, || helper.try_wait().unwrap());
        assert_eq!(status.code(), Some(32));
        fs::write(sandbox.path().join("go"), "").unwrap();
        wait_for("the daemon to end", COMMAND_LIMIT, || processes_of(sandbox.path()).is_empty().then_some(()));
        sandbox.assert_nothing_left();
    });
}

/// The helper where mount(8) finds it, for one test at a time.
struct Installed {
    _turn: MutexGuard<'static, ()>,
    links: Vec<&'static str>,
}

impl Installed {
    /// An error if somebody has installed one.
    fn new(sandbox: &Sandbox) -> Result<Self, String> {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut installed = Self { _turn: turn, links: Vec::new() };
        for link in HELPERS {
            // What a killed test has left there: a link to a build, or to nothing.
            if fs::read_link(link).is_ok_and(|target| !target.exists() || target == Path::new(PROGRAM)) {
                fs::remove_file(link).unwrap();
            }
            symlink(sandbox.program_path(), link).map_err(|error| format!("{link} cannot be made: {error}"))?;
            installed.links.push(link);
        }
        Ok(installed)
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        for link in &self.links {
            fs::remove_file(link).expect("a link of this test");
        }
    }
}

/// For tests through mount(8) itself.
fn with_mount8(test: impl FnOnce(&Sandbox)) {
    unless_skipped(require_root(), || {
        let sandbox = sandbox(User::Root);
        match Installed::new(&sandbox) {
            Ok(_installed) => test(&sandbox),
            Err(reason) => skip(&reason),
        }
    });
}

#[test]
fn mount_and_umount() {
    with_mount8(|sandbox| {
        let mount = |source: PathBuf, options: &str| {
            let mut command = sandbox.client("mount");
            command.args(["-t", "lighthouse-fs", "-o", options]).arg(source).arg(sandbox.mountpoint());
            run(command)
        };
        assert_eq!(
            mount(sandbox.source(), &inside(sandbox, "helper=direct,noatime")),
            (0, String::new(), String::new())
        );
        fs::write(sandbox.mountpoint().join("file"), "content").unwrap();
        assert_eq!(fs::read_to_string(sandbox.source().join("file")).unwrap(), "content");
        unmount(sandbox);

        let (code, _, errors) = mount(sandbox.path().join("missing"), &inside(sandbox, "rw"));
        assert_eq!(code, 32);
        assert!(errors.contains("missing does not exist"), "{errors}");
        let (code, _, errors) = mount(sandbox.source(), "color=blue");
        assert_eq!(code, 1);
        assert!(errors.contains("unknown option \"color=blue\""), "{errors}");
        sandbox.assert_nothing_left();
    });
}

#[test]
fn fstab() {
    with_mount8(|sandbox| {
        // What fstab(5) has to escape.
        let [source, mountpoint] = ["my source", "my mount"].map(|name| sandbox.path().join(name));
        fs::create_dir(&source).unwrap();
        fs::create_dir(&mountpoint).unwrap();
        fs::write(source.join("file"), "content").unwrap();
        let escaped = |path: &Path| text(path).replace(' ', r"\040");
        let options = inside(sandbox, "ro,nofail,_netdev,user,exec,allow_other,x-systemd.automount");
        let table = sandbox.path().join("fstab");
        let line = format!("{} {} lighthouse-fs {options} 0 0\n", escaped(&source), escaped(&mountpoint));
        fs::write(&table, line).unwrap();

        let mount = |what: &Path| {
            let mut command = sandbox.client("mount");
            command.arg("-T").arg(&table).arg(what);
            command
        };
        assert_silent_success(mount(&mountpoint));
        let seen = run_as(60001, 60001, || fs::read_to_string(mountpoint.join("file")));
        assert_eq!(seen.unwrap(), "content");
        assert_eq!(fs::write(mountpoint.join("file"), "").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
        // `mount -a` sees that it is there.
        assert_silent_success(mount(Path::new("-a")));
        assert_eq!(sandbox.mounts().len(), 1);
        assert!(!sandbox.mounts()[0].options.contains("noexec"), "`exec` takes back what `user` implies");

        let mut umount = sandbox.client("umount");
        umount.arg(&mountpoint);
        assert_silent_success(umount);
        sandbox.assert_nothing_left();
    });
}

/// `mount -o OPTIONS PLACE`, as administrators write it: type, source and the options in force come from mountinfo.
fn remount(sandbox: &Sandbox, options: &str) -> (i32, String, String) {
    let mut command = sandbox.client("mount");
    command.args(["-o", options]).arg(sandbox.mountpoint());
    run(command)
}

#[test]
fn remount_changes_what_the_kernel_does() {
    with_mount8(|sandbox| {
        let done = (0, String::new(), String::new());
        mount(sandbox, "allow_other,suid");
        let file = sandbox.mountpoint().join("file");
        let options = || sandbox.mounts()[0].options.clone();

        assert_eq!(remount(sandbox, "remount,ro"), done);
        assert_eq!(fs::write(&file, "").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
        assert!(!options().contains("nosuid") && options().contains("nodev"), "as they were: {}", options());
        assert_eq!(remount(sandbox, "remount,noexec,nosuid"), done);
        assert_eq!(fs::write(&file, "").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem, "as it was");
        assert!(options().contains("noexec") && options().contains("nosuid"), "{}", options());
        assert_eq!(remount(sandbox, "remount,rw,exec"), done);
        fs::write(&file, "content").unwrap();
        assert!(!options().contains("noexec"), "{}", options());
        assert_eq!(remount(sandbox, "remount"), done);

        let open = fs::File::options().append(true).open(&file).unwrap();
        let (code, _, errors) = remount(sandbox, "remount,ro");
        assert!(code == 32 && errors.contains("cannot be remounted: files are open for writing"), "{errors}");
        drop(open);
        let (code, _, errors) = remount(sandbox, "remount,color=blue");
        assert!(code == 1 && errors.contains("unknown option \"color=blue\""), "{errors}");
        fs::write(&file, "it serves on").unwrap();
        unmount(sandbox);
    });
}

#[test]
fn what_was_mounted_ro_does_not_become_writable() {
    with_mount8(|sandbox| {
        mount(sandbox, "ro");
        let (code, _, errors) = remount(sandbox, "remount,rw");
        assert!(code == 32 && errors.contains("it was mounted `ro`, or its source is"), "{errors}");
        let written = fs::write(sandbox.mountpoint().join("file"), "");
        assert_eq!(written.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
        assert!(sandbox.mounts()[0].options.contains("\"ro\""), "and says so");
        unmount(sandbox);
    });
}

#[test]
fn only_root_remounts() {
    unless_skipped(USER_FUSERMOUNT3.possible(), || {
        let sandbox = sandbox(User::Ordinary);
        mount(&sandbox, "rw");
        let (code, _, errors) = run(helper(&sandbox, "remount,ro"));
        assert_eq!((code, errors.contains("only root may do that")), (32, true), "{errors}");
        unmount(&sandbox);
    });
}
