//! Claims about what a lookup may hold and return, however many stores and members it asks.

use std::sync::Arc;

use koios_model::{Exemplar, Labels, Matchers, Metadata, TenantId, TimeRange};
use koios_promql::QueryError;
use koios_runtime::TokioClock;

use super::cluster_test::{selection, ten_series};
use super::mock::World;
use super::{Budget, StoreReads};

/// A text of so many bytes.
fn long(bytes: usize, i: usize) -> String {
    format!("{i:0bytes$}")
}

#[tokio::test(start_paused = true)]
async fn i12_what_stores_and_members_answer_is_charged_to_the_query_as_it_comes() {
    // Given metadata, names and exemplars of which each source has less than a query may hold, and all together more.
    let world = World::with_stores(5, StoreReads::default(), Arc::new(TokioClock::starting_at(0)));
    for i in 0..40 {
        world.upload(&format!("01A{i:02}"), ten_series());
    }
    let described = |name: &str, i: usize| {
        let metadata = Metadata {
            help: long(40_000, i),
            ..Metadata::default()
        };
        (format!("{name}{i}"), metadata)
    };
    let labels = Labels::from_pairs([("__name__", "m")]);
    let exemplars = |i: usize| {
        let exemplar = |t: i64| Exemplar {
            t,
            v: i as f64,
            labels: Labels::from_pairs([("trace", long(400, i))]),
        };
        vec![(labels.clone(), (0..100).map(exemplar).collect())]
    };
    for (i, s) in world.stores.iter().enumerate() {
        *s.metadata.lock() = vec![described("store", i)];
        *s.exemplars.lock() = exemplars(i);
    }
    let (tenant, all) = (TenantId::anonymous(), [Matchers::default()]);
    let range = TimeRange::new(0, 100);
    // When a query may hold all of it, then it is answered, and what is held is charged until it is sent.
    let roomy = Budget::new(1 << 20, 1000);
    let metadata = world.cluster.metadata(&tenant, "", range, &roomy).await.unwrap();
    assert_eq!((metadata.metrics.len(), &metadata.warning), (5, &None));
    assert!(roomy.held() >= 5 * 40_000, "{}", roomy.held());
    drop(metadata);
    let found = world
        .cluster
        .exemplars(&tenant, &all, range, &roomy)
        .await
        .unwrap();
    assert!(roomy.held() >= 500 * 400, "{}", roomy.held());
    drop(found);
    assert_eq!(roomy.held(), 0);
    // When it may not, then it fails, and what heads know of metadata is told with a warning.
    let tight = Budget::new(100_000, 1000);
    let metadata = world.cluster.metadata(&tenant, "", range, &tight).await.unwrap();
    let warning = metadata.warning.unwrap();
    assert!(
        warning.contains("query memory limit of 100000 bytes exceeded"),
        "{warning}"
    );
    let e = world
        .cluster
        .exemplars(&tenant, &all, range, &tight)
        .await
        .unwrap_err();
    assert!(matches!(e, QueryError::LimitExceeded(_)), "{e}");
    world
        .members
        .iter()
        .enumerate()
        .for_each(|(i, m)| m.describe(&long(60_000, i), "gauge"));
    let e = world
        .cluster
        .metadata(&tenant, "", range, &tight)
        .await
        .unwrap_err();
    assert!(matches!(e, QueryError::LimitExceeded(_)), "{e}");
    drop(metadata.metrics);
    // And so with names: of stores, and of members.
    world.members.iter().for_each(|m| m.forget_below(1000, 40));
    for (bytes_max, fits) in [(1_000, false), (10_000, true)] {
        let budget = Budget::new(bytes_max, 1000);
        let found = world.cluster.labels(&[selection(true)], "i", &budget).await;
        assert_eq!(found.is_ok(), fits, "{found:?}");
    }
    let world = World::new();
    world.hold(&ten_series());
    for (bytes_max, fits) in [(450, false), (10_000, true)] {
        let budget = Budget::new(bytes_max, 1000);
        let found = world.cluster.labels(&[selection(true)], "i", &budget).await;
        assert_eq!(found.is_ok(), fits, "{found:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_limits_of_exemplars_are_those_of_a_query_not_of_each_store() {
    let world = World::with_stores(5, StoreReads::default(), Arc::new(TokioClock::starting_at(0)));
    for i in 0..40 {
        world.upload(&format!("01A{i:02}"), ten_series());
    }
    for (i, s) in world.stores.iter().enumerate() {
        let exemplar = |t: i64| Exemplar {
            t,
            v: i as f64,
            labels: Labels::empty(),
        };
        let exemplars = (0..5_000).map(exemplar).collect();
        *s.exemplars.lock() = vec![(Labels::from_pairs([("__name__", "m")]), exemplars)];
    }
    let (tenant, all, budget) = (
        TenantId::anonymous(),
        [Matchers::default()],
        Budget::new(1 << 30, 1000),
    );
    let ask = || {
        world
            .cluster
            .exemplars(&tenant, &all, TimeRange::new(0, 100), &budget)
    };
    let e = ask().await.unwrap_err();
    assert!(e.to_string().starts_with("more than 20000 exemplars"), "{e}");
    // The same from several stores is there once.
    for s in &world.stores {
        s.exemplars.lock()[0].1.iter_mut().for_each(|e| e.v = 1.0);
    }
    assert_eq!(ask().await.unwrap().into_parts().0[0].1.len(), 5_000);
}
