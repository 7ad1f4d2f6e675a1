//! Windows of series whose samples are read together, so that what a read holds depends neither on how many series it
//! returns nor on how many blocks hold them.

use std::collections::BTreeMap;

use futures::stream::{self, StreamExt, TryStreamExt};
use koios_block::{BlockSeries, ChunkRead, HeldCells, HeldRoom, MissingUpTo};
use koios_chunk::Run;
use koios_model::TimeRange;
use koios_runtime::Cpu;
use koios_wire::{SeriesRuns, ServiceError};

use crate::bounds::ReadBounds;
use crate::error::from_block;
use crate::masks::{self, MaskedBlock};
use crate::merge::{Found, Merge};

/// Takes windows off a merge.
pub(crate) struct Windows {
    merge: Merge,
    bounds: ReadBounds,
    /// Found already, but one too many for the last window.
    next: Option<Found>,
}

/// Some label sets, in order, and how many rows are decoded for them at most.
#[derive(Debug, Default)]
pub(crate) struct Window {
    pub(crate) found: Vec<Found>,
    pub(crate) rows: u64,
}

/// A window on its way.
#[derive(Debug)]
pub(crate) struct WindowRead {
    all: Vec<SeriesRuns>,
    reads: Vec<BlockRead>,
    /// What it takes of the budget of reads while it waits.
    room: Option<HeldRoom>,
}

/// What one block holds of a window.
#[derive(Debug)]
struct BlockRead {
    /// Its place in the read.
    block: usize,
    /// The places of its series.
    places: Vec<usize>,
    /// When samples of each are deleted.
    deleted: Vec<Vec<TimeRange>>,
    chunks: ChunkRead,
}

impl Windows {
    pub(crate) fn new(merge: Merge, bounds: ReadBounds) -> Self {
        Self {
            merge,
            bounds,
            next: None,
        }
    }

    /// The next window of at most `series_max` label sets; empty at the end.
    pub(crate) async fn next(&mut self, series_max: u64) -> Result<Window, ServiceError> {
        let series_max = usize::try_from(series_max).unwrap_or(usize::MAX);
        let series_max = series_max.min(self.bounds.window_series);
        let mut window = Window::default();
        while window.found.len() < series_max {
            let found = match self.next.take() {
                Some(found) => Some(found),
                None => self.merge.next().await?,
            };
            let Some(found) = found else { break };
            // All of a series' rows are decoded, even when few are in range.
            let rows = found.parts.iter().map(|(_, s)| s.rows_as_floats()).sum();
            let total = window.rows.saturating_add(rows);
            if total > self.bounds.window_rows && !window.found.is_empty() {
                self.next = Some(found);
                break;
            }
            window.rows = total;
            window.found.push(found);
        }
        Ok(window)
    }
}

impl Window {
    /// Looks up which samples are cached.
    pub(crate) fn look_up(self, blocks: &[MaskedBlock], range: TimeRange) -> WindowRead {
        let mut all = Vec::with_capacity(self.found.len());
        let mut wanted = BTreeMap::<usize, (Vec<usize>, Vec<BlockSeries>)>::new();
        for (at, found) in self.found.into_iter().enumerate() {
            all.push(SeriesRuns {
                labels: found.labels,
                runs: Vec::with_capacity(found.parts.len()),
            });
            for (block, series) in found.parts {
                let of_block = wanted.entry(block).or_default();
                of_block.0.push(at);
                of_block.1.push(series);
            }
        }
        let reads = wanted.into_iter().filter_map(|(at, (places, series))| {
            let block = blocks.get(at)?;
            let deleted = |s: &BlockSeries| block.masks.ranges(&s.labels, TimeRange::ALL);
            Some(BlockRead {
                block: at,
                places,
                deleted: series.iter().map(deleted).collect(),
                chunks: block.reader.look_up_chunks(&series, range),
            })
        });
        WindowRead {
            reads: reads.collect(),
            all,
            room: None,
        }
    }

    /// The label sets alone.
    pub(crate) fn labels(self) -> Vec<SeriesRuns> {
        let alone = |found: Found| SeriesRuns {
            labels: found.labels,
            runs: Vec::new(),
        };
        self.found.into_iter().map(alone).collect()
    }
}

impl WindowRead {
    /// How many series of blocks it has.
    pub(crate) fn parts(&self) -> usize {
        self.reads.iter().map(|read| read.places.len()).sum()
    }

    /// About how many bytes are still to be fetched, after windows that came up to some places in the blocks.
    pub(crate) fn bytes_missing(&self, up_to: &mut BTreeMap<usize, MissingUpTo>) -> u64 {
        let of_block = |read: &BlockRead| read.chunks.bytes_missing(up_to.entry(read.block).or_default());
        self.reads.iter().map(of_block).fold(0, u64::saturating_add)
    }

    /// How many bytes of cached samples it holds.
    pub(crate) fn bytes_cached(&self) -> u64 {
        self.reads.iter().map(|read| read.chunks.bytes_cached()).sum()
    }

    /// Counts them to what the read holds from now on, if there is room: tells whether there is.
    pub(crate) fn counted(&mut self, held: &HeldCells) -> bool {
        let bytes = self.bytes_cached();
        if bytes > 0 {
            self.room = held.reserve(bytes);
        }
        bytes == 0 || self.room.is_some()
    }

