//! Vectors over all steps, series by series.

use std::collections::HashMap;
use std::sync::Arc;

use koios_model::{Histogram, Labels, METRIC_NAME, is_stale, stale_nan};

use super::Evaluated;
use crate::context::Account;
use crate::error::QueryError;
use crate::memory::{LABELS_ENTRY_BYTES, of_column, of_histogram, of_labels};
use crate::work::{UNITS_PER_CHECK, Work};

/// Marks a step without a float. It is the stale marker, which no selector lets through and no arithmetic yields.
#[inline]
pub(crate) fn absent() -> f64 {
    stale_nan()
}

/// Whether a value marks a step without a float.
#[inline]
pub(crate) fn is_absent(v: f64) -> bool {
    is_stale(v)
}

/// What a series has at one step.
#[derive(Clone, Debug, Default)]
pub(crate) enum Point {
    #[default]
    Absent,
    Float(f64),
    Histogram(Arc<Histogram>),
}

impl Point {
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

/// One series over all steps.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) labels: Labels,
    /// Whether the metric name goes before the result is handed out.
    pub(crate) drop_name: bool,
    /// One per step, see [`is_absent`].
    pub(crate) values: Vec<f64>,
    /// Empty, or one slot per step; where one is filled the value is absent.
    pub(crate) histograms: Vec<Option<Arc<Histogram>>>,
}

/// How many float samples a histogram weighs: its fixed part and its buckets.
pub(crate) fn histogram_weight(h: &Histogram) -> usize {
    let spans = h.positive_spans.len() + h.negative_spans.len();
    let floats = h.positive_buckets.len() + h.negative_buckets.len() + h.custom_bounds.len();
    (168 + spans * 8 + floats * 8) / 16
}

impl Row {
    /// A series without samples.
    pub(crate) fn new(labels: Labels, drop_name: bool, steps: usize) -> Self {
        Self {
            labels,
            drop_name,
            values: vec![absent(); steps],
            histograms: Vec::new(),
        }
    }

    /// The same, asking in between whether to go on. Takes no memory.
    pub(crate) fn blank(
        labels: Labels,
        drop_name: bool,
        steps: usize,
        work: &mut Work<'_>,
    ) -> Result<Self, QueryError> {
        Ok(Self {
            values: work.filled(&absent(), steps)?,
            ..Self::new(labels, drop_name, 0)
        })
    }

    /// What it has at step `i`.
    #[inline]
    pub(crate) fn point(&self, i: usize) -> Point {
        match self.values.get(i) {
            Some(&v) if !is_absent(v) => Point::Float(v),
            _ => self
                .histogram(i)
                .map_or(Point::Absent, |h| Point::Histogram(Arc::clone(h))),
        }
    }

    /// The histogram at step `i`.
    #[inline]
    pub(crate) fn histogram(&self, i: usize) -> Option<&Arc<Histogram>> {
        self.histograms.get(i)?.as_ref()
    }

    /// Whether it has anything at step `i`.
    #[inline]
    pub(crate) fn has(&self, i: usize) -> bool {
        self.values.get(i).is_some_and(|&v| !is_absent(v)) || self.histogram(i).is_some()
    }

    /// Sets step `i`.
    pub(crate) fn set(&mut self, i: usize, point: Point) {
        match point {
            Point::Absent => {}
            Point::Float(v) => {
                if let Some(slot) = self.values.get_mut(i) {
                    *slot = v;
                }
            }
            Point::Histogram(h) => {
                if self.histograms.is_empty() {
                    self.histograms.resize(self.values.len(), None);
                }
                if let Some(slot) = self.histograms.get_mut(i) {
                    *slot = Some(h);
                }
            }
        }
    }

    /// Whether no step has anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.values.iter().all(|&v| is_absent(v)) && self.histograms.iter().all(Option::is_none)
    }

    /// What the query's limit counts for it: its samples, or what a row this long costs however few they are.
    pub(crate) fn held(&self) -> usize {
        self.samples().max(held_by_slots(self.values.len()))
    }

    /// How many samples it has; a histogram counts as many as it weighs.
    pub(crate) fn samples(&self) -> usize {
        let floats = self.values.iter().filter(|&&v| !is_absent(v)).count();
        let histograms: usize = self
            .histograms
            .iter()
            .flatten()
            .map(|h| histogram_weight(h))
            .sum();
        floats + histograms
    }

    /// What it occupies in memory.
    pub(crate) fn bytes(&self) -> usize {
        let slots = self.values.capacity() + self.histograms.capacity();
        size_of::<Self>() + of_labels(&self.labels) + slots * 8 + of_column(self.histograms.iter().flatten())
    }

    /// The metric's name, or "".
    pub(crate) fn metric_name(&self) -> &str {
        self.labels.metric_name()
    }

    /// Applies `f` to every float and drops the histograms.
    pub(crate) fn map_floats(
        mut self,
        work: &mut Work<'_>,
        f: impl Fn(f64) -> f64,
    ) -> Result<Self, QueryError> {
        work.each(&mut self.values, |_, v| {
            if !is_absent(*v) {
                *v = f(*v);
            }
        })?;
        self.histograms = Vec::new();
        self.drop_name = true;
        Ok(self)
    }
}

