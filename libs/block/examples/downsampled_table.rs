//! Measures what a day of samples takes downsampled: the table in docs/benchmarks.md.
//!
//! usage: `cargo run -p koios-block --example downsampled_table -- <targets> <series per target>`
#![expect(clippy::print_stdout, reason = "the table is the output")]
#![expect(
    clippy::expect_used,
    reason = "a measurement that fails has nothing better to do"
)]

mod fleet;

use std::sync::Arc;

use fleet::{Kind, Random};
use koios_block::{BlockId, BlockOptions, BlockParts, BlockWriter, Layout, SERIES_PART, SeriesColumns};
use koios_model::summary::downsample;
use koios_model::{Histogram, Labels, Sample, TenantId, TimeRange};
use koios_promql::add_histograms;

/// A day at 15 s.
const SAMPLES: i64 = 5760;

/// The fleet of `layout_table`, scraped every 15 s with 3 ms of jitter.
fn samples(target: usize, series: usize) -> Vec<Sample> {
    let mut times = Random(target as u64);
    let start = 1_700_006_400_000 + times.below(15_000) as i64;
    let values = Kind::of(series).values(target, series, SAMPLES as usize);
    let sample = |(i, v): (i64, f64)| Sample {
        t: start + i * 15_000 + times.below(7) as i64 - 3,
        v,
    };
    (0..SAMPLES).zip(values).map(sample).collect()
}

fn labels(target: usize, series: usize) -> Labels {
    Labels::from_pairs([
        ("__name__", format!("node_metric_{series:04}_total")),
        ("instance", format!("host-{target:04}.example.org:9100")),
        ("job", "node".to_owned()),
    ])
}

fn write(resolution_ms: i64, all: &[(Labels, usize, usize)]) -> BlockParts {
    let options = BlockOptions {
        resolution_ms,
        layout: Layout::compacted(),
        ..BlockOptions::new(BlockId::new(0, 1), TenantId::anonymous(), TimeRange::ALL)
    };
    let mut writer = BlockWriter::new(options).expect("the layout is possible");
    for (labels, target, series) in all {
        let samples = samples(*target, *series);
        let pushed = if resolution_ms == 0 {
            let (times, values): (Vec<_>, Vec<_>) = samples.iter().map(|s| (s.t, s.v)).unzip();
            writer.push_series(labels, None, &times, &values)
        } else {
            writer.push_downsampled(labels, None, &downsample(&samples, &[], resolution_ms))
        };
        pushed.expect("series come in order");
    }
    writer.finish().expect("it encodes").expect("it has samples")
}

/// A day of a native histogram, every 15 s.
fn histograms(target: usize, series: usize) -> Vec<(i64, Arc<Histogram>)> {
    let times: Vec<i64> = (0..SAMPLES).map(|i| 1_700_006_400_000 + i * 15_000).collect();
    fleet::histograms(target, series, times.into_iter())
}

fn write_histograms(resolution_ms: i64, sums: bool, all: &[(Labels, usize, usize)]) -> BlockParts {
    let options = BlockOptions {
        resolution_ms,
        histogram_sums: sums,
        layout: Layout::compacted(),
        ..BlockOptions::new(BlockId::new(0, 1), TenantId::anonymous(), TimeRange::ALL)
    };
    let mut writer = BlockWriter::new(options).expect("the layout is possible");
    for (labels, target, series) in all {
        let histograms = histograms(*target, *series);
        let pushed = if resolution_ms == 0 {
            let columns = SeriesColumns {
                histograms: &histograms,
                ..SeriesColumns::default()
            };
            writer.push_columns(labels, None, columns)
        } else {
            let mut kept = downsample(&[], &histograms, resolution_ms);
            if sums {
                add_histograms(&mut kept.summaries, &histograms);
            }
            writer.push_downsampled(labels, None, &kept)
        };
        pushed.expect("series come in order");
    }
    writer.finish().expect("it encodes").expect("it has samples")
}

/// The bytes of samples or summaries, and those of histograms.
fn bytes_of(parts: &BlockParts) -> [u64; 2] {
    let named = |histograms: bool| {
        let parts = parts.meta.parts.iter().filter(|p| p.name != SERIES_PART);
        parts
            .filter(|p| p.name.starts_with("histograms") == histograms)
            .map(|p| p.bytes)
            .sum()
    };
    [named(false), named(true)]
}

fn table_of_histograms(all: &[(Labels, usize, usize)]) {
    println!("\n| resolution | histograms as sent | with summaries | sums alone |");
    println!("|---|---|---|---|");
    for (name, resolution_ms) in [("samples", 0), ("5 min", 300_000), ("1 h", 3_600_000)] {
        let [summaries, as_sent] = bytes_of(&write_histograms(resolution_ms, resolution_ms != 0, all));
        let [without, _] = bytes_of(&write_histograms(resolution_ms, false, all));
        let sums = summaries - without;
        println!("| {name} | {as_sent} | {} | {sums} |", as_sent + summaries);
    }
}

fn main() {
    let mut args = std::env::args().skip(1).map(|a| a.parse().unwrap_or(1));
    let (targets, per_target) = (args.next().unwrap_or(10), args.next().unwrap_or(100));
    let mut all: Vec<(Labels, usize, usize)> = (0..targets)
        .flat_map(|t| (0..per_target).map(move |s| (labels(t, s), t, s)))
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    println!("| resolution | rows | bytes | labels | bytes per row | of the samples' |");
    println!("|---|---|---|---|---|---|");
    let mut of_samples = 0;
    for (name, resolution_ms) in [("samples", 0), ("5 min", 300_000), ("1 h", 3_600_000)] {
        let parts = write(resolution_ms, &all).meta.parts;
        let (labels, data): (Vec<_>, Vec<_>) = parts.iter().partition(|p| p.name == SERIES_PART);
        let bytes: u64 = data.iter().map(|p| p.bytes).sum();
        let rows: u64 = data.iter().map(|p| p.rows).sum();
        let labels: u64 = labels.iter().map(|p| p.bytes).sum();
        if resolution_ms == 0 {
            of_samples = bytes;
        }
        let (per_row, share) = (
            bytes as f64 / rows as f64,
            100.0 * bytes as f64 / of_samples as f64,
        );
        println!("| {name} | {rows} | {bytes} | {labels} | {per_row:.2} | {share:.1} % |");
    }
    all.truncate(50);
    table_of_histograms(&all);
}
