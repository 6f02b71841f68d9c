//! Where daemons listen, and how one takes its place there.

use std::fs::{self, DirBuilder, File, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Component, Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};
use rustix::fs::{FlockOperation, Mode, flock};

/// Name of the socket in its folder.
const NAME: &str = "control.sock";
/// Folder of the service, run by root.
const SERVICE: &str = "/run/lighthouse-fs";
/// Folder, beside a user's own socket, of the sockets of mounts that `mount(8)` made.
const MOUNTS: &str = "mounts";
/// Longest path that a socket can have: `sun_path` in unix(7), without its end.
const LONGEST: usize = 107;
/// For a daemon that takes its place in the same folder at the same moment.
const DEADLINE: Duration = Duration::from_secs(3);

/// Why a daemon cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another daemon is there.
    #[error(
        "a daemon is listening on {} already: stop it, or choose another `socket` for this one", .0.display()
    )]
    InUse(PathBuf),
    /// The folder cannot be trusted.
    #[error("{} is not a folder of this user alone ({why}): remove it, or choose another `socket`", path.display())]
    Untrusted {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The group that may ask is not there.
    #[error("there is no group \"{0}\": make it (`groupadd --system {0}`), or change daemon.socket_group")]
    NoGroup(String),
    /// The kernel refuses.
    #[error("the control socket {} cannot be {action}: {source}; choose another `socket`", path.display())]
    Failed {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Where this user's daemon listens unless told otherwise.
#[must_use]
pub fn default_path() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    place(rustix::process::geteuid().as_raw(), runtime)
}

fn place(uid: u32, runtime: Option<PathBuf>) -> PathBuf {
    let folder = match (uid, runtime) {
        (0, _) => SERVICE.into(),
        (_, Some(runtime)) => runtime.join("lighthouse-fs"),
        (uid, None) => own_folder(uid),
    };
    folder.join(NAME)
}

/// Where the servers of the daemon that listens at `socket` wait for the next daemon: `servers` beside `control.sock`,
/// `NAME.servers` beside another `NAME`. No two sockets have the same.
#[must_use]
pub fn servers(socket: &Path) -> PathBuf {
    let name = socket.file_name().unwrap_or_default();
    if name == NAME {
        return socket.with_file_name("servers");
    }
    let mut folder = name.to_owned();
    folder.push(".servers");
    socket.with_file_name(folder)
}

/// Where the server of a mount waits for the next daemon.
#[must_use]
pub fn server(socket: &Path, mount: &str) -> PathBuf {
    servers(socket).join(format!("{mount}.sock"))
}

/// What a daemon makes when it is told to stop, and removes when it has stopped in order: after a crash it is not there.
#[must_use]
pub fn stopping(socket: &Path) -> PathBuf {
    servers(socket).join("stopping")
}

/// Makes a folder that is this user's alone, or sees that it is one.
///
/// # Errors
/// When it is somebody else's, or cannot be made.
pub fn make_private(folder: &Path) -> Result<(), ListenError> {
    let failed = |source| ListenError::Failed { action: "placed", path: folder.into(), source };
    let uid = rustix::process::geteuid().as_raw();
    let make = || match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(error)),
        _ => Ok(()),
    };
    make()?;
    // What another user has left empty is nobody's; only root can take it away.
    if check_owner(folder, uid).is_err() && fs::remove_dir(folder).is_ok() {
        make()?;
    }
    check_owner(folder, uid)?;
    fs::set_permissions(folder, Permissions::from_mode(0o700)).map_err(failed)
}

fn own_folder(uid: u32) -> PathBuf {
    format!("/tmp/lighthouse-fs-{uid}").into()
}

/// Where the daemon behind a mount of `mount(8)` listens: the mount point, as `systemd-escape --path` writes it, in a folder
/// of this user.
#[must_use]
pub fn of_mount(mountpoint: &Path, name: &str) -> PathBuf {
    within(&mounts_folder(), mountpoint, name)
}

fn mounts_folder() -> PathBuf {
    default_path().with_file_name(MOUNTS)
}

