//! Which blocks lose some of their series because of their age.

use std::collections::BTreeSet;

use koios_block::BlockId;
use koios_bucket::{Manifest, ManifestBlock};

use super::horizon::Horizon;
use crate::compact::CompactionSettings;
use crate::compact::deletions::clean_up_to;
use crate::compact::downsample_plan::expired;

/// A block that lies before the retention of some classes of series, but not of all that it may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExpiryJob {
    pub(crate) block: ManifestBlock,
    /// The classes whose series go.
    pub(crate) classes: Vec<usize>,
}

/// The blocks to look through, and to write again without some series if they have any: each once for each retention, when all of it
/// is older than that. Blocks in `bad` are left alone, and so are those that are to be merged first.
pub(crate) fn due_expiries(
    manifest: &Manifest,
    now_ms: i64,
    settings: &CompactionSettings,
    bad: &BTreeSet<BlockId>,
    merging: &BTreeSet<BlockId>,
) -> Vec<ExpiryJob> {
    let horizon = Horizon::of(manifest, now_ms, settings);
    if horizon.count() == 1 {
        // Blocks go as a whole.
        return Vec::new();
    }
    let found = expired(manifest, now_ms, settings, bad);
    let elsewhere: BTreeSet<BlockId> = found
        .splits
        .iter()
        .flat_map(|s| s.blocks().map(|b| b.block))
        .chain(found.blocks.iter().copied())
        .collect();
    let is_free = |b: &&ManifestBlock| {
        !bad.contains(&b.block) && !merging.contains(&b.block) && !elsewhere.contains(&b.block)
    };
    let blocks = manifest.blocks.iter().filter(is_free);
    let jobs = blocks.filter_map(|block| {
        let waits = |class: &usize| *class == horizon.rest() && found.waiting.contains(&block.block);
        let past = horizon
            .left_in(block)
            .filter(|class| horizon.is_past(*class, block));
        let classes: Vec<usize> = past.filter(|class| !waits(class)).collect();
        let is_due = !classes.is_empty() && clean_up_to(manifest, std::slice::from_ref(block)).is_some();
        is_due.then(|| ExpiryJob {
            block: block.clone(),
            classes,
        })
    });
    jobs.collect()
}

#[cfg(test)]
#[path = "plan_test.rs"]
mod tests;
