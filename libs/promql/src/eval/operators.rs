//! Binary operators on single values.

use std::sync::Arc;

use koios_model::Histogram;

use super::aggregate_histogram as histograms;
use super::row::Point;
use crate::annotations::Annotations;
use crate::ast::{BinaryOp, Span};

/// One side of an operation at one step.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operand<'a> {
    Float(f64),
    Histogram(&'a Arc<Histogram>),
}

impl Operand<'_> {
    fn kind(self) -> &'static str {
        match self {
            Self::Float(_) => "float",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// Whether a comparison holds.
#[inline]
pub(super) fn compare(op: BinaryOp, l: f64, r: f64) -> bool {
    match op {
        BinaryOp::Eq => l == r,
        BinaryOp::Ne => l != r,
        BinaryOp::Gt => l > r,
        BinaryOp::Lt => l < r,
        BinaryOp::Ge => l >= r,
        BinaryOp::Le => l <= r,
        _ => false,
    }
}

/// The result of arithmetic; NaN for operators that are none.
#[inline]
pub(super) fn arithmetic(op: BinaryOp, l: f64, r: f64) -> f64 {
    match op {
        BinaryOp::Add => l + r,
        BinaryOp::Sub => l - r,
        BinaryOp::Mul => l * r,
        BinaryOp::Div => l / r,
        BinaryOp::Mod => l % r,
        BinaryOp::Pow => l.powf(r),
        BinaryOp::Atan2 => l.atan2(r),
        _ => f64::NAN,
    }
}

/// An operation on two scalars; comparisons give 0 or 1.
pub(super) fn scalars(op: BinaryOp, l: f64, r: f64) -> f64 {
    if op.is_comparison() {
        f64::from(u8::from(compare(op, l, r)))
    } else {
        arithmetic(op, l, r)
    }
}

/// Whether the result no longer measures what the operands did, so that the metric's name goes.
pub(super) fn changes_meaning(op: BinaryOp) -> bool {
    matches!(
        op,
        BinaryOp::Add
            | BinaryOp::Sub
            | BinaryOp::Mul
            | BinaryOp::Div
            | BinaryOp::Mod
            | BinaryOp::Pow
            | BinaryOp::Atan2
    )
}

/// An operation on two values: the result and whether a filtering comparison keeps it. `None`, with an annotation, if
/// the operator does not go with these types.
pub(super) fn combine(
    op: BinaryOp,
    l: Operand<'_>,
    r: Operand<'_>,
    annotations: &mut Annotations,
    span: Span,
) -> Option<(Point, bool)> {
    if let (Operand::Float(a), Operand::Float(b)) = (l, r)
        && !matches!(op, BinaryOp::TrimUpper | BinaryOp::TrimLower)
    {
        return Some(if op.is_comparison() {
            (Point::Float(a), compare(op, a, b))
        } else {
            (Point::Float(arithmetic(op, a, b)), true)
        });
    }
    let result = match (l, r) {
        (Operand::Float(factor), Operand::Histogram(h)) if op == BinaryOp::Mul => {
            Some(histograms::scaled_compact(h, factor))
        }
        (Operand::Histogram(h), Operand::Float(v)) => histograms::with_float(op, h, v),
        (Operand::Histogram(a), Operand::Histogram(b)) => match op {
            BinaryOp::Eq | BinaryOp::Ne => {
                let equal = crate::histogram::equal(a, b);
                return Some((Point::Histogram(Arc::clone(a)), equal == (op == BinaryOp::Eq)));
            }
            BinaryOp::Add | BinaryOp::Sub => {
                let result = histograms::added(op, a, b, annotations, span)?;
                return Some((Point::Histogram(Arc::new(result)), true));
            }
            _ => None,
        },
        _ => None,
    };
    match result {
        Some(h) => Some((Point::Histogram(Arc::new(h)), true)),
        None => {
            annotations.incompatible_types(l.kind(), op.as_str(), r.kind(), span);
            None
        }
    }
}
