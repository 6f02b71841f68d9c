//! What others do to a mount while programs work in it: each fault ends as an administrator would expect, is said in the
//! log, and is recovered from where that is possible.
//!
//! With each stand the errors that programs may see. Any other error, and any wrong byte, fails.

// A build with one backend has the same daemon and server otherwise.
#![cfg(all(feature = "fuse2", feature = "fuse3"))]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lighthouse_fs::bench::Crew;
use lighthouse_fs::bench::load::{Failure, Kind, Mismatch, Tally};
use nix::mount::MsFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rstest::rstest;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use support::{
    Backend, COMMAND_LIMIT, Cgroup, Helper, Mount, ROOT_DIRECT, ROOT_FUSERMOUNT3, Sandbox, Tier, USER_FUSERMOUNT,
    USER_FUSERMOUNT3, Way, is_gone, processes_of, require_root, unless_skipped, wait_for,
};

const LIMIT: Duration = Duration::from_secs(120);
/// For workers to finish what they are at, on a loaded machine.
const WORKERS_LIMIT: Duration = Duration::from_secs(60);
/// Requests after which everybody is at work.
const UNDER_WAY: u64 = 3_000;
/// The prober's deadline, where its verdict is waited for.
const DEADLINE: Duration = Duration::from_secs(1);
/// How far the clock is set, in seconds: more than any deadline of a mount that is served, and little, because for others on
/// the machine it is the time too.
const JUMP: i64 = 10;
/// What a server that is to run out of memory has left.
const LITTLE_MEMORY: u64 = 1 << 20;
/// Files that need more than that.
const MANY: u32 = 10_000;

fn send(signal: Signal, pid: i32) {
    kill(Pid::from_raw(pid), signal).expect("a running process");
}

/// Each backend has its share of the ways to mount.
fn backend_for(way: Way) -> Backend {
    if way.helper == Helper::Direct { Backend::Fuse2 } else { Backend::Fuse3 }
}

fn start(way: Way) -> Mount {
    Mount::builder(backend_for(way), way).limit(LIMIT).start()
}

/// Requests that the server has answered.
fn operations(mount: &Mount) -> u64 {
    let status = mount.status();
    let backends = status["backends"].as_array().expect("backends");
    backends.iter().map(|backend| backend["operations"].as_u64().expect("a number")).sum()
}

fn wait_for_health(mount: &Mount, wanted: &str) {
    wait_for(wanted, COMMAND_LIMIT, || (mount.status()["health"] == wanted).then_some(()));
}

/// Programs that work in a mount. A crew for each, because a crew keeps the first failures only.
struct Load(Vec<(Kind, Crew)>);

impl Load {
    /// Starts them in a folder of the mount, and waits until they are at work.
    fn start(mount: &Mount, folder: &str, kinds: &[Kind]) -> Self {
        let before = operations(mount);
        let crews = mount.act(|| {
            fs::create_dir(mount.path(folder)).expect("a folder");
            let crews = kinds.iter().enumerate().map(|(number, &kind)| {
                let dir = mount.path(folder).join(number.to_string());
                fs::create_dir(&dir).expect("a folder");
                (kind, Crew::start(mount.sandbox.program_path(), &dir, &[kind], number as u64).expect("a worker"))
            });
            crews.collect()
        });
        if let Some(number) = kinds.iter().position(|kind| *kind == Kind::Held) {
            // The last thing that it makes before it begins, after a hundred others.
            let source = PathBuf::from(mount.status()["source"].as_str().expect("a source"));
            let last = source.join(folder).join(number.to_string()).join("0-held/home/here");
            wait_for("all to be held", COMMAND_LIMIT, || last.exists().then_some(()));
        }
        wait_for("everybody to work", COMMAND_LIMIT, || (operations(mount) >= before + UNDER_WAY).then_some(()));
        Self(crews)
    }

    fn stop(self) -> Outcome {
        Outcome(self.0.into_iter().map(|(kind, crew)| (kind, crew.stop(WORKERS_LIMIT))).collect())
    }
}

/// What has become of the work.
struct Outcome(Vec<(Kind, Tally)>);

