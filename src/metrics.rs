//! Every metric: its name, type, labels and meaning, in one table; and what it shows now, read from the ledgers.
//!
//! Nothing is counted here and nothing is kept: a scrape reads what the servers have written, so that a counter costs the
//! request path no more than a store.

use std::collections::BTreeMap;
use std::time::SystemTime;

use prometheus::core::{Collector, Desc};
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Registry, TextEncoder};

use crate::backend;
use crate::config::Backend;
use crate::ledger::{
    AnswerStatus, BOUNDS, Cause, Compared, Direction, Durations, InFlight, Ledger, Operation, Outcome,
};

/// A metric's type in the exposition format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Only grows, until the daemon or, for what a server counts, the mount's last server is gone.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Durations in [`BOUNDS`], in seconds.
    Histogram,
}

/// A metric.
#[derive(Debug)]
pub struct Described {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it shows.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($id:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        #[derive(Clone, Copy)]
        enum Id { $($id),* }

        /// All metrics but `process_*`, which are the client library's.
        pub static METRICS: &[Described] = &[
            $(Described { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help }),*
        ];
    };
}

metrics! {
    Operations = Counter "lighthouse_fuse_operations_total" ["mount", "backend", "operation", "status"]
        "Requests that were answered. status: ok; client_error (what the source or POSIX says: ENOENT, EACCES, ENOSPC); backend_error (a caught panic, an answer at the deadline, ENOSYS, a lost request, a session that ended).";
    OperationDuration = Histogram "lighthouse_fuse_operation_duration_seconds" ["mount", "backend", "operation"]
        "Time in the handler; the stack's own time is what the prober sees.";
    ProbeDuration = Histogram "lighthouse_fuse_probe_duration_seconds" ["mount", "backend"]
        "Time that a question took which the prober asked through the mount, by the backend that answered.";
    ProbeFailures = Counter "lighthouse_fuse_probe_failures_total" ["mount", "backend"]
        "Questions of the prober without an answer in time, or with an error, by the backend that served.";
    Bytes = Counter "lighthouse_fuse_bytes_total" ["mount", "backend", "direction"]
        "Data that were read or written, in bytes. What the kernel answers from its cache is not seen.";
    BackendActive = Gauge "lighthouse_fuse_backend_active" ["mount", "backend"]
        "1 if the backend reads requests now.";
    BackendWeight = Gauge "lighthouse_fuse_backend_weight" ["mount", "backend"]
        "Percent of the operations that the backend is to serve.";
    BackendAvailable = Gauge "lighthouse_fuse_backend_available" ["mount", "backend"]
        "1 if the backend could serve.";
    Requests = Gauge "lighthouse_fuse_in_flight" ["mount", "backend"]
        "Requests in a handler now.";
    OldestRequest = Gauge "lighthouse_fuse_oldest_in_flight_seconds" ["mount", "backend"]
        "Age of the oldest of them; 0 without any.";
    KernelWaiting = Gauge "lighthouse_fuse_kernel_waiting" ["mount"]
        "Requests for whose answer the kernel waits, queued or in hand. Absent where /sys/fs/fuse/connections cannot be read.";
    MountUp = Gauge "lighthouse_fuse_mount_up" ["mount"]
        "1 if the mount is served and, where it is probed, answers.";
    Degraded = Gauge "lighthouse_fuse_degraded" ["mount"]
        "1 if the mount is served by the fallback, or with something missing: `lighthouse-fs status` says what.";
    LostRequests = Counter "lighthouse_fuse_lost_requests_total" ["mount", "backend"]
        "Requests that were read and never answered. While two backends share a mount, those of both count as the candidate's: who has lost one cannot be seen.";
    Switches = Counter "lighthouse_fuse_switches_total" ["mount", "from", "to", "reason", "outcome"]
        "Changes of the backend. reason: operator, failover, rollout, rollback. outcome: done, failed.";
    SwitchPause = Histogram "lighthouse_fuse_switch_pause_seconds" ["mount"]
        "Time in which no backend read requests, in switches that were done.";
    Rollbacks = Counter "lighthouse_fuse_rollbacks_total" ["mount", "reason"]
        "Rollbacks since the daemon began. reason: operator, server_died, or the guard's rule: error_rate, p99, probe_p99, divergence, hang, consecutive_errors, failed_probe, ended_session, lost_requests, prometheus.";
    RolloutState = Gauge "lighthouse_fuse_rollout_state" ["mount"]
        "0 idle, 1 running, 2 paused, 3 committed, 4 aborted, 5 rolled back, 6 unreadable. Absent without a candidate.";
    RolloutStep = Gauge "lighthouse_fuse_rollout_step" ["mount"]
        "The step that is under way, from 1; 0 without one.";
    RolloutEntered = Gauge "lighthouse_fuse_rollout_step_entered_timestamp_seconds" ["mount"]
        "When the step began, in Unix time. Absent without one.";
    ShadowCompared = Counter "lighthouse_fuse_shadow_compared_total" ["mount", "operation"]
        "Calls whose answers by both backends were compared.";
    ShadowDivergence = Counter "lighthouse_fuse_shadow_divergence_total" ["mount", "operation"]
        "Those of them that the candidate has answered differently.";
    ShadowDropped = Counter "lighthouse_fuse_shadow_dropped_total" ["mount", "operation"]
        "Calls that were to be compared and were not: there were too many, or no session could answer.";
    Pinned = Gauge "lighthouse_fuse_pinned" ["mount"]
        "1 if a rollback holds the mount to its stable backend.";
    GuardVerdict = Gauge "lighthouse_fuse_guard_verdict" ["mount", "rule", "verdict"]
        "1 for what the guard says by the rule, 0 for the rest of healthy, breach, no_data, source. Absent while nothing is tried.";
    ReloadSuccess = Gauge "lighthouse_fuse_config_reload_success" []
        "1 if the last reload of the configuration was taken, or none was asked for.";
    BuildInfo = Gauge "lighthouse_fuse_build_info" ["version", "revision", "fuser", "fuse3"]
        "1; what the program was built from.";
}

