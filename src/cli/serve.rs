//! `serve`: the daemon in the foreground.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;

use super::{Global, exit, fail, fail_loading, log, sources};
use crate::config::{self, Errors, Loaded};
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
    /// Deadline of the prober, which asks through the mount once a second; 0s turns it off
    #[arg(long, hide = true, value_name = "DURATION", value_parser = humantime::parse_duration)]
    probe_deadline: Option<Duration>,
}

/// Serves until the end.
pub fn run(args: &Args, global: &Global) -> ExitCode {
    if args.with_parent
        && let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
    {
        return fail(exit::FAILED, format_args!("the end of the parent cannot be watched: {error}"));
    }
    let sources = args.sources.sources(global);
    // A mount that flags or the environment name is all that the daemon is for.
    let alone = sources.file.is_none();
    let configuration = match sources.file.as_ref().map(std::path::absolute).transpose() {
        Ok(configuration) => configuration,
        Err(error) => {
            return fail(exit::FAILED, format_args!("where the configuration file is cannot be seen: {error}"));
        }
    };
    let probe_deadline = args.probe_deadline;
    let load = move || {
        let mut loaded = config::load(&sources)?;
        for mount in &mut loaded.settings.mounts {
            mount.deadlines.probe = probe_deadline.unwrap_or(mount.deadlines.probe);
        }
        Ok(loaded)
    };
    let Loaded { settings, warnings, .. } = match load() {
        Ok(loaded) => loaded,
        Err(errors) => return fail_loading(&errors),
    };
    let (set_level, log) = log::start_for_daemon(&settings.daemon.log_level, settings.daemon.log_format);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    if settings.mounts.iter().any(|mount| mount.mounted_at.is_some() && !mount.mountpoint.starts_with("/dev/fd")) {
        return fail(
            exit::USAGE,
            "--mounted-at says where a descriptor is mounted: give --mountpoint /dev/fd/N with it",
        );
    }
    let reload = configuration.map(|configuration| daemon::Reload {
        configuration,
        load: Arc::new(move || load().map_err(|errors: Errors| errors.to_string())),
        set_level,
    });
    let options = daemon::Options {
        server_arguments: |daemon| log::arguments(&daemon.log_level, daemon.log_format),
        settings,
        alone,
        mounts_end_too: args.with_parent,
        reload,
    };
    let ended = daemon::run(options);
    // What it has logged comes before the last word.
    drop(log);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Configuration(why)) => fail(exit::CONFIGURATION, why),
        Err(Failure::Other(why)) => fail(exit::FAILED, why),
    }
}