impl Outcome {
    /// Asserts that programs have seen these errors and no others. Where a server ends, errors have more faces: a page of
    /// a map that cannot be had is SIGBUS (which EIO stands for); a read or a write that has done a part says how much; and
    /// a record whose appending was an error may be in the file, which is looked at through the next mount.
    fn assert_only(&self, errors: &[i32]) {
        let server_ends = errors.contains(&libc::EIO);
        let is_expected = |failure: &Failure| match failure.errno {
            Some(errno) => errors.contains(&errno),
            None => {
                let is_cut = failure.error.starts_with("only ") && failure.error.ends_with(" bytes were written");
                server_ends && (is_cut || failure.error.contains("signal: 7 (SIGBUS)"))
            }
        };
        // As far as both go, they are equal.
        let is_short = |mismatch: &Mismatch| mismatch.what == "content" && mismatch.got.starts_with("[] of ");
        let is_long = |mismatch: &Mismatch| mismatch.what == "content" && mismatch.expected.starts_with("[] of ");
        for (kind, tally) in &self.0 {
            let others: Vec<_> = tally.failures.iter().filter(|failure| !is_expected(failure)).collect();
            assert!(others.is_empty(), "{kind}: {others:#?}");
            let may_be = |mismatch: &Mismatch| {
                mismatch.what == "bytes written" || is_short(mismatch) || *kind == Kind::Append && is_long(mismatch)
            };
            let wrong: Vec<_> = tally.wrong.iter().filter(|mismatch| !(server_ends && may_be(mismatch))).collect();
            assert!(wrong.is_empty(), "{kind}: {wrong:#?}");
        }
    }

    fn failed(&self) -> u64 {
        self.0.iter().map(|(_, tally)| tally.failed).sum()
    }

    fn longest(&self) -> Duration {
        let all = self.0.iter().map(|(_, tally)| tally.latency.max());
        Duration::from_micros(all.max().unwrap_or_default())
    }
}

/// Asserts that the mount is as good as new, and ends it.
fn assert_served_well(mount: Mount) {
    let load = Load::start(&mount, "after", &Kind::ALL);
    load.stop().assert_only(&[]);
    mount.assert_all_answered();
    assert_eq!(mount.status()["health"], "healthy");
    mount.stop();
}

/// What ends a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Blow {
    /// Somebody aborts its connection.
    Abort,
    /// SIGKILL.
    Kill,
    /// SIGKILL of it and of its daemon.
    KillBoth,
    /// The kernel, because its memory has run out.
    OutOfMemory,
}

#[rstest]
fn a_server_that_ends_under_load_is_replaced(
    #[values(Blow::Abort, Blow::Kill, Blow::KillBoth, Blow::OutOfMemory)] blow: Blow,
    #[values(ROOT_DIRECT, USER_FUSERMOUNT3)] way: Way,
) {
    let group = if blow == Blow::OutOfMemory { Some(Cgroup::of_memory()) } else { None };
    let possible = require_root().and_then(|()| way.possible());
    match group.transpose() {
        Ok(group) => unless_skipped(possible, || replaced(blow, way, group.as_ref())),
        Err(reason) => support::skip(&reason),
    }
}

fn replaced(blow: Blow, way: Way, group: Option<&Cgroup>) {
    let mut mount = start(way);
    let server = mount.server_pid().expect("a server");
    let load = Load::start(&mount, "before", &Kind::ALL);
    let said = match blow {
        Blow::Abort => {
            fs::write(format!("/sys/fs/fuse/connections/{}/abort", mount.connection_id()), "1").unwrap();
            "somebody has aborted the connection"
        }
        Blow::Kill => {
            send(Signal::SIGKILL, server);
            "the serving process was ended by SIGKILL (9)"
        }
        Blow::KillBoth => {
            // So that it cannot clear away.
            send(Signal::SIGSTOP, mount.daemon_pid());
            send(Signal::SIGKILL, server);
            wait_for("the server to end", COMMAND_LIMIT, || is_gone(server).then_some(()));
            mount.kill_daemon();
            mount.start_next_daemon();
            "a dead mount, left by an earlier crash, was taken away"
        }
        Blow::OutOfMemory => {
            let group = group.expect("a control group");
            let source = mount.source_path("many");
            fs::create_dir(&source).unwrap();
            (0..MANY).for_each(|number| drop(fs::File::create_new(source.join(number.to_string())).unwrap()));
            group.limit_memory(LITTLE_MEMORY);
            group.admit(server);
            // Of each file that programs know, the server has a descriptor, and the kernel gives none of that back.
            let names: Vec<_> = (0..MANY).map(|number| mount.path("many").join(number.to_string())).collect();
            mount.act(|| names.iter().try_for_each(|name| fs::symlink_metadata(name).map(drop))).unwrap_err();
            wait_for("memory to run out", COMMAND_LIMIT, || (group.killed() > 0).then_some(()));
            "the serving process was ended by SIGKILL (9)"
        }
    };
    mount.wait_for_successor(server);
    wait_for_health(&mount, "healthy");
    let outcome = load.stop();
    assert!(outcome.failed() > 0, "nobody has noticed");
    // ECONNABORTED for what the server had in hand, ENOTCONN afterwards, EIO for pages; and ENOENT, because between the dead
    // mount and the next one there is none.
    outcome.assert_only(&[libc::ENOTCONN, libc::ECONNABORTED, libc::EIO, libc::ENOENT]);
    assert!(mount.log().contains(said), "{}", mount.log());
    assert_eq!(mount.sandbox.mounts().len(), 1, "the dead mount is gone");
    assert_served_well(mount);
}

