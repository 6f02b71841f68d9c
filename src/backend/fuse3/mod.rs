//! Backend `fuse3`: crate fuse3. Asynchronous; one read loop and a task for each request, behind a [`PolledPort`].
//!
//! Calls of the vfs run inline on the runtime's thread, which is the fastest; those that may block run on its pool.

mod helper;
mod listing;
mod operations;
mod translate;

use std::num::NonZeroU32;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use fuse3::MountOptions;
use fuse3::raw::Session;
use fuse3::raw::prelude::{ReplyAttr, ReplyEntry, Request};
use futures_util::FutureExt;
use parking_lot::Mutex;

use super::drill::{Part, Strike};
use super::{Context, InDrill, StartError, TakeBack, entry_lifetime, guarded, guarded_in_drill, note_end};
use crate::config::{Backend, Cache};
use crate::connection::port::{InTask, OnEnd, PolledPort, Port};
use crate::ledger::AnswerStatus;
use crate::vfs::{Attr, Caller, Entry, Errno, Operation, Result, Vfs};
use listing::LONGEST_LISTING;
use translate::{attributes, caller, errno};

pub(super) use helper::{HelperLink, act_as_mount_helper};

/// Ready events between two looks at the drivers: a switch under load stays below a millisecond.
const EVENT_INTERVAL: u32 = 8;
/// Read buffers that are kept for later; more are made and dropped as needed.
const SPARE_BUFFERS: usize = 32;

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
                // Without the timer, which reads the clock at every turn (docs/performance.md).
                .enable_io()
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
    let ends = port.clone();
    let session = std::panic::AssertUnwindSafe(handle).catch_unwind().map(move |end| match end {
        Ok(end) => note_end(Backend::Fuse3, ends.is_to_end(), &end),
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
    helper::check_link()?;
    let set = port.inheritable_set().map_err(|error| error.to_string())?;
    let folder = helper::private_folder(&format!(".fd-{}", set.as_raw_fd()))
        .map_err(|error| format!("no temporary folder for the handshake: {error}"))?;
    let handle = Session::new(MountOptions::default())
        .mount_with_unprivileged(adapter, folder.path())
        .await
        .map_err(|error| error.to_string())?;
    // The runtime has one thread, so the session's task has not run yet, and has not read yet.
    port.adopt(&[set.as_raw_fd()]).map_err(|error| error.to_string())?;
    Ok(handle)
}

struct Adapter {
    vfs: Arc<dyn Vfs>,
    drill: Option<Part>,
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
            drill: context.drill.clone(),
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
        let (result, status) = match self.strike(&request, operation) {
            None => guarded(|| call(&*self.vfs, &caller)),
            Some(strike) => {
                wait_if_told(&strike).await;
                match guarded_in_drill(&strike, &self.vfs, |vfs| call(vfs, &caller)) {
                    InDrill::Answered(result, status) => (result, status),
                    InDrill::Lost => self.lose(task),
                }
            }
        };
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
        let strike = self.strike(&request, operation);
        if let Some(strike) = &strike {
            wait_if_told(strike).await;
        }
        let ran = tokio::task::spawn_blocking(move || match strike {
            None => {
                let (result, status) = guarded(|| call(&*vfs, &caller));
                InDrill::Answered(result, status)
            }
            Some(strike) => guarded_in_drill(&strike, &vfs, |vfs| call(vfs, &caller)),
        })
        .await;
        let (result, status) = match ran {
            Ok(InDrill::Answered(result, status)) => (result, status),
            Ok(InDrill::Lost) => self.lose(task),
            Err(_) => (Err(Errno::EIO), AnswerStatus::BackendError),
        };
        if self.port.finish(task, operation, status).await {
            return result.map_err(errno);
        }
        self.take_back(&result)
    }

    fn strike(&self, request: &Request, operation: Operation) -> Option<Strike> {
        self.drill.as_ref()?.strike(Backend::Fuse3, operation, request.unique)
    }

    /// Ends the task without an answer: the crate sends none when a handler panics, and nobody counts one.
    #[cold]
    fn lose(&self, task: InTask) -> ! {
        self.port.leave_unanswered(task);
        // Without the message of a panic that nobody has meant.
        std::panic::resume_unwind(Box::new("a drill loses this request"))
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

/// On the heap, because every request has room for what its handler may wait for.
#[cold]
fn wait_if_told(strike: &Strike) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
    Box::pin(async move {
        if let Strike::Wait(wait) = strike {
            wait.wait().await;
        }
    })
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
