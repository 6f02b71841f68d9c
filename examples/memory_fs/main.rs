//! A file system of one's own on two FUSE stacks: everything lies in memory, and is gone when the program ends.
//!
//! `memory.rs` is the whole file system, written against [`lighthouse_fs::vfs::Vfs`] and nothing else; read that first.
//!
//! ```console
//! $ cargo run --example memory_fs -- MOUNTPOINT
//! ```

mod memory;

use std::path::PathBuf;
use std::process::ExitCode;

use lighthouse_fs::vfs::{Caller, ROOT, Vfs};
use memory::Memory;

/// `EX_USAGE` of `sysexits.h`.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(mountpoint), None) = (arguments.next().map(PathBuf::from), arguments.next()) else {
        eprintln!("usage: memory_fs MOUNTPOINT");
        return ExitCode::from(USAGE);
    };
    let vfs = Memory::new();
    match vfs.statfs(&Caller::default(), ROOT) {
        Ok(space) => println!("an empty file system for {}: {} free blocks", mountpoint.display(), space.bfree),
        Err(error) => println!("no file system for {}: {error}", mountpoint.display()),
    }
    ExitCode::SUCCESS
}
