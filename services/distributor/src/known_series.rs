//! The series that members know: those need neither checks nor labels again.
//!
//! A series gets known when a majority has acknowledged a batch with its labels. Its samples then travel under its
//! reference alone; a member that does not know it, for it started anew or forgot it, says so and gets the labels. The
//! reference is a keyed hash of the labels, so that one that is known belongs to labels that were checked. Losing the
//! set, or a part of it, costs work and never correctness.
//!
//! Senders encode a series' labels the same way every time. The same keyed hash of these bytes recognises them, so that
//! labels of a known series are not even decoded. One encoding is kept for each series, the first; labels that come in
//! another one are decoded and then found by their reference.
//!
//! When there are too many a new generation begins, and the one before the last goes. What is found in the last is learnt
//! anew, so that series that still come stay known, however many there have been.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use koios_model::{SeriesHash, TenantId};
use koios_tenancy::Limits;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};

/// Series of all tenants from which on a new generation begins, some 45 to 90 bytes each. Two generations are kept.
const SERIES_MAX: usize = 4_000_000;

/// The known series of all tenants.
#[derive(Debug)]
pub(crate) struct KnownSeries {
    generations: Mutex<Generations>,
    series_max: usize,
}

impl Default for KnownSeries {
    fn default() -> Self {
        Self {
            generations: Mutex::default(),
            series_max: SERIES_MAX,
        }
    }
}

#[derive(Debug, Default)]
struct Generations {
    newer: BTreeMap<TenantId, Arc<TenantKnown>>,
    /// Without what they were older than.
    older: BTreeMap<TenantId, Older>,
    /// Series of the newer one, those of limits before included.
    series: Arc<AtomicUsize>,
}

/// The known series of one tenant in the generation before.
#[derive(Debug)]
struct Older {
    limits: Arc<Limits>,
    set: Arc<RwLock<KnownSet>>,
}

/// The known series of one tenant, checked under the same limits.
#[derive(Debug)]
pub(crate) struct TenantKnown {
    limits: Arc<Limits>,
    set: Arc<RwLock<KnownSet>>,
    /// What the generation before knew.
    older: Option<Arc<RwLock<KnownSet>>>,
    /// Of all tenants.
    series: Arc<AtomicUsize>,
}

/// A series, and how it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NewSeries {
    /// Its reference.
    pub(crate) hash: SeriesHash,
    /// The hash of its labels as they were encoded; [`NOT_ENCODED`] when they did not come so.
    pub(crate) encoded: SeriesHash,
}

/// Stands for no hash of encoded labels: in 2^128 label sets one is never recognised for it.
pub(crate) const NOT_ENCODED: SeriesHash = SeriesHash(0);

/// Stands where a series was that is forgotten. In 2^128 references one is found here, which members answer for.
const FREE: NewSeries = NewSeries {
    hash: SeriesHash(0),
    encoded: NOT_ENCODED,
};

/// Known series, in the order they became known. Requests name series in much the same order every time, so the next one is
/// mostly found beside the last, without a look into a table that no cache holds.
#[derive(Debug, Default)]
pub(crate) struct KnownSet {
    order: Vec<NewSeries>,
    /// Places in `order`, by reference.
    table: HashTable<u32>,
    /// The same by encoded labels.
    encoded: HashTable<u32>,
}

/// A tenant's known series for as long as a request is decoded.
#[derive(Debug)]
pub(crate) struct Known<'a> {
    newer: RwLockReadGuard<'a, KnownSet>,
    older: Option<RwLockReadGuard<'a, KnownSet>>,
}

/// A series that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) series: NewSeries,
    /// Whether it is to be learnt anew to stay known.
    pub(crate) ages: bool,
}

/// Where a request is among the known series.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cursor {
    newer: Place,
    older: Place,
}

/// Where a request is in a [`KnownSet`].
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    next: usize,
}

/// References are hashes already.
fn key(hash: &SeriesHash) -> u64 {
    hash.0 as u64
}

