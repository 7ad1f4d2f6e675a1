//! Sums, differences and multiples.

use koios_model::{Histogram, ResetHint, spans_of};

use super::bounds::exponential_bound;
use super::buckets::{Cell, Side, read};

/// The schema number of custom buckets.
const CUSTOM_SCHEMA: i32 = -53;

/// Two histograms whose buckets cannot be united: exponential and custom ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot apply this operation on histograms with a mix of exponential and custom bucket schemas")]
pub struct Incompatible;

/// What had to be reconciled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// One histogram began anew and the other is known not to have.
    pub reset_collision: bool,
    /// Custom bounds differ: only those that both have remain.
    pub bounds: bool,
}

/// Whether the buckets have custom bounds.
pub(crate) fn uses_custom_buckets(h: &Histogram) -> bool {
    h.schema == CUSTOM_SCHEMA
}

/// A histogram as a sum in the making.
#[derive(Clone, Debug)]
pub(super) struct Parts<C> {
    pub(super) hint: ResetHint,
    pub(super) schema: i32,
    pub(super) zero_threshold: f64,
    pub(super) zero: C,
    pub(super) count: C,
    pub(super) sum: C,
    pub(super) positive: Side<C>,
    pub(super) negative: Side<C>,
    pub(super) custom_bounds: Vec<f64>,
}

impl<C: Cell> Parts<C> {
    pub(super) fn of(h: &Histogram) -> Self {
        let custom = uses_custom_buckets(h);
        Self {
            hint: h.reset_hint,
            schema: h.schema,
            zero_threshold: if custom { 0.0 } else { h.zero_threshold },
            zero: C::of(if custom { 0.0 } else { h.zero_count }),
            count: C::of(h.count),
            sum: C::of(h.sum),
            positive: read(&h.positive_spans, &h.positive_buckets),
            negative: if custom {
                Vec::new()
            } else {
                read(&h.negative_spans, &h.negative_buckets)
            },
            custom_bounds: h.custom_bounds.clone(),
        }
    }

    fn custom(&self) -> bool {
        self.schema == CUSTOM_SCHEMA
    }

    /// What it occupies in memory.
    pub(super) fn bytes(&self) -> usize {
        let cells = self.positive.capacity() + self.negative.capacity();
        size_of::<Self>() + cells * size_of::<(i32, C)>() + self.custom_bounds.capacity() * 8
    }

    /// The histogram, with `value` of each cell.
    pub(super) fn histogram(self, value: impl Fn(C) -> f64) -> Histogram {
        let side = |side: Side<C>| spans_of(side.into_iter().map(|(i, c)| (i, value(c))));
        let (positive_spans, positive_buckets) = side(self.positive);
        let (negative_spans, negative_buckets) = side(self.negative);
        Histogram {
            reset_hint: self.hint,
            schema: self.schema,
            zero_threshold: self.zero_threshold,
            zero_count: value(self.zero),
            count: value(self.count),
            sum: value(self.sum),
            positive_spans,
            negative_spans,
            positive_buckets,
            negative_buckets,
            custom_bounds: self.custom_bounds,
        }
    }

