//! Which blocks a tenant has: manifests, pinned per read.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use koios_model::{BatchSet, Expiry, PartitionId, TenantId, TimeRange};
use koios_promql::{Completeness, QueryError};
use koios_runtime::ClockHandle;
use koios_wire::{ServiceError, ServiceErrorCode};
use parking_lot::Mutex;

/// A manifest this young is not looked up again.
const FRESH: Duration = Duration::from_secs(10);
/// How long a look-up may take where the manifest only may tell more than the heads do, and an older one is known.
const OPTIONAL_WAIT: Duration = Duration::from_secs(1);
/// The same where none is known: it takes several requests in a row, and an answer without it is incomplete.
const FIRST_WAIT: Duration = Duration::from_secs(3);
/// How long a look-up that failed is not tried again where no manifest is known.
const FAILED_FOR: Duration = Duration::from_secs(1);
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
    /// The latest manifest of a tenant; version 0 when there is none. The one that is `known` where it still is the latest.
    ///
    /// # Errors
    /// `Unavailable` when the bucket is, `Corruption` when the manifest is damaged.
    async fn latest(
        &self,
        tenant: &TenantId,
        known: Option<&Arc<ManifestView>>,
    ) -> Result<Arc<ManifestView>, ServiceError>;
}

/// Why a read has no manifest of a tenant.
#[derive(Clone, Debug)]
pub(crate) enum NoManifest {
    /// None is known, and the bucket does not tell.
    Unknown(UnknownManifest),
    /// What the bucket tells is wrong, or versions are gone. That is an error, whatever was known before: waiting does not help, and
    /// whoever can mend it has to hear of it.
    Damaged(QueryError),
}

impl NoManifest {
    fn unknown(tenant: &TenantId, why: impl Into<Arc<str>>) -> Self {
        Self::Unknown(UnknownManifest {
            tenant: tenant.clone(),
            why: why.into(),
        })
    }

    /// Why a look-up failed.
    fn of(tenant: &TenantId, e: &ServiceError) -> Self {
        if e.code != ServiceErrorCode::Corruption {
            return Self::unknown(tenant, e.to_string());
        }
        Self::Damaged(QueryError::internal(format!(
            "blocks of tenant {tenant} cannot be read: {}",
            e.message
        )))
    }
}

impl From<NoManifest> for QueryError {
    fn from(none: NoManifest) -> Self {
        match none {
            NoManifest::Unknown(unknown) => Self::unavailable(unknown.to_string()),
            NoManifest::Damaged(e) => e,
        }
    }
}

/// No manifest of a tenant is known: what blocks have may be missing.
#[derive(Clone, Debug)]
pub(crate) struct UnknownManifest {
    tenant: TenantId,
    why: Arc<str>,
}

impl fmt::Display for UnknownManifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "blocks of tenant {}, if it has any that heads do not know of: its manifest cannot be looked up: {}",
            self.tenant, self.why
        )
    }
}

impl From<UnknownManifest> for Completeness {
    fn from(unknown: UnknownManifest) -> Self {
        Self::Partial {
            missing: vec![unknown.to_string()],
        }
    }
}

