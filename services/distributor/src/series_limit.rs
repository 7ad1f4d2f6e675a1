//! How many series a tenant may have: new ones get in while there is room.
//!
//! Members are the authority on which series exist, and on how many. They say how many with every acknowledgement, and both
//! when they are asked ([`crate::limiter`]). Kept here is what they said, and the room that is taken by series on their way
//! to them: such a series takes it from when it is let in until its request has ended, so that requests at the same time do
//! not take the same room twice.
//!
//! Other distributors let series in, too. What is let in without asking is little, and where there are others one alone does
//! not take all room there is, but for a single request.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use koios_model::{PartitionId, SeriesHash, TenantId};
use parking_lot::Mutex;

use crate::metric_limit::{MetricRoom, UnderWay};
use crate::rejection::Rejection;

/// All distributors together let so much of the limit in on what members said some time ago: a twentieth. And so much
/// beyond what is left, each its part, when they ask at the same time.
const SLACK: u64 = 20;
/// How long room is kept at least for series that were sent and not acknowledged: senders try again much sooner.
const DOUBTED: Duration = Duration::from_secs(60);
/// How long a tenant is remembered that sends no more.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// What is known of all tenants that have a limit.
#[derive(Debug, Default)]
pub(crate) struct SeriesLimits {
    tenants: Mutex<Tenants>,
}

#[derive(Debug, Default)]
struct Tenants {
    limited: BTreeMap<TenantId, Arc<Mutex<Accounts>>>,
    swept_at: Duration,
}

/// What is known of one tenant. The last 64 bits of a hash stand for a series: taken for another one, once in 2^64, it
/// gets in without room.
#[derive(Debug, Default)]
struct Accounts {
    counts: BTreeMap<PartitionId, Count>,
    /// Series that were let in without asking, since all members were asked.
    unasked: u64,
    /// Series that take room and are on their way into the members.
    reserved: u64,
    /// Those that were on their way and may have arrived or not. They take room, too.
    doubtful: Doubtful,
    used_at: Duration,
    metrics: UnderWay,
}

/// Series of which it is not known whether they arrived; each for one to two times as long as room is kept.
#[derive(Debug, Default)]
struct Doubtful {
    newer: HashSet<u64>,
    older: HashSet<u64>,
    turned_at: Duration,
}

impl Doubtful {
    fn turn(&mut self, now: Duration) {
        let age = now.saturating_sub(self.turned_at);
        if age > DOUBTED {
            let newer = std::mem::take(&mut self.newer);
            self.older = if age > 2 * DOUBTED { HashSet::new() } else { newer };
            self.turned_at = now;
        }
    }

    fn contains(&self, key: u64) -> bool {
        self.newer.contains(&key) || self.older.contains(&key)
    }

    fn remove(&mut self, key: u64) -> bool {
        self.newer.remove(&key) || self.older.remove(&key)
    }

    fn insert(&mut self, key: u64) {
        if !self.older.contains(&key) {
            self.newer.insert(key);
        }
    }

    fn len(&self) -> usize {
        self.newer.len() + self.older.len()
    }
}

/// How many series members said that there are in a partition.
#[derive(Clone, Copy, Debug)]
struct Count {
    series: u64,
    at: Duration,
}

/// What is said of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existence {
    /// A member has it.
    Held,
    /// So many members lack it that no majority can have it.
    Absent,
    /// Too few members answered.
    Untold,
}

/// Series of a request by partition.
pub(crate) type ByPartition<T> = BTreeMap<PartitionId, T>;

/// What becomes of a request's unknown series.
#[derive(Debug, Default)]
pub(crate) struct Decision {
    /// The room that those take that get in.
    pub(crate) reserved: ByPartition<Reserved>,
    /// There is no room for these.
    pub(crate) refused: HashSet<SeriesHash>,
    /// Whether there is room for these shows when what is under way has arrived, or when members answer.
    pub(crate) undecided: HashSet<SeriesHash>,
    /// How many series there are, those of the request included.
    pub(crate) count: u64,
    /// There is no room for these among those of their metric.
    pub(crate) refused_by_metric: HashMap<SeriesHash, Arc<Rejection>>,
    /// The room that those take of their metrics' that get in.
    pub(crate) metric_room: Option<MetricRoom>,
}

