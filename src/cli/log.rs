//! The log on standard error.

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// fuse3 opens a span for each request at INFO, which costs a sixth of the speed: it speaks only when asked by name.
const QUIET: &str = "fuse3=warn";

/// Options of the log.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// What is logged: error, warn, info, debug or trace, or a filter such as `info,lighthouse_fs::daemon=debug`
    #[arg(long, global = true, value_name = "LEVEL", default_value = "info", value_parser = checked)]
    log_level: String,
    /// How the log is written
    #[arg(long, global = true, value_name = "FORMAT", value_enum, default_value_t = Format::Text)]
    log_format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Format {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Options {
    /// The same options for another run of the program.
    pub fn arguments(&self) -> Vec<String> {
        let format = match self.log_format {
            Format::Text => "text",
            Format::Json => "json",
        };
        vec![format!("--log-level={}", self.log_level), format!("--log-format={format}")]
    }
}

fn filter(level: &str) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    EnvFilter::builder().parse(format!("{QUIET},{level}"))
}

fn checked(level: &str) -> Result<String, String> {
    let sensible = !level.is_empty() && filter(level).is_ok();
    sensible.then(|| level.to_owned()).ok_or_else(|| "use error, warn, info, debug or trace, or a filter".into())
}

/// Starts the log. Writes from the thread that logs: no thread of its own, which a serving process must not have yet.
pub fn start(options: &Options) {
    // Checked when the command line was read.
    let filter = filter(&options.log_level).unwrap_or_else(|_| EnvFilter::new(QUIET));
    // A log that nobody takes is no reason to panic, which is what reporting it on standard error would do.
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none())
        .log_internal_errors(false);
    match options.log_format {
        Format::Text => log.with_target(false).init(),
        Format::Json => log.json().flatten_event(true).init(),
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
        assert_eq!(checked(level).is_ok(), good);
    }

    #[test]
    fn another_run_logs_alike() {
        let options = Options { log_level: "debug".into(), log_format: Format::Json };
        assert_eq!(options.arguments(), ["--log-level=debug", "--log-format=json"]);
    }
}
