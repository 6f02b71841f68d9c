//! Who is to serve a mount: tells its rollout what happens, and has the server do what follows.
//!
//! One task a mount, so that requests of operators, the passing of time and what happens to the server never meet. It
//! orders levels and not steps: what is wanted is ordered again whenever a server comes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::facts::{Facts, Phase};
use super::guard::{self, Judged, Tried};
use super::mount::Request;
use super::ordering::{Client, Order, Ordering};
use super::prober::Prober;
use crate::api::ControlError;
use crate::api::events::{self, Events};
use crate::config::Backend;
use crate::guard::Rule;
use crate::ledger::{Cause, Ledger, coarse_now};
use crate::rollout::{
    self, Because, Event, Force, HandleError, Handled, MachineId, MachineIdError, Moment, Note, Pin, Refused, Rollout,
    Serving, Store, Terms,
};
use crate::server::orders::Switched;
use crate::shadow::Comparing;

/// Between two looks at the clock.
const TICK: Duration = Duration::from_secs(1);
/// For the state directory to be read before a server starts.
const OPENING: Duration = Duration::from_secs(5);
/// For it to take what is to be kept. One whose file system hangs must not hold up the way back.
const KEEPING: Duration = Duration::from_secs(5);

/// For an operator to be answered, beyond the drains that may be due.
const ANSWER: Duration = Duration::from_secs(3);
/// A server's control loop shows twice a second that it lives. Time counts only if it has.
const LONGEST_SILENCE: Duration = Duration::from_secs(2);

/// What the keeper tells.
#[derive(Debug)]
pub enum Happened {
    /// A server serves.
    Began {
        /// The one that serves.
        serving: Backend,
        /// How it came to that.
        how: How,
    },
    /// A server is about to be started: with which backend? Asked in this row, so that what has happened before counts.
    Begins {
        /// Where the answer goes, and with it what may serve instead.
        answer: oneshot::Sender<(Serving, Option<Backend>)>,
    },
    /// There is no server any more.
    Ended {
        /// Whether it ended by itself.
        died: bool,
    },
    /// A session has ended by itself, and another backend serves.
    FailedOver {
        /// The one that serves.
        to: Backend,
        /// What was seen.
        why: String,
    },
}

/// How a server came to serve as it does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum How {
    /// It was started, and serves what works of what is wanted.
    Started,
    /// It was started with what was wanted then, and serves it.
    Resumed,
    /// It was started with another backend than the one that is wanted, because servers died of that.
    GaveUp(String),
    /// An earlier daemon has left it.
    Adopted(Because),
}

/// The backend that a server is to begin with, if that is not for the mount to say, and the one that may serve instead of it. Waits until all that has happened before
/// was heeded, but not for ever.
pub async fn begin_with(pilot: &mpsc::UnboundedSender<Happened>) -> Option<(Backend, Option<Backend>)> {
    let (answer, answered) = oneshot::channel();
    pilot.send(Happened::Begins { answer }).ok()?;
    match timeout(OPENING, answered).await.ok()?.ok()? {
        (Serving::Only(backend), instead) => Some((backend, instead)),
        (Serving::Both { .. }, _) => None,
    }
}

/// What is known of who is to serve.
#[derive(Clone, PartialEq, Debug)]
pub struct Shown {
    /// What is wanted.
    pub wanted: Serving,
    /// The backend that is being tried, or is configured to be.
    pub candidate: Option<Backend>,
    /// The rollout.
    pub rollout: Option<rollout::Status>,
    /// What holds the mount to its stable backend.
    pub pin: Option<Pin>,
    /// Why the mount is degraded by it.
    pub reasons: Vec<String>,
    /// How often it was rolled back since the daemon began, by what made it so.
    pub rollbacks: BTreeMap<&'static str, u64>,
}

/// What came of a request.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Outcome {
    /// What has happened, in sentences.
    pub notes: Vec<String>,
    /// The switch that this was, if one was done.
    pub switched: Option<Switched>,
}

struct Ask {
    request: rollout::Request,
    answer: oneshot::Sender<Result<Decided, ControlError>>,
}

/// What was decided, and kept.
struct Decided {
    notes: Vec<String>,
    /// Where it is told when it is done as well, if there is something to do.
    done: Option<oneshot::Receiver<Result<Outcome, ControlError>>>,
    /// So long it is waited for that. A switch is done or it is not.
    patience: Option<Duration>,
}

