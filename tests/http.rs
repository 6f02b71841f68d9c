//! HTTP over TCP: who may do what, what browsers and slow clients get, what happens as events, and what the document says.
//! Everything goes over real sockets; the first half over a daemon of which only the API is real.

mod support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use lighthouse_fs::api::events::{Event, Events, ReloadOutcome};
use lighthouse_fs::api::model::{
    BackendStatus, Daemon, DrillAnswer, DrillStopAnswer, Health, MountStatus, ProbeStatus, RolloutAnswer, SCHEMA,
    Status, SwitchAnswer,
};
use lighthouse_fs::api::{
    Admission, Answering, Bounds, Control, ControlError, Door, Secret, Token, document, serve, serve_tcp,
};
use lighthouse_fs::backend::drill::Plan;
use lighthouse_fs::config::Backend;
use lighthouse_fs::rollout;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rstest::rstest;
use serde_json::Value;
use support::{COMMAND_LIMIT, ROOT_DIRECT, Sandbox, Tier, skip, unless_skipped, wait_for};
use tokio::sync::oneshot;

const PATIENCE: Duration = Duration::from_secs(10);
const TOKEN: &str = "correct-horse-battery-staple";
const SWITCH: &str = "/api/v1/mounts/a/switch";

/// What is behind the API.
#[derive(Clone)]
struct Fake {
    events: Events,
    candidate: Option<&'static str>,
    metrics: Arc<str>,
}

impl Default for Fake {
    fn default() -> Self {
        Self { events: Events::default(), candidate: None, metrics: "lighthouse_fuse_mount_up{mount=\"a\"} 1\n".into() }
    }
}

impl Control for Fake {
    fn admits_group(&self) -> bool {
        false
    }

    fn status(&self) -> Status {
        let daemon = Daemon {
            socket: None,
            version: "0".into(),
            pid: 1,
            started: SystemTime::now(),
            reasons: vec!["the daemon has a cold".into()],
            listeners: vec![],
        };
        let backend = |name, state: &str| BackendStatus {
            name,
            state: state.into(),
            reason: None,
            operations: 0,
            errors: 0,
            lost: 0,
            p99_ms: None,
        };
        let mount = MountStatus {
            name: "a".into(),
            source: "/srv/secret".into(),
            mountpoint: "/mnt/a".into(),
            server_pid: None,
            health: Health::Healthy,
            reasons: vec![],
            stable: Backend::Fuse2,
            candidate: self.candidate.map(|_| Backend::Fuse3),
            active: [(Backend::Fuse2, 100)].into(),
            pinned: None,
            rollout: None,
            guard: vec![],
            in_flight: 0,
            oldest_in_flight_seconds: 0.,
            last_switch: None,
            drill: None,
            probe: ProbeStatus { state: "answered".into(), took_ms: None, reason: None },
            backends: vec![
                backend(Backend::Fuse2, "attached"),
                backend(Backend::Fuse3, self.candidate.unwrap_or("absent")),
            ],
        };
        Status { schema: SCHEMA, daemon, mounts: vec![mount] }
    }

    fn switch<'a>(&'a self, mount: &'a str, to: Backend) -> Answering<'a, SwitchAnswer> {
        Box::pin(async move {
            if mount != "a" {
                return Err(ControlError::UnknownMount(mount.into()));
            }
            let (from, answered_for_hung, in_flight) = (to.other(), 0, 0);
            Ok(SwitchAnswer { schema: SCHEMA, from, to, pause_ms: 0., total_ms: 0., in_flight, answered_for_hung })
        })
    }

    fn ask_rollout<'a>(&'a self, mount: &'a str, _: rollout::Request) -> Answering<'a, RolloutAnswer> {
        Box::pin(async move { Err(ControlError::Refused(format!("mount \"{mount}\" has no candidate"))) })
    }

    fn drill<'a>(&'a self, mount: &'a str, plan: Plan) -> Answering<'a, DrillAnswer> {
        Box::pin(async move {
            plan.check().map_err(ControlError::Invalid)?;
            Err(ControlError::Refused(format!("mount \"{mount}\" allows no drill")))
        })
    }

    fn stop_drill<'a>(&'a self, _mount: &'a str) -> Answering<'a, DrillStopAnswer> {
        Box::pin(async { Ok(DrillStopAnswer { schema: SCHEMA, stopped: None }) })
    }

