//! Rows made one after the other, so that whoever folds them never holds them all.

use super::range_call::RangeFunction;
use super::row::Row;
use super::select::{SelectTimes, Take, instant_row, smoothed_row};
use super::window::SampleBuffer;
use super::{Evaluator, Shared};
use crate::annotations::Annotations;
use crate::ast::RangeEdges;
use crate::context::check;
use crate::error::QueryError;
use crate::plan::{Node, SelectNode};
use crate::signatures::FunctionId;
use crate::steps::Steps;

/// Where rows come from. Making one row depends on no other, and on nothing that changes.
#[derive(Debug)]
pub(super) enum RowSource<'n> {
    /// An instant selector.
    Select {
        source: usize,
        times: SelectTimes,
        take: Take,
    },
    /// An instant selector with interpolated values.
    Smoothed {
        node: &'n SelectNode,
        times: SelectTimes,
    },
    /// A range function.
    Range(Box<RangeFunction>),
    /// What is evaluated already.
    Rows(Vec<Row>),
}

impl<'n> RowSource<'n> {
    /// A selector, taking `take` of each sample.
    pub(super) fn select(node: &SelectNode, times: SelectTimes, take: Take) -> Self {
        Self::Select {
            source: node.source,
            times,
            take,
        }
    }

    /// How many rows there are to make, empty ones included.
    fn len(&self, shared: &Shared<'_>) -> usize {
        match self {
            Self::Select { source, .. } => shared.series_of(*source).map_or(0, <[_]>::len),
            Self::Smoothed { node, .. } => shared.series_of(node.source).map_or(0, <[_]>::len),
            Self::Range(function) => function.len(shared),
            Self::Rows(_) => 0,
        }
    }

    /// Makes row number `i`.
    fn make(
        &self,
        shared: &Shared<'_>,
        i: usize,
        steps: Steps,
        buffer: &mut SampleBuffer,
        annotations: &mut Annotations,
    ) -> Result<Option<Row>, QueryError> {
        match self {
            Self::Select { source, times, take } => {
                let Some(series) = shared.series_of(*source)?.get(i) else {
                    return Ok(None);
                };
                instant_row(series, *times, *take, &mut buffer.columns).map(Some)
            }
            Self::Smoothed { node, times } => {
                let Some(series) = shared.series_of(node.source)?.get(i) else {
                    return Ok(None);
                };
                smoothed_row(series, node, *times, buffer, annotations).map(Some)
            }
            Self::Range(function) => function.row(shared, i, steps, buffer, annotations),
            Self::Rows(_) => Ok(None),
        }
    }
}

impl<'a> Evaluator<'a> {
    /// The rows of a vector node: made on demand where they come right from storage, else evaluated here.
    pub(super) fn row_source<'n>(
        &mut self,
        node: &'n Node,
        steps: Steps,
    ) -> Result<RowSource<'n>, QueryError> {
        match node {
            Node::Select(select) => Ok(self.select_source(select, steps)),
            Node::Call(call) if call.function != FunctionId::AbsentOverTime => {
                match self.range_source(call, steps)? {
                    Some(source) => Ok(source),
                    None => self.vector(node, steps).map(RowSource::Rows),
                }
            }
            _ => self.vector(node, steps).map(RowSource::Rows),
        }
    }

    /// The rows of an instant selector.
    pub(super) fn select_source<'n>(&self, node: &'n SelectNode, steps: Steps) -> RowSource<'n> {
        let times = self.select_times(node, steps);
        if node.edges == RangeEdges::Smoothed {
            RowSource::Smoothed { node, times }
        } else {
            RowSource::select(node, times, Take::Value)
        }
    }

    /// Hands every row that has samples to `fold`, in order.
    pub(super) fn for_each_row(
        &mut self,
        source: RowSource<'_>,
        steps: Steps,
        mut fold: impl FnMut(Row, &mut Annotations) -> Result<(), QueryError>,
    ) -> Result<(), QueryError> {
        let shared = self.shared();
        let reads = matches!(source, RowSource::Select { .. } | RowSource::Smoothed { .. });
        let mut buffer = SampleBuffer::default();
        for i in 0..source.len(&shared) {
            check(shared.ctx)?;
            let Some(row) = source.make(&shared, i, steps, &mut buffer, &mut self.annotations)? else {
                break;
            };
            if row.is_empty() {
                continue;
            }
            let held = row.held();
            shared.account.hold(held)?;
            if reads {
                shared.account.looked_at(row.samples());
            }
            fold(row, &mut self.annotations)?;
            shared.account.release(held);
        }
        if let RowSource::Rows(rows) = source {
            for row in rows {
                check(shared.ctx)?;
                fold(row, &mut self.annotations)?;
            }
        }
        Ok(())
    }

    /// All rows that have samples.
    pub(super) fn collect(&mut self, source: RowSource<'_>, steps: Steps) -> Result<Vec<Row>, QueryError> {
        let account = self.account;
        let mut rows = Vec::new();
        self.for_each_row(source, steps, |row, _| {
            account.hold(row.held())?;
            rows.push(row);
            Ok(())
        })?;
        Ok(rows)
    }
}
