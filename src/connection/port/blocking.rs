//! The port of a session whose threads each block in `read(n)` and handle what they have read (crate fuser).
//!
//! * *Attach*: `n` := device, then a signal makes the threads leave `read(socket)`; the next read finds the device.
//! * *Detach*: `n` := socket, then a signal makes them leave `read(device)`. The signal's handler does nothing, and has
//!   SA_RESTART: the read starts afresh, and looks its descriptor up again. One signal is enough: it comes after the
//!   `dup3(2)`, so a read that starts after it finds the socket.
//! * *Muster*: as many nudges as there are threads, each carrying the muster's number; whoever takes one waits until all
//!   others were seen: at a nudge too, or holding a request. Since a thread can take only one, this proves that none is
//!   still inside `read(device)`, and finds every request that is in hand, exactly. The first muster tells who the threads
//!   are. Nudges that nobody took are known by their old number later.
//! * *Requests in hand* when `n` is re-pointed are answered late: small replies go into the socket, and the forwarder
//!   carries them to the device. Larger ones than a socket message take the permit: while it is held `n` stays where it
//!   is; the crate sends them if that is the device, and otherwise the adapter writes them there itself.
//! * *Deadline*: the slot is marked by compare-and-swap, EIO is written, and the late answer is swallowed.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};
use rustix::thread::Pid;

use super::super::{Connection, wire};
use super::{Drained, Lease, OnEnd, Order, Plug, Port, PortError, State, Unbegun, Wires};
use crate::config::Backend;
use crate::ledger::{AnswerStatus, Clock, Direction, Ledger, Operation, Slot};

/// Replies up to this size may race with the re-pointing: a SEQPACKET socket takes them with the kernel's default limits.
/// Larger ones take the permit.
pub const SMALL_REPLY: usize = 64 << 10;

/// How often a muster and a drain look at the slots, which nobody can wait for without a system call on the request path.
const GLANCE: Duration = Duration::from_micros(100);

/// An answer that a handler had begun to write at the deadline is only a `writev(2)` away.
const LAST_ANSWER: Duration = Duration::from_secs(1);

thread_local! {
    static SLOT: Cell<usize> = const { Cell::new(usize::MAX) };
    static READER: RefCell<Option<Enlisted>> = const { RefCell::new(None) };
}

/// Told when its thread ends.
struct Enlisted {
    port: Arc<BlockingPort>,
    slot: usize,
}

impl Drop for Enlisted {
    fn drop(&mut self) {
        self.port.reader_ended(self.slot);
    }
}

struct Reader {
    slot: usize,
    thread: Pid,
    has_ended: bool,
}

#[derive(Default)]
struct Muster {
    number: u64,
    is_open: bool,
    readers: Vec<Reader>,
    present: Vec<usize>,
}

/// See the module.
pub struct BlockingPort {
    wires: Wires,
    plug: Plug,
    ledger: Ledger,
    clock: Clock,
    lease: Lease,
    state: Mutex<State>,
    /// Whether `n` is the device. The shared side is the permit of a large reply.
    attached: RwLock<bool>,
    muster: Mutex<Muster>,
    /// Somebody came to the muster, or a thread has ended.
    came: Condvar,
    /// The muster is over.
    dismissed: Condvar,
    is_retired: AtomicBool,
    on_end: OnEnd,
    keep: OnceLock<Box<dyn Any + Send + Sync>>,
}

/// How a large reply goes out.
pub enum LargeReply<'a> {
    /// By the crate; nothing is re-pointed while the permit is held.
    ByCrate(RwLockReadGuard<'a, bool>),
    /// By [`BlockingPort::answer`]; the crate's reply object is spent on an error, which the kernel ignores.
    ByUs,
}

/// A request in its handler. It leaves its slot when dropped, which must be after the reply call.
pub struct InHandler<'a> {
    port: &'a BlockingPort,
    slot: &'a Slot,
    index: usize,
    started: u64,
}

