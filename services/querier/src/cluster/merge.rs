//! The k-way merge of sources by label order: each label set once, with the runs of all sources that have it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use futures::stream::{self, StreamExt};
use koios_model::{Expiry, HashPurpose, Labels, SeriesHash, TenantId, TenantSeed};
use koios_promql::{Completeness, QueryError, Series, SeriesData, SeriesStream, StreamItem};

use super::Coarseness;
use super::budget::Budget;
use super::held::{HeldSeries, SourceError};
use super::manifests::QueryPin;
use super::stores::BlockFeed;

/// Series per item of the merged stream: enough to pay for a wake-up, few enough to be small.
const BATCH_SERIES: usize = 256;
/// Bytes of samples in a batch, unless one series has more.
const BATCH_BYTES: usize = 512 << 10;

/// What a query is told where members send as many series as they may, and of some all that they have is too old.
const TOO_MANY_OLD: &str = "the query matches more series than it may fetch, of which some have nothing but samples that are too old: \
     add matchers or ask for a shorter range";

/// Where series come from.
#[derive(Debug)]
pub(crate) enum Feed {
    /// A member's answer, all here.
    Held(MemberAnswer),
    /// Blocks, read as needed.
    Blocks(Box<BlockFeed>),
}

/// What a member sent.
#[derive(Debug)]
pub(crate) struct MemberAnswer {
    series: std::vec::IntoIter<HeldSeries>,
    /// Whether it sent as many series as it may, and so may have more.
    is_cut: bool,
}

impl MemberAnswer {
    /// Of a member that was asked for at most so many series, 0 for no limit.
    pub(crate) fn new(series: Vec<HeldSeries>, limit: u64) -> Self {
        Self {
            is_cut: limit != 0 && series.len() as u64 >= limit,
            series: series.into_iter(),
        }
    }

    /// Whether it may have more.
    pub(crate) fn is_cut(&self) -> bool {
        self.is_cut
    }
}

#[derive(Debug)]
struct Source {
    feed: Feed,
    next: Option<HeldSeries>,
    /// Whether a series of it was left out: of one that was cut so many may be missing after its last.
    was_thinned: bool,
}

impl Source {
    async fn advance(&mut self) -> Result<(), SourceError> {
        self.next = match &mut self.feed {
            Feed::Held(held) => held.series.next(),
            Feed::Blocks(blocks) => blocks.next().await?,
        };
        Ok(())
    }

    /// Whether series may be missing that would have followed.
    fn broke_off(&self) -> bool {
        let is_cut = matches!(&self.feed, Feed::Held(held) if held.is_cut());
        is_cut && self.was_thinned && self.next.is_none()
    }
}

/// Which series of the merge are wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// Most series, 0 for no limit.
    pub(crate) limit: usize,
    /// Shard index and count.
    pub(crate) shard: Option<(u32, u32)>,
    /// How coarse their data may be.
    pub(crate) coarseness: Coarseness,
    /// With summaries, the sums of their native histograms.
    pub(crate) histogram_sums: bool,
    /// What of them is too old.
    pub(crate) expiry: Expiry,
    /// The version of the manifest that all selectors of the query are read as of.
    pub(crate) pin: QueryPin,
}

/// Merges sources in label order.
#[derive(Debug)]
pub(crate) struct Merge {
    sources: Vec<Source>,
    /// The next labels of each source that has any.
    heads: BinaryHeap<Reverse<(Labels, usize)>>,
    wanted: Wanted,
    seed: TenantSeed,
    budget: Arc<Budget>,
    given: usize,
    completeness: Completeness,
    /// Whether a source ended before all that is wanted of it was there.
    broke_off: bool,
}

impl Merge {
    /// Starts a merge: reads the first series of every source, all at once.
    pub(crate) async fn start(
        feeds: Vec<Feed>,
        tenant: &TenantId,
        wanted: Wanted,
        budget: Arc<Budget>,
    ) -> Result<Self, SourceError> {
        let mut sources: Vec<_> = feeds
            .into_iter()
            .map(|feed| Source {
                feed,
                next: None,
                was_thinned: false,
            })
            .collect();
        futures::future::try_join_all(sources.iter_mut().map(Source::advance)).await?;
        let labels = |(i, s): (usize, &Source)| s.next.as_ref().map(|n| Reverse((n.labels.clone(), i)));
        let heads = sources.iter().enumerate().filter_map(labels).collect();
        Ok(Self {
            sources,
            heads,
            wanted,
            // Shards only have to agree with each other, so no secret is needed.
            seed: TenantSeed::new(b"", tenant),
            budget,
            given: 0,
            completeness: Completeness::Complete,
            broke_off: false,
        })
    }

