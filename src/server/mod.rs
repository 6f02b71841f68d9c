//! The serving process of one mount: it holds the connection, both sessions and the vfs, and obeys the daemon.

mod comparing;
mod drill;
mod handover;
mod invalidation;
pub mod meeting;
pub mod orders;
mod served;
mod slices;
mod tree;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant, SystemTime};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, umask};

use crate::backend::{self, Prepared};
use crate::config::{Backend, BackendChoice, Deadlines, Mount};
use crate::connection::{Connection, Unmounted};
use crate::ledger::{Cause, Ledger, coarse_now};
use crate::shadow::Shadow;
use crate::vfs::passthrough::{Access, PassThrough, strip_set_id_on_write};
use meeting::Meeting;
use orders::{Hello, Line, LineError, Order, PastSwitch, Report, Unavailable};
use tree::Tree;

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

/// How long a server may take to obey [`Weigh`](Order::Weigh): to find that the old session of the target is dead, to
/// start a fresh one instead (in two steps), to detach the other and let it drain, and the same once more if that has to be
/// forced. Seconds for answers that are being written at a deadline come on top.
#[must_use]
pub fn switch_limit(deadlines: &Deadlines) -> Duration {
    deadlines.switch * 5 + deadlines.drain * 2 + Duration::from_secs(3)
}

/// Serves one mount until the daemon says [`Stop`](Order::Stop), or somebody unmounts it. When the daemon is gone it
/// serves on until the next one comes, or ends too: as the order to serve says. Returns the exit code of the process.
///
/// `set_log_level` changes what this process logs. The first message on `line` must be [`Serve`](Order::Serve).
/// `device` is a FUSE descriptor that was handed in, if the
/// mount point is `/dev/fd/N`. The process must have no other thread yet: the server sets its umask, signal mask, limits
/// and PATH.
pub fn run(line: Line, ledger: Ledger, device: Option<OwnedFd>, set_log_level: Box<dyn Fn(&str)>) -> u8 {
    let mut daemon = Daemon { line: Some(line), meeting: None, is_dispensable: false, set_log_level };
    match serve(&mut daemon, ledger, device) {
        Ok(()) => 0,
        Err(error) => {
            let message = error.to_string();
            // The daemon says it, unless there is none.
            if !daemon.hear(&Report::Failed { message: message.clone() }) {
                tracing::error!("{message}");
            }
            1
        }
    }
}

/// Whoever gives the orders, if somebody does.
struct Daemon {
    line: Option<Line>,
    /// Where the next one comes to.
    meeting: Option<Meeting>,
    /// Whether the mount is to outlive it.
    is_dispensable: bool,
    /// What it may change of this process's log.
    set_log_level: Box<dyn Fn(&str)>,
}

impl Daemon {
    /// Tells it something; whether it hears. If it is gone, the control loop will see that.
    fn hear(&self, report: &Report) -> bool {
        let Some(line) = &self.line else { return false };
        let sent = line.send(report);
        if let Err(error) = &sent {
            tracing::debug!(%error, "the daemon does not hear it");
        }
        sent.is_ok()
    }

    /// The first order.
    fn order(&self) -> Result<Order, LineError> {
        self.line.as_ref().ok_or(LineError::Closed)?.receive(FIRST_ORDER)
    }
}

fn serve(daemon: &mut Daemon, ledger: Ledger, device: Option<OwnedFd>) -> anyhow::Result<()> {
    // The caller's umask comes with each request; ours must not be applied on top of it.
    umask(Mode::empty());
    raise_descriptor_limit();
    strip_set_id_on_write().map_err(|error| anyhow::anyhow!("CAP_FSETID cannot be given up: {error}"))?;
    let signals = wait_for_signals()?;
    ledger.set_server_pid(std::process::id());
    let (mount, meeting, resume) = match daemon.order()? {
        Order::Serve { version: orders::VERSION, mount, meeting, resume } => (*mount, meeting, resume),
        Order::Serve { version, .. } => anyhow::bail!(
            "the daemon speaks version {version} of the messages and this server version {}: restart the daemon with the program it was started from",
            orders::VERSION
        ),
        Order::Stop => return Ok(()),
        other => anyhow::bail!("{other:?} before the order to serve"),
    };
    // What it logs says of which mount it is.
    let _mount = tracing::info_span!("server", mount = mount.name).entered();
    daemon.is_dispensable = meeting.is_some();
    // Before anything is mounted: two servers of one mount must never be.
    if let Some(path) = meeting {
        let meeting = Meeting::at(&path);
        daemon.meeting =
            Some(meeting.map_err(|error| anyhow::anyhow!("the server cannot listen on {}: {error}", path.display()))?);
    }
    let (mut control, _prepared) = Control::start(mount, resume, ledger, device)?;
    daemon.hear(&control.hello());
    let end = control.obey(daemon, &signals)?;
    control.finish(daemon, end)
}

