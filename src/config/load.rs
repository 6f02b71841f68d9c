//! Flags over environment over file over defaults, with the origin of every value.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::keys::{DAEMON, Found, Key, MOUNT, find};
use super::problem::{Errors, Origin, Problem, Wrong};
use super::{Daemon, Mount, Settings, check, environment, file};

/// What the command line says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Flags {
    /// Full names of keys, such as `mount.backend`, and their values. Those of a mount are said of every mount.
    pub values: Vec<(&'static str, String)>,
    /// Where a descriptor that is handed in is mounted.
    pub mounted_at: Option<PathBuf>,
}

/// Where settings come from. A daemon keeps it, to load again after SIGHUP.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sources {
    /// The configuration file.
    pub file: Option<PathBuf>,
    /// The environment, or what is to count as such.
    pub environment: Vec<(OsString, OsString)>,
    /// The command line.
    pub flags: Flags,
    /// Where a daemon listens if nobody says anything.
    pub socket: PathBuf,
}

impl Sources {
    /// A file by itself.
    #[must_use]
    pub fn file(file: impl Into<PathBuf>, socket: impl Into<PathBuf>) -> Self {
        Self { file: Some(file.into()), environment: Vec::new(), flags: Flags::default(), socket: socket.into() }
    }
}

/// Settings that have passed every check, and how they came about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Loaded {
    /// What is in force.
    pub settings: Settings,
    /// What somebody may have meant otherwise; for the log.
    pub warnings: Vec<String>,
    /// Every value with its origin.
    pub values: Vec<Shown>,
}

/// A value and where it comes from.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Shown {
    /// The mount that it is about, if it is about one.
    pub mount: Option<String>,
    /// Full name of the key, such as `mount.io.max_write`.
    pub key: String,
    /// The value; null if there is none.
    pub value: Value,
    /// Where it comes from.
    #[serde(flatten)]
    pub origin: Origin,
}

/// Reads every source, and checks. Nothing that the settings name is touched.
///
/// # Errors
/// Everything that is wrong at once.
pub fn load(sources: &Sources) -> Result<Loaded, Errors> {
    let mut draft = Draft {
        daemon: Section::new(Daemon::new(&sources.socket), Origin::Default),
        mounts: Vec::new(),
        problems: Vec::new(),
        warnings: Vec::new(),
    };
    let mut readable = true;
    if let Some(path) = &sources.file {
        match file::read(path) {
            Ok(text) => {
                file::lay_over(&mut draft, path, &text);
                // What was not understood says nothing of what is missing.
                readable = draft.problems.iter().all(|problem| problem.key.is_some());
            }
            Err(problem) => {
                draft.problems.push(problem);
                readable = false;
            }
        }
    }
    environment::lay_over(&mut draft, &sources.environment);
    lay_flags_over(&mut draft, &sources.flags);
    if readable {
        check::check(&mut draft, sources.file.as_deref());
    }
    draft.finish()
}

/// Checks the value of a flag by the rules of its key, given by its full name.
///
/// # Errors
/// What is wrong, and what would be right.
pub fn check_flag(key: &str, text: &str) -> Result<(), Wrong> {
    match find(key) {
        Some(Found::Daemon(key)) => key.kind.set(&mut Daemon::new("/"), text, Path::new(".")),
        Some(Found::Mount(key)) => key.kind.set(&mut Mount::new("default", "/", "/"), text, Path::new(".")),
        None => Err(unknown_key(key)),
    }
}

fn unknown_key(key: &str) -> Wrong {
    Wrong::new(format!("{key} is no key"), "this is a mistake in the program: report it")
}

fn lay_flags_over(draft: &mut Draft, flags: &Flags) {
    if draft.mounts.is_empty() && flags.values.iter().any(|(key, _)| ["mount.source", "mount.mountpoint"].contains(key))
    {
        draft.mounts.push(Section::mount(Origin::Default));
    }
    let Draft { daemon, mounts, problems, .. } = draft;
    for (full, text) in &flags.values {
        match find(full) {
            Some(Found::Daemon(key)) => set(full, key, daemon, text, problems),
            Some(Found::Mount(key)) => mounts.iter_mut().for_each(|mount| set(full, key, mount, text, problems)),
            None => problems.push(Problem { origin: Origin::Default, key: None, wrong: unknown_key(full) }),
        }
    }
    for mount in mounts {
        mount.value.mounted_at.clone_from(&flags.mounted_at);
    }
}

fn set<T>(full: &str, key: &Key<T>, section: &mut Section<T>, text: &str, problems: &mut Vec<Problem>) {
    let origin = key.flag.map_or(Origin::Default, |flag| Origin::Flag { flag });
    if let Err(wrong) = key.kind.set(&mut section.value, text, Path::new(".")) {
        problems.push(Problem { origin: origin.clone(), key: Some(full.into()), wrong });
    }
    section.heard(key.name, origin);
}

/// A table of the configuration as it comes about.
pub(super) struct Section<T> {
    pub value: T,
    /// Where it begins.
    pub origin: Origin,
    /// Of the keys that somebody said something about, right or wrong.
    origins: BTreeMap<&'static str, Origin>,
}

impl<T> Section<T> {
    fn new(value: T, origin: Origin) -> Self {
        Self { value, origin, origins: BTreeMap::new() }
    }

    /// Notes who has spoken last about a key.
    pub fn heard(&mut self, key: &'static str, origin: Origin) {
        self.origins.insert(key, origin);
    }

    /// Where the value of a key comes from.
    pub fn origin_of(&self, key: &str) -> &Origin {
        self.origins.get(key).unwrap_or(&Origin::Default)
    }
}

impl Section<Mount> {
    /// A mount of which nothing is known yet.
    pub fn mount(origin: Origin) -> Self {
        Self::new(Mount::new("default", "", ""), origin)
    }
}

/// A configuration as it comes about.
pub(super) struct Draft {
    pub daemon: Section<Daemon>,
    pub mounts: Vec<Section<Mount>>,
    pub problems: Vec<Problem>,
    pub warnings: Vec<String>,
}

impl Draft {
    fn finish(mut self) -> Result<Loaded, Errors> {
        if !self.problems.is_empty() {
            // By file and line; the sort keeps the order of what has neither.
            self.problems.sort_by(|one, other| one.origin.cmp(&other.origin));
            return Err(Errors(self.problems));
        }
        let mut values: Vec<_> = DAEMON.iter().map(|key| shown("daemon", None, key, &self.daemon)).collect();
        for mount in &self.mounts {
            values.extend(MOUNT.iter().map(|key| shown("mount", Some(&mount.value.name), key, mount)));
        }
        let mounts = self.mounts.into_iter().map(|section| section.value).collect();
        Ok(Loaded { settings: Settings { daemon: self.daemon.value, mounts }, warnings: self.warnings, values })
    }
}

fn shown<T: Clone>(table: &str, mount: Option<&str>, key: &Key<T>, section: &Section<T>) -> Shown {
    Shown {
        mount: mount.map(str::to_owned),
        key: format!("{table}.{}", key.name),
        value: key.kind.show(&section.value),
        origin: section.origin_of(key.name).clone(),
    }
}
