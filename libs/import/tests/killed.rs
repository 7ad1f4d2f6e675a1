//! Imports whose process ends half way: nothing is lost, nothing is there twice, and what they leave is collected.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::{Either, select};
use koios_block::{BlockCache, BlockId, BlockMerge, MergeInput};
use koios_bucket::{Blocks, Bucket};
use koios_import::{ImportSettings, Importer, Outcome};
use koios_model::{Labels, TenantId};
use koios_runtime::{Clock, Cpu, MemoryWatch, RealClock, RngHandle};
use koios_testkit::tsdb::TsdbContent;
use koios_tsdb::{MemoryFiles, TsdbFiles};
use object_store::memory::InMemory;
use tokio::sync::Notify;

const HOUR: i64 = 3_600_000;
const SAMPLES: i64 = 60;

fn tenant() -> TenantId {
    TenantId::new("team-a").unwrap()
}

fn importer() -> Importer {
    let clock = Arc::new(RealClock::new());
    let store = Arc::new(InMemory::new());
    Importer {
        bucket: Bucket::new(store, "", clock.clone(), RngHandle::from_seed(1)),
        settings: ImportSettings::default(),
        writer: "test".to_owned(),
        clock,
        rng: RngHandle::from_seed(2),
        cpu: Cpu::inline(),
        memory: MemoryWatch::default(),
    }
}

/// Samples an hour apart, which several blocks will hold.
fn content() -> TsdbContent {
    let from = RealClock::new().now_ms() / (24 * HOUR) * (24 * HOUR) - 5 * 24 * HOUR;
    let samples: Vec<_> = (0..SAMPLES).map(|i| (from + i * HOUR, i as f64)).collect();
    TsdbContent::default().with_floats(Labels::from_pairs([("__name__", "up")]), &samples, 5)
}

/// A block of which so many reads of chunks are answered.
#[derive(Debug)]
struct Stopping {
    files: MemoryFiles,
    left: AtomicU64,
    stopped: Arc<Notify>,
}

#[async_trait]
impl TsdbFiles for Stopping {
    async fn size(&self, file: &str) -> koios_tsdb::Result<Option<u64>> {
        self.files.size(file).await
    }

    async fn read(&self, file: &str, range: Range<u64>) -> koios_tsdb::Result<Bytes> {
        let less = |left: u64| left.checked_sub(1);
        if file.starts_with("chunks/")
            && self
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
                .is_err()
        {
            self.stopped.notify_one();
            std::future::pending::<()>().await;
        }
        self.files.read(file, range).await
    }

    fn read_at_least(&self) -> u64 {
        self.files.read_at_least()
    }
}

/// Imports and ends after so many reads; whether it came to its end before.
async fn import_until(importer: &Importer, reads: u64) -> bool {
    let stopped = Arc::new(Notify::new());
    let files = Stopping {
        files: MemoryFiles::new(content().files()),
        left: AtomicU64::new(reads),
        stopped: Arc::clone(&stopped),
    };
    let tenant = tenant();
    let importing = pin!(importer.import(&tenant, Arc::new(files), &|_| {}));
    match select(importing, pin!(stopped.notified())).await {
        Either::Left((done, _)) => done.unwrap().outcome == Outcome::Imported,
        Either::Right(_) => false,
    }
}

/// What readers get, in the order they get it.
async fn read(importer: &Importer) -> Vec<(i64, f64)> {
    let manifest = importer.bucket.latest(&tenant()).await.unwrap();
    let cache = Arc::new(BlockCache::new(1 << 20, 1 << 20));
    let blocks = Blocks::new(importer.bucket.clone(), cache, 0);
    let mut inputs = Vec::new();
    for listed in &manifest.blocks {
        inputs.push(MergeInput::from(blocks.open(&tenant(), listed).await.unwrap()));
    }
    let (mut merge, mut all) = (BlockMerge::new(inputs), Vec::new());
    while let Some(series) = merge.next().await.unwrap() {
        all.extend(series.samples.iter().map(|s| (s.t, s.v)));
    }
    all
}

/// What is left of imports that ended: all of it is known to be of no use.
async fn orphans(importer: &Importer) -> usize {
    let uploaded = importer.bucket.uploaded_blocks(&tenant()).await.unwrap();
    let names: BTreeSet<BlockId> = uploaded.iter().map(|(block, _)| *block).collect();
    let manifest = importer.bucket.latest(&tenant()).await.unwrap();
    let found = importer
        .bucket
        .unlisted(&manifest, uploaded, i64::MAX)
        .await
        .unwrap();
    assert!(found.unknown.is_empty(), "{:?}", found.unknown);
    assert_eq!(found.orphans.len() + manifest.blocks.len(), names.len());
    found.orphans.len()
}

#[tokio::test]
async fn i10_a_first_import_that_ended_half_way_leaves_what_is_collected() {
    let mut most = 0;
    for reads in 0.. {
        let importer = importer();
        let is_done = import_until(&importer, reads).await;
        most = most.max(orphans(&importer).await);
        if is_done {
            break;
        }
        assert!(read(&importer).await.is_empty(), "all or nothing");
        assert!(import_until(&importer, u64::MAX).await);
        assert_eq!(
            read(&importer).await.len(),
            SAMPLES as usize,
            "after {reads} reads"
        );
    }
    assert!(most >= 2, "it ended between its blocks, too");
}

#[tokio::test]
async fn i2_an_import_that_is_repeated_and_ended_half_way_is_there_once() {
    for reads in 0.. {
        let mut importer = importer();
        assert!(import_until(&importer, u64::MAX).await);
        let once = read(&importer).await;
        assert_eq!(once.len(), SAMPLES as usize);
        importer.settings.again = true;
        let is_done = import_until(&importer, reads).await;
        assert_eq!(read(&importer).await, once, "after {reads} reads");
        if is_done {
            break;
        }
        assert!(import_until(&importer, u64::MAX).await);
        assert_eq!(read(&importer).await, once, "after {reads} reads");
        orphans(&importer).await;
        importer.settings.again = false;
        assert!(!import_until(&importer, u64::MAX).await, "it is known");
    }
}
