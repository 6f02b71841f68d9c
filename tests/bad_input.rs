//! Bad input: each with a message that docs/troubleshooting.md explains, the right exit code, and nothing left behind.

#[macro_use]
mod support;

use std::fs::{self, File, Permissions};
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rstest::rstest;
use support::{
    Backend, COMMAND_LIMIT, Cgroup, Mount, Sandbox, USER_FUSERMOUNT, USER_FUSERMOUNT3, User, Way, is_gone,
    processes_of, require_root, unless_skipped, wait_for,
};

const LIMIT: Duration = Duration::from_secs(60);
const TROUBLESHOOTING: &str = include_str!("../docs/troubleshooting.md");

for_each_way! {
    a_dead_mount_is_taken_away_at_start
}

/// The backend for tests to which it does not matter.
fn any_backend() -> Backend {
    Backend::ALL.into_iter().find(|backend| backend.is_built_in()).expect("a build with a backend")
}

/// Whether this user can be had here.
fn can_be(user: User) -> Result<(), String> {
    if user == User::Root { require_root() } else { Ok(()) }
}

/// `serve` with everything right; later options win over none of these, so tests put in their own.
fn serve(sandbox: &Sandbox) -> Command {
    serve_at(sandbox, &sandbox.source(), &sandbox.mountpoint())
}

fn serve_at(sandbox: &Sandbox, source: &Path, mountpoint: &Path) -> Command {
    let mut command = sandbox.program();
    command.arg("serve").arg("--source").arg(source).arg("--mountpoint").arg(mountpoint);
    command.arg("--socket").arg(sandbox.socket());
    command
}

/// The same command in a mount namespace of its own, in which `setup` was done by root.
fn in_namespace(sandbox: &Sandbox, setup: &str, command: &Command) -> Command {
    let mut outer = sandbox.client("unshare");
    outer.args(["--mount", "sh", "-ec", &format!("{setup}\nexec \"$@\""), "sh"]);
    let (uid, gid) = sandbox.user().ids();
    if sandbox.user().is_another() {
        outer.args(
            [format!("setpriv --reuid={uid} --regid={gid} --clear-groups --")].iter().flat_map(|all| all.split(' ')),
        );
    }
    outer.arg(command.get_program()).args(command.get_args());
    outer.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    outer
}

fn run(command: Command) -> Output {
    assert_cmd::Command::from_std(command).timeout(COMMAND_LIMIT).output().expect("the program")
}

/// Asserts that the command is refused, for this reason, and with this exit code; what it says, it says once, and the
/// document explains it.
fn assert_refused(command: Command, code: i32, why: &str) {
    let output = run(command);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{errors}");
    // What is wrong with a flag begins with the flag.
    let is_message = |line: &&str| line.starts_with("error: ") || line.starts_with("--");
    let message = errors.lines().find(is_message).unwrap_or_else(|| panic!("{errors}"));
    assert!(message.contains(why), "not {why:?}: {message}");
    let said = message.trim_start_matches("error: ");
    assert_eq!(errors.matches(said).count(), 1, "said more than once: {errors}");
    let explained = quoted().any(|quoted| is_like(message, quoted));
    assert!(explained, "docs/troubleshooting.md does not have it: {message}");
}

fn assert_nothing_left(sandbox: &Sandbox) {
    sandbox.assert_nothing_left();
    assert!(!sandbox.socket().exists(), "the control socket stays behind");
}

/// The messages in the document: its headings in backquotes. `…` stands for what differs.
fn quoted() -> impl Iterator<Item = &'static str> {
    TROUBLESHOOTING.lines().filter_map(|line| line.strip_prefix("### `` ")?.strip_suffix(" ``"))
}

