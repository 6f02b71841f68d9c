//! The kernel's side of a mount: making it, negotiating it, and the ports by which backends are plugged into it.
//!
//! A [`Connection`] is mounted once and answers FUSE_INIT once; backends come and go behind it. Nothing here knows a FUSE
//! crate, and nothing here ever touches the mount point of a connection that it holds.

pub mod fusectl;
pub mod helper;
mod init;
mod mount;
pub mod mountinfo;
pub mod notify;
pub mod port;
pub(crate) mod wire;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::config::{Backend, Mount};

pub use init::{InitError, Negotiated, PROTOCOL_MINOR};
pub use mount::{MountError, SUBTYPE, Unmounted};

/// For another server to finish mounting at the same place.
const LOCK_LIMIT: Duration = Duration::from_secs(3);
/// The kernel sends FUSE_INIT with the mount itself, so it is there at once.
const INIT_LIMIT: Duration = Duration::from_secs(10);

/// One FUSE connection: mounted and negotiated.
///
/// Each backend reads an open file of its own, because one wants it blocking and the other non-blocking, and both may be
/// attached at once: `fuse2` the connection's first, `fuse3` a clone of it. A reply must be written to the open file that
/// its request was read from (`fs/fuse/dev.c`: each has its own list of what it is processing).
#[derive(Debug)]
pub struct Connection {
    first: OwnedFd,
    clone: OwnedFd,
    negotiated: Negotiated,
    maker: mount::Maker,
    place: mount::Place,
}

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No mount.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// No agreement with the kernel.
    #[error(transparent)]
    Init(#[from] InitError),
    /// Somebody else was faster.
    #[error("{} is mounted by Lighthouse FS already: stop the daemon that serves it, or run `umount {}`", .0.display(), .0.display())]
    Taken(std::path::PathBuf),
    /// No second open file.
    #[error("the connection cannot be cloned through /dev/fuse ({0}), which backend fuse3 needs; {remedy}", remedy = helper::device_remedy(.0))]
    Clone(io::Error),
}

impl ConnectError {
    /// Whether it is about the mount helper, so that another one may succeed.
    #[must_use]
    pub fn is_the_helpers(&self) -> bool {
        use MountError::{HelperPowerless, HelperRefused, HelperSilent, HelperUnusable, NoHelper};
        matches!(
            self,
            Self::Mount(
                NoHelper(_)
                    | HelperPowerless { .. }
                    | HelperUnusable { .. }
                    | HelperRefused { .. }
                    | HelperSilent { .. }
            )
        )
    }
}

mod ioctls {
    #![allow(missing_docs, reason = "the macro gives its function no place for them")]
    // `FUSE_DEV_IOC_CLONE` of fuse.h.
    nix::ioctl_read!(fuse_dev_ioc_clone, 229, 0, u32);
}

impl Connection {
    /// Mounts as `config` says and negotiates. `given` is a descriptor that somebody else has mounted. On failure nothing
    /// stays mounted that was mounted here.
    ///
    /// # Errors
    /// Each says what was tried, what happened, and what to do.
    pub fn establish(config: &Mount, starting: Backend, given: Option<OwnedFd>) -> Result<Self, ConnectError> {
        // Held until the mount is seen in mountinfo.
        let lock = if given.is_none() { lock(&config.mountpoint) } else { None };
        let (first, maker) = match given {
            Some(first) => (first, mount::Maker::Others),
            None if is_taken(&config.mountpoint) => return Err(ConnectError::Taken(config.mountpoint.clone())),
            None => mount::mount(config, starting)?,
        };
        let place = mount::Place::of(config.place());
        drop(lock);
        Self::open(first, maker.clone(), place.clone(), config).inspect_err(|_| {
            // With its descriptor the connection has gone.
            if let Err(error) = mount::unmount(&maker, &place, Duration::ZERO, || true) {
                tracing::error!(mountpoint = %config.mountpoint.display(), %error, "the mount that failed is left behind: unmount it by hand");
            }
        })
    }

    fn open(first: OwnedFd, maker: mount::Maker, place: mount::Place, config: &Mount) -> Result<Self, ConnectError> {
        let negotiated = init::negotiate(&first, &config.io, INIT_LIMIT)?;
        set_blocking(&first, Blocking::Yes).map_err(InitError::Device)?;
        let clone = clone_of(&first).map_err(ConnectError::Clone)?;
        set_blocking(&clone, Blocking::No).map_err(ConnectError::Clone)?;
        let connection = Self { first, clone, negotiated, maker, place };
        if let Err(error) = connection.set_read_ahead() {
            tracing::debug!(%error, "read-ahead stays at the kernel's default");
        }
        Ok(connection)
    }

    /// A connection whose other end is not the kernel's: for sessions that are only compared, and for tests. Each backend
    /// gets a socket of its own (SOCK_SEQPACKET), and what it should believe of the kernel.
    ///
    /// # Errors
    /// When the flags of the descriptors cannot be set.
    pub fn between(fuse2: OwnedFd, fuse3: OwnedFd, negotiated: Negotiated) -> io::Result<Self> {
        set_blocking(&fuse2, Blocking::Yes)?;
        set_blocking(&fuse3, Blocking::No)?;
        Ok(Self {
            first: fuse2,
            clone: fuse3,
            negotiated,
            maker: mount::Maker::Others,
            place: mount::Place::of(Path::new("")),
        })
    }

