//! Daemon and API over a server that is a thread of the test: what is said to whom when switches succeed, fail or are
//! late, when backends fail over and when servers die. Nothing is mounted.

#![cfg(all(feature = "fuse2", feature = "fuse3"))]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::ConnectInfo;
use lighthouse_fs::api::events::Events;
use lighthouse_fs::api::model::{Health, MountStatus};
use lighthouse_fs::api::{self, Client, ClientError, Peer, router};
use lighthouse_fs::config::{Backend, BackendChoice, Deadlines, Mount};
use lighthouse_fs::daemon::facts::{End, Facts, Phase};
use lighthouse_fs::daemon::mirror::Mirror;
use lighthouse_fs::daemon::mount::{Beginning, Request, Task};
use lighthouse_fs::daemon::pilot::{Controls, Pilot};
use lighthouse_fs::daemon::prober::Prober;
use lighthouse_fs::daemon::process::{Process, Server};
use lighthouse_fs::daemon::{Adopts, Handle, Mounts, Plan, Recorder};
use lighthouse_fs::ledger::{Ledger, PortState};
use lighthouse_fs::rollout::{MachineId, Store};
use lighthouse_fs::server::orders::{Hello, Line, Order, Report, Switched, Unavailable, VERSION};
use rstest::rstest;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(10);

/// The server's side, played by a thread. Its process is a `cat` that ends when this is dropped.
struct Fake {
    line: Line,
    ledger: Ledger,
    process: u32,
    _alive: ChildStdin,
}

fn hello() -> Hello {
    Hello {
        version: VERSION,
        mount: mount(),
        mount_id: None,
        active: Backend::Fuse2,
        protocol_minor: 31,
        helper: "direct".into(),
        unavailable: Vec::new(),
        because: None,
        last_switch: None,
        drill: None,
    }
}

fn mount() -> Mount {
    let short = Duration::from_millis(10);
    Mount {
        backend: BackendChoice::Only(Backend::Fuse2),
        deadlines: Deadlines { drain: short, switch: short, unmount: short, ..Deadlines::default() },
        ..Mount::new("default", "/srv/data", "/mnt/data")
    }
}

impl Fake {
    fn order(&self) -> Order {
        self.line.receive(PATIENCE).unwrap()
    }

    fn says(&self, report: &Report) {
        self.line.send(report).unwrap();
    }

    fn attach(&self, backend: Backend) {
        self.ledger.set_port_state(backend.other(), PortState::Parked);
        self.ledger.set_port_state(backend, PortState::Attached);
        self.ledger.beat(lighthouse_fs::ledger::coarse_now());
    }

    /// Goes through the beginning of every server's life.
    fn begins(&self, unavailable: Vec<Unavailable>) {
        assert!(matches!(self.order(), Order::Serve { version: VERSION, .. }));
        self.attach(Backend::Fuse2);
        self.says(&Report::Hello(Box::new(Hello { unavailable, ..hello() })));
    }

    fn ends_when_told(&self) {
        assert_eq!(self.order(), Order::Stop);
        self.says(&Report::Stopped { lazily: false, by_others: false });
    }

    fn switches(&self, to: Backend) -> Switched {
        assert!(matches!(self.order(), Order::Weigh { candidate, percent: 100, .. } if candidate == to));
        self.attach(to);
        switched(to, "operator")
    }
}

fn done(switched: Switched) -> Report {
    Report::Weighed { candidate: switched.to, percent: 100, switched: Some(switched) }
}

fn switched(to: Backend, reason: &str) -> Switched {
    let from = to.other();
    Switched { from, to, reason: reason.into(), pause_ms: 0.5, total_ms: 2., in_flight: 3, answered_for_hung: 1 }
}

/// A daemon's mount with its API on a socket.
struct Daemon {
    client: Client,
    requests: mpsc::Sender<Request>,
    task: JoinHandle<End>,
    folder: TempDir,
}

