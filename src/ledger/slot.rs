use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};
use std::time::Duration;

use super::clock::Clock;
use super::operation::Operation;
use crate::config::Backend;

/// The deadline has answered this request: its handler's own answer is to be taken back.
const ABANDONED: u64 = 1 << 62;
/// Its handler gives the answer now: the deadline comes too late.
const ANSWERING: u64 = 1 << 61;
const MARKS: u64 = ABANDONED | ANSWERING;

/// Nanoseconds of `CLOCK_MONOTONIC_COARSE`: good to a timer tick (1 to 4 ms), which is all that a heartbeat needs.
#[must_use]
#[inline]
pub fn coarse_now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// One request in a handler, on two cache lines of its own (processors fetch lines in pairs).
///
/// `unique` decides: 0 is free, else it is the kernel's number of the request (even; bit 63 set when it was sent again)
/// and at most one of the two marks. Who changes the marks by compare-and-swap owns the answer.
#[repr(C, align(128))]
pub struct Slot {
    unique: AtomicU64,
    node: AtomicU64,
    started: AtomicU64,
    operation: AtomicU32,
    _reserved: AtomicU32,
}

/// What a slot showed when it was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InFlight {
    /// Which backend holds it.
    pub backend: Backend,
    /// The kernel's number of the request.
    pub unique: u64,
    /// Kind of the request.
    pub operation: Operation,
    /// Node it is about.
    pub node: u64,
    /// When its handler began, in ticks of [`Clock`].
    pub started: u64,
    /// Whether the deadline has answered it already.
    pub abandoned: bool,
}

impl InFlight {
    /// How long its handler has been at it.
    #[must_use]
    pub fn age(&self) -> Duration {
        let clock = Clock::new();
        Duration::from_nanos(clock.nanoseconds(self.started, clock.ticks()))
    }
}

impl Slot {
    /// Whether the kernel has sent this request before (FUSE_UNIQUE_RESEND in fuse.h).
    #[inline]
    #[must_use]
    pub fn was_sent_before(unique: u64) -> bool {
        unique >> 63 != 0
    }

    /// Enters a request whose handler begins at `started`, in ticks of [`Clock`]. Only the slot's holder calls this, and only
    /// while the slot is free.
    #[inline]
    pub fn enter(&self, unique: u64, operation: Operation, node: u64, started: u64) {
        self.node.store(node, Relaxed);
        self.operation.store(operation as u32, Relaxed);
        self.started.store(started, Relaxed);
        self.unique.store(unique & !MARKS, Release);
    }

    /// Leaves. Whether the answer is still wanted; if not, the deadline has given one, and what this request's answer
    /// would have handed out is to be taken back.
    ///
    /// A full barrier, not a plain store: the slot must be seen free before this thread's next `read(2)` looks its
    /// descriptor up, or a parker could call the thread busy while it is back in the device.
    #[inline]
    pub fn leave(&self) -> bool {
        self.unique.swap(0, SeqCst) & ABANDONED == 0
    }

    /// Claims the answer for the handler; from here the deadline leaves it alone. `false`: the deadline was first.
    #[inline]
    #[must_use]
    pub fn claim(&self) -> bool {
        let unique = self.unique.load(Relaxed);
        unique & ABANDONED == 0
            && (unique & ANSWERING != 0
                || self.unique.compare_exchange(unique, unique | ANSWERING, SeqCst, SeqCst).is_ok())
    }

    /// Claims the answer of request `unique` for the deadline. `false`: it was answered, or is being answered now.
    #[must_use]
    pub fn abandon(&self, unique: u64) -> bool {
        self.unique.compare_exchange(unique, unique | ABANDONED, SeqCst, SeqCst).is_ok()
    }

    /// Whether the deadline has answered the request that is here now.
    #[inline]
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.unique.load(SeqCst) & ABANDONED != 0
    }

    /// The request that is here now, answered or not, without marks.
    #[must_use]
    pub fn current(&self) -> Option<u64> {
        match self.unique.load(SeqCst) & !MARKS {
            0 => None,
            unique => Some(unique),
        }
    }

    /// Frees it, whoever has held it.
    pub(super) fn clear(&self) {
        self.unique.store(0, SeqCst);
    }

    /// What it shows, if it is not free.
    #[must_use]
    pub fn read(&self, backend: Backend) -> Option<InFlight> {
        let unique = self.unique.load(Acquire);
        if unique == 0 {
            return None;
        }
        Some(InFlight {
            backend,
            unique: unique & !MARKS,
            operation: Operation::from_number(self.operation.load(Relaxed) as u8),
            node: self.node.load(Relaxed),
            started: self.started.load(Relaxed),
            abandoned: unique & ABANDONED != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;

    #[test]
    fn an_answer_belongs_to_the_handler_or_to_the_deadline() {
        let ledger = Ledger::create().unwrap();
        let slot = ledger.slot(0);
        slot.enter(8, Operation::Open, 5, 0);
        assert_eq!(slot.current(), Some(8));
        assert!(slot.claim());
        assert!(!slot.abandon(8), "the handler was first");
        assert!(slot.claim(), "claiming again is harmless");
        assert!(slot.leave());

        slot.enter(10, Operation::Open, 5, 0);
        assert!(!slot.abandon(8), "another request");
        assert!(slot.abandon(10));
        assert!(!slot.claim(), "the deadline was first");
        assert!(ledger.in_flight()[0].abandoned);
        assert!(!slot.leave());
        assert_eq!(slot.current(), None);
    }

    #[test]
    fn a_request_that_was_sent_again_keeps_its_mark() {
        let ledger = Ledger::create().unwrap();
        let slot = ledger.slot(3);
        let resent = 1 << 63 | 42;
        slot.enter(resent, Operation::MkDir, 1, 0);
        assert_eq!(ledger.in_flight()[0].unique, resent);
        assert_eq!(ledger.in_flight()[0].operation, Operation::MkDir);
    }
}
