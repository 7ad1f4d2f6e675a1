//! Counter resets between histograms.

use std::sync::Arc;

use koios_model::{Histogram, ResetHint, is_stale};

use super::arithmetic::{Parts, coarser, uses_custom_buckets};
use super::bounds::exponential_bound;
use super::buckets::{Side, positive};

/// Whether the counters began anew between `before` and `h`: some count fell, or the buckets became finer.
pub fn is_reset(h: &Histogram, before: &Histogram) -> bool {
    match h.reset_hint {
        ResetHint::Reset => return true,
        ResetHint::NotReset => return false,
        ResetHint::Unknown | ResetHint::Gauge => {}
    }
    if h.count < before.count {
        return true;
    }
    if uses_custom_buckets(h) {
        if !uses_custom_buckets(before) {
            return true;
        }
        if h.custom_bounds != before.custom_bounds {
            return shared_bounds_fell(h, before);
        }
    }
    if h.schema > before.schema || h.zero_threshold < before.zero_threshold {
        return true;
    }
    let (now, mut then) = (Parts::<f64>::of(h), Parts::<f64>::of(before));
    if uses_custom_buckets(h) {
        return fell(&now.positive, &then.positive);
    }
    if now.zero_threshold > then.zero_threshold {
        then.widen_zero(now.zero_threshold);
    }
    if then.zero_threshold != now.zero_threshold || now.zero < then.zero {
        return true;
    }
    let comparable = |side: &Side<f64>, from: i32| -> Side<f64> {
        let side = coarser(side, from, h.schema);
        side.into_iter()
            .filter(|(i, _)| exponential_bound(*i, h.schema) > h.zero_threshold)
            .collect()
    };
    fell(
        &comparable(&now.positive, h.schema),
        &comparable(&then.positive, before.schema),
    ) || fell(
        &comparable(&now.negative, h.schema),
        &comparable(&then.negative, before.schema),
    )
}

/// Reduces histograms, one after the other, to count and sum, noting resets while the buckets are there.
#[derive(Debug, Default)]
pub(crate) struct StatisticsOnly {
    /// The histogram before, with its buckets.
    before: Option<Arc<Histogram>>,
}

impl StatisticsOnly {
    pub(crate) fn reduce(&mut self, h: &Arc<Histogram>) -> Arc<Histogram> {
        let mut reset_hint = h.reset_hint;
        if !is_stale(h.sum) {
            if let (ResetHint::Unknown, Some(before)) = (reset_hint, &self.before) {
                reset_hint = if is_reset(h, before) {
                    ResetHint::Reset
                } else {
                    ResetHint::NotReset
                };
            }
            self.before = Some(Arc::clone(h));
        }
        let (schema, count, sum) = (h.schema, h.count, h.sum);
        Arc::new(Histogram {
            reset_hint,
            schema,
            count,
            sum,
            ..Histogram::default()
        })
    }
}

/// Whether any bucket holds less than it did.
fn fell(now: &Side<f64>, then: &Side<f64>) -> bool {
    then.iter().any(
        |&(index, count)| match now.binary_search_by_key(&index, |(i, _)| *i) {
            Ok(at) => now.get(at).is_some_and(|(_, c)| *c < count),
            Err(_) => count != 0.0,
        },
    )
}

/// The same for histograms of differing custom bounds, between the bounds that both have.
fn shared_bounds_fell(h: &Histogram, before: &Histogram) -> bool {
    let shared = h
        .custom_bounds
        .iter()
        .copied()
        .filter(|b| before.custom_bounds.contains(b));
    let bounds: Vec<f64> = shared.chain([f64::INFINITY]).collect();
    let rolled_up = |h: &Histogram| {
        let mut counts = vec![0.0; bounds.len()];
        for b in positive(h) {
            let at = bounds.partition_point(|bound| *bound < b.upper);
            if let Some(count) = counts.get_mut(at) {
                *count += b.count;
            }
        }
        counts
    };
    rolled_up(h)
        .iter()
        .zip(rolled_up(before))
        .any(|(now, then)| *now < then)
}

#[cfg(test)]
mod tests {
    use koios_model::Span;

    use super::*;

    fn histogram(buckets: &[f64]) -> Histogram {
        Histogram {
            count: buckets.iter().sum(),
            positive_spans: vec![Span {
                offset: 0,
                length: buckets.len() as u32,
            }],
            positive_buckets: buckets.to_vec(),
            ..Histogram::default()
        }
    }

    #[test]
    fn any_count_that_falls_is_a_reset() {
        let before = histogram(&[1.0, 2.0]);
        assert!(!is_reset(&histogram(&[1.0, 3.0]), &before));
        assert!(is_reset(&histogram(&[0.0, 9.0]), &before));
        assert!(is_reset(&histogram(&[3.0]), &before));
        assert!(!is_reset(&histogram(&[1.0, 2.0, 1.0]), &before));
    }

    #[test]
    fn a_finer_resolution_is_a_reset_and_a_coarser_one_is_not() {
        let before = histogram(&[1.0, 2.0]);
        assert!(is_reset(
            &Histogram {
                schema: 1,
                ..histogram(&[5.0, 5.0])
            },
            &before
        ));
        assert!(!is_reset(
            &Histogram {
                schema: -1,
                ..histogram(&[1.0, 2.0])
            },
            &before
        ));
    }

    #[test]
    fn hints_are_believed() {
        let before = histogram(&[5.0]);
        assert!(!is_reset(
            &Histogram {
                reset_hint: ResetHint::NotReset,
                ..histogram(&[1.0])
            },
            &before
        ));
        assert!(is_reset(
            &Histogram {
                reset_hint: ResetHint::Reset,
                ..histogram(&[9.0])
            },
            &before
        ));
    }
}
