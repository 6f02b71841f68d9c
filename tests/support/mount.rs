//! A running daemon with one mount.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::sandbox::{Sandbox, end_everything};
use super::scrape::Scrape;
use super::watchdog::log_tail;
use super::way::Way;
use super::{Backend, COMMAND_LIMIT, MountPoint, wait_for};

const START_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How long a test may take before the watchdog ends it, unless it says otherwise.
const TEST_LIMIT: Duration = Duration::from_secs(60);
/// Where a FUSE descriptor is handed in.
const HANDED_IN: i32 = 7;

/// What a mount is to be like.
#[derive(Debug)]
pub struct Builder {
    backend: Backend,
    way: Way,
    limit: Duration,
    source: Option<PathBuf>,
    program: Option<PathBuf>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    is_helper_named: bool,
    is_place_told: bool,
}

impl Builder {
    /// Admits other users.
    pub fn allow_other(mut self) -> Self {
        self.arguments.push("--allow-other".into());
        self
    }

    /// Refuses writing.
    pub fn read_only(mut self) -> Self {
        self.arguments.push("--read-only".into());
        self
    }

    /// Allows drills.
    pub fn drill(mut self) -> Self {
        self.arguments.push("--drill".into());
        self
    }

    /// Gives the prober less time than five seconds.
    pub fn probe_deadline(mut self, deadline: Duration) -> Self {
        self.arguments.push(format!("--probe-deadline={}ms", deadline.as_millis()));
        self
    }

    /// Nobody asks through the mount but the test.
    pub fn without_prober(self) -> Self {
        self.probe_deadline(Duration::ZERO)
    }

    /// Serves another directory than the sandbox's.
    pub fn source(mut self, source: &Path) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Runs another build of the program.
    pub fn program(mut self, program: Option<&Path>) -> Self {
        self.program = program.map(Into::into);
        self
    }

    /// Lets the program choose the helper.
    pub fn any_helper(mut self) -> Self {
        self.is_helper_named = false;
        self
    }

    /// Does not say where a descriptor that is handed in is mounted.
    pub fn without_place(mut self) -> Self {
        self.is_place_told = false;
        self
    }

    /// Sets a variable for the daemon.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Gives the test more or less time than a minute.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Starts the daemon and waits until its mount answers.
    pub fn start(self) -> Mount {
        self.start_with(|_, _| {})
    }

    /// The same, after `prepare` has done to the sandbox and to the daemon's command what only this test needs.
    pub fn start_with(self, prepare: impl FnOnce(&Sandbox, &mut Command)) -> Mount {
        let mut sandbox = Sandbox::new(self.way.user, self.limit);
        if let Some(program) = &self.program {
            sandbox.set_program(program);
        }
        let mut command = self.command(&sandbox);
        prepare(&sandbox, &mut command);
        Mount::spawn(sandbox, command, self)
    }

    /// Starts the daemon on a FUSE descriptor that `mount` has made and mounted at the sandbox's mount point.
    pub fn start_on_descriptor(self, mount: impl FnOnce(&Sandbox) -> OwnedFd) -> Mount {
        let sandbox = Sandbox::new(self.way.user, self.limit);
        let mut command = self.serve(&sandbox);
        command.arg("--mountpoint").arg(format!("/dev/fd/{HANDED_IN}"));
        if self.is_place_told {
            command.arg("--mounted-at").arg(sandbox.mountpoint());
        }
        let device = FdMapping { parent_fd: mount(&sandbox), child_fd: HANDED_IN };
        command.fd_mappings(vec![device]).expect("one descriptor");
        Mount::spawn(sandbox, command, self)
    }

    fn command(&self, sandbox: &Sandbox) -> Command {
        let mut command = self.serve(sandbox);
        command.arg("--mountpoint").arg(sandbox.mountpoint());
        if self.is_helper_named {
            command.args(["--helper", self.way.helper.name()]);
        }
        command
    }

