//! What a switch costs those who use the mount: how long the switcher says that it took, and the slowest operation that a
//! client saw meanwhile.
//!
//!     cargo bench --bench pause -- [--switches N] [--json]
//!
//! First with one client on an otherwise idle machine, then with all cores busy with the load of the tests. Beside each
//! there are as many windows of the same length without a switch: what the machine does to a client by itself.

mod bare;
#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bare::cpu::{Placement, all_cpus};
use bare::{Hand, Served, Work};
use clap::Parser;
use hdrhistogram::Histogram;
use lighthouse_fs::api::Client;
use lighthouse_fs::bench::{Crew, load::Kind};
use serde::Serialize;
use support::{Backend, Mount, ROOT_DIRECT};

const BETWEEN: Duration = Duration::from_millis(20);
/// An operation that waited for the switch has ended by then.
const AFTER: Duration = Duration::from_millis(2);
const SEED: u64 = 20_261_124;

#[derive(clap::Parser)]
struct Arguments {
    /// How often to switch, in each of the two situations
    #[arg(long, default_value_t = 1000)]
    switches: u32,
    /// Only this situation: idle or busy
    #[arg(long)]
    only: Option<String>,
    /// Say it as JSON
    #[arg(long)]
    json: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// Milliseconds.
#[derive(Serialize)]
struct Quantiles {
    p50: f64,
    p99: f64,
    max: f64,
}

#[derive(Serialize)]
struct Row {
    situation: &'static str,
    to: Backend,
    /// What the switcher measures.
    pause: Quantiles,
    /// The slowest operation of the client while it switched.
    slowest: Quantiles,
    /// The same in windows without a switch.
    without: Quantiles,
}

fn main() {
    bare::serve_if_told();
    let arguments = Arguments::parse();
    if !Backend::ALL.into_iter().all(Backend::is_built_in) {
        return println!("this build has one backend, and nothing to switch to");
    }
    let mut rows = Vec::new();
    for (situation, kinds) in [("idle", &[] as &[Kind]), ("busy", &Kind::ALL)] {
        if arguments.only.as_deref().is_none_or(|only| only == situation) {
            rows.extend(measure(situation, kinds, arguments.switches));
        }
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&rows).expect("JSON"));
    } else {
        rows.iter().for_each(Row::say);
    }
}

fn measure(situation: &'static str, kinds: &[Kind], switches: u32) -> Vec<Row> {
    let limit = Duration::from_millis(300) * switches + Duration::from_secs(60);
    let mount = Mount::builder(Backend::Fuse2, ROOT_DIRECT).without_prober().limit(limit).start();
    bare::fill(&mount.sandbox.source());
    let crew = Crew::start(mount.sandbox.program_path(), &mount.path(""), kinds, SEED).expect("workers");
    // Nanoseconds of the slowest operation since it was last taken.
    let slowest = AtomicU64::new(0);
    let is_over = AtomicBool::new(false);
    let rows = std::thread::scope(|scope| {
        scope.spawn(|| {
            Placement::OneCpu.place_me(&all_cpus());
            let mut hand = Hand::new(Work::Stat, &mount.file());
            while !is_over.load(Relaxed) {
                let began = Instant::now();
                hand.act();
                slowest.fetch_max(began.elapsed().as_nanos() as u64, Relaxed);
            }
        });
        let rows = switch_back_and_forth(&mount, &slowest, situation, switches);
        is_over.store(true, Relaxed);
        rows
    });
    let tally = crew.stop(Duration::from_secs(60));
    assert!(tally.is_clean(), "{tally:#?}");
    mount.stop();
    rows
}

fn switch_back_and_forth(mount: &Mount, slowest: &AtomicU64, situation: &'static str, switches: u32) -> Vec<Row> {
    let client = Client::new(&mount.sandbox.socket());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut seen =
        Backend::ALL.map(|_| [(); 3].map(|()| Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("bounds")));
    for switch in 0..switches {
        let to = if switch.is_multiple_of(2) { Backend::Fuse3 } else { Backend::Fuse2 };
        let [pause, during, without] = &mut seen[to.index()];
        std::thread::sleep(BETWEEN);
        slowest.store(0, Relaxed);
        let began = Instant::now();
        let switched = runtime.block_on(client.switch("default", to)).unwrap_or_else(|error| panic!("{error}"));
        std::thread::sleep(AFTER);
        during.saturating_record(slowest.load(Relaxed));
        let window = began.elapsed();
        pause.saturating_record((switched.pause_ms * 1e6) as u64);
        std::thread::sleep(BETWEEN);
        slowest.store(0, Relaxed);
        std::thread::sleep(window);
        without.saturating_record(slowest.load(Relaxed));
    }
    let rows = Backend::ALL.into_iter().zip(seen);
    rows.map(|(to, [pause, during, without])| Row {
        situation,
        to,
        pause: quantiles(&pause),
        slowest: quantiles(&during),
        without: quantiles(&without),
    })
    .collect()
}

fn quantiles(histogram: &Histogram<u64>) -> Quantiles {
    let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e6;
    Quantiles { p50: at(0.5), p99: at(0.99), max: at(1.0) }
}

impl Row {
    fn say(&self) {
        let text = |it: &Quantiles| format!("{:>6.2} {:>6.2} {:>7.2}", it.p50, it.p99, it.max);
        println!(
            "{}, to {}: p50, p99, max in ms: pause {}; slowest operation {}; without a switch {}",
            self.situation,
            self.to,
            text(&self.pause),
            text(&self.slowest),
            text(&self.without),
        );
    }
}
