//! What a worker has done: operations and their latency, failures, and answers that were not what they had to be.
//!
//! Nothing is dropped silently: every failure and mismatch counts, the first of each are kept verbatim.

use std::fmt::{self, Debug};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Failures and mismatches that are kept verbatim, of each.
const KEPT: usize = 20;
/// Bytes around a difference that are kept.
const SHOWN: usize = 16;
/// Longest latency in microseconds that is told apart from longer ones.
const LONGEST: u64 = 60_000_000;

/// What has happened so far.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Tally {
    /// Operations, the failed ones too.
    pub operations: u64,
    /// Operations that failed.
    pub failed: u64,
    /// Answers that were wrong.
    pub mismatches: u64,
    /// The first failures.
    pub failures: Vec<Failure>,
    /// The first wrong answers.
    pub wrong: Vec<Mismatch>,
    /// Latency of all operations, the failed ones too, in microseconds.
    #[serde(with = "buckets")]
    pub latency: Histogram<u64>,
}

/// An operation that failed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// What was tried.
    pub operation: String,
    /// On what.
    pub path: PathBuf,
    /// The errno, if the kernel gave one.
    pub errno: Option<i32>,
    /// What happened.
    pub error: String,
}

/// An answer that was wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mismatch {
    /// What was checked.
    pub what: String,
    /// On what.
    pub path: PathBuf,
    /// Where in the file, in bytes; 0 for what has no place.
    pub offset: u64,
    /// What should have come.
    pub expected: String,
    /// What came.
    pub got: String,
}

/// A failure, after it was counted: it only says that there is nothing to go on with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counted;

impl Default for Tally {
    fn default() -> Self {
        let latency = Histogram::new_with_bounds(1, LONGEST, 2).expect("the bounds are constants in the range");
        Self { operations: 0, failed: 0, mismatches: 0, failures: Vec::new(), wrong: Vec::new(), latency }
    }
}

impl Tally {
    /// Runs one operation and counts it.
    ///
    /// # Errors
    /// When the operation fails; that is counted then.
    pub fn run<T, E: Into<io::Error>>(
        &mut self,
        operation: &str,
        path: &Path,
        act: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, Counted> {
        let start = Instant::now();
        let result = act();
        self.latency.saturating_record(u64::try_from(start.elapsed().as_micros()).unwrap_or(LONGEST));
        self.operations += 1;
        result.map_err(|error| {
            let error = error.into();
            let (operation, errno) = (operation.to_owned(), error.raw_os_error());
            self.fail(Failure { operation, path: path.into(), errno, error: error.to_string() });
            Counted
        })
    }

    /// Counts a failure.
    pub fn fail(&mut self, failure: Failure) {
        self.failed += 1;
        keep(&mut self.failures, [failure]);
    }

    /// Checks an answer.
    pub fn check<T: PartialEq + Debug>(&mut self, what: &str, path: &Path, got: &T, expected: &T) {
        if got != expected {
            self.mismatch(what, path, 0, format!("{expected:?}"), format!("{got:?}"));
        }
    }

    /// Checks what was read of `path` at `offset` (bytes).
    pub fn check_content(&mut self, path: &Path, offset: u64, got: &[u8], expected: &[u8]) {
        if got == expected {
            return;
        }
        // Equal as far as both go: then one is shorter.
        let same = got.iter().zip(expected).take_while(|(got, expected)| got == expected).count();
        let show = |bytes: &[u8]| format!("{:02x?} of {}", &bytes[same..bytes.len().min(same + SHOWN)], bytes.len());
        self.mismatch("content", path, offset + same as u64, show(expected), show(got));
    }

    fn mismatch(&mut self, what: &str, path: &Path, offset: u64, expected: String, got: String) {
        self.mismatches += 1;
        keep(&mut self.wrong, [Mismatch { what: what.into(), path: path.into(), offset, expected, got }]);
    }

    /// Adds what another worker has done.
    pub fn merge(&mut self, other: Self) {
        self.operations += other.operations;
        self.failed += other.failed;
        self.mismatches += other.mismatches;
        keep(&mut self.failures, other.failures);
        keep(&mut self.wrong, other.wrong);
        for bucket in other.latency.iter_recorded() {
            self.latency.saturating_record_n(bucket.value_iterated_to(), bucket.count_at_value());
        }
    }

    /// Whether everything succeeded and was right.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.failed == 0 && self.mismatches == 0
    }
}

fn keep<T>(kept: &mut Vec<T>, more: impl IntoIterator<Item = T>) {
    let room = KEPT.saturating_sub(kept.len());
    kept.extend(more.into_iter().take(room));
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}: {}", self.operation, self.path.display(), self.error)
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, path, offset, expected, got } = self;
        write!(f, "{what} of {} at {offset}: expected {expected}, got {got}", path.display())
    }
}

/// A histogram as a list of (microseconds, count).
mod buckets {
    use hdrhistogram::Histogram;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Tally;

    pub fn serialize<S: Serializer>(latency: &Histogram<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        let pairs = latency.iter_recorded().map(|bucket| (bucket.value_iterated_to(), bucket.count_at_value()));
        pairs.collect::<Vec<_>>().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Histogram<u64>, D::Error> {
        let mut latency = Tally::default().latency;
        for (micros, count) in Vec::<(u64, u64)>::deserialize(deserializer)? {
            latency.saturating_record_n(micros, count);
        }
        Ok(latency)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy() -> Tally {
        let mut tally = Tally::default();
        let path = Path::new("file");
        assert_eq!(tally.run("stat", path, || Ok::<_, io::Error>(3)), Ok(3));
        for _ in 0..30 {
            let gone = || Err::<(), _>(io::Error::from_raw_os_error(libc::EIO));
            assert_eq!(tally.run("open", path, gone), Err(Counted));
        }
        tally.check("size", path, &5, &5);
        tally.check("size", path, &4, &5);
        tally.check_content(path, 8192, b"abXd", b"abcd");
        tally.check_content(path, 8192, b"ab", b"abcd");
        tally
    }

    #[test]
    fn all_is_counted_and_the_first_are_kept() {
        let tally = busy();
        assert_eq!((tally.operations, tally.failed, tally.mismatches), (31, 30, 3));
        assert_eq!((tally.latency.len(), tally.failures.len()), (31, KEPT));
        assert_eq!(tally.failures[0].errno, Some(libc::EIO));
        assert_eq!(tally.failures[0].to_string(), "open of file: Input/output error (os error 5)");
        assert_eq!(tally.wrong[1].to_string(), "content of file at 8194: expected [63, 64] of 4, got [58, 64] of 4");
        assert_eq!(tally.wrong[2].to_string(), "content of file at 8194: expected [63, 64] of 4, got [] of 2");
        assert!(!tally.is_clean() && Tally::default().is_clean());
    }

    #[test]
    fn merging_adds_everything() {
        let mut sum = busy();
        sum.latency.saturating_record(2_000_000);
        sum.merge(busy());
        assert_eq!((sum.operations, sum.failed, sum.mismatches, sum.wrong.len()), (62, 60, 6, 6));
        assert_eq!((sum.latency.len(), sum.failures.len()), (63, KEPT));
        assert!((1_980_000..2_020_000).contains(&sum.latency.max()));
    }

    #[test]
    fn a_tally_survives_the_way_to_the_parent() {
        let tally = busy();
        let there = serde_json::from_str::<Tally>(&serde_json::to_string(&tally).unwrap()).unwrap();
        assert_eq!(there, tally);
    }
}
