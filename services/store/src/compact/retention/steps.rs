//! What a visit of a tenant does about its retention.

use std::sync::Arc;

use koios_bucket::{Manifest, ManifestBlock, RetentionPolicy, Writer};
use koios_model::TenantId;

use super::audit::audit_series;
use super::horizon::Horizon;
use super::note;
use super::plan::due_expiries;
use super::policy::in_force;
use crate::compact::downsample_plan::{SplitJob, expired};
use crate::compact::error::CompactError;
use crate::compact::plan::due_merges;
use crate::compact::{CompactionSettings, Compactor, blocks_of};

impl Compactor {
    /// How a tenant is compacted: what the settings say of it, but for what is held against them.
    ///
    /// `told` is from the beginning of the visit: what is told while it lasts is for the next one, which notes it first.
    pub(crate) fn settings_of(&self, manifest: &Manifest, told: &RetentionPolicy) -> CompactionSettings {
        let (policy, _) = in_force(told, manifest.retention.as_ref());
        self.settings.clone().obeying(policy)
    }

    /// Notes how long what is kept, and as of when it is carried out.
    pub(crate) async fn note_retention(
        &mut self,
        manifest: &Manifest,
        told: &RetentionPolicy,
        now_ms: i64,
        writer: &Writer,
    ) -> Result<(), CompactError> {
        let tenant = &manifest.tenant;
        let (policy, held) = in_force(told, manifest.retention.as_ref());
        let is_held = !held.is_empty();
        let known = self.tenants.entry(tenant.clone()).or_default();
        if is_held && !std::mem::replace(&mut known.is_held, true) {
            tracing::warn!(%tenant, keys = ?held, "the settings do not say any more what was said of these: nothing goes earlier than that; \
                say them for the tenant in `overrides` to change that, `retention-rules: []` for no rules");
        }
        known.is_held &= is_held;
        note(&self.deps.manifests, manifest, &policy, now_ms, writer).await?;
        Ok(())
    }

    /// Takes series past their retention out of one window or block that others stay in; whether there was
    /// one.
    pub(crate) async fn expire_due(
        &mut self,
        tenant: &TenantId,
        told: &RetentionPolicy,
        writer: &Writer,
    ) -> Result<bool, CompactError> {
        let manifest = self.newest(tenant).await?;
        let clock = Arc::clone(&self.deps.runtime.clock);
        let (now_ms, settings) = (self.trusted.now_ms().await?, self.settings_of(&manifest, told));
        let known = self.tenants.entry(tenant.clone()).or_default();
        let (bad, is_held) = (known.bad(clock.elapsed()), known.is_held);
        let paused = known.paused(clock.elapsed());
        let merging = blocks_of(&due_merges(&manifest, clock.now_ms(), &settings, &bad));
        let splits = expired(&manifest, now_ms, &settings, &bad).splits;
        let is_taken = |b: &ManifestBlock| merging.contains(&b.block) || paused.contains(&b.block);
        let is_free = |s: &&SplitJob| !s.blocks().any(is_taken);
        let splits: Vec<_> = splits.iter().filter(is_free).collect();
        let mut jobs = due_expiries(&manifest, now_ms, &settings, &bad, &merging);
        jobs.retain(|job| !paused.contains(&job.block.block));
        self.retention.stands(tenant, is_held, splits.len() + jobs.len());
        let horizon = Horizon::of(&manifest, now_ms, &settings);
        let (done, inputs, window) = if let Some(split) = splits.first() {
            let done = Box::pin(self.merger.split(&manifest, split, &horizon, writer)).await;
            (done, split.blocks().cloned().collect::<Vec<_>>(), split.window)
        } else if let Some(job) = jobs.first() {
            let done = Box::pin(self.merger.expire(&manifest, job, writer)).await;
            (done, vec![job.block.clone()], job.block.window)
        } else {
            return Ok(false);
        };
        self.retention.looked_through.inc_by(inputs.len() as u64);
        if done.is_ok() {
            self.note_read(tenant, &inputs);
        }
        match done {
            Ok(None) => {}
            Ok(Some(removed)) => {
                self.retention.rewrites.inc_by(inputs.len() as u64);
                self.retention.samples.inc_by(removed.samples);
                audit_series(tenant, &removed);
            }
            Err(error) => self.failed(tenant, (&inputs, window), error).await?,
        }
        // What it became may be summarised by itself, or go.
        Ok(true)
    }
}