    fn metrics(&self) -> String {
        self.metrics.to_string()
    }

    fn events(&self) -> Events {
        self.events.clone()
    }
}

/// A listener, on a thread of its own.
struct Server {
    address: SocketAddr,
    admission: Admission,
    fake: Fake,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Only this machine's processes get there.
const LOCAL: &str = "127.0.0.1:0";
/// Other machines too.
const WIDE: &str = "0.0.0.0:0";

impl Server {
    fn start(door: Door, at: &str, bounds: Bounds, fake: Fake) -> Self {
        let listener = TcpListener::bind(at).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], listener.local_addr().unwrap().port()));
        let admission = Admission::default();
        admission.set_hosts(vec!["files.example".into()]);
        let (stop, stopped) = oneshot::channel::<()>();
        let (ours, control) = (admission.clone(), fake.clone());
        let thread = std::thread::spawn(move || {
            runtime().block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let stop = async { drop(stopped.await) };
                serve_tcp(listener, door, control, ours, bounds, stop).await.unwrap();
            });
        });
        Self { address, admission, fake, stop: Some(stop), thread: Some(thread) }
    }

    fn local(door: Door) -> Self {
        Self::start(door, LOCAL, Bounds::default(), Fake::default())
    }

    fn bounded(bounds: Bounds) -> Self {
        Self::start(Door::Metrics, LOCAL, bounds, Fake::default())
    }

    fn with_token(self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        fs::write(&file, format!("{TOKEN}\n")).unwrap();
        self.admission.set_secret(Secret::Known(Token::read(&file).unwrap().0));
        self
    }

    fn connect(&self) -> TcpStream {
        connect(self.address)
    }

    fn get(&self, path: &str) -> Answer {
        ask(self.connect(), &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"))
    }

    /// With further header lines, each with its end.
    fn switch(&self, headers: &str) -> Answer {
        ask(self.connect(), &post(SWITCH, headers, r#"{"to":"fuse3"}"#))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the server has panicked");
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn post(path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n{headers}content-length: {length}\r\n\r\n{body}"
    )
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    /// The detail of a problem; that it is one.
    fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        assert!(self.head.contains("content-type: application/problem+json"), "{self:?}");
        let problem: Value = serde_json::from_str(&self.body).unwrap();
        assert!(problem["status"] == status && problem["title"].is_string(), "{self:?}");
        problem["detail"].as_str().unwrap().to_owned()
    }

    fn json(&self) -> Value {
        assert!(self.head.contains("content-type: application/json"), "{self:?}");
        serde_json::from_str(&self.body).unwrap()
    }
}

fn ask(mut stream: impl Read + Write, request: &str) -> Answer {
    // A server that has heard enough may close before it has read everything.
    let _ = stream.write_all(request.as_bytes());
    read_answer(stream)
}

fn read_answer(mut stream: impl Read) -> Answer {
    let mut text = Vec::new();
    if let Err(error) = stream.read_to_end(&mut text) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    let text = String::from_utf8(text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_ascii_lowercase(), body: body.into() }
}

// Who may do what.

#[test]
fn without_a_token_everybody_here_may_read_and_nobody_may_change() {
    let server = Server::local(Door::Api);
    assert_eq!(server.get("/api/v1/status").json()["mounts"][0]["source"], "/srv/secret");
    assert_eq!(server.get("/api/v1/mounts/a").json()["name"], "a");
    let ready = server.get("/health/ready").json();
    assert_eq!((ready["health"].as_str(), &ready["reasons"][0]), (Some("degraded"), &"the daemon has a cold".into()));
    for headers in ["", &bearer(TOKEN), "authorization: Bearer \r\n", "authorization: Basic YTpi\r\n"] {
        let why = server.switch(headers).problem(403);
        assert!(why.contains("set api.token_file"), "{why}");
    }
    server.admission.set_secret(Secret::Unusable);
    assert!(server.switch(&bearer(TOKEN)).problem(403).contains("its file cannot be used"));
}

#[test]
fn changing_needs_the_token() {
    let server = Server::local(Door::Api).with_token();
    assert_eq!(server.switch(&bearer(TOKEN)).json()["to"], "fuse3");
    assert_eq!(server.switch(&format!("Authorization: bearer {TOKEN}\r\n")).status, 200);
    for token in ["x", &TOKEN[1..], &format!("{TOKEN}x"), &TOKEN.to_uppercase()] {
        let refused = server.switch(&bearer(token));
        assert!(refused.head.contains("www-authenticate: bearer"), "{refused:?}");
        assert_eq!(refused.problem(401), "this is not the token of the daemon's token_file");
    }
    assert!(server.switch("").problem(401).contains("send `Authorization: Bearer TOKEN`"));
    // Not even what there is, is told.
    assert_eq!(ask(server.connect(), &post("/nothing", "", "")).status, 401);
    assert_eq!(ask(server.connect(), &post("/nothing", &bearer(TOKEN), "")).status, 404);
    assert_eq!(server.get("/api/v1/status").status, 200);
}

#[test]
fn strangers_learn_whether_it_lives_and_no_more() {
    for door in [Door::Api, Door::Shadow] {
        let server = Server::start(door, WIDE, Bounds::default(), Fake::default());
        let read = if door == Door::Api { "/api/v1/status" } else { "/api/v1/divergence" };
        // Nobody gets in before there is a token.
        server.get(read).problem(403);
        let server = server.with_token();
        server.get(read).problem(401);
        let answer = ask(
            server.connect(),
            &format!("GET {read} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{}\r\n", bearer(TOKEN)),
        );
        assert_ne!(answer.status, 401, "{answer:?}");
        let ready = server.get("/health/ready");
        assert_eq!(ready.json()["reasons"], serde_json::json!([]), "reasons name paths");
        let trusted =
            format!("GET /health/ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{}\r\n", bearer(TOKEN));
        assert_ne!(ask(server.connect(), &trusted).json()["reasons"], serde_json::json!([]));
    }
}

#[test]
fn metrics_are_for_everybody() {
    for at in [LOCAL, WIDE] {
        let server = Server::start(Door::Metrics, at, Bounds::default(), Fake::default());
        let answer = server.get("/metrics");
        assert!(answer.head.contains("content-type: text/plain; version=0.0.4"), "{answer:?}");
        assert_eq!((answer.status, answer.body.as_str()), (200, &*server.fake.metrics));
        assert_eq!(server.get("/health/live").json()["live"], true);
        assert_eq!(server.get("/health/ready").json()["health"], "degraded");
        server.get("/api/v1/status").problem(404);
    }
}

#[rstest]
#[case(None, 503, "no mount has a candidate")]
#[case(Some("parked"), 200, "")]
#[case(Some("attached"), 200, "")]
#[case(Some("ended"), 503, "a: fuse3 is ended")]
fn the_shadow_listener_tells_of_the_candidate(
    #[case] candidate: Option<&'static str>,
    #[case] status: u16,
    #[case] why: &str,
) {
    let fake = Fake { candidate, ..Fake::default() };
    let server = Server::start(Door::Shadow, LOCAL, Bounds::default(), fake);
    let ready = server.get("/health/ready");
    assert_eq!((ready.status, ready.json()["reasons"][0].as_str().unwrap_or_default()), (status, why));
    assert!(server.get("/api/v1/divergence").problem(404).contains("compares nothing"));
    server.get("/api/v1/status").problem(404);
}

// Browsers.

#[rstest]
#[case::rebound_name("host: evil.example:8765\r\n", 403)]
#[case::no_host("", 400)]
#[case::our_name("host: files.example\r\n", 200)]
#[case::other_origin("host: localhost\r\norigin: https://evil.example\r\n", 403)]
#[case::own_origin("host: localhost:1\r\norigin: http://localhost:1\r\n", 200)]
#[case::cross_site("host: 127.0.0.1\r\nsec-fetch-site: cross-site\r\n", 403)]
fn other_pages_are_refused_at_every_door(#[case] headers: &str, #[case] status: u16) {
    for (door, path) in [(Door::Api, "/api/v1/status"), (Door::Metrics, "/metrics"), (Door::Metrics, "/health/live")] {
        let server = Server::local(door);
        let answer = ask(server.connect(), &format!("GET {path} HTTP/1.1\r\n{headers}connection: close\r\n\r\n"));
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        assert!(!answer.head.contains("access-control"), "{answer:?}");
        if status != 200 {
            answer.problem(status);
        }
    }
    // The token does not help.
    let server = Server::local(Door::Api).with_token();
    if headers.contains("origin: https") {
        server.switch(&format!("origin: https://evil.example\r\n{}", bearer(TOKEN))).problem(403);
    }
    let preflight = "OPTIONS /api/v1/status HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    ask(server.connect(), preflight).problem(401);
}

// Errors.

#[rstest]
#[case("GET", "/nothing", "", 404, "there is no /nothing")]
#[case("DELETE", "/api/v1/status", "", 405, "is not for DELETE")]
#[case("GET", SWITCH, "", 405, "is not for GET")]
#[case("GET", "/api/v1/mounts/%ff", "", 400, "UTF-8")]
#[case("GET", "/api/v1/mounts/b", "", 404, "no mount is called \"b\"")]
#[case("POST", "/api/v1/mounts/%ff/switch", "{}", 400, "UTF-8")]
#[case("POST", SWITCH, "{", 400, "JSON")]
#[case("POST", SWITCH, "", 400, "JSON")]
#[case("POST", SWITCH, r#"{"to":"fuse4"}"#, 422, "fuse4")]
#[case("POST", SWITCH, &" ".repeat(5000), 413, "limit")]
fn every_error_is_a_problem(
    #[case] method: &str,
    #[case] path: &str,
    #[case] body: &str,
    #[case] status: u16,
    #[case] detail: &str,
) {
    let server = Server::local(Door::Api).with_token();
    let request = post(path, &bearer(TOKEN), body).replacen("POST", method, 1);
    let said = ask(server.connect(), &request).problem(status);
    assert!(said.contains(detail), "{said}");
}

#[test]
fn a_body_without_type_or_without_length_is_judged_too() {
    let server = Server::local(Door::Api).with_token();
    let plain = post(SWITCH, &bearer(TOKEN), r#"{"to":"fuse3"}"#).replace("application/json", "text/plain");
    assert!(ask(server.connect(), &plain).problem(415).contains("application/json"));
    let chunked = post(SWITCH, &bearer(TOKEN), "").replace("content-length: 0", "transfer-encoding: chunked");
    let chunks = format!("1388\r\n{}\r\n0\r\n\r\n", " ".repeat(5000));
    ask(server.connect(), &(chunked + &chunks)).problem(413);
    ask(server.connect(), "GET /api/v1/events HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").problem(403);
    let id = "GET /api/v1/events HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nlast-event-id: new\r\n\r\n";
    assert!(ask(server.connect(), id).problem(400).contains("last-event-id"));
}

// Bounds.

fn short() -> Bounds {
    let short = Duration::from_millis(300);
    Bounds { head: short, body: short, write: short, ..Bounds::default() }
}

/// Waits until the other side has closed, and gives what it has said.
fn until_closed(mut stream: &TcpStream) -> String {
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("still open: {error}"),
        _ => String::from_utf8(said).unwrap(),
    }
}

#[test]
fn whoever_is_slow_with_the_head_is_cut_off() {
    let server = Server::bounded(short());
    let silent = server.connect();
    let mut dribbling = server.connect();
    // One letter at a time, always in time for a bound on each read.
    let dribble = std::thread::spawn(move || {
        let began = Instant::now();
        let letters = b"GET /metrics HTTP/1.1\r\nx: ".iter().chain(std::iter::repeat(&b'a'));
        for letter in letters {
            if dribbling.write_all(&[*letter]).is_err() {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "still open");
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    assert_eq!(until_closed(&silent), "");
    dribble.join().unwrap();
    // After an answer, too.
    let mut idle = server.connect();
    idle.write_all(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    assert!(until_closed(&idle).starts_with("HTTP/1.1 200 OK"));
}

#[test]
fn whoever_is_slow_with_the_body_is_told() {
    let server = Server::start(Door::Api, LOCAL, short(), Fake::default()).with_token();
    let mut stream = server.connect();
    stream.write_all(post(SWITCH, &bearer(TOKEN), r#"{"to":"fuse3"}"#).trim_end_matches('}').as_bytes()).unwrap();
    assert!(read_answer(&stream).problem(408).contains("has not come in time"));
}

#[test]
fn heads_are_bounded() {
    let server = Server::local(Door::Metrics);
    for headers in [format!("x: {}\r\n", "a".repeat(100_000)), "x: a\r\n".repeat(200)] {
        let request = format!("GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n");
        assert_eq!(ask(server.connect(), &request).status, 431);
    }
    assert_eq!(ask(server.connect(), &format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(100_000))).status, 431);
    assert_eq!(ask(server.connect(), "nonsense\r\n\r\n").status, 400);
}

#[test]
fn connections_are_bounded_and_the_next_one_waits() {
    let server = Server::bounded(Bounds { connections: 2, ..Bounds::default() });
    let alive = |stream: &mut TcpStream| {
        stream.write_all(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).map(|_| line)
    };
    let mut connections = [server.connect(), server.connect()];
    for connection in &mut connections {
        assert!(alive(connection).unwrap().contains("200"));
    }
    let mut third = server.connect();
    third.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert_eq!(alive(&mut third).unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(connections);
    third.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut line = String::new();
    BufReader::new(&third).read_line(&mut line).unwrap();
    assert!(line.contains("200"), "{line}");
}

#[test]
fn whoever_does_not_read_makes_room() {
    let fake = Fake { metrics: "a".repeat(32 << 20).into(), ..Fake::default() };
    let server = Server::start(Door::Metrics, LOCAL, Bounds { connections: 1, ..short() }, fake);
    let mut deaf = server.connect();
    deaf.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    assert_eq!(server.get("/health/live").status, 200);
}

#[test]
fn nonsense_is_survived() {
    let server = Server::bounded(short());
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bytes = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n".to_vec();
        for _ in 0..random.usize(1..8) {
            let at = random.usize(..bytes.len());
            bytes[at] = random.u8(..);
        }
        let mut stream = server.connect();
        // It may have been closed already.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        until_closed_lossy(&stream);
    }
    assert_eq!(server.get("/metrics").status, 200);
}

fn until_closed_lossy(mut stream: &TcpStream) {
    let mut said = Vec::new();
    if let Err(error) = stream.read_to_end(&mut said) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "still open: {error}");
    }
}

// Events.

/// A stream of events that is being read.
struct Listening<S>(BufReader<S>);

impl<S: Read + Write> Listening<S> {
    fn start(mut stream: S, last: Option<u64>) -> Self {
        let last = last.map_or_else(String::new, |id| format!("last-event-id: {id}\r\n"));
        write!(stream, "GET /api/v1/events HTTP/1.1\r\nhost: localhost\r\n{last}\r\n").unwrap();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            reader.read_line(&mut line).unwrap();
            assert!(!line.starts_with("HTTP/1.1") || line.contains("200"), "{line}");
        }
        Self(reader)
    }

    /// The next block, as its fields; `None` at the end.
    fn block(&mut self) -> Option<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            match line.trim_end_matches('\n').split_once(": ") {
                Some((name, value)) => fields.push((name.to_owned(), value.to_owned())),
                None if line == "\n" && !fields.is_empty() => return Some(fields),
                // Where chunks begin and end.
                None => {}
            }
        }
    }

    /// The next event, and the ids that came before it without one.
    fn event(&mut self) -> (u64, Value) {
        loop {
            let block = self.block().expect("an event");
            let field = |name: &str| block.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str());
            let Some(data) = field("data") else { continue };
            let data: Value = serde_json::from_str(data).unwrap();
            assert_eq!((field("event"), data["schema"].as_u64()), (data["event"].as_str(), Some(1)));
            let id = field("id").unwrap().parse().unwrap();
            assert_eq!(data["id"], id);
            return (id, data);
        }
    }

    /// The id that a client has learnt of when it listens.
    fn place(&mut self) -> u64 {
        let block = self.block().unwrap();
        block.iter().find(|(name, _)| name == "id").unwrap().1.parse().unwrap()
    }
}

fn reload(number: usize) -> Event {
    Event::Reload { outcome: ReloadOutcome::Refused, reason: Some(number.to_string()) }
}

#[test]
fn a_client_that_comes_back_misses_nothing() {
    let server = Server::local(Door::Api);
    server.fake.events.publish(reload(0));
    let mut first = Listening::start(server.connect(), None);
    let place = first.place();
    server.fake.events.publish(reload(1));
    let (id, event) = first.event();
    assert_eq!((event["reason"].as_str(), event["outcome"].as_str()), (Some("1"), Some("refused")));
    assert!(id > place, "what was before it came is not told");
    drop(first);
    (2..10).for_each(|number| server.fake.events.publish(reload(number)));
    let mut again = Listening::start(server.connect(), Some(id));
    for number in 2..10 {
        assert_eq!(again.event().1["reason"], number.to_string());
    }
    // Whoever had seen no event yet has a place all the same.
    let mut other = Listening::start(server.connect(), Some(place));
    assert_eq!(other.event().0, id);
}

#[test]
fn a_client_that_was_away_too_long_is_told_of_the_gap() {
    let server = Server::local(Door::Api);
    let place = Listening::start(server.connect(), None).place();
    (0..1030).for_each(|number| server.fake.events.publish(reload(number)));
    let mut late = Listening::start(server.connect(), Some(place));
    let (floor, gap) = late.event();
    assert_eq!((gap["event"].as_str(), gap["after"].as_u64()), (Some("gap"), Some(place)));
    let (mut before, first) = late.event();
    assert!(first["reason"] == "6" && before > floor, "{first}");
    for number in 7..1030 {
        let (id, event) = late.event();
        assert!(event["reason"].as_str() == Some(&number.to_string()) && id > before, "{event}");
        before = id;
    }
    // From the gap on nothing is missing.
    assert_eq!(Listening::start(server.connect(), Some(floor)).event().1["reason"], "6");
}

#[test]
fn streams_are_bounded_and_end_with_their_listener() {
    let mut server = Server::local(Door::Api);
    let mut streams: Vec<_> = (0..32).map(|_| Listening::start(server.connect(), None)).collect();
    server.get("/api/v1/events").problem(503);
    assert_eq!(server.get("/health/live").status, 200);
    let began = Instant::now();
    drop(server.stop.take());
    for stream in &mut streams {
        while stream.block().is_some() {}
    }
    assert!(began.elapsed() < PATIENCE);
}

#[test]
fn events_are_on_the_control_socket_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.sock");
    let (fake, place) = (Fake::default(), path.clone());
    let (stop, stopped) = oneshot::channel::<()>();
    let control = fake.clone();
    let (bound, is_bound) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        runtime().block_on(async {
            let listener = tokio::net::UnixListener::bind(place).unwrap();
            bound.send(()).unwrap();
            serve(listener, control, async { drop(stopped.await) }).await.unwrap();
        });
    });
    is_bound.recv_timeout(PATIENCE).unwrap();
    let stream = UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut listening = Listening::start(stream, None);
    listening.place();
    fake.events.publish(reload(0));
    assert_eq!(listening.event().1["reason"], "0");
    drop(stop);
    thread.join().unwrap();
}

