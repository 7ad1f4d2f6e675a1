//! `*_over_time`, `changes`, `resets`, `irate`, `idelta` of plain floats at all steps: as [`super::over_time`] and
//! [`super::rate`] compute them window by window, to the bit, with what neighbouring windows share done once.

use super::absent;
use super::cursor::{BLOCK, Blocks, Found};
use super::exact_sums::ExactSums;
use super::matrix::WindowSpec;
use super::quantile::{nan_first, quantile_beyond, quantile_of_sorted};
use super::row::Scalars;
use super::sorted_window::SortedWindow;
use super::stretches::has_large_window;
use super::window::{Samples, cut};
use crate::error::QueryError;
use crate::kahan::Kahan;
use crate::signatures::FunctionId;
use crate::steps::Steps;
use crate::work::{UNITS_PER_CHECK, Work};

/// How many samples of a window are looked at in one unit of work.
pub(super) const SAMPLES_PER_UNIT: usize = 4;

/// How many samples all windows hold together, and the most that one does.
type Weight = (usize, usize);

/// One series and the windows over it.
pub(super) struct Slide<'a> {
    pub(super) samples: Samples<'a>,
    pub(super) spec: &'a WindowSpec,
    pub(super) steps: Steps,
    /// The windows of the series before.
    pub(super) found: &'a mut Found,
}

