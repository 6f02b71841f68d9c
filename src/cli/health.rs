//! `health`: an exit code for scripts, supervisors and containers.

use std::process::ExitCode;

use super::{Global, ask, daemons, exit, fail_asking, printable, say, say_json};
use crate::api::Client;
use crate::api::model::{Health, HealthAnswer};

const EXAMPLES: &str = "Examples:
  lighthouse-fs health
  lighthouse-fs health --mount projects --json | jq -r .health
  HEALTHCHECK CMD [\"lighthouse-fs\", \"health\", \"--probe\"]

The daemon's prober goes through each mount once a second; who asks here does not, and cannot hang on one.

Exit codes: 0 healthy, 1 unhealthy or unknown mount, 2 degraded (with --probe: 0), 3 no daemon answers on the socket.";

/// Say by the exit code whether the mounts answer
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Only this mount, by its name or mount point
    #[arg(long, value_name = "NAME")]
    mount: Option<String>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    /// For containers: exit 0 also when degraded, since a restart would not help
    #[arg(long)]
    probe: bool,
}

/// Asks the daemon.
pub fn run(args: &Args, global: &Global) -> ExitCode {
    ask(async {
        let (socket, mount) = match &args.mount {
            Some(wanted) => match daemons::find(wanted, global).await {
                Ok((socket, mount)) => (socket, Some(mount.name)),
                Err(code) => return code,
            },
            None => (global.socket(), None),
        };
        let answer = match (Client::new(&socket).health().await, &mount) {
            (Err(error), _) => return fail_asking(&error),
            (Ok(answer), None) => answer,
            (Ok(answer), Some(name)) => match only(name, &answer) {
                Some(answer) => answer,
                // Just gone.
                None => return daemons::unknown(name),
            },
        };
        let said = if args.json { say_json(&answer) } else { say(text(&answer)) };
        if said == ExitCode::SUCCESS { code(answer.health, args.probe) } else { said }
    })
}

fn code(health: Health, probe: bool) -> ExitCode {
    match health {
        Health::Healthy => ExitCode::SUCCESS,
        Health::Degraded if probe => ExitCode::SUCCESS,
        Health::Degraded => ExitCode::from(exit::DEGRADED),
        Health::Unhealthy => ExitCode::from(exit::FAILED),
    }
}

/// What is said of one mount.
fn only(name: &str, answer: &HealthAnswer) -> Option<HealthAnswer> {
    let health = *answer.mounts.get(name)?;
    let reasons = reasons(name, answer).map(|why| format!("{name}: {why}")).collect();
    Some(HealthAnswer { schema: answer.schema, health, reasons, mounts: [(name.to_owned(), health)].into() })
}

/// Why a mount is not healthy; names have no colon.
fn reasons<'a>(name: &'a str, answer: &'a HealthAnswer) -> impl Iterator<Item = &'a str> {
    answer.reasons.iter().filter_map(move |why| why.strip_prefix(name)?.strip_prefix(": "))
}

fn text(answer: &HealthAnswer) -> String {
    let line = |(name, health): (&String, &Health)| {
        let reasons: Vec<_> = reasons(name, answer).collect();
        let why = if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join("; ")) };
        printable(format_args!("{name} is {}{why}", health.name()))
    };
    let is_of_mount = |why: &str| why.split_once(": ").is_some_and(|(name, _)| answer.mounts.contains_key(name));
    let of_daemon = answer.reasons.iter().filter(|why| !is_of_mount(why));
    let of_daemon = of_daemon.map(|why| printable(format_args!("the daemon is degraded: {why}")));
    let lines: Vec<_> = answer.mounts.iter().map(line).chain(of_daemon).collect();
    if lines.is_empty() { "nothing is mounted".into() } else { lines.join("\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> HealthAnswer {
        HealthAnswer {
            schema: 1,
            health: Health::Unhealthy,
            reasons: vec!["a: slow".into(), "ab: gone".into(), "a: late".into()],
            mounts: [("a".into(), Health::Degraded), ("ab".into(), Health::Unhealthy), ("c".into(), Health::Healthy)]
                .into(),
        }
    }

    #[test]
    fn each_mount_has_a_line() {
        assert_eq!(text(&answer()), "a is degraded: slow; late\nab is unhealthy: gone\nc is healthy");
    }

    #[test]
    fn the_daemon_has_lines_of_its_own() {
        let mut answer = only("c", &answer()).unwrap();
        assert_eq!(text(&answer), "c is healthy");
        answer.reasons.push("the api listener cannot use 127.0.0.1:1: taken".into());
        let expected = "c is healthy\nthe daemon is degraded: the api listener cannot use 127.0.0.1:1: taken";
        assert_eq!(text(&answer), expected);
    }

    #[test]
    fn one_mount_alone() {
        let one = only("a", &answer()).unwrap();
        assert_eq!((one.health, one.mounts.len()), (Health::Degraded, 1));
        assert_eq!(one.reasons, ["a: slow", "a: late"]);
        assert_eq!(only("b", &answer()), None);
    }
}
