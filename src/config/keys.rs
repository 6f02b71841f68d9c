//! Every key of the configuration, in one table. The checks, the example, the reference in `docs/` and `config show`
//! follow from it, so that they cannot drift apart. A key comes in with whatever makes it work.

use std::time::Duration;

use super::value::Kind;
use super::{Api, Daemon, Mount};

/// One key of a table whose values make up a `T`.
pub(super) struct Key<T> {
    /// Name in its table, with a subtable before the point: `io.max_write`.
    pub name: &'static str,
    /// What it holds, and where that stands in a `T`.
    pub kind: Kind<T>,
    /// What it is for: a sentence or two.
    pub about: &'static str,
    /// The environment variable that sets it.
    pub variable: Option<&'static str>,
    /// The flag of `serve` that sets it.
    pub flag: Option<&'static str>,
    /// When a change of it is heeded after SIGHUP.
    pub effect: Effect,
}

/// When a changed value is heeded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Effect {
    /// At once.
    Live,
    /// When the mount is made anew.
    Remount,
    /// When the daemon is started anew.
    Restart,
}

impl Effect {
    /// In words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Remount => "with the next mount",
            Self::Restart => "with the next start of the daemon",
        }
    }
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const MONTH: u64 = 30 * 24 * 3600;
const HOUR: u64 = 3600;
/// One in a million: with less, a step would wait for evidence for months.
const SMALLEST_SHARE: f64 = 0.000_001;

pub(super) static DAEMON: &[Key<Daemon>] = &[
    Key {
        name: "socket",
        kind: Kind::Path(|daemon| &mut daemon.socket),
        about: "Where the daemon listens for `status`, `switch` and the others. For an ordinary user the default is $XDG_RUNTIME_DIR/lighthouse-fs/control.sock, or /tmp/lighthouse-fs-UID/control.sock without that variable.",
        variable: None,
        flag: Some("--socket"),
        effect: Effect::Restart,
    },
    Key {
        name: "state_dir",
        kind: Kind::Path(|daemon| &mut daemon.state_dir),
        about: "Folder of what must survive the daemon: pins, and how far rollouts are. In a unit with StateDirectory= the default is $STATE_DIRECTORY, for an ordinary user $XDG_STATE_HOME/lighthouse-fs or ~/.local/state/lighthouse-fs.",
        variable: None,
        flag: None,
        effect: Effect::Restart,
    },
    Key {
        name: "machine_id",
        kind: Kind::MachineId(|daemon| &mut daemon.machine_id),
        about: "What tells this machine from others of a fleet, if /etc/machine-id does not: in containers, for instance, the name of the node.",
        variable: Some("LIGHTHOUSE_MACHINE_ID"),
        flag: None,
        effect: Effect::Restart,
    },
    Key {
        name: "socket_group",
        kind: Kind::Group(|daemon| &mut daemon.socket_group),
        about: "Name of the group that may control the daemon, besides root and the daemon's own user.",
        variable: None,
        flag: None,
        effect: Effect::Restart,
    },
    Key {
        name: "log_level",
        kind: Kind::Filter(|daemon| &mut daemon.log_level),
        about: "What is logged.",
        variable: Some("LIGHTHOUSE_LOG_LEVEL"),
        flag: Some("--log-level"),
        effect: Effect::Live,
    },
    Key {
        name: "log_format",
        kind: Kind::LogFormat(|daemon| &mut daemon.log_format),
        about: "How the log is written: lines for people, or one JSON object a line.",
        variable: None,
        flag: Some("--log-format"),
        effect: Effect::Restart,
    },
];

