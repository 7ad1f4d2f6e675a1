//! Aggregations: each series is put in its group once, then folded into the group's columns, series after series.

use std::collections::HashMap;
use std::sync::Arc;

use koios_model::{Histogram, Labels, METRIC_NAME};

use super::aggregate_histogram::{self, Combined};
use super::quantile::quantile_of;
use super::row::{Point, Row, RowSet, Scalars};
use super::{Evaluator, is_absent, wrong_type};
use crate::ast::AggregateOp;
use crate::context::check;
use crate::error::QueryError;
use crate::kahan::{Kahan, Mean};
use crate::number::format_plain;
use crate::plan::{AggregateNode, Node};
use crate::steps::Steps;

/// Which series belong to which group; groups in order of first appearance.
pub(super) struct Grouped {
    /// Per series, its group.
    pub(super) of_row: Vec<usize>,
    /// Per group, its labels.
    pub(super) labels: Vec<Labels>,
    /// Per group, whether the name of any of its series is to go.
    drop_name: Vec<bool>,
}

/// The labels an aggregation keeps.
fn group_labels(labels: &Labels, grouping: &[String], without: bool) -> Labels {
    let named = |n: &str| grouping.iter().any(|g| g == n);
    if without {
        labels.without(|n| n == METRIC_NAME || named(n))
    } else {
        labels.without(|n| !named(n))
    }
}

impl Grouped {
    pub(super) fn new(rows: &[Row], grouping: &[String], without: bool) -> Self {
        let mut by_labels: HashMap<Labels, usize> = HashMap::new();
        let mut grouped = Self {
            of_row: Vec::with_capacity(rows.len()),
            labels: Vec::new(),
            drop_name: Vec::new(),
        };
        for row in rows {
            let labels = group_labels(&row.labels, grouping, without);
            let group = *by_labels.entry(labels).or_insert_with_key(|labels| {
                grouped.labels.push(labels.clone());
                grouped.drop_name.push(false);
                grouped.labels.len() - 1
            });
            grouped.of_row.push(group);
            if let Some(drop_name) = grouped.drop_name.get_mut(group) {
                *drop_name |= row.drop_name;
            }
        }
        grouped
    }

    /// The series of each group.
    pub(super) fn members<'r>(&self, rows: &'r [Row]) -> Vec<Vec<&'r Row>> {
        let mut members = vec![Vec::new(); self.labels.len()];
        for (row, &group) in rows.iter().zip(&self.of_row) {
            if let Some(of_group) = members.get_mut(group) {
                of_group.push(row);
            }
        }
        members
    }
}

