//! What a query reads of blocks that nothing is cached of, as a table: requests, the rounds of them that wait for one another,
//! and bytes. `cargo run --release -p koios-store --example cold_reads [minutes]`, of so many minutes of a million series (120).
//!
//! Every request to the simulated object store takes 10 ms of simulated time, however many run at once, so that the time a
//! query takes is the number of its rounds. What came of which part is told beside the table, to stderr.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for developers"
)]

mod needed;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use koios_block::{BlockId, BlockOptions, BlockParts, BlockWriter, Layout};
use koios_bucket::{Bucket, ManifestBlock, TenantManifests, Writer};
use koios_model::{Labels, Matcher, Matchers, PartitionId, TenantId, TimeRange};
use koios_runtime::{Cpu, RealClock, RngHandle};
use koios_server::Metrics;
use koios_store::{BlockStore, StoreSettings};
use koios_testkit::distant::Distant;
use koios_wire::{StoreItem, StoreSelectRequest, StoreService};

const REQUEST: Duration = Duration::from_millis(10);
const DAY_MS: i64 = 86_400_000;
const START_MS: i64 = 19_000 * DAY_MS;
/// Compaction begins a new block at about so many bytes.
const BLOCK_BYTES: usize = 128 << 20;

/// A fleet: `metrics` of each of `targets`, scraped every 15 s, in blocks of a length.
#[derive(Clone, Copy)]
struct Fleet {
    metrics: usize,
    targets: usize,
    block_ms: i64,
    windows: i64,
}

impl Fleet {
    /// The blocks of a window: the next one begins where one would grow beyond the bound of compaction.
    fn blocks(&self, number: i64) -> Vec<BlockParts> {
        let start = START_MS + number * self.block_ms;
        let window = TimeRange::new(start, start + self.block_ms - 1);
        let writer = |n: usize| {
            let id = BlockId::new(window.max, u128::try_from(n).unwrap());
            let mut options = BlockOptions::new(id, TenantId::anonymous(), window);
            options.layout = Layout::compacted();
            BlockWriter::new(options).unwrap()
        };
        let mut blocks = Vec::new();
        let mut block = writer(0);
        let (mut times, mut values) = (Vec::new(), Vec::new());
        for metric in 0..self.metrics {
            for target in 0..self.targets {
                let labels = Labels::from_pairs([
                    ("__name__", format!("metric_{metric:04}_total").as_str()),
                    ("instance", &format!("host-{target:05}.example.com:9100")),
                    ("job", "node"),
                    ("region", &format!("region-{}", target % 7)),
                ]);
                let scrapes = (window.min..window.max - 10).step_by(15_000);
                times.clear();
                times.extend(scrapes.map(|t| t + i64::from(random(target as u64, t as u64) as u8 % 7)));
                values.clear();
                fill(metric, target, &times, &mut values);
                block.push_series(&labels, None, &times, &values).unwrap();
                if block.encoded_bytes() >= BLOCK_BYTES {
                    let full = std::mem::replace(&mut block, writer(blocks.len() + 1));
                    blocks.extend(full.finish().unwrap());
                }
            }
        }
        blocks.extend(block.finish().unwrap());
        blocks
    }
}

