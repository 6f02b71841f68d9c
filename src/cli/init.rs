//! As the first process of a container: the daemon runs as a child, and this reaps whatever else ends there.
//!
//! Orphans of a container become children of its first process. The daemon waits for its own children only, and whoever
//! waits for all would take their ends away from it; so that is done here, by a process that does nothing else. When it
//! ends, the kernel kills whatever is left in the container: there a mount does not outlive its daemon.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Passed on to the daemon, which knows what to do.
const PASSED_ON: [Signal; 6] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Whether this is the first process of a container.
pub fn is_needed() -> bool {
    std::process::id() == 1
}

/// Runs this program once more with the same arguments, and ends when that does and as that does. To be called by a
/// process that has one thread and has opened nothing.
pub fn run() -> ExitCode {
    match serve() {
        Ok(code) => ExitCode::from(code),
        Err(error) => super::fail(super::exit::FAILED, format_args!("the daemon cannot be started: {error}")),
    }
}

fn serve() -> io::Result<u8> {
    let mut signals = SigSet::from_iter(PASSED_ON);
    signals.add(Signal::SIGCHLD);
    // Waited for below; the daemon, which inherits this, unblocks them.
    signals.thread_block()?;
    let mut arguments = std::env::args_os();
    arguments.next();
    let daemon = Command::new("/proc/self/exe").arg0("lighthouse-fs").args(arguments).spawn()?;
    let daemon = Pid::from_raw(daemon.id().cast_signed());
    close_inherited()?;
    loop {
        match signals.wait()? {
            Signal::SIGCHLD => {
                if let Some(code) = reap(daemon) {
                    return Ok(code);
                }
            }
            // ESRCH: it has ended, which SIGCHLD will say.
            signal => match kill(daemon, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error.into()),
            },
        }
    }
}

/// A FUSE descriptor that was handed in is the daemon's alone: a second copy would keep a dead connection alive.
fn close_inherited() -> io::Result<()> {
    let numbers: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2)
        .collect();
    for number in numbers {
        match nix::unistd::close(number) {
            // The folder that was read just now.
            Ok(()) | Err(Errno::EBADF) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reaps everything that has ended. The exit code of the daemon, if it has; that of a shell if a signal has ended it.
fn reap(daemon: Pid) -> Option<u8> {
    let mut code = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == daemon => code = Some(status.to_le_bytes()[0]),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == daemon => {
                code = Some(128_u8.saturating_add((signal as i32).to_le_bytes()[0]));
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return code,
            Ok(_) | Err(Errno::EINTR) => {}
            // Nothing else is possible; and a daemon that cannot be waited for is not to be left alone.
            Err(_) => return code.or(Some(super::exit::FAILED)),
        }
    }
}
