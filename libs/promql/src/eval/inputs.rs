//! In which order nodes are evaluated: what a node needs first, then the node.

use super::labels::Pattern;
use super::range_call::kernel;
use super::row::{Row, Scalars};
use super::{Evaluated, Evaluator, wrong_type};
use crate::ast::{AggregateOp, RangeEdges};
use crate::context::{PHASE_EXECUTION, check};
use crate::error::QueryError;
use crate::plan::{AggregateNode, CallNode, Child, Node, SubqueryNode};
use crate::signatures::FunctionId;
use crate::steps::Steps;

/// What a node needs, evaluated; it takes the values in the order in which [`Evaluator::needs`] names them.
pub(super) struct Inputs {
    values: std::vec::IntoIter<Evaluated>,
    /// Of `label_replace`.
    pub(super) pattern: Option<Pattern>,
}

impl Inputs {
    /// The next value, whatever it is.
    pub(super) fn any(&mut self) -> Result<Evaluated, QueryError> {
        self.values.next().ok_or_else(|| wrong_type("value"))
    }

    /// The next value, which the parser knows to be a scalar.
    pub(super) fn scalar(&mut self) -> Result<Scalars, QueryError> {
        match self.any()? {
            Evaluated::Scalar(s) => Ok(s),
            _ => Err(wrong_type("scalar")),
        }
    }

    /// The next value, which the parser knows to be an instant vector.
    pub(super) fn vector(&mut self) -> Result<Vec<Row>, QueryError> {
        match self.any()? {
            Evaluated::Vector(rows) => Ok(rows),
            _ => Err(wrong_type("instant vector")),
        }
    }
}

/// Nodes to evaluate, and at which steps.
type Needs = Vec<(Child, Steps)>;

/// A node under way.
struct Open<'a> {
    node: &'a Node,
    steps: Steps,
    /// What is still to be evaluated for it, the next one last.
    missing: Needs,
    /// How many values there were before those for it.
    values_before: usize,
    /// What was held before it.
    held_before: usize,
    bytes_before: usize,
    pattern: Option<Pattern>,
}

impl<'a> Evaluator<'a> {
    /// Evaluates some nodes, and before each all that it needs.
    pub(super) fn evaluate(&mut self, wanted: Needs) -> Result<Inputs, QueryError> {
        let mut values: Vec<Evaluated> = Vec::new();
        let mut under_way: Vec<Open<'a>> = Vec::new();
        for (child, steps) in wanted {
            under_way.push(self.open(child, steps, values.len())?);
            while let Some(mut open) = under_way.pop() {
                if let Some((child, steps)) = open.missing.pop() {
                    under_way.push(open);
                    under_way.push(self.open(child, steps, values.len())?);
                    continue;
                }
                let inputs = Inputs {
                    values: values.split_off(open.values_before).into_iter(),
                    pattern: open.pattern,
                };
                let value = self.compute(open.node, open.steps, inputs)?;
                self.account
                    .settle(open.held_before.saturating_add(value.held()))?;
                let memory = &self.account.memory;
                memory.settle(open.bytes_before.saturating_add(value.bytes()))?;
                values.push(value);
            }
        }
        Ok(Inputs {
            values: values.into_iter(),
            pattern: None,
        })
    }

    /// Evaluates a node with all that it needs.
    pub(crate) fn value(&mut self, child: Child, steps: Steps) -> Result<Evaluated, QueryError> {
        self.evaluate(vec![(child, steps)])?.any()
    }

