//! The log on standard error.

use clap::builder::PossibleValuesParser;
use tracing_subscriber::EnvFilter;

use super::flag;
use crate::config::LogFormat;

/// fuse3 opens a span for each request at INFO, which costs a sixth of the speed: it speaks only when asked by name.
const QUIET: &str = "fuse3=warn";

/// Options of the log; for a daemon, flags over its configuration.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// What is logged: error, warn, info, debug or trace, or a filter such as `info,lighthouse_fs::daemon=debug` [default:
    /// info]
    #[arg(id = "log_level", long = "log-level", global = true, value_name = "LEVEL", value_parser = flag("daemon.log_level"))]
    pub level: Option<String>,
    /// How the log is written [default: text]
    #[arg(id = "log_format", long = "log-format", global = true, value_name = "FORMAT", value_parser = PossibleValuesParser::new(["text", "json"]))]
    pub format: Option<String>,
}

impl Options {
    /// Starts the log by these options alone.
    pub fn start(&self) {
        let format = self.format.as_deref().and_then(|name| name.parse().ok());
        start(self.level.as_deref().unwrap_or("info"), format.unwrap_or_default());
    }
}

/// The options that make another run of the program log alike.
pub fn arguments(level: &str, format: LogFormat) -> Vec<String> {
    vec![format!("--log-level={level}"), format!("--log-format={format}")]
}

fn filter(level: &str) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    EnvFilter::builder().parse(format!("{QUIET},{level}"))
}

/// Starts the log. Writes from the thread that logs: no thread of its own, which a serving process must not have yet.
pub fn start(level: &str, format: LogFormat) {
    // Checked when it was read.
    let filter = filter(level).unwrap_or_else(|_| EnvFilter::new(QUIET));
    // A log that nobody takes is no reason to panic, which is what reporting it on standard error would do.
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none())
        .log_internal_errors(false);
    match format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("info", true)]
    #[case("debug,fuse3=trace", true)]
    #[case("loud", true)] // a target of that name, as in RUST_LOG
    #[case("", false)]
    #[case("fuse3=loud", false)]
    fn levels_are_checked(#[case] level: &str, #[case] good: bool) {
        assert_eq!(flag("daemon.log_level")(level).is_ok(), good);
    }

    #[test]
    fn another_run_logs_alike() {
        assert_eq!(arguments("debug", LogFormat::Json), ["--log-level=debug", "--log-format=json"]);
    }
}
