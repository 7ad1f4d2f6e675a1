//! Uploads: begun, filled, finished, imported; and what is refused.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use koios_block::BlockId;
use koios_bucket::{Bucket, Nonce, Tombstone, TombstoneState, Writer};
use koios_import::{ImportSettings, Importer, UploadError, UploadState, Uploads, remove_uploads};
use koios_model::{Labels, Matchers, TenantId, TimeRange};
use koios_runtime::{Clock, Cpu, MemoryWatch, RealClock, RngHandle};
use koios_testkit::memory::PretendedMemory;
use koios_testkit::tsdb::TsdbContent;
use object_store::memory::InMemory;

const HOUR: i64 = 3_600_000;

fn tenant() -> TenantId {
    TenantId::new("team-a").unwrap()
}

fn uploads_on(store: &Arc<InMemory>) -> (Uploads, Bucket) {
    uploads_with(store, MemoryWatch::default())
}

fn uploads_with(store: &Arc<InMemory>, memory: MemoryWatch) -> (Uploads, Bucket) {
    let clock = Arc::new(RealClock::new());
    let bucket = Bucket::new(
        Arc::<InMemory>::clone(store),
        "",
        clock.clone(),
        RngHandle::from_seed(1),
    );
    let importer = Importer {
        bucket: bucket.clone(),
        settings: ImportSettings::default(),
        writer: "test".to_owned(),
        clock,
        rng: RngHandle::from_seed(2),
        cpu: Cpu::inline(),
        memory,
    };
    (Uploads::new(importer), bucket)
}

fn content(ulid: &str, days_ago: i64) -> TsdbContent {
    let from = RealClock::new().now_ms() - days_ago * 24 * HOUR;
    let samples: Vec<(i64, f64)> = (0..500).map(|i| (from + i * 15_000, i as f64)).collect();
    TsdbContent {
        ulid: ulid.to_owned(),
        ..TsdbContent::default()
    }
    .with_floats(Labels::from_pairs([("__name__", "up")]), &samples, 120)
}

const ULID: &str = "01BKGTZQ1SYQJTR4PB43C8PD98";

fn block() -> BlockId {
    ULID.parse().unwrap()
}

async fn start(uploads: &Uploads, files: &BTreeMap<String, Vec<u8>>) -> Result<(), UploadError> {
    uploads
        .start(
            &tenant(),
            block(),
            &Bytes::from(files["meta.json"].clone()),
            false,
        )
        .await
}

async fn send(uploads: &Uploads, name: &str, bytes: &[u8]) -> Result<(), UploadError> {
    let mut file = uploads
        .begin_file(&tenant(), block(), name, Some(bytes.len() as u64))
        .await?;
    file.write(bytes).await?;
    Ok(file.finish().await?)
}

async fn send_all(uploads: &Uploads, files: &BTreeMap<String, Vec<u8>>) {
    for (name, bytes) in files
        .iter()
        .filter(|(n, _)| *n != "meta.json" && *n != "tombstones")
    {
        send(uploads, name, bytes).await.unwrap();
    }
}

async fn state(uploads: &Uploads) -> UploadState {
    uploads.state(&tenant(), block()).await.unwrap()
}

