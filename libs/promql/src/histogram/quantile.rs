//! Quantiles, fractions and variance of native histograms.
//!
//! **Source:** Prometheus `promql/quantile.go`: `HistogramQuantile`, `HistogramFraction`.

use koios_model::Histogram;

use super::arithmetic::uses_custom_buckets;
use super::buckets::{Bucket, all_buckets};
use crate::annotations::Annotations;
use crate::ast::Span;
use crate::kahan::Kahan;

/// Cuts the zero bucket at zero if all other observations are on one side.
fn one_sided(h: &Histogram, b: &mut Bucket) {
    match (h.negative_buckets.is_empty(), h.positive_buckets.is_empty()) {
        (true, false) => b.lower = 0.0,
        (false, true) => b.upper = 0.0,
        _ => {}
    }
}

/// The `q`-quantile. Within a bucket it is interpolated exponentially, in the zero bucket and in custom buckets linearly.
pub(crate) fn quantile(
    q: f64,
    h: &Histogram,
    metric: &str,
    span: Span,
    annotations: &mut Annotations,
) -> f64 {
    if q < 0.0 {
        return f64::NEG_INFINITY;
    }
    if q > 1.0 {
        return f64::INFINITY;
    }
    if h.count == 0.0 || q.is_nan() {
        return f64::NAN;
    }
    // From the end that is nearer; NaN observations are in no bucket, so that ranks then only hold from below.
    let has_nan = h.sum.is_nan();
    let forward = has_nan || q < 0.5;
    let mut buckets = all_buckets(h, true);
    if !forward {
        buckets.reverse();
    }
    let rank = if forward { q * h.count } else { (1.0 - q) * h.count };
    let (bucket, count, rest) = find_rank(&buckets, rank);
    let mut bucket = match finite_bucket(h, bucket) {
        Ok(bucket) => bucket,
        Err(edge) => return edge,
    };
    // Rounding may have made it more.
    let count = if count > h.count { h.count } else { count };
    if count < rank {
        if has_nan {
            annotations.quantile_nan_result(metric, span);
            return f64::NAN;
        }
        return bucket.upper;
    }
    let within = if forward {
        rank - (count - bucket.count)
    } else {
        count - rank
    };
    if has_nan {
        let all = rest.iter().fold(count, |sum, b| sum + b.count);
        // The reference goes on with the last bucket it has looked at.
        if let Some(last) = rest.last() {
            bucket = *last;
        }
        if all < h.count {
            annotations.quantile_nan_skew(metric, span);
        }
    }
    interpolated(h, &bucket, within / bucket.count)
}

/// The bucket with bounds to interpolate between; the one bound it has if the other is infinite.
fn finite_bucket(h: &Histogram, mut b: Bucket) -> Result<Bucket, f64> {
    if !uses_custom_buckets(h) {
        if b.lower < 0.0 && b.upper > 0.0 {
            one_sided(h, &mut b);
        }
        return Ok(b);
    }
    if b.lower == f64::NEG_INFINITY {
        if b.upper <= 0.0 {
            return Err(b.upper);
        }
        b.lower = 0.0;
    } else if b.upper == f64::INFINITY {
        return Err(b.lower);
    }
    Ok(b)
}

/// The bucket in which a rank is reached, the observations up to its end, and the buckets behind it.
fn find_rank(buckets: &[Bucket], rank: f64) -> (Bucket, f64, &[Bucket]) {
    let (mut found, mut count) = (Bucket::default(), 0.0);
    for (i, b) in buckets.iter().enumerate() {
        found = *b;
        if b.count == 0.0 {
            continue;
        }
        count += b.count;
        if count >= rank {
            return (found, count, buckets.get(i + 1..).unwrap_or_default());
        }
    }
    (found, count, &[])
}

