//! A query asks whether to go on after every bounded amount of work, wherever its work is, and ends when told to (I12).

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use koios_promql::{Engine, EngineOptions, Interrupt, QueryContext, QueryError};
use support::hostile::{Hostile, SAMPLES};

/// Counts the questions, and answers one of them, and all after it, by a wish to stop.
#[derive(Clone, Debug)]
struct Counted {
    asked: Arc<AtomicU64>,
    stop_at: u64,
}

impl QueryContext for Counted {
    fn interrupted(&self) -> Option<Interrupt> {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        (asked >= self.stop_at).then_some(Interrupt::Canceled)
    }

    fn shared(&self) -> Arc<dyn QueryContext> {
        Arc::new(self.clone())
    }
}

/// Runs a query; gives the error, if any, and how often it asked.
fn run(text: &str, (start, end, step): (i64, i64, i64), stop_at: u64) -> (Option<QueryError>, u64) {
    let engine = Engine::new(EngineOptions {
        max_samples: usize::MAX,
        max_memory_bytes: 1 << 30,
        ..EngineOptions::default()
    });
    let ctx = Counted {
        asked: Arc::default(),
        stop_at,
    };
    let query = support::parsed(text);
    let range = engine.range(&Hostile, &query, (start, end, step), &ctx);
    let result = futures::executor::block_on(range);
    (result.err(), ctx.asked.load(Ordering::Relaxed))
}

/// Work that may lie between two questions: some milliseconds.
const UNITS_PER_QUESTION: u64 = 1 << 16;

/// A subquery over as many steps as those below, of something that costs no more than to make one row.
const BASELINE: &str = "last_over_time(vector(1)[500s:1ms])";

/// Queries with long loops, each over one series, and how many values these look at beyond those of the baseline, in
/// thousands: at least.
const LONG: &[(&str, u64)] = &[
    ("last_over_time(vector(time() + 1)[500s:1ms])", 500),
    ("last_over_time((vector(time()) * 2)[500s:1ms])", 500),
    ("last_over_time(exp(vector(time()))[500s:1ms])", 500),
    ("last_over_time((-vector(time()))[500s:1ms])", 500),
    ("last_over_time(clamp(vector(time()), 0, 1)[500s:1ms])", 500),
    ("last_over_time(minute(vector(time()))[500s:1ms])", 500),
    ("last_over_time(timestamp(vector(time()))[500s:1ms])", 500),
    ("last_over_time(absent(vector(time()) < 0)[500s:1ms])", 500),
    ("last_over_time(vector(scalar(vector(time())))[500s:1ms])", 500),
    (
        "last_over_time((vector(time()) + vector(time()))[500s:1ms])",
        1_000,
    ),
    (
        "last_over_time((vector(time()) and vector(time()))[500s:1ms])",
        1_000,
    ),
    (
        "last_over_time((vector(time()) or vector(time()))[500s:1ms])",
        1_000,
    ),
    ("last_over_time(topk(1, vector(time()))[500s:1ms])", 500),
    ("last_over_time(limit_ratio(1, vector(time()))[500s:1ms])", 500),
    ("last_over_time(quantile(0.5, vector(time()))[500s:1ms])", 500),
    ("last_over_time(stddev(vector(time()))[500s:1ms])", 500),
    (
        "last_over_time(count_values(\"v\", vector(time() > bool 0))[500s:1ms])",
        1_000,
    ),
    (
        "last_over_time(histogram_quantile(time(), vector(1))[500s:1ms])",
        500,
    ),
    ("last_over_time(long[500s:1ms])", 500),
    ("last_over_time(rate(long[1s])[500s:1ms])", 500),
    ("last_over_time(max_over_time(long[1s])[500s:1ms])", 500),
    // Without samples there is nothing to do but to pass the windows.
    (
        "last_over_time(count_over_time(nothing_lately[1s])[5000s:1ms])",
        4_000,
    ),
    ("quantile_over_time(0.5, long[500s])", 500),
];

#[test]
fn i12_long_loops_ask_in_between() {
    let at = (1_000_000, 1_000_000, 1);
    let (_, baseline) = run(BASELINE, at, u64::MAX);
    for (text, thousands) in LONG {
        let (error, asked) = run(text, at, u64::MAX);
        assert!(error.is_none(), "{text}: {error:?}");
        let expected = thousands * 1_000 / UNITS_PER_QUESTION;
        // What is left of a unit may make a question more or less.
        assert!(
            asked + 1 >= baseline + expected,
            "{text}: asked {asked} times, {baseline} of them by the baseline"
        );
    }
}

/// Queries with many series.
const WIDE: &[&str] = &[
    "sum by (i) (rate(m[1m]))",
    "m * on (i) group_left () sum by (i) (m)",
    "m or m + 1",
    "label_replace(m, \"x\", \"$1\", \"pad\", \"(.*)\")",
    "label_join(m, \"x\", \"-\", \"pad\", \"i\")",
    "topk by (i) (2, m)",
    "quantile by (i) (0.5, m)",
    "count_values(\"v\", m)",
    "sort(m)",
    "info(m, {__name__=\"m\"})",
    "histogram_quantile(0.9, c_bucket)",
    "sum(h) + avg(h)",
    "rate(h[1m])",
    "histogram_stddev(-h * 2)",
    "quantile_over_time(0.5, m[10m])",
    "absent(m)",
];

#[test]
fn i12_a_query_ends_at_the_first_question_it_is_told_to() {
    let times = (SAMPLES * 1_000 - 30_000, SAMPLES * 1_000 - 10_000, 1_000);
    let mut seed = 7_u64;
    for text in WIDE {
        let (_, questions) = run(text, times, u64::MAX);
        assert!(questions > 5, "{text}: asked {questions} times");
        for _ in 0..2 {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let stop_at = (seed >> 33) % questions;
            let (error, asked) = run(text, times, stop_at);
            assert!(
                matches!(error, Some(QueryError::Canceled(_))),
                "{text} at {stop_at}: {error:?}"
            );
            assert_eq!(asked, stop_at + 1, "{text}: asked on after it was told to stop");
        }
    }
}
