//! What a shell is told while somebody types: subcommands, options and files, and the names of the mounts that a daemon has.
//!
//! The script that `completions` prints calls this program with the words so far and [`VARIABLE`] set.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, CommandFactory};
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use clap_complete::{CompleteEnv, Shell, env::Shells};

use super::{Cli, exit, printable};
use crate::api::{Client, socket};
use crate::config::{Backend, Helper};

/// Not COMPLETE, the crate's own choice: somebody may have that for other reasons.
const VARIABLE: &str = "_LIGHTHOUSE_FS_COMPLETE";
const NAME: &str = "lighthouse-fs";
/// Somebody waits with a finger on the key.
const PATIENCE: Duration = Duration::from_secs(1);

/// Answers a shell, if one asks. To be called first of all, while there is one thread: the variable is taken away.
pub fn main() -> Option<ExitCode> {
    let shell = CompleteEnv::with_factory(program).var(VARIABLE);
    match shell.try_complete(std::env::args_os(), std::env::current_dir().ok().as_deref()) {
        Ok(false) => None,
        Ok(true) => Some(ExitCode::SUCCESS),
        Err(error) => Some(super::explain(&error, exit::USAGE)),
    }
}

/// The script for a shell. It finds the program in PATH.
pub fn script(shell: Shell) -> std::io::Result<String> {
    let mut script = Vec::new();
    if let Some(completer) = Shells::builtins().completer(&shell.to_string()) {
        completer.write_registration(VARIABLE, NAME, NAME, NAME, &mut script)?;
    }
    let mut script = String::from_utf8_lossy(&script).trim().to_owned();
    if shell == Shell::Zsh {
        // As a file in site-functions it is run by the first Tab, which wants an answer too.
        script += "\n[[ ${funcstack[1]} = _lighthouse-fs ]] && _clap_dynamic_completer_lighthouse_fs \"$@\"";
    }
    Ok(script)
}

/// The program, which knows what the values of its options can be.
fn program() -> clap::Command {
    let mount = |arg: Arg| arg.add(ArgValueCandidates::new(mounts));
    let choices = || [vec![CompletionCandidate::new("auto")], all(&Backend::ALL)].into_iter().flatten().collect();
    let helpers = || all(&Helper::ALL);
    let serve = move |command: clap::Command| {
        let command = command.mut_arg("backend", |arg| arg.add(ArgValueCandidates::new(choices)));
        command.mut_arg("helper", |arg| arg.add(ArgValueCandidates::new(helpers)))
    };
    Cli::command()
        .mut_subcommand("status", |command| command.mut_arg("mount", mount))
        .mut_subcommand("health", |command| command.mut_arg("mount", mount))
        .mut_subcommand("drill", |command| command.mut_arg("mount", mount))
        .mut_subcommand("shadow", |command| command.mut_subcommand("report", |of| of.mut_arg("mount", mount)))
        .mut_subcommand("rollback", |command| command.mut_arg("mount", mount))
        .mut_subcommand("unpin", |command| command.mut_arg("mount", mount))
        .mut_subcommand("rollout", |command| {
            ["start", "status", "pause", "resume", "promote", "abort"]
                .into_iter()
                .fold(command, |command, action| command.mut_subcommand(action, |of| of.mut_arg("mount", mount)))
        })
        // What is touched goes behind the others: so both, in their order.
        .mut_subcommand("switch", |command| command.mut_arg("mount", mount).mut_arg("backend", |arg| arg))
        .mut_subcommand("serve", serve)
        .mut_subcommand("config", |command| command.mut_subcommand("show", serve))
}

fn all(names: &[impl ToString]) -> Vec<CompletionCandidate> {
    names.iter().map(|name| CompletionCandidate::new(name.to_string())).collect()
}

/// Mounts of the daemon that the command would ask; none if it does not answer at once.
fn mounts() -> Vec<CompletionCandidate> {
    let socket = named_socket(std::env::args_os()).unwrap_or_else(socket::default_path);
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    let status = runtime.block_on(async { tokio::time::timeout(PATIENCE, Client::new(&socket).status()).await });
    let Ok(Ok(status)) = status else { return Vec::new() };
    let candidate = |name: String, place: String| CompletionCandidate::new(name).help(Some(place.into()));
    let mounts = status.mounts.into_iter();
    mounts.map(|mount| candidate(printable(mount.name), printable(mount.mountpoint.display()))).collect()
}

/// What the words say after `--socket`.
fn named_socket(words: impl Iterator<Item = OsString>) -> Option<PathBuf> {
    let mut words =
        words.skip_while(|word| word != "--socket" && !word.to_str().is_some_and(|word| word.starts_with("--socket=")));
    let first = words.next()?;
    match first.to_str()?.strip_prefix("--socket=") {
        Some(path) => Some(path.into()),
        None => words.next().map(PathBuf::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn no_option_comes_into_being_here() {
        let count = |program: clap::Command| {
            fn all(command: &clap::Command) -> usize {
                command.get_arguments().count() + command.get_subcommands().map(all).sum::<usize>()
            }
            all(&program)
        };
        assert_eq!(count(program()), count(Cli::command()));
    }

    #[test]
    fn the_socket_is_that_of_the_words() {
        let named = |words: &str| named_socket(words.split(' ').map(OsString::from));
        for words in ["lighthouse-fs -- lighthouse-fs --socket /a switch ", "lighthouse-fs switch --socket=/a "] {
            assert_eq!(named(words).as_deref(), Some(Path::new("/a")));
        }
        assert_eq!(named("lighthouse-fs status"), None);
        assert_eq!(named("lighthouse-fs status --socket"), None);
    }
}
