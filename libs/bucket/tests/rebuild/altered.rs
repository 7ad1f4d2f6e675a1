//! Blocks that no version lists and that are not what was encoded.

use std::sync::atomic::Ordering;
use std::time::Duration;

use koios_block::{BlockOptions, BlockParts, BlockWriter, SeriesColumns};
use koios_bucket::{LeftOut, RetryPolicy};
use koios_model::{Labels, TimeRange};
use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::common::{Fault, Faulty, bucket_over, id, tenant};
use super::{M5, Rig, left_out, numbered, samples, summaries};

const SAMPLES: &str = "samples.parquet";

fn altered(n: u64, part: &str) -> (u64, LeftOut) {
    let part = part.to_owned();
    (n, LeftOut::Altered { part })
}

fn damaged(n: u64, part: &str) -> (u64, LeftOut) {
    let part = part.to_owned();
    (n, LeftOut::Damaged { part })
}

/// A block of some samples of series, as a cut of a window.
fn cut(n: u64, series: &[u64], times: &[i64]) -> BlockParts {
    of_times(
        BlockOptions::new(id(n), tenant(), TimeRange::new(0, 7_199_999)),
        series,
        times,
    )
}

/// What a cut of the window was merged into.
fn merged_later(n: u64, series: &[u64], times: &[i64]) -> BlockParts {
    let options = BlockOptions {
        sources: vec![id(18), id(19)],
        level: 1,
        ..BlockOptions::new(id(n), tenant(), TimeRange::new(0, 86_399_999))
    };
    of_times(options, series, times)
}

fn of_times(options: BlockOptions, series: &[u64], times: &[i64]) -> BlockParts {
    let mut w = BlockWriter::new(options).unwrap();
    for i in series {
        let labels = Labels::from_pairs([("__name__", "m"), ("i", &format!("{i:06}"))]);
        w.push_series(&labels, None, times, &vec![1.0; times.len()])
            .unwrap();
    }
    w.finish().unwrap().unwrap()
}

#[tokio::test]
async fn i10_late_samples_that_are_stored_otherwise_are_listed_beside_the_first_cut_of_their_window() {
    // In between the samples of the first cut, which are more.
    let late = cut(1, &[1], &[6]);
    for part in [SAMPLES, "times.parquet", "series.parquet"] {
        let rig = Rig::new();
        rig.upload(&late).await;
        rig.alter(1, part).await;
        let first = rig.upload(&cut(2, &[1], &[5, 7, 8])).await;
        rig.list(&[&first]).await;
        let last = rig.list(&[]).await;
        rig.damage(last.version).await;
        let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
        let found = (left_out(&plan), numbered(&plan.damaged));
        assert_eq!(found, (vec![], vec![damaged(1, part)]), "{part}");
        rig.bucket.rebuild_manifest(&plan, "test").await.unwrap();
        assert_eq!(rig.names().await, [1, 2]);
    }
    // Times that cannot be read may have been any.
    let rig = Rig::new();
    rig.upload(&late).await;
    rig.alter(1, "times.parquet").await;
    rig.upload(&cut(2, &[1], &[5, 6, 7])).await;
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    assert_eq!(numbered(&plan.damaged), [damaged(1, "times.parquet")]);
}

#[tokio::test]
async fn i10_a_cut_that_is_stored_otherwise_is_left_out_only_where_its_exemplars_and_histograms_are() {
    let cut = |n: u64, exemplar_at: i64, histogram_at: i64| {
        let options = BlockOptions::new(id(n), tenant(), TimeRange::new(0, 7_199_999));
        let mut w = BlockWriter::new(options).unwrap();
        let labels = Labels::from_pairs([("__name__", "m")]);
        let histogram = std::sync::Arc::new(koios_model::Histogram::default());
        let columns = SeriesColumns {
            timestamps: &[5, 6],
            values: &[1.0, 1.0],
            histograms: &[(histogram_at, histogram)],
            starts: &[],
        };
        w.push_columns(&labels, None, columns).unwrap();
        let exemplar = koios_model::Exemplar {
            t: exemplar_at,
            v: 1.0,
            labels: Labels::from_pairs([("trace_id", "a")]),
        };
        w.push_exemplars(&labels, &[exemplar]).unwrap();
        w.finish().unwrap().unwrap()
    };
    for (second, is_there) in [(cut(2, 6, 8), true), (cut(2, 5, 8), false), (cut(2, 6, 9), false)] {
        let rig = Rig::new();
        rig.upload(&cut(1, 6, 8)).await;
        rig.alter(1, SAMPLES).await;
        rig.upload(&second).await;
        let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
        assert_eq!(plan.damaged.is_empty(), is_there);
        assert_eq!(plan.blocks.len(), if is_there { 1 } else { 2 });
    }
}

