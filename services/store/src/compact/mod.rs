//! Compaction: merges a tenant's blocks into fewer and larger ones, and removes what nobody needs any more.
//!
//! **Data flow.** A [`Compactor`] visits the tenants that it is on duty for. *Plan* (pure) reads the manifest and says which
//! blocks to merge; *job* streams them through the merge into new blocks, verifies and uploads these, and lists them in place of
//! the old ones in one commit; *downsample* lists blocks of summaries beside those of old windows; *cleanup* takes blocks past the retention off the list, deletes bytes of dead blocks after a grace, and
//! buries uploads that were never listed; *retention* says what is past it, and takes series out of blocks that others stay in.
//!
//! **Invariants.** The output is the input less what is deleted, as a map (series, timestamp) -> winner (I10). A commit that finds a source
//! gone does nothing, so that two processes at once waste work and nothing else; duty is only there to avoid that (I14). A merge
//! begins again from nothing after any crash. What a merge holds in memory does not grow with the size of its inputs: of
//! each a little is read ahead, and the blocks it writes are split where they would grow beyond a bound. A block that is damaged or cannot be read is left alone and reported, the rest goes on (I11).
//!
//! **Failure behaviour.** Everything is tried again at the next visit. A dead name is never listed again, whatever was on its way.

mod announced;
mod aside;
mod cleanup;
mod deletions;
mod downsample;
mod downsample_plan;
mod error;
mod job;
mod metrics;
mod plan;
mod retention;
mod settings;
mod standing;
mod untouched;

#[cfg(test)]
mod compact_test;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, StreamExt};
use koios_block::BlockId;
use koios_bucket::{Manifest, ManifestBlock, RetentionPolicy, TenantManifests, Writer};
use koios_model::TenantId;
use koios_runtime::{Runtime, with_sources};
use koios_server::Metrics;
use koios_tenancy::Overrides;

pub use deletions::{Announced, DeletionWitness};
use downsample_plan::{DownsampleJob, downsampling_due_since_ms, due_downsamplings};
use error::CompactError;
use job::Merger;
use metrics::{CompactionMetrics, Standing};
use plan::{MergeJob, due_merges, due_since_ms};
use retention::{Aged, RetentionMetrics, TrustedClock, configured, due_expiries};
pub use settings::{CompactionSettings, Downsampling};
use standing::TenantStanding;

/// Merges of one tenant before others have their turn.
const MERGES_PER_VISIT: usize = 4;
/// How many visits of all tenants make do with one list of them.
const VISITS_PER_LISTING: u32 = 5;
/// How often uploads that were never listed are looked for.
const ORPHANS_EVERY: Duration = Duration::from_secs(6 * 3600);
/// How long after a search for them that failed.
const ORPHANS_AGAIN: Duration = Duration::from_secs(1800);
/// How often it is looked whether deletions are complete.
const DELETIONS_EVERY: Duration = Duration::from_secs(300);
/// How often tenants of other processes are looked at.
const WATCHED_EVERY: Duration = Duration::from_secs(600);
/// How old what is told of a tenant may be while others are visited.
const STANDS_FOR: Duration = Duration::from_secs(300);
/// How often it is looked for what is older.
const TOLD_EVERY: Duration = Duration::from_secs(30);
/// Manifests that are looked up at a time: of a thousand tenants, one after the other, it would take half a minute.
const PROBED_AT_ONCE: usize = 32;

/// Who compacts which tenant.
#[async_trait]
pub trait CompactionDuty: Send + Sync + Debug + 'static {
    /// The epoch under which this process compacts a tenant; `None` when another one does. `overdue` says that something has been
    /// due for long that nobody did.
    async fn epoch(&self, tenant: &TenantId, overdue: bool) -> Option<u64>;
}

/// Everything compaction needs from outside.
#[derive(Clone, Debug)]
pub struct CompactionDeps {
    /// Clock, randomness, CPU and memory.
    pub runtime: Runtime,
    /// This process' name, for manifests.
    pub member: String,
    /// Manifests and blocks.
    pub manifests: TenantManifests,
    /// Who compacts which tenant.
    pub duty: Arc<dyn CompactionDuty>,
    /// Tells when deletions are complete, and of versions that the bucket may have lost.
    pub witness: Arc<dyn DeletionWitness>,
    /// What tenants have of their own: retentions, rules, and when they are downsampled.
    pub overrides: Overrides,
    /// Where metrics go.
    pub metrics: Metrics,
}

