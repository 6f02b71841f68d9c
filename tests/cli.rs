//! The program as a shell sees it: answers, errors and exit codes. Nothing is mounted.

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rstest::rstest;

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("lighthouse-fs"));
    command.args(arguments);
    command
}

fn run(arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = program(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// Runs `serve` on a source and mount point of these names in `folder`, with the control socket there too.
fn serve(folder: &Path, source: &str, mountpoint: &str) -> (i32, String, String) {
    let [source, mountpoint, socket] =
        [source, mountpoint, "control.sock"].map(|name| folder.join(name).to_str().unwrap().to_owned());
    run(&["serve", "--source", &source, "--mountpoint", &mountpoint, "--socket", &socket])
}

#[rstest]
#[case(&["--help"], "switch default fuse2")]
#[case(&["serve", "--help"], "Examples:")]
#[case(&["status", "--help"], "Examples:")]
#[case(&["switch", "--help"], "Examples:")]
#[case(&["backends", "--help"], "Examples:")]
#[case(&["check-config", "--help"], "Exit codes: 0 good, 78 not")]
#[case(&["config", "--help"], "Examples:")]
#[case(&["--version"], concat!("lighthouse-fs ", env!("CARGO_PKG_VERSION")))]
fn help_is_an_answer(#[case] arguments: &[&str], #[case] expected: &str) {
    let (code, answer, errors) = run(arguments);
    assert_eq!((code, errors.as_str()), (0, ""));
    assert!(answer.contains(expected), "{answer}");
}

#[rstest]
#[case(&[], "Usage:")]
#[case(&["dance"], "unrecognized subcommand")]
#[case(&["serve", "--source", "/srv"], "--mountpoint")]
#[case(&["serve", "--source", "/srv", "--mountpoint", "/mnt", "--backend", "fuse4"], "use auto, fuse2 or fuse3")]
#[case(&["serve", "--source", "/srv", "--mountpoint", "/mnt", "--name", "a/b"], "letters, digits")]
#[case(&["serve", "--source", "/srv", "--mountpoint", "/mnt", "--threads", "0"], "use 1 to 64")]
#[case(&["serve", "--source", "", "--mountpoint", "/mnt"], "empty")]
#[case(&["serve", "--config", "/etc/lighthouse-fs.toml", "--source", "/srv"], "cannot be used with")]
#[case(&["serve"], "nothing to serve")]
#[case(&["check-config"], "<FILE>")]
#[case(&["switch", "default", "fuse4"], "[possible values: fuse2, fuse3]")]
#[case(&["status", "--log-level", "fuse3=loud"], "use error, warn, info")]
#[case(&["status", "--log-level", "loud"], "use error, warn, info, debug, trace, off, or a filter")]
#[case(&["status", "--log-format", "xml"], "text, json")]
#[case(&["server"], "started by `serve` only")]
fn wrong_usage_is_64(#[case] arguments: &[&str], #[case] expected: &str) {
    let (code, answer, errors) = run(arguments);
    assert_eq!((code, answer.as_str()), (64, ""), "{errors}");
    assert!(errors.contains(expected), "{errors}");
}

#[rstest]
#[case(&["status"])]
#[case(&["status", "default", "--json"])]
#[case(&["switch", "default", "fuse3"])]
fn without_a_daemon_it_is_3(#[case] arguments: &[&str], #[values(false, true)] killed: bool) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    if killed {
        drop(UnixListener::bind(&socket).unwrap());
    }
    let (code, answer, errors) = run(&[arguments, &["--socket", socket.to_str().unwrap()]].concat());
    assert_eq!((code, answer.as_str()), (3, ""));
    assert!(errors.contains("no daemon answers on") && errors.contains("lighthouse-fs serve"), "{errors}");
}

#[rstest]
#[case(&["status"])]
#[case(&["switch", "default", "fuse3"])]
#[case(&["health"])]
fn a_socket_that_was_removed_is_3(#[case] arguments: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    let _daemon = UnixListener::bind(&socket).unwrap();
    std::fs::remove_file(&socket).unwrap();
    let (code, answer, errors) = run(&[arguments, &["--socket", socket.to_str().unwrap()]].concat());
    assert_eq!((code, answer.as_str()), (3, ""));
    assert!(
        errors.contains("is not there, but a daemon listens on it") && errors.contains("restart that daemon"),
        "{errors}"
    );
}

#[test]
fn a_daemon_that_is_stopped_holds_nobody_up() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    let _silent = UnixListener::bind(&socket).unwrap();
    let (code, _, errors) = run(&["status", "--socket", socket.to_str().unwrap()]);
    assert_eq!(code, 3);
    assert!(errors.contains("has not answered within 5s"), "{errors}");
}

#[test]
fn backends_have_the_promised_shape() {
    let (code, answer, _) = run(&["backends", "--json"]);
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((code, &answer["schema"]), (0, &1.into()));
    for (backend, name) in answer["backends"].as_array().unwrap().iter().zip(["fuse2", "fuse3"]) {
        assert_eq!(backend["name"], name);
        assert!(backend["crate"].is_string() && backend["crate_version"].is_string());
        assert!(backend["built_in"].is_boolean());
        assert!(backend["helper"].is_null() || backend["helper"]["path"].is_string());
        let works = backend["works"].as_bool().unwrap();
        assert_eq!((backend["reason"].is_null(), backend["remedy"].is_null()), (works, works), "{backend}");
    }
    assert_eq!(answer["device"]["path"], "/dev/fuse");
    assert!(answer["kernel"].is_string());
    let (code, answer, _) = run(&["backends"]);
    assert_eq!(code, 0);
    assert!(answer.starts_with("BACKEND  WORKS"), "{answer}");
}

#[rstest]
#[case(&["backends"])]
#[case(&["--help"])]
fn a_reader_who_goes_away_is_no_failure(#[case] arguments: &[&str]) {
    let mut child = program(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!((child.wait().unwrap().code(), errors.as_str()), (Some(0), ""));
}

#[rstest]
#[case("missing", "mnt", 1, "does not exist: make it")]
#[case("file", "mnt", 1, "is not a directory")]
#[case("src", "src/mnt", 78, "lie in each other")]
#[case("mnt/../src", "src", 78, "lie in each other")]
fn serve_checks_before_it_does_anything(
    #[case] source: &str,
    #[case] mountpoint: &str,
    #[case] expected: i32,
    #[case] why: &str,
) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("src")).unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let (code, answer, errors) = serve(folder.path(), source, mountpoint);
    assert_eq!((code, answer.as_str()), (expected, ""), "{errors}");
    assert!(errors.contains(why), "{errors}");
    assert!(!folder.path().join("control.sock").exists());
}

#[test]
fn serve_leaves_the_socket_of_another_daemon_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("src")).unwrap();
    std::fs::create_dir(folder.path().join("mnt")).unwrap();
    let socket = folder.path().join("control.sock");
    let _other = UnixListener::bind(&socket).unwrap();
    let (code, _, errors) = serve(folder.path(), "src", "mnt");
    assert_eq!(code, 1);
    assert!(errors.contains("a daemon is listening on") && errors.contains("another `socket`"), "{errors}");
    assert!(socket.exists());
}

#[rstest]
#[case("/dev/fd/77", "No such file")]
#[case("/dev/fd/0", "it is something else")]
fn a_descriptor_that_is_no_fuse_device_is_refused(#[case] mountpoint: &str, #[case] why: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (code, _, errors) = serve(folder.path(), ".", mountpoint);
    assert_eq!(code, 1);
    assert!(errors.contains("is no open FUSE device") && errors.contains(why), "{errors}");
}