#[tokio::test]
async fn i10_a_merged_block_that_is_stored_otherwise_takes_the_place_of_nothing() {
    for every_version in [false, true] {
        let rig = Rig::new();
        let a = rig.upload(&samples(1, &[1, 2, 3], &[])).await;
        let b = rig.upload(&samples(2, &[4, 5], &[])).await;
        let first = rig.list(&[&a, &b]).await;
        // It was sent, was not what arrived, and its writer died before it said so.
        rig.upload(&samples(10, &[1, 2, 3, 4, 5], &[1, 2])).await;
        rig.alter(10, "samples.parquet").await;
        if every_version {
            rig.damage(first.version).await;
        } else {
            let c = rig.upload(&samples(3, &[6], &[])).await;
            let last = rig.list(&[&c]).await;
            rig.damage(last.version).await;
        }
        let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
        let part = "samples.parquet".to_owned();
        assert_eq!(plan.left_out, [(id(10), LeftOut::Altered { part })]);
        rig.bucket.rebuild_manifest(&plan, "test").await.unwrap();
        let expected = if every_version { &[1, 2][..] } else { &[1, 2, 3] };
        assert_eq!(rig.names().await, expected, "every version: {every_version}");
    }
}

#[tokio::test]
async fn i10_a_cut_that_is_stored_otherwise_is_left_out_beside_the_one_that_took_its_place() {
    // Others of the window have other series, or samples of another time, or fewer.
    for (second, has_all) in [
        (cut(2, &[1, 2, 3], &[5, 6, 7, 8]), true),
        (cut(2, &[1, 2], &[5, 6, 7]), true),
        (cut(2, &[1, 3], &[5, 6, 7]), false),
        (cut(2, &[1, 2], &[6, 7, 8]), false),
        (cut(2, &[1, 2], &[5, 7]), false),
        // As long, and as many, and yet others.
        (cut(2, &[1, 2], &[4, 5, 7, 8]), false),
        // Merged since, together with others.
        (merged_later(2, &[1, 2], &[4, 5, 6, 7]), true),
        (samples(2, &[1, 2], &[]), false),
    ] {
        for every_version in [false, true] {
            let rig = Rig::new();
            rig.upload(&cut(1, &[1, 2], &[5, 6, 7])).await;
            rig.alter(1, SAMPLES).await;
            let first = rig.list(&[&rig.upload(&second).await]).await;
            let last = rig.list(&[]).await;
            rig.damage(last.version).await;
            if every_version {
                rig.damage(first.version).await;
            }
            let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
            let (left, kept) = match has_all {
                true => (vec![altered(1, SAMPLES)], vec![]),
                false => (vec![], vec![damaged(1, SAMPLES)]),
            };
            assert_eq!(
                (left_out(&plan), numbered(&plan.damaged)),
                (left, kept),
                "{every_version}"
            );
            let rebuilt = rig.bucket.rebuild_manifest(&plan, "test").await.unwrap();
            let names = if has_all { &[2][..] } else { &[1, 2] };
            assert_eq!(rig.names().await, names);
            assert!(!rebuilt.is_dead(id(1)), "its bytes stay");
        }
    }
}

