//! What people read about the configuration, made from the table of keys: the example and the reference.

use std::fmt::Write;

use serde_json::Value;

use super::keys::{API, DAEMON, Key, LATER, MOUNT};
use super::value::Kind;
use super::{Api, Backend, Daemon, Mount, Number, Prometheus, Rollout, environment, steps};

/// The service's; an ordinary user's is another, as the key's description says.
const SOCKET: &str = "/run/lighthouse-fs/control.sock";
const STATE: &str = "/var/lib/lighthouse-fs";
/// Errors of the candidate on all machines.
const QUERY: &str = r#"sum(rate(lighthouse_fuse_operations_total{backend="fuse3",status="backend_error"}[5m])) / sum(rate(lighthouse_fuse_operations_total{backend="fuse3"}[5m]))"#;
/// Columns of a line of the example.
const WIDTH: usize = 100;

/// A configuration file with every key, its description and its default. It passes the checks, and so it does with every
/// key uncommented.
#[must_use]
pub fn example() -> String {
    let daemon = Daemon { socket_group: Some("lighthouse".into()), machine_id: Some("node-17".into()), ..service() };
    let mut mount = Mount::new("projects", "/srv/projects", "/mnt/projects");
    mount.guard.prometheus =
        Prometheus { url: Some("http://prometheus:9090".into()), query: Some(QUERY.into()), above: Number::new(0.01) };
    mount.rollout = Rollout {
        candidate: Some(Backend::Fuse3),
        steps: Some(Rollout::default_steps()),
        fleet: Some(10),
        ..Rollout::default()
    };
    mount.shadow_mountpoint = Some("/mnt/projects-shadow".into());
    let mut text = String::from(
        "# Configuration of Lighthouse FS. Keys that begin with `#` show their default, or an example\n\
         # where there is none. `lighthouse-fs check-config FILE` checks a file like this one, and\n\
         # docs/reference/configuration.md says more.\n\
         \n[daemon]\n",
    );
    example_of(&mut text, "daemon", DAEMON, &service(), &daemon);
    text += "\n[api]\n";
    let api = Api { token_file: Some("/run/secrets/lighthouse".into()), ..Api::default() };
    example_of(&mut text, "api", API, &Api::default(), &api);
    text += "\n# One such table, with those below it, for each mount.\n[[mount]]\n";
    example_of(&mut text, "mount", MOUNT, &unset(), &mount);
    text
}

fn example_of<T: Clone>(text: &mut String, table: &str, keys: &[Key<T>], default: &T, sample: &T) {
    let mut subtable = "";
    for key in keys {
        let (own, name) = key.name.split_once('.').unwrap_or(("", key.name));
        if own != subtable {
            subtable = own;
            *text += &format!("\n[{table}.{subtable}]\n");
        }
        let (default, sample) = (key.kind.show(default), key.kind.show(sample));
        wrapped(text, key.about);
        let is_plain = matches!(
            key.kind,
            Kind::Path(_) | Kind::OptionalPath(_) | Kind::Place(_) | Kind::Group(_) | Kind::Flag(_) | Kind::Steps(_)
        );
        if !is_plain {
            wrapped(text, &format!("May be: {}.", key.kind.expected()));
        }
        if default.is_null() {
            wrapped(text, "Default: none.");
        } else if default != sample && default != "" {
            wrapped(text, &format!("Default: {default}."));
        }
        // What each mount says for itself is said; the rest may be left out.
        let mark = match key.name {
            name if cannot_stand_beside_the_rest(name) => "# ",
            "shadow_mountpoint" => "#",
            _ if default == sample || default.is_null() => "#",
            _ => "",
        };
        // A list has a line for each element, without an indent: behind the mark that would make it a remark.
        let lines = match &sample {
            Value::Array(elements) => {
                let elements = elements.iter().map(|element| format!("{},", steps::toml(element)));
                std::iter::once(format!("{name} = [")).chain(elements).chain(["]".into()]).collect()
            }
            plain => vec![format!("{name} = {}", steps::toml(plain))],
        };
        for line in lines {
            *text += &format!("{mark}{line}\n");
        }
    }
}

/// What would be wrong in an example that has every key, and so is only talked about.
fn cannot_stand_beside_the_rest(name: &str) -> bool {
    let has_both = Backend::ALL.into_iter().all(Backend::is_built_in);
    let needs_both = name.starts_with("rollout.") || name == "shadow_mountpoint";
    name == "rollout.fleet.weight" || (needs_both && !has_both)
}

fn service() -> Daemon {
    Daemon { state_dir: STATE.into(), ..Daemon::new(SOCKET) }
}

/// Adds a comment.
fn wrapped(text: &mut String, comment: &str) {
    let mut line = String::from("#");
    for word in comment.split(' ') {
        if line.len() + 1 + word.len() > WIDTH {
            *text += &line;
            *text += "\n";
            line = "#".into();
        }
        line += " ";
        line += word;
    }
    *text += &line;
    *text += "\n";
}

/// docs/reference/configuration.md.
#[must_use]
pub fn reference() -> String {
    let mut text = String::from(include_str!("reference.md"));
    text += "\n## `[daemon]`\n\n";
    reference_of(&mut text, DAEMON, &service());
    text += "\n## `[api]`\n\n";
    reference_of(&mut text, API, &Api::default());
    text += "\n## `[[mount]]`\n\nOne for each mount. `io`, `cache`, `deadlines`, `rollout` and `guard` are tables below it: `[mount.io]`.\n\n";
    reference_of(&mut text, MOUNT, &unset());
    text += "\n## Environment\n\n| variable | sets |\n|---|---|\n";
    for (table, name, variable) in variables() {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| `{variable}` | `{table}.{name}` |");
    }
    let _ = writeln!(text, "| `{}` | `daemon.log_level` to `debug`, if `true` | ", environment::DEBUG);
    let _ = writeln!(text, "| `{}` | the address of each listener that is on; its port stays |", environment::ADDRESS);
    text += "\n## Not supported by this version\n\n";
    for key in LATER {
        let _ = writeln!(text, "* `{key}`");
    }
    text
}

fn variables() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    let daemon = DAEMON.iter().filter_map(|key| Some(("daemon", key.name, key.variable?)));
    let api = API.iter().filter_map(|key| Some(("api", key.name, key.variable?)));
    daemon.chain(api).chain(MOUNT.iter().filter_map(|key| Some(("mount", key.name, key.variable?))))
}

fn reference_of<T: Clone>(text: &mut String, keys: &[Key<T>], default: &T) {
    *text += "| key | default | may be | what it is for | flag of `serve` | a change is heeded |\n|---|---|---|---|---|---|\n";
    for key in keys {
        let default = match key.kind.show(default) {
            Value::Null => "none".into(),
            Value::String(text) if text.is_empty() => "must be given".into(),
            value => format!("`{value}`"),
        };
        let flag = key.flag.map_or_else(String::new, |flag| format!("`{flag}`"));
        let _ = writeln!(
            text,
            "| `{}` | {default} | {} | {} | {flag} | {} |",
            key.name,
            key.kind.expected(),
            key.about,
            key.effect.name()
        );
    }
}

fn unset() -> Mount {
    Mount::new("default", "", "")
}
