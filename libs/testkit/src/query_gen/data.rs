//! Seeded samples for queries to find.
//!
//! Values are whole numbers or quarters wherever that is no loss, so that sums of them are exact whatever the order and
//! however an engine rounds: what then differs is no matter of rounding.

use std::sync::Arc;

use koios_model::{Histogram, Labels, ResetHint, Span, stale_nan};
use koios_promql::SampleValue;

use crate::random::Random;

/// Where the samples start, milliseconds; on a whole hour.
pub const START_MS: i64 = 1_700_002_800_000;
/// How long they go on, milliseconds.
pub const SPAN_MS: i64 = 2 * 3_600_000;
const INTERVAL_MS: i64 = 15_000;
/// No sample lies on a whole second, nor where queries are evaluated, so that none lies on the edge of a range.
const SAMPLE_OFFSET_MS: i64 = 7;
const JOBS: [&str; 3] = ["api", "db", "web"];
const INSTANCES: [&str; 2] = ["a", "b"];
const BOUNDS: [&str; 7] = ["0.1", "0.5", "1", "2.5", "1e1", "25", "+Inf"];

/// A series as it is sent: its labels may have empty values, which stores leave out.
#[derive(Clone, Debug)]
pub struct SentSeries {
    /// Names and values.
    pub labels: Vec<(String, String)>,
    /// Times in milliseconds, ascending, and values.
    pub samples: Vec<(i64, SampleValue)>,
}

impl SentSeries {
    fn new(labels: &[(&str, &str)], samples: impl IntoIterator<Item = (i64, f64)>) -> Self {
        Self {
            labels: owned(labels),
            samples: samples
                .into_iter()
                .map(|(t, v)| (t, SampleValue::Float(v)))
                .collect(),
        }
    }

    /// The labels as they are stored.
    pub fn stored_labels(&self) -> Labels {
        Labels::from_pairs(self.labels.iter().filter(|(_, v)| !v.is_empty()).cloned())
    }
}

fn owned(labels: &[(&str, &str)]) -> Vec<(String, String)> {
    let pair = |(n, v): &(&str, &str)| ((*n).to_owned(), (*v).to_owned());
    labels.iter().map(pair).collect()
}

fn times() -> impl Iterator<Item = i64> {
    (0..SPAN_MS / INTERVAL_MS).map(|i| START_MS + i * INTERVAL_MS + SAMPLE_OFFSET_MS)
}

/// Counters with resets, gauges, classic histograms, series to join with, equal labels under different names, special
/// values and special labels; with gaps and stale markers.
pub fn floats(seed: u64) -> Vec<SentSeries> {
    let mut random = Random::new(seed);
    let mut series = Vec::new();
    for job in JOBS {
        for instance in INSTANCES {
            for name in ["reqs_total", "errs_total", "mem", "temp", "level"] {
                let labels = [("__name__", name), ("job", job), ("instance", instance)];
                let values = values(&mut random, name);
                series.push(SentSeries::new(&labels, with_gaps(&mut random, values)));
            }
            series.extend(classic_histogram(&mut random, job, instance));
            let info = [
                ("__name__", "build_info"),
                ("job", job),
                ("instance", instance),
                ("version", random.pick(&["1.0", "1.1", ""])),
            ];
            series.push(SentSeries::new(&info, times().map(|t| (t, 1.0))));
        }
    }
    for (job, tier, value) in [("api", "gold", 100.0), ("db", "tin", 5.5)] {
        let labels = [("__name__", "quota"), ("job", job), ("tier", tier)];
        series.push(SentSeries::new(&labels, times().map(|t| (t, value))));
    }
    // A name with colons, and labels named like keywords.
    let keywords = [
        ("__name__", "app:temp:avg5m"),
        ("job", "api"),
        ("by", "x"),
        ("on", "y"),
        ("offset", "z"),
    ];
    series.push(SentSeries::new(&keywords, times().map(|t| (t, 0.25))));
    series.extend(special_labels(&mut random));
    series.extend(special_values(&mut random));
    series
}

fn values(random: &mut Random, name: &str) -> Vec<(i64, f64)> {
    // Most counters are far from zero, towards which engines extrapolate differently; a reset brings some near it.
    let mut value: f64 = 1e6;
    let whole = |random: &mut Random, n| random.index(n) as f64;
    times()
        .map(|t| {
            value = match name {
                "mem" => value + (whole(random, 8_000) - 4_000.0) / 4.0,
                "temp" => whole(random, 200) / 4.0 - 10.0,
                "level" => whole(random, 4) - 1.0,
                _ if random.index(80) == 0 => random.pick(&[1e5, 2e5, 0.0]),
                _ => value + whole(random, 12),
            };
            (t, value)
        })
        .collect()
}

/// Leaves samples out; some gaps begin with a stale marker.
fn with_gaps(random: &mut Random, values: Vec<(i64, f64)>) -> Vec<(i64, f64)> {
    let (mut skip, mut kept) = (0, Vec::with_capacity(values.len()));
    for (t, v) in values {
        if skip > 0 {
            skip -= 1;
            continue;
        }
        if random.index(50) == 0 {
            skip = random.index(40);
            if random.percent(50) {
                kept.push((t, stale_nan()));
                continue;
            }
        }
        kept.push((t, v));
    }
    kept
}