impl Slide<'_> {
    /// Computes a function of all windows into `out`. `None`, with nothing written, if it is to be computed window by
    /// window. Only where there are no histograms and no start timestamps, and the range is plain.
    pub(super) fn function(
        &mut self,
        function: FunctionId,
        params: &[Scalars],
        out: &mut [f64],
        work: &mut Work<'_>,
    ) -> Result<Option<Weight>, QueryError> {
        use FunctionId as F;
        let Samples { t, v, .. } = self.samples;
        let time = |i: usize| t.get(i).map_or_else(absent, |&t| t as f64 / 1000.0);
        let value = |i: usize| v.get(i).copied().unwrap_or_else(absent);
        match function {
            F::PresentOverTime => self.each(out, work, |_, _| 1.0),
            F::CountOverTime => self.each(out, work, |lo, hi| (hi - lo) as f64),
            F::FirstOverTime => self.each(out, work, |lo, _| value(lo)),
            F::LastOverTime => self.each(out, work, |_, hi| value(hi - 1)),
            F::TsOfFirstOverTime => self.each(out, work, |lo, _| time(lo)),
            F::TsOfLastOverTime => self.each(out, work, |_, hi| time(hi - 1)),
            F::SumOverTime => return self.sums(out, work),
            F::AvgOverTime => return self.means(out, work),
            F::MinOverTime => self.extremes(out, work, |v, best| v < best),
            F::MaxOverTime => self.extremes(out, work, |v, best| v > best),
            F::MadOverTime => self.deviations(out, work),
            F::Irate => self.each(out, work, |lo, hi| between_last_two(t, v, (lo, hi), true)),
            F::Idelta => self.each(out, work, |lo, hi| between_last_two(t, v, (lo, hi), false)),
            F::Changes => {
                let differ = |a: f64, b: f64| a != b && !(a.is_nan() && b.is_nan());
                self.counts(out, work, differ)
            }
            F::Resets => self.counts(out, work, |before, after| after < before),
            F::QuantileOverTime => match params {
                [q] => self.quantiles(out, q, work),
                _ => return Ok(None),
            },
            _ => return Ok(None),
        }
        .map(Some)
    }

    /// Computes each window that has samples from the numbers of its first and the one behind its last.
    #[inline]
    fn each(
        &mut self,
        out: &mut [f64],
        work: &mut Work<'_>,
        mut value: impl FnMut(usize, usize) -> f64,
    ) -> Result<Weight, QueryError> {
        self.blocks(out, work, |bounds, out| {
            for (out, (lo, hi)) in out.iter_mut().zip(bounds) {
                if lo < hi {
                    *out = value(lo, hi);
                }
            }
        })
    }

    /// Computes windows a block at a time.
    #[inline]
    fn blocks(
        &mut self,
        out: &mut [f64],
        work: &mut Work<'_>,
        mut write: impl FnMut(&mut dyn Iterator<Item = (usize, usize)>, &mut [f64]),
    ) -> Result<Weight, QueryError> {
        let mut blocks = Blocks::new(self.samples.t, self.spec, self.steps, self.found)?;
        let mut counted = 0;
        for out in out.chunks_mut(BLOCK) {
            blocks.advance(out.len());
            write(&mut blocks.iter(), out);
            let (seen, _) = blocks.weight();
            work.spend(out.len() + (seen - counted) / SAMPLES_PER_UNIT)?;
            counted = seen;
        }
        Ok(blocks.weight())
    }

    /// How many samples of each window follow on one within that `counts` together with them.
    fn counts(
        &mut self,
        out: &mut [f64],
        work: &mut Work<'_>,
        counts: impl Fn(f64, f64) -> bool,
    ) -> Result<Weight, QueryError> {
        let v = self.samples.v;
        work.hold(size_of_val(v))?;
        let up_to = counts_up_to(v, counts);
        let at = |i: usize| up_to.get(i).copied().unwrap_or_default();
        self.each(out, work, |lo, hi| (at(hi - 1) - at(lo)) as f64)
    }

    fn sums(&mut self, out: &mut [f64], work: &mut Work<'_>) -> Result<Option<Weight>, QueryError> {
        let v = self.samples.v;
        if let Some(sums) = integer_sums(v, work)? {
            return self
                .each(out, work, |lo, hi| integer_sum(&sums, lo, hi))
                .map(Some);
        }
        match self.exact_sums(work)? {
            Some(sums) => self.each(out, work, |lo, hi| sums.total(lo, hi)).map(Some),
            None => Ok(None),
        }
    }

    fn means(&mut self, out: &mut [f64], work: &mut Work<'_>) -> Result<Option<Weight>, QueryError> {
        let v = self.samples.v;
        if let Some(sums) = integer_sums(v, work)? {
            let mean = |lo, hi| {
                Kahan::new(integer_sum(&sums, lo, hi))
                    .over((hi - lo) as f64)
                    .total()
            };
            return self.each(out, work, mean).map(Some);
        }
        // Large windows are not summed up one sample after the other.
        if has_large_window(self.samples.t, self.spec.range_ms) {
            return Ok(None);
        }
        let Some(sums) = self.exact_sums(work)? else {
            return Ok(None);
        };
        let mean = |lo: usize, hi: usize, sum| sums.compensated(lo, hi, sum).over((hi - lo) as f64).total();
        let means = self.blocks(out, work, |bounds, out| {
            for out in out.chunks_mut(LANES) {
                let mut windows = [(0, 0); LANES];
                let given = windows.iter_mut().zip(&mut *bounds).take(out.len());
                given.for_each(|(window, bounds)| *window = bounds);
                let plain = plain_sums(v, windows);
                for (out, (&(lo, hi), sum)) in out.iter_mut().zip(windows.iter().zip(plain)) {
                    if lo < hi {
                        *out = mean(lo, hi, sum);
                    }
                }
            }
        });
        means.map(Some)
    }

    /// Exact sums, if enough windows share each sample to pay for them.
    fn exact_sums(&self, work: &mut Work<'_>) -> Result<Option<ExactSums>, QueryError> {
        let shared = self.spec.range_ms / self.steps.interval() >= SHARED_MIN;
        if !shared || self.steps.count() <= 1 {
            return Ok(None);
        }
        ExactSums::of(self.samples.v, work)
    }

    /// The values that win over all others in their windows: each sample is compared twice, however many windows it
    /// is in. NaN loses against everything; of equal values the first wins.
    fn extremes(
        &mut self,
        out: &mut [f64],
        work: &mut Work<'_>,
        wins: impl Fn(f64, f64) -> bool,
    ) -> Result<Weight, QueryError> {
        let v = self.samples.v;
        work.hold(size_of_val(v))?;
        let better = |older: f64, newer: f64| match wins(newer, older) | older.is_nan() {
            true => newer,
            false => older,
        };
        // The extreme of the samples from each up to `split`, and that of those from there up to `end`.
        let mut before = work.filled(&0.0, v.len())?;
        let (mut split, mut end, mut behind) = (0, 0, None);
        let mut blocks = Blocks::new(self.samples.t, self.spec, self.steps, self.found)?;
        for out in out.chunks_mut(BLOCK) {
            blocks.advance(out.len());
            work.spend(out.len())?;
            for (out, (lo, hi)) in out.iter_mut().zip(blocks.iter()) {
                if lo >= hi {
                    continue;
                }
                if lo >= split {
                    let (v, before) = (cut(v, lo, hi), before.get_mut(lo..hi).unwrap_or_default());
                    let mut best: Option<f64> = None;
                    for (v, before) in v
                        .rchunks(UNITS_PER_CHECK)
                        .zip(before.rchunks_mut(UNITS_PER_CHECK))
                    {
                        work.spend(v.len())?;
                        for (&v, before) in v.iter().zip(before).rev() {
                            *before = best.map_or(v, |best| better(v, best));
                            best = Some(*before);
                        }
                    }
                    (split, behind) = (hi, None);
                } else {
                    for v in cut(v, end, hi).chunks(UNITS_PER_CHECK) {
                        work.spend(v.len())?;
                        for &v in v {
                            behind = Some(behind.map_or(v, |best| better(best, v)));
                        }
                    }
                }
                end = hi;
                let first = before.get(lo).copied().unwrap_or_else(absent);
                *out = behind.map_or(first, |behind| better(first, behind));
            }
        }
        Ok(blocks.weight())
    }

    /// The median of the distances from the median.
    fn deviations(&mut self, out: &mut [f64], work: &mut Work<'_>) -> Result<Weight, QueryError> {
        let v = self.samples.v;
        let mut blocks = Blocks::new(self.samples.t, self.spec, self.steps, self.found)?;
        let mut window = SortedWindow::new(work);
        let (mut distances, mut lease) = (Vec::new(), work.lease());
        for out in out.chunks_mut(BLOCK) {
            blocks.advance(out.len());
            work.spend(out.len())?;
            for (out, (lo, hi)) in out.iter_mut().zip(blocks.iter()) {
                if lo >= hi {
                    continue;
                }
                let sorted = window.advance(v, (lo, hi), work)?;
                if sorted.first().is_some_and(|v| v.is_nan()) {
                    *out = f64::NAN;
                    continue;
                }
                let median = quantile_of_sorted(0.5, sorted);
                lease.cover(size_of_val(sorted))?;
                distances.clear();
                distances.extend(sorted.iter().map(|v| (v - median).abs()));
                work.sort(&mut distances, nan_first)?;
                *out = quantile_of_sorted(0.5, &distances);
            }
        }
        Ok(blocks.weight())
    }

    fn quantiles(&mut self, out: &mut [f64], q: &Scalars, work: &mut Work<'_>) -> Result<Weight, QueryError> {
        let v = self.samples.v;
        let mut blocks = Blocks::new(self.samples.t, self.spec, self.steps, self.found)?;
        let mut window = SortedWindow::new(work);
        for out in out.chunks_mut(BLOCK) {
            let first = blocks.advance(out.len());
            work.spend(out.len())?;
            for (i, (out, (lo, hi))) in out.iter_mut().zip(blocks.iter()).enumerate() {
                if lo >= hi {
                    continue;
                }
                let q = q.at(first + i);
                *out = match quantile_beyond(q) {
                    Some(value) => value,
                    None => quantile_of_sorted(q, window.advance(v, (lo, hi), work)?),
                };
            }
        }
        Ok(blocks.weight())
    }
}

