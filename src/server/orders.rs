//! What daemon and server say to each other: small typed messages over a SOCK_SEQPACKET pair, one JSON object a message.
//!
//! A server that has lost its daemon goes on serving, and listens for the next one, which it greets with
//! [`Hello`](Report::Hello) and the ledger's descriptor.
//!
//! [`Hello`](Report::Hello), [`Stop`](Order::Stop) and the version stay readable for the version before, so that a daemon
//! can always tell an older server to end.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::backend::drill::{Ended, Ongoing, Plan};
use crate::config::{Backend, Deadlines, Mount};
use crate::ledger::Cause;
use crate::shadow::{Comparing, Told};

/// Version of the messages.
pub const VERSION: u32 = 4;
/// Longest message in bytes; well below what a SEQPACKET socket takes by default (212,960).
const LONGEST: usize = 64 << 10;

/// Daemon to server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum Order {
    /// The first message: mount and serve. Answered by [`Report::Hello`] or [`Report::Failed`].
    Serve {
        /// Version of the messages.
        version: u32,
        /// What to serve.
        mount: Box<Mount>,
        /// Where the next daemon finds this server, should the one that started it be gone; without it the mount ends with
        /// its daemon.
        meeting: Option<PathBuf>,
        /// The backend that served before, if a server has died and is to be replaced.
        resume: Option<Backend>,
    },
    /// Keep these deadlines from now on. Answered by nothing.
    Adjust {
        /// How long to wait for what.
        deadlines: Deadlines,
    },
    /// Give a backend its share of the operations. Answered by [`Report::Weighed`] or [`Report::Failed`].
    Weigh {
        /// The backend that is tried.
        candidate: Backend,
        /// Its share, from 0 (the other serves alone) to 100 (it does).
        percent: u8,
        /// What makes it so.
        cause: Cause,
        /// Why, in a few words.
        reason: String,
    },
    /// Inject faults. Answered by [`Report::Drilling`] or [`Report::Failed`].
    Drill {
        /// What is to be done.
        plan: Plan,
    },
    /// Inject no more faults. Answered by [`Report::DrillStopped`].
    StopDrill,
    /// See whether requests were read and never answered, and have the kernel send them again. Answered by nothing; what is
    /// found is counted in the ledger.
    RecoverLost,
    /// Compare this share of the calls from now on, or none. Answered by nothing; what is compared is counted in the ledger.
    Compare {
        /// What, if anything.
        comparing: Option<Comparing>,
    },
    /// Tell what comparisons have found. Answered by [`Report::Compared`].
    TellCompared,
    /// Log this from now on. Answered by nothing.
    LogLevel {
        /// A level or filter that has passed the checks of the configuration.
        level: String,
    },
    /// Unmount and end. Answered by [`Report::Stopped`], then the server exits.
    Stop,
}

/// Server to daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum Report {
    /// The mount is made and served; or, to a daemon that has just connected, is served still.
    Hello(Box<Hello>),
    /// The share of a backend is what it is to be.
    Weighed {
        /// The backend that is tried.
        candidate: Backend,
        /// Its share.
        percent: u8,
        /// The switch that this was, if one of the two serves alone now and did not before.
        switched: Option<Switched>,
    },
    /// An order failed; what was before goes on.
    Failed {
        /// What was tried, what happened, what to do.
        message: String,
    },
    /// A drill runs.
    Drilling(Ongoing),
    /// None runs any more; one did until now, perhaps.
    DrillStopped {
        /// This one.
        ended: Option<Ended>,
    },
    /// Sent without an order: a drill has ended by itself.
    DrillOver(Ended),
    /// What comparisons have found, as far as it is not in the ledger.
    Compared(Box<Told>),
    /// Sent without an order: a session ended by itself and the other backend has taken over.
    FailedOver(Switched),
    /// Sent without an order: somebody else has taken the mount out of the tree (`umount -l`), and programs still use it. The
    /// server serves these until they let go, no longer listens for a next daemon, and then says [`Report::Stopped`].
    Detached,
    /// The mount is gone and the server ends. Sent without an order when somebody else has unmounted.
    Stopped {
        /// Whether the mount was busy and had to be detached lazily.
        lazily: bool,
        /// Whether somebody else had unmounted.
        by_others: bool,
    },
}

/// How a mount is served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the messages.
    pub version: u32,
    /// What is served.
    pub mount: Mount,
    /// The mount's number in mountinfo, if it could be seen.
    pub mount_id: Option<u32>,
    /// The backend that serves.
    pub active: Backend,
    /// Minor version of the FUSE protocol that the kernel speaks (7.x).
    pub protocol_minor: u32,
    /// How it was mounted.
    pub helper: String,
    /// Why a backend of this build cannot serve here, if so.
    pub unavailable: Vec<Unavailable>,
    /// The last change of backend.
    pub last_switch: Option<PastSwitch>,
    /// Why it serves as it does, if that has changed since it began: what was ordered or has happened last.
    pub because: Option<(Cause, String)>,
    /// The drill that runs.
    pub drill: Option<Ongoing>,
}

/// A change of backend in the past.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PastSwitch {
    /// What it did.
    pub switched: Switched,
    /// When.
    #[serde(with = "humantime_serde")]
    pub at: SystemTime,
}

/// A backend that cannot serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unavailable {
    /// Which.
    pub backend: Backend,
    /// Why, and what to do.
    pub reason: String,
}

