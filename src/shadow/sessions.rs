//! Comparison sessions: sessions of the backends that no client uses. Each has a connection of its own whose other end is
//! ours and not the kernel's, and a ledger of its own, so that what it does counts nowhere.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use zerocopy::{FromBytes, IntoBytes};

use super::answers::{Answer, EntryOut, Extent, OpenOut, listed};
use super::call::{Call, Manner, Sample};
use super::encode::{self, Encoded, FUSE_RELEASEDIR, encode};
use crate::backend::drill::Part;
use crate::backend::{self, Context, StartError};
use crate::config::{Backend, Cache};
use crate::connection::port::{Leases, Port, PortError, State, Unbegun};
use crate::connection::wire::{FUSE_FORGET, ForgetIn, InHeader, OutHeader};
use crate::connection::{Connection, Negotiated};
use crate::ledger::{Ledger, Operation};
use crate::vfs::{Caller, Errno, HandleId, NodeId, Vfs};

/// For a session to start, and to end.
const LIMIT: Duration = Duration::from_secs(5);
/// Asked for in one READDIR or READDIRPLUS; the backends send at most as much.
const LISTING: u32 = 32 << 10;
/// Replies of one listing that are compared.
const MOST_REPLIES: usize = 4;
/// Longest reply: data of a READ that was cut to 64 KiB, with room.
const LONGEST_REPLY: usize = 128 << 10;

/// What sessions are made from.
#[derive(Clone)]
pub(super) struct Setting {
    pub vfs: Arc<dyn Vfs>,
    pub cache: Cache,
    pub negotiated: Negotiated,
    pub drill: Option<Part>,
    /// For an answer.
    pub limit: Duration,
}

/// One session. It must be [ended](Self::end).
pub(super) struct Session {
    port: Arc<dyn Port>,
    kernel: OwnedFd,
    unique: u64,
    end: Arc<End>,
    limit: Duration,
    /// Whether it has not answered, so that it is not to be waited for.
    is_silent: bool,
    buffer: Vec<u8>,
}

/// Told when a session ends by itself.
struct End {
    has_come: AtomicBool,
    wake: EventFd,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("its session has ended by itself")]
    Ended,
    #[error("its socket failed: {0}")]
    Socket(std::io::Error),
    #[error("its answer is no answer: {0}")]
    Nonsense(&'static str),
}

impl From<rustix::io::Errno> for NoAnswer {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Socket(error.into())
    }
}

fn pair() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> StartError {
    move |source| StartError::Port(PortError::System { what, source })
}

