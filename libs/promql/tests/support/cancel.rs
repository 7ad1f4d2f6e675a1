//! Tells a query to stop while it runs, and measures how long it goes on.
#![expect(
    clippy::disallowed_methods,
    reason = "what is measured is a thread and the time that passes"
)]

use std::thread;
use std::time::{Duration, Instant};

use koios_promql::{CancelContext, Engine};

use super::hostile::Hostile;

/// How a query ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    /// From when it was told to stop until it did; nothing if it was done before.
    pub(crate) latency: Duration,
    /// Whether it was told to stop before it was done.
    pub(crate) stopped: bool,
}

/// Runs a query at the end of [`Hostile`]'s data and tells it to stop after some time.
pub(crate) fn after(text: &str, delay: Duration) -> Ended {
    let query = super::parsed(text);
    let ctx = CancelContext::new(|| false);
    let running = ctx.clone();
    let runs = thread::spawn(move || {
        let engine = Engine::default();
        let times = (900_000, 1_000_000, 1_000);
        let range = engine.range(&Hostile, &query, times, &running);
        let result = futures::executor::block_on(range);
        (Instant::now(), result.is_err())
    });
    thread::sleep(delay);
    let told = Instant::now();
    ctx.cancel();
    let (ended, stopped) = runs.join().unwrap();
    Ended {
        latency: ended.saturating_duration_since(told),
        stopped,
    }
}
