//! What is counted of answers: how many, how long they took, and how many bytes they moved.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::operation::Operation;

pub(super) const OPERATIONS: usize = Operation::ALL.len();
const STATUSES: usize = 3;

/// Upper bounds of the buckets of durations, in nanoseconds, inclusive; what took longer is in one more.
pub const BOUNDS: [u64; 18] = {
    const US: u64 = 1_000;
    const MS: u64 = 1_000_000;
    [
        10 * US,
        25 * US,
        50 * US,
        100 * US,
        250 * US,
        500 * US,
        MS,
        2_500 * US,
        5 * MS,
        10 * MS,
        25 * MS,
        50 * MS,
        100 * MS,
        250 * MS,
        500 * MS,
        1_000 * MS,
        2_500 * MS,
        5_000 * MS,
    ]
};
const BUCKETS: usize = BOUNDS.len() + 1;

/// How a request was answered, from the guard's point of view.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AnswerStatus {
    /// Done.
    Ok,
    /// The source or POSIX says no: ENOENT, EACCES, ENOSPC …
    ClientError,
    /// The backend failed: a caught panic, an answer at the deadline, ENOSYS, a lost request, a session that ended.
    BackendError,
}

impl AnswerStatus {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; STATUSES] = [Self::Ok, Self::ClientError, Self::BackendError];

    /// The name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ClientError => "client_error",
            Self::BackendError => "backend_error",
        }
    }
}

/// Which way data go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// To the program that asks.
    Read,
    /// From it.
    Write,
}

impl Direction {
    /// Both, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Read, Self::Write];

    /// The name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// A histogram of durations.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Times {
    nanoseconds: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

/// What a histogram shows at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Durations {
    /// Sum of all.
    pub nanoseconds: u64,
    /// How many there were up to each of [`BOUNDS`] and above the bound before; the last is without a bound.
    pub buckets: [u64; BUCKETS],
}

impl Durations {
    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Upper bound, in nanoseconds, of the bucket in which the share `q` of all is reached, from 0 to 1; `None` without any.
    /// What took longer than the highest of [`BOUNDS`] counts as that.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<u64> {
        let wanted = (q * self.count() as f64).ceil().max(1.) as u64;
        let mut sum = 0;
        let bucket = self.buckets.iter().position(|count| {
            sum += count;
            sum >= wanted
        })?;
        BOUNDS.get(bucket).or(BOUNDS.last()).copied()
    }

    /// How many took longer than `nanoseconds`, which is one of [`BOUNDS`].
    #[must_use]
    pub fn above(&self, nanoseconds: u64) -> u64 {
        self.buckets[bucket(nanoseconds) + 1..].iter().sum()
    }

    /// What has come since an earlier look.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let buckets = std::array::from_fn(|index| self.buckets[index].saturating_sub(earlier.buckets[index]));
        Self { nanoseconds: self.nanoseconds.saturating_sub(earlier.nanoseconds), buckets }
    }

    fn merge(&mut self, other: &Self) {
        self.nanoseconds += other.nanoseconds;
        for (sum, count) in self.buckets.iter_mut().zip(&other.buckets) {
            *sum += count;
        }
    }

    fn add(&mut self, times: &Times) {
        self.nanoseconds += times.nanoseconds.load(Relaxed);
        for (sum, bucket) in self.buckets.iter_mut().zip(&times.buckets) {
            *sum += bucket.load(Relaxed);
        }
    }
}

#[inline]
fn bucket(nanoseconds: u64) -> usize {
    BOUNDS.partition_point(|bound| *bound < nanoseconds)
}

impl Times {
    #[inline]
    fn record_alone(&self, nanoseconds: u64) {
        add_alone(&self.nanoseconds, nanoseconds);
        add_alone(&self.buckets[bucket(nanoseconds)], 1);
    }

    /// Enters one. From any thread.
    pub fn record(&self, nanoseconds: u64) {
        self.nanoseconds.fetch_add(nanoseconds, Relaxed);
        self.buckets[bucket(nanoseconds)].fetch_add(1, Relaxed);
    }

    /// What it shows now.
    #[must_use]
    pub fn durations(&self) -> Durations {
        let mut durations = Durations::default();
        durations.add(self);
        durations
    }
}

/// By the only writer: a load and a store will do, no locked instruction.
#[inline]
fn add_alone(cell: &AtomicU64, amount: u64) {
    cell.store(cell.load(Relaxed).wrapping_add(amount), Relaxed);
}

/// Of one operation, side by side in memory.
#[repr(C)]
struct Cell {
    counts: [AtomicU64; STATUSES],
    times: Times,
}

/// Counters with one writer.
#[repr(C, align(128))]
pub struct Lane {
    cells: [Cell; OPERATIONS],
    bytes: [AtomicU64; Direction::ALL.len()],
}

