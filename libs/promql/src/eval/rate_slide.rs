//! `rate`, `increase` and `delta` of plain floats at all steps, a block of windows at a time: first where each window
//! begins and ends, then the arithmetic on columns, without branches.
//!
//! Each value is made by the very operations of [`super::rate`], in their order; only what they are done for differs.

use super::cursor::{BLOCK, Blocks};
use super::matrix::{WindowSpec, WindowTimes};
use super::rate::{RateKind, extrapolation_factor};
use super::window::{RangeTimes, Samples, cut};
use crate::error::QueryError;
use crate::steps::Steps;
use crate::work::Work;

/// How many resets are added up in one unit of work.
const ADDITIONS_PER_UNIT: usize = 4;

/// `rate`, `increase` or `delta` of a series' floats at all steps. Only where there are no histograms and no start
/// timestamps, and the range is plain. Gives how many samples all windows hold together, and the most that one does.
pub(super) fn slide_plain(
    samples: Samples<'_>,
    (spec, steps): (&WindowSpec, Steps),
    kind: RateKind,
    out: &mut [f64],
    work: &mut Work<'_>,
) -> Result<(usize, usize), QueryError> {
    let mut blocks = Blocks::new(samples.t, spec, steps);
    let mut resets = Resets::new(if kind.counter { samples.v } else { &[] });
    work.hold(resets.at.capacity() * size_of::<usize>())?;
    let near = blocks.windows().are_near(samples.t);
    let mut columns = Columns::new(kind, spec.range_ms as f64 / 1000.0);
    for out in out.chunks_mut(BLOCK) {
        work.spend(out.len())?;
        let first = blocks.advance(out.len());
        columns.take_values(samples.v, &blocks);
        if resets.any_left() {
            for (change, (lo, hi)) in columns.change.iter_mut().zip(blocks.iter()).take(out.len()) {
                let within = resets.within(lo, hi);
                *change = with_lost(*change, samples.v, within);
                work.spend(within.len() / ADDITIONS_PER_UNIT)?;
            }
        }
        if !near {
            columns.write_far(samples.t, &blocks, first, out);
        } else if !(blocks.alike && columns.write_alike(samples.t, &blocks, first, out)) {
            columns.write_each(samples.t, &blocks, first, out);
        }
    }
    Ok(blocks.weight())
}

/// Adds what a counter had counted at each of its falls to a change, one after the other: the order of the additions is
/// part of the result.
fn with_lost(change: f64, v: &[f64], falls: &[usize]) -> f64 {
    let lost = falls.iter().filter_map(|&at| v.get(at.wrapping_sub(1)));
    lost.fold(change, |change, lost| change + lost)
}

/// How many floats are looked through for a fall at a time.
const FALLS_BLOCK: usize = 64;

