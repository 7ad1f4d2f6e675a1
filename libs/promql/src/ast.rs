//! The syntax tree. Every node knows the bytes of the query it came from.

use std::fmt;
use std::sync::Arc;

use koios_model::Matcher;

use crate::signatures::FunctionId;

mod tree;
mod visit;

pub use tree::{Ast, ExprId, ExprRef};
pub(crate) use visit::Way;

/// A half-open range of byte offsets into the query text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Span {
    /// The span `start..end`.
    pub fn new(start: usize, end: usize) -> Self {
        let clamp = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Self {
            start: clamp(start),
            end: clamp(end),
        }
    }

    /// The span from the start of `self` to the end of `last`.
    pub fn to(self, last: Self) -> Self {
        Self {
            start: self.start,
            end: last.end,
        }
    }

    /// Where the span starts, as `line:column`, both from 1; the column counts bytes, as in Prometheus.
    pub fn position_in(self, query: &str) -> String {
        if query.is_empty() {
            return "unknown position".to_owned();
        }
        let Some(before) = query.as_bytes().get(..self.start as usize) else {
            return "invalid position".to_owned();
        };
        let line = 1 + before.iter().filter(|b| **b == b'\n').count();
        let column = before.len() - before.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1) + 1;
        format!("{line}:{column}")
    }
}

/// What an expression evaluates to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ValueType {
    /// One number per step.
    Scalar,
    /// One sample per series and step.
    Vector,
    /// Many samples per series and step.
    Matrix,
    /// A string.
    String,
}

impl ValueType {
    /// The name in the HTTP API's `resultType`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Vector => "vector",
            Self::Matrix => "matrix",
            Self::String => "string",
        }
    }

    /// The name in error messages.
    pub fn documented(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Vector => "instant vector",
            Self::Matrix => "range vector",
            Self::String => "string",
        }
    }
}

/// An expression of an [`Ast`]; what is directly below it is named by its place there.
#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    /// `sum by (a) (…)`
    Aggregate(Box<AggregateExpr>),
    /// `a + b`
    Binary(Box<BinaryExpr>),
    /// `rate(…)`
    Call(Box<Call>),
    /// `x[5m]`
    Matrix(Box<MatrixSelector>),
    /// `1`, or `5m` as a number of seconds
    Number(NumberLiteral),
    /// `(…)`
    Paren(Box<ParenExpr>),
    /// `"…"`
    String(Box<StringLiteral>),
    /// `…[5m:1m]`
    Subquery(Box<SubqueryExpr>),
    /// `-…`
    Unary(Box<UnaryExpr>),
    /// `x{a="b"}`
    Vector(Box<VectorSelector>),
}

impl Expr {
    /// The bytes it came from.
    pub fn span(&self) -> Span {
        match self {
            Self::Aggregate(e) => e.span,
            Self::Binary(e) => e.span,
            Self::Call(e) => e.span,
            Self::Matrix(e) => e.span,
            Self::Number(e) => e.span,
            Self::Paren(e) => e.span,
            Self::String(e) => e.span,
            Self::Subquery(e) => e.span,
            Self::Unary(e) => e.span,
            Self::Vector(e) => e.span,
        }
    }
}

/// An aggregation operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AggregateOp {
    /// `avg`
    Avg,
    /// `bottomk`
    Bottomk,
    /// `count`
    Count,
    /// `count_values`
    CountValues,
    /// `group`
    Group,
    /// `limit_ratio`
    LimitRatio,
    /// `limitk`
    Limitk,
    /// `max`
    Max,
    /// `min`
    Min,
    /// `quantile`
    Quantile,
    /// `stddev`
    Stddev,
    /// `stdvar`
    Stdvar,
    /// `sum`
    Sum,
    /// `topk`
    Topk,
}

impl AggregateOp {
    /// The operator as written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Avg => "avg",
            Self::Bottomk => "bottomk",
            Self::Count => "count",
            Self::CountValues => "count_values",
            Self::Group => "group",
            Self::LimitRatio => "limit_ratio",
            Self::Limitk => "limitk",
            Self::Max => "max",
            Self::Min => "min",
            Self::Quantile => "quantile",
            Self::Stddev => "stddev",
            Self::Stdvar => "stdvar",
            Self::Sum => "sum",
            Self::Topk => "topk",
        }
    }

    /// Whether it takes a parameter before the vector.
    pub fn has_param(self) -> bool {
        matches!(
            self,
            Self::Bottomk | Self::CountValues | Self::LimitRatio | Self::Limitk | Self::Quantile | Self::Topk
        )
    }

    /// Whether it is among the experimental functions.
    pub fn is_experimental(self) -> bool {
        matches!(self, Self::Limitk | Self::LimitRatio)
    }
}

