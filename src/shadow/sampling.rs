//! Sampling: a share of the calls that a mount's backends make is copied into a bounded queue, from which they are
//! compared later.
//!
//! It stands between the backends and the vfs, where every request has been decoded and none is told apart by its backend.
//! While nothing is compared a call costs one relaxed load more; a call that is sampled is copied and pushed, and when the
//! queue is full it is counted as dropped. Nobody ever waits here.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use super::call::{Call, Data, Sample};
use crate::ledger::{Ledger, Operation};
use crate::vfs::{
    Attr, Caller, Created, DirEntry, Entry, HandleId, ListFlow, NodeId, Result, SetAttr, StatFs, Vfs, XattrSize,
};

/// Calls that wait to be compared; with data of [`MOST_DATA`] each they fill 8 MiB.
pub(super) const QUEUE: usize = 512;
/// So much of what is written, or read, is compared: a socket message must hold it, and copying must not be felt.
const MOST_DATA: usize = 16 << 10;
const MOST_READ: usize = 64 << 10;

/// Where sampled calls go.
pub(super) struct Tap {
    /// A call is sampled if a random number is at most this; 0 while nothing is compared.
    threshold: AtomicU32,
    queue: SyncSender<Sample>,
    ledger: Ledger,
}

impl Tap {
    pub(super) fn new(ledger: Ledger) -> (Arc<Self>, Receiver<Sample>) {
        let (queue, samples) = sync_channel(QUEUE);
        (Arc::new(Self { threshold: AtomicU32::new(0), queue, ledger }), samples)
    }

    /// From now on this share of the calls is sampled.
    pub(super) fn set_rate(&self, rate: f64) {
        // 1 is all; NaN is none.
        let threshold = (rate.clamp(0., 1.) * f64::from(u32::MAX)) as u32;
        self.threshold.store(threshold, Relaxed);
    }

    #[inline]
    fn offer(&self, caller: &Caller, call: impl FnOnce() -> Call) {
        let threshold = self.threshold.load(Relaxed);
        if threshold != 0 {
            self.draw(threshold, caller, call);
        }
    }

    #[cold]
    fn draw(&self, threshold: u32, caller: &Caller, call: impl FnOnce() -> Call) {
        if fastrand::u32(..) <= threshold {
            self.push(Sample { caller: *caller, call: call() });
        }
    }

    fn push(&self, sample: Sample) {
        match self.queue.try_send(sample) {
            // Nobody compares any more: neither does anybody count.
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(sample)) => self.dropped(sample.call.operation()),
        }
    }

    pub(super) fn dropped(&self, operation: Operation) {
        self.ledger.comparisons().dropped(operation);
    }
}

/// A vfs whose calls are sampled.
pub struct Sampled<V> {
    vfs: Arc<V>,
    tap: Arc<Tap>,
}

impl<V: Vfs> Sampled<V> {
    pub(super) fn new(vfs: Arc<V>, tap: Arc<Tap>) -> Self {
        Self { vfs, tap }
    }
}

fn limited(size: usize) -> u32 {
    size.min(MOST_READ) as u32
}

fn wanted(size: &XattrSize<'_>) -> u32 {
    match size {
        XattrSize::Query => 0,
        XattrSize::Into(buffer) => limited(buffer.len()),
    }
}

fn some_of(data: &[u8]) -> Data {
    data[..data.len().min(MOST_DATA)].into()
}

/// Who releases does not say who he is.
const NOBODY: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0 };

impl<V: Vfs> Vfs for Sampled<V> {
    fn may_block(&self, operation: Operation) -> bool {
        self.vfs.may_block(operation)
    }

    fn lookup(&self, caller: &Caller, parent: NodeId, name: &OsStr) -> Result<Entry> {
        self.tap.offer(caller, || Call::Lookup { parent, name: name.into() });
        self.vfs.lookup(caller, parent, name)
    }

    fn known_nodes(&self, visit: &mut dyn FnMut(NodeId)) {
        self.vfs.known_nodes(visit);
    }

    fn forget(&self, node: NodeId, count: u64) {
        self.vfs.forget(node, count);
    }

    fn getattr(&self, caller: &Caller, node: NodeId, handle: Option<HandleId>) -> Result<Attr> {
        self.tap.offer(caller, || Call::GetAttr { node, handle });
        self.vfs.getattr(caller, node, handle)
    }

    fn setattr(&self, caller: &Caller, node: NodeId, handle: Option<HandleId>, set: &SetAttr) -> Result<Attr> {
        self.tap.offer(caller, || Call::SetAttr { node, handle, set: *set });
        self.vfs.setattr(caller, node, handle, set)
    }

    fn readlink(&self, caller: &Caller, node: NodeId) -> Result<Vec<u8>> {
        self.tap.offer(caller, || Call::ReadLink { node });
        self.vfs.readlink(caller, node)
    }

    fn symlink(&self, caller: &Caller, parent: NodeId, name: &OsStr, target: &OsStr) -> Result<Entry> {
        self.tap.offer(caller, || Call::Symlink { parent, name: name.into(), target: target.into() });
        self.vfs.symlink(caller, parent, name, target)
    }

