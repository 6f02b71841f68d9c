//! Backend `fuse2`: crate fuser. Synchronous; its threads read and handle, behind a [`BlockingPort`].

mod operations;
mod translate;

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use fuser::{Config, INodeNo, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyXattr, Request, Session, SessionACL};

use super::drill::{Part, Strike};
use super::{Context, InDrill, StartError, TakeBack, entry_lifetime, guarded, guarded_in_drill, note_end};
use crate::config::{Backend, Cache};
use crate::connection::port::{BlockingPort, InHandler, LargeReply, OnEnd, Port, SMALL_REPLY};
use crate::vfs::{Attr, Caller, Entry, Operation, Result, Vfs, XattrSize};
use translate::{attributes, errno};

/// An error that the kernel takes from nobody: it looks at that before it looks for the request (`fuse_dev_do_write` in
/// fs/fuse/dev.c), so the request stays unanswered.
const REFUSED: i32 = 512;

thread_local! {
    /// Data of READ and of attributes, before it is copied into the reply's `writev(2)`.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

pub(super) fn start(
    context: &Context,
    on_end: OnEnd,
    limit: Duration,
) -> std::result::Result<Arc<dyn Port>, StartError> {
    let failed = |message: String| StartError::Crate { backend: Backend::Fuse2, message };
    let lease = context.leases.threads(context.threads)?;
    let (port, descriptor) = BlockingPort::new(context.connection.clone(), context.ledger.clone(), lease, on_end)?;
    let adapter = Adapter {
        vfs: context.vfs.clone(),
        drill: context.drill.clone(),
        port: port.clone(),
        cache: context.cache,
        max_write: context.connection.negotiated().max_write,
    };
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(context.threads);
    // `from_fd` reads FUSE_INIT, so it needs a thread of its own while we send one.
    let handshake = std::thread::Builder::new()
        .name("fuse2-start".into())
        .spawn(move || Session::from_fd(adapter, descriptor, SessionACL::All, config))
        .map_err(|error| failed(error.to_string()))?;
    let introduced = port.introduce(limit);
    if introduced.is_err() {
        // Ends a handshake that would wait for ever.
        port.retire();
    }
    let session =
        handshake.join().map_err(|_| failed("it panicked".into()))?.map_err(|error| failed(error.to_string()))?;
    introduced?;
    // The notifier holds the session's descriptor, so its number stays ours until the port is gone.
    port.keep(Box::new(session.notifier()));
    std::thread::Builder::new()
        .name("fuse2-run".into())
        .spawn({
            let port = port.clone();
            move || {
                let end = session.run();
                note_end(Backend::Fuse2, port.is_to_end(), &end);
            }
        })
        .map_err(|error| failed(error.to_string()))?;
    port.enlist(limit).inspect_err(|_| port.retire())?;
    Ok(port)
}

struct Adapter {
    vfs: Arc<dyn Vfs>,
    drill: Option<Part>,
    port: Arc<BlockingPort>,
    cache: Cache,
    max_write: u32,
}

/// What a handler is about to reply. The request leaves its slot when this is dropped, after the reply call.
struct Answer<'a, T> {
    result: std::result::Result<T, fuser::Errno>,
    in_handler: InHandler<'a>,
}

impl Adapter {
    fn handle<T: TakeBack>(
        &self,
        request: &Request,
        operation: Operation,
        node: INodeNo,
        call: impl FnOnce(&dyn Vfs, &Caller) -> Result<T>,
    ) -> Answer<'_, T> {
        self.handle_with_umask(request, operation, node, 0, call)
    }

    fn handle_with_umask<T: TakeBack>(
        &self,
        request: &Request,
        operation: Operation,
        node: INodeNo,
        umask: u32,
        call: impl FnOnce(&dyn Vfs, &Caller) -> Result<T>,
    ) -> Answer<'_, T> {
        let in_handler = self.port.enter(request.unique().0, operation, node.0);
        let caller = Caller { uid: request.uid(), gid: request.gid(), pid: request.pid(), umask };
        let strike = self.drill.as_ref().and_then(|drill| drill.strike(Backend::Fuse2, operation, request.unique().0));
        let (result, status) = match strike {
            None => guarded(|| call(&*self.vfs, &caller)),
            Some(strike) => {
                if let Strike::Wait(wait) = &strike {
                    wait.block();
                }
                match guarded_in_drill(&strike, &self.vfs, |vfs| call(vfs, &caller)) {
                    InDrill::Answered(result, status) => (result, status),
                    // The crate must reply, but the kernel refuses this one, and the crate only logs that.
                    InDrill::Lost => return Answer { result: Err(fuser::Errno::from_i32(REFUSED)), in_handler },
                }
            }
        };
        if in_handler.claim() {
            in_handler.count(operation, status);
            return Answer { result: result.map_err(errno), in_handler };
        }
        // Counted when it was abandoned.
        in_handler.taken_back();
        if let Ok(value) = &result {
            value.take_back(&*self.vfs);
        }
        // The kernel has its answer; this one it ignores.
        Answer { result: Err(fuser::Errno::EIO), in_handler }
    }

    fn reply_entry(&self, answer: &Answer<'_, Entry>, reply: ReplyEntry) {
        match &answer.result {
            Ok(entry) => {
                reply.entry(
                    &entry_lifetime(&self.cache),
                    &attributes(&entry.attr),
                    fuser::Generation(entry.generation),
                );
            }
            Err(error) => reply.error(*error),
        }
    }

    fn reply_attr(&self, answer: &Answer<'_, Attr>, reply: ReplyAttr) {
        match &answer.result {
            Ok(attr) => reply.attr(&self.cache.attributes, &attributes(attr)),
            Err(error) => reply.error(*error),
        }
    }

    /// The one kind of reply that may exceed a socket message.
    fn reply_data(&self, unique: u64, reply: ReplyData, data: &[u8]) {
        if data.len() <= SMALL_REPLY {
            return reply.data(data);
        }
        match self.port.large_reply() {
            LargeReply::ByCrate(_permit) => reply.data(data),
            LargeReply::ByUs => {
                self.port.answer(unique, data);
                // Spends the crate's reply object; the kernel has its answer and ignores this one.
                reply.error(fuser::Errno::EIO);
            }
        }
    }

    fn reply_xattr(
        &self,
        request: &Request,
        operation: Operation,
        node: INodeNo,
        size: u32,
        reply: ReplyXattr,
        call: impl FnOnce(&dyn Vfs, &Caller, XattrSize<'_>) -> Result<usize>,
    ) {
        BUFFER.with_borrow_mut(|buffer| {
            let size = size as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let answer = self.handle(request, operation, node, |vfs, caller| {
                let into = if size == 0 { XattrSize::Query } else { XattrSize::Into(&mut buffer[..size]) };
                call(vfs, caller, into)
            });
            match answer.result {
                Ok(length) if size == 0 => reply.size(length as u32),
                Ok(length) => reply.data(&buffer[..length]),
                Err(error) => reply.error(error),
            }
        });
    }
}

fn reply_empty(answer: &Answer<'_, ()>, reply: ReplyEmpty) {
    match &answer.result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(*error),
    }
}
