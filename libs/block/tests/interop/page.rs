//! Every statement of docs/formats/block.md, run by DuckDB.

use std::collections::BTreeMap;
use std::path::Path;

use koios_block::{BlockParts, Layout, RESOLUTION_1H_MS, RESOLUTION_5M_MS};
use koios_model::summary::downsample;
use koios_model::{Labels, Sample};
use serde_json::{Value, json};

use super::common::{Model, bits, tiny, write};
use super::parts::{self, hex, summaries_of, whole};
use super::{model, read_by, run};

fn page() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/formats/block.md");
    page.to_str().unwrap().to_owned()
}

/// The rows that the statement with a number has of a block.
fn rows(parts: &BlockParts, number: usize) -> Vec<Value> {
    let printed = read_by("read_page.py", &[&page(), &number.to_string()], parts);
    printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn labels_of(row: &Value) -> Labels {
    let labels = row["labels"].as_object().unwrap();
    Labels::from_pairs(
        labels
            .iter()
            .map(|(n, v)| (n.clone(), v.as_str().unwrap().to_owned())),
    )
}

/// What a statement that gives labels, times and values says.
fn samples(parts: &BlockParts, number: usize) -> Model {
    let mut all = Model::new();
    for row in rows(parts, number) {
        let value = u64::from_str_radix(row["value"].as_str().unwrap(), 16).unwrap();
        let of_series = all.entry(labels_of(&row)).or_default();
        of_series.insert(row["timestamp"].as_i64().unwrap(), f64::from_bits(value));
    }
    all
}

/// In any order: who wants one says so.
fn sorted(mut rows: Vec<Value>) -> Vec<Value> {
    rows.sort_by_key(ToString::to_string);
    rows
}

#[test]
fn no_statement_of_the_page_is_left_out_here() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(run("read_page.py", dir.path(), &[&page()]).trim(), "7");
}

#[test]
fn the_view_of_samples_has_the_same_bits() {
    let model = model();
    assert_eq!(bits(&samples(&write(1, tiny(), &model), 0)), bits(&model));
    // That of earlier formats.
    let layout = Layout {
        shared_times: false,
        ..tiny()
    };
    assert_eq!(bits(&samples(&write(1, layout, &model), 6)), bits(&model));
}

#[test]
fn a_metric_is_read_by_the_view() {
    let series = |name: &str, instance: &str| {
        let labels = Labels::from_pairs([("__name__", name), ("instance", instance)]);
        (labels, BTreeMap::from([(1000, 1.0), (2000, 0.1)]))
    };
    let model = Model::from([series("up", "a"), series("up", "b"), series("down", "a")]);
    let row = |instance: &str, t: i64, v: f64| json!({"instance": instance, "timestamp": t, "value": hex(v)});
    let wanted = ["a", "b"]
        .map(|i| [row(i, 1000, 1.0), row(i, 2000, 0.1)])
        .concat();
    assert_eq!(sorted(rows(&write(1, tiny(), &model), 1)), sorted(wanted));
}

#[test]
fn summaries_are_read_by_their_statement() {
    let mut model = model();
    // Where a NaN is among the values, greatest() prefers it.
    model.retain(|labels, _| labels.get("__name__") != Some("odd"));
    let mut wanted = Vec::new();
    let mut all = Vec::new();
    for (labels, samples) in &model {
        let samples: Vec<Sample> = samples.iter().map(|(&t, &v)| Sample { t, v }).collect();
        let kept = downsample(&samples, &[], RESOLUTION_5M_MS);
        let of_series: BTreeMap<&str, &str> = labels.iter().collect();
        for s in &kept.summaries {
            wanted.push(json!({
                "labels": of_series, "timestamp": s.last_t, "count": s.count, "last": hex(s.last), "sum": hex(s.sum),
                "average": hex(s.sum / f64::from(s.count)), "first": hex(s.first), "max": hex(s.max),
            }));
        }
        all.push((labels.clone(), kept));
    }
    assert!(wanted.len() > 100);
    assert_eq!(
        sorted(rows(&summaries_of(&all, RESOLUTION_5M_MS), 2)),
        sorted(wanted)
    );
}

#[test]
fn sums_of_histograms_are_read_by_their_statement() {
    let (labels, kept) = parts::summed();
    let of_series: BTreeMap<&str, &str> = labels.iter().collect();
    let mut wanted = Vec::new();
    for s in &kept.summaries {
        // Of a stale marker nothing is counted.
        if let Some(sum) = s.histogram_sum.as_ref().filter(|sum| sum.count > 0.0) {
            let average = hex(sum.sum / sum.count);
            wanted.push(json!({
                "labels": of_series, "timestamp": s.last_t, "histograms": s.histograms, "average": average,
            }));
        }
    }
    assert!(wanted.len() > 1 && wanted.len() < kept.summaries.len());
    let parts = summaries_of(&[(labels, kept)], RESOLUTION_1H_MS);
    assert_eq!(sorted(rows(&parts, 3)), sorted(wanted));
}

#[test]
fn buckets_of_histograms_are_read_by_their_statement() {
    let whole = whole();
    let of_series: BTreeMap<&str, &str> = whole.labels.iter().collect();
    let mut wanted = Vec::new();
    for (t, h) in &whole.histograms {
        for (bucket, count) in h.positive() {
            wanted.push(json!({
                "labels": of_series, "timestamp": t, "schema": h.schema, "bucket": bucket, "count": hex(count),
            }));
        }
    }
    assert_eq!(sorted(rows(&whole.parts, 4)), sorted(wanted));
}

#[test]
fn exemplars_are_read_by_their_statement() {
    let whole = whole();
    let of_series: BTreeMap<&str, &str> = whole.labels.iter().collect();
    let row = |e: &koios_model::Exemplar| json!({"labels": of_series, "timestamp": e.t, "value": hex(e.v), "trace": e.labels.get("trace_id")});
    let wanted = whole.exemplars.iter().map(row).collect();
    assert_eq!(sorted(rows(&whole.parts, 5)), sorted(wanted));
}
