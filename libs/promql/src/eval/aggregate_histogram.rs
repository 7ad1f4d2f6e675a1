//! Sums, means and statistics of histograms.
use std::sync::Arc;

use koios_model::Histogram;

use super::row::{Point, Row};
use super::window::StepInfo;
use crate::annotations::Annotations;
use crate::ast::{BinaryOp, Span};
use crate::signatures::FunctionId;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Combined {
    Sum,
    Mean,
}

pub(super) fn sum_over_time(_: &[Arc<Histogram>], _: &mut StepInfo<'_>) -> Point {
    Point::Absent
}
pub(super) fn avg_over_time(_: &[Arc<Histogram>], _: &mut StepInfo<'_>) -> Point {
    Point::Absent
}
pub(super) fn combine(_: &[(&Arc<Histogram>, &str)], _: Combined, _: &mut Annotations, _: Span) -> Point {
    Point::Absent
}
pub(super) fn statistic(_: FunctionId, _: Vec<Row>) -> Vec<Row> {
    Vec::new()
}
pub(super) fn scaled(h: &Histogram, _: f64) -> Histogram {
    h.clone()
}
pub(super) fn scaled_compact(h: &Histogram, _: f64) -> Histogram {
    h.clone()
}
pub(super) fn with_float(_: BinaryOp, _: &Histogram, _: f64) -> Option<Histogram> {
    None
}
pub(super) fn equal(a: &Histogram, b: &Histogram) -> bool {
    a == b
}
pub(super) fn added(
    _: &Histogram,
    _: &Histogram,
    _: bool,
    _: &mut Annotations,
    _: Span,
) -> Option<Histogram> {
    None
}
