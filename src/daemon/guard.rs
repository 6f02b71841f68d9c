//! Looks at what is tried on a mount, judges it five times a second, and tells the pilot and whoever listens.
//!
//! A task of its own, which reads memory and waits for nobody: so what is found out does not wait for an order that takes its
//! time, nor for the disk.

use std::time::{Duration, Instant, SystemTime};

use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::facts::{Facts, Phase};
use super::lost;
use super::pilot::Shown;
use super::prober::{Probed, Prober};
use crate::api::events::{self, Events};
use crate::config::{Backend, Guard, Prometheus};
use crate::guard::{
    self, Comparison, Counts, Finding, Look, Lost, PerBackend, Probe, Rule, Verdict, Window, judge, prometheus,
};
use crate::ledger::{AnswerStatus, Compared, Ledger, Operation, PortState};
use crate::rollout::{Evidence, Serving};

/// Between two looks. What is broken at once is to be acted on within a second.
const TICK: Duration = Duration::from_millis(200);

/// Between two questions to a Prometheus server, which has news four times a minute; and how long it may take.
const QUESTIONS: Duration = Duration::from_secs(5);

/// What is being tried, as far as it tells one trial from the next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tried {
    candidate: Backend,
    /// Percent of the operations; 0 in a shadow step.
    weight: u8,
    /// The step, from 1, if there are steps.
    step: Option<usize>,
    entered: Option<SystemTime>,
}

impl Tried {
    /// What is tried on a mount with this stable backend, if something is.
    #[must_use]
    pub fn of(shown: &Shown, stable: Backend) -> Option<Self> {
        let rollout = shown.rollout.as_ref()?;
        let is_on = matches!(rollout.state, "running" | "paused" | "committed");
        let (candidate, weight) = match shown.wanted {
            _ if !is_on => return None,
            Serving::Both { candidate, weight } => (candidate, weight),
            Serving::Only(backend) if backend != stable => (backend, 100),
            // What is committed was given up.
            Serving::Only(_) if rollout.state == "committed" => return None,
            Serving::Only(_) => (shown.candidate?, 0),
        };
        Some(Self { candidate, weight, step: rollout.step, entered: rollout.entered })
    }
}

/// What the guard has found.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Judged {
    /// About what.
    tried: Option<Tried>,
    /// By each rule; empty while nothing is tried.
    pub findings: Vec<Finding>,
}

impl Judged {
    /// Why the candidate is to be rolled back, if it is, and all figures. Of `tried` alone: what was found of an earlier step
    /// is no reason.
    #[must_use]
    pub fn breach(&self, tried: Option<&Tried>) -> Option<(Rule, String, serde_json::Value)> {
        let broken = guard::breach(&self.findings).filter(|_| self.tried.as_ref() == tried)?;
        Some((broken.rule, format!("{}: {}", broken.rule.name(), broken.reason), self.figures(broken.rule)))
    }

    /// All figures, for a rollback by this rule; null while nothing is tried.
    #[must_use]
    pub fn figures(&self, rule: Rule) -> serde_json::Value {
        let Some(Tried { candidate, weight, step, .. }) = &self.tried else { return serde_json::Value::Null };
        json!({"rule": rule, "candidate": candidate, "weight": weight, "step": step, "guard": self.findings})
    }

    /// Whether the step may end.
    #[must_use]
    pub fn evidence(&self, tried: Option<&Tried>) -> Evidence {
        if self.tried.as_ref() != tried {
            return Evidence::Missing("it was not judged yet".into());
        }
        match guard::missing(&self.findings) {
            None => Evidence::Enough,
            Some(Finding { rule, verdict: Verdict::NoData, reason, .. }) => {
                Evidence::Missing(format!("waits for evidence: {}: {reason}", rule.name()))
            }
            Some(Finding { rule, reason, .. }) => Evidence::Missing(format!("{}: {reason}", rule.name())),
        }
    }

