//! Where the windows of all steps begin and end among the samples of a series.

use std::ops::Range;
use std::sync::Arc;

use super::matrix::{WindowSpec, WindowTimes};
use crate::error::QueryError;
use crate::memory::{Lease, Memory};
use crate::steps::Steps;

/// A place among ascending times that only ever moves forward.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor {
    at: usize,
    stride: usize,
}

impl Cursor {
    /// How many times are not after `bound`, which must not be less than it was before.
    #[inline]
    pub(super) fn advance(&mut self, t: &[i64], bound: i64) -> usize {
        let from = self.at;
        // Regular samples are passed in equal numbers from step to step, so that the first guess is mostly right.
        let mut at = from.saturating_add(self.stride).min(t.len());
        while at > from && t.get(at - 1).is_some_and(|&t| t > bound) {
            at -= 1;
        }
        while t.get(at).is_some_and(|&t| t <= bound) {
            at += 1;
        }
        (self.at, self.stride) = (at, at - from);
        at
    }
}

impl Cursor {
    /// Advances to one bound after the other.
    #[inline]
    fn fill(&mut self, t: &[i64], bounds: impl Iterator<Item = i64>, found: &mut [usize]) {
        let mut cursor = *self;
        for (found, bound) in found.iter_mut().zip(bounds) {
            *found = cursor.advance(t, bound);
        }
        *self = cursor;
    }
}

/// The windows of all steps in time.
#[derive(Clone, Copy, Debug)]
pub(super) struct WindowSteps<'a> {
    spec: &'a WindowSpec,
    steps: Steps,
    /// The first window and how far each lies behind the one before; `None` if time ends among them.
    regular: Option<(WindowTimes, i64)>,
}

impl<'a> WindowSteps<'a> {
    pub(super) fn new(spec: &'a WindowSpec, steps: Steps) -> Self {
        let (first, last) = (spec.at(steps.start()), spec.at(steps.end()));
        let stride = if spec.at.is_some() { 0 } else { steps.interval() };
        let regular = i64::try_from(steps.count().saturating_sub(1))
            .ok()
            .and_then(|gaps| stride.checked_mul(gaps))
            .and_then(|far| first.checked_add(far))
            .is_some_and(|reached| reached == last);
        Self {
            spec,
            steps,
            regular: regular.then_some((first, stride)),
        }
    }

    /// The window of step `i`, which must be one of the steps.
    #[inline]
    pub(super) fn at(&self, i: usize) -> WindowTimes {
        match self.regular {
            Some((first, stride)) => {
                let far = stride.wrapping_mul(i as i64);
                WindowTimes {
                    start: first.start.wrapping_add(far),
                    end: first.end.wrapping_add(far),
                    after: first.after.wrapping_add(far),
                    until: first.until.wrapping_add(far),
                }
            }
            None => self.spec.at(self.steps.at(i)),
        }
    }
}

/// Times up to here are so near to each other that no difference overflows.
const NEAR_MS: i64 = 1 << 61;

impl WindowSteps<'_> {
    /// Whether the distances between any of some ascending times and the windows' edges are their differences.
    pub(super) fn are_near(&self, t: &[i64]) -> bool {
        let is_near = |t: i64| (-NEAR_MS..=NEAR_MS).contains(&t);
        let (first, last) = (self.spec.at(self.steps.start()), self.spec.at(self.steps.end()));
        self.regular.is_some()
            && [first.start, first.end, last.start, last.end]
                .into_iter()
                .all(is_near)
            && t.first().into_iter().chain(t.last()).all(|&t| is_near(t))
    }
}

impl WindowTimes {
    fn checked_add(self, far: i64) -> Option<Self> {
        Some(Self {
            start: self.start.checked_add(far)?,
            end: self.end.checked_add(far)?,
            after: self.after.checked_add(far)?,
            until: self.until.checked_add(far)?,
        })
    }
}

/// The floats in each window: the number of the first one and the number behind the last.
#[derive(Debug)]
pub(super) struct Bounds<'a> {
    t: &'a [i64],
    lo: Cursor,
    hi: Cursor,
    /// How many floats all windows hold together.
    seen: usize,
    /// The most that one window holds.
    widest: usize,
}

impl<'a> Bounds<'a> {
    pub(super) fn new(t: &'a [i64]) -> Self {
        Self {
            t,
            lo: Cursor::default(),
            hi: Cursor::default(),
            seen: 0,
            widest: 0,
        }
    }