pub(super) static API: &[Key<Api>] = &[
    Key {
        name: "listen",
        kind: Kind::Address(|api| &mut api.listen),
        about: "Where the API answers over TCP; \"\" turns it off. Everybody who reaches it may read, as long as that is this machine alone; on another address reading needs the token too. Without a file the default is \"\".",
        variable: Some("LIGHTHOUSE_PORT"),
        flag: Some("--listen"),
        effect: Effect::Live,
    },
    Key {
        name: "shadow_listen",
        kind: Kind::Address(|api| &mut api.shadow_listen),
        about: "Where it is said whether the candidates answer in their shadow mounts, and what comparisons of it have found; \"\" turns it off. Without a file the default is \"\".",
        variable: Some("LIGHTHOUSE_SHADOW_PORT"),
        flag: Some("--shadow-listen"),
        effect: Effect::Live,
    },
    Key {
        name: "metrics_listen",
        kind: Kind::Address(|api| &mut api.metrics_listen),
        about: "Where metrics and health are read, by everybody who reaches it; \"\" turns it off. Without a file the default is \"\".",
        variable: Some("LIGHTHOUSE_METRICS_PORT"),
        flag: Some("--metrics-listen"),
        effect: Effect::Live,
    },
    Key {
        name: "token_file",
        kind: Kind::OptionalPath(|api| &mut api.token_file),
        about: "File whose one line is the token that requests over TCP carry if they change something: `Authorization: Bearer`. Without it nothing can be changed over TCP. It is read again at SIGHUP.",
        variable: Some("LIGHTHOUSE_API_TOKEN_FILE"),
        flag: Some("--token-file"),
        effect: Effect::Live,
    },
    Key {
        name: "hosts",
        kind: Kind::Hosts(|api| &mut api.hosts),
        about: "Names by which requests may be made to the listeners, besides addresses, localhost and this machine's host name. A name that somebody else's DNS leads here is refused.",
        variable: Some("LIGHTHOUSE_HOSTS"),
        flag: None,
        effect: Effect::Live,
    },
];

