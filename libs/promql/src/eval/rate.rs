//! `rate`, `increase`, `delta`, `irate`, `idelta`.
//!
//! **Source:** Prometheus `promql/functions.go`: `extrapolatedRate`, `extendedRate`, `instantValue`. Bit for bit.

use super::rate_histogram;
use super::row::Point;
use super::window::{RangeTimes, Samples, StepInfo};
use crate::ast::RangeEdges;
use crate::error::QueryError;
use crate::signatures::FunctionId;

/// What is computed from the difference over a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RateKind {
    /// Drops in value are resets of a counter.
    pub(super) counter: bool,
    /// Per second rather than over the whole range.
    pub(super) per_second: bool,
}

impl RateKind {
    /// What a function of the family computes.
    pub(super) fn of(function: FunctionId) -> Option<Self> {
        let (counter, per_second) = match function {
            FunctionId::Rate => (true, true),
            FunctionId::Increase => (true, false),
            FunctionId::Delta => (false, false),
            _ => return None,
        };
        Some(Self { counter, per_second })
    }
}

pub(super) fn rate(w: Samples<'_>, s: &mut StepInfo<'_>) -> Result<Point, QueryError> {
    Ok(over_range(
        w,
        s,
        RateKind {
            counter: true,
            per_second: true,
        },
    ))
}

pub(super) fn increase(w: Samples<'_>, s: &mut StepInfo<'_>) -> Result<Point, QueryError> {
    Ok(over_range(
        w,
        s,
        RateKind {
            counter: true,
            per_second: false,
        },
    ))
}

pub(super) fn delta(w: Samples<'_>, s: &mut StepInfo<'_>) -> Result<Point, QueryError> {
    Ok(over_range(
        w,
        s,
        RateKind {
            counter: false,
            per_second: false,
        },
    ))
}

fn over_range(w: Samples<'_>, s: &mut StepInfo<'_>, kind: RateKind) -> Point {
    if w.is_mixed() {
        s.mixed();
        return Point::Absent;
    }
    match (s.edges == RangeEdges::Plain, w.ht.is_empty()) {
        (true, true) => extrapolated(w, s, kind),
        (true, false) => rate_histogram::extrapolated(w, s, kind),
        (false, true) => between_edges(w, s, kind).map_or(Point::Absent, Point::Float),
        (false, false) => rate_histogram::between_edges(w, s, kind),
    }
}

fn extrapolated(w: Samples<'_>, s: &mut StepInfo<'_>, kind: RateKind) -> Point {
    let (Some(&first), Some(&last)) = (w.v.first(), w.v.last()) else {
        return Point::Absent;
    };
    let mut change = last - first;
    if kind.counter {
        change = corrected_for_resets(change, w, s);
    }
    let from_start = kind.counter && starts_inside(w.start_of(0), w.t, s);
    if from_start {
        change += first;
    }
    let zero_point = (kind.counter && change > 0.0 && first >= 0.0).then(|| first / change);
    match extrapolation_factor(
        w.t,
        from_start.then(|| w.start_of(0)),
        zero_point,
        s.range(),
        kind,
    ) {
        Some(factor) => Point::Float(change * factor),
        None => Point::Absent,
    }
}

/// Adds to `change` what the counter had counted whenever it began anew, one reset after the other: the order of the
/// additions is part of the result.
fn corrected_for_resets(mut change: f64, w: Samples<'_>, s: &mut StepInfo<'_>) -> f64 {
    if w.st.is_empty() {
        for pair in w.v.windows(2) {
            if let [before, after] = pair
                && after < before
            {
                change += before;
            }
        }
        return change;
    }
    let mut overlapped = false;
    for i in 1..w.v.len() {
        let (Some(&before), Some(&after)) = (w.v.get(i - 1), w.v.get(i)) else {
            break;
        };
        let (Some(&t_before), Some(&t)) = (w.t.get(i - 1), w.t.get(i)) else {
            break;
        };
        let (start_before, start) = (w.start_of(i - 1), w.start_of(i));
        if !overlapped && starts_overlap(start_before, t_before, start) {
            s.annotations.start_time_overlap(s.labels.metric_name(), s.span);
            overlapped = true;
        }
        if after < before || is_start_reset(start_before, t_before, start, t) {
            change += before;
        }
    }
    change
}

/// Whether the first sample's start timestamp lies inside the range, so that the series is known to begin there at 0.
pub(super) fn starts_inside(start: i64, t: &[i64], s: &StepInfo<'_>) -> bool {
    start != 0 && start > s.start && t.first().is_some_and(|&first| start < first)
}

