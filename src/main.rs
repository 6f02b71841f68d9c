//! The program `lighthouse-fs`; see the library for the map of the house.

use std::process::ExitCode;

/// The runtime of `fuse3` allocates for every request, away from the main thread; glibc's allocator is slow at that
/// (docs/performance.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    lighthouse_fs::backend::act_as_mount_helper();
    lighthouse_fs::cli::main()
}
