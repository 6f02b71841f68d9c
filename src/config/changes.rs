//! What a new configuration changes, and when each change is heeded.

use serde_json::Value;

use super::keys::{API, DAEMON, Effect, Key, MOUNT};
use super::{Mount, Settings};

/// One value that is another now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// The mount that it is about, if it is about one.
    pub mount: Option<String>,
    /// Full name of the key, such as `mount.io.max_write`.
    pub key: String,
    /// What it was; null if there was none.
    pub from: Value,
    /// What it is.
    pub to: Value,
    /// When it is heeded.
    pub effect: Effect,
}

/// Everything that is different.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Mounts whose names are new; they can be served at once.
    pub added: Vec<Mount>,
    /// Mounts whose names are gone; they can be unmounted at once.
    pub removed: Vec<Mount>,
    /// Values of the daemon, and of mounts that stay.
    pub values: Vec<Change>,
}

impl Changes {
    /// Whether nothing is different.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Compares two configurations. Mounts are the same if their names are.
#[must_use]
pub fn changes(old: &Settings, new: &Settings) -> Changes {
    let named = |mounts: &[Mount], name: &str| mounts.iter().any(|mount| mount.name == name);
    let without = |mounts: &[Mount], those: &[Mount]| -> Vec<_> {
        mounts.iter().filter(|mount| !named(those, &mount.name)).cloned().collect()
    };
    let mut values = compare("daemon", None, DAEMON, &old.daemon, &new.daemon);
    values.extend(compare("api", None, API, &old.api, &new.api));
    for after in &new.mounts {
        if let Some(before) = old.mounts.iter().find(|mount| mount.name == after.name) {
            values.extend(compare("mount", Some(&after.name), MOUNT, before, after));
        }
    }
    Changes { added: without(&new.mounts, &old.mounts), removed: without(&old.mounts, &new.mounts), values }
}

fn compare<T: Clone>(table: &str, mount: Option<&str>, keys: &[Key<T>], old: &T, new: &T) -> Vec<Change> {
    let mut changes = Vec::new();
    for key in keys {
        let (from, to) = (key.kind.show(old), key.kind.show(new));
        if from != to {
            let (mount, key, effect) = (mount.map(str::to_owned), format!("{table}.{}", key.name), key.effect);
            changes.push(Change { mount, key, from, to, effect });
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Api, Daemon};
    use std::time::Duration;

    fn settings() -> Settings {
        let mounts = ["a", "b"].map(|name| Mount::new(name, format!("/srv/{name}"), format!("/mnt/{name}")));
        Settings { daemon: Daemon::new("/run/control.sock"), api: Api::default(), mounts: mounts.into() }
    }

    #[test]
    fn what_is_the_same_is_no_change() {
        let mut turned = settings();
        turned.mounts.reverse();
        assert!(changes(&settings(), &turned).is_empty());
    }

    #[test]
    fn each_change_says_when_it_is_heeded() {
        let mut new = settings();
        new.daemon.log_level = "debug".into();
        new.daemon.socket = "/tmp/control.sock".into();
        new.api.listen = None;
        new.mounts[1].deadlines.drain = Duration::from_secs(3);
        new.mounts[1].io.threads = 2;
        let changes = changes(&settings(), &new);
        let said: Vec<_> = changes
            .values
            .iter()
            .map(|change| {
                format!(
                    "{} {}: {} to {}, {}",
                    change.mount.as_deref().unwrap_or("-"),
                    change.key,
                    change.from,
                    change.to,
                    change.effect.name()
                )
            })
            .collect();
        assert_eq!(
            said,
            [
                r#"- daemon.socket: "/run/control.sock" to "/tmp/control.sock", with the next start of the daemon"#,
                r#"- daemon.log_level: "info" to "debug", live"#,
                r#"- api.listen: "127.0.0.1:8765" to "", live"#,
                "b mount.io.threads: 16 to 2, with the next mount",
                r#"b mount.deadlines.drain: "2s" to "3s", live"#,
            ]
        );
        assert_eq!((changes.added, changes.removed), (vec![], vec![]));
    }

    #[test]
    fn mounts_come_and_go_by_name() {
        let mut new = settings();
        new.mounts[0].name = "c".into();
        let changes = changes(&settings(), &new);
        assert_eq!(changes.added, [new.mounts[0].clone()]);
        assert_eq!(changes.removed, [settings().mounts[0].clone()]);
        assert_eq!(changes.values, []);
    }
}
