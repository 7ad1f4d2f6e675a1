//! Unites the matching series of several blocks, in label order. No samples are read for it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::ops::RangeInclusive;

use futures::FutureExt;
use futures::stream::{self, StreamExt, TryStreamExt};
use koios_block::{BlockSeries, SeriesCursor};
use koios_model::{Labels, Matchers, TimeRange};
use koios_wire::{ServiceError, ServiceErrorCode};

use crate::bounds::{LabelsInWait, ReadBounds, WaitingLabels};
use crate::error::from_block;
use crate::masks::{MaskedBlock, Masks};

/// A label set and where its samples are.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) labels: Labels,
    /// The block, by its place in the read, and its series; ascending by place.
    pub(crate) parts: Vec<(usize, BlockSeries)>,
}

/// Series that a block is asked for at once, at least and at most: fewer would decode the same pages over and over, more
/// than a row group never come.
const BATCH_SERIES: RangeInclusive<usize> = 32..=32 << 10;
/// What a series is taken to hold before any was read.
const SERIES_BYTES_GUESS: usize = 1 << 10;

/// Most row groups of series of one block that are looked at together.
const GROUPS_AHEAD_MAX: usize = 16;

/// The next labels of a source, and its place.
type Head = Reverse<(Labels, usize)>;

/// The matching series of one block, a batch of them in memory.
struct Source {
    series: SeriesCursor,
    masks: Masks,
    range: TimeRange,
    batch: VecDeque<BlockSeries>,
    batch_bytes: usize,
    /// How many series were asked for, so that a batch takes about this source's share.
    batch_series: usize,
    /// What a series took of the last batch.
    series_bytes: Option<usize>,
    ended: bool,
}

impl Source {
    fn new(
        block: &MaskedBlock,
        matchers: &Matchers,
        range: TimeRange,
        (groups_ahead, bytes_ahead): (usize, u64),
    ) -> Self {
        let series = block.reader.series_cursor(matchers.clone(), range);
        Self {
            series: series.with_groups_ahead(groups_ahead, bytes_ahead),
            masks: block.masks.clone(),
            range,
            batch: VecDeque::new(),
            batch_bytes: 0,
            series_bytes: None,
            batch_series: 0,
            ended: false,
        }
    }

    /// Whether it has none left, or few enough to read more beside others.
    fn is_low(&self) -> bool {
        !self.ended && self.batch.len() <= self.batch_series / 4
    }

    /// Reads the next batch.
    async fn fill(&mut self, share: usize) -> Result<(), ServiceError> {
        // As large as the last one, unless there is less room than for that.
        let series_bytes = self.series_bytes.unwrap_or(SERIES_BYTES_GUESS);
        self.batch_series = fitting(share, series_bytes);
        let batch = loop {
            let batch = self.series.next(self.batch_series).await;
            let Some(mut batch) = batch.map_err(|e| from_block(&e))? else {
                self.ended = true;
                return Ok(());
            };
            batch.retain(|series| !self.masks.hide(series, self.range));
            if !batch.is_empty() {
                break batch;
            }
        };
        let bytes: usize = batch.iter().map(memory_of).sum();
        self.series_bytes = Some(bytes / batch.len().max(1));
        self.batch_bytes += bytes;
        self.batch.extend(batch);
        Ok(())
    }

    /// As [`Self::fill`], of the source at place `i`: tells its head, if it had none before, and by how many bytes it grew.
    async fn fill_at(&mut self, i: usize, share: usize) -> Result<(Option<Head>, usize), ServiceError> {
        let (before, was_empty) = (self.batch_bytes, self.batch.is_empty());
        self.fill(share).await?;
        let head = self.batch.front().filter(|_| was_empty);
        let head = head.map(|series| Reverse((series.labels.clone(), i)));
        Ok((head, self.batch_bytes.saturating_sub(before)))
    }

    /// Takes the next series out, and tells how many bytes it was counted with.
    fn take(&mut self) -> Option<(BlockSeries, usize)> {
        let series = self.batch.pop_front()?;
        let bytes = memory_of(&series);
        self.batch_bytes = self.batch_bytes.saturating_sub(bytes);
        Some((series, bytes))
    }
}

/// How many series of a size to ask for.
fn fitting(share: usize, series_bytes: usize) -> usize {
    (share / series_bytes.max(1)).clamp(*BATCH_SERIES.start(), *BATCH_SERIES.end())
}

/// What a series that waits to be merged takes.
fn memory_of(series: &BlockSeries) -> usize {
    series.labels.packed().len() + size_of::<BlockSeries>()
}

/// A k-way merge of blocks' series.
pub(crate) struct Merge {
    sources: Vec<Source>,
    /// The next labels of each source that has any.
    heads: BinaryHeap<Head>,
    /// What all sources hold.
    waiting: WaitingLabels,
    bounds: ReadBounds,
    started: bool,
}

impl Merge {
    pub(crate) fn new(
        blocks: &[MaskedBlock],
        matchers: &Matchers,
        range: TimeRange,
        bounds: ReadBounds,
        labels: &LabelsInWait,
    ) -> Self {
        let groups_ahead = match bounds.groups_ahead {
            0 => 0,
            groups => (groups / blocks.len().max(1)).clamp(1, GROUPS_AHEAD_MAX),
        };
        let ahead = (
            groups_ahead,
            bounds.groups_ahead_bytes / blocks.len().max(1) as u64,
        );
        let source = |block| Source::new(block, matchers, range, ahead);
        Self {
            sources: blocks.iter().map(source).collect(),
            heads: BinaryHeap::new(),
            waiting: labels.of_read(),
            bounds,
            started: false,
        }
    }