/// Whether the parts of a quoted message occur in one that was seen, in this order.
fn is_like(message: &str, quoted: &str) -> bool {
    let mut rest = message;
    quoted.split('…').all(|part| match rest.find(part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

/// All source text below a folder of the repository.
fn source_below(folder: &str) -> String {
    let mut source = String::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else {
                source += &fs::read_to_string(entry).unwrap().replace("\\\"", "\"");
            }
        }
    }
    source
}

#[test]
fn the_document_quotes_what_the_program_says() {
    let source = source_below("src");
    assert!(quoted().count() > 30, "headings with messages");
    for message in quoted() {
        // Reason and remedy may come from two places, and are joined by these.
        for part in message.split(['…', ';', ':']).map(str::trim) {
            assert!(source.contains(part), "nothing in src/ says {part:?} of {message:?}");
        }
    }
}

/// Of whoever asks a daemon, and of the daemon: errors of other modules come out in more than one way.
#[test]
fn the_document_has_the_errors_of_daemon_and_api() {
    let source = source_below("src/daemon") + &source_below("src/api");
    let errors = source.split("#[error(").skip(1).filter_map(|rest| rest.trim_start().strip_prefix('"'));
    let message = |rest: &'_ str| {
        let line = rest.lines().next().unwrap_or_default();
        let end = line.find("\", ").or_else(|| line.rfind('"')).unwrap_or(line.len());
        line[..end].to_owned()
    };
    let messages: Vec<_> = errors.map(message).collect();
    assert!(messages.len() > 10, "{messages:?}");
    for message in messages {
        // Around what differs, in braces.
        let parts = message.split('{').filter_map(|part| part.rsplit('}').next()).map(str::trim);
        let parts: Vec<_> = parts.filter(|part| part.len() > 6).collect();
        let explained = quoted().any(|quoted| parts.iter().all(|part| quoted.contains(part)));
        assert!(explained, "docs/troubleshooting.md does not have {parts:?}");
    }
}

#[rstest]
#[case::no_source("nowhere", "mountpoint", 1, "nowhere does not exist: make it")]
#[case::a_file_as_source("file", "mountpoint", 1, "file is not a directory")]
#[case::no_mount_point("source", "nowhere", 1, "nowhere does not exist: make it")]
#[case::a_file_as_mount_point("source", "file", 1, "file is not a directory")]
#[case::a_link_as_mount_point("source", "link", 1, "link is a symbolic link")]
#[case::something_in_the_mount_point("source", "full", 1, "full is not empty")]
#[case::a_mount_point_in_the_source("source", "source/in", 78, "lie in each other")]
#[case::a_source_in_the_mount_point("full/in", "full", 78, "lie in each other")]
#[case::a_source_that_leads_to_the_mount_point("link", "mountpoint", 78, "lie in each other")]
fn places_that_cannot_be(
    #[case] source: &str,
    #[case] mountpoint: &str,
    #[case] code: i32,
    #[case] why: &str,
    #[values(User::Root, User::Ordinary)] user: User,
) {
    unless_skipped(can_be(user), || {
        let sandbox = Sandbox::new(user, LIMIT);
        let at = |name: &str| sandbox.path().join(name);
        fs::write(at("file"), "").unwrap();
        symlink("mountpoint", at("link")).unwrap();
        fs::create_dir_all(at("full/in")).unwrap();
        fs::create_dir(at("source/in")).unwrap();
        assert_refused(serve_at(&sandbox, &at(source), &at(mountpoint)), code, why);
        assert_nothing_left(&sandbox);
        assert!(at("full/in").exists());
    });
}

#[test]
fn a_group_that_is_not_there() {
    let sandbox = Sandbox::new(User::Ordinary, LIMIT);
    let table = support::service::mount(&sandbox, "one", "");
    let head = "[daemon]\nsocket_group = \"no-such-group\"\n";
    support::service::write_config(&sandbox, format!("{head}{table}")).unwrap();
    let config = support::service::config(&sandbox);
    let mut command = sandbox.program();
    command.arg("serve").arg("--config").arg(&config).arg("--socket").arg(sandbox.socket());
    assert_refused(command, 1, "make it (`groupadd --system no-such-group`)");
    assert_nothing_left(&sandbox);
    // Packages are built, and their files checked, where no such group is.
    let mut command = sandbox.program();
    command.arg("check-config").arg(&config);
    let output = run(command);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    let warned = "daemon.socket_group: warning: on this machine there is no group \"no-such-group\"";
    assert!(errors.contains(warned), "{errors}");
}

