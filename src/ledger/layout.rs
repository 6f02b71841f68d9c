use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use super::operation::Operation;
use crate::config::Backend;

use super::slot::{InFlight, Slot};

/// Version of the layout. Raise it with any change of this file's structures.
pub const VERSION: u32 = 1;

/// Slots for threads of backend `fuse2`: each session takes as many as it has threads and frees them when they end.
pub const THREAD_SLOTS: usize = 128;
/// Slots for tasks of backend `fuse3`, one for each request in a handler; further requests wait for a free one.
pub const TASK_SLOTS: usize = 1024;
/// All slots; those for threads come first.
pub const SLOTS: usize = THREAD_SLOTS + TASK_SLOTS;
/// Lanes of counters a backend: one a thread slot for `fuse2`, one a session's runtime thread for `fuse3`.
pub const LANES: usize = THREAD_SLOTS;

const OPERATIONS: usize = Operation::ALL.len();
const STATUSES: usize = 3;

/// How a request was answered, from the guard's point of view.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AnswerStatus {
    /// Done.
    Ok,
    /// The source or POSIX says no: ENOENT, EACCES, ENOSPC …
    ClientError,
    /// The backend failed: a caught panic, an answer at the deadline, ENOSYS.
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

/// What a port is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortState {
    /// No session.
    Absent,
    /// Its session waits and costs nothing.
    Parked,
    /// It reads requests from the kernel.
    Attached,
    /// It reads no more and still answers what it holds.
    Draining,
    /// Requests of it were answered at the deadline and their handlers have not come back; a fresh session replaces it.
    Hung,
    /// Its session ended by itself; a fresh session replaces it.
    Ended,
}

impl PortState {
    const ALL: [Self; 6] = [Self::Absent, Self::Parked, Self::Attached, Self::Draining, Self::Hung, Self::Ended];

    /// The name in `status`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Parked => "parked",
            Self::Attached => "attached",
            Self::Draining => "draining",
            Self::Hung => "hung",
            Self::Ended => "ended",
        }
    }

    fn from_number(number: u32) -> Self {
        Self::ALL.get(number as usize).copied().unwrap_or(Self::Absent)
    }
}

/// Counters with one writer.
#[repr(C, align(128))]
pub struct Lane {
    counts: [[AtomicU64; STATUSES]; OPERATIONS],
}

impl Lane {
    /// Counts one answer. Only the lane's own thread calls this, so a load and a store will do: no locked instruction.
    #[inline]
    pub fn count(&self, operation: Operation, status: AnswerStatus) {
        let cell = &self.counts[operation as usize][status as usize];
        cell.store(cell.load(Relaxed).wrapping_add(1), Relaxed);
    }
}

#[repr(C, align(128))]
struct PerBackend {
    state: AtomicU32,
    _reserved: AtomicU32,
    /// Requests answered EIO at a deadline, since the start.
    answered_for_hung: AtomicU64,
    /// Late answers that were taken back, since the start.
    taken_back: AtomicU64,
    lanes: [Lane; LANES],
}

/// The whole mapping. Its fields are reached through methods, so that the rules of writing stay in one place.
#[repr(C, align(4096))]
pub struct Layout {
    version: AtomicU32,
    server_pid: AtomicU32,
    /// The server's last sign of life, in nanoseconds of `CLOCK_MONOTONIC_COARSE`.
    heartbeat: AtomicU64,
    backends: [PerBackend; 2],
    slots: [Slot; SLOTS],
}

/// Sums over the lanes of one backend at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Totals([[u64; STATUSES]; OPERATIONS]);

impl Totals {
    /// Answers to `operation` with `status`.
    #[must_use]
    pub fn get(&self, operation: Operation, status: AnswerStatus) -> u64 {
        self.0[operation as usize][status as usize]
    }

    /// All answers.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.0.iter().flatten().sum()
    }

    /// All answers with `status`.
    #[must_use]
    pub fn with_status(&self, status: AnswerStatus) -> u64 {
        self.0.iter().map(|counts| counts[status as usize]).sum()
    }
}

impl Layout {
    pub(super) fn initialise(&self) {
        self.version.store(VERSION, Release);
    }

    pub(super) fn version(&self) -> u32 {
        self.version.load(Acquire)
    }

    #[cfg(test)]
    pub(super) fn set_version_for_test(&self, version: u32) {
        self.version.store(version, Release);
    }

    /// Pid of the serving process, 0 before it has started.
    #[must_use]
    pub fn server_pid(&self) -> u32 {
        self.server_pid.load(Acquire)
    }

    /// Called once by the serving process.
    pub fn set_server_pid(&self, pid: u32) {
        self.server_pid.store(pid, Release);
    }

    /// Last sign of life of the server's control loop, on the clock of [`coarse_now`](super::coarse_now) in nanoseconds.
    #[must_use]
    pub fn heartbeat(&self) -> u64 {
        self.heartbeat.load(Relaxed)
    }

    /// Called by the server's control loop.
    pub fn beat(&self, now: u64) {
        self.heartbeat.store(now, Relaxed);
    }

    /// State of a backend's port.
    #[must_use]
    pub fn port_state(&self, backend: Backend) -> PortState {
        PortState::from_number(self.backends[backend.index()].state.load(Acquire))
    }

    /// Called by the server when it has changed a port.
    pub fn set_port_state(&self, backend: Backend, state: PortState) {
        self.backends[backend.index()].state.store(state as u32, Release);
    }

    /// The backend that reads requests now, if one does.
    #[must_use]
    pub fn active(&self) -> Option<Backend> {
        Backend::ALL.into_iter().find(|backend| self.port_state(*backend) == PortState::Attached)
    }

    /// Requests answered EIO at a deadline, since the start.
    #[must_use]
    pub fn answered_for_hung(&self, backend: Backend) -> u64 {
        self.backends[backend.index()].answered_for_hung.load(Relaxed)
    }

    /// Adds to [`answered_for_hung`](Self::answered_for_hung).
    pub fn add_answered_for_hung(&self, backend: Backend, count: u64) {
        self.backends[backend.index()].answered_for_hung.fetch_add(count, Relaxed);
    }

    /// Late answers that were taken back, since the start.
    #[must_use]
    pub fn taken_back(&self, backend: Backend) -> u64 {
        self.backends[backend.index()].taken_back.load(Relaxed)
    }

    /// Adds one to [`taken_back`](Self::taken_back).
    pub fn add_taken_back(&self, backend: Backend) {
        self.backends[backend.index()].taken_back.fetch_add(1, Relaxed);
    }

    /// A lane of counters. `index` is taken modulo [`LANES`].
    #[must_use]
    pub fn lane(&self, backend: Backend, index: usize) -> &Lane {
        &self.backends[backend.index()].lanes[index % LANES]
    }

    /// Sums over all lanes.
    #[must_use]
    pub fn totals(&self, backend: Backend) -> Totals {
        let mut sums = [[0; STATUSES]; OPERATIONS];
        for lane in &self.backends[backend.index()].lanes {
            for (sum, count) in sums.iter_mut().flatten().zip(lane.counts.iter().flatten()) {
                *sum += count.load(Relaxed);
            }
        }
        Totals(sums)
    }

    /// A slot by its number.
    #[must_use]
    pub fn slot(&self, index: usize) -> &Slot {
        &self.slots[index]
    }

    /// Requests in a handler now, of both backends.
    #[must_use]
    pub fn in_flight(&self) -> Vec<InFlight> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(index, slot)| slot.read(if index < THREAD_SLOTS { Backend::Fuse2 } else { Backend::Fuse3 }))
            .collect()
    }
}
