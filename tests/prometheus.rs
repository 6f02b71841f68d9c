//! A question to Prometheus: each way in which there may be no answer, and a real server's.

#[macro_use]
mod support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lighthouse_fs::guard::prometheus::ask;
#[cfg(all(feature = "fuse2", feature = "fuse3"))]
use nix::sys::signal::Signal;
use rstest::rstest;
use serde_json::Value;
#[cfg(all(feature = "fuse2", feature = "fuse3"))]
use support::service::mount_of;
use support::service::{Service, config, serve_command};
use support::{Backend, COMMAND_LIMIT, ROOT_DIRECT, Sandbox, require_root, unless_skipped, wait_for};

/// Where scripts/setup.sh puts it.
const INSTALLED: &str = "/usr/local/lib/prometheus/bin/prometheus";

fn asked(url: &str, query: &str, limit: Duration) -> Result<f64, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(ask(url, query, limit))
}

/// Answers one request with `answer`, and returns its head.
fn fake(answer: impl FnOnce(TcpStream) + Send + 'static) -> (String, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/below/", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut head = String::new();
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        while lines.read_line(&mut head).unwrap() > 2 {}
        answer(stream);
        head
    });
    (url, thread)
}

fn body(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn vector(value: &str) -> String {
    format!(
        r#"{{"status":"success","data":{{"resultType":"vector","result":[{{"metric":{{}},"value":[1,"{value}"]}}]}}}}"#
    )
}

#[test]
fn what_is_asked() {
    let (url, server) = fake(|mut stream| stream.write_all(&body("200 OK", &vector("0.02"))).unwrap());
    assert_eq!(asked(&url, "sum(a{b=\"c d\"}) / 2", COMMAND_LIMIT), Ok(0.02));
    let head = server.join().unwrap();
    let target = "GET /below/api/v1/query?query=sum%28a%7Bb%3D%22c%20d%22%7D%29%20%2F%202 HTTP/1.1\r\n";
    assert!(head.starts_with(target), "{head}");
}

#[rstest]
#[case::status(body("502 Bad Gateway", "<html>"), "HTTP status 502 Bad Gateway")]
#[case::redirected(body("302 Found", ""), "HTTP status 302 Found")]
#[case::unauthorized(body("401 Unauthorized", ""), "HTTP status 401")]
#[case::not_json(body("200 OK", "<html>"), "does not answer as Prometheus does")]
#[case::own_error(
    body("422 Unprocessable Entity", r#"{"status":"error","errorType":"execution","error":"many-to-many matching"}"#),
    "refuses the query (execution): many-to-many matching"
)]
#[case::empty(
    body("200 OK", r#"{"status":"success","data":{"resultType":"vector","result":[]}}"#),
    "the result is empty"
)]
#[case::no_number(body("200 OK", &vector("NaN")), "no finite number (NaN)")]
#[case::no_http(b"220 smtp.example.org ESMTP\r\n".to_vec(), "does not answer as HTTP does")]
#[case::silent_end(Vec::new(), "does not answer as HTTP does")]
#[case::cut_short(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{".to_vec(), "does not answer as HTTP does")]
#[case::too_big(body("200 OK", &" ".repeat(5 << 20)), "is larger than 4 MiB")]
fn no_answer(#[case] answer: Vec<u8>, #[case] expected: &str) {
    // It may have hung up by then.
    let (url, server) = fake(move |mut stream| drop(stream.write_all(&answer)));
    let why = asked(&url, "up", COMMAND_LIMIT).unwrap_err();
    assert!(why.contains(expected), "{why}");
    server.join().unwrap();
}

#[rstest]
#[case::nothing("")]
#[case::half("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")]
fn silence_ends_at_the_deadline(#[case] said: &'static str) {
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let (url, server) = fake(move |mut stream| {
        stream.write_all(said.as_bytes()).unwrap();
        // Held open until the test is over.
        let _ = is_done.recv();
    });
    let began = Instant::now();
    let why = asked(&url, "up", Duration::from_millis(200)).unwrap_err();
    assert!(why.contains("has not answered within 200ms"), "{why}");
    assert!(began.elapsed() < COMMAND_LIMIT);
    drop(done);
    server.join().unwrap();
}

