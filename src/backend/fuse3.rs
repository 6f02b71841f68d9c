//! Backend `fuse3`: crate fuse3. Asynchronous; one read loop and a task for each request, behind a [`PolledPort`].
//!
//! Calls of the vfs run inline on the runtime's thread, which is the fastest; those that may block run on its pool.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use bytes::Bytes;
use fuse3::raw::prelude::{
    DirectoryEntry, DirectoryEntryPlus, FileAttr, ReplyAttr, ReplyBmap, ReplyCopyFileRange, ReplyCreated, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEntry, ReplyInit, ReplyLSeek, ReplyOpen, ReplyPoll, ReplyStatFs,
    ReplyWrite, ReplyXAttr, Request,
};
use fuse3::raw::{Filesystem, Session};
use fuse3::{FileType, MountOptions, SetAttr as Fuse3SetAttr};
use futures_util::{FutureExt, Stream, stream};
use nix::fcntl::{Flock, FlockArg};
use parking_lot::Mutex;

use super::{Context, Listed, OPEN_FLAGS, Opened, OpenedDir, StartError, TakeBack, entry_lifetime, forget, guarded};
use crate::config::{Backend, Cache};
use crate::connection::port::{NUDGE_NODE, OnEnd, PolledPort, Port};
use crate::ledger::AnswerStatus;
use crate::vfs::{
    Attr, Caller, Created, DirEntry, Entry, Errno, FileKind, HandleId, ListFlow, NodeId, Operation, Result, SetAttr,
    TimeSet, Timestamp, Vfs, XattrSize,
};

/// Ready events between two looks at the drivers: a switch under load stays below a millisecond.
const EVENT_INTERVAL: u32 = 8;
/// The kernel asks for at least a page of a listing, and newer ones for as much as the program's buffer holds.
const SHORTEST_LISTING: usize = 4096;
const LONGEST_LISTING: usize = 32 << 10;
/// `struct fuse_dirent` and `struct fuse_direntplus` before the name.
const DIRENT: usize = 24;
const DIRENTPLUS: usize = 152;
/// Read buffers that are kept for later; more are made and dropped as needed.
const SPARE_BUFFERS: usize = 32;
/// An empty folder whose name carries the number of the descriptor to be sent, and the helper's name for itself.
const HELPER_NAME: &str = "fusermount3";

pub(super) fn start(
    context: &Context,
    on_end: OnEnd,
    limit: Duration,
) -> std::result::Result<Arc<dyn Port>, StartError> {
    let failed = |message: String| StartError::Crate { backend: Backend::Fuse3, message };
    let lease = context.leases.tasks()?;
    let port = PolledPort::new(context.connection.clone(), context.ledger.clone(), lease, on_end)?;
    let adapter = Adapter::new(context, port.clone());
    let (ready, started) = mpsc::channel();
    let runs = port.clone();
    std::thread::Builder::new()
        .name("fuse3-runtime".into())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .event_interval(EVENT_INTERVAL)
                .thread_name("fuse3-pool")
                .enable_all()
                .build();
            match runtime {
                Ok(runtime) => {
                    let _gone = runs.clone().tell_when_gone();
                    runtime.block_on(serve(adapter, runs, &ready, limit));
                    // A handler on the pool that never comes back must not keep this thread.
                    runtime.shutdown_background();
                }
                Err(error) => drop(ready.send(Err(format!("no tokio runtime: {error}")))),
            }
        })
        .map_err(|error| failed(error.to_string()))?;
    match started.recv_timeout(limit) {
        Ok(Ok(())) => Ok(port),
        Ok(Err(message)) => Err(failed(message)),
        Err(_) => {
            port.retire();
            Err(failed(format!("nothing happened within {limit:?}")))
        }
    }
}

