//! The few structures of the FUSE protocol that we speak ourselves, named and laid out as in the kernel's
//! `include/uapi/linux/fuse.h`.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::vfs::Errno;

pub(crate) const FUSE_FORGET: u32 = 2;
pub(super) const FUSE_INIT: u32 = 26;
pub(super) const FUSE_DESTROY: u32 = 38;

pub(super) const FUSE_ASYNC_READ: u32 = 1 << 0;
pub(super) const FUSE_ATOMIC_O_TRUNC: u32 = 1 << 3;
pub(super) const FUSE_BIG_WRITES: u32 = 1 << 5;
pub(super) const FUSE_AUTO_INVAL_DATA: u32 = 1 << 12;
pub(super) const FUSE_DO_READDIRPLUS: u32 = 1 << 13;
pub(super) const FUSE_READDIRPLUS_AUTO: u32 = 1 << 14;
pub(super) const FUSE_ASYNC_DIO: u32 = 1 << 15;
pub(super) const FUSE_PARALLEL_DIROPS: u32 = 1 << 18;
pub(super) const FUSE_MAX_PAGES: u32 = 1 << 22;
pub(super) const FUSE_INIT_EXT: u32 = 1 << 30;
/// Bit 39, the 7th of `flags2` (Linux 6.9).
pub(super) const FUSE_HAS_RESEND: u32 = 1 << (39 - 32);

/// `FUSE_NOTIFY_RESEND` of `enum fuse_notify_code` (Linux 6.9).
pub(super) const FUSE_NOTIFY_RESEND: i32 = 7;

/// `struct fuse_in_header`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct InHeader {
    pub len: u32,
    pub opcode: u32,
    pub unique: u64,
    pub nodeid: u64,
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
    pub total_extlen: u16,
    pub padding: u16,
}

/// `struct fuse_out_header`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct OutHeader {
    pub len: u32,
    pub error: i32,
    pub unique: u64,
}

/// `struct fuse_init_in` up to 7.35 (16 bytes); `flags2` follows from 7.36 on.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct InitIn {
    pub major: u32,
    pub minor: u32,
    pub max_readahead: u32,
    pub flags: u32,
}

/// `struct fuse_init_in` from 7.36 on.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct InitInExt {
    pub base: InitIn,
    pub flags2: u32,
    pub unused: [u32; 11],
}

/// `struct fuse_init_out` of 7.23 and later.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct InitOut {
    pub major: u32,
    pub minor: u32,
    pub max_readahead: u32,
    pub flags: u32,
    pub max_background: u16,
    pub congestion_threshold: u16,
    pub max_write: u32,
    pub time_gran: u32,
    pub max_pages: u16,
    pub map_alignment: u16,
    pub flags2: u32,
    pub unused: [u32; 7],
}

/// `struct fuse_forget_in`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct ForgetIn {
    pub nlookup: u64,
}

/// Writes an answer to a device descriptor. An `error` of `None` sends `data`.
///
/// # Errors
/// ENOENT when the kernel waits for this request no more (it was answered, or the program that asked was killed): by the
/// protocol that is harmless.
pub(super) fn answer(device: impl AsFd, unique: u64, error: Option<Errno>, data: &[u8]) -> io::Result<()> {
    let header = OutHeader {
        len: (size_of::<OutHeader>() + data.len()) as u32,
        error: error.map_or(0, |error| -error.raw()),
        unique,
    };
    let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(data)];
    rustix::io::writev(device, if data.is_empty() { &parts[..1] } else { &parts })?;
    Ok(())
}

/// Answers EIO for a request whose handler is late. Whether the kernel was still waiting for it.
pub(super) fn answer_late(device: impl AsFd, unique: u64) -> bool {
    match answer(device, unique, Some(Errno::EIO), &[]) {
        Ok(()) => true,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => false,
        Err(error) => {
            tracing::warn!(unique, %error, "EIO for a late request could not be written");
            false
        }
    }
}

/// Tells the kernel to queue again everything that was read and not answered, with bit 63 set in `unique`
/// (`FUSE_NOTIFY_RESEND`). It is for the whole connection: nobody may hold an unanswered request that it will answer.
///
/// # Errors
/// EINVAL before Linux 6.9.
pub(super) fn notify_resend(device: impl AsFd) -> io::Result<()> {
    let header = OutHeader { len: size_of::<OutHeader>() as u32, error: FUSE_NOTIFY_RESEND, unique: 0 };
    rustix::io::write(device, header.as_bytes())?;
    Ok(())
}

/// A request of ours to a session: header and body in one message.
pub(super) fn request(opcode: u32, unique: u64, nodeid: u64, body: &[u8]) -> Vec<u8> {
    let header =
        InHeader { len: (size_of::<InHeader>() + body.len()) as u32, opcode, unique, nodeid, ..InHeader::default() };
    [header.as_bytes(), body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_the_kernels() {
        assert_eq!(size_of::<InHeader>(), 40);
        assert_eq!(size_of::<OutHeader>(), 16);
        assert_eq!(size_of::<InitIn>(), 16);
        assert_eq!(size_of::<InitInExt>(), 64);
        assert_eq!(size_of::<InitOut>(), 64);
    }
}
