//! Deletions in compaction: which are applied, what merged blocks are clean of, and when a deletion is forgotten.
//!
//! A deletion can be taken back for a while. Until then its samples stay in the blocks, masked, and blocks that it masks are not merged with
//! blocks that it does not: a block has one version up to which it is clean. Then it becomes final, and the blocks that it
//! masks are written again without its samples, whether a merge is due or not.

use std::collections::BTreeSet;
use std::fmt::Debug;

use async_trait::async_trait;
use koios_block::{BlockId, Deletion};
use koios_bucket::{
    Error as BucketError, Manifest, ManifestBlock, Nonce, TenantManifests, Tombstone, TombstoneState, Writer,
};
use koios_model::TenantId;

use super::CompactionSettings;
use super::error::CompactError;
use super::plan::MergeJob;
use super::settings::millis;

/// Knows what members hold.
#[async_trait]
pub trait DeletionWitness: Send + Sync + Debug + 'static {
    /// Whether nothing that a deletion deletes can come back once the manifest does not list it any more: every member has applied it, and
    /// no member's log has a batch that it covers. False when that is not known.
    async fn is_forgotten(&self, tenant: &TenantId, deletion: &Tombstone) -> bool;

    /// The newest version of a tenant's manifest that members know to have been there.
    async fn announced(&self, tenant: &TenantId) -> Announced;
}

/// The version of a manifest that members tell of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// The version; 0 when nobody tells of any.
    pub version: u64,
    /// Whether all members have answered.
    pub by_all: bool,
}

impl Announced {
    /// What members tell that were not told of any version.
    pub const NONE: Self = Self {
        version: 0,
        by_all: true,
    };
}

/// What of a block a merge leaves out: what is final.
pub(crate) fn applied(manifest: &Manifest, block: &ManifestBlock) -> Result<Vec<Deletion>, CompactError> {
    let compile = |t: &Tombstone| match t.matchers() {
        Ok(matchers) => Ok(Deletion {
            matchers,
            range: t.range,
        }),
        Err(e) => Err(CompactError::Bucket(BucketError::Refused {
            tenant: manifest.tenant.clone(),
            reason: format!("deletion {} cannot be read: {e}", t.id),
        })),
    };
    let is_final = |t: &&Tombstone| t.state == TombstoneState::Final;
    manifest.masking(block).filter(is_final).map(compile).collect()
}

/// The version up to which a merge of blocks is clean; `None` when no version tells of all what masks them, so that they must not be
/// merged yet.
pub(crate) fn clean_up_to(manifest: &Manifest, inputs: &[ManifestBlock]) -> Option<u64> {
    let (mut least, mut most) = (0, manifest.version);
    let counts = |t: &&Tombstone| t.state != TombstoneState::Undone;
    for t in manifest.tombstones.iter().filter(counts) {
        for block in inputs.iter().filter(|b| b.range.overlaps(&t.range)) {
            if !t.masks(block) {
                least = least.max(t.version);
            } else if t.state == TombstoneState::Masked {
                most = most.min(t.version.saturating_sub(1));
            }
        }
    }
    (least <= most).then_some(most)
}

/// Whether a block would be rid of a final deletion if it were written again: not while an older one that may be taken back
/// masks it too.
pub(crate) fn can_be_cleaned(manifest: &Manifest, block: &ManifestBlock) -> bool {
    let Some(clean_up_to) = clean_up_to(manifest, std::slice::from_ref(block)) else {
        return false;
    };
    let mut masking = manifest.masking(block);
    masking.any(|t| t.state == TombstoneState::Final && t.version <= clean_up_to)
}

