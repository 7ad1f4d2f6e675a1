//! Native histograms, in the float form that queries work on.

use std::cmp::Ordering;
use std::mem::size_of_val;

use crate::{STALE_NAN_BITS, is_stale};

/// The schema whose bounds are listed.
pub const CUSTOM_BOUNDS_SCHEMA: i32 = -53;

/// Most entries that a list of a histogram may have where it is kept: buckets or spans of one side, or bounds. It bounds the memory of
/// who reads it.
pub const HISTOGRAM_LIST_MAX: usize = 1 << 16;

/// What is known about a counter reset between a histogram and the one before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum ResetHint {
    /// Nothing is known: compare.
    #[default]
    Unknown,
    /// A reset happened.
    Reset,
    /// No reset happened.
    NotReset,
    /// A gauge histogram: resets have no meaning.
    Gauge,
}

/// A run of consecutive buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Span {
    /// Gap to the end of the previous span; for the first span the index it starts at.
    pub offset: i32,
    /// How many buckets.
    pub length: u32,
}

/// A native histogram with float counts and absolute (not delta) bucket counts.
///
/// Schemas -4 to 8 are exponential; -53 has custom bounds in `custom_bounds` and only positive buckets.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Histogram {
    /// The reset hint.
    pub reset_hint: ResetHint,
    /// The resolution.
    pub schema: i32,
    /// Width of the zero bucket.
    pub zero_threshold: f64,
    /// Observations in the zero bucket.
    pub zero_count: f64,
    /// All observations.
    pub count: f64,
    /// Sum of all observations.
    pub sum: f64,
    /// Spans of the positive buckets.
    pub positive_spans: Vec<Span>,
    /// Spans of the negative buckets.
    pub negative_spans: Vec<Span>,
    /// Counts of the positive buckets, as many as the spans' lengths add up to.
    pub positive_buckets: Vec<f64>,
    /// Counts of the negative buckets.
    pub negative_buckets: Vec<f64>,
    /// Upper bounds for schema -53, strictly ascending, `+Inf` left out.
    pub custom_bounds: Vec<f64>,
}

impl Histogram {
    /// The stale marker of a series of histograms.
    pub fn stale() -> Self {
        Self {
            sum: f64::from_bits(STALE_NAN_BITS),
            ..Self::default()
        }
    }

    /// Whether it is a stale marker.
    pub fn is_stale(&self) -> bool {
        is_stale(self.sum)
    }

    /// Whether it can be read again where it is kept: the buckets of each side ascend, no list has more entries than
    /// [`HISTOGRAM_LIST_MAX`], and the schema is one byte.
    pub fn can_be_kept(&self) -> bool {
        let lists = [
            self.positive_spans.len(),
            self.negative_spans.len(),
            self.positive_buckets.len(),
            self.negative_buckets.len(),
            self.custom_bounds.len(),
        ];
        lists.iter().all(|entries| *entries <= HISTOGRAM_LIST_MAX)
            && i8::try_from(self.schema).is_ok()
            && self.positive().is_sorted_by(|a, b| a.0 < b.0)
            && self.negative().is_sorted_by(|a, b| a.0 < b.0)
    }

    /// Brings it to the one form it is kept in: no empty buckets, no spans that touch, and of resets only what is true beside
    /// any histogram. That there was one stays: the counts need not tell. That there was none would only be true beside the
    /// very histogram the sender saw before it; readers compare.
    ///
    /// What is left of the hint is a part of the histogram: of two at one time that differ in nothing else, the one that tells
    /// of a reset wins.
    ///
    /// **Source**: Prometheus `tsdb/chunkenc` `appendable`, which honours a reset that is told.
    pub fn make_canonical(&mut self) {
        self.compact();
        if self.reset_hint == ResetHint::NotReset {
            self.reset_hint = ResetHint::Unknown;
        }
    }

    /// Removes empty buckets.
    pub fn compact(&mut self) {
        compact_side(&mut self.positive_spans, &mut self.positive_buckets);
        compact_side(&mut self.negative_spans, &mut self.negative_buckets);
    }