/// The numbers of the floats that are less than the one before.
fn falls(v: &[f64]) -> Vec<usize> {
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

/// The falls of a counter, from window to window.
struct Resets {
    /// The numbers of the floats that are less than the one before.
    at: Vec<usize>,
    /// The first fall that is not before the window.
    next: usize,
}

impl Resets {
    fn new(v: &[f64]) -> Self {
        Self {
            at: falls(v),
            next: 0,
        }
    }

    fn any_left(&self) -> bool {
        self.next < self.at.len()
    }

    /// The falls within a window.
    #[inline]
    fn within(&mut self, lo: usize, hi: usize) -> &[usize] {
        // A fall right at the start of the window happened before it.
        while self.at.get(self.next).is_some_and(|&at| at <= lo) {
            self.next += 1;
        }
        let from = self.at.get(self.next..).unwrap_or_default();
        if from.first().is_none_or(|&at| at >= hi) {
            return &[];
        }
        from.get(..from.partition_point(|&at| at < hi))
            .unwrap_or_default()
    }
}

/// What the values of some consecutive windows are made of.
struct Columns {
    kind: RateKind,
    /// How long the range is.
    seconds: f64,
    /// From the first value of each window to the last.
    change: [f64; BLOCK],
    /// The first value.
    first: [f64; BLOCK],
}

impl Columns {
    fn new(kind: RateKind, seconds: f64) -> Self {
        Self {
            kind,
            seconds,
            change: [0.0; BLOCK],
            first: [0.0; BLOCK],
        }
    }

    /// Takes the values of each window.
    fn take_values(&mut self, v: &[f64], blocks: &Blocks<'_>) {
        let columns = self.change.iter_mut().zip(&mut self.first);
        for ((change, first), (lo, hi)) in columns.zip(blocks.iter()) {
            if let (Some(v0), Some(v1)) = (v.get(lo), v.get(hi.wrapping_sub(1))) {
                (*change, *first) = (v1 - v0, *v0);
            }
        }
    }

    /// By what a factor over the range is divided: what is divided by 1 stays what it is.
    fn divisor(&self) -> f64 {
        if self.kind.per_second { self.seconds } else { 1.0 }
    }

    /// Writes the values of windows that all lie the same way around their samples, so that one factor makes them all;
    /// does nothing, and says so, if that of any ends where a counter would be negative.
    fn write_alike(&self, t: &[i64], blocks: &Blocks<'_>, step: usize, out: &mut [f64]) -> bool {
        let ([lo, ..], [hi, ..]) = (blocks.lo, blocks.hi);
        let Some(d) = Distances::of(t, (lo, hi), blocks.windows().at(step)) else {
            return true;
        };
        let [to_start, sampled, to_end, gaps] =
            [d.to_start, d.sampled, d.to_end, d.gaps].map(|distance| distance as f64);
        let reach = Reach::new(to_start, sampled, to_end, gaps);
        let values = self.change.iter().zip(&self.first).take(out.len());
        let below = |any: bool, (&change, &first): (&f64, &f64)| any | reach.goes_below_zero(change, first);
        if self.kind.counter && values.fold(false, below) {
            return false;
        }
        let factor = reach.factor() / self.divisor();
        for (out, change) in out.iter_mut().zip(&self.change) {
            *out = change * factor;
        }
        true
    }

    /// Writes the values of those windows that have any.
    fn write_each(&self, t: &[i64], blocks: &Blocks<'_>, step: usize, out: &mut [f64]) {
        let (counter, divisor) = (self.kind.counter, self.divisor());
        let windows = blocks.windows();
        let mut distances = [[0.0; BLOCK]; 4];
        let [to_start, sampled, to_end, gaps] = &mut distances;
        let edges = to_start.iter_mut().zip(to_end);
        let columns = edges.zip(sampled.iter_mut().zip(gaps)).take(out.len());
        for (i, (((to_start, to_end), (sampled, gaps)), bounds)) in columns.zip(blocks.iter()).enumerate() {
            if let Some(d) = Distances::of(t, bounds, windows.at(step + i)) {
                (*to_start, *to_end) = (d.to_start as f64, d.to_end as f64);
                (*sampled, *gaps) = (d.sampled as f64, d.gaps as f64);
            }
        }
        let [to_start, sampled, to_end, gaps] = &distances;
        let edges = to_start.iter().zip(to_end).zip(sampled.iter().zip(gaps));
        let values = self.change.iter().zip(&self.first);
        for ((out, ((to_start, to_end), (sampled, &gaps))), (&change, &first)) in
            out.iter_mut().zip(edges).zip(values)
        {
            let reach = Reach::new(*to_start, *sampled, *to_end, gaps);
            let clipped = counter & reach.goes_below_zero(change, first);
            let to_zero = reach.to_zero(change, first);
            let reach = Reach {
                to_start: if clipped { to_zero } else { reach.to_start },
                ..reach
            };
            let value = change * (reach.factor() / divisor);
            *out = if gaps > 0.0 { value } else { *out };
        }
    }

    /// The same where times are so far apart that their differences are not their distances.
    fn write_far(&self, t: &[i64], blocks: &Blocks<'_>, step: usize, out: &mut [f64]) {
        let windows = blocks.windows();
        let values = self.change.iter().zip(&self.first);
        for (i, ((out, (lo, hi)), (&change, &first))) in
            out.iter_mut().zip(blocks.iter()).zip(values).enumerate()
        {
            let times = windows.at(step + i);
            let range = RangeTimes {
                start: times.start,
                end: times.end,
                seconds: self.seconds,
            };
            let zero_point = (self.kind.counter && change > 0.0 && first >= 0.0).then(|| first / change);
            let factor = extrapolation_factor(cut(t, lo, hi), None, zero_point, range, self.kind);
            if let Some(factor) = factor {
                *out = change * factor;
            }
        }
    }
}

/// How a window lies around its samples, in milliseconds, and how many gaps are between these.
struct Distances {
    to_start: i64,
    sampled: i64,
    to_end: i64,
    gaps: i64,
}

impl Distances {
    /// `None` if there are too few samples.
    #[inline]
    fn of(t: &[i64], (lo, hi): (usize, usize), times: WindowTimes) -> Option<Self> {
        let last = hi.checked_sub(1).filter(|&last| last > lo)?;
        let (t0, t1) = (*t.get(lo)?, *t.get(last)?);
        Some(Self {
            to_start: t0.wrapping_sub(times.start),
            sampled: t1.wrapping_sub(t0),
            to_end: times.end.wrapping_sub(t1),
            gaps: (last - lo) as i64,
        })
    }
}

/// How many seconds lie between the first and the last sample, and how far beyond them the change goes on.
#[derive(Clone, Copy)]
struct Reach {
    to_start: f64,
    sampled: f64,
    to_end: f64,
}

impl Reach {
    /// From milliseconds.
    #[inline]
    fn new(to_start: f64, sampled: f64, to_end: f64, gaps: f64) -> Self {
        let (to_start, sampled, to_end) = (to_start / 1000.0, sampled / 1000.0, to_end / 1000.0);
        let average_gap = sampled / gaps;
        let half_gap = average_gap / 2.0;
        // A gap this much longer than usual means that the series begins or ends within the range.
        let threshold = average_gap * 1.1;
        Self {
            to_start: if to_start >= threshold { half_gap } else { to_start },
            sampled,
            to_end: if to_end >= threshold { half_gap } else { to_end },
        }
    }

    /// How far before the first sample a counter would have been 0.
    #[inline]
    fn to_zero(self, change: f64, first: f64) -> f64 {
        self.sampled * (first / change)
    }

    /// Whether the change is drawn out to where a counter would be negative.
    #[inline]
    fn goes_below_zero(self, change: f64, first: f64) -> bool {
        (change > 0.0) & (first >= 0.0) & (self.to_zero(change, first) < self.to_start)
    }

    /// By what the change between the samples is multiplied to make it one over the range.
    #[inline]
    fn factor(self) -> f64 {
        let factor = (self.sampled + self.to_start + self.to_end) / self.sampled;
        if self.sampled != 0.0 { factor } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use koios_model::Labels;
    use proptest::prelude::*;

    use super::*;
    use crate::annotations::Annotations;
    use crate::ast::{RangeEdges, Span};
    use crate::context::{CancelContext, Uninterrupted};
    use crate::eval::rate::{delta, increase, rate};
    use crate::eval::row::Point;
    use crate::eval::window::StepInfo;
    use crate::memory::Memory;
    use crate::signatures::FunctionId;

    fn spec(range_ms: i64, offset_ms: i64, at: Option<i64>) -> WindowSpec {
        WindowSpec {
            range_ms,
            offset_ms,
            at,
            edges: RangeEdges::Plain,
            lookback_ms: 300_000,
            statistics_only: false,
            span: Span::default(),
        }
    }

    /// What the function makes of one window by itself.
    fn of_window(function: FunctionId, w: Samples<'_>, spec: &WindowSpec, step: i64) -> Option<f64> {
        let (labels, mut annotations) = (Labels::empty(), Annotations::default());
        let times = spec.at(step);
        let mut info = StepInfo {
            at: step,
            start: times.start,
            end: times.end,
            range_ms: spec.range_ms,
            edges: RangeEdges::Plain,
            params: [0.0; 2],
            labels: &labels,
            span: Span::default(),
            first_span: Span::default(),
            annotations: &mut annotations,
            ctx: &Uninterrupted,
        };
        let kernel = match function {
            FunctionId::Rate => rate,
            FunctionId::Increase => increase,
            _ => delta,
        };
        match kernel(w, &mut info) {
            Ok(Point::Float(v)) => Some(v),
            _ => None,
        }
    }

    fn assert_as_window_by_window(t: &[i64], v: &[f64], spec: &WindowSpec, steps: Steps) {
        let all = Samples {
            t,
            v,
            ..Samples::default()
        };
        let mut work = Work::new(&Uninterrupted, &Memory::new(usize::MAX));
        for function in [FunctionId::Rate, FunctionId::Increase, FunctionId::Delta] {
            let kind = RateKind::of(function).unwrap();
            let mut out = vec![f64::MAX; steps.count()];
            let weight = slide_plain(all, (spec, steps), kind, &mut out, &mut work).unwrap();
            let mut want_weight = (0, 0);
            for (i, got) in out.iter().enumerate() {
                let times = spec.at(steps.at(i));
                let window = all.between(times.after, times.until);
                want_weight = (want_weight.0 + window.t.len(), want_weight.1.max(window.t.len()));
                let want = of_window(function, window, spec, steps.at(i)).unwrap_or(f64::MAX);
                let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                assert!(same, "{function:?} at step {i}: {got} for {want}");
            }
            assert_eq!(weight, want_weight);
        }
    }

    fn value() -> impl Strategy<Value = f64> {
        prop_oneof![
            40 => (0u32..5_000).prop_map(f64::from),
            10 => -1e6..1e6,
            1 => Just(f64::NAN),
            1 => Just(f64::INFINITY),
            1 => Just(f64::NEG_INFINITY),
            1 => Just(f64::MAX),
            1 => Just(-0.0),
        ]
    }

    /// A counter that is near 0 at times, or any numbers.
    fn values() -> impl Strategy<Value = Vec<f64>> {
        let counts = prop::collection::vec((0u32..50, prop::bool::weighted(0.03)), 500);
        let counter = counts.prop_map(|counts| {
            let count = |sum: &mut f64, (more, resets): (u32, bool)| {
                *sum = f64::from(more) + if resets { 0.0 } else { *sum };
                Some(*sum)
            };
            counts.into_iter().scan(0.0, count).collect()
        });
        prop_oneof![2 => counter, 1 => prop::collection::vec(value(), 500)]
    }

    fn gap() -> impl Strategy<Value = i64> {
        prop_oneof![60 => Just(15_000i64), 1 => 1i64..90_000, 1 => Just(600_000)]
    }

    proptest! {
        #[test]
        fn sliding_gives_what_each_window_gives(
            begin in prop_oneof![4 => 0i64..100_000, 1 => Just(-3_000_000i64), 1 => Just(i64::MAX - 5_000_000)],
            gaps in prop_oneof![
                prop::collection::vec(gap(), 0..500),
                prop::collection::vec(14_000i64..16_000, 0..500),
            ],
            v in values(),
            from in -1_000_000i64..3_000_000,
            step in prop_oneof![Just(15_000i64), Just(60_000), Just(37_000)],
            range_ms in prop_oneof![Just(300_000i64), Just(60_000), Just(20_000), Just(1), Just(i64::MAX)],
            offset_ms in prop_oneof![4 => Just(0i64), 1 => -400_000i64..400_000, 1 => Just(i64::MIN + 1)],
            at in prop::option::weighted(0.1, 0i64..2_000_000),
            count in 1i64..120,
        ) {
            let times = gaps.iter().scan(begin, |t, gap| { *t = t.checked_add(*gap)?; Some(*t) });
            let t: Vec<i64> = times.collect();
            let from = begin.saturating_add(from);
            let steps = Steps::range(from, from.saturating_add(step * (count - 1)), step);
            assert_as_window_by_window(&t, &v[..t.len()], &spec(range_ms, offset_ms, at), steps);
        }
    }

    /// Slides `rate` over the whole of a series at each of so many steps; tells whether it could be stopped meanwhile.
    fn stops(v: &[f64], steps: i64) -> bool {
        let t: Vec<i64> = (0..v.len() as i64).collect();
        let all = Samples {
            t: &t,
            v,
            ..Samples::default()
        };
        let ctx = CancelContext::new(|| false);
        ctx.cancel();
        let mut work = Work::new(&ctx, &Memory::new(usize::MAX));
        let kind = RateKind::of(FunctionId::Rate).unwrap();
        let steps = Steps::range(0, steps - 1, 1);
        let mut out = vec![0.0; steps.count()];
        slide_plain(all, (&spec(4_000, 0, None), steps), kind, &mut out, &mut work).is_err()
    }

    #[test]
    fn i12_sliding_can_be_stopped_by_resets_and_by_windows() {
        let resetting: Vec<f64> = (0..4_000).map(|i| f64::from(i % 2)).collect();
        assert!(stops(&resetting, 4_000));
        assert!(stops(&[1.0, 2.0], 100_000) && !stops(&[1.0, 2.0], 4_000));
    }
}
