//! Sums, means, statistics and operators of native histograms.

use std::sync::Arc;

use koios_model::{Histogram, ResetHint};

use super::instant::non_empty;
use super::row::{Point, Row, histogram_weight};
use super::window::StepInfo;
use crate::annotations::{Annotations, HistogramOperation};
use crate::ast::{BinaryOp, Span};
use crate::error::QueryError;
use crate::histogram::{self, HistogramMean, HistogramSum, Incompatible, Reconciled};
use crate::signatures::FunctionId;
use crate::work::Work;

/// How histograms are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Combined {
    Sum,
    Mean,
}

/// A sum or a mean in the making.
pub(super) enum Accumulator {
    Sum(HistogramSum),
    Mean(HistogramMean),
}

impl Accumulator {
    pub(super) fn new(how: Combined, first: &Histogram) -> Self {
        match how {
            Combined::Sum => Self::Sum(HistogramSum::new(first)),
            Combined::Mean => Self::Mean(HistogramMean::new(first)),
        }
    }

    pub(super) fn push(&mut self, h: &Histogram) -> Result<Reconciled, Incompatible> {
        match self {
            Self::Sum(s) => s.push(h),
            Self::Mean(m) => m.push(h),
        }
    }

    /// What it occupies in memory.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Sum(s) => s.bytes(),
            Self::Mean(m) => m.bytes(),
        }
    }

    pub(super) fn value(self) -> Histogram {
        match self {
            Self::Sum(s) => s.value(),
            Self::Mean(m) => m.value(),
        }
    }
}

/// Combines histograms in order. What was noteworthy is annotated; `Err` with the number of the first one that does
/// not go with those before.
fn combined(
    all: &[&Histogram],
    how: Combined,
    annotations: &mut Annotations,
    span: Span,
) -> Result<Option<Histogram>, usize> {
    let Some((first, rest)) = all.split_first() else {
        return Ok(None);
    };
    let mut acc = Accumulator::new(how, first);
    for (i, h) in rest.iter().enumerate() {
        if acc.push(h).map_err(|Incompatible| i + 1)?.bounds {
            annotations.mismatched_custom_buckets(HistogramOperation::Aggregation, span);
        }
    }
    let hinted = |hint| all.iter().any(|h| h.reset_hint == hint);
    if hinted(ResetHint::Reset) && hinted(ResetHint::NotReset) {
        annotations.counter_reset_collision(HistogramOperation::Aggregation, span);
    }
    Ok(Some(acc.value()))
}

fn over_time(all: &[Arc<Histogram>], how: Combined, s: &mut StepInfo<'_>) -> Point {
    let all: Vec<&Histogram> = all.iter().map(AsRef::as_ref).collect();
    match combined(&all, how, s.annotations, s.first_span) {
        Ok(h) => h.map_or(Point::Absent, |h| Point::Histogram(Arc::new(h))),
        Err(_) => {
            s.incompatible();
            Point::Absent
        }
    }
}

pub(super) fn sum_over_time(all: &[Arc<Histogram>], s: &mut StepInfo<'_>) -> Point {
    over_time(all, Combined::Sum, s)
}

pub(super) fn avg_over_time(all: &[Arc<Histogram>], s: &mut StepInfo<'_>) -> Point {
    over_time(all, Combined::Mean, s)
}

/// Notes that custom bounds differ.
pub(super) fn note_bounds<'h>(all: impl Iterator<Item = &'h Arc<Histogram>>, s: &mut StepInfo<'_>) {
    let mut custom = all.filter(|h| histogram::uses_custom_buckets(h));
    let first = custom.next();
    if custom.any(|h| first.is_some_and(|first| first.custom_bounds != h.custom_bounds)) {
        s.annotations
            .mismatched_custom_buckets(HistogramOperation::Aggregation, s.first_span);
    }
}

/// A number that says something about each histogram.
pub(super) fn statistic(
    function: FunctionId,
    rows: Vec<Row>,
    work: &mut Work<'_>,
) -> Result<Vec<Row>, QueryError> {
    let of = |h: &Histogram| match function {
        FunctionId::HistogramCount => h.count,
        FunctionId::HistogramSum => h.sum,
        FunctionId::HistogramAvg => h.sum / h.count,
        FunctionId::HistogramStddev => histogram::variance(h).sqrt(),
        _ => histogram::variance(h),
    };
    non_empty(rows.into_iter().map(|row| {
        let mut out = Row::blank(row.labels.clone(), true, row.values.len(), work)?;
        for (i, h) in row.histograms.iter().enumerate() {
            work.spend(1 + h.as_ref().map_or(0, |h| histogram_weight(h)))?;
            out.set(i, h.as_ref().map_or(Point::Absent, |h| Point::Float(of(h))));
        }
        Ok(out)
    }))
}

/// A multiple.
pub(super) fn scaled(h: &Histogram, factor: f64) -> Histogram {
    let mut out = h.clone();
    histogram::scale(&mut out, factor);
    out
}

/// A fraction.
pub(super) fn divided(h: &Histogram, divisor: f64) -> Histogram {
    let mut out = h.clone();
    histogram::divide(&mut out, divisor);
    out
}

/// A multiple without empty buckets.
pub(super) fn scaled_compact(h: &Histogram, factor: f64) -> Histogram {
    let mut out = scaled(h, factor);
    out.compact();
    out
}

/// A histogram on the left of an operator and a number on the right.
pub(super) fn with_float(op: BinaryOp, h: &Histogram, v: f64) -> Option<Histogram> {
    let mut out = h.clone();
    match op {
        BinaryOp::Mul => histogram::scale(&mut out, v),
        BinaryOp::Div => histogram::divide(&mut out, v),
        BinaryOp::TrimUpper | BinaryOp::TrimLower => {
            histogram::trim(&mut out, v, op == BinaryOp::TrimUpper);
            return Some(out);
        }
        _ => return None,
    }
    out.compact();
    Some(out)
}

/// `+` or `-`. `None`, with an annotation, if the two do not go together.
pub(super) fn added(
    op: BinaryOp,
    a: &Histogram,
    b: &Histogram,
    annotations: &mut Annotations,
    span: Span,
) -> Option<Histogram> {
    let mut out = a.clone();
    let (done, name) = if op == BinaryOp::Sub {
        (histogram::sub(&mut out, b), HistogramOperation::Subtraction)
    } else {
        (histogram::add(&mut out, b), HistogramOperation::Addition)
    };
    let Ok(reconciled) = done else {
        annotations.incompatible_bucket_layout(op.as_str(), span);
        return None;
    };
    if op == BinaryOp::Sub {
        out.reset_hint = ResetHint::Gauge;
    }
    if reconciled.reset_collision {
        annotations.counter_reset_collision(name, span);
        return None;
    }
    if reconciled.bounds {
        annotations.mismatched_custom_buckets(name, span);
    }
    out.compact();
    Some(out)
}
