//! Quantiles of a set of numbers.

use std::cmp::Ordering;

/// NaN first, then ascending.
pub(super) fn nan_first(a: &f64, b: &f64) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => a.partial_cmp(b).unwrap_or(Ordering::Equal),
    }
}

/// The `q`-quantile, interpolated between the two nearest values; sorts the values. NaN for none, an infinity for `q`
/// outside 0 to 1.
pub(super) fn quantile_of(q: f64, values: &mut [f64]) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    if let Some(value) = quantile_beyond(q) {
        return value;
    }
    values.sort_unstable_by(nan_first);
    quantile_of_sorted(q, values)
}

/// The quantile of any numbers for a `q` that is not from 0 to 1.
pub(super) fn quantile_beyond(q: f64) -> Option<f64> {
    if q.is_nan() {
        Some(f64::NAN)
    } else if q < 0.0 {
        Some(f64::NEG_INFINITY)
    } else {
        (q > 1.0).then_some(f64::INFINITY)
    }
}

/// The same of values that are sorted already, for `q` from 0 to 1.
pub(super) fn quantile_of_sorted(q: f64, values: &[f64]) -> f64 {
    let last = values.len().saturating_sub(1) as f64;
    let rank = q * last;
    let lower = rank.floor().max(0.0);
    let upper = (lower + 1.0).min(last);
    let weight = rank - rank.floor();
    let at = |i: f64| values.get(i as usize).copied().unwrap_or(f64::NAN);
    at(lower) * (1.0 - weight) + at(upper) * weight
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpolates_between_neighbours() {
        assert_eq!(quantile_of(0.5, &mut [3.0, 1.0, 2.0, 4.0]), 2.5);
        assert_eq!(quantile_of(1.0, &mut [3.0, 1.0]), 3.0);
        assert_eq!(quantile_of(-0.1, &mut [1.0]), f64::NEG_INFINITY);
        assert!(quantile_of(0.5, &mut []).is_nan());
        assert!(quantile_of(0.0, &mut [1.0, f64::NAN]).is_nan());
    }
}
