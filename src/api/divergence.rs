//! What is said of comparisons.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::config::Backend;
use crate::guard::{Interval, wilson};
use crate::ledger::{Compared, Comparisons, Operation};
use crate::shadow::{Example, Told};

/// Answer to `GET /api/v1/divergence`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DivergenceAnswer {
    /// The version of this answer, 1.
    pub schema: u32,
    /// Each mount.
    pub mounts: Vec<MountDivergence>,
}

/// Answer to `GET /api/v1/mounts/{name}/divergence`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct MountDivergenceAnswer {
    /// The version of this answer, 1.
    pub schema: u32,
    /// The mount.
    #[serde(flatten)]
    pub mount: MountDivergence,
}

/// What comparisons of a mount's backends have found.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct MountDivergence {
    /// Its name.
    pub name: String,
    /// The backend whose answers count; `null` while nothing is compared.
    pub reference: Option<Backend>,
    /// The backend that is compared with it; `null` while nothing is compared.
    pub candidate: Option<Backend>,
    /// The share of the calls that is compared, at most 1; `null` while nothing is compared.
    pub sample: Option<f64>,
    /// Why nothing can be compared at the moment.
    pub trouble: Option<String>,
    /// Calls that were compared.
    pub compared: u64,
    /// Those of them that the candidate has answered differently each time.
    pub diverged: u64,
    /// Calls that there was no time for.
    pub dropped: u64,
    /// Calls that could not be compared because the reference did not agree with itself: the source was changing. They are
    /// not among those that were compared. Since the server began.
    pub noise: u64,
    /// The share that diverged, with its 95 % confidence interval; `null` without any comparison.
    pub rate: Option<Rate>,
    /// The same by kinds of requests, as far as there were some.
    pub operations: Vec<OperationDivergence>,
    /// The first divergences in full, since the server began.
    pub examples: Vec<Example>,
}

/// One kind of request.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct OperationDivergence {
    /// Which.
    #[schema(value_type = String)]
    pub operation: Operation,
    /// Calls that were compared.
    pub compared: u64,
    /// Those of them that diverged.
    pub diverged: u64,
    /// Calls that could not be compared because the reference did not agree with itself, since the server began.
    pub noise: u64,
    /// Calls that there was no time for.
    pub dropped: u64,
    /// The share that diverged, with its 95 % confidence interval.
    pub rate: Option<Rate>,
}

/// A share with its 95 % confidence interval: where it lies, as far as so few comparisons can tell.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Rate {
    /// The share that was seen.
    pub value: f64,
    /// The lower bound.
    pub low: f64,
    /// The upper bound.
    pub high: f64,
}

impl Rate {
    /// Of `some` in `all`; `None` without any.
    #[must_use]
    pub fn of(some: u64, all: u64) -> Option<Self> {
        let Interval { lower, upper } = wilson(some, all);
        (all > 0).then(|| Self { value: some as f64 / all as f64, low: lower, high: upper })
    }
}

impl MountDivergence {
    /// From what a server tells and what was counted.
    #[must_use]
    pub fn new(name: &str, told: Told, counted: Option<&Comparisons>) -> Self {
        let Compared { compared, diverged, dropped } = counted.map(Comparisons::total).unwrap_or_default();
        let of = |operation: &Operation| {
            let Compared { compared, diverged, dropped } = counted?.get(*operation);
            let rate = Rate::of(diverged, compared);
            let noise = told.noise.get(operation).copied().unwrap_or(0);
            let counts = OperationDivergence { operation: *operation, compared, diverged, noise, dropped, rate };
            (compared + dropped + noise > 0).then_some(counts)
        };
        Self {
            name: name.into(),
            reference: told.comparing.map(|comparing| comparing.reference),
            candidate: told.comparing.map(|comparing| comparing.candidate),
            sample: told.comparing.map(|comparing| comparing.rate),
            trouble: told.trouble,
            compared,
            diverged,
            dropped,
            noise: told.noise.values().sum(),
            rate: Rate::of(diverged, compared),
            operations: Operation::ALL.iter().filter_map(of).collect(),
            examples: told.examples,
        }
    }
}