#[rstest]
#[case::nobody_listens("127.0.0.1:1")]
#[case::no_such_host("prometheus.invalid")]
fn unreachable(#[case] place: &str) {
    let why = asked(&format!("http://{place}"), "up", COMMAND_LIMIT * 2).unwrap_err();
    assert!(why.starts_with(&format!("http://{place} cannot be reached: ")), "{why}");
}

fn installed() -> Result<PathBuf, String> {
    let in_path = std::env::var_os("PATH")
        .into_iter()
        .flat_map(|path| std::env::split_paths(&path).map(|folder| folder.join("prometheus")).collect::<Vec<_>>());
    in_path
        .chain([INSTALLED.into()])
        .find(|program| program.is_file())
        .ok_or_else(|| "there is no prometheus: scripts/setup.sh installs it".into())
}

/// A real server. Killed when dropped.
struct Real {
    process: Child,
    url: String,
}

impl Real {
    /// Starts one that scrapes `target` many times a second.
    fn start(sandbox: &Sandbox, program: &Path, target: SocketAddr) -> Self {
        let folder = sandbox.path().join("prometheus");
        fs::create_dir(&folder).unwrap();
        let file = format!(
            "global: {{ scrape_interval: 200ms, scrape_timeout: 200ms }}\n\
             scrape_configs: [{{ job_name: lighthouse, static_configs: [{{ targets: ['{target}'] }}] }}]\n"
        );
        fs::write(folder.join("prometheus.yml"), file).unwrap();
        let log = folder.join("log");
        let mut command = sandbox.client(program);
        command.arg("--config.file").arg(folder.join("prometheus.yml"));
        command.arg("--storage.tsdb.path").arg(folder.join("data"));
        command.args(["--web.listen-address", "127.0.0.1:0"]);
        command.current_dir(&folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        let mut real = Self { process: command.spawn().unwrap(), url: String::new() };
        let listens = wait_for("Prometheus to listen", COMMAND_LIMIT * 2, || {
            let said = fs::read_to_string(&log).unwrap();
            assert!(real.process.try_wait().unwrap().is_none(), "{said}");
            let line = said.lines().find(|line| line.contains("Listening on"))?;
            Some(line.rsplit_once("address=")?.1.trim_matches('"').to_owned())
        });
        real.url = format!("http://{listens}");
        real
    }

    fn ask(&self, query: &str) -> Result<f64, String> {
        asked(&self.url, query, COMMAND_LIMIT)
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        // It may have gone by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const API: &str = "[api]\nlisten = \"\"\nshadow_listen = \"\"\nmetrics_listen = \"127.0.0.1:0\"\n";

/// The file of a daemon with one mount, with more of it.
fn file(sandbox: &Sandbox, more: &str) -> String {
    let stable = Backend::ALL.into_iter().find(|backend| backend.is_built_in()).expect("a backend");
    let more = format!("backend = \"{stable}\"\nhelper = \"direct\"\n{more}");
    API.to_owned() + &support::service::mount(sandbox, "tried", &more)
}

/// A daemon with one mount, and where its metrics are.
fn serve() -> (Service, SocketAddr) {
    let sandbox = Sandbox::new(ROOT_DIRECT.user, Duration::from_secs(90));
    fs::write(config(&sandbox), file(&sandbox, "")).unwrap();
    let mut command = serve_command(&sandbox);
    command.arg("--config").arg(config(&sandbox));
    let service = Service::of(sandbox, command);
    let address = |status: &Value| {
        let listeners = status["daemon"]["listeners"].as_array()?;
        let found = listeners.iter().find(|one| one["name"] == "metrics" && one["listening"] == true)?;
        found["address"].as_str()?.parse().ok()
    };
    let status = service.wait_until("listens", |status| address(status).is_some());
    let address = address(&status).expect("it listens");
    (service, address)
}

const CREATES: &str =
    "sum by (mount) (lighthouse_fuse_operations_total{mount='tried', operation='create', status='ok'})";

fn create_twenty(service: &Service) {
    for number in 0..20 {
        fs::write(service.place("tried").join(number.to_string()), "content").unwrap();
    }
}

#[test]
fn a_real_server_that_scrapes_this_daemon() {
    unless_skipped(require_root().and_then(|()| installed().map(drop)), || {
        let (service, metrics) = serve();
        let real = Real::start(&service.sandbox, &installed().unwrap(), metrics);
        create_twenty(&service);
        wait_for("twenty files to be counted", COMMAND_LIMIT, || (real.ask(CREATES) == Ok(20.)).then_some(()));
        assert_eq!(real.ask("scalar(up)"), Ok(1.));
        assert!(real.ask("lighthouse_fuse_no_such_thing").unwrap_err().contains("the result is empty"));
        assert!(real.ask("vector(0) / 0").unwrap_err().contains("no finite number (NaN)"));
        assert!(real.ask("up[1m]").unwrap_err().contains("a range of time"));
        assert!(real.ask("'text'").unwrap_err().contains("a text, and no number"));
        let why = real.ask("sum(").unwrap_err();
        assert!(why.contains("refuses the query (bad_data)") && why.contains("parse error"), "{why}");
        drop(real);
        service.stop();
    });
}

/// What the guard says by the rule `prometheus`.
#[cfg(all(feature = "fuse2", feature = "fuse3"))]
fn verdict(status: &Value) -> (String, String) {
    let rules = mount_of(status, "tried")["guard"].as_array().cloned().unwrap_or_default();
    let found = rules.iter().find(|rule| rule["rule"] == "prometheus").cloned().unwrap_or_default();
    (found["verdict"].as_str().unwrap_or_default().into(), found["reason"].as_str().unwrap_or_default().into())
}

/// A server that is gone is no reason to go back; what it says when it is there may be one.
#[cfg(all(feature = "fuse2", feature = "fuse3"))]
#[test]
fn a_verdict_for_all_machines() {
    unless_skipped(require_root().and_then(|()| installed().map(drop)), || {
        let (service, metrics) = serve();
        let real = Real::start(&service.sandbox, &installed().unwrap(), metrics);
        let question = |query: &str| {
            let url = &real.url;
            let rollout = "[mount.rollout]\ncandidate = \"fuse3\"\nsteps = [{ weight = 10, for = '1h' }, { weight = 100, for = '1h' }]";
            let guard = format!("[mount.guard.prometheus]\nurl = \"{url}\"\nquery = \"{query}\"\nabove = 19.5\n");
            file(&service.sandbox, &format!("{rollout}\n{guard}"))
        };
        let reload = |query: &str| {
            fs::write(config(&service.sandbox), question(query)).unwrap();
            service.send(Signal::SIGHUP);
        };
        reload("lighthouse_fuse_no_such_thing");
        service.wait_until("has a candidate", |status| mount_of(status, "tried")["candidate"] == "fuse3");
        assert!(service.ask(&["rollout", "start", "tried"]).status.success());
        let says = |what: &str, word: &str| {
            service.wait_until(&format!("says {what}: {word}"), |status| {
                let (verdict, reason) = verdict(status);
                verdict == what && reason.contains(word)
            })
        };
        says("no_data", "the result is empty");
        fs::write(service.place("tried").join("first"), "content").unwrap();
        reload(CREATES);
        says("healthy", "says 1");
        create_twenty(&service);
        let status = service.wait_until("is rolled back", |status| !mount_of(status, "tried")["pinned"].is_null());
        let pin = &mount_of(&status, "tried")["pinned"];
        assert!(pin["reason"].as_str().unwrap().starts_with("prometheus: "), "{pin}");
        drop(real);
        assert!(service.ask(&["unpin", "tried"]).status.success());
        assert!(service.ask(&["rollout", "start", "tried"]).status.success());
        let status = says("no_data", "cannot be reached");
        assert_eq!(mount_of(&status, "tried")["rollout"]["state"], "running", "{status}");
        service.stop();
    });
}
