//! What a query reads of blocks that nothing is cached of, as a table: requests, the rounds of them that wait for one another,
//! and bytes. `cargo run --release -p koios-store --example cold_reads`.
//!
//! Every request to the simulated object store takes 10 ms of simulated time, however many run at once, so that the time a
//! query takes is the number of its rounds.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a tool for developers")]

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use koios_block::{BlockId, BlockOptions, BlockWriter, Layout};
use koios_bucket::{Bucket, ManifestBlock, TenantManifests, Writer};
use koios_model::{Labels, Matcher, Matchers, PartitionId, TenantId, TimeRange};
use koios_runtime::{Clock, Cpu, RealClock, RngHandle};
use koios_server::Metrics;
use koios_store::{BlockStore, StoreSettings};
use koios_wire::{StoreItem, StoreSelectRequest, StoreService};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

const REQUEST: Duration = Duration::from_millis(10);
const DAY_MS: i64 = 86_400_000;
const START_MS: i64 = 19_000 * DAY_MS;

/// An object store far away.
#[derive(Debug)]
struct Distant {
    inner: Arc<InMemory>,
    clock: Arc<RealClock>,
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Distant {
    async fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.clock.sleep(REQUEST).await;
    }

    fn take(&self) -> (u64, u64) {
        (
            self.requests.swap(0, Ordering::Relaxed),
            self.bytes.swap(0, Ordering::Relaxed),
        )
    }
}

impl fmt::Display for Distant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("distant")
    }
}

#[async_trait]
impl ObjectStore for Distant {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.request().await;
        let found = self.inner.get_opts(path, options).await?;
        self.bytes
            .fetch_add(found.range.end - found.range.start, Ordering::Relaxed);
        Ok(found)
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        // An object store answers one range a request.
        self.requests
            .fetch_add(ranges.len().saturating_sub(1) as u64, Ordering::Relaxed);
        self.request().await;
        let found = self.inner.get_ranges(path, ranges).await?;
        self.bytes
            .fetch_add(found.iter().map(|b| b.len() as u64).sum(), Ordering::Relaxed);
        Ok(found)
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.request().await;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// A fleet: `metrics` of each of `targets`.
#[derive(Clone, Copy)]
struct Fleet {
    metrics: usize,
    targets: usize,
    step_ms: i64,
    days: i64,
}

impl Fleet {
    fn series(&self) -> usize {
        self.metrics * self.targets
    }

    /// A block of one day.
    fn block(&self, day: i64) -> koios_block::BlockParts {
        let window = TimeRange::new(START_MS + day * DAY_MS, START_MS + (day + 1) * DAY_MS - 1);
        let id = BlockId::new(window.max, u128::try_from(day).unwrap());
        let mut options = BlockOptions::new(id, TenantId::anonymous(), window);
        options.layout = Layout::compacted();
        let mut writer = BlockWriter::new(options).unwrap();
        let mut values = Vec::new();
        for metric in 0..self.metrics {
            for target in 0..self.targets {
                let labels = Labels::from_pairs([
                    ("__name__", format!("metric_{metric:04}_total").as_str()),
                    ("instance", &format!("host-{target:05}.example.com:9100")),
                    ("job", "node"),
                    ("region", &format!("region-{}", target % 7)),
                ]);
                // A few milliseconds of jitter, and counters that rise by what differs.
                let seed = (metric * 31 + target * 17) as i64;
                let times: Vec<i64> = (window.min..window.max)
                    .step_by(usize::try_from(self.step_ms).unwrap())
                    .enumerate()
                    .map(|(i, t)| t + (seed + i as i64 * 7919) % 7)
                    .collect();
                values.clear();
                let mut value = 0i64;
                values.extend(times.iter().map(|t| {
                    value += (t * 2_654_435_761 + seed) % 97;
                    value as f64
                }));
                writer.push_series(&labels, None, &times, &values).unwrap();
            }
        }
        writer.finish().unwrap().unwrap()
    }
}

/// A store over a bucket with the blocks of a fleet, with empty caches at every use.
struct World {
    clock: Arc<RealClock>,
    objects: Arc<Distant>,
    version: u64,
    blocks: u64,
    bytes_per_series: u64,
}

impl World {
    async fn of(fleet: Fleet) -> Self {
        let clock = Arc::new(RealClock::new());
        let objects = Arc::new(Distant {
            inner: Arc::new(InMemory::new()),
            clock: Arc::clone(&clock),
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        let bucket = bucket(&objects, &clock);
        let mut bytes = 0;
        for day in 0..fleet.days {
            let block = fleet.block(day);
            bucket.upload_block(&TenantId::anonymous(), &block).await.unwrap();
            let entry = ManifestBlock::new(&block.meta, BTreeMap::new());
            bytes += entry.bytes();
            let writer = Writer::partition("table", PartitionId(0), 1);
            bucket
                .commit(&TenantId::anonymous(), &writer, |m| m.add_block(entry.clone()))
                .await
                .unwrap();
        }
        Self {
            clock,
            objects,
            version: u64::try_from(fleet.days).unwrap(),
            blocks: u64::try_from(fleet.days).unwrap(),
            bytes_per_series: bytes / fleet.series() as u64,
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
        let blocks = match range == TimeRange::ALL {
            true => self.blocks,
            false => 1,
        };
        for (state, matchers) in [("nothing", first), ("the like", second)] {
            self.objects.take();
            let before = tokio::time::Instant::now();
            let found = self.select(&store, matchers, range).await;
            let rounds = before.elapsed().as_secs_f64() / REQUEST.as_secs_f64();
            let (requests, bytes) = self.objects.take();
            println!(
                "| {what} | {state} | {blocks} | {found} | {rounds:.0} | {requests} | {:.1} | {:.0} | {:.1} |",
                requests as f64 / blocks as f64,
                bytes as f64 / 1e3,
                bytes as f64 / (self.bytes_per_series * found.max(1) * blocks / self.blocks) as f64,
            );
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
    println!(
        "| query | cached before | blocks | series | rounds | requests | per block | kB | of its share |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let month = World::of(Fleet {
        metrics: 20,
        targets: 50,
        step_ms: 15_000,
        days: 30,
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
        .report("one metric, 30 days of 1,000", &[metric(3)], &[metric(12)], all)
        .await;
    drop(month);
    let wide = World::of(Fleet {
        metrics: 1000,
        targets: 1000,
        step_ms: 3_600_000,
        days: 1,
    })
    .await;
    wide.report(
        "one series, a day of 1,000,000",
        &one(700, 900),
        &one(150, 330),
        all,
    )
    .await;
    wide.report(
        "one metric, a day of 1,000,000",
        &[metric(300)],
        &[metric(120)],
        all,
    )
    .await;
    wide.report(
        "one target, a day of 1,000,000",
        &[instance(300)],
        &[instance(120)],
        all,
    )
    .await;
}
