//! Blocks and backups in a bucket, in memory, in a folder, and over the S3 protocol.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::life::{blocks, life_of_a_block, race};
use common::{Fault, Faulty, block, bucket, bucket_over, clock, entry, id, in_pieces, tenant, writer};
use koios_bucket::{Bucket, Error};
use koios_model::{Matchers, TenantId, TimeRange};
use koios_runtime::{ClockHandle, RngHandle, TokioClock};
use koios_testkit::distant::Distant;
use koios_testkit::moto::Moto;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

#[tokio::test]
async fn in_memory() {
    life_of_a_block(&bucket()).await;
}

#[tokio::test]
async fn in_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}/new/folder", dir.path().display());
    let bucket = Bucket::open(&url, clock(), RngHandle::from_seed(1)).unwrap();
    life_of_a_block(&bucket).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_the_s3_protocol() {
    let dir = tempfile::tempdir().unwrap();
    let moto = Moto::start(dir.path()).await.unwrap();
    let url = moto.url("some/prefix");
    let open = |seed| Bucket::open_with_env(&url, moto.env(), clock(), RngHandle::from_seed(seed)).unwrap();
    life_of_a_block(&open(1)).await;
    open(1).upload_block(&tenant(), &in_pieces()).await.unwrap();
    race(open).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn i10_racing_writers_over_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}", dir.path().display());
    race(|seed| Bucket::open(&url, clock(), RngHandle::from_seed(seed)).unwrap()).await;
    // What a crash leaves of a write that was not finished is no object.
    let blocks = dir.path().join("racing/blocks").join(id(1).to_string());
    std::fs::create_dir_all(&blocks).unwrap();
    std::fs::write(blocks.join("meta.json#1"), "{").unwrap();
    let bucket = Bucket::open(&url, clock(), RngHandle::from_seed(1)).unwrap();
    let racing = TenantId::new("racing").unwrap();
    assert!(bucket.uploaded_blocks(&racing).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_store_that_ignores_preconditions_is_refused_unless_one_writer_is_declared() {
    let store = Arc::new(InMemory::new());
    let bucket = bucket_over(Faulty::over(&store, Fault::IgnoresPreconditions), 1);
    let e = bucket.self_test(false).await.unwrap_err();
    assert!(
        matches!(e, Error::Unsafe { .. }) && e.to_string().contains("only writer"),
        "{e}"
    );
    bucket.self_test(true).await.unwrap();
    let tasks = (0..5u64).map(|n| {
        let (bucket, entry) = (bucket.clone(), common::small_entry(n));
        async move {
            bucket
                .commit(&tenant(), &writer(1), |m| m.add_block(entry.clone()))
                .await
                .unwrap()
        }
    });
    futures::future::join_all(tasks).await;
    assert_eq!(bucket.latest(&tenant()).await.unwrap().blocks.len(), 5);
    // The test leaves nothing behind.
    let left: Vec<_> = futures::StreamExt::collect(store.list(Some(&Path::from("prefix/__cluster")))).await;
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn i9_an_upload_that_arrived_short_is_not_taken_for_done() {
    let store = Arc::new(InMemory::new());
    let bucket = bucket_over(Faulty::over(&store, Fault::Truncates), 1);
    let e = bucket.upload_block(&tenant(), &block(1, 10)).await.unwrap_err();
    assert!(
        matches!(e, Error::Altered { .. }) && e.to_string().contains("series.parquet"),
        "{e}"
    );
}

#[tokio::test]
async fn i11_an_upload_that_is_stored_otherwise_is_not_taken_for_done() {
    let parts = block(1, 10);
    let names = parts.parts.iter().map(|(name, _)| name.as_str());
    for name in names.chain([koios_block::META_PART]) {
        let store = Arc::new(InMemory::new());
        let bucket = bucket_over(store.clone(), 1);
        bucket.upload_block(&tenant(), &parts).await.unwrap();
        bucket.send_block(&tenant(), &parts).await.unwrap();
        let path = Path::from(format!("prefix/team-a/blocks/{}/{name}", id(1)));
        let sent = store.get(&path).await.unwrap().bytes().await.unwrap();
        let mut flipped = sent.to_vec();
        flipped[sent.len() / 2] ^= 4;
        for stored in [flipped.into(), sent.slice(1..)] {
            store.put(&path, stored.into()).await.unwrap();
            let e = bucket.read_back(&tenant(), &parts.meta).await.unwrap_err();
            let Error::Altered { block, part, .. } = &e else {
                panic!("{name}: {e}");
            };
            assert_eq!((*block, &**part), (id(1), name));
            assert!(e.is_transient(), "{e}");
        }
        store.delete(&path).await.unwrap();
        let e = bucket.read_back(&tenant(), &parts.meta).await.unwrap_err();
        assert!(
            matches!(&e, Error::Altered { part, .. } if **part == *name),
            "{e}"
        );
    }
}

#[tokio::test]
async fn i11_what_is_read_back_is_read_a_little_at_a_time() {
    let clock: ClockHandle = Arc::new(TokioClock::starting_at(0));
    let store = Arc::new(Distant::new(Arc::clone(&clock), Duration::ZERO));
    let bucket = Bucket::new(store.clone(), "prefix", clock, RngHandle::from_seed(1));
    let parts = in_pieces();
    bucket.send_block(&tenant(), &parts).await.unwrap();
    store.take();
    bucket.read_back(&tenant(), &parts.meta).await.unwrap();
    let (requests, bytes) = store.take();
    let all = 40 << 20;
    assert!(
        requests > 10 && (all..all + (1 << 20)).contains(&bytes),
        "{requests} {bytes}"
    );
}

#[tokio::test]
async fn i11_metadata_that_is_not_the_listed_one_is_refused() {
    let store = Arc::new(InMemory::new());
    let bucket = bucket_over(store.clone(), 1);
    let (one, two) = (block(1, 10), block(1, 11));
    bucket.upload_block(&tenant(), &one).await.unwrap();
    let e = blocks(&bucket)
        .open(&tenant(), &entry(&two.meta))
        .await
        .unwrap_err();
    assert!(matches!(e, Error::Corrupt { .. }), "{e}");
    // Bytes damaged in the bucket are found when they are read.
    let path = Path::from(format!("prefix/team-a/blocks/{}/samples.parquet", id(1)));
    let mut bytes = store.get(&path).await.unwrap().bytes().await.unwrap().to_vec();
    bytes[100] ^= 1;
    store.put(&path, bytes.into()).await.unwrap();
    let reader = blocks(&bucket).open(&tenant(), &entry(&one.meta)).await.unwrap();
    let series = reader.select(&Matchers::default(), TimeRange::ALL).await.unwrap();
    let e = reader.read_samples(&series, TimeRange::ALL).await.unwrap_err();
    assert!(e.is_corrupt() && e.to_string().contains("samples.parquet"), "{e}");
}

#[tokio::test]
async fn i10_a_damaged_backup_gives_way_to_the_one_before() {
    let store = Arc::new(InMemory::new());
    let bucket = bucket_over(store.clone(), 1);
    bucket.put_control_backup(1, b"one").await.unwrap();
    bucket.put_control_backup(2, b"two").await.unwrap();
    let path = Path::from(format!("prefix/__cluster/control/{:020}.bin", 2));
    store.put(&path, "KOIOSCB1xxxxtwo".into()).await.unwrap();
    assert_eq!(bucket.control_backup().await.unwrap().unwrap().0, 1);
    let first = Path::from(format!("prefix/__cluster/control/{:020}.bin", 1));
    store.put(&first, "".into()).await.unwrap();
    assert!(matches!(
        bucket.control_backup().await,
        Err(Error::Corrupt { .. })
    ));
}

#[tokio::test]
async fn what_does_not_answer_is_given_up_at_the_deadline() {
    let store = Arc::new(InMemory::new());
    let bucket = bucket_over(Faulty::over(&store, Fault::Down), 1).with_retry(koios_bucket::RetryPolicy {
        deadline: Duration::from_millis(50),
        backoff_min: Duration::from_micros(100),
        ..Default::default()
    });
    let e = bucket.upload_block(&tenant(), &block(1, 1)).await.unwrap_err();
    assert!(
        matches!(e, Error::Unavailable { attempts: 2.., .. }) && e.is_transient(),
        "{e}"
    );
}
