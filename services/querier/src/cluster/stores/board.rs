//! What a querier has seen of the stores: which of them answer, how quickly, and how much it has asked of each.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use koios_runtime::ClockHandle;
use koios_server::Metrics;
use koios_server::metrics::{ByWord, Counter, Family, Gauge};
use koios_wire::{ServiceError, ServiceErrorCode};
use parking_lot::Mutex;

use super::super::topology::StoreMember;
use super::placement::Candidate;

/// How long a store is passed over after it failed once; doubled each time it fails again.
const DOWN: Duration = Duration::from_secs(1);
/// The longest that gets.
const DOWN_MAX: Duration = Duration::from_secs(16);
/// Answers whose times are remembered, and how many there must be to go by them.
const ANSWERS: std::ops::RangeInclusive<usize> = 16..=128;
/// Reads that a hedge must have been saved up from, so that slow stores do not get twice the work.
const READS_PER_HEDGE: u32 = 10;
/// Hedges that can be saved up.
const HEDGES_SAVED: u32 = 10;
/// So many times as long as nineteen of twenty items of streams took to come is a silence.
const GAPS_OF_SILENCE: u32 = 4;
/// How long after a store went away reads that have no other one wait for it to come back: a process starts within seconds,
/// and what is away for longer must not hold the places of queries that do not need it.
const COMES_BACK: Duration = Duration::from_secs(16);

/// How blocks are read through stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreReads {
    /// How many stores may share the reads of a block; with 1 none is asked beside another one that lags.
    pub replication: usize,
    /// Longest wait for a store's answer, or for the next item of its stream: a cold read fetches many ranges from the
    /// bucket.
    pub wait: Duration,
    /// Shortest wait before the next owner is asked beside one that lags, however quick stores are otherwise.
    pub hedge_min: Duration,
    /// The longest, and that of a querier that has not asked much yet.
    pub hedge_max: Duration,
    /// Shortest silence of a stream that was begun after which other owners are asked to go on beside it, however quickly
    /// items come otherwise.
    pub silence_min: Duration,
}

impl Default for StoreReads {
    fn default() -> Self {
        Self {
            replication: 2,
            wait: Duration::from_secs(30),
            hedge_min: Duration::from_millis(100),
            hedge_max: Duration::from_secs(3),
            silence_min: Duration::from_secs(2),
        }
    }
}

/// Why a store is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The blocks are its share.
    Assigned,
    /// Another one failed.
    Failover,
    /// Another one lags.
    Hedge,
}

impl Why {
    fn as_str(self) -> &'static str {
        match self {
            Self::Assigned => "assigned",
            Self::Failover => "failover",
            Self::Hedge => "hedge",
        }
    }
}

#[derive(Clone, Debug)]
struct BoardMetrics {
    asked: ByWord<Counter>,
    failures: ByWord<Counter>,
    down: Gauge,
}

impl BoardMetrics {
    fn new(metrics: &Metrics) -> Self {
        let (asked, failures) = (Family::default(), Family::default());
        Self {
            asked: metrics.register(
                "koios_querier_store_reads_total",
                "Reads of blocks asked of stores: of blocks that are their share, in place of a store that failed, or beside one that lags",
                asked,
            ),
            failures: metrics.register(
                "koios_querier_store_read_failures_total",
                "Reads of blocks that a store failed, by what it said",
                failures,
            ),
            down: metrics.gauge(
                "koios_querier_stores_passed_over",
                "Stores that did not answer lately, and so are asked last",
            ),
        }
    }
}

/// Whether a store is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// It answered, or nothing is known of it.
    Up,
    /// It was passed over for long enough: one read may try it.
    Due,
    /// It is passed over.
    Down,
}

/// Whether a read that has no store left may ask one once more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// This one.
    Now(String),
    /// Not yet: some may be back soon.
    Later,
    /// None of them is worth waiting for.
    Never,
}

