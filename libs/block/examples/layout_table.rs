//! Measures what series order and page size cost and save: the table of docs/decisions/0001.
//!
//! usage: `cargo run -p koios-block --example layout_table -- <targets> <series per target> <samples per series>`
#![expect(clippy::print_stdout, reason = "the table is the output")]
#![expect(
    clippy::expect_used,
    reason = "a measurement that fails has nothing better to do"
)]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use koios_block::{
    BlockCache, BlockId, BlockOptions, BlockParts, BlockReader, BlockWriter, Layout, MemoryBlock, RangeRead,
    Result, SAMPLES_PART,
};
use koios_model::{Labels, Matcher, Matchers, TenantId, TimeRange};
use parquet::file::reader::FileReader;
use parquet::file::serialized_reader::SerializedFileReader;

/// Series per target of the one metric that has many (think of CPUs times modes).
const WIDE: usize = 16;

#[derive(Clone, Copy, PartialEq)]
enum Order {
    MetricFirst,
    TargetFirst,
}

impl Order {
    /// The label of the target: as label order is byte order, its first letter decides whether it sorts before
    /// `__name__`.
    fn target_label(self) -> &'static str {
        match self {
            Self::MetricFirst => "instance",
            Self::TargetFirst => "Instance",
        }
    }
}

/// Splitmix64: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// The scrapes of a target: every 15 s from a start of its own, with a jitter of 3 ms that all its series share.
fn scrapes(target: usize, samples: usize) -> Vec<i64> {
    let mut random = Random(target as u64);
    let start = 1_700_000_000_000 + random.below(15_000) as i64;
    (0..samples as i64)
        .map(|i| start + i * 15_000 + random.below(7) as i64 - 3)
        .collect()
}

/// 40 % constants, 20 % busy and 10 % idle integer counters, 20 % gauges (half decimal, half in whole pages of memory),
/// 10 % full-precision random walks.
fn values(target: usize, series: usize, samples: usize) -> Vec<f64> {
    let mut random = Random((target as u64) << 32 | series as u64);
    let kind = series % 10;
    let mut level = (random.unit() * 1e4).round();
    (0..samples)
        .map(|_| {
            match kind {
                0..=3 => {}
                4 | 5 => level += random.below(200) as f64,
                6 => level += f64::from(u8::from(random.below(20) == 0)),
                7 => level = ((level + random.unit() - 0.5) * 100.0).round() / 100.0,
                8 => level += 4096.0 * (random.below(9) as f64 - 4.0),
                _ => level += random.unit() - 0.5,
            }
            level
        })
        .collect()
}

fn labels(order: Order, target: usize, series: usize) -> Labels {
    let (metric, mode) = if series < WIDE { (0, series) } else { (series, 0) };
    Labels::from_pairs([
        ("__name__", format!("node_metric_{metric:04}_total")),
        (order.target_label(), format!("host-{target:04}.example.org:9100")),
        ("job", "node".to_owned()),
        ("mode", format!("mode-{mode:02}")),
    ])
}

/// How many there are.
#[derive(Clone, Copy)]
struct Fleet {
    targets: usize,
    per_target: usize,
    /// Of each series.
    samples: usize,
}

fn write(order: Order, page_rows: usize, fleet: Fleet) -> BlockParts {
    let Fleet {
        targets,
        per_target,
        samples,
    } = fleet;
    let mut all: Vec<(Labels, usize, usize)> = (0..targets)
        .flat_map(|t| (0..per_target).map(move |s| (labels(order, t, s), t, s)))
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    let mut options = BlockOptions::new(BlockId::new(0, 1), TenantId::anonymous(), TimeRange::ALL);
    options.layout = Layout {
        page_rows,
        ..Layout::default()
    };
    let mut writer = BlockWriter::new(options).expect("the layout is possible");
    let scrapes: Vec<Vec<i64>> = (0..targets).map(|t| scrapes(t, samples)).collect();
    for (labels, target, series) in all {
        writer
            .push_series(&labels, None, &scrapes[target], &values(target, series, samples))
            .expect("series come in order");
    }
    writer.finish().expect("it encodes").expect("it has samples")
}

