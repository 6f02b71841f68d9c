//! One served mount: a connection, a session of each backend, and who of them reads requests. All changes of that are
//! made here, one at a time: a switch, a failover, the end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::drill::{Drill, Part};
use crate::backend::{self, Context, StartError};
use crate::config::{Backend, Deadlines, Mount};
use crate::connection::port::{Drained, Leases, Order, Port, PortError, State};
use crate::connection::{Connection, Unmounted};
use crate::ledger::{Cause, Ledger, PortState};
use crate::vfs::Vfs;

use super::handover::{drain, hand_over};
use super::invalidation::Invalidation;
use super::orders::{Switched, Unavailable};
use super::slices::Slices;

/// How long a failover waits for answers of the session that has ended, before it goes on without asking the kernel to
/// send again what that session has read and lost.
const LAST_ANSWERS: Duration = Duration::from_millis(5);
/// How long a backend has to give its turn away. One that does not react in time keeps reading beside the other.
const TURN: Duration = Duration::from_millis(10);
/// How long everybody may be held up to see whether requests were lost.
const MOMENT: Duration = Duration::from_millis(20);

/// How long the end of an invalidation is awaited before the unmount, which would wait for it too.
const INVALIDATION_END: Duration = Duration::from_secs(2);

/// A session by its number: sessions of a backend follow each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionEnded {
    backend: Backend,
    session: u64,
}

/// Called, from any thread, when a session has ended by itself; to be given to [`Served::session_ended`].
pub type OnSessionEnd = Arc<dyn Fn(SessionEnded) + Send + Sync>;

