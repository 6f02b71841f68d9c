//! The command line: one file per subcommand. Answers go to standard output, logs and errors to standard error.

mod backends;
mod check_config;
mod compare;
mod complete;
mod config;
mod daemons;
mod demo;
mod drill;
mod end_servers;
mod health;
mod init;
mod load;
mod log;
mod mount8;
mod packaging;
mod probe;
mod rollout;
mod serve;
mod server;
mod shadow;
mod sources;
mod statfs;
mod status;
mod switch;

use std::error::Error;
use std::fmt::Display;
use std::future::Future;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand};

use crate::api::{ClientError, socket};
use crate::config::{Backend, Errors, Origin, Wrong, check_flag};

/// Exit codes; scripts and units lean on them (64 and 78 as in sysexits.h).
pub mod exit {
    /// The operation failed, and said why.
    pub const FAILED: u8 = 1;
    /// `health`: served, but by the fallback, or with something missing.
    pub const DEGRADED: u8 = 2;
    /// No daemon answers on the socket.
    pub const NO_DAEMON: u8 = 3;
    /// Wrong usage.
    pub const USAGE: u8 = 64;
    /// Wrong configuration.
    pub const CONFIGURATION: u8 = 78;
}

const EXAMPLES: &str = "Examples:
  lighthouse-fs serve --source /srv/projects --mountpoint /mnt/projects
  lighthouse-fs status
  lighthouse-fs switch default fuse2
  lighthouse-fs health
  lighthouse-fs backends
  lighthouse-fs config example

Exit codes: 0 done, 1 failed, 2 degraded (health only), 3 no daemon answers on the socket, 64 wrong usage, 78 wrong configuration.";

/// Serves a directory through either of two FUSE stacks, and swaps the stack under running programs.
#[derive(Debug, Parser)]
#[command(name = "lighthouse-fs", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every subcommand.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options of every subcommand")]
struct Global {
    /// Control socket: where `serve` listens, and where the others ask [default: /run/lighthouse-fs/control.sock for
    /// root, else $XDG_RUNTIME_DIR/lighthouse-fs/control.sock or /tmp/lighthouse-fs-UID/control.sock]
    #[arg(long, global = true, value_name = "PATH", value_parser = absolute)]
    socket: Option<PathBuf>,
    #[command(flatten)]
    log: log::Options,
}

impl Global {
    fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(socket::default_path)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::Args>),
    Status(status::Args),
    Switch(switch::Args),
    Rollout(rollout::Args),
    Rollback(rollout::RollbackArgs),
    Unpin(rollout::UnpinArgs),
    Drill(drill::Args),
    Shadow(shadow::Args),
    Health(health::Args),
    Backends(backends::Args),
    CheckConfig(check_config::Args),
    Config(config::Args),
    Demo(demo::DemoArgs),
    EndServers(end_servers::Args),
    Completions(packaging::Completions),
    Man(packaging::Man),
    #[command(hide = true)]
    Server(server::Args),
    #[command(hide = true)]
    Probe(probe::Args),
    #[command(hide = true)]
    Compare(compare::Args),
    #[command(hide = true)]
    Statfs(statfs::Args),
    #[command(hide = true)]
    Load(load::LoadArgs),
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    // Executed as /proc/self/exe it would be called "exe". Nothing but the name hangs on that.
    let _ = rustix::thread::set_name(c"lighthouse-fs");
    if let Some(code) = mount8::main() {
        return code;
    }
    if let Some(code) = complete::main() {
        return code;
    }
    let Cli { global, command } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => return explain(&answer, exit::USAGE),
    };
    if matches!(command, Command::Serve(_)) && init::is_needed() {
        return init::run();
    }
    // A daemon's log is configured, a server's can be changed: both start it themselves.
    if !matches!(command, Command::Serve(_) | Command::Server(_)) {
        // One question to a daemon, or one load: nobody changes it.
        drop(global.log.start());
    }
    match command {
        Command::Serve(args) => serve::run(&args, &global),
        Command::Status(args) => status::run(&args, &global),
        Command::Switch(args) => switch::run(&args, &global),
        Command::Rollout(args) => rollout::run(&args, &global),
        Command::Rollback(args) => rollout::rollback(&args, &global),
        Command::Unpin(args) => rollout::unpin(&args, &global),
        Command::Drill(args) => drill::run(&args, &global),
        Command::Shadow(args) => shadow::run(&args, &global),
        Command::Health(args) => health::run(&args, &global),
        Command::Backends(args) => backends::run(&args),
        Command::CheckConfig(args) => check_config::run(&args),
        Command::Config(args) => config::run(&args, &global),
        Command::Demo(args) => demo::run(&args),
        Command::EndServers(args) => end_servers::run(&args, &global),
        Command::Server(args) => server::run(&args, &global),
        Command::Completions(args) => packaging::complete(&args),
        Command::Man(args) => packaging::write_pages(&args),
        Command::Probe(args) => probe::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Statfs(args) => statfs::run(&args),
        Command::Load(args) => load::run(args),
    }
}