/// Runs one session from its start to its end, on the runtime's thread.
async fn serve(
    adapter: Adapter,
    port: Arc<PolledPort>,
    ready: &mpsc::Sender<std::result::Result<(), String>>,
    limit: Duration,
) {
    let handle = match open_session(adapter, &port).await {
        Ok(handle) => handle,
        Err(message) => return drop(ready.send(Err(message))),
    };
    // A bug in the crate may panic its task; awaiting it would pass the panic on to us.
    let session = std::panic::AssertUnwindSafe(handle).catch_unwind().map(|end| match end {
        Ok(Ok(())) => tracing::debug!("a session of fuse3 has ended"),
        Ok(Err(error)) => tracing::warn!(%error, "a session of fuse3 has ended"),
        Err(_panic) => tracing::error!("a session of fuse3 has panicked"),
    });
    let introduced = tokio::task::spawn_blocking({
        let port = port.clone();
        move || port.introduce(limit)
    });
    let mut session = std::pin::pin!(session);
    let introduced = tokio::select! {
        introduced = introduced => introduced.map_err(|error| error.to_string()).and_then(|r| r.map_err(|e| e.to_string())),
        () = &mut session => Err("its session ended during the handshake".into()),
    };
    if let Err(message) = introduced {
        return drop(ready.send(Err(message)));
    }
    // `Filesystem::ready` hands over what keeps the session's descriptor open; it comes right after the handshake.
    tokio::task::yield_now().await;
    let opened = port.open_for_orders().map_err(|error| error.to_string());
    let is_open = opened.is_ok();
    if ready.send(opened).is_err() || !is_open {
        return;
    }
    port.run(session).await;
}

/// The crate has no constructor from a descriptor: it runs `fusermount3` and takes the descriptor that this sends. Our own
/// program, called by that name, is the helper, and what it sends is the port's set.
async fn open_session(adapter: Adapter, port: &PolledPort) -> std::result::Result<fuse3::raw::MountHandle, String> {
    check_link()?;
    let set = port.inheritable_set().map_err(|error| error.to_string())?;
    let folder = tempfile::Builder::new()
        .prefix("lighthouse-fs-")
        .suffix(&format!(".fd-{}", set.as_raw_fd()))
        .tempdir()
        .map_err(|error| format!("no temporary folder for the handshake: {error}"))?;
    let handle = Session::new(MountOptions::default())
        .mount_with_unprivileged(adapter, folder.path())
        .await
        .map_err(|error| error.to_string())?;
    // The runtime has one thread, so the session's task has not run yet, and has not read yet.
    port.adopt(&[set.as_raw_fd()]).map_err(|error| error.to_string())?;
    Ok(handle)
}

/// Acts as the mount helper that crate fuse3 runs, and exits, if this process was started as one.
pub(super) fn act_as_mount_helper() {
    let mut arguments = std::env::args_os();
    let called = arguments.next().unwrap_or_default();
    if Path::new(&called).file_name() != Some(OsStr::new(HELPER_NAME)) {
        return;
    }
    // The crate's way to clean up after a start that failed. Nothing was mounted.
    if arguments.next().is_some_and(|option| option == "-u") {
        std::process::exit(0);
    }
    if let Some(socket) = std::env::var_os("_FUSE_COMMFD") {
        let code = match send_set(&socket) {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("{HELPER_NAME} of lighthouse-fs: {error}");
                1
            }
        };
        std::process::exit(code);
    }
}

/// The link by which crate fuse3 finds our mount helper, or why there is none, once a process was prepared.
static LINK: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();

/// The folder that has our mount helper in it, first in PATH. Removed when dropped.
#[derive(Debug)]
pub(super) struct HelperLink {
    /// A shared lock on the folder, which keeps those who clean temporary folders off (tmpfiles.d(5)).
    _lock: Flock<File>,
    _folder: tempfile::TempDir,
}

impl HelperLink {
    /// Only while the process has one thread: PATH is changed.
    pub(super) fn install() -> Option<Self> {
        let (link, installed) = match Self::make() {
            Ok((link, installed)) => (Ok(link), Some(installed)),
            Err(error) => (
                Err(format!(
                    "fuse3 needs a folder for its helper below {}: {error}; set TMPDIR to a folder that can be written",
                    std::env::temp_dir().display()
                )),
                None,
            ),
        };
        // One a process; a second one goes before the first in PATH, and both lead here.
        LINK.get_or_init(|| link);
        installed
    }

    fn make() -> std::io::Result<(PathBuf, Self)> {
        let folder = tempfile::Builder::new().prefix("lighthouse-fs-").suffix(".path").tempdir()?;
        let lock = Flock::lock(File::open(folder.path())?, FlockArg::LockSharedNonblock).map_err(|(_, error)| error)?;
        let link = folder.path().join(HELPER_NAME);
        std::os::unix::fs::symlink("/proc/self/exe", &link)?;
        let mut path = folder.path().as_os_str().to_owned();
        if let Some(old) = std::env::var_os("PATH") {
            path.push(":");
            path.push(old);
        }
        set_path(&path);
        Ok((link, Self { _lock: lock, _folder: folder }))
    }
}

