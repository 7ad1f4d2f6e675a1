//! Measures how fast a block of Prometheus is imported, from a folder into a bucket in a folder: 1,500 series of a fleet, six hours
//! every 15 s in chunks of 120 samples.
//!
//! usage: `cargo run --release -p koios-import --example import_speed -- [<rounds>]`
#![expect(clippy::print_stdout, reason = "the figures are the output")]
#![expect(
    clippy::unwrap_used,
    reason = "a measurement that fails has nothing better to do"
)]

#[path = "../../chunk/benches/days/mod.rs"]
mod days;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use koios_bucket::Bucket;
use koios_import::{ImportSettings, Imported, Importer};
use koios_model::TenantId;
use koios_runtime::{ProcessStats, Runtime};
use koios_testkit::tsdb::TsdbContent;
use koios_tsdb::DiskFiles;

/// Samples of a series: a block of Prometheus in memory takes much more than on disk.
const SAMPLES: usize = 1_440;

fn content() -> TsdbContent {
    let mut content = TsdbContent {
        chunks_per_file: usize::MAX,
        ..TsdbContent::default()
    };
    for series in days::fleet(days::Times::OfTarget) {
        let samples = series.timestamps.iter().copied().zip(series.values).take(SAMPLES);
        content = content.with_floats(series.labels, &samples.collect::<Vec<_>>(), 120);
    }
    content
}

async fn import(runtime: &Runtime, block: &Path, bucket: &Path, dry_run: bool) -> Imported {
    let url = format!("file://{}", bucket.display());
    let importer = Importer {
        bucket: Bucket::open(&url, Arc::clone(&runtime.clock), runtime.rng.fork()).unwrap(),
        settings: ImportSettings {
            retention: Duration::ZERO,
            dry_run,
            ..ImportSettings::default()
        },
        writer: "import_speed".to_owned(),
        clock: Arc::clone(&runtime.clock),
        rng: runtime.rng.fork(),
        cpu: runtime.cpu.clone(),
        memory: runtime.memory.clone(),
    };
    let files = Arc::new(DiskFiles::new(runtime.disk.clone(), block.to_owned()));
    importer
        .import(&TenantId::anonymous(), files, &|_| {})
        .await
        .unwrap()
}

fn main() {
    let rounds = std::env::args().nth(1).and_then(|n| n.parse().ok());
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    tokio.block_on(async {
        let runtime = Runtime::real().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let block = content().write_to(dir.path()).unwrap();
        for round in 0..rounds.unwrap_or(5) {
            for (what, dry_run) in [("read and checked", true), ("imported", false)] {
                let bucket = dir.path().join(format!("bucket-{round}-{dry_run}"));
                let (at, cpu) = (runtime.clock.elapsed(), ProcessStats::read().cpu_seconds);
                let done = import(&runtime, &block, &bucket, dry_run).await;
                let seconds = (runtime.clock.elapsed() - at).as_secs_f64();
                let cpu = ProcessStats::read().cpu_seconds - cpu;
                println!(
                    "{what}: {} samples, {} bytes to {}: {:.0} samples/s, {:.2} CPU s per million",
                    done.samples,
                    done.bytes_in,
                    done.bytes_out,
                    done.samples as f64 / seconds,
                    cpu * 1e6 / done.samples as f64,
                );
            }
        }
    });
}