/// How one store stands.
#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    under_way: usize,
    /// Failures since it last answered.
    failures: u32,
    /// On the monotonic clock, as what follows.
    down_until: Duration,
    /// Since when it does not answer.
    down_since: Duration,
    /// When it last answered, if ever, and when an item of a stream last came from it.
    answered: Option<Duration>,
    heard: Option<Duration>,
    /// Whether one read tries if it is back.
    on_trial: bool,
}

impl Standing {
    fn health(&self, now: Duration) -> Health {
        match self.failures {
            0 => Health::Up,
            _ if self.down_until <= now => Health::Due,
            _ => Health::Down,
        }
    }

    fn answer(&mut self, now: Duration) {
        self.failures = 0;
        self.down_until = Duration::ZERO;
        self.answered = Some(now);
        self.on_trial = false;
    }

    /// Whether it has shown since that it lives. An item of a stream that was begun before says that it is not silent, but
    /// not that it can be reached: one that is stopping ends its streams and takes no more.
    fn lives_since(&self, since: Duration, code: ServiceErrorCode) -> bool {
        let is_silence = code == ServiceErrorCode::DeadlineExceeded;
        let heard = self.heard.filter(|_| is_silence);
        self.answered.max(heard).is_some_and(|at| at > since)
    }

    /// One more failure: passed over for longer than before.
    fn pass_over(&mut self, now: Duration) {
        if self.failures == 0 {
            self.down_since = now;
        }
        let down = DOWN.saturating_mul(1 << self.failures.min(16)).min(DOWN_MAX);
        self.failures = self.failures.saturating_add(1);
        self.down_until = now.saturating_add(down);
    }
}

/// How long the last so many of something took.
#[derive(Debug, Default)]
struct Times(VecDeque<Duration>);

impl Times {
    fn add(&mut self, took: Duration) {
        if self.0.len() >= *ANSWERS.end() {
            self.0.pop_front();
        }
        self.0.push_back(took);
    }

    /// What nineteen of twenty took at most, once there are enough to tell.
    fn usual(&self) -> Option<Duration> {
        let mut took: Vec<Duration> = self.0.iter().copied().collect();
        if took.len() < *ANSWERS.start() {
            return None;
        }
        let at = took.len() * 19 / 20;
        Some(*took.select_nth_unstable(at).1)
    }
}

/// How quickly stores answered lately.
#[derive(Debug)]
struct Pace {
    answers: Times,
    /// Between items of streams that were waited for.
    gaps: Times,
    /// Reads saved up for hedges.
    saved: u32,
}

/// Shared by all reads of a querier. Stores are known by name.
#[derive(Debug)]
pub(crate) struct StoreBoard {
    clock: ClockHandle,
    reads: StoreReads,
    stores: Mutex<BTreeMap<String, Standing>>,
    pace: Mutex<Pace>,
    metrics: BoardMetrics,
}

/// A read that is under way at a store until this is dropped.
#[derive(Debug)]
pub(super) struct UnderWay {
    board: Arc<StoreBoard>,
    store: String,
    /// Since when it tries if the store is back, if it does.
    trial: Option<Duration>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let now = self.board.elapsed();
        // Given up before an answer could have come: it found out nothing, and the next read may.
        let fair = self.board.hedge_after();
        let is_cut_short = |since: Duration| now.saturating_sub(since) < fair;
        let mut stores = self.board.stores.lock();
        if let Some(standing) = stores.get_mut(&self.store) {
            standing.under_way = standing.under_way.saturating_sub(1);
            if let Some(since) = self.trial
                && std::mem::take(&mut standing.on_trial)
                && is_cut_short(since)
            {
                standing.failures = standing.failures.saturating_sub(1).max(1);
                standing.down_until = now;
            }
        }
    }
}

