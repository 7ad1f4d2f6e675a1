//! Log lines on standard error.

use std::io::{IsTerminal as _, Write};
use std::sync::atomic::{AtomicU64, Ordering};

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

/// Lines that could not be written since the process started.
static LINES_LOST: AtomicU64 = AtomicU64::new(0);

/// How many log lines could not be written, as to a full disk or a pipe that nobody reads any more.
pub fn lost_log_lines() -> u64 {
    LINES_LOST.load(Ordering::Relaxed)
}

/// Takes lines; one that cannot be written is counted and dropped: what a process does must not depend on who reads its log.
#[derive(Debug)]
struct Lines<W>(W);

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        if self.0.write_all(line).is_err() {
            LINES_LOST.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
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
        .with_writer(|| Lines(std::io::stderr()))
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
    // A target or a span may be given alone, beside a level: a word by itself is meant as one.
    let word = level.trim();
    let is_word = !word.contains(['[', '=', ',']);
    if is_word && word.parse::<LevelFilter>().is_err() {
        return Err(wrong(format!("{word:?} is no level")));
    }
    EnvFilter::try_new(level).map_err(|e| wrong(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_cannot_be_written_is_counted_and_stops_nothing() {
        let before = lost_log_lines();
        let lines = tracing_subscriber::fmt().with_writer(|| Lines(Full)).finish();
        tracing::subscriber::with_default(lines, || tracing::warn!("nobody reads this"));
        assert_eq!(lost_log_lines(), before + 1);
    }

    #[test]
    fn i13_a_word_that_is_no_level_is_refused_with_the_levels() {
        for good in [
            "info",
            "WARN",
            "off",
            "info,koios_wal=debug",
            "info,[push{tenant}]=debug",
            "info,koios_wal",
        ] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for (bad, word) in [
            ("verbose", "\"verbose\" is no level"),
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