#[test]
fn a_socket_path_that_is_too_long() {
    let sandbox = Sandbox::new(User::Ordinary, LIMIT);
    let socket = sandbox.path().join("run").join("s".repeat(100));
    let mut command = sandbox.program();
    command.arg("serve").arg("--source").arg(sandbox.source()).arg("--mountpoint").arg(sandbox.mountpoint());
    command.arg("--socket").arg(&socket);
    assert_refused(command, 78, "bytes, and the kernel takes 107");
    assert_nothing_left(&sandbox);
    let table = support::service::mount(&sandbox, "one", "");
    support::service::write_config(&sandbox, format!("[daemon]\nsocket = {socket:?}\n{table}")).unwrap();
    let mut command = sandbox.program();
    command.arg("check-config").arg(support::service::config(&sandbox));
    let output = run(command);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(78) && errors.contains("choose a shorter `socket`"), "{errors}");
    assert!(errors.contains("config.toml:6: daemon.socket: "), "{errors}");
}

#[rstest]
#[case::not_at_all(0o000)]
#[case::not_listed(0o300)]
#[case::not_entered(0o600)]
fn a_source_that_cannot_be_read(#[case] mode: u32) {
    let sandbox = Sandbox::new(User::Ordinary, LIMIT);
    fs::set_permissions(sandbox.source(), Permissions::from_mode(mode)).unwrap();
    assert_refused(serve(&sandbox), 1, "cannot be read: Permission denied");
    assert_nothing_left(&sandbox);
}

#[rstest]
#[case::socket(Some("mountpoint/control.sock"), None, false, "the control socket ")]
#[case::temporary_folder(None, Some("mountpoint"), false, "the temporary folder ")]
#[case::log(None, None, true, "the log ")]
fn what_the_daemon_needs_lies_outside(
    #[case] socket: Option<&str>,
    #[case] temporary: Option<&str>,
    #[case] log: bool,
    #[case] why: &str,
) {
    let sandbox = Sandbox::new(User::Ordinary, LIMIT);
    let mut command = sandbox.program();
    command.arg("serve").arg("--source").arg(sandbox.source()).arg("--mountpoint").arg(sandbox.mountpoint());
    command.arg("--socket").arg(socket.map_or_else(|| sandbox.socket(), |name| sandbox.path().join(name)));
    if let Some(temporary) = temporary {
        command.env("TMPDIR", sandbox.path().join(temporary));
    }
    if !log {
        assert_refused(command, 78, why);
        return assert_nothing_left(&sandbox);
    }
    // Its last words go where it must not write.
    let file = sandbox.mountpoint().join("log");
    command.stderr(File::create(&file).unwrap()).stdout(Stdio::null());
    assert_eq!(wait(&mut command.spawn().unwrap()).code(), Some(78));
    let said = fs::read_to_string(&file).unwrap();
    assert!(said.contains(why) && said.contains("lies in the mount point"), "{said}");
    assert_nothing_left(&sandbox);
}

#[rstest]
#[case::state_directory("STATE_DIRECTORY", "the state directory ")]
#[case::token_file("LIGHTHOUSE_API_TOKEN_FILE", "the token file ")]
fn links_into_the_mount_point_are_seen(#[case] variable: &str, #[case] why: &str) {
    let sandbox = Sandbox::new(User::Ordinary, LIMIT);
    let link = sandbox.path().join("link");
    symlink(sandbox.mountpoint().join("inside"), &link).unwrap();
    let mut command = serve(&sandbox);
    command.env(variable, link);
    assert_refused(command, 78, why);
    assert_nothing_left(&sandbox);
}

#[test]
fn a_configuration_in_its_own_mount_is_refused() {
    let sandbox = Sandbox::new(User::Ordinary, LIMIT);
    let table = support::service::mount(&sandbox, "one", "");
    support::service::write_config(&sandbox, table).unwrap();
    let inside = sandbox.path().join("run/one/config.toml");
    let config = support::service::config(&sandbox);
    fs::rename(&config, &inside).unwrap();
    symlink(&inside, &config).unwrap();
    let mut command = sandbox.program();
    command.arg("serve").arg("--config").arg(config).arg("--socket").arg(sandbox.socket());
    let output = run(command);
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("the configuration file ") && errors.contains("lies in the mount point"), "{errors}");
    assert_nothing_left(&sandbox);
}

