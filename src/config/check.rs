//! What values are to each other: names and mount points that meet, a source in its mount point, a socket in a mount. By
//! the text alone; links are resolved when a daemon starts.

use std::path::{Component, Path, PathBuf};

use super::load::{Draft, Section};
use super::problem::{Origin, Problem, Wrong};
use super::{Mount, Prometheus, Rollout, is_loopback};

/// A daemon has a process for each; and each is compared with each.
const MOST_MOUNTS: usize = 256;

/// Adds what is wrong to the draft's problems. `file` is the one that was read.
pub(super) fn check(draft: &mut Draft, file: Option<&Path>) {
    let mut problems = Vec::new();
    // One that was written in another way than as [[mount]] has been told of.
    if draft.mounts.is_empty() && !draft.problems.iter().any(|problem| problem.key.as_deref() == Some("mount")) {
        problems.push(no_mount(file));
    }
    listeners(draft, &mut problems);
    if let Some(mount) = draft.mounts.get(MOST_MOUNTS) {
        let message = format!("there are {} mounts", draft.mounts.len());
        let wrong = Wrong::new(message, format!("have up to {MOST_MOUNTS}, and another daemon for the rest"));
        draft.problems.push(Problem { origin: mount.origin.clone(), key: Some("mount".into()), wrong });
        return;
    }
    for mount in &draft.mounts {
        complete(mount, &mut problems);
        alone(mount, &mut problems);
        shadow_of(mount, &mut problems);
        let socket = (&draft.daemon.value.socket, draft.daemon.origin_of("socket"));
        outside(mount, "daemon.socket", "the control socket", socket, &mut problems);
        let state = (&draft.daemon.value.state_dir, draft.daemon.origin_of("state_dir"));
        outside(mount, "daemon.state_dir", "the state directory", state, &mut problems);
        if let Some(path) = &draft.api.value.token_file {
            let token = (path, draft.api.origin_of("token_file"));
            outside(mount, "api.token_file", "the token file", token, &mut problems);
        }
        rollout(mount, &mut problems);
        prometheus(mount, &mut problems);
        if let Some(path) = file {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.into());
            let origin = Origin::File { file: path.clone(), line: None };
            outside(mount, "", "this file", (&path, &origin), &mut problems);
        }
    }
    for (number, mount) in draft.mounts.iter().enumerate() {
        for other in &draft.mounts[..number] {
            pair(other, mount, &mut problems);
        }
        for other in draft.mounts.iter().enumerate().filter(|(other, _)| *other != number).map(|(_, other)| other) {
            independent(mount, other, &mut problems);
        }
    }
    draft.problems.append(&mut problems);
}

/// Whether they can all be bound, and none lets strangers in.
fn listeners(draft: &Draft, problems: &mut Vec<Problem>) {
    let api = &draft.api.value;
    let mut complain = |key: &str, origin: &Origin, wrong| {
        problems.push(Problem { origin: origin.clone(), key: Some(format!("api.{key}")), wrong });
    };
    if let Some(listen) = api.listen
        && !is_loopback(listen.ip())
        && api.token_file.is_none()
    {
        let message = format!("{listen} can be reached from other machines, and there is no token");
        let wrong = Wrong::new(message, "set token_file, or listen on 127.0.0.1");
        complain("listen", draft.api.origin_of("listen"), wrong);
    }
    let all = [("listen", api.listen), ("shadow_listen", api.shadow_listen), ("metrics_listen", api.metrics_listen)];
    for (number, (key, address)) in all.iter().enumerate() {
        let Some(address) = address.filter(|address| address.port() != 0) else { continue };
        for (other, taken) in &all[..number] {
            let meets = |taken: std::net::SocketAddr| {
                let is_any = taken.ip().is_unspecified() || address.ip().is_unspecified();
                taken.port() == address.port() && (is_any || taken.ip() == address.ip())
            };
            if taken.is_some_and(meets) {
                let origin = match draft.api.origin_of(key) {
                    Origin::Default => draft.api.origin_of(other),
                    said => said,
                };
                let wrong = Wrong::new(format!("port {} is taken by {other}", address.port()), "choose another one");
                complain(key, origin, wrong);
            }
        }
    }
}

fn no_mount(file: Option<&Path>) -> Problem {
    match file {
        Some(file) => Problem {
            origin: Origin::File { file: file.into(), line: None },
            key: Some("mount".into()),
            wrong: Wrong::new("there is no mount", "add [[mount]] with source and mountpoint"),
        },
        None => Problem {
            origin: Origin::Default,
            key: None,
            wrong: Wrong::new(
                "there is nothing to serve",
                "give --source and --mountpoint, or --config, or set LIGHTHOUSE_PROJECT_PATH and LIGHTHOUSE_MOUNT_POINT",
            ),
        },
    }
}

