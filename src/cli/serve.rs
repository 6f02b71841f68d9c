//! `serve`: the daemon in the foreground.

use std::process::ExitCode;

use rustix::process::Signal;

use super::{Global, exit, fail, fail_loading, log, sources};
use crate::config::{self, Loaded};
use crate::daemon::{self, Failure};

const EXAMPLES: &str = "Examples:
  lighthouse-fs serve --source /srv/projects --mountpoint /mnt/projects
  lighthouse-fs serve --source ~/work --mountpoint ~/mnt --backend fuse2 --read-only
  sudo lighthouse-fs serve --source /srv --mountpoint /mnt --allow-other --helper direct
  lighthouse-fs serve --config /etc/lighthouse-fs.toml
  LIGHTHOUSE_PROJECT_PATH=/srv LIGHTHOUSE_MOUNT_POINT=/mnt lighthouse-fs serve

Flags beat the environment, which beats the file; `config show` with the same options says what is in force.

Prints one line when the mount answers, and serves until SIGTERM or Ctrl-C, or until somebody unmounts it.";

/// Serve a directory in the foreground
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    sources: sources::Args,
    /// Stop when the program that started this one ends, however it ends
    #[arg(long, hide = true)]
    with_parent: bool,
}

/// Serves until the end.
pub fn run(args: &Args, global: &Global) -> ExitCode {
    if args.with_parent
        && let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
    {
        return fail(exit::FAILED, format_args!("the end of the parent cannot be watched: {error}"));
    }
    let Loaded { settings, warnings, .. } = match config::load(&args.sources.sources(global)) {
        Ok(loaded) => loaded,
        Err(errors) => return fail_loading(&errors),
    };
    let config::Settings { daemon, mut mounts } = settings;
    // For a daemon that reads its configuration again.
    let _set_level = log::start(&daemon.log_level, daemon.log_format);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    if mounts.iter().any(|mount| mount.mounted_at.is_some() && !mount.mountpoint.starts_with("/dev/fd")) {
        return fail(
            exit::USAGE,
            "--mounted-at says where a descriptor is mounted: give --mountpoint /dev/fd/N with it",
        );
    }
    let (Some(mount), []) = (mounts.pop(), mounts.as_slice()) else {
        return fail(
            exit::FAILED,
            "this version serves one mount a daemon: start a daemon for each, with a file of its own",
        );
    };
    let server_arguments = log::arguments(&daemon.log_level, daemon.log_format);
    match daemon::run(daemon::Options { mount, socket: daemon.socket, server_arguments }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Configuration(why)) => fail(exit::CONFIGURATION, why),
        Err(Failure::Other(why)) => fail(exit::FAILED, why),
    }
}
