//! Small data for queries to run on: floats, native and classic histograms, with all that is odd about samples.

use std::sync::Arc;

use koios_model::{Histogram, Labels, ResetHint, Span, stale_nan};
use koios_promql::SampleValue;

use super::choices::Choices;
use crate::promqltest::{MemoryStorage, Point};
use crate::random::Random;

/// The samples lie within this time from 0, milliseconds.
pub(super) const SPAN_MS: i64 = 300_000;

/// Series of the metrics `a_total` and `b` (floats), `h` (histograms), `m` (both), `c_bucket` (a classic histogram) and
/// `target_info`.
pub(super) fn storage(choices: &mut Choices<'_>) -> MemoryStorage {
    let mut random = Random::new(u64::from(choices.byte()));
    let mut storage = MemoryStorage::default();
    for name in ["a_total", "b", "h", "m"] {
        for (job, instance) in [("x", "0"), ("x", "1"), ("y", "0")] {
            if random.below(4) == 0 {
                continue;
            }
            let labels = Labels::from_pairs([("__name__", name), ("job", job), ("instance", instance)]);
            let points = points(&mut random, name);
            storage.insert(&labels, &points);
        }
    }
    for bound in ["0.5", "1", "5", "+Inf"] {
        let labels = Labels::from_pairs([("__name__", "c_bucket"), ("job", "x"), ("le", bound)]);
        storage.insert(&labels, &points(&mut random, "c_bucket"));
    }
    let info = Labels::from_pairs([
        ("__name__", "target_info"),
        ("job", "x"),
        ("instance", "0"),
        ("version", "7"),
    ]);
    storage.insert(&info, &points(&mut random, "target_info"));
    storage
}

fn points(random: &mut Random, name: &str) -> Vec<Point> {
    let (mut t_ms, mut counter) = (0, 0.0);
    let mut points = Vec::new();
    while t_ms < SPAN_MS {
        let histogram = match name {
            "h" => true,
            "m" => random.below(3) == 0,
            _ => false,
        };
        let value = if histogram {
            SampleValue::Histogram(Arc::new(any_histogram(random)))
        } else {
            counter += random.below(10) as f64;
            if random.below(12) == 0 {
                counter = 0.0;
            }
            SampleValue::Float(float(random, name, counter))
        };
        let started = random.below(5) == 0;
        points.push(Point {
            t_ms,
            start_ms: if started { t_ms - 10_000 } else { 0 },
            value,
        });
        t_ms += [15_000, 15_000, 7_001, 60_000][random.index(4)];
    }
    points
}

fn float(random: &mut Random, name: &str, counter: f64) -> f64 {
    match (random.below(14), name) {
        (0, _) => stale_nan(),
        (1, "b" | "m") => f64::NAN,
        (2, "b" | "m") => f64::INFINITY,
        (3, "b" | "m") => -0.0,
        (4, "b") => 1e308,
        (_, "b") => random.below(7) as f64 - 3.0,
        (_, "target_info") => 1.0,
        _ => counter,
    }
}

fn any_histogram(random: &mut Random) -> Histogram {
    if random.below(25) == 0 {
        return Histogram {
            sum: stale_nan(),
            ..Histogram::default()
        };
    }
    let custom = random.below(4) == 0;
    let counts: Vec<f64> = (0..4).map(|_| random.below(6) as f64).collect();
    let zero_count = if custom { 0.0 } else { random.below(3) as f64 };
    let gap = i32::from(random.below(2) == 0);
    Histogram {
        reset_hint: match random.below(6) {
            0 => ResetHint::Gauge,
            1 => ResetHint::Reset,
            _ => ResetHint::Unknown,
        },
        schema: if custom {
            -53
        } else {
            [0, 1, 2, -1][random.index(4)]
        },
        zero_threshold: if custom { 0.0 } else { 0.001 },
        zero_count,
        count: counts.iter().sum::<f64>() + zero_count,
        sum: random.below(100) as f64,
        positive_spans: vec![
            Span { offset: 0, length: 2 },
            Span {
                offset: if custom { 0 } else { gap },
                length: 2,
            },
        ],
        positive_buckets: counts,
        custom_bounds: if custom {
            [vec![1.0, 2.0, 4.0], vec![1.0, 3.0, 4.0]][random.index(2)].clone()
        } else {
            Vec::new()
        },
        ..Histogram::default()
    }
}
