//! The shared mapping: what the daemon must know of a server all the time.
//!
//! One memfd of fixed layout, made by the daemon and mapped by both. The server writes it without locks; the daemon
//! reads it when asked, and can still read it after the server's death; the mount's next server goes on with it. Nothing here points anywhere: all is plain
//! numbers, so that another process, or the same program of a later version, can read it.
//!
//! Rules of writing: a [`Slot`] has one writer at a time (the thread or task that holds it), apart from the two marks
//! that the deadline sets by compare-and-swap; a [`Lane`] of counters has one writer at a time.

mod answers;
mod clock;
mod comparisons;
mod layout;
mod operation;
mod slot;
mod switches;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

pub use answers::{AnswerStatus, BOUNDS, Direction, Durations, Lane, Times, Totals};
pub use clock::Clock;
pub use comparisons::{Compared, Comparisons};
pub use layout::{LANES, Layout, PortState, SLOTS, TASK_SLOTS, THREAD_SLOTS, VERSION};
pub use operation::Operation;
pub use slot::{InFlight, Slot, coarse_now};
pub use switches::{Cause, Outcome, Switches};

/// A mapped ledger, and the descriptor by which another process maps it. Cheap to clone; gone with the last clone.
#[derive(Clone)]
pub struct Ledger(Arc<Mapping>);

struct Mapping {
    start: NonNull<Layout>,
    fd: OwnedFd,
}

// SAFETY: everything in `Layout` is atomic, and the mapping lives as long as the `Mapping`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// Why a ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The memfd could not be made, sized or mapped.
    #[error("the shared mapping cannot be {action}: {source}")]
    Memory {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// It was made by another version of the program.
    #[error(
        "the shared mapping has layout {found} of {found_size} bytes, this program needs layout {VERSION} of {expected_size}: start daemon and server from the same build"
    )]
    Layout {
        /// Version found.
        found: u32,
        /// Size found, in bytes.
        found_size: u64,
        /// Size needed, in bytes.
        expected_size: u64,
    },
}

impl Ledger {
    /// Makes an empty ledger.
    ///
    /// # Errors
    /// When the kernel has no memory or descriptors left.
    pub fn create() -> Result<Self, LedgerError> {
        let memory = |action| move |error: rustix::io::Errno| LedgerError::Memory { action, source: error.into() };
        let fd =
            rustix::fs::memfd_create("lighthouse-ledger", rustix::fs::MemfdFlags::CLOEXEC).map_err(memory("made"))?;
        rustix::fs::ftruncate(&fd, size_of::<Layout>() as u64).map_err(memory("sized"))?;
        let ledger = Self::map(fd)?;
        ledger.initialise();
        Ok(ledger)
    }

    /// Maps a ledger that another process made.
    ///
    /// # Errors
    /// When it has another layout, or cannot be mapped.
    pub fn open(fd: OwnedFd) -> Result<Self, LedgerError> {
        let found_size = rustix::fs::fstat(&fd)
            .map_err(|error| LedgerError::Memory { action: "measured", source: error.into() })?
            .st_size as u64;
        let expected_size = size_of::<Layout>() as u64;
        if found_size != expected_size {
            return Err(LedgerError::Layout { found: 0, found_size, expected_size });
        }
        let ledger = Self::map(fd)?;
        match ledger.version() {
            VERSION => Ok(ledger),
            found => Err(LedgerError::Layout { found, found_size, expected_size }),
        }
    }

    fn map(fd: OwnedFd) -> Result<Self, LedgerError> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours; the file is as large as
        // `Layout` (made so, or checked by the caller) and only ever grows.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                size_of::<Layout>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &fd,
                0,
            )
        }
        .map_err(|error| LedgerError::Memory { action: "mapped", source: error.into() })?;
        let start = NonNull::new(start.cast())
            .ok_or(LedgerError::Memory { action: "mapped", source: io::ErrorKind::AddrNotAvailable.into() })?;
        Ok(Self(Arc::new(Mapping { start, fd })))
    }
}

impl AsFd for Ledger {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl std::ops::Deref for Ledger {
    type Target = Layout;

