//! `*_over_time`, `changes`, `resets`.
//!
//! Every value is computed from the samples of its window alone, in time order; no sample is ever subtracted again.

use std::sync::Arc;

use super::aggregate_histogram;
use super::quantile::quantile_of;
use super::rate::is_start_reset;
use super::rate_histogram;
use super::row::Point;
use super::window::{Samples, StepInfo, WINDOW_PIECE};
use crate::ast::RangeEdges;
use crate::error::QueryError;
use crate::kahan::{Kahan, Mean};

type Result<T> = std::result::Result<T, QueryError>;

pub(super) fn present(_: Samples<'_>, _: &mut StepInfo<'_>) -> Result<Point> {
    Ok(Point::Float(1.0))
}

pub(super) fn count(w: Samples<'_>, _: &mut StepInfo<'_>) -> Result<Point> {
    Ok(Point::Float((w.t.len() + w.ht.len()) as f64))
}

pub(super) fn sum(w: Samples<'_>, s: &mut StepInfo<'_>) -> Result<Point> {
    if w.is_mixed() {
        s.mixed();
        return Ok(Point::Absent);
    }
    if w.t.is_empty() {
        return Ok(aggregate_histogram::sum_over_time(w.h, s));
    }
    let sum = w.sum(s.range_ms);
    Ok(Point::Float(if sum.sum.is_infinite() {
        sum.sum
    } else {
        sum.total()
    }))
}

pub(super) fn avg(w: Samples<'_>, s: &mut StepInfo<'_>) -> Result<Point> {
    if w.is_mixed() {
        s.mixed();
        return Ok(Point::Absent);
    }
    let Some((&first, rest)) = w.v.split_first() else {
        return Ok(aggregate_histogram::avg_over_time(w.h, s));
    };
    let sum = w.sum(s.range_ms);
    if sum.sum.is_finite() {
        return Ok(Point::Float(sum.over(w.v.len() as f64).total()));
    }
    let mut mean = Mean::new(first);
    for &v in rest {
        mean.push(v);
    }
    Ok(Point::Float(mean.value()))
}

pub(super) fn first(w: Samples<'_>, _: &mut StepInfo<'_>) -> Result<Point> {
    Ok(
        match (w.t.first().zip(w.v.first()), w.ht.first().zip(w.h.first())) {
            (Some((t, _)), Some((ht, h))) if ht <= t => Point::Histogram(Arc::clone(h)),
            (Some((_, &v)), _) => Point::Float(v),
            (None, Some((_, h))) => Point::Histogram(Arc::clone(h)),
            (None, None) => Point::Absent,
        },
    )
}

pub(super) fn last(w: Samples<'_>, _: &mut StepInfo<'_>) -> Result<Point> {
    Ok(match (w.t.last().zip(w.v.last()), w.ht.last().zip(w.h.last())) {
        (Some((t, _)), Some((ht, h))) if ht >= t => Point::Histogram(Arc::clone(h)),
        (Some((_, &v)), _) => Point::Float(v),
        (None, Some((_, h))) => Point::Histogram(Arc::clone(h)),
        (None, None) => Point::Absent,
    })
}

pub(super) fn ts_of_first(w: Samples<'_>, _: &mut StepInfo<'_>) -> Result<Point> {
    let t = w.t.first().into_iter().chain(w.ht.first()).min();
    Ok(t.map_or(Point::Absent, |&t| Point::Float(t as f64 / 1000.0)))
}

pub(super) fn ts_of_last(w: Samples<'_>, _: &mut StepInfo<'_>) -> Result<Point> {
    let t = w.t.last().into_iter().chain(w.ht.last()).max();
    Ok(t.map_or(Point::Absent, |&t| Point::Float(t as f64 / 1000.0)))
}

/// The float of a window that `wins` over all before it, and its time.
fn extreme(w: Samples<'_>, s: &mut StepInfo<'_>, wins: impl Fn(f64, f64) -> bool) -> Option<(i64, f64)> {
    let mut best = (*w.t.first()?, *w.v.first()?);
    if !w.ht.is_empty() {
        s.histograms_ignored();
    }
    for (&t, &v) in w.t.iter().zip(w.v) {
        if wins(v, best.1) || best.1.is_nan() {
            best = (t, v);
        }
    }
    Some(best)
}

fn time(best: Option<(i64, f64)>) -> Result<Point> {
    Ok(best.map_or(Point::Absent, |(t, _)| Point::Float(t as f64 / 1000.0)))
}

fn value(best: Option<(i64, f64)>) -> Result<Point> {
    Ok(best.map_or(Point::Absent, |(_, v)| Point::Float(v)))
}

pub(super) fn max(w: Samples<'_>, s: &mut StepInfo<'_>) -> Result<Point> {
    value(extreme(w, s, |v, best| v > best))
}

pub(super) fn min(w: Samples<'_>, s: &mut StepInfo<'_>) -> Result<Point> {
    value(extreme(w, s, |v, best| v < best))
}

