//! The task of one server: the only one that talks to it, so that orders never meet each other.
//!
//! It waits for nothing without a deadline, notes what the server reports unasked, and when it ends the mount is gone:
//! unmounted by the server, or, if the server died or was stuck, taken away from here.

mod drill;
mod shadow;

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::facts::{Again, End, Greeting, Phase};
use super::keeper::Plan;
use super::pilot::{Happened, How};
use super::recorder::Recorder;
use super::running::{Event, Running};
use super::{dead_mount, process};
use crate::api::ControlError;
use crate::api::events;
use crate::api::model::LastSwitch;
use crate::backend::drill::{Ended, Ongoing, Plan as DrillPlan};
use crate::config::{Backend, Deadlines, Mount};
use crate::connection::{fusectl, mountinfo};
use crate::ledger::{Cause, Ledger};
use crate::rollout::Because;
use crate::server::{
    self,
    orders::{Hello, LineError, Order, PastSwitch, Report, Switched, VERSION},
};
use crate::shadow::{Comparing, Told};

/// For a server to mount and begin; helpers have deadlines of their own below this.
const START: Duration = Duration::from_secs(30);
/// What a server may need beyond the deadlines that it keeps itself.
const MARGIN: Duration = Duration::from_secs(3);
/// For a process that has said its last word, or was killed, to be gone.
const DEATH: Duration = Duration::from_secs(3);
/// Until a server that did not take an order is tried again.
const NEXT_CHANCE: Duration = Duration::from_secs(1);
/// A reload that came at most so long before the news that the mount is unmounted came after the unmount itself.
const NEWS: Duration = Duration::from_secs(2);
/// For a dead mount to be taken away.
const CLEANING: Duration = Duration::from_secs(10);

/// How long a mount may take to be unmounted from the order on.
pub(super) fn stop_limit(deadlines: &Deadlines) -> Duration {
    deadlines.unmount + MARGIN
}

/// What the rest of the daemon wants of a mount.
#[derive(Debug)]
pub enum Request {
    /// Give a backend its share of the operations.
    Weigh {
        /// The backend that is tried.
        candidate: Backend,
        /// Its share in percent.
        percent: u8,
        /// What makes it so.
        cause: Cause,
        /// Why, in a few words.
        reason: String,
        /// Where the answer goes: the switch, if one serves alone now that did not before.
        answer: oneshot::Sender<Result<Option<Switched>, ControlError>>,
    },
    /// Inject faults.
    Drill {
        /// What is to be done.
        plan: DrillPlan,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<Ongoing, ControlError>>,
    },
    /// Inject no more faults. The answer is what was stopped.
    StopDrill {
        /// Where it goes.
        answer: oneshot::Sender<Result<Option<Ended>, ControlError>>,
    },
    /// Compare this from now on, or nothing.
    Compare(Option<Comparing>),
    /// Tell what comparisons have found.
    TellCompared {
        /// Where the answer goes.
        answer: oneshot::Sender<Result<Told, ControlError>>,
    },
    /// See whether requests were lost.
    RecoverLost,
    /// Unmount and end.
    Stop,
    /// Be like this from now on, as far as that goes while it is served; try again if it is not.
    Reconfigure(Arc<Mount>),
    /// Log this from now on.
    LogLevel(String),
}

impl Request {
    /// Answers one that only a server can do, of which there is none.
    pub fn refuse(self, mount: &str, why: &str) {
        let error = ControlError::NotServed { mount: mount.into(), why: why.into() };
        // A client that has gone does not need to be told.
        match self {
            Self::Weigh { answer, .. } => drop(answer.send(Err(error))),
            Self::Drill { answer, .. } => drop(answer.send(Err(error))),
            Self::StopDrill { answer } => drop(answer.send(Err(error))),
            Self::TellCompared { answer } => drop(answer.send(Err(error))),
            Self::Compare(_) | Self::RecoverLost | Self::Stop | Self::Reconfigure(_) | Self::LogLevel(_) => {}
        }
    }
}

