//! `check-config`: whether a configuration file is good, without starting anything.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{fail_loading, printable, say};
use crate::api::socket;
use crate::config::{self, Sources};

const EXAMPLES: &str = "Examples:
  lighthouse-fs check-config /etc/lighthouse-fs.toml
  lighthouse-fs config example > lighthouse-fs.toml && lighthouse-fs check-config lighthouse-fs.toml

Only the file is looked at: neither the environment nor what it names. Mistakes are told one a line, as
FILE:LINE: key: what is wrong; what would be right. Exit codes: 0 good, 78 not.";

/// Check a configuration file without starting anything
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The configuration file
    file: PathBuf,
}

/// Checks.
pub fn run(args: &Args) -> ExitCode {
    match config::load(&Sources::file(&args.file, socket::default_path())) {
        Ok(loaded) => {
            let mounts = match loaded.settings.mounts.len() {
                1 => "1 mount".to_owned(),
                number => format!("{number} mounts"),
            };
            say(format_args!("{} is good: {mounts}", printable(args.file.display())))
        }
        Err(errors) => fail_loading(&errors),
    }
}
