//! `config`: an example to begin with, and what is in force.

use std::process::ExitCode;

use serde::Serialize;

use super::status::plain;
use super::{Global, fail_loading, printable, say, say_json, sources};
use crate::config::{self, Loaded, Shown};

const EXAMPLE: &str = "Examples:
  lighthouse-fs config example > lighthouse-fs.toml";

const SHOW: &str = "Examples:
  lighthouse-fs config show --config lighthouse-fs.toml
  LIGHTHOUSE_PROJECT_PATH=/srv LIGHTHOUSE_MOUNT_POINT=/mnt lighthouse-fs config show
  lighthouse-fs config show --config lighthouse-fs.toml --json | jq '.values[] | select(.from == \"environment\")'";

const EXAMPLES: &str = "Examples:
  lighthouse-fs config example > lighthouse-fs.toml
  lighthouse-fs config show --config lighthouse-fs.toml";

/// Show an example of a configuration file, or what is in force
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print a configuration file with every key, its description and its default
    #[command(after_help = EXAMPLE)]
    Example,
    /// Print the reference of all keys, in Markdown
    #[command(hide = true)]
    Reference,
    /// Show every value that `serve` would use with the same options, and where it comes from
    #[command(after_help = SHOW)]
    Show(Box<Show>),
}

#[derive(Debug, clap::Args)]
struct Show {
    #[command(flatten)]
    sources: sources::Args,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Answers.
pub fn run(args: &Args, global: &Global) -> ExitCode {
    match &args.command {
        Command::Example => say(config::example().trim_end()),
        Command::Reference => say(config::reference().trim_end()),
        Command::Show(args) => show(args, global),
    }
}

#[derive(Serialize)]
struct Answer {
    schema: u32,
    warnings: Vec<String>,
    values: Vec<Shown>,
}

fn show(args: &Show, global: &Global) -> ExitCode {
    let Loaded { values, warnings, .. } = match config::load(&args.sources.sources(global)) {
        Ok(loaded) => loaded,
        Err(errors) => return fail_loading(&errors),
    };
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    if args.json {
        return say_json(&Answer { schema: 1, warnings, values });
    }
    let mut table = plain(["KEY", "MOUNT", "VALUE", "FROM"]);
    for Shown { mount, key, value, origin } in values {
        let value = if value.is_null() { "none".into() } else { value.to_string() };
        table.add_row([key, mount.unwrap_or_else(|| "-".into()), printable(value), printable(origin)]);
    }
    say(table.trim_fmt())
}
