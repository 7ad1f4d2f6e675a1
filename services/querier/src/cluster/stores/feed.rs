//! The series of some blocks in label order, from whichever stores.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use futures::stream::StreamExt;
use koios_model::Labels;
use koios_wire::{
    SeriesRuns, ServiceError, ServiceErrorCode, StoreItem, StoreSelectRequest, StoreService, StoreStream,
};

use super::super::budget::Budget;
use super::super::held::{HeldSeries, SourceError, hold};
use super::BlockRequest;
use super::ask::{Answered, Asker};
use super::board::UnderWay;
use super::tried::Tried;

/// The series of all blocks of a read, in label order: blocks never change, so where a store breaks off its blocks are read
/// on elsewhere after the last series that was given out. Where one falls silent they are so, too, beside it: whoever has
/// the next series first goes on.
pub(crate) struct BlockFeed {
    reading: Reading,
    /// Blocks that nobody was asked for yet, and who is not to be.
    unasked: Vec<String>,
    tried: Tried,
    parts: Vec<Part>,
    /// The last series given out.
    last_given: Option<Labels>,
}

/// What is read, and how.
#[derive(Clone)]
struct Reading {
    asker: Asker,
    /// Without blocks.
    request: StoreSelectRequest,
    /// The silent stores that this is read beside, while they are waited for.
    silent: Vec<String>,
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

/// What one store sends, or others in its place.
struct Part {
    blocks: Vec<String>,
    store: String,
    tried: Tried,
    source: Source,
    /// The next item, when it is here already.
    item: Option<StoreItem>,
    buffer: std::vec::IntoIter<HeldSeries>,
    next: Option<HeldSeries>,
    last_read: Option<Labels>,
    /// When it was last waited for, on the monotonic clock.
    since: Duration,
    done: bool,
}

/// Where a part comes from.
enum Source {
    Store {
        stream: StoreStream,
        _under_way: UnderWay,
    },
    /// Stores that went on where it had fallen silent.
    Others(Box<BlockFeed>),
}

/// What was waited for.
enum Came {
    Item(StoreItem),
    /// Others have the next series, or the end.
    Others(Box<BlockFeed>, Option<HeldSeries>),
}

impl BlockFeed {
    pub(crate) fn new(asker: Asker, request: BlockRequest) -> Self {
        Self {
            unasked: request.blocks,
            reading: Reading {
                asker,
                request: StoreSelectRequest {
                    tenant: request.tenant,
                    manifest_version: request.manifest_version,
                    blocks: Vec::new(),
                    matchers: request.matchers,
                    range: request.range,
                    labels_only: request.labels_only,
                    limit: request.limit,
                    histogram_sums: request.histogram_sums,
                },
                silent: Vec::new(),
            },
            tried: Tried::default(),
            parts: Vec::new(),
            last_given: None,
        }
    }

    /// The next series, or `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<HeldSeries>, SourceError> {
        if !self.unasked.is_empty() {
            let blocks = std::mem::take(&mut self.unasked);
            self.open(blocks, self.tried.clone()).await?;
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

    /// [`Self::next`] of a feed within a feed.
    fn next_within(&mut self) -> BoxFuture<'_, Result<Option<HeldSeries>, SourceError>> {
        self.next().boxed()
    }

    /// Has blocks read, by stores that did not fail at them.
    async fn open(&mut self, blocks: Vec<String>, tried: Tried) -> Result<(), SourceError> {
        let request = &self.reading.request;
        // What it sends is charged as it is read.
        let select = |store: Arc<dyn StoreService>, blocks, _: &Arc<Budget>| {
            let request = StoreSelectRequest {
                blocks,
                ..request.clone()
            };
            async move {
                let mut stream = store.select(request).await?;
                let first = next_item(&mut stream).await?;
                Ok::<_, SourceError>(Opened { stream, first })
            }
            .boxed()
        };
        let opened = self.reading.asker.ask(blocks, tried, &select).await?;
        self.parts.extend(opened.into_iter().map(Part::new));
        Ok(())
    }