#[derive(Clone, Debug)]
struct Entry {
    /// The latest that is known, or why none is.
    view: Result<Arc<ManifestView>, NoManifest>,
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
        let known = self.known(tenant);
        let fresh = FRESH.min(self.fresh_optional);
        if let Some(entry) = &known
            && let Ok(view) = &entry.view
            && view.version >= floor
            && entry.answered_at.is_some_and(|at| self.is_within(at, fresh))
        {
            return Ok(Arc::clone(view));
        }
        let known = known.and_then(|entry| entry.view.ok());
        let (view, why) = match self.source.latest(tenant, known.as_ref()).await {
            Ok(view) => {
                let view = self.learn(tenant, view);
                let why = format!(
                    "the latest is {}; if that stays so, versions are lost: bring them back, or end all processes of the cluster and run \
                     `koios ctl manifest rebuild --at-least-version {floor}`",
                    view.version
                );
                (Some(view), why)
            }
            Err(e) => match NoManifest::of(tenant, &e) {
                NoManifest::Unknown(unknown) => (known, unknown.why.to_string()),
                damaged => (Some(self.failed(tenant, damaged)?), String::new()),
            },
        };
        view.filter(|view| view.version >= floor).ok_or_else(|| {
            QueryError::unavailable(format!(
                "blocks cannot be read: manifest version {floor} or later is needed: {why}"
            ))
        })
    }

    /// A manifest if one can be had quickly: for reads that the heads say they can answer alone.
    pub(crate) async fn recent(&self, tenant: &TenantId) -> Result<Arc<ManifestView>, NoManifest> {
        let known = self.known(tenant).map(|entry| (entry.view, entry.asked_at));
        let (wait, fresh) = match &known {
            Some((Ok(_), _)) => (OPTIONAL_WAIT, self.fresh_optional),
            _ => (FIRST_WAIT, FAILED_FOR.min(self.fresh_optional)),
        };
        let known = match known {
            Some((view, asked_at)) if self.is_within(asked_at, fresh) => return view,
            known => known.and_then(|(view, _)| view.ok()),
        };
        let latest = self.source.latest(tenant, known.as_ref());
        let why = match self.clock.timeout(wait, latest).await {
            Ok(Ok(view)) => return Ok(self.learn(tenant, view)),
            Ok(Err(e)) => NoManifest::of(tenant, &e),
            Err(_) => NoManifest::unknown(tenant, format!("no answer within {wait:?}")),
        };
        self.failed(tenant, why)
    }

    /// Forgets what is known of a tenant, because a block of it is gone.
    pub(crate) fn forget(&self, tenant: &TenantId) {
        self.entries.lock().remove(tenant);
    }

    fn known(&self, tenant: &TenantId) -> Option<Entry> {
        self.entries.lock().get(tenant).cloned()
    }

    /// Whether something was less than so long ago.
    fn is_within(&self, at: Duration, fresh: Duration) -> bool {
        self.clock.elapsed().saturating_sub(at) < fresh
    }

    /// Keeps the later of what is known and `view`, and returns it.
    fn learn(&self, tenant: &TenantId, view: Arc<ManifestView>) -> Arc<ManifestView> {
        let now = self.clock.elapsed();
        let mut entries = self.entries.lock();
        let known = entries.get(tenant).and_then(|entry| entry.view.as_ref().ok());
        let later = known.filter(|known| known.version > view.version).cloned();
        let later = later.unwrap_or(view);
        let entry = Entry {
            view: Ok(Arc::clone(&later)),
            asked_at: now,
            answered_at: Some(now),
        };
        keep(&mut entries, tenant, entry);
        later
    }

    /// Takes note that nothing later could be had, and returns what is known: a version, unless it is that there is damage. A bucket that
    /// does not answer changes neither.
    fn failed(&self, tenant: &TenantId, why: NoManifest) -> Result<Arc<ManifestView>, NoManifest> {
        let asked_at = self.clock.elapsed();
        let mut entries = self.entries.lock();
        let known = entries.get_mut(tenant);
        let is_damage_known =
            matches!(&known, Some(entry) if matches!(entry.view, Err(NoManifest::Damaged(_))));
        match &why {
            NoManifest::Unknown(unknown) => {
                tracing::debug!(%tenant, why = %unknown.why, "manifest not looked up");
                if let Some(entry) = known.filter(|entry| entry.view.is_ok() || is_damage_known) {
                    entry.asked_at = asked_at;
                    return entry.view.clone();
                }
            }
            NoManifest::Damaged(e) if !is_damage_known => {
                tracing::error!(%tenant, error = %e, "queries fail")
            }
            NoManifest::Damaged(_) => {}
        }
        let entry = Entry {
            view: Err(why.clone()),
            asked_at,
            answered_at: None,
        };
        keep(&mut entries, tenant, entry);
        Err(why)
    }
}

