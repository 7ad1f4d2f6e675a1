//! The newest known manifest of each tenant, shared by all queries of a process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use koios_model::TenantId;
use parking_lot::Mutex;

use crate::bucket::Bucket;
use crate::manifest::{Manifest, Writer};
use crate::{Error, Result};

/// Most tenants whose manifest is kept, and most of which it is remembered that they have none.
const TENANTS_MAX: usize = 10_000;
/// How long after a list it is taken for granted that only the hint and version 1 can tell of a first version.
const HAD_NONE_FOR: Duration = Duration::from_secs(300);

/// Caches manifests of tenants that have one: whoever asks may name any tenant, and a name alone costs no memory. Cheap
/// to clone; clones share the cache.
#[derive(Clone, Debug)]
pub struct TenantManifests {
    bucket: Bucket,
    fresh_for: Duration,
    known: Arc<Mutex<BTreeMap<TenantId, Known>>>,
    /// When a list showed last that nothing tells of any version of a tenant's manifest.
    ///
    /// Each look at such a tenant would list two folders. What it is spared is safe: whoever makes a first version creates version 1, or,
    /// where it is rebuilt, writes the hint of a later one, and both are asked for each time. Only a list shows what is left when
    /// versions, version 1 and the hint among them, are lost; of that there was nothing, so that it would have to come and to be lost within
    /// these minutes, unseen by this process, which then answers as it would have just before. Nothing is committed on the strength of
    /// it: who commits, or was told of a version, lists.
    had_none: Arc<Mutex<BTreeMap<TenantId, Duration>>>,
}

#[derive(Clone, Debug)]
struct Known {
    manifest: Arc<Manifest>,
    /// When the bucket was last asked whether there is a newer one, on the monotonic clock.
    asked: Duration,
}

impl TenantManifests {
    /// A cache whose entries are believed to be the newest for `fresh_for`.
    pub fn new(bucket: Bucket, fresh_for: Duration) -> Self {
        Self {
            bucket,
            fresh_for,
            known: Arc::default(),
            had_none: Arc::default(),
        }
    }

    /// The bucket below.
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    /// The newest version known without asking the bucket.
    pub fn known(&self, tenant: &TenantId) -> Option<Arc<Manifest>> {
        self.known.lock().get(tenant).map(|k| Arc::clone(&k.manifest))
    }

    /// The newest version, as of at most `fresh_for` ago. When the bucket does not answer, the last version known:
    /// whoever needs a newer one asks [`Self::at_least`].
    ///
    /// # Errors
    /// [`Error::Unavailable`] when none is known; [`Error::Corrupt`].
    pub async fn latest(&self, tenant: &TenantId) -> Result<Arc<Manifest>> {
        let known = self.known.lock().get(tenant).cloned();
        if let Some(k) = &known
            && self.bucket.clock().elapsed().saturating_sub(k.asked) < self.fresh_for
        {
            return Ok(Arc::clone(&k.manifest));
        }
        match (self.probe(tenant).await, known) {
            (
                Err(Error::Unavailable { object, reason, .. } | Error::Rejected { object, reason, .. }),
                Some(k),
            ) => {
                tracing::warn!(%tenant, version = k.manifest.version, object, reason, "bucket unavailable, using the last manifest known");
                Ok(k.manifest)
            }
            (result, _) => result,
        }
    }

    /// A version not below `version`, which a peer has named.
    ///
    /// # Errors
    /// [`Error::Behind`] when the bucket shows no such version; [`Error::Unavailable`]; [`Error::Corrupt`].
    pub async fn at_least(&self, tenant: &TenantId, version: u64) -> Result<Arc<Manifest>> {
        if let Some(k) = self.known(tenant).filter(|k| k.version >= version) {
            return Ok(k);
        }
        let found = match version {
            0 => self.probe(tenant).await?,
            _ => self.probe_anew(tenant).await?,
        };
        if found.version < version {
            return Err(Error::Behind {
                tenant: tenant.clone(),
                found: found.version,
                wanted: version,
            });
        }
        Ok(found)
    }

    /// Asks the bucket for the newest version.
    ///
    /// # Errors
    /// [`Error::Unavailable`] or [`Error::Corrupt`].
    pub async fn probe(&self, tenant: &TenantId) -> Result<Arc<Manifest>> {
        let asked = self.bucket.clock().elapsed();
        if let Some(known) = self.known(tenant).filter(|k| k.version > 0) {
            let found = self.bucket.latest_from(&known).await?;
            return Ok(self.learn(found, asked));
        }
        let had_none = self.had_none(tenant, asked);
        let found = self.bucket.latest_of(tenant, had_none).await?;
        if found.version == 0 && !had_none {
            self.note_none(tenant, asked);
        }
        Ok(self.learn(found, asked))
    }

