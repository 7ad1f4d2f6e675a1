//! Cutting observations off a histogram: `</` and `>/`.
//!
//! **Source:** Prometheus `FloatHistogram.TrimBuckets`.

use koios_model::Histogram;

use super::arithmetic::uses_custom_buckets;
use super::buckets::{Bucket, negative, positive, zero};

/// What stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    Below,
    Above,
}

/// The observations of a bucket that stay, and the value that stands for them.
type Kept = (f64, f64);

/// Keeps the observations below `at`, or those above.
pub(crate) fn trim(h: &mut Histogram, at: f64, keep_below: bool) {
    let keep = if keep_below { Keep::Below } else { Keep::Above };
    let linear = uses_custom_buckets(h);
    let (mut count, mut sum, mut changed) = (0.0, 0.0, false);
    let (up, down) = (positive(h), negative(h));
    let sides = [
        (&up, &mut h.positive_buckets, true),
        (&down, &mut h.negative_buckets, false),
    ];
    for (side, counts, is_positive) in sides {
        for (b, slot) in side.iter().zip(counts).filter(|(b, _)| b.count != 0.0) {
            let (kept, middle) = kept(b, at, keep, is_positive, linear);
            count += kept;
            sum += middle * kept;
            changed |= *slot != kept;
            *slot = kept;
        }
    }
    if h.zero_count > 0.0 {
        let populated = |side: &[Bucket]| side.iter().any(|b| b.count != 0.0);
        let (kept, middle) = kept_of_zero(zero(h), at, keep, populated(&down), populated(&up));
        changed |= h.zero_count != kept;
        h.zero_count = kept;
        count += kept;
        sum += middle * kept;
    }
    if changed {
        h.count = count;
        h.sum = sum;
        h.compact();
    }
}

fn kept(b: &Bucket, at: f64, keep: Keep, is_positive: bool, linear: bool) -> Kept {
    let (whole, cut) = match keep {
        Keep::Below => (b.upper <= at, b.lower < at),
        Keep::Above => (b.lower >= at, b.upper > at),
    };
    if whole {
        return (b.count, midpoint(b.lower, b.upper, is_positive, linear));
    }
    if !cut {
        return (0.0, 0.0);
    }
    if b.lower == f64::NEG_INFINITY {
        return kept_of_lowest(b, at, keep);
    }
    if b.upper == f64::INFINITY {
        return kept_of_highest(b, at, keep);
    }
    let below = b.count * b.fraction_below(at, linear);
    match keep {
        Keep::Below => (below, midpoint(b.lower, at, is_positive, linear)),
        Keep::Above => (b.count - below, midpoint(at, b.upper, is_positive, linear)),
    }
}

fn finite_or_zero(v: f64) -> f64 {
    if v.is_infinite() { 0.0 } else { v }
}

/// The bucket from minus infinity: if it reaches above zero it is taken to begin there, else nothing is known of where
/// its observations lie.
fn kept_of_lowest(b: &Bucket, at: f64, keep: Keep) -> Kept {
    let finite = b.upper != f64::INFINITY;
    match keep {
        Keep::Below if at >= b.upper => (b.count, 0.0),
        Keep::Below if at > 0.0 && b.upper > 0.0 && finite => (b.count * at / b.upper, at / 2.0),
        Keep::Below if b.upper <= 0.0 => (b.count, at),
        Keep::Above if at <= b.lower => (b.count, 0.0),
        Keep::Above if at >= 0.0 && b.upper > at && finite => {
            (b.count * (1.0 - at / b.upper), (at + b.upper) / 2.0)
        }
        _ => (0.0, finite_or_zero(b.upper)),
    }
}

/// The bucket to infinity: all of it is above, wherever it is cut.
fn kept_of_highest(b: &Bucket, at: f64, keep: Keep) -> Kept {
    if keep == Keep::Above && at >= b.lower {
        (b.count, at)
    } else {
        (0.0, finite_or_zero(b.lower))
    }
}

fn kept_of_zero(b: Bucket, at: f64, keep: Keep, any_negative: bool, any_positive: bool) -> Kept {
    let upper = if any_negative && !any_positive {
        0.0
    } else {
        b.upper
    };
    let lower = if any_positive && !any_negative {
        0.0
    } else {
        b.lower
    };
    let all = (b.count, (lower + upper) / 2.0);
    match keep {
        Keep::Below if at <= lower => (0.0, 0.0),
        Keep::Below if at >= upper => all,
        Keep::Below => (b.count * ((at - lower) / (upper - lower)), (lower + at) / 2.0),
        Keep::Above if at <= lower => all,
        Keep::Above if at >= upper => (0.0, 0.0),
        Keep::Above => (b.count * ((upper - at) / (upper - lower)), (at + upper) / 2.0),
    }
}

/// The value that stands for what is observed between two bounds.
fn midpoint(lower: f64, upper: f64, is_positive: bool, linear: bool) -> f64 {
    match (lower.is_infinite(), upper.is_infinite()) {
        (true, true) => 0.0,
        (true, false) if upper > 0.0 => upper / 2.0,
        (true, false) => upper,
        (false, true) => lower,
        (false, false) if linear => (lower + upper) / 2.0,
        (false, false) => {
            let middle = (lower * upper).abs().sqrt();
            if is_positive { middle } else { -middle }
        }
    }
}

#[cfg(test)]
mod tests {
    use koios_model::Span;

    use super::*;

    #[test]
    fn what_lies_on_the_other_side_goes() {
        let mut h = Histogram {
            count: 6.0,
            sum: 20.0,
            positive_spans: vec![Span { offset: 1, length: 2 }],
            positive_buckets: vec![2.0, 4.0],
            ..Histogram::default()
        };
        let untouched = h.clone();
        trim(&mut h, 100.0, true);
        assert_eq!(h, untouched);
        trim(&mut h, 2.0, true);
        assert_eq!((h.count, h.positive_buckets.as_slice()), (2.0, &[2.0][..]));
        assert!((h.sum - 2.0 * 2f64.sqrt()).abs() < 1e-12);
    }
}