    /// The open file that a backend's port reads.
    #[must_use]
    pub fn device(&self, backend: Backend) -> BorrowedFd<'_> {
        match backend {
            Backend::Fuse2 => self.first.as_fd(),
            Backend::Fuse3 => self.clone.as_fd(),
        }
    }

    /// What was agreed with the kernel.
    #[must_use]
    pub fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }

    /// How it was mounted, for people.
    #[must_use]
    pub fn made_by(&self) -> String {
        self.maker.name()
    }

    /// The mount's number in mountinfo, if it could be seen when it was made.
    #[must_use]
    pub fn mount_id(&self) -> Option<u32> {
        self.place.id()
    }

    /// Whether requests wait in the kernel that nobody has read (`fuse_dev_poll` of fs/fuse/dev.c).
    #[must_use]
    pub fn has_queued(&self) -> bool {
        let device = self.device(Backend::Fuse2);
        wait_readable(device, Duration::ZERO).unwrap_or(false)
    }

    /// Whether the kernel has ended the connection (unmounted, or aborted).
    #[must_use]
    pub fn is_gone(&self) -> bool {
        let mut device = [PollFd::new(self.first.as_fd(), PollFlags::empty())];
        poll(&mut device, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Tells the kernel to send again what was read and never answered. Nobody may hold an unanswered request that it
    /// will answer.
    ///
    /// # Errors
    /// Unsupported before Linux 6.9.
    pub fn resend(&self) -> io::Result<()> {
        if !self.negotiated.can_resend {
            return Err(io::ErrorKind::Unsupported.into());
        }
        wire::notify_resend(&self.first)
    }

    /// Ends the mount: tries until `limit`, then detaches it lazily.
    ///
    /// # Errors
    /// When even that fails; the mount is still there then, and still served while this process lives.
    pub fn unmount(&self, limit: Duration) -> io::Result<Unmounted> {
        // Of a connection that was aborted nobody can still use anything.
        let limit = if self.is_gone() { Duration::ZERO } else { limit };
        mount::unmount(&self.maker, &self.place, limit, || self.is_gone())
    }

    /// Whether the mount is still in the tree, which it is after the connection was aborted.
    #[must_use]
    pub fn is_mounted(&self) -> bool {
        self.place.is_mounted(|| self.is_gone())
    }

    /// Whether somebody has taken the mount out of the tree while its connection lives on, because programs still use it or
    /// another mount namespace has a copy. Never of a mount that is somebody else's.
    #[must_use]
    pub fn is_detached(&self) -> bool {
        !matches!(self.maker, mount::Maker::Others) && !self.is_mounted() && !self.is_gone()
    }

    /// Linux caps read-ahead at 128 KiB for a new mount, whatever FUSE_INIT says, unless its `bdi` is told (needs root).
    fn set_read_ahead(&self) -> io::Result<()> {
        let (major, minor) = self.place.device().ok_or(io::ErrorKind::NotFound)?;
        let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        fs::write(path, (self.negotiated.max_readahead / 1024).to_string())
    }
}

/// Keeps other servers from mounting at the same place at the same moment: a lock on the directory below, for as long as it
/// is held. Without it, as of a directory that may not be read, only that moment is not guarded.
fn lock(mountpoint: &Path) -> Option<OwnedFd> {
    use rustix::fs::{FlockOperation, Mode, OFlags, flock};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(mountpoint, flags, Mode::empty()).ok()?;
    let end = Instant::now() + LOCK_LIMIT;
    while flock(&directory, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Some(directory)
}

fn is_taken(mountpoint: &Path) -> bool {
    let mounts = mountinfo::read().unwrap_or_default();
    mountinfo::at(&mounts, mountpoint).is_some_and(mountinfo::Mounted::is_ours)
}

fn clone_of(first: &OwnedFd) -> io::Result<OwnedFd> {
    let clone: OwnedFd = File::options().read(true).write(true).open("/dev/fuse")?.into();
    let mut source = first.as_raw_fd() as u32;
    // SAFETY: both are open FUSE devices, and the kernel only reads the number behind the pointer.
    unsafe { ioctls::fuse_dev_ioc_clone(clone.as_raw_fd(), &raw mut source) }?;
    Ok(clone)
}

/// Waits until there is something to read. `false`: not within `limit`.
fn wait_readable(fd: impl AsFd, limit: Duration) -> io::Result<bool> {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(ready) => return Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Blocking {
    Yes,
    No,
}

fn set_blocking(fd: impl AsFd, blocking: Blocking) -> io::Result<()> {
    let mut flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    flags.set(OFlag::O_NONBLOCK, blocking == Blocking::No);
    fcntl(&fd, FcntlArg::F_SETFL(flags))?;
    Ok(())
}
