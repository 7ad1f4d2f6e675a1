#![expect(
    clippy::disallowed_methods,
    reason = "folders are moved away from under the bucket"
)]

use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use koios_model::{PartitionId, TenantId};
use koios_runtime::RealClock;
use object_store::ObjectStoreExt;

use super::*;
use crate::manifest::Writer;
use crate::{Bucket, Error, RetryPolicy};

/// For what is not to succeed.
const POLICY: RetryPolicy = RetryPolicy {
    attempt_timeout: Duration::from_secs(5),
    deadline: Duration::from_millis(150),
    backoff_min: Duration::from_millis(1),
    backoff_max: Duration::from_millis(5),
};

fn rng(seed: u64) -> RngHandle {
    RngHandle::from_seed(seed)
}

fn url(folder: &FsPath) -> String {
    format!("file://{}", folder.display())
}

fn bucket(folder: &FsPath, seed: u64) -> Bucket {
    let opened = Bucket::open(&url(folder), Arc::new(RealClock::new()), rng(seed));
    opened.unwrap()
}

fn existing(folder: &FsPath) -> Bucket {
    let opened = Bucket::open_existing(&url(folder), Arc::new(RealClock::new()), rng(9));
    opened.unwrap()
}

fn team() -> TenantId {
    TenantId::new("team-a").unwrap()
}

fn writer() -> Writer {
    Writer::partition("test", PartitionId(0), 1)
}

fn files_below(folder: &FsPath) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.unwrap().path();
        found.extend(files_below(&path));
        found.push(path);
    }
    found
}

/// Whatever is done with the bucket says that its folder is not there.
async fn assert_outage(bucket: &Bucket, path: &FsPath) {
    let (bucket, tenant) = (&bucket.with_retry(POLICY), team());
    let object = Path::from("team-a/manifest/00000000000000000001.json");
    let bytes = Bytes::from_static(b"x");
    let failures: Vec<Error> = vec![
        bucket.put(&object, &bytes).await.unwrap_err(),
        bucket.create(&object, &bytes).await.unwrap_err(),
        bucket.get(&object).await.unwrap_err(),
        bucket.size(&object).await.unwrap_err(),
        bucket.ranges(&object, &[0..1, 1..2]).await.unwrap_err(),
        bucket.delete(&object).await.unwrap_err(),
        bucket.list(&Path::from("team-a")).await.unwrap_err(),
        bucket.tenants().await.unwrap_err(),
        bucket.latest(&tenant).await.unwrap_err(),
        bucket.commit(&tenant, &writer(), |_| Ok(())).await.unwrap_err(),
    ];
    for (i, failure) in failures.iter().enumerate() {
        let told = failure.to_string();
        assert!(failure.is_outage(), "{i}: {told}");
        assert!(
            told.contains(&format!(
                "{} is not there any more, or is another one",
                path.display()
            )),
            "{i}: {told}"
        );
    }
    let store = bucket.store();
    let (from, to) = (Path::from("a"), Path::from("b"));
    for failed in [
        store.copy(&from, &to).await.unwrap_err(),
        store.rename(&from, &to).await.unwrap_err(),
        store.put_multipart(&to).await.map(|_| ()).unwrap_err(),
    ] {
        assert!(failed.to_string().contains("unmounted?"), "{failed}");
    }
}

#[tokio::test]
async fn i9_a_folder_that_is_moved_away_is_an_outage_until_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let (path, away) = (dir.path().join("bucket"), dir.path().join("away"));
    let bucket = bucket(&path, 1);
    let tenant = team();
    assert_eq!(bucket.begin(&tenant, &writer()).await.unwrap().version, 1);
    std::fs::rename(&path, &away).unwrap();
    assert_outage(&bucket, &path).await;
    assert!(!path.exists(), "nothing is written where it was");
    // An empty mount point.
    std::fs::create_dir(&path).unwrap();
    assert_outage(&bucket, &path).await;
    assert_eq!(files_below(&path), Vec::<PathBuf>::new());
    // Another bucket.
    std::fs::remove_dir(&path).unwrap();
    let _other = self::bucket(&path, 2);
    assert_outage(&bucket, &path).await;
    std::fs::remove_dir_all(&path).unwrap();
    std::fs::rename(&away, &path).unwrap();
    let next = bucket.commit(&tenant, &writer(), |_| Ok(())).await.unwrap();
    assert_eq!(next.version, 2);
}

