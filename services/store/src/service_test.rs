//! Claims about reads of blocks in a bucket.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use koios_block::{BlockId, BlockOptions, BlockWriter};
use koios_bucket::{Bucket, ManifestBlock, TenantManifests, Writer};
use koios_model::merge::winner;
use koios_model::{Labels, Matcher, Matchers, PartitionId, TenantId, TimeRange};
use koios_runtime::{Cpu, RealClock, RngHandle};
use koios_server::Metrics;
use koios_wire::{
    ServiceError, ServiceErrorCode, StoreItem, StoreLabelsRequest, StoreSelectRequest, StoreService,
};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};

use crate::bounds::ReadBounds;
use crate::{BlockStore, StoreSettings};

mod bounded;

pub(crate) type Data = BTreeMap<Labels, BTreeMap<i64, f64>>;

struct World {
    objects: Arc<InMemory>,
    manifests: TenantManifests,
    tenant: TenantId,
    next: u128,
}

fn labels(i: usize) -> Labels {
    Labels::from_pairs([("__name__", "m".to_owned()), ("i", format!("{i:04}"))])
}

impl World {
    fn new() -> Self {
        let objects = Arc::new(InMemory::new());
        let store: Arc<dyn ObjectStore> = Arc::<InMemory>::clone(&objects);
        let bucket = Bucket::new(store, "", Arc::new(RealClock::new()), RngHandle::from_entropy());
        Self {
            objects,
            manifests: TenantManifests::new(bucket, Duration::from_secs(60)),
            tenant: TenantId::anonymous(),
            next: 0,
        }
    }

    fn writer() -> Writer {
        Writer::partition("test", PartitionId(0), 1)
    }

    /// Uploads and lists a block; returns its name and the version that lists it.
    async fn upload(&mut self, data: &Data) -> (BlockId, u64) {
        self.next += 1;
        let id = BlockId::new(1_000, self.next);
        let options = BlockOptions::new(id, self.tenant.clone(), TimeRange::new(-1_000_000, 1_000_000));
        let mut writer = BlockWriter::new(options).unwrap();
        for (labels, samples) in data {
            let (times, values): (Vec<_>, Vec<_>) = samples.iter().unzip();
            writer.push_series(labels, None, &times, &values).unwrap();
        }
        let parts = writer.finish().unwrap().unwrap();
        let bucket = self.manifests.bucket();
        bucket.upload_block(&self.tenant, &parts).await.unwrap();
        let entry = ManifestBlock::new(&parts.meta, BTreeMap::new());
        let writer = Self::writer();
        let commit = self
            .manifests
            .commit(&self.tenant, &writer, |m| m.add_block(entry.clone()));
        (id, commit.await.unwrap().version)
    }

    async fn remove(&self, block: BlockId) -> u64 {
        let writer = Self::writer();
        let commit = self.manifests.commit(&self.tenant, &writer, |m| {
            m.remove_block(block);
            Ok(())
        });
        commit.await.unwrap().version
    }

    /// A store with cold caches.
    fn store(&self) -> BlockStore {
        self.store_on(Cpu::inline())
    }

    fn store_on(&self, cpu: Cpu) -> BlockStore {
        let settings = StoreSettings::default();
        BlockStore::new(self.manifests.clone(), settings, cpu, &Metrics::new())
    }

    fn request(&self, version: u64, blocks: &[BlockId]) -> StoreSelectRequest {
        StoreSelectRequest {
            tenant: self.tenant.clone(),
            manifest_version: version,
            blocks: blocks.iter().map(ToString::to_string).collect(),
            matchers: Matchers(vec![Matcher::equal("__name__", "m")]),
            range: TimeRange::ALL,
            labels_only: false,
            limit: 0,
            histogram_sums: false,
        }
    }

    async fn parts_of(&self, block: BlockId, name: &str) -> Path {
        let all: Vec<_> = self.objects.list(None).collect().await;
        let found = all.into_iter().map(|o| o.unwrap().location);
        let wanted = |p: &Path| p.as_ref().contains(&block.to_string()) && p.as_ref().ends_with(name);
        found.into_iter().find(wanted).unwrap()
    }
}