/// What rows occupy in memory.
pub(crate) fn bytes_of(rows: &[Row]) -> usize {
    rows.iter()
        .fold(0, |bytes, row| row.bytes().saturating_add(bytes))
}

/// Whether a label says what a metric is rather than which series it is; operations that change the meaning of a value
/// drop these.
pub(crate) fn is_metadata_label(name: &str) -> bool {
    name == METRIC_NAME || name == "__type__" || name == "__unit__"
}

/// One number per step.
#[derive(Clone, Debug)]
pub(crate) enum Scalars {
    Const(f64),
    Steps(Vec<f64>),
}

impl Scalars {
    #[inline]
    pub(crate) fn at(&self, i: usize) -> f64 {
        match self {
            Self::Const(v) => *v,
            Self::Steps(vs) => vs.get(i).copied().unwrap_or(f64::NAN),
        }
    }

    /// All of them.
    pub(crate) fn into_steps(self, count: usize, work: &mut Work<'_>) -> Result<Vec<f64>, QueryError> {
        match self {
            Self::Const(v) => work.filled(&v, count),
            Self::Steps(vs) => Ok(vs),
        }
    }

    /// Combines two, step by step.
    pub(crate) fn zip(
        &self,
        other: &Self,
        count: usize,
        work: &mut Work<'_>,
        f: impl Fn(f64, f64) -> f64,
    ) -> Result<Self, QueryError> {
        if let (Self::Const(a), Self::Const(b)) = (self, other) {
            return Ok(Self::Const(f(*a, *b)));
        }
        Self::of_steps(count, work, |i| f(self.at(i), other.at(i)))
    }

    /// One number per step.
    pub(crate) fn of_steps(
        count: usize,
        work: &mut Work<'_>,
        f: impl Fn(usize) -> f64,
    ) -> Result<Self, QueryError> {
        work.hold(count.saturating_mul(8))?;
        let mut values = Vec::with_capacity(count);
        while values.len() < count {
            let next = count.min(values.len() + UNITS_PER_CHECK);
            work.spend(next - values.len())?;
            values.extend((values.len()..next).map(&f));
        }
        Ok(Self::Steps(values))
    }

    pub(crate) fn held(&self) -> usize {
        match self {
            Self::Const(_) => 1,
            Self::Steps(vs) => vs.len(),
        }
    }

    /// What they occupy in memory.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Const(_) => size_of::<Self>(),
            Self::Steps(vs) => vs.capacity() * 8,
        }
    }
}

/// Repeats what was evaluated at one step for all steps.
pub(crate) fn expand(once: Evaluated, count: usize, work: &mut Work<'_>) -> Result<Evaluated, QueryError> {
    match once {
        Evaluated::Scalar(Scalars::Steps(vs)) => Ok(Evaluated::Scalar(Scalars::Const(
            vs.first().copied().unwrap_or(f64::NAN),
        ))),
        Evaluated::Vector(rows) => {
            let mut expanded = Vec::with_capacity(rows.len());
            for row in rows {
                expanded.push(repeated(row, count, work)?);
            }
            Ok(Evaluated::Vector(expanded))
        }
        other => Ok(other),
    }
}

/// A row of one step for all steps.
fn repeated(row: Row, count: usize, work: &mut Work<'_>) -> Result<Row, QueryError> {
    let value = row.values.first().copied().unwrap_or_else(absent);
    let histogram = row.histogram(0);
    let columns = 1 + usize::from(histogram.is_some());
    work.hold(count.saturating_mul(8 * columns))?;
    let histograms = match histogram {
        Some(h) => work.filled(&Some(Arc::clone(h)), count)?,
        None => Vec::new(),
    };
    Ok(Row {
        values: work.filled(&value, count)?,
        histograms,
        ..row
    })
}

/// The error for two samples of one series at one time.
pub(crate) fn same_labelset() -> QueryError {
    QueryError::execution("vector cannot contain metrics with the same labelset")
}

/// What the query's limit counts for a row of this many steps at least, so that rows with few samples do not exceed all
/// memory: a quarter of what they would cost if they were full.
fn held_by_slots(steps: usize) -> usize {
    steps.div_ceil(4)
}

/// Collects points into rows by label set, in order of first appearance.
pub(crate) struct RowSet<'a> {
    rows: Vec<Row>,
    by_labels: HashMap<Labels, usize>,
    steps: usize,
    account: &'a Account,
    work: Work<'a>,
}