fn interpolated(h: &Histogram, b: &Bucket, fraction: f64) -> f64 {
    if uses_custom_buckets(h) || (b.lower <= 0.0 && b.upper >= 0.0) {
        return b.lower + (b.upper - b.lower) * fraction;
    }
    let (lower, upper) = (b.lower.abs().log2(), b.upper.abs().log2());
    if b.lower > 0.0 {
        (lower + (upper - lower) * fraction).exp2()
    } else {
        -(upper + (lower - upper) * (1.0 - fraction)).exp2()
    }
}

/// The share of observations between two bounds.
pub(crate) fn fraction(
    (lower, upper): (f64, f64),
    h: &Histogram,
    metric: &str,
    span: Span,
    annotations: &mut Annotations,
) -> f64 {
    if h.count == 0.0 || lower.is_nan() || upper.is_nan() {
        return f64::NAN;
    }
    if lower >= upper {
        return 0.0;
    }
    let mut buckets = all_buckets(h, true);
    let total = if h.sum.is_nan() {
        let counted = buckets.iter().fold(0.0, |sum, b| sum + b.count);
        if counted < h.count {
            annotations.fraction_nans(metric, span);
        }
        counted
    } else {
        h.count
    };
    for b in buckets.iter_mut().filter(|b| b.lower <= 0.0 && b.upper >= 0.0) {
        one_sided(h, b);
    }
    let rank = |v: f64| {
        rank_of(v, &buckets, h)
            .filter(|&r| r <= total || r.is_nan())
            .unwrap_or(total)
    };
    (rank(upper) - rank(lower)) / h.count
}

/// How many observations are below `v`; `None` if it is beyond all buckets.
fn rank_of(v: f64, buckets: &[Bucket], h: &Histogram) -> Option<f64> {
    let mut rank = 0.0;
    for b in buckets {
        if b.lower >= v {
            return Some(rank);
        }
        if b.upper > v {
            let linear = uses_custom_buckets(h) || (b.lower <= 0.0 && b.upper >= 0.0);
            // There is no telling where in an infinite bucket the value lies.
            let infinite = linear && b.lower == f64::NEG_INFINITY;
            return Some(if infinite {
                b.count
            } else {
                rank + b.count * b.fraction_below(v, linear)
            });
        }
        rank += b.count;
    }
    None
}

/// The variance of the observations, as far as buckets tell.
pub(crate) fn variance(h: &Histogram) -> f64 {
    let mean = h.sum / h.count;
    let mut squares = Kahan::default();
    for b in all_buckets(h, true).into_iter().filter(|b| b.count != 0.0) {
        let middle = if uses_custom_buckets(h) {
            (b.upper + b.lower) / 2.0
        } else if b.lower <= 0.0 && b.upper >= 0.0 {
            0.0
        } else {
            let middle = (b.upper * b.lower).sqrt();
            if b.upper < 0.0 { -middle } else { middle }
        };
        let delta = middle - mean;
        squares = squares.plus(b.count * delta * delta);
    }
    squares.total() / h.count
}

#[cfg(test)]
mod tests {
    use koios_model::Span as Buckets;

    use super::*;

    fn histogram() -> Histogram {
        Histogram {
            count: 8.0,
            sum: 10.0,
            positive_spans: vec![Buckets { offset: 1, length: 2 }],
            positive_buckets: vec![4.0, 4.0],
            ..Histogram::default()
        }
    }

    #[test]
    fn quantiles_interpolate_on_a_logarithmic_scale() {
        let q = |q| quantile(q, &histogram(), "", Span::default(), &mut Annotations::default());
        assert!((q(0.25) - 2f64.sqrt()).abs() < 1e-12);
        assert!((q(0.5) - 2.0).abs() < 1e-12);
        assert!((q(1.0) - 4.0).abs() < 1e-12);
        assert_eq!((q(-1.0), q(1.1)), (f64::NEG_INFINITY, f64::INFINITY));
    }

    #[test]
    fn fraction_is_the_inverse_of_quantile() {
        let mut a = Annotations::default();
        let v = quantile(0.3, &histogram(), "", Span::default(), &mut a);
        let f = fraction((f64::NEG_INFINITY, v), &histogram(), "", Span::default(), &mut a);
        assert!((f - 0.3).abs() < 1e-12);
    }
}
