//! Ends a test that hangs: says what it knows, then aborts the connection, unmounts, and kills, so that every thread of
//! the test gets an answer.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{PROGRAM, machine, sandbox};

/// How long the test may take to fail once everything that it could wait for has gone.
const LAST_GRACE: Duration = Duration::from_secs(20);
const STATUS_LIMIT: Duration = Duration::from_secs(3);
const LOG_LINES: usize = 60;

/// A thread that waits to be disarmed.
#[derive(Debug)]
pub struct Watchdog {
    alive: Option<Sender<()>>,
    thread: Option<JoinHandle<bool>>,
}

impl Watchdog {
    /// Guards what happens in `folder` for `limit`.
    pub fn start(folder: PathBuf, limit: Duration) -> Self {
        let (alive, silence) = channel();
        let thread = std::thread::spawn(move || watch(&folder, limit, &silence));
        Self { alive: Some(alive), thread: Some(thread) }
    }

    /// Ends the guard, and says whether it had to act.
    pub fn disarm(&mut self) -> bool {
        self.alive = None;
        self.thread.take().is_some_and(|thread| thread.join().expect("the watchdog"))
    }
}

/// True if the test hung.
fn watch(folder: &Path, limit: Duration, silence: &Receiver<()>) -> bool {
    let Err(RecvTimeoutError::Timeout) = silence.recv_timeout(limit) else { return false };
    machine::say(&format!("WATCHDOG: the test in {} has taken {limit:?}\n{}", folder.display(), findings(folder)));
    sandbox::end_everything(folder);
    if let Err(RecvTimeoutError::Timeout) = silence.recv_timeout(LAST_GRACE) {
        machine::say("WATCHDOG: the test does not end, though nothing is left that it could wait for");
        sandbox::end_everything(folder);
        sandbox::remove(folder);
        std::process::abort();
    }
    true
}

fn findings(folder: &Path) -> String {
    let mut text = String::new();
    for mount in machine::mounts_below(folder) {
        text += &format!("mount {}, connection {}", mount.path.display(), mount.connection);
        let waiting = format!("/sys/fs/fuse/connections/{}/waiting", mount.connection);
        match std::fs::read_to_string(&waiting) {
            Ok(number) => text += &format!(", waiting {number}"),
            Err(error) => text += &format!(", waiting unknown: {error}\n"),
        }
    }
    let mut status = Command::new(PROGRAM);
    status.args(["status", "--json", "--socket"]).arg(folder.join("run/control.sock"));
    match assert_cmd::Command::from_std(status).timeout(STATUS_LIMIT).output() {
        Ok(output) => text += &format!("status: {}\n", String::from_utf8_lossy(&output.stdout)),
        Err(error) => text += &format!("status: {error}\n"),
    }
    for process in machine::processes_of(folder).into_iter().chain(procfs::process::Process::myself()) {
        text += &machine::threads_of(&process);
    }
    text + &log_tail(folder)
}

/// The last lines of the daemon's log.
pub fn log_tail(folder: &Path) -> String {
    let log = std::fs::read_to_string(folder.join("daemon.log")).unwrap_or_else(|error| error.to_string());
    let lines: Vec<_> = log.lines().collect();
    let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
    format!("the daemon's log, last lines:\n{tail}\n")
}
