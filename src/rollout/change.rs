//! How a rollout's state changes: one function for each kind of event.

use std::time::Duration;

use super::meets::{Cell, Refused, cell};
use super::plan::{Terms, Way};
use super::state::{
    Because, Event, Evidence, Force, Keep, Moment, Note, Phase, Pin, Progress, Request, Serving, State, Transition,
    Watch,
};
use crate::config::{Backend, Step, Trial};

/// Counted bake time is kept at least so often.
const KEPT_EVERY: Duration = Duration::from_secs(60);
/// So many servers may die in one step while the candidate has a weight, before it is rolled back.
const DEATHS: u32 = 2;
/// Why, where a person has asked for it.
const OPERATOR: &str = "operator";

/// What follows from an event: see [`State::apply`].
pub(super) fn apply(state: &State, event: &Event, terms: &Terms, now: Moment) -> Result<Transition, Refused> {
    let mut change = Change { state: state.clone(), terms, now, notes: Vec::new(), order: false, fell_back: false };
    change.state.count(event, now);
    match event {
        Event::Asked(request) => change.asked(request)?,
        Event::RollBack { reason, figures } => change.guarded(reason, figures),
        Event::Tick { force, evidence } => change.tick(force, evidence),
        Event::Reloaded => change.meet_terms(),
        Event::ServerStarted { serving } => change.started(*serving),
        Event::GaveUp { serving, why } => change.gave_up(*serving, why),
        Event::ServerAdopted { serving, because } => change.adopted(*serving, because),
        Event::ServerEnded { died } => change.server_ended(*died),
        Event::FailedOver { to, why, figures } => change.failed_over(*to, why, figures),
        Event::OrderFailed { serving, why } => change.order_failed(*serving, why),
    }
    Ok(change.finish(state, event))
}

/// A state as it changes.
struct Change<'a> {
    state: State,
    terms: &'a Terms,
    now: Moment,
    notes: Vec<Note>,
    /// Whether the server is told what is wanted, though that may not have changed.
    order: bool,
    /// Whether this very event is that another backend serves than should.
    fell_back: bool,
}

