//! The log on standard error.

use clap::builder::PossibleValuesParser;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload::Handle;

use super::flag;
use crate::config::LogFormat;

/// fuse3 opens a span for each request at INFO, which costs a sixth of the speed, and fuser says a line for each at DEBUG:
/// they speak only when asked by name.
const QUIET: &str = "fuse3=warn,fuser=info";

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

/// Starts the log. Writes from the thread that logs: no thread of its own, which a serving process must not have yet.
pub fn start(level: &str, format: LogFormat) -> SetLevel {
    // A log that nobody takes is no reason to panic, which is what reporting it on standard error would do.
    let log = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none())
        .log_internal_errors(false);
    match format {
        LogFormat::Text => {
            let log = log.with_target(false).with_env_filter(checked(level)).with_filter_reloading();
            let level = log.reload_handle();
            log.init();
            set_level(level)
        }
        LogFormat::Json => {
            let log = log.json().flatten_event(true).with_env_filter(checked(level)).with_filter_reloading();
            let level = log.reload_handle();
            log.init();
            set_level(level)
        }
    }
}

fn set_level<S: 'static>(handle: Handle<EnvFilter, S>) -> SetLevel {
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
    fn the_level_can_be_changed() {
        let log = tracing_subscriber::fmt().with_env_filter(checked("info")).with_filter_reloading();
        let set_level = set_level(log.reload_handle());
        tracing::subscriber::with_default(log.finish(), || {
            assert!(!tracing::enabled!(tracing::Level::DEBUG));
            set_level("debug");
            assert!(tracing::enabled!(tracing::Level::DEBUG));
        });
    }

    #[test]
    fn another_run_logs_alike() {
        assert_eq!(arguments("debug", LogFormat::Json), ["--log-level=debug", "--log-format=json"]);
    }
}
