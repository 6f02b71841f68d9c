//! Making and ending the kernel's mount: through libfuse 2's or 3's set-uid helper, by `mount(2)`, or from a descriptor
//! that somebody else has mounted.
//!
//! Nothing here looks at the mount point once something is mounted there: a stat would be a request to ourselves.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use parking_lot::Mutex;

use crate::config::{Backend, Helper, Mount};

use super::helper::{self, Found, NotFound, Powerless, Privilege};
use super::mountinfo::{self, Mounted};
use super::port::seqpacket_pair;
use super::wait_readable;

/// The kernel's name of the file system is `fuse.` and this.
pub const SUBTYPE: &str = "lighthouse-fs";

/// How long a mount helper may take.
const HELPER_LIMIT: Duration = Duration::from_secs(10);

/// Why there is no mount.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The wanted helper is not here.
    #[error(transparent)]
    NoHelper(#[from] NotFound),
    /// It is here, and cannot mount for this process.
    #[error("{0}: {remedy}", remedy = .0.remedy())]
    HelperPowerless(#[from] Powerless),
    /// The helper could not be run.
    #[error("{path} could not be run: {source}; see its mode, and the limits on processes and descriptors")]
    HelperUnusable {
        /// Which.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The helper refused.
    #[error("{path} refused to mount at {mountpoint}: {message}; {remedy}", remedy = helper::refusal_remedy(message))]
    HelperRefused {
        /// Which.
        path: PathBuf,
        /// Where.
        mountpoint: PathBuf,
        /// Its own words.
        message: String,
    },
    /// Somebody, or the kernel, has killed the helper.
    #[error(
        "{path} was ended by {signal} while it mounted at {mountpoint}: try again; if memory had run out, the kernel's log says so (`dmesg`)"
    )]
    HelperKilled {
        /// Which.
        path: PathBuf,
        /// Where.
        mountpoint: PathBuf,
        /// By what.
        signal: Signal,
    },
    /// The helper neither mounted nor ended.
    #[error(
        "{path} gave no answer within {HELPER_LIMIT:?} and was ended: see what hangs around the mount point, or use `helper` direct as root"
    )]
    HelperSilent {
        /// Which.
        path: PathBuf,
    },
    /// `/dev/fuse` could not be opened.
    #[error("/dev/fuse cannot be opened: {0}; {remedy}", remedy = helper::device_remedy(.0))]
    Device(io::Error),
    /// `mount(2)` failed.
    #[error("mount(2) at {mountpoint} failed: {source}; {remedy}", remedy = mount_remedy(source))]
    Refused {
        /// Where.
        mountpoint: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Who made the mount, and so who ends it.
#[derive(Clone, Debug)]
pub(super) enum Maker {
    Helper(Found),
    Ourselves,
    Others,
}

impl Maker {
    pub(super) fn name(&self) -> String {
        match self {
            Self::Helper(found) => format!("{} {}", found.path.display(), found.version),
            Self::Ourselves => "mount(2)".into(),
            Self::Others => "handed in".into(),
        }
    }
}

/// Mounts. The descriptor is a connection whose FUSE_INIT is unread.
pub(super) fn mount(config: &Mount, starting: Backend) -> Result<(OwnedFd, Maker), MountError> {
    match choose(config.helper, starting) {
        Helper::Direct => Ok((mount_directly(config)?, Maker::Ourselves)),
        named => {
            let found = helper::find(named)?;
            found.check(Privilege::own())?;
            Ok((mount_by_helper(config, &found)?, Maker::Helper(found)))
        }
    }
}

/// What to do when `mount(2)` has failed.
fn mount_remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => "it needs CAP_SYS_ADMIN: run as root, or use `helper` fusermount3",
        Some(libc::EACCES) => "see what AppArmor or SELinux forbids this process",
        Some(libc::ENODEV) => "load the kernel's module (`modprobe fuse`)",
        Some(libc::ENOENT | libc::ENOTDIR) => "make the directory",
        Some(libc::ENOSPC) => "raise the limit of mounts (`sysctl fs.mount-max`)",
        _ => "see the kernel's log (`dmesg`)",
    }
}

fn choose(wanted: Helper, starting: Backend) -> Helper {
    match (wanted, starting) {
        (Helper::Auto, _) if helper::may_mount_directly() => Helper::Direct,
        (Helper::Auto, Backend::Fuse2) => Helper::Fusermount,
        (Helper::Auto, Backend::Fuse3) => Helper::Fusermount3,
        (named, _) => named,
    }
}

