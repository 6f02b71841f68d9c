//! How a demo went: figures for scripts, a table and a sentence for people.

use std::collections::BTreeMap;

use serde::Serialize;

use super::rehearsal::{self, Rollback, Timeline};
use crate::api::model::{BackendStatus, SCHEMA, SwitchAnswer};
use crate::bench::load::Tally;
use crate::cli::printable;
use crate::cli::status::plain;
use crate::config::Backend;

/// All that happened.
pub struct Outcome {
    /// What the programs did.
    pub tally: Tally,
    /// What was done to the mount meanwhile.
    pub acts: Acts,
    /// What the backends did.
    pub backends: Vec<BackendStatus>,
}

/// What is done to the mount.
#[derive(Default)]
pub struct Acts {
    /// First the backend changes to and fro.
    pub switches: Switches,
    /// Then the guard ends a rollout.
    pub rollback: Option<Rollback>,
    /// How that went.
    pub timeline: Timeline,
}

/// Changes of backend.
#[derive(Default)]
pub struct Switches {
    /// Those that succeeded.
    pub done: Vec<SwitchAnswer>,
    /// Why the others did not.
    pub failed: Vec<String>,
}

/// The answer in JSON. The names are a promise to scripts: fields are added, never changed.
#[derive(Serialize)]
pub struct Report {
    schema: u32,
    operations: u64,
    failed: u64,
    mismatches: u64,
    switches: usize,
    failed_switches: usize,
    pause_ms: Option<Pauses>,
    by_backend: BTreeMap<Backend, Share>,
    slowest_operation_ms: f64,
    /// How the guard ended a rollout.
    rollback: Option<Rollback>,
    timeline: Vec<Moment>,
    /// The first failures, mismatches and failed switches.
    troubles: Vec<String>,
}

/// A line of the timeline.
#[derive(Serialize)]
struct Moment {
    /// Since the rollout began.
    seconds: f64,
    what: String,
}

#[derive(Clone, Copy, Serialize, PartialEq, Debug)]
struct Pauses {
    p50: f64,
    p99: f64,
    max: f64,
}

/// What one backend did.
#[derive(Serialize)]
struct Share {
    /// Requests of the kernel that it has answered.
    operations: u64,
    switches_to: usize,
    pause_ms: Option<Pauses>,
}

impl Pauses {
    /// The smallest pause that is not exceeded by so many of all; none without any.
    fn of(mut pauses: Vec<f64>) -> Option<Self> {
        pauses.sort_by(f64::total_cmp);
        let rank = |percent: usize| (pauses.len() * percent).div_ceil(100).saturating_sub(1);
        Some(Self { p50: *pauses.get(rank(50))?, p99: *pauses.get(rank(99))?, max: *pauses.last()? })
    }
}

impl Switches {
    fn to(&self, backend: Option<Backend>) -> Vec<f64> {
        let wanted = self.done.iter().filter(|done| backend.is_none_or(|backend| done.to == backend));
        wanted.map(|done| done.pause_ms).collect()
    }
}

impl Outcome {
    /// Whether nothing was lost.
    pub fn is_clean(&self) -> bool {
        let Acts { switches, rollback, .. } = &self.acts;
        self.tally.is_clean() && switches.failed.is_empty() && !switches.done.is_empty() && rollback.is_some()
    }

    /// The answer for scripts.
    pub fn report(&self) -> Report {
        Report {
            schema: SCHEMA,
            operations: self.tally.operations,
            failed: self.tally.failed,
            mismatches: self.tally.mismatches,
            switches: self.acts.switches.done.len(),
            failed_switches: self.acts.switches.failed.len(),
            pause_ms: Pauses::of(self.acts.switches.to(None)),
            by_backend: Backend::ALL.into_iter().map(|backend| (backend, self.share(backend))).collect(),
            slowest_operation_ms: self.slowest_ms(),
            rollback: self.acts.rollback.clone(),
            timeline: self
                .acts
                .timeline
                .iter()
                .map(|(at, what)| Moment { seconds: at.as_secs_f64(), what: what.clone() })
                .collect(),
            troubles: self.troubles(),
        }
    }

    fn share(&self, backend: Backend) -> Share {
        let pauses = self.acts.switches.to(Some(backend));
        let status = self.backends.iter().find(|status| status.name == backend);
        Share {
            operations: status.map_or(0, |status| status.operations),
            switches_to: pauses.len(),
            pause_ms: Pauses::of(pauses),
        }
    }

    fn slowest_ms(&self) -> f64 {
        self.tally.latency.max() as f64 / 1e3
    }

    fn troubles(&self) -> Vec<String> {
        let Tally { failures, wrong, .. } = &self.tally;
        let failures = failures.iter().map(|failure| printable(format_args!("failed: {failure}")));
        let wrong = wrong.iter().map(|mismatch| printable(format_args!("mismatch: {mismatch}")));
        let switches = self.acts.switches.failed.iter().map(|why| printable(format_args!("failed switch: {why}")));
        failures.chain(wrong).chain(switches.take(3)).collect()
    }

