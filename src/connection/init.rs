//! FUSE_INIT: we answer the kernel's ourselves, once for the life of the connection, with features that both backends can
//! serve; and we send each session a synthetic one that says the same, so that both believe the same.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use zerocopy::{FromBytes, IntoBytes};

use crate::config::Io;

use super::wait_readable;
use super::wire::{self, InHeader, InitIn, InitInExt, InitOut};

/// Both crates decode the protocol up to 7.31 (Linux 5.4).
pub const PROTOCOL_MINOR: u32 = 31;

/// Requests that the kernel sends in the background (read-ahead, direct I/O) before it holds back more.
const MAX_BACKGROUND: u16 = 64;

/// What is offered to the kernel. Left out on purpose: locks (kernel-local, since all clients share one mount), writeback
/// caching, POSIX ACLs and everything that either crate cannot decode.
const FEATURES: u32 = wire::FUSE_ASYNC_READ
    | wire::FUSE_ATOMIC_O_TRUNC
    | wire::FUSE_BIG_WRITES
    | wire::FUSE_AUTO_INVAL_DATA
    | wire::FUSE_DO_READDIRPLUS
    | wire::FUSE_READDIRPLUS_AUTO
    | wire::FUSE_ASYNC_DIO
    | wire::FUSE_PARALLEL_DIROPS
    | wire::FUSE_MAX_PAGES;

/// What kernel and server have agreed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Negotiated {
    /// Minor version of the kernel's protocol (7.x).
    pub kernel_minor: u32,
    /// Feature bits in force (`FUSE_*` flags of `fuse.h`).
    pub features: u32,
    /// Largest WRITE in bytes.
    pub max_write: u32,
    /// Largest read-ahead in bytes.
    pub max_readahead: u32,
    /// Whether the kernel can send requests again (`FUSE_NOTIFY_RESEND`, Linux 6.9).
    pub can_resend: bool,
}

/// Why a connection could not be negotiated.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// No FUSE_INIT came.
    #[error("the kernel sent no FUSE_INIT within {0:?}: the descriptor is negotiated already, or not a FUSE device")]
    Silent(Duration),
    /// Something else came first.
    #[error(
        "the first request on the connection was not FUSE_INIT (opcode {0}): hand in a descriptor whose FUSE_INIT is unread"
    )]
    NotInit(u32),
    /// The kernel is too old.
    #[error(
        "this kernel speaks FUSE protocol {major}.{minor}, and 7.{PROTOCOL_MINOR} (Linux 5.4) is the oldest that both backends serve: boot a newer kernel"
    )]
    TooOld {
        /// Kernel's major version.
        major: u32,
        /// Kernel's minor version.
        minor: u32,
    },
    /// The device failed.
    #[error("FUSE_INIT failed on the device: {0}")]
    Device(#[from] io::Error),
}

