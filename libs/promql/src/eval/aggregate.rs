//! Aggregations: each series is put in its group once, then folded into the group's columns, series after series.
//!
//! What only folds ([`Group`]) never holds more than one series beside the groups.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use koios_model::{Labels, METRIC_NAME};

use super::fold::Group;
use super::inputs::Inputs;
use super::quantile::quantile_of;
use super::row::{Point, Row, RowSet, Scalars, histogram_weight};
use super::source::{RowSource, RowThen};
use super::{Evaluator, is_absent, wrong_type};
use crate::annotations::Annotations;
use crate::ast::AggregateOp;
use crate::context::Account;
use crate::error::QueryError;
use crate::memory::{LABELS_ENTRY_BYTES, Lease, Memory, of_labels};
use crate::number::format_plain;
use crate::plan::{AggregateNode, Node};
use crate::steps::Steps;
use crate::work::{UNITS_PER_CHECK, Work};

/// What a group occupies beside its columns: in the table, by labels and in the list of all.
const GROUP_BYTES: usize = LABELS_ENTRY_BYTES + size_of::<Group>();

/// How many steps of a series of floats are folded before the caller is asked whether to go on.
const FLOATS_AT_ONCE: usize = UNITS_PER_CHECK;
/// The same of a series that has histograms: what these need is taken for so many at a time.
const HISTOGRAMS_AT_ONCE: usize = 256;

/// Cuts numbers up to `count` into ranges.
fn ranges(count: usize, at_once: usize) -> impl Iterator<Item = Range<usize>> {
    let starts = (0..count).step_by(at_once);
    starts.map(move |from| from..from.saturating_add(at_once).min(count))
}

/// The groups of an aggregation that folds.
pub(super) struct Groups {
    by_labels: HashMap<Labels, usize>,
    groups: Vec<Group>,
    /// The memory of all of them.
    lease: Lease,
}

impl Groups {
    pub(super) fn new(memory: &Arc<Memory>) -> Self {
        Self {
            by_labels: HashMap::new(),
            groups: Vec::new(),
            lease: Lease::of(memory),
        }
    }

    /// What was taken for them of the query's memory.
    pub(super) fn bytes(&self) -> usize {
        self.lease.taken()
    }

    fn push(
        &mut self,
        node: &AggregateNode,
        row: &Row,
        (steps, account): (Steps, &Account),
        annotations: &mut Annotations,
        work: &mut Work<'_>,
    ) -> Result<(), QueryError> {
        work.spend(16 + node.grouping.len())?;
        let labels = group_labels(&row.labels, &node.grouping, node.without);
        let at = match self.by_labels.get(&labels) {
            Some(&at) => at,
            None => {
                account.hold(steps.count())?;
                let own = Group::bytes(node.op, steps.count());
                self.lease
                    .grow(own.saturating_add(GROUP_BYTES + of_labels(&labels)))?;
                let group = Group::new(labels.clone(), node.op, steps.count(), work)?;
                self.groups.push(group);
                self.by_labels.insert(labels, self.groups.len() - 1);
                self.groups.len() - 1
            }
        };
        let Some(group) = self.groups.get_mut(at) else {
            return Ok(());
        };
        if row.histograms.is_empty() {
            for steps in ranges(steps.count(), FLOATS_AT_ONCE) {
                work.spend(steps.len())?;
                group.push(row, steps, annotations, node.expr.span);
            }
            return Ok(());
        }
        for steps in ranges(steps.count(), HISTOGRAMS_AT_ONCE) {
            let histograms = row.histograms.get(steps.clone()).unwrap_or_default();
            let weight: usize = histograms.iter().flatten().map(|h| histogram_weight(h)).sum();
            work.spend(steps.len() + weight.saturating_mul(4))?;
            account
                .memory
                .fits(group.histogram_bytes_to_come(&steps, histograms))?;
            let before = group.histogram_bytes(&steps);
            group.push(row, steps.clone(), annotations, node.expr.span);
            self.lease
                .grow(group.histogram_bytes(&steps).saturating_sub(before))?;
        }
        Ok(())
    }

