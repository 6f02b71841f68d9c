//! The state of one mount's rollout, and how it changes: pure data and a function from event to state.
//!
//! Bake time is counted by the monotonic clock, while what is wanted is in force and somebody watches; what has been counted
//! is kept, so that it survives restarts. The wall clock is for people to read, and decides nothing: a clock that jumps cannot
//! make a rollout go on faster.

use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::change;
use super::meets::{Action, Refused, Situation};
use super::plan::{Terms, Way};
use crate::config::{Backend, Trial};

/// What one look at the clock can add: what nobody has watched for longer is no evidence.
const MOST_AT_ONCE: Duration = Duration::from_secs(60);

/// Both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// For measuring.
    pub monotonic: Instant,
    /// For people.
    pub wall: SystemTime,
}

impl Moment {
    /// This moment.
    #[must_use]
    pub fn now() -> Self {
        Self { monotonic: Instant::now(), wall: SystemTime::now() }
    }
}

/// Where a mount's rollout has got to: what is kept on disk.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Phase {
    /// Nothing has begun.
    Idle {
        /// The backend that an operator has switched to, if it is not the stable one. It lasts as long as the daemon.
        #[serde(skip)]
        by_hand: Option<Backend>,
    },
    /// A step is under way, or this machine is in the fleet's share.
    Running(Progress),
    /// All steps are done: the candidate serves.
    Committed {
        /// Which.
        candidate: Backend,
    },
    /// Ended before: stable serves.
    Aborted {
        /// What was tried.
        candidate: Backend,
        /// Why it is no longer.
        reason: String,
    },
    /// Stable serves, and nothing else until an operator says so.
    RolledBack(Pin),
    /// What was kept cannot be read. Never kept itself.
    #[serde(skip)]
    Unreadable {
        /// Why, and what to do.
        why: String,
    },
}

/// How far a rollout is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Progress {
    /// What is tried.
    pub candidate: Backend,
    /// Whether that is because of the fleet's share, and so without steps.
    pub fleet: bool,
    /// The step, from 0.
    pub step: usize,
    /// What the candidate does in it.
    pub trial: Trial,
    /// Bake time of the step that has been counted.
    #[serde(with = "humantime_serde")]
    pub elapsed: Duration,
    /// When the step began; for people.
    #[serde(with = "humantime_serde")]
    pub entered: SystemTime,
    /// Why it is paused, if it is.
    pub paused: Option<String>,
    /// Servers that have died in this step.
    pub deaths: u32,
}

/// What holds a mount to its stable backend.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Pin {
    /// Why.
    pub reason: String,
    /// Since when; for people.
    #[serde(with = "humantime_serde")]
    pub since: SystemTime,
    /// What the decision rests on; null for an operator's.
    pub figures: serde_json::Value,
    /// The backend that was stable then, whatever is configured later; `None` in files of before: whatever is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<Backend>,
}

/// What serves, or is to serve.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Serving {
    /// One backend alone: a switch, with a drain.
    Only(Backend),
    /// Both, in slices.
    Both {
        /// The one that is tried.
        candidate: Backend,
        /// Its share of operations in percent, 1 to 99.
        weight: u8,
    },
}

/// What an operator asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// That this backend serves.
    Switch(Backend),
    /// Stable alone, and pinned.
    Rollback {
        /// Why.
        reason: Option<String>,
    },
    /// No pin any more.
    Unpin,
    /// The first step.
    Start,
    /// To hold the step.
    Pause,
    /// To let it go on.
    Resume,
    /// The next step at once.
    Promote {
        /// The step, from 1, that the operator has seen. Of two operators who promote at once, the second is refused then,
        /// and no step is skipped.
        from: Option<usize>,
    },
    /// Stable alone, and no rollout.
    Abort,
}

