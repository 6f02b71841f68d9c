//! The listeners of a running daemon: ports that are taken, reloads, what is open by default, events over its restarts.

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::http::{Answer, Listening, ask, bearer, connect, post};
use support::service::{Service, config, serve_command, spawn};
use support::{COMMAND_LIMIT, ROOT_DIRECT, Sandbox, Tier, skip, unless_skipped, wait_for};

const TOKEN: &str = "correct-horse-battery-staple";
const LOCAL: &str = "127.0.0.1:0";

fn sandbox() -> Sandbox {
    Sandbox::new(ROOT_DIRECT.user, Duration::from_secs(90))
}

/// A daemon of a file with one mount and this `[api]`.
fn with_file(sandbox: Sandbox, api: &str) -> Service {
    write_config(&sandbox, api);
    let mut command = serve_command(&sandbox);
    command.arg("--config").arg(config(&sandbox));
    Service::of(sandbox, command)
}

/// A daemon of the sandbox's directory, with flags and variables.
fn with_flags(flags: &[&str], environment: &[(&str, &str)]) -> Service {
    let sandbox = sandbox();
    let mut command = serve_command(&sandbox);
    command.arg("--source").arg(sandbox.source()).arg("--mountpoint").arg(sandbox.mountpoint());
    command.args(["--helper", "direct"]).args(flags).envs(environment.iter().copied());
    Service::of(sandbox, command)
}

fn write_config(sandbox: &Sandbox, api: &str) {
    let (source, place) = (sandbox.source(), sandbox.mountpoint());
    let mount = format!("[[mount]]\nsource = {source:?}\nmountpoint = {place:?}\nhelper = \"direct\"\n");
    fs::write(config(sandbox), format!("[api]\n{api}\n{mount}")).unwrap();
}

/// Where a daemon listens, once it does.
fn address_of(service: &Service, name: &str) -> SocketAddr {
    let find = |status: &Value| {
        let listeners = status["daemon"]["listeners"].as_array()?;
        let found = listeners.iter().find(|listener| listener["name"] == name && listener["listening"] == true)?;
        found["address"].as_str()?.parse().ok()
    };
    find(&service.wait_until(name, |status| find(status).is_some())).expect("an address")
}

fn get(service: &Service, name: &str, path: &str) -> Answer {
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    ask(connect(address_of(service, name)), &request)
}

