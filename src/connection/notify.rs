//! Telling the kernel that what it has cached is old (`fuse_notify` of fs/fuse/dev.c).
//!
//! Such a write may wait in the kernel for a program whose request has yet to be answered, and a thread that waits so survives
//! SIGKILL. So a thread of its own writes, and it holds nothing but an open file of the connection for itself: should the
//! process be killed, everything else of it is closed.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use nix::sched::{CloneFlags, unshare};

use super::{Connection, clone_of, wire};
use crate::vfs::NodeId;

/// From this minor version of its protocol (Linux 6.2) the kernel can let a name expire and leave it where it is. Before,
/// what is mounted below it would be detached, and a working directory in it lost until the next lookup.
const EXPIRES_SINCE: u32 = 38;
/// Notes that may wait to be written.
const QUEUE: usize = 256;

/// What the kernel is to ask for again.
#[derive(Debug)]
pub enum Stale {
    /// The attributes of a node. Waits for nothing.
    Attributes(NodeId),
    /// The attributes of a file and all of its pages. What programs have written into them goes to a backend first.
    Pages(NodeId),
    /// A name in a directory, of which it may be kept that there is none.
    Name(NodeId, OsString),
}

/// What the kernel has said since it was last asked.
#[derive(Debug, Default)]
pub struct Heard {
    /// So much it knew, and will ask for again.
    pub forgotten: u64,
    /// So much it did not keep.
    pub unknown: u64,
    /// So much it refused,
    pub refused: u64,
    /// the first time because of this.
    pub why: Option<io::Error>,
}

enum Note {
    Stale(Stale),
    /// All before this are written.
    Ask(Sender<Heard>),
}

/// See the module.
#[derive(Debug)]
pub struct Notifier {
    notes: SyncSender<Note>,
    is_able_to_expire: bool,
}

impl Notifier {
    /// Starts the thread. The sooner, the less it has to close.
    ///
    /// # Errors
    /// When the connection has no kernel at its other end, or the thread cannot have descriptors of its own.
    pub fn start(connection: &Connection) -> io::Result<Self> {
        let device = clone_of(&connection.first)?;
        let (notes, receiver) = sync_channel(QUEUE);
        let (tell, is_ready) = channel();
        std::thread::Builder::new().name("notify".into()).spawn(move || {
            let alone = hold_only(device.as_raw_fd());
            let is_alone = alone.is_ok();
            // Whoever has started it waits.
            let _ = tell.send(alone);
            if is_alone {
                write_all(&device, &receiver);
            }
        })?;
        is_ready.recv().map_err(io::Error::other)??;
        let is_able_to_expire = connection.negotiated.kernel_minor >= EXPIRES_SINCE;
        Ok(Self { notes, is_able_to_expire })
    }

    /// Whether names can be told. Otherwise they are kept until their lifetime is over.
    #[must_use]
    pub fn can_tell_names(&self) -> bool {
        self.is_able_to_expire
    }

    /// Has the kernel told; blocks while it has not listened to what was said before. `false`: nobody tells it any more.
    pub fn tell(&self, stale: Stale) -> bool {
        self.notes.send(Note::Stale(stale)).is_ok()
    }

    /// Waits until all that was to be told is told. `None`: nobody tells it any more.
    #[must_use]
    pub fn ask(&self) -> Option<Heard> {
        let (answer, heard) = channel();
        self.notes.send(Note::Ask(answer)).ok()?;
        heard.recv().ok()
    }
}

/// Leaves this thread with a table of descriptors of its own that has only `kept`.
fn hold_only(kept: RawFd) -> io::Result<()> {
    unshare(CloneFlags::CLONE_FILES).map_err(io::Error::from).or_else(|_| unshare_by_close_range())?;
    let open: Vec<RawFd> = std::fs::read_dir("/proc/thread-self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd != kept)
        .collect();
    for fd in open {
        // In this table nothing belongs to anybody else; the one that listed the others is closed by now.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}

/// Container runtimes forbid unshare(2) without CAP_SYS_ADMIN, and not this (close_range(2), Linux 5.9), which closes nothing.
fn unshare_by_close_range() -> io::Result<()> {
    let none = std::ffi::c_uint::MAX;
    // SAFETY: takes numbers only, and no descriptor has this one.
    match unsafe { libc::syscall(libc::SYS_close_range, none, none, libc::CLOSE_RANGE_UNSHARE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Must not log: it has no descriptor for that.
fn write_all(device: &OwnedFd, notes: &Receiver<Note>) {
    let mut heard = Heard::default();
    for note in notes {
        let result = match note {
            Note::Stale(Stale::Attributes(node)) => wire::notify_inval_inode(device, node.0, -1),
            Note::Stale(Stale::Pages(node)) => wire::notify_inval_inode(device, node.0, 0),
            Note::Stale(Stale::Name(parent, name)) => wire::notify_expire_entry(device, parent.0, name.as_bytes()),
            Note::Ask(answer) => {
                // Whoever has asked may not wait any more.
                let _ = answer.send(std::mem::take(&mut heard));
                continue;
            }
        };
        match result {
            Ok(()) => heard.forgotten += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => heard.unknown += 1,
            Err(error) => {
                heard.refused += 1;
                heard.why.get_or_insert(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, fcntl};
    use std::os::fd::{AsFd, BorrowedFd};

    fn is_open(fd: BorrowedFd<'_>) -> bool {
        fcntl(fd, FcntlArg::F_GETFD).is_ok()
    }

    fn in_a_thread(look: impl FnOnce(BorrowedFd<'_>, BorrowedFd<'_>) + Send) {
        let [kept, other] = [(); 2].map(|()| std::fs::File::open("/dev/null").expect("a descriptor"));
        std::thread::scope(|threads| {
            threads.spawn(|| look(kept.as_fd(), other.as_fd())).join().expect("no panic");
        });
        assert!(is_open(kept.as_fd()) && is_open(other.as_fd()), "the table of the others is as it was");
    }

    #[test]
    fn a_thread_holds_its_own_descriptor_alone() {
        in_a_thread(|kept, other| {
            hold_only(kept.as_raw_fd()).unwrap();
            let (kept, other) = (is_open(kept), is_open(other));
            // Nothing can be said here: standard error is closed.
            assert!(kept && !other);
        });
    }

    #[test]
    fn also_without_unshare() {
        in_a_thread(|kept, other| {
            unshare_by_close_range().unwrap();
            nix::unistd::close(other.as_raw_fd()).unwrap();
            assert!(is_open(kept) && !is_open(other));
        });
    }
}
