//! How small chunks are on a fleet-like mix; deterministic, so a change that costs bytes shows.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../benches/fleet/mod.rs"]
mod fleet;

use fleet::{SAMPLES, SERIES, series};
use koios_chunk::encode;

/// Bytes per sample of the series that `pick` takes.
fn size(jitter: bool, pick: impl Fn(usize) -> bool) -> f64 {
    let picked: Vec<usize> = (0..SERIES)
        .filter(|i| pick(*i))
        .map(|i| {
            let (ts, vs) = series(i, jitter);
            encode(&ts, &vs).unwrap().len()
        })
        .collect();
    picked.iter().sum::<usize>() as f64 / (picked.len() * SAMPLES) as f64
}

#[test]
fn a_fleet_takes_few_bytes_per_sample() {
    for (name, jitter, most) in [("jittered", true, 1.61), ("regular", false, 1.23)] {
        let all = size(jitter, |_| true);
        let counters = size(jitter, |i| i % 10 < 4);
        let gauges = size(jitter, |i| (4..7).contains(&(i % 10)));
        let constants = size(jitter, |i| (7..9).contains(&(i % 10)));
        let full = size(jitter, |i| i % 10 == 9);
        println!(
            "{name}: {all:.2} B/sample (counters {counters:.2}, gauges {gauges:.2}, constants {constants:.2}, \
             full precision {full:.2})"
        );
        assert!(all <= most, "{name}: {all:.2}");
    }
}
