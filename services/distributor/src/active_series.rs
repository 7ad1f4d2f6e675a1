//! How many series a tenant has, and which: new ones are let in while there is room.
//!
//! Members say in every acknowledgement how many active series a tenant has in a partition; their sum is what the limit
//! is compared with. Which series there are is learnt from what a majority acknowledges: what was refused, or never
//! written, is not remembered. A series that is not remembered takes room from when it is let in until its request has
//! ended, so that requests at the same time do not take the same room twice.
//!
//! A tenant's series are learnt from when it first has a limit here: until then all of them look new, however many there
//! are. So meanwhile a series gets in while members count no more than there were at first, and a few; that it exists
//! shows in a count that does not grow. What cannot be told while others are under way is to be sent again, and is
//! neither taken nor refused.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use koios_model::{PartitionId, SeriesHash, TenantId};
use parking_lot::Mutex;

use crate::Rejection;
use crate::known_series::TenantKnown;

/// How long it is learnt which series a tenant has: longer than any usual interval between samples.
const LEARNING: Duration = Duration::from_secs(15 * 60);
/// How long a series is remembered at least after its last sample; at most twice as long.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// How long room is kept for series that were sent and not acknowledged: senders try again much sooner.
const DOUBTED: Duration = Duration::from_secs(60);
/// Most series that may be under way to a partition before it has said how many it has, where a tenth of the limit is
/// less.
const UNTOLD_MAX: u64 = 10_000;

/// The series of all tenants that have a limit.
#[derive(Debug, Default)]
pub(crate) struct ActiveSeries {
    tenants: Mutex<Tenants>,
}

#[derive(Debug, Default)]
struct Tenants {
    limited: BTreeMap<TenantId, Arc<Mutex<TenantSeries>>>,
    swept_at: Duration,
}

/// Hashes stand for series; a collision lets a series in, once in 2^64. Nothing depends on the sets' order.
#[derive(Debug, Default)]
struct TenantSeries {
    limit: u64,
    /// When it was first asked for.
    since: Duration,
    used_at: Duration,
    counts: BTreeMap<PartitionId, Count>,
    recent: HashSet<u64>,
    older: HashSet<u64>,
    turned_at: Duration,
    /// Series that are not remembered and are on their way into the members.
    reserved: u64,
    /// Those that were on their way and may have arrived or not. They take room, too.
    doubtful: HashSet<u64>,
    doubted_at: Duration,
    /// What was known before the tenant got its limit, while it is learnt.
    before: Option<Arc<TenantKnown>>,
}

/// What members said of a partition.
#[derive(Clone, Copy, Debug)]
struct Count {
    first: u64,
    newest: u64,
    at: Duration,
}

impl ActiveSeries {
    /// Takes down what a member said.
    pub(crate) fn note(&self, tenant: &TenantId, partition: PartitionId, series: u64, now: Duration) {
        let known = self.tenants.lock().limited.get(tenant).cloned();
        if let Some(of_tenant) = known {
            let mut of_tenant = of_tenant.lock();
            let count = of_tenant.counts.entry(partition).or_insert(Count {
                first: series,
                newest: series,
                at: now,
            });
            (count.newest, count.at) = (series, now);
        }
    }

    /// Decides for one request at the monotonic time `now`; nothing to decide when there is no limit. `known` are the
    /// tenant's known series.
    pub(crate) fn gate(
        &self,
        tenant: &TenantId,
        limit: u64,
        known: &TenantKnown,
        now: Duration,
    ) -> Option<SeriesGate> {
        let mut tenants = self.tenants.lock();
        tenants.sweep(now);
        if limit == 0 {
            // What is remembered would be of another time when there is a limit again.
            tenants.limited.remove(tenant);
            return None;
        }
        let series = tenants.limited.entry(tenant.clone()).or_insert_with(|| {
            Arc::new(Mutex::new(TenantSeries {
                since: now,
                turned_at: now,
                before: known.take_before(),
                ..TenantSeries::default()
            }))
        });
        let series = Arc::clone(series);
        drop(tenants);
        let mut of_tenant = series.lock();
        (of_tenant.limit, of_tenant.used_at) = (limit, now);
        of_tenant.turn(now);
        drop(of_tenant);
        Some(SeriesGate {
            series,
            now,
            reserved: 0,
            noted: HashSet::new(),
            parts: BTreeMap::new(),
        })
    }
}

impl Tenants {
    /// Forgets tenants that send no more.
    fn sweep(&mut self, now: Duration) {
        if now.saturating_sub(self.swept_at) > REMEMBERED {
            self.swept_at = now;
            self.limited
                .retain(|_, series| now.saturating_sub(series.lock().used_at) <= 2 * REMEMBERED);
        }
    }
}

impl TenantSeries {
    /// Forgets what is of long ago.
    fn turn(&mut self, now: Duration) {
        if !self.is_learning(now) {
            self.before = None;
        }
        if now.saturating_sub(self.turned_at) > REMEMBERED {
            self.older = std::mem::take(&mut self.recent);
            self.turned_at = now;
            self.counts
                .retain(|_, count| now.saturating_sub(count.at) <= REMEMBERED);
        }
        if now.saturating_sub(self.doubted_at) > DOUBTED {
            self.doubtful = HashSet::new();
        }
    }

    fn is_learning(&self, now: Duration) -> bool {
        now.saturating_sub(self.since) < LEARNING
    }

    /// How many there are, as members said last.
    fn count(&self) -> u64 {
        self.counts.values().map(|count| count.newest).sum()
    }

    /// From which count on no further series gets in.
    fn ceiling(&self, learning: bool) -> u64 {
        if !learning {
            return self.limit;
        }
        let first: u64 = self.counts.values().map(|count| count.first).sum();
        // Half of what it may be exceeded by at most: as much may have got in before the first count.
        self.limit.max(first).saturating_add(self.limit.div_ceil(20))
    }

