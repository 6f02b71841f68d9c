//! From names to nodes, and changes of names. What exists is found by looking before opening, because most names that
//! are asked for are known; changes go through [`PassThrough::change`] alone.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, Stat};

use super::PassThrough;
use super::source::{ProcPath, attr, identity, new_component, retry, stat};
use crate::vfs::table::NodePin;
use crate::vfs::{Caller, Entry, Errno, NodeId, ROOT, Result};

/// How a node is opened: a reference to the file, whatever it is, without access to its content.
const NODE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl PassThrough {
    /// Looks first, since most names that are asked for are known already, and opens what is not.
    pub(super) fn find(&self, parent: &NodePin<'_>, name: &OsStr) -> Result<Entry> {
        let found = retry(|| rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW))?;
        match self.nodes.find(identity(&found)) {
            Some(node) => Ok(entry(node, &found)),
            None => self.open_node(parent, name),
        }
    }

    /// Opens first: for what is new.
    pub(super) fn open_node(&self, parent: &NodePin<'_>, name: &OsStr) -> Result<Entry> {
        self.enter(retry(|| rustix::fs::openat(parent, name, NODE, Mode::empty()))?)
    }

    /// The node of a file that is open already, by whatever name it has now.
    pub(super) fn node_of(&self, fd: BorrowedFd<'_>) -> Result<Entry> {
        let found = stat(fd)?;
        if let Some(node) = self.nodes.find(identity(&found)) {
            return Ok(entry(node, &found));
        }
        let path = ProcPath::of(fd);
        self.enter(retry(|| rustix::fs::open(path.as_c_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()))?)
    }

    /// `..`, which only a client asks for that holds a file handle of the mount (NFS, `open_by_handle_at`).
    pub(super) fn parent_of(&self, node: &NodePin<'_>) -> Result<Entry> {
        if node.id() == ROOT {
            return self.node_of(node.as_fd());
        }
        let parent = open_parent(node)?;
        // A directory that was moved out of the source has a parent that is none of the mount's business.
        if self.is_inside(parent.try_clone()?)? { self.enter(parent) } else { Err(Errno::ESTALE) }
    }

    fn is_inside(&self, mut directory: OwnedFd) -> Result<bool> {
        loop {
            let here = identity(&stat(&directory)?);
            if self.nodes.id_of(here) == ROOT {
                return Ok(true);
            }
            directory = open_parent(&directory)?;
            if identity(&stat(&directory)?) == here {
                return Ok(false);
            }
        }
    }

    fn enter(&self, fd: OwnedFd) -> Result<Entry> {
        let found = stat(&fd)?;
        Ok(entry(self.nodes.insert(identity(&found), fd)?, &found))
    }

    /// Makes `name` by `call`, owned by the caller.
    pub(super) fn make(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &OsStr,
        call: impl Fn(BorrowedFd<'_>, &OsStr) -> rustix::io::Result<()>,
    ) -> Result<Entry> {
        let name = new_component(name)?;
        let parent = self.nodes.pin(parent)?;
        self.change(|| self.creator.run_as(caller, || Ok(retry(|| call(parent.as_fd(), name))?)))?;
        self.open_node(&parent, name)
    }

    pub(super) fn remove(&self, parent: NodeId, name: &OsStr, flags: AtFlags) -> Result<()> {
        let name = new_component(name)?;
        let parent = self.nodes.pin(parent)?;
        self.change(|| Ok(retry(|| rustix::fs::unlinkat(&parent, name, flags))?))
    }

    pub(super) fn rename_entry(&self, from: (NodeId, &OsStr), to: (NodeId, &OsStr), flags: u32) -> Result<()> {
        let (name, new_name) = (new_component(from.1)?, new_component(to.1)?);
        let (parent, new_parent) = (self.nodes.pin(from.0)?, self.nodes.pin(to.0)?);
        let flags = RenameFlags::from_bits_retain(flags);
        self.change(|| Ok(retry(|| rustix::fs::renameat_with(&parent, name, &new_parent, new_name, flags))?))
    }

    pub(super) fn link_entry(&self, node: NodeId, new_parent: NodeId, new_name: &OsStr) -> Result<Entry> {
        let new_name = new_component(new_name)?;
        let (node, new_parent) = (self.nodes.pin(node)?, self.nodes.pin(new_parent)?);
        // Following the path of a descriptor leads to the node and no further, even when the node is a symbolic link.
        let path = ProcPath::of(&node);
        let follow = AtFlags::SYMLINK_FOLLOW;
        self.change(|| Ok(retry(|| rustix::fs::linkat(CWD, path.as_c_str(), &new_parent, new_name, follow))?))?;
        self.node_of(node.as_fd())
    }
}

fn open_parent(directory: impl AsFd) -> Result<OwnedFd> {
    Ok(retry(|| rustix::fs::openat(&directory, "..", NODE | OFlags::DIRECTORY, Mode::empty()))?)
}

fn entry(node: NodeId, stat: &Stat) -> Entry {
    // While a node is known its descriptor keeps its inode number taken, so one number is always enough.
    Entry { attr: attr(node, stat), generation: 0 }
}
