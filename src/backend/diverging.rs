//! A file system that gives wrong answers to what a drill of [`Fault::Diverge`](super::drill::Fault::Diverge) strikes.
//! Nothing else is asked of it.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::vfs::{Attr, Caller, Created, DirEntry, Entry, HandleId, ListFlow, NodeId, Result, SetAttr, StatFs, Vfs};

/// See the module.
pub(super) struct Diverging(pub Arc<dyn Vfs>);

fn larger(attr: Attr) -> Attr {
    Attr { size: attr.size + 1, ..attr }
}

fn larger_entry(entry: Entry) -> Entry {
    Entry { attr: larger(entry.attr), ..entry }
}

macro_rules! as_it_is {
    ($(fn $name:ident($($argument:ident: $kind:ty),*) -> $answer:ty;)*) => { $(
        fn $name(&self, $($argument: $kind),*) -> $answer {
            self.0.$name($($argument),*)
        }
    )* };
}

impl Vfs for Diverging {
    fn lookup(&self, caller: &Caller, parent: NodeId, name: &OsStr) -> Result<Entry> {
        self.0.lookup(caller, parent, name).map(larger_entry)
    }

    fn lookup_listed(&self, caller: &Caller, parent: NodeId, entry: &DirEntry<'_>) -> Result<Option<Entry>> {
        Ok(self.0.lookup_listed(caller, parent, entry)?.map(larger_entry))
    }

    fn getattr(&self, caller: &Caller, node: NodeId, handle: Option<HandleId>) -> Result<Attr> {
        self.0.getattr(caller, node, handle).map(larger)
    }

    fn readlink(&self, caller: &Caller, node: NodeId) -> Result<Vec<u8>> {
        let mut target = self.0.readlink(caller, node)?;
        if let Some(last) = target.last_mut() {
            *last = if *last == b'x' { b'y' } else { b'x' };
        }
        Ok(target)
    }

    fn read(&self, caller: &Caller, node: NodeId, handle: HandleId, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        Ok(self.0.read(caller, node, handle, offset, buffer)?.saturating_sub(1))
    }

    fn statfs(&self, caller: &Caller, node: NodeId) -> Result<StatFs> {
        let it = self.0.statfs(caller, node)?;
        Ok(StatFs { files: it.files + 1, ..it })
    }

    fn readdir(
        &self,
        caller: &Caller,
        node: NodeId,
        handle: HandleId,
        offset: u64,
        sink: &mut dyn FnMut(&DirEntry<'_>) -> ListFlow,
    ) -> Result<()> {
        self.0.readdir(caller, node, handle, offset, sink)
    }

    as_it_is! {
        fn forget(node: NodeId, count: u64) -> ();
        fn setattr(caller: &Caller, node: NodeId, handle: Option<HandleId>, set: &SetAttr) -> Result<Attr>;
        fn symlink(caller: &Caller, parent: NodeId, name: &OsStr, target: &OsStr) -> Result<Entry>;
        fn mknod(caller: &Caller, parent: NodeId, name: &OsStr, mode: u32, rdev: u64) -> Result<Entry>;
        fn mkdir(caller: &Caller, parent: NodeId, name: &OsStr, mode: u32) -> Result<Entry>;
        fn unlink(caller: &Caller, parent: NodeId, name: &OsStr) -> Result<()>;
        fn rmdir(caller: &Caller, parent: NodeId, name: &OsStr) -> Result<()>;
        fn rename(caller: &Caller, parent: NodeId, name: &OsStr, to: NodeId, new: &OsStr, flags: u32) -> Result<()>;
        fn link(caller: &Caller, node: NodeId, parent: NodeId, name: &OsStr) -> Result<Entry>;
        fn open(caller: &Caller, node: NodeId, flags: i32) -> Result<HandleId>;
        fn create(caller: &Caller, parent: NodeId, name: &OsStr, mode: u32, flags: i32) -> Result<Created>;
        fn write(caller: &Caller, node: NodeId, handle: HandleId, offset: u64, data: &[u8]) -> Result<u32>;
        fn release(node: NodeId, handle: HandleId) -> ();
        fn fsync(caller: &Caller, node: NodeId, handle: HandleId, data_only: bool) -> Result<()>;
        fn opendir(caller: &Caller, node: NodeId, flags: i32) -> Result<HandleId>;
        fn releasedir(node: NodeId, handle: HandleId) -> ();
        fn fsyncdir(caller: &Caller, node: NodeId, handle: HandleId, data_only: bool) -> Result<()>;
    }
}
