//! Claims about compaction: whatever happens, the samples are the same (I10).
#![allow(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use koios_block::{BlockOptions, BlockWriter, Digest, MergedSeries, MergedWriter};
use koios_bucket::{Bucket, ManifestBlock, Nonce, Tombstone, TombstoneMatcher};
use koios_model::merge::winner;
use koios_model::{BatchSet, Exemplar, Labels, MatchOp, Matchers, PartitionId, Sample, StreamId, TimeRange};
use koios_runtime::{ClockHandle, Cpu, DiskHandle, MemoryWatch, RealDisk, RealNet, RngHandle, TokioClock};
use koios_testkit::distant::Distant;
use koios_wire::{SeriesExemplars, StoreLabelsRequest, StoreSelectRequest, StoreService};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parking_lot::Mutex;

use super::*;
use crate::service_test::{Data, read};
use crate::{BlockStore, StoreSettings};

mod auditing;
mod changing;
mod crashing;
mod deleting;
mod downsampled;
mod exemplars;
mod histograms;
mod losing;
mod retaining;
mod unreadable;
mod uploading;

use crashing::Crashing;

const HOUR: i64 = 3_600_000;
/// All blocks lie in the first day; now is long after it.
const NOW: i64 = 30 * 24 * HOUR;

/// On duty, or only for what nobody does.
#[derive(Debug)]
struct Duty(AtomicBool);

#[async_trait]
impl CompactionDuty for Duty {
    async fn epoch(&self, _: &TenantId, overdue: bool) -> Option<u64> {
        (overdue || self.0.load(Ordering::Relaxed)).then_some(7)
    }
}

/// What members say.
#[derive(Debug)]
struct Witness {
    have_forgotten: bool,
    announced: Arc<Mutex<Announced>>,
}

#[async_trait]
impl DeletionWitness for Witness {
    async fn is_forgotten(&self, _: &TenantId, _: &Tombstone) -> bool {
        self.have_forgotten
    }

    async fn announced(&self, _: &TenantId) -> Announced {
        *self.announced.lock()
    }
}

