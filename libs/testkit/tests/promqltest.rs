//! The engine against scripts: the project's own, and Prometheus' acceptance suite where it is at hand.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests, too, fail by panicking and report by printing"
)]

use std::path::{Path, PathBuf};

use futures::executor::block_on;
use koios_promql::Engine;
use koios_testkit::promqltest::{Report, run};

/// The scripts of a folder, by name.
fn scripts(dir: &Path) -> Vec<(String, String)> {
    let mut scripts = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "test") {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            scripts.push((name, std::fs::read_to_string(&path).unwrap()));
        }
    }
    scripts.sort();
    scripts
}

fn report(name: &str, script: &str) -> Report {
    let report = block_on(run(script, &Engine::default())).unwrap_or_else(|e| panic!("{name}: {e}"));
    println!(
        "{name}: {} passed, {} failed",
        report.passed,
        report.failures.len()
    );
    for failure in &report.failures {
        println!(
            "  {name}:{}: {}\n    {}",
            failure.line, failure.query, failure.reason
        );
    }
    report
}

#[test]
fn own_scripts_pass() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("promqltest");
    let scripts = scripts(&dir);
    assert!(!scripts.is_empty());
    for (name, script) in scripts {
        let report = report(&name, &script);
        assert!(report.failures.is_empty() && report.passed > 0, "{name}");
    }
}

/// The suite is data kept beside the project, in the folder named by `KOIOS_PROMQLTEST_DIR` or a sibling of the project's.
fn suite_dir() -> Option<PathBuf> {
    let named = std::env::var_os("KOIOS_PROMQLTEST_DIR").map(PathBuf::from);
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/promqltest");
    named.or(Some(beside)).filter(|dir| dir.is_dir())
}

#[test]
fn the_acceptance_suite_passes() {
    let Some(dir) = suite_dir() else { return };
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, script) in scripts(&dir) {
        let report = report(&name, &script);
        passed += report.passed;
        failed.extend(
            report
                .failures
                .iter()
                .map(|failure| format!("{name}:{}", failure.line)),
        );
    }
    println!("{passed} passed, {} failed", failed.len());
    assert!(failed.is_empty(), "{failed:?}");
    assert!(passed > 2000, "{passed}");
}

#[test]
fn i12_the_deepest_queries_accepted_can_be_evaluated() {
    let deep = [
        "(".repeat(120) + "a" + &")".repeat(120),
        "-".repeat(120) + "a",
        "abs(".repeat(120) + "a" + &")".repeat(120),
        "sum by (b) (".repeat(120) + "a" + &")".repeat(120),
        "max_over_time(".repeat(120) + "a" + &"[1m:])".repeat(120),
        "a".to_owned() + &" or a".repeat(250),
        "a".to_owned() + &" + on () a".repeat(250),
    ];
    for query in deep {
        let script = format!("load 1m\n  a 1x10\n\neval instant at 5m {query}\n  expect no_warn\n  a 1\n");
        let report = block_on(run(&script, &Engine::default())).unwrap();
        // What matters is that an answer came back.
        assert_eq!(report.passed + report.failures.len(), 1);
    }
}
