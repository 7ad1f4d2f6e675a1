//! A manifest that cannot be read is rebuilt from what the bucket holds.

#![allow(clippy::unwrap_used, reason = "tests")]

mod altered;
#[path = "../common/mod.rs"]
mod common;
mod lacking;
mod metadata;

use std::sync::Arc;

use common::{block, bucket_over, entry, id, tenant, writer};
use koios_block::{BlockMeta, BlockOptions, BlockParts, BlockWriter};
use koios_bucket::{Bucket, Error, LeftOut, Manifest};
use koios_model::{Labels, TimeRange};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

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

    async fn upload(&self, parts: &BlockParts) -> BlockMeta {
        self.bucket.upload_block(&tenant(), parts).await.unwrap();
        parts.meta.clone()
    }

    async fn list(&self, metas: &[&BlockMeta]) -> Arc<Manifest> {
        let add = |m: &mut Manifest| metas.iter().try_for_each(|meta| m.add_block(entry(meta)));
        self.bucket.commit(&tenant(), &writer(3), add).await.unwrap()
    }

    fn version(version: u64) -> Path {
        Path::from(format!("prefix/team-a/manifest/{version:020}.json"))
    }

    async fn damage(&self, version: u64) {
        self.store
            .put(&Self::version(version), "not a manifest".into())
            .await
            .unwrap();
    }

    /// Changes a bit of a part of a block.
    async fn alter(&self, n: u64, part: &str) {
        let path = Path::from(format!("prefix/team-a/blocks/{}/{part}", id(n)));
        let stored = self.store.get(&path).await.unwrap().bytes().await.unwrap();
        let mut bytes = stored.to_vec();
        bytes[20] ^= 1;
        self.store.put(&path, bytes.into()).await.unwrap();
    }

    async fn names(&self) -> Vec<u64> {
        let manifest = self.bucket.latest(&tenant()).await.unwrap();
        let number = |n: u64| manifest.block(id(n)).map(|_| n);
        (0..20).filter_map(number).collect()
    }
}

/// A block of `series` with a sample each, merged from others.
fn merged(n: u64, series: usize, sources: &[u64]) -> BlockParts {
    let options = BlockOptions {
        sources: sources.iter().map(|n| id(*n)).collect(),
        level: 1,
        ..BlockOptions::new(id(n), tenant(), TimeRange::new(0, 7_199_999))
    };
    let mut w = BlockWriter::new(options).unwrap();
    for i in 0..series {
        let labels = Labels::from_pairs([("__name__", "m"), ("i", &format!("{n}-{i:06}"))]);
        w.push_series(&labels, None, &[i as i64], &[1.0]).unwrap();
    }
    w.finish().unwrap().unwrap()
}

#[tokio::test]
async fn i10_what_is_complete_is_listed_again_when_every_version_is_lost() {
    let rig = Rig::new();
    let (a, b) = (rig.upload(&block(1, 3)).await, rig.upload(&block(2, 2)).await);
    rig.list(&[&a, &b]).await;
    let cut = rig.upload(&block(3, 4)).await;
    rig.store
        .delete(&Path::from(format!(
            "prefix/team-a/blocks/{}/samples.parquet",
            cut.block
        )))
        .await
        .unwrap();
    let no_meta = rig.upload(&block(4, 1)).await;
    rig.store
        .delete(&Path::from(format!(
            "prefix/team-a/blocks/{}/meta.json",
            no_meta.block
        )))
        .await
        .unwrap();
    rig.damage(1).await;
    assert!(matches!(
        rig.bucket.latest(&tenant()).await,
        Err(Error::Corrupt { .. })
    ));
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    assert!(!plan.is_needless() && plan.readable.is_none());
    assert_eq!((plan.newest, plan.samples()), (1, 5));
    let left: Vec<_> = plan
        .left_out
        .iter()
        .map(|(block, why)| (*block, why.to_string()))
        .collect();
    assert_eq!(left[0].0, id(3));
    let said = cut
        .parts
        .iter()
        .find(|p| p.name == "samples.parquet")
        .unwrap()
        .bytes;
    assert_eq!(
        left[0].1,
        format!("samples.parquet is missing, meta.json says it has {said} bytes")
    );
    let shorter = LeftOut::Part {
        part: "samples.parquet".to_owned(),
        found: Some(500),
        said: 512,
    };
    assert_eq!(
        shorter.to_string(),
        "samples.parquet has 500 bytes, meta.json says 512"
    );
    assert_eq!(left[1], (id(4), "its meta.json is missing".to_owned()));
    let rebuilt = rig.bucket.rebuild_manifest(&plan, "test").await.unwrap();
    assert_eq!(rebuilt.version, 2);
    assert_eq!(rig.names().await, [1, 2]);
    // Whoever comes from below the damaged version gets past it, without the hint, too.
    rig.store
        .delete(&Path::from("prefix/team-a/manifest/latest"))
        .await
        .unwrap();
    assert_eq!(rig.names().await, [1, 2]);
    rig.list(&[&rig.upload(&block(5, 1)).await]).await;
    assert_eq!(rig.names().await, [1, 2, 5]);
    assert!(rig.bucket.plan_rebuild(&tenant()).await.unwrap().is_needless());
    assert!(matches!(
        rig.bucket.rebuild_manifest(&plan, "test").await,
        Err(Error::Refused { .. })
    ));
}

