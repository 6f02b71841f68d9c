//! The clock of the request path.

/// Reads the processor's time stamp counter where that is steady, at half the price of `clock_gettime(2)`, and
/// `CLOCK_MONOTONIC` elsewhere. Ticks mean the same in all processes of a machine: a server writes them, its daemon
/// reads them.
#[derive(Clone, Debug)]
pub struct Clock(quanta::Clock);

impl Clock {
    /// A clock. The first one of a process takes a millisecond, to learn how long a tick is; later ones share that.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a default should cost nothing")]
    pub fn new() -> Self {
        Self(quanta::Clock::new())
    }

    /// Now, in ticks.
    #[inline]
    #[must_use]
    pub fn ticks(&self) -> u64 {
        self.0.raw()
    }

    /// Nanoseconds from one moment to a later one; 0 if it is not later, as another processor's counter may have it.
    #[inline]
    #[must_use]
    pub fn nanoseconds(&self, from: u64, to: u64) -> u64 {
        self.0.delta_as_nanos(from, to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn it_runs_as_fast_as_the_kernels() {
        let clock = Clock::new();
        let (start, began) = (clock.ticks(), Instant::now());
        std::thread::sleep(Duration::from_millis(50));
        let (end, ended) = (clock.ticks(), Instant::now());
        let ratio = clock.nanoseconds(start, end) as f64 / (ended - began).as_nanos() as f64;
        assert!((0.9..1.1).contains(&ratio), "{ratio}");
        assert_eq!(clock.nanoseconds(end, start), 0);
    }
}
