//! Tells a query to stop while it runs, and measures how long it goes on.
#![expect(
    clippy::disallowed_methods,
    reason = "what is measured is a thread and the time that passes"
)]

use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{fs, thread};

use koios_promql::{CancelContext, Engine, QueryError};

use super::hostile::Hostile;

/// How a query ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    /// From when it was told to stop until it did; nothing if it was done before.
    pub(crate) latency: Duration,
    /// How much of that it had a core, where the system tells (Linux): other load does not count.
    pub(crate) busy: Option<Duration>,
    /// Whether it was told to stop before it was done.
    pub(crate) stopped: bool,
}

/// Runs a query at the end of [`Hostile`]'s data and tells it to stop after some time.
pub(crate) fn after(text: &str, delay: Duration) -> Ended {
    let query = super::parsed(text);
    let ctx = CancelContext::new(|| false);
    let running = ctx.clone();
    let (place, placed) = mpsc::channel();
    let runs = thread::spawn(move || {
        let own = fs::canonicalize("/proc/thread-self").ok();
        place.send(own.clone()).unwrap();
        let engine = Engine::default();
        let times = (900_000, 1_000_000, 1_000);
        let range = engine.range(&Hostile, &query, times, &running);
        let result = futures::executor::block_on(range);
        (
            Instant::now(),
            busy(own.as_deref()),
            matches!(result, Err(QueryError::Canceled(_))),
        )
    });
    let own = placed.recv().unwrap();
    thread::sleep(delay);
    let (told, busy_before) = (Instant::now(), busy(own.as_deref()));
    ctx.cancel();
    let (ended, busy_then, stopped) = runs.join().unwrap();
    Ended {
        latency: ended.saturating_duration_since(told),
        busy: busy_then
            .zip(busy_before)
            .map(|(then, before)| then.saturating_sub(before)),
        stopped,
    }
}

/// How long a thread has had a core.
fn busy(thread: Option<&Path>) -> Option<Duration> {
    let text = fs::read_to_string(thread?.join("schedstat")).ok()?;
    let nanos = text.split_whitespace().next()?.parse().ok()?;
    Some(Duration::from_nanos(nanos))
}
