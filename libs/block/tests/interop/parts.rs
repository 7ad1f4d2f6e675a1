//! All parts of a block, read by pyarrow as the tables they are.

use std::sync::Arc;

use koios_block::{BlockOptions, BlockParts, BlockWriter, RESOLUTION_1H_MS, SAMPLES_1H_PART, SeriesColumns};
use koios_model::summary::{Downsampled, downsample};
use koios_model::{CUSTOM_BOUNDS_SCHEMA, Exemplar, Histogram, Labels, Metadata, ResetHint, spans_of};
use serde_json::{Value, json};

use super::common::{options, tiny};
use super::read_by;

const MINUTE: i64 = 60_000;

/// The bits of a float, as scripts print them.
pub(crate) fn hex(v: f64) -> String {
    format!("{:016x}", v.to_bits())
}

/// Buckets of both signs, custom ones, and a stale marker.
fn histograms() -> Vec<(i64, Arc<Histogram>)> {
    let histogram = |k: i64| {
        let n = k as f64 / 3.0;
        let (positive_spans, positive_buckets) = spans_of([(-1, n), (3, 2.0)]);
        let (negative_spans, negative_buckets) = spans_of([(4, 1.0)]);
        let exponential = Histogram {
            schema: 3,
            count: n + 3.5,
            sum: -0.1 * n,
            zero_count: 0.5,
            zero_threshold: 0.001,
            positive_spans,
            positive_buckets,
            negative_spans,
            negative_buckets,
            ..Histogram::default()
        };
        match k {
            100..200 => exponential,
            200 => Histogram::stale(),
            _ => Histogram {
                reset_hint: ResetHint::Gauge,
                schema: CUSTOM_BOUNDS_SCHEMA,
                custom_bounds: vec![0.1, 2.5],
                count: n,
                sum: 7.0,
                positive_spans: spans_of([(1, n)]).0,
                positive_buckets: vec![n],
                ..Histogram::default()
            },
        }
    };
    (100..300).map(|k| (k * MINUTE, Arc::new(histogram(k)))).collect()
}

/// A series with all that one may have.
pub(crate) struct Whole {
    pub(crate) labels: Labels,
    pub(crate) metadata: Metadata,
    pub(crate) histograms: Vec<(i64, Arc<Histogram>)>,
    pub(crate) exemplars: Vec<Exemplar>,
    pub(crate) parts: BlockParts,
}

pub(crate) fn whole() -> Whole {
    let labels = Labels::from_pairs([("__name__", "up"), ("i", "ä")]);
    let metadata = Metadata {
        kind: "histogram".to_owned(),
        help: "How long \"it\" took".to_owned(),
        unit: "seconds".to_owned(),
    };
    let exemplar = |(t, labels): (i64, &[(&str, &str)])| Exemplar {
        t,
        v: t as f64 / 7.0,
        labels: Labels::from_pairs(labels.iter().copied()),
    };
    let exemplars: Vec<Exemplar> = [
        (1000, &[("trace_id", "abc")][..]),
        (2000, &[]),
        (3000, &[("span", "x"), ("trace_id", "ü")]),
    ]
    .map(exemplar)
    .into();
    let histograms = histograms();
    let mut writer = BlockWriter::new(BlockOptions {
        layout: tiny(),
        starts: true,
        ..options(1)
    })
    .unwrap();
    let columns = SeriesColumns {
        timestamps: &[MINUTE, 2 * MINUTE],
        values: &[1.0, 0.1],
        histograms: &histograms,
        starts: &[(2 * MINUTE, 5), (100 * MINUTE, 7)],
    };
    writer.push_columns(&labels, Some(&metadata), columns).unwrap();
    writer.push_exemplars(&labels, &exemplars).unwrap();
    let other = Labels::from_pairs([("__name__", "zz")]);
    writer.push_series(&other, None, &[MINUTE], &[2.0]).unwrap();
    writer.push_exemplars(&other, &exemplars).unwrap();
    Whole {
        labels,
        metadata,
        histograms,
        exemplars,
        parts: writer.finish().unwrap().unwrap(),
    }
}

/// What is kept of its histograms by hours: with sums, without, and with one that stands for none.
pub(crate) fn summed() -> (Labels, Downsampled) {
    let whole = whole();
    let mut kept = downsample(&[], &whole.histograms, RESOLUTION_1H_MS);
    let of_histograms = kept.summaries.iter_mut().filter(|s| s.histograms > 0);
    for (k, summary) in of_histograms.enumerate() {
        summary.histogram_sum = match k {
            0 => None,
            1 => Some(Arc::new(Histogram::stale())),
            k => Some(Arc::clone(&whole.histograms[if k == 3 { 150 } else { k }].1)),
        };
    }
    (whole.labels, kept)
}

