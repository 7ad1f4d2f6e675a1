//! What was left out, imported wrongly or deleted can be imported; what came before a deletion does not come back by it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use koios_bucket::{
    Bucket, Manifest, Nonce, RetentionPolicy, RetentionRecord, Tombstone, TombstoneState, Writer,
};
use koios_import::{Came, ImportError, ImportSettings, Imported, Importer, Kept, Outcome, Retentions};
use koios_model::{Labels, Matcher, Matchers, TenantId, TimeRange};
use koios_runtime::{Clock, Cpu, MemoryWatch, RealClock, RngHandle};
use koios_testkit::tsdb::TsdbContent;
use koios_tsdb::{MemoryFiles, TsdbFiles};
use object_store::memory::InMemory;

const DAY: i64 = 24 * 3_600_000;

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

/// Thirty samples an hour apart of each of some days ago.
fn content(days_ago: &[i64]) -> TsdbContent {
    let midnight = RealClock::new().now_ms() / DAY * DAY;
    let mut samples = Vec::new();
    for ago in days_ago {
        samples.extend((0..30).map(|i| (midnight - ago * DAY + i * 3_600_000, i as f64)));
    }
    TsdbContent::default().with_floats(Labels::from_pairs([("__name__", "up")]), &samples, 10)
}

async fn import(importer: &Importer, content: &TsdbContent) -> Imported {
    let files = Arc::new(MemoryFiles::new(content.files()));
    importer.import(&tenant(), files, &|_| {}).await.unwrap()
}

async fn change(importer: &Importer, mut change: impl FnMut(&mut Manifest) + Send) -> u64 {
    let (tenant, writer) = (tenant(), Writer::compaction("test", 1));
    let commit = importer.bucket.commit(&tenant, &writer, |m| {
        change(m);
        Ok(())
    });
    commit.await.unwrap().version
}

async fn note_retention(importer: &Importer, days: i64) {
    let policy = RetentionPolicy {
        samples_ms: Some(days * DAY),
        ..RetentionPolicy::default()
    };
    change(importer, |m| {
        m.retention = Some(RetentionRecord::new(policy.clone(), None, 0, 0));
    })
    .await;
}

fn of_all() -> Tombstone {
    Tombstone {
        state: TombstoneState::Final,
        ..Tombstone::new(Nonce(1), &Matchers::default(), TimeRange::ALL)
    }
}

/// Says the same of every tenant.
#[derive(Debug)]
struct OfAll(Duration);

impl Retentions for OfAll {
    fn of(&self, _: &TenantId) -> Duration {
        self.0
    }
}

#[tokio::test]
async fn what_a_tenant_keeps_is_imported_as_its_manifest_notes_it() {
    let both = content(&[200, 100]);
    let days = |days: i64| Some(days * DAY);
    let duration = |days: u64| Duration::from_secs(days * 24 * 3600);
    // What was told, by tenant or for the import, what is noted, and what comes of it.
    for (of_tenants, given, noted, kept, is_noted, samples) in [
        (None, None, None, days(150), false, 30),
        (None, None, Some(400), days(400), true, 60),
        (None, None, Some(30), days(30), true, 0),
        (None, Some(150), Some(400), days(150), false, 30),
        (Some(150), None, Some(400), days(400), true, 60),
        (Some(150), None, Some(30), days(150), false, 30),
    ] {
        let mut importer = importer();
        let settings = &mut importer.settings;
        settings.retentions = of_tenants.map(|days| Arc::new(OfAll(duration(days))) as _);
        settings.retention_given = given.is_some();
        settings.retention = duration(given.unwrap_or(150));
        if let Some(days) = noted {
            note_retention(&importer, days).await;
        }
        let done = import(&importer, &both).await;
        let what = format!("{of_tenants:?} {given:?} {noted:?}");
        assert_eq!((done.samples, done.too_old), (samples, 60 - samples), "{what}");
        assert_eq!(done.kept, Kept { ms: kept, is_noted }, "{what}");
    }
}

#[tokio::test]
async fn what_was_left_out_is_imported_once_it_is_kept() {
    let mut importer = importer();
    let both = content(&[200, 100]);
    let done = import(&importer, &both).await;
    assert_eq!(
        (done.outcome, done.samples, done.too_old),
        (Outcome::Imported, 30, 30)
    );
    assert_eq!(import(&importer, &both).await.outcome, Outcome::Known);
    importer.settings.retention_given = true;
    importer.settings.retention = Duration::ZERO;
    let done = import(&importer, &both).await;
    assert_eq!(
        (done.outcome, done.samples, done.too_old),
        (Outcome::Imported, 30, 0)
    );
    let manifest = importer.bucket.latest(&tenant()).await.unwrap();
    assert_eq!(manifest.blocks.iter().map(|b| b.samples).sum::<u64>(), 60);
    assert_eq!((manifest.imports.len(), manifest.imports[0].samples), (1, 60));
    assert_eq!(import(&importer, &both).await.outcome, Outcome::Known);
}

