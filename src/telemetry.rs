//! Logs: to standard error, so that standard output holds data only.
//!
//! For people on a terminal, JSON otherwise (a journal or a collector reads it); `--log-format` overrides. `TIDINGS_LOG` filters, as
//! `tracing-subscriber` has it (`info`, `tidings::delivery=debug`). What is logged never holds payloads, tokens or passwords: nothing that
//! holds a secret is given to a log macro.

use std::io::{self, IsTerminal};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// The environment variable that filters the log.
pub const FILTER_VARIABLE: &str = "TIDINGS_LOG";

/// What is logged where nobody says otherwise: what an operator should know, and nothing per report.
pub const DEFAULT_FILTER: &str = "info";

/// Stands before every filter. The demo's embedded broker logs what only its own developers want to know; `TIDINGS_LOG=info,mqtt5=info` brings it back.
const ALWAYS: &str = "mqtt5=off";

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// For machines.
    Json,
}

/// Logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter makes no sense.
    #[error("{FILTER_VARIABLE}={filter:?} is not a filter: {what}. Examples: info, warn, tidings::delivery=debug")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        what: String,
    },
    /// It was set up before.
    #[error("logging was set up twice: {0}")]
    Twice(String),
}

/// Sets up logging for the whole process; `default_filter` counts where `TIDINGS_LOG` says nothing.
///
/// # Errors
/// If the filter makes no sense, or logging was set up before.
pub fn start(format: Option<LogFormat>, default_filter: &str) -> Result<(), TelemetryError> {
    let filter = std::env::var(FILTER_VARIABLE).ok().filter(|filter| !filter.trim().is_empty());
    let filter = filter_of(filter.as_deref().unwrap_or(default_filter))?;
    let is_terminal = io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(is_terminal);
    // What becomes of a line that can't be written would go to standard error as well, and panic: a full disk there must not end what the line is about.
    let lines = lines.log_internal_errors(false);
    let started = match format.unwrap_or(if is_terminal { LogFormat::Pretty } else { LogFormat::Json }) {
        LogFormat::Pretty => lines.with_target(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).with_ansi(false).try_init(),
    };
    started.map_err(|error| TelemetryError::Twice(error.to_string()))
}

fn filter_of(text: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder()
        .parse(format!("{ALWAYS},{text}"))
        .map_err(|error| TelemetryError::Filter { filter: text.to_owned(), what: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_makes_no_sense_is_named() {
        assert!(filter_of(DEFAULT_FILTER).is_ok());
        assert!(filter_of("tidings::delivery=debug,warn").is_ok());
        let error = filter_of("tidings=loud").unwrap_err().to_string();
        assert!(error.starts_with("TIDINGS_LOG=\"tidings=loud\" is not a filter"), "{error}");
    }
}