/// What must disturb nobody.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Nuisance {
    /// SIGSTOP, and SIGCONT later.
    DaemonStopped,
    /// The same, for longer than the prober waits.
    ServerStopped,
    /// SIGKILL of the child that asks through the mount, one after the other.
    ProbersKilled,
    /// Somebody sets the clock.
    ClockJumps,
}

#[rstest]
fn what_disturbs_nobody(
    #[values(Nuisance::DaemonStopped, Nuisance::ServerStopped, Nuisance::ProbersKilled, Nuisance::ClockJumps)]
    nuisance: Nuisance,
) {
    if nuisance == Nuisance::ClockJumps && Tier::current() == Tier::Quick {
        return support::skip("sets the machine's clock for a moment: `make test-full`");
    }
    unless_skipped(require_root(), || undisturbed(nuisance));
}

fn undisturbed(nuisance: Nuisance) {
    // As long as somebody's debugger may take.
    let pause = Duration::from_secs(if Tier::current() == Tier::Quick { 2 } else { 10 });
    let mut builder = Mount::builder(backend_for(ROOT_DIRECT), ROOT_DIRECT).limit(LIMIT);
    if matches!(nuisance, Nuisance::ServerStopped | Nuisance::ClockJumps) {
        builder = builder.probe_deadline(DEADLINE);
    }
    let mount = builder.start();
    let server = mount.server_pid().expect("a server");
    let load = Load::start(&mount, "before", &Kind::ALL);
    match nuisance {
        Nuisance::DaemonStopped => {
            send(Signal::SIGSTOP, mount.daemon_pid());
            std::thread::sleep(pause);
            fs::write(mount.path("meanwhile"), "served").unwrap();
            assert_eq!(fs::read(mount.source_path("meanwhile")).unwrap(), b"served");
            send(Signal::SIGCONT, mount.daemon_pid());
        }
        Nuisance::ServerStopped => {
            send(Signal::SIGSTOP, server);
            std::thread::sleep(pause);
            wait_for_health(&mount, "unhealthy");
            send(Signal::SIGCONT, server);
            wait_for_health(&mount, "healthy");
            assert!(mount.log().contains("the mount answers again"), "{}", mount.log());
        }
        Nuisance::ProbersKilled => {
            let mut dead = Vec::new();
            for _ in 0..5 {
                let prober = wait_for("another prober", COMMAND_LIMIT, || {
                    child_of(&mount.sandbox, "probe").filter(|pid| !dead.contains(pid))
                });
                send(Signal::SIGKILL, prober);
                dead.push(prober);
            }
            wait_for("an answer to the next one", COMMAND_LIMIT, || {
                (mount.status()["probe"]["state"] == "answered").then_some(())
            });
            assert!(mount.log().contains("the prober has ended; the next one follows"), "{}", mount.log());
        }
        Nuisance::ClockJumps => match SetClock::start() {
            Ok(mut clock) => {
                for seconds in [JUMP, -JUMP, JUMP] {
                    clock.set(seconds);
                    fs::write(mount.path("meanwhile"), "served").unwrap();
                    let before = operations(&mount);
                    wait_for("the work to go on", COMMAND_LIMIT, || (operations(&mount) > before).then_some(()));
                    assert_eq!(mount.status()["health"], "healthy");
                }
            }
            Err(reason) => support::skip(&reason),
        },
    }
    let outcome = load.stop();
    outcome.assert_only(&[]);
    if nuisance == Nuisance::ServerStopped {
        assert!(outcome.longest() >= pause, "it was {:?}", outcome.longest());
    } else {
        assert!(!mount.log().contains("has not answered the prober"), "{}", mount.log());
    }
    assert_eq!(mount.server_pid(), Some(server), "nobody was replaced");
    assert_served_well(mount);
}

