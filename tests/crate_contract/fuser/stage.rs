//! A session of crate fuser, with a test for a kernel, and readers that meet.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, UNIX_EPOCH};

use fuser::{
    Config, FileAttr, FileHandle, FileType, Filesystem, INodeNo, KernelConfig, LockOwner, Notifier, OpenFlags,
    ReplyAttr, ReplyData, ReplyWrite, Request, Session, SessionACL, WriteFlags,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::{Condvar, Mutex};
use rustix::thread::Pid;

use crate::{Answer, GLANCE, Habit, Kernel, LIMIT, pair};

/// Nodes whose GETATTR fails, or panics.
pub const FAIL: INodeNo = INodeNo(2);
pub const PANIC: INodeNo = INodeNo(3);

pub const fn habit(habit: &'static str, leans: &'static str, remedy: &'static str) -> Habit {
    Habit { of: "fuser", habit, leans, remedy }
}

/// A request in the hands of a reader.
pub enum Held {
    Forget,
    GetAttr(INodeNo, ReplyAttr),
    Read(u32, ReplyData),
    Write(ReplyWrite),
}

pub type Handler = Arc<dyn Fn(Held) + Send + Sync>;

pub struct Fs {
    initialised: Arc<AtomicBool>,
    handler: Handler,
}

impl Filesystem for Fs {
    fn init(&mut self, _: &Request, _: &mut KernelConfig) -> io::Result<()> {
        self.initialised.store(true, SeqCst);
        Ok(())
    }
    fn forget(&self, _: &Request, _: INodeNo, _: u64) {
        (self.handler)(Held::Forget);
    }
    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        (self.handler)(Held::GetAttr(node, reply));
    }
    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        (self.handler)(Held::Read(size, reply));
    }
    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        (self.handler)(Held::Write(reply));
    }
}

/// Answers as a file system would.
pub fn serve(held: Held) {
    match held {
        Held::Forget => {}
        Held::GetAttr(node, reply) => reply.attr(&Duration::ZERO, &attr(node)),
        Held::Read(size, reply) => reply.data(&vec![7; size as usize]),
        Held::Write(reply) => reply.written(0),
    }
}