/// Without the link, the crate would run libfuse's helper, which mounts.
fn check_link() -> std::result::Result<(), String> {
    match LINK.get() {
        Some(Err(why)) => Err(why.clone()),
        Some(Ok(link)) if link.symlink_metadata().is_err() => Err(format!(
            "{} has been removed, without which fuse3 cannot start: restart the mount, and keep temporary folders that are in use",
            link.display()
        )),
        _ => Ok(()),
    }
}

#[expect(clippy::disallowed_methods, reason = "crate fuse3 looks its helper up in the PATH of this very process")]
fn set_path(path: &OsStr) {
    // SAFETY: whoever prepares the process promises that no other thread exists that could read the environment meanwhile.
    unsafe { std::env::set_var("PATH", path) };
}

fn send_set(socket: &OsStr) -> std::io::Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let number = |text: Option<&str>, what: &str| {
        text.and_then(|text| text.parse::<RawFd>().ok())
            .ok_or_else(|| std::io::Error::other(format!("{what} has no descriptor's number")))
    };
    let socket = number(socket.to_str(), "_FUSE_COMMFD")?;
    let folder = std::env::args_os().next_back().unwrap_or_default();
    let set = number(folder.to_str().and_then(|folder| folder.rsplit_once(".fd-")).map(|(_, fd)| fd), "the folder")?;
    let parts = [std::io::IoSlice::new(&[0])];
    sendmsg::<()>(socket, &parts, &[ControlMessage::ScmRights(&[set])], MsgFlags::empty(), None)?;
    Ok(())
}

struct Adapter {
    vfs: Arc<dyn Vfs>,
    port: Arc<PolledPort>,
    cache: Cache,
    max_write: NonZeroU32,
    may_block: Vec<bool>,
    buffers: Arc<Mutex<Vec<Vec<u8>>>>,
    /// Bytes of a listing with attributes that the kernel took last: so many are gathered for the next.
    listing: AtomicUsize,
}

impl Adapter {
    fn new(context: &Context, port: Arc<PolledPort>) -> Self {
        let max_write = context.connection.negotiated().max_write;
        Self {
            may_block: Operation::ALL.iter().map(|operation| context.vfs.may_block(*operation)).collect(),
            vfs: context.vfs.clone(),
            port,
            cache: context.cache,
            max_write: NonZeroU32::new(max_write).unwrap_or(NonZeroU32::MIN),
            buffers: Arc::default(),
            listing: AtomicUsize::new(LONGEST_LISTING),
        }
    }

    fn may_block(&self, operation: Operation) -> bool {
        self.may_block[operation as usize]
    }

    /// Runs a call on the runtime's thread.
    async fn inline<T: TakeBack>(
        &self,
        request: Request,
        operation: Operation,
        node: u64,
        call: impl FnOnce(&dyn Vfs, &Caller) -> Result<T>,
    ) -> fuse3::Result<T> {
        let Ok(task) = self.port.enter(request.unique, operation, node).await else {
            return Err(libc::EIO.into());
        };
        let caller = caller(&request);
        let (result, status) = guarded(|| call(&*self.vfs, &caller));
        if self.port.finish(task, operation, status).await {
            return result.map_err(errno);
        }
        self.take_back(&result)
    }

    /// Runs a call on the pool, because it may block.
    async fn on_pool<T: TakeBack + Send + 'static>(
        &self,
        request: Request,
        operation: Operation,
        node: u64,
        call: impl FnOnce(&dyn Vfs, &Caller) -> Result<T> + Send + 'static,
    ) -> fuse3::Result<T> {
        let Ok(task) = self.port.enter(request.unique, operation, node).await else {
            return Err(libc::EIO.into());
        };
        let vfs = self.vfs.clone();
        let caller = caller(&request);
        let ran = tokio::task::spawn_blocking(move || guarded(|| call(&*vfs, &caller))).await;
        let (result, status) = ran.unwrap_or((Err(Errno::EIO), AnswerStatus::BackendError));
        if self.port.finish(task, operation, status).await {
            return result.map_err(errno);
        }
        self.take_back(&result)
    }

    #[cold]
    fn take_back<T: TakeBack>(&self, result: &Result<T>) -> fuse3::Result<T> {
        if let Ok(value) = result {
            value.take_back(&*self.vfs);
        }
        Err(libc::EIO.into())
    }

    fn buffer(&self, size: usize) -> Buffer {
        let spare = self.buffers.lock().pop();
        let mut bytes = spare.unwrap_or_default();
        if bytes.len() < size {
            bytes.resize(size, 0);
        }
        Buffer { bytes, length: 0, home: self.buffers.clone() }
    }

    fn entry(&self, entry: &Entry) -> ReplyEntry {
        ReplyEntry { ttl: entry_lifetime(&self.cache), attr: attributes(&entry.attr), generation: entry.generation }
    }

    fn attr(&self, attr: &Attr) -> ReplyAttr {
        ReplyAttr { ttl: self.cache.attributes, attr: attributes(attr) }
    }
}

