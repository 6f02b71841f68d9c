//! What the ports cost: throughput of a mount of ours against the bare crate, or against another build of ours.
//!
//!     cargo bench --bench overhead -- [--pairs N] [--seconds S] [--only TEXT] [--against PROGRAM] [--json]
//!
//! Short runs alternate between the two, so that whatever else the machine does meets both. Each pair of runs has mounts of
//! its own: how client and server take turns on a processor settles by chance when they meet, and then lasts. A row says
//! the median of the ratios of the pairs, with an interval by bootstrap; the last one of a backend the geometric mean of
//! its rows.

mod bare;
#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bare::cpu::{Placement, all_cpus, seconds_run};
use bare::{Bare, Hand, Served, Work};
use clap::Parser;
use rustix::thread::CpuSet;
use serde::Serialize;
use support::{Backend, Mount, ROOT_DIRECT};

const RESAMPLES: usize = 10_000;
const SEED: u64 = 20_261_124;

#[derive(clap::Parser)]
struct Arguments {
    /// Pairs of runs for a row
    #[arg(long, default_value_t = 12)]
    pairs: usize,
    /// Length of a run in seconds
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Only rows whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Compare with this build of lighthouse-fs instead of with the bare crate
    #[arg(long)]
    against: Option<std::path::PathBuf>,
    /// Say it as JSON
    #[arg(long)]
    json: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Serialize)]
struct Row {
    name: String,
    /// Operations a second, medians.
    bare: f64,
    ours: f64,
    /// Processor time of the server for an operation in microseconds, medians.
    bare_cpu: f64,
    ours_cpu: f64,
    /// Median of the ratios of pairs, ours to bare.
    ratio: f64,
    interval: [f64; 2],
    reaches_1: bool,
    /// Of each pair.
    #[serde(skip)]
    ratios: Vec<f64>,
}

/// Of one backend, over all that it was asked.
#[derive(Serialize)]
struct Overall {
    name: String,
    /// Geometric mean of the rows.
    ratio: f64,
    interval: [f64; 2],
    reaches_1: bool,
}

/// Of one run.
#[derive(Clone, Copy)]
struct Run {
    rate: f64,
    cpu: f64,
}

fn main() {
    bare::serve_if_told();
    let arguments = Arguments::parse();
    let all = all_cpus();
    let mut rows = Vec::new();
    let mut overall = Vec::new();
    for backend in Backend::ALL.into_iter().filter(|backend| backend.is_built_in()) {
        let first = rows.len();
        for (clients, placement) in [(1, Placement::OneCpu), (4, Placement::Anywhere)] {
            for work in Work::ALL {
                let name =
                    format!("{backend}, {}, {clients} client{}", work.name(), if clients == 1 { "" } else { "s" });
                if name.contains(&arguments.only) {
                    let row = measure(name, &arguments, backend, |served, length| {
                        run(served, work, clients, placement, &all, length)
                    });
                    rows.push(row);
                }
            }
        }
        if rows.len() > first + 1 {
            let all = Overall::of(backend, &rows[first..]);
            if !arguments.json {
                all.say();
            }
            overall.push(all);
        }
    }
    if arguments.json {
        let said = serde_json::json!({"rows": rows, "overall": overall});
        println!("{}", serde_json::to_string_pretty(&said).expect("JSON"));
    }
}

/// The 95 % interval of a figure, by bootstrap.
fn interval(mut resampled: impl FnMut(&mut fastrand::Rng) -> f64) -> [f64; 2] {
    let mut random = fastrand::Rng::with_seed(SEED);
    let mut figures: Vec<f64> = (0..RESAMPLES).map(|_| resampled(&mut random)).collect();
    figures.sort_by(f64::total_cmp);
    [figures[RESAMPLES / 40], figures[RESAMPLES - 1 - RESAMPLES / 40]]
}

/// The median of as many of these as there are, drawn with replacement.
fn median_of_resampled(ratios: &[f64], random: &mut fastrand::Rng) -> f64 {
    median((0..ratios.len()).map(|_| ratios[random.usize(..ratios.len())]).collect())
}

