//! What a read costs of which nothing is cached but the manifest.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use koios_block::{BlockId, BlockOptions, BlockParts, BlockWriter, SAMPLES_PART, SERIES_PART, TIMES_PART};
use koios_bucket::{Bucket, ManifestBlock, TenantManifests, Writer};
use koios_model::{Labels, Matcher, Matchers, PartitionId, TenantId, TimeRange};
use koios_runtime::{Clock, Cpu, RngHandle, TokioClock};
use koios_server::Metrics;
use koios_store::{BlockStore, StoreSettings};
use koios_testkit::distant::Distant;
use koios_wire::{
    ServiceError, ServiceErrorCode, StoreItem, StoreLabelsRequest, StoreSelectRequest, StoreService,
    StoreStream,
};

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
    metrics: Metrics,
    version: u64,
}

impl World {
    async fn of(blocks: impl Iterator<Item = BlockParts>) -> Self {
        Self::with(StoreSettings::default(), blocks).await
    }

    async fn with(settings: StoreSettings, blocks: impl Iterator<Item = BlockParts>) -> Self {
        let clock = Arc::new(TokioClock::starting_at(0));
        let objects = Arc::new(Distant::new(Arc::<TokioClock>::clone(&clock), REQUEST));
        let bucket = Bucket::new(
            Arc::<Distant>::clone(&objects),
            "",
            clock,
            RngHandle::from_seed(1),
        );
        let tenant = TenantId::anonymous();
        for block in blocks {
            bucket.send_block(&tenant, &block).await.unwrap();
            let entry = ManifestBlock::new(&block.meta, BTreeMap::new());
            let writer = Writer::partition("test", PartitionId(0), 1);
            let commit = bucket.commit(&tenant, &writer, |m| m.add_block(entry.clone()));
            commit.await.unwrap();
        }
        let manifests = TenantManifests::new(bucket, Duration::from_secs(86_400));
        let version = manifests.latest(&tenant).await.unwrap().version;
        let metrics = Metrics::new();
        let store = BlockStore::new(manifests, settings, Cpu::inline(), &metrics);
        objects.take();
        Self {
            objects,
            store,
            metrics,
            version,
        }
    }

    /// How many bytes reads under way hold.
    fn held(&self) -> f64 {
        let all = self.metrics.gather().into_iter();
        let held = all.filter(|(labels, _)| labels.get("cache") == Some("held"));
        held.map(|(_, bytes)| bytes).sum()
    }