/// How many windows must share a sample for exact sums to pay.
const SHARED_MIN: i64 = 3;

/// How many windows are summed up at the same time, as each addition waits for the one before.
const LANES: usize = 4;

/// The sums of some windows, each one float after the other, without compensation.
#[inline]
fn plain_sums(v: &[f64], windows: [(usize, usize); LANES]) -> [f64; LANES] {
    let [a, b, c, d] = windows.map(|(lo, hi)| cut(v, lo, hi));
    let common = a.len().min(b.len()).min(c.len()).min(d.len());
    let mut sums = [0.0; LANES];
    for (((a, b), c), d) in a.iter().zip(b).zip(c).zip(d) {
        for (sum, v) in sums.iter_mut().zip([a, b, c, d]) {
            *sum += v;
        }
    }
    for (sum, rest) in sums.iter_mut().zip([a, b, c, d]) {
        *sum = cut(rest, common, rest.len()).iter().fold(*sum, |sum, v| sum + v);
    }
    sums
}

fn integer_sum(up_to: &[i64], lo: usize, hi: usize) -> f64 {
    let at = |i: usize| up_to.get(i).copied().unwrap_or_default();
    (at(hi) - at(lo)) as f64
}

/// From this magnitude on a float may stand for several integers.
const EXACT_BELOW: f64 = 9_007_199_254_740_992.0;