    fn mknod(&self, caller: &Caller, parent: NodeId, name: &OsStr, mode: u32, rdev: u64) -> Result<Entry> {
        self.tap.offer(caller, || Call::MkNod { parent, name: name.into(), mode, rdev });
        self.vfs.mknod(caller, parent, name, mode, rdev)
    }

    fn mkdir(&self, caller: &Caller, parent: NodeId, name: &OsStr, mode: u32) -> Result<Entry> {
        self.tap.offer(caller, || Call::MkDir { parent, name: name.into(), mode });
        self.vfs.mkdir(caller, parent, name, mode)
    }

    fn unlink(&self, caller: &Caller, parent: NodeId, name: &OsStr) -> Result<()> {
        self.tap.offer(caller, || Call::Unlink { parent, name: name.into() });
        self.vfs.unlink(caller, parent, name)
    }

    fn rmdir(&self, caller: &Caller, parent: NodeId, name: &OsStr) -> Result<()> {
        self.tap.offer(caller, || Call::RmDir { parent, name: name.into() });
        self.vfs.rmdir(caller, parent, name)
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
        self.tap.offer(caller, || Call::Rename {
            parent,
            name: name.into(),
            new_parent,
            new_name: new_name.into(),
            flags,
        });
        self.vfs.rename(caller, parent, name, new_parent, new_name, flags)
    }

    fn link(&self, caller: &Caller, node: NodeId, new_parent: NodeId, new_name: &OsStr) -> Result<Entry> {
        self.tap.offer(caller, || Call::Link { node, new_parent, new_name: new_name.into() });
        self.vfs.link(caller, node, new_parent, new_name)
    }

    fn open(&self, caller: &Caller, node: NodeId, flags: i32) -> Result<HandleId> {
        self.tap.offer(caller, || Call::Open { node, flags });
        self.vfs.open(caller, node, flags)
    }

    fn create(&self, caller: &Caller, parent: NodeId, name: &OsStr, mode: u32, flags: i32) -> Result<Created> {
        self.tap.offer(caller, || Call::Create { parent, name: name.into(), mode, flags });
        self.vfs.create(caller, parent, name, mode, flags)
    }

    fn read(&self, caller: &Caller, node: NodeId, handle: HandleId, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.tap.offer(caller, || Call::Read { node, handle, offset, size: limited(buffer.len()) });
        self.vfs.read(caller, node, handle, offset, buffer)
    }

    fn write(&self, caller: &Caller, node: NodeId, handle: HandleId, offset: u64, data: &[u8]) -> Result<u32> {
        self.tap.offer(caller, || Call::Write { node, handle, offset, data: some_of(data) });
        self.vfs.write(caller, node, handle, offset, data)
    }

    fn flush(&self, caller: &Caller, node: NodeId, handle: HandleId) -> Result<()> {
        self.tap.offer(caller, || Call::Flush { node, handle });
        self.vfs.flush(caller, node, handle)
    }

    fn release(&self, node: NodeId, handle: HandleId) {
        self.tap.offer(&NOBODY, || Call::Release { node, handle });
        self.vfs.release(node, handle);
    }

    fn fsync(&self, caller: &Caller, node: NodeId, handle: HandleId, data_only: bool) -> Result<()> {
        self.tap.offer(caller, || Call::FSync { node, handle, data_only });
        self.vfs.fsync(caller, node, handle, data_only)
    }

    fn opendir(&self, caller: &Caller, node: NodeId, flags: i32) -> Result<HandleId> {
        self.tap.offer(caller, || Call::OpenDir { node, flags });
        self.vfs.opendir(caller, node, flags)
    }