    /// Sees to it that every part that has more series has its next one.
    async fn fill(&mut self) -> Result<(), SourceError> {
        while self.parts.iter_mut().any(|part| !part.has_next()) {
            let reading = &self.reading;
            let filled = join_all(self.parts.iter_mut().map(|part| part.fill(reading))).await;
            let parts = std::mem::take(&mut self.parts);
            let mut broken = Vec::new();
            for (part, filled) in parts.into_iter().zip(filled) {
                match filled {
                    Ok(()) if part.next.is_some() => self.parts.push(part),
                    Ok(()) => {}
                    // What others in its place could not do says nothing of the store.
                    Err(SourceError::Service(e)) if part.is_of_store() => broken.push((part, e)),
                    Err(e) => return Err(e),
                }
            }
            for (part, e) in broken {
                let asker = &self.reading.asker;
                asker.board().failed(&part.store, e.code, part.since);
                let Part {
                    blocks, store, tried, ..
                } = part;
                let tried = asker.failed(tried, &store, e)?;
                // Not of the store that these are read beside.
                let tried = tried.beside(&self.reading.silent);
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
            source: Source::Store {
                stream,
                _under_way: opened.under_way,
            },
            item: Some(first),
            buffer: Vec::new().into_iter(),
            next: None,
            last_read: None,
            since: Duration::ZERO,
            done: false,
        }
    }

    /// Whether its store sends it, and not others in its place.
    fn is_of_store(&self) -> bool {
        matches!(self.source, Source::Store { .. })
    }

    /// Whether the next series is there, without waiting for any.
    fn has_next(&mut self) -> bool {
        if self.next.is_none() {
            self.next = self.buffer.next();
        }
        self.next.is_some()
    }

    /// Waits for the next series, or the end.
    async fn fill(&mut self, reading: &Reading) -> Result<(), SourceError> {
        while !self.has_next() && !self.done {
            let came = match &mut self.source {
                Source::Others(others) => {
                    self.next = others.next_within().await?;
                    self.done = self.next.is_none();
                    continue;
                }
                Source::Store { stream, .. } => match self.item.take() {
                    Some(item) => Came::Item(item),
                    None => {
                        self.since = reading.asker.board().elapsed();
                        let place = Place {
                            reading,
                            store: &self.store,
                            blocks: &self.blocks,
                            tried: &self.tried,
                            last_read: self.last_read.as_ref(),
                            since: self.since,
                        };
                        place.wait(stream).await?
                    }
                },
            };
            match came {
                Came::Item(StoreItem::Series(batch)) => self.hold_all(batch, reading.asker.budget())?,
                Came::Item(StoreItem::End) => self.done = true,
                Came::Others(others, next) => {
                    self.done = next.is_none();
                    self.next = next;
                    self.source = Source::Others(others);
                }
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

/// Where a store's stream stands that is waited for.
struct Place<'p> {
    reading: &'p Reading,
    store: &'p str,
    blocks: &'p [String],
    tried: &'p Tried,
    last_read: Option<&'p Labels>,
    /// When the wait began.
    since: Duration,
}

impl Place<'_> {
    /// The next item; when the stream is silent the blocks are read by others beside it, and what comes first counts. Time
    /// in which nobody reads the stream is no silence: the store may not send then.
    async fn wait(&self, stream: &mut StoreStream) -> Result<Came, SourceError> {
        let Reading { asker, silent, .. } = self.reading;
        let board = asker.board();
        let mut item = std::pin::pin!(self.item(stream));
        if !asker.may_hedge(silent.len() + 1) {
            return Ok(Came::Item(item.await?));
        }
        let mut silence = board.silence();
        loop {
            let is_silent = board.sleep(silence);
            tokio::select! {
                biased;
                item = &mut item => return Ok(Came::Item(item?)),
                () = is_silent => {}
            }
            if board.take_hedge(self.store) {
                break;
            }
            silence = board.hedge_again();
        }
        let mut others = Box::new(self.beside());
        let raced = {
            let mut first = others.next_within();
            tokio::select! {
                biased;
                item = &mut item => match item {
                    Ok(item) => return Ok(Came::Item(item)),
                    // Others are at it already; where they fail, too, it is read on as after any failure.
                    Err(e) => match first.await {
                        Ok(first) => Some((first, e.code)),
                        Err(_) => return Err(e.into()),
                    },
                },
                first = &mut first => first.ok().map(|first| (first, ServiceErrorCode::DeadlineExceeded)),
            }
        };
        let Some((first, code)) = raced else {
            // Whatever they hold goes first.
            drop(others);
            return Ok(Came::Item(item.await?));
        };
        board.failed(self.store, code, self.since);
        tracing::debug!(store = self.store, "a store's stream fell silent, others go on");
        others.reading.silent.clone_from(silent);
        asker.take(&others.reading.asker)?;
        Ok(Came::Others(others, first))
    }

    async fn item(&self, stream: &mut StoreStream) -> Result<StoreItem, ServiceError> {
        let board = self.reading.asker.board();
        let item = board.within(next_item(stream)).await??;
        board.item_came(self.store, board.elapsed().saturating_sub(self.since));
        Ok(item)
    }

    /// The blocks read by others from here on.
    fn beside(&self) -> BlockFeed {
        let mut reading = Reading {
            asker: self.reading.asker.aside(),
            ..self.reading.clone()
        };
        reading.silent.push(self.store.to_owned());
        BlockFeed {
            unasked: self.blocks.to_vec(),
            tried: self.tried.beside(&reading.silent),
            reading,
            parts: Vec::new(),
            last_given: self.last_read.cloned(),
        }
    }
}

async fn next_item(stream: &mut StoreStream) -> Result<StoreItem, ServiceError> {
    let item = stream.next().await;
    item.unwrap_or_else(|| Err(ServiceError::unavailable("the stream broke off before its end")))
}
