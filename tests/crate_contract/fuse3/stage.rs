//! A session of crate fuse3 on a runtime, with a test for a kernel, and handlers that wait at a gate.

use std::future::Future;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use fuse3::notify::Notify;
use fuse3::raw::prelude::{FileAttr, ReplyAttr, ReplyData, ReplyInit, Request};
use fuse3::raw::{Filesystem, MountHandle, Session};
use fuse3::{FileType, MountOptions, Timestamp};
use parking_lot::Mutex;
use rustix::event::epoll;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::child::in_child;
use crate::{Answer, GLANCE, Habit, Kernel, LIMIT, pair, point};

/// A number in the set, by which its descriptors are recognised in fdinfo.
pub const MARK: u64 = 0xc0_4712_ac70;

/// Nodes whose handlers wait at the gate, fail, or panic.
pub const GATED: u64 = 2;
pub const FAIL: u64 = 3;
pub const PANIC: u64 = 4;

/// So many turns of the runtime run whatever can run: it has one thread, and this many tasks at the most.
pub const TURNS: usize = 200;

pub const fn habit(habit: &'static str, leans: &'static str, remedy: &'static str) -> Habit {
    Habit { of: "fuse3", habit, leans, remedy }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    Init,
    Ready,
    GetAttr(u64),
    Forget(u64),
    Destroy,
}

/// What the file system saw, and the gate that holds its handlers.
pub struct Seen {
    pub events: Mutex<Vec<Event>>,
    pub gate: Semaphore,
    pub notify: Mutex<Option<Notify>>,
}

impl Seen {
    pub fn count(&self, event: Event) -> usize {
        self.events.lock().iter().filter(|seen| **seen == event).count()
    }

    pub async fn pass(&self, node: u64) {
        if node == GATED {
            self.gate.acquire().await.expect("the gate is never closed").forget();
        }
    }
}

pub struct Fs(Arc<Seen>);

impl Filesystem for Fs {
    async fn init(&self, _: Request) -> fuse3::Result<ReplyInit> {
        self.0.events.lock().push(Event::Init);
        Ok(ReplyInit::new(NonZeroU32::MIN))
    }
    async fn ready(&self, notify: Notify) {
        self.0.events.lock().push(Event::Ready);
        *self.0.notify.lock() = Some(notify);
    }
    async fn destroy(&self, _: Request) {
        self.0.events.lock().push(Event::Destroy);
    }
    async fn forget(&self, _: Request, node: u64, _: u64) {
        self.0.events.lock().push(Event::Forget(node));
        self.0.pass(node).await;
    }
    async fn getattr(&self, _: Request, node: u64, _: Option<u64>, _: u32) -> fuse3::Result<ReplyAttr> {
        self.0.events.lock().push(Event::GetAttr(node));
        self.0.pass(node).await;
        match node {
            FAIL => Err(libc::EIO.into()),
            PANIC => panic!("as the test wants it"),
            _ => Ok(ReplyAttr { ttl: std::time::Duration::ZERO, attr: attr(node) }),
        }
    }
    async fn read(&self, _: Request, _: u64, _: u64, _: u64, size: u32) -> fuse3::Result<ReplyData> {
        Ok(ReplyData { data: Bytes::from(vec![7; size as usize]) })
    }
}

pub fn attr(ino: u64) -> FileAttr {
    let zero = Timestamp::new(0, 0);
    FileAttr {
        ino,
        size: 0,
        blocks: 0,
        atime: zero,
        mtime: zero,
        ctime: zero,
        kind: FileType::RegularFile,
        perm: 0o644,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
    }
}

/// A session whose number is still the set, on which nothing was awaited since the crate returned it.
pub struct Mounted {
    pub kernel: Kernel,
    /// The session's end of the kernel's socket, in the set.
    pub socket: OwnedFd,
    pub set: OwnedFd,
    pub number: RawFd,
    /// Where the crate believes to have mounted.
    pub place: String,
    pub handle: MountHandle,
    pub seen: Arc<Seen>,
}

/// Runs a test on a runtime as `backend/fuse3.rs` makes it, in a process that has the helper in its PATH.
#[track_caller]
pub fn on_runtime<F: Future<Output = ()>>(habit: &'static Habit, test: &str, body: impl FnOnce() -> F) {
    in_child(habit, test, || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().event_interval(8).enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let all = tokio::time::timeout(LIMIT * 4, body()).await;
            habit.holds(all.is_ok(), "the test hangs");
        });
        runtime.shutdown_background();
    });
}