    fn serve(&self, sandbox: &Sandbox) -> Command {
        let mut command = sandbox.program();
        command.args(["serve", "--name", "default", "--backend", self.backend.name()]);
        command.arg("--source").arg(self.source.clone().unwrap_or_else(|| sandbox.source()));
        command.arg("--socket").arg(sandbox.socket()).args(&self.arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// A mount that answers. Dropping it ends the daemon and clears everything away.
#[derive(Debug)]
pub struct Mount {
    daemon: Child,
    again: Builder,
    /// Its folder.
    pub sandbox: Sandbox,
}

/// What `switch --json` says.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Switched {
    /// The backend that served before.
    pub from: Backend,
    /// The backend that serves now.
    pub to: Backend,
    /// How long nobody was reading requests.
    pub pause_ms: f64,
    /// Requests that the old backend had in hand.
    pub in_flight: u64,
    /// Requests that were answered EIO because the old backend did not answer them.
    pub answered_for_hung: u64,
}

impl Mount {
    /// What it is to be like; `start` makes it.
    pub fn builder(backend: Backend, way: Way) -> Builder {
        Builder {
            backend,
            way,
            limit: TEST_LIMIT,
            source: None,
            program: None,
            arguments: Vec::new(),
            environment: Vec::new(),
            is_helper_named: true,
            is_place_told: true,
        }
    }

    fn spawn(sandbox: Sandbox, mut command: Command, again: Builder) -> Self {
        let log = File::create(sandbox.log()).expect("a log");
        command.stdin(std::process::Stdio::null()).stderr(log.try_clone().expect("a descriptor")).stdout(log);
        // A group of its own: a Ctrl-C in the terminal reaches the test, which then ends the daemon in order.
        command.process_group(0);
        let mut mount = Self { daemon: command.spawn().expect("the daemon"), again, sandbox };
        // A descriptor that was handed in stays open here as long as the command exists.
        drop(command);
        mount.wait_until_served();
        mount
    }

    fn wait_until_served(&mut self) {
        wait_for("the mount to answer", START_LIMIT, || {
            if let Some(status) = self.daemon.try_wait().expect("the daemon") {
                panic!("the daemon has ended: {status}");
            }
            let status = self.try_status()?;
            matches!(status["health"].as_str(), Some("healthy" | "degraded")).then_some(())
        });
    }

    /// A path in the mount.
    pub fn path(&self, name: &str) -> PathBuf {
        self.sandbox.mountpoint().join(name)
    }

    /// The same path in the source.
    pub fn source_path(&self, name: &str) -> PathBuf {
        self.sandbox.source().join(name)
    }

    /// Does something as the user who has mounted.
    pub fn act<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        self.sandbox.user().act(action)
    }

    /// What the daemon says of this mount.
    pub fn status(&self) -> Value {
        self.try_status().expect("the daemon answers")
    }

    fn try_status(&self) -> Option<Value> {
        let output = self.ask(&["status"]);
        let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
        answer["mounts"].as_array()?.iter().find(|mount| mount["name"] == "default").cloned()
    }

    /// All that the daemon and its server have said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.sandbox.log()).expect("the log")
    }

    /// The backend that serves.
    pub fn active(&self) -> Backend {
        let status = self.status();
        let active = status["active"].as_object().expect("active backends");
        assert_eq!(active.len(), 1, "one backend serves: {status}");
        active.keys().next().expect("a backend").parse().expect("a known backend")
    }