struct World {
    members_have_forgotten: bool,
    announced: Arc<Mutex<Announced>>,
    objects: Arc<InMemory>,
    clock: ClockHandle,
    rng: RngHandle,
    tenant: TenantId,
    settings: CompactionSettings,
    overrides: Overrides,
    duty: Arc<Duty>,
    sequence: AtomicU64,
    expected: Data,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            members_have_forgotten: false,
            announced: Arc::new(Mutex::new(Announced::NONE)),
            objects: Arc::new(InMemory::new()),
            clock: Arc::new(TokioClock::starting_at(NOW)),
            rng: RngHandle::from_seed(seed),
            tenant: TenantId::anonymous(),
            settings: CompactionSettings {
                downsampling: Vec::new(),
                ..CompactionSettings::default()
            },
            overrides: Overrides::default(),
            duty: Arc::new(Duty(AtomicBool::new(true))),
            sequence: AtomicU64::new(0),
            expected: Data::new(),
        }
    }

    fn manifests(&self) -> TenantManifests {
        self.manifests_on(Arc::<InMemory>::clone(&self.objects))
    }

    fn manifests_on(&self, store: Arc<dyn ObjectStore>) -> TenantManifests {
        let bucket = Bucket::new(store, "", Arc::clone(&self.clock), self.rng.fork());
        TenantManifests::new(bucket, Duration::ZERO)
    }

    fn compactor(&self) -> Compactor {
        self.compactor_on(self.manifests())
    }

    fn compactor_on(&self, manifests: TenantManifests) -> Compactor {
        let runtime = Runtime {
            clock: Arc::clone(&self.clock),
            rng: self.rng.fork(),
            disk: DiskHandle::inline(Arc::new(RealDisk)),
            cpu: Cpu::inline(),
            net: Arc::new(RealNet),
            memory: MemoryWatch::default(),
        };
        let deps = CompactionDeps {
            runtime,
            member: "store-1".to_owned(),
            manifests,
            duty: Arc::<Duty>::clone(&self.duty),
            witness: Arc::new(Witness {
                have_forgotten: self.members_have_forgotten,
                announced: Arc::clone(&self.announced),
            }),
            overrides: self.overrides.clone(),
            metrics: Metrics::new(),
        };
        Compactor::new(self.settings.clone(), deps)
    }

    fn compactor_on_duty(&self) -> Compactor {
        self.duty.0.store(true, Ordering::Relaxed);
        self.compactor()
    }

    async fn sleep(&self, seconds: u64) {
        self.clock.sleep(Duration::from_secs(seconds)).await;
    }

    async fn manifest(&self) -> Arc<Manifest> {
        self.manifests().probe(&self.tenant).await.unwrap()
    }

    /// Lists a block of some samples, as a cut of the window that they lie in.
    async fn cut(&mut self, hours: std::ops::Range<i64>, data: &Data) -> BlockId {
        self.cut_clean(hours, data, 0).await
    }

    /// The same of a head that has applied deletions up to a version.
    async fn cut_clean(&mut self, hours: std::ops::Range<i64>, data: &Data, clean_up_to: u64) -> BlockId {
        let mut writer = self.writer(hours, clean_up_to);
        for (labels, samples) in data {
            let (times, values): (Vec<_>, Vec<_>) = samples.iter().unzip();
            writer.push_series(labels, None, &times, &values).unwrap();
            let exemplars: Vec<_> = times.iter().map(|&t| exemplar(t)).collect();
            writer.push_exemplars(labels, &exemplars).unwrap();
            let all = self.expected.entry(labels.clone()).or_default();
            for (&t, &v) in samples {
                all.entry(t).and_modify(|w| *w = winner(*w, v)).or_insert(v);
            }
        }
        self.list(writer).await
    }

    /// Writes a block of a window.
    fn writer(&self, hours: std::ops::Range<i64>, clean_up_to: u64) -> BlockWriter {
        let window = TimeRange::new(hours.start * HOUR, hours.end * HOUR - 1);
        let id = BlockId::new(self.clock.now_ms(), self.rng.u128());
        let options = BlockOptions {
            partitions: vec![PartitionId(0)],
            clean_up_to,
            ..BlockOptions::new(id, self.tenant.clone(), window)
        };
        BlockWriter::new(options).unwrap()
    }

    /// Uploads and lists what was written.
    async fn list(&self, writer: BlockWriter) -> BlockId {
        let parts = writer.finish().unwrap().unwrap();
        let (id, partition) = (parts.meta.block, PartitionId(0));
        let mut held = BatchSet::default();
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        held.insert(StreamId(1), sequence);
        let entry = ManifestBlock::new(&parts.meta, BTreeMap::from([(partition, held)]));
        let manifests = self.manifests();
        manifests
            .bucket()
            .upload_block(&self.tenant, &parts)
            .await
            .unwrap();
        let writer = Writer::partition("ingester", partition, 1);
        let listed = manifests.commit(&self.tenant, &writer, |m| m.add_block(entry.clone()));
        listed.await.unwrap();
        id
    }

    /// A day of blocks, one to three for each window.
    async fn day(&mut self) {
        for window in 0..12 {
            for _ in 0..=self.rng.below(3) {
                let data = self.some_data(window * 2..window * 2 + 2);
                self.cut(window * 2..window * 2 + 2, &data).await;
            }
        }
    }

    fn some_data(&self, hours: std::ops::Range<i64>) -> Data {
        let mut data = Data::new();
        for _ in 0..1 + self.rng.below(5) {
            let name = format!("m{}", self.rng.below(3));
            let labels = Labels::from_pairs([("__name__", name), ("i", self.rng.below(4).to_string())]);
            let samples = data.entry(labels).or_default();
            for _ in 0..1 + self.rng.below(8) {
                let t = hours.start * HOUR + self.rng.below(40) as i64 * (HOUR / 20);
                samples.insert(t, self.rng.below(5) as f64);
            }
        }
        data
    }

    /// What a read of all live blocks gives.
    async fn found(&self) -> Data {
        let manifests = self.manifests();
        let version = manifests.probe(&self.tenant).await.unwrap().version;
        let store = BlockStore::new(
            manifests,
            StoreSettings::default(),
            Cpu::inline(),
            &Metrics::new(),
        );
        let request = StoreSelectRequest {
            tenant: self.tenant.clone(),
            manifest_version: version,
            blocks: Vec::new(),
            matchers: Matchers::default(),
            range: TimeRange::ALL,
            labels_only: false,
            limit: 0,
            histogram_sums: true,
        };
        read(&store, request).await.unwrap()
    }

    /// The samples are all there, and an exemplar for each.
    async fn check(&self, what: &str) {
        assert_eq!(self.found().await, self.expected, "{what}");
        let exemplars = self.expected.iter().map(|(labels, samples)| {
            let all: Vec<_> = samples.keys().map(|&t| exemplar(t)).collect();
            (labels.clone(), all)
        });
        assert_eq!(self.exemplars().await, exemplars.collect::<Vec<_>>(), "{what}");
    }

    async fn exemplars(&self) -> Vec<SeriesExemplars> {
        let manifests = self.manifests();
        let manifest_version = manifests.probe(&self.tenant).await.unwrap().version;
        let store = BlockStore::new(
            manifests,
            StoreSettings::default(),
            Cpu::inline(),
            &Metrics::new(),
        );
        let request = StoreLabelsRequest {
            tenant: self.tenant.clone(),
            manifest_version,
            blocks: Vec::new(),
            matchers: Matchers::default(),
            range: TimeRange::ALL,
            name: String::new(),
            limit: 0,
        };
        store.exemplars(request).await.unwrap()
    }

    async fn objects(&self) -> Vec<Path> {
        let listed: Vec<_> = self.objects.list(None).collect().await;
        listed.into_iter().map(|o| o.unwrap().location).collect()
    }

    async fn blocks_with_bytes(&self) -> BTreeSet<BlockId> {
        let uploaded = self.manifests().bucket().uploaded_blocks(&self.tenant).await;
        uploaded.unwrap().into_iter().map(|(block, _)| block).collect()
    }
}

