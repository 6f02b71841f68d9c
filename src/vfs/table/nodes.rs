//! Nodes by number and by identity. Lookups are counted under the read lock of a shard of the index, and a node is
//! removed under its write lock, so a node that is being found cannot vanish; its pins outlive its removal.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use parking_lot::RwLock;
use zerocopy::{FromZeros, KnownLayout};

use super::records::{Descriptor, Record, Records};
use crate::vfs::{Errno, NodeId, ROOT, Result};

/// What makes a file of the source the same file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(in crate::vfs) struct Identity {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

/// The node is known to the kernel: FORGET has not taken its last lookup back. The rest of the word counts pins.
const KNOWN: u64 = 1 << 63;

/// One node. The state comes first in 64 bytes, so that two busy nodes never share its cache line.
#[repr(C)]
#[derive(FromZeros, KnownLayout)]
struct NodeRecord {
    state: AtomicU64,
    id: AtomicU64,
    inode: AtomicU64,
    device: AtomicU64,
    lookups: AtomicU64,
    next: AtomicU32,
    descriptor: Descriptor,
    reserved: [AtomicU64; 2],
}

impl Record for NodeRecord {
    fn next(&self) -> &AtomicU32 {
        &self.next
    }
}

impl NodeRecord {
    fn identity(&self) -> Identity {
        Identity { device: self.device.load(Relaxed), inode: self.inode.load(Relaxed) }
    }
}

/// Node ids from here up to 2^63 are hashes; ids from 2^63 up are never given out.
const HASHED: u64 = 1 << 62;
/// Places that a hashed id may take. The chance that even one collides is below one in a million for a million files.
const PROBES: u64 = 4;
const SHARDS: u64 = 64;

/// Record numbers by node id.
type Index = HashMap<u64, u32, BuildHasherDefault<Fold>>;

/// On a cache line of its own: taking the lock for reading writes to it.
#[derive(Default)]
#[repr(align(64))]
struct Shard(RwLock<Index>);

/// Nodes that the kernel knows.
///
/// A file on the source's own device has its inode number as node id, so `st_ino` is the same after FORGET, after a
/// switch and in another process. Other files get a hash with bit 62 set.
pub(in crate::vfs) struct NodeTable {
    records: Records<NodeRecord>,
    /// A node's shard is its id modulo `SHARDS`; the ids that one identity may get are in one shard.
    shards: Box<[Shard]>,
    root: Identity,
}

/// Keeps a node's descriptor open while it is used.
pub(in crate::vfs) struct NodePin<'t> {
    table: &'t NodeTable,
    record: &'t NodeRecord,
    index: u32,
}

impl NodeTable {
    /// A table that knows its root and has room for `capacity` nodes.
    ///
    /// # Errors
    /// ENOMEM when there is no address space for the records.
    pub(in crate::vfs) fn new(capacity: u32, root: Identity, fd: OwnedFd) -> Result<Self> {
        let shards = (0..SHARDS).map(|_| Shard::default()).collect();
        let table = Self { records: Records::new(capacity)?, shards, root };
        table.insert(root, fd)?;
        Ok(table)
    }

    /// The id that a file has or would get.
    pub(in crate::vfs) fn id_of(&self, identity: Identity) -> NodeId {
        let index = self.shard(self.first_id(identity)).read();
        NodeId(self.search(&index, identity).map_or_else(|| self.first_id(identity), |(id, _)| id))
    }

    /// Whether the kernel knows `node`.
    pub(in crate::vfs) fn knows(&self, node: NodeId) -> bool {
        self.shard(node.0).read().contains_key(&node.0)
    }

    /// Finds a known file and counts one lookup of it.
    pub(in crate::vfs) fn find(&self, identity: Identity) -> Option<NodeId> {
        let index = self.shard(self.first_id(identity)).read();
        let (id, record) = self.search(&index, identity)?;
        record.lookups.fetch_add(1, Relaxed);
        Some(NodeId(id))
    }

    /// Enters a file with its descriptor and counts one lookup. If it is known by now, `fd` is closed.
    ///
    /// # Errors
    /// ENFILE when the table is full.
    pub(in crate::vfs) fn insert(&self, identity: Identity, fd: OwnedFd) -> Result<NodeId> {
        let mut index = self.shard(self.first_id(identity)).write();
        if let Some((id, record)) = self.search(&index, identity) {
            record.lookups.fetch_add(1, Relaxed);
            return Ok(NodeId(id));
        }
        let id = self.candidates(identity).find(|id| !index.contains_key(id)).ok_or(Errno::ENFILE)?;
        let (at, record) = self.records.take()?;
        record.id.store(id, Relaxed);
        record.inode.store(identity.inode, Relaxed);
        record.device.store(identity.device, Relaxed);
        record.lookups.store(1, Relaxed);
        record.descriptor.put(fd);
        record.state.store(KNOWN, Release);
        index.insert(id, at);
        Ok(NodeId(id))
    }