    /// The positive buckets that the spans speak of: index and count, ascending.
    pub fn positive(&self) -> impl Iterator<Item = (i32, f64)> + '_ {
        indexed(&self.positive_spans, &self.positive_buckets)
    }

    /// The negative buckets, by the index of their absolute value, ascending.
    pub fn negative(&self) -> impl Iterator<Item = (i32, f64)> + '_ {
        indexed(&self.negative_spans, &self.negative_buckets)
    }

    /// Whether two histograms have the same buckets, whatever is in them.
    pub fn same_layout(&self, other: &Self) -> bool {
        self.schema == other.schema
            && self.zero_threshold.to_bits() == other.zero_threshold.to_bits()
            && self.positive_spans == other.positive_spans
            && self.negative_spans == other.negative_spans
            && bits_cmp(&self.custom_bounds, &other.custom_bounds).is_eq()
    }

    /// Whether it can follow another in one run without a reset: the same buckets or more, and no count fell.
    ///
    /// **Source**: Prometheus `tsdb/chunkenc` `appendable`.
    pub fn continues(&self, before: &Self) -> bool {
        self.reset_hint != ResetHint::Reset
            && self.count >= before.count
            && self.schema == before.schema
            && self.zero_threshold == before.zero_threshold
            && self.custom_bounds == before.custom_bounds
            && self.zero_count >= before.zero_count
            && grows(before.positive(), self.positive())
            && grows(before.negative(), self.negative())
    }

    /// A total order by all bits: equal only when everything is the same.
    pub fn bits_cmp(&self, other: &Self) -> Ordering {
        let numbers = |h: &Self| [h.sum, h.count, h.zero_count, h.zero_threshold].map(f64::to_bits);
        let spans =
            |spans: &[Span]| -> Vec<(i32, u32)> { spans.iter().map(|s| (s.offset, s.length)).collect() };
        numbers(self)
            .cmp(&numbers(other))
            .then_with(|| (self.schema, self.reset_hint as u8).cmp(&(other.schema, other.reset_hint as u8)))
            .then_with(|| bits_cmp(&self.positive_buckets, &other.positive_buckets))
            .then_with(|| bits_cmp(&self.negative_buckets, &other.negative_buckets))
            .then_with(|| spans(&self.positive_spans).cmp(&spans(&other.positive_spans)))
            .then_with(|| spans(&self.negative_spans).cmp(&spans(&other.negative_spans)))
            .then_with(|| bits_cmp(&self.custom_bounds, &other.custom_bounds))
    }

    /// What it occupies on the heap.
    pub fn heap_bytes(&self) -> usize {
        let spans = size_of_val(self.positive_spans.as_slice()) + size_of_val(self.negative_spans.as_slice());
        let buckets = self.positive_buckets.len() + self.negative_buckets.len() + self.custom_bounds.len();
        spans + buckets * size_of::<f64>()
    }
}

/// Whether every bucket that is not empty is there later, too, and has not fewer observations.
fn grows(before: impl Iterator<Item = (i32, f64)>, mut after: impl Iterator<Item = (i32, f64)>) -> bool {
    let mut filled = before.filter(|(_, count)| *count != 0.0);
    filled.all(|(index, count)| {
        let same = after.find(|(later, _)| *later >= index);
        same.is_some_and(|(later, more)| later == index && more >= count)
    })
}

fn bits_cmp(a: &[f64], b: &[f64]) -> Ordering {
    let bits = |v: &f64| v.to_bits();
    a.iter().map(bits).cmp(b.iter().map(bits))
}

fn indexed<'a>(spans: &'a [Span], buckets: &'a [f64]) -> impl Iterator<Item = (i32, f64)> + 'a {
    let mut next = 0i32;
    let indices = spans.iter().flat_map(move |span| {
        let first = next.wrapping_add(span.offset);
        next = first.wrapping_add(span.length.cast_signed());
        (0..span.length).map(move |i| first.wrapping_add(i.cast_signed()))
    });
    indices.zip(buckets.iter().copied())
}

/// Turns buckets, ascending in index, into spans and counts.
pub fn spans_of(buckets: impl IntoIterator<Item = (i32, f64)>) -> (Vec<Span>, Vec<f64>) {
    let (mut spans, mut counts): (Vec<Span>, Vec<f64>) = (Vec::new(), Vec::new());
    let mut next = 0i32;
    for (index, count) in buckets {
        match spans.last_mut() {
            Some(span) if index == next => span.length += 1,
            _ => spans.push(Span {
                offset: index.wrapping_sub(next),
                length: 1,
            }),
        }
        counts.push(count);
        next = index.wrapping_add(1);
    }
    (spans, counts)
}

