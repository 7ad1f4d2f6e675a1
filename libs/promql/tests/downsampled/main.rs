//! Queries of downsampled samples against the same queries of all samples: equal where windows begin and end with buckets,
//! else within the bounds that docs/downsampling.md states.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod edges;
mod histograms;

use std::sync::Arc;

use async_trait::async_trait;
use koios_model::summary::{Downsampled, downsample};
use koios_model::{Histogram, Labels, Sample, TimeRange};
use koios_promql::{
    Columns, Completeness, Engine, EngineOptions, ParseOptions, Query, QueryError, QueryOutput, Queryable,
    SelectRequest, Series, SeriesData, SeriesStream, Uninterrupted, Value, add_histograms, merge_summaries,
    stream_of,
};
use proptest::prelude::*;

const MINUTES_5: i64 = 300_000;
const HOUR: i64 = 3_600_000;
/// The lookback of selectors.
const LOOKBACK: i64 = 300_000;

type Histograms = Vec<(i64, Arc<Histogram>)>;

/// Samples, of which those up to a time are downsampled.
#[derive(Clone, Debug)]
struct Stored {
    floats: Vec<Sample>,
    histograms: Histograms,
    downsampled: Downsampled,
}

impl Stored {
    fn raw(floats: &[Sample], histograms: &[(i64, Arc<Histogram>)]) -> Self {
        Self::new(floats, histograms, i64::MIN, MINUTES_5)
    }

    fn new(floats: &[Sample], histograms: &[(i64, Arc<Histogram>)], until: i64, resolution_ms: i64) -> Self {
        let (old, new) = floats.split_at(floats.partition_point(|s| s.t <= until));
        let (old_h, new_h) = histograms.split_at(histograms.partition_point(|h| h.0 <= until));
        let mut downsampled = downsample(old, old_h, resolution_ms);
        add_histograms(&mut downsampled.summaries, old_h);
        let kept = downsampled.histograms.iter().chain(new_h).cloned();
        Self {
            floats: new.to_vec(),
            histograms: kept.collect(),
            downsampled,
        }
    }

    fn samples(&self, range: TimeRange) -> Columns {
        let mut out = Columns::default();
        let floats = self.floats.iter().map(|s| (s.t, Some(s.v), None));
        let histograms = self
            .histograms
            .iter()
            .map(|(t, h)| (*t, None, Some(Arc::clone(h))));
        let mut all: Vec<_> = floats.chain(histograms).filter(|p| range.contains(p.0)).collect();
        all.sort_by_key(|p| p.0);
        for (t, float, histogram) in all {
            float.into_iter().for_each(|v| out.push_float(t, v));
            histogram.into_iter().for_each(|h| out.push_histogram(t, h));
        }
        out
    }
}

impl SeriesData for Stored {
    fn decode(&self, range: TimeRange, out: &mut Columns) -> Result<(), QueryError> {
        let all = self.downsampled.summaries.iter();
        let summaries: Vec<_> = all.filter(|s| s.range().overlaps(&range)).cloned().collect();
        let reach = summaries.iter().fold(range, |r, s| r.union(&s.range()));
        merge_summaries(&summaries, &self.samples(reach), range, out);
        Ok(())
    }

    fn encoded_bytes(&self) -> usize {
        0
    }

    fn decoded_bytes(&self, _: TimeRange) -> usize {
        (self.floats.len() + self.histograms.len() * 8 + self.downsampled.summaries.len() * 8) * 24
    }
}

struct Memory(Stored);

#[async_trait]
impl Queryable for Memory {
    async fn select(&self, _: SelectRequest) -> Result<SeriesStream, QueryError> {
        let series = Series {
            labels: Labels::from_pairs([("__name__", "x_total")]),
            data: Box::new(self.0.clone()),
        };
        Ok(stream_of(vec![series], Completeness::Complete))
    }
}

