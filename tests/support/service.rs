//! A daemon that serves what a configuration file says.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{COMMAND_LIMIT, Sandbox, Way, wait_for};

/// Names of mounts that are served well.
pub const GOOD: [&str; 2] = ["one", "two"];

/// A running daemon. Dropping it kills it, and the sandbox clears away.
#[derive(Debug)]
pub struct Service {
    /// The process.
    pub daemon: Child,
    /// Its folder.
    pub sandbox: Sandbox,
}

impl Service {
    /// Starts a daemon of a file with both good mounts and whatever else is said.
    pub fn start(way: Way, more: impl FnOnce(&Sandbox) -> String) -> Self {
        let sandbox = Sandbox::new(way.user, Duration::from_secs(90));
        let mut file = String::new();
        for name in GOOD {
            file += &mount(&sandbox, name, "");
        }
        file += &more(&sandbox);
        write_config(&sandbox, file).unwrap();
        let daemon = spawn(&sandbox);
        let service = Self { daemon, sandbox };
        service.wait_until("serves", |status| GOOD.iter().all(|name| health_of(status, name) == "healthy"));
        service
    }

    /// Starts a daemon by this command, and waits until its first mount is healthy.
    pub fn of(sandbox: Sandbox, mut command: Command) -> Self {
        let service = Self { daemon: command.spawn().expect("a daemon"), sandbox };
        service.wait_until("serves", |status| status["mounts"][0]["health"] == "healthy");
        service
    }

    /// What the daemon says, if it does.
    pub fn status(&self) -> Option<Value> {
        let output = self.ask(&["status", "--json"]);
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Runs a command that asks the daemon.
    pub fn ask(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = self.sandbox.program();
        command.args(arguments).arg("--socket").arg(self.sandbox.socket());
        assert_cmd::Command::from_std(command).timeout(COMMAND_LIMIT).output().expect("the program")
    }

    /// Waits until the status is so.
    pub fn wait_until(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, COMMAND_LIMIT, || self.status().filter(&is_so))
    }

    /// A mount's server.
    pub fn server(&self, name: &str) -> i64 {
        mount_of(&self.status().expect("a status"), name)["server_pid"].as_i64().expect("a server")
    }

    /// Sends the daemon a signal.
    pub fn send(&self, signal: Signal) {
        kill(Pid::from_raw(self.daemon.id().cast_signed()), signal).expect("a running daemon");
    }

    /// Has the daemon read another file.
    pub fn reload(&self, file: &str) {
        write_config(&self.sandbox, file).unwrap();
        self.send(Signal::SIGHUP);
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.sandbox.log()).unwrap()
    }

    /// Where a mount is.
    pub fn place(&self, name: &str) -> PathBuf {
        self.sandbox.path().join("run").join(name)
    }

    /// Writes a file in a mount.
    pub fn write(&self, name: &str) -> std::io::Result<()> {
        let file = self.place(name).join("file");
        self.sandbox.user().act(|| fs::write(&file, name))
    }

    /// Ends the daemon in order.
    pub fn stop(mut self) {
        self.send(Signal::SIGTERM);
        let status = wait_for("the daemon to end", COMMAND_LIMIT * 2, || self.daemon.try_wait().expect("the daemon"));
        assert!(status.success(), "{status}\n{}", self.log());
        self.sandbox.assert_nothing_left();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        // A second time is no harm; the sandbox ends the rest.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// `serve` in the sandbox, with its log.
pub fn serve_command(sandbox: &Sandbox) -> Command {
    let log = File::options().create(true).append(true).open(sandbox.log()).unwrap();
    let mut command = sandbox.program();
    command.arg("serve").arg("--socket").arg(sandbox.socket());
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command
}

/// Starts a daemon of the sandbox's file.
pub fn spawn(sandbox: &Sandbox) -> Child {
    serve_command(sandbox).arg("--config").arg(config(sandbox)).spawn().expect("a daemon")
}

/// The file.
pub fn config(sandbox: &Sandbox) -> PathBuf {
    sandbox.path().join("config.toml")
}

/// Writes the file. It has no ports: other tests' daemons would have the same.
pub fn write_config(sandbox: &Sandbox, text: impl AsRef<str>) -> std::io::Result<()> {
    let quiet = "[api]\nlisten = \"\"\nshadow_listen = \"\"\nmetrics_listen = \"\"\n";
    let text = text.as_ref();
    // One that was read back has them already.
    let head = if text.starts_with(quiet) { "" } else { quiet };
    fs::write(config(sandbox), format!("{head}{text}"))
}

/// A table for the file, and its folders.
pub fn mount(sandbox: &Sandbox, name: &str, more: &str) -> String {
    let (source, place) = (sandbox.source().join(name), sandbox.path().join("run").join(name));
    for folder in [&source, &place] {
        sandbox.user().act(|| fs::create_dir_all(folder)).unwrap();
    }
    table(name, &source, &place, more)
}

/// A table for the file.
pub fn table(name: &str, source: &Path, place: &Path, more: &str) -> String {
    format!(
        "[[mount]]\nname = \"{name}\"\nsource = \"{}\"\nmountpoint = \"{}\"\n{more}\n",
        source.display(),
        place.display()
    )
}

/// A mount of a status.
pub fn mount_of<'a>(status: &'a Value, name: &str) -> &'a Value {
    let mounts = status["mounts"].as_array().expect("mounts");
    mounts.iter().find(|mount| mount["name"] == name).unwrap_or(&Value::Null)
}

/// Its health.
pub fn health_of<'a>(status: &'a Value, name: &str) -> &'a str {
    mount_of(status, name)["health"].as_str().unwrap_or("unknown")
}

/// Why it is not healthy.
pub fn reasons_of(status: &Value, name: &str) -> String {
    mount_of(status, name)["reasons"].to_string()
}
