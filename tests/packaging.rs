//! What packages bring beside the program: completions, manual pages and the unit of systemd, held against the programs
//! that read them. (The content is tested beside the code, in src/cli/packaging.rs.)

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rstest::rstest;

const PROGRAM: &str = env!("CARGO_BIN_EXE_lighthouse-fs");

/// Output of a program, with its two streams together; nothing, and a word about it, where it is not installed.
fn judge(program: &str, arguments: &[&str], input: &[u8]) -> Option<(bool, String)> {
    let mut command = Command::new(program);
    // Pages are in UTF-8, and so is what is said of them.
    command
        .args(arguments)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("SKIPPED: {}: {program} is not installed", std::thread::current().name().unwrap_or("unknown"));
            return None;
        }
        child => child.unwrap(),
    };
    child.stdin.take().unwrap().write_all(input).unwrap();
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    Some((status.success(), String::from_utf8([stdout, stderr].concat()).unwrap()))
}

fn completions(shell: &str) -> Vec<u8> {
    let output = Command::new(PROGRAM).args(["completions", shell]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

#[test]
fn bash_completes_subcommands_and_their_options() {
    let script = "source <(\"$0\" completions bash); COMP_WORDS=(lighthouse-fs switch --js); COMP_CWORD=2; \
        _lighthouse__fs lighthouse-fs --js switch; echo \"${COMPREPLY[@]}\"";
    let output =
        std::process::Command::new("bash").args(["-c", script, env!("CARGO_BIN_EXE_lighthouse-fs")]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "--json", "{output:?}");
}

#[rstest]
#[case("bash", &["-n"])]
#[case("zsh", &["-n"])]
#[case("fish", &["--no-execute", "/dev/stdin"])]
fn shells_parse_their_completions(#[case] shell: &str, #[case] arguments: &[&str]) {
    let script = completions(shell);
    if let Some(judgement) = judge(shell, arguments, &script) {
        assert_eq!(judgement, (true, String::new()));
    }
}

#[test]
fn bash_completes_subcommands_and_hides_what_help_hides() {
    let mut script = completions("bash");
    script.extend_from_slice(
        b"\nCOMP_WORDS=(lighthouse-fs '') COMP_CWORD=1; _lighthouse__fs lighthouse-fs '' lighthouse-fs",
    );
    script.extend_from_slice(b"\necho \"${COMPREPLY[@]}\"");
    if let Some((done, answer)) = judge("bash", &[], &script) {
        let words: Vec<_> = answer.split_whitespace().collect();
        assert!(done && words.contains(&"serve") && words.contains(&"--log-level"), "{answer}");
        assert!(!words.contains(&"server"), "{answer}");
    }
}

#[test]
fn an_unknown_shell_is_wrong_usage() {
    let output = Command::new(PROGRAM).args(["completions", "tcsh"]).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
}

#[test]
fn groff_has_nothing_to_say_about_the_pages() {
    let folder = tempfile::tempdir().unwrap();
    // Made if it is missing.
    let pages = folder.path().join("man/man1");
    let output = Command::new(PROGRAM).arg("man").arg(&pages).output().unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    for page in fs::read_dir(&pages).unwrap() {
        let page = page.unwrap();
        let text = fs::read(page.path()).unwrap();
        // -z: warnings and nothing else. Without -Wbreak, a long word is one.
        if let Some(judgement) = judge("groff", &["-man", "-Kutf8", "-Tutf8", "-wall", "-Wbreak", "-z"], &text) {
            assert_eq!(judgement, (true, String::new()), "{}", page.path().display());
        }
    }
}

#[test]
fn pages_that_cannot_be_written_are_a_failure() {
    let output = Command::new(PROGRAM).args(["man", "/proc/none"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/proc/none"), "{output:?}");
}

#[test]
fn systemd_accepts_the_unit() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/systemd/lighthouse-fs.service");
    let unit = fs::read_to_string(unit).unwrap();
    assert!(unit.contains("ExecStart=/usr/bin/lighthouse-fs serve --config /etc/lighthouse-fs/config.toml\n"));
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("lighthouse-fs.service");
    // systemd looks whether the program is there.
    fs::write(&copy, unit.replace("/usr/bin/lighthouse-fs", PROGRAM)).unwrap();
    if let Some(judgement) = judge("systemd-analyze", &["verify", "--man=no", copy.to_str().unwrap()], b"") {
        assert_eq!(judgement, (true, String::new()), "what it ignores it only warns of");
    }
}

/// Through script(1), whose child has a terminal.
#[rstest]
#[case("", true)]
#[case("NO_COLOR=1", false)]
fn help_has_colours_on_a_terminal_alone(#[case] environment: &str, #[case] expected: bool) {
    let line = format!("env -u NO_COLOR TERM=xterm {environment} {PROGRAM} --help");
    if let Some((done, answer)) = judge("script", &["--quiet", "--return", "--command", &line, "/dev/null"], b"") {
        assert!(done, "{answer}");
        assert_eq!(answer.contains('\x1b'), expected, "{answer:?}");
    }
    let (_, answer) = judge(PROGRAM, &["--help"], b"").unwrap();
    assert!(!answer.contains('\x1b'), "{answer:?}");
}