impl InHandler<'_> {
    /// Claims the answer. `false`: the deadline has answered, and what the answer would hand out is to be taken back.
    #[must_use]
    pub fn claim(&self) -> bool {
        self.slot.claim()
    }

    /// Counts an answer that was taken back.
    pub fn taken_back(&self) {
        self.port.ledger.add_taken_back(Backend::Fuse2);
    }

    /// Counts the answer, and how long its handler took.
    #[inline]
    pub fn count(&self, operation: Operation, status: AnswerStatus) {
        if cfg!(lighthouse_unmeasured) {
            return;
        }
        let BlockingPort { ledger, clock, .. } = self.port;
        let took = clock.nanoseconds(self.started, clock.ticks());
        ledger.lane(Backend::Fuse2, self.index).count(operation, status, took);
        ledger.note_in_a_row(Backend::Fuse2, status);
    }

    /// Counts data that were read or written.
    #[inline]
    pub fn moved(&self, direction: Direction, bytes: u64) {
        self.port.ledger.lane(Backend::Fuse2, self.index).moved(direction, bytes);
    }
}

impl Drop for InHandler<'_> {
    fn drop(&mut self) {
        self.slot.leave();
    }
}

impl BlockingPort {
    /// A parked port and the descriptor that its session is to read. Sessions own that descriptor, so the port must be
    /// given something by [`keep`](Self::keep) that keeps it open.
    ///
    /// # Errors
    /// When the kernel has no descriptors left, or refuses the signal.
    pub fn new(
        connection: Arc<Connection>,
        ledger: Ledger,
        lease: Lease,
        on_end: OnEnd,
    ) -> Result<(Arc<Self>, OwnedFd), PortError> {
        use std::os::fd::AsRawFd;
        let system = |source| PortError::System { what: "making the port of fuse2", source };
        install_wake_signal()?;
        let wires = Wires::new(connection, Backend::Fuse2).map_err(system)?;
        let theirs = wires.socket.try_clone().map_err(system)?;
        ledger.use_lanes(Backend::Fuse2, lease.range().end);
        let port = Self {
            plug: Plug(theirs.as_raw_fd()),
            wires,
            ledger,
            clock: Clock::new(),
            lease,
            state: Mutex::new(State::Parked),
            attached: RwLock::new(false),
            muster: Mutex::default(),
            came: Condvar::new(),
            dismissed: Condvar::new(),
            is_retired: AtomicBool::new(false),
            on_end,
            keep: OnceLock::new(),
        };
        Ok((Arc::new(port), theirs))
    }

    /// Tells a session that is waiting for FUSE_INIT what was agreed with the kernel.
    ///
    /// # Errors
    /// When it does not answer within `limit`.
    pub fn introduce(&self, limit: Duration) -> Result<(), PortError> {
        self.wires.introduce(limit)
    }

    /// Keeps what keeps the session's descriptor open.
    pub fn keep(&self, what: Box<dyn Any + Send + Sync>) {
        // Set once, by whoever starts the session; a second value would only be dropped.
        drop(self.keep.set(what));
    }

    /// The first muster: waits until all threads of the session are known, and starts the forwarder.
    ///
    /// # Errors
    /// When not all come within `limit`.
    pub fn enlist(&self, limit: Duration) -> Result<(), PortError> {
        let threads = self.lease.range().len();
        let (held, missing) = self.hold_muster(threads, limit)?;
        let known = self.muster.lock().readers.len();
        if known < threads || missing > 0 || !held.is_empty() {
            return Err(self.silent("start all its threads", limit));
        }
        self.wires.start_forwarder().map_err(|source| PortError::System { what: "starting the forwarder", source })
    }

