//! Which of the blocks that were found a rebuilt manifest lists.

use std::collections::{BTreeMap, BTreeSet};

use koios_block::{BlockId, BlockMeta};
use koios_model::TenantId;

use super::LeftOut;
use super::altered::Altered;
use super::found::Found;
use super::summaries::Candidates;
use crate::Result;
use crate::bucket::Bucket;
use crate::manifest::{Manifest, ManifestBlock};

/// What is listed, and what is not: see [`super::Rebuild`].
#[derive(Debug, Default)]
pub(super) struct Choice {
    pub(super) blocks: Vec<ManifestBlock>,
    pub(super) left_out: Vec<(BlockId, LeftOut)>,
    pub(super) damaged: Vec<(BlockId, LeftOut)>,
    pub(super) standing_in: Vec<BlockId>,
    pub(super) replaced: Vec<(BlockId, Vec<String>)>,
}

/// The blocks whose metadata is known, by what is left of them.
struct Sorted<'a> {
    /// The newest version that can be read.
    readable: Option<&'a Manifest>,
    whole: BTreeMap<BlockId, BlockMeta>,
    /// Those with all parts that no version lists and that are not known to be what was encoded.
    suspect: BTreeMap<BlockId, BlockMeta>,
    altered: Altered,
    incomplete: BTreeMap<BlockId, (BlockMeta, LeftOut)>,
    /// Those of all of them that others were certainly merged from.
    merged: BTreeSet<BlockId>,
}

impl Sorted<'_> {
    fn known(&self, block: BlockId) -> Option<&ManifestBlock> {
        self.readable.and_then(|m| m.block(block))
    }

    /// As a version lists it, if any does.
    fn entry(&self, meta: &BlockMeta) -> ManifestBlock {
        let known = self.known(meta.block).cloned();
        known.unwrap_or_else(|| ManifestBlock::new(meta, BTreeMap::new()))
    }

    /// Of whole blocks those that are not merged.
    fn left(&self) -> impl Iterator<Item = &BlockMeta> {
        self.whole.values().filter(|m| !self.merged.contains(&m.block))
    }

    /// The blocks that a version lists and of which nothing at all is left.
    fn gone(&self, damaged: &[(BlockId, LeftOut)]) -> Vec<(BlockId, LeftOut)> {
        let damaged: BTreeSet<BlockId> = damaged.iter().map(|(block, _)| *block).collect();
        let listed = self.readable.iter().flat_map(|m| &m.blocks).map(|b| b.block);
        let gone = listed.filter(|block| !self.whole.contains_key(block) && !damaged.contains(block));
        gone.map(|block| (block, LeftOut::NoMeta)).collect()
    }

    /// What is known of the blocks that are not whole.
    fn not_whole(&self, damaged: &[(BlockId, LeftOut)]) -> Vec<ManifestBlock> {
        let damaged = damaged
            .iter()
            .filter_map(|(block, _)| self.known(*block).cloned());
        let incomplete = self.incomplete.values().map(|(meta, _)| meta);
        let unlisted = self.suspect.values().chain(incomplete);
        damaged.chain(unlisted.map(|meta| self.entry(meta))).collect()
    }

    /// The parts of blocks of which everything is certainly listed: they were merged, or are summaries, of which some are `remade`.
    fn replaced(&self, remade: &[BlockId]) -> Vec<(BlockId, Vec<String>)> {
        // Of a source that is damaged the summaries may be all that is left.
        let is_whole = |meta: &&BlockMeta| meta.sources.iter().all(|s| self.whole.contains_key(s));
        let remade = remade.iter().filter_map(|b| self.whole.get(b)).filter(is_whole);
        let merged = self.merged.iter().filter_map(|b| self.whole.get(b));
        let parts = |meta: &BlockMeta| meta.summaries().into_iter().map(|p| p.name).collect();
        merged
            .chain(remade)
            .map(|meta| (meta.block, parts(meta)))
            .collect()
    }
}

