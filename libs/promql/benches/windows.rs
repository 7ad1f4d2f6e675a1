//! Range functions: windows of 20 and of 240 samples, 360 of them over each of 100 series.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

mod fleet;

use criterion::{Criterion, criterion_group, criterion_main};
use fleet::Fleet;

fn windows(c: &mut Criterion) {
    let fleet = Fleet::new(100);
    fleet.bench(c, "instant", &["requests_total", "requests_total offset 5m"]);
    fleet.bench(
        c,
        "rate",
        &[
            "rate(requests_total[5m])",
            "rate(requests_total[1h])",
            "increase(requests_total[5m])",
            "delta(temperature[5m])",
            "irate(requests_total[5m])",
            "resets(requests_total[1h])",
            "changes(temperature[1h])",
            "deriv(temperature[1h])",
        ],
    );
    fleet.bench(
        c,
        "over_time",
        &[
            "sum_over_time(temperature[5m])",
            "sum_over_time(temperature[1h])",
            "avg_over_time(temperature[1h])",
            "min_over_time(temperature[1h])",
            "max_over_time(temperature[1h])",
            "count_over_time(temperature[1h])",
            "stddev_over_time(temperature[1h])",
            "quantile_over_time(0.9, temperature[5m])",
            "quantile_over_time(0.9, temperature[1h])",
            "max_over_time(rate(requests_total[5m])[1h:1m])",
        ],
    );
}

criterion_group!(benches, windows);
criterion_main!(benches);
