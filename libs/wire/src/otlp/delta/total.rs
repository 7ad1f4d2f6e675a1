//! What is added up: numbers and histograms.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use crate::otlp::native::indexed;
use crate::otlp::point::{BUCKETS_MAX, Explicit, Exponential, Number, Side};

/// A delta, or the sum of several. Cheap to clone.
#[derive(Clone, Debug)]
pub(in crate::otlp) enum Total {
    /// Whole numbers and others apart, so that the former stay exact.
    Number(i64, f64),
    Explicit(Arc<Explicit>),
    Exponential(Arc<Exponential>),
}

impl From<Number> for Total {
    fn from(number: Number) -> Self {
        match number {
            Number::Int(n) => Self::Number(n, 0.0),
            Number::Double(v) => Self::Number(0, v),
        }
    }
}

impl Total {
    /// What its buckets occupy.
    pub(super) fn bytes(&self) -> usize {
        let of = |counts: &Vec<u64>| counts.len() * size_of::<u64>();
        match self {
            Self::Number(..) => 0,
            Self::Explicit(e) => size_of::<Explicit>() + of(&e.counts) + e.bounds.len() * size_of::<f64>(),
            Self::Exponential(e) => {
                size_of::<Exponential>() + of(&e.positive.counts) + of(&e.negative.counts)
            }
        }
    }

    /// Tells one delta from another.
    pub(super) fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let sum = |sum: Option<f64>| sum.map(f64::to_bits);
        match self {
            Self::Number(n, v) => (0u8, n, v.to_bits()).hash(&mut hasher),
            Self::Explicit(e) => {
                let bounds: Vec<u64> = e.bounds.iter().map(|b| b.to_bits()).collect();
                (1u8, e.count, sum(e.sum), &e.counts, bounds).hash(&mut hasher);
            }
            Self::Exponential(e) => {
                (2u8, e.count, sum(e.sum), e.scale, e.zero_count).hash(&mut hasher);
                for side in [&e.positive, &e.negative] {
                    (side.offset, &side.counts).hash(&mut hasher);
                }
            }
        }
        hasher.finish()
    }

    /// The same with nothing in it.
    pub(in crate::otlp) fn zero(&self) -> Self {
        match self {
            Self::Number(..) => Self::Number(0, 0.0),
            Self::Explicit(e) => Self::Explicit(Arc::new(Explicit {
                count: 0,
                sum: e.sum.map(|_| 0.0),
                counts: vec![0; e.counts.len()],
                bounds: e.bounds.clone(),
            })),
            Self::Exponential(e) => Self::Exponential(Arc::new(Exponential {
                sum: e.sum.map(|_| 0.0),
                scale: e.scale,
                ..Exponential::default()
            })),
        }
    }

    /// The sum with what has the same form.
    pub(super) fn plus(&self, delta: &Self) -> Option<Self> {
        match (self, delta) {
            (Self::Number(n, v), Self::Number(more_n, more_v)) => Some(match n.checked_add(*more_n) {
                Some(sum) => Self::Number(sum, v + more_v),
                None => Self::Number(*n, v + *more_n as f64 + more_v),
            }),
            (Self::Explicit(total), Self::Explicit(delta)) => {
                let mut sum = Explicit::clone(total);
                sum.add(delta).then(|| Self::Explicit(Arc::new(sum)))
            }
            (Self::Exponential(total), Self::Exponential(delta)) => {
                let mut sum = Exponential::clone(total);
                sum.add(delta).then(|| Self::Exponential(Arc::new(sum)))
            }
            _ => None,
        }
    }

    /// Without a part of it. Only numbers have parts that go away.
    pub(super) fn minus(&self, part: &Self) -> Self {
        match (self, part) {
            (Self::Number(n, v), Self::Number(less_n, less_v)) => match n.checked_sub(*less_n) {
                Some(rest) => Self::Number(rest, v - less_v),
                None => Self::Number(*n, v - *less_n as f64 - less_v),
            },
            _ => self.clone(),
        }
    }
}

/// Unknown if either is.
fn add_sums(total: Option<f64>, delta: Option<f64>) -> Option<f64> {
    total.zip(delta).map(|(total, delta)| total + delta)
}

impl Explicit {
    fn add(&mut self, delta: &Self) -> bool {
        let bits = |bounds: &[f64]| -> Vec<u64> { bounds.iter().map(|b| b.to_bits()).collect() };
        if self.counts.len() != delta.counts.len() || bits(&self.bounds) != bits(&delta.bounds) {
            return false;
        }
        self.count = self.count.saturating_add(delta.count);
        self.sum = add_sums(self.sum, delta.sum);
        for (count, more) in self.counts.iter_mut().zip(&delta.counts) {
            *count = count.saturating_add(*more);
        }
        true
    }
}