#[tokio::test]
async fn i10_what_a_readable_version_says_is_dead_stays_dead_and_what_it_lists_stays_listed() {
    let rig = Rig::new();
    let (a, b, c) = (
        rig.upload(&block(1, 3)).await,
        rig.upload(&block(2, 2)).await,
        rig.upload(&block(3, 1)).await,
    );
    rig.list(&[&a, &b, &c]).await;
    let remove = |m: &mut Manifest| {
        m.remove_block(id(1));
        m.note_import(id(99), 7, None);
        Ok(())
    };
    rig.bucket.commit(&tenant(), &writer(3), remove).await.unwrap();
    let late = rig.upload(&block(4, 1)).await;
    rig.list(&[&late]).await;
    rig.damage(3).await;
    rig.store
        .delete(&Path::from(format!(
            "prefix/team-a/blocks/{}/series.parquet",
            b.block
        )))
        .await
        .unwrap();
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    assert_eq!(plan.readable.as_ref().map(|m| m.version), Some(2));
    assert_eq!(plan.left_out, [(id(1), LeftOut::Dead(2))]);
    // Not leaving it out is what makes answers that lack its samples errors.
    assert_eq!(plan.damaged.iter().map(|(b, _)| *b).collect::<Vec<_>>(), [id(2)]);
    let rebuilt = rig.bucket.rebuild_manifest(&plan, "test").await.unwrap();
    assert_eq!((rebuilt.version, rig.names().await), (4, vec![2, 3, 4]));
    assert!(rebuilt.is_dead(id(1)) && rebuilt.imported(id(99)).is_some());
    assert_eq!(rebuilt.epochs.get("partition/0"), Some(&3));
}

#[tokio::test]
async fn i11_metadata_that_is_not_what_a_readable_version_lists_is_damage() {
    let rig = Rig::new();
    let meta = rig.upload(&block(1, 3)).await;
    rig.list(&[&meta]).await;
    rig.list(&[&rig.upload(&block(2, 1)).await]).await;
    rig.damage(2).await;
    // One bit: it still reads as metadata.
    let path = Path::from(format!("prefix/team-a/blocks/{}/meta.json", id(1)));
    let json = String::from_utf8(meta.to_json().to_vec()).unwrap();
    let flipped = json.replace("\"samples\":3", "\"samples\":2");
    assert_ne!(flipped, json);
    rig.store.put(&path, flipped.into()).await.unwrap();
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    let damaged: Vec<String> = plan
        .damaged
        .iter()
        .map(|(b, why)| format!("{b}: {why}"))
        .collect();
    assert_eq!(damaged.len(), 1, "{damaged:?}");
    assert!(
        damaged[0].contains("not the one that the manifest lists"),
        "{damaged:?}"
    );
    assert_eq!(plan.samples(), 4);
}

#[tokio::test]
async fn sources_of_a_merge_are_left_out_only_when_it_is_certainly_whole() {
    let rig = Rig::new();
    for (n, series) in [(1, 1..4), (2, 4..6), (3, 6..10), (4, 10..14)] {
        rig.upload(&samples(n, &series.collect::<Vec<_>>(), &[])).await;
    }
    rig.upload(&samples(10, &[1, 2, 3], &[1, 2])).await;
    rig.upload(&samples(11, &[4, 5], &[1, 2])).await;
    // The other half of this one never came.
    rig.upload(&samples(12, &[6, 7, 8, 9, 10], &[3, 4])).await;
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    assert_eq!(
        plan.left_out,
        [(id(1), LeftOut::Merged), (id(2), LeftOut::Merged)]
    );
    assert_eq!(plan.newest, 0);
    rig.bucket.rebuild_manifest(&plan, "test").await.unwrap();
    assert_eq!(rig.names().await, [3, 4, 10, 11, 12]);
}

