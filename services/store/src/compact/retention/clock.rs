//! The time by which samples are old: this process' clock, unless the storage's is behind it.

use std::time::Duration;

use koios_bucket::{Bucket, Error as BucketError};
use koios_runtime::ClockHandle;

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
    /// When the storage was asked last, and how far its clock was behind.
    asked: Option<(Duration, i64)>,
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

    /// Now, milliseconds.
    ///
    /// # Errors
    /// Those of the bucket: while its clock is not known nothing is old.
    pub(crate) async fn now_ms(&mut self) -> Result<i64, BucketError> {
        let now = self.clock.elapsed();
        let is_fresh = |at: Duration| now.saturating_sub(at) < ASKED_EVERY;
        let ahead_ms = match self.asked {
            Some((at, ahead_ms)) if is_fresh(at) => ahead_ms,
            _ => self.ask(now).await?,
        };
        Ok(self.clock.now_ms().saturating_sub(ahead_ms))
    }

    /// How far this process' clock is ahead of the storage's, seconds.
    pub(crate) fn ahead_seconds(&self) -> i64 {
        self.asked.map_or(0, |(_, ahead_ms)| ahead_ms / 1000)
    }

    async fn ask(&mut self, now: Duration) -> Result<i64, BucketError> {
        // Before the storage's is read: a slow answer makes nothing older.
        let own_ms = self.clock.now_ms();
        let stored_ms = self.bucket.stored_now_ms(&self.member).await?;
        let ahead_ms = own_ms.saturating_sub(stored_ms).max(0);
        if ahead_ms > AHEAD_TOLD_MS {
            tracing::warn!(
                ahead_ms,
                "this machine's clock is ahead of the storage's, by which samples get old: set it right"
            );
        }
        self.asked = Some((now, ahead_ms));
        Ok(ahead_ms)
    }
}