/// Why a mount is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The backend that was asked for does not come up.
    #[error(transparent)]
    Start(#[from] StartError),
    /// It came up and could not be attached.
    #[error(transparent)]
    Port(#[from] PortError),
}

/// Why a switch failed. The old backend serves on.
#[derive(Debug, thiserror::Error)]
#[error("the switch to {to} failed, {serving} serves on: {reason}")]
pub struct SwitchError {
    to: Backend,
    serving: Backend,
    reason: String,
}

/// What became of the end of a session.
#[derive(Debug)]
pub enum Consequence {
    /// None: it was not reading requests, or was replaced before.
    None,
    /// Another session has taken over.
    FailedOver(Switched),
    /// The kernel has ended the connection: unmounted, or aborted.
    ConnectionGone,
    /// No session could take over, so nobody serves.
    NobodyServes(String),
}

struct Session {
    port: Arc<dyn Port>,
    number: u64,
}

/// See the module.
pub struct Served {
    context: Context,
    deadlines: Deadlines,
    sessions: [Option<Session>; 2],
    /// Who reads requests; of two that share the mount, whose turn it is.
    active: Backend,
    slices: Option<Slices>,
    next_session: u64,
    on_session_end: OnSessionEnd,
    nobody_serves: Option<String>,
    invalidation: Option<Invalidation>,
}

impl Served {
    /// Starts both sessions, and attaches the one that `mount` names, or, if it allows that, the other when that one does
    /// not come up. The process must be [prepared](backend::prepare).
    ///
    /// # Errors
    /// When none comes up that may serve; then the connection is unmounted.
    pub fn start(
        mount: &Mount,
        connection: Connection,
        vfs: Arc<dyn Vfs>,
        ledger: Ledger,
        on_session_end: OnSessionEnd,
    ) -> Result<(Self, Vec<Unavailable>), ServeError> {
        let connection = Arc::new(connection);
        let context = Context {
            vfs,
            connection: connection.clone(),
            ledger,
            leases: Leases::default(),
            cache: mount.cache,
            threads: mount.io.threads,
            drill: mount.drill.then(|| Part::serving(Arc::default())),
        };
        let mut served = Self {
            context,
            deadlines: mount.deadlines,
            sessions: [None, None],
            active: mount.stable(),
            slices: None,
            next_session: 0,
            on_session_end,
            nobody_serves: None,
            invalidation: None,
        };
        let mut unavailable = served.serve_first(&mount.backends_to_try()).inspect_err(|_| {
            if let Err(error) = connection.unmount(Duration::ZERO) {
                tracing::error!(%error, "the mount that failed is left behind: unmount it by hand");
            }
        })?;
        let others = Backend::ALL.into_iter().filter(|backend| {
            backend.is_built_in() && *backend != served.active && unavailable.iter().all(|one| one.backend != *backend)
        });
        for other in others.collect::<Vec<_>>() {
            if let Err(error) = served.start_session(other) {
                unavailable.push(Unavailable { backend: other, reason: error.to_string() });
            }
        }
        served.publish();
        match Invalidation::prepare(&connection, served.context.vfs.clone()) {
            Ok(invalidation) => served.invalidation = Some(invalidation),
            Err(error) => {
                tracing::warn!(%error, "after a rollback the kernel will keep what the candidate has answered until its lifetime is over");
            }
        }
        Ok((served, unavailable))
    }

    /// Attaches the first that comes up. Why those before it did not.
    fn serve_first(&mut self, order: &[Backend]) -> Result<Vec<Unavailable>, ServeError> {
        let mut unavailable = Vec::new();
        for (index, backend) in order.iter().copied().enumerate() {
            let attached = self.start_session(backend).map_err(ServeError::from).and_then(|port| Ok(port.attach()?));
            match attached {
                Ok(_since) => {
                    self.active = backend;
                    self.publish();
                    break;
                }
                Err(error) if index + 1 == order.len() => return Err(error),
                Err(error) => unavailable.push(Unavailable { backend, reason: error.to_string() }),
            }
        }
        Ok(unavailable)
    }

    /// The backend that serves; of two that share the mount, the one that serves more.
    #[must_use]
    pub fn active(&self) -> Backend {
        let Some(slices) = &self.slices else { return self.active };
        let candidate = slices.candidate();
        if slices.weight(candidate) > 50 { candidate } else { candidate.other() }
    }

    /// The kernel's side.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.context.connection
    }

    /// Where faults come from, if the mount allows them.
    #[must_use]
    pub fn drill(&self) -> Option<&Arc<Drill>> {
        self.context.drill.as_ref().map(Part::drill)
    }

    /// Keeps other deadlines from now on.
    pub fn set_deadlines(&mut self, deadlines: Deadlines) {
        self.deadlines = deadlines;
    }

    fn start_session(&mut self, backend: Backend) -> Result<Arc<dyn Port>, StartError> {
        let number = self.next_session;
        self.next_session += 1;
        let on_session_end = self.on_session_end.clone();
        let on_end = Arc::new(move || on_session_end(SessionEnded { backend, session: number }));
        let port = backend::start(backend, &self.context, on_end, self.deadlines.switch)?;
        self.sessions[backend.index()] = Some(Session { port: port.clone(), number });
        Ok(port)
    }

    /// A session that is parked and lives. One that hangs or has ended is replaced.
    fn living_session(&mut self, backend: Backend) -> Result<Arc<dyn Port>, StartError> {
        if let Some(session) = &self.sessions[backend.index()] {
            let is_good = session.port.state() == State::Parked
                && session
                    .port
                    .ping(self.deadlines.switch)
                    .inspect_err(|error| tracing::warn!(%backend, %error, "its session is replaced"))
                    .is_ok();
            if is_good {
                return Ok(session.port.clone());
            }
            session.port.retire();
        }
        self.start_session(backend)
    }

    /// Makes `to` serve.
    ///
    /// # Errors
    /// When it cannot; the backend that served before serves on.
    pub fn switch(&mut self, to: Backend, cause: Cause, reason: &str) -> Result<Switched, SwitchError> {
        let from = self.active;
        let result = self.try_switch(to, reason);
        let counted = self.context.ledger.switches();
        match &result {
            Ok(_) if from == to => {}
            Ok(switched) => counted.done(from, to, cause, nanoseconds(switched.pause_ms)),
            Err(_) => counted.failed(from, to, cause),
        }
        result
    }

    fn try_switch(&mut self, to: Backend, reason: &str) -> Result<Switched, SwitchError> {
        let from = self.active;
        let mut switched = Switched {
            from,
            to,
            reason: reason.into(),
            pause_ms: 0.0,
            total_ms: 0.0,
            in_flight: 0,
            answered_for_hung: 0,
        };
        if let Some(slices) = &self.slices {
            return self.end_slices(slices.turn(), to, reason);
        }
        if from == to {
            return Ok(switched);
        }
        let failed = |reason: String| SwitchError { to, serving: from, reason };
        let new = self.living_session(to).map_err(|error| failed(error.to_string()))?;
        let Some(old) = self.port(from) else {
            return Err(failed(format!("{from} has no session")));
        };
        let began = Instant::now();
        let (since, forced) = match hand_over(&*old, &*new, &self.deadlines) {
            Ok(done) => done,
            Err(error) => {
                self.keep_serving(from);
                return Err(failed(error.to_string()));
            }
        };
        switched.pause_ms = milliseconds(since - began);
        self.active = to;
        self.publish();
        let drained = match forced {
            Some(drained) => drained,
            None => drain(&*old, &*new, &self.deadlines),
        };
        switched.in_flight = drained.in_flight;
        switched.answered_for_hung = drained.answered_for_hung;
        switched.total_ms = milliseconds(began.elapsed());
        self.publish();
        Ok(switched)
    }

    /// From two that share the mount to one of them: what the other holds is answered, or gets EIO at the deadline.
    fn end_slices(&mut self, turn: Backend, to: Backend, reason: &str) -> Result<Switched, SwitchError> {
        let from = to.other();
        let failed = |reason: String| SwitchError { to, serving: from, reason };
        let (Some(old), Some(new)) = (self.port(from), self.port(to)) else {
            return Err(failed("one of the two has no session".into()));
        };
        if !new.has_free_reader() {
            return self.end_slices_of_busy(&*new, to, reason);
        }
        self.slices = None;
        let began = Instant::now();
        let handed_over = if turn == to {
            // It reads already; the other may still do so too, if it did not react in time.
            if old.state() == State::Attached
                && let Err(error) = old.detach(self.deadlines.drain.min(self.deadlines.switch))
            {
                // Its drain will fail too, and force it.
                tracing::warn!(%error, "a backend that is to end its turns does not react");
            }
            Ok((began, None))
        } else {
            hand_over(&*old, &*new, &self.deadlines)
        };
        let (since, forced) = match handed_over {
            Ok(done) => done,
            Err(error) => {
                self.keep_serving(turn);
                return Err(failed(error.to_string()));
            }
        };
        self.active = to;
        self.publish();
        let drained = forced.unwrap_or_else(|| drain(&*old, &*new, &self.deadlines));
        self.publish();
        Ok(Switched {
            from,
            to,
            reason: reason.into(),
            pause_ms: milliseconds(since - began),
            total_ms: milliseconds(began.elapsed()),
            in_flight: drained.in_flight,
            answered_for_hung: drained.answered_for_hung,
        })
    }

    /// The same when all readers of the one that is to serve are in handlers: while the other serves alone, it answers them or
    /// they get EIO at the deadline; then it is switched to, as a fresh session if it must.
    fn end_slices_of_busy(&mut self, new: &dyn Port, to: Backend, reason: &str) -> Result<Switched, SwitchError> {
        let from = to.other();
        let failed = |error: PortError| SwitchError { to, serving: from, reason: error.to_string() };
        let Some(old) = self.port(from) else { return Err(failed(PortError::Ended(from))) };
        if old.state() != State::Attached {
            old.attach().map_err(failed)?;
        }
        self.slices = None;
        self.active = from;
        new.detach(self.deadlines.switch).map_err(failed)?;
        self.publish();
        let drained = new.drain(self.deadlines.drain).map_err(failed)?;
        let mut switched = self.try_switch(to, reason)?;
        switched.in_flight += drained.in_flight;
        switched.answered_for_hung += drained.answered_for_hung;
        Ok(switched)
    }

    /// Gives `candidate` so many percent of the operations, and the other backend the rest: 0 and 100 are switches, between
    /// them both take turns. After a rollback the kernel is told to forget what was answered before; nobody waits for that.
    ///
    /// # Errors
    /// When one of them has no session that works; what was before goes on.
    pub fn weigh(
        &mut self,
        candidate: Backend,
        percent: u8,
        cause: Cause,
        reason: &str,
    ) -> Result<Option<Switched>, SwitchError> {
        let switched = self.share(candidate, percent, cause, reason)?;
        // Also if stable has served alone before: what is rolled back may have answered until a moment ago, or long ago.
        if cause == Cause::Rollback
            && let Some(invalidation) = &self.invalidation
        {
            invalidation.begin();
        }
        Ok(switched)
    }

    fn share(
        &mut self,
        candidate: Backend,
        percent: u8,
        cause: Cause,
        reason: &str,
    ) -> Result<Option<Switched>, SwitchError> {
        let alone = match percent {
            0 => Some(candidate.other()),
            1..100 => None,
            _ => Some(candidate),
        };
        if let Some(alone) = alone {
            let is_news = self.slices.is_some() || self.active != alone;
            return Ok(Some(self.switch(alone, cause, reason)?).filter(|_| is_news));
        }
        if let Some(slices) = &mut self.slices
            && slices.candidate() == candidate
        {
            slices.set_percent(percent);
        } else {
            if self.slices.is_none() {
                let (to, serving) = (self.active.other(), self.active);
                self.living_session(to).map_err(|error| SwitchError { to, serving, reason: error.to_string() })?;
            }
            self.slices = Some(Slices::new(candidate, percent, self.active, self.begun().0, Instant::now()));
        }
        self.publish();
        Ok(None)
    }

    /// Requests that each backend has begun, and whether some of them are not done.
    fn begun(&self) -> ([u64; Backend::ALL.len()], bool) {
        let mut begun = Backend::ALL.map(|backend| self.context.ledger.operations(backend));
        let in_flight = self.context.ledger.in_flight();
        for request in in_flight.iter().filter(|request| !request.abandoned) {
            begun[request.backend.index()] += 1;
        }
        (begun, !in_flight.is_empty())
    }

    fn port(&self, backend: Backend) -> Option<Arc<dyn Port>> {
        self.sessions[backend.index()].as_ref().map(|session| session.port.clone())
    }

    /// When [`take_turn`](Self::take_turn) is due, while two backends share the mount.
    #[must_use]
    pub fn turn_due(&self) -> Option<Instant> {
        self.slices.as_ref().map(Slices::due)
    }

    /// The turn of the backend that reads requests is over. Nobody waits for what it still holds: it answers that in the
    /// other's turn, and then reads again.
    pub fn take_turn(&mut self) {
        let Some(turn) = self.slices.as_ref().map(Slices::turn) else { return };
        let (Some(old), Some(new)) = (self.port(turn), self.port(turn.other())) else { return };
        let (begun, is_busy) = self.begun();
        if let Some(slices) = &mut self.slices
            && slices.goes_on(begun, is_busy, self.context.connection.has_queued(), Instant::now())
        {
            return;
        }
        // Whoever would read nothing has no turn: one that did not give its last turn away because its runtime hangs in a
        // handler (it still reads beside the other then, as far as it can), or whose threads all do.
        let is_stuck = new.state() == State::Attached && new.detach(TURN).is_err();
        if is_stuck || !new.has_free_reader() {
            if let Some(slices) = &mut self.slices {
                slices.put_off(Instant::now());
            }
            return;
        }
        if let Err(error) = change_turns(&*old, &*new) {
            // If its session has ended, that is on its way as an event, and brings the failover.
            tracing::warn!(%error, "a backend could not take its turn; {turn} goes on");
            if let Err(error) = old.attach() {
                tracing::error!(%error, "{turn} cannot go on either");
                self.slices = None;
                self.keep_serving(turn);
            } else if let Some(slices) = &mut self.slices {
                slices.put_off(Instant::now());
            }
            return;
        }
        self.active = turn.other();
        if let Some(slices) = &mut self.slices {
            slices.turned(begun, is_busy, Instant::now());
        }
    }

    /// After a switch that failed: if the old session is good for nothing any more, a fresh one serves in its place.
    fn keep_serving(&mut self, backend: Backend) {
        let is_attached =
            self.sessions[backend.index()].as_ref().is_some_and(|session| session.port.state() == State::Attached);
        if is_attached {
            return;
        }
        if let Err(error) = self.attach_any([backend, backend.other()]) {
            tracing::error!(error, "nobody serves");
            self.nobody_serves = Some(error);
        }
        self.publish();
    }

    /// Attaches a living session of one of these backends, the first that comes up.
    fn attach_any(&mut self, backends: [Backend; 2]) -> Result<Backend, String> {
        let mut failures = Vec::new();
        for backend in backends {
            let session = self.living_session(backend).map_err(|error| error.to_string());
            match session.and_then(|session| session.attach().map_err(|error| error.to_string())) {
                Ok(_since) => {
                    self.active = backend;
                    return Ok(backend);
                }
                Err(error) => failures.push(format!("{backend}: {error}")),
            }
        }
        Err(failures.join("; "))
    }

    /// Why no backend could be attached any more, if so: then the mount must end.
    #[must_use]
    pub fn nobody_serves(&self) -> Option<&str> {
        self.nobody_serves.as_deref()
    }

    /// A session has ended by itself.
    pub fn session_ended(&mut self, ended: SessionEnded) -> Consequence {
        let is_current =
            self.sessions[ended.backend.index()].as_ref().is_some_and(|session| session.number == ended.session);
        if !is_current {
            return Consequence::None;
        }
        if self.context.connection.is_gone() {
            return Consequence::ConnectionGone;
        }
        tracing::warn!(backend = %ended.backend, "its session has ended by itself");
        self.context.ledger.count_ended_session(ended.backend);
        if self.slices.take().is_some() {
            return self.fail_over_from_slices(ended.backend);
        }
        if ended.backend != self.active {
            self.publish();
            return Consequence::None;
        }
        let from = self.active;
        let (old, began) = (self.port(from), Instant::now());
        self.recover_from_ended(from);
        let attached = self.attach_any([from.other(), from]);
        self.conclude_failover(from, old, began, attached)
    }

    /// Another session is attached, or none is, in the place of `old`, which had ended when it `began`.
    fn conclude_failover(
        &mut self,
        from: Backend,
        old: Option<Arc<dyn Port>>,
        began: Instant,
        attached: Result<Backend, String>,
    ) -> Consequence {
        let to = match attached {
            Ok(to) => to,
            Err(error) => {
                self.publish();
                return Consequence::NobodyServes(error);
            }
        };
        let pause_ms = milliseconds(began.elapsed());
        self.context.ledger.switches().done(from, to, Cause::Failover, nanoseconds(pause_ms));
        self.publish();
        // What it still holds is answered, or gets EIO at the deadline, as after a switch. One that was replaced by a session
        // of its own backend is retired by now, and takes no more orders.
        let drained = match old.filter(|old| old.backend() != to).map(|old| old.drain(self.deadlines.drain)) {
            Some(Ok(drained)) => drained,
            Some(Err(error)) => {
                tracing::warn!(%from, %error, "what the session that has ended still held is not known");
                Drained::default()
            }
            None => Drained::default(),
        };
        Consequence::FailedOver(Switched {
            from,
            to,
            reason: format!("the session of {from} has ended by itself"),
            pause_ms,
            total_ms: milliseconds(began.elapsed()),
            in_flight: drained.in_flight,
            answered_for_hung: drained.answered_for_hung,
        })
    }

    /// One of two that share the mount has ended: the other serves alone.
    fn fail_over_from_slices(&mut self, from: Backend) -> Consequence {
        let to = from.other();
        let began = Instant::now();
        // What the ended one has lost may only be asked for again while the other holds nothing either. If that takes
        // longer than a moment, it is found later as lost.
        if let Some(other) = self.port(to)
            && other.detach(TURN).is_ok()
            && other.has_settled(MOMENT)
        {
            self.recover_from_ended(from);
        }
        let old = self.port(from);
        // One whose readers are all in handlers would read nothing: they get EIO at the deadline, and a fresh session serves.
        if let Some(other) = self.port(to).filter(|other| !other.has_free_reader())
            && let Err(error) = other.drain(self.deadlines.drain)
        {
            tracing::warn!(%to, %error, "what it holds is not known");
        }
        let attached = match self.port(to).filter(|port| port.state() != State::Hung).map(|port| port.attach()) {
            Some(Ok(_since)) => {
                self.active = to;
                Ok(to)
            }
            _ => self.attach_any([to, from]),
        };
        self.conclude_failover(from, old, began, attached)
    }

    /// A session that ended may have read a request and lost it. The kernel sends such requests again if asked; that is
    /// safe once nothing is left in hand that could still be answered.
    fn recover_from_ended(&self, from: Backend) {
        let settled =
            self.sessions[from.index()].as_ref().is_some_and(|session| session.port.has_settled(LAST_ANSWERS));
        if !settled {
            tracing::warn!(%from, "it still holds requests, so what it may have lost is not asked for again");
            return;
        }
        self.ask_again(from);
    }

    /// Has the kernel send again what `from` has read and lost. Only while nobody holds a request.
    fn ask_again(&self, from: Backend) {
        self.context.ledger.blame(Some(from));
        match self.context.connection.resend() {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {
                tracing::debug!("this kernel cannot send requests again (before Linux 6.9)");
            }
            Err(error) => tracing::warn!(%error, "requests could not be asked for again"),
        }
    }

    /// Sees whether the backend that serves has read requests and lost them, and has the kernel send those again. For that it
    /// reads none for a moment; if what it holds takes longer than a moment, nothing is done. Of two that share the mount the
    /// candidate is blamed: the stable one was trusted before, and a doubt is to end the trial.
    ///
    /// # Errors
    /// When the session does not react; it serves on.
    pub fn recover_lost(&mut self) -> Result<(), PortError> {
        let backend = self.active;
        let Some(port) = self.port(backend) else { return Err(PortError::Ended(backend)) };
        let sharing = self.slices.as_ref().and_then(|_| self.port(backend.other()));
        if sharing.as_ref().is_some_and(|other| other.state() == State::Attached) {
            // It did not give its turn away in time: not the moment.
            return Ok(());
        }
        port.detach(self.deadlines.switch)?;
        let blamed = self.slices.as_ref().map_or(backend, Slices::candidate);
        if port.has_settled(MOMENT) && sharing.is_none_or(|other| other.has_settled(MOMENT)) {
            self.ask_again(blamed);
        }
        if let Err(error) = port.attach() {
            self.keep_serving(backend);
            return Err(error);
        }
        Ok(())
    }

    /// Makes the session that serves end as if by itself, for rehearsals and tests.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn end_active_session(&self) -> Result<(), PortError> {
        self.end_session(self.active)
    }

    /// Makes the session of this backend end as if by itself.
    ///
    /// # Errors
    /// When it does not read requests.
    pub fn end_session(&self, backend: Backend) -> Result<(), PortError> {
        match &self.sessions[backend.index()] {
            Some(session) if session.port.state() == State::Attached => session.port.end_by_itself(),
            _ => Err(PortError::Ended(backend)),
        }
    }

    /// Unmounts, with the deadline of the mount. The sessions end with the connection.
    ///
    /// # Errors
    /// When even a lazy unmount fails.
    pub fn unmount(&self) -> std::io::Result<Unmounted> {
        for session in self.sessions.iter().flatten() {
            tracing::debug!(backend = %session.port.backend(), state = ?session.port.state(), "unmounting");
        }
        if let Some(invalidation) = &self.invalidation
            && !invalidation.end(INVALIDATION_END)
        {
            tracing::warn!("the kernel is still being told what to forget: the unmount waits for that");
        }
        self.context.connection.unmount(self.deadlines.unmount)
    }

    fn publish(&self) {
        for backend in Backend::ALL {
            // Whose turn it is changes a hundred times a second, and is nobody's business.
            if let Some(slices) = &self.slices {
                self.context.ledger.set_port_state(backend, PortState::Attached);
                self.context.ledger.set_weight(backend, slices.weight(backend).into());
                continue;
            }
            let state = match self.sessions[backend.index()].as_ref().map(|session| session.port.state()) {
                None => PortState::Absent,
                Some(State::Parked) => PortState::Parked,
                Some(State::Attached) => PortState::Attached,
                Some(State::Draining) => PortState::Draining,
                Some(State::Hung) => PortState::Hung,
                Some(State::Ended) => PortState::Ended,
            };
            self.context.ledger.set_port_state(backend, state);
            self.context.ledger.set_weight(backend, if backend == self.active { 100 } else { 0 });
        }
    }
}

/// From one that reads to one that may still hold requests of its last turn.
fn change_turns(old: &dyn Port, new: &dyn Port) -> Result<(), PortError> {
    if old.order() == Order::NextFirst {
        new.attach()?;
        return old.detach(TURN);
    }
    match old.detach(TURN) {
        Ok(()) | Err(PortError::Ended(_)) => {}
        // Its runtime is busy in a handler. Both read until its next turn ends, rather than nobody.
        Err(PortError::Silent { .. }) => {}
        Err(error) => return Err(error),
    }
    new.attach().map(drop)
}

fn nanoseconds(milliseconds: f64) -> u64 {
    (milliseconds * 1e6) as u64
}

fn milliseconds(duration: Duration) -> f64 {
    // To the microsecond: more would be noise.
    duration.as_micros() as f64 / 1e3
}