impl Lane {
    /// Counts one answer, which took so long. Only the lane's own thread calls this.
    #[inline]
    pub fn count(&self, operation: Operation, status: AnswerStatus, nanoseconds: u64) {
        let cell = &self.cells[operation as usize];
        add_alone(&cell.counts[status as usize], 1);
        cell.times.record_alone(nanoseconds);
    }

    /// Counts data. Only the lane's own thread calls this.
    #[inline]
    pub fn moved(&self, direction: Direction, bytes: u64) {
        add_alone(&self.bytes[direction as usize], bytes);
    }

    /// All answers.
    pub(super) fn operations(&self) -> u64 {
        self.cells.iter().flat_map(|cell| &cell.counts).map(|count| count.load(Relaxed)).sum()
    }

    /// Counts an answer that its handler did not give; without a time if there is no handler. From any thread, on the lane
    /// that is for this.
    pub(super) fn count_forced(&self, operation: Operation, nanoseconds: Option<u64>) {
        let cell = &self.cells[operation as usize];
        cell.counts[AnswerStatus::BackendError as usize].fetch_add(1, Relaxed);
        if let Some(nanoseconds) = nanoseconds {
            cell.times.record(nanoseconds);
        }
    }
}

/// Sums over lanes at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Totals {
    counts: [[u64; STATUSES]; OPERATIONS],
    durations: [Durations; OPERATIONS],
    bytes: [u64; Direction::ALL.len()],
}

impl Totals {
    pub(super) fn of<'a>(lanes: impl Iterator<Item = &'a Lane>) -> Self {
        let mut totals = Self {
            counts: [[0; STATUSES]; OPERATIONS],
            durations: [Durations::default(); OPERATIONS],
            bytes: [0; Direction::ALL.len()],
        };
        for lane in lanes {
            for (index, cell) in lane.cells.iter().enumerate() {
                for (sum, count) in totals.counts[index].iter_mut().zip(&cell.counts) {
                    *sum += count.load(Relaxed);
                }
                totals.durations[index].add(&cell.times);
            }
            for (sum, bytes) in totals.bytes.iter_mut().zip(&lane.bytes) {
                *sum += bytes.load(Relaxed);
            }
        }
        totals
    }

    /// Answers to `operation` with `status`.
    #[must_use]
    pub fn get(&self, operation: Operation, status: AnswerStatus) -> u64 {
        self.counts[operation as usize][status as usize]
    }

    /// Time in the handlers of `operation`.
    #[must_use]
    pub fn durations(&self, operation: Operation) -> &Durations {
        &self.durations[operation as usize]
    }

    /// Time in all handlers.
    #[must_use]
    pub fn all_durations(&self) -> Durations {
        let mut all = Durations::default();
        self.durations.iter().for_each(|one| all.merge(one));
        all
    }

    /// Data moved, in bytes.
    #[must_use]
    pub fn bytes(&self, direction: Direction) -> u64 {
        self.bytes[direction as usize]
    }

    /// All answers.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.counts.iter().flatten().sum()
    }

    /// All answers with `status`.
    #[must_use]
    pub fn with_status(&self, status: AnswerStatus) -> u64 {
        self.counts.iter().map(|counts| counts[status as usize]).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[test]
    fn a_quantile_is_the_bound_of_its_bucket() {
        assert_eq!(Durations::default().quantile(0.99), None);
        let times = Times::default();
        (0..99).for_each(|_| times.record(20_000));
        times.record(9_000_000_000);
        assert_eq!(times.durations().quantile(0.5), Some(25_000));
        assert_eq!(times.durations().quantile(0.99), Some(25_000));
        assert_eq!(times.durations().quantile(1.), Some(5_000_000_000), "the highest bound");
    }

    #[test]
    fn what_took_longer_is_counted_from_the_next_bucket_on() {
        let times = Times::default();
        times.record(1_000_000_000);
        let before = times.durations();
        [1_000_000_000, 1_000_000_001, u64::MAX / 2].into_iter().for_each(|time| times.record(time));
        assert_eq!((times.durations().above(1_000_000_000), before.above(1_000_000_000)), (2, 0));
        assert_eq!(times.durations().since(&before).count(), 3);
    }

    #[rstest]
    #[case(0, 0)]
    #[case(10_000, 0)]
    #[case(10_001, 1)]
    #[case(999_999, 6)]
    #[case(1_000_000_000, 15)]
    #[case(1_000_000_001, 16)]
    #[case(5_000_000_000, 17)]
    #[case(u64::MAX, 18)]
    fn a_bound_belongs_to_its_bucket(#[case] nanoseconds: u64, #[case] expected: usize) {
        assert_eq!(bucket(nanoseconds), expected);
    }
}
