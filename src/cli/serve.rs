//! `serve`: one mount in the foreground.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::Signal;

use super::{Global, absolute, exit, fail};
use crate::config::{self, BackendChoice, Helper, Mount};
use crate::daemon::{self, Failure};

const EXAMPLES: &str = "Examples:
  lighthouse-fs serve --source /srv/projects --mountpoint /mnt/projects
  lighthouse-fs serve --source ~/work --mountpoint ~/mnt --backend fuse2 --read-only
  sudo lighthouse-fs serve --source /srv --mountpoint /mnt --allow-other --helper direct

Prints one line when the mount answers, and serves until SIGTERM or Ctrl-C, or until somebody unmounts it.";

/// Serve a directory in the foreground
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Directory that is served
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    source: PathBuf,
    /// Where it appears; /dev/fd/N stands for a FUSE descriptor that is mounted and not read yet
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    mountpoint: PathBuf,
    /// Where a descriptor that is handed in is mounted
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    mounted_at: Option<PathBuf>,
    /// Name in commands and messages
    #[arg(long, default_value = "default", value_parser = mount_name)]
    name: String,
    /// The stable backend: auto, fuse2 or fuse3
    #[arg(long, value_name = "BACKEND", default_value = "auto")]
    backend: BackendChoice,
    /// Who mounts: fusermount (libfuse 2), fusermount3, direct (needs CAP_SYS_ADMIN) or auto (direct if possible, else the
    /// helper of the backend)
    #[arg(long, default_value = "auto")]
    helper: Helper,
    /// Admit other users than the one who mounts
    #[arg(long)]
    allow_other: bool,
    /// Refuse writing
    #[arg(long)]
    read_only: bool,
    /// Stop when the program that started this one ends, however it ends
    #[arg(long, hide = true)]
    with_parent: bool,
    /// Deadline of the prober, which asks through the mount once a second; 0s turns it off
    #[arg(long, hide = true, value_name = "DURATION", value_parser = humantime::parse_duration)]
    probe_deadline: Option<Duration>,
    /// Reader threads of backend fuse2
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    threads: Option<u8>,
}

/// Serves until the end.
pub fn run(args: Args, global: &Global) -> ExitCode {
    if args.with_parent
        && let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
    {
        return fail(exit::FAILED, format_args!("the end of the parent cannot be watched: {error}"));
    }
    let backend = args.backend.resolve();
    if !backend.is_built_in() {
        let why =
            format_args!("this build has no {backend}: choose the other backend, or build with feature `{backend}`");
        return fail(exit::CONFIGURATION, why);
    }
    if args.mounted_at.is_some() && !args.mountpoint.starts_with("/dev/fd") {
        return fail(
            exit::USAGE,
            "--mounted-at says where a descriptor is mounted: give --mountpoint /dev/fd/N with it",
        );
    }
    let mut mount = Mount {
        mounted_at: args.mounted_at,
        backend: args.backend,
        helper: args.helper,
        allow_other: args.allow_other,
        read_only: args.read_only,
        ..Mount::new(args.name, args.source, args.mountpoint)
    };
    if let Some(threads) = args.threads {
        mount.io.threads = threads.into();
    }
    if let Some(deadline) = args.probe_deadline {
        mount.deadlines.probe = deadline;
    }
    let daemon = config::Daemon {
        socket: global.socket(),
        socket_group: None,
        log_level: String::new(),
        log_format: config::LogFormat::Text,
    };
    let options = daemon::Options {
        settings: config::Settings { daemon, mounts: vec![mount] },
        alone: true,
        mounts_end_too: args.with_parent,
        reload: None,
        server_arguments: global.log.arguments(),
    };
    match daemon::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Configuration(why)) => fail(exit::CONFIGURATION, why),
        Err(Failure::Other(why)) => fail(exit::FAILED, why),
    }
}

fn mount_name(name: &str) -> Result<String, &'static str> {
    config::check_mount_name(name).map(|()| name.to_owned())
}
