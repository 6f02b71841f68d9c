//! `rollout`, `rollback`, `unpin`: who is to serve, and how much of it.

use std::process::ExitCode;

use serde::Serialize;

use super::{Global, ask, daemons, fail_asking, printable, say, say_json};
use crate::api::model::{
    LONGEST_REASON, MountStatus, PinStatus, PromoteRequest, RollbackRequest, RolloutAnswer, RolloutStatus,
};
use crate::api::{Client, ClientError};

const EXAMPLES: &str = "Examples:
  lighthouse-fs rollout start projects
  lighthouse-fs rollout status projects
  lighthouse-fs rollout promote projects

The steps are those of [mount.rollout] in the configuration. A rollout goes on by itself when a step's time is over and
the guard has seen enough of the candidate, and outlives restarts of the daemon. A rule of the guard that is broken ends it,
and pins the mount to its stable backend; so does `rollback`. `status MOUNT` shows the rules.";

const ROLLBACK_EXAMPLES: &str = "Examples:
  lighthouse-fs rollback projects --reason 'users report stale listings'

The stable backend serves alone, and nothing else until `lighthouse-fs unpin`, also after restarts.";

const UNPIN_EXAMPLES: &str = "Examples:
  lighthouse-fs unpin projects";

/// Give the candidate its share of the operations, step by step
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Begin with the first step
    #[command(after_help = "Examples:\n  lighthouse-fs rollout start projects")]
    Start(Of),
    /// Show how far it is
    #[command(after_help = "Examples:\n  lighthouse-fs rollout status projects")]
    Status(Of),
    /// Hold the step: its weight stays, its time does not run
    #[command(after_help = "Examples:\n  lighthouse-fs rollout pause projects")]
    Pause(Of),
    /// Let it go on
    #[command(after_help = "Examples:\n  lighthouse-fs rollout resume projects")]
    Resume(Of),
    /// Go to the next step at once
    #[command(after_help = "Examples:\n  lighthouse-fs rollout promote projects")]
    Promote(Of),
    /// Go back to the stable backend; no rollout runs any more
    #[command(after_help = "Examples:\n  lighthouse-fs rollout abort projects")]
    Abort(Of),
}