    /// What it reads of each block.
    pub(crate) fn of_blocks(&self) -> impl Iterator<Item = (usize, &ChunkRead)> {
        self.reads.iter().map(|read| (read.block, &read.chunks))
    }

    /// How many rows are still to be decoded, at most.
    pub(crate) fn rows_missing(&self) -> u64 {
        self.reads.iter().map(|read| read.chunks.rows_missing()).sum()
    }

    /// Reads the samples, a few blocks at a time; label sets without any around the range are left out. What one block
    /// holds of a series is not united with what others do. What is deleted is left out on `cpu`.
    pub(crate) async fn finish(self, bounds: ReadBounds, cpu: &Cpu) -> Result<Vec<SeriesRuns>, ServiceError> {
        let mut all = self.all;
        let reads = self.reads.into_iter().map(|read| async move {
            let chunks = read.chunks.finish().await.map_err(|e| from_block(&e))?;
            let chunks = masks::mask(chunks, read.deleted, cpu).await?;
            Ok::<_, ServiceError>((read.places, chunks))
        });
        let mut reads = stream::iter(reads).buffered(bounds.blocks_at_once);
        while let Some((places, chunks)) = reads.try_next().await? {
            for (at, chunks) in places.into_iter().zip(chunks) {
                if let Some(series) = all.get_mut(at) {
                    series.runs.extend(chunks.into_iter().map(Run::Chunk));
                }
            }
        }
        all.retain(|series: &SeriesRuns| !series.runs.is_empty());
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use bytes::Bytes;
    use koios_block::{BlockCache, BlockId, BlockOptions, BlockReader, BlockWriter, MemoryBlock, RangeRead};
    use koios_model::{Labels, Matchers, TenantId};

    use super::*;
    use crate::bounds::LabelsInWait;

    /// Reads under way, and the most there were at once.
    #[derive(Debug, Default)]
    struct Busy {
        now: AtomicUsize,
        most: AtomicUsize,
    }

    /// A block whose reads take a while.
    #[derive(Debug)]
    struct SlowBlock {
        block: MemoryBlock,
        busy: Arc<Busy>,
    }

    #[async_trait]
    impl RangeRead for SlowBlock {
        async fn read(&self, part: &str, ranges: &[Range<u64>]) -> koios_block::Result<Vec<Bytes>> {
            let now = self.busy.now.fetch_add(1, Ordering::Relaxed) + 1;
            self.busy.most.fetch_max(now, Ordering::Relaxed);
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            self.busy.now.fetch_sub(1, Ordering::Relaxed);
            self.block.read(part, ranges).await
        }
    }

    /// Blocks of the same series, each with its own times.
    fn slow_blocks(count: u32, series: u32, busy: &Arc<Busy>) -> Vec<MaskedBlock> {
        let block = |number: u32| {
            let id = BlockId::new(1_000, u128::from(number));
            let options = BlockOptions::new(id, TenantId::anonymous(), TimeRange::new(0, 1_000_000));
            let mut writer = BlockWriter::new(options).unwrap();
            for i in 0..series {
                let labels = Labels::from_pairs([("i", format!("{i:04}"))]);
                let times: Vec<i64> = (0..10).map(|t| i64::from(number) * 10 + t).collect();
                writer.push_series(&labels, None, &times, &[1.0; 10]).unwrap();
            }
            let parts = writer.finish().unwrap().unwrap();
            let source = SlowBlock {
                block: MemoryBlock::new(&parts),
                busy: Arc::clone(busy),
            };
            let cache = Arc::new(BlockCache::new(1 << 20, 1 << 20));
            MaskedBlock {
                reader: BlockReader::open(Arc::new(source), Arc::new(parts.meta), cache).unwrap(),
                masks: Default::default(),
            }
        };
        (0..count).map(block).collect()
    }

    #[tokio::test]
    async fn i12_reading_ahead_grows_neither_with_blocks_nor_with_series() {
        let busy = Arc::<Busy>::default();
        let blocks = slow_blocks(30, 50, &busy);
        let bounds = ReadBounds {
            blocks_at_once: 4,
            window_rows: 1000,
            ..ReadBounds::default()
        };
        let merge = Merge::new(
            &blocks,
            &Matchers::default(),
            TimeRange::ALL,
            bounds,
            &LabelsInWait::new(),
        );
        let mut windows = Windows::new(merge, bounds);
        let mut found = Vec::new();
        loop {
            let window = windows.next(u64::MAX).await.unwrap();
            if window.found.is_empty() {
                break;
            }
            assert!(window.rows <= 1000, "{} rows", window.rows);
            let read = window.look_up(&blocks, TimeRange::ALL);
            let rows = read.finish(bounds, &Cpu::inline()).await.unwrap();
            let samples = |all: &[Run]| all.iter().map(Run::count).sum::<usize>();
            assert!(rows.iter().all(|s| samples(&s.runs) == 300));
            found.extend(rows.into_iter().map(|s| s.labels));
        }
        assert!(found.len() == 50 && found.is_sorted(), "{found:?}");
        // Each block's samples and their times are asked for together.
        assert_eq!(busy.most.load(Ordering::Relaxed), 2 * 4);
    }
}