impl Bucket {
    /// Chooses out of what was found. Reads all of the blocks that no version lists.
    pub(super) async fn choose(
        &self,
        tenant: &TenantId,
        found: Found,
        readable: Option<&Manifest>,
    ) -> Result<Choice> {
        let altered = self.altered(tenant, &found.whole, readable).await?;
        let is_altered = |(block, _): &(BlockId, BlockMeta)| altered.contains_key(block);
        let (suspect, whole) = found.whole.into_iter().partition(is_altered);
        let mut sorted = Sorted {
            readable,
            whole,
            suspect,
            altered,
            incomplete: found.incomplete,
            merged: BTreeSet::new(),
        };
        let mut choice = Choice {
            left_out: found.left_out,
            damaged: found.damaged,
            ..Choice::default()
        };
        choice.damaged.extend(sorted.gone(&choice.damaged));
        let not_whole = sorted.not_whole(&choice.damaged);
        sorted.merged = self.merged(tenant, &sorted.whole, &not_whole).await?;
        let merged = sorted.merged.iter().map(|block| (*block, LeftOut::Merged));
        choice.left_out.extend(merged);
        choice.damaged.retain(|(block, _)| !sorted.merged.contains(block));
        let raw = sorted.left().filter(|m| m.resolution_ms == 0);
        choice.blocks.extend(raw.map(|meta| sorted.entry(meta)));
        let damaged = choice.damaged.iter().filter_map(|(b, _)| sorted.known(*b));
        choice.blocks.extend(damaged.cloned());
        self.choose_suspects(tenant, &sorted, &mut choice).await?;
        self.leave_out_incomplete(tenant, &sorted, &mut choice).await?;
        self.add_summaries(tenant, &sorted, &mut choice).await?;
        choice.damaged.sort_by_key(|(block, _)| *block);
        choice.left_out.sort_by_key(|(block, _)| *block);
        choice.blocks.sort_unstable_by_key(|b| b.block);
        Ok(choice)
    }

    /// Of blocks of samples that are not what was encoded those are listed that nothing else holds.
    async fn choose_suspects(
        &self,
        tenant: &TenantId,
        sorted: &Sorted<'_>,
        choice: &mut Choice,
    ) -> Result<()> {
        let is_raw = |m: &&BlockMeta| m.resolution_ms == 0 && !sorted.merged.contains(&m.block);
        for meta in sorted.suspect.values().filter(is_raw) {
            let Some(fault) = sorted.altered.get(&meta.block) else {
                continue;
            };
            if self.is_held_by(tenant, meta, &sorted.whole).await? {
                choice.left_out.push((meta.block, fault.left_out()));
            } else {
                choice.damaged.push((meta.block, fault.damaged()));
                choice.blocks.push(sorted.entry(meta));
            }
        }
        Ok(())
    }

    /// Blocks that lack a part are not listed; what is said of them is whether others hold what they held.
    async fn leave_out_incomplete(
        &self,
        tenant: &TenantId,
        sorted: &Sorted<'_>,
        choice: &mut Choice,
    ) -> Result<()> {
        for (meta, why) in sorted.incomplete.values() {
            if sorted.merged.contains(&meta.block) {
                continue;
            }
            let why = match why {
                LeftOut::Part { part, .. } if self.is_held_by(tenant, meta, &sorted.whole).await? => {
                    LeftOut::Altered { part: part.clone() }
                }
                why => why.clone(),
            };
            choice.left_out.push((meta.block, why));
        }
        Ok(())
    }

    /// Summaries, beside the samples that are listed.
    async fn add_summaries(&self, tenant: &TenantId, sorted: &Sorted<'_>, choice: &mut Choice) -> Result<()> {
        let metas: Vec<&BlockMeta> = sorted
            .left()
            .chain(sorted.suspect.values())
            .filter(|m| m.resolution_ms != 0)
            .collect();
        let candidates = Candidates {
            metas: &metas,
            altered: &sorted.altered,
            readable: sorted.readable,
        };
        let chosen = Box::pin(self.choose_summaries(tenant, &choice.blocks, candidates)).await?;
        choice.replaced = sorted.replaced(&chosen.remade);
        choice.left_out.extend(chosen.left_out);
        choice.damaged.extend(chosen.damaged);
        choice.standing_in = chosen.standing_in;
        choice.blocks.extend(chosen.listed);
        Ok(())
    }
}