impl KnownSeries {
    /// Those of a tenant. With other limits than before nothing counts as checked.
    pub(crate) fn of(&self, tenant: &TenantId, limits: &Arc<Limits>) -> Arc<TenantKnown> {
        let mut generations = self.generations.lock();
        if generations.series.load(Ordering::Relaxed) > self.series_max {
            let older = std::mem::take(&mut generations.newer).into_iter();
            let older = older.map(|(tenant, known)| (tenant, known.as_older()));
            *generations = Generations {
                older: older.collect(),
                ..Generations::default()
            };
        }
        if let Some(known) = generations.newer.get(tenant)
            && Arc::ptr_eq(&known.limits, limits)
        {
            return Arc::clone(known);
        }
        let older = generations.older.get(tenant);
        let older = older.filter(|older| Arc::ptr_eq(&older.limits, limits));
        let new = Arc::new(TenantKnown {
            limits: Arc::clone(limits),
            set: Arc::default(),
            older: older.map(|older| Arc::clone(&older.set)),
            series: Arc::clone(&generations.series),
        });
        generations.newer.insert(tenant.clone(), Arc::clone(&new));
        new
    }
}

impl TenantKnown {
    fn as_older(&self) -> Older {
        Older {
            limits: Arc::clone(&self.limits),
            set: Arc::clone(&self.set),
        }
    }

    /// They for as long as a request is decoded.
    pub(crate) fn read(&self) -> Known<'_> {
        Known {
            newer: self.set.read(),
            older: self.older.as_ref().map(|older| older.read()),
        }
    }

    /// Notes series that a majority has acknowledged with labels. Waits for requests that are being decoded.
    pub(crate) fn learn(&self, series: &[NewSeries]) {
        let mut set = self.set.write();
        let before = set.order.len();
        for new in series {
            set.insert(*new);
        }
        let learnt = set.order.len() - before;
        self.series.fetch_add(learnt, Ordering::Relaxed);
    }

    /// Forgets series that no member knows any more. Waits for requests that are being decoded.
    pub(crate) fn forget(&self, series: &HashSet<SeriesHash>) {
        for set in self.older.iter().chain([&self.set]) {
            let mut set = set.write();
            series.iter().for_each(|hash| set.remove(*hash));
        }
    }
}

impl Known<'_> {
    /// The known series whose labels are encoded so, by the hash of the bytes.
    pub(crate) fn recognise(&self, encoded: SeriesHash, cursor: &mut Cursor) -> Option<Found> {
        let newer = self.newer.recognise(encoded, &mut cursor.newer);
        Found::first(newer, || {
            self.older.as_ref()?.recognise(encoded, &mut cursor.older)
        })
    }

    /// A known series by its reference.
    pub(crate) fn find(&self, hash: SeriesHash, cursor: &mut Cursor) -> Option<Found> {
        let newer = self.newer.find(hash, &mut cursor.newer);
        Found::first(newer, || self.older.as_ref()?.find(hash, &mut cursor.older))
    }
}

impl Found {
    fn first(newer: Option<NewSeries>, older: impl FnOnce() -> Option<NewSeries>) -> Option<Self> {
        match newer {
            Some(series) => Some(Self { series, ages: false }),
            None => older().map(|series| Self { series, ages: true }),
        }
    }
}

impl KnownSet {
    fn recognise(&self, encoded: SeriesHash, cursor: &mut Place) -> Option<NewSeries> {
        if encoded == NOT_ENCODED {
            return None;
        }
        let is_it = |place: usize| self.order.get(place).filter(|s| s.encoded == encoded);
        if let Some(series) = is_it(cursor.next) {
            cursor.next += 1;
            return Some(*series);
        }
        let place = self
            .encoded
            .find(key(&encoded), |at| is_it(*at as usize).is_some())?;
        cursor.next = *place as usize + 1;
        is_it(*place as usize).copied()
    }

    fn find(&self, hash: SeriesHash, cursor: &mut Place) -> Option<NewSeries> {
        let is_it = |place: usize| self.order.get(place).filter(|s| s.hash == hash);
        if let Some(series) = is_it(cursor.next) {
            cursor.next += 1;
            return Some(*series);
        }
        let place = self.table.find(key(&hash), |at| is_it(*at as usize).is_some())?;
        cursor.next = *place as usize + 1;
        is_it(*place as usize).copied()
    }

