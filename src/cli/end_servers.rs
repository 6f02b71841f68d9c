//! `end-servers`: unmounts what a daemon that is gone has left.

use std::process::ExitCode;

use super::{Global, ask, exit, fail, printable, say};
use crate::api::{Client, ClientError, socket};
use crate::daemon::leftover::{self, Ended};

const EXAMPLES: &str = "Examples:
  lighthouse-fs end-servers
  ExecStopPost=/usr/bin/lighthouse-fs end-servers --after-stop

When a daemon is killed or crashes, its servers serve on, and the next daemon adopts them. Use this if there is to be no
next daemon, or if it is of a version that cannot adopt them.";

/// Unmount what a daemon that is gone has left
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Only if the service was stopped, and not if it crashed: as systemd tells in $SERVICE_RESULT (systemd.exec(5)), and
    /// the daemon by a file `stopping` beside the servers' sockets if its stop has failed
    #[arg(long)]
    after_stop: bool,
}

/// What systemd calls a service that has crashed; it will be started again, and adopt. `exit-code` is also a stop that has
/// failed.
const CRASHES: [&str; 5] = ["exit-code", "signal", "core-dump", "watchdog", "oom-kill"];

/// Ends them.
pub fn run(args: &Args, global: &Global) -> ExitCode {
    let path = global.socket();
    let stopping = socket::stopping(&path);
    if args.after_stop && stopping.symlink_metadata().is_err() {
        let Ok(result) = std::env::var("SERVICE_RESULT") else {
            let why =
                "systemd has not said how the service ended ($SERVICE_RESULT): without --after-stop all are ended";
            return fail(exit::USAGE, why);
        };
        if CRASHES.contains(&result.as_str()) {
            return say(format_args!(
                "the service has crashed ({}): its servers are left to the next daemon",
                printable(result)
            ));
        }
    }
    ask(async {
        match Client::new(&path).status().await {
            Err(ClientError::NoDaemon { .. }) => end(&path),
            Ok(status) => fail(
                exit::FAILED,
                format_args!("they are not left: the daemon {} gives them orders; stop that one", status.daemon.pid),
            ),
            Err(error) => fail(exit::FAILED, format_args!("it is not known whether they have a daemon: {error}")),
        }
    })
}

fn end(socket: &std::path::Path) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for (mount, result) in leftover::end(&socket::servers(socket), |_| true) {
        let of_this = match result {
            Ok(Ended::ObeysAnother) => fail(
                exit::FAILED,
                format_args!("{}: not left: another daemon gives its server orders; stop that one", printable(mount)),
            ),
            Ok(_) => say(format_args!("{}: unmounted", printable(mount))),
            Err(error) => fail(exit::FAILED, format_args!("{}: {error}", printable(mount))),
        };
        if of_this != ExitCode::SUCCESS {
            code = of_this;
        }
    }
    // Nobody is left who could need them. Neither has to be there.
    let _ = std::fs::remove_file(socket::stopping(socket));
    let _ = std::fs::remove_dir(socket::servers(socket));
    code
}