#[tokio::test]
async fn i10_a_rewrite_that_is_stored_otherwise_is_left_out_beside_what_it_was_written_from() {
    let of = |n: u64, series: &[u64], rewrites: Option<u64>| {
        let options = BlockOptions {
            sources: vec![id(1), id(2)],
            rewrites: rewrites.map(id),
            level: 1,
            ..BlockOptions::new(id(n), tenant(), TimeRange::new(0, 86_399_999))
        };
        let mut w = BlockWriter::new(options).unwrap();
        for i in series {
            let labels = Labels::from_pairs([("__name__", "m"), ("i", &format!("{i:06}"))]);
            w.push_series(&labels, None, &[1000], &[1.0]).unwrap();
        }
        w.finish().unwrap().unwrap()
    };
    // Of versions that name what they write again, and of those before.
    for (rewrites, part) in [(Some(10), SAMPLES), (Some(10), "series.parquet"), (None, SAMPLES)] {
        let rig = Rig::new();
        rig.upload(&of(10, &[1, 2, 3], None)).await;
        rig.upload(&of(11, &[1, 3], rewrites)).await;
        rig.alter(11, part).await;
        let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
        assert_eq!(
            (left_out(&plan), plan.damaged.len()),
            (vec![altered(11, part)], 0)
        );
    }
    // A merge that wrote two blocks: neither has what the other held.
    let rig = Rig::new();
    rig.upload(&of(10, &[1, 2], None)).await;
    rig.upload(&of(11, &[3, 4], None)).await;
    rig.alter(11, SAMPLES).await;
    // And of one whose series cannot be read nobody can say what it held.
    rig.upload(&of(12, &[1], None)).await;
    rig.alter(12, "series.parquet").await;
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    assert_eq!(left_out(&plan), []);
    assert_eq!(
        numbered(&plan.damaged),
        [damaged(11, SAMPLES), damaged(12, "series.parquet")]
    );
    assert_eq!(plan.blocks.len(), 3);
}

#[tokio::test]
async fn i10_a_merge_that_is_stored_otherwise_takes_the_place_of_no_source_that_is_left() {
    let rig = Rig::new();
    rig.upload(&samples(1, &[1, 2], &[])).await;
    rig.upload(&samples(10, &[1, 2, 3, 4], &[1, 2])).await;
    rig.alter(10, SAMPLES).await;
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    assert_eq!(
        (left_out(&plan), numbered(&plan.damaged)),
        (vec![], vec![damaged(10, SAMPLES)])
    );
    rig.bucket.rebuild_manifest(&plan, "test").await.unwrap();
    assert_eq!(rig.names().await, [1, 10]);
}

#[tokio::test]
async fn i10_summaries_that_are_stored_otherwise_are_listed_only_where_there_are_no_others() {
    const PART: &str = "samples-5m.parquet";
    // Written again without what was deleted; a part that cannot be read may have had more.
    let newer = summaries(11, M5, &[1, 2], &[1, 2], 9);
    for (part, why) in [
        (PART, altered(11, PART)),
        ("series.parquet", (11, LeftOut::Outweighed)),
    ] {
        let rig = Rig::new();
        rig.upload(&summaries(10, M5, &[1, 2], &[1, 2], 5)).await;
        rig.upload(&newer).await;
        rig.alter(11, part).await;
        let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
        assert_eq!((left_out(&plan), plan.damaged.len()), (vec![why], 0));
        assert_eq!(plan.standing_in, [id(10)]);
        // Where there is nothing else, it is.
        rig.store
            .delete(&Path::from(format!("prefix/team-a/blocks/{}/{PART}", id(10))))
            .await
            .unwrap();
        let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
        assert_eq!(numbered(&plan.damaged), [damaged(11, part)]);
        assert_eq!(plan.standing_in, [id(11)]);
    }
    // Nor where their samples are.
    let rig = Rig::new();
    rig.upload(&samples(1, &[1, 2], &[])).await;
    rig.upload(&summaries(10, M5, &[1, 2], &[1], 5)).await;
    rig.alter(10, PART).await;
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    assert_eq!(
        (left_out(&plan), plan.damaged.len()),
        (vec![altered(10, PART)], 0)
    );
}