/// What a scrape needs to know of a mount.
#[derive(Clone)]
pub struct MountFigures {
    /// Its name.
    pub name: String,
    /// What its servers have counted; `None` before the first one.
    pub ledger: Option<Ledger>,
    /// Whether a server serves it now: without one, nothing is in flight whatever the ledger of a dead one shows.
    pub is_served: bool,
    /// Whether it is served and, where it is probed, answers.
    pub is_up: bool,
    /// Whether something is missing.
    pub is_degraded: bool,
    /// Whether each backend could serve.
    pub is_available: [bool; Backend::ALL.len()],
    /// What the prober has seen of each backend: how long answers took, and how often there was none.
    pub probes: [(Durations, u64); Backend::ALL.len()],
    /// Requests that the kernel waits for, where that can be read.
    pub kernel_waiting: Option<u64>,
    /// Its rollout, if there is one.
    pub rollout: Option<RolloutFigures>,
    /// Whether a rollback holds it to its stable backend.
    pub is_pinned: bool,
    /// Rollbacks, by what made them so.
    pub rollbacks: BTreeMap<&'static str, u64>,
    /// What the guard says by each rule, in its names.
    pub verdicts: Vec<(&'static str, &'static str)>,
}

/// What the guard may say.
const VERDICTS: [&str; 4] = ["healthy", "breach", "no_data", "source"];

/// How far a rollout is.
#[derive(Clone, Debug)]
pub struct RolloutFigures {
    /// Number of its state.
    pub state: u8,
    /// The step, from 1; 0 without one.
    pub step: usize,
    /// When it began.
    pub entered: Option<SystemTime>,
}

/// What a scrape needs to know.
#[derive(Clone)]
pub struct Figures {
    /// Each mount.
    pub mounts: Vec<MountFigures>,
    /// Whether the last reload was taken.
    pub is_reload_taken: bool,
}

/// All metrics in the text format (version 0.0.4), as of now.
///
/// # Errors
/// When two mounts have one name, which the checks of the configuration refuse.
pub fn text(figures: Figures) -> prometheus::Result<String> {
    let registry = Registry::new();
    registry.register(Box::new(Scrape::new(figures)?))?;
    registry.register(Box::new(ProcessCollector::for_self()))?;
    TextEncoder::new().encode_to_string(&registry.gather())
}

/// The type of what [`text`] gives.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// One look at the figures.
struct Scrape {
    descriptions: Vec<Desc>,
    figures: Figures,
}

