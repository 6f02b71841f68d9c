//! Every opcode of the protocol, known and unknown, whole, truncated and oversized, is sent to each backend over a socket,
//! by a test that plays the kernel. There must be an answer or a clean error, the session must live, and no ENOSYS may
//! answer what a backend serves: the kernel would never ask again.

#[path = "support/prepared.rs"]
mod prepared;

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use lighthouse_fs::backend::{self, Context};
use lighthouse_fs::config::{Backend, Cache};
use lighthouse_fs::connection::port::{Leases, Port, State};
use lighthouse_fs::connection::{Connection, Negotiated};
use lighthouse_fs::ledger::Ledger;
use lighthouse_fs::vfs::{
    Attr, Caller, Created, DirEntry, Entry, Errno, FileKind, HandleId, ListFlow, NodeId, ROOT, Result, SetAttr, StatFs,
    Timestamp, Vfs,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use prepared::in_prepared_child;

const LIMIT: Duration = Duration::from_secs(10);

/// A file system that answers everything.
struct Everything;

fn attr(node: NodeId) -> Attr {
    let zero = Timestamp::default();
    let mode = if node == ROOT { libc::S_IFDIR | 0o755 } else { libc::S_IFREG | 0o644 };
    Attr {
        node,
        size: 5,
        blocks: 8,
        atime: zero,
        mtime: zero,
        ctime: zero,
        mode,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
    }
}

fn entry() -> Entry {
    Entry { attr: attr(NodeId(2)), generation: 0 }
}

impl Vfs for Everything {
    fn lookup(&self, _: &Caller, _: NodeId, name: &OsStr) -> Result<Entry> {
        assert_ne!(name, "panic", "as the test wants it");
        Ok(entry())
    }
    fn forget(&self, _: NodeId, _: u64) {}
    fn getattr(&self, _: &Caller, node: NodeId, _: Option<HandleId>) -> Result<Attr> {
        Ok(attr(node))
    }
    fn setattr(&self, _: &Caller, node: NodeId, _: Option<HandleId>, _: &SetAttr) -> Result<Attr> {
        Ok(attr(node))
    }
    fn readlink(&self, _: &Caller, _: NodeId) -> Result<Vec<u8>> {
        Ok(b"target".to_vec())
    }
    fn symlink(&self, _: &Caller, _: NodeId, _: &OsStr, _: &OsStr) -> Result<Entry> {
        Ok(entry())
    }
    fn mknod(&self, _: &Caller, _: NodeId, _: &OsStr, _: u32, _: u64) -> Result<Entry> {
        Ok(entry())
    }
    fn mkdir(&self, _: &Caller, _: NodeId, _: &OsStr, _: u32) -> Result<Entry> {
        Ok(entry())
    }
    fn unlink(&self, _: &Caller, _: NodeId, _: &OsStr) -> Result<()> {
        Ok(())
    }
    fn rmdir(&self, _: &Caller, _: NodeId, _: &OsStr) -> Result<()> {
        Ok(())
    }
    fn rename(&self, _: &Caller, _: NodeId, _: &OsStr, _: NodeId, _: &OsStr, _: u32) -> Result<()> {
        Ok(())
    }
    fn link(&self, _: &Caller, _: NodeId, _: NodeId, _: &OsStr) -> Result<Entry> {
        Ok(entry())
    }
    fn open(&self, _: &Caller, _: NodeId, _: i32) -> Result<HandleId> {
        Ok(HandleId(7))
    }
    fn create(&self, _: &Caller, _: NodeId, _: &OsStr, _: u32, _: i32) -> Result<Created> {
        Ok(Created { entry: entry(), handle: HandleId(7) })
    }
    fn read(&self, _: &Caller, _: NodeId, _: HandleId, _: u64, buffer: &mut [u8]) -> Result<usize> {
        let length = buffer.len().min(5);
        buffer[..length].copy_from_slice(&b"hello"[..length]);
        Ok(length)
    }
    fn write(&self, _: &Caller, _: NodeId, _: HandleId, _: u64, data: &[u8]) -> Result<u32> {
        Ok(data.len() as u32)
    }
    fn release(&self, _: NodeId, _: HandleId) {}
    fn fsync(&self, _: &Caller, _: NodeId, _: HandleId, _: bool) -> Result<()> {
        // An implementation that forgets itself.
        Err(Errno::ENOSYS)
    }
    fn opendir(&self, _: &Caller, _: NodeId, _: i32) -> Result<HandleId> {
        Ok(HandleId(8))
    }
    fn readdir(
        &self,
        _: &Caller,
        _: NodeId,
        _: HandleId,
        offset: u64,
        sink: &mut dyn FnMut(&DirEntry<'_>) -> ListFlow,
    ) -> Result<()> {
        if offset == 0 {
            sink(&DirEntry { node: NodeId(2), offset: 1, kind: FileKind::File, name: OsStr::new("file") });
        }
        Ok(())
    }
    fn releasedir(&self, _: NodeId, _: HandleId) {}
    fn fsyncdir(&self, _: &Caller, _: NodeId, _: HandleId, _: bool) -> Result<()> {
        Ok(())
    }
    fn statfs(&self, _: &Caller, _: NodeId) -> Result<StatFs> {
        Ok(StatFs { bsize: 4096, frsize: 4096, namelen: 255, ..StatFs::default() })
    }
}

/// One backend, attached to a socket instead of the kernel.
struct Attached {
    kernel: OwnedFd,
    port: Arc<dyn Port>,
    unique: u64,
    /// Requests that need no answer; one that they get all the same is ignored, as the kernel does.
    unanswered: Vec<u64>,
    ends: Arc<AtomicUsize>,
}

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).expect("a pair of sockets")
}

