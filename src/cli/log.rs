//! The log on standard error: text or JSON, or entries of the journal where standard error leads there.

use std::os::fd::AsFd;
use std::str::FromStr;

use clap::ValueEnum;
use clap::builder::PossibleValue;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogFormat;

/// fuse3 opens a span for each request at INFO, which costs a sixth of the speed: it speaks only when asked by name.
const QUIET: &str = "fuse3=warn";
const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// Options of the log.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// What is logged: error, warn, info, debug, trace or off, or a filter such as `info,lighthouse_fs::daemon=debug`
    #[arg(long, global = true, value_name = "LEVEL", default_value = "info", value_parser = checked)]
    log_level: String,
    /// How the log is written
    #[arg(long, global = true, value_name = "FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
}

impl ValueEnum for LogFormat {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Text, Self::Json]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Text => PossibleValue::new("text")
                .help("Lines for people; entries of the journal if standard error leads there"),
            Self::Json => PossibleValue::new("json").help("One JSON object a line"),
        })
    }
}

impl Options {
    /// Text at this level.
    pub fn text(level: String) -> Self {
        Self { log_level: level, log_format: LogFormat::Text }
    }

    /// The same options for another run of the program.
    pub fn arguments(&self) -> Vec<String> {
        let format = match self.log_format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        vec![format!("--log-level={}", self.log_level), format!("--log-format={format}")]
    }
}

fn filter(level: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().parse(format!("{QUIET},{level}"))
}

/// Takes what a filter may be, but for one thing: EnvFilter reads a word that is no level as the name of a target, so that
/// a slip of the pen would silence the log.
pub fn checked(level: &str) -> Result<String, String> {
    let is_meant = |part: &str| part.contains(['=', '[']) || LEVELS.contains(&part);
    if level.split(',').all(is_meant) && filter(level).is_ok() {
        return Ok(level.to_owned());
    }
    Err(format!("use {}, or a filter such as `info,lighthouse_fs::daemon=debug`", LEVELS.join(", ")))
}

/// Starts the log. Writes from the thread that logs: no thread of its own, which a serving process must not have yet.
pub fn start(options: &Options) {
    // Checked when the command line was read.
    let filter = filter(&options.log_level).unwrap_or_else(|_| EnvFilter::new(QUIET));
    // A stream to the journal without a journal behind it is one more place for lines.
    if options.log_format == LogFormat::Text
        && leads_to_journal(std::env::var("JOURNAL_STREAM").ok().as_deref(), std::io::stderr())
        && let Ok(journal) = tracing_journald::layer()
    {
        let journal = journal.with_syslog_identifier("lighthouse-fs".into());
        return tracing_subscriber::registry().with(filter).with(journal).init();
    }
    // A log that nobody takes is no reason to panic, which is what reporting it on standard error would do.
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none())
        .log_internal_errors(false);
    match options.log_format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
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
        assert_eq!(checked(level).is_ok(), good);
    }

    #[test]
    fn another_run_logs_alike() {
        let options = Options { log_level: "debug".into(), log_format: LogFormat::Json };
        assert_eq!(options.arguments(), ["--log-level=debug", "--log-format=json"]);
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
