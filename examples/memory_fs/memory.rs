//! What an implementer of [`Vfs`] must do, shown on the smallest useful file system.
//!
//! 1. **Count lookups.** Each [`Entry`] that is returned is one lookup; [`forget`](Vfs::forget) takes them back. A node
//!    must stay as long as it has a name *or* a lookup: programs go on using files that were deleted.
//! 2. **Give numbers that last.** A node's number must not change while it is known, whichever backend asks.
//! 3. **Give listings a place to go on from.** Any `offset` that was handed out may come back, on another handle too, and
//!    then nothing may be lost or come twice, whatever was made or removed meanwhile. Here each name gets a ticket when
//!    it is made, and the ticket is the offset.
//! 4. **Keep nothing in a handle that the node does not know**, if that is possible. Here a handle is always 0.
//! 5. **Never answer ENOSYS.** The kernel would stop asking, for the life of the mount.
//!
//! Permissions are the kernel's business (`default_permissions`), and so are most checks of names: it has looked both
//! ends up before it asks to change anything. One lock around everything keeps this file short; a file system for many
//! clients would rather do as [`PassThrough`](lighthouse_fs::vfs::PassThrough) does.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use lighthouse_fs::vfs::{
    Attr, Caller, Created, DirEntry, Entry, Errno, FileKind, HandleId, ListFlow, NodeId, ROOT, Result, SetAttr, StatFs,
    TimeSet, Timestamp, Vfs,
};

const BLOCK: u64 = 4096;
/// Files end here: what `statfs` shows as the size of everything.
const LARGEST: u64 = 1 << 30;
/// The one handle: everything is known by the node.
const HANDLE: HandleId = HandleId(0);

/// A file system in memory.
pub struct Memory(Mutex<State>);

struct State {
    nodes: HashMap<NodeId, Node>,
    /// The next node number or ticket; none is ever used twice.
    next: u64,
}

struct Node {
    attr: Attr,
    lookups: u64,
    content: Content,
}

enum Content {
    File(Vec<u8>),
    Directory(Directory),
    Symlink(Vec<u8>),
    /// FIFOs, sockets and device nodes: the kernel only asks for their attributes.
    Special,
}

struct Directory {
    parent: NodeId,
    tickets: HashMap<OsString, u64>,
    /// In the order of a listing.
    names: BTreeMap<u64, (OsString, NodeId)>,
}

impl Directory {
    fn new(parent: NodeId) -> Self {
        Self { parent, tickets: HashMap::new(), names: BTreeMap::new() }
    }

    fn get(&self, name: &OsStr) -> Option<NodeId> {
        Some(self.names[self.tickets.get(name)?].1)
    }

    fn insert(&mut self, ticket: u64, name: &OsStr, node: NodeId) {
        self.tickets.insert(name.to_owned(), ticket);
        self.names.insert(ticket, (name.to_owned(), node));
    }

    fn remove(&mut self, name: &OsStr) {
        if let Some(ticket) = self.tickets.remove(name) {
            self.names.remove(&ticket);
        }
    }
}

impl Node {
    fn directory(&self) -> Result<&Directory> {
        if let Content::Directory(directory) = &self.content { Ok(directory) } else { Err(Errno::ENOTDIR) }
    }

    fn directory_mut(&mut self) -> Result<&mut Directory> {
        if let Content::Directory(directory) = &mut self.content { Ok(directory) } else { Err(Errno::ENOTDIR) }
    }

    fn file_mut(&mut self) -> Result<&mut Vec<u8>> {
        if let Content::File(bytes) = &mut self.content { Ok(bytes) } else { Err(Errno::EINVAL) }
    }

    fn resize(&mut self, size: u64) -> Result<()> {
        if size > LARGEST {
            return Err(Errno::EFBIG);
        }
        self.file_mut()?.resize(size as usize, 0);
        self.attr.size = size;
        self.attr.blocks = size.div_ceil(512);
        self.attr.mtime = now();
        self.attr.ctime = self.attr.mtime;
        Ok(())
    }
}

fn now() -> Timestamp {
    SystemTime::now().into()
}

