//! `load`: one worker of the load that demo and tests start; hidden, because it is of use to nobody else.

use std::io::{self, Read};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{absolute, exit, fail, say};
use crate::bench::load::{Kind, Task};

/// Work in a directory, check every byte, and report as JSON when standard input ends
#[derive(Debug, clap::Args)]
pub struct LoadArgs {
    /// How to work: metadata, small, large-direct, large-buffered, mapped, append or held
    #[arg(long)]
    kind: Kind,
    /// Where to make a directory for the work
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    dir: PathBuf,
    /// What content and choices follow from
    #[arg(long, value_name = "N")]
    seed: u64,
    /// Number of this worker among those in DIR
    #[arg(long, value_name = "N")]
    index: u32,
    /// End after so many seconds, should standard input not end before
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
}

/// Works until the end.
#[must_use]
pub fn run(args: LoadArgs) -> ExitCode {
    let LoadArgs { kind, dir, seed, index, seconds } = args;
    let end = match seconds.map(Duration::try_from_secs_f64).transpose() {
        Ok(limit) => limit.and_then(|limit| Instant::now().checked_add(limit)),
        Err(error) => return fail(exit::USAGE, format_args!("--seconds: {error}")),
    };
    let leash = match leash() {
        Ok(leash) => leash,
        Err(error) => return fail(exit::FAILED, format_args!("standard input cannot be watched: {error}")),
    };
    let ended = || leash.load(Ordering::Relaxed) || end.is_some_and(|end| Instant::now() >= end);
    let report = Task { kind, dir, seed, index }.run(ended);
    match serde_json::to_string(&report) {
        Ok(line) if report.tally.is_clean() => say(line),
        Ok(line) => {
            say(line);
            ExitCode::from(exit::FAILED)
        }
        Err(error) => fail(exit::FAILED, format_args!("the report cannot be put into JSON: {error}")),
    }
}

/// A flag that is set when standard input ends, as it does when the parent dies.
fn leash() -> io::Result<Arc<AtomicBool>> {
    let ended = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&ended);
    thread::Builder::new().name("leash".into()).spawn(move || {
        let mut ignored = [0; 64];
        // An input that cannot be read holds nobody either.
        while io::stdin().read(&mut ignored).is_ok_and(|read| read > 0) {}
        flag.store(true, Ordering::Relaxed);
    })?;
    Ok(ended)
}
