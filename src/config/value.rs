//! What a key can hold: how it is read from text, what is refused, and how it is shown.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use serde_json::Value;
use tracing_subscriber::EnvFilter;

use super::problem::{Wrong, quoted};
use super::{Backend, BackendChoice, Helper, LogFormat, Number, Step, check_mount_name, steps};

const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// Where a `V` stands in a `T`.
pub(super) type At<T, V> = fn(&mut T) -> &mut V;

/// What a key holds, what it may be, and where it stands in a `T`.
pub(super) enum Kind<T> {
    /// A path; relative ones count from a folder that the reader of the text knows.
    Path(At<T, PathBuf>),
    /// A path, or none.
    OptionalPath(At<T, Option<PathBuf>>),
    /// A path; empty for none.
    Place(At<T, Option<PathBuf>>),
    /// Address and port to listen on; empty for none. A port by itself leaves the address as it is.
    Address(At<T, Option<SocketAddr>>),
    /// Names of hosts.
    Hosts(At<T, Vec<String>>),
    /// Name of a mount.
    Name(At<T, String>),
    /// Name of a group.
    Group(At<T, Option<String>>),
    /// A log level or filter.
    Filter(At<T, String>),
    /// How the log is written.
    LogFormat(At<T, LogFormat>),
    /// A backend.
    Backend(At<T, BackendChoice>),
    /// Who mounts.
    Helper(At<T, Helper>),
    /// Yes or no.
    Flag(At<T, bool>),
    /// Bytes.
    Size(At<T, u32>, RangeInclusive<u32>),
    /// Bytes that fill whole pages of memory.
    Pages(At<T, u32>, RangeInclusive<u32>),
    /// A number.
    Count(At<T, usize>, RangeInclusive<usize>),
    /// A time.
    Duration(At<T, Duration>, RangeInclusive<Duration>),
    /// A backend that is tried.
    Candidate(At<T, Option<Backend>>),
    /// Steps of a rollout. Only the file has room for them.
    Steps(At<T, Option<Vec<Step>>>),
    /// A share, or none.
    Percent(At<T, Option<u8>>),
    /// What tells a machine from others.
    MachineId(At<T, Option<String>>),
    /// A number that need not be whole.
    Number(At<T, Number>, RangeInclusive<f64>),
    /// Any number, or none.
    OptionalNumber(At<T, Option<Number>>),
    /// Where a server answers over HTTP, or none.
    Url(At<T, Option<String>>),
    /// A line of text, or none.
    Text(At<T, Option<String>>),
}

/// What TOML calls it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Toml {
    String,
    Boolean,
    Integer,
    /// A whole number will do too.
    Float,
    /// Of strings, which have commas in between as text; or of tables.
    Array,
}

impl<T> Kind<T> {
    /// How it is written in the file.
    pub fn toml(&self) -> Toml {
        match self {
            Self::Flag(_) => Toml::Boolean,
            Self::Count(..) | Self::Percent(_) => Toml::Integer,
            Self::Steps(_) | Self::Hosts(_) => Toml::Array,
            Self::Number(..) | Self::OptionalNumber(_) => Toml::Float,
            _ => Toml::String,
        }
    }

    /// What may stand there, for reference and example.
    pub fn expected(&self) -> String {
        match self {
            Self::Path(_) | Self::OptionalPath(_) => "a path".into(),
            Self::Place(_) => "a path, or \"\"".into(),
            Self::Address(_) => {
                "an address with a port, such as \"127.0.0.1:8765\" or \"[::1]:8765\"; a port; or \"\"".into()
            }
            Self::Hosts(_) => "names of hosts, such as [\"files.example\"]".into(),
            Self::Name(_) => "letters, digits, `-`, `_`, `.`, up to 64; neither `-` nor `.` first".into(),
            Self::Group(_) => "name of a group".into(),
            Self::Filter(_) => {
                "error, warn, info, debug, trace, off, or a filter such as `info,lighthouse_fs::daemon=debug`".into()
            }
            Self::LogFormat(_) => "text or json".into(),
            Self::Backend(_) => "auto, fuse2 or fuse3".into(),
            Self::Helper(_) => "auto, fusermount, fusermount3 or direct".into(),
            Self::Flag(_) => "true or false".into(),
            Self::Size(_, range) => format!("{} to {}", size(*range.start()), size(*range.end())),
            Self::Pages(_, range) => format!("{} to {}, whole pages", size(*range.start()), size(*range.end())),
            Self::Count(_, range) => format!("{} to {}", range.start(), range.end()),
            Self::Duration(_, range) => format!("{} to {}", duration(*range.start()), duration(*range.end())),
            Self::Candidate(_) => "fuse2 or fuse3".into(),
            Self::Steps(_) => steps::EXPECTED.into(),
            Self::Percent(_) => "0 to 100".into(),
            Self::MachineId(_) => "up to 256 characters of text".into(),
            Self::Number(_, range) => format!("{} to {}", range.start(), range.end()),
            Self::OptionalNumber(_) => "a number, such as 0.01".into(),
            Self::Url(_) => "an address such as \"http://prometheus:9090\"".into(),
            Self::Text(_) => "text, up to 4096 bytes".into(),
        }
    }

