//! Range vectors: range selectors and subqueries, as the windows that range functions work on, or as a result.

use std::sync::Arc;

use koios_model::{Histogram, Labels, ResetHint, TimeRange};

use super::inputs::Inputs;
use super::rate::extend_to_edges;
use super::row::{Row, histogram_weight};
use super::select::decode;
use super::window::{SampleBuffer, Samples};
use super::{Evaluator, Shared};
use crate::ast::{RangeEdges, Span};
use crate::context::check;
use crate::error::QueryError;
use crate::memory::{of_column, of_labels};
use crate::plan::{Node, RangeNode, SubqueryNode};
use crate::steps::Steps;

/// The samples of one series in a range, as a result.
#[derive(Clone, Debug)]
pub(crate) struct RangeSeries {
    pub(crate) labels: Labels,
    pub(crate) drop_name: bool,
    pub(crate) t: Vec<i64>,
    pub(crate) v: Vec<f64>,
    pub(crate) ht: Vec<i64>,
    pub(crate) h: Vec<Arc<Histogram>>,
}

impl RangeSeries {
    /// Without labels and samples.
    pub(crate) fn empty() -> Self {
        Self {
            labels: Labels::empty(),
            drop_name: false,
            t: Vec::new(),
            v: Vec::new(),
            ht: Vec::new(),
            h: Vec::new(),
        }
    }

    /// What it occupies in memory.
    pub(crate) fn bytes(&self) -> usize {
        let columns = self.t.capacity() + self.v.capacity() + self.ht.capacity() + self.h.capacity();
        size_of::<Self>() + of_labels(&self.labels) + columns * 8 + of_column(&self.h)
    }

    /// What samples will occupy as a result.
    fn bytes_of(labels: &Labels, samples: &Samples<'_>) -> usize {
        let slots = 2 * (samples.t.len() + samples.ht.len());
        size_of::<Self>() + of_labels(labels) + slots * 8 + of_column(samples.h)
    }

    pub(crate) fn samples(&self) -> usize {
        self.t.len() + self.h.iter().map(|h| histogram_weight(h)).sum::<usize>()
    }
}

/// Which samples each step looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WindowSpec {
    pub(crate) range_ms: i64,
    pub(crate) offset_ms: i64,
    pub(crate) at: Option<i64>,
    pub(crate) edges: RangeEdges,
    pub(crate) lookback_ms: i64,
    /// Only counts and sums of histograms matter.
    pub(crate) statistics_only: bool,
    /// Where the range vector stands in the query.
    pub(crate) span: Span,
}

/// A window in time: the range itself and how far beyond it samples are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WindowTimes {
    pub(crate) start: i64,
    pub(crate) end: i64,
    pub(crate) after: i64,
    pub(crate) until: i64,
}

impl WindowSpec {
    /// The window of the step at `t`.
    pub(crate) fn at(&self, t: i64) -> WindowTimes {
        let end = self.at.unwrap_or(t).saturating_sub(self.offset_ms);
        let start = end.saturating_sub(self.range_ms);
        let before = if self.edges == RangeEdges::Plain {
            0
        } else {
            self.lookback_ms
        };
        let behind = if self.edges == RangeEdges::Smoothed {
            self.lookback_ms
        } else {
            0
        };
        WindowTimes {
            start,
            end,
            after: start.saturating_sub(before),
            until: end.saturating_add(behind),
        }
    }

    /// All sample times that the windows of some steps touch.
    pub(crate) fn touched(&self, steps: Steps) -> TimeRange {
        let (first, last) = (self.at(steps.start()), self.at(steps.end()));
        TimeRange::new(first.after.saturating_add(1), last.until)
    }
}

/// Where a range function's samples come from.
#[derive(Debug)]
pub(crate) enum RangeInput {
    /// A source of fetched series.
    Source(usize),
    /// An evaluated subquery and the times of its values.
    Rows(Vec<Row>, Steps),
}

impl RangeInput {
    /// How many series there are.
    pub(crate) fn len(&self, shared: &Shared<'_>) -> usize {
        match self {
            Self::Source(source) => shared.series_of(*source).map_or(0, <[_]>::len),
            Self::Rows(rows, _) => rows.len(),
        }
    }

    /// Decodes series number `i` into a buffer; gives its labels and whether its name is to go.
    pub(crate) fn load<'b>(
        &self,
        shared: &Shared<'_>,
        i: usize,
        (spec, steps): (WindowSpec, Steps),
        buffer: &'b mut SampleBuffer,
    ) -> Result<Option<(Labels, bool, Samples<'b>)>, QueryError> {
        match self {
            Self::Source(source) => {
                let Some(series) = shared.series_of(*source)?.get(i) else {
                    return Ok(None);
                };
                let range = spec.touched(steps);
                decode(shared.ctx, series, range, spec.statistics_only, buffer)?;
                Ok(Some((series.labels.clone(), false, buffer.samples()?)))
            }
            Self::Rows(rows, inner) => {
                let Some(row) = rows.get(i) else { return Ok(None) };
                fill_from_row(shared, row, *inner, buffer)?;
                Ok(Some((row.labels.clone(), row.drop_name, buffer.view())))
            }
        }
    }
}

/// Turns values at steps into samples.
fn fill_from_row(
    shared: &Shared<'_>,
    row: &Row,
    steps: Steps,
    buffer: &mut SampleBuffer,
) -> Result<(), QueryError> {
    buffer.clear();
    // Histograms may be copied.
    let histograms = of_column(row.histograms.iter().flatten());
    buffer.cover(row.values.len().saturating_mul(16).saturating_add(histograms))?;
    let mut work = shared.work();
    for i in 0..steps.count() {
        work.spend(1)?;
        match row.point(i) {
            super::row::Point::Absent => {}
            super::row::Point::Float(v) => buffer.push_float(steps.at(i), v),
            super::row::Point::Histogram(h) => {
                work.spend(histogram_weight(&h))?;
                buffer.push_histogram(steps.at(i), without_reset_hint(h));
            }
        }
    }
    Ok(())
}

