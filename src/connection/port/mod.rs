//! A port is the place where one backend's session is plugged into a connection.
//!
//! A FUSE crate reads a descriptor number for as long as its session lives. We keep that number, and re-point it: at the
//! kernel's device to attach the session, at a private socket to park it. While attached the crate talks to the kernel
//! directly. A [`BlockingPort`] serves a session of threads that block in `read(2)`, a [`PolledPort`] one of tasks behind
//! one read loop.
//!
//! A port is *attached* (reads requests), *draining* (reads no more, still answers what it holds) or *parked*.

mod blocking;
mod leases;
mod polled;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use parking_lot::{Condvar, Mutex};
use zerocopy::IntoBytes;

use super::wire;
use super::{Connection, Negotiated, wait_readable};
use crate::config::Backend;

pub use blocking::{BlockingPort, InHandler, LargeReply, SMALL_REPLY};
pub use leases::{Lease, Leases, NoSlots};
pub use polled::{InTask, PolledPort, Refused, pause};

/// A node that no file system has: a FORGET of it is a nudge, which the adapter hands to its port.
pub const NUDGE_NODE: u64 = u64::MAX - 16;

/// The number of a request of ours, which the kernel never gives: an answer to it that is forwarded must meet nobody's.
const NOBODYS: u64 = 1 << 62;

/// Longest message that the forwarder must carry: SEQPACKET takes 212,960 bytes by default.
const LONGEST_FORWARDED: usize = 256 << 10;

/// Where a port stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Waits and costs nothing.
    Parked,
    /// Reads requests.
    Attached,
    /// Reads no more, answers what it holds.
    Draining,
    /// Requests of it were answered at the deadline; it is only good for being retired.
    Hung,
    /// Its session has ended by itself.
    Ended,
}

/// Why a port did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The session did not react.
    #[error("the session of {backend} did not {what} within {limit:?}")]
    Silent {
        /// Which.
        backend: Backend,
        /// What it should have done.
        what: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// The session has ended.
    #[error("the session of {0} has ended")]
    Ended(Backend),
    /// A system call failed.
    #[error("{what} failed: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What a drain found and did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Drained {
    /// Requests that the session held when it stopped reading.
    pub in_flight: usize,
    /// Those of them that were answered EIO at the deadline.
    pub answered_for_hung: usize,
}

/// What becomes of requests that a session has read and not begun, when it is detached by force.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unbegun {
    /// The kernel sends them again. Only while nobody else holds a request that it will answer.
    SendAgain,
    /// They wait until the session comes back, and get EIO.
    Leave,
}

/// How a switch away from a port must be ordered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// The next backend may be attached before this one is detached, so that there is no gap at all.
    NextFirst,
    /// This one must have proven that it reads no more before the next is attached: if it does not react, the kernel is
    /// asked to send its unread requests again, and nobody else may hold any then.
    DetachFirst,
}

/// One session, plugged in. Calls come from one thread at a time, the server's control loop.
pub trait Port: Send + Sync {
    /// Which backend's.
    fn backend(&self) -> Backend;

    /// Where it stands.
    fn state(&self) -> State;

    /// How a switch away from it must be ordered.
    fn order(&self) -> Order;

    /// Makes a parked session prove that it lives.
    ///
    /// # Errors
    /// When it does not within `limit`.
    fn ping(&self, limit: Duration) -> Result<(), PortError>;

    /// Starts reading requests. Allowed while parked or draining. Returns when that took effect, which is before all readers
    /// of the session have been woken.
    ///
    /// # Errors
    /// When the session has ended; it is as parked as before.
    fn attach(&self) -> Result<Instant, PortError>;

    /// Stops reading requests. After `Ok` the port drains: what it holds it still answers.
    ///
    /// # Errors
    /// [`PortError::Silent`] when the session does not react; nothing has changed then, and
    /// [`force_detach`](Self::force_detach) is the way.
    fn detach(&self, limit: Duration) -> Result<(), PortError>;

    /// Stops reading requests against a session that does not react; answers EIO for what its handlers hold, and has the
    /// kernel send again what it has read and not begun. The port is hung afterwards.
    fn force_detach(&self, unbegun: Unbegun) -> Drained;

    /// Whether somebody would read if it were attached: not all its readers are in handlers.
    fn has_free_reader(&self) -> bool;

    /// Waits until what a draining port holds is answered, and parks it; at `limit` answers EIO for the rest, and the port
    /// is hung.
    ///
    /// # Errors
    /// [`PortError::Silent`] when the session does not react at all; it drains still. The next backend is attached by then:
    /// it must be drained first if [`force_detach`](Self::force_detach) is to be used.
    fn drain(&self, limit: Duration) -> Result<Drained, PortError>;

    /// Whether nothing is in hand any more that a session has read before it ended by itself; waits for that at most
    /// `limit`. Until then the kernel must not be asked to send anything again: it would run twice.
    fn has_settled(&self, limit: Duration) -> bool;

    /// Ends the session as soon as its handlers have come back. It must not be attached.
    fn retire(&self);

    /// Makes an attached session end as if by itself, for rehearsals and tests. Its answers still reach the kernel.
    ///
    /// # Errors
    /// When it has ended already.
    fn end_by_itself(&self) -> Result<(), PortError>;
}

/// Called, from any thread, when a session has ended without having been retired.
pub type OnEnd = Arc<dyn Fn() + Send + Sync>;

/// A connected pair of SOCK_SEQPACKET sockets, closed on exec.
pub(super) fn seqpacket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// The descriptors of a port: the private socket that the session reads while parked, our end of it, and the connection.
#[derive(Debug)]
struct Wires {
    socket: OwnedFd,
    ours: Arc<OwnedFd>,
    connection: Arc<Connection>,
    backend: Backend,
    carried: Arc<Carried>,
}

