//! Which parts of a plan can be computed while their series arrive.
//!
//! A selector or a range function right over one, and a folding aggregation over either, looks at one series after the
//! other. Where nothing else needs those series they are gone once looked at, so that a query over much data holds
//! little of it at once.

use crate::ast::AggregateOp;
use crate::error::QueryError;
use crate::signatures::FunctionId;
use crate::steps::Steps;

use super::{AggregateNode, CallNode, Child, Node, Nodes};

/// A part of a plan that needs the series of one source, one after the other, and nothing else.
#[derive(Debug)]
pub(crate) struct Leaf {
    /// What is computed: a selector, a range function, or an aggregation of one of them that folds.
    pub(crate) node: Node,
    /// The steps it is evaluated at.
    pub(crate) steps: Steps,
    /// The source whose series it needs.
    pub(crate) source: usize,
}

/// Takes the leaves out of a plan; in their place it refers to what they give. `sources` is how many there are.
pub(super) fn take_leaves(
    nodes: &mut Nodes,
    root: Child,
    steps: Steps,
    sources: usize,
) -> Result<Vec<Leaf>, QueryError> {
    let uses = count_uses(nodes, sources);
    let mut leaves = Vec::new();
    let mut waiting = vec![(root, steps)];
    while let Some((child, steps)) = waiting.pop() {
        let alone = leaf_source(nodes, nodes.get(child)?)?.filter(|source| uses.get(*source) == Some(&1));
        let Some(source) = alone else {
            // The first of them is looked at first.
            let before = waiting.len();
            add_children(nodes.get(child)?, steps, &mut waiting);
            waiting.get_mut(before..).unwrap_or_default().reverse();
            continue;
        };
        let reference = Node::Leaf {
            leaf: leaves.len(),
            span: child.span,
        };
        let node = nodes.replace(child, reference)?;
        leaves.push(Leaf { node, steps, source });
    }
    Ok(leaves)
}

/// Counts how many nodes need each source.
fn count_uses(nodes: &Nodes, sources: usize) -> Vec<usize> {
    let mut uses = vec![0; sources];
    for node in nodes.iter() {
        let source = match node {
            Node::Select(select) | Node::Plus(select, _) => Some(select.source),
            Node::Range(range) => Some(range.select.source),
            Node::Call(call) => call.info.map(|info| info.source),
            _ => None,
        };
        if let Some(n) = source.and_then(|source| uses.get_mut(source)) {
            *n += 1;
        }
    }
    uses
}

/// The children that a leaf may be below, each with the steps it is evaluated at.
fn add_children(node: &Node, steps: Steps, children: &mut Vec<(Child, Steps)>) {
    match node {
        Node::Number { .. } | Node::String { .. } | Node::Leaf { .. } => {}
        Node::Select(_) | Node::Plus(..) | Node::Range(_) => {}
        Node::Subquery(subquery) => children.push((subquery.expr, subquery.times.steps(steps))),
        Node::Call(call) if looks_at_its_argument(call) => {}
        Node::Call(call) => children.extend(call.args.iter().map(|arg| (*arg, steps))),
        Node::Aggregate(aggregate) => {
            children.push((aggregate.expr, steps));
            children.extend(aggregate.param.map(|param| (param, steps)));
        }
        Node::Binary(binary) => children.extend([(binary.lhs, steps), (binary.rhs, steps)]),
        Node::Negate(inner, _) => children.push((*inner, steps)),
        Node::Invariant(inner) => children.push((*inner, steps.first())),
    }
}

/// Whether it matters how the argument of a call is written, and not just what it gives.
fn looks_at_its_argument(call: &CallNode) -> bool {
    use FunctionId as F;
    matches!(
        call.function,
        F::Absent | F::AbsentOverTime | F::Timestamp | F::StartTimestamp | F::Info
    )
}

/// The source of a leaf; `None` for every other node.
fn leaf_source(nodes: &Nodes, node: &Node) -> Result<Option<usize>, QueryError> {
    match node {
        Node::Aggregate(aggregate) if folds(aggregate) => row_source(nodes, nodes.get(aggregate.expr)?),
        node => row_source(nodes, node),
    }
}

fn folds(aggregate: &AggregateNode) -> bool {
    use AggregateOp as A;
    let folding = matches!(
        aggregate.op,
        A::Sum | A::Avg | A::Min | A::Max | A::Count | A::Group | A::Stddev | A::Stdvar
    );
    folding && aggregate.param.is_none()
}

/// The source of a node that makes one row of each series.
fn row_source(nodes: &Nodes, node: &Node) -> Result<Option<usize>, QueryError> {
    match node {
        Node::Select(select) | Node::Plus(select, _) => Ok(Some(select.source)),
        Node::Call(call) if !looks_at_its_argument(call) => {
            let mut source = None;
            for arg in &call.args {
                match nodes.get(*arg)? {
                    Node::Range(range) if source.is_none() => source = Some(range.select.source),
                    Node::Number { .. } => {}
                    _ => return Ok(None),
                }
            }
            Ok(source)
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use crate::parser::parse;
    use crate::plan::{PlanContext, plan};

    /// How many leaves a query has, and whether it is nothing else.
    fn leaves(query: &str) -> (usize, bool) {
        let context = PlanContext {
            start_ms: 0,
            end_ms: 600_000,
            step_ms: 15_000,
            lookback_ms: 300_000,
            default_subquery_step_ms: 60_000,
        };
        let plan = plan(&parse(query).unwrap(), context).unwrap();
        let root = plan.nodes.get(plan.root).unwrap();
        (plan.leaves.len(), matches!(root, super::Node::Leaf { .. }))
    }

    #[test]
    fn what_needs_one_series_after_the_other_is_a_leaf() {
        for query in [
            "x",
            "rate(x[5m])",
            "sum by (a) (rate(x[5m]))",
            "max(x)",
            "sum(+x)",
            "quantile_over_time(0.5, x[5m])",
        ] {
            assert_eq!(leaves(query), (1, true), "{query}");
        }
        assert_eq!(leaves("rate(x[5m]) / on (a) sum(y)"), (2, false));
        assert_eq!(leaves("topk(3, rate(x[5m]))"), (1, false));
        assert_eq!(leaves("max_over_time(sum(rate(x[5m]))[10m:1m])"), (1, false));
        assert_eq!(
            leaves("histogram_quantile(0.9, sum by (le) (rate(x[5m])))"),
            (1, false)
        );
    }

    #[test]
    fn series_that_are_needed_twice_stay() {
        assert_eq!(leaves("x - avg(x)").0, 0);
        assert_eq!(leaves("rate(x[5m]) / rate(x[5m] offset 1d)").0, 2);
        assert_eq!(leaves("absent(x)").0, 0);
        assert_eq!(leaves("timestamp(x)").0, 0);
        assert_eq!(leaves("quantile_over_time(scalar(y), x[5m])"), (1, false));
    }
}
