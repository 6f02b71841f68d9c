//! Switches under full load lose nothing: no operation fails, every byte is right, and the kernel waits for no answer.

// A build with one backend has nothing to switch to.
#![cfg(all(feature = "fuse2", feature = "fuse3"))]

#[macro_use]
mod support;

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use lighthouse_fs::api::Client;
use lighthouse_fs::bench::{Crew, load::Kind};
use procfs::process::Process;
use rstest::rstest;
use support::{
    Backend, Mount, ROOT_DIRECT, ROOT_FUSERMOUNT, ROOT_FUSERMOUNT3, Tier, USER_FUSERMOUNT, USER_FUSERMOUNT3, Way,
    unless_skipped,
};

/// Between two switches: long enough for every worker to get on, short enough to catch each kind of request in hand.
const PAUSE: Duration = Duration::from_millis(20);
/// For the workers to finish what they are at, on a loaded machine.
const WORKERS_LIMIT: Duration = Duration::from_secs(60);
/// From so many switches on, nothing grows any more after the first quarter.
const LONG: u32 = 300;
/// What the load itself makes come and go: each known file has a descriptor in the server.
const SPARE_DESCRIPTORS: usize = 128;
const SPARE_KIB: u64 = 16 << 10;
const SEED: u64 = 20_261_124;

#[rstest]
fn nothing_is_lost(
    #[values(ROOT_DIRECT, ROOT_FUSERMOUNT, ROOT_FUSERMOUNT3, USER_FUSERMOUNT, USER_FUSERMOUNT3)] way: Way,
) {
    // The way of mounting leaves the switch as it is, so one of them gets most of the time.
    let switches = match (Tier::current(), way == ROOT_DIRECT) {
        (Tier::Quick, true) => 300,
        (Tier::Quick, false) => 40,
        (Tier::Full, true) => 3_000,
        (Tier::Full, false) => 300,
        (Tier::Soak, true) => 12_000,
        (Tier::Soak, false) => 0,
    };
    if switches == 0 {
        return support::skip("only one way of mounting is soaked");
    }
    unless_skipped(way.possible(), || under_load(way, switches));
}

fn under_load(way: Way, switches: u32) {
    // A switch on two busy cores, the pause before it, and the start and end of the workers.
    let limit = Duration::from_millis(250) * switches + Duration::from_secs(180);
    let mount = Mount::builder(Backend::Fuse2, way).limit(limit).start();
    let crew =
        mount.act(|| Crew::start(mount.sandbox.program_path(), &mount.path(""), &Kind::ALL, SEED)).expect("workers");
    let began = Instant::now();
    // When every thread, buffer and table has been used.
    let warm = switches / 4;
    let mut pauses = mount.act(|| switch_back_and_forth(&mount, warm));
    let before = Held::by(&mount);
    pauses.add(mount.act(|| switch_back_and_forth(&mount, switches - warm))).expect("the same bounds");
    let after = Held::by(&mount);
    let tally = crew.stop(WORKERS_LIMIT);

    println!(
        "{switches} switches in {:.1} s under {} operations: pause p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms; slowest operation {:.1} ms",
        began.elapsed().as_secs_f64(),
        tally.operations,
        milliseconds(pauses.value_at_quantile(0.5)),
        milliseconds(pauses.value_at_quantile(0.99)),
        milliseconds(pauses.max()),
        milliseconds(tally.latency.max()),
    );
    println!("daemon and server held {before:?}, then {after:?}");
    assert!(tally.is_clean(), "{tally:#?}");
    if switches >= LONG {
        assert!(after.descriptors <= before.descriptors + SPARE_DESCRIPTORS, "{before:?}, then {after:?}");
        assert!(after.kib <= before.kib + SPARE_KIB, "{before:?}, then {after:?}");
    }
    assert!(tally.operations > u64::from(switches), "hardly any load: {} operations", tally.operations);
    mount.assert_all_answered();
    let status = mount.status();
    for backend in status["backends"].as_array().expect("backends") {
        assert!(backend["operations"].as_u64().expect("a number") > 0, "{backend}");
        assert_eq!(backend["errors"], 0, "{backend}");
    }
    assert_eq!(status["in_flight"], 0, "{status}");
    mount.stop();
}

/// What daemon and server have.
#[derive(Debug)]
struct Held {
    descriptors: usize,
    /// Resident memory.
    kib: u64,
}

impl Held {
    fn by(mount: &Mount) -> Self {
        let pids = [mount.daemon_pid(), mount.server_pid().expect("a server")];
        let processes = pids.map(|pid| Process::new(pid).expect("a process that lives"));
        Self {
            descriptors: processes.iter().map(|one| one.fd_count().expect("its descriptors")).sum(),
            kib: processes.iter().map(|one| one.status().expect("its status").vmrss.expect("its memory")).sum(),
        }
    }
}

/// Pauses in microseconds.
fn switch_back_and_forth(mount: &Mount, switches: u32) -> Histogram<u64> {
    let mut pauses = Histogram::new_with_bounds(1, 60_000_000, 3).expect("bounds");
    let client = Client::new(&mount.sandbox.socket());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        for switch in 0..switches {
            tokio::time::sleep(PAUSE).await;
            let to = if switch % 2 == 0 { Backend::Fuse3 } else { Backend::Fuse2 };
            let switched =
                client.switch("default", to).await.unwrap_or_else(|error| panic!("switch {switch}: {error}"));
            assert_eq!(switched.answered_for_hung, 0, "switch {switch}: nothing hangs here");
            pauses.saturating_record((switched.pause_ms * 1e3) as u64);
        }
    });
    pauses
}

fn milliseconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1e3
}
