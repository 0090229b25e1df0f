//! Logs: text for people, JSON for machines, on standard error.

use std::io::IsTerminal;

use anyhow::Context;
use clap::ValueEnum;
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts logging.
pub(crate) fn start(format: LogFormat, level: &str) -> anyhow::Result<()> {
    let filter = filter(level).with_context(|| {
        format!(
            "--log-level {level:?} is not valid: error, warn, info, debug, trace, or a filter such as \
                 info,sconce_engine=debug is expected"
        )
    })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A line that nobody takes is lost, and nothing else is: told on stderr too, that would be a panic.
        .log_internal_errors(false);
    match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).with_target(false).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    Ok(())
}

/// A level is about this program; what its libraries say below `info` is noise to anyone else. A filter is
/// taken as it is.
fn filter(level: &str) -> anyhow::Result<EnvFilter> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |word: &str| LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level));
    if is_level(level) && !level.eq_ignore_ascii_case("debug") && !level.eq_ignore_ascii_case("trace") {
        return Ok(EnvFilter::try_new(level)?);
    }
    if is_level(level) {
        let ours = ["server", "engine", "torch", "repository"].map(|name| format!("sconce_{name}={level}"));
        return Ok(EnvFilter::try_new(format!("info,{}", ours.join(",")))?);
    }
    // A word alone would be a target, and turn everything else off.
    for word in level.split(',') {
        anyhow::ensure!(word.contains('=') || is_level(word), "{word:?} is neither a level nor TARGET=LEVEL");
    }
    Ok(EnvFilter::try_new(level)?)
}

#[cfg(test)]
mod tests {
    use super::filter;

    #[test]
    fn levels_and_filters_are_taken_and_typing_errors_are_not() {
        for good in ["error", "INFO", "debug", "info,sconce_engine=debug", "sconce_server=trace"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["", "warning", "inf", "info,bogus", "info,x=loud"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }
}