pub(super) static MOUNT: &[Key<Mount>] = &[
    Key {
        name: "name",
        kind: Kind::Name(|mount| &mut mount.name),
        about: "Name in commands, metrics and messages; each mount has its own.",
        variable: None,
        flag: Some("--name"),
        effect: Effect::Remount,
    },
    Key {
        name: "source",
        kind: Kind::Path(|mount| &mut mount.source),
        about: "Directory that is served.",
        variable: Some("LIGHTHOUSE_PROJECT_PATH"),
        flag: Some("--source"),
        effect: Effect::Remount,
    },
    Key {
        name: "mountpoint",
        kind: Kind::Path(|mount| &mut mount.mountpoint),
        about: "Where it appears.",
        variable: Some("LIGHTHOUSE_MOUNT_POINT"),
        flag: Some("--mountpoint"),
        effect: Effect::Remount,
    },
    Key {
        name: "backend",
        kind: Kind::Backend(|mount| &mut mount.backend),
        about: "The stable backend: fuse2, fuse3, or auto, which is fuse3 if this build has it, else fuse2. The names fusepy and pyfuse3, which older deployments set, mean fuse2 and fuse3.",
        variable: Some("LIGHTHOUSE_FUSE_BACKEND"),
        flag: Some("--backend"),
        effect: Effect::Live,
    },
    Key {
        name: "fallback",
        kind: Kind::Flag(|mount| &mut mount.fallback),
        about: "Start with the other backend, degraded, if this one does not come up.",
        variable: Some("LIGHTHOUSE_FUSE_FALLBACK"),
        flag: None,
        effect: Effect::Live,
    },
    Key {
        name: "helper",
        kind: Kind::Helper(|mount| &mut mount.helper),
        about: "Who mounts: libfuse 2's fusermount, libfuse 3's fusermount3, direct (mount(2), needs CAP_SYS_ADMIN), or auto (direct if possible, else the helper of the backend).",
        variable: None,
        flag: Some("--helper"),
        effect: Effect::Remount,
    },
    Key {
        name: "allow_other",
        kind: Kind::Flag(|mount| &mut mount.allow_other),
        about: "Admit other users than the one who mounts. The kernel checks modes and owners with and without it.",
        variable: Some("LIGHTHOUSE_FUSE_ALLOW_OTHER"),
        flag: Some("--allow-other"),
        effect: Effect::Remount,
    },
    Key {
        name: "read_only",
        kind: Kind::Flag(|mount| &mut mount.read_only),
        about: "Refuse writing.",
        variable: None,
        flag: Some("--read-only"),
        effect: Effect::Remount,
    },
    Key {
        name: "suid",
        kind: Kind::Flag(|mount| &mut mount.suid),
        about: "Let set-user-ID and set-group-ID bits have their effect. The same for every helper, whatever its own default is.",
        variable: None,
        flag: None,
        effect: Effect::Remount,
    },
    Key {
        name: "dev",
        kind: Kind::Flag(|mount| &mut mount.dev),
        about: "Let device nodes have their effect.",
        variable: None,
        flag: None,
        effect: Effect::Remount,
    },
    Key {
        name: "exec",
        kind: Kind::Flag(|mount| &mut mount.exec),
        about: "Let programs be executed.",
        variable: None,
        flag: None,
        effect: Effect::Remount,
    },
    Key {
        name: "shadow_mountpoint",
        kind: Kind::Place(|mount| &mut mount.shadow_mountpoint),
        about: "Where the candidate alone serves the same tree, read-only, in a process of its own; both are walked and compared. \"\" for nowhere.",
        variable: Some("LIGHTHOUSE_SHADOW_MOUNT_POINT"),
        flag: None,
        effect: Effect::Live,
    },
    Key {
        name: "drill",
        kind: Kind::Flag(|mount| &mut mount.drill),
        about: "Let `lighthouse-fs drill` inject faults into its backends, for rehearsals.",
        variable: None,
        flag: Some("--drill"),
        effect: Effect::Remount,
    },
    Key {
        name: "io.max_write",
        // The kernel's limits: FUSE_MIN_READ_BUFFER's payload, and 256 pages of 4 KiB (fs/fuse/fuse_i.h).
        kind: Kind::Pages(|mount| &mut mount.io.max_write, 4 << 10..=1 << 20),
        about: "Largest WRITE.",
        variable: Some("LIGHTHOUSE_FUSE_MAX_WRITE"),
        flag: None,
        effect: Effect::Remount,
    },
    Key {
        name: "io.max_readahead",
        kind: Kind::Size(|mount| &mut mount.io.max_readahead, 0..=64 << 20),
        about: "Largest read-ahead; the kernel may choose less.",
        variable: Some("LIGHTHOUSE_FUSE_MAX_READAHEAD"),
        flag: None,
        effect: Effect::Remount,
    },
    Key {
        name: "io.threads",
        // Two sessions of fuse2, the old and the new one, share 128 slots of the ledger.
        kind: Kind::Count(|mount| &mut mount.io.threads, 1..=64),
        about: "Reader threads of backend fuse2.",
        variable: None,
        flag: Some("--threads"),
        effect: Effect::Remount,
    },
    Key {
        name: "cache.attributes",
        kind: Kind::Duration(|mount| &mut mount.cache.attributes, Duration::ZERO..=secs(MONTH)),
        about: "How long the kernel may keep attributes.",
        variable: None,
        flag: None,
        effect: Effect::Remount,
    },
    Key {
        name: "cache.entries",
        kind: Kind::Duration(|mount| &mut mount.cache.entries, Duration::ZERO..=secs(MONTH)),
        about: "How long the kernel may keep names that exist.",
        variable: None,
        flag: None,
        effect: Effect::Remount,
    },
    Key {
        name: "cache.negative",
        kind: Kind::Duration(|mount| &mut mount.cache.negative, Duration::ZERO..=secs(MONTH)),
        about: "How long the kernel may keep names that do not exist; 0s turns it off.",
        variable: None,
        flag: None,
        effect: Effect::Remount,
    },
    Key {
        name: "deadlines.drain",
        kind: Kind::Duration(|mount| &mut mount.deadlines.drain, Duration::from_millis(10)..=secs(HOUR)),
        about: "For requests that the old backend holds in a switch; then they are answered EIO.",
        variable: None,
        flag: None,
        effect: Effect::Live,
    },
    Key {
        name: "deadlines.switch",
        kind: Kind::Duration(|mount| &mut mount.deadlines.switch, Duration::from_millis(100)..=secs(HOUR)),
        about: "For each step of a switch that waits for a backend to react.",
        variable: None,
        flag: None,
        effect: Effect::Live,
    },
    Key {
        name: "deadlines.unmount",
        kind: Kind::Duration(|mount| &mut mount.deadlines.unmount, Duration::from_millis(100)..=secs(HOUR)),
        about: "For a busy mount to become free; then it is unmounted lazily.",
        variable: None,
        flag: None,
        effect: Effect::Live,
    },
    Key {
        name: "deadlines.probe",
        kind: Kind::Duration(|mount| &mut mount.deadlines.probe, Duration::from_millis(100)..=secs(HOUR)),
        about: "For an answer to the prober, which asks through the mount; then the mount is unhealthy.",
        variable: None,
        flag: None,
        effect: Effect::Live,
    },
    Key {
        name: "rollout.candidate",
        kind: Kind::Candidate(|mount| &mut mount.rollout.candidate),
        about: "The backend that is tried beside the stable one. With backend = \"auto\" the stable one is then the other.",
        variable: None,
        flag: None,
        effect: Effect::Live,
    },
    Key {
        name: "rollout.steps",
        kind: Kind::Steps(|mount| &mut mount.rollout.steps),
        about: "The way of the candidate: perhaps a shadow step first, in which it gets no client's request and is only compared with the stable backend, then weights, percent of the operations, that rise to 100. Each step lasts `for` its bake time, 100ms to 30days. Without the key: shadow for 10m, then 10, 50, 75 and 90 for 30m each, and 100 for 1h.",
        variable: None,
        flag: None,
        effect: Effect::Live,
    },
    Key {
        name: "rollout.shadow_sample",
        kind: Kind::Number(|mount| &mut mount.rollout.shadow_sample, 0.0..=1.),
        about: "The share of the calls that is compared while a rollout runs: what the candidate answers to them, beside the clients' requests, with what the stable backend does. 0 compares nothing.",
        variable: None,
        flag: None,
        effect: Effect::Live,
    },
    Key {
        name: "rollout.shadow_always",
        kind: Kind::Flag(|mount| &mut mount.rollout.shadow_always),
        about: "Compare also while no rollout runs; without a candidate, with the other backend.",
        variable: Some("LIGHTHOUSE_FUSE_PARALLEL_TEST"),
        flag: None,
        effect: Effect::Live,
    },
    Key {
        name: "rollout.fleet.weight",
        kind: Kind::Percent(|mount| &mut mount.rollout.fleet),
        about: "Instead of steps: percent of the machines that are served by the candidate alone. A stable hash chooses them; raising it only ever adds machines.",
        variable: None,
        flag: None,
        effect: Effect::Live,
    },
    Key {
        name: "guard.window",
        kind: Kind::Duration(|mount| &mut mount.guard.window, secs(1)..=secs(24 * HOUR)),
        about: "How far back the guard looks when it judges the candidate of a rollout. A mount with few operations needs a longer one, or smaller minimum_samples.",
        variable: None,
        flag: None,
        effect: Effect::Live,
    },
    Key {
        name: "guard.minimum_samples",
        kind: Kind::Count(|mount| &mut mount.guard.minimum_samples, 1..=1_000_000),
        about: "So many answers (or comparisons) must have been seen before a share of them says anything. With fewer, a step waits.",
        variable: None,
        flag: None,
        effect: Effect::Live,
    },
    Key {
        name: "guard.error_rate",
        kind: Kind::Number(|mount| &mut mount.guard.error_rate, SMALLEST_SHARE..=1.),
        about: "Share of answers that may be errors of the backend itself: a panic, an answer at a deadline, a lost request. What the source or POSIX says is none.",
        variable: None,
        flag: None,
        effect: Effect::Live,
    },
    Key {
        name: "guard.p99",
        kind: Kind::Duration(|mount| &mut mount.guard.p99, Duration::from_micros(10)..=secs(5)),
        about: "99 of 100 requests must be answered within this time. It counts as the next bound of the metrics' buckets: … 250ms, 500ms, 1s, 2.5s, 5s.",
        variable: None,
        flag: None,
        effect: Effect::Live,
    },
    Key {
        name: "guard.divergence",
        kind: Kind::Number(|mount| &mut mount.guard.divergence, SMALLEST_SHARE..=1.),
        about: "Share of compared answers that may differ. To be sure of 0.001, some 4,000 comparisons are needed.",
        variable: None,
        flag: None,
        effect: Effect::Live,
    },
    Key {
        name: "guard.consecutive_errors",
        kind: Kind::Count(|mount| &mut mount.guard.consecutive_errors, 1..=1_000_000),
        about: "So many errors of the candidate in a row, without another answer of it between them, are a rollback at once.",
        variable: None,
        flag: None,
        effect: Effect::Live,
    },
    Key {
        name: "guard.hang",
        kind: Kind::Duration(|mount| &mut mount.guard.hang, Duration::from_millis(100)..=secs(HOUR)),
        about: "A request that is in a handler of the candidate for longer is a rollback.",
        variable: None,
        flag: None,
        effect: Effect::Live,
    },
    Key {
        name: "guard.prometheus.url",
        kind: Kind::Url(|mount| &mut mount.guard.prometheus.url),
        about: "A Prometheus server that knows more than this machine. Beside it query and above must be given; without an answer no step ends by itself.",
        variable: None,
        flag: None,
        effect: Effect::Live,
    },
    Key {
        name: "guard.prometheus.query",
        kind: Kind::Text(|mount| &mut mount.guard.prometheus.query),
        about: "What it is asked: a PromQL expression that gives one number.",
        variable: None,
        flag: None,
        effect: Effect::Live,
    },
    Key {
        name: "guard.prometheus.above",
        kind: Kind::OptionalNumber(|mount| &mut mount.guard.prometheus.above),
        about: "A number above this is a rollback.",
        variable: None,
        flag: None,
        effect: Effect::Live,
    },
];