    /// Reads the value and puts it in its place. Relative paths count from `folder`.
    pub fn set(&self, target: &mut T, text: &str, folder: &Path) -> Result<(), Wrong> {
        match self {
            Self::Path(at) => *at(target) = path(text, folder)?,
            Self::OptionalPath(at) => *at(target) = Some(path(text, folder)?),
            Self::Place(at) => *at(target) = if text.is_empty() { None } else { Some(path(text, folder)?) },
            Self::Address(at) => *at(target) = self.address(text, *at(target))?,
            Self::Hosts(at) => *at(target) = self.hosts(text)?,
            Self::Name(at) => {
                check_mount_name(text).map_err(|right| Wrong::new(format!("{} is no name", quoted(text)), right))?;
                text.clone_into(at(target));
            }
            Self::Group(at) => {
                let plain =
                    !text.is_empty() && !text.contains(|c: char| c.is_control() || c.is_whitespace() || c == ':');
                if !plain {
                    let wrong = format!("{} is no name of a group", quoted(text));
                    return Err(Wrong::new(wrong, "use one that `getent group` shows, or leave the key out"));
                }
                *at(target) = Some(text.to_owned());
            }
            Self::Filter(at) => {
                // A bare word that is no level would be the name of a target, and a slip of the pen silence the log.
                let is_meant = |part: &str| part.contains(['=', '[']) || LEVELS.contains(&part);
                if !text.split(',').all(is_meant) || EnvFilter::builder().parse(text).is_err() {
                    return Err(self.refuse(text, "is no log level"));
                }
                text.clone_into(at(target));
            }
            Self::LogFormat(at) => *at(target) = named(text)?,
            Self::Backend(at) => *at(target) = built_in(named(text)?)?,
            Self::Helper(at) => *at(target) = named(text)?,
            Self::Flag(at) => {
                *at(target) = flag(text).ok_or_else(|| self.refuse(text, "is neither true nor false"))?;
            }
            Self::Size(at, range) => *at(target) = self.bytes(text, range)?,
            Self::Pages(at, range) => {
                let bytes = self.bytes(text, range)?;
                let page = rustix::param::page_size();
                if !(bytes as usize).is_multiple_of(page) {
                    let wrong = format!("{} does not fill whole pages of memory", quoted(text));
                    return Err(Wrong::new(wrong, format!("use a multiple of {page} bytes, such as \"1MiB\"")));
                }
                *at(target) = bytes;
            }
            Self::Count(at, range) => {
                let count = text.parse().map_err(|_| self.refuse(text, "is no number"))?;
                *at(target) = self.within(count, range, text)?;
            }
            Self::Duration(at, range) => {
                let given = humantime::parse_duration(text).map_err(|_| {
                    Wrong::new(
                        format!("{} is no time", quoted(text)),
                        "use a number with a unit, such as \"2s\" or \"500ms\"",
                    )
                })?;
                *at(target) = self.within(given, range, text)?;
            }
            Self::Candidate(at) => {
                let backend = named(text)?;
                built_in(BackendChoice::Only(backend))?;
                *at(target) = Some(backend);
            }
            Self::Steps(_) => return Err(Wrong::new("steps do not fit here", "write them in the configuration file")),
            Self::Percent(at) => {
                let percent = text.parse().map_err(|_| self.refuse(text, "is out of range"))?;
                *at(target) = Some(self.within(percent, &(0..=100), text)?);
            }
            Self::MachineId(at) => {
                let text = text.trim();
                if text.is_empty() || text.len() > 256 || text.contains(char::is_control) {
                    return Err(self.refuse(text, "tells no machine from others"));
                }
                *at(target) = Some(text.to_owned());
            }
            Self::Number(at, range) => {
                let number = self.number(text)?;
                if !range.contains(&number.get()) {
                    return Err(self.refuse(text, "is out of range"));
                }
                *at(target) = number;
            }
            Self::OptionalNumber(at) => *at(target) = Some(self.number(text)?),
            Self::Url(at) => {
                let rest = text.strip_prefix("http://").unwrap_or_default();
                let is_plain = |c: char| c.is_ascii_graphic() && !matches!(c, '@' | '?' | '#');
                if rest.is_empty() || rest.starts_with('/') || text.len() > 4096 || !rest.chars().all(is_plain) {
                    return Err(self.refuse(text, "is no address of an HTTP server"));
                }
                *at(target) = Some(text.trim_end_matches('/').to_owned());
            }
            Self::Text(at) => {
                if text.trim().is_empty() || text.len() > 4096 || text.contains('\0') {
                    return Err(self.refuse(text, "does not fit here"));
                }
                *at(target) = Some(text.to_owned());
            }
        }
        Ok(())
    }

