//! A manifest that lost versions is told from one that never had them.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{block, bucket_over, entry, id, tenant, writer};
use koios_block::{BlockOptions, BlockParts, BlockWriter};
use koios_bucket::{Bucket, Error, Manifest, TenantManifests, Writer};
use koios_model::{Labels, PartitionId, TimeRange};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

/// The block `n`, made of others under a version.
fn made_of(n: u64, sources: &[u64], clean_up_to: u64) -> BlockParts {
    let options = BlockOptions {
        sources: sources.iter().map(|n| id(*n)).collect(),
        level: 1,
        partitions: vec![PartitionId(0)],
        clean_up_to,
        ..BlockOptions::new(id(n), tenant(), TimeRange::new(0, 7_199_999))
    };
    written(options)
}

fn written(options: BlockOptions) -> BlockParts {
    let mut w = BlockWriter::new(options).unwrap();
    let labels = Labels::from_pairs([("__name__", "m")]);
    w.push_series(&labels, None, &[1], &[1.0]).unwrap();
    w.finish().unwrap().unwrap()
}

struct Rig {
    store: Arc<InMemory>,
    bucket: Bucket,
}

impl Rig {
    fn new() -> Self {
        let store = Arc::new(InMemory::new());
        Self {
            bucket: bucket_over(Arc::clone(&store) as Arc<dyn ObjectStore>, 1),
            store,
        }
    }

    async fn upload(&self, parts: &BlockParts) {
        self.bucket.upload_block(&tenant(), parts).await.unwrap();
    }

    async fn list(&self, parts: &BlockParts) -> Result<Arc<Manifest>, Error> {
        self.upload(parts).await;
        let add = |m: &mut Manifest| m.add_block(entry(&parts.meta));
        self.bucket.commit(&tenant(), &writer(3), add).await
    }

    async fn remove(&self, version: u64) {
        let path = Path::from(format!("prefix/team-a/manifest/{version:020}.json"));
        self.store.delete(&path).await.unwrap();
    }

    async fn remove_hint(&self) {
        let path = Path::from("prefix/team-a/manifest/latest");
        self.store.delete(&path).await.unwrap();
    }

    async fn unlisted(&self) -> Result<koios_bucket::Unlisted, Error> {
        let uploaded = self.bucket.uploaded_blocks(&tenant()).await.unwrap();
        let manifest = self.bucket.latest(&tenant()).await?;
        self.bucket.unlisted(&manifest, uploaded, i64::MAX).await
    }
}

fn is_lost<T: std::fmt::Debug>(result: &Result<T, Error>, found: u64, seen: u64) -> bool {
    matches!(result, Err(Error::Lost { found: f, seen: s, .. }) if (*f, *s) == (found, seen))
}

