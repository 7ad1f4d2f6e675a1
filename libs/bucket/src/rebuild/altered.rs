//! Which of the blocks that no version lists are not what was encoded, or cannot be read at all, and whether others hold what they held.
//!
//! Such a block may be an upload whose writer ended before it said that it is dead: what it was made of was kept then, and what was written
//! in its stead is there, or will be. It may as well be all that is left of its samples: it is listed then, so that no answer lacks them
//! without a word.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use koios_block::{BlockCache, BlockId, BlockMeta, EXEMPLARS_PART};
use koios_model::{TenantId, TimeRange};

use super::LeftOut;
use super::summaries::CACHE_BYTES;
use crate::blocks::Blocks;
use crate::bucket::Bucket;
use crate::manifest::{Manifest, ManifestBlock};
use crate::{Error, Result};

/// Blocks that are read back at a time.
const BLOCKS_AT_A_TIME: usize = 4;

/// Times that a block is begun to be read while the storage does not answer.
const TRIES: u32 = 3;

/// Blocks that are not known to be what was encoded, and why.
pub(super) type Altered = BTreeMap<BlockId, Fault>;

/// What is wrong with a block.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// The first of its parts that is not what was encoded.
    Part(String),
    /// It is not handed out.
    Unread(String),
}

impl Fault {
    /// As the reason to leave it out, beside others that have what it held.
    pub(super) fn left_out(&self) -> LeftOut {
        match self {
            Self::Part(part) => LeftOut::Altered { part: part.clone() },
            Self::Unread(reason) => LeftOut::Unread(reason.clone()),
        }
    }

    /// As what is said of it where it is listed.
    pub(super) fn damaged(&self) -> LeftOut {
        match self {
            Self::Part(part) => LeftOut::Damaged { part: part.clone() },
            Self::Unread(reason) => LeftOut::Unread(reason.clone()),
        }
    }
}

/// When the samples of each series are, and how many.
type Rows = BTreeMap<u64, (TimeRange, u64)>;

impl Bucket {
    /// The altered ones of those that no version lists. Reads all of them whole.
    pub(super) async fn altered(
        &self,
        tenant: &TenantId,
        metas: &BTreeMap<BlockId, BlockMeta>,
        readable: Option<&Manifest>,
    ) -> Result<Altered> {
        let is_listed = |meta: &&BlockMeta| readable.is_some_and(|m| m.block(meta.block).is_some());
        let unlisted = metas.values().filter(|meta| !is_listed(meta));
        let reads: Vec<_> = unlisted.map(|meta| self.altered_part(tenant, meta)).collect();
        let mut reads = stream::iter(reads).buffer_unordered(BLOCKS_AT_A_TIME);
        let mut found = Altered::new();
        while let Some(altered) = reads.try_next().await? {
            found.extend(altered);
        }
        Ok(found)
    }

    /// A block's name with what is wrong with it, if anything is.
    async fn altered_part(&self, tenant: &TenantId, meta: &BlockMeta) -> Result<Option<(BlockId, Fault)>> {
        let mut tries = 0;
        loop {
            match self.read_parts_back(tenant, meta).await {
                Ok(()) => return Ok(None),
                Err(Error::Altered { part, .. }) => return Ok(Some((meta.block, Fault::Part(part.into())))),
                // Other blocks are not to be lost to queries for one that nobody gets at.
                Err(e) if e.is_of_object() => return Ok(Some((meta.block, Fault::Unread(e.to_string())))),
                Err(source) => {
                    tries += 1;
                    if tries == TRIES {
                        return Err(Error::Unread {
                            tenant: tenant.clone(),
                            block: meta.block,
                            source: Box::new(source),
                        });
                    }
                }
            }
            self.clock().sleep(self.retry_for(0).backoff(tries)).await;
        }
    }

