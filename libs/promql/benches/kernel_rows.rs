//! The inner loops of evaluation: 32 series of 15 s samples, 720 steps of 30 s, one kernel per query. Divide a time by
//! 23,040 for the cost of one window, or of one point of an aggregation (the same with its selector).
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::sync::Arc;

use async_trait::async_trait;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use koios_model::{Labels, TimeRange};
use koios_promql::{
    Columns, Completeness, Engine, ParseOptions, Query, QueryError, Queryable, SelectRequest, Series,
    SeriesData, SeriesStream, Uninterrupted, stream_of,
};

const SERIES: usize = 32;
const STEPS: i64 = 720;
const STEP_MS: i64 = 30_000;
const GAP_MS: i64 = 15_000;
const BEGIN_MS: i64 = 6 * 3_600_000;
const SAMPLES: i64 = (BEGIN_MS + STEPS * STEP_MS) / GAP_MS;

/// Samples that need no decoding, so that only the engine is measured.
#[derive(Clone, Debug)]
struct Plain {
    t: Arc<Vec<i64>>,
    v: Arc<Vec<f64>>,
}

impl SeriesData for Plain {
    fn decode(&self, range: TimeRange, out: &mut Columns) -> Result<(), QueryError> {
        let lo = self.t.partition_point(|&t| t < range.min);
        let hi = self.t.partition_point(|&t| t <= range.max);
        out.extend_floats(&self.t[lo..hi], &self.v[lo..hi]);
        Ok(())
    }

    fn encoded_bytes(&self) -> usize {
        self.t.len() * 16
    }

    fn decoded_bytes(&self, _: TimeRange) -> usize {
        self.t.len() * 16
    }
}

struct Memory(Vec<(Labels, Plain)>);

#[async_trait]
impl Queryable for Memory {
    async fn select(&self, request: SelectRequest) -> Result<SeriesStream, QueryError> {
        let matching = self
            .0
            .iter()
            .filter(|(labels, _)| request.matchers.matches(labels.as_ref()));
        let series = matching.map(|(labels, data)| Series {
            labels: labels.clone(),
            data: Box::new(data.clone()),
        });
        Ok(stream_of(series.collect(), Completeness::Complete))
    }
}

/// A number of any sort from another.
fn scrambled(i: i64) -> f64 {
    (i.wrapping_mul(2_654_435_761).rem_euclid(1_000_003)) as f64 / 1_000_003.0
}

fn add(series: &mut Vec<(Labels, Plain)>, name: &str, t: &Arc<Vec<i64>>, value: impl Fn(i64, i64) -> f64) {
    for i in 0..SERIES as i64 {
        let labels = Labels::from_pairs([
            ("__name__", name.to_owned()),
            ("instance", format!("{:04}", i / 8)),
            // The last of each eight is a histogram's largest bucket.
            (
                "le",
                if i % 8 == 7 {
                    "+Inf".to_owned()
                } else {
                    format!("0.{}", i % 8 + 1)
                },
            ),
        ]);
        let v = (0..SAMPLES).map(|s| value(i, s)).collect();
        let t = Arc::clone(t);
        series.push((labels, Plain { t, v: Arc::new(v) }));
    }
}

fn memory() -> Memory {
    let regular = Arc::new((0..SAMPLES).map(|i| i * GAP_MS).collect());
    let jittered = Arc::new(
        (0..SAMPLES)
            .map(|i| i * GAP_MS + (scrambled(i) * 900.0) as i64)
            .collect(),
    );
    let mut series = Vec::new();
    let counter = |i: i64, s: i64| (100_000 + s * (i % 8 + 1) * 3) as f64;
    add(&mut series, "counter", &regular, counter);
    add(&mut series, "decimal", &regular, |i, s| {
        20.0 + scrambled(i * SAMPLES + s) * 7.0
    });
    add(&mut series, "jittered", &jittered, counter);
    add(&mut series, "resetting", &regular, |i, s| counter(i, s % 60));
    series.sort_by(|a, b| a.0.cmp(&b.0));
    Memory(series)
}

const QUERIES: &[&str] = &[
    "counter",
    "jittered",
    "rate(counter[5m])",
    "rate(jittered[5m])",
    "rate(resetting[5m])",
    "irate(counter[5m])",
    "changes(decimal[5m])",
    "resets(counter[5m])",
    "count_over_time(decimal[5m])",
    "last_over_time(decimal[5m])",
    "sum_over_time(counter[5m])",
    "sum_over_time(decimal[5m])",
    "avg_over_time(decimal[5m])",
    "avg_over_time(decimal[1h])",
    "max_over_time(decimal[5m])",
    "max_over_time(decimal[1h])",
    "quantile_over_time(0.9, decimal[5m])",
    "quantile_over_time(0.9, decimal[1h])",
    "stddev_over_time(decimal[5m])",
    "deriv(decimal[5m])",
    "sum(decimal)",
    "avg(decimal)",
    "max(decimal)",
    "count(decimal)",
    "stddev(decimal)",
    "topk(5, decimal)",
    "histogram_quantile(0.9, counter)",
    "counter / 2",
    "counter > 1e5",
    "counter / on (instance, le) decimal",
];

fn kernels(c: &mut Criterion) {
    let memory = memory();
    let engine = Engine::default();
    let times = (BEGIN_MS, BEGIN_MS + (STEPS - 1) * STEP_MS, STEP_MS);
    let mut group = c.benchmark_group("kernel_rows");
    group.throughput(Throughput::Elements(SERIES as u64 * STEPS as u64));
    for text in QUERIES {
        let query = Query::parse(text, &ParseOptions::default()).unwrap();
        group.bench_function(*text, |b| {
            b.iter(|| {
                futures::executor::block_on(engine.range(&memory, &query, times, &Uninterrupted)).unwrap()
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(std::time::Duration::from_millis(300))
        .measurement_time(std::time::Duration::from_secs(1));
    targets = kernels
}
criterion_main!(benches);
