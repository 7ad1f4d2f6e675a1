//! What every storage must do, whoever provides it.

use std::sync::Arc;

use koios_block::BlockCache;
use koios_bucket::{Blocks, Bucket, Error};
use koios_model::{Matchers, TenantId, TimeRange};

use super::{block, entry, id, small_entry, tenant, writer};

/// Blocks with caches of their own.
pub(crate) fn blocks(bucket: &Bucket) -> Blocks {
    Blocks::new(
        bucket.clone(),
        Arc::new(BlockCache::new(1 << 20, 1 << 20)),
        1 << 20,
    )
}

/// What every store must do, from upload to deletion.
pub(crate) async fn life_of_a_block(bucket: &Bucket) {
    bucket.self_test(false).await.unwrap();
    let parts = block(1, 3000);
    bucket.upload_block(&tenant(), &parts).await.unwrap();
    bucket.upload_block(&tenant(), &parts).await.unwrap();
    let listed = entry(&parts.meta);
    let manifest = bucket
        .commit(&tenant(), &writer(1), |m| m.add_block(listed.clone()))
        .await
        .unwrap();
    assert_eq!(bucket.latest(&tenant()).await.unwrap(), manifest);
    let reader = blocks(bucket).open(&tenant(), &manifest.blocks[0]).await.unwrap();
    let series = reader.select(&Matchers::default(), TimeRange::ALL).await.unwrap();
    let samples = reader.read_samples(&series, TimeRange::ALL).await.unwrap();
    assert_eq!((series.len(), samples[2999].values[0]), (3000, 2999.0));
    koios_block::verify(&reader).await.unwrap();
    koios_block::verify_checksums(&bucket.range_read(&tenant(), id(1)), reader.meta())
        .await
        .unwrap();

    assert_eq!(bucket.tenants().await.unwrap(), [tenant()]);
    let found = bucket.uploaded_blocks(&tenant()).await.unwrap();
    assert_eq!((found.len(), found[0].0, found[0].1.len()), (1, id(1), 4));
    bucket.delete_parts(&tenant(), id(1), &found[0].1).await.unwrap();
    bucket.delete_parts(&tenant(), id(1), &found[0].1).await.unwrap();
    assert!(bucket.uploaded_blocks(&tenant()).await.unwrap().is_empty());
    let e = blocks(bucket)
        .open(&tenant(), &manifest.blocks[0])
        .await
        .unwrap_err();
    assert!(matches!(e, Error::NotFound { .. }), "{e}");
    let gone = bucket.range_read(&tenant(), id(1));
    let e = koios_block::verify_checksums(&gone, reader.meta())
        .await
        .unwrap_err();
    assert!(!e.is_corrupt(), "{e}");

    assert!(bucket.control_backup().await.unwrap().is_none());
    for version in [1, 2, 10, 11, 12] {
        let state = format!("state {version}");
        bucket
            .put_control_backup(version, state.as_bytes())
            .await
            .unwrap();
    }
    let (version, state) = bucket.control_backup().await.unwrap().unwrap();
    assert_eq!((version, &state[..]), (12, &b"state 12"[..]));
}

/// Writers, each with a bucket of its own, commit at once: each wins one version.
pub(crate) async fn race(open: impl Fn(u64) -> Bucket) {
    let other = TenantId::new("racing").unwrap();
    let tasks = (0..6u64).map(|n| {
        let (bucket, other) = (open(n + 10), other.clone());
        tokio::task::JoinSet::from_iter([async move {
            let entry = small_entry(n);
            let done = bucket
                .commit(&other, &writer(1), |m| m.add_block(entry.clone()))
                .await;
            done.unwrap().version
        }])
        .join_all()
    });
    let mut versions: Vec<u64> = futures::future::join_all(tasks).await.concat();
    versions.sort_unstable();
    assert_eq!(versions, [1, 2, 3, 4, 5, 6]);
    assert_eq!(open(99).latest(&other).await.unwrap().blocks.len(), 6);
}