// The document.

#[test]
fn the_document_and_the_routes_are_the_same() {
    let server = Server::local(Door::Api).with_token();
    let document = serde_json::to_value(document()).unwrap();
    assert_eq!(server.get("/api/v1/openapi.json").json(), document);
    let paths = document["paths"].as_object().unwrap();
    let promised = ["/health/live", "/health/ready", "/api/v1/status", "/api/v1/mounts/{name}", "/api/v1/events"];
    assert!(promised.iter().all(|path| paths.contains_key(*path)), "{paths:?}");
    for (path, operations) in paths {
        let path = path.replace("{name}", "a");
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH"] {
            let is_documented = operations.get(method.to_ascii_lowercase()).is_some();
            let mut stream = server.connect();
            stream.write_all(post(&path, &bearer(TOKEN), "").replacen("POST", method, 1).as_bytes()).unwrap();
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).unwrap();
            assert_eq!(!line.contains(" 405 ") && !line.contains(" 404 "), is_documented, "{method} {path}: {line}");
        }
        let changes = operations.get("post");
        assert!(changes.is_none_or(|post| post["security"][0].get("token").is_some()), "{path}");
    }
}

#[test]
fn the_copy_of_the_document_is_up_to_date() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/openapi.json");
    let text = serde_json::to_string_pretty(&document()).unwrap() + "\n";
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&file, &text).unwrap();
    }
    let copy = fs::read_to_string(&file).unwrap_or_default();
    assert!(copy == text, "run `UPDATE_DOCS=1 cargo test --test http the_copy`");
}