fn run(stored: &Stored, query: &str, times: (i64, i64, i64)) -> QueryOutput {
    run_by(&Engine::default(), stored, query, times)
}

fn run_by(engine: &Engine, stored: &Stored, query: &str, times: (i64, i64, i64)) -> QueryOutput {
    let query = Query::parse(query, &ParseOptions::default()).unwrap();
    let memory = Memory(stored.clone());
    let answer = engine.range(&memory, &query, times, &Uninterrupted);
    futures::executor::block_on(answer).unwrap()
}

/// The floats of the one series, by time.
fn floats(stored: &Stored, query: &str, times: (i64, i64, i64)) -> Vec<(i64, f64)> {
    match run(stored, query, times).value {
        Value::Matrix(series) => series
            .iter()
            .flat_map(|s| s.floats().collect::<Vec<_>>())
            .collect(),
        other => panic!("{other:?}"),
    }
}

fn close(a: f64, b: f64) -> bool {
    a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

/// Scraped each quarter of a minute but for some; counters that sometimes begin anew.
fn any_counter() -> impl Strategy<Value = Vec<Sample>> {
    let step = (
        prop_oneof![20 => Just(1i64), 1 => 2i64..60],
        0u32..20,
        0u32..100,
        -500i64..500,
    );
    prop::collection::vec(step, 100..1400).prop_map(|steps| {
        let (mut at, mut v) = (0i64, 0.0);
        let sample = |(gap, more, reset, jitter): (i64, u32, u32, i64)| {
            at += gap * 15_000;
            v = if reset == 0 { 0.0 } else { v } + f64::from(more);
            Sample { t: at + jitter, v }
        };
        steps.into_iter().map(sample).collect()
    })
}

fn any_gauge() -> impl Strategy<Value = Vec<Sample>> {
    let value = prop_oneof![20 => (-50i32..50).prop_map(f64::from), 1 => Just(f64::NAN)];
    prop::collection::vec((1i64..5, value), 50..1000).prop_map(|steps| {
        let mut t = 0;
        let sample = |(gap, v)| {
            t += gap * 7_000;
            Sample { t, v }
        };
        steps.into_iter().map(sample).collect()
    })
}

/// 5 minutes or an hour.
fn any_resolution() -> impl Strategy<Value = i64> {
    prop_oneof![Just(MINUTES_5), Just(HOUR)]
}

/// What evaluation goes up to.
fn end_of(resolution_ms: i64) -> i64 {
    if resolution_ms == HOUR {
        14 * HOUR
    } else {
        6 * HOUR
    }
}

/// Whole buckets: each step is the end of one.
fn aligned(buckets: i64, resolution_ms: i64) -> (i64, i64, i64) {
    (resolution_ms, end_of(resolution_ms), buckets * resolution_ms)
}

/// That a query of downsampled samples has the answer that all samples give.
fn check_same(
    (raw, down): (&Stored, &Stored),
    query: &str,
    times: (i64, i64, i64),
) -> Result<(), TestCaseError> {
    let (wanted, found) = (floats(raw, query, times), floats(down, query, times));
    prop_assert_eq!(wanted.len(), found.len(), "{}", query);
    for (w, f) in wanted.iter().zip(&found) {
        prop_assert!(
            w.0 == f.0 && close(w.1, f.1),
            "{query} at {}: {} of all, {} of summaries",
            w.0,
            w.1,
            f.1
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn aligned_windows_of_counters_are_as_of_all_samples(
        all in any_counter(), until in 0..14 * HOUR, buckets in 1i64..8, step in 1i64..4, resolution in any_resolution(),
    ) {
        // The seam between summaries and samples lies anywhere.
        let (raw, down) = (Stored::raw(&all, &[]), Stored::new(&all, &[], until, resolution));
        for function in ["increase", "rate", "delta", "last_over_time", "first_over_time", "present_over_time", "count_over_time"] {
            let query = format!("{function}(x_total[{}ms])", buckets * resolution);
            check_same((&raw, &down), &query, aligned(step, resolution))?;
        }
    }

    #[test]
    fn aligned_windows_of_gauges_are_as_of_all_samples(
        all in any_gauge(), until in 0..14 * HOUR, buckets in 1i64..8, step in 1i64..4, resolution in any_resolution(),
    ) {
        let (raw, down) = (Stored::raw(&all, &[]), Stored::new(&all, &[], until, resolution));
        for function in ["sum", "count", "avg", "min", "max", "last", "first", "present"] {
            let query = format!("{function}_over_time(x_total[{}ms])", buckets * resolution);
            check_same((&raw, &down), &query, aligned(step, resolution))?;
        }
        let query = format!("delta(x_total[{}ms])", buckets * resolution);
        check_same((&raw, &down), &query, aligned(step, resolution))?;
    }

    #[test]
    fn a_selector_finds_a_sample_that_was_sent_not_longer_ago_than_a_bucket(
        all in any_counter(), until in 0..6 * HOUR, start in 0..MINUTES_5, step in 10_000i64..900_000, resolution in any_resolution(),
    ) {
        let (raw, down) = (Stored::raw(&all, &[]), Stored::new(&all, &[], until, resolution));
        let times = (start, end_of(resolution), step);
        let found = floats(&down, "x_total", times);
        let wanted = floats(&raw, "x_total", times);
        // Where there is a value of all samples there is one.
        prop_assert!(wanted.iter().all(|w| found.iter().any(|f| f.0 == w.0)));
        for ((t, v), (_, at)) in found.iter().zip(floats(&down, "timestamp(x_total)", times)) {
            let sent = all.iter().find(|s| s.t == (at * 1000.0).round() as i64);
            prop_assert_eq!(sent.map(|s| s.v), Some(*v));
            prop_assert!(at * 1000.0 <= *t as f64 && (*t as f64) - at * 1000.0 < resolution.max(LOOKBACK) as f64);
            if *t > until + resolution {
                prop_assert!(wanted.contains(&(*t, *v)));
            }
        }
    }
}

#[test]
fn functions_that_need_all_samples_say_that_they_did_not_have_them() {
    let all: Vec<Sample> = (1..400)
        .map(|i| Sample {
            t: i * 15_000,
            v: i as f64,
        })
        .collect();
    let (raw, down) = (
        Stored::raw(&all, &[]),
        Stored::new(&all, &[], i64::MAX, MINUTES_5),
    );
    let times = aligned(1, MINUTES_5);
    let infos = |stored, query| run(stored, query, times).annotation_texts().infos.join("\n");
    for query in [
        "stddev_over_time(x_total[1h])",
        "quantile_over_time(0.5, x_total[1h])",
        "resets(x_total[1h])",
    ] {
        assert!(
            infos(&down, query).contains("samples are no longer kept"),
            "{query}: {}",
            infos(&down, query)
        );
        assert_eq!(infos(&raw, query), "");
        // Who asks for summaries is not told that there is nothing else.
        let asking = Engine::new(EngineOptions {
            summaries_asked_for: true,
            ..EngineOptions::default()
        });
        let asked = run_by(&asking, &down, query, times).annotation_texts().infos;
        assert!(
            asked
                .join("\n")
                .starts_with("PromQL info: summaries were read, as the query asks for them or "),
            "{query}: {asked:?}"
        );
        assert!(!floats(&down, query, times).is_empty());
    }
    assert_eq!(infos(&down, "rate(x_total[1h])"), "");
    // Narrower than a bucket.
    let counted: f64 = floats(
        &down,
        "count_over_time(x_total[1m])",
        (MINUTES_5 + 100_000, MINUTES_5 + 100_000, 1),
    )[0]
    .1;
    assert!((3.0..=5.0).contains(&counted), "{counted}");
}
