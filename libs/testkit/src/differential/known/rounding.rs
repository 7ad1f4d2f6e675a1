//! What is a matter of rounding: sums that lose digits, and whatever makes much of the digits its operands lost.

use koios_model::{Labels, METRIC_NAME};
use koios_promql::{AggregateExpr, AggregateOp, BinaryExpr, Call, Expr, ExprId, ExprRef, FunctionId};

use super::super::answer::{Answer, PointValue, close};
use super::super::site::Site;
use super::choices::group;
use super::numbers::apply;
use super::{Pair, all_differing};

/// A sample of an operand, as both sides have it.
struct Sample {
    labels: Labels,
    t_ms: i64,
    prometheus: f64,
    koios: f64,
}

impl Sample {
    fn is_rounded(&self) -> bool {
        self.prometheus.to_bits() != self.koios.to_bits()
            && !(self.prometheus.is_nan() && self.koios.is_nan())
    }

    fn error(&self) -> f64 {
        if self.is_rounded() {
            (self.prometheus - self.koios).abs()
        } else {
            0.0
        }
    }
}

/// The floats of an operand; a number is one sample without labels at every time.
fn samples(site: &Site, id: ExprId) -> Vec<Sample> {
    if let Some(Expr::Number(number)) = site.within(id).map(ExprRef::expr) {
        let sample = |t_ms| Sample {
            labels: Labels::empty(),
            t_ms,
            prometheus: number.value,
            koios: number.value,
        };
        return site.asked.times.steps().into_iter().map(sample).collect();
    }
    let Some(operand) = site.operand(id) else {
        return Vec::new();
    };
    let (Some(theirs), Some(ours)) = (operand.prometheus.success(), operand.koios.success()) else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for ((labels, theirs), ours) in theirs.series.iter().zip(ours.series.values()) {
        for (theirs, ours) in theirs.iter().zip(ours) {
            if let (PointValue::Float(prometheus), PointValue::Float(koios)) = (&theirs.value, &ours.value) {
                all.push(Sample {
                    labels: labels.clone(),
                    t_ms: theirs.t_ms,
                    prometheus: *prometheus,
                    koios: *koios,
                });
            }
        }
    }
    all
}

/// 2.42 divides nothing by nothing in an empty bucket that comes first.
pub(super) fn quantile_of_an_empty_bucket(site: &Site) -> bool {
    let first = |call: &Call| call.args.first().and_then(|arg| site.within(*arg));
    let is_lowest = |call: &Call| match first(call).map(ExprRef::expr) {
        Some(Expr::Number(q)) => q.value == 0.0 || q.value == 1.0,
        _ => false,
    };
    let call = match site.expr() {
        Some(Expr::Call(call)) if call.function == FunctionId::HistogramQuantile => call,
        _ => return false,
    };
    is_lowest(call)
        && all_differing(site, |pair| {
            pair.floats().is_some_and(|(a, b)| a.is_nan() && b.is_finite())
        })
}

/// What both sides made of the numbers differs by no more than these do, and what adding them up one by one may lose.
pub(super) fn sums_without_compensation(site: &Site) -> bool {
    match site.expr() {
        Some(Expr::Aggregate(aggregate)) => {
            let samples = samples(site, aggregate.expr);
            all_differing(site, |pair| {
                let members: Vec<&Sample> = members(aggregate, &samples, pair).collect();
                within_loss(aggregate.op, pair, &members)
            })
        }
        // The one function that 2.42 compensates in part only.
        Some(Expr::Call(call)) if call.function == FunctionId::AvgOverTime => {
            let samples = call
                .args
                .first()
                .map(|arg| samples(site, *arg))
                .unwrap_or_default();
            all_differing(site, |pair| {
                let series: Vec<&Sample> = series(&samples, pair).collect();
                within_loss(AggregateOp::Avg, pair, &series)
            })
        }
        _ => false,
    }
}

/// The samples of the series that a function made a value of.
fn series<'a>(samples: &'a [Sample], pair: &'a Pair<'_>) -> impl Iterator<Item = &'a Sample> + 'a {
    samples
        .iter()
        .filter(|s| s.labels.without(|name| name == METRIC_NAME) == *pair.labels)
}

fn members<'a>(
    aggregate: &'a AggregateExpr,
    samples: &'a [Sample],
    pair: &'a Pair<'_>,
) -> impl Iterator<Item = &'a Sample> + 'a {
    samples
        .iter()
        .filter(|s| s.t_ms == pair.t_ms && group(aggregate, &s.labels) == *pair.labels)
}

