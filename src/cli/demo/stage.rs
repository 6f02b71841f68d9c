//! The processes and the directory of a demo: set up, and cleared away whatever happened, each step with a deadline.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::api::model::{BackendStatus, Status, SwitchAnswer};
use crate::api::{Client, ClientError, Listener};
use crate::backend::drill::Plan;
use crate::bench::Crew;
use crate::bench::load::{Kind, Tally};
use crate::config::Backend;
use crate::connection::mountinfo;

/// The mount's name.
const MOUNT: &str = "demo";
/// A rollout in fast motion: an operator gives each step half an hour, and the guard a minute.
const ROLLOUT: &str = "
[mount.rollout]
candidate = \"CANDIDATE\"
shadow_sample = 1
steps = [
  { shadow = true, for = \"1s\" },
  { weight = 10, for = \"2s\" }, { weight = 50, for = \"10m\" }, { weight = 100, for = \"10m\" },
]
[mount.guard]
window = \"2s\"
minimum_samples = 50
divergence = 0.01
";
/// What the content that programs write follows from.
const SEED: u64 = 42;
/// For the daemon to serve.
const READY: Duration = Duration::from_secs(10);
/// Between two looks whether something has come about.
const LOOK: Duration = Duration::from_millis(20);
/// For programs to come to their end; what they wait for then is never answered.
const CURTAIN: Duration = Duration::from_secs(15);
/// For the daemon to unmount and end; its own deadline for a busy mount is 10 s.
const FAREWELL: Duration = Duration::from_secs(20);
/// For the mount to go after its daemon was killed.
const AFTERMATH: Duration = Duration::from_secs(5);
/// Lines of the daemon's log that are shown when it fails.
const LAST_LINES: usize = 20;

/// A temporary directory, with a daemon that serves it and programs that work in it.
pub struct Stage {
    program: PathBuf,
    dir: TempDir,
    source: PathBuf,
    mountpoint: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    configuration: PathBuf,
    daemon: Option<Child>,
    crew: Option<Crew>,
}

/// What was left when the stage was cleared.
#[derive(Default)]
pub struct Cleared {
    /// What the programs did.
    pub tally: Tally,
    /// What the backends did.
    pub backends: Vec<BackendStatus>,
    /// What did not end as it should.
    pub problems: Vec<String>,
}

impl Stage {
    /// Makes the directory. `program` is this program, for the children.
    pub fn set(program: PathBuf) -> io::Result<Self> {
        let mut dir = TempDir::with_prefix("lighthouse-fs-demo-")?;
        // As mountinfo names it; nothing is mounted there yet.
        let path = dir.path().canonicalize()?;
        let [source, mountpoint, socket, log, configuration] =
            ["source", "mountpoint", "control.sock", "log", "config.toml"].map(|name| path.join(name));
        fs::create_dir(&source)?;
        fs::create_dir(&mountpoint)?;
        // Only `remove` may: it looks first whether something is mounted there.
        dir.disable_cleanup(true);
        Ok(Self { program, dir, source, mountpoint, socket, log, configuration, daemon: None, crew: None })
    }

    /// Starts the daemon, waits until it serves, and gives the backend that does.
    pub async fn serve(&mut self) -> Result<Backend, String> {
        self.configure("").map_err(|error| format!("the configuration cannot be written: {error}"))?;
        self.daemon = Some(self.start_daemon().map_err(|error| format!("the daemon cannot be started: {error}"))?);
        let end = Instant::now() + READY;
        loop {
            self.check_alive()?;
            let why = match self.client().status().await {
                Ok(status) => match (active(&status), self.is_mounted()?) {
                    (Some(backend), true) => return Ok(backend),
                    _ => format!("it is not mounted: {}", reasons(&status)),
                },
                Err(error) => error.to_string(),
            };
            if Instant::now() > end {
                return Err(format!("the daemon does not serve within {READY:?}: {why}\n{}", self.last_lines()));
            }
            sleep(LOOK).await;
        }
    }

    fn start_daemon(&self) -> io::Result<Child> {
        Command::new(&self.program)
            .arg("serve")
            .arg("--config")
            .arg(&self.configuration)
            .arg("--with-parent")
            // Ctrl-C is for this process, which ends the programs first and then the daemon.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&self.log)?)
            .spawn()
    }

    /// Writes the daemon's configuration, with `more` of its mount.
    fn configure(&self, more: &str) -> io::Result<()> {
        // A string of JSON is one of TOML.
        let [socket, state, source, mountpoint] =
            [&self.socket, &self.dir.path().join("state"), &self.source, &self.mountpoint].map(|path| json!(path));
        let text = format!(
            "[daemon]\nsocket = {socket}\nstate_dir = {state}\n\
             [api]\nlisten = \"\"\nshadow_listen = \"\"\nmetrics_listen = \"\"\n\
             [[mount]]\nname = \"{MOUNT}\"\nsource = {source}\nmountpoint = {mountpoint}\ndrill = true\n{more}"
        );
        fs::write(&self.configuration, text)
    }

    fn client(&self) -> Client {
        Client::new(&self.socket)
    }

    fn is_mounted(&self) -> Result<bool, String> {
        let mounts = mountinfo::read().map_err(|error| format!("/proc/self/mountinfo cannot be read: {error}"))?;
        Ok(mountinfo::at(&mounts, &self.mountpoint).is_some())
    }

    /// An error with the daemon's last words if it has ended.
    pub fn check_alive(&mut self) -> Result<(), String> {
        let Some(daemon) = &mut self.daemon else { return Ok(()) };
        let ended = daemon.try_wait().map_err(|error| format!("the daemon cannot be watched: {error}"))?;
        let Some(status) = ended else { return Ok(()) };
        self.daemon = None;
        Err(format!("the daemon has ended ({status}):\n{}", self.last_lines()))
    }

    fn last_lines(&self) -> String {
        let text = match fs::read(&self.log) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => return format!("its log cannot be read: {error}"),
        };
        let lines: Vec<_> = text.lines().collect();
        let shown = &lines[lines.len().saturating_sub(LAST_LINES)..];
        shown.iter().map(super::super::printable).collect::<Vec<_>>().join("\n")
    }

    /// Starts one program of each kind in the mount.
    pub fn load(&mut self) -> Result<(), String> {
        let crew = Crew::start(&self.program, &self.mountpoint, &Kind::ALL, SEED);
        self.crew = Some(crew.map_err(|error| format!("the load cannot be started: {error}"))?);
        Ok(())
    }

    /// Changes the backend.
    pub async fn switch(&self, to: Backend) -> Result<SwitchAnswer, ClientError> {
        self.client().switch(MOUNT, to).await
    }

    /// Lets the stable backend serve, and gives its name.
    pub async fn settle(&self) -> Result<Backend, String> {
        let mount = self.client().mount(MOUNT).await.map_err(|error| error.to_string())?;
        self.switch(mount.stable).await.map_err(|error| error.to_string())?;
        Ok(mount.stable)
    }

    /// Hears what happens from now on.
    pub async fn listen(&self) -> Result<Listener, String> {
        self.client().events().await.map_err(|error| error.to_string())
    }

    /// Gives the daemon a candidate, as an operator does, by its configuration, and begins its rollout.
    pub async fn start_rollout(&self, candidate: Backend) -> Result<(), String> {
        let wrong = |error: &dyn std::fmt::Display| format!("the rollout cannot be started: {error}");
        self.configure(&ROLLOUT.replace("CANDIDATE", candidate.name())).map_err(|error| wrong(&error))?;
        let daemon = self.daemon.as_ref().and_then(Child::id).ok_or("the daemon has ended")?;
        kill(Pid::from_raw(daemon.cast_signed()), Signal::SIGHUP).map_err(|error| wrong(&error))?;
        let end = Instant::now() + READY;
        loop {
            let mount = self.client().mount(MOUNT).await.map_err(|error| wrong(&error))?;
            if mount.candidate == Some(candidate) {
                break;
            }
            if Instant::now() > end {
                return Err(format!("the daemon has not taken its new configuration:\n{}", self.last_lines()));
            }
            sleep(LOOK).await;
        }
        self.client().ask_rollout(MOUNT, "rollout/start", None::<()>).await.map_err(|error| wrong(&error))?;
        Ok(())
    }

    /// Injects faults.
    pub async fn drill(&self, plan: &Plan) -> Result<(), String> {
        let drilled = self.client().drill(MOUNT, plan).await;
        drilled.map(drop).map_err(|error| format!("the drill cannot begin: {error}"))
    }

    /// Ends everything: the programs, the daemon, the mount, the directory.
    pub async fn clear(mut self) -> Cleared {
        let mut cleared = Cleared::default();
        if let Some(crew) = self.crew.take() {
            match tokio::task::spawn_blocking(move || crew.stop(CURTAIN)).await {
                Ok(tally) => cleared.tally = tally,
                Err(error) => cleared.problems.push(format!("the programs cannot be ended: {error}")),
            }
        }
        if self.daemon.is_some() {
            match self.client().status().await {
                Ok(status) => cleared.backends = status.mounts.into_iter().flat_map(|mount| mount.backends).collect(),
                Err(error) => cleared.problems.push(error.to_string()),
            }
        }
        cleared.problems.extend(self.end_daemon().await.err());
        cleared.problems.extend(self.end_mount().await.err());
        cleared.problems.extend(self.remove().err());
        cleared
    }

    async fn end_daemon(&mut self) -> Result<(), String> {
        let Some(mut daemon) = self.daemon.take() else { return Ok(()) };
        let trouble = |error: &dyn std::fmt::Display| format!("the daemon cannot be ended: {error}");
        // Without a number it was waited for already.
        if let Some(pid) = daemon.id() {
            kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM).map_err(|error| trouble(&error))?;
        }
        match timeout(FAREWELL, daemon.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(self.bad_end(status)),
            Ok(Err(error)) => Err(trouble(&error)),
            Err(_) => {
                daemon.start_kill().map_err(|error| trouble(&error))?;
                Err(format!("the daemon did not end within {FAREWELL:?} and was killed:\n{}", self.last_lines()))
            }
        }
    }

    fn bad_end(&self, status: ExitStatus) -> String {
        format!("the daemon did not end well ({status}):\n{}", self.last_lines())
    }

    /// The daemon has unmounted. If it could not, its server does so a moment later, and else we do.
    async fn end_mount(&self) -> Result<(), String> {
        let end = Instant::now() + AFTERMATH;
        while self.is_mounted()? {
            if Instant::now() > end {
                let mountpoint = self.mountpoint.clone();
                let detach = tokio::task::spawn_blocking(move || mountinfo::detach(&mountpoint));
                detach.await.map_err(|error| error.to_string())??;
                return Err(format!("the daemon left {} mounted; it is detached now", self.mountpoint.display()));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Removes the directory, but never walks into a mount.
    fn remove(mut self) -> Result<(), String> {
        if self.is_mounted().unwrap_or(true) {
            return Err(format!("{} is left behind: remove it when it is unmounted", self.dir.path().display()));
        }
        self.dir.disable_cleanup(false);
        let path = self.dir.path().to_owned();
        self.dir.close().map_err(|error| format!("{} cannot be removed: {error}", path.display()))
    }
}

/// Why the mount is not served.
fn reasons(status: &Status) -> String {
    status.mounts.iter().flat_map(|mount| &mount.reasons).map(super::super::printable).collect::<Vec<_>>().join("; ")
}

/// The backend that serves.
fn active(status: &Status) -> Option<Backend> {
    let mount = status.mounts.iter().find(|mount| mount.name == MOUNT)?;
    mount.active.keys().next().copied()
}
