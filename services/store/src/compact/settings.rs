//! How a store compacts.

use std::time::Duration;

/// Settings of compaction. Durations count by the injected clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompactionSettings {
    /// Width of the windows that blocks are cut for. Default 2 h.
    pub block_range: Duration,
    /// A window is compacted this long after its end, so that the blocks of all members and late ones are there. Default 45 min.
    pub settle: Duration,
    /// How often tenants are looked at; every fifth time the bucket is asked which there are. Default 1 min.
    pub interval: Duration,
    /// Samples older than this go; zero keeps them for ever. Default 150 days.
    pub retention: Duration,
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
            undelete_window: HOUR,
            dead_grace: HOUR,
            orphan_age: 24 * HOUR,
            overdue: 30 * MINUTE,
            block_bytes: 128 << 20,
            block_series: 500_000,
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

    /// How long another process may be at a merge of so many bytes.
    pub(crate) fn patience(&self, bytes: u64) -> Duration {
        self.overdue
            .saturating_add(Duration::from_secs(bytes / MERGED_PER_SECOND))
    }

    pub(crate) fn settle_ms(&self) -> i64 {
        millis(self.settle)
    }

    /// How long samples are kept, milliseconds; `None` for ever.
    pub(crate) fn retention_ms(&self) -> Option<i64> {
        (!self.retention.is_zero()).then(|| millis(self.retention))
    }
}

/// A duration in milliseconds.
pub(crate) fn millis(d: Duration) -> i64 {
    i64::try_from(d.as_millis()).unwrap_or(i64::MAX)
}
