//! What a mount is to be: plain data that every module may import, and [`load()`], which makes it from a file, the
//! environment and flags. Nothing that the data name is touched here: it may be a dead mount.

mod changes;
mod check;
mod environment;
mod file;
mod guard;
mod keys;
mod load;
mod problem;
mod rollout;
mod steps;
mod text;
mod value;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use changes::{Change, Changes, changes};
pub use guard::{Guard, Number, Prometheus, Question};
pub use keys::Effect;
pub use load::{Flags, Loaded, Shown, Sources, check_flag, load};
pub use problem::{Errors, Origin, Problem, Wrong};
pub use rollout::{Rollout, Step, Trial};
pub use text::{example, reference};

/// One FUSE stack.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Crate fuser (synchronous), with libfuse 2's `fusermount`.
    Fuse2,
    /// Crate fuse3 (asynchronous), with libfuse 3's `fusermount3`.
    Fuse3,
}

impl Backend {
    /// Both, in the order of their numbers in the ledger.
    pub const ALL: [Self; 2] = [Self::Fuse2, Self::Fuse3];

    /// The name in messages, metrics and options.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fuse2 => "fuse2",
            Self::Fuse3 => "fuse3",
        }
    }

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Fuse2 => Self::Fuse3,
            Self::Fuse3 => Self::Fuse2,
        }
    }

    /// Index into tables that have a place for each backend.
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }

    /// Whether this build of the program has it (cargo features `fuse2` and `fuse3`).
    #[must_use]
    pub fn is_built_in(self) -> bool {
        match self {
            Self::Fuse2 => cfg!(feature = "fuse2"),
            Self::Fuse3 => cfg!(feature = "fuse3"),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is not one of those it may be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown {what} \"{given}\": use {expected}")]
pub struct UnknownName {
    pub(crate) what: &'static str,
    pub(crate) given: String,
    pub(crate) expected: &'static str,
}

impl FromStr for Backend {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        match name {
            "fuse2" | "fusepy" => Ok(Self::Fuse2),
            "fuse3" | "pyfuse3" => Ok(Self::Fuse3),
            _ => Err(UnknownName { what: "backend", given: name.into(), expected: "fuse2 or fuse3" }),
        }
    }
}

/// Which backend a mount starts with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum BackendChoice {
    /// fuse3 if this build has it, else fuse2.
    #[default]
    Auto,
    /// This one.
    Only(Backend),
}

impl BackendChoice {
    /// The backend that is meant.
    #[must_use]
    pub fn resolve(self) -> Backend {
        match self {
            Self::Only(backend) => backend,
            Self::Auto if Backend::Fuse3.is_built_in() => Backend::Fuse3,
            Self::Auto => Backend::Fuse2,
        }
    }
}

impl fmt::Display for BackendChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad("auto"),
            Self::Only(backend) => backend.fmt(f),
        }
    }
}

impl FromStr for BackendChoice {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        if name == "auto" {
            return Ok(Self::Auto);
        }
        name.parse()
            .map(Self::Only)
            .map_err(|error: UnknownName| UnknownName { expected: "auto, fuse2 or fuse3", ..error })
    }
}

/// Who calls `mount(2)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Helper {
    /// `direct` with CAP_SYS_ADMIN, else the helper of the backend that starts.
    #[default]
    Auto,
    /// libfuse 2's set-uid `fusermount`.
    Fusermount,
    /// libfuse 3's set-uid `fusermount3`.
    Fusermount3,
    /// The server itself.
    Direct,
}

impl Helper {
    /// All that can be chosen.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Fusermount, Self::Fusermount3, Self::Direct];

    /// The name in options and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Fusermount => "fusermount",
            Self::Fusermount3 => "fusermount3",
            Self::Direct => "direct",
        }
    }
}

impl fmt::Display for Helper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Helper {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Self::ALL.into_iter().find(|helper| helper.name() == name).ok_or_else(|| UnknownName {
            what: "helper",
            given: name.into(),
            expected: "auto, fusermount, fusermount3 or direct",
        })
    }
}

/// Sizes and numbers of requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Io {
    /// Largest WRITE in bytes; at most 1 MiB, a multiple of the page size.
    pub max_write: u32,
    /// Largest read-ahead in bytes.
    pub max_readahead: u32,
    /// Reader threads of backend `fuse2`.
    pub threads: usize,
}