/// Where a mount's rollout is asked.
#[derive(Clone)]
pub struct Pilot {
    asks: mpsc::Sender<Ask>,
    shown: watch::Receiver<Option<Shown>>,
    judged: watch::Receiver<Judged>,
}

/// What a pilot needs.
pub struct Controls {
    /// Where the state is kept.
    pub store: Store,
    /// Which machine this is.
    pub machine: Result<MachineId, MachineIdError>,
    /// What is known of the mount.
    pub facts: watch::Receiver<Facts>,
    /// What happens to it.
    pub happened: mpsc::UnboundedReceiver<Happened>,
    /// What asks through it.
    pub prober: Prober,
    /// Where its keeper takes requests.
    pub requests: mpsc::Sender<Request>,
    /// Where what happens is made known.
    pub events: Events,
}

impl Pilot {
    /// Starts the task, which ends with the keeper. Needs a runtime.
    #[must_use]
    pub fn start(controls: Controls) -> Self {
        let (asks, asked) = mpsc::channel(16);
        let (show, shown) = watch::channel(None);
        let Controls { facts, prober, events, .. } = &controls;
        let judged = guard::start(shown.clone(), facts.clone(), prober.clone(), events.clone());
        tokio::spawn(run(controls, asked, show, judged.clone()));
        Self { asks, shown, judged }
    }

    /// What is known now; `None` before the state directory was read.
    #[must_use]
    pub fn shown(&self) -> Option<Shown> {
        let mut shown = self.shown.borrow().clone()?;
        shown.reasons.extend(self.judged.borrow().trouble());
        Some(shown)
    }

    /// What the guard has found.
    #[must_use]
    pub fn judged(&self) -> Judged {
        self.judged.borrow().clone()
    }

    /// Asks for something, and returns when it is done or refused; or, if it is decided and its server does not answer, soon.
    ///
    /// # Errors
    /// Why it is refused, or what went wrong.
    pub async fn ask(&self, mount: &str, request: rollout::Request) -> Result<Outcome, ControlError> {
        let over = || ControlError::NotServed { mount: mount.into(), why: "it has ended".into() };
        let (answer, answered) = oneshot::channel();
        self.asks.send(Ask { request, answer }).await.map_err(|_| over())?;
        let Decided { mut notes, done, patience } = answered.await.map_err(|_| over())??;
        let Some(done) = done else { return Ok(Outcome { notes, switched: None }) };
        let done = match patience {
            None => done.await,
            Some(patience) => match timeout(patience, done).await {
                Ok(done) => done,
                Err(_) => {
                    notes.push(format!(
                        "not done yet: the server has not answered within {patience:?}; it is ordered again"
                    ));
                    return Ok(Outcome { notes, switched: None });
                }
            },
        };
        let Outcome { notes: more, switched } = done.map_err(|_| over())??;
        notes.extend(more);
        Ok(Outcome { notes, switched })
    }
}

