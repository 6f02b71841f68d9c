//! A file system of one's own on two FUSE stacks: everything lies in memory, and is gone when the program ends.
//!
//! `memory.rs` is the whole file system, written against [`lighthouse_fs::vfs::Vfs`] and nothing else; read that first.
//! This file serves it. Each line on standard input changes the FUSE stack under it; its end unmounts.
//!
//! ```console
//! $ cargo run --example memory_fs -- MOUNTPOINT
//! ```

mod memory;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use lighthouse_fs::backend;
use lighthouse_fs::config::Mount;
use lighthouse_fs::connection::Connection;
use lighthouse_fs::ledger::{Cause, Ledger};
use lighthouse_fs::server::Served;
use memory::Memory;

fn main() -> anyhow::Result<()> {
    // Crate fuse3 takes its descriptor from a mount helper, which is this program under another name.
    backend::act_as_mount_helper();
    let mut arguments = std::env::args_os().skip(1);
    let mountpoint = arguments.next().map(PathBuf::from).context("usage: memory_fs MOUNTPOINT")?;

    let mount = Mount::new("memory", "memory", std::path::absolute(mountpoint)?);
    let connection = Connection::establish(&mount, mount.backend.resolve(), None)?;
    let _prepared = backend::prepare();
    let ledger = Ledger::create()?;
    let on_session_end = Arc::new(|session| eprintln!("{session:?} has ended"));
    let (mut served, unavailable) = Served::start(&mount, connection, Arc::new(Memory::new()), ledger, on_session_end)?;
    for missing in unavailable {
        eprintln!("no {}: {}", missing.backend, missing.reason);
    }
    println!("served by {}", served.active());

    for _line in std::io::stdin().lines() {
        let switched = served.switch(served.active().other(), Cause::Operator, "example")?;
        println!("served by {}, after a pause of {:.2} ms", switched.to, switched.pause_ms);
    }
    served.unmount()?;
    Ok(())
}