/// Compacts the tenants that it is on duty for.
#[derive(Debug)]
pub struct Compactor {
    deps: CompactionDeps,
    settings: CompactionSettings,
    merger: Merger,
    metrics: CompactionMetrics,
    retention: RetentionMetrics,
    trusted: TrustedClock,
    tenants: BTreeMap<TenantId, TenantStanding>,
    /// When the bucket was last asked for its tenants.
    listed_at: Option<Duration>,
    /// When it was last looked of which tenants it was not told for a while how they stand.
    told_at: Option<Duration>,
}

impl Compactor {
    /// A compactor that has not begun.
    pub fn new(settings: CompactionSettings, deps: CompactionDeps) -> Self {
        let runtime = &deps.runtime;
        let cpu = runtime.cpu.separate("koios-compact", 1).unwrap_or_else(|error| {
            tracing::warn!(%error, "no thread of its own for compaction; sharing");
            runtime.cpu.clone()
        });
        let merger = Merger {
            manifests: deps.manifests.clone(),
            settings: settings.clone(),
            clock: Arc::clone(&runtime.clock),
            rng: runtime.rng.fork(),
            cpu,
        };
        let (clock, bucket) = (Arc::clone(&runtime.clock), deps.manifests.bucket().clone());
        Self {
            metrics: CompactionMetrics::new(&deps.metrics),
            retention: RetentionMetrics::new(&deps.metrics),
            trusted: TrustedClock::new(clock, bucket, deps.member.clone()),
            merger,
            settings,
            deps,
            tenants: BTreeMap::new(),
            listed_at: None,
            told_at: None,
        }
    }

    /// Visits all tenants, for ever.
    pub async fn run(mut self) {
        let clock = Arc::clone(&self.deps.runtime.clock);
        loop {
            if !self.visit_all().await {
                clock.sleep(self.settings.interval).await;
            }
        }
    }

    /// Visits every tenant once; whether there is more to do at once.
    pub async fn visit_all(&mut self) -> bool {
        if let Err(error) = self.learn_tenants().await {
            tracing::warn!(%error, "tenants cannot be listed, trying again");
        }
        let mut more = false;
        for tenant in self.tenants.keys().cloned().collect::<Vec<_>>() {
            self.tell_standings().await;
            let runtime = &self.deps.runtime;
            if let Err(short) = runtime.memory.check(runtime.clock.elapsed()) {
                tracing::info!(%short, "nothing is compacted meanwhile");
                return false;
            }
            match self.visit(&tenant).await {
                Ok(left) => more |= left,
                Err(error) => {
                    self.metrics.failures.inc();
                    let is_lost = error.is_lost();
                    let error = with_sources(&error);
                    if is_lost {
                        self.metrics.manifest_lost(&tenant, true);
                        tracing::error!(%tenant, error, "the manifest lost versions: nothing of the tenant is compacted or deleted until it is repaired");
                    } else {
                        tracing::warn!(%tenant, error, "compaction failed, trying again");
                    }
                }
            }
        }
        more
    }

    /// Tells how tenants stand of which that was not told for a while, because the process has just started or others take long.
    async fn tell_standings(&mut self) {
        let clock = Arc::clone(&self.deps.runtime.clock);
        let now = clock.elapsed();
        if self.told_at.is_some_and(|at| now.saturating_sub(at) < TOLD_EVERY) {
            return;
        }
        self.told_at = Some(now);
        let is_old = |known: &TenantStanding| {
            known
                .stood_at
                .is_none_or(|at| now.saturating_sub(at) >= STANDS_FOR)
        };
        let old = self.tenants.iter().filter(|(_, known)| is_old(known));
        let mut on_duty = Vec::new();
        for tenant in old.map(|(tenant, _)| tenant.clone()).collect::<Vec<_>>() {
            match self.deps.duty.epoch(&tenant, false).await {
                Some(_) => on_duty.push(tenant),
                None => self.tenants.entry(tenant).or_default().stood_at = Some(clock.elapsed()),
            }
        }
        let manifests = self.deps.manifests.clone();
        let probes = on_duty.into_iter().map(move |tenant| {
            let manifests = manifests.clone();
            async move { (manifests.probe(&tenant).await, tenant) }
        });
        let mut probes = stream::iter(probes).buffered(PROBED_AT_ONCE);
        while let Some((probed, tenant)) = probes.next().await {
            self.tenants.entry(tenant.clone()).or_default().stood_at = Some(clock.elapsed());
            // Its visit tells. Of a bucket that is gone the next one would not be known either.
            let Ok(manifest) = probed else { return };
            let told = configured(&tenant, &self.settings, &self.deps.overrides);
            let (_, standing) = self.stand(&manifest, &told);
            self.metrics.stands(&tenant, &standing);
        }
    }

