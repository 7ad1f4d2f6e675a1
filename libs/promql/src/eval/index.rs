//! What is known of whole series, for windows that overlap.
//!
//! An index only ever saves work: the value of a window is the same, bit for bit, with and without it. Sums of large
//! windows are made of partial sums over fixed stretches of time, whether these are at hand or not, so that they depend on
//! the window's samples alone and not on where the query begins.

use super::window::{Samples, cut};
use crate::kahan::Kahan;

/// How many samples a block of an [`Index`] has.
const BLOCK: usize = 32;

/// What is worth knowing of all floats of a series before windows of them are looked at, as these overlap.
#[derive(Debug)]
pub(crate) enum Index {
    /// The numbers of the floats that are less than the one before.
    Drops(Vec<usize>),
    /// The extreme of each block of floats.
    Extremes(Vec<f64>),
    /// The sums of stretches of time.
    Sums(Vec<Stretch>),
    /// Of integers: the sum of all floats before each, and of all.
    Integers(Vec<i64>),
}

/// The value that wins over all before it; NaN loses against everything.
pub(crate) fn extreme_of(values: impl IntoIterator<Item = f64>, wins: fn(f64, f64) -> bool) -> Option<f64> {
    let mut values = values.into_iter();
    let first = values.next()?;
    Some(values.fold(
        first,
        |best, v| if best.is_nan() || wins(v, best) { v } else { best },
    ))
}

/// How many floats are looked through for a fall at a time.
const FALLS_BLOCK: usize = 64;

/// The numbers of the floats that are less than the one before.
pub(crate) fn falls(v: &[f64]) -> Vec<usize> {
    let mut falls = Vec::new();
    for from in (0..v.len().saturating_sub(1)).step_by(FALLS_BLOCK) {
        let to = from.saturating_add(FALLS_BLOCK).min(v.len() - 1);
        let pairs = || cut(v, from, to).iter().zip(cut(v, from + 1, to + 1));
        // Falls are rare: most blocks are passed without a branch per float.
        if pairs().fold(false, |any, (before, after)| any | (after < before)) {
            let fell = |(i, (before, after)): (usize, (&f64, &f64))| (after < before).then_some(from + i + 1);
            falls.extend(pairs().enumerate().filter_map(fell));
        }
    }
    falls
}

impl Index {
    pub(crate) fn drops(v: &[f64]) -> Self {
        Self::Drops(falls(v))
    }

    pub(crate) fn extremes(v: &[f64], wins: fn(f64, f64) -> bool) -> Self {
        let blocks = v
            .chunks(BLOCK)
            .filter_map(|block| extreme_of(block.iter().copied(), wins));
        Self::Extremes(blocks.collect())
    }
}

/// From how many samples on a window is summed up by stretches of time.
const LARGE: usize = 1_024;
/// How many stretches a range is cut into.
const STRETCHES: i64 = 64;

/// A stretch of time: the number behind its last float, and the sum of its floats.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretch {
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

/// From this magnitude on a float may stand for several integers.
const EXACT_BELOW: f64 = 9_007_199_254_740_992.0;

/// The sums of all values before each, and of all, if adding them up in any order is exact: then no compensated sum has
/// anything to compensate, and the difference of two of these is the sum of a window, to the bit.
pub(super) fn integer_sums(v: &[f64]) -> Option<Vec<i64>> {
    let mut sums = Vec::with_capacity(v.len() + 1);
    let (mut sum, mut magnitude) = (0i64, 0.0);
    sums.push(sum);
    for &v in v {
        magnitude += v.abs();
        // Not so for NaN either.
        let exact = magnitude < EXACT_BELOW && v.trunc() == v && v.to_bits() != (-0.0f64).to_bits();
        if !exact {
            return None;
        }
        sum += v as i64;
        sums.push(sum);
    }
    Some(sums)
}

impl Index {
    pub(crate) fn sums(t: &[i64], v: &[f64], range_ms: i64) -> Option<Self> {
        if let Some(sums) = integer_sums(v) {
            return Some(Self::Integers(sums));
        }
        if !has_large_window(t, range_ms) {
            return None;
        }
        let mut from = 0;
        let stretches = borders(t, stretch_ms(range_ms)).map(|end| {
            let sum = sum_of(cut(v, from, end));
            from = end;
            Stretch { end, sum }
        });
        Some(Self::Sums(stretches.collect()))
    }
}

