//! What packages bring beside the program: completions, manual pages and the unit of systemd, held against the programs
//! that read them. (The content is tested beside the code, in src/cli/packaging.rs.)

mod support;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rstest::rstest;
use support::{Backend, Mount, PROGRAM, Way, unless_skipped};

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

/// What a shell makes of words, the last of which is not complete: its candidates, or for zsh what is on the line in the end.
fn completed(shell: &str, words: &str) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("_lighthouse-fs"), completions(shell)).unwrap();
    let script = match shell {
        "bash" => {
            "source $0/_lighthouse-fs; COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); \
             $(complete -p lighthouse-fs | sed 's/.*-F \\([^ ]*\\).*/\\1/') lighthouse-fs \"${COMP_WORDS[COMP_CWORD]}\"; \
             printf '%s\\n' \"${COMPREPLY[@]}\""
        }
        "fish" => "source $argv[1]/_lighthouse-fs; complete -C $argv[2]",
        // As packages install it; typed, with Tab.
        _ => {
            "zmodload zsh/zpty; zpty -b z zsh -f -i; zpty -w z \"PS1=READY; fpath=($0 \\$fpath); \
             autoload -Uz compinit; compinit -u -d $0/dump; bindkey '^I' complete-word\"; \
             zpty -r -m z seen '*READY*READY*'; zpty -w -n z \"$1\"$'\\t'; zpty -r -m z seen \"*$2*\"; print -r -- \"$seen\""
        }
    };
    let last = words.rsplit(' ').next().unwrap();
    // In zsh the rest of the word, which is sought, is not known here: that of the only candidate.
    let rest = if last == "d" { "default" } else { last };
    let path = format!("{}:{}", Path::new(PROGRAM).parent().unwrap().display(), std::env::var("PATH").unwrap());
    let line = ["30", "env", &format!("PATH={path}"), "TERM=dumb", shell, "-c", script];
    let arguments = [&line[..], &[folder.path().to_str().unwrap(), words, rest]].concat();
    let (done, answer) = judge("timeout", &arguments, b"")?;
    if answer.contains("No such file or directory") && !done {
        println!("SKIPPED: {}: {shell} is not installed", std::thread::current().name().unwrap_or("unknown"));
        return None;
    }
    assert!(done, "{answer}");
    Some(answer)
}

#[rstest]
fn shells_complete_the_names_of_mounts(#[values("bash", "zsh", "fish")] shell: &str) {
    unless_skipped(Way::any().possible(), || {
        let backend = Backend::ALL.into_iter().find(|backend| backend.is_built_in()).unwrap();
        let mount = Mount::builder(backend, Way::any()).start();
        let socket = mount.sandbox.socket();
        for words in ["switch d", "status d", "health --mount d"] {
            let words = format!("lighthouse-fs --socket {} {words}", socket.display());
            let Some(answer) = completed(shell, &words) else { break };
            assert!(answer.contains("default"), "{words}: {answer}");
        }
        mount.stop();
    });
}

#[rstest]
fn shells_complete_subcommands_and_hide_what_help_hides(#[values("bash", "fish")] shell: &str) {
    let Some(answer) = completed(shell, "lighthouse-fs se") else { return };
    let words: Vec<_> = answer.lines().map(|line| line.split('\t').next().unwrap_or_default()).collect();
    assert_eq!(words, ["serve"]);
}

#[rstest]
#[case("switch default fuse", &["fuse2", "fuse3"])]
#[case("drill default --backend fuse", &["fuse2", "fuse3"])]
#[case("drill default --fault d", &["delay", "diverge"])]
#[case("drill default --operation rena", &["rename"])]
fn shells_complete_values(#[values("bash", "fish")] shell: &str, #[case] words: &str, #[case] expected: &[&str]) {
    let Some(answer) = completed(shell, &format!("lighthouse-fs --socket /nowhere {words}")) else { return };
    let words: Vec<_> = answer.lines().map(|line| line.split('\t').next().unwrap_or_default()).collect();
    assert_eq!(words, expected);
}

#[rstest]
#[case(&["switch", "default", "fuse4"], "[possible values: fuse2, fuse3]")]
#[case(&["drill", "default", "--backend", "fuse4", "--fault", "error"], "[possible values: fuse2, fuse3]")]
#[case(&["drill", "default", "--backend", "fuse3", "--fault", "slow"], "[possible values: error, delay, hang, panic, end, diverge, lose]")]
#[case(&["drill", "default", "--backend", "fuse3", "--fault", "error", "--operation", "reed"], "'read'")]
fn errors_list_the_values(#[case] arguments: &[&str], #[case] expected: &str) {
    let output = Command::new(PROGRAM).args(["--socket", "/nowhere"]).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(64) && errors.contains(expected), "{errors}");
}

