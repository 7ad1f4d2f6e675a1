//! Names, labels and matching.

use std::collections::BTreeMap;

use koios_model::{Labels, METRIC_NAME, MatchOp, Matcher};
use koios_promql::{BinaryOp, Cardinality, Expr, ExprId, ExprRef, FunctionId, VectorMatching};

use super::super::answer::{Answer, Point, Success};
use super::super::site::{Operand, Site};
use super::numbers::apply;
use super::{binary_op, fails_with, function};
use crate::query_gen::Times;

const SAME_LABELSET: &str = "vector cannot contain metrics with the same labelset";
const NOT_UNIQUE: &str = "grouping labels must ensure unique matches";

/// The operand fails on both sides when asked by itself, as its result then stands at the end.
pub(super) fn removed_late(site: &Site) -> bool {
    [SAME_LABELSET, NOT_UNIQUE].iter().any(|message| {
        let fails = |o: &Operand| fails_with(&o.prometheus, message) && fails_with(&o.koios, SAME_LABELSET);
        fails_with(&site.prometheus, message) && site.operands.iter().any(fails)
    })
}

/// By or on names, of what drops them: these are still there in 3.14, where 2.42 has none any more.
pub(super) fn matched_before_removal(site: &Site) -> bool {
    let by_names = |labels: &[String]| labels.iter().any(|name| name == METRIC_NAME);
    let calculates = |id| site.within(id).is_some_and(calculates);
    match site.expr() {
        Some(Expr::Aggregate(e)) => !e.without && by_names(&e.grouping) && calculates(e.expr),
        Some(Expr::Binary(e)) => e.matching.as_ref().is_some_and(|matching| {
            let on_names = matching.on && by_names(&matching.labels);
            let many = matches!(matching.card, Cardinality::ManyToOne | Cardinality::OneToMany);
            let unlike = many && fails_with(&site.prometheus, NOT_UNIQUE);
            (on_names || unlike && site.koios.success().is_some())
                && (e.return_bool || calculates(e.lhs) || calculates(e.rhs))
        }),
        // Over time, what `or` unites has names that make series of it which are equal at the end.
        Some(Expr::Call(e)) => {
            let unites = |arg: &ExprId| match site.within(*arg).map(ExprRef::expr) {
                Some(Expr::Subquery(s)) => site.within(s.expr).is_some_and(unites) && calculates(s.expr),
                _ => false,
            };
            fails_with(&site.koios, SAME_LABELSET)
                && site.prometheus.success().is_some()
                && e.args.iter().any(unites)
        }
        _ => false,
    }
}

fn unites(expr: ExprRef<'_>) -> bool {
    expr.below()
        .any(|e| matches!(e.expr(), Expr::Binary(b) if b.op == BinaryOp::Or))
}

/// Whether there is more to an expression than selectors.
fn calculates(expr: ExprRef<'_>) -> bool {
    expr.below()
        .any(|e| matches!(e.expr(), Expr::Call(_) | Expr::Binary(_) | Expr::Unary(_)))
}

/// No single time shows the difference, or the site would be about that time.
pub(super) fn equal_at_different_times(site: &Site) -> bool {
    fails_with(&site.prometheus, SAME_LABELSET)
        && site.koios.success().is_some()
        && matches!(site.asked.times, Times::Range { .. })
}

pub(super) fn kept_by_atan2(site: &Site) -> bool {
    if binary_op(site) != Some(BinaryOp::Atan2) {
        return false;
    }
    match site.prometheus.success().map(without_names) {
        Some(Some(theirs)) => Answer::difference(&Answer::Success(theirs), &site.koios, false).is_none(),
        Some(None) => {
            fails_with(&site.koios, SAME_LABELSET) || fails_with(&site.koios, "multiple matches for labels")
        }
        None => false,
    }
}

/// The result without metric names; nothing when labels are equal then.
fn without_names(success: &Success) -> Option<Success> {
    let mut series = BTreeMap::new();
    for (labels, points) in &success.series {
        let labels = labels.without(|name| name == METRIC_NAME);
        if series.insert(labels, points.clone()).is_some() {
            return None;
        }
    }
    Some(Success {
        series,
        ..success.clone()
    })
}

/// Of set operators, which leave series as they are: without names both sides have the same samples.
pub(super) fn united_by_a_name(site: &Site) -> bool {
    let takes_whole = matches!(
        binary_op(site),
        Some(BinaryOp::And | BinaryOp::Or | BinaryOp::Unless)
    );
    let (true, Some(theirs), Some(ours)) = (takes_whole, site.prometheus.success(), site.koios.success())
    else {
        return false;
    };
    let joined = |success: &Success| {
        let mut series: BTreeMap<Labels, Vec<Point>> = BTreeMap::new();
        for (labels, points) in &success.series {
            let labels = labels.without(|name| name == METRIC_NAME);
            series.entry(labels).or_default().extend_from_slice(points);
        }
        for points in series.values_mut() {
            points.sort_by_key(|point| point.t_ms);
        }
        Answer::Success(Success {
            series,
            ..success.clone()
        })
    };
    matches!(site.asked.times, Times::Range { .. })
        && theirs.series.len() > ours.series.len()
        && Answer::difference(&joined(theirs), &joined(ours), false).is_none()
}

