//! The example file system, served and switched: any `Vfs` runs on the two stacks, not only pass-through.

// A build with one backend has nothing to switch to.
#![cfg(all(feature = "fuse2", feature = "fuse3"))]

#[macro_use]
mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use support::{Sandbox, User, require_root, unless_skipped};

const SWITCHES: usize = 20;

/// Cargo builds examples beside the tests, but names no variable for them.
fn example() -> PathBuf {
    let folder = Path::new(support::PROGRAM).parent().expect("a folder");
    let program = folder.join("examples/memory_fs");
    assert!(program.exists(), "{} is missing: cargo build --examples", program.display());
    program
}

#[test]
fn a_file_system_in_memory_lives_through_switches() {
    unless_skipped(require_root(), || {
        let sandbox = Sandbox::new(User::Root, Duration::from_secs(60));
        let mut served = sandbox
            .client(example())
            .arg(sandbox.mountpoint())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the example");
        let mut input = served.stdin.take().expect("a pipe");
        let mut lines = BufReader::new(served.stdout.take().expect("a pipe")).lines();
        let mut said = || lines.next().expect("a line").expect("a line");
        assert!(said().starts_with("served by fuse"));

        let path = |name: String| sandbox.mountpoint().join(name);
        fs::create_dir(path("folder".into())).unwrap();
        for switch in 0..SWITCHES {
            let text = format!("content {switch}").repeat(10_000);
            fs::write(path(format!("folder/file{switch}")), &text).unwrap();
            writeln!(input).unwrap();
            let expected = if switch % 2 == 0 { "served by fuse2" } else { "served by fuse3" };
            let line = said();
            assert!(line.starts_with(expected), "{line}");
            assert_eq!(fs::read_to_string(path(format!("folder/file{switch}"))).unwrap(), text);
            assert_eq!(fs::read_dir(path("folder".into())).unwrap().count(), switch + 1);
        }
        fs::rename(path("folder".into()), path("moved".into())).unwrap();
        assert_eq!(fs::read_dir(path("moved".into())).unwrap().count(), SWITCHES);
        drop(input);
        assert!(served.wait().expect("the example").success());
        sandbox.assert_nothing_left();
    });
}
