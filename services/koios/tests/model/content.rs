//! What is sent: floats, native histograms, start timestamps and exemplars.

use std::sync::Arc;

use koios_model::{
    BatchColumns, CUSTOM_BOUNDS_SCHEMA, Exemplar, Histogram, Labels, SeriesHash, TenantSeed, spans_of,
};

use crate::held::{Found, Held};
use crate::world::{HOUR, MINUTE, T0};

/// Samples of a metric in an hour.
const SAMPLES: i64 = 3;

/// A sample and what comes with it.
#[derive(Clone, Debug)]
struct Sent {
    t: i64,
    value: Held,
    /// 0 for none.
    start: i64,
    exemplar: Option<Exemplar>,
}

/// What is sent of a series together.
type OfSeries = (Labels, Vec<Sent>);

/// Three metrics of an hour of the day, in a variant of their values: the largest wins. Of what is rich the first has start timestamps,
/// the second exemplars, and the third histograms, but for one time, of which the last variant has a float.
fn content(hour: i64, variant: u32, is_rich: bool) -> [OfSeries; 3] {
    let sent = |metric: u32, i: i64| {
        let t = T0 + hour * HOUR + i * 20 * MINUTE;
        let v = f64::from(variant * 1000 + metric * 10) + i as f64 + hour as f64 / 64.0;
        let is_float = !is_rich || metric < 2 || variant == 2 && i == 1;
        let start = T0 - HOUR + i64::from(variant);
        Sent {
            t,
            value: match is_float {
                true => Held::Float(v),
                false => Held::Histogram(Arc::new(histogram(v, i == 2))),
            },
            start: if is_rich && metric != 1 && variant > 0 {
                start
            } else {
                0
            },
            exemplar: (is_rich && metric == 1 && i == 1).then(|| Exemplar {
                t: t + 1,
                v,
                labels: Labels::from_pairs([("trace_id", format!("{hour}-{variant}"))]),
            }),
        }
    };
    [0, 1, 2].map(|metric| {
        let labels = Labels::from_pairs([("__name__", format!("m{metric}")), ("job", "model".to_owned())]);
        (labels, (0..SAMPLES).map(|i| sent(metric, i)).collect())
    })
}

/// A histogram that a number tells from others, with bounds of its own or not.
fn histogram(v: f64, has_bounds: bool) -> Histogram {
    let bucket = |at: i32| (at, 1.0 + (v.round() as i64 % (i64::from(at) + 5)).abs() as f64);
    let buckets = if has_bounds { [0, 1, 3] } else { [-3, 2, 4] };
    let (positive_spans, positive_buckets) = spans_of(buckets.map(bucket));
    let mut histogram = Histogram {
        schema: if has_bounds { CUSTOM_BOUNDS_SCHEMA } else { 3 },
        sum: v,
        positive_spans,
        positive_buckets,
        ..Histogram::default()
    };
    if has_bounds {
        histogram.custom_bounds = vec![0.5, 1.0, 2.5, 10.0];
    } else {
        (histogram.negative_spans, histogram.negative_buckets) = spans_of([bucket(1)]);
        (histogram.zero_threshold, histogram.zero_count) = (0.001, 2.0);
    }
    let counts = histogram
        .positive_buckets
        .iter()
        .chain(&histogram.negative_buckets);
    histogram.count = counts.sum::<f64>() + histogram.zero_count;
    histogram.make_canonical();
    histogram
}

/// The same as a batch.
pub(crate) fn columns(seed: TenantSeed, hour: i64, variant: u32, is_rich: bool) -> BatchColumns {
    let mut columns = BatchColumns::default();
    for (labels, all) in content(hour, variant, is_rich) {
        columns.push_series(SeriesHash::new(seed, labels.as_ref()), labels.as_ref());
        for sent in all {
            match sent.value {
                Held::Float(v) => {
                    columns.push_sample(sent.t, v);
                    columns.set_last_start(sent.start);
                }
                Held::Histogram(h) => {
                    columns.push_started_histogram(sent.t, sent.start, Histogram::clone(&h));
                }
                Held::Start(_) | Held::There => {}
            }
            if let Some(exemplar) = sent.exemplar {
                columns.push_exemplar(exemplar);
            }
        }
    }
    columns
}

/// The same as it is to be found.
pub(crate) fn samples(hour: i64, variant: u32, is_rich: bool) -> Found {
    let mut found = Found::default();
    for (labels, all) in content(hour, variant, is_rich) {
        for sent in all {
            found.add_value(&labels, sent.t, sent.value);
            found.add_start(&labels, sent.t, sent.start);
            if let Some(exemplar) = sent.exemplar {
                found.add_exemplar(&labels, exemplar);
            }
        }
    }
    found
}