    /// The floats in `(after, until]`; neither may be less than before.
    #[inline]
    pub(super) fn advance(&mut self, after: i64, until: i64) -> (usize, usize) {
        let lo = self.lo.advance(self.t, after);
        let hi = self.hi.advance(self.t, until).max(lo);
        self.seen += hi - lo;
        self.widest = self.widest.max(hi - lo);
        (lo, hi)
    }
}

/// How many windows are found at a time.
pub(super) const BLOCK: usize = 32;

/// Up to so many steps, and so many times, are windows kept for the next series: more is not found that often.
const KEPT_STEPS_MAX: usize = 1 << 12;
/// See [`KEPT_STEPS_MAX`].
const KEPT_TIMES_MAX: usize = 1 << 15;

/// Where the windows of some consecutive steps begin and end.
#[derive(Debug)]
struct Block {
    lo: [usize; BLOCK],
    hi: [usize; BLOCK],
    alike: bool,
    /// How many floats all windows up to here hold together, and the most that one does.
    weight: (usize, usize),
}

impl Block {
    const EMPTY: Self = Self {
        lo: [0; BLOCK],
        hi: [0; BLOCK],
        alike: false,
        weight: (0, 0),
    };
}

/// The windows of one series, for the next: the series of one target are mostly scraped at the same times, so that their
/// windows begin and end in the same places. For one selector or function at some steps.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The times they were found among; none while they are not all found.
    t: Vec<i64>,
    /// All of them, or the last.
    blocks: Vec<Block>,
    /// How often they were found anew.
    finds: u64,
    lease: Lease,
}

impl Found {
    /// None yet; their memory is a query's.
    pub(super) fn of(memory: &Arc<Memory>) -> Self {
        Self {
            lease: Lease::of(memory),
            ..Self::default()
        }
    }

    /// Starts anew, unless those of series at times `t` are here. Whether those found now are to be kept.
    fn start(&mut self, t: &[i64], steps: usize) -> Result<bool, QueryError> {
        self.finds += 1;
        self.t.clear();
        self.blocks.clear();
        let keep = (BLOCK..=KEPT_STEPS_MAX).contains(&steps) && t.len() <= KEPT_TIMES_MAX;
        if keep {
            let blocks = steps.div_ceil(BLOCK);
            self.lease.cover(blocks * size_of::<Block>() + size_of_val(t))?;
            self.blocks.reserve_exact(blocks);
            self.t.reserve_exact(t.len());
        }
        Ok(keep)
    }
}

/// The floats in the windows of all steps, a block of steps at a time.
#[derive(Debug)]
pub(super) struct Blocks<'a> {
    bounds: Bounds<'a>,
    windows: WindowSteps<'a>,
    pace: Option<Pace>,
    found: &'a mut Found,
    /// Whether the windows are found already.
    known: bool,
    keep: bool,
    /// The number of the next step.
    next: usize,
    /// The number of the block found last.
    block: usize,
}

impl<'a> Blocks<'a> {
    /// For floats at these times; nothing is found yet, but what was `found` for the series before.
    pub(super) fn new(
        t: &'a [i64],
        spec: &'a WindowSpec,
        steps: Steps,
        found: &'a mut Found,
    ) -> Result<Self, QueryError> {
        let windows = WindowSteps::new(spec, steps);
        let known = !t.is_empty() && found.t == t;
        let keep = !known && found.start(t, steps.count())?;
        let pace = if !known && steps.count() >= BLOCK {
            windows.regular.and_then(|(_, stride)| Pace::of(t, stride))
        } else {
            None
        };
        Ok(Self {
            bounds: Bounds::new(t),
            windows,
            pace,
            found,
            known,
            keep,
            next: 0,
            block: 0,
        })
    }

    /// Finds the floats of the next `len` windows, [`BLOCK`] but for the last; gives the number of their first step.
    #[inline]
    pub(super) fn advance(&mut self, len: usize) -> usize {
        let first = self.next;
        self.next = first.saturating_add(len);
        if self.known {
            self.block = first / BLOCK;
            return first;
        }
        if self.keep || self.found.blocks.is_empty() {
            self.found.blocks.push(Block::EMPTY);
        }
        self.block = self.found.blocks.len().saturating_sub(1);
        if let Some(block) = self.found.blocks.last_mut() {
            self.bounds
                .find(self.windows, first..self.next, self.pace.as_mut(), block);
        }
        if self.keep && self.next >= self.windows.steps.count() {
            self.found.t.extend_from_slice(self.bounds.t);
        }
        first
    }

