//! Which backend serves a mount: the plan of a rollout, its state and how that changes, what was asked for by hand, pins,
//! and what of it outlives a restart.
//!
//! [`Rollout`] is all of it for one mount. Whoever starts and watches the mount's server tells it what happens
//! ([`Event`]), and does what the answer says ([`Handled`]): orders the server, tells of it. It decides; it touches
//! nothing but its file in the state directory, and never orders anything itself. What an operator's request meets is
//! decided by one table, [`cell`].
//!
//! ```no_run
//! use lighthouse_fs::config::{Daemon, Mount};
//! use lighthouse_fs::rollout::{Event, Evidence, Force, MachineId, Moment, Request, Rollout, Store, Terms};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (daemon, mount) = (Daemon::new("/run/control.sock"), Mount::new("projects", "/srv/projects", "/mnt/projects"));
//! let machine = MachineId::of(&daemon);
//! let store = Store::new(&daemon.state_dir, &mount.name);
//! let mut rollout = Rollout::open(store, Terms::of(&mount, None, &machine));
//! // A server has started: what serves by default is known now, and it gets its first order.
//! let stable = mount.stable();
//! rollout.reload(Terms::of(&mount, Some(stable), &machine), Moment::now())?;
//! let first = rollout.handle(&Event::ServerStarted { serving: stable }, Moment::now())?.serve;
//! // About once a second, and whenever something happens.
//! let handled = rollout.handle(&Event::Tick { force: Force::On, evidence: Evidence::Enough }, Moment::now())?;
//! let answer = rollout.handle(&Event::Asked(Request::Start), Moment::now());
//! # Ok(())
//! # }
//! ```
//!
//! The shape of it, with orders that are levels and not steps, is what survives a crash at any moment: a state is kept
//! before it is acted upon, and whoever comes after orders what is wanted once more.

mod change;
mod claim;
mod fleet;
mod meets;
mod plan;
mod state;
mod store;
#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime};

use serde::Serialize;

use claim::Claim;

pub use fleet::{MachineId, MachineIdError};
pub use meets::{Action, Cell, Refused, Situation, cell};
pub use plan::{Plan, Terms, Way};
pub use state::{
    Because, Event, Evidence, Force, Keep, Moment, Note, Phase, Pin, Progress, Request, Serving, State, Transition,
};
pub use store::{LoadError, SaveError, Store};

use crate::config::Backend;

/// For another daemon that uses the mount's state, and is about to end.
const PATIENCE: Duration = Duration::from_secs(1);

/// What to do after an event, in this order.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Handled {
    /// Order the server this, even if it may be so already; while there is none, drop it: it comes again when there is.
    pub serve: Option<Serving>,
    /// Tell this, to log and event stream.
    pub notes: Vec<Note>,
}

/// Why an event came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    /// A request meets something. Nothing has changed.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The state could not be kept, and without that it is not dared: all is as before. A tick tries again.
    #[error(transparent)]
    NotKept(#[from] SaveError),
}

/// A mount's rollout. Its methods wait for the disk: run them where blocking is allowed.
#[derive(Debug)]
pub struct Rollout {
    state: State,
    terms: Terms,
    store: Store,
    /// What keeps other daemons from the store; without it what is there is not ours to know, unless nobody can write there.
    claim: Option<Claim>,
    /// Why the last state is not on disk.
    not_kept: Option<String>,
}

impl Rollout {
    /// As it was kept. The first order comes with [`Event::ServerStarted`] or [`Event::ServerAdopted`]; until then
    /// [`Rollout::wanted`] says with which backend a server is to begin.
    #[must_use]
    pub fn open(store: Store, terms: Terms) -> Self {
        let mut claim = None;
        let state = restored(&store, &mut claim, PATIENCE);
        Self { state, terms, store, claim, not_kept: None }
    }

