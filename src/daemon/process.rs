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

use super::dead_mount;
use crate::ledger::{Ledger, LedgerError};
use crate::server::meeting;
use crate::server::orders::{Hello, Line, Report, VERSION};

/// For a server to unmount when it is told by a signal; its own deadline for a busy mount is 10 s unless configured.
pub(super) const STOP: Duration = Duration::from_secs(30);
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
    let (said, shared) = line.receive_with::<serde_json::Value>(limit).map_err(|error| silent(&error))?;
    let version = said.get("version").and_then(serde_json::Value::as_u64).and_then(|version| version.try_into().ok());
    if let Some(found) = version.filter(|found| *found != VERSION) {
        return Err(AdoptError::Version { pid: pid.as_raw_nonzero().get(), found });
    }
    match (serde_json::from_value(said).map_err(|error| silent(&error))?, shared) {
        (Report::Hello(hello), Some(shared)) => {
            let ledger = Ledger::open(shared).map_err(|error| silent(&error))?;
            Ok(Some((Server { line, ledger, process: Process::Adopted(pid) }, hello)))
        }
        (Report::Failed { message }, _) => Err(AdoptError::Silent(message)),
        (other, _) => Err(AdoptError::Silent(format!("it says {other:?}"))),
    }
}

/// Tells a server to unmount, and waits until it has ended; kills it if it does not. Blocks.
///
/// # Errors
/// When even that does not end it.
pub fn end(server: Server) -> io::Result<()> {
    let Server { line, process, ledger: _ } = server;
    let pid = match &process {
        Process::Child(child) => Pid::from_child(child),
        Process::Adopted(pid) => *pid,
    };
    // A signal, since whatever version it is, it knows that.
    let in_order = end_process(pid, STOP)?;
    drop(line);
    if in_order { Ok(()) } else { dead_mount::clear_all() }
}

/// Sends SIGTERM, and at `limit` SIGKILL. Blocks until the process has ended, at most a little longer than `limit`. `false`:
/// it had to be killed, so that it has not unmounted.
///
/// # Errors
/// When it may not be signalled, or outlives SIGKILL.
pub fn end_process(pid: Pid, limit: Duration) -> io::Result<bool> {
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
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        if poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout)? > 0 {
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
    /// The same as a descriptor, for the next daemon.
    pub shared: OwnedFd,
    /// The FUSE device that was handed in, if one was.
    pub device: Option<OwnedFd>,
}

/// Starts a server by executing this program as `lighthouse-fs ARGUMENTS… server --mount NAME`; the name is for whoever looks
/// at processes. The device, if one is given, is the
/// server's alone afterwards.
///
/// # Errors
/// When descriptors, memory or processes have run out.
pub fn start(mount: &str, device: Option<OwnedFd>, arguments: &[String]) -> Result<Server, ProcessError> {
    let failed = |action| move |source| ProcessError::Failed { action, source };
    let (ledger, shared) = Ledger::create()?;
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
    let ledger = Ledger::open(&shared)?;
    let device = device.then(|| own(DEVICE)).transpose().map_err(failed("given its device"))?;
    // A session of its own: what a terminal sends to the daemon (Ctrl-C, hang-up) is the daemon's to pass on.
    rustix::process::setsid().map_err(|error| failed("given a session")(error.into()))?;
    Ok(Inherited { line: line.into(), ledger, shared, device })
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