    /// Called by the adapter first in every handler.
    #[inline]
    pub fn enter(&self, unique: u64, operation: Operation, node: u64) -> InHandler<'_> {
        let index = SLOT.get();
        debug_assert!(self.lease.range().contains(&index), "every thread is enlisted before it can read a request");
        let slot = self.ledger.slot(index);
        let started = self.clock.ticks();
        slot.enter(unique, operation, node, started);
        if Slot::was_sent_before(unique) {
            self.ledger.count_sent_again();
        }
        InHandler { port: self, slot, index, started }
    }

    /// Called by the adapter for a request of a kind that the prober sends: from that process?
    pub fn note_probe(&self, pid: u32) {
        self.ledger.note_probe(pid, Backend::Fuse2);
    }

    /// Called by the adapter for a FORGET of [`NUDGE_NODE`](super::NUDGE_NODE).
    pub fn nudged(self: &Arc<Self>, number: u64) {
        let mut muster = self.muster.lock();
        if SLOT.get() == usize::MAX {
            let index = self.lease.range().start + muster.readers.len();
            if !self.lease.range().contains(&index) {
                return;
            }
            SLOT.set(index);
            READER.set(Some(Enlisted { port: self.clone(), slot: index }));
            muster.readers.push(Reader { slot: index, thread: rustix::thread::gettid(), has_ended: false });
        }
        if !muster.is_open || muster.number != number {
            return;
        }
        muster.present.push(SLOT.get());
        self.came.notify_one();
        self.dismissed.wait_while(&mut muster, |muster| muster.is_open && muster.number == number);
    }

    /// How a reply of more than [`SMALL_REPLY`] bytes goes out now.
    pub fn large_reply(&self) -> LargeReply<'_> {
        let permit = self.attached.read();
        if *permit { LargeReply::ByCrate(permit) } else { LargeReply::ByUs }
    }

    /// Writes an answer to the device.
    pub fn answer(&self, unique: u64, data: &[u8]) {
        match wire::answer(self.wires.device(), unique, None, data) {
            Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {
                tracing::warn!(unique, %error, length = data.len(), "a large reply could not be written");
            }
            _ => {}
        }
    }

    fn silent(&self, what: &'static str, limit: Duration) -> PortError {
        PortError::Silent { backend: Backend::Fuse2, what, limit }
    }

    /// Whether the end of the session is no surprise: it was retired, or the kernel has ended the connection.
    #[must_use]
    pub fn is_to_end(&self) -> bool {
        self.is_retired.load(SeqCst) || self.wires.connection.is_gone()
    }

    fn reader_ended(&self, slot: usize) {
        let mut muster = self.muster.lock();
        for reader in muster.readers.iter_mut().filter(|reader| reader.slot == slot) {
            reader.has_ended = true;
        }
        drop(muster);
        self.came.notify_one();
        if self.is_retired.load(SeqCst) {
            return;
        }
        // A session ends once, however many threads it has.
        if std::mem::replace(&mut *self.state.lock(), State::Ended) == State::Ended {
            return;
        }
        // One thread may have ended alone; the others must not go on reading beside whoever takes over.
        if let Err(error) = self.point_at_socket() {
            tracing::error!(%error, "a session that has ended could not be detached");
        }
        self.readers_to_wake().for_each(wake);
        (self.on_end)();
    }

    /// Collects the threads. Returns the requests that some of them hold, and how many neither came nor hold any.
    fn hold_muster(&self, expected: usize, limit: Duration) -> Result<(Vec<(usize, u64)>, usize), PortError> {
        let end = Instant::now() + limit;
        let mut muster = self.muster.lock();
        muster.number += 1;
        muster.is_open = true;
        muster.present.clear();
        for _ in 0..expected {
            if let Err(source) = self.wires.nudge(muster.number) {
                muster.is_open = false;
                self.dismissed.notify_all();
                return Err(PortError::System { what: "a nudge to the session", source });
            }
        }
        let (held, missing) = loop {
            let mut held = Vec::new();
            let mut missing = expected.saturating_sub(muster.readers.len());
            for reader in muster.readers.iter().filter(|reader| !reader.has_ended) {
                if muster.present.contains(&reader.slot) {
                    continue;
                }
                match self.ledger.slot(reader.slot).current() {
                    Some(unique) => held.push((reader.slot, unique)),
                    None => missing += 1,
                }
            }
            if missing == 0 || Instant::now() >= end {
                break (held, missing);
            }
            // Not only until somebody comes: a thread that enters a handler says nothing.
            self.came.wait_for(&mut muster, GLANCE);
        };
        muster.is_open = false;
        self.dismissed.notify_all();
        Ok((held, missing))
    }

    fn point_at_socket(&self) -> Result<(), PortError> {
        let mut attached = self.attached.write();
        self.plug.point_at(&self.wires.socket)?;
        *attached = false;
        Ok(())
    }

    /// Threads that must be made to look their descriptor up again. One in a handler will by itself.
    fn readers_to_wake(&self) -> impl Iterator<Item = Pid> {
        let is_idle = |reader: &&Reader| !reader.has_ended && self.ledger.slot(reader.slot).current().is_none();
        let idle: Vec<_> = self.muster.lock().readers.iter().filter(is_idle).map(|reader| reader.thread).collect();
        idle.into_iter()
    }

    fn has_readers(&self) -> bool {
        let is_free = |reader: &Reader| !reader.has_ended && !self.ledger.slot(reader.slot).is_abandoned();
        self.muster.lock().readers.iter().any(is_free)
    }
}

