//! Claims about how much of a disk the cache takes, and what it leaves to others.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use koios_block::CellStore;
use koios_bucket::{DiskCache, DiskCacheSettings};
use koios_runtime::{CancellationToken, Disk, DiskHandle, TaskGroup, TokioClock};
use koios_testkit::sim_disk::{Fault, FaultPlan};

use super::{CELL, FOLDER, Running, bytes_on, cell, disk, key, settle};

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_a_cache_that_keeps_nothing_for_a_while() {
    let disk = disk(4);
    let running = Running::start(&disk, 16 << 20).await;
    running.put(key(1, 0), &cell(key(1, 0), CELL)).await;
    disk.set_capacity(Some(400 << 10));
    for i in 1..20 {
        running.put(key(1, i), &cell(key(1, i), CELL)).await;
    }
    assert!(running.cache.stats().write_failures > 0);
    let before = running.cache.stats().written_bytes;
    for i in 20..30 {
        running.put(key(1, i), &cell(key(1, i), CELL)).await;
        assert_eq!(running.get(key(1, i)).await, None);
    }
    assert_eq!(running.cache.stats().written_bytes, before);
    disk.set_capacity(None);
    tokio::time::advance(Duration::from_secs(61)).await;
    running.put(key(1, 40), &cell(key(1, 40), CELL)).await;
    assert_eq!(running.get(key(1, 40)).await, Some(cell(key(1, 40), CELL)));
}

#[tokio::test(start_paused = true)]
async fn i9_what_is_kept_is_read_while_the_disk_is_full() {
    let disk = disk(8);
    let running = Running::start(&disk, 16 << 20).await;
    for i in 0..6 {
        running.put(key(1, i), &cell(key(1, i), CELL)).await;
    }
    disk.set_capacity(Some(bytes_on(&disk) as u64));
    running.put(key(1, 6), &cell(key(1, 6), CELL)).await;
    assert!(running.cache.stats().write_failures > 0);
    for i in 0..6 {
        assert_eq!(running.get(key(1, i)).await, Some(cell(key(1, i), CELL)));
    }
}

