//! A wall clock that is set, back and forth, while time goes on as ever (I16).

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use koios_runtime::{Clock, TokioClock};

/// The clocks of the member's machine.
#[derive(Debug)]
pub(crate) struct SimClock {
    time: TokioClock,
    ahead_ms: AtomicI64,
}

impl SimClock {
    /// As [`TokioClock::starting_at`].
    pub(crate) fn starting_at(origin_ms: i64) -> Self {
        Self {
            time: TokioClock::starting_at(origin_ms),
            ahead_ms: AtomicI64::new(0),
        }
    }

    /// Sets the wall clock so far ahead of the true time, or behind it.
    pub(crate) fn set_ahead(&self, ms: i64) {
        self.ahead_ms.store(ms, Ordering::Relaxed);
    }

    /// The time that it should tell.
    pub(crate) fn true_ms(&self) -> i64 {
        self.time.now_ms()
    }
}

impl Clock for SimClock {
    fn now_ms(&self) -> i64 {
        self.time
            .now_ms()
            .saturating_add(self.ahead_ms.load(Ordering::Relaxed))
    }

    fn elapsed(&self) -> Duration {
        self.time.elapsed()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.time.sleep(duration)
    }
}