#[tokio::test]
async fn an_upload_goes_on_in_another_process_after_each_step() {
    let store = Arc::new(InMemory::new());
    let fresh = || uploads_on(&store).0;
    let files = content(ULID, 3).files();
    assert!(matches!(
        fresh().state(&tenant(), block()).await,
        Err(UploadError::NotStarted(_))
    ));
    start(&fresh(), &files).await.unwrap();
    assert_eq!(state(&fresh()).await, UploadState::Uploading);
    send(&fresh(), "index", b"cut off by a crash").await.unwrap();
    // Begun again, as a client does that does not know how far it was.
    start(&fresh(), &files).await.unwrap();
    send_all(&fresh(), &files).await;
    fresh().finish(&tenant(), block()).await.unwrap();
    assert_eq!(state(&fresh()).await, UploadState::Validating);
    for refused in [
        start(&fresh(), &files).await,
        fresh().finish(&tenant(), block()).await,
        send(&fresh(), "index", b"x").await,
    ] {
        assert!(matches!(refused, Err(UploadError::Conflict(..))), "{refused:?}");
    }
    assert_eq!(fresh().work(&tenant()).await.unwrap(), 1);
    assert_eq!(state(&fresh()).await, UploadState::Complete);
    assert!(matches!(
        start(&fresh(), &files).await,
        Err(UploadError::Conflict(..))
    ));
    let (_, bucket) = uploads_on(&store);
    let manifest = bucket.latest(&tenant()).await.unwrap();
    assert_eq!(
        (
            manifest.blocks.iter().map(|b| b.samples).sum::<u64>(),
            manifest.imports.len()
        ),
        (500, 1)
    );
    // The files are gone, the word on them goes later.
    assert!(bucket.file(&tenant(), block(), "index").await.unwrap().is_none());
    assert!(
        bucket
            .file(&tenant(), block(), "meta.json")
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(fresh().work(&tenant()).await.unwrap(), 0);
}

#[tokio::test]
async fn what_is_damaged_fails_with_a_word_on_it_and_can_be_uploaded_again() {
    let store = Arc::new(InMemory::new());
    let (uploads, bucket) = uploads_on(&store);
    let files = content(ULID, 3).files();
    start(&uploads, &files).await.unwrap();
    send_all(&uploads, &files).await;
    let mut wrong = files["chunks/000001"].clone();
    let last = wrong.len() - 1;
    wrong[last] ^= 1;
    send(&uploads, "chunks/000001", &wrong).await.unwrap();
    uploads.finish(&tenant(), block()).await.unwrap();
    assert_eq!(uploads.work(&tenant()).await.unwrap(), 0);
    let UploadState::Failed(why) = state(&uploads).await else {
        panic!("{:?}", state(&uploads).await)
    };
    assert!(why.contains("chunks/000001 is corrupt at byte"), "{why}");
    assert!(bucket.latest(&tenant()).await.unwrap().blocks.is_empty());
    start(&uploads, &files).await.unwrap();
    send_all(&uploads, &files).await;
    uploads.finish(&tenant(), block()).await.unwrap();
    assert_eq!(uploads.work(&tenant()).await.unwrap(), 1);
    assert_eq!(state(&uploads).await, UploadState::Complete);
}

#[tokio::test]
async fn what_cannot_be_a_block_is_refused_at_once() {
    let store = Arc::new(InMemory::new());
    let (uploads, _) = uploads_on(&store);
    let files = content(ULID, 3).files();
    assert!(matches!(
        send(&uploads, "index", b"x").await,
        Err(UploadError::NotStarted(_))
    ));
    let other = content("01BKGTZQ1SYQJTR4PB43C8PD99", 3).files();
    for (meta, part) in [
        (&b"{}"[..], "meta.json is corrupt"),
        (
            &other["meta.json"],
            "meta.json is of block 01BKGTZQ1SYQJTR4PB43C8PD99",
        ),
        (
            &content(ULID, 300).files()["meta.json"],
            "older than the retention",
        ),
    ] {
        let refused = uploads
            .start(&tenant(), block(), &Bytes::copy_from_slice(meta), false)
            .await
            .unwrap_err();
        assert!(
            matches!(refused, UploadError::Bad(_)) && refused.to_string().contains(part),
            "{refused}"
        );
    }
    start(&uploads, &files).await.unwrap();
    for path in [
        "meta.json",
        "chunks/1",
        "chunks/0000001",
        "../index",
        "chunks/../../x",
        "tombstones",
        "",
    ] {
        let refused = send(&uploads, path, b"x").await.unwrap_err();
        assert!(matches!(refused, UploadError::Bad(_)), "{path}: {refused}");
    }
    let huge = uploads
        .begin_file(&tenant(), block(), "index", Some(u64::MAX))
        .await
        .unwrap_err();
    assert!(matches!(huge, UploadError::TooLarge { .. }), "{huge}");
    assert!(matches!(
        send(&uploads, "index", b"").await,
        Err(UploadError::Bad(_))
    ));
}

#[tokio::test]
async fn i12_a_tenant_cannot_begin_uploads_without_end() {
    let store = Arc::new(InMemory::new());
    let (uploads, _) = uploads_on(&store);
    let mut refused = None;
    for n in 0..80u128 {
        let ulid = BlockId::new(1_700_000_000_000, n).to_string();
        let meta = Bytes::from(content(&ulid, 3).files()["meta.json"].clone());
        let (tenant, block) = (tenant(), ulid.parse().unwrap());
        refused = uploads.start(&tenant, block, &meta, false).await.err();
        if refused.is_some() {
            assert_eq!(n, 64);
            break;
        }
    }
    assert!(
        matches!(refused, Some(UploadError::TooMany(64, _))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn i12_nothing_is_begun_while_memory_is_short() {
    let store = Arc::new(InMemory::new());
    let memory = PretendedMemory::default();
    // A watch looks but now and then.
    let fresh = |percent| {
        memory.use_percent(percent);
        uploads_with(&store, memory.watch()).0
    };
    let files = content(ULID, 3).files();
    let short = |done: Result<(), UploadError>| matches!(done, Err(UploadError::Memory(_)));
    assert!(short(start(&fresh(90), &files).await));
    start(&fresh(50), &files).await.unwrap();
    assert!(short(send(&fresh(90), "index", &files["index"]).await));
    send_all(&fresh(50), &files).await;
    // What takes no memory is done.
    fresh(90).finish(&tenant(), block()).await.unwrap();
    assert_eq!(state(&fresh(90)).await, UploadState::Validating);
    assert!(short(fresh(90).work(&tenant()).await.map(|_| ())));
    assert_eq!(state(&fresh(90)).await, UploadState::Validating);
    assert_eq!(fresh(50).work(&tenant()).await.unwrap(), 1);
    assert_eq!(state(&fresh(90)).await, UploadState::Complete);
}

async fn finished(uploads: &Uploads, files: &BTreeMap<String, Vec<u8>>) {
    start(uploads, files).await.unwrap();
    send_all(uploads, files).await;
    uploads.finish(&tenant(), block()).await.unwrap();
}

#[tokio::test]
async fn an_upload_that_another_process_imports_is_left_to_it_while_it_is_heard_of() {
    let store = Arc::new(InMemory::new());
    let (uploads, bucket) = uploads_on(&store);
    finished(&uploads, &content(ULID, 3).files()).await;
    let held_by_another = async |ago_ms: i64| {
        let now = RealClock::new().now_ms();
        let state = format!(
            r#"{{"state":"validating","attempts":1,"at_ms":{now},"version":0,"holder":"other","held_ms":{}}}"#,
            now - ago_ms
        );
        let state = Bytes::from(state);
        bucket
            .put_file(&tenant(), block(), "state.json", &state)
            .await
            .unwrap();
    };
    held_by_another(1000).await;
    assert_eq!(uploads.work(&tenant()).await.unwrap(), 0);
    assert!(bucket.latest(&tenant()).await.unwrap().blocks.is_empty());
    held_by_another(61_000).await;
    assert_eq!(uploads.work(&tenant()).await.unwrap(), 1);
    assert_eq!(state(&uploads).await, UploadState::Complete);
}

#[tokio::test]
async fn i1_an_upload_that_was_begun_is_not_taken_for_one_that_nobody_began() {
    let store = Arc::new(InMemory::new());
    let (uploads, bucket) = uploads_on(&store);
    let files = content(ULID, 3).files();
    // Something was left of one that was removed.
    let meta = Bytes::from(files["meta.json"].clone());
    bucket
        .put_file(&tenant(), block(), "meta.json", &meta)
        .await
        .unwrap();
    uploads.work(&tenant()).await.unwrap();
    assert!(matches!(state(&uploads).await, UploadState::Failed(_)));
    start(&uploads, &files).await.unwrap();
    // Whoever saw it without its state writes that it failed only if it is still without.
    let failed = Bytes::from_static(br#"{"state":"failed","at_ms":0}"#);
    let wrote = bucket
        .create_file(&tenant(), block(), "state.json", &failed)
        .await
        .unwrap();
    assert!(!wrote);
    assert_eq!(state(&uploads).await, UploadState::Uploading);
}

#[tokio::test]
async fn i10_uploads_from_before_a_tenant_was_deleted_go_and_later_ones_stay() {
    let store = Arc::new(InMemory::new());
    let (uploads, bucket) = uploads_on(&store);
    let files = content(ULID, 3).files();
    let delete = async || {
        let (tenant, writer) = (tenant(), Writer::compaction("test", 1));
        let commit = bucket.commit(&tenant, &writer, |m| {
            m.add_tombstone(Tombstone {
                state: TombstoneState::Final,
                ..Tombstone::new(Nonce(u128::from(m.version)), &Matchers::default(), TimeRange::ALL)
            });
            m.forget_imports();
            Ok(())
        });
        commit.await.unwrap().version
    };
    // Acknowledged, and not imported yet: it is not imported whether it was removed or not.
    finished(&uploads, &files).await;
    let version = delete().await;
    assert_eq!(uploads.work(&tenant()).await.unwrap(), 0);
    let UploadState::Failed(why) = state(&uploads).await else {
        panic!("{:?}", state(&uploads).await)
    };
    assert!(why.contains("were deleted after the block came"), "{why}");
    assert_eq!(remove_uploads(&bucket, &tenant(), version).await.unwrap(), 1);
    assert!(bucket.uploads(&tenant()).await.unwrap().is_empty());
    // The same block, and after its import once more.
    for _ in 0..2 {
        finished(&uploads, &files).await;
        assert_eq!(remove_uploads(&bucket, &tenant(), version).await.unwrap(), 0);
        assert_eq!(uploads.work(&tenant()).await.unwrap(), 1);
        assert_eq!(state(&uploads).await, UploadState::Complete);
        delete().await;
    }
}

#[tokio::test]
async fn an_upload_whose_files_are_gone_has_failed() {
    let store = Arc::new(InMemory::new());
    let (uploads, _) = uploads_on(&store);
    let files = content(ULID, 3).files();
    start(&uploads, &files).await.unwrap();
    uploads.finish(&tenant(), block()).await.unwrap();
    assert_eq!(uploads.work(&tenant()).await.unwrap(), 0);
    assert!(matches!(state(&uploads).await, UploadState::Failed(_)));
}

#[tokio::test]
async fn what_was_imported_is_uploaded_again_only_where_that_is_asked_for_and_once() {
    let store = Arc::new(InMemory::new());
    let (uploads, bucket) = uploads_on(&store);
    let files = content(ULID, 3).files();
    let meta = Bytes::from(files["meta.json"].clone());
    let again = async || uploads.start(&tenant(), block(), &meta, true).await;
    let samples = async || {
        let manifest = bucket.latest(&tenant()).await.unwrap();
        manifest.blocks.iter().map(|b| b.samples).sum::<u64>()
    };
    finished(&uploads, &files).await;
    assert_eq!(uploads.work(&tenant()).await.unwrap(), 1);
    // Also when nothing is left of its blocks, as after a merge or a deletion.
    let (of, writer) = (tenant(), Writer::compaction("test", 1));
    let remove = bucket.commit(&of, &writer, |m| {
        let all: Vec<_> = m.blocks.iter().map(|b| b.block).collect();
        all.into_iter().for_each(|block| _ = m.remove_block(block));
        Ok(())
    });
    remove.await.unwrap();
    let refused = start(&uploads, &files).await;
    assert!(matches!(refused, Err(UploadError::Conflict(..))), "{refused:?}");
    again().await.unwrap();
    assert_eq!(state(&uploads).await, UploadState::Uploading);
    send_all(&uploads, &files).await;
    uploads.finish(&tenant(), block()).await.unwrap();
    assert!(matches!(again().await, Err(UploadError::Conflict(..))));
    // A process that ends between the commit and the removal of the files leaves this.
    let waits = bucket
        .file(&tenant(), block(), "state.json")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(uploads.work(&tenant()).await.unwrap(), 1);
    assert_eq!(
        (state(&uploads).await, samples().await),
        (UploadState::Complete, 500)
    );
    bucket
        .put_file(&tenant(), block(), "meta.json", &meta)
        .await
        .unwrap();
    send_files(&bucket, &files).await;
    bucket
        .put_file(&tenant(), block(), "state.json", &waits)
        .await
        .unwrap();
    assert_eq!(uploads.work(&tenant()).await.unwrap(), 0);
    assert_eq!(
        (state(&uploads).await, samples().await),
        (UploadState::Complete, 500)
    );
}

/// The files of an upload, whether it takes any or not.
async fn send_files(bucket: &Bucket, files: &BTreeMap<String, Vec<u8>>) {
    for (name, bytes) in files.iter().filter(|(name, _)| *name != "tombstones") {
        let bytes = Bytes::from(bytes.clone());
        bucket.put_file(&tenant(), block(), name, &bytes).await.unwrap();
    }
}

#[tokio::test]
async fn an_upload_that_is_asked_for_again_and_fails_says_so() {
    let store = Arc::new(InMemory::new());
    let (uploads, _) = uploads_on(&store);
    let files = content(ULID, 3).files();
    finished(&uploads, &files).await;
    assert_eq!(uploads.work(&tenant()).await.unwrap(), 1);
    let meta = Bytes::from(files["meta.json"].clone());
    uploads.start(&tenant(), block(), &meta, true).await.unwrap();
    uploads.finish(&tenant(), block()).await.unwrap();
    assert_eq!(uploads.work(&tenant()).await.unwrap(), 0);
    assert!(matches!(state(&uploads).await, UploadState::Failed(_)));
    let refused = start(&uploads, &files).await;
    assert!(matches!(refused, Err(UploadError::Conflict(..))), "{refused:?}");
}
