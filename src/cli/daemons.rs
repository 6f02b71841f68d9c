//! Which daemons there are to ask: the ordinary one, those of `mount(8)`, and for root those of other users.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{Global, exit, fail, fail_asking};
use crate::api::model::{MountStatus, Status};
use crate::api::{Client, ClientError, socket};
use crate::connection::mountinfo;
use crate::server::meeting;

/// What every daemon says that answers, each with its socket; an error if none does.
pub async fn statuses(global: &Global) -> Result<Vec<Status>, ClientError> {
    let first = global.socket();
    let mut found = Vec::new();
    let mut errors = Vec::new();
    for socket in std::iter::once(first.clone()).chain(others(global, &first)) {
        match status(&socket).await {
            Ok(status) => found.push(status),
            Err(error) => errors.push(error),
        }
    }
    // That nobody listens at a place is no news if somebody else answers; a daemon that does not answer is.
    let is_news = |error: &ClientError| !matches!(error, ClientError::NoDaemon { .. });
    for error in errors.iter().filter(|error| is_news(error) && !found.is_empty()) {
        tracing::warn!("{error}");
    }
    let worst = errors.iter().position(is_news).unwrap_or(0);
    if found.is_empty() && !errors.is_empty() {
        return Err(errors.swap_remove(worst));
    }
    Ok(found)
}

/// The mount of this name or mount point, and the socket of its daemon: the ordinary daemon's if that knows it, else the
/// only one that any other daemon has. The exit code, if there is none; what is wrong has been said then.
pub async fn find(wanted: &str, global: &Global) -> Result<(PathBuf, MountStatus), ExitCode> {
    let first = global.socket();
    let asked = status(&first).await;
    let is_wanted = |mount: &MountStatus| names(wanted, mount);
    if let Some(mount) = asked.as_ref().ok().and_then(|status| status.mounts.iter().find(|mount| is_wanted(mount))) {
        return Ok((first, mount.clone()));
    }
    let mut found = Vec::new();
    for socket in others(global, &first) {
        let Ok(status) = status(&socket).await else { continue };
        found.extend(status.mounts.into_iter().filter(is_wanted).map(|mount| (socket.clone(), mount)));
    }
    if found.len() > 1 {
        let places: Vec<_> = found.iter().map(|(_, mount)| super::printable(mount.mountpoint.display())).collect();
        let why = format_args!(
            "several daemons have a mount \"{wanted}\": name the mount point ({}), or the daemon's socket with --socket",
            places.join(", ")
        );
        return Err(fail(exit::FAILED, why));
    }
    found.pop().ok_or_else(|| match asked {
        Ok(_) => unknown(wanted),
        Err(error) => fail_asking(&error),
    })
}

/// Whether this is the mount's name, or, with a slash, its mount point.
pub fn names(wanted: &str, mount: &MountStatus) -> bool {
    if wanted.contains('/') {
        return std::path::absolute(wanted).is_ok_and(|place| place == mount.mountpoint);
    }
    mount.name == wanted
}

/// Says that nobody has such a mount.
pub fn unknown(wanted: &str) -> ExitCode {
    fail(exit::FAILED, format_args!("no mount is called \"{wanted}\": `lighthouse-fs status` lists them"))
}

async fn status(socket: &Path) -> Result<Status, ClientError> {
    let mut status = Client::new(socket).status().await?;
    status.daemon.socket = Some(socket.into());
    Ok(status)
}

/// Other places where a daemon listens, but for those on a FUSE mount, which may hang whoever looks. None if the user has
/// named one.
fn others(global: &Global, first: &Path) -> Vec<PathBuf> {
    if global.socket.is_some() {
        return Vec::new();
    }
    let mounts = mountinfo::read().unwrap_or_default();
    let is_safe = |path: &Path| !mountinfo::holding(&mounts, path).is_some_and(mountinfo::Mounted::is_fuse);
    let mut others = socket::known();
    others.retain(|path| path != first && is_safe(path));
    others.retain(|path| !is_dead(path));
    others
}

/// Whether nobody listens at the socket of a mount of `mount(8)`, whose daemon was killed. It is taken away then, unless
/// the mount is served on, which is said.
fn is_dead(path: &Path) -> bool {
    if !socket::is_dead_mounts(path) {
        return false;
    }
    match meeting::names(&socket::servers(path)) {
        Ok(left) if left.is_empty() => {
            if let Err(error) = socket::remove_dead(path) {
                tracing::debug!(socket = %path.display(), %error, "a dead socket stays");
            }
        }
        Ok(left) => tracing::warn!(
            "the daemon of {} at {} is gone, and its mount is served on: the same `mount` gives it a daemon again, and `lighthouse-fs --socket {} end-servers` unmounts it",
            left.join(", "),
            path.display(),
            path.display()
        ),
        Err(error) => tracing::debug!(socket = %path.display(), %error, "what it has left cannot be seen"),
    }
    true
}
