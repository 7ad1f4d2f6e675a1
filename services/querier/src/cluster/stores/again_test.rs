//! Claims about reads for which no store is left that did not fail: stores come back.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use koios_runtime::{Clock as _, TokioClock};
use koios_wire::ServiceErrorCode;

use super::super::cluster_test::{read, ten_series};
use super::super::mock::{MockStore, Mode, World};
use super::super::topology::StoreMember;
use super::StoreReads;
use super::stores_test::world;

const GONE: Mode = Mode::Fails(ServiceErrorCode::Unavailable);

fn all_gone(world: &World) {
    world.stores.iter().for_each(|s| s.set(GONE));
}

fn calls(world: &World) -> u64 {
    world.stores.iter().map(|s| s.calls()).sum()
}

async fn sleep(ms: u64) {
    TokioClock::starting_at(0).sleep(Duration::from_millis(ms)).await;
}

/// How long something takes.
async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let began = tokio::time::Instant::now();
    let found = work.await;
    (found, began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn i7_a_read_outlives_stores_that_are_started_anew() {
    let faults = [GONE, Mode::BreaksAfter(0, None), Mode::BreaksAfter(4, None)];
    for fault in faults {
        for (stores, back) in [(1, 0), (3, 0), (3, 2), (5, 1)] {
            for after in [300, 4_000, 10_000] {
                // What begins again and again, and never gets far, is given up.
                if after > 300 && matches!(fault, Mode::BreaksAfter(4, _)) {
                    continue;
                }
                let world = world(stores, StoreReads::default());
                world.stores.iter().for_each(|s| s.set(fault.clone()));
                let comes_back = async {
                    sleep(after).await;
                    world.stores[back].set(Mode::Well);
                };
                let ((found, took), ()) = futures::join!(timed(read(&world, 0, 100)), comes_back);
                let what = format!("{fault:?}, {back} of {stores} after {after} ms");
                assert_eq!(found.unwrap(), ten_series(), "{what}");
                // It is looked for ever more rarely.
                let limit = Duration::from_millis(2 * after + 4_000);
                assert!(took <= limit, "{what}: {took:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn i7_a_read_outlives_a_restart_of_all_stores_one_after_the_other() {
    let world = world(3, StoreReads::default());
    let slow = || Mode::Slow(Duration::from_secs(1));
    world.stores.iter().for_each(|s| s.set(slow()));
    // Given stores that are stopped in turn, with all that they are sending, and are back before the next one is stopped.
    let restarts = async {
        for store in &world.stores {
            sleep(2_000).await;
            store.set(GONE);
            sleep(1_500).await;
            store.set(slow());
        }
    };
    let (found, ()) = futures::join!(read(&world, 0, 100), restarts);
    assert_eq!(found.unwrap(), ten_series());
}

#[tokio::test(start_paused = true)]
async fn i6_stores_that_are_away_are_not_hammered_by_those_who_wait() {
    let world = world(3, StoreReads::default());
    all_gone(&world);
    let reads = join_all((0..50).map(|_| timed(read(&world, 0, 100))));
    let look = async {
        sleep(500).await;
        calls(&world)
    };
    let (reads, at_first) = futures::join!(reads, look);
    for (found, took) in reads {
        assert_eq!(found.unwrap_err().kind().http_status(), 503);
        assert!(took <= Duration::from_secs(17), "{took:?}");
    }
    // Each store after one, three, seven and fifteen seconds, whoever waits for it.
    let again = calls(&world) - at_first;
    assert!((6..=12).contains(&again), "asked {again} times");
}

#[tokio::test(start_paused = true)]
async fn i6_a_store_that_takes_time_to_refuse_is_asked_by_one_of_those_who_wait() {
    let world = world(3, StoreReads::default());
    let slow = Duration::from_millis(100);
    let refuses = Mode::FailsLate(slow, ServiceErrorCode::Unavailable);
    world.stores.iter().for_each(|s| s.set(refuses.clone()));
    let reads = join_all((0..50).map(|_| timed(read(&world, 0, 100))));
    let look = async {
        sleep(900).await;
        calls(&world)
    };
    let (reads, at_first) = futures::join!(reads, look);
    assert!(reads.iter().all(|(found, _)| found.is_err()));
    let again = calls(&world) - at_first;
    assert!((3..=15).contains(&again), "asked {again} times");
}

#[tokio::test(start_paused = true)]
async fn i9_what_is_away_for_long_is_not_waited_for() {
    let world = world(3, StoreReads::default());
    all_gone(&world);
    for _ in 0..3 {
        sleep(60_000).await;
        read(&world, 0, 100).await.unwrap_err();
    }
    for _ in 0..10 {
        let (found, took) = timed(read(&world, 0, 100)).await;
        let e = found.unwrap_err().to_string();
        assert!(e.contains("no other store is left to ask"), "{e}");
        assert!(took <= Duration::from_millis(100), "{took:?}");
    }
    // Nor is a bucket that is away, nor a block that is damaged.
    for code in [ServiceErrorCode::BucketUnavailable, ServiceErrorCode::Corruption] {
        let world = world_of(code);
        let (found, took) = timed(read(&world, 0, 100)).await;
        found.unwrap_err();
        assert!(took <= Duration::from_millis(100), "{code:?}: {took:?}");
    }
}

fn world_of(code: ServiceErrorCode) -> World {
    let world = world(3, StoreReads::default());
    world.stores.iter().for_each(|s| s.set(Mode::Fails(code)));
    world
}

#[tokio::test(start_paused = true)]
async fn i7_a_store_that_comes_under_another_name_is_asked() {
    let world = world(2, StoreReads::default());
    all_gone(&world);
    let comes = async {
        sleep(2_000).await;
        let store = MockStore::over(&world.blocks);
        *world.topology.stores.lock() = vec![StoreMember {
            name: "store-9".to_owned(),
            client: Arc::<MockStore>::clone(&store),
        }];
        store
    };
    let (found, store) = futures::join!(read(&world, 0, 100), comes);
    assert_eq!(found.unwrap(), ten_series());
    assert!(store.calls() > 0);
}
