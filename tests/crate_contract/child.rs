//! Tests that need a process of their own: one whose PATH has a helper in it, or one that may be left in a bad way.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::Habit;

const FOLDER: &str = "LIGHTHOUSE_FS_CRATE_CONTRACT";
/// A child has deadlines of its own; this one is for a child that hangs.
const CHILD_LIMIT: Duration = Duration::from_secs(60);

/// Writes down how it was called and goes on as the mount helper of ours. Its descriptors pass through.
const HELPER: &str = r#"#!/bin/sh
printf '%s\n' "call" "$_FUSE_COMMFD" "$@" >> "$LIGHTHOUSE_FS_CRATE_CONTRACT/calls"
exec "$LIGHTHOUSE_FS_CRATE_CONTRACT/real/fusermount3" "$@"
"#;

/// How the mount helper was called, in a child: the value of `_FUSE_COMMFD` and the arguments, call by call.
#[cfg(feature = "fuse3")]
pub fn helper_calls() -> Vec<Vec<String>> {
    let calls = std::fs::read_to_string(folder().expect("a child").join("calls")).unwrap_or_default();
    calls.split("call\n").skip(1).map(|call| call.lines().map(str::to_owned).collect()).collect()
}

fn folder() -> Option<PathBuf> {
    std::env::var_os(FOLDER).map(PathBuf::from)
}

/// Runs `body` in a child whose PATH begins with our mount helper. `test` is the test's full name.
pub fn in_child(habit: &Habit, test: &str, body: impl FnOnce()) {
    if let Some(folder) = folder() {
        // Not by the parent: a script that some other child inherited for a moment, open for writing, cannot be run.
        let helper = folder.join("bin/fusermount3");
        std::fs::write(&helper, HELPER).expect("a script");
        std::fs::set_permissions(&helper, PermissionsExt::from_mode(0o755)).expect("its mode");
        return body();
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    for part in ["bin", "real"] {
        std::fs::create_dir(folder.path().join(part)).expect("a folder");
    }
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_lighthouse-fs"), folder.path().join("real/fusermount3"))
        .expect("a link to the helper");
    let path = format!("{}:{}", folder.path().join("bin").display(), std::env::var("PATH").unwrap_or_default());
    let child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("PATH", path)
        .env(FOLDER, folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a child");
    let id = nix::unistd::Pid::from_raw(child.id() as i32);
    let (sender, ended) = mpsc::channel();
    // Received by nobody if it is late.
    std::thread::spawn(move || drop(sender.send(child.wait_with_output())));
    let Ok(output) = ended.recv_timeout(CHILD_LIMIT) else {
        // Fails only if it has ended just now.
        nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGKILL).unwrap_or_default();
        habit.broken(format_args!("the test hangs in its process for more than {CHILD_LIMIT:?}"));
    };
    let output = output.expect("the child's output");
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    if let Some(signal) = output.status.signal() {
        habit.broken(format_args!("the test's process was killed by signal {signal}\n{text}"));
    }
    assert!(output.status.success() && text.contains("1 passed"), "{test} failed in its process:\n{text}");
}
