//! The options after `-o`, as mount(8) and fstab(5) write them.

use std::path::{Path, PathBuf};

use super::super::{absolute, flag};
use crate::config::{self, Mount};

/// Options that mean something to mount(8), systemd or other file systems, and nothing here. (`default_permissions` is
/// always set.)
const MEANINGLESS: [&str; 30] = [
    "_netdev",
    "atime",
    "auto",
    "default_permissions",
    "defaults",
    "diratime",
    "group",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "noauto",
    "nodiratime",
    "nofail",
    "nogroup",
    "noiversion",
    "nolazytime",
    "nomand",
    "noowner",
    "norelatime",
    "nostrictatime",
    "nouser",
    "nousers",
    "owner",
    "relatime",
    "silent",
    "strictatime",
    "user",
    "users",
];

/// What mountinfo shows of a FUSE mount, and mount(8) passes on in a remount; the kernel heeds none of it then.
const OF_MOUNTINFO: [&str; 5] = ["user_id", "group_id", "max_read", "blksize", "seclabel"];

/// What happens to an option that nobody knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unknown {
    Refused,
    Ignored,
}

/// What the options say.
#[derive(Debug)]
pub(super) struct Wanted {
    pub mount: Mount,
    /// Where the daemon is to listen instead of the usual place.
    pub socket: Option<PathBuf>,
    pub log_level: String,
    /// Whether it is mounted already, and is to be changed.
    pub is_remount: bool,
}

/// Reads the arguments of every `-o`; a later option overrides an earlier one.
///
/// # Errors
/// Which option is wrong, and what would be right.
pub(super) fn parse(
    source: &Path,
    mountpoint: &Path,
    arguments: &[String],
    unknown: Unknown,
) -> Result<Wanted, String> {
    let options: Vec<_> =
        arguments.iter().flat_map(|argument| split(argument)).filter(|option| !option.is_empty()).collect();
    let is_remount = options.iter().any(|option| option == "remount");
    let of_mountinfo =
        |option: &str| is_remount && OF_MOUNTINFO.contains(&option.split_once('=').map_or(option, |(name, _)| name));
    let mut mount = Mount::new(name_of(mountpoint), source, mountpoint);
    if options.iter().any(|option| of_mountinfo(option)) {
        // These options are those in force, not those of fstab: what is not refused there has its effect.
        (mount.suid, mount.dev) = (true, true);
    }
    let mut wanted = Wanted { mount, socket: None, log_level: "info".into(), is_remount };
    for option in options {
        let taken = wanted.take(&option).map_err(|why| format!("option {option:?}: {why}"))?;
        if !taken && !of_mountinfo(&option) && unknown == Unknown::Refused {
            return Err(format!("unknown option {option:?}: mount.lighthouse-fs(8) lists those that are known"));
        }
    }
    Ok(wanted)
}