/// Runs a call inline, or with owned copies of what it borrows on the pool.
macro_rules! handle {
    ($self:ident, $request:ident, $operation:expr, $node:expr, [$($name:ident),*], |$vfs:ident, $caller:ident| $call:expr) => {
        if $self.may_block($operation) {
            $(let $name = $name.to_owned();)*
            $self.on_pool($request, $operation, $node, move |$vfs, $caller| {
                $(let $name = &*$name;)*
                $call
            }).await
        } else {
            $self.inline($request, $operation, $node, |$vfs, $caller| $call).await
        }
    };
}

/// A read buffer that goes back to its adapter when the reply is written.
struct Buffer {
    bytes: Vec<u8>,
    length: usize,
    home: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut home = self.home.lock();
        if home.len() < SPARE_BUFFERS {
            home.push(std::mem::take(&mut self.bytes));
        }
    }
}

impl TakeBack for Buffer {
    fn take_back(&self, _vfs: &dyn Vfs) {}
}

fn caller(request: &Request) -> Caller {
    // CREATE and MKNOD come without the program's umask through this crate; the kernel has applied it.
    Caller { uid: request.uid, gid: request.gid, pid: request.pid, umask: 0 }
}

fn errno(error: Errno) -> fuse3::Errno {
    error.raw().into()
}

fn timestamp(time: Timestamp) -> fuse3::Timestamp {
    fuse3::Timestamp::new(time.sec, time.nsec)
}

fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
    }
}

fn attributes(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: attr.node.0,
        size: attr.size,
        blocks: attr.blocks,
        atime: timestamp(attr.atime),
        mtime: timestamp(attr.mtime),
        ctime: timestamp(attr.ctime),
        kind: file_type(attr.kind()),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
    }
}

fn time_set(time: fuse3::Timestamp) -> TimeSet {
    // "Now" arrives as the time at which the crate decoded it.
    TimeSet::At(Timestamp { sec: time.sec, nsec: time.nsec })
}

type Answer<T> = fuse3::Result<T>;

impl Filesystem for Adapter {
    async fn init(&self, _request: Request) -> Answer<ReplyInit> {
        // Nobody but the crate reads the answer; `max_write` sizes its read buffer.
        Ok(ReplyInit::new(self.max_write))
    }

    async fn ready(&self, notify: fuse3::notify::Notify) {
        // It holds the session's descriptor, so its number stays ours until the port is gone.
        self.port.keep(Box::new(notify));
    }

    async fn destroy(&self, _request: Request) {}

    async fn lookup(&self, request: Request, parent: u64, name: &OsStr) -> Answer<ReplyEntry> {
        let found: Answer<Entry> = handle!(self, request, Operation::Lookup, parent, [name], |vfs, caller| {
            vfs.lookup(caller, NodeId(parent), name)
        });
        match found {
            Err(error) if error.is_not_exist() && !self.cache.negative.is_zero() => {
                Ok(ReplyEntry { ttl: self.cache.negative, attr: attributes(&super::NO_ENTRY), generation: 0 })
            }
            found => Ok(self.entry(&found?)),
        }
    }

    async fn forget(&self, _request: Request, node: u64, count: u64) {
        if node == NUDGE_NODE {
            self.port.nudged();
        } else {
            forget(&*self.vfs, NodeId(node), count);
        }
    }

    async fn batch_forget(&self, _request: Request, nodes: &[(u64, u64)]) {
        for (node, count) in nodes {
            forget(&*self.vfs, NodeId(*node), *count);
        }
    }

