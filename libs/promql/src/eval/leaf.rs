//! Computes a leaf of a plan from batches of series, as they arrive.

use std::sync::Arc;

use super::aggregate::Groups;
use super::row::{Row, bytes_of};
use super::{Evaluator, wrong_type};
use crate::annotations::Annotations;
use crate::context::{Account, PHASE_EXECUTION, QueryContext, check};
use crate::engine::Prepared;
use crate::error::QueryError;
use crate::memory::Memory;
use crate::plan::{Leaf, Node};
use crate::queryable::Series;
use crate::work::Work;

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
    /// With what they occupy in memory.
    Rows(Vec<Row>, usize),
    Groups(Groups),
}

/// What a leaf gave.
pub(crate) struct LeafResult {
    pub(crate) rows: Vec<Row>,
    /// What the query's limit on samples counts for the rows.
    pub(crate) held: usize,
    pub(crate) annotations: Annotations,
    /// Holds the rows' memory.
    pub(crate) account: Account,
}

impl LeafFold {
    /// Starts a leaf of a plan; `memory` is the query's.
    pub(crate) fn new(prepared: Arc<Prepared>, leaf: usize, memory: &Memory) -> Result<Self, QueryError> {
        let account = prepared.account(memory.part());
        let node = &leaf_of(&prepared, leaf)?.node;
        let state = match node {
            Node::Aggregate(_) => State::Groups(Groups::new(&account.memory)),
            _ => State::Rows(Vec::new(), 0),
        };
        Ok(Self {
            account,
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
            nodes: prepared.nodes(),
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
                .leaf_source(prepared.nodes().get(aggregate.expr)?, *steps)
                .and_then(|rows| evaluator.fold_rows(aggregate, rows, *steps, groups)),
            (State::Rows(all, bytes), node) => evaluator
                .leaf_source(node, *steps)
                .and_then(|rows| evaluator.collect(rows, *steps))
                .map(|rows| {
                    *bytes = bytes.saturating_add(bytes_of(&rows));
                    all.extend(rows);
                }),
            _ => Err(wrong_type("aggregation")),
        };
        self.annotations = evaluator.annotations;
        result?;
        self.account.memory.settle(match &self.state {
            State::Groups(groups) => groups.bytes(),
            State::Rows(_, bytes) => *bytes,
        })
    }

    /// The result, once all series were taken in.
    pub(crate) fn finish(mut self, ctx: &dyn QueryContext) -> Result<LeafResult, QueryError> {
        let Leaf { node, steps, .. } = leaf_of(&self.prepared, self.leaf)?;
        let rows = match (self.state, node) {
            (State::Groups(groups), Node::Aggregate(aggregate)) => {
                let mut work = Work::new(ctx, &self.account.memory);
                groups.finish(aggregate, (*steps, &mut work), &mut self.annotations)?
            }
            (State::Rows(rows, _), _) => rows,
            _ => return Err(wrong_type("aggregation")),
        };
        self.account.memory.settle(bytes_of(&rows))?;
        Ok(LeafResult {
            held: rows.iter().map(Row::held).sum(),
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
