//! PromQL, as Prometheus 3 speaks it: from text to an answer, on any storage that is a [`Queryable`].
//!
//! **Data flow.** A query is parsed and checked into a tree ([`Ast`]), each node of which knows its bytes of the text.
//! [`Engine::prepare_range`] plans it: parentheses go, `@`, offsets and duration expressions become numbers, what is the
//! same at every step is marked, and the selectors' needs are united into as few [`SelectRequest`]s as possible.
//! [`Prepared::fetch`] reads these, asynchronously. Where one part of the query alone needs a selector's series, one after
//! the other, it takes them in as they arrive, so that little is held; else they are kept. [`Fetched::evaluate`] computes
//! the rest, synchronously: node by node, each for all steps at once, series by series. A series is decoded into reused [`Columns`], range
//! functions slide a window over them, aggregations fold each series as it is made. Out comes a [`QueryOutput`]: a
//! [`Value`], the annotations in Prometheus' words, statistics, and whether the data was complete.
//!
//! **Invariants.** The values are Prometheus' own, bit for bit where it computes them in a fixed order: a window's value
//! comes from the window's samples alone, in time order, and an aggregation folds series in label order. A range query is
//! its instant queries side by side. An answer that may lack data is told apart by its type ([`Completeness`], I4).
//! Nothing a query or a sample says makes the engine panic, hold more samples than [`EngineOptions::max_samples`] or much
//! more bytes than [`EngineOptions::max_memory_bytes`], or go on for more than some milliseconds without asking whether to
//! (I12). No function recurses over a query: trees and plans are lists.
//!
//! **Deliberately absent.** Storage, clocks, threads and async beside [`Prepared::fetch`]: a deadline is the caller's
//! [`QueryContext`], asked every few milliseconds of work. Caching, splitting and sharding, which are the querier's.
//!
//! **Failure behaviour.** A text that is no query is a [`ParseError`] with its position; all else is a [`QueryError`],
//! which maps to Prometheus' `errorType`. An interrupted or failed query leaves nothing behind.

mod annotations;
mod ast;
mod context;
mod date;
mod duration;
mod engine;
mod error;
mod eval;
mod fetch;
pub mod histogram;
mod kahan;
mod lexer;
mod memory;
mod number;
mod parser;
mod plan;
mod printer;
mod queryable;
mod signatures;
mod steps;
mod string_literal;
mod summaries;
mod value;
mod work;

pub use annotations::{AnnotationTexts, Annotations};
pub use ast::{
    AggregateExpr, AggregateOp, Ast, At, BinaryExpr, BinaryOp, Call, Cardinality, DurationArg, DurationExpr,
    DurationId, DurationKind, DurationNode, Expr, ExprId, ExprRef, FillValues, MatrixSelector, NumberLiteral,
    ParenExpr, RangeEdges, Span, StringLiteral, SubqueryExpr, UnaryExpr, ValueType, VectorMatching,
    VectorSelector,
};
pub use context::{CancelContext, Interrupt, QueryContext, QueryStats, Uninterrupted};
pub use duration::{DurationContext, DurationError, parse_duration, resolve_durations, with_durations};
pub use engine::{Engine, EngineOptions, Prepared, Query};
pub use error::{ErrorKind, QueryError};
pub use fetch::Fetched;
pub use parser::{ParseError, ParseOptions, parse, parse_metric_selector, parse_with};
pub use printer::pretty;
pub use queryable::{
    Columns, Completeness, Queryable, SelectHints, SelectRequest, Series, SeriesData, SeriesStream,
    StreamItem, stream_of,
};
pub use signatures::{FunctionId, Signature};
pub use steps::Steps;
pub use summaries::{add_histograms, merge_summaries, unite_summaries};
pub use value::{MatrixSeries, QueryOutput, SampleValue, Value, VectorSample};