impl Change<'_> {
    fn finish(self, before: &State, event: &Event) -> Transition {
        let Self { mut state, terms, notes, order, fell_back, .. } = self;
        let essence = |state: &State| match &state.phase {
            Phase::Idle { .. } => Phase::Idle { by_hand: None },
            Phase::Running(progress) => Phase::Running(Progress { elapsed: Duration::ZERO, ..progress.clone() }),
            other => other.clone(),
        };
        let elapsed = if let Phase::Running(progress) = &state.phase { progress.elapsed } else { Duration::ZERO };
        let changed = essence(&state) != essence(before) || elapsed < state.kept;
        let place = |state: &State| match &state.phase {
            Phase::Running(Progress { step, paused, .. }) => Some((*step, paused.is_some())),
            _ => None,
        };
        if place(&state) != place(before) {
            (state.stands, state.waits) = (None, None);
        }
        if state.given_up().is_none_or(|(backend, _)| backend == terms.stable) {
            state.gave_up = None;
        }
        let rises = state.weight(terms) > before.weight(terms);
        let must = rises || matches!(event, Event::Asked(Request::Start | Request::Unpin));
        let keep = match changed {
            // What was switched to by hand is not kept.
            true if must && !matches!(state.phase, Phase::Idle { by_hand: Some(_) }) => Some(Keep::Must),
            true => Some(Keep::Try),
            false => (elapsed.saturating_sub(state.kept) >= KEPT_EVERY).then_some(Keep::Try),
        };
        if keep.is_some() {
            state.kept = elapsed;
        }
        let wanted = state.wanted(terms);
        // Until it is seen to be in force.
        if wanted != before.wanted(terms) && state.watch != Watch::Unserved {
            state.watch = Watch::Unseen;
        }
        let serve = (order || wanted != before.wanted(terms)).then_some(wanted);
        // What is ordered will be so; if it cannot be, that is an event of its own.
        if serve.is_some() && !fell_back {
            state.fallback = None;
        }
        Transition { state, keep, serve, notes }
    }

    fn asked(&mut self, request: &Request) -> Result<(), Refused> {
        let action = request.action(self.state.home(self.terms));
        match cell(self.state.situation(self.terms), action) {
            Cell::Refuse { reason, remedy } => {
                return Err(Refused { reason: self.filled(reason), remedy: self.filled(remedy) });
            }
            Cell::Already(text) => {
                let text = self.filled(text);
                self.notes.push(Note::Already { text });
                return Ok(());
            }
            Cell::Do(_) => {}
        }
        self.state.gave_up = None;
        match request {
            Request::Switch(to) => self.switch(*to),
            Request::Rollback { reason } => {
                self.roll_back(reason.as_deref().unwrap_or(OPERATOR), &serde_json::Value::Null);
            }
            Request::Unpin => {
                self.state.phase = Phase::Idle { by_hand: None };
                self.notes.push(Note::Unpinned);
                self.meet_terms();
            }
            Request::Start => {
                self.state.phase = Phase::Idle { by_hand: None };
                if let (Some(plan), Some(first)) = (self.terms.plan(), self.terms.steps().first()) {
                    self.notes.push(Note::Started { candidate: plan.candidate });
                    self.enter(plan.candidate, 0, *first, None, OPERATOR);
                }
                self.order = true;
            }
            Request::Pause => self.pause(OPERATOR),
            Request::Resume => {
                if let Phase::Running(progress) = &mut self.state.phase {
                    progress.paused = None;
                }
                self.state.fallback = None;
                self.order = true;
                self.notes.push(Note::Resumed);
            }
            Request::Promote { from } => return self.promote(*from),
            Request::Abort => self.abort(OPERATOR),
        }
        Ok(())
    }

    fn switch(&mut self, to: Backend) {
        let by_hand = (to != self.state.home(self.terms)).then_some(to);
        self.state.phase = match (&self.state.phase, by_hand) {
            (Phase::RolledBack(_) | Phase::Unreadable { .. } | Phase::Aborted { .. }, None) => self.state.phase.clone(),
            (Phase::Committed { candidate }, Some(to)) if *candidate == to => self.state.phase.clone(),
            _ => Phase::Idle { by_hand },
        };
        self.state.fallback = None;
        self.order = true;
    }

    fn promote(&mut self, from: Option<usize>) -> Result<(), Refused> {
        let Phase::Running(progress) = &self.state.phase else { return Ok(()) };
        match from {
            Some(seen) if seen != progress.step + 1 => Err(Refused {
                reason: self.filled("the rollout of MOUNT is at another step by now (STEP)"),
                remedy: self.filled("look at `rollout status MOUNT`, and promote again if that is still meant"),
            }),
            _ => {
                self.advance(OPERATOR);
                Ok(())
            }
        }
    }

    /// A step ends when its time is over and nothing that was seen of the candidate speaks against it.
    fn tick(&mut self, force: &Force, evidence: &Evidence) {
        let Phase::Running(progress) = &self.state.phase else { return };
        if progress.fleet || progress.paused.is_some() {
            return;
        }
        self.state.stands = match force {
            Force::On => None,
            Force::Off(reason) => Some(format!("its time does not run: {reason}")),
        };
        if !matches!(self.state.watch, Watch::Until(_)) {
            return;
        }
        let Some(step) = self.terms.steps().get(progress.step).filter(|step| progress.elapsed >= step.bake) else {
            return;
        };
        match evidence {
            Evidence::Enough => {
                let over = format!("its bake time of {} is over", humantime::format_duration(step.bake));
                self.advance(&over);
            }
            Evidence::Missing(reason) => {
                // What is missing becomes less every second, and is told once.
                if self.state.waits.is_none() {
                    self.notes.push(Note::Waits { reason: reason.clone() });
                }
                self.state.waits = Some(reason.clone());
            }
        }
    }

    /// To the next step, or through. A rollout that is paused stays so.
    fn advance(&mut self, reason: &str) {
        let Phase::Running(progress) = &self.state.phase else { return };
        let (candidate, next, paused) = (progress.candidate, progress.step + 1, progress.paused.clone());
        match self.terms.steps().get(next) {
            Some(step) => self.enter(candidate, next, *step, paused, reason),
            None => {
                self.state.phase = Phase::Committed { candidate };
                self.notes.push(Note::Committed { candidate });
            }
        }
    }

    fn enter(&mut self, candidate: Backend, step: usize, is: Step, paused: Option<String>, reason: &str) {
        self.run(Progress { step, trial: is.trial, paused, ..self.beginning(candidate) });
        self.notes.push(Note::Step { step: step + 1, weight: is.trial.weight(), reason: reason.into() });
    }

    fn run(&mut self, progress: Progress) {
        self.state.gave_up = None;
        self.state.kept = Duration::ZERO;
        self.state.phase = Phase::Running(progress);
    }

    fn beginning(&self, candidate: Backend) -> Progress {
        Progress {
            candidate,
            fleet: false,
            step: 0,
            trial: Trial::Shadow,
            elapsed: Duration::ZERO,
            entered: self.now.wall,
            paused: None,
            deaths: 0,
        }
    }

    fn pause(&mut self, reason: &str) {
        if let Phase::Running(progress) = &mut self.state.phase {
            progress.paused = Some(reason.into());
            self.notes.push(Note::Paused { reason: reason.into() });
        }
    }

    fn abort(&mut self, reason: &str) {
        if let Phase::Running(Progress { candidate, .. }) = self.state.phase {
            self.state.phase = Phase::Aborted { candidate, reason: reason.into() };
            self.order = true;
            self.notes.push(Note::Aborted { reason: reason.into() });
        }
    }

    fn roll_back(&mut self, reason: &str, figures: &serde_json::Value) {
        let backend = Some(self.terms.stable);
        let pin = Pin { reason: reason.into(), since: self.now.wall, figures: figures.clone(), backend };
        self.state.phase = Phase::RolledBack(pin.clone());
        self.order = true;
        self.notes.push(Note::RolledBack(pin));
    }

    /// The guard judges what is tried, and what has been.
    fn guarded(&mut self, reason: &str, figures: &serde_json::Value) {
        if matches!(self.state.phase, Phase::Running(_) | Phase::Committed { .. }) {
            self.roll_back(reason, figures);
        }
    }

    /// Without a candidate's time beginning anew, nothing goes up that the new plan does not say.
    fn meet_terms(&mut self) {
        let plan = self.terms.plan();
        let inside = plan.is_some_and(|plan| matches!(plan.way, Way::Fleet { takes_part: Ok(true), .. }));
        let fleet = plan.is_some_and(|plan| matches!(plan.way, Way::Fleet { .. }));
        match self.state.phase.clone() {
            Phase::RolledBack(_) | Phase::Unreadable { .. } => return,
            Phase::Idle { .. } | Phase::Aborted { .. } => {}
            Phase::Running(progress) => match plan {
                Some(plan) if plan.candidate != progress.candidate => {
                    self.abort("the configuration has another candidate");
                }
                None => self.abort("the configuration has its candidate no more"),
                Some(_) if progress.fleet && inside => return,
                Some(_) if progress.fleet => self.end("this machine is not in the fleet's share any more"),
                Some(_) if fleet => self.end("the fleet's share takes the place of steps"),
                Some(_) => return self.find_place(progress),
            },
            Phase::Committed { candidate } => match plan {
                _ if candidate == self.terms.stable => self.end("what was committed is the stable backend now"),
                Some(plan) if plan.candidate == candidate && !fleet => return,
                Some(_) if fleet => self.end("the fleet's share takes the place of what was committed"),
                _ => self.end("the configuration has what was committed no more"),
            },
        }
        if let Some(plan) = plan.filter(|_| inside) {
            self.run(Progress { fleet: true, trial: Trial::Weight(100), ..self.beginning(plan.candidate) });
            self.notes.push(Note::Started { candidate: plan.candidate });
        }
    }

    fn end(&mut self, reason: &str) {
        self.state.phase = Phase::Idle { by_hand: None };
        self.notes.push(Note::Ended { reason: reason.into() });
    }

    /// In other steps: where the candidate does what it does now, else the nearest below, from its beginning.
    fn find_place(&mut self, progress: Progress) {
        let steps = self.terms.steps();
        let is_same = |step: &&Step| step.trial == progress.trial;
        if steps.get(progress.step).as_ref().is_some_and(is_same) {
            return;
        }
        if let Some(step) = steps.iter().position(|step| is_same(&step)) {
            self.state.phase = Phase::Running(Progress { step, ..progress });
            self.notes.push(Note::PlanChanged { step: step + 1, keeps_time: true });
            return;
        }
        let below = steps.iter().rev().find(|step| step.trial < progress.trial).map(|step| step.trial);
        match below.and_then(|trial| steps.iter().position(|step| step.trial == trial)) {
            Some(step) => {
                self.notes.push(Note::PlanChanged { step: step + 1, keeps_time: false });
                let paused = progress.paused;
                self.run(Progress { step, trial: steps[step].trial, paused, ..self.beginning(progress.candidate) });
            }
            None => self.abort(&format!("no step of the new plan begins at {} or below", progress.trial)),
        }
    }

    fn started(&mut self, serving: Backend) {
        self.state.watch = Watch::Unseen;
        self.state.fallback = None;
        self.meet_terms();
        let wanted = self.state.wanted(self.terms);
        if serving != self.terms.stable && wanted != Serving::Only(serving) {
            // The server begins with the stable one if that works; to ask again would end as that did.
            let why = format!("{} did not start", self.terms.stable);
            self.pause(&why);
            self.fall_back(serving, &why);
            self.order = false;
        } else {
            self.order = wanted != Serving::Only(serving);
        }
    }

    /// What kills servers is not ordered again by itself: while it was tried, that is the same as a rule that is broken;
    /// after that, stable serves until somebody asks for it once more.
    fn gave_up(&mut self, serving: Backend, why: &str) {
        self.started(serving);
        let is_other = serving == self.terms.stable && self.state.wanted(self.terms) != Serving::Only(serving);
        match &self.state.phase {
            Phase::Running(progress) if is_other && progress.trial.weight() > 0 => {
                let figures = serde_json::json!({"deaths": progress.deaths, "weight": progress.trial.weight()});
                self.roll_back(why, &figures);
            }
            Phase::Committed { .. } | Phase::Idle { by_hand: Some(_) } if is_other => {
                self.state.gave_up = Some(why.into());
                self.order = false;
                self.notes.push(Note::Fallback { serving, reason: why.into() });
            }
            _ => {}
        }
    }

    fn adopted(&mut self, serving: Backend, because: &Because) {
        self.state.watch = Watch::Unseen;
        self.meet_terms();
        match because {
            Because::FailedOver(why) => self.failed_over(serving, why, &serde_json::Value::Null),
            Because::Operator if matches!(self.state.phase, Phase::Idle { .. }) => {
                let by_hand = (serving != self.terms.stable).then_some(serving);
                self.state.phase = Phase::Idle { by_hand };
                self.order = true;
            }
            // A daemon that was killed may have kept what it had not ordered yet.
            Because::Operator | Because::Ordered => self.order = true,
        }
    }

    fn server_ended(&mut self, died: bool) {
        self.state.watch = Watch::Unserved;
        let Phase::Running(progress) = &mut self.state.phase else { return };
        if !died || progress.trial.weight() == 0 {
            return;
        }
        progress.deaths += 1;
        progress.elapsed = Duration::ZERO;
        if progress.deaths >= DEATHS {
            let figures = serde_json::json!({"deaths": progress.deaths, "weight": progress.trial.weight()});
            let reason = format!(
                "{} servers died in one step while {} had {}",
                progress.deaths, progress.candidate, progress.trial
            );
            self.roll_back(&reason, &figures);
        }
    }

    fn failed_over(&mut self, to: Backend, why: &str, figures: &serde_json::Value) {
        let stable = self.terms.stable;
        match &self.state.phase {
            Phase::Running(progress) if to == stable && progress.trial.weight() > 0 => {
                let mut figures = if figures.is_object() { figures.clone() } else { serde_json::json!({}) };
                figures["rule"] = "ended_session".into();
                // What was seen last may have been the step before.
                figures["weight"] = progress.trial.weight().into();
                let reason = format!("ended_session: the session of {} ended: {why}", progress.candidate);
                self.roll_back(&reason, &figures);
            }
            Phase::Running(_) if to != stable && self.state.wanted(self.terms) != Serving::Only(to) => {
                self.pause(&format!("the session of {stable} ended: {why}"));
                self.fall_back(to, why);
            }
            Phase::Idle { by_hand: Some(backend) } if *backend != to => {
                self.state.phase = Phase::Idle { by_hand: None };
                self.fall_back(to, why);
            }
            _ => self.fall_back(to, why),
        }
    }

    fn order_failed(&mut self, serving: Backend, why: &str) {
        match &self.state.phase {
            Phase::Running(progress) if serving == self.terms.stable && progress.trial.weight() > 0 => {
                self.abort(&format!("{} cannot serve: {why}", progress.candidate));
            }
            Phase::Running(_) if self.state.wanted(self.terms) != Serving::Only(serving) => {
                self.pause(why);
                self.fall_back(serving, why);
            }
            Phase::Idle { by_hand: Some(backend) } if *backend != serving => {
                self.state.phase = Phase::Idle { by_hand: None };
                self.fall_back(serving, why);
            }
            _ => self.fall_back(serving, why),
        }
    }

    /// Notes what serves, where it is not what should.
    fn fall_back(&mut self, serving: Backend, why: &str) {
        let is_wanted = match self.state.wanted(self.terms) {
            Serving::Only(backend) => backend == serving,
            Serving::Both { .. } => false,
        };
        self.state.fallback = (!is_wanted).then(|| why.to_owned());
        self.fell_back = true;
        if !is_wanted {
            self.notes.push(Note::Fallback { serving, reason: why.into() });
        }
    }

    /// A text of the table for this mount.
    fn filled(&self, text: &str) -> String {
        let terms = self.terms;
        let (why, since) = match &self.state.phase {
            Phase::RolledBack(pin) => (pin.reason.clone(), humantime::format_rfc3339_seconds(pin.since).to_string()),
            Phase::Unreadable { why } => (why.clone(), String::new()),
            _ => (self.state.fallback.clone().unwrap_or_default(), String::new()),
        };
        let step = match &self.state.phase {
            Phase::Running(progress) => {
                format!("step {} of {}: {}", progress.step + 1, terms.steps().len(), progress.trial)
            }
            _ => String::new(),
        };
        let candidate = match &self.state.phase {
            Phase::Running(Progress { candidate, .. }) | Phase::Committed { candidate } => *candidate,
            _ => self.state.home(terms).other(),
        };
        let words = [
            ("MOUNT", terms.mount.as_str()),
            ("STABLE", self.state.home(terms).name()),
            ("CANDIDATE", candidate.name()),
            ("STEP", &step),
            ("SINCE", &since),
            ("WHY", &why),
        ];
        // From left to right, so that nothing in what others have written is taken for a word of ours.
        let (mut filled, mut rest) = (String::new(), text);
        let next = |rest: &str| {
            let found = words.iter().filter_map(|(word, value)| Some((rest.find(word)?, *word, *value)));
            found.min_by_key(|(at, ..)| *at)
        };
        while let Some((at, word, value)) = next(rest) {
            filled += &rest[..at];
            filled += value;
            rest = &rest[at + word.len()..];
        }
        filled + rest
    }
}