impl State {
    /// ESTALE, so that the kernel looks the path up again, for a node that nobody knows.
    fn node(&mut self, id: NodeId) -> Result<&mut Node> {
        self.nodes.get_mut(&id).ok_or(Errno::ESTALE)
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn child(&mut self, parent: NodeId, name: &OsStr) -> Result<NodeId> {
        let directory = self.node(parent)?.directory()?;
        match name.as_bytes() {
            b"." => Ok(parent),
            b".." => Ok(directory.parent),
            _ => directory.get(name).ok_or(Errno::ENOENT),
        }
    }

    /// Counts the lookup that each entry is.
    fn entry(&mut self, id: NodeId) -> Result<Entry> {
        let node = self.node(id)?;
        node.lookups += 1;
        Ok(Entry { attr: node.attr, generation: 0 })
    }

    /// Removes a node that has neither a name nor a lookup.
    fn drop_unused(&mut self, id: NodeId) {
        if self.nodes.get(&id).is_some_and(|node| node.attr.nlink == 0 && node.lookups == 0) {
            self.nodes.remove(&id);
        }
    }

    fn touch(&mut self, directory: NodeId) -> Result<()> {
        let attr = &mut self.node(directory)?.attr;
        attr.mtime = now();
        attr.ctime = attr.mtime;
        Ok(())
    }

    fn add_name(&mut self, parent: NodeId, name: &OsStr, id: NodeId) -> Result<()> {
        let ticket = self.number();
        self.node(parent)?.directory_mut()?.insert(ticket, name, id);
        self.touch(parent)
    }

    fn make(&mut self, caller: &Caller, parent: NodeId, name: &OsStr, mode: u32, content: Content) -> Result<Entry> {
        match self.child(parent, name) {
            Ok(_) => return Err(Errno::EEXIST),
            Err(Errno::ENOENT) => {}
            Err(error) => return Err(error),
        }
        let id = NodeId(self.number());
        let is_directory = matches!(content, Content::Directory(_));
        let size = if let Content::Symlink(target) = &content { target.len() as u64 } else { 0 };
        let attr = Attr { size, uid: caller.uid, gid: caller.gid, ..new_attr(id, mode) };
        self.nodes.insert(id, Node { attr, lookups: 0, content });
        self.add_name(parent, name, id)?;
        // The `..` of a directory is a name of its parent.
        self.node(parent)?.attr.nlink += u32::from(is_directory);
        self.entry(id)
    }

    fn remove(&mut self, parent: NodeId, name: &OsStr) -> Result<()> {
        let id = self.child(parent, name)?;
        let node = self.node(id)?;
        let is_directory = node.attr.kind() == FileKind::Directory;
        if node.directory().is_ok_and(|directory| !directory.names.is_empty()) {
            return Err(Errno::ENOTEMPTY);
        }
        node.attr.nlink -= if is_directory { 2 } else { 1 };
        node.attr.ctime = now();
        let parent_node = self.node(parent)?;
        parent_node.directory_mut()?.remove(name);
        parent_node.attr.nlink -= u32::from(is_directory);
        self.touch(parent)?;
        self.drop_unused(id);
        Ok(())
    }

    fn rename(&mut self, from: (NodeId, &OsStr), to: (NodeId, &OsStr)) -> Result<()> {
        let id = self.child(from.0, from.1)?;
        match self.child(to.0, to.1) {
            // Two names of one file: rename(2) does nothing.
            Ok(same) if same == id => return Ok(()),
            Ok(_) => self.remove(to.0, to.1)?,
            Err(Errno::ENOENT) => {}
            Err(error) => return Err(error),
        }
        self.node(from.0)?.directory_mut()?.remove(from.1);
        self.touch(from.0)?;
        self.add_name(to.0, to.1, id)?;
        let node = self.node(id)?;
        node.attr.ctime = now();
        if let Content::Directory(directory) = &mut node.content {
            directory.parent = to.0;
            self.node(from.0)?.attr.nlink -= 1;
            self.node(to.0)?.attr.nlink += 1;
        }
        Ok(())
    }
}

fn new_attr(node: NodeId, mode: u32) -> Attr {
    let (time, is_directory) = (now(), FileKind::from_mode(mode) == FileKind::Directory);
    Attr {
        node,
        size: 0,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        mode,
        nlink: if is_directory { 2 } else { 1 },
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK as u32,
    }
}

impl Memory {
    /// An empty file system.
    #[must_use]
    pub fn new() -> Self {
        let attr = new_attr(ROOT, libc::S_IFDIR | 0o1777);
        let root = Node { attr, lookups: 0, content: Content::Directory(Directory::new(ROOT)) };
        Self(Mutex::new(State { nodes: HashMap::from([(ROOT, root)]), next: ROOT.0 + 1 }))
    }

