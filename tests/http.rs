//! HTTP over TCP: who may do what, what browsers and slow clients get, what happens as events, and what the document says.
//! Everything goes over real sockets, to a daemon of which only the API is real.

mod support;

use std::fs::{self};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use lighthouse_fs::api::divergence::MountDivergence;
use lighthouse_fs::api::events::{Event, Events, ReloadOutcome};
use lighthouse_fs::api::model::{
    BackendStatus, Daemon, DrillAnswer, DrillStopAnswer, Health, MountStatus, ProbeStatus, RolloutAnswer, SCHEMA,
    ShadowStatus, Status, SwitchAnswer,
};
use lighthouse_fs::api::{
    Admission, Answering, Bounds, Control, ControlError, Door, Secret, Token, document, serve, serve_tcp,
};
use lighthouse_fs::backend::drill::Plan;
use lighthouse_fs::config::Backend;
use lighthouse_fs::rollout;
use lighthouse_fs::shadow::Told;
use rstest::rstest;
use support::http::{Answer, Listening, PATIENCE, ask, bearer, connect, post, read_answer};
use tokio::sync::oneshot;

const TOKEN: &str = "correct-horse-battery-staple";
const SWITCH: &str = "/api/v1/mounts/a/switch";

/// What is behind the API.
#[derive(Clone)]
struct Fake {
    events: Events,
    shadow: Option<Health>,
    metrics: Arc<str>,
}

impl Default for Fake {
    fn default() -> Self {
        Self { events: Events::default(), shadow: None, metrics: "lighthouse_fuse_mount_up{mount=\"a\"} 1\n".into() }
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
            candidate: self.shadow.map(|_| Backend::Fuse3),
            active: [(Backend::Fuse2, 100)].into(),
            pinned: None,
            rollout: None,
            guard: vec![],
            in_flight: 0,
            oldest_in_flight_seconds: 0.,
            last_switch: None,
            drill: None,
            probe: ProbeStatus { state: "answered".into(), took_ms: None, reason: None },
            shadow: self.shadow.map(|health| ShadowStatus {
                mountpoint: "/mnt/secret-shadow".into(),
                backend: Backend::Fuse3,
                health,
                reasons: (health != Health::Healthy).then(|| "/mnt/secret-shadow hangs".into()).into_iter().collect(),
                server_pid: None,
                passes: 0,
                compared: 0,
                diverged: 0,
                paused: None,
                examples: vec![],
            }),
            backends: vec![backend(Backend::Fuse2, "attached"), backend(Backend::Fuse3, "absent")],
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

    fn divergence<'a>(&'a self, mount: &'a str) -> Answering<'a, MountDivergence> {
        Box::pin(async move { Ok(MountDivergence::new(mount, Told::default(), None)) })
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
        let fake = Fake { shadow: Some(Health::Unhealthy), ..Fake::default() };
        let server = Server::start(door, WIDE, Bounds::default(), fake);
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
        let reasons =
            |answer: &Answer| serde_json::from_str::<serde_json::Value>(&answer.body).unwrap()["reasons"].clone();
        assert_eq!(reasons(&ready), serde_json::json!([]), "reasons name paths");
        let trusted =
            format!("GET /health/ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{}\r\n", bearer(TOKEN));
        assert_ne!(reasons(&ask(server.connect(), &trusted)), serde_json::json!([]));
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
#[case(None, 404, "there is no shadow mount: set shadow_mountpoint for a mount that has a candidate")]
#[case(Some(Health::Healthy), 200, "")]
#[case(Some(Health::Degraded), 200, "")]
#[case(Some(Health::Unhealthy), 503, "a: /mnt/secret-shadow hangs")]
fn the_shadow_listener_tells_of_the_candidate(#[case] shadow: Option<Health>, #[case] status: u16, #[case] why: &str) {
    let fake = Fake { shadow, ..Fake::default() };
    let server = Server::start(Door::Shadow, LOCAL, Bounds::default(), fake.clone());
    let ready = server.get("/health/ready");
    if status == 200 {
        assert_eq!((ready.status, ready.json()["mounts"]["a"].as_str()), (200, shadow.map(Health::name)));
    } else {
        assert_eq!(ready.problem(status), why);
    }
    let divergence = server.get("/api/v1/divergence").json();
    assert_eq!((&divergence["schema"], &divergence["mounts"][0]["compared"]), (&1.into(), &0.into()));
    server.get("/api/v1/status").problem(404);
    let other = Server::start(Door::Shadow, WIDE, Bounds::default(), fake);
    assert!(!other.get("/health/ready").body.contains("secret"), "nothing for strangers");
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
#[case("POST", SWITCH, &" ".repeat(9000), 413, "nothing was done; send less")]
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
    let chunks = format!("2328\r\n{}\r\n0\r\n\r\n", " ".repeat(9000));
    ask(server.connect(), &(chunked + &chunks)).problem(413);
    ask(server.connect(), "GET /api/v1/events HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").problem(403);
    let id = "GET /api/v1/events HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nlast-event-id: new\r\n\r\n";
    assert!(ask(server.connect(), id).problem(400).contains("last-event-id"));
}

/// As the other actions of a rollout, whose requests have none.
#[rstest]
fn where_all_has_a_default_no_body_is_needed(
    #[values("rollback", "rollout/promote", "rollout/pause")] action: &str,
    #[values("", "content-length: 0\r\n")] length: &str,
) {
    let server = Server::local(Door::Api).with_token();
    let authorization = bearer(TOKEN);
    let request = format!(
        "POST /api/v1/mounts/a/{action} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{authorization}{length}\r\n"
    );
    assert!(ask(server.connect(), &request).problem(409).contains("has no candidate"));
}

#[test]
fn a_body_is_understood_or_refused_also_where_none_is_needed() {
    let server = Server::local(Door::Api).with_token();
    let ask_with = |body: &str| ask(server.connect(), &post("/api/v1/mounts/a/rollback", &bearer(TOKEN), body));
    assert!(ask_with(r#"{"reason": "stale"}"#).problem(409).contains("has no candidate"));
    assert!(ask_with("null").problem(409).contains("has no candidate"));
    ask_with(r#"{"raeson": "stale"}"#).problem(422);
    // The longest reason that the command line sends, in the longest way to write it.
    assert!(
        ask_with(&format!(r#"{{"reason": "{}"}}"#, r"\u0001".repeat(1000))).problem(409).contains("has no candidate")
    );
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