fn switch(service: &Service, token: &str, to: &str) -> u16 {
    let body = format!(r#"{{"to":"{to}"}}"#);
    let request = post("/api/v1/mounts/default/switch", &bearer(token), &body);
    ask(connect(address_of(service, "api")), &request).status
}

fn reload(service: &Service, api: &str) {
    write_config(&service.sandbox, api);
    service.send(Signal::SIGHUP);
}

/// Nothing but these listeners, each at a port that the kernel chooses.
fn only(names: &[&str]) -> String {
    let line = |key: &str| {
        let address = if names.contains(&key) { "127.0.0.1:0" } else { "" };
        format!("{key} = {address:?}\n")
    };
    ["listen", "shadow_listen", "metrics_listen"].map(line).concat()
}

#[test]
fn a_port_that_is_taken_leaves_the_mount_serving() {
    unless_skipped(ROOT_DIRECT.possible(), || {
        let taken = TcpListener::bind(LOCAL).unwrap();
        let address = taken.local_addr().unwrap();
        let api = only(&["metrics_listen"]).replacen("\"\"", &format!("\"{address}\""), 1);
        let service = with_file(sandbox(), &api);
        fs::write(service.sandbox.mountpoint().join("file"), "served").unwrap();
        let why = format!("the api listener cannot use {address}: Address already in use");
        let status = service.wait_until("tells", |status| status["daemon"]["reasons"][0].is_string());
        let reason = status["daemon"]["reasons"][0].as_str().unwrap();
        assert!(reason.starts_with(&why) && reason.ends_with("end what holds it, or change api.listen"), "{reason}");
        let health = service.ask(&["health"]);
        let text = String::from_utf8(health.stdout).unwrap();
        assert_eq!(health.status.code(), Some(2), "{text}");
        assert_eq!(text, format!("default is healthy\nthe daemon is degraded: {reason}\n"));
        assert!(String::from_utf8(service.ask(&["status"]).stdout).unwrap().contains(reason));
        let ready = get(&service, "metrics", "/health/ready");
        assert!(ready.status == 200 && ready.json()["reasons"][0] == reason, "{ready:?}");
        assert!(service.log().contains(&why));

        drop(taken);
        assert_eq!(address_of(&service, "api"), address);
        service.wait_until("is healthy again", |status| status["daemon"]["reasons"] == serde_json::json!([]));
        assert_eq!(get(&service, "api", "/api/v1/mounts/default").status, 200);
        assert_eq!(service.ask(&["health"]).status.code(), Some(0));
        service.stop();
    });
}

#[test]
fn a_reload_moves_listeners_and_reads_the_token_anew() {
    unless_skipped(ROOT_DIRECT.possible(), || {
        let sandbox = sandbox();
        let file = sandbox.path().join("token");
        let api = format!("{}token_file = {file:?}", only(&["listen"]));
        let service = with_file(sandbox, &api);
        let active = if cfg!(feature = "fuse3") { "fuse3" } else { "fuse2" };
        // The file may come later: it is looked for again and again.
        let status = service.wait_until("tells", |status| status["daemon"]["reasons"][0].is_string());
        assert!(status["daemon"]["reasons"][0].as_str().unwrap().contains("cannot be read: No such file"));
        assert_eq!(switch(&service, TOKEN, active), 403);
        fs::write(&file, TOKEN).unwrap();
        service.wait_until("has it", |status| status["daemon"]["reasons"] == serde_json::json!([]));
        // A thread of its own writes the log.
        let is_told = || service.log().contains("can be read by every user").then_some(());
        wait_for("the log to warn", COMMAND_LIMIT, is_told);
        assert_eq!(switch(&service, TOKEN, active), 200);

        let mut listening = Listening::start(connect(address_of(&service, "api")), None);
        let other = TOKEN.replace("horse", "zebra");
        fs::write(&file, &other).unwrap();
        reload(&service, &api);
        assert_eq!(listening.event().1["outcome"], "accepted");
        wait_for("the new token", COMMAND_LIMIT, || (switch(&service, &other, active) == 200).then_some(()));
        assert_eq!(switch(&service, TOKEN, active), 401);

        // Whoever takes the file away does not want that token any more.
        fs::remove_file(&file).unwrap();
        reload(&service, &api);
        assert_eq!(listening.event().1["outcome"], "accepted");
        service.wait_until("misses it", |status| status["daemon"]["reasons"][0].is_string());
        assert_eq!(switch(&service, &other, active), 403);

        reload(&service, "listen = 3");
        let refused = listening.event().1;
        assert!(
            refused["outcome"] == "refused" && refused["reason"].as_str().unwrap().contains("api.listen"),
            "{refused}"
        );

        // To another place: streams end, and clients come back there.
        let old = address_of(&service, "api");
        reload(&service, &api.replacen("127.0.0.1:0", "127.0.0.2:0", 1));
        assert_eq!(listening.event().1["outcome"], "accepted");
        assert_eq!(listening.block(), None);
        service.wait_until("has moved", |status| {
            status["daemon"]["listeners"][0]["address"].as_str().is_some_and(|at| at.starts_with("127.0.0.2:"))
        });
        assert!(TcpStream::connect(old).is_err());
        assert_eq!(get(&service, "api", "/health/live").status, 200);
        reload(&service, &only(&[]));
        service.wait_until("has closed", |status| status["daemon"]["listeners"] == serde_json::json!([]));
        service.stop();
    });
}

/// A secret that is rotated must not need a new mount.
#[test]
fn a_daemon_without_a_file_reads_its_token_anew() {
    unless_skipped(ROOT_DIRECT.possible(), || {
        let sandbox = sandbox();
        let file = sandbox.path().join("token");
        fs::write(&file, TOKEN).unwrap();
        let mut command = serve_command(&sandbox);
        command.arg("--source").arg(sandbox.source()).arg("--mountpoint").arg(sandbox.mountpoint());
        command.args(["--helper", "direct", "--listen", LOCAL, "--token-file"]).arg(&file);
        let service = Service::of(sandbox, command);
        let active = if cfg!(feature = "fuse3") { "fuse3" } else { "fuse2" };
        wait_for("the token", COMMAND_LIMIT, || (switch(&service, TOKEN, active) == 200).then_some(()));
        let other = TOKEN.replace("horse", "zebra");
        fs::write(&file, &other).unwrap();
        service.send(Signal::SIGHUP);
        wait_for("the new token", COMMAND_LIMIT, || (switch(&service, &other, active) == 200).then_some(()));
        assert_eq!(switch(&service, TOKEN, active), 401);
        let is_told = || service.log().contains("SIGHUP: the token file is read again").then_some(());
        wait_for("the log to say so", COMMAND_LIMIT, is_told);
        service.stop();
    });
}

/// Ports on which a process listens.
fn ports(process: u32) -> Vec<u16> {
    let files = fs::read_dir(format!("/proc/{process}/fd")).unwrap().flatten();
    let sockets: Vec<PathBuf> = files.filter_map(|file| fs::read_link(file.path()).ok()).collect();
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
    let port = |line: &str| {
        let columns: Vec<_> = line.split_whitespace().collect();
        // proc(5): local address, state (0A listens), inode.
        let is_ours =
            columns.get(3) == Some(&"0A") && sockets.contains(&format!("socket:[{}]", columns.get(9)?).into());
        let port = columns.get(1)?.rsplit_once(':')?.1;
        is_ours.then(|| u16::from_str_radix(port, 16).ok())?
    };
    tables.iter().flat_map(|table| table.lines()).filter_map(port).collect()
}

#[test]
fn whoever_serves_by_hand_opens_no_port_unless_asked_to() {
    unless_skipped(ROOT_DIRECT.possible(), || {
        let service = with_flags(&[], &[]);
        assert_eq!(ports(service.daemon.id()), Vec::<u16>::new());
        service.stop();
        let environment = [("LIGHTHOUSE_METRICS_PORT", "0"), ("LIGHTHOUSE_LISTEN_ADDRESS", "127.0.0.4")];
        let service = with_flags(&["--listen", "127.0.0.3:0"], &environment);
        let (api, metrics) = (address_of(&service, "api"), address_of(&service, "metrics"));
        assert_eq!((api.ip().to_string(), metrics.ip().to_string()), ("127.0.0.3".into(), "127.0.0.4".into()));
        let mut both = [api.port(), metrics.port()];
        let mut found = ports(service.daemon.id());
        both.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, both);
        assert_eq!(get(&service, "metrics", "/metrics").status, 200);
        service.stop();
    });
}

