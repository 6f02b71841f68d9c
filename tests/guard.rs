//! The guard: a candidate with a fault is rolled back by itself, by the right rule, and programs see no more of it than they
//! must; and without evidence nothing goes up.

// A build with one backend has nothing to roll back to.
#![cfg(all(feature = "fuse2", feature = "fuse3"))]

mod support;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rstest::rstest;
use serde_json::Value;
use support::http::{Listening, PATIENCE};
use support::service::{Service, mount, mount_of, spawn, table};
use support::{Backend, COMMAND_LIMIT, Mount, ROOT_DIRECT, Scrape, Tier, require_root, skip, unless_skipped, wait_for};

const CONTENT: &[u8] = b"content";
/// Programs that read at a time: fewer than fuse2 has threads.
const READERS: usize = 8;
/// From a fault to its rollback: the guard needs a second or two, a loaded machine and a deadline may add to that.
const SOON: Duration = Duration::from_secs(15);
/// `deadlines.drain`, unless configured.
const DRAIN: Duration = Duration::from_secs(2);

/// A service whose mount `tried` has this candidate, with a step of this weight, and a guard for short tests.
fn start(candidate: Backend, steps: &str, guard: &str) -> Service {
    let service = Service::start(ROOT_DIRECT, |sandbox| mount(sandbox, "tried", &configured(candidate, steps, guard)));
    service.wait_until("serves what is tried", |status| mount_of(status, "tried")["health"] == "healthy");
    fs::write(service.sandbox.source().join("tried/file"), CONTENT).unwrap();
    service
}

fn configured(candidate: Backend, steps: &str, guard: &str) -> String {
    format!(
        "backend = \"{}\"\ndrill = true\n[mount.rollout]\ncandidate = \"{candidate}\"\nsteps = [{steps}]\n\
         [mount.guard]\nwindow = '2s'\nminimum_samples = 50\n{guard}",
        candidate.other()
    )
}

fn long(weight: u8) -> String {
    let last = if weight == 100 { "" } else { ", { weight = 100, for = '1h' }" };
    format!("{{ weight = {weight}, for = '1h' }}{last}")
}

fn tried(service: &Service) -> Value {
    mount_of(&service.status().expect("a status"), "tried").clone()
}

fn run(service: &Service, words: &[&str]) -> Value {
    let output = service.ask(&[words, &["--json"]].concat());
    assert!(output.status.success(), "{words:?}: {output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn drill(service: &Service, backend: Backend, fault: &[&str]) {
    let output = service.ask(&[&["drill", "tried", "--backend", backend.name(), "--fault"], fault].concat());
    assert!(output.status.success(), "{output:?}");
}

/// Ends it, and says how many requests were struck.
fn stop_drill(service: &Service) -> u64 {
    run(service, &["drill", "tried", "--stop"])["stopped"]["struck"].as_u64().expect("a drill that ran")
}

fn wait_for_state(service: &Service, state: &str, limit: Duration) -> Value {
    wait_for(&format!("the rollout to be {state}"), limit, || {
        let mount = tried(service);
        (mount["rollout"]["state"] == state).then_some(mount)
    })
}

fn finding(mount: &Value, rule: &str) -> Value {
    let rules = mount["guard"].as_array().expect("rules");
    rules.iter().find(|finding| finding["rule"] == rule).cloned().unwrap_or(Value::Null)
}

/// What programs have seen.
#[derive(Default, Debug)]
struct Seen {
    right: AtomicU64,
    wrong: AtomicU64,
    eio: AtomicU64,
    other: AtomicU64,
    /// In milliseconds.
    longest: AtomicU64,
}

impl Seen {
    fn read(&self, file: &File) {
        let (began, mut bytes) = (Instant::now(), [0; 512]);
        let result = file.read_at(&mut bytes, 0);
        self.longest.fetch_max(began.elapsed().as_millis() as u64, SeqCst);
        let of = match result {
            Ok(length) if bytes[..length] == *CONTENT => &self.right,
            Ok(_) => &self.wrong,
            Err(error) if error.raw_os_error() == Some(libc::EIO) => &self.eio,
            Err(_) => &self.other,
        };
        of.fetch_add(1, SeqCst);
    }

    fn eio(&self) -> u64 {
        self.eio.load(SeqCst)
    }
}

/// Runs `test` while programs read by direct I/O, which is asked of a backend each time.
fn while_read(path: &Path, test: impl FnOnce(&Seen)) -> Seen {
    /// Ends the readers also when the test fails.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, SeqCst);
        }
    }
    let open = || OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).expect("the file");
    let (seen, is_over) = (Seen::default(), AtomicBool::new(false));
    std::thread::scope(|threads| {
        let over = Over(&is_over);
        for _ in 0..READERS {
            let file = open();
            let (seen, is_over) = (&seen, &is_over);
            threads.spawn(move || {
                while !is_over.load(SeqCst) {
                    seen.read(&file);
                }
            });
        }
        wait_for("the readers", COMMAND_LIMIT, || (seen.right.load(SeqCst) > 1000).then_some(()));
        test(&seen);
        drop(over);
    });
    seen
}

