//! After a rollback the kernel forgets what it has cached, because the candidate may have answered it: attributes, pages, and
//! names. All of it, since nobody has noted which backend answered what, and asking again costs little.
//!
//! What the kernel is told may make it wait for a program whose request this process must serve. So nobody who serves or
//! obeys tells it: one thread finds out what is known, another writes ([`Notifier`]).

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use crate::connection::Connection;
use crate::connection::notify::{Notifier, Stale};
use crate::vfs::{Caller, FileKind, ListFlow, NodeId, Vfs};

/// Names of one directory that are read from the source at once.
const LISTED: usize = 1024;

/// See the module.
pub(super) struct Invalidation {
    /// Has room for one that begins when the one under way is done, and so covers everybody who comes meanwhile.
    begin: SyncSender<()>,
    is_over: Arc<AtomicBool>,
    /// Ends with the thread.
    running: Receiver<()>,
}

impl Invalidation {
    /// Starts the threads, which wait for [`begin`](Self::begin).
    pub(super) fn prepare(connection: &Connection, vfs: Arc<dyn Vfs>) -> io::Result<Self> {
        let notifier = Notifier::start(connection)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let (begin, wanted) = sync_channel(1);
        let (alive, running) = channel();
        let round = Round { vfs, notifier, is_over: is_over.clone() };
        std::thread::Builder::new().name("invalidate".into()).spawn(move || {
            let _alive = alive;
            while let Ok(()) = wanted.recv() {
                if round.is_over.load(Relaxed) {
                    return;
                }
                if catch_unwind(AssertUnwindSafe(|| round.run())).is_err() {
                    tracing::error!(
                        "the file system panicked; the kernel keeps what it has until its lifetime is over"
                    );
                }
            }
        })?;
        Ok(Self { begin, is_over, running })
    }

    /// Has the kernel forget what it keeps now. Waits for nothing.
    pub(super) fn begin(&self) {
        // Full: the next one has not begun, and will see to it. Closed: it has ended.
        let _ = self.begin.try_send(());
    }

    /// Ends it, and waits for that for at most `limit`. Whether it has ended.
    pub(super) fn end(&self, limit: Duration) -> bool {
        self.is_over.store(true, Relaxed);
        self.begin();
        self.running.recv_timeout(limit) == Err(RecvTimeoutError::Disconnected)
    }
}

struct Round {
    vfs: Arc<dyn Vfs>,
    notifier: Notifier,
    is_over: Arc<AtomicBool>,
}

impl Round {
    fn run(&self) {
        let began = Instant::now();
        let (mut nodes, mut files, mut directories) = (0_u64, Vec::new(), Vec::new());
        // Attributes first: for those the kernel waits for nobody.
        self.vfs.known_nodes(&mut |node| {
            nodes += 1;
            if self.tell(Stale::Attributes(node)) {
                match self.vfs.getattr(&Caller::default(), node, None).map(|attr| attr.kind()) {
                    Ok(FileKind::Directory) => directories.push(node),
                    Ok(FileKind::File) => files.push(node),
                    // It has neither names nor pages, or is gone.
                    Ok(_) | Err(_) => {}
                }
            }
        });
        if self.notifier.can_tell_names() {
            directories.iter().for_each(|directory| self.tell_names(*directory));
        }
        for file in files {
            self.tell(Stale::Pages(file));
        }
        let Some(heard) = self.notifier.ask() else { return };
        if self.is_over.load(Relaxed) {
            return;
        }
        let took_ms = began.elapsed().as_millis() as u64;
        tracing::info!(
            nodes,
            forgotten = heard.forgotten,
            took_ms,
            "the kernel has forgotten what was answered before the rollback"
        );
        if let Some(why) = heard.why {
            tracing::warn!(refused = heard.refused, %why, "some of it the kernel did not forget: it is kept until its lifetime is over");
        }
    }

    /// Whether it goes on.
    fn tell(&self, stale: Stale) -> bool {
        !self.is_over.load(Relaxed) && self.notifier.tell(stale)
    }

    /// All names that the directory has, known or not: those that the candidate has denied are among them. A name that it has
    /// made up is not.
    fn tell_names(&self, directory: NodeId) {
        let caller = Caller::default();
        let Ok(handle) = self.vfs.opendir(&caller, directory, libc::O_RDONLY | libc::O_DIRECTORY) else { return };
        let mut offset = 0;
        loop {
            // Gathered first: the listing holds locks of the vfs, which those may need whom the kernel waits for.
            let mut names = Vec::new();
            let listed = self.vfs.readdir(&caller, directory, handle, offset, &mut |entry| {
                if names.len() == LISTED {
                    return ListFlow::Full;
                }
                offset = entry.offset;
                if !entry.is_dot() {
                    names.push(entry.name.to_owned());
                }
                ListFlow::Taken
            });
            let is_done = listed.is_err() || names.is_empty();
            if !names.into_iter().all(|name| self.tell(Stale::Name(directory, name))) || is_done {
                break;
            }
        }
        self.vfs.releasedir(directory, handle);
    }
}
