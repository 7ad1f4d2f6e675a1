//! The disk reserve is for the system's records, which free space.

use std::sync::Arc;

use koios_runtime::DiskHandle;

use super::memory_disk::MemoryDisk;
use super::{ID, Running, record, run, settings};
use crate::{Append, Error, Replay, ReserveUse, WalSettings};

const SEGMENT: u64 = 256 << 10;
const RESERVE: u64 = 2 * SEGMENT;

async fn start(disk: &MemoryDisk) -> Running {
    let settings = WalSettings {
        segment_bytes: SEGMENT,
        reserve_bytes: RESERVE,
        ..settings()
    };
    let handle = DiskHandle::inline(Arc::new(disk.clone()));
    let mut replay = Replay::open(handle, settings, ID).await.unwrap();
    for n in replay.segments().to_vec() {
        replay.read(n).await.unwrap();
    }
    run(replay).await
}

fn system(n: u32, size: usize) -> Append<u32> {
    Append {
        tenant: None,
        reserve: ReserveUse::All,
        ..record(n, size)
    }
}

/// A tenant's records, until there is no room for them.
async fn fill(running: &Running) {
    for n in 0.. {
        match running.wal.append(record(n, 10_000)).await {
            Ok(answer) => drop(answer.unwrap()),
            Err(Error::Full { .. }) => return,
            Err(e) => panic!("{e}"),
        }
    }
}

async fn is_full_for_tenants(running: &Running) -> bool {
    let answer = running.wal.append(record(0, 100)).await;
    matches!(answer, Err(Error::Full { .. }))
}

#[tokio::test]
async fn i6_tenants_records_do_not_use_what_the_systems_took_of_the_reserve() {
    let disk = MemoryDisk::default();
    disk.0.lock().room = Some(10 * SEGMENT);
    let running = start(&disk).await;
    fill(&running).await;
    let free = disk.free();
    assert!(free >= RESERVE);
    for n in 0..200 {
        let appends = [system(n, 1000), record(n, 1000), system(n, 100)];
        let answers = futures::future::join_all(appends.map(|a| running.wal.append(a))).await;
        assert!(answers[0].is_ok() && answers[2].is_ok(), "{answers:?}");
        if disk.free() < free {
            assert!(matches!(answers[1], Err(Error::Full { .. })), "{answers:?}");
        }
    }
    assert!(disk.free() < free, "the segment had room for all");
    assert!(
        disk.free() > free - SEGMENT - SEGMENT / 2,
        "{free} {}",
        disk.free()
    );
    // There is room again.
    disk.0.lock().room = Some(20 * SEGMENT);
    assert!(!is_full_for_tenants(&running).await);
}

#[tokio::test]
async fn i6_a_tenants_records_use_the_reserve_where_space_depends_on_them() {
    let disk = MemoryDisk::default();
    disk.0.lock().room = Some(10 * SEGMENT);
    let running = start(&disk).await;
    fill(&running).await;
    let free = disk.free();
    let repairing = |n| Append {
        reserve: ReserveUse::Half,
        ..record(n, 10_000)
    };
    let mut taken = 0;
    let mut refused = 0;
    for n in 0..60 {
        let appends = [repairing(n), record(n, 100), system(n, 100)].map(|a| running.wal.append(a));
        let answers = futures::future::join_all(appends).await;
        match &answers[0] {
            Ok(_) => taken += 1,
            Err(Error::Full { .. }) => refused += 1,
            Err(e) => panic!("{e}"),
        }
        // Whatever is refused beside it.
        assert!(answers[2].is_ok(), "{answers:?}");
    }
    assert!(taken >= 20 && refused >= 20, "{taken} {refused}");
    assert!(disk.free() < free - RESERVE / 4, "half of it is used");
    assert!(disk.free() >= RESERVE / 4, "{}", disk.free());
    // Also in what a start on a full disk makes.
    drop(running);
    let running = start(&disk).await;
    running.wal.append(system(30, 1000)).await.unwrap().unwrap();
    assert!(is_full_for_tenants(&running).await);
}

#[tokio::test]
async fn i6_restarts_do_not_give_the_reserve_to_tenants() {
    let disk = MemoryDisk::default();
    disk.0.lock().room = Some(10 * SEGMENT);
    fill(&start(&disk).await).await;
    for n in 0..10 {
        let running = start(&disk).await;
        running.wal.append(system(n, 1000)).await.unwrap().unwrap();
        assert!(is_full_for_tenants(&running).await);
    }
    assert!(disk.free() >= RESERVE - SEGMENT, "{}", disk.free());
}

#[tokio::test]
async fn what_frees_space_is_logged_where_there_is_no_room_for_a_whole_segment() {
    let disk = MemoryDisk::default();
    let running = start(&disk).await;
    for n in 0..SEGMENT as u32 / 1100 {
        running.wal.append(record(n, 1000)).await.unwrap().unwrap();
    }
    assert_eq!(running.wal.segments(), [1]);
    let used = (1 << 40) - disk.free();
    disk.0.lock().room = Some(used + SEGMENT - 1);
    for n in 0..20 {
        running.wal.append(system(n, 1000)).await.unwrap().unwrap();
    }
    assert!(is_full_for_tenants(&running).await);
    // To the end.
    while running.wal.append(system(2, 1000)).await.is_ok() {}
    assert!(disk.free() < 2000, "{}", disk.free());
}
