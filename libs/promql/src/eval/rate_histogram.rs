//! The rate family, `changes` and `resets` over native histograms.
//!
//! **Source:** Prometheus `promql/functions.go`: `histogramRate`, `extendedHistogramRate`, `interpolateHistograms`.

use std::sync::Arc;

use koios_model::{Histogram, ResetHint};

use super::downsampled;
use super::rate::{
    RateKind, Sampled, edge_samples, extrapolation_factor, factor_of, is_start_reset, starts_inside,
    starts_overlap,
};
use super::row::Point;
use super::window::{Samples, StepInfo};
use crate::annotations::{Annotations, HistogramOperation};
use crate::ast::{RangeEdges, Span};
use crate::histogram::{self, Incompatible, is_reset, uses_custom_buckets};

fn add_noted(
    h: &mut Histogram,
    other: &Histogram,
    annotations: &mut Annotations,
    span: Span,
) -> Result<(), Incompatible> {
    if histogram::add(h, other)?.bounds {
        annotations.mismatched_custom_buckets(HistogramOperation::Addition, span);
    }
    Ok(())
}

fn sub_noted(
    h: &mut Histogram,
    other: &Histogram,
    annotations: &mut Annotations,
    span: Span,
) -> Result<(), Incompatible> {
    if histogram::sub(h, other)?.bounds {
        annotations.mismatched_custom_buckets(HistogramOperation::Subtraction, span);
    }
    Ok(())
}

/// The point, or none with an annotation.
fn point_or_incompatible(result: Result<Option<Histogram>, Incompatible>, s: &mut StepInfo<'_>) -> Point {
    match result {
        Ok(Some(h)) => Point::Histogram(Arc::new(h)),
        Ok(None) => Point::Absent,
        Err(Incompatible) => {
            s.incompatible();
            Point::Absent
        }
    }
}

pub(super) fn extrapolated(w: Samples<'_>, s: &mut StepInfo<'_>, kind: RateKind) -> Point {
    let result = extrapolated_rate(w, s, kind);
    point_or_incompatible(result, s)
}

fn extrapolated_rate(
    w: Samples<'_>,
    s: &mut StepInfo<'_>,
    kind: RateKind,
) -> Result<Option<Histogram>, Incompatible> {
    let Some(first) = w.h.first() else { return Ok(None) };
    let mut result = if w.h.len() > 1 {
        Some(change(w, s, kind)?)
    } else {
        None
    };
    let from_start = kind.counter && starts_inside(w.histogram_start_of(0), w.ht, s);
    if from_start {
        match &mut result {
            Some(h) => add_noted(h, first, s.annotations, s.span)?,
            None => result = Some(Histogram::clone(first)),
        }
    }
    let Some(mut result) = result else { return Ok(None) };
    let zero_point =
        (kind.counter && result.count > 0.0 && first.count >= 0.0).then(|| first.count / result.count);
    let start = from_start.then(|| w.histogram_start_of(0));
    let factor = match (w.runs.is_empty(), w.ht.first().zip(w.ht.last())) {
        (false, Some((&first, &last))) if start.is_none() => {
            let gaps = downsampled::histogram_gaps(w, s);
            factor_of(Sampled { first, last, gaps }, zero_point, s.range(), kind)
        }
        _ => extrapolation_factor(w.ht, start, zero_point, s.range(), kind),
    };
    let Some(factor) = factor else { return Ok(None) };
    histogram::scale(&mut result, factor);
    Ok(Some(result))
}

/// The difference between the last and the first histogram, corrected for resets.
fn change(w: Samples<'_>, s: &mut StepInfo<'_>, kind: RateKind) -> Result<Histogram, Incompatible> {
    let (Some(first), Some(last), Some(second)) = (w.h.first(), w.h.last(), w.h.get(1)) else {
        return Err(Incompatible);
    };
    let name = s.labels.metric_name();
    let gauge = |h: &Histogram| h.reset_hint == ResetHint::Gauge;
    if kind.counter && w.h.iter().any(|h| gauge(h)) {
        s.annotations.histogram_not_counter(name, s.span);
    }
    // What was counted before a reset right after the first sample does not matter, nor does its bucket layout.
    let empty;
    let mut before: &Histogram = first;
    if kind.counter && (started_anew(w, 1) || is_reset(second, first)) {
        let (schema, custom_bounds) = (second.schema, second.custom_bounds.clone());
        empty = Histogram {
            schema,
            custom_bounds,
            ..Histogram::default()
        };
        before = &empty;
    }
    let custom = uses_custom_buckets(before);
    let mut schema = before.schema.min(last.schema);
    if uses_custom_buckets(last) != custom {
        return Err(Incompatible);
    }
    let inner = w.h.get(1..w.h.len() - 1).unwrap_or_default();
    for h in inner.iter().filter(|_| kind.counter) {
        if uses_custom_buckets(h) != custom {
            return Err(Incompatible);
        }
        schema = schema.min(h.schema);
    }
    let mut result = histogram::reduced(last, schema);
    sub_noted(&mut result, before, s.annotations, s.span)?;
    if kind.counter {
        add_resets(&mut result, before, w, s)?;
    } else if !gauge(first) || !gauge(last) {
        s.annotations.histogram_not_gauge(name, s.span);
    }
    result.reset_hint = ResetHint::Gauge;
    result.compact();
    Ok(result)
}