#[tokio::test]
async fn what_was_deleted_is_imported_again_when_that_is_asked_for() {
    let mut importer = importer();
    let content = content(&[3]);
    import(&importer, &content).await;
    let up = Matchers(vec![Matcher::equal("__name__", "up")]);
    let deletion = Tombstone::new(Nonce(1), &up, TimeRange::ALL);
    change(&importer, |m| m.add_tombstone(deletion.clone())).await;
    assert_eq!(import(&importer, &content).await.outcome, Outcome::Known);
    importer.settings.again = true;
    assert_eq!(import(&importer, &content).await.samples, 30);
    let manifest = importer.bucket.latest(&tenant()).await.unwrap();
    let (masked, there): (Vec<_>, Vec<_>) = manifest
        .blocks
        .iter()
        .partition(|b| manifest.masking(b).next().is_some());
    let samples = |blocks: &[&koios_bucket::ManifestBlock]| blocks.iter().map(|b| b.samples).sum::<u64>();
    assert_eq!((samples(&masked), samples(&there)), (30, 30));
    // Compaction takes them for two runs, and may merge them.
    assert_ne!(masked[0].sources, there[0].sources);
}

#[tokio::test]
async fn i10_what_came_before_all_was_deleted_is_not_listed_after_it() {
    let importer = importer();
    let content = content(&[3]);
    let version = change(&importer, |_| {}).await;
    let import_of = async |version| {
        let files = Arc::new(MemoryFiles::new(content.files()));
        let came = Came {
            version,
            again_after: None,
        };
        importer.import_as_of(&tenant(), files, came, &|_| {}).await
    };
    change(&importer, |m| m.add_tombstone(of_all())).await;
    assert!(matches!(
        import_of(Some(version)).await,
        Err(ImportError::Deleted)
    ));
    // Nor when the deletion is complete and the manifest does not list it any more.
    change(&importer, |m| m.tombstones.clear()).await;
    assert!(matches!(
        import_of(Some(version)).await,
        Err(ImportError::Deleted)
    ));
    assert_eq!(import_of(None).await.unwrap().samples, 30);
}

/// A block that something happens to while it is read.
#[derive(Debug)]
struct Interrupted {
    files: MemoryFiles,
    importer: Importer,
    /// The manifest's deletion is complete then.
    is_complete: bool,
    happened: AtomicBool,
}

#[async_trait]
impl TsdbFiles for Interrupted {
    async fn size(&self, file: &str) -> koios_tsdb::Result<Option<u64>> {
        self.files.size(file).await
    }

    async fn read(&self, file: &str, range: Range<u64>) -> koios_tsdb::Result<Bytes> {
        if file.starts_with("chunks/") && !self.happened.swap(true, Ordering::Relaxed) {
            let up = Matchers(vec![Matcher::equal("__name__", "up")]);
            let deletion = Tombstone {
                state: TombstoneState::Final,
                ..Tombstone::new(Nonce(1), &up, TimeRange::ALL)
            };
            change(&self.importer, |m| m.add_tombstone(deletion.clone())).await;
            if self.is_complete {
                change(&self.importer, |m| m.tombstones.clear()).await;
            }
        }
        self.files.read(file, range).await
    }

    fn read_at_least(&self) -> u64 {
        self.files.read_at_least()
    }
}

#[tokio::test]
async fn i10_a_deletion_made_while_an_import_runs_applies_to_it() {
    for is_complete in [false, true] {
        let importer = importer();
        let files = Interrupted {
            files: MemoryFiles::new(content(&[3]).files()),
            importer: importer.clone(),
            is_complete,
            happened: AtomicBool::new(false),
        };
        let done = importer.import(&tenant(), Arc::new(files), &|_| {}).await;
        let manifest = importer.bucket.latest(&tenant()).await.unwrap();
        if is_complete {
            // Nothing would mask it.
            assert!(matches!(done, Err(ImportError::Deleted)), "{done:?}");
            assert!(manifest.blocks.is_empty() && manifest.imports.is_empty());
        } else {
            assert_eq!(done.unwrap().samples, 30);
            assert!(
                manifest
                    .blocks
                    .iter()
                    .all(|b| manifest.masking(b).next().is_some())
            );
        }
    }
}