impl<'a> Samples<'a> {
    /// The floats before which the value fell, as numbers within the window, if that is known of the series.
    pub(crate) fn drops(&self) -> Option<impl Iterator<Item = usize> + 'a> {
        let Some(Index::Drops(all)) = self.index else {
            return None;
        };
        let (first, end) = (self.first, self.first.saturating_add(self.v.len()));
        // A fall right at the start of the window happened before it.
        let (lo, hi) = (
            all.partition_point(|&i| i <= first),
            all.partition_point(|&i| i < end),
        );
        Some(cut(all, lo, hi).iter().map(move |&i| i - first))
    }

    /// The float that wins over all others.
    pub(crate) fn extreme(&self, wins: fn(f64, f64) -> bool) -> Option<f64> {
        let whole = || extreme_of(self.v.iter().copied(), wins);
        let Some(Index::Extremes(blocks)) = self.index else {
            return whole();
        };
        let end = self.first.saturating_add(self.v.len());
        let (from, to) = (self.first.div_ceil(BLOCK), end / BLOCK);
        if from >= to {
            return whole();
        }
        let head = cut(self.v, 0, from * BLOCK - self.first);
        let tail = cut(self.v, to * BLOCK - self.first, self.v.len());
        extreme_of(
            head.iter().chain(cut(blocks, from, to)).chain(tail).copied(),
            wins,
        )
    }

    /// The compensated sum of all floats: one by one in a small window, by stretches of time in a large one.
    pub(crate) fn sum(&self, range_ms: i64) -> Kahan {
        if let Some(Index::Integers(sums)) = self.index
            && let (Some(before), Some(all)) = (
                sums.get(self.first),
                sums.get(self.first.saturating_add(self.v.len())),
            )
        {
            return Kahan::new((all - before) as f64);
        }
        if self.v.len() < LARGE {
            return sum_of(self.v);
        }
        match self.index {
            Some(Index::Sums(stretches)) => self.sum_of_stretches(stretches),
            _ => {
                let (mut from, mut sum) = (0, Kahan::default());
                for end in borders(self.t, stretch_ms(range_ms)) {
                    sum = sum.merge(sum_of(cut(self.v, from, end)));
                    from = end;
                }
                sum
            }
        }
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
    fn windows_of_an_indexed_series_are_as_if_it_had_no_index() {
        let v: Vec<f64> = (0..200)
            .map(|i| {
                if i % 11 == 0 {
                    f64::NAN
                } else {
                    f64::from(i * 37 % 101)
                }
            })
            .collect();
        let t: Vec<i64> = (0..200).collect();
        let wins = |v: f64, best: f64| v > best;
        let (drops, extremes) = (Index::drops(&v), Index::extremes(&v, wins));
        for (lo, hi) in [
            (0, 200),
            (0, 1),
            (5, 70),
            (31, 64),
            (32, 64),
            (33, 63),
            (100, 199),
            (64, 96),
        ] {
            let plain = Samples {
                t: &t,
                v: &v,
                ..Samples::default()
            }
            .slice(lo, hi, 0, 0);
            let with = |index| Samples {
                index: Some(index),
                ..plain
            };
            let bits = |v: Option<f64>| v.map(f64::to_bits);
            assert_eq!(
                bits(with(&extremes).extreme(wins)),
                bits(plain.extreme(wins)),
                "{lo}..{hi}"
            );
            let fell: Vec<usize> = (1..plain.v.len())
                .filter(|&i| plain.v[i] < plain.v[i - 1])
                .collect();
            assert_eq!(
                with(&drops).drops().unwrap().collect::<Vec<_>>(),
                fell,
                "{lo}..{hi}"
            );
        }
    }

    #[test]
    fn windows_of_integers_sum_up_to_the_same_bits_at_once() {
        let t: Vec<i64> = (0..3_000).collect();
        type Shape = fn(i64) -> f64;
        let shapes: [(bool, Shape); 6] = [
            (true, |i| (i * 7_919 % 1_009) as f64 - 500.0),
            (true, |i| (i * 1_000_003) as f64),
            (true, |_| 0.0),
            (false, |i| if i == 77 { -0.0 } else { 1.0 }),
            (false, |i| if i == 77 { f64::NAN } else { 1.0 }),
            (false, |i| (1i64 << 44) as f64 + i as f64),
        ];
        for (exact, shape) in shapes {
            let v: Vec<f64> = t.iter().map(|&i| shape(i)).collect();
            let index = Index::sums(&t, &v, 2_000);
            assert_eq!(matches!(index, Some(Index::Integers(_))), exact);
            for (lo, hi) in [(0, 0), (0, 1), (3, 40), (100, 2_500), (0, 3_000)] {
                let plain = Samples {
                    t: &t,
                    v: &v,
                    ..Samples::default()
                }
                .slice(lo, hi, 0, 0);
                let with = Samples {
                    index: index.as_ref(),
                    ..plain
                };
                let bits = |k: Kahan| (k.sum.to_bits(), k.lost.to_bits());
                assert_eq!(bits(with.sum(2_000)), bits(plain.sum(2_000)), "{lo}..{hi}");
            }
        }
    }

    #[test]
    fn large_windows_sum_up_the_same_with_and_without_an_index_wherever_the_series_begins() {
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
            let index = Index::sums(later.t, later.v, range_ms).unwrap();
            for (lo, hi) in [(1_000, 3_000), (1_001, 2_700), (2_047, 4_096), (3_999, 6_000)] {
                let window = later.slice(lo - begin, hi - begin, 0, 0);
                let bits = |k: Kahan| (k.sum.to_bits(), k.lost.to_bits());
                let with = Samples {
                    index: Some(&index),
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
