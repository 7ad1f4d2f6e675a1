//! Scripts against the real read path: whatever part of the samples is in heads and whatever part in blocks, queries
//! read the very samples that were written, and so answer as they do over memory.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "helpers of tests, too, fail by panicking and report by printing"
)]

mod stored;

use std::collections::BTreeMap;

use koios_model::{Labels, Matchers, TimeRange, stale_nan};
use koios_promql::{Engine, SampleValue, SelectHints, SelectRequest};
use koios_runtime::RngHandle;
use koios_testkit::promqltest::{Point, Storage};
use koios_testkit::promqltest::{evaluations, own_scripts, run_on, suite_scripts};
use stored::{ALL, BLOCKS, COMPACTED, HEAD, Layout, MIDDLE, Stored, THREE_STORES};

/// Runs scripts in a layout; gives how many evaluations passed, which are all.
async fn run_all(scripts: &[(String, String)], layout: Layout) -> usize {
    let (mut passed, mut failed) = (0, Vec::new());
    let mut storage = Stored::start(layout).await;
    let mut written = 0;
    for (name, script) in scripts {
        written += evaluations(script);
        let report = run_on(script, &Engine::default(), &mut storage)
            .await
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        passed += report.passed;
        let failures = report.failures.iter();
        failed.extend(failures.map(|f| format!("{name}:{}: {}\n    {}", f.line, f.query, f.reason)));
    }
    storage.stop().await;
    let of = layout.name;
    println!("{of}: {passed} passed, {} failed", failed.len());
    assert!(failed.is_empty(), "{of}:\n{}", failed.join("\n"));
    assert_eq!(passed, written, "{of}: every evaluation that is written");
    passed
}

