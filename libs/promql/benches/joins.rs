//! Operators: with a number, one-to-one, many-to-one, sets; 500 series on each side.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

mod fleet;

use criterion::{Criterion, criterion_group, criterion_main};
use fleet::Fleet;

fn joins(c: &mut Criterion) {
    let fleet = Fleet::new(500);
    fleet.bench(
        c,
        "operator",
        &[
            "temperature * 2",
            "temperature > 10",
            "temperature > bool 10",
            "requests_total / temperature",
            "requests_total / on (instance) temperature",
            "requests_total / on (job) group_left sum by (job) (temperature)",
            "requests_total * on (instance, job) group_left (version) up_info",
            "requests_total and on (instance) temperature",
            "requests_total or temperature",
            "requests_total unless on (instance) temperature",
        ],
    );
}

criterion_group!(benches, joins);
criterion_main!(benches);
