//! `mount.lighthouse-fs`: what mount(8) and fstab call to mount. It returns when the mount answers, and leaves the daemon
//! behind.
//!
//! The daemon is this very command line once more, with `--foreground`, so it is `ps` that tells what is mounted how. It
//! reports by sd_notify(3): READY=1, or what went wrong as STATUS.

mod options;
mod remount;

use std::env;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use clap::Parser;
use rustix::fs::Mode;
use rustix::process::{Pid, Signal};
use sd_notify::NotifyState;
use tempfile::NamedTempFile;
use tokio::net::UnixDatagram;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, timeout_at};

use super::{absolute, ask, fail, log, say};
use crate::api::socket;
use crate::config;
use crate::connection::mountinfo::{self, Mounted};
use crate::daemon;
use options::{Unknown, Wanted};

/// Names under which the program is this command: of types `lighthouse-fs` and `fuse.lighthouse-fs`.
const NAMES: [&str; 2] = ["mount.lighthouse-fs", "mount.fuse.lighthouse-fs"];
/// Below the 90 seconds that systemd gives a mount unit.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Where journald takes the lines of services (sd_journal_stream_fd(3)).
const JOURNAL: &str = "/run/systemd/journal/stdout";

/// File of the manual page.
pub const PAGE_NAME: &str = "mount.lighthouse-fs.8";

/// The manual page. Written by hand: what there is to say are the options after `-o`, of which clap knows nothing.
pub fn page() -> String {
    include_str!("mount.lighthouse-fs.8").replace("@VERSION@", env!("CARGO_PKG_VERSION"))
}

/// Exit codes of mount(8).
mod exit {
    /// Wrong usage.
    pub const USAGE: u8 = 1;
    /// No mount.
    pub const FAILED: u8 = 32;
}

/// Mounts a directory through Lighthouse FS, as mount(8) and fstab want it.
#[derive(Debug, Parser)]
#[command(name = NAMES[0], version, after_help = "mount.lighthouse-fs(8) lists the options.")]
struct Cli {
    /// Directory that is served
    #[arg(value_parser = absolute)]
    source: PathBuf,
    /// Where it appears
    #[arg(value_parser = absolute)]
    mountpoint: PathBuf,
    /// Options of the mount, with commas in between
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<String>,
    /// Ignore unknown options
    #[arg(short)]
    sloppy: bool,
    /// Do everything but mount
    #[arg(short)]
    fake: bool,
    /// Has no meaning: there is no mtab to write
    #[arg(short)]
    no_mtab: bool,
    /// Say what was mounted
    #[arg(short)]
    verbose: bool,
    /// The type, which is known
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<String>,
    /// Stay in the foreground
    #[arg(long, hide = true)]
    foreground: bool,
}

/// Runs as mount(8)'s helper, if that is what the program was called as.
pub fn main() -> Option<ExitCode> {
    let called = env::args_os().next()?;
    let name = Path::new(&called).file_name()?;
    NAMES.iter().any(|known| name == *known).then(run)
}

fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => return super::explain(&answer, exit::USAGE),
    };
    let unknown = if cli.sloppy { Unknown::Ignored } else { Unknown::Refused };
    let wanted = match options::parse(&cli.source, &cli.mountpoint, &cli.options, unknown) {
        Ok(wanted) => wanted,
        Err(error) => return fail(exit::USAGE, error),
    };
    let backend = wanted.mount.stable();
    if !backend.is_built_in() {
        return fail(exit::FAILED, format_args!("this build has no {backend}: choose the other backend"));
    }
    let place = wanted.socket.clone().unwrap_or_else(|| socket::of_mount(&cli.mountpoint, &wanted.mount.name));
    match (cli.foreground, cli.fake, wanted.is_remount) {
        (true, _, _) => serve(wanted, &place),
        (false, true, _) => ExitCode::SUCCESS,
        (false, false, true) => remount::run(&wanted.mount),
        (false, false, false) if is_served(&cli.mountpoint, &place) => {
            let why = "is mounted already: `umount` it first; `mount -o remount,…` changes what is mounted";
            fail(exit::FAILED, format_args!("{} {why}", cli.mountpoint.display()))
        }
        (false, false, false) => ask(start(&cli, &place)),
    }
}

/// Whether this is mounted, by a daemon that lives. One without a daemon gets another.
fn is_served(mountpoint: &Path, socket: &Path) -> bool {
    let table = mountinfo::read().unwrap_or_default();
    mountinfo::at(&table, mountpoint).is_some_and(Mounted::is_ours) && socket::has_listener(socket)
}

/// Serves until the mount is gone.
fn serve(wanted: Wanted, socket: &Path) -> ExitCode {
    // Of the terminal's signals none is meant for it. Only a leader, started by hand, has a session of its own already.
    if let Err(error) = rustix::process::setsid()
        && error != rustix::io::Errno::PERM
    {
        return fail(exit::FAILED, format_args!("no session of its own: {error}"));
    }
    let daemon = config::Daemon { log_level: wanted.log_level, ..config::Daemon::new(socket) };
    // There is no configuration to read again.
    let (_, log) = log::start_for_daemon(&daemon.log_level, daemon.log_format);
    let ended = daemon::run(daemon::Options {
        settings: config::Settings { daemon, api: config::Api::off(), mounts: vec![wanted.mount] },
        alone: true,
        mounts_end_too: false,
        reload: None,
        server_arguments: |daemon| log::arguments(&daemon.log_level, daemon.log_format),
    });
    drop(log);
    let Err(failure) = ended else { return ExitCode::SUCCESS };
    let why = failure.to_string();
    if let Err(error) = sd_notify::notify(&[NotifyState::Status(&why)]) {
        tracing::debug!(%error, "nobody listens any more");
    }
    fail(exit::FAILED, why)
}

