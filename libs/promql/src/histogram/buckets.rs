//! Buckets: their indices, their bounds, and the way between spans and lists.

use koios_model::{Histogram, Span};

use super::arithmetic::uses_custom_buckets;
use super::bounds::exponential_bound;
use crate::kahan::Kahan;

/// A count, plain or compensated.
pub(super) trait Cell: Copy + Default {
    fn of(count: f64) -> Self;
    fn plus(self, other: Self) -> Self;
    fn is_zero(self) -> bool;
}

impl Cell for f64 {
    fn of(count: f64) -> Self {
        count
    }

    fn plus(self, other: Self) -> Self {
        self + other
    }

    fn is_zero(self) -> bool {
        self == 0.0
    }
}

impl Cell for Kahan {
    fn of(count: f64) -> Self {
        Self::new(count)
    }

    fn plus(self, other: Self) -> Self {
        let sum = Self::plus(self, other.sum);
        if other.lost == 0.0 {
            sum
        } else {
            Self::plus(sum, other.lost)
        }
    }

    fn is_zero(self) -> bool {
        self.sum == 0.0 && self.lost == 0.0
    }
}

/// The buckets of one side, ascending in index, each index once.
pub(super) type Side<C> = Vec<(i32, C)>;

/// Reads spans and buckets.
pub(super) fn read<C: Cell>(spans: &[Span], buckets: &[f64]) -> Side<C> {
    let mut side = Vec::with_capacity(buckets.len());
    let (mut index, mut counts) = (0i32, buckets.iter());
    for span in spans {
        index = index.wrapping_add(span.offset);
        for (_, &count) in (0..span.length).zip(counts.by_ref()) {
            side.push((index, C::of(count)));
            index = index.wrapping_add(1);
        }
    }
    side
}

/// Where bucket `index` ends; -1 is below the first custom bucket.
fn bound(h: &Histogram, index: i32) -> f64 {
    if !uses_custom_buckets(h) {
        return exponential_bound(index, h.schema);
    }
    match usize::try_from(index) {
        Err(_) => f64::NEG_INFINITY,
        Ok(i) => h.custom_bounds.get(i).copied().unwrap_or(f64::INFINITY),
    }
}

/// A bucket with its bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bucket {
    /// Where it begins.
    pub lower: f64,
    /// Where it ends.
    pub upper: f64,
    /// Whether `lower` belongs to it.
    pub lower_inclusive: bool,
    /// Whether `upper` belongs to it.
    pub upper_inclusive: bool,
    /// Its observations.
    pub count: f64,
}

impl Bucket {
    /// The share of the bucket below `v`, which lies in it: by value, or by logarithm for exponential buckets.
    pub(crate) fn fraction_below(&self, v: f64, linear: bool) -> f64 {
        if linear {
            return (v - self.lower) / (self.upper - self.lower);
        }
        let log = |v: f64| v.abs().log2();
        if v > 0.0 {
            (log(v) - log(self.lower)) / (log(self.upper) - log(self.lower))
        } else {
            1.0 - (log(v) - log(self.upper)) / (log(self.lower) - log(self.upper))
        }
    }
}

/// The positive buckets, ascending.
pub(super) fn positive(h: &Histogram) -> Vec<Bucket> {
    let custom = uses_custom_buckets(h);
    let bucket = |(index, count): (i32, f64)| {
        let (lower, upper) = (bound(h, index.wrapping_sub(1)), bound(h, index));
        Bucket {
            lower,
            upper,
            lower_inclusive: if custom { index == 0 } else { lower < 0.0 },
            upper_inclusive: custom || upper > 0.0,
            count,
        }
    };
    read::<f64>(&h.positive_spans, &h.positive_buckets)
        .into_iter()
        .map(bucket)
        .collect()
}

/// The negative buckets, away from zero.
pub(super) fn negative(h: &Histogram) -> Vec<Bucket> {
    let bucket = |(index, count): (i32, f64)| {
        let (lower, upper) = (-bound(h, index), -bound(h, index.wrapping_sub(1)));
        Bucket {
            lower,
            upper,
            lower_inclusive: lower < 0.0,
            upper_inclusive: upper > 0.0,
            count,
        }
    };
    read::<f64>(&h.negative_spans, &h.negative_buckets)
        .into_iter()
        .map(bucket)
        .collect()
}

/// The zero bucket.
pub(super) fn zero(h: &Histogram) -> Bucket {
    Bucket {
        lower: -h.zero_threshold,
        upper: h.zero_threshold,
        lower_inclusive: true,
        upper_inclusive: true,
        count: h.zero_count,
    }
}

/// All buckets, ascending; with `clipped`, those that reach into the zero bucket are cut at its edge.
pub(crate) fn all_buckets(h: &Histogram, clipped: bool) -> Vec<Bucket> {
    let mut all = negative(h);
    all.reverse();
    let zero_at = all.len();
    all.extend(positive(h));
    let edge = h.zero_threshold;
    for b in all.iter_mut().filter(|_| clipped) {
        if b.upper < 0.0 && b.upper > -edge {
            b.upper = -edge;
        } else if b.lower > 0.0 && b.lower < edge {
            b.lower = edge;
        }
    }
    if h.zero_count > 0.0 {
        all.insert(zero_at, zero(h));
    }
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use koios_model::spans_of;

    use super::*;

    #[test]
    fn spans_without_buckets_and_buckets_without_spans_are_ignored() {
        let spans = [Span {
            offset: i32::MAX,
            length: u32::MAX,
        }];
        assert_eq!(read::<f64>(&spans, &[1.0]).len(), 1);
        assert!(read::<f64>(&[], &[1.0]).is_empty());
    }

    proptest! {
        #[test]
        fn lists_become_spans_and_lists_again(
            side in proptest::collection::btree_map(-1000i32..1000, 0.0f64..10.0, 0..20)
        ) {
            let side: Side<f64> = side.into_iter().collect();
            let (spans, buckets) = spans_of(side.clone());
            prop_assert!(spans.iter().skip(1).all(|s| s.offset > 0));
            prop_assert_eq!(read::<f64>(&spans, &buckets), side);
        }
    }
}
