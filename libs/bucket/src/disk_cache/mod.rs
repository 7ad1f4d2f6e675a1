//! Cells of blocks on a local disk, below the caches in memory: docs/formats/disk-cache.md.
//!
//! **Data flow.** Readers ask for cells ([`CellStore::get`]) and hand over what they had to fetch ([`CellStore::put`]), which
//! the [`DiskCacheWriter`] appends to the newest of some segment files. What is read once more is written once more, to files
//! apart, so that reads of very much data push out each other's cells and not those that are read again and again. When
//! there is no room the oldest file goes, of whichever kind has more than its share.
//!
//! **Invariants.** The files never take more than they may. Bytes are checked before they are given out; what is damaged, torn
//! by a crash, or another's is a miss. A start reads the list of each segment and no cell. No read waits for the disk for
//! longer than a second, or where the bucket is slow for twice as long as that usually takes.
//!
//! **Failure behaviour.** None that a reader sees: what a busy disk does not give in time is a miss. One that is silent several
//! times in a row is left alone, and tried now and then until it answers; one that cannot be written, or is full, is still
//! read. When others need the disk the oldest segments go, whether cells are put or not. Nothing is synced, for nothing here
//! is needed.

mod bucket_pace;
mod index;
mod pulse;
mod queue;
mod reads;
mod record;
mod rest;
mod room;
mod segment;
mod stats;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use koios_block::{BlockId, CellKey, CellStore};
use koios_runtime::{ClockHandle, DiskHandle};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use index::Index;
use queue::{Entry, QueueAccount, Waiting};
use reads::{READERS, ReadCell, Reads, Wanted};
use rest::Rest;
pub use room::DiskReserve;
use segment::Generation;
use stats::Counters;
pub use stats::DiskCacheStats;
pub use writer::DiskCacheWriter;

/// Cells that may wait, however short.
const QUEUE_CELLS: usize = 16 << 10;
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
    /// Bytes that are left free on the disk, or a tenth of a smaller one.
    pub free_min: u64,
    /// What others need free beside.
    pub reserves: Vec<DiskReserve>,
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
    queue: mpsc::Sender<Waiting>,
}

/// What readers and the writer share.
#[derive(Debug)]
struct Shared {
    settings: DiskCacheSettings,
    disk: DiskHandle,
    clock: ClockHandle,
    index: Mutex<Index>,
    reads: Reads,
    /// Apart from reads: a disk that is full can be read.
    writing_rests: Rest,
    queued: QueueAccount,
    counters: Counters,
}

impl Shared {
    /// Keeps no further cells for a while.
    fn rest_writing(&self, error: &dyn std::fmt::Display) {
        if self.writing_rests.begin(self.clock.elapsed()) {
            tracing::warn!(folder = %self.settings.folder.display(), %error, "the disk cache cannot be written and keeps nothing more for a minute");
        }
    }
}

impl DiskCache {
    /// Threads that the disk should have for it: one for each read that is under way, and one for the writer.
    pub const THREADS: usize = READERS + 1;

    /// An empty cache, until its writer, which must run, has looked at what is there.
    pub fn new(disk: DiskHandle, clock: ClockHandle, settings: DiskCacheSettings) -> (Self, DiskCacheWriter) {
        let (queue, waiting) = mpsc::channel(QUEUE_CELLS);
        let shared = Arc::new(Shared {
            index: Mutex::new(Index::new(settings.bytes_max)),
            settings,
            reads: Reads::new(disk.clone(), Arc::clone(&clock)),
            disk,
            clock,
            writing_rests: Rest::default(),
            queued: QueueAccount::default(),
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
        stats.is_resting = self.shared.reads.is_resting();
        stats
    }

    /// What was read of a cell, if it is what was written.
    fn checked(&self, cell: CellKey, read: ReadCell) -> Option<Bytes> {
        match read {
            Ok(Some(bytes)) => return Some(bytes),
            Ok(None) => self.shared.counters.damaged.add(1),
            Err(error) => tracing::debug!(?cell, %error, "a cell of the disk cache cannot be read"),
        }
        self.forget(cell);
        None
    }

    /// Hands a cell to the writer, unless too much waits already.
    fn enqueue(&self, key: CellKey, bytes: Bytes, generation: Generation) {
        let shared = &self.shared;
        if shared.writing_rests.is_on(shared.clock.elapsed()) {
            return;
        }
        let cell = Waiting {
            key,
            bytes,
            generation,
        };
        let place = (key, generation, cell.bytes.len() as u64);
        let is_dropped = match shared.queued.enter(&cell) {
            Entry::Known => false,
            Entry::Full => true,
            Entry::Added => {
                let is_full = self.queue.try_send(cell).is_err();
                if is_full {
                    shared.queued.leave(place);
                }
                is_full
            }
        };
        // One that is there already loses nothing.
        if is_dropped && generation == Generation::Once {
            shared.counters.dropped.add(1);
        }
    }
}

#[async_trait]
impl CellStore for DiskCache {
    async fn get(&self, cells: &[CellKey]) -> Vec<Option<Bytes>> {
        let (shared, mut found) = (&self.shared, vec![None; cells.len()]);
        let wanted: Vec<Wanted> = {
            let index = shared.index.lock();
            let place = |(at, cell): (usize, &CellKey)| index.place(cell).map(|place| Wanted { at, place });
            cells.iter().enumerate().filter_map(place).collect()
        };
        let mut hits = 0;
        for (Wanted { at, place }, read) in shared.reads.read(wanted, &shared.counters).await {
            let key = place.header.key;
            let bytes = self.checked(key, read);
            if let Some(bytes) = bytes.clone() {
                hits += 1;
                if place.is_due {
                    self.enqueue(key, bytes, Generation::Again);
                }
            }
            if let Some(slot) = found.get_mut(at) {
                *slot = bytes;
            }
        }
        let is_missing = |(_, bytes): &(&CellKey, &Option<Bytes>)| bytes.is_none();
        if let Some((cell, _)) = cells.iter().zip(&found).find(is_missing) {
            shared.reads.bucket.missed(*cell, shared.clock.elapsed());
        }
        shared.counters.hits.add(hits);
        shared.counters.misses.add(cells.len() as u64 - hits);
        found
    }

    fn put(&self, cell: CellKey, bytes: Bytes) {
        let shared = &self.shared;
        shared.reads.bucket.fetched(&cell, shared.clock.elapsed());
        if shared.index.lock().place(&cell).is_none() {
            self.enqueue(cell, bytes, Generation::Once);
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
                reserves: Vec::new(),
            };
            assert_eq!(bytes_max / settings.segment_bytes(), 32, "{bytes_max}");
        }
    }
}