    /// All cells.
    pub(super) fn cells(&self) -> impl Iterator<Item = C> + '_ {
        let buckets = self.positive.iter().chain(&self.negative).map(|(_, c)| *c);
        [self.zero, self.count, self.sum].into_iter().chain(buckets)
    }

    /// Changes all cells.
    pub(super) fn map(&mut self, f: impl Fn(C) -> C) {
        for cell in [&mut self.zero, &mut self.count, &mut self.sum] {
            *cell = f(*cell);
        }
        for (_, cell) in self.positive.iter_mut().chain(&mut self.negative) {
            *cell = f(*cell);
        }
    }

    /// Adds another histogram; zero buckets, resolutions and custom bounds are reconciled to what both can be had in.
    pub(super) fn add(&mut self, mut other: Self) -> Result<Reconciled, Incompatible> {
        if self.custom() != other.custom() {
            return Err(Incompatible);
        }
        let reset_collision = self.unite_hints(other.hint);
        self.count = self.count.plus(other.count);
        self.sum = self.sum.plus(other.sum);
        if self.custom() {
            let bounds = self.custom_bounds != other.custom_bounds;
            if bounds {
                self.add_reconciled(&other);
            } else {
                self.positive = united(&self.positive, &other.positive);
            }
            return Ok(Reconciled {
                reset_collision,
                bounds,
            });
        }
        self.reconcile_zero(&mut other);
        self.zero = self.zero.plus(other.zero);
        let schema = self.schema.min(other.schema);
        self.reduce_to(schema);
        other.reduce_to(schema);
        self.positive = united(
            &self.positive,
            &beyond(other.positive, schema, self.zero_threshold),
        );
        self.negative = united(
            &self.negative,
            &beyond(other.negative, schema, self.zero_threshold),
        );
        Ok(Reconciled {
            reset_collision,
            bounds: false,
        })
    }

    /// What the sum says about resets; tells whether the two contradict each other.
    fn unite_hints(&mut self, other: ResetHint) -> bool {
        use ResetHint::{Gauge, NotReset, Reset, Unknown};
        let collision = matches!((self.hint, other), (Reset, NotReset) | (NotReset, Reset));
        self.hint = match (self.hint, other) {
            (a, b) if a == b => a,
            (Gauge, _) | (_, Gauge) => Gauge,
            _ => Unknown,
        };
        collision
    }

    /// Merges buckets until the resolution is that of a lower schema.
    pub(super) fn reduce_to(&mut self, schema: i32) {
        if schema < self.schema {
            self.positive = coarser(&self.positive, self.schema, schema);
            self.negative = coarser(&self.negative, self.schema, schema);
            self.schema = schema;
        }
    }

    /// Widens zero buckets until both are equally wide and cut no populated bucket.
    fn reconcile_zero(&mut self, other: &mut Self) {
        while self.zero_threshold != other.zero_threshold {
            if self.zero_threshold > other.zero_threshold {
                other.widen_zero(self.zero_threshold);
            } else if other.zero_threshold > self.zero_threshold {
                self.widen_zero(other.zero_threshold);
            } else {
                // NaN is as wide as nothing.
                return;
            }
        }
    }

    /// Moves all buckets that begin within `threshold` into the zero bucket. Where that cuts a populated bucket, the
    /// zero bucket grows to its end.
    pub(super) fn widen_zero(&mut self, mut threshold: f64) {
        let schema = self.schema;
        let end = |i: i32| exponential_bound(i, schema);
        let begin = |i: i32| exponential_bound(i.wrapping_sub(1), schema);
        // Each round swallows at least one more bucket.
        loop {
            let sides = self.positive.iter().chain(&self.negative);
            let cut = sides.filter(|(i, c)| begin(*i) < threshold && end(*i) > threshold && !c.is_zero());
            let Some(wider) = cut.map(|(i, _)| end(*i)).reduce(f64::max) else {
                break;
            };
            threshold = wider;
        }
        for side in [&mut self.positive, &mut self.negative] {
            for &(_, cell) in side.iter().filter(|(i, _)| begin(*i) < threshold) {
                self.zero = self.zero.plus(cell);
            }
            side.retain(|(i, _)| begin(*i) >= threshold);
        }
        self.zero_threshold = threshold;
    }

    /// Adds buckets with other custom bounds: both are mapped to the bounds they share.
    fn add_reconciled(&mut self, other: &Self) {
        let shared: Vec<f64> = self
            .custom_bounds
            .iter()
            .copied()
            .filter(|b| other.custom_bounds.contains(b))
            .collect();
        let mut mapped: Vec<C> = vec![C::default(); shared.len() + 1];
        for part in [&*self, other] {
            for &(index, cell) in &part.positive {
                let bound = usize::try_from(index)
                    .ok()
                    .and_then(|i| part.custom_bounds.get(i));
                let at = bound.map_or(shared.len(), |bound| shared.partition_point(|b| b < bound));
                if let Some(slot) = mapped.get_mut(at) {
                    *slot = slot.plus(cell);
                }
            }
        }
        let numbered = (0..).zip(mapped);
        self.positive = numbered.filter(|(_, cell)| !cell.is_zero()).collect();
        self.custom_bounds = shared;
    }
}

/// Two sides in one.
fn united<C: Cell>(a: &Side<C>, b: &Side<C>) -> Side<C> {
    let mut out = Vec::with_capacity(a.len().max(b.len()));
    let (mut a, mut b) = (a.iter().copied().peekable(), b.iter().copied().peekable());
    loop {
        match (a.peek(), b.peek()) {
            (Some(&(i, x)), Some(&(j, y))) if i == j => {
                out.push((i, x.plus(y)));
                a.next();
                b.next();
            }
            (Some(&(i, _)), Some(&(j, _))) if i > j => out.extend(b.next()),
            (Some(_), _) => out.extend(a.next()),
            (None, Some(_)) => out.extend(b.next()),
            (None, None) => return out,
        }
    }
}