/// Reads the kernel's FUSE_INIT from a new connection and answers it. Waits at most `limit`.
pub(super) fn negotiate(device: impl AsFd, io: &Io, limit: Duration) -> Result<Negotiated, InitError> {
    if !wait_readable(&device, limit)? {
        return Err(InitError::Silent(limit));
    }
    // FUSE_MIN_READ_BUFFER is 8 KiB; the kernel refuses a read into less than its largest request.
    let mut buffer = vec![0; 1 << 17];
    let length = loop {
        match rustix::io::read(&device, &mut buffer[..]) {
            Ok(length) => break length,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
    };
    let message = &buffer[..length];
    let (header, body) = InHeader::read_from_prefix(message).map_err(|_| InitError::NotInit(0))?;
    if header.opcode != wire::FUSE_INIT {
        return Err(InitError::NotInit(header.opcode));
    }
    let (init, _) = InitIn::read_from_prefix(body).map_err(|_| InitError::NotInit(header.opcode))?;
    if init.major != 7 || init.minor < PROTOCOL_MINOR {
        let too_old = InitError::TooOld { major: init.major, minor: init.minor };
        wire::answer(&device, header.unique, Some(crate::vfs::Errno::from_raw(libc::EPROTO)), &[])?;
        return Err(too_old);
    }
    let flags2 = match InitInExt::read_from_prefix(body) {
        Ok((extended, _)) if init.flags & wire::FUSE_INIT_EXT != 0 => extended.flags2,
        _ => 0,
    };
    let negotiated = Negotiated {
        kernel_minor: init.minor,
        features: FEATURES & init.flags,
        max_write: io.max_write,
        max_readahead: io.max_readahead.min(init.max_readahead),
        can_resend: flags2 & wire::FUSE_HAS_RESEND != 0,
    };
    let answer = InitOut {
        major: 7,
        minor: PROTOCOL_MINOR,
        max_readahead: negotiated.max_readahead,
        flags: negotiated.features,
        max_background: MAX_BACKGROUND,
        congestion_threshold: MAX_BACKGROUND / 4 * 3,
        max_write: negotiated.max_write,
        time_gran: 1,
        max_pages: max_pages(negotiated.max_write),
        ..InitOut::default()
    };
    wire::answer(&device, header.unique, None, answer.as_bytes())?;
    Ok(negotiated)
}

fn max_pages(bytes: u32) -> u16 {
    u16::try_from(bytes as usize / rustix::param::page_size()).unwrap_or(u16::MAX).max(1)
}

impl Negotiated {
    /// The message that tells a session what was agreed, as the kernel would have.
    pub(super) fn synthetic_init(&self) -> Vec<u8> {
        let body = InitInExt {
            base: InitIn { major: 7, minor: PROTOCOL_MINOR, max_readahead: self.max_readahead, flags: self.features },
            ..InitInExt::default()
        };
        wire::request(wire::FUSE_INIT, 2, 0, body.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::port::seqpacket_pair;

    fn kernel_says(major: u32, minor: u32, flags2: u32) -> (Result<Negotiated, InitError>, Vec<u8>) {
        let (kernel, ours) = seqpacket_pair().unwrap();
        let base = InitIn { major, minor, max_readahead: 1 << 17, flags: u32::MAX };
        let body = InitInExt { base, flags2, ..InitInExt::default() };
        rustix::io::write(&kernel, &wire::request(wire::FUSE_INIT, 6, 0, body.as_bytes())).unwrap();
        let result = negotiate(&ours, &Io::default(), Duration::from_secs(1));
        let mut answer = vec![0; 512];
        let length = rustix::io::read(&kernel, &mut answer[..]).unwrap();
        answer.truncate(length);
        (result, answer)
    }

    #[test]
    fn offers_what_both_backends_can_serve() {
        let (result, answer) = kernel_says(7, 45, wire::FUSE_HAS_RESEND);
        let agreed = result.unwrap();
        assert!(agreed.can_resend);
        assert_eq!(agreed.max_readahead, 1 << 17, "never more than the kernel's");
        let (header, body) = wire::OutHeader::read_from_prefix(&answer).unwrap();
        assert_eq!((header.error, header.unique, header.len as usize), (0, 6, answer.len()));
        let (out, _) = InitOut::read_from_prefix(body).unwrap();
        assert_eq!((out.major, out.minor, out.max_write), (7, PROTOCOL_MINOR, 1 << 20));
        for left_out in
            [1 << 1 /* POSIX_LOCKS */, 1 << 10 /* FLOCK_LOCKS */, 1 << 16 /* WRITEBACK_CACHE */]
        {
            assert_eq!(out.flags & left_out, 0);
        }
    }

    #[test]
    fn an_old_kernel_is_told_so() {
        let (result, answer) = kernel_says(7, 30, 0);
        let error = result.unwrap_err();
        assert!(matches!(error, InitError::TooOld { major: 7, minor: 30 }));
        assert!(error.to_string().contains("7.30, and 7.31 (Linux 5.4) is the oldest"), "{error}");
        let (header, _) = wire::OutHeader::read_from_prefix(&answer).unwrap();
        assert_eq!(header.error, -libc::EPROTO);
    }

    #[test]
    fn a_kernel_without_resend_is_noticed() {
        assert!(!kernel_says(7, 39, 0).0.unwrap().can_resend);
    }

    #[test]
    fn silence_ends_at_the_deadline() {
        let (_kernel, ours) = seqpacket_pair().unwrap();
        let result = negotiate(&ours, &Io::default(), Duration::from_millis(5));
        assert!(matches!(result, Err(InitError::Silent(_))));
    }
}