/// A process of the sandbox that was started with this first argument.
fn child_of(sandbox: &Sandbox, argument: &str) -> Option<i32> {
    let is_it = |line: Vec<String>| line.get(1).is_some_and(|word| word == argument);
    processes_of(sandbox.path()).into_iter().find(|process| process.cmdline().is_ok_and(is_it)).map(|found| found.pid)
}

const CLOCK_MARK: &str = "LIGHTHOUSE_FS_TEST_CLOCK";

/// Sets the machine's clock, and sets it right when it is dropped. Another process does that, which is not ended with the
/// sandbox and sees the end of this one, however it comes. A time name space would be no replacement: it has no clock for
/// the time of day, and its offsets are those that a process begins with, so that nothing jumps.
struct SetClock {
    process: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl SetClock {
    /// What is missing, if this clock cannot be set.
    fn start() -> Result<Self, String> {
        let mut process = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "clock", "--nocapture", "--test-threads=1"])
            .env(CLOCK_MARK, "1")
            // Whoever ends the test, by Ctrl-C or by its process group, does not end this.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let answers = BufReader::new(process.stdout.take().expect("a pipe"));
        let mut clock = Self { process, answers };
        clock.ask(0).map(|()| clock)
    }

    /// This far from the right time.
    fn set(&mut self, seconds: i64) {
        self.ask(seconds).expect("a clock that could be set before");
    }

    fn ask(&mut self, seconds: i64) -> Result<(), String> {
        writeln!(self.process.stdin.as_mut().expect("a pipe"), "{seconds}").expect("a process that listens");
        loop {
            let mut line = String::new();
            assert_ne!(self.answers.read_line(&mut line).expect("a line"), 0, "the process has ended");
            // The test framework has lines of its own.
            match line.trim().strip_prefix("clock: ") {
                Some("set") => return Ok(()),
                Some(error) => return Err(format!("the clock cannot be set: {error}")),
                None => {}
            }
        }
    }
}

impl Drop for SetClock {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        self.process.wait().expect("a process");
    }
}

/// Not a test: the process that sets the clock for another.
#[test]
fn clock() {
    if std::env::var_os(CLOCK_MARK).is_none() {
        return;
    }
    let nanoseconds = |time: Timespec| i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
    let now = |clock| nanoseconds(clock_gettime(clock));
    let right = now(ClockId::Realtime) - now(ClockId::Monotonic);
    let set = |seconds: i64| {
        let time = right + now(ClockId::Monotonic) + i128::from(seconds) * 1_000_000_000;
        let part = |number: i128| i64::try_from(number).expect("a time of this century");
        let time = Timespec { tv_sec: part(time / 1_000_000_000), tv_nsec: part(time % 1_000_000_000) };
        clock_settime(ClockId::Realtime, time)
    };
    for line in std::io::stdin().lines() {
        match set(line.unwrap().parse().unwrap()) {
            Ok(()) => println!("\nclock: set"),
            // It is right as it is.
            Err(error) => return println!("\nclock: {error}"),
        }
    }
    set(0).unwrap();
}

/// `umount` or the helper's `-u`, perhaps lazily, as whoever has mounted.
fn unmount(mount: &Mount, way: Way, lazily: bool) -> std::process::Output {
    let mut command = match way.helper {
        Helper::Direct => mount.sandbox.client("umount"),
        helper => {
            let mut command = mount.sandbox.client(helper.name());
            command.arg("-u");
            command
        }
    };
    if lazily {
        command.arg(if way.helper == Helper::Direct { "-l" } else { "-z" });
    }
    command.arg(mount.sandbox.mountpoint());
    mount.act(|| assert_cmd::Command::from_std(command).timeout(COMMAND_LIMIT).output().expect("a program"))
}