fn mount_directly(config: &Mount) -> Result<OwnedFd, MountError> {
    let device: OwnedFd = File::options().read(true).write(true).open("/dev/fuse").map_err(MountError::Device)?.into();
    let mut options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if config.allow_other {
        options.push_str(",allow_other");
    }
    let mut flags = MsFlags::empty();
    flags.set(MsFlags::MS_RDONLY, config.read_only);
    flags.set(MsFlags::MS_NOSUID, !config.suid);
    flags.set(MsFlags::MS_NODEV, !config.dev);
    flags.set(MsFlags::MS_NOEXEC, !config.exec);
    flags.set(MsFlags::MS_SYNCHRONOUS, config.sync);
    let kind = format!("fuse.{SUBTYPE}");
    nix::mount::mount(
        Some(config.source.as_path()),
        config.mountpoint.as_path(),
        Some(kind.as_str()),
        flags,
        Some(options.as_str()),
    )
    .map_err(|error| MountError::Refused { mountpoint: config.mountpoint.clone(), source: error.into() })?;
    Ok(device)
}

/// The options as both helpers parse them: commas and backslashes of the source are escaped.
fn helper_options(config: &Mount) -> OsString {
    let mut options = b"fsname=".to_vec();
    for byte in config.source.as_os_str().as_bytes() {
        if matches!(byte, b',' | b'\\') {
            options.push(b'\\');
        }
        options.push(*byte);
    }
    options.extend_from_slice(format!(",subtype={SUBTYPE},default_permissions").as_bytes());
    // Each is said, so that the helpers' own defaults do not matter.
    for (wanted, yes, no) in [
        (config.read_only, ",ro", ",rw"),
        (config.suid, ",suid", ",nosuid"),
        (config.dev, ",dev", ",nodev"),
        (config.exec, ",exec", ",noexec"),
    ] {
        options.extend_from_slice(if wanted { yes } else { no }.as_bytes());
    }
    if config.sync {
        options.extend_from_slice(b",sync");
    }
    if config.allow_other {
        options.extend_from_slice(b",allow_other");
    }
    OsString::from_vec(options)
}

/// Runs a helper as libfuse does (`lib/mount_util.c`): it mounts, and sends the descriptor over `_FUSE_COMMFD`.
fn mount_by_helper(config: &Mount, found: &Found) -> Result<OwnedFd, MountError> {
    const ITS_END: RawFd = 3;
    let unusable = |source: io::Error| MountError::HelperUnusable { path: found.path.clone(), source };
    let (ours, its) = seqpacket_pair().map_err(unusable)?;
    let mut command = Command::new(&found.path);
    command
        .arg("-o")
        .arg(helper_options(config))
        .arg("--")
        .arg(&config.mountpoint)
        .env("_FUSE_COMMFD", ITS_END.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
        .fd_mappings(vec![FdMapping { parent_fd: its, child_fd: ITS_END }])
        .map_err(|error| unusable(io::Error::other(error.to_string())))?;
    let mut child = command.spawn().map_err(unusable)?;
    // The command holds the helper's end of the pair; with it gone, the helper's exit closes the socket.
    drop(command);

    let device = receive_descriptor(&ours, HELPER_LIMIT);
    let ended = wait(&mut child, HELPER_LIMIT).map_err(unusable)?;
    match device {
        Ok(Some(device)) => Ok(device),
        _ if !ended => Err(MountError::HelperSilent { path: found.path.clone() }),
        Ok(None) => {
            let status = child.wait().map_err(unusable)?;
            if let Some(signal) = status.signal().and_then(|number| Signal::try_from(number).ok()) {
                let (path, mountpoint) = (found.path.clone(), config.mountpoint.clone());
                return Err(MountError::HelperKilled { path, mountpoint, signal });
            }
            let mut message = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                stderr.read_to_string(&mut message).map_err(unusable)?;
            }
            Err(MountError::HelperRefused {
                path: found.path.clone(),
                mountpoint: config.mountpoint.clone(),
                message: message.trim().to_owned(),
            })
        }
        Err(error) => Err(unusable(error)),
    }
}