impl Decision {
    /// Why a series is refused, if it is; `of_all` says that the tenant has too many.
    pub(crate) fn refusal<'a>(&'a self, hash: &SeriesHash, of_all: &'a Rejection) -> Option<&'a Rejection> {
        match self.refused_by_metric.get(hash) {
            Some(rejection) => Some(&**rejection),
            None => self.refused.contains(hash).then_some(of_all),
        }
    }

    /// Whether all get in.
    pub(crate) fn is_yes(&self) -> bool {
        self.refused.is_empty() && self.undecided.is_empty() && self.refused_by_metric.is_empty()
    }
}

impl SeriesLimits {
    /// The room of a tenant at the monotonic time `now`, for one request; none when there is no limit, neither on all of its
    /// series nor `per_metric`.
    pub(crate) fn of(
        &self,
        tenant: &TenantId,
        (limit, per_metric): (u64, u64),
        now: Duration,
    ) -> Option<Room> {
        let mut tenants = self.tenants.lock();
        tenants.sweep(now);
        if limit == 0 && per_metric == 0 {
            // What is remembered would be of another time when there is a limit again.
            tenants.limited.remove(tenant);
            return None;
        }
        let accounts = Arc::clone(tenants.limited.entry(tenant.clone()).or_default());
        drop(tenants);
        accounts.lock().used_at = now;
        let limit = if limit == 0 { u64::MAX } else { limit };
        Some(Room { accounts, limit, now })
    }
}

impl Tenants {
    /// Forgets tenants that send no more.
    fn sweep(&mut self, now: Duration) {
        if now.saturating_sub(self.swept_at) > REMEMBERED {
            self.swept_at = now;
            self.limited
                .retain(|_, accounts| now.saturating_sub(accounts.lock().used_at) <= REMEMBERED);
        }
    }
}

impl Accounts {
    /// How many there are, as members said last.
    fn count(&self) -> u64 {
        self.counts.values().map(|count| count.series).sum()
    }

    /// Series that may or may not be in the count.
    fn under_way(&self) -> u64 {
        self.reserved.saturating_add(self.doubtful.len() as u64)
    }

    fn note(&mut self, partition: PartitionId, series: u64, (asked_at, now): (Duration, Duration)) {
        let newest = Count { series, at: now };
        let held = self.counts.entry(partition).or_insert(newest);
        // Of two answers that were awaited at the same time the smaller one may lack what the other one has.
        if asked_at > held.at || series > held.series {
            *held = newest;
        }
    }

    /// How many may get in where `left` are left, as members said just now.
    fn room(&self, limit: u64, left: u64, distributors: u64) -> u64 {
        let under_way = self.under_way();
        if distributors > 1 && under_way > 0 {
            let mine = left.saturating_add(limit.div_ceil(SLACK)) / distributors;
            return mine.min(left).saturating_sub(under_way);
        }
        left.saturating_sub(under_way)
    }
}

fn key(hash: SeriesHash) -> u64 {
    hash.0 as u64
}

/// The room that a tenant has, for one request. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    accounts: Arc<Mutex<Accounts>>,
    limit: u64,
    now: Duration,
}

impl Room {
    /// The limit.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// New series under way, by metric.
    pub(crate) fn metrics(&self) -> UnderWay {
        Arc::clone(&self.accounts.lock().metrics)
    }

    /// Takes down how many series a partition has, as was asked for and said at these times.
    pub(crate) fn note(&self, partition: PartitionId, series: u64, times: (Duration, Duration)) {
        self.accounts.lock().note(partition, series, times);
    }

