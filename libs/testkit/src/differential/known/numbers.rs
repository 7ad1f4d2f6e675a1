//! Values at the edges of what floats can be.

use koios_model::METRIC_NAME;
use koios_promql::{AggregateOp, BinaryOp, Expr, ExprRef, FunctionId};

use super::super::answer::{Answer, PointValue, close};
use super::super::site::Site;
use super::choices::group;
use super::{Pair, aggregation, all_differing, function};

/// Of a group of that one sample.
pub(super) fn deviation_of_no_number(site: &Site) -> bool {
    let Some(Expr::Aggregate(aggregate)) = site.expr() else {
        return false;
    };
    let Some(operand) = site.operand(aggregate.expr).and_then(|o| o.prometheus.success()) else {
        return false;
    };
    let members = |pair: &Pair<'_>| -> Vec<f64> {
        let series = operand.series.iter();
        let of_group = series.filter(|(labels, _)| group(aggregate, labels) == *pair.labels);
        let points = of_group.flat_map(|(_, points)| points);
        points
            .filter(|p| p.t_ms == pair.t_ms)
            .map(|p| p.value.counted())
            .collect()
    };
    matches!(aggregation(site), Some(AggregateOp::Stddev | AggregateOp::Stdvar))
        && all_differing(site, |pair| {
            pair.floats().is_some_and(|(a, b)| a == 0.0 && b.is_nan())
                && matches!(members(pair).as_slice(), [v] if !v.is_finite())
        })
}

/// Of the functions that multiply what they add up; others look out for infinity in 2.42, too.
pub(super) fn overflow_with_compensation(site: &Site) -> bool {
    let overflows = |v: f64| match function(site) {
        Some(FunctionId::StddevOverTime | FunctionId::StdvarOverTime) => v == f64::INFINITY,
        Some(FunctionId::Deriv | FunctionId::PredictLinear) => v.is_infinite(),
        _ => false,
    };
    all_differing(site, |pair| {
        pair.floats().is_some_and(|(a, b)| a.is_nan() && overflows(b))
    }) && site
        .operands
        .iter()
        .any(|o| floats(&o.prometheus).any(|v| v.abs() > f64::MAX.sqrt()))
}

type OfFloat<T> = fn(f64) -> T;

/// Koios' answer is the right one here: the operand is a subnormal number, or the result nearly overflows.
pub(super) fn edges_of_floats(site: &Site) -> bool {
    if let Some(Expr::Binary(binary)) = site.expr()
        && binary.op == BinaryOp::Pow
        && let Some(Expr::Number(exponent)) = site.within(binary.rhs).map(ExprRef::expr)
    {
        return all_differing(site, |pair| {
            let koios = pair.koios.counted();
            operand_values(site, pair).any(|v| v.is_subnormal() && close(v.powf(exponent.value), koios))
        });
    }
    let nearly_too_large = |v: f64| (709.0..711.0).contains(&v.abs());
    let (is_edge, right): (OfFloat<bool>, OfFloat<f64>) = match function(site) {
        Some(FunctionId::Ln) => (f64::is_subnormal, f64::ln),
        Some(FunctionId::Log10) => (f64::is_subnormal, f64::log10),
        Some(FunctionId::Log2) => (f64::is_subnormal, f64::log2),
        Some(FunctionId::Exp) => (nearly_too_large, f64::exp),
        Some(FunctionId::Sinh) => (nearly_too_large, f64::sinh),
        Some(FunctionId::Cosh) => (nearly_too_large, f64::cosh),
        _ => return false,
    };
    all_differing(site, |pair| {
        let koios = pair.koios.counted();
        operand_values(site, pair).any(|v| is_edge(v) && close(right(v), koios))
    })
}

pub(super) fn dates_of_no_number(site: &Site) -> bool {
    /// About where seconds are no 64-bit integer any more.
    const LARGE: f64 = 9e18;
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

fn floats(answer: &Answer) -> impl Iterator<Item = f64> + '_ {
    answer.success().into_iter().flat_map(|success| success.floats())
}

/// What an operator makes of two numbers; of a comparison 1 or 0.
pub(super) fn apply(op: BinaryOp, l: f64, r: f64) -> f64 {
    let truth = |v| f64::from(u8::from(v));
    match op {
        BinaryOp::Add => l + r,
        BinaryOp::Sub => l - r,
        BinaryOp::Mul => l * r,
        BinaryOp::Div => l / r,
        BinaryOp::Mod => l % r,
        BinaryOp::Pow => l.powf(r),
        BinaryOp::Atan2 => l.atan2(r),
        BinaryOp::Eq => truth(l == r),
        BinaryOp::Ne => truth(l != r),
        BinaryOp::Gt => truth(l > r),
        BinaryOp::Lt => truth(l < r),
        BinaryOp::Ge => truth(l >= r),
        BinaryOp::Le => truth(l <= r),
        _ => f64::NAN,
    }
}