impl Exponential {
    /// The total gets as coarse as the coarser of the two, and as its number of buckets demands.
    fn add(&mut self, delta: &Self) -> bool {
        let mut scale = self.scale.min(delta.scale);
        let (positive, negative) = loop {
            let sides = (
                united(
                    (&self.positive, self.scale),
                    (&delta.positive, delta.scale),
                    scale,
                ),
                united(
                    (&self.negative, self.scale),
                    (&delta.negative, delta.scale),
                    scale,
                ),
            );
            match sides {
                (Some(positive), Some(negative)) => break (positive, negative),
                _ => match scale.checked_sub(1) {
                    Some(coarser) => scale = coarser,
                    None => return false,
                },
            }
        };
        self.scale = scale;
        (self.positive, self.negative) = (positive, negative);
        self.count = self.count.saturating_add(delta.count);
        self.zero_count = self.zero_count.saturating_add(delta.zero_count);
        self.sum = add_sums(self.sum, delta.sum);
        true
    }
}

/// The buckets of both at a scale that is no finer than theirs; none if these are too many.
fn united(a: (&Side, i32), b: (&Side, i32), scale: i32) -> Option<Side> {
    let at_scale = |(side, from): (&Side, i32)| -> Vec<(i64, u64)> {
        indexed(side, from.saturating_sub(scale)).collect()
    };
    let (a, b) = (at_scale(a), at_scale(b));
    let all = || a.iter().chain(&b);
    let Some(first) = all().map(|(index, _)| *index).min() else {
        return Some(Side::default());
    };
    let last = all().map(|(index, _)| *index).max().unwrap_or(first);
    let width = usize::try_from(last - first).ok()?.checked_add(1)?;
    if width > BUCKETS_MAX {
        return None;
    }
    let mut counts = vec![0u64; width];
    for (index, count) in all() {
        let at = usize::try_from(index - first).ok()?;
        let slot = counts.get_mut(at)?;
        *slot = slot.saturating_add(*count);
    }
    let offset = i32::try_from(first).ok()?;
    Some(Side { offset, counts })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn exponential(scale: i32, offset: i32, counts: &[u64]) -> Exponential {
        Exponential {
            count: counts.iter().sum(),
            sum: Some(1.0),
            scale,
            positive: Side {
                offset,
                counts: counts.to_vec(),
            },
            ..Exponential::default()
        }
    }

    #[test]
    fn exponential_buckets_meet_at_the_coarser_scale() {
        let mut total = exponential(1, -1, &[1, 2, 3, 4]);
        assert!(total.add(&exponential(0, 4, &[5])));
        assert_eq!((total.scale, total.count, total.sum), (0, 15, Some(2.0)));
        assert_eq!(
            (total.positive.offset, total.positive.counts),
            (-1, vec![1, 5, 4, 0, 0, 5])
        );
        let mut far = exponential(0, 0, &[1]);
        assert!(far.add(&exponential(0, i32::MAX, &[1])));
        assert!(far.positive.counts.len() <= BUCKETS_MAX);
        assert_eq!(far.positive.counts.iter().sum::<u64>(), 2);
    }

    #[test]
    fn other_bounds_start_anew() {
        let explicit = |bounds: &[f64]| {
            Total::Explicit(Arc::new(Explicit {
                count: 3,
                sum: Some(2.0),
                counts: vec![1, 2],
                bounds: bounds.to_vec(),
            }))
        };
        let total = explicit(&[1.0]);
        let Some(Total::Explicit(sum)) = total.plus(&explicit(&[1.0])) else {
            panic!()
        };
        assert_eq!(
            (sum.count, sum.sum, sum.counts.as_slice()),
            (6, Some(4.0), &[2, 4][..])
        );
        assert!(total.plus(&explicit(&[2.0])).is_none());
        assert!(total.plus(&Total::Number(1, 1.0)).is_none());
    }

    proptest! {
        #[test]
        fn no_observation_is_lost_when_buckets_are_united(
            parts in proptest::collection::vec((-4i32..20, -2000i32..2000, proptest::collection::vec(0u64..9, 0..30)), 1..6)
        ) {
            let mut parts = parts.iter().map(|(scale, offset, counts)| exponential(*scale, *offset, counts));
            let mut total = parts.next().unwrap();
            let mut wanted = total.count;
            for part in parts {
                wanted += part.count;
                prop_assert!(total.add(&part));
            }
            prop_assert_eq!(total.count, wanted);
            prop_assert_eq!(total.positive.counts.iter().sum::<u64>(), wanted);
        }
    }
}