/// A fault, what makes it, by which rule it is to be found, and a guard that leaves it to that rule.
struct Case {
    fault: &'static [&'static str],
    rules: &'static [&'static str],
    guard: &'static str,
}

fn case(fault: &str) -> Case {
    let of_reads = |fault: &'static [&'static str], rules, guard| Case { fault, rules, guard };
    match fault {
        "error" => of_reads(&["error", "--operation", "read"], &["consecutive_errors", "error_rate"], ""),
        "some errors" => of_reads(&["error", "--rate", "0.1", "--operation", "read"], &["error_rate"], ""),
        "panic" => of_reads(&["panic", "--rate", "0.1", "--operation", "read"], &["error_rate"], ""),
        "delay" => of_reads(&["delay", "--delay", "600ms", "--operation", "read"], &["p99"], "p99 = '250ms'"),
        "hang" => of_reads(&["hang", "--operation", "read"], &["hang"], "hang = '1s'\np99 = '5s'"),
        "end" => of_reads(&["end"], &["ended_session"], ""),
        "lose" => of_reads(&["lose", "--operation", "read"], &["lost_requests"], "p99 = '5s'"),
        "diverge" => of_reads(&["diverge", "--operation", "read"], &["divergence"], ""),
        other => panic!("no such fault: {other}"),
    }
}

/// What `make test` has time for. Errors and sessions that end have tests of their own there.
const QUICK: [(&str, Backend, u8); 5] = [
    ("diverge", Backend::Fuse3, 50),
    ("panic", Backend::Fuse3, 50),
    ("delay", Backend::Fuse3, 10),
    ("hang", Backend::Fuse2, 10),
    ("lose", Backend::Fuse2, 50),
];

#[rstest]
fn a_fault_is_rolled_back(
    #[values("error", "some errors", "panic", "delay", "hang", "end", "lose", "diverge")] fault: &str,
    #[values(Backend::Fuse2, Backend::Fuse3)] candidate: Backend,
    #[values(10, 50, 100)] weight: u8,
) {
    if Tier::current() == Tier::Quick && !QUICK.contains(&(fault, candidate, weight)) {
        return skip("a few are enough for a start: LIGHTHOUSE_TEST_TIER=full runs them all");
    }
    unless_skipped(require_root(), || {
        let Case { fault: drilled, rules, guard } = case(fault);
        let service = start(candidate, &long(weight), guard);
        run(&service, &["rollout", "start", "tried"]);
        let mut struck = 0;
        let mut took = Duration::ZERO;
        let seen = while_read(&service.place("tried").join("file"), |seen| {
            wait_for("the candidate to serve", COMMAND_LIMIT, || {
                (finding(&tried(&service), "error_rate")["verdict"] == "healthy").then_some(())
            });
            assert_eq!(seen.eio(), 0);
            let began = Instant::now();
            drill(&service, candidate, drilled);
            let mount = wait_for_state(&service, "rolled_back", SOON);
            took = began.elapsed();
            let (pin, reason) = (&mount["pinned"], mount["pinned"]["reason"].as_str().expect("a reason"));
            let rule = rules.iter().find(|rule| reason.starts_with(&format!("{rule}: ")));
            let rule = rule.unwrap_or_else(|| panic!("{reason} is not by {rules:?}: {mount}"));
            assert_eq!(
                (&pin["figures"]["rule"], &pin["figures"]["weight"]),
                (&(*rule).into(), &weight.into()),
                "{pin}"
            );
            println!("{fault}, {candidate} at {weight} %: after {took:?}, {reason}");
            let stable = candidate.other();
            wait_for("the stable backend alone", SOON, || {
                (tried(&service)["active"][stable.name()] == 100).then_some(())
            });
            let scrape = Scrape::of(&service.sandbox.socket());
            let labels = ["mount=\"tried\"".to_owned(), format!("reason=\"{rule}\"")];
            let labels = labels.each_ref().map(String::as_str);
            assert_eq!(scrape.sum("lighthouse_fuse_rollbacks_total", &labels), 1.);
            // What still waits for the candidate is over at the deadline.
            let (before, wrong) = (seen.right.load(SeqCst), seen.wrong.load(SeqCst));
            wait_for("programs to go on", SOON, || (seen.right.load(SeqCst) > before + 1000).then_some(()));
            // Each reader may have been at one.
            assert!(seen.wrong.load(SeqCst) <= wrong + READERS as u64, "wrong answers go on: {seen:?}");
            if fault != "end" {
                struck = stop_drill(&service);
            }
        });
        println!("{fault}, {candidate} at {weight} %: {struck} struck, {seen:?}");
        // Nobody but the comparison knows them from right ones, and it may be quicker than the programs.
        assert!(seen.wrong.load(SeqCst) == 0 || fault == "diverge", "{seen:?}");
        assert_eq!(seen.other.load(SeqCst), 0, "{seen:?}");
        let eio = seen.eio();
        match fault {
            // Each costs itself and nothing else.
            "error" | "some errors" | "panic" => assert_eq!(eio, struck, "{seen:?}"),
            "hang" => assert!((1..=READERS as u64).contains(&eio), "what hung got EIO: {seen:?}"),
            _ => assert_eq!(eio, 0, "{seen:?}"),
        }
        if fault == "delay" {
            assert!(Duration::from_millis(seen.longest.load(SeqCst)) < DRAIN, "{seen:?}");
        }
        assert_eq!(mount_of(&service.status().unwrap(), "tried")["rollout"]["state"], "rolled_back");
        service.stop();
    });
}

