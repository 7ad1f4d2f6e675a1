//! Claims about reads over the cluster, against members with faults.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use koios_model::{
    Exemplar, Expiry, Labels, Matcher, Matchers, Metadata, SeriesClasses, TenantId, TimeRange,
};
use koios_promql::{Columns, QueryError, Queryable, SelectHints, SelectRequest, StreamItem};
use koios_runtime::{ClockHandle, TokioClock};
use koios_wire::ServiceErrorCode;

use super::merge::Wanted;
use super::mock::{Data, Mode, World, data, labels, plan};
use super::{Budget, ClusterQueryable, Selection, StoreReads};

fn matchers() -> Matchers {
    Matchers(vec![Matcher::equal("__name__", "m")])
}

async fn read_with(
    world: &World,
    range: TimeRange,
    hints: SelectHints,
    bytes_max: usize,
) -> Result<Data, QueryError> {
    let budget = Budget::new(bytes_max, 1000);
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
    loop {
        match stream.next().await.expect("a stream ends with an end")? {
            StreamItem::End(completeness) => {
                assert!(completeness.is_complete());
                break;
            }
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
    }
    drop(stream);
    assert_eq!(budget.held(), 0, "all memory is given back");
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
async fn i10_heads_show_nothing_that_stores_leave_out_because_of_its_age() {
    // Given heads with samples of three series, and rules for two of them.
    let world = World::new();
    world.hold(&data((0..3).map(|i| {
        let samples = (0..20).map(|t| (t, f64::from(i))).collect();
        (labels("m", i), samples)
    })));
    let rules = [1, 2].map(|i| Matchers(vec![Matcher::equal("i", i.to_string())]));
    let classes = SeriesClasses::new(rules);
    world.manifests.view.lock().expiry = Expiry::new(classes, [Some(15), Some(20), None]);
    // When all is read, then there is what is young enough of each.
    let found = read(&world, 0, 1000).await.unwrap();
    let times: Vec<Vec<i64>> = found.values().map(|s| s.keys().copied().collect()).collect();
    assert_eq!(times, [(0..20).collect::<Vec<_>>(), (15..20).collect()]);
    assert_eq!(found.len(), 2, "of one series nothing is left");
    // A range before and around the time.
    assert_eq!(
        read(&world, 0, 14)
            .await
            .unwrap()
            .values()
            .map(|s| s.len())
            .sum::<usize>(),
        15
    );
    let around = read(&world, 10, 16).await.unwrap();
    assert_eq!(around.values().map(|s| s.len()).collect::<Vec<_>>(), [7, 2]);
}

#[tokio::test(start_paused = true)]
async fn i4_all_selectors_of_a_query_are_read_as_of_one_version() {
    let clock: ClockHandle = Arc::new(TokioClock::starting_at(0));
    let world = World::with_stores(1, StoreReads::default(), Arc::clone(&clock));
    world.hold(&data((0..3).map(|i| {
        let samples = (0..20).map(|t| (t, f64::from(i))).collect();
        (labels("m", i), samples)
    })));
    let query = || {
        let (cluster, budget) = (Arc::clone(&world.cluster), Budget::new(1 << 20, 100));
        ClusterQueryable::new(cluster, TenantId::anonymous(), budget).for_one_query()
    };
    let series = async |query: &ClusterQueryable| {
        let request = SelectRequest {
            matchers: matchers(),
            range: TimeRange::new(0, 100),
            hints: SelectHints::default(),
        };
        let mut stream = query.select(request).await.unwrap();
        let mut found = 0;
        while let Some(item) = stream.next().await {
            if let StreamItem::Series(batch) = item.unwrap() {
                found += batch.len();
            }
        }
        found
    };
    world.manifests.view.lock().version = 1;
    let first = query();
    assert_eq!(series(&first).await, 3);
    // When a rule comes between two selectors of a query.
    {
        let mut view = world.manifests.view.lock();
        (view.version, view.expiry) = (2, two_rules());
    }
    clock.sleep(Duration::from_secs(300)).await;
    assert_eq!(series(&first).await, 3);
    assert_eq!(series(&query()).await, 2);
    // Unless heads ask for a later one: what they forgot is listed there only.
    world.members.iter().for_each(|m| m.forget_below(1, 2));
    assert_eq!(series(&first).await, 2);
}

/// Rules for two series of three: of one nothing that heads have is left.
fn two_rules() -> Expiry {
    let rules = [1, 2].map(|i| Matchers(vec![Matcher::equal("i", i.to_string())]));
    Expiry::new(SeriesClasses::new(rules), [Some(15), Some(20), None])
}

#[tokio::test]
async fn i10_heads_show_no_labels_of_series_of_which_all_is_too_old() {
    // Given heads with samples of three series, and no rule that is known of.
    let world = World::new();
    world.hold(&data((0..3).map(|i| {
        let samples = (0..20).map(|t| (t, f64::from(i))).collect();
        (labels("m", i), samples)
    })));
    let budget = Budget::new(1 << 20, 100);
    let lookup = async |name: &str, max: i64| {
        let range = TimeRange::new(0, max);
        let selections = [Selection {
            range,
            ..selection(true)
        }];
        let found = world.cluster.labels(&selections, name, &budget).await.unwrap();
        let series = world.cluster.series(&selections, 0, &budget).await.unwrap();
        let of_series = series.into_parts().0.into_iter();
        let values: Vec<String> = of_series.map(|l| l.get("i").unwrap().to_owned()).collect();
        (found.into_parts().0, values)
    };
    assert_eq!(
        lookup("i", 1000).await.0,
        ["0", "1", "2"],
        "what is known of the manifest is from before the rules"
    );
    // When rules come, and heads name the version that lists them.
    {
        let mut view = world.manifests.view.lock();
        (view.version, view.expiry) = (2, two_rules());
    }
    world.members.iter().for_each(|m| m.forget_below(1, 2));
    // Then labels are those of what is left, as series are.
    let both = |all: &[&str]| {
        let all: Vec<String> = all.iter().map(|v| (*v).to_owned()).collect();
        (all.clone(), all)
    };
    assert_eq!(lookup("i", 1000).await, both(&["0", "1"]));
    assert_eq!(lookup("i", 14).await, both(&["0"]));
    assert_eq!(lookup("", 1000).await.0, ["__name__", "i"]);
    // And when the bucket is down what is known of it goes on to hold.
    *world.manifests.down.lock() = true;
    world.members.iter().for_each(|m| m.forget_below(i64::MIN, 0));
    assert_eq!(lookup("i", 1000).await, both(&["0", "1"]));
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
    let found = read(&world, 5, 100).await.unwrap();
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
async fn i4_a_manifest_older_than_what_heads_forgot_is_an_error() {
    let world = World::new();
    world.hold(&ten_series());
    world.upload("A", ten_series());
    world.members[1].forget_below(10, 2);
    world.members[2].forget_below(10, 2);
    let e = read(&world, 0, 100).await.unwrap_err();
    assert!(
        e.to_string()
            .contains("version 2 or later is needed: the latest is 1"),
        "{e}"
    );
    world.upload_foreign("B", data([(labels("m", 99), vec![(3, 1.0)])]));
    let mut all = ten_series();
    all.extend(data([(labels("m", 99), vec![(3, 1.0)])]));
    assert_eq!(read(&world, 0, 100).await.unwrap(), all);
}

#[tokio::test]
async fn i4_the_greatest_of_the_members_floors_counts() {
    // Given that only the two members read last have forgotten, at different versions.
    let world = World::new();
    world.hold(&ten_series());
    world.upload("A", ten_series());
    world.members[0].set(Mode::Fails(ServiceErrorCode::Unavailable));
    world.members[1].forget_below(3, 1);
    world.members[2].forget_below(12, 1);
    assert_eq!(read(&world, 0, 100).await.unwrap(), ten_series());
    assert_eq!(read(&world, 3, 100).await.unwrap()[&labels("m", 0)].len(), 17);
}

#[tokio::test]
async fn i10_blocks_from_before_the_heads_time_are_read() {
    for forgotten in [i64::MIN, 0] {
        let world = World::new();
        world.upload_foreign("A", ten_series());
        world.members.iter().for_each(|m| m.forget_below(forgotten, 1));
        assert_eq!(read(&world, 0, 100).await.unwrap(), ten_series(), "{forgotten}");
    }
    // Without a bucket, heads that never forgot anything answer alone (I9).
    let world = World::new();
    world.hold(&ten_series());
    *world.manifests.down.lock() = true;
    assert_eq!(read(&world, 0, 100).await.unwrap(), ten_series());
    assert_eq!(read(&world, 0, 100).await.unwrap(), ten_series());
    assert_eq!(
        world.manifests.calls.load(Ordering::Relaxed),
        1,
        "asked once a minute"
    );
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

#[tokio::test]
async fn i4_blocks_that_no_store_can_read_are_an_error_that_names_one() {
    let unread = "unavailable: block 01A cannot be read; asked store-";
    let faults = [
        (Mode::Fails(ServiceErrorCode::Unavailable), unread),
        (Mode::BreaksAfter(10, None), unread),
        (
            Mode::BreaksAfter(6, Some(ServiceErrorCode::Corruption)),
            "unavailable: block 01A failed checksum; asked store-",
        ),
    ];
    for (fault, text) in faults {
        let world = World::new();
        world.upload("01A", ten_series());
        world.members.iter().for_each(|m| m.forget_below(1000, 1));
        world.stores.iter().for_each(|s| s.set(fault.clone()));
        let e = read(&world, 0, 100).await.unwrap_err();
        assert_eq!(e.kind().http_status(), 503, "{fault:?}: {e}");
        assert!(e.to_string().starts_with(text), "{e}");
    }
}

#[tokio::test]
async fn i4_a_read_that_outlives_its_pin_fails_and_the_next_one_looks_anew() {
    let world = World::new();
    world.upload("A", ten_series());
    world.members.iter().for_each(|m| m.forget_below(1000, 1));
    assert_eq!(read(&world, 0, 100).await.unwrap(), ten_series());
    // When compaction replaced the block and its bytes are gone.
    world.blocks.lock().remove("A");
    world.manifests.view.lock().blocks.clear();
    world.upload("B", ten_series());
    let e = read(&world, 0, 100).await.unwrap_err();
    assert!(e.to_string().contains("block A is gone"), "{e}");
    assert_eq!(e.kind().http_status(), 503);
    assert_eq!(read(&world, 0, 100).await.unwrap(), ten_series());
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
async fn i4_label_reads_are_complete_or_fail() {
    let world = World::new();
    world.members[0].hold(data([(labels("m", 1), vec![(5, 1.0)])]));
    world.members[1].hold(data([(labels("m", 2), vec![(5, 1.0)])]));
    world.members[2].set(Mode::Hangs);
    world.members.iter().for_each(|m| m.forget_below(4, 1));
    world.upload("A", data([(labels("m", 3), vec![(3, 1.0)])]));
    let selections = [selection(true)];
    let values = world
        .cluster
        .labels(&selections, "i", &Budget::new(1 << 20, 100))
        .await
        .unwrap();
    assert_eq!(values.into_parts().0, ["1", "2", "3"]);
    let names = world
        .cluster
        .labels(&selections, "", &Budget::new(1 << 20, 100))
        .await
        .unwrap();
    assert_eq!(names.into_parts().0, ["__name__", "i"]);
    let budget = Budget::new(1 << 20, 100);
    let series = world.cluster.series(&selections, 0, &budget).await.unwrap();
    let (series, charge) = series.into_parts();
    assert_eq!(series.len(), 3);
    assert!(budget.held() > 0, "what was found is charged until it was sent");
    drop(charge);
    assert_eq!(budget.held(), 0);
    world
        .stores
        .iter()
        .for_each(|s| s.set(Mode::Fails(ServiceErrorCode::Unavailable)));
    assert_eq!(
        world
            .cluster
            .labels(&selections, "i", &Budget::new(1 << 20, 100))
            .await
            .unwrap_err()
            .kind()
            .http_status(),
        503
    );
    world.members[0].set(Mode::Fails(ServiceErrorCode::Unavailable));
    let e = world
        .cluster
        .labels(&selections, "i", &Budget::new(1 << 20, 100))
        .await
        .unwrap_err();
    assert!(
        e.to_string()
            .starts_with("partition 0: 1 of 2 needed members answered"),
        "{e}"
    );
}

#[tokio::test]
async fn i12_label_values_over_the_memory_limit_fail_with_the_limit() {
    let world = World::new();
    world.hold(&ten_series());
    let budget = Budget::new(300, 100);
    let e = world
        .cluster
        .labels(&[selection(true)], "i", &budget)
        .await
        .unwrap_err();
    assert!(
        e.to_string().contains("query memory limit of 300 bytes exceeded"),
        "{e}"
    );
    assert_eq!(budget.held(), 0);
}

#[tokio::test]
async fn i12_series_found_by_earlier_selectors_stay_charged() {
    let world = World::new();
    world.hold(&ten_series());
    let selections: Vec<_> = (0..10)
        .map(|i| {
            let mut one = selection(true);
            one.matchers.0.push(Matcher::equal("i", i.to_string()));
            one
        })
        .collect();
    // Any one of them needs less than that, all together more.
    let budget = Budget::new(800, 100);
    let one = world.cluster.series(&selections[..1], 0, &budget).await.unwrap();
    drop(one);
    let e = world.cluster.series(&selections, 0, &budget).await.unwrap_err();
    assert!(
        e.to_string().contains("query memory limit of 800 bytes exceeded"),
        "{e}"
    );
    assert_eq!(budget.held(), 0);
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

#[tokio::test]
async fn metadata_is_the_union_of_a_majority() {
    let world = World::new();
    world.members[0].describe("a", "counter");
    world.members[1].describe("a", "gauge");
    world.members[2].set(Mode::Fails(ServiceErrorCode::Unavailable));
    let tenant = TenantId::anonymous();
    let budget = Budget::new(1 << 20, 100);
    let found = world.cluster.metadata(&tenant, "", TimeRange::ALL, &budget);
    let found = found.await.unwrap();
    assert_eq!((found.metrics["a"].len(), found.warning), (2, None));
}

#[tokio::test]
async fn i4_metadata_is_of_heads_and_blocks_and_says_what_is_missing() {
    let world = World::new();
    world.members.iter().for_each(|m| m.describe("a", "counter"));
    world.upload("01A", ten_series());
    let described = |metric: &str, kind: &str| {
        let metadata = Metadata {
            kind: kind.to_owned(),
            ..Metadata::default()
        };
        (metric.to_owned(), metadata)
    };
    for s in &world.stores {
        *s.metadata.lock() = vec![described("a", "counter"), described("b", "gauge")];
    }
    let tenant = TenantId::anonymous();
    let budget = Budget::new(1 << 20, 100);
    let ask = |min, max| {
        let range = TimeRange::new(min, max);
        world.cluster.metadata(&tenant, "", range, &budget)
    };
    let found = ask(0, 100).await.unwrap();
    assert_eq!(found.metrics.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!((found.metrics["a"].len(), found.warning), (1, None));
    // Blocks of another time are not asked.
    assert_eq!(ask(1000, 2000).await.unwrap().metrics.len(), 1);
    // What cannot be had is said to be missing.
    let set = |code| world.stores.iter().for_each(|s| s.set(Mode::Fails(code)));
    set(ServiceErrorCode::Unavailable);
    let found = ask(0, 100).await.unwrap();
    assert_eq!(found.metrics.len(), 1);
    let warning = found.warning.unwrap();
    assert!(
        warning.starts_with("metadata of blocks is missing: unavailable: block 01A"),
        "{warning}"
    );
    // Too much for a store's answer, too: heads' answer is none the worse for it.
    set(ServiceErrorCode::ResourceExhausted);
    let found = ask(0, 100).await.unwrap();
    assert_eq!(found.metrics.len(), 1);
    assert!(found.warning.unwrap().ends_with(": injected"));
}

#[tokio::test(start_paused = true)]
async fn i9_metadata_of_heads_does_not_wait_for_stores_that_hang() {
    let clock = Arc::new(TokioClock::starting_at(0));
    let world = World::with_stores(3, StoreReads::default(), clock);
    world.members.iter().for_each(|m| m.describe("a", "counter"));
    world.upload("01A", ten_series());
    world.stores.iter().for_each(|s| s.set(Mode::Hangs));
    let began = tokio::time::Instant::now();
    let tenant = TenantId::anonymous();
    let budget = Budget::new(1 << 20, 100);
    let found = world.cluster.metadata(&tenant, "", TimeRange::ALL, &budget);
    let found = found.await.unwrap();
    assert_eq!(found.metrics.len(), 1);
    assert!(
        found
            .warning
            .unwrap()
            .starts_with("metadata of blocks is missing: ")
    );
    assert!(began.elapsed() <= Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn exemplars_are_those_of_heads_and_of_blocks_each_once() {
    let exemplar = |t: i64| Exemplar {
        t,
        v: 0.5,
        labels: Labels::empty(),
    };
    let of = |times: &[i64]| {
        vec![(
            Labels::from_pairs([("__name__", "m")]),
            times.iter().map(|t| exemplar(*t)).collect(),
        )]
    };
    let world = World::new();
    world.upload("01A", ten_series());
    world
        .members
        .iter()
        .for_each(|m| *m.exemplars.lock() = of(&[50, 60]));
    world
        .stores
        .iter()
        .for_each(|s| *s.exemplars.lock() = of(&[40, 50]));
    let (tenant, all) = (TenantId::anonymous(), [Matchers::default()]);
    let budget = Budget::new(1 << 20, 100);
    let ask = || async {
        let found = world
            .cluster
            .exemplars(&tenant, &all, TimeRange::new(0, 100), &budget);
        Ok::<_, QueryError>(found.await?.into_parts().0)
    };
    let found = ask().await.unwrap();
    let times: Vec<_> = found.iter().flat_map(|(_, all)| all).map(|e| e.t).collect();
    assert_eq!(times, [40, 50, 60]);
    assert_eq!(budget.held(), 0);
    // One store may fail; too many are the query's fault.
    world.stores[0].set(Mode::Fails(ServiceErrorCode::Unavailable));
    assert_eq!(ask().await.unwrap(), found);
    for s in &world.stores {
        s.set(Mode::Fails(ServiceErrorCode::ResourceExhausted));
    }
    let e = ask().await.unwrap_err();
    assert_eq!(e.to_string(), "injected");
    assert!((400..500).contains(&e.kind().http_status()), "{e:?}");
}

#[tokio::test(start_paused = true)]
async fn i9_without_the_bucket_a_deletion_that_was_begun_and_not_answered_fails_no_read() {
    for knows in 0..3 {
        let clock = Arc::new(TokioClock::starting_at(0));
        let world = World::with_stores(2, StoreReads::default(), clock);
        world.hold(&ten_series());
        world.members.iter().for_each(|m| m.lose_bucket());
        *world.manifests.down.lock() = true;
        // Given a member that has applied it, and two that cannot learn of it.
        world.members[knows].applied(7);
        world.members[knows].hold(Data::new());
        assert_eq!(
            read(&world, 0, 100).await.unwrap(),
            ten_series(),
            "member {knows} knows"
        );
        let budget = Budget::new(1 << 20, 100);
        let names = world.cluster.labels(&[selection(true)], "i", &budget).await;
        assert_eq!(names.unwrap().into_parts().0.len(), 10);
        // Given two, it may have been answered.
        world.members[(knows + 1) % 3].applied(7);
        world.members[(knows + 1) % 3].hold(Data::new());
        assert_eq!(read(&world, 0, 100).await.unwrap(), Data::new());
        // And one of them lost, and the other one does not say who is right.
        world.members[knows].set(Mode::Fails(ServiceErrorCode::Unavailable));
        let e = read(&world, 0, 100).await.unwrap_err();
        assert_eq!(e.kind().http_status(), 503, "{e}");
    }
}
