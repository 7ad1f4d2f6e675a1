//! Native histograms as Prometheus writes them.
//!
//! **Source:** Prometheus `util/jsonutil` `MarshalHistogram`.

use koios_model::Histogram;
use koios_promql::histogram::{Bucket, buckets};

use super::json::{write_array, write_integer, write_value};

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
            write_integer(out, boundaries(&b));
            for v in [b.lower, b.upper, b.count] {
                out.push(b',');
                write_value(out, v);
            }
            out.push(b']');
        });
    }
    out.push(b'}');
}

/// Which of its bounds belong to a bucket. 0: the upper, 1: the lower, 2: none, 3: both.
fn boundaries(bucket: &Bucket) -> i64 {
    match (bucket.lower_inclusive, bucket.upper_inclusive) {
        (false, true) => 0,
        (true, false) => 1,
        (false, false) => 2,
        (true, true) => 3,
    }
}

#[cfg(test)]
mod tests {
    use koios_model::Span;

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
    fn bounds_between_powers_of_two_are_those_of_prometheus_to_the_last_bit() {
        let h = Histogram {
            schema: 1,
            count: 1.0,
            positive_spans: vec![Span {
                offset: -2,
                length: 1,
            }],
            positive_buckets: vec![1.0],
            ..Histogram::default()
        };
        assert_eq!(
            text(&h),
            r#"{"count":"1","sum":"0","buckets":[[0,"0.35355339059327373","0.5","1"]]}"#
        );
    }

    #[test]
    fn custom_bounds_end_at_infinity() {
        let h = Histogram {
            schema: -53,
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
}
