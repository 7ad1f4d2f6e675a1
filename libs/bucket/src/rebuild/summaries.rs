//! Which blocks of summaries a rebuilt manifest lists.
//!
//! Summaries are derived: where their samples are listed they are made anew. Where these are gone, they are all that is left, and of each
//! window and resolution exactly one set of them may be listed: two would count twice what both speak for. What is left of sets that were
//! replaced, written again, or cut short by a crash is told from that by the series that it has.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use koios_block::{BlockCache, BlockId, BlockMeta, BlockSeries};
use koios_model::{Matchers, TenantId, TimeRange};

use super::LeftOut;
use super::altered::{Altered, Fault};
use crate::blocks::Blocks;
use crate::bucket::Bucket;
use crate::manifest::{Manifest, ManifestBlock};
use crate::{Error, Result};

/// Series read at a time.
const SERIES_AT_ONCE: usize = 4096;
/// Bytes kept of what is read.
pub(super) const CACHE_BYTES: u64 = 16 << 20;

/// What there is to choose from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidates<'a> {
    /// Blocks of summaries.
    pub(super) metas: &'a [&'a BlockMeta],
    /// Those of them that are not what was encoded, among others.
    pub(super) altered: &'a Altered,
    /// The newest version that can be read.
    pub(super) readable: Option<&'a Manifest>,
}

impl Candidates<'_> {
    /// Why a block is left out that is not chosen.
    fn left_out(&self, block: BlockId, why: LeftOut) -> (BlockId, LeftOut) {
        let altered = self.altered.get(&block);
        (block, altered.map_or(why, Fault::left_out))
    }

    fn leave_out(&self, chosen: &mut Chosen, set: &Set, why: &LeftOut) {
        let blocks = set.blocks.iter().map(|b| self.left_out(b.block, why.clone()));
        chosen.left_out.extend(blocks);
    }
}

/// What was decided.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    pub(super) listed: Vec<ManifestBlock>,
    pub(super) standing_in: Vec<BlockId>,
    pub(super) left_out: Vec<(BlockId, LeftOut)>,
    /// What of the listed ones is not what was encoded, as there is nothing else with all of its series.
    pub(super) damaged: Vec<(BlockId, LeftOut)>,
    /// Those of them whose samples are listed under the very names that they were made of, so that nothing is lost with them.
    pub(super) remade: Vec<BlockId>,
}

/// A series, by the hash of its labels: two that collide make a set look a series larger than it is.
pub(super) type Series = BTreeSet<u64>;

/// Blocks of one resolution that were made together, as far as can be told.
#[derive(Debug)]
struct Set {
    blocks: Vec<ManifestBlock>,
    series: Series,
    /// Whether a version that can be read lists them.
    is_known: bool,
    /// Whether none is known to be other than what was encoded.
    is_whole: bool,
    /// Whether there may be series beside these, of a block that cannot be read.
    has_more: bool,
    /// Altered blocks that were made with it and cannot be read: rewrites of what it has, or its siblings.
    unread: Vec<BlockId>,
}

impl Set {
    fn rows(&self) -> u64 {
        self.blocks.iter().map(|b| b.samples).sum()
    }

    fn range(&self) -> Option<TimeRange> {
        self.blocks.iter().map(|b| b.range).reduce(|a, b| a.union(&b))
    }

    fn newest(&self) -> Option<BlockId> {
        self.blocks.iter().map(|b| b.block).max()
    }

    /// Whether it is to be listed instead of another: one that is whole instead of one that is not, unless series would be missing then
    /// that are known to be there; of others the one that speaks for more.
    fn outweighs(&self, other: &Self) -> bool {
        match (self.is_whole, other.is_whole) {
            (true, false) if other.series.is_subset(&self.series) => true,
            (false, true) if self.series.is_subset(&other.series) => false,
            _ => self.weight() > other.weight(),
        }
    }

    fn weight(&self) -> (usize, bool, u64, bool, Option<BlockId>) {
        let (series, rows) = (self.series.len(), self.rows());
        (series, self.is_whole, rows, self.is_known, self.newest())
    }
}

/// What is listed with samples beside the summaries of a window.
#[derive(Debug)]
struct Raw<'a> {
    blocks: Vec<&'a ManifestBlock>,
    series: Series,
}

impl Raw<'_> {
    /// Whether, with what `chosen` speaks for, all is certainly listed that a set does: its sources, or all of its series.
    fn has_rest_of(&self, set: &Set, metas: &[&BlockMeta], chosen: &Set) -> bool {
        let is_there = |series: &u64| chosen.series.contains(series) || self.series.contains(series);
        sources_are_live(set, metas, &self.blocks) || !set.has_more && set.series.iter().all(is_there)
    }
}

