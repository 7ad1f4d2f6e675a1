//! Sums and means over series, one slot per step, as columns: where all is finite they are folded without branches.

use super::is_absent;
use crate::kahan::{Kahan, Mean};

/// How many steps are looked at together: if there is anything out of the ordinary among them, each is folded by itself.
const BLOCK: usize = 16;

/// Compensated sums.
#[derive(Debug, Default)]
pub(super) struct Sums {
    /// Empty until there is a series; absent where none had a float. No sum ever yields the mark for absent.
    sum: Vec<f64>,
    lost: Vec<f64>,
    steps: usize,
}

impl Sums {
    /// None yet, for so many steps.
    pub(super) fn new(steps: usize) -> Self {
        Self {
            steps,
            ..Self::default()
        }
    }

    /// What they occupy in memory per step.
    pub(super) const STEP_BYTES: usize = 2 * size_of::<f64>();

    /// Adds the floats of a series at the steps from `at` on, of which those before were added.
    pub(super) fn push(&mut self, values: &[f64], at: usize) {
        if self.sum.len() <= at {
            let more = self.steps.saturating_sub(at);
            self.sum.reserve_exact(more);
            self.lost.reserve_exact(more);
            self.sum.extend_from_slice(values);
            self.lost.resize(self.sum.len(), 0.0);
            return;
        }
        let (sum, lost) = (behind(&mut self.sum, at), behind(&mut self.lost, at));
        let sums = sum.chunks_mut(BLOCK).zip(lost.chunks_mut(BLOCK));
        for ((sum, lost), values) in sums.zip(values.chunks(BLOCK)) {
            if sum.len() == values.len() && all_finite(sum, values) {
                for ((sum, lost), &v) in sum.iter_mut().zip(lost).zip(values) {
                    Kahan {
                        sum: *sum,
                        lost: *lost,
                    }
                    .plus(v)
                    .put(sum, lost);
                }
                continue;
            }
            for ((sum, lost), &v) in sum.iter_mut().zip(lost).zip(values) {
                if is_absent(*sum) {
                    *sum = v;
                } else if !is_absent(v) {
                    Kahan {
                        sum: *sum,
                        lost: *lost,
                    }
                    .plus(v)
                    .put(sum, lost);
                }
            }
        }
    }

    /// Writes the sums of those steps from `at` on that have one.
    pub(super) fn write(&self, out: &mut [f64], at: usize) {
        let sums = self.sum.iter().zip(&self.lost).skip(at);
        for (out, (&sum, &lost)) in out.iter_mut().zip(sums) {
            if !is_absent(sum) {
                *out = Kahan { sum, lost }.total();
            }
        }
    }
}

/// What there is from `at` on.
fn behind<T>(all: &mut [T], at: usize) -> &mut [T] {
    all.get_mut(at..).unwrap_or_default()
}

impl Kahan {
    #[inline]
    fn put(self, sum: &mut f64, lost: &mut f64) {
        (*sum, *lost) = (self.sum, self.lost);
    }
}

/// Whether all of some sums stay finite if numbers are added; then these and those are finite, too.
#[inline]
fn all_finite(sums: &[f64], values: &[f64]) -> bool {
    let both = sums.iter().zip(values);
    both.fold(true, |all, (sum, v)| all & (sum + v).is_finite())
}

/// Means.
#[derive(Debug, Default)]
pub(super) struct Means {
    /// Compensated sums, or means where these are kept instead. Empty until there is a series; absent where none had a
    /// float.
    sum: Vec<f64>,
    lost: Vec<f64>,
    /// How many floats are in them.
    count: Vec<f64>,
    /// Where means are kept instead of sums.
    incremental: Vec<bool>,
    steps: usize,
}

impl Means {
    /// None yet, for so many steps.
    pub(super) fn new(steps: usize) -> Self {
        Self {
            steps,
            ..Self::default()
        }
    }

    /// What they occupy in memory per step.
    pub(super) const STEP_BYTES: usize = 3 * size_of::<f64>() + size_of::<bool>();