/// How a server comes to serve.
pub enum Beginning {
    /// It is told to mount.
    Serve {
        /// Where it is to wait for the next daemon.
        meeting: Option<PathBuf>,
        /// The backend that served before, if this server replaces one that has died.
        resume: Option<Backend>,
        /// The backend that is wanted, if servers died of it and this one begins with another.
        given_up: Option<Backend>,
    },
    /// It serves already, started by an earlier daemon.
    Adopted {
        /// What it says of itself.
        hello: Box<Hello>,
        /// What it is to log from now on.
        log_level: Option<String>,
    },
}

/// The task of one server: from its first order, or its adoption, to its end.
pub struct Task<'a> {
    mount: Arc<Mount>,
    /// Where mountinfo shows the mount; `None` when it is somebody else's, of which we were given a descriptor.
    place: Option<PathBuf>,
    /// The mount's number there, once it is made: a later one at the same place is somebody else's.
    number: Option<u32>,
    /// What becomes of it if somebody else unmounts it.
    again: Again,
    /// Whether its server can do without this daemon.
    is_left: bool,
    /// Whether somebody else has unmounted it, and programs still use it.
    is_detached: bool,
    /// When a configuration was last read again.
    reloaded: Option<Instant>,
    server: Running,
    ledger: Ledger,
    pilot: mpsc::UnboundedSender<Happened>,
    facts: &'a Recorder,
    requests: &'a mut mpsc::Receiver<Request>,
    /// Answers that are still to come to orders whose deadline has passed. The server works in order, so that many
    /// answers are skipped before the next one counts.
    owed: usize,
    /// Orders that nobody waits for and that could not be sent yet; of each kind the newest.
    unsent: Vec<Order>,
    /// Requests that came while an answer of the server was waited for.
    held: VecDeque<Request>,
}

impl<'a> Task<'a> {
    /// A task over a server that has just been started or found by the keeper of `plan`, where its requests come from, and
    /// its facts go. Needs a runtime.
    ///
    /// # Errors
    /// When descriptors have run out.
    pub fn new(
        place: Option<PathBuf>,
        server: process::Server,
        plan: &Plan,
        facts: &'a Recorder,
        requests: &'a mut mpsc::Receiver<Request>,
    ) -> io::Result<Self> {
        let process::Server { line, ledger, process } = server;
        let server = Running::new(line, process)?;
        let mount = facts.borrow().mount.clone();
        facts.send_modify(|facts| {
            facts.phase = Phase::Starting;
            facts.step = format!("its server mounts, which may take {START:?}");
            facts.server = Some((server.pid(), ledger.clone()));
            facts.counted = Some(ledger.clone());
            facts.greeting = None;
            facts.unavailable.clear();
            facts.drill = None;
        });
        Ok(Self {
            mount,
            place,
            number: None,
            again: if plan.alone { Again::Never } else { Again::Reload },
            is_left: plan.meeting.is_some(),
            is_detached: false,
            reloaded: None,
            server,
            ledger,
            pilot: plan.happened.clone(),
            facts,
            requests,
            owed: 0,
            unsent: Vec::new(),
            held: VecDeque::new(),
        })
    }

    /// Runs the server from its start to its end.
    pub async fn run(mut self, beginning: Beginning) -> End {
        let begun = match beginning {
            Beginning::Serve { meeting, resume, given_up } => self.start(meeting, resume, given_up).await,
            Beginning::Adopted { hello, log_level } => {
                let because = match &hello.because {
                    Some((Cause::Failover, why)) => Because::FailedOver(why.clone()),
                    Some((Cause::Operator, _)) => Because::Operator,
                    Some((Cause::Rollout | Cause::Rollback, _)) | None => Because::Ordered,
                };
                self.greet(*hello, How::Adopted(because));
                // It knows those of an earlier daemon.
                self.tell(Order::Adjust { deadlines: self.mount.deadlines });
                if let Some(level) = log_level {
                    self.tell(Order::LogLevel { level });
                }
                Ok(())
            }
        };
        let end = match begun {
            Ok(()) => self.serve().await,
            Err(end) => end,
        };
        let is_released = self.is_detached && self.is_left && matches!(end, End::Stopped | End::Superseded);
        if !is_released {
            self.bury(&end).await;
        }
        if self.facts.borrow().greeting.is_some() {
            self.happened(Happened::Ended { died: matches!(end, End::Died(_) | End::Forced(_)) });
        }
        self.facts.send_modify(|facts| {
            facts.phase = Phase::Ended(end.clone());
            facts.last_active = self.ledger.active();
            facts.server = None;
            facts.drill = None;
        });
        if is_released {
            self.release();
        }
        end
    }

