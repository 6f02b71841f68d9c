//! A rollout as an operator sees it: by steps, by hand, over restarts and deaths, with programs at work the whole time.

// A build with one backend has nothing to roll out.
#![cfg(all(feature = "fuse2", feature = "fuse3"))]

mod support;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use lighthouse_fs::api::Client;
use lighthouse_fs::api::model::PromoteRequest;
use lighthouse_fs::bench::{Crew, load::Kind};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rstest::rstest;
use serde_json::Value;
use support::service::{Service, mount_of, serve_command, spawn};
use support::{Backend, COMMAND_LIMIT, Mount, ROOT_DIRECT, Sandbox, Scrape, require_root, unless_skipped, wait_for};

/// For the workers to finish what they are at, on a loaded machine.
const WORKERS_LIMIT: Duration = Duration::from_secs(60);
/// `deadlines.drain`, unless configured.
const DRAIN: Duration = Duration::from_secs(2);
/// What a loaded machine may add.
const SLACK: Duration = Duration::from_secs(8);
const SEED: u64 = 20_261_124;

/// A service whose mount `tried` has fuse2 as its stable backend and fuse3 as its candidate.
fn start(rollout: &str) -> Service {
    start_with("", rollout)
}

/// The same, with something else in the file.
fn start_with(head: &str, rollout: &str) -> Service {
    let service = Service::start(ROOT_DIRECT, |sandbox| {
        let more = format!("backend = \"fuse2\"\ndrill = true\n[mount.rollout]\ncandidate = \"fuse3\"\n{rollout}");
        head.to_owned() + &support::service::mount(sandbox, "tried", &more)
    });
    service.wait_until("serves what is tried", |status| mount_of(status, "tried")["health"] == "healthy");
    service
}

const LONG: &str = "steps = [{ weight = 10, for = '1h' }, { weight = 50, for = '1h' }, { weight = 100, for = '1h' }]";
const SHORT: &str =
    "steps = [{ shadow = true, for = '1s' }, { weight = 10, for = '2s' }, { weight = 100, for = '1s' }]";

fn tried(service: &Service) -> Value {
    mount_of(&service.status().expect("a status"), "tried").clone()
}

/// Runs a command about the mount; what it says in JSON, or why it does not.
fn order(service: &Service, words: &[&str]) -> Result<Value, String> {
    let output = service.ask(&[words, &["tried", "--json"]].concat());
    match output.status.code() {
        Some(0) => Ok(serde_json::from_slice(&output.stdout).expect("JSON")),
        Some(1) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        other => panic!("{words:?} exits with {other:?}: {output:?}"),
    }
}

fn wait_for_state(service: &Service, state: &str) -> Value {
    wait_for(&format!("the rollout to be {state}"), COMMAND_LIMIT, || {
        let mount = tried(service);
        (mount["rollout"]["state"] == state).then_some(mount)
    })
}

fn active(mount: &Value) -> (u64, u64) {
    let share = |backend: &str| mount["active"][backend].as_u64().unwrap_or(0);
    (share("fuse2"), share("fuse3"))
}

fn is_served(service: &Service) -> bool {
    matches!(tried(service)["health"].as_str(), Some("healthy" | "degraded"))
}

/// Lets a process go on that was stopped, also when the test fails.
struct GoesOn(Pid);