#[tokio::test(start_paused = true)]
async fn a_layout_puts_samples_where_it_says() {
    let script = "load 1m\n  a 0+1x9\n  b 0+1x4\n\neval instant at 2m sum_over_time(a[10m])\n  {} 3\n";
    for (layout, in_heads) in [(HEAD, 2), (BLOCKS, 0), (MIDDLE, 1)] {
        let mut storage = Stored::start(layout).await;
        let report = run_on(script, &Engine::default(), &mut storage).await.unwrap();
        assert_eq!((report.passed, report.failures.len()), (1, 0));
        assert_eq!(storage.head_series(), in_heads, "{}", layout.name);
        storage.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn i10_a_compacted_layout_has_one_block_for_each_window() {
    // Ten hours from midnight on, in three cuts of five windows each.
    let script =
        "load 10m\n  a 0+1x59\n  b 0+1x59\n\neval instant at 9h50m sum(count_over_time(a[10h]))\n  {} 60\n";
    for (layout, blocks) in [(COMPACTED, 1), (BLOCKS, 5)] {
        let mut storage = Stored::start(layout).await;
        let report = run_on(script, &Engine::default(), &mut storage).await.unwrap();
        assert_eq!((report.passed, report.failures.len()), (1, 0));
        assert_eq!(storage.blocks().await, blocks, "{}", layout.name);
        storage.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn histograms_are_read_from_wherever_they_are() {
    let script = "load 1m\n  h {{schema:0 sum:5 count:4 buckets:[1 2 1]}}+{{schema:0 sum:5 count:4 buckets:[1 2 1]}}x9\n\n\
                  eval instant at 9m histogram_count(h)\n  {} 40\n\neval instant at 2m histogram_sum(sum_over_time(h[10m]))\n  {} 30\n";
    for layout in ALL {
        let mut storage = Stored::start(layout).await;
        let report = run_on(script, &Engine::default(), &mut storage).await.unwrap();
        assert!(
            report.failures.is_empty(),
            "{}: {:?}",
            layout.name,
            report.failures
        );
        assert_eq!(report.passed, 2, "{}", layout.name);
        storage.stop().await;
    }
}

/// The project's scripts: those about seams, or the others.
fn own(about_seams: bool) -> Vec<(String, String)> {
    let mut scripts = own_scripts();
    scripts.retain(|(name, _)| name.starts_with("seam") == about_seams);
    scripts
}

#[tokio::test(start_paused = true)]
async fn i2_scripts_about_seams_pass_wherever_the_seam_is() {
    let scripts = own(true);
    for layout in ALL {
        let passed = run_all(&scripts, layout).await;
        assert!(passed > 100, "{passed}");
    }
}

#[tokio::test(start_paused = true)]
async fn i2_own_scripts_pass_over_heads_and_blocks() {
    let scripts = own(false);
    for layout in [HEAD, BLOCKS, MIDDLE, COMPACTED, THREE_STORES] {
        let passed = run_all(&scripts, layout).await;
        assert!(passed > 100, "{passed}");
    }
}

async fn suite_passes(layout: Layout) {
    let Some(scripts) = suite_scripts() else {
        return;
    };
    let passed = run_all(&scripts, layout).await;
    assert!(passed > 1000, "{passed}");
}

#[tokio::test(start_paused = true)]
async fn i10_the_acceptance_suite_passes_over_compacted_blocks() {
    suite_passes(COMPACTED).await;
}

#[tokio::test(start_paused = true)]
async fn the_acceptance_suite_passes_over_blocks() {
    suite_passes(BLOCKS).await;
}

#[tokio::test(start_paused = true)]
async fn i2_the_acceptance_suite_passes_over_blocks_of_three_stores() {
    suite_passes(THREE_STORES).await;
}

#[tokio::test(start_paused = true)]
async fn the_acceptance_suite_passes_over_heads_and_blocks() {
    suite_passes(MIDDLE).await;
}

/// Floats of every kind, the payloads of NaNs included: what a script cannot write down.
fn value(rng: &RngHandle) -> f64 {
    let of = |bits: &[u64]| f64::from_bits(bits[rng.below(bits.len() as u64) as usize]);
    match rng.below(8) {
        0 => f64::from_bits(rng.below(u64::MAX)),
        1 => of(&[
            0x7ff8_0000_0000_0000,
            0x7ff0_0000_0000_0001,
            0xfff8_0000_0000_0123,
            u64::MAX,
        ]),
        2 => stale_nan(),
        3 => of(&[
            0,
            1 << 63,
            1,
            (1 << 63) | 1,
            0x7ff0_0000_0000_0000,
            0xfff0_0000_0000_0000,
        ]),
        4 => f64::from_bits(rng.below(1 << 52)),
        5 => rng.below(1 << 60) as f64,
        _ => rng.below(1_000_000) as f64 / 1000.0,
    }
}

/// Ascending times around a point, with steps of a millisecond to two hours.
fn times(rng: &RngHandle, around: i64) -> Vec<i64> {
    const STEPS: [u64; 5] = [1, 2, 1_000, 60_007, 7_200_001];
    let mut times = Vec::new();
    let mut t = Some(around);
    while let Some(now) = t.filter(|_| times.len() < 300) {
        times.push(now);
        let step = 1 + rng.below(STEPS[rng.below(5) as usize]);
        t = now.checked_add_unsigned(step);
    }
    times
}

#[tokio::test(start_paused = true)]
async fn i2_every_float_at_any_time_comes_back_bit_for_bit_wherever_the_seam_is() {
    let rng = RngHandle::from_seed(1);
    let around = [
        -8_000_000_000_000_001,
        -7_200_001,
        -1,
        1_700_000_000_123,
        9_007_199_254_740_993,
    ];
    for layout in ALL {
        let mut storage = Stored::start(layout).await;
        for start in around {
            storage.clear().await.unwrap();
            let series = |name: &str| {
                let point = |t_ms| Point {
                    t_ms,
                    start_ms: 0,
                    value: SampleValue::Float(value(&rng)),
                };
                let points = times(&rng, start).into_iter().map(point).collect();
                (Labels::from_pairs([("__name__", name)]), points)
            };
            let all: BTreeMap<_, Vec<_>> = ["a", "b", "c"].map(series).into();
            storage.add(&all).await.unwrap();
            let first = TimeRange::new(start, start);
            let some = TimeRange::new(start.saturating_add(5_000), start.saturating_add(7_500_000));
            for range in [TimeRange::ALL, first, some] {
                let request = SelectRequest {
                    matchers: Matchers::default(),
                    range,
                    hints: SelectHints::default(),
                };
                // It is compared with what was written there.
                let read = storage.queryable().select(request).await;
                read.map(|_| ())
                    .unwrap_or_else(|e| panic!("{}: {e}", layout.name));
            }
        }
        storage.stop().await;
    }
}