impl Port for BlockingPort {
    fn backend(&self) -> Backend {
        Backend::Fuse2
    }

    fn state(&self) -> State {
        *self.state.lock()
    }

    fn order(&self) -> Order {
        Order::NextFirst
    }

    fn ping(&self, limit: Duration) -> Result<(), PortError> {
        match self.state() {
            State::Parked => {}
            State::Ended => return Err(PortError::Ended(Backend::Fuse2)),
            _ => return Ok(()),
        }
        let (held, missing) = self.hold_muster(self.lease.range().len(), limit)?;
        if held.is_empty() && missing == 0 { Ok(()) } else { Err(self.silent("come to a muster", limit)) }
    }

    fn attach(&self) -> Result<Instant, PortError> {
        let mut state = self.state.lock();
        if *state == State::Ended || !self.has_readers() {
            return Err(PortError::Ended(Backend::Fuse2));
        }
        let mut attached = self.attached.write();
        self.plug.point_at(self.wires.device())?;
        *attached = true;
        drop(attached);
        *state = State::Attached;
        // One reader is enough for the first request; waking all of them takes their number of context switches.
        let mut readers = self.readers_to_wake();
        readers.by_ref().take(1).for_each(wake);
        let since = Instant::now();
        readers.for_each(wake);
        Ok(since)
    }

    fn detach(&self, _limit: Duration) -> Result<(), PortError> {
        self.point_at_socket()?;
        let mut state = self.state.lock();
        if *state == State::Attached {
            *state = State::Draining;
        }
        drop(state);
        self.readers_to_wake().for_each(wake);
        Ok(())
    }

    fn force_detach(&self, _unbegun: Unbegun) -> Drained {
        // Its detach never waits for the session, so there is nothing to force.
        if let Err(error) = self.detach(Duration::ZERO) {
            tracing::error!(%error, "fuse2 could not be detached");
        }
        Drained::default()
    }

    fn has_free_reader(&self) -> bool {
        self.readers_to_wake().next().is_some()
    }