    async fn learn_tenants(&mut self) -> Result<(), CompactError> {
        let now = self.deps.runtime.clock.elapsed();
        let fresh_for = self.settings.interval.saturating_mul(VISITS_PER_LISTING);
        let fresh = |at| now.saturating_sub(at) < fresh_for;
        if self.listed_at.is_some_and(fresh) {
            return Ok(());
        }
        let listed = self.deps.manifests.bucket().tenants().await?;
        self.listed_at = Some(now);
        let listed: BTreeSet<TenantId> = listed.into_iter().collect();
        let gone: Vec<_> = self
            .tenants
            .keys()
            .filter(|t| !listed.contains(*t))
            .cloned()
            .collect();
        for tenant in gone {
            self.tenants.remove(&tenant);
            self.metrics.forget(&tenant);
            self.retention.forget(&tenant);
        }
        for tenant in listed {
            self.tenants.entry(tenant).or_default();
        }
        Ok(())
    }

    /// Does what is due for a tenant, a few merges at most; whether there is more.
    async fn visit(&mut self, tenant: &TenantId) -> Result<bool, CompactError> {
        let now = self.deps.runtime.clock.elapsed();
        let mut duty = self.deps.duty.epoch(tenant, false).await;
        if duty.is_none() {
            self.metrics.forget(tenant);
            self.retention.forget(tenant);
            let known = self.tenants.entry(tenant.clone()).or_default();
            if known
                .watched_at
                .is_some_and(|at| now.saturating_sub(at) < WATCHED_EVERY)
            {
                return Ok(false);
            }
            known.watched_at = Some(now);
        }
        let told = configured(tenant, &self.settings, &self.deps.overrides);
        let manifest = self.deps.manifests.probe(tenant).await?;
        let (jobs, standing) = self.stand(&manifest, &told);
        if duty.is_none() && self.is_overdue(&jobs, &standing) {
            duty = self.deps.duty.epoch(tenant, true).await;
        }
        let Some(epoch) = duty else {
            return Ok(false);
        };
        self.metrics.stands(tenant, &standing);
        let writer = Writer::compaction(&self.deps.member, epoch);
        // Before anything is committed: to a manifest that lost versions nothing may be.
        if !self.has_heard_members(tenant).await? {
            return Ok(false);
        }
        let orphans = match self.look_for_orphans(tenant).await {
            // What is not in the manifest is then all there is.
            Err(error) if error.is_lost() || manifest.version == 0 => {
                // Nor by any later visit, until a search has found nothing wrong.
                self.tenants.entry(tenant.clone()).or_default().orphans_next = None;
                return Err(error);
            }
            found => self
                .metrics
                .note_left(tenant, "uploads that were never listed are not found", found)
                .flatten(),
        };
        self.metrics.manifest_lost(tenant, false);
        if standing.has_work {
            self.deps.manifests.claim(tenant, &writer).await?;
        }
        if let Some(orphans) = orphans {
            cleanup::bury_orphans(&self.deps.manifests, tenant, &orphans, &writer).await?;
            let known = self.tenants.entry(tenant.clone()).or_default();
            known.orphans_next = Some(now.saturating_add(ORPHANS_EVERY));
        }
        if manifest.version == 0 {
            // Nothing is listed: all that follows would only ask for it again.
            return Ok(false);
        }
        // First, so that nothing is merged that goes, and that merges which fail keep nothing.
        self.clean_up(tenant, &told, &writer).await?;
        // Before merges, so that what has nothing of a deletion is not written again for it.
        let looks = self.note_untouched(tenant, &writer).await?;
        let merges = self.merge_due(tenant, &told, &writer).await?;
        // One a visit, so that a backlog of them keeps no merge waiting. What goes is not summarised first.
        let expiries = self.expire_due(tenant, &told, &writer).await?;
        let downsamplings = self.downsample_due(tenant, &told, &writer).await?;
        let cleanings = self.clean_summaries(tenant, &writer).await?;
        self.forget_deletions(tenant, &writer).await?;
        Ok(looks || merges || downsamplings || cleanings || expiries)
    }

