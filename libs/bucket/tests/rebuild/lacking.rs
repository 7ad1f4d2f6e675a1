//! Blocks that no version lists, of which something is not there or not handed out.

use koios_block::{BlockId, BlockOptions, BlockWriter};
use koios_bucket::{Bucket, LeftOut, Manifest, Nonce, Rebuild, Tombstone, Writer};
use koios_model::{Labels, Matchers, TimeRange};
use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::common::{Fault, Faulty, block, bucket_over, clock, id, tenant};
use super::{M5, Rig, left_out, numbered, samples, summaries};

const SAMPLES: &str = "samples.parquet";

impl Rig {
    /// The bucket as it is while an object of a block is refused.
    fn refusing(&self, n: u64, part: &str) -> Bucket {
        let store = Faulty::over(&self.store, Fault::None);
        store.deny(&format!("{}/{part}", id(n)));
        bucket_over(store, 1)
    }

    async fn remove(&self, n: u64, part: &str) {
        let path = Path::from(format!("prefix/team-a/blocks/{}/{part}", id(n)));
        self.store.delete(&path).await.unwrap();
    }
}

/// The blocks that are left out with samples that answers may lack.
fn lost(plan: &Rebuild) -> Vec<u64> {
    let lost = plan.left_out.iter().filter(|(_, why)| why.may_lose());
    let lost: Vec<_> = lost.cloned().collect();
    numbered(&lost).into_iter().map(|(n, _)| n).collect()
}

#[tokio::test]
async fn i4_a_block_whose_metadata_is_not_handed_out_is_named_as_lost_where_no_version_lists_it() {
    let rig = Rig::new();
    rig.upload(&block(1, 3)).await;
    rig.upload(&block(2, 2)).await;
    let bucket = rig.refusing(1, "meta.json");
    let plan = bucket.plan_rebuild(&tenant()).await.unwrap();
    assert_eq!((plan.blocks.len(), lost(&plan)), (1, vec![1]), "{plan:?}");
    let why = plan.left_out[0].1.to_string();
    for part in ["403 Forbidden", "do not say so", "look again"] {
        assert!(why.contains(part), "{why}");
    }
    let rebuilt = bucket.rebuild_manifest(&plan, "test").await.unwrap();
    assert!(!rebuilt.is_dead(id(1)), "its bytes stay");
    // Once it is handed out it is listed.
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    assert_eq!((plan.samples(), lost(&plan)), (5, vec![]));
}

#[tokio::test]
async fn one_block_that_is_not_handed_out_keeps_nobody_from_looking_after_the_others() {
    let rig = Rig::new();
    for n in [1, 3] {
        rig.upload(&block(n, 1)).await;
    }
    let manifest = rig.list(&[&rig.upload(&block(2, 1)).await]).await;
    let bucket = rig.refusing(1, "meta.json");
    let uploaded = bucket.uploaded_blocks(&tenant()).await.unwrap();
    let found = bucket.unlisted(&manifest, uploaded, i64::MAX).await.unwrap();
    // Nobody can say whether it was listed.
    assert_eq!((found.unknown, found.orphans), (vec![id(1), id(3)], vec![]));
    let writer = Writer::rebuild("test");
    let buried = bucket.bury_unlisted(&tenant(), &[id(3)], i64::MAX, &writer).await;
    assert!(buried.unwrap().is_dead(id(3)));
}

/// It may be what tells that versions are lost which listed the others.
#[tokio::test]
async fn i10_nothing_whole_goes_while_a_block_is_not_handed_out() {
    let rig = Rig::new();
    rig.list(&[&rig.upload(&block(2, 1)).await]).await;
    let new = BlockId::new(clock().now_ms() + 1, 7);
    let mut w = BlockWriter::new(BlockOptions::new(new, tenant(), TimeRange::new(0, 7_199_999))).unwrap();
    w.push_series(&Labels::from_pairs([("__name__", "m")]), None, &[1], &[1.0])
        .unwrap();
    rig.upload(&w.finish().unwrap().unwrap()).await;
    for (refused, orphans, unknown) in [(2, vec![new], vec![]), (1, vec![], vec![id(1), new])] {
        if refused == 1 {
            rig.upload(&block(1, 1)).await;
        }
        let bucket = rig.refusing(refused, "meta.json");
        let manifest = bucket.latest(&tenant()).await.unwrap();
        let uploaded = bucket.uploaded_blocks(&tenant()).await.unwrap();
        let found = bucket.unlisted(&manifest, uploaded, i64::MAX).await.unwrap();
        let found_orphans: Vec<_> = found.orphans.into_iter().map(|(block, _)| block).collect();
        assert_eq!((found_orphans, found.unknown), (orphans, unknown), "{refused}");
    }
}

#[tokio::test]
async fn i4_a_listed_block_whose_metadata_is_not_handed_out_stays_listed() {
    let rig = Rig::new();
    rig.list(&[&rig.upload(&block(1, 3)).await]).await;
    rig.list(&[]).await;
    rig.damage(2).await;
    let plan = rig
        .refusing(1, "meta.json")
        .plan_rebuild(&tenant())
        .await
        .unwrap();
    assert_eq!((plan.blocks.len(), left_out(&plan)), (1, vec![]));
    assert!(matches!(plan.damaged[..], [(_, LeftOut::Unread(_))]), "{plan:?}");
}