#[derive(Debug)]
struct Counting {
    inner: MemoryBlock,
    requests: AtomicU64,
    bytes: AtomicU64,
}

#[async_trait]
impl RangeRead for Counting {
    async fn read(&self, part: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        if part == SAMPLES_PART {
            let bytes: u64 = ranges.iter().map(|r| r.end - r.start).sum();
            self.requests.fetch_add(ranges.len() as u64, Ordering::Relaxed);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        self.inner.read(part, ranges).await
    }
}

/// Requests and kilobytes of `samples.parquet` that a query takes with empty caches.
fn cost(parts: &BlockParts, matchers: Vec<Matcher>) -> String {
    let source = Arc::new(Counting {
        inner: MemoryBlock::new(parts),
        requests: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
    });
    let cache = Arc::new(BlockCache::new(1 << 30, 1 << 28));
    let samples = futures::executor::block_on(async {
        let block = BlockReader::open(source.clone(), Arc::new(parts.meta.clone()), cache)?;
        let series = block.select(&Matchers(matchers), TimeRange::ALL).await?;
        let samples = block.read_samples(&series, TimeRange::ALL).await?;
        Ok::<_, koios_block::Error>(samples.iter().map(|s| s.values.len()).sum::<usize>())
    })
    .expect("the block is readable");
    assert!(samples > 0, "the query finds something");
    let (requests, bytes) = (
        source.requests.load(Ordering::Relaxed),
        source.bytes.load(Ordering::Relaxed),
    );
    format!("{requests} / {} kB", bytes >> 10)
}

/// Compressed bytes of the timestamps, and of mantissas and floats.
fn column_bytes(parts: &BlockParts) -> (u64, u64) {
    let part = parts.parts.iter().find(|(name, _)| name == SAMPLES_PART);
    let file = part.map(|(_, bytes)| SerializedFileReader::new(bytes.clone()));
    let file = file.expect("the part is there").expect("it is Parquet");
    let column = |i: usize| -> u64 {
        let groups = file.metadata().row_groups().iter();
        groups.map(|g| g.column(i).compressed_size() as u64).sum()
    };
    (column(1), column(3) + column(4))
}

fn main() {
    let mut args = std::env::args().skip(1).map(|a| a.parse().expect("a number"));
    let (targets, per_target) = (args.next().unwrap_or(200), args.next().unwrap_or(90));
    // Two hours at 15 s.
    let samples = args.next().unwrap_or(480);
    let fleet = Fleet {
        targets,
        per_target,
        samples,
    };
    println!("{targets} targets x {per_target} series x {samples} samples\n");
    println!(
        "| Order | Page rows | B/sample | times | values | one series | one metric, all targets | wide metric, all targets | one target, all metrics |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for order in [Order::MetricFirst, Order::TargetFirst] {
        for page_rows in [4096, 16_384, 65_536, 262_144] {
            let parts = write(order, page_rows, fleet);
            let size = parts.meta.part(SAMPLES_PART).map_or(0, |p| p.bytes);
            let per_sample = |bytes: u64| bytes as f64 / parts.meta.samples as f64;
            let (times, values) = column_bytes(&parts);
            let metric = |n: usize| Matcher::equal("__name__", format!("node_metric_{n:04}_total"));
            let target = || Matcher::equal(order.target_label(), "host-0007.example.org:9100");
            println!(
                "| {} | {page_rows} | {:.2} | {:.2} | {:.2} | {} | {} | {} | {} |",
                if order == Order::MetricFirst {
                    "metric first"
                } else {
                    "target first"
                },
                per_sample(size),
                per_sample(times),
                per_sample(values),
                cost(&parts, vec![metric(per_target - 1), target()]),
                cost(&parts, vec![metric(per_target - 1)]),
                cost(&parts, vec![metric(0)]),
                cost(&parts, vec![target()]),
            );
        }
    }
}
