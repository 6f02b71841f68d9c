//! `status`: what is mounted, and how it is doing.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use comfy_table::Table;

use super::{Global, ask, daemons, exit, fail, fail_asking, printable, say, say_json};
use crate::api::model::{LastSwitch, MountStatus, ShadowStatus, Status};
use crate::config::Backend;
use crate::mirror::Example;

/// Between two looks.
const TURN: Duration = Duration::from_secs(2);

const EXAMPLES: &str = "Examples:
  lighthouse-fs status
  lighthouse-fs status projects
  lighthouse-fs status --json | jq '.mounts[].active'
  lighthouse-fs status --watch

Without --socket the daemons on the usual sockets are asked, as root those of other users too; with --json each gives a document of its own. With --watch there is a line for each
mount every two seconds, or with --json for each daemon, until Ctrl-C.";

/// Show mounts, active backends and health
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Only this mount, by its name or mount point, with its backends
    mount: Option<String>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    /// Go on, with a line for each mount every two seconds
    #[arg(long)]
    watch: bool,
}

/// Asks the daemons.
pub fn run(args: &Args, global: &Global) -> ExitCode {
    ask(async {
        match daemons::statuses(global).await.map(|statuses| only(args, statuses)) {
            Ok(Ok(_)) if args.watch => watch(args, global).await,
            Ok(Ok(statuses)) => show(args, &statuses),
            Ok(Err(unknown)) => unknown,
            Err(error) => fail_asking(&error),
        }
    })
}

/// Shows the mounts again and again. Daemons may come and go meanwhile.
async fn watch(args: &Args, global: &Global) -> ExitCode {
    let mut turns = tokio::time::interval(TURN);
    loop {
        turns.tick().await;
        let mut lines = Vec::new();
        match daemons::statuses(global).await.map(|statuses| only(args, statuses)) {
            Ok(Ok(statuses)) if args.json => {
                lines.extend(statuses.iter().filter_map(|status| serde_json::to_string(status).ok()));
            }
            Ok(Ok(statuses)) => lines.extend(statuses.iter().flat_map(|status| &status.mounts).map(line)),
            // The mount is gone for the time being, and that was said.
            Ok(Err(_)) => {}
            Err(error) => drop(fail_asking(&error)),
        }
        let mut stdout = io::stdout().lock();
        let told = lines.iter().try_for_each(|line| writeln!(stdout, "{line}")).and_then(|()| stdout.flush());
        match told {
            Ok(()) => {}
            // The reader has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
            Err(error) => return fail(exit::FAILED, format_args!("the answer cannot be written: {error}")),
        }
    }
}

/// A mount in one line, for people and for `grep`.
fn line(mount: &MountStatus) -> String {
    let weights: Vec<_> = mount.active.iter().map(|(backend, weight)| format!("{backend}={weight}%")).collect();
    let operations: u64 = mount.backends.iter().map(|backend| backend.operations).sum();
    let errors: u64 = mount.backends.iter().map(|backend| backend.errors).sum();
    let why = if mount.reasons.is_empty() { String::new() } else { format!(" ({})", mount.reasons.join("; ")) };
    printable(format_args!(
        "{} {} {}{why}, active {}, operations {operations}, errors {errors}, in flight {}",
        humantime::format_rfc3339_seconds(SystemTime::now()),
        mount.name,
        mount.health.name(),
        if weights.is_empty() { "none".into() } else { weights.join(" ") },
        mount.in_flight,
    ))
}

/// What was asked for; or else it has been said that there is no such mount.
fn only(args: &Args, mut statuses: Vec<Status>) -> Result<Vec<Status>, ExitCode> {
    if let Some(name) = &args.mount {
        for status in &mut statuses {
            status.mounts.retain(|mount| daemons::names(name, mount));
        }
        statuses.retain(|status| !status.mounts.is_empty());
        if statuses.is_empty() {
            return Err(daemons::unknown(name));
        }
    }
    Ok(statuses)
}

fn show(args: &Args, statuses: &[Status]) -> ExitCode {
    if args.json {
        return statuses.iter().map(say_json).find(|code| *code != ExitCode::SUCCESS).unwrap_or(ExitCode::SUCCESS);
    }
    let mounts: Vec<_> = statuses.iter().flat_map(|status| &status.mounts).collect();
    let mut text = overview(statuses).trim_fmt();
    for reason in statuses.iter().flat_map(|status| &status.daemon.reasons) {
        text += &format!("\nthe daemon is degraded: {}", printable(reason));
    }
    for mount in &mounts {
        for reason in &mount.reasons {
            text += &format!("\n{}: {}", printable(&mount.name), printable(reason));
        }
        if let Some(rollout) = mount.rollout.as_ref().filter(|rollout| rollout.step.is_some()) {
            text += &format!("\n{}: {}{}", printable(&mount.name), rollout.state, super::rollout::step(rollout));
            if let Some(reason) = &rollout.reason {
                text += &format!(": {}", printable(reason));
            }
        }
        // No fault, so not among the reasons; but healthy means less then.
        if let ("not probed", Some(why)) = (mount.probe.state.as_str(), &mount.probe.reason) {
            text += &format!("\n{}: not probed: {}", printable(&mount.name), printable(why));
        }
        if args.mount.is_some() {
            text += &format!("\n\n{}", details(mount).trim_fmt());
            if !mount.guard.is_empty() {
                text += &format!("\n\n{}", guard(mount).trim_fmt());
            }
            text += &mount.shadow.as_ref().map_or_else(String::new, shadow);
        }
    }
    say(text)
}

