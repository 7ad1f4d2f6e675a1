//! Native histograms as senders make them: of several schemas, with buckets on both sides or custom bounds, of counts and of gauges.

use koios_model::{CUSTOM_BOUNDS_SCHEMA, Histogram, ResetHint, stale_nan};
use koios_model::{Span, spans_of};
use koios_runtime::RngHandle;

/// The next histogram of a series whose last one is known: most often the same buckets with more in them.
pub(crate) fn histogram(rng: &RngHandle, last: Option<&Histogram>) -> Histogram {
    let mut histogram = match (rng.below(12), last) {
        (0, _) => Histogram::stale(),
        (1..8, Some(last)) if !last.is_stale() => grown(rng, last),
        (8 | 9, _) => custom(rng),
        _ => exponential(rng),
    };
    histogram.make_canonical();
    histogram
}

/// As senders of counts do, or with fractions.
fn count(rng: &RngHandle) -> f64 {
    match rng.below(6) {
        0 => rng.below(1 << 50) as f64,
        1 => rng.below(1000) as f64 / 16.0,
        _ => rng.below(40) as f64,
    }
}

fn sum(rng: &RngHandle) -> f64 {
    match rng.below(10) {
        0 => [f64::NAN, f64::INFINITY, -0.0, stale_nan()][rng.below(4) as usize],
        1 => f64::from_bits(rng.u64()),
        _ => rng.below(1 << 30) as f64 / 8.0,
    }
}

fn hint(rng: &RngHandle) -> ResetHint {
    match rng.below(4) {
        0 => ResetHint::Gauge,
        1 => ResetHint::Reset,
        _ => ResetHint::Unknown,
    }
}

/// Some buckets, with gaps between them.
fn buckets(rng: &RngHandle, first: i32, most: u64) -> (Vec<Span>, Vec<f64>) {
    let mut index = first;
    spans_of((0..rng.below(most + 1)).map(|_| {
        let at = index;
        index += match rng.below(4) {
            0 => 2 + rng.below(30) as i32,
            _ => 1,
        };
        (at, count(rng))
    }))
}

fn total(h: &Histogram) -> f64 {
    h.zero_count + h.positive_buckets.iter().chain(&h.negative_buckets).sum::<f64>()
}

fn exponential(rng: &RngHandle) -> Histogram {
    let (positive_spans, positive_buckets) = buckets(rng, rng.below(40) as i32 - 20, 12);
    let (negative_spans, negative_buckets) = match rng.below(3) {
        0 => buckets(rng, rng.below(40) as i32 - 20, 6),
        _ => Default::default(),
    };
    let mut histogram = Histogram {
        reset_hint: hint(rng),
        schema: rng.below(13) as i32 - 4,
        zero_threshold: [0.0, 1e-128, 0.001][rng.below(3) as usize],
        zero_count: count(rng),
        sum: sum(rng),
        positive_spans,
        positive_buckets,
        negative_spans,
        negative_buckets,
        ..Histogram::default()
    };
    histogram.count = total(&histogram);
    histogram
}

/// With bounds of its own.
fn custom(rng: &RngHandle) -> Histogram {
    let mut bound = rng.below(100) as f64 / 8.0 - 6.0;
    let bounds = (0..1 + rng.below(8)).map(|_| {
        bound += (1 + rng.below(1000)) as f64 / 64.0;
        bound
    });
    let custom_bounds: Vec<f64> = bounds.collect();
    let filled = (0..=custom_bounds.len() as i32).map(|at| (at, count(rng)));
    let (positive_spans, positive_buckets) = spans_of(filled.filter(|(_, n)| *n != 0.0));
    let mut histogram = Histogram {
        reset_hint: hint(rng),
        schema: CUSTOM_BOUNDS_SCHEMA,
        sum: sum(rng),
        positive_spans,
        positive_buckets,
        custom_bounds,
        ..Histogram::default()
    };
    histogram.count = total(&histogram);
    histogram
}

fn grown(rng: &RngHandle, last: &Histogram) -> Histogram {
    let mut histogram = last.clone();
    for n in histogram
        .positive_buckets
        .iter_mut()
        .chain(&mut histogram.negative_buckets)
    {
        *n += rng.below(5) as f64;
    }
    histogram.sum += rng.below(1000) as f64 / 8.0;
    histogram.count = total(&histogram);
    histogram
}
