//! The layer check: arrows between crates point down only.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Layers from the bottom up; a crate may depend on crates of lower layers, and within a layer on those listed before.
const LAYERS: [&[&str]; 6] = [
    &["koios-runtime", "koios-model"],
    &["koios-chunk", "koios-wire", "koios-wal", "koios-tsdb"],
    &[
        "koios-promql",
        "koios-head",
        "koios-block",
        "koios-bucket",
        "koios-import",
        "koios-control",
        "koios-tenancy",
        "koios-server",
    ],
    &[
        "koios-distributor",
        "koios-ingester",
        "koios-querier",
        "koios-store",
    ],
    &["koios"],
    &["koios-testkit", "koios-load-tests", "xtask"],
];
/// Services never import each other.
const SERVICES: usize = 3;

/// Fails on an upward arrow.
pub(crate) fn check(root: &Path) -> Result<()> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .context("start cargo metadata")?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    let mut rank = BTreeMap::new();
    for (layer, crates) in LAYERS.iter().enumerate() {
        for (at, name) in crates.iter().enumerate() {
            rank.insert(*name, (layer, at));
        }
    }
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().context("packages")? {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(&from) = rank.get(name) else {
            wrong.push(format!("{name} is in no layer: add it to xtask/src/layers.rs"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            // What only tests use may come from above.
            if dependency["kind"].as_str() == Some("dev") {
                continue;
            }
            let target = dependency["name"].as_str().unwrap_or_default();
            let Some(&to) = rank.get(target) else { continue };
            if to >= from || (to.0 == SERVICES && from.0 == SERVICES) {
                wrong.push(format!("{name} must not depend on {target}"));
            }
        }
    }
    if !wrong.is_empty() {
        bail!("upward arrows:\n  {}", wrong.join("\n  "));
    }
    println!("layers: all arrows point down");
    Ok(())
}