    /// Changes the backend.
    pub fn switch(&self, to: Backend) -> Switched {
        let output = self.ask(&["switch", "default", to.name()]);
        assert!(output.status.success(), "switch to {to}: {output:?}\n{}", log_tail(self.sandbox.path()));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error} in {output:?}"))
    }

    /// Runs a command that asks the daemon, with `--json`; as the daemon's user.
    pub fn ask(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = self.sandbox.program();
        command.args(arguments).arg("--json").arg("--socket").arg(self.sandbox.socket());
        assert_cmd::Command::from_std(command).timeout(COMMAND_LIMIT).output().expect("the program")
    }

    /// What the daemon's metrics show.
    pub fn scrape(&self) -> Scrape {
        Scrape::of(&self.sandbox.socket())
    }

    /// The kernel's side.
    pub fn kernel(&self) -> MountPoint {
        let mut mounts = self.sandbox.mounts();
        assert_eq!(mounts.len(), 1, "one mount: {mounts:?}");
        mounts.remove(0)
    }

    /// Number of the FUSE connection.
    pub fn connection_id(&self) -> u32 {
        self.kernel().connection
    }

    /// Number of requests that the kernel has no answer to.
    pub fn waiting(&self) -> u64 {
        self.kernel().waiting()
    }

    /// Asserts that the kernel gets an answer to everything it has asked. What it sends on its own, such as RELEASE, may
    /// be under way still.
    pub fn assert_all_answered(&self) {
        wait_for("every request to be answered", COMMAND_LIMIT, || (self.waiting() == 0).then_some(()));
    }

    /// Process id of the server, if there is one.
    pub fn server_pid(&self) -> Option<i32> {
        self.status()["server_pid"].as_i64().map(|pid| pid.try_into().expect("a process id"))
    }

    /// Waits until the mount is served by another server than this one.
    pub fn wait_for_successor(&self, of: i32) -> i32 {
        wait_for("another server", START_LIMIT, || {
            let status = self.try_status()?;
            let pid: i32 = status["server_pid"].as_i64()?.try_into().ok()?;
            (pid != of && !status["active"].as_object()?.is_empty()).then_some(pid)
        })
    }

    /// Kills the daemon, which leaves its server alone, and waits until it is gone.
    pub fn kill_daemon(&mut self) {
        kill(Pid::from_raw(self.daemon_pid()), Signal::SIGKILL).expect("a running daemon");
        self.wait();
    }

    /// Starts the next daemon as the first one was started, and waits until it answers for the mount.
    pub fn start_next_daemon(&mut self) {
        let mut command = self.again.command(&self.sandbox);
        let log = File::options().append(true).open(self.sandbox.log()).expect("the log");
        command.stdin(std::process::Stdio::null()).stderr(log.try_clone().expect("a descriptor")).stdout(log);
        command.process_group(0);
        self.daemon = command.spawn().expect("the daemon");
        self.wait_until_served();
    }

    /// Process id of the daemon.
    pub fn daemon_pid(&self) -> i32 {
        self.daemon.id().try_into().expect("a process id")
    }

    /// Waits until the daemon has ended by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let daemon = &mut self.daemon;
        wait_for("the daemon to end", STOP_LIMIT, || daemon.try_wait().expect("the daemon"))
    }

    /// Asks the daemon to end, and waits until it has.
    pub fn terminate(&mut self) -> ExitStatus {
        kill(Pid::from_raw(self.daemon_pid()), Signal::SIGTERM).expect("a running daemon");
        self.wait()
    }

    /// Ends the daemon in order, and asserts that it goes with 0 and leaves nothing.
    pub fn stop(mut self) {
        let status = self.terminate();
        assert!(status.success(), "after SIGTERM: {status}\n{}", log_tail(self.sandbox.path()));
        self.sandbox.assert_nothing_left();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", log_tail(self.sandbox.path()));
        }
        let pid = Pid::from_raw(self.daemon_pid());
        if self.daemon.try_wait().expect("the daemon").is_none() {
            kill(pid, Signal::SIGTERM).expect("a running daemon");
        }
        // Not `wait`: a panic here would hide the one that is under way.
        let began = Instant::now();
        while self.daemon.try_wait().expect("the daemon").is_none() && began.elapsed() < STOP_LIMIT {
            std::thread::sleep(Duration::from_millis(10));
        }
        if self.daemon.try_wait().expect("the daemon").is_none() {
            end_everything(self.sandbox.path());
        }
        self.daemon.wait().expect("the daemon");
    }
}
