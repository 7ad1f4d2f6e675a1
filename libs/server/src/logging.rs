//! Log lines on standard error.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::settings::{LogFormat, LogSettings};

/// Why logging could not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The level is no list of directives.
    #[error(
        "log.level {level:?}: {reason}: give error, warn, info, debug, trace or off, or directives such as \
         info,koios_wal=debug"
    )]
    Level {
        /// As configured.
        level: String,
        /// Why.
        reason: String,
    },
    /// Something logs already in this process.
    #[error("logging was already started")]
    AlreadyStarted,
}

/// Starts logging for the whole process. Escape sequences in user strings are escaped by the formatter; call sites log
/// user strings with `?`, which escapes line breaks too.
///
/// # Errors
/// [`LogError`].
pub fn start_logging(settings: &LogSettings) -> Result<(), LogError> {
    let filter = filter(&settings.level)?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = match settings.format {
        LogFormat::Text => lines.finish().try_init(),
        LogFormat::Json => lines.json().finish().try_init(),
    };
    started.map_err(|_| LogError::AlreadyStarted)
}

/// What is logged. A word alone would be taken for a module of which everything is logged, and nothing of the others: mostly it
/// is a level that is none.
fn filter(level: &str) -> Result<EnvFilter, LogError> {
    let wrong = |reason: String| LogError::Level {
        level: level.to_owned(),
        reason,
    };
    // A span may be given alone.
    let mut words = level.split(',').map(str::trim).filter(|w| !w.contains('['));
    if let Some(word) = words.find(|w| !w.contains('=') && w.parse::<LevelFilter>().is_err()) {
        return Err(wrong(format!("{word:?} is no level")));
    }
    EnvFilter::try_new(level).map_err(|e| wrong(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i13_a_word_that_is_no_level_is_refused_with_the_levels() {
        for good in [
            "info",
            "WARN",
            "off",
            "info,koios_wal=debug",
            "info,[push{tenant}]=debug",
        ] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for (bad, word) in [
            ("verbose", "\"verbose\" is no level"),
            ("info,verbose", "\"verbose\" is no level"),
            ("info,koios_wal=verbose", "log.level"),
        ] {
            let said = filter(bad).unwrap_err().to_string();
            assert!(
                said.contains(word) && said.contains("error, warn, info, debug, trace"),
                "{said}"
            );
        }
    }
}