    /// Looks now and then for uploads that were never listed: that lists the tenant's objects.
    async fn look_for_orphans(
        &mut self,
        tenant: &TenantId,
    ) -> Result<Option<Vec<(BlockId, Vec<String>)>>, CompactError> {
        let clock = &self.deps.runtime.clock;
        let known = self.tenants.entry(tenant.clone()).or_default();
        if known.orphans_next.is_some_and(|at| clock.elapsed() < at) {
            return Ok(None);
        }
        known.orphans_next = Some(clock.elapsed().saturating_add(ORPHANS_AGAIN));
        let manifests = &self.deps.manifests;
        let found = cleanup::unlisted(manifests, tenant, clock.now_ms(), &self.settings).await?;
        let blocks = found.unknown.len();
        self.metrics.unknown_blocks(tenant, blocks);
        if blocks > 0 {
            tracing::warn!(%tenant, blocks, "blocks from before the manifest began are not listed: they are kept, see `koios ctl blocks verify`");
        }
        Ok(Some(found.orphans))
    }

    /// The manifest as the visit found it or left it: what others commit meanwhile the next one sees, and commits look for.
    pub(crate) async fn newest(&self, tenant: &TenantId) -> Result<Arc<Manifest>, CompactError> {
        match self.deps.manifests.known(tenant) {
            Some(known) => Ok(known),
            None => Ok(self.deps.manifests.probe(tenant).await?),
        }
    }

    /// Whether what is due first has been for longer than anybody needs who does it.
    fn is_overdue(&self, jobs: &[MergeJob], standing: &Standing) -> bool {
        jobs.first()
            .is_some_and(|job| standing.due_for >= self.settings.patience(job.bytes()))
    }

    /// What is due, and how the tenant stands.
    fn stand(&mut self, manifest: &Manifest, told: &RetentionPolicy) -> (Vec<MergeJob>, Standing) {
        let clock = &self.deps.runtime.clock;
        let (now, now_ms) = (clock.elapsed(), clock.now_ms());
        let settings = self.settings_of(manifest, told);
        let known = self.tenants.entry(manifest.tenant.clone()).or_default();
        known.stood_at = Some(now);
        known.keep_listed(manifest);
        let due = |bad: &BTreeSet<BlockId>| {
            let mut merges = due_merges(manifest, now_ms, &settings, bad);
            merges.extend(deletions::cleanings(manifest, &merges, bad));
            let summaries = due_downsamplings(manifest, now_ms, &settings, bad, &blocks_of(&merges));
            (merges, summaries)
        };
        let (mut jobs, can_be_summarised) = due(&known.bad(now));
        // What is left alone for a while is due all the same, and longer than anything else.
        let (merges, summaries) = due(&known.given_up(now));
        let standing = Standing {
            blocks: manifest.blocks.len(),
            has_work: !jobs.is_empty() || !can_be_summarised.is_empty(),
            due: merges.len(),
            due_downsamplings: summaries.len(),
            due_for: known.note_due(jobs.first(), now),
            oldest_due: oldest(
                merges.iter().map(|job| due_since_ms(manifest, job, &settings)),
                now_ms,
            ),
            oldest_due_downsampling: oldest(
                summaries
                    .iter()
                    .map(|job| downsampling_due_since_ms(job, &settings)),
                now_ms,
            ),
            bad: known.reported(now),
        };
        let paused = known.paused(now);
        jobs.retain(|job| !is_any_of(&paused, &job.inputs));
        (jobs, standing)
    }

    async fn merge_due(
        &mut self,
        tenant: &TenantId,
        told: &RetentionPolicy,
        writer: &Writer,
    ) -> Result<bool, CompactError> {
        for _ in 0..MERGES_PER_VISIT {
            let manifest = self.newest(tenant).await?;
            let (jobs, standing) = self.stand(&manifest, told);
            self.metrics.stands(tenant, &standing);
            let Some(job) = jobs.first() else {
                return Ok(false);
            };
            let aged = Aged::of(&manifest, &job.inputs, &self.settings_of(&manifest, told))?;
            self.merge_one(&manifest, job, &aged, writer).await?;
            self.freed();
        }
        Ok(true)
    }

