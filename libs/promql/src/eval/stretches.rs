//! Sums of large windows, which are made of partial sums over fixed stretches of time: so they depend on the window's
//! samples alone, and not on where the query begins. Where windows overlap, these partial sums are made once.

use super::window::{Samples, cut};
use crate::kahan::Kahan;

/// From how many samples on a window is summed up by stretches of time.
const LARGE: usize = 1_024;
/// How many stretches a range is cut into.
const STRETCHES: i64 = 64;

/// The sums of all floats of a series by stretches of time.
#[derive(Debug)]
pub(crate) struct Stretches(Vec<Stretch>);

/// A stretch of time: the number behind its last float, and the sum of its floats.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    end: usize,
    sum: Kahan,
}

/// How long the stretches of a range are.
fn stretch_ms(range_ms: i64) -> i64 {
    (range_ms / STRETCHES).max(1)
}

/// Whether so many samples may be in one window that it is summed up by stretches of time.
pub(super) fn has_large_window(t: &[i64], range_ms: i64) -> bool {
    let ends = t.iter().skip(LARGE - 1);
    t.iter()
        .zip(ends)
        .any(|(first, last)| last.saturating_sub(*first) < range_ms)
}

fn sum_of(values: &[f64]) -> Kahan {
    values.iter().fold(Kahan::default(), |sum, &v| sum.plus(v))
}

/// Cuts times at the borders of stretches, which are multiples of their length; gives the number behind each stretch.
fn borders(t: &[i64], width: i64) -> impl Iterator<Item = usize> + '_ {
    let mut from = 0;
    std::iter::from_fn(move || {
        let stretch = t.get(from)?.div_euclid(width);
        from += cut(t, from, t.len()).partition_point(|t| t.div_euclid(width) == stretch);
        Some(from)
    })
}

impl Stretches {
    /// Of a whole series, if any window of the range is large.
    pub(super) fn of(t: &[i64], v: &[f64], range_ms: i64) -> Option<Self> {
        if !has_large_window(t, range_ms) {
            return None;
        }
        let mut from = 0;
        let stretches = borders(t, stretch_ms(range_ms)).map(|end| {
            let sum = sum_of(cut(v, from, end));
            from = end;
            Stretch { end, sum }
        });
        Some(Self(stretches.collect()))
    }

    /// What they occupy in memory.
    pub(super) fn bytes(&self) -> usize {
        self.0.capacity() * size_of::<Stretch>()
    }
}

impl Samples<'_> {
    /// The compensated sum of all floats: one by one in a small window, by stretches of time in a large one. The same with
    /// and without the stretches of the series at hand.
    pub(crate) fn sum(&self, range_ms: i64) -> Kahan {
        if self.v.len() < LARGE {
            return sum_of(self.v);
        }
        if let Some(Stretches(stretches)) = self.stretches {
            return self.sum_of_stretches(stretches);
        }
        let (mut from, mut sum) = (0, Kahan::default());
        for end in borders(self.t, stretch_ms(range_ms)) {
            sum = sum.merge(sum_of(cut(self.v, from, end)));
            from = end;
        }
        sum
    }

    /// The same with the sums of whole stretches at hand; those at the window's edges may be cut.
    fn sum_of_stretches(&self, stretches: &[Stretch]) -> Kahan {
        let end = self.first.saturating_add(self.v.len());
        let (mut from, mut sum) = (self.first, Kahan::default());
        let at = stretches.partition_point(|s| s.end <= from);
        let mut whole = at
            .checked_sub(1)
            .and_then(|i| stretches.get(i))
            .map_or(0, |s| s.end)
            == from;
        for stretch in cut(stretches, at, stretches.len()) {
            let until = stretch.end.min(end);
            let part = if whole && until == stretch.end {
                stretch.sum
            } else {
                sum_of(cut(self.v, from - self.first, until - self.first))
            };
            sum = sum.merge(part);
            (from, whole) = (until, true);
            if from == end {
                break;
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_windows_sum_up_the_same_with_and_without_stretches_wherever_the_series_begins() {
        let t: Vec<i64> = (0..6_000).map(|i| i * 15_000 + i % 7).collect();
        let v: Vec<f64> = (0..6_000)
            .map(|i| f64::from(i * 7_919 % 1_009) * 1e-3 + 1e9)
            .collect();
        let range_ms = 2_000 * 15_000;
        let all = Samples {
            t: &t,
            v: &v,
            ..Samples::default()
        };
        for begin in [0, 1, 777] {
            let later = all.slice(begin, t.len(), 0, 0);
            let later = Samples { first: 0, ..later };
            let stretches = Stretches::of(later.t, later.v, range_ms).unwrap();
            for (lo, hi) in [(1_000, 3_000), (1_001, 2_700), (2_047, 4_096), (3_999, 6_000)] {
                let window = later.slice(lo - begin, hi - begin, 0, 0);
                let bits = |k: Kahan| (k.sum.to_bits(), k.lost.to_bits());
                let with = Samples {
                    stretches: Some(&stretches),
                    ..window
                };
                let plain = all.slice(lo, hi, 0, 0).sum(range_ms);
                assert_eq!(bits(with.sum(range_ms)), bits(plain), "{begin}: {lo}..{hi}");
                let one_by_one = sum_of(&v[lo..hi]).total();
                assert!((plain.total() - one_by_one).abs() <= one_by_one.abs() * f64::EPSILON);
            }
        }
    }
}
