//! The configuration as a shell sees it: `check-config`, `config example`, `config show`, and what `serve` refuses.
//! Nothing is mounted.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use assert_cmd::Command;
use lighthouse_fs::config;
use rstest::rstest;
use tempfile::TempDir;

const GOOD: &str = "[[mount]]\nsource = \"/srv/a\"\nmountpoint = \"/mnt/a\"\n";

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("lighthouse-fs"));
    // What hangs is killed, and has no exit code.
    command.args(arguments).timeout(Duration::from_secs(20));
    let heeded = std::env::vars_os().filter(|(name, _)| name.as_bytes().starts_with(b"LIGHTHOUSE_"));
    for (name, _) in heeded {
        command.env_remove(name);
    }
    command
}

fn run(command: &mut Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().expect("it ends by itself"), text(output.stdout), text(output.stderr))
}

fn write(text: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lighthouse-fs.toml");
    std::fs::write(&file, text).unwrap();
    (folder, file)
}

fn check(file: &Path) -> (i32, String, String) {
    run(&mut program(&["check-config", file.to_str().unwrap()]))
}

/// What `check-config` says of a text, `FILE` standing for its path.
fn mistakes(text: impl AsRef<[u8]>) -> String {
    let (_folder, file) = write(text);
    let (code, answer, errors) = check(&file);
    assert_eq!((code, answer.as_str()), (78, ""), "{errors}");
    errors.replace(file.to_str().unwrap(), "FILE")
}

#[test]
fn a_good_file_is_good() {
    let (_folder, file) = write(GOOD);
    assert_eq!(check(&file), (0, format!("{} is good: 1 mount\n", file.display()), String::new()));
    let (_folder, file) =
        write(format!("{GOOD}[[mount]]\nname = \"b\"\nsource = \"/srv/b\"\nmountpoint = \"/mnt/b\"\n"));
    assert_eq!(check(&file).1, format!("{} is good: 2 mounts\n", file.display()));
}

#[test]
fn the_example_is_good() {
    let (code, example, _) = run(&mut program(&["config", "example"]));
    assert_eq!(code, 0);
    let (_folder, file) = write(&example);
    assert_eq!(check(&file).0, 0, "{example}");
    let uncommented: String = example
        .split_inclusive('\n')
        .map(|line| match line.strip_prefix('#') {
            Some(key) if !key.starts_with(' ') => key,
            _ => line,
        })
        .collect();
    let (_folder, file) = write(uncommented);
    assert_eq!(check(&file).0, 0);
}

#[test]
fn the_reference_is_that_of_this_program() {
    let (_, reference, _) = run(&mut program(&["config", "reference"]));
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/configuration.md");
    assert!(
        reference == std::fs::read_to_string(file).unwrap(),
        "run `lighthouse-fs config reference > docs/reference/configuration.md`"
    );
}

