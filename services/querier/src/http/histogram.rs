//! Native histograms as Prometheus writes them.
//!
//! **Source:** Prometheus `util/jsonutil` `MarshalHistogram`, `model/histogram` `AllBucketIterator`.

use koios_model::{Histogram, Span};

use super::json::{write_array, write_integer, write_value};

/// The schema of custom bounds.
const CUSTOM_SCHEMA: i32 = -53;

/// One bucket: its bounds, what of them belongs to it, and its count.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Bucket {
    /// 0: open left, 1: open right, 2: open, 3: closed.
    boundaries: i64,
    lower: f64,
    upper: f64,
    count: f64,
}

/// Appends a histogram; empty buckets are left out.
pub(crate) fn write_histogram(out: &mut Vec<u8>, h: &Histogram) {
    out.extend_from_slice(br#"{"count":"#);
    write_value(out, h.count);
    out.extend_from_slice(br#","sum":"#);
    write_value(out, h.sum);
    let buckets: Vec<Bucket> = buckets(h).into_iter().filter(|b| b.count != 0.0).collect();
    if !buckets.is_empty() {
        out.extend_from_slice(br#","buckets":"#);
        write_array(out, buckets, |out, b| {
            out.push(b'[');
            write_integer(out, b.boundaries);
            for v in [b.lower, b.upper, b.count] {
                out.push(b',');
                write_value(out, v);
            }
            out.push(b']');
        });
    }
    out.push(b'}');
}

/// All buckets by ascending bounds.
fn buckets(h: &Histogram) -> Vec<Bucket> {
    if h.schema == CUSTOM_SCHEMA {
        return custom_buckets(h);
    }
    let negative = indexed(&h.negative_spans, &h.negative_buckets).map(|(index, count)| Bucket {
        boundaries: 1,
        lower: -bound(index, h.schema),
        upper: -bound(index - 1, h.schema),
        count,
    });
    let mut all: Vec<Bucket> = negative.collect();
    all.reverse();
    all.push(Bucket {
        boundaries: 3,
        lower: -h.zero_threshold,
        upper: h.zero_threshold,
        count: h.zero_count,
    });
    all.extend(
        indexed(&h.positive_spans, &h.positive_buckets).map(|(index, count)| Bucket {
            boundaries: 0,
            lower: bound(index - 1, h.schema),
            upper: bound(index, h.schema),
            count,
        }),
    );
    all
}

fn custom_buckets(h: &Histogram) -> Vec<Bucket> {
    let bound = |index: i64| {
        usize::try_from(index)
            .ok()
            .and_then(|i| h.custom_bounds.get(i))
            .copied()
    };
    let bucket = |(index, count): (i64, f64)| Bucket {
        boundaries: if index == 0 { 3 } else { 0 },
        lower: bound(index - 1).unwrap_or(f64::NEG_INFINITY),
        upper: bound(index).unwrap_or(f64::INFINITY),
        count,
    };
    indexed(&h.positive_spans, &h.positive_buckets)
        .map(bucket)
        .collect()
}

/// Counts with the index of their bucket.
fn indexed<'a>(spans: &'a [Span], counts: &'a [f64]) -> impl Iterator<Item = (i64, f64)> + 'a {
    let mut next = 0_i64;
    let indexes = spans.iter().flat_map(move |span| {
        let first = next + i64::from(span.offset);
        next = first + i64::from(span.length);
        first..next
    });
    indexes.zip(counts.iter().copied())
}

/// The upper bound of an exponential bucket: 2^(index / 2^schema).
fn bound(index: i64, schema: i32) -> f64 {
    if schema <= 0 {
        let shift = schema.unsigned_abs().min(32);
        return power_of_two(index.saturating_mul(1 << shift));
    }
    let shift = schema.min(32);
    let whole = index >> shift;
    let part = index - (whole << shift);
    let fraction = (part as f64 / (1_i64 << shift) as f64).exp2();
    // Just above the largest float lies the bound of the last bucket that finite values fall into.
    if whole >= 1024 && part == 0 && whole == 1024 {
        f64::MAX
    } else {
        fraction * power_of_two(whole)
    }
}

fn power_of_two(exponent: i64) -> f64 {
    if exponent == 1024 {
        return f64::MAX;
    }
    2_f64.powi(i32::try_from(exponent.clamp(-2000, 2000)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(h: &Histogram) -> String {
        let mut out = Vec::new();
        write_histogram(&mut out, h);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn buckets_ascend_and_empty_ones_are_left_out() {
        let h = Histogram {
            schema: 0,
            count: 12.0,
            sum: 3.5,
            zero_threshold: 0.001,
            zero_count: 2.0,
            positive_spans: vec![Span { offset: 0, length: 2 }, Span { offset: 1, length: 1 }],
            positive_buckets: vec![1.0, 0.0, 4.0],
            negative_spans: vec![Span { offset: 1, length: 2 }],
            negative_buckets: vec![2.0, 3.0],
            ..Histogram::default()
        };
        assert_eq!(
            text(&h),
            concat!(
                r#"{"count":"12","sum":"3.5","buckets":[[1,"-4","-2","3"],[1,"-2","-1","2"],"#,
                r#"[3,"-0.001","0.001","2"],[0,"0.5","1","1"],[0,"4","8","4"]]}"#
            )
        );
    }

    #[test]
    fn custom_bounds_end_at_infinity() {
        let h = Histogram {
            schema: CUSTOM_SCHEMA,
            count: 3.0,
            sum: 1.0,
            custom_bounds: vec![0.5, 1.0],
            positive_spans: vec![Span { offset: 0, length: 3 }],
            positive_buckets: vec![1.0, 1.0, 1.0],
            ..Histogram::default()
        };
        assert_eq!(
            text(&h),
            concat!(
                r#"{"count":"3","sum":"1","buckets":[[3,"-Inf","0.5","1"],[0,"0.5","1","1"],"#,
                r#"[0,"1","+Inf","1"]]}"#
            )
        );
        assert_eq!(text(&Histogram::default()), r#"{"count":"0","sum":"0"}"#);
    }

    #[test]
    fn i12_bounds_of_any_index_are_numbers() {
        for schema in -9..=9 {
            for index in [i64::from(i32::MIN), -1, 0, 1, 7, i64::from(i32::MAX)] {
                assert!(!bound(index, schema).is_nan());
            }
        }
        assert_eq!((bound(1, 1) * 1e9).round(), 1_414_213_562.0);
        assert_eq!(bound(-3, -1), 1.0 / 64.0);
    }
}
