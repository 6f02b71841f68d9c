//! What the kernel tells of its FUSE connections (`fusectl`, Documentation/filesystems/fuse.rst).

use std::path::PathBuf;

/// Requests of a connection that have no answer yet, queued or in the hands of a server; `None` where that cannot be read:
/// without `fusectl`, as in containers, or as another user than the mount's.
#[must_use]
pub fn waiting((_major, minor): (u32, u32)) -> Option<u64> {
    std::fs::read_to_string(file(minor, "waiting")).ok()?.trim().parse().ok()
}

/// Ends a connection: every program that waits for an answer gets an error.
///
/// # Errors
/// Where `fusectl` is not mounted, or for another user than the mount's.
pub fn abort((_major, minor): (u32, u32)) -> std::io::Result<()> {
    std::fs::write(file(minor, "abort"), "1")
}

/// A connection is named by the device number of the file system, which is anonymous, so that its major number is 0.
fn file(minor: u32, name: &str) -> PathBuf {
    PathBuf::from("/sys/fs/fuse/connections").join(minor.to_string()).join(name)
}