#[tokio::test(start_paused = true)]
async fn on_a_disk_with_little_room_the_newest_cells_are_kept() {
    let (disk, free_min) = (disk(9), 1 << 20);
    let running = Running::start_beside(&disk, 16 << 20, free_min).await;
    for i in 0..64 {
        running.put(key(1, i), &cell(key(1, i), CELL)).await;
    }
    disk.set_capacity(Some(bytes_on(&disk) as u64 + free_min));
    for i in 64..200 {
        running.put(key(1, i), &cell(key(1, i), CELL)).await;
        assert_eq!(
            running.get(key(1, i)).await,
            Some(cell(key(1, i), CELL)),
            "cell {i}"
        );
    }
    let stats = running.cache.stats();
    assert_eq!(stats.write_failures, 0);
    assert!(stats.cells >= 40, "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn i9_room_that_others_need_is_given_back_without_a_write() {
    let (disk, free_min) = (disk(10), 1 << 20);
    let running = Running::start_beside(&disk, 16 << 20, free_min).await;
    for i in 0..64 {
        running.put(key(1, i), &cell(key(1, i), CELL)).await;
    }
    // Others write: the cache may have so many bytes less.
    for room in [5 << 20, 4 << 20, 3 << 20, 2 << 20] {
        disk.set_capacity(Some(room));
        tokio::time::advance(Duration::from_secs(11)).await;
        settle().await;
        assert!(disk.free_bytes(Path::new(FOLDER)).unwrap() >= free_min);
        assert!(bytes_on(&disk) as u64 + free_min + (1 << 20) >= room, "too much");
        assert_eq!(running.get(key(1, 63)).await, Some(cell(key(1, 63), CELL)));
    }
    disk.set_capacity(Some(1 << 19));
    tokio::time::advance(Duration::from_secs(11)).await;
    settle().await;
    assert_eq!((bytes_on(&disk), running.cache.stats().cells), (0, 0));
    disk.set_capacity(None);
    tokio::time::advance(Duration::from_secs(61)).await;
    running.put(key(1, 5), &cell(key(1, 5), CELL)).await;
    assert_eq!(running.get(key(1, 5)).await, Some(cell(key(1, 5), CELL)));
}

#[tokio::test(start_paused = true)]
async fn i12_a_file_that_cannot_be_removed_still_counts() {
    let disk = disk(11);
    let running = Running::start_beside(&disk, 16 << 20, 1 << 20).await;
    for i in 0..64 {
        running.put(key(1, i), &cell(key(1, i), CELL)).await;
    }
    disk.set_capacity(Some(4 << 20));
    disk.set_faults(FaultPlan::default().with(1, Fault::WriteError));
    tokio::time::advance(Duration::from_secs(6)).await;
    settle().await;
    assert!(!disk.take_struck().is_empty());
    assert_eq!(running.cache.stats().bytes, bytes_on(&disk) as u64);
    assert_eq!(running.get(key(1, 0)).await, Some(cell(key(1, 0), CELL)));
    tokio::time::advance(Duration::from_secs(6)).await;
    settle().await;
    assert_eq!(running.cache.stats().bytes, bytes_on(&disk) as u64);
    assert!(disk.free_bytes(Path::new(FOLDER)).unwrap() >= 1 << 20);
}

#[tokio::test(start_paused = true)]
async fn i12_a_write_that_fails_halfway_is_counted() {
    let disk = disk(12);
    let running = Running::start(&disk, 16 << 20).await;
    running.put(key(1, 0), &cell(key(1, 0), CELL)).await;
    disk.set_faults(FaultPlan::default().with(1, Fault::WriteError));
    running.put(key(1, 1), &cell(key(1, 1), CELL)).await;
    let stats = running.cache.stats();
    assert_eq!((stats.write_failures, stats.cells), (1, 1));
    assert!(stats.bytes >= 2 * CELL as u64, "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn a_tenth_of_a_small_disk_stays_free() {
    let disk = disk(18);
    disk.set_capacity(Some(10 << 20));
    let settings = DiskCacheSettings {
        folder: FOLDER.into(),
        bytes_max: 64 << 20,
        free_min: 1 << 30,
        reserves: Vec::new(),
    };
    let clock = Arc::new(TokioClock::starting_at(0));
    let handle = DiskHandle::inline(Arc::new(disk.mount()));
    let (cache, writer) = DiskCache::new(handle, clock, settings);
    let tasks = TaskGroup::new(CancellationToken::new());
    tasks.spawn_cancelled("writer", writer.run());
    settle().await;
    for i in 0..300 {
        cache.put(key(1, i), cell(key(1, i), CELL));
        settle().await;
    }
    let kept = bytes_on(&disk);
    assert!((5 << 20..=9 << 20).contains(&kept), "{kept} bytes");
    tasks.stop().await;
}

#[tokio::test(start_paused = true)]
async fn i9_cells_go_before_others_fail_for_lack_of_room() {
    let (disk, reserve) = (disk(19), 1 << 20);
    let running = Running::start_beside(&disk, 16 << 20, reserve).await;
    for i in 0..64 {
        running.put(key(1, i), &cell(key(1, i), CELL)).await;
    }
    disk.set_capacity(Some(bytes_on(&disk) as u64 + reserve));
    let free = || disk.free_bytes(Path::new(FOLDER)).unwrap();
    // When a snapshot is to be written, or the log to grow.
    for needed in [1 << 20, 3 << 20, 2 << 20] {
        running.needs.set(needed);
        tokio::time::advance(Duration::from_secs(6)).await;
        settle().await;
        assert!(free() >= reserve + needed, "{} bytes for {needed}", free());
        assert_eq!(running.get(key(1, 63)).await, Some(cell(key(1, 63), CELL)));
    }
    // What comes later takes none of it.
    for i in 64..200 {
        running.put(key(1, i), &cell(key(1, i), CELL)).await;
        assert!(free() >= reserve + (2 << 20), "after {i}: {} bytes", free());
    }
}