/// The samples in range: runs may hold others, too.
pub(crate) async fn read(store: &BlockStore, request: StoreSelectRequest) -> Result<Data, ServiceError> {
    let range = request.range;
    let mut stream = store.select(request).await?;
    let (mut found, mut last) = (Data::new(), None::<Labels>);
    while let Some(item) = stream.next().await {
        let batch = match item? {
            StoreItem::End => return Ok(found),
            StoreItem::Series(batch) => batch,
        };
        for series in batch {
            assert!(
                last.as_ref().is_none_or(|l| *l < series.labels),
                "label order, each once"
            );
            let (mut times, mut values) = (Vec::new(), Vec::new());
            for run in series.runs {
                run.decode_range(range, &mut times, &mut values).unwrap();
            }
            last = Some(series.labels.clone());
            let all = found.entry(series.labels).or_default();
            for (t, v) in times.into_iter().zip(values) {
                all.entry(t).and_modify(|w| *w = winner(*w, v)).or_insert(v);
            }
        }
    }
    panic!("a stream ends with an end or an error");
}

fn data(series: std::ops::Range<usize>, times: std::ops::Range<i64>) -> Data {
    let samples = |i: usize| {
        times
            .clone()
            .map(move |t| (t, i as f64 + t as f64 / 10.0))
            .collect()
    };
    series.map(|i| (labels(i), samples(i))).collect()
}

#[tokio::test]
async fn i2_overlapping_blocks_are_read_as_one() {
    let mut world = World::new();
    let (a, _) = world.upload(&data(0..400, 0..10)).await;
    let (b, version) = world.upload(&data(300..700, 5..20)).await;
    let mut expected = data(0..300, 0..10);
    expected.extend(data(300..400, 0..20));
    expected.extend(data(400..700, 5..20));
    let store = world.store();
    assert_eq!(
        read(&store, world.request(version, &[a, b])).await.unwrap(),
        expected
    );
    assert_eq!(read(&store, world.request(version, &[])).await.unwrap(), expected);
    assert_eq!(
        read(&store, world.request(version, &[a])).await.unwrap(),
        data(0..400, 0..10)
    );
    assert_eq!(
        read(&store, world.request(1, &[])).await.unwrap(),
        data(0..400, 0..10)
    );
}