    /// Why the mount is degraded by it.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let both = guard::source(&self.findings)?;
        Some(format!(
            "both backends fail by the rule {}, so that the source is to blame: no step, no rollback ({})",
            both.rule.name(),
            both.reason
        ))
    }
}

/// Starts the task, which ends with the mount's keeper. Needs a runtime.
pub fn start(
    shown: watch::Receiver<Option<Shown>>,
    facts: watch::Receiver<Facts>,
    prober: Prober,
    events: Events,
) -> watch::Receiver<Judged> {
    let (sender, judged) = watch::channel(Judged::default());
    tokio::spawn(run(shown, facts, prober, events, sender));
    judged
}

async fn run(
    shown: watch::Receiver<Option<Shown>>,
    facts: watch::Receiver<Facts>,
    prober: Prober,
    events: Events,
    judged: watch::Sender<Judged>,
) {
    let mut trial: Option<Trial> = None;
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Without the keeper or the pilot there is nobody to tell.
    while facts.has_changed().is_ok() && shown.has_changed().is_ok() {
        ticks.tick().await;
        let Some((server, tried, ledger, wanted)) = to_judge(&facts, &shown) else {
            trial = None;
            judged.send_if_modified(|judged| std::mem::take(judged) != Judged::default());
            continue;
        };
        let now = Instant::now();
        let is_same = |trial: &Trial| trial.server == server && trial.tried == tried;
        if !trial.as_ref().is_some_and(is_same) {
            trial = Some(Trial::begin(server, tried.clone(), &ledger, &prober, &facts.borrow(), now));
        }
        let Some(trial) = &mut trial else { continue };
        let prometheus = trial.oracle.ask(&wanted.guard.prometheus, now);
        let is_compared = wanted.rollout.shadow_sample.get() > 0.;
        let comparison = if is_compared { Comparison::On } else { Comparison::Off };
        let look = Look { prometheus, comparison, ..trial.look(&ledger, &prober, &wanted.guard, now) };
        let findings = judge(&look, &wanted.guard);
        tell(&wanted.name, &judged.borrow().findings, &findings, &events);
        judged.send_if_modified(|judged| {
            let next = Judged { tried: Some(tried), findings };
            let is_news = *judged != next;
            *judged = next;
            is_news
        });
    }
}

/// What is to be judged now: by which server, what, by what it counts, and how it is configured.
fn to_judge(
    facts: &watch::Receiver<Facts>,
    shown: &watch::Receiver<Option<Shown>>,
) -> Option<(u32, Tried, Ledger, std::sync::Arc<crate::config::Mount>)> {
    let facts = facts.borrow();
    let (server, ledger) = facts.server.as_ref()?;
    let is_served = matches!(facts.phase, Phase::Serving | Phase::Switching);
    let tried = Tried::of(shown.borrow().as_ref().filter(|_| is_served)?, facts.stable())?;
    // Ordered and not done yet, perhaps because its server does not answer: that is nothing of the candidate's.
    let is_begun = tried.weight == 0 || ledger.weight(tried.candidate) > 0;
    let tried = Some(tried).filter(|_| is_begun)?;
    Some((*server, tried, ledger.clone(), facts.wanted.clone()))
}

/// What was seen since something has been tried.
struct Trial {
    server: u32,
    tried: Tried,
    window: Window,
    /// The longest row of errors of each backend within the window, and when it was seen.
    rows: [Option<(Instant, u32)>; 2],
    lost: Lost,
    oracle: Oracle,
    /// What had been compared of each operation before.
    compared: Vec<Compared>,
}

impl Trial {
    fn begin(server: u32, tried: Tried, ledger: &Ledger, prober: &Prober, facts: &Facts, now: Instant) -> Self {
        // Rows of before are none of its.
        for backend in Backend::ALL {
            let _ = ledger.take_errors_in_a_row(backend);
        }
        let lost = if lost::is_seen(facts) { Lost::LookedFor } else { Lost::Unseen };
        Self {
            server,
            tried,
            window: Window::new(now, counts(ledger, prober)),
            rows: [None, None],
            lost,
            oracle: Oracle::default(),
            compared: compared(ledger).map(|(_, compared)| compared).collect(),
        }
    }

