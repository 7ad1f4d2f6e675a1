//! PromQL: parser, AST, planner, engine and functions; storage only through its own Queryable trait.

mod ast;
mod error;
mod queryable;
mod signatures;

pub use ast::{
    AggregateExpr, AggregateOp, At, BinaryExpr, BinaryOp, Call, Cardinality, DurationArg, DurationExpr,
    DurationKind, Expr, FillValues, MatrixSelector, NumberLiteral, ParenExpr, RangeEdges, Span,
    StringLiteral, SubqueryExpr, UnaryExpr, ValueType, VectorMatching, VectorSelector,
};
pub use error::{ErrorKind, QueryError};
pub use queryable::{
    Columns, Completeness, Queryable, SelectHints, SelectRequest, Series, SeriesData, SeriesStream,
    StreamItem, stream_of,
};
pub use signatures::{FunctionId, Signature};