#[tokio::test]
async fn ranges_limits_and_labels_only_are_kept() {
    let mut world = World::new();
    let (a, version) = world.upload(&data(0..10, 0..100)).await;
    let store = world.store();
    let mut request = world.request(version, &[a]);
    request.range = TimeRange::new(10, 12);
    request.limit = 3;
    assert_eq!(read(&store, request.clone()).await.unwrap(), data(0..3, 10..13));
    request.labels_only = true;
    let found = read(&store, request.clone()).await.unwrap();
    assert!(found.len() == 3 && found.values().all(BTreeMap::is_empty));
    request.range = TimeRange::new(200, 300);
    assert!(read(&store, request).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_long_series_comes_in_several_chunks() {
    let mut world = World::new();
    let (a, version) = world.upload(&data(0..1, 0..5000)).await;
    let store = world.store();
    let request = world.request(version, &[a]);
    assert_eq!(read(&store, request.clone()).await.unwrap(), data(0..1, 0..5000));
    let mut stream = store.select(request).await.unwrap();
    let Some(Ok(StoreItem::Series(batch))) = stream.next().await else {
        panic!("series first")
    };
    assert_eq!(batch[0].runs.len(), 5);
}

#[tokio::test]
async fn label_names_and_values_are_united() {
    let mut world = World::new();
    let (a, _) = world.upload(&data(0..2, 0..10)).await;
    let other = Data::from([(
        Labels::from_pairs([("__name__", "m"), ("zone", "z")]),
        BTreeMap::from([(1, 1.0)]),
    )]);
    let (b, version) = world.upload(&other).await;
    let store = world.store();
    let request = |name: &str, limit| StoreLabelsRequest {
        tenant: world.tenant.clone(),
        manifest_version: version,
        blocks: vec![a.to_string(), b.to_string()],
        matchers: Matchers::default(),
        range: TimeRange::ALL,
        name: name.to_owned(),
        limit,
    };
    assert_eq!(
        store.label_names(request("", 0)).await.unwrap(),
        ["__name__", "i", "zone"]
    );
    assert_eq!(
        store.label_names(request("", 2)).await.unwrap(),
        ["__name__", "i"]
    );
    assert_eq!(
        store.label_values(request("i", 0)).await.unwrap(),
        ["0000", "0001"]
    );
    assert!(store.label_values(request("nope", 0)).await.unwrap().is_empty());
}

#[tokio::test]
async fn i10_a_dead_block_is_read_while_its_bytes_last_and_never_skipped() {
    let mut world = World::new();
    let (a, listed_at) = world.upload(&data(0..5, 0..10)).await;
    let later = world.remove(a).await;
    // Pinned before: still there.
    assert_eq!(
        read(&world.store(), world.request(listed_at, &[a]))
            .await
            .unwrap()
            .len(),
        5
    );
    // Never listed in the pinned version.
    let e = read(&world.store(), world.request(later, &[a]))
        .await
        .unwrap_err();
    assert_eq!(e.code, ServiceErrorCode::NotFound);
    // Bytes gone: the read fails as a whole.
    let path = world.parts_of(a, "samples.parquet").await;
    world.objects.delete(&path).await.unwrap();
    let e = read(&world.store(), world.request(listed_at, &[a]))
        .await
        .unwrap_err();
    assert_eq!(e.code, ServiceErrorCode::NotFound, "{e}");
}

#[tokio::test]
async fn i11_a_damaged_block_is_named() {
    let mut world = World::new();
    let (a, version) = world.upload(&data(0..50, 0..100)).await;
    for part in ["samples.parquet", "times.parquet", "series.parquet", "meta.json"] {
        let path = world.parts_of(a, part).await;
        let good = world.objects.get(&path).await.unwrap().bytes().await.unwrap();
        let mut bad = good.to_vec();
        let middle = bad.len() / 2;
        bad[middle] ^= 0x10;
        world.objects.put(&path, PutPayload::from(bad)).await.unwrap();
        let e = read(&world.store(), world.request(version, &[a]))
            .await
            .unwrap_err();
        assert_eq!(e.code, ServiceErrorCode::Corruption, "{part}: {e}");
        let text = format!("block {a} failed checksum: ");
        assert!(e.message.starts_with(&text), "{part}: {e}");
        world
            .objects
            .put(&path, PutPayload::from_bytes(good))
            .await
            .unwrap();
    }
    assert_eq!(
        read(&world.store(), world.request(version, &[a]))
            .await
            .unwrap()
            .len(),
        50
    );
}

#[tokio::test]
async fn i4_unknown_versions_and_blocks_are_errors() {
    let world = World::new();
    let store = world.store();
    let e = read(&store, world.request(3, &[])).await.unwrap_err();
    assert_eq!(e.code, ServiceErrorCode::Unavailable, "{e}");
    assert!(read(&store, world.request(0, &[])).await.unwrap().is_empty());
    let e = read(&store, world.request(0, &[BlockId::new(1, 1)]))
        .await
        .unwrap_err();
    assert_eq!(e.code, ServiceErrorCode::NotFound);
    let mut request = world.request(0, &[]);
    request.blocks = vec!["../x".to_owned()];
    assert_eq!(
        read(&store, request).await.unwrap_err().code,
        ServiceErrorCode::InvalidArgument
    );
}

#[tokio::test]
async fn i4_a_store_reads_the_blocks_it_is_named_whichever_version_it_knew() {
    let mut world = World::new();
    let (a, first) = world.upload(&data(0..10, 0..10)).await;
    let bucket = world.manifests.bucket().clone();
    let behind = BlockStore::new(
        TenantManifests::new(bucket, Duration::from_secs(3600)),
        StoreSettings::default(),
        Cpu::inline(),
        &Metrics::new(),
    );
    let read_first = read(&behind, world.request(first, &[a])).await.unwrap();
    assert_eq!(read_first, data(0..10, 0..10));
    // Others have listed a second block, and then merged the first one into a third.
    let (b, second) = world.upload(&data(10..20, 0..10)).await;
    let (c, _) = world.upload(&data(0..10, 0..10)).await;
    let third = world.remove(a).await;
    let read_second = read(&behind, world.request(second, &[b])).await.unwrap();
    assert_eq!(read_second, data(10..20, 0..10));
    let read_third = read(&behind, world.request(third, &[b, c])).await.unwrap();
    assert_eq!(read_third, data(0..20, 0..10));
    // What was pinned before is read as it was, by one that knows the third version.
    let read_pinned = read(&behind, world.request(second, &[a, b])).await.unwrap();
    assert_eq!(read_pinned, data(0..20, 0..10));
}

#[tokio::test]
async fn i12_small_windows_and_few_blocks_at_once_give_the_same_answer() {
    let mut world = World::new();
    let (mut expected, mut version) = (Data::new(), 0);
    for n in 0..20_usize {
        let part = data(n..n + 10, 20 * n as i64..20 * n as i64 + 30);
        version = world.upload(&part).await.1;
        for (labels, samples) in part {
            expected.entry(labels).or_default().extend(samples);
        }
    }
    for (blocks_at_once, window_series, window_rows) in [(1, 1, 1), (3, 4, 100), (8, 256, 1000), (50, 3, 1)] {
        let mut store = world.store();
        store.bounds = ReadBounds {
            blocks_at_once,
            window_series,
            window_rows,
            ..ReadBounds::default()
        };
        let mut request = world.request(version, &[]);
        assert_eq!(read(&store, request.clone()).await.unwrap(), expected);
        // A limit counts series with chunks around the range, wherever windows end.
        request.range = TimeRange::new(100, 110);
        request.limit = 3;
        let in_range = |s: BTreeMap<i64, f64>| -> BTreeMap<_, _> {
            s.into_iter().filter(|(t, _)| (100..=110).contains(t)).collect()
        };
        let cut = expected.clone().into_iter().map(|(l, s)| (l, in_range(s)));
        let cut: Data = cut.filter(|(_, s)| !s.is_empty()).take(3).collect();
        assert_eq!(read(&store, request).await.unwrap(), cut);
    }
}

#[tokio::test]
async fn i12_labels_to_merge_are_bounded() {
    let mut world = World::new();
    let mut version = 0;
    for _ in 0..10 {
        version = world.upload(&data(0..100, 0..2)).await.1;
    }
    let mut store = world.store();
    // Not even the smallest batches of ten blocks.
    store.bounds.label_bytes = 16 << 10;
    let e = read(&store, world.request(version, &[])).await.unwrap_err();
    assert_eq!(e.code, ServiceErrorCode::ResourceExhausted);
    assert!(
        e.message.contains("blocks exceed 16384 bytes: add matchers"),
        "{e}"
    );
    let mut narrow = world.request(version, &[]);
    narrow.matchers.0.push(Matcher::equal("i", "0007"));
    assert_eq!(read(&store, narrow).await.unwrap(), data(7..8, 0..2));
}

#[tokio::test]
async fn i12_many_blocks_with_many_series_are_merged_in_small_batches() {
    let mut world = World::new();
    let (mut expected, mut version) = (Data::new(), 0);
    // Most series are in most blocks, so that batches end at different places.
    for n in 0..40_usize {
        let mut part = data(0..500, 2 * n as i64..2 * n as i64 + 2);
        part.retain(|l, _| l.get("i").is_some_and(|i| !i.ends_with(&format!("{}", n % 10))));
        version = world.upload(&part).await.1;
        for (labels, samples) in part {
            expected.entry(labels).or_default().extend(samples);
        }
    }
    let mut store = world.store();
    // All label sets of all blocks are over 1 MiB.
    store.bounds.label_bytes = 256 << 10;
    assert_eq!(read(&store, world.request(version, &[])).await.unwrap(), expected);
    let mut first = world.request(version, &[]);
    (first.labels_only, first.limit) = (true, 10);
    let found = read(&store, first).await.unwrap();
    assert!(found.keys().eq(expected.keys().take(10)));
}

#[tokio::test]
async fn pages_are_decoded_by_the_cpu_threads() {
    let mut world = World::new();
    let (_, version) = world.upload(&data(0..5, 0..5)).await;
    let cpu = Cpu::threaded(1).unwrap();
    let store = world.store_on(cpu.clone());
    // Given that the only thread is busy.
    let (release, held) = std::sync::mpsc::channel::<()>();
    let mut busy = Box::pin(cpu.run(move || held.recv()));
    assert!(futures::poll!(&mut busy).is_pending());
    // When labels are read, then no async thread decodes them.
    let names = store.label_names(StoreLabelsRequest {
        tenant: world.tenant.clone(),
        manifest_version: version,
        blocks: Vec::new(),
        matchers: Matchers::default(),
        range: TimeRange::ALL,
        name: String::new(),
        limit: 0,
    });
    let mut names = Box::pin(names);
    for _ in 0..1000 {
        assert!(futures::poll!(&mut names).is_pending());
        tokio::task::yield_now().await;
    }
    drop(release);
    assert_eq!(names.await.unwrap(), ["__name__", "i"]);
    assert!(busy.await.unwrap().is_err());
}

#[tokio::test]
async fn i6_what_is_cached_waits_for_no_read_that_decodes() {
    let mut world = World::new();
    let (warm, _) = world.upload(&data(0..5, 0..100)).await;
    let (cold, version) = world.upload(&data(5..10, 0..100)).await;
    let store = world.store();
    // Given a block whose samples are cached, and reads that decode as much as all may.
    let request = world.request(version, &[warm]);
    read(&store, request.clone()).await.unwrap();
    let busy = store.rows.reserve(u64::MAX).await.unwrap();
    // Then it is read, whatever the range, and what is not cached waits.
    assert_eq!(read(&store, request.clone()).await.unwrap(), data(0..5, 0..100));
    let mut part = request;
    part.range = TimeRange::new(10, 12);
    assert_eq!(read(&store, part).await.unwrap(), data(0..5, 10..13));
    let mut waits = Box::pin(read(&store, world.request(version, &[warm, cold])));
    for _ in 0..1000 {
        assert!(futures::poll!(&mut waits).is_pending());
        tokio::task::yield_now().await;
    }
    drop(busy);
    assert_eq!(waits.await.unwrap(), data(0..10, 0..100));
}

#[tokio::test]
async fn all_caches_are_counted_when_metrics_are_gathered() {
    let mut world = World::new();
    let (_, version) = world.upload(&data(0..50, 0..100)).await;
    let gathered = |settings: StoreSettings| {
        let (metrics, request) = (Metrics::new(), world.request(version, &[]));
        let store = BlockStore::new(world.manifests.clone(), settings, Cpu::inline(), &metrics);
        async move {
            read(&store, request).await.unwrap();
            let all = metrics.gather();
            let is_it = |l: &Labels| l.get("__name__") == Some("koios_store_cache_bytes");
            let of_caches = all.into_iter().filter(|(l, _)| is_it(l));
            of_caches.map(|(_, bytes)| bytes).sum::<f64>()
        }
    };
    let none = StoreSettings::within(0);
    assert_eq!(gathered(none).await, 0.0);
    let mut total = 0.0;
    for cache in 0..5 {
        let mut settings = none;
        *[
            &mut settings.cell_cache_bytes,
            &mut settings.index_cache_bytes,
            &mut settings.table_cache_bytes,
            &mut settings.sample_cache_bytes,
            &mut settings.meta_cache_bytes,
        ][cache] = 1 << 20;
        let bytes = gathered(settings).await;
        assert!(bytes > 0.0, "cache {cache}");
        total += bytes;
    }
    // What is cached as chunks is not as cells too.
    let together = gathered(StoreSettings::default()).await;
    assert!(
        together <= total && together > total / 2.0,
        "{together} of {total}"
    );
}

#[tokio::test]
async fn i10_what_is_deleted_is_masked_in_all_reads_whatever_is_cached() {
    let mut world = World::new();
    let mut data = Data::new();
    for i in 0..3 {
        data.insert(labels(i), (0..500).map(|t| (t * 10, t as f64)).collect());
    }
    let (block, version) = world.upload(&data).await;
    let store = world.store();
    assert_eq!(
        read(&store, world.request(version, &[block])).await.unwrap(),
        data
    );
    // All of one series, a part of another.
    let writer = World::writer();
    let mut version = 0;
    for (id, i, range) in [(1, 0, TimeRange::ALL), (2, 1, TimeRange::new(95, 4000))] {
        let matchers = Matchers(vec![Matcher::equal("i", format!("{i:04}"))]);
        let deletion = koios_bucket::Tombstone::new(koios_bucket::Nonce(id), &matchers, range);
        let delete = |m: &mut koios_bucket::Manifest| {
            m.add_tombstone(deletion.clone());
            Ok(())
        };
        let commit = world.manifests.commit(&world.tenant, &writer, delete);
        version = commit.await.unwrap().version;
    }
    let mut left = data.clone();
    left.remove(&labels(0));
    left.get_mut(&labels(1))
        .unwrap()
        .retain(|t, _| !(95..=4000).contains(t));
    for store in [&store, &world.store()] {
        assert_eq!(read(store, world.request(version, &[block])).await.unwrap(), left);
        for (range, found) in [
            (TimeRange::ALL, vec!["0001", "0002"]),
            (TimeRange::new(100, 4000), vec!["0002"]),
        ] {
            let request = StoreLabelsRequest {
                tenant: world.tenant.clone(),
                manifest_version: version,
                blocks: vec![block.to_string()],
                matchers: Matchers::default(),
                range,
                name: "i".to_owned(),
                limit: 0,
            };
            assert_eq!(store.label_values(request.clone()).await.unwrap(), found);
            let names = store.label_names(request).await.unwrap();
            assert_eq!(names, ["__name__", "i"]);
            let series = StoreSelectRequest {
                labels_only: true,
                range,
                ..world.request(version, &[block])
            };
            let series = read(store, series).await.unwrap();
            let values: Vec<_> = series.keys().map(|l| l.get("i").unwrap()).collect();
            assert_eq!(values, found);
        }
    }
}