/// A number that looks random (the finalizer of splitmix64).
fn random(a: u64, b: u64) -> u64 {
    let mut x = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Of ten metrics four are constant, three count, two are gauges of two decimals, and one walks with full precision.
fn fill(metric: usize, target: usize, times: &[i64], values: &mut Vec<f64>) {
    let series = (metric * 100_003 + target) as u64;
    let mut value = (random(series, 0) % 10_000) as f64;
    values.extend(times.iter().map(|&t| {
        let drawn = random(series, t as u64);
        value = match metric % 10 {
            0..4 => value,
            4..7 => value + (drawn % 50) as f64,
            7..9 => (drawn % 10_000) as f64 / 100.0,
            _ => value + (drawn as f64 / u64::MAX as f64) - 0.5,
        };
        value
    }));
}

/// A bucket with the blocks of a fleet.
struct World {
    clock: Arc<RealClock>,
    objects: Arc<Distant>,
    version: u64,
    blocks: Vec<BlockParts>,
}

impl World {
    async fn of(fleet: Fleet) -> Self {
        let clock = Arc::new(RealClock::new());
        let objects = Arc::new(Distant::new(Arc::<RealClock>::clone(&clock), REQUEST));
        let bucket = bucket(&objects, &clock);
        let blocks: Vec<BlockParts> = (0..fleet.windows).flat_map(|n| fleet.blocks(n)).collect();
        for block in &blocks {
            bucket.upload_block(&TenantId::anonymous(), block).await.unwrap();
            let entry = ManifestBlock::new(&block.meta, BTreeMap::new());
            let writer = Writer::partition("table", PartitionId(0), 1);
            bucket
                .commit(&TenantId::anonymous(), &writer, |m| m.add_block(entry.clone()))
                .await
                .unwrap();
        }
        Self {
            clock,
            objects,
            version: blocks.len() as u64,
            blocks,
        }
    }

    /// Reads twice: with empty caches, and then other series with what the first left there.
    async fn report(&self, what: &str, first: &[Matcher], second: &[Matcher], range: TimeRange) {
        let manifests = TenantManifests::new(bucket(&self.objects, &self.clock), Duration::from_secs(86_400));
        // The manifest is known to every process that runs.
        manifests.latest(&TenantId::anonymous()).await.unwrap();
        let store = BlockStore::new(
            manifests,
            StoreSettings::default(),
            Cpu::inline(),
            &Metrics::new(),
        );
        let read = |block: &&BlockParts| block.meta.range.overlaps(&range);
        let read: Vec<&BlockParts> = self.blocks.iter().filter(read).collect();
        let mut needed_of = BTreeMap::<&str, u64>::new();
        for block in &read {
            for (part, bytes) in needed::needed(block, first).await {
                *needed_of.entry(part).or_default() += bytes;
            }
        }
        let needed: u64 = needed_of.values().sum();
        for (state, matchers) in [("nothing", first), ("the like", second)] {
            self.objects.take();
            self.objects.take_ranges();
            let before = tokio::time::Instant::now();
            let found = self.select(&store, matchers, range).await;
            let rounds = before.elapsed().as_secs_f64() / REQUEST.as_secs_f64();
            let (requests, bytes) = self.objects.take();
            let compared = match state {
                "nothing" => format!("{:.0} | {:.1}", needed as f64 / 1e3, bytes as f64 / needed as f64),
                _ => "|".to_owned(),
            };
            println!(
                "| {what} | {state} | {} | {found} | {rounds:.0} | {requests} | {:.1} | {:.0} | {compared} |",
                read.len(),
                requests as f64 / read.len() as f64,
                bytes as f64 / 1e3,
            );
            if state == "nothing" {
                self.report_parts(&needed_of);
            }
        }
    }

    /// Tells, beside the table, what came of which part.
    fn report_parts(&self, needed: &BTreeMap<&str, u64>) {
        let mut came = BTreeMap::<String, (u64, u64)>::new();
        for (path, range) in self.objects.take_ranges() {
            let part = path.filename().unwrap_or_default().to_owned();
            let (requests, bytes) = came.entry(part).or_default();
            *requests += 1;
            *bytes += range.end - range.start;
        }
        for (part, (requests, bytes)) in came {
            let needed = needed.get(part.as_str()).copied().unwrap_or(0);
            let (read, needed) = (bytes as f64 / 1e3, needed as f64 / 1e3);
            eprintln!("  {part}: {requests} requests, {read:.0} kB for {needed:.0}");
        }
    }

    async fn select(&self, store: &BlockStore, matchers: &[Matcher], range: TimeRange) -> u64 {
        let request = StoreSelectRequest {
            tenant: TenantId::anonymous(),
            manifest_version: self.version,
            blocks: Vec::new(),
            matchers: Matchers(matchers.to_vec()),
            range,
            labels_only: false,
            limit: 0,
            histogram_sums: false,
        };
        let mut stream = store.select(request).await.unwrap();
        let mut series = 0;
        while let Some(item) = stream.next().await {
            match item.unwrap() {
                StoreItem::Series(found) => series += found.len() as u64,
                StoreItem::End => break,
            }
        }
        series
    }
}

fn bucket(objects: &Arc<Distant>, clock: &Arc<RealClock>) -> Bucket {
    Bucket::new(
        Arc::<Distant>::clone(objects),
        "",
        Arc::<RealClock>::clone(clock),
        RngHandle::from_seed(1),
    )
}

fn metric(n: usize) -> Matcher {
    Matcher::equal("__name__", format!("metric_{n:04}_total"))
}

fn instance(n: usize) -> Matcher {
    Matcher::equal("instance", format!("host-{n:05}.example.com:9100"))
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    tokio::time::pause();
    let minutes = std::env::args().nth(1).map(|minutes| minutes.parse().unwrap());
    println!(
        "| query | cached before | blocks | series | rounds | requests | per block | kB | kB needed | times as many |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    Box::pin(full_days()).await;
    Box::pin(million(minutes.unwrap_or(120))).await;
    Box::pin(month()).await;
}

/// 17,000 series in a block for each of some days: each about as large as blocks get, and so is each of its parts.
async fn full_days() {
    const DAYS: i64 = 3;
    let days = World::of(Fleet {
        metrics: 50,
        targets: 340,
        block_ms: DAY_MS,
        windows: DAYS,
    })
    .await;
    for block in &days.blocks {
        let parts = block.meta.parts.iter();
        let parts: Vec<String> = parts
            .map(|p| format!("{} {} kB", p.name, p.bytes / 1000))
            .collect();
        let meta = block.meta.to_json().len();
        eprintln!(
            "  {}: meta.json {meta} bytes, {}",
            block.meta.block,
            parts.join(", ")
        );
    }
    let (all, day) = (TimeRange::ALL, TimeRange::new(START_MS, START_MS + DAY_MS - 1));
    let hour = TimeRange::new(START_MS + DAY_MS / 2, START_MS + DAY_MS / 2 + 3_600_000);
    for (kind, first, second) in [("gauge", 17, 27), ("counter", 15, 25), ("float", 19, 29)] {
        let first = [metric(first), instance(209)];
        let second = [metric(second), instance(133)];
        days.report(
            &format!("one series ({kind}), {DAYS} days of 17,000"),
            &first,
            &second,
            all,
        )
        .await;
        days.report(
            &format!("one series ({kind}), a day of 17,000"),
            &first,
            &second,
            day,
        )
        .await;
        days.report(
            &format!("one series ({kind}), an hour of 17,000"),
            &first,
            &second,
            hour,
        )
        .await;
    }
    days.report(
        &format!("one metric, {DAYS} days of 17,000"),
        &[metric(15)],
        &[metric(25)],
        all,
    )
    .await;
}

/// 1,000 series in a block for each of 30 days.
async fn month() {
    let month = World::of(Fleet {
        metrics: 20,
        targets: 50,
        block_ms: DAY_MS,
        windows: 30,
    })
    .await;
    let (all, day) = (TimeRange::ALL, TimeRange::new(START_MS, START_MS + DAY_MS - 1));
    let one = |m, i| [metric(m), instance(i)];
    month
        .report("one series, 30 days of 1,000", &one(7, 9), &one(15, 33), all)
        .await;
    month
        .report("one series, a day of 1,000", &one(7, 9), &one(15, 33), day)
        .await;
    month
        .report("one metric, 30 days of 1,000", &[metric(5)], &[metric(14)], all)
        .await;
}

/// 1,000,000 series in the blocks of some minutes.
async fn million(minutes: i64) {
    let million = World::of(Fleet {
        metrics: 1000,
        targets: 1000,
        block_ms: minutes * 60_000,
        windows: 1,
    })
    .await;
    let all = TimeRange::ALL;
    let first = [metric(707), instance(900)];
    let second = [metric(157), instance(330)];
    million
        .report(
            &format!("one series, {minutes} min of 1,000,000"),
            &first,
            &second,
            all,
        )
        .await;
    for (kind, first, second) in [("gauge", 307, 127), ("counter", 305, 125), ("constant", 300, 120)] {
        let what = format!("one metric ({kind}), {minutes} min of 1,000,000");
        million
            .report(&what, &[metric(first)], &[metric(second)], all)
            .await;
    }
    million
        .report(
            &format!("one target, {minutes} min of 1,000,000"),
            &[instance(300)],
            &[instance(120)],
            all,
        )
        .await;
}