    /// Takes room for unknown series, all of which get in, if there surely is enough and members need not be asked. Series
    /// go to `partitions`, from so many distributors.
    pub(crate) fn take_at_once(
        &self,
        unknown: &ByPartition<Arc<[SeriesHash]>>,
        partitions: &BTreeMap<PartitionId, impl Sized>,
        distributors: u64,
    ) -> Option<ByPartition<Reserved>> {
        let mut accounts = self.accounts();
        let all = unknown.values().flat_map(|series| series.iter());
        let new = all.filter(|hash| !accounts.doubtful.contains(key(**hash)));
        let new = new.count() as u64;
        let unasked = accounts.unasked.saturating_add(new);
        let sum = accounts
            .count()
            .saturating_add(accounts.under_way())
            .saturating_add(new);
        let is_told = partitions.keys().all(|p| accounts.counts.contains_key(p));
        if !is_told || sum > self.limit || unasked > self.limit / SLACK.saturating_mul(distributors) {
            return None;
        }
        accounts.unasked = unasked;
        let reserve = |(partition, series): (&PartitionId, &Arc<[SeriesHash]>)| {
            let mut reserved = self.nothing();
            for hash in series.iter() {
                accounts.doubtful.remove(key(*hash));
                reserved.keys.push(key(*hash));
            }
            accounts.reserved += reserved.keys.len() as u64;
            (*partition, reserved)
        };
        Some(unknown.iter().map(reserve).collect())
    }

    /// Decides by what the members of all `partitions` said just now, whose counts are noted. Series that exist get in,
    /// whatever the limit.
    pub(crate) fn decide(
        &self,
        asked: &ByPartition<Vec<(SeriesHash, Existence)>>,
        partitions: &BTreeMap<PartitionId, impl Sized>,
        distributors: u64,
    ) -> Decision {
        let mut accounts = self.accounts();
        accounts.unasked = 0;
        accounts
            .counts
            .retain(|partition, _| partitions.contains_key(partition));
        let is_told = partitions.keys().all(|p| accounts.counts.contains_key(p));
        let count = accounts.count();
        let left = match is_told {
            // Whatever there is.
            _ if self.limit == u64::MAX => self.limit,
            true => self.limit.saturating_sub(count),
            false => 0,
        };
        let mut room = accounts.room(self.limit, left, distributors);
        // With those of this request: if they do not arrive all of it comes again.
        let mut sum = count;
        let mut decision = Decision::default();
        for (partition, series) in asked {
            let mut reserved = self.nothing();
            for &(hash, existence) in series {
                let has_room = accounts.doubtful.remove(key(hash));
                if existence == Existence::Held {
                    continue;
                }
                if has_room || room > 0 {
                    room -= u64::from(!has_room);
                    sum = sum.saturating_add(1);
                    reserved.keys.push(key(hash));
                } else if existence == Existence::Absent && sum >= self.limit {
                    decision.refused.insert(hash);
                } else {
                    decision.undecided.insert(hash);
                }
            }
            accounts.reserved += reserved.keys.len() as u64;
            decision.reserved.insert(*partition, reserved);
        }
        decision.count = sum;
        decision
    }

    fn accounts(&self) -> parking_lot::MutexGuard<'_, Accounts> {
        let mut accounts = self.accounts.lock();
        accounts.doubtful.turn(self.now);
        accounts
    }

    fn nothing(&self) -> Reserved {
        Reserved {
            accounts: Arc::clone(&self.accounts),
            now: self.now,
            keys: Vec::new(),
            is_scarce: self.limit < u64::MAX,
            is_sent: false,
        }
    }
}

/// Room that series of one request and partition take. Dropped, it is given back.
#[derive(Debug)]
pub(crate) struct Reserved {
    accounts: Arc<Mutex<Accounts>>,
    now: Duration,
    keys: Vec<u64>,
    /// Whether there is a limit to it at all.
    is_scarce: bool,
    is_sent: bool,
}

impl Reserved {
    /// From now on they may arrive, whatever the answer.
    pub(crate) fn sent(&mut self) {
        self.is_sent = true;
    }

    /// Whether they arrived is known: they are counted, or will never be.
    pub(crate) fn settled(mut self) {
        self.is_sent = false;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if self.keys.is_empty() {
            return;
        }
        let mut accounts = self.accounts.lock();
        accounts.reserved -= self.keys.len() as u64;
        if self.is_sent && self.is_scarce {
            accounts.doubtful.turn(self.now);
            for key in std::mem::take(&mut self.keys) {
                accounts.doubtful.insert(key);
            }
        }
    }
}

#[cfg(test)]
#[path = "series_limit_test.rs"]
mod tests;