/// Every mistake of a file is told, in its order, with line, key and what would be right.
#[test]
fn every_mistake_is_told_at_once() {
    let text = r#"apis = 1
api = 1
[daemon]
sokcet = "/x"
state_dir = ""
log_level = ""
[[mount]]
source = "/srv/a"
mountpoint = "/mnt/a"
max_write = "1MiB"
backend = "fuse4"
survive = "off"
[mount.io]
max_write = "2MiB"
threads = "3"
max_read = "1MiB"
"cache.entries" = "1s"
[mount.guard]
error_rate = "1 %"
prometheus = { url = "http://prometheus" }
[[mount]]
source = ""
allow_other = 1
io = 3
frobnicate = true
deadlines.drain = 5
bacend = "x"
"#;
    let expected = r#"FILE:1: apis: unknown key; did you mean api?
FILE:2: api: is no table; write [api] above its keys
FILE:4: daemon.sokcet: unknown key; did you mean socket?
FILE:5: daemon.state_dir: "" is empty; write the whole path, from / on
FILE:6: daemon.log_level: "" is no log level; use error, warn, info, debug, trace, off, or a filter such as `info,lighthouse_fs::daemon=debug`
FILE:10: mount.max_write: unknown key; max_write belongs in [mount.io]
FILE:11: mount.backend: unknown backend "fuse4"; use auto, fuse2 or fuse3
FILE:12: mount.survive: this key is not supported by this version; remove it
FILE:14: mount.io.max_write: "2MiB" is out of range; use 4KiB to 1MiB, whole pages
FILE:15: mount.io.threads: has the wrong type: string; write a whole number, without quotes: 1 to 64
FILE:16: mount.io.max_read: this key is not supported by this version; remove it
FILE:17: mount.io.cache.entries: unknown key; entries belongs in [mount.cache]
FILE:19: mount.guard.error_rate: has the wrong type: string; write a number, without quotes: 0.000001 to 1
FILE:20: mount.guard.prometheus.query: there is no query beside it; give url, query and above, or none of them
FILE:20: mount.guard.prometheus.above: there is no above beside it; give url, query and above, or none of them
FILE:21: mount.mountpoint: is missing; add mountpoint = "/…"
FILE:21: mount.name: "default" is the name of another mount too, that of line 7; give each mount a name of its own
FILE:22: mount.source: "" is empty; write the whole path, from / on
FILE:23: mount.allow_other: has the wrong type: integer; write true or false, without quotes
FILE:24: mount.io: is no table; write [mount.io] above its keys
FILE:25: mount.frobnicate: unknown key; remove it; `lighthouse-fs config example` shows the keys there are
FILE:26: mount.deadlines.drain: has the wrong type: integer; write it in quotes: 10ms to 1h
FILE:27: mount.bacend: unknown key; did you mean backend?
"#;
    assert_eq!(mistakes(text), expected);
}

#[rstest]
#[case::empty("", "FILE: mount: there is no mount; add [[mount]] with source and mountpoint")]
#[case::daemon_alone("[daemon]\n", "FILE: mount: there is no mount")]
#[case::one_bracket(
    "[mount]\nsource = \"/srv\"\n",
    "FILE:1: mount: is no list of tables; write [[mount]], with two brackets"
)]
#[case::two_brackets(
    "[[daemon]]\n[[mount]]\nsource = \"/a\"\nmountpoint = \"/b\"\n",
    "FILE:1: daemon: is no table; write [daemon]"
)]
#[case::no_toml("[[mount]]\nsource = /srv\n", "FILE:2: ")]
#[case::twice("[daemon]\nsocket = \"/a\"\nsocket = \"/b\"\n", "FILE:3: duplicate key")]
#[case::not_utf_8(b"[daemon]\n\nsocket = \"/\xff\"\n", "FILE:3: is not UTF-8; save the file in UTF-8")]
#[case::home(
    "[[mount]]\nsource = \"~/a\"\nmountpoint = \"/m\"\n",
    "FILE:2: mount.source: \"~/a\" begins with ~, which only a shell"
)]
#[case::zero_byte(
    "[[mount]]\nsource = \"/a\\u0000\"\nmountpoint = \"/m\"\n",
    "FILE:2: mount.source: \"/a\\0\" has a zero byte"
)]
fn broken_files_are_refused(#[case] text: impl AsRef<[u8]>, #[case] expected: &str) {
    let mistakes = mistakes(text);
    assert!(mistakes.starts_with(expected), "{mistakes}");
}

/// Two mounts, on lines 1 and 5.
#[rstest]
#[case::one_name("a", "/srv/b", "/mnt/b", "FILE:6: mount.name: \"a\" is the name of another mount too, that of line 1")]
#[case::one_place("b", "/srv/b", "/mnt/c/../a/", "FILE:8: mount.mountpoint: /mnt/a is the mount point of \"a\" too")]
#[case::inside(
    "b",
    "/srv/b",
    "/mnt/a/b",
    "FILE:8: mount.mountpoint: /mnt/a/b and the mount point /mnt/a of \"a\" lie in each other"
)]
#[case::around(
    "b",
    "/srv/b",
    "/mnt",
    "FILE:8: mount.mountpoint: /mnt and the mount point /mnt/a of \"a\" lie in each other"
)]
#[case::source_inside(
    "b",
    "/mnt/b/src",
    "/mnt/b",
    "FILE:8: mount.mountpoint: /mnt/b and the source /mnt/b/src lie in each other"
)]
#[case::source_around(
    "b",
    "/data",
    "/data/mnt",
    "FILE:8: mount.mountpoint: /data/mnt and the source /data lie in each other"
)]
#[case::source_in_another(
    "b",
    "/mnt/a/x",
    "/mnt/b",
    "FILE:7: mount.source: /mnt/a/x lies in the mount point /mnt/a of \"a\""
)]
fn mounts_that_meet_are_refused(
    #[case] name: &str,
    #[case] source: &str,
    #[case] mountpoint: &str,
    #[case] expected: &str,
) {
    let first = "[[mount]]\nname = \"a\"\nsource = \"/srv/a\"\nmountpoint = \"/mnt/a\"\n";
    let second = format!("[[mount]]\nname = {name:?}\nsource = {source:?}\nmountpoint = {mountpoint:?}\n");
    let mistakes = mistakes(format!("{first}{second}"));
    assert!(mistakes.starts_with(expected), "{mistakes}");
    assert_eq!(mistakes.lines().count(), 1, "{mistakes}");
}