/// Rewrites of blocks that final deletions mask, but for those that `jobs` merge anyway.
pub(crate) fn cleanings(manifest: &Manifest, jobs: &[MergeJob], bad: &BTreeSet<BlockId>) -> Vec<MergeJob> {
    let merged: BTreeSet<BlockId> = jobs.iter().flat_map(|j| &j.inputs).map(|b| b.block).collect();
    let is_masked = |b: &&ManifestBlock| can_be_cleaned(manifest, b);
    // Summaries are made anew from samples.
    let blocks = manifest.blocks.iter().filter(|b| b.resolution_ms == 0);
    let blocks = blocks.filter(is_masked);
    let blocks = blocks.filter(|b| !merged.contains(&b.block) && !bad.contains(&b.block));
    let rewrite = |b: &ManifestBlock| MergeJob {
        inputs: vec![b.clone()],
        window: b.window,
        level: b.level,
    };
    blocks.map(rewrite).collect()
}

/// A block of summaries that a final deletion masks and that cannot be made anew, because its samples are gone.
pub(crate) fn summaries_to_clean<'m>(
    manifest: &'m Manifest,
    bad: &BTreeSet<BlockId>,
) -> Option<&'m ManifestBlock> {
    let mut blocks = manifest.blocks.iter();
    blocks.find(|b| {
        let is_left = b.resolution_ms != 0 && b.sources.is_empty() && !bad.contains(&b.block);
        is_left && can_be_cleaned(manifest, b)
    })
}

/// Makes deletions final that can be taken back no more. Gives how many.
pub(crate) async fn finalize(
    manifests: &TenantManifests,
    manifest: &Manifest,
    now_ms: i64,
    settings: &CompactionSettings,
    writer: &Writer,
) -> Result<usize, CompactError> {
    let before = now_ms.saturating_sub(millis(settings.undelete_window));
    let ripe = |t: &&Tombstone| t.state == TombstoneState::Masked && t.at_ms <= before;
    let ripe: Vec<Nonce> = manifest.tombstones.iter().filter(ripe).map(|t| t.id).collect();
    if ripe.is_empty() {
        return Ok(0);
    }
    let change = |m: &mut Manifest| {
        for id in &ripe {
            if m.tombstone(*id)
                .is_some_and(|t| t.state == TombstoneState::Masked)
            {
                m.set_tombstone_state(*id, TombstoneState::Final);
            }
        }
        Ok(())
    };
    manifests.commit(&manifest.tenant, writer, change).await?;
    tracing::info!(tenant = %manifest.tenant, deletions = ripe.len(), "deletions are final: their samples are removed from blocks");
    Ok(ripe.len())
}

/// Takes blocks off the list of which final deletions delete everything: nothing of them needs to be read. Gives how many.
pub(crate) async fn drop_emptied(
    manifests: &TenantManifests,
    manifest: &Manifest,
    writer: &Writer,
) -> Result<usize, CompactError> {
    let empties = |t: &Tombstone, b: &ManifestBlock| {
        let all_of_it = t.range.min <= b.range.min && b.range.max <= t.range.max;
        t.state == TombstoneState::Final && t.matchers.is_empty() && all_of_it
    };
    let is_emptied = |b: &&ManifestBlock| manifest.masking(b).any(|t| empties(t, b));
    let emptied: Vec<BlockId> = manifest
        .blocks
        .iter()
        .filter(is_emptied)
        .map(|b| b.block)
        .collect();
    if emptied.is_empty() {
        return Ok(0);
    }
    let remove = |m: &mut Manifest| {
        for block in &emptied {
            m.remove_block(*block);
        }
        Ok(())
    };
    manifests.commit(&manifest.tenant, writer, remove).await?;
    Ok(emptied.len())
}