    fn number(&self, text: &str) -> Result<Number, Wrong> {
        text.parse().ok().and_then(Number::new).ok_or_else(|| self.refuse(text, "is no number"))
    }

    fn address(&self, text: &str, now: Option<SocketAddr>) -> Result<Option<SocketAddr>, Wrong> {
        if text.is_empty() {
            return Ok(None);
        }
        let ip = now.map_or(Ipv4Addr::LOCALHOST.into(), |now| now.ip());
        let address = text.parse::<u16>().map(|port| SocketAddr::new(ip, port)).ok().or_else(|| text.parse().ok());
        address.map(Some).ok_or_else(|| self.refuse(text, "is no address with a port"))
    }

    fn hosts(&self, text: &str) -> Result<Vec<String>, Wrong> {
        let is_plain = |name: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            (1..=253).contains(&name.len()) && name.chars().all(plain)
        };
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        names
            .map(|name| {
                if is_plain(name) {
                    Ok(name.to_ascii_lowercase())
                } else {
                    Err(self.refuse(name, "is no name of a host"))
                }
            })
            .collect()
    }

    fn bytes(&self, text: &str, range: &RangeInclusive<u32>) -> Result<u32, Wrong> {
        let size = ByteSize::from_str(text).map_err(|_| {
            Wrong::new(
                format!("{} is no size", quoted(text)),
                "use a number with a unit, such as \"128KiB\" or \"1MiB\"",
            )
        })?;
        let size = u32::try_from(size.as_u64()).map_err(|_| self.refuse(text, "is out of range"))?;
        self.within(size, range, text)
    }

    fn within<V: PartialOrd>(&self, value: V, range: &RangeInclusive<V>, text: &str) -> Result<V, Wrong> {
        if range.contains(&value) { Ok(value) } else { Err(self.refuse(text, "is out of range")) }
    }

    fn refuse(&self, text: &str, what: &str) -> Wrong {
        Wrong::new(format!("{} {what}", quoted(text)), format!("use {}", self.expected()))
    }
}

impl<T: Clone> Kind<T> {
    /// The value; null if there is none.
    pub fn show(&self, target: &T) -> Value {
        // The places are written for setting; looking needs a copy.
        let target = &mut target.clone();
        match self {
            Self::Path(at) => at(target).to_string_lossy().into(),
            Self::OptionalPath(at) => at(target).as_ref().map(|path| path.to_string_lossy().into_owned()).into(),
            Self::Place(at) => at(target).as_ref().map_or_else(Default::default, |path| path.to_string_lossy()).into(),
            Self::Address(at) => at(target).map_or_else(String::new, |address| address.to_string()).into(),
            Self::Hosts(at) => at(target).clone().into(),
            Self::Name(at) | Self::Filter(at) => at(target).clone().into(),
            Self::Group(at) => at(target).clone().into(),
            Self::LogFormat(at) => at(target).to_string().into(),
            Self::Backend(at) => at(target).to_string().into(),
            Self::Helper(at) => at(target).to_string().into(),
            Self::Flag(at) => (*at(target)).into(),
            Self::Size(at, _) | Self::Pages(at, _) => size(*at(target)).into(),
            Self::Count(at, _) => (*at(target)).into(),
            Self::Duration(at, _) => duration(*at(target)).into(),
            Self::Candidate(at) => at(target).map(Backend::name).into(),
            Self::Steps(at) => at(target).as_deref().map(steps::show).into(),
            Self::Percent(at) => (*at(target)).into(),
            Self::MachineId(at) | Self::Url(at) | Self::Text(at) => at(target).clone().into(),
            Self::Number(at, _) => at(target).get().into(),
            Self::OptionalNumber(at) => at(target).map(Number::get).into(),
        }
    }
}

fn named<N: FromStr<Err = super::UnknownName>>(text: &str) -> Result<N, Wrong> {
    text.parse().map_err(|error: super::UnknownName| {
        Wrong::new(format!("unknown {} {}", error.what, quoted(&error.given)), format!("use {}", error.expected))
    })
}

fn built_in(choice: BackendChoice) -> Result<BackendChoice, Wrong> {
    match choice {
        BackendChoice::Only(backend) if !backend.is_built_in() => Err(Wrong::new(
            format!("this build has no {backend}"),
            format!("use {}, or build with feature `{backend}`", Backend::other(backend)),
        )),
        choice => Ok(choice),
    }
}