#[test]
fn what_happens_to_a_mount_is_told_across_daemons() {
    unless_skipped(ROOT_DIRECT.possible(), || {
        let service = with_file(sandbox(), &only(&["listen"]));
        let mut listening = Listening::start(connect(address_of(&service, "api")), None);
        if cfg!(all(feature = "fuse2", feature = "fuse3")) {
            assert!(service.ask(&["switch", "default", "fuse2"]).status.success());
            let (_, event) = listening.event();
            assert_eq!((event["event"].as_str(), event["reason"].as_str()), (Some("switch"), Some("operator")));
            assert_eq!((event["mount"].as_str(), event["to"].as_str()), (Some("default"), Some("fuse2")));
        }
        let status = service.wait_until("serves", |status| status["mounts"][0]["server_pid"].is_number());
        let server = status["mounts"][0]["server_pid"].as_i64().unwrap();
        kill(Pid::from_raw(server.try_into().unwrap()), Signal::SIGKILL).unwrap();
        let mut states = Vec::new();
        let mut last = 0;
        while states.last().is_none_or(|state| state != "serving") {
            let (id, event) = listening.event();
            assert_eq!(event["event"], "mount", "{event}");
            states.push(event["state"].as_str().unwrap().to_owned());
            last = id;
        }
        assert!(states.ends_with(&["starting".into(), "serving".into()]) && states[0] == "ended", "{states:?}");

        // The next daemon does not know what has happened meanwhile, and says so.
        service.send(Signal::SIGKILL);
        assert!(listening.block().is_none(), "the daemon is gone");
        let mut service = service;
        service.daemon.wait().unwrap();
        service.daemon = spawn(&service.sandbox);
        let mut listening = Listening::start(connect(address_of(&service, "api")), Some(last));
        let (floor, gap) = listening.event();
        assert_eq!((gap["event"].as_str(), gap["after"].as_u64()), (Some("gap"), Some(last)));
        assert!(floor > last);
        let (id, event) = listening.event();
        assert!(id > floor && event["state"] == "serving", "{event}");
        service.stop();
    });
}

