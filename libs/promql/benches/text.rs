//! Queries as text: parsing, printing, printing over several lines.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

const QUERIES: [(&str, &str); 4] = [
    (
        "selector",
        r#"http_requests_total{job="api", code=~"5..", instance!="a"}"#,
    ),
    (
        "rate",
        "sum by (job, code) (rate(http_requests_total{job=~\"api|web\"}[5m] offset 1h))",
    ),
    (
        "slo",
        r#"(sum by (job) (rate(errors_total{job="api"}[5m])) / sum by (job) (rate(requests_total{job="api"}[5m])) > 0.01)
            and on (job) (max_over_time(up{job="api"}[1h:1m] @ end()) == 1)
            unless histogram_quantile(0.99, sum by (job, le) (rate(wait_seconds_bucket[5m]))) < 0.3"#,
    ),
    (
        "deep",
        "(((((((((((((((((((a + 1) * 2) - 3) / 4) ^ 2) % 7) + 1) * 2) - 3) / 4) ^ 2) % 7) + 1) * 2) - 3) / 4) ^ 2) % 7) + 1) * 2",
    ),
];

fn text(c: &mut Criterion) {
    for (name, query) in QUERIES {
        let expr = koios_promql::parse(query).unwrap();
        c.bench_function(&format!("parse/{name}"), |b| {
            b.iter(|| koios_promql::parse(black_box(query)).unwrap());
        });
        c.bench_function(&format!("print/{name}"), |b| {
            b.iter(|| black_box(&expr).to_string())
        });
        c.bench_with_input(BenchmarkId::new("pretty", name), &expr, |b, expr| {
            b.iter(|| koios_promql::pretty(expr));
        });
    }
}

criterion_group!(benches, text);
criterion_main!(benches);