    async fn start(
        &mut self,
        meeting: Option<PathBuf>,
        resume: Option<Backend>,
        given_up: Option<Backend>,
    ) -> Result<(), End> {
        let order = Order::Serve { version: VERSION, mount: Box::new((*self.mount).clone()), meeting, resume };
        self.server.send(&order).map_err(|error| End::Failed(error.to_string()))?;
        let deadline = tokio::time::Instant::now() + START;
        loop {
            let report = tokio::select! {
                event = self.server.event() => match event {
                    Event::Report(report) => report,
                    Event::Gone(why) => return Err(End::Failed(format!("{why} while it was mounting; see the log"))),
                },
                request = self.requests.recv() => match request {
                    Some(Request::Reconfigure(mount)) => {
                        self.reconfigure(&mount);
                        // It may hang by what was wrong in the configuration.
                        if self.is_to_be_another() {
                            tracing::info!(mount = self.mount.name, "it is to be another: begun anew");
                            return Err(End::Superseded);
                        }
                        continue;
                    }
                    Some(Request::LogLevel(level)) => {
                        self.tell(Order::LogLevel { level });
                        continue;
                    }
                    Some(Request::Stop) | None => return Err(self.stop().await),
                    Some(other) => {
                        other.refuse(&self.mount.name, "it is starting");
                        continue;
                    }
                },
                () = tokio::time::sleep_until(deadline) => {
                    return Err(End::Failed(format!("the serving process has not mounted within {START:?}; see its log")));
                }
            };
            match report {
                Report::Hello(hello) if hello.version == VERSION => {
                    let how = match given_up {
                        Some(backend) if backend != hello.active => {
                            How::GaveUp(format!("servers died while {backend} served"))
                        }
                        // As it was told; by now something else may be wanted.
                        _ if resume == Some(hello.active) => How::Resumed,
                        _ => How::Started,
                    };
                    self.greet(*hello, how);
                    return Ok(());
                }
                Report::Hello(hello) => {
                    return Err(End::Failed(format!(
                        "the serving process speaks version {} of the messages, not {VERSION}: start both from one build",
                        hello.version
                    )));
                }
                Report::Failed { message } => return Err(End::Failed(message)),
                other => self.note(other).map_or(Ok(()), Err)?,
            }
        }
    }

    fn greet(&mut self, hello: Hello, how: How) {
        let Hello { mount_id, active, protocol_minor, helper, unavailable, last_switch, drill, .. } = hello;
        self.number = self.place.as_deref().and(mount_id);
        self.facts.send_modify(|facts| {
            facts.phase = Phase::Serving;
            facts.greeting = Some(Greeting { active, protocol_minor, helper });
            facts.unavailable = unavailable;
            facts.drill = drill;
        });
        self.happened(Happened::Began { serving: active, how });
        tracing::debug!(mount = self.mount.name, %active, "it is served");
        let mut failures = 0;
        self.facts.send_modify(|facts| failures = mem::take(&mut facts.failures));
        if failures > 0 {
            tracing::info!(mount = self.mount.name, %active, failures, "it is served again");
        }
        if let Some(PastSwitch { switched, at }) = last_switch {
            self.record(&switched, at);
        }
    }

    /// Sends an order that nobody waits for, as soon as the server takes it.
    fn tell(&mut self, order: Order) {
        let is_other = |other: &Order| mem::discriminant(other) != mem::discriminant(&order);
        self.unsent.retain(is_other);
        self.unsent.push(order);
        self.send_unsent();
        if let Some(order) = self.unsent.last() {
            tracing::info!(mount = self.mount.name, ?order, "the server is too busy to be told; it will be");
        }
    }

