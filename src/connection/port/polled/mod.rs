//! The port of a session that has one read loop and a task for each request, on a `current_thread` tokio runtime
//! (crate fuse3).
//!
//! tokio knows only an epoll set of ours, the file that `n` was when the session registered it. The set always holds the
//! socket, and the device while attached. Gate and set are changed on the runtime's thread, by a control future in its
//! `block_on`, which is not counted as a task.
//!
//! * *Attach*: `n` := device, *then* the device joins the set. The other order loses the wake-up: the loop may run in
//!   between, meet EAGAIN on the socket, and clear tokio's readiness.
//! * *Detach*: (a) in one poll, so that no task runs in between: device out of the set, gate closed, `n` := socket.
//!   (b) Two nudges, the second after the first was seen: then the loop has met EAGAIN on the socket and sleeps. Taking the
//!   device out of the set is not enough: tokio's readiness clears only on EAGAIN, so under load the loop would read on.
//!   Requests that were read already wait at the gate, at their handler's entry or, if it awaited, its end. From here
//!   another backend may be attached. (c) `n` := device again, not in the set and the loop asleep; gate open: replies of
//!   any size go to the device.
//! * *Drain*: in the poll that finds no task of a request alive, `n` := socket.
//! * *Deadline*: EIO for every request in a slot; a late handler finds its slot marked and returns a small error, which
//!   the forwarder carries into ENOENT.
//! * *The runtime's thread itself hangs in a handler*: see [`force_detach`](Port::force_detach).

mod free_slots;
mod obey;
mod timer;

use std::any::Any;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::epoll;
use tokio::sync::{
    Notify,
    mpsc::{UnboundedReceiver, UnboundedSender},
};

use super::super::{Connection, wire};
use super::{Drained, Lease, OnEnd, Order, Plug, Port, PortError, State, Unbegun, Wires};
use crate::config::Backend;
use crate::ledger::{AnswerStatus, Clock, Direction, Ledger, Operation, Slot};
use free_slots::FreeSlots;
pub use timer::pause;

/// A `writev(2)` of 1 MiB that had begun when the runtime's thread was found stuck must not meet the socket.
const GRACE: Duration = Duration::from_millis(20);
/// How long tasks that wait for a slot have to answer EIO after a deadline.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// Unread bytes in the socket above which late answers wait: it takes 278 small messages, then EAGAIN, which would end the
/// session.
const CROWDED: libc::c_int = 64 << 10;

nix::ioctl_read_bad!(unread_output, libc::TIOCOUTQ, libc::c_int);

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Gate {
    Open,
    Closed,
    /// After a deadline: tasks that have not begun end with EIO.
    Stale,
}

/// A request in its handler.
#[must_use = "a request that was entered must be finished"]
pub struct InTask {
    slot: usize,
    started: u64,
}

/// The request must not run: the port has given its session up.
#[derive(Debug)]
pub struct Refused;

enum Command {
    /// Prove that the read loop lives.
    Ping(mpsc::Sender<Result<(), PortError>>),
    /// Steps a to c, if the ticket can still be taken. Answers how many requests are in hand.
    Detach(Arc<Ticket>, mpsc::Sender<Result<usize, PortError>>),
    /// Wait for the tasks until then.
    Drain(Instant, mpsc::Sender<Result<Drained, PortError>>),
    /// Wait until then for all tasks; answers whether they have ended.
    Settle(Instant, mpsc::Sender<Result<bool, PortError>>),
    /// End when all handlers have come back.
    Retire,
}

/// Either the runtime takes an order or the control loop withdraws it.
#[derive(Default)]
struct Ticket(AtomicBool);

impl Ticket {
    fn take(&self) -> bool {
        !self.0.swap(true, SeqCst)
    }
}

