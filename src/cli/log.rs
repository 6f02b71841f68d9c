//! The log on standard error: text or JSON, or entries of the journal where standard error leads there.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::os::fd::AsFd;
use std::str::FromStr;

use anstream::{AutoStream, ColorChoice};
use clap::builder::PossibleValuesParser;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt};

use super::flag;
use crate::config::LogFormat;

/// fuse3 opens a span for each request at INFO, which costs a sixth of the speed, and fuser says a line for each at DEBUG:
/// they speak only when asked by name.
const QUIET: &str = "fuse3=warn,fuser=info";

/// Options of the log; for a daemon, flags over its configuration.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// What is logged: error, warn, info, debug, trace or off, or a filter such as `info,lighthouse_fs::daemon=debug`
    /// [default: info]
    #[arg(id = "log_level", long = "log-level", global = true, value_name = "LEVEL", value_parser = flag("daemon.log_level"))]
    pub level: Option<String>,
    /// How the log is written: text, for people, or as entries of the journal if standard error leads there; or json, one
    /// object a line [default: text]
    #[arg(id = "log_format", long = "log-format", global = true, value_name = "FORMAT", hide_possible_values = true, value_parser = PossibleValuesParser::new(["text", "json"]))]
    pub format: Option<String>,
}

impl Options {
    /// Starts the log by these options alone.
    pub fn start(&self) -> SetLevel {
        let format = self.format.as_deref().and_then(|name| name.parse().ok());
        start(self.level.as_deref().unwrap_or("info"), format.unwrap_or_default())
    }
}

/// The options that make another run of the program log alike.
pub fn arguments(level: &str, format: LogFormat) -> Vec<String> {
    vec![format!("--log-level={level}"), format!("--log-format={format}")]
}

/// Changes what is logged from now on; the level has passed the checks of the configuration.
pub type SetLevel = Box<dyn Fn(&str) + Send + Sync>;

/// Lines that wait for a reader of standard error. Of more, the newest are lost.
const WAITING_LINES: usize = 16_384;

/// Starts the log. Writes from the thread that logs: no thread of its own, which a serving process must not have yet.
pub fn start(level: &str, format: LogFormat) -> SetLevel {
    start_with(level, format, BoxMakeWriter::new(std::io::stderr))
}

/// Starts the log of a daemon, whose one loop must not wait until somebody reads standard error: another thread does. When
/// the guard is dropped, what waits is written, for a second at most.
pub fn start_for_daemon(level: &str, format: LogFormat) -> (SetLevel, WorkerGuard) {
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(WAITING_LINES)
        .thread_name("log")
        .finish(std::io::stderr());
    (start_with(level, format, BoxMakeWriter::new(writer)), guard)
}

fn start_with(level: &str, format: LogFormat, writer: BoxMakeWriter) -> SetLevel {
    let (filter, handle) = reload::Layer::new(checked(level));
    let log = tracing_subscriber::registry().with(filter);
    // A log that nobody takes is no reason to panic, which is what reporting it on standard error would do.
    let lines = fmt::layer()
        .with_writer(writer)
        // As clap decides for help and errors: by the terminal, NO_COLOR, CLICOLOR and TERM.
        .with_ansi(AutoStream::choice(&std::io::stderr()) != ColorChoice::Never)
        .log_internal_errors(false);
    match format {
        LogFormat::Text if leads_to_journal(std::env::var("JOURNAL_STREAM").ok().as_deref(), std::io::stderr()) => {
            // A stream to the journal without a journal behind it is one more place for lines.
            let journal = tracing_journald::layer().ok().map(|it| it.with_syslog_identifier("lighthouse-fs".into()));
            let lines = journal.is_none().then(|| lines.with_target(false));
            log.with(lines).with(journal).init();
        }
        LogFormat::Text => log.with(lines.with_target(false)).init(),
        LogFormat::Json => log.with(lines.json().flatten_event(true).boxed()).init(),
    }
    log_panics();
    set_level(handle)
}

/// Lets a panic be an event of the log, in its format, and not lines of text between its lines. Where errors are not logged it
/// is told as ever.
fn log_panics() {
    let as_ever = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !tracing::enabled!(tracing::Level::ERROR) {
            return as_ever(panic);
        }
        let message = panic.payload_as_str().unwrap_or("no message");
        let location = panic.location().map(tracing::field::display);
        let thread = std::thread::current();
        // Empty unless RUST_BACKTRACE asks for it.
        let backtrace = Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| tracing::field::display(&backtrace));
        tracing::error!(location, thread = thread.name(), backtrace, "a thread has panicked: {message}");
    }));
}

fn set_level(handle: Handle<EnvFilter, Registry>) -> SetLevel {
    Box::new(move |level| {
        if let Err(error) = handle.reload(checked(level)) {
            tracing::error!(%error, "the log level cannot be changed");
        }
    })
}

/// The filter of a level that has been checked already, where it was read.
fn checked(level: &str) -> EnvFilter {
    EnvFilter::builder().parse(format!("{QUIET},{level}")).unwrap_or_else(|_| EnvFilter::new(QUIET))
}

/// Whether the stream that JOURNAL_STREAM names, by device and inode number, is this one: a process may have inherited the
/// variable and no longer the stream (systemd.exec(5)).
fn leads_to_journal(named: Option<&str>, stream: impl AsFd) -> bool {
    let numbers = named.and_then(|named| named.split_once(':'));
    let Some((Ok(device), Ok(inode))) = numbers.map(|(device, inode)| (u64::from_str(device), u64::from_str(inode)))
    else {
        return false;
    };
    rustix::fs::fstat(stream).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (device, inode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("info", true)]
    #[case("off", true)]
    #[case("debug,fuse3=trace", true)]
    #[case("lighthouse_fs::daemon=debug", true)]
    #[case("info,[request]=trace", true)]
    #[case("loud", false)]
    #[case("info,loud", false)]
    #[case("", false)]
    #[case("fuse3=loud", false)]
    fn levels_are_checked(#[case] level: &str, #[case] good: bool) {
        assert_eq!(flag("daemon.log_level")(level).is_ok(), good);
    }

    #[test]
    fn the_level_can_be_changed() {
        let (filter, handle) = reload::Layer::new(checked("info"));
        let set_level = set_level(handle);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(filter), || {
            assert!(!tracing::enabled!(tracing::Level::DEBUG));
            set_level("debug");
            assert!(tracing::enabled!(tracing::Level::DEBUG));
        });
    }

    #[test]
    fn another_run_logs_alike() {
        assert_eq!(arguments("debug", LogFormat::Json), ["--log-level=debug", "--log-format=json"]);
    }

    #[test]
    fn the_journal_is_known_by_its_numbers() {
        let (stream, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let stat = rustix::fs::fstat(&stream).unwrap();
        let named = format!("{}:{}", stat.st_dev, stat.st_ino);
        assert!(leads_to_journal(Some(&named), &stream));
        assert!(!leads_to_journal(Some(&named), &other), "inherited the variable and not the stream");
        assert!(!leads_to_journal(Some("8:"), &stream));
        assert!(!leads_to_journal(None, &stream));
    }
}
