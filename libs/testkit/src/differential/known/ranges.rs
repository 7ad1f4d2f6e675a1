//! What belongs to a range.

use koios_promql::{At, DurationArg, Expr, FunctionId};

use super::super::answer::Answer;
use super::super::site::{Site, grid};
use super::function;
use crate::query_gen::Times;

/// A range selector or subquery with its times.
pub(super) struct Window {
    /// Where it begins, milliseconds.
    pub(super) start_ms: i64,
    /// Where it ends.
    pub(super) end_ms: i64,
}

/// The window of an expression at a time, if it is one and says so in numbers.
pub(super) fn window(expr: &Expr, t_ms: i64) -> Option<Window> {
    let (at, offset, range) = times_of(expr)?;
    let end_ms = match at {
        Some(At::Timestamp(at)) => at,
        Some(At::Start | At::End) | None => t_ms,
    }
    .checked_sub(offset.millis()?)?;
    Some(Window {
        start_ms: end_ms.checked_sub(range.millis()?)?,
        end_ms,
    })
}

fn times_of(expr: &Expr) -> Option<(Option<At>, &DurationArg, &DurationArg)> {
    match expr {
        Expr::Matrix(e) => Some((e.selector.at, &e.selector.offset, &e.range)),
        Expr::Subquery(e) => Some((e.at, &e.offset, &e.range)),
        _ => None,
    }
}

/// Without the points at the very start, Prometheus' range is ours.
pub(super) fn left_open(site: &Site) -> bool {
    let (Some(expr), Times::At(t)) = (&site.expr, site.asked.times) else {
        return false;
    };
    let (Some(window), Some(theirs)) = (window(expr, t), site.prometheus.success()) else {
        return false;
    };
    let mut theirs = theirs.clone();
    for points in theirs.series.values_mut() {
        points.retain(|p| p.t_ms != window.start_ms);
    }
    theirs.series.retain(|_, points| !points.is_empty());
    Answer::difference(&Answer::Success(theirs), &site.koios, false).is_none()
}

/// Between the start and the end of a range lies no point of the subquery.
pub(super) fn subquery_without_points(site: &Site) -> bool {
    let (Some(Expr::Subquery(subquery)), Times::At(t)) = (&site.expr, site.asked.times) else {
        return false;
    };
    grid(subquery, t).is_none() && site.koios.success().is_some_and(|s| s.series.is_empty())
}

/// The selector has both.
pub(super) fn offset_forgotten_by_timestamp(site: &Site) -> bool {
    let Some(Expr::Call(call)) = &site.expr else {
        return false;
    };
    let both =
        |arg: &Expr| matches!(arg.unwrap_parens(), Expr::Vector(v) if v.at.is_some() && !v.offset.is_zero());
    function(site) == Some(FunctionId::Timestamp) && call.args.iter().any(both)
}

/// Only over time, and not at its start.
pub(super) fn moved_in_spite_of_at(site: &Site) -> bool {
    let several = matches!(
        function(site),
        Some(
            FunctionId::PredictLinear | FunctionId::QuantileOverTime | FunctionId::DoubleExponentialSmoothing
        )
    );
    let Some(Expr::Call(call)) = &site.expr else {
        return false;
    };
    let fixed = call
        .args
        .iter()
        .filter_map(|arg| times_of(arg.unwrap_parens()))
        .any(|(at, ..)| at.is_some());
    let (Times::Range { start, .. }, Some(theirs), Some(ours)) =
        (site.asked.times, site.prometheus.success(), site.koios.success())
    else {
        return false;
    };
    let at_start = |success: &super::super::Success| {
        let mut success = success.clone();
        success
            .series
            .values_mut()
            .for_each(|points| points.retain(|p| p.t_ms == start));
        success.series.retain(|_, points| !points.is_empty());
        Answer::Success(success)
    };
    // Only then does 2.42 evaluate the range anew at each step.
    let moves = site.operands.iter().any(|operand| {
        let series = operand
            .prometheus
            .success()
            .into_iter()
            .flat_map(|s| s.series.values());
        series.into_iter().any(|points| {
            points
                .windows(2)
                .any(|pair| matches!(pair, [a, b] if a.value != b.value))
        })
    });
    several && fixed && moves && Answer::difference(&at_start(theirs), &at_start(ours), false).is_none()
}
