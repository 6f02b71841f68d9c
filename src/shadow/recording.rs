//! A file system that runs nothing: it records each call as it was decoded, and gives the same answer to all of a kind.

use std::ffi::OsStr;

use parking_lot::Mutex;

use super::call::{Call, Data, Sample};
use crate::vfs::{
    Attr, Caller, Created, DirEntry, Entry, Errno, HandleId, ListFlow, NodeId, Result, SetAttr, StatFs, Timestamp, Vfs,
};

/// See the module.
#[derive(Default)]
pub struct Recording(Mutex<Vec<Sample>>);

/// Every field has a value of its own, so that one that is in the place of another is seen.
const ENTRY: Entry = Entry {
    attr: Attr {
        node: NodeId(0x0102_0304),
        size: 0x1112_1314_1516,
        blocks: 0x2122_2324,
        atime: Timestamp { sec: 0x3132_3334, nsec: 1 },
        mtime: Timestamp { sec: 0x4142_4344, nsec: 22 },
        ctime: Timestamp { sec: 0x5152_5354, nsec: 333 },
        mode: libc::S_IFREG | 0o4751,
        nlink: 3,
        uid: 0x6162,
        gid: 0x7172,
        rdev: 0x8182,
        blksize: 0x9192,
    },
    generation: 0xa1a2_a3a4,
};
const HANDLE: HandleId = HandleId(0xb1b2_b3b4_b5b6);
const COPIED: usize = 0xc1c2;

impl Recording {
    /// What was recorded since it was last asked.
    pub fn take(&self) -> Vec<Sample> {
        std::mem::take(&mut *self.0.lock())
    }

    fn note<T>(&self, caller: &Caller, call: Call, answer: T) -> Result<T> {
        self.0.lock().push(Sample { caller: *caller, call });
        Ok(answer)
    }
}

impl Vfs for Recording {
    fn setattr(&self, caller: &Caller, node: NodeId, handle: Option<HandleId>, set: &SetAttr) -> Result<Attr> {
        self.note(caller, Call::SetAttr { node, handle, set: *set }, ENTRY.attr)
    }

    fn symlink(&self, caller: &Caller, parent: NodeId, name: &OsStr, target: &OsStr) -> Result<Entry> {
        self.note(caller, Call::Symlink { parent, name: name.into(), target: target.into() }, ENTRY)
    }

    fn mknod(&self, caller: &Caller, parent: NodeId, name: &OsStr, mode: u32, rdev: u64) -> Result<Entry> {
        self.note(caller, Call::MkNod { parent, name: name.into(), mode, rdev }, ENTRY)
    }

    fn mkdir(&self, caller: &Caller, parent: NodeId, name: &OsStr, mode: u32) -> Result<Entry> {
        self.note(caller, Call::MkDir { parent, name: name.into(), mode }, ENTRY)
    }

    fn unlink(&self, caller: &Caller, parent: NodeId, name: &OsStr) -> Result<()> {
        self.note(caller, Call::Unlink { parent, name: name.into() }, ())
    }

    fn rmdir(&self, caller: &Caller, parent: NodeId, name: &OsStr) -> Result<()> {
        self.note(caller, Call::RmDir { parent, name: name.into() }, ())
    }

    fn rename(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &OsStr,
        new_parent: NodeId,
        new_name: &OsStr,
        flags: u32,
    ) -> Result<()> {
        let call = Call::Rename { parent, name: name.into(), new_parent, new_name: new_name.into(), flags };
        self.note(caller, call, ())
    }

    fn link(&self, caller: &Caller, node: NodeId, new_parent: NodeId, new_name: &OsStr) -> Result<Entry> {
        self.note(caller, Call::Link { node, new_parent, new_name: new_name.into() }, ENTRY)
    }

    fn open(&self, caller: &Caller, node: NodeId, flags: i32) -> Result<HandleId> {
        self.note(caller, Call::Open { node, flags }, HANDLE)
    }