    /// What follows from an event.
    ///
    /// # Errors
    /// A request that is refused, and a step up that could not be kept; nothing has changed then.
    pub fn handle(&mut self, event: &Event, now: Moment) -> Result<Handled, HandleError> {
        if matches!(event, Event::Tick { .. }) && self.is_free_by_now() {
            return self.reload(self.terms.clone(), now);
        }
        let Transition { state, keep, serve, notes } = self.state.apply(event, &self.terms, now)?;
        // What a full disk did not take is tried until it does.
        let again = self.not_kept.is_some() && matches!(event, Event::Tick { .. });
        if keep.is_some() || again {
            match self.store.save(state.phase()) {
                Ok(()) => self.not_kept = None,
                Err(error) => {
                    self.not_kept = Some(error.to_string());
                    if keep == Some(Keep::Must) {
                        self.state.count(event, now);
                        return Err(error.into());
                    }
                }
            }
        }
        self.state = state;
        Ok(Handled { serve, notes })
    }

    /// Whether another daemon has let go of the state, and it is ours from now on.
    fn is_free_by_now(&mut self) -> bool {
        if self.claim.is_some() || !matches!(self.state.phase(), Phase::Unreadable { .. }) {
            return false;
        }
        self.claim = self.store.claim(Duration::ZERO).ok().flatten();
        self.claim.is_some()
    }

    /// Goes by other terms from now on, after a reload of the configuration or when the mount is made anew. What could not
    /// be read before is tried again.
    ///
    /// # Errors
    /// When the new terms let the candidate have more, and that cannot be kept. They are tried again with each reload.
    pub fn reload(&mut self, terms: Terms, now: Moment) -> Result<Handled, HandleError> {
        let was = self.state.wanted(&self.terms);
        let mut reread = false;
        if matches!(self.state.phase(), Phase::Unreadable { .. }) {
            self.state = self.state.reread(restored(&self.store, &mut self.claim, Duration::ZERO));
            reread = true;
        }
        self.terms = terms;
        let mut handled = self.handle(&Event::Reloaded, now)?;
        if reread || self.state.wanted(&self.terms) != was {
            handled.serve = Some(self.state.wanted(&self.terms));
        }
        Ok(handled)
    }

    /// Why the last state is not on disk, if so.
    #[must_use]
    pub fn not_kept(&self) -> Option<&str> {
        self.not_kept.as_deref()
    }

    /// Where it has got to.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// By what it goes.
    #[must_use]
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// What is to serve.
    #[must_use]
    pub fn wanted(&self) -> Serving {
        self.state.wanted(&self.terms)
    }

    /// What holds the mount to a backend, and to which.
    #[must_use]
    pub fn pin(&self) -> Option<Pin> {
        self.state.pin().map(|pin| Pin { backend: Some(self.state.home(&self.terms)), ..pin.clone() })
    }

    /// What may serve instead of what is wanted, if servers die of that: nothing but the stable backend, and nothing at all where
    /// the mount is pinned.
    #[must_use]
    pub fn instead(&self) -> Option<Backend> {
        let stable = self.terms.stable;
        (self.state.pin().is_none() && self.wanted() != Serving::Only(stable)).then_some(stable)
    }

