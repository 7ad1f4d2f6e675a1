//! What a cache holds and has done.

use std::sync::atomic::{AtomicU64, Ordering};

/// A count that only grows.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counts of [`DiskCacheStats`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) hits: Count,
    pub(super) misses: Count,
    pub(super) damaged: Count,
    pub(super) evicted: Count,
    pub(super) written_bytes: Count,
    pub(super) dropped: Count,
    pub(super) kept_again: Count,
    pub(super) not_read: [Count; 3],
    pub(super) read_failures: Count,
    pub(super) write_failures: Count,
}

/// Why a cell that is there was not read.
#[derive(Clone, Copy, Debug)]
pub(super) enum NotRead {
    /// Others were being read.
    Busy,
    /// It did not come in time.
    Late,
    /// The disk is left alone.
    Resting,
}

/// What a cache on disk holds, and what it has done since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCacheStats {
    /// Bytes of its files.
    pub bytes: u64,
    /// Cells in them that can be read.
    pub cells: u64,
    /// Cells that were asked for and found.
    pub hits: u64,
    /// Cells that were asked for and not found.
    pub misses: u64,
    /// Cells that failed their checksum.
    pub damaged: u64,
    /// Cells that made room for others.
    pub evicted: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Cells that were not kept because too many waited to be written.
    pub dropped: u64,
    /// Cells that were written once more because they were read once more.
    pub kept_again: u64,
    /// Cells, of those not found, that are there: the disk was busy with others.
    pub not_read_busy: u64,
    /// The same: they did not come in time.
    pub not_read_late: u64,
    /// The same: the disk is left alone because it does not answer.
    pub not_read_resting: u64,
    /// Whether it is left alone now.
    pub is_resting: bool,
    /// Reads that the disk failed, or did not answer.
    pub read_failures: u64,
    /// Writes that the disk failed.
    pub write_failures: u64,
}

impl Counters {
    pub(super) fn not_read(&self, why: NotRead, cells: usize) {
        let [busy, late, resting] = &self.not_read;
        let count = match why {
            NotRead::Busy => busy,
            NotRead::Late => late,
            NotRead::Resting => resting,
        };
        count.add(cells as u64);
    }

    pub(super) fn snapshot(&self) -> DiskCacheStats {
        let [busy, late, resting] = &self.not_read;
        DiskCacheStats {
            bytes: 0,
            cells: 0,
            hits: self.hits.get(),
            misses: self.misses.get(),
            damaged: self.damaged.get(),
            evicted: self.evicted.get(),
            written_bytes: self.written_bytes.get(),
            dropped: self.dropped.get(),
            kept_again: self.kept_again.get(),
            not_read_busy: busy.get(),
            not_read_late: late.get(),
            not_read_resting: resting.get(),
            is_resting: false,
            read_failures: self.read_failures.get(),
            write_failures: self.write_failures.get(),
        }
    }
}