#[tokio::test]
async fn i10_two_merges_that_ended_half_way_make_no_whole_one() {
    let rig = Rig::new();
    rig.upload(&samples(1, &[1, 2, 3, 4, 5], &[])).await;
    rig.upload(&samples(2, &[6, 7, 8, 9, 10], &[])).await;
    // Each of them was cut short after the first of its blocks; together they have more samples than their sources.
    rig.upload(&samples(10, &[1, 2, 3, 4, 5, 6], &[1, 2])).await;
    rig.upload(&samples(11, &[1, 2, 3, 4, 5, 6], &[1, 2])).await;
    // Nor does one stand for a source beside another that is gone.
    rig.upload(&samples(4, &[21, 22, 23], &[])).await;
    rig.upload(&samples(12, &[20, 21, 22], &[3, 4])).await;
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    assert_eq!(left_out(&plan), []);
    let rebuilt = rig.bucket.rebuild_manifest(&plan, "test").await.unwrap();
    assert_eq!(rig.names().await, [1, 2, 4, 10, 11, 12]);
    assert!(rebuilt.dead.is_empty());
}

#[tokio::test]
async fn i4_a_rebuilt_version_does_not_answer_for_those_that_it_does_not_know() {
    let rig = Rig::new();
    let first = rig.list(&[&rig.upload(&block(1, 3)).await]).await;
    assert_eq!(first.masks_since(), Some(0));
    // A reader pinned this version, which hides something by what only it says, and then it was damaged.
    let pinned = rig.list(&[&rig.upload(&block(2, 1)).await]).await;
    rig.damage(pinned.version).await;
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    let rebuilt = rig.bucket.rebuild_manifest(&plan, "test").await.unwrap();
    assert_eq!((rebuilt.retention.as_ref(), rebuilt.version), (None, 3));
    assert_eq!(rebuilt.masks_since(), Some(3));
    // Nor do those after it.
    let next = rig.list(&[&rig.upload(&block(3, 1)).await]).await;
    assert_eq!((next.version, next.masks_since()), (4, Some(3)));
}

/// A block of summaries of an hour of some series, one each.
fn summaries(n: u64, resolution_ms: i64, series: &[u64], sources: &[u64], clean_up_to: u64) -> BlockParts {
    let options = BlockOptions {
        sources: sources.iter().map(|n| id(*n)).collect(),
        level: 2,
        resolution_ms,
        clean_up_to,
        ..BlockOptions::new(id(n), tenant(), TimeRange::new(0, 86_399_999))
    };
    let mut w = BlockWriter::new(options).unwrap();
    for i in series {
        let samples = [koios_model::Sample { t: 1000, v: 1.0 }];
        let kept = koios_model::summary::downsample(&samples, &[], resolution_ms);
        let labels = Labels::from_pairs([("__name__", "m"), ("i", &format!("{i:06}"))]);
        w.push_downsampled(&labels, None, &kept).unwrap();
    }
    w.finish().unwrap().unwrap()
}

/// A merged block of the same series at the same times.
fn samples(n: u64, series: &[u64], sources: &[u64]) -> BlockParts {
    let options = BlockOptions {
        sources: sources.iter().map(|n| id(*n)).collect(),
        level: 1,
        ..BlockOptions::new(id(n), tenant(), TimeRange::new(0, 86_399_999))
    };
    let mut w = BlockWriter::new(options).unwrap();
    for i in series {
        let labels = Labels::from_pairs([("__name__", "m"), ("i", &format!("{i:06}"))]);
        w.push_series(&labels, None, &[1000], &[1.0]).unwrap();
    }
    w.finish().unwrap().unwrap()
}

fn left_out(plan: &koios_bucket::Rebuild) -> Vec<(u64, LeftOut)> {
    numbered(&plan.left_out)
}

fn numbered(blocks: &[(koios_block::BlockId, LeftOut)]) -> Vec<(u64, LeftOut)> {
    let number = |block: &koios_block::BlockId| (0..100).find(|n| id(*n) == *block).unwrap();
    let numbered = blocks.iter().map(|(block, why)| (number(block), why.clone()));
    numbered.collect()
}