    fn send_unsent(&mut self) {
        while let Some(order) = self.unsent.first() {
            if let Err(error) = self.server.send(order) {
                return tracing::debug!(mount = self.mount.name, %error, ?order, "not sent");
            }
            self.unsent.remove(0);
        }
    }

    /// Whether its server, which does not serve yet, was started with something else than is configured now.
    fn is_to_be_another(&self) -> bool {
        let facts = self.facts.borrow();
        !facts.outdated().is_empty() || facts.wanted.backend != facts.started_as.backend
    }

    /// Takes what can change under a server that serves; the rest counts when it is mounted again.
    fn reconfigure(&mut self, wanted: &Mount) {
        self.facts.send_modify(|facts| facts.wanted = Arc::new(wanted.clone()));
        let Mount { backend, deadlines, fallback, .. } = *wanted;
        let live = Mount { backend, deadlines, fallback, ..(*self.mount).clone() };
        if live == *self.mount {
            return;
        }
        if live.deadlines != self.mount.deadlines {
            self.tell(Order::Adjust { deadlines: live.deadlines });
        }
        self.mount = Arc::new(live);
        self.facts.send_modify(|facts| facts.mount = self.mount.clone());
    }

    async fn serve(&mut self) -> End {
        loop {
            self.send_unsent();
            let end = tokio::select! {
                () = tokio::time::sleep(NEXT_CHANCE), if !self.unsent.is_empty() => None,
                event = self.server.event() => match event {
                    Event::Report(report) => self.note(report),
                    Event::Gone(why) => Some(self.died(why)),
                },
                request = next(&mut self.held, self.requests) => match request {
                    Some(Request::Reconfigure(mount)) => {
                        self.reconfigure(&mount);
                        self.reloaded = Some(Instant::now());
                        self.is_detached.then_some(End::Superseded)
                    }
                    Some(Request::LogLevel(level)) => {
                        self.tell(Order::LogLevel { level });
                        None
                    }
                    Some(Request::Weigh { candidate, percent, cause, reason, answer }) => {
                        let (result, end) = self.weigh(candidate, percent, cause, reason).await;
                        self.reply(answer, result);
                        end
                    }
                    Some(Request::Drill { plan, answer }) => self.answer_drill(plan, answer).await,
                    Some(Request::StopDrill { answer }) => self.answer_stop_drill(answer).await,
                    Some(Request::Compare(comparing)) => {
                        self.tell(Order::Compare { comparing });
                        None
                    }
                    Some(Request::TellCompared { answer }) => self.answer_compared(answer).await,
                    Some(Request::RecoverLost) => {
                        if let Err(error) = self.server.send(&Order::RecoverLost) {
                            tracing::warn!(mount = self.mount.name, %error, "the server cannot be told to look for lost requests");
                        }
                        None
                    }
                    Some(Request::Stop) | None => Some(self.stop().await),
                },
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    /// Has the server change who serves, and waits for what it did. An error may come with the mount's end.
    async fn weigh(
        &mut self,
        candidate: Backend,
        percent: u8,
        cause: Cause,
        reason: String,
    ) -> (Result<Option<Switched>, ControlError>, Option<End>) {
        let alone = if percent == 0 { candidate.other() } else { candidate };
        let is_so =
            matches!(percent, 0 | 100) && self.ledger.active() == Some(alone) && self.ledger.weight(alone.other()) == 0;
        // A rollback is more: the server has the kernel forget what was answered before.
        if is_so && cause != Cause::Rollback {
            return (Ok(None), None);
        }
        let order = Order::Weigh { candidate, percent, cause, reason };
        self.facts.send_modify(|facts| facts.phase = Phase::Switching);
        let limit = server::switch_limit(&self.mount.deadlines) + MARGIN;
        let result = match self.server.send(&order) {
            Ok(()) => timeout(limit, self.changed()).await,
            // It is dying, which comes as an event.
            Err(error @ LineError::Closed) => {
                Ok(Err((ControlError::NotServed { mount: self.mount.name.clone(), why: error.to_string() }, None)))
            }
            Err(error) => Ok(Err((ControlError::Refused(error.to_string()), None))),
        };
        let (result, end) = match result {
            Ok(Ok(switched)) => (Ok(switched), None),
            Ok(Err((error, end))) => (Err(error), end),
            Err(_) => {
                self.owed += 1;
                (Err(ControlError::Late { mount: self.mount.name.clone(), limit }), None)
            }
        };
        if let Err(error) = &result {
            tracing::error!(mount = self.mount.name, ?order, %error, "a change of the backend failed");
            let (mount, reason) = (self.mount.name.clone(), error.to_string());
            self.facts.publish(events::Event::SwitchFailed { mount, to: alone, reason });
        }
        let phase = if self.is_detached { Phase::Detached { again: self.again } } else { Phase::Serving };
        self.facts.send_modify(|facts| facts.phase = phase);
        (result, end)
    }

    async fn changed(&mut self) -> Result<Option<Switched>, (ControlError, Option<End>)> {
        loop {
            let Some(event) = self.event_unless_stopped().await else {
                return Err((self.is_stopped(), None));
            };
            let end = match event {
                Event::Report(Report::Weighed { switched, .. }) if self.owed == 0 => {
                    if let Some(switched) = &switched {
                        self.record(switched, SystemTime::now());
                        self.publish(switched);
                    }
                    return Ok(switched);
                }
                Event::Report(Report::Failed { message }) if self.owed == 0 => {
                    return Err((ControlError::Refused(message), None));
                }
                Event::Report(other) => self.note(other),
                Event::Gone(why) => Some(self.died(why)),
            };
            if let Some(end) = end {
                let why = format!("it ended during the switch ({end:?})");
                return Err((ControlError::NotServed { mount: self.mount.name.clone(), why }, Some(end)));
            }
        }
    }

    /// The next that the server does while its answer is waited for. Requests that it is to answer too wait meanwhile. `None`:
    /// it is told to stop, and its answer is owed.
    async fn event_unless_stopped(&mut self) -> Option<Event> {
        loop {
            tokio::select! {
                event = self.server.event() => return Some(event),
                request = self.requests.recv() => match request {
                    Some(Request::Stop) | None => {
                        self.held.push_front(Request::Stop);
                        self.owed += 1;
                        return None;
                    }
                    Some(Request::Reconfigure(mount)) if !self.is_detached => {
                        self.reconfigure(&mount);
                        self.reloaded = Some(Instant::now());
                    }
                    Some(Request::LogLevel(level)) => self.tell(Order::LogLevel { level }),
                    Some(other) => self.held.push_back(other),
                },
            }
        }
    }

    /// Why an answer is not waited for any longer.
    fn is_stopped(&self) -> ControlError {
        ControlError::NotServed { mount: self.mount.name.clone(), why: "it is being unmounted".into() }
    }

    /// Tells the server to unmount, and waits until it has or its deadline has passed.
    async fn stop(&mut self) -> End {
        if self.is_detached && self.is_left {
            return End::Stopped;
        }
        self.facts.send_modify(|facts| facts.phase = Phase::Stopping);
        if let Err(error) = self.server.send(&Order::Stop) {
            return End::Forced(format!("it could not be told to stop: {error}"));
        }
        let limit = stop_limit(&self.mount.deadlines);
        let stopped = timeout(limit, async {
            loop {
                match self.server.event().await {
                    Event::Report(Report::Stopped { lazily, .. }) => {
                        if lazily {
                            tracing::warn!(
                                mount = self.mount.name,
                                "the mount was busy: detached lazily; what programs have open in it fails from now on (ENOTCONN)"
                            );
                        }
                        return End::Stopped;
                    }
                    Event::Report(other) => drop(self.note(other)),
                    Event::Gone(why) => return End::Forced(format!("{why} while it was unmounting")),
                }
            }
        });
        stopped.await.unwrap_or_else(|_| End::Forced(format!("the serving process has not unmounted within {limit:?}")))
    }

    /// Notes a report that answers nothing now. The mount's end, if it is that.
    fn note(&mut self, report: Report) -> Option<End> {
        let mount = &self.mount.name;
        match report {
            Report::FailedOver(switched) => {
                tracing::warn!(
                    mount, from = %switched.from, to = %switched.to, pause_ms = switched.pause_ms, reason = switched.reason,
                    "a backend ended by itself; the other one has taken over"
                );
                self.record(&switched, SystemTime::now());
                self.happened(Happened::FailedOver { to: switched.to, why: switched.reason.clone() });
                self.facts.publish(events::Event::Failover {
                    mount: mount.clone(),
                    from: switched.from,
                    to: switched.to,
                    reason: switched.reason,
                    pause_ms: switched.pause_ms,
                });
            }
            Report::Weighed { candidate, percent, switched } => {
                self.owed = self.owed.saturating_sub(1);
                tracing::warn!(mount, %candidate, percent, "a share was given after its deadline");
                if let Some(switched) = switched {
                    self.record(&switched, SystemTime::now());
                    self.publish(&switched);
                }
            }
            Report::Failed { message } => {
                self.owed = self.owed.saturating_sub(1);
                tracing::error!(mount, message, "the server reports a failure");
            }
            Report::Detached => {
                tracing::warn!(mount, "{}", self.again.why_detached());
                self.is_detached = true;
                // What is there from now on is another mount, whatever its number.
                self.place = None;
                self.facts.send_modify(|facts| facts.phase = Phase::Detached { again: self.again });
                if self.reloaded.is_some_and(|reloaded| reloaded.elapsed() < NEWS) {
                    return Some(End::Superseded);
                }
            }
            Report::Stopped { by_others: true, .. } => return Some(End::Unmounted),
            Report::Stopped { .. } => {
                return Some(End::Died("the serving process stopped without being told to".into()));
            }
            Report::Drilling(_) | Report::DrillStopped { .. } | Report::DrillOver(_) => self.note_drill(report),
            // Nobody waits for it any more.
            Report::Compared(_) => self.owed = self.owed.saturating_sub(1),
            Report::Hello(_) => tracing::warn!(mount, "the server says hello a second time; ignored"),
        }
        None
    }

    /// The end of a process that has not said that it ends.
    fn died(&self, why: String) -> End {
        if !self.is_detached {
            return End::Died(why);
        }
        tracing::error!(mount = self.mount.name, "{why}; the programs that still used the mount get errors (ENOTCONN)");
        End::Unmounted
    }

    /// Leaves the server with the programs that still use the mount. It ends by itself.
    fn release(self) {
        let Self { mount, mut server, .. } = self;
        let pid = server.pid();
        tracing::info!(
            mount = mount.name,
            pid,
            "the old server serves the programs that still use it, until they let go"
        );
        // Its line is kept, but nobody says anything any more: it does not need it, and whoever has started it reaps it.
        tokio::spawn(async move {
            while let Event::Report(_) = server.event().await {}
            tracing::info!(
                mount = mount.name,
                pid,
                "the last program has let go of the old mount: its server has ended"
            );
        });
    }

    /// Tells the pilot, if there is one still.
    fn happened(&self, what: Happened) {
        if let Err(unheard) = self.pilot.send(what) {
            tracing::debug!(mount = self.mount.name, what = ?unheard.0, "no pilot hears it");
        }
    }

    fn record(&self, switched: &Switched, at: SystemTime) {
        let last = LastSwitch {
            from: switched.from,
            to: switched.to,
            reason: switched.reason.clone(),
            pause_ms: switched.pause_ms,
            at,
        };
        self.facts.send_modify(|facts| facts.last_switch = Some(last));
    }

    fn publish(&self, switched: &Switched) {
        self.facts.publish(events::Event::Switch {
            mount: self.mount.name.clone(),
            from: switched.from,
            to: switched.to,
            reason: switched.reason.clone(),
            pause_ms: switched.pause_ms,
            in_flight: switched.in_flight,
            answered_for_hung: switched.answered_for_hung,
        });
    }

    /// Sends an answer to a client, who may have gone.
    fn reply<T>(&self, answer: oneshot::Sender<T>, result: T) {
        if answer.send(result).is_err() {
            tracing::info!(mount = self.mount.name, "a client did not wait for the answer");
        }
    }

    /// Ends the connection of a server that was killed and does not go: a thread of it may wait in the kernel for a program
    /// whose request nobody will answer now ([`notify`](crate::connection::notify)). Whether that could be done.
    fn abort(&self) -> bool {
        let mount = &self.mount.name;
        let mounts = mountinfo::read().unwrap_or_default();
        let at_place = self.place.as_deref().and_then(|place| mountinfo::at(&mounts, place));
        let Some(found) = at_place.filter(|mounted| mounted.is_ours() && Some(mounted.id) == self.number) else {
            return false;
        };
        let aborted = fusectl::abort(found.device);
        match &aborted {
            Ok(()) => tracing::warn!(mount, "the serving process outlives SIGKILL: its connection is aborted"),
            Err(error) => {
                tracing::warn!(mount, %error, "the connection of a process that outlives SIGKILL cannot be aborted");
            }
        }
        aborted.is_ok()
    }

    /// Sees to it that the process is gone, and the mount with it.
    async fn bury(&mut self, end: &End) {
        let mount = &self.mount.name;
        let orderly = matches!(end, End::Stopped | End::Unmounted);
        if !self.server.has_ended(if orderly { DEATH } else { Duration::ZERO }).await {
            if orderly {
                tracing::warn!(mount, "the serving process has unmounted and does not end; it is killed");
            }
            if let Err(error) = self.server.kill() {
                tracing::error!(mount, %error, "the serving process could not be killed");
            }
            let is_gone = self.server.has_ended(DEATH).await || self.abort() && self.server.has_ended(DEATH).await;
            if !is_gone {
                tracing::error!(
                    mount,
                    pid = self.server.pid(),
                    "the serving process outlives SIGKILL: its source hangs in the kernel"
                );
            }
        }
        if let Some(place) = self.place.clone().filter(|_| !orderly) {
            clean(mount, &place, self.number).await;
        }
    }
}

/// The next request: of those that have waited, if there are some.
async fn next(held: &mut VecDeque<Request>, requests: &mut mpsc::Receiver<Request>) -> Option<Request> {
    match held.pop_front() {
        Some(request) => Some(request),
        None => requests.recv().await,
    }
}

/// Number of the mount of ours at `place`, if there is one.
fn ours_at(place: &Path) -> Option<u32> {
    match mountinfo::read() {
        Ok(mounts) => mountinfo::at(&mounts, place).filter(|mounted| mounted.is_ours()).map(|mounted| mounted.id),
        Err(error) => {
            tracing::error!(%error, "/proc/self/mountinfo cannot be read: not knowing what is mounted");
            None
        }
    }
}

/// Takes a mount of ours away that a dead server has left at `place`, if there is one: that of this number, or, if the
/// server died before it told the number, one that is dead.
async fn clean(mount: &str, place: &Path, number: Option<u32>) {
    let Some(found) = ours_at(place) else { return };
    if number.is_some_and(|number| number != found) {
        return tracing::warn!(mount, place = %place.display(), "another mount has taken the place; left alone");
    }
    if number.is_none() {
        let at = place.to_path_buf();
        let is_dead = tokio::task::spawn_blocking(move || dead_mount::is_dead(&at));
        if !matches!(timeout(CLEANING, is_dead).await, Ok(Ok(true))) {
            return tracing::debug!(mount, "another server has mounted there; left alone");
        }
    }
    let at = place.to_path_buf();
    match timeout(CLEANING, tokio::task::spawn_blocking(move || mountinfo::detach(&at))).await {
        Ok(Ok(Ok(()))) => tracing::warn!(mount, place = %place.display(), "the dead mount was taken away"),
        Ok(Ok(Err(why))) => tracing::error!(mount, "{why}"),
        Ok(Err(error)) => tracing::error!(mount, %error, "taking the dead mount away failed"),
        Err(_) => {
            tracing::error!(mount, place = %place.display(), "the dead mount does not go away: run `umount -l` on it as root");
        }
    }
}