/// The mount with its stable backend takes lines 1 to 4.
#[cfg(all(feature = "fuse2", feature = "fuse3"))]
#[rstest]
#[case::stable(
    "candidate = 'fuse3'",
    "FILE:5: mount.rollout.candidate: fuse3 is the stable backend too (FILE:4); set backend = \"fuse2\", or remove [mount.rollout]"
)]
#[case::auto("candidate = 'auto'", "FILE:5: mount.rollout.candidate: unknown backend \"auto\"; use fuse2 or fuse3")]
#[case::no_candidate(
    "steps = [{ weight = 100, for = '1h' }]",
    "FILE:5: mount.rollout.steps: there is no candidate; add candidate to [mount.rollout], or remove steps"
)]
#[case::fleet_alone(
    "fleet = { weight = 10 }",
    "FILE:5: mount.rollout.fleet.weight: there is no candidate; add candidate to [mount.rollout], or remove fleet"
)]
#[case::both(
    "candidate = 'fuse2'\nfleet = { weight = 10 }\nsteps = [{ weight = 100, for = '1h' }]",
    "FILE:7: mount.rollout.steps: the share of machines (fleet) takes the place of steps; remove one of them"
)]
#[case::fleet_weight(
    "candidate = 'fuse2'\nfleet = { weight = 101 }",
    "FILE:6: mount.rollout.fleet.weight: \"101\" is out of range; use 0 to 100"
)]
#[case::fleet_plain(
    "candidate = 'fuse2'\nfleet = 10",
    "FILE:6: mount.rollout.fleet: is no table; write [mount.rollout.fleet] above its keys"
)]
#[case::later(
    "candidate = 'fuse2'\nshadow_sample = 5",
    "FILE:6: mount.rollout.shadow_sample: \"5\" is out of range; use 0 to 1"
)]
#[case::slip("kandidate = 'fuse2'", "FILE:5: mount.rollout.kandidate: unknown key; did you mean candidate?")]
fn a_rollout_that_cannot_be_is_refused(#[case] rollout: &str, #[case] expected: &str) {
    let mistakes = mistakes(format!("{GOOD}backend = \"fuse3\"\nrollout.{}", rollout.replace('\n', "\nrollout.")));
    assert!(mistakes.starts_with(expected), "{mistakes}");
    assert_eq!(mistakes.lines().count(), 1, "{mistakes}");
}

#[cfg(all(feature = "fuse2", feature = "fuse3"))]
#[rstest]
#[case::nobody_serves_it(
    "/mnt/s",
    "",
    "there is no candidate to serve it; add candidate to [mount.rollout], or remove"
)]
#[case::the_mount_point("/mnt/a", CANDIDATE, "/mnt/a is the mount point too; choose a place of its own")]
#[case::in_the_mount("/mnt/x/../a/s", CANDIDATE, "/mnt/a/s and the mount point /mnt/a lie in each other; choose")]
#[case::around_the_source("/srv", CANDIDATE, "/srv and the source /srv/a lie in each other; choose a place elsewhere")]
#[case::a_descriptor("/dev/fd/7", CANDIDATE, "a shadow mount is made, not handed in; name a directory")]
fn a_shadow_mount_that_cannot_be_is_refused(#[case] place: &str, #[case] more: &str, #[case] expected: &str) {
    let mount = "[[mount]]\nname = 'a'\nsource = '/srv/a'\nmountpoint = '/mnt/a'\n";
    let mistakes = mistakes(format!("{mount}shadow_mountpoint = '{place}'\n{more}"));
    assert!(mistakes.starts_with(&format!("FILE:5: mount.shadow_mountpoint: {expected}")), "{mistakes}");
    assert_eq!(mistakes.lines().count(), 1, "{mistakes}");
}