/// Whether both places are named, and rightly.
fn complete(mount: &Section<Mount>, problems: &mut Vec<Problem>) {
    for (key, path, flag, variable) in [
        ("source", &mount.value.source, "--source", "LIGHTHOUSE_PROJECT_PATH"),
        ("mountpoint", &mount.value.mountpoint, "--mountpoint", "LIGHTHOUSE_MOUNT_POINT"),
    ] {
        // What is empty though somebody spoke of it was wrong, and has been told.
        if path.as_os_str().is_empty() && *mount.origin_of(key) == Origin::Default {
            let remedy = match mount.origin {
                Origin::File { .. } => format!("add {key} = \"/…\""),
                _ => format!("give {flag}, or set {variable}"),
            };
            let wrong = Wrong::new("is missing", remedy);
            problems.push(Problem { origin: mount.origin.clone(), key: Some(format!("mount.{key}")), wrong });
        }
    }
}

fn alone(mount: &Section<Mount>, problems: &mut Vec<Problem>) {
    let (source, place) = (normalised(&mount.value.source), normalised(mount.value.place()));
    if meet(&source, &place) {
        let message = format!("{} and the source {} lie in each other", place.display(), source.display());
        complain(mount, "mountpoint", Wrong::new(message, "choose a mount point elsewhere"), problems);
    }
}

/// Whether the shadow mount has somebody to serve it, and a place beside source and mount point.
fn shadow_of(mount: &Section<Mount>, problems: &mut Vec<Problem>) {
    let Some(place) = &mount.value.shadow_mountpoint else { return };
    let mut complain = |message: String, remedy: &str| {
        complain(mount, "shadow_mountpoint", Wrong::new(message, remedy), problems);
    };
    if mount.value.rollout.candidate.is_none() && *mount.origin_of("rollout.candidate") == Origin::Default {
        complain(
            "there is no candidate to serve it".into(),
            "add candidate to [mount.rollout], or remove shadow_mountpoint",
        );
    }
    if place.starts_with("/dev/fd") {
        complain("a shadow mount is made, not handed in".into(), "name a directory");
    }
    let place = normalised(place);
    for (what, path) in [("source", &mount.value.source), ("mount point", &mount.value.place().to_path_buf())] {
        let path = normalised(path);
        if place == path {
            complain(format!("{} is the {what} too", place.display()), "choose a place of its own");
        } else if meet(&place, &path) {
            let message = format!("{} and the {what} {} lie in each other", place.display(), path.display());
            complain(message, "choose a place elsewhere");
        }
    }
}

/// Whether the candidate is another backend than the stable one, and its way is clear.
fn rollout(mount: &Section<Mount>, problems: &mut Vec<Problem>) {
    let Rollout { candidate, steps, fleet, .. } = &mount.value.rollout;
    let mut complain = |key: &str, message: &str, remedy: &str| {
        complain(mount, key, Wrong::new(message, remedy), problems);
    };
    match candidate {
        Some(candidate) if *candidate == mount.value.stable() => complain(
            "rollout.candidate",
            &format!("{candidate} is the stable backend too ({})", mount.origin_of("backend")),
            &format!("set backend = \"{}\", or remove [mount.rollout]", candidate.other()),
        ),
        Some(candidate) if !candidate.other().is_built_in() => complain(
            "rollout.candidate",
            &format!("this build has no {}, which is the stable backend then", candidate.other()),
            "use a build with both backends, or remove [mount.rollout]",
        ),
        Some(_) => {}
        // One that was wrong has been told of.
        None if *mount.origin_of("rollout.candidate") != Origin::Default => {}
        None if steps.is_some() => {
            complain("rollout.steps", "there is no candidate", "add candidate to [mount.rollout], or remove steps");
        }
        None if fleet.is_some() => {
            complain(
                "rollout.fleet.weight",
                "there is no candidate",
                "add candidate to [mount.rollout], or remove fleet",
            );
        }
        None => {}
    }
    if fleet.is_some() && *mount.origin_of("rollout.steps") != Origin::Default {
        complain(
            "rollout.steps",
            "the share of machines (fleet) takes the place of steps",
            "remove one of them: raise fleet = { weight = … } step by step, or let each machine go through steps",
        );
    }
}