/// Not by the prober's two questions a second either: programs are to have used it.
#[test]
fn without_data_nothing_goes_up_and_with_good_ones_it_does() {
    unless_skipped(require_root(), || {
        let steps = "{ weight = 50, for = '1s' }, { weight = 100, for = '1s' }";
        let service = start(Backend::Fuse3, steps, "");
        run(&service, &["rollout", "start", "tried"]);
        let waits = wait_for("the step to wait", COMMAND_LIMIT, || {
            let mount = tried(&service);
            let reason = mount["rollout"]["reason"].as_str()?.to_owned();
            reason.starts_with("waits for evidence: error_rate: ").then_some(reason)
        });
        assert!(waits.contains(" of 50 samples in "), "{waits}");
        // Long after its time.
        let elapsed = |mount: &Value| mount["rollout"]["elapsed_seconds"].as_f64().unwrap_or(0.);
        let mount = wait_for("four seconds", COMMAND_LIMIT, || {
            Some(tried(&service)).filter(|mount| elapsed(mount) > 4. || mount["rollout"]["step"] != 1)
        });
        assert_eq!((&mount["rollout"]["step"], &mount["health"]), (&1.into(), &"healthy".into()), "{mount}");
        assert_eq!(finding(&mount, "error_rate")["verdict"], "no_data");
        let shown = service.ask(&["status", "tried"]);
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(shown.contains("waits for evidence: error_rate: ") && shown.contains("no_data"), "{shown}");
        let seen = while_read(&service.place("tried").join("file"), |_| {
            wait_for_state(&service, "committed", SOON);
        });
        assert_eq!(seen.eio(), 0);
        assert_eq!(service.log().matches("the step goes on: ").count(), 1, "said once");
        service.stop();
    });
}

/// Nobody but the prober asks for these, so that nothing else can tell.
#[rstest]
#[case::an_error("error", "statfs", "fuse3 has answered the prober with an error: ")]
#[case::an_error_to_the_first_question("error", "getattr", "fuse3 has answered the prober with an error: ")]
#[case::silence("hang", "statfs", "the mount has not answered the prober for ")]
fn a_probe_that_fails_is_enough(#[case] fault: &str, #[case] operation: &str, #[case] why: &str) {
    unless_skipped(require_root(), || {
        // Of the mount itself, so it stands above its tables.
        let service = Service::start(ROOT_DIRECT, |sandbox| {
            let more = configured(Backend::Fuse3, &long(100), "");
            mount(sandbox, "tried", &format!("deadlines.probe = '500ms'\n{more}"))
        });
        service.wait_until("serves what is tried", |status| mount_of(status, "tried")["health"] == "healthy");
        run(&service, &["rollout", "start", "tried"]);
        wait_for("the candidate to serve", COMMAND_LIMIT, || (tried(&service)["active"]["fuse3"] == 100).then_some(()));
        drill(&service, Backend::Fuse3, &[fault, "--operation", operation]);
        let mount = wait_for_state(&service, "rolled_back", SOON);
        let reason = mount["pinned"]["reason"].as_str().unwrap();
        assert!(reason.starts_with(&format!("failed_probe: {why}")), "{reason}");
        wait_for("the mount to answer", COMMAND_LIMIT, || {
            (tried(&service)["probe"]["state"] == "answered").then_some(())
        });
        service.stop();
    });
}