fn within(folder: &Path, mountpoint: &Path, name: &str) -> PathBuf {
    let mut place = escaped(mountpoint);
    // The longest path is that of the mount's server.
    let around = server(&folder.join("x.sock"), name).as_os_str().len() - "x".len();
    let room = LONGEST.saturating_sub(around);
    // What does not fit is told apart by a hash, as in systemd's unit names.
    if place.len() > room {
        let mut hasher = DefaultHasher::new();
        mountpoint.hash(&mut hasher);
        let hash = format!("_{:016x}", hasher.finish());
        place.truncate(room.saturating_sub(hash.len()));
        place += &hash;
    }
    folder.join(place + ".sock")
}

/// "String escaping for inclusion in unit names" of systemd.unit(5), for paths.
fn escaped(path: &Path) -> String {
    let normal = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.as_bytes()),
        _ => None,
    });
    let mut name = String::new();
    for component in normal {
        if !name.is_empty() {
            name.push('-');
        }
        for byte in component {
            match byte {
                b'.' if name.is_empty() => name.push_str("\\x2e"),
                b':' | b'_' | b'.' => name.push(char::from(*byte)),
                _ if byte.is_ascii_alphanumeric() => name.push(char::from(*byte)),
                _ => name.push_str(&format!("\\x{byte:02x}")),
            }
        }
    }
    if name.is_empty() { "-".into() } else { name }
}

/// Places of all daemons that this user might ask: the own ones and the service's; for root, everybody's. Nothing below
/// another user's folder is touched, which could be a mount that hangs.
#[must_use]
pub fn known() -> Vec<PathBuf> {
    let mut paths = vec![default_path(), Path::new(SERVICE).join(NAME)];
    let mounts = fs::read_dir(mounts_folder()).into_iter().flatten().flatten().map(|entry| entry.path());
    paths.extend(mounts.filter(|path| path.extension().is_some_and(|extension| extension == "sock")));
    if rustix::process::geteuid().is_root() {
        let of_users = |folder: &str| fs::read_dir(folder).into_iter().flatten().flatten();
        paths.extend(of_users("/run/user").map(|entry| entry.path().join("lighthouse-fs").join(NAME)));
        let own = of_users("/tmp").filter_map(|entry| {
            let uid = entry.file_name().to_str()?.strip_prefix("lighthouse-fs-")?.parse().ok()?;
            Some(own_folder(uid).join(NAME))
        });
        paths.extend(own);
    }
    paths.sort();
    paths.dedup();
    paths
}

/// Whether this is the socket of a daemon of `mount(8)` of this user, and nobody listens there any more.
#[must_use]
pub fn is_dead_mounts(path: &Path) -> bool {
    let is_own = path.symlink_metadata().is_ok_and(|metadata| metadata.uid() == rustix::process::geteuid().as_raw());
    is_own && path.parent() == Some(&mounts_folder()) && is_dead(path)
}

/// Removes a socket where nobody listens any more, if no daemon takes its place at this moment.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_dead(path: &Path) -> io::Result<()> {
    let folder = File::open(path.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
    flock(&folder, FlockOperation::NonBlockingLockExclusive)?;
    if is_dead(path) { fs::remove_file(path) } else { Ok(()) }
}

fn is_dead(path: &Path) -> bool {
    is_socket(path) && connect(path) == Err(Errno::ECONNREFUSED)
}

/// A socket that is removed when its daemon ends.
#[derive(Debug)]
pub struct Listening {
    path: PathBuf,
    identity: (u64, u64),
    listener: Option<UnixListener>,
}

impl Listening {
    /// The listener, once; it does not block.
    pub fn take(&mut self) -> Option<UnixListener> {
        self.listener.take()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Another daemon may have taken the place of a socket that somebody removed: leave that one alone.
        if self.path.symlink_metadata().is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(socket = %self.path.display(), %error, "the control socket could not be removed");
        }
    }
}

