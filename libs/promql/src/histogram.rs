//! Native histograms.
use koios_model::Histogram;

use crate::annotations::Annotations;
use crate::ast::Span;

pub(crate) fn format(h: &Histogram) -> String {
    format!("{{count:{}, sum:{}}}", h.count, h.sum)
}
pub(crate) fn quantile(_: f64, _: &Histogram, _: &str, _: Span, _: &mut Annotations) -> f64 {
    f64::NAN
}
pub(crate) fn fraction(_: (f64, f64), _: &Histogram, _: &str, _: Span, _: &mut Annotations) -> f64 {
    f64::NAN
}