/// By what a change between the first and the last sample is multiplied to make it one over the range, or per second.
///
/// `known_start`: the series' begin, if it lies in the range. `zero_point`: how far back from the first sample, as a
/// fraction of the sampled interval, a counter would have been 0. `None`: too few samples.
pub(super) fn extrapolation_factor(
    t: &[i64],
    known_start: Option<i64>,
    zero_point: Option<f64>,
    range: RangeTimes,
    kind: RateKind,
) -> Option<f64> {
    let (&first, &last) = (t.first()?, t.last()?);
    let gaps = (t.len() - 1) as f64;
    factor(
        Sampled { first, last, gaps },
        known_start,
        zero_point,
        range,
        kind,
    )
}

/// What was sampled of a range.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sampled {
    /// From when…
    pub(super) first: i64,
    /// …to when.
    pub(super) last: i64,
    /// How many gaps there are between its samples.
    pub(super) gaps: f64,
}

/// As [`extrapolation_factor`], of a range whose samples are not all there.
pub(super) fn factor_of(
    sampled: Sampled,
    zero_point: Option<f64>,
    range: RangeTimes,
    kind: RateKind,
) -> Option<f64> {
    if sampled.last <= sampled.first {
        return None;
    }
    // Where less than two samples are taken to lie in the range there still is a change between them.
    let gaps = sampled.gaps.max(f64::MIN_POSITIVE);
    factor(Sampled { gaps, ..sampled }, None, zero_point, range, kind)
}

fn factor(
    Sampled { first, last, gaps }: Sampled,
    known_start: Option<i64>,
    zero_point: Option<f64>,
    range: RangeTimes,
    kind: RateKind,
) -> Option<f64> {
    let mut to_start = first.saturating_sub(range.start) as f64 / 1000.0;
    let mut to_end = range.end.saturating_sub(last) as f64 / 1000.0;
    let mut sampled = last.saturating_sub(first) as f64 / 1000.0;
    let average_gap = if gaps > 0.0 { sampled / gaps } else { 0.0 };
    // A gap this much longer than usual means that the series begins or ends within the range.
    let threshold = average_gap * 1.1;
    if let Some(start) = known_start {
        to_start = 0.0;
        sampled = last.saturating_sub(start) as f64 / 1000.0;
    } else if gaps <= 0.0 {
        return None;
    } else {
        if to_start >= threshold {
            to_start = average_gap / 2.0;
        }
        if let Some(fraction) = zero_point {
            let to_zero = sampled * fraction;
            if to_zero < to_start {
                to_start = to_zero;
            }
        }
    }
    if to_end >= threshold {
        to_end = average_gap / 2.0;
    }
    let mut factor = 1.0;
    if sampled != 0.0 {
        factor = (sampled + to_start + to_end) / sampled;
    }
    if kind.per_second {
        factor /= range.seconds;
    }
    Some(factor)
}

/// Whether a sample's start timestamp shows that its counter began anew after the sample before.
pub(super) fn is_start_reset(start_before: i64, t_before: i64, start: i64, t: i64) -> bool {
    if start == 0 || start >= t || start < t_before {
        return false;
    }
    if start > t_before {
        return true;
    }
    // It begins right at the sample before: so do delta series, and cumulative ones that do not know their begin, which
    // then was not known before either.
    start_before <= t_before && start_before != 0 && start_before != t_before
}

/// Whether a sample claims to have begun before the sample before it was taken, but not together with it.
pub(super) fn starts_overlap(start_before: i64, t_before: i64, start: i64) -> bool {
    start != 0 && start < t_before && start != start_before
}

/// The value at `t` on the line through two samples. A counter that was reset between them started from 0.
pub(super) fn interpolate(before: (i64, f64), after: (i64, f64), t: i64, counter: bool) -> f64 {
    let from = if counter && after.1 < before.1 {
        0.0
    } else {
        before.1
    };
    from + (after.1 - from) * t.saturating_sub(before.0) as f64 / after.0.saturating_sub(before.0) as f64
}

/// The first and last sample that matter for a range with extended edges: the last one at or before its start (or the
/// first one after), and the first one at or after its end if edges are smoothed (or the last one).
pub(super) fn edge_samples(t: &[i64], start: i64, end: i64, edges: RangeEdges) -> (usize, usize) {
    let last = t.len().saturating_sub(1);
    let inner = t.get(..last).unwrap_or_default();
    let first = inner.partition_point(|&t| t <= start).saturating_sub(1);
    let last = if edges == RangeEdges::Smoothed {
        inner.partition_point(|&t| t < end)
    } else {
        last
    };
    (first, last)
}

