use std::sync::Arc;

use parking_lot::Mutex;

use crate::ledger::{TASK_SLOTS, THREAD_SLOTS};

/// Task slots of one session of backend `fuse3`: so many of its requests are in a handler at once, the rest waits.
const TASKS: usize = TASK_SLOTS / 4;

/// Who uses which slots of the ledger. A session leases some in a row for its life; one that hangs keeps them until its
/// handlers come back, so a fresh session beside it gets others.
#[derive(Clone, Debug, Default)]
pub struct Leases(Arc<Mutex<Vec<(usize, usize)>>>);

/// A row of slots. Given back when dropped.
#[derive(Debug)]
pub struct Lease {
    leases: Leases,
    first: usize,
    count: usize,
}

/// All slots are taken by sessions that hang.
#[derive(Debug, thiserror::Error)]
#[error(
    "no free slots for another session: too many earlier ones hang in the source; find what it waits for, or restart the mount"
)]
pub struct NoSlots;

impl Leases {
    /// Slots for a session of `count` threads.
    ///
    /// # Errors
    /// When too many earlier sessions hang.
    pub fn threads(&self, count: usize) -> Result<Lease, NoSlots> {
        self.lease(0, THREAD_SLOTS, count)
    }

    /// Slots for a session of tasks.
    ///
    /// # Errors
    /// When too many earlier sessions hang.
    pub fn tasks(&self) -> Result<Lease, NoSlots> {
        self.lease(THREAD_SLOTS, THREAD_SLOTS + TASK_SLOTS, TASKS)
    }

    fn lease(&self, from: usize, to: usize, count: usize) -> Result<Lease, NoSlots> {
        let mut taken = self.0.lock();
        let mut first = from;
        taken.sort_unstable();
        for (start, length) in taken.iter().copied().filter(|(start, _)| (from..to).contains(start)) {
            if first + count <= start {
                break;
            }
            first = start + length;
        }
        if first + count > to {
            return Err(NoSlots);
        }
        taken.push((first, count));
        Ok(Lease { leases: self.clone(), first, count })
    }
}

impl Lease {
    /// The slots' numbers.
    #[must_use]
    pub fn range(&self) -> std::ops::Range<usize> {
        self.first..self.first + self.count
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.0.lock().retain(|taken| *taken != (self.first, self.count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_never_overlap_and_come_back() {
        let leases = Leases::default();
        let a = leases.threads(16).unwrap();
        let b = leases.threads(40).unwrap();
        let c = leases.threads(16).unwrap();
        assert_eq!((a.range(), b.range(), c.range()), (0..16, 16..56, 56..72));
        drop(b);
        assert_eq!(leases.threads(30).unwrap().range(), 16..46);
        assert_eq!(leases.threads(56).unwrap().range(), 72..128);
        assert!(leases.threads(57).is_err());
        let tasks: Vec<_> = (0..4).map(|_| leases.tasks().unwrap()).collect();
        assert_eq!(tasks[0].range().start, THREAD_SLOTS);
        assert!(leases.tasks().is_err());
    }
}
