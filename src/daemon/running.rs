//! A server that runs, as something that can be awaited: what it says, and its end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use super::process::Process;
use crate::server::orders::{Line, LineError, Order, Report};

/// For a process that has closed its line to be gone.
const DEATH: Duration = Duration::from_secs(3);

/// A server's process and the line to it.
pub struct Running {
    line: Line,
    /// Tells when `line` has something; a duplicate, because what tokio watches it must own.
    readable: AsyncFd<OwnedFd>,
    pid: Pid,
    /// Ours to reap, unless an earlier daemon has started it.
    child: Option<Child>,
    pidfd: AsyncFd<OwnedFd>,
}

/// What a server does unasked.
#[derive(Debug)]
pub enum Event {
    /// It says something.
    Report(Report),
    /// It is gone, and this is how.
    Gone(String),
}

impl Running {
    /// Watches a server; needs a runtime.
    ///
    /// # Errors
    /// When descriptors have run out.
    pub fn new(line: Line, process: Process) -> io::Result<Self> {
        let readable = watch(line.as_fd().try_clone_to_owned()?)?;
        let (pid, child) = match process {
            Process::Child(child) => (Pid::from_child(&child), Some(child)),
            Process::Adopted(pid) => (pid, None),
        };
        let pidfd = watch(pidfd_open(pid, PidfdFlags::empty())?)?;
        Ok(Self { line, readable, pid, child, pidfd })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Sends an order; does not wait.
    ///
    /// # Errors
    /// When the server is gone, or does not read.
    pub fn send(&self, order: &Order) -> Result<(), LineError> {
        self.line.send(order)
    }

    /// The next thing that it says, or its end; what it said before its end comes first. May be cancelled.
    pub async fn event(&mut self) -> Event {
        loop {
            tokio::select! {
                biased;
                report = receive(&self.line, &self.readable) => match report {
                    Ok(report) => return Event::Report(report),
                    Err(LineError::Malformed(error)) => {
                        tracing::error!(pid = self.pid.as_raw_nonzero(), %error, "a report of the server cannot be understood; ignored");
                    }
                    Err(LineError::Closed) => return Event::Gone(self.last_words().await),
                    Err(error) => return Event::Gone(error.to_string()),
                },
                status = ended(self.child.as_mut(), &self.pidfd) => {
                    // The event loop may learn of the end before it learns of the last message.
                    return self.line.receive(Duration::ZERO).map_or_else(|_| Event::Gone(obituary(status)), Event::Report);
                }
            }
        }
    }

    /// Waits for its end, at most for `limit`. Whether it has ended.
    pub async fn has_ended(&mut self, limit: Duration) -> bool {
        timeout(limit, ended(self.child.as_mut(), &self.pidfd)).await.is_ok()
    }

    /// Ends it at once, if it has not ended.
    ///
    /// # Errors
    /// When it may not be killed.
    pub fn kill(&self) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn last_words(&mut self) -> String {
        timeout(DEATH, ended(self.child.as_mut(), &self.pidfd))
            .await
            .map_or_else(|_| "the serving process closed its line and did not end".into(), obituary)
    }
}

fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, and what it names does not change, for as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

async fn receive(line: &Line, readable: &AsyncFd<OwnedFd>) -> Result<Report, LineError> {
    loop {
        let mut ready = readable.readable().await?;
        match line.receive(Duration::ZERO) {
            Err(LineError::Timeout(_)) => ready.clear_ready(),
            other => return other,
        }
    }
}

/// How it has ended, which only its parent is told.
async fn ended(child: Option<&mut Child>, pidfd: &AsyncFd<OwnedFd>) -> io::Result<Option<ExitStatus>> {
    let Some(child) = child else {
        // Readable for good from its death on: not cleared.
        pidfd.readable().await?.retain_ready();
        return Ok(None);
    };
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        pidfd.readable().await?.clear_ready();
    }
}

/// How a process ended, for people.
fn obituary(status: io::Result<Option<ExitStatus>>) -> String {
    let status = match status {
        Ok(Some(status)) => status,
        Ok(None) => return "the serving process, which an earlier daemon had started, ended".into(),
        Err(error) => return format!("the serving process cannot be watched: {error}"),
    };
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("the serving process ended with exit code {code}"),
        (None, Some(signal)) => {
            let name = nix::sys::signal::Signal::try_from(signal).map_or("an unknown signal", |signal| signal.as_str());
            format!("the serving process was ended by {name} ({signal})")
        }
        (None, None) => format!("the serving process ended ({status})"),
    }
}
