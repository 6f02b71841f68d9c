//! What is counted of shadow comparisons: requests that were given to both backends and of which the answers were compared.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

use super::answers::OPERATIONS;
use super::operation::Operation;

/// What became of requests of one operation that were to be compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Compared {
    /// Compared, with whatever result.
    pub compared: u64,
    /// Those of them whose answers differed, though the reference agreed with itself.
    pub diverged: u64,
    /// Not compared, because there were too many.
    pub dropped: u64,
}

impl Compared {
    /// What has come since an earlier look.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            compared: self.compared.saturating_sub(earlier.compared),
            diverged: self.diverged.saturating_sub(earlier.diverged),
            dropped: self.dropped.saturating_sub(earlier.dropped),
        }
    }

    fn add(&mut self, other: Self) {
        self.compared += other.compared;
        self.diverged += other.diverged;
        self.dropped += other.dropped;
    }
}

#[repr(C)]
#[derive(Debug, Default)]
struct Cell {
    compared: AtomicU64,
    diverged: AtomicU64,
    dropped: AtomicU64,
}

/// Counters of comparisons, by operation. Written by the server, off the request path, but for [`Comparisons::dropped`].
#[repr(C, align(128))]
#[derive(Debug)]
pub struct Comparisons {
    cells: [Cell; OPERATIONS],
}

impl Comparisons {
    /// Counts a comparison. From any thread.
    pub fn compared(&self, operation: Operation, has_diverged: bool) {
        let cell = &self.cells[operation as usize];
        // In this order: whoever reads meanwhile must not see more that differ than there were.
        cell.compared.fetch_add(1, Relaxed);
        if has_diverged {
            cell.diverged.fetch_add(1, Relaxed);
        }
    }

    /// Counts a request that there was no room for. From any thread.
    pub fn dropped(&self, operation: Operation) {
        self.cells[operation as usize].dropped.fetch_add(1, Relaxed);
    }

    /// What was counted of one operation.
    #[must_use]
    pub fn get(&self, operation: Operation) -> Compared {
        let cell = &self.cells[operation as usize];
        let diverged = cell.diverged.load(Relaxed);
        Compared { compared: cell.compared.load(Relaxed), diverged, dropped: cell.dropped.load(Relaxed) }
    }

    /// What was counted of all.
    #[must_use]
    pub fn total(&self) -> Compared {
        let mut total = Compared::default();
        Operation::ALL.iter().for_each(|operation| total.add(self.get(*operation)));
        total
    }
}

#[cfg(test)]
mod tests {
    use crate::ledger::{Compared, Ledger, Operation};

    #[test]
    fn each_operation_counts_for_itself() {
        let ledger = Ledger::create().unwrap();
        let comparisons = ledger.comparisons();
        comparisons.compared(Operation::Lookup, false);
        comparisons.compared(Operation::Read, true);
        comparisons.dropped(Operation::Read);
        assert_eq!(comparisons.get(Operation::Read), Compared { compared: 1, diverged: 1, dropped: 1 });
        assert_eq!(comparisons.get(Operation::GetAttr), Compared::default());
        assert_eq!(comparisons.total(), Compared { compared: 2, diverged: 1, dropped: 1 });
    }
}
