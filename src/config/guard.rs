//! What `[mount.guard]` says: by which figures a candidate is judged.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A number that is one: neither infinite nor "not a number", so that it is equal to itself.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Number(f64);

impl Eq for Number {}

impl Number {
    /// `None` for what is no number.
    #[must_use]
    pub const fn new(value: f64) -> Option<Self> {
        if value.is_finite() { Some(Self(value)) } else { None }
    }

    /// Its value.
    #[must_use]
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for Number {
    type Error = &'static str;

    fn try_from(value: f64) -> Result<Self, Self::Error> {
        Self::new(value).ok_or("it is no number")
    }
}

impl From<Number> for f64 {
    fn from(number: Number) -> Self {
        number.get()
    }
}

/// By which figures a candidate is judged.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Guard {
    /// What is older is forgotten.
    pub window: Duration,
    /// With fewer nothing is said of a share.
    pub minimum_samples: usize,
    /// Share of answers that may be errors of the backend.
    pub error_rate: Number,
    /// What 99 of 100 answers must come within.
    pub p99: Duration,
    /// Share of comparisons that may differ.
    pub divergence: Number,
    /// So many errors of the backend in a row are too many.
    pub consecutive_errors: usize,
    /// No request may be in a handler for longer.
    pub hang: Duration,
    /// What is asked of Prometheus beside.
    pub prometheus: Prometheus,
}

/// A question to a Prometheus server. Nothing is asked without all three.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Prometheus {
    /// Where it answers.
    pub url: Option<String>,
    /// What is asked.
    pub query: Option<String>,
    /// What the answer must not exceed.
    pub above: Option<Number>,
}

/// A question to a Prometheus server that can be asked.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Question<'a> {
    /// Where it answers.
    pub url: &'a str,
    /// What is asked.
    pub query: &'a str,
    /// What the answer must not exceed.
    pub above: f64,
}

impl Prometheus {
    /// What is to be asked, if anything.
    #[must_use]
    pub fn question(&self) -> Option<Question<'_>> {
        let Self { url, query, above } = self;
        Some(Question { url: url.as_deref()?, query: query.as_deref()?, above: above.as_ref()?.get() })
    }
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(60),
            minimum_samples: 500,
            error_rate: Number(0.01),
            p99: Duration::from_secs(1),
            divergence: Number(0.001),
            consecutive_errors: 20,
            hang: Duration::from_secs(10),
            prometheus: Prometheus::default(),
        }
    }
}
