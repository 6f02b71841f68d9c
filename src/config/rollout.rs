//! What `[mount.rollout]` says: which backend is tried, and in what steps or on which share of machines.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Backend, Number};

/// Which backend is tried beside the stable one, and how.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rollout {
    /// The backend that is tried; without it there is no rollout.
    pub candidate: Option<Backend>,
    /// The steps, of which the last one has all operations. A loaded configuration has them wherever it has a candidate and
    /// no share of machines.
    pub steps: Option<Vec<Step>>,
    /// Instead of steps: percent of the machines that have the candidate alone.
    pub fleet: Option<u8>,
    /// How many of the calls are compared while the candidate is tried. Servers of an earlier version do not know of it.
    #[serde(default = "usual_sample")]
    pub shadow_sample: Number,
    /// Whether calls are compared also while nothing is tried; without a candidate, with the other backend.
    #[serde(default)]
    pub shadow_always: bool,
}

/// One of twenty: enough for thousands an hour on a quiet mount, and not felt on a busy one.
fn usual_sample() -> Number {
    Number::new(0.05).expect("a number")
}

impl Default for Rollout {
    fn default() -> Self {
        Self { candidate: None, steps: None, fleet: None, shadow_sample: usual_sample(), shadow_always: false }
    }
}

/// One step of a rollout.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Step {
    /// What the candidate does in it.
    pub trial: Trial,
    /// How long it lasts: its bake time.
    #[serde(rename = "for", with = "humantime_serde")]
    pub bake: Duration,
}

/// What a candidate does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trial {
    /// No client's request; it is compared with the stable backend.
    Shadow,
    /// Its share of operations in percent, 1 to 100.
    Weight(u8),
}

impl Trial {
    /// Its share of operations in percent.
    #[must_use]
    pub fn weight(self) -> u8 {
        match self {
            Self::Shadow => 0,
            Self::Weight(weight) => weight,
        }
    }
}

impl std::fmt::Display for Trial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Shadow => f.write_str("shadow"),
            Self::Weight(weight) => write!(f, "{weight} %"),
        }
    }
}

const MINUTE: u64 = 60;

impl Rollout {
    /// The steps of a candidate that has none of its own.
    #[must_use]
    pub fn default_steps() -> Vec<Step> {
        let step = |trial, minutes| Step { trial, bake: Duration::from_secs(minutes * MINUTE) };
        vec![
            step(Trial::Shadow, 10),
            step(Trial::Weight(10), 30),
            step(Trial::Weight(50), 30),
            step(Trial::Weight(75), 30),
            step(Trial::Weight(90), 30),
            step(Trial::Weight(100), 60),
        ]
    }
}
