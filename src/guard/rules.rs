//! The rules: from what was seen to what that means.

use std::time::Duration;

use super::figures::{grouped, percent, time};
use super::statistics::wilson;
use super::verdict::{Finding, Need, Rule, Verdict};
use super::window::{PerBackend, Span};
use crate::config::{Backend, Guard};
use crate::ledger::{BOUNDS, Compared, Operation};

/// The share that 99 of 100 leaves.
const ONE_IN_A_HUNDRED: f64 = 0.01;
/// Questions of the prober before a share of them says anything: of fewer a single slow one would be a breach. It asks once a
/// second, so that `minimum_samples` would take minutes.
const FEWEST_PROBES: u64 = 20;

/// Answers to one operation that must differ before that is a breach by itself: of fewer it may be an accident of a source that
/// changes.
const FEWEST_DIVERGED: u64 = 3;

/// What the prober makes of the mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Probe {
    /// Nobody asks, or nothing is known yet.
    Unknown {
        /// Why.
        why: String,
    },
    /// It answers.
    Answered,
    /// It answers with an error.
    Failed {
        /// Which, on what.
        why: String,
        /// The backend that gave it; `None` if nobody was asked.
        by: Option<Backend>,
    },
    /// It does not answer.
    Silent {
        /// For how long.
        lasted: Duration,
    },
}

/// Whether lost requests are looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lost {
    /// They are.
    LookedFor,
    /// The kernel's count cannot be read here.
    Unseen,
}

/// Whether answers of both backends are compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Comparison {
    /// Samples are.
    On,
    /// None are.
    Off,
}

/// What there is to see at one moment.
#[derive(Clone, Debug)]
pub struct Look {
    /// The backend that is tried.
    pub candidate: Backend,
    /// Its share of the operations in percent; 0 in a shadow step.
    pub weight: u8,
    /// What has come within the window.
    pub recent: Span,
    /// What has come since the step began.
    pub whole: Span,
    /// For how long each request has been in a handler, of each backend.
    pub in_flight: [Vec<Duration>; 2],
    /// The longest row of errors within the window, of each backend.
    pub rows: [u32; 2],
    /// What the prober makes of it.
    pub probe: Probe,
    /// Whether the candidate's session has ended by itself.
    pub has_ended: bool,
    /// Whether lost requests are looked for.
    pub lost: Lost,
    /// Whether answers are compared.
    pub comparison: Comparison,
    /// What has come of that since the step began, by operation.
    pub by_operation: Vec<(Operation, Compared)>,
    /// What a Prometheus server has answered last, or why it has not; `None` before it was asked.
    pub prometheus: Option<Result<f64, String>>,
}

/// What each rule says. A candidate that serves nobody is judged by what was compared alone.
#[must_use]
pub fn judge(look: &Look, guard: &Guard) -> Vec<Finding> {
    let judge = Judge { look, guard };
    let mut findings = Vec::new();
    if look.weight > 0 {
        findings.extend([judge.error_rate(), judge.p99(), judge.probe_p99()]);
    }
    findings.push(judge.divergence());
    if look.weight > 0 {
        findings.extend([judge.hang(), judge.consecutive_errors(), judge.failed_probe()]);
        findings.extend([judge.ended_session(), judge.lost_requests()]);
    }
    findings.extend(judge.prometheus());
    findings
}

/// Some of so many.
#[derive(Clone, Copy)]
struct Ratio {
    hits: u64,
    samples: u64,
}

impl Ratio {
    fn share(self) -> Option<f64> {
        (self.samples > 0).then(|| self.hits as f64 / self.samples as f64)
    }

    /// Whether it is more than chance explains.
    fn exceeds(self, threshold: f64) -> bool {
        wilson(self.hits, self.samples).lower > threshold
    }

    fn verdict(self, threshold: f64, minimum: u64) -> Verdict {
        match wilson(self.hits, self.samples) {
            _ if self.samples < minimum => Verdict::NoData,
            interval if interval.lower > threshold => Verdict::Breach,
            interval if interval.upper < threshold => Verdict::Healthy,
            _ => Verdict::NoData,
        }
    }
}

