//! Values: rounding, what is no number, and free choices.

use koios_model::METRIC_NAME;
use koios_promql::{AggregateOp, FunctionId};

use super::super::answer::{Answer, PointValue, TOLERANCE};
use super::super::site::{Operand, Site};
use super::{Pair, aggregation, all_differing, chooses, fails_with, function};

pub(super) fn deviation_of_no_number(site: &Site) -> bool {
    matches!(aggregation(site), Some(AggregateOp::Stddev | AggregateOp::Stdvar))
        && all_differing(site, |pair| {
            pair.floats().is_some_and(|(a, b)| a == 0.0 && b.is_nan())
        })
        && site
            .operands
            .iter()
            .any(|o| floats(&o.prometheus).any(|v| !v.is_finite()))
}

/// Of the functions that subtract the mean; others look out for infinity in 2.42, too.
pub(super) fn overflow_with_compensation(site: &Site) -> bool {
    matches!(
        function(site),
        Some(FunctionId::StddevOverTime | FunctionId::StdvarOverTime)
    ) && all_differing(site, |pair| {
        pair.floats()
            .is_some_and(|(a, b)| a.is_nan() && b == f64::INFINITY)
    }) && site
        .operands
        .iter()
        .any(|o| floats(&o.prometheus).any(|v| v.abs() > f64::MAX.sqrt()))
}

/// Koios' answer is the right one here: the operand is a subnormal number, or the result nearly overflows.
pub(super) fn edges_of_floats(site: &Site) -> bool {
    let edge = match function(site) {
        Some(FunctionId::Ln | FunctionId::Log10 | FunctionId::Log2) => f64::is_subnormal,
        Some(FunctionId::Exp | FunctionId::Sinh | FunctionId::Cosh) => {
            |v: f64| (709.0..711.0).contains(&v.abs())
        }
        _ => return false,
    };
    all_differing(site, |pair| operand_values(site, pair).any(edge))
}

/// No series, no steps: 2.42 never looks at the parameter.
pub(super) fn parameter_of_nothing(site: &Site) -> bool {
    matches!(aggregation(site), Some(AggregateOp::Topk | AggregateOp::Bottomk))
        && fails_with(&site.koios, "Parameter value is NaN")
        && site.prometheus.success().is_some_and(|s| s.series.is_empty())
}

/// Nothing is chosen then, which 3.14 notices first.
pub(super) fn k_below_integers(site: &Site) -> bool {
    matches!(aggregation(site), Some(AggregateOp::Topk | AggregateOp::Bottomk))
        && fails_with(&site.prometheus, "overflows int64")
        && site.koios.success().is_some_and(|s| s.series.is_empty())
}

/// The choice itself, or something above one that Prometheus makes differently from one time to the next.
pub(super) fn ties(site: &Site) -> bool {
    (site.wavers && site.expr.as_ref().is_some_and(chooses)) || equal_choice(site)
}

fn equal_choice(site: &Site) -> bool {
    matches!(aggregation(site), Some(AggregateOp::Topk | AggregateOp::Bottomk))
        && site.prometheus.success().is_some()
        && site.koios.success().is_some()
        && sorted(&site.prometheus) == sorted(&site.koios)
}

/// All floats, NaNs first, as bits.
fn sorted(answer: &Answer) -> Vec<u64> {
    let mut all: Vec<f64> = floats(answer)
        .map(|v| if v.is_nan() { f64::NAN } else { v })
        .collect();
    all.sort_by(f64::total_cmp);
    all.into_iter().map(f64::to_bits).collect()
}

pub(super) fn dates_of_no_number(site: &Site) -> bool {
    /// Beyond this, nanoseconds or years run over.
    const LARGE: f64 = 1e11;
    let of_date = matches!(
        function(site),
        Some(
            FunctionId::DayOfMonth
                | FunctionId::DayOfWeek
                | FunctionId::DayOfYear
                | FunctionId::DaysInMonth
                | FunctionId::Hour
                | FunctionId::Minute
                | FunctionId::Month
                | FunctionId::Year
        )
    );
    of_date
        && all_differing(site, |pair| {
            operand_values(site, pair).any(|v| v.is_nan() || v.abs() > LARGE)
        })
}

/// The numbers that a function without range made a differing value of.
fn operand_values<'a>(site: &'a Site, pair: &'a Pair<'_>) -> impl Iterator<Item = f64> + 'a {
    let answers = site.operands.iter().filter_map(|o| o.prometheus.success());
    let points = answers.flat_map(|s| &s.series).filter_map(|(labels, points)| {
        let same = labels.without(|name| name == METRIC_NAME) == *pair.labels;
        points.iter().find(|p| same && p.t_ms == pair.t_ms)
    });
    points.filter_map(|point| match point.value {
        PointValue::Float(v) => Some(v),
        PointValue::Histogram(_) => None,
    })
}

/// How the error of a function that adds up grows with the numbers it adds.
enum Grows {
    With,
    /// The square of the result is what is added up.
    SquareWithSquare,
    WithSquare,
}

fn adds_up(site: &Site) -> Option<Grows> {
    Some(match (aggregation(site), function(site)) {
        (Some(AggregateOp::Sum | AggregateOp::Avg), _) => Grows::With,
        (Some(AggregateOp::Stddev), _) | (_, Some(FunctionId::StddevOverTime)) => Grows::SquareWithSquare,
        (Some(AggregateOp::Stdvar), _) | (_, Some(FunctionId::StdvarOverTime)) => Grows::WithSquare,
        (
            _,
            Some(
                FunctionId::SumOverTime
                | FunctionId::AvgOverTime
                | FunctionId::Deriv
                | FunctionId::PredictLinear,
            ),
        ) => Grows::With,
        _ => return None,
    })
}

pub(super) fn sums_without_compensation(site: &Site) -> bool {
    let Some(grows) = adds_up(site) else {
        return false;
    };
    let largest = site
        .operands
        .iter()
        .flat_map(|o| floats(&o.prometheus))
        .filter(|v| v.is_finite());
    let largest = largest.fold(0.0_f64, |max, v| max.max(v.abs()));
    site.operands.iter().all(is_identical)
        && all_differing(site, |pair| {
            pair.floats().is_some_and(|(a, b)| match grows {
                Grows::With => (a - b).abs() <= TOLERANCE * largest,
                Grows::SquareWithSquare => (a * a - b * b).abs() <= TOLERANCE * largest * largest,
                Grows::WithSquare => (a - b).abs() <= TOLERANCE * largest * largest,
            })
        })
}

pub(super) fn amplified_rounding(site: &Site) -> bool {
    site.prometheus.success().is_some()
        && site.koios.success().is_some()
        && !site.operands.iter().all(is_identical)
}

fn is_identical(operand: &Operand) -> bool {
    operand.prometheus.identical(&operand.koios)
}

fn floats(answer: &Answer) -> impl Iterator<Item = f64> + '_ {
    answer.success().into_iter().flat_map(|success| success.floats())
}
