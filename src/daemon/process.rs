//! Starting a server, and what it finds when it is started: both ends of one hand-over, so that they cannot drift apart.
//!
//! The program is executed again, so that a server begins with one thread and without anything of the daemon's. The only
//! `unsafe` is taking ownership of descriptors by number, which is what inheriting them means.

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Deserialize;

use super::dead_mount;
use crate::config::Deadlines;
use crate::ledger::{Ledger, LedgerError};
use crate::server::orders::{Hello, Line, LineError, Report, VERSION};
use crate::server::{self, meeting};

/// For a server to unmount when it is told by a signal and has not said what its deadline for a busy mount is.
const STOP: Duration = Duration::from_secs(30);
/// What a server that has said it may need beyond what it keeps itself.
const MARGIN: Duration = Duration::from_secs(5);
/// For a server to greet whoever has come. Longer than most switches, during which it greets nobody: one that says nothing
/// is taken for stuck, and ended.
const GREETING: Duration = Duration::from_secs(15);
/// For a killed process to be gone.
const DEATH: Duration = Duration::from_secs(3);
const LINE: RawFd = 3;
const LEDGER: RawFd = 4;
const DEVICE: RawFd = 5;
/// Name and type of /dev/fuse (Documentation/admin-guide/devices.txt of the kernel).
const FUSE_DEVICE: (u32, u32) = (10, 229);

/// Why a server cannot be started, or cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// No ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The kernel refuses.
    #[error("the serving process cannot be {action}: {source}; see the limits on processes and descriptors")]
    Failed {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// What `/dev/fd/N` names is something else.
    #[error(
        "/dev/fd/{number} is no open FUSE device ({why}): pass a descriptor of /dev/fuse that is mounted and not read yet"
    )]
    NoDevice {
        /// The number.
        number: RawFd,
        /// What it is instead.
        why: String,
    },
}

/// The daemon's grip on a server.
pub struct Server {
    /// Orders and reports.
    pub line: Line,
    /// What it counts.
    pub ledger: Ledger,
    /// The process.
    pub process: Process,
}

/// A server's process.
pub enum Process {
    /// Started by this daemon.
    Child(Child),
    /// Started by a daemon before this one.
    Adopted(Pid),
}

/// Why a server that a daemon before this one has left cannot be adopted.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// It does not listen, or says nothing.
    #[error(
        "the server that an earlier daemon has left does not answer ({0}): end it with `lighthouse-fs end-servers`, which unmounts"
    )]
    Silent(String),
    /// It has a daemon that lives.
    #[error(
        "the server of this mount obeys another daemon: stop that daemon, or give one of the two another `socket` and another `mountpoint`"
    )]
    Obeys,
    /// It is of another build.
    #[error(
        "process {pid} serves this mount and speaks version {found} of the messages, not {VERSION}: go on with the program that has started it, or end it with `lighthouse-fs end-servers`, which unmounts"
    )]
    Version {
        /// The server.
        pid: i32,
        /// Its version.
        found: u32,
    },
}

/// Adopts the server that listens at `meeting`, if one does. Blocks for at most `limit`.
///
/// # Errors
/// When one is there and cannot be adopted; it serves on.
pub fn adopt(meeting: &Path, limit: Duration) -> Result<Option<(Server, Box<Hello>)>, AdoptError> {
    let silent = |error: &dyn std::fmt::Display| AdoptError::Silent(error.to_string());
    let Some((line, pid)) = meeting::visit(meeting).map_err(|error| silent(&error))? else { return Ok(None) };
    // As plain JSON first: a server of another version says hello in another form.
    let (said, shared) = match line.receive_with::<serde_json::Value>(limit) {
        // It was dying when we came: killed, and on a busy machine that takes its time.
        Err(LineError::Closed) if wait_until_gone(pid).map_err(|error| silent(&error))? => return Ok(None),
        received => received.map_err(|error| silent(&error))?,
    };
    let version = said.get("version").and_then(serde_json::Value::as_u64).and_then(|version| version.try_into().ok());
    if let Some(found) = version.filter(|found| *found != VERSION) {
        return Err(AdoptError::Version { pid: pid.as_raw_nonzero().get(), found });
    }
    match (serde_json::from_value(said).map_err(|error| silent(&error))?, shared) {
        (Report::Hello(hello), Some(shared)) => {
            let ledger = Ledger::open(shared).map_err(|error| silent(&error))?;
            Ok(Some((Server { line, ledger, process: Process::Adopted(pid) }, hello)))
        }
        (Report::Failed { .. }, _) => Err(AdoptError::Obeys),
        (other, _) => Err(AdoptError::Silent(format!("it says {other:?}"))),
    }
}