/// A rule about a share.
struct Share<F> {
    rule: Rule,
    need: Need,
    /// What is counted of a backend.
    of: F,
    threshold: f64,
    minimum: u64,
    /// Such as "operations failed".
    what: String,
}

struct Judge<'a> {
    look: &'a Look,
    guard: &'a Guard,
}

impl Judge<'_> {
    fn minimum(&self) -> u64 {
        self.guard.minimum_samples as u64
    }

    /// The bound of the buckets that `p99` counts as, in nanoseconds.
    fn bound(&self) -> u64 {
        let wanted = self.guard.p99.as_nanos();
        let bound = BOUNDS.iter().copied().find(|bound| u128::from(*bound) >= wanted);
        bound.unwrap_or(BOUNDS[BOUNDS.len() - 1])
    }

    /// By the window. With too few samples in it, what has come in the whole step may be a breach: a candidate that is slow
    /// enough has never many within one window. But it proves nobody healthy: that was another hour's load.
    fn share(&self, share: &Share<impl Fn(&Span, Backend) -> Ratio>) -> Finding {
        let Share { rule, need, of, threshold, minimum, what } = share;
        let (look, candidate) = (self.look, self.look.candidate);
        let (mut span, mut ratio) = (&look.recent, of(&look.recent, candidate));
        let mut verdict = ratio.verdict(*threshold, *minimum);
        let in_step = of(&look.whole, candidate);
        if ratio.samples < *minimum && in_step.verdict(*threshold, *minimum) == Verdict::Breach {
            (span, ratio, verdict) = (&look.whole, in_step, Verdict::Breach);
        }
        let stable = of(span, candidate.other());
        // The bound alone counts here: there may be little of it, and what it excuses costs nobody anything but time.
        if verdict == Verdict::Breach && stable.exceeds(*threshold) {
            verdict = Verdict::Source;
        }
        let mut reason = told(ratio, what, span, *threshold);
        match verdict {
            Verdict::Source => {
                reason += &format!("; of {} {}", candidate.other(), told(stable, what, span, *threshold));
            }
            Verdict::Breach if look.weight == 100 => reason += &alone(candidate),
            Verdict::NoData => reason = self.undecided(ratio, *minimum, *threshold, span, &reason),
            Verdict::Breach | Verdict::Healthy => {}
        }
        let (value, threshold) = (ratio.share(), Some(*threshold));
        Finding { rule: *rule, verdict, value, threshold, samples: ratio.samples, reason, need: *need }
    }

    fn undecided(&self, ratio: Ratio, minimum: u64, threshold: f64, span: &Span, seen: &str) -> String {
        if ratio.samples < minimum {
            return format!("{} of {} samples in {}", grouped(ratio.samples), grouped(minimum), time(span.lasted));
        }
        let interval = wilson(ratio.hits, ratio.samples);
        let needed = if ratio.hits == 0 { ", too few to exclude more" } else { "" };
        format!(
            "{seen}, which may be {} to {} in truth{needed}: not {} for sure",
            percent(interval.lower),
            percent(interval.upper),
            if interval.lower > threshold { "less" } else { "more or less" },
        )
    }

    fn error_rate(&self) -> Finding {
        let of = |span: &Span, backend| {
            let PerBackend { errors, operations, .. } = span.counts.backends[Backend::index(backend)];
            Ratio { hits: errors, samples: operations }
        };
        let threshold = self.guard.error_rate.get();
        let what = "operations failed".into();
        self.share(&Share { rule: Rule::ErrorRate, need: Need::Healthy, of, threshold, minimum: self.minimum(), what })
    }

    /// Requests whose handlers were slow, or are.
    fn slow(&self, span: &Span, backend: Backend) -> Ratio {
        let bound = self.bound();
        let PerBackend { handlers, .. } = span.counts.backends[backend.index()];
        // Of those that are not answered, the ones that will be slow are known already.
        let slow = self.held_longer_than(backend, Duration::from_nanos(bound));
        Ratio { hits: handlers.above(bound) + slow, samples: handlers.count() + slow }
    }

    /// That 99 of 100 are quick says the same as that less than one in a hundred is slow, which is a share.
    fn p99(&self) -> Finding {
        let bound = self.bound();
        let of = |span: &Span, backend| self.slow(span, backend);
        let what = format!("operations took longer than {}", time(Duration::from_nanos(bound)));
        let (threshold, minimum) = (ONE_IN_A_HUNDRED, self.minimum());
        let finding = self.share(&Share { rule: Rule::P99, need: Need::Healthy, of, threshold, minimum, what });
        let of = &self.look.recent.counts.backends[self.look.candidate.index()];
        self.in_seconds(finding, of.handlers.quantile(0.99))
    }

    /// What the prober waits for is, with a slow source, the others of its queue: so a stable backend whose handlers are slow
    /// excuses this as well.
    fn probe_p99(&self) -> Finding {
        let bound = self.bound();
        let of = |span: &Span, backend| {
            let PerBackend { probes, .. } = span.counts.backends[Backend::index(backend)];
            Ratio { hits: probes.above(bound), samples: probes.count() }
        };
        let what = format!("questions of the prober took longer than {}", time(Duration::from_nanos(bound)));
        let (threshold, minimum) = (ONE_IN_A_HUNDRED, FEWEST_PROBES);
        let mut finding = self.share(&Share { rule: Rule::ProbeP99, need: Need::NotBad, of, threshold, minimum, what });
        let stable = self.look.candidate.other();
        if finding.verdict == Verdict::Breach && self.slow(&self.look.recent, stable).exceeds(threshold) {
            finding.verdict = Verdict::Source;
            finding.reason += &format!("; the handlers of {stable} are slow too");
        }
        let of = &self.look.recent.counts.backends[self.look.candidate.index()];
        self.in_seconds(finding, of.probes.quantile(0.99))
    }

    /// What is decided by a share is shown as the time that it is about.
    fn in_seconds(&self, finding: Finding, p99: Option<u64>) -> Finding {
        let threshold = Some(Duration::from_nanos(self.bound()).as_secs_f64());
        Finding { value: p99.map(|bound| Duration::from_nanos(bound).as_secs_f64()), threshold, ..finding }
    }

    /// Answers differ by what they are, not by when they came: all of the step count, and lately more.
    fn divergence(&self) -> Finding {
        let (look, threshold) = (self.look, self.guard.divergence.get());
        let of = |span: &Span| Ratio { hits: span.counts.diverged, samples: span.counts.compared };
        let (recent, whole) = (of(&look.recent), of(&look.whole));
        let lately = recent.verdict(threshold, self.minimum());
        let (span, ratio, verdict) = match whole.verdict(threshold, self.minimum()) {
            _ if lately == Verdict::Breach => (&look.recent, recent, lately),
            verdict => (&look.whole, whole, verdict),
        };
        let mut reason = told(ratio, "compared answers differed", span, threshold);
        let (ratio, verdict) = match self.diverging_operation(threshold) {
            Some((operation, of_it)) if verdict != Verdict::Breach && whole.samples >= self.minimum() => {
                reason =
                    told(of_it, &format!("compared answers to {} differed", operation.name()), &look.whole, threshold);
                (of_it, Verdict::Breach)
            }
            _ => (ratio, verdict),
        };
        // Without a comparison a shadow step goes by time alone.
        let need = if look.weight == 0 && look.comparison == Comparison::On { Need::Healthy } else { Need::NotBad };
        if verdict == Verdict::NoData {
            reason = match look.comparison {
                Comparison::Off => "nothing is compared".into(),
                Comparison::On => self.undecided(ratio, self.minimum(), threshold, span, &reason),
            };
        }
        let (value, threshold) = (ratio.share(), Some(threshold));
        Finding { rule: Rule::Divergence, verdict, value, threshold, samples: ratio.samples, reason, need }
    }

    /// An operation that is answered otherwise, and so rare that among all of them it does not show.
    fn diverging_operation(&self, threshold: f64) -> Option<(Operation, Ratio)> {
        let of = |compared: &Compared| Ratio { hits: compared.diverged, samples: compared.compared };
        let all = self.look.by_operation.iter().map(|(operation, compared)| (*operation, of(compared)));
        let mut diverging = all.filter(|(_, ratio)| ratio.hits >= FEWEST_DIVERGED && ratio.exceeds(threshold));
        diverging.next()
    }

    fn held_longer_than(&self, backend: Backend, limit: Duration) -> u64 {
        self.look.in_flight[backend.index()].iter().filter(|age| **age > limit).count() as u64
    }

    fn oldest(&self, backend: Backend) -> Duration {
        self.look.in_flight[backend.index()].iter().max().copied().unwrap_or_default()
    }

    /// Whether the stable backend has had, or has, a request about as long. Ages are looked at when they happen to be, so half of
    /// it will do.
    fn stable_takes_as_long(&self, time: Duration) -> bool {
        let (stable, half) = (self.look.candidate.other(), time / 2);
        let bound = BOUNDS.iter().rev().copied().find(|bound| u128::from(*bound) <= half.as_nanos());
        let handlers = self.look.recent.counts.backends[stable.index()].handlers;
        self.held_longer_than(stable, half) > 0 || handlers.above(bound.unwrap_or(BOUNDS[0])) > 0
    }

    fn hang(&self) -> Finding {
        let (candidate, limit) = (self.look.candidate, self.guard.hang);
        let (oldest, other) = (self.oldest(candidate), self.oldest(candidate.other()));
        let verdict = match oldest > limit {
            false => Verdict::Healthy,
            true if self.stable_takes_as_long(limit) => Verdict::Source,
            true => Verdict::Breach,
        };
        let held = self.look.in_flight[candidate.index()].len() as u64;
        let mut reason = match verdict {
            Verdict::Healthy if held == 0 => "no request is in a handler".into(),
            _ => format!("the oldest request has been in its handler for {} (threshold {})", time(oldest), time(limit)),
        };
        match verdict {
            Verdict::Source if other.is_zero() => {
                reason += &format!("; {} took about as long lately", candidate.other());
            }
            Verdict::Source => {
                reason += &format!("; of {} for {}, or about as long lately", candidate.other(), time(other));
            }
            Verdict::Breach if self.look.weight == 100 => reason += &alone(candidate),
            _ => {}
        }
        let (value, threshold) = (oldest.as_secs_f64(), limit.as_secs_f64());
        self.plain(Rule::Hang, verdict, Some((value, threshold)), held, reason)
    }

    fn consecutive_errors(&self) -> Finding {
        let (candidate, limit) = (self.look.candidate, self.guard.consecutive_errors);
        let [row, other] = [candidate, candidate.other()].map(|backend| self.look.rows[backend.index()]);
        let verdict = match (row as usize >= limit, other as usize >= limit) {
            (false, _) => Verdict::Healthy,
            (true, false) => Verdict::Breach,
            (true, true) => Verdict::Source,
        };
        let both =
            if verdict == Verdict::Source { format!("; of {} {other}", candidate.other()) } else { String::new() };
        let reason = format!("{row} operations in a row failed (threshold {limit}){both}");
        self.plain(Rule::ConsecutiveErrors, verdict, Some((row.into(), limit as f64)), row.into(), reason)
    }

    /// Who is to blame for a question without a good answer: who has given the bad one, or holds the question.
    fn failed_probe(&self) -> Finding {
        let candidate = self.look.candidate;
        let errors = self.look.recent.counts.backends[candidate.index()].errors;
        let (verdict, reason) = match &self.look.probe {
            Probe::Unknown { why } => (Verdict::NoData, why.clone()),
            Probe::Answered => (Verdict::Healthy, "the mount answers the prober".into()),
            Probe::Failed { why, by: None } => (Verdict::NoData, format!("nobody was asked: {why}")),
            // A backend that fails counts that as an error of its own; what the source says is none.
            Probe::Failed { why, by: Some(backend) } if *backend == candidate && errors > 0 => {
                (Verdict::Breach, format!("{candidate} has answered the prober with an error: {why}"))
            }
            Probe::Failed { why, by: Some(backend) } => {
                (Verdict::Source, format!("{backend} has passed an error on to the prober: {why}"))
            }
            Probe::Silent { lasted } => {
                // Whoever holds the question: if the stable backend is as slow, the source is.
                let is_sources = self.stable_takes_as_long(*lasted);
                let verdict = if is_sources { Verdict::Source } else { Verdict::Breach };
                let holder = match is_sources {
                    true => format!(", and requests of {} take about as long", candidate.other()),
                    false => String::new(),
                };
                (verdict, format!("the mount has not answered the prober for {}{holder}", time(*lasted)))
            }
        };
        self.plain(Rule::FailedProbe, verdict, None, 0, reason)
    }

    fn ended_session(&self) -> Finding {
        let candidate = self.look.candidate;
        let (verdict, reason) = match self.look.has_ended {
            true => (Verdict::Breach, format!("the session of {candidate} has ended by itself")),
            false => (Verdict::Healthy, format!("the session of {candidate} goes on")),
        };
        self.plain(Rule::EndedSession, verdict, None, 0, reason)
    }

    fn lost_requests(&self) -> Finding {
        let lost = self.look.recent.counts.backends[self.look.candidate.index()].lost;
        let (verdict, reason) = match (lost, self.look.lost) {
            (1.., _) => (
                Verdict::Breach,
                format!("{} requests were read and not answered in {}", grouped(lost), time(self.look.recent.lasted)),
            ),
            (0, Lost::LookedFor) => (Verdict::Healthy, "no request was lost".into()),
            (0, Lost::Unseen) => {
                (Verdict::NoData, "not looked for: /sys/fs/fuse/connections cannot be read here".into())
            }
        };
        self.plain(Rule::LostRequests, verdict, Some((lost as f64, 0.)), lost, reason)
    }

    fn prometheus(&self) -> Option<Finding> {
        let question = self.guard.prometheus.question()?;
        let (verdict, value, reason) = match &self.look.prometheus {
            None => (Verdict::NoData, None, format!("{} has not been asked yet", question.url)),
            Some(Err(why)) => (Verdict::NoData, None, why.clone()),
            Some(Ok(value)) => {
                let verdict = if *value > question.above { Verdict::Breach } else { Verdict::Healthy };
                (verdict, Some(*value), format!("{} says {value} (threshold {})", question.url, question.above))
            }
        };
        Some(Finding {
            rule: Rule::Prometheus,
            verdict,
            value,
            threshold: Some(question.above),
            samples: u64::from(value.is_some()),
            reason,
            need: Need::Healthy,
        })
    }

    fn plain(
        &self,
        rule: Rule,
        verdict: Verdict,
        figures: Option<(f64, f64)>,
        samples: u64,
        reason: String,
    ) -> Finding {
        let (value, threshold) = figures.unzip();
        Finding { rule, verdict, value, threshold, samples, reason, need: Need::NotBad }
    }
}

fn told(ratio: Ratio, what: &str, span: &Span, threshold: f64) -> String {
    let share = percent(ratio.share().unwrap_or_default());
    let (samples, lasted, threshold) = (grouped(ratio.samples), time(span.lasted), percent(threshold));
    format!("{share} of {samples} {what} in {lasted} (threshold {threshold})")
}

fn alone(candidate: Backend) -> String {
    format!("; {} serves nothing, so that {candidate} is judged by itself", candidate.other())
}
