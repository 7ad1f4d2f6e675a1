//! Whatever a stored histogram says, no query on it panics (I12).

use std::sync::Arc;

use async_trait::async_trait;
use koios_model::{Histogram, Labels, ResetHint, Span, TimeRange};
use koios_promql::{
    Columns, Completeness, Engine, ParseOptions, Query, QueryError, Queryable, SelectRequest, Series,
    SeriesData, SeriesStream, Uninterrupted, histogram, stream_of,
};
use proptest::prelude::*;

const QUERIES: &[&str] = &[
    "h + h offset 10s",
    "h - h offset 10s",
    "h * 2",
    "h / 0",
    "-h",
    "h == h offset 10s",
    "h </ 1",
    "h >/ -0.5",
    "sum(h)",
    "avg(h)",
    "count_values(\"v\", h)",
    "max(h)",
    "topk(1, h)",
    "rate(h[1m])",
    "increase(h[1m])",
    "delta(h[1m])",
    "irate(h[1m])",
    "idelta(h[1m])",
    "rate(h[25s] anchored)",
    "rate(h[25s] smoothed)",
    "h smoothed",
    "changes(h[1m])",
    "resets(h[1m])",
    "sum_over_time(h[1m])",
    "avg_over_time(h[1m])",
    "last_over_time(h[1m])",
    "max_over_time(h[1m])",
    "histogram_quantile(0.3, h)",
    "histogram_quantile(0.9, h)",
    "histogram_quantiles(h, \"q\", 0, 0.5, 1)",
    "histogram_fraction(-1, 2, h)",
    "histogram_stddev(h)",
    "histogram_count(rate(h[1m]))",
    "histogram_avg(sum(h))",
    "sum_over_time(h[1m:5s])",
];

#[derive(Debug)]
struct Samples(Vec<(i64, Arc<Histogram>)>);

impl SeriesData for Samples {
    fn decode(&self, range: TimeRange, out: &mut Columns) -> Result<(), QueryError> {
        for (t, h) in self.0.iter().filter(|(t, _)| range.contains(*t)) {
            // Floats come between.
            if t % 7 == 0 {
                out.push_float(*t, h.sum);
            } else {
                out.push_histogram(*t, Arc::clone(h));
            }
        }
        Ok(())
    }

    fn encoded_bytes(&self) -> usize {
        0
    }

    fn decoded_bytes(&self, _: TimeRange) -> usize {
        self.0.len() * 24
    }
}

struct Memory(Vec<Arc<Histogram>>);

#[async_trait]
impl Queryable for Memory {
    async fn select(&self, _: SelectRequest) -> Result<SeriesStream, QueryError> {
        let series = |i: usize| {
            let histograms = self.0.iter().skip(i).cloned();
            let samples = (0..).step_by(9_999).zip(histograms).collect();
            Series {
                labels: Labels::from_pairs([("__name__", "h".to_owned()), ("i", i.to_string())]),
                data: Box::new(Samples(samples)),
            }
        };
        Ok(stream_of((0..2).map(series).collect(), Completeness::Complete))
    }
}

fn any_float() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => (0u8..20).prop_map(f64::from),
        1 => any::<f64>(),
        1 => Just(f64::NAN),
        1 => Just(f64::INFINITY),
    ]
}

fn any_spans() -> impl Strategy<Value = Vec<Span>> {
    let offset = prop_oneof![6 => -4i32..8, 1 => any::<i32>()];
    let length = prop_oneof![6 => 0u32..4, 1 => any::<u32>()];
    proptest::collection::vec(
        (offset, length).prop_map(|(offset, length)| Span { offset, length }),
        0..4,
    )
}

prop_compose! {
    fn any_histogram()(
        schema in prop_oneof![4 => -2i32..4, 2 => Just(-53), 1 => any::<i32>()],
        zero_threshold in prop_oneof![Just(0.0), Just(0.001), any_float()],
        numbers in proptest::array::uniform3(any_float()),
        positive_spans in any_spans(),
        negative_spans in any_spans(),
        positive_buckets in proptest::collection::vec(any_float(), 0..8),
        negative_buckets in proptest::collection::vec(any_float(), 0..8),
        custom_bounds in proptest::collection::vec(any_float(), 0..5),
        hint in 0u8..4,
    ) -> Arc<Histogram> {
        let [zero_count, count, sum] = numbers;
        let hints = [ResetHint::Unknown, ResetHint::Reset, ResetHint::NotReset, ResetHint::Gauge];
        Arc::new(Histogram {
            reset_hint: hints[usize::from(hint)],
            schema,
            zero_threshold,
            zero_count,
            count,
            sum,
            positive_spans,
            negative_spans,
            positive_buckets,
            negative_buckets,
            custom_bounds,
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn i12_no_histogram_makes_a_query_panic(
        histograms in proptest::collection::vec(any_histogram(), 1..8),
        query in proptest::sample::select(QUERIES),
    ) {
        let query = Query::parse(query, &ParseOptions::default()).unwrap();
        let times = (0, 60_000, 6_000);
        let run = Engine::default();
        let memory = Memory(histograms);
        let answer = futures::executor::block_on(run.range(&memory, &query, times, &Uninterrupted));
        if let Ok(output) = answer {
            let _ = output.annotation_texts();
        }
    }

    #[test]
    fn i12_no_histogram_makes_arithmetic_panic(a in any_histogram(), b in any_histogram()) {
        let mut sum = Histogram::clone(&a);
        let _ = histogram::add(&mut sum, &b);
        let _ = histogram::sub(&mut sum, &b);
        histogram::scale(&mut sum, 0.5);
        histogram::divide(&mut sum, 0.0);
        sum.compact();
        let _ = (histogram::is_reset(&a, &b), histogram::format(&a));
    }
}
