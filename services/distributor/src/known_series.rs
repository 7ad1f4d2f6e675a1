//! The series that members know: those need neither checks nor labels again.
//!
//! A series gets known when a majority has acknowledged a batch with its labels. Its samples then travel under its
//! reference alone; a member that does not know it, for it started anew or forgot it, says so and gets the labels. The
//! reference is a keyed hash of the labels, so that one that is known belongs to labels that were checked. Losing the
//! set, or a part of it, costs work and never correctness.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::HashTable;
use koios_model::{SeriesHash, TenantId};
use koios_tenancy::Limits;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};

/// Most series kept of all tenants, some 22 to 45 bytes each; with more all is learnt anew.
const SERIES_MAX: usize = 4_000_000;

/// The known series of all tenants.
#[derive(Debug, Default)]
pub(crate) struct KnownSeries {
    generation: Mutex<Generation>,
}

/// What was learnt since all was forgotten.
#[derive(Debug, Default)]
struct Generation {
    tenants: BTreeMap<TenantId, Arc<TenantKnown>>,
    /// Series of all of them, those of limits before included.
    series: Arc<AtomicUsize>,
}

/// The known series of one tenant, checked under the same limits.
#[derive(Debug)]
pub(crate) struct TenantKnown {
    limits: Arc<Limits>,
    set: RwLock<KnownSet>,
    /// Of all tenants.
    series: Arc<AtomicUsize>,
}

/// References of known series, in the order they became known. Requests name series in much the same order every time, so
/// the next one is mostly found beside the last, without a look into a table that no cache holds.
#[derive(Debug, Default)]
pub(crate) struct KnownSet {
    order: Vec<SeriesHash>,
    /// Places in `order`.
    table: HashTable<u32>,
}

/// Where a request is in a [`KnownSet`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cursor {
    next: usize,
}

/// References are hashes already.
fn key(hash: &SeriesHash) -> u64 {
    hash.0 as u64
}

impl KnownSeries {
    /// Those of a tenant. With other limits than before nothing counts as checked.
    pub(crate) fn of(&self, tenant: &TenantId, limits: &Arc<Limits>) -> Arc<TenantKnown> {
        let mut generation = self.generation.lock();
        if generation.series.load(Ordering::Relaxed) > SERIES_MAX {
            *generation = Generation::default();
        }
        if let Some(known) = generation.tenants.get(tenant)
            && Arc::ptr_eq(&known.limits, limits)
        {
            return Arc::clone(known);
        }
        let new = Arc::new(TenantKnown {
            limits: Arc::clone(limits),
            set: RwLock::default(),
            series: Arc::clone(&generation.series),
        });
        generation.tenants.insert(tenant.clone(), Arc::clone(&new));
        new
    }
}

impl TenantKnown {
    /// The set for as long as a request is decoded.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, KnownSet> {
        self.set.read()
    }

    /// Notes series that a majority has acknowledged with labels. Waits for requests that are being decoded.
    pub(crate) fn learn(&self, series: &[SeriesHash]) {
        let mut set = self.set.write();
        let before = set.order.len();
        for hash in series {
            set.insert(*hash);
        }
        let learnt = set.order.len() - before;
        self.series.fetch_add(learnt, Ordering::Relaxed);
    }
}

impl KnownSet {
    /// Whether a series is known.
    pub(crate) fn contains(&self, hash: SeriesHash, cursor: &mut Cursor) -> bool {
        if self.order.get(cursor.next) == Some(&hash) {
            cursor.next += 1;
            return true;
        }
        let place = self.table.find(key(&hash), |at| self.at(*at) == Some(hash));
        if let Some(place) = place {
            cursor.next = *place as usize + 1;
        }
        place.is_some()
    }

    fn at(&self, place: u32) -> Option<SeriesHash> {
        self.order.get(place as usize).copied()
    }

    fn insert(&mut self, hash: SeriesHash) {
        let order = &self.order;
        let hash_at = |place: &u32| order.get(*place as usize).map_or(0, key);
        let same = |place: &u32| order.get(*place as usize) == Some(&hash);
        let entry = self.table.entry(key(&hash), same, hash_at);
        if let hashbrown::hash_table::Entry::Vacant(free) = entry {
            free.insert(order.len() as u32);
            self.order.push(hash);
        }
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
        let has = |limits, hash| {
            let known = known.of(&tenant, limits);
            let set = known.read();
            set.contains(SeriesHash(hash), &mut Cursor::default())
        };
        assert!(has(&limits, 1) && has(&limits, 2) && !has(&limits, 3));
        // The same low bits are another series.
        assert!(!has(&limits, 1 << 64 | 1));
        let reloaded = Arc::new(Limits::default());
        assert!(!has(&reloaded, 1));
    }

    #[test]
    fn series_are_found_in_any_order() {
        let mut set = KnownSet::default();
        (0..100).for_each(|n| set.insert(SeriesHash(n * n)));
        let mut cursor = Cursor::default();
        for n in (0..100).chain([7, 8, 3, 3, 99, 0, 1]) {
            assert!(set.contains(SeriesHash(n * n), &mut cursor));
            assert!(!set.contains(SeriesHash(n * n + 100_000), &mut cursor));
        }
    }
}