impl Bucket {
    /// Chooses out of blocks of summaries, beside the blocks with samples that are `listed`. What is altered is chosen only where there is
    /// nothing else, or nothing with all series that it is known to have.
    pub(super) async fn choose_summaries(
        &self,
        tenant: &TenantId,
        listed: &[ManifestBlock],
        candidates: Candidates<'_>,
    ) -> Result<Chosen> {
        let mut chosen = Chosen::default();
        let mut windows: BTreeMap<(i64, i64), BTreeMap<i64, Vec<&BlockMeta>>> = BTreeMap::new();
        for meta in candidates.metas {
            let of_window = windows.entry((meta.window.min, meta.window.max)).or_default();
            of_window.entry(meta.resolution_ms).or_default().push(meta);
        }
        for ((min, max), by_resolution) in windows {
            let window = TimeRange::new(min, max);
            let is_beside = |b: &&ManifestBlock| b.resolution_ms == 0 && b.range.overlaps(&window);
            let blocks: Vec<&ManifestBlock> = listed.iter().filter(is_beside).collect();
            let series = self.series_of_all(tenant, &blocks).await?;
            let raw = Raw { blocks, series };
            let mut left: Vec<Set> = Vec::new();
            for metas in by_resolution.into_values() {
                let set = self
                    .one_set(tenant, &metas, candidates, &raw, &mut chosen)
                    .await?;
                let Some(set) = set else { continue };
                if is_as_listed(&set, listed) {
                    chosen.listed.extend(set.blocks);
                } else if sources_are_live(&set, &metas, &raw.blocks) {
                    chosen.remade.extend(set.blocks.iter().map(|b| b.block));
                    candidates.leave_out(&mut chosen, &set, &LeftOut::Remade);
                } else if is_inside(&set, &raw.blocks, &raw.series) {
                    candidates.leave_out(&mut chosen, &set, &LeftOut::Remade);
                } else {
                    left.push(set);
                }
            }
            // What is left of several resolutions speaks for the same samples.
            let is_part = |set: &Set| {
                let mut others = left.iter();
                !set.is_known
                    && !set.has_more
                    && others.any(|o| o.series.len() > set.series.len() && o.series.is_superset(&set.series))
            };
            let parts: Vec<bool> = left.iter().map(is_part).collect();
            for (set, is_part) in left.into_iter().zip(parts) {
                if is_part {
                    candidates.leave_out(&mut chosen, &set, &LeftOut::Partial);
                    continue;
                }
                for mut block in set.blocks {
                    block.sources.clear();
                    chosen.standing_in.push(block.block);
                    if let Some(fault) = candidates.altered.get(&block.block) {
                        chosen.damaged.push((block.block, fault.damaged()));
                    }
                    chosen.listed.push(block);
                }
            }
        }
        chosen.standing_in.sort_unstable();
        Ok(chosen)
    }

    /// Of all blocks of a window and resolution those that speak for most, each series once.
    async fn one_set(
        &self,
        tenant: &TenantId,
        metas: &[&BlockMeta],
        candidates: Candidates<'_>,
        raw: &Raw<'_>,
        chosen: &mut Chosen,
    ) -> Result<Option<Set>> {
        let known = |meta: &BlockMeta| candidates.readable.and_then(|m| m.block(meta.block));
        let is_altered = |meta: &BlockMeta| candidates.altered.contains_key(&meta.block);
        // Those that a version lists are one set, whatever they were made of; the others those that were made of the same blocks.
        let mut made: BTreeMap<Option<&[BlockId]>, Vec<&BlockMeta>> = BTreeMap::new();
        for meta in metas {
            let of = known(meta).is_none().then_some(meta.sources.as_slice());
            made.entry(of).or_default().push(meta);
        }
        let mut sets: Vec<Set> = Vec::new();
        for (of, mut metas) in made {
            // What was written again without what is deleted takes the place of what was there before, unless it is altered.
            metas.sort_by_key(|m| (is_altered(m), std::cmp::Reverse((m.clean_up_to, m.block))));
            let mut set = Set {
                blocks: Vec::new(),
                series: Series::new(),
                is_known: of.is_none(),
                is_whole: true,
                has_more: false,
                unread: Vec::new(),
            };
            for meta in metas {
                let entry = known(meta).cloned();
                let entry = entry.unwrap_or_else(|| ManifestBlock::new(meta, BTreeMap::new()));
                match self.series_of(tenant, &entry).await? {
                    Ok(series) if set.is_known || set.series.is_disjoint(&series) => {
                        set.series.extend(series);
                        set.is_whole &= !is_altered(meta);
                        set.blocks.push(entry);
                    }
                    // Queries say so then.
                    Err(_) if set.is_known => set.blocks.push(entry),
                    // Those before it are altered, too, if there are any.
                    Err(_) if is_altered(meta) && (set.blocks.is_empty() || !set.is_whole) => {
                        (set.is_whole, set.has_more) = (false, true);
                        set.blocks.push(entry);
                    }
                    Ok(_) => {
                        let left = candidates.left_out(meta.block, LeftOut::Summarised);
                        chosen.left_out.push(left);
                    }
                    Err(_) if is_altered(meta) => set.unread.push(meta.block),
                    Err(why) => {
                        let left = candidates.left_out(meta.block, LeftOut::Unknown(why));
                        chosen.left_out.push(left);
                    }
                }
            }
            if !set.blocks.is_empty() {
                sets.push(set);
            }
        }
        let best = (0..sets.len()).reduce(|best, at| if sets[at].outweighs(&sets[best]) { at } else { best });
        let Some(best) = best.map(|best| sets.swap_remove(best)) else {
            return Ok(None);
        };
        for set in &sets {
            match raw.has_rest_of(set, metas, &best) {
                true => candidates.leave_out(chosen, set, &LeftOut::Summarised),
                false => {
                    let blocks = set.blocks.iter().map(|b| (b.block, LeftOut::Outweighed));
                    chosen.left_out.extend(blocks);
                }
            }
        }
        for set in sets.iter().chain([&best]) {
            let is_there = sources_are_live(set, metas, &raw.blocks);
            let unread = set.unread.iter().map(|block| match is_there {
                true => candidates.left_out(*block, LeftOut::Summarised),
                false => (*block, LeftOut::Outweighed),
            });
            chosen.left_out.extend(unread);
        }
        Ok(Some(best))
    }