    /// Reads on in every block that has no series left, a few blocks at a time. Those that soon have none take part:
    /// blocks mostly have the same series, and one after the other they would wait for the bucket as often.
    async fn fill(&mut self) -> Result<(), ServiceError> {
        let blocks = self.sources.len();
        let mut held: usize = self.sources.iter().map(|s| s.batch_bytes).sum();
        // All together it is a part of the bound, since batches come out larger where labels become longer.
        let share = self.waiting.bytes_max().min(self.bounds.label_bytes) / 4 / blocks.max(1);
        let low = self.sources.iter_mut().enumerate().filter(|(_, s)| s.is_low());
        let fills: Vec<_> = low.map(|(i, source)| source.fill_at(i, share).boxed()).collect();
        let mut filled = stream::iter(fills).buffered(self.bounds.blocks_at_once);
        while let Some((head, bytes)) = filled.try_next().await? {
            self.heads.extend(head);
            held += bytes;
            if held > self.bounds.label_bytes {
                return Err(too_many(blocks, self.bounds));
            }
            if !self.waiting.hold(held) {
                return Err(too_busy(blocks));
            }
        }
        Ok(())
    }

    /// The next label set.
    pub(crate) async fn next(&mut self) -> Result<Option<Found>, ServiceError> {
        if !self.started {
            self.fill().await?;
            self.started = true;
        }
        let mut found: Option<Found> = None;
        let mut empty = false;
        loop {
            let next = self.heads.peek().map(|Reverse((labels, i))| (labels, *i));
            let next = next.filter(|(labels, _)| found.as_ref().is_none_or(|f| f.labels == **labels));
            let Some((_, i)) = next else {
                // Only once all blocks are looked at, so that those that end together go on together.
                if !std::mem::take(&mut empty) {
                    return Ok(found);
                }
                self.fill().await?;
                continue;
            };
            self.heads.pop();
            let Some(source) = self.sources.get_mut(i) else {
                continue;
            };
            let Some((mut series, bytes)) = source.take() else {
                continue;
            };
            // Not only when more is read: that may be long, for whoever reads slowly, or never.
            self.waiting.release(bytes);
            match source.batch.front() {
                Some(next) => self.heads.push(Reverse((next.labels.clone(), i))),
                None => empty |= !source.ended,
            }
            let found = found.get_or_insert_with(|| Found {
                labels: series.labels.clone(),
                parts: Vec::new(),
            });
            // One copy for all blocks.
            series.labels = found.labels.clone();
            found.parts.push((i, series));
        }
    }
}

/// Others may soon have less.
fn too_busy(blocks: usize) -> ServiceError {
    ServiceError::unavailable(format!(
        "there is no room for the labels to merge of {blocks} blocks beside those of other reads: ask again"
    ))
}

/// Every block needs its own place in label order, so very many blocks, or very long labels, are refused, not piled up.
fn too_many(blocks: usize, bounds: ReadBounds) -> ServiceError {
    let text = format!(
        "the labels to merge of {blocks} blocks exceed {} bytes: add matchers or ask for a shorter range",
        bounds.label_bytes
    );
    ServiceError::new(ServiceErrorCode::ResourceExhausted, text)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use koios_block::{BlockCache, BlockId, BlockOptions, BlockReader, BlockWriter, MemoryBlock};
    use koios_model::TenantId;

    use super::*;

    fn block(series: u64) -> MaskedBlock {
        let id = BlockId::new(1_000, 1);
        let options = BlockOptions::new(id, TenantId::anonymous(), TimeRange::new(0, 1_000));
        let mut writer = BlockWriter::new(options).unwrap();
        for i in 0..series {
            let labels = Labels::from_pairs([("i", format!("{i:04}"))]);
            writer.push_series(&labels, None, &[1], &[0.5]).unwrap();
        }
        let parts = writer.finish().unwrap().unwrap();
        let cache = Arc::new(BlockCache::new(1 << 20, 1 << 20));
        let source = Arc::new(MemoryBlock::new(&parts));
        MaskedBlock {
            reader: BlockReader::open(source, Arc::new(parts.meta), cache).unwrap(),
            masks: Masks::default(),
        }
    }

    #[tokio::test]
    async fn i12_labels_that_were_taken_are_not_counted_on() {
        let all = LabelsInWait::within(1 << 20);
        let blocks = [block(100), block(60)];
        let mut merge = Merge::new(
            &blocks,
            &Matchers::default(),
            TimeRange::ALL,
            ReadBounds::default(),
            &all,
        );
        let (mut left, mut counted) = (100 + 60, Vec::new());
        while let Some(found) = merge.next().await.unwrap() {
            left -= found.parts.len();
            let waiting = merge.sources.iter().flat_map(|s| &s.batch);
            assert_eq!(
                all.used(),
                waiting.map(memory_of).sum::<usize>(),
                "{left} series are left"
            );
            counted.push(all.used());
        }
        // Whoever reads slowly still has the merge when it has nothing left.
        assert_eq!((left, all.used()), (0, 0));
        assert!(counted[0] > 0, "{counted:?}");
    }
}