/// Help and version are answers; everything else is wrong usage, for which clap has a code of its own.
fn explain(answer: &clap::Error, usage: u8) -> ExitCode {
    match answer.print() {
        // Nobody reads on, as in `lighthouse-fs --help | head -1`.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::from(exit::FAILED),
        _ if answer.use_stderr() => ExitCode::from(usage),
        _ => ExitCode::SUCCESS,
    }
}

/// One of these names, which completions offer and errors list.
fn one_of<T>(names: impl IntoIterator<Item = &'static str>) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err: Error + Send + Sync + 'static> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| name.parse())
}

/// A backend, also by the names that older deployments know.
fn backend() -> impl TypedValueParser<Value = Backend> {
    let older = |backend| match backend {
        Backend::Fuse2 => "fusepy",
        Backend::Fuse3 => "pyfuse3",
    };
    let values = Backend::ALL.map(|backend| PossibleValue::new(backend.name()).alias(older(backend)));
    PossibleValuesParser::new(values).try_map(|name| name.parse())
}

/// Prints an answer. A reader who has gone has read enough.
fn say(answer: impl Display) -> ExitCode {
    match writeln!(io::stdout(), "{answer}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            fail(exit::FAILED, format_args!("the answer cannot be written: {error}"))
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Prints an answer as JSON.
fn say_json(answer: &impl serde::Serialize) -> ExitCode {
    match serde_json::to_string_pretty(answer) {
        Ok(text) => say(text),
        Err(error) => fail(exit::FAILED, format_args!("the answer cannot be put into JSON: {error}")),
    }
}

/// Says what went wrong, and gives the exit code.
fn fail(code: u8, why: impl Display) -> ExitCode {
    match writeln!(io::stderr(), "error: {why}") {
        // With standard error gone there is nobody left to tell; the code still says it.
        Ok(()) | Err(_) => ExitCode::from(code),
    }
}

/// Says everything that is wrong with a configuration, one thing a line, so that editors find the place.
fn fail_loading(errors: &Errors) -> ExitCode {
    let mut stderr = io::stderr().lock();
    for problem in errors.problems() {
        // Without a place to begin with, it begins as other errors do.
        let begin = if problem.origin == Origin::Default { "error: " } else { "" };
        if writeln!(stderr, "{begin}{}", printable(problem)).is_err() {
            break;
        }
    }
    ExitCode::from(if errors.only_missing() { exit::USAGE } else { exit::CONFIGURATION })
}

fn fail_asking(error: &ClientError) -> ExitCode {
    if let ClientError::NoDaemon { socket, .. } = error {
        let left = crate::server::meeting::names(&socket::servers(socket)).map_or(0, |names| names.len());
        if left > 0 {
            let why = format_args!(
                "{error}; an earlier one has left {left} {} served: started again the same way it takes them over, and `lighthouse-fs end-servers` unmounts them",
                if left == 1 { "mount" } else { "mounts" }
            );
            return fail(exit::NO_DAEMON, why);
        }
    }
    fail(if error.is_unanswered() { exit::NO_DAEMON } else { exit::FAILED }, error)
}

/// Runs what asks a daemon.
fn ask(question: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(question),
        Err(error) => {
            fail(exit::FAILED, format_args!("no event loop can be made: {error}; see the limit on descriptors"))
        }
    }
}

/// Makes a path absolute by its text alone: what it names may be a dead mount, and is not touched.
fn absolute(path: &str) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    // Daemon, server and API speak of it in JSON.
    match path.to_str() {
        Some(_) => Ok(path),
        None => Err(io::Error::other("the path is not UTF-8: name it, and start from a folder, whose name is")),
    }
}

/// A reader of flags by the rules of a key of the configuration.
fn flag(key: &'static str) -> impl Fn(&str) -> Result<String, Wrong> + Clone + Send + Sync {
    move |text| check_flag(key, text).map(|()| text.to_owned())
}

/// Text of another process without what a terminal would obey.
fn printable(text: impl Display) -> String {
    let text = text.to_string();
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_manual_has_every_exit_code() {
        let manual = include_str!("../../docs/reference/exit-codes.md");
        let code = |line: &str| line.strip_prefix("| ")?.split_once(" |")?.0.parse().ok();
        let codes: Vec<u8> = manual.lines().filter_map(code).collect();
        let ours = [0, exit::FAILED, exit::DEGRADED, exit::NO_DAEMON, exit::USAGE, exit::CONFIGURATION];
        assert_eq!(codes, ours);
    }

    #[test]
    fn a_terminal_obeys_nothing_that_others_say() {
        assert_eq!(printable("a\x1b[31mb\nc"), "a\u{fffd}[31mb\u{fffd}c");
    }
}
