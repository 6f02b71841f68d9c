//! How FUSE is spoken: a session of a FUSE crate, plugged into a connection by a port.
//!
//! An adapter only translates between the crate's types and the [`Vfs`], and keeps the rules that both adapters share and
//! that are written here: a panic costs one request, ENOSYS never reaches the kernel, lifetimes come from the mount, and
//! an answer that comes after the deadline leaves no trace.

mod diverging;
pub mod drill;
#[cfg(feature = "fuse2")]
mod fuse2;
#[cfg(feature = "fuse3")]
mod fuse3;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Backend, Cache};
use crate::connection::Connection;
use crate::connection::port::{Leases, NoSlots, OnEnd, Port, PortError};
use crate::ledger::{AnswerStatus, Ledger};
use crate::vfs::{Attr, Caller, Created, DirEntry, Entry, Errno, HandleId, ListFlow, NodeId, Result, Timestamp, Vfs};

use diverging::Diverging;
use drill::{Part, Strike};

/// What a session is made from.
#[derive(Clone)]
pub struct Context {
    /// The file system, shared by all sessions of a mount.
    pub vfs: Arc<dyn Vfs>,
    /// The kernel's side.
    pub connection: Arc<Connection>,
    /// Where requests and answers are counted.
    pub ledger: Ledger,
    /// Who uses which slots.
    pub leases: Leases,
    /// Lifetimes in the kernel's caches.
    pub cache: Cache,
    /// Reader threads of a session of `fuse2`.
    pub threads: usize,
    /// Where faults come from, if the mount allows them.
    pub drill: Option<Part>,
}

/// Why a session did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// This build of the program does not have the backend.
    #[error("this build has no backend {0}: build with --features {0}")]
    NotBuiltIn(Backend),
    /// Its port could not be made, or the session did not react.
    #[error(transparent)]
    Port(#[from] PortError),
    /// Too many hung sessions.
    #[error(transparent)]
    NoSlots(#[from] NoSlots),
    /// The crate refused.
    #[error("the session of {backend} did not start: {message}")]
    Crate {
        /// Which.
        backend: Backend,
        /// What it said.
        message: String,
    },
}

/// To be called first in `main`: crate fuse3 finds its descriptor through a mount helper, and that helper is this very
/// program, called by another name. Then this function does not return.
pub fn act_as_mount_helper() {
    #[cfg(feature = "fuse3")]
    fuse3::act_as_mount_helper();
}

/// What a process needs to start sessions. Undone when dropped.
#[derive(Debug)]
pub struct Prepared {
    #[cfg(feature = "fuse3")]
    _link: Option<fuse3::HelperLink>,
}

/// Prepares the process for starting sessions. Only while it has one thread: PATH is changed, so that crate fuse3 finds
/// our helper first. If that cannot be done, sessions of fuse3 fail to start and say why.
#[must_use]
pub fn prepare() -> Prepared {
    Prepared {
        #[cfg(feature = "fuse3")]
        _link: fuse3::HelperLink::install(),
    }
}

/// Starts a session, parked. `on_end` is called when it ends by itself.
///
/// # Errors
/// When it does not come up within `limit`; nothing of it stays behind but what hangs.
pub fn start(
    backend: Backend,
    context: &Context,
    on_end: OnEnd,
    limit: Duration,
) -> std::result::Result<Arc<dyn Port>, StartError> {
    match backend {
        #[cfg(feature = "fuse2")]
        Backend::Fuse2 => fuse2::start(context, on_end, limit),
        #[cfg(feature = "fuse3")]
        Backend::Fuse3 => fuse3::start(context, on_end, limit),
        #[allow(unreachable_patterns, reason = "with both features there is no other")]
        other => {
            let _ = (context, on_end, limit);
            Err(StartError::NotBuiltIn(other))
        }
    }
}

/// Name and version of the crate behind a backend, as Cargo.toml pins it.
#[must_use]
pub fn crate_of(backend: Backend) -> (&'static str, &'static str) {
    match backend {
        Backend::Fuse2 => ("fuser", "0.18.0"),
        Backend::Fuse3 => ("fuse3", "0.10.0"),
    }
}

/// How long the kernel may keep an entry and its attributes. Crate fuse3 has room for one number where the protocol has
/// two, so the smaller one counts, for both backends.
fn entry_lifetime(cache: &Cache) -> Duration {
    cache.entries.min(cache.attributes)
}

/// The same in the answer to CREATE, without fractions of a second: there crate fuse3 sends microseconds for nanoseconds.
/// The kernel asks sooner, and equally soon through both backends.
fn created_lifetime(cache: &Cache) -> Duration {
    Duration::from_secs(entry_lifetime(cache).as_secs())
}

/// `FOPEN_*` flags of every opened file (`fuse.h`): none. The kernel caches its pages, drops them at each open, and sends a
/// FLUSH for each close.
const OPEN_FLAGS: u32 = 0;

/// Runs a call of the vfs as every adapter must: a panic costs this request alone and is answered EIO; ENOSYS, which the
/// kernel would remember for both backends for ever, becomes EOPNOTSUPP.
fn guarded<T>(call: impl FnOnce() -> Result<T>) -> (Result<T>, AnswerStatus) {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => (Ok(value), AnswerStatus::Ok),
        Ok(Err(error)) if error == Errno::ENOSYS => (Err(Errno::EOPNOTSUPP), AnswerStatus::BackendError),
        Ok(Err(error)) => (Err(error), AnswerStatus::ClientError),
        Err(_panic) => {
            tracing::error!("a handler panicked; its request is answered EIO");
            (Err(Errno::EIO), AnswerStatus::BackendError)
        }
    }
}

