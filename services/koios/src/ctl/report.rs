//! How commands say what they found and how far they are, and numbers for people.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use koios_runtime::ClockHandle;
use parking_lot::Mutex;

/// Width of the bar.
const BAR: usize = 30;
/// How often a terminal's line changes.
const EVERY: Duration = Duration::from_millis(200);
/// How often a line is written where there is no terminal.
const EVERY_PLAIN: Duration = Duration::from_secs(30);

/// A line on standard error that says how far something is: a bar on a terminal, else a line now and then.
#[derive(Debug)]
pub(super) struct ProgressLine {
    clock: ClockHandle,
    terminal: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    what: String,
    drawn: Option<Duration>,
    /// Whether the terminal's line has something on it.
    dirty: bool,
}

impl ProgressLine {
    pub(super) fn new(clock: ClockHandle) -> Self {
        Self {
            clock,
            terminal: std::io::stderr().is_terminal(),
            state: Mutex::default(),
        }
    }

    /// Something new begins.
    pub(super) fn begin(&self, what: String) {
        let mut state = self.state.lock();
        state.what = what;
        state.drawn = (!self.terminal).then(|| self.clock.elapsed());
    }

    /// It is so far, between 0 and 1; `more` says what cannot be seen by that.
    pub(super) fn at(&self, done: f64, more: impl FnOnce() -> String) {
        let (now, mut state) = (self.clock.elapsed(), self.state.lock());
        let every = if self.terminal { EVERY } else { EVERY_PLAIN };
        if state.drawn.is_some_and(|at| now.saturating_sub(at) < every) {
            return;
        }
        state.drawn = Some(now);
        let line = format!("{} {} {:3.0}% {}", state.what, bar(done), done * 100.0, more());
        let mut out = std::io::stderr().lock();
        // Who does not see it cannot be told.
        let _ = match self.terminal {
            true => write!(out, "\r\x1b[K{line}"),
            false => writeln!(out, "{line}"),
        };
        let _ = out.flush();
        state.dirty = self.terminal;
    }

    /// Takes the bar away, before something else is printed.
    pub(super) fn clear(&self) {
        let mut state = self.state.lock();
        if std::mem::take(&mut state.dirty) {
            let mut out = std::io::stderr().lock();
            let _ = write!(out, "\r\x1b[K");
            let _ = out.flush();
        }
    }
}

fn bar(done: f64) -> String {
    let full = (done.clamp(0.0, 1.0) * BAR as f64) as usize;
    format!("[{}{}]", "#".repeat(full), " ".repeat(BAR.saturating_sub(full)))
}

/// `1.2 MiB`.
pub(super) fn bytes(n: u64) -> String {
    let mut value = n as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" {
                format!("{n} B")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// `90s`, `45m`, `30h`, `12d`: the largest unit that is there twice.
pub(super) fn age(ms: i64) -> String {
    let seconds = ms / 1000;
    let (width, unit) = [(86_400, "d"), (3_600, "h"), (60, "m")]
        .into_iter()
        .find(|(width, _)| seconds >= 2 * width)
        .unwrap_or((1, "s"));
    format!("{}{unit}", seconds / width)
}

/// `2026-11-22T08:00:00Z`.
pub(super) fn time(ms: i64) -> String {
    let (days, rest) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    // Days to a date of the Gregorian calendar, by eras of 400 years that begin in March.
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let seconds = rest / 1000;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(
            [0, 86_400_000, 951_782_400_000].map(time),
            [
                "1970-01-01T00:00:00Z",
                "1970-01-02T00:00:00Z",
                "2000-02-29T00:00:00Z"
            ]
        );
        assert_eq!(time(1_795_334_399_999), "2026-11-22T07:59:59Z");
        assert_eq!(
            [0, 1023, 1024, 5 << 30].map(bytes),
            ["0 B", "1023 B", "1.0 KiB", "5.0 GiB"]
        );
        assert_eq!(
            [90_000, 130_000, 90_000_000, 400_000_000].map(age),
            ["90s", "2m", "25h", "4d"]
        );
        assert_eq!(bar(0.5).matches('#').count(), 15);
    }
}
