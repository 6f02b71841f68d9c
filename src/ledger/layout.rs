use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use super::answers::{AnswerStatus, Lane, Totals};
use super::comparisons::Comparisons;
use super::operation::Operation;
use super::slot::{InFlight, Slot};
use super::switches::Switches;
use crate::config::Backend;

/// Version of the layout. Raise it with any change of this file's structures.
pub const VERSION: u32 = 3;

/// Slots for threads of backend `fuse2`: each session takes as many as it has threads and frees them when they end.
pub const THREAD_SLOTS: usize = 128;
/// Slots for tasks of backend `fuse3`, one for each request in a handler; further requests wait for a free one.
pub const TASK_SLOTS: usize = 1024;
/// All slots; those for threads come first.
pub const SLOTS: usize = THREAD_SLOTS + TASK_SLOTS;
/// Lanes of counters a backend: one a thread slot for `fuse2`, one a session's runtime thread for `fuse3`.
pub const LANES: usize = THREAD_SLOTS;

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

#[repr(C, align(128))]
struct PerBackend {
    state: AtomicU32,
    /// Percent of the operations that it is to serve.
    weight: AtomicU32,
    /// Requests answered EIO at a deadline.
    answered_for_hung: AtomicU64,
    /// Late answers that were taken back.
    taken_back: AtomicU64,
    /// Requests that were read and never answered.
    lost: AtomicU64,
    /// Errors of the backend without another answer between them, up to now.
    errors_in_a_row: AtomicU32,
    /// The longest such row since the daemon has asked.
    longest_row: AtomicU32,
    /// Lanes that were ever used, the first ones: the rest is not even touched.
    lanes_used: AtomicU32,
    lanes: [Lane; LANES],
    /// For what no handler has answered; written by whoever does instead.
    forced: Lane,
}

impl PerBackend {
    /// Counts an error that no handler has answered.
    fn force(&self, operation: Operation, nanoseconds: Option<u64>) {
        self.forced.count_forced(operation, nanoseconds);
        self.one_more_in_a_row();
    }

    #[cold]
    fn one_more_in_a_row(&self) {
        let row = self.errors_in_a_row.fetch_add(1, Relaxed).saturating_add(1);
        self.longest_row.fetch_max(row, Relaxed);
    }
}

/// The whole mapping. Its fields are reached through methods, so that the rules of writing stay in one place.
#[repr(C, align(4096))]
pub struct Layout {
    version: AtomicU32,
    server_pid: AtomicU32,
    /// The server's last sign of life, in nanoseconds of `CLOCK_MONOTONIC_COARSE`.
    heartbeat: AtomicU64,
    /// Requests that the kernel has sent again.
    sent_again: AtomicU64,
    /// The backend that has lost them: its number plus one.
    blamed: AtomicU32,
    /// The process that asks through the mount how it is doing, 0 when none does.
    prober: AtomicU32,
    /// The backend that has answered it last: its number plus one.
    probe_answered_by: AtomicU32,
    switches: Switches,
    comparisons: Comparisons,
    backends: [PerBackend; 2],
    slots: [Slot; SLOTS],
}

