//! Claims about reads over the cluster, against members with faults.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use koios_model::{Expiry, Labels, MatchOp, Matcher, Matchers, SeriesClasses, TenantId, TimeRange};
use koios_promql::{Columns, Completeness, QueryError, Queryable, SelectHints, SelectRequest, StreamItem};
use koios_wire::ServiceErrorCode;

use super::merge::Wanted;
use super::mock::{Data, Mode, World, data, labels, plan};
use super::{Budget, ClusterQueryable, Selection};

pub(super) fn matchers() -> Matchers {
    Matchers(vec![Matcher::equal("__name__", "m")])
}

async fn read_with(
    world: &World,
    range: TimeRange,
    hints: SelectHints,
    bytes_max: usize,
) -> Result<Data, QueryError> {
    let (found, completeness) = read_within(world, range, hints, Budget::new(bytes_max, 1000)).await?;
    assert!(completeness.is_complete(), "{completeness:?}");
    Ok(found)
}

/// As it is, complete or not.
pub(super) async fn read_within(
    world: &World,
    range: TimeRange,
    hints: SelectHints,
    budget: Arc<Budget>,
) -> Result<(Data, Completeness), QueryError> {
    let queryable = ClusterQueryable::new(
        Arc::clone(&world.cluster),
        TenantId::anonymous(),
        Arc::clone(&budget),
    );
    let request = SelectRequest {
        matchers: matchers(),
        range,
        hints,
    };
    let mut stream = queryable.select(request).await?;
    let (mut found, mut last, mut columns) = (Data::new(), None::<Labels>, Columns::default());
    let completeness = loop {
        match stream.next().await.expect("a stream ends with an end")? {
            StreamItem::End(completeness) => break completeness,
            StreamItem::Warning(text) => panic!("unexpected warning {text}"),
            StreamItem::Series(batch) => {
                for series in batch {
                    assert!(
                        last.as_ref().is_none_or(|l| *l < series.labels),
                        "label order, each once"
                    );
                    columns.clear();
                    series.data.decode(range, &mut columns)?;
                    let samples: BTreeMap<_, _> = columns
                        .timestamps()
                        .iter()
                        .copied()
                        .zip(columns.values().iter().copied())
                        .collect();
                    assert_eq!(samples.len(), columns.len(), "each time once");
                    last = Some(series.labels.clone());
                    found.insert(series.labels, samples);
                }
            }
        }
    };
    drop(stream);
    assert_eq!(budget.held(), 0, "all memory is given back");
    Ok((found, completeness))
}

/// What heads answer alone, because no manifest is known.
pub(super) async fn read_of_heads(world: &World, min: i64, max: i64) -> Result<Data, QueryError> {
    let (range, budget) = (TimeRange::new(min, max), Budget::new(1 << 20, 1000));
    let (found, completeness) = read_within(world, range, SelectHints::default(), budget).await?;
    let warning = completeness
        .warning()
        .expect("it says that blocks are missing (I4)");
    assert!(
        warning.starts_with("result is incomplete, missing: blocks of tenant anonymous, if it has any"),
        "{warning}"
    );
    Ok(found)
}

pub(super) async fn read(world: &World, min: i64, max: i64) -> Result<Data, QueryError> {
    read_with(world, TimeRange::new(min, max), SelectHints::default(), 1 << 20).await
}

pub(super) fn ten_series() -> Data {
    data((0..10).map(|i| (labels("m", i), (0..20).map(|t| (t, f64::from(i))).collect())))
}

#[tokio::test]
async fn i2_replicas_heads_and_blocks_give_each_sample_once() {
    // Given replicas that hold different parts, and blocks that overlap each other and the heads.
    let world = World::new();
    let l = labels("m", 1);
    for (i, m) in world.members.iter().enumerate() {
        let skip = i as i64;
        m.hold(data([(
            l.clone(),
            (50..100)
                .filter(|t| t % 3 != skip)
                .map(|t| (t, t as f64))
                .collect(),
        )]));
        m.forget_below(60, 2);
    }
    world.upload("A", data([(l.clone(), (0..62).map(|t| (t, t as f64)).collect())]));
    world.upload(
        "B",
        data([(l.clone(), (40..75).map(|t| (t, t as f64)).collect())]),
    );
    // When all is read, then each sample comes once, with its value.
    let found = read(&world, 0, 1000).await.unwrap();
    assert_eq!(found, data([(l, (0..100).map(|t| (t, t as f64)).collect())]));
}

