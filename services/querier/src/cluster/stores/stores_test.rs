//! Claims about reads of blocks over several stores, some of which fail.

use std::sync::Arc;
use std::time::Duration;

use koios_runtime::TokioClock;
use koios_wire::ServiceErrorCode;

use super::super::Budget;
use super::super::cluster_test::{read, selection, ten_series};
use super::super::mock::{Data, Mode, World};
use super::StoreReads;

const IDS: [&str; 12] = ["A", "B", "C", "D", "E", "F", "G", "H", "I", "J", "K", "L"];

/// Stores, and blocks each with some of the series and some of the times, which heads have forgotten. Must be called where
/// time is paused.
pub(super) fn world(stores: usize, reads: StoreReads) -> World {
    let world = World::with_stores(stores, reads, Arc::new(TokioClock::starting_at(0)));
    for (i, id) in IDS.iter().enumerate() {
        let some = |t: i64| t as usize % IDS.len() == i || t as usize % 5 == i % 5;
        let block: Data = ten_series()
            .into_iter()
            .map(|(labels, samples)| (labels, samples.into_iter().filter(|(t, _)| some(*t)).collect()))
            .collect();
        world.upload(id, block);
    }
    world
        .members
        .iter()
        .for_each(|m| m.forget_below(1000, IDS.len() as u64));
    world
}

/// The blocks that each store was asked for since the last time, sorted.
pub(super) fn asked(world: &World) -> Vec<Vec<String>> {
    let of_store = |asked: Vec<Vec<String>>| {
        let mut all: Vec<String> = asked.into_iter().flatten().collect();
        all.sort();
        all
    };
    world.stores.iter().map(|s| of_store(s.take_asked())).collect()
}

#[tokio::test(start_paused = true)]
async fn i2_any_number_of_stores_gives_the_same_answer_and_reads_each_block_once() {
    for stores in [1, 2, 3, 7] {
        let world = world(stores, StoreReads::default());
        assert_eq!(read(&world, 0, 100).await.unwrap(), ten_series());
        let first = asked(&world);
        let mut all: Vec<_> = first.iter().flatten().cloned().collect();
        all.sort();
        assert_eq!(all, IDS, "{stores} stores");
        // And the same ones again, whose caches are warm.
        assert_eq!(read(&world, 0, 100).await.unwrap(), ten_series());
        assert_eq!(asked(&world), first);
    }
}