impl Scrape {
    fn new(figures: Figures) -> prometheus::Result<Self> {
        let describe = |metric: &Described| {
            let labels = metric.labels.iter().map(ToString::to_string).collect();
            Desc::new(metric.name.into(), metric.help.into(), labels, std::collections::HashMap::new())
        };
        Ok(Self { descriptions: METRICS.iter().map(describe).collect::<prometheus::Result<_>>()?, figures })
    }
}

impl Collector for Scrape {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = Families::default();
        let versions = Backend::ALL.map(|backend| backend::crate_of(backend).1);
        let revision = option_env!("LIGHTHOUSE_REVISION").unwrap_or("unknown");
        families.gauge(Id::BuildInfo, &[env!("CARGO_PKG_VERSION"), revision, versions[0], versions[1]], 1.);
        families.gauge(Id::ReloadSuccess, &[], self.figures.is_reload_taken.into());
        for mount in &self.figures.mounts {
            show_mount(&mut families, mount);
        }
        families.into_families()
    }
}

fn show_mount(families: &mut Families, mount: &MountFigures) {
    let name = &*mount.name;
    families.gauge(Id::MountUp, &[name], mount.is_up.into());
    families.gauge(Id::Degraded, &[name], mount.is_degraded.into());
    families.gauge(Id::Pinned, &[name], mount.is_pinned.into());
    for (reason, count) in &mount.rollbacks {
        families.counter(Id::Rollbacks, &[name, reason], *count);
    }
    for (rule, is) in &mount.verdicts {
        for verdict in VERDICTS {
            families.gauge(Id::GuardVerdict, &[name, rule, verdict], f64::from(u8::from(verdict == *is)));
        }
    }
    if let Some(rollout) = &mount.rollout {
        families.gauge(Id::RolloutState, &[name], rollout.state.into());
        families.gauge(Id::RolloutStep, &[name], rollout.step as f64);
        let since = rollout.entered.and_then(|entered| entered.duration_since(SystemTime::UNIX_EPOCH).ok());
        if let Some(since) = since {
            families.gauge(Id::RolloutEntered, &[name], since.as_secs_f64());
        }
    }
    if let Some(waiting) = mount.kernel_waiting {
        families.gauge(Id::KernelWaiting, &[name], waiting as f64);
    }
    for backend in Backend::ALL.into_iter().filter(|backend| backend.is_built_in()) {
        let labels = &[name, backend.name()];
        families.gauge(Id::BackendAvailable, labels, mount.is_available[backend.index()].into());
        let (answered, failures) = &mount.probes[backend.index()];
        families.histogram(Id::ProbeDuration, labels, answered);
        families.counter(Id::ProbeFailures, labels, *failures);
    }
    let Some(ledger) = &mount.ledger else { return };
    let in_flight = if mount.is_served { ledger.in_flight() } else { Vec::new() };
    for backend in Backend::ALL.into_iter().filter(|backend| backend.is_built_in()) {
        let is_active = mount.is_served && ledger.active() == Some(backend);
        let weight = if mount.is_served { ledger.weight(backend) } else { 0 };
        let labels = &[name, backend.name()];
        families.gauge(Id::BackendActive, labels, is_active.into());
        families.gauge(Id::BackendWeight, labels, weight.into());
        let ages = || in_flight.iter().filter(|one| one.backend == backend && !one.abandoned).map(InFlight::age);
        families.gauge(Id::Requests, labels, ages().count() as f64);
        families.gauge(Id::OldestRequest, labels, ages().max().unwrap_or_default().as_secs_f64());
        families.counter(Id::LostRequests, labels, ledger.lost(backend));
        show_answers(families, name, backend, ledger);
    }
    show_switches(families, name, ledger);
    show_comparisons(families, name, ledger);
}

fn show_answers(families: &mut Families, mount: &str, backend: Backend, ledger: &Ledger) {
    let totals = ledger.totals(backend);
    for operation in Operation::ALL.iter().copied() {
        let count = |status| totals.get(operation, status);
        // Only what has ever been asked for: 35 operations with three series each are many.
        if AnswerStatus::ALL.into_iter().all(|status| count(status) == 0) {
            continue;
        }
        for status in AnswerStatus::ALL {
            let labels = &[mount, backend.name(), operation.name(), status.name()];
            families.counter(Id::Operations, labels, count(status));
        }
        families.histogram(
            Id::OperationDuration,
            &[mount, backend.name(), operation.name()],
            totals.durations(operation),
        );
    }
    for direction in Direction::ALL {
        families.counter(Id::Bytes, &[mount, backend.name(), direction.name()], totals.bytes(direction));
    }
}

