//! Random queries over HTTP to Koios and to a real Prometheus that got the same remote write requests.
//!
//! A few with a fixed seed; `cargo xtask fuzz-queries` asks many.
#![allow(clippy::print_stdout, reason = "a test tells what it compared")]

mod support;

use anyhow::Result;
use koios_testkit::differential::{Peers, run};
use koios_testkit::query_gen::data::floats;
use koios_testkit::query_gen::{QueryGenerator, Subject};

const SEED: u64 = 2;
const QUERIES: usize = 400;

#[tokio::test]
async fn random_queries_agree_with_prometheus() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let peers = Peers::start(dir.path(), Some(&support::program()), &floats(SEED)).await?;
    let mut generator = QueryGenerator::new(SEED, Subject::Floats);
    let asked = std::iter::repeat_with(|| generator.asked()).take(QUERIES);
    let report = run(&peers, asked, |_| true).await?;
    println!("{report}");
    report.check()
}