/// Logs what a crate says of the end of its session; `is_wanted` if somebody has retired it, or the mount is gone.
fn note_end<E: std::fmt::Display>(backend: Backend, is_wanted: bool, end: &std::result::Result<(), E>) {
    match end {
        Ok(()) if is_wanted => tracing::debug!(%backend, "a session has ended"),
        Ok(()) => tracing::warn!(
            %backend,
            "a session has ended by itself, and its crate tells of no error: it has obeyed a FUSE_DESTROY, as a drill sends one"
        ),
        Err(error) => tracing::warn!(%backend, %error, "a session has ended"),
    }
}

/// What a drill has left of a call.
enum InDrill<T> {
    /// Its answer.
    Answered(Result<T>, AnswerStatus),
    /// Nobody gets one.
    Lost,
}

/// Runs a call that a drill has struck and that has waited as long as it was to.
#[cold]
fn guarded_in_drill<T>(strike: &Strike, vfs: &Arc<dyn Vfs>, call: impl FnOnce(&dyn Vfs) -> Result<T>) -> InDrill<T> {
    let (result, status) = match strike {
        Strike::Lose => return InDrill::Lost,
        Strike::Error => (Err(Errno::EIO), AnswerStatus::BackendError),
        Strike::Panic => guarded(|| panic!("a drill makes this handler panic")),
        Strike::Diverge => guarded(|| call(&Diverging(vfs.clone()))),
        Strike::Wait(_) => guarded(|| call(&**vfs)),
    };
    InDrill::Answered(result, status)
}

/// FORGET has no answer, so that is all that a panic costs.
fn forget(vfs: &dyn Vfs, node: NodeId, count: u64) {
    let _ = guarded(|| {
        vfs.forget(node, count);
        Ok(())
    });
}

/// An answer of which something would remain in the mount's state.
trait TakeBack {
    /// Undoes what the answer would have handed out, because nobody will get it.
    fn take_back(&self, vfs: &dyn Vfs);
}

impl TakeBack for Entry {
    fn take_back(&self, vfs: &dyn Vfs) {
        vfs.forget(self.attr.node, 1);
    }
}

impl TakeBack for Created {
    fn take_back(&self, vfs: &dyn Vfs) {
        vfs.release(self.entry.attr.node, self.handle);
        self.entry.take_back(vfs);
    }
}

/// An open file.
struct Opened(NodeId, HandleId);

impl TakeBack for Opened {
    fn take_back(&self, vfs: &dyn Vfs) {
        vfs.release(self.0, self.1);
    }
}

/// An open directory.
struct OpenedDir(NodeId, HandleId);

impl TakeBack for OpenedDir {
    fn take_back(&self, vfs: &dyn Vfs) {
        vfs.releasedir(self.0, self.1);
    }
}