impl Drop for GoesOn {
    fn drop(&mut self) {
        // Gone already, perhaps.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// Deadlines that a test can wait for.
const QUICK: &str = "[mount.deadlines]\ndrain = '100ms'\nunmount = '1s'\nprobe = '60s'";

#[test]
fn a_step_takes_no_time_while_its_server_is_silent() {
    unless_skipped(require_root(), || {
        // Nothing asks for anything, so that there is nothing to compare.
        let service = start(&format!("{SHORT}\nshadow_sample = 0\n{QUICK}"));
        order(&service, &["rollout", "start"]).unwrap();
        let server = Pid::from_raw(service.server("tried").try_into().unwrap());
        let goes_on = GoesOn(server);
        kill(server, Signal::SIGSTOP).unwrap();
        // The first step may end before anybody can know; its successor is ordered, and nobody obeys.
        let reason = || tried(&service)["rollout"]["reason"].to_string();
        let stands = wait_for("the time to stand", COMMAND_LIMIT, || {
            reason().contains("its time does not run").then(|| tried(&service)["rollout"]["step"].clone())
        });
        assert!(stands.as_u64() <= Some(2), "{stands}");
        // Longer than all steps together: this is the measurement, not a wait for something.
        std::thread::sleep(Duration::from_secs(6));
        let mount = tried(&service);
        assert_eq!(
            (&mount["rollout"]["step"], mount["rollout"]["state"].as_str()),
            (&stands, Some("running")),
            "{mount}"
        );
        drop(goes_on);
        wait_for("the second step", COMMAND_LIMIT, || (active(&tried(&service)) == (90, 10)).then_some(()));
        wait_for("the time to run", COMMAND_LIMIT, || {
            (tried(&service)["rollout"]["elapsed_seconds"].as_f64() > Some(0.)).then_some(())
        });
        service.stop();
    });
}

/// What was decided counts at once, also behind an order that is not answered; and the daemon does not wait for that to end.
#[test]
fn a_server_that_is_silent_does_not_hold_up_what_is_decided() {
    unless_skipped(require_root(), || {
        let mut service = start(&format!("{LONG}\n{QUICK}"));
        let server = Pid::from_raw(service.server("tried").try_into().unwrap());
        let _goes_on = GoesOn(server);
        kill(server, Signal::SIGSTOP).unwrap();
        let began = Instant::now();
        let begun = order(&service, &["rollout", "start"]).unwrap();
        assert!(begun["notes"].to_string().contains("not done yet: the server has not answered"), "{begun}");
        let paused = order(&service, &["rollout", "pause"]).unwrap();
        assert_eq!(paused["rollout"]["state"], "paused");
        let back = order(&service, &["rollback", "--reason", "it hangs"]).unwrap();
        assert_eq!(back["pinned"]["reason"], "it hangs");
        assert!(back["notes"].to_string().contains("not done yet"), "{back}");
        // Without this each would have waited for the one before.
        assert!(began.elapsed() < SLACK * 2, "{:?}", began.elapsed());
        let kept = fs::read_to_string(service.sandbox.path().join("state/tried.json")).unwrap();
        assert!(kept.contains("it hangs"), "{kept}");
        let began = Instant::now();
        service.send(Signal::SIGTERM);
        let daemon = &mut service.daemon;
        wait_for("the daemon to end", COMMAND_LIMIT * 2, || daemon.try_wait().expect("the daemon"));
        assert!(began.elapsed() < SLACK * 2, "{:?}", began.elapsed());
        service.sandbox.assert_nothing_left();
    });
}

#[test]
fn from_the_first_step_to_the_last_under_load() {
    unless_skipped(require_root(), || {
        let service = start(SHORT);
        let place = service.place("tried");
        assert_eq!(tried(&service)["rollout"]["state"], "idle");
        assert_eq!(tried(&service)["candidate"], "fuse3");
        let crew = Crew::start(service.sandbox.program_path(), &place, &Kind::ALL, SEED).expect("workers");
        let begun = order(&service, &["rollout", "start"]).unwrap();
        assert_eq!((&begun["rollout"]["state"], &begun["rollout"]["step"]), (&"running".into(), &1.into()));
        assert_eq!(active(&begun), (100, 0), "shadow");
        wait_for("the second step", COMMAND_LIMIT, || (tried(&service)["rollout"]["step"] == 2).then_some(()));
        assert_eq!(active(&tried(&service)), (90, 10));
        let mount = wait_for_state(&service, "committed");
        assert_eq!(active(&mount), (0, 100));
        assert_eq!(mount["health"], "healthy", "{mount}");
        let tally = crew.stop(WORKERS_LIMIT);
        assert!(tally.is_clean(), "{tally:#?}");
        let scrape = Scrape::of(&service.sandbox.socket());
        assert_eq!(scrape.sum("lighthouse_fuse_rollout_state", &["mount=\"tried\""]), 3.);
        let refused = order(&service, &["rollout", "start"]).unwrap_err();
        assert!(refused.contains("committed"), "{refused}");
        service.stop();
    });
}

#[test]
fn what_is_committed_becomes_stable_without_a_new_mount() {
    unless_skipped(require_root(), || {
        let service = start("steps = [{ weight = 100, for = '1s' }]");
        let server = service.server("tried");
        order(&service, &["rollout", "start"]).unwrap();
        // There is no evidence without load.
        order(&service, &["rollout", "promote"]).unwrap();
        wait_for_state(&service, "committed");
        let configured = |backend: &str| support::service::mount(&service.sandbox, "tried", backend);
        service.reload(&configured("backend = \"fuse3\"\ndrill = true\n"));
        let mount = service.wait_until("has another stable backend and no candidate", |status| {
            let mount = mount_of(status, "tried");
            mount["stable"] == "fuse3" && mount["candidate"].is_null()
        });
        let mount = mount_of(&mount, "tried");
        assert_eq!(
            (active(mount), &mount["health"], &mount["rollout"]),
            ((0, 100), &"healthy".into(), &Value::Null),
            "{mount}"
        );
        // And back, as simply.
        service.reload(&configured("backend = \"fuse2\"\ndrill = true\n"));
        let mount = service.wait_until("serves by it", |status| active(mount_of(status, "tried")) == (100, 0));
        let mount = mount_of(&mount, "tried");
        assert_eq!(
            (&mount["stable"], &mount["last_switch"]["reason"]),
            (&"fuse2".into(), &"as it is configured now".into())
        );
        assert_eq!((service.server("tried"), mount["health"].as_str()), (server, Some("healthy")), "{mount}");
        service.stop();
    });
}

#[test]
fn an_operator_holds_and_hurries_it() {
    unless_skipped(require_root(), || {
        let service = start(LONG);
        let refused = order(&service, &["rollout", "promote"]).unwrap_err();
        assert!(refused.contains("`lighthouse-fs rollout start tried` begins one"), "{refused}");
        order(&service, &["rollout", "start"]).unwrap();
        let output = service.ask(&["switch", "tried", "fuse3"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("rollout promote"), "{output:?}");
        assert_eq!(order(&service, &["rollout", "pause"]).unwrap()["rollout"]["state"], "paused");
        let promoted = order(&service, &["rollout", "promote"]).unwrap();
        assert_eq!((&promoted["rollout"]["step"], active(&promoted)), (&2.into(), (50, 50)));
        order(&service, &["rollout", "resume"]).unwrap();
        let aborted = order(&service, &["rollout", "abort"]).unwrap();
        assert_eq!((&aborted["rollout"]["state"], active(&aborted)), (&"aborted".into(), (100, 0)));
        // By hand all is as ever.
        assert!(service.ask(&["switch", "tried", "fuse3"]).status.success());
        assert_eq!(active(&tried(&service)), (0, 100));
        assert_eq!(tried(&service)["health"], "healthy");
        service.stop();
    });
}

#[test]
fn a_rollback_pins_until_somebody_lifts_it() {
    unless_skipped(require_root(), || {
        let mut service = start(LONG);
        order(&service, &["rollout", "start"]).unwrap();
        let back = order(&service, &["rollback", "--reason", "stale listings"]).unwrap();
        assert_eq!((active(&back), &back["pinned"]["reason"]), ((100, 0), &"stale listings".into()));
        let degraded = tried(&service);
        assert_eq!(degraded["health"], "degraded");
        assert!(degraded["reasons"].to_string().contains("stale listings"), "{degraded}");

        // Over a restart in order, and over a death.
        service.send(Signal::SIGTERM);
        let daemon = &mut service.daemon;
        wait_for("the daemon to end", COMMAND_LIMIT * 2, || daemon.try_wait().expect("the daemon"));
        service.daemon = spawn(&service.sandbox);
        service.wait_until("serves", |status| mount_of(status, "tried")["pinned"]["reason"] == "stale listings");
        let told = "it is pinned to fuse2 (stale listings)";
        wait_for("the log to say so", COMMAND_LIMIT, || service.log().contains(told).then_some(()));
        assert_eq!(service.log().matches(told).count(), 1, "at the start, once: {}", service.log());
        wait_for("it to be served", COMMAND_LIMIT, || is_served(&service).then_some(()));
        service.daemon.kill().unwrap();
        service.daemon.wait().unwrap();
        service.daemon = spawn(&service.sandbox);
        service.wait_until("serves", |status| mount_of(status, "tried")["pinned"]["reason"] == "stale listings");

        let refused = order(&service, &["rollout", "start"]).unwrap_err();
        assert!(refused.contains("lighthouse-fs unpin tried"), "{refused}");
        let free = order(&service, &["unpin"]).unwrap();
        assert_eq!((&free["pinned"], &free["rollout"]["state"]), (&Value::Null, &"idle".into()));
        let scrape = Scrape::of(&service.sandbox.socket());
        assert_eq!(scrape.sum("lighthouse_fuse_pinned", &["mount=\"tried\""]), 0.);
        service.stop();
    });
}

/// In an emergency nobody counts letters.
#[test]
fn a_reason_that_is_too_long_is_cut_and_the_rollback_done() {
    unless_skipped(require_root(), || {
        let service = start(LONG);
        let output = service.ask(&["rollback", "tried", "--json", "--reason", &"ü".repeat(5000)]);
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("cut to its first 1000 characters"), "{output:?}");
        assert_eq!(tried(&service)["pinned"]["reason"], "ü".repeat(1000));
        service.stop();
    });
}

/// With another socket, and by a mistake with the same state directory and a mount of the same name.
#[test]
fn another_daemon_does_not_lift_a_pin() {
    unless_skipped(require_root(), || {
        let mut service = start(LONG);
        order(&service, &["rollback", "--reason", "stale listings"]).unwrap();
        let other = Sandbox::new(ROOT_DIRECT.user, Duration::from_secs(90));
        support::service::write_config(&other, support::service::mount(&other, "tried", "backend = \"fuse2\"\n"))
            .unwrap();
        let mut command = serve_command(&other);
        command.arg("--config").arg(support::service::config(&other));
        command.env("STATE_DIRECTORY", service.sandbox.path().join("state"));
        let other = Service { daemon: command.spawn().unwrap(), sandbox: other };
        let status = other.wait_until("serves", |status| mount_of(status, "tried")["health"] == "degraded");
        let mount = mount_of(&status, "tried");
        let pid = format!("is used by another daemon (process {})", service.daemon.id());
        assert!(mount["pinned"].is_null() && mount["reasons"].to_string().contains(&pid), "{mount}");
        wait_for("its log to say so", COMMAND_LIMIT, || other.log().contains(&pid).then_some(()));
        let refused = order(&other, &["unpin"]).unwrap_err();
        assert!(refused.contains(&pid), "{refused}");
        assert_eq!(tried(&service)["pinned"]["reason"], "stale listings");

        // Its server lives on, and holds nothing that would keep others out.
        service.daemon.kill().unwrap();
        service.daemon.wait().unwrap();
        other
            .wait_until("knows of the pin", |status| mount_of(status, "tried")["pinned"]["reason"] == "stale listings");
        order(&other, &["unpin"]).unwrap();
        other.stop();
        service.daemon = spawn(&service.sandbox);
        service.wait_until("serves", |status| mount_of(status, "tried")["pinned"].is_null());
        wait_for("it to be served", COMMAND_LIMIT, || is_served(&service).then_some(()));
        service.stop();
    });
}

#[test]
fn a_daemon_that_is_killed_goes_on_where_it_was() {
    unless_skipped(require_root(), || {
        let mut service = start(LONG);
        order(&service, &["rollout", "start"]).unwrap();
        order(&service, &["rollout", "promote"]).unwrap();
        let server = service.server("tried");
        let crew =
            Crew::start(service.sandbox.program_path(), &service.place("tried"), &Kind::ALL, SEED).expect("workers");
        for _ in 0..3 {
            service.daemon.kill().unwrap();
            service.daemon.wait().unwrap();
            service.daemon = spawn(&service.sandbox);
            let mount = wait_for("the next daemon", COMMAND_LIMIT, || {
                let mount = mount_of(&service.status()?, "tried").clone();
                (mount["rollout"]["step"] == 2 && active(&mount) == (50, 50)).then_some(mount)
            });
            assert_eq!(mount["server_pid"], server, "it served all the time");
        }
        let tally = crew.stop(WORKERS_LIMIT);
        assert!(tally.is_clean(), "{tally:#?}");
        service.stop();
    });
}

#[test]
fn a_server_that_dies_comes_back_with_its_weights_and_the_second_one_pins() {
    unless_skipped(require_root(), || {
        let service = start(LONG);
        order(&service, &["rollout", "start"]).unwrap();
        let kill_server = || {
            let server = service.server("tried");
            kill(Pid::from_raw(server.try_into().unwrap()), Signal::SIGKILL).unwrap();
            wait_for("another server", COMMAND_LIMIT, || {
                let mount = mount_of(&service.status()?, "tried").clone();
                (mount["server_pid"].as_i64().is_some_and(|pid| pid != server) && is_served(&service)).then_some(())
            });
        };
        kill_server();
        wait_for("its weights", COMMAND_LIMIT, || (active(&tried(&service)) == (90, 10)).then_some(()));
        kill_server();
        let mount = wait_for_state(&service, "rolled_back");
        assert!(mount["pinned"]["reason"].to_string().contains("2 servers died"), "{mount}");
        wait_for("stable alone", COMMAND_LIMIT, || (active(&tried(&service)) == (100, 0)).then_some(()));
        service.stop();
    });
}

/// By hand or committed is the same: what could not be mounted for a while comes back as it was, and what servers die of does
/// not, until somebody asks for it.
#[test]
fn a_backend_is_given_up_for_deaths_and_not_for_outages() {
    unless_skipped(require_root(), || {
        let service = start(LONG);
        assert!(service.ask(&["switch", "tried", "fuse3"]).status.success());
        let (source, aside) = (service.sandbox.source().join("tried"), service.sandbox.source().join("aside"));
        let kill_server = || {
            let server = service.server("tried");
            kill(Pid::from_raw(server.try_into().unwrap()), Signal::SIGKILL).unwrap();
        };
        let next_server = || {
            wait_for("the end of one", COMMAND_LIMIT, || {
                tried(&service)["reasons"].to_string().contains("SIGKILL").then_some(())
            });
            // A reload is what hurries the next attempt.
            service.send(Signal::SIGHUP);
            wait_for("another server", COMMAND_LIMIT, || is_served(&service).then_some(()));
        };
        fs::rename(&source, &aside).unwrap();
        kill_server();
        wait_for("two attempts to fail", COMMAND_LIMIT, || {
            (service.log().matches("not served: the source").count() >= 2).then_some(())
        });
        fs::rename(&aside, &source).unwrap();
        service.send(Signal::SIGHUP);
        wait_for("another server", COMMAND_LIMIT, || is_served(&service).then_some(()));
        assert_eq!(active(&tried(&service)), (0, 100), "that the source was missing is not its fault");

        // A slow machine may take so long that two deaths have nothing to do with each other.
        let is_given_up = (0..6).any(|_| {
            kill_server();
            next_server();
            active(&tried(&service)) == (100, 0)
        });
        assert!(is_given_up, "{}", tried(&service));
        let mount = tried(&service);
        assert_eq!(mount["health"], "degraded");
        assert!(
            mount["reasons"].to_string().contains("fuse2 serves instead of fuse3 (servers died while fuse3 served)")
        );
        // Nor does the next server try it.
        kill_server();
        next_server();
        assert_eq!(active(&tried(&service)), (100, 0));
        assert!(service.ask(&["switch", "tried", "fuse3"]).status.success());
        assert_eq!((active(&tried(&service)), tried(&service)["health"].as_str()), ((0, 100), Some("healthy")));
        service.stop();
    });
}

#[test]
fn a_candidate_whose_session_ends_is_rolled_back_and_nobody_notices() {
    unless_skipped(require_root(), || {
        let service = start(LONG);
        let crew =
            Crew::start(service.sandbox.program_path(), &service.place("tried"), &Kind::ALL, SEED).expect("workers");
        order(&service, &["rollout", "start"]).unwrap();
        order(&service, &["rollout", "promote"]).unwrap();
        let drill = service.ask(&["drill", "tried", "--backend", "fuse3", "--fault", "end"]);
        assert!(drill.status.success(), "{drill:?}");
        let mount = wait_for_state(&service, "rolled_back");
        assert!(mount["pinned"]["reason"].to_string().contains("session of fuse3 ended"), "{mount}");
        assert_eq!(mount["pinned"]["figures"]["weight"], 50);
        let tally = crew.stop(WORKERS_LIMIT);
        assert!(tally.is_clean(), "{tally:#?}");
        let scrape = Scrape::of(&service.sandbox.socket());
        let labels = ["mount=\"tried\"", "reason=\"ended_session\""];
        assert_eq!(scrape.sum("lighthouse_fuse_rollbacks_total", &labels), 1.);
        service.stop();
    });
}

#[test]
fn a_reload_changes_the_plan_under_way() {
    unless_skipped(require_root(), || {
        let service = start(LONG);
        order(&service, &["rollout", "start"]).unwrap();
        let file = fs::read_to_string(support::service::config(&service.sandbox)).unwrap();
        service.reload(&file.replace("weight = 10,", "weight = 5,"));
        wait_for("the new weight", COMMAND_LIMIT, || (active(&tried(&service)) == (95, 5)).then_some(()));
        assert_eq!(tried(&service)["rollout"]["state"], "running");
        service.reload(&file.replace(LONG, "fleet = { weight = 100 }"));
        wait_for("the fleet's share", COMMAND_LIMIT, || (active(&tried(&service)) == (0, 100)).then_some(()));
        service.reload(&file.replace(LONG, "fleet = { weight = 0 }"));
        wait_for("the fleet's share", COMMAND_LIMIT, || (active(&tried(&service)) == (100, 0)).then_some(()));
        service.stop();
    });
}

/// Requests are heeded one after the other: the rollback waits for the switch, whose old backend hangs.
#[test]
fn a_rollback_during_a_switch_comes_after_it() {
    unless_skipped(require_root(), || {
        let service = start(LONG);
        fs::write(service.sandbox.source().join("tried/file"), "content").unwrap();
        let drill = service.ask(&["drill", "tried", "--backend", "fuse2", "--fault", "hang", "--operation", "read"]);
        assert!(drill.status.success(), "{drill:?}");
        let path = service.place("tried").join("file");
        std::thread::scope(|threads| {
            let stuck = threads.spawn(move || fs::read(path));
            wait_for("the handler to hang", COMMAND_LIMIT, || {
                (tried(&service)["in_flight"].as_u64() > Some(0)).then_some(())
            });
            let switch = threads.spawn(|| service.ask(&["switch", "tried", "fuse3", "--json"]));
            wait_for("the switch", COMMAND_LIMIT, || (active(&tried(&service)) == (0, 100)).then_some(()));
            let back = order(&service, &["rollback"]).unwrap();
            assert_eq!(active(&back), (100, 0));
            let switched: Value = serde_json::from_slice(&switch.join().unwrap().stdout).unwrap();
            assert_eq!(switched["answered_for_hung"], 1, "the switch was done");
            // The kernel may have asked once more after the EIO, and got it.
            drop(stuck.join().unwrap());
        });
        let stop = service.ask(&["drill", "tried", "--stop"]);
        assert!(stop.status.success(), "{stop:?}");
        assert_eq!(fs::read(service.place("tried").join("file")).unwrap(), b"content");
        service.stop();
    });
}

/// What the candidate does not answer within the deadline gets EIO, and the stable backend has it all.
#[test]
fn a_rollback_from_a_candidate_that_hangs_keeps_its_deadline() {
    unless_skipped(require_root(), || {
        let service = start(LONG);
        fs::write(service.sandbox.source().join("tried/file"), "content").unwrap();
        order(&service, &["rollout", "start"]).unwrap();
        order(&service, &["rollout", "promote"]).unwrap();
        let drill = service.ask(&["drill", "tried", "--backend", "fuse3", "--fault", "hang", "--operation", "getattr"]);
        assert!(drill.status.success(), "{drill:?}");
        let place = service.place("tried");
        let is_over = AtomicBool::new(false);
        std::thread::scope(|threads| {
            let look = || {
                // Some of these reach the candidate, and hang; attributes are asked for anew each time.
                let path = place.join("file");
                while !is_over.load(SeqCst) {
                    drop(fs::OpenOptions::new().append(true).open(&path).and_then(|file| file.set_len(7)));
                    drop(fs::metadata(&path));
                }
            };
            let lookers: Vec<_> = (0..4).map(|_| threads.spawn(look)).collect();
            wait_for("a handler to hang", COMMAND_LIMIT, || {
                let oldest = tried(&service)["oldest_in_flight_seconds"].as_f64().unwrap_or(0.);
                (oldest > 0.3).then_some(())
            });
            let began = Instant::now();
            let back = order(&service, &["rollback"]).unwrap();
            assert!(began.elapsed() < DRAIN + SLACK, "{:?}", began.elapsed());
            assert_eq!(active(&back), (100, 0));
            is_over.store(true, SeqCst);
            lookers.into_iter().for_each(|looker| looker.join().unwrap());
        });
        let scrape = Scrape::of(&service.sandbox.socket());
        let errors = scrape.sum("lighthouse_fuse_operations_total", &["backend=\"fuse3\"", "status=\"backend_error\""]);
        assert!(errors >= 1., "what was answered at the deadline is an error of the backend");
        service.stop();
    });
}

#[test]
fn of_two_operators_who_promote_at_once_one_is_refused() {
    unless_skipped(require_root(), || {
        let service = start(LONG);
        order(&service, &["rollout", "start"]).unwrap();
        let socket = service.sandbox.socket();
        let promote = || {
            let client = Client::new(&socket);
            let body = Some(PromoteRequest { from: Some(1) });
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(client.ask_rollout("tried", "rollout/promote", body)).is_ok()
        };
        let done = std::thread::scope(|threads| {
            let both = [threads.spawn(promote), threads.spawn(promote)];
            both.map(|one| one.join().unwrap())
        });
        assert_eq!(done.iter().filter(|done| **done).count(), 1, "{done:?}");
        assert_eq!(tried(&service)["rollout"]["step"], 2);
        service.stop();
    });
}

/// Operations are what is weighed, not time: also when one backend takes a hundred times as long for each.
#[rstest]
#[case::candidate("fuse3", 10)]
#[case::candidate_at_half("fuse3", 50)]
#[case::stable("fuse2", 50)]
fn a_slow_backend_gets_its_share(#[case] slow: &str, #[case] weight: u64) {
    unless_skipped(require_root(), || {
        let service = start(LONG);
        order(&service, &["rollout", "start"]).unwrap();
        if weight == 50 {
            order(&service, &["rollout", "promote"]).unwrap();
        }
        let delay =
            ["drill", "tried", "--backend", slow, "--fault", "delay", "--delay", "10ms", "--operation", "lookup"];
        let drill = service.ask(&delay);
        assert!(drill.status.success(), "{drill:?}");
        let place = service.place("tried");
        let is_over = AtomicBool::new(false);
        std::thread::scope(|threads| {
            for worker in 0..6 {
                let (place, is_over) = (&place, &is_over);
                threads.spawn(move || {
                    for number in 0_u64.. {
                        if is_over.load(SeqCst) {
                            return;
                        }
                        drop(fs::metadata(place.join(format!("missing{worker}-{number}"))));
                    }
                });
            }
            let looked_up = || {
                let scrape = Scrape::of(&service.sandbox.socket());
                ["fuse2", "fuse3"].map(|backend| {
                    let labels =
                        [format!("backend=\"{backend}\""), "mount=\"tried\"".into(), "operation=\"lookup\"".into()];
                    scrape.sum("lighthouse_fuse_operations_total", &labels.each_ref().map(String::as_str))
                })
            };
            std::thread::sleep(Duration::from_secs(1));
            let is_kept = (0..4).any(|_| {
                let before = looked_up();
                // This is the measurement, not a wait for something.
                std::thread::sleep(Duration::from_secs(3));
                let after = looked_up();
                let [stable, candidate] = [after[0] - before[0], after[1] - before[1]];
                let share = 100. * candidate / (stable + candidate);
                println!("{slow} slow, {weight} %: {share:.1} % of {}", stable + candidate);
                (share - weight as f64).abs() < 5.
            });
            is_over.store(true, SeqCst);
            assert!(is_kept, "{slow} slow: never {weight} %");
        });
        service.stop();
    });
}

/// The stable backend is attached whatever its handlers do, and in time.
#[test]
fn a_rollback_to_a_stable_backend_that_is_stuck() {
    unless_skipped(require_root(), || {
        let service = start(LONG);
        order(&service, &["rollout", "start"]).unwrap();
        order(&service, &["rollout", "promote"]).unwrap();
        let place = service.place("tried");
        for number in 0..40 {
            fs::create_dir(place.join(format!("folder{number}"))).unwrap();
        }
        let drill = service.ask(&["drill", "tried", "--backend", "fuse2", "--fault", "hang", "--operation", "lookup"]);
        assert!(drill.status.success(), "{drill:?}");
        let is_over = AtomicBool::new(false);
        std::thread::scope(|threads| {
            // More than fuse2 has threads, each in a folder of its own: the kernel looks one name up at a time in each. Sooner
            // or later each meets fuse2.
            for worker in 0..40 {
                let (folder, is_over) = (place.join(format!("folder{worker}")), &is_over);
                threads.spawn(move || {
                    for number in 0_u64.. {
                        if is_over.load(SeqCst) {
                            return;
                        }
                        drop(fs::metadata(folder.join(format!("missing{number}"))));
                    }
                });
            }
            wait_for("all threads to hang", COMMAND_LIMIT, || {
                (tried(&service)["in_flight"].as_u64() >= Some(16)).then_some(())
            });
            let back = order(&service, &["rollback"]);
            is_over.store(true, SeqCst);
            let stop = service.ask(&["drill", "tried", "--stop"]);
            assert!(stop.status.success(), "{stop:?}");
            assert_eq!(active(&back.unwrap()), (100, 0));
            fs::metadata(place.join("missing")).unwrap_err();
        });
        service.stop();
    });
}

#[test]
fn a_state_directory_that_hangs_does_not_hold_up_the_way_back() {
    unless_skipped(require_root(), || {
        let host = Mount::builder(Backend::Fuse2, ROOT_DIRECT).without_prober().limit(Duration::from_secs(90)).start();
        let state = host.path("state");
        let service = start_with(&format!("[daemon]\nstate_dir = \"{}\"\n", state.display()), LONG);
        order(&service, &["rollout", "start"]).unwrap();
        let server = Pid::from_raw(host.server_pid().expect("a server"));
        let goes_on = GoesOn(server);
        kill(server, Signal::SIGSTOP).unwrap();
        let back = order(&service, &["rollback"]).unwrap();
        assert_eq!(active(&back), (100, 0));
        assert!(back["notes"].to_string().contains("the state directory has not answered"), "{back}");
        let refused = order(&service, &["unpin"]).unwrap_err();
        assert!(refused.contains("set daemon.state_dir"), "{refused}");
        drop(goes_on);
        wait_for_state(&service, "rolled_back");
        service.stop();
        assert!(fs::read_to_string(host.source_path("state/tried.json")).unwrap().contains("rolled_back"));
        host.stop();
    });
}