pub fn join(set: &OwnedFd, file: impl AsFd) {
    epoll::add(set, file, epoll::EventData::new_u64(MARK), epoll::EventFlags::IN).expect("a file in the set");
}

/// Descriptors of this process that refer to a set with our mark in it.
pub fn descriptors_of_the_set() -> Vec<RawFd> {
    let mark = format!("{MARK:x}");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fdinfo").expect("fdinfo").flatten() {
        // A descriptor that another thread has just closed is not the crate's.
        let Ok(info) = std::fs::read_to_string(entry.path()) else { continue };
        let has_mark = |line: &str| line.starts_with("tfd:") && line.split_whitespace().any(|word| word == mark);
        if info.lines().any(has_mark) {
            found.extend(entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
        }
    }
    found
}

/// Opens a session with FUSE_INIT in the socket, as `open_session` of `backend/fuse3.rs` does.
pub async fn mount(habit: &Habit) -> Mounted {
    let (kernel, socket) = pair();
    rustix::io::ioctl_fionbio(&socket, true).expect("O_NONBLOCK");
    kernel.init();
    let set = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll set");
    join(&set, &socket);
    let inherited = rustix::io::dup(&set).expect("a descriptor of the set");
    let folder = tempfile::Builder::new()
        .suffix(&format!(".fd-{}", inherited.as_raw_fd()))
        .tempdir()
        .expect("a folder to be mounted on");
    let seen = Arc::new(Seen { events: Mutex::default(), gate: Semaphore::new(0), notify: Mutex::new(None) });
    let handle = Session::new(MountOptions::default())
        .mount_with_unprivileged(Fs(seen.clone()), folder.path())
        .await
        .unwrap_or_else(|error| habit.broken(format_args!("mount_with_unprivileged with our helper: {error}")));
    let mut theirs = descriptors_of_the_set();
    theirs.retain(|number| ![set.as_raw_fd(), inherited.as_raw_fd()].contains(number));
    habit.holds(theirs.len() == 1, format_args!("the crate has {} descriptors of the file it was sent", theirs.len()));
    let place = folder.path().display().to_string();
    Mounted { kernel, socket, set, number: theirs[0], place, handle, seen }
}

/// A session that has been introduced and reads the socket.
pub async fn start(habit: &Habit) -> Mounted {
    let session = mount(habit).await;
    point(session.number, &session.socket);
    session.answer(habit, "FUSE_INIT").await;
    session
}

/// Waits until `condition` holds, while the session runs.
pub async fn until(habit: &Habit, what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !condition() {
        habit.holds(Instant::now() < end, format_args!("it took more than {LIMIT:?} until {what}"));
        tokio::task::yield_now().await;
    }
}

/// Lets everything run that can run.
pub async fn let_run() {
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
    }
    // And what the drivers have for it.
    tokio::time::sleep(GLANCE).await;
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
    }
}

pub fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

impl Mounted {
    pub async fn answer(&self, habit: &Habit, what: &str) -> Answer {
        answer(habit, &self.kernel, what).await
    }

    pub async fn assert_served(&self, habit: &Habit, when: &str) {
        let unique = self.kernel.getattr(1);
        let answer = self.answer(habit, &format!("a GETATTR {when}")).await;
        habit.holds((answer.unique, answer.error) == (unique, 0), format_args!("{answer:?} {when}"));
    }

    /// Sends a nudge, and waits until it was handled.
    pub async fn nudge(&self, habit: &Habit, number: u64) {
        self.kernel.forget(number);
        until(habit, "a nudge (FORGET) is handled", || self.seen.count(Event::Forget(number)) > 0).await;
    }

    /// Waits for the session's end.
    pub async fn end(&mut self, habit: &Habit) -> io::Result<()> {
        match tokio::time::timeout(LIMIT, &mut self.handle).await {
            Ok(end) => end,
            Err(_) => habit.broken("the session goes on"),
        }
    }
}

pub async fn answer(habit: &Habit, kernel: &Kernel, what: &str) -> Answer {
    let mut answer = None;
    until(habit, &format!("{what} is answered"), || {
        answer = kernel.answer_now();
        answer.is_some()
    })
    .await;
    answer.expect("just seen")
}
