//! Open files and directories by number. Pinning is one compare-and-swap on the record's state word: generation, open
//! bit and number of pins change together, so a pin can never meet a record that serves another file by now.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use zerocopy::{FromZeros, KnownLayout};

use super::records::{Descriptor, Record, Records};
use crate::vfs::{Errno, HandleId, Result};

/// What a handle is open for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::vfs) enum HandleKind {
    /// Reading and writing.
    File = 1,
    /// Listing.
    Directory = 2,
}

/// The handle is open: RELEASE has not come. Below it in the state word is the number of pins, above it the generation.
const OPEN: u64 = 1 << 31;
const PINS: u64 = OPEN - 1;
const GENERATION: u32 = 32;

/// One open file. 64 bytes, so that the state words of two busy handles never share a cache line.
#[repr(C)]
#[derive(FromZeros, KnownLayout)]
struct HandleRecord {
    state: AtomicU64,
    next: AtomicU32,
    descriptor: Descriptor,
    kind: AtomicU32,
    reserved: [AtomicU32; 11],
}

impl Record for HandleRecord {
    fn next(&self) -> &AtomicU32 {
        &self.next
    }
}

/// Open files and directories. A handle's number is `generation << 32 | index`: a number that was released stays unknown
/// when its record serves another file, so a repeated RELEASE is harmless and a stale number is EBADF.
pub(in crate::vfs) struct HandleTable {
    records: Records<HandleRecord>,
}

/// Keeps a handle's descriptor open while it is used.
pub(in crate::vfs) struct HandlePin<'t> {
    table: &'t HandleTable,
    record: &'t HandleRecord,
    index: u32,
}

impl HandleTable {
    /// # Errors
    /// ENOMEM when there is no address space for `capacity` records.
    pub(in crate::vfs) fn new(capacity: u32) -> Result<Self> {
        Ok(Self { records: Records::new(capacity)? })
    }

    /// Makes a handle of `fd`, ENFILE when the table is full.
    pub(in crate::vfs) fn insert(&self, fd: OwnedFd, kind: HandleKind) -> Result<HandleId> {
        let (index, record) = self.records.take()?;
        let generation = match ((record.state.load(Relaxed) >> GENERATION) as u32).wrapping_add(1) {
            0 => 1,
            generation => generation,
        };
        record.descriptor.put(fd);
        record.kind.store(kind as u32, Relaxed);
        record.state.store(u64::from(generation) << GENERATION | OPEN, Release);
        Ok(HandleId(u64::from(generation) << GENERATION | u64::from(index)))
    }

    /// The open handle `id` of this kind, EBADF if there is none.
    pub(in crate::vfs) fn pin(&self, id: HandleId, kind: HandleKind) -> Result<HandlePin<'_>> {
        let pin = self.pin_any(id)?;
        if pin.record.kind.load(Relaxed) == kind as u32 { Ok(pin) } else { Err(Errno::EBADF) }
    }

    /// The open handle `id`, EBADF if there is none.
    pub(in crate::vfs) fn pin_any(&self, id: HandleId) -> Result<HandlePin<'_>> {
        let (index, record) = self.record(id).ok_or(Errno::EBADF)?;
        record
            .state
            .fetch_update(Acquire, Relaxed, |state| is_open(state, id).then_some(state + 1))
            .map_err(|_| Errno::EBADF)?;
        Ok(HandlePin { table: self, record, index })
    }

    /// Ends the handle; its descriptor is closed with the last pin. An unknown or released handle is ignored.
    pub(in crate::vfs) fn release(&self, id: HandleId) {
        let Some((index, record)) = self.record(id) else { return };
        let released = record.state.fetch_update(AcqRel, Relaxed, |state| is_open(state, id).then_some(state & !OPEN));
        if released.is_ok_and(|state| state & PINS == 0) {
            self.retire(index, record);
        }
    }

    /// Number of handles that were not released.
    pub(in crate::vfs) fn open(&self) -> usize {
        self.records.touched().iter().filter(|record| record.state.load(Relaxed) & OPEN != 0).count()
    }

    fn record(&self, id: HandleId) -> Option<(u32, &HandleRecord)> {
        let index = id.0 as u32;
        Some((index, self.records.get(index)?))
    }

    /// Called once for each release: by it, or by the last pin that outlived it.
    fn retire(&self, index: u32, record: &HandleRecord) {
        let descriptor = record.descriptor.take();
        self.records.give_back(index);
        drop(descriptor);
    }
}

