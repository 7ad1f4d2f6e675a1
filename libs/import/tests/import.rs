//! What is imported is listed as it was, once, and what goes wrong lists nothing.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use koios_block::{BlockCache, BlockMerge, BlockOptions, BlockWriter, MergeInput};
use koios_bucket::{Blocks, Bucket, Manifest, ManifestBlock, RetryPolicy, Writer};
use koios_import::{ExternalLabels, ImportError, ImportSettings, Imported, Importer, Outcome};
use koios_model::{Histogram, Labels, PartitionId, Span, TenantId, TimeRange};
use koios_runtime::{Clock, Cpu, MemoryWatch, RealClock, RngHandle};
use koios_testkit::memory::PretendedMemory;
use koios_testkit::tsdb::{ChunkKind, TsdbChunk, TsdbContent, TsdbSample, Value};
use koios_tsdb::MemoryFiles;
use object_store::memory::InMemory;

const HOUR: i64 = 3_600_000;

fn tenant() -> TenantId {
    TenantId::new("team-a").unwrap()
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    Labels::from_pairs(pairs.iter().copied())
}

/// Midnight some days ago.
fn day(ago: i64) -> i64 {
    RealClock::new().now_ms() / (24 * HOUR) * 24 * HOUR - ago * 24 * HOUR
}

struct Rig {
    importer: Importer,
}

impl Rig {
    fn new() -> Self {
        let bucket = Bucket::new(
            Arc::new(InMemory::new()),
            "",
            Arc::new(RealClock::new()),
            RngHandle::from_seed(1),
        );
        let retry = RetryPolicy {
            deadline: Duration::from_secs(5),
            ..RetryPolicy::default()
        };
        Self {
            importer: Importer {
                bucket: bucket.with_retry(retry),
                settings: ImportSettings::default(),
                writer: "test".to_owned(),
                clock: Arc::new(RealClock::new()),
                rng: RngHandle::from_seed(2),
                cpu: Cpu::inline(),
                memory: MemoryWatch::default(),
            },
        }
    }

    async fn import_files(&self, files: BTreeMap<String, Vec<u8>>) -> Result<Imported, ImportError> {
        let files = Arc::new(MemoryFiles::new(files));
        self.importer.import(&tenant(), files, &|_| {}).await
    }

    async fn import(&self, content: &TsdbContent) -> Imported {
        self.import_files(content.files()).await.unwrap()
    }

    async fn manifest(&self) -> Arc<Manifest> {
        self.importer.bucket.latest(&tenant()).await.unwrap()
    }

    /// Everything that is listed, merged as a read does it.
    async fn all(&self) -> BTreeMap<String, Vec<(i64, String)>> {
        let manifest = self.manifest().await;
        let blocks = Blocks::new(
            self.importer.bucket.clone(),
            Arc::new(BlockCache::new(1 << 20, 1 << 20)),
            0,
        );
        let mut inputs = Vec::new();
        for listed in &manifest.blocks {
            inputs.push(MergeInput::from(blocks.open(&tenant(), listed).await.unwrap()));
        }
        let mut merge = BlockMerge::new(inputs);
        let mut all = BTreeMap::new();
        while let Some(series) = merge.next().await.unwrap() {
            let floats = series.samples.iter().map(|s| (s.t, s.v.to_string()));
            let histograms = series
                .histograms
                .iter()
                .map(|(t, h)| (*t, format!("count {}", h.count)));
            let mut samples: Vec<_> = floats.chain(histograms).collect();
            samples.sort();
            for (t, start) in series.starts {
                samples
                    .iter_mut()
                    .filter(|s| s.0 == t)
                    .for_each(|s| s.1 += &format!(" since {start}"));
            }
            all.insert(series.labels.to_string(), samples);
        }
        all
    }
}

fn floats(from: i64, step: i64, n: i64) -> Vec<(i64, f64)> {
    (0..n).map(|i| (from + i * step, i as f64 / 10.0)).collect()
}

fn shown(samples: &[(i64, f64)]) -> Vec<(i64, String)> {
    samples.iter().map(|(t, v)| (*t, v.to_string())).collect()
}