    /// How many rounds of requests some work takes that wait for one another, and how many requests and bytes.
    async fn cost<T>(&self, work: impl Future<Output = T>) -> (T, Cost) {
        self.objects.take();
        self.objects.take_ranges();
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

    async fn stream(&self, matcher: Matcher, range: TimeRange, labels_only: bool) -> StoreStream {
        let request = StoreSelectRequest {
            tenant: TenantId::anonymous(),
            manifest_version: self.version,
            blocks: Vec::new(),
            matchers: Matchers(vec![matcher]),
            range,
            labels_only,
            limit: 0,
            histogram_sums: false,
        };
        self.store.select(request).await.unwrap()
    }

    /// How many series match and how many samples they have.
    async fn select(&self, matcher: Matcher, range: TimeRange, labels_only: bool) -> (usize, i64) {
        let mut stream = self.stream(matcher, range, labels_only).await;
        rest(&mut stream).await.unwrap()
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

/// What is left of a stream: how many series, and how many samples they have.
async fn rest(stream: &mut StoreStream) -> Result<(usize, i64), ServiceError> {
    let (mut series, mut samples) = (0, 0);
    while let Some(item) = stream.next().await {
        let (of_item, in_item) = counted(&item?);
        series += of_item;
        samples += in_item;
    }
    Ok((series, samples))
}

fn counted(item: &StoreItem) -> (usize, i64) {
    let StoreItem::Series(found) = item else {
        return (0, 0);
    };
    let runs = found.iter().flat_map(|s| &s.runs);
    let samples: usize = runs.map(koios_chunk::Run::count).sum();
    (found.len(), samples as i64)
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
    let without_ends = blocks.iter().cloned().map(|mut block| {
        block.meta.parts.iter_mut().for_each(|part| part.end = None);
        block
    });
    let without_ends: Vec<BlockParts> = without_ends.collect();
    // What earlier versions wrote takes the same rounds, and the ends of parts by themselves.
    for (blocks, most) in [(&blocks, 6), (&without_ends, 9)] {
        for (range, of) in [(TimeRange::ALL, BLOCKS), (short, 1)] {
            let world = Box::pin(World::of(blocks.iter().cloned())).await;
            let select = world.select(Matcher::equal("i", "02"), range, false);
            let (found, cost) = Box::pin(world.cost(select)).await;
            match of {
                1 => assert_eq!(found, (1, 200)),
                _ => assert_eq!(found, (1, BLOCKS * 50_000)),
            }
            assert!(cost.rounds <= 4, "{cost:?} of {of} blocks");
            assert!(cost.requests <= most * of as u64, "{cost:?} of {of} blocks");
            // Footers and labels are cached now.
            let select = world.select(Matcher::equal("i", "01"), range, false);
            let (_, cost) = Box::pin(world.cost(select)).await;
            assert!(cost.rounds <= 1, "{cost:?} of {of} blocks");
            assert!(cost.requests <= 2 * of as u64, "{cost:?} of {of} blocks");
        }
    }
    // Of blocks without the series no more than what they are and a column of labels is read.
    let world = Box::pin(World::of(blocks.into_iter())).await;
    let select = world.select(Matcher::equal("i", "none"), TimeRange::ALL, false);
    let (found, cost) = Box::pin(world.cost(select)).await;
    assert_eq!(found, (0, 0));
    assert!(cost.rounds <= 2 && cost.requests <= 2 * BLOCKS as u64, "{cost:?}");
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
        // The manifest says that there are none.
        assert_eq!((cost.requests, cost.bytes), (0, 0), "exemplars: {cost:?}");
        // Samples of the same blocks: the ends of their parts come when a series may match.
        let select = world.select(Matcher::equal("i", "07"), TimeRange::ALL, false);
        let (found, cost) = Box::pin(world.cost(select)).await;
        assert_eq!(found, (1, BLOCKS * ROWS));
        assert!(cost.rounds <= 4, "{cost:?}");
    }
}

/// How many bytes of parts came twice.
fn bytes_twice(world: &World) -> u64 {
    let mut came = world.objects.take_ranges();
    came.retain(|(path, _)| path.as_ref().ends_with(".parquet"));
    came.sort_by(|a, b| (&a.0, a.1.start).cmp(&(&b.0, b.1.start)));
    let (mut twice, mut up_to) = (0, BTreeMap::new());
    for (path, range) in came {
        let up_to = up_to.entry(path).or_insert(0);
        twice += range.end.min(*up_to).saturating_sub(range.start);
        *up_to = range.end.max(*up_to);
    }
    twice
}

/// With so many bytes for cells, and as many for what reads hold of them.
fn settings(cell_cache_bytes: u64) -> StoreSettings {
    StoreSettings {
        cell_cache_bytes,
        ..StoreSettings::default()
    }
}

async fn sleep(seconds: u64) {
    TokioClock::starting_at(0)
        .sleep(Duration::from_secs(seconds))
        .await;
}

#[tokio::test(start_paused = true)]
async fn round_trips_do_not_grow_with_windows_and_no_byte_comes_twice() {
    for own_times in [false, true] {
        let blocks: Vec<BlockParts> = (0..BLOCKS).map(|number| block(number, own_times)).collect();
        let all: u64 = blocks.iter().flat_map(|b| &b.meta.parts).map(|p| p.bytes).sum();
        let metas: u64 = blocks.iter().map(|b| b.meta.to_json().len() as u64).sum();
        // In sections of some windows each, and of one or two.
        for (cache, rounds) in [(256 << 20, 6), (64 << 20, 9)] {
            let world = Box::pin(World::with(settings(cache), blocks.clone().into_iter())).await;
            let select = world.select(Matcher::equal("__name__", "m"), TimeRange::ALL, false);
            let (found, cost) = Box::pin(world.cost(select)).await;
            // Two series are a window: each has a sixth of a million samples.
            assert_eq!(found, (SERIES as usize, SERIES as i64 * BLOCKS * ROWS));
            assert_eq!(bytes_twice(&world), 0);
            let text = format!("{cost:?}, of {all} bytes, own times {own_times}, cache {cache}");
            assert!(cost.rounds <= rounds, "{text}");
            assert!(cost.bytes <= all + metas, "{text}");
            assert_eq!(world.held(), 0.0);
        }
    }
}

/// A block with many row groups of series, of which each target has some in all.
fn wide_block() -> BlockParts {
    const METRICS: usize = 400;
    const TARGETS: usize = 200;
    let window = TimeRange::new(0, 1_000_000);
    let id = BlockId::new(window.max, 1);
    let mut writer = BlockWriter::new(BlockOptions::new(id, TenantId::anonymous(), window)).unwrap();
    for metric in 0..METRICS {
        for target in 0..TARGETS {
            let name = ("__name__", format!("m{metric:04}"));
            let labels = Labels::from_pairs([name, ("i", format!("{target:04}"))]);
            let values =
                [0, 1, 2, 3].map(|t| f64::from_bits(noise(t, (metric * TARGETS + target) as u64) >> 2));
            writer.push_series(&labels, None, &[1, 2, 3, 4], &values).unwrap();
        }
    }
    writer.finish().unwrap().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_series_here_and_there_in_a_large_block_takes_few_round_trips() {
    let world = Box::pin(World::of(std::iter::once(wide_block()))).await;
    let select = world.select(Matcher::equal("i", "0123"), TimeRange::ALL, false);
    let (found, cost) = Box::pin(world.cost(select)).await;
    assert_eq!(found, (400, 1600));
    // A column of labels of each of three row groups, which lies between what makes series.
    let twice = bytes_twice(&world);
    assert!(twice <= 3 << 16, "{twice} bytes came twice, {cost:?}");
    assert!(cost.rounds <= 5, "{cost:?}");
    // Nobody asks for what is known.
    let select = world.select(Matcher::equal("i", "0123"), TimeRange::ALL, false);
    let (found, cost) = Box::pin(world.cost(select)).await;
    assert_eq!((found, cost.requests), ((400, 1600), 0));
}

#[tokio::test(start_paused = true)]
async fn a_metric_of_a_large_block_takes_fewer_bytes_of_series_where_cells_are_small() {
    let with = wide_block();
    let mut without = with.clone();
    for part in &mut without.meta.parts {
        part.small_cells = None;
    }
    let mut costs = Vec::new();
    for block in [with, without] {
        let world = Box::pin(World::of(std::iter::once(block))).await;
        let select = world.select(Matcher::equal("__name__", "m0123"), TimeRange::ALL, false);
        let (found, cost) = Box::pin(world.cost(select)).await;
        assert_eq!(found, (200, 800));
        assert!(cost.rounds <= 4, "{cost:?}");
        let of_series = world.objects.take_ranges().into_iter();
        let of_series = of_series.filter(|(path, _)| path.filename() == Some(SERIES_PART));
        let bytes: u64 = of_series.map(|(_, range)| range.end - range.start).sum();
        costs.push((bytes, cost));
    }
    let [(with, cost), (without, cost_without)] = &costs[..] else {
        panic!("{costs:?}");
    };
    assert!(with * 3 < without * 2, "{costs:?}");
    assert!(cost.requests <= 6 && cost_without.requests <= 6, "{costs:?}");
}

#[tokio::test(start_paused = true)]
async fn i12_who_reads_slowly_makes_nothing_pile_up_and_who_leaves_ends_all_reads() {
    const CACHE: u64 = 48 << 20;
    let blocks: Vec<BlockParts> = (0..BLOCKS).map(|number| block(number, true)).collect();
    let all: u64 = blocks.iter().flat_map(|b| &b.meta.parts).map(|p| p.bytes).sum();
    let world = Box::pin(World::with(settings(CACHE), blocks.into_iter())).await;
    let mut stream = world
        .stream(Matcher::equal("__name__", "m"), TimeRange::ALL, false)
        .await;
    let first = stream.next().await.unwrap().unwrap();
    assert!(counted(&first).1 > 0);
    sleep(600).await;
    // A read may have half of what there is for all, and fetches two sections of a fifth of this each.
    let (held, (_, bytes)) = (world.held(), world.objects.take());
    assert!(held > 0.0 && held <= (CACHE / 2) as f64, "{held}");
    assert!(bytes < all / 3 * 2, "{bytes} of {all}");
    sleep(600).await;
    assert_eq!(world.objects.take(), (0, 0));
    // It goes on where it was, however long that took.
    let second = stream.next().await.unwrap().unwrap();
    assert!(counted(&second).1 > 0);
    let third = stream.next().await.unwrap().unwrap();
    assert!(counted(&third).1 > 0);
    drop(stream);
    sleep(1).await;
    world.objects.take();
    sleep(600).await;
    assert_eq!(world.objects.take(), (0, 0));
    assert_eq!(world.held(), 0.0);
}

#[tokio::test(start_paused = true)]
async fn i4_a_bucket_that_breaks_down_fails_a_read_once_and_after_what_came_before() {
    let blocks: Vec<BlockParts> = (0..BLOCKS).map(|number| block(number, true)).collect();
    let world = Box::pin(World::with(settings(64 << 20), blocks.into_iter())).await;
    let mut stream = world
        .stream(Matcher::equal("__name__", "m"), TimeRange::ALL, false)
        .await;
    let first = stream.next().await.unwrap().unwrap();
    assert!(counted(&first).1 > 0);
    world.objects.break_down_after(0);
    let before = tokio::time::Instant::now();
    let failed = rest(&mut stream).await.unwrap_err();
    assert_eq!(failed.code, ServiceErrorCode::BucketUnavailable, "{failed}");
    // As long as one read of the bucket is tried.
    assert!(
        before.elapsed() < Duration::from_secs(90),
        "{:?}",
        before.elapsed()
    );
    assert!(stream.next().await.is_none());
    sleep(1).await;
    assert_eq!(world.held(), 0.0);
}

#[tokio::test(start_paused = true)]
async fn i11_damage_is_told_by_the_series_that_has_it_whatever_was_fetched_ahead() {
    let mut blocks: Vec<BlockParts> = (0..BLOCKS).map(|number| block(number, true)).collect();
    // Of values of one of the last series.
    let damaged = &mut blocks[7];
    let (_, bytes) = damaged
        .parts
        .iter_mut()
        .find(|(name, _)| name == SAMPLES_PART)
        .unwrap();
    let mut changed = bytes.to_vec();
    let at = changed.len() * 9 / 10;
    changed[at] ^= 1;
    *bytes = changed.into();
    let world = Box::pin(World::of(blocks.into_iter())).await;
    let mut stream = world
        .stream(Matcher::equal("__name__", "m"), TimeRange::ALL, false)
        .await;
    let mut came = 0;
    let failed = loop {
        match stream.next().await.unwrap() {
            Ok(item) => came += counted(&item).0,
            Err(e) => break e,
        }
    };
    assert_eq!(failed.code, ServiceErrorCode::Corruption, "{failed}");
    assert!(failed.message.contains("failed its checksum"), "{failed}");
    assert!(0 < came && came < SERIES as usize, "{came} series came before it");
    // What was fetched ahead ends, too.
    drop(stream);
    sleep(1).await;
    assert_eq!(world.held(), 0.0);
}