/// The values at both edges and the samples strictly between them, or `None` if no sample lies in the range.
struct Edges<'a> {
    left: f64,
    right: f64,
    inner: std::ops::Range<usize>,
    samples: Samples<'a>,
}

fn edges<'a>(
    w: Samples<'a>,
    (start, end): (i64, i64),
    edges: RangeEdges,
    counter: bool,
) -> Option<Edges<'a>> {
    let (first, last) = edge_samples(w.t, start, end, edges);
    let sample = |i: usize| Some((*w.t.get(i)?, *w.v.get(i)?));
    let (f, l) = (sample(first)?, sample(last)?);
    let smoothed = edges == RangeEdges::Smoothed;
    if l.0 <= start || (smoothed && f.0 > end) {
        return None;
    }
    let left = match sample(first + 1) {
        Some(next) if smoothed && f.0 < start => interpolate(f, next, start, counter),
        _ => f.1,
    };
    let right = match last.checked_sub(1).and_then(sample) {
        Some(before) if smoothed && l.0 > end => interpolate(before, l, end, counter),
        _ => l.1,
    };
    let inner_first = if f.0 <= start { first + 1 } else { first };
    let inner_end = if l.0 >= end { last } else { last + 1 };
    Some(Edges {
        left,
        right,
        inner: inner_first..inner_end.max(inner_first),
        samples: w,
    })
}

fn between_edges(w: Samples<'_>, s: &StepInfo<'_>, kind: RateKind) -> Option<f64> {
    let e = edges(w, (s.start, s.end), s.edges, kind.counter)?;
    let mut change = e.right - e.left;
    if kind.counter {
        let mut lost = 0.0;
        let mut before = e.left;
        let inner = e.samples.v.get(e.inner).unwrap_or_default();
        for &v in inner.iter().chain([&e.right]) {
            if v < before {
                lost += before;
            }
            before = v;
        }
        change += lost;
    }
    Some(if kind.per_second {
        change / s.range_seconds()
    } else {
        change
    })
}

/// The samples of a range with one at each edge, as an extended range selector itself returns them.
pub(super) fn extend_to_edges(
    w: Samples<'_>,
    start: i64,
    end: i64,
    kind: RangeEdges,
) -> (Vec<i64>, Vec<f64>) {
    let Some(e) = edges(w, (start, end), kind, false) else {
        return Default::default();
    };
    let (mut t, mut v) = (vec![start], vec![e.left]);
    t.extend_from_slice(w.t.get(e.inner.clone()).unwrap_or_default());
    v.extend_from_slice(w.v.get(e.inner).unwrap_or_default());
    t.push(end);
    v.push(e.right);
    (t, v)
}

/// One of the last two samples of a window, of either kind.
#[derive(Clone, Copy)]
pub(super) struct Last<'a> {
    pub(super) t: i64,
    pub(super) start: i64,
    pub(super) v: f64,
    pub(super) h: Option<&'a koios_model::Histogram>,
}

/// The last two samples, the older one first.
pub(super) fn last_two<'a>(w: Samples<'a>) -> Option<(Last<'a>, Last<'a>)> {
    if w.ht.is_empty() {
        let sample = |i: usize| {
            Some(Last {
                t: *w.t.get(i)?,
                start: w.start_of(i),
                v: *w.v.get(i)?,
                h: None,
            })
        };
        let newest = w.t.len().checked_sub(1)?;
        return Some((sample(newest.checked_sub(1)?)?, sample(newest)?));
    }
    let floats = (w.t.len().saturating_sub(2)..w.t.len()).filter_map(|i| {
        Some(Last {
            t: *w.t.get(i)?,
            start: w.start_of(i),
            v: *w.v.get(i)?,
            h: None,
        })
    });
    let histograms = (w.ht.len().saturating_sub(2)..w.ht.len()).filter_map(|i| {
        let start = w.histogram_start_of(i);
        Some(Last {
            t: *w.ht.get(i)?,
            start,
            v: 0.0,
            h: Some(w.h.get(i)?.as_ref()),
        })
    });
    let mut all: Vec<Last<'a>> = floats.chain(histograms).collect();
    all.sort_by_key(|l| l.t);
    let newest = all.pop()?;
    Some((all.pop()?, newest))
}

pub(super) fn irate(w: Samples<'_>, s: &mut StepInfo<'_>) -> Result<Point, QueryError> {
    Ok(between_last_two(w, s, true))
}

