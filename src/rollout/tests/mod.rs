//! What follows from what: by examples, by the table, and by chance.

mod behaviour;
mod properties;
mod table;

use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use super::*;
use crate::config::{Backend, Mount, Rollout as Configured, Step, Trial};

const STABLE: Backend = Backend::Fuse2;
const CANDIDATE: Backend = Backend::Fuse3;
const MINUTE: Duration = Duration::from_secs(60);

fn step(trial: Trial, minutes: u32) -> Step {
    Step { trial, bake: MINUTE * minutes }
}

/// Shadow, 10, 100, of a minute, two, and three.
fn steps() -> Vec<Step> {
    vec![step(Trial::Shadow, 1), step(Trial::Weight(10), 2), step(Trial::Weight(100), 3)]
}

fn terms_of(rollout: Configured) -> Terms {
    let mut mount = Mount::new("projects", "/srv/projects", "/mnt/projects");
    mount.backend = crate::config::BackendChoice::Only(STABLE);
    mount.rollout = rollout;
    Terms::of(&mount, None, &MachineId::of(&daemon()))
}

fn daemon() -> crate::config::Daemon {
    crate::config::Daemon { machine_id: Some("node-17".into()), ..crate::config::Daemon::new("/run/control.sock") }
}

fn terms(steps: Vec<Step>) -> Terms {
    terms_of(Configured { candidate: Some(CANDIDATE), steps: Some(steps), ..Configured::default() })
}

/// All machines or none: the share of one is 0 or 100 percent.
fn fleet(inside: bool) -> Terms {
    let fleet = Some(if inside { 100 } else { 0 });
    terms_of(Configured { candidate: Some(CANDIDATE), fleet, ..Configured::default() })
}

fn no_candidate() -> Terms {
    terms_of(Configured::default())
}

/// What was the candidate is the stable one, and nothing is tried.
fn turned() -> Terms {
    let mut mount = Mount::new("projects", "/srv/projects", "/mnt/projects");
    mount.backend = crate::config::BackendChoice::Only(CANDIDATE);
    Terms::of(&mount, Some(CANDIDATE), &MachineId::of(&daemon()))
}

/// A mount and its clocks.
struct Stage {
    state: State,
    terms: Terms,
    now: Moment,
}

impl Stage {
    /// Served by the stable backend, with nothing begun.
    fn new(terms: Terms) -> Self {
        let mut stage = Self { state: State::restored(Phase::Idle { by_hand: None }), terms, now: Moment::now() };
        stage.event(Event::ServerStarted { serving: STABLE });
        stage
    }

    #[expect(clippy::needless_pass_by_value, reason = "they are made where they are used")]
    fn event(&mut self, event: Event) -> Transition {
        let transition = self.state.apply(&event, &self.terms, self.now).expect("only requests are refused");
        self.state = transition.state.clone();
        transition
    }

    fn ask(&mut self, request: Request) -> Result<Transition, Refused> {
        let transition = self.state.apply(&Event::Asked(request), &self.terms, self.now)?;
        self.state = transition.state.clone();
        Ok(transition)
    }

    /// Lets time pass, with a tick at once and each second.
    fn pass(&mut self, time: Duration) -> Vec<Transition> {
        self.event(tick(Evidence::Enough));
        (0..time.as_secs())
            .map(|_| {
                self.wait(Duration::from_secs(1));
                self.event(tick(Evidence::Enough))
            })
            .collect()
    }

    /// Lets time pass, and nobody looks.
    fn wait(&mut self, time: Duration) {
        self.now = Moment { monotonic: self.now.monotonic + time, wall: self.now.wall + time };
    }

    fn reload(&mut self, terms: Terms) -> Transition {
        self.terms = terms;
        self.event(Event::Reloaded)
    }

    /// The daemon is started anew, and finds the server.
    fn restart(&mut self, because: Because) -> Transition {
        let kept = serde_json::to_vec(self.state.phase()).unwrap();
        self.state = State::restored(serde_json::from_slice(&kept).unwrap());
        // A monotonic clock may begin anywhere.
        self.now.monotonic = Instant::now() + Duration::from_secs(fastrand::u64(0..1_000_000));
        let serving = match self.state.wanted(&self.terms) {
            Serving::Only(backend) => backend,
            Serving::Both { .. } => STABLE,
        };
        self.event(Event::ServerAdopted { serving, because })
    }

    fn progress(&self) -> &Progress {
        match self.state.phase() {
            Phase::Running(progress) => progress,
            other => panic!("no step is under way: {other:?}"),
        }
    }

    fn weight(&self) -> u8 {
        self.state.weight(&self.terms)
    }

    fn situation(&self) -> Situation {
        self.state.situation(&self.terms)
    }

    fn pin(&self) -> &Pin {
        self.state.pin().expect("it is pinned")
    }
}

/// Time passes, and what is wanted is in force.
fn tick(evidence: Evidence) -> Event {
    Event::Tick { force: Force::On, evidence }
}

/// A mount in each situation.
fn stage(situation: Situation) -> Stage {
    let started = || {
        let mut stage = Stage::new(terms(steps()));
        stage.ask(Request::Start).unwrap();
        stage
    };
    let stage = match situation {
        Situation::NoCandidate => Stage::new(no_candidate()),
        Situation::Idle => Stage::new(terms(steps())),
        Situation::Fallback => {
            let mut stage = Stage::new(terms(steps()));
            stage.event(Event::FailedOver { to: CANDIDATE, why: "its session ended".into(), figures: Value::Null });
            stage
        }
        Situation::FleetOutside => Stage::new(fleet(false)),
        Situation::FleetInside => Stage::new(fleet(true)),
        Situation::Running => {
            let mut stage = started();
            stage.ask(Request::Promote { from: None }).unwrap();
            stage
        }
        Situation::Paused => {
            let mut stage = started();
            stage.ask(Request::Promote { from: None }).unwrap();
            stage.ask(Request::Pause).unwrap();
            stage
        }
        Situation::Committed => {
            let mut stage = started();
            for _ in steps() {
                stage.ask(Request::Promote { from: None }).unwrap();
            }
            stage
        }
        Situation::Aborted => {
            let mut stage = started();
            stage.ask(Request::Abort).unwrap();
            stage
        }
        Situation::Pinned => {
            let mut stage = started();
            stage.ask(Request::Rollback { reason: Some("wrong answers".into()) }).unwrap();
            stage
        }
        Situation::Unreadable => {
            let mut stage = Stage::new(terms(steps()));
            stage.state = State::restored(Phase::Unreadable { why: "the file is damaged: move it away".into() });
            stage.event(Event::ServerStarted { serving: STABLE });
            stage
        }
    };
    assert_eq!(stage.situation(), situation);
    stage
}

fn request(action: Action) -> Request {
    match action {
        Action::SwitchToStable => Request::Switch(STABLE),
        Action::SwitchToCandidate => Request::Switch(CANDIDATE),
        Action::Rollback => Request::Rollback { reason: None },
        Action::Unpin => Request::Unpin,
        Action::Start => Request::Start,
        Action::Pause => Request::Pause,
        Action::Resume => Request::Resume,
        Action::Promote => Request::Promote { from: None },
        Action::Abort => Request::Abort,
    }
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn figures() -> Value {
    serde_json::json!({"errors": 30, "samples": 500})
}