    async fn getattr(&self, request: Request, node: u64, handle: Option<u64>, _flags: u32) -> Answer<ReplyAttr> {
        let attr: Attr = handle!(self, request, Operation::GetAttr, node, [], |vfs, caller| {
            vfs.getattr(caller, NodeId(node), handle.map(HandleId))
        })?;
        Ok(self.attr(&attr))
    }

    async fn setattr(&self, request: Request, node: u64, handle: Option<u64>, set: Fuse3SetAttr) -> Answer<ReplyAttr> {
        let set = SetAttr {
            mode: set.mode,
            uid: set.uid,
            gid: set.gid,
            size: set.size,
            atime: set.atime.map(time_set),
            mtime: set.mtime.map(time_set),
        };
        let attr: Attr = handle!(self, request, Operation::SetAttr, node, [], |vfs, caller| {
            vfs.setattr(caller, NodeId(node), handle.map(HandleId), &set)
        })?;
        Ok(self.attr(&attr))
    }

    async fn readlink(&self, request: Request, node: u64) -> Answer<ReplyData> {
        let target: Vec<u8> =
            handle!(self, request, Operation::ReadLink, node, [], |vfs, caller| vfs.readlink(caller, NodeId(node)))?;
        Ok(ReplyData { data: Bytes::from(target) })
    }

    async fn symlink(&self, request: Request, parent: u64, name: &OsStr, target: &OsStr) -> Answer<ReplyEntry> {
        let made: Entry = handle!(self, request, Operation::Symlink, parent, [name, target], |vfs, caller| {
            vfs.symlink(caller, NodeId(parent), name, target)
        })?;
        Ok(self.entry(&made))
    }

    async fn mknod(&self, request: Request, parent: u64, name: &OsStr, mode: u32, rdev: u32) -> Answer<ReplyEntry> {
        let made: Entry = handle!(self, request, Operation::MkNod, parent, [name], |vfs, caller| {
            vfs.mknod(caller, NodeId(parent), name, mode, rdev.into())
        })?;
        Ok(self.entry(&made))
    }

    async fn mkdir(&self, request: Request, parent: u64, name: &OsStr, mode: u32, umask: u32) -> Answer<ReplyEntry> {
        let made: Entry = handle!(self, request, Operation::MkDir, parent, [name], |vfs, caller| {
            vfs.mkdir(&Caller { umask, ..*caller }, NodeId(parent), name, mode)
        })?;
        Ok(self.entry(&made))
    }

    async fn unlink(&self, request: Request, parent: u64, name: &OsStr) -> Answer<()> {
        handle!(self, request, Operation::Unlink, parent, [name], |vfs, caller| {
            vfs.unlink(caller, NodeId(parent), name)
        })
    }

    async fn rmdir(&self, request: Request, parent: u64, name: &OsStr) -> Answer<()> {
        handle!(self, request, Operation::RmDir, parent, [name], |vfs, caller| {
            vfs.rmdir(caller, NodeId(parent), name)
        })
    }

    async fn rename(
        &self,
        request: Request,
        parent: u64,
        name: &OsStr,
        new_parent: u64,
        new_name: &OsStr,
    ) -> Answer<()> {
        self.rename2(request, parent, name, new_parent, new_name, 0).await
    }

    async fn rename2(
        &self,
        request: Request,
        parent: u64,
        name: &OsStr,
        new_parent: u64,
        new_name: &OsStr,
        flags: u32,
    ) -> Answer<()> {
        handle!(self, request, Operation::Rename, parent, [name, new_name], |vfs, caller| {
            vfs.rename(caller, NodeId(parent), name, NodeId(new_parent), new_name, flags)
        })
    }

    async fn link(&self, request: Request, node: u64, new_parent: u64, new_name: &OsStr) -> Answer<ReplyEntry> {
        let made: Entry = handle!(self, request, Operation::Link, node, [new_name], |vfs, caller| {
            vfs.link(caller, NodeId(node), NodeId(new_parent), new_name)
        })?;
        Ok(self.entry(&made))
    }

    async fn open(&self, request: Request, node: u64, flags: u32) -> Answer<ReplyOpen> {
        let opened: Opened = handle!(self, request, Operation::Open, node, [], |vfs, caller| {
            vfs.open(caller, NodeId(node), flags as i32).map(|handle| Opened(NodeId(node), handle))
        })?;
        Ok(ReplyOpen { fh: opened.1.0, flags: OPEN_FLAGS })
    }