/// Whether a question to Prometheus is whole.
fn prometheus(mount: &Section<Mount>, problems: &mut Vec<Problem>) {
    let Prometheus { url, query, above } = &mount.value.guard.prometheus;
    let all = [("url", url.is_some()), ("query", query.is_some()), ("above", above.is_some())]
        .map(|(name, is_there)| (name, format!("guard.prometheus.{name}"), is_there));
    let Some((_, given, _)) = all.iter().find(|(_, _, is_there)| *is_there) else { return };
    // One that was wrong has been told of.
    for (name, key, _) in all.iter().filter(|(_, key, is_there)| !is_there && *mount.origin_of(key) == Origin::Default)
    {
        let wrong = Wrong::new(format!("there is no {name} beside it"), "give url, query and above, or none of them");
        problems.push(Problem { origin: mount.origin_of(given).clone(), key: Some(format!("mount.{key}")), wrong });
    }
}

/// Whether something that the daemon leans on is outside the mount.
fn outside(
    mount: &Section<Mount>,
    key: &str,
    what: &str,
    (path, origin): (&PathBuf, &Origin),
    problems: &mut Vec<Problem>,
) {
    for (name, place) in places(mount) {
        if !normalised(path).starts_with(&place) {
            continue;
        }
        let message = format!("{what} {} lies in the mount point {}", path.display(), place.display());
        let wrong = Wrong::new(message, "move it: the daemon must not depend on what it serves");
        // The default was nobody's choice; the mount point was.
        let origin = if *origin == Origin::Default { mount.origin_of(name) } else { origin };
        let key = (!key.is_empty()).then(|| key.to_owned());
        problems.push(Problem { origin: origin.clone(), key, wrong });
    }
}

/// Whether two mounts can be told apart.
fn pair(first: &Section<Mount>, second: &Section<Mount>, problems: &mut Vec<Problem>) {
    if first.value.name == second.value.name {
        let message = format!("\"{}\" is the name of another mount too{}", first.value.name, begins(first));
        complain(second, "name", Wrong::new(message, "give each mount a name of its own"), problems);
    }
    for (key, other) in places(second) {
        for (_, one) in places(first).into_iter().filter(|(_, one)| meet(one, &other)) {
            let message = if one == other {
                format!("{} is the mount point of \"{}\" too", other.display(), first.value.name)
            } else {
                format!(
                    "{} and the mount point {} of \"{}\" lie in each other",
                    other.display(),
                    one.display(),
                    first.value.name
                )
            };
            complain(second, key, Wrong::new(message, "choose a mount point elsewhere"), problems);
        }
    }
}

/// Where it is mounted, and its shadow, each with its key; what is not named is left out.
fn places(mount: &Section<Mount>) -> Vec<(&'static str, PathBuf)> {
    let shadow = mount.value.shadow_mountpoint.as_deref().map(|place| ("shadow_mountpoint", place));
    let all = [("mountpoint", mount.value.place())].into_iter().chain(shadow);
    all.map(|(key, place)| (key, normalised(place))).filter(|(_, place)| !place.as_os_str().is_empty()).collect()
}

/// A source in another mount would be one thing or another by the order of starting, and hang when that mount does.
fn independent(mount: &Section<Mount>, other: &Section<Mount>, problems: &mut Vec<Problem>) {
    let source = normalised(&mount.value.source);
    for (_, place) in places(other).into_iter().filter(|(_, place)| source.starts_with(place)) {
        let message =
            format!("{} lies in the mount point {} of \"{}\"", source.display(), place.display(), other.value.name);
        let remedy =
            format!("serve from outside it; what \"{}\" shows there comes from its own source", other.value.name);
        complain(mount, "source", Wrong::new(message, remedy), problems);
    }
}

fn begins(mount: &Section<Mount>) -> String {
    match &mount.origin {
        Origin::File { line: Some(line), .. } => format!(", that of line {line}"),
        _ => String::new(),
    }
}

/// About a key, where it was said, or else where the mount begins.
fn complain(mount: &Section<Mount>, key: &str, wrong: Wrong, problems: &mut Vec<Problem>) {
    let origin = match mount.origin_of(key) {
        Origin::Default => &mount.origin,
        said => said,
    };
    problems.push(Problem { origin: origin.clone(), key: Some(format!("mount.{key}")), wrong });
}

/// Whether two paths are the same or one is in the other. What is not named meets nothing.
fn meet(one: &Path, other: &Path) -> bool {
    let named = !one.as_os_str().is_empty() && !other.as_os_str().is_empty();
    named && (one.starts_with(other) || other.starts_with(one))
}

/// Without `.` and `..`.
fn normalised(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    plain
}
