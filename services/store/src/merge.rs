//! Unites the matching series of several blocks, in label order. No samples are read for it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use koios_block::{BlockReader, BlockSeries};
use koios_model::{Labels, Matchers, TimeRange};
use koios_wire::{ServiceError, ServiceErrorCode};

use crate::bounds::ReadBounds;
use crate::error::from_block;

/// A label set and where its samples are.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) labels: Labels,
    /// The block, by its place in the read, and its series; ascending by place.
    pub(crate) parts: Vec<(usize, BlockSeries)>,
}

/// The matching series of one block, a batch of them in memory.
struct Source {
    batches: BoxStream<'static, koios_block::Result<Vec<BlockSeries>>>,
    batch: std::vec::IntoIter<BlockSeries>,
    batch_bytes: usize,
    next: Option<BlockSeries>,
}

impl Source {
    fn new(block: &BlockReader, matchers: &Matchers, range: TimeRange) -> Self {
        Self {
            batches: block.stream_series(matchers.clone(), range),
            batch: Vec::new().into_iter(),
            batch_bytes: 0,
            next: None,
        }
    }

    async fn advance(&mut self) -> Result<(), ServiceError> {
        loop {
            self.next = self.batch.next();
            if self.next.is_some() {
                return Ok(());
            }
            let batch = self.batches.try_next().await.map_err(|e| from_block(&e))?;
            let Some(batch) = batch else {
                self.batch_bytes = 0;
                return Ok(());
            };
            self.batch_bytes = batch.iter().map(memory_of).sum();
            self.batch = batch.into_iter();
        }
    }
}

/// What a series that waits to be merged takes.
fn memory_of(series: &BlockSeries) -> usize {
    series.labels.packed().len() + size_of::<BlockSeries>()
}

/// A k-way merge of blocks' series.
pub(crate) struct Merge {
    sources: Vec<Source>,
    /// The next labels of each source that has any.
    heads: BinaryHeap<Reverse<(Labels, usize)>>,
    bounds: ReadBounds,
    started: bool,
}

impl Merge {
    pub(crate) fn new(
        blocks: &[BlockReader],
        matchers: &Matchers,
        range: TimeRange,
        bounds: ReadBounds,
    ) -> Self {
        let source = |block| Source::new(block, matchers, range);
        Self {
            sources: blocks.iter().map(source).collect(),
            heads: BinaryHeap::new(),
            bounds,
            started: false,
        }
    }

    /// Reads the first series of every block, a few blocks at a time.
    async fn start(&mut self) -> Result<(), ServiceError> {
        let waiting = std::mem::take(&mut self.sources);
        let mut started = stream::iter(waiting)
            .map(|mut source| async move { source.advance().await.map(|()| source) })
            .buffered(self.bounds.blocks_at_once);
        while let Some(source) = started.try_next().await? {
            if let Some(next) = &source.next {
                self.heads
                    .push(Reverse((next.labels.clone(), self.sources.len())));
            }
            self.sources.push(source);
            check_memory(&self.sources, self.bounds)?;
        }
        self.started = true;
        Ok(())
    }

    /// The next label set.
    pub(crate) async fn next(&mut self) -> Result<Option<Found>, ServiceError> {
        if !self.started {
            self.start().await?;
        }
        let mut found: Option<Found> = None;
        while let Some(Reverse((labels, i))) = self.heads.peek() {
            if found.as_ref().is_some_and(|f| f.labels != *labels) {
                break;
            }
            let i = *i;
            self.heads.pop();
            let Some(series) = self.advance(i).await? else {
                continue;
            };
            let found = found.get_or_insert_with(|| Found {
                labels: series.labels.clone(),
                parts: Vec::new(),
            });
            found.parts.push((i, series));
        }
        Ok(found)
    }

    /// Takes the next series of a source.
    async fn advance(&mut self, i: usize) -> Result<Option<BlockSeries>, ServiceError> {
        let Some(source) = self.sources.get_mut(i) else {
            return Ok(None);
        };
        let series = source.next.take();
        let before = source.batch_bytes;
        source.advance().await?;
        if let Some(next) = &source.next {
            self.heads.push(Reverse((next.labels.clone(), i)));
        }
        if source.batch_bytes > before {
            check_memory(&self.sources, self.bounds)?;
        }
        Ok(series)
    }
}

/// Every block needs its own place in label order, so many blocks with many series each are refused, not piled up.
fn check_memory(sources: &[Source], bounds: ReadBounds) -> Result<(), ServiceError> {
    let held: usize = sources.iter().map(|s| s.batch_bytes).sum();
    if held <= bounds.label_bytes {
        return Ok(());
    }
    let text = format!(
        "the labels to merge of {} blocks exceed {} bytes: add matchers or ask for a shorter range",
        sources.len(),
        bounds.label_bytes
    );
    Err(ServiceError::new(ServiceErrorCode::ResourceExhausted, text))
}