#[tokio::test]
async fn i5_a_sample_on_a_majority_is_read_whichever_member_is_lost() {
    for (missing_at, lost) in [(0, 1), (1, 2), (2, 0), (0, 2), (1, 0), (2, 1)] {
        let world = World::new();
        let acked = data([(labels("m", 1), vec![(5, 1.0)])]);
        for (i, m) in world.members.iter().enumerate().filter(|(i, _)| *i != missing_at) {
            m.hold(acked.clone());
            if i == lost {
                m.set(Mode::Fails(ServiceErrorCode::Unavailable));
            }
        }
        assert_eq!(
            read(&world, 0, 10).await.unwrap(),
            acked,
            "missing at {missing_at}, lost {lost}"
        );
    }
}

#[tokio::test]
async fn i7_one_faulty_member_changes_nothing() {
    let faults = [
        Mode::Fails(ServiceErrorCode::Unavailable),
        Mode::Fails(ServiceErrorCode::NotCounting),
        Mode::Fails(ServiceErrorCode::Internal),
        Mode::Hangs,
        Mode::BreaksAfter(4, None),
        Mode::BreaksAfter(0, Some(ServiceErrorCode::Unavailable)),
        Mode::BreaksAfter(7, Some(ServiceErrorCode::Corruption)),
        Mode::HangsAfter(3),
    ];
    for fault in faults {
        for victim in 0..3 {
            let world = World::new();
            world.hold(&ten_series());
            world.members[victim].set(fault.clone());
            assert_eq!(
                read(&world, 0, 100).await.unwrap(),
                ten_series(),
                "{fault:?} at {victim}"
            );
        }
    }
}

#[tokio::test]
async fn i4_fewer_members_than_needed_is_an_error_that_names_them() {
    let faults = [
        (
            Mode::Fails(ServiceErrorCode::Unavailable),
            "injected (unavailable)",
        ),
        (
            Mode::Fails(ServiceErrorCode::NotCounting),
            "injected (not_counting)",
        ),
        (Mode::Hangs, "no answer"),
        (Mode::BreaksAfter(9, None), "the stream broke off before its end"),
        (Mode::HangsAfter(10), "no answer"),
    ];
    for (fault, why) in faults {
        let world = World::new();
        world.hold(&ten_series());
        world.members[0].set(fault.clone());
        world.members[2].set(fault.clone());
        let e = read(&world, 0, 100).await.unwrap_err();
        let text = e.to_string();
        assert_eq!(e.kind().http_status(), 503, "{text}");
        assert!(
            text.starts_with("partition 0: 1 of 2 needed members answered: ingester-0: "),
            "{text}"
        );
        assert!(text.contains("; ingester-2: ") && text.contains(why), "{text}");
    }
}

#[tokio::test]
async fn i4_a_member_that_does_not_count_is_not_read() {
    let world = World::new();
    world.hold(&ten_series());
    {
        let mut plan = world.topology.plan.lock();
        plan.partitions[0].replicas[0].counts = false;
        plan.partitions[0].replicas[1].client = None;
    }
    let text = read(&world, 0, 100).await.unwrap_err().to_string();
    assert!(
        text.contains("ingester-0: it may lack acknowledged samples"),
        "{text}"
    );
    assert!(text.contains("ingester-1: its address is not known"), "{text}");
}

#[tokio::test]
async fn i4_no_partition_known_is_an_error() {
    let world = World::new();
    world.topology.plan.lock().partitions.clear();
    assert_eq!(read(&world, 0, 1).await.unwrap_err().kind().http_status(), 503);
}