/// As older deployments call the backends.
#[test]
fn older_names_are_understood() {
    let output = Command::new(PROGRAM).args(["--socket", "/nowhere", "switch", "default", "pyfuse3"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
}

#[rstest]
fn without_a_daemon_there_are_no_names(#[values("bash", "fish")] shell: &str) {
    let Some(answer) = completed(shell, "lighthouse-fs --socket /nowhere switch d") else { return };
    assert_eq!(answer.trim(), "");
}

#[test]
fn an_unknown_shell_is_wrong_usage() {
    let output = Command::new(PROGRAM).args(["completions", "tcsh"]).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
}

/// The pages as the program writes them, in a folder that is made: `man1/…` and `man8/…`.
fn pages(folder: &Path) -> Vec<PathBuf> {
    let output = Command::new(PROGRAM).arg("man").arg(folder).output().unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    let files = |section: &str| fs::read_dir(folder.join(section)).unwrap().map(|entry| entry.unwrap().path());
    files("man1").chain(files("man8")).collect()
}

#[test]
fn pages_are_where_man_looks() {
    let folder = tempfile::tempdir().unwrap();
    let pages = pages(&folder.path().join("man"));
    for page in ["man1/lighthouse-fs.1", "man1/lighthouse-fs-serve.1", "man8/mount.lighthouse-fs.8"] {
        assert!(pages.contains(&folder.path().join("man").join(page)), "{page} is missing in {pages:?}");
    }
    let place = folder.path().join("man");
    let place = place.to_str().unwrap();
    for (section, name) in [("1", "lighthouse-fs-switch"), ("8", "mount.lighthouse-fs")] {
        if let Some((found, answer)) = judge("man", &["-M", place, "-P", "cat", section, name], b"") {
            assert!(found && answer.contains("SYNOPSIS") && answer.contains(name), "{answer}");
        }
    }
}

#[test]
fn groff_and_mandoc_have_nothing_to_say_about_the_pages() {
    let folder = tempfile::tempdir().unwrap();
    for page in pages(folder.path()) {
        let text = fs::read(&page).unwrap();
        // -z: warnings and nothing else. Without -Wbreak, a long word is one.
        if let Some(judgement) = judge("groff", &["-man", "-Kutf8", "-Tutf8", "-wall", "-Wbreak", "-z"], &text) {
            assert_eq!(judgement, (true, String::new()), "{}", page.display());
        }
        if let Some((_, answer)) = judge("mandoc", &["-Tlint", "-Wwarning"], &text) {
            // A page of the same version is the same, whenever it is made. The rest is how crate clap_mangen sets lists.
            let known = ["missing date", "skipping paragraph macro: br"];
            let mut warnings = answer.lines().filter(|line| !known.iter().any(|known| line.contains(known)));
            assert_eq!(warnings.next(), None, "{}", page.display());
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

/// Through script(1), whose child has a terminal: help, an error, the log, and tables.
#[rstest]
fn colours_are_for_terminals_that_want_them(
    #[values(("", true), ("NO_COLOR=1", false), ("NO_COLOR=", true), ("TERM=dumb", false), ("CLICOLOR=0", false))]
    (environment, wanted): (&str, bool),
    #[values(("--help", true), ("dance", true), ("config show --config FILE", true), ("backends", false))]
    (arguments, has_colours): (&str, bool),
) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lighthouse-fs.toml");
    fs::write(&file, "[[mount]]\nsource = \"/srv/a\"\nmountpoint = \"/mnt/a\"\n").unwrap();
    let arguments = arguments.replace("FILE", file.to_str().unwrap());
    // The port is warned of, in the log. CI is unset: where it is set, crate anstyle-query takes every terminal for one with colours.
    let line = format!(
        "env -u CI -u NO_COLOR -u CLICOLOR -u CLICOLOR_FORCE TERM=xterm {environment} LIGHTHOUSE_FUSE_BENCHMARK=1 {PROGRAM} {arguments}"
    );
    if let Some((_, answer)) = judge("script", &["--quiet", "--return", "--command", &line, "/dev/null"], b"") {
        assert!(answer.len() > 100, "{answer}");
        assert_eq!(answer.contains('\x1b'), wanted && has_colours, "{answer:?}");
    }
    let (_, answer) = judge("sh", &["-c", &line], b"").unwrap();
    assert!(!answer.contains('\x1b'), "without a terminal: {answer:?}");
}
