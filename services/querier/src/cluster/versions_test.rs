//! Claims about which manifest version a read is of, and which deletions.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use koios_model::{Expiry, Matcher, Matchers, SeriesClasses, TenantId, TimeRange};
use koios_promql::{ErrorKind, Queryable, SelectHints, SelectRequest, StreamItem};
use koios_runtime::{Clock as _, ClockHandle, TokioClock};
use koios_wire::ServiceErrorCode;

use super::cluster_test::{matchers, read, read_of_heads, read_within, selection, ten_series};
use super::mock::{Data, Mode, World, data, labels};
use super::{Budget, Cluster, ClusterQueryable, Manifests, Patience, StoreReads, Topology};

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
pub(super) fn two_rules() -> Expiry {
    let rules = [1, 2].map(|i| Matchers(vec![Matcher::equal("i", i.to_string())]));
    Expiry::new(SeriesClasses::new(rules), [Some(15), Some(20), None])
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

#[tokio::test(start_paused = true)]
async fn i9_without_the_bucket_a_deletion_that_was_begun_and_not_answered_fails_no_read() {
    for knows in 0..3 {
        let world = World::paused(2);
        world.hold(&ten_series());
        world.members.iter().for_each(|m| m.lose_bucket());
        *world.manifests.down.lock() = true;
        // Given a member that has applied it, and two that cannot learn of it.
        world.members[knows].applied(7);
        world.members[knows].hold(Data::new());
        assert_eq!(
            read_of_heads(&world, 0, 100).await.unwrap(),
            ten_series(),
            "member {knows} knows"
        );
        let budget = Budget::new(1 << 20, 100);
        let names = world.cluster.labels(&[selection(true)], "i", &budget).await;
        assert_eq!(names.unwrap().into_parts().0.len(), 10);
        // Given two, it may have been answered.
        world.members[(knows + 1) % 3].applied(7);
        world.members[(knows + 1) % 3].hold(Data::new());
        assert_eq!(read_of_heads(&world, 0, 100).await.unwrap(), Data::new());
        // And one of them lost, and the other one does not say who is right.
        world.members[knows].set(Mode::Fails(ServiceErrorCode::Unavailable));
        let e = read(&world, 0, 100).await.unwrap_err();
        assert_eq!(e.kind().http_status(), 503, "{e}");
    }
}

#[tokio::test(start_paused = true)]
async fn i4_selectors_that_are_read_at_once_are_read_as_of_one_version() {
    let world = World::paused(1);
    world.hold(&data((0..3).map(|i| {
        let samples = (0..20).map(|t| (t, f64::from(i))).collect();
        (labels("m", i), samples)
    })));
    world.manifests.view.lock().version = 1;
    let budget = Budget::new(1 << 20, 100);
    let query = ClusterQueryable::new(Arc::clone(&world.cluster), TenantId::anonymous(), budget);
    let query = query.for_one_query();
    // Given two look-ups that are under way when a rule comes: one is answered before, one after.
    let ms = Duration::from_millis;
    world.manifests.late.lock().extend([ms(50), ms(100)]);
    let rule = async {
        TokioClock::starting_at(0).sleep(ms(75)).await;
        let mut view = world.manifests.view.lock();
        (view.version, view.expiry) = (2, two_rules());
    };
    let series = async || {
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
    let (first, second, ()) = futures::join!(series(), series(), rule);
    assert_eq!(world.manifests.calls.load(Ordering::Relaxed), 2);
    assert_eq!((first, second), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn a_large_read_of_members_that_learn_of_a_deletion_takes_as_long_as_it_takes() {
    let world = World::paused(1);
    world.hold(&ten_series());
    // Given heads that take three seconds, one of which knows more than the others.
    for member in &world.members {
        member.set(Mode::Slow(Duration::from_millis(280)));
    }
    world.members[0].applied(7);
    assert_eq!(read(&world, 0, 100).await.unwrap(), ten_series());
    // Then all are read once more, as of what that one knows, and that is it.
    for member in &world.members {
        assert_eq!(member.calls(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn i10_slow_lookups_show_nothing_deleted_and_do_not_fail_while_members_learn_of_a_deletion() {
    // Given lookups that take longer than members have to learn of a deletion, which two of three have applied.
    let world = World::paused(1);
    let cluster = Cluster::new(
        Arc::clone(&world.topology) as Arc<dyn Topology>,
        Arc::clone(&world.manifests) as Arc<dyn Manifests>,
        Arc::new(TokioClock::starting_at(0)),
        Patience::default(),
    );
    world.manifests.view.lock().version = 7;
    world.hold(&ten_series());
    let mut left = ten_series();
    left.remove(&labels("m", 0));
    for member in &world.members[..2] {
        member.applied(7);
        member.hold(left.clone());
    }
    // When the one that does not know of it is not the last to answer.
    for (member, ms) in world.members.iter().zip([3000, 3200, 3100]) {
        member.set(Mode::Late(Duration::from_millis(ms)));
    }
    let began = tokio::time::Instant::now();
    let budget = Budget::new(1 << 20, 100);
    let names = cluster.labels(&[selection(true)], "i", &budget).await;
    let names = names.unwrap().into_parts().0;
    assert_eq!(names.len(), 9, "{names:?}");
    // Asked three times: by chance, of those that know, and of those that agree.
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn i4_a_damaged_manifest_fails_every_kind_of_read_where_one_out_of_reach_does_not() {
    // Given heads that need no blocks, and a manifest that was never read.
    let world = World::paused(1);
    world.hold(&ten_series());
    let (tenant, range) = (TenantId::anonymous(), TimeRange::new(0, 100));
    let reads = async |what: &str| {
        tokio::time::advance(Duration::from_secs(1)).await;
        let budget = Budget::new(1 << 20, 100);
        // Not read as of a version before.
        let (cluster, all) = (&world.cluster, [selection(true)]);
        match what {
            "samples" => read_within(&world, range, SelectHints::default(), budget)
                .await
                .map(drop),
            "labels" => cluster.labels(&all, "i", &budget).await.map(drop),
            "series" => cluster.series(&all, 0, &budget).await.map(drop),
            "metadata" => cluster.metadata(&tenant, "", range, &budget).await.map(drop),
            _ => cluster
                .exemplars(&tenant, &[matchers()], range, &budget)
                .await
                .map(drop),
        }
    };
    for what in ["samples", "labels", "series", "metadata", "exemplars"] {
        // Heads have not all exemplars, and say so.
        *world.manifests.down.lock() = true;
        assert_eq!(reads(what).await.is_ok(), what != "exemplars", "{what}");
        *world.manifests.down.lock() = false;
        *world.manifests.damaged.lock() = true;
        let e = reads(what).await.expect_err(what);
        assert_eq!(e.kind(), ErrorKind::Internal, "{what}: {e}");
        assert!(
            e.to_string()
                .contains("tenant anonymous cannot be read: object manifest/2.json"),
            "{e}"
        );
        *world.manifests.damaged.lock() = false;
        assert!(reads(what).await.is_ok(), "{what}");
        world.cluster.manifests.forget(&tenant);
    }
}