/// Several series match the same one at a time, and at most one of these pairs passes.
pub(super) fn filtered_matches(site: &Site) -> bool {
    let Some(Expr::Binary(binary)) = site.expr() else {
        return false;
    };
    let (Some(matching), true) = (&binary.matching, binary.op.is_comparison() && !binary.return_bool) else {
        return false;
    };
    let operand = |expr| site.operand(expr).and_then(|o| o.prometheus.success());
    let (Some(left), Some(right)) = (operand(binary.lhs), operand(binary.rhs)) else {
        return false;
    };
    let mut pairs: BTreeMap<(i64, Labels), (usize, usize)> = BTreeMap::new();
    for (t_ms, l, a) in floats(left) {
        for (_, r, b) in floats(right).filter(|(t, r, _)| *t == t_ms && matches_in(matching, l, r)) {
            let key = (t_ms, result_labels(matching, l, r));
            let (matched, passed) = pairs.entry(key).or_default();
            *matched += 1;
            *passed += usize::from(apply(binary.op, a, b) != 0.0);
        }
    }
    site.prometheus.success().is_some()
        && fails_with(&site.koios, "multiple matches for labels")
        && pairs.values().any(|(matched, _)| *matched > 1)
        && pairs.values().all(|(_, passed)| *passed <= 1)
}

fn floats(success: &Success) -> impl Iterator<Item = (i64, &Labels, f64)> {
    success
        .series
        .iter()
        .flat_map(|(labels, points)| points.iter().map(move |p| (p.t_ms, labels, p.value.counted())))
}

fn signature(matching: &VectorMatching, labels: &Labels) -> Labels {
    let named = |name: &str| matching.labels.iter().any(|n| n == name);
    if matching.on {
        labels.without(|name| !named(name))
    } else {
        labels.without(|name| named(name) || name == METRIC_NAME)
    }
}

fn matches_in(matching: &VectorMatching, left: &Labels, right: &Labels) -> bool {
    signature(matching, left) == signature(matching, right)
}

/// What may be there once only: the labels that are compared, or those of the result where one matches many.
fn result_labels(matching: &VectorMatching, left: &Labels, right: &Labels) -> Labels {
    let (many, one) = match matching.card {
        Cardinality::ManyToOne => (left, right),
        Cardinality::OneToMany => (right, left),
        _ => return signature(matching, left),
    };
    let mut labels = many.to_builder();
    for name in &matching.include {
        labels.set(name, one.get(name).unwrap_or_default());
    }
    labels.build()
}

pub(super) fn dots_match_line_breaks(site: &Site) -> bool {
    let (Some(theirs), Some(ours)) = (site.prometheus.success(), site.koios.success()) else {
        return false;
    };
    // What both have is the same.
    let shared = |success: &Success, other: &Success| {
        let mut success = success.clone();
        success
            .series
            .retain(|labels, _| other.series.contains_key(labels));
        Answer::Success(success)
    };
    if Answer::difference(&shared(theirs, ours), &shared(ours, theirs), false).is_some() {
        return false;
    }
    let one_sided = |a: &Success, b: &Success| -> Vec<Labels> {
        a.series
            .keys()
            .filter(|labels| !b.series.contains_key(*labels))
            .cloned()
            .collect()
    };
    let mut differing = one_sided(theirs, ours);
    // What label_replace made of a line break does not show it any more.
    if function(site) != Some(FunctionId::LabelReplace) {
        differing.extend(one_sided(ours, theirs));
    }
    let broken = |name: &str| {
        !differing.is_empty()
            && differing
                .iter()
                .all(|labels| labels.get(name).is_some_and(|value| value.contains('\n')))
    };
    match site.expr() {
        Some(Expr::Vector(selector)) => selector.matchers.iter().any(|m| has_dot(m) && broken(m.name())),
        Some(Expr::Matrix(matrix)) => matrix
            .selector
            .matchers
            .iter()
            .any(|m| has_dot(m) && broken(m.name())),
        Some(Expr::Call(call)) if function(site) == Some(FunctionId::LabelReplace) => {
            let arg = |i: usize| call.args.get(i).and_then(|arg| site.within(*arg));
            let text = |i: usize| match arg(i).map(ExprRef::expr) {
                Some(Expr::String(text)) => text.value.as_str(),
                _ => "",
            };
            text(4).contains('.') && broken(text(3))
        }
        _ => false,
    }
}

fn has_dot(matcher: &Matcher) -> bool {
    matches!(matcher.op(), MatchOp::Regex | MatchOp::NotRegex) && matcher.value().contains('.')
}
