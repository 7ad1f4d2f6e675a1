//! Which parts of a plan can be computed while their series arrive.
//!
//! A selector or a range function right over one, and a folding aggregation over either, looks at one series after the
//! other. Where nothing else needs those series they are gone once looked at, so that a query over much data holds
//! little of it at once.

use crate::ast::AggregateOp;
use crate::signatures::FunctionId;
use crate::steps::Steps;

use super::{AggregateNode, CallNode, Node};

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
pub(super) fn take_leaves(root: &mut Node, steps: Steps, sources: usize) -> Vec<Leaf> {
    let mut uses = vec![0; sources];
    count_uses(root, &mut uses);
    let mut taker = Taker {
        uses,
        leaves: Vec::new(),
    };
    taker.visit(root, steps);
    taker.leaves
}

/// Counts how many nodes need each source.
fn count_uses(node: &Node, uses: &mut [usize]) {
    let mut count = |source: usize| {
        if let Some(n) = uses.get_mut(source) {
            *n += 1;
        }
    };
    match node {
        Node::Number { .. } | Node::String { .. } | Node::Leaf { .. } => {}
        Node::Select(select) => count(select.source),
        Node::Range(range) => count(range.select.source),
        Node::Subquery(subquery) => count_uses(&subquery.expr, uses),
        Node::Call(call) => {
            if let Some(info) = call.info {
                count(info.source);
            }
            call.args.iter().for_each(|arg| count_uses(arg, uses));
        }
        Node::Aggregate(aggregate) => {
            count_uses(&aggregate.expr, uses);
            if let Some(param) = &aggregate.param {
                count_uses(param, uses);
            }
        }
        Node::Binary(binary) => {
            count_uses(&binary.lhs, uses);
            count_uses(&binary.rhs, uses);
        }
        Node::Negate(inner, _) | Node::Plus(inner, _) | Node::Invariant(inner) => count_uses(inner, uses),
    }
}

struct Taker {
    uses: Vec<usize>,
    leaves: Vec<Leaf>,
}

impl Taker {
    fn visit(&mut self, node: &mut Node, steps: Steps) {
        let alone = leaf_source(node).filter(|source| self.uses.get(*source) == Some(&1));
        if let Some(source) = alone {
            let reference = Node::Leaf {
                leaf: self.leaves.len(),
                span: node.span(),
            };
            let node = std::mem::replace(node, reference);
            self.leaves.push(Leaf { node, steps, source });
            return;
        }
        match node {
            Node::Number { .. } | Node::String { .. } | Node::Leaf { .. } => {}
            Node::Select(_) | Node::Range(_) => {}
            Node::Subquery(subquery) => {
                let inner = subquery.steps(steps);
                self.visit(&mut subquery.expr, inner);
            }
            Node::Call(call) if looks_at_its_argument(call) => {}
            Node::Call(call) => call.args.iter_mut().for_each(|arg| self.visit(arg, steps)),
            Node::Aggregate(aggregate) => {
                self.visit(&mut aggregate.expr, steps);
                if let Some(param) = &mut aggregate.param {
                    self.visit(param, steps);
                }
            }
            Node::Binary(binary) => {
                self.visit(&mut binary.lhs, steps);
                self.visit(&mut binary.rhs, steps);
            }
            Node::Negate(inner, _) | Node::Plus(inner, _) => self.visit(inner, steps),
            Node::Invariant(inner) => self.visit(inner, steps.first()),
        }
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
fn leaf_source(node: &Node) -> Option<usize> {
    match node {
        Node::Aggregate(aggregate) if folds(aggregate) => row_source(&aggregate.expr),
        node => row_source(node),
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
fn row_source(node: &Node) -> Option<usize> {
    match node {
        Node::Plus(inner, _) => row_source(inner),
        Node::Select(select) => Some(select.source),
        Node::Call(call) if !looks_at_its_argument(call) => {
            let mut source = None;
            for arg in &call.args {
                match arg {
                    Node::Range(range) if source.is_none() => source = Some(range.select.source),
                    Node::Number { .. } => {}
                    _ => return None,
                }
            }
            source
        }
        _ => None,
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
        let plan = plan(parse(query).unwrap(), context).unwrap();
        (plan.leaves.len(), matches!(plan.root, super::Node::Leaf { .. }))
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