impl Request {
    /// Its column in the table, where this backend serves when nothing is tried.
    #[must_use]
    pub fn action(&self, stable: Backend) -> Action {
        match self {
            Self::Switch(to) if *to == stable => Action::SwitchToStable,
            Self::Switch(_) => Action::SwitchToCandidate,
            Self::Rollback { .. } => Action::Rollback,
            Self::Unpin => Action::Unpin,
            Self::Start => Action::Start,
            Self::Pause => Action::Pause,
            Self::Resume => Action::Resume,
            Self::Promote { .. } => Action::Promote,
            Self::Abort => Action::Abort,
        }
    }
}

/// Why a server that was adopted serves what it serves: the last that its earlier daemon or itself has done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Because {
    /// It began so, or a rollout ordered it.
    Ordered,
    /// An operator has switched.
    Operator,
    /// A session ended by itself, and nothing has been ordered since.
    FailedOver(String),
}

/// Whether what was seen of the candidate lets a step end by its time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Evidence {
    /// It does.
    Enough,
    /// It does not, for this reason.
    Missing(String),
}

/// Whether what is wanted is what a server does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Force {
    /// It serves so, and shows that it lives.
    On,
    /// It does not, for this reason.
    Off(String),
}

/// What happens to a mount.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// An operator asks for something. Nothing else is ever refused.
    Asked(Request),
    /// The rules of the guard are broken.
    RollBack {
        /// Which.
        reason: String,
        /// What the decision rests on.
        figures: serde_json::Value,
    },
    /// Time passes: about once a second.
    Tick {
        /// Whether the time counts.
        force: Force,
        /// Whether the step may end by it.
        evidence: Evidence,
    },
    /// The terms are others, or may be: after a reload.
    Reloaded,
    /// A new server serves.
    ServerStarted {
        /// With this backend.
        serving: Backend,
    },
    /// A new server serves, and was not told to begin with what is wanted: servers have died of that, one after the other.
    GaveUp {
        /// With this backend.
        serving: Backend,
        /// What was seen.
        why: String,
    },
    /// A server that an earlier daemon has left serves on.
    ServerAdopted {
        /// With this backend, or with both.
        serving: Backend,
        /// Why with that one.
        because: Because,
    },
    /// There is no server.
    ServerEnded {
        /// Whether it ended by itself, by a crash or a signal.
        died: bool,
    },
    /// A session has ended by itself, and the server goes on with another backend.
    FailedOver {
        /// The one that serves.
        to: Backend,
        /// What was seen.
        why: String,
        /// What was known of the other one before; null if nothing was.
        figures: serde_json::Value,
    },
    /// What was ordered could not be done.
    OrderFailed {
        /// The backend that serves on.
        serving: Backend,
        /// What the server says.
        why: String,
    },
}

/// What has happened: for log and event stream.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Note {
    /// There was nothing to do.
    Already {
        /// Why.
        text: String,
    },
    /// A rollout begins, or this machine has come into the fleet's share.
    Started {
        /// What is tried.
        candidate: Backend,
    },
    /// A step begins.
    Step {
        /// Its number, from 1.
        step: usize,
        /// What the candidate does in it.
        weight: u8,
        /// What the step before rests on.
        reason: String,
    },
    /// A step is held.
    Paused {
        /// Why.
        reason: String,
    },
    /// It goes on.
    Resumed,
    /// A step's time is over, and it goes on all the same.
    Waits {
        /// For what.
        reason: String,
    },
    /// All steps are done.
    Committed {
        /// What serves from now on.
        candidate: Backend,
    },
    /// A rollout is over.
    Aborted {
        /// Why.
        reason: String,
    },
    /// Stable serves alone, and the mount is pinned.
    RolledBack(Pin),
    /// The pin is lifted.
    Unpinned,
    /// The plan is another one, and the rollout goes on.
    PlanChanged {
        /// The step, from 1.
        step: usize,
        /// Whether the bake time that was counted still counts.
        keeps_time: bool,
    },
    /// This machine is not in the fleet's share any more, or the mount's candidate is the stable one by now.
    Ended {
        /// Why.
        reason: String,
    },
    /// Another backend serves than should.
    Fallback {
        /// Which.
        serving: Backend,
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Already { text } => f.write_str(text),
            Self::Started { candidate } => write!(f, "the rollout of {candidate} begins"),
            Self::Step { step, weight: 0, reason } => {
                write!(f, "step {step}: shadow, in which the candidate is only compared ({reason})")
            }
            Self::Step { step, weight, reason } => write!(f, "step {step}: {weight} % ({reason})"),
            Self::Paused { reason } => write!(f, "the rollout is paused: {reason}"),
            Self::Resumed => f.write_str("the rollout goes on"),
            Self::Waits { reason } => write!(f, "the step goes on: {reason}"),
            Self::Committed { candidate } => write!(f, "the rollout is through: {candidate} is committed"),
            Self::Aborted { reason } => write!(f, "the rollout is aborted: {reason}"),
            Self::RolledBack(pin) => write!(f, "rolled back and pinned: {}", pin.reason),
            Self::Unpinned => f.write_str("the pin is lifted"),
            Self::PlanChanged { step, keeps_time: true } => {
                write!(f, "the steps have changed: it goes on in step {step}")
            }
            Self::PlanChanged { step, .. } => write!(f, "the steps have changed: step {step} begins anew"),
            Self::Ended { reason } => write!(f, "the rollout has ended: {reason}"),
            Self::Fallback { serving, reason } => write!(f, "{serving} serves instead: {reason}"),
        }
    }
}

