//! Listings. The crate does not say how large a reply may be, so what is gathered and what is sent differ.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use fuse3::raw::prelude::{DirectoryEntry, DirectoryEntryPlus};

use super::Adapter;
use super::translate::{attributes, file_type};
use crate::backend::{Listed, TakeBack, dot_attr};
use crate::vfs::{DirEntry, Entry, NodeId, Vfs};

/// The kernel asks for at least a page of a listing, and newer ones for as much as the program's buffer holds.
const SHORTEST_LISTING: usize = 4096;
pub(super) const LONGEST_LISTING: usize = 32 << 10;
/// `struct fuse_dirent` and `struct fuse_direntplus` before the name.
pub(super) const DIRENT: usize = 24;
pub(super) const DIRENTPLUS: usize = 152;

/// Entries are aligned to 8 bytes (`FUSE_DIRENT_ALIGN`).
pub(super) fn padded(length: usize) -> usize {
    length.next_multiple_of(8)
}

/// The names of a listing.
pub(super) struct Names(pub Vec<DirectoryEntry>);

impl TakeBack for Names {
    fn take_back(&self, _vfs: &dyn Vfs) {}
}

/// A listing with attributes, gathered and not sent yet.
pub(super) struct Gathered {
    pub entries: Vec<DirectoryEntryPlus>,
    pub counted: Listed,
}

impl TakeBack for Gathered {
    fn take_back(&self, vfs: &dyn Vfs) {
        self.counted.take_back(vfs);
    }
}

pub(super) fn direntplus(entry: &DirEntry<'_>, found: Option<&Entry>, lifetime: Duration) -> DirectoryEntryPlus {
    let (attr, lifetime) = match found {
        Some(found) => (found.attr, lifetime),
        None => (dot_attr(entry), Duration::ZERO),
    };
    DirectoryEntryPlus {
        // Crate fuser has one number for both; a directory that something is mounted on has two in the source.
        inode: attr.node.0,
        generation: found.map_or(0, |found| found.generation),
        kind: file_type(entry.kind),
        name: OsString::from(entry.name),
        offset: entry.offset as i64,
        attr: attributes(&attr),
        entry_ttl: lifetime,
        attr_ttl: lifetime,
    }
}

/// A listing on its way out. The crate does not say how large the reply may be: it takes entries until one does not fit,
/// and drops that one. So an entry counts as sent when the next is asked for; the lookups of the rest are taken back.
pub(super) struct Sending<'a> {
    adapter: &'a Adapter,
    rest: std::vec::IntoIter<DirectoryEntryPlus>,
    /// Given out last: sent, or dropped because it did not fit.
    last: Option<(u64, bool, usize)>,
    sent: usize,
}

impl<'a> Sending<'a> {
    pub(super) fn new(adapter: &'a Adapter, gathered: Gathered) -> Self {
        Self { adapter, rest: gathered.entries.into_iter(), last: None, sent: 0 }
    }
}

fn is_dot(name: &OsStr) -> bool {
    matches!(name.as_bytes(), b"." | b"..")
}

impl Iterator for Sending<'_> {
    type Item = fuse3::Result<DirectoryEntryPlus>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some((_, _, length)) = self.last.take() {
            self.sent += length;
        }
        let entry = self.rest.next()?;
        self.last = Some((entry.attr.ino, !is_dot(&entry.name), padded(DIRENTPLUS + entry.name.len())));
        Some(Ok(entry))
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        let unsent = self
            .last
            .take()
            .into_iter()
            .map(|(node, is_counted, _)| (node, is_counted))
            .chain(self.rest.by_ref().map(|entry| (entry.attr.ino, !is_dot(&entry.name))));
        let mut is_all_sent = true;
        for (node, is_counted) in unsent {
            is_all_sent = false;
            if is_counted {
                self.adapter.vfs.forget(NodeId(node), 1);
            }
        }
        // Kernels differ in how much they ask for, and each keeps to its way: gather about as much next time.
        let length = if is_all_sent {
            (self.adapter.listing.load(Relaxed) * 2).min(LONGEST_LISTING)
        } else {
            self.sent.clamp(SHORTEST_LISTING, LONGEST_LISTING)
        };
        self.adapter.listing.store(length, Relaxed);
    }
}
