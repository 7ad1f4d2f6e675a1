//! Range queries over 200 counters of one day at 15 s, 1,000 steps each.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::sync::Arc;

use async_trait::async_trait;
use criterion::{Criterion, criterion_group, criterion_main};
use koios_model::{Labels, TimeRange};
use koios_promql::{
    Columns, Completeness, Engine, ParseOptions, Query, QueryError, Queryable, SelectRequest, Series,
    SeriesData, SeriesStream, Uninterrupted, stream_of,
};

const SERIES: usize = 200;
const SAMPLES: i64 = 5_760;
const GAP_MS: i64 = 15_000;

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
    async fn select(&self, _: SelectRequest) -> Result<SeriesStream, QueryError> {
        let series = self.0.iter().map(|(labels, data)| Series {
            labels: labels.clone(),
            data: Box::new(data.clone()),
        });
        Ok(stream_of(series.collect(), Completeness::Complete))
    }
}

fn memory() -> Memory {
    let t: Arc<Vec<i64>> = Arc::new((0..SAMPLES).map(|i| i * GAP_MS).collect());
    let mut series: Vec<(Labels, Plain)> = (0..SERIES)
        .map(|i| {
            let labels = Labels::from_pairs([
                ("__name__", "requests_total".to_owned()),
                ("instance", format!("{i:04}")),
                ("job", (i % 10).to_string()),
            ]);
            let v = (0..SAMPLES).map(|s| (s * (i as i64 + 1)) as f64).collect();
            (
                labels,
                Plain {
                    t: Arc::clone(&t),
                    v: Arc::new(v),
                },
            )
        })
        .collect();
    series.sort_by(|a, b| a.0.cmp(&b.0));
    Memory(series)
}

fn range_queries(c: &mut Criterion) {
    let memory = memory();
    let engine = Engine::default();
    let times = (0, SAMPLES * GAP_MS, SAMPLES * GAP_MS / 1_000);
    for text in [
        "requests_total",
        "rate(requests_total[5m])",
        "rate(requests_total[1h])",
        "sum by (job) (rate(requests_total[5m]))",
        "max_over_time(requests_total[6h])",
        "avg_over_time(requests_total[1h])",
        "requests_total / on (instance) requests_total",
        "topk(5, requests_total)",
        "quantile(0.9, requests_total)",
    ] {
        let query = Query::parse(text, &ParseOptions::default()).unwrap();
        c.bench_function(text, |b| {
            b.iter(|| {
                futures::executor::block_on(engine.range(&memory, &query, times, &Uninterrupted)).unwrap()
            });
        });
    }
}

criterion_group!(benches, range_queries);
criterion_main!(benches);