    /// Takes back `count` lookups. With the last one the node becomes unknown; its descriptor is closed with its last
    /// pin. The root stays.
    pub(in crate::vfs) fn forget(&self, node: NodeId, count: u64) {
        if node == ROOT {
            return;
        }
        let mut index = self.shard(node.0).write();
        let Some(&at) = index.get(&node.0) else { return };
        let Some(record) = self.records.get(at) else { return };
        // Nobody else counts while the shard is locked for writing.
        let left = record.lookups.load(Relaxed).saturating_sub(count);
        record.lookups.store(left, Relaxed);
        if left > 0 {
            return;
        }
        index.remove(&node.0);
        drop(index);
        if record.state.fetch_and(!KNOWN, AcqRel) == KNOWN {
            self.retire(at, record);
        }
    }

    /// The known node `node`, ESTALE if there is none.
    pub(in crate::vfs) fn pin(&self, node: NodeId) -> Result<NodePin<'_>> {
        let shard = self.shard(node.0).read();
        let index = *shard.get(&node.0).ok_or(Errno::ESTALE)?;
        let record = self.records.get(index).ok_or(Errno::ESTALE)?;
        // The shard's lock keeps the node known until it is pinned.
        record.state.fetch_add(1, Acquire);
        Ok(NodePin { table: self, record, index })
    }

    /// Number of known nodes apart from the root.
    pub(in crate::vfs) fn known(&self) -> usize {
        self.shards.iter().map(|shard| shard.0.read().len()).sum::<usize>() - 1
    }

    /// Shows each known node, without a lock: one that becomes known or unknown meanwhile is shown or is not.
    pub(in crate::vfs) fn each_known(&self, visit: &mut dyn FnMut(NodeId)) {
        for record in self.records.touched() {
            let id = record.id.load(Relaxed);
            // 0: between two lives.
            if record.state.load(Acquire) & KNOWN != 0 && id != 0 {
                visit(NodeId(id));
            }
        }
    }

    fn shard(&self, id: u64) -> &RwLock<Index> {
        &self.shards[(id % SHARDS) as usize].0
    }

    fn search(&self, index: &Index, identity: Identity) -> Option<(u64, &NodeRecord)> {
        // All candidates are asked: one that was forgotten leaves a gap, and nothing moves up to close it.
        self.candidates(identity)
            .filter_map(|id| Some((id, self.records.get(*index.get(&id)?)?)))
            .find(|(_, record)| record.identity() == identity)
    }

    fn first_id(&self, identity: Identity) -> u64 {
        if identity == self.root {
            ROOT.0
        } else if identity.device == self.root.device && (2..HASHED).contains(&identity.inode) {
            identity.inode
        } else {
            HASHED | fold(identity.inode ^ fold(identity.device)) >> 2
        }
    }

    fn candidates(&self, identity: Identity) -> impl Iterator<Item = u64> + use<> {
        let first = self.first_id(identity);
        let probes = if first < HASHED { 1 } else { PROBES };
        (0..probes).map(move |probe| first & HASHED | (first + probe * SHARDS) & (HASHED - 1))
    }

    /// Called once for each node that became unknown: by `forget`, or by the last pin that outlived it.
    fn retire(&self, index: u32, record: &NodeRecord) {
        record.id.store(0, Relaxed);
        let descriptor = record.descriptor.take();
        self.records.give_back(index);
        drop(descriptor);
    }
}

impl NodePin<'_> {
    pub(in crate::vfs) fn id(&self) -> NodeId {
        NodeId(self.record.id.load(Relaxed))
    }
}

impl AsFd for NodePin<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `self` is the pin.
        unsafe { self.record.descriptor.borrow() }
    }
}

impl Drop for NodePin<'_> {
    fn drop(&mut self) {
        if self.record.state.fetch_sub(1, AcqRel) == 1 {
            self.table.retire(self.index, self.record);
        }
    }
}

impl Drop for NodeTable {
    fn drop(&mut self) {
        self.records.touched().iter().for_each(|record| drop(record.descriptor.take()));
    }
}

/// Multiplies and folds the upper half of the product in, so that every bit of `x` counts in every part of the result.
fn fold(x: u64) -> u64 {
    let product = u128::from(x) * 0x9e37_79b9_7f4a_7c15;
    product as u64 ^ (product >> 64) as u64
}

/// Hasher for numbers that nobody chooses with ill intent.
#[derive(Default)]
struct Fold(u64);

impl Hasher for Fold {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = fold(self.0 ^ number);
    }
}

#[cfg(test)]
mod tests;