/// How much it matters that a state is kept before it is acted upon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// Without it the transition does not take place: nothing is dared that a restart would forget.
    Must,
    /// It takes place all the same: the way back is never held up by a full disk.
    Try,
}

/// What an event leads to. To be done in the order of the fields.
#[derive(Clone, PartialEq, Debug)]
pub struct Transition {
    /// The state from now on.
    pub state: State,
    /// Whether it is to be kept.
    pub keep: Option<Keep>,
    /// What the server is to be ordered, even if it may be so already.
    pub serve: Option<Serving>,
    /// What to tell.
    pub notes: Vec<Note>,
}

/// What is known of the bake time.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Watch {
    /// No server serves.
    Unserved,
    /// One does, and it was not seen yet that it does what is wanted.
    Unseen,
    /// It was in force at this moment, until when the time is counted.
    Until(Instant),
}

/// See the module.
#[derive(Clone, PartialEq, Debug)]
pub struct State {
    pub(super) phase: Phase,
    pub(super) watch: Watch,
    /// What of it has been kept.
    pub(super) kept: Duration,
    /// Why another backend serves than should.
    pub(super) fallback: Option<String>,
    /// Why a step's time does not run.
    pub(super) stands: Option<String>,
    /// Why a step goes on whose time is over.
    pub(super) waits: Option<String>,
    /// Why stable serves in the place of what was committed or switched to by hand, until somebody asks for that again.
    pub(super) gave_up: Option<String>,
}

impl State {
    /// As it was kept, before a server serves.
    #[must_use]
    pub fn restored(phase: Phase) -> Self {
        let kept = if let Phase::Running(progress) = &phase { progress.elapsed } else { Duration::ZERO };
        Self { phase, watch: Watch::Unserved, kept, fallback: None, stands: None, waits: None, gave_up: None }
    }

    /// What could be read by now, in the place of what could not; a server may serve meanwhile.
    pub(super) fn reread(&self, restored: Self) -> Self {
        Self { watch: self.watch, fallback: self.fallback.clone(), ..restored }
    }

    /// Where the rollout has got to.
    #[must_use]
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// What holds the mount to its stable backend.
    #[must_use]
    pub fn pin(&self) -> Option<&Pin> {
        if let Phase::RolledBack(pin) = &self.phase { Some(pin) } else { None }
    }

    /// The backend that serves when nothing is tried: the stable one, or the one that it is pinned to.
    #[must_use]
    pub fn home(&self, terms: &Terms) -> Backend {
        self.pin().and_then(|pin| pin.backend).unwrap_or(terms.stable)
    }

    /// Why another backend serves than should.
    #[must_use]
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// Why a step goes on: its time does not run, or is over and not all.
    #[must_use]
    pub fn waits(&self) -> Option<&str> {
        self.stands.as_deref().or(self.waits.as_deref())
    }

