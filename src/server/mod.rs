//! The serving process of one mount: it holds the connection, both sessions and the vfs, and obeys the daemon.

mod handover;
pub mod orders;
mod served;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, umask};

use crate::backend::{self, Prepared};
use crate::config::{Deadlines, Mount};
use crate::connection::{Connection, Unmounted};
use crate::ledger::{Ledger, coarse_now};
use crate::vfs::passthrough::{Access, PassThrough, strip_set_id_on_write};
use orders::{Line, LineError, Order, Report};

pub use served::{Consequence, OnSessionEnd, ServeError, Served, SessionEnded, SwitchError};

/// How long the first order may take.
const FIRST_ORDER: Duration = Duration::from_secs(30);
/// How often the control loop shows that it lives.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// What an unmount may take beyond its own deadline before the process ends without it.
const UNMOUNT_MARGIN: Duration = Duration::from_secs(15);

/// How long a server may take to obey [`Stop`](Order::Stop).
#[must_use]
pub fn stop_limit(deadlines: &Deadlines) -> Duration {
    deadlines.unmount + UNMOUNT_MARGIN
}

/// How long a server may take to obey [`Switch`](Order::Switch): to find that the old session of the target is dead, to
/// start a fresh one instead (in two steps), to detach the other and let it drain, and the same once more if that has to be
/// forced. Seconds for answers that are being written at a deadline come on top.
#[must_use]
pub fn switch_limit(deadlines: &Deadlines) -> Duration {
    deadlines.switch * 5 + deadlines.drain * 2 + Duration::from_secs(3)
}

/// Serves one mount until the daemon says [`Stop`](Order::Stop), the daemon is gone, or somebody unmounts it. Returns the
/// exit code of the process.
///
/// The first message on `line` must be [`Serve`](Order::Serve). `device` is a FUSE descriptor that was handed in, if the
/// mount point is `/dev/fd/N`. The process must have no other thread yet: the server sets its umask, signal mask, limits
/// and PATH.
pub fn run(line: &Line, ledger: Ledger, device: Option<OwnedFd>) -> u8 {
    match serve(line, ledger, device) {
        Ok(()) => 0,
        Err(error) => {
            let message = error.to_string();
            tracing::error!("{message}");
            if let Err(error) = line.send(&Report::Failed { message }) {
                tracing::debug!(%error, "the daemon does not hear it");
            }
            1
        }
    }
}

fn serve(line: &Line, ledger: Ledger, device: Option<OwnedFd>) -> anyhow::Result<()> {
    // The caller's umask comes with each request; ours must not be applied on top of it.
    umask(Mode::empty());
    raise_descriptor_limit();
    strip_set_id_on_write().map_err(|error| anyhow::anyhow!("CAP_FSETID cannot be given up: {error}"))?;
    let signals = wait_for_signals()?;
    ledger.set_server_pid(std::process::id());
    let mount = match line.receive(FIRST_ORDER)? {
        Order::Serve { version: orders::VERSION, mount } => *mount,
        Order::Serve { version, .. } => anyhow::bail!(
            "the daemon speaks version {version} of the messages and this server version {}: restart the daemon with the program it was started from",
            orders::VERSION
        ),
        Order::Stop => return Ok(()),
        other @ Order::Switch { .. } => anyhow::bail!("{other:?} before the order to serve"),
    };
    let (mut control, _prepared) = Control::start(&mount, ledger, device)?;
    control.report_hello(line)?;
    let end = control.obey(line, &signals)?;
    control.finish(line, end)
}

