//! The running columns of one group of an aggregation.

use std::ops::Range;
use std::sync::Arc;

use koios_model::{Histogram, Labels, ResetHint};

use super::aggregate_histogram::{Accumulator, Combined};
use super::fold_columns::{Means, Sums};
use super::is_absent;
use super::row::{Point, Row};
use crate::annotations::{Annotations, HistogramOperation};
use crate::ast::{AggregateOp, Span};
use crate::error::QueryError;
use crate::memory::of_histogram;
use crate::work::{UNITS_PER_CHECK, Work};

/// One group: what it has seen of its series so far, at each step.
pub(super) struct Group {
    op: AggregateOp,
    row: Row,
    floats: Floats,
    /// Empty until there is a histogram.
    histograms: Vec<Option<Histograms>>,
}

/// What is kept of floats, one slot per step.
enum Floats {
    Sum(Sums),
    Mean(Means),
    /// Made as the first series comes.
    Variance(Vec<Option<Welford>>),
    /// The extreme itself; in the group's row.
    Extreme,
    /// The count; in the group's row. Histograms count, too.
    Count,
}

/// What is kept of histograms at one step.
struct Histograms {
    acc: Accumulator,
    /// Two did not go together: there is no result.
    incompatible: bool,
    reset: bool,
    not_reset: bool,
}

impl Group {
    /// A group without series.
    pub(super) fn new(
        labels: Labels,
        op: AggregateOp,
        steps: usize,
        work: &mut Work<'_>,
    ) -> Result<Self, QueryError> {
        let floats = match op {
            AggregateOp::Sum => Floats::Sum(Sums::new(steps)),
            AggregateOp::Avg => Floats::Mean(Means::new(steps)),
            AggregateOp::Stddev | AggregateOp::Stdvar => Floats::Variance(Vec::new()),
            AggregateOp::Min | AggregateOp::Max => Floats::Extreme,
            _ => Floats::Count,
        };
        Ok(Self {
            op,
            row: Row::blank(labels, false, steps, work)?,
            floats,
            histograms: Vec::new(),
        })
    }

    /// What a group occupies in memory, but for histograms.
    pub(super) fn bytes(op: AggregateOp, steps: usize) -> usize {
        let state = match op {
            AggregateOp::Sum => Sums::STEP_BYTES,
            AggregateOp::Avg => Means::STEP_BYTES,
            AggregateOp::Stddev | AggregateOp::Stdvar => size_of::<Option<Welford>>(),
            _ => 0,
        };
        size_of::<Self>().saturating_add(steps.saturating_mul(size_of::<f64>() + state))
    }

    /// What its histograms of some steps occupy in memory; the slots of all steps count with the first.
    pub(super) fn histogram_bytes(&self, steps: &Range<usize>) -> usize {
        let states = self.histograms.get(steps.clone()).unwrap_or_default();
        let own: usize = states.iter().flatten().map(|state| state.acc.bytes()).sum();
        let slots = if steps.start == 0 {
            self.histograms.capacity()
        } else {
            0
        };
        slots
            .saturating_mul(size_of::<Option<Histograms>>())
            .saturating_add(own)
    }

    /// What taking in histograms of a series at some steps may need: for a first one a state, for another one the sum of
    /// both beside the state there is.
    pub(super) fn histogram_bytes_to_come(
        &self,
        steps: &Range<usize>,
        more: &[Option<Arc<Histogram>>],
    ) -> usize {
        let slots = if steps.start == 0 {
            self.row.values.len()
        } else {
            0
        };
        let slots = slots.saturating_mul(size_of::<Option<Histograms>>());
        // Sums are kept in twice the bits.
        let states = more.iter().flatten().map(|h| of_histogram(h).saturating_mul(2));
        let sums = self.histogram_bytes(steps);
        states.fold(slots.saturating_add(sums), usize::saturating_add)
    }