    /// As [`Self::probe`], whatever is remembered of a tenant without a version.
    async fn probe_anew(&self, tenant: &TenantId) -> Result<Arc<Manifest>> {
        self.had_none.lock().remove(tenant);
        self.probe(tenant).await
    }

    fn had_none(&self, tenant: &TenantId, now: Duration) -> bool {
        let listed = self.had_none.lock().get(tenant).copied();
        listed.is_some_and(|at| now.saturating_sub(at) < HAD_NONE_FOR)
    }

    fn note_none(&self, tenant: &TenantId, listed: Duration) {
        let mut had_none = self.had_none.lock();
        if had_none.len() >= TENANTS_MAX {
            had_none.retain(|_, at| listed.saturating_sub(*at) < HAD_NONE_FOR);
        }
        if had_none.len() < TENANTS_MAX {
            had_none.insert(tenant.clone(), listed);
        }
    }

    /// Commits a change from the newest version known; see [`Bucket::commit`].
    ///
    /// # Errors
    /// Those of [`Bucket::commit`].
    pub async fn commit(
        &self,
        tenant: &TenantId,
        writer: &Writer,
        change: impl FnMut(&mut Manifest) -> Result<()> + Send,
    ) -> Result<Arc<Manifest>> {
        let base = self.probe_anew(tenant).await?;
        let asked = self.bucket.clock().elapsed();
        let committed = self.bucket.commit_from(base, writer, change).await?;
        Ok(self.learn(committed, asked))
    }

    /// Makes the writer's epoch visible, from the newest version known; see [`Bucket::claim`].
    ///
    /// # Errors
    /// Those of [`Bucket::claim`].
    pub async fn claim(&self, tenant: &TenantId, writer: &Writer) -> Result<Arc<Manifest>> {
        let base = self.probe_anew(tenant).await?;
        let asked = self.bucket.clock().elapsed();
        let claimed = self.bucket.claim_from(base, writer).await?;
        Ok(self.learn(claimed, asked))
    }

    /// Commits an empty first version where there is none; see [`Bucket::begin`].
    ///
    /// # Errors
    /// Those of [`Bucket::commit`].
    pub async fn begin(&self, tenant: &TenantId, writer: &Writer) -> Result<Arc<Manifest>> {
        let base = self.probe_anew(tenant).await?;
        let asked = self.bucket.clock().elapsed();
        let begun = self.bucket.begin_from(base, writer).await?;
        Ok(self.learn(begun, asked))
    }

    /// Keeps the newer of what is known and what was found, unless that is nothing.
    fn learn(&self, found: Arc<Manifest>, asked: Duration) -> Arc<Manifest> {
        if found.version > 0 {
            self.had_none.lock().remove(&found.tenant);
        }
        let mut known = self.known.lock();
        if !known.contains_key(&found.tenant) {
            if found.version == 0 {
                return found;
            }
            if known.len() >= TENANTS_MAX {
                forget_oldest(&mut known);
            }
        }
        let entry = known.entry(found.tenant.clone()).or_insert_with(|| Known {
            manifest: Arc::clone(&found),
            asked,
        });
        entry.asked = entry.asked.max(asked);
        if entry.manifest.version < found.version {
            found.adopt_rules(&entry.manifest);
            entry.manifest = found;
        }
        Arc::clone(&entry.manifest)
    }
}

/// Makes room by forgetting the tenant that was asked for longest ago.
fn forget_oldest(known: &mut BTreeMap<TenantId, Known>) {
    let oldest = known.iter().min_by_key(|(_, k)| k.asked);
    if let Some(tenant) = oldest.map(|(tenant, _)| tenant.clone()) {
        known.remove(&tenant);
    }
}

#[cfg(test)]
mod tests {
    use koios_runtime::{RealClock, RngHandle};
    use object_store::memory::InMemory;

    use super::*;

    #[test]
    fn i12_of_too_many_tenants_those_asked_for_last_are_kept() {
        let store = Arc::new(InMemory::new());
        let bucket = Bucket::new(store, "", Arc::new(RealClock::new()), RngHandle::from_seed(1));
        let manifests = TenantManifests::new(bucket, Duration::ZERO);
        let tenant = |n: usize| TenantId::new(&format!("team-{n}")).unwrap();
        for n in 0..TENANTS_MAX + 2 {
            let mut manifest = Manifest::empty(tenant(n));
            manifest.version = 1;
            manifests.learn(Arc::new(manifest), Duration::from_secs(n as u64));
        }
        assert_eq!(manifests.known.lock().len(), TENANTS_MAX);
        assert!(manifests.known(&tenant(1)).is_none() && manifests.known(&tenant(2)).is_some());
    }
}