/// Listens on `path`. A socket that a killed daemon left there is replaced, a living daemon's is not.
///
/// The socket's mode is 0600, or 0660 with a group: the kernel turns strangers away before they can occupy connections of
/// the daemon, and the client turns its EACCES into a sentence. (Without a group the uid of each peer is checked all the
/// same.) To be called while no other thread makes files: the umask is changed for a moment.
///
/// # Errors
/// When another daemon listens, the folder or the socket cannot be made, or there is no such group.
pub fn listen(path: &Path, group: Option<&str>) -> Result<Listening, ListenError> {
    let failed = |action| move |source| ListenError::Failed { action, path: path.into(), source };
    let folder = path.parent().ok_or_else(|| failed("placed")(io::ErrorKind::InvalidInput.into()))?;
    make_folder(folder)?;
    // Held until the socket is bound: of two daemons that find the same stale socket, the second would remove the first's.
    let _lock = lock(folder)?;
    match connect(path) {
        Ok(()) | Err(Errno::EAGAIN) => return Err(ListenError::InUse(path.into())),
        Err(Errno::ENOENT) => {}
        Err(Errno::ECONNREFUSED) if is_socket(path) => fs::remove_file(path).map_err(failed("replaced"))?,
        Err(error) => return Err(failed("used")(error.into())),
    }
    let group = group.map(find_group).transpose()?;
    // Nobody may slip in before the mode is set.
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = listener.map_err(failed("made"))?;
    let metadata = path.symlink_metadata().map_err(failed("examined"))?;
    let listening =
        Listening { path: path.into(), identity: (metadata.dev(), metadata.ino()), listener: Some(listener) };
    if let Some(group) = group {
        std::os::unix::fs::chown(path, None, Some(group)).map_err(failed("given to its group"))?;
    }
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed("protected"))?;
    if let Some(listener) = &listening.listener {
        listener.set_nonblocking(true).map_err(failed("used"))?;
    }
    Ok(listening)
}

/// The number of the group that may ask besides root and the daemon's user.
///
/// # Errors
/// When there is no such group, or the system does not say.
pub fn find_group(name: &str) -> Result<u32, ListenError> {
    match nix::unistd::Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(ListenError::NoGroup(name.into())),
        Err(error) => {
            let path = Path::new("/etc/group").into();
            Err(ListenError::Failed { action: "given to its group", path, source: error.into() })
        }
    }
}

/// Whether the kernel takes the path of the control socket. Those of the servers beside it are found through their folder, and
/// may be as long as names are.
///
/// # Errors
/// What to do.
pub fn check_length(socket: &Path) -> Result<(), String> {
    let length = socket.as_os_str().len();
    if length <= LONGEST {
        return Ok(());
    }
    let socket = socket.display();
    Err(format!(
        "the control socket {socket} has {length} bytes, and the kernel takes {LONGEST}: choose a shorter `socket`"
    ))
}

/// Tries whether somebody listens, without waiting: EAGAIN when somebody does who has stopped accepting.
fn connect(path: &Path) -> nix::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)
}

/// Whether somebody listens on a socket that had this name, also when the name is gone: /proc/net/unix (proc(5)) has it as
/// long as the socket lives.
#[must_use]
pub fn has_listener(path: &Path) -> bool {
    // __SO_ACCEPTCON of the kernel's net.h.
    const LISTENS: &[u8] = b"00010000";
    let table = fs::read("/proc/net/unix").unwrap_or_default();
    table.split(|byte| *byte == b'\n').any(|line| {
        let is_named = line.strip_suffix(path.as_os_str().as_bytes()).is_some_and(|rest| rest.ends_with(b" "));
        is_named && line.split(|byte| *byte == b' ').nth(3) == Some(LISTENS)
    })
}