    /// Takes in some steps of one series: one range after the other, none left out.
    pub(super) fn push(&mut self, row: &Row, steps: Range<usize>, annotations: &mut Annotations, span: Span) {
        self.row.drop_name |= row.drop_name;
        let values = row.values.get(steps.clone()).unwrap_or_default();
        let best = self.row.values.get_mut(steps.clone()).unwrap_or_default();
        match &mut self.floats {
            Floats::Sum(sums) => sums.push(values, steps.start),
            Floats::Mean(means) => means.push(values, steps.start),
            Floats::Variance(states) => {
                if states.len() < steps.end {
                    states.reserve_exact(self.row.values.len() - states.len());
                    states.resize(steps.end, None);
                }
                let states = states.get_mut(steps.clone()).unwrap_or_default();
                fold(values, states, Welford::new, Welford::push);
            }
            Floats::Extreme if self.op == AggregateOp::Min => extreme(values, best, |v, best| v < best),
            Floats::Extreme => extreme(values, best, |v, best| v > best),
            Floats::Count => {
                let histograms = row.histograms.get(steps).unwrap_or_default();
                count(values, histograms, best, self.op == AggregateOp::Group);
                return;
            }
        }
        if row.histograms.is_empty() {
            return;
        }
        if matches!(self.op, AggregateOp::Sum | AggregateOp::Avg) {
            self.push_histograms(row, steps, annotations, span);
        } else if steps.start == 0 {
            annotations.histogram_ignored_in_aggregation(self.op.as_str(), span);
        }
    }

    fn push_histograms(&mut self, row: &Row, steps: Range<usize>, annotations: &mut Annotations, span: Span) {
        let how = if self.op == AggregateOp::Sum {
            Combined::Sum
        } else {
            Combined::Mean
        };
        // Slots are made range after range, too, in memory that is taken once.
        if self.histograms.len() < steps.end {
            let all = self.row.values.len();
            self.histograms
                .reserve_exact(all - self.histograms.len().min(all));
            self.histograms.resize_with(steps.end, || None);
        }
        let states = self.histograms.get_mut(steps.clone()).unwrap_or_default();
        for (state, h) in states
            .iter_mut()
            .zip(row.histograms.get(steps).unwrap_or_default())
        {
            let Some(h) = h else { continue };
            match state {
                Some(state) => state.push(h, row.metric_name(), annotations, span),
                None => *state = Some(Histograms::new(how, h)),
            }
        }
    }

    /// The result.
    pub(super) fn finish(
        mut self,
        annotations: &mut Annotations,
        span: Span,
        work: &mut Work<'_>,
    ) -> Result<Row, QueryError> {
        let row = &mut self.row;
        let root = self.op == AggregateOp::Stddev;
        for (n, out) in row.values.chunks_mut(UNITS_PER_CHECK).enumerate() {
            work.spend(out.len())?;
            let at = n * UNITS_PER_CHECK;
            match &self.floats {
                Floats::Sum(sums) => sums.write(out, at),
                Floats::Mean(means) => means.write(out, at),
                Floats::Variance(states) if root => write(out, states, at, |w| w.variance().sqrt()),
                Floats::Variance(states) => write(out, states, at, Welford::variance),
                Floats::Extreme | Floats::Count => {}
            }
        }
        for (i, state) in self.histograms.into_iter().enumerate() {
            let Some(state) = state else { continue };
            work.spend(64)?;
            if row.values.get(i).is_some_and(|&v| !is_absent(v)) {
                annotations.mixed_floats_histograms_in_aggregation(span);
                row.set(i, Point::Float(super::absent()));
            } else {
                row.set(i, state.finish(annotations, span));
            }
        }
        Ok(self.row)
    }
}

impl Histograms {
    fn new(how: Combined, first: &Histogram) -> Self {
        let mut new = Self {
            acc: Accumulator::new(how, first),
            incompatible: false,
            reset: false,
            not_reset: false,
        };
        new.note_hint(first);
        new
    }

    fn note_hint(&mut self, h: &Histogram) {
        self.reset |= h.reset_hint == ResetHint::Reset;
        self.not_reset |= h.reset_hint == ResetHint::NotReset;
    }

    fn push(&mut self, h: &Histogram, metric: &str, annotations: &mut Annotations, span: Span) {
        if self.incompatible {
            return;
        }
        self.note_hint(h);
        match self.acc.push(h) {
            Ok(reconciled) if reconciled.bounds => {
                annotations.mismatched_custom_buckets(HistogramOperation::Aggregation, span);
            }
            Ok(_) => {}
            Err(_) => {
                annotations.mixed_exponential_custom(metric, span);
                self.incompatible = true;
            }
        }
    }

