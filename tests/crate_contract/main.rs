//! Crates fuser and fuse3 are used in a way that their documentation does not promise: a port re-points the descriptor
//! that a session reads, counts its threads or tasks, and tells by messages whether it sleeps. Each habit that we lean on
//! has a test here, driven against the crate alone, over sockets; nothing is mounted. A test that fails after an update
//! says which habit is gone, what leans on it, and what to do.
#![cfg(any(feature = "fuse2", feature = "fuse3"))]

mod child;
#[cfg(feature = "fuse3")]
mod fuse3;
#[cfg(feature = "fuse2")]
mod fuser;
mod refusal;

use std::fmt::Display;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

/// How long a crate may take for what it does at once.
const LIMIT: Duration = Duration::from_secs(10);
/// How often something is looked at that nobody tells us of.
const GLANCE: Duration = Duration::from_millis(1);

const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const READ: u32 = 15;
const INIT: u32 = 26;
const DESTROY: u32 = 38;
/// A number that no operation has.
const UNHEARD_OF: u32 = 4095;

/// More than a socket takes as one message with the kernel's default limits (212,960 bytes), and less than a device.
const TOO_LARGE: u32 = 400 << 10;

/// What a crate does, what of ours needs it, and the way out.
struct Habit {
    of: &'static str,
    habit: &'static str,
    leans: &'static str,
    remedy: &'static str,
}

impl Habit {
    #[track_caller]
    fn broken(&self, found: impl Display) -> ! {
        panic!(
            "crate {} has lost a habit.\n  habit:         {}\n  leaning on it: {}\n  what to do:    {}\n  found:         {found}\n",
            self.of, self.habit, self.leans, self.remedy
        );
    }

    #[track_caller]
    fn holds(&self, condition: bool, otherwise: impl Display) {
        if !condition {
            self.broken(otherwise);
        }
    }
}

/// The end of a socket at which a test plays the kernel.
struct Kernel {
    end: OwnedFd,
    unique: AtomicU64,
}

/// A message as it came.
#[derive(PartialEq, Eq, Debug)]
struct Answer {
    unique: u64,
    error: i32,
    /// As long as its header says.
    is_whole: bool,
    length: usize,
}

/// The kernel's end, and the session's.
fn pair() -> (Kernel, OwnedFd) {
    let (end, session) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .expect("a pair of connected sockets");
    (Kernel { end, unique: AtomicU64::new(100) }, session)
}

impl Kernel {
    /// Sends a request, and returns its number. A session that is gone is noticed by whoever waits for what it does.
    fn send(&self, opcode: u32, node: u64, body: &[u8]) -> u64 {
        let unique = self.unique.fetch_add(2, SeqCst);
        let mut message = (40 + body.len() as u32).to_ne_bytes().to_vec();
        message.extend(opcode.to_ne_bytes());
        message.extend(unique.to_ne_bytes());
        message.extend(node.to_ne_bytes());
        // Of a user who is not this one.
        message.extend(12_345_u32.to_ne_bytes());
        message.extend([0; 12]);
        message.extend(body);
        match send(self.end.as_raw_fd(), &message, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
            Ok(_) | Err(Errno::EPIPE | Errno::ECONNRESET) => unique,
            Err(error) => panic!("a request could not be sent: {error}"),
        }
    }

    /// FUSE_INIT as the ports send it: protocol 7.31.
    fn init(&self) -> u64 {
        self.init_of(7)
    }

    fn init_of(&self, major: u32) -> u64 {
        let body: Vec<u8> = [major, 31, 128 << 10, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.send(INIT, 0, &body)
    }

    fn forget(&self, node: u64) {
        self.send(FORGET, node, &1_u64.to_ne_bytes());
    }

    fn getattr(&self, node: u64) -> u64 {
        self.send(GETATTR, node, &[0; 16])
    }

    fn read(&self, node: u64, size: u32) -> u64 {
        let mut body = [0; 40];
        body[16..20].copy_from_slice(&size.to_ne_bytes());
        self.send(READ, node, &body)
    }

    fn destroy(&self) {
        self.send(DESTROY, 0, &[]);
    }

    /// An answer that is there by now.
    fn answer_now(&self) -> Option<Answer> {
        let mut buffer = vec![0; TOO_LARGE as usize];
        let length = recv(self.end.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).ok()?;
        let header = buffer[..length].first_chunk::<16>()?;
        let number = |at: usize| i32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let mut unique = [0; 8];
        unique.copy_from_slice(&header[8..]);
        let is_whole = number(0) as usize == length;
        Some(Answer { unique: u64::from_ne_bytes(unique), error: -number(4), is_whole, length })
    }

    /// What the session has not read yet, in bytes as the kernel counts them.
    #[cfg(feature = "fuse3")]
    fn unread(&self) -> libc::c_int {
        nix::ioctl_read_bad!(unread_output, libc::TIOCOUTQ, libc::c_int);
        let mut unread = 0;
        // SAFETY: TIOCOUTQ stores one int, and the pointer is to one.
        unsafe { unread_output(self.end.as_raw_fd(), &raw mut unread) }.expect("TIOCOUTQ of a socket");
        unread
    }

    /// Whether nobody holds the session's end any more.
    fn is_hung_up(&self) -> bool {
        let mut ready = [PollFd::new(self.end.as_fd(), PollFlags::empty())];
        poll(&mut ready, PollTimeout::ZERO).expect("poll(2) of a socket") > 0
    }
}

/// Makes a session's number refer to another file, as `connection/port/mod.rs` does.
fn point(number: RawFd, at: impl AsFd) {
    let from = at.as_fd().as_raw_fd();
    loop {
        // SAFETY: the session keeps the number open; that it refers to another file afterwards is what is tested.
        if unsafe { libc::dup3(from, number, libc::O_CLOEXEC) } >= 0 {
            return;
        }
        let error = Errno::last();
        assert!(matches!(error, Errno::EINTR | Errno::EBUSY), "dup3(2) onto a session's descriptor: {error}");
    }
}
