//! What was counted lately: looks at counters that only grow, of which the difference to an earlier one tells.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::ledger::Durations;

/// A window is remembered in about so many looks, however long it is.
const LOOKS: u32 = 60;
/// Looks are hardly ever nearer to each other.
const NEAREST: Duration = Duration::from_secs(1);

/// What was counted of one backend.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct PerBackend {
    /// Answers.
    pub operations: u64,
    /// Those that were errors of the backend.
    pub errors: u64,
    /// Requests that it has read and lost.
    pub lost: u64,
    /// Times in its handlers.
    pub handlers: Durations,
    /// Times that the prober has seen.
    pub probes: Durations,
}

/// What was counted, at one moment or between two.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counts {
    /// Of each backend.
    pub backends: [PerBackend; 2],
    /// Answers that were compared.
    pub compared: u64,
    /// Those that differed.
    pub diverged: u64,
}

impl PerBackend {
    fn since(&self, earlier: &Self) -> Self {
        Self {
            operations: self.operations.saturating_sub(earlier.operations),
            errors: self.errors.saturating_sub(earlier.errors),
            lost: self.lost.saturating_sub(earlier.lost),
            handlers: self.handlers.since(&earlier.handlers),
            probes: self.probes.since(&earlier.probes),
        }
    }
}

impl Counts {
    fn since(&self, earlier: &Self) -> Self {
        Self {
            backends: std::array::from_fn(|index| self.backends[index].since(&earlier.backends[index])),
            compared: self.compared.saturating_sub(earlier.compared),
            diverged: self.diverged.saturating_sub(earlier.diverged),
        }
    }
}

/// What has come in a stretch of time.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Span {
    /// How long it is.
    pub lasted: Duration,
    /// What has come.
    pub counts: Counts,
}

/// Looks since a step began.
#[derive(Clone, Debug)]
pub struct Window {
    began: (Instant, Counts),
    /// The oldest first; one of them is older than the window, unless the step is not.
    looks: VecDeque<(Instant, Counts)>,
    now: (Instant, Counts),
}

impl Window {
    /// From now on. What has been counted before is no evidence.
    #[must_use]
    pub fn new(now: Instant, counts: Counts) -> Self {
        Self { began: (now, counts), looks: [(now, counts)].into(), now: (now, counts) }
    }

    /// Enters another look.
    pub fn note(&mut self, now: Instant, counts: Counts, length: Duration) {
        self.now = (now, counts);
        let apart = NEAREST.max(length / LOOKS);
        if self.looks.back().is_none_or(|(last, _)| now.saturating_duration_since(*last) >= apart) {
            self.looks.push_back((now, counts));
        }
        // The one before the window is where it is counted from.
        while self.looks.get(1).is_some_and(|(next, _)| now.saturating_duration_since(*next) >= length) {
            self.looks.pop_front();
        }
    }

    /// What has come within the window; at most an interval of looks more.
    #[must_use]
    pub fn recent(&self) -> Span {
        self.since(self.looks.front().unwrap_or(&self.began))
    }

    /// What has come since the step began.
    #[must_use]
    pub fn whole(&self) -> Span {
        self.since(&self.began)
    }

    fn since(&self, (then, before): &(Instant, Counts)) -> Span {
        let (now, counts) = &self.now;
        Span { lasted: now.saturating_duration_since(*then), counts: counts.since(before) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_secs(60);

    fn counts(operations: u64) -> Counts {
        let mut counts = Counts::default();
        counts.backends[1].operations = operations;
        counts
    }

    /// One operation a second.
    fn after(seconds: u64, length: Duration) -> Window {
        let start = Instant::now();
        let mut window = Window::new(start, counts(1000));
        for second in 1..=seconds {
            window.note(start + Duration::from_secs(second), counts(1000 + second), length);
        }
        window
    }

    #[test]
    fn what_is_older_is_forgotten() {
        let window = after(600, LENGTH);
        assert_eq!((window.recent().lasted, window.recent().counts), (LENGTH, counts(60)));
        assert_eq!((window.whole().lasted.as_secs(), window.whole().counts), (600, counts(600)));
    }

    #[test]
    fn a_step_that_is_younger_is_all_there_is() {
        let window = after(7, LENGTH);
        assert_eq!(window.recent(), window.whole());
        assert_eq!(window.recent().counts, counts(7));
        assert_eq!(Window::new(Instant::now(), counts(5)).recent(), Span::default());
    }

    #[test]
    fn a_long_window_is_not_remembered_in_more_looks() {
        let day = Duration::from_secs(24 * 3600);
        let window = after(2 * 24 * 3600, day);
        assert!(window.looks.len() <= 62, "{}", window.looks.len());
        let lasted = window.recent().lasted;
        assert!((day..day + day / 50).contains(&lasted), "{lasted:?}");
    }

    #[test]
    fn counters_that_begin_anew_are_no_evidence() {
        let start = Instant::now();
        let mut window = Window::new(start, counts(1000));
        window.note(start + NEAREST, counts(3), LENGTH);
        assert_eq!(window.recent().counts, counts(0));
    }
}
