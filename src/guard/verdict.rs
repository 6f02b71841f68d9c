//! What the guard says, rule by rule.

use serde::Serialize;

/// A rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Share of the candidate's answers that are errors of its own.
    ErrorRate,
    /// 99 of 100 requests are answered in time, in the handler.
    P99,
    /// The same as the prober sees it, with the stack's own queues.
    ProbeP99,
    /// Share of compared answers that differ.
    Divergence,
    /// Age of the oldest request in a handler.
    Hang,
    /// Errors of the candidate without another answer between them.
    ConsecutiveErrors,
    /// The mount does not answer the prober.
    FailedProbe,
    /// The candidate's session has ended by itself.
    EndedSession,
    /// Requests were read and never answered.
    LostRequests,
    /// What a Prometheus server says of it, perhaps for all machines.
    Prometheus,
}

impl Rule {
    /// All of them, in the order in which they are told; what says most of what has happened comes last.
    pub const ALL: [Self; 10] = [
        Self::ErrorRate,
        Self::P99,
        Self::ProbeP99,
        Self::Divergence,
        Self::Hang,
        Self::ConsecutiveErrors,
        Self::FailedProbe,
        Self::EndedSession,
        Self::LostRequests,
        Self::Prometheus,
    ];

    /// The name in status, metrics and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ErrorRate => "error_rate",
            Self::P99 => "p99",
            Self::ProbeP99 => "probe_p99",
            Self::Divergence => "divergence",
            Self::Hang => "hang",
            Self::ConsecutiveErrors => "consecutive_errors",
            Self::FailedProbe => "failed_probe",
            Self::EndedSession => "ended_session",
            Self::LostRequests => "lost_requests",
            Self::Prometheus => "prometheus",
        }
    }
}

/// What a rule says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The candidate keeps it, and that is no accident.
    Healthy,
    /// It does not, and that is none either.
    Breach,
    /// It cannot be told.
    NoData,
    /// It does not, and nor does the stable backend.
    Source,
}

impl Verdict {
    /// The name in status, metrics and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Breach => "breach",
            Self::NoData => "no_data",
            Self::Source => "source",
        }
    }
}

/// Whether a step waits for a rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// No step ends by itself before the rule is healthy.
    Healthy,
    /// The rule may have no data: there may be too little of what it goes by, or nobody who sees it.
    NotBad,
}

/// What a rule says, and by which figures.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Finding {
    /// Which.
    pub rule: Rule,
    /// What it says.
    pub verdict: Verdict,
    /// What was measured: a share from 0 to 1, seconds, or a number, as the threshold is.
    pub value: Option<f64>,
    /// What it must not exceed.
    pub threshold: Option<f64>,
    /// How many answers, comparisons or questions that rests on.
    pub samples: u64,
    /// In words.
    pub reason: String,
    /// Whether a step waits for it.
    #[serde(skip)]
    pub need: Need,
}

/// The rule that is broken, for a rollback. What ends a session is no news of the guard's: whoever sees it acts at once.
#[must_use]
pub fn breach(findings: &[Finding]) -> Option<&Finding> {
    let is_broken = |finding: &&Finding| finding.verdict == Verdict::Breach && finding.rule != Rule::EndedSession;
    // A lost request is an error too, and so on: what says most of what has happened comes last.
    findings.iter().rev().find(is_broken)
}

/// The rule that both backends break.
#[must_use]
pub fn source(findings: &[Finding]) -> Option<&Finding> {
    findings.iter().find(|finding| finding.verdict == Verdict::Source)
}

/// What a step waits for, if it does.
#[must_use]
pub fn missing(findings: &[Finding]) -> Option<&Finding> {
    findings.iter().find(|finding| match (finding.verdict, finding.need) {
        (Verdict::Healthy, _) | (Verdict::NoData, Need::NotBad) => false,
        (Verdict::NoData, Need::Healthy) | (Verdict::Breach | Verdict::Source, _) => true,
    })
}