#[cfg(all(feature = "fuse2", feature = "fuse3"))]
const CANDIDATE: &str = "rollout.candidate = 'fuse3'\n";

#[cfg(all(feature = "fuse2", feature = "fuse3"))]
#[test]
fn a_shadow_mount_is_a_mount_point_to_the_others() {
    let mount = |name: &str, place: &str, shadow: &str| {
        format!(
            "[[mount]]\nname = '{name}'\nsource = '/srv/{name}'\nmountpoint = '{place}'\nshadow_mountpoint = '{shadow}'\n{CANDIDATE}"
        )
    };
    let said = mistakes(mount("a", "/mnt/a", "/mnt/s") + &mount("b", "/mnt/s", "") + &mount("c", "/mnt/c", "/mnt/s/c"));
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(
        lines,
        [
            "FILE:10: mount.mountpoint: /mnt/s is the mount point of \"a\" too; choose a mount point elsewhere",
            "FILE:17: mount.shadow_mountpoint: /mnt/s/c and the mount point /mnt/s of \"a\" lie in each other; choose a mount point elsewhere",
            "FILE:17: mount.shadow_mountpoint: /mnt/s/c and the mount point /mnt/s of \"b\" lie in each other; choose a mount point elsewhere",
        ]
    );
}

/// Each step on a line of its own, the first one on line 6.
#[cfg(all(feature = "fuse2", feature = "fuse3"))]
#[rstest]
#[case::falls(
    "{ weight = 50, for = '1m' },\n{ weight = 10, for = '1m' },",
    "FILE:7: mount.rollout.steps: weight 10 comes after 50; let weights rise"
)]
#[case::shadow_later(
    "{ weight = 10, for = '1m' },\n{ shadow = true, for = '1m' },",
    "FILE:7: mount.rollout.steps: shadow comes after another step; let it be the first one"
)]
#[case::shadow_twice(
    "{ shadow = true, for = '1m' },\n{ shadow = true, for = '1m' },",
    "FILE:7: mount.rollout.steps: shadow comes after another"
)]
#[case::zero("{ weight = 0, for = '1m' },", "FILE:6: mount.rollout.steps: weight 0 is out of range; use 1 to 100")]
#[case::much("{ weight = 101, for = '1m' },", "FILE:6: mount.rollout.steps: weight 101 is out of range; use 1 to 100")]
#[case::text(
    "{ weight = '10', for = '1m' },",
    "FILE:6: mount.rollout.steps: weight has the wrong type: string; write a whole number"
)]
#[case::no_shadow(
    "{ shadow = false, for = '1m' },",
    "FILE:6: mount.rollout.steps: shadow can only be true; write shadow = true"
)]
#[case::both(
    "{ shadow = true, weight = 10, for = '1m' },",
    "FILE:6: mount.rollout.steps: a step has both weight and shadow; a step has either"
)]
#[case::nothing(
    "{ for = '1m' },",
    "FILE:6: mount.rollout.steps: a step has neither weight nor shadow; a step has either"
)]
#[case::no_time(
    "{ weight = 10 },",
    "FILE:6: mount.rollout.steps: a step does not say how long it lasts; add for = \"30m\""
)]
#[case::no_unit(
    "{ weight = 10, for = '30' },",
    "FILE:6: mount.rollout.steps: \"30\" is no time; use a number with a unit"
)]
#[case::at_once(
    "{ weight = 10, for = '0s' },",
    "FILE:6: mount.rollout.steps: for = \"0s\" is out of range; use 100ms to 30days"
)]
#[case::number(
    "{ weight = 10, for = 30 },",
    "FILE:6: mount.rollout.steps: for has the wrong type: integer; write it in quotes"
)]
#[case::unknown(
    "{ weigth = 10, for = '1m' },",
    "FILE:6: mount.rollout.steps: unknown key \"weigth\" in a step; a step has either"
)]
#[case::no_table("10,", "FILE:6: mount.rollout.steps: a step is no table; write { weight = 10, for = \"30m\" }")]
fn a_wrong_step_is_told_with_its_line(#[case] steps: &str, #[case] expected: &str) {
    let rollout =
        format!("rollout.candidate = \"fuse3\"\nrollout.steps = [\n{steps}\n{{ weight = 100, for = \"1h\" }}]\n");
    let mistakes = mistakes(format!("{GOOD}{rollout}"));
    assert!(mistakes.starts_with(expected), "{mistakes}");
    assert_eq!(mistakes.lines().count(), 1, "{mistakes}");
}