/// Mounts, with the helper of the first backend that has one. Also which that was, and why not those before it.
fn establish(
    mount: &Mount,
    order: &[Backend],
    device: Option<OwnedFd>,
) -> anyhow::Result<(Connection, Backend, Vec<Unavailable>)> {
    let mut unavailable = Vec::new();
    let mut device = device;
    for backend in order.iter().copied() {
        let is_given = device.is_some();
        match Connection::establish(mount, backend, device.take()) {
            Ok(connection) => return Ok((connection, backend, unavailable)),
            // Another helper makes a difference only where each backend has its own.
            Err(error) if is_given || !error.is_the_helpers() => return Err(error.into()),
            Err(error) => unavailable.push(Unavailable { backend, reason: error.to_string() }),
        }
    }
    match &unavailable[..] {
        [] => {}
        [only] => anyhow::bail!("{}", only.reason),
        all => {
            let reasons: Vec<_> = all.iter().map(|one| format!("{}: {}", one.backend, one.reason)).collect();
            anyhow::bail!("no backend comes up: {}", reasons.join("; "))
        }
    }
    anyhow::bail!("this build has no backend: build it with the cargo feature `fuse2` or `fuse3`")
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
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        mask.add(signal);
    }
    // Inherited by every thread that is started from here on. SIGHUP is the daemon's, to reload; who sends it to all
    // processes of that name must not end the mounts.
    mask.thread_block()?;
    SigSet::from(Signal::SIGHUP).thread_block()?;
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
    mount: Mount,
    served: Served,
    shadow: Shadow,
    unavailable: Vec<Unavailable>,
    last_switch: Option<PastSwitch>,
    because: Option<(Cause, String)>,
    ledger: Ledger,
    wake: Arc<EventFd>,
    ended: Receiver<SessionEnded>,
    tree: Tree,
}

impl Control {
    fn start(
        mount: Mount,
        resume: Option<Backend>,
        ledger: Ledger,
        device: Option<OwnedFd>,
    ) -> anyhow::Result<(Self, Prepared)> {
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
        let mut order = mount.backends_to_try();
        if let Some(resume) = resume {
            order.retain(|backend| *backend != resume);
            order.insert(0, resume);
        }
        let (connection, first, mut unavailable) = establish(&mount, &order, device)?;
        // After the mount, whose helper is looked up in PATH; before the first thread.
        let prepared = backend::prepare();
        let trial =
            Mount { backend: BackendChoice::Only(first), fallback: order.last() != Some(&first), ..mount.clone() };
        let (shadow, sampled) = Shadow::over(Arc::new(vfs), &ledger);
        let (served, not_started) = Served::start(&trial, connection, sampled, ledger.clone(), on_session_end)?;
        unavailable.extend(not_started);
        if let Some(drill) = served.drill() {
            let wake = wake.clone();
            drill.call_when_end_is_due(move || {
                // Its counter is full: it is being woken.
                let _ = wake.write(1);
            });
        }
        for Unavailable { backend, reason } in &unavailable {
            tracing::warn!(%backend, active = %served.active(), "a backend does not come up: {reason}");
        }
        let tree = Tree::default();
        let control =
            Self { mount, served, shadow, unavailable, last_switch: None, because: None, ledger, wake, ended, tree };
        Ok((control, prepared))
    }

    fn hello(&self) -> Report {
        Report::Hello(Box::new(Hello {
            version: orders::VERSION,
            mount: self.mount.clone(),
            mount_id: self.served.connection().mount_id(),
            active: self.served.active(),
            protocol_minor: self.served.connection().negotiated().kernel_minor,
            helper: self.served.connection().made_by(),
            unavailable: self.unavailable.clone(),
            last_switch: self.last_switch.clone(),
            because: self.because.clone(),
            drill: self.served.drill().and_then(|drill| drill.ongoing()),
        }))
    }