/// Starts a daemon, and waits until it serves.
fn start(sandbox: &Sandbox, mut command: Command) -> Child {
    let file = File::create(sandbox.log()).unwrap();
    let mut daemon = command.stderr(file.try_clone().unwrap()).stdout(file).spawn().unwrap();
    wait_for("the ready line", COMMAND_LIMIT, || {
        assert_eq!(daemon.try_wait().unwrap(), None, "{}", log(sandbox));
        log(sandbox).lines().any(|line| line.starts_with("serving ")).then_some(())
    });
    daemon
}

fn stop(sandbox: &Sandbox, mut daemon: Child) {
    kill(Pid::from_raw(daemon.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert!(wait(&mut daemon).success(), "{}", log(sandbox));
    assert_nothing_left(sandbox);
}

fn log(sandbox: &Sandbox) -> String {
    fs::read_to_string(sandbox.log()).unwrap()
}

fn wait(child: &mut Child) -> std::process::ExitStatus {
    wait_for("the program to end", COMMAND_LIMIT, || child.try_wait().expect("a child"))
}

#[test]
fn a_second_daemon_at_the_same_place() {
    unless_skipped(Way::any().possible(), || {
        let mount = Mount::builder(any_backend(), Way::any()).start();
        let sandbox = &mount.sandbox;
        let other_socket = || {
            let mut command = sandbox.program();
            command.arg("serve").arg("--socket").arg(sandbox.path().join("run/other.sock"));
            command.arg("--source").arg(sandbox.source()).arg("--mountpoint");
            command
        };
        let second = |mountpoint: PathBuf| {
            let mut command = other_socket();
            command.arg(mountpoint);
            command
        };
        assert_refused(second(mount.path("")), 1, "is mounted by Lighthouse FS already: stop the daemon");
        assert_refused(second(mount.path("inside")), 1, "which Lighthouse FS serves: choose");

        let elsewhere = sandbox.path().join("tmp/mnt");
        mount.act(|| fs::create_dir(&elsewhere).unwrap());
        let same_socket = serve_at(sandbox, &sandbox.source(), &elsewhere);
        assert_refused(same_socket, 1, "a daemon is listening on");

        // One that is stuck is not looked at for ever, and not taken away.
        let server = server_of(&mount);
        kill(server, Signal::SIGSTOP).unwrap();
        let process = procfs::process::Process::new(server.as_raw()).unwrap();
        let is_stopped = |task: procfs::ProcResult<procfs::process::Task>| task.unwrap().stat().unwrap().state == 'T';
        wait_for("the server to stop", COMMAND_LIMIT, || process.tasks().unwrap().all(is_stopped).then_some(()));
        assert_refused(second(mount.path("")), 1, "and does not answer: stop the daemon");
        kill(server, Signal::SIGCONT).unwrap();

        assert!(!sandbox.path().join("run/other.sock").exists());
        mount.act(|| fs::write(mount.path("file"), "it serves on").unwrap());
        mount.stop();
    });
}

/// Whoever asks an old mount whether it lives may be killed meanwhile. Nothing is taken away then.
#[test]
fn a_question_to_an_old_mount_that_is_killed() {
    unless_skipped(Way::any().possible(), || {
        let mount = Mount::builder(any_backend(), Way::any()).start();
        let server = server_of(&mount);
        kill(server, Signal::SIGSTOP).unwrap();
        let mut command = mount.sandbox.program();
        command.arg("serve").arg("--source").arg(mount.sandbox.source()).arg("--mountpoint").arg(mount.path(""));
        command.arg("--socket").arg(mount.sandbox.path().join("run/other.sock"));
        std::thread::scope(|threads| {
            let refused = threads.spawn(|| {
                assert_refused(command, 1, "whether it is served cannot be seen: the question was ended by a signal");
            });
            let question = wait_for("the question", COMMAND_LIMIT, || {
                let asks = |line: Vec<String>| line.get(1).is_some_and(|word| word == "statfs");
                let mut all = processes_of(mount.sandbox.path()).into_iter();
                all.find(|process| process.cmdline().is_ok_and(asks))
            });
            kill(Pid::from_raw(question.pid), Signal::SIGKILL).unwrap();
            refused.join().unwrap();
        });
        kill(server, Signal::SIGCONT).unwrap();
        mount.act(|| fs::write(mount.path("file"), "it serves on").unwrap());
        mount.stop();
    });
}

fn a_dead_mount_is_taken_away_at_start(backend: Backend, way: Way) {
    let mount = dead_mount(backend, way);
    let mut command = serve(&mount.sandbox);
    command.args(["--backend", backend.name(), "--helper", way.helper.name()]);
    let again = start(&mount.sandbox, command);
    let log = log(&mount.sandbox);
    assert!(log.contains("a dead mount, left by an earlier crash, was taken away"), "{log}");
    assert_eq!(mount.sandbox.mounts().len(), 1, "the new one alone");
    mount.act(|| fs::write(mount.path("file"), "content").unwrap());
    stop(&mount.sandbox, again);
}

/// The kernel tells nobody but the user who has mounted whether it is dead.
#[test]
fn root_takes_the_dead_mount_of_a_user_away() {
    unless_skipped(require_root().and_then(|()| USER_FUSERMOUNT3.possible()), || {
        let mount = dead_mount(any_backend(), USER_FUSERMOUNT3);
        // In a folder of its own, as root's is: it does not go into the one that another user's servers wait in.
        let socket = mount.sandbox.path().join("root.sock");
        fs::remove_file(mount.sandbox.socket()).unwrap();
        let mut command = mount.sandbox.client(support::PROGRAM);
        command.args(["serve", "--helper", "direct", "--source"]).arg(mount.sandbox.source());
        command.arg("--mountpoint").arg(mount.sandbox.mountpoint()).arg("--socket").arg(socket);
        stop(&mount.sandbox, start(&mount.sandbox, command));
    });
}

fn server_of(mount: &Mount) -> Pid {
    Pid::from_raw(mount.status()["server_pid"].as_i64().unwrap().try_into().unwrap())
}

/// A mount whose daemon and server were killed.
fn dead_mount(backend: Backend, way: Way) -> Mount {
    let mut mount = Mount::builder(backend, way).start();
    let server = server_of(&mount);
    let daemon = Pid::from_raw(mount.daemon_pid());
    // So that neither can clear away after the other.
    kill(daemon, Signal::SIGSTOP).unwrap();
    kill(server, Signal::SIGKILL).unwrap();
    wait_for("the server to end", COMMAND_LIMIT, || is_gone(server.as_raw()).then_some(()));
    kill(daemon, Signal::SIGKILL).unwrap();
    mount.wait();
    assert_eq!(mount.sandbox.mounts().len(), 1, "a dead mount");
    mount
}

/// A mount of root's that nobody answers.
struct Unserved {
    place: PathBuf,
    _device: OwnedFd,
}

impl Unserved {
    fn at(place: PathBuf, kind: &str) -> Self {
        let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        nix::mount::mount(Some("test"), &place, Some(kind), MsFlags::empty(), Some(options.as_str())).unwrap();
        Self { place, _device: device.into() }
    }
}

impl Drop for Unserved {
    fn drop(&mut self) {
        nix::mount::umount2(&self.place, MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_mount_of_another_file_system_is_not_touched() {
    unless_skipped(require_root(), || {
        let sandbox = Sandbox::new(User::Root, LIMIT);
        let other = Unserved::at(sandbox.mountpoint(), "fuse.other");
        assert_refused(serve(&sandbox), 1, "is taken by a mount of type fuse.other");
        drop(other);
        assert_nothing_left(&sandbox);
    });
}

#[rstest]
#[case::missing("", User::Root, "modprobe fuse")]
#[case::missing_for_users("", User::Ordinary, "modprobe fuse")]
#[case::no_driver("mknod -m 666 /dev/fuse c 10 250", User::Root, "modprobe fuse")]
#[case::not_open("mknod -m 600 /dev/fuse c 10 229", User::Ordinary, "mode 0666")]
#[case::forbidden(
    "mknod -m 666 /dev/fuse c 10 229; mount -B /dev/fuse /dev/fuse; mount -o remount,bind,nodev /dev/fuse",
    User::Root,
    "mode 0666"
)]
fn without_the_device(#[case] device: &str, #[case] user: User, #[case] remedy: &str) {
    unless_skipped(require_root(), || {
        let sandbox = Sandbox::new(user, LIMIT);
        let setup = format!("mount -t tmpfs none /dev\nmknod -m 666 /dev/null c 1 3\n{device}");
        let mut command = serve(&sandbox);
        command.args(["--helper", if user == User::Root { "direct" } else { "fusermount3" }]);
        assert_refused(in_namespace(&sandbox, &setup, &command), 1, remedy);
        assert_nothing_left(&sandbox);
    });
}

/// As in a container that was started without the device: the node is there, and may not be used.
#[rstest]
#[case::root(User::Root, "/dev/fuse cannot be opened: Operation not permitted (os error 1); the container may not use")]
#[case::ordinary(User::Ordinary, "Operation not permitted; make it mode 0666")]
fn a_device_that_the_control_group_forbids(#[case] user: User, #[case] why: &str) {
    let possible = require_root().and_then(|()| if user == User::Root { Ok(()) } else { USER_FUSERMOUNT3.possible() });
    match possible.and_then(|()| Cgroup::of_devices()) {
        Ok(group) => {
            let sandbox = Sandbox::new(user, LIMIT);
            group.deny_device(10, 229);
            let mut command = serve(&sandbox);
            command.args(["--helper", if user == User::Root { "direct" } else { "fusermount3" }]);
            let setup = format!("echo $$ > {}", group.members().display());
            assert_refused(in_namespace(&sandbox, &setup, &command), 1, why);
            assert_nothing_left(&sandbox);
        }
        Err(reason) => support::skip(&reason),
    }
}

#[test]
fn no_room_for_the_socket() {
    unless_skipped(require_root(), || {
        let sandbox = Sandbox::new(User::Root, LIMIT);
        // The folder itself is the only inode.
        let setup = format!("mount -t tmpfs -o nr_inodes=1 none {}", sandbox.path().join("run").display());
        let command = in_namespace(&sandbox, &setup, &serve(&sandbox));
        assert_refused(command, 1, "cannot be made: No space left on device");
        assert_nothing_left(&sandbox);
    });
}

#[rstest]
fn no_descriptors_left(
    #[values(4, 8, 12, 16, 20, 24, 32, 48, 64)] limit: u32,
    #[values(User::Root, User::Ordinary)] user: User,
) {
    unless_skipped(can_be(user), || {
        let sandbox = Sandbox::new(user, LIMIT);
        let command = limited(&sandbox, limit);
        assert_refused(command, 1, "raise the limit (`ulimit -n`");
        assert_nothing_left(&sandbox);
    });
}

/// `serve` with this limit of open files.
fn limited(sandbox: &Sandbox, limit: u32) -> Command {
    let mut command = serve(sandbox);
    let set = move || {
        let limit = Some(u64::from(limit));
        let limit = rustix::process::Rlimit { current: limit, maximum: limit };
        Ok(rustix::process::setrlimit(rustix::process::Resource::Nofile, limit)?)
    };
    // SAFETY: one system call, which is allowed between fork and exec.
    unsafe { std::os::unix::process::CommandExt::pre_exec(&mut command, set) };
    command
}

#[test]
fn just_enough_descriptors() {
    unless_skipped(USER_FUSERMOUNT3.possible(), || {
        let sandbox = Sandbox::new(User::Ordinary, LIMIT);
        let mut command = limited(&sandbox, 96);
        command.args(["--helper", "fusermount3"]);
        let daemon = start(&sandbox, command);
        sandbox.user().act(|| fs::write(sandbox.mountpoint().join("file"), "content").unwrap());
        stop(&sandbox, daemon);
    });
}

#[test]
fn a_mount_is_unmounted_with_no_descriptors_left() {
    unless_skipped(require_root(), || {
        let sandbox = Sandbox::new(User::Root, LIMIT);
        let names: Vec<_> = (0..200).map(|number| format!("file-{number}")).collect();
        for name in &names {
            fs::write(sandbox.source().join(name), "").unwrap();
        }
        let mut command = limited(&sandbox, 96);
        command.args(["--helper", "direct"]);
        let daemon = start(&sandbox, command);
        // Each that the kernel knows is one that the server has open.
        let is_refused = |name: &&String| {
            let looked = fs::metadata(sandbox.mountpoint().join(name));
            looked.is_err_and(|error| error.raw_os_error() == Some(libc::EMFILE))
        };
        assert!(names.iter().filter(is_refused).count() > 50);
        stop(&sandbox, daemon);
    });
}

/// Whoever reads the ready line, or systemd's STATUS, gets one line.
#[test]
fn a_mount_point_with_a_line_break() {
    unless_skipped(require_root(), || {
        let sandbox = Sandbox::new(User::Root, LIMIT);
        let place = sandbox.path().join("run/a\nb");
        fs::create_dir(&place).unwrap();
        let daemon = start(&sandbox, serve_at(&sandbox, &sandbox.source(), &place));
        let ready = log(&sandbox).lines().find(|line| line.starts_with("serving ")).unwrap().to_owned();
        assert!(ready.contains("/run/a\u{fffd}b by "), "{ready}");
        stop(&sandbox, daemon);
    });
}

#[test]
fn a_helper_that_is_missing() {
    let sandbox = Sandbox::new(User::Ordinary, LIMIT);
    let mut command = serve(&sandbox);
    // Not `fusermount3`: that is in /usr/bin, where it is found without PATH.
    command.args(["--helper", "fusermount"]).env("PATH", "/nowhere");
    assert_refused(command, 1, "fusermount is not in PATH: install libfuse 2");
    assert_nothing_left(&sandbox);
}

/// libfuse 2's helper without its set-uid bit, in a folder that is returned. (Libfuse 3's is found in /usr/bin all the
/// same.)
fn plain_helper(sandbox: &Sandbox) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let helper = std::env::split_paths(&path).map(|folder| folder.join("fusermount")).find(|path| path.exists());
    let folder = sandbox.path().join("bin");
    fs::create_dir(&folder).unwrap();
    fs::copy(helper.unwrap(), folder.join("fusermount")).unwrap();
    fs::set_permissions(folder.join("fusermount"), Permissions::from_mode(0o755)).unwrap();
    folder
}

#[test]
fn a_helper_that_is_not_set_uid() {
    unless_skipped(USER_FUSERMOUNT.possible(), || {
        let sandbox = Sandbox::new(User::Ordinary, LIMIT);
        let folder = plain_helper(&sandbox);
        let mut command = serve(&sandbox);
        command.args(["--helper", "fusermount"]).env("PATH", &folder);
        assert_refused(command, 1, &format!("`chmod u+s {}`", folder.join("fusermount").display()));
        assert_nothing_left(&sandbox);
    });
}

#[test]
fn a_process_that_may_gain_no_privileges() {
    unless_skipped(USER_FUSERMOUNT3.possible(), || {
        let sandbox = Sandbox::new(User::Ordinary, LIMIT);
        let mut command = serve(&sandbox);
        command.args(["--helper", "fusermount3"]);
        // SAFETY: one system call, which is allowed between fork and exec.
        unsafe {
            std::os::unix::process::CommandExt::pre_exec(&mut command, || Ok(rustix::thread::set_no_new_privs(true)?))
        };
        assert_refused(command, 1, "NoNewPrivileges=no");
        assert_nothing_left(&sandbox);
    });
}

#[rstest]
#[case(USER_FUSERMOUNT)]
#[case(USER_FUSERMOUNT3)]
fn allow_other_where_users_may_not(#[case] way: Way) {
    let allowed =
        fs::read_to_string("/etc/fuse.conf").is_ok_and(|all| all.lines().any(|line| line.trim() == "user_allow_other"));
    let possible = if allowed { Err("/etc/fuse.conf allows it".into()) } else { way.possible() };
    unless_skipped(possible, || {
        let sandbox = Sandbox::new(way.user, LIMIT);
        let mut command = serve(&sandbox);
        command.args(["--allow-other", "--helper", way.helper.name()]);
        assert_refused(command, 1, "put the line `user_allow_other` into /etc/fuse.conf");
        assert_nothing_left(&sandbox);
    });
}

#[rstest]
#[case(USER_FUSERMOUNT)]
#[case(USER_FUSERMOUNT3)]
fn a_mount_point_of_somebody_else(#[case] way: Way) {
    let root = require_root().and_then(|()| way.possible());
    unless_skipped(root, || {
        let sandbox = Sandbox::new(way.user, LIMIT);
        std::os::unix::fs::chown(sandbox.mountpoint(), Some(0), Some(0)).unwrap();
        let mut command = serve(&sandbox);
        command.args(["--helper", way.helper.name()]);
        assert_refused(command, 1, "give the mount point to the user who serves");
        assert_nothing_left(&sandbox);
    });
}

#[test]
fn direct_without_privilege() {
    let sandbox = Sandbox::new(User::Ordinary, LIMIT);
    let mut command = serve(&sandbox);
    command.args(["--helper", "direct"]);
    assert_refused(command, 1, "it needs CAP_SYS_ADMIN: run as root");
    assert_nothing_left(&sandbox);
}

#[test]
fn names_that_nothing_has() {
    unless_skipped(Way::any().possible(), || {
        let mount = Mount::builder(any_backend(), Way::any()).start();
        let ask = |arguments: &[&str]| {
            let mut command = mount.sandbox.program();
            command.args(arguments).arg("--socket").arg(mount.sandbox.socket());
            command
        };
        assert_refused(ask(&["switch", "nobody", "fuse2"]), 1, "no mount is called \"nobody\"");
        assert_refused(ask(&["status", "nobody"]), 1, "no mount is called \"nobody\"");
        let output = run(ask(&["switch", "default", "fuse4"]));
        assert_eq!(output.status.code(), Some(64));
        mount.stop();
    });
}

#[test]
fn a_source_that_is_renamed_is_served_on() {
    unless_skipped(Way::any().possible(), || {
        let mount = Mount::builder(any_backend(), Way::any()).start();
        let away = mount.sandbox.path().join("away");
        mount.act(|| {
            for (from, to) in [(mount.source_path(""), away.clone()), (away.clone(), mount.source_path(""))] {
                fs::rename(from, to).unwrap();
                fs::write(mount.path("file"), "content").unwrap();
                assert_eq!(fs::read_to_string(mount.path("file")).unwrap(), "content");
            }
        });
        mount.stop();
    });
}

#[test]
fn a_source_that_is_removed_is_empty() {
    unless_skipped(Way::any().possible(), || {
        let mount = Mount::builder(any_backend(), Way::any()).start();
        let look = || {
            assert_eq!(fs::read_dir(mount.path("")).unwrap().count(), 0);
            assert_eq!(fs::read(mount.path("file")).unwrap_err().kind(), ErrorKind::NotFound);
            assert_eq!(fs::write(mount.path("new"), "").unwrap_err().kind(), ErrorKind::NotFound);
        };
        mount.act(|| {
            fs::remove_dir(mount.source_path("")).unwrap();
            look();
            // Another directory of the same name is another directory.
            fs::create_dir(mount.source_path("")).unwrap();
            fs::write(mount.source_path("file"), "").unwrap();
            look();
        });
        assert_eq!(mount.status()["health"], "healthy", "the daemon has not gone with it");
        mount.stop();
    });
}

#[test]
fn a_source_that_is_unmounted_lives_until_the_end() {
    unless_skipped(require_root(), || {
        let sandbox = Sandbox::new(User::Root, LIMIT);
        nix::mount::mount(Some("test"), &sandbox.source(), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let daemon = start(&sandbox, serve(&sandbox));
        let busy = nix::mount::umount(&sandbox.source());
        nix::mount::umount2(&sandbox.source(), MntFlags::MNT_DETACH).unwrap();
        assert_eq!(busy, Err(nix::errno::Errno::EBUSY));
        fs::write(sandbox.mountpoint().join("file"), "content").unwrap();
        assert_eq!(fs::read_to_string(sandbox.mountpoint().join("file")).unwrap(), "content");
        assert_eq!(fs::read_dir(sandbox.source()).unwrap().count(), 0, "not what is there now");
        stop(&sandbox, daemon);
    });
}