/// Whether the values differ by no more than the operands do, and what summing these up one by one may lose.
fn within_loss(op: AggregateOp, pair: &Pair<'_>, members: &[&Sample]) -> bool {
    let Some((a, b)) = pair.floats() else { return false };
    if members.iter().any(|s| !s.prometheus.is_finite()) {
        return false;
    }
    let n = members.len() as f64;
    let total: f64 = members.iter().map(|s| s.prometheus.abs()).sum();
    let error: f64 = members.iter().map(|s| s.error()).sum();
    // The smallest number is what each addition may lose near zero.
    let lost = n * (f64::EPSILON * total + f64::from_bits(1));
    // The larger one, as the smaller may be all that is left of a large one.
    let variance = |a: f64, b: f64| a.max(b);
    let deviates = |variance: f64, difference: f64| {
        let mean = total / n;
        let lost = n * f64::EPSILON * (variance * variance + mean * mean * variance).sqrt();
        let of_errors = error * (2.0 * variance.sqrt() + error);
        difference.abs() <= lost + of_errors + (n * f64::EPSILON * mean).powi(2)
    };
    match op {
        AggregateOp::Sum => (a - b).abs() <= lost + error,
        AggregateOp::Avg => (a - b).abs() <= 2.0 * lost / n + error,
        AggregateOp::Stdvar => deviates(variance(a, b), a - b),
        AggregateOp::Stddev => deviates(variance(a * a, b * b), a * a - b * b),
        AggregateOp::Quantile => (a - b).abs() <= error,
        _ => false,
    }
}

/// The operands differ by rounding, and each side's answer follows from its own.
pub(super) fn amplified_rounding(site: &Site) -> bool {
    if site.operands.iter().all(|o| o.prometheus.identical(&o.koios)) {
        return false;
    }
    match site.expr() {
        Some(Expr::Binary(binary)) if binary.op.is_comparison() && !binary.return_bool => {
            filtered(site, binary)
        }
        Some(Expr::Binary(binary)) => calculated(site, binary),
        Some(Expr::Call(call)) => called(site, call),
        Some(Expr::Aggregate(aggregate)) if aggregate.op == AggregateOp::CountValues => {
            counted(site, aggregate)
        }
        _ => false,
    }
}

/// Every value follows from two of the operands' samples, of which one is rounded.
fn calculated(site: &Site, binary: &BinaryExpr) -> bool {
    let (left, right) = (samples(site, binary.lhs), samples(site, binary.rhs));
    all_differing(site, |pair| {
        let Some((a, b)) = pair.floats() else { return false };
        pairs_at(&left, &right, pair.t_ms).any(|(l, r)| {
            close(apply(binary.op, l.prometheus, r.prometheus), a)
                && close(apply(binary.op, l.koios, r.koios), b)
        })
    })
}

/// The pairs of samples at a time of which at least one is rounded.
fn pairs_at<'a>(
    left: &'a [Sample],
    right: &'a [Sample],
    t_ms: i64,
) -> impl Iterator<Item = (&'a Sample, &'a Sample)> {
    let left = left.iter().filter(move |s| s.t_ms == t_ms);
    left.flat_map(move |l| {
        let right = right.iter().filter(move |s| s.t_ms == t_ms);
        right.map(move |r| (l, r))
    })
    .filter(|(l, r)| l.is_rounded() || r.is_rounded())
}

/// Every sample that only one side has is one that the comparison lets pass on one side alone.
fn filtered(site: &Site, binary: &BinaryExpr) -> bool {
    let (left, right) = (samples(site, binary.lhs), samples(site, binary.rhs));
    let Some(odd) = one_sided(site) else { return false };
    let first = site.within(binary.lhs).map(ExprRef::expr);
    let number_first = matches!(first, Some(Expr::Number(_)));
    !odd.is_empty()
        && odd.iter().all(|(_, t_ms, v)| {
            pairs_at(&left, &right, *t_ms).any(|(l, r)| {
                let passes = |l, r| apply(binary.op, l, r) != 0.0;
                let kept = if number_first { r } else { l };
                passes(l.prometheus, r.prometheus) != passes(l.koios, r.koios) && close(kept.koios, *v)
            })
        })
}

/// The floats that only one side has; nothing when what both have differs.
fn one_sided(site: &Site) -> Option<Vec<(Labels, i64, f64)>> {
    let (theirs, ours) = (floats(&site.prometheus)?, floats(&site.koios)?);
    let value = |all: &[(Labels, i64, f64)], of: &(Labels, i64, f64)| {
        let same = all.iter().find(|(labels, t, _)| *labels == of.0 && *t == of.1);
        same.map(|(.., v)| *v)
    };
    let mut odd = Vec::new();
    for sample in &theirs {
        match value(&ours, sample) {
            Some(v) if close(v, sample.2) => {}
            Some(_) => return None,
            None => odd.push(sample.clone()),
        }
    }
    odd.extend(ours.iter().filter(|s| value(&theirs, s).is_none()).cloned());
    Some(odd)
}

fn floats(answer: &Answer) -> Option<Vec<(Labels, i64, f64)>> {
    let mut all = Vec::new();
    for (labels, points) in &answer.success()?.series {
        for point in points {
            let PointValue::Float(v) = point.value else {
                return None;
            };
            all.push((labels.clone(), point.t_ms, v));
        }
    }
    Some(all)
}