impl StoreBoard {
    /// Nothing is known yet.
    pub(crate) fn new(clock: ClockHandle, reads: StoreReads, metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self {
            clock,
            reads,
            stores: Mutex::default(),
            pace: Mutex::new(Pace {
                answers: Times::default(),
                gaps: Times::default(),
                saved: READS_PER_HEDGE * HEDGES_SAVED,
            }),
            metrics: BoardMetrics::new(metrics),
        })
    }

    /// How many stores share the reads of a block.
    pub(super) fn replication(&self) -> usize {
        self.reads.replication
    }

    /// Stores as they stand.
    pub(super) fn candidates<'s>(&self, stores: impl Iterator<Item = &'s StoreMember>) -> Vec<Candidate> {
        let (now, standings) = (self.clock.elapsed(), self.stores.lock());
        let candidate = |store: &StoreMember| {
            let standing = standings.get(&store.name).copied().unwrap_or_default();
            Candidate {
                store: store.clone(),
                health: standing.health(now),
                under_way: standing.under_way,
            }
        };
        stores.map(candidate).collect()
    }

    /// Takes the turn to try stores that are due: from here on each counts as having failed once more until it answers, so
    /// that others pass it over while this read finds out. False when another read came first at one of them.
    pub(super) fn take_trials<'s>(&self, due: impl Iterator<Item = &'s str> + Clone) -> bool {
        let (now, mut stores) = (self.clock.elapsed(), self.stores.lock());
        let is_due = |name: &str| {
            let standing = stores.get(name);
            standing.is_some_and(|standing| standing.health(now) == Health::Due)
        };
        if !due.clone().all(is_due) {
            return false;
        }
        for name in due {
            if let Some(standing) = stores.get_mut(name) {
                standing.pass_over(now);
                standing.on_trial = true;
            }
        }
        true
    }

    /// Takes the turn to ask one of some stores again that failed a read, each at a time, when such stores have gone on with it
    /// `times` times before: one that answered others since, or that was not asked for a while, ever longer ones. So a store
    /// that is away is asked by one read at a time, ever more rarely, however many wait for it.
    pub(super) fn take_again<'s>(
        &self,
        failed: impl Iterator<Item = (&'s str, Duration)>,
        times: u32,
    ) -> Again {
        let (now, mut stores) = (self.clock.elapsed(), self.stores.lock());
        let patience = DOWN.saturating_mul(1 << times.min(16)).min(DOWN_MAX);
        let (mut due, mut again) = (None, Again::Never);
        for (name, failed_at) in failed {
            let standing = stores.get(name).copied().unwrap_or_default();
            match standing.health(now) {
                Health::Up => {
                    let is_back = standing.answered.is_some_and(|at| at > failed_at);
                    if is_back || now.saturating_sub(failed_at) >= patience {
                        return Again::Now(name.to_owned());
                    }
                    again = Again::Later;
                }
                Health::Due => due = due.or(Some(name)),
                Health::Down if now.saturating_sub(standing.down_since) < COMES_BACK => again = Again::Later,
                Health::Down => {}
            }
        }
        let Some(name) = due else {
            return again;
        };
        if let Some(standing) = stores.get_mut(name) {
            standing.pass_over(now);
            standing.on_trial = true;
        }
        Again::Now(name.to_owned())
    }

    /// Takes note of a read that begins.
    pub(super) fn begin(self: &Arc<Self>, store: &str, why: Why) -> UnderWay {
        self.metrics.asked.get_or_create(&[("why", why.as_str())]).inc();
        if why == Why::Assigned {
            let mut pace = self.pace.lock();
            pace.saved = (pace.saved + 1).min(READS_PER_HEDGE * HEDGES_SAVED);
        }
        let mut stores = self.stores.lock();
        let standing = stores.entry(store.to_owned()).or_default();
        standing.under_way += 1;
        UnderWay {
            board: Arc::clone(self),
            store: store.to_owned(),
            trial: standing.on_trial.then(|| self.clock.elapsed()),
        }
    }

    /// Takes note of a store that answered.
    pub(super) fn answered(&self, store: &str, took: Duration) {
        self.pace.lock().answers.add(took);
        let mut stores = self.stores.lock();
        let standing = stores.entry(store.to_owned()).or_default();
        standing.answer(self.clock.elapsed());
        self.count_down(&stores);
    }

    /// Takes note of a store that failed at something asked at `since`: one that did not answer is passed over for a while.
    /// One that says something of a block, of the bucket or of the request does answer; and one read that took too long while
    /// others were answered, or while streams went on, says nothing of the store.
    pub(super) fn failed(&self, store: &str, code: ServiceErrorCode, since: Duration) {
        self.metrics
            .failures
            .get_or_create(&[("code", code.as_str())])
            .inc();
        let now = self.clock.elapsed();
        let mut stores = self.stores.lock();
        let standing = stores.entry(store.to_owned()).or_default();
        if !matches!(
            code,
            ServiceErrorCode::Unavailable | ServiceErrorCode::DeadlineExceeded
        ) {
            standing.answer(now);
            self.count_down(&stores);
            return;
        }
        if standing.lives_since(since, code) {
            return;
        }
        standing.on_trial = false;
        // Reads that fail together are one failure.
        if standing.down_until <= now {
            standing.pass_over(now);
        }
        self.count_down(&stores);
    }

    /// Takes note of who the members are: what was seen of those that left is forgotten.
    pub(super) fn see(&self, members: &[StoreMember]) {
        let mut stores = self.stores.lock();
        stores.retain(|name, standing| standing.under_way > 0 || members.iter().any(|m| m.name == *name));
        self.count_down(&stores);
    }

    fn count_down(&self, stores: &BTreeMap<String, Standing>) {
        let now = self.clock.elapsed();
        let is_down = |standing: &&Standing| standing.health(now) == Health::Down;
        let down = stores.values().filter(is_down).count();
        self.metrics.down.set(i64::try_from(down).unwrap_or(i64::MAX));
    }

    /// How long a store may take before it lags: longer than nineteen of twenty answers took lately.
    pub(super) fn hedge_after(&self) -> Duration {
        let StoreReads {
            hedge_min, hedge_max, ..
        } = self.reads;
        let usual = self.pace.lock().answers.usual();
        usual.map_or(hedge_max, |usual| usual.max(hedge_min).min(hedge_max))
    }

    /// Takes note of an item of a store's stream that was waited for.
    pub(super) fn item_came(&self, store: &str, took: Duration) {
        self.pace.lock().gaps.add(took);
        let now = self.clock.elapsed();
        if let Some(standing) = self.stores.lock().get_mut(store) {
            standing.heard = Some(now);
        }
    }

    /// How long a stream that was begun may be silent: a few times as long as items usually take.
    pub(super) fn silence(&self) -> Duration {
        let usual = self.pace.lock().gaps.usual().unwrap_or_default();
        let silence = usual.saturating_mul(GAPS_OF_SILENCE).max(self.reads.silence_min);
        silence.min(self.reads.wait)
    }

    /// How long a read that may not be hedged waits before it asks again whether it may.
    pub(super) fn hedge_again(&self) -> Duration {
        self.reads.hedge_min
    }

    /// Whether another store may be asked beside one that lags; if so it is counted. Always where the store did not answer
    /// when it was last asked: that is no slowness that more work would add to.
    pub(super) fn take_hedge(&self, store: &str) -> bool {
        let failures = self
            .stores
            .lock()
            .get(store)
            .map_or(0, |standing| standing.failures);
        if failures > 0 {
            return true;
        }
        let mut pace = self.pace.lock();
        let left = pace.saved.checked_sub(READS_PER_HEDGE);
        pace.saved = left.unwrap_or(pace.saved);
        left.is_some()
    }

    /// Waits.
    pub(super) fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.clock.sleep(duration)
    }

    /// The monotonic clock.
    pub(super) fn elapsed(&self) -> Duration {
        self.clock.elapsed()
    }

    /// Waits for a store as long as one may.
    pub(super) async fn within<T>(&self, future: impl Future<Output = T>) -> Result<T, ServiceError> {
        let timed = self.clock.timeout(self.reads.wait, future).await;
        timed.map_err(|e| ServiceError::new(ServiceErrorCode::DeadlineExceeded, format!("no answer: {e}")))
    }
}

#[cfg(test)]
mod board_test;