/// Keys and tables that later versions have: known, so that nobody is told to look for a slip of the pen.
pub(super) const LATER: &[&str] = &["mount.mounter_socket", "mount.passthrough", "mount.survive", "mount.io.max_read"];

/// A key found by its full name.
pub(super) enum Found {
    /// In `[daemon]`.
    Daemon(&'static Key<Daemon>),
    /// In `[api]`.
    Api(&'static Key<Api>),
    /// In `[[mount]]`.
    Mount(&'static Key<Mount>),
}

/// Finds a key by its full name, such as `mount.io.max_write`.
pub(super) fn find(full: &str) -> Option<Found> {
    let (table, name) = full.split_once('.')?;
    match table {
        "daemon" => DAEMON.iter().find(|key| key.name == name).map(Found::Daemon),
        "api" => API.iter().find(|key| key.name == name).map(Found::Api),
        "mount" => MOUNT.iter().find(|key| key.name == name).map(Found::Mount),
        _ => None,
    }
}

/// The full names of all keys.
pub(super) fn names() -> impl Iterator<Item = String> {
    let daemon = DAEMON.iter().map(|key| format!("daemon.{}", key.name));
    let api = API.iter().map(|key| format!("api.{}", key.name));
    daemon.chain(api).chain(MOUNT.iter().map(|key| format!("mount.{}", key.name)))
}
