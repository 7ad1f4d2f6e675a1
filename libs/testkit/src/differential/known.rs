//! What may differ between Prometheus 2.42 and Koios.
//!
//! Most is what 2.42 answers differently from 3.14, on purpose or by mistakes since repaired. Some is where Koios departs
//! from 3.14 itself, and some is up to neither. An entry is asked about the smallest part of a query that differs, with
//! the equal answers of its operands at hand, so that it can be as narrow as the change it stands for.
//! docs/promql-differences.md lists the same for people.

mod choices;
mod extrapolation;
mod language;
mod names;
mod numbers;
mod ranges;
mod rounding;

use koios_model::Labels;
use koios_promql::{AggregateOp, BinaryOp, Expr, FunctionId};

use super::answer::{Answer, PointValue};
use super::site::Site;

pub(super) use choices::chooses;

/// Who or what a difference is up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// 2.42: what 3.14 answers, Koios answers.
    Version,
    /// Koios: 3.14 answers as 2.42 does, or would.
    Departure,
    /// Nobody: an answer is as good as another.
    Open,
}

/// A known difference.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// What it is called in reports and in the documentation.
    pub name: &'static str,
    /// Why it is none that matters.
    pub reason: &'static str,
    /// Who or what it is up to.
    pub nature: Nature,
    applies: fn(&Site) -> bool,
}

/// The entry that explains a site.
pub(super) fn known(site: &Site) -> Option<&'static Known> {
    KNOWN.iter().find(|known| (known.applies)(site))
}

/// The name of the one that is seen by asking again, too.
pub(super) const TIES: &str = "ties";

/// All of them.
pub const KNOWN: &[Known] = &[
    Known {
        name: "durations are numbers",
        reason: "since 3.0 a duration can be written as a number of seconds, and the other way round; an offset may be 0",
        nature: Nature::Version,
        applies: language::durations_are_numbers,
    },
    Known {
        name: "any label name",
        reason: "since 3.0 a label name is any text",
        nature: Nature::Version,
        applies: language::any_label_name,
    },
    Known {
        name: "late name removal",
        reason: "2.42 fails as soon as dropped names make labels equal; since 3.0 names go at the end, and only what is \
                 left then counts",
        nature: Nature::Version,
        applies: names::removed_late,
    },
    Known {
        name: "names not yet removed",
        reason: "2.42 matches and groups by the names that are left; since 3.0 by those that go at the end, too",
        nature: Nature::Version,
        applies: names::matched_before_removal,
    },
    Known {
        name: "equal labels at different times",
        reason: "2.42 fails when labels are equal anywhere in a range; 3.14 only when they are at one time",
        nature: Nature::Version,
        applies: names::equal_at_different_times,
    },
    Known {
        name: "united by a name",
        reason: "in 2.42 a series that loses its name and one that keeps it are two; in 3.14 they are one where their \
                 labels are equal before the end",
        nature: Nature::Version,
        applies: names::united_by_a_name,
    },
    Known {
        name: "atan2 keeps names",
        reason: "2.42 does not drop metric names after atan2",
        nature: Nature::Version,
        applies: names::kept_by_atan2,
    },
    Known {
        name: "filtered matches",
        reason: "2.42 does not see a second match that a comparison filters out",
        nature: Nature::Version,
        applies: names::filtered_matches,
    },
    Known {
        name: "dots and line breaks",
        reason: "since 3.0 a dot in a regular expression matches a line break",
        nature: Nature::Version,
        applies: names::dots_match_line_breaks,
    },
    Known {
        name: "extrapolation towards zero",
        reason: "3.14 asks first whether the range begins long before the first sample, and only then where a counter \
                 was zero; 2.42 does not ask that of native histograms at all",
        nature: Nature::Version,
        applies: extrapolation::towards_zero,
    },
    Known {
        name: "resolution before a reset",
        reason: "2.42 makes a rate as coarse as a first sample that it does not use because of a reset",
        nature: Nature::Version,
        applies: extrapolation::resolution_before_a_reset,
    },
    Known {
        name: "left-open ranges",
        reason: "since 3.0 a sample at the very start of a range is not in it",
        nature: Nature::Version,
        applies: ranges::left_open,
    },
    Known {
        name: "subqueries without points",
        reason: "where a subquery has no point within its range, Prometheus evaluates what @ fixes all the same, at a \
                 time after the range",
        nature: Nature::Departure,
        applies: ranges::subquery_without_points,
    },
    Known {
        name: "parameters with @",
        reason: "what @ fixes in the parameter of an aggregation Prometheus moves with each step all the same, and start() \
                 and end() it does not heed there",
        nature: Nature::Departure,
        applies: ranges::parameter_moved_in_spite_of_at,
    },
    Known {
        name: "moving ranges with @",
        reason: "2.42 moves a range fixed by @ below what is different at each step all the same",
        nature: Nature::Version,
        applies: ranges::moved_in_spite_of_at,
    },
    Known {
        name: "deviation of no number",
        reason: "2.42 says that a single NaN or infinity deviates by 0; 3.14 by NaN",
        nature: Nature::Version,
        applies: numbers::deviation_of_no_number,
    },
    Known {
        name: "overflow with compensation",
        reason: "2.42 makes NaN of a sum that overflows, 3.14 infinity",
        nature: Nature::Version,
        applies: numbers::overflow_with_compensation,
    },
    Known {
        name: "quantiles of empty buckets",
        reason: "2.42 takes an empty bucket that comes first for that of the least observation, and makes NaN of it",
        nature: Nature::Version,
        applies: rounding::quantile_of_an_empty_bucket,
    },
    Known {
        name: "k below integers",
        reason: "topk and bottomk with a k below the least integer are an error in 2.42, and nothing in 3.14",
        nature: Nature::Version,
        applies: choices::k_below_integers,
    },
    Known {
        name: "parameters of nothing",
        reason: "2.42 does not look at k where no series is there to choose from",
        nature: Nature::Version,
        applies: choices::parameter_of_nothing,
    },
    Known {
        name: "edges of floats",
        reason: "Go 1.19 takes logarithms and powers of subnormal numbers wrongly and lets exp overflow a little early",
        nature: Nature::Version,
        applies: numbers::edges_of_floats,
    },
    Known {
        name: TIES,
        reason: "topk and bottomk may choose any of equal values",
        nature: Nature::Open,
        applies: choices::ties,
    },
    Known {
        name: "dates of no number",
        reason: "Go leaves open what NaN, infinity and numbers beyond 64-bit integers are as a time",
        nature: Nature::Departure,
        applies: numbers::dates_of_no_number,
    },
    Known {
        name: "sums without compensation",
        reason: "2.42 adds up series without compensation: what it loses is small beside the numbers added",
        nature: Nature::Version,
        applies: rounding::sums_without_compensation,
    },
    Known {
        name: "amplified rounding",
        reason: "the operands differ by rounding, and this part makes much of little: what each side answers follows \
                 from its own operands",
        nature: Nature::Open,
        applies: rounding::amplified_rounding,
    },
];