/// Whether start timestamps tell that histogram `i` began after the one before it.
fn started_anew(w: Samples<'_>, i: usize) -> bool {
    w.ht.get(i - 1).zip(w.ht.get(i)).is_some_and(|(&before, &now)| {
        is_start_reset(w.histogram_start_of(i - 1), before, w.histogram_start_of(i), now)
    })
}

/// Adds what had been counted before each reset.
fn add_resets<'h>(
    result: &mut Histogram,
    mut before: &'h Histogram,
    w: Samples<'h>,
    s: &mut StepInfo<'_>,
) -> Result<(), Incompatible> {
    let mut overlapped = w.hst.is_empty();
    for (i, h) in w.h.iter().enumerate().skip(1) {
        let t_before = w.ht.get(i - 1).copied().unwrap_or_default();
        if !overlapped && starts_overlap(w.histogram_start_of(i - 1), t_before, w.histogram_start_of(i)) {
            s.annotations.start_time_overlap(s.labels.metric_name(), s.span);
            overlapped = true;
        }
        if started_anew(w, i) || is_reset(h, before) {
            add_noted(result, before, s.annotations, s.span)?;
        }
        before = h;
    }
    Ok(())
}

/// The histogram at `t` between two; `None` if they do not go together.
pub(super) fn interpolate_histograms(
    pair: [(i64, &Histogram); 2],
    t: i64,
    counter: bool,
    span: Span,
    annotations: &mut Annotations,
) -> Option<Histogram> {
    interpolated(pair, t, counter, span, annotations).ok()
}

fn interpolated(
    [(t1, h1), (t2, h2)]: [(i64, &Histogram); 2],
    t: i64,
    counter: bool,
    span: Span,
    annotations: &mut Annotations,
) -> Result<Histogram, Incompatible> {
    if t == t1 {
        return Ok(h1.clone());
    }
    let mut result = h2.clone();
    if t == t2 {
        return Ok(result);
    }
    if uses_custom_buckets(h1) != uses_custom_buckets(h2) {
        return Err(Incompatible);
    }
    let fraction = t.saturating_sub(t1) as f64 / t2.saturating_sub(t1) as f64;
    if counter && is_reset(h2, h1) {
        histogram::scale(&mut result, fraction);
        return Ok(result);
    }
    sub_noted(&mut result, h1, annotations, span)?;
    histogram::scale(&mut result, fraction);
    add_noted(&mut result, h1, annotations, span)?;
    Ok(result)
}

pub(super) fn between_edges(w: Samples<'_>, s: &mut StepInfo<'_>, kind: RateKind) -> Point {
    let result = extended_rate(w, s, kind);
    point_or_incompatible(result, s)
}

fn extended_rate(
    w: Samples<'_>,
    s: &mut StepInfo<'_>,
    kind: RateKind,
) -> Result<Option<Histogram>, Incompatible> {
    let (first, last) = edge_samples(w.ht, s.start, s.end, s.edges);
    let sample = |i: usize| Some((*w.ht.get(i)?, w.h.get(i)?.as_ref()));
    let (Some(f), Some(l)) = (sample(first), sample(last)) else {
        return Ok(None);
    };
    let smoothed = s.edges == RangeEdges::Smoothed;
    if l.0 <= s.start || (smoothed && f.0 > s.end) {
        return Ok(None);
    }
    check_range(w.h.get(first..=last).unwrap_or_default(), s, kind)?;
    let left = match sample(first + 1) {
        Some(next) if smoothed && f.0 < s.start => {
            interpolated([f, next], s.start, kind.counter, s.span, s.annotations)?
        }
        _ => f.1.clone(),
    };
    let right = match last.checked_sub(1).and_then(sample) {
        Some(before) if smoothed && l.0 > s.end => {
            interpolated([before, l], s.end, kind.counter, s.span, s.annotations)?
        }
        _ => l.1.clone(),
    };
    let gauges = [&left, &right].iter().all(|h| h.reset_hint == ResetHint::Gauge);
    if !kind.counter && !gauges {
        s.annotations.histogram_not_gauge(s.labels.metric_name(), s.span);
    }
    let mut result = right.clone();
    sub_noted(&mut result, &left, s.annotations, s.span)?;
    if kind.counter
        && let Some(lost) = lost_in_resets(w, (first, last), (&left, &right), s)?
    {
        add_noted(&mut result, &lost, s.annotations, s.span)?;
    }
    if kind.per_second {
        histogram::divide(&mut result, s.range_seconds());
    }
    result.reset_hint = ResetHint::Gauge;
    result.compact();
    Ok(Some(result))
}

