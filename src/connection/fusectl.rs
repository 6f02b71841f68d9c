//! What the kernel tells of its FUSE connections (`fusectl`, Documentation/filesystems/fuse.rst).

use std::path::PathBuf;

/// Requests of a connection that have no answer yet, queued or in the hands of a server; `None` where that cannot be read:
/// without `fusectl`, as in containers, or as another user than the mount's.
#[must_use]
pub fn waiting((_major, minor): (u32, u32)) -> Option<u64> {
    // Named by the device number of the file system, which is anonymous, so that its major number is 0.
    let path = PathBuf::from("/sys/fs/fuse/connections").join(minor.to_string()).join("waiting");
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}
