//! Another engine reads a block as the tables it is.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod page;
mod parts;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Model, bits, id, tiny, write};
use koios_block::{BlockOptions, BlockParts, BlockWriter, Layout, RESOLUTION_5M_MS, SAMPLES_5M_PART};
use koios_model::summary::downsample;
use koios_model::{Labels, Sample, Summary, TenantId, TimeRange, stale_nan};

/// The Python with pyarrow: `$KOIOS_TEST_PYTHON`, else the test environment's.
fn python() -> PathBuf {
    if let Some(given) = std::env::var_os("KOIOS_TEST_PYTHON") {
        return given.into();
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
        PathBuf::from,
    );
    let python = target.join("testenv/bin/python");
    assert!(
        python.exists(),
        "{} is not installed: run the tests by `cargo xtask test`, which installs it",
        python.display()
    );
    python
}

#[derive(serde::Deserialize)]
struct Line {
    labels: BTreeMap<String, String>,
    samples: Vec<(i64, String)>,
}

fn model() -> Model {
    let series = |n: &str, values: &[f64]| {
        let labels = Labels::from_pairs([("__name__", n), ("dotted.label", "ä \"quoted\""), ("l", "1")]);
        let samples = values
            .iter()
            .enumerate()
            .map(|(i, &v)| (1_700_000_000_000 + i as i64 * 15_000, v));
        (labels, samples.collect::<BTreeMap<_, _>>())
    };
    let decimals: Vec<f64> = (0..1000).map(|i| f64::from(i) * 0.1).collect();
    let thirds: Vec<f64> = (0..1000).map(|i| f64::from(i) / 3.0).collect();
    Model::from([
        series("counter", &(0..1000).map(f64::from).collect::<Vec<_>>()),
        series("decimals", &decimals),
        series("thirds", &thirds),
        series(
            "odd",
            &[
                stale_nan(),
                f64::NAN,
                f64::INFINITY,
                f64::NEG_INFINITY,
                -0.0,
                0.0,
                5e-324,
                1e300,
                0.25,
            ],
        ),
    ])
}

/// What a script prints about a block.
fn read_by(script: &str, args: &[&str], parts: &BlockParts) -> String {
    let dir = tempfile::tempdir().unwrap();
    store(parts, dir.path());
    run(script, dir.path(), args)
}

fn store(parts: &BlockParts, dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    for (name, bytes) in &parts.parts {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
}

/// What a script prints about a folder.
fn run(script: &str, dir: &Path, args: &[&str]) -> String {
    let out = Command::new(python())
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(script))
        .arg(dir)
        .args(args)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn pyarrow_reads_the_same_series_and_the_same_bits() {
    let model = model();
    for shared_times in [true, false] {
        let layout = Layout {
            shared_times,
            ..tiny()
        };
        let read = printed(&read_by("read_block.py", &[], &write(1, layout, &model)));
        assert_eq!(bits(&read), bits(&model));
    }
}

#[test]
fn duckdb_reads_all_blocks_of_a_tenant_by_the_sql_of_the_quick_start() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/quick-start.md");
    let (odd, others): (Model, Model) = model()
        .into_iter()
        .partition(|(labels, _)| labels.get("__name__") == Some("odd"));
    // The first statement is for blocks of this format, the second where some are older.
    for (number, shared_times) in [("0", true), ("1", false)] {
        let dir = tempfile::tempdir().unwrap();
        let blocks = dir.path().join("koios-data/bucket/anonymous/blocks");
        let layout = Layout {
            shared_times,
            ..tiny()
        };
        store(&write(1, layout, &odd), &blocks.join("1"));
        store(&write(2, tiny(), &others), &blocks.join("2"));
        let read = printed(&run("read_sql.py", dir.path(), &[page.to_str().unwrap(), number]));
        assert_eq!(bits(&read), bits(&model()), "statement {number}");
    }
}

/// What a script printed of the samples of a block.
fn printed(lines: &str) -> Model {
    let series = |line| {
        let line: Line = serde_json::from_str(line).unwrap();
        let samples = line
            .samples
            .into_iter()
            .map(|(t, hex)| (t, f64::from_bits(u64::from_str_radix(&hex, 16).unwrap())));
        (Labels::from_pairs(line.labels), samples.collect())
    };
    lines.lines().map(series).collect()
}

/// As the script prints it: times, counts, and the bits of the floats.
type Row = (i64, i64, u32, u32, Vec<String>);

#[derive(serde::Deserialize)]
struct Summarised {
    labels: BTreeMap<String, String>,
    summaries: Vec<Row>,
}

#[test]
fn pyarrow_reads_the_same_summaries_and_the_same_bits() {
    let row = |s: &Summary| -> Row {
        let floats = s.floats().map(|v| format!("{:016x}", v.to_bits()));
        let floats = if s.count > 0 { floats.to_vec() } else { Vec::new() };
        (s.first_t, s.last_t, s.count, s.histograms, floats)
    };
    let options = BlockOptions {
        resolution_ms: RESOLUTION_5M_MS,
        ..BlockOptions::new(id(1), TenantId::anonymous(), TimeRange::ALL)
    };
    let mut writer = BlockWriter::new(options).unwrap();
    let mut expected = BTreeMap::new();
    for (labels, samples) in model() {
        let samples: Vec<Sample> = samples.iter().map(|(&t, &v)| Sample { t, v }).collect();
        let kept = downsample(&samples, &[], RESOLUTION_5M_MS);
        writer.push_downsampled(&labels, None, &kept).unwrap();
        expected.insert(labels, kept.summaries.iter().rev().map(row).collect::<Vec<_>>());
    }
    let parts = writer.finish().unwrap().unwrap();
    let read: BTreeMap<Labels, Vec<Row>> = read_by("read_summaries.py", &[SAMPLES_5M_PART], &parts)
        .lines()
        .map(|line| {
            let line: Summarised = serde_json::from_str(line).unwrap();
            (Labels::from_pairs(line.labels), line.summaries)
        })
        .collect();
    assert_eq!(read, expected);
}
