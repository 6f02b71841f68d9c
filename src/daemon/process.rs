//! Starting a server, and what it finds when it is started: both ends of one hand-over, so that they cannot drift apart.
//!
//! The program is executed again, so that a server begins with one thread and without anything of the daemon's. The only
//! `unsafe` is taking ownership of descriptors by number, which is what inheriting them means.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::ledger::{Ledger, LedgerError};
use crate::server::orders::Line;

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
    pub child: Child,
}

/// Starts a server by executing this program as `lighthouse-fs ARGUMENTS… server`. The device, if one is given, is the
/// server's alone afterwards.
///
/// # Errors
/// When descriptors, memory or processes have run out.
pub fn start(device: Option<OwnedFd>, arguments: &[String]) -> Result<Server, ProcessError> {
    let failed = |action| move |source| ProcessError::Failed { action, source };
    let (ledger, shared) = Ledger::create()?;
    let (line, far) = Line::pair().map_err(failed("connected"))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("lighthouse-fs").args(arguments).arg("server").stdin(Stdio::null()).stdout(Stdio::null());
    let mut mappings =
        vec![FdMapping { parent_fd: far.into(), child_fd: LINE }, FdMapping { parent_fd: shared, child_fd: LEDGER }];
    if let Some(device) = device {
        command.arg("--device");
        mappings.push(FdMapping { parent_fd: device, child_fd: DEVICE });
    }
    command.fd_mappings(mappings).map_err(|error| failed("prepared")(io::Error::other(error)))?;
    let child = command.spawn().map_err(failed("started"))?;
    Ok(Server { line, ledger, child })
}

/// What a server inherits, given whether it was told of a device. To be called once, first of all, by a process that
/// [`start`] has started.
///
/// # Errors
/// When this process was not started so.
pub fn inherited(device: bool) -> Result<(Line, Ledger, Option<OwnedFd>), ProcessError> {
    let failed = |action| move |source| ProcessError::Failed { action, source };
    let line = own(LINE).map_err(failed("given its line: it is started by `serve` only"))?;
    let ledger = Ledger::open(own(LEDGER).map_err(failed("given its ledger"))?)?;
    let device = device.then(|| own(DEVICE)).transpose().map_err(failed("given its device"))?;
    // A session of its own: what a terminal sends to the daemon (Ctrl-C, hang-up) is the daemon's to pass on.
    rustix::process::setsid().map_err(|error| failed("given a session")(error.into()))?;
    Ok((line.into(), ledger, device))
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
