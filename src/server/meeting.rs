//! Where a server and the daemon after next find each other: a SOCK_SEQPACKET socket in a folder of their user alone.
//!
//! It is bound and connected to through the folder's descriptor, since an address has room for 107 bytes only.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, Uid};

use super::orders::Line;

/// A server's socket; removed when dropped.
#[derive(Debug)]
pub struct Meeting {
    listener: OwnedFd,
    folder: OwnedFd,
    name: PathBuf,
    /// Device and inode number of the socket.
    identity: (u64, u64),
}

impl Meeting {
    /// Listens at `path`, whose folder exists. What a dead server has left there is replaced.
    ///
    /// # Errors
    /// When another server listens there, or the kernel refuses.
    pub fn at(path: &Path) -> io::Result<Self> {
        if visit(path)?.is_some() {
            return Err(io::Error::other(
                "another server of this mount lives: end it with `lighthouse-fs end-servers`",
            ));
        }
        let (folder, name) = open_folder(path)?;
        match rustix::fs::unlinkat(&folder, &name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let listener = socket()?;
        rustix::net::bind(&listener, &address(&folder, &name)?)?;
        let identity = identity(&folder, &name)?;
        rustix::net::listen(&listener, 4)?;
        Ok(Self { listener, folder, name, identity })
    }

    /// Whoever has come, if it is the same user or root. `None`: nobody, or a stranger, who is sent away.
    ///
    /// # Errors
    /// When descriptors have run out.
    pub fn accept(&self) -> io::Result<Option<Line>> {
        let flags = SocketFlags::CLOEXEC;
        let line = match rustix::net::accept_with(&self.listener, flags) {
            Ok(line) => line,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNABORTED) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let peer = rustix::net::sockopt::socket_peercred(&line)?.uid;
        let trusted = peer.is_root() || peer == rustix::process::geteuid();
        if !trusted {
            tracing::warn!(uid = peer.as_raw(), "another user has asked for the server; sent away");
        }
        Ok(trusted.then(|| line.into()))
    }
}

impl AsFd for Meeting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        // Another server may have taken the place of a socket that somebody has removed: leave that one alone.
        if identity(&self.folder, &self.name).is_ok_and(|found| found != self.identity) {
            return;
        }
        if let Err(error) = rustix::fs::unlinkat(&self.folder, &self.name, AtFlags::empty()) {
            tracing::debug!(%error, "the server's socket was gone already");
        }
    }
}

/// Connects to the server that listens at `path`; tells its process. `None`: nobody does. Does not wait.
///
/// # Errors
/// When the socket is another user's, or cannot be used.
pub fn visit(path: &Path) -> io::Result<Option<(Line, Pid)>> {
    let (folder, name) = match open_folder(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let line = socket()?;
    match rustix::net::connect(&line, &address(&folder, &name)?) {
        Ok(()) => {}
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let peer = rustix::net::sockopt::socket_peercred(&line)?;
    check_owner("the server that listens there", peer.uid)?;
    Ok(Some((line.into(), peer.pid)))
}

/// The servers that have a socket in `folder`, by name, alive or not.
///
/// # Errors
/// When the folder cannot be read; one that is not there is empty.
pub fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut names: Vec<_> =
        entries.filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_suffix(".sock")?.to_owned())).collect();
    names.sort();
    Ok(names)
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Whoever is neither this user nor root may have made it to be obeyed, or to have something ended.
fn check_owner(what: &str, owner: Uid) -> io::Result<()> {
    if owner.is_root() || owner == rustix::process::geteuid() {
        return Ok(());
    }
    Err(io::Error::other(format!("{what} belongs to uid {}: do this as that user", owner.as_raw())))
}

fn identity(folder: &OwnedFd, name: &Path) -> rustix::io::Result<(u64, u64)> {
    let status = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok((status.st_dev, status.st_ino))
}

/// The socket's folder, if it is a folder that no other user has made.
fn open_folder(path: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder = rustix::fs::open(folder, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let status = rustix::fs::fstat(&folder)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::Directory {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    check_owner("the folder of the servers", Uid::from_raw(status.st_uid))?;
    Ok((folder, name.into()))
}

fn address(folder: &OwnedFd, name: &Path) -> io::Result<SocketAddrUnix> {
    let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    Ok(SocketAddrUnix::new(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::orders::Order;
    use std::time::Duration;

    #[test]
    fn a_daemon_finds_a_server_and_not_a_dead_one() {
        let folder = tempfile::tempdir().unwrap();
        // Longer than an address of a socket may be.
        let folder = folder.path().join("x".repeat(120));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("a.sock");
        assert!(visit(&path).unwrap().is_none());
        let meeting = Meeting::at(&path).unwrap();
        let (line, pid) = visit(&path).unwrap().expect("somebody listens");
        assert_eq!(pid, rustix::process::getpid());
        let theirs = meeting.accept().unwrap().expect("the same user");
        line.send(&Order::Stop).unwrap();
        assert_eq!(theirs.receive::<Order>(Duration::from_secs(1)).unwrap(), Order::Stop);
        assert!(meeting.accept().unwrap().is_none(), "nobody else has come");
        assert!(Meeting::at(&path).unwrap_err().to_string().contains("another server"));
        drop(meeting);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_dead_server_has_left_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let _meeting = Meeting::at(&path).unwrap();
        assert!(visit(&path).unwrap().is_some());
        assert_eq!(names(folder.path()).unwrap(), ["a"]);
    }

    #[test]
    fn a_socket_that_took_the_place_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let first = Meeting::at(&path).unwrap();
        std::fs::rename(&path, folder.path().join("away")).unwrap();
        let second = Meeting::at(&path).unwrap();
        drop(first);
        assert!(visit(&path).unwrap().is_some());
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn what_another_user_has_made_is_refused_by_root_too() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: what_another_user_has_made_is_refused_by_root_too: needs root");
            return;
        }
        const SOMEBODY: u32 = 60001;
        let refusal = |path: &Path| visit(path).unwrap_err().to_string();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let meeting = Meeting::at(&path).unwrap();
        std::os::unix::fs::chown(folder.path(), Some(SOMEBODY), None).unwrap();
        let why = "the folder of the servers belongs to uid 60001: do this as that user";
        assert_eq!(refusal(&path), why);
        assert_eq!(Meeting::at(&path).unwrap_err().to_string(), why);

        std::os::unix::fs::chown(folder.path(), Some(0), None).unwrap();
        std::thread::scope(|scope| {
            // Of a listener counts who has called listen(2); each thread has an identity of its own.
            let listen = || {
                let somebody = Uid::from_raw(SOMEBODY);
                rustix::thread::set_thread_res_uid(somebody, somebody, somebody).unwrap();
                rustix::net::listen(&meeting.listener, 4).unwrap();
            };
            scope.spawn(listen).join().unwrap();
        });
        assert_eq!(refusal(&path), "the server that listens there belongs to uid 60001: do this as that user");
    }
}