    async fn create(&self, request: Request, parent: u64, name: &OsStr, mode: u32, flags: u32) -> Answer<ReplyCreated> {
        let created: Created = handle!(self, request, Operation::Create, parent, [name], |vfs, caller| {
            vfs.create(caller, NodeId(parent), name, mode, flags as i32)
        })?;
        Ok(ReplyCreated {
            ttl: entry_lifetime(&self.cache),
            attr: attributes(&created.entry.attr),
            generation: created.entry.generation,
            fh: created.handle.0,
            flags: OPEN_FLAGS,
        })
    }

    async fn read(&self, request: Request, node: u64, handle: u64, offset: u64, size: u32) -> Answer<ReplyData> {
        let mut buffer = self.buffer(size as usize);
        let read = move |vfs: &dyn Vfs, caller: &Caller| {
            buffer.length =
                vfs.read(caller, NodeId(node), HandleId(handle), offset, &mut buffer.bytes[..size as usize])?;
            Ok(buffer)
        };
        let buffer = if self.may_block(Operation::Read) {
            self.on_pool(request, Operation::Read, node, read).await?
        } else {
            self.inline(request, Operation::Read, node, read).await?
        };
        Ok(ReplyData { data: Bytes::from_owner(buffer) })
    }

    async fn write(
        &self,
        request: Request,
        node: u64,
        handle: u64,
        offset: u64,
        data: &[u8],
        _write_flags: u32,
        _flags: u32,
    ) -> Answer<ReplyWrite> {
        let written: u32 = handle!(self, request, Operation::Write, node, [data], |vfs, caller| {
            vfs.write(caller, NodeId(node), HandleId(handle), offset, data)
        })?;
        Ok(ReplyWrite { written })
    }

    async fn flush(&self, request: Request, node: u64, handle: u64, _lock_owner: u64) -> Answer<()> {
        handle!(self, request, Operation::Flush, node, [], |vfs, caller| {
            vfs.flush(caller, NodeId(node), HandleId(handle))
        })
    }

    async fn release(
        &self,
        request: Request,
        node: u64,
        handle: u64,
        _flags: u32,
        _lock_owner: u64,
        _flush: bool,
    ) -> Answer<()> {
        handle!(self, request, Operation::Release, node, [], |vfs, _caller| {
            vfs.release(NodeId(node), HandleId(handle));
            Ok(())
        })
    }

    async fn fsync(&self, request: Request, node: u64, handle: u64, data_only: bool) -> Answer<()> {
        handle!(self, request, Operation::FSync, node, [], |vfs, caller| {
            vfs.fsync(caller, NodeId(node), HandleId(handle), data_only)
        })
    }

    async fn opendir(&self, request: Request, node: u64, flags: u32) -> Answer<ReplyOpen> {
        let opened: OpenedDir = handle!(self, request, Operation::OpenDir, node, [], |vfs, caller| {
            vfs.opendir(caller, NodeId(node), flags as i32).map(|handle| OpenedDir(NodeId(node), handle))
        })?;
        Ok(ReplyOpen { fh: opened.1.0, flags: 0 })
    }

