//! What is counted of changes of the backend.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

use super::answers::{Durations, Times};
use crate::config::Backend;

/// What makes a mount change its backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Somebody has asked for it.
    Operator,
    /// A session ended by itself.
    Failover,
    /// A step of a rollout.
    Rollout,
    /// Back to the stable backend.
    Rollback,
}

impl Cause {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Operator, Self::Failover, Self::Rollout, Self::Rollback];

    /// The name in metrics and answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Failover => "failover",
            Self::Rollout => "rollout",
            Self::Rollback => "rollback",
        }
    }
}

/// What came of a switch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The other backend serves.
    Done,
    /// It could not be done; the old backend serves on.
    Failed,
}

impl Outcome {
    /// Both, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Done, Self::Failed];

    /// The name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

type ByOutcome = [AtomicU64; Outcome::ALL.len()];

/// Counters of switches, written by the server's control loop alone.
#[repr(C)]
pub struct Switches {
    counts: [[[ByOutcome; Cause::ALL.len()]; Backend::ALL.len()]; Backend::ALL.len()],
    pauses: Times,
}

impl Switches {
    fn count_of(&self, from: Backend, to: Backend, cause: Cause, outcome: Outcome) -> &AtomicU64 {
        &self.counts[from.index()][to.index()][cause as usize][outcome as usize]
    }

    /// Counts a switch that is done, in which nobody read requests for so long.
    pub fn done(&self, from: Backend, to: Backend, cause: Cause, pause_nanoseconds: u64) {
        self.count_of(from, to, cause, Outcome::Done).fetch_add(1, Relaxed);
        self.pauses.record(pause_nanoseconds);
    }

    /// Counts a switch that failed.
    pub fn failed(&self, from: Backend, to: Backend, cause: Cause) {
        self.count_of(from, to, cause, Outcome::Failed).fetch_add(1, Relaxed);
    }

    /// How many there were.
    #[must_use]
    pub fn get(&self, from: Backend, to: Backend, cause: Cause, outcome: Outcome) -> u64 {
        self.count_of(from, to, cause, outcome).load(Relaxed)
    }

    /// How long nobody read requests, in those that were done.
    #[must_use]
    pub fn pauses(&self) -> Durations {
        self.pauses.durations()
    }
}
