//! Aggregations over 500 series, and quantiles of their classic histograms.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

mod fleet;

use criterion::{Criterion, criterion_group, criterion_main};
use fleet::Fleet;

fn aggregations(c: &mut Criterion) {
    let fleet = Fleet::new(500);
    fleet.bench(
        c,
        "aggregate",
        &[
            "sum(temperature)",
            "sum by (job) (temperature)",
            "sum without (instance) (temperature)",
            "sum by (instance) (temperature)",
            "avg by (job) (temperature)",
            "max by (job) (temperature)",
            "stddev by (job) (temperature)",
            "quantile by (job) (0.9, temperature)",
            "topk(5, temperature)",
            "topk by (job) (5, temperature)",
            "count_values(\"value\", up_info)",
            "sum by (job) (rate(requests_total[5m]))",
        ],
    );
    fleet.bench(
        c,
        "classic histogram",
        &[
            "histogram_quantile(0.9, wait_seconds_bucket)",
            "histogram_quantile(0.9, rate(wait_seconds_bucket[5m]))",
            "histogram_quantile(0.9, sum by (job, le) (rate(wait_seconds_bucket[5m])))",
        ],
    );
}

criterion_group!(benches, aggregations);
criterion_main!(benches);
