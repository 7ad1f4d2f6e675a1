//! How a store compacts.

use std::sync::Arc;
use std::time::Duration;

use koios_block::{RESOLUTION_1H_MS, RESOLUTION_5M_MS};
use koios_bucket::{RetentionPolicy, SummaryRetention};
use koios_model::TimeRange;

/// How old samples are downsampled to one resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Downsampling {
    /// How much time a summary is of, milliseconds.
    pub resolution_ms: i64,
    /// A day is downsampled this long after its end; zero for never.
    pub after: Duration,
    /// Summaries older than this go; zero keeps them for ever.
    pub retention: Duration,
    /// Whether somebody said [`Self::after`], rather than nobody.
    pub after_given: bool,
    /// The same of [`Self::retention`].
    pub retention_given: bool,
}

impl Downsampling {
    /// To summaries of 5 minutes.
    pub fn by_5m(after: Duration, retention: Duration) -> Self {
        Self {
            resolution_ms: RESOLUTION_5M_MS,
            after,
            retention,
            after_given: false,
            retention_given: false,
        }
    }

    /// To summaries of an hour.
    pub fn by_1h(after: Duration, retention: Duration) -> Self {
        Self {
            resolution_ms: RESOLUTION_1H_MS,
            after,
            retention,
            after_given: false,
            retention_given: false,
        }
    }

    /// Whether a window should have summaries.
    pub(crate) fn is_wanted(&self, window: TimeRange, now_ms: i64, settings: &CompactionSettings) -> bool {
        let ended_ago = now_ms.saturating_sub(window.max);
        let kept = self.retention.is_zero() || ended_ago <= millis(self.retention);
        !self.after.is_zero() && ended_ago > self.wait_ms(settings) && kept
    }

    /// How long after its end a window is downsampled, milliseconds.
    pub(crate) fn wait_ms(&self, settings: &CompactionSettings) -> i64 {
        // Samples that are about to go do not wait.
        millis(self.after).min(settings.retention_ms().unwrap_or(i64::MAX))
    }

    /// Whether summaries are made and kept longer than samples.
    pub(crate) fn outlives(&self, settings: &CompactionSettings) -> bool {
        let longer = self.retention.is_zero() || self.retention > settings.retention;
        !self.after.is_zero() && longer
    }
}

/// Settings of compaction. Durations count by the injected clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompactionSettings {
    /// Width of the windows that blocks are cut for. Default 2 h.
    pub block_range: Duration,
    /// A window is compacted this long after its end, so that the blocks of all members and late ones are there. Default 45 min.
    pub settle: Duration,
    /// How often tenants are looked at; every fifth time the bucket is asked which there are. Default 1 min.
    pub interval: Duration,
    /// Samples older than this go; zero keeps them for ever. Default 150 days. Tenants may have their own, and rules.
    pub retention: Duration,
    /// Whether somebody said [`Self::retention`], rather than nobody.
    pub retention_given: bool,
    /// Which summaries are made of old samples. Default 5 minutes, kept for 366 days, and an hour, kept for 5 years, both made
    /// after 40 h: one reading of the samples makes both.
    pub downsampling: Vec<Downsampling>,
    /// A deletion can be taken back for so long; then its samples are removed from blocks. Default 1 h.
    pub undelete_window: Duration,
    /// Bytes of a block that was replaced go this long after: longer than any query takes. Default 1 h.
    pub dead_grace: Duration,
    /// Bytes of an upload that was never listed go when they are this old. Default 24 h.
    pub orphan_age: Duration,
    /// Another store takes a tenant over when nothing was done about what is due for this long. Default 30 min.
    pub overdue: Duration,
    /// A merge begins a new block at about so many bytes: it is in memory until it is uploaded. Default 128 MiB.
    pub block_bytes: usize,
    /// The same for series, whose labels are in memory too. Default 500,000.
    pub block_series: usize,
    /// The policy of one tenant that these settings obey; none as a process is told. Without one nothing goes because of its age.
    pub policy: Option<Arc<RetentionPolicy>>,
}

impl Default for CompactionSettings {
    fn default() -> Self {
        const MINUTE: Duration = Duration::from_secs(60);
        const HOUR: Duration = Duration::from_secs(3600);
        Self {
            block_range: 2 * HOUR,
            settle: 45 * MINUTE,
            interval: MINUTE,
            retention: 150 * 24 * HOUR,
            retention_given: false,
            downsampling: vec![
                Downsampling::by_5m(40 * HOUR, 366 * 24 * HOUR),
                Downsampling::by_1h(40 * HOUR, 5 * 365 * 24 * HOUR),
            ],
            undelete_window: HOUR,
            dead_grace: HOUR,
            orphan_age: 24 * HOUR,
            overdue: 30 * MINUTE,
            block_bytes: 128 << 20,
            block_series: 500_000,
            policy: None,
        }
    }
}

/// Wider windows, as multiples of the blocks' range: 12 h and 24 h by default.
const WIDENED: [i64; 2] = [6, 12];

/// Bytes of blocks that the slowest machine merges in a second.
const MERGED_PER_SECOND: u64 = 1 << 20;

impl CompactionSettings {
    /// The widths of windows that blocks are merged to, ascending, milliseconds.
    pub(crate) fn widths_ms(&self) -> impl Iterator<Item = i64> {
        let range = millis(self.block_range).max(1);
        std::iter::once(1)
            .chain(WIDENED)
            .map(move |n| range.saturating_mul(n))
    }

    /// The widest of them.
    pub(crate) fn widest_ms(&self) -> i64 {
        self.widths_ms().max().unwrap_or(1)
    }

    /// The widest window that begins at a time.
    pub(crate) fn widest_window(&self, start: i64) -> TimeRange {
        TimeRange::new(start, start.saturating_add(self.widest_ms() - 1))
    }

    /// How long another process may be at a merge of so many bytes.
    pub(crate) fn patience(&self, bytes: u64) -> Duration {
        self.overdue
            .saturating_add(Duration::from_secs(bytes / MERGED_PER_SECOND))
    }

    /// The same as a tenant's policy says.
    pub(crate) fn obeying(mut self, policy: RetentionPolicy) -> Self {
        let duration =
            |ms: Option<i64>| ms.map_or(Duration::ZERO, |ms| Duration::from_millis(ms.unsigned_abs()));
        self.retention = duration(policy.samples_ms);
        for d in &mut self.downsampling {
            let same = |s: &&SummaryRetention| s.resolution_ms == d.resolution_ms;
            if let Some(s) = policy.summaries.iter().find(same) {
                (d.after, d.retention) = (duration(s.after_ms), duration(s.kept_ms));
            }
        }
        self.policy = Some(Arc::new(policy));
        self
    }

    pub(crate) fn settle_ms(&self) -> i64 {
        millis(self.settle)
    }

    /// How long samples are kept, milliseconds; `None` for ever.
    pub(crate) fn retention_ms(&self) -> Option<i64> {
        kept_ms(self.retention)
    }
}

/// A retention in milliseconds; `None` for ever.
pub(crate) fn kept_ms(retention: Duration) -> Option<i64> {
    (!retention.is_zero()).then(|| millis(retention))
}

/// A duration in milliseconds.
pub(crate) fn millis(d: Duration) -> i64 {
    i64::try_from(d.as_millis()).unwrap_or(i64::MAX)
}