/// Takes deletions off the list that have nothing left to delete. Gives how many.
pub(crate) async fn forget(
    manifests: &TenantManifests,
    manifest: &Manifest,
    witness: &dyn DeletionWitness,
    writer: &Writer,
) -> Result<usize, CompactError> {
    let mut done = Vec::new();
    for t in manifest
        .tombstones
        .iter()
        .filter(|t| t.state != TombstoneState::Masked)
    {
        let is_left = manifest.blocks.iter().any(|b| t.masks(b));
        if !is_left && witness.is_forgotten(&manifest.tenant, t).await {
            done.push(t.id);
        }
    }
    if done.is_empty() {
        return Ok(0);
    }
    let remove = |m: &mut Manifest| {
        let blocks = std::mem::take(&mut m.blocks);
        m.tombstones
            .retain(|t| !done.contains(&t.id) || blocks.iter().any(|b| t.masks(b)));
        m.blocks = blocks;
        Ok(())
    };
    manifests.commit(&manifest.tenant, writer, remove).await?;
    tracing::info!(tenant = %manifest.tenant, deletions = done.len(), "deletions are complete");
    Ok(done.len())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use koios_model::{Matchers, TimeRange};

    use super::*;

    fn block(range: (i64, i64), clean_up_to: u64) -> ManifestBlock {
        let range = TimeRange::new(range.0, range.1);
        ManifestBlock {
            block: BlockId::new(1, 1),
            partitions: Vec::new(),
            epoch: 0,
            range,
            window: range,
            resolution_ms: 0,
            level: 0,
            split: (0, 1),
            series: 1,
            samples: 1,
            covers: BTreeMap::new(),
            windows: Vec::new(),
            sources: Vec::new(),
            clean_up_to,
            lacks: Vec::new(),
            parts: Vec::new(),
        }
    }

    fn manifest(tombstones: &[(u64, (i64, i64), TombstoneState)]) -> Manifest {
        let tombstone = |(version, (min, max), state): &(u64, (i64, i64), TombstoneState)| Tombstone {
            version: *version,
            state: *state,
            ..Tombstone::new(
                Nonce(u128::from(*version)),
                &Matchers::default(),
                TimeRange::new(*min, *max),
            )
        };
        let mut manifest = Manifest::empty(TenantId::anonymous());
        manifest.version = 20;
        manifest.tombstones = tombstones.iter().map(tombstone).collect();
        manifest
    }

    #[test]
    fn i10_a_block_is_written_again_only_if_that_rids_it_of_a_deletion() {
        use TombstoneState::{Final, Masked};
        let both = (0, 30);
        for (tombstones, expected) in [
            (vec![(10, both, Final)], true),
            (vec![(10, both, Masked)], false),
            (vec![(10, both, Final), (11, both, Masked)], true),
            // The clock of who asked for the later one was ahead.
            (vec![(10, both, Masked), (11, both, Final)], false),
        ] {
            let found = can_be_cleaned(&manifest(&tombstones), &block((0, 10), 3));
            assert_eq!(found, expected, "{tombstones:?}");
        }
    }

    #[test]
    fn i10_blocks_are_merged_only_when_one_version_tells_what_masks_them() {
        use TombstoneState::{Final, Masked, Undone};
        let (early, late) = (block((0, 10), 3), block((20, 30), 12));
        let both = (0, 30);
        for (tombstones, expected) in [
            (vec![], Some(20)),
            // Masks both, one that it overlaps alone, or none.
            (vec![(15, both, Masked)], Some(14)),
            (vec![(10, (0, 5), Masked)], Some(9)),
            (vec![(2, both, Masked)], Some(20)),
            // Masks one and not the other.
            (vec![(10, both, Masked)], None),
            (vec![(10, both, Undone)], Some(20)),
            // Is applied.
            (vec![(10, both, Final)], Some(20)),
            // What is masked by one must not be masked by another that it is clean of.
            (vec![(10, (0, 5), Masked), (11, (20, 30), Masked)], None),
            (vec![(10, (0, 5), Masked), (11, (20, 30), Final)], None),
            (vec![(10, (0, 5), Masked), (9, (20, 30), Final)], Some(9)),
        ] {
            let found = clean_up_to(&manifest(&tombstones), &[early.clone(), late.clone()]);
            assert_eq!(found, expected, "{tombstones:?}");
        }
    }
}
