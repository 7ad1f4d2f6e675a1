//! What nobody needs any more goes: samples past the retention, bytes of dead blocks, uploads that were never listed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use koios_block::BlockId;
use koios_bucket::{
    Error as BucketError, Failures, Manifest, ManifestBlock, PutOff, TenantManifests, Unlisted, Writer,
};
use koios_model::TenantId;

use super::CompactionSettings;
use super::downsample_plan::expired;
use super::error::CompactError;
use super::retention::audit_blocks;
use super::settings::millis;

/// Versions of a manifest whose content is kept, for reads that pinned them.
const HISTORY_KEPT: u64 = 128;
/// History is dropped when so many versions more have come.
const HISTORY_SLACK: u64 = 32;

/// What was seen dead, and when first, by this process' own clock: nobody else's clock decides when bytes go.
#[derive(Clone, Debug, Default)]
pub(crate) struct SeenDead {
    since: BTreeMap<BlockId, Duration>,
    /// Those whose bytes could not be deleted just now.
    put_off: PutOff<BlockId>,
}

impl SeenDead {
    /// The dead blocks that have bytes, were seen dead for a grace, and are not put off.
    fn ripe(&mut self, manifest: &Manifest, now: Duration, grace: Duration) -> Vec<(BlockId, Vec<String>)> {
        let with_bytes = || manifest.dead.iter().filter(|d| !d.parts.is_empty());
        let mut seen = BTreeMap::new();
        for dead in with_bytes() {
            let since = self.since.get(&dead.block).copied().unwrap_or(now);
            seen.insert(dead.block, since);
        }
        self.since = seen;
        let is_ripe = |block: &BlockId| {
            let since = self.since.get(block);
            since.is_some_and(|at| now.saturating_sub(*at) >= grace) && !self.put_off.contains(block, now)
        };
        with_bytes()
            .filter(|d| is_ripe(&d.block))
            .map(|d| (d.block, d.parts.clone()))
            .collect()
    }
}

/// What went because of its age.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Retired {
    pub(crate) blocks: usize,
    pub(crate) samples: u64,
}

/// Takes blocks off the list that are older than what is kept. Blocks in `bad` wait for nothing.
pub(crate) async fn retire(
    manifests: &TenantManifests,
    manifest: &Manifest,
    now_ms: i64,
    settings: &CompactionSettings,
    bad: &BTreeSet<BlockId>,
    writer: &Writer,
) -> Result<Retired, CompactError> {
    let found = expired(manifest, now_ms, settings, bad);
    if found.blocks.is_empty() && found.standing_in.is_empty() {
        return Ok(Retired::default());
    }
    let mut gone: Vec<ManifestBlock> = Vec::new();
    let remove = |m: &mut Manifest| {
        // As it is when this is committed: blocks may have come meanwhile.
        let found = expired(m, now_ms, settings, bad);
        m.stand_in(&found.standing_in);
        for block in &found.by_rules {
            m.note_merged(&[*block], &[]);
        }
        gone = m
            .blocks
            .iter()
            .filter(|b| found.blocks.contains(&b.block))
            .cloned()
            .collect();
        for block in &found.blocks {
            m.remove_block(*block);
        }
        Ok(())
    };
    let committed = manifests.commit(&manifest.tenant, writer, remove).await;
    match &committed {
        Ok(_) => audit_blocks(&manifest.tenant, &gone, "done"),
        // If they went nobody would find them any more to tell of them.
        Err(BucketError::Unknown { .. }) => audit_blocks(&manifest.tenant, &gone, "unknown"),
        Err(_) => {}
    }
    committed?;
    Ok(Retired {
        blocks: gone.len(),
        samples: gone.iter().map(|b| b.samples).sum(),
    })
}

/// Deletes the bytes of blocks that have been dead for the grace. Gives how many. A block whose bytes the storage does not delete is put
/// off and keeps no other waiting; where several in a row fail, the rest waits for the next round.
pub(crate) async fn delete_dead(
    manifests: &TenantManifests,
    manifest: &Manifest,
    seen: &mut SeenDead,
    now: Duration,
    settings: &CompactionSettings,
    writer: &Writer,
) -> Result<usize, CompactError> {
    let ripe = seen.ripe(manifest, now, settings.dead_grace);
    if ripe.is_empty() {
        return Ok(0);
    }
    let (mut gone, mut failed) = (BTreeSet::new(), None);
    let mut failures = Failures::default();
    for (block, parts) in &ripe {
        if failures.are_enough() {
            break;
        }
        let bucket = manifests.bucket();
        let deleted = bucket.delete_parts(&manifest.tenant, *block, parts).await;
        failures.note(&deleted);
        match deleted {
            Ok(()) => {
                gone.insert(*block);
            }
            Err(error) => {
                seen.put_off.add(*block, now);
                failed = failed.or(Some(error));
            }
        }
    }
    if !gone.is_empty() {
        // The names stay, so that nobody lists them again.
        let forget = |m: &mut Manifest| {
            for dead in m.dead.iter_mut().filter(|d| gone.contains(&d.block)) {
                dead.parts.clear();
            }
            Ok(())
        };
        manifests.commit(&manifest.tenant, writer, forget).await?;
    }
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(gone.len()),
    }
}

/// The uploads that are old and not listed, unless they tell that the manifest lost versions: then nothing may be committed or deleted.
/// Lists.
pub(crate) async fn unlisted(
    manifests: &TenantManifests,
    tenant: &TenantId,
    now_ms: i64,
    settings: &CompactionSettings,
) -> Result<Unlisted, CompactError> {
    // Listed first: what is uploaded and listed after it is not found, what is listed before the manifest is read is there.
    let uploaded = manifests.bucket().uploaded_blocks(tenant).await?;
    let manifest = manifests.probe(tenant).await?;
    let before = now_ms.saturating_sub(millis(settings.orphan_age));
    Ok(manifests.bucket().unlisted(&manifest, uploaded, before).await?)
}

/// Declares uploads dead that were never listed: whoever made them has ended, or will be refused. Gives how many.
pub(crate) async fn bury_orphans(
    manifests: &TenantManifests,
    tenant: &TenantId,
    orphans: &[(BlockId, Vec<String>)],
    writer: &Writer,
) -> Result<usize, CompactError> {
    if orphans.is_empty() {
        return Ok(0);
    }
    let bury = |m: &mut Manifest| {
        for (block, parts) in orphans {
            if m.block(*block).is_none() {
                m.bury(*block, parts.clone());
            }
        }
        Ok(())
    };
    manifests.commit(tenant, writer, bury).await?;
    tracing::info!(%tenant, blocks = orphans.len(), "uploads that were never listed are deleted");
    Ok(orphans.len())
}

/// Drops the content of old manifest versions.
pub(crate) async fn drop_history(
    manifests: &TenantManifests,
    manifest: &Manifest,
    dropped_below: &mut u64,
) -> Result<(), CompactError> {
    let keep_from = manifest.version.saturating_sub(HISTORY_KEPT);
    if keep_from < dropped_below.saturating_add(HISTORY_SLACK) {
        return Ok(());
    }
    manifests
        .bucket()
        .drop_history(&manifest.tenant, keep_from)
        .await?;
    *dropped_below = keep_from;
    Ok(())
}