async fn run(
    controls: Controls,
    mut asked: mpsc::Receiver<Ask>,
    show: watch::Sender<Option<Shown>>,
    mut judged: watch::Receiver<Judged>,
) {
    let Controls { store, machine, facts, mut happened, prober: _, requests, events } = controls;
    let mount = facts.borrow().wanted.clone();
    let terms = Terms::of(&mount, None, &machine);
    let opened = tokio::task::spawn_blocking(move || Rollout::open(store, terms)).await;
    let rollout = match opened {
        Ok(rollout) => Some(rollout),
        Err(error) => return tracing::error!(mount = mount.name, %error, "its rollout cannot be read"),
    };
    // Whoever reads the log after a restart is to see why nothing else serves.
    for reason in rollout.iter().flat_map(Rollout::reasons) {
        tracing::warn!(mount = mount.name, "{reason}");
    }
    // From 0 on, so that the first one is an increase.
    let reasons = [OPERATOR, SERVER_DIED].into_iter().chain(Rule::ALL.map(Rule::name));
    let rollbacks = reasons.map(|reason| (reason, 0)).collect();
    let mut task = Task {
        judged: judged.clone(),
        rollout,
        away: None,
        said: None,
        machine,
        facts,
        requests,
        events,
        show,
        rollbacks,
        is_begun: false,
        ordering: Ordering::default(),
        patience: Patience::default(),
        comparing: None,
        is_comparison_told: true,
    };
    task.show();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut wanted = mount;
    let mut changes = task.facts.clone();
    let nothing = watch::Sender::new(Judged::default());
    loop {
        tokio::select! {
            biased;
            what = happened.recv() => match what {
                Some(what) => task.note(what).await,
                None => break,
            },
            found = judged.changed() => match found {
                Ok(()) => {
                    let found = judged.borrow_and_update().clone();
                    task.heed(&found).await;
                }
                // Its bug must not take the way back from operators. Nothing that it has found counts any more.
                Err(_) => {
                    tracing::error!(
                        mount = task.mount(),
                        "the guard has ended by a bug: nothing is rolled back and no step ends by itself any more; restart the daemon, which leaves the mounts served"
                    );
                    judged = nothing.subscribe();
                    task.judged = judged.clone();
                }
            },
            (order, result) = task.ordering.done() => task.note_done(order, result).await,
            ask = asked.recv() => match ask {
                Some(Ask { request, answer }) => {
                    let decided = task.obey(request).await;
                    // A client that has gone does not need to be told.
                    let _ = answer.send(decided);
                }
                None => break,
            },
            changed = changes.changed() => {
                if changed.is_err() {
                    break;
                }
                let now = changes.borrow_and_update().wanted.clone();
                if !Arc::ptr_eq(&now, &wanted) {
                    wanted = now;
                    task.reload().await;
                }
            }
            _ = ticks.tick() => {
                if !task.is_away() {
                    let evidence = judged.borrow().evidence(task.tried().as_ref());
                    task.follow(Event::Tick { force: task.force(), evidence }, "bake_time").await;
                    task.insist();
                }
            }
        }
        task.tell_what_to_compare();
    }
    // With the keeper all orders have come to an end, and whoever waits for one is told which.
    while task.ordering.is_under_way() {
        let (order, result) = task.ordering.done().await;
        task.note_done(order, result).await;
    }
}

/// A decision, on a thread that may wait for the disk.
type Deciding = JoinHandle<(Rollout, Result<Handled, HandleError>)>;

struct Task {
    /// Elsewhere while it waits for the disk.
    rollout: Option<Rollout>,
    /// There, when it has waited for too long; and what makes it do so.
    away: Option<(Deciding, &'static str)>,
    /// What went wrong last time when nobody had asked, so that it is not said again every second.
    said: Option<String>,
    machine: Result<MachineId, MachineIdError>,
    facts: watch::Receiver<Facts>,
    requests: mpsc::Sender<Request>,
    events: Events,
    show: watch::Sender<Option<Shown>>,
    rollbacks: BTreeMap<&'static str, u64>,
    /// Whether there is a server that serves.
    is_begun: bool,
    ordering: Ordering,
    patience: Patience,
    /// What the guard has found.
    judged: watch::Receiver<Judged>,
    /// What its server was told to compare.
    comparing: Option<Comparing>,
    /// Whether it was told so; one that an earlier daemon has left may compare anything.
    is_comparison_told: bool,
}

/// How long it is waited before what is wanted is ordered again: 2, 4, 8 … 64 ticks.
#[derive(Default)]
struct Patience {
    ticks: u32,
    orders: u32,
}

impl Patience {
    fn is_over(&mut self) -> bool {
        self.ticks += 1;
        let is_over = self.ticks >= 2 << self.orders.min(5);
        if is_over {
            *self = Self { ticks: 0, orders: self.orders + 1 };
        }
        is_over
    }
}

/// Whether that serves which is wanted.
fn serves(ledger: &Ledger, wanted: Serving) -> bool {
    let weights = Backend::ALL.map(|backend| ledger.weight(backend));
    let is_weighed = |backend: Backend, weight: u32| {
        weights[backend.index()] == weight && weights[backend.other().index()] == 100 - weight
    };
    match wanted {
        Serving::Only(backend) => is_weighed(backend, 100),
        Serving::Both { candidate, weight } => is_weighed(candidate, weight.into()),
    }
}

impl Task {
    fn mount(&self) -> String {
        self.facts.borrow().mount.name.clone()
    }

    fn terms(&self) -> Terms {
        let facts = self.facts.borrow();
        Terms::of(&facts.wanted, self.is_begun.then(|| facts.stable()), &self.machine)
    }

