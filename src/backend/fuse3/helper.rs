//! The mount helper that crate fuse3 runs: it is this very program, called by another name, and what it sends is the set of
//! a port.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::os::fd::RawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::fcntl::{Flock, FlockArg};

/// As the crate looks it up in PATH.
const HELPER_NAME: &str = "fusermount3";
/// Where the link leads: to the program of whoever follows it, which is a child of ours.
const OURSELVES: &str = "/proc/self/exe";

/// A temporary folder for nobody but us, whatever the umask, which is 0 in a server: what lies in it is executed.
pub(super) fn private_folder(suffix: &str) -> std::io::Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix("lighthouse-fs-")
        .suffix(suffix)
        .permissions(Permissions::from_mode(0o700))
        .tempdir()
}

/// Acts as the mount helper that crate fuse3 runs, and exits, if this process was started as one.
pub(in crate::backend) fn act_as_mount_helper() {
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
pub(in crate::backend) struct HelperLink {
    /// A shared lock on the folder, which keeps those who clean temporary folders off (tmpfiles.d(5)).
    _lock: Flock<File>,
    _folder: tempfile::TempDir,
}

impl HelperLink {
    /// Only while the process has one thread: PATH is changed.
    pub(in crate::backend) fn install() -> Option<Self> {
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
        let folder = private_folder(".path")?;
        let lock = Flock::lock(File::open(folder.path())?, FlockArg::LockSharedNonblock).map_err(|(_, error)| error)?;
        let link = folder.path().join(HELPER_NAME);
        std::os::unix::fs::symlink(OURSELVES, &link)?;
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
pub(super) fn check_link() -> std::result::Result<(), String> {
    match LINK.get() {
        Some(Err(why)) => Err(why.clone()),
        Some(Ok(link)) if link.read_link().is_ok_and(|target| target == Path::new(OURSELVES)) => Ok(()),
        Some(Ok(link)) => Err(format!(
            "{} has been removed or changed, without which fuse3 cannot start: restart the mount, and keep temporary folders that are in use",
            link.display()
        )),
        // Whoever has not prepared the process has set PATH.
        None => Ok(()),
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