    /// Its place stays free until the generation ends.
    fn remove(&mut self, hash: SeriesHash) {
        let order = &mut self.order;
        let same = |place: &u32| order.get(*place as usize).is_some_and(|s| s.hash == hash);
        let Ok(found) = self.table.find_entry(key(&hash), same) else {
            return;
        };
        let (place, _) = found.remove();
        let Some(series) = order.get_mut(place as usize) else {
            return;
        };
        let encoded = std::mem::replace(series, FREE).encoded;
        if let Ok(found) = self.encoded.find_entry(key(&encoded), |at| *at == place) {
            found.remove();
        }
    }

    fn insert(&mut self, new: NewSeries) {
        let order = &mut self.order;
        let hash_at = |place: &u32| order.get(*place as usize).map_or(0, |s| key(&s.hash));
        let same = |place: &u32| order.get(*place as usize).is_some_and(|s| s.hash == new.hash);
        let place = match self.table.entry(key(&new.hash), same, hash_at) {
            Entry::Occupied(found) => *found.get(),
            Entry::Vacant(free) => {
                let place = order.len() as u32;
                free.insert(place);
                order.push(NewSeries {
                    encoded: NOT_ENCODED,
                    ..new
                });
                place
            }
        };
        let Some(series) = order.get_mut(place as usize) else {
            return;
        };
        if series.encoded == NOT_ENCODED && new.encoded != NOT_ENCODED {
            series.encoded = new.encoded;
            let hash_at = |place: &u32| order.get(*place as usize).map_or(0, |s| key(&s.encoded));
            self.encoded.insert_unique(key(&new.encoded), place, hash_at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(hash: u128, encoded: Option<u128>) -> NewSeries {
        NewSeries {
            hash: SeriesHash(hash),
            encoded: encoded.map_or(NOT_ENCODED, SeriesHash),
        }
    }

    #[test]
    fn other_limits_make_every_series_unknown() {
        let (known, tenant) = (KnownSeries::default(), TenantId::anonymous());
        let limits = Arc::new(Limits::default());
        let series = [new(1, None), new(2, None), new(1, None)];
        known.of(&tenant, &limits).learn(&series);
        let has = |limits, hash| {
            let known = known.of(&tenant, limits);
            let set = known.read();
            set.find(SeriesHash(hash), &mut Cursor::default()).is_some()
        };
        assert!(has(&limits, 1) && has(&limits, 2) && !has(&limits, 3));
        // The same low bits are another series.
        assert!(!has(&limits, 1 << 64 | 1));
        let reloaded = Arc::new(Limits::default());
        assert!(!has(&reloaded, 1));
    }

    #[test]
    fn series_that_come_stay_known_however_many_there_are() {
        let (tenant, limits) = (TenantId::anonymous(), Arc::new(Limits::default()));
        let known = KnownSeries {
            series_max: 100,
            ..KnownSeries::default()
        };
        let mut forgotten = 0;
        for round in 0..50u128 {
            // Sixty that always come, and ten that come once.
            let once = 1000 + round * 10;
            for hash in (1..=60).chain(once..once + 10) {
                let of_tenant = known.of(&tenant, &limits);
                let (by_hash, by_labels) = {
                    let (known, mut cursor) = (of_tenant.read(), Cursor::default());
                    let by_labels = known.recognise(SeriesHash(hash + (1 << 100)), &mut cursor);
                    (known.find(SeriesHash(hash), &mut cursor), by_labels)
                };
                assert_eq!(by_hash, by_labels);
                forgotten += usize::from(by_hash.is_none() && hash <= 60 && round > 0);
                if by_hash.is_none_or(|found| found.ages) {
                    of_tenant.learn(&[new(hash, Some(hash + (1 << 100)))]);
                }
            }
        }
        assert_eq!(forgotten, 0);
        let generations = known.generations.lock();
        let (newer, older) = (&generations.newer[&tenant], &generations.older[&tenant]);
        assert!(newer.set.read().order.len() <= 101 && older.set.read().order.len() <= 101);
        drop(generations);
        let other = known.of(&tenant, &Arc::new(Limits::default()));
        let set = other.read();
        let found = set.find(SeriesHash(1), &mut Cursor::default());
        assert!(found.is_none(), "checked under other limits");
    }

    #[test]
    fn i12_two_generations_are_kept_and_no_third() {
        let (tenant, limits) = (TenantId::anonymous(), Arc::new(Limits::default()));
        let known = KnownSeries {
            series_max: 10,
            ..KnownSeries::default()
        };
        let mut sets = Vec::new();
        for generation in 0..5u128 {
            let of_tenant = known.of(&tenant, &limits);
            let series: Vec<_> = (0..11).map(|n| new(generation * 100 + n + 1, None)).collect();
            of_tenant.learn(&series);
            sets.push(Arc::downgrade(&of_tenant.set));
        }
        let kept: Vec<bool> = sets.iter().map(|set| set.strong_count() > 0).collect();
        assert_eq!(kept, [false, false, false, true, true]);
    }

    #[test]
    fn what_is_forgotten_is_found_neither_way_until_it_is_learnt_again() {
        let (tenant, limits) = (TenantId::anonymous(), Arc::new(Limits::default()));
        let known = KnownSeries {
            series_max: 3,
            ..KnownSeries::default()
        };
        let series = [(1, 11), (2, 12), (3, 13), (4, 14)].map(|(hash, encoded)| new(hash, Some(encoded)));
        known.of(&tenant, &limits).learn(&series);
        let of_tenant = known.of(&tenant, &limits);
        of_tenant.learn(&series[..2]);
        let found = |hash: u128| {
            let (known, mut cursor) = (of_tenant.read(), Cursor::default());
            let by_labels = known.recognise(SeriesHash(hash + 10), &mut cursor);
            let by_hash = known.find(SeriesHash(hash), &mut cursor);
            assert_eq!(by_labels, by_hash);
            by_hash.is_some()
        };
        assert_eq!([1, 2, 3, 4].map(found), [true; 4]);
        of_tenant.forget(&HashSet::from([2, 3, 9].map(SeriesHash)));
        assert_eq!([1, 2, 3, 4].map(found), [true, false, false, true]);
        of_tenant.learn(&series);
        assert_eq!([1, 2, 3, 4].map(found), [true; 4]);
    }

    #[test]
    fn series_are_found_in_any_order() {
        let mut set = KnownSet::default();
        (0..100).for_each(|n| set.insert(new(n * n, Some(n * n + 7))));
        let mut cursor = Place::default();
        for n in (0..100).chain([7, 8, 3, 3, 99, 0, 1]) {
            assert!(set.find(SeriesHash(n * n), &mut cursor).is_some());
            assert!(set.find(SeriesHash(n * n + 100_000), &mut cursor).is_none());
            let (here, there) = (SeriesHash(n * n + 7), SeriesHash(n * n + 100_007));
            let found = set.recognise(here, &mut cursor).map(|series| series.hash);
            assert_eq!(found, Some(SeriesHash(n * n)));
            assert_eq!(set.recognise(there, &mut cursor), None);
        }
    }

    #[test]
    fn the_first_encoding_of_a_series_is_the_one_that_is_recognised() {
        let mut set = KnownSet::default();
        set.insert(new(1, None));
        let recognised = |set: &KnownSet, encoded| {
            let found = set.recognise(SeriesHash(encoded), &mut Place::default());
            found.map(|series| series.hash)
        };
        assert_eq!(recognised(&set, 0), None);
        set.insert(new(1, Some(10)));
        set.insert(new(1, Some(11)));
        set.insert(new(1, None));
        assert_eq!(recognised(&set, 10), Some(SeriesHash(1)));
        assert_eq!(recognised(&set, 11), None);
        assert_eq!(set.order.len(), 1);
    }
}