    fn look(&mut self, ledger: &Ledger, prober: &Prober, guard: &Guard, now: Instant) -> Look {
        self.window.note(now, counts(ledger, prober), guard.window);
        let mut in_flight = [vec![], vec![]];
        for request in ledger.in_flight().into_iter().filter(|one| !one.abandoned) {
            in_flight[request.backend.index()].push(request.age());
        }
        for backend in Backend::ALL {
            let (row, longest) = (ledger.take_errors_in_a_row(backend), &mut self.rows[backend.index()]);
            let is_past = |(at, _): &(Instant, u32)| now.saturating_duration_since(*at) > guard.window;
            if row > 0 && longest.is_none_or(|longest| longest.1 <= row || is_past(&longest)) {
                *longest = Some((now, row));
            } else if longest.as_ref().is_some_and(is_past) {
                *longest = None;
            }
        }
        let longest = |backend: Backend| self.rows[backend.index()].map_or(0, |(_, row)| row);
        Look {
            candidate: self.tried.candidate,
            weight: self.tried.weight,
            recent: self.window.recent(),
            whole: self.window.whole(),
            in_flight,
            rows: Backend::ALL.map(longest),
            probe: probe(&prober.probed()),
            has_ended: ledger.port_state(self.tried.candidate) == PortState::Ended,
            lost: self.lost,
            comparison: Comparison::Off,
            by_operation: compared(ledger)
                .zip(&self.compared)
                .map(|((operation, now), then)| (operation, now.since(*then)))
                .collect(),
            prometheus: None,
        }
    }
}

/// What a Prometheus server says, asked one question at a time.
#[derive(Default)]
struct Oracle {
    question: Option<(String, String)>,
    /// When it was asked last.
    asked: Option<Instant>,
    asking: JoinSet<Result<f64, String>>,
    answer: Option<Result<f64, String>>,
}

impl Oracle {
    /// The last answer. Waits for none.
    fn ask(&mut self, wanted: &Prometheus, now: Instant) -> Option<Result<f64, String>> {
        let question = wanted.question().map(|question| (question.url.to_owned(), question.query.to_owned()));
        if question != self.question {
            *self = Self { question, ..Self::default() };
        }
        while let Some(answer) = self.asking.try_join_next() {
            self.answer = Some(answer.unwrap_or_else(|error| Err(format!("the question has failed: {error}"))));
        }
        let is_due = self.asked.is_none_or(|asked| now.saturating_duration_since(asked) >= QUESTIONS);
        if let Some((url, query)) = self.question.clone().filter(|_| is_due && self.asking.is_empty()) {
            self.asked = Some(now);
            self.asking.spawn(async move { prometheus::ask(&url, &query, QUESTIONS).await });
        }
        self.answer.clone()
    }
}

fn compared(ledger: &Ledger) -> impl Iterator<Item = (Operation, Compared)> + '_ {
    Operation::ALL.iter().map(|operation| (*operation, ledger.comparisons().get(*operation)))
}

fn counts(ledger: &Ledger, prober: &Prober) -> Counts {
    let of = |backend: Backend| {
        let totals = ledger.totals(backend);
        PerBackend {
            operations: totals.operations(),
            errors: totals.with_status(AnswerStatus::BackendError),
            lost: ledger.lost(backend),
            handlers: totals.all_durations(),
            probes: prober.seen(backend).0,
        }
    };
    let compared = ledger.comparisons().total();
    Counts { backends: Backend::ALL.map(of), compared: compared.compared, diverged: compared.diverged }
}