    /// Downsamples the window that is due first; whether there are more.
    async fn downsample_due(
        &mut self,
        tenant: &TenantId,
        told: &RetentionPolicy,
        writer: &Writer,
    ) -> Result<bool, CompactError> {
        let manifest = self.newest(tenant).await?;
        let clock = Arc::clone(&self.deps.runtime.clock);
        let known = self.tenants.entry(tenant.clone()).or_default();
        let (bad, paused) = (known.bad(clock.elapsed()), known.paused(clock.elapsed()));
        let (now_ms, settings) = (clock.now_ms(), self.settings_of(&manifest, told));
        let mut elsewhere = blocks_of(&due_merges(&manifest, now_ms, &settings, &bad));
        // What series past their retention go from first may be empty then.
        let expiring = due_expiries(&manifest, now_ms, &settings, &bad, &elsewhere);
        elsewhere.extend(expiring.iter().map(|job| job.block.block));
        let mut jobs = due_downsamplings(&manifest, now_ms, &settings, &bad, &elsewhere);
        jobs.retain(|job| !is_any_of(&paused, &job.inputs));
        let Some(job) = jobs.first() else {
            return Ok(false);
        };
        let aged = Aged::of(&manifest, &job.inputs, &settings)?;
        self.downsample_one(&manifest, job, &aged, writer).await?;
        self.freed();
        Ok(jobs.len() > 1)
    }

    async fn downsample_one(
        &mut self,
        manifest: &Manifest,
        job: &DownsampleJob,
        aged: &Aged,
        writer: &Writer,
    ) -> Result<(), CompactError> {
        let clock = Arc::clone(&self.deps.runtime.clock);
        let (tenant, started) = (&manifest.tenant, clock.elapsed());
        let (blocks, bytes, samples) = (job.inputs.len(), job.bytes(), job.samples());
        tracing::info!(%tenant, blocks, bytes, samples, window = ?job.window, resolutions_ms = ?job.resolutions, "downsampling");
        match self.merger.downsample(manifest, job, aged, writer).await {
            Ok(done) => {
                self.note_read(tenant, &job.inputs);
                let took = clock.elapsed().saturating_sub(started);
                self.metrics.downsampled(&done, took);
                let (into, bytes_out) = (done.blocks, done.bytes);
                tracing::info!(%tenant, into, bytes_out, samples = done.samples, ?took, "downsampled");
                if done.blocks == 0 {
                    // All of it was deleted: its blocks go when they are merged, and are not looked at until then.
                    self.note_empty(tenant, &job.inputs);
                }
            }
            Err(error) => self.failed(tenant, (&job.inputs, job.window), error).await?,
        }
        Ok(())
    }

    /// Takes what is deleted out of one block of summaries whose samples are gone; whether there was one.
    async fn clean_summaries(&mut self, tenant: &TenantId, writer: &Writer) -> Result<bool, CompactError> {
        let manifest = self.newest(tenant).await?;
        let now = self.deps.runtime.clock.elapsed();
        let known = self.tenants.entry(tenant.clone()).or_default();
        let mut bad = known.bad(now);
        bad.extend(known.paused(now));
        let Some(block) = deletions::summaries_to_clean(&manifest, &bad) else {
            return Ok(false);
        };
        let aged = Aged::nothing(&manifest, std::slice::from_ref(block));
        match self.merger.clean_summaries(&manifest, block, &aged, writer).await {
            Ok(_) => {
                tracing::info!(%tenant, block = %block.block, "summaries are written again without what is deleted")
            }
            Err(error) => {
                let inputs = std::slice::from_ref(block);
                self.failed(tenant, (inputs, block.window), error).await?;
            }
        }
        Ok(true)
    }

    /// A merge is over, which held a block and what it is made of.
    fn freed(&self) {
        let runtime = &self.deps.runtime;
        runtime.memory.freed(runtime.clock.elapsed());
    }