/// What a subquery samples need not be neighbours, so that what a histogram says about the one before it means nothing.
fn without_reset_hint(h: Arc<Histogram>) -> Arc<Histogram> {
    if matches!(h.reset_hint, ResetHint::Unknown | ResetHint::Gauge) {
        return h;
    }
    let mut plain = Histogram::clone(&h);
    plain.reset_hint = ResetHint::Unknown;
    Arc::new(plain)
}

impl Evaluator<'_> {
    /// Evaluates a range selector at its one step.
    pub(super) fn range_selector(
        &self,
        node: &RangeNode,
        steps: Steps,
    ) -> Result<Vec<RangeSeries>, QueryError> {
        let spec = self.range_spec(node);
        let window = spec.at(steps.start());
        let range = TimeRange::new(window.after.saturating_add(1), window.until);
        let mut buffer = SampleBuffer::of(&self.account.memory);
        let mut out = Vec::new();
        for series in self.shared().series_of(node.select.source)? {
            check(self.ctx)?;
            decode(self.ctx, series, range, spec.statistics_only, &mut buffer)?;
            let samples = buffer.samples()?;
            if samples.is_empty() {
                continue;
            }
            let (mut t, mut v) = (samples.t.to_vec(), samples.v.to_vec());
            if spec.edges != RangeEdges::Plain {
                if !samples.ht.is_empty() {
                    let word = if spec.edges == RangeEdges::Anchored {
                        "anchored"
                    } else {
                        "smoothed"
                    };
                    return Err(QueryError::execution(format!(
                        "{word} modifier is not supported with histograms"
                    )));
                }
                (t, v) = extend_to_edges(samples, window.start, window.end, spec.edges);
                if t.is_empty() {
                    continue;
                }
            }
            self.account
                .memory
                .take(RangeSeries::bytes_of(&series.labels, &samples))?;
            let weight = samples.weight();
            self.account.hold(weight)?;
            self.account.looked_at(weight);
            out.push(RangeSeries {
                labels: series.labels.clone(),
                drop_name: false,
                t,
                v,
                ht: samples.ht.to_vec(),
                h: samples.h.to_vec(),
            });
        }
        Ok(out)
    }

    /// A subquery whose samples are the result.
    pub(super) fn subquery_matrix(
        &self,
        node: &SubqueryNode,
        steps: Steps,
        inputs: &mut Inputs<'_>,
    ) -> Result<Vec<RangeSeries>, QueryError> {
        let (rows, inner) = self.subquery_rows(node, steps, inputs)?;
        let mut work = self.work();
        rows.into_iter()
            .map(|row| {
                work.spend(row.values.len())?;
                work.hold(size_of::<RangeSeries>() + row.values.len().saturating_mul(16))?;
                let floats = row
                    .values
                    .iter()
                    .enumerate()
                    .filter(|&(_, &v)| !super::is_absent(v));
                let (t, v) = floats.map(|(i, &v)| (inner.at(i), v)).unzip();
                let histograms = row.histograms.iter().enumerate();
                let (ht, h) = histograms
                    .filter_map(|(i, h)| Some((inner.at(i), h.clone()?)))
                    .unzip();
                Ok(RangeSeries {
                    labels: row.labels,
                    drop_name: row.drop_name,
                    t,
                    v,
                    ht,
                    h,
                })
            })
            .collect()
    }

    /// The rows of a subquery's expression at all of its own steps, which are multiples of its resolution.
    fn subquery_rows(
        &self,
        node: &SubqueryNode,
        steps: Steps,
        inputs: &mut Inputs<'_>,
    ) -> Result<(Vec<Row>, Steps), QueryError> {
        let inner = node.times.steps(steps);
        if inner.count() == 0 {
            return Ok((Vec::new(), inner));
        }
        let rows = match inputs.any()? {
            super::Evaluated::Vector(rows) => rows,
            super::Evaluated::Scalar(s) => vec![Row {
                values: s.into_steps(inner.count(), &mut self.work())?,
                ..Row::new(Labels::empty(), false, 0)
            }],
            _ => return Err(super::wrong_type("instant vector")),
        };
        Ok((rows, inner))
    }

    /// The samples and windows of a range function's argument.
    pub(super) fn range_input(
        &self,
        node: &Node,
        steps: Steps,
        inputs: &mut Inputs<'_>,
    ) -> Result<Option<(RangeInput, WindowSpec)>, QueryError> {
        match node {
            Node::Range(range) => Ok(Some((
                RangeInput::Source(range.select.source),
                self.range_spec(range),
            ))),
            Node::Subquery(subquery) => {
                let (rows, inner) = self.subquery_rows(subquery, steps, inputs)?;
                let spec = WindowSpec {
                    range_ms: subquery.times.range_ms,
                    offset_ms: subquery.times.offset_ms,
                    at: subquery.times.at,
                    edges: RangeEdges::Plain,
                    lookback_ms: self.options.lookback_delta_ms,
                    statistics_only: false,
                    span: subquery.span,
                };
                Ok(Some((RangeInput::Rows(rows, inner), spec)))
            }
            _ => Ok(None),
        }
    }

    fn range_spec(&self, node: &RangeNode) -> WindowSpec {
        WindowSpec {
            range_ms: node.range_ms,
            offset_ms: node.select.offset_ms,
            at: node.select.at,
            edges: node.select.edges,
            lookback_ms: self.options.lookback_delta_ms,
            statistics_only: node.select.statistics_only,
            span: node.span,
        }
    }
}
