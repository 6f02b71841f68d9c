//! A fixed number of records with a lock-free list of free ones. Index instead of pointer everywhere, and all zeros is a
//! valid beginning, so the same code works on a mapping that several processes share.

use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{
    AtomicI32, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use zerocopy::{FromZeros, KnownLayout};

use crate::vfs::{Errno, Result};

/// A record of a table. All zeros is a free one.
pub(super) trait Record: FromZeros + KnownLayout {
    /// Link of the list of free records, unused while the record is in use.
    fn next(&self) -> &AtomicU32;
}

/// A fixed number of records. Memory is touched only as records are used for the first time.
pub(super) struct Records<T> {
    records: Box<[T]>,
    /// First free record: a tag that changes with each step in the upper half (a popped and pushed record must not look
    /// like one that never moved), index + 1 in the lower, 0 for none.
    free: AtomicU64,
    /// Records below this index have been used at least once.
    used: AtomicU32,
}

const INDEX: u64 = u32::MAX as u64;

fn step(free: u64, index_plus_one: u32) -> u64 {
    (free & !INDEX).wrapping_add(INDEX + 1) | u64::from(index_plus_one)
}

impl<T: Record> Records<T> {
    pub(super) fn new(capacity: u32) -> Result<Self> {
        let records = <[T]>::new_box_zeroed_with_elems(capacity as usize).map_err(|_| Errno::ENOMEM)?;
        Ok(Self { records, free: AtomicU64::new(0), used: AtomicU32::new(0) })
    }

    pub(super) fn get(&self, index: u32) -> Option<&T> {
        self.records.get(index as usize)
    }

    /// Every record that was ever used.
    pub(super) fn touched(&self) -> &[T] {
        &self.records[..self.used.load(Acquire) as usize]
    }

    /// Takes a free record, ENFILE if there is none.
    pub(super) fn take(&self) -> Result<(u32, &T)> {
        let mut free = self.free.load(Acquire);
        while let Some(index) = (free as u32).checked_sub(1) {
            let record = &self.records[index as usize];
            match self.free.compare_exchange_weak(free, step(free, record.next().load(Relaxed)), AcqRel, Acquire) {
                Ok(_) => return Ok((index, record)),
                Err(now) => free = now,
            }
        }
        let capacity = self.records.len() as u32;
        let index = self
            .used
            .fetch_update(AcqRel, Relaxed, |used| (used < capacity).then_some(used + 1))
            .map_err(|_| Errno::ENFILE)?;
        Ok((index, &self.records[index as usize]))
    }

    /// Gives back a record that nobody can reach any more.
    pub(super) fn give_back(&self, index: u32) {
        let next = self.records[index as usize].next();
        let mut free = self.free.load(Relaxed);
        loop {
            next.store(free as u32, Relaxed);
            match self.free.compare_exchange_weak(free, step(free, index + 1), AcqRel, Relaxed) {
                Ok(_) => return,
                Err(now) => free = now,
            }
        }
    }
}

/// A descriptor that a record owns: its number + 1, so that zero is none.
#[repr(transparent)]
#[derive(FromZeros, KnownLayout)]
pub(super) struct Descriptor(AtomicI32);

impl Descriptor {
    pub(super) fn put(&self, fd: OwnedFd) {
        self.0.store(fd.into_raw_fd() + 1, Release);
    }

    /// Takes the descriptor out; the caller closes it by dropping it.
    pub(super) fn take(&self) -> Option<OwnedFd> {
        let fd: RawFd = self.0.swap(0, AcqRel) - 1;
        // SAFETY: the number came from `put`, which gave its ownership to this record, and `swap` hands it out once.
        (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// # Safety
    /// The record is pinned for as long as the result lives.
    pub(super) unsafe fn borrow(&self) -> BorrowedFd<'_> {
        // SAFETY: the caller holds a pin, and a pinned record's descriptor is neither taken nor closed.
        unsafe { BorrowedFd::borrow_raw(self.0.load(Acquire) - 1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::Mutex;

    #[repr(C)]
    #[derive(FromZeros, KnownLayout)]
    struct Plain(AtomicU32);

    impl Record for Plain {
        fn next(&self) -> &AtomicU32 {
            &self.0
        }
    }

    #[test]
    fn a_full_table_says_enfile_and_goes_on_when_one_comes_back() {
        let records = Records::<Plain>::new(3).unwrap();
        let taken: Vec<u32> = (0..3).map(|_| records.take().unwrap().0).collect();
        assert_eq!(taken, [0, 1, 2]);
        assert_eq!(records.take().err(), Some(Errno::ENFILE));
        records.give_back(1);
        assert_eq!(records.take().unwrap().0, 1);
        assert!(records.take().is_err());
        assert_eq!(records.touched().len(), 3);
    }

    #[test]
    fn no_record_is_given_to_two_threads() {
        let records = Records::<Plain>::new(8).unwrap();
        let held = Mutex::new(HashSet::new());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let (index, _) = records.take().unwrap();
                        assert!(held.lock().unwrap().insert(index), "{index} is held twice");
                        assert!(held.lock().unwrap().remove(&index));
                        records.give_back(index);
                    }
                });
            }
        });
    }
}