impl Daemon {
    /// Starts it over a server that behaves like this, and waits until the mount serves or has ended.
    async fn over(server: impl FnOnce(&Fake) + Send + 'static) -> Self {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let (line, far) = Line::pair().unwrap();
        let ledger = Ledger::create().unwrap();
        let alive = child.stdin.take().unwrap();
        let fake = Fake { line: far, ledger: ledger.clone(), process: child.id(), _alive: alive };
        std::thread::spawn(move || server(&fake));

        let server = Server { line, ledger, process: Process::Child(child) };
        let (facts, mut watcher) = watch::channel(Facts::new(Arc::new(mount())));
        let facts = Recorder::new(facts, Events::default());
        let (requests, mut received) = mpsc::channel(16);
        let folder = tempfile::tempdir().unwrap();
        let (happened, heard) = mpsc::unbounded_channel();
        let prober = Prober::off("nothing is mounted");
        let pilot = Pilot::start(Controls {
            prober: prober.clone(),
            store: Store::new(folder.path(), "default"),
            machine: MachineId::of(&lighthouse_fs::config::Daemon::new(folder.path())),
            facts: watcher.clone(),
            happened: heard,
            requests: requests.clone(),
            events: Events::default(),
        });
        let task = tokio::spawn(async move {
            let plan = Plan {
                happened,
                meeting: None,
                own: Arc::default(),
                server_arguments: Arc::default(),
                alone: false,
                adopts: Adopts::SamePlaces,
                events: Events::default(),
            };
            let task = Task::new(None, server, &plan, &facts, &mut received).unwrap();
            task.run(Beginning::Serve { meeting: None, resume: None, given_up: None }).await
        });
        let socket = folder.path().join("control.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let handle =
            Handle { facts: watcher.clone(), prober, requests: requests.clone(), pilot, mirror: Mirror::off() };
        let mounts = Mounts::new(false);
        mounts.set(vec![handle]);
        tokio::spawn(api::serve(listener, mounts, std::future::pending()));
        let settled = watcher.wait_for(|facts| facts.phase != Phase::Starting);
        timeout(PATIENCE, settled).await.unwrap().unwrap();
        Self { client: Client::new(&socket), requests, task, folder }
    }

    async fn mount(&self) -> MountStatus {
        self.client.mount("default").await.unwrap()
    }

    /// Waits until `status` shows what the server has done by itself.
    async fn shows(&self, what: impl Fn(&MountStatus) -> bool) -> MountStatus {
        let look = async {
            loop {
                let mount = self.mount().await;
                if what(&mount) {
                    return mount;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, look).await.unwrap()
    }

    async fn end(self) -> End {
        timeout(PATIENCE, self.task).await.unwrap().unwrap()
    }

    async fn stop(self) -> End {
        self.requests.send(Request::Stop).await.unwrap();
        self.end().await
    }

    /// Sends raw HTTP and gives status and answer.
    async fn raw(&self, request: String) -> (u16, String) {
        let path = self.folder.path().join("control.sock");
        let talk = move || {
            let mut stream = UnixStream::connect(path).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
            (status, answer)
        };
        tokio::task::spawn_blocking(talk).await.unwrap()
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.raw(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")).await
    }
}

fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> (u16, String) {
    match result {
        Err(ClientError::Refused(problem)) => (problem.status, problem.detail),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_switch_is_done_and_remembered() {
    let daemon = Daemon::over(|server| {
        server.begins(vec![]);
        let switched = server.switches(Backend::Fuse3);
        server.says(&done(switched));
        server.ends_when_told();
    })
    .await;
    let before = daemon.mount().await;
    assert_eq!((before.health, before.last_switch), (Health::Healthy, None));
    assert_eq!(before.active, [(Backend::Fuse2, 100)].into());

    let answer = daemon.client.switch("default", Backend::Fuse3).await.unwrap();
    assert_eq!((answer.from, answer.to), (Backend::Fuse2, Backend::Fuse3));
    assert_eq!((answer.pause_ms, answer.in_flight, answer.answered_for_hung), (0.5, 3, 1));

    let after = daemon.mount().await;
    assert_eq!(after.active, [(Backend::Fuse3, 100)].into());
    assert_eq!(after.last_switch.unwrap().reason, "operator");
    assert_eq!(after.health, Health::Healthy, "what an operator wants is no fault: {:?}", after.reasons);
    assert_eq!(daemon.stop().await, End::Stopped);
}

#[tokio::test]
async fn a_switch_to_the_active_backend_asks_nobody() {
    let daemon = Daemon::over(|server| {
        server.begins(vec![]);
        server.ends_when_told();
    })
    .await;
    let answer = daemon.client.switch("default", Backend::Fuse2).await.unwrap();
    assert_eq!((answer.from, answer.to, answer.pause_ms), (Backend::Fuse2, Backend::Fuse2, 0.));
    assert_eq!(daemon.stop().await, End::Stopped);
}

#[tokio::test]
async fn a_switch_that_fails_says_why_and_changes_nothing() {
    let daemon = Daemon::over(|server| {
        server.begins(vec![]);
        server.order();
        server.says(&Report::Failed { message: "fuse3 died while attaching".into() });
        server.ends_when_told();
    })
    .await;
    let refused = refusal(daemon.client.switch("default", Backend::Fuse3).await);
    assert_eq!(refused, (409, "fuse3 died while attaching".into()));
    let after = daemon.mount().await;
    assert_eq!((after.health, after.active), (Health::Healthy, [(Backend::Fuse2, 100)].into()));
    assert_eq!(daemon.stop().await, End::Stopped);
}

#[tokio::test]
async fn a_late_answer_is_not_taken_for_the_next_one() {
    let daemon = Daemon::over(|server| {
        server.begins(vec![]);
        let late = server.switches(Backend::Fuse3);
        let back = server.switches(Backend::Fuse2);
        server.says(&done(late));
        server.says(&done(Switched { pause_ms: 7., ..back }));
        server.ends_when_told();
    })
    .await;
    let (status, why) = refusal(daemon.client.switch("default", Backend::Fuse3).await);
    assert_eq!(status, 504);
    assert!(why.contains("gave no answer within"), "{why}");
    let answer = daemon.client.switch("default", Backend::Fuse2).await.unwrap();
    assert_eq!((answer.to, answer.pause_ms), (Backend::Fuse2, 7.));
    assert_eq!(daemon.stop().await, End::Stopped);
}

/// More than its socket holds while it does not read.
#[tokio::test]
async fn a_busy_server_is_told_the_newest_when_it_listens_again() {
    let (listen, listens) = std::sync::mpsc::channel();
    let (is_told, told) = tokio::sync::oneshot::channel();
    let daemon = Daemon::over(move |server| {
        server.begins(vec![]);
        listens.recv().unwrap();
        let mut told = 0;
        while server.order() != (Order::LogLevel { level: "newest".into() }) {
            told += 1;
        }
        assert!(told < 2000, "none was too much");
        is_told.send(()).unwrap();
        server.ends_when_told();
    })
    .await;
    for number in 0..2000 {
        daemon.requests.send(Request::LogLevel(number.to_string())).await.unwrap();
    }
    daemon.requests.send(Request::LogLevel("newest".into())).await.unwrap();
    // One that is answered comes after all of these.
    daemon.client.switch("default", Backend::Fuse2).await.unwrap();
    listen.send(()).unwrap();
    told.await.unwrap();
    assert_eq!(daemon.stop().await, End::Stopped);
}

#[tokio::test]
async fn a_failover_is_noted_and_degrades() {
    let daemon = Daemon::over(|server| {
        server.begins(vec![]);
        server.attach(Backend::Fuse3);
        server.ledger.set_port_state(Backend::Fuse2, PortState::Ended);
        server.says(&Report::FailedOver(switched(Backend::Fuse3, "failover")));
        server.ends_when_told();
    })
    .await;
    let mount = daemon.shows(|mount| mount.last_switch.is_some()).await;
    assert_eq!(mount.last_switch.unwrap().reason, "failover");
    assert_eq!(mount.health, Health::Degraded);
    let expected = [
        "fuse3 serves instead of the stable fuse2 (failover)",
        "fuse2 is ended: its session ended by itself; the log says why",
    ];
    assert_eq!(mount.reasons, expected);
    assert_eq!(daemon.stop().await, End::Stopped);
}

#[tokio::test]
async fn a_backend_that_is_not_there_degrades() {
    let daemon = Daemon::over(|server| {
        server.ledger.set_port_state(Backend::Fuse3, PortState::Absent);
        server.begins(vec![Unavailable { backend: Backend::Fuse3, reason: "no threads left".into() }]);
        server.ledger.set_port_state(Backend::Fuse3, PortState::Absent);
        server.ends_when_told();
    })
    .await;
    let mount = daemon.shows(|mount| mount.backends[1].state == "unavailable").await;
    assert_eq!((mount.health, mount.reasons), (Health::Degraded, vec!["fuse3 is unavailable: no threads left".into()]));
    assert_eq!(daemon.stop().await, End::Stopped);
}

#[tokio::test]
async fn a_server_that_dies_is_noticed_at_once() {
    let daemon = Daemon::over(|server| {
        server.begins(vec![]);
        let pid = nix::unistd::Pid::from_raw(server.process.try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSEGV).unwrap();
        // Its line stays open, as with a sibling that shares the descriptors.
        std::thread::sleep(PATIENCE);
    })
    .await;
    let mount = daemon.shows(|mount| mount.health == Health::Unhealthy).await;
    assert_eq!(mount.reasons, ["the serving process was ended by SIGSEGV (11)"]);
    assert_eq!((mount.server_pid, mount.active.len()), (None, 0));
    let (status, why) = refusal(daemon.client.switch("default", Backend::Fuse3).await);
    assert_eq!((status, why.as_str()), (503, "mount \"default\" is not served: it has ended"));
    assert_eq!(daemon.end().await, End::Died("the serving process was ended by SIGSEGV (11)".into()));
}

#[tokio::test]
async fn a_server_that_dies_during_a_switch_fails_the_switch() {
    let daemon = Daemon::over(|server| {
        server.begins(vec![]);
        server.order();
    })
    .await;
    let (status, why) = refusal(daemon.client.switch("default", Backend::Fuse3).await);
    assert_eq!(status, 503);
    assert!(why.contains("exit code 0"), "{why}");
    assert!(matches!(daemon.end().await, End::Died(_)));
}

#[tokio::test]
async fn what_fails_to_mount_says_why() {
    let daemon = Daemon::over(|server| {
        server.order();
        server.says(&Report::Failed { message: "fusermount3: mount failed: Operation not permitted".into() });
    })
    .await;
    assert_eq!(daemon.end().await, End::Failed("fusermount3: mount failed: Operation not permitted".into()));
}

#[tokio::test]
async fn a_server_of_another_version_is_refused() {
    let daemon = Daemon::over(|server| {
        server.order();
        server.says(&Report::Hello(Box::new(Hello { version: VERSION + 1, ..hello() })));
    })
    .await;
    assert!(matches!(daemon.end().await, End::Failed(why) if why.contains("start both from one build")));
}

#[tokio::test]
async fn unmounted_by_others_is_an_orderly_end() {
    let daemon = Daemon::over(|server| {
        server.begins(vec![]);
        server.says(&Report::Stopped { lazily: false, by_others: true });
    })
    .await;
    assert_eq!(daemon.end().await, End::Unmounted);
}

#[tokio::test]
async fn a_server_that_does_not_stop_is_killed() {
    let daemon = Daemon::over(|server| {
        server.begins(vec![]);
        server.order();
        std::thread::sleep(PATIENCE);
    })
    .await;
    assert!(matches!(daemon.stop().await, End::Forced(why) if why.contains("has not unmounted within 3.01s")));
}

#[tokio::test]
async fn nonsense_from_a_server_is_survived() {
    let daemon = Daemon::over(|server| {
        server.begins(vec![]);
        server.line.send(&serde_json::json!({ "report": "dance" })).unwrap();
        server.ends_when_told();
    })
    .await;
    assert_eq!(daemon.stop().await, End::Stopped);
}

#[rstest]
#[case("GET", "/nothing", "", 404, "there is no /nothing")]
#[case("GET", "/api/v1/mounts/other", "", 404, "no mount is called")]
#[case("POST", "/api/v1/mounts/other/switch", r#"{"to":"fuse3"}"#, 404, "no mount is called")]
#[case("DELETE", "/api/v1/status", "", 405, "is not for DELETE")]
#[case("GET", "/api/v1/mounts/default/switch", "", 405, "is not for GET")]
#[case("POST", "/api/v1/mounts/default/switch", "{", 400, "JSON")]
#[case("POST", "/api/v1/mounts/default/switch", r#"{"to":"fuse4"}"#, 422, "fuse4")]
#[case("POST", "/api/v1/mounts/default/switch", r#"{"to":"fuse3","at":"once"}"#, 422, "unknown field")]
#[case("POST", "/api/v1/mounts/default/switch", &" ".repeat(9000), 413, "8192 bytes at most")]
#[tokio::test]
async fn what_is_wrong_is_a_problem(
    #[case] method: &str,
    #[case] path: &str,
    #[case] body: &str,
    #[case] status: u16,
    #[case] detail: &str,
) {
    let daemon = Daemon::over(|server| {
        server.begins(vec![]);
        server.ends_when_told();
    })
    .await;
    let head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    let head = format!("{head}content-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    let (given, answer) = daemon.raw(head + body).await;
    assert_eq!(given, status, "{answer}");
    assert!(answer.contains("content-type: application/problem+json"), "{answer}");
    assert!(answer.contains(detail), "{answer}");
    assert_eq!(daemon.stop().await, End::Stopped);
}

#[tokio::test]
async fn ready_is_what_serves() {
    let daemon = Daemon::over(|server| {
        server.begins(vec![]);
        server.order();
        server.ledger.set_port_state(Backend::Fuse2, PortState::Ended);
        server.says(&Report::Failed { message: "nothing works".into() });
        server.ends_when_told();
    })
    .await;
    let (status, body) = daemon.get("/health/ready").await;
    assert!(status == 200 && body.contains(r#""health":"healthy""#), "{body}");
    refusal(daemon.client.switch("default", Backend::Fuse3).await);
    let (status, body) = daemon.get("/health/ready").await;
    assert!(status == 503 && body.contains("default: no backend is attached"), "{body}");
    assert_eq!(daemon.get("/health/live").await.0, 200);
    assert_eq!(daemon.stop().await, End::Stopped);
}

/// What the program itself says of such a daemon, by its exit code.
async fn health(daemon: &Daemon, arguments: &'static [&str]) -> (Option<i32>, String) {
    let mut program = tokio::process::Command::new(env!("CARGO_BIN_EXE_lighthouse-fs"));
    program.arg("health").args(arguments).arg("--socket").arg(daemon.folder.path().join("control.sock"));
    let output = timeout(PATIENCE, program.output()).await.unwrap().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[tokio::test]
async fn degraded_is_an_exit_code_of_its_own_but_not_for_containers() {
    let daemon = Daemon::over(|server| {
        server.begins(vec![]);
        let switched = server.switches(Backend::Fuse3);
        server.ledger.set_port_state(Backend::Fuse2, PortState::Hung);
        server.says(&done(switched));
        server.order();
        server.ledger.set_port_state(Backend::Fuse3, PortState::Ended);
        server.says(&Report::Failed { message: "nothing works".into() });
        server.ends_when_told();
    })
    .await;
    assert_eq!(health(&daemon, &[]).await, (Some(0), "default is healthy\n".into()));

    daemon.client.switch("default", Backend::Fuse3).await.unwrap();
    let why = "default is degraded: fuse2 is hung: requests of it were answered EIO at the deadline; `switch` to it starts a fresh session\n";
    assert_eq!(health(&daemon, &[]).await, (Some(2), why.into()));
    assert_eq!(health(&daemon, &["--mount", "default"]).await, (Some(2), why.into()));
    assert_eq!(health(&daemon, &["--probe"]).await, (Some(0), why.into()));
    assert_eq!(health(&daemon, &["--mount", "other", "--probe"]).await, (Some(1), String::new()));

    refusal(daemon.client.switch("default", Backend::Fuse2).await);
    let why = "default is unhealthy: no backend is attached\n";
    assert_eq!(health(&daemon, &["--probe"]).await, (Some(1), why.into()));
    assert_eq!(daemon.stop().await, End::Stopped);
}

#[tokio::test]
async fn strangers_are_told_who_may_ask() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let stranger = Extension(ConnectInfo(Peer { uid: Some(54321) }));
    let routes = router(Mounts::new(false)).layer(stranger);
    tokio::spawn(async { axum::serve(listener, routes).await });
    let client = Client::new(&socket);
    let (status, why) = refusal(client.status().await);
    assert_eq!(status, 403);
    assert!(why.starts_with("only root and the user with uid"), "{why}");
    assert_eq!(refusal(client.switch("default", Backend::Fuse3).await).0, 403);
}