/// Measures one row.
fn measure(name: String, arguments: &Arguments, backend: Backend, run: impl Fn(&dyn Served, Duration) -> Run) -> Row {
    let length = Duration::from_secs_f64(arguments.seconds);
    let limit = Duration::from_secs(60) + length * 4;
    let pair = |number: usize| {
        let mount =
            |program| Mount::builder(backend, ROOT_DIRECT).without_prober().limit(limit).program(program).start();
        let reference: Box<dyn Served> = match &arguments.against {
            None => Box::new(Bare::start(backend, limit, &[])),
            against => Box::new(mount(against.as_deref())),
        };
        let ours = mount(None);
        for served in [&*reference, &ours] {
            bare::fill(&served.sandbox().source());
        }
        let pair = if number.is_multiple_of(2) {
            let bare = run(&*reference, length);
            (bare, run(&ours, length))
        } else {
            let ours = run(&ours, length);
            (run(&*reference, length), ours)
        };
        ours.stop();
        pair
    };
    let pairs: Vec<(Run, Run)> = (0..arguments.pairs).map(pair).collect();
    let row = Row::of(name, &pairs);
    if !arguments.json {
        row.say();
    }
    row
}

fn run(served: &dyn Served, work: Work, clients: usize, placement: Placement, all: &CpuSet, length: Duration) -> Run {
    let server = served.server();
    placement.place(server, all);
    let is_over = AtomicBool::new(false);
    let ready = Barrier::new(clients + 1);
    let client = || {
        placement.place_me(all);
        let mut hand = Hand::new(work, &served.file());
        (0..100).for_each(|_| hand.act());
        ready.wait();
        let mut count = 0_u64;
        while !is_over.load(Relaxed) {
            hand.act();
            count += 1;
        }
        count
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        ready.wait();
        let (began, ran) = (Instant::now(), seconds_run(server));
        std::thread::sleep(length);
        let (seconds, ran) = (began.elapsed().as_secs_f64(), seconds_run(server) - ran);
        is_over.store(true, Relaxed);
        let count: u64 = clients.into_iter().map(|client| client.join().expect("a client")).sum();
        Run { rate: count as f64 / seconds, cpu: ran / count as f64 * 1e6 }
    })
}

impl Row {
    fn of(name: String, pairs: &[(Run, Run)]) -> Self {
        let ratios: Vec<f64> = pairs.iter().map(|(bare, ours)| ours.rate / bare.rate).collect();
        let interval = interval(|random| median_of_resampled(&ratios, random));
        let of = |what: fn(&(Run, Run)) -> f64| median(pairs.iter().map(what).collect());
        Self {
            name,
            bare: of(|(bare, _)| bare.rate),
            ours: of(|(_, ours)| ours.rate),
            bare_cpu: of(|(bare, _)| bare.cpu),
            ours_cpu: of(|(_, ours)| ours.cpu),
            ratio: median(ratios.clone()),
            interval,
            reaches_1: interval[1] >= 1.0,
            ratios,
        }
    }

    fn say(&self) {
        let Self { name, bare, ours, bare_cpu, ours_cpu, ratio, interval: [low, high], reaches_1, .. } = self;
        let verdict = if *reaches_1 { "reaches 1" } else { "below 1" };
        println!(
            "{name:<28} bare {bare:>7.0}/s {bare_cpu:>6.2} µs  ours {ours:>7.0}/s {ours_cpu:>6.2} µs  ratio {ratio:.3} [{low:.3}, {high:.3}] {verdict}"
        );
    }
}

impl Overall {
    fn of(backend: Backend, rows: &[Row]) -> Self {
        let mean = |ratios: &mut dyn FnMut(&Row) -> f64| {
            (rows.iter().map(|row| ratios(row).ln()).sum::<f64>() / rows.len() as f64).exp()
        };
        let interval = interval(|random| mean(&mut |row| median_of_resampled(&row.ratios, random)));
        let ratio = mean(&mut |row| row.ratio);
        Self { name: format!("{backend}, all"), ratio, interval, reaches_1: interval[1] >= 1.0 }
    }

    fn say(&self) {
        let Self { name, ratio, interval: [low, high], reaches_1 } = self;
        let verdict = if *reaches_1 { "reaches 1" } else { "below 1" };
        println!("{name:<28} ratio {ratio:.3} [{low:.3}, {high:.3}] {verdict}");
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}
