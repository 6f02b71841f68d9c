//! A call as the request that the kernel would send, laid out as in its `include/uapi/linux/fuse.h` (protocol 7.31).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use zerocopy::{Immutable, IntoBytes};

use super::call::Call;
use crate::vfs::{HandleId, NodeId, SetAttr, TimeSet};

/// A request without its header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Encoded {
    pub opcode: u32,
    pub node: NodeId,
    pub body: Vec<u8>,
}

pub(super) const FUSE_OPENDIR: u32 = 27;
pub(super) const FUSE_RELEASEDIR: u32 = 29;

const FUSE_GETATTR_FH: u32 = 1 << 0;
const FATTR_MODE: u32 = 1 << 0;
const FATTR_UID: u32 = 1 << 1;
const FATTR_GID: u32 = 1 << 2;
const FATTR_SIZE: u32 = 1 << 3;
const FATTR_ATIME: u32 = 1 << 4;
const FATTR_MTIME: u32 = 1 << 5;
const FATTR_FH: u32 = 1 << 6;
const FATTR_ATIME_NOW: u32 = 1 << 7;
const FATTR_MTIME_NOW: u32 = 1 << 8;
const FUSE_FSYNC_FDATASYNC: u32 = 1 << 0;

macro_rules! requests {
    ($($(#[$meta:meta])* struct $name:ident { $($field:ident: $kind:ty),* $(,)? })*) => { $(
        $(#[$meta])*
        #[derive(Default, IntoBytes, Immutable)]
        #[repr(C)]
        struct $name { $($field: $kind),* }
    )* };
}

requests! {
    /// `struct fuse_getattr_in`.
    struct GetattrIn { getattr_flags: u32, dummy: u32, fh: u64 }
    /// `struct fuse_setattr_in`.
    struct SetattrIn {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    /// `struct fuse_mknod_in`.
    struct MknodIn { mode: u32, rdev: u32, umask: u32, padding: u32 }
    /// `struct fuse_mkdir_in`.
    struct MkdirIn { mode: u32, umask: u32 }
    /// `struct fuse_rename2_in`.
    struct Rename2In { newdir: u64, flags: u32, padding: u32 }
    /// `struct fuse_link_in`.
    struct LinkIn { oldnodeid: u64 }
    /// `struct fuse_open_in`.
    struct OpenIn { flags: u32, unused: u32 }
    /// `struct fuse_create_in`.
    struct CreateIn { flags: u32, mode: u32, umask: u32, padding: u32 }
    /// `struct fuse_read_in`.
    struct ReadIn { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    /// `struct fuse_write_in`.
    struct WriteIn { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    /// `struct fuse_flush_in`.
    struct FlushIn { fh: u64, unused: u32, padding: u32, lock_owner: u64 }
    /// `struct fuse_release_in`.
    struct ReleaseIn { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    /// `struct fuse_fsync_in`.
    struct FsyncIn { fh: u64, fsync_flags: u32, padding: u32 }
    /// `struct fuse_setxattr_in`, without what FUSE_SETXATTR_EXT adds, which is not negotiated.
    struct SetxattrIn { size: u32, flags: u32 }
    /// `struct fuse_getxattr_in`.
    struct GetxattrIn { size: u32, padding: u32 }
    /// `struct fuse_access_in`.
    struct AccessIn { mask: u32, padding: u32 }
    /// `struct fuse_lseek_in`.
    struct LseekIn { fh: u64, offset: u64, whence: u32, padding: u32 }
    /// `struct fuse_fallocate_in`.
    struct FallocateIn { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    /// `struct fuse_copy_file_range_in`.
    struct CopyFileRangeIn {
        fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64,
    }
}

/// The parts of a request's body, one after the other.
fn body(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// Names end with a zero byte.
fn with_names(fixed: &[u8], names: &[&OsStr]) -> Vec<u8> {
    let mut body = fixed.to_vec();
    for name in names {
        body.extend(name.as_bytes());
        body.push(0);
    }
    body
}

/// `umask` is the caller's, for the requests that have room for it.
pub(super) fn encode(call: &Call, umask: u32) -> Encoded {
    let (opcode, node, body) = match call {
        Call::Lookup { parent, name } => (1, parent, with_names(&[], &[name])),
        Call::GetAttr { node, handle } => {
            let getattr_flags = if handle.is_some() { FUSE_GETATTR_FH } else { 0 };
            let fixed = GetattrIn { getattr_flags, dummy: 0, fh: number(*handle) };
            (3, node, body(&[fixed.as_bytes()]))
        }
        Call::SetAttr { node, handle, set } => (4, node, body(&[setattr(*handle, set).as_bytes()])),
        Call::ReadLink { node } => (5, node, Vec::new()),
        Call::Symlink { parent, name, target } => (6, parent, with_names(&[], &[name, target])),
        Call::MkNod { parent, name, mode, rdev } => {
            let fixed = MknodIn { mode: *mode, rdev: *rdev as u32, umask, padding: 0 };
            (8, parent, with_names(fixed.as_bytes(), &[name]))
        }
        Call::MkDir { parent, name, mode } => {
            (9, parent, with_names(MkdirIn { mode: *mode, umask }.as_bytes(), &[name]))
        }
        Call::Unlink { parent, name } => (10, parent, with_names(&[], &[name])),
        Call::RmDir { parent, name } => (11, parent, with_names(&[], &[name])),
        // As the kernel does it.
        Call::Rename { parent, name, new_parent, new_name, flags: 0 } => {
            (12, parent, with_names(new_parent.0.as_bytes(), &[name, new_name]))
        }
        Call::Rename { parent, name, new_parent, new_name, flags } => {
            let fixed = Rename2In { newdir: new_parent.0, flags: *flags, padding: 0 };
            (45, parent, with_names(fixed.as_bytes(), &[name, new_name]))
        }
        Call::Link { node, new_parent, new_name } => {
            (13, new_parent, with_names(LinkIn { oldnodeid: node.0 }.as_bytes(), &[new_name]))
        }
        Call::Open { node, flags } => (14, node, body(&[opened(*flags).as_bytes()])),
        Call::Read { node, handle, offset, size } => (15, node, read(*handle, *offset, *size)),
        Call::Write { node, handle, offset, data } => {
            let size = data.bytes().len() as u32;
            let fixed = WriteIn { fh: handle.0, offset: *offset, size, ..WriteIn::default() };
            (16, node, body(&[fixed.as_bytes(), data.bytes()]))
        }
        Call::StatFs { node } => (17, node, Vec::new()),
        Call::Release { node, handle } => (18, node, release(*handle)),
        Call::FSync { node, handle, data_only } => (20, node, fsync(*handle, *data_only)),
        Call::SetXattr { node, name, value, flags } => {
            let fixed = SetxattrIn { size: value.bytes().len() as u32, flags: *flags as u32 };
            let mut whole = with_names(fixed.as_bytes(), &[name]);
            whole.extend(value.bytes());
            (21, node, whole)
        }
        Call::GetXattr { node, name, size } => {
            (22, node, with_names(GetxattrIn { size: *size, padding: 0 }.as_bytes(), &[name]))
        }
        Call::ListXattr { node, size } => (23, node, body(&[GetxattrIn { size: *size, padding: 0 }.as_bytes()])),
        Call::RemoveXattr { node, name } => (24, node, with_names(&[], &[name])),
        Call::Flush { node, handle } => (25, node, body(&[FlushIn { fh: handle.0, ..FlushIn::default() }.as_bytes()])),
        Call::OpenDir { node, flags } => (FUSE_OPENDIR, node, body(&[opened(*flags).as_bytes()])),
        // Of which handle, whoever has opened it knows.
        Call::ReadDir { node, offset } => (28, node, read(HandleId(0), *offset, 0)),
        Call::ReadDirPlus { node, offset } => (44, node, read(HandleId(0), *offset, 0)),
        Call::ReleaseDir { node, handle } => (FUSE_RELEASEDIR, node, release(*handle)),
        Call::FSyncDir { node, handle, data_only } => (30, node, fsync(*handle, *data_only)),
        Call::Access { node, mask } => (34, node, body(&[AccessIn { mask: *mask, padding: 0 }.as_bytes()])),
        Call::Create { parent, name, mode, flags } => {
            let fixed = CreateIn { flags: *flags as u32, mode: *mode, umask, padding: 0 };
            (35, parent, with_names(fixed.as_bytes(), &[name]))
        }
        Call::FAllocate { node, handle, offset, length, mode } => {
            let fixed = FallocateIn { fh: handle.0, offset: *offset, length: *length, mode: *mode as u32, padding: 0 };
            (43, node, body(&[fixed.as_bytes()]))
        }
        Call::LSeek { node, handle, offset, whence } => {
            let fixed = LseekIn { fh: handle.0, offset: *offset as u64, whence: *whence as u32, padding: 0 };
            (46, node, body(&[fixed.as_bytes()]))
        }
        Call::CopyFileRange { from, to, length } => {
            let fixed = CopyFileRangeIn {
                fh_in: from.1.0,
                off_in: from.2,
                nodeid_out: to.0.0,
                fh_out: to.1.0,
                off_out: to.2,
                len: *length,
                flags: 0,
            };
            (47, &from.0, body(&[fixed.as_bytes()]))
        }
    };
    Encoded { opcode, node: *node, body }
}

fn number(handle: Option<HandleId>) -> u64 {
    handle.map_or(0, |handle| handle.0)
}

/// READ, READDIR and READDIRPLUS.
pub(super) fn read(handle: HandleId, offset: u64, size: u32) -> Vec<u8> {
    ReadIn { fh: handle.0, offset, size, ..ReadIn::default() }.as_bytes().to_vec()
}

/// RELEASE and RELEASEDIR.
pub(super) fn release(handle: HandleId) -> Vec<u8> {
    ReleaseIn { fh: handle.0, ..ReleaseIn::default() }.as_bytes().to_vec()
}

/// OPENDIR of a directory that is to be listed.
pub(super) fn open_to_list(node: NodeId) -> Encoded {
    encode(&Call::OpenDir { node, flags: libc::O_RDONLY | libc::O_DIRECTORY }, 0)
}

fn opened(flags: i32) -> OpenIn {
    OpenIn { flags: flags as u32, unused: 0 }
}

fn fsync(handle: HandleId, data_only: bool) -> Vec<u8> {
    let fsync_flags = if data_only { FUSE_FSYNC_FDATASYNC } else { 0 };
    FsyncIn { fh: handle.0, fsync_flags, padding: 0 }.as_bytes().to_vec()
}

fn setattr(handle: Option<HandleId>, set: &SetAttr) -> SetattrIn {
    let mut it = SetattrIn { fh: number(handle), ..SetattrIn::default() };
    let mut valid = if handle.is_some() { FATTR_FH } else { 0 };
    if let Some(mode) = set.mode {
        (it.mode, valid) = (mode, valid | FATTR_MODE);
    }
    if let Some(uid) = set.uid {
        (it.uid, valid) = (uid, valid | FATTR_UID);
    }
    if let Some(gid) = set.gid {
        (it.gid, valid) = (gid, valid | FATTR_GID);
    }
    if let Some(size) = set.size {
        (it.size, valid) = (size, valid | FATTR_SIZE);
    }
    match set.atime {
        Some(TimeSet::At(time)) => {
            (it.atime, it.atimensec, valid) = (time.sec as u64, time.nsec, valid | FATTR_ATIME);
        }
        Some(TimeSet::Now) => valid |= FATTR_ATIME | FATTR_ATIME_NOW,
        None => {}
    }
    match set.mtime {
        Some(TimeSet::At(time)) => {
            (it.mtime, it.mtimensec, valid) = (time.sec as u64, time.nsec, valid | FATTR_MTIME);
        }
        Some(TimeSet::Now) => valid |= FATTR_MTIME | FATTR_MTIME_NOW,
        None => {}
    }
    SetattrIn { valid, ..it }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_the_kernels() {
        let sizes = [
            (size_of::<GetattrIn>(), 16),
            (size_of::<SetattrIn>(), 88),
            (size_of::<MknodIn>(), 16),
            (size_of::<MkdirIn>(), 8),
            (size_of::<Rename2In>(), 16),
            (size_of::<OpenIn>(), 8),
            (size_of::<CreateIn>(), 16),
            (size_of::<ReadIn>(), 40),
            (size_of::<WriteIn>(), 40),
            (size_of::<FlushIn>(), 24),
            (size_of::<ReleaseIn>(), 24),
            (size_of::<FsyncIn>(), 16),
            (size_of::<LseekIn>(), 24),
            (size_of::<FallocateIn>(), 32),
            (size_of::<CopyFileRangeIn>(), 56),
        ];
        for (ours, kernels) in sizes {
            assert_eq!(ours, kernels);
        }
    }
}