fn probe(probed: &Probed) -> Probe {
    match probed {
        Probed::Answered { .. } => Probe::Answered,
        Probed::Failed { why, by, .. } => Probe::Failed { why: why.clone(), by: *by },
        Probed::Silent { since } => Probe::Silent { lasted: since.elapsed() },
        Probed::Off { .. } | Probed::Unknown | Probed::Blind { .. } => {
            let why = probed.status().reason.unwrap_or_else(|| "nobody asks".into());
            Probe::Unknown { why }
        }
    }
}

/// Tells what has changed. The figures change all the time, and are told when asked for.
fn tell(mount: &str, before: &[Finding], now: &[Finding], events: &Events) {
    for finding in now {
        let was = before.iter().find(|before| before.rule == finding.rule).map(|before| before.verdict);
        let Finding { rule, verdict, value, threshold, samples, reason, .. } = finding;
        if was == Some(*verdict) {
            continue;
        }
        let (name, is) = (rule.name(), verdict.name());
        match (was, verdict) {
            (_, Verdict::Breach) => tracing::warn!(mount, rule = name, verdict = is, "{name}: {reason}"),
            (_, Verdict::Source) => tracing::warn!(
                mount,
                rule = name,
                verdict = is,
                "both backends fail, so that the source is to blame; no step, no rollback: {name}: {reason}"
            ),
            (Some(Verdict::Breach | Verdict::Source), _) => {
                tracing::info!(mount, rule = name, verdict = is, "no longer: {name}: {reason}");
            }
            _ => tracing::debug!(mount, rule = name, verdict = is, "{reason}"),
        }
        events.publish(events::Event::Verdict {
            mount: mount.to_owned(),
            rule: name.to_owned(),
            verdict: is.to_owned(),
            value: *value,
            threshold: *threshold,
            samples: *samples,
            reason: reason.clone(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::Need;

    fn tried(step: usize) -> Tried {
        Tried { candidate: Backend::Fuse3, weight: 10, step: Some(step), entered: None }
    }

    fn judged(verdict: Verdict) -> Judged {
        let finding = Finding {
            rule: Rule::ErrorRate,
            verdict,
            value: Some(0.02),
            threshold: Some(0.01),
            samples: 132,
            reason: "132 of 500 samples in 60s".into(),
            need: Need::Healthy,
        };
        Judged { tried: Some(tried(2)), findings: vec![finding] }
    }

    #[test]
    fn what_was_found_of_another_step_counts_for_nothing() {
        let (now, before) = (tried(2), tried(1));
        let bad = judged(Verdict::Breach);
        let (rule, reason, figures) = bad.breach(Some(&now)).unwrap();
        assert_eq!((rule, reason.as_str()), (Rule::ErrorRate, "error_rate: 132 of 500 samples in 60s"));
        assert_eq!((&figures["rule"], &figures["weight"]), (&"error_rate".into(), &10.into()));
        assert!(bad.breach(Some(&before)).is_none() && bad.breach(None).is_none());
        let good = judged(Verdict::Healthy);
        assert_eq!(good.evidence(Some(&now)), Evidence::Enough);
        assert_eq!(good.evidence(Some(&before)), Evidence::Missing("it was not judged yet".into()));
        assert_eq!(good.figures(Rule::ErrorRate)["guard"][0]["verdict"], "healthy");
        assert_eq!(Judged::default().figures(Rule::EndedSession), serde_json::Value::Null);
    }

    #[test]
    fn a_step_says_what_it_waits_for() {
        let missing = |verdict| match judged(verdict).evidence(Some(&tried(2))) {
            Evidence::Missing(why) => why,
            Evidence::Enough => panic!("{verdict:?} is not enough"),
        };
        assert_eq!(missing(Verdict::NoData), "waits for evidence: error_rate: 132 of 500 samples in 60s");
        assert_eq!(missing(Verdict::Source), "error_rate: 132 of 500 samples in 60s");
        assert!(judged(Verdict::Source).trouble().is_some() && judged(Verdict::Breach).trouble().is_none());
    }
}