    /// Starts a node.
    fn open(&self, child: Child, steps: Steps, values_before: usize) -> Result<Open<'a>, QueryError> {
        check(self.ctx)?;
        if steps.count() > self.options.max_samples {
            return Err(QueryError::TooManySamples(PHASE_EXECUTION));
        }
        let memory = &self.account.memory;
        // No row can be shorter.
        memory.fits(steps.count().saturating_mul(size_of::<f64>()))?;
        let node = self.nodes.get(child)?;
        let mut missing = self.needs(node, steps)?;
        missing.reverse();
        Ok(Open {
            node,
            steps,
            missing,
            values_before,
            held_before: self.account.current(),
            bytes_before: memory.held(),
            pattern: self.prepare(node)?,
        })
    }

    /// What is done before anything that a node needs is evaluated: what is wrong in its strings is told first.
    fn prepare(&self, node: &Node) -> Result<Option<Pattern>, QueryError> {
        match node {
            Node::Aggregate(aggregate) if aggregate.op == AggregateOp::CountValues => {
                self.counted_label(aggregate).map(|_| None)
            }
            Node::Call(call) if call.function == FunctionId::LabelReplace => {
                self.replaced_pattern(call).map(Some)
            }
            Node::Call(call) if call.function == FunctionId::LabelJoin => {
                self.joined_labels(call).map(|_| None)
            }
            _ => Ok(None),
        }
    }

    /// What a node needs, in the order in which it is evaluated: of several failures the first is told.
    fn needs(&self, node: &Node, steps: Steps) -> Result<Needs, QueryError> {
        Ok(match node {
            Node::Number { .. } | Node::String { .. } | Node::Leaf { .. } => Vec::new(),
            Node::Select(_) | Node::Plus(..) | Node::Range(_) => Vec::new(),
            Node::Subquery(subquery) => Vec::from_iter(subquery_need(subquery, steps)),
            Node::Call(call) => self.call_needs(call, steps)?,
            Node::Aggregate(aggregate) => self.aggregate_needs(aggregate, steps)?,
            Node::Binary(binary) => vec![(binary.lhs, steps), (binary.rhs, steps)],
            Node::Negate(inner, _) => vec![(*inner, steps)],
            Node::Invariant(inner) => vec![(*inner, steps.first())],
        })
    }

    /// What the rows of a node need that are made on demand; `None` if the node is evaluated instead.
    pub(super) fn row_needs(&self, node: &Node, steps: Steps) -> Result<Option<Needs>, QueryError> {
        match node {
            Node::Select(_) | Node::Plus(..) => Ok(Some(Vec::new())),
            Node::Call(call) if is_row_function(call) => self.range_needs(call, steps).map(Some),
            _ => Ok(None),
        }
    }

    fn aggregate_needs(&self, node: &AggregateNode, steps: Steps) -> Result<Needs, QueryError> {
        use AggregateOp as A;
        if node.op == A::CountValues {
            return Ok(vec![(node.expr, steps)]);
        }
        let mut needs = Vec::from_iter(node.param.map(|param| (param, steps)));
        let whole = matches!(
            node.op,
            A::Topk | A::Bottomk | A::Limitk | A::LimitRatio | A::Quantile
        );
        match self.row_needs(self.nodes.get(node.expr)?, steps)? {
            Some(of_rows) if !whole => needs.extend(of_rows),
            _ => needs.push((node.expr, steps)),
        }
        Ok(needs)
    }

    fn call_needs(&self, call: &CallNode, steps: Steps) -> Result<Needs, QueryError> {
        use FunctionId as F;
        if kernel(call.function).is_some() {
            return self.range_needs(call, steps);
        }
        let arg = call.args.first().map(|arg| self.nodes.get(*arg)).transpose()?;
        let args: Vec<&Child> = match (call.function, arg) {
            (F::Timestamp, Some(Node::Select(select))) if select.edges == RangeEdges::Plain => Vec::new(),
            (F::StartTimestamp, Some(Node::Select(_))) => Vec::new(),
            (F::LabelReplace | F::LabelJoin | F::Info | F::SortByLabel | F::SortByLabelDesc, _) => {
                call.args.iter().take(1).collect()
            }
            // The vector first; the second argument of `histogram_quantiles` is a string.
            (F::HistogramQuantile, _) => call.args.iter().rev().collect(),
            (F::HistogramQuantiles, _) => call.args.iter().take(1).chain(call.args.iter().skip(2)).collect(),
            (F::HistogramFraction, _) => call.args.iter().skip(2).chain(call.args.iter().take(2)).collect(),
            _ => call.args.iter().collect(),
        };
        Ok(args.into_iter().map(|arg| (*arg, steps)).collect())
    }

    fn range_needs(&self, call: &CallNode, steps: Steps) -> Result<Needs, QueryError> {
        let mut needs = Vec::new();
        for arg in &call.args {
            match self.nodes.get(*arg)? {
                Node::Range(_) => {}
                Node::Subquery(subquery) => needs.extend(subquery_need(subquery, steps)),
                _ => needs.push((*arg, steps)),
            }
        }
        Ok(needs)
    }

    /// The string that an argument is.
    pub(super) fn text(&self, call: &CallNode, i: usize) -> Result<&'a str, QueryError> {
        let arg = call.args.get(i).ok_or_else(|| wrong_type("string"))?;
        match self.nodes.get(*arg)? {
            Node::String { value, .. } => Ok(value),
            _ => Err(wrong_type("string")),
        }
    }
}

/// Whether a call gives rows that are made on demand, one of each series.
pub(super) fn is_row_function(call: &CallNode) -> bool {
    call.function != FunctionId::AbsentOverTime && kernel(call.function).is_some()
}

/// The expression of a subquery, unless that is evaluated at no step at all.
fn subquery_need(subquery: &SubqueryNode, steps: Steps) -> Option<(Child, Steps)> {
    let inner = subquery.times.steps(steps);
    (inner.count() > 0).then_some((subquery.expr, inner))
}
