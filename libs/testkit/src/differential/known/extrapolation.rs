//! What `rate` and `increase` add at the edges of a range.

use koios_model::METRIC_NAME;
use koios_promql::{Expr, FunctionId};

use super::super::answer::{Point, PointValue, close};
use super::super::site::Site;
use super::ranges::{Window, window};
use super::{Pair, all_differing, function};
use crate::query_gen::Times;

/// The values differ by exactly what the two rules of extrapolation differ by.
pub(super) fn towards_zero(site: &Site) -> bool {
    let (Some(Expr::Call(call)), Times::At(t)) = (site.expr(), site.asked.times) else {
        return false;
    };
    let arg = call.args.first().and_then(|arg| site.within(*arg));
    let Some(window) = arg.and_then(|arg| window(arg.expr(), t)) else {
        return false;
    };
    matches!(function(site), Some(FunctionId::Rate | FunctionId::Increase))
        && all_differing(site, |pair| explained(site, &window, pair))
}

/// The values are the same but for the resolution, and there is a reset after the first sample.
pub(super) fn resolution_before_a_reset(site: &Site) -> bool {
    let reset_first = |pair: &Pair<'_>| {
        let samples = samples_of(site, pair);
        let counts = samples.and_then(|points| Some((points.first()?.value.counted(), points.get(1)?)));
        counts.is_some_and(|(first, second)| second.value.counted() < first)
    };
    matches!(function(site), Some(FunctionId::Rate | FunctionId::Increase))
        && all_differing(site, |pair| match (pair.prometheus, pair.koios) {
            (PointValue::Histogram(theirs), PointValue::Histogram(ours)) => {
                theirs.is_refined_by(ours) && reset_first(pair)
            }
            _ => false,
        })
}

/// The samples that a value was made of.
fn samples_of<'a>(site: &'a Site, pair: &Pair<'_>) -> Option<&'a Vec<Point>> {
    site.operands
        .iter()
        .filter_map(|operand| operand.prometheus.success())
        .flat_map(|success| &success.series)
        .find(|(labels, _)| labels.without(|name| name == METRIC_NAME) == *pair.labels)
        .map(|(_, points)| points)
}

fn explained(site: &Site, window: &Window, pair: &Pair<'_>) -> bool {
    let Some(interval) = samples_of(site, pair).and_then(|points| Interval::of(points, window)) else {
        return false;
    };
    match (pair.prometheus, pair.koios) {
        (PointValue::Float(theirs), PointValue::Float(ours)) => {
            let to_zero = interval.to_zero();
            close(
                theirs / interval.covered_2(to_zero),
                ours / interval.covered_3(to_zero),
            )
        }
        (PointValue::Histogram(theirs), PointValue::Histogram(ours)) => {
            let scale = interval.covered_3(interval.to_zero()) / interval.covered_2(f64::INFINITY);
            let theirs = theirs.scaled(scale);
            theirs.close(ours) || theirs.is_refined_by(ours)
        }
        _ => false,
    }
}

/// The samples within a window, in seconds.
struct Interval {
    to_start: f64,
    to_end: f64,
    sampled: f64,
    average: f64,
    first: f64,
    increase: f64,
}

impl Interval {
    fn of(points: &[Point], window: &Window) -> Option<Self> {
        let (first, last) = (points.first()?, points.last()?);
        let values: Vec<f64> = points.iter().map(|p| p.value.counted()).collect();
        let seconds = |ms: i64| ms as f64 / 1_000.0;
        let sampled = seconds(last.t_ms - first.t_ms);
        let resets = values.windows(2).filter_map(|pair| match pair {
            [before, after] if after < before => Some(*before),
            _ => None,
        });
        Some(Self {
            to_start: seconds(first.t_ms - window.start_ms),
            to_end: seconds(window.end_ms - last.t_ms),
            sampled,
            average: sampled / (points.len() as f64 - 1.0),
            first: *values.first()?,
            increase: values.last()? - values.first()? + resets.sum::<f64>(),
        })
    }

    /// How long before the first sample the counter was zero, going by its slope.
    fn to_zero(&self) -> f64 {
        if self.increase > 0.0 && self.first >= 0.0 {
            self.sampled * (self.first / self.increase)
        } else {
            f64::INFINITY
        }
    }

    fn is_far(&self, duration: f64) -> bool {
        duration >= self.average * 1.1
    }

    fn near(&self, duration: f64) -> f64 {
        if self.is_far(duration) {
            self.average / 2.0
        } else {
            duration
        }
    }

    /// What 2.42 covers.
    fn covered_2(&self, to_zero: f64) -> f64 {
        self.sampled + self.near(self.to_start.min(to_zero)) + self.near(self.to_end)
    }

    /// What 3.14 covers.
    fn covered_3(&self, to_zero: f64) -> f64 {
        self.sampled + self.near(self.to_start).min(to_zero) + self.near(self.to_end)
    }
}
