//! Measures what series order, page size and shared times cost and save: the tables of docs/decisions/0001 (of blocks whose series
//! do not share their times). How fast blocks are written and read is told by `layout_speed`.
//!
//! usage: `cargo run -p koios-block --example layout_table -- [--shared] <targets> <series per target> <samples per series>`
#![expect(clippy::print_stdout, reason = "the table is the output")]
#![expect(
    clippy::expect_used,
    reason = "a measurement that fails has nothing better to do"
)]

mod fleet;

use std::sync::Arc;

use fleet::{Counting, Kind, Order, Times, block_bytes, column_bytes, host, labels, metric, time_bytes};
use koios_block::{
    BlockCache, BlockId, BlockOptions, BlockParts, BlockReader, BlockWriter, Layout, SAMPLES_PART,
};
use koios_model::{Labels, Matcher, Matchers, TenantId, TimeRange};

/// How many there are, and when.
#[derive(Clone, Copy)]
struct Fleet {
    targets: usize,
    per_target: usize,
    /// Of each series.
    samples: usize,
    times: Times,
}

fn write(order: Order, page_rows: usize, shared_times: bool, fleet: Fleet) -> BlockParts {
    let Fleet {
        targets,
        per_target,
        samples,
        times,
    } = fleet;
    let mut all: Vec<(Labels, usize, usize)> = (0..targets)
        .flat_map(|t| (0..per_target).map(move |s| (labels(order, t, s), t, s)))
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    let mut options = BlockOptions::new(BlockId::new(0, 1), TenantId::anonymous(), TimeRange::ALL);
    options.layout = Layout {
        page_rows,
        shared_times,
        ..Layout::default()
    };
    let mut writer = BlockWriter::new(options).expect("the layout is possible");
    for (labels, target, series) in all {
        let times = times.of(target, series, samples);
        let values = Kind::of(series).values(target, series, times.len());
        writer
            .push_series(&labels, None, &times, &values)
            .expect("series come in order");
    }
    writer.finish().expect("it encodes").expect("it has samples")
}

/// Requests and kilobytes of `samples.parquet`, and of `times.parquet` where there is one, that a query takes with empty caches.
fn cost(parts: &BlockParts, matchers: Vec<Matcher>) -> String {
    let source = Arc::new(Counting::new(parts, false));
    let cache = Arc::new(BlockCache::new(1 << 30, 1 << 28));
    let samples = futures::executor::block_on(async {
        let block = BlockReader::open(source.clone(), Arc::new(parts.meta.clone()), cache)?;
        let series = block.select(&Matchers(matchers), TimeRange::ALL).await?;
        let samples = block.read_samples(&series, TimeRange::ALL).await?;
        Ok::<_, koios_block::Error>(samples.iter().map(|s| s.values.len()).sum::<usize>())
    })
    .expect("the block is readable");
    assert!(samples > 0, "the query finds something");
    let (requests, bytes) = source.read_so_far();
    format!("{requests} / {} kB", bytes >> 10)
}

/// Bytes of a block per sample, and of its times.
fn share(fleet: Fleet) {
    println!(
        "| Times | stored | B/sample | times | one series | one metric, all targets | one target, all metrics |"
    );
    println!("|---|---|---|---|---|---|---|");
    for times in Times::ALL {
        for shared_times in [false, true] {
            let fleet = Fleet { times, ..fleet };
            let order = Order::MetricFirst;
            let parts = write(order, Layout::default().page_rows, shared_times, fleet);
            let size = block_bytes(&parts);
            let per_sample = |bytes: u64| bytes as f64 / parts.meta.samples as f64;
            let metric = || Matcher::equal("__name__", metric(fleet.per_target - 1));
            let target = || Matcher::equal(order.target_label(), host(7));
            println!(
                "| {} | {} | {:.3} | {:.3} | {} | {} | {} |",
                times.name(),
                if shared_times { "once" } else { "with each sample" },
                per_sample(size),
                per_sample(time_bytes(&parts)),
                cost(&parts, vec![metric(), target()]),
                cost(&parts, vec![metric()]),
                cost(&parts, vec![target()]),
            );
        }
    }
}

fn main() {
    let only_shared = std::env::args().any(|a| a == "--shared");
    let numbers = std::env::args().skip(1).filter(|a| a != "--shared");
    let mut args = numbers.map(|a| a.parse().expect("a number"));
    let (targets, per_target) = (args.next().unwrap_or(200), args.next().unwrap_or(90));
    // Two hours at 15 s.
    let samples = args.next().unwrap_or(480);
    let fleet = Fleet {
        targets,
        per_target,
        samples,
        times: Times::Jittered,
    };
    println!("{targets} targets x {per_target} series x {samples} samples\n");
    if only_shared {
        share(fleet);
        return;
    }
    println!(
        "| Order | Page rows | B/sample | times | values | one series | one metric, all targets | wide metric, all targets | one target, all metrics |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for order in [Order::MetricFirst, Order::TargetFirst] {
        for page_rows in [4096, 16_384, 65_536, 262_144] {
            let parts = write(order, page_rows, false, fleet);
            let size = parts.meta.part(SAMPLES_PART).map_or(0, |p| p.bytes);
            let per_sample = |bytes: u64| bytes as f64 / parts.meta.samples as f64;
            let values = column_bytes(&parts, SAMPLES_PART, &["mantissa", "float"]);
            let metric = |n: usize| Matcher::equal("__name__", metric(n));
            let target = || Matcher::equal(order.target_label(), host(7));
            println!(
                "| {} | {page_rows} | {:.2} | {:.2} | {:.2} | {} | {} | {} | {} |",
                order.name(),
                per_sample(size),
                per_sample(time_bytes(&parts)),
                per_sample(values),
                cost(&parts, vec![metric(per_target - 1), target()]),
                cost(&parts, vec![metric(per_target - 1)]),
                cost(&parts, vec![metric(0)]),
                cost(&parts, vec![target()]),
            );
        }
    }
}