    /// The control loop.
    fn obey(&mut self, daemon: &mut Daemon, signals: &SignalFd) -> anyhow::Result<End> {
        loop {
            self.ledger.beat(coarse_now());
            self.look_after_drill(daemon);
            if let Some(end) = self.take_turns() {
                return Ok(end);
            }
            if self.tree.has_lost(self.served.connection()) {
                self.serve_last_users(daemon);
            }
            let timeout = self.served.turn_due().map_or(HEARTBEAT, |due| HEARTBEAT.min(due - Instant::now().min(due)));
            let mut ready = vec![
                PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            ];
            let lines = [daemon.line.as_ref().map(Line::as_fd), daemon.meeting.as_ref().map(Meeting::as_fd)];
            ready.extend(lines.iter().flatten().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)));
            match ppoll(&mut ready, Some(timeout.into()), None) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let mut ready = ready.into_iter().map(|one| one.any().unwrap_or(false));
            let mut next = |is_there: bool| is_there && ready.next().unwrap_or(false);
            let (has_event, has_signal) = (next(true), next(true));
            let (has_order, has_visitor) = (next(lines[0].is_some()), next(lines[1].is_some()));
            if has_event && let Some(end) = self.heed_ended_sessions(daemon) {
                return Ok(end);
            }
            if has_signal {
                tracing::info!("stopping: told by a signal");
                return Ok(End::Told);
            }
            if has_order && let Some(end) = self.heed_order(daemon)? {
                return Ok(end);
            }
            if has_visitor {
                self.receive_visitor(daemon);
            }
        }
    }

    /// The next turn of two backends that share the mount, if it is time.
    fn take_turns(&mut self) -> Option<End> {
        if self.served.turn_due().is_some_and(|due| due <= Instant::now()) {
            self.served.take_turn();
        }
        self.served.nobody_serves().map(|why| End::NobodyServes(why.into()))
    }

    /// Somebody else has unmounted lazily. The next daemon is to mount anew, and does not need this server.
    fn serve_last_users(&self, daemon: &mut Daemon) {
        // Its daemon says more.
        tracing::info!(
            mountpoint = %self.mount.place().display(),
            "somebody else has unmounted it; programs that still use it are served until they let go"
        );
        daemon.meeting = None;
        daemon.hear(&Report::Detached);
    }

    /// Somebody has come to the meeting: the next daemon, if there is none.
    fn receive_visitor(&self, daemon: &mut Daemon) {
        let visitor = match daemon.meeting.as_ref().map(Meeting::accept) {
            Some(Ok(Some(visitor))) => visitor,
            Some(Ok(None)) | None => return,
            Some(Err(error)) => return tracing::warn!(%error, "a daemon that has come could not be received"),
        };
        let greeted = if daemon.line.is_some() {
            let message = "another daemon gives this server its orders: stop that one first".into();
            visitor.send(&Report::Failed { message })
        } else {
            visitor.send_with(&self.hello(), self.ledger.as_fd())
        };
        match greeted {
            Ok(()) if daemon.line.is_none() => {
                tracing::info!("a daemon has taken over");
                daemon.line = Some(visitor);
            }
            Ok(()) => {}
            Err(error) => tracing::debug!(%error, "a visitor did not wait for an answer"),
        }
    }

    fn record(&mut self, switched: &orders::Switched) {
        self.last_switch = Some(PastSwitch { switched: switched.clone(), at: SystemTime::now() });
    }

    fn heed_ended_sessions(&mut self, daemon: &Daemon) -> Option<End> {
        // EAGAIN: woken for an event that was heeded already.
        let _ = self.wake.read();
        while let Ok(ended) = self.ended.try_recv() {
            match self.served.session_ended(ended) {
                Consequence::None => {}
                Consequence::FailedOver(switched) => {
                    tracing::warn!(from = %switched.from, to = %switched.to, pause_ms = switched.pause_ms, "{}", switched.reason);
                    self.record(&switched);
                    self.because = Some((Cause::Failover, switched.reason.clone()));
                    daemon.hear(&Report::FailedOver(switched));
                }
                Consequence::ConnectionGone => return Some(End::ConnectionGone),
                Consequence::NobodyServes(why) => return Some(End::NobodyServes(why)),
            }
        }
        None
    }

    fn heed_order(&mut self, daemon: &mut Daemon) -> anyhow::Result<Option<End>> {
        let Some(line) = &daemon.line else { return Ok(None) };
        let order = match line.receive(HEARTBEAT) {
            Ok(order) => order,
            Err(LineError::Closed) if daemon.meeting.is_some() => {
                tracing::warn!("the daemon has gone; serving on until the next one comes");
                daemon.line = None;
                return Ok(None);
            }
            Err(LineError::Closed) if daemon.is_dispensable && self.tree.is_lost() => {
                tracing::info!("the daemon has gone; the last programs are served on");
                daemon.line = None;
                return Ok(None);
            }
            Err(LineError::Closed) => {
                tracing::warn!("the daemon has gone: unmounting");
                return Ok(Some(End::Told));
            }
            Err(LineError::Timeout(_)) => return Ok(None),
            Err(error @ LineError::Malformed(_)) => {
                tracing::warn!(%error, "an order is refused");
                daemon.hear(&Report::Failed { message: error.to_string() });
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let report = match order {
            Order::Stop => return Ok(Some(End::Told)),
            Order::Adjust { deadlines } => {
                self.mount.deadlines = deadlines;
                self.served.set_deadlines(deadlines);
                return Ok(None);
            }
            Order::LogLevel { level } => {
                (daemon.set_log_level)(&level);
                return Ok(None);
            }
            Order::Serve { .. } => Report::Failed { message: "this server serves already".into() },
            Order::Drill { plan } => self.start_drill(plan),
            Order::StopDrill => self.stop_drill(),
            Order::Compare { comparing } => {
                self.compare(comparing);
                return Ok(None);
            }
            Order::TellCompared => Report::Compared(Box::new(self.shadow.told())),
            Order::RecoverLost => {
                if let Err(error) = self.served.recover_lost() {
                    tracing::warn!(%error, "whether requests were lost could not be seen");
                }
                return Ok(self.served.nobody_serves().map(|why| End::NobodyServes(why.into())));
            }
            Order::Weigh { candidate, percent, cause, reason } => {
                match self.served.weigh(candidate, percent, cause, &reason) {
                    Ok(switched) => {
                        match &switched {
                            Some(switched) => {
                                tracing::info!(
                                    from = %switched.from, to = %switched.to, pause_ms = switched.pause_ms,
                                    in_flight = switched.in_flight, answered_for_hung = switched.answered_for_hung,
                                    reason, "switched"
                                );
                                self.record(switched);
                            }
                            None => tracing::info!(%candidate, percent, reason, "weighed"),
                        }
                        self.because = Some((cause, reason));
                        Report::Weighed { candidate, percent, switched }
                    }
                    Err(error) => {
                        tracing::warn!("{error}");
                        Report::Failed { message: error.to_string() }
                    }
                }
            }
        };
        daemon.hear(&report);
        Ok(self.served.nobody_serves().map(|why| End::NobodyServes(why.into())))
    }

    /// Ends the mount. A thread does it, because `umount2(2)` waits for dirty pages, and so for a backend.
    fn finish(self, daemon: &Daemon, end: End) -> anyhow::Result<()> {
        // What it holds up would keep the mount busy.
        drop(self.stop_drill());
        let is_gone = matches!(end, End::ConnectionGone);
        // What is out of the tree is not looked for there: its numbers may be another's already.
        let is_lost = self.tree.is_lost();
        let is_aborted = is_gone && !is_lost && self.served.connection().is_mounted();
        let unmounted = if is_gone && !is_aborted {
            Unmounted::Cleanly
        } else if is_lost {
            Unmounted::Lazily
        } else {
            let (done, is_done) = mpsc::channel();
            let (served, limit) = (self.served, stop_limit(&self.mount.deadlines));
            std::thread::Builder::new().name("unmount".into()).spawn(move || drop(done.send(served.unmount())))?;
            is_done.recv_timeout(limit).map_err(|_| {
                anyhow::anyhow!("the unmount hangs; the process ends, and the kernel aborts the connection")
            })??
        };
        match end {
            End::NobodyServes(why) => anyhow::bail!("no backend can serve: {why}"),
            End::ConnectionGone if is_aborted => {
                anyhow::bail!("somebody has aborted the connection (/sys/fs/fuse/connections); the mount is taken away")
            }
            End::ConnectionGone | End::Told => {}
        }
        let stopped = Report::Stopped { lazily: unmounted == Unmounted::Lazily, by_others: is_gone };
        daemon.hear(&stopped);
        Ok(())
    }
}