impl<'a> RowSet<'a> {
    pub(crate) fn new(steps: usize, account: &'a Account, work: Work<'a>) -> Self {
        Self {
            rows: Vec::new(),
            by_labels: HashMap::new(),
            steps,
            account,
            work,
        }
    }

    /// The row of a label set, made if it is new.
    pub(crate) fn row(&mut self, labels: &Labels, drop_name: bool) -> Result<usize, QueryError> {
        if let Some(&i) = self.by_labels.get(labels) {
            return Ok(i);
        }
        self.account.hold(held_by_slots(self.steps))?;
        let own = 2 * size_of::<Row>() + LABELS_ENTRY_BYTES + of_labels(labels);
        self.work.hold(own.saturating_add(self.steps.saturating_mul(8)))?;
        let row = Row::blank(labels.clone(), drop_name, self.steps, &mut self.work)?;
        self.rows.push(row);
        self.by_labels.insert(labels.clone(), self.rows.len() - 1);
        Ok(self.rows.len() - 1)
    }

    /// Row number `row`.
    pub(crate) fn row_mut(&mut self, row: usize) -> Option<&mut Row> {
        self.rows.get_mut(row)
    }

    /// Sets one point.
    ///
    /// Fails if the row has one at that step already.
    pub(crate) fn set(&mut self, row: usize, step: usize, point: Point) -> Result<(), QueryError> {
        if point.is_absent() {
            return Ok(());
        }
        let Some(row) = self.rows.get_mut(row) else {
            return Ok(());
        };
        if row.has(step) {
            return Err(same_labelset());
        }
        if let Point::Histogram(h) = &point {
            let slots = if row.histograms.is_empty() { self.steps } else { 0 };
            self.work.hold(of_histogram(h).saturating_add(slots * 8))?;
        }
        row.set(step, point);
        Ok(())
    }

    /// Counts work on what goes into it.
    #[inline]
    pub(crate) fn spend(&mut self, units: usize) -> Result<(), QueryError> {
        self.work.spend(units)
    }

    /// Counts one more at a step.
    pub(crate) fn increment(&mut self, row: usize, step: usize) {
        if let Some(v) = self.rows.get_mut(row).and_then(|r| r.values.get_mut(step)) {
            *v = if is_absent(*v) { 1.0 } else { *v + 1.0 };
        }
    }

    /// The rows that have any sample.
    pub(crate) fn into_rows(self) -> Vec<Row> {
        let mut rows = self.rows;
        rows.retain(|r| !r.is_empty());
        rows
    }
}

/// What a table of rows by labels occupies per row.
const TABLE_ROW_BYTES: usize = size_of::<Row>() + LABELS_ENTRY_BYTES;

/// Unites rows with equal labels; fails if two have a sample at the same step.
pub(crate) fn merge_equal_labels(rows: Vec<Row>, work: &mut Work<'_>) -> Result<Vec<Row>, QueryError> {
    work.hold(rows.len().saturating_mul(TABLE_ROW_BYTES))?;
    let mut by_labels: HashMap<Labels, usize> = HashMap::with_capacity(rows.len());
    let mut merged: Vec<Row> = Vec::with_capacity(rows.len());
    for row in rows {
        work.spend(16)?;
        let Some(&at) = by_labels.get(&row.labels) else {
            by_labels.insert(row.labels.clone(), merged.len());
            merged.push(row);
            continue;
        };
        let Some(kept) = merged.get_mut(at) else { continue };
        for i in 0..row.values.len() {
            work.spend(1)?;
            let point = row.point(i);
            if point.is_absent() {
                continue;
            }
            if kept.has(i) {
                return Err(same_labelset());
            }
            kept.set(i, point);
        }
    }
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Uninterrupted;
    use crate::memory::Memory;

    fn merge(rows: Vec<Row>) -> Result<Vec<Row>, QueryError> {
        merge_equal_labels(rows, &mut Work::new(&Uninterrupted, &Memory::new(usize::MAX)))
    }

    fn row(name: &str, values: &[f64]) -> Row {
        Row {
            values: values.to_vec(),
            ..Row::new(Labels::from_pairs([("n", name)]), false, values.len())
        }
    }

    #[test]
    fn rows_of_one_series_unite_unless_they_overlap() {
        let a = row("a", &[1.0, absent()]);
        let b = row("a", &[absent(), 2.0]);
        let merged = merge(vec![a.clone(), b]).unwrap();
        assert_eq!((merged.len(), merged[0].values.as_slice()), (1, &[1.0, 2.0][..]));
        let e = merge(vec![a.clone(), a]).unwrap_err();
        assert_eq!(
            e.to_string(),
            "vector cannot contain metrics with the same labelset"
        );
    }

    #[test]
    fn nan_is_a_value_and_the_stale_marker_is_none() {
        let r = row("a", &[f64::NAN, absent()]);
        assert!(r.has(0) && !r.has(1));
        assert_eq!(r.samples(), 1);
    }
}
