//! Comparisons in a service: while a rollout runs, of a mount that programs use, and what an operator is told of them.

// With one backend there is nothing to compare.
#![cfg(all(feature = "fuse2", feature = "fuse3"))]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use lighthouse_fs::bench::{Crew, load::Kind};
use serde_json::Value;
use support::service::{Service, mount_of};
use support::{Backend, Sandbox};
use support::{COMMAND_LIMIT, Mount, ROOT_DIRECT, Scrape, Tier, require_root, unless_skipped, wait_for};

const COMPARED: &str = "lighthouse_fuse_shadow_compared_total";
const DIVERGED: &str = "lighthouse_fuse_shadow_divergence_total";
const SEED: u64 = 20_261_125;
const WORKERS_LIMIT: Duration = Duration::from_secs(60);

/// A service whose mount `tried` has fuse2 as its stable backend and fuse3 as its candidate.
fn start(more: &str) -> Service {
    let service = Service::start(ROOT_DIRECT, |sandbox: &Sandbox| {
        let more = format!(
            "backend = \"fuse2\"\ndrill = true\n[mount.cache]\nattributes = \"0s\"\nentries = \"0s\"\n\
             [mount.rollout]\ncandidate = \"fuse3\"\n{more}"
        );
        support::service::mount(sandbox, "tried", &more)
    });
    service.wait_until("serves what is tried", |status| mount_of(status, "tried")["health"] == "healthy");
    service
}

fn report(service: &Service) -> Value {
    let output = service.ask(&["shadow", "report", "tried", "--json"]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn wait_for_report(service: &Service, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    wait_for(what, COMMAND_LIMIT, || Some(report(service)).filter(&is_so))
}

fn order(service: &Service, words: &[&str]) {
    let output = service.ask(words);
    assert!(output.status.success(), "{words:?}: {output:?}");
}

/// Asks for many different things that change nothing.
fn look_around(place: &Path) {
    for entry in fs::read_dir(place).unwrap() {
        let path = entry.unwrap().path();
        fs::symlink_metadata(&path).unwrap();
        if path.is_symlink() {
            fs::read_link(&path).unwrap();
        } else if path.is_file() {
            fs::read(&path).unwrap();
        }
    }
    rustix::fs::statvfs(place).unwrap();
}

#[test]
fn a_shadow_step_finds_a_wrong_answer_and_shows_it() {
    unless_skipped(require_root(), || {
        let service = start("shadow_sample = 1\nsteps = [{ shadow = true, for = '1h' }, { weight = 100, for = '1h' }]");
        let place = service.place("tried");
        fs::write(place.join("file"), "some content").unwrap();
        symlink("nowhere", place.join("link")).unwrap();
        let nothing = report(&service);
        assert_eq!(
            (&nothing["schema"], &nothing["candidate"], &nothing["compared"]),
            (&1.into(), &Value::Null, &0.into())
        );

        let output = service.ask(&["rollout", "start", "tried"]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("step 1: shadow, in which the candidate is only compared"), "{said}");
        wait_for_report(&service, "comparisons to begin", |report| report["candidate"] == "fuse3");
        let healthy = wait_for_report(&service, "all to be compared", |report| {
            look_around(&place);
            let operations = report["operations"].as_array().expect("operations");
            let is_compared =
                |name: &str| operations.iter().any(|of| of["operation"] == name && of["compared"].as_u64() > Some(0));
            ["lookup", "getattr", "read", "readlink", "readdir", "readdirplus", "statfs", "open", "opendir"]
                .into_iter()
                .all(is_compared)
        });
        assert_eq!((&healthy["diverged"], &healthy["examples"]), (&0.into(), &Value::Array(vec![])), "{healthy}");
        assert!(healthy["rate"]["high"].as_f64() < Some(0.5), "{healthy}");

        order(&service, &["drill", "tried", "--backend", "fuse3", "--fault", "diverge", "--operation", "getattr"]);
        let diverged = wait_for_report(&service, "the wrong answer to be found", |report| {
            look_around(&place);
            report["diverged"].as_u64() > Some(0)
        });
        let example = &diverged["examples"][0];
        assert_eq!(example["operation"], "getattr");
        let difference = example["difference"].as_str().expect("words");
        assert!(difference.starts_with("size ") && difference.contains(" instead of "), "{difference}");
        for (side, saying) in
            [("request", "GetAttr { node: NodeId("), ("reference", "ok attr_valid="), ("candidate", " size=")]
        {
            let decoded = example[side]["decoded"].as_str().expect("words");
            assert!(decoded.contains(saying), "{decoded}");
            assert!(example[side]["hex"].as_str().is_some_and(|hex| hex.len() >= 32), "{example}");
        }
        // No client has met it.
        assert_eq!(fs::metadata(place.join("file")).unwrap().len(), 12);

        let text = service.ask(&["shadow", "report", "tried"]);
        let text = String::from_utf8_lossy(&text.stdout).into_owned();
        assert!(text.contains("tried: fuse3 is compared with fuse2, in 100 % of the calls"), "{text}");
        assert!(text.contains("1. getattr at ") && text.contains("\n  candidate  ok attr_valid="), "{text}");
        let scrape = Scrape::of(&service.sandbox.socket());
        assert!(scrape.sum(DIVERGED, &["mount=\"tried\"", "operation=\"getattr\""]) > 0.);
        assert!(scrape.sum(DIVERGED, &["mount=\"tried\"", "operation=\"read\""]) < 1.);
        if std::env::var_os("LIGHTHOUSE_SHOW").is_some() {
            println!("{said}\n{text}");
        }

        order(&service, &["rollout", "abort", "tried"]);
        let over = wait_for_report(&service, "comparisons to end", |report| report["candidate"].is_null());
        assert!(over["diverged"].as_u64() >= diverged["diverged"].as_u64(), "it is not forgotten");
        service.stop();
    });
}

/// Programs of all kinds at work on a mount whose calls are all compared, until so many were.
fn compare_under_load(stable: Backend, wanted: f64) {
    let mount = Mount::builder(stable, ROOT_DIRECT)
        .env("LIGHTHOUSE_FUSE_PARALLEL_TEST", "1")
        .limit(Duration::from_secs(900))
        .start();
    let crew =
        Crew::start(mount.sandbox.program_path(), &mount.sandbox.mountpoint(), &Kind::ALL, SEED).expect("workers");
    let count = |name| mount.scrape().sum(name, &[]);
    wait_for("comparisons", Duration::from_secs(800), || (count(COMPARED) >= wanted).then_some(()));
    let tally = crew.stop(WORKERS_LIMIT);
    assert!(tally.is_clean(), "{tally:#?}");
    let output = mount.ask(&["shadow", "report", "default"]);
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    if std::env::var_os("LIGHTHOUSE_SHOW").is_some() {
        println!("{report}");
    }
    assert!(count(DIVERGED) < 1., "{report}");
    mount.assert_all_answered();
    mount.stop();
}

#[test]
fn what_is_the_same_is_found_to_be_the_same() {
    unless_skipped(require_root(), || {
        let wanted = if Tier::current() == Tier::Quick { 1_000. } else { 50_000. };
        for stable in Backend::ALL {
            compare_under_load(stable, wanted);
        }
    });
}
