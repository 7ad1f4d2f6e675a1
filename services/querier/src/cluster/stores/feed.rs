//! The series of some blocks in label order, from whichever stores.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use futures::stream::StreamExt;
use koios_model::Labels;
use koios_wire::{SeriesRuns, ServiceError, StoreItem, StoreSelectRequest, StoreService, StoreStream};

use super::super::budget::Budget;
use super::super::held::{HeldSeries, SourceError, hold};
use super::BlockRequest;
use super::ask::{Answered, Asker, Tried};
use super::board::{StoreBoard, UnderWay};

/// The series of all blocks of a read, in label order: blocks never change, so where a store breaks off its blocks are read
/// on elsewhere after the last series that was given out.
pub(crate) struct BlockFeed {
    asker: Asker,
    /// Without blocks.
    request: StoreSelectRequest,
    budget: Arc<Budget>,
    /// Blocks that nobody was asked for yet.
    unasked: Vec<String>,
    parts: Vec<Part>,
    /// The last series given out.
    last_given: Option<Labels>,
}

impl std::fmt::Debug for BlockFeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = self.parts.iter().map(|p| (&p.store, &p.blocks));
        f.debug_map().entries(parts).finish()
    }
}

/// A stream that a store has begun.
struct Opened {
    stream: StoreStream,
    first: StoreItem,
}

/// What one store sends.
struct Part {
    blocks: Vec<String>,
    store: String,
    tried: Tried,
    _under_way: UnderWay,
    stream: StoreStream,
    /// The next item, when it is here already.
    item: Option<StoreItem>,
    buffer: std::vec::IntoIter<HeldSeries>,
    next: Option<HeldSeries>,
    last_read: Option<Labels>,
    /// When it was last waited for, on the monotonic clock.
    since: Duration,
    done: bool,
}

impl BlockFeed {
    pub(crate) fn new(asker: Asker, request: BlockRequest, budget: Arc<Budget>) -> Self {
        Self {
            asker,
            unasked: request.blocks,
            request: StoreSelectRequest {
                tenant: request.tenant,
                manifest_version: request.manifest_version,
                blocks: Vec::new(),
                matchers: request.matchers,
                range: request.range,
                labels_only: request.labels_only,
                limit: request.limit,
            },
            budget,
            parts: Vec::new(),
            last_given: None,
        }
    }

    /// The next series, or `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<HeldSeries>, SourceError> {
        if !self.unasked.is_empty() {
            let blocks = std::mem::take(&mut self.unasked);
            self.open(blocks, Tried::default()).await?;
        }
        loop {
            self.fill().await?;
            let Some(series) = self.take_first() else {
                return Ok(None);
            };
            if self.last_given.as_ref().is_none_or(|last| *last < series.labels) {
                self.last_given = Some(series.labels.clone());
                return Ok(Some(series));
            }
        }
    }

    /// Has blocks read, by stores that did not fail at them.
    async fn open(&mut self, blocks: Vec<String>, tried: Tried) -> Result<(), SourceError> {
        let request = &self.request;
        let select = |store: Arc<dyn StoreService>, blocks| {
            let request = StoreSelectRequest {
                blocks,
                ..request.clone()
            };
            async move {
                let mut stream = store.select(request).await?;
                let first = next_item(&mut stream).await?;
                Ok(Opened { stream, first })
            }
            .boxed()
        };
        let opened = self.asker.ask(blocks, tried, &select).await?;
        self.parts.extend(opened.into_iter().map(Part::new));
        Ok(())
    }

    /// Sees to it that every part that has more series has its next one.
    async fn fill(&mut self) -> Result<(), SourceError> {
        while self.parts.iter_mut().any(|part| !part.has_next()) {
            let (board, budget) = (self.asker.board(), &self.budget);
            let filled = join_all(self.parts.iter_mut().map(|part| part.fill(board, budget))).await;
            let parts = std::mem::take(&mut self.parts);
            let mut broken = Vec::new();
            for (part, filled) in parts.into_iter().zip(filled) {
                match filled {
                    Ok(()) if part.next.is_some() => self.parts.push(part),
                    Ok(()) => {}
                    Err(SourceError::Service(e)) => broken.push((part, e)),
                    Err(e) => return Err(e),
                }
            }
            for (part, e) in broken {
                self.asker.board().failed(&part.store, e.code, part.since);
                let Part {
                    blocks, store, tried, ..
                } = part;
                let tried = self.asker.failed(tried, &store, e)?;
                self.open(blocks, tried).await?;
            }
        }
        Ok(())
    }

    /// The first series in label order, of all parts that have it.
    fn take_first(&mut self) -> Option<HeldSeries> {
        let next = self.parts.iter().filter_map(|part| part.next.as_ref());
        let first = next.map(|series| &series.labels).min()?.clone();
        let mut merged: Option<HeldSeries> = None;
        for part in &mut self.parts {
            let Some(series) = part.next.take_if(|series| series.labels == first) else {
                continue;
            };
            match &mut merged {
                Some(merged) => merged.absorb(series),
                None => merged = Some(series),
            }
        }
        merged
    }
}

impl Part {
    fn new(opened: Answered<Opened>) -> Self {
        let Opened { stream, first } = opened.answer;
        Self {
            blocks: opened.blocks,
            store: opened.store,
            tried: opened.tried,
            _under_way: opened.under_way,
            stream,
            item: Some(first),
            buffer: Vec::new().into_iter(),
            next: None,
            last_read: None,
            since: Duration::ZERO,
            done: false,
        }
    }

    /// Whether the next series is there, without waiting for any.
    fn has_next(&mut self) -> bool {
        if self.next.is_none() {
            self.next = self.buffer.next();
        }
        self.next.is_some()
    }

    /// Waits for the next series, or the end.
    async fn fill(&mut self, board: &StoreBoard, budget: &Arc<Budget>) -> Result<(), SourceError> {
        while !self.has_next() && !self.done {
            let item = match self.item.take() {
                Some(item) => item,
                None => {
                    self.since = board.elapsed();
                    board.within(next_item(&mut self.stream)).await??
                }
            };
            match item {
                StoreItem::Series(batch) => self.hold_all(batch, budget)?,
                StoreItem::End => self.done = true,
            }
        }
        Ok(())
    }

    /// Charges a batch as it arrives: it may wait here for long.
    fn hold_all(&mut self, batch: Vec<SeriesRuns>, budget: &Arc<Budget>) -> Result<(), SourceError> {
        let mut held = Vec::<HeldSeries>::with_capacity(batch.len());
        for series in batch {
            let last = held.last().map(|s| &s.labels).or(self.last_read.as_ref());
            let series = hold(series, last, budget)?;
            held.push(series);
        }
        if let Some(last) = held.last() {
            self.last_read = Some(last.labels.clone());
        }
        self.buffer = held.into_iter();
        Ok(())
    }
}

async fn next_item(stream: &mut StoreStream) -> Result<StoreItem, ServiceError> {
    let item = stream.next().await;
    item.unwrap_or_else(|| Err(ServiceError::unavailable("the stream broke off before its end")))
}
