//! The options that say what to serve, the same for `serve` and `config show`.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::ValueHint;

use super::{Global, absolute, flag};
use crate::api::socket;
use crate::config::{Flags, Sources};

/// The flags over the file; each is checked by the rules of its key.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Configuration file; `lighthouse-fs config example` prints one to begin with
    #[arg(long, value_name = "FILE", value_parser = absolute, conflicts_with_all = ["source", "mountpoint", "mounted_at", "name"])]
    config: Option<PathBuf>,
    /// Directory that is served
    #[arg(long, value_name = "DIR", value_parser = place, value_hint = ValueHint::DirPath)]
    source: Option<String>,
    /// Where it appears; /dev/fd/N stands for a FUSE descriptor that is mounted and not read yet
    #[arg(long, value_name = "DIR", value_parser = place, value_hint = ValueHint::DirPath)]
    mountpoint: Option<String>,
    /// Where a descriptor that is handed in is mounted
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    mounted_at: Option<PathBuf>,
    /// Name in commands and messages [default: default]
    #[arg(long, value_parser = flag("mount.name"))]
    name: Option<String>,
    /// The stable backend: auto, fuse2 or fuse3 [default: auto]
    #[arg(long, value_name = "BACKEND", value_parser = flag("mount.backend"))]
    backend: Option<String>,
    /// Who mounts: fusermount (libfuse 2), fusermount3, direct (needs CAP_SYS_ADMIN) or auto (direct if possible, else the
    /// helper of the backend) [default: auto]
    #[arg(long, value_parser = flag("mount.helper"))]
    helper: Option<String>,
    /// Admit other users than the one who mounts
    #[arg(long)]
    allow_other: bool,
    /// Refuse writing
    #[arg(long)]
    read_only: bool,
    /// Let `lighthouse-fs drill` inject faults, for rehearsals
    #[arg(long)]
    drill: bool,
    /// Reader threads of backend fuse2 [default: 16]
    #[arg(long, value_name = "N", value_parser = flag("mount.io.threads"))]
    threads: Option<String>,
    /// Where the API answers over TCP, address with port; "" turns it off [default: 127.0.0.1:8765 with --config, else off]
    #[arg(long, value_name = "ADDRESS", value_parser = flag("api.listen"))]
    listen: Option<String>,
    /// Where it is said whether the candidates answer in their shadow mounts [default: 127.0.0.1:8766 with --config, else off]
    #[arg(long, value_name = "ADDRESS", value_parser = flag("api.shadow_listen"))]
    shadow_listen: Option<String>,
    /// Where metrics and health are read [default: 127.0.0.1:9765 with --config, else off]
    #[arg(long, value_name = "ADDRESS", value_parser = flag("api.metrics_listen"))]
    metrics_listen: Option<String>,
    /// File of the token without which nothing is changed over TCP
    #[arg(long, value_name = "FILE", value_parser = place)]
    token_file: Option<String>,
}

impl Args {
    /// With the environment of this process.
    pub fn sources(&self, global: &Global) -> Sources {
        let yes = |given: bool| given.then(|| "true".to_owned());
        let values = [
            ("daemon.socket", global.socket.as_ref().map(|path| path.to_string_lossy().into_owned())),
            ("daemon.log_level", global.log.level.clone()),
            ("daemon.log_format", global.log.format.clone()),
            ("mount.source", self.source.clone()),
            ("mount.mountpoint", self.mountpoint.clone()),
            ("mount.name", self.name.clone()),
            ("mount.backend", self.backend.clone()),
            ("mount.helper", self.helper.clone()),
            ("mount.allow_other", yes(self.allow_other)),
            ("mount.read_only", yes(self.read_only)),
            ("mount.drill", yes(self.drill)),
            ("mount.io.threads", self.threads.clone()),
            ("api.listen", self.listen.clone()),
            ("api.shadow_listen", self.shadow_listen.clone()),
            ("api.metrics_listen", self.metrics_listen.clone()),
            ("api.token_file", self.token_file.clone()),
        ];
        Sources {
            file: self.config.clone(),
            // The rest, secrets among it perhaps, is not kept.
            environment: std::env::vars_os().filter(|(name, _)| name.as_bytes().starts_with(b"LIGHTHOUSE_")).collect(),
            flags: Flags {
                values: values.into_iter().filter_map(|(key, value)| Some((key, value?))).collect(),
                mounted_at: self.mounted_at.clone(),
            },
            socket: socket::default_path(),
        }
    }
}

fn place(path: &str) -> io::Result<String> {
    absolute(path).map(|path| path.to_string_lossy().into_owned())
}
