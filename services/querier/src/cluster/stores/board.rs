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

/// How one store stands.
#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    under_way: usize,
    /// Failures since it last answered.
    failures: u32,
    /// On the monotonic clock, as what follows.
    down_until: Duration,
    /// When it last answered, if ever.
    answered: Option<Duration>,
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
    }

    /// One more failure: passed over for longer than before.
    fn pass_over(&mut self, now: Duration) {
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
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(standing) = self.board.stores.lock().get_mut(&self.store) {
            standing.under_way = standing.under_way.saturating_sub(1);
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
            }
        }
        true
    }

    /// Takes note of a read that begins.
    pub(super) fn begin(self: &Arc<Self>, store: &str, why: Why) -> UnderWay {
        self.metrics.asked.get_or_create(&[("why", why.as_str())]).inc();
        self.stores.lock().entry(store.to_owned()).or_default().under_way += 1;
        if why == Why::Assigned {
            let mut pace = self.pace.lock();
            pace.saved = (pace.saved + 1).min(READS_PER_HEDGE * HEDGES_SAVED);
        }
        UnderWay {
            board: Arc::clone(self),
            store: store.to_owned(),
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
    /// others were answered says nothing of the store.
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
        if standing.answered.is_some_and(|answered| answered > since) {
            return;
        }
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

    /// Takes note of an item of a stream that was waited for.
    pub(super) fn item_came(&self, took: Duration) {
        self.pace.lock().gaps.add(took);
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
mod tests {
    use koios_runtime::TokioClock;

    use super::super::super::mock::MockStore;
    use super::*;

    fn board() -> Arc<StoreBoard> {
        let clock = Arc::new(TokioClock::starting_at(0));
        StoreBoard::new(clock, StoreReads::default(), &Metrics::new())
    }

    fn is_up(board: &StoreBoard, name: &str) -> bool {
        board.stores.lock()[name].health(board.clock.elapsed()) != Health::Down
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_does_not_answer_is_passed_over_ever_longer_until_it_does() {
        let board = board();
        for wait in [1, 2, 4, 8, 16, 16] {
            let now = board.elapsed();
            board.failed("a", ServiceErrorCode::Unavailable, now);
            board.failed("a", ServiceErrorCode::DeadlineExceeded, now);
            tokio::time::advance(Duration::from_millis(wait * 1000 - 1)).await;
            assert!(!is_up(&board, "a"), "{wait} s");
            tokio::time::advance(Duration::from_millis(1)).await;
            assert!(is_up(&board, "a"), "{wait} s");
        }
        assert_eq!(board.metrics.down.get(), 1);
        board.answered("a", Duration::ZERO);
        assert_eq!(board.metrics.down.get(), 0);
        board.failed("a", ServiceErrorCode::Unavailable, board.elapsed());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(is_up(&board, "a"));
    }

    #[tokio::test(start_paused = true)]
    async fn damage_and_one_slow_read_say_nothing_of_a_store() {
        let board = board();
        board.answered("a", Duration::ZERO);
        let since = board.elapsed();
        board.failed("a", ServiceErrorCode::Corruption, since);
        assert!(is_up(&board, "a"));
        tokio::time::advance(Duration::from_secs(5)).await;
        board.answered("a", Duration::from_secs(1));
        board.failed("a", ServiceErrorCode::DeadlineExceeded, since);
        assert!(is_up(&board, "a"));
        board.failed("a", ServiceErrorCode::DeadlineExceeded, board.elapsed());
        assert!(!is_up(&board, "a"));
    }

    #[tokio::test(start_paused = true)]
    async fn lagging_is_what_nineteen_of_twenty_answers_are_not() {
        let board = board();
        assert_eq!(board.hedge_after(), Duration::from_secs(3));
        for ms in 0..1000u64 {
            board.answered("a", Duration::from_millis(200 + ms % 100));
        }
        let after = board.hedge_after().as_millis();
        assert!((285..=299).contains(&after), "{after} ms");
        for _ in 0..200 {
            board.answered("a", Duration::from_millis(1));
        }
        assert_eq!(board.hedge_after(), Duration::from_millis(100));
        for _ in 0..200 {
            board.answered("a", Duration::from_secs(20));
        }
        assert_eq!(board.hedge_after(), Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_longer_than_streams_usually_take() {
        let board = board();
        assert_eq!(board.silence(), Duration::from_secs(2));
        for (gap, silence) in [(10, 2_000), (2_000, 8_000), (20_000, 30_000)] {
            for _ in 0..200 {
                board.item_came(Duration::from_millis(gap));
            }
            assert_eq!(board.silence(), Duration::from_millis(silence), "{gap}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn i6_a_tenth_of_the_reads_may_be_hedged() {
        let board = board();
        let hedges = |board: &StoreBoard| (0..100).filter(|_| board.take_hedge("a")).count();
        assert_eq!(hedges(&board), 10);
        for _ in 0..50 {
            drop(board.begin("a", Why::Assigned));
        }
        drop(board.begin("a", Why::Hedge));
        assert_eq!(hedges(&board), 5);
        assert_eq!(board.stores.lock()["a"].under_way, 0);
        // One that did not answer is no slow one.
        board.failed("a", ServiceErrorCode::Unavailable, board.elapsed());
        assert_eq!(hedges(&board), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn only_members_that_are_passed_over_now_are_counted() {
        let board = board();
        let member = |name: &str| StoreMember {
            name: name.to_owned(),
            client: Arc::new(MockStore::default()),
        };
        let members = [member("a"), member("b")];
        for name in ["a", "b"] {
            board.failed(name, ServiceErrorCode::Unavailable, board.elapsed());
        }
        board.see(&members);
        assert_eq!(board.metrics.down.get(), 2);
        board.see(&members[..1]);
        assert_eq!(board.metrics.down.get(), 1);
        assert!(!board.stores.lock().contains_key("b"));
        tokio::time::advance(Duration::from_secs(1)).await;
        board.see(&members);
        assert_eq!(board.metrics.down.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_due_is_tried_by_one_read() {
        let board = board();
        let health = |name: &str| board.stores.lock()[name].health(board.elapsed());
        for name in ["a", "b"] {
            board.failed(name, ServiceErrorCode::Unavailable, board.elapsed());
        }
        assert!(!board.take_trials(["a"].into_iter()));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(board.take_trials(["a"].into_iter()));
        assert!(!board.take_trials(["a", "b"].into_iter()));
        assert_eq!((health("a"), health("b")), (Health::Down, Health::Due));
        // The trial fails: it counted already.
        board.failed("a", ServiceErrorCode::DeadlineExceeded, board.elapsed());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(health("a"), Health::Due);
        assert!(board.take_trials(["a"].into_iter()));
        board.answered("a", Duration::ZERO);
        assert_eq!(health("a"), Health::Up);
    }
}
