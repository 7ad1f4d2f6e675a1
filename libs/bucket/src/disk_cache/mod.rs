//! Cells of blocks on a local disk, below the caches in memory: docs/formats/disk-cache.md.
//!
//! **Data flow.** Readers ask for cells ([`CellStore::get`]) and hand over what they had to fetch ([`CellStore::put`]), which
//! the [`DiskCacheWriter`] appends to the newest of some segment files. When there is no room the oldest segment goes.
//!
//! **Invariants.** The files never take more than they may. Bytes are checked before they are given out; what is damaged, torn
//! by a crash, or another's is a miss. A start reads the list of each segment and no cell.
//!
//! **Failure behaviour.** None that a reader sees: a disk that is broken or slow turns hits into misses, and is left alone for a
//! minute; one that cannot be written, or is full, is still read. When others need the disk the oldest segments go, whether
//! cells are put or not. Nothing is synced, for nothing here is needed.

mod index;
mod record;
mod rest;
mod segment;
mod stats;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use koios_block::{BlockId, CellKey, CellStore};
use koios_runtime::{ClockHandle, DiskError, DiskHandle};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use index::{Index, Place};
use rest::Rest;
use segment::read_record;
use stats::Counters;
pub use stats::DiskCacheStats;
pub use writer::DiskCacheWriter;

/// Bytes of cells that may wait to be written; further ones are not kept.
const QUEUE_BYTES: u64 = 64 << 20;
/// Cells that may wait, however short.
const QUEUE_CELLS: usize = 16 << 10;
/// Longest wait for the disk: the bucket answers quicker than that.
const READ_WAIT: Duration = Duration::from_secs(2);
/// Segments that the bytes are divided into: each is a file that stays open.
const SEGMENTS: u64 = 32;
/// Bytes of a segment, at least.
const SEGMENT_BYTES_MIN: u64 = 256 << 10;

/// Where cells are kept, and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskCacheSettings {
    /// A folder of its own, created when it is missing.
    pub folder: PathBuf,
    /// Most bytes of all files together.
    pub bytes_max: u64,
    /// Bytes that are left free on the disk.
    pub free_min: u64,
}

impl DiskCacheSettings {
    fn segment_bytes(&self) -> u64 {
        (self.bytes_max / SEGMENTS).max(SEGMENT_BYTES_MIN)
    }
}

/// A cache on a local disk. Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub struct DiskCache {
    shared: Arc<Shared>,
    queue: mpsc::Sender<(CellKey, Bytes)>,
}

/// What readers and the writer share.
#[derive(Debug)]
struct Shared {
    settings: DiskCacheSettings,
    disk: DiskHandle,
    clock: ClockHandle,
    index: Mutex<Index>,
    /// Each fails by itself: a disk that is full can be read.
    reading_rests: Rest,
    writing_rests: Rest,
    /// Of the cells in the queue, and of those that are being written.
    waiting_bytes: AtomicU64,
    counters: Counters,
}

impl Shared {
    /// Reads no cells for a while.
    fn rest_reading(&self, error: &dyn std::fmt::Display) {
        if self.reading_rests.begin(self.clock.elapsed()) {
            tracing::warn!(folder = %self.settings.folder.display(), %error, "the disk cache cannot be read and rests for a minute: blocks are read from the bucket");
        }
    }

    /// Keeps no further cells for a while.
    fn rest_writing(&self, error: &dyn std::fmt::Display) {
        if self.writing_rests.begin(self.clock.elapsed()) {
            tracing::warn!(folder = %self.settings.folder.display(), %error, "the disk cache cannot be written and keeps nothing more for a minute");
        }
    }
}

impl DiskCache {
    /// An empty cache, until its writer, which must run, has looked at what is there.
    pub fn new(disk: DiskHandle, clock: ClockHandle, settings: DiskCacheSettings) -> (Self, DiskCacheWriter) {
        let (queue, waiting) = mpsc::channel(QUEUE_CELLS);
        let shared = Arc::new(Shared {
            settings,
            disk,
            clock,
            index: Mutex::default(),
            reading_rests: Rest::default(),
            writing_rests: Rest::default(),
            waiting_bytes: AtomicU64::default(),
            counters: Counters::default(),
        });
        let writer = DiskCacheWriter::new(Arc::clone(&shared), waiting);
        (Self { shared, queue }, writer)
    }