/// The side without the buckets that end within the zero bucket.
fn beyond<C: Cell>(side: Side<C>, schema: i32, zero_threshold: f64) -> Side<C> {
    side.into_iter()
        .skip_while(|&(index, _)| exponential_bound(index, schema) <= zero_threshold)
        .collect()
}

/// The side at a lower resolution.
pub(super) fn coarser<C: Cell>(side: &Side<C>, from: i32, to: i32) -> Side<C> {
    let shift = from.saturating_sub(to).clamp(0, 31);
    let mut out: Side<C> = Vec::with_capacity(side.len());
    for &(index, cell) in side {
        // Wider, as there is an index before the lowest; what comes of it is no further from 0 than `index`.
        let index = (((i64::from(index) - 1) >> shift) + 1) as i32;
        match out.last_mut() {
            Some((last, sum)) if *last == index => *sum = sum.plus(cell),
            _ => out.push((index, cell)),
        }
    }
    out
}

/// Adds `other` to `h`.
///
/// # Errors
/// [`Incompatible`] for exponential and custom buckets.
pub fn add(h: &mut Histogram, other: &Histogram) -> Result<Reconciled, Incompatible> {
    let mut parts = Parts::<f64>::of(h);
    let reconciled = parts.add(Parts::of(other))?;
    *h = parts.histogram(|c| c);
    Ok(reconciled)
}

/// Subtracts `other` from `h`.
///
/// # Errors
/// [`Incompatible`] for exponential and custom buckets.
pub fn sub(h: &mut Histogram, other: &Histogram) -> Result<Reconciled, Incompatible> {
    let mut parts = Parts::<f64>::of(h);
    let mut negated = Parts::of(other);
    negated.map(|c: f64| -c);
    let reconciled = parts.add(negated)?;
    *h = parts.histogram(|c| c);
    Ok(reconciled)
}

fn counts(h: &mut Histogram) -> impl Iterator<Item = &mut f64> {
    [&mut h.zero_count, &mut h.count, &mut h.sum]
        .into_iter()
        .chain(&mut h.positive_buckets)
        .chain(&mut h.negative_buckets)
}

/// Multiplies all counts and the sum. What is negative is a gauge.
pub fn scale(h: &mut Histogram, factor: f64) {
    counts(h).for_each(|c| *c *= factor);
    if factor < 0.0 {
        h.reset_hint = ResetHint::Gauge;
    }
}

/// Divides all counts and the sum. Division by zero leaves no buckets.
pub fn divide(h: &mut Histogram, divisor: f64) {
    counts(h).for_each(|c| *c /= divisor);
    if divisor == 0.0 {
        h.positive_spans.clear();
        h.positive_buckets.clear();
        h.negative_spans.clear();
        h.negative_buckets.clear();
    } else if divisor < 0.0 {
        h.reset_hint = ResetHint::Gauge;
    }
}

/// A copy at a lower resolution; it says nothing about resets unless the resolution is the same.
pub(crate) fn reduced(h: &Histogram, schema: i32) -> Histogram {
    if schema >= h.schema || uses_custom_buckets(h) {
        return h.clone();
    }
    let mut parts = Parts::<f64>::of(h);
    parts.reduce_to(schema);
    parts.hint = ResetHint::Unknown;
    parts.histogram(|c| c)
}

/// Whether two histograms hold the same data, bit for bit, however their spans are cut.
pub(crate) fn equal(a: &Histogram, b: &Histogram) -> bool {
    let same = |a: f64, b: f64| a.to_bits() == b.to_bits();
    let sides = |a: Side<f64>, b: Side<f64>| {
        a.len() == b.len() && a.iter().zip(&b).all(|((i, x), (j, y))| i == j && same(*x, *y))
    };
    a.schema == b.schema
        && same(a.count, b.count)
        && same(a.sum, b.sum)
        && (!uses_custom_buckets(a) || a.custom_bounds == b.custom_bounds)
        && a.zero_threshold == b.zero_threshold
        && same(a.zero_count, b.zero_count)
        && sides(
            read(&a.positive_spans, &a.positive_buckets),
            read(&b.positive_spans, &b.positive_buckets),
        )
        && sides(
            read(&a.negative_spans, &a.negative_buckets),
            read(&b.negative_spans, &b.negative_buckets),
        )
}