/// An aggregation over a vector.
#[derive(Clone, Debug, PartialEq)]
pub struct AggregateExpr {
    /// From the operator to the last parenthesis.
    pub span: Span,
    /// The operator.
    pub op: AggregateOp,
    /// What is aggregated.
    pub expr: ExprId,
    /// The parameter; present exactly if [`AggregateOp::has_param`].
    pub param: Option<ExprId>,
    /// The labels of `by` or `without`, in written order.
    pub grouping: Vec<String>,
    /// Whether `grouping` names the labels to drop instead of those to keep.
    pub without: bool,
}

/// A binary operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BinaryOp {
    /// `+`
    Add,
    /// `-`
    Sub,
    /// `*`
    Mul,
    /// `/`
    Div,
    /// `%`
    Mod,
    /// `^`
    Pow,
    /// `atan2`
    Atan2,
    /// `==`
    Eq,
    /// `!=`
    Ne,
    /// `>`
    Gt,
    /// `<`
    Lt,
    /// `>=`
    Ge,
    /// `<=`
    Le,
    /// `</`: drops a histogram's observations above a value.
    TrimUpper,
    /// `>/`: drops a histogram's observations below a value.
    TrimLower,
    /// `and`
    And,
    /// `or`
    Or,
    /// `unless`
    Unless,
}

impl BinaryOp {
    /// The operator as written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Sub => "-",
            Self::Mul => "*",
            Self::Div => "/",
            Self::Mod => "%",
            Self::Pow => "^",
            Self::Atan2 => "atan2",
            Self::Eq => "==",
            Self::Ne => "!=",
            Self::Gt => ">",
            Self::Lt => "<",
            Self::Ge => ">=",
            Self::Le => "<=",
            Self::TrimUpper => "</",
            Self::TrimLower => ">/",
            Self::And => "and",
            Self::Or => "or",
            Self::Unless => "unless",
        }
    }

    /// Whether it compares (`==`, `!=`, `>`, `<`, `>=`, `<=`).
    pub fn is_comparison(self) -> bool {
        matches!(
            self,
            Self::Eq | Self::Ne | Self::Gt | Self::Lt | Self::Ge | Self::Le
        )
    }

    /// Whether it is `and`, `or` or `unless`.
    pub fn is_set(self) -> bool {
        matches!(self, Self::And | Self::Or | Self::Unless)
    }
}

/// How many series of one side a series of the other side may match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cardinality {
    /// Neither `group_left` nor `group_right`.
    OneToOne,
    /// `group_left`
    ManyToOne,
    /// `group_right`
    OneToMany,
    /// Set operators.
    ManyToMany,
}

impl fmt::Display for Cardinality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OneToOne => "one-to-one",
            Self::ManyToOne => "many-to-one",
            Self::OneToMany => "one-to-many",
            Self::ManyToMany => "many-to-many",
        })
    }
}

/// Values for series that have no match on the other side; `None` drops them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FillValues {
    /// The value for a missing left side.
    pub lhs: Option<f64>,
    /// The value for a missing right side.
    pub rhs: Option<f64>,
}

/// How the series of two vectors find each other.
#[derive(Clone, Debug, PartialEq)]
pub struct VectorMatching {
    /// The cardinality.
    pub card: Cardinality,
    /// The labels of `on` or `ignoring`.
    pub labels: Vec<String>,
    /// Whether `labels` are the ones to compare (`on`) instead of the ones to leave out.
    pub on: bool,
    /// The labels of `group_left(…)` or `group_right(…)`: copied from the "one" side.
    pub include: Vec<String>,
    /// The `fill` modifiers.
    pub fill: FillValues,
}

/// A binary operation.
#[derive(Clone, Debug, PartialEq)]
pub struct BinaryExpr {
    /// Both operands.
    pub span: Span,
    /// The operator with its modifiers.
    pub op_span: Span,
    /// The operator.
    pub op: BinaryOp,
    /// The left operand.
    pub lhs: ExprId,
    /// The right operand.
    pub rhs: ExprId,
    /// Present exactly if both operands are vectors.
    pub matching: Option<VectorMatching>,
    /// Whether a comparison answers 0 or 1 instead of filtering.
    pub return_bool: bool,
}

/// A function call.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Name and arguments.
    pub span: Span,
    /// The function.
    pub function: FunctionId,
    /// The arguments; number and types were checked.
    pub args: Vec<ExprId>,
}

/// The evaluation time a selector is pinned to by `@`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum At {
    /// Milliseconds since the Unix epoch.
    Timestamp(i64),
    /// The start of the query's range.
    Start,
    /// The end of the query's range.
    End,
}

/// A range, step or offset: known, or computed from the query's step and range.
#[derive(Clone, Debug, PartialEq)]
pub enum DurationArg {
    /// Milliseconds.
    Millis(i64),
    /// An expression, see `resolve_durations`.
    Expr(DurationExpr),
}

impl DurationArg {
    /// The milliseconds, once known.
    pub fn millis(&self) -> Option<i64> {
        match self {
            Self::Millis(ms) => Some(*ms),
            Self::Expr(_) => None,
        }
    }

    /// Whether it is the literal zero, as in an absent offset.
    pub fn is_zero(&self) -> bool {
        *self == Self::Millis(0)
    }
}

