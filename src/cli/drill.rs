//! `drill`: faults on purpose.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use super::{Global, ask, backend, daemons, exit, fail, fail_asking, one_of, say, say_json};
use crate::api::Client;
use crate::api::model::DrillStopAnswer;
use crate::backend::drill::{Fault, Ongoing, Plan};
use crate::config::Backend;
use crate::ledger::Operation;

const EXAMPLES: &str = "Examples:
  lighthouse-fs drill projects --backend fuse3 --fault delay --delay 300ms --rate 0.1
  lighthouse-fs drill projects --backend fuse3 --fault error --operation read --for 5m
  lighthouse-fs drill projects --stop

Faults: error (EIO), delay, hang (no answer before the drill is over), panic (of the handler), end (of the session, once),
diverge (wrong answers to what only reads: programs see them), lose (no answer at all; from Linux 6.9 on the kernel is asked
to send such a request again).

Only mounts with drill = true (or serve --drill) allow it. A drill ends by itself, and with its server; `status` shows it.";

/// Inject faults into a backend, for rehearsals
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name of the mount, or its mount point
    mount: String,
    /// Whose requests
    #[arg(long, required_unless_present = "stop", value_parser = backend())]
    backend: Option<Backend>,
    /// What becomes of them
    #[arg(long, required_unless_present = "stop", value_parser = one_of::<Fault>(Fault::ALL.map(Fault::name)))]
    fault: Option<Fault>,
    /// The share of them that is struck, such as 0.1 [default: 1]
    #[arg(long)]
    rate: Option<f64>,
    /// How long a delay is [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    delay: Option<Duration>,
    /// Only requests of this kind, named as in the metrics
    #[arg(long, value_parser = one_of::<Operation>(Operation::ALL.iter().map(|operation| operation.name())))]
    operation: Option<Operation>,
    /// How long, at most 1h [default: 1m]
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    length: Option<Duration>,
    /// Inject no more faults
    #[arg(long, conflicts_with_all = ["backend", "fault", "rate", "delay", "operation", "length"])]
    stop: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    /// `None`: it is to be stopped.
    fn plan(&self) -> Option<Plan> {
        let plan = Plan::new(self.backend?, self.fault?);
        Some(Plan {
            rate: self.rate.unwrap_or(plan.rate),
            delay: self.delay,
            operation: self.operation,
            length: self.length.unwrap_or(plan.length),
            ..plan
        })
    }
}

/// Asks the daemon.
pub fn run(args: &Args, global: &Global) -> ExitCode {
    let plan = args.plan();
    if let Some(Err(wrong)) = plan.as_ref().map(Plan::check) {
        return fail(exit::USAGE, wrong);
    }
    ask(async {
        let (socket, mount) = match daemons::find(&args.mount, global).await {
            Ok(found) => found,
            Err(code) => return code,
        };
        let client = Client::new(&socket);
        match plan {
            Some(plan) => start(&client, args, &mount.name, &plan).await,
            None => stop(&client, args, &mount.name).await,
        }
    })
}

async fn start(client: &Client, args: &Args, mount: &str, plan: &Plan) -> ExitCode {
    match client.drill(mount, plan).await {
        Ok(answer) if args.json => say_json(&answer),
        Ok(answer) => say(begun(mount, &Ongoing { plan: plan.clone(), until: answer.drill.until })),
        Err(error) => fail_asking(&error),
    }
}

async fn stop(client: &Client, args: &Args, mount: &str) -> ExitCode {
    match client.stop_drill(mount).await {
        Ok(answer) if args.json => say_json(&answer),
        Ok(answer) => say(stopped(mount, &answer)),
        Err(error) => fail_asking(&error),
    }
}

fn begun(mount: &str, Ongoing { plan, until }: &Ongoing) -> String {
    let until: SystemTime = *until;
    format!(
        "a drill runs on {mount} until {}: {plan}; to end it sooner: lighthouse-fs drill {mount} --stop",
        humantime::format_rfc3339_seconds(until)
    )
}

fn stopped(mount: &str, answer: &DrillStopAnswer) -> String {
    match &answer.stopped {
        Some(drill) => {
            let requests = if drill.struck == 1 { "request" } else { "requests" };
            format!(
                "the drill on {mount} is over: {} {requests} of {} struck by {}",
                drill.struck, drill.backend, drill.fault
            )
        }
        None => format!("no drill runs on {mount}"),
    }
}
