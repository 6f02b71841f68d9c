//! The shared mapping: what the daemon must know of a server all the time.
//!
//! One memfd of fixed layout, made by the daemon and mapped by both. The server writes it without locks; the daemon
//! reads it when asked, and can still read it after the server's death. Nothing here points anywhere: all is plain
//! numbers, so that another process, or the same program of a later version, can read it.
//!
//! Rules of writing: a [`Slot`] has one writer at a time (the thread or task that holds it), apart from the two marks
//! that the deadline sets by compare-and-swap; a [`Lane`] of counters has one writer at a time.

mod layout;
mod operation;
mod slot;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

pub use layout::{AnswerStatus, LANES, Lane, Layout, PortState, SLOTS, TASK_SLOTS, THREAD_SLOTS, Totals, VERSION};
pub use operation::Operation;
pub use slot::{InFlight, Slot, coarse_now};

/// A mapped ledger. Cheap to clone; unmapped with the last clone.
#[derive(Clone)]
pub struct Ledger(Arc<Mapping>);

struct Mapping {
    start: NonNull<Layout>,
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
    /// Makes an empty ledger and the descriptor by which another process maps it.
    ///
    /// # Errors
    /// When the kernel has no memory or descriptors left.
    pub fn create() -> Result<(Self, OwnedFd), LedgerError> {
        let memory = |action| move |error: rustix::io::Errno| LedgerError::Memory { action, source: error.into() };
        let fd =
            rustix::fs::memfd_create("lighthouse-ledger", rustix::fs::MemfdFlags::CLOEXEC).map_err(memory("made"))?;
        rustix::fs::ftruncate(&fd, size_of::<Layout>() as u64).map_err(memory("sized"))?;
        let ledger = Self::map(&fd)?;
        ledger.initialise();
        Ok((ledger, fd))
    }

    /// Maps a ledger that another process made.
    ///
    /// # Errors
    /// When it has another layout, or cannot be mapped.
    pub fn open(fd: impl AsFd) -> Result<Self, LedgerError> {
        let found_size = rustix::fs::fstat(&fd)
            .map_err(|error| LedgerError::Memory { action: "measured", source: error.into() })?
            .st_size as u64;
        let expected_size = size_of::<Layout>() as u64;
        if found_size != expected_size {
            return Err(LedgerError::Layout { found: 0, found_size, expected_size });
        }
        let ledger = Self::map(&fd)?;
        match ledger.version() {
            VERSION => Ok(ledger),
            found => Err(LedgerError::Layout { found, found_size, expected_size }),
        }
    }

    fn map(fd: impl AsFd) -> Result<Self, LedgerError> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours; the file is as large as
        // `Layout` (made so, or checked by the caller) and only ever grows.
        let start = unsafe {
            mmap(std::ptr::null_mut(), size_of::<Layout>(), ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd, 0)
        }
        .map_err(|error| LedgerError::Memory { action: "mapped", source: error.into() })?;
        let start = NonNull::new(start.cast())
            .ok_or(LedgerError::Memory { action: "mapped", source: io::ErrorKind::AddrNotAvailable.into() })?;
        Ok(Self(Arc::new(Mapping { start })))
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

    #[test]
    fn what_one_side_writes_the_other_reads() {
        let (server, fd) = Ledger::create().unwrap();
        let daemon = Ledger::open(&fd).unwrap();
        server.lane(Backend::Fuse3, 2).count(Operation::Read, AnswerStatus::Ok);
        server.lane(Backend::Fuse3, 3).count(Operation::Read, AnswerStatus::BackendError);
        let totals = daemon.totals(Backend::Fuse3);
        assert_eq!(totals.get(Operation::Read, AnswerStatus::Ok), 1);
        assert_eq!(totals.operations(), 2);
        assert_eq!(daemon.totals(Backend::Fuse2).operations(), 0);
    }

    #[test]
    fn another_layout_is_refused() {
        let (ledger, fd) = Ledger::create().unwrap();
        ledger.set_version_for_test(VERSION + 1);
        assert!(matches!(Ledger::open(&fd), Err(LedgerError::Layout { found, .. }) if found == VERSION + 1));
        rustix::fs::ftruncate(&fd, 4096).unwrap();
        assert!(matches!(Ledger::open(&fd), Err(LedgerError::Layout { found_size: 4096, .. })));
    }
}