#[tokio::test]
async fn i2_what_was_imported_is_listed_once_and_to_the_bit() {
    let rig = Rig::new();
    let from = day(3) + 2 * HOUR;
    // More than go to the writer at a time, so that what comes after them is in another batch.
    let samples = floats(from, 100, 70_000);
    let histogram = Histogram {
        count: 7.0,
        sum: 1.5,
        positive_spans: vec![Span {
            offset: -3,
            length: 2,
        }],
        positive_buckets: vec![3.0, 4.0],
        ..Histogram::default()
    };
    let sample = |t, value| TsdbSample {
        t,
        start: from - 7,
        value,
    };
    let mut content = TsdbContent::default().with_floats(labels(&[("__name__", "a")]), &samples, 120);
    let chunk = |kind, samples| vec![TsdbChunk { kind, samples }];
    let of_histograms = vec![
        sample(from, Value::Histogram(histogram.clone())),
        sample(from + 1, Value::Histogram(Histogram::stale())),
    ];
    content.series.insert(
        labels(&[("__name__", "h")]),
        chunk(ChunkKind::Histogram(true), of_histograms),
    );
    content.series.insert(
        labels(&[("__name__", "z")]),
        chunk(ChunkKind::Xor2, vec![sample(from, Value::Float(1.0))]),
    );
    let done = rig.import(&content).await;
    assert_eq!(
        (done.outcome, done.series, done.samples),
        (Outcome::Imported, 3, 70_003)
    );
    // One without a column for start timestamps, then one with.
    assert_eq!(done.blocks, 2);
    let since = format!("since {}", from - 7);
    let expected = BTreeMap::from([
        (r#"{__name__="a"}"#.to_owned(), shown(&samples)),
        (
            r#"{__name__="h"}"#.to_owned(),
            vec![
                (from, format!("count 7 {since}")),
                (from + 1, format!("count 0 {since}")),
            ],
        ),
        (r#"{__name__="z"}"#.to_owned(), vec![(from, format!("1 {since}"))]),
    ]);
    assert_eq!(rig.all().await, expected);
    let manifest = rig.manifest().await;
    assert!(
        manifest
            .blocks
            .iter()
            .all(|b| b.window == TimeRange::new(from, from + 2 * HOUR - 1) && b.covers.is_empty())
    );
    assert_eq!(
        (manifest.imports.len(), manifest.imports[0].version),
        (1, manifest.version)
    );

    let again = rig.import(&content).await;
    assert_eq!(
        (again.outcome, again.samples, again.blocks),
        (Outcome::Known, 0, 0)
    );
    assert_eq!(rig.manifest().await.version, manifest.version);
    // Not after its blocks were merged or deleted, either: their names are dead.
    let writer = Writer::compaction("test", 1);
    let remove = |m: &mut Manifest| {
        m.blocks
            .iter()
            .map(|b| b.block)
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|b| {
                m.remove_block(b);
            });
        Ok(())
    };
    rig.importer
        .bucket
        .commit(&tenant(), &writer, remove)
        .await
        .unwrap();
    assert_eq!(rig.import(&content).await.outcome, Outcome::Known);
    assert!(rig.all().await.is_empty());
}

#[tokio::test]
async fn large_blocks_are_split_by_window_and_by_series() {
    let mut rig = Rig::new();
    rig.importer.settings.block_series = 3;
    let from = day(10) + 5 * HOUR;
    let samples = floats(from, HOUR / 2, 120);
    let mut content = TsdbContent::default();
    for n in 0..8 {
        content = content.with_floats(labels(&[("n", &n.to_string())]), &samples, 11);
    }
    let done = rig.import(&content).await;
    let windows: BTreeSet<i64> = rig.manifest().await.blocks.iter().map(|b| b.window.min).collect();
    assert_eq!(windows, BTreeSet::from([day(10), day(9), day(8)]));
    assert_eq!((done.blocks, done.samples), (9, 8 * 120));
    let all = rig.all().await;
    assert_eq!(all.len(), 8);
    assert!(all.values().all(|s| *s == shown(&samples)));
}

#[tokio::test]
async fn i2_imported_samples_meet_those_that_are_there() {
    let rig = Rig::new();
    let from = day(2);
    let window = TimeRange::new(from, from + 2 * HOUR - 1);
    let series = labels(&[("__name__", "up")]);
    let block = koios_block::BlockId::new(RealClock::new().now_ms(), 7);
    let mut cut = BlockWriter::new(BlockOptions {
        partitions: vec![PartitionId(0)],
        ..BlockOptions::new(block, tenant(), window)
    })
    .unwrap();
    cut.push_series(&series, None, &[from + 1, from + 3], &[1.0, 3.0])
        .unwrap();
    let parts = cut.finish().unwrap().unwrap();
    rig.importer.bucket.upload_block(&tenant(), &parts).await.unwrap();
    let entry = ManifestBlock::new(&parts.meta, BTreeMap::new());
    let writer = Writer::partition("test", PartitionId(0), 1);
    rig.importer
        .bucket
        .commit(&tenant(), &writer, |m| m.add_block(entry.clone()))
        .await
        .unwrap();
    let content =
        TsdbContent::default().with_floats(series, &[(from + 1, 1.0), (from + 2, 2.0), (from + 3, 2.5)], 2);
    rig.import(&content).await;
    assert_eq!(
        rig.all().await.into_values().next().unwrap(),
        shown(&[(from + 1, 1.0), (from + 2, 2.0), (from + 3, 3.0)])
    );
}

#[tokio::test]
async fn what_is_older_than_the_retention_is_counted_and_left_out() {
    let rig = Rig::new();
    let (old, young) = (floats(day(200), HOUR, 30), floats(day(100), HOUR, 30));
    let content =
        TsdbContent::default().with_floats(labels(&[("a", "b")]), &[old.clone(), young.clone()].concat(), 10);
    let done = rig.import(&content).await;
    assert_eq!(
        (done.outcome, done.too_old, done.samples),
        (Outcome::Imported, 30, 30)
    );
    assert_eq!(rig.all().await.into_values().next().unwrap(), shown(&young));
    let rig = Rig::new();
    let content = TsdbContent::default().with_floats(labels(&[("a", "b")]), &old, 10);
    let done = rig.import(&content).await;
    assert_eq!(
        (done.outcome, done.too_old, done.samples),
        (Outcome::Nothing, 30, 0)
    );
    assert_eq!(rig.manifest().await.version, 0);
}

#[tokio::test]
async fn a_dry_run_reads_everything_and_writes_nothing() {
    let mut rig = Rig::new();
    rig.importer.settings.dry_run = true;
    let samples = floats(day(5), 60_000, 300);
    let mut content = TsdbContent::default().with_floats(labels(&[("a", "b")]), &samples, 100);
    content.tombstones = vec![(0, day(5), day(5) + 120_000)];
    let done = rig.import(&content).await;
    assert_eq!(
        (done.outcome, done.samples, done.deleted, done.blocks),
        (Outcome::Imported, 297, 3, 0)
    );
    assert_eq!(rig.manifest().await.version, 0);
    let mut files = content.files();
    let chunks = files.get_mut("chunks/000001").unwrap();
    let last = chunks.len() - 1;
    chunks[last] ^= 1;
    let error = rig.import_files(files).await.unwrap_err();
    assert!(
        error.to_string().contains("chunks/000001 is corrupt at byte"),
        "{error}"
    );
}

#[tokio::test]
async fn i10_an_import_that_fails_lists_nothing_and_can_be_tried_again() {
    let mut rig = Rig::new();
    rig.importer.settings.block_series = 1;
    let samples = floats(day(5), 60_000, 300);
    let mut content = TsdbContent::default();
    for n in 0..5 {
        content = content.with_floats(labels(&[("n", &n.to_string())]), &samples, 100);
    }
    let mut files = content.files();
    let chunks = files.get_mut("chunks/000003").unwrap();
    let last = chunks.len() - 1;
    chunks[last] ^= 1;
    assert!(rig.import_files(files).await.is_err());
    let manifest = rig.manifest().await;
    assert!(manifest.blocks.is_empty() && manifest.imports.is_empty());
    // What it uploaded before it came to the damage is dead.
    let uploaded = rig.importer.bucket.uploaded_blocks(&tenant()).await.unwrap();
    assert!(!uploaded.is_empty() && uploaded.iter().all(|(block, _)| manifest.is_dead(*block)));

    let mut files = content.files();
    let meta = String::from_utf8(files["meta.json"].clone()).unwrap();
    files.insert(
        "meta.json".to_owned(),
        meta.replace("\"numSamples\":1500", "\"numSamples\":1501")
            .into_bytes(),
    );
    let error = rig.import_files(files).await.unwrap_err().to_string();
    assert_eq!(error, "its chunks hold 1500 samples, meta.json says 1501");
    assert_eq!(rig.import(&content).await.samples, 1500);
}

#[tokio::test]
async fn external_labels_are_added_but_for_those_of_mimir_and_those_left_out() {
    let content = TsdbContent {
        more_meta: r#""thanos":{"labels":{"cluster":"x","replica":"1","__org_id__":"7","__compactor_shard_id__":"1_of_4"}}"#.to_owned(),
        ..TsdbContent::default()
    }
    .with_floats(labels(&[("a", "b")]), &floats(day(1), 1000, 3), 3);
    let mut rig = Rig::new();
    rig.importer.settings.external = ExternalLabels::AddExcept(BTreeSet::from(["replica".to_owned()]));
    rig.import(&content).await;
    assert_eq!(
        rig.all().await.into_keys().collect::<Vec<_>>(),
        [r#"{a="b", cluster="x"}"#]
    );
    let mut rig = Rig::new();
    rig.importer.settings.external = ExternalLabels::Ignore;
    rig.import(&content).await;
    assert_eq!(rig.all().await.into_keys().collect::<Vec<_>>(), [r#"{a="b"}"#]);
}

/// Passes a little with every look at it and while someone sleeps. Memory suffices again at some time.
#[derive(Debug)]
struct Passing {
    ms: AtomicU64,
    memory: PretendedMemory,
    enough_at_ms: u64,
}

impl Passing {
    fn pass(&self, ms: u64) -> Duration {
        let now = self.ms.fetch_add(ms, Ordering::Relaxed) + ms;
        if now >= self.enough_at_ms {
            self.memory.use_percent(50);
        }
        Duration::from_millis(now)
    }
}

impl Clock for Passing {
    fn now_ms(&self) -> i64 {
        RealClock::new().now_ms()
    }

    fn elapsed(&self) -> Duration {
        // More than the watch goes without a look.
        self.pass(101)
    }

    fn sleep(&self, duration: Duration) -> futures::future::BoxFuture<'static, ()> {
        self.pass(duration.as_millis() as u64);
        Box::pin(std::future::ready(()))
    }
}

/// Imports what takes several batches, and memory is short after the first of them until some time; what comes of it, and how
/// long that took.
async fn import_short_of_memory(rig: &mut Rig, enough_at_ms: u64) -> (Result<Imported, ImportError>, u64) {
    let memory = PretendedMemory::default();
    memory.use_percent(50);
    rig.importer.memory = memory.watch();
    let clock = Arc::new(Passing {
        ms: AtomicU64::new(0),
        memory: memory.clone(),
        enough_at_ms,
    });
    rig.importer.clock = clock.clone();
    let mut content = TsdbContent::default();
    for n in 0..6 {
        let samples = floats(day(5), 300, 20_000);
        content = content.with_floats(labels(&[("n", &n.to_string())]), &samples, 1000);
    }
    let files = Arc::new(MemoryFiles::new(content.files()));
    let watch = move |progress: koios_import::Progress| {
        if progress.samples > 0 && clock.ms.load(Ordering::Relaxed) < enough_at_ms {
            memory.use_percent(91);
        }
    };
    let done = rig.importer.import(&tenant(), files, &watch).await;
    (done, clock_ms(rig))
}

fn clock_ms(rig: &Rig) -> u64 {
    rig.importer.clock.elapsed().as_millis() as u64
}

#[tokio::test]
async fn i12_an_import_uploads_what_it_holds_and_waits_while_memory_is_short() {
    let mut rig = Rig::new();
    let (done, ms) = import_short_of_memory(&mut rig, 60_000).await;
    let done = done.unwrap();
    assert_eq!((done.outcome, done.samples), (Outcome::Imported, 120_000));
    // One before memory was short, and one after.
    assert_eq!(done.blocks, 2);
    assert!((60_000..120_000).contains(&ms), "{ms}");
    assert_eq!(rig.all().await.values().map(Vec::len).sum::<usize>(), 120_000);
}

#[tokio::test]
async fn i12_an_import_gives_up_what_it_holds_when_memory_stays_short() {
    let mut rig = Rig::new();
    let (done, ms) = import_short_of_memory(&mut rig, u64::MAX).await;
    let error = done.unwrap_err();
    assert!(
        error.is_transient() && matches!(error, ImportError::Memory(_)),
        "{error}"
    );
    assert!((600_000..1_200_000).contains(&ms), "{ms}");
    let manifest = rig.manifest().await;
    assert!(manifest.blocks.is_empty() && manifest.imports.is_empty());
    let (done, _) = import_short_of_memory(&mut rig, 1).await;
    assert_eq!(done.unwrap().samples, 120_000);
}