fn is_open(state: u64, id: HandleId) -> bool {
    state & OPEN != 0 && state >> GENERATION == id.0 >> GENERATION
}

impl HandlePin<'_> {
    /// Whether RELEASE has still not come.
    pub(in crate::vfs) fn is_open(&self) -> bool {
        self.record.state.load(Acquire) & OPEN != 0
    }
}

impl AsFd for HandlePin<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `self` is the pin.
        unsafe { self.record.descriptor.borrow() }
    }
}

impl Drop for HandlePin<'_> {
    fn drop(&mut self) {
        if (self.record.state.fetch_sub(1, AcqRel) - 1) & (OPEN | PINS) == 0 {
            self.table.retire(self.index, self.record);
        }
    }
}

impl Drop for HandleTable {
    fn drop(&mut self) {
        self.records.touched().iter().for_each(|record| drop(record.descriptor.take()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    fn file() -> OwnedFd {
        tempfile::tempfile().unwrap().into()
    }

    fn table() -> HandleTable {
        HandleTable::new(4).unwrap()
    }

    #[test]
    fn a_released_number_stays_unknown_when_its_record_serves_another_file() {
        let table = table();
        let first = table.insert(file(), HandleKind::File).unwrap();
        table.release(first);
        let second = table.insert(file(), HandleKind::File).unwrap();
        assert_eq!(first.0 as u32, second.0 as u32, "the record is used again");
        assert_eq!(table.pin(first, HandleKind::File).err(), Some(Errno::EBADF));
        table.release(first);
        assert!(table.pin(second, HandleKind::File).is_ok(), "a repeated release is harmless");
        assert_eq!(table.open(), 1);
    }

    #[test]
    fn a_handle_is_only_good_for_what_it_was_opened_for() {
        let table = table();
        let id = table.insert(file(), HandleKind::File).unwrap();
        assert_eq!(table.pin(id, HandleKind::Directory).err(), Some(Errno::EBADF));
        table.release(id);
        assert_eq!(table.open(), 0);
        for never_given in [0, 3, 1 << 32 | 99, u64::MAX] {
            assert_eq!(table.pin_any(HandleId(never_given)).err(), Some(Errno::EBADF));
            table.release(HandleId(never_given));
        }
    }

    #[test]
    fn a_pin_keeps_the_descriptor_open_and_the_record_taken() {
        let table = table();
        let id = table.insert(file(), HandleKind::File).unwrap();
        let pin = table.pin(id, HandleKind::File).unwrap();
        table.release(id);
        assert!(!pin.is_open());
        assert_eq!(table.pin(id, HandleKind::File).err(), Some(Errno::EBADF));
        let number = pin.as_fd().as_raw_fd();
        let other = table.insert(file(), HandleKind::File).unwrap();
        assert_ne!(other.0 as u32, id.0 as u32);
        assert_ne!(table.pin_any(other).unwrap().as_fd().as_raw_fd(), number);
        rustix::fs::fstat(&pin).unwrap();
        drop(pin);
        assert_eq!(table.insert(file(), HandleKind::File).unwrap().0 as u32, id.0 as u32);
    }

    #[test]
    fn full_is_an_error_number() {
        let table = table();
        for _ in 0..4 {
            table.insert(file(), HandleKind::File).unwrap();
        }
        assert_eq!(table.insert(file(), HandleKind::File).err(), Some(Errno::ENFILE));
    }

    #[test]
    fn releases_and_pins_of_many_threads_meet_without_harm() {
        let table = HandleTable::new(64).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let id = table.insert(file(), HandleKind::File).unwrap();
                        std::thread::scope(|inner| {
                            inner.spawn(|| {
                                if let Ok(pin) = table.pin_any(id) {
                                    rustix::fs::fstat(&pin).unwrap();
                                }
                            });
                            table.release(id);
                        });
                    }
                });
            }
        });
        assert_eq!(table.open(), 0);
        assert!(table.records.touched().iter().all(|record| record.descriptor.take().is_none()));
    }
}