    async fn readdir<'a>(
        &'a self,
        request: Request,
        node: u64,
        handle: u64,
        offset: i64,
    ) -> Answer<ReplyDirectory<impl Stream<Item = Answer<DirectoryEntry>> + Send + 'a>> {
        let length = self.listing.load(Relaxed);
        let entries: Names = handle!(self, request, Operation::ReadDir, node, [], |vfs, caller| {
            let mut names = Vec::new();
            let mut left = length;
            vfs.readdir(caller, NodeId(node), HandleId(handle), offset as u64, &mut |entry| {
                match left.checked_sub(padded(DIRENT + entry.name.len())) {
                    Some(rest) => left = rest,
                    None => return ListFlow::Full,
                }
                names.push(DirectoryEntry {
                    inode: entry.node.0,
                    kind: file_type(entry.kind),
                    name: entry.name.to_owned(),
                    offset: entry.offset as i64,
                });
                ListFlow::Taken
            })?;
            Ok(Names(names))
        })?;
        Ok(ReplyDirectory { entries: stream::iter(entries.0.into_iter().map(Ok)) })
    }

    async fn readdirplus<'a>(
        &'a self,
        request: Request,
        node: u64,
        handle: u64,
        offset: u64,
        _lock_owner: u64,
    ) -> Answer<ReplyDirectoryPlus<impl Stream<Item = Answer<DirectoryEntryPlus>> + Send + 'a>> {
        let lifetime = entry_lifetime(&self.cache);
        let length = self.listing.load(Relaxed);
        let gathered: Gathered = handle!(self, request, Operation::ReadDirPlus, node, [], |vfs, caller| {
            let mut entries = Vec::new();
            let mut left = length;
            let counted = super::list_plus(
                vfs,
                caller,
                NodeId(node),
                HandleId(handle),
                offset,
                |entry: &DirEntry<'_>, found| {
                    match left.checked_sub(padded(DIRENTPLUS + entry.name.len())) {
                        Some(rest) => left = rest,
                        None => return ListFlow::Full,
                    }
                    entries.push(direntplus(entry, found, lifetime));
                    ListFlow::Taken
                },
            )?;
            Ok(Gathered { entries, counted })
        })?;
        Ok(ReplyDirectoryPlus { entries: stream::iter(Sending::new(self, gathered)) })
    }

    async fn releasedir(&self, request: Request, node: u64, handle: u64, _flags: u32) -> Answer<()> {
        handle!(self, request, Operation::ReleaseDir, node, [], |vfs, _caller| {
            vfs.releasedir(NodeId(node), HandleId(handle));
            Ok(())
        })
    }

    async fn fsyncdir(&self, request: Request, node: u64, handle: u64, data_only: bool) -> Answer<()> {
        handle!(self, request, Operation::FSyncDir, node, [], |vfs, caller| {
            vfs.fsyncdir(caller, NodeId(node), HandleId(handle), data_only)
        })
    }

    async fn statfs(&self, request: Request, node: u64) -> Answer<ReplyStatFs> {
        let it: crate::vfs::StatFs =
            handle!(self, request, Operation::StatFs, node, [], |vfs, caller| vfs.statfs(caller, NodeId(node)))?;
        Ok(ReplyStatFs {
            blocks: it.blocks,
            bfree: it.bfree,
            bavail: it.bavail,
            files: it.files,
            ffree: it.ffree,
            bsize: it.bsize,
            namelen: it.namelen,
            frsize: it.frsize,
        })
    }

    async fn setxattr(
        &self,
        request: Request,
        node: u64,
        name: &OsStr,
        value: &[u8],
        flags: u32,
        _position: u32,
    ) -> Answer<()> {
        handle!(self, request, Operation::SetXattr, node, [name, value], |vfs, caller| {
            vfs.setxattr(caller, NodeId(node), name, value, flags as i32)
        })
    }

    async fn getxattr(&self, request: Request, node: u64, name: &OsStr, size: u32) -> Answer<ReplyXAttr> {
        if size == 0 {
            let length: usize = handle!(self, request, Operation::GetXattr, node, [name], |vfs, caller| {
                vfs.getxattr(caller, NodeId(node), name, XattrSize::Query)
            })?;
            return Ok(ReplyXAttr::Size(length as u32));
        }
        let value: Vec<u8> = handle!(self, request, Operation::GetXattr, node, [name], |vfs, caller| {
            let mut value = vec![0; size as usize];
            let length = vfs.getxattr(caller, NodeId(node), name, XattrSize::Into(&mut value))?;
            value.truncate(length);
            Ok(value)
        })?;
        Ok(ReplyXAttr::Data(Bytes::from(value)))
    }

    async fn listxattr(&self, request: Request, node: u64, size: u32) -> Answer<ReplyXAttr> {
        if size == 0 {
            let length: usize = handle!(self, request, Operation::ListXattr, node, [], |vfs, caller| {
                vfs.listxattr(caller, NodeId(node), XattrSize::Query)
            })?;
            return Ok(ReplyXAttr::Size(length as u32));
        }
        let names: Vec<u8> = handle!(self, request, Operation::ListXattr, node, [], |vfs, caller| {
            let mut names = vec![0; size as usize];
            let length = vfs.listxattr(caller, NodeId(node), XattrSize::Into(&mut names))?;
            names.truncate(length);
            Ok(names)
        })?;
        Ok(ReplyXAttr::Data(Bytes::from(names)))
    }

    async fn removexattr(&self, request: Request, node: u64, name: &OsStr) -> Answer<()> {
        handle!(self, request, Operation::RemoveXattr, node, [name], |vfs, caller| {
            vfs.removexattr(caller, NodeId(node), name)
        })
    }

    async fn access(&self, request: Request, node: u64, mask: u32) -> Answer<()> {
        handle!(self, request, Operation::Access, node, [], |vfs, caller| vfs.access(caller, NodeId(node), mask))
    }

    async fn lseek(&self, request: Request, node: u64, handle: u64, offset: u64, whence: u32) -> Answer<ReplyLSeek> {
        let found: i64 = handle!(self, request, Operation::LSeek, node, [], |vfs, caller| {
            vfs.lseek(caller, NodeId(node), HandleId(handle), offset as i64, whence as i32)
        })?;
        Ok(ReplyLSeek { offset: found as u64 })
    }

    async fn fallocate(
        &self,
        request: Request,
        node: u64,
        handle: u64,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Answer<()> {
        handle!(self, request, Operation::FAllocate, node, [], |vfs, caller| {
            vfs.fallocate(caller, NodeId(node), HandleId(handle), offset, length, mode as i32)
        })
    }

    async fn copy_file_range(
        &self,
        request: Request,
        from: u64,
        from_handle: u64,
        from_offset: u64,
        to: u64,
        to_handle: u64,
        to_offset: u64,
        length: u64,
        _flags: u64,
    ) -> Answer<ReplyCopyFileRange> {
        let copied: usize = handle!(self, request, Operation::CopyFileRange, from, [], |vfs, caller| {
            vfs.copy_file_range(
                caller,
                (NodeId(from), HandleId(from_handle), from_offset),
                (NodeId(to), HandleId(to_handle), to_offset),
                super::copy_length(length),
            )
        })?;
        Ok(ReplyCopyFileRange { copied: copied as u64 })
    }

    // The rest is not negotiated. Whoever sends it all the same gets an answer that the kernel does not remember.

    async fn interrupt(&self, _request: Request, _unique: u64) -> Answer<()> {
        Ok(())
    }

    async fn bmap(&self, _request: Request, _node: u64, _blocksize: u32, _index: u64) -> Answer<ReplyBmap> {
        Err(libc::EOPNOTSUPP.into())
    }

    async fn poll(
        &self,
        _request: Request,
        _node: u64,
        _handle: u64,
        _kernel_handle: Option<u64>,
        _flags: u32,
        _events: u32,
        _notify: &fuse3::notify::Notify,
    ) -> Answer<ReplyPoll> {
        Ok(ReplyPoll { revents: super::ALWAYS_READY })
    }

    async fn notify_reply(&self, _request: Request, _node: u64, _offset: u64, _data: Bytes) -> Answer<()> {
        Err(libc::EOPNOTSUPP.into())
    }
}