/// Whether a process is gone, or goes soon.
fn wait_until_gone(pid: Pid) -> io::Result<bool> {
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => Ok(has_ended(&process, DEATH)?),
        Err(rustix::io::Errno::SRCH) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn has_ended(process: &OwnedFd, limit: Duration) -> nix::Result<bool> {
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    Ok(poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout)? > 0)
}

/// Tells a server that was adopted, and keeps these deadlines, to unmount, and waits until it has ended; kills it if it does
/// not. Blocks.
///
/// # Errors
/// When even that does not end it.
pub fn end_adopted(server: &Server, deadlines: &Deadlines) -> io::Result<()> {
    let pid = match &server.process {
        Process::Child(child) => Pid::from_child(child),
        Process::Adopted(pid) => *pid,
    };
    let in_order = end_process(pid, server::stop_limit(deadlines) + MARGIN)?;
    if in_order { Ok(()) } else { dead_mount::clear_all() }
}

/// What became of a server that was to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// There was none.
    Nobody,
    /// It is gone, and its mount with it.
    Gone,
    /// A daemon that lives gives it orders: it was left alone.
    ObeysAnother,
}

/// Tells the server that listens at `meeting`, if one does and obeys no other daemon, to unmount, and waits until it has
/// ended; kills it if it does not, after the deadline that it says it has. Blocks.
///
/// # Errors
/// When even that does not end it.
pub fn end(meeting: &Path) -> io::Result<Ended> {
    let Some((line, pid)) = meeting::visit(meeting)? else {
        remove_socket(meeting)?;
        return Ok(Ended::Nobody);
    };
    let Some(limit) = stop_limit(&line) else { return Ok(Ended::ObeysAnother) };
    // A signal, since whatever version it is, it knows that.
    if !end_process(pid, limit)? {
        remove_socket(meeting)?;
        dead_mount::clear_all()?;
    }
    Ok(Ended::Gone)
}

/// What a server that was killed has left behind.
fn remove_socket(meeting: &Path) -> io::Result<()> {
    match std::fs::remove_file(meeting) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// How long a server may take to unmount, by what it says to a visitor, whatever its version; `None`: it sends visitors away
/// because it has a daemon.
fn stop_limit(line: &Line) -> Option<Duration> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Said {
        Hello { mount: Mount },
        Failed { report: Failed },
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Failed {
        Failed,
    }
    #[derive(Deserialize)]
    struct Mount {
        deadlines: Deadlines,
    }
    match line.receive::<Said>(GREETING) {
        Ok(Said::Hello { mount }) => Some(server::stop_limit(&mount.deadlines) + MARGIN),
        Ok(Said::Failed { report: Failed::Failed }) => None,
        Err(error) => {
            tracing::debug!(%error, limit = ?STOP, "the server does not say how long it may take to unmount");
            Some(STOP)
        }
    }
}

/// Sends SIGTERM, and at `limit` SIGKILL. Blocks until the process has ended, at most a little longer than `limit`. `false`:
/// it had to be killed, so that it has not unmounted.
///
/// # Errors
/// When it may not be signalled, or outlives SIGKILL.
fn end_process(pid: Pid, limit: Duration) -> io::Result<bool> {
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(rustix::io::Errno::SRCH) => return Ok(true),
        Err(error) => return Err(error.into()),
    };
    for (signal, limit) in [(Signal::TERM, limit), (Signal::KILL, DEATH)] {
        match pidfd_send_signal(&process, signal) {
            Err(rustix::io::Errno::SRCH) => return Ok(true),
            sent => sent?,
        }
        if has_ended(&process, limit)? {
            return Ok(signal == Signal::TERM);
        }
    }
    Err(io::Error::other(format!("process {} outlives SIGKILL: its source hangs in the kernel", pid.as_raw_nonzero())))
}

/// What a server begins with.
pub struct Inherited {
    /// Orders and reports.
    pub line: Line,
    /// What it counts.
    pub ledger: Ledger,
    /// The FUSE device that was handed in, if one was.
    pub device: Option<OwnedFd>,
}

