//! How fast samples come: what is measured where they are sent and where they arrive must be the same.

use std::time::Duration;

/// After so many seconds a sample counts for a third of what it counted first.
const MEMORY_SECS: f64 = 20.0;

/// Samples per second, by the last minute or so: the older, the less they count. Times are monotonic.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    per_second: f64,
    at: Duration,
}

impl Rate {
    /// As it was told, in thousandths of samples per second, at a time.
    pub fn told(thousandths: u64, at: Duration) -> Self {
        let per_second = thousandths as f64 / 1000.0;
        Self { per_second, at }
    }

    /// Counts samples that come now.
    pub fn add(&mut self, samples: u64, now: Duration) {
        self.per_second = self.at(now) + samples as f64 / MEMORY_SECS;
        self.at = self.at.max(now);
    }

    /// The rate now, if nothing has come since.
    pub fn at(&self, now: Duration) -> f64 {
        let age = now.saturating_sub(self.at).as_secs_f64();
        self.per_second * (-age / MEMORY_SECS).exp()
    }

    /// The same as it is told: 0 where nothing came, or long ago.
    pub fn thousandths(&self, now: Duration) -> u64 {
        (self.at(now) * 1000.0).round() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_flow_is_its_rate_and_a_flow_that_ends_is_forgotten() {
        let mut rate = Rate::default();
        for second in 0..300 {
            rate.add(50, Duration::from_secs(second));
        }
        let at = |secs| rate.at(Duration::from_secs(secs));
        assert!((48.0..52.0).contains(&at(299)), "{rate:?}");
        assert!((at(319) / at(299) - (-1f64).exp()).abs() < 1e-9);
        assert_eq!(rate.thousandths(Duration::from_secs(10_000)), 0);
        assert_eq!(Rate::told(7, Duration::ZERO).thousandths(Duration::ZERO), 7);
    }
}
