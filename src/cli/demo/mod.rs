//! `demo`: the whole story on a temporary directory. A daemon serves it, programs work in it and check every byte, and all
//! the time the FUSE stack underneath is changed; then a rollout in fast motion, whose candidate becomes slow, so that the
//! guard rolls it back.
//!
//! This process never touches the mount, so that it can end whatever happens there.

mod outcome;
mod rehearsal;
mod stage;

use std::env;
use std::future::Future;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use super::{ask, exit, fail, say, say_json};
use crate::config::Backend;
use outcome::{Acts, Outcome};
use stage::Stage;

const EXAMPLES: &str = "Examples:
  lighthouse-fs demo
  lighthouse-fs demo --seconds 60 --switch-every 10ms
  lighthouse-fs demo --json | jq .pause_ms

Exit codes: 0 if no operation failed, no answer was wrong, every switch succeeded and the slow candidate was rolled back,
else 1.";

/// See programs work on while the FUSE stack underneath them changes, on a temporary directory
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct DemoArgs {
    /// How long the stack is swapped, in seconds; the rollout after it takes some ten more
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    /// Time from one change of the stack to the next
    #[arg(long, value_name = "DURATION", default_value = "50ms", value_parser = humantime::parse_duration)]
    switch_every: Duration,
}

/// Shows it, and says how it went.
#[must_use]
pub fn run(args: &DemoArgs) -> ExitCode {
    let &DemoArgs { seconds, json, switch_every } = args;
    if let Some(missing) = Backend::ALL.into_iter().find(|backend| !backend.is_built_in()) {
        let why = format_args!(
            "this build has no {missing}, and there is nothing to show with one backend: build with features fuse2 and fuse3, as is the default"
        );
        return fail(exit::FAILED, why);
    }
    ask(async {
        let outcome = match show(Duration::from_secs(seconds.into()), switch_every).await {
            Ok(outcome) => outcome,
            Err(why) => return fail(exit::FAILED, why),
        };
        let said = if json { say_json(&outcome.report()) } else { say(outcome.text()) };
        if outcome.is_clean() { said } else { ExitCode::from(exit::FAILED) }
    })
}

/// Sets the stage, plays, and clears the stage again, however the play went.
async fn show(length: Duration, switch_every: Duration) -> Result<Outcome, String> {
    // First of all: from here on a signal finds somebody who clears up.
    let interrupted = interruption().map_err(|error| format!("signals cannot be received: {error}"))?;
    let program = env::current_exe().map_err(|error| format!("this program cannot be found again: {error}"))?;
    let mut stage = Stage::set(program).map_err(|error| format!("no temporary directory can be made: {error}"))?;
    let mut acts = Acts::default();
    let played = tokio::select! {
        played = play(&mut stage, length, switch_every, &mut acts) => played,
        name = interrupted => Err(format!("interrupted by {name}")),
    };
    let cleared = stage.clear().await;
    let mut problems: Vec<_> = played.err().into_iter().collect();
    problems.extend(cleared.problems);
    if problems.is_empty() {
        return Ok(Outcome { tally: cleared.tally, acts, backends: cleared.backends });
    }
    // What the programs saw may be the reason.
    problems.extend(cleared.tally.failures.iter().map(ToString::to_string));
    problems.extend(cleared.tally.wrong.iter().map(ToString::to_string));
    Err(problems.join("\n"))
}

/// Completes when somebody wants this process to end.
fn interruption() -> io::Result<impl Future<Output = &'static str>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
            _ = hang_up.recv() => "SIGHUP",
        }
    })
}

/// Programs work, the backend changes to and fro, and then the other one is rolled out, and back.
async fn play(stage: &mut Stage, length: Duration, switch_every: Duration, acts: &mut Acts) -> Result<(), String> {
    let mut active = stage.serve().await?;
    stage.load()?;
    let mut progress = Progress { shown: io::stderr().is_terminal() };
    let mut ticks = interval(switch_every.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let begin = Instant::now();
    let end = begin + length;
    while Instant::now() < end && timeout_at(end, ticks.tick()).await.is_ok() {
        match stage.switch(active.other()).await {
            Ok(answer) => {
                active = answer.to;
                acts.switches.done.push(answer);
            }
            Err(error) => {
                stage.check_alive()?;
                acts.switches.failed.push(error.to_string());
            }
        }
        let (now, all, done) = (begin.elapsed().as_secs(), length.as_secs(), acts.switches.done.len());
        progress.show(&format!("{now} s of {all} s: {done} switches, served by {active}"));
    }
    let stable = stage.settle().await?;
    progress.show(&format!("{} is rolled out in fast motion, and becomes slow", stable.other()));
    let (rollback, timeline) = rehearsal::play(stage, stable).await.inspect_err(|_| progress.show(""))?;
    acts.rollback = Some(rollback);
    acts.timeline = timeline;
    Ok(())
}

/// A line on the terminal that is written over.
struct Progress {
    shown: bool,
}

impl Progress {
    fn show(&mut self, text: &str) {
        // A terminal that has gone needs no more lines.
        self.shown = self.shown && write!(io::stderr(), "\r\x1b[K{text}").is_ok();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.show("");
    }
}
