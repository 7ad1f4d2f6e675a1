//! Leaving a disk that fails alone for a while.

use std::time::Duration;

use parking_lot::Mutex;

/// How long a disk that failed is left alone.
pub(super) const REST: Duration = Duration::from_secs(60);

/// Until when one kind of work is not done, on the monotonic clock.
#[derive(Debug, Default)]
pub(super) struct Rest {
    until: Mutex<Duration>,
}

impl Rest {
    pub(super) fn is_on(&self, now: Duration) -> bool {
        now < *self.until.lock()
    }

    /// Starts it, or makes it longer; tells whether it was not on before.
    pub(super) fn begin(&self, now: Duration) -> bool {
        let mut until = self.until.lock();
        let is_new = *until <= now;
        *until = now.saturating_add(REST);
        is_new
    }
}
