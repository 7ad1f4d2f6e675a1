//! Free choices among series.

use std::collections::BTreeMap;

use koios_model::{Labels, METRIC_NAME};
use koios_promql::{AggregateExpr, AggregateOp, Ast, Expr};

use super::super::answer::{Answer, Difference, PointValue, Success, close};
use super::super::site::Site;
use super::{aggregation, fails_with};

/// Whether there is a choice among series in a query.
pub(in super::super) fn chooses(ast: &Ast) -> bool {
    ast.exprs()
        .any(|e| matches!(e, Expr::Aggregate(e) if is_choice(e.op)))
}

fn is_choice(op: AggregateOp) -> bool {
    matches!(op, AggregateOp::Topk | AggregateOp::Bottomk)
}

/// The choice itself, or something above one that Prometheus makes as Koios does when it is asked again.
pub(super) fn ties(site: &Site) -> bool {
    site.chosen_alike || equal_choice(site)
}

/// The key of a sample's group in an aggregation.
pub(super) fn group(aggregate: &AggregateExpr, labels: &Labels) -> Labels {
    let named = |name: &str| aggregate.grouping.iter().any(|n| n == name);
    if aggregate.without {
        labels.without(|name| named(name) || name == METRIC_NAME)
    } else {
        labels.without(|name| !named(name))
    }
}

/// What both sides choose has the same values; of other series only where these equal the least that was chosen.
fn equal_choice(site: &Site) -> bool {
    let Some(Expr::Aggregate(aggregate)) = site.expr() else {
        return false;
    };
    let (Some(theirs), Some(ours)) = (site.prometheus.success(), site.koios.success()) else {
        return false;
    };
    let Some(operand) = site.operand(aggregate.expr).and_then(|o| o.koios.success()) else {
        return false;
    };
    let (theirs, ours) = (chosen(aggregate, theirs), chosen(aggregate, ours));
    is_choice(aggregate.op)
        && site.difference != Difference::Order
        && theirs.keys().eq(ours.keys())
        && theirs.iter().zip(&ours).all(|((key, theirs), (_, ours))| {
            same_values(theirs, ours)
                && ours.iter().all(|(labels, v)| has(operand, labels, key.0, *v))
                && differ_in_the_least(theirs, ours)
        })
}

/// The chosen samples by time and group, best first; NaNs come last.
type Chosen<'a> = BTreeMap<(i64, Labels), Vec<(&'a Labels, f64)>>;

fn chosen<'a>(aggregate: &AggregateExpr, success: &'a Success) -> Chosen<'a> {
    let mut groups = Chosen::new();
    for (labels, points) in &success.series {
        for point in points {
            let PointValue::Float(v) = point.value else {
                continue;
            };
            let group = groups.entry((point.t_ms, group(aggregate, labels))).or_default();
            group.push((labels, v));
        }
    }
    for samples in groups.values_mut() {
        samples.sort_by(|(_, a), (_, b)| {
            let better = match aggregate.op {
                AggregateOp::Topk => b.total_cmp(a),
                _ => a.total_cmp(b),
            };
            a.is_nan().cmp(&b.is_nan()).then(better)
        });
    }
    groups
}

fn same_values(theirs: &[(&Labels, f64)], ours: &[(&Labels, f64)]) -> bool {
    theirs.len() == ours.len() && theirs.iter().zip(ours).all(|((_, a), (_, b))| close(*a, *b))
}

fn has(operand: &Success, labels: &Labels, t_ms: i64, v: f64) -> bool {
    let points = operand.series.get(labels).into_iter().flatten();
    points
        .filter(|p| p.t_ms == t_ms)
        .any(|p| p.value == PointValue::Float(v) || (p.value.counted().is_nan() && v.is_nan()))
}

fn differ_in_the_least(theirs: &[(&Labels, f64)], ours: &[(&Labels, f64)]) -> bool {
    let Some((_, least)) = ours.last() else {
        return true;
    };
    let kept = |samples: &[(&Labels, f64)]| -> Vec<Labels> {
        let better = samples.iter().filter(|(_, v)| !close(*v, *least));
        let mut labels: Vec<Labels> = better.map(|(labels, _)| (*labels).clone()).collect();
        labels.sort();
        labels
    };
    kept(theirs) == kept(ours)
}

/// No series, no steps: 2.42 never looks at the parameter.
pub(super) fn parameter_of_nothing(site: &Site) -> bool {
    aggregation(site).is_some_and(is_choice)
        && fails_with(&site.koios, "Parameter value is NaN")
        && is_empty(&site.prometheus)
}

/// Nothing is chosen then, which 3.14 notices first.
pub(super) fn k_below_integers(site: &Site) -> bool {
    aggregation(site).is_some_and(is_choice)
        && fails_with(&site.prometheus, "overflows int64")
        && is_empty(&site.koios)
}

fn is_empty(answer: &Answer) -> bool {
    answer.success().is_some_and(|s| s.series.is_empty())
}