pub(super) fn ts_of_max(w: Samples<'_>, s: &mut StepInfo<'_>) -> Result<Point> {
    time(extreme(w, s, |v, best| v >= best))
}

pub(super) fn ts_of_min(w: Samples<'_>, s: &mut StepInfo<'_>) -> Result<Point> {
    time(extreme(w, s, |v, best| v <= best))
}

pub(super) fn quantile(w: Samples<'_>, s: &mut StepInfo<'_>) -> Result<Point> {
    if w.t.is_empty() {
        return Ok(Point::Absent);
    }
    let [q, _] = s.params;
    if !(0.0..=1.0).contains(&q) {
        s.annotations.invalid_quantile(q, s.first_span);
    }
    if !w.ht.is_empty() {
        s.histograms_ignored();
    }
    Ok(Point::Float(quantile_of(q, &mut w.v.to_vec())))
}

pub(super) fn mad(w: Samples<'_>, s: &mut StepInfo<'_>) -> Result<Point> {
    if w.t.is_empty() {
        return Ok(Point::Absent);
    }
    if !w.ht.is_empty() {
        s.histograms_ignored();
    }
    if w.v.iter().any(|v| v.is_nan()) {
        return Ok(Point::Float(f64::NAN));
    }
    let mut values = w.v.to_vec();
    let median = quantile_of(0.5, &mut values);
    for v in &mut values {
        *v = (*v - median).abs();
    }
    Ok(Point::Float(quantile_of(0.5, &mut values)))
}

/// The variance by Welford's method with compensated sums.
fn variance(w: Samples<'_>, s: &mut StepInfo<'_>) -> Result<Option<f64>> {
    if w.t.is_empty() {
        return Ok(None);
    }
    if !w.ht.is_empty() {
        s.histograms_ignored();
    }
    let (mut count, mut mean, mut squares) = (0.0, Kahan::default(), Kahan::default());
    for (piece, v) in w.v.chunks(WINDOW_PIECE).enumerate() {
        s.go_on(piece)?;
        for &v in v {
            count += 1.0;
            let delta = v - mean.total();
            mean = mean.plus(delta / count);
            squares = squares.plus(delta * (v - mean.total()));
        }
    }
    Ok(Some(squares.total() / count))
}

pub(super) fn stdvar(w: Samples<'_>, s: &mut StepInfo<'_>) -> Result<Point> {
    Ok(variance(w, s)?.map_or(Point::Absent, Point::Float))
}

pub(super) fn stddev(w: Samples<'_>, s: &mut StepInfo<'_>) -> Result<Point> {
    Ok(variance(w, s)?.map_or(Point::Absent, |v| Point::Float(v.sqrt())))
}

/// The samples to compare: in an anchored range, the newest one at or before the start and all after it; `None` if
/// none is after it.
fn anchored<'a>(w: Samples<'a>, s: &StepInfo<'_>) -> Option<Samples<'a>> {
    if s.edges != RangeEdges::Anchored {
        return Some(w);
    }
    let inside = w.between(s.start, i64::MAX);
    if inside.is_empty() {
        return None;
    }
    let before = |t: &[i64]| {
        t.get(..t.partition_point(|&t| t <= s.start))
            .and_then(<[i64]>::last)
            .copied()
    };
    Some(match before(w.t).max(before(w.ht)) {
        Some(anchor) => w.between(anchor.saturating_sub(1), i64::MAX),
        None => w,
    })
}

pub(super) fn changes(w: Samples<'_>, s: &mut StepInfo<'_>) -> Result<Point> {
    let Some(w) = anchored(w, s) else {
        return Ok(Point::Absent);
    };
    if !w.ht.is_empty() {
        return Ok(Point::Float(rate_histogram::changes(w) as f64));
    }
    let differ = |a: f64, b: f64| a != b && !(a.is_nan() && b.is_nan());
    let changes =
        w.v.windows(2)
            .filter(|p| matches!(p, [a, b] if differ(*a, *b)))
            .count();
    Ok(Point::Float(changes as f64))
}

pub(super) fn resets(w: Samples<'_>, s: &mut StepInfo<'_>) -> Result<Point> {
    let Some(w) = anchored(w, s) else {
        return Ok(Point::Absent);
    };
    if !w.ht.is_empty() {
        return Ok(Point::Float(rate_histogram::resets(w) as f64));
    }
    let fell = |i: usize| w.v.get(i - 1).zip(w.v.get(i)).is_some_and(|(a, b)| b < a);
    let restarted = |i: usize| {
        w.t.get(i - 1)
            .zip(w.t.get(i))
            .is_some_and(|(&a, &b)| is_start_reset(w.start_of(i - 1), a, w.start_of(i), b))
    };
    let resets = (1..w.t.len()).filter(|&i| fell(i) || restarted(i)).count();
    Ok(Point::Float(resets as f64))
}
