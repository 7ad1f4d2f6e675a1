//! The series that members know: those need neither checks nor labels again.
//!
//! A series gets known when a majority has acknowledged a batch with its labels. Its samples then travel under its
//! reference alone; a member that does not know it, for it started anew or forgot it, says so and gets the labels. The
//! reference is a keyed hash of the labels, so that one that is known belongs to labels that were checked. Losing the
//! set, or a part of it, costs work and never correctness.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashTable;
use koios_model::{SeriesHash, TenantId};
use koios_tenancy::Limits;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};

/// Most series kept of one tenant, some 18 bytes each; with more it starts anew.
const SERIES_MAX: usize = 4_000_000;

/// The known series of all tenants.
#[derive(Debug, Default)]
pub(crate) struct KnownSeries {
    tenants: Mutex<BTreeMap<TenantId, Arc<TenantKnown>>>,
}

/// The known series of one tenant, checked under the same limits.
#[derive(Debug)]
pub(crate) struct TenantKnown {
    limits: Arc<Limits>,
    set: RwLock<KnownSet>,
}

/// References of known series.
#[derive(Debug, Default)]
pub(crate) struct KnownSet {
    table: HashTable<SeriesHash>,
}

/// References are hashes already.
fn key(hash: &SeriesHash) -> u64 {
    hash.0 as u64
}

impl KnownSeries {
    /// Those of a tenant. With other limits than before nothing counts as checked.
    pub(crate) fn of(&self, tenant: &TenantId, limits: &Arc<Limits>) -> Arc<TenantKnown> {
        let mut tenants = self.tenants.lock();
        if let Some(known) = tenants.get(tenant)
            && Arc::ptr_eq(&known.limits, limits)
        {
            return Arc::clone(known);
        }
        let new = Arc::new(TenantKnown {
            limits: Arc::clone(limits),
            set: RwLock::default(),
        });
        tenants.insert(tenant.clone(), Arc::clone(&new));
        new
    }
}

impl TenantKnown {
    /// The set for as long as a request is decoded.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, KnownSet> {
        self.set.read()
    }

    /// Notes series that a majority has acknowledged with labels.
    pub(crate) fn learn(&self, series: &[SeriesHash]) {
        if series.is_empty() {
            return;
        }
        let mut set = self.set.write();
        if set.table.len().saturating_add(series.len()) > SERIES_MAX {
            set.table = HashTable::new();
        }
        for hash in series {
            let same = |other: &SeriesHash| other == hash;
            set.table.entry(key(hash), same, key).or_insert(*hash);
        }
    }
}

impl KnownSet {
    /// Whether a series is known.
    pub(crate) fn contains(&self, hash: SeriesHash) -> bool {
        self.table.find(key(&hash), |other| *other == hash).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_limits_make_every_series_unknown() {
        let (known, tenant) = (KnownSeries::default(), TenantId::anonymous());
        let limits = Arc::new(Limits::default());
        known
            .of(&tenant, &limits)
            .learn(&[SeriesHash(1), SeriesHash(2), SeriesHash(1)]);
        let has = |limits, hash| known.of(&tenant, limits).read().contains(SeriesHash(hash));
        assert!(has(&limits, 1) && has(&limits, 2) && !has(&limits, 3));
        // The same low bits are another series.
        assert!(!has(&limits, 1 << 64 | 1));
        let reloaded = Arc::new(Limits::default());
        assert!(!has(&reloaded, 1));
    }
}
