//! What an earlier daemon has left at a mount point: a mount that nobody serves any more is taken away, one that lives
//! is left alone.
//!
//! Which of the two it is, only the mount can tell, and it may hang. So another process asks it, with a deadline.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::connection::helper;
use crate::connection::mountinfo::{self, Mounted};

/// For a mount to answer. A dead one does at once; a server that lives does so unless it is stuck.
const LIMIT: Duration = Duration::from_secs(2);

/// Whether somebody serves a mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// The kernel has no connection to a server, and never will.
    Dead,
    /// There is an answer.
    Answers,
    /// There is none, so a server has it, or is starting.
    Silent,
}

/// Whether the mount of ours at `place` is dead. Blocks for at most the deadline of the question.
pub(super) fn is_dead(place: &Path) -> bool {
    let mounts = mountinfo::read().unwrap_or_default();
    mountinfo::at(&mounts, place).is_some_and(|mounted| matches!(state(mounted), Ok(State::Dead)))
}

/// Takes all dead mounts of ours away, after a server was killed of which only that is known.
///
/// # Errors
/// When one stays.
pub(super) fn clear_all() -> io::Result<()> {
    for mounted in mountinfo::read()?.iter().filter(|mounted| mounted.is_ours()) {
        if matches!(state(mounted), Ok(State::Dead)) {
            mountinfo::detach(&mounted.place).map_err(io::Error::other)?;
            tracing::warn!(mountpoint = %mounted.place.display(), "a dead mount was taken away");
        }
    }
    Ok(())
}

/// Takes the dead mounts of ours away that are at `place`, and returns what is mounted now.
///
/// # Errors
/// When a mount of ours stays; the message says what to do.
pub(super) fn clear(place: &Path, mut mounts: Vec<Mounted>) -> Result<Vec<Mounted>, String> {
    let mut last = None;
    // One crash after another leaves one on top of the other.
    while let Some(mounted) = mountinfo::at(&mounts, place).filter(|mounted| mounted.is_ours()) {
        if last == Some(mounted.id) {
            return Err(format!("{0} is still mounted: run `umount -l {0}` as root", place.display()));
        }
        last = Some(mounted.id);
        let state = state(mounted).map_err(|error| {
            format!("{} is mounted, and whether it is served cannot be seen: {error}; unmount it", place.display())
        })?;
        match state {
            State::Dead => mountinfo::detach(place)?,
            State::Answers => {
                return Err(format!(
                    "{0} is mounted by Lighthouse FS already: stop the daemon that serves it; if that is gone and listened elsewhere, run `lighthouse-fs end-servers --socket OLD` with its socket; or run `umount {0}`",
                    place.display()
                ));
            }
            State::Silent => {
                return Err(format!(
                    "{} is mounted by Lighthouse FS already, and does not answer: stop the daemon that serves it; if that is gone and listened elsewhere, run `lighthouse-fs end-servers --socket OLD` with its socket; or run `echo 1 > /sys/fs/fuse/connections/{}/abort` as root",
                    place.display(),
                    mounted.device.1
                ));
            }
        }
        tracing::warn!(mountpoint = %place.display(), "a dead mount, left by an earlier crash, was taken away");
        mounts = mountinfo::read().map_err(|error| format!("/proc/self/mountinfo cannot be read: {error}"))?;
    }
    Ok(mounts)
}

fn state(mounted: &Mounted) -> io::Result<State> {
    let mut question = Command::new("/proc/self/exe");
    question.arg0("lighthouse-fs").arg("statfs").arg(&mounted.place);
    question.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Some((uid, gid)) = stranger(mounted) {
        question.uid(uid).gid(gid);
    }
    let mut child = question.spawn()?;
    if let Err(error) = helper::wait(&mut child, Instant::now() + LIMIT) {
        child.kill()?;
        // One that the server has read and not answered cannot be killed: it ends with the mount, unwaited for.
        let _ = helper::wait(&mut child, Instant::now() + Duration::from_millis(100));
        return if error.kind() == io::ErrorKind::TimedOut { Ok(State::Silent) } else { Err(error) };
    }
    match child.wait()?.code() {
        Some(0) => Ok(State::Answers),
        // ECONNABORTED: its server died while it was being asked.
        Some(libc::ENOTCONN | libc::ECONNABORTED) => Ok(State::Dead),
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        None => Err(io::Error::other("the question was ended by a signal")),
    }
}

/// The user and group who have mounted it, if that is not this user. The kernel answers nobody else truthfully, not even
/// root (`fuse_statfs` in `fs/fuse/inode.c`). They own the connection's folder.
fn stranger(mounted: &Mounted) -> Option<(u32, u32)> {
    let metadata = fs::metadata(format!("/sys/fs/fuse/connections/{}", mounted.device.1)).ok()?;
    let may_change = rustix::process::geteuid().is_root();
    Some((metadata.uid(), metadata.gid())).filter(|(uid, _)| may_change && *uid != 0)
}
