//! Claims about stores that are asked beside others: who is asked, who is blamed, and what it is charged to.

use std::sync::Arc;
use std::time::Duration;

use koios_promql::QueryError;
use koios_runtime::TokioClock;
use koios_wire::ServiceErrorCode;

use super::super::Budget;
use super::super::cluster_test::{read, selection, ten_series};
use super::super::merge::source_failed;
use super::super::mock::{Mode, World};
use super::StoreReads;
use super::stores_test::{asked, world};

const SECOND: Duration = Duration::from_secs(1);

/// Stores over one block, and which of them owns it.
async fn one_block(stores: usize) -> (World, usize) {
    let clock = Arc::new(TokioClock::starting_at(0));
    let world = World::with_stores(stores, StoreReads::default(), clock);
    world.upload("A", ten_series());
    world.members.iter().for_each(|m| m.forget_below(1000, 1));
    assert_eq!(read(&world, 0, 100).await.unwrap(), ten_series());
    let owner = asked(&world).iter().position(|of| !of.is_empty()).unwrap();
    (world, owner)
}

#[tokio::test(start_paused = true)]
async fn a_store_whose_silence_others_make_up_for_is_not_asked_by_them() {
    let (world, owner) = one_block(3).await;
    let calls = world.stores[owner].calls();
    // Given a stream that falls silent, and others that break off before they have what comes next, one after the other.
    for (i, store) in world.stores.iter().enumerate() {
        store.set(match i == owner {
            true => Mode::HangsAfter(4),
            false => Mode::BreaksAfter(2, None),
        });
    }
    // No other one is left: it is read on when the silent one is given up.
    read(&world, 0, 100).await.unwrap_err();
    let others = world.stores.iter().enumerate().filter(|(i, _)| *i != owner);
    assert!(others.map(|(_, s)| s.calls()).all(|calls| calls > 0));
    assert_eq!(world.stores[owner].calls(), calls + 1);
}

#[tokio::test(start_paused = true)]
async fn what_others_fail_at_says_nothing_of_the_store_they_made_up_for() {
    let (world, owner) = one_block(2).await;
    // Given a store that falls silent, and one that goes on and then refuses.
    world.stores[owner].set(Mode::HangsAfter(3));
    world.stores[1 - owner].set(Mode::BreaksAfter(6, Some(ServiceErrorCode::InvalidArgument)));
    read(&world, 0, 100).await.unwrap_err();
    // Then the silent one still is one that does not answer.
    world.stores.iter().for_each(|s| s.set(Mode::Well));
    let calls = world.stores[owner].calls();
    assert_eq!(read(&world, 0, 100).await.unwrap(), ten_series());
    assert_eq!(world.stores[owner].calls(), calls);
}

/// The smallest budget with which something can be read.
async fn smallest<T, E>(mut read: impl AsyncFnMut(usize) -> Result<T, E>) -> usize {
    let mut bytes = 0;
    while read(bytes).await.is_err() {
        bytes += 8;
    }
    bytes
}

#[tokio::test(start_paused = true)]
async fn i12_answers_that_are_not_taken_are_not_charged_to_the_query() {
    let world = world(3, StoreReads::default());
    let ask = async |bytes| {
        let budget = Budget::new(bytes, 100);
        let found = world.cluster.labels(&[selection(true)], "i", &budget).await;
        let found = found.map(|found| found.into_parts().0.len());
        assert_eq!(budget.held(), 0);
        found
    };
    let bytes = smallest(ask).await;
    // Given two stores that lag: one answers a part of what is asked of both, and both answer before the rest of it comes.
    world.stores[0].set(Mode::Late(5 * SECOND));
    world.stores[1].set(Mode::Late(6 * SECOND));
    let began = tokio::time::Instant::now();
    assert_eq!(ask(bytes).await.unwrap(), 10);
    assert!(began.elapsed() >= 5 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn i12_streams_that_are_not_taken_are_not_charged_to_the_query() {
    let world = world(3, StoreReads::default());
    let ask = async |bytes| {
        let budget = Budget::new(bytes, 100);
        let mut merge = world.cluster.select(&selection(false), &budget).await?;
        let mut series = 0;
        while let Some(one) = merge.next().await.map_err(source_failed)? {
            drop(one);
            series += 1;
        }
        drop(merge);
        assert_eq!(budget.held(), 0);
        Ok::<_, QueryError>(series)
    };
    let bytes = smallest(ask).await;
    // Given two streams that are silent for longer than one may be, and go on before all others have what comes next.
    let slow = || Mode::Slow(Duration::from_millis(2_900));
    world.stores[0].set(slow());
    world.stores[1].set(slow());
    assert_eq!(ask(bytes).await.unwrap(), 10);
}

#[tokio::test(start_paused = true)]
async fn i12_what_others_answer_in_place_of_one_is_charged_to_the_query() {
    for fault in [Mode::Hangs, Mode::HangsAfter(3)] {
        // How much is held when all was read while one of three stores did not answer.
        let hold = async |bytes| {
            let world = world(3, StoreReads::default());
            world.stores[1].set(fault.clone());
            let budget = Budget::new(bytes, 100);
            let mut merge = world.cluster.select(&selection(false), &budget).await?;
            let mut held = Vec::new();
            while let Some(one) = merge.next().await.map_err(source_failed)? {
                held.push(one);
            }
            drop(merge);
            let bytes = budget.held();
            drop(held);
            assert_eq!(budget.held(), 0);
            Ok::<_, QueryError>(bytes)
        };
        let all = hold(1 << 20).await.unwrap();
        let e = hold(all - 1).await.unwrap_err();
        assert!(e.to_string().contains("query memory limit"), "{fault:?}: {e}");
    }
}