    async fn merge_one(
        &mut self,
        manifest: &Manifest,
        job: &MergeJob,
        aged: &Aged,
        writer: &Writer,
    ) -> Result<(), CompactError> {
        let clock = Arc::clone(&self.deps.runtime.clock);
        let (tenant, started) = (&manifest.tenant, clock.elapsed());
        let (blocks, bytes, samples) = (job.inputs.len(), job.bytes(), job.samples());
        tracing::info!(%tenant, blocks, bytes, samples, window = ?job.window, "merging blocks");
        let merged = match self.merger.run(manifest, job, aged, writer).await {
            Ok(merged) => merged,
            Err(error) => return self.failed(tenant, (&job.inputs, job.window), error).await,
        };
        self.note_read(tenant, &job.inputs);
        let took = clock.elapsed().saturating_sub(started);
        self.metrics.merged(&merged, took);
        let (into, bytes_out, samples_out) = (merged.blocks, merged.bytes, merged.stats.samples_out);
        tracing::info!(%tenant, blocks, into, bytes, bytes_out, samples, samples_out, ?took, "blocks merged");
        Ok(())
    }

    /// Looks now and then whether deletions are complete: that takes questions to all members.
    async fn forget_deletions(&mut self, tenant: &TenantId, writer: &Writer) -> Result<(), CompactError> {
        let now = self.deps.runtime.clock.elapsed();
        let known = self.tenants.entry(tenant.clone()).or_default();
        let looked = known.deletions_looked_at;
        if looked.is_some_and(|at| now.saturating_sub(at) < DELETIONS_EVERY) {
            return Ok(());
        }
        known.deletions_looked_at = Some(now);
        let manifest = self.deps.manifests.probe(tenant).await?;
        let witness = self.deps.witness.as_ref();
        deletions::forget(&self.deps.manifests, &manifest, witness, writer).await?;
        Ok(())
    }

    async fn clean_up(
        &mut self,
        tenant: &TenantId,
        told: &RetentionPolicy,
        writer: &Writer,
    ) -> Result<(), CompactError> {
        let clock = Arc::clone(&self.deps.runtime.clock);
        let manifest = self.newest(tenant).await?;
        deletions::finalize(
            &self.deps.manifests,
            &manifest,
            clock.now_ms(),
            &self.settings,
            writer,
        )
        .await?;
        let old_as_of = self.trusted.now_ms().await?;
        self.retention.ahead.set(self.trusted.ahead_seconds());
        let manifest = self.newest(tenant).await?;
        self.note_retention(&manifest, told, old_as_of, writer).await?;
        let manifests = &self.deps.manifests;
        let manifest = self.newest(tenant).await?;
        let emptied = deletions::drop_emptied(manifests, &manifest, writer).await?;
        self.metrics.retired.inc_by(emptied as u64);
        let settings = self.settings_of(&manifest, told);
        let known = self.tenants.entry(tenant.clone()).or_default();
        let given_up = known.given_up(clock.elapsed());
        let retired = cleanup::retire(manifests, &manifest, old_as_of, &settings, &given_up, writer).await?;
        self.metrics.retired.inc_by(retired.blocks as u64);
        self.retention.samples.inc_by(retired.samples);
        let manifest = self.newest(tenant).await?;
        let known = self.tenants.entry(tenant.clone()).or_default();
        let now = clock.elapsed();
        // What cannot go now keeps nothing else waiting.
        let deleted =
            cleanup::delete_dead(manifests, &manifest, &mut known.dead, now, &settings, writer).await;
        let deleted = self
            .metrics
            .note_left(tenant, "bytes of dead blocks are not deleted", deleted);
        self.metrics.deleted.inc_by(deleted.unwrap_or(0) as u64);
        let dropped = cleanup::drop_history(manifests, &manifest, &mut known.history_dropped_below).await;
        self.metrics
            .note_left(tenant, "old versions of the manifest are not dropped", dropped);
        Ok(())
    }
}

/// Whether a job has a block among these.
fn is_any_of(these: &BTreeSet<BlockId>, inputs: &[ManifestBlock]) -> bool {
    names(inputs).any(|block| these.contains(&block))
}

fn names(blocks: &[ManifestBlock]) -> impl Iterator<Item = BlockId> {
    blocks.iter().map(|b| b.block)
}

/// For how long what has been due since the first of some times is.
fn oldest(due_since_ms: impl Iterator<Item = i64>, now_ms: i64) -> Duration {
    let age_ms = due_since_ms.min().map_or(0, |since| now_ms.saturating_sub(since));
    Duration::from_millis(u64::try_from(age_ms).unwrap_or(0))
}

/// The blocks that merges read.
fn blocks_of(jobs: &[MergeJob]) -> BTreeSet<BlockId> {
    jobs.iter().flat_map(|j| &j.inputs).map(|b| b.block).collect()
}