    /// Forgets all of a block that is dead. Its bytes go with the segments they are in.
    pub fn forget_block(&self, block: BlockId) {
        self.shared.index.lock().forget_block(block);
    }

    /// What it holds and has done.
    pub fn stats(&self) -> DiskCacheStats {
        let index = self.shared.index.lock();
        let mut stats = self.shared.counters.snapshot();
        (stats.bytes, stats.cells) = (index.bytes(), index.cells());
        stats
    }

    /// Reads cells at their places, or gives up on all.
    async fn read(&self, places: Vec<Option<Place>>) -> Option<Vec<Option<ReadCell>>> {
        let read = self.shared.disk.run(move |_| {
            let read = |place: Option<Place>| place.map(|place| read_record(&place));
            Ok::<_, DiskError>(places.into_iter().map(read).collect::<Vec<_>>())
        });
        match self.shared.clock.timeout(READ_WAIT, read).await {
            Ok(Ok(results)) => return Some(results),
            Ok(Err(e)) => self.shared.rest_reading(&e),
            Err(e) => self.shared.rest_reading(&e),
        }
        self.shared.counters.read_failures.add(1);
        None
    }

    /// What was read of a cell, if it is what was written.
    fn checked(&self, cell: CellKey, read: ReadCell) -> Option<Bytes> {
        let counters = &self.shared.counters;
        match read {
            Ok(Some(bytes)) => return Some(bytes),
            Ok(None) => counters.damaged.add(1),
            Err(e) => {
                counters.read_failures.add(1);
                self.shared.rest_reading(&e);
            }
        }
        self.forget(cell);
        None
    }
}

/// A cell as it was read; `None` when it is damaged.
type ReadCell = std::io::Result<Option<Bytes>>;

#[async_trait]
impl CellStore for DiskCache {
    async fn get(&self, cells: &[CellKey]) -> Vec<Option<Bytes>> {
        let places: Vec<Option<Place>> = if self.shared.reading_rests.is_on(self.shared.clock.elapsed()) {
            vec![None; cells.len()]
        } else {
            let index = self.shared.index.lock();
            cells.iter().map(|cell| index.place(cell)).collect()
        };
        let mut found = vec![None; cells.len()];
        if places.iter().any(Option::is_some)
            && let Some(read) = self.read(places).await
        {
            let checked = cells.iter().zip(read);
            let checked = checked.map(|(cell, read)| read.and_then(|read| self.checked(*cell, read)));
            found = checked.collect();
        }
        let (hits, counters) = (found.iter().flatten().count(), &self.shared.counters);
        counters.hits.add(hits as u64);
        counters.misses.add((cells.len() - hits) as u64);
        found
    }

    fn put(&self, cell: CellKey, bytes: Bytes) {
        let shared = &self.shared;
        if shared.writing_rests.is_on(shared.clock.elapsed()) || shared.index.lock().place(&cell).is_some() {
            return;
        }
        let more = bytes.len() as u64;
        let waiting = shared.waiting_bytes.fetch_add(more, Ordering::Relaxed);
        let has_room = waiting.saturating_add(more) <= QUEUE_BYTES;
        if !has_room || self.queue.try_send((cell, bytes)).is_err() {
            shared.waiting_bytes.fetch_sub(more, Ordering::Relaxed);
            shared.counters.dropped.add(1);
        }
    }

    fn forget(&self, cell: CellKey) {
        self.shared.index.lock().forget(&cell);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_of_any_size_has_a_few_dozen_files() {
        for bytes_max in [64 << 20, 4 << 30, 256 << 30, 16 << 40] {
            let settings = DiskCacheSettings {
                folder: PathBuf::new(),
                bytes_max,
                free_min: 0,
            };
            assert_eq!(bytes_max / settings.segment_bytes(), 32, "{bytes_max}");
        }
    }
}