    /// A handler that panics is caught by the backend and costs one request, so the lock may be used again.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vfs for Memory {
    fn lookup(&self, _caller: &Caller, parent: NodeId, name: &OsStr) -> Result<Entry> {
        let mut state = self.state();
        let id = state.child(parent, name)?;
        state.entry(id)
    }

    fn known_nodes(&self, visit: &mut dyn FnMut(NodeId)) {
        let known: Vec<_> = self.state().nodes.keys().copied().collect();
        known.into_iter().for_each(visit);
    }

    fn forget(&self, node: NodeId, count: u64) {
        let mut state = self.state();
        if let Ok(known) = state.node(node) {
            known.lookups = known.lookups.saturating_sub(count);
        }
        state.drop_unused(node);
    }

    fn getattr(&self, _caller: &Caller, node: NodeId, _handle: Option<HandleId>) -> Result<Attr> {
        Ok(self.state().node(node)?.attr)
    }

    fn setattr(&self, _caller: &Caller, node: NodeId, _handle: Option<HandleId>, set: &SetAttr) -> Result<Attr> {
        let mut state = self.state();
        let node = state.node(node)?;
        if let Some(size) = set.size {
            node.resize(size)?;
        }
        let attr = &mut node.attr;
        let time = |set: Option<TimeSet>, old| match set {
            None => old,
            Some(TimeSet::Now) => now(),
            Some(TimeSet::At(time)) => time,
        };
        attr.mode = set.mode.map_or(attr.mode, |mode| attr.mode & libc::S_IFMT | mode & 0o7777);
        attr.uid = set.uid.unwrap_or(attr.uid);
        attr.gid = set.gid.unwrap_or(attr.gid);
        attr.atime = time(set.atime, attr.atime);
        attr.mtime = time(set.mtime, attr.mtime);
        attr.ctime = now();
        Ok(*attr)
    }

    fn readlink(&self, _caller: &Caller, node: NodeId) -> Result<Vec<u8>> {
        match &self.state().node(node)?.content {
            Content::Symlink(target) => Ok(target.clone()),
            _ => Err(Errno::EINVAL),
        }
    }

    fn symlink(&self, caller: &Caller, parent: NodeId, name: &OsStr, target: &OsStr) -> Result<Entry> {
        let content = Content::Symlink(target.as_bytes().to_vec());
        self.state().make(caller, parent, name, libc::S_IFLNK | 0o777, content)
    }

    fn mknod(&self, caller: &Caller, parent: NodeId, name: &OsStr, mode: u32, rdev: u64) -> Result<Entry> {
        let regular = FileKind::from_mode(mode) == FileKind::File;
        let content = if regular { Content::File(Vec::new()) } else { Content::Special };
        let mut state = self.state();
        let mut entry = state.make(caller, parent, name, mode, content)?;
        entry.attr.rdev = rdev as u32;
        state.node(entry.attr.node)?.attr.rdev = entry.attr.rdev;
        Ok(entry)
    }

    fn mkdir(&self, caller: &Caller, parent: NodeId, name: &OsStr, mode: u32) -> Result<Entry> {
        let content = Content::Directory(Directory::new(parent));
        self.state().make(caller, parent, name, libc::S_IFDIR | mode, content)
    }

    fn unlink(&self, _caller: &Caller, parent: NodeId, name: &OsStr) -> Result<()> {
        self.state().remove(parent, name)
    }

    fn rmdir(&self, _caller: &Caller, parent: NodeId, name: &OsStr) -> Result<()> {
        self.state().remove(parent, name)
    }

    fn rename(
        &self,
        _caller: &Caller,
        parent: NodeId,
        name: &OsStr,
        new_parent: NodeId,
        new_name: &OsStr,
        flags: u32,
    ) -> Result<()> {
        let mut state = self.state();
        match flags {
            0 => {}
            libc::RENAME_NOREPLACE if state.child(new_parent, new_name).is_ok() => return Err(Errno::EEXIST),
            libc::RENAME_NOREPLACE => {}
            _ => return Err(Errno::EINVAL),
        }
        state.rename((parent, name), (new_parent, new_name))
    }

