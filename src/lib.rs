//! Lighthouse FS serves a file system through two FUSE stacks and swaps the stack underneath running programs. The
//! kernel's mount never changes, so open files, working directories, locks and memory maps live on.
//!
//! The program `lighthouse-fs` serves a source directory ([`vfs::PassThrough`]). A file system of one's own implements
//! [`vfs::Vfs`], which knows no FUSE crate, and is served by [`server::Served`]:
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use lighthouse_fs::ledger::{Cause, Ledger};
//! use lighthouse_fs::vfs::{Access, PassThrough};
//! use lighthouse_fs::{backend, config::Mount, connection::Connection, server::Served};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // First of all: crate fuse3 runs this very program as its mount helper.
//!     backend::act_as_mount_helper();
//!     // Or any other `Vfs`. What this one wants of the process, its documentation says.
//!     let vfs = PassThrough::new("/srv/projects".as_ref(), Access::ReadWrite)?;
//!     let mount = Mount::new("projects", "/srv/projects", "/mnt/projects");
//!     let connection = Connection::establish(&mount, mount.stable(), None)?;
//!     // While there is one thread: PATH is changed for that helper.
//!     let _prepared = backend::prepare();
//!     let ledger = Ledger::create()?;
//!     // A real server hands what comes here to `Served::session_ended`, and so fails over.
//!     let when_a_session_ends = Arc::new(|session| eprintln!("{session:?} has ended"));
//!     let (mut served, _unavailable) =
//!         Served::start(&mount, connection, Arc::new(vfs), ledger, when_a_session_ends)?;
//!
//!     // Programs in the mount do not notice.
//!     let switched = served.switch(served.active().other(), Cause::Operator, "to show it")?;
//!     println!("{} serves, after a pause of {} ms", switched.to, switched.pause_ms);
//!     served.unmount()?;
//!     Ok(())
//! }
//! ```
//!
//! `examples/memory_fs` is such a file system, whole and in memory. `docs/architecture.md` explains what happens in a
//! switch.
//!
//! The house; imports point down this list, never up:
//!
//! | module | concern |
//! |---|---|
//! | [`cli`] | one file per subcommand |
//! | [`daemon`] | the control process: starts and watches servers, asks through mounts, life cycle |
//! | [`api`] | control over HTTP, on a Unix socket and over TCP; events |
//! | [`rollout`] | which backend serves: plan, steps, pins, what outlives a restart |
//! | [`guard`] | whether a candidate may go on: window, statistics, rules |
//! | [`mirror`] | do two mounts of one source show the same: walk, look, compare |
//! | [`metrics`] | every metric, in one table, read from the ledgers |
//! | [`server`] | the serving process of one mount: orders, switch, failover |
//! | [`shadow`] | do both backends answer the same: sampling, wire encoding, comparison |
//! | [`backend`] | how FUSE is spoken: an adapter for each crate, `fuse2` (crate fuser), `fuse3` (crate fuse3) |
//! | [`connection`] | the kernel's side: mounting, FUSE_INIT, ports (the trait; attach, drain, park) |
//! | [`vfs`] | what the file system does: the trait, and pass-through |
//! | [`ledger`] | the shared mapping: its layout and the rules of writing it |
//! | [`config`] | plain data, and how it is read from file, environment and flags; every module may import it |
//! | [`mod@bench`] | the load that demo and tests use |

#[cfg(not(any(feature = "fuse2", feature = "fuse3")))]
compile_error!("no backend: build with feature `fuse2`, `fuse3`, or both");

pub mod api;
pub mod backend;
pub mod bench;
pub mod cli;
pub mod config;
pub mod connection;
pub mod daemon;
pub mod guard;
pub mod ledger;
pub mod metrics;
pub mod mirror;
pub mod rollout;
pub mod server;
pub mod shadow;
pub mod vfs;