/// Histograms of one range must have the same kind of buckets; gauges are no counters.
fn check_range(range: &[Arc<Histogram>], s: &mut StepInfo<'_>, kind: RateKind) -> Result<(), Incompatible> {
    let custom = range.first().is_some_and(|h| uses_custom_buckets(h));
    for h in range {
        if uses_custom_buckets(h) != custom {
            return Err(Incompatible);
        }
        if kind.counter && h.reset_hint == ResetHint::Gauge {
            s.annotations
                .histogram_not_counter(s.labels.metric_name(), s.span);
        }
    }
    Ok(())
}

/// What had been counted before the resets between the edges, without those that interpolation has dealt with.
fn lost_in_resets(
    w: Samples<'_>,
    (first, last): (usize, usize),
    (left, right): (&Histogram, &Histogram),
    s: &mut StepInfo<'_>,
) -> Result<Option<Histogram>, Incompatible> {
    let mut next = first + 1;
    let mut before = left;
    if s.edges == RangeEdges::Smoothed
        && w.ht.get(first).is_some_and(|&t| t < s.start)
        && let (Some(a), Some(b)) = (w.h.get(first), w.h.get(first + 1))
        && is_reset(b, a)
    {
        // The left edge already lies in what was counted since that reset.
        before = b;
        next += 1;
    }
    // The last sample is represented by the right edge.
    if next > last {
        return Ok(None);
    }
    let mut lost: Option<Histogram> = None;
    let inner = w.h.get(next..last).unwrap_or_default();
    for h in inner.iter().map(AsRef::as_ref).chain([right]) {
        if is_reset(h, before) {
            match &mut lost {
                Some(lost) => add_noted(lost, before, s.annotations, s.span)?,
                None => lost = Some(before.clone()),
            }
        }
        before = h;
    }
    Ok(lost)
}

/// `irate` (with `seconds`) and `idelta` of two histograms.
pub(super) fn between(
    before: &Histogram,
    after: &Histogram,
    reset: bool,
    seconds: Option<f64>,
    s: &mut StepInfo<'_>,
) -> Point {
    let name = s.labels.metric_name();
    let gauges = [before, after]
        .iter()
        .filter(|h| h.reset_hint == ResetHint::Gauge)
        .count();
    match seconds {
        Some(_) if gauges > 0 => s.annotations.histogram_not_counter(name, s.span),
        None if gauges < 2 => s.annotations.histogram_not_gauge(name, s.span),
        _ => {}
    }
    let mut result = after.clone();
    if seconds.is_none() || !(reset || is_reset(after, before)) {
        let done = sub_noted(&mut result, before, s.annotations, s.span);
        if done.is_err() {
            s.incompatible();
            return Point::Absent;
        }
    }
    result.reset_hint = ResetHint::Gauge;
    result.compact();
    if let Some(seconds) = seconds {
        histogram::divide(&mut result, seconds);
    }
    Point::Histogram(Arc::new(result))
}

/// A sample of either kind.
#[derive(Clone, Copy)]
struct Either<'a> {
    t: i64,
    start: i64,
    value: Result<f64, &'a Histogram>,
}

/// All samples in time order.
fn in_order(w: Samples<'_>) -> Vec<Either<'_>> {
    let floats = w.t.iter().zip(w.v).enumerate();
    let floats = floats.map(|(i, (&t, &v))| Either {
        t,
        start: w.start_of(i),
        value: Ok(v),
    });
    let histograms = w.ht.iter().zip(w.h).enumerate();
    let histograms = histograms.map(|(i, (&t, h))| Either {
        t,
        start: w.histogram_start_of(i),
        value: Err(h.as_ref()),
    });
    let mut all: Vec<Either<'_>> = floats.chain(histograms).collect();
    all.sort_by_key(|e| e.t);
    all
}

fn count_pairs(w: Samples<'_>, counts: impl Fn(&Either<'_>, &Either<'_>) -> bool) -> usize {
    in_order(w)
        .windows(2)
        .filter(|p| matches!(p, [a, b] if counts(a, b)))
        .count()
}

/// How often the value changes; a change of kind is one.
pub(super) fn changes(w: Samples<'_>) -> usize {
    count_pairs(w, |a, b| match (a.value, b.value) {
        (Ok(a), Ok(b)) => a != b && !(a.is_nan() && b.is_nan()),
        (Err(a), Err(b)) => !histogram::equal(b, a),
        _ => true,
    })
}

/// How often a counter begins anew; a change of kind is a reset.
pub(super) fn resets(w: Samples<'_>) -> usize {
    count_pairs(w, |a, b| match (a.value, b.value) {
        (Ok(x), Ok(y)) => y < x || is_start_reset(a.start, a.t, b.start, b.t),
        (Err(x), Err(y)) => is_start_reset(a.start, a.t, b.start, b.t) || is_reset(y, x),
        _ => true,
    })
}