    fn deref(&self) -> &Layout {
        // SAFETY: mapped, page-aligned and of the right size for as long as `self` lives; all fields are atomic and any
        // bytes are a valid value of them.
        unsafe { self.0.start.as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made by `map`, and no reference into it is left.
        if let Err(error) = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), size_of::<Layout>()) } {
            tracing::warn!(%error, "the shared mapping could not be unmapped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Backend;

    fn descriptor(ledger: &Ledger) -> OwnedFd {
        ledger.as_fd().try_clone_to_owned().unwrap()
    }

    #[test]
    fn what_one_side_writes_the_other_reads() {
        let server = Ledger::create().unwrap();
        let daemon = Ledger::open(descriptor(&server)).unwrap();
        server.use_lanes(Backend::Fuse3, 4);
        server.lane(Backend::Fuse3, 2).count(Operation::Read, AnswerStatus::Ok, 20_000);
        server.lane(Backend::Fuse3, 3).count(Operation::Read, AnswerStatus::ClientError, 5);
        server.lane(Backend::Fuse3, 3).moved(Direction::Read, 512);
        let totals = daemon.totals(Backend::Fuse3);
        assert_eq!(totals.get(Operation::Read, AnswerStatus::Ok), 1);
        assert_eq!(totals.operations(), 2);
        assert_eq!(totals.bytes(Direction::Read), 512);
        assert_eq!(totals.durations(Operation::Read).nanoseconds, 20_005);
        assert_eq!(totals.durations(Operation::Read).buckets[..2], [1, 1]);
        assert_eq!(daemon.totals(Backend::Fuse2).operations(), 0);
    }

    #[test]
    fn what_no_handler_answers_is_an_error_of_the_backend() {
        let ledger = Ledger::create().unwrap();
        let clock = Clock::new();
        ledger.slot(0).enter(8, Operation::Write, 1, clock.ticks());
        ledger.count_abandoned(&ledger.in_flight()[0], true);
        ledger.count_refused(Backend::Fuse2, Operation::Write);
        ledger.count_ended_session(Backend::Fuse2);
        ledger.count_lost(Backend::Fuse2);
        let totals = ledger.totals(Backend::Fuse2);
        assert_eq!(totals.get(Operation::Write, AnswerStatus::BackendError), 2);
        assert_eq!(totals.get(Operation::Other, AnswerStatus::BackendError), 2);
        assert_eq!(totals.durations(Operation::Write).count(), 1, "only what had begun has lasted");
        assert_eq!((ledger.answered_for_hung(Backend::Fuse2), ledger.lost(Backend::Fuse2)), (1, 1));
    }

    #[test]
    fn errors_in_a_row_end_with_any_other_answer() {
        let ledger = Ledger::create().unwrap();
        let answer = |status| ledger.note_in_a_row(Backend::Fuse3, status);
        answer(AnswerStatus::BackendError);
        answer(AnswerStatus::BackendError);
        ledger.count_ended_session(Backend::Fuse3);
        answer(AnswerStatus::ClientError);
        answer(AnswerStatus::BackendError);
        assert_eq!(ledger.take_errors_in_a_row(Backend::Fuse3), 3, "the longest row since it was last asked");
        assert_eq!(ledger.take_errors_in_a_row(Backend::Fuse3), 1, "one is under way");
        answer(AnswerStatus::Ok);
        assert_eq!(ledger.take_errors_in_a_row(Backend::Fuse3), 0);
        assert_eq!(ledger.take_errors_in_a_row(Backend::Fuse2), 0);
    }

    #[test]
    fn the_next_server_goes_on_counting() {
        let ledger = Ledger::create().unwrap();
        ledger.set_server_pid(7);
        ledger.set_port_state(Backend::Fuse3, PortState::Attached);
        ledger.slot(5).enter(8, Operation::Read, 1, 0);
        ledger.use_lanes(Backend::Fuse3, 1);
        ledger.lane(Backend::Fuse3, 0).count(Operation::Read, AnswerStatus::Ok, 1);
        ledger.switches().done(Backend::Fuse2, Backend::Fuse3, Cause::Operator, 80_000);
        ledger.begin_anew();
        assert_eq!((ledger.server_pid(), ledger.active(), ledger.in_flight().len()), (0, None, 0));
        assert_eq!(ledger.totals(Backend::Fuse3).operations(), 1);
        assert_eq!(ledger.switches().get(Backend::Fuse2, Backend::Fuse3, Cause::Operator, Outcome::Done), 1);
        assert_eq!(ledger.switches().pauses().count(), 1);
    }

    #[test]
    fn the_prober_is_told_apart_by_its_process() {
        let ledger = Ledger::create().unwrap();
        ledger.note_probe(0, Backend::Fuse2);
        assert_eq!(ledger.probe_answered_by(), None, "nobody probes");
        ledger.set_prober(40);
        ledger.note_probe(41, Backend::Fuse2);
        assert_eq!(ledger.probe_answered_by(), None);
        ledger.note_probe(40, Backend::Fuse3);
        assert_eq!(ledger.probe_answered_by(), Some(Backend::Fuse3));
        ledger.forget_probe();
        assert_eq!(ledger.probe_answered_by(), None, "that was before");
    }

    #[test]
    fn another_layout_is_refused() {
        let ledger = Ledger::create().unwrap();
        ledger.set_version_for_test(VERSION + 1);
        assert!(
            matches!(Ledger::open(descriptor(&ledger)), Err(LedgerError::Layout { found, .. }) if found == VERSION + 1)
        );
        rustix::fs::ftruncate(&ledger, 4096).unwrap();
        assert!(matches!(Ledger::open(descriptor(&ledger)), Err(LedgerError::Layout { found_size: 4096, .. })));
    }
}
