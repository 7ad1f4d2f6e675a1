//! Blocks that a final deletion masks and that have nothing of what it deletes, as most have of a deletion without times: the
//! manifest says so then, and they are not written again. Until it does, every question about labels looks for what they have left.

use std::slice;

use futures::TryStreamExt as _;
use koios_block::BlockId;
use koios_bucket::{Manifest, ManifestBlock, TombstoneState, Writer};
use koios_model::TenantId;

use super::deletions::{can_be_cleaned, clean_up_to};
use super::error::CompactError;
use super::job::Merger;
use super::{Compactor, deletions};

/// Blocks that are looked through in a visit, so that merges wait for no more.
const LOOKS_PER_VISIT: usize = 64;

/// The last deletion that masks a block and is final.
fn last_final(manifest: &Manifest, block: &ManifestBlock) -> u64 {
    let finals = manifest
        .masking(block)
        .filter(|t| t.state == TombstoneState::Final);
    finals.map(|t| t.version).max().unwrap_or(0)
}

impl Compactor {
    /// Looks blocks through that final deletions mask, and has those that have nothing of it listed as clean; whether there are more to
    /// look through.
    pub(super) async fn note_untouched(
        &mut self,
        tenant: &TenantId,
        writer: &Writer,
    ) -> Result<bool, CompactError> {
        let manifest = self.newest(tenant).await?;
        let now = self.deps.runtime.clock.elapsed();
        let known = self.tenants.entry(tenant.clone()).or_default();
        let mut bad = known.bad(now);
        bad.extend(known.paused(now));
        let is_new = |b: &&ManifestBlock| {
            let seen = known.touched.get(&b.block);
            seen.is_none_or(|seen| *seen < last_final(&manifest, b))
        };
        let mut blocks = manifest.blocks.iter();
        let masked = blocks
            .by_ref()
            .filter(|b| !bad.contains(&b.block) && can_be_cleaned(&manifest, b))
            .filter(is_new);
        let looked: Vec<&ManifestBlock> = masked.take(LOOKS_PER_VISIT).collect();
        let is_all = blocks.next().is_none();
        let mut clean: Vec<(BlockId, u64)> = Vec::new();
        for block in looked {
            let Some(up_to) = clean_up_to(&manifest, slice::from_ref(block)) else {
                continue;
            };
            match self.merger.is_touched(&manifest, block).await {
                Ok(false) => clean.push((block.block, up_to)),
                Ok(true) => {
                    let known = self.tenants.entry(tenant.clone()).or_default();
                    known.touched.insert(block.block, last_final(&manifest, block));
                }
                Err(error) => {
                    self.failed(tenant, (slice::from_ref(block), block.window), error)
                        .await?;
                }
            }
        }
        if !clean.is_empty() {
            let note = |m: &mut Manifest| {
                clean
                    .iter()
                    .for_each(|(block, up_to)| m.note_clean(*block, *up_to));
                Ok(())
            };
            self.deps.manifests.commit(tenant, writer, note).await?;
            tracing::info!(%tenant, blocks = clean.len(), "blocks have nothing of what was deleted and stay as they are");
        }
        Ok(!is_all)
    }
}

impl Merger {
    /// Whether a block may have something of what final deletions delete: series that match, or exemplars of such.
    async fn is_touched(&self, manifest: &Manifest, block: &ManifestBlock) -> Result<bool, CompactError> {
        let deletions = deletions::applied(manifest, block)?;
        // All series match: nothing needs to be read to know.
        if deletions.iter().any(|d| d.matchers.0.is_empty()) {
            return Ok(true);
        }
        for input in self.open(manifest, slice::from_ref(block)).await? {
            for deletion in &deletions {
                let (matchers, range) = (&deletion.matchers, deletion.range);
                let mut series = input.block.series_cursor(matchers.clone(), range);
                while let Some(found) = series.next(1).await? {
                    if !found.is_empty() {
                        return Ok(true);
                    }
                }
                let mut exemplars = input.block.scan_exemplars(matchers.clone(), range);
                while let Some(found) = exemplars.try_next().await? {
                    if !found.is_empty() {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    }
}