impl Attached {
    fn new(backend: Backend) -> Self {
        let (kernel2, fuse2) = pair();
        let (kernel3, fuse3) = pair();
        let negotiated = Negotiated {
            kernel_minor: 31,
            features: u32::MAX,
            max_write: 1 << 20,
            max_readahead: 1 << 17,
            can_resend: false,
        };
        let connection = Connection::between(fuse2, fuse3, negotiated).expect("a connection");
        let ledger = Ledger::create().expect("a ledger");
        let context = Context {
            vfs: Arc::new(Everything),
            connection: Arc::new(connection),
            ledger,
            leases: Leases::default(),
            cache: Cache::default(),
            threads: 4,
            drill: None,
        };
        let ends = Arc::new(AtomicUsize::new(0));
        let on_end = {
            let ends = ends.clone();
            Arc::new(move || {
                ends.fetch_add(1, SeqCst);
            })
        };
        let port = backend::start(backend, &context, on_end, LIMIT).expect("a session");
        port.ping(LIMIT).expect("a living session");
        port.attach().expect("an attached session");
        let kernel = if backend == Backend::Fuse2 { kernel2 } else { kernel3 };
        Self { kernel, port, unique: 100, unanswered: Vec::new(), ends }
    }

    /// Sends a request whose header says `said` bytes in all.
    fn send_saying(&mut self, opcode: u32, node: u64, body: &[u8], said: u32) -> u64 {
        self.unique += 2;
        let mut message = Vec::new();
        message.extend(said.to_ne_bytes());
        message.extend(opcode.to_ne_bytes());
        message.extend(self.unique.to_ne_bytes());
        message.extend(node.to_ne_bytes());
        message.extend([0; 16]);
        message.extend(body);
        send(self.kernel.as_raw_fd(), &message, MsgFlags::empty()).expect("the session reads");
        self.unique
    }

    fn send(&mut self, opcode: u32, node: u64, body: &[u8]) -> u64 {
        self.send_saying(opcode, node, body, 40 + body.len() as u32)
    }