    fn finish(self, annotations: &mut Annotations, span: Span) -> Point {
        if self.incompatible {
            return Point::Absent;
        }
        if self.reset && self.not_reset {
            annotations.counter_reset_collision(HistogramOperation::Aggregation, span);
        }
        let mut h = self.acc.value();
        h.compact();
        Point::Histogram(Arc::new(h))
    }
}

/// Folds the floats of a series into one state per step.
fn fold<S>(values: &[f64], states: &mut [Option<S>], first: impl Fn(f64) -> S, next: impl Fn(&mut S, f64)) {
    for (state, &v) in states.iter_mut().zip(values) {
        if is_absent(v) {
            continue;
        }
        match state {
            Some(state) => next(state, v),
            None => *state = Some(first(v)),
        }
    }
}

/// Keeps the float that wins at each step; NaN loses against everything.
#[inline]
fn extreme(values: &[f64], best: &mut [f64], wins: impl Fn(f64, f64) -> bool) {
    for (best, &v) in best.iter_mut().zip(values) {
        // The mark for nothing is a NaN, too.
        let better = wins(v, *best) | (best.is_nan() & !is_absent(v));
        *best = if better { v } else { *best };
    }
}

/// Counts one more at each step where the series has something; once only if that is all that matters.
fn count(values: &[f64], histograms: &[Option<Arc<Histogram>>], counts: &mut [f64], once: bool) {
    let more = if once { 0.0 } else { 1.0 };
    let counted = |count: f64| if is_absent(count) { 1.0 } else { count + more };
    if histograms.is_empty() {
        for (count, &v) in counts.iter_mut().zip(values) {
            *count = if is_absent(v) { *count } else { counted(*count) };
        }
        return;
    }
    for (count, (&v, h)) in counts.iter_mut().zip(values.iter().zip(histograms)) {
        if !is_absent(v) || h.is_some() {
            *count = counted(*count);
        }
    }
}

/// Writes the values of those steps from `at` on that have one.
fn write<S: Copy>(out: &mut [f64], states: &[Option<S>], at: usize, value: impl Fn(S) -> f64) {
    for (out, state) in out.iter_mut().zip(states.get(at..).unwrap_or_default()) {
        if let Some(state) = *state {
            *out = value(state);
        }
    }
}

/// A running variance (Welford).
#[derive(Clone, Copy)]
struct Welford {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Welford {
    fn new(first: f64) -> Self {
        Self {
            count: 1.0,
            mean: first,
            squares: if first.is_finite() { 0.0 } else { f64::NAN },
        }
    }

    fn push(&mut self, v: f64) {
        self.count += 1.0;
        let delta = v - self.mean;
        self.mean += delta / self.count;
        self.squares += delta * (v - self.mean);
    }

    fn variance(self) -> f64 {
        self.squares / self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Uninterrupted;
    use crate::memory::Memory;

    fn folded(op: AggregateOp, rows: &[&[f64]]) -> Vec<f64> {
        let mut annotations = Annotations::default();
        let steps = rows.first().map_or(0, |r| r.len());
        let mut work = Work::new(&Uninterrupted, &Memory::new(usize::MAX));
        let mut group = Group::new(Labels::empty(), op, steps, &mut work).unwrap();
        for values in rows {
            let row = Row {
                values: values.to_vec(),
                ..Row::new(Labels::empty(), false, 0)
            };
            for from in 0..steps {
                group.push(&row, from..from + 1, &mut annotations, Span::default());
            }
        }
        group
            .finish(&mut annotations, Span::default(), &mut work)
            .unwrap()
            .values
    }

    #[test]
    fn steps_are_folded_apart_and_absent_ones_left_out() {
        let rows: &[&[f64]] = &[&[1.0, super::super::absent(), f64::NAN], &[3.0, 4.0, 2.0]];
        assert_eq!(folded(AggregateOp::Sum, rows)[..2], [4.0, 4.0]);
        assert_eq!(folded(AggregateOp::Avg, rows)[..2], [2.0, 4.0]);
        assert_eq!(folded(AggregateOp::Max, rows), [3.0, 4.0, 2.0]);
        assert_eq!(folded(AggregateOp::Min, rows), [1.0, 4.0, 2.0]);
        assert_eq!(folded(AggregateOp::Count, rows), [2.0, 1.0, 2.0]);
        assert_eq!(folded(AggregateOp::Group, rows), [1.0, 1.0, 1.0]);
        assert_eq!(folded(AggregateOp::Stdvar, rows)[..2], [1.0, 0.0]);
    }
}