/// Keeps an entry. Of too many tenants the one is forgotten that was asked for longest ago.
fn keep(entries: &mut BTreeMap<TenantId, Entry>, tenant: &TenantId, entry: Entry) {
    if entries.len() >= TENANTS_MAX && !entries.contains_key(tenant) {
        let oldest = entries.iter().min_by_key(|(_, entry)| entry.asked_at);
        if let Some(oldest) = oldest.map(|(tenant, _)| tenant.clone()) {
            entries.remove(&oldest);
        }
    }
    entries.insert(tenant.clone(), entry);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use koios_promql::ErrorKind;
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

    #[tokio::test(start_paused = true)]
    async fn i4_a_look_up_that_failed_is_soon_tried_again_where_nothing_is_known() {
        let source = Arc::new(MockManifests::default());
        let clock = Arc::new(TokioClock::starting_at(0));
        let minute = Duration::from_secs(60);
        let cache = ManifestCache::new(Arc::<MockManifests>::clone(&source), clock, minute);
        let tenant = TenantId::anonymous();
        let calls = || source.calls.load(Ordering::Relaxed);
        *source.down.lock() = true;
        for _ in 0..2 {
            let none = QueryError::from(cache.recent(&tenant).await.unwrap_err()).to_string();
            assert!(
                none.contains("anonymous") && none.contains(": bucket down"),
                "{none}"
            );
        }
        assert_eq!(calls(), 1, "once a second");
        // A look-up that takes long is waited for.
        *source.down.lock() = false;
        source.view.lock().version = 1;
        tokio::time::advance(FAILED_FOR).await;
        source.late.lock().push_back(Duration::from_secs(2));
        assert_eq!(cache.recent(&tenant).await.unwrap().version, 1);
        // What is known goes on to be, without asking all the time.
        *source.down.lock() = true;
        for _ in 0..2 {
            tokio::time::advance(minute / 2).await;
            assert_eq!(cache.recent(&tenant).await.unwrap().version, 1);
        }
        tokio::time::advance(minute / 2).await;
        assert_eq!(cache.recent(&tenant).await.unwrap().version, 1);
        assert_eq!(calls(), 3);
        // One that does not end is given up.
        let other = TenantId::new("other").unwrap();
        source.late.lock().push_back(minute);
        let none = QueryError::from(cache.recent(&other).await.unwrap_err()).to_string();
        assert!(none.ends_with(": no answer within 3s"), "{none}");
    }

    #[tokio::test(start_paused = true)]
    async fn i4_damage_is_an_error_until_it_is_mended_whatever_was_known() {
        for is_known in [false, true] {
            let source = Arc::new(MockManifests::default());
            let clock = Arc::new(TokioClock::starting_at(0));
            let cache = ManifestCache::new(Arc::<MockManifests>::clone(&source), clock, FRESH);
            let tenant = TenantId::anonymous();
            source.view.lock().version = 1;
            if is_known {
                assert_eq!(cache.pin(&tenant, 0).await.unwrap().version, 1);
                tokio::time::advance(FRESH).await;
            }
            *source.damaged.lock() = true;
            let is_damage = |found: Result<_, QueryError>| {
                let e = found.map(|view: Arc<ManifestView>| view.version).unwrap_err();
                assert_eq!(e.kind(), ErrorKind::Internal, "{e}");
                assert!(
                    e.to_string().ends_with(": object manifest/2.json is corrupt"),
                    "{e}"
                );
            };
            is_damage(cache.recent(&tenant).await.map_err(QueryError::from));
            is_damage(cache.pin(&tenant, 0).await);
            // That the bucket is away as well makes it no better.
            *source.damaged.lock() = false;
            *source.down.lock() = true;
            tokio::time::advance(FAILED_FOR).await;
            is_damage(cache.recent(&tenant).await.map_err(QueryError::from));
            // But that it is mended does.
            *source.down.lock() = false;
            tokio::time::advance(FAILED_FOR).await;
            assert_eq!(cache.recent(&tenant).await.unwrap().version, 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn i12_of_too_many_tenants_those_asked_for_last_are_kept() {
        let source = Arc::new(MockManifests::default());
        let clock = Arc::new(TokioClock::starting_at(0));
        let cache = ManifestCache::new(source, clock, FRESH);
        // The first one has the last name.
        let tenant = |n: usize| TenantId::new(&format!("team-{}", TENANTS_MAX - n)).unwrap();
        for n in 0..=TENANTS_MAX {
            cache.learn(&tenant(n), Arc::default());
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(cache.entries.lock().len(), TENANTS_MAX);
        assert!(cache.known(&tenant(0)).is_none() && cache.known(&tenant(1)).is_some());
    }
}