#[tokio::test]
async fn i10_no_series_goes_silently_with_summaries_that_are_stored_otherwise() {
    const PART: &str = "samples-5m.parquet";
    // Of a third series nothing else is left.
    let rig = Rig::new();
    rig.upload(&summaries(10, M5, &[1, 2], &[1, 2], 5)).await;
    rig.upload(&summaries(11, M5, &[1, 2, 3], &[1, 2, 3], 5)).await;
    rig.alter(11, PART).await;
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    assert_eq!(left_out(&plan), [(10, LeftOut::Summarised)]);
    assert_eq!(numbered(&plan.damaged), [damaged(11, PART)]);
    assert_eq!(plan.standing_in, [id(11)]);
    // Which series they have cannot be read, and each has some that the other lacks: what goes is named.
    for (series, part) in [(vec![1, 2, 3], "series.parquet"), (vec![3], PART)] {
        let rig = Rig::new();
        rig.upload(&summaries(10, M5, &[1, 2], &[1, 2], 5)).await;
        rig.upload(&summaries(11, M5, &series, &[1, 2, 3], 5)).await;
        rig.alter(11, part).await;
        let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
        assert_eq!(left_out(&plan), [(11, LeftOut::Outweighed)], "{part}");
        assert!(plan.left_out.iter().all(|(_, why)| why.may_lose()));
        assert_eq!(plan.standing_in, [id(10)]);
    }
}

#[tokio::test]
async fn i10_a_block_that_is_not_handed_out_is_listed_and_named_and_the_others_are_looked_at() {
    let rig = Rig::new();
    rig.upload(&cut(1, &[1], &[5, 6])).await;
    rig.upload(&cut(2, &[1], &[7, 8])).await;
    for part in [SAMPLES, "series.parquet"] {
        let store = Faulty::over(&rig.store, Fault::None);
        store.deny(&format!("{}/{part}", id(1)));
        let bucket = bucket_over(store, 1);
        let plan = bucket.plan_rebuild(&tenant()).await.unwrap();
        assert_eq!((plan.blocks.len(), left_out(&plan)), (2, vec![]), "{part}");
        let damaged = numbered(&plan.damaged);
        assert_eq!(damaged.len(), 1);
        assert_eq!(damaged[0].0, 1);
        let why = damaged[0].1.to_string();
        assert!(
            why.contains("it cannot be read") && why.contains("403 Forbidden"),
            "{why}"
        );
    }
}

#[tokio::test]
async fn i10_a_cut_that_was_clean_of_a_deletion_is_not_held_by_a_block_that_the_deletion_masks() {
    let of = |n: u64, clean_up_to: u64| {
        let options = BlockOptions {
            clean_up_to,
            ..BlockOptions::new(id(n), tenant(), TimeRange::new(0, 7_199_999))
        };
        of_times(options, &[1], &[5, 6])
    };
    for (clean_up_to, is_there) in [(6, true), (5, true), (4, false)] {
        let rig = Rig::new();
        rig.upload(&of(1, 5)).await;
        rig.alter(1, SAMPLES).await;
        rig.upload(&of(2, clean_up_to)).await;
        let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
        let (left, kept) = match is_there {
            true => (vec![altered(1, SAMPLES)], vec![]),
            false => (vec![], vec![damaged(1, SAMPLES)]),
        };
        let found = (left_out(&plan), numbered(&plan.damaged));
        assert_eq!(found, (left, kept), "clean up to {clean_up_to}");
    }
}

#[tokio::test]
async fn a_block_that_a_storage_does_not_hand_out_for_a_moment_ends_no_rebuild() {
    let rig = Rig::new();
    rig.upload(&cut(1, &[1], &[5, 6])).await;
    for (busy, is_planned) in [(2, true), (1000, false)] {
        let store = Faulty::over(&rig.store, Fault::None);
        store.busy.store(busy, Ordering::Relaxed);
        // Each request is sent once.
        let once = RetryPolicy {
            deadline: Duration::ZERO,
            ..RetryPolicy::default()
        };
        let planned = bucket_over(store, 1)
            .with_retry(once)
            .plan_rebuild(&tenant())
            .await;
        match planned {
            Ok(plan) => assert_eq!((is_planned, plan.blocks.len(), plan.damaged.len()), (true, 1, 0)),
            Err(e) => assert!(!is_planned && e.to_string().contains("run it again"), "{e}"),
        }
    }
}
