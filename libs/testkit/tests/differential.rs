//! The engine and a real Prometheus are asked the same queries over the same samples.
#![allow(clippy::print_stdout, reason = "a test tells what it compared")]

use anyhow::Result;
use koios_testkit::differential::{Peers, run};
use koios_testkit::query_gen::data::{floats, histograms};
use koios_testkit::query_gen::{QueryGenerator, Subject};

const SEED: u64 = 1;

async fn agree(subject: Subject, queries: usize) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let series = match subject {
        Subject::Floats => floats(SEED),
        Subject::NativeHistograms => histograms(SEED),
    };
    let peers = Peers::start(dir.path(), None, &series).await?;
    let mut generator = QueryGenerator::new(SEED, subject);
    let asked = std::iter::repeat_with(|| generator.asked()).take(queries);
    let report = run(&peers, asked, |_| true).await?;
    println!("{report}");
    report.check()
}

#[tokio::test]
async fn random_queries_of_floats_agree_with_prometheus() -> Result<()> {
    agree(Subject::Floats, 300).await
}

#[tokio::test]
async fn random_queries_of_native_histograms_agree_with_prometheus() -> Result<()> {
    agree(Subject::NativeHistograms, 150).await
}
