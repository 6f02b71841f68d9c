//! Environment variables, which beat the file: the interface of containers.

use std::ffi::{OsStr, OsString};
use std::net::IpAddr;

use super::file::nearest;
use super::keys::{API, DAEMON, Key, MOUNT};
use super::load::{Draft, Section};
use super::problem::{Origin, Problem, Wrong, quoted};

/// All names begin so; without it, slips of the pen are told better.
const PREFIX: &str = "LIGHTHOUSE_";
/// Sets the log level to debug, unless a level is named elsewhere in the environment.
pub(super) const DEBUG: &str = "LIGHTHOUSE_FUSE_DEBUG";
/// The address of every listener that is on; the ports stay.
pub(super) const ADDRESS: &str = "LIGHTHOUSE_LISTEN_ADDRESS";
/// Variables that later versions heed.
const LATER: &[&str] = &["LIGHTHOUSE_FUSE_BENCHMARK"];
/// These make up a mount where there is no other.
const A_MOUNT: [&str; 2] = ["source", "mountpoint"];
/// Of these each mount has its own.
const OF_ONE_MOUNT: [&str; 3] = ["source", "mountpoint", "shadow_mountpoint"];

/// What a variable says. An empty one says nothing: that is how a composed file leaves one out.
fn said<'a>(environment: &'a [(OsString, OsString)], name: &str) -> Option<&'a OsStr> {
    let (_, value) = environment.iter().find(|(variable, _)| variable == name)?;
    (!value.is_empty()).then_some(value.as_os_str())
}

/// Whether it names a source or a mount point, and so a mount of its own where there is no other.
pub(super) fn has_mount(environment: &[(OsString, OsString)]) -> bool {
    let a_mount = MOUNT.iter().filter(|key| A_MOUNT.contains(&key.name));
    a_mount.filter_map(|key| key.variable).any(|variable| said(environment, variable).is_some())
}

/// Lays what the environment says over a draft.
pub(super) fn lay_over(draft: &mut Draft, environment: &[(OsString, OsString)]) {
    let said = |name: &str| said(environment, name);
    if let Some(value) = said(DEBUG) {
        debug(draft, value);
    }
    for key in DAEMON {
        if let Some((variable, value)) = key.variable.and_then(|variable| Some((variable, said(variable)?))) {
            let Draft { daemon, problems, .. } = draft;
            set("daemon", key, daemon, variable, value, problems);
        }
    }
    for key in API {
        if let Some((variable, value)) = key.variable.and_then(|variable| Some((variable, said(variable)?))) {
            let Draft { api, problems, .. } = draft;
            set("api", key, api, variable, value, problems);
        }
    }
    if let Some(value) = said(ADDRESS) {
        address(draft, value);
    }
    for key in MOUNT {
        let Some((variable, value)) = key.variable.and_then(|variable| Some((variable, said(variable)?))) else {
            continue;
        };
        let Draft { mounts, problems, .. } = draft;
        if mounts.len() > 1 && OF_ONE_MOUNT.contains(&key.name) {
            let message = format!("the file has {} mounts, and this would be said of each", mounts.len());
            problems.push(problem("mount", key.name, variable, Wrong::new(message, "unset it, or keep one mount")));
            continue;
        }
        let before = problems.len();
        for mount in mounts {
            // The same is wrong with each of them.
            problems.truncate(before);
            set("mount", key, mount, variable, value, problems);
        }
    }
    warn(draft, environment);
}

fn set<T>(
    table: &str,
    key: &Key<T>,
    section: &mut Section<T>,
    variable: &'static str,
    value: &OsStr,
    problems: &mut Vec<Problem>,
) {
    let result = match value.to_str() {
        Some(text) => key.kind.set(&mut section.value, text, ".".as_ref()),
        None => Err(Wrong::new(format!("{} is not UTF-8", quoted(&value.to_string_lossy())), "set it in UTF-8")),
    };
    section.heard(key.name, Origin::Environment { variable });
    if let Err(wrong) = result {
        problems.push(problem(table, key.name, variable, wrong));
    }
}

fn problem(table: &str, name: &str, variable: &'static str, wrong: Wrong) -> Problem {
    Problem { origin: Origin::Environment { variable }, key: Some(format!("{table}.{name}")), wrong }
}

fn address(draft: &mut Draft, value: &OsStr) {
    let Some(ip) = value.to_str().and_then(|text| text.parse::<IpAddr>().ok()) else {
        let message = format!("{} is no address", quoted(&value.to_string_lossy()));
        let wrong = Wrong::new(message, "use one such as 127.0.0.1, 0.0.0.0 or ::");
        return draft.problems.push(problem("api", "listen", ADDRESS, wrong));
    };
    let api = &mut draft.api.value;
    let listeners = [
        ("listen", &mut api.listen),
        ("shadow_listen", &mut api.shadow_listen),
        ("metrics_listen", &mut api.metrics_listen),
    ];
    let on = listeners.into_iter().filter_map(|(key, listener)| Some((key, listener.as_mut()?)));
    let moved: Vec<_> = on.map(|(key, listener)| (listener.set_ip(ip), key).1).collect();
    for key in moved {
        draft.api.heard(key, Origin::Environment { variable: ADDRESS });
    }
}

fn debug(draft: &mut Draft, value: &OsStr) {
    match value.to_str().and_then(super::value::flag) {
        Some(true) => {
            draft.daemon.value.log_level = "debug".into();
            draft.daemon.heard("log_level", Origin::Environment { variable: DEBUG });
        }
        Some(false) => {}
        None => {
            let message = format!("{} is neither true nor false", quoted(&value.to_string_lossy()));
            draft.problems.push(problem("daemon", "log_level", DEBUG, Wrong::new(message, "use true or false")));
        }
    }
}

/// Tells of variables that look as if they were meant for us and are not heeded. The prefix alone says little: other
/// programs have that name too.
fn warn(draft: &mut Draft, environment: &[(OsString, OsString)]) {
    let of_keys = DAEMON.iter().filter_map(|key| key.variable).chain(MOUNT.iter().filter_map(|key| key.variable));
    let of_keys = of_keys.chain(API.iter().filter_map(|key| key.variable));
    let known: Vec<_> = of_keys.chain([DEBUG, ADDRESS]).collect();
    for name in environment.iter().filter(|(_, value)| !value.is_empty()).filter_map(|(name, _)| name.to_str()) {
        let Some(own) = name.strip_prefix(PREFIX).filter(|_| !known.contains(&name)) else { continue };
        if LATER.contains(&name) {
            draft.warnings.push(format!("{name} is not supported by this version and has no effect"));
        } else if let Some(meant) = nearest(own, known.iter().copied(), |known| known.replacen(PREFIX, "", 1)) {
            draft.warnings.push(format!("{name} has no effect; did you mean {meant}?"));
        }
    }
}