    /// Lets the rollout decide, on a thread that may wait for the disk. `by` is what makes it so, for whoever counts.
    async fn decide(
        &mut self,
        by: &'static str,
        decide: impl FnOnce(&mut Rollout) -> Result<Handled, HandleError> + Send + 'static,
    ) -> Result<Handled, HandleError> {
        if let Some((away, by)) = self.away.take() {
            // What it has decided meanwhile is ordered when it is found not to be so.
            let late = self.wait_for(away, by).await?;
            self.tell(&late.notes, by);
        }
        let Some(mut rollout) = self.rollout.take() else { return Err(self.broken()) };
        let deciding = tokio::task::spawn_blocking(move || {
            let result = decide(&mut rollout);
            (rollout, result)
        });
        self.wait_for(deciding, by).await
    }

    async fn wait_for(&mut self, mut deciding: Deciding, by: &'static str) -> Result<Handled, HandleError> {
        match timeout(KEEPING, &mut deciding).await {
            Ok(Ok((rollout, result))) => {
                self.rollout = Some(rollout);
                self.show();
                result
            }
            Ok(Err(error)) => {
                tracing::error!(mount = self.mount(), %error, "the rollout has ended by a bug: what serves goes on to serve");
                Err(self.broken())
            }
            Err(_) => {
                self.away = Some((deciding, by));
                Err(HandleError::Refused(Refused {
                    reason: format!("the state directory has not answered within {KEEPING:?}"),
                    remedy: "see whether its file system hangs, or set daemon.state_dir to another".into(),
                }))
            }
        }
    }

    /// Whether a decision still waits for the disk.
    fn is_away(&self) -> bool {
        self.away.as_ref().is_some_and(|(deciding, _)| !deciding.is_finished())
    }

    fn broken(&self) -> HandleError {
        HandleError::Refused(Refused {
            reason: format!("who serves {} cannot be decided any more, by a bug of the program", self.mount()),
            remedy: "restart the daemon; its mounts are served on meanwhile".into(),
        })
    }

    fn show(&self) {
        let Some(rollout) = &self.rollout else { return };
        let shown = Shown {
            wanted: rollout.wanted(),
            candidate: rollout.terms().plan().map(|plan| plan.candidate),
            rollout: rollout.status(),
            pin: rollout.pin(),
            reasons: rollout.reasons(),
            rollbacks: self.rollbacks.clone(),
        };
        self.show.send_if_modified(|before| {
            let is_news = before.as_ref() != Some(&shown);
            if is_news {
                *before = Some(shown);
            }
            is_news
        });
    }

    async fn note(&mut self, what: Happened) {
        match what {
            Happened::Begins { answer } => {
                if let Some(rollout) = &self.rollout {
                    // A keeper that has not waited goes by its configuration.
                    let _ = answer.send((rollout.wanted(), rollout.instead()));
                }
            }
            Happened::Began { serving, how } => {
                self.is_begun = true;
                self.comparing = None;
                self.is_comparison_told = !matches!(how, How::Adopted(_));
                self.reload().await;
                let event = match how {
                    How::Started => Event::ServerStarted { serving },
                    How::GaveUp(why) => Event::GaveUp { serving, why },
                    How::Resumed => Event::ServerAdopted { serving, because: Because::Ordered },
                    How::Adopted(because) => Event::ServerAdopted { serving, because },
                };
                let by = match &event {
                    Event::GaveUp { .. } => SERVER_DIED,
                    Event::ServerAdopted { because: Because::FailedOver(_), .. } => Rule::EndedSession.name(),
                    _ => "server",
                };
                self.follow(event, by).await;
            }
            Happened::Ended { died } => {
                self.follow(Event::ServerEnded { died }, SERVER_DIED).await;
                self.is_begun = false;
            }
            Happened::FailedOver { to, why } => {
                let rule = Rule::EndedSession;
                let figures = self.judged.borrow().figures(rule);
                self.follow(Event::FailedOver { to, why, figures }, rule.name()).await;
            }
        }
    }

    /// Whether what is wanted is what the server does.
    fn force(&self) -> Force {
        let off = |why: &str| Force::Off(why.into());
        let Some(rollout) = &self.rollout else { return off("it is being decided") };
        let facts = self.facts.borrow();
        let Some((_, ledger)) = facts.server.as_ref().filter(|_| facts.phase == Phase::Serving) else {
            return off("the mount is not served, or changes its backend at this moment");
        };
        let silence = Duration::from_nanos(coarse_now().saturating_sub(ledger.heartbeat()));
        match serves(ledger, rollout.wanted()) {
            _ if silence > LONGEST_SILENCE => {
                Force::Off(format!("the server has shown no sign of life for {} s", silence.as_secs()))
            }
            true => Force::On,
            false => off("the server does not serve yet as it is to"),
        }
    }