/// Starts a server by executing this program as `lighthouse-fs ARGUMENTS… server --mount NAME`; the name is for whoever looks
/// at processes. The device, if one is given, is the server's alone afterwards. `before` is what the mount's last server has
/// counted, which has ended: it goes on.
///
/// # Errors
/// When descriptors, memory or processes have run out.
pub fn start(
    mount: &str,
    device: Option<OwnedFd>,
    before: Option<Ledger>,
    arguments: &[String],
) -> Result<Server, ProcessError> {
    let failed = |action| move |source| ProcessError::Failed { action, source };
    let ledger = match before {
        Some(ledger) => {
            ledger.begin_anew();
            ledger
        }
        None => Ledger::create()?,
    };
    let shared = ledger.as_fd().try_clone_to_owned().map_err(failed("given its ledger"))?;
    let (line, far) = Line::pair().map_err(failed("connected"))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("lighthouse-fs").args(arguments).args(["server", "--mount", mount]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut mappings =
        vec![FdMapping { parent_fd: far.into(), child_fd: LINE }, FdMapping { parent_fd: shared, child_fd: LEDGER }];
    if let Some(device) = device {
        command.arg("--device");
        mappings.push(FdMapping { parent_fd: device, child_fd: DEVICE });
    }
    command.fd_mappings(mappings).map_err(|error| failed("prepared")(io::Error::other(error)))?;
    let child = command.spawn().map_err(failed("started"))?;
    Ok(Server { line, ledger, process: Process::Child(child) })
}

/// What a server inherits, given whether it was told of a device. To be called once, first of all, by a process that
/// [`start`] has started.
///
/// # Errors
/// When this process was not started so.
pub fn inherited(device: bool) -> Result<Inherited, ProcessError> {
    let failed = |action| move |source| ProcessError::Failed { action, source };
    let line = own(LINE).map_err(failed("given its line: it is started by `serve` only"))?;
    let shared = own(LEDGER).map_err(failed("given its ledger"))?;
    let ledger = Ledger::open(shared)?;
    let device = device.then(|| own(DEVICE)).transpose().map_err(failed("given its device"))?;
    // A session of its own: what a terminal sends to the daemon (Ctrl-C, hang-up) is the daemon's to pass on.
    rustix::process::setsid().map_err(|error| failed("given a session")(error.into()))?;
    Ok(Inherited { line: line.into(), ledger, device })
}

/// Takes the descriptor that `/dev/fd/N` names, if the mount point is such a path. To be called before anything else is
/// opened, and before there is a second thread.
///
/// # Errors
/// When it is no open FUSE device.
pub fn device(mountpoint: &Path) -> Result<Option<OwnedFd>, ProcessError> {
    let number = mountpoint.strip_prefix("/dev/fd").ok().and_then(Path::to_str).and_then(|name| name.parse().ok());
    let Some(number) = number else { return Ok(None) };
    let refuse = |why: String| ProcessError::NoDevice { number, why };
    // Through /proc, so that a number that is not open is an error and not somebody's descriptor.
    let metadata = std::fs::metadata(format!("/proc/self/fd/{number}")).map_err(|error| refuse(error.to_string()))?;
    let numbers = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
    if !metadata.file_type().is_char_device() || numbers != FUSE_DEVICE {
        return Err(refuse("it is something else".into()));
    }
    own(number).map(Some).map_err(|error| refuse(error.to_string()))
}

/// Takes ownership of an inherited descriptor, and keeps it from being inherited further.
fn own(number: RawFd) -> io::Result<OwnedFd> {
    std::fs::symlink_metadata(format!("/proc/self/fd/{number}"))?;
    // SAFETY: it is open, as was just seen, and nothing of this process owns it: the callers run before anything else is
    // opened, on numbers that whoever started the process has promised.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_has_as_long_as_it_says() {
        let limit = |said: &str| {
            let (ours, theirs) = Line::pair().unwrap();
            theirs.send(&serde_json::from_str::<serde_json::Value>(said).unwrap()).unwrap();
            stop_limit(&ours)
        };
        let mount = serde_json::to_string(&crate::config::Mount::new("a", "/srv", "/mnt")).unwrap();
        let mount = mount.replace(r#""unmount":{"secs":10,"#, r#""unmount":{"secs":600,"#);
        assert!(
            limit(&format!(r#"{{"report":"hello","version":99,"new":[],"mount":{mount}}}"#))
                > Some(Duration::from_secs(600))
        );
        assert_eq!(limit(r#"{"report":"new","message":"of another version"}"#), Some(STOP));
        assert_eq!(limit(r#"{"report":"failed","message":"another daemon gives orders"}"#), None, "not to be ended");
    }
}