    /// Why the mount is degraded, if it is: what cannot be read or kept, a pin. That another backend serves than should,
    /// whoever looks at the server sees better.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if let Phase::Unreadable { why } = self.state.phase() {
            reasons.push(format!("{} serves alone: {why}", self.terms.stable));
        }
        if let Some(pin) = self.state.pin() {
            let (home, stable) = (self.state.home(&self.terms), self.terms.stable);
            reasons.push(format!("it is pinned to {home} ({})", pin.reason));
            if home != stable {
                let mount = &self.terms.mount;
                reasons.push(format!(
                    "the configured stable backend is {stable}: it serves when `lighthouse-fs unpin {mount}` lifts the pin to {home}"
                ));
            }
        }
        if let Some((backend, why)) = self.state.given_up() {
            reasons.push(format!(
                "{} serves instead of {backend} ({why}): `lighthouse-fs switch {} {backend}` tries it again",
                self.terms.stable, self.terms.mount
            ));
        }
        reasons.extend(self.not_kept.as_ref().map(|why| format!("a restart would forget where its rollout is: {why}")));
        reasons.extend(self.terms.plan().and_then(Plan::trouble).map(ToString::to_string));
        reasons
    }

    /// What status says of it; `None` without a candidate and a past.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        let state = match self.state.phase() {
            Phase::Idle { .. } => self.terms.plan().map(|_| "idle")?,
            Phase::Running(progress) if progress.paused.is_some() => "paused",
            Phase::Running(_) => "running",
            Phase::Committed { .. } => "committed",
            Phase::Aborted { .. } => "aborted",
            Phase::RolledBack(_) => "rolled_back",
            Phase::Unreadable { .. } => "unreadable",
        };
        let progress = if let Phase::Running(progress) = self.state.phase() { Some(progress) } else { None };
        let step = progress.filter(|progress| !progress.fleet);
        let reason = match self.state.phase() {
            Phase::Aborted { reason, .. } => Some(reason.clone()),
            Phase::RolledBack(pin) => Some(pin.reason.clone()),
            Phase::Unreadable { why } => Some(why.clone()),
            Phase::Running(progress) => progress.paused.clone().or_else(|| self.state.waits().map(str::to_owned)),
            Phase::Idle { .. } | Phase::Committed { .. } => None,
        };
        Some(Status {
            state,
            step: step.map(|progress| progress.step + 1),
            steps: self.terms.steps().len(),
            weight: match self.state.phase() {
                Phase::Running(_) | Phase::Committed { .. } => self.state.weight(&self.terms),
                // What was switched to by hand is no share of a rollout.
                _ => 0,
            },
            entered: progress.map(|progress| progress.entered),
            elapsed: step.map(|progress| progress.elapsed),
            bake: step.and_then(|progress| Some(self.terms.steps().get(progress.step)?.bake)),
            reason,
        })
    }
}

impl Status {
    /// The state as a number, for metrics: 0 idle, 1 running, 2 paused, 3 committed, 4 aborted, 5 rolled back, 6 unreadable.
    #[must_use]
    pub fn number(&self) -> u8 {
        let all = ["idle", "running", "paused", "committed", "aborted", "rolled_back", "unreadable"];
        all.iter().position(|state| *state == self.state).map_or(0, |at| at as u8)
    }
}

/// What was kept, if no other daemon keeps something else there.
fn restored(store: &Store, claim: &mut Option<Claim>, patience: Duration) -> State {
    if claim.is_none() {
        match store.claim(patience) {
            Ok(claimed) => *claim = claimed,
            Err(error) => return State::restored(Phase::Unreadable { why: error.to_string() }),
        }
    }
    let phase = store.load().unwrap_or_else(|error| Some(Phase::Unreadable { why: error.to_string() }));
    State::restored(phase.unwrap_or(Phase::Idle { by_hand: None }))
}

/// A rollout, as `status` says it in JSON.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Status {
    /// `idle`, `running`, `paused`, `committed`, `aborted`, `rolled_back`, `unreadable`.
    pub state: &'static str,
    /// The step that is under way, from 1.
    pub step: Option<usize>,
    /// How many there are; 0 for a fleet's share.
    pub steps: usize,
    /// The candidate's share of operations, in percent.
    pub weight: u8,
    /// When the step began, or the machine came into the fleet's share.
    #[serde(with = "humantime_serde")]
    pub entered: Option<SystemTime>,
    /// How much of the bake time has been counted.
    #[serde(with = "humantime_serde")]
    pub elapsed: Option<Duration>,
    /// How much it needs.
    #[serde(rename = "for", with = "humantime_serde")]
    pub bake: Option<Duration>,
    /// Why it is paused, aborted, rolled back or unreadable; or why a step's time does not run, or what it waits for when that is over.
    pub reason: Option<String>,
}
