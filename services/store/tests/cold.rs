//! What a read costs of which nothing is cached but the manifest.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use koios_block::{BlockId, BlockOptions, BlockParts, BlockWriter, SERIES_PART, TIMES_PART};
use koios_bucket::{Bucket, ManifestBlock, TenantManifests, Writer};
use koios_model::{Labels, Matcher, Matchers, PartitionId, TenantId, TimeRange};
use koios_runtime::{Cpu, RealClock, RngHandle};
use koios_server::Metrics;
use koios_store::{BlockStore, StoreSettings};
use koios_testkit::distant::Distant;
use koios_wire::{StoreItem, StoreLabelsRequest, StoreSelectRequest, StoreService};

const REQUEST: Duration = Duration::from_millis(10);
const BLOCKS: i64 = 30;
const SERIES: u64 = 20;
const ROWS: i64 = 4_000;

/// Most milliseconds between two samples of a series.
const STEP_MS: i64 = 1 << 28;

fn noise(t: i64, series: u64) -> u64 {
    let mixed = (t.unsigned_abs() * SERIES + series + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

/// A block whose samples no codec makes smaller: some hundred kilobytes. Its series have the same times, or each its own, which
/// are as many bytes then.
fn block(number: i64, own_times: bool) -> BlockParts {
    let time = |row: i64, series: u64| match own_times {
        true => row * STEP_MS + noise(row, series).cast_signed().rem_euclid(STEP_MS),
        false => row * STEP_MS,
    };
    let (first, end) = (number * ROWS, (number + 1) * ROWS);
    let window = TimeRange::new(first * STEP_MS, end * STEP_MS - 1);
    let id = BlockId::new(window.max, u128::try_from(number).unwrap());
    let mut writer = BlockWriter::new(BlockOptions::new(id, TenantId::anonymous(), window)).unwrap();
    for series in 0..SERIES {
        let labels = Labels::from_pairs([("__name__", "m".to_owned()), ("i", format!("{series:02}"))]);
        let times: Vec<i64> = (first..end).map(|row| time(row, series)).collect();
        let values = times.iter().map(|&t| f64::from_bits(noise(t, series) >> 2));
        let values: Vec<f64> = values.collect();
        writer.push_series(&labels, None, &times, &values).unwrap();
    }
    writer.finish().unwrap().unwrap()
}

/// A block of which every part is many cells: a fifth of a million times of four series, each its own, and thousands of others with
/// one sample each, whose labels no codec makes smaller.
fn large_block(number: i64) -> BlockParts {
    const LONG_ROWS: i64 = 50_000;
    const SHORT_SERIES: u64 = 8_000;
    let (first, end) = (number * LONG_ROWS, (number + 1) * LONG_ROWS);
    let window = TimeRange::new(first * STEP_MS, end * STEP_MS - 1);
    let id = BlockId::new(window.max, u128::try_from(number).unwrap());
    let mut writer = BlockWriter::new(BlockOptions::new(id, TenantId::anonymous(), window)).unwrap();
    for series in 0..4 {
        let labels = Labels::from_pairs([("__name__", "long".to_owned()), ("i", format!("{series:02}"))]);
        let time = |row| row * STEP_MS + noise(row, series).cast_signed().rem_euclid(STEP_MS);
        let times: Vec<i64> = (first..end).map(time).collect();
        let values: Vec<f64> = times
            .iter()
            .map(|&t| f64::from_bits(noise(t, series) >> 2))
            .collect();
        writer.push_series(&labels, None, &times, &values).unwrap();
    }
    for series in 0..SHORT_SERIES {
        let digits = [1, 2, 3].map(|n| format!("{:016x}", noise(n, series)));
        let labels = Labels::from_pairs([
            ("__name__", "short".to_owned()),
            ("i", format!("{series:06}")),
            ("noise", digits.concat()),
        ]);
        writer
            .push_series(&labels, None, &[window.min], &[series as f64])
            .unwrap();
    }
    writer.finish().unwrap().unwrap()
}

fn bytes_of(block: &BlockParts, part: &str) -> u64 {
    block.meta.part(part).unwrap().bytes
}

/// A store far from its blocks, of which it knows nothing but the manifest.
struct World {
    objects: Arc<Distant>,
    store: BlockStore,
    version: u64,
}

impl World {
    async fn of(blocks: impl Iterator<Item = BlockParts>) -> Self {
        let clock = Arc::new(RealClock::new());
        let objects = Arc::new(Distant::new(Arc::<RealClock>::clone(&clock), REQUEST));
        let bucket = Bucket::new(
            Arc::<Distant>::clone(&objects),
            "",
            clock,
            RngHandle::from_seed(1),
        );
        let tenant = TenantId::anonymous();
        for block in blocks {
            bucket.upload_block(&tenant, &block).await.unwrap();
            let entry = ManifestBlock::new(&block.meta, BTreeMap::new());
            let writer = Writer::partition("test", PartitionId(0), 1);
            let commit = bucket.commit(&tenant, &writer, |m| m.add_block(entry.clone()));
            commit.await.unwrap();
        }
        let manifests = TenantManifests::new(bucket, Duration::from_secs(86_400));
        let version = manifests.latest(&tenant).await.unwrap().version;
        let store = BlockStore::new(
            manifests,
            StoreSettings::default(),
            Cpu::inline(),
            &Metrics::new(),
        );
        objects.take();
        Self {
            objects,
            store,
            version,
        }
    }

    /// How many rounds of requests some work takes that wait for one another, and how many requests and bytes.
    async fn cost<T>(&self, work: impl Future<Output = T>) -> (T, Cost) {
        self.objects.take();
        let before = tokio::time::Instant::now();
        let done = work.await;
        let rounds = before.elapsed().as_millis() / REQUEST.as_millis();
        let (requests, bytes) = self.objects.take();
        let cost = Cost {
            rounds,
            requests,
            bytes,
        };
        (done, cost)
    }

    /// How many series match and how many samples they have.
    async fn select(&self, matcher: Matcher, range: TimeRange, labels_only: bool) -> (usize, i64) {
        let request = StoreSelectRequest {
            tenant: TenantId::anonymous(),
            manifest_version: self.version,
            blocks: Vec::new(),
            matchers: Matchers(vec![matcher]),
            range,
            labels_only,
            limit: 0,
        };
        let mut stream = self.store.select(request).await.unwrap();
        let (mut series, mut samples) = (0, 0);
        while let Some(item) = stream.next().await {
            if let StoreItem::Series(found) = item.unwrap() {
                series += found.len();
                let runs = found.iter().flat_map(|s| &s.runs);
                samples += runs.map(koios_chunk::Run::count).sum::<usize>();
            }
        }
        (series, samples as i64)
    }

    fn labels_request(&self, name: &str) -> StoreLabelsRequest {
        StoreLabelsRequest {
            tenant: TenantId::anonymous(),
            manifest_version: self.version,
            blocks: Vec::new(),
            name: name.to_owned(),
            matchers: Matchers::default(),
            range: TimeRange::ALL,
            limit: 0,
        }
    }
}

#[derive(Debug)]
struct Cost {
    rounds: u128,
    requests: u64,
    bytes: u64,
}

#[tokio::test(start_paused = true)]
async fn one_series_over_thirty_blocks_takes_four_round_trips_at_most() {
    for own_times in [false, true] {
        let blocks = (0..BLOCKS).map(|number| {
            let block = block(number, own_times);
            let large = |part: &koios_block::PartMeta| part.bytes > 256 << 10;
            let large: Vec<_> = block.meta.parts.iter().filter(|part| large(part)).collect();
            assert_eq!(
                large.len(),
                1 + usize::from(own_times),
                "more than a tail: {large:?}"
            );
            block
        });
        let world = Box::pin(World::of(blocks)).await;
        let select = world.select(Matcher::equal("i", "07"), TimeRange::ALL, false);
        let (found, cost) = Box::pin(world.cost(select)).await;
        assert_eq!(found, (1, BLOCKS * ROWS));
        assert!(cost.rounds <= 2, "{cost:?}, own times {own_times}");
        assert!(
            cost.requests <= 6 * BLOCKS as u64,
            "{cost:?}, own times {own_times}"
        );
        // Footers are cached now.
        let select = world.select(Matcher::equal("i", "13"), TimeRange::ALL, false);
        let (found, cost) = Box::pin(world.cost(select)).await;
        assert_eq!(found, (1, BLOCKS * ROWS));
        assert!(cost.rounds <= 1, "{cost:?}, own times {own_times}");
        assert!(
            cost.requests <= 2 * BLOCKS as u64,
            "{cost:?}, own times {own_times}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn one_series_takes_four_round_trips_however_large_the_parts_are() {
    const BLOCKS: i64 = 3;
    let blocks: Vec<BlockParts> = (0..BLOCKS).map(large_block).collect();
    let sizes = |part| blocks.iter().map(move |b| bytes_of(b, part)).min().unwrap();
    assert!(
        sizes(SERIES_PART) > 256 << 10 && sizes(TIMES_PART) > 512 << 10,
        "{} {}",
        sizes(SERIES_PART),
        sizes(TIMES_PART)
    );
    let all: u64 = blocks.iter().flat_map(|b| &b.meta.parts).map(|p| p.bytes).sum();
    let from = blocks[1].meta.window.min + 20_000 * STEP_MS;
    let short = TimeRange::new(from, from + 200 * STEP_MS - 1);
    for (range, of) in [(TimeRange::ALL, BLOCKS), (short, 1)] {
        let world = Box::pin(World::of(blocks.clone().into_iter())).await;
        let select = world.select(Matcher::equal("i", "02"), range, false);
        let (found, cost) = Box::pin(world.cost(select)).await;
        match of {
            1 => assert_eq!(found, (1, 200)),
            _ => assert_eq!(found, (1, BLOCKS * 50_000)),
        }
        assert!(cost.rounds <= 4, "{cost:?} of {of} blocks");
        assert!(cost.requests <= 9 * of as u64, "{cost:?} of {of} blocks");
        // Footers and labels are cached now.
        let select = world.select(Matcher::equal("i", "01"), range, false);
        let (_, cost) = Box::pin(world.cost(select)).await;
        assert!(cost.rounds <= 1, "{cost:?} of {of} blocks");
        assert!(cost.requests <= 2 * of as u64, "{cost:?} of {of} blocks");
    }
    // Of blocks without the series no more than the ends of two parts and a column of labels is read.
    let world = Box::pin(World::of(blocks.into_iter())).await;
    let select = world.select(Matcher::equal("i", "none"), TimeRange::ALL, false);
    let (found, cost) = Box::pin(world.cost(select)).await;
    assert_eq!(found, (0, 0));
    assert!(cost.rounds <= 2 && cost.requests <= 4 * BLOCKS as u64, "{cost:?}");
    assert!(cost.bytes < all / 4, "{cost:?} of {all} bytes");
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_labels_reads_series_alone() {
    const BLOCKS: i64 = 6;
    for own_times in [false, true] {
        let written: Vec<BlockParts> = (0..BLOCKS).map(|number| block(number, own_times)).collect();
        let blocks = || written.clone().into_iter();
        let series: u64 = written.iter().map(|b| bytes_of(b, SERIES_PART)).sum();
        let metas: u64 = written.iter().map(|b| b.meta.to_json().len() as u64).sum();
        // What the ends of parts and `meta.json` take, and no byte of other parts.
        let is_all = |cost: &Cost| {
            cost.requests == 2 * BLOCKS as u64 && cost.bytes == series + metas && cost.rounds == 1
        };
        let world = Box::pin(World::of(blocks())).await;
        let select = world.select(Matcher::equal("i", "07"), TimeRange::ALL, true);
        let (found, cost) = Box::pin(world.cost(select)).await;
        assert_eq!(found, (1, 0));
        assert!(is_all(&cost), "series: {cost:?}, not {series} + {metas}");
        let world = Box::pin(World::of(blocks())).await;
        let names = world.store.label_names(world.labels_request(""));
        let (found, cost) = Box::pin(world.cost(names)).await;
        assert_eq!(found.unwrap(), ["__name__", "i"]);
        assert!(is_all(&cost), "names: {cost:?}, not {series} + {metas}");
        let world = Box::pin(World::of(blocks())).await;
        let values = world.store.label_values(world.labels_request("i"));
        let (found, cost) = Box::pin(world.cost(values)).await;
        assert_eq!(found.unwrap().len() as u64, SERIES);
        assert!(is_all(&cost), "values: {cost:?}, not {series} + {metas}");
        let world = Box::pin(World::of(blocks())).await;
        let known = world.store.metadata(world.labels_request(""));
        let (found, cost) = Box::pin(world.cost(known)).await;
        assert!(found.unwrap().is_empty());
        assert!(is_all(&cost), "metadata: {cost:?}, not {series} + {metas}");
        let world = Box::pin(World::of(blocks())).await;
        let exemplars = world.store.exemplars(world.labels_request(""));
        let (found, cost) = Box::pin(world.cost(exemplars)).await;
        assert!(found.unwrap().is_empty());
        assert!(
            cost.requests == BLOCKS as u64 && cost.bytes == metas,
            "exemplars: {cost:?}"
        );
        // Samples of the same blocks, whose metadata is known now: the ends of their parts come when a series may match.
        let select = world.select(Matcher::equal("i", "07"), TimeRange::ALL, false);
        let (found, cost) = Box::pin(world.cost(select)).await;
        assert_eq!(found, (1, BLOCKS * ROWS));
        assert!(cost.rounds <= 4, "{cost:?}");
    }
}
