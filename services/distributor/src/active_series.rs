//! How many series a tenant has, and which: new ones are let in while there is room.
//!
//! Members say in every acknowledgement how many active series a tenant has in a partition; their sum is what the limit
//! is compared with. Which series are known is learnt from what passes through: after a restart everything looks new,
//! so while a distributor learns, it rejects nothing before the limit is exceeded by a tenth.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use koios_model::{PartitionId, SeriesHash, TenantId};
use parking_lot::Mutex;

use crate::Rejection;

/// How long a distributor learns which series there are: longer than any usual interval between samples.
const LEARNING: Duration = Duration::from_secs(15 * 60);
/// How long a series is remembered at least after its last sample; at most twice as long.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// The series of all tenants that have a limit.
#[derive(Debug)]
pub(crate) struct ActiveSeries {
    started: Duration,
    tenants: Mutex<BTreeMap<TenantId, Arc<Mutex<TenantSeries>>>>,
}

/// Hashes stand for series; a collision lets a series in, once in 2^64. Nothing depends on the sets' order.
#[derive(Debug, Default)]
struct TenantSeries {
    counts: BTreeMap<PartitionId, u64>,
    recent: HashSet<u64>,
    older: HashSet<u64>,
    turned_at: Duration,
}

impl ActiveSeries {
    pub(crate) fn starting_at(now: Duration) -> Self {
        Self {
            started: now,
            tenants: Mutex::default(),
        }
    }

    /// Takes down what a member said.
    pub(crate) fn note(&self, tenant: &TenantId, partition: PartitionId, series: u64) {
        let known = self.tenants.lock().get(tenant).cloned();
        if let Some(of_tenant) = known {
            of_tenant.lock().counts.insert(partition, series);
        }
    }

    /// Decides for one request at the monotonic time `now`; nothing to decide when there is no limit.
    pub(crate) fn gate(&self, tenant: &TenantId, limit: u64, now: Duration) -> Option<SeriesGate> {
        if limit == 0 {
            return None;
        }
        let series = Arc::clone(self.tenants.lock().entry(tenant.clone()).or_default());
        let mut of_tenant = series.lock();
        if now.saturating_sub(of_tenant.turned_at) > REMEMBERED {
            of_tenant.older = std::mem::take(&mut of_tenant.recent);
            of_tenant.turned_at = now;
        }
        let count: u64 = of_tenant.counts.values().sum();
        drop(of_tenant);
        let learning = now.saturating_sub(self.started) < LEARNING;
        let room = if learning {
            limit.saturating_add(limit / 10)
        } else {
            limit
        };
        Some(SeriesGate {
            series,
            limit,
            now: count,
            room: room.saturating_sub(count),
            learning,
        })
    }
}

/// Lets the series of one request in, or not.
#[derive(Debug)]
pub(crate) struct SeriesGate {
    series: Arc<Mutex<TenantSeries>>,
    limit: u64,
    now: u64,
    /// How many new series may still come.
    room: u64,
    learning: bool,
}

impl SeriesGate {
    /// Lets a series in when it is known or there is room.
    pub(crate) fn admit(&mut self, hash: SeriesHash) -> Result<(), Rejection> {
        let key = hash.0 as u64;
        let mut series = self.series.lock();
        if series.recent.contains(&key) {
            return Ok(());
        }
        if !series.older.remove(&key) {
            if self.room == 0 {
                return Err(Rejection::SeriesLimit {
                    limit: self.limit,
                    now: self.now,
                });
            }
            // While learning, an unknown series is most likely one that the count holds already.
            self.room -= u64::from(!self.learning);
        }
        series.recent.insert(key);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(active: &ActiveSeries, at: Duration, hashes: std::ops::Range<u128>) -> usize {
        let mut gate = active.gate(&TenantId::anonymous(), 100, at).unwrap();
        hashes.filter(|h| gate.admit(SeriesHash(*h)).is_ok()).count()
    }

    #[test]
    fn after_a_restart_known_series_are_learnt_before_new_ones_are_rejected() {
        let (active, tenant) = (ActiveSeries::starting_at(Duration::ZERO), TenantId::anonymous());
        assert!(active.gate(&tenant, 0, Duration::ZERO).is_none());
        // The members hold a hundred series, of which this process knows nothing.
        assert_eq!(admitted(&active, Duration::ZERO, 0..1), 1);
        active.note(&tenant, PartitionId(0), 60);
        active.note(&tenant, PartitionId(1), 40);
        assert_eq!(admitted(&active, Duration::from_secs(30), 0..100), 100);
        assert_eq!(admitted(&active, LEARNING, 0..150), 100);
        active.note(&tenant, PartitionId(1), 30);
        assert_eq!(admitted(&active, LEARNING, 0..150), 110);
    }

    #[test]
    fn a_series_without_samples_is_forgotten() {
        let (active, tenant) = (ActiveSeries::starting_at(Duration::ZERO), TenantId::anonymous());
        let hours = |h: u64| LEARNING + REMEMBERED * h as u32 + Duration::from_secs(h);
        admitted(&active, hours(1), 0..100);
        active.note(&tenant, PartitionId(0), 100);
        assert_eq!(admitted(&active, hours(2), 0..50), 50);
        assert_eq!(
            admitted(&active, hours(3), 0..100),
            50,
            "the others came last two turns ago"
        );
    }
}
