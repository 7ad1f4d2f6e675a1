//! The log on a disk that fails single operations and lies about failed syncs. Each test was a seed of the simulation.

use std::path::Path;
use std::sync::Arc;

use koios_runtime::{Cpu, DiskHandle, RealClock, RngHandle};
use koios_testkit::sim_disk::{Fault, FaultPlan, SimDisk};

use crate::wal_test::{Collect, ID, append_all, batches, open_on, record, run, settings};
use crate::{DamageKind, Error, Replay, SegmentContent};

const SEEDS: u64 = 40;

fn disk(seed: u64) -> SimDisk {
    SimDisk::new(RngHandle::from_seed(seed))
}

/// A process starts on what is there.
async fn open(disk: &SimDisk) -> (Replay, Vec<SegmentContent>) {
    open_on(DiskHandle::inline(Arc::new(disk.mount()))).await
}

fn damage(contents: &[SegmentContent]) -> Vec<DamageKind> {
    contents.iter().flat_map(|c| &c.damage).map(|d| d.kind).collect()
}

#[tokio::test]
async fn i1_i3_a_group_whose_sync_failed_is_not_taken_for_durable_by_the_next_start() {
    for seed in 0..SEEDS {
        let disk = disk(seed);
        let running = run(open(&disk).await.0).await;
        append_all(&running.wal, 0..3, 100).await;
        // The kernel reports the failure once, keeps the pages, and calls them clean.
        disk.set_faults(FaultPlan::default().with(1, Fault::SyncError));
        assert!(running.wal.append(record(3, 100)).await.is_err());
        assert!(running.ended.await.unwrap().is_err());
        disk.kill();

        let (replay, contents) = open(&disk).await;
        let replayed = batches(&contents);
        let running = run(replay).await;
        append_all(&running.wal, 4..5, 100).await;
        disk.crash();

        // What was replayed was served, so it stays; and nothing that was never durable counts as lost.
        let (_, contents) = open(&disk).await;
        let expected: Vec<u32> = replayed.into_iter().chain([4]).collect();
        assert_eq!(batches(&contents), expected, "seed {seed}");
        assert!(
            damage(&contents).iter().all(|k| *k == DamageKind::Tail),
            "seed {seed}"
        );
    }
}

#[tokio::test]
async fn i11_a_damaged_checkpoint_is_a_loss_although_nothing_follows_it() {
    let disk = disk(1);
    let running = run(open(&disk).await.0).await;
    append_all(&running.wal, 0..3, 100).await;
    disk.kill();
    // A start makes a segment that holds a checkpoint only.
    let (replay, _) = open(&disk).await;
    run(replay).await;
    disk.kill();
    assert!(disk.flip_bit(Path::new("/wal/0000000002.wal"), 64 + 29 + 13, 1));

    let (_, contents) = open(&disk).await;

    assert_eq!(damage(&contents), [DamageKind::Middle]);
    assert_eq!(batches(&contents), [0, 1, 2]);
}

#[tokio::test]
async fn i3_i11_a_group_that_found_no_room_leaves_nothing_that_the_next_start_reads() {
    for seed in 0..SEEDS {
        let disk = disk(seed);
        let running = run(open(&disk).await.0).await;
        append_all(&running.wal, 0..3, 100).await;
        // A file system that cannot reserve: part of the group is written.
        disk.set_faults(FaultPlan::default().with(1, Fault::Full));
        let appends = (10..20).map(|n| running.wal.append(record(n, 200)));
        let refused = futures::future::join_all(appends).await;
        assert!(refused.iter().all(|r| matches!(r, Err(Error::Full { .. }))));
        // A shorter one in the same place.
        append_all(&running.wal, 3..4, 10).await;
        disk.kill();

        let (_, contents) = open(&disk).await;
        assert_eq!(batches(&contents), [0, 1, 2, 3], "seed {seed}");
        assert_eq!(damage(&contents), [], "seed {seed}");
    }
}

#[tokio::test]
async fn segments_whose_removal_was_not_synced_do_not_stop_later_removals() {
    let disk = disk(1);
    let running = run(open(&disk).await.0).await;
    append_all(&running.wal, 0..60, 300).await;
    assert!(running.wal.segments().len() > 4);
    // The first removal is done; that it is durable is not said.
    disk.set_faults(FaultPlan::default().with(2, Fault::SyncError));
    assert!(running.wal.remove_below(3).await.is_err());

    assert_eq!(running.wal.remove_below(4).await.unwrap(), 3);

    disk.crash();
    let (replay, contents) = open(&disk).await;
    assert_eq!(replay.segments().first(), Some(&4));
    assert_eq!(damage(&contents), []);
}

#[tokio::test]
async fn a_first_start_that_is_cut_off_anywhere_leaves_nothing_that_counts_as_lost() {
    for (seed, n) in (0..SEEDS).flat_map(|seed| (1..30).map(move |n| (seed, n))) {
        let disk = disk(seed);
        disk.set_faults(FaultPlan::default().with(n, Fault::PowerLoss));
        let handle = DiskHandle::inline(Arc::new(disk.mount()));
        if let Ok(replay) = Replay::open(handle, settings(), ID).await {
            let clock = Arc::new(RealClock::new());
            let _ = replay
                .start(Arc::new(Collect::default()), Cpu::inline(), clock)
                .await;
        }
        disk.set_faults(FaultPlan::default());
        disk.crash();

        let (replay, contents) = open(&disk).await;

        assert_eq!(replay.missing_end(), None, "seed {seed}, operation {n}");
        assert_eq!(damage(&contents), [], "seed {seed}, operation {n}");
    }
}
