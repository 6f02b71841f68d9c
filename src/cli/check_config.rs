//! `check-config`: whether a configuration file is good, without starting anything.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use super::{exit, fail, fail_loading, printable, say};
use crate::api::socket::{self, ListenError};
use crate::config::{self, Loaded, Origin, SHADOW, Settings, Shown, Sources};
use crate::daemon::{self, Own, Refusal};

/// For a look at the links in all paths: one may lead through a file system that hangs.
const LOOK: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "Examples:
  lighthouse-fs check-config /etc/lighthouse-fs.toml
  lighthouse-fs config example > lighthouse-fs.toml && lighthouse-fs check-config lighthouse-fs.toml

The environment is not looked at, and of what the file names only the symbolic links, where they are: whether two places
are one in the end; and whether there is the group, of which the lack is told and no mistake. Mistakes are told one a line, as
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
    let loaded = match config::load(&Sources::file(&args.file, socket::default_path())) {
        Ok(loaded) => loaded,
        Err(errors) => return fail_loading(&errors),
    };
    let Settings { daemon, .. } = &loaded.settings;
    if let Err(why) = socket::check_length(&daemon.socket) {
        complain(&origin_of(&loaded, None, "daemon.socket"), "daemon.socket", &why);
        return ExitCode::from(exit::CONFIGURATION);
    }
    if let Some(Err(why @ ListenError::NoGroup(_))) = daemon.socket_group.as_deref().map(socket::find_group) {
        // No mistake of the file: it may be checked on another machine than the one that it is for.
        let why = format!("warning: on this machine {why}");
        complain(&origin_of(&loaded, None, "daemon.socket_group"), "daemon.socket_group", &why);
    }
    match misplaced(&loaded.settings, &args.file) {
        Ok(wrong) if wrong.is_empty() => {
            let mounts = match loaded.settings.mounts.len() {
                1 => "1 mount".to_owned(),
                number => format!("{number} mounts"),
            };
            say(format_args!("{} is good: {mounts}", printable(args.file.display())))
        }
        Ok(wrong) => {
            for (mount, why) in wrong {
                let (mount, key) = match mount.strip_suffix(SHADOW) {
                    Some(mount) => (mount, "mount.shadow_mountpoint"),
                    None => (mount.as_str(), "mount.mountpoint"),
                };
                complain(&origin_of(&loaded, Some(mount), key), key, &why);
            }
            ExitCode::from(exit::CONFIGURATION)
        }
        Err(why) => fail(exit::FAILED, why),
    }
}

/// Says what is wrong with a value.
fn complain(origin: &Origin, key: &str, why: &str) {
    let line = match origin {
        Origin::Default => format!("error: {key}: {why}"),
        place => format!("{place}: {key}: {why}"),
    };
    // With standard error gone there is nobody left to tell; the code still says it.
    let _ = writeln!(io::stderr(), "{}", printable(line));
}

/// Mounts that lie where they must not once symbolic links are followed, and why. FUSE mounts, which may be dead, are not
/// asked.
fn misplaced(settings: &Settings, file: &Path) -> Result<Vec<(String, String)>, String> {
    let file = std::path::absolute(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let own = [Own::socket(&settings.daemon.socket), Own::state(&settings.daemon.state_dir), Own::configuration(file)];
    let mounts = settings.mounts.clone();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || drop(tell.send(daemon::check_all(&mounts, &own))));
    let looked = told.recv_timeout(LOOK);
    let looked =
        looked.map_err(|_| format!("its paths gave no answer within {LOOK:?}: see which file system hangs"))?;
    let why = |(mount, refusal): (String, Refusal)| match refusal {
        Refusal::Configuration(why) => Ok((mount, why)),
        Refusal::World(why) => Err(why),
    };
    looked.err().unwrap_or_default().into_iter().map(why).collect()
}

/// Where a value was said.
fn origin_of(loaded: &Loaded, mount: Option<&str>, key: &str) -> Origin {
    let is_meant = |shown: &&Shown| shown.mount.as_deref() == mount && shown.key == key;
    loaded.values.iter().find(is_meant).map_or(Origin::Default, |shown| shown.origin.clone())
}