fn compact_side(spans: &mut Vec<Span>, buckets: &mut Vec<f64>) {
    let touching = spans.iter().skip(1).any(|span| span.offset == 0);
    let empty = spans.iter().any(|span| span.length == 0);
    if touching || empty || buckets.contains(&0.0) {
        let filled: Vec<_> = indexed(spans, buckets)
            .filter(|(_, count)| *count != 0.0)
            .collect();
        (*spans, *buckets) = spans_of(filled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(spans: &[(i32, u32)], buckets: &[f64]) -> Histogram {
        Histogram {
            positive_spans: spans
                .iter()
                .map(|&(offset, length)| Span { offset, length })
                .collect(),
            positive_buckets: buckets.to_vec(),
            ..Histogram::default()
        }
    }

    #[test]
    fn one_form_of_equal_histograms() {
        let mut a = histogram(&[(-3, 2), (0, 2), (2, 1), (5, 0)], &[1.0, 0.0, 2.0, 3.0, 0.0]);
        let mut b = histogram(&[(-3, 1), (1, 2)], &[1.0, 2.0, 3.0]);
        b.reset_hint = ResetHint::NotReset;
        a.make_canonical();
        b.make_canonical();
        assert_eq!(a, b);
        assert!(a.bits_cmp(&b).is_eq() && a.same_layout(&b));
        assert_eq!(a.positive().collect::<Vec<_>>(), [(-3, 1.0), (-1, 2.0), (0, 3.0)]);
    }

    #[test]
    fn only_what_is_true_beside_any_histogram_is_kept_of_resets() {
        for (sent, kept) in [
            (ResetHint::Unknown, ResetHint::Unknown),
            (ResetHint::Reset, ResetHint::Reset),
            (ResetHint::NotReset, ResetHint::Unknown),
            (ResetHint::Gauge, ResetHint::Gauge),
        ] {
            let mut h = histogram(&[(0, 1)], &[1.0]);
            h.reset_hint = sent;
            h.make_canonical();
            assert_eq!(h.reset_hint, kept, "{sent:?}");
        }
    }

    #[test]
    fn i12_what_readers_refuse_cannot_be_kept() {
        let lowest_and_highest = histogram(&[(i32::MIN, 1), (i32::MAX, 1), (i32::MAX - 1, 1)], &[1.0; 3]);
        assert!(lowest_and_highest.can_be_kept() && Histogram::stale().can_be_kept());
        for (spans, buckets) in [
            (&[(5, 1), (-2, 1)][..], 2),
            (&[(i32::MAX, 2)], 2),
            (&[(0, 1 << 17)], (1 << 16) + 1),
        ] {
            let mut h = histogram(spans, &vec![1.0; buckets]);
            assert!(!h.can_be_kept(), "{spans:?}");
            (h.negative_spans, h.negative_buckets) = (h.positive_spans, h.positive_buckets);
            (h.positive_spans, h.positive_buckets) = (Vec::new(), Vec::new());
            assert!(!h.can_be_kept(), "negative {spans:?}");
        }
        assert!(histogram(&[(0, 1 << 16)], &vec![1.0; 1 << 16]).can_be_kept());
    }

    #[test]
    fn a_run_goes_on_while_no_bucket_falls_or_goes() {
        let before = histogram(&[(0, 3)], &[1.0, 0.0, 2.0]);
        for (spans, buckets, goes_on) in [
            (&[(0, 3)][..], &[1.0, 0.0, 2.0][..], true),
            (&[(-1, 5)], &[1.0, 1.0, 1.0, 2.0, 4.0], true),
            (&[(0, 1), (1, 1)], &[1.0, 2.0], true),
            (&[(0, 3)], &[1.0, 5.0, 1.0], false),
            (&[(0, 2)], &[1.0, 5.0], false),
            (&[(1, 2)], &[1.0, 2.0], false),
        ] {
            assert_eq!(histogram(spans, buckets).continues(&before), goes_on, "{spans:?}");
        }
    }
}
