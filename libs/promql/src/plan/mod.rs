//! From a syntax tree and a time range to what is fetched and evaluated.
//!
//! The plan drops parentheses, resolves `start()`, `end()`, `@`, offsets and duration expressions, marks the parts that
//! are the same at every step so that they are evaluated once, and collects what the selectors need into as few reads
//! of storage as possible: equal selectors whose time ranges overlap share one. What can be computed while its series
//! arrive is set apart as [`Leaf`]s.

mod leaves;
mod nodes;
mod reads;

use std::collections::HashMap;
use std::sync::Arc;

use koios_model::TimeRange;

use crate::ast::{
    AggregateExpr, Ast, At, BinaryExpr, BinaryOp, Call, DurationArg, Expr, ExprRef, MatrixSelector,
    RangeEdges, SubqueryExpr, UnaryExpr, VectorSelector,
};
use crate::duration::{DurationContext, with_durations};
use crate::error::QueryError;
use crate::queryable::SelectRequest;
use crate::signatures::FunctionId;
use crate::steps::Steps;

pub(crate) use leaves::Leaf;
pub(crate) use nodes::{
    AggregateNode, BinaryNode, CallNode, Child, InfoSource, Node, Nodes, RangeNode, SelectNode, SubqueryNode,
    SubqueryTimes,
};
pub(crate) use reads::info_name_matchers;

use reads::ReferenceTime;

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
    pub(crate) nodes: Nodes,
    pub(crate) root: Child,
    /// What is computed first, each as soon as its series are there.
    pub(crate) leaves: Vec<Leaf>,
    pub(crate) selects: Vec<SelectRequest>,
    pub(crate) steps: Steps,
}

