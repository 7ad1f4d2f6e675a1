//! Claims about lookups of labels, series, metadata and exemplars.

use std::time::Duration;

use koios_model::{Exemplar, Labels, Matcher, Matchers, Metadata, TenantId, TimeRange};
use koios_promql::QueryError;
use koios_wire::ServiceErrorCode;

use super::cluster_test::{selection, ten_series};
use super::mock::{Mode, World, data, labels};
use super::versions_test::two_rules;
use super::{Budget, Selection};

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

#[tokio::test(start_paused = true)]
async fn i4_label_reads_are_complete_or_fail() {
    let world = World::paused(2);
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

#[tokio::test(start_paused = true)]
async fn i4_metadata_is_of_heads_and_blocks_and_says_what_is_missing() {
    let world = World::paused(2);
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
async fn i10_metadata_is_not_that_of_a_member_that_does_not_know_what_was_deleted() {
    let tenant = TenantId::anonymous();
    let found = async |loses_bucket: bool| {
        // Given a metric that was deleted, as two members of three know, of which one is slow.
        let world = World::paused(1);
        world.manifests.view.lock().version = 7;
        for member in &world.members {
            member.describe("a", "counter");
            member.describe("b", "counter");
            member.deletes_metric("a", 7);
        }
        world.members[..2].iter().for_each(|m| m.applied(7));
        world.members[0].set(Mode::Late(Duration::from_secs(20)));
        if loses_bucket {
            world.members[2].lose_bucket();
        }
        let budget = Budget::new(1 << 20, 100);
        let found = world.cluster.metadata(&tenant, "", TimeRange::ALL, &budget);
        let metrics: Vec<String> = found.await.unwrap().metrics.into_keys().collect();
        metrics
    };
    // When the third is asked it learns of it first.
    assert_eq!(found(false).await, ["b"]);
    // Where it cannot, its answer is better than none: metadata is no data (I9).
    assert_eq!(found(true).await, ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn i9_metadata_of_heads_does_not_wait_for_stores_that_hang() {
    let world = World::paused(3);
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

#[tokio::test(start_paused = true)]
async fn i9_metadata_of_blocks_takes_no_room_from_that_of_heads() {
    let world = World::paused(2);
    for member in &world.members {
        (0..10).for_each(|i| member.describe(&format!("head{i}"), "counter"));
    }
    world.upload("01A", ten_series());
    let tenant = TenantId::anonymous();
    let ask = async |bytes| {
        let budget = Budget::new(bytes, 100);
        let found = world.cluster.metadata(&tenant, "", TimeRange::ALL, &budget).await;
        let found = found.map(|found| (found.metrics.len(), found.warning));
        assert_eq!(budget.held(), 0);
        found
    };
    // Given a query that may hold what heads answer, and no more.
    let mut bytes = 0;
    while ask(bytes).await.is_err() {
        bytes += 10;
    }
    // When blocks answer first, with nearly as much.
    for store in &world.stores {
        let described = |i| (format!("block{i}"), Metadata::default());
        *store.metadata.lock() = (0..15).map(described).collect();
    }
    for member in &world.members {
        member.set(Mode::Late(Duration::from_millis(50)));
    }
    let (metrics, warning) = ask(bytes).await.unwrap();
    assert_eq!(metrics, 10);
    let warning = warning.unwrap();
    assert!(warning.contains("metadata of blocks is missing"), "{warning}");
    assert!(warning.contains("query memory limit"), "{warning}");
    // And with room for both.
    assert_eq!(ask(bytes * 2).await.unwrap(), (25, None));
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