impl Evaluator<'_> {
    /// Evaluates an aggregation.
    pub(super) fn aggregate(&mut self, node: &AggregateNode, steps: Steps) -> Result<Vec<Row>, QueryError> {
        if node.op == AggregateOp::CountValues {
            return self.count_values(node, steps);
        }
        let param = match &node.param {
            Some(param) => self.scalar(param, steps)?,
            None => Scalars::Const(0.0),
        };
        let rows = self.vector(&node.expr, steps)?;
        match node.op {
            AggregateOp::Topk | AggregateOp::Bottomk | AggregateOp::Limitk => {
                return self.select_k(node, &param, rows, steps);
            }
            AggregateOp::LimitRatio => return self.limit_ratio(node, &param, rows, steps),
            AggregateOp::Quantile => self.check_quantile(node, &param, steps),
            _ => {}
        }
        let grouped = Grouped::new(&rows, &node.grouping, node.without);
        let mut out = Vec::with_capacity(grouped.labels.len());
        for (g, members) in grouped.members(&rows).into_iter().enumerate() {
            check(self.ctx)?;
            let (Some(labels), Some(&drop_name)) = (grouped.labels.get(g), grouped.drop_name.get(g)) else {
                continue;
            };
            let mut row = Row::new(labels.clone(), drop_name, steps.count());
            self.fold_group(node, &members, &param, &mut row)?;
            if !row.is_empty() {
                out.push(row);
            }
        }
        Ok(out)
    }

    fn check_quantile(&mut self, node: &AggregateNode, param: &Scalars, steps: Steps) {
        let Some(span) = node.param.as_ref().map(Node::span) else {
            return;
        };
        let (low, high, nan) = extent(param, steps);
        if nan {
            self.annotations.invalid_quantile(f64::NAN, span);
        }
        if high > 1.0 {
            self.annotations.invalid_quantile(high, span);
        }
        if low < 0.0 {
            self.annotations.invalid_quantile(low, span);
        }
    }

    fn fold_group(
        &mut self,
        node: &AggregateNode,
        members: &[&Row],
        param: &Scalars,
        out: &mut Row,
    ) -> Result<(), QueryError> {
        match node.op {
            AggregateOp::Sum => fold(
                members,
                &mut out.values,
                Kahan::new,
                |k, v| *k = k.plus(v),
                Kahan::total,
            ),
            AggregateOp::Avg => fold(members, &mut out.values, Mean::new, Mean::push, Mean::value),
            AggregateOp::Min => fold(
                members,
                &mut out.values,
                |v| v,
                |best, v| {
                    if *best > v || best.is_nan() {
                        *best = v;
                    }
                },
                |v| v,
            ),
            AggregateOp::Max => fold(
                members,
                &mut out.values,
                |v| v,
                |best, v| {
                    if *best < v || best.is_nan() {
                        *best = v;
                    }
                },
                |v| v,
            ),
            AggregateOp::Stdvar => {
                fold(
                    members,
                    &mut out.values,
                    Welford::new,
                    Welford::push,
                    Welford::variance,
                );
            }
            AggregateOp::Stddev => {
                fold(members, &mut out.values, Welford::new, Welford::push, |w| {
                    w.variance().sqrt()
                });
            }
            AggregateOp::Quantile => self.quantiles(members, param, out)?,
            // Count and group take histograms, too.
            _ => {
                for (i, v) in out.values.iter_mut().enumerate() {
                    let present = members.iter().filter(|r| r.has(i)).count();
                    if present > 0 {
                        *v = if node.op == AggregateOp::Count {
                            present as f64
                        } else {
                            1.0
                        };
                    }
                }
                return Ok(());
            }
        }
        if members.iter().all(|r| r.histograms.is_empty()) {
            return Ok(());
        }
        if matches!(node.op, AggregateOp::Sum | AggregateOp::Avg) {
            self.fold_histograms(node, members, out)
        } else {
            self.annotations
                .histogram_ignored_in_aggregation(node.op.as_str(), node.expr.span());
            Ok(())
        }
    }

    fn quantiles(&self, members: &[&Row], param: &Scalars, out: &mut Row) -> Result<(), QueryError> {
        let mut values = Vec::with_capacity(members.len());
        for (i, v) in out.values.iter_mut().enumerate() {
            if i % 64 == 0 {
                check(self.ctx)?;
            }
            values.clear();
            values.extend(
                members
                    .iter()
                    .filter_map(|r| r.values.get(i).copied())
                    .filter(|&v| !is_absent(v)),
            );
            if !values.is_empty() {
                *v = quantile_of(param.at(i), &mut values);
            }
        }
        Ok(())
    }

    /// Adds the histograms of a group; where there are floats, too, there is no result.
    fn fold_histograms(
        &mut self,
        node: &AggregateNode,
        members: &[&Row],
        out: &mut Row,
    ) -> Result<(), QueryError> {
        let span = node.expr.span();
        for i in 0..out.values.len() {
            check(self.ctx)?;
            let histograms: Vec<(&Arc<Histogram>, &str)> = members
                .iter()
                .filter_map(|r| Some((r.histogram(i)?, r.metric_name())))
                .collect();
            if histograms.is_empty() {
                continue;
            }
            if out.values.get(i).is_some_and(|&v| !is_absent(v)) {
                self.annotations.mixed_floats_histograms_in_aggregation(span);
                out.set(i, Point::Float(super::absent()));
                continue;
            }
            let how = if node.op == AggregateOp::Sum {
                Combined::Sum
            } else {
                Combined::Mean
            };
            let point = aggregate_histogram::combine(&histograms, how, &mut self.annotations, span);
            out.set(i, point);
        }
        Ok(())
    }

    fn count_values(&mut self, node: &AggregateNode, steps: Steps) -> Result<Vec<Row>, QueryError> {
        let Some(Node::String { value: label, span }) = &node.param else {
            return Err(wrong_type("string"));
        };
        if !super::labels::is_valid_name(label) {
            let written = self
                .query
                .get(span.start as usize..span.end as usize)
                .unwrap_or(label);
            return Err(QueryError::execution(format!("invalid label name {written}")));
        }
        let mut grouping = node.grouping.clone();
        if !node.without {
            grouping.push(label.clone());
        }
        let mut counts: Vec<Vec<f64>> = Vec::new();
        let mut set = RowSet::new(steps.count());
        for row in self.vector(&node.expr, steps)? {
            check(self.ctx)?;
            let mut last: Option<(u64, usize)> = None;
            for i in 0..steps.count() {
                let (text, bits) = match row.point(i) {
                    Point::Absent => continue,
                    Point::Float(v) => (format_plain(v), Some(v.to_bits())),
                    Point::Histogram(h) => (crate::histogram::format(&h), None),
                };
                let out = match (bits, last) {
                    (Some(bits), Some((same, out))) if bits == same => out,
                    _ => {
                        let mut labels = row.labels.to_builder();
                        labels.set(label, &text);
                        set.row(&group_labels(&labels.build(), &grouping, node.without), false)
                    }
                };
                last = bits.map(|b| (b, out));
                if counts.len() <= out {
                    counts.resize_with(out + 1, || vec![0.0; steps.count()]);
                    self.account.hold(steps.count())?;
                }
                if let Some(count) = counts.get_mut(out).and_then(|c| c.get_mut(i)) {
                    *count += 1.0;
                }
            }
        }
        for (out, counts) in counts.into_iter().enumerate() {
            for (i, count) in counts.into_iter().enumerate().filter(|(_, c)| *c > 0.0) {
                set.set(out, i, Point::Float(count))?;
            }
        }
        Ok(set.into_rows())
    }
}