/// Starts the daemon, and waits until its mount answers.
async fn start(cli: &Cli, place: &Path) -> ExitCode {
    match try_to_start(cli, place).await {
        Ok(pid) if cli.verbose => say(format_args!(
            "{} mounted on {} by process {pid}, control socket {}",
            cli.source.display(),
            cli.mountpoint.display(),
            place.display()
        )),
        Ok(_) => ExitCode::SUCCESS,
        Err(why) => fail(exit::FAILED, why),
    }
}

async fn try_to_start(cli: &Cli, place: &Path) -> Result<u32, String> {
    let folder = place.parent().ok_or("the control socket needs a name")?;
    socket::make_folder(folder).map_err(|error| error.to_string())?;
    let news = listen(folder).map_err(|error| format!("no socket can be made in {}: {error}", folder.display()))?;
    let mut daemon = command(cli, news.path())
        .and_then(|command| tokio::process::Command::from(command).spawn())
        .map_err(|error| format!("the daemon cannot be started: {error}"))?;
    let pid = daemon.id().unwrap_or_default();

    let deadline = Instant::now() + START_LIMIT;
    let mut said = None;
    let ended = loop {
        let message = tokio::select! {
            message = receive(news.as_file()) => message,
            status = daemon.wait() => break status,
            why = patience(deadline) => {
                // It unmounts what it may have mounted.
                if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                    rustix::process::kill_process(pid, Signal::TERM).map_err(|error| error.to_string())?;
                }
                return Err(why);
            }
        };
        match message.map_err(|error| format!("the daemon cannot be heard: {error}"))? {
            News::Ready => return Ok(pid),
            News::Status(why) => said = Some(why),
            News::Other => {}
        }
    };
    // The end may be seen before the last words.
    while let Ok(Ok(News::Status(why))) = timeout_at(Instant::now(), receive(news.as_file())).await {
        said = Some(why);
    }
    Err(said.unwrap_or_else(|| match ended {
        Ok(status) => format!("the daemon has ended without a word: {status}; the journal may have more"),
        Err(error) => format!("the daemon cannot be watched: {error}"),
    }))
}

/// Returns when there is no more waiting for the mount, and why.
async fn patience(deadline: Instant) -> String {
    let stopped = async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        io::Result::Ok(())
    };
    match timeout_at(deadline, stopped).await {
        Ok(Ok(())) => "stopped before the mount has answered".into(),
        Ok(Err(error)) => format!("signals cannot be heard: {error}"),
        Err(_) => format!("the mount has not answered within {START_LIMIT:?}"),
    }
}

/// A socket for the daemon's news, that nobody else may write to; removed with what is returned.
fn listen(folder: &Path) -> io::Result<NamedTempFile<UnixDatagram>> {
    let before = rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let socket = tempfile::Builder::new().prefix(".news-").make_in(folder, |path| UnixDatagram::bind(path));
    rustix::process::umask(before);
    socket
}

/// The daemon's command line. What it inherits it may keep: nothing of the caller's.
fn command(cli: &Cli, news: &Path) -> io::Result<Command> {
    // By its own name, unlike /proc/self/exe: people look for it.
    let mut command = Command::new(env::current_exe()?);
    command.arg0(NAMES[0]).arg("--foreground").arg(&cli.source).arg(&cli.mountpoint);
    for options in &cli.options {
        command.arg("-o").arg(options);
    }
    if cli.sloppy {
        command.arg("-s");
    }
    command.current_dir("/").env("NOTIFY_SOCKET", news).stdin(Stdio::null()).stdout(Stdio::null());
    match journal() {
        Ok((stream, named)) => command.stderr(Stdio::from(stream)).env("JOURNAL_STREAM", named),
        // No journal on this machine.
        Err(_) => command.stderr(Stdio::null()),
    };
    Ok(command)
}

/// A stream whose lines become entries of the journal, as systemd-cat(1) makes it, and its name for JOURNAL_STREAM.
fn journal() -> io::Result<(std::os::fd::OwnedFd, String)> {
    let mut stream = UnixStream::connect(JOURNAL)?;
    stream.shutdown(Shutdown::Read)?;
    // Identifier, unit, priority (6: info), whether lines begin with one, and whether they go on to syslog, the kernel's
    // log and the console.
    stream.write_all(b"lighthouse-fs\n\n6\n1\n0\n0\n0\n")?;
    let stat = rustix::fs::fstat(stream.as_fd())?;
    Ok((stream.into(), format!("{}:{}", stat.st_dev, stat.st_ino)))
}

/// What the daemon lets be known.
#[derive(PartialEq, Eq, Debug)]
enum News {
    Ready,
    Status(String),
    Other,
}

impl News {
    fn parse(message: &str) -> Self {
        if message.lines().any(|line| line == "READY=1") {
            return Self::Ready;
        }
        message.strip_prefix("STATUS=").map_or(Self::Other, |status| Self::Status(status.trim_end().to_owned()))
    }
}

async fn receive(socket: &UnixDatagram) -> io::Result<News> {
    // Longer than any path or error.
    let mut message = vec![0; 1 << 16];
    let length = socket.recv(&mut message).await?;
    message.truncate(length);
    Ok(News::parse(&String::from_utf8_lossy(&message)))
}
