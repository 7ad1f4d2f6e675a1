//! Which blocks a tenant has: manifests, pinned per read.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use koios_model::{BatchSet, Expiry, PartitionId, TenantId, TimeRange};
use koios_promql::QueryError;
use koios_runtime::ClockHandle;
use koios_wire::ServiceError;
use parking_lot::Mutex;

/// A manifest this young is not looked up again.
const FRESH: Duration = Duration::from_secs(10);
/// How long a look-up may take where the manifest only may tell more than the heads do.
const OPTIONAL_WAIT: Duration = Duration::from_secs(1);
/// Most tenants whose manifest is kept.
const TENANTS_MAX: usize = 10_000;

/// A block as a manifest lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedBlock {
    /// Its name.
    pub id: String,
    /// First and last sample time.
    pub range: TimeRange,
    /// The window it was cut or merged for.
    pub window: TimeRange,
    /// The partitions whose samples it holds.
    pub partitions: Vec<PartitionId>,
    /// The batches whose samples it holds, per partition.
    pub covers: BTreeMap<PartitionId, BatchSet>,
    /// Of a downsampled block what it summarises; `None` for one with samples as sent.
    pub summarised: Option<Summarised>,
}

/// What a downsampled block summarises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summarised {
    /// How much time a summary is of, milliseconds.
    pub resolution_ms: i64,
    /// The live blocks with the samples; none when these are no longer kept.
    pub sources: Vec<String>,
    /// Whether it says something else than its sources do by now.
    pub outdated: bool,
}

/// One version of a tenant's manifest.
#[derive(Clone, Debug, Default)]
pub struct ManifestView {
    /// The version; 0 when the tenant has no manifest.
    pub version: u64,
    /// What is too old to be answered: stores leave it out of blocks, and this process out of what heads still have.
    pub expiry: Expiry,
    /// The blocks.
    pub blocks: Vec<ListedBlock>,
}

impl ManifestView {
    /// What is too old of a range.
    pub(crate) fn expiry_in(&self, range: TimeRange) -> Expiry {
        let expiry = Some(&self.expiry).filter(|e| e.reaches(range));
        expiry.cloned().unwrap_or_default()
    }
}

/// The version that the selectors of one query are read as of, from the first that needed one. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct QueryPin(Arc<OnceLock<Arc<ManifestView>>>);

impl QueryPin {
    /// The pinned version, if heads do not ask for a later one.
    pub(crate) fn at_least(&self, floor: u64) -> Option<Arc<ManifestView>> {
        self.0.get().filter(|view| view.version >= floor).cloned()
    }

    /// Pins a version, unless another one is.
    pub(crate) fn set(&self, view: &Arc<ManifestView>) {
        // Selectors may be read at once: the first wins.
        let _ = self.0.set(Arc::clone(view));
    }
}

/// Where manifests come from.
#[async_trait]
pub trait Manifests: Send + Sync + Debug + 'static {
    /// The latest manifest of a tenant; version 0 when there is none.
    ///
    /// # Errors
    /// `Unavailable` when the bucket is, `Corruption` when the manifest is damaged.
    async fn latest(&self, tenant: &TenantId) -> Result<Arc<ManifestView>, ServiceError>;
}

#[derive(Clone, Debug)]
struct Entry {
    view: Option<Arc<ManifestView>>,
    asked_at: Duration,
    /// When there was an answer: only that makes the view fresh for those who need one.
    answered_at: Option<Duration>,
}

/// The manifests of recent reads.
#[derive(Debug)]
pub(crate) struct ManifestCache {
    source: Arc<dyn Manifests>,
    clock: ClockHandle,
    /// As [`FRESH`], where the manifest only may tell more than the heads do.
    fresh_optional: Duration,
    entries: Mutex<BTreeMap<TenantId, Entry>>,
}

impl ManifestCache {
    pub(crate) fn new(source: Arc<dyn Manifests>, clock: ClockHandle, fresh_optional: Duration) -> Self {
        Self {
            source,
            clock,
            fresh_optional,
            entries: Mutex::default(),
        }
    }