#[cfg(all(feature = "fuse2", feature = "fuse3"))]
#[rstest]
#[case::early_end(
    "[{ weight = 10, for = '1m' }]",
    "FILE:5: mount.rollout.steps: the last step is 10 %; end with { weight = 100"
)]
#[case::empty("[]", "FILE:5: mount.rollout.steps: there are 0 steps; write 1 to 50 of them")]
#[case::no_list("'slow'", "FILE:5: mount.rollout.steps: has the wrong type: string; write steps, such as [{ shadow")]
fn steps_lead_to_the_whole(#[case] steps: &str, #[case] expected: &str) {
    let mistakes = mistakes(format!("{GOOD}rollout.candidate = \"fuse3\"\nrollout.steps = {steps}\n"));
    assert!(mistakes.starts_with(expected), "{mistakes}");
    assert_eq!(mistakes.lines().count(), 1, "{mistakes}");
}

#[cfg(not(all(feature = "fuse2", feature = "fuse3")))]
#[test]
fn a_build_with_one_backend_has_no_rollout() {
    for candidate in ["fuse2", "fuse3"] {
        let mistakes = mistakes(format!("{GOOD}rollout.candidate = \"{candidate}\"\n"));
        assert!(mistakes.starts_with("FILE:4: mount.rollout.candidate: this build has no fuse"), "{mistakes}");
    }
}