    /// The series of some blocks, without those that cannot be read.
    pub(super) async fn series_of_all(&self, tenant: &TenantId, blocks: &[&ManifestBlock]) -> Result<Series> {
        let mut all = Series::new();
        for block in blocks {
            // Of these nobody can say that they have the samples of anything.
            all.extend(self.series_of(tenant, block).await?.unwrap_or_default());
        }
        Ok(all)
    }

    /// The series of a block, or why it cannot be read.
    pub(super) async fn series_of(
        &self,
        tenant: &TenantId,
        block: &ManifestBlock,
    ) -> Result<std::result::Result<Series, String>> {
        let mut all = Series::new();
        let read = self.each_series(tenant, block, |series, _| {
            all.insert(series);
        });
        Ok(read.await?.map(|()| all))
    }

    /// Looks at the series of a block, each by the hash of its labels; or why it cannot be read.
    pub(super) async fn each_series(
        &self,
        tenant: &TenantId,
        block: &ManifestBlock,
        mut each: impl FnMut(u64, &BlockSeries) + Send,
    ) -> Result<std::result::Result<(), String>> {
        let read = async {
            let cache = Arc::new(BlockCache::new(CACHE_BYTES, CACHE_BYTES));
            let reader = Blocks::new(self.clone(), cache, 0).open(tenant, block).await?;
            let mut cursor = reader.series_cursor(Matchers::default(), TimeRange::ALL);
            while let Some(some) = cursor.next(SERIES_AT_ONCE).await? {
                for series in &some {
                    let mut hasher = DefaultHasher::new();
                    series.labels.packed().hash(&mut hasher);
                    each(hasher.finish(), series);
                }
            }
            Ok::<_, Error>(())
        };
        match read.await {
            Ok(()) => Ok(Ok(())),
            Err(e) if !e.is_of_object() => Err(e),
            Err(e) => Ok(Err(e.to_string())),
        }
    }
}

/// Whether the version that lists a set said the right thing of it: its samples were gone already, or are still listed.
fn is_as_listed(set: &Set, listed: &[ManifestBlock]) -> bool {
    let is_live = |id: &BlockId| listed.iter().any(|b| b.block == *id);
    set.is_known && set.blocks.iter().all(|b| b.sources.iter().all(is_live))
}

/// Whether the samples that a set speaks for are listed under the names that it was made of.
fn sources_are_live(set: &Set, metas: &[&BlockMeta], raw: &[&ManifestBlock]) -> bool {
    let is_live = |id: &BlockId| raw.iter().any(|b| b.block == *id);
    let of_set = |m: &&&BlockMeta| set.blocks.iter().any(|b| b.block == m.block);
    let mut made_of = metas.iter().filter(of_set).flat_map(|m| &m.sources).peekable();
    made_of.peek().is_some() && made_of.all(is_live)
}

/// Whether they are listed, as far as can be told, in blocks of the same time with all its series, which those that it was made of were
/// merged into.
fn is_inside(set: &Set, raw: &[&ManifestBlock], raw_series: &Series) -> bool {
    let time = raw.iter().map(|b| b.range).reduce(|a, b| a.union(&b));
    let is_within = |(time, range): (TimeRange, TimeRange)| time.min <= range.min && range.max <= time.max;
    !set.has_more && time.zip(set.range()).is_some_and(is_within) && set.series.is_subset(raw_series)
}
