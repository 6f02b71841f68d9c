//! `switch`: another backend, live.

use std::process::ExitCode;

use super::{Global, ask, backend, daemons, fail_asking, say, say_json};
use crate::api::Client;
use crate::api::model::SwitchAnswer;
use crate::config::Backend;

const EXAMPLES: &str = "Examples:
  lighthouse-fs switch default fuse2
  lighthouse-fs switch projects fuse3 --json | jq .pause_ms

A switch that fails leaves the old backend serving and exits 1. Switching to the backend that serves already is no error.";

/// Change the backend of a mount, unseen by the programs that use it
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name of the mount, or its mount point
    mount: String,
    /// The backend that is to serve
    #[arg(value_parser = backend())]
    backend: Backend,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Asks the daemon to switch.
pub fn run(args: &Args, global: &Global) -> ExitCode {
    ask(async {
        // A switch may take its time, and one that nobody waits for is done all the same: first whether somebody is there.
        let (socket, mount) = match daemons::find(&args.mount, global).await {
            Ok(found) => found,
            Err(code) => return code,
        };
        match Client::new(&socket).switch(&mount.name, args.backend).await {
            Ok(answer) if args.json => say_json(&answer),
            Ok(answer) => say(sentence(&mount.name, &answer)),
            Err(error) => fail_asking(&error),
        }
    })
}

fn sentence(mount: &str, answer: &SwitchAnswer) -> String {
    let SwitchAnswer { from, to, pause_ms, total_ms, in_flight, answered_for_hung, .. } = answer;
    if from == to {
        return format!("{mount} is served by {to} already: nothing to switch, pause 0 ms");
    }
    let requests = if *in_flight == 1 { "request" } else { "requests" };
    let waited = if *answered_for_hung > 0 { format!(" after {:.1} s", total_ms / 1e3) } else { String::new() };
    format!(
        "switched {mount} from {from} to {to}: pause {pause_ms:.2} ms, {in_flight} {requests} in flight, {answered_for_hung} answered for a hung backend{waited}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_a_sentence() {
        let mut answer = SwitchAnswer {
            schema: 1,
            from: Backend::Fuse2,
            to: Backend::Fuse3,
            pause_ms: 0.081,
            total_ms: 0.2,
            in_flight: 3,
            answered_for_hung: 0,
        };
        assert_eq!(
            sentence("default", &answer),
            "switched default from fuse2 to fuse3: pause 0.08 ms, 3 requests in flight, 0 answered for a hung backend"
        );
        answer.from = Backend::Fuse3;
        assert_eq!(sentence("default", &answer), "default is served by fuse3 already: nothing to switch, pause 0 ms");
    }
}
