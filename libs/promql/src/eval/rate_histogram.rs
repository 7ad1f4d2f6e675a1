//! Histogram counterpart of the rate family.
use koios_model::Histogram;

use super::rate::RateKind;
use super::row::Point;
use super::window::{Samples, StepInfo};
use crate::annotations::Annotations;
use crate::ast::Span;

pub(super) fn extrapolated(_: Samples<'_>, _: &mut StepInfo<'_>, _: RateKind) -> Point {
    Point::Absent
}
pub(super) fn between_edges(_: Samples<'_>, _: &mut StepInfo<'_>, _: RateKind) -> Point {
    Point::Absent
}
pub(super) fn between(_: &Histogram, _: &Histogram, _: bool, _: Option<f64>, _: &mut StepInfo<'_>) -> Point {
    Point::Absent
}
pub(super) fn changes(_: Samples<'_>) -> usize {
    0
}
pub(super) fn resets(_: Samples<'_>) -> usize {
    0
}
pub(super) fn interpolate_histograms(
    _: [(i64, &Histogram); 2],
    _: i64,
    _: bool,
    _: Span,
    _: &mut Annotations,
) -> Option<Histogram> {
    None
}