fn exemplar(t: i64) -> Exemplar {
    Exemplar {
        t,
        v: 0.5,
        labels: Labels::from_pairs([("trace_id", t.to_string())]),
    }
}

async fn compact(compactor: &mut Compactor) {
    for _ in 0..20 {
        if !compactor.visit_all().await {
            return;
        }
    }
    panic!("compaction finds no end");
}

#[tokio::test(start_paused = true)]
async fn i10_a_day_of_blocks_becomes_one_and_the_samples_are_the_same() {
    for seed in 0..20 {
        let mut world = World::new(seed);
        world.clock = Arc::new(TokioClock::starting_at(26 * HOUR));
        world.day().await;
        let covered = |m: &Manifest| -> Vec<BatchSet> {
            let window = |i: i64| TimeRange::new(i * 2 * HOUR, (i + 1) * 2 * HOUR - 1);
            (0..12).map(|i| m.covered(PartitionId(0), window(i))).collect()
        };
        let before = world.manifest().await;
        compact(&mut world.compactor()).await;
        let after = world.manifest().await;
        assert_eq!(after.blocks.len(), 1, "seed {seed}");
        let block = &after.blocks[0];
        assert_eq!((block.window.min, block.window.max), (0, 24 * HOUR - 1));
        assert_eq!(covered(&after), covered(&before), "seed {seed}");
        world.check(&format!("seed {seed}")).await;
        // Late samples, then.
        let late = world.some_data(4..6);
        world.cut(4..6, &late).await;
        compact(&mut world.compactor()).await;
        world.check(&format!("late, seed {seed}")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn blocks_are_split_where_they_would_grow_beyond_their_bound() {
    let mut world = World::new(1);
    world.settings.block_series = 3;
    world.day().await;
    compact(&mut world.compactor()).await;
    let manifest = world.manifest().await;
    assert_eq!(manifest.blocks.len(), world.expected.len().div_ceil(3));
    let most = manifest.blocks.iter().map(|b| b.series).max();
    assert!(most.is_some_and(|most| most <= 3), "{most:?}");
    world.check("split").await;
    let version = manifest.version;
    compact(&mut world.compactor()).await;
    assert_eq!(world.manifest().await.version, version, "nothing is left to do");
}

/// Every operation on the bucket is once the last before a crash, with and without effect; then all is done again by another
/// process.
#[tokio::test(start_paused = true)]
async fn i10_a_crash_at_any_operation_loses_and_doubles_nothing() {
    for effect in [false, true] {
        for last in 0.. {
            let mut world = World::new(3);
            world.settings.block_series = 5;
            for window in 0..6 {
                let data = world.some_data(window * 2..window * 2 + 2);
                world.cut(window * 2..window * 2 + 2, &data).await;
            }
            let crashing = Crashing::over(&world.objects, last, effect);
            let mut compactor =
                world.compactor_on(world.manifests_on(Arc::<Crashing>::clone(&crashing) as _));
            compactor.visit_all().await;
            let what = format!("crash at operation {last}, effect {effect}");
            world.check(&what).await;
            compact(&mut world.compactor()).await;
            world.check(&what).await;
            let manifest = world.manifest().await;
            assert_eq!(
                manifest.blocks.iter().map(|b| b.window.max).max(),
                Some(12 * HOUR - 1),
                "{what}"
            );
            if !crashing.has_crashed() {
                assert!(last > 20, "the compactor did nothing");
                break;
            }
            // What was uploaded in vain goes when it is old.
            world.sleep(25 * 3600).await;
            let mut later = world.compactor();
            compact(&mut later).await;
            world.sleep(2 * 3600).await;
            compact(&mut later).await;
            let live = world
                .manifest()
                .await
                .blocks
                .iter()
                .map(|b| b.block)
                .collect::<BTreeSet<_>>();
            assert_eq!(world.blocks_with_bytes().await, live, "{what}");
            world.check(&what).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn i14_two_compactors_at_once_waste_work_and_nothing_else() {
    for seed in 0..10 {
        let mut world = World::new(seed);
        world.day().await;
        let (mut a, mut b) = (world.compactor(), world.compactor());
        futures::join!(compact(&mut a), compact(&mut b));
        world.check(&format!("seed {seed}")).await;
        compact(&mut world.compactor()).await;
        assert_eq!(world.manifest().await.blocks.len(), 1, "seed {seed}");
        world.check(&format!("seed {seed}")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_of_replaced_blocks_go_after_a_grace() {
    let mut world = World::new(5);
    world.day().await;
    let cut = world.blocks_with_bytes().await;
    let mut compactor = world.compactor();
    compact(&mut compactor).await;
    assert!(world.blocks_with_bytes().await.is_superset(&cut));
    // The grace counts from when this process saw them dead.
    compact(&mut compactor).await;
    world.sleep(3601).await;
    compact(&mut compactor).await;
    let manifest = world.manifest().await;
    assert_eq!(
        world.blocks_with_bytes().await,
        BTreeSet::from([manifest.blocks[0].block])
    );
    assert!(cut.iter().all(|b| manifest.is_dead(*b)), "their names stay dead");
    world.check("after").await;
}

#[tokio::test(start_paused = true)]
async fn what_is_older_than_the_retention_goes() {
    let mut world = World::new(6);
    world.settings.retention = Duration::from_secs(40 * 24 * 3600);
    world.day().await;
    let mut compactor = world.compactor();
    compact(&mut compactor).await;
    world.check("young").await;
    world.sleep(11 * 24 * 3600).await;
    compact(&mut compactor).await;
    world
        .check("the store may have been away, or its clock be wrong")
        .await;
    world.sleep(3600).await;
    compact(&mut compactor).await;
    assert!(world.manifest().await.blocks.is_empty());
}

#[tokio::test(start_paused = true)]
async fn i11_a_damaged_block_is_left_alone_and_the_rest_goes_on() {
    for part in [
        "samples.parquet",
        "times.parquet",
        "series.parquet",
        "meta.json",
        "exemplars.parquet",
    ] {
        for gone in [false, true] {
            let what = format!("{part}, gone {gone}");
            let mut world = World::new(7);
            world.settings.retention = Duration::from_secs(40 * 24 * 3600);
            world.settings.undelete_window = Duration::ZERO;
            world.day().await;
            // What is too old goes in spite of it.
            let old = world.some_data(-302..-300);
            let old = world.cut(-302..-300, &old).await;
            world.expected.clear();
            let listed = world.manifest().await;
            let bad = listed
                .blocks
                .iter()
                .filter(|b| b.block != old)
                .nth(2)
                .unwrap()
                .block;
            let is_part = |p: &Path| p.as_ref().contains(&bad.to_string()) && p.as_ref().ends_with(part);
            let path = world.objects().await.into_iter().find(is_part).unwrap();
            if gone {
                world.objects.delete(&path).await.unwrap();
            } else {
                let bytes = world.objects.get(&path).await.unwrap().bytes().await.unwrap();
                let mut bytes = bytes.to_vec();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                world.objects.put(&path, bytes.into()).await.unwrap();
            }
            let mut compactor = world.compactor();
            compact(&mut compactor).await;
            let left = world.manifest().await;
            assert_eq!(left.blocks.len(), 2, "{what}");
            assert!(left.block(bad).is_some(), "{what}");
            assert!(left.is_dead(old), "{what}: what is too old goes");
            assert!(compactor.metrics.failures.get() > 0, "{what}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_old_blocks_cover_is_forgotten() {
    let mut world = World::new(10);
    world.day().await;
    compact(&mut world.compactor()).await;
    let manifest = world.manifest().await;
    assert!(
        manifest
            .blocks
            .iter()
            .all(|b| b.covers.is_empty() && b.windows.is_empty())
    );
    world.check("all there").await;
}

#[tokio::test(start_paused = true)]
async fn i10_deleted_samples_are_gone_from_merged_blocks() {
    let mut world = World::new(8);
    world.day().await;
    let tombstone = Tombstone {
        matchers: vec![TombstoneMatcher {
            name: "__name__".to_owned(),
            op: MatchOp::Equal,
            value: "m1".to_owned(),
        }],
        ..Tombstone::new(Nonce(1), &Matchers::default(), TimeRange::new(2 * HOUR, 9 * HOUR))
    };
    let writer = Writer::partition("operator", PartitionId(0), 1);
    let add = |m: &mut Manifest| {
        m.add_tombstone(tombstone.clone());
        Ok(())
    };
    world
        .manifests()
        .commit(&world.tenant, &writer, add)
        .await
        .unwrap();
    compact(&mut world.compactor()).await;
    for (labels, samples) in &mut world.expected {
        samples.retain(|t, _| labels.get("__name__") != Some("m1") || !tombstone.range.contains(*t));
    }
    world.expected.retain(|_, samples| !samples.is_empty());
    world.check("deleted").await;
    let manifest = world.manifest().await;
    assert!(
        manifest
            .blocks
            .iter()
            .all(|b| manifest.masking(b).next().is_none())
    );
}

#[tokio::test(start_paused = true)]
async fn who_is_not_on_duty_does_nothing_but_what_nobody_does() {
    let mut world = World::new(9);
    world.day().await;
    world.duty.0.store(false, Ordering::Relaxed);
    let version = world.manifest().await.version;
    let mut other = world.compactor();
    for _ in 0..3 {
        compact(&mut other).await;
        assert_eq!(world.manifest().await.version, version);
        world.sleep(601).await;
    }
    // Until what is due has waited for too long.
    other.visit_all().await;
    assert!(world.manifest().await.version > version);
    compact(&mut world.compactor_on_duty()).await;
    assert_eq!(world.manifest().await.blocks.len(), 1);
    world.check("taken over").await;
}

#[tokio::test(start_paused = true)]
async fn i11_a_merged_block_that_reads_back_otherwise_is_not_listed() {
    let world = World::new(11);
    let merger = world.compactor_on_duty().merger;
    let labels = Labels::from_pairs([("__name__", "m")]);
    let written = |last: i64| {
        let window = TimeRange::new(0, HOUR - 1);
        let options = BlockOptions::new(merger.name(), world.tenant.clone(), window);
        let samples = [0, 15_000, last].map(|t| Sample { t, v: 1.0 });
        let series = MergedSeries {
            labels: labels.clone(),
            metadata: None,
            samples: samples.to_vec(),
            histograms: Vec::new(),
            starts: Vec::new(),
        };
        let (mut out, mut digest) = (BlockWriter::new(options).unwrap(), Digest::default());
        MergedWriter::default().push(&series, &mut out).unwrap();
        digest.add(&series);
        (out, digest)
    };
    let (out, given) = written(30_000);
    let done = Box::pin(merger.finish(&world.tenant, out, Some(given), &mut Vec::new())).await;
    assert!(done.is_ok_and(|meta| meta.is_some()));
    let ((out, _), (_, other)) = (written(30_000), written(30_001));
    let mut uploaded = Vec::new();
    let error = Box::pin(merger.finish(&world.tenant, out, Some(other), &mut uploaded))
        .await
        .unwrap_err();
    assert!(uploaded.is_empty(), "nothing was sent");
    assert!(matches!(error, CompactError::Altered { .. }), "{error}");
    assert!(!error.is_transient() && error.bad_block().is_none(), "{error}");
}

#[tokio::test(start_paused = true)]
async fn of_many_tenants_it_is_looked_up_together_how_they_stand() {
    const TENANTS: usize = 100;
    let world = World::new(12);
    let store = Arc::new(Distant::new(Arc::clone(&world.clock), Duration::from_millis(10)));
    let manifests = || world.manifests_on(Arc::<Distant>::clone(&store));
    let writer = Writer::compaction("store-1", 7);
    for number in 0..TENANTS {
        let tenant = TenantId::new(&format!("team-{number}")).unwrap();
        manifests().begin(&tenant, &writer).await.unwrap();
    }
    let mut compactor = world.compactor_on(manifests());
    compactor.learn_tenants().await.unwrap();
    let before = world.clock.elapsed();
    compactor.tell_standings().await;
    let took = world.clock.elapsed().saturating_sub(before);
    let told = compactor
        .tenants
        .values()
        .filter(|known| known.stood_at.is_some());
    assert_eq!(told.count(), TENANTS);
    // One after the other it would be three seconds.
    assert!(took < Duration::from_millis(200), "{took:?}");
}