    /// A manifest of version `floor` or later, as late as can be had.
    pub(crate) async fn pin(&self, tenant: &TenantId, floor: u64) -> Result<Arc<ManifestView>, QueryError> {
        let cached = self.cached(tenant, FRESH.min(self.fresh_optional), |entry| entry.answered_at);
        if let Some((Some(view), true)) = &cached
            && view.version >= floor
        {
            return Ok(Arc::clone(view));
        }
        let (view, why) = match self.source.latest(tenant).await {
            Ok(view) => {
                let view = self.store(tenant, Some(view)).unwrap_or_default();
                let why = format!(
                    "the latest is {}; if that stays so, versions are lost: bring them back, or end all processes of the cluster and run \
                     `koios ctl manifest rebuild --at-least-version {floor}`",
                    view.version
                );
                (Some(view), why)
            }
            Err(e) => (cached.and_then(|(view, _)| view), e.to_string()),
        };
        view.filter(|view| view.version >= floor).ok_or_else(|| {
            QueryError::unavailable(format!(
                "blocks cannot be read: manifest version {floor} or later is needed: {why}"
            ))
        })
    }

    /// A manifest if one can be had quickly: for reads that the heads say they can answer alone.
    pub(crate) async fn recent(&self, tenant: &TenantId) -> Option<Arc<ManifestView>> {
        let cached = self.cached(tenant, self.fresh_optional, |entry| Some(entry.asked_at));
        if let Some((view, true)) = cached {
            return view;
        }
        match self
            .clock
            .timeout(OPTIONAL_WAIT, self.source.latest(tenant))
            .await
        {
            Ok(Ok(view)) => self.store(tenant, Some(view)),
            failed => {
                tracing::debug!(%tenant, ?failed, "manifest not looked up");
                self.store(tenant, None)
            }
        }
    }

    /// Forgets what is known of a tenant, because a block of it is gone.
    pub(crate) fn forget(&self, tenant: &TenantId) {
        self.entries.lock().remove(tenant);
    }

    /// What is known, and whether it is of less than `fresh` ago.
    fn cached(
        &self,
        tenant: &TenantId,
        fresh: Duration,
        of: impl Fn(&Entry) -> Option<Duration>,
    ) -> Option<(Option<Arc<ManifestView>>, bool)> {
        let entries = self.entries.lock();
        let entry = entries.get(tenant)?;
        let now = self.clock.elapsed();
        let is_fresh = of(entry).is_some_and(|at| now.saturating_sub(at) < fresh);
        Some((entry.view.clone(), is_fresh))
    }

    /// Keeps the later of what is known and `view`, and returns it.
    fn store(&self, tenant: &TenantId, view: Option<Arc<ManifestView>>) -> Option<Arc<ManifestView>> {
        let mut entries = self.entries.lock();
        if entries.len() >= TENANTS_MAX && !entries.contains_key(tenant) {
            entries.pop_first();
        }
        let asked_at = self.clock.elapsed();
        let entry = entries.entry(tenant.clone()).or_insert(Entry {
            view: None,
            asked_at,
            answered_at: None,
        });
        entry.asked_at = asked_at;
        if view.is_some() {
            entry.answered_at = Some(asked_at);
        }
        if let Some(view) = view
            && entry.view.as_ref().is_none_or(|v| v.version <= view.version)
        {
            entry.view = Some(view);
        }
        entry.view.clone()
    }
}

#[cfg(test)]
mod tests {
    use koios_runtime::TokioClock;

    use super::super::mock::MockManifests;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn i4_only_an_answer_makes_a_manifest_fresh() {
        let source = Arc::new(MockManifests::default());
        let clock = Arc::new(TokioClock::starting_at(0));
        let cache = ManifestCache::new(Arc::<MockManifests>::clone(&source), clock, FRESH);
        let tenant = TenantId::anonymous();
        source.view.lock().version = 1;
        assert_eq!(cache.pin(&tenant, 0).await.unwrap().version, 1);
        // When it was looked up since, in vain.
        tokio::time::advance(FRESH).await;
        *source.down.lock() = true;
        assert_eq!(cache.recent(&tenant).await.unwrap().version, 1);
        *source.down.lock() = false;
        source.view.lock().version = 2;
        // Then who needs one looks it up again, and who may do without does not.
        assert_eq!(cache.recent(&tenant).await.unwrap().version, 1);
        assert_eq!(cache.pin(&tenant, 0).await.unwrap().version, 2);
        assert_eq!(cache.recent(&tenant).await.unwrap().version, 2);
        // And what was answered is not looked up again.
        source.view.lock().version = 3;
        assert_eq!(cache.pin(&tenant, 0).await.unwrap().version, 2);
    }
}
