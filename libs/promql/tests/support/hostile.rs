//! Much data that is made as it is decoded, and queries that make the most of it.

use std::sync::Arc;

use async_trait::async_trait;
use koios_model::{Histogram, Labels, Span, TimeRange};
use koios_promql::{
    Columns, Completeness, QueryError, Queryable, SelectRequest, Series, SeriesData, SeriesStream, stream_of,
};

/// Floats `m{i,j}` of 200 series, histograms `h{i}` of 4 series with 200 buckets each, one long series `long`, a
/// classic histogram `c_bucket{le}`, and `nothing_lately`, which ended early; a sample every second for twenty minutes.
#[derive(Debug, Default)]
pub(crate) struct Hostile;

pub(crate) const SAMPLES: i64 = 1_200;
const LONG_SAMPLES: i64 = (1 << 20) + 1;

/// Queries on [`Hostile`] that hold or do as much as they can.
pub(crate) const QUERIES: &[&str] = &[
    "m",
    "m[20m]",
    "h",
    "h[20m]",
    "long[2h]",
    "sum by (i) (m)",
    "sum(h)",
    "avg by (i) (h)",
    "stddev by (i, j) (m)",
    "count_values(\"v\", m)",
    "count_values without () (\"v\", rate(m[1m]))",
    "count_values(\"v\", h)",
    "topk(1000000, m)",
    "bottomk by (i) (3, m)",
    "limitk(100000, m)",
    "limit_ratio(0.9, m)",
    "quantile by (i) (0.5, m)",
    "quantile_over_time(0.5, m[20s])",
    "mad_over_time(long[2h] @ 1000)",
    "sum_over_time(long[2h] @ 1000)",
    "rate(long[2h] @ 1000)",
    "m or m + 1 or m + 2 or m + 3 or m + 4 or m + 5",
    "m and on (i) m",
    "m unless on (j) h",
    "m * on (i) group_left () sum by (i) (m)",
    "m + on (i, j) group_left (x) label_replace(m, \"x\", \"$1$1$1$1$1$1$1$1\", \"pad\", \"(.*)\")",
    "m + on (i, j) fill (0) m",
    "h + h",
    "h * 2",
    "2 * h / 3",
    "-h",
    "rate(h[1m])",
    "sum_over_time(h[30s])",
    "avg_over_time(h[10s])",
    "last_over_time(h[1m])",
    "h smoothed",
    "rate(h[1m] smoothed)",
    "sum_over_time(h[20s:1s])",
    "histogram_quantile(0.9, h)",
    "histogram_quantile(0.9, rate(c_bucket[1m]))",
    "histogram_quantiles(h, \"q\", scalar(m{i=\"1\", j=\"1\"}))",
    "histogram_stddev(h)",
    "max_over_time(m[20m:1s])",
    "max_over_time(max_over_time(m[1m:1s])[20m:1s])",
    "max_over_time(vector(1)[10h:10ms])",
    "max_over_time(vector(time() + time() * time())[10h:10ms])",
    "absent(m) or absent_over_time(m[1s])",
    "sort_desc(m)",
    "sort_by_label(m, \"j\", \"i\")",
    "clamp(m, -1, scalar(m{i=\"0\", j=\"0\"}))",
    "timestamp(m) + timestamp(m + 0)",
    "m @ 100 + m @ 200",
    "h @ 100",
    "vector(time()) + on () group_right () m",
    "info(m, {__name__=\"m\"})",
    "label_join(m, \"x\", \"--------\", \"pad\", \"pad\", \"pad\", \"pad\", \"pad\", \"pad\", \"pad\", \"pad\")",
    "label_replace(label_replace(label_replace(m, \"pad\", \"$1$1$1$1$1$1$1$1\", \"pad\", \"(.*)\"), \"pad\", \
     \"$1$1$1$1$1$1$1$1\", \"pad\", \"(.*)\"), \"pad\", \"$1$1$1$1$1$1$1$1\", \"pad\", \"(.*)\")",
    "scalar(m) + m ^ scalar(m)",
    "exp(ln(abs(m)))",
];