const M5: i64 = koios_block::RESOLUTION_5M_MS;
const H1: i64 = koios_block::RESOLUTION_1H_MS;

#[tokio::test]
async fn i10_summaries_whose_samples_are_gone_stand_in_for_them_once() {
    let rig = Rig::new();
    // Made twice of the same blocks, one of them written again without what was deleted: each series is listed once.
    rig.upload(&summaries(10, M5, &[1, 2], &[1, 2], 5)).await;
    rig.upload(&summaries(11, M5, &[3], &[1, 2], 5)).await;
    rig.upload(&summaries(12, M5, &[3], &[1, 2], 9)).await;
    // Made of fewer blocks, before those that came late.
    rig.upload(&summaries(13, M5, &[1, 2], &[1], 4)).await;
    // Of two parts of an hour's one is missing.
    rig.upload(&summaries(14, H1, &[1, 2], &[1, 2], 5)).await;
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    assert_eq!(
        left_out(&plan),
        [
            (11, LeftOut::Summarised),
            (13, LeftOut::Summarised),
            (14, LeftOut::Partial)
        ]
    );
    assert_eq!(plan.standing_in, [id(10), id(12)]);
    let rebuilt = rig.bucket.rebuild_manifest(&plan, "test").await.unwrap();
    assert_eq!(rig.names().await, [10, 12]);
    assert!(rebuilt.blocks.iter().all(|b| b.sources.is_empty()));
}

#[tokio::test]
async fn summaries_whose_samples_are_listed_are_left_out() {
    let rig = Rig::new();
    rig.upload(&samples(1, &[1, 2], &[])).await;
    rig.upload(&summaries(10, M5, &[1, 2], &[1], 5)).await;
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    assert_eq!(left_out(&plan), [(10, LeftOut::Remade)]);
    // Under the names of blocks that these were merged into, too.
    rig.upload(&samples(3, &[1, 2, 3], &[1, 2])).await;
    rig.upload(&summaries(11, M5, &[1, 2], &[7], 5)).await;
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    assert!(
        left_out(&plan).contains(&(11, LeftOut::Remade))
            || left_out(&plan).contains(&(11, LeftOut::Summarised))
    );
    assert!(plan.standing_in.is_empty(), "{plan:?}");
}

#[tokio::test]
async fn i10_summaries_stay_beside_samples_that_came_late() {
    let rig = Rig::new();
    rig.upload(&summaries(10, M5, &[1, 2], &[1], 5)).await;
    rig.upload(&samples(3, &[2], &[])).await;
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    assert_eq!(
        (left_out(&plan), plan.standing_in.clone()),
        (vec![], vec![id(10)])
    );
    rig.bucket.rebuild_manifest(&plan, "test").await.unwrap();
    assert_eq!(rig.names().await, [3, 10]);
}

#[tokio::test]
async fn i10_a_rebuilt_version_is_above_all_that_were_lost() {
    let rig = Rig::new();
    rig.upload(&block(1, 3)).await;
    rig.upload(&summaries(10, M5, &[1], &[7], 300)).await;
    let mut plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    assert_eq!((plan.newest, plan.evident, plan.next), (0, 300, 1300));
    assert!(plan.has_lost_versions());
    plan.at_least(1302).unwrap();
    assert!(plan.at_least(u64::MAX).is_err());
    let rebuilt = rig.bucket.rebuild_manifest(&plan, "test").await.unwrap();
    assert_eq!((rebuilt.version, rebuilt.rebuilt), (2302, 2302));
    // A deletion that is asked for now masks what was clean of earlier ones.
    let next = rig.list(&[]).await;
    assert_eq!(next.version, 2303);
    // It is found without the hint, and from any version that was lost.
    rig.store
        .delete(&Path::from("prefix/team-a/manifest/latest"))
        .await
        .unwrap();
    assert_eq!(rig.bucket.latest(&tenant()).await.unwrap(), next);
    let mut slept = Manifest::empty(tenant());
    slept.version = 300;
    let writer = writer(3);
    let committed = rig.bucket.commit_from(Arc::new(slept), &writer, |_| Ok(()));
    assert_eq!(committed.await.unwrap().version, 2304);
}