#[tokio::test]
async fn i10_versions_below_the_hint_that_are_gone_are_an_error_for_readers_and_writers() {
    let rig = Rig::new();
    for n in 1..=5 {
        rig.list(&block(n, 1)).await.unwrap();
    }
    rig.remove(5).await;
    rig.remove(4).await;
    let read = rig.bucket.latest(&tenant()).await;
    assert!(is_lost(&read, 3, 5), "{read:?}");
    let text = read.unwrap_err().to_string();
    for part in [
        "version 3",
        "manifest/latest",
        "version 5",
        "koios ctl manifest rebuild",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let committed = rig.list(&block(9, 1)).await;
    assert!(is_lost(&committed, 3, 5), "{committed:?}");
    for version in 1..=3 {
        rig.remove(version).await;
    }
    assert!(is_lost(&rig.bucket.latest(&tenant()).await, 0, 5));
    // A process that remembers goes on from what it knows, and with it all is there again.
    let rig = Rig::new();
    let manifests = TenantManifests::new(rig.bucket.clone(), Duration::ZERO);
    for n in 1..=3 {
        rig.list(&block(n, 1)).await.unwrap();
    }
    manifests.probe(&tenant()).await.unwrap();
    for version in 1..=3 {
        rig.remove(version).await;
    }
    rig.remove_hint().await;
    let claimed = manifests.claim(&tenant(), &writer(4)).await.unwrap();
    assert_eq!((claimed.version, claimed.blocks.len()), (4, 3));
    assert_eq!(rig.bucket.latest(&tenant()).await.unwrap(), claimed);
    rig.remove_hint().await;
    assert_eq!(rig.bucket.latest(&tenant()).await.unwrap(), claimed);
}

#[tokio::test]
async fn i4_a_tenant_with_blocks_of_later_versions_is_not_empty() {
    let rig = Rig::new();
    // An upload before the first version tells of none.
    rig.upload(&block(1, 1)).await;
    assert_eq!(rig.bucket.latest(&tenant()).await.unwrap().version, 0);
    rig.upload(&made_of(2, &[7, 8], 300)).await;
    let read = rig.bucket.latest(&tenant()).await;
    assert!(is_lost(&read, 0, 300), "{read:?}");
    assert!(is_lost(&rig.list(&block(3, 1)).await, 0, 300));
}

#[tokio::test]
async fn i10_blocks_of_versions_that_are_lost_are_no_orphans() {
    let rig = Rig::new();
    rig.upload(&block(1, 1)).await;
    assert!(
        is_lost(&rig.unlisted().await, 0, 1),
        "there may have been a version"
    );
    // It is older than the manifest, which cannot know.
    rig.list(&block(2, 1)).await.unwrap();
    let found = rig.unlisted().await.unwrap();
    assert_eq!((found.unknown, found.orphans.len()), (vec![id(1)], 0));
    // What is newer was never listed, nor was what never came to its end.
    let new = koios_block::BlockId::new(common::clock().now_ms() + 1, 7);
    let options = BlockOptions::new(new, tenant(), TimeRange::new(0, 7_199_999));
    let mut w = BlockWriter::new(options).unwrap();
    let labels = Labels::from_pairs([("__name__", "m")]);
    w.push_series(&labels, None, &[1], &[1.0]).unwrap();
    rig.upload(&w.finish().unwrap().unwrap()).await;
    rig.upload(&block(3, 1)).await;
    let meta = Path::from(format!("prefix/team-a/blocks/{}/meta.json", id(3)));
    rig.store.delete(&meta).await.unwrap();
    let found = rig.unlisted().await.unwrap();
    let orphans: Vec<_> = found.orphans.iter().map(|(block, _)| *block).collect();
    assert_eq!(orphans, [id(3), new]);
    // One that is clean of what no version says, or was made of what none lists, tells that versions are lost.
    let rolled_back = Rig::new();
    rolled_back.list(&block(1, 1)).await.unwrap();
    rolled_back.upload(&made_of(4, &[1], 12)).await;
    assert!(is_lost(&rolled_back.unlisted().await, 1, 12));
    // Sources of imports are no blocks here.
    rig.upload(&written(BlockOptions {
        sources: vec![id(8), id(9)],
        level: 1,
        ..BlockOptions::new(id(6), tenant(), TimeRange::new(0, 7_199_999))
    }))
    .await;
    assert!(rig.unlisted().await.is_ok());
    rig.upload(&made_of(4, &[2, 5], 1)).await;
    assert!(is_lost(&rig.unlisted().await, 1, 2));
}

/// A block that was named now.
fn new_block(n: u128) -> BlockParts {
    let new = koios_block::BlockId::new(common::clock().now_ms(), n);
    written(BlockOptions::new(new, tenant(), TimeRange::new(0, 7_199_999)))
}

#[tokio::test]
async fn i10_what_is_uploaded_after_an_empty_first_version_is_no_sign_of_a_lost_one() {
    let rig = Rig::new();
    let begun = rig
        .bucket
        .begin(&tenant(), &Writer::import("test"))
        .await
        .unwrap();
    assert_eq!((begun.version, begun.blocks.len()), (1, 0));
    let again = rig.bucket.begin(&tenant(), &writer(3)).await.unwrap();
    assert_eq!(again, begun, "there is one");
    let parts = new_block(1);
    rig.upload(&parts).await;
    let found = rig.unlisted().await.unwrap();
    let orphans: Vec<_> = found.orphans.iter().map(|(block, _)| *block).collect();
    assert_eq!((orphans, found.unknown), (vec![parts.meta.block], vec![]));
    // Should that version go, too, the block tells of it as before.
    rig.remove(1).await;
    rig.remove_hint().await;
    assert!(is_lost(&rig.unlisted().await, 0, 1));
}

#[tokio::test]
async fn i10_an_operator_says_which_blocks_that_nobody_lists_go() {
    let rig = Rig::new();
    let bury = async |blocks: &[u64], before_ms: i64| {
        let blocks: Vec<_> = blocks.iter().map(|n| id(*n)).collect();
        let (tenant, writer) = (tenant(), Writer::rebuild("test"));
        let buried = rig.bucket.bury_unlisted(&tenant, &blocks, before_ms, &writer);
        buried.await
    };
    rig.upload(&block(1, 1)).await;
    assert!(
        is_lost(&bury(&[1], i64::MAX).await, 0, 1),
        "it may be a lost one's"
    );
    let before = rig.list(&block(2, 1)).await.unwrap();
    for (blocks, before_ms, why) in [
        (&[1, 2][..], i64::MAX, "is listed"),
        (&[1, 3], i64::MAX, "has no objects"),
        (&[1], 0, "is too young"),
    ] {
        let refused = bury(blocks, before_ms).await.unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
    assert_eq!(rig.bucket.latest(&tenant()).await.unwrap(), before, "all or none");
    let buried = bury(&[1], i64::MAX).await.unwrap();
    assert!(buried.is_dead(id(1)) && buried.block(id(2)).is_some());
    assert!(!buried.dead[0].parts.is_empty(), "its bytes go");
    assert_eq!(rig.unlisted().await.unwrap(), koios_bucket::Unlisted::default());
    let refused = bury(&[1], i64::MAX).await.unwrap_err().to_string();
    assert!(refused.contains("is dead already"), "{refused}");
}