    /// Whether the kernel has asked for attributes too cannot be seen here, so a listing is compared in both forms by turns.
    fn readdir(
        &self,
        caller: &Caller,
        node: NodeId,
        handle: HandleId,
        offset: u64,
        sink: &mut dyn FnMut(&DirEntry<'_>) -> ListFlow,
    ) -> Result<()> {
        self.tap.offer(caller, || match fastrand::bool() {
            true => Call::ReadDirPlus { node, offset },
            false => Call::ReadDir { node, offset },
        });
        self.vfs.readdir(caller, node, handle, offset, sink)
    }

    fn lookup_listed(&self, caller: &Caller, parent: NodeId, entry: &DirEntry<'_>) -> Result<Option<Entry>> {
        self.vfs.lookup_listed(caller, parent, entry)
    }

    fn releasedir(&self, node: NodeId, handle: HandleId) {
        self.tap.offer(&NOBODY, || Call::ReleaseDir { node, handle });
        self.vfs.releasedir(node, handle);
    }

    fn fsyncdir(&self, caller: &Caller, node: NodeId, handle: HandleId, data_only: bool) -> Result<()> {
        self.tap.offer(caller, || Call::FSyncDir { node, handle, data_only });
        self.vfs.fsyncdir(caller, node, handle, data_only)
    }

    fn statfs(&self, caller: &Caller, node: NodeId) -> Result<StatFs> {
        self.tap.offer(caller, || Call::StatFs { node });
        self.vfs.statfs(caller, node)
    }

    fn setxattr(&self, caller: &Caller, node: NodeId, name: &OsStr, value: &[u8], flags: i32) -> Result<()> {
        self.tap.offer(caller, || Call::SetXattr { node, name: name.into(), value: some_of(value), flags });
        self.vfs.setxattr(caller, node, name, value, flags)
    }

    fn getxattr(&self, caller: &Caller, node: NodeId, name: &OsStr, size: XattrSize<'_>) -> Result<usize> {
        self.tap.offer(caller, || Call::GetXattr { node, name: name.into(), size: wanted(&size) });
        self.vfs.getxattr(caller, node, name, size)
    }

    fn listxattr(&self, caller: &Caller, node: NodeId, size: XattrSize<'_>) -> Result<usize> {
        self.tap.offer(caller, || Call::ListXattr { node, size: wanted(&size) });
        self.vfs.listxattr(caller, node, size)
    }

    fn removexattr(&self, caller: &Caller, node: NodeId, name: &OsStr) -> Result<()> {
        self.tap.offer(caller, || Call::RemoveXattr { node, name: name.into() });
        self.vfs.removexattr(caller, node, name)
    }

    fn access(&self, caller: &Caller, node: NodeId, mask: u32) -> Result<()> {
        self.tap.offer(caller, || Call::Access { node, mask });
        self.vfs.access(caller, node, mask)
    }

    fn lseek(&self, caller: &Caller, node: NodeId, handle: HandleId, offset: i64, whence: i32) -> Result<i64> {
        self.tap.offer(caller, || Call::LSeek { node, handle, offset, whence });
        self.vfs.lseek(caller, node, handle, offset, whence)
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
        self.tap.offer(caller, || Call::FAllocate { node, handle, offset, length, mode });
        self.vfs.fallocate(caller, node, handle, offset, length, mode)
    }

    fn copy_file_range(
        &self,
        caller: &Caller,
        from: (NodeId, HandleId, u64),
        to: (NodeId, HandleId, u64),
        length: u64,
    ) -> Result<usize> {
        self.tap.offer(caller, || Call::CopyFileRange { from, to, length });
        self.vfs.copy_file_range(caller, from, to, length)
    }

    fn ioctl(&self, caller: &Caller, node: NodeId, handle: HandleId, command: u32, input: &[u8]) -> Result<Vec<u8>> {
        self.vfs.ioctl(caller, node, handle, command, input)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::{Access, PassThrough, ROOT};

    fn tapped() -> (tempfile::TempDir, Sampled<PassThrough>, Receiver<Sample>, Ledger) {
        let source = tempfile::tempdir().unwrap();
        let vfs = Arc::new(PassThrough::new(source.path(), Access::ReadWrite).unwrap());
        let ledger = Ledger::create().unwrap();
        let (tap, samples) = Tap::new(ledger.clone());
        (source, Sampled::new(vfs, tap), samples, ledger)
    }

    #[test]
    fn a_share_of_the_calls_is_sampled() {
        let (_source, vfs, samples, ledger) = tapped();
        let caller = Caller { uid: 7, ..Caller::default() };
        vfs.getattr(&caller, ROOT, None).unwrap();
        assert!(samples.try_recv().is_err(), "nobody compares");
        vfs.tap.set_rate(1.);
        vfs.getattr(&caller, ROOT, None).unwrap();
        assert_eq!(samples.try_recv(), Ok(Sample { caller, call: Call::GetAttr { node: ROOT, handle: None } }));
        vfs.tap.set_rate(0.3);
        let count = (0..QUEUE).filter(|_| {
            vfs.getattr(&caller, ROOT, None).unwrap();
            samples.try_recv().is_ok()
        });
        assert!((90..220).contains(&count.count()));
        assert_eq!(ledger.comparisons().total().dropped, 0);
    }

    #[test]
    fn what_there_is_no_room_for_is_dropped_and_counted() {
        let (_source, vfs, samples, ledger) = tapped();
        vfs.tap.set_rate(1.);
        for _ in 0..QUEUE + 10 {
            vfs.statfs(&NOBODY, ROOT).unwrap();
        }
        assert_eq!(samples.try_iter().count(), QUEUE);
        assert_eq!(ledger.comparisons().get(Operation::StatFs).dropped, 10);
    }

    #[test]
    fn much_data_is_cut() {
        let (_source, vfs, samples, _ledger) = tapped();
        vfs.tap.set_rate(1.);
        let _ = vfs.write(&NOBODY, ROOT, HandleId(1), 0, &vec![1; 1 << 20]);
        let _ = vfs.read(&NOBODY, ROOT, HandleId(1), 0, &mut vec![0; 1 << 20]);
        let calls: Vec<_> = samples.try_iter().map(|sample| sample.call).collect();
        assert!(matches!(&calls[0], Call::Write { data, .. } if data.bytes().len() == MOST_DATA));
        assert!(matches!(calls[1], Call::Read { size, .. } if size as usize == MOST_READ));
    }
}