pub fn attr(ino: INodeNo) -> FileAttr {
    FileAttr {
        ino,
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0o644,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// Where readers wait for each other, each with a FORGET in its hands.
#[derive(Default)]
pub struct Meeting {
    state: Mutex<Attendance>,
    changed: Condvar,
}

#[derive(Default)]
pub struct Attendance {
    round: u64,
    present: Vec<Pid>,
    inside: usize,
}

impl Meeting {
    pub fn attend(&self) {
        let mut state = self.state.lock();
        let round = state.round;
        state.present.push(rustix::thread::gettid());
        state.inside += 1;
        self.changed.notify_all();
        self.changed.wait_while_for(&mut state, |state| state.round == round, LIMIT);
        state.inside -= 1;
        self.changed.notify_all();
    }

    /// Waits until `count` readers are here, and returns who.
    #[track_caller]
    pub fn gather(&self, habit: &Habit, count: usize) -> BTreeSet<i32> {
        let mut state = self.state.lock();
        self.changed.wait_while_for(&mut state, |state| state.present.len() < count, LIMIT);
        let present: BTreeSet<i32> = state.present.iter().map(|thread| thread.as_raw_nonzero().get()).collect();
        habit.holds(
            present.len() == count && state.present.len() == count,
            format_args!("{} threads of {count} hold {} messages", present.len(), state.present.len()),
        );
        present
    }

    /// Lets all go, and waits until they have gone.
    #[track_caller]
    pub fn dismiss(&self, habit: &Habit) {
        let mut state = self.state.lock();
        state.round += 1;
        state.present.clear();
        self.changed.notify_all();
        self.changed.wait_while_for(&mut state, |state| state.inside > 0, LIMIT);
        habit.holds(state.inside == 0, "a reader does not come back from its handler");
    }
}

thread_local! {
    static FAREWELL: RefCell<Option<Farewell>> = const { RefCell::new(None) };
}

/// Counts when its thread ends, as `Enlisted` of the port does.
pub struct Farewell(Arc<AtomicUsize>);

impl Drop for Farewell {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// A session that serves, with a test for a kernel.
pub struct Running {
    pub kernel: Kernel,
    pub number: RawFd,
    /// What the number referred to at the start.
    pub file: OwnedFd,
    pub notifier: Notifier,
    pub ended: mpsc::Receiver<io::Result<()>>,
}

pub fn open(handler: Handler, descriptor: OwnedFd, threads: usize) -> io::Result<(Session<Fs>, bool)> {
    let initialised = Arc::new(AtomicBool::new(false));
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(threads);
    let fs = Fs { initialised: initialised.clone(), handler };
    let session = Session::from_fd(fs, descriptor, SessionACL::All, config)?;
    Ok((session, initialised.load(SeqCst)))
}

/// Starts a session. `prepare` is called with its number, in the thread that runs it.
#[track_caller]
pub fn start_prepared(
    habit: &Habit,
    threads: usize,
    handler: impl Fn(Held) + Send + Sync + 'static,
    prepare: impl FnOnce(RawFd) + Send + 'static,
) -> Running {
    let (kernel, descriptor) = pair();
    let number = descriptor.as_raw_fd();
    let file = descriptor.try_clone().expect("a second descriptor");
    let handler = Arc::new(handler);
    kernel.init();
    let session = habit.within("Session::from_fd with FUSE_INIT waiting", move || open(handler, descriptor, threads));
    let (session, _) = session.unwrap_or_else(|error| habit.broken(format_args!("Session::from_fd: {error}")));
    kernel.answer(habit, "FUSE_INIT");
    let notifier = session.notifier();
    let (sender, ended) = mpsc::channel();
    std::thread::spawn(move || {
        prepare(number);
        // Received by nobody if the test has failed.
        drop(sender.send(session.run()));
    });
    Running { kernel, number, file, notifier, ended }
}

#[track_caller]
pub fn start(habit: &Habit, threads: usize, handler: impl Fn(Held) + Send + Sync + 'static) -> Running {
    start_prepared(habit, threads, handler, |_| {})
}

/// A session whose readers meet at each FORGET and are counted when they end.
#[track_caller]
pub fn start_meeting(habit: &Habit, threads: usize) -> (Running, Arc<Meeting>, Arc<AtomicUsize>) {
    let meeting = Arc::new(Meeting::default());
    let gone = Arc::new(AtomicUsize::new(0));
    let handler = {
        let (meeting, gone) = (meeting.clone(), gone.clone());
        move |held| match held {
            Held::Forget => {
                FAREWELL.with_borrow_mut(|farewell| {
                    farewell.get_or_insert_with(|| Farewell(gone.clone()));
                });
                meeting.attend();
            }
            Held::GetAttr(PANIC, _reply) => panic!("as the test wants it"),
            held => serve(held),
        }
    };
    (start(habit, threads, handler), meeting, gone)
}

impl Running {
    /// Sends as many nudges as there are readers, and waits until each has one.
    #[track_caller]
    pub fn muster(&self, habit: &Habit, kernel: &Kernel, meeting: &Meeting, readers: usize) -> BTreeSet<i32> {
        for _ in 0..readers {
            kernel.forget(u64::MAX);
        }
        let present = meeting.gather(habit, readers);
        meeting.dismiss(habit);
        present
    }
}

impl Habit {
    /// Waits for something that nobody tells us of.
    #[track_caller]
    pub fn wait_until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let end = Instant::now() + LIMIT;
        while !condition() {
            self.holds(Instant::now() < end, format_args!("it took more than {LIMIT:?} until {what}"));
            std::thread::sleep(GLANCE);
        }
    }

    #[track_caller]
    pub fn receive<T>(&self, from: &mpsc::Receiver<T>, what: &str) -> T {
        from.recv_timeout(LIMIT).unwrap_or_else(|error| self.broken(format_args!("{what}: {error}")))
    }

    /// Makes a call that might never return.
    #[track_caller]
    pub fn within<T: Send + 'static>(&self, what: &str, call: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, returned) = mpsc::channel();
        // Received by nobody if it is late.
        std::thread::spawn(move || drop(sender.send(call())));
        self.receive(&returned, what)
    }
}

impl Kernel {
    #[track_caller]
    pub fn answer(&self, habit: &Habit, what: &str) -> Answer {
        let mut ready = [PollFd::new(self.end.as_fd(), PollFlags::POLLIN)];
        poll(&mut ready, PollTimeout::try_from(LIMIT).expect("a short time")).expect("poll(2) of a socket");
        self.answer_now().unwrap_or_else(|| habit.broken(format_args!("no answer to {what}")))
    }

    /// Sends a request that any session serves, and waits for its answer.
    #[track_caller]
    pub fn assert_served(&self, habit: &Habit, when: &str) {
        let unique = self.getattr(1);
        let answer = self.answer(habit, &format!("a GETATTR {when}"));
        habit.holds((answer.unique, answer.error) == (unique, 0), format_args!("{answer:?} {when}"));
    }
}
