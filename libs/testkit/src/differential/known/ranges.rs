//! What belongs to a range.

use koios_promql::{At, Call, DurationArg, Expr, ExprRef, FunctionId};

use super::super::answer::Answer;
use super::super::site::{Site, grid};
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
    let (Some(expr), Times::At(t)) = (site.expr(), site.asked.times) else {
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
    let (Some(Expr::Subquery(subquery)), Times::At(t)) = (site.expr(), site.asked.times) else {
        return false;
    };
    grid(subquery, t).is_none() && site.koios.success().is_some_and(|s| s.series.is_empty())
}

/// Only where there are several steps.
pub(super) fn parameter_moved_in_spite_of_at(site: &Site) -> bool {
    let mut steps = matches!(site.asked.times, Times::Range { .. });
    let mut moves = false;
    if let Some(ast) = &site.ast {
        for e in ast.exprs() {
            steps |= matches!(e, Expr::Subquery(_));
            if let Expr::Aggregate(aggregate) = e
                && let Some(param) = aggregate.param
            {
                moves |= ast.at(param).below().any(|e| is_fixed(e.expr()));
            }
        }
    }
    steps && moves
}

fn is_fixed(expr: &Expr) -> bool {
    match expr {
        Expr::Vector(selector) => selector.at.is_some(),
        other => times_of(other).is_some_and(|(at, ..)| at.is_some()),
    }
}

/// Only over time, and not at its start; of the function itself, or of what is above it.
pub(super) fn moved_in_spite_of_at(site: &Site) -> bool {
    let moves = site.ast.as_ref().is_some_and(|ast| {
        let mut all = ast.root().below();
        all.any(|e| matches!(e.expr(), Expr::Call(call) if moves_with_steps(e, call)))
    });
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
    moves && Answer::difference(&at_start(theirs), &at_start(ours), false).is_none()
}

/// Whether a function of a range fixed by @ gives something else at each step all the same: by what it is, or by an
/// argument that is no constant.
fn moves_with_steps(expr: ExprRef<'_>, call: &Call) -> bool {
    let args = || expr.children().map(|arg| arg.unwrap_parens().expr());
    let fixed = args().filter_map(times_of).any(|(at, ..)| at.is_some());
    let constants = args().all(|arg| times_of(arg).is_some() || matches!(arg, Expr::Number(_)));
    fixed
        && match call.function {
            FunctionId::PredictLinear => true,
            FunctionId::QuantileOverTime | FunctionId::DoubleExponentialSmoothing => !constants,
            _ => false,
        }
}