/// Every known file keeps a descriptor, and the limit is often 1,024. With the privilege it is raised to what the kernel
/// allows by default (`fs.nr_open`), else as far as this user may.
fn raise_descriptor_limit() {
    const MOST: u64 = 1 << 20;
    let raised = setrlimit(Resource::RLIMIT_NOFILE, MOST, MOST).or_else(|_| {
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays low");
    }
}

fn wait_for_signals() -> anyhow::Result<SignalFd> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        mask.add(signal);
    }
    // Inherited by every thread that is started from here on.
    mask.thread_block()?;
    Ok(SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// Why serving ends.
enum End {
    /// The daemon or a signal says so, or the daemon is gone.
    Told,
    /// Somebody else has unmounted, or the connection was aborted.
    ConnectionGone,
    /// No session can serve.
    NobodyServes(String),
}

struct Control {
    served: Served,
    unavailable: Vec<orders::Unavailable>,
    ledger: Ledger,
    wake: Arc<EventFd>,
    ended: Receiver<SessionEnded>,
    stop_limit: Duration,
}

impl Control {
    fn start(mount: &Mount, ledger: Ledger, device: Option<OwnedFd>) -> anyhow::Result<(Self, Prepared)> {
        let access = if mount.read_only { Access::ReadOnly } else { Access::ReadWrite };
        let vfs = PassThrough::new(&mount.source, access)
            .map_err(|error| anyhow::anyhow!("the source {} cannot be opened: {error}", mount.source.display()))?;
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let (tell, ended) = mpsc::channel();
        let on_session_end: OnSessionEnd = Arc::new({
            let wake = wake.clone();
            move |session| {
                // The control loop has gone, or its counter is full: either way nobody has to be woken.
                let _ = tell.send(session);
                let _ = wake.write(1);
            }
        });
        let connection = Connection::establish(mount, mount.backend.resolve(), device)?;
        // After the mount, whose helper is looked up in PATH; before the first thread.
        let prepared = backend::prepare();
        let (served, unavailable) = Served::start(mount, connection, Arc::new(vfs), ledger.clone(), on_session_end)?;
        let stop_limit = stop_limit(&mount.deadlines);
        Ok((Self { served, unavailable, ledger, wake, ended, stop_limit }, prepared))
    }

    fn report_hello(&self, line: &Line) -> anyhow::Result<()> {
        line.send(&Report::Hello {
            version: orders::VERSION,
            active: self.served.active(),
            protocol_minor: self.served.connection().negotiated().kernel_minor,
            helper: self.served.connection().made_by(),
            unavailable: self.unavailable.clone(),
        })?;
        Ok(())
    }

    /// The control loop.
    fn obey(&mut self, line: &Line, signals: &SignalFd) -> anyhow::Result<End> {
        let timeout = PollTimeout::try_from(HEARTBEAT)?;
        loop {
            self.ledger.beat(coarse_now());
            let mut ready = [
                PollFd::new(line.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut ready, timeout) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let [has_order, has_event, has_signal] = ready.map(|one| one.any().unwrap_or(false));
            if has_event && let Some(end) = self.heed_ended_sessions(line) {
                return Ok(end);
            }
            if has_signal {
                tracing::info!("stopping: told by a signal");
                return Ok(End::Told);
            }
            if has_order && let Some(end) = self.heed_order(line)? {
                return Ok(end);
            }
        }
    }

    fn heed_ended_sessions(&mut self, line: &Line) -> Option<End> {
        // EAGAIN: woken for an event that was heeded already.
        let _ = self.wake.read();
        while let Ok(ended) = self.ended.try_recv() {
            match self.served.session_ended(ended) {
                Consequence::None => {}
                Consequence::FailedOver(switched) => {
                    tracing::warn!(from = %switched.from, to = %switched.to, pause_ms = switched.pause_ms, "{}", switched.reason);
                    if let Err(error) = line.send(&Report::FailedOver(switched)) {
                        tracing::warn!(%error, "the daemon does not hear of it");
                    }
                }
                Consequence::ConnectionGone => return Some(End::ConnectionGone),
                Consequence::NobodyServes(why) => return Some(End::NobodyServes(why)),
            }
        }
        None
    }

    fn heed_order(&mut self, line: &Line) -> anyhow::Result<Option<End>> {
        let order = match line.receive(HEARTBEAT) {
            Ok(order) => order,
            Err(LineError::Closed) => {
                tracing::warn!("the daemon has gone: unmounting");
                return Ok(Some(End::Told));
            }
            Err(LineError::Timeout(_)) => return Ok(None),
            Err(error @ LineError::Malformed(_)) => {
                tracing::warn!(%error, "an order is refused");
                line.send(&Report::Failed { message: error.to_string() })?;
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let report = match order {
            Order::Stop => return Ok(Some(End::Told)),
            Order::Serve { .. } => Report::Failed { message: "this server serves already".into() },
            Order::Switch { to, reason } => match self.served.switch(to, &reason) {
                Ok(switched) => {
                    tracing::info!(
                        from = %switched.from, to = %switched.to, pause_ms = switched.pause_ms,
                        in_flight = switched.in_flight, answered_for_hung = switched.answered_for_hung, reason, "switched"
                    );
                    Report::Switched(switched)
                }
                Err(error) => {
                    tracing::warn!("{error}");
                    Report::Failed { message: error.to_string() }
                }
            },
        };
        line.send(&report)?;
        Ok(self.served.nobody_serves().map(|why| End::NobodyServes(why.into())))
    }

    /// Ends the mount. A thread does it, because `umount2(2)` waits for dirty pages, and so for a backend.
    fn finish(self, line: &Line, end: End) -> anyhow::Result<()> {
        let is_gone = matches!(end, End::ConnectionGone);
        let is_aborted = is_gone && self.served.connection().is_mounted();
        let unmounted = if is_gone && !is_aborted {
            Unmounted::Cleanly
        } else {
            let (done, is_done) = mpsc::channel();
            let (served, limit) = (self.served, self.stop_limit);
            std::thread::Builder::new().name("unmount".into()).spawn(move || drop(done.send(served.unmount())))?;
            is_done.recv_timeout(limit).map_err(|_| {
                anyhow::anyhow!("the unmount hangs; the process ends, and the kernel aborts the connection")
            })??
        };
        match end {
            End::NobodyServes(why) => anyhow::bail!("no backend can serve: {why}"),
            End::ConnectionGone if is_aborted => anyhow::bail!(
                "somebody has aborted the connection (/sys/fs/fuse/connections); the mount is taken away: serve it again"
            ),
            End::ConnectionGone | End::Told => {}
        }
        let stopped = Report::Stopped { lazily: unmounted == Unmounted::Lazily, by_others: is_gone };
        if let Err(error) = line.send(&stopped) {
            tracing::debug!(%error, "the daemon does not hear of the end");
        }
        Ok(())
    }
}
