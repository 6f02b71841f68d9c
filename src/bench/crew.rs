//! The parent's side of the load: starts workers as child processes, ends them, adds up what they report.
//!
//! A worker that does not end, dies or says nothing is a failure like any other, so a file system that swallows a request
//! for ever cannot pass for a clean run; nothing here waits without a deadline.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use super::load::{Failure, Kind, LoadReport, Tally, Task};

/// Between two looks whether a process has ended.
const LOOK: Duration = Duration::from_millis(5);
/// How long a killed process may take to go. One that is stuck in the file system may never do.
const DEATH: Duration = Duration::from_secs(2);

/// Workers of one directory. Dropped without [`stop`](Self::stop), they are told to end and not waited for.
#[derive(Debug)]
pub struct Crew {
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    task: Task,
    child: Child,
    /// The worker ends when this is closed; so it does when this process dies.
    leash: Option<ChildStdin>,
    report: Receiver<io::Result<String>>,
}

impl Crew {
    /// Starts one worker for each of `kinds` in `dir` (absolute). `program` is this program: its hidden subcommand `load`
    /// is what the children run. This process does not touch `dir`.
    ///
    /// # Errors
    /// When a process cannot be started; those that were are told to end.
    pub fn start(program: &Path, dir: &Path, kinds: &[Kind], seed: u64) -> io::Result<Self> {
        let members = (0..).zip(kinds).map(|(index, &kind)| {
            let task = Task { kind, dir: dir.into(), seed, index };
            Member::start(program, task)
        });
        Ok(Self { members: members.collect::<io::Result<_>>()? })
    }

    /// The workers' processes.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.members.iter().map(|member| member.child.id())
    }

    /// Ends all workers and adds up what they did. What has not ended after `limit` is killed, and counts as failed.
    #[must_use]
    pub fn stop(mut self, limit: Duration) -> Tally {
        for member in &mut self.members {
            member.leash = None;
        }
        let end = Instant::now() + limit;
        let ends: Vec<_> = self.members.iter_mut().map(|member| member.end(end)).collect();
        let death = Instant::now() + DEATH;
        let mut sum = Tally::default();
        for (member, end) in self.members.into_iter().zip(ends) {
            let place = member.task.place();
            match end.and_then(|end| member.report(&end, limit, death)) {
                Ok(report) => sum.merge(report.tally),
                Err(error) => sum.fail(failure(place, error)),
            }
        }
        sum
    }
}

/// How a worker took the order to end.
enum End {
    /// It did.
    Ended(ExitStatus),
    /// It did not, and was killed.
    Killed,
}

fn failure(path: PathBuf, error: String) -> Failure {
    Failure { operation: "the work".into(), path, errno: None, error }
}

impl Member {
    fn start(program: &Path, task: Task) -> io::Result<Self> {
        let mut child = Command::new(program)
            .args(["load", "--kind", task.kind.name(), "--dir"])
            .arg(&task.dir)
            .args(["--seed", &task.seed.to_string(), "--index", &task.index.to_string()])
            // Ctrl-C is for the parent, which ends the workers in order.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let leash = child.stdin.take();
        let (sender, report) = mpsc::sync_channel(1);
        let mut stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        // A thread of its own: a report is larger than what a pipe may hold, and reading has no deadline.
        thread::Builder::new().name(format!("load-{}", task.index)).spawn(move || {
            let mut text = String::new();
            let read = stdout.read_to_string(&mut text).map(|_| text);
            match sender.send(read) {
                // Without a receiver the crew was dropped, and nobody wants to know.
                Ok(()) | Err(mpsc::SendError(_)) => {}
            }
        })?;
        Ok(Self { task, child, leash, report })
    }

    /// Waits until `end`, then kills.
    fn end(&mut self, end: Instant) -> Result<End, String> {
        match wait(&mut self.child, end)? {
            Some(status) => Ok(End::Ended(status)),
            None => self.child.kill().map(|()| End::Killed).map_err(|error| format!("cannot be killed: {error}")),
        }
    }

    /// What it has to say. If it was killed, after `limit`, it is to be gone at `death`.
    fn report(mut self, end: &End, limit: Duration, death: Instant) -> Result<LoadReport, String> {
        let End::Ended(status) = end else {
            let gone = wait(&mut self.child, death)?.is_some();
            let fate = if gone { "was killed" } else { "does not even die: it is stuck in the file system" };
            return Err(format!("did not end within {limit:?}, and {fate}"));
        };
        let text = match self.report.recv_timeout(DEATH) {
            Ok(text) => text.map_err(|error| format!("its report cannot be read: {error}"))?,
            Err(error) => return Err(format!("its report does not come: {error}")),
        };
        serde_json::from_str(&text).map_err(|_| format!("ended without a report: {status}"))
    }
}

/// Waits for a process until `end`.
fn wait(child: &mut Child, end: Instant) -> Result<Option<ExitStatus>, String> {
    loop {
        match child.try_wait() {
            Ok(None) if Instant::now() < end => thread::sleep(LOOK),
            result => return result.map_err(|error| format!("cannot be waited for: {error}")),
        }
    }
}