// A daemon with a mount.

/// A daemon that serves its sandbox.
struct Service {
    daemon: Child,
    sandbox: Sandbox,
}

impl Service {
    fn sandbox() -> Sandbox {
        Sandbox::new(ROOT_DIRECT.user, Duration::from_secs(90))
    }

    /// Of a file with one mount and this `[api]`.
    fn with_file(sandbox: Sandbox, api: &str) -> Self {
        write_config(&sandbox, api);
        let mut command = serve_command(&sandbox);
        command.arg("--config").arg(sandbox.path().join("config.toml"));
        Self::start(sandbox, command)
    }

    /// Of a directory, with flags and variables.
    fn with_flags(flags: &[&str], environment: &[(&str, &str)]) -> Self {
        let sandbox = Self::sandbox();
        let mut command = serve_command(&sandbox);
        command.arg("--source").arg(sandbox.source()).arg("--mountpoint").arg(sandbox.mountpoint());
        command.args(["--helper", "direct"]).args(flags).envs(environment.iter().copied());
        Self::start(sandbox, command)
    }

    fn start(sandbox: Sandbox, mut command: Command) -> Self {
        let daemon = command.spawn().expect("a daemon");
        let service = Self { daemon, sandbox };
        service.wait_until("serves", |status| status["mounts"][0]["health"] == "healthy");
        service
    }