impl Wanted {
    /// Takes one option over; `false` if it is unknown.
    fn take(&mut self, option: &str) -> Result<bool, String> {
        let mount = &mut self.mount;
        let (name, value) = option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
        match (name, value) {
            ("rw", None) => mount.read_only = false,
            ("ro", None) => mount.read_only = true,
            ("suid", None) => mount.suid = true,
            ("nosuid", None) => mount.suid = false,
            ("dev", None) => mount.dev = true,
            ("nodev", None) => mount.dev = false,
            ("exec", None) => mount.exec = true,
            ("noexec", None) => mount.exec = false,
            ("sync", None) => mount.sync = true,
            ("async", None) => mount.sync = false,
            // The kernel heeds it for no FUSE file system.
            ("dirsync", None) => {
                return Err(
                    "FUSE has none: mount what the source lies on with it, or take `sync` for what is written".into()
                );
            }
            ("allow_other", None) => mount.allow_other = true,
            ("fallback", None) => mount.fallback = true,
            ("nofallback", None) => mount.fallback = false,
            ("backend", Some(value)) => mount.backend = value.parse().map_err(say)?,
            ("helper", Some(value)) => mount.helper = value.parse().map_err(say)?,
            ("name", Some(value)) => {
                config::check_mount_name(value)?;
                mount.name = value.into();
            }
            ("socket", Some(value)) => self.socket = Some(absolute(value).map_err(say)?),
            ("log_level", Some(value)) => {
                self.log_level = flag("daemon.log_level")(value).map_err(|wrong| wrong.to_string())?;
            }
            // It has been looked for already.
            ("remount", None) => {}
            (name, _) if name.starts_with("x-") || name.starts_with("X-") => {}
            ("comment" | "user", Some(_)) => {}
            (name, None) if MEANINGLESS.contains(&name) => {}
            ("backend" | "helper" | "name" | "socket" | "log_level", None) => {
                return Err(format!("wants a value: {name}=…"));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn say(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// The last part of the mount point, if it can be a mount's name.
fn name_of(mountpoint: &Path) -> &str {
    let last = mountpoint.file_name().and_then(|name| name.to_str());
    last.filter(|name| config::check_mount_name(name).is_ok()).unwrap_or("default")
}

/// Splits at commas, but for those in quotes, as mount(8) does; the quotes are not part of the value.
fn split(options: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut is_quoted = false;
    for character in options.chars() {
        match (character, parts.last_mut()) {
            ('"', _) => is_quoted = !is_quoted,
            (',', _) if !is_quoted => parts.push(String::new()),
            (other, Some(part)) => part.push(other),
            (_, None) => {}
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Backend, BackendChoice, Helper};
    use rstest::rstest;

    fn parse_strictly(options: &[&str]) -> Result<Wanted, String> {
        let options: Vec<_> = options.iter().map(ToString::to_string).collect();
        parse(Path::new("/srv"), Path::new("/mnt/projects"), &options, Unknown::Refused)
    }

    #[test]
    fn everything_has_its_default() {
        let wanted = parse_strictly(&["defaults,,rw", ""]).unwrap();
        assert_eq!(wanted.mount, Mount::new("projects", "/srv", "/mnt/projects"));
        assert_eq!((wanted.socket, wanted.log_level.as_str(), wanted.is_remount), (None, "info", false));
    }

    #[test]
    fn everything_can_be_said() {
        let wanted = parse_strictly(&[
            "ro,allow_other,backend=fuse2,helper=direct,name=other,nofallback",
            r#"suid,dev,noexec,sync,socket="/run/a,b.sock",log_level="debug,fuse3=trace""#,
        ])
        .unwrap();
        let expected = Mount {
            read_only: true,
            allow_other: true,
            backend: BackendChoice::Only(Backend::Fuse2),
            helper: Helper::Direct,
            fallback: false,
            suid: true,
            dev: true,
            exec: false,
            sync: true,
            ..Mount::new("other", "/srv", "/mnt/projects")
        };
        assert_eq!(wanted.mount, expected);
        assert_eq!(wanted.socket.unwrap(), Path::new("/run/a,b.sock"));
        assert_eq!(wanted.log_level, "debug,fuse3=trace");
    }

    #[rstest]
    #[case("nofail,_netdev,noauto,users,user=alice,owner,noatime,relatime,async")]
    #[case("x-systemd.automount,x-systemd.idle-timeout=60,X-mount.mkdir,comment=ours")]
    fn what_is_meant_for_others_is_no_matter(#[case] options: &str) {
        assert_eq!(parse_strictly(&[options]).unwrap().mount, Mount::new("projects", "/srv", "/mnt/projects"));
    }

    /// As mount(8) of util-linux 2.38 passes them on, which leaves out `suid`, `dev` and `exec`.
    #[test]
    fn a_remount_has_the_options_in_force_or_those_of_fstab() {
        let in_force = "ro,noexec,relatime,remount,user_id=0,group_id=0,default_permissions,allow_other,max_read=4096";
        let wanted = parse_strictly(&[in_force]).unwrap();
        let with_suid_and_dev = Mount { suid: true, dev: true, ..Mount::new("projects", "/srv", "/mnt/projects") };
        let expected = Mount { read_only: true, exec: false, allow_other: true, ..with_suid_and_dev };
        assert_eq!((wanted.mount, wanted.is_remount), (expected, true));
        let wanted = parse_strictly(&["rw,remount,socket=/run/a.sock"]).unwrap();
        assert_eq!((wanted.mount, wanted.is_remount), (Mount::new("projects", "/srv", "/mnt/projects"), true));
    }

    #[rstest]
    #[case("ro,color=blue", "unknown option \"color=blue\"")]
    #[case("allow_other=yes", "unknown option")]
    #[case("backend=fuse4", "use auto, fuse2 or fuse3")]
    #[case("backend", "wants a value: backend=…")]
    #[case("helper=sudo", "use auto, fusermount")]
    #[case("name=a/b", "letters, digits")]
    #[case("log_level=loud", "use error, warn")]
    #[case("socket=", "empty")]
    #[case("user_id=0", "unknown option")]
    #[case("dirsync", "FUSE has none")]
    #[case("remount,color=blue", "unknown option")]
    fn wrong_ones_are_named(#[case] options: &str, #[case] why: &str) {
        let error = parse_strictly(&[options]).unwrap_err();
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn the_last_word_counts_and_sloppiness_is_allowed() {
        assert!(parse_strictly(&["rw", "ro"]).unwrap().mount.read_only);
        assert!(!parse_strictly(&["ro", "rw"]).unwrap().mount.read_only);
        let unknown = ["color=blue".to_owned(), "backend=fuse4".to_owned()];
        let parse = |options| parse(Path::new("/srv"), Path::new("/"), options, Unknown::Ignored);
        assert_eq!(parse(&unknown[..1]).unwrap().mount.name, "default");
        assert!(parse(&unknown).is_err(), "a known option with a wrong value is not unknown");
    }
}