#[cfg(test)]
mod tests {
    use koios_model::Span;

    use super::*;

    fn exponential(schema: i32, first: i32, buckets: &[f64]) -> Histogram {
        Histogram {
            schema,
            count: buckets.iter().sum(),
            sum: 1.0,
            positive_spans: vec![Span {
                offset: first,
                length: buckets.len() as u32,
            }],
            positive_buckets: buckets.to_vec(),
            ..Histogram::default()
        }
    }

    #[test]
    fn sums_have_the_lower_resolution() {
        let mut a = exponential(1, 1, &[1.0, 2.0, 3.0, 4.0]);
        add(&mut a, &exponential(0, 1, &[10.0])).unwrap();
        assert_eq!(
            (a.schema, a.positive_buckets.as_slice(), a.count),
            (0, &[13.0, 7.0][..], 20.0)
        );
    }

    #[test]
    fn i12_buckets_ascend_at_a_lower_resolution_from_the_lowest_index_on() {
        let side = vec![(i32::MIN, 1.0), (i32::MIN + 1, 2.0), (0, 4.0), (i32::MAX, 8.0)];
        for shift in 0..40 {
            let coarse = coarser(&side, 8, 8 - shift);
            assert!(coarse.is_sorted_by(|a, b| a.0 < b.0), "{shift}: {coarse:?}");
            assert_eq!(coarse.iter().map(|b| b.1).sum::<f64>(), 15.0);
        }
        let mut finer = exponential(1, i32::MIN, &[3.0]);
        finer.positive_spans.push(Span {
            offset: i32::MAX,
            length: 1,
        });
        finer.positive_buckets.push(5.0);
        add(&mut finer, &exponential(0, 0, &[7.0])).unwrap();
        let sum: Vec<_> = finer.positive().collect();
        assert_eq!(sum, [(i32::MIN / 2, 3.0), (0, 12.0)]);
    }

    #[test]
    fn zero_buckets_grow_to_the_end_of_populated_buckets() {
        let mut a = exponential(0, 0, &[1.0, 2.0, 4.0]);
        let b = Histogram {
            zero_threshold: 1.5,
            zero_count: 8.0,
            count: 8.0,
            ..Histogram::default()
        };
        add(&mut a, &b).unwrap();
        assert_eq!((a.zero_threshold, a.zero_count), (2.0, 11.0));
        assert_eq!(a.positive_buckets, [4.0]);
    }

    #[test]
    fn differing_custom_bounds_are_reduced_to_the_shared_ones() {
        let custom = |bounds: &[f64], buckets: &[f64]| Histogram {
            custom_bounds: bounds.to_vec(),
            ..exponential(CUSTOM_SCHEMA, 0, buckets)
        };
        let mut a = custom(&[1.0, 2.0, 4.0], &[1.0, 1.0, 1.0, 1.0]);
        let r = add(&mut a, &custom(&[1.0, 3.0, 4.0], &[2.0, 2.0, 2.0, 2.0])).unwrap();
        assert!(r.bounds);
        assert_eq!(
            (a.custom_bounds.as_slice(), a.positive_buckets.as_slice()),
            (&[1.0, 4.0][..], &[3.0, 6.0, 3.0][..])
        );
        assert_eq!(add(&mut a, &exponential(0, 0, &[1.0])), Err(Incompatible));
    }

    #[test]
    fn contradicting_hints_are_told() {
        let mut a = Histogram {
            reset_hint: ResetHint::Reset,
            ..exponential(0, 0, &[1.0])
        };
        let b = Histogram {
            reset_hint: ResetHint::NotReset,
            ..exponential(0, 0, &[1.0])
        };
        assert!(sub(&mut a, &b).unwrap().reset_collision);
        assert_eq!((a.reset_hint, a.count), (ResetHint::Unknown, 0.0));
    }

    #[test]
    fn the_cut_of_spans_does_not_matter_for_equality() {
        let a = exponential(0, 0, &[1.0, 2.0]);
        let mut b = a.clone();
        b.positive_spans = vec![Span { offset: 0, length: 1 }, Span { offset: 0, length: 1 }];
        assert!(equal(&a, &b));
    }
}
