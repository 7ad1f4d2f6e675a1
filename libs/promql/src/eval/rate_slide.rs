//! `rate`, `increase` and `delta` of plain floats at all steps, a block of windows at a time: first where each window
//! begins and ends, then the arithmetic on columns, without branches.
//!
//! Each value is made by the very operations of [`super::rate`], in their order; only what they are done for differs.

use std::sync::Arc;

use super::cursor::{BLOCK, Blocks, Found};
use super::matrix::{WindowSpec, WindowTimes};
use super::rate::{RateKind, extrapolation_factor};
use super::window::{RangeTimes, Samples, cut};
use crate::error::QueryError;
use crate::memory::{Lease, Memory};
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
    (found, reaches): (&mut Found, &mut Reaches),
    out: &mut [f64],
    work: &mut Work<'_>,
) -> Result<(usize, usize), QueryError> {
    let mut blocks = Blocks::new(samples.t, spec, steps, found)?;
    let mut resets = Resets::new(if kind.counter { samples.v } else { &[] });
    work.hold(resets.at.capacity() * size_of::<usize>())?;
    let near = blocks.windows().are_near(samples.t);
    reaches.start(&blocks, steps)?;
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
        } else if let Some(reach) = reaches.block(samples.t, &blocks, first, columns.divisor()) {
            columns.write(reach, out);
        }
    }
    if near && blocks.are_kept() {
        reaches.find = blocks.finds();
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

    /// Writes the values of those windows that have any.
    fn write(&self, reach: &ReachBlock, out: &mut [f64]) {
        let enough = reach.enough.iter().fold(true, |all, enough| all & enough);
        if !enough || self.kind.counter && reach.may_go_below_zero(&self.change, &self.first) {
            self.write_each(reach, out);
            return;
        }
        for ((out, change), factor) in out.iter_mut().zip(&self.change).zip(&reach.factor) {
            *out = change * factor;
        }
    }

    /// The same, looking at each by itself.
    fn write_each(&self, reaches: &ReachBlock, out: &mut [f64]) {
        let (counter, divisor) = (self.kind.counter, self.divisor());
        let values = self.change.iter().zip(&self.first).zip(&reaches.factor);
        for (i, (out, ((&change, &first), factor))) in out.iter_mut().zip(values).enumerate() {
            let Some(reach) = reaches.get(i) else { continue };
            let clipped = counter & reach.goes_below_zero(change, first);
            *out = match clipped {
                true => change * (reach.reaching_zero(change, first).factor() / divisor),
                false => change * factor,
            };
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

/// How the windows of some consecutive steps lie around their samples, in seconds.
#[derive(Debug)]
struct ReachBlock {
    to_start: [f64; BLOCK],
    sampled: [f64; BLOCK],
    to_end: [f64; BLOCK],
    /// By what the change of each is multiplied.
    factor: [f64; BLOCK],
    /// Whether there are samples enough. Where not, the rest is 0.
    enough: [bool; BLOCK],
}

impl ReachBlock {
    fn find(t: &[i64], blocks: &Blocks<'_>, step: usize, divisor: f64) -> Self {
        let windows = blocks.windows();
        let of = |i: usize, bounds| Distances::of(t, bounds, windows.at(step + i)).map(|d| Reach::of(&d));
        let mut bounds = blocks.iter().enumerate();
        let mut found = Self::same(None, divisor);
        if blocks.alike() {
            let (i, first) = bounds.next().unwrap_or_default();
            return Self::same(of(i, first), divisor);
        }
        for (i, bounds) in bounds {
            if let Some(reach) = of(i, bounds) {
                found.set(i, reach, divisor);
            }
        }
        found
    }

    /// All windows lie that way.
    fn same(reach: Option<Reach>, divisor: f64) -> Self {
        let column = |of: fn(Reach) -> f64| [reach.map_or(0.0, of); BLOCK];
        Self {
            to_start: column(|r| r.to_start),
            sampled: column(|r| r.sampled),
            to_end: column(|r| r.to_end),
            factor: [reach.map_or(0.0, |r| r.factor() / divisor); BLOCK],
            enough: [reach.is_some(); BLOCK],
        }
    }

    #[inline]
    fn set(&mut self, i: usize, reach: Reach, divisor: f64) {
        let slots = self.to_start.get_mut(i).zip(self.sampled.get_mut(i));
        let more = self.to_end.get_mut(i).zip(self.factor.get_mut(i));
        if let (Some((to_start, sampled)), Some((to_end, factor)), Some(enough)) =
            (slots, more, self.enough.get_mut(i))
        {
            (*to_start, *sampled, *to_end) = (reach.to_start, reach.sampled, reach.to_end);
            (*factor, *enough) = (reach.factor() / divisor, true);
        }
    }

    fn get(&self, i: usize) -> Option<Reach> {
        self.enough.get(i).filter(|enough| **enough)?;
        Some(Reach {
            to_start: *self.to_start.get(i)?,
            sampled: *self.sampled.get(i)?,
            to_end: *self.to_end.get(i)?,
        })
    }

    /// Whether any change may be drawn out to where a counter would be negative: as [`Reach::goes_below_zero`], without
    /// dividing, and rather once too often.
    fn may_go_below_zero(&self, change: &[f64; BLOCK], first: &[f64; BLOCK]) -> bool {
        const SLACK: f64 = 1.0 + 1e-9;
        let columns = change
            .iter()
            .zip(first)
            .zip(self.sampled.iter().zip(&self.to_start));
        columns.fold(false, |any, ((&change, &first), (&sampled, &to_start))| {
            // The least normal number: what is below has no such precision.
            let near_zero = sampled * first <= to_start * change * SLACK + f64::MIN_POSITIVE;
            any | ((change > 0.0) & (first >= 0.0) & near_zero)
        })
    }
}

/// How all windows of one series lie around their samples, for the next that has the same.
#[derive(Debug, Default)]
pub(super) struct Reaches {
    /// All of them, or the last.
    blocks: Vec<ReachBlock>,
    /// The number of the find of windows that these belong to; 0 if they are not all here.
    find: u64,
    lease: Lease,
}

impl Reaches {
    /// None yet; their memory is a query's.
    pub(super) fn of(memory: &Arc<Memory>) -> Self {
        Self {
            lease: Lease::of(memory),
            ..Self::default()
        }
    }

    /// Starts anew, unless those of that find are here.
    fn start(&mut self, blocks: &Blocks<'_>, steps: Steps) -> Result<(), QueryError> {
        if self.find == blocks.finds() {
            return Ok(());
        }
        (self.find, self.blocks) = (0, Vec::new());
        let count = if blocks.are_kept() {
            steps.count().div_ceil(BLOCK)
        } else {
            1
        };
        self.lease.cover(count.saturating_mul(size_of::<ReachBlock>()))?;
        self.blocks.reserve_exact(count);
        Ok(())
    }

    /// That of the block found last.
    #[inline]
    fn block(&mut self, t: &[i64], blocks: &Blocks<'_>, step: usize, divisor: f64) -> Option<&ReachBlock> {
        if self.find == blocks.finds() {
            return self.blocks.get(step / BLOCK);
        }
        if !blocks.are_kept() {
            self.blocks.clear();
        }
        self.blocks.push(ReachBlock::find(t, blocks, step, divisor));
        self.blocks.last()
    }
}

/// How many seconds lie between the first and the last sample, and how far beyond them the change goes on.
#[derive(Clone, Copy, Debug)]
struct Reach {
    to_start: f64,
    sampled: f64,
    to_end: f64,
}

impl Reach {
    #[inline]
    fn of(distances: &Distances) -> Self {
        let Distances {
            to_start,
            sampled,
            to_end,
            gaps,
        } = *distances;
        let [to_start, sampled, to_end, gaps] =
            [to_start, sampled, to_end, gaps].map(|distance| distance as f64);
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

    /// The same, but from where a counter would have been 0.
    #[inline]
    fn reaching_zero(self, change: f64, first: f64) -> Self {
        Self {
            to_start: self.to_zero(change, first),
            ..self
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

    fn assert_as_window_by_window(t: &[i64], v: &[f64], spec: &WindowSpec, steps: Steps, before: usize) {
        let all = Samples {
            t,
            v,
            ..Samples::default()
        };
        let mut work = Work::new(&Uninterrupted, &Memory::new(usize::MAX));
        let other: Vec<i64> = t.iter().map(|t| t ^ 1).collect();
        let other = Samples { t: &other, ..all };
        for function in [FunctionId::Rate, FunctionId::Increase, FunctionId::Delta] {
            let kind = RateKind::of(function).unwrap();
            let mut found = (Found::default(), Reaches::default());
            let mut out = vec![f64::MAX; steps.count()];
            // Series before it, at the same times or at others, leave no trace.
            for before in [other, all, other, all].into_iter().take(before) {
                let (found, reaches) = (&mut found.0, &mut found.1);
                slide_plain(before, (spec, steps), kind, (found, reaches), &mut out, &mut work).unwrap();
            }
            out.fill(f64::MAX);
            let found = (&mut found.0, &mut found.1);
            let weight = slide_plain(all, (spec, steps), kind, found, &mut out, &mut work).unwrap();
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
            before in 0usize..4,
        ) {
            let times = gaps.iter().scan(begin, |t, gap| { *t = t.checked_add(*gap)?; Some(*t) });
            let t: Vec<i64> = times.collect();
            let from = begin.saturating_add(from);
            let steps = Steps::range(from, from.saturating_add(step * (count - 1)), step);
            assert_as_window_by_window(&t, &v[..t.len()], &spec(range_ms, offset_ms, at), steps, before);
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
        let found = (&mut Found::default(), &mut Reaches::default());
        slide_plain(
            all,
            (&spec(4_000, 0, None), steps),
            kind,
            found,
            &mut out,
            &mut work,
        )
        .is_err()
    }

    #[test]
    fn i12_sliding_can_be_stopped_by_resets_and_by_windows() {
        let resetting: Vec<f64> = (0..4_000).map(|i| f64::from(i % 2)).collect();
        assert!(stops(&resetting, 4_000));
        assert!(stops(&[1.0, 2.0], 100_000) && !stops(&[1.0, 2.0], 4_000));
    }
}
