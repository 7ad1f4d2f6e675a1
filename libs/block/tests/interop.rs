//! Another engine reads a block as the tables it is.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Model, bits, tiny, write};
use koios_model::{Labels, stale_nan};

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

#[test]
fn pyarrow_reads_the_same_series_and_the_same_bits() {
    let model = model();
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in write(1, tiny(), &model).parts {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let out = Command::new(python())
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/read_block.py"))
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let read: Model = String::from_utf8(out.stdout)
        .unwrap()
        .lines()
        .map(|line| {
            let line: Line = serde_json::from_str(line).unwrap();
            let samples = line
                .samples
                .into_iter()
                .map(|(t, hex)| (t, f64::from_bits(u64::from_str_radix(&hex, 16).unwrap())));
            (Labels::from_pairs(line.labels), samples.collect())
        })
        .collect();
    assert_eq!(bits(&read), bits(&model));
}