/// See the module.
pub struct PolledPort {
    wires: Wires,
    /// What the session believes to be its device.
    set: OwnedFd,
    plug: OnceLock<Plug>,
    ledger: Ledger,
    clock: Clock,
    lease: Lease,
    /// Of counters. One that hangs and the fresh session beside it must not write the same.
    lane: usize,
    slot_freed: Notify,
    gate: AtomicU8,
    gate_opened: Notify,
    /// Set by a detach by force. Whoever re-points `n` or opens the gate at the end of a detach holds the lock.
    is_given_up: Mutex<bool>,
    nudges: AtomicU64,
    nudged: Notify,
    state: Mutex<State>,
    has_ended: AtomicBool,
    is_retired: AtomicBool,
    /// Tasks of the runtime that are no requests.
    baseline: AtomicUsize,
    in_hand: AtomicUsize,
    commands: UnboundedSender<Command>,
    inbox: Mutex<Option<UnboundedReceiver<Command>>>,
    on_end: OnEnd,
    keep: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl PolledPort {
    /// A parked port without a session.
    ///
    /// # Errors
    /// When the kernel has no descriptors left.
    pub fn new(
        connection: Arc<Connection>,
        ledger: Ledger,
        lease: Lease,
        on_end: OnEnd,
    ) -> Result<Arc<Self>, PortError> {
        let system = |source| PortError::System { what: "making the port of fuse3", source };
        let wires = Wires::new(connection, Backend::Fuse3).map_err(system)?;
        rustix::io::ioctl_fionbio(&wires.socket, true).map_err(|error| system(error.into()))?;
        let set = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|error| system(error.into()))?;
        let (commands, inbox) = tokio::sync::mpsc::unbounded_channel();
        let lane = lease.range().start / lease.range().len();
        ledger.use_lanes(Backend::Fuse3, lane + 1);
        let port = Self {
            lane,
            wires,
            set,
            plug: OnceLock::new(),
            ledger,
            clock: Clock::new(),
            lease,
            slot_freed: Notify::new(),
            gate: AtomicU8::new(Gate::Open as u8),
            gate_opened: Notify::new(),
            is_given_up: Mutex::new(false),
            nudges: AtomicU64::new(0),
            nudged: Notify::new(),
            state: Mutex::new(State::Parked),
            has_ended: AtomicBool::new(false),
            is_retired: AtomicBool::new(false),
            baseline: AtomicUsize::new(0),
            in_hand: AtomicUsize::new(0),
            commands,
            inbox: Mutex::new(Some(inbox)),
            on_end,
            keep: OnceLock::new(),
        };
        port.join_set(&port.wires.socket)?;
        Ok(Arc::new(port))
    }

    /// A descriptor of the set for the session to be given. It is inherited by children: close it soon.
    ///
    /// # Errors
    /// When no descriptors are left.
    pub fn inheritable_set(&self) -> io::Result<OwnedFd> {
        Ok(rustix::io::dup(&self.set)?)
    }

    /// Adopts the number of the descriptor that the session reads, before its first read, and parks it. `ours` are other
    /// descriptors of the set, as [`inheritable_set`](Self::inheritable_set) gives them.
    ///
    /// # Errors
    /// When the session has no descriptor of the set.
    pub fn adopt(&self, ours: &[RawFd]) -> Result<(), PortError> {
        let number = self.find_session_descriptor(ours).map_err(|source| PortError::System {
            what: "finding the session's descriptor in /proc/self/fdinfo",
            source,
        })?;
        let plug = Plug(number);
        plug.point_at(&self.wires.socket)?;
        if self.plug.set(plug).is_err() {
            return Err(PortError::System {
                what: "adopting a second session",
                source: io::ErrorKind::AlreadyExists.into(),
            });
        }
        Ok(())
    }