macro_rules! leaves_nothing {
    ($($what:ty),*) => { $(
        impl TakeBack for $what {
            fn take_back(&self, _vfs: &dyn Vfs) {}
        }
    )* };
}

leaves_nothing!((), u32, usize, i64, Attr, crate::vfs::StatFs, Vec<u8>);

/// Nodes whose lookups a listing has counted.
struct Listed(Vec<NodeId>);

impl TakeBack for Listed {
    fn take_back(&self, vfs: &dyn Vfs) {
        for node in &self.0 {
            vfs.forget(*node, 1);
        }
    }
}

/// READDIRPLUS: a listing with the entry behind each name, `None` for `.` and `..`. Only what `sink` has taken is counted.
/// An error after some entries ends the listing; the next one meets it again.
fn list_plus(
    vfs: &dyn Vfs,
    caller: &Caller,
    node: NodeId,
    handle: HandleId,
    offset: u64,
    mut sink: impl FnMut(&DirEntry<'_>, Option<&Entry>) -> ListFlow,
) -> Result<Listed> {
    let mut counted = Vec::new();
    let mut is_empty = true;
    let mut failed = Ok(());
    let listed = vfs.readdir(caller, node, handle, offset, &mut |entry| {
        let found = if entry.is_dot() {
            None
        } else {
            match vfs.lookup_listed(caller, node, entry) {
                Ok(Some(found)) => Some(found),
                // Removed since: not listed, and not missed.
                Ok(None) => return ListFlow::Taken,
                Err(error) => {
                    failed = Err(error);
                    return ListFlow::Full;
                }
            }
        };
        let flow = sink(entry, found.as_ref());
        match (flow, found) {
            (ListFlow::Taken, Some(found)) => counted.push(found.attr.node),
            (ListFlow::Full, Some(found)) => found.take_back(vfs),
            (_, None) => {}
        }
        is_empty &= flow == ListFlow::Full;
        flow
    });
    match listed.and(failed) {
        Err(error) if is_empty => Err(error),
        _ => Ok(Listed(counted)),
    }
}

/// What READDIRPLUS says of `.` and `..`: the kernel does not look at it.
fn dot_attr(entry: &DirEntry<'_>) -> Attr {
    Attr { node: entry.node, mode: entry.kind.to_mode(), ..NO_ENTRY }
}

/// Node 0 tells the kernel that a name does not exist, and for how long that holds.
const NO_ENTRY: Attr = Attr {
    node: NodeId(0),
    size: 0,
    blocks: 0,
    atime: Timestamp { sec: 0, nsec: 0 },
    mtime: Timestamp { sec: 0, nsec: 0 },
    ctime: Timestamp { sec: 0, nsec: 0 },
    mode: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
};

/// What `poll(2)` says of a file that never makes anyone wait (`DEFAULT_POLLMASK` of the kernel's `poll.h`). An error would
/// be shown to programs as POLLERR.
const ALWAYS_READY: u32 = (libc::POLLIN | libc::POLLOUT | libc::POLLRDNORM | libc::POLLWRNORM) as u32;

/// A copy may be cut short, so one call is kept to what does not hold up a switch for long.
fn copy_length(wanted: u64) -> u64 {
    wanted.min(64 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_after_create_have_no_fractions() {
        let millis = Duration::from_millis;
        let cache = Cache { attributes: millis(1500), entries: millis(2700), negative: millis(300) };
        assert_eq!((entry_lifetime(&cache), created_lifetime(&cache)), (millis(1500), millis(1000)));
    }

    #[test]
    fn a_panic_costs_its_request_alone() {
        let (result, status) = guarded::<()>(|| panic!("a bug"));
        assert_eq!((result, status), (Err(Errno::EIO), AnswerStatus::BackendError));
    }

    #[test]
    fn enosys_never_reaches_the_kernel() {
        let (result, status) = guarded::<()>(|| Err(Errno::ENOSYS));
        assert_eq!((result, status), (Err(Errno::EOPNOTSUPP), AnswerStatus::BackendError));
    }

    #[test]
    fn an_answer_of_the_source_is_the_clients() {
        assert_eq!(guarded::<()>(|| Err(Errno::EIO)).1, AnswerStatus::ClientError);
        assert_eq!(guarded(|| Ok(7)).1, AnswerStatus::Ok);
    }
}
