//! Evaluation: synchronous, on columns, one node at a time.
//!
//! A vector is a list of [`Row`]s: one series each, with one value per step. Every node is evaluated for all steps at
//! once and its inputs are gone when it is done, so that what is in memory is bounded by the plan's width.

mod aggregate;
mod aggregate_histogram;
mod binary;
mod call;
mod classic;
mod cursor;
mod exact_sums;
mod fold;
mod fold_columns;
mod info;
mod instant;
mod join;
mod labels;
pub(crate) mod leaf;
mod math;
pub(crate) mod matrix;
mod operators;
mod over_time;
mod quantile;
mod range_call;
mod rate;
mod rate_histogram;
mod rate_slide;
mod ratio;
pub(crate) mod row;
mod select;
mod sets;
mod slide;
mod sort;
mod sorted_window;
mod source;
mod stretches;
mod topk;
mod trend;
mod window;

pub(crate) use row::{Row, absent, is_absent};

use crate::annotations::Annotations;
use crate::context::{Account, PHASE_EXECUTION, QueryContext, check};
use crate::engine::EngineOptions;
use crate::error::QueryError;
use crate::plan::Node;
use crate::queryable::Series;
use crate::steps::Steps;
use crate::work::Work;
use leaf::LeafResult;
use matrix::RangeSeries;
use row::{Scalars, expand};

/// What a node evaluates to.
#[derive(Debug)]
pub(crate) enum Evaluated {
    Scalar(Scalars),
    String(String),
    Vector(Vec<Row>),
    Matrix(Vec<RangeSeries>),
}

impl Evaluated {
    /// What the query's limit counts for it.
    fn held(&self) -> usize {
        match self {
            Self::Scalar(s) => s.held(),
            Self::String(_) => 0,
            Self::Vector(rows) => rows.iter().map(Row::held).sum(),
            Self::Matrix(series) => series.iter().map(RangeSeries::samples).sum(),
        }
    }

    /// What it occupies in memory.
    fn bytes(&self) -> usize {
        match self {
            Self::Scalar(s) => s.bytes(),
            Self::String(text) => text.capacity(),
            Self::Vector(rows) => row::bytes_of(rows),
            Self::Matrix(series) => series.iter().map(RangeSeries::bytes).sum(),
        }
    }
}

/// Evaluates the nodes of one plan.
pub(crate) struct Evaluator<'a> {
    /// The answers of storage that are kept, by source.
    pub(crate) fetched: &'a [Vec<Series>],
    /// What the plan's leaves gave, until it is used.
    pub(crate) leaves: Vec<Option<LeafResult>>,
    /// What positions refer to.
    pub(crate) query: &'a str,
    pub(crate) options: &'a EngineOptions,
    pub(crate) ctx: &'a dyn QueryContext,
    pub(crate) account: &'a Account,
    pub(crate) annotations: Annotations,
}

/// What making a row may look at; nothing of it changes during evaluation.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a> {
    pub(crate) fetched: &'a [Vec<Series>],
    pub(crate) options: &'a EngineOptions,
    pub(crate) ctx: &'a dyn QueryContext,
    pub(crate) account: &'a Account,
}

impl<'a> Shared<'a> {
    /// The work of a part of a node.
    pub(crate) fn work(&self) -> Work<'a> {
        Work::new(self.ctx, &self.account.memory)
    }

    /// The fetched series of a source.
    pub(crate) fn series_of(&self, source: usize) -> Result<&'a [Series], QueryError> {
        self.fetched
            .get(source)
            .map(Vec::as_slice)
            .ok_or_else(|| QueryError::internal(format!("plan names source {source}, which was not fetched")))
    }
}

impl<'a> Evaluator<'a> {
    /// What making rows may look at.
    pub(crate) fn shared(&self) -> Shared<'a> {
        Shared {
            fetched: self.fetched,
            options: self.options,
            ctx: self.ctx,
            account: self.account,
        }
    }

    /// The work of one node.
    pub(crate) fn work(&self) -> Work<'a> {
        Work::new(self.ctx, &self.account.memory)
    }

    /// Evaluates a node at some steps.
    pub(crate) fn eval(&mut self, node: &Node, steps: Steps) -> Result<Evaluated, QueryError> {
        check(self.ctx)?;
        if steps.count() > self.options.max_samples {
            return Err(QueryError::TooManySamples(PHASE_EXECUTION));
        }
        let memory = &self.account.memory;
        // No row can be shorter.
        memory.fits(steps.count().saturating_mul(size_of::<f64>()))?;
        let (held_before, bytes_before) = (self.account.current(), memory.held());
        let value = self.eval_node(node, steps)?;
        self.account.settle(held_before.saturating_add(value.held()))?;
        memory.settle(bytes_before.saturating_add(value.bytes()))?;
        Ok(value)
    }

    fn eval_node(&mut self, node: &Node, steps: Steps) -> Result<Evaluated, QueryError> {
        match node {
            Node::Number { value, .. } => Ok(Evaluated::Scalar(Scalars::Const(*value))),
            Node::String { value, .. } => Ok(Evaluated::String(value.clone())),
            Node::Select(select) => {
                let source = self.select_source(select, steps);
                self.collect(source, steps).map(Evaluated::Vector)
            }
            Node::Range(range) => self.range_selector(range, steps).map(Evaluated::Matrix),
            Node::Subquery(subquery) => self.subquery_matrix(subquery, steps).map(Evaluated::Matrix),
            Node::Call(call) => self.call(call, steps),
            Node::Aggregate(aggregate) => self.aggregate(aggregate, steps).map(Evaluated::Vector),
            Node::Binary(binary) => self.binary(binary, steps),
            Node::Negate(inner, _) => self.negate(inner, steps),
            Node::Plus(inner, _) => self.eval_node(inner, steps),
            Node::Leaf { leaf, .. } => {
                // What the leaf held goes with its account: from here on its rows count as the result of this node.
                let result = self.leaves.get_mut(*leaf).and_then(Option::take);
                let result = result.ok_or_else(leaf::no_such_leaf)?;
                // As if the leaf had been evaluated here: of equal annotations the last one's position is told.
                self.annotations.merge(result.annotations);
                self.account.take_up(result.held);
                Ok(Evaluated::Vector(result.rows))
            }
            Node::Invariant(inner) => {
                let once = self.eval(inner, steps.first())?;
                expand(once, steps.count(), &mut self.work())
            }
        }
    }

    /// Evaluates a node the parser knows to be a scalar.
    fn scalar(&mut self, node: &Node, steps: Steps) -> Result<Scalars, QueryError> {
        match self.eval(node, steps)? {
            Evaluated::Scalar(s) => Ok(s),
            _ => Err(wrong_type("scalar")),
        }
    }

    /// Evaluates a node the parser knows to be an instant vector.
    fn vector(&mut self, node: &Node, steps: Steps) -> Result<Vec<Row>, QueryError> {
        match self.eval(node, steps)? {
            Evaluated::Vector(rows) => Ok(rows),
            _ => Err(wrong_type("instant vector")),
        }
    }
}

fn wrong_type(expected: &str) -> QueryError {
    QueryError::internal(format!("plan holds another type where a {expected} belongs"))
}
