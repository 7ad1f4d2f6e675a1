//! Arithmetic on native histograms.
//!
//! The buckets of one side are handled as a list of index and count, ascending; spans only exist in the stored form.
//! Whatever spans and buckets say, nothing here panics: buckets without a span and spans without buckets are ignored.
//!
//! **Source:** Prometheus `model/histogram/float_histogram.go`.

mod arithmetic;
mod bounds;
mod buckets;
mod quantile;
mod reset;
mod sum;
mod trim;

pub(crate) use arithmetic::{Incompatible, equal, reduced, uses_custom_buckets};
pub use arithmetic::{Reconciled, add, divide, scale, sub};
pub use buckets::Bucket;
pub(crate) use buckets::all_buckets;
pub(crate) use quantile::{fraction, quantile, variance};
pub(crate) use reset::StatisticsOnly;
pub use reset::is_reset;
pub(crate) use sum::{HistogramMean, HistogramSum};
pub(crate) use trim::trim;

use koios_model::Histogram;

use crate::number::format_g;

/// All buckets, ascending; those without observations between them included.
pub fn buckets(h: &Histogram) -> Vec<Bucket> {
    all_buckets(h, false)
}

/// As text: `{count:3, sum:4.5, [-0.5,0.5]:1, (0.5,1]:2}`, without empty buckets.
pub fn format(h: &Histogram) -> String {
    let mut text = format!("{{count:{}, sum:{}", format_g(h.count), format_g(h.sum));
    for b in all_buckets(h, false).into_iter().filter(|b| b.count != 0.0) {
        let (open, close) = (
            if b.lower_inclusive { '[' } else { '(' },
            if b.upper_inclusive { ']' } else { ')' },
        );
        text.push_str(&format!(
            ", {open}{},{}{close}:{}",
            format_g(b.lower),
            format_g(b.upper),
            format_g(b.count)
        ));
    }
    text.push('}');
    text
}

#[cfg(test)]
mod tests {
    use koios_model::Span;

    use super::*;

    #[test]
    fn text_shows_populated_buckets_from_low_to_high() {
        let h = Histogram {
            count: 6.0,
            sum: 1.5,
            zero_count: 1.0,
            zero_threshold: 0.25,
            positive_spans: vec![Span { offset: 0, length: 3 }],
            positive_buckets: vec![2.0, 0.0, 1.0],
            negative_spans: vec![Span { offset: 1, length: 1 }],
            negative_buckets: vec![2.0],
            ..Histogram::default()
        };
        assert_eq!(
            format(&h),
            "{count:6, sum:1.5, [-2,-1):2, [-0.25,0.25]:1, (0.5,1]:2, (2,4]:1}"
        );
    }
}
