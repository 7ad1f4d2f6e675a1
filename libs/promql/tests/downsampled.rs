//! Queries of downsampled samples against the same queries of all samples: equal where windows begin and end with buckets,
//! else within the bounds that docs/downsampling.md states.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use async_trait::async_trait;
use koios_model::summary::{Downsampled, downsample};
use koios_model::{Histogram, Labels, Sample, Span, TimeRange};
use koios_promql::{
    Columns, Completeness, Engine, ParseOptions, Query, QueryError, QueryOutput, Queryable, SelectRequest,
    Series, SeriesData, SeriesStream, Uninterrupted, Value, merge_summaries, stream_of,
};
use proptest::prelude::*;

const BUCKET: i64 = 300_000;
const HOURS_6: i64 = 6 * 3_600_000;

type Histograms = Vec<(i64, Arc<Histogram>)>;

/// Samples, of which those up to a time are downsampled.
#[derive(Clone, Debug)]
struct Stored {
    floats: Vec<Sample>,
    histograms: Histograms,
    downsampled: Downsampled,
}

impl Stored {
    fn new(floats: &[Sample], histograms: &[(i64, Arc<Histogram>)], until: i64) -> Self {
        let (old, new) = floats.split_at(floats.partition_point(|s| s.t <= until));
        let (old_h, new_h) = histograms.split_at(histograms.partition_point(|h| h.0 <= until));
        let downsampled = downsample(old, old_h, BUCKET);
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
        let overlapping = self
            .downsampled
            .summaries
            .iter()
            .filter(|s| s.range().overlaps(&range));
        let summaries: Vec<_> = overlapping.copied().collect();
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
    let query = Query::parse(query, &ParseOptions::default()).unwrap();
    let memory = Memory(stored.clone());
    let engine = Engine::default();
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

fn histogram(count: u32) -> Arc<Histogram> {
    let count = f64::from(count);
    Arc::new(Histogram {
        count: 4.0 * count,
        sum: 3.0 * count,
        zero_count: count,
        zero_threshold: 0.001,
        positive_spans: vec![Span { offset: 0, length: 2 }],
        positive_buckets: vec![count, 2.0 * count],
        ..Histogram::default()
    })
}

/// Whole buckets: each step is the end of one.
fn aligned(buckets: i64) -> (i64, i64, i64) {
    (BUCKET, HOURS_6, buckets * BUCKET)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn aligned_windows_of_counters_are_as_of_all_samples(
        all in any_counter(), until in 0..HOURS_6, buckets in 1i64..8, step in 1i64..4,
    ) {
        // The seam between summaries and samples lies anywhere.
        let (raw, down) = (Stored::new(&all, &[], -1), Stored::new(&all, &[], until));
        for function in ["increase", "rate", "delta", "last_over_time", "first_over_time", "present_over_time", "count_over_time"] {
            let query = format!("{function}(x_total[{}m])", buckets * 5);
            let (wanted, found) = (floats(&raw, &query, aligned(step)), floats(&down, &query, aligned(step)));
            prop_assert_eq!(wanted.len(), found.len(), "{}", query);
            for (w, f) in wanted.iter().zip(&found) {
                prop_assert!(w.0 == f.0 && close(w.1, f.1), "{query} at {}: {} of all, {} of summaries", w.0, w.1, f.1);
            }
        }
    }

    #[test]
    fn aligned_windows_of_gauges_are_as_of_all_samples(
        all in any_gauge(), until in 0..HOURS_6, buckets in 1i64..8, step in 1i64..4,
    ) {
        let (raw, down) = (Stored::new(&all, &[], -1), Stored::new(&all, &[], until));
        for function in ["sum", "count", "avg", "min", "max", "last", "first", "present"] {
            let query = format!("{function}_over_time(x_total[{}m])", buckets * 5);
            let (wanted, found) = (floats(&raw, &query, aligned(step)), floats(&down, &query, aligned(step)));
            prop_assert_eq!(wanted.len(), found.len(), "{}", query);
            for (w, f) in wanted.iter().zip(&found) {
                prop_assert!(w.0 == f.0 && close(w.1, f.1), "{query} at {}: {} of all, {} of summaries", w.0, w.1, f.1);
            }
        }
    }

    #[test]
    fn other_windows_are_wrong_by_no_more_than_a_bucket_at_each_edge(
        all in any_counter(), start in 1..BUCKET, buckets in 5i64..20,
    ) {
        let down = Stored::new(&all, &[], i64::MAX);
        let range_ms = buckets * BUCKET;
        let within = |from: i64, to: i64| all.iter().filter(move |s| s.t > from && s.t <= to).copied();
        let risen = |from: i64, to: i64| -> f64 {
            let inside: Vec<Sample> = within(from, to).collect();
            inside.windows(2).map(|w| if w[1].v < w[0].v { w[1].v } else { w[1].v - w[0].v }).sum()
        };
        // As far as the bound of extrapolation is known: to the bucket that the window's edge lies in.
        let times = (start + range_ms + BUCKET, HOURS_6, 7 * 60_000);
        let last = all.last().unwrap().t;
        let of = |function: &str| floats(&down, &format!("{function}(x_total[{range_ms}ms])"), times);
        for (t, count) in of("count_over_time") {
            let least = within(t - range_ms, t - BUCKET).count() as f64;
            let most = within(t - range_ms - BUCKET, t).count() as f64;
            prop_assert!((least..=most).contains(&count), "{count} of {least} to {most}");
        }
        for (t, sum) in of("sum_over_time") {
            let total = |from, to| within(from, to).map(|s| s.v).sum::<f64>();
            let (least, most) = (total(t - range_ms, t - BUCKET), total(t - range_ms - BUCKET, t));
            prop_assert!(least <= sum && sum <= most);
        }
        for (t, max) in of("max_over_time") {
            let greatest = |from, to| within(from, to).map(|s| s.v).fold(f64::NEG_INFINITY, f64::max);
            prop_assert!(greatest(t - range_ms, t - BUCKET) <= max && max <= greatest(t - range_ms - BUCKET, t));
        }
        for (t, increase) in of("increase") {
            if t > last || within(t - range_ms, t).next().is_none() {
                continue;
            }
            let least = risen(t - range_ms + BUCKET, t - BUCKET);
            // Where the series has no sample near an edge, half a gap is extrapolated, as ever.
            let most = risen(t - range_ms - BUCKET, t + BUCKET);
            let sampled = within(t - range_ms, t).map(|s| s.t);
            let sampled = sampled.clone().max().unwrap() - sampled.min().unwrap();
            let slack = 1.0 + 2.0 * 600_000.0 / (sampled.max(1) as f64);
            prop_assert!(least - 1e-6 <= increase && increase <= most * slack + 1e-6,
                "{increase} at {t} is not between {least} and {most} * {slack}");
        }
    }

    #[test]
    fn a_selector_finds_a_sample_that_was_sent_not_longer_ago_than_a_bucket(
        all in any_counter(), until in 0..HOURS_6, start in 0..BUCKET, step in 10_000i64..900_000,
    ) {
        let (raw, down) = (Stored::new(&all, &[], -1), Stored::new(&all, &[], until));
        let times = (start, HOURS_6, step);
        let found = floats(&down, "x_total", times);
        let wanted = floats(&raw, "x_total", times);
        // Where there is a value of all samples there is one.
        prop_assert!(wanted.iter().all(|w| found.iter().any(|f| f.0 == w.0)));
        for ((t, v), (_, at)) in found.iter().zip(floats(&down, "timestamp(x_total)", times)) {
            let sent = all.iter().find(|s| s.t == (at * 1000.0).round() as i64);
            prop_assert_eq!(sent.map(|s| s.v), Some(*v));
            prop_assert!(at * 1000.0 <= *t as f64 && (*t as f64) - at * 1000.0 < (BUCKET.max(300_000)) as f64);
            if *t > until + BUCKET {
                prop_assert!(wanted.contains(&(*t, *v)));
            }
        }
    }

    #[test]
    fn aligned_rates_of_native_histograms_are_as_of_all(
        counts in prop::collection::vec((0u32..9, 0u32..60), 50..800), until in 0..HOURS_6, buckets in 1i64..8,
    ) {
        let mut count = 0;
        let all: Histograms = counts.iter().zip(1i64..).map(|(&(more, reset), i)| {
            count = if reset == 0 { more } else { count + more };
            (i * 15_000, histogram(count))
        }).collect();
        let (raw, down) = (Stored::new(&[], &all, -1), Stored::new(&[], &all, until));
        for query in [
            "histogram_count(increase(x_total[W]))", "histogram_sum(rate(x_total[W]))",
            "histogram_quantile(0.7, rate(x_total[W]))", "count_over_time(x_total[W])",
            "histogram_count(last_over_time(x_total[W]))",
        ] {
            let query = query.replace('W', &format!("{}m", buckets * 5));
            let (wanted, found) = (floats(&raw, &query, aligned(1)), floats(&down, &query, aligned(1)));
            prop_assert_eq!(wanted.len(), found.len(), "{}", query);
            for (w, f) in wanted.iter().zip(&found) {
                prop_assert!(w.0 == f.0 && close(w.1, f.1), "{query} at {}: {} of all, {} of summaries", w.0, w.1, f.1);
            }
        }
        // Of other windows the increase is that between the edges, interpolated.
        let times = (BUCKET * (buckets + 2) + 77_000, i64::try_from(counts.len()).unwrap() * 15_000, 60_000);
        prop_assume!(times.0 <= times.1);
        let increase = format!("histogram_count(increase(x_total[{}m]))", buckets * 5);
        for (t, found) in floats(&down, &increase, times) {
            let risen = |from: i64, to: i64| -> f64 {
                let inside: Vec<f64> = all.iter().filter(|h| h.0 > from && h.0 <= to).map(|h| h.1.count).collect();
                inside.windows(2).map(|w| if w[1] < w[0] { w[1] } else { w[1] - w[0] }).sum()
            };
            let range_ms = buckets * BUCKET;
            let (least, most) = (risen(t - range_ms + BUCKET, t - BUCKET), risen(t - range_ms - BUCKET, t + BUCKET));
            prop_assert!(least - 1e-6 <= found && found <= most * 1.1 + 40.0, "{found} at {t}: {least} to {most}");
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
    let (raw, down) = (Stored::new(&all, &[], -1), Stored::new(&all, &[], i64::MAX));
    let times = aligned(1);
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
        assert!(!floats(&down, query, times).is_empty());
    }
    assert_eq!(infos(&down, "rate(x_total[1h])"), "");
    // Narrower than a bucket.
    let counted: f64 = floats(
        &down,
        "count_over_time(x_total[1m])",
        (BUCKET + 100_000, BUCKET + 100_000, 1),
    )[0]
    .1;
    assert!((3.0..=5.0).contains(&counted), "{counted}");
}