fn function(site: &Site) -> Option<FunctionId> {
    match site.expr() {
        Some(Expr::Call(e)) => Some(e.function),
        _ => None,
    }
}

fn aggregation(site: &Site) -> Option<AggregateOp> {
    match site.expr() {
        Some(Expr::Aggregate(e)) => Some(e.op),
        _ => None,
    }
}

fn binary_op(site: &Site) -> Option<BinaryOp> {
    match site.expr() {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The names and reasons of a section's table.
    fn documented(section: &str) -> Vec<(String, String)> {
        let text = include_str!("../../../../docs/promql-differences.md");
        let (_, rest) = text.split_once(&format!("## {section}\n")).unwrap();
        let rows = rest
            .lines()
            .take_while(|line| !line.starts_with("## "))
            .filter(|line| line.starts_with('|'));
        let cells =
            |row: &str| -> Vec<String> { row.split('|').map(|cell| cell.trim().to_owned()).collect() };
        rows.skip(2)
            .map(|row| (cells(row)[1].clone(), cells(row)[2].clone()))
            .collect()
    }

    #[test]
    fn the_documentation_has_all_of_them_and_no_others() {
        let sections = [
            ("Between 2.42 and 3.14", Nature::Version),
            ("Between 3.14 and Koios", Nature::Departure),
            ("Left open", Nature::Open),
        ];
        for (section, nature) in sections {
            let of_nature = KNOWN.iter().filter(|known| known.nature == nature);
            let listed: Vec<_> = of_nature
                .map(|known| (known.name.to_owned(), known.reason.to_owned()))
                .collect();
            assert_eq!(documented(section), listed, "{section}");
        }
    }
}
