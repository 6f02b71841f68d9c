//! `shadow`: what comparing the backends has found.

use std::fmt::Write;
use std::process::ExitCode;

use comfy_table::{CellAlignment, Table};

use super::{Global, ask, daemons, fail_asking, printable, say, say_json};
use crate::api::Client;
use crate::api::divergence::{MountDivergence, MountDivergenceAnswer, Rate};
use crate::api::model::SCHEMA;
use crate::shadow::{Example, Shown};

const EXAMPLES: &str = "Examples:
  lighthouse-fs shadow report projects
  lighthouse-fs shadow report projects --json

While a rollout runs, a share of the calls (shadow_sample) is run a second time, beside the clients' requests, in sessions of
the stable backend and of the candidate, and what they answer is compared. What only reads is run; of what changes
something, it is only compared how it is decoded. docs/reference/divergence.md lists what may differ.";

/// What comparing the backends has found
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Show what was compared, what differed, and the first examples in full
    #[command(after_help = EXAMPLES)]
    Report(Of),
}

#[derive(Debug, clap::Args)]
struct Of {
    /// Name of the mount, or its mount point
    mount: String,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Asks the daemon.
pub fn run(args: &Args, global: &Global) -> ExitCode {
    let Action::Report(of) = &args.action;
    ask(async {
        let (socket, mount) = match daemons::find(&of.mount, global).await {
            Ok(found) => found,
            Err(code) => return code,
        };
        match Client::new(&socket).divergence(&mount.name).await {
            Ok(mount) if of.json => say_json(&MountDivergenceAnswer { schema: SCHEMA, mount }),
            Ok(mount) => say(report(&mount).trim_end()),
            Err(error) => fail_asking(&error),
        }
    })
}

fn report(mount: &MountDivergence) -> String {
    let mut text = match (mount.candidate, mount.reference, mount.sample) {
        (Some(candidate), Some(reference), Some(sample)) => {
            format!("{}: {candidate} is compared with {reference}, in {} of the calls\n", mount.name, percent(sample))
        }
        _ => format!("{}: no calls are compared now\n", mount.name),
    };
    let mut line = |line: String| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{line}");
    };
    if let Some(trouble) = &mount.trouble {
        line(format!("nothing can be compared: {}", printable(trouble)));
    }
    line(format!(
        "compared {}, diverged {}{}, dropped {}; the source changed meanwhile in {}",
        mount.compared,
        mount.diverged,
        mount.rate.as_ref().map_or_else(String::new, |rate| format!(" ({})", interval(rate))),
        mount.dropped,
        mount.noise
    ));
    if !mount.operations.is_empty() {
        line(format!("\n{}", table(mount)));
    }
    for (number, example) in mount.examples.iter().enumerate() {
        line(format!("\n{}", shown(number + 1, example)));
    }
    text
}

fn table(mount: &MountDivergence) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["OPERATION", "COMPARED", "DIVERGED", "NOISE", "DROPPED", "RATE (95 %)"]);
    for of in &mount.operations {
        table.add_row([
            of.operation.name().to_owned(),
            of.compared.to_string(),
            of.diverged.to_string(),
            of.noise.to_string(),
            of.dropped.to_string(),
            of.rate.as_ref().map_or_else(|| "-".into(), interval),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for column in 1..=4 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

fn shown(number: usize, example: &Example) -> String {
    let Example { at, operation, difference, request, reference, candidate } = example;
    let at = humantime::format_rfc3339_seconds(*at);
    let side = |name: &str, shown: &Shown| {
        let bytes =
            if shown.hex.is_empty() { String::new() } else { format!("\n             {}", printable(&shown.hex)) };
        format!("  {name:<10} {}{bytes}", printable(&shown.decoded))
    };
    format!(
        "{number}. {} at {at}: {}\n{}\n{}\n{}",
        operation.name(),
        printable(difference),
        side("request", request),
        side("reference", reference),
        side("candidate", candidate)
    )
}

fn percent(share: f64) -> String {
    format!("{} %", (share * 1e4).round() / 1e2)
}

fn interval(rate: &Rate) -> String {
    let precise = |share: f64| format!("{:.2}", share * 100.);
    format!("{} to {} %", precise(rate.low), precise(rate.high))
}
