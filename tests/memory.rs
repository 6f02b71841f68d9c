//! What a server needs under a load that stays the same does not grow with the operations that it has served.

mod support;

use std::time::Duration;

use lighthouse_fs::bench::Crew;
use lighthouse_fs::bench::load::Kind;
use procfs::process::Process;
use rstest::rstest;
use support::{Backend, Mount, ROOT_DIRECT, Tier, Way, unless_skipped, wait_for};

/// Operations after which every thread, buffer and table has been used.
const WARM: u64 = 100_000;
/// Operations in which a leak of a few bytes in each would show.
const MANY: u64 = 1_000_000;
/// On a loaded machine, in a debug build.
const LIMIT: Duration = Duration::from_secs(600);
const WORKERS_LIMIT: Duration = Duration::from_secs(60);
/// What chance may add, in bytes: a leak of 16 bytes in each operation is twice that.
const MARGIN: u64 = 8 << 20;
/// Between two looks, since each starts a program, and takes its time from the load.
const LOOK: Duration = Duration::from_millis(250);

#[rstest]
fn a_server_does_not_grow_with_what_it_serves(#[values(Backend::Fuse2, Backend::Fuse3)] backend: Backend) {
    if Tier::current() == Tier::Quick {
        return support::skip("a million operations: `make test-full`");
    }
    if !backend.is_built_in() {
        return support::skip("this build does not have this backend");
    }
    unless_skipped(Way::possible(ROOT_DIRECT), || {
        let mount = Mount::builder(backend, ROOT_DIRECT).limit(LIMIT).start();
        let server = Process::new(mount.server_pid().expect("a server")).unwrap();
        let operations = || {
            std::thread::sleep(LOOK);
            let status = mount.status();
            let backends = status["backends"].as_array().expect("backends");
            backends.iter().map(|backend| backend["operations"].as_u64().expect("a number")).sum::<u64>()
        };
        // Resident, in bytes.
        let memory = || server.status().unwrap().vmrss.expect("a process that lives") << 10;
        let crew = Crew::start(mount.sandbox.program_path(), &mount.path(""), &Kind::ALL, 7).expect("workers");
        wait_for("the server to be warm", LIMIT, || (operations() >= WARM).then_some(()));
        let before = memory();
        wait_for("many operations", LIMIT, || (operations() >= WARM + MANY).then_some(()));
        let after = memory();
        println!("{backend}: {} KiB after {WARM} operations, {} KiB after {MANY} more", before >> 10, after >> 10);
        let tally = crew.stop(WORKERS_LIMIT);
        assert!(tally.is_clean(), "{tally:?}");
        assert!(after <= before + MARGIN, "{before} bytes, then {after}");
        mount.stop();
    });
}