impl Default for DurationArg {
    fn default() -> Self {
        Self::Millis(0)
    }
}

/// Arithmetic on durations, in seconds: a tree whose nodes lie in one list, as those of an [`Ast`] do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DurationExpr {
    /// In the order of the text, each after those below it; the whole is the last one.
    pub(crate) nodes: Vec<DurationNode>,
}

impl DurationExpr {
    /// The bytes it came from.
    pub fn span(&self) -> Span {
        self.nodes.last().map_or_else(Span::default, |node| node.span)
    }
}

/// Where a part of a [`DurationExpr`] stands among its nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DurationId(pub(crate) usize);

/// A part of a [`DurationExpr`].
#[derive(Clone, Debug, PartialEq)]
pub struct DurationNode {
    /// The bytes it came from.
    pub span: Span,
    /// What it is.
    pub kind: DurationKind,
}

/// The forms of a duration expression.
#[derive(Clone, Debug, PartialEq)]
pub enum DurationKind {
    /// `5m`, or `300`.
    Number(NumberLiteral),
    /// `step()`
    Step,
    /// `range()`
    Range,
    /// `-…`
    Negate(DurationId),
    /// `(…)`
    Paren(DurationId),
    /// `min_of(…, …)`
    MinOf(DurationId, DurationId),
    /// `max_of(…, …)`
    MaxOf(DurationId, DurationId),
    /// `… + …`; only `+ - * / % ^` occur.
    Binary(BinaryOp, DurationId, DurationId),
}

impl DurationKind {
    /// The part directly below that is number `i`.
    pub(crate) fn child(&self, i: usize) -> Option<DurationId> {
        match (self, i) {
            (Self::Negate(a) | Self::Paren(a), 0) => Some(*a),
            (Self::MinOf(a, _) | Self::MaxOf(a, _) | Self::Binary(_, a, _), 0) => Some(*a),
            (Self::MinOf(_, b) | Self::MaxOf(_, b) | Self::Binary(_, _, b), 1) => Some(*b),
            _ => None,
        }
    }
}

/// How a range selector treats its edges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RangeEdges {
    /// Only samples inside the range.
    #[default]
    Plain,
    /// `anchored`: also the sample before the range, no extrapolation.
    Anchored,
    /// `smoothed`: values at the edges are interpolated.
    Smoothed,
}

/// A selection of series.
#[derive(Clone, Debug, PartialEq)]
pub struct VectorSelector {
    /// Name, matchers and modifiers.
    pub span: Span,
    /// The metric name written before the braces.
    pub name: Option<String>,
    /// All matchers: those in braces in written order, then the one for `name`.
    pub matchers: Arc<[Matcher]>,
    /// The offset; positive looks back. For a range selector it stands here too.
    pub offset: DurationArg,
    /// The `@` modifier.
    pub at: Option<At>,
    /// `anchored` or `smoothed`.
    pub edges: RangeEdges,
    /// The second argument of `info`: matchers on info metrics' labels, which may all match the empty string.
    pub info_labels: bool,
}

/// A selection of ranges of series.
#[derive(Clone, Debug, PartialEq)]
pub struct MatrixSelector {
    /// Selector, range and modifiers.
    pub span: Span,
    /// The series; carries the offset, `@` and edges.
    pub selector: VectorSelector,
    /// The length of the range.
    pub range: DurationArg,
}

/// An expression evaluated over a range of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct SubqueryExpr {
    /// Expression, brackets and modifiers.
    pub span: Span,
    /// What is evaluated.
    pub expr: ExprId,
    /// The length of the range.
    pub range: DurationArg,
    /// The resolution; `None` means the engine's default.
    pub step: Option<DurationArg>,
    /// The offset; positive looks back.
    pub offset: DurationArg,
    /// The `@` modifier.
    pub at: Option<At>,
}

/// A number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NumberLiteral {
    /// The bytes it came from, its sign included.
    pub span: Span,
    /// Its value; seconds for a duration.
    pub value: f64,
    /// Whether it was written as a duration.
    pub duration: bool,
}

/// Parentheses.
#[derive(Clone, Debug, PartialEq)]
pub struct ParenExpr {
    /// From `(` to `)`.
    pub span: Span,
    /// What is inside.
    pub expr: ExprId,
}

/// A string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StringLiteral {
    /// The bytes it came from, quotes included.
    pub span: Span,
    /// Its value, unquoted. Escapes may write bytes that form no UTF-8; here they are U+FFFD.
    pub value: String,
    /// The value as Go quotes it, if its bytes form no UTF-8: it is no valid label then.
    pub not_utf8: Option<Box<str>>,
}

/// A sign before an expression.
#[derive(Clone, Debug, PartialEq)]
pub struct UnaryExpr {
    /// Sign and operand.
    pub span: Span,
    /// Whether the sign is `-`; `+` changes nothing.
    pub negate: bool,
    /// The operand.
    pub expr: ExprId,
}
