//! Measures what series order, page size and shared times cost and save: the tables of docs/decisions/0001 (of blocks whose series
//! do not share their times) and 0020.
//!
//! usage: `cargo run -p koios-block --example layout_table -- [--shared] <targets> <series per target> <samples per series>`
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
    Result, SAMPLES_PART, SERIES_PART, TIMES_PART,
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

/// When the samples of a target's series are.
#[derive(Clone, Copy, PartialEq)]
enum Times {
    /// Every 15 s from a start of the target's own, with a jitter of 3 ms that all its series share.
    Jittered,
    /// The same without jitter.
    Regular,
    /// As the first, but half of the series came later or went earlier than others, and half of them lack one in twenty.
    ComingAndGoing,
    /// As the first, with jitter that no other series has.
    NothingShared,
}

impl Times {
    const ALL: [(Self, &str); 4] = [
        (Self::Jittered, "jittered"),
        (Self::Regular, "regular"),
        (Self::ComingAndGoing, "coming and going, with gaps"),
        (Self::NothingShared, "nothing shared"),
    ];

    fn of(self, target: usize, series: usize, samples: usize) -> Vec<i64> {
        let seed = match self {
            Self::NothingShared => (series as u64 + 1) << 32,
            _ => 0,
        };
        let mut random = Random(seed | target as u64);
        let start = 1_700_000_000_000 + random.below(15_000) as i64;
        let jitter = if self == Self::Regular { 1 } else { 7 };
        let mut times: Vec<i64> = (0..samples as i64)
            .map(|i| start + i * 15_000 + random.below(jitter) as i64 - 3)
            .collect();
        if self == Self::ComingAndGoing {
            let mut random = Random((series as u64) << 32 | target as u64);
            if series % 2 == 1 {
                times.truncate(samples - random.below(samples as u64 / 2) as usize);
                times.drain(..random.below(samples as u64 / 3) as usize);
            }
            if series % 4 > 1 {
                times.retain(|_| random.below(20) > 0);
            }
        }
        times
    }
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
        writer
            .push_series(&labels, None, &times, &values(target, series, times.len()))
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
        if part != SERIES_PART {
            let bytes: u64 = ranges.iter().map(|r| r.end - r.start).sum();
            self.requests.fetch_add(ranges.len() as u64, Ordering::Relaxed);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        self.inner.read(part, ranges).await
    }
}

/// Requests and kilobytes of `samples.parquet`, and of `times.parquet` where there is one, that a query takes with empty caches.
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

/// Stored bytes of some columns of a part.
fn column_bytes(parts: &BlockParts, part: &str, columns: &[&str]) -> u64 {
    let part = parts.parts.iter().find(|(name, _)| name == part);
    let file = part.map(|(_, bytes)| SerializedFileReader::new(bytes.clone()));
    let file = file.expect("the part is there").expect("it is Parquet");
    let groups = file.metadata().row_groups().iter();
    let all = groups.flat_map(|group| group.columns());
    all.filter(|column| columns.contains(&column.column_path().string().as_str()))
        .map(|column| column.compressed_size() as u64)
        .sum()
}

/// What times take, wherever they are.
fn time_bytes(parts: &BlockParts) -> u64 {
    let own = parts.meta.part(TIMES_PART).map_or(0, |part| part.bytes);
    let spans = ["k_times_last_row", "k_times_row_count"];
    own + column_bytes(parts, SERIES_PART, &spans) + column_bytes(parts, SAMPLES_PART, &["timestamp", "tick"])
}

/// Bytes of a block per sample, and of its times.
fn share(fleet: Fleet) {
    println!(
        "| Times | stored | B/sample | times | one series | one metric, all targets | one target, all metrics |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (times, name) in Times::ALL {
        for shared_times in [false, true] {
            let fleet = Fleet { times, ..fleet };
            let order = Order::MetricFirst;
            let parts = write(order, Layout::default().page_rows, shared_times, fleet);
            let size: u64 = parts.meta.parts.iter().map(|part| part.bytes).sum();
            let per_sample = |bytes: u64| bytes as f64 / parts.meta.samples as f64;
            let metric = || {
                Matcher::equal(
                    "__name__",
                    format!("node_metric_{:04}_total", fleet.per_target - 1),
                )
            };
            let target = || Matcher::equal(order.target_label(), "host-0007.example.org:9100");
            println!(
                "| {name} | {} | {:.3} | {:.3} | {} | {} | {} |",
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