    /// One row of each group that has any.
    pub(super) fn finish(
        self,
        node: &AggregateNode,
        (steps, work): (Steps, &mut Work<'_>),
        annotations: &mut Annotations,
    ) -> Result<Vec<Row>, QueryError> {
        let mut rows = Vec::with_capacity(self.groups.len());
        for group in self.groups {
            // Results are made beside what they are made of.
            work.hold(group.histogram_bytes(&(0..steps.count())))?;
            let row = group.finish(annotations, node.expr.span, work)?;
            rows.extend((!row.is_empty()).then_some(row));
        }
        Ok(rows)
    }
}

/// Which series belong to which group; groups in order of first appearance.
pub(super) struct Grouped {
    /// Per series, its group.
    pub(super) of_row: Vec<usize>,
    /// Per group, its labels.
    pub(super) labels: Vec<Labels>,
    /// Per group, whether the name of any of its series is to go.
    pub(super) drop_name: Vec<bool>,
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
    pub(super) fn new(
        rows: &[Row],
        grouping: &[String],
        without: bool,
        work: &mut Work<'_>,
    ) -> Result<Self, QueryError> {
        work.hold(rows.len().saturating_mul(3 * size_of::<usize>()))?;
        let mut by_labels: HashMap<Labels, usize> = HashMap::new();
        let mut grouped = Self {
            of_row: Vec::with_capacity(rows.len()),
            labels: Vec::new(),
            drop_name: Vec::new(),
        };
        for row in rows {
            work.spend(16 + grouping.len())?;
            let labels = group_labels(&row.labels, grouping, without);
            let group = match by_labels.get(&labels) {
                Some(&group) => group,
                None => {
                    work.hold(2 * LABELS_ENTRY_BYTES + of_labels(&labels))?;
                    grouped.labels.push(labels.clone());
                    grouped.drop_name.push(false);
                    by_labels.insert(labels, grouped.labels.len() - 1);
                    grouped.labels.len() - 1
                }
            };
            grouped.of_row.push(group);
            if let Some(drop_name) = grouped.drop_name.get_mut(group) {
                *drop_name |= row.drop_name;
            }
        }
        Ok(grouped)
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

impl<'a> Evaluator<'a> {
    /// Evaluates an aggregation.
    pub(super) fn aggregate(
        &mut self,
        node: &'a AggregateNode,
        steps: Steps,
        inputs: &mut Inputs<'_>,
    ) -> Result<Vec<Row>, QueryError> {
        if node.op == AggregateOp::CountValues {
            return self.count_values(node, steps, inputs);
        }
        let param = match node.param {
            Some(_) => inputs.scalar()?,
            None => Scalars::Const(0.0),
        };
        match node.op {
            AggregateOp::Topk | AggregateOp::Bottomk | AggregateOp::Limitk => {
                let rows = inputs.vector()?;
                self.select_k(node, &param, &rows, steps)
            }
            AggregateOp::LimitRatio => {
                let rows = inputs.vector()?;
                self.limit_ratio(node, &param, &rows, steps)
            }
            AggregateOp::Quantile => {
                let rows = inputs.vector()?;
                self.check_quantile(node, &param, steps);
                self.quantiles(node, &rows, &param, steps)
            }
            _ => self.fold_groups(node, steps, inputs),
        }
    }

    /// Folds each series into its group as soon as it is made.
    fn fold_groups(
        &mut self,
        node: &'a AggregateNode,
        steps: Steps,
        inputs: &mut Inputs<'_>,
    ) -> Result<Vec<Row>, QueryError> {
        let mut groups = Groups::new(&self.account.memory);
        let source = self.row_source(self.nodes.get(node.expr)?, steps, inputs)?;
        self.fold_rows(node, source, steps, &mut groups)?;
        groups.finish(node, (steps, &mut self.work()), &mut self.annotations)
    }

    /// Folds the rows of a source into groups.
    pub(super) fn fold_rows(
        &mut self,
        node: &AggregateNode,
        source: RowSource<'_>,
        steps: Steps,
        groups: &mut Groups,
    ) -> Result<(), QueryError> {
        let account = self.account;
        let mut work = self.work();
        self.for_each_row(source, steps, |row, annotations| {
            groups.push(node, &row, (steps, account), annotations, &mut work)?;
            Ok(RowThen::Gone)
        })
    }

    fn check_quantile(&mut self, node: &AggregateNode, param: &Scalars, steps: Steps) {
        let Some(span) = node.param.map(|param| param.span) else {
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

    fn quantiles(
        &mut self,
        node: &AggregateNode,
        rows: &[Row],
        param: &Scalars,
        steps: Steps,
    ) -> Result<Vec<Row>, QueryError> {
        if rows.iter().any(|r| !r.histograms.is_empty()) {
            self.annotations
                .histogram_ignored_in_aggregation(node.op.as_str(), node.expr.span);
        }
        let mut work = self.work();
        let grouped = Grouped::new(rows, &node.grouping, node.without, &mut work)?;
        let mut out = Vec::with_capacity(grouped.labels.len());
        for ((labels, &drop_name), members) in grouped
            .labels
            .iter()
            .zip(&grouped.drop_name)
            .zip(grouped.members(rows))
        {
            work.hold(size_of::<Row>().saturating_add((steps.count() + members.len()).saturating_mul(8)))?;
            let mut row = Row::blank(labels.clone(), drop_name, steps.count(), &mut work)?;
            let mut values = Vec::with_capacity(members.len());
            for (i, v) in row.values.iter_mut().enumerate() {
                // Sorting is what takes long.
                work.spend(1 + members.len() * 4)?;
                values.clear();
                let at_step = members.iter().filter_map(|r| r.values.get(i).copied());
                values.extend(at_step.filter(|&v| !is_absent(v)));
                if !values.is_empty() {
                    *v = quantile_of(param.at(i), &mut values);
                }
            }
            if !row.is_empty() {
                out.push(row);
            }
        }
        Ok(out)
    }

    /// The label that `count_values` sets.
    pub(super) fn counted_label(&self, node: &AggregateNode) -> Result<&'a str, QueryError> {
        let param = node.param.map(|param| self.nodes.get(param)).transpose()?;
        let Some(Node::String { value: label, span }) = param else {
            return Err(wrong_type("string"));
        };
        if !super::labels::is_valid_name(label) {
            // Between double quotes, whatever the query has. Its text still has the bytes that are no UTF-8.
            let written = self
                .query
                .get(span.start as usize + 1..(span.end as usize).saturating_sub(1));
            let written = written.unwrap_or(label);
            return Err(QueryError::execution(format!("invalid label name \"{written}\"")));
        }
        Ok(label)
    }

    fn count_values(
        &self,
        node: &AggregateNode,
        steps: Steps,
        inputs: &mut Inputs<'_>,
    ) -> Result<Vec<Row>, QueryError> {
        let label = self.counted_label(node)?;
        let mut grouping = node.grouping.clone();
        if !node.without {
            grouping.push(label.to_owned());
        }
        let rows = inputs.vector()?;
        let mut set = RowSet::new(steps.count(), self.account, self.work());
        for row in rows {
            let mut last: Option<(u64, usize)> = None;
            for i in 0..steps.count() {
                set.spend(1 + row.histogram(i).map_or(0, |h| 16 * histogram_weight(h)))?;
                let (text, bits) = match row.point(i) {
                    Point::Absent => continue,
                    Point::Float(v) => (format_plain(v), Some(v.to_bits())),
                    Point::Histogram(h) => (crate::histogram::format(&h), None),
                };
                let out = match (bits, last) {
                    (Some(bits), Some((same, out))) if bits == same => out,
                    _ => {
                        set.spend(32)?;
                        let mut labels = row.labels.to_builder();
                        labels.set(label, &text);
                        set.row(&group_labels(&labels.build(), &grouping, node.without), false)?
                    }
                };
                last = bits.map(|b| (b, out));
                set.increment(out, i);
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