/// Least and greatest value of a parameter, and whether it is ever NaN.
pub(super) fn extent(param: &Scalars, steps: Steps) -> (f64, f64, bool) {
    let all = (0..steps.count()).map(|i| param.at(i));
    all.fold(
        (f64::INFINITY, f64::NEG_INFINITY, false),
        |(low, high, nan), v| (low.min(v), high.max(v), nan || v.is_nan()),
    )
}

/// Folds the floats of some series, in their order, into one column.
fn fold<S: Copy>(
    members: &[&Row],
    out: &mut [f64],
    first: impl Fn(f64) -> S,
    next: impl Fn(&mut S, f64),
    value: impl Fn(S) -> f64,
) {
    let mut states: Vec<Option<S>> = vec![None; out.len()];
    for row in members {
        for (state, &v) in states.iter_mut().zip(&row.values) {
            if is_absent(v) {
                continue;
            }
            match state {
                Some(state) => next(state, v),
                None => *state = Some(first(v)),
            }
        }
    }
    for (out, state) in out.iter_mut().zip(states) {
        if let Some(state) = state {
            *out = value(state);
        }
    }
}

/// A running variance (Welford).
#[derive(Clone, Copy)]
struct Welford {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Welford {
    fn new(first: f64) -> Self {
        Self {
            count: 1.0,
            mean: first,
            squares: if first.is_finite() { 0.0 } else { f64::NAN },
        }
    }

    fn push(&mut self, v: f64) {
        self.count += 1.0;
        let delta = v - self.mean;
        self.mean += delta / self.count;
        self.squares += delta * (v - self.mean);
    }

    fn variance(self) -> f64 {
        self.squares / self.count
    }
}
