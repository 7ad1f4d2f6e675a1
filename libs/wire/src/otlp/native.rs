//! Native histograms from OTLP's buckets.
//!
//! **Source**: Prometheus `storage/remote/otlptranslator/prometheusremotewrite/histograms.go`; `Histogram.Validate`.

use koios_model::{CUSTOM_BOUNDS_SCHEMA, Histogram, spans_of};

use super::PointFault;
use super::point::{Explicit, Exponential, Side};
use crate::remote_write::HistogramFault;

/// Finest and coarsest resolution of a native histogram.
const SCHEMA_MAX: i32 = 8;
const SCHEMA_MIN: i32 = -4;
/// What Prometheus takes for the width of the zero bucket, whatever was sent.
const ZERO_THRESHOLD: f64 = 1e-128;

/// An exponential histogram; finer ones are made coarser.
pub(super) fn exponential(from: &Exponential) -> Result<Result<Histogram, HistogramFault>, PointFault> {
    if from.scale < SCHEMA_MIN {
        return Err(PointFault::Scale { scale: from.scale });
    }
    let schema = from.scale.min(SCHEMA_MAX);
    let coarser = from.scale - schema;
    let buckets = |side: &Side| -> Result<Vec<(i32, u64)>, PointFault> {
        let mut out: Vec<(i32, u64)> = Vec::new();
        for (index, count) in indexed(side, coarser) {
            // OTLP's bucket 0 begins where Prometheus' bucket 0 ends.
            let index = i32::try_from(index + 1).map_err(|_| PointFault::BucketIndex)?;
            match out.last_mut() {
                Some(last) if last.0 == index => last.1 = last.1.saturating_add(count),
                _ => out.push((index, count)),
            }
        }
        Ok(out)
    };
    let (positive, negative) = (buckets(&from.positive)?, buckets(&from.negative)?);
    let total = in_buckets(&positive) + in_buckets(&negative) + u128::from(from.zero_count);
    let sum = from.sum.unwrap_or(0.0);
    if let Err(fault) = check_count(total, from.count, sum) {
        return Ok(Err(fault));
    }
    let (positive_spans, positive_buckets) = spans_of(as_floats(positive));
    let (negative_spans, negative_buckets) = spans_of(as_floats(negative));
    let mut histogram = Histogram {
        schema,
        zero_threshold: ZERO_THRESHOLD,
        zero_count: from.zero_count as f64,
        count: from.count as f64,
        sum,
        positive_spans,
        negative_spans,
        positive_buckets,
        negative_buckets,
        ..Histogram::default()
    };
    histogram.make_canonical();
    Ok(Ok(histogram))
}

/// Buckets that hold something, by index after merging `2^coarser` into one.
pub(super) fn indexed(side: &Side, coarser: i32) -> impl Iterator<Item = (i64, u64)> + '_ {
    let shift = coarser.clamp(0, 62);
    let indices = (i64::from(side.offset)..).map(move |index| index >> shift);
    let filled = indices.zip(side.counts.iter().copied());
    filled.filter(|(_, count)| *count != 0)
}

/// An explicit histogram as one with custom buckets.
pub(super) fn custom(from: &Explicit) -> Result<Histogram, HistogramFault> {
    let mut last = f64::NEG_INFINITY;
    for (i, &value) in from.bounds.iter().enumerate() {
        // Also false for NaN; +Inf is implied.
        let ascends = (i == 0 && !value.is_nan()) || value > last;
        if !ascends || value == f64::INFINITY {
            return Err(HistogramFault::CustomBounds { bound: i + 1, value });
        }
        last = value;
    }
    if from.counts.len() > from.bounds.len() + 1 {
        return Err(HistogramFault::CustomSpan {
            reach: i64::try_from(from.counts.len()).unwrap_or(i64::MAX),
            bounds: from.bounds.len(),
        });
    }
    let buckets = from.counts.iter().zip(0i32..);
    let buckets: Vec<(i32, u64)> = buckets.map(|(count, index)| (index, *count)).collect();
    let sum = from.sum.unwrap_or(0.0);
    check_count(in_buckets(&buckets), from.count, sum)?;
    let (positive_spans, positive_buckets) = spans_of(as_floats(buckets));
    let mut histogram = Histogram {
        schema: CUSTOM_BOUNDS_SCHEMA,
        count: from.count as f64,
        sum,
        positive_spans,
        positive_buckets,
        custom_bounds: from.bounds.clone(),
        ..Histogram::default()
    };
    histogram.make_canonical();
    Ok(histogram)
}