    /// Series that may or may not be in the count.
    fn under_way(&self) -> u64 {
        self.reserved.saturating_add(self.doubtful.len() as u64)
    }

    fn has(&self, key: u64) -> bool {
        self.older.contains(&key) || self.doubtful.contains(&key)
    }

    /// Whether a series that is not remembered takes room. `mine` of those under way are of the same request.
    fn make_room(&self, partition: PartitionId, mine: u64, learning: bool) -> Result<(), NotAdmitted> {
        let (count, ceiling, tenth) = (self.count(), self.ceiling(learning), self.limit.div_ceil(10));
        // While learning, those of the same request may exist already.
        let certain = if learning { 0 } else { mine };
        if count.saturating_add(certain) >= ceiling {
            return Err(NotAdmitted::Rejected(Rejection::SeriesLimit {
                limit: self.limit,
                now: count,
            }));
        }
        let most = if learning {
            ceiling
        } else {
            ceiling.saturating_add(tenth)
        };
        let untold = !self.counts.contains_key(&partition) && self.under_way() >= tenth.max(UNTOLD_MAX);
        if untold || count.saturating_add(self.under_way()) >= most {
            return Err(NotAdmitted::Undecided);
        }
        Ok(())
    }

    /// Remembers a series that was written. The sets cannot outgrow what there is by more than a tenth: what they hold
    /// beyond it is gone from the members.
    fn remember(&mut self, key: u64) {
        self.older.remove(&key);
        self.doubtful.remove(&key);
        let there_is = self.limit.max(self.count());
        let most = usize::try_from(there_is.saturating_add(there_is.div_ceil(10))).unwrap_or(usize::MAX);
        if self.recent.len().saturating_add(self.older.len()) >= most {
            self.older = HashSet::new();
        }
        if self.recent.len() < most {
            self.recent.insert(key);
        }
    }
}

/// Why a series does not get in.
#[derive(Debug, PartialEq)]
pub(crate) enum NotAdmitted {
    /// There is no room.
    Rejected(Rejection),
    /// Whether there is room shows when what is under way has arrived.
    Undecided,
}

/// Lets the series of one request in, or not.
#[derive(Debug)]
pub(crate) struct SeriesGate {
    series: Arc<Mutex<TenantSeries>>,
    now: Duration,
    /// How many series of the request take room.
    reserved: u64,
    /// Series of the request that are not among the recent ones.
    noted: HashSet<u64>,
    parts: BTreeMap<PartitionId, Admitted>,
}

impl SeriesGate {
    /// Lets a series of a partition in when it is remembered or there is room. `is_known` tells that a majority
    /// acknowledged it since the process started. Gives whether it is to be remembered once it is written.
    pub(crate) fn admit(
        &mut self,
        partition: PartitionId,
        hash: SeriesHash,
        is_known: bool,
    ) -> Result<bool, NotAdmitted> {
        let key = hash.0 as u64;
        let mut series = self.series.lock();
        if series.recent.contains(&key) || self.noted.contains(&key) {
            return Ok(false);
        }
        let learning = series.is_learning(self.now);
        let before = |series: &TenantSeries| series.before.as_ref().is_some_and(|known| known.has(hash));
        let exists = series.has(key) || learning && (is_known || before(&series));
        if !exists {
            series.make_room(partition, self.reserved, learning)?;
            series.reserved += 1;
            self.reserved += 1;
        }
        drop(series);
        self.noted.insert(key);
        let part = self.parts.entry(partition).or_insert_with(|| Admitted {
            series: Arc::clone(&self.series),
            now: self.now,
            keys: Vec::new(),
            is_sent: false,
        });
        let took_room = !exists;
        part.keys.push((key, took_room));
        Ok(true)
    }

    /// Takes back what was last let in to a partition: none of its samples is written.
    pub(crate) fn take_back(&mut self, partition: PartitionId) {
        let Some((key, took_room)) = self.parts.get_mut(&partition).and_then(|part| part.keys.pop()) else {
            return;
        };
        self.noted.remove(&key);
        if took_room {
            self.reserved -= 1;
            self.series.lock().reserved -= 1;
        }
    }

    /// What was let in, by partition.
    pub(crate) fn into_parts(self) -> BTreeMap<PartitionId, Admitted> {
        self.parts
    }
}

/// The series of one request and partition that were let in and are not remembered yet. Dropped, they give their room
/// back.
#[derive(Debug)]
pub(crate) struct Admitted {
    series: Arc<Mutex<TenantSeries>>,
    now: Duration,
    /// Each with whether it takes room.
    keys: Vec<(u64, bool)>,
    is_sent: bool,
}

impl Admitted {
    /// From now on they may arrive, whatever the answer.
    pub(crate) fn sent(&mut self) {
        self.is_sent = true;
    }

    /// They were refused by those they were sent to.
    pub(crate) fn refused(mut self) {
        self.is_sent = false;
    }

    /// They are written.
    pub(crate) fn acknowledged(mut self) {
        let mut series = self.series.lock();
        for (key, took_room) in std::mem::take(&mut self.keys) {
            series.remember(key);
            series.reserved -= u64::from(took_room);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if self.keys.is_empty() {
            return;
        }
        let mut series = self.series.lock();
        for (key, took_room) in std::mem::take(&mut self.keys) {
            series.reserved -= u64::from(took_room);
            if self.is_sent && took_room {
                series.doubtful.insert(key);
                series.doubted_at = self.now;
            }
        }
    }
}

#[cfg(test)]
#[path = "active_series_test.rs"]
mod tests;