#[tokio::test]
async fn i4_a_tenant_is_not_begun_anew_while_the_blocks_that_may_tell_of_it_are_refused() {
    let rig = Rig::new();
    rig.upload(&summaries(1, M5, &[1], &[7], 300)).await;
    let refused = rig.refusing(1, "meta.json").latest(&tenant()).await.unwrap_err();
    assert!(refused.to_string().contains("was refused: 403"), "{refused}");
}

#[tokio::test]
async fn i4_a_block_whose_metadata_is_damaged_is_named_as_lost_and_one_without_is_not() {
    let rig = Rig::new();
    for n in 1..=3 {
        rig.upload(&block(n, 1)).await;
    }
    // It is sent last: an upload that came to no end looks like that.
    rig.remove(1, "meta.json").await;
    rig.alter(2, "meta.json").await;
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    assert_eq!((plan.blocks.len(), plan.left_out.len()), (1, 2), "{plan:?}");
    assert_eq!(lost(&plan), [2]);
}

#[tokio::test]
async fn i4_a_block_that_lost_a_part_is_named_as_lost_where_no_others_have_what_it_held() {
    let held = |n: u64| {
        let part = SAMPLES.to_owned();
        (n, LeftOut::Altered { part })
    };
    let rig = Rig::new();
    rig.upload(&samples(1, &[1, 2], &[])).await;
    rig.remove(1, SAMPLES).await;
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    assert_eq!((plan.blocks.len(), lost(&plan)), (0, vec![1]), "{plan:?}");
    // Another cut has all that it had: its times are still there.
    rig.upload(&samples(2, &[1, 2, 3], &[])).await;
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    assert_eq!((plan.blocks.len(), left_out(&plan)), (1, vec![held(1)]));
    // It was merged from blocks that are there.
    let rig = Rig::new();
    rig.upload(&samples(1, &[1], &[])).await;
    rig.upload(&samples(2, &[2], &[])).await;
    rig.upload(&samples(10, &[1, 2], &[1, 2])).await;
    rig.remove(10, SAMPLES).await;
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    assert_eq!((plan.blocks.len(), left_out(&plan)), (2, vec![held(10)]));
    // Others were merged from it, as far as can be told by its series.
    for (series, has_all) in [(&[1, 2, 3][..], true), (&[2, 3, 4], false)] {
        let rig = Rig::new();
        rig.upload(&samples(1, &[1, 2], &[])).await;
        rig.upload(&samples(10, series, &[1, 2])).await;
        rig.remove(1, SAMPLES).await;
        let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
        match has_all {
            true => assert_eq!(left_out(&plan), [(1, LeftOut::Merged)]),
            false => assert_eq!(lost(&plan), [1]),
        }
        let rebuilt = rig.bucket.rebuild_manifest(&plan, "test").await.unwrap();
        assert!(!rebuilt.is_dead(id(1)), "its bytes stay");
    }
    // Summaries, of which a set was listed that has fewer series.
    let rig = Rig::new();
    rig.upload(&summaries(10, M5, &[1, 2], &[1, 2], 5)).await;
    rig.upload(&summaries(11, M5, &[1, 2, 3], &[1, 2, 3], 5)).await;
    rig.remove(11, "samples-5m.parquet").await;
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    assert_eq!((plan.standing_in.len(), lost(&plan)), (1, vec![11]));
}

#[tokio::test]
async fn i10_a_block_that_is_brought_back_after_deletions_became_complete_is_named() {
    let rig = Rig::new();
    rig.upload(&block(1, 3)).await;
    rig.upload(&block(2, 2)).await;
    let path = Path::from(format!("prefix/team-a/blocks/{}/{SAMPLES}", id(1)));
    let aside = rig.store.get(&path).await.unwrap().bytes().await.unwrap();
    rig.remove(1, SAMPLES).await;
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    assert_eq!((lost(&plan), plan.undeleted), (vec![1], vec![]));
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    rig.bucket.rebuild_manifest(&plan, "test").await.unwrap();
    // Brought back at once it is only a block that was not listed.
    rig.store.put(&path, aside.clone().into()).await.unwrap();
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    assert_eq!((plan.blocks.len(), plan.undeleted), (2, vec![]));
    rig.remove(1, SAMPLES).await;
    // No block that is listed has anything of what is deleted, so that the deletion is forgotten.
    let (bucket, tenant, writer) = (&rig.bucket, tenant(), Writer::rebuild("test"));
    let deletion = Tombstone::new(Nonce(7), &Matchers::default(), TimeRange::new(0, 0));
    let add = |m: &mut Manifest| {
        m.add_tombstone(deletion.clone());
        Ok(())
    };
    let version = bucket.commit(&tenant, &writer, add).await.unwrap().version;
    let forget = |m: &mut Manifest| {
        m.tombstones.clear();
        Ok(())
    };
    let done = bucket.commit(&tenant, &writer, forget).await.unwrap();
    assert_eq!(done.deletions_done, version);
    let plan = bucket.plan_rebuild(&tenant).await.unwrap();
    assert_eq!((plan.blocks.len(), plan.undeleted), (1, vec![]));
    rig.store.put(&path, aside.into()).await.unwrap();
    let plan = bucket.plan_rebuild(&tenant).await.unwrap();
    assert_eq!((plan.blocks.len(), plan.undeleted), (2, vec![id(1)]));
}