    /// The windows in time.
    pub(super) fn windows(&self) -> WindowSteps<'a> {
        self.windows
    }

    /// How often windows were found: while it stays the same, they do.
    pub(super) fn finds(&self) -> u64 {
        self.found.finds
    }

    /// Whether what is found is there for the next series, too.
    pub(super) fn are_kept(&self) -> bool {
        self.known || self.keep
    }

    fn current(&self) -> &Block {
        self.found.blocks.get(self.block).unwrap_or(&Block::EMPTY)
    }

    /// Whether all windows of the block lie the same way around their floats.
    pub(super) fn alike(&self) -> bool {
        self.current().alike
    }

    /// The first float and the one behind the last of each window found last.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, usize)> {
        let Block { lo, hi, .. } = self.current();
        lo.iter().copied().zip(hi.iter().copied())
    }

    /// How many floats all windows found so far hold together, and the most that one does.
    pub(super) fn weight(&self) -> (usize, usize) {
        self.current().weight
    }
}

impl Bounds<'_> {
    /// Finds the floats of the windows of a block of steps.
    fn find(
        &mut self,
        windows: WindowSteps<'_>,
        steps: Range<usize>,
        pace: Option<&mut Pace>,
        block: &mut Block,
    ) {
        let times = windows.at(steps.start);
        let (lo, hi) = self.advance(times.after, times.until);
        let rest = steps.len().saturating_sub(1);
        let stride = pace.and_then(|pace| pace.holds(lo, hi, rest));
        block.alike = stride.is_some();
        if let Some(stride) = stride {
            let slots = block.lo.iter_mut().zip(&mut block.hi);
            slots.fold((lo, hi), |at, slot| {
                (*slot.0, *slot.1) = at;
                (at.0.wrapping_add(stride), at.1.wrapping_add(stride))
            });
            self.skip(rest, stride);
        } else {
            let ([lo_first, lo_rest @ ..], [hi_first, hi_rest @ ..]) = (&mut block.lo, &mut block.hi);
            (*lo_first, *hi_first) = (lo, hi);
            let steps = steps.start.saturating_add(1)..steps.end;
            self.fill(windows, steps, lo_rest, hi_rest);
        }
        block.weight = (self.seen, self.widest);
    }

    /// Finds the floats of the windows of some steps.
    fn fill(&mut self, windows: WindowSteps<'_>, steps: Range<usize>, lo: &mut [usize], hi: &mut [usize]) {
        self.lo
            .fill(self.t, steps.clone().map(|i| windows.at(i).after), lo);
        self.hi
            .fill(self.t, steps.clone().map(|i| windows.at(i).until), hi);
        for (lo, hi) in lo.iter().zip(hi).take(steps.len()) {
            *hi = (*lo).max(*hi);
            self.seen += *hi - lo;
            self.widest = self.widest.max(*hi - lo);
        }
    }

    /// Moves over windows that each begin and end `stride` floats behind the one before.
    fn skip(&mut self, windows: usize, stride: usize) {
        let width = self.hi.at - self.lo.at;
        self.seen += windows * width;
        for cursor in [&mut self.lo, &mut self.hi] {
            cursor.at += windows * stride;
            cursor.stride = stride;
        }
    }
}

/// Times that are equally far apart, but for some.
#[derive(Debug)]
struct Pace {
    /// How many times one step passes.
    stride: usize,
    /// The numbers of the times that are not where the one before makes expect them.
    breaks: Vec<usize>,
    /// The first break that windows have not passed.
    next: usize,
}

/// How many times are looked through for a break in the pace at a time.
const PACE_BLOCK: usize = 64;

impl Pace {
    /// The pace of some times if there is one, and a step of `step_ms` passes a whole number of them.
    fn of(t: &[i64], step_ms: i64) -> Option<Self> {
        let middle = t.len() / 2;
        let gap = t.get(middle)?.wrapping_sub(*t.get(middle.checked_sub(1)?)?);
        if gap <= 0 || step_ms % gap != 0 {
            return None;
        }
        let mut breaks = Vec::new();
        let (befores, afters) = (t.chunks(PACE_BLOCK), t.get(1..)?.chunks(PACE_BLOCK));
        for (block, (before, after)) in befores.zip(afters).enumerate() {
            let pairs = || before.iter().zip(after);
            let off = |before: &i64, after: &i64| after.wrapping_sub(*before) ^ gap;
            if pairs().fold(0, |any, (before, after)| any | off(before, after)) == 0 {
                continue;
            }
            let first = block * PACE_BLOCK + 1;
            let found = pairs().enumerate().filter(|(_, (b, a))| off(b, a) != 0);
            breaks.extend(found.map(|(i, _)| first + i));
            // With so many breaks hardly any block of windows is free of them.
            if breaks.len() > 4 + first / PACE_BLOCK {
                return None;
            }
        }
        // Nothing is known of what comes behind the last.
        breaks.push(t.len());
        Some(Self {
            stride: usize::try_from(step_ms / gap).ok()?,
            breaks,
            next: 0,
        })
    }