    fn link(&self, _caller: &Caller, node: NodeId, new_parent: NodeId, new_name: &OsStr) -> Result<Entry> {
        let mut state = self.state();
        if state.child(new_parent, new_name).is_ok() {
            return Err(Errno::EEXIST);
        }
        let entry = state.entry(node)?;
        state.add_name(new_parent, new_name, node)?;
        let attr = &mut state.node(node)?.attr;
        attr.nlink += 1;
        Ok(Entry { attr: *attr, ..entry })
    }

    fn open(&self, _caller: &Caller, node: NodeId, flags: i32) -> Result<HandleId> {
        let mut state = self.state();
        let node = state.node(node)?;
        if flags & libc::O_TRUNC != 0 {
            node.resize(0)?;
        }
        Ok(HANDLE)
    }

    fn create(&self, caller: &Caller, parent: NodeId, name: &OsStr, mode: u32, flags: i32) -> Result<Created> {
        let content = Content::File(Vec::new());
        let made = self.state().make(caller, parent, name, libc::S_IFREG | mode & 0o7777, content);
        let entry = match made {
            Err(Errno::EEXIST) if flags & libc::O_EXCL == 0 => self.lookup(caller, parent, name)?,
            made => made?,
        };
        Ok(Created { entry, handle: HANDLE })
    }

    fn read(&self, _: &Caller, node: NodeId, _handle: HandleId, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let mut state = self.state();
        let bytes = state.node(node)?.file_mut()?;
        let rest = bytes.get(usize::try_from(offset).unwrap_or(usize::MAX)..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write(&self, _: &Caller, node: NodeId, _handle: HandleId, offset: u64, data: &[u8]) -> Result<u32> {
        let mut state = self.state();
        let node = state.node(node)?;
        let end = offset.checked_add(data.len() as u64).ok_or(Errno::EFBIG)?;
        node.resize(end.max(node.attr.size))?;
        node.file_mut()?[offset as usize..end as usize].copy_from_slice(data);
        Ok(data.len() as u32)
    }

    fn release(&self, _node: NodeId, _handle: HandleId) {}

    fn fsync(&self, _caller: &Caller, _node: NodeId, _handle: HandleId, _data_only: bool) -> Result<()> {
        Ok(())
    }

    fn opendir(&self, _caller: &Caller, node: NodeId, _flags: i32) -> Result<HandleId> {
        self.state().node(node)?.directory()?;
        Ok(HANDLE)
    }

    fn readdir(
        &self,
        _caller: &Caller,
        node: NodeId,
        _handle: HandleId,
        offset: u64,
        sink: &mut dyn FnMut(&DirEntry<'_>) -> ListFlow,
    ) -> Result<()> {
        // `sink` may call back into this file system (READDIRPLUS looks each name up), so the lock must be free by then.
        for (offset, kind, name, node) in self.listing(node, offset)? {
            if sink(&DirEntry { node, offset, kind, name: &name }) == ListFlow::Full {
                break;
            }
        }
        Ok(())
    }

    fn releasedir(&self, _node: NodeId, _handle: HandleId) {}

    fn fsyncdir(&self, _caller: &Caller, _node: NodeId, _handle: HandleId, _data_only: bool) -> Result<()> {
        Ok(())
    }

    fn statfs(&self, _caller: &Caller, _node: NodeId) -> Result<StatFs> {
        let used: u64 = self.state().nodes.values().map(|node| node.attr.size.div_ceil(BLOCK)).sum();
        let blocks = LARGEST / BLOCK;
        let free = blocks.saturating_sub(used);
        let size = BLOCK as u32;
        Ok(StatFs { blocks, bfree: free, bavail: free, bsize: size, frsize: size, namelen: 255, ..StatFs::default() })
    }
}

impl Memory {
    fn listing(&self, node: NodeId, offset: u64) -> Result<Vec<(u64, FileKind, OsString, NodeId)>> {
        let mut state = self.state();
        let directory = state.node(node)?.directory()?;
        // Tickets begin above these two.
        let dots = [(1, (OsString::from("."), node)), (2, (OsString::from(".."), directory.parent))];
        let names = directory.names.range(offset.saturating_add(1)..).map(|(ticket, name)| (*ticket, name.clone()));
        let listed: Vec<_> = dots.into_iter().filter(|(ticket, _)| *ticket > offset).chain(names).collect();
        listed
            .into_iter()
            .map(|(ticket, (name, node))| Ok((ticket, state.node(node)?.attr.kind(), name, node)))
            .collect()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
