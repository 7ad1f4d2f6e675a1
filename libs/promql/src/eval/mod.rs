//! Evaluation: synchronous, on columns, one node at a time.
//!
//! A vector is a list of [`Row`]s: one series each, with one value per step. Every node is evaluated for all steps at
//! once and its inputs are gone when it is done, so that only results that wait for their node are in memory. What is
//! half done lies on a stack of the evaluator's own ([`Evaluator::evaluate`]).

mod aggregate;
mod aggregate_histogram;
mod binary;
mod call;
mod classic;
mod cursor;
mod downsampled;
mod exact_sums;
mod fold;
mod fold_columns;
mod info;
mod inputs;
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
use crate::context::{Account, QueryContext};
use crate::engine::EngineOptions;
use crate::error::QueryError;
use crate::plan::{Node, Nodes};
use crate::queryable::Series;
use crate::steps::Steps;
use crate::work::Work;
use inputs::Inputs;
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
    /// The plan's nodes.
    pub(crate) nodes: &'a Nodes,
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

    /// Computes a node from what it needs.
    fn compute(
        &mut self,
        node: &'a Node,
        steps: Steps,
        inputs: &mut Inputs<'_>,
    ) -> Result<Evaluated, QueryError> {
        match node {
            Node::Number { value, .. } => Ok(Evaluated::Scalar(Scalars::Const(*value))),
            Node::String { value, .. } => Ok(Evaluated::String(value.clone())),
            Node::Select(select) | Node::Plus(select, _) => {
                let source = self.select_source(select, steps);
                self.collect(source, steps).map(Evaluated::Vector)
            }
            Node::Range(range) => self.range_selector(range, steps).map(Evaluated::Matrix),
            Node::Subquery(subquery) => self
                .subquery_matrix(subquery, steps, inputs)
                .map(Evaluated::Matrix),
            Node::Call(call) => self.call(call, steps, inputs),
            Node::Aggregate(aggregate) => self.aggregate(aggregate, steps, inputs).map(Evaluated::Vector),
            Node::Binary(binary) => self.binary(binary, steps, inputs),
            Node::Negate(..) => self.negate(inputs),
            Node::Leaf { leaf, .. } => {
                // What the leaf held goes with its account: from here on its rows count as the result of this node.
                let result = self.leaves.get_mut(*leaf).and_then(Option::take);
                let result = result.ok_or_else(leaf::no_such_leaf)?;
                // As if the leaf had been evaluated here: of equal annotations the last one's position is told.
                self.annotations.merge(result.annotations);
                self.account.take_up(result.held);
                Ok(Evaluated::Vector(result.rows))
            }
            Node::Invariant(_) => expand(inputs.any()?, steps.count(), &mut self.work()),
        }
    }
}

fn wrong_type(expected: &str) -> QueryError {
    QueryError::internal(format!("plan holds another type where a {expected} belongs"))
}
