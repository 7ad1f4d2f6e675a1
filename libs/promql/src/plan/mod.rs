//! From a syntax tree and a time range to what is fetched and evaluated.
//!
//! The plan drops parentheses, resolves `start()`, `end()`, `@`, offsets and duration expressions, marks the parts that
//! are the same at every step so that they are evaluated once, and collects what the selectors need into as few reads
//! of storage as possible: equal selectors whose time ranges overlap share one. What can be computed while its series
//! arrive is set apart as [`Leaf`]s.

mod leaves;
mod reads;

use std::sync::Arc;

use koios_model::{Matcher, TimeRange};

use crate::ast::{
    AggregateExpr, AggregateOp, At, BinaryExpr, BinaryOp, Call, DurationArg, Expr, MatrixSelector,
    RangeEdges, Span, SubqueryExpr, VectorMatching,
};
use crate::duration::{DurationContext, resolve_durations};
use crate::error::QueryError;
use crate::queryable::SelectRequest;
use crate::signatures::FunctionId;
use crate::steps::Steps;

pub(crate) use leaves::Leaf;
pub(crate) use reads::info_name_matchers;

/// A node of the plan.
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
    Select(SelectNode),
    Range(RangeNode),
    Subquery(Box<SubqueryNode>),
    Call(Box<CallNode>),
    Aggregate(Box<AggregateNode>),
    Binary(Box<BinaryNode>),
    Negate(Box<Node>, Span),
    /// A sign that changes nothing, but hides a selector from functions that look at how their argument is written.
    Plus(Box<Node>, Span),
    /// The same at every step: evaluated once.
    Invariant(Box<Node>),
    /// What one of the plan's leaves gives.
    Leaf {
        leaf: usize,
        span: Span,
    },
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
    pub(crate) expr: Node,
    pub(crate) range_ms: i64,
    pub(crate) step_ms: i64,
    pub(crate) offset_ms: i64,
    pub(crate) at: Option<i64>,
    pub(crate) span: Span,
}

impl SubqueryNode {
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
    pub(crate) args: Vec<Node>,
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
    pub(crate) expr: Node,
    pub(crate) param: Option<Node>,
    pub(crate) grouping: Vec<String>,
    pub(crate) without: bool,
    pub(crate) span: Span,
}

#[derive(Debug)]
pub(crate) struct BinaryNode {
    pub(crate) op: BinaryOp,
    pub(crate) lhs: Node,
    pub(crate) rhs: Node,
    pub(crate) matching: Option<VectorMatching>,
    pub(crate) return_bool: bool,
    pub(crate) span: Span,
}

impl Node {
    /// The bytes of the query it came from, for positions.
    pub(crate) fn span(&self) -> Span {
        match self {
            Self::Number { span, .. }
            | Self::String { span, .. }
            | Self::Negate(_, span)
            | Self::Plus(_, span)
            | Self::Leaf { span, .. } => *span,
            Self::Select(n) => n.span,
            Self::Range(n) => n.span,
            Self::Subquery(n) => n.span,
            Self::Call(n) => n.span,
            Self::Aggregate(n) => n.span,
            Self::Binary(n) => n.span,
            Self::Invariant(n) => n.span(),
        }
    }
}

/// What planning needs to know of the engine and the request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlanContext {
    pub(crate) start_ms: i64,
    pub(crate) end_ms: i64,
    /// 0 for an instant query.
    pub(crate) step_ms: i64,
    pub(crate) lookback_ms: i64,
    pub(crate) default_subquery_step_ms: i64,
}

/// What to fetch, and what to compute from it.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) root: Node,
    /// What is computed first, each as soon as its series are there.
    pub(crate) leaves: Vec<Leaf>,
    pub(crate) selects: Vec<SelectRequest>,
    pub(crate) steps: Steps,
}

/// Plans a query.
pub(crate) fn plan(mut expr: Expr, context: PlanContext) -> Result<Plan, QueryError> {
    let durations = DurationContext {
        step_ms: context.step_ms,
        range_ms: context.end_ms.saturating_sub(context.start_ms),
    };
    resolve_durations(&mut expr, durations).map_err(|e| QueryError::BadData(e.to_string()))?;
    let mut planner = Planner {
        context,
        selects: Vec::new(),
    };
    let scope = Scope {
        times: TimeRange::new(context.start_ms, context.end_ms),
        step_ms: context.step_ms,
        function: None,
        grouping: None,
        buckets: Buckets::Needed,
    };
    let mut root = planner.node(&expr, scope)?.wrapped();
    let steps = if context.step_ms == 0 {
        Steps::instant(context.start_ms)
    } else {
        Steps::range(context.start_ms, context.end_ms, context.step_ms)
    };
    let leaves = leaves::take_leaves(&mut root, steps, planner.selects.len());
    Ok(Plan {
        root,
        leaves,
        selects: planner.selects,
        steps,
    })
}

/// Which part of histograms the functions around a node look at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Buckets {
    /// All of it, as far as is known.
    Needed,
    /// Counts and sums.
    Unneeded,
    /// All of it, whatever functions are within.
    Always,
}

