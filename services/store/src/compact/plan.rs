//! Which blocks to merge next.
//!
//! Windows grow from one width to the next (2 h, 12 h, 24 h), aligned to the epoch. What lies in a window that has passed is
//! merged into one run of blocks; what comes late is merged with it once it is worth reading all of it again.

use std::collections::{BTreeMap, BTreeSet};

use koios_block::BlockId;
use koios_bucket::{Manifest, ManifestBlock, Tombstone, TombstoneState};
use koios_model::{TimeRange, window_start};

use super::CompactionSettings;
use super::deletions::clean_up_to;
use super::settings::millis;

/// What is merged once more is at most so many times as large as what comes to it…
const REWRITE_MAX: u64 = 8;
/// …unless so many have come.
const PIECES_MAX: usize = 8;

/// Most of them that are merged at once: each is read side by side with the others.
const UNITS_MAX: usize = 16;

/// Blocks to merge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MergeJob {
    /// The blocks, ascending by name.
    pub(crate) inputs: Vec<ManifestBlock>,
    /// The window of the blocks they become.
    pub(crate) window: TimeRange,
    /// Their level.
    pub(crate) level: u32,
}

impl MergeJob {
    pub(crate) fn bytes(&self) -> u64 {
        self.inputs.iter().map(ManifestBlock::bytes).sum()
    }

    pub(crate) fn samples(&self) -> u64 {
        self.inputs.iter().map(|b| b.samples).sum()
    }

    /// What the new blocks say they came from. A merged block that is written again stays one of those that were merged with it.
    pub(crate) fn sources(&self) -> Vec<BlockId> {
        match self.inputs.as_slice() {
            [one] if !one.sources.is_empty() => one.sources.clone(),
            inputs => inputs.iter().map(|b| b.block).collect(),
        }
    }

    /// The merged block that is written again, if it is that.
    pub(crate) fn rewrites(&self) -> Option<BlockId> {
        match self.inputs.as_slice() {
            [one] if !one.sources.is_empty() => Some(one.block),
            _ => None,
        }
    }
}

/// Blocks that one merge wrote, or one that was cut: merged again together or not at all.
#[derive(Debug, Default)]
struct Unit<'a> {
    blocks: Vec<&'a ManifestBlock>,
    bytes: u64,
}

/// All merges that are due, narrow windows first, then old ones; the first is to be done and the rest asked for again, since
/// it changes what there is. Blocks in `bad` are left alone.
pub(crate) fn due_merges(
    manifest: &Manifest,
    now_ms: i64,
    settings: &CompactionSettings,
    bad: &BTreeSet<BlockId>,
) -> Vec<MergeJob> {
    let mut jobs = Vec::new();
    for width_ms in settings.widths_ms() {
        let settled_before = now_ms.saturating_sub(settings.settle_ms());
        let mut windows: BTreeMap<i64, BTreeMap<UnitKey<'_>, Unit<'_>>> = BTreeMap::new();
        for block in &manifest.blocks {
            let start = window_start(block.window.min, width_ms);
            let end = start.saturating_add(width_ms - 1);
            let inside = block.window.max <= end && end < settled_before;
            if block.resolution_ms != 0 || !inside || bad.contains(&block.block) {
                continue;
            }
            let units = windows.entry(start).or_default();
            let unit = units.entry(UnitKey::of(block)).or_default();
            unit.blocks.push(block);
            unit.bytes = unit.bytes.saturating_add(block.bytes());
        }
        for (start, units) in windows {
            if !is_worth_it(&units) {
                continue;
            }
            // The smallest first, when there are many: what they become is merged with the others next.
            let mut units: Vec<_> = units.into_values().collect();
            units.sort_by_key(|u| u.bytes);
            let few = units.into_iter().take(UNITS_MAX);
            let mut inputs: Vec<_> = few.flat_map(|u| u.blocks).cloned().collect();
            inputs.sort_unstable_by_key(|b| b.block);
            if clean_up_to(manifest, &inputs).is_none() {
                continue;
            }
            let level = inputs
                .iter()
                .map(|b| b.level)
                .max()
                .unwrap_or(0)
                .saturating_add(1);
            jobs.push(MergeJob {
                inputs,
                window: TimeRange::new(start, start.saturating_add(width_ms - 1)),
                level,
            });
        }
    }
    jobs
}

/// Since when a merge has been due: when its window had settled, or, if that was later, when the last of its blocks came or the first
/// deletion became final that it is there for.
pub(crate) fn due_since_ms(manifest: &Manifest, job: &MergeJob, settings: &CompactionSettings) -> i64 {
    let settled = job
        .window
        .max
        .saturating_add(1)
        .saturating_add(settings.settle_ms());
    let came = job.inputs.iter().map(|b| b.block.time_ms()).max();
    let is_final = |t: &&Tombstone| t.state == TombstoneState::Final;
    let cleaned = match job.inputs.as_slice() {
        [one] => manifest.masking(one).filter(is_final).map(|t| t.at_ms).min(),
        _ => None,
    };
    let cleaned = cleaned.map(|at_ms| at_ms.saturating_add(millis(settings.undelete_window)));
    let later = [came, cleaned].into_iter().flatten().max();
    later.map_or(settled, |later| settled.max(later))
}

/// What blocks of one unit have in common.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum UnitKey<'a> {
    /// The window and the sources of one merge.
    Merged(i64, &'a [BlockId]),
    Cut(BlockId),
}

impl<'a> UnitKey<'a> {
    fn of(block: &'a ManifestBlock) -> Self {
        match block.sources.as_slice() {
            [] => Self::Cut(block.block),
            sources => Self::Merged(block.window.min, sources),
        }
    }
}

fn is_worth_it(units: &BTreeMap<UnitKey<'_>, Unit<'_>>) -> bool {
    let all: u64 = units.values().map(|u| u.bytes).sum();
    let largest = units.values().map(|u| u.bytes).max().unwrap_or(0);
    let rest = all.saturating_sub(largest);
    units.len() >= 2 && (rest.saturating_mul(REWRITE_MAX) >= largest || units.len() >= PIECES_MAX)
}

#[cfg(test)]
#[path = "plan_test.rs"]
mod tests;