    /// The answer for people.
    pub fn text(&self) -> String {
        let report = self.report();
        let mut table = plain(["", "OPERATIONS", "FAILED", "MISMATCHES", "SWITCHES", "PAUSE P50", "P99", "MAX"]);
        let Report { failed, mismatches, .. } = report;
        let programs = [grouped(report.operations), grouped(failed), grouped(mismatches), report.switches.to_string()];
        table.add_row(["programs".into()].into_iter().chain(programs).chain(cells(report.pause_ms)));
        for (backend, share) in &report.by_backend {
            let switches = format!("{} to it", share.switches_to);
            let cells = [grouped(share.operations), String::new(), String::new(), switches]
                .into_iter()
                .chain(cells(share.pause_ms));
            table.add_row([backend.to_string()].into_iter().chain(cells));
        }
        let mut text = table.trim_fmt();
        for trouble in &report.troubles {
            text += &format!("\n{trouble}");
        }
        text += "\n\n";
        for (at, what) in &self.acts.timeline {
            text += &printable(rehearsal::line(*at, what));
            text.push('\n');
        }
        text + "\n" + &self.verdict()
    }

    fn verdict(&self) -> String {
        let Self { tally: Tally { operations, failed, mismatches, .. }, acts: Acts { switches, rollback, .. }, .. } =
            self;
        let (done, wrong) = (switches.done.len(), switches.failed.len());
        if let Some(Rollback { rule, breach_to_rollback_ms }) = rollback
            && self.is_clean()
        {
            return format!(
                "The FUSE stack changed {done} times under running programs, and a candidate that became slow was rolled back {breach_to_rollback_ms:.0} ms after it broke the rule {rule}: all of their {} operations succeeded, and every byte was right.",
                grouped(*operations),
            );
        }
        format!(
            "Not clean: {} failures and {} wrong answers in {} operations, {wrong} of {} switches failed.",
            grouped(*failed),
            grouped(*mismatches),
            grouped(*operations),
            done + wrong
        )
    }
}

fn cells(pauses: Option<Pauses>) -> [String; 3] {
    pauses.map_or_else(
        || ["none".into(), String::new(), String::new()],
        |Pauses { p50, p99, max }| [p50, p99, max].map(|pause| format!("{pause:.2} ms")),
    )
}

/// A number with commas at the thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn outcome() -> Outcome {
        let switched = |to: Backend, pause_ms| SwitchAnswer {
            schema: SCHEMA,
            from: to.other(),
            to,
            pause_ms,
            total_ms: 1.0,
            in_flight: 0,
            answered_for_hung: 0,
        };
        let done = vec![switched(Backend::Fuse2, 0.5), switched(Backend::Fuse3, 0.25), switched(Backend::Fuse2, 2.0)];
        let backends = vec![BackendStatus {
            name: Backend::Fuse2,
            state: "attached".into(),
            reason: None,
            operations: 1_234_567,
            errors: 0,
            lost: 0,
            p99_ms: None,
        }];
        let mut tally = Tally { operations: 2_000_000, ..Tally::default() };
        tally.latency.saturating_record(12_000);
        let rollback = Some(Rollback { rule: "p99".into(), breach_to_rollback_ms: 42.0 });
        let timeline = vec![(Duration::from_millis(1500), "fuse3 gets 50 % of the operations".into())];
        Outcome { tally, acts: Acts { switches: Switches { done, failed: Vec::new() }, rollback, timeline }, backends }
    }

    #[test]
    fn the_figures_are_those_of_the_interface() {
        let report = serde_json::to_value(outcome().report()).unwrap();
        assert_eq!(report["schema"], 1);
        assert_eq!(report["switches"], 3);
        assert_eq!(report["pause_ms"], serde_json::json!({"p50": 0.5, "p99": 2.0, "max": 2.0}));
        assert_eq!(report["by_backend"]["fuse2"]["operations"], 1_234_567);
        assert_eq!(report["by_backend"]["fuse2"]["switches_to"], 2);
        assert_eq!(report["by_backend"]["fuse3"]["pause_ms"]["max"], 0.25);
        assert_eq!(report["rollback"], serde_json::json!({"rule": "p99", "breach_to_rollback_ms": 42.0}));
        assert_eq!(report["timeline"][0]["seconds"], 1.5);
    }

    #[test]
    fn only_a_clean_run_with_switches_passes() {
        assert!(outcome().is_clean());
        let mut idle = outcome();
        idle.acts.switches.done.clear();
        assert!(!idle.is_clean());
        assert_eq!(Pauses::of(idle.acts.switches.to(None)), None);
        let mut refused = outcome();
        refused.acts.switches.failed.push("no".into());
        assert!(!refused.is_clean());
        let mut blind = outcome();
        blind.acts.rollback = None;
        assert!(!blind.is_clean());
        let mut wrong = outcome();
        wrong.tally.mismatches = 1;
        assert!(!wrong.is_clean());
        assert!(
            wrong.text().ends_with(
                "Not clean: 0 failures and 1 wrong answers in 2,000,000 operations, 0 of 3 switches failed."
            )
        );
    }

    #[test]
    fn people_get_a_table_and_a_sentence() {
        let text = outcome().text();
        assert!(text.contains("1,234,567"), "{text}");
        assert!(text.contains("changed 3 times"), "{text}");
        assert!(text.contains("\n  1.50 s  fuse3 gets 50 %"), "{text}");
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