fn classic_histogram(random: &mut Random, job: &str, instance: &str) -> Vec<SentSeries> {
    let labels = |name, le| {
        let labels = [
            ("__name__", name),
            ("job", job),
            ("instance", instance),
            ("le", le),
        ];
        SentSeries::new(&labels, [])
    };
    let mut buckets: Vec<SentSeries> = BOUNDS.iter().map(|le| labels("lat_bucket", le)).collect();
    let (mut sum, mut count) = (labels("lat_sum", ""), labels("lat_count", ""));
    let mut counts = [1e5, 2e5, 3e5, 4e5, 5e5, 6e5, 6e5];
    let mut total = 1e5;
    for t in times() {
        if random.index(200) == 0 {
            (counts, total) = ([0.0; 7], 0.0);
        }
        for _ in 0..random.index(5) {
            let bucket = random.index(BOUNDS.len());
            counts.iter_mut().skip(bucket).for_each(|count| *count += 1.0);
            total += bucket as f64 / 4.0;
        }
        for (series, count) in buckets.iter_mut().zip(counts) {
            series.samples.push((t, SampleValue::Float(count)));
        }
        sum.samples.push((t, SampleValue::Float(total)));
        count.samples.push((t, SampleValue::Float(counts[6])));
    }
    buckets.extend([sum, count]);
    buckets
}

fn special_labels(random: &mut Random) -> Vec<SentSeries> {
    let paths = ["", "/", "äöü–€ 漢", "a\"b\\c", "line\nbreak", " ", "{x=\"y\"}"];
    paths
        .iter()
        .map(|path| {
            let labels = [("__name__", "odd"), ("job", "api"), ("path", path)];
            let value = random.index(10) as f64;
            SentSeries::new(&labels, times().map(|t| (t, value)))
        })
        .collect()
}

/// Series that hold what arithmetic treats specially, each a few at random and one throughout.
fn special_values(random: &mut Random) -> Vec<SentSeries> {
    let specials = [
        ("nan", f64::NAN),
        ("inf", f64::INFINITY),
        ("ninf", f64::NEG_INFINITY),
        ("zero", -0.0),
        ("huge", 1.7e308),
        ("tiny", 5e-324),
    ];
    let mut series = Vec::new();
    for (kind, special) in specials {
        for (instance, share) in [("a", 100), ("b", 15)] {
            let labels = [
                ("__name__", "special"),
                ("job", "db"),
                ("instance", instance),
                ("kind", kind),
            ];
            let samples: Vec<(i64, f64)> = times()
                .map(|t| {
                    let plain = random.index(16) as f64 - 4.0;
                    (t, if random.percent(share) { special } else { plain })
                })
                .collect();
            series.push(SentSeries::new(&labels, samples));
        }
    }
    series
}

/// Native histograms: counters with resets, gaps and changes of resolution, some with negative buckets; and floats.
pub fn histograms(seed: u64) -> Vec<SentSeries> {
    let mut random = Random::new(seed);
    let mut series = Vec::new();
    for job in JOBS {
        for instance in INSTANCES {
            let labels = owned(&[("__name__", "nh"), ("job", job), ("instance", instance)]);
            let samples = native_histogram(&mut random, instance == "b");
            series.push(SentSeries { labels, samples });
        }
        let labels = owned(&[("__name__", "flt"), ("job", job)]);
        let value = |t| (t, SampleValue::Float(random.index(100) as f64));
        let samples = times().map(value).collect();
        series.push(SentSeries { labels, samples });
    }
    series
}

/// Positive and negative buckets, counted up; the resolution and the width of the zero bucket change with a reset.
fn native_histogram(random: &mut Random, negative: bool) -> Vec<(i64, SampleValue)> {
    const BUCKETS: usize = 6;
    let (mut counts, mut below, mut zero, mut sum) = ([1e4; BUCKETS], [1e3; BUCKETS], 1e4, 1e6);
    let (mut schema, mut zero_threshold) = (1, 0.001);
    let (mut skip, mut samples) = (0, Vec::new());
    for t in times() {
        if random.index(150) == 0 {
            (counts, below, zero, sum) = ([0.0; BUCKETS], [0.0; BUCKETS], 0.0, 0.0);
            schema = random.pick(&[0, 1, 2, 3]);
            zero_threshold = random.pick(&[0.001, 0.125]);
        }
        for _ in 0..1 + random.index(6) {
            let bucket = random.index(BUCKETS + 1);
            match counts.get_mut(bucket) {
                Some(count) => *count += 1.0,
                None => zero += 1.0,
            }
            sum += bucket as f64 / 4.0;
            if let Some(count) = below.get_mut(random.index(BUCKETS)) {
                *count += 1.0;
            }
        }
        if skip > 0 {
            skip -= 1;
            continue;
        }
        if random.index(60) == 0 {
            skip = random.index(20);
        }
        let spans = vec![
            Span {
                offset: -2,
                length: 2,
            },
            Span { offset: 1, length: 4 },
        ];
        let (negative_spans, negative_buckets) = if negative {
            (spans.clone(), below.to_vec())
        } else {
            (Vec::new(), Vec::new())
        };
        let histogram = Histogram {
            reset_hint: ResetHint::Unknown,
            schema,
            zero_threshold,
            zero_count: zero,
            count: zero + counts.iter().chain(&negative_buckets).sum::<f64>(),
            sum,
            positive_spans: spans,
            positive_buckets: counts.to_vec(),
            negative_spans,
            negative_buckets,
            ..Histogram::default()
        };
        samples.push((t, SampleValue::Histogram(Arc::new(histogram))));
    }
    samples
}