impl Buckets {
    fn within(self, function: FunctionId) -> Self {
        use FunctionId as F;
        match function {
            F::HistogramQuantile | F::HistogramQuantiles | F::HistogramFraction => Self::Always,
            F::HistogramCount | F::HistogramSum | F::HistogramAvg if self != Self::Always => Self::Unneeded,
            _ => self,
        }
    }
}

/// What a node's place in the tree means for the selectors below it.
#[derive(Clone, Copy)]
struct Scope<'a> {
    /// The times it is evaluated at.
    times: TimeRange,
    step_ms: i64,
    /// The function or aggregation around it.
    function: Option<&'static str>,
    /// Grouping of the aggregation right around it, and whether it is `by`.
    grouping: Option<(&'a [String], bool)>,
    buckets: Buckets,
}

impl Scope<'_> {
    fn inside(self, function: Option<&'static str>) -> Self {
        Self {
            function,
            grouping: None,
            ..self
        }
    }
}

/// A planned node; `invariant`: the same at every step; `wrap`: worth evaluating once as it is.
struct Planned {
    node: Node,
    invariant: bool,
    wrap: bool,
}

impl Planned {
    fn leaf(node: Node) -> Self {
        Self {
            node,
            invariant: true,
            wrap: false,
        }
    }

    fn varying(node: Node) -> Self {
        Self {
            node,
            invariant: false,
            wrap: false,
        }
    }

    fn all(node: Node, invariant: bool) -> Self {
        Self {
            node,
            invariant,
            wrap: invariant,
        }
    }

    fn wrapped(self) -> Node {
        if self.wrap {
            Node::Invariant(Box::new(self.node))
        } else {
            self.node
        }
    }
}

struct Planner {
    context: PlanContext,
    selects: Vec<SelectRequest>,
}

impl Planner {
    fn node(&mut self, expr: &Expr, scope: Scope<'_>) -> Result<Planned, QueryError> {
        match expr {
            Expr::Number(n) => Ok(Planned::leaf(Node::Number {
                value: n.value,
                span: n.span,
            })),
            Expr::String(s) => Ok(Planned::leaf(Node::String {
                value: s.value.clone(),
                span: s.span,
            })),
            Expr::Paren(p) => self.node(&p.expr, scope),
            Expr::Unary(u) => {
                let inner = self.node(&u.expr, scope)?;
                let node = match inner.node {
                    node if u.negate => Node::Negate(Box::new(node), u.span),
                    node @ Node::Select(_) => Node::Plus(Box::new(node), u.span),
                    node => node,
                };
                Ok(Planned { node, ..inner })
            }
            Expr::Vector(v) => {
                let select = self.select(v, scope, 0)?;
                let invariant = select.at.is_some();
                Ok(Planned::all(Node::Select(select), invariant))
            }
            Expr::Matrix(m) => self.range(m, scope),
            Expr::Subquery(s) => self.subquery(s, scope),
            Expr::Call(c) => self.call(c, scope),
            Expr::Aggregate(a) => self.aggregate(a, scope),
            Expr::Binary(b) => self.binary(b, scope),
        }
    }

    fn at(&self, at: Option<At>) -> Option<i64> {
        at.map(|at| match at {
            At::Timestamp(t) => t,
            At::Start => self.context.start_ms,
            At::End => self.context.end_ms,
        })
    }

    fn range(&mut self, m: &MatrixSelector, scope: Scope<'_>) -> Result<Planned, QueryError> {
        let range_ms = millis(&m.range)?;
        let select = self.select(&m.selector, scope, range_ms)?;
        let invariant = select.at.is_some();
        Ok(Planned {
            node: Node::Range(RangeNode {
                select,
                range_ms,
                span: m.span,
            }),
            invariant,
            wrap: false,
        })
    }

    fn subquery(&mut self, s: &SubqueryExpr, scope: Scope<'_>) -> Result<Planned, QueryError> {
        let (range_ms, offset_ms, at) = (millis(&s.range)?, millis(&s.offset)?, self.at(s.at));
        let step_ms = match &s.step {
            Some(step) => millis(step)?,
            None => self.context.default_subquery_step_ms,
        };
        if step_ms <= 0 {
            return Err(QueryError::BadData(format!(
                "subquery step of {step_ms}ms: must be greater than 0"
            )));
        }
        let base = at.map_or(scope.times, |t| TimeRange::new(t, t));
        let times = TimeRange::new(
            base.min.saturating_sub(offset_ms).saturating_sub(range_ms),
            base.max.saturating_sub(offset_ms),
        );
        let inner = self.node(
            &s.expr,
            Scope {
                times,
                step_ms,
                grouping: None,
                // Resets between its samples must be found by comparing.
                buckets: Buckets::Always,
                ..scope
            },
        )?;
        let expr = if inner.invariant {
            Node::Invariant(Box::new(inner.node))
        } else {
            inner.node
        };
        let node = SubqueryNode {
            expr,
            range_ms,
            step_ms,
            offset_ms,
            at,
            span: s.span,
        };
        Ok(Planned {
            node: Node::Subquery(Box::new(node)),
            invariant: at.is_some(),
            wrap: false,
        })
    }