    fn create(&self, caller: &Caller, parent: NodeId, name: &OsStr, mode: u32, flags: i32) -> Result<Created> {
        let created = Created { entry: ENTRY, handle: HANDLE };
        self.note(caller, Call::Create { parent, name: name.into(), mode, flags }, created)
    }

    fn write(&self, caller: &Caller, node: NodeId, handle: HandleId, offset: u64, data: &[u8]) -> Result<u32> {
        self.note(caller, Call::Write { node, handle, offset, data: data.into() }, data.len() as u32)
    }

    fn flush(&self, caller: &Caller, node: NodeId, handle: HandleId) -> Result<()> {
        self.note(caller, Call::Flush { node, handle }, ())
    }

    fn release(&self, node: NodeId, handle: HandleId) {
        // It cannot fail, and nobody asks for it by name.
        let _recorded = self.note(&Caller::default(), Call::Release { node, handle }, ());
    }

    fn fsync(&self, caller: &Caller, node: NodeId, handle: HandleId, data_only: bool) -> Result<()> {
        self.note(caller, Call::FSync { node, handle, data_only }, ())
    }

    fn opendir(&self, caller: &Caller, node: NodeId, flags: i32) -> Result<HandleId> {
        self.note(caller, Call::OpenDir { node, flags }, HANDLE)
    }

    fn releasedir(&self, node: NodeId, handle: HandleId) {
        let _recorded = self.note(&Caller::default(), Call::ReleaseDir { node, handle }, ());
    }

    fn fsyncdir(&self, caller: &Caller, node: NodeId, handle: HandleId, data_only: bool) -> Result<()> {
        self.note(caller, Call::FSyncDir { node, handle, data_only }, ())
    }

    fn setxattr(&self, caller: &Caller, node: NodeId, name: &OsStr, value: &[u8], flags: i32) -> Result<()> {
        self.note(caller, Call::SetXattr { node, name: name.into(), value: Data::from(value), flags }, ())
    }

    fn removexattr(&self, caller: &Caller, node: NodeId, name: &OsStr) -> Result<()> {
        self.note(caller, Call::RemoveXattr { node, name: name.into() }, ())
    }

    fn fallocate(
        &self,
        caller: &Caller,
        node: NodeId,
        handle: HandleId,
        offset: u64,
        length: u64,
        mode: i32,
    ) -> Result<()> {
        self.note(caller, Call::FAllocate { node, handle, offset, length, mode }, ())
    }

    fn copy_file_range(
        &self,
        caller: &Caller,
        from: (NodeId, HandleId, u64),
        to: (NodeId, HandleId, u64),
        length: u64,
    ) -> Result<usize> {
        self.note(caller, Call::CopyFileRange { from, to, length }, COPIED)
    }

    // What only reads is run in other sessions. Here it is not asked for.

    fn lookup(&self, _caller: &Caller, _parent: NodeId, _name: &OsStr) -> Result<Entry> {
        Err(Errno::EOPNOTSUPP)
    }

    fn forget(&self, _node: NodeId, _count: u64) {}

    fn getattr(&self, _caller: &Caller, _node: NodeId, _handle: Option<HandleId>) -> Result<Attr> {
        Err(Errno::EOPNOTSUPP)
    }

    fn readlink(&self, _caller: &Caller, _node: NodeId) -> Result<Vec<u8>> {
        Err(Errno::EOPNOTSUPP)
    }

    fn read(
        &self,
        _caller: &Caller,
        _node: NodeId,
        _handle: HandleId,
        _offset: u64,
        _buffer: &mut [u8],
    ) -> Result<usize> {
        Err(Errno::EOPNOTSUPP)
    }

    fn readdir(
        &self,
        _caller: &Caller,
        _node: NodeId,
        _handle: HandleId,
        _offset: u64,
        _sink: &mut dyn FnMut(&DirEntry<'_>) -> ListFlow,
    ) -> Result<()> {
        Err(Errno::EOPNOTSUPP)
    }

    fn statfs(&self, _caller: &Caller, _node: NodeId) -> Result<StatFs> {
        Err(Errno::EOPNOTSUPP)
    }
}