/// The sums of all values before each, and of all, if adding them up in any order is exact: then no compensated sum has
/// anything to compensate, and the difference of two of these is the sum of a window, to the bit.
fn integer_sums(v: &[f64], work: &mut Work<'_>) -> Result<Option<Vec<i64>>, QueryError> {
    // Held only if there are sums.
    let mut lease = work.lease();
    lease.cover(size_of_val(v))?;
    let mut sums = Vec::with_capacity(v.len() + 1);
    let (mut sum, mut magnitude) = (0i64, 0.0);
    sums.push(sum);
    for v in v.chunks(UNITS_PER_CHECK) {
        work.spend(v.len())?;
        for &v in v {
            magnitude += v.abs();
            // Not so for NaN either.
            let exact = magnitude < EXACT_BELOW && v.trunc() == v && v.to_bits() != (-0.0f64).to_bits();
            if !exact {
                return Ok(None);
            }
            sum += v as i64;
            sums.push(sum);
        }
    }
    drop(lease);
    work.hold(size_of_val(v))?;
    Ok(Some(sums))
}

/// How many floats up to each follow on one that `counts` together with them.
fn counts_up_to(v: &[f64], counts: impl Fn(f64, f64) -> bool) -> Vec<usize> {
    let mut up_to = Vec::with_capacity(v.len());
    up_to.extend(v.first().map(|_| 0));
    let pairs = v.iter().zip(v.iter().skip(1));
    up_to.extend(pairs.scan(0, |sum, (&before, &after)| {
        *sum += usize::from(counts(before, after));
        Some(*sum)
    }));
    up_to
}

