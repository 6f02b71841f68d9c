//! Which slots of the ledger a session's tasks may take.

use std::cell::{Cell, RefCell};

/// Slots that no request is in. Only tasks take and return them, and those of a port run on one thread, its runtime's.
#[derive(Default)]
pub(super) struct FreeSlots {
    slots: RefCell<Vec<usize>>,
    /// Tasks that wait for one.
    waiting: Cell<usize>,
}

impl FreeSlots {
    /// Those of this thread's port from now on.
    pub(super) fn set(slots: impl Iterator<Item = usize>) {
        FREE_SLOTS.with(|free| free.slots.replace(slots.collect()));
    }

    pub(super) fn take() -> Option<usize> {
        FREE_SLOTS.with(|free| free.slots.borrow_mut().pop())
    }

    /// Whether somebody waits for it.
    pub(super) fn put_back(slot: usize) -> bool {
        FREE_SLOTS.with(|free| {
            free.slots.borrow_mut().push(slot);
            free.waiting.get() > 0
        })
    }

    pub(super) fn count_waiting(change: isize) {
        FREE_SLOTS.with(|free| free.waiting.set(free.waiting.get().saturating_add_signed(change)));
    }
}

thread_local! {
    static FREE_SLOTS: FreeSlots = FreeSlots::default();
}
