//! Claims about the time by which samples get old.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use futures::future::BoxFuture;
use koios_runtime::{Clock, RngHandle, TokioClock};
use object_store::memory::InMemory;

use super::*;

const DAY: i64 = 24 * 3_600_000;

/// A clock that is set.
#[derive(Debug)]
struct SetClock {
    clock: TokioClock,
    set_by_ms: AtomicI64,
}

impl Clock for SetClock {
    fn now_ms(&self) -> i64 {
        self.clock.now_ms() + self.set_by_ms.load(Ordering::Relaxed)
    }

    fn elapsed(&self) -> Duration {
        self.clock.elapsed()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.clock.sleep(duration)
    }
}

/// A clock that is so far ahead of the storage's, and what is trusted of both.
async fn world(ahead_ms: i64) -> (Arc<SetClock>, TrustedClock, i64) {
    let objects = Arc::new(InMemory::new());
    let bucket = |clock: ClockHandle| {
        Bucket::new(
            Arc::<InMemory>::clone(&objects),
            "",
            clock,
            RngHandle::from_seed(1),
        )
    };
    let any: ClockHandle = Arc::new(TokioClock::starting_at(0));
    let stored_ms = bucket(any).stored_now_ms("test").await.unwrap();
    let clock = Arc::new(SetClock {
        clock: TokioClock::starting_at(stored_ms + ahead_ms),
        set_by_ms: AtomicI64::new(0),
    });
    let handle: ClockHandle = Arc::<SetClock>::clone(&clock);
    let trusted = TrustedClock::new(Arc::clone(&handle), bucket(handle), "store-1".to_owned());
    (clock, trusted, stored_ms)
}

#[tokio::test(start_paused = true)]
async fn i10_a_clock_that_leaps_between_two_answers_makes_nothing_old() {
    let (clock, mut trusted, stored_ms) = world(0).await;
    let first = trusted.now_ms().await.unwrap();
    assert!((0..DAY).contains(&(first - stored_ms)));
    clock.set_by_ms.store(400 * DAY, Ordering::Relaxed);
    clock.sleep(Duration::from_secs(60)).await;
    let later = trusted.now_ms().await.unwrap();
    assert!((0..=600_000).contains(&(later - first)), "{}", later - first);
    // It is asked again.
    clock.sleep(Duration::from_secs(600)).await;
    let asked = trusted.now_ms().await.unwrap();
    assert!((asked - first).abs() < DAY);
    assert!(trusted.ahead_seconds() >= 399 * 86_400);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_behind_counts() {
    let (clock, mut trusted, stored_ms) = world(-30 * DAY).await;
    assert_eq!(trusted.now_ms().await.unwrap(), stored_ms - 30 * DAY);
    assert_eq!(trusted.ahead_seconds(), 0);
    // And one that is set back.
    clock.set_by_ms.store(-DAY, Ordering::Relaxed);
    assert_eq!(trusted.now_ms().await.unwrap(), stored_ms - 31 * DAY);
}