/// How far the forwarder has come: the number of the last mark that it has met.
#[derive(Debug, Default)]
struct Carried {
    mark: Mutex<u64>,
    /// The number of the last mark that was sent.
    sent: AtomicU64,
    moved: Condvar,
}

impl Wires {
    fn new(connection: Arc<Connection>, backend: Backend) -> io::Result<Self> {
        let (socket, ours) = seqpacket_pair()?;
        Ok(Self { socket, ours: Arc::new(ours), connection, backend, carried: Arc::default() })
    }

    fn device(&self) -> BorrowedFd<'_> {
        self.connection.device(self.backend)
    }

    fn negotiated(&self) -> &Negotiated {
        self.connection.negotiated()
    }

    /// Starts the thread that carries replies from the socket to the device: they belong to requests that were read from
    /// the device before the session was parked. It drops nothing: the kernel knows best which request is alive. It ends
    /// when the session and the port have closed the socket.
    fn start_forwarder(&self) -> io::Result<()> {
        let (ours, connection, backend) = (self.ours.clone(), self.connection.clone(), self.backend);
        let carried = self.carried.clone();
        std::thread::Builder::new().name(format!("{backend}-forward")).spawn(move || {
            let mut buffer = vec![0; LONGEST_FORWARDED];
            loop {
                match recv(ours.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                    Ok(0) => return,
                    Ok(MARK) => carried.pass(&buffer[..MARK]),
                    Ok(length) => forward(connection.device(backend), &buffer[..length]),
                    // ECONNRESET: the session has gone and left messages unread. What it has sent still comes.
                    Err(Errno::EINTR | Errno::ECONNRESET) => {}
                    Err(error) => {
                        tracing::error!(%backend, %error, "replies of the parked session can no longer be forwarded");
                        return;
                    }
                }
            }
        })?;
        Ok(())
    }

    /// Waits until the forwarder has carried what the session has sent so far: a mark, sent after it, comes out after it.
    /// `false`: not within `limit`.
    fn wait_for_forwarder(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut mark = self.carried.mark.lock();
        let wanted = self.carried.sent.fetch_add(1, Relaxed) + 1;
        if let Err(error) = send(self.socket.as_raw_fd(), &wanted.to_ne_bytes(), MsgFlags::MSG_DONTWAIT) {
            tracing::warn!(%error, "the forwarder cannot be asked how far it is");
            return false;
        }
        while *mark < wanted {
            if self.carried.moved.wait_until(&mut mark, end).timed_out() {
                return *mark >= wanted;
            }
        }
        true
    }

    /// Sends a message to the session. Only while it reads the socket.
    fn send(&self, message: &[u8]) -> io::Result<()> {
        send(self.ours.as_raw_fd(), message, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }

    /// Sends a nudge that carries a number.
    fn nudge(&self, number: u64) -> io::Result<()> {
        let body = wire::ForgetIn { nlookup: number };
        self.send(&wire::request(wire::FUSE_FORGET, 2, NUDGE_NODE, body.as_bytes()))
    }

    /// Sends FUSE_DESTROY, which ends one reader of the session.
    fn destroy(&self) -> io::Result<()> {
        self.send(&wire::request(wire::FUSE_DESTROY, NOBODYS, 0, &[]))
    }

    /// Sends the synthetic FUSE_INIT and waits for its answer, which nobody needs. Before the forwarder runs.
    fn introduce(&self, limit: Duration) -> Result<(), PortError> {
        let system = |source: io::Error| PortError::System { what: "FUSE_INIT to the session", source };
        self.send(&self.negotiated().synthetic_init()).map_err(system)?;
        if !wait_readable(&self.ours, limit).map_err(system)? {
            return Err(PortError::Silent { backend: self.backend, what: "answer FUSE_INIT", limit });
        }
        let mut answer = [0; 512];
        recv(self.ours.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT).map_err(|error| system(error.into()))?;
        Ok(())
    }
}

/// Length of a mark in bytes; no reply is that short.
const MARK: usize = size_of::<u64>();

impl Carried {
    fn pass(&self, mark: &[u8]) {
        if let Ok(number) = mark.try_into() {
            *self.mark.lock() = u64::from_ne_bytes(number);
            self.moved.notify_all();
        }
    }
}

fn forward(device: BorrowedFd<'_>, reply: &[u8]) {
    match rustix::io::write(device, reply) {
        // ENOENT: answered already, or the program that asked is gone. ENODEV: the connection is; EPIPE: so is one between
        // sessions, whose other end was waiting for this.
        Ok(_) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::NODEV | rustix::io::Errno::PIPE) => {}
        Err(error) => tracing::warn!(%error, length = reply.len(), "a late reply could not be forwarded"),
    }
}

/// The descriptor number that a session reads. The session owns it; whoever holds a `Plug` also holds something that keeps
/// the session from closing it.
#[derive(Clone, Copy, Debug)]
struct Plug(RawFd);

impl Plug {
    fn point_at(self, file: impl AsFd) -> Result<(), PortError> {
        let from = file.as_fd().as_raw_fd();
        loop {
            // SAFETY: the number is open and stays so (see the type); replacing what it refers to is the point.
            let result = unsafe { libc::dup3(from, self.0, libc::O_CLOEXEC) };
            if result >= 0 {
                return Ok(());
            }
            let source = io::Error::last_os_error();
            // EBUSY: a race with an open(2) of the same number, which cannot last (dup(2)).
            if !matches!(source.raw_os_error(), Some(libc::EINTR | libc::EBUSY)) {
                return Err(PortError::System { what: "dup3(2) of the session's descriptor", source });
            }
        }
    }
}