#[tokio::test]
async fn i10_what_members_say_was_announced_tells_of_lost_versions() {
    let rig = Rig::new();
    for n in 1..=4 {
        let meta = rig.upload(&block(n, 1)).await;
        rig.list(&[&meta]).await;
    }
    // With the newest version went the hint that told of it.
    rig.store.delete(&Rig::version(4)).await.unwrap();
    let hint = Path::from("prefix/team-a/manifest/latest");
    rig.store.put(&hint, "3".into()).await.unwrap();
    let planned = async |version: u64| {
        let mut plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
        plan.at_least(version).unwrap();
        plan
    };
    let plan = planned(3).await;
    assert!(plan.is_needless(), "{plan:?}");
    assert_eq!(plan.deletions_lost_after(), None);
    assert!(!plan.has_lost_versions());
    // Who announced them may not have heard of the last ones.
    assert_eq!(planned(5000).await.next, 6000);
    let plan = planned(4).await;
    assert!(!plan.is_needless() && plan.has_lost_versions(), "{plan:?}");
    assert_eq!((plan.deletions_lost_after(), plan.next), (Some(3), 1004));
    let rebuilt = rig.bucket.rebuild_manifest(&plan, "test").await.unwrap();
    assert_eq!(rebuilt.version, 1004);
    assert!(planned(4).await.is_needless());
}

#[tokio::test]
async fn history_is_dropped_past_the_versions_that_a_rebuild_left_out() {
    let rig = Rig::new();
    for n in 1..=4 {
        let meta = rig.upload(&block(n, 1)).await;
        rig.list(&[&meta]).await;
    }
    rig.store.delete(&Rig::version(4)).await.unwrap();
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    // Whether the object of a version is damaged or gone: what it said was deleted is there again.
    assert_eq!(
        (plan.newest, plan.evident, plan.deletions_lost_after()),
        (3, 4, Some(3))
    );
    let rebuilt = rig.bucket.rebuild_manifest(&plan, "test").await.unwrap().version;
    assert_eq!(rebuilt, 1004);
    let rig = &rig;
    let drop = |keep_from| async move { rig.bucket.drop_history(&tenant(), keep_from).await };
    // What is between is no version: there is nothing to go by.
    for between in [4, 900, 1003] {
        assert_eq!(drop(between).await.unwrap(), 0, "{between}");
    }
    assert!(matches!(drop(1005).await, Err(Error::Refused { .. })));
    let versions = || async {
        let mut there = Vec::new();
        for version in (1..=4).chain(1000..=1010) {
            if rig.bucket.manifest(&tenant(), version).await.unwrap().is_some() {
                there.push(version);
            }
        }
        there
    };
    assert_eq!(versions().await, [1, 2, 3, 1004]);
    for n in 5..=7 {
        let meta = rig.upload(&block(n, 1)).await;
        rig.list(&[&meta]).await;
    }
    // First what was before, then on as ever.
    assert_eq!(drop(1006).await.unwrap(), 3);
    assert_eq!(versions().await, [1004, 1005, 1006, 1007]);
    assert_eq!(drop(1006).await.unwrap(), 2);
    assert_eq!(versions().await, [1006, 1007]);
    assert_eq!(drop(1006).await.unwrap(), 0);
    assert_eq!(rig.names().await, [1, 2, 3, 4, 5, 6, 7]);
}

#[tokio::test]
async fn history_from_before_a_rebuild_is_dropped_by_as_many_passes_as_it_takes() {
    let rig = Rig::new();
    for _ in 1..=300 {
        rig.list(&[]).await;
    }
    rig.store.delete(&Rig::version(300)).await.unwrap();
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    let rebuilt = rig.bucket.rebuild_manifest(&plan, "test").await.unwrap().version;
    assert_eq!(rebuilt, 1300);
    for _ in 0..4 {
        rig.list(&[]).await;
    }
    let drop = async |keep_from| rig.bucket.drop_history(&tenant(), keep_from).await.unwrap();
    // A word on it would look like that of the rebuild.
    assert_eq!(drop(1300).await, 0);
    assert_eq!((drop(1301).await, drop(1302).await), (256, 43));
    assert_eq!((drop(1302).await, drop(1304).await, drop(1304).await), (2, 2, 0));
    for version in 1..1304 {
        let there = rig.bucket.manifest(&tenant(), version).await;
        assert!(matches!(there, Ok(None)), "{version}: {there:?}");
    }
    // It is found from below, too.
    rig.store
        .delete(&Path::from("prefix/team-a/manifest/latest"))
        .await
        .unwrap();
    assert_eq!(rig.bucket.latest(&tenant()).await.unwrap().version, 1304);
}

