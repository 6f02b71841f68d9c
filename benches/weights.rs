//! What it costs that two backends share a mount by turns: throughput at each weight against the mean of what each backend
//! does alone, weighted the same way, and what it adds to the 99th percentile of latency.
//!
//!     cargo bench --bench weights -- [--rounds N] [--seconds S] [--clients N]
//!
//! Each round goes through all weights, so that whatever else the machine does meets all of them.

mod bare;
#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bare::{Hand, Work};
use clap::Parser;
use hdrhistogram::Histogram;
use support::ROOT_DIRECT;
use support::service::Service;

const WEIGHTS: [u8; 7] = [0, 10, 25, 50, 75, 90, 100];
/// For the share to settle after a change.
const SETTLING: Duration = Duration::from_millis(300);

#[derive(clap::Parser)]
struct Arguments {
    /// Rounds through all weights
    #[arg(long, default_value_t = 8)]
    rounds: usize,
    /// Length of a run in seconds
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Programs that work at once
    #[arg(long, default_value_t = 4)]
    clients: usize,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

struct Run {
    /// Operations a second.
    rate: f64,
    /// 99th percentile in microseconds.
    p99: f64,
    /// Percent of the operations that the candidate has served.
    share: f64,
}

fn main() {
    let arguments = Arguments::parse();
    let steps: Vec<_> = WEIGHTS[1..].iter().map(|weight| format!("{{ weight = {weight}, for = '1h' }}")).collect();
    for work in Work::ALL {
        let service = Service::start(ROOT_DIRECT, |sandbox| {
            let more =
                format!("backend = \"fuse2\"\n[mount.rollout]\ncandidate = \"fuse3\"\nsteps = [{}]", steps.join(", "));
            support::service::mount(sandbox, "tried", &more)
        });
        bare::fill(&service.sandbox.source().join("tried"));
        let mut runs: BTreeMap<u8, Vec<Run>> = BTreeMap::new();
        for _ in 0..arguments.rounds {
            for weight in WEIGHTS {
                match weight {
                    0 => {}
                    10 => order(&service, &["rollout", "start", "tried"]),
                    _ => order(&service, &["rollout", "promote", "tried"]),
                }
                std::thread::sleep(SETTLING);
                runs.entry(weight).or_default().push(run(&service, work, &arguments));
            }
            order(&service, &["rollout", "abort", "tried"]);
        }
        say(work, &runs);
        service.stop();
    }
}

fn order(service: &Service, words: &[&str]) {
    let output = service.ask(words);
    assert!(output.status.success(), "{words:?}: {output:?}");
}

fn served(service: &Service) -> [f64; 2] {
    let status = service.status().expect("a status");
    let backends = support::service::mount_of(&status, "tried")["backends"].as_array().expect("backends").clone();
    [0, 1].map(|index: usize| backends[index]["operations"].as_f64().expect("a number"))
}

fn run(service: &Service, work: Work, arguments: &Arguments) -> Run {
    let file = service.place("tried").join(bare::FILE);
    let is_over = AtomicBool::new(false);
    let before = served(service);
    let began = Instant::now();
    let latencies = std::thread::scope(|scope| {
        let client = || {
            let mut hand = Hand::new(work, &file);
            let mut latencies = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).expect("bounds");
            while !is_over.load(Relaxed) {
                let began = Instant::now();
                hand.act();
                latencies.saturating_record(began.elapsed().as_nanos() as u64);
            }
            latencies
        };
        let clients: Vec<_> = (0..arguments.clients).map(|_| scope.spawn(client)).collect();
        std::thread::sleep(Duration::from_secs_f64(arguments.seconds));
        is_over.store(true, Relaxed);
        let all = clients.into_iter().map(|client| client.join().expect("a client"));
        all.reduce(|mut sum, one| {
            sum.add(one).expect("the same bounds");
            sum
        })
    });
    let seconds = began.elapsed().as_secs_f64();
    let after = served(service);
    let [stable, candidate] = [after[0] - before[0], after[1] - before[1]];
    let latencies = latencies.expect("a client");
    Run {
        rate: latencies.len() as f64 / seconds,
        p99: latencies.value_at_quantile(0.99) as f64 / 1e3,
        share: 100. * candidate / (stable + candidate),
    }
}

fn say(work: Work, runs: &BTreeMap<u8, Vec<Run>>) {
    let of = |weight: u8, what: fn(&Run) -> f64| median(runs[&weight].iter().map(what).collect());
    let (stable, candidate) = (of(0, |run| run.rate), of(100, |run| run.rate));
    let alone = of(0, |run| run.p99).max(of(100, |run| run.p99));
    for weight in WEIGHTS {
        let share = f64::from(weight) / 100.;
        let arithmetic = share * candidate + (1. - share) * stable;
        // So many operations take that much time on each.
        let harmonic = 1. / (share / candidate + (1. - share) / stable);
        let (rate, p99) = (of(weight, |run| run.rate), of(weight, |run| run.p99));
        println!(
            "{:<10} {weight:>3} %: share {:>6.2} %, {rate:>7.0}/s, {:.3} of the mean ({:.3} of the harmonic one), p99 {p99:>7.1} µs, {:>+7.1} µs",
            work.name(),
            of(weight, |run| run.share),
            rate / arithmetic,
            rate / harmonic,
            p99 - alone,
        );
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}