fn show_comparisons(families: &mut Families, mount: &str, ledger: &Ledger) {
    for operation in Operation::ALL {
        let Compared { compared, diverged, dropped } = ledger.comparisons().get(*operation);
        if compared + dropped == 0 {
            continue;
        }
        let labels = &[mount, operation.name()];
        families.counter(Id::ShadowCompared, labels, compared);
        families.counter(Id::ShadowDivergence, labels, diverged);
        families.counter(Id::ShadowDropped, labels, dropped);
    }
}

fn show_switches(families: &mut Families, mount: &str, ledger: &Ledger) {
    let switches = ledger.switches();
    for from in Backend::ALL {
        for to in Backend::ALL {
            for cause in Cause::ALL {
                for outcome in Outcome::ALL {
                    let count = switches.get(from, to, cause, outcome);
                    // From 0 on, so that the first one is an increase.
                    if from != to || count > 0 {
                        let labels = &[mount, from.name(), to.name(), cause.name(), outcome.name()];
                        families.counter(Id::Switches, labels, count);
                    }
                }
            }
        }
    }
    families.histogram(Id::SwitchPause, &[mount], &switches.pauses());
}

/// Samples, gathered by metric.
struct Families(Vec<Vec<Metric>>);

impl Default for Families {
    fn default() -> Self {
        Self(METRICS.iter().map(|_| Vec::new()).collect())
    }
}

impl Families {
    fn add(&mut self, id: Id, labels: &[&str], fill: impl FnOnce(&mut Metric)) {
        let names = METRICS[id as usize].labels;
        debug_assert_eq!(names.len(), labels.len(), "{}", METRICS[id as usize].name);
        let pair = |(name, value): (&&str, &&str)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).into());
            pair.set_value((*value).into());
            pair
        };
        let mut metric = Metric::from_label(names.iter().zip(labels).map(pair).collect());
        fill(&mut metric);
        self.0[id as usize].push(metric);
    }

    fn counter(&mut self, id: Id, labels: &[&str], value: u64) {
        let mut counter = Counter::default();
        counter.set_value(value as f64);
        self.add(id, labels, |metric| metric.set_counter(counter));
    }

    fn gauge(&mut self, id: Id, labels: &[&str], value: f64) {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        self.add(id, labels, |metric| metric.set_gauge(gauge));
    }

    fn histogram(&mut self, id: Id, labels: &[&str], durations: &Durations) {
        let mut cumulative = 0;
        let buckets = BOUNDS.iter().zip(&durations.buckets).map(|(bound, count)| {
            cumulative += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound as f64 / 1e9);
            bucket.set_cumulative_count(cumulative);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(durations.count());
        histogram.set_sample_sum(durations.nanoseconds as f64 / 1e9);
        self.add(id, labels, |metric| metric.set_histogram(histogram));
    }

    fn into_families(self) -> Vec<MetricFamily> {
        let family = |(described, metrics): (&Described, Vec<Metric>)| {
            let mut family = MetricFamily::default();
            family.set_name(described.name.into());
            family.set_help(described.help.into());
            family.set_field_type(match described.kind {
                Kind::Counter => MetricType::COUNTER,
                Kind::Gauge => MetricType::GAUGE,
                Kind::Histogram => MetricType::HISTOGRAM,
            });
            family.set_metric(metrics);
            family
        };
        METRICS.iter().zip(self.0).filter(|(_, metrics)| !metrics.is_empty()).map(family).collect()
    }
}

