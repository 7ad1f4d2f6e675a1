//! PromQL: parser, AST, planner, engine and functions; storage only through its own Queryable trait.

mod ast;
mod duration;
mod error;
mod lexer;
mod parser;
mod printer;
mod queryable;
mod signatures;
mod string_literal;

pub use ast::{
    AggregateExpr, AggregateOp, At, BinaryExpr, BinaryOp, Call, Cardinality, DurationArg, DurationExpr,
    DurationKind, Expr, FillValues, MatrixSelector, NumberLiteral, ParenExpr, RangeEdges, Span,
    StringLiteral, SubqueryExpr, UnaryExpr, ValueType, VectorMatching, VectorSelector,
};
pub use duration::{DurationContext, DurationError, parse_duration, resolve_durations};
pub use error::{ErrorKind, QueryError};
pub use parser::{ParseError, ParseOptions, parse, parse_metric_selector, parse_with};
pub use printer::pretty;
pub use queryable::{
    Columns, Completeness, Queryable, SelectHints, SelectRequest, Series, SeriesData, SeriesStream,
    StreamItem, stream_of,
};
pub use signatures::{FunctionId, Signature};