    /// What is tried now.
    fn tried(&self) -> Option<Tried> {
        let stable = self.is_begun.then(|| self.facts.borrow().stable())?;
        Tried::of(self.show.borrow().as_ref()?, stable)
    }

    /// Rolls back what the guard has found to be broken.
    async fn heed(&mut self, found: &Judged) {
        let Some((rule, reason, figures)) = found.breach(self.tried().as_ref()) else { return };
        if !self.is_away() {
            let event = Event::RollBack { reason: reason.clone(), figures };
            let decided = self.decide(rule.name(), move |rollout| rollout.handle(&event, Moment::now())).await;
            if !self.is_away() {
                return self.carry_out(decided, rule.name()).await;
            }
            if let Err(error) = decided {
                self.say_once(&error);
            }
        }
        // The way back is gone first, and written down when the disk answers: the guard says so until then.
        let back = Serving::Only(self.terms().stable);
        self.order(back, (Cause::Rollback, reason), rule.name(), None);
    }

    async fn reload(&mut self) {
        let terms = self.terms();
        let decided = self.decide(RELOAD, move |rollout| rollout.reload(terms, Moment::now())).await;
        self.carry_out(decided, RELOAD).await;
    }

    /// What nobody waits for. `by` is what makes it so, for whoever counts.
    async fn follow(&mut self, event: Event, by: &'static str) {
        let decided = self.decide(by, move |rollout| rollout.handle(&event, Moment::now())).await;
        self.carry_out(decided, by).await;
    }

    async fn carry_out(&mut self, decided: Result<Handled, HandleError>, by: &'static str) {
        match decided {
            Ok(handled) => {
                self.said = None;
                self.tell(&handled.notes, by);
                if let Some(serving) = handled.serve {
                    self.order(serving, why(&handled.notes, by), by, None);
                }
            }
            Err(error) => self.say_once(&error),
        }
    }

    fn say_once(&mut self, error: &HandleError) {
        let text = error.to_string();
        if self.said.as_ref() != Some(&text) {
            tracing::error!(mount = self.mount(), error = text, "the rollout stays where it is");
            self.said = Some(text);
        }
    }

    /// What an operator asks for: decided and kept at once, and ordered when the server has done what it is at.
    async fn obey(&mut self, request: rollout::Request) -> Result<Decided, ControlError> {
        if let rollout::Request::Switch(_) = request
            && !self.is_served()
        {
            let is_starting = self.facts.borrow().phase == Phase::Starting;
            let why =
                if is_starting { "it is starting" } else { "it is not mounted; see `lighthouse-fs status`" }.into();
            return Err(ControlError::NotServed { mount: self.mount(), why });
        }
        let is_switch = matches!(request, rollout::Request::Switch(_));
        let is_rollback = matches!(request, rollout::Request::Rollback { .. });
        let event = Event::Asked(request);
        let (notes, ordered) = match self.decide(OPERATOR, move |rollout| rollout.handle(&event, Moment::now())).await {
            Ok(handled) => {
                self.tell(&handled.notes, OPERATOR);
                let why = if is_switch { (Cause::Operator, OPERATOR.into()) } else { why(&handled.notes, OPERATOR) };
                let notes = handled.notes.iter().map(ToString::to_string).collect();
                (notes, handled.serve.map(|serving| (serving, why)))
            }
            // The way back is gone first, and written down when the disk answers.
            Err(error) if is_rollback && self.is_away() => {
                let stable = self.terms().stable;
                let note = format!("{stable} serves alone; the pin is to be written down still: {error}");
                tracing::error!(mount = self.mount(), "{note}");
                (vec![note], Some((Serving::Only(stable), (Cause::Rollback, OPERATOR.into()))))
            }
            Err(error) => return Err(ControlError::Refused(error.to_string())),
        };
        let mut decided = Decided { notes, done: None, patience: (!is_switch).then(|| self.answer_limit()) };
        if let Some((serving, why)) = ordered {
            let (answer, done) = oneshot::channel();
            self.order(serving, why, OPERATOR, Some(Client { is_switch, answer }));
            decided.done = Some(done);
        }
        if let Some(why) = self.rollout.as_ref().and_then(Rollout::not_kept) {
            tracing::error!(mount = self.mount(), "a restart would forget what was decided: {why}");
            decided.notes.push(format!("a restart would forget it: {why}"));
        }
        Ok(decided)
    }

