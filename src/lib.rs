//! Lighthouse FS serves a directory tree through FUSE with two FUSE stacks at once and swaps the stack underneath
//! running programs.
//!
//! The house; imports point down this list, never up:
//!
//! | module | concern |
//! |---|---|
//! | [`cli`] | one file per subcommand |
//! | [`daemon`] | the control process: starts and watches servers, life cycle |
//! | [`api`] | control over a Unix socket |
//! | [`server`] | the serving process of one mount: orders, switch, failover |
//! | [`backend`] | how FUSE is spoken: the trait, `fuse2` (crate fuser), `fuse3` (crate fuse3) |
//! | [`connection`] | the kernel's side: mounting, FUSE_INIT, ports (attach, drain, park) |
//! | [`vfs`] | what the file system does: the trait, and pass-through |
//! | [`ledger`] | the shared mapping: its layout and the rules of writing it |
//! | [`config`] | plain data; every module may import it |
//! | [`mod@bench`] | the load that demo and tests use |

pub mod api;
pub mod backend;
pub mod bench;
pub mod cli;
pub mod config;
pub mod connection;
pub mod daemon;
pub mod ledger;
pub mod server;
pub mod vfs;