#[tokio::test]
async fn an_upload_that_was_begun_before_the_folder_went_is_not_finished_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let (path, away) = (dir.path().join("bucket"), dir.path().join("away"));
    let bucket = bucket(&path, 1);
    let object = Path::from("team-a/uploads/x");
    let mut upload = bucket.store().put_multipart(&object).await.unwrap();
    upload.put_part(PutPayload::from_static(b"x")).await.unwrap();
    std::fs::rename(&path, &away).unwrap();
    std::fs::create_dir_all(path.join("team-a/uploads")).unwrap();
    let failed = upload.complete().await.unwrap_err();
    assert!(failed.to_string().contains("unmounted?"), "{failed}");
}

#[tokio::test]
async fn processes_that_share_a_folder_share_its_marker_also_where_it_is_from_before() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("team-a/blocks")).unwrap();
    let buckets: Vec<Bucket> = std::thread::scope(|threads| {
        let opened: Vec<_> = (0..8)
            .map(|seed| {
                let path = dir.path();
                threads.spawn(move || bucket(path, seed))
            })
            .collect();
        opened.into_iter().map(|t| t.join().unwrap()).collect()
    });
    for bucket in &buckets {
        bucket.self_test(false).await.unwrap();
        assert_eq!(bucket.tenants().await.unwrap(), [team()]);
    }
    let root = dir.path().canonicalize().unwrap();
    let cluster: Vec<_> = std::fs::read_dir(root.join("__cluster"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .filter(|name| name != "self-test")
        .collect();
    assert_eq!(cluster, ["folder"]);
    existing(dir.path()).self_test(false).await.unwrap();
}

#[tokio::test]
async fn a_marker_that_is_damaged_is_reported_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    drop(bucket(dir.path(), 1));
    let marker = dir.path().join("__cluster/folder");
    let digits = std::fs::read_to_string(&marker).unwrap();
    for damaged in [&digits[..7], "", &"x".repeat(32), &format!("{digits}\n")] {
        std::fs::write(&marker, damaged).unwrap();
        let opened = Bucket::open(&url(dir.path()), Arc::new(RealClock::new()), rng(2));
        let told = opened.unwrap_err().to_string();
        for part in ["__cluster/folder", "32 hex digits", "delete that file", "start"] {
            assert!(told.contains(part), "{damaged:?}: {told}");
        }
    }
    std::fs::remove_file(&marker).unwrap();
    bucket(dir.path(), 2).self_test(false).await.unwrap();
}

#[tokio::test]
async fn who_only_looks_leaves_no_marker_and_sees_by_device_and_inode_that_the_folder_went() {
    let dir = tempfile::tempdir().unwrap();
    let (path, away) = (dir.path().join("bucket"), dir.path().join("away"));
    std::fs::create_dir(&path).unwrap();
    let bucket = existing(&path);
    assert_eq!(bucket.tenants().await.unwrap(), []);
    assert_eq!(files_below(&path), Vec::<PathBuf>::new());
    std::fs::rename(&path, &away).unwrap();
    assert_outage(&bucket, &path).await;
    std::fs::create_dir(&path).unwrap();
    assert_outage(&bucket, &path).await;
    std::fs::remove_dir(&path).unwrap();
    std::fs::rename(&away, &path).unwrap();
    assert_eq!(bucket.tenants().await.unwrap(), []);
}

#[tokio::test]
async fn what_is_deleted_leaves_no_directory_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = bucket(dir.path(), 1);
    bucket.self_test(false).await.unwrap();
    let block = "team-a/blocks/01BKGTZQ1SYQJTR4PB43C8PD98";
    let parts = ["meta.json", "series.parquet"].map(|part| Path::from(format!("{block}/{part}")));
    for part in &parts {
        bucket.put(part, &Bytes::from_static(b"x")).await.unwrap();
    }
    let hint = Path::from("team-a/manifest/latest");
    bucket.put(&hint, &Bytes::from_static(b"x")).await.unwrap();
    bucket.delete(&parts[0]).await.unwrap();
    assert!(bucket.get(&parts[1]).await.unwrap().is_some());
    bucket.delete(&parts[1]).await.unwrap();
    bucket.delete(&parts[1]).await.unwrap();
    bucket.delete(&hint).await.unwrap();
    let root = dir.path();
    let there = |path: &str| root.join(path).exists();
    assert!(!there(block) && files_below(&root.join("__cluster/self-test")).is_empty());
    // Those that others write to stay.
    assert!(there("team-a/blocks") && there("team-a/manifest"));
    bucket.put(&parts[0], &Bytes::from_static(b"x")).await.unwrap();
}