    fn call(&mut self, c: &Call, scope: Scope<'_>) -> Result<Planned, QueryError> {
        if let Some(value) = self.query_constant(c.function) {
            return Ok(Planned::leaf(Node::Number { value, span: c.span }));
        }
        let inside = Scope {
            buckets: scope.buckets.within(c.function),
            ..scope.inside(Some(c.function.name()))
        };
        let mut args = Vec::with_capacity(c.args.len());
        let info = if c.function == FunctionId::Info {
            Some(self.info(c, scope)?)
        } else {
            None
        };
        for (i, arg) in c.args.iter().enumerate() {
            // The second argument of info() only carries matchers.
            if i == 1 && info.is_some() {
                break;
            }
            args.push(self.node(arg, inside)?);
        }
        if let (Some(info), Some(Expr::Vector(labels))) = (info, c.args.get(1).map(Expr::unwrap_parens)) {
            args.push(Planned::leaf(Node::Select(SelectNode {
                source: info.source,
                matchers: Arc::clone(&labels.matchers),
                offset_ms: 0,
                at: None,
                edges: RangeEdges::Plain,
                statistics_only: false,
                span: labels.span,
            })));
        }
        let all_invariant = args.iter().all(|a| a.invariant);
        let of_selectors = !args.is_empty() && args.iter().all(|a| matches!(a.node, Node::Select(_)));
        let invariant = all_invariant
            && (!depends_on_time(c.function) || (c.function == FunctionId::Timestamp && of_selectors));
        let args = args
            .into_iter()
            .map(|a| if invariant { a.node } else { a.wrapped() })
            .collect();
        let node = Node::Call(Box::new(CallNode {
            function: c.function,
            args,
            info,
            span: c.span,
        }));
        Ok(Planned::all(node, invariant))
    }

    /// The functions that are constants of the request.
    fn query_constant(&self, function: FunctionId) -> Option<f64> {
        let PlanContext {
            start_ms,
            end_ms,
            step_ms,
            ..
        } = self.context;
        match function {
            FunctionId::Start => Some(start_ms as f64 / 1000.0),
            FunctionId::End => Some(end_ms as f64 / 1000.0),
            FunctionId::Range => Some(end_ms.saturating_sub(start_ms) as f64 / 1000.0),
            FunctionId::Step if start_ms == end_ms => Some(0.0),
            FunctionId::Step => Some(step_ms as f64 / 1000.0),
            _ => None,
        }
    }

    fn aggregate(&mut self, a: &AggregateExpr, scope: Scope<'_>) -> Result<Planned, QueryError> {
        let param = a
            .param
            .as_ref()
            .map(|p| self.node(p, scope.inside(None)))
            .transpose()?;
        let inside = Scope {
            function: Some(a.op.as_str()),
            grouping: Some((&a.grouping, !a.without)),
            ..scope
        };
        let expr = self.node(&a.expr, inside)?;
        // Whatever the parameter is: Prometheus takes that of the first step for all.
        let invariant = expr.invariant;
        let keep = |p: Planned| if invariant { p.node } else { p.wrapped() };
        let node = AggregateNode {
            op: a.op,
            expr: keep(expr),
            param: param.map(keep),
            grouping: a.grouping.clone(),
            without: a.without,
            span: a.span,
        };
        Ok(Planned::all(Node::Aggregate(Box::new(node)), invariant))
    }

    fn binary(&mut self, b: &BinaryExpr, scope: Scope<'_>) -> Result<Planned, QueryError> {
        let trims = matches!(b.op, BinaryOp::TrimUpper | BinaryOp::TrimLower);
        let buckets = if trims { Buckets::Always } else { scope.buckets };
        let inside = Scope {
            buckets,
            ..scope.inside(None)
        };
        let lhs = self.node(&b.lhs, inside)?;
        let rhs = self.node(&b.rhs, inside)?;
        let invariant = lhs.invariant && rhs.invariant;
        let (lhs, rhs) = if invariant {
            (lhs.node, rhs.node)
        } else {
            (lhs.wrapped(), rhs.wrapped())
        };
        let node = BinaryNode {
            op: b.op,
            lhs,
            rhs,
            matching: b.matching.clone(),
            return_bool: b.return_bool,
            span: b.span,
        };
        let node = Node::Binary(Box::new(node));
        if invariant {
            Ok(Planned::all(node, true))
        } else {
            Ok(Planned::varying(node))
        }
    }
}

/// Whether a function's result depends on the evaluation time even if its arguments do not.
fn depends_on_time(function: FunctionId) -> bool {
    use FunctionId as F;
    matches!(
        function,
        F::DaysInMonth
            | F::DayOfMonth
            | F::DayOfWeek
            | F::DayOfYear
            | F::Hour
            | F::Minute
            | F::Month
            | F::Year
            | F::PredictLinear
            | F::Time
            | F::Timestamp
    )
}

fn millis(arg: &DurationArg) -> Result<i64, QueryError> {
    arg.millis()
        .ok_or_else(|| QueryError::internal("duration expression left unresolved by planning"))
}