    /// So long an operator waits for what is decided to be done: for a drain that is under way, and one of its own.
    fn answer_limit(&self) -> Duration {
        self.facts.borrow().mount.deadlines.drain * 2 + ANSWER
    }

    /// What is wanted and is not so is ordered again: an order may have come too late, or have met a server that was dying.
    /// Where something else serves because what is wanted does not work, only a rollback insists.
    fn insist(&mut self) {
        let Some(rollout) = self.rollout.as_ref().filter(|_| !self.ordering.is_under_way()) else { return };
        let (wanted, insists) = (rollout.wanted(), rollout.state().pin().is_some());
        let is_so = {
            let facts = self.facts.borrow();
            let ledger = facts.server.as_ref().map(|(_, ledger)| ledger).filter(|_| facts.phase == Phase::Serving);
            ledger.is_none_or(|ledger| serves(ledger, wanted))
        };
        if is_so || rollout.state().fallback().is_some() && !insists {
            self.patience = Patience::default();
            return;
        }
        if self.patience.is_over() {
            let cause = if insists { Cause::Rollback } else { Cause::Rollout };
            self.order(wanted, (cause, "it is to be so".into()), INSISTS, None);
        }
    }

    /// What is to be compared now: while a candidate is tried, or always.
    fn comparison(&self) -> Option<Comparing> {
        let rollout = self.rollout.as_ref()?;
        let reference = rollout.terms().stable;
        let wanted = self.facts.borrow().wanted.rollout.clone();
        let is_tried = rollout.status().is_some_and(|status| matches!(status.state, "running" | "paused"));
        if !is_tried && !wanted.shadow_always {
            return None;
        }
        let candidate = rollout.terms().plan().map_or(reference.other(), |plan| plan.candidate);
        let rate = wanted.shadow_sample.get();
        (rate > 0. && candidate.is_built_in()).then_some(Comparing { reference, candidate, rate })
    }

    /// Tells the server, if that is news. What cannot be said now is said with the next tick.
    fn tell_what_to_compare(&mut self) {
        if !self.is_begun || self.is_away() {
            return;
        }
        let comparing = self.comparison();
        if self.is_comparison_told && comparing == self.comparing {
            return;
        }
        if self.requests.try_send(Request::Compare(comparing)).is_ok() {
            self.comparing = comparing;
            self.is_comparison_told = true;
        }
    }

    fn is_served(&self) -> bool {
        matches!(self.facts.borrow().phase, Phase::Serving | Phase::Switching)
    }

    /// What an order that failed means to the rollout. `None`: nothing; the server is gone, or may still do it.
    fn failed(&self, error: &ControlError) -> Option<Event> {
        let ControlError::Refused(why) = error else { return None };
        let facts = self.facts.borrow();
        let serving = facts.server.as_ref().and_then(|(_, ledger)| ledger.active())?;
        Some(Event::OrderFailed { serving, why: why.clone() })
    }

    /// Has the server do it, when it has done what it is at. Without one nothing is ordered: what is wanted is ordered again
    /// when one comes.
    fn order(&mut self, serving: Serving, (cause, reason): (Cause, String), by: &'static str, client: Option<Client>) {
        let order = Order { serving, cause, reason, by, clients: client.into_iter().collect() };
        if self.is_served() {
            self.ordering.submit(order, &self.mount(), &self.requests);
        } else {
            order.answer(&Ok(Outcome::default()));
        }
    }

