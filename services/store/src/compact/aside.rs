//! What becomes of jobs that fail: which of their blocks are left alone, so that the rest goes on.

use koios_block::BlockId;
use koios_bucket::ManifestBlock;
use koios_model::{TenantId, TimeRange};
use koios_runtime::with_sources;

use super::error::CompactError;
use super::{Compactor, names};

impl Compactor {
    /// What becomes of a job that failed: an error if it is tried again as it is, else some of its blocks are left alone and the
    /// rest goes on.
    pub(super) async fn failed(
        &mut self,
        tenant: &TenantId,
        (inputs, window): (&[ManifestBlock], TimeRange),
        error: CompactError,
    ) -> Result<(), CompactError> {
        if error.is_stored_otherwise() {
            self.metrics.failures.inc();
            let now = self.deps.runtime.clock.elapsed();
            let known = self.tenants.entry(tenant.clone()).or_default();
            let wait = known.note_stored_otherwise(names(inputs), now);
            let error = with_sources(&error);
            tracing::error!(%tenant, ?window, ?wait, error, "a new block is not stored as it was sent: what it was made of stays, trying again in a while");
            return Ok(());
        }
        if !error.is_transient() || error.bad_block().is_some() {
            self.put_aside(tenant, (inputs, window), &error);
            return Ok(());
        }
        let is_input = |block: &BlockId| inputs.iter().any(|b| b.block == *block);
        let Some(block) = error.unread_block().filter(is_input) else {
            return Err(error);
        };
        // Of a bucket that answers nothing a block says nothing.
        if self.deps.manifests.bucket().latest(tenant).await.is_err() {
            return Err(error);
        }
        self.metrics.failures.inc();
        let now = self.deps.runtime.clock.elapsed();
        let known = self.tenants.entry(tenant.clone()).or_default();
        let is_it = known.note_unread(block, names(inputs), now);
        let error = with_sources(&error);
        match is_it {
            true => {
                tracing::error!(%tenant, %block, error, "a block cannot be read and the bucket answers else: it is left alone for an hour, and its neighbours are merged without it");
            }
            false => {
                tracing::warn!(%tenant, %block, ?window, error, "a block cannot be read, trying again in a while");
            }
        }
        Ok(())
    }

    /// Leaves a block alone that is damaged, or all of a job that fails for another reason; the rest goes on.
    fn put_aside(
        &mut self,
        tenant: &TenantId,
        (inputs, window): (&[ManifestBlock], TimeRange),
        error: &CompactError,
    ) {
        self.metrics.failures.inc();
        let is_input = |block: &BlockId| inputs.iter().any(|b| b.block == *block);
        let bad = error.bad_block().filter(is_input);
        let now = self.deps.runtime.clock.elapsed();
        let known = self.tenants.entry(tenant.clone()).or_default();
        match bad {
            Some(block) if error.is_damage() => known.note_damaged(block, now),
            Some(block) => known.note_failed([block], now),
            None => known.note_failed(names(inputs), now),
        }
        let error = with_sources(error);
        match bad {
            Some(block) => {
                tracing::error!(%tenant, %block, error, "a block is damaged or of a newer version: it is left alone for some hours, and its neighbours are merged without it");
            }
            None => {
                tracing::error!(%tenant, ?window, error, "blocks cannot be merged or downsampled: they are left alone for some hours");
            }
        }
    }

    /// Leaves blocks alone of which all is deleted.
    pub(super) fn note_empty(&mut self, tenant: &TenantId, inputs: &[ManifestBlock]) {
        let now = self.deps.runtime.clock.elapsed();
        let known = self.tenants.entry(tenant.clone()).or_default();
        known.note_empty(names(inputs), now);
    }

    /// Notes that the blocks of a job could be read.
    pub(super) fn note_read(&mut self, tenant: &TenantId, inputs: &[ManifestBlock]) {
        let known = self.tenants.entry(tenant.clone()).or_default();
        known.note_read(names(inputs));
    }
}