    /// The session's descriptor is the one besides ours that refers to our set: its `fdinfo` lists what is in the set
    /// with a number that we chose (`proc_pid_fdinfo(5)`). Unlike `kcmp(2)` that needs no privilege in containers.
    fn find_session_descriptor(&self, ours: &[RawFd]) -> io::Result<RawFd> {
        let mark = format!("{:x}", self.mark());
        for entry in std::fs::read_dir("/proc/self/fdinfo")? {
            let entry = entry?;
            let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if number == self.set.as_raw_fd() || ours.contains(&number) {
                continue;
            }
            // A descriptor that another thread has just closed is none of ours.
            let Ok(info) = std::fs::read_to_string(entry.path()) else { continue };
            let is_ours = info
                .lines()
                .filter(|line| line.starts_with("tfd:"))
                .any(|line| line.split_whitespace().skip_while(|word| *word != "data:").nth(1) == Some(mark.as_str()));
            if is_ours {
                return Ok(number);
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// Told apart from other ports' sets by the number of its socket.
    fn mark(&self) -> u64 {
        1 << 60 | u64::from(self.wires.socket.as_raw_fd() as u32)
    }

    fn join_set(&self, file: impl std::os::fd::AsFd) -> Result<(), PortError> {
        let data = epoll::EventData::new_u64(self.mark());
        match epoll::add(&self.set, file, data, epoll::EventFlags::IN) {
            // Attached already, as a draining port that is attached again may be.
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(error) => Err(PortError::System { what: "epoll_ctl(2) of the port", source: error.into() }),
        }
    }

    fn take_device_out(&self) {
        match epoll::delete(&self.set, self.wires.device()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => tracing::error!(%error, "the device could not be taken out of the port's set"),
        }
    }

    /// Tells a session that is waiting for FUSE_INIT what was agreed with the kernel. Blocks: not on the runtime's thread.
    ///
    /// # Errors
    /// When it does not answer within `limit`.
    pub fn introduce(&self, limit: Duration) -> Result<(), PortError> {
        self.wires.introduce(limit)
    }

    /// Keeps what keeps the session's descriptor open.
    pub fn keep(&self, what: Box<dyn Any + Send + Sync>) {
        // Set once, when the session is ready; a second value would only be dropped.
        drop(self.keep.set(what));
    }

    /// Called by the adapter first in every handler. Waits while the gate is closed or no slot is free.
    ///
    /// # Errors
    /// [`Refused`]: answer EIO and run nothing.
    #[inline]
    pub async fn enter(&self, unique: u64, operation: Operation, node: u64) -> Result<InTask, Refused> {
        let slot = if self.gate() == Gate::Open
            && let Some(slot) = FreeSlots::take()
        {
            slot
        } else {
            self.wait_to_enter().await.inspect_err(|_| self.ledger.count_refused(Backend::Fuse3, operation))?
        };
        let started = self.clock.ticks();
        self.ledger.slot(slot).enter(unique, operation, node, started);
        if Slot::was_sent_before(unique) {
            self.ledger.count_sent_again();
        }
        Ok(InTask { slot, started })
    }

    #[cold]
    async fn wait_to_enter(&self) -> Result<usize, Refused> {
        self.wait_at_gate().await?;
        match FreeSlots::take() {
            Some(slot) => Ok(slot),
            None => self.wait_for_slot().await,
        }
    }

    /// Called by the adapter last in every handler. `false`: the deadline has answered; take back what the answer would
    /// have handed out, and return a small error.
    #[inline]
    pub async fn finish(&self, task: InTask, operation: Operation, status: AnswerStatus) -> bool {
        if self.gate() == Gate::Closed {
            // An answer of any size must not meet the socket. A gate that went stale lets it go to find its slot marked.
            drop(self.wait_at_gate().await);
        }
        let wanted = self.ledger.slot(task.slot).leave();
        if FreeSlots::put_back(task.slot) {
            self.slot_freed.notify_one();
        }
        if wanted {
            self.count(&task, operation, status);
        } else {
            // Counted when it was abandoned.
            self.ledger.add_taken_back(Backend::Fuse3);
            self.wait_for_room().await;
        }
        wanted
    }

    /// Called by the adapter instead of [`finish`](Self::finish) for a request that nobody answers.
    pub fn leave_unanswered(&self, InTask { slot, .. }: InTask) {
        self.ledger.slot(slot).leave();
        if FreeSlots::put_back(slot) {
            self.slot_freed.notify_one();
        }
    }

    #[inline]
    fn count(&self, task: &InTask, operation: Operation, status: AnswerStatus) {
        if cfg!(lighthouse_unmeasured) {
            return;
        }
        let took = self.clock.nanoseconds(task.started, self.clock.ticks());
        self.ledger.lane(Backend::Fuse3, self.lane).count(operation, status, took);
        self.ledger.note_in_a_row(Backend::Fuse3, status);
    }

    /// Counts data that were read or written. Only on the runtime's thread.
    #[inline]
    pub fn moved(&self, direction: Direction, bytes: u64) {
        self.ledger.lane(Backend::Fuse3, self.lane).moved(direction, bytes);
    }

    /// Called by the adapter for a request of a kind that the prober sends: from that process?
    pub fn note_probe(&self, pid: u32) {
        self.ledger.note_probe(pid, Backend::Fuse3);
    }

    /// Called by the adapter for a FORGET of [`NUDGE_NODE`](super::NUDGE_NODE).
    pub fn nudged(&self) {
        self.nudges.fetch_add(1, SeqCst);
        self.nudged.notify_one();
    }

    fn gate(&self) -> Gate {
        match self.gate.load(Relaxed) {
            0 => Gate::Open,
            1 => Gate::Closed,
            _ => Gate::Stale,
        }
    }

    fn set_gate(&self, gate: Gate) {
        self.gate.store(gate as u8, SeqCst);
        if gate != Gate::Closed {
            self.gate_opened.notify_waiters();
            self.slot_freed.notify_waiters();
        }
    }

    #[cold]
    async fn wait_at_gate(&self) -> Result<(), Refused> {
        loop {
            // Made before the look: `notify_waiters` reaches it even before it is first polled.
            let opened = self.gate_opened.notified();
            match self.gate() {
                Gate::Open => return Ok(()),
                Gate::Stale => {
                    self.wait_for_room().await;
                    return Err(Refused);
                }
                Gate::Closed => opened.await,
            }
        }
    }

    #[cold]
    async fn wait_for_slot(&self) -> Result<usize, Refused> {
        loop {
            let freed = self.slot_freed.notified();
            if self.gate() == Gate::Stale {
                self.wait_for_room().await;
                return Err(Refused);
            }
            if let Some(slot) = FreeSlots::take() {
                return Ok(slot);
            }
            FreeSlots::count_waiting(1);
            freed.await;
            FreeSlots::count_waiting(-1);
        }
    }

    /// Lets a crowd of late answers out as the forwarder makes room. The check and the crate's write are in one poll.
    async fn wait_for_room(&self) {
        loop {
            let mut unread = 0;
            // SAFETY: TIOCOUTQ stores one int, and the pointer is to one.
            let known = unsafe { unread_output(self.wires.socket.as_raw_fd(), &raw mut unread) };
            if known.is_err() || unread < CROWDED {
                return;
            }
            pause(Duration::from_millis(1)).await;
        }
    }

    fn plug(&self) -> Result<Plug, PortError> {
        self.plug.get().copied().ok_or(PortError::Ended(Backend::Fuse3))
    }

    fn requests_alive(&self) -> usize {
        let alive = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        alive.saturating_sub(self.baseline.load(Relaxed))
    }

    /// Called on the runtime's thread when the session is ready, before any request was read.
    ///
    /// # Errors
    /// When the forwarder cannot be started.
    pub fn open_for_orders(&self) -> Result<(), PortError> {
        self.baseline.store(tokio::runtime::Handle::current().metrics().num_alive_tasks(), Relaxed);
        FreeSlots::set(self.lease.range().rev());
        self.wires.start_forwarder().map_err(|source| PortError::System { what: "starting the forwarder", source })
    }

    /// To be held by the runtime's thread: when that goes, whatever the reason, the session has ended.
    #[must_use]
    pub fn tell_when_gone(self: Arc<Self>) -> impl Drop {
        struct Gone(Arc<PolledPort>);
        impl Drop for Gone {
            fn drop(&mut self) {
                if !self.0.has_ended.load(SeqCst) {
                    self.0.session_ended();
                }
            }
        }
        Gone(self)
    }

    /// Whether the end of the session is no surprise: it was retired, or the kernel has ended the connection.
    #[must_use]
    pub fn is_to_end(&self) -> bool {
        self.is_retired.load(SeqCst) || self.wires.connection.is_gone()
    }

    /// The session's main task has ended, for whatever reason.
    fn session_ended(&self) {
        self.has_ended.store(true, SeqCst);
        self.baseline.store(self.baseline.load(Relaxed).saturating_sub(1), Relaxed);
        self.nudged.notify_one();
        if !self.is_retired.load(SeqCst) {
            *self.state.lock() = State::Ended;
            (self.on_end)();
        }
    }

    /// Marks every request in a slot and answers EIO for it: how many were marked, and for how many the kernel was waiting.
    fn answer_for_all(&self) -> (usize, usize) {
        let mut marked = 0;
        let mut answered = 0;
        for index in self.lease.range() {
            let slot = self.ledger.slot(index);
            let Some(request) = slot.read(Backend::Fuse3) else { continue };
            if slot.abandon(request.unique) {
                marked += 1;
                let is_answered = wire::answer_late(self.wires.device(), request.unique);
                answered += usize::from(is_answered);
                self.ledger.count_abandoned(&request, is_answered);
            }
        }
        (marked, answered)
    }

    /// Sends a command and waits for its answer.
    fn order_and_wait<T>(
        &self,
        command: impl FnOnce(mpsc::Sender<Result<T, PortError>>) -> Command,
        what: &'static str,
        limit: Duration,
    ) -> Result<T, PortError> {
        let (answer, answered) = mpsc::channel();
        self.commands.send(command(answer)).map_err(|_| PortError::Ended(Backend::Fuse3))?;
        match answered.recv_timeout(limit) {
            Ok(result) => result,
            Err(mpsc::RecvTimeoutError::Timeout) => Err(PortError::Silent { backend: Backend::Fuse3, what, limit }),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(PortError::Ended(Backend::Fuse3)),
        }
    }
}

impl Port for PolledPort {
    fn backend(&self) -> Backend {
        Backend::Fuse3
    }

    fn state(&self) -> State {
        *self.state.lock()
    }

    fn order(&self) -> Order {
        Order::DetachFirst
    }

    fn ping(&self, limit: Duration) -> Result<(), PortError> {
        match self.state() {
            State::Parked => self.order_and_wait(Command::Ping, "answer a nudge", limit),
            State::Ended => Err(PortError::Ended(Backend::Fuse3)),
            _ => Ok(()),
        }
    }

    fn attach(&self) -> Result<Instant, PortError> {
        let mut state = self.state.lock();
        if *state == State::Ended {
            return Err(PortError::Ended(Backend::Fuse3));
        }
        self.plug()?.point_at(self.wires.device())?;
        self.join_set(self.wires.device())?;
        *state = State::Attached;
        Ok(Instant::now())
    }

    fn detach(&self, limit: Duration) -> Result<(), PortError> {
        let ticket = Arc::new(Ticket::default());
        let (answer, answered) = mpsc::channel();
        let silent = || PortError::Silent { backend: Backend::Fuse3, what: "stop reading", limit };
        self.commands.send(Command::Detach(ticket.clone(), answer)).map_err(|_| PortError::Ended(Backend::Fuse3))?;
        let in_hand = match answered.recv_timeout(limit) {
            Ok(result) => result?,
            Err(_) if ticket.take() => return Err(silent()),
            // The runtime has taken the order just now: it lives.
            Err(_) => answered.recv_timeout(limit).map_err(|_| silent())??,
        };
        self.in_hand.store(in_hand, SeqCst);
        let mut state = self.state.lock();
        if *state == State::Attached {
            *state = State::Draining;
        }
        Ok(())
    }

    /// The runtime's thread hangs inside a handler. From outside, in this order:
    /// 1. gate closed, device out of the set: a thread that comes back now starts nothing and sends nothing large;
    /// 2. EIO for every request whose handler has begun;
    /// 3. a grace for a `writev(2)` that the thread began before that;
    /// 4. `n` := socket;
    /// 5. the kernel queues the rest again: read by the loop, never begun, in no slot;
    /// 6. gate stale: when the thread is back, those tasks end with EIO without running, and the kernel ignores it. Not
    ///    before 5, or the EIO would be taken for the answer.
    fn force_detach(&self, unbegun: Unbegun) -> Drained {
        let mut is_given_up = self.is_given_up.lock();
        *is_given_up = true;
        self.gate.store(Gate::Closed as u8, SeqCst);
        self.take_device_out();
        let (in_flight, answered_for_hung) = self.answer_for_all();
        std::thread::sleep(GRACE);
        if let Err(error) = self.plug().and_then(|plug| plug.point_at(&self.wires.socket)) {
            tracing::error!(%error, "fuse3 could not be parked by force");
        }
        // Not to be sent again: what was answered and is on its way.
        self.wires.wait_for_forwarder(GRACE);
        let late = self.answer_for_all();
        let (in_flight, answered_for_hung) = (in_flight + late.0, answered_for_hung + late.1);
        match unbegun {
            Unbegun::SendAgain => {
                self.ledger.blame(None);
                if let Err(error) = self.wires.connection.resend() {
                    tracing::warn!(%error, "requests that fuse3 has read and not begun wait until its thread comes back, and then get EIO");
                }
            }
            Unbegun::Leave => {
                tracing::warn!(
                    "requests that fuse3 has read and not begun wait until its thread comes back, and then get EIO"
                );
            }
        }
        self.set_gate(Gate::Stale);
        *self.state.lock() = State::Hung;
        Drained { in_flight, answered_for_hung }
    }

    fn has_free_reader(&self) -> bool {
        // Its one reader hangs in a handler only if it does not react, which the next detach shows.
        true
    }

    fn drain(&self, limit: Duration) -> Result<Drained, PortError> {
        if self.state() == State::Hung {
            return Ok(Drained::default());
        }
        let end = Instant::now() + limit;
        let drained = self.order_and_wait(|answer| Command::Drain(end, answer), "drain", limit + LAST_ANSWERS * 2)?;
        let mut state = self.state.lock();
        if *state == State::Draining {
            *state =
                if drained.answered_for_hung == 0 && self.gate() == Gate::Open { State::Parked } else { State::Hung };
        }
        Ok(drained)
    }

    fn has_settled(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        self.order_and_wait(|answer| Command::Settle(end, answer), "let its requests end", limit * 2).unwrap_or(false)
            && self.wires.wait_for_forwarder(limit)
    }

    fn retire(&self) {
        self.is_retired.store(true, SeqCst);
        // Gone already if it has ended and been told so.
        drop(self.commands.send(Command::Retire));
    }

    fn end_by_itself(&self) -> Result<(), PortError> {
        self.plug()?.point_at(&self.wires.socket)?;
        self.wires.destroy().map_err(|source| PortError::System { what: "FUSE_DESTROY to the session", source })
    }
}