#[tokio::test]
async fn i14_a_stale_plan_is_made_anew_and_a_slow_member_waited_for() {
    let world = World::new();
    world.hold(&ten_series());
    world
        .members
        .iter()
        .for_each(|m| m.epoch.store(1, Ordering::Relaxed));
    *world.topology.newer.lock() = Some(plan(&world.members, 1));
    assert_eq!(read(&world, 0, 100).await.unwrap(), ten_series());
    // A member that has not adopted the epoch yet is asked again.
    world.members[0].set(Mode::FailsFirst(3, ServiceErrorCode::Behind));
    world.members[1].set(Mode::Fails(ServiceErrorCode::Unavailable));
    assert_eq!(read(&world, 0, 100).await.unwrap(), ten_series());
    // A state that never comes is an error, not an older answer.
    world.members[0].epoch.store(2, Ordering::Relaxed);
    let e = read(&world, 0, 100).await.unwrap_err();
    assert!(e.to_string().contains("control state 9"), "{e}");
    assert_eq!(e.kind().http_status(), 503);
}

#[tokio::test]
async fn i9_recent_reads_need_neither_bucket_nor_store() {
    let world = World::new();
    world.hold(&ten_series());
    world.members.iter().for_each(|m| m.forget_below(5, 3));
    *world.manifests.down.lock() = true;
    world
        .stores
        .iter()
        .for_each(|s| s.set(Mode::Fails(ServiceErrorCode::Unavailable)));
    let found = read_of_heads(&world, 5, 100).await.unwrap();
    assert_eq!(found.len(), 10);
    assert!(world.stores.iter().all(|s| s.calls() == 0));
    // Older ones fail as a whole.
    let e = read(&world, 4, 100).await.unwrap_err();
    assert_eq!(e.kind().http_status(), 503);
    assert!(
        e.to_string()
            .contains("manifest version 3 or later is needed: bucket down"),
        "{e}"
    );
}

#[tokio::test]
async fn i10_blocks_from_before_the_heads_time_are_read() {
    for forgotten in [i64::MIN, 0] {
        let world = World::new();
        world.upload_foreign("A", ten_series());
        world.members.iter().for_each(|m| m.forget_below(forgotten, 1));
        assert_eq!(read(&world, 0, 100).await.unwrap(), ten_series(), "{forgotten}");
    }
}