    fn ask(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = self.sandbox.program();
        command.args(arguments).arg("--socket").arg(self.sandbox.socket());
        assert_cmd::Command::from_std(command).timeout(COMMAND_LIMIT).output().expect("the program")
    }

    fn wait_until(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, COMMAND_LIMIT, || {
            let status = serde_json::from_slice(&self.ask(&["status", "--json"]).stdout).ok();
            status.filter(&is_so)
        })
    }

    /// Where it listens, once it does.
    fn address(&self, name: &str) -> SocketAddr {
        let find = |status: &Value| {
            let listeners = status["daemon"]["listeners"].as_array()?;
            let found = listeners.iter().find(|listener| listener["name"] == name && listener["listening"] == true)?;
            found["address"].as_str()?.parse().ok()
        };
        find(&self.wait_until(name, |status| find(status).is_some())).expect("an address")
    }

    fn get(&self, name: &str, path: &str) -> Answer {
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        ask(connect(self.address(name)), &request)
    }

    fn switch(&self, token: &str, to: &str) -> u16 {
        let body = format!(r#"{{"to":"{to}"}}"#);
        let request = post("/api/v1/mounts/default/switch", &bearer(token), &body);
        ask(connect(self.address("api")), &request).status
    }

    fn send(&self, signal: Signal) {
        kill(Pid::from_raw(self.daemon.id().cast_signed()), signal).expect("a running daemon");
    }

    fn reload(&self, api: &str) {
        write_config(&self.sandbox, api);
        self.send(Signal::SIGHUP);
    }

    fn log(&self) -> String {
        fs::read_to_string(self.sandbox.log()).unwrap()
    }

    fn stop(mut self) {
        self.send(Signal::SIGTERM);
        let status = wait_for("the daemon to end", COMMAND_LIMIT, || self.daemon.try_wait().expect("the daemon"));
        assert!(status.success(), "{status}\n{}", self.log());
        self.sandbox.assert_nothing_left();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        // A second time is no harm; the sandbox ends the rest.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn serve_command(sandbox: &Sandbox) -> Command {
    let log = File::options().create(true).append(true).open(sandbox.log()).unwrap();
    let mut command = sandbox.program();
    command.arg("serve").arg("--socket").arg(sandbox.socket());
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command
}

fn write_config(sandbox: &Sandbox, api: &str) {
    let (source, place) = (sandbox.source(), sandbox.mountpoint());
    let mount = format!("[[mount]]\nsource = {source:?}\nmountpoint = {place:?}\nhelper = \"direct\"\n");
    fs::write(sandbox.path().join("config.toml"), format!("[api]\n{api}\n{mount}")).unwrap();
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
        let service = Service::with_file(Service::sandbox(), &api);
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
        let ready = service.get("metrics", "/health/ready");
        assert!(ready.status == 200 && ready.json()["reasons"][0] == reason, "{ready:?}");
        assert!(service.log().contains(&why));

        drop(taken);
        assert_eq!(service.address("api"), address);
        service.wait_until("is healthy again", |status| status["daemon"]["reasons"] == serde_json::json!([]));
        assert_eq!(service.get("api", "/api/v1/mounts/default").status, 200);
        assert_eq!(service.ask(&["health"]).status.code(), Some(0));
        service.stop();
    });
}