/// The change between the last two samples, per second for a counter; absent if there are not two.
#[inline]
fn between_last_two(t: &[i64], v: &[f64], (lo, hi): (usize, usize), counter: bool) -> f64 {
    let (Some([t0, t1]), Some([v0, v1])) =
        (cut(t, lo, hi).last_chunk::<2>(), cut(v, lo, hi).last_chunk::<2>())
    else {
        return absent();
    };
    let gap_ms = t1.saturating_sub(*t0);
    if gap_ms == 0 {
        return absent();
    }
    if !counter {
        return v1 - v0;
    }
    let change = if v1 < v0 { *v1 } else { v1 - v0 };
    change / (gap_ms as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use koios_model::Labels;
    use proptest::prelude::*;

    use super::*;
    use crate::annotations::Annotations;
    use crate::ast::{RangeEdges, Span};
    use crate::context::Uninterrupted;
    use crate::eval::range_call::kernel;
    use crate::eval::row::Point;
    use crate::eval::window::StepInfo;
    use crate::memory::Memory;

    const FUNCTIONS: [FunctionId; 16] = [
        FunctionId::MadOverTime,
        FunctionId::PresentOverTime,
        FunctionId::CountOverTime,
        FunctionId::FirstOverTime,
        FunctionId::LastOverTime,
        FunctionId::TsOfFirstOverTime,
        FunctionId::TsOfLastOverTime,
        FunctionId::SumOverTime,
        FunctionId::AvgOverTime,
        FunctionId::MinOverTime,
        FunctionId::MaxOverTime,
        FunctionId::Irate,
        FunctionId::Idelta,
        FunctionId::Changes,
        FunctionId::Resets,
        FunctionId::QuantileOverTime,
    ];

    fn of_window(function: FunctionId, w: Samples<'_>, spec: &WindowSpec, q: f64, step: i64) -> f64 {
        let (labels, mut annotations) = (Labels::empty(), Annotations::default());
        let times = spec.at(step);
        let mut info = StepInfo {
            at: step,
            start: times.start,
            end: times.end,
            range_ms: spec.range_ms,
            edges: RangeEdges::Plain,
            params: [q; 2],
            labels: &labels,
            span: Span::default(),
            first_span: Span::default(),
            annotations: &mut annotations,
            ctx: &Uninterrupted,
        };
        match kernel(function).map(|kernel| kernel(w, &mut info)) {
            Some(Ok(Point::Float(v))) => v,
            _ => absent(),
        }
    }

    fn values() -> impl Strategy<Value = Vec<f64>> {
        let few = prop_oneof![Just(0.0), Just(1.0), Just(2.5)];
        let wild = prop_oneof![
            20 => -1e3..1e3,
            1 => Just(f64::NAN),
            1 => Just(f64::INFINITY),
            1 => Just(f64::MAX),
            1 => Just(-0.0),
            1 => Just(1e-300),
        ];
        prop_oneof![
            prop::collection::vec(-1e3..1e3, 1_500),
            prop::collection::vec((-1_000i64..1_000).prop_map(|v| v as f64), 1_500),
            prop::collection::vec((-1_000i64..1_000).prop_map(|v| v as f64 / 100.0), 1_500),
            prop::collection::vec(few, 1_500),
            prop::collection::vec(wild, 1_500),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn sliding_gives_what_each_window_gives(
            gaps in prop::collection::vec(prop_oneof![60 => Just(15_000i64), 1 => 1i64..90_000], 0..1_500),
            v in values(),
            from in -1_000_000i64..3_000_000,
            step in prop_oneof![Just(15_000i64), Just(60_000), Just(37_000)],
            range_ms in prop_oneof![Just(300_000i64), Just(20_000), Just(1), Just(1_000_000), Just(20_000_000)],
            offset_ms in prop_oneof![2 => Just(0i64), 1 => -400_000i64..400_000],
            at in prop::option::weighted(0.1, 0i64..2_000_000),
            q in 0.0..1.0,
            count in 1i64..120,
        ) {
            let t: Vec<i64> = gaps.iter().scan(0, |t, gap| { *t += gap; Some(*t) }).collect();
            let all = Samples { t: &t, v: &v[..t.len()], ..Samples::default() };
            let spec = WindowSpec {
                range_ms,
                offset_ms,
                at,
                edges: RangeEdges::Plain,
                lookback_ms: 300_000,
                statistics_only: false,
                span: Span::default(),
            };
            let steps = Steps::range(from, from + step * (count - 1), step);
            let found = &mut Found::default();
            let mut slide = Slide { samples: all, spec: &spec, steps, found };
            let mut work = Work::new(&Uninterrupted, &Memory::new(usize::MAX));
            for function in FUNCTIONS {
                let mut out = vec![absent(); steps.count()];
                let params = [Scalars::Const(q)];
                let Some(weight) = slide.function(function, &params, &mut out, &mut work).unwrap() else {
                    prop_assert!(out.iter().all(|&v| crate::eval::is_absent(v)));
                    continue;
                };
                let mut want_weight = (0, 0);
                for (i, &got) in out.iter().enumerate() {
                    let times = spec.at(steps.at(i));
                    let window = all.between(times.after, times.until);
                    want_weight = (want_weight.0 + window.t.len(), want_weight.1.max(window.t.len()));
                    let want = if window.is_empty() {
                        absent()
                    } else {
                        of_window(function, window, &spec, q, steps.at(i))
                    };
                    let nan = got.is_nan() && want.is_nan() && !crate::eval::is_absent(got);
                    prop_assert!(
                        got.to_bits() == want.to_bits() || nan,
                        "{:?} at step {}: {} for {}", function, i, got, want
                    );
                }
                prop_assert_eq!(weight, want_weight);
            }
        }
    }
}
