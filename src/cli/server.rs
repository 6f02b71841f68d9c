//! `server`: the serving process of one mount, started by `serve` and by nobody else.

use std::process::ExitCode;

use super::{Global, exit, fail};
use crate::daemon::process::{self, Inherited};
use crate::server;

/// The serving process of one mount; `serve` starts it
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A FUSE device is among the inherited descriptors
    #[arg(long)]
    device: bool,
    /// Name of the mount, for whoever looks at processes; the order to serve says what counts
    #[arg(long = "mount", value_name = "NAME")]
    _mount: Option<String>,
}

/// Serves until told to stop. To be called before anything is opened, the log too: it may be a socket.
pub fn run(args: &Args, global: &Global) -> ExitCode {
    match process::inherited(args.device) {
        Ok(Inherited { line, ledger, device }) => {
            let set_log_level = global.log.start();
            server::run(line, ledger, device, set_log_level).into()
        }
        Err(error) => fail(exit::USAGE, error),
    }
}