#[tokio::test(start_paused = true)]
async fn i4_stores_that_fail_at_any_moment_cost_neither_a_sample_nor_an_error() {
    let faults = [
        Mode::Fails(ServiceErrorCode::Unavailable),
        Mode::Fails(ServiceErrorCode::DeadlineExceeded),
        Mode::Fails(ServiceErrorCode::Behind),
        Mode::Hangs,
        Mode::HangsAfter(0),
        Mode::HangsAfter(4),
        Mode::BreaksAfter(0, None),
        Mode::BreaksAfter(9, None),
        Mode::BreaksAfter(5, Some(ServiceErrorCode::Corruption)),
    ];
    for first in &faults {
        for second in &faults {
            let world = world(4, StoreReads::default());
            world.stores[1].set(first.clone());
            world.stores[3].set(second.clone());
            for round in 0..3 {
                let found = read(&world, 0, 100).await.unwrap();
                assert_eq!(found, ten_series(), "{first:?}, {second:?}, round {round}");
            }
            let names = world
                .cluster
                .labels(&[selection(true)], "i", &Budget::new(1 << 20, 100))
                .await;
            assert_eq!(names.unwrap().into_parts().0.len(), 10);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn blocks_of_a_store_that_died_go_to_their_next_owners_and_come_back() {
    let world = world(4, StoreReads::default());
    read(&world, 0, 100).await.unwrap();
    let before = asked(&world);
    world.stores[2].set(Mode::Fails(ServiceErrorCode::Unavailable));
    read(&world, 0, 100).await.unwrap();
    asked(&world);
    // It is not asked while it is known to be dead, and the others have kept theirs.
    let calls = world.stores[2].calls();
    read(&world, 0, 100).await.unwrap();
    assert_eq!(world.stores[2].calls(), calls);
    let after = asked(&world);
    for i in [0, 1, 3] {
        assert!(before[i].iter().all(|b| after[i].contains(b)), "store {i}");
    }
    // It has nothing to do until it is tried again.
    world.stores[2].set(Mode::Well);
    tokio::time::advance(Duration::from_secs(2)).await;
    read(&world, 0, 100).await.unwrap();
    assert_eq!(asked(&world), before);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_lags_is_not_waited_for() {
    for fault in [Mode::Hangs, Mode::HangsAfter(0)] {
        let world = world(3, StoreReads::default());
        world.stores[0].set(fault);
        let began = tokio::time::Instant::now();
        assert_eq!(read(&world, 0, 100).await.unwrap(), ten_series());
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    }
    // Unless blocks have one owner only: then it is given up first.
    let alone = StoreReads {
        replication: 1,
        ..StoreReads::default()
    };
    let world = world(3, alone);
    world.stores[0].set(Mode::Hangs);
    let began = tokio::time::Instant::now();
    assert_eq!(read(&world, 0, 100).await.unwrap(), ten_series());
    assert!(
        began.elapsed() >= Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn i4_what_no_store_can_read_fails_the_read_and_names_all_that_were_asked() {
    let faults = [
        (Mode::Fails(ServiceErrorCode::Unavailable), "injected"),
        (Mode::Hangs, "no answer"),
        (Mode::HangsAfter(9), "no answer"),
        (Mode::BreaksAfter(9, None), "broke off"),
    ];
    for (fault, text) in faults {
        let world = world(3, StoreReads::default());
        world.stores.iter().for_each(|s| s.set(fault.clone()));
        let e = read(&world, 0, 100).await.unwrap_err();
        assert_eq!(e.kind().http_status(), 503, "{e}");
        let e = e.to_string();
        for name in ["store-0: ", "store-1: ", "store-2: ", "cannot be read", text] {
            assert!(e.contains(name), "{fault:?}: {e}");
        }
    }
    let world = world(0, StoreReads::default());
    let e = read(&world, 0, 100).await.unwrap_err();
    assert_eq!(
        e.to_string(),
        "12 blocks cannot be read: no store member is known"
    );
}

#[tokio::test(start_paused = true)]
async fn i10_a_block_that_is_gone_fails_the_read_whatever_others_say() {
    let world = world(3, StoreReads::default());
    world.blocks.lock().remove("E");
    let e = read(&world, 0, 100).await.unwrap_err();
    assert!(e.to_string().contains("block E is gone"), "{e}");
}

#[tokio::test(start_paused = true)]
async fn i7_a_store_that_vanishes_silently_makes_no_read_wait_longer_than_for_a_hedge() {
    let reads = StoreReads::default();
    let world = world(3, reads);
    world.stores[0].set(Mode::Hangs);
    let mut after_first = 0;
    for round in 0..60 {
        let timed = (0..50).map(|_| async {
            let began = tokio::time::Instant::now();
            assert_eq!(read(&world, 0, 100).await.unwrap(), ten_series());
            began.elapsed()
        });
        let took = futures::future::join_all(timed).await;
        let limit = reads.hedge_max + 2 * reads.hedge_min;
        let late = took.iter().filter(|took| **took > limit).count();
        assert_eq!(late, 0, "round {round}: of {took:?}");
        if round == 0 {
            after_first = world.stores[0].calls();
        }
        tokio::time::advance(Duration::from_secs(2)).await;
    }
    // Once it is known to be gone one read at a time looks whether it is back, ever more rarely.
    let looked = world.stores[0].calls() - after_first;
    assert!((1..=16).contains(&looked), "asked {looked} times");
}

/// How often the stores were asked in a read that fails.
async fn asked_in_vain(world: &World) -> u64 {
    let calls = || world.stores.iter().map(|s| s.calls()).sum::<u64>();
    let before = calls();
    let e = read(world, 0, 100).await.unwrap_err();
    assert_eq!(e.kind().http_status(), 503, "{e}");
    calls() - before
}

#[tokio::test(start_paused = true)]
async fn i6_what_no_store_can_read_is_not_asked_for_without_end() {
    let world = world(5, StoreReads::default());
    // All at the same time, so that no failure cuts another read short.
    let fails = |code| Mode::FailsLate(Duration::from_millis(10), code);
    let set = |code| world.stores.iter().for_each(|s| s.set(fails(code)));
    // Five shares, each asked for once more when the bucket is what fails: no other store reads another one.
    set(ServiceErrorCode::BucketUnavailable);
    for _ in 0..3 {
        let asked = asked_in_vain(&world).await;
        assert!(asked <= 10, "{asked}");
    }
    // Else shares are split once, and asked for three times in all; and at first each store is looked at again four times.
    set(ServiceErrorCode::Unavailable);
    for again in [4 * 5, 0, 0] {
        let asked = asked_in_vain(&world).await;
        assert!(asked <= 5 + 20 + 20 + again, "{asked}");
    }
}

#[tokio::test(start_paused = true)]
async fn i4_a_store_that_cannot_reach_the_bucket_costs_no_query_and_is_not_taken_for_dead() {
    let world = world(3, StoreReads::default());
    world.stores[1].set(Mode::Fails(ServiceErrorCode::BucketUnavailable));
    for _ in 0..3 {
        let before = world.stores[1].calls();
        assert_eq!(read(&world, 0, 100).await.unwrap(), ten_series());
        assert!(world.stores[1].calls() > before);
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_counts_where_the_store_asked_beside_refuses() {
    for code in [ServiceErrorCode::InvalidArgument, ServiceErrorCode::NotFound] {
        let world = World::with_stores(2, StoreReads::default(), Arc::new(TokioClock::starting_at(0)));
        world.upload("A", ten_series());
        world.members.iter().for_each(|m| m.forget_below(1000, 1));
        assert_eq!(read(&world, 0, 100).await.unwrap(), ten_series());
        let owner = asked(&world).iter().position(|of| !of.is_empty()).unwrap();
        world.stores[owner].set(Mode::Late(Duration::from_secs(5)));
        world.stores[1 - owner].set(Mode::Fails(code));
        assert_eq!(read(&world, 0, 100).await.unwrap(), ten_series());
    }
}

#[tokio::test(start_paused = true)]
async fn i2_a_stream_that_falls_silent_is_read_on_elsewhere_without_a_gap_and_without_a_double() {
    for after in 1..10 {
        for silent in [vec![0], vec![1], vec![0, 2]] {
            let world = world(4, StoreReads::default());
            silent
                .iter()
                .for_each(|i| world.stores[*i].set(Mode::HangsAfter(after)));
            let began = tokio::time::Instant::now();
            assert_eq!(read(&world, 0, 100).await.unwrap(), ten_series());
            let limit = StoreReads::default().silence_min * 2 * u32::try_from(silent.len()).unwrap();
            assert!(
                began.elapsed() < limit,
                "{silent:?} after {after}: {:?}",
                began.elapsed()
            );
            // What fell silent is passed over, if it answered nothing else meanwhile.
            if silent.len() > 1 {
                continue;
            }
            let calls = world.stores[silent[0]].calls();
            read(&world, 0, 100).await.unwrap();
            assert_eq!(world.stores[silent[0]].calls(), calls);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_nobody_reads_is_not_silent() {
    let world = world(3, StoreReads::default());
    let each = Duration::from_millis(1500);
    world.stores.iter().for_each(|s| s.set(Mode::Slow(each)));
    let budget = Budget::new(1 << 20, 100);
    let mut merge = world.cluster.select(&selection(false), &budget).await.unwrap();
    let calls = || world.stores.iter().map(|s| s.calls()).sum::<u64>();
    let asked = calls();
    let mut series = 0;
    while merge.next().await.unwrap().is_some() {
        series += 1;
        // Whoever evaluates takes its time.
        tokio::time::advance(Duration::from_secs(20)).await;
    }
    assert_eq!((series, calls()), (10, asked));
}

#[tokio::test(start_paused = true)]
async fn i4_stores_that_are_all_slow_fail_no_read() {
    let world = world(3, StoreReads::default());
    world
        .stores
        .iter()
        .for_each(|s| s.set(Mode::Slow(Duration::from_secs(6))));
    let began = tokio::time::Instant::now();
    for _ in 0..5 {
        assert_eq!(read(&world, 0, 100).await.unwrap(), ten_series());
    }
    // As long as their streams take, and no longer.
    assert!(
        began.elapsed() <= Duration::from_secs(5 * 66),
        "{:?}",
        began.elapsed()
    );
    // Few of the reads were asked for twice.
    let calls: u64 = world.stores.iter().map(|s| s.calls()).sum();
    assert!(calls <= 5 * 3 + 30, "{calls} calls");
}

#[tokio::test(start_paused = true)]
async fn i7_any_stores_may_die_at_one_moment_as_long_as_one_is_left() {
    let faults = [
        Mode::BreaksAfter(4, None),
        Mode::Fails(ServiceErrorCode::Unavailable),
        Mode::BreaksAfter(6, Some(ServiceErrorCode::BucketUnavailable)),
        Mode::Fails(ServiceErrorCode::Unimplemented),
    ];
    for fault in faults {
        for left in 0..6 {
            let world = world(6, StoreReads::default());
            let others = world.stores.iter().enumerate().filter(|(i, _)| *i != left);
            others.for_each(|(_, s)| s.set(fault.clone()));
            assert_eq!(
                read(&world, 0, 100).await.unwrap(),
                ten_series(),
                "{fault:?}, {left} is left"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn i13_a_read_that_no_store_can_do_says_that_none_is_left() {
    let world = world(5, StoreReads::default());
    world
        .stores
        .iter()
        .for_each(|s| s.set(Mode::BreaksAfter(4, None)));
    let e = read(&world, 0, 100).await.unwrap_err();
    assert_eq!(e.kind().http_status(), 503, "{e}");
    let text = e.to_string();
    assert!(text.starts_with("unavailable: "), "{text}");
    assert!(text.ends_with("no other store is left to ask"), "{text}");
}