impl Default for Io {
    fn default() -> Self {
        Self { max_write: 1 << 20, max_readahead: 1 << 20, threads: 16 }
    }
}

/// How long the kernel may keep what it was told. The same for both backends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cache {
    /// Lifetime of attributes.
    pub attributes: Duration,
    /// Lifetime of names that exist.
    pub entries: Duration,
    /// Lifetime of names that do not exist; 0 turns it off.
    pub negative: Duration,
}

impl Default for Cache {
    fn default() -> Self {
        Self { attributes: Duration::from_secs(1), entries: Duration::from_secs(1), negative: Duration::ZERO }
    }
}

/// How long to wait for what.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Deadlines {
    /// For requests that a backend holds when it is parked; then they are answered EIO.
    pub drain: Duration,
    /// For each step of a switch that waits for a backend to react.
    pub switch: Duration,
    /// For a busy mount to become free; then it is unmounted lazily.
    pub unmount: Duration,
    /// For an answer to the prober, which asks through the mount; then the mount is unhealthy. 0 turns the prober off.
    pub probe: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            drain: Duration::from_secs(2),
            switch: Duration::from_secs(5),
            unmount: Duration::from_secs(10),
            probe: Duration::from_secs(5),
        }
    }
}

/// How the log is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people; for journald if standard error leads there.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// The name in options and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for LogFormat {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        [Self::Text, Self::Json].into_iter().find(|format| format.name() == name).ok_or_else(|| UnknownName {
            what: "log format",
            given: name.into(),
            expected: "text or json",
        })
    }
}

/// The daemon itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Daemon {
    /// Where it listens; absolute.
    pub socket: PathBuf,
    /// Where it keeps what must survive it: pins, and how far rollouts are; absolute.
    pub state_dir: PathBuf,
    /// What tells this machine from others of a fleet; without it /etc/machine-id does.
    pub machine_id: Option<String>,
    /// Name of the group that may control it besides root and its own user.
    pub socket_group: Option<String>,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter of crate tracing-subscriber.
    pub log_level: String,
    /// How the log is written.
    pub log_format: LogFormat,
}

/// Where the daemon answers over TCP, and to whom.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Api {
    /// The API; `None` turns it off, as with the others.
    pub listen: Option<SocketAddr>,
    /// What is said of the candidate.
    pub shadow_listen: Option<SocketAddr>,
    /// Metrics and health.
    pub metrics_listen: Option<SocketAddr>,
    /// The file of the token that changing requests carry.
    pub token_file: Option<PathBuf>,
    /// Names of this machine, besides its host name and `localhost`, that requests may be made to.
    pub hosts: Vec<String>,
}

impl Api {
    /// No listener at all.
    #[must_use]
    pub fn off() -> Self {
        Self { listen: None, shadow_listen: None, metrics_listen: None, token_file: None, hosts: Vec::new() }
    }
}

impl Default for Api {
    fn default() -> Self {
        let local = |port| Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
        Self { listen: local(8765), shadow_listen: local(8766), metrics_listen: local(9765), ..Self::off() }
    }
}

/// Whether only processes of this machine can reach it.
#[must_use]
pub fn is_loopback(address: IpAddr) -> bool {
    // ::ffff:127.0.0.1 is IPv4 all the same.
    address.to_canonical().is_loopback()
}

/// Everything that is configured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The daemon itself.
    pub daemon: Daemon,
    /// Where it answers over TCP.
    pub api: Api,
    /// What it serves; names and mount points are all different.
    pub mounts: Vec<Mount>,
}

/// Checks the name of a mount: it stands in addresses, metrics and file names.
///
/// # Errors
/// What would be right.
pub fn check_mount_name(name: &str) -> Result<(), &'static str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let good = !name.is_empty() && name.len() <= 64 && name.chars().all(plain) && !name.starts_with(['.', '-']);
    if good {
        return Ok(());
    }
    Err("use up to 64 letters, digits, `-`, `_` and `.`, beginning with none of `-` and `.`")
}

/// What the names of shadow mounts end with, and no other's.
pub const SHADOW: &str = "@shadow";

