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
    pub(super) read_failures: Count,
    pub(super) write_failures: Count,
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
    /// Reads that the disk failed.
    pub read_failures: u64,
    /// Writes that the disk failed.
    pub write_failures: u64,
}

impl Counters {
    pub(super) fn snapshot(&self) -> DiskCacheStats {
        DiskCacheStats {
            bytes: 0,
            cells: 0,
            hits: self.hits.get(),
            misses: self.misses.get(),
            damaged: self.damaged.get(),
            evicted: self.evicted.get(),
            written_bytes: self.written_bytes.get(),
            dropped: self.dropped.get(),
            read_failures: self.read_failures.get(),
            write_failures: self.write_failures.get(),
        }
    }
}