    /// What came of an order.
    async fn note_done(&mut self, order: Order, result: Result<Option<Switched>, ControlError>) {
        let is_wanted = |task: &Self| task.rollout.as_ref().is_some_and(|rollout| rollout.wanted() == order.serving);
        match &result {
            Ok(_) if order.by == INSISTS => {
                tracing::warn!(mount = self.mount(), wanted = ?order.serving, "what is wanted was not so, and is now");
            }
            Ok(_) => {}
            Err(error) if order.by == INSISTS => {
                tracing::error!(mount = self.mount(), wanted = ?order.serving, %error, "what is wanted is not so");
            }
            // That of what is not wanted any more means nothing.
            Err(error) if is_wanted(self) => {
                if let Some(failed) = self.failed(error) {
                    self.follow(failed, order.by).await;
                }
            }
            Err(_) => {}
        }
        let is_kept = is_wanted(self);
        order.answer(&match result {
            Ok(switched) => Ok(Outcome { notes: vec![], switched }),
            Err(error) => Err((error, is_kept)),
        });
        if self.is_served() {
            self.ordering.go_on(&self.mount(), &self.requests);
        } else if let Some(next) = self.ordering.take_next() {
            let why = "it has ended before it could be told".into();
            next.answer(&Err((ControlError::NotServed { mount: self.mount(), why }, true)));
        }
    }

    fn tell(&mut self, notes: &[Note], by: &'static str) {
        let mount = self.mount();
        for note in notes {
            match note {
                Note::RolledBack(pin) => {
                    *self.rollbacks.entry(by).or_default() += 1;
                    let figures = (!pin.figures.is_null()).then(|| tracing::field::display(&pin.figures));
                    tracing::warn!(mount, by, figures, "{note}");
                }
                Note::Fallback { .. } | Note::Aborted { .. } | Note::Paused { .. } | Note::Waits { .. } => {
                    tracing::warn!(mount, by, "{note}");
                }
                _ => tracing::info!(mount, by, "{note}"),
            }
            if let Some(event) = event_of(&mount, note) {
                self.events.publish(event);
            }
        }
        self.show();
    }
}

/// Why a rollback was made, where servers died.
const SERVER_DIED: &str = "server_died";
/// Why a change was made, where a person has asked for it.
pub const OPERATOR: &str = "operator";
/// The same, where it was wanted before.
const INSISTS: &str = "insists";
/// The same, where another configuration makes it so.
const RELOAD: &str = "reload";

/// Why the server is ordered something: by what was told, else by what has made it so.
fn why(notes: &[Note], by: &str) -> (Cause, String) {
    let pin = notes.iter().find_map(|note| if let Note::RolledBack(pin) = note { Some(pin) } else { None });
    match (pin, notes.last()) {
        (Some(pin), _) => (Cause::Rollback, pin.reason.clone()),
        (None, Some(Note::Step { step, weight, .. })) => (Cause::Rollout, format!("rollout step {step}, {weight} %")),
        (None, Some(note)) => (Cause::Rollout, note.to_string()),
        (None, None) if by == RELOAD => (Cause::Rollout, "as it is configured now".into()),
        (None, None) => (Cause::Rollout, "as it was before".into()),
    }
}

fn event_of(mount: &str, note: &Note) -> Option<events::Event> {
    let mount = mount.to_owned();
    Some(match note {
        Note::Already { .. } => return None,
        Note::Step { step, weight, reason } => {
            events::Event::Step { mount, step: *step, weight: *weight, reason: reason.clone() }
        }
        Note::RolledBack(pin) => {
            events::Event::Rollback { mount, reason: pin.reason.clone(), figures: pin.figures.clone() }
        }
        other => events::Event::Rollout { mount, message: other.to_string() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Daemon, Mount};
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn without_a_guard_operators_still_go_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Mount::new("projects", "/srv/projects", "/mnt/projects");
        mount.rollout.candidate = Some(mount.stable().other());
        let (_facts, facts) = watch::channel(Facts::new(Arc::new(mount)));
        let (_happens, happened) = mpsc::unbounded_channel();
        let (requests, _orders) = mpsc::channel(16);
        let controls = Controls {
            store: Store::new(folder.path(), "projects"),
            machine: MachineId::of(&Daemon::new(folder.path().join("control.sock"))),
            facts,
            happened,
            prober: Prober::off("nothing is mounted"),
            requests,
            events: Events::default(),
        };
        let ((asks, asked), (show, shown)) = (mpsc::channel(16), watch::channel(None));
        let (guard, judged) = watch::channel(Judged::default());
        tokio::spawn(run(controls, asked, show, judged.clone()));
        let pilot = Pilot { asks, shown, judged };
        drop(guard);
        advance(TICK).await;
        let outcome = pilot.ask("projects", rollout::Request::Rollback { reason: None }).await.unwrap();
        assert_eq!(outcome.notes, ["rolled back and pinned: operator"]);
        assert!(pilot.shown().unwrap().pin.is_some());
    }
}
