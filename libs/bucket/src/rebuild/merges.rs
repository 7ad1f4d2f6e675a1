//! Which blocks others were certainly merged from.

use std::collections::{BTreeMap, BTreeSet};

use koios_block::{BlockId, BlockMeta};
use koios_model::TenantId;

use crate::Result;
use crate::bucket::Bucket;
use crate::manifest::ManifestBlock;

/// A merge of which something is there.
struct Merge<'a> {
    /// Its sources that are there, and how many samples they have.
    sources: Vec<&'a ManifestBlock>,
    samples: u64,
    /// What it wrote.
    into: Vec<&'a ManifestBlock>,
    written: u64,
}

/// The merges whose blocks have as many samples as their sources. Summaries are no merges: their sources have what they lack. Blocks
/// that are not whole need not be once they were merged.
fn full_merges<'a>(
    whole: &'a BTreeMap<BlockId, ManifestBlock>,
    not_whole: &'a [ManifestBlock],
    made_of: impl Fn(BlockId) -> &'a [BlockId],
) -> Vec<Merge<'a>> {
    let all = whole.values().chain(not_whole);
    let all: BTreeMap<BlockId, &ManifestBlock> = all.map(|b| (b.block, b)).collect();
    let mut merges: BTreeMap<&[BlockId], Merge<'_>> = BTreeMap::new();
    for block in whole.values().filter(|b| b.resolution_ms == 0) {
        let sources = made_of(block.block);
        if sources.is_empty() {
            continue;
        }
        let merge = merges.entry(sources).or_insert_with(|| {
            let sources: Vec<_> = sources.iter().filter_map(|s| all.get(s).copied()).collect();
            Merge {
                samples: sources.iter().map(|b| b.samples).sum(),
                sources,
                into: Vec::new(),
                written: 0,
            }
        });
        merge.into.push(block);
        merge.written += block.samples;
    }
    merges.into_values().filter(|m| m.samples <= m.written).collect()
}

impl Bucket {
    /// Those of `whole` blocks and of blocks that are `not_whole` of which all is certainly in what they were merged into.
    pub(super) async fn merged(
        &self,
        tenant: &TenantId,
        whole: &BTreeMap<BlockId, BlockMeta>,
        not_whole: &[ManifestBlock],
    ) -> Result<BTreeSet<BlockId>> {
        let entry =
            |(block, meta): (&BlockId, &BlockMeta)| (*block, ManifestBlock::new(meta, BTreeMap::new()));
        let entries = whole.iter().map(entry).collect();
        let made_of = |block| whole.get(&block).map_or(&[][..], |meta| &meta.sources);
        let mut merged = BTreeSet::new();
        for merge in full_merges(&entries, not_whole, made_of) {
            if self.is_whole(tenant, &merge).await? {
                merged.extend(merge.sources.iter().map(|b| b.block));
            }
        }
        Ok(merged)
    }

    /// Whether what a merge wrote certainly has all of its sources. It writes several blocks, and one that a crash cut short may have
    /// left some of them, each attempt others: of series that none of these has the rest never came. Otherwise both stay; a sample that
    /// is there twice is read once.
    async fn is_whole(&self, tenant: &TenantId, merge: &Merge<'_>) -> Result<bool> {
        if merge.sources.is_empty() {
            return Ok(true);
        }
        let written = self.series_of_all(tenant, &merge.into).await?;
        for source in &merge.sources {
            // One that cannot be read tells nothing.
            if let Ok(series) = self.series_of(tenant, source).await?
                && !series.is_subset(&written)
            {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