fn is_socket(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// Makes a socket's folder. The one in /tmp, where everybody may write, is made and checked with care.
///
/// # Errors
/// When it cannot be made, or is not this user's alone.
pub fn make_folder(folder: &Path) -> Result<(), ListenError> {
    let failed = |source| ListenError::Failed { action: "placed", path: folder.into(), source };
    let uid = rustix::process::geteuid().as_raw();
    let own = own_folder(uid);
    if folder.starts_with(&own) {
        match DirBuilder::new().mode(0o700).create(&own) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        check_owner(&own, uid)?;
        fs::set_permissions(&own, Permissions::from_mode(0o700)).map_err(failed)?;
    }
    DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(failed)
}

fn check_owner(folder: &Path, uid: u32) -> Result<(), ListenError> {
    let untrusted = |why: String| ListenError::Untrusted { path: folder.into(), why };
    let metadata = folder.symlink_metadata().map_err(|error| untrusted(error.to_string()))?;
    if !metadata.is_dir() {
        return Err(untrusted("it is a link or a file".into()));
    }
    if metadata.uid() != uid {
        return Err(untrusted(format!("it is owned by uid {}", metadata.uid())));
    }
    Ok(())
}

fn lock(folder: &Path) -> Result<File, ListenError> {
    let failed = |source| ListenError::Failed { action: "reserved", path: folder.into(), source };
    let file = File::open(folder).map_err(failed)?;
    let end = Instant::now() + DEADLINE;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < end => sleep(Duration::from_millis(10)),
            Err(error) => return Err(failed(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(0, Some("/run/user/0"), "/run/lighthouse-fs/control.sock")]
    #[case(1000, Some("/run/user/1000"), "/run/user/1000/lighthouse-fs/control.sock")]
    #[case(1000, None, "/tmp/lighthouse-fs-1000/control.sock")]
    fn everybody_has_a_place(#[case] uid: u32, #[case] runtime: Option<&str>, #[case] expected: &str) {
        assert_eq!(place(uid, runtime.map(PathBuf::from)), Path::new(expected));
    }

    #[rstest]
    #[case("/mnt/projects", "mnt-projects")]
    #[case("/mnt//my projects/", r"mnt-my\x20projects")]
    #[case("/.hidden/a-b_c.d:e", r"\x2ehidden-a\x2db_c.d:e")]
    #[case("/é", r"\xc3\xa9")]
    #[case("/", "-")]
    fn mount_points_are_escaped_as_systemd_does(#[case] mountpoint: &str, #[case] expected: &str) {
        assert_eq!(escaped(Path::new(mountpoint)), expected);
    }

    #[rstest]
    #[case("/r/control.sock", "/r/servers")]
    #[case("/r/fs.prod", "/r/fs.prod.servers")]
    #[case("/r/fs.test", "/r/fs.test.servers")]
    #[case("/r/fs", "/r/fs.servers")]
    #[case("/r/fs.sock", "/r/fs.sock.servers")]
    fn each_socket_has_a_folder_of_servers(#[case] socket: &str, #[case] expected: &str) {
        assert_eq!(servers(Path::new(socket)), Path::new(expected));
    }

    #[test]
    fn paths_that_the_kernel_does_not_take_are_told() {
        let socket = |length: usize| PathBuf::from(format!("/{}", "s".repeat(length - 1)));
        assert_eq!(check_length(&socket(LONGEST)), Ok(()));
        let longer = socket(LONGEST + 1);
        assert!(UnixListener::bind(&longer).is_err());
        let why = check_length(&longer).unwrap_err();
        assert!(
            why.contains("has 108 bytes") && why.contains("takes 107") && why.contains("shorter `socket`"),
            "{why}"
        );
    }

    #[test]
    fn long_mount_points_have_sockets_of_their_own() {
        let folder = Path::new("/run/lighthouse-fs/mounts");
        let place = |last: &str| within(folder, &Path::new(&"/long".repeat(40)).join(last), "long");
        let (one, other) = (place("one"), place("other"));
        assert_eq!(server(&one, "long").as_os_str().len(), LONGEST);
        assert_ne!(one, other);
        assert_eq!(within(folder, Path::new("/mnt"), "mnt"), folder.join("mnt.sock"));
    }

    #[test]
    fn a_living_daemon_keeps_its_socket_and_a_dead_one_loses_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/control.sock");
        let first = listen(&path, None).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert!(matches!(listen(&path, None), Err(ListenError::InUse(_))));
        drop(first);
        assert!(!path.exists());

        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "what a killed daemon leaves");
        let mut second = listen(&path, None).unwrap();
        assert!(second.take().is_some());
    }

    #[test]
    fn a_listener_is_found_without_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let listener = UnixListener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(has_listener(&path) && !has_listener(&folder.path().join("trol.sock")));
        drop(listener);
        assert!(!has_listener(&path));
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen(&path, None), Err(ListenError::Failed { action: "used", .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_socket_that_took_the_place_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let first = listen(&path, None).unwrap();
        fs::rename(&path, folder.path().join("away")).unwrap();
        let second = listen(&path, None).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
    }

    #[test]
    fn links_and_other_users_folders_are_not_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path(), &link).unwrap();
        let uid = rustix::process::geteuid().as_raw();
        assert!(check_owner(folder.path(), uid).is_ok());
        assert!(matches!(check_owner(&link, uid), Err(ListenError::Untrusted { .. })));
        let error = check_owner(folder.path(), uid + 1).unwrap_err().to_string();
        assert!(error.contains(&format!("it is owned by uid {uid}")), "{error}");
    }
}