/// Counted numbers are labels: taken as numbers, both sides counted the same.
fn counted(site: &Site, aggregate: &AggregateExpr) -> bool {
    let param = aggregate.param.and_then(|param| site.within(param));
    let Some(Expr::String(label)) = param.map(ExprRef::expr) else {
        return false;
    };
    let numbers = |answer| -> Option<Vec<(Labels, i64, f64)>> {
        let mut numbers = Vec::new();
        for (labels, t_ms, count) in floats(answer)? {
            let number: f64 = labels.get(&label.value)?.parse().ok()?;
            let others = labels.without(|name| name == label.value);
            // Counts are whole numbers.
            numbers.extend((0..count as u64).map(|_| (others.clone(), t_ms, number)));
        }
        numbers.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)).then(a.2.total_cmp(&b.2)));
        Some(numbers)
    };
    match (numbers(&site.prometheus), numbers(&site.koios)) {
        (Some(a), Some(b)) => {
            let same = |(a, b): (&(Labels, i64, f64), &(Labels, i64, f64))| {
                a.0 == b.0 && a.1 == b.1 && close(a.2, b.2)
            };
            a.len() == b.len() && a.iter().zip(&b).all(same)
        }
        _ => false,
    }
}

fn called(site: &Site, call: &Call) -> bool {
    let Some(arg) = call.args.iter().find(|arg| site.operand(**arg).is_some()) else {
        return false;
    };
    let samples = samples(site, *arg);
    let step = call.args.get(1).and_then(|arg| match site.within(*arg)?.expr() {
        Expr::Number(number) => Some(number.value),
        _ => None,
    });
    all_differing(site, |pair| {
        let series: Vec<&Sample> = series(&samples, pair).collect();
        pair.floats().is_some_and(|floats| {
            follows_each(call.function, step, floats, pair.t_ms, &series)
                || follows_range(call.function, floats, &series)
        })
    })
}

/// Of a function of single samples: the values on both sides are what it makes of their samples.
fn follows_each(
    function: FunctionId,
    step: Option<f64>,
    (a, b): (f64, f64),
    t_ms: i64,
    series: &[&Sample],
) -> bool {
    let result = |v: f64| match function {
        FunctionId::Ceil => v.ceil(),
        FunctionId::Floor => v.floor(),
        FunctionId::Round => {
            let inverse = 1.0 / step.unwrap_or(1.0);
            (v * inverse + 0.5).floor() / inverse
        }
        FunctionId::Sgn => match v.partial_cmp(&0.0) {
            Some(std::cmp::Ordering::Less) => -1.0,
            Some(std::cmp::Ordering::Greater) => 1.0,
            _ => v,
        },
        FunctionId::Exp => v.exp(),
        FunctionId::Ln => v.ln(),
        FunctionId::Log2 => v.log2(),
        FunctionId::Log10 => v.log10(),
        FunctionId::Sqrt => v.sqrt(),
        FunctionId::Sin => v.sin(),
        FunctionId::Cos => v.cos(),
        FunctionId::Tan => v.tan(),
        FunctionId::Asin => v.asin(),
        FunctionId::Acos => v.acos(),
        FunctionId::Sinh => v.sinh(),
        FunctionId::Cosh => v.cosh(),
        FunctionId::Acosh => v.acosh(),
        FunctionId::Atanh => v.atanh(),
        _ => f64::NAN,
    };
    let sample = series.iter().find(|s| s.t_ms == t_ms && s.is_rounded());
    sample.is_some_and(|s| close(result(s.prometheus), a) && close(result(s.koios), b))
}

/// Of a function of a range: steps are where the samples have them; all else differs no more than the samples do.
fn follows_range(function: FunctionId, (a, b): (f64, f64), series: &[&Sample]) -> bool {
    let steps = |of: fn(&Sample) -> f64, is_step: fn(f64, f64) -> bool| {
        let values: Vec<f64> = series.iter().map(|s| of(s)).collect();
        values
            .windows(2)
            .filter(|pair| matches!(pair, [a, b] if is_step(*a, *b)))
            .count() as f64
    };
    let counted = |is_step: fn(f64, f64) -> bool| {
        steps(|s| s.prometheus, is_step) == a && steps(|s| s.koios, is_step) == b
    };
    let error: f64 = series.iter().map(|s| s.error()).sum();
    match function {
        FunctionId::Changes => counted(|a, b| a != b && !(a.is_nan() && b.is_nan())),
        FunctionId::Resets => counted(|a, b| b < a),
        // A fall by rounding is a reset; all else is extrapolated as below.
        FunctionId::Rate | FunctionId::Increase | FunctionId::Irate => {
            let falls = steps(|s| s.prometheus, |a, b| b < a) != steps(|s| s.koios, |a, b| b < a);
            falls || (a - b).abs() <= 4.0 * error
        }
        // Extrapolated to both sides by at most as much again.
        FunctionId::Delta => (a - b).abs() <= 4.0 * error,
        FunctionId::Idelta
        | FunctionId::Deriv
        | FunctionId::SumOverTime
        | FunctionId::AvgOverTime
        | FunctionId::StddevOverTime
        | FunctionId::QuantileOverTime => (a - b).abs() <= error,
        FunctionId::StdvarOverTime => (a - b).abs() <= error * (2.0 * a.max(b).sqrt() + error),
        _ => false,
    }
}