#[test]
fn a_reload_moves_listeners_and_reads_the_token_anew() {
    unless_skipped(ROOT_DIRECT.possible(), || {
        let sandbox = Service::sandbox();
        let file = sandbox.path().join("token");
        let api = format!("{}token_file = {file:?}", only(&["listen"]));
        let service = Service::with_file(sandbox, &api);
        let active = if cfg!(feature = "fuse3") { "fuse3" } else { "fuse2" };
        // The file may come later: it is looked for again and again.
        let status = service.wait_until("tells", |status| status["daemon"]["reasons"][0].is_string());
        assert!(status["daemon"]["reasons"][0].as_str().unwrap().contains("cannot be read: No such file"));
        assert_eq!(service.switch(TOKEN, active), 403);
        fs::write(&file, TOKEN).unwrap();
        service.wait_until("has it", |status| status["daemon"]["reasons"] == serde_json::json!([]));
        assert!(service.log().contains("can be read by every user"), "{}", service.log());
        assert_eq!(service.switch(TOKEN, active), 200);

        let mut listening = Listening::start(connect(service.address("api")), None);
        let other = TOKEN.replace("horse", "zebra");
        fs::write(&file, &other).unwrap();
        service.reload(&api);
        assert_eq!(listening.event().1["outcome"], "accepted");
        wait_for("the new token", COMMAND_LIMIT, || (service.switch(&other, active) == 200).then_some(()));
        assert_eq!(service.switch(TOKEN, active), 401);

        // Whoever takes the file away does not want that token any more.
        fs::remove_file(&file).unwrap();
        service.reload(&api);
        assert_eq!(listening.event().1["outcome"], "accepted");
        service.wait_until("misses it", |status| status["daemon"]["reasons"][0].is_string());
        assert_eq!(service.switch(&other, active), 403);

        service.reload("listen = 3");
        let refused = listening.event().1;
        assert!(
            refused["outcome"] == "refused" && refused["reason"].as_str().unwrap().contains("api.listen"),
            "{refused}"
        );

        // To another place: streams end, and clients come back there.
        let old = service.address("api");
        service.reload(&api.replacen("127.0.0.1:0", "127.0.0.2:0", 1));
        assert_eq!(listening.event().1["outcome"], "accepted");
        assert_eq!(listening.block(), None);
        service.wait_until("has moved", |status| {
            status["daemon"]["listeners"][0]["address"].as_str().is_some_and(|at| at.starts_with("127.0.0.2:"))
        });
        assert!(TcpStream::connect(old).is_err());
        assert_eq!(service.get("api", "/health/live").status, 200);
        service.reload(&only(&[]));
        service.wait_until("has closed", |status| status["daemon"]["listeners"] == serde_json::json!([]));
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
        let service = Service::with_flags(&[], &[]);
        assert_eq!(ports(service.daemon.id()), Vec::<u16>::new());
        service.stop();
        let environment = [("LIGHTHOUSE_METRICS_PORT", "0"), ("LIGHTHOUSE_LISTEN_ADDRESS", "127.0.0.4")];
        let service = Service::with_flags(&["--listen", "127.0.0.3:0"], &environment);
        let (api, metrics) = (service.address("api"), service.address("metrics"));
        assert_eq!((api.ip().to_string(), metrics.ip().to_string()), ("127.0.0.3".into(), "127.0.0.4".into()));
        let mut both = [api.port(), metrics.port()];
        let mut found = ports(service.daemon.id());
        both.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, both);
        assert_eq!(service.get("metrics", "/metrics").status, 200);
        service.stop();
    });
}

#[test]
fn what_happens_to_a_mount_is_told_across_daemons() {
    unless_skipped(ROOT_DIRECT.possible(), || {
        let service = Service::with_file(Service::sandbox(), &only(&["listen"]));
        let mut listening = Listening::start(connect(service.address("api")), None);
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
        let Service { daemon, sandbox } = &service;
        assert!(daemon.id() > 0);
        let mut command = serve_command(sandbox);
        command.arg("--config").arg(sandbox.path().join("config.toml"));
        service.send(Signal::SIGKILL);
        assert!(listening.block().is_none(), "the daemon is gone");
        let mut service = service;
        service.daemon.wait().unwrap();
        service.daemon = command.spawn().unwrap();
        let mut listening = Listening::start(connect(service.address("api")), Some(last));
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
        let service = Service::with_flags(&["--name", "files"], &[]);
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
        let sandbox = Service::sandbox();
        let file = sandbox.path().join("token");
        fs::write(&file, TOKEN).unwrap();
        let api = format!("{}token_file = {file:?}", only(&["listen"]));
        let service = Service::with_file(sandbox, &api);
        let url = format!("http://{}", service.address("api"));
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
