//! Log lines on standard error.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::settings::{LogFormat, LogSettings};

/// Why logging could not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The level is no list of directives.
    #[error("log.level {level:?}: {reason}")]
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
    let filter = EnvFilter::try_new(&settings.level).map_err(|e| LogError::Level {
        level: settings.level.clone(),
        reason: e.to_string(),
    })?;
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
