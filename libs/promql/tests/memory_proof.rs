//! What a query says it holds is what it holds: every byte that is allocated while it runs is counted here (I12).
#![allow(unsafe_code, reason = "an allocator that counts")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use koios_promql::{Engine, EngineOptions, QueryError, QueryOutput};
use support::hostile::{Hostile, QUERIES};
use support::threads::Threads;

/// What is allocated is at most this much of the bytes accounted for, in percent: some columns grow by doubling, and for a
/// moment both are there.
const PERCENT: usize = 150;
/// Beside that: plans, tasks, compiled patterns, and what is counted in larger pieces.
const SLACK: usize = 512 << 10;
/// How much of the limit may be held beyond it by what is made ahead of its turn, in percent.
const AHEAD_PERCENT: usize = 25;

fn allowed(accounted: usize) -> usize {
    accounted / 100 * PERCENT + SLACK
}

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grown(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(live, Ordering::Relaxed);
}

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are the same.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both may be there for a moment.
        grown(size);
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are the same.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Runs a query with a limit on one or several threads; gives the most bytes that were allocated at once meanwhile, too.
fn run(text: &str, max_memory_bytes: usize, threads: usize) -> (Result<QueryOutput, QueryError>, usize) {
    let engine = Engine::new(EngineOptions {
        max_samples: usize::MAX,
        max_memory_bytes,
        ..EngineOptions::default()
    });
    let (query, ctx) = (support::parsed(text), Threads(threads));
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let result = if text.ends_with(']') {
        futures::executor::block_on(engine.instant(&Hostile, &query, 1_190_000, &ctx))
    } else {
        let times = (1_090_000, 1_190_000, 1_000);
        futures::executor::block_on(engine.range(&Hostile, &query, times, &ctx))
    };
    (result, PEAK.load(Ordering::Relaxed).saturating_sub(before))
}

/// Beside [`QUERIES`], which are run over time unless they are range vectors.
const MORE: &[&str] = &[
    "rate(m[5m])",
    "sum by (j) (rate(m[5m]))",
    "m * on (i, j) group_left (pad) m",
    "quantile_over_time(0.9, m[5m])",
    "max_over_time(rate(m[1m])[5m:1s])",
    "sort(m)",
    "label_replace(m, \"x\", \"$1\", \"pad\", \"(.*)\")",
    "count_values(\"v\", m % 10)",
    "sum by (i) (h @ 100)",
    "histogram_quantile(0.5, sum(h))",
    "quantile_over_time(0.5, long[5m])",
    "max_over_time(long[5m])",
    "sum_over_time((long * 0.1)[5m:1ms])",
    "changes(long[5m])",
    "rate(long[5m])",
    // More steps than are folded at a time.
    "max_over_time(sum by (i) (m % 7)[70001ms:1ms] @ 1000)",
    "max_over_time(avg by (i) (m % 7)[70001ms:1ms] @ 1000)",
    "last_over_time(sum(h)[9001ms:1ms] @ 1000)",
    "quantile_over_time(scalar(nothing), m[5m])",
    "m == on () group_left () (vector(time()) > 1100)",
    "{__name__=~\"m|h\"}",
];

#[test]
fn i12_what_is_allocated_is_what_is_accounted_for() {
    // What is made once.
    let _ = run("m", usize::MAX, 1);
    let mut failures = Vec::new();
    for text in QUERIES.iter().chain(MORE) {
        let (result, allocated) = run(text, usize::MAX, 1);
        let accounted = match result {
            Ok(output) => output.stats.bytes_peak as usize,
            Err(error) => panic!("{text}: {error}"),
        };
        if allocated > allowed(accounted) {
            failures.push(format!("{text}: {allocated} bytes for {accounted}"));
        }
        let limit = accounted / 3;
        let (result, allocated) = run(text, limit, 4);
        if allocated > allowed(limit + limit / 100 * AHEAD_PERCENT) {
            let end = result.map_or_else(|e| e.to_string(), |_| "passed".to_owned());
            failures.push(format!(
                "{text}: {allocated} bytes with a limit of {limit}: {end}"
            ));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