#[test]
fn a_reload_counts_at_once() {
    unless_skipped(require_root(), || {
        let service = start(Backend::Fuse3, &long(50), "error_rate = 0.5");
        run(&service, &["rollout", "start", "tried"]);
        while_read(&service.place("tried").join("file"), |_| {
            drill(&service, Backend::Fuse3, &["error", "--rate", "0.1", "--operation", "read"]);
            wait_for("errors", COMMAND_LIMIT, || {
                let rate = finding(&tried(&service), "error_rate");
                (rate["value"].as_f64() > Some(0.05) && rate["verdict"] == "healthy").then_some(())
            });
            let file = fs::read_to_string(support::service::config(&service.sandbox)).unwrap();
            service.reload(&file.replace("error_rate = 0.5", "error_rate = 0.01"));
            let mount = wait_for_state(&service, "rolled_back", SOON);
            assert!(mount["pinned"]["reason"].as_str().unwrap().starts_with("error_rate: "), "{mount}");
        });
        service.stop();
    });
}

/// What is committed and not yet the stable backend of the configuration is judged on; and all figures outlive the daemon.
#[test]
fn a_committed_candidate_is_rolled_back_and_that_outlives_the_daemon() {
    unless_skipped(require_root(), || {
        let mut service = start(Backend::Fuse3, "{ weight = 100, for = '1s' }", "");
        run(&service, &["rollout", "start", "tried"]);
        let line = UnixStream::connect(service.sandbox.socket()).unwrap();
        line.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut events = Listening::start(line, None);
        let mut pinned = Value::Null;
        while_read(&service.place("tried").join("file"), |_| {
            wait_for_state(&service, "committed", SOON);
            drill(&service, Backend::Fuse3, &["error", "--rate", "0.2", "--operation", "read"]);
            pinned = wait_for_state(&service, "rolled_back", SOON)["pinned"].clone();
        });
        let reason = pinned["reason"].as_str().unwrap();
        assert!(reason.starts_with("error_rate: ") && reason.contains(" operations failed in "), "{reason}");
        assert!(reason.ends_with("fuse2 serves nothing, so that fuse3 is judged by itself"), "{reason}");
        let rules = pinned["figures"]["guard"].as_array().expect("all figures");
        let of = |rule: &str| rules.iter().find(|finding| finding["rule"] == rule).expect("a rule").clone();
        assert_eq!((&of("error_rate")["verdict"], &of("error_rate")["threshold"]), (&"breach".into(), &0.01.into()));
        assert!(
            of("error_rate")["value"].as_f64() > Some(0.01) && of("p99")["samples"].as_u64() >= Some(50),
            "{pinned}"
        );
        loop {
            let (_, event) = events.event();
            if event["event"] == "verdict" && event["verdict"] == "breach" {
                assert_eq!((&event["mount"], &event["rule"]), (&"tried".into(), &"error_rate".into()), "{event}");
                break;
            }
            assert_ne!(event["event"], "rollback", "the verdict comes first");
        }
        let (_, event) =
            std::iter::repeat_with(|| events.event()).find(|(_, event)| event["event"] == "rollback").unwrap();
        assert_eq!((&event["reason"], &event["figures"]), (&pinned["reason"], &pinned["figures"]));
        wait_for("nothing to be tried any more", COMMAND_LIMIT, || {
            (tried(&service)["guard"] == Value::Array(vec![])).then_some(())
        });
        service.daemon.kill().unwrap();
        service.daemon.wait().unwrap();
        service.daemon = spawn(&service.sandbox);
        let again = service.wait_until("is pinned", |status| !mount_of(status, "tried")["pinned"].is_null());
        assert_eq!(mount_of(&again, "tried")["pinned"], pinned);
        wait_for_state(&service, "rolled_back", COMMAND_LIMIT);
        service.stop();
    });
}

/// Lets a process go on that was stopped, also when the test fails.
struct GoesOn(Pid);