    /// The error (0 for success) and body of the next answer, which must be to `unique`.
    fn answer(&self, unique: u64, limit: Duration) -> Option<(i32, Vec<u8>)> {
        use std::os::fd::AsFd;
        let timeout = PollTimeout::try_from(limit).expect("a short time");
        let mut ready = [PollFd::new(self.kernel.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, timeout).expect("poll") == 0 {
            return None;
        }
        let mut buffer = vec![0; 256 << 10];
        let length = recv(self.kernel.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).expect("an answer");
        let answered = u64::from_ne_bytes(buffer[8..16].try_into().expect("eight bytes"));
        if self.unanswered.contains(&answered) {
            return self.answer(unique, limit);
        }
        let number = |at: usize| i32::from_ne_bytes(buffer[at..at + 4].try_into().expect("four bytes"));
        assert_eq!(answered, unique);
        assert_eq!(number(0) as usize, length, "the header says the length");
        Some((-number(4), buffer[16..length].to_vec()))
    }

    fn assert_alive(&mut self, after: &str) {
        let unique = self.send(GETATTR, 1, &[0; 16]);
        let (error, _) = self.answer(unique, LIMIT).unwrap_or_else(|| panic!("no session after {after}"));
        assert_eq!(error, 0, "after {after}");
        assert_eq!(self.port.state(), State::Attached, "after {after}");
        assert_eq!(self.ends.load(SeqCst), 0, "after {after}");
    }
}

impl Attached {
    fn assert_end_is_noticed(&mut self, after: &str) {
        let until = std::time::Instant::now() + LIMIT;
        while self.ends.load(SeqCst) == 0 && std::time::Instant::now() < until {
            std::thread::yield_now();
        }
        assert_eq!(self.port.state(), State::Ended, "after {after}");
        // A thread may have ended alone; then the others must not go on beside the backend that takes over.
        self.port.has_settled(LIMIT);
        let unique = self.send(GETATTR, 1, &[0; 16]);
        assert!(self.answer(unique, Duration::from_millis(50)).is_none(), "somebody still reads after {after}");
    }
}

const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const DESTROY: u32 = 38;
const NOTIFY_REPLY: u32 = 41;
const BATCH_FORGET: u32 = 42;

/// What the kernel sends to a connection that was negotiated as ours: opcode, name, body, and whether it is about the file.
fn well_formed() -> Vec<(u32, &'static str, Vec<u8>)> {
    let zeros = |length: usize| vec![0; length];
    let with_name = |length: usize| [vec![0; length], b"name\0".to_vec()].concat();
    let with_names = |length: usize| [vec![0; length], b"name\0other\0".to_vec()].concat();
    let mut write = zeros(40);
    write[16] = 3;
    write.extend(b"abc");
    let mut setxattr = zeros(8);
    setxattr[0] = 1;
    setxattr.extend(b"user.a\0v");
    let mut getxattr = zeros(8);
    getxattr[0] = 64;
    let mut listxattr = getxattr.clone();
    getxattr.extend(b"user.a\0");
    let sized = |mut body: Vec<u8>| {
        body[17] = 16;
        body
    };
    listxattr.truncate(8);
    vec![
        (1, "LOOKUP", b"name\0".to_vec()),
        (GETATTR, "GETATTR", zeros(16)),
        (4, "SETATTR", zeros(88)),
        (5, "READLINK", vec![]),
        (6, "SYMLINK", b"name\0target\0".to_vec()),
        (8, "MKNOD", with_name(16)),
        (9, "MKDIR", with_name(8)),
        (10, "UNLINK", b"name\0".to_vec()),
        (11, "RMDIR", b"name\0".to_vec()),
        (12, "RENAME", with_names(8)),
        (13, "LINK", with_name(8)),
        (14, "OPEN", zeros(8)),
        (15, "READ", sized(zeros(40))),
        (16, "WRITE", write),
        (17, "STATFS", vec![]),
        (18, "RELEASE", zeros(24)),
        (20, "FSYNC", zeros(16)),
        (21, "SETXATTR", setxattr),
        (22, "GETXATTR", getxattr),
        (23, "LISTXATTR", listxattr),
        (24, "REMOVEXATTR", b"user.a\0".to_vec()),
        (25, "FLUSH", zeros(24)),
        (27, "OPENDIR", zeros(8)),
        (28, "READDIR", sized(zeros(40))),
        (29, "RELEASEDIR", zeros(24)),
        (30, "FSYNCDIR", zeros(16)),
        (34, "ACCESS", zeros(8)),
        (35, "CREATE", with_name(16)),
        (40, "POLL", zeros(24)),
        (43, "FALLOCATE", zeros(32)),
        (44, "READDIRPLUS", sized(zeros(40))),
        (45, "RENAME2", with_names(16)),
        (46, "LSEEK", zeros(24)),
        (47, "COPY_FILE_RANGE", zeros(56)),
    ]
}

fn backends() -> impl Iterator<Item = Backend> {
    Backend::ALL.into_iter().filter(|backend| backend.is_built_in())
}

#[test]
fn what_the_kernel_sends_is_served_by_both() {
    in_prepared_child("what_the_kernel_sends_is_served_by_both", || {
        for backend in backends() {
            let mut session = Attached::new(backend);
            for (opcode, name, body) in well_formed() {
                let unique = session.send(opcode, 1, &body);
                let (error, _) =
                    session.answer(unique, LIMIT).unwrap_or_else(|| panic!("{backend} does not answer {name}"));
                assert_ne!(error, libc::ENOSYS, "{backend}: the kernel would never send {name} again");
                let refused = matches!(
                    name,
                    "FSYNC"
                        | "SETXATTR"
                        | "GETXATTR"
                        | "LISTXATTR"
                        | "REMOVEXATTR"
                        | "FALLOCATE"
                        | "LSEEK"
                        | "COPY_FILE_RANGE"
                );
                assert_eq!(error, if refused { libc::EOPNOTSUPP } else { 0 }, "{backend}: {name}");
            }
            session.assert_alive("all that a kernel sends");
        }
    });
}

#[test]
fn the_rest_is_answered_and_ends_nothing() {
    in_prepared_child("the_rest_is_answered_and_ends_nothing", || {
        // What a connection that was negotiated as ours never sees: locks, BMAP, IOCTL, DAX, SYNCFS, TMPFILE, STATX, CUSE,
        // and numbers that nobody has given out.
        let known: Vec<u32> = well_formed().iter().map(|(opcode, ..)| *opcode).collect();
        let silent = [FORGET, BATCH_FORGET, DESTROY, NOTIFY_REPLY];
        for backend in backends() {
            let mut session = Attached::new(backend);
            for opcode in (0..=64).chain([100, 4096, 4097, u32::MAX]) {
                if known.contains(&opcode) || silent.contains(&opcode) || opcode == INIT {
                    continue;
                }
                let mut body = vec![0; 64];
                body.extend(b"name\0");
                let unique = session.send(opcode, 2, &body);
                let limit = if opcode == INTERRUPT { Duration::from_millis(200) } else { LIMIT };
                let answer = session.answer(unique, limit);
                assert!(answer.is_some() || opcode == INTERRUPT, "{backend} does not answer opcode {opcode}");
                session.unanswered.push(unique);
            }
            session.assert_alive("opcodes that it does not know");
        }
    });
}

#[test]
fn truncated_and_oversized_requests_get_an_answer() {
    in_prepared_child("truncated_and_oversized_requests_get_an_answer", || {
        for backend in backends() {
            let mut session = Attached::new(backend);
            for (opcode, name, body) in well_formed() {
                let mut long = body.clone();
                long.resize(100_000, b'x');
                for wrong in [&[][..], &body[..body.len() / 2], &body[..body.len().saturating_sub(1)], &long] {
                    let what = format!("{name} of {} bytes", wrong.len());
                    // Crate fuser asserts that data is as long as the request says, which the kernel makes sure of. What
                    // counts then is that the end is noticed, for the other backend to take over.
                    let is_fatal = backend == Backend::Fuse2
                        && matches!((name, wrong.len()), ("WRITE", 40..) | ("SETXATTR", 15..));
                    let unique = session.send(opcode, 2, wrong);
                    if is_fatal {
                        session.assert_end_is_noticed(&what);
                        session = Attached::new(backend);
                    } else {
                        assert!(session.answer(unique, LIMIT).is_some(), "{backend} does not answer {what}");
                        session.assert_alive(&what);
                    }
                }
            }
            for opcode in [FORGET, BATCH_FORGET] {
                for length in [0, 4, 8, 64] {
                    let unique = session.send(opcode, 2, &vec![0; length]);
                    session.unanswered.push(unique);
                }
                session.assert_alive("a forget of any length");
            }
        }
    });
}

#[test]
fn a_panic_in_a_handler_costs_that_request_alone() {
    in_prepared_child("a_panic_in_a_handler_costs_that_request_alone", || {
        for backend in backends() {
            let mut session = Attached::new(backend);
            for _ in 0..10 {
                let unique = session.send(1, 1, b"panic\0");
                let (error, _) = session.answer(unique, LIMIT).expect("an answer");
                assert_eq!(error, libc::EIO);
                session.assert_alive("a panic");
            }
        }
    });
}

#[test]
fn a_header_that_lies_is_noticed() {
    in_prepared_child("a_header_that_lies_is_noticed", || {
        for backend in backends() {
            for said in [0, 39, 41, 1 << 30] {
                let mut session = Attached::new(backend);
                let unique = session.send_saying(GETATTR, 1, &[0; 16], said);
                let answer = session.answer(unique, Duration::from_secs(1));
                // The kernel never does this. What counts is that a session which gives up says so, for then the other
                // backend takes over.
                if answer.is_none() {
                    session.assert_end_is_noticed(&format!("a header that says {said}"));
                }
            }
        }
    });
}