/// One configured pair of source directory and mount point.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mount {
    /// Name in commands, metrics and messages.
    pub name: String,
    /// Directory that is served; absolute.
    pub source: PathBuf,
    /// Where it appears; absolute. `/dev/fd/N` stands for a FUSE descriptor that is mounted and not negotiated.
    pub mountpoint: PathBuf,
    /// Where a descriptor that was handed in is mounted, if that is known.
    pub mounted_at: Option<PathBuf>,
    /// The stable backend.
    pub backend: BackendChoice,
    /// Who mounts.
    pub helper: Helper,
    /// Whether other users than the one who mounts are admitted.
    pub allow_other: bool,
    /// Whether writing is refused.
    pub read_only: bool,
    /// Whether the other backend may start instead of one that does not come up.
    pub fallback: bool,
    /// Whether set-uid and set-gid bits have their effect.
    pub suid: bool,
    /// Whether device nodes have their effect.
    pub dev: bool,
    /// Whether programs may be executed.
    pub exec: bool,
    /// Whether each write waits until it is on the disk; by mount(8) alone. As with `rollout`.
    #[serde(default)]
    pub sync: bool,
    /// Whether faults may be injected into its backends.
    pub drill: bool,
    /// Sizes and numbers of requests.
    pub io: Io,
    /// Lifetimes in the kernel's caches.
    pub cache: Cache,
    /// How long to wait for what.
    pub deadlines: Deadlines,
    /// Which other backend is tried, and how. Servers of an earlier version do not know of it.
    #[serde(default)]
    pub rollout: Rollout,
    /// By which figures the one that is tried is judged. As above.
    #[serde(default)]
    pub guard: Guard,
    /// Where the candidate alone serves the same, read-only; absolute.
    #[serde(default)]
    pub shadow_mountpoint: Option<PathBuf>,
}

impl Daemon {
    /// A daemon with defaults that listens there.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            state_dir: default_state_dir(),
            machine_id: None,
            socket_group: None,
            log_level: "info".into(),
            log_format: LogFormat::default(),
        }
    }
}

/// Where this user's daemon keeps its state unless told otherwise.
#[must_use]
pub fn default_state_dir() -> PathBuf {
    let uid = rustix::process::geteuid();
    let home = || nix::unistd::User::from_uid(uid.as_raw().into()).ok().flatten().map(|user| user.dir);
    state_dir(uid.is_root(), &|name| std::env::var_os(name), home)
}

/// As systemd.exec(5) and the XDG base directories say. The home of the user's entry counts where `HOME` is not set.
fn state_dir(
    is_root: bool,
    variable: &dyn Fn(&str) -> Option<OsString>,
    home: impl FnOnce() -> Option<PathBuf>,
) -> PathBuf {
    let folder = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    // Of several folders of a unit, with colons between them, the first.
    let of_unit = variable("STATE_DIRECTORY").and_then(|folders| {
        let first = folders.as_bytes().split(|byte| *byte == b':').next()?;
        Some(PathBuf::from(OsStr::from_bytes(first))).filter(|path| path.is_absolute())
    });
    if let Some(folder) = of_unit {
        return folder;
    }
    let of_user = || folder("XDG_STATE_HOME").or_else(|| Some(folder("HOME").or_else(home)?.join(".local/state")));
    let above = if is_root { None } else { of_user() };
    above.unwrap_or_else(|| "/var/lib".into()).join("lighthouse-fs")
}

