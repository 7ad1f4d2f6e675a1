//! What Prometheus 2.42 answers differently from 3.14 on purpose, or by mistakes since repaired.
//!
//! An entry is asked about the smallest part of a query that differs, with the equal answers of its operands at hand, so
//! that it can be as narrow as the change it stands for. docs/promql-differences.md lists the same for people.

mod extrapolation;
mod language;
mod names;
mod numbers;
mod ranges;

use koios_model::Labels;
use koios_promql::{AggregateOp, BinaryOp, Expr, FunctionId};

use super::answer::{Answer, PointValue};
use super::site::Site;

/// A known difference.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// What it is called in reports and in the documentation.
    pub name: &'static str,
    /// Why it is none of ours.
    pub reason: &'static str,
    applies: fn(&Site) -> bool,
}

/// The entry that explains a site.
pub fn known(site: &Site) -> Option<&'static Known> {
    KNOWN.iter().find(|known| (known.applies)(site))
}

/// The name of the one that is seen by asking again, too.
pub(super) const TIES: &str = "ties";

/// Whether there is a choice among series in an expression.
pub(super) fn chooses(expr: &Expr) -> bool {
    let mut found = false;
    expr.visit(&mut |e, _| {
        found |= matches!(e, Expr::Aggregate(e) if matches!(e.op, AggregateOp::Topk | AggregateOp::Bottomk));
    });
    found
}

/// All of them.
pub const KNOWN: &[Known] = &[
    Known {
        name: "durations are numbers",
        reason: "since 3.0 a duration can be written as a number of seconds, and the other way round; an offset may be 0",
        applies: language::durations_are_numbers,
    },
    Known {
        name: "any label name",
        reason: "since 3.0 a label name is any text",
        applies: language::any_label_name,
    },
    Known {
        name: "late name removal",
        reason: "2.42 fails as soon as dropped names make labels equal; since 3.0 names go at the end, and only what is \
                 left then counts",
        applies: names::removed_late,
    },
    Known {
        name: "equal labels at different times",
        reason: "2.42 fails when labels are equal anywhere in a range; 3.14 only when they are at one time",
        applies: names::equal_at_different_times,
    },
    Known {
        name: "atan2 keeps names",
        reason: "2.42 does not drop metric names after atan2",
        applies: names::kept_by_atan2,
    },
    Known {
        name: "filtered matches",
        reason: "2.42 does not see a second match that a comparison filters out",
        applies: names::filtered_matches,
    },
    Known {
        name: "dots and line breaks",
        reason: "since 3.0 a dot in a regular expression matches a line break",
        applies: names::dots_match_line_breaks,
    },
    Known {
        name: "extrapolation towards zero",
        reason: "3.14 asks first whether the range begins long before the first sample, and only then where a counter \
                 was zero; 2.42 does not ask that of native histograms at all",
        applies: extrapolation::towards_zero,
    },
    Known {
        name: "left-open ranges",
        reason: "since 3.0 a sample at the very start of a range is not in it",
        applies: ranges::left_open,
    },
    Known {
        name: "subqueries without points",
        reason: "where a subquery has no point within its range, Prometheus evaluates what @ fixes all the same, at a \
                 time after the range",
        applies: ranges::subquery_without_points,
    },
    Known {
        name: "moving ranges with @",
        reason: "2.42 moves a range fixed by @ when another argument is different at each step",
        applies: ranges::moved_in_spite_of_at,
    },
    Known {
        name: "timestamp forgets the offset",
        reason: "timestamp of a selector with @ and an offset leaves the offset out, in 3.14, too",
        applies: ranges::offset_forgotten_by_timestamp,
    },
    Known {
        name: "deviation of no number",
        reason: "2.42 says that a single NaN or infinity deviates by 0; 3.14 by NaN",
        applies: numbers::deviation_of_no_number,
    },
    Known {
        name: "overflow with compensation",
        reason: "2.42 makes NaN of a sum that overflows, 3.14 infinity",
        applies: numbers::overflow_with_compensation,
    },
    Known {
        name: "k below integers",
        reason: "topk and bottomk with a k below the least integer are an error in 2.42, and nothing in 3.14",
        applies: numbers::k_below_integers,
    },
    Known {
        name: "parameters of nothing",
        reason: "2.42 does not look at k where no series is there to choose from",
        applies: numbers::parameter_of_nothing,
    },
    Known {
        name: "edges of floats",
        reason: "Go 1.19 takes logarithms of subnormal numbers wrongly and lets exp overflow a little early",
        applies: numbers::edges_of_floats,
    },
    Known {
        name: TIES,
        reason: "topk and bottomk may choose any of equal values",
        applies: numbers::ties,
    },
    Known {
        name: "dates of no number",
        reason: "Go leaves open what NaN, infinity and numbers too large for it are as a time",
        applies: numbers::dates_of_no_number,
    },
    Known {
        name: "sums without compensation",
        reason: "2.42 adds up without compensation: what it loses is small beside the numbers added",
        applies: numbers::sums_without_compensation,
    },
    Known {
        name: "amplified rounding",
        reason: "the operands differ by rounding, and this part makes much of little: a comparison, a difference, a step",
        applies: numbers::amplified_rounding,
    },
];

fn function(site: &Site) -> Option<FunctionId> {
    match &site.expr {
        Some(Expr::Call(e)) => Some(e.function),
        _ => None,
    }
}

fn aggregation(site: &Site) -> Option<AggregateOp> {
    match &site.expr {
        Some(Expr::Aggregate(e)) => Some(e.op),
        _ => None,
    }
}

fn binary_op(site: &Site) -> Option<BinaryOp> {
    match &site.expr {
        Some(Expr::Binary(e)) => Some(e.op),
        _ => None,
    }
}

fn fails_with(answer: &Answer, message: &str) -> bool {
    answer.failure().is_some_and(|e| e.message.contains(message))
}

/// A value on which both sides differ.
struct Pair<'a> {
    labels: &'a Labels,
    t_ms: i64,
    prometheus: &'a PointValue,
    koios: &'a PointValue,
}

impl Pair<'_> {
    fn floats(&self) -> Option<(f64, f64)> {
        match (self.prometheus, self.koios) {
            (PointValue::Float(a), PointValue::Float(b)) => Some((*a, *b)),
            _ => None,
        }
    }
}

/// All values that differ, if both sides have the same series at the same times.
fn differing(site: &Site) -> Option<Vec<Pair<'_>>> {
    let (prometheus, koios) = (site.prometheus.success()?, site.koios.success()?);
    if prometheus.series.len() != koios.series.len() {
        return None;
    }
    let mut pairs = Vec::new();
    for ((labels, a), (other, b)) in prometheus.series.iter().zip(&koios.series) {
        if labels != other || a.len() != b.len() {
            return None;
        }
        for (a, b) in a.iter().zip(b) {
            if a.t_ms != b.t_ms {
                return None;
            }
            if !a.value.close(&b.value) {
                pairs.push(Pair {
                    labels,
                    t_ms: a.t_ms,
                    prometheus: &a.value,
                    koios: &b.value,
                });
            }
        }
    }
    Some(pairs)
}

/// Whether there are values that differ, all of them in a way that `explained` says.
fn all_differing(site: &Site, explained: impl FnMut(&Pair<'_>) -> bool) -> bool {
    differing(site).is_some_and(|pairs| !pairs.is_empty() && pairs.iter().all(explained))
}