impl Session {
    /// Starts one that answers.
    pub(super) fn start(backend: Backend, setting: &Setting) -> Result<Self, StartError> {
        let sockets = || pair().map_err(system("making the sockets of a comparison session"));
        let ((kernel2, fuse2), (kernel3, fuse3)) = (sockets()?, sockets()?);
        let connection = Connection::between(fuse2, fuse3, setting.negotiated)
            .map_err(system("making the connection of a comparison session"))?;
        let ledger = Ledger::create().map_err(|error| system("its ledger")(std::io::Error::other(error)))?;
        let context = Context {
            vfs: setting.vfs.clone(),
            connection: Arc::new(connection),
            ledger,
            leases: Leases::default(),
            cache: setting.cache,
            // One request at a time, and what follows it in order.
            threads: 1,
            drill: setting.drill.clone(),
        };
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|error| system("its event counter")(error.into()))?;
        let end = Arc::new(End { has_come: AtomicBool::new(false), wake });
        let on_end = {
            let end = end.clone();
            Arc::new(move || {
                end.has_come.store(true, SeqCst);
                // Its counter is full: somebody is being woken.
                let _ = end.wake.write(1);
            })
        };
        let port = backend::start(backend, &context, on_end, LIMIT)?;
        if let Err(error) = port.attach() {
            port.retire();
            return Err(error.into());
        }
        let kernel = if backend == Backend::Fuse2 { kernel2 } else { kernel3 };
        Ok(Self {
            port,
            kernel,
            unique: 2,
            end,
            limit: setting.limit,
            is_silent: false,
            buffer: vec![0; LONGEST_REPLY],
        })
    }

    /// Ends it, whatever it does.
    pub(super) fn end(self) {
        if self.port.state() == State::Attached {
            let is_quiet = !self.is_silent && self.port.detach(LIMIT).is_ok() && self.port.drain(self.limit).is_ok();
            if !is_quiet {
                // Nobody waits for the answers that it gives.
                self.port.force_detach(Unbegun::Leave);
            }
        }
        self.port.retire();
    }

    /// Has it run a call, and takes back what that leaves in the vfs.
    pub(super) fn run(&mut self, sample: &Sample) -> Answer {
        let answer = match sample.call.manner() {
            Manner::List => self.list(sample),
            Manner::Read | Manner::Record => self.run_one(sample),
        };
        answer.unwrap_or_else(|error| {
            self.is_silent = true;
            Answer::Silence(error.to_string())
        })
    }

    fn run_one(&mut self, sample: &Sample) -> Result<Answer, NoAnswer> {
        let answer = self.ask(&sample.caller, &encode(&sample.call, sample.caller.umask))?;
        if let (Answer::Reply(body), Operation::Lookup) = (&answer, sample.call.operation()) {
            let (entry, _) = EntryOut::read_from_prefix(body).map_err(|_| NoAnswer::Nonsense("an entry is cut"))?;
            self.forget(entry.nodeid)?;
        }
        Ok(answer)
    }

    /// A listing by a handle of its own: the client's one is at a place of its own.
    fn list(&mut self, sample: &Sample) -> Result<Answer, NoAnswer> {
        let (operation, from) = (sample.call.operation(), encode(&sample.call, 0));
        let offset = match sample.call {
            Call::ReadDir { offset, .. } | Call::ReadDirPlus { offset, .. } => offset,
            _ => 0,
        };
        let opened = match self.ask(&sample.caller, &encode::open_to_list(from.node))? {
            Answer::Reply(body) => body,
            other => return Ok(other),
        };
        let (opened, _) = OpenOut::read_from_prefix(&opened).map_err(|_| NoAnswer::Nonsense("OPENDIR's is cut"))?;
        let handle = HandleId(opened.fh);
        let listing = self.list_opened(&sample.caller, operation, &from, handle, offset)?;
        let release = Encoded { opcode: FUSE_RELEASEDIR, node: from.node, body: encode::release(handle) };
        self.ask(&sample.caller, &release)?;
        Ok(listing)
    }

    fn list_opened(
        &mut self,
        caller: &Caller,
        operation: Operation,
        from: &Encoded,
        handle: HandleId,
        mut offset: u64,
    ) -> Result<Answer, NoAnswer> {
        let mut entries = Vec::new();
        for _ in 0..MOST_REPLIES {
            let body = encode::read(handle, offset, LISTING);
            let reply = match self.ask(caller, &Encoded { body, ..*from })? {
                Answer::Reply(reply) => reply,
                other => return Ok(other),
            };
            let found = listed(&reply, operation);
            for node in found.iter().map(|entry| entry.node).filter(|node| *node != 0) {
                self.forget(node)?;
            }
            let Some(last) = found.last() else { return Ok(Answer::Listing { entries, extent: Extent::Whole }) };
            offset = last.off;
            entries.extend(&reply);
            // Each reply is filled up by itself, but for its end.
            entries.resize(entries.len().next_multiple_of(8), 0);
        }
        Ok(Answer::Listing { entries, extent: Extent::Part })
    }

    fn forget(&mut self, node: u64) -> Result<(), NoAnswer> {
        if node == 0 {
            return Ok(());
        }
        let body = ForgetIn { nlookup: 1 }.as_bytes().to_vec();
        self.send(&Caller::default(), &Encoded { opcode: FUSE_FORGET, node: NodeId(node), body })
    }

    fn ask(&mut self, caller: &Caller, request: &Encoded) -> Result<Answer, NoAnswer> {
        self.send(caller, request)?;
        let until = Instant::now() + self.limit;
        loop {
            let length = self.receive(until)?;
            let message = &self.buffer[..length];
            let (header, body) =
                OutHeader::read_from_prefix(message).map_err(|_| NoAnswer::Nonsense("its header is cut"))?;
            if header.unique != self.unique {
                continue;
            }
            if header.len as usize != length {
                return Err(NoAnswer::Nonsense("its header says another length"));
            }
            return Ok(match header.error {
                0 => Answer::Reply(body.to_vec()),
                error => Answer::Failed(Errno::from_raw(-error)),
            });
        }
    }

    fn send(&mut self, caller: &Caller, request: &Encoded) -> Result<(), NoAnswer> {
        self.unique += 2;
        let header = InHeader {
            len: (size_of::<InHeader>() + request.body.len()) as u32,
            opcode: request.opcode,
            unique: self.unique,
            nodeid: request.node.0,
            uid: caller.uid,
            gid: caller.gid,
            pid: caller.pid,
            ..InHeader::default()
        };
        let message = [header.as_bytes(), &request.body].concat();
        let until = Instant::now() + self.limit;
        loop {
            match rustix::net::send(&self.kernel, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                // Many FORGETs in a row.
                Err(rustix::io::Errno::AGAIN) => self.wait(PollFlags::POLLOUT, until)?,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn receive(&mut self, until: Instant) -> Result<usize, NoAnswer> {
        loop {
            match rustix::net::recv(&self.kernel, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(NoAnswer::Ended),
                Ok((_, length)) if length > self.buffer.len() => return Err(NoAnswer::Nonsense("it is too long")),
                Ok((_, length)) => return Ok(length),
                Err(rustix::io::Errno::AGAIN) => self.wait(PollFlags::POLLIN, until)?,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn wait(&self, for_what: PollFlags, until: Instant) -> Result<(), NoAnswer> {
        if self.end.has_come.load(SeqCst) {
            return Err(NoAnswer::Ended);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(NoAnswer::Late(self.limit));
        }
        let mut ready =
            [PollFd::new(self.kernel.as_fd(), for_what), PollFd::new(self.end.wake.as_fd(), PollFlags::POLLIN)];
        // To the millisecond above, so that it is not asked again and again.
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut ready, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(NoAnswer::Socket(error.into())),
        }
    }
}