#[tokio::test]
async fn i14_a_rebuild_refuses_while_others_commit_or_where_there_is_nothing() {
    let rig = Rig::new();
    let refused = async |plan: koios_bucket::Rebuild| {
        let done: Result<_, Error> = rig.bucket.rebuild_manifest(&plan, "test").await;
        done.unwrap_err().to_string()
    };
    let nothing = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    assert!(refused(nothing).await.contains("nothing of this tenant"));
    rig.list(&[&rig.upload(&block(1, 3)).await]).await;
    rig.list(&[]).await;
    rig.damage(2).await;
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    // Somebody who remembers version 2 goes on from there.
    rig.store.put(&Rig::version(3), "anything".into()).await.unwrap();
    assert!(
        refused(plan)
            .await
            .contains("written meanwhile: end all processes")
    );
    rig.store.delete(&Rig::version(3)).await.unwrap();
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    let hint = Path::from("prefix/team-a/manifest/latest");
    rig.store.put(&hint, "7".into()).await.unwrap();
    assert!(refused(plan).await.contains("latest was written meanwhile"));
}

#[tokio::test]
async fn i10_what_was_merged_after_a_version_that_was_brought_back_is_not_damage() {
    let rig = Rig::new();
    let cut: Vec<BlockMeta> = vec![rig.upload(&block(1, 3)).await, rig.upload(&block(2, 2)).await];
    rig.list(&[&cut[0], &cut[1]]).await;
    let whole = rig.upload(&merged(10, 5, &[1, 2])).await;
    let replace = |m: &mut Manifest| {
        m.remove_block(id(1));
        m.remove_block(id(2));
        m.add_block(entry(&whole))
    };
    rig.bucket.commit(&tenant(), &writer(3), replace).await.unwrap();
    for (block, parts) in rig.bucket.uploaded_blocks(&tenant()).await.unwrap() {
        if block != id(10) {
            rig.bucket.delete_parts(&tenant(), block, &parts).await.unwrap();
        }
    }
    rig.store.delete(&Rig::version(2)).await.unwrap();
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    assert!(!plan.is_needless() && plan.damaged.is_empty(), "{plan:?}");
    let rebuilt = rig.bucket.rebuild_manifest(&plan, "test").await.unwrap();
    assert_eq!((rebuilt.version, rig.names().await), (1002, vec![10]));
}

#[tokio::test]
async fn i10_of_what_a_rebuild_leaves_out_that_goes_of_which_all_is_certainly_listed() {
    let rig = Rig::new();
    rig.upload(&samples(1, &[1, 2, 3], &[])).await;
    // Of a block that is listed, and of blocks of which nobody can say that their samples are.
    rig.upload(&summaries(10, M5, &[1, 2], &[1], 5)).await;
    rig.upload(&summaries(11, H1, &[1, 2], &[7], 5)).await;
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    assert_eq!(left_out(&plan), [(10, LeftOut::Remade), (11, LeftOut::Remade)]);
    let rebuilt = rig.bucket.rebuild_manifest(&plan, "test").await.unwrap();
    assert!(rebuilt.is_dead(id(10)) && !rebuilt.is_dead(id(11)));
    assert!(rebuilt.dead.iter().all(|d| !d.parts.is_empty()), "their bytes go");
    let uploaded = rig.bucket.uploaded_blocks(&tenant()).await.unwrap();
    let found = rig.bucket.unlisted(&rebuilt, uploaded, i64::MAX).await.unwrap();
    assert_eq!((found.unknown, found.orphans), (vec![id(11)], vec![]));
}

#[tokio::test]
async fn i10_summaries_of_blocks_that_are_damaged_stay() {
    let rig = Rig::new();
    rig.list(&[&rig.upload(&samples(1, &[1, 2], &[])).await]).await;
    rig.upload(&summaries(10, M5, &[1, 2], &[1], 5)).await;
    rig.list(&[]).await;
    rig.damage(2).await;
    let part = format!("prefix/team-a/blocks/{}/samples.parquet", id(1));
    rig.store.delete(&Path::from(part)).await.unwrap();
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    assert_eq!(left_out(&plan), [(10, LeftOut::Remade)]);
    let rebuilt = rig.bucket.rebuild_manifest(&plan, "test").await.unwrap();
    assert!(!rebuilt.is_dead(id(10)));
}