    /// The same of sources that may not be all.
    pub(crate) fn lacking(self, completeness: Completeness) -> Self {
        Self { completeness, ..self }
    }

    /// Whether the sources are all there are.
    pub(crate) fn completeness(&self) -> &Completeness {
        &self.completeness
    }

    /// The next label set with everything sources hold of it.
    pub(crate) async fn next(&mut self) -> Result<Option<HeldSeries>, SourceError> {
        loop {
            if self.wanted.limit != 0 && self.given >= self.wanted.limit {
                return Ok(None);
            }
            let Some(series) = self.next_of_all().await? else {
                return Ok(None);
            };
            if self
                .wanted
                .shard
                .is_none_or(|shard| self.in_shard(&series.labels, shard))
            {
                self.given += 1;
                self.budget.count_series()?;
                return Ok(Some(series));
            }
        }
    }

    async fn next_of_all(&mut self) -> Result<Option<HeldSeries>, SourceError> {
        let mut merged: Option<HeldSeries> = None;
        // From when on its samples are kept, once that was asked.
        let mut kept_from: Option<Option<i64>> = None;
        loop {
            // Of what comes next it may have had a part.
            if self.broke_off && merged.is_none() {
                return Err(QueryError::LimitExceeded(TOO_MANY_OLD.to_owned()).into());
            }
            let Some(Reverse((labels, i))) = self.heads.peek() else {
                break;
            };
            if merged.as_ref().is_some_and(|m| m.labels != *labels) {
                break;
            }
            let i = *i;
            self.heads.pop();
            let Some(source) = self.sources.get_mut(i) else {
                continue;
            };
            let Some(mut series) = source.next.take() else {
                continue;
            };
            source.advance().await?;
            self.broke_off |= source.broke_off();
            if let Some(next) = &source.next {
                self.heads.push(Reverse((next.labels.clone(), i)));
            }
            if merged.is_none() {
                kept_from = None;
            }
            // Heads still have what stores leave out.
            if matches!(source.feed, Feed::Held(_)) {
                let ask = || self.wanted.expiry.kept_from(series.labels.as_ref());
                if kept_from
                    .get_or_insert_with(ask)
                    .is_some_and(|from| !series.keep_from(from))
                {
                    source.was_thinned = true;
                    self.broke_off |= source.broke_off();
                    continue;
                }
            }
            match &mut merged {
                Some(merged) => merged.absorb(series),
                None => merged = Some(series),
            }
        }
        Ok(merged)
    }

    fn in_shard(&self, labels: &Labels, (index, of): (u32, u32)) -> bool {
        let hash = SeriesHash::new(self.seed, labels.as_ref()).mixed(HashPurpose::QueryShard);
        hash % u64::from(of.max(1)) == u64::from(index)
    }

    async fn batch(&mut self) -> Result<Vec<Series>, SourceError> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < BATCH_SERIES
            && bytes < BATCH_BYTES
            && let Some(series) = self.next().await?
        {
            let (labels, data) = series.into_parts();
            bytes += data.encoded_bytes();
            batch.push(Series {
                labels,
                data: Box::new(data),
            });
        }
        Ok(batch)
    }

    /// The merge as the engine reads it.
    pub(crate) fn into_stream(self) -> SeriesStream {
        stream::unfold(Some(self), |merge| async move {
            let mut merge = merge?;
            match merge.batch().await {
                Ok(batch) if batch.is_empty() => Some((Ok(StreamItem::End(merge.completeness)), None)),
                Ok(batch) => Some((Ok(StreamItem::Series(batch)), Some(merge))),
                Err(e) => Some((Err(source_failed(e)), None)),
            }
        })
        .boxed()
    }
}

/// What a query is told about a source for which there was no other.
pub(crate) fn source_failed(e: SourceError) -> QueryError {
    match e {
        SourceError::Query(e) => e,
        SourceError::Service(e) => QueryError::unavailable(format!("blocks cannot be read: {e}")),
    }
}
