//! The time by which samples are old: this process' clock, unless the storage's is behind it.

use std::time::Duration;

use koios_bucket::{Bucket, Error as BucketError};
use koios_runtime::ClockHandle;

use crate::compact::settings::millis;

/// How often the storage's clock is asked for.
const ASKED_EVERY: Duration = Duration::from_secs(600);
/// Storages tell whole seconds, and take a while: less than this ahead of them is not told of.
const AHEAD_TOLD_MS: i64 = 30_000;

/// Two clocks, of which the earlier one counts: what is removed cannot be had back, and that one machine's clock is in the future must
/// not be enough for it.
#[derive(Debug)]
pub(crate) struct TrustedClock {
    clock: ClockHandle,
    bucket: Bucket,
    /// This process, for the object that is written.
    member: String,
    asked: Option<Asked>,
}

/// What the storage said last.
#[derive(Clone, Copy, Debug)]
struct Asked {
    /// When its answer was there.
    at: Duration,
    /// What it said, milliseconds.
    stored_ms: i64,
    /// How far this process' clock was ahead of that.
    ahead_ms: i64,
}

impl TrustedClock {
    pub(crate) fn new(clock: ClockHandle, bucket: Bucket, member: String) -> Self {
        Self {
            clock,
            bucket,
            member,
            asked: None,
        }
    }

    /// Now, milliseconds: of this process' clock and the storage's the earlier one. Between two answers of the storage both go on, this
    /// process' as it is set, and the storage's as the time passes that nobody sets.
    ///
    /// # Errors
    /// Those of the bucket: while its clock is not known nothing is old.
    pub(crate) async fn now_ms(&mut self) -> Result<i64, BucketError> {
        let now = self.clock.elapsed();
        let is_fresh = |asked: &Asked| now.saturating_sub(asked.at) < ASKED_EVERY;
        let asked = match self.asked.filter(is_fresh) {
            Some(asked) => asked,
            None => self.ask().await?,
        };
        let passed = self.clock.elapsed().saturating_sub(asked.at);
        let own_ms = self.clock.now_ms().saturating_sub(asked.ahead_ms);
        let stored_ms = asked.stored_ms.saturating_add(millis(passed));
        Ok(own_ms.min(stored_ms))
    }

    /// How far this process' clock was ahead of the storage's, seconds.
    pub(crate) fn ahead_seconds(&self) -> i64 {
        self.asked.map_or(0, |asked| asked.ahead_ms / 1000)
    }

    async fn ask(&mut self) -> Result<Asked, BucketError> {
        let stored_ms = self.bucket.stored_now_ms(&self.member).await?;
        // After the answer: one that was slow makes things younger, not older.
        let (at, own_ms) = (self.clock.elapsed(), self.clock.now_ms());
        let ahead_ms = own_ms.saturating_sub(stored_ms).max(0);
        if ahead_ms > AHEAD_TOLD_MS {
            tracing::warn!(
                ahead_ms,
                "this machine's clock is ahead of the storage's, by which samples get old: set it right"
            );
        }
        let asked = Asked {
            at,
            stored_ms,
            ahead_ms,
        };
        self.asked = Some(asked);
        Ok(asked)
    }
}

#[cfg(test)]
#[path = "clock_test.rs"]
mod tests;