pub(crate) fn summaries_of(all: &[(Labels, Downsampled)], resolution_ms: i64) -> BlockParts {
    let mut writer = BlockWriter::new(BlockOptions {
        layout: tiny(),
        resolution_ms,
        histogram_sums: true,
        ..options(2)
    })
    .unwrap();
    for (labels, kept) in all {
        writer.push_downsampled(labels, None, kept).unwrap();
    }
    writer.finish().unwrap().unwrap()
}

fn read(parts: &BlockParts) -> Value {
    serde_json::from_str(&read_by("read_parts.py", &[], parts)).unwrap()
}

/// A histogram as its columns.
fn columns_of(h: &Histogram) -> Value {
    let indices = |side: Vec<(i32, f64)>| side.into_iter().map(|b| b.0).collect::<Vec<_>>();
    let counts = |side: Vec<(i32, f64)>| side.into_iter().map(|b| hex(b.1)).collect::<Vec<_>>();
    json!({
        "reset_hint": if h.reset_hint == ResetHint::Gauge { 3 } else { 0 },
        "schema": h.schema,
        "sum": hex(h.sum),
        "count": hex(h.count),
        "zero_count": hex(h.zero_count),
        "zero_threshold": hex(h.zero_threshold),
        "positive": indices(h.positive().collect()),
        "positive_counts": counts(h.positive().collect()),
        "negative": indices(h.negative().collect()),
        "negative_counts": counts(h.negative().collect()),
        "custom_bounds": h.custom_bounds.iter().map(|b| hex(*b)).collect::<Vec<_>>(),
    })
}

#[test]
fn pyarrow_reads_all_parts_of_a_block_of_samples() {
    let whole = whole();
    let read = read(&whole.parts);
    let names: Vec<&str> = read.as_object().unwrap().keys().map(String::as_str).collect();
    let mut wanted: Vec<&str> = whole.parts.parts.iter().map(|(name, _)| name.as_str()).collect();
    wanted.sort_unstable();
    assert_eq!(names, wanted);
    let series = &read["series.parquet"][0];
    assert_eq!(
        json!([
            series["k_type"],
            series["k_unit"],
            series["k_help"],
            series["labels"],
            series["l_i"]
        ]),
        json!([
            "histogram",
            "seconds",
            whole.metadata.help,
            [["__name__", "up"], ["i", "ä"]],
            "ä"
        ])
    );
    assert_eq!(
        json!([
            series["k_histogram_first_row"],
            series["k_histogram_row_count"],
            series["k_count"]
        ]),
        json!([0, 200, 202])
    );
    // The newest first.
    let tick = &read["samples.parquet"][0];
    assert_eq!(
        json!([
            tick["series"],
            tick["mantissa"],
            tick["exponent"],
            tick["float"],
            tick["start_timestamp"]
        ]),
        json!([0, 1, 1, null, 5])
    );
    let last_row = series["k_times_last_row"].as_u64().unwrap() - tick["tick"].as_u64().unwrap();
    let at = &read["times.parquet"][usize::try_from(last_row).unwrap()];
    assert_eq!(at, &json!({"id": last_row, "timestamp": 2 * MINUTE}));
    for (row, (t, h)) in read["histograms.parquet"]
        .as_array()
        .unwrap()
        .iter()
        .zip(&whole.histograms)
    {
        let mut wanted = columns_of(h);
        wanted["series"] = json!(0);
        wanted["timestamp"] = json!(t);
        wanted["start_timestamp"] = if *t == 100 * MINUTE { json!(7) } else { json!(null) };
        assert_eq!(row, &wanted);
    }
    assert_eq!(read["histograms.parquet"].as_array().unwrap().len(), 200);
    let exemplar = |e: &Exemplar| {
        let labels: Vec<[&str; 2]> = e.labels.iter().map(|(n, v)| [n, v]).collect();
        json!({
            "timestamp": e.t, "value": hex(e.v), "exemplar_labels": labels,
            "labels": [["__name__", "up"], ["i", "ä"]], "l___name__": "up",
        })
    };
    let exemplars: Vec<Value> = whole.exemplars.iter().map(exemplar).collect();
    assert_eq!(read["exemplars.parquet"].as_array().unwrap()[..3], exemplars);
}

#[test]
fn pyarrow_reads_the_sums_of_histograms() {
    let (labels, kept) = summed();
    let read = read(&summaries_of(&[(labels, kept.clone())], RESOLUTION_1H_MS));
    let rows = read[SAMPLES_1H_PART].as_array().unwrap();
    assert_eq!(rows.len(), kept.summaries.len());
    for (row, summary) in rows.iter().rev().zip(&kept.summaries) {
        assert_eq!(
            json!([
                row["first_timestamp"],
                row["timestamp"],
                row["count"],
                row["histograms"]
            ]),
            json!([summary.first_t, summary.last_t, 0, summary.histograms])
        );
        let sum = summary.histogram_sum.as_deref().map(columns_of);
        assert_eq!(row["histogram_sum"], json!(sum));
    }
    assert_eq!(
        read["histograms.parquet"].as_array().unwrap().len(),
        kept.histograms.len()
    );
}