    /// The backend that stable serves in the place of because servers died of it, and what was seen.
    #[must_use]
    pub fn given_up(&self) -> Option<(Backend, &str)> {
        let why = self.gave_up.as_deref()?;
        match self.phase {
            Phase::Committed { candidate: backend } | Phase::Idle { by_hand: Some(backend) } => Some((backend, why)),
            _ => None,
        }
    }

    /// What is to serve.
    #[must_use]
    pub fn wanted(&self, terms: &Terms) -> Serving {
        match &self.phase {
            _ if self.gave_up.is_some() => Serving::Only(terms.stable),
            Phase::Idle { by_hand: Some(backend) } => Serving::Only(*backend),
            Phase::Committed { candidate } => Serving::Only(*candidate),
            Phase::Running(Progress { candidate, trial, .. }) => match trial.weight() {
                0 => Serving::Only(terms.stable),
                weight @ 1..=99 => Serving::Both { candidate: *candidate, weight },
                _ => Serving::Only(*candidate),
            },
            Phase::Idle { by_hand: None } | Phase::Aborted { .. } | Phase::RolledBack(_) | Phase::Unreadable { .. } => {
                Serving::Only(self.home(terms))
            }
        }
    }

    /// Percent of the operations that another backend than the stable one, or the pinned one, is to have.
    #[must_use]
    pub fn weight(&self, terms: &Terms) -> u8 {
        match self.wanted(terms) {
            Serving::Only(backend) if backend == self.home(terms) => 0,
            Serving::Only(_) => 100,
            Serving::Both { weight, .. } => weight,
        }
    }

    /// The row of the table.
    #[must_use]
    pub fn situation(&self, terms: &Terms) -> Situation {
        match (&self.phase, terms.plan().map(|plan| &plan.way)) {
            (Phase::Unreadable { .. }, _) => Situation::Unreadable,
            (Phase::RolledBack(_), _) => Situation::Pinned,
            (Phase::Committed { .. }, _) => Situation::Committed,
            (Phase::Running(progress), _) if progress.fleet => Situation::FleetInside,
            (Phase::Running(progress), _) if progress.paused.is_some() => Situation::Paused,
            (Phase::Running(_), _) => Situation::Running,
            (Phase::Idle { .. } | Phase::Aborted { .. }, None) => Situation::NoCandidate,
            (Phase::Idle { .. } | Phase::Aborted { .. }, Some(Way::Fleet { .. })) => Situation::FleetOutside,
            (Phase::Idle { .. } | Phase::Aborted { .. }, _) if self.fallback.is_some() => Situation::Fallback,
            (Phase::Idle { .. }, _) => Situation::Idle,
            (Phase::Aborted { .. }, _) => Situation::Aborted,
        }
    }

    /// What follows from an event.
    ///
    /// # Errors
    /// Why a request is not heeded; the state is as before.
    pub fn apply(&self, event: &Event, terms: &Terms, now: Moment) -> Result<Transition, Refused> {
        change::apply(self, event, terms, now)
    }

    /// Adds the bake time since the last look, if what is wanted was in force then and is now. Whatever else happens in
    /// between, that time is not counted.
    pub(super) fn count(&mut self, event: &Event, now: Moment) {
        let until = match (self.watch, event) {
            (Watch::Unserved, _) => return,
            (watch, Event::Tick { force: Force::On, .. }) => watch,
            (Watch::Until(_), Event::Tick { .. }) | (Watch::Unseen, _) => return self.watch = Watch::Unseen,
            // What it does to the time is the event's to say.
            (Watch::Until(_), _) => return self.watch = Watch::Until(now.monotonic),
        };
        self.watch = Watch::Until(now.monotonic);
        if let (Watch::Until(until), Phase::Running(progress)) = (until, &mut self.phase)
            && progress.paused.is_none()
        {
            let passed = now.monotonic.saturating_duration_since(until).min(MOST_AT_ONCE);
            progress.elapsed = progress.elapsed.saturating_add(passed);
        }
    }
}