impl Mount {
    /// A mount with defaults.
    #[must_use]
    pub fn new(name: impl Into<String>, source: impl Into<PathBuf>, mountpoint: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            source: source.into(),
            mountpoint: mountpoint.into(),
            mounted_at: None,
            backend: BackendChoice::default(),
            helper: Helper::default(),
            allow_other: false,
            read_only: false,
            fallback: true,
            suid: false,
            dev: false,
            exec: true,
            sync: false,
            drill: false,
            io: Io::default(),
            cache: Cache::default(),
            deadlines: Deadlines::default(),
            rollout: Rollout::default(),
            guard: Guard::default(),
            shadow_mountpoint: None,
        }
    }

    /// The stable backend. What is tried cannot be what is leant on: beside a candidate, `auto` is the other one.
    #[must_use]
    pub fn stable(&self) -> Backend {
        match (self.backend, self.rollout.candidate) {
            (BackendChoice::Auto, Some(candidate)) => candidate.other(),
            (choice, _) => choice.resolve(),
        }
    }

    /// Whether the stable backend is the one that works: with `auto`, but for what is only to be tried.
    #[must_use]
    pub fn is_stable_open(&self) -> bool {
        self.backend == BackendChoice::Auto && self.rollout.candidate.is_none()
    }

    /// Backends in the order in which they are tried to serve: what works here is tried, not guessed.
    #[must_use]
    pub fn backends_to_try(&self) -> Vec<Backend> {
        let first = self.stable();
        let other = (self.fallback || self.backend == BackendChoice::Auto).then_some(first.other());
        std::iter::once(first).chain(other).filter(|backend| backend.is_built_in()).collect()
    }

    /// The mount that shows what its candidate does, if there is to be one: of the same source, read-only, served by the
    /// candidate and by nobody in its stead.
    #[must_use]
    pub fn shadow(&self) -> Option<Self> {
        let (place, candidate) = self.shadow_mountpoint.clone().zip(self.rollout.candidate)?;
        Some(Self {
            // No mount can be called so.
            name: format!("{}{SHADOW}", self.name),
            mountpoint: place,
            mounted_at: None,
            backend: BackendChoice::Only(candidate),
            read_only: true,
            fallback: false,
            rollout: Rollout::default(),
            shadow_mountpoint: None,
            ..self.clone()
        })
    }

    /// Where the mount is in the tree, as far as that is known.
    #[must_use]
    pub fn place(&self) -> &Path {
        self.mounted_at.as_deref().unwrap_or(&self.mountpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("fuse2", Backend::Fuse2)]
    #[case("fusepy", Backend::Fuse2)]
    #[case("fuse3", Backend::Fuse3)]
    #[case("pyfuse3", Backend::Fuse3)]
    fn backends_have_old_names_too(#[case] name: &str, #[case] backend: Backend) {
        assert_eq!(name.parse(), Ok(backend));
    }

    #[rstest]
    #[case::root(true, &[("XDG_STATE_HOME", "/x"), ("HOME", "/root")], "/var/lib/lighthouse-fs")]
    #[case::unit(true, &[("STATE_DIRECTORY", "/var/lib/a:/var/lib/b")], "/var/lib/a")]
    #[case::unit_of_a_user(false, &[("STATE_DIRECTORY", "/s"), ("HOME", "/home/u")], "/s")]
    #[case::xdg(false, &[("XDG_STATE_HOME", "/x"), ("HOME", "/home/u")], "/x/lighthouse-fs")]
    #[case::relative_is_ignored(false, &[("STATE_DIRECTORY", "s"), ("XDG_STATE_HOME", "x"), ("HOME", "/home/u")], "/home/u/.local/state/lighthouse-fs")]
    #[case::without_home(false, &[], "/home/of/entry/.local/state/lighthouse-fs")]
    fn state_has_its_place(#[case] is_root: bool, #[case] environment: &[(&str, &str)], #[case] expected: &str) {
        let variable = |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        assert_eq!(state_dir(is_root, &variable, || Some("/home/of/entry".into())), Path::new(expected));
    }

    #[test]
    fn beside_a_candidate_auto_is_the_other_one() {
        let mut mount = Mount::new("a", "/srv/a", "/mnt/a");
        for candidate in Backend::ALL {
            mount.rollout.candidate = Some(candidate);
            assert_eq!(mount.stable(), candidate.other());
        }
    }

    #[test]
    fn a_shadow_is_the_candidates_alone() {
        let mut mount = Mount::new("a", "/srv/a", "/mnt/a");
        mount.shadow_mountpoint = Some("/mnt/shadow".into());
        assert_eq!(mount.shadow(), None, "whose shadow?");
        for candidate in Backend::ALL.into_iter().filter(|backend| backend.is_built_in()) {
            mount.rollout.candidate = Some(candidate);
            let shadow = mount.shadow().unwrap();
            assert_eq!((shadow.stable(), shadow.backends_to_try()), (candidate, vec![candidate]));
            assert!(shadow.read_only && shadow.shadow().is_none() && check_mount_name(&shadow.name).is_err());
            assert_eq!((shadow.source, shadow.mountpoint), (mount.source.clone(), "/mnt/shadow".into()));
        }
    }

    #[test]
    fn an_unknown_name_says_what_would_be_right() {
        assert_eq!(
            "fuse4".parse::<BackendChoice>().unwrap_err().to_string(),
            "unknown backend \"fuse4\": use auto, fuse2 or fuse3"
        );
        assert_eq!(
            "sudo".parse::<Helper>().unwrap_err().to_string(),
            "unknown helper \"sudo\": use auto, fusermount, fusermount3 or direct"
        );
    }
}