/// Waits for a child. `false`: it did not end in time and was killed.
fn wait(child: &mut Child, limit: Duration) -> io::Result<bool> {
    let end = Instant::now() + limit;
    loop {
        if child.try_wait()?.is_some() {
            return Ok(true);
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// `None`: the other side has closed without sending one.
fn receive_descriptor(socket: &OwnedFd, limit: Duration) -> io::Result<Option<OwnedFd>> {
    if !wait_readable(socket, limit)? {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control
            && let Some(number) = numbers.first()
        {
            // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its number.
            return Ok(Some(unsafe { OwnedFd::from_raw_fd(*number) }));
        }
    }
    Ok(None)
}

/// How an unmount ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unmounted {
    /// Nobody was using it.
    Cleanly,
    /// Somebody was still using it at the deadline; it is out of the tree, and ends with its last user.
    Lazily,
    /// It is not ours to unmount.
    NotOurs,
}

/// Where a mount of ours is, if it still is: other programs may move it, or mount on top of it.
///
/// The kernel gives the numbers of a mount and of its device to the next one at once. So a mount of the same numbers is
/// taken for ours elsewhere, that is, for moved, only while our connection lives.
#[derive(Clone, Debug)]
pub(super) struct Place {
    mountpoint: PathBuf,
    made: Option<Mounted>,
    /// A descriptor to give up for a look at mountinfo when none is left. Taken while somebody looks.
    spare: Arc<Mutex<Option<File>>>,
}

impl Place {
    /// Of what was mounted at `mountpoint` just now.
    pub(super) fn of(mountpoint: &Path) -> Self {
        let mounts = mountinfo::read().unwrap_or_default();
        Self {
            mountpoint: mountpoint.to_owned(),
            made: mountinfo::at(&mounts, mountpoint).cloned(),
            spare: Arc::new(Mutex::new(spare())),
        }
    }

    /// What is mounted now, also when this process may open no more files.
    fn table(&self) -> io::Result<Vec<Mounted>> {
        match mountinfo::read() {
            Err(error) if error.raw_os_error() == Some(libc::EMFILE) => {
                let mut kept = self.spare.lock();
                drop(kept.take());
                let table = mountinfo::read();
                *kept = spare();
                table
            }
            read => read,
        }
    }

    pub(super) fn id(&self) -> Option<u32> {
        self.made.as_ref().map(|made| made.id)
    }

    pub(super) fn device(&self) -> Option<(u32, u32)> {
        self.made.as_ref().map(|made| made.device)
    }

    /// Whether the mount is in the tree. Without /proc nobody knows, and the answer is yes.
    pub(super) fn is_mounted(&self, is_gone: impl Fn() -> bool) -> bool {
        match (&self.made, self.table()) {
            (Some(made), Ok(mounts)) => now(made, &mounts, is_gone).is_some(),
            _ => true,
        }
    }

    /// The path by which the mount, and no other, can be unmounted now; `None` when it is gone.
    fn to_unmount(&self, is_gone: impl Fn() -> bool) -> io::Result<Option<PathBuf>> {
        let Some(made) = &self.made else { return Ok(Some(self.mountpoint.clone())) };
        let mounts = self.table()?;
        let Some(ours) = now(made, &mounts, is_gone) else { return Ok(None) };
        match mountinfo::at(&mounts, &ours.place) {
            Some(upper) if upper.id != ours.id => Err(io::Error::other(format!(
                "something else is mounted on top of it at {}: unmount that first",
                ours.place.display()
            ))),
            _ => Ok(Some(ours.place.clone())),
        }
    }
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

/// What a mount has become, if it is still there.
fn now<'a>(made: &Mounted, mounts: &'a [Mounted], is_gone: impl Fn() -> bool) -> Option<&'a Mounted> {
    mountinfo::by_id(mounts, made.id)
        .filter(|found| (found.device, &found.kind) == (made.device, &made.kind))
        // Asked after the table was read: a connection that lives now lived then.
        .filter(|found| found.place == made.place || !is_gone())
}

/// Ends the mount: tries until `limit`, then detaches it lazily. Never touches another one. `is_gone` says whether its
/// connection is.
pub(super) fn unmount(
    maker: &Maker,
    place: &Place,
    limit: Duration,
    is_gone: impl Fn() -> bool,
) -> io::Result<Unmounted> {
    if matches!(maker, Maker::Others) {
        return Ok(Unmounted::NotOurs);
    }
    let end = Instant::now() + limit;
    let mut manner = Manner::IfIdle;
    let mut is_said = false;
    loop {
        let done = if manner == Manner::Lazily { Unmounted::Lazily } else { Unmounted::Cleanly };
        let Some(path) = place.to_unmount(&is_gone)? else { return Ok(done) };
        match unmount_once(maker, &path, manner) {
            // Not looked at once more: its numbers may be another's already.
            Ok(()) => return Ok(done),
            // Somebody else may have been faster.
            Err(_) if !place.is_mounted(&is_gone) => {}
            Err(error) if Instant::now() < end => {
                if !is_said {
                    let why = if is_busy(&error) { "in use" } else { "it cannot be unmounted" };
                    tracing::info!(mountpoint = %place.mountpoint.display(), %error, "{why}: trying for {limit:?}, then lazily");
                    is_said = true;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) if manner == Manner::IfIdle => {
                let why = if is_busy(&error) { "still in use" } else { "it still cannot be unmounted" };
                tracing::warn!(mountpoint = %place.mountpoint.display(), %error, "{why}: unmounting lazily");
                manner = Manner::Lazily;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether somebody uses the mount, by what umount2(2) or a helper, which knows no other language, says.
fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBUSY)
        || error.get_ref().is_some_and(|said| said.to_string().contains("Device or resource busy"))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    IfIdle,
    Lazily,
}

fn unmount_once(maker: &Maker, mountpoint: &Path, manner: Manner) -> io::Result<()> {
    let Maker::Helper(found) = maker else {
        let mut flags = MntFlags::UMOUNT_NOFOLLOW;
        flags.set(MntFlags::MNT_DETACH, manner == Manner::Lazily);
        return Ok(umount2(mountpoint, flags)?);
    };
    let mut command = Command::new(&found.path);
    command.arg("-u").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    if manner == Manner::Lazily {
        command.arg("-z");
    }
    let mut child = command.arg("--").arg(mountpoint).spawn()?;
    if !wait(&mut child, HELPER_LIMIT)? {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    // One that was killed says nothing.
    Err(io::Error::other(if said.is_empty() { format!("{}: {}", found.path.display(), output.status) } else { said }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helpers_get_the_source_escaped() {
        let mut config = Mount::new("default", "/srv/a,b\\c", "/mnt");
        config.read_only = true;
        config.allow_other = true;
        assert_eq!(
            helper_options(&config),
            "fsname=/srv/a\\,b\\\\c,subtype=lighthouse-fs,default_permissions,ro,nosuid,nodev,exec,allow_other"
        );
    }

    #[test]
    fn a_failed_mount_says_what_to_do() {
        let refused =
            |errno| MountError::Refused { mountpoint: "/mnt".into(), source: io::Error::from_raw_os_error(errno) };
        assert_eq!(
            refused(libc::EPERM).to_string(),
            "mount(2) at /mnt failed: Operation not permitted (os error 1); it needs CAP_SYS_ADMIN: run as root, or use `helper` fusermount3"
        );
        assert!(refused(libc::ENODEV).to_string().contains("modprobe fuse"));
    }

    #[test]
    fn only_what_is_in_use_is_called_so() {
        let helpers = io::Error::other("fusermount3: failed to unmount /mnt: Device or resource busy");
        assert!(is_busy(&helpers) && is_busy(&io::Error::from_raw_os_error(libc::EBUSY)));
        assert!(!is_busy(&io::Error::from_raw_os_error(libc::EMFILE)));
        assert!(!is_busy(&io::Error::other("fusermount3: entry for /mnt not found in /etc/mtab")));
    }

    #[test]
    fn a_mount_with_the_numbers_of_one_that_is_gone_is_another() {
        let mounted = |minor, place: &str| Mounted {
            id: 43,
            device: (0, minor),
            place: place.into(),
            kind: "fuse.lighthouse-fs".into(),
        };
        let ours = mounted(40, "/mnt/ours");
        for (found, when_it_lives, when_it_is_gone) in [
            (mounted(40, "/mnt/ours"), true, true),
            (mounted(40, "/mnt/moved"), true, false),
            (mounted(41, "/mnt/ours"), false, false),
            (Mounted { kind: "tmpfs".into(), ..mounted(40, "/mnt/ours") }, false, false),
        ] {
            let table = [found];
            assert_eq!(now(&ours, &table, || false).is_some(), when_it_lives, "{table:?}");
            assert_eq!(now(&ours, &table, || true).is_some(), when_it_is_gone, "{table:?}");
        }
    }

    #[test]
    fn the_helper_of_the_starting_backend_is_used_by_default() {
        assert_eq!(choose(Helper::Fusermount, Backend::Fuse3), Helper::Fusermount);
        if !helper::may_mount_directly() {
            assert_eq!(choose(Helper::Auto, Backend::Fuse2), Helper::Fusermount);
            assert_eq!(choose(Helper::Auto, Backend::Fuse3), Helper::Fusermount3);
        } else {
            assert_eq!(choose(Helper::Auto, Backend::Fuse2), Helper::Direct);
        }
    }
}