/// As people write it in an environment; in a file only the first two can come here.
pub(super) fn flag(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// By the text alone: what it names may be a dead mount, and is not touched.
fn path(text: &str, folder: &Path) -> Result<PathBuf, Wrong> {
    let wrong = |what: &str| Err(Wrong::new(format!("{} {what}", quoted(text)), "write the whole path, from / on"));
    match text {
        "" => wrong("is empty"),
        _ if text.contains('\0') => wrong("has a zero byte, which no path has"),
        // A shell would have made it something else; here it would be a folder of that name.
        _ if text == "~" || text.starts_with("~/") => wrong("begins with ~, which only a shell understands"),
        _ => Ok(std::path::absolute(folder.join(OsStr::new(text))).unwrap_or_else(|_| folder.join(text))),
    }
}

fn size(bytes: u32) -> String {
    match bytes {
        0 => "0B".into(),
        _ if bytes.is_multiple_of(1 << 20) => format!("{}MiB", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{}KiB", bytes >> 10),
        _ => format!("{bytes}B"),
    }
}

fn duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mount;
    use crate::config::keys::{Found, find};
    use rstest::rstest;

    fn set(key: &str, text: &str) -> Result<Value, String> {
        let Some(Found::Mount(key)) = find(&format!("mount.{key}")) else { panic!("{key} is no key of a mount") };
        let mut mount = Mount::new("default", "/srv", "/mnt");
        key.kind.set(&mut mount, text, Path::new("/etc/lighthouse")).map_err(|wrong| wrong.to_string())?;
        Ok(key.kind.show(&mount))
    }

    #[rstest]
    #[case("source", "data", "/etc/lighthouse/data")]
    #[case("source", "/srv/a", "/srv/a")]
    #[cfg_attr(feature = "fuse3", case("backend", "pyfuse3", "fuse3"))]
    #[case("io.max_write", "65536", "64KiB")]
    #[case("io.max_write", "1 MiB", "1MiB")]
    #[case("io.max_readahead", "0", "0B")]
    #[case("io.max_readahead", "1000", "1000B")]
    #[case("cache.negative", "1m 30s", "1m 30s")]
    #[case("cache.negative", "30days", "30days")]
    #[case("guard.prometheus.url", "http://prometheus:9090/", "http://prometheus:9090")]
    fn what_is_right_is_kept(#[case] key: &str, #[case] text: &str, #[case] shown: &str) {
        assert_eq!(set(key, text), Ok(shown.into()));
    }

    #[rstest]
    #[case("source", "", "is empty")]
    #[case("source", "~/work", "only a shell understands")]
    #[case("source", "/a\0b", "zero byte")]
    #[case("name", "a/b", "\"a/b\" is no name; use up to 64 letters")]
    #[cfg_attr(not(feature = "fuse3"), case("backend", "fuse3", "this build has no fuse3; use fuse2, or build with"))]
    #[cfg_attr(not(feature = "fuse2"), case("backend", "fuse2", "this build has no fuse2; use fuse3, or build with"))]
    #[case("backend", "fuse4", "unknown backend \"fuse4\"; use auto, fuse2 or fuse3")]
    #[case("helper", "mounter", "use auto, fusermount, fusermount3 or direct")]
    #[case("allow_other", "maybe", "\"maybe\" is neither true nor false; use true or false")]
    #[case("io.threads", "0", "\"0\" is out of range; use 1 to 64")]
    #[case("io.threads", "65", "out of range")]
    #[case("io.threads", "-1", "is no number")]
    #[case("io.max_write", "2MiB", "\"2MiB\" is out of range; use 4KiB to 1MiB, whole pages")]
    #[case("io.max_write", "5000", "does not fill whole pages")]
    #[case("io.max_write", "99999999999TiB", "is out of range")]
    #[case("io.max_write", "1 banana", "is no size")]
    #[case("cache.entries", "31days", "use 0s to 30days")]
    #[case("cache.entries", "5", "is no time")]
    #[case("deadlines.drain", "0s", "use 10ms to 1h")]
    #[case("guard.error_rate", "0", "\"0\" is out of range; use 0.000001 to 1")]
    #[case("guard.error_rate", "nan", "is no number")]
    #[case("guard.p99", "6s", "use 10us to 5s")]
    #[case("guard.prometheus.url", "https://prometheus", "is no address of an HTTP server; use an address such as")]
    #[case("guard.prometheus.above", "inf", "is no number")]
    #[case("rollout.shadow_sample", "1.5", "\"1.5\" is out of range; use 0 to 1")]
    #[case("rollout.shadow_sample", "-0.1", "out of range")]
    #[case("rollout.shadow_sample", "NaN", "is no number")]
    fn what_is_wrong_is_told(#[case] key: &str, #[case] text: &str, #[case] why: &str) {
        let wrong = set(key, text).unwrap_err();
        assert!(wrong.contains(why), "{wrong}");
    }
}
