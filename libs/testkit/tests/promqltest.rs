//! The engine against scripts: the project's own, and Prometheus' acceptance suite where it is at hand.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests, too, fail by panicking and report by printing"
)]

use futures::executor::block_on;
use koios_promql::Engine;
use koios_testkit::promqltest::{Report, evaluations, own_scripts, run, suite_scripts};

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
    for (name, script) in own_scripts() {
        let report = report(&name, &script);
        assert!(report.failures.is_empty() && report.passed > 0, "{name}");
    }
}

#[test]
fn the_acceptance_suite_passes() {
    let Some(scripts) = suite_scripts() else {
        return;
    };
    let (mut passed, mut failed, mut written) = (0, Vec::new(), 0);
    for (name, script) in scripts {
        written += evaluations(&script);
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
    assert_eq!(
        passed, written,
        "every evaluation that is written is one that passed"
    );
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
        assert!(koios_promql::parse(&query).is_ok(), "refused: {query}");
        let script = format!("load 1m\n  a 1x10\n\neval instant at 5m {query}\n  expect no_warn\n  a 1\n");
        let report = block_on(run(&script, &Engine::default())).unwrap();
        // What matters is that an answer came back.
        assert_eq!(report.passed + report.failures.len(), 1);
    }
}
