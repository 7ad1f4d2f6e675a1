//! `deriv`, `predict_linear`, `double_exponential_smoothing`.

use super::row::Point;
use super::window::{Samples, StepInfo, WINDOW_PIECE};
use crate::error::QueryError;
use crate::kahan::Kahan;

/// Slope per second and value at `origin` of the line through some samples that fits best (least squares).
fn linear_regression(w: Samples<'_>, origin: i64, s: &StepInfo<'_>) -> Result<(f64, f64), QueryError> {
    let Some(&first) = w.v.first() else {
        return Ok((f64::NAN, f64::NAN));
    };
    if w.v.iter().all(|&v| v == first) {
        return Ok(if first.is_infinite() {
            (f64::NAN, f64::NAN)
        } else {
            (0.0, first)
        });
    }
    let (mut x1, mut y1, mut xy, mut x2) = Default::default();
    let pieces = w.t.chunks(WINDOW_PIECE).zip(w.v.chunks(WINDOW_PIECE));
    for (piece, (t, y)) in pieces.enumerate() {
        s.go_on(piece)?;
        for (&t, &y) in t.iter().zip(y) {
            let x = t.saturating_sub(origin) as f64 / 1e3;
            x1 = Kahan::plus(x1, x);
            y1 = Kahan::plus(y1, y);
            xy = Kahan::plus(xy, x * y);
            x2 = Kahan::plus(x2, x * x);
        }
    }
    let n = w.v.len() as f64;
    let (x1, y1, xy, x2) = (x1.total(), y1.total(), xy.total(), x2.total());
    let slope = (xy - x1 * y1 / n) / (x2 - x1 * x1 / n);
    Ok((slope, y1 / n - slope * x1 / n))
}

/// Whether there are two floats at least; histograms beside floats are noted.
fn enough(w: Samples<'_>, s: &mut StepInfo<'_>) -> bool {
    if !w.t.is_empty() && !w.ht.is_empty() {
        s.histograms_ignored();
    }
    w.t.len() >= 2
}

pub(super) fn deriv(w: Samples<'_>, s: &mut StepInfo<'_>) -> Result<Point, QueryError> {
    if !enough(w, s) {
        return Ok(Point::Absent);
    }
    // A time near the samples keeps the numbers small.
    let origin = w.t.first().copied().unwrap_or(s.at);
    Ok(Point::Float(linear_regression(w, origin, s)?.0))
}

pub(super) fn predict_linear(w: Samples<'_>, s: &mut StepInfo<'_>) -> Result<Point, QueryError> {
    if !enough(w, s) {
        return Ok(Point::Absent);
    }
    let (slope, now) = linear_regression(w, s.at, s)?;
    let [ahead, _] = s.params;
    Ok(Point::Float(slope * ahead + now))
}

pub(super) fn double_exponential_smoothing(
    w: Samples<'_>,
    s: &mut StepInfo<'_>,
) -> Result<Point, QueryError> {
    let [smoothing, trend_factor] = s.params;
    for (name, short, factor) in [("smoothing", "sf", smoothing), ("trend", "tf", trend_factor)] {
        // Prometheus lets NaN through.
        if factor <= 0.0 || factor >= 1.0 {
            return Err(QueryError::execution(format!(
                "invalid {name} factor. Expected: 0 < {short} < 1, got: {factor:.6}"
            )));
        }
    }
    if !enough(w, s) {
        return Ok(Point::Absent);
    }
    let (Some(&first), Some(&second)) = (w.v.first(), w.v.get(1)) else {
        return Ok(Point::Absent);
    };
    let (mut before, mut level, mut trend) = (0.0, first, second - first);
    for (i, &v) in w.v.iter().enumerate().skip(1) {
        let scaled = smoothing * v;
        if i > 1 {
            trend = trend_factor * (level - before) + (1.0 - trend_factor) * trend;
        }
        let carried = (1.0 - smoothing) * (level + trend);
        (before, level) = (level, scaled + carried);
    }
    Ok(Point::Float(level))
}