#[tokio::test(start_paused = true)]
async fn i4_i9_heads_that_answer_alone_say_so_while_no_manifest_is_known() {
    // Given blocks that heads never heard of, and no bucket.
    let world = World::paused(2);
    let old = data([(labels("m", 99), vec![(3, 1.0)])]);
    world.hold(&ten_series());
    world.upload_foreign("A", old.clone());
    *world.manifests.down.lock() = true;
    let budget = Budget::new(1 << 20, 100);
    let lookups = async || {
        let all = [selection(true)];
        let names = world.cluster.labels(&all, "i", &budget).await.unwrap();
        let series = world.cluster.series(&all, 0, &budget).await.unwrap();
        let is_complete = names.completeness().is_complete();
        assert_eq!(series.completeness().is_complete(), is_complete);
        assert_eq!(series.into_parts().0.len(), names.into_parts().0.len());
        is_complete
    };
    let calls = || world.manifests.calls.load(Ordering::Relaxed);
    // Then heads answer, and say what may be missing.
    assert_eq!(read_of_heads(&world, 0, 100).await.unwrap(), ten_series());
    assert_eq!(read_of_heads(&world, 0, 100).await.unwrap(), ten_series());
    assert!(!lookups().await);
    assert_eq!(calls(), 1, "asked once a second");
    // And when it is back all is there, soon.
    *world.manifests.down.lock() = false;
    tokio::time::advance(Duration::from_secs(1)).await;
    let mut all = ten_series();
    all.extend(old);
    assert_eq!(read(&world, 0, 100).await.unwrap(), all);
    assert!(lookups().await);
    // What was known goes on to be, when it is gone again.
    *world.manifests.down.lock() = true;
    tokio::time::advance(Duration::from_secs(600)).await;
    assert_eq!(read(&world, 0, 100).await.unwrap(), all);
    assert_eq!(calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn i4_blocks_that_are_known_are_not_left_out_because_a_deletion_is_newer() {
    // Given a manifest that is known, with a block that heads never had, or one that they have.
    for (is_held, min) in [(false, 0), (true, 0), (false, 50)] {
        let world = World::paused(2);
        world.hold(&ten_series());
        match is_held {
            true => world.upload("A", ten_series()),
            false => world.upload_foreign("A", ten_series()),
        }
        read(&world, 0, 100).await.unwrap();
        // When heads know of a deletion, and the bucket does not answer.
        world.members.iter().for_each(|m| m.applied(7));
        *world.manifests.down.lock() = true;
        tokio::time::advance(Duration::from_secs(30)).await;
        // Then they answer alone only if they have all that the block has of the range.
        let found = read(&world, min, 100).await;
        if is_held || min == 50 {
            assert!(found.is_ok(), "{is_held} {min}: {found:?}");
        } else {
            assert_eq!(found.unwrap_err().kind().http_status(), 503);
        }
    }
}

#[tokio::test]
async fn i4_series_that_are_too_old_take_no_room_from_others_at_the_limit() {
    // Given heads with three series of which all is too old, before two of which nothing is, and a query that may fetch two.
    let world = World::new();
    let samples = |i| vec![(if i < 3 { 5 } else { 50 }, 1.0)];
    world.hold(&data((0..5).map(|i| (labels("m", i), samples(i)))));
    let rule = Matchers(vec![
        Matcher::new(MatchOp::Regex, "i".to_owned(), "[012]".to_owned()).unwrap(),
    ]);
    world.manifests.view.lock().expiry = Expiry::new(SeriesClasses::new([rule]), [Some(20), None]);
    let ask = async |series_max, limit| {
        let hints = SelectHints {
            limit,
            ..SelectHints::default()
        };
        let budget = Budget::new(1 << 20, series_max);
        let found = read_within(&world, TimeRange::new(0, 100), hints, budget).await;
        found.map(|(found, _)| found.len())
    };
    assert_eq!(ask(2, 0).await.unwrap(), 2);
    assert_eq!(ask(1000, 1).await.unwrap(), 1);
    assert!(
        ask(1, 0)
            .await
            .unwrap_err()
            .to_string()
            .contains("too many series")
    );
    // Heads that cannot tell which these are cannot be answered from, unless they sent all.
    for member in &world.members {
        *member.is_blunt.lock() = true;
    }
    let e = ask(2, 0).await.unwrap_err();
    assert_eq!(e.kind().http_status(), 422);
    assert!(e.to_string().contains("too old"), "{e}");
    assert_eq!(ask(5, 0).await.unwrap(), 2);
}

#[tokio::test]
async fn blocks_that_heads_still_hold_are_not_read() {
    let world = World::new();
    world.hold(&ten_series());
    world.upload("A", data([(labels("m", 0), vec![(-50, 1.0), (-10, 1.0)])]));
    world.upload("B", ten_series());
    world.members.iter().for_each(|m| m.forget_below(0, 2));
    assert_eq!(read(&world, 0, 100).await.unwrap(), ten_series());
    assert!(world.stores.iter().all(|s| s.calls() == 0));
    assert_eq!(read(&world, -20, 100).await.unwrap()[&labels("m", 0)].len(), 21);
    assert_eq!(world.stores.iter().map(|s| s.calls()).sum::<u64>(), 1);
}

#[tokio::test]
async fn i7_a_store_that_fails_midway_is_replaced_without_loss() {
    let faults = [
        Mode::Fails(ServiceErrorCode::Unavailable),
        Mode::BreaksAfter(4, None),
        Mode::BreaksAfter(6, Some(ServiceErrorCode::Corruption)),
    ];
    for fault in faults {
        for victim in 0..2 {
            let world = World::new();
            for (i, id) in ["A", "B", "C", "D"].iter().enumerate() {
                let some = ten_series().into_iter().skip(i).step_by(2).collect();
                world.upload(id, some);
            }
            world.members.iter().for_each(|m| m.forget_below(1000, 4));
            world.stores[victim].set(fault.clone());
            assert_eq!(
                read(&world, 0, 100).await.unwrap(),
                ten_series(),
                "{fault:?} at {victim}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn i4_blocks_that_no_store_can_read_are_an_error_that_names_one() {
    let unread = "unavailable: block 01A cannot be read; asked store-";
    let dead = Mode::Fails(ServiceErrorCode::Unavailable);
    let damaged = Mode::BreaksAfter(6, Some(ServiceErrorCode::Corruption));
    let faults = [
        ([dead.clone(), dead.clone()], 503, unread),
        ([Mode::BreaksAfter(10, None), dead.clone()], 503, unread),
        // The one that cannot be asked may have it whole.
        (
            [damaged.clone(), dead],
            503,
            "unavailable: block 01A failed checksum; asked store-",
        ),
        (
            [damaged.clone(), damaged],
            500,
            "block 01A failed checksum; asked store-",
        ),
    ];
    for (faults, status, text) in faults {
        let world = World::paused(2);
        world.upload("01A", ten_series());
        world.members.iter().for_each(|m| m.forget_below(1000, 1));
        for (store, fault) in world.stores.iter().zip(&faults) {
            store.set(fault.clone());
        }
        let e = read(&world, 0, 100).await.unwrap_err();
        assert_eq!(e.kind().http_status(), status, "{faults:?}: {e}");
        assert!(e.to_string().starts_with(text), "{e}");
    }
}

#[tokio::test]
async fn i12_a_query_over_its_memory_fails_with_the_limit() {
    let world = World::new();
    world.hold(&ten_series());
    let all = TimeRange::new(0, 100);
    let e = read_with(&world, all, SelectHints::default(), 2000)
        .await
        .unwrap_err();
    assert_eq!(e.kind().http_status(), 422);
    assert!(
        e.to_string()
            .contains("query memory limit of 2000 bytes exceeded"),
        "{e}"
    );
}

#[tokio::test(start_paused = true)]
async fn i12_members_that_lag_are_not_charged_to_the_query_beside_those_read_in_their_place() {
    let world = World::paused(1);
    world.hold(&ten_series());
    let all = TimeRange::new(0, 100);
    let mut bytes = 0;
    while read_with(&world, all, SelectHints::default(), bytes)
        .await
        .is_err()
    {
        bytes += 100;
    }
    for victim in 0..3 {
        for fault in [Mode::HangsAfter(9), Mode::Slow(Duration::from_millis(200))] {
            world.members[victim].set(fault.clone());
            let found = read_with(&world, all, SelectHints::default(), bytes).await;
            assert_eq!(found.unwrap(), ten_series(), "{fault:?} at {victim}");
        }
        world.members[victim].set(Mode::Well);
    }
}

#[tokio::test]
async fn shards_are_disjoint_and_complete_and_limits_are_kept() {
    let world = World::new();
    world.hold(&ten_series());
    let all = TimeRange::new(0, 100);
    let mut union = Data::new();
    for index in 0..3 {
        let hints = SelectHints {
            shard: Some((index, 3)),
            ..SelectHints::default()
        };
        let part = read_with(&world, all, hints, 1 << 20).await.unwrap();
        assert!(part.keys().all(|l| !union.contains_key(l)));
        union.extend(part);
    }
    assert_eq!(union, ten_series());
    let hints = SelectHints {
        limit: 3,
        ..SelectHints::default()
    };
    assert_eq!(read_with(&world, all, hints, 1 << 20).await.unwrap().len(), 3);
}

pub(super) fn selection(labels_only: bool) -> Selection {
    Selection {
        tenant: TenantId::anonymous(),
        matchers: matchers(),
        range: TimeRange::new(0, 100),
        labels_only,
        wanted: Wanted::default(),
    }
}

#[tokio::test]
async fn i13_what_no_store_may_hold_is_the_querys_fault() {
    let world = World::new();
    world.upload("01A", ten_series());
    world.members.iter().for_each(|m| m.forget_below(1000, 1));
    for s in &world.stores {
        s.set(Mode::Fails(ServiceErrorCode::ResourceExhausted));
    }
    let e = read(&world, 0, 100).await.unwrap_err();
    assert_eq!(
        (e.kind().http_status(), e.to_string().as_str()),
        (422, "injected")
    );
    assert_eq!(world.stores.iter().map(|s| s.calls()).sum::<u64>(), 1);
}
