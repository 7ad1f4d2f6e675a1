//! In which order nodes are evaluated: what a node needs first, then the node.

use std::vec::Drain;

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
pub(super) struct Inputs<'v> {
    values: Drain<'v, Evaluated>,
    /// Of `label_replace`, if it was kept.
    pub(super) pattern: Option<Box<Pattern>>,
}

impl<'v> Inputs<'v> {
    /// Values that are taken out of a list.
    pub(super) fn of(values: Drain<'v, Evaluated>, pattern: Option<Box<Pattern>>) -> Self {
        Self { values, pattern }
    }

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
pub(super) type Needs = Vec<(Child, Steps)>;

/// Bytes of compiled patterns that are kept while what they are applied to is evaluated; others are compiled again.
const PATTERNS_BYTES_MAX: usize = 4 << 20;

/// A node under way.
struct Open<'a> {
    node: &'a Node,
    steps: Steps,
    /// How many nodes were missing, and how many values there were, before those for it.
    missing_before: usize,
    values_before: usize,
    /// What was held before it.
    held_before: usize,
    bytes_before: usize,
    pattern: Option<Box<Pattern>>,
}

impl<'a> Evaluator<'a> {
    /// Evaluates some nodes, and before each all that it needs. `missing` has them in order.
    pub(super) fn evaluate(&mut self, mut missing: Needs) -> Result<Vec<Evaluated>, QueryError> {
        missing.reverse();
        let mut values: Vec<Evaluated> = Vec::new();
        let mut under_way: Vec<Open<'a>> = Vec::new();
        let mut pattern_bytes = 0;
        loop {
            let missing_before = under_way.last().map_or(0, |open| open.missing_before);
            if missing.len() > missing_before
                && let Some((child, steps)) = missing.pop()
            {
                let mut open = self.open(child, steps, &mut missing, values.len())?;
                let kept_bytes = open.pattern.as_ref().map_or(0, |pattern| pattern.bytes());
                // What it takes is given back when the node is settled.
                let fits = pattern_bytes + kept_bytes <= PATTERNS_BYTES_MAX;
                if !fits || self.account.memory.take(kept_bytes).is_err() {
                    open.pattern = None;
                } else {
                    pattern_bytes += kept_bytes;
                }
                under_way.push(open);
                continue;
            }
            let Some(open) = under_way.pop() else {
                return Ok(values);
            };
            pattern_bytes -= open.pattern.as_ref().map_or(0, |pattern| pattern.bytes());
            let mut inputs = Inputs::of(values.drain(open.values_before..), open.pattern);
            let value = self.compute(open.node, open.steps, &mut inputs)?;
            drop(inputs);
            self.account
                .settle(open.held_before.saturating_add(value.held()))?;
            let memory = &self.account.memory;
            memory.settle(open.bytes_before.saturating_add(value.bytes()))?;
            values.push(value);
        }
    }

    /// Evaluates a node with all that it needs.
    pub(crate) fn value(&mut self, child: Child, steps: Steps) -> Result<Evaluated, QueryError> {
        let mut values = self.evaluate(vec![(child, steps)])?;
        values.pop().ok_or_else(|| wrong_type("value"))
    }

