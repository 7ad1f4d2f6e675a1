//! Native histograms of twenty buckets: arithmetic, sums, rates, quantiles; 50 series.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

mod fleet;

use criterion::{Criterion, criterion_group, criterion_main};
use fleet::Fleet;

fn histograms(c: &mut Criterion) {
    let fleet = Fleet::new(50);
    fleet.bench(
        c,
        "native histogram",
        &[
            "wait_seconds",
            "wait_seconds * 2",
            "wait_seconds + wait_seconds",
            "wait_seconds - wait_seconds",
            "sum(wait_seconds)",
            "sum by (job) (wait_seconds)",
            "avg(wait_seconds)",
            "rate(wait_seconds[5m])",
            "sum_over_time(wait_seconds[5m])",
            "histogram_count(wait_seconds)",
            "histogram_quantile(0.9, wait_seconds)",
            "histogram_fraction(0, 1, wait_seconds)",
            "histogram_quantile(0.9, sum by (job) (rate(wait_seconds[5m])))",
        ],
    );
}

criterion_group!(benches, histograms);
criterion_main!(benches);
