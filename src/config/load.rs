//! Flags over environment over file over defaults, with the origin of every value.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::keys::{API, DAEMON, Found, Key, MOUNT, find};
use super::problem::{Errors, Origin, Problem, Wrong};
use super::{Api, Daemon, Mount, Rollout, Settings, check, environment, file};

/// What the command line says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Flags {
    /// Full names of keys, such as `mount.backend`, and their values. Those of a mount are said of every mount.
    pub values: Vec<(&'static str, String)>,
    /// Where a descriptor that is handed in is mounted.
    pub mounted_at: Option<PathBuf>,
}

impl Flags {
    /// Whether they name a source or a mount point, and so a mount of their own where there is no other.
    fn has_mount(&self) -> bool {
        self.values.iter().any(|(key, _)| ["mount.source", "mount.mountpoint"].contains(key))
    }
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
    // Whoever serves one directory by hand has not asked for ports.
    let api = if sources.file.is_some() { Api::default() } else { Api::off() };
    let mut draft = Draft {
        daemon: Section::new(Daemon::new(&sources.socket), Origin::Default),
        api: Section::new(api, Origin::Default),
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
    // Before any layer speaks of it.
    if draft.mounts.is_empty() && (environment::has_mount(&sources.environment) || sources.flags.has_mount()) {
        draft.mounts.push(Section::mount(Origin::Default));
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
        Some(Found::Api(key)) => key.kind.set(&mut Api::off(), text, Path::new(".")),
        Some(Found::Mount(key)) => key.kind.set(&mut Mount::new("default", "/", "/"), text, Path::new(".")),
        None => Err(unknown_key(key)),
    }
}

fn unknown_key(key: &str) -> Wrong {
    Wrong::new(format!("{key} is no key"), "this is a mistake in the program: report it")
}

fn lay_flags_over(draft: &mut Draft, flags: &Flags) {
    let Draft { daemon, api, mounts, problems, .. } = draft;
    for (full, text) in &flags.values {
        match find(full) {
            Some(Found::Daemon(key)) => set(full, key, daemon, text, problems),
            Some(Found::Api(key)) => set(full, key, api, text, problems),
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
    pub api: Section<Api>,
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
        for rollout in self.mounts.iter_mut().map(|mount| &mut mount.value.rollout) {
            if rollout.candidate.is_some() && rollout.fleet.is_none() {
                rollout.steps.get_or_insert_with(Rollout::default_steps);
            }
        }
        let mut values: Vec<_> = DAEMON.iter().map(|key| shown("daemon", None, key, &self.daemon)).collect();
        values.extend(API.iter().map(|key| shown("api", None, key, &self.api)));
        for mount in &self.mounts {
            values.extend(MOUNT.iter().map(|key| shown("mount", Some(&mount.value.name), key, mount)));
        }
        let mounts = self.mounts.into_iter().map(|section| section.value).collect();
        let settings = Settings { daemon: self.daemon.value, api: self.api.value, mounts };
        Ok(Loaded { settings, warnings: self.warnings, values })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Backend;
    use proptest::prelude::*;

    const TWO: &str = "[[mount]]\nname = 'a'\nsource = '/srv/a'\nmountpoint = '/mnt/a'\nhelper = 'direct'\n\
                       [[mount]]\nname = 'b'\nsource = '/srv/b'\nmountpoint = '/mnt/b'\n";
    const ONE: &str =
        "[daemon]\nlog_level = 'warn'\n[[mount]]\nsource = 'a'\nmountpoint = '/mnt/a'\nio.threads = 0x10\n";

    /// Lays a text of a file, variables and flags over the defaults.
    fn loaded(text: &str, environment: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Result<Loaded, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("lighthouse-fs.toml");
        std::fs::write(&file, text).unwrap();
        load(&Sources {
            file: (!text.is_empty()).then_some(file),
            environment: environment.iter().map(|(name, value)| (name.into(), value.into())).collect(),
            flags: Flags {
                values: flags.iter().map(|(key, value)| (*key, (*value).to_owned())).collect(),
                mounted_at: None,
            },
            socket: "/run/control.sock".into(),
        })
        .map_err(|errors| errors.to_string().replace(&format!("{}/", folder.path().display()), ""))
    }

    fn shown(loaded: &Loaded, mount: Option<&str>, key: &str) -> String {
        let of_key = |shown: &&Shown| shown.key == key && shown.mount.as_deref() == mount;
        let shown = loaded.values.iter().find(of_key).unwrap();
        let origin = shown.origin.to_string();
        format!("{} from {}", shown.value, origin.rsplit('/').next().unwrap())
    }

    #[test]
    fn each_layer_beats_the_one_below() {
        let key = "daemon.log_level";
        let environment = [("LIGHTHOUSE_LOG_LEVEL", "error")];
        let none = loaded(TWO, &[], &[]).unwrap();
        assert_eq!(shown(&none, None, key), "\"info\" from default");
        let file = loaded(ONE, &[], &[]).unwrap();
        assert_eq!(shown(&file, None, key), "\"warn\" from lighthouse-fs.toml:2");
        let variable = loaded(ONE, &environment, &[]).unwrap();
        assert_eq!(shown(&variable, None, key), "\"error\" from LIGHTHOUSE_LOG_LEVEL");
        let flag = loaded(ONE, &environment, &[(key, "trace")]).unwrap();
        assert_eq!(shown(&flag, None, key), "\"trace\" from --log-level");
        assert_eq!(flag.settings.daemon.log_level, "trace");
    }

    #[test]
    fn what_is_said_of_mounts_is_said_of_each() {
        let loaded = loaded(TWO, &[("LIGHTHOUSE_FUSE_MAX_WRITE", "65536")], &[("mount.read_only", "true")]).unwrap();
        for mount in &loaded.settings.mounts {
            assert_eq!((mount.io.max_write, mount.read_only), (1 << 16, true));
        }
        assert_eq!(shown(&loaded, Some("a"), "mount.helper"), "\"direct\" from lighthouse-fs.toml:5");
        assert_eq!(shown(&loaded, Some("b"), "mount.helper"), "\"auto\" from default");
        assert_eq!(shown(&loaded, Some("b"), "mount.io.max_write"), "\"64KiB\" from LIGHTHOUSE_FUSE_MAX_WRITE");
    }

    #[test]
    fn two_mounts_cannot_have_one_source() {
        assert_eq!(
            loaded(TWO, &[("LIGHTHOUSE_PROJECT_PATH", "/srv")], &[]),
            Err("LIGHTHOUSE_PROJECT_PATH: mount.source: the file has 2 mounts, and this would be said of each; unset it, or keep one mount".into())
        );
        let shadow = loaded(TWO, &[("LIGHTHOUSE_SHADOW_MOUNT_POINT", "/mnt/s")], &[]).unwrap_err();
        assert!(shadow.contains("mount.shadow_mountpoint: the file has 2 mounts"), "{shadow}");
        let one = loaded(ONE, &[("LIGHTHOUSE_PROJECT_PATH", "/srv")], &[]).unwrap();
        assert_eq!(one.settings.mounts[0].source, Path::new("/srv"));
    }

    #[test]
    fn paths_of_the_file_count_from_its_folder() {
        let source = loaded(ONE, &[], &[]).unwrap().settings.mounts[0].source.clone();
        assert!(
            source.is_absolute() && source.ends_with("a") && source.starts_with(std::env::temp_dir()),
            "{source:?}"
        );
    }

    #[test]
    fn the_environment_is_enough() {
        let environment = [("LIGHTHOUSE_PROJECT_PATH", "/srv"), ("LIGHTHOUSE_MOUNT_POINT", "/mnt/srv")];
        let loaded = loaded("", &environment, &[]).unwrap();
        assert_eq!(loaded.settings.mounts, [Mount::new("default", "/srv", "/mnt/srv")]);
        assert_eq!(loaded.settings.daemon, Daemon::new("/run/control.sock"));
        assert!(loaded.warnings.is_empty());
    }

    #[test]
    #[cfg(feature = "fuse2")]
    fn the_old_names_are_understood() {
        let old = loaded(ONE, &[("LIGHTHOUSE_FUSE_BACKEND", "fusepy"), ("LIGHTHOUSE_FUSE_FALLBACK", "False")], &[]);
        let mount = &old.unwrap().settings.mounts[0];
        assert_eq!((mount.backend.to_string().as_str(), mount.fallback), ("fuse2", false));
    }

    #[test]
    fn debug_is_a_level_unless_one_is_named() {
        let level = |environment: &[_]| loaded(ONE, environment, &[]).unwrap().settings.daemon.log_level;
        assert_eq!(level(&[("LIGHTHOUSE_FUSE_DEBUG", "1")]), "debug");
        assert_eq!(level(&[("LIGHTHOUSE_FUSE_DEBUG", "no")]), "warn");
        assert_eq!(level(&[("LIGHTHOUSE_FUSE_DEBUG", "1"), ("LIGHTHOUSE_LOG_LEVEL", "error")]), "error");
        assert_eq!(
            loaded(ONE, &[("LIGHTHOUSE_FUSE_DEBUG", "loud")], &[]),
            Err("LIGHTHOUSE_FUSE_DEBUG: daemon.log_level: \"loud\" is neither true nor false; use true or false".into())
        );
    }

    #[test]
    fn variables_without_effect_are_warned_of() {
        let environment = [
            ("LIGHTHOUSE_FUSE_BENCHMARK", "1"),
            ("LIGHTHOUSE_FUSE_ALOW_OTHER", "true"),
            ("LIGHTHOUSE_SHADOW_PORT", ""),
            ("LIGHTHOUSE_TEST_TIER", "quick"),
            ("LIGHTHOUSE_KEEPERS_NAME", "Ada"),
            ("LIGHTHOUSE_FUSE_HELPER", "direct"),
        ];
        assert_eq!(
            loaded(ONE, &environment, &[]).unwrap().warnings,
            [
                "LIGHTHOUSE_FUSE_BENCHMARK is not supported by this version and has no effect",
                "LIGHTHOUSE_FUSE_ALOW_OTHER has no effect; did you mean LIGHTHOUSE_FUSE_ALLOW_OTHER?",
            ]
        );
    }

    #[test]
    fn listeners_are_on_with_a_file_and_off_without() {
        let text = |environment: &[_], file: &str, flags: &[_]| {
            let alone = [("LIGHTHOUSE_PROJECT_PATH", "/srv"), ("LIGHTHOUSE_MOUNT_POINT", "/mnt/srv")];
            let environment: Vec<_> =
                alone[..if file.is_empty() { 2 } else { 0 }].iter().chain(environment).copied().collect();
            let api = loaded(file, &environment, flags)?.settings.api;
            let all = [api.listen, api.shadow_listen, api.metrics_listen];
            Ok::<_, String>(all.map(|one| one.map_or_else(|| "-".into(), |one| one.to_string())).join(" "))
        };
        let on = "127.0.0.1:8765 127.0.0.1:8766 127.0.0.1:9765";
        assert_eq!(text(&[], ONE, &[]), Ok(on.into()));
        assert_eq!(text(&[], "", &[]), Ok("- - -".into()));
        // A port turns its listener on; the address is that of the listeners that are on.
        let port = [("LIGHTHOUSE_METRICS_PORT", "9100"), ("LIGHTHOUSE_LISTEN_ADDRESS", "::")];
        assert_eq!(text(&port, "", &[]), Ok("- - [::]:9100".into()));
        assert_eq!(text(&port[1..], "", &[]), Ok("- - -".into()));
        assert_eq!(text(&[], "", &[("api.listen", "[::1]:1")]), Ok("[::1]:1 - -".into()));
        // The flag beats both.
        assert_eq!(text(&port, "", &[("api.metrics_listen", "127.0.0.2:1")]), Ok("- - 127.0.0.2:1".into()));
        let off = format!("[api]\nlisten = ''\nshadow_listen = '1.2.3.4:5'\n{ONE}");
        assert_eq!(text(&[], &off, &[]), Ok("- 1.2.3.4:5 127.0.0.1:9765".into()));
        let wrong = text(&[("LIGHTHOUSE_PORT", "70000")], ONE, &[]).unwrap_err();
        assert!(wrong.starts_with("LIGHTHOUSE_PORT: api.listen: \"70000\" is no address with a port; use"), "{wrong}");
        let wrong = text(&[("LIGHTHOUSE_LISTEN_ADDRESS", "host")], ONE, &[]).unwrap_err();
        assert!(wrong.starts_with("LIGHTHOUSE_LISTEN_ADDRESS: api.listen: \"host\" is no address"), "{wrong}");
    }

    #[test]
    fn an_api_for_other_machines_needs_a_token() {
        let wide = [("LIGHTHOUSE_LISTEN_ADDRESS", "0.0.0.0")];
        let refused = "LIGHTHOUSE_LISTEN_ADDRESS: api.listen: 0.0.0.0:8765 can be reached from other machines, and there is no token; set token_file, or listen on 127.0.0.1";
        assert_eq!(loaded(ONE, &wide, &[]).map(drop), Err(refused.into()));
        let with_token = [wide[0], ("LIGHTHOUSE_API_TOKEN_FILE", "/run/token")];
        assert_eq!(
            loaded(ONE, &with_token, &[]).unwrap().settings.api.token_file.as_deref(),
            Some(Path::new("/run/token"))
        );
        // What the others say is for everybody who reaches them.
        let others = format!(
            "[api]\nmetrics_listen = '0.0.0.0:9765'\nshadow_listen = '[::]:8766'\nlisten = '[::ffff:127.0.0.1]:1'\n{ONE}"
        );
        loaded(&others, &[], &[]).unwrap();
    }

    #[test]
    fn what_the_listeners_need_is_told_apart() {
        let text = format!("[api]\nlisten = '127.0.0.1:9765'\ntoken_file = '/mnt/a/token'\n{ONE}");
        assert_eq!(
            loaded(&text, &[], &[]).unwrap_err(),
            "lighthouse-fs.toml:2: api.metrics_listen: port 9765 is taken by listen; choose another one\n\
             lighthouse-fs.toml:3: api.token_file: the token file /mnt/a/token lies in the mount point /mnt/a; move it: the daemon must not depend on what it serves"
        );
        let text =
            format!("[api]\nlisten = '127.0.0.1:0'\nmetrics_listen = '127.0.0.1:0'\nhosts = ['A.example', 'b']\n{ONE}");
        assert_eq!(loaded(&text, &[], &[]).unwrap().settings.api.hosts, ["a.example", "b"]);
        let text = format!("[api]\nhosts = 'a'\n{ONE}");
        let wrong = loaded(&text, &[], &[]).unwrap_err();
        assert!(wrong.contains("api.hosts: has the wrong type: string; write them in brackets"), "{wrong}");
    }

    #[test]
    fn an_empty_variable_says_nothing() {
        let loaded = loaded(ONE, &[("LIGHTHOUSE_FUSE_BACKEND", ""), ("LIGHTHOUSE_PROJECT_PATH", "")], &[]).unwrap();
        assert_eq!(shown(&loaded, Some("default"), "mount.backend"), "\"auto\" from default");
    }

    #[test]
    fn one_wrong_variable_is_one_mistake() {
        let errors = loaded(TWO, &[("LIGHTHOUSE_FUSE_ALLOW_OTHER", "maybe")], &[]).unwrap_err();
        assert_eq!(
            errors,
            "LIGHTHOUSE_FUSE_ALLOW_OTHER: mount.allow_other: \"maybe\" is neither true nor false; use true or false"
        );
    }

    #[test]
    #[cfg(all(feature = "fuse2", feature = "fuse3"))]
    fn a_candidate_has_steps() {
        let rollout = |text: &str| loaded(&format!("{ONE}[mount.rollout]\ncandidate = 'fuse3'\n{text}"), &[], &[]);
        let default = rollout("").unwrap();
        let (mount, shown) = (&default.settings.mounts[0], shown(&default, Some("default"), "mount.rollout.steps"));
        assert_eq!((mount.stable(), &mount.rollout.steps), (Backend::Fuse2, &Some(Rollout::default_steps())));
        assert!(shown.starts_with("[{") && shown.ends_with("from default"), "{shown}");
        // What is shown is what is read.
        let steps =
            "steps = [{ shadow = true, for = '1m 30s' }, { weight = 0x0a, for = '1h' }, { weight = 100, for = '1s' }]";
        let own = rollout(steps).unwrap();
        let again = crate::config::steps::toml(&crate::config::steps::show(
            own.settings.mounts[0].rollout.steps.as_ref().unwrap(),
        ));
        let [again, own] = [rollout(&format!("steps = {again}")).unwrap(), own]
            .map(|loaded| loaded.settings.mounts[0].rollout.clone());
        assert_eq!(again, own);
        let fleet = rollout("fleet = { weight = 0 }").unwrap().settings.mounts[0].rollout.clone();
        assert_eq!((fleet.steps, fleet.fleet), (None, Some(0)));
        // As tables of their own, too.
        let tables = "[[mount.rollout.steps]]\nweight = 100\nfor = '1h'\n";
        assert_eq!(rollout(tables).unwrap().settings.mounts[0].rollout.steps.as_ref().map(Vec::len), Some(1));
    }

    #[test]
    fn the_example_has_every_key_and_its_default() {
        let plain = loaded(&crate::config::example(), &[], &[]).unwrap().settings;
        let active: String = crate::config::example()
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(key) if !key.starts_with(' ') => format!("{key}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let active = loaded(&active, &[], &[]).unwrap();
        let unsaid: Vec<_> = active.values.iter().filter(|shown| shown.origin == Origin::Default).collect();
        // Those exclude others, or are not of this build; they are talked about.
        let both = Backend::ALL.into_iter().all(Backend::is_built_in);
        let unsaid: Vec<_> = unsaid.iter().map(|shown| shown.key.as_str()).collect();
        let talked_about = [
            "mount.shadow_mountpoint",
            "mount.rollout.candidate",
            "mount.rollout.steps",
            "mount.rollout.shadow_sample",
            "mount.rollout.shadow_always",
            "mount.rollout.fleet.weight",
        ];
        assert_eq!(unsaid, &talked_about[if both { 5 } else { 0 }..]);
        let mut settings = active.settings;
        // The example's own; there is no default.
        assert_eq!(settings.daemon.socket_group.take().as_deref(), Some("lighthouse"));
        assert_eq!(settings.daemon.machine_id.take().as_deref(), Some("node-17"));
        assert!(std::mem::take(&mut settings.mounts[0].guard.prometheus).question().is_some());
        let rollout = std::mem::take(&mut settings.mounts[0].rollout);
        assert_eq!(rollout.steps, both.then(Rollout::default_steps));
        let shadow = settings.mounts[0].shadow_mountpoint.take();
        assert_eq!(shadow.is_some(), both);
        assert_eq!(settings.api.token_file.take().as_deref(), Some(Path::new("/run/secrets/lighthouse")));
        settings.daemon.socket.clone_from(&plain.daemon.socket);
        settings.daemon.state_dir.clone_from(&plain.daemon.state_dir);
        assert_eq!(settings, plain);
        assert_eq!(plain.mounts, [Mount::new("projects", "/srv/projects", "/mnt/projects")]);
    }

    #[test]
    fn every_key_of_the_file_can_be_asked_for_by_flags() {
        for key in crate::config::keys::names() {
            assert!(find(&key).is_some(), "{key}");
        }
        assert!(check_flag("mount.backend", "fuse4").is_err() && check_flag("mount.backends", "fuse2").is_err());
    }

    /// Text that is nearly a configuration.
    fn nearly() -> impl Strategy<Value = String> {
        let names = crate::config::keys::names().collect::<Vec<_>>();
        let key = proptest::sample::select(names).prop_map(|key| key.rsplit('.').next().unwrap_or("").to_owned());
        let value = prop_oneof![
            Just("\"1MiB\"".to_owned()),
            Just("true".to_owned()),
            Just("\"/a/../b\"".to_owned()),
            "-?[0-9]{1,25}",
            "\"[^\"\\\\\n]{0,9}\"",
            "[\\[{]{0,3}\\PC{0,6}",
        ];
        let header = proptest::sample::select(vec![
            "[daemon]",
            "[api]",
            "[[mount]]",
            "[mount.io]",
            "[mount.cache]",
            "[mount.deadlines]",
            "[mount.rollout]",
            "[[mount.rollout.steps]]",
            "[mount]",
            "[mount",
            "mount = [1]",
        ]);
        let line = prop_oneof![
            header.prop_map(str::to_owned),
            (key, value).prop_map(|(key, value)| format!("{key} = {value}")),
            "\\PC{0,12}",
        ];
        proptest::collection::vec(line, 0..24).prop_map(|lines| lines.join("\n"))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_text_is_too_much(text in prop_oneof![nearly(), any::<String>()]) {
            if let Err(errors) = loaded(&text, &[], &[]) {
                prop_assert!(!errors.is_empty());
            }
        }

        #[test]
        fn no_variable_is_too_much(value in any::<String>()) {
            for variable in ["LIGHTHOUSE_FUSE_DEBUG", "LIGHTHOUSE_FUSE_MAX_WRITE", "LIGHTHOUSE_MOUNT_POINT"] {
                let _ = loaded(ONE, &[(variable, &value)], &[]);
            }
        }
    }
}
