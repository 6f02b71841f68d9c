//! The one unsafe call of the load: mapping a file.

use std::fs::File;
use std::io;

use memmap2::MmapMut;

/// Maps a whole file, shared and writable. If the file system cannot give a page, or somebody else shortens the file, the
/// next touch is SIGBUS, which ends the process; its parent counts that as a failure.
///
/// # Errors
/// What mmap(2) says.
pub fn shared(file: &File) -> io::Result<MmapMut> {
    // SAFETY: the file is the worker's own. It writes to it by descriptor too, but never while a slice of the map is
    // borrowed, and a test that damages it from outside makes only other bytes of it.
    unsafe { MmapMut::map_mut(file) }
}