fn overview(statuses: &[Status]) -> Table {
    let mut head = vec!["MOUNT", "SOURCE", "AT", "ACTIVE", "HEALTH", "IN FLIGHT", "LAST SWITCH"];
    // To be named to other commands.
    let has_sockets = statuses.len() > 1;
    head.extend(has_sockets.then_some("SOCKET"));
    let mut table = plain(head);
    let mounts = statuses.iter().flat_map(|status| status.mounts.iter().map(move |mount| (&status.daemon, mount)));
    for (daemon, mount) in mounts {
        let socket = daemon.socket.as_ref().map(|socket| printable(socket.display())).unwrap_or_default();
        let mut row = vec![
            printable(&mount.name),
            printable(mount.source.display()),
            printable(mount.mountpoint.display()),
            active(mount),
            mount.health.name().into(),
            mount.in_flight.to_string(),
            mount.last_switch.as_ref().map_or_else(|| "never".into(), last_switch),
        ];
        row.extend(has_sockets.then_some(socket));
        table.add_row(row);
    }
    table
}

/// Who serves; of two that share the mount, how much.
fn active(mount: &MountStatus) -> String {
    let is_alone = mount.active.len() == 1;
    let share = |(backend, weight): (&Backend, &u8)| {
        if is_alone { backend.to_string() } else { format!("{backend} {weight} %") }
    };
    let shares: Vec<_> = mount.active.iter().map(share).collect();
    if shares.is_empty() { "none".into() } else { shares.join(", ") }
}

fn details(mount: &MountStatus) -> Table {
    let mut table = plain(["BACKEND", "STATE", "OPERATIONS", "ERRORS", "LOST", "P99", ""]);
    for backend in &mount.backends {
        table.add_row([
            backend.name.to_string(),
            printable(&backend.state),
            backend.operations.to_string(),
            backend.errors.to_string(),
            backend.lost.to_string(),
            backend.p99_ms.map_or_else(|| "-".into(), |bound| format!("{bound} ms")),
            match backend.name {
                name if name == mount.stable => "stable".into(),
                name if Some(name) == mount.candidate => "candidate".into(),
                _ => String::new(),
            },
        ]);
    }
    table
}

/// What the guard says, in the same words as a rollback would.
fn guard(mount: &MountStatus) -> Table {
    let mut table = plain(["RULE", "VERDICT", "SAMPLES", ""]);
    for rule in &mount.guard {
        let samples = rule.samples.to_string();
        table.add_row([printable(&rule.rule), printable(&rule.verdict), samples, printable(&rule.reason)]);
    }
    table
}

/// What the candidate does in its shadow mount.
fn shadow(shadow: &ShadowStatus) -> String {
    let ShadowStatus { mountpoint, backend, health, passes, compared, diverged, .. } = shadow;
    let mut text = format!(
        "\n\nshadow mount {} by {backend}: {}, passes {passes}, compared {compared}, diverged {diverged}",
        printable(mountpoint.display()),
        health.name()
    );
    if let Some(why) = &shadow.paused {
        text += &format!("\nnot comparing: {}", printable(why));
    }
    if !shadow.examples.is_empty() {
        let mut table = plain(["OPERATION", "PATH", "FIELD", "MOUNT", "SHADOW"]);
        for Example { operation, path, field, mount, shadow } in &shadow.examples {
            table.add_row([operation.name(), path, field, mount, shadow].map(printable));
        }
        text += &format!("\n\n{}", table.trim_fmt());
    }
    text
}

fn last_switch(last: &LastSwitch) -> String {
    let ago = last.at.elapsed().unwrap_or_default();
    let ago = humantime::format_duration(Duration::from_secs(ago.as_secs()));
    let LastSwitch { from, to, reason, pause_ms, .. } = last;
    format!("{from} to {to} {ago} ago ({}), pause {pause_ms:.2} ms", printable(reason))
}

/// A table without lines, for people and for `awk`.
pub(super) fn plain<'a>(head: impl IntoIterator<Item = &'a str>) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(head.into_iter().collect::<Vec<_>>());
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}