impl Drop for GoesOn {
    fn drop(&mut self) {
        // Gone already, perhaps.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// The way back comes first, operators are answered meanwhile, and the pin is written down when the disk answers.
#[test]
fn a_state_directory_that_hangs_holds_up_neither_the_way_back_nor_operators() {
    if Tier::current() == Tier::Quick {
        return skip("it waits for deadlines: LIGHTHOUSE_TEST_TIER=full runs it");
    }
    unless_skipped(require_root(), || {
        let host = Mount::builder(Backend::Fuse2, ROOT_DIRECT).without_prober().limit(Duration::from_secs(120)).start();
        let state = host.path("state");
        let service = Service::start(ROOT_DIRECT, |sandbox| {
            let head = format!("[daemon]\nstate_dir = \"{}\"\n", state.display());
            head + &mount(sandbox, "tried", &configured(Backend::Fuse3, &long(50), ""))
        });
        service.wait_until("serves what is tried", |status| mount_of(status, "tried")["health"] == "healthy");
        fs::write(service.sandbox.source().join("tried/file"), CONTENT).unwrap();
        run(&service, &["rollout", "start", "tried"]);
        while_read(&service.place("tried").join("file"), |_| {
            let server = Pid::from_raw(host.server_pid().expect("a server"));
            let goes_on = GoesOn(server);
            kill(server, Signal::SIGSTOP).unwrap();
            drill(&service, Backend::Fuse3, &["error", "--rate", "0.5", "--operation", "read"]);
            wait_for("the stable backend alone", SOON, || (tried(&service)["active"]["fuse2"] == 100).then_some(()));
            let asked = Instant::now();
            let refused = service.ask(&["rollout", "pause", "tried"]);
            assert!(!refused.status.success() && asked.elapsed() < SOON, "{:?}", asked.elapsed());
            drop(goes_on);
            let mount = wait_for_state(&service, "rolled_back", SOON);
            assert!(mount["pinned"]["figures"]["guard"].is_array(), "{mount}");
        });
        service.stop();
        host.stop();
    });
}

/// The source is another mount of ours, whose backend is slow.
#[test]
fn a_slow_source_is_nobodys_fault() {
    unless_skipped(require_root(), || {
        let limit = Duration::from_secs(120);
        let host = Mount::builder(Backend::Fuse2, ROOT_DIRECT).drill().without_prober().limit(limit).start();
        fs::create_dir(host.path("source")).unwrap();
        let source = host.path("source");
        let service = Service::start(ROOT_DIRECT, |sandbox| {
            // Its place is made as for the others.
            mount(sandbox, "tried", "");
            let place = sandbox.path().join("run/tried");
            let steps = "{ weight = 50, for = '1s' }, { weight = 100, for = '1h' }";
            table("tried", &source, &place, &configured(Backend::Fuse3, steps, "p99 = '100ms'"))
        });
        service.wait_until("serves what is tried", |status| mount_of(status, "tried")["health"] == "healthy");
        let slow =
            ["drill", "default", "--backend", "fuse2", "--fault", "delay", "--delay", "150ms", "--operation", "lookup"];
        let output = host.ask(&slow);
        assert!(output.status.success(), "{output:?}");
        run(&service, &["rollout", "start", "tried"]);
        let place = service.place("tried");
        let is_over = AtomicBool::new(false);
        let mount = std::thread::scope(|threads| {
            for worker in 0..READERS {
                let (folder, is_over) = (&place, &is_over);
                threads.spawn(move || {
                    for number in 0_u64.. {
                        if is_over.load(SeqCst) {
                            return;
                        }
                        // What is not there is asked for each time.
                        drop(fs::metadata(folder.join(format!("missing{worker}-{number}"))));
                    }
                });
            }
            let mount = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                wait_for("the verdict", COMMAND_LIMIT, || {
                    let mount = tried(&service);
                    (finding(&mount, "p99")["verdict"] == "source").then_some(mount)
                })
            }));
            is_over.store(true, SeqCst);
            mount.unwrap_or_else(|_| panic!("no such verdict: {}", tried(&service)))
        });
        assert_eq!((&mount["health"], &mount["pinned"]), (&"degraded".into(), &Value::Null));
        assert!(mount["reasons"].to_string().contains("the source is to blame"), "{mount}");
        assert_eq!((&mount["rollout"]["state"], &mount["rollout"]["step"]), (&"running".into(), &1.into()));
        let scrape = Scrape::of(&service.sandbox.socket());
        let labels = ["mount=\"tried\"", "rule=\"p99\"", "verdict=\"source\""];
        assert!(scrape.has("lighthouse_fuse_guard_verdict", &labels), "{mount}");
        assert!(service.log().contains("the source is to blame"));
        let output = host.ask(&["drill", "default", "--stop"]);
        assert!(output.status.success(), "{output:?}");
        service.stop();
        host.stop();
    });
}