    /// Starts a node; what it needs is missing then, the next one last.
    fn open(
        &self,
        child: Child,
        steps: Steps,
        missing: &mut Needs,
        values_before: usize,
    ) -> Result<Open<'a>, QueryError> {
        check(self.ctx)?;
        if steps.count() > self.options.max_samples {
            return Err(QueryError::TooManySamples(PHASE_EXECUTION));
        }
        let memory = &self.account.memory;
        // No row can be shorter.
        memory.fits(steps.count().saturating_mul(size_of::<f64>()))?;
        let node = self.nodes.get(child)?;
        let missing_before = missing.len();
        self.needs(node, steps, missing)?;
        if let Some(own) = missing.get_mut(missing_before..) {
            own.reverse();
        }
        Ok(Open {
            node,
            steps,
            missing_before,
            values_before,
            held_before: self.account.current(),
            bytes_before: memory.held(),
            pattern: self.prepare(node)?,
        })
    }

    /// What is done before anything that a node needs is evaluated: what is wrong in its strings is told first.
    fn prepare(&self, node: &Node) -> Result<Option<Box<Pattern>>, QueryError> {
        match node {
            Node::Aggregate(aggregate) if aggregate.op == AggregateOp::CountValues => {
                self.counted_label(aggregate).map(|_| None)
            }
            Node::Call(call) if call.function == FunctionId::LabelReplace => {
                self.replaced_pattern(call).map(|pattern| Some(Box::new(pattern)))
            }
            Node::Call(call) if call.function == FunctionId::LabelJoin => {
                self.joined_labels(call).map(|_| None)
            }
            _ => Ok(None),
        }
    }

    /// Adds what a node needs, in the order in which it is evaluated: of several failures the first is told.
    fn needs(&self, node: &Node, steps: Steps, needs: &mut Needs) -> Result<(), QueryError> {
        match node {
            Node::Number { .. } | Node::String { .. } | Node::Leaf { .. } => {}
            Node::Select(_) | Node::Plus(..) | Node::Range(_) => {}
            Node::Subquery(subquery) => needs.extend(subquery_need(subquery, steps)),
            Node::Call(call) => self.call_needs(call, steps, needs)?,
            Node::Aggregate(aggregate) => self.aggregate_needs(aggregate, steps, needs)?,
            Node::Binary(binary) => needs.extend([(binary.lhs, steps), (binary.rhs, steps)]),
            Node::Negate(inner, _) => needs.push((*inner, steps)),
            Node::Invariant(inner) => needs.push((*inner, steps.first())),
        }
        Ok(())
    }

    /// Adds what is needed to make rows of a node on demand; `false` if the node is evaluated instead.
    pub(super) fn row_needs(&self, node: &Node, steps: Steps, needs: &mut Needs) -> Result<bool, QueryError> {
        match node {
            Node::Select(_) | Node::Plus(..) => Ok(true),
            Node::Call(call) if is_row_function(call) => self.range_needs(call, steps, needs).map(|()| true),
            _ => Ok(false),
        }
    }

    fn aggregate_needs(
        &self,
        node: &AggregateNode,
        steps: Steps,
        needs: &mut Needs,
    ) -> Result<(), QueryError> {
        use AggregateOp as A;
        if node.op == A::CountValues {
            needs.push((node.expr, steps));
            return Ok(());
        }
        needs.extend(node.param.map(|param| (param, steps)));
        let whole = matches!(
            node.op,
            A::Topk | A::Bottomk | A::Limitk | A::LimitRatio | A::Quantile
        );
        if whole || !self.row_needs(self.nodes.get(node.expr)?, steps, needs)? {
            needs.push((node.expr, steps));
        }
        Ok(())
    }

    fn call_needs(&self, call: &CallNode, steps: Steps, needs: &mut Needs) -> Result<(), QueryError> {
        use FunctionId as F;
        if kernel(call.function).is_some() {
            return self.range_needs(call, steps, needs);
        }
        let arg = call.args.first().map(|arg| self.nodes.get(*arg)).transpose()?;
        let args = call.args.iter().map(|arg| (*arg, steps));
        match (call.function, arg) {
            (F::Timestamp, Some(Node::Select(select))) if select.edges == RangeEdges::Plain => {}
            (F::StartTimestamp, Some(Node::Select(_))) => {}
            (F::LabelReplace | F::LabelJoin | F::Info | F::SortByLabel | F::SortByLabelDesc, _) => {
                needs.extend(args.take(1));
            }
            // The vector first; the second argument of `histogram_quantiles` is a string.
            (F::HistogramQuantile, _) => needs.extend(args.rev()),
            (F::HistogramQuantiles, _) => needs.extend(args.clone().take(1).chain(args.skip(2))),
            (F::HistogramFraction, _) => needs.extend(args.clone().skip(2).chain(args.take(2))),
            _ => needs.extend(args),
        }
        Ok(())
    }

    fn range_needs(&self, call: &CallNode, steps: Steps, needs: &mut Needs) -> Result<(), QueryError> {
        for arg in &call.args {
            match self.nodes.get(*arg)? {
                Node::Range(_) => {}
                Node::Subquery(subquery) => needs.extend(subquery_need(subquery, steps)),
                _ => needs.push((*arg, steps)),
            }
        }
        Ok(())
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