fn in_buckets(buckets: &[(i32, u64)]) -> u128 {
    buckets.iter().map(|(_, count)| u128::from(*count)).sum()
}

fn as_floats(buckets: Vec<(i32, u64)>) -> impl Iterator<Item = (i32, f64)> {
    let filled = buckets.into_iter().filter(|(_, count)| *count != 0);
    filled.map(|(index, count)| (index, count as f64))
}

/// Observations of NaN are in the count and in no bucket.
fn check_count(buckets: u128, count: u64, sum: f64) -> Result<(), HistogramFault> {
    let count_wide = u128::from(count);
    if buckets == count_wide || (sum.is_nan() && buckets <= count_wide) {
        return Ok(());
    }
    Err(HistogramFault::Count {
        buckets: buckets as f64,
        count: count as f64,
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn point(scale: i32, offset: i32, counts: &[u64]) -> Exponential {
        Exponential {
            count: counts.iter().sum(),
            sum: Some(1.5),
            scale,
            positive: Side {
                offset,
                counts: counts.to_vec(),
            },
            ..Exponential::default()
        }
    }

    fn buckets(from: &Exponential) -> (i32, Vec<(i32, f64)>) {
        let histogram = exponential(from).unwrap().unwrap();
        (histogram.schema, histogram.positive().collect())
    }

    #[rstest]
    #[case::shifted_by_one(0, 0, &[4, 3, 2, 1], (0, vec![(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)]))]
    #[case::negative_offset(0, -5, &[4, 0, 0, 0, 1], (0, vec![(-4, 4.0), (0, 1.0)]))]
    #[case::coarser_by_two(9, 0, &[4, 3, 2, 1], (8, vec![(1, 7.0), (2, 3.0)]))]
    #[case::coarser_from_an_odd_offset(9, -1, &[4, 3, 2, 1], (8, vec![(0, 4.0), (1, 5.0), (2, 1.0)]))]
    #[case::coarser_by_four(10, 4, &[4, 0, 3, 0, 1], (8, vec![(2, 7.0), (3, 1.0)]))]
    #[case::coarsest(-4, 2, &[1], (-4, vec![(3, 1.0)]))]
    #[case::all_in_one(i32::MAX, 7, &[1, 1], (8, vec![(1, 2.0)]))]
    #[case::none(3, 7, &[], (3, vec![]))]
    fn buckets_are_those_of_prometheus(
        #[case] scale: i32,
        #[case] offset: i32,
        #[case] counts: &[u64],
        #[case] wanted: (i32, Vec<(i32, f64)>),
    ) {
        assert_eq!(buckets(&point(scale, offset, counts)), wanted);
    }

    #[test]
    fn what_no_native_histogram_can_hold_is_refused() {
        let fault = exponential(&point(-5, 0, &[1])).unwrap_err();
        assert_eq!(fault, PointFault::Scale { scale: -5 });
        let fault = exponential(&point(0, i32::MAX, &[1])).unwrap_err();
        assert_eq!(fault, PointFault::BucketIndex);
        let mut more = point(0, 0, &[1]);
        more.count = 2;
        let fault = exponential(&more).unwrap().unwrap_err();
        assert!(matches!(fault, HistogramFault::Count { .. }));
        more.sum = Some(f64::NAN);
        assert!(exponential(&more).unwrap().is_ok());
    }

    #[test]
    fn explicit_bounds_are_kept() {
        let from = Explicit {
            count: 6,
            sum: Some(20.0),
            counts: vec![0, 2, 0, 4],
            bounds: vec![1.0, 2.0, 5.0],
        };
        let histogram = custom(&from).unwrap();
        assert_eq!(histogram.schema, -53);
        assert_eq!(histogram.custom_bounds, [1.0, 2.0, 5.0]);
        assert_eq!(histogram.positive().collect::<Vec<_>>(), [(1, 2.0), (3, 4.0)]);
        for (bounds, counts) in [
            (vec![1.0, 1.0, 5.0], vec![6]),
            (vec![f64::NAN], vec![6]),
            (vec![1.0, f64::INFINITY], vec![6]),
            (vec![1.0], vec![2, 2, 2]),
            (vec![1.0], vec![2, 2]),
        ] {
            let bad = Explicit {
                bounds,
                counts,
                ..from.clone()
            };
            assert!(custom(&bad).is_err(), "{bad:?}");
        }
    }
}