/// Plans a query.
pub(crate) fn plan(ast: &Ast, context: PlanContext) -> Result<Plan, QueryError> {
    let durations = DurationContext {
        step_ms: context.step_ms,
        range_ms: context.end_ms.saturating_sub(context.start_ms),
    };
    let ast = with_durations(ast, durations).map_err(|e| QueryError::BadData(e.to_string()))?;
    let mut planner = Planner {
        context,
        selects: Vec::new(),
        same_matchers: HashMap::new(),
        nodes: Nodes::with_capacity(ast.len()),
        reference_times: Vec::new(),
    };
    let scope = Scope {
        times: TimeRange::new(context.start_ms, context.end_ms),
        step_ms: context.step_ms,
        function: None,
        grouping: None,
        buckets: Buckets::Needed,
    };
    let root = planner.expr(ast.root(), scope)?;
    let root = planner.wrapped(root);
    let steps = if context.step_ms == 0 {
        Steps::instant(context.start_ms)
    } else {
        Steps::range(context.start_ms, context.end_ms, context.step_ms)
    };
    let Planner {
        mut nodes, selects, ..
    } = planner;
    let leaves = leaves::take_leaves(&mut nodes, root, steps, selects.len())?;
    Ok(Plan {
        nodes,
        root,
        leaves,
        selects,
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
#[derive(Clone, Copy)]
struct Planned {
    node: Child,
    invariant: bool,
    wrap: bool,
}

/// What is left to do for an expression.
enum Task<'e> {
    /// All of it.
    Plan(ExprRef<'e>, Scope<'e>),
    /// Making its node: what it needs is planned.
    Sign(&'e UnaryExpr),
    Subquery(&'e SubqueryExpr, SubqueryTimes),
    Call(ExprRef<'e>, &'e Call, Option<InfoSource>),
    Aggregate(&'e AggregateExpr),
    Binary(&'e BinaryExpr),
}

struct Planner {
    context: PlanContext,
    selects: Vec<SelectRequest>,
    /// By the hash of their matchers: where in `selects` they are, in order.
    same_matchers: HashMap<u64, Vec<usize>>,
    nodes: Nodes,
    /// For `info()`: of each expression, what it tells of time; known once it is needed.
    reference_times: Vec<Option<ReferenceTime>>,
}

impl Planner {
    /// Plans an expression and all below it: first what it needs, in the order of the text, then itself.
    fn expr(&mut self, expr: ExprRef<'_>, scope: Scope<'_>) -> Result<Planned, QueryError> {
        let mut tasks = Vec::with_capacity(8);
        tasks.push(Task::Plan(expr, scope));
        let mut planned: Vec<Planned> = Vec::with_capacity(8);
        while let Some(task) = tasks.pop() {
            let done = match task {
                Task::Plan(expr, scope) => self.begin(expr, scope, &mut tasks)?,
                Task::Sign(u) => Some(self.sign(u, planned.pop())?),
                Task::Subquery(s, times) => Some(self.subquery(s, times, planned.pop())?),
                Task::Call(expr, c, info) => {
                    let args = if info.is_some() {
                        c.args.len().min(1)
                    } else {
                        c.args.len()
                    };
                    let args = planned.split_off(planned.len().saturating_sub(args));
                    Some(self.call(expr, c, info, args)?)
                }
                Task::Aggregate(a) => {
                    let expr = planned.pop();
                    let param = a.param.and_then(|_| planned.pop());
                    Some(self.aggregate(a, param, expr)?)
                }
                Task::Binary(b) => {
                    let rhs = planned.pop();
                    Some(self.binary(b, planned.pop(), rhs)?)
                }
            };
            planned.extend(done);
        }
        planned.pop().ok_or_else(incomplete)
    }

    /// Plans an expression that needs no others; of any other, notes what is to be done.
    fn begin<'e>(
        &mut self,
        expr: ExprRef<'e>,
        scope: Scope<'e>,
        tasks: &mut Vec<Task<'e>>,
    ) -> Result<Option<Planned>, QueryError> {
        match expr.expr() {
            Expr::Number(n) => {
                let (value, span) = (n.value, n.span);
                return Ok(Some(self.constant(Node::Number { value, span })));
            }
            Expr::String(s) => {
                let (value, span) = (s.value.clone(), s.span);
                return Ok(Some(self.constant(Node::String { value, span })));
            }
            Expr::Vector(v) => return self.vector(v, scope).map(Some),
            Expr::Matrix(m) => return self.range(m, scope).map(Some),
            Expr::Call(c) => return self.begin_call(expr, c, scope, tasks),
            Expr::Paren(p) => tasks.push(Task::Plan(expr.at(p.expr), scope)),
            Expr::Unary(u) => {
                tasks.push(Task::Sign(u));
                tasks.push(Task::Plan(expr.at(u.expr), scope));
            }
            Expr::Subquery(s) => {
                let (times, inside) = self.subquery_times(s, scope)?;
                tasks.push(Task::Subquery(s, times));
                tasks.push(Task::Plan(expr.at(s.expr), inside));
            }
            Expr::Aggregate(a) => {
                let inside = Scope {
                    function: Some(a.op.as_str()),
                    grouping: Some((&a.grouping, !a.without)),
                    ..scope
                };
                tasks.push(Task::Aggregate(a));
                tasks.push(Task::Plan(expr.at(a.expr), inside));
                tasks.extend(a.param.map(|p| Task::Plan(expr.at(p), scope.inside(None))));
            }
            Expr::Binary(b) => {
                let trims = matches!(b.op, BinaryOp::TrimUpper | BinaryOp::TrimLower);
                let buckets = if trims { Buckets::Always } else { scope.buckets };
                let inside = Scope {
                    buckets,
                    ..scope.inside(None)
                };
                tasks.push(Task::Binary(b));
                tasks.push(Task::Plan(expr.at(b.rhs), inside));
                tasks.push(Task::Plan(expr.at(b.lhs), inside));
            }
        }
        Ok(None)
    }

    fn planned(&mut self, node: Node, invariant: bool, wrap: bool) -> Planned {
        Planned {
            node: self.nodes.push(node),
            invariant,
            wrap,
        }
    }

    fn constant(&mut self, node: Node) -> Planned {
        self.planned(node, true, false)
    }

    /// The node as it is evaluated where what is around it is not the same at every step.
    fn wrapped(&mut self, planned: Planned) -> Child {
        match planned.wrap {
            true => self.nodes.push(Node::Invariant(planned.node)),
            false => planned.node,
        }
    }

    fn at(&self, at: Option<At>) -> Option<i64> {
        at.map(|at| match at {
            At::Timestamp(t) => t,
            At::Start => self.context.start_ms,
            At::End => self.context.end_ms,
        })
    }

    fn vector(&mut self, v: &VectorSelector, scope: Scope<'_>) -> Result<Planned, QueryError> {
        let select = self.select(v, scope, 0)?;
        let invariant = select.at.is_some();
        Ok(self.planned(Node::Select(Box::new(select)), invariant, invariant))
    }

    fn range(&mut self, m: &MatrixSelector, scope: Scope<'_>) -> Result<Planned, QueryError> {
        let range_ms = millis(&m.range)?;
        let select = self.select(&m.selector, scope, range_ms)?;
        let invariant = select.at.is_some();
        let node = Node::Range(Box::new(RangeNode {
            select,
            range_ms,
            span: m.span,
        }));
        Ok(self.planned(node, invariant, false))
    }

    fn sign(&mut self, u: &UnaryExpr, inner: Option<Planned>) -> Result<Planned, QueryError> {
        let inner = inner.ok_or_else(incomplete)?;
        if u.negate {
            let node = self.nodes.push(Node::Negate(inner.node, u.span));
            return Ok(Planned { node, ..inner });
        }
        let node = match self.nodes.pop().ok_or_else(incomplete)? {
            Node::Select(select) => Node::Plus(select, u.span),
            other => other,
        };
        let node = self.nodes.push(node);
        Ok(Planned { node, ..inner })
    }

    fn subquery_times<'e>(
        &self,
        s: &SubqueryExpr,
        scope: Scope<'e>,
    ) -> Result<(SubqueryTimes, Scope<'e>), QueryError> {
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
        let inside = Scope {
            times,
            step_ms,
            grouping: None,
            // Resets between its samples must be found by comparing.
            buckets: Buckets::Always,
            ..scope
        };
        let times = SubqueryTimes {
            range_ms,
            step_ms,
            offset_ms,
            at,
        };
        Ok((times, inside))
    }

    fn subquery(
        &mut self,
        s: &SubqueryExpr,
        times: SubqueryTimes,
        inner: Option<Planned>,
    ) -> Result<Planned, QueryError> {
        let inner = inner.ok_or_else(incomplete)?;
        let expr = if inner.invariant {
            self.nodes.push(Node::Invariant(inner.node))
        } else {
            inner.node
        };
        let node = Node::Subquery(Box::new(SubqueryNode {
            expr,
            times,
            span: s.span,
        }));
        Ok(self.planned(node, times.at.is_some(), false))
    }

    fn begin_call<'e>(
        &mut self,
        expr: ExprRef<'e>,
        c: &'e Call,
        scope: Scope<'e>,
        tasks: &mut Vec<Task<'e>>,
    ) -> Result<Option<Planned>, QueryError> {
        if let Some(value) = self.query_constant(c.function) {
            return Ok(Some(self.constant(Node::Number { value, span: c.span })));
        }
        let inside = Scope {
            buckets: scope.buckets.within(c.function),
            ..scope.inside(Some(c.function.name()))
        };
        let mut args = c.args.as_slice();
        let mut info = None;
        if c.function == FunctionId::Info {
            info = Some(self.info(expr, scope)?);
            // The second argument only carries matchers.
            args = args.get(..1).unwrap_or(args);
        }
        tasks.push(Task::Call(expr, c, info));
        tasks.extend(args.iter().rev().map(|arg| Task::Plan(expr.at(*arg), inside)));
        Ok(None)
    }

    fn call(
        &mut self,
        expr: ExprRef<'_>,
        c: &Call,
        info: Option<InfoSource>,
        mut args: Vec<Planned>,
    ) -> Result<Planned, QueryError> {
        if let (Some(info), Some(Expr::Vector(labels))) = (info, nth_argument(expr, 1)) {
            args.push(self.constant(Node::Select(Box::new(SelectNode {
                source: info.source,
                matchers: Arc::clone(&labels.matchers),
                offset_ms: 0,
                at: None,
                edges: RangeEdges::Plain,
                statistics_only: false,
                span: labels.span,
            }))));
        }
        let all_invariant = args.iter().all(|a| a.invariant);
        let is_select = |a: &Planned| matches!(self.nodes.get(a.node), Ok(Node::Select(_)));
        let of_selectors = !args.is_empty() && args.iter().all(is_select);
        let invariant = all_invariant
            && (!depends_on_time(c.function) || (c.function == FunctionId::Timestamp && of_selectors));
        let args = args.into_iter().map(|a| self.kept(a, invariant)).collect();
        let node = Node::Call(Box::new(CallNode {
            function: c.function,
            args,
            info,
            span: c.span,
        }));
        Ok(self.planned(node, invariant, invariant))
    }

    /// A node as a child: wrapped unless all around it is evaluated once.
    fn kept(&mut self, planned: Planned, invariant: bool) -> Child {
        match invariant {
            true => planned.node,
            false => self.wrapped(planned),
        }
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

    fn aggregate(
        &mut self,
        a: &AggregateExpr,
        param: Option<Planned>,
        expr: Option<Planned>,
    ) -> Result<Planned, QueryError> {
        let expr = expr.ok_or_else(incomplete)?;
        // Whatever the parameter is: Prometheus takes that of the first step for all.
        let invariant = expr.invariant;
        let node = AggregateNode {
            op: a.op,
            expr: self.kept(expr, invariant),
            param: param.map(|p| self.kept(p, invariant)),
            grouping: a.grouping.clone(),
            without: a.without,
            span: a.span,
        };
        Ok(self.planned(Node::Aggregate(Box::new(node)), invariant, invariant))
    }

    fn binary(
        &mut self,
        b: &BinaryExpr,
        lhs: Option<Planned>,
        rhs: Option<Planned>,
    ) -> Result<Planned, QueryError> {
        let (lhs, rhs) = lhs.zip(rhs).ok_or_else(incomplete)?;
        let invariant = lhs.invariant && rhs.invariant;
        let node = BinaryNode {
            op: b.op,
            lhs: self.kept(lhs, invariant),
            rhs: self.kept(rhs, invariant),
            matching: b.matching.clone(),
            return_bool: b.return_bool,
            span: b.span,
        };
        Ok(self.planned(Node::Binary(Box::new(node)), invariant, invariant))
    }
}

/// A node without what it needs: the tree is not what the parser makes.
fn incomplete() -> QueryError {
    QueryError::internal("a part of the query was left out by planning")
}

/// An argument, without parentheses around it.
fn nth_argument(call: ExprRef<'_>, i: usize) -> Option<&Expr> {
    call.children().nth(i).map(|arg| arg.unwrap_parens().expr())
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
