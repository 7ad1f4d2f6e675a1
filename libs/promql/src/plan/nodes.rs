//! The nodes of a plan. They lie in one list and name each other by their place in it, so that nothing that looks at a
//! plan, or drops it, goes as deep as the query is nested.

use std::sync::Arc;

use koios_model::Matcher;

use crate::ast::{AggregateOp, BinaryOp, RangeEdges, Span, VectorMatching};
use crate::error::QueryError;
use crate::signatures::FunctionId;
use crate::steps::Steps;

/// A node of the plan; what is large of it lies elsewhere, so that the list is short.
#[derive(Debug)]
pub(crate) enum Node {
    Number {
        value: f64,
        span: Span,
    },
    String {
        value: String,
        span: Span,
    },
    Select(Box<SelectNode>),
    /// A selector with a sign that changes nothing, but hides it from functions that look at how their argument is
    /// written.
    Plus(Box<SelectNode>, Span),
    Range(Box<RangeNode>),
    Subquery(Box<SubqueryNode>),
    Call(Box<CallNode>),
    Aggregate(Box<AggregateNode>),
    Binary(Box<BinaryNode>),
    Negate(Child, Span),
    /// The same at every step: evaluated once.
    Invariant(Child),
    /// What one of the plan's leaves gives.
    Leaf {
        leaf: usize,
        span: Span,
    },
}

/// A node as others refer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Child {
    /// Its place among the nodes.
    at: usize,
    /// The bytes of the query it came from, for positions.
    pub(crate) span: Span,
}

/// All nodes of a plan: what a node needs stands before it.
#[derive(Debug)]
pub(crate) struct Nodes(Vec<Node>);

impl Nodes {
    /// Room for so many.
    pub(super) fn with_capacity(count: usize) -> Self {
        Self(Vec::with_capacity(count))
    }

    /// Adds a node, whose children are there already.
    pub(super) fn push(&mut self, node: Node) -> Child {
        let span = node.span();
        self.0.push(node);
        Child {
            at: self.0.len() - 1,
            span,
        }
    }

    /// Takes back the node that was added last.
    pub(super) fn pop(&mut self) -> Option<Node> {
        self.0.pop()
    }

    /// The node that a child is.
    pub(crate) fn get(&self, child: Child) -> Result<&Node, QueryError> {
        self.0.get(child.at).ok_or_else(no_such_node)
    }

    /// Puts another node in the place of one, which is handed out.
    pub(super) fn replace(&mut self, child: Child, node: Node) -> Result<Node, QueryError> {
        let place = self.0.get_mut(child.at).ok_or_else(no_such_node)?;
        Ok(std::mem::replace(place, node))
    }

    /// All of them, children before their parents.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Node> {
        self.0.iter()
    }
}

fn no_such_node() -> QueryError {
    QueryError::internal("the plan names a node that is not there")
}

#[derive(Debug)]
pub(crate) struct SelectNode {
    /// Which fetched answer holds its series.
    pub(crate) source: usize,
    pub(crate) matchers: Arc<[Matcher]>,
    pub(crate) offset_ms: i64,
    pub(crate) at: Option<i64>,
    pub(crate) edges: RangeEdges,
    /// Only counts and sums of histograms matter.
    pub(crate) statistics_only: bool,
    pub(crate) span: Span,
}

#[derive(Debug)]
pub(crate) struct RangeNode {
    pub(crate) select: SelectNode,
    pub(crate) range_ms: i64,
    pub(crate) span: Span,
}

#[derive(Debug)]
pub(crate) struct SubqueryNode {
    pub(crate) expr: Child,
    pub(crate) times: SubqueryTimes,
    pub(crate) span: Span,
}

/// When the expression of a subquery is evaluated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SubqueryTimes {
    pub(crate) range_ms: i64,
    pub(crate) step_ms: i64,
    pub(crate) offset_ms: i64,
    pub(crate) at: Option<i64>,
}

impl SubqueryTimes {
    /// The steps its expression is evaluated at, multiples of its resolution, when it is itself at `outer`.
    pub(crate) fn steps(&self, outer: Steps) -> Steps {
        let first = self
            .at
            .unwrap_or_else(|| outer.start())
            .saturating_sub(self.offset_ms);
        let end = self
            .at
            .unwrap_or_else(|| outer.end())
            .saturating_sub(self.offset_ms);
        let before = first.saturating_sub(self.range_ms);
        let start = before
            .div_euclid(self.step_ms)
            .saturating_add(1)
            .saturating_mul(self.step_ms);
        Steps::range(start, end, self.step_ms)
    }
}

#[derive(Debug)]
pub(crate) struct CallNode {
    pub(crate) function: FunctionId,
    pub(crate) args: Vec<Child>,
    /// For `info`: where the info series are.
    pub(crate) info: Option<InfoSource>,
    pub(crate) span: Span,
}

/// Where `info` finds its info series and at which times.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InfoSource {
    pub(crate) source: usize,
    pub(crate) offset_ms: i64,
    pub(crate) at: Option<i64>,
}

#[derive(Debug)]
pub(crate) struct AggregateNode {
    pub(crate) op: AggregateOp,
    pub(crate) expr: Child,
    pub(crate) param: Option<Child>,
    pub(crate) grouping: Vec<String>,
    pub(crate) without: bool,
    pub(crate) span: Span,
}

#[derive(Debug)]
pub(crate) struct BinaryNode {
    pub(crate) op: BinaryOp,
    pub(crate) lhs: Child,
    pub(crate) rhs: Child,
    pub(crate) matching: Option<VectorMatching>,
    pub(crate) return_bool: bool,
    pub(crate) span: Span,
}

impl Node {
    /// The bytes of the query it came from, for positions.
    pub(super) fn span(&self) -> Span {
        match self {
            Self::Number { span, .. }
            | Self::String { span, .. }
            | Self::Plus(_, span)
            | Self::Negate(_, span)
            | Self::Leaf { span, .. } => *span,
            Self::Select(n) => n.span,
            Self::Range(n) => n.span,
            Self::Subquery(n) => n.span,
            Self::Call(n) => n.span,
            Self::Aggregate(n) => n.span,
            Self::Binary(n) => n.span,
            Self::Invariant(inner) => inner.span,
        }
    }
}