/// By the text alone these are apart.
#[rstest]
#[case::source_and_place("src", "mnt/link/in", "other/src", "other/mnt", ":4: mount.mountpoint: source ")]
#[case::one_place(
    "src",
    "mnt/a",
    "other/src",
    "mnt/link/../mnt/a",
    ":8: mount.mountpoint: mounts \"a\" and \"b\" have"
)]
#[case::source_in_another(
    "src",
    "mnt/a",
    "alias/a/b",
    "other/mnt",
    ":8: mount.mountpoint: mounts \"a\" and \"b\" hang"
)]
#[case::socket("src", "alias/run", "other/src", "other/mnt", ":4: mount.mountpoint: the control socket ")]
fn links_are_followed(
    #[case] source: &str,
    #[case] mountpoint: &str,
    #[case] other_source: &str,
    #[case] other_mountpoint: &str,
    #[case] expected: &str,
) {
    let (folder, file) = write("");
    let at = |name: &str| folder.path().join(name);
    for name in ["src", "mnt/a", "mnt/run"] {
        std::fs::create_dir_all(at(name)).unwrap();
    }
    std::os::unix::fs::symlink(at("src"), at("mnt/link")).unwrap();
    std::os::unix::fs::symlink("mnt", at("alias")).unwrap();
    let table = |name: &str, source: &str, mountpoint: &str| {
        format!("[[mount]]\nname = {name:?}\nsource = {:?}\nmountpoint = {:?}\n", at(source), at(mountpoint))
    };
    let text = table("a", source, mountpoint) + &table("b", other_source, other_mountpoint);
    std::fs::write(&file, format!("{text}[daemon]\nsocket = {:?}\n", at("mnt/run/control.sock"))).unwrap();
    let (code, answer, errors) = check(&file);
    assert_eq!((code, answer.as_str()), (78, ""), "{errors}");
    let (line, rest) = errors.split_once(": ").unwrap();
    assert!(format!("{line}: {rest}").starts_with(&format!("{}{expected}", file.display())), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
}

#[test]
fn names_that_only_begin_alike_do_not_meet() {
    let (_folder, file) = write("[[mount]]\nsource = \"/mnt/a.d\"\nmountpoint = \"/mnt/a\"\n");
    assert_eq!(check(&file).0, 0);
}

#[test]
fn what_the_daemon_leans_on_lies_outside() {
    let socket = mistakes(format!("[daemon]\nsocket = \"/mnt/a/control.sock\"\n{GOOD}"));
    let expected = "FILE:2: daemon.socket: the control socket /mnt/a/control.sock lies in the mount point /mnt/a; move it: the daemon must not depend on what it serves\n";
    assert_eq!(socket, expected);
    let state = mistakes(format!("[daemon]\nstate_dir = \"/mnt/a/state\"\n{GOOD}"));
    assert!(
        state.starts_with("FILE:2: daemon.state_dir: the state directory /mnt/a/state lies in the mount"),
        "{state}"
    );

    let (folder, file) = write("");
    std::fs::write(&file, format!("[[mount]]\nsource = \"/srv\"\nmountpoint = {:?}\n", folder.path())).unwrap();
    let (code, _, errors) = check(&file);
    assert!(code == 78 && errors.contains("this file") && errors.contains("lies in the mount point"), "{errors}");
}

#[test]
fn too_much_is_refused_unread() {
    let (_folder, file) = write(GOOD);
    // Sparse: reading it whole would take all memory.
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(1 << 42).unwrap();
    let (code, _, errors) = check(&file);
    assert_eq!(
        (code, errors),
        (
            78,
            format!("{}: has more than 1 MiB; name a configuration file: a few lines for each mount\n", file.display())
        )
    );
}

#[test]
fn a_full_mebibyte_of_anything_is_judged_in_time() {
    for line in ["[[mount]]\n", "=\n", "a.", "x=[", "[[mount]]\ninvalid=1\n"] {
        let (_folder, file) = write(line.repeat((1 << 20) / line.len()));
        assert_eq!(check(&file).0, 78, "{line:?}");
    }
}

#[rstest]
#[case::missing("missing", "cannot be read: No such file or directory")]
#[case::folder(".", "is no regular file")]
#[case::fifo("fifo", "is no regular file")]
#[case::device("/dev/zero", "is no regular file")]
fn what_is_no_file_is_refused(#[case] name: &str, #[case] why: &str, #[values("check", "serve", "show")] by: &str) {
    let folder = tempfile::tempdir().unwrap();
    nix::unistd::mkfifo(&folder.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let path = folder.path().join(name);
    let path = path.to_str().unwrap();
    let (code, answer, errors) = run(&mut match by {
        "check" => program(&["check-config", path]),
        "serve" => program(&["serve", "--config", path]),
        _ => program(&["config", "show", "--config", path]),
    });
    assert_eq!((code, answer.as_str()), (78, ""), "{errors}");
    assert!(errors.contains(why), "{errors}");
}

#[test]
fn a_file_of_somebody_else_is_refused() {
    let (folder, file) = write(GOOD);
    for (path, mode) in [(folder.path(), 0o755), (file.as_path(), 0o000)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    // Root may read everything; on a thread of its own, it becomes somebody else.
    let read = || {
        if rustix::process::geteuid().is_root() {
            let nobody = rustix::process::Uid::from_raw(65534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        }
        config::load(&config::Sources::file(&file, "/run/control.sock"))
    };
    let errors = std::thread::scope(|scope| scope.spawn(read).join().unwrap()).unwrap_err().to_string();
    assert!(errors.contains("Permission denied") && errors.contains("let this user read it"), "{errors}");
}

#[test]
fn a_terminal_obeys_no_file() {
    let mistakes = mistakes("\"a\\u001b[31m\\n\" = 1\n[daemon]\nlog_format = \"\\u001b[31m\"\n");
    assert!(!mistakes.contains('\x1b') && mistakes.lines().count() == 3, "{mistakes:?}");
}

#[test]
fn every_value_says_where_it_comes_from() {
    let (_folder, file) = write(format!("{GOOD}read_only = true\nsuid = true\n"));
    let path = file.to_str().unwrap();
    let mut command =
        program(&["config", "show", "--json", "--config", path, "--socket", "/run/s", "--backend", "auto"]);
    let built_in = if cfg!(feature = "fuse3") { "fuse3" } else { "fuse2" };
    command.env("LIGHTHOUSE_FUSE_BACKEND", built_in).env("LIGHTHOUSE_FUSE_ALLOW_OTHER", "yes");
    command.env("LIGHTHOUSE_FUSE_BENCHMARK", "1");
    let (code, answer, errors) = run(&mut command);
    assert_eq!(code, 0, "{errors}");
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let of = |key: &str| {
        let values = answer["values"].as_array().unwrap();
        let mut value = values.iter().find(|value| value["key"] == key).unwrap().clone();
        value.as_object_mut().unwrap().remove("key");
        value
    };
    assert_eq!(answer["schema"], 1);
    assert_eq!(
        of("daemon.socket"),
        serde_json::json!({"mount": null, "value": "/run/s", "from": "flag", "flag": "--socket"})
    );
    assert_eq!(of("daemon.socket_group"), serde_json::json!({"mount": null, "value": null, "from": "default"}));
    assert_eq!(of("mount.backend")["value"], "auto");
    assert_eq!(
        of("mount.allow_other"),
        serde_json::json!({"mount": "default", "value": true, "from": "environment", "variable": "LIGHTHOUSE_FUSE_ALLOW_OTHER"})
    );
    assert_eq!(
        of("mount.read_only"),
        serde_json::json!({"mount": "default", "value": true, "from": "file", "file": path, "line": 4})
    );
    assert_eq!(of("mount.io.threads"), serde_json::json!({"mount": "default", "value": 16, "from": "default"}));
    assert!(answer["warnings"][0].as_str().unwrap().starts_with("LIGHTHOUSE_FUSE_BENCHMARK "));
    assert!(errors.contains("LIGHTHOUSE_FUSE_BENCHMARK is not supported by this version"), "{errors}");

    let (_, table, _) = run(&mut program(&["config", "show", "--config", path]));
    let line = table.lines().find(|line| line.starts_with("mount.suid")).unwrap();
    let expected = format!("{path}:5");
    assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["mount.suid", "default", "true", &expected]);
}

#[test]
fn a_wrong_variable_is_wrong_configuration() {
    let mut command = program(&["serve", "--source", "/srv", "--mountpoint", "/mnt/x"]);
    let (code, _, errors) = run(command.env("LIGHTHOUSE_FUSE_ALLOW_OTHER", "maybe"));
    assert_eq!(
        (code, errors.as_str()),
        (
            78,
            "LIGHTHOUSE_FUSE_ALLOW_OTHER: mount.allow_other: \"maybe\" is neither true nor false; use true or false\n"
        )
    );
    let mut command = program(&["serve", "--source", "/srv", "--mountpoint", "/mnt/x"]);
    let (code, _, errors) = run(command.env("LIGHTHOUSE_LOG_LEVEL", std::ffi::OsStr::from_bytes(b"\xff")));
    assert!(
        code == 78 && errors.starts_with("LIGHTHOUSE_LOG_LEVEL: daemon.log_level: ") && errors.contains("UTF-8"),
        "{errors}"
    );
}

#[test]
fn check_config_looks_at_the_file_alone() {
    let (_folder, file) = write(GOOD);
    let mut command = program(&["check-config", file.to_str().unwrap()]);
    assert_eq!(run(command.env("LIGHTHOUSE_FUSE_ALLOW_OTHER", "maybe")).0, 0);
}

#[test]
fn serve_takes_its_mount_from_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = program(&["serve", "--socket", folder.path().join("control.sock").to_str().unwrap()]);
    command.env("LIGHTHOUSE_PROJECT_PATH", folder.path().join("gone")).env("LIGHTHOUSE_MOUNT_POINT", "/mnt/x");
    let (code, _, errors) = run(&mut command);
    assert!(code == 1 && errors.contains("gone does not exist"), "{errors}");
    let (code, _, errors) = run(program(&["serve"]).env("LIGHTHOUSE_PROJECT_PATH", "/srv"));
    assert!(code == 64 && errors.contains("mount.mountpoint: is missing; give --mountpoint"), "{errors}");
}
