//! Function calls: which kernel runs over which argument.

use std::collections::BTreeMap;

use koios_model::{Labels, LabelsBuilder, METRIC_NAME, MatchOp, Matcher};

use super::inputs::Inputs;
use super::row::Row;
use super::select::Take;
use super::source::RowSource;
use super::{Evaluated, Evaluator};
use crate::ast::RangeEdges;
use crate::error::QueryError;
use crate::plan::{CallNode, Node};
use crate::signatures::FunctionId;
use crate::steps::Steps;
use crate::work::Work;

impl<'a> Evaluator<'a> {
    /// Evaluates a function call.
    pub(super) fn call(
        &mut self,
        node: &'a CallNode,
        steps: Steps,
        inputs: &mut Inputs<'_>,
    ) -> Result<Evaluated, QueryError> {
        if let Some(source) = self.range_source(node, steps, inputs)? {
            let rows = self.collect(source, steps)?;
            if node.function == FunctionId::AbsentOverTime {
                let labels = self.absent_labels(node)?;
                return absent_rows(&rows, labels, steps, &mut self.work()).map(Evaluated::Vector);
            }
            return Ok(Evaluated::Vector(rows));
        }
        let arg = node.args.first().map(|arg| self.nodes.get(*arg)).transpose()?;
        match (node.function, arg) {
            (FunctionId::Timestamp, Some(Node::Select(select))) if select.edges == RangeEdges::Plain => {
                let mut times = self.select_times(select, steps);
                if times.at.is_some() {
                    // Prometheus forgets the offset when it looks back from the time of @, but not when it reads: the
                    // sample has to be within both windows.
                    let offset_ms = times.offset_ms;
                    times.offset_ms = offset_ms.max(0);
                    times.lookback_ms = times.lookback_ms.saturating_sub(offset_ms.saturating_abs());
                    if times.lookback_ms <= 0 {
                        return Ok(Evaluated::Vector(Vec::new()));
                    }
                }
                let rows = self.collect(RowSource::select(select, times, Take::Time), steps)?;
                Ok(Evaluated::Vector(without_names(rows)))
            }
            (FunctionId::StartTimestamp, Some(Node::Select(select))) => {
                let times = self.select_times(select, steps);
                let rows = self.collect(RowSource::select(select, times, Take::Start), steps)?;
                Ok(Evaluated::Vector(without_names(rows)))
            }
            (FunctionId::LabelReplace, _) => self.label_replace(node, inputs).map(Evaluated::Vector),
            (FunctionId::LabelJoin, _) => self.label_join(node, inputs).map(Evaluated::Vector),
            (FunctionId::Info, _) => self.info(node, steps, inputs).map(Evaluated::Vector),
            _ => self.instant_call(node, steps, inputs),
        }
    }

    /// The labels of the answer of `absent` and its kin: those that a selector as argument pins to one value.
    pub(super) fn absent_labels(&self, node: &CallNode) -> Result<Labels, QueryError> {
        let mut arg = node.args.first().map(|arg| self.nodes.get(*arg)).transpose()?;
        if let Some(Node::Invariant(inner)) = arg {
            arg = Some(self.nodes.get(*inner)?);
        }
        Ok(pinned_labels(match arg {
            Some(Node::Select(s)) => &s.matchers,
            Some(Node::Range(r)) => &r.select.matchers,
            _ => &[],
        }))
    }
}

fn without_names(mut rows: Vec<Row>) -> Vec<Row> {
    for row in &mut rows {
        row.drop_name = true;
    }
    rows
}

/// One row that is 1 wherever no row has anything.
pub(super) fn absent_rows(
    rows: &[Row],
    labels: Labels,
    steps: Steps,
    work: &mut Work<'_>,
) -> Result<Vec<Row>, QueryError> {
    let mut out = Row::blank(labels, true, steps.count(), work)?;
    for (i, v) in out.values.iter_mut().enumerate() {
        let present = rows.iter().position(|r| r.has(i));
        work.spend(1 + present.unwrap_or(rows.len()))?;
        if present.is_none() {
            *v = 1.0;
        }
    }
    Ok(if out.is_empty() { Vec::new() } else { vec![out] })
}

/// The labels that matchers pin to one value.
fn pinned_labels(matchers: &[Matcher]) -> Labels {
    // A label named again after an equality is left out, even if both agree: so it was always done.
    let mut pinned: BTreeMap<&str, (Option<&str>, bool)> = BTreeMap::new();
    for m in matchers.iter().filter(|m| m.name() != METRIC_NAME) {
        let (value, was_pinned) = pinned.entry(m.name()).or_default();
        let pin = m.op() == MatchOp::Equal && !*was_pinned;
        *value = pin.then_some(m.value());
        *was_pinned |= pin;
    }
    let mut labels = LabelsBuilder::default();
    for (name, (value, _)) in pinned {
        labels.set(name, value.unwrap_or(""));
    }
    labels.build()
}