pub(super) fn idelta(w: Samples<'_>, s: &mut StepInfo<'_>) -> Result<Point, QueryError> {
    Ok(between_last_two(w, s, false))
}

fn between_last_two(w: Samples<'_>, s: &mut StepInfo<'_>, counter: bool) -> Point {
    let Some((before, after)) = last_two(w) else {
        return Point::Absent;
    };
    let gap_ms = after.t.saturating_sub(before.t);
    if gap_ms == 0 {
        return Point::Absent;
    }
    let seconds = counter.then(|| gap_ms as f64 / 1000.0);
    let reset = counter && is_start_reset(before.start, before.t, after.start, after.t);
    match (before.h, after.h) {
        (None, None) => {
            let fell = counter && after.v < before.v;
            let change = if fell || reset {
                after.v
            } else {
                after.v - before.v
            };
            Point::Float(seconds.map_or(change, |s| change / s))
        }
        (Some(b), Some(a)) => rate_histogram::between(b, a, reset, seconds, s),
        _ => {
            s.mixed();
            Point::Absent
        }
    }
}

#[cfg(test)]
mod tests {
    use koios_model::Labels;

    use super::*;
    use crate::annotations::Annotations;
    use crate::ast::Span;
    use crate::context::Uninterrupted;

    fn run(
        f: super::super::range_call::Kernel,
        t: &[i64],
        v: &[f64],
        st: &[i64],
        range: (i64, i64),
    ) -> Option<f64> {
        let mut annotations = Annotations::default();
        let labels = Labels::empty();
        let mut info = StepInfo {
            at: range.1,
            start: range.0,
            end: range.1,
            range_ms: range.1 - range.0,
            edges: RangeEdges::Plain,
            params: [0.0; 2],
            labels: &labels,
            span: Span::default(),
            first_span: Span::default(),
            annotations: &mut annotations,
            ctx: &Uninterrupted,
        };
        match f(
            Samples {
                t,
                v,
                st,
                ..Samples::default()
            },
            &mut info,
        ) {
            Ok(Point::Float(v)) => Some(v),
            _ => None,
        }
    }

    #[test]
    fn increase_extrapolates_to_edges_that_are_near_and_by_half_a_gap_otherwise() {
        let near = run(
            increase,
            &[10_000, 20_000, 30_000],
            &[1e6, 1e6 + 10.0, 1e6 + 20.0],
            &[],
            (0, 40_000),
        );
        assert_eq!(near, Some(40.0));
        let far = run(
            increase,
            &[100_000, 110_000],
            &[1e6, 1e6 + 10.0],
            &[],
            (0, 200_000),
        );
        assert_eq!(far, Some(20.0));
    }

    #[test]
    fn a_counter_is_not_extrapolated_below_zero() {
        let v = run(increase, &[10_000, 20_000], &[5.0, 15.0], &[], (0, 20_000));
        assert_eq!(v, Some(15.0));
    }

    #[test]
    fn drops_and_newer_start_timestamps_are_resets() {
        assert_eq!(run(irate, &[0, 10_000], &[8.0, 4.0], &[], (0, 10_000)), Some(0.4));
        assert_eq!(
            run(irate, &[10, 10_010], &[8.0, 10.0], &[1, 20], (0, 10_010)),
            Some(1.0)
        );
        assert_eq!(
            run(idelta, &[0, 10_000], &[8.0, 4.0], &[], (0, 10_000)),
            Some(-4.0)
        );
    }

    #[test]
    fn one_sample_is_enough_if_its_series_begins_in_the_range() {
        assert_eq!(run(increase, &[30_000], &[7.0], &[], (0, 30_000)), None);
        assert_eq!(
            run(increase, &[30_000], &[7.0], &[10_000], (0, 30_000)),
            Some(7.0)
        );
    }

    #[test]
    fn edges_are_anchored_at_the_sample_before_or_interpolated() {
        let w = Samples {
            t: &[5, 15, 25],
            v: &[1.0, 2.0, 4.0],
            ..Samples::default()
        };
        let (t, v) = extend_to_edges(w, 10, 20, RangeEdges::Smoothed);
        assert_eq!((t, v), (vec![10, 15, 20], vec![1.5, 2.0, 3.0]));
        let (t, v) = extend_to_edges(w, 10, 30, RangeEdges::Anchored);
        assert_eq!((t, v), (vec![10, 15, 25, 30], vec![1.0, 2.0, 4.0, 4.0]));
    }
}