/// What a switch did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Switched {
    /// The backend that served before.
    pub from: Backend,
    /// The backend that serves now.
    pub to: Backend,
    /// Why.
    pub reason: String,
    /// How long no backend was reading requests, or reading was held back, in milliseconds.
    pub pause_ms: f64,
    /// How long the whole switch took, with the old backend's drain, in milliseconds.
    pub total_ms: f64,
    /// Requests that the old backend held when it stopped reading; it has answered them since.
    pub in_flight: usize,
    /// Those of them that were answered EIO at the deadline.
    pub answered_for_hung: usize,
}

/// One end of the socket pair.
#[derive(Debug)]
pub struct Line(OwnedFd);

/// Why a message did not come.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The other process is gone.
    #[error("the other process has gone")]
    Closed,
    /// Nothing came in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// Neither side of the same version, or damaged.
    #[error("a message cannot be understood: {0}")]
    Malformed(#[from] serde_json::Error),
    /// The socket failed.
    #[error("the socket between daemon and server failed: {0}")]
    Socket(#[from] io::Error),
}

impl From<nix::errno::Errno> for LineError {
    fn from(error: nix::errno::Errno) -> Self {
        match error {
            nix::errno::Errno::EPIPE | nix::errno::Errno::ECONNRESET => Self::Closed,
            other => Self::Socket(other.into()),
        }
    }
}

impl Line {
    /// A pair of connected ends.
    ///
    /// # Errors
    /// When no descriptors are left.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self(a), Self(b)))
    }

    /// Sends one message.
    ///
    /// # Errors
    /// [`LineError::Closed`] when the other side is gone; [`LineError::Socket`] (EAGAIN) when it does not read.
    pub fn send(&self, message: &impl Serialize) -> Result<(), LineError> {
        let bytes = serde_json::to_vec(message)?;
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&bytes)], &[], flags, None)?;
        Ok(())
    }

    /// Sends one message and a descriptor with it.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_with(&self, message: &impl Serialize, fd: BorrowedFd<'_>) -> Result<(), LineError> {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
        let bytes = serde_json::to_vec(message)?;
        let fds = [fd];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        rustix::net::sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
            .map_err(|error| LineError::from(nix::errno::Errno::from_raw(error.raw_os_error())))?;
        Ok(())
    }

    /// Waits for one message for at most `limit`.
    ///
    /// # Errors
    /// [`LineError::Timeout`] after `limit`, [`LineError::Closed`] when the other side is gone.
    pub fn receive<T: DeserializeOwned>(&self, limit: Duration) -> Result<T, LineError> {
        Ok(self.receive_with(limit)?.0)
    }

    /// As [`receive`](Self::receive), and the descriptor that came with the message.
    ///
    /// # Errors
    /// The same.
    pub fn receive_with<T: DeserializeOwned>(&self, limit: Duration) -> Result<(T, Option<OwnedFd>), LineError> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) if left.is_zero() => return Err(LineError::Timeout(limit)),
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                Ok(_) => return self.receive_now(),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn receive_now<T: DeserializeOwned>(&self) -> Result<(T, Option<OwnedFd>), LineError> {
        use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
        let mut bytes = vec![0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = rustix::net::recvmsg(&self.0, &mut parts, &mut control, flags)
            .map_err(|error| LineError::from(nix::errno::Errno::from_raw(error.raw_os_error())))?
            .bytes;
        if received == 0 {
            return Err(LineError::Closed);
        }
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        Ok((serde_json::from_slice(&bytes[..received])?, fd))
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Line {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<Line> for OwnedFd {
    fn from(line: Line) -> Self {
        line.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_and_closing_is_seen() {
        let (daemon, server) = Line::pair().unwrap();
        let order =
            Order::Weigh { candidate: Backend::Fuse3, percent: 100, cause: Cause::Operator, reason: "operator".into() };
        daemon.send(&order).unwrap();
        daemon.send(&Order::Stop).unwrap();
        assert_eq!(server.receive::<Order>(Duration::from_secs(1)).unwrap(), order);
        assert_eq!(server.receive::<Order>(Duration::from_secs(1)).unwrap(), Order::Stop);
        drop(daemon);
        assert!(matches!(server.receive::<Order>(Duration::from_secs(1)), Err(LineError::Closed)));
        assert!(matches!(server.send(&Order::Stop), Err(LineError::Closed)));
    }

    #[test]
    fn every_report_of_a_drill_can_be_said() {
        let (daemon, server) = Line::pair().unwrap();
        let plan = Plan::new(Backend::Fuse2, crate::backend::drill::Fault::Lose);
        let ended = Ended { plan: plan.clone(), struck: 7 };
        let ongoing = Ongoing { plan, until: SystemTime::UNIX_EPOCH };
        for report in [
            Report::Drilling(ongoing),
            Report::DrillStopped { ended: None },
            Report::DrillStopped { ended: Some(ended.clone()) },
            Report::DrillOver(ended),
        ] {
            server.send(&report).unwrap();
            assert_eq!(daemon.receive::<Report>(Duration::from_secs(1)).unwrap(), report);
        }
    }

    #[test]
    fn silence_ends_at_the_deadline() {
        let (_daemon, server) = Line::pair().unwrap();
        assert!(matches!(server.receive::<Order>(Duration::from_millis(5)), Err(LineError::Timeout(_))));
    }

    #[test]
    fn nonsense_is_refused() {
        let (daemon, server) = Line::pair().unwrap();
        daemon.send(&serde_json::json!({"order": "dance"})).unwrap();
        assert!(matches!(server.receive::<Order>(Duration::from_secs(1)), Err(LineError::Malformed(_))));
    }
}