/// Entries are aligned to 8 bytes (`FUSE_DIRENT_ALIGN`).
fn padded(length: usize) -> usize {
    length.next_multiple_of(8)
}

/// The names of a listing.
struct Names(Vec<DirectoryEntry>);

impl TakeBack for Names {
    fn take_back(&self, _vfs: &dyn Vfs) {}
}

/// A listing with attributes, gathered and not sent yet.
struct Gathered {
    entries: Vec<DirectoryEntryPlus>,
    counted: Listed,
}

impl TakeBack for Gathered {
    fn take_back(&self, vfs: &dyn Vfs) {
        self.counted.take_back(vfs);
    }
}

fn direntplus(entry: &DirEntry<'_>, found: Option<&Entry>, lifetime: Duration) -> DirectoryEntryPlus {
    let (attr, lifetime) = match found {
        Some(found) => (found.attr, lifetime),
        None => (super::dot_attr(entry), Duration::ZERO),
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
struct Sending<'a> {
    adapter: &'a Adapter,
    rest: std::vec::IntoIter<DirectoryEntryPlus>,
    /// Given out last: sent, or dropped because it did not fit.
    last: Option<(u64, bool, usize)>,
    sent: usize,
}

impl<'a> Sending<'a> {
    fn new(adapter: &'a Adapter, gathered: Gathered) -> Self {
        Self { adapter, rest: gathered.entries.into_iter(), last: None, sent: 0 }
    }
}

fn is_dot(name: &OsStr) -> bool {
    matches!(name.as_bytes(), b"." | b"..")
}

impl Iterator for Sending<'_> {
    type Item = Answer<DirectoryEntryPlus>;

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
