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

/// Of `enum fuse_notify_code`.
pub(super) const FUSE_NOTIFY_INVAL_INODE: i32 = 2;
pub(super) const FUSE_NOTIFY_INVAL_ENTRY: i32 = 3;
/// Linux 6.9.
pub(super) const FUSE_NOTIFY_RESEND: i32 = 7;
/// Flag of FUSE_NOTIFY_INVAL_ENTRY: the name is asked for again before it is used, and stays where it is (Linux 6.2).
pub(super) const FUSE_EXPIRE_ONLY: u32 = 1 << 0;

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

/// `struct fuse_notify_inval_inode_out`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct NotifyInvalInodeOut {
    pub ino: u64,
    pub off: i64,
    pub len: i64,
}

/// `struct fuse_notify_inval_entry_out`. The name follows, and a zero byte that `namelen` does not count.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct NotifyInvalEntryOut {
    pub parent: u64,
    pub namelen: u32,
    pub flags: u32,
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
    notify(device, FUSE_NOTIFY_RESEND, [&[], &[], &[]])
}

/// Tells the kernel that what it keeps of a node is old: its attributes, and, if `off` is not negative, its pages from there.
/// Then it waits for the locks of those pages, and for a backend to take the dirty ones (`fuse_reverse_inval_inode`).
///
/// # Errors
/// ENOENT when the kernel does not know the node.
pub(super) fn notify_inval_inode(device: impl AsFd, ino: u64, off: i64) -> io::Result<()> {
    let body = NotifyInvalInodeOut { ino, off, len: 0 };
    notify(device, FUSE_NOTIFY_INVAL_INODE, [body.as_bytes(), &[], &[]])
}

/// Tells the kernel to ask for a name again before it uses it. It waits for the lock of the directory, which a program may
/// hold whose request nobody has answered (`fuse_reverse_inval_entry`).
///
/// # Errors
/// ENOENT when the kernel does not know the name or its directory.
pub(super) fn notify_expire_entry(device: impl AsFd, parent: u64, name: &[u8]) -> io::Result<()> {
    let body = NotifyInvalEntryOut { parent, namelen: name.len() as u32, flags: FUSE_EXPIRE_ONLY };
    notify(device, FUSE_NOTIFY_INVAL_ENTRY, [body.as_bytes(), name, &[0]])
}

fn notify(device: impl AsFd, code: i32, body: [&[u8]; 3]) -> io::Result<()> {
    let len = size_of::<OutHeader>() + body.iter().map(|part| part.len()).sum::<usize>();
    let header = OutHeader { len: len as u32, error: code, unique: 0 };
    let parts = [header.as_bytes(), body[0], body[1], body[2]].map(IoSlice::new);
    rustix::io::retry_on_intr(|| rustix::io::writev(&device, &parts))?;
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
        assert_eq!(size_of::<NotifyInvalInodeOut>(), 24);
        assert_eq!(size_of::<NotifyInvalEntryOut>(), 16);
    }
}