#[rstest]
fn an_unmount_by_somebody_else_is_refused_while_programs_work(
    #[values(ROOT_DIRECT, USER_FUSERMOUNT, USER_FUSERMOUNT3)] way: Way,
) {
    unless_skipped(way.possible(), || {
        let mut mount = start(way);
        let load = Load::start(&mount, "before", &Kind::ALL);
        let refused = unmount(&mount, way, false);
        assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("busy"), "{refused:?}");
        load.stop().assert_only(&[]);
        assert_eq!(mount.status()["health"], "healthy");
        // The prober may be looking at it.
        wait_for("the unmount", COMMAND_LIMIT, || unmount(&mount, way, false).status.success().then_some(()));
        assert!(mount.wait().success(), "{}", mount.log());
        assert!(mount.log().contains("somebody else has unmounted it; nothing is left to serve"), "{}", mount.log());
        mount.sandbox.assert_nothing_left();
    });
}

/// Who has something open works on to the end; who comes by path finds what is below.
#[rstest]
fn a_lazy_unmount_by_somebody_else_ends_with_the_last_program(
    #[values(ROOT_DIRECT, USER_FUSERMOUNT, USER_FUSERMOUNT3)] way: Way,
) {
    unless_skipped(way.possible(), || {
        let mut mount = start(way);
        let load = Load::start(&mount, "before", &Kind::ALL);
        let done = unmount(&mount, way, true);
        assert!(done.status.success(), "{done:?}");
        // The prober sees it first, or the server.
        wait_for("status to say so", COMMAND_LIMIT, || {
            let status = mount.status();
            let is_said = status["reasons"].to_string().contains("somebody else has unmounted it");
            (is_said && status["health"] == "unhealthy").then_some(())
        });
        let outcome = load.stop();
        outcome.assert_only(&[libc::ENOENT]);
        // And whoever asks for the path of the working directory.
        let by_path = [Kind::Metadata, Kind::Append, Kind::Held];
        for (kind, tally) in outcome.0.iter().filter(|(kind, _)| !by_path.contains(kind)) {
            assert!(tally.is_clean(), "{kind}: {tally:?}");
        }
        assert!(mount.wait().success(), "{}", mount.log());
        assert!(mount.log().contains("somebody else has unmounted it; nothing is left to serve"), "{}", mount.log());
        assert_eq!(fs::read_dir(mount.sandbox.mountpoint()).unwrap().count(), 0, "nothing was written below the mount");
        mount.sandbox.assert_nothing_left();
    });
}

/// A file system of its own to serve.
struct OwnFileSystem(tempfile::TempDir);

impl OwnFileSystem {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        nix::mount::mount(Some("source"), folder.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        Self(folder)
    }

    fn remount(&self, flags: MsFlags) -> nix::Result<()> {
        nix::mount::mount(None::<&str>, self.0.path(), None::<&str>, MsFlags::MS_REMOUNT | flags, None::<&str>)
    }
}

impl Drop for OwnFileSystem {
    fn drop(&mut self) {
        nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH).expect("a mount of ours");
    }
}

#[test]
fn a_source_that_becomes_read_only_under_load() {
    unless_skipped(require_root(), || {
        let source = OwnFileSystem::new();
        let mount = Mount::builder(backend_for(ROOT_DIRECT), ROOT_DIRECT).limit(LIMIT).source(source.0.path()).start();
        // Those that keep nothing open for writing: the kernel refuses as long as somebody does.
        let load = Load::start(&mount, "before", &[Kind::Metadata, Kind::Metadata]);
        wait_for("the source to be read-only", COMMAND_LIMIT, || source.remount(MsFlags::MS_RDONLY).ok());
        assert_eq!(fs::write(mount.path("file"), "").unwrap_err().raw_os_error(), Some(libc::EROFS));
        assert_eq!(mount.status()["health"], "healthy", "it is the source's own answer");
        source.remount(MsFlags::empty()).unwrap();
        let outcome = load.stop();
        assert!(outcome.failed() > 0, "nobody has noticed");
        outcome.assert_only(&[libc::EROFS]);
        assert_served_well(mount);
    });
}

/// Stands for `fusermount3`, and stops itself in the middle if it is told to, so that it can be killed there.
struct Helpless {
    folder: PathBuf,
}

