//! Binary operations; those of a vector with a scalar.

use super::inputs::Inputs;
use super::operators::{Operand, arithmetic, changes_meaning, combine, compare, scalars};
use super::row::{Point, Row, Scalars, histogram_weight};
use super::sets::set_operation;
use super::{Evaluated, Evaluator, absent, is_absent, wrong_type};
use crate::ast::BinaryOp;
use crate::error::QueryError;
use crate::memory::of_histogram;
use crate::plan::BinaryNode;
use crate::steps::Steps;
use crate::work::Work;

impl Evaluator<'_> {
    /// Evaluates a binary operation.
    pub(super) fn binary(
        &mut self,
        node: &BinaryNode,
        steps: Steps,
        inputs: &mut Inputs<'_>,
    ) -> Result<Evaluated, QueryError> {
        let (lhs, rhs) = (inputs.any()?, inputs.any()?);
        let n = steps.count();
        Ok(match (lhs, rhs) {
            (Evaluated::Scalar(l), Evaluated::Scalar(r)) => {
                Evaluated::Scalar(l.zip(&r, n, &mut self.work(), |a, b| scalars(node.op, a, b))?)
            }
            (Evaluated::Vector(rows), Evaluated::Scalar(s)) => {
                Evaluated::Vector(self.with_scalar(node, rows, &s, false)?)
            }
            (Evaluated::Scalar(s), Evaluated::Vector(rows)) => {
                Evaluated::Vector(self.with_scalar(node, rows, &s, true)?)
            }
            (Evaluated::Vector(l), Evaluated::Vector(r)) => {
                let matching = node
                    .matching
                    .as_ref()
                    .ok_or_else(|| wrong_type("vector matching"))?;
                Evaluated::Vector(if node.op.is_set() {
                    set_operation(node.op, l, r, matching, n, &mut self.work())?
                } else {
                    self.matched(node, matching, l, r, n)?
                })
            }
            _ => return Err(wrong_type("scalar or instant vector")),
        })
    }

    /// A vector and a scalar; `swapped` if the scalar is on the left.
    fn with_scalar(
        &mut self,
        node: &BinaryNode,
        rows: Vec<Row>,
        scalar: &Scalars,
        swapped: bool,
    ) -> Result<Vec<Row>, QueryError> {
        let mut work = self.work();
        let mut out = Vec::with_capacity(rows.len());
        for mut row in rows {
            if row.histograms.is_empty() && !matches!(node.op, BinaryOp::TrimUpper | BinaryOp::TrimLower) {
                work.each(&mut row.values, |i, v| {
                    if !is_absent(*v) {
                        *v = float_with_float(node, *v, scalar.at(i), swapped);
                    }
                })?;
            } else {
                row = self.any_with_scalar(node, &row, scalar, swapped, &mut work)?;
            }
            row.drop_name |= changes_meaning(node.op) || node.return_bool;
            if !row.is_empty() {
                out.push(row);
            }
        }
        Ok(out)
    }

    fn any_with_scalar(
        &mut self,
        node: &BinaryNode,
        row: &Row,
        scalar: &Scalars,
        swapped: bool,
        work: &mut Work<'_>,
    ) -> Result<Row, QueryError> {
        let mut out = Row::blank(row.labels.clone(), row.drop_name, row.values.len(), work)?;
        for i in 0..row.values.len() {
            work.spend(1 + row.histogram(i).map_or(0, |h| 4 * histogram_weight(h)))?;
            let Some(own) = operand(row, i) else { continue };
            let other = Operand::Float(scalar.at(i));
            let (l, r) = if swapped { (other, own) } else { (own, other) };
            let Some((point, keep)) = combine(node.op, l, r, &mut self.annotations, node.span) else {
                continue;
            };
            if let Point::Histogram(h) = &point {
                work.hold(of_histogram(h))?;
            }
            if node.return_bool {
                out.set(i, Point::Float(f64::from(u8::from(keep))));
            } else if keep {
                out.set(
                    i,
                    if node.op.is_comparison() {
                        row.point(i)
                    } else {
                        point
                    },
                );
            }
        }
        Ok(out)
    }
}

/// What a series has at a step, if anything.
pub(super) fn operand(row: &Row, i: usize) -> Option<Operand<'_>> {
    match row.values.get(i) {
        Some(&v) if !is_absent(v) => Some(Operand::Float(v)),
        _ => row.histogram(i).map(Operand::Histogram),
    }
}

/// An operation on two floats; absent if a comparison does not hold. `own` is on the right if `swapped`, and what a
/// comparison gives back.
#[inline]
pub(super) fn float_with_float(node: &BinaryNode, own: f64, scalar: f64, swapped: bool) -> f64 {
    let (l, r) = if swapped { (scalar, own) } else { (own, scalar) };
    if !node.op.is_comparison() {
        return arithmetic(node.op, l, r);
    }
    let holds = compare(node.op, l, r);
    if node.return_bool {
        f64::from(u8::from(holds))
    } else if holds {
        own
    } else {
        absent()
    }
}