/// The table of all metrics, for docs/reference/metrics.md.
#[must_use]
pub fn reference() -> String {
    let mut text = String::from(
        "# Metrics\n\nWhat `GET /metrics` shows, in the Prometheus text format; made from the table in `src/metrics.rs`. \
         Durations are in seconds, in buckets from 10 µs to 5 s. What servers count survives their death, and that of \
         the daemon, as long as one of both lives. Beside these there are the client library's `process_*`, of the daemon.\n\n\
         | metric | type | labels | what |\n|---|---|---|---|\n",
    );
    for metric in METRICS {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let labels = if metric.labels.is_empty() { "none".into() } else { metric.labels.join(", ") };
        text += &format!("| `{}` | {kind} | {labels} | {} |\n", metric.name, metric.help);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::THREAD_SLOTS;

    fn figures(ledger: Ledger) -> Figures {
        let mount = MountFigures {
            name: "a \"b\"".into(),
            ledger: Some(ledger),
            is_served: true,
            is_up: true,
            is_degraded: false,
            is_available: [true, false],
            probes: [(Durations::default(), 0), (Durations::default(), 3)],
            kernel_waiting: Some(2),
            rollout: Some(RolloutFigures { state: 1, step: 2, entered: Some(SystemTime::UNIX_EPOCH) }),
            is_pinned: false,
            rollbacks: [("operator", 3)].into(),
            verdicts: vec![("p99", "no_data")],
        };
        Figures { mounts: vec![mount], is_reload_taken: true }
    }

    #[test]
    fn what_a_server_counts_is_shown() {
        let ledger = Ledger::create().unwrap();
        let backend = Backend::ALL.into_iter().find(|backend| backend.is_built_in()).expect("a build with a backend");
        ledger.use_lanes(backend, 1);
        let lane = ledger.lane(backend, 0);
        lane.count(Operation::Read, AnswerStatus::Ok, 30_000);
        lane.count(Operation::Read, AnswerStatus::Ok, 6_000_000_000);
        lane.moved(Direction::Read, 4096);
        ledger.switches().done(Backend::Fuse2, Backend::Fuse3, Cause::Operator, 80_000);
        let text = text(figures(ledger)).unwrap();
        let lines = [
            "# TYPE lighthouse_fuse_operations_total counter",
            r#"lighthouse_fuse_operations_total{mount="a \"b\"",backend="fuse2",operation="read",status="ok"} 2"#,
            r#"lighthouse_fuse_operations_total{mount="a \"b\"",backend="fuse2",operation="read",status="backend_error"} 0"#,
            r#"lighthouse_fuse_operation_duration_seconds_bucket{mount="a \"b\"",backend="fuse2",operation="read",le="0.00001"} 0"#,
            r#"lighthouse_fuse_operation_duration_seconds_bucket{mount="a \"b\"",backend="fuse2",operation="read",le="0.00005"} 1"#,
            r#"lighthouse_fuse_operation_duration_seconds_bucket{mount="a \"b\"",backend="fuse2",operation="read",le="5"} 1"#,
            r#"lighthouse_fuse_operation_duration_seconds_bucket{mount="a \"b\"",backend="fuse2",operation="read",le="+Inf"} 2"#,
            r#"lighthouse_fuse_operation_duration_seconds_sum{mount="a \"b\"",backend="fuse2",operation="read"} 6.00003"#,
            r#"lighthouse_fuse_bytes_total{mount="a \"b\"",backend="fuse2",direction="read"} 4096"#,
            r#"lighthouse_fuse_switches_total{mount="a \"b\"",from="fuse2",to="fuse3",reason="operator",outcome="done"} 1"#,
            r#"lighthouse_fuse_kernel_waiting{mount="a \"b\""} 2"#,
            r#"lighthouse_fuse_rollout_step{mount="a \"b\""} 2"#,
            r#"lighthouse_fuse_rollbacks_total{mount="a \"b\"",reason="operator"} 3"#,
            r#"lighthouse_fuse_guard_verdict{mount="a \"b\"",rule="p99",verdict="no_data"} 1"#,
            r#"lighthouse_fuse_guard_verdict{mount="a \"b\"",rule="p99",verdict="breach"} 0"#,
            "lighthouse_fuse_config_reload_success 1",
        ];
        for line in lines.map(|line| line.replace("backend=\"fuse2\"", &format!("backend=\"{backend}\""))) {
            assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
        }
        assert!(text.contains("\nprocess_open_fds "), "{text}");
    }

    #[test]
    fn without_a_server_nothing_is_in_flight() {
        let ledger = Ledger::create().unwrap();
        // One of each backend.
        ledger.slot(0).enter(8, Operation::Read, 1, 0);
        ledger.slot(THREAD_SLOTS).enter(10, Operation::Read, 1, 0);
        let mut figures = figures(ledger);
        figures.mounts[0].is_served = false;
        let text = text(figures).unwrap();
        assert!(
            text.lines().filter(|line| line.starts_with("lighthouse_fuse_in_flight{")).all(|line| line.ends_with(" 0"))
        );
    }

    #[test]
    fn the_reference_is_true() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/metrics.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, reference()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(written, reference(), "run UPDATE_DOCS=1 cargo test --lib metrics");
    }
}