/// From its number plus one, as fields have it that may be empty.
fn backend_by_number(number: u32) -> Option<Backend> {
    Backend::ALL.get(number.checked_sub(1)? as usize).copied()
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

    /// Makes it ready for another server of the same mount: nothing is in flight, nobody serves; what was counted stays. Only
    /// while no process writes it.
    pub fn begin_anew(&self) {
        for slot in &self.slots {
            slot.clear();
        }
        for backend in Backend::ALL {
            self.set_port_state(backend, PortState::Absent);
            self.set_weight(backend, 0);
        }
        self.set_server_pid(0);
        self.heartbeat.store(0, Relaxed);
        self.probe_answered_by.store(0, Relaxed);
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

    /// The backend that reads requests, if one does; of two that share them, the one that serves more.
    #[must_use]
    pub fn active(&self) -> Option<Backend> {
        let attached = Backend::ALL.into_iter().filter(|backend| self.port_state(*backend) == PortState::Attached);
        attached.max_by_key(|backend| self.weight(*backend))
    }

    /// Percent of the operations that a backend is to serve.
    #[must_use]
    pub fn weight(&self, backend: Backend) -> u32 {
        self.backends[backend.index()].weight.load(Relaxed)
    }

    /// Called by the server when it has changed that.
    pub fn set_weight(&self, backend: Backend, percent: u32) {
        self.backends[backend.index()].weight.store(percent, Relaxed);
    }

    /// Requests answered EIO at a deadline, of all servers that have used this ledger.
    #[must_use]
    pub fn answered_for_hung(&self, backend: Backend) -> u64 {
        self.backends[backend.index()].answered_for_hung.load(Relaxed)
    }

    /// Counts a request that was taken from its handler at a deadline, as an error of the backend that took so long.
    /// `was_answered`: somebody was still waiting for it.
    pub fn count_abandoned(&self, request: &InFlight, was_answered: bool) {
        let of = &self.backends[request.backend.index()];
        of.answered_for_hung.fetch_add(u64::from(was_answered), Relaxed);
        of.force(request.operation, Some(request.age().as_nanos() as u64));
    }

    /// Counts a request that got EIO before its handler began, because its session was given up.
    pub fn count_refused(&self, backend: Backend, operation: Operation) {
        self.backends[backend.index()].force(operation, None);
    }

    /// Counts a session that ended by itself, as an error of the backend.
    pub fn count_ended_session(&self, backend: Backend) {
        self.backends[backend.index()].force(Operation::Other, None);
    }

    /// Requests that were read and never answered, as far as they were found.
    #[must_use]
    pub fn lost(&self, backend: Backend) -> u64 {
        self.backends[backend.index()].lost.load(Relaxed)
    }

    /// Counts a lost request, as an error of the backend.
    pub fn count_lost(&self, backend: Backend) {
        let of = &self.backends[backend.index()];
        of.lost.fetch_add(1, Relaxed);
        of.force(Operation::Other, None);
    }

    /// Late answers that were taken back.
    #[must_use]
    pub fn taken_back(&self, backend: Backend) -> u64 {
        self.backends[backend.index()].taken_back.load(Relaxed)
    }

    /// Adds one to [`taken_back`](Self::taken_back).
    pub fn add_taken_back(&self, backend: Backend) {
        self.backends[backend.index()].taken_back.fetch_add(1, Relaxed);
    }

    /// Requests that came with the kernel's mark that they were sent again (FUSE_UNIQUE_RESEND in fuse.h).
    #[must_use]
    pub fn sent_again(&self) -> u64 {
        self.sent_again.load(Relaxed)
    }

    /// Says which backend has lost what the kernel is about to be asked to send again; `None`: nobody, it was only taken from
    /// a session before its handlers began.
    pub fn blame(&self, backend: Option<Backend>) {
        self.blamed.store(backend.map_or(0, |backend| backend as u32 + 1), Relaxed);
    }

    /// Counts a request that was sent again, and is lost by whoever is [blamed](Self::blame).
    #[cold]
    pub fn count_sent_again(&self) {
        self.sent_again.fetch_add(1, Relaxed);
        if let Some(backend) = backend_by_number(self.blamed.load(Relaxed)) {
            self.count_lost(backend);
        }
    }

    /// Called by the daemon when another process asks through the mount; 0 when none does.
    pub fn set_prober(&self, pid: u32) {
        self.prober.store(pid, Relaxed);
    }

    /// Called by an adapter for each request that a prober might have sent: GETATTR and STATFS. One load, unless it has.
    #[inline]
    pub fn note_probe(&self, pid: u32, backend: Backend) {
        if pid == self.prober.load(Relaxed) && pid != 0 {
            self.probe_answered_by.store(backend as u32 + 1, Relaxed);
        }
    }

    /// Called by the daemon before the prober asks anew.
    pub fn forget_probe(&self) {
        self.probe_answered_by.store(0, Relaxed);
    }

    /// The backend that has answered the prober last.
    #[must_use]
    pub fn probe_answered_by(&self) -> Option<Backend> {
        backend_by_number(self.probe_answered_by.load(Relaxed))
    }

    /// Called by an adapter for each answer. Nothing is written but by errors, and by the first answer after one.
    #[inline]
    pub fn note_in_a_row(&self, backend: Backend, status: AnswerStatus) {
        let of = &self.backends[backend.index()];
        if status == AnswerStatus::BackendError {
            of.one_more_in_a_row();
        } else if of.errors_in_a_row.load(Relaxed) != 0 {
            of.errors_in_a_row.store(0, Relaxed);
        }
    }

    /// The longest row of errors of a backend, without another answer of it between them, since this was last called.
    #[must_use]
    pub fn take_errors_in_a_row(&self, backend: Backend) -> u32 {
        let of = &self.backends[backend.index()];
        of.longest_row.swap(0, Relaxed).max(of.errors_in_a_row.load(Relaxed))
    }

    /// Requests whose answers were compared.
    #[must_use]
    pub fn comparisons(&self) -> &Comparisons {
        &self.comparisons
    }

    /// Changes of the backend.
    #[must_use]
    pub fn switches(&self) -> &Switches {
        &self.switches
    }

    /// To be called before lanes below `end` are written.
    pub fn use_lanes(&self, backend: Backend, end: usize) {
        self.backends[backend.index()].lanes_used.fetch_max(end as u32, Relaxed);
    }

    /// A lane of counters. `index` is taken modulo [`LANES`].
    #[must_use]
    pub fn lane(&self, backend: Backend, index: usize) -> &Lane {
        &self.backends[backend.index()].lanes[index % LANES]
    }

    /// Sums over all lanes.
    #[must_use]
    pub fn totals(&self, backend: Backend) -> Totals {
        Totals::of(self.used_lanes(backend))
    }

    /// All answers of a backend: less to read than [`totals`](Self::totals).
    #[must_use]
    pub fn operations(&self, backend: Backend) -> u64 {
        self.used_lanes(backend).map(Lane::operations).sum()
    }

    fn used_lanes(&self, backend: Backend) -> impl Iterator<Item = &Lane> {
        let of = &self.backends[backend.index()];
        let used = of.lanes_used.load(Relaxed) as usize;
        of.lanes.iter().take(used).chain([&of.forced])
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
