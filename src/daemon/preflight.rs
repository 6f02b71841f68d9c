//! What can be said of a mount before anything is done, without touching a mount point.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::config::Mount;
use crate::connection::mountinfo::{self, Mounted};

/// Why a mount is not even tried.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Wrong in itself, on any machine.
    #[error("{0}")]
    Configuration(String),
    /// Wrong here and now.
    #[error("{0}")]
    World(String),
}

/// Checks a mount, and returns where mountinfo will show it. `socket` is where the daemon is to listen.
///
/// # Errors
/// When it cannot work; the message says why and what to do.
pub fn check(mount: &Mount, socket: &Path) -> Result<PathBuf, Refusal> {
    check_against(mount, socket, &mounts()?)
}

/// Checks the source alone, for a mount that is somebody else's.
///
/// # Errors
/// As [`check`].
pub fn check_source(source: &Path) -> Result<(), Refusal> {
    check_source_against(source, &mounts()?)
}

/// Where mountinfo shows, or would show, a mount at this mount point.
#[must_use]
pub fn place(mountpoint: &Path) -> PathBuf {
    mounts().map_or_else(|_| mountpoint.into(), |mounts| settled(mountpoint, &mounts))
}

fn mounts() -> Result<Vec<Mounted>, Refusal> {
    mountinfo::read()
        .map_err(|error| Refusal::World(format!("/proc/self/mountinfo cannot be read: {error}; mount /proc")))
}

fn check_against(mount: &Mount, socket: &Path, mounts: &[Mounted]) -> Result<PathBuf, Refusal> {
    let [source, place, socket] = [&mount.source, &mount.mountpoint, socket].map(|path| settled(path, mounts));
    // The source may be a link as a whole; what it leads to is served.
    let source = if on_fuse(&source, mounts) { source } else { fs::canonicalize(&source).unwrap_or(source) };
    if source.starts_with(&place) || place.starts_with(&source) {
        return Err(Refusal::Configuration(format!(
            "source {} and mount point {} lie in each other: every look into one would ask the other; choose a mount point elsewhere",
            source.display(),
            place.display()
        )));
    }
    if socket.starts_with(&place) {
        return Err(Refusal::Configuration(format!(
            "the control socket {} lies in the mount point {}: the daemon must not depend on what it serves; use --socket",
            socket.display(),
            place.display()
        )));
    }
    if mountinfo::at(mounts, &place).is_some_and(Mounted::is_ours) {
        return Err(Refusal::World(format!(
            "{0} is mounted by Lighthouse FS already: stop the daemon that serves it, or, if none does, run `umount {0}`",
            place.display()
        )));
    }
    check_source_against(&mount.source, mounts)?;
    check_place(&place, mounts)?;
    Ok(place)
}

/// The mount point itself is looked at only where no FUSE mount can be in the way.
fn check_place(place: &Path, mounts: &[Mounted]) -> Result<(), Refusal> {
    if on_fuse(place, mounts) {
        return Ok(());
    }
    let refusal = |why: &str| Err(Refusal::World(format!("the mount point {} {why}", place.display())));
    match fs::symlink_metadata(place) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(metadata) if metadata.is_symlink() => refusal("is a symbolic link: name the directory that it leads to"),
        Ok(_) => refusal("is not a directory: name a directory with --mountpoint"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            refusal("does not exist: make it, or name another with --mountpoint")
        }
        Err(error) => refusal(&format!("cannot be used: {error}; see the owner and mode of its parents")),
    }
}

fn check_source_against(source: &Path, mounts: &[Mounted]) -> Result<(), Refusal> {
    // What lies on a FUSE mount is not looked at, since that may hang: the server will, and its start has a deadline.
    if on_fuse(source, mounts) {
        return Ok(());
    }
    let refusal = |why: &str| Err(Refusal::World(format!("the source {} {why}", source.display())));
    match fs::metadata(source) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => refusal("is not a directory: name the directory to serve with --source"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            refusal("does not exist: make it, or name another with --source")
        }
        Err(error) => refusal(&format!("cannot be used: {error}; see its owner and mode, and those of its parents")),
    }
}

fn on_fuse(path: &Path, mounts: &[Mounted]) -> bool {
    mountinfo::holding(mounts, path).is_some_and(Mounted::is_fuse)
}

/// The path as mountinfo would show it: links above the last component are followed, as long as nothing on the way is a
/// FUSE mount; the last one, which may be a dead mount, is not looked at.
pub(super) fn settled(path: &Path, mounts: &[Mounted]) -> PathBuf {
    let path = normalised(path);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return path };
    if on_fuse(parent, mounts) {
        return path;
    }
    // A parent that is not there will be missed by whoever makes the mount, with a better message.
    fs::canonicalize(parent).map_or_else(|_| path.clone(), |parent| parent.join(name))
}

/// Without `.` and `..`, by the text alone.
fn normalised(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn refusal(source: &Path, mountpoint: &Path, socket: &str, mounts: &[Mounted]) -> Refusal {
        check_against(&Mount::new("default", source, mountpoint), Path::new(socket), mounts).unwrap_err()
    }

    #[rstest]
    #[case("/srv/a", "/srv/a/mnt")]
    #[case("/srv/a/b", "/srv/a")]
    #[case("/srv/a", "/srv/a")]
    #[case("/srv/a", "/srv/b/../a/c")]
    fn nested_pairs_are_wrong_in_themselves(#[case] source: &str, #[case] mountpoint: &str) {
        let refusal = refusal(Path::new(source), Path::new(mountpoint), "/s", &[]);
        assert!(matches!(&refusal, Refusal::Configuration(why) if why.contains("lie in each other")), "{refusal}");
    }

    #[test]
    fn a_name_that_only_begins_alike_is_not_nested() {
        let folder = tempfile::tempdir().unwrap();
        let (source, mountpoint) = (folder.path().join("a"), folder.path().join("a.mnt"));
        for folder in [&source, &mountpoint] {
            std::fs::create_dir(folder).unwrap();
        }
        let mount = Mount::new("default", &source, &mountpoint);
        assert_eq!(check_against(&mount, Path::new("/s"), &[]), Ok(mountpoint));
    }

    #[test]
    fn a_socket_in_the_mount_is_wrong_in_itself() {
        let refusal = refusal(Path::new("/srv"), Path::new("/mnt"), "/mnt/control.sock", &[]);
        assert!(matches!(&refusal, Refusal::Configuration(why) if why.contains("--socket")), "{refusal}");
    }

    #[test]
    fn links_on_the_way_are_followed_and_mounts_of_ours_found() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        std::os::unix::fs::symlink(&real, folder.path().join("link")).unwrap();
        let mounts = [Mounted { id: 9, device: (0, 31), place: real.join("mnt"), kind: "fuse.lighthouse-fs".into() }];
        let refusal = refusal(Path::new("/usr"), &folder.path().join("link/mnt"), "/s", &mounts);
        assert!(matches!(&refusal, Refusal::World(why) if why.contains("run `umount ")), "{refusal}");
    }

    #[test]
    fn a_source_is_a_directory_that_exists() {
        let refusal = |source| refusal(Path::new(source), Path::new("/mnt/x"), "/s", &[]).to_string();
        assert_eq!(
            refusal("/nonexistent"),
            "the source /nonexistent does not exist: make it, or name another with --source"
        );
        assert!(refusal("/etc/passwd").contains("is not a directory"));
    }
}
