//! What must hold whatever the series are: a range query is its instant queries side by side, and batches do not matter.

mod support;

use std::collections::BTreeMap;

use koios_model::{Labels, Sample, stale_nan};
use koios_promql::{Engine, EngineOptions, SampleValue, Uninterrupted, Value};
use proptest::prelude::*;
use support::Memory;

/// Queries over the metrics `a` and `b` with the labels `x` and `y`.
const QUERIES: &[&str] = &[
    "a",
    "a offset 13s",
    "a @ 50",
    "-a",
    "a + on (x, y) b",
    "a > b",
    "a > bool on (x, y) b",
    "a and on (x) b",
    "a or b",
    "a unless on (x) b",
    "a * on (x) group_left () max by (x) (b)",
    "a + on (x, y) fill(0) b",
    "sum by (x) (a)",
    "avg without (x) (a)",
    "min(a)",
    "max by (y) (a)",
    "count(a)",
    "stddev(a)",
    "quantile by (x) (0.3, a)",
    "topk by (x) (1, a)",
    "bottomk(2, a)",
    "limitk(2, a)",
    "limit_ratio(0.5, a)",
    "count_values by (x) (\"v\", a)",
    "rate(a[35s])",
    "increase(a[1m])",
    "delta(a[47s])",
    "irate(a[1m])",
    "idelta(a[1m])",
    "rate(a[35s] anchored)",
    "increase(a[35s] smoothed)",
    "changes(a[1m])",
    "resets(a[1m])",
    "deriv(a[1m])",
    "predict_linear(a[1m], 30)",
    "double_exponential_smoothing(a[1m], 0.3, 0.6)",
    "sum_over_time(a[35s])",
    "avg_over_time(a[35s])",
    "min_over_time(a[35s])",
    "max_over_time(a[1m])",
    "increase(a[90s])",
    "resets(a[90s])",
    "stddev_over_time(a[35s])",
    "quantile_over_time(0.9, a[1m])",
    "mad_over_time(a[1m])",
    "first_over_time(a[1m])",
    "last_over_time(a[1m])",
    "ts_of_max_over_time(a[1m])",
    "present_over_time(a[35s])",
    "absent_over_time(a{x=\"0\"}[35s])",
    "absent(a{x=\"0\"})",
    "max_over_time(sum(a)[1m:7s])",
    "rate(a[30s:5s])",
    "sum_over_time(a[30s] @ 60)",
    "label_replace(a, \"z\", \"$1\", \"x\", \"(.)\")",
    "scalar(a{x=\"0\", y=\"0\"}) + a",
    "timestamp(a)",
    "clamp(a, -1, 1)",
    "a == 1 or b == 2",
    "time() - timestamp(a)",
    "histogram_quantile(0.5, sum by (le) (label_replace(a, \"le\", \"$1\", \"x\", \"(.)\")))",
];

fn any_value() -> impl Strategy<Value = f64> {
    prop_oneof![
        6 => (-3i32..12).prop_map(f64::from),
        1 => Just(stale_nan()),
        1 => Just(f64::NAN),
        1 => -1e3f64..1e3,
    ]
}

fn any_memory() -> impl Strategy<Value = Memory> {
    let series = (0..2u8, 0..3u8, 0..2u8);
    let samples = proptest::collection::btree_map(0i64..120_000, any_value(), 0..25);
    proptest::collection::btree_map(series, samples, 0..8).prop_map(|all| Memory {
        series: all
            .into_iter()
            .map(|((name, x, y), samples)| {
                let labels = Labels::from_pairs([
                    ("__name__", ["a", "b"][usize::from(name)].to_owned()),
                    ("x", x.to_string()),
                    ("y", y.to_string()),
                ]);
                (
                    labels,
                    samples.into_iter().map(|(t, v)| Sample { t, v }).collect(),
                )
            })
            .collect(),
        batch: 3,
        ..Memory::default()
    })
}

type Points = BTreeMap<(Labels, i64), u64>;

/// Floats by series and time, bit by bit; NaNs are all alike.
fn bits(v: f64) -> u64 {
    if v.is_nan() {
        f64::NAN.to_bits()
    } else {
        v.to_bits()
    }
}

