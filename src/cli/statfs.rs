//! `statfs`: asks a mount whether it is served, for the daemon, which must not: it could hang.

use std::path::PathBuf;
use std::process::ExitCode;

/// Ask a mount whether it is served; the exit code is the errno
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The mount
    place: PathBuf,
}

/// Asks.
pub fn run(args: &Args) -> ExitCode {
    match rustix::fs::statfs(&args.place) {
        Ok(_) => ExitCode::SUCCESS,
        // Linux's numbers up to 133 fit (errno(3)).
        Err(error) => u8::try_from(error.raw_os_error()).unwrap_or(u8::MAX).into(),
    }
}
