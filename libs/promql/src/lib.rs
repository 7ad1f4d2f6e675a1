//! PromQL: parser, AST, planner, engine and functions; storage only through its own Queryable trait.

mod annotations;
mod ast;
mod context;
mod date;
mod duration;
mod engine;
mod error;
mod eval;
pub mod histogram;
mod kahan;
mod lexer;
mod number;
mod parser;
mod plan;
mod printer;
mod queryable;
mod signatures;
mod steps;
mod string_literal;
mod value;

pub use annotations::{AnnotationTexts, Annotations};
pub use ast::{
    AggregateExpr, AggregateOp, At, BinaryExpr, BinaryOp, Call, Cardinality, DurationArg, DurationExpr,
    DurationKind, Expr, FillValues, MatrixSelector, NumberLiteral, ParenExpr, RangeEdges, Span,
    StringLiteral, SubqueryExpr, UnaryExpr, ValueType, VectorMatching, VectorSelector,
};
pub use context::{CancelContext, Interrupt, QueryContext, QueryStats, Uninterrupted};
pub use duration::{DurationContext, DurationError, parse_duration, resolve_durations};
pub use engine::{Engine, EngineOptions, Fetched, Prepared, Query};
pub use error::{ErrorKind, QueryError};
pub use parser::{ParseError, ParseOptions, parse, parse_metric_selector, parse_with};
pub use printer::pretty;
pub use queryable::{
    Columns, Completeness, Queryable, SelectHints, SelectRequest, Series, SeriesData, SeriesStream,
    StreamItem, stream_of,
};
pub use signatures::{FunctionId, Signature};
pub use steps::Steps;
pub use value::{MatrixSeries, QueryOutput, SampleValue, Value, VectorSample};