/// Queries that take long, each in another part of the engine.
pub(crate) const HEAVY: &[&str] = &[
    "max_over_time(rate(long[5m])[3h:1ms])",
    "max_over_time(count_over_time(nothing_lately[5m])[3h:1ms])",
    "sum_over_time(vector(time())[3h:1ms])",
    "sum_over_time((vector(time()) * 0.1)[3h:1ms])",
    "stddev_over_time(vector(time())[3h:1ms])",
    "mad_over_time(vector(time())[3h:1ms])",
    "quantile_over_time(0.5, (vector(time()) % 1000)[3h:1ms])",
    "quantile_over_time(0.5, (long % 997)[15m:1ms])",
    "last_over_time(stddev(vector(time()))[3h:1ms])",
    "last_over_time(count_values(\"v\", vector(time() % 1000))[1h:1ms])",
    "last_over_time(histogram_quantile(time(), vector(1))[3h:1ms])",
    "last_over_time(topk(1, vector(time()))[3h:1ms])",
    "last_over_time((vector(time()) + vector(time()))[3h:1ms])",
    "last_over_time((vector(time()) or vector(time() + 1))[3h:1ms])",
    "absent_over_time((vector(time()) < 0)[3h:1ms])",
    "sum_over_time(sum(h)[15m:1s])",
    "rate(h[15m])",
    "avg_over_time(h[15m])",
    "sum(rate(h[15m]))",
    "histogram_quantiles(h, \"q\", time() / 1e7)",
    "deriv(vector(time() % 7)[3h:1ms])",
    "sum by (pad) (max_over_time(m[15m:10ms]))",
    "label_replace(m, \"x\", \"$1$1$1$1\", \"pad\", \"(0*)(.*)\") or m",
    "count_values(\"v\", max_over_time(m[10m:10ms]))",
    "quantile by (i) (0.5, max_over_time(m[10m:10ms]))",
    "quantile_over_time(scalar(nothing), (long % 997)[15m:1ms])",
    "max_over_time(((m % 3) * on () group_left () (vector(time()) > 1e9))[10m:10ms])",
];

#[async_trait]
impl Queryable for Hostile {
    async fn select(&self, req: SelectRequest) -> Result<SeriesStream, QueryError> {
        let mut series = Vec::new();
        for (name, count) in [
            ("c_bucket", 40),
            ("h", 4),
            ("long", 1),
            ("m", 200),
            ("nothing_lately", 1),
        ] {
            let labels = (0..count).map(|n| (n, labels_of(name, n)));
            let wanted = labels.filter(|(_, labels)| req.matchers.matches(labels.as_ref()));
            series.extend(wanted.map(|(n, labels)| Series {
                labels,
                data: Box::new(Made { name, n }),
            }));
        }
        series.sort_by(|a, b| a.labels.cmp(&b.labels));
        Ok(stream_of(series, Completeness::Complete))
    }
}

fn labels_of(name: &str, n: i64) -> Labels {
    let bound = if n == 39 { "+Inf".to_owned() } else { n.to_string() };
    let mut labels = vec![("__name__", name.to_owned())];
    match name {
        "c_bucket" => labels.push(("le", bound)),
        "m" => {
            labels.push(("i", (n % 50).to_string()));
            labels.push(("j", (n / 50).to_string()));
            labels.push(("pad", format!("{n:0>100}")));
        }
        _ => labels.push(("i", n.to_string())),
    }
    Labels::from_pairs(labels)
}

#[derive(Debug)]
struct Made {
    name: &'static str,
    n: i64,
}

impl Made {
    /// The times of the samples in a closed range.
    fn times(&self, range: TimeRange) -> impl ExactSizeIterator<Item = i64> {
        let (interval, count) = match self.name {
            "long" => (1, LONG_SAMPLES),
            "nothing_lately" => (1_000, 1),
            _ => (1_000, SAMPLES),
        };
        let first = range.min.clamp(0, count * interval).div_ceil_to(interval);
        let last = (range.max.clamp(-1, count * interval - 1)).div_euclid(interval);
        let many = usize::try_from(last - first + 1).unwrap_or(0);
        (0..many).map(move |i| (first + i as i64) * interval)
    }
}

trait DivCeil {
    fn div_ceil_to(self, by: i64) -> i64;
}

impl DivCeil for i64 {
    fn div_ceil_to(self, by: i64) -> i64 {
        (self + by - 1).div_euclid(by)
    }
}

const BUCKETS: u32 = 200;

impl SeriesData for Made {
    fn decode(&self, range: TimeRange, out: &mut Columns) -> Result<(), QueryError> {
        for t in self.times(range) {
            if self.name == "h" {
                let h = Histogram {
                    schema: 8,
                    count: f64::from(BUCKETS),
                    sum: 1.0,
                    positive_spans: vec![Span {
                        offset: self.n as i32,
                        length: BUCKETS,
                    }],
                    positive_buckets: vec![1.0 + (t / 1_000) as f64; BUCKETS as usize],
                    ..Histogram::default()
                };
                out.push_histogram(t, Arc::new(h));
            } else {
                out.push_float(t, (t * 7 + self.n * 13) as f64 * 0.1);
            }
        }
        Ok(())
    }

    fn encoded_bytes(&self) -> usize {
        0
    }

    fn decoded_bytes(&self, range: TimeRange) -> usize {
        let each = if self.name == "h" {
            24 + 200 + 8 * BUCKETS as usize
        } else {
            16
        };
        self.times(range).len() * each
    }
}