fn range_points(memory: &Memory, query: &str, (start, end, step): (i64, i64, i64)) -> Result<Points, String> {
    let output = memory.range(query, start, end, step).map_err(|e| e.to_string())?;
    let Value::Matrix(series) = output.value else {
        return Err("not a matrix".into());
    };
    Ok(series
        .iter()
        .flat_map(|s| s.floats().map(|(t, v)| ((s.labels.clone(), t), bits(v))))
        .collect())
}

fn instant_points(memory: &Memory, query: &str, at: i64) -> Result<Points, String> {
    let output = memory.instant(query, at).map_err(|e| e.to_string())?;
    let Value::Vector(t, samples) = output.value else {
        return Err("not a vector".into());
    };
    let point = |s: koios_promql::VectorSample| match s.value {
        SampleValue::Float(v) => Some(((s.labels, t), bits(v))),
        SampleValue::Histogram(_) => None,
    };
    Ok(samples.into_iter().filter_map(point).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn a_range_query_is_its_instant_queries_side_by_side(
        memory in any_memory(),
        query in proptest::sample::select(QUERIES),
        start in 0i64..60,
        step in 1i64..25,
    ) {
        let end = start + 4 * step;
        let range = range_points(&memory, query, (start, end, step));
        let mut instants: Result<Points, String> = Ok(Points::new());
        for at in (start..=end).step_by(step as usize) {
            match (&mut instants, instant_points(&memory, query, at)) {
                (Ok(all), Ok(points)) => all.extend(points),
                (_, Err(e)) => instants = Err(e),
                (Err(_), _) => {}
            }
        }
        // Which of several errors is told may differ.
        match (range, instants) {
            (Ok(range), Ok(instants)) => prop_assert_eq!(range, instants, "{}", query),
            (range, instants) => prop_assert_eq!(range.is_err(), instants.is_err(), "{}", query),
        }
    }

    #[test]
    fn batches_do_not_change_the_answer(
        mut memory in any_memory(),
        query in proptest::sample::select(QUERIES),
    ) {
        let first = range_points(&memory, query, (0, 100, 10));
        memory.batch = 100;
        prop_assert_eq!(first, range_points(&memory, query, (0, 100, 10)));
    }

    #[test]
    fn i12_no_time_overflows(
        mut memory in any_memory(),
        query in proptest::sample::select(QUERIES),
        at in prop_oneof![Just(i64::MIN), Just(i64::MAX), Just(i64::MIN + 1), -10i64..10],
        step in prop_oneof![Just(1), Just(i64::MAX), Just(1 << 40)],
    ) {
        for samples in memory.series.values_mut() {
            if let Some(first) = samples.first_mut() {
                first.t = i64::MIN;
            }
            if let Some(last) = samples.last_mut() {
                last.t = i64::MAX;
            }
        }
        let run = Engine::new(EngineOptions { max_samples: 2_000, ..EngineOptions::default() });
        let query = support::parsed(query);
        for (start, end) in [(at, at), (at, at.saturating_add(step)), (i64::MIN, i64::MAX)] {
            let ranged = run.range(&memory, &query, (start, end, step), &Uninterrupted);
            let _ = futures::executor::block_on(ranged);
            let _ = futures::executor::block_on(run.instant(&memory, &query, end, &Uninterrupted));
        }
    }
}

#[test]
fn a_range_query_over_large_windows_is_its_instant_queries_side_by_side() {
    let sample = |i: i64| Sample {
        t: i * 1_000 + i % 13,
        v: (i * 7_919 % 10_007) as f64 * 0.1,
    };
    let series = [(
        Labels::from_pairs([("__name__", "a")]),
        (0..6_000).map(sample).collect(),
    )];
    let memory = Memory {
        series: series.into(),
        batch: 1,
        ..Memory::default()
    };
    for function in ["sum", "avg", "max", "min", "count", "last"] {
        let query = format!("{function}_over_time(a[50m])");
        let range = range_points(&memory, &query, (3_000, 5_990, 299)).unwrap();
        let instants = (3_000..=5_990)
            .step_by(299)
            .map(|at| instant_points(&memory, &query, at).unwrap());
        assert_eq!(range, instants.flatten().collect(), "{query}");
    }
}