impl Helpless {
    fn new(sandbox: &Sandbox) -> Self {
        let real = lighthouse_fs::connection::helper::find(Helper::Fusermount3).expect("a helper").path;
        let folder = sandbox.path().join("bin");
        let script = format!(
            "#!/bin/sh
            [ \"$1\" = -V ] && exec {real} -V
            case $(cat {folder}/stop-at 2>/dev/null) in
            begin) kill -STOP $$ ;;
            mounted)
                exec 5<>/dev/fuse
                for place; do :; done
                mount -i -t fuse.lighthouse-fs -o fd=5,rootmode=40000,user_id=0,group_id=0 lighthouse-fs \"$place\"
                kill -STOP $$ ;;
            esac
            exec {real} \"$@\"",
            real = real.display(),
            folder = folder.display(),
        );
        fs::create_dir(&folder).unwrap();
        // Written by another process: were it this one, a fork at the wrong moment would make it "text file busy". Set-uid
        // has no effect on a script; without it the real one would be preferred.
        let mut write = sandbox.client("sh");
        write.args(["-ec", "printf %s \"$1\" > \"$2\"; chmod 4755 \"$2\"", "sh", &script]);
        assert!(write.arg(folder.join("fusermount3")).status().unwrap().success());
        Self { folder }
    }

    fn path(&self) -> String {
        format!("{}:{}", self.folder.display(), std::env::var("PATH").unwrap())
    }

    /// From now on it stops at this point.
    fn stop_at(&self, point: &str) {
        fs::write(self.folder.join("stop-at"), point).unwrap();
    }

    /// Waits until it has stopped, and kills it; what is called from now on works.
    fn kill(&self, sandbox: &Sandbox) {
        let stopped = wait_for("the helper to stop", COMMAND_LIMIT, || {
            let is_stopped = |process: &procfs::process::Process| {
                let is_it = |line: Vec<String>| line.iter().any(|word| Path::new(word).starts_with(&self.folder));
                process.cmdline().is_ok_and(is_it) && process.stat().is_ok_and(|stat| stat.state == 'T')
            };
            processes_of(sandbox.path()).into_iter().find(is_stopped)
        });
        fs::remove_file(self.folder.join("stop-at")).unwrap();
        send(Signal::SIGKILL, stopped.pid);
    }
}

#[rstest]
fn a_helper_that_is_killed_fails_the_start(#[values("begin", "mounted")] point: &str) {
    unless_skipped(ROOT_FUSERMOUNT3.possible(), || {
        let sandbox = Sandbox::new(ROOT_FUSERMOUNT3.user, LIMIT);
        let helper = Helpless::new(&sandbox);
        helper.stop_at(point);
        let mut command = sandbox.program();
        command.args(["serve", "--helper", "fusermount3", "--source"]).arg(sandbox.source()).arg("--mountpoint");
        command.arg(sandbox.mountpoint()).arg("--socket").arg(sandbox.socket()).env("PATH", helper.path());
        let daemon = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        helper.kill(&sandbox);
        let output = daemon.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("was ended by SIGKILL while it mounted at"), "{said}");
        sandbox.assert_nothing_left();
        assert!(!sandbox.socket().exists(), "the control socket stays behind");
    });
}

#[rstest]
fn a_helper_that_is_killed_is_called_again_for_what_was_served(#[values("begin", "mounted")] point: &str) {
    unless_skipped(ROOT_FUSERMOUNT3.possible(), || {
        let (mount, helper) = start_with_helper();
        let server = mount.server_pid().expect("a server");
        helper.stop_at(point);
        send(Signal::SIGKILL, server);
        helper.kill(&mount.sandbox);
        mount.wait_for_successor(server);
        wait_for_health(&mount, "healthy");
        assert!(mount.log().contains("was ended by SIGKILL while it mounted at"), "{}", mount.log());
        assert_eq!(mount.sandbox.mounts().len(), 1, "nothing is left of the attempt");
        assert_served_well(mount);
    });
}

#[test]
fn a_helper_that_is_killed_while_it_unmounts_is_called_again() {
    unless_skipped(ROOT_FUSERMOUNT3.possible(), || {
        let (mut mount, helper) = start_with_helper();
        helper.stop_at("begin");
        send(Signal::SIGTERM, mount.daemon_pid());
        helper.kill(&mount.sandbox);
        assert!(mount.wait().success(), "{}", mount.log());
        mount.sandbox.assert_nothing_left();
    });
}

fn start_with_helper() -> (Mount, Helpless) {
    let mut helper = None;
    let builder = Mount::builder(backend_for(ROOT_FUSERMOUNT3), ROOT_FUSERMOUNT3).limit(LIMIT);
    let mount = builder.start_with(|sandbox, command| {
        let made = helper.insert(Helpless::new(sandbox));
        command.env("PATH", made.path());
    });
    (mount, helper.expect("a helper"))
}