    /// Whether `whole` blocks certainly have what an altered block held, or one that lacks a part: what it was made of, what it is another copy of, or one that was
    /// made of the same and for the same and has as many samples of each of its series, from as early to as late. A cut was made of nothing
    /// that has a name: others hold it if they have a sample wherever it has one.
    pub(super) async fn is_held_by(
        &self,
        tenant: &TenantId,
        altered: &BlockMeta,
        whole: &BTreeMap<BlockId, BlockMeta>,
    ) -> Result<bool> {
        let is_whole = |block: &BlockId| whole.contains_key(block);
        if altered.rewrites.as_ref().is_some_and(is_whole)
            || !altered.sources.is_empty() && altered.sources.iter().all(is_whole)
        {
            return Ok(true);
        }
        if altered.sources.is_empty() {
            let is_cut = altered.resolution_ms == 0;
            return Ok(is_cut && self.is_cut_held_by(tenant, altered, whole).await?);
        }
        let twins: Vec<&BlockMeta> = whole.values().filter(|m| is_twin(m, altered)).collect();
        if twins.is_empty() {
            return Ok(false);
        }
        // One whose series cannot be read may have held anything.
        let Ok(held) = self.rows_of(tenant, altered).await? else {
            return Ok(false);
        };
        let mut of_twins = Vec::with_capacity(twins.len());
        for twin in twins {
            of_twins.push(self.rows_of(tenant, twin).await?.unwrap_or_default());
        }
        let is_held = |(series, (range, count)): (&u64, &(TimeRange, u64))| {
            let mut rows = of_twins.iter().filter_map(|rows| rows.get(series));
            rows.any(|(r, n)| r.min <= range.min && range.max <= r.max && n >= count)
        };
        Ok(held.iter().all(is_held))
    }

    /// The same of a cut. Two cuts of a window have nothing in common by themselves: the second has what came after the first, and fewer
    /// samples within the first one's time.
    async fn is_cut_held_by(
        &self,
        tenant: &TenantId,
        altered: &BlockMeta,
        whole: &BTreeMap<BlockId, BlockMeta>,
    ) -> Result<bool> {
        let others: Vec<&BlockMeta> = whole.values().filter(|m| may_hold_cut(m, altered)).collect();
        if others.is_empty() {
            return Ok(false);
        }
        let compared = async {
            let cache = Arc::new(BlockCache::new(CACHE_BYTES, CACHE_BYTES));
            let blocks = Blocks::new(self.clone(), cache, 0);
            let open = async |meta| {
                blocks
                    .open(tenant, &ManifestBlock::new(meta, BTreeMap::new()))
                    .await
            };
            let cut = open(altered).await?;
            let mut readers = Vec::with_capacity(others.len());
            for other in others {
                readers.push(open(other).await?);
            }
            Ok::<_, Error>(koios_block::is_held_by(&cut, &readers).await?)
        };
        match compared.await {
            Err(e) if !e.is_of_object() => Err(e),
            // What cannot be read may have been anything.
            compared => Ok(compared.unwrap_or(false)),
        }
    }

    async fn rows_of(
        &self,
        tenant: &TenantId,
        meta: &BlockMeta,
    ) -> Result<std::result::Result<Rows, String>> {
        let mut rows = Rows::new();
        let entry = ManifestBlock::new(meta, BTreeMap::new());
        let read = self.each_series(tenant, &entry, |series, of_series| {
            let count = u64::from(of_series.row_count) + u64::from(of_series.histogram_count);
            rows.insert(series, (of_series.range, count));
        });
        Ok(read.await?.map(|()| rows))
    }
}

/// Whether a block of samples may have those of a cut: it speaks for the same partitions and all of the window, and no deletion masks it
/// that does not mask the cut, which has what came after that.
fn may_hold_cut(block: &BlockMeta, cut: &BlockMeta) -> bool {
    let window = |meta: &BlockMeta| (meta.window.min, meta.window.max);
    let ((first, last), (cut_first, cut_last)) = (window(block), window(cut));
    block.resolution_ms == cut.resolution_ms
        && first <= cut_first
        && cut_last <= last
        && block.range.overlaps(&cut.range)
        && block.clean_up_to >= cut.clean_up_to
        && cut.partitions.iter().all(|p| block.partitions.contains(p))
}

/// Whether a block was made of the same and for the same as another, and has no fewer exemplars.
fn is_twin(block: &BlockMeta, other: &BlockMeta) -> bool {
    let exemplars = |meta: &BlockMeta| meta.part(EXEMPLARS_PART).map_or(0, |part| part.rows);
    block.resolution_ms == other.resolution_ms
        && block.window == other.window
        && block.partitions == other.partitions
        && block.sources == other.sources
        && exemplars(block) >= exemplars(other)
}