    /// Takes in the floats of a series at the steps from `at` on, of which those before were taken in.
    pub(super) fn push(&mut self, values: &[f64], at: usize) {
        if self.sum.len() <= at {
            let more = self.steps.saturating_sub(at);
            self.sum.reserve_exact(more);
            self.lost.reserve_exact(more);
            self.count.reserve_exact(more);
            self.incremental.reserve_exact(more);
            self.sum.extend_from_slice(values);
            self.lost.resize(self.sum.len(), 0.0);
            self.count.resize(self.sum.len(), 1.0);
            self.incremental.resize(self.sum.len(), false);
            return;
        }
        let (sum, lost) = (behind(&mut self.sum, at), behind(&mut self.lost, at));
        let sums = sum.chunks_mut(BLOCK).zip(lost.chunks_mut(BLOCK));
        let (count, incremental) = (behind(&mut self.count, at), behind(&mut self.incremental, at));
        let kinds = count.chunks_mut(BLOCK).zip(incremental.chunks_mut(BLOCK));
        for (((sum, lost), (count, incremental)), values) in sums.zip(kinds).zip(values.chunks(BLOCK)) {
            if all_finite(sum, values) && !incremental.contains(&true) {
                for (((sum, lost), count), &v) in sum.iter_mut().zip(lost).zip(count).zip(values) {
                    Kahan {
                        sum: *sum,
                        lost: *lost,
                    }
                    .plus(v)
                    .put(sum, lost);
                    *count += 1.0;
                }
                continue;
            }
            let slots = sum.iter_mut().zip(lost).zip(count.iter_mut().zip(incremental));
            for (((sum, lost), (count, incremental)), &v) in slots.zip(values) {
                if is_absent(*sum) {
                    *sum = v;
                } else if !is_absent(v) {
                    let acc = Kahan {
                        sum: *sum,
                        lost: *lost,
                    };
                    let mut mean = Mean {
                        acc,
                        count: *count,
                        incremental: *incremental,
                    };
                    mean.push(v);
                    mean.acc.put(sum, lost);
                    (*count, *incremental) = (mean.count, mean.incremental);
                }
            }
        }
    }

    /// Writes the means of those steps from `at` on that have one.
    pub(super) fn write(&self, out: &mut [f64], at: usize) {
        let sums = self.sum.iter().zip(&self.lost).skip(at);
        let kinds = self.count.iter().zip(&self.incremental).skip(at);
        for (out, ((&sum, &lost), (&count, &incremental))) in out.iter_mut().zip(sums.zip(kinds)) {
            if !is_absent(sum) {
                let acc = Kahan { sum, lost };
                *out = Mean {
                    acc,
                    count,
                    incremental,
                }
                .value();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::eval::absent;

    fn value() -> impl Strategy<Value = f64> {
        prop_oneof![
            20 => -1e3..1e3,
            3 => Just(absent()),
            1 => Just(f64::NAN),
            1 => Just(f64::INFINITY),
            1 => Just(f64::NEG_INFINITY),
            2 => Just(f64::MAX),
            1 => Just(f64::MIN),
            2 => Just(-0.0),
            1 => any::<f64>().prop_filter("a series has no stale markers", |v| !koios_model::is_stale(*v)),
        ]
    }

    /// NaN is one whatever its payload, but for the mark for nothing.
    fn bits(v: f64) -> u64 {
        if v.is_nan() && !is_absent(v) {
            f64::NAN.to_bits()
        } else {
            v.to_bits()
        }
    }

    proptest! {
        #[test]
        fn columns_fold_as_one_number_after_the_other(
            (tame, rows) in (1usize..70).prop_flat_map(|steps| (
                prop::collection::vec(prop::collection::vec(-1e3..1e3, steps), 0..4),
                prop::collection::vec(prop::collection::vec(value(), steps), 1..6),
            )),
        ) {
            let rows: Vec<Vec<f64>> = tame.into_iter().chain(rows).collect();
            let (mut sums, mut means) = (Sums::new(rows[0].len()), Means::new(rows[0].len()));
            for row in &rows {
                for (i, values) in row.chunks(19).enumerate() {
                    sums.push(values, i * 19);
                    means.push(values, i * 19);
                }
            }
            let steps = rows[0].len();
            let (mut got_sums, mut got_means) = (vec![absent(); steps], vec![absent(); steps]);
            sums.write(&mut got_sums, 0);
            means.write(&mut got_means, 0);
            for i in 0..steps {
                let mut floats = rows.iter().map(|row| row[i]).filter(|&v| !is_absent(v));
                let first = floats.next();
                let (mut sum, mut mean) = (first.map(Kahan::new), first.map(Mean::new));
                for v in floats {
                    sum = sum.map(|k| k.plus(v));
                    mean.iter_mut().for_each(|m| m.push(v));
                }
                prop_assert_eq!(bits(got_sums[i]), bits(sum.map_or_else(absent, Kahan::total)));
                prop_assert_eq!(bits(got_means[i]), bits(mean.map_or_else(absent, Mean::value)));
            }
        }
    }
}
