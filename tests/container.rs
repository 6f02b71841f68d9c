//! The daemon as the first process of a container, played by a pid name space.

mod support;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{COMMAND_LIMIT, Sandbox, User, require_root, unless_skipped, wait_for};

/// A daemon that is process 1 of its name space; `unshare` is its parent outside.
struct Container {
    unshare: Child,
    sandbox: Sandbox,
}

impl Container {
    fn start() -> Self {
        let sandbox = Sandbox::new(User::Root, Duration::from_secs(60));
        let mut command = sandbox.client("unshare");
        command.args(["--pid", "--fork", "--mount-proc", "--propagation", "unchanged"]).arg(sandbox.program_path());
        command.args(["serve", "--helper", "direct", "--source"]).arg(sandbox.source());
        command.arg("--mountpoint").arg(sandbox.mountpoint()).arg("--socket").arg(sandbox.socket());
        command.env("TMPDIR", sandbox.path().join("tmp")).stdin(Stdio::null()).stdout(Stdio::null());
        let container = Self { unshare: command.spawn().expect("unshare"), sandbox };
        wait_for("the daemon to answer", COMMAND_LIMIT, || {
            let status = container.inside(&["/proc/1/exe", "status", "--socket", container.sandbox.socket().to_str()?]);
            String::from_utf8_lossy(&status.stdout).contains("healthy").then_some(())
        });
        container
    }

    /// Process 1, by its number out here.
    fn first(&self) -> i32 {
        children(self.unshare.id())[0]
    }

    fn inside(&self, command: &[&str]) -> std::process::Output {
        let first = children(self.unshare.id()).first().map_or_else(|| "1".to_owned(), ToString::to_string);
        Command::new("nsenter").args(["-t", &first, "-p", "-m"]).args(command).output().expect("nsenter")
    }

    fn end(mut self) -> Option<i32> {
        let status = wait_for("the container to end", COMMAND_LIMIT, || self.unshare.try_wait().expect("unshare"));
        self.sandbox.assert_nothing_left();
        status.code()
    }
}

fn children(pid: u32) -> Vec<i32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|pid| pid.parse().expect("a process id")).collect()
}

fn is_zombie(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
}

#[test]
fn strangers_are_reaped_and_signals_reach_the_daemon() {
    unless_skipped(require_root(), || {
        let container = Container::start();
        let first = container.first();
        let before = children(first.unsigned_abs()).len();
        for _ in 0..5 {
            // The shell ends first, and its child becomes one of process 1.
            assert!(container.inside(&["sh", "-c", "(sleep 0.05 &)"]).status.success());
        }
        wait_for("the orphans to be gone", COMMAND_LIMIT, || {
            let now = children(first.unsigned_abs());
            (now.len() == before && !now.iter().copied().any(is_zombie)).then_some(())
        });
        kill(Pid::from_raw(first), Signal::SIGTERM).unwrap();
        assert_eq!(container.end(), Some(0));
    });
}

#[test]
fn the_end_of_the_daemon_ends_its_mounts() {
    unless_skipped(require_root(), || {
        let container = Container::start();
        let daemon = children(container.first().unsigned_abs())[0];
        kill(Pid::from_raw(daemon), Signal::SIGKILL).unwrap();
        assert_eq!(container.end(), Some(137), "as a shell would say it");
    });
}