    /// How many floats each of `windows` more windows lies behind the one before, where the first of all has the
    /// floats from `lo` up to `hi`; `None` unless that is the same for all.
    fn holds(&mut self, lo: usize, hi: usize, windows: usize) -> Option<usize> {
        // The times on both sides of either edge move along with it.
        let before = lo.checked_sub(1)?;
        let behind = hi.checked_add(windows.checked_mul(self.stride)?)?;
        while self.breaks.get(self.next).is_some_and(|&at| at <= before) {
            self.next += 1;
        }
        self.breaks
            .get(self.next)
            .is_none_or(|&at| at > behind)
            .then_some(self.stride)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ast::{RangeEdges, Span};

    proptest! {
        #[test]
        fn a_cursor_stands_where_a_search_ends(
            gaps in prop::collection::vec(1i64..40, 0..200),
            moves in prop::collection::vec(0i64..300, 1..60),
        ) {
            let t: Vec<i64> = gaps.iter().scan(0, |t, gap| { *t += gap; Some(*t) }).collect();
            let (mut cursor, mut bound) = (Cursor::default(), -10);
            for by in moves {
                bound += by;
                prop_assert_eq!(cursor.advance(&t, bound), t.partition_point(|&t| t <= bound));
            }
        }

        #[test]
        fn blocks_of_windows_are_found_one_by_one(
            gaps in prop::collection::vec(prop_oneof![30 => Just(15i64), 1 => 1i64..90], 0..600),
            begin in -2_000i64..2_000,
            step_ms in prop_oneof![Just(15i64), Just(30), Just(60), Just(20)],
            range_ms in prop_oneof![Just(300i64), Just(7), Just(15), Just(0)],
            at in prop::option::weighted(0.1, -100i64..3_000),
            count in 1i64..200,
        ) {
            let t: Vec<i64> = gaps.iter().scan(0, |t, gap| { *t += gap; Some(*t) }).collect();
            let spec = WindowSpec {
                range_ms,
                offset_ms: 0,
                at,
                edges: RangeEdges::Plain,
                lookback_ms: 0,
                statistics_only: false,
                span: Span::default(),
            };
            let steps = Steps::range(begin, begin + step_ms * (count - 1), step_ms);
            // Some series at the same times, and one at others.
            let later: Vec<i64> = t.iter().map(|t| t + 1).collect();
            let mut kept = Found::default();
            for t in [&t, &t, &later, &t] {
                let mut blocks = Blocks::new(t, &spec, steps, &mut kept).unwrap();
                let (mut found, mut weight) = (Vec::new(), (0, 0));
                while found.len() < steps.count() {
                    let len = (steps.count() - found.len()).min(BLOCK);
                    prop_assert_eq!(blocks.advance(len), found.len());
                    found.extend(blocks.iter().take(len));
                }
                for (i, &(lo, hi)) in found.iter().enumerate() {
                    let times = spec.at(steps.at(i));
                    let behind = |bound: i64| t.partition_point(|&t| t <= bound);
                    prop_assert_eq!((lo, hi), (behind(times.after), behind(times.until)));
                    weight = (weight.0 + hi - lo, weight.1.max(hi - lo));
                }
                prop_assert_eq!(blocks.weight(), weight);
            }
        }

        #[test]
        fn windows_are_those_of_the_steps(
            start in prop_oneof![-1_000i64..1_000, Just(i64::MIN), Just(i64::MAX - 500), any::<i64>()],
            interval in prop_oneof![1i64..100, Just(i64::MAX / 3)],
            offset_ms in prop_oneof![-100i64..100, Just(i64::MIN + 1), Just(i64::MAX)],
            range_ms in prop_oneof![0i64..1_000, Just(i64::MAX)],
            at in prop::option::of(any::<i64>()),
            count in 1i64..20,
        ) {
            let edges = RangeEdges::Smoothed;
            let (lookback_ms, statistics_only, span) = (300, false, Span::default());
            let spec = WindowSpec { range_ms, offset_ms, at, edges, lookback_ms, statistics_only, span };
            let end = start.saturating_add(interval.saturating_mul(count - 1));
            let steps = Steps::range(start, end, interval);
            let windows = WindowSteps::new(&spec, steps);
            for i in 0..steps.count() {
                prop_assert_eq!(windows.at(i), spec.at(steps.at(i)));
            }
        }
    }
}
