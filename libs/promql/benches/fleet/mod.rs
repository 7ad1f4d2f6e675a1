//! What the benchmarks query: series in memory that need no decoding, so that only the engine is measured.
#![allow(dead_code, reason = "each benchmark uses its part")]

use std::sync::Arc;

use async_trait::async_trait;
use criterion::{Criterion, Throughput};
use koios_model::{Histogram, Labels, ResetHint, Span, TimeRange};
use koios_promql::{
    Columns, Completeness, Engine, ParseOptions, Query, QueryError, Queryable, SelectRequest, Series,
    SeriesData, SeriesStream, Uninterrupted, stream_of,
};

/// Samples of a series: six hours at 15 s.
pub(crate) const SAMPLES: i64 = 1_440;
const GAP_MS: i64 = 15_000;
/// Steps of a query over all of it.
const STEPS: i64 = 360;

/// What a sample is.
#[derive(Clone, Debug)]
enum Values {
    Floats(Arc<Vec<f64>>),
    Histograms(Arc<Vec<Arc<Histogram>>>),
}

#[derive(Clone, Debug)]
struct Plain {
    t: Arc<Vec<i64>>,
    v: Values,
}

impl SeriesData for Plain {
    fn decode(&self, range: TimeRange, out: &mut Columns) -> Result<(), QueryError> {
        let lo = self.t.partition_point(|&t| t < range.min);
        let hi = self.t.partition_point(|&t| t <= range.max);
        match &self.v {
            Values::Floats(v) => out.extend_floats(&self.t[lo..hi], &v[lo..hi]),
            Values::Histograms(v) => {
                for (t, h) in self.t[lo..hi].iter().zip(&v[lo..hi]) {
                    out.push_histogram(*t, Arc::clone(h));
                }
            }
        }
        Ok(())
    }

    fn encoded_bytes(&self) -> usize {
        self.t.len() * 16
    }

    fn decoded_bytes(&self, _: TimeRange) -> usize {
        self.t.len() * 24
    }
}

/// Series in label order.
pub(crate) struct Fleet(Vec<(Labels, Plain)>);

#[async_trait]
impl Queryable for Fleet {
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

impl Fleet {
    /// `instances` of ten jobs, each with a counter, a gauge, a classic histogram of twelve buckets, a native one of
    /// twenty, and a constant that only says what it is.
    pub(crate) fn new(instances: u32) -> Self {
        let t: Arc<Vec<i64>> = Arc::new((0..SAMPLES).map(|i| i * GAP_MS).collect());
        let mut series = Vec::new();
        for i in 0..instances {
            let mut add = |name: &str, le: Option<String>, v: Values| {
                let mut labels = vec![
                    ("__name__", name.to_owned()),
                    ("instance", format!("{i:04}")),
                    ("job", format!("job-{}", i % 10)),
                ];
                labels.extend(le.map(|le| ("le", le)));
                series.push((Labels::from_pairs(labels), Plain { t: Arc::clone(&t), v }));
            };
            let rate = f64::from(i + 1);
            add("requests_total", None, floats(|s| (s % 1_000.0) * rate));
            add("temperature", None, floats(|s| (s * 0.1).sin() * rate));
            add("up_info", None, floats(|_| 1.0));
            for bucket in 0..12 {
                let le = if bucket == 11 {
                    "+Inf".to_owned()
                } else {
                    format!("0.{bucket:02}")
                };
                add(
                    "wait_seconds_bucket",
                    Some(le),
                    floats(|s| s * rate * f64::from(bucket + 1)),
                );
            }
            let native = (0..SAMPLES).map(|s| Arc::new(native(s as f64 * rate)));
            add(
                "wait_seconds",
                None,
                Values::Histograms(Arc::new(native.collect())),
            );
        }
        series.sort_by(|a, b| a.0.cmp(&b.0));
        Self(series)
    }

    /// Runs each query over all of the time, and counts the samples it covers.
    pub(crate) fn bench(&self, c: &mut Criterion, group: &str, queries: &[&str]) {
        let engine = Engine::default();
        let times = (0, SAMPLES * GAP_MS, SAMPLES * GAP_MS / STEPS);
        let mut group = c.benchmark_group(group);
        for text in queries {
            let query = Query::parse(text, &ParseOptions::default()).unwrap();
            let run =
                || futures::executor::block_on(engine.range(self, &query, times, &Uninterrupted)).unwrap();
            group.throughput(Throughput::Elements(run().stats.samples_total));
            group.bench_function(*text, |b| b.iter(run));
        }
        group.finish();
    }
}

fn floats(value: impl Fn(f64) -> f64) -> Values {
    Values::Floats(Arc::new((0..SAMPLES).map(|s| value(s as f64)).collect()))
}

fn native(scale: f64) -> Histogram {
    let buckets: Vec<f64> = (1..=20).map(|b| f64::from(b) * scale).collect();
    Histogram {
        reset_hint: ResetHint::Unknown,
        schema: 3,
        zero_threshold: 1e-9,
        zero_count: scale,
        count: buckets.iter().sum::<f64>() + scale,
        sum: scale * 7.0,
        positive_spans: vec![
            Span {
                offset: -4,
                length: 12,
            },
            Span { offset: 3, length: 8 },
        ],
        positive_buckets: buckets,
        ..Histogram::default()
    }
}
