//! Computes a leaf of a plan from batches of series, as they arrive.

use std::sync::Arc;

use super::aggregate::Groups;
use super::row::Row;
use super::{Evaluator, wrong_type};
use crate::annotations::Annotations;
use crate::context::{Account, PHASE_EXECUTION, QueryContext, check};
use crate::engine::Prepared;
use crate::error::QueryError;
use crate::plan::{Leaf, Node};
use crate::queryable::Series;

/// A leaf under way.
pub(crate) struct LeafFold {
    prepared: Arc<Prepared>,
    /// Which of the plan's leaves it is.
    leaf: usize,
    account: Account,
    annotations: Annotations,
    state: State,
}

/// What there is of the result.
enum State {
    Rows(Vec<Row>),
    Groups(Groups),
}

/// What a leaf gave.
pub(crate) struct LeafResult {
    pub(crate) rows: Vec<Row>,
    pub(crate) annotations: Annotations,
    pub(crate) account: Account,
}

impl LeafFold {
    /// Starts a leaf of a plan.
    pub(crate) fn new(prepared: Arc<Prepared>, leaf: usize) -> Result<Self, QueryError> {
        let node = &leaf_of(&prepared, leaf)?.node;
        let state = match node {
            Node::Aggregate(_) => State::Groups(Groups::default()),
            _ => State::Rows(Vec::new()),
        };
        Ok(Self {
            account: prepared.account(),
            prepared,
            leaf,
            annotations: Annotations::default(),
            state,
        })
    }

    /// Takes in the next series, in order.
    pub(crate) fn push(&mut self, batch: Vec<Series>, ctx: &dyn QueryContext) -> Result<(), QueryError> {
        check(ctx)?;
        let prepared = Arc::clone(&self.prepared);
        let Leaf { node, steps, source } = leaf_of(&prepared, self.leaf)?;
        if steps.count() > prepared.options().max_samples {
            return Err(QueryError::TooManySamples(PHASE_EXECUTION));
        }
        // Sources are known by their place.
        let mut fetched: Vec<Vec<Series>> = Vec::new();
        fetched.resize_with(*source, Vec::new);
        fetched.push(batch);
        let mut evaluator = Evaluator {
            fetched: &fetched,
            leaves: Vec::new(),
            query: prepared.text(),
            options: prepared.options(),
            ctx,
            account: &self.account,
            annotations: std::mem::take(&mut self.annotations),
        };
        let result = match (&mut self.state, node) {
            (State::Groups(groups), Node::Aggregate(aggregate)) => evaluator
                .row_source(&aggregate.expr, *steps)
                .and_then(|rows| evaluator.fold_rows(aggregate, rows, *steps, groups)),
            (State::Rows(all), node) => evaluator
                .row_source(node, *steps)
                .and_then(|rows| evaluator.collect(rows, *steps))
                .map(|rows| all.extend(rows)),
            _ => Err(wrong_type("aggregation")),
        };
        self.annotations = evaluator.annotations;
        result
    }

    /// The result, once all series were taken in.
    pub(crate) fn finish(mut self) -> Result<LeafResult, QueryError> {
        let node = &leaf_of(&self.prepared, self.leaf)?.node;
        let rows = match (self.state, node) {
            (State::Groups(groups), Node::Aggregate(aggregate)) => {
                groups.finish(aggregate, &mut self.annotations)
            }
            (State::Rows(rows), _) => rows,
            _ => return Err(wrong_type("aggregation")),
        };
        Ok(LeafResult {
            rows,
            annotations: self.annotations,
            account: self.account,
        })
    }
}

fn leaf_of(prepared: &Prepared, leaf: usize) -> Result<&Leaf, QueryError> {
    prepared.leaves().get(leaf).ok_or_else(no_such_leaf)
}

/// The plan names a leaf that is not there, or was used before.
pub(super) fn no_such_leaf() -> QueryError {
    QueryError::internal("the plan names a leaf that was not computed".to_owned())
}