#[test]
fn status_can_be_watched() {
    unless_skipped(ROOT_DIRECT.possible(), || {
        let service = with_flags(&["--name", "files"], &[]);
        let mut watch = service.sandbox.program();
        watch.args(["status", "--watch", "--socket"]).arg(service.sandbox.socket());
        let mut watch = watch.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
        for _ in 0..2 {
            let line = lines.next().unwrap().unwrap();
            assert!(line.contains("Z files healthy, active fuse") && line.contains("in flight 0"), "{line}");
        }
        // It ends with its reader.
        drop(lines);
        let status = wait_for("its end", COMMAND_LIMIT, || watch.try_wait().unwrap());
        assert!(status.success(), "{status}");
        let unknown = service.ask(&["status", "other", "--watch"]);
        assert_eq!(unknown.status.code(), Some(1));
        service.stop();
    });
}

/// schemathesis, or why there is none.
fn schemathesis() -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/schemathesis");
    let installed = folder.join("bin/schemathesis");
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&in_path).map(|folder| folder.join("schemathesis")).find(|path| path.exists());
    if let Some(found) = found.or_else(|| installed.exists().then(|| installed.clone())) {
        return Ok(found);
    }
    let run = |command: &mut Command| {
        let done = assert_cmd::Command::from_std(std::mem::replace(command, Command::new("true")))
            .timeout(Duration::from_secs(180))
            .output();
        match done {
            Ok(done) if done.status.success() => Ok(()),
            Ok(done) => {
                Err(format!("schemathesis cannot be installed: {}", String::from_utf8_lossy(&done.stderr).trim()))
            }
            Err(error) => Err(format!("schemathesis cannot be installed: {error}")),
        }
    };
    run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    run(Command::new(folder.join("bin/pip")).args(["install", "--quiet", "schemathesis"]))?;
    Ok(installed)
}

#[test]
fn schemathesis_finds_nothing() {
    if Tier::current() == Tier::Quick {
        return skip("it takes a minute: LIGHTHOUSE_TEST_TIER=full");
    }
    unless_skipped(ROOT_DIRECT.possible().and_then(|()| schemathesis().map(drop)), || {
        let sandbox = sandbox();
        let file = sandbox.path().join("token");
        fs::write(&file, TOKEN).unwrap();
        let api = format!("{}token_file = {file:?}", only(&["listen"]));
        let service = with_file(sandbox, &api);
        let url = format!("http://{}", address_of(&service, "api"));
        let mut command = Command::new(schemathesis().unwrap());
        command.current_dir(service.sandbox.path()).arg("run").arg(format!("{url}/api/v1/openapi.json"));
        command.args(["--url", &url, "--header", &format!("Authorization: Bearer {TOKEN}")]);
        // A stream has no end.
        command.args(["--exclude-path", "/api/v1/events", "--checks", "all"]);
        command.args(["--max-examples", "50", "--seed", "1", "--request-timeout", "10"]);
        let output = assert_cmd::Command::from_std(command).timeout(Duration::from_secs(80)).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        println!("{said}");
        assert!(output.status.success());
        service.wait_until("serves on", |status| status["mounts"][0]["health"] == "healthy");
        service.stop();
    });
}