    fn drain(&self, limit: Duration) -> Result<Drained, PortError> {
        let end = Instant::now() + limit;
        let (held, missing) = self.hold_muster(self.lease.range().len(), limit)?;
        let in_flight = held.len();
        let is_held = |(slot, unique): &(usize, u64)| self.ledger.slot(*slot).current() == Some(*unique);
        let wait_for = |mut left: Vec<(usize, u64)>, end: Instant| {
            left.retain(is_held);
            while !left.is_empty() && Instant::now() < end {
                std::thread::sleep(GLANCE);
                left.retain(is_held);
            }
            left
        };
        let late = wait_for(held, end);
        let mut abandoned = 0;
        let mut answered = 0;
        let mut answering = Vec::new();
        for (index, unique) in late {
            let slot = self.ledger.slot(index);
            let request = slot.read(Backend::Fuse2);
            if !slot.abandon(unique) {
                answering.push((index, unique));
                continue;
            }
            abandoned += 1;
            let is_answered = wire::answer_late(self.wires.device(), unique);
            answered += usize::from(is_answered);
            if let Some(request) = request {
                self.ledger.count_abandoned(&request, is_answered);
            }
        }
        let stuck = wait_for(answering, Instant::now() + LAST_ANSWER).len();
        self.wires.wait_for_forwarder(LAST_ANSWER);

        let mut state = self.state.lock();
        if *state == State::Draining {
            *state = if abandoned == 0 && stuck + missing == 0 { State::Parked } else { State::Hung };
        }
        drop(state);
        if missing > 0 {
            return Err(self.silent("stop reading", limit));
        }
        Ok(Drained { in_flight, answered_for_hung: answered })
    }

    fn has_settled(&self, limit: Duration) -> bool {
        self.hold_muster(self.lease.range().len(), limit).is_ok_and(|(held, missing)| held.is_empty() && missing == 0)
            && self.wires.wait_for_forwarder(limit)
    }

    fn retire(&self) {
        self.is_retired.store(true, SeqCst);
        for _ in self.lease.range() {
            if let Err(error) = self.wires.destroy() {
                tracing::warn!(%error, "a retired session of fuse2 could not be told to end");
                return;
            }
        }
    }

    fn end_by_itself(&self) -> Result<(), PortError> {
        self.point_at_socket()?;
        for _ in self.lease.range() {
            self.wires.destroy().map_err(|source| PortError::System { what: "FUSE_DESTROY to the session", source })?;
        }
        self.readers_to_wake().for_each(wake);
        Ok(())
    }
}

/// A realtime signal, which no library of ours uses; the first ones after `SIGRTMIN` are often taken by programs.
fn wake_signal() -> libc::c_int {
    libc::SIGRTMIN() + 5
}

extern "C" fn wake_handler(_signal: libc::c_int) {}

/// Installs the handler that makes a blocking `read(2)` start afresh, and lets the signal through to this thread and those
/// that it starts.
fn install_wake_signal() -> Result<(), PortError> {
    let check = |result: libc::c_int| match result {
        0 => Ok(()),
        _ => Err(PortError::System { what: "installing the wake signal", source: std::io::Error::last_os_error() }),
    };
    // SAFETY: an all-zero sigaction is a valid value: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = wake_handler as *const () as usize;
    // A restarted read(2) looks its descriptor up again, which is all that is wanted, and an answer that waits for room in
    // the socket is not cut off.
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler is a function that does nothing, and so is async-signal-safe.
    check(unsafe { libc::sigaction(wake_signal(), &raw const action, std::ptr::null_mut()) })?;
    let mut signals = action.sa_mask;
    // SAFETY: the set is valid and ours, and the number is a signal's.
    check(unsafe { libc::sigaddset(&raw mut signals, wake_signal()) })?;
    // SAFETY: changes the mask of this thread only; the set is valid.
    check(unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const signals, std::ptr::null_mut()) })
}

fn wake(thread: Pid) {
    let (process, thread) = (rustix::process::getpid().as_raw_nonzero().get(), thread.as_raw_nonzero().get());
    // SAFETY: sends a signal whose handler does nothing to a thread of this process. One that has just ended gives ESRCH.
    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, wake_signal()) };
}