#[derive(Debug, clap::Args)]
struct Of {
    /// Name of the mount, or its mount point
    mount: String,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Go back to the stable backend, and stay there
#[derive(Debug, clap::Args)]
#[command(after_help = ROLLBACK_EXAMPLES)]
pub struct RollbackArgs {
    #[command(flatten)]
    of: Of,
    /// Why, for status, log and whoever comes next
    #[arg(long)]
    reason: Option<String>,
}

/// Lift the pin that a rollback has left
#[derive(Debug, clap::Args)]
#[command(after_help = UNPIN_EXAMPLES)]
pub struct UnpinArgs {
    #[command(flatten)]
    of: Of,
}

/// Asks the daemon.
pub fn run(args: &Args, global: &Global) -> ExitCode {
    match &args.action {
        Action::Start(of) => order(of, global, "rollout/start", |_| None::<()>),
        Action::Status(of) => status(of, global),
        Action::Pause(of) => order(of, global, "rollout/pause", |_| None::<()>),
        Action::Resume(of) => order(of, global, "rollout/resume", |_| None::<()>),
        // The step that was seen, so that two who promote at once do not skip one.
        Action::Promote(of) => order(of, global, "rollout/promote", |mount| {
            Some(PromoteRequest { from: mount.rollout.as_ref().and_then(|rollout| rollout.step) })
        }),
        Action::Abort(of) => order(of, global, "rollout/abort", |_| None::<()>),
    }
}

/// Asks the daemon for a rollback.
pub fn rollback(args: &RollbackArgs, global: &Global) -> ExitCode {
    let reason = args.reason.as_deref().map(fitting);
    order(&args.of, global, "rollback", |_| Some(RollbackRequest { reason: reason.clone() }))
}

/// The reason, as far as the daemon takes it: an emergency is no moment to refuse one that is too long.
fn fitting(reason: &str) -> String {
    let mut characters = reason.chars();
    let begin: String = characters.by_ref().take(LONGEST_REASON).collect();
    if characters.next().is_some() {
        tracing::warn!("the reason is cut to its first {LONGEST_REASON} characters");
    }
    begin
}

/// Asks the daemon to lift a pin.
pub fn unpin(args: &UnpinArgs, global: &Global) -> ExitCode {
    order(&args.of, global, "unpin", |_| None::<()>)
}

fn order<B: Serialize>(of: &Of, global: &Global, action: &str, body: impl Fn(&MountStatus) -> Option<B>) -> ExitCode {
    ask(async {
        let (socket, mount) = match daemons::find(&of.mount, global).await {
            Ok(found) => found,
            Err(code) => return code,
        };
        let answer: Result<RolloutAnswer, ClientError> =
            Client::new(&socket).ask_rollout(&mount.name, action, body(&mount)).await;
        match answer {
            Ok(answer) if of.json => say_json(&answer),
            Ok(answer) => say(told(&mount.name, &answer)),
            Err(error) => fail_asking(&error),
        }
    })
}

fn status(of: &Of, global: &Global) -> ExitCode {
    ask(async {
        match daemons::find(&of.mount, global).await {
            Ok((_, mount)) if of.json => say_json(&RolloutAnswer {
                schema: crate::api::model::SCHEMA,
                notes: Vec::new(),
                active: mount.active,
                rollout: mount.rollout,
                pinned: mount.pinned,
            }),
            Ok((_, mount)) => say(standing(&mount.name, &mount.active, mount.rollout.as_ref(), mount.pinned.as_ref())),
            Err(code) => code,
        }
    })
}

fn told(mount: &str, answer: &RolloutAnswer) -> String {
    let mut lines: Vec<_> = answer.notes.iter().map(printable).collect();
    lines.push(standing(mount, &answer.active, answer.rollout.as_ref(), answer.pinned.as_ref()));
    lines.join("\n")
}

fn standing(
    mount: &str,
    active: &std::collections::BTreeMap<crate::config::Backend, u8>,
    rollout: Option<&RolloutStatus>,
    pinned: Option<&PinStatus>,
) -> String {
    let shares: Vec<_> = active.iter().map(|(backend, percent)| format!("{backend} {percent} %")).collect();
    let serves = if shares.is_empty() { "nothing serves".into() } else { shares.join(", ") };
    let mut text = match rollout {
        None => format!("{mount}: no candidate is configured; {serves}"),
        Some(rollout) => format!("{mount}: {}{}; {serves}", rollout.state.replace('_', " "), step(rollout)),
    };
    if let Some(pin) = pinned {
        text += &format!(
            "\n{mount} is pinned{} since {}: {}",
            pin.backend.map_or_else(String::new, |backend| format!(" to {backend}")),
            humantime::format_rfc3339_seconds(pin.since),
            printable(&pin.reason)
        );
    } else if let Some(reason) = rollout.and_then(|rollout| rollout.reason.as_ref()) {
        text += &format!("\nreason: {}", printable(reason));
    }
    text
}

/// The step that is under way, if one is, to follow a rollout's state.
pub(super) fn step(rollout: &RolloutStatus) -> String {
    let Some(step) = rollout.step else { return String::new() };
    let time = match (rollout.elapsed_seconds, rollout.for_seconds) {
        (Some(elapsed), Some(needed)) => format!(", {elapsed:.0} of {needed:.0} s"),
        _ => String::new(),
    };
    format!(", step {step} of {} ({} %{time})", rollout.steps, rollout.weight)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Backend;

    #[test]
    fn a_reason_fits_whatever_it_is() {
        assert_eq!(fitting("stale listings"), "stale listings");
        assert_eq!(fitting(&"ü".repeat(5000)), "ü".repeat(LONGEST_REASON));
    }

    #[test]
    fn it_says_where_it_stands() {
        let rollout = RolloutStatus {
            state: "running".into(),
            step: Some(2),
            steps: 6,
            weight: 10,
            entered: None,
            elapsed_seconds: Some(61.4),
            for_seconds: Some(1800.),
            reason: None,
        };
        let active = [(Backend::Fuse2, 90), (Backend::Fuse3, 10)].into();
        assert_eq!(
            standing("projects", &active, Some(&rollout), None),
            "projects: running, step 2 of 6 (10 %, 61 of 1800 s); fuse2 90 %, fuse3 10 %"
        );
        let pin = PinStatus {
            reason: "stale\u{1b}listings".into(),
            since: std::time::SystemTime::UNIX_EPOCH,
            figures: serde_json::Value::Null,
            backend: Some(Backend::Fuse2),
        };
        let back = RolloutStatus { state: "rolled_back".into(), step: None, ..rollout };
        assert_eq!(
            standing("projects", &[(Backend::Fuse2, 100)].into(), Some(&back), Some(&pin)),
            "projects: rolled back; fuse2 100 %\nprojects is pinned to fuse2 since 1970-01-01T00:00:00Z: stale\u{fffd}listings"
        );
    }
}
