//! `demo` from its beginning to its end, as its users see it.

// A build with one backend has nothing to show.
#![cfg(all(feature = "fuse2", feature = "fuse3"))]

mod support;

use std::time::Duration;

use serde_json::Value;
use support::{ROOT_DIRECT, Sandbox, require_root, unless_skipped};

/// It takes a tenth of that.
const LIMIT: Duration = Duration::from_secs(150);

#[test]
fn nothing_is_lost_and_the_slow_candidate_is_rolled_back() {
    unless_skipped(require_root(), || {
        let sandbox = Sandbox::new(ROOT_DIRECT.user, LIMIT);
        let mut command = sandbox.program();
        command.args(["demo", "--seconds", "2", "--json"]).env("TMPDIR", sandbox.path());
        let output = assert_cmd::Command::from_std(command).timeout(LIMIT).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let story: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (&story["failed"], &story["mismatches"], &story["failed_switches"]),
            (&0.into(), &0.into(), &0.into())
        );
        assert!(story["operations"].as_u64() > Some(0) && story["switches"].as_u64() > Some(0), "{story}");
        assert_eq!(story["rollback"]["rule"], "p99", "{story}");
        let told: Vec<_> =
            story["timeline"].as_array().unwrap().iter().map(|line| line["what"].as_str().unwrap()).collect();
        let steps = [
            "are compared",
            "gets 10 %",
            "gets 50 %",
            "becomes slow",
            "rule p99 is broken",
            "rolled back: p99",
            "serves alone",
        ];
        assert_eq!(told.len(), steps.len(), "{told:#?}");
        assert!(told.iter().zip(steps).all(|(told, step)| told.contains(step)), "{told:#?}");
        sandbox.assert_nothing_left();
    });
}
