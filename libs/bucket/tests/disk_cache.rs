//! Claims about the cache on disk: it may lose anything, it never gives out anything else than was put.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::{Fault as StoreFault, Faulty, block, bucket_over, entry, id, tenant};
use futures::future::{BoxFuture, join_all};
use koios_block::{BlockCache, BlockReader, CellKey, CellStore};
use koios_bucket::{Blocks, DiskCache, DiskCacheSettings, DiskReserve, RetryPolicy};
use koios_model::{Labels, Matchers, TimeRange};
use koios_runtime::{
    CancellationToken, ClockHandle, Disk, DiskHandle, Pace, RngHandle, TaskGroup, TokioClock,
};
use koios_testkit::sim_disk::{Fault, FaultPlan, SimDisk};
use object_store::memory::InMemory;
use parking_lot::Mutex;
use tokio::sync::watch;

const FOLDER: &str = "/cache";
const CELL: usize = 64 << 10;

/// A cache with its writer.
struct Running {
    cache: DiskCache,
    tasks: TaskGroup,
}

impl Running {
    async fn start(disk: &SimDisk, bytes_max: u64) -> Self {
        Self::start_beside(disk, bytes_max, 0).await
    }

    /// Beside another that needs so many bytes free.
    async fn start_beside(disk: &SimDisk, bytes_max: u64, reserve: u64) -> Self {
        let handle = DiskHandle::inline(Arc::new(disk.mount()));
        Self::start_with(handle, bytes_max, reserve).await
    }

    async fn start_with(disk: DiskHandle, bytes_max: u64, reserve: u64) -> Self {
        let settings = DiskCacheSettings {
            folder: FOLDER.into(),
            bytes_max,
            free_min: 0,
            reserves: vec![DiskReserve {
                folder: "/wal".into(),
                bytes: reserve,
            }],
        };
        let clock = Arc::new(TokioClock::starting_at(0));
        let (cache, writer) = DiskCache::new(disk, clock, settings);
        let tasks = TaskGroup::new(CancellationToken::new());
        tasks.spawn_cancelled("writer", writer.run());
        settle().await;
        Self { cache, tasks }
    }

    async fn stop(self) {
        self.tasks.stop().await;
    }

    async fn put(&self, key: CellKey, bytes: &Bytes) {
        self.cache.put(key, bytes.clone());
        settle().await;
    }

    async fn get(&self, key: CellKey) -> Option<Bytes> {
        self.cache.get(&[key]).await.pop().unwrap()
    }
}

/// Lets the writer do all that it can.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

fn disk(seed: u64) -> SimDisk {
    SimDisk::new(RngHandle::from_seed(seed))
}

fn key(n: u64, cell: u32) -> CellKey {
    CellKey {
        block: id(n),
        part: 1,
        cell,
    }
}

/// Bytes that say which cell they are.
fn cell(key: CellKey, bytes: usize) -> Bytes {
    let mut text = format!("{key:?} ").into_bytes();
    text.resize(bytes, b'.');
    text.into()
}

fn bytes_on(disk: &SimDisk) -> usize {
    let files = disk.files_under(Path::new(FOLDER));
    files.iter().map(|(_, bytes)| bytes).sum()
}

#[tokio::test(start_paused = true)]
async fn what_was_put_is_there_also_after_a_restart() {
    let disk = disk(1);
    let keys: Vec<_> = (0..20).map(|i| key(7, i)).collect();
    let mut running = Running::start(&disk, 16 << 20).await;
    for key in &keys {
        running.put(*key, &cell(*key, CELL)).await;
    }
    for _ in 0..3 {
        for key in &keys {
            assert_eq!(running.get(*key).await, Some(cell(*key, CELL)));
        }
        let stats = running.cache.stats();
        assert_eq!((stats.cells, stats.misses, stats.damaged), (20, 0, 0));
        running.stop().await;
        running = Running::start(&disk, 16 << 20).await;
    }
    // A smaller one keeps the newest.
    running.stop().await;
    let running = Running::start(&disk, 1 << 20).await;
    assert!(running.cache.stats().bytes <= 1 << 20);
    assert_eq!(running.get(keys[19]).await, Some(cell(keys[19], CELL)));
    assert_eq!(running.get(keys[0]).await, None);
}

#[tokio::test(start_paused = true)]
async fn i12_the_files_never_take_more_than_they_may() {
    let (disk, bytes_max) = (disk(2), 2 << 20);
    let running = Running::start(&disk, bytes_max).await;
    for i in 0..300 {
        let bytes = [CELL, 10, 1 << 17, 3 << 20, 0][i as usize % 5];
        running.put(key(1, i), &cell(key(1, i), bytes)).await;
        assert!(bytes_on(&disk) as u64 <= bytes_max, "after {i}");
        assert!(running.cache.stats().bytes <= bytes_max, "after {i}");
    }
    let stats = running.cache.stats();
    assert!(stats.evicted > 50 && stats.cells > 20, "{stats:?}");
    assert_eq!(running.get(key(1, 296)).await, Some(cell(key(1, 296), 10)));
    assert_eq!(running.get(key(1, 0)).await, None);
    // Too long to be kept.
    assert_eq!(running.get(key(1, 298)).await, None);
}

#[tokio::test(start_paused = true)]
async fn i11_a_damaged_cell_is_a_miss_and_is_replaced() {
    let disk = disk(3);
    let running = Running::start(&disk, 16 << 20).await;
    for i in 0..10 {
        running.put(key(1, i), &cell(key(1, i), CELL)).await;
    }
    for (path, bytes) in disk.files_under(Path::new(FOLDER)) {
        if bytes > 0 {
            assert!(disk.flip_bit(&path, 1000, 3));
        }
    }
    let mut damaged = 0;
    for i in 0..10 {
        match running.get(key(1, i)).await {
            Some(bytes) => assert_eq!(bytes, cell(key(1, i), CELL)),
            None => {
                damaged += 1;
                assert_eq!(running.get(key(1, i)).await, None);
                running.put(key(1, i), &cell(key(1, i), CELL)).await;
                assert_eq!(running.get(key(1, i)).await, Some(cell(key(1, i), CELL)));
            }
        }
    }
    assert!(damaged > 0);
    assert_eq!(running.cache.stats().damaged, damaged);
}

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
async fn what_one_fetch_brings_is_kept_whole() {
    let disk = disk(13);
    let running = Running::start(&disk, 64 << 20).await;
    let bytes = cell(key(1, 0), CELL);
    for i in 0..512 {
        running.cache.put(key(1, i), bytes.clone());
    }
    for _ in 0..10 {
        settle().await;
    }
    let stats = running.cache.stats();
    assert_eq!((stats.cells, stats.dropped), (512, 0));
    // What waits is bounded.
    for i in 0..1100 {
        running.cache.put(key(2, i), bytes.clone());
    }
    assert_eq!(running.cache.stats().dropped, 1100 - 1024);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_cannot_be_opened_is_tried_again() {
    let disk = disk(14);
    let running = Running::start(&disk, 16 << 20).await;
    for i in 0..20 {
        running.put(key(1, i), &cell(key(1, i), CELL)).await;
    }
    running.stop().await;
    let before = bytes_on(&disk);
    // The first file: before it are the folder, the lock and the list.
    disk.set_faults(FaultPlan::default().with(4, Fault::ReadError));
    let running = Running::start(&disk, 16 << 20).await;
    assert!(!disk.take_struck().is_empty());
    assert_eq!((bytes_on(&disk), running.cache.stats().cells), (before, 0));
    tokio::time::advance(Duration::from_secs(61)).await;
    settle().await;
    assert_eq!(running.cache.stats().cells, 20);
}

#[tokio::test(start_paused = true)]
async fn a_cell_that_cannot_be_read_costs_no_other_and_a_disk_that_cannot_be_read_is_left_alone() {
    let disk = disk(5);
    let running = Running::start(&disk, 16 << 20).await;
    let all: Vec<_> = (0..9).map(|i| key(1, i)).collect();
    for key in &all {
        running.put(*key, &cell(*key, CELL)).await;
    }
    // One bad place on a disk: that cell is forgotten.
    disk.set_faults(FaultPlan::default().with(1, Fault::ReadError));
    let found = running.cache.get(&all).await;
    assert_eq!(found.iter().flatten().count(), 8);
    assert_eq!(running.cache.get(&all).await.iter().flatten().count(), 8);
    // Nothing can be read, again and again.
    let lasting = (1..=3).fold(FaultPlan::default(), |plan, n| plan.with(n, Fault::ReadError));
    disk.set_faults(lasting);
    for key in &all[1..4] {
        assert_eq!(running.get(*key).await, None);
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    let stats = running.cache.stats();
    assert!(stats.is_resting, "{stats:?}");
    assert_eq!(running.get(all[4]).await, None);
    assert_eq!(running.cache.stats().not_read_resting, 1);
    // It can again.
    tokio::time::advance(Duration::from_secs(6)).await;
    let found = running.cache.get(&all[4..]).await;
    assert_eq!(found.iter().flatten().count(), 5);
    assert!(!running.cache.stats().is_resting);
}

/// A device that does one thing at a time, or nothing at all.
#[derive(Debug)]
struct Device {
    clock: ClockHandle,
    each: Duration,
    free_at: Mutex<Duration>,
    stuck: watch::Sender<bool>,
}

impl Device {
    fn new(each: Duration) -> Arc<Self> {
        Arc::new(Self {
            clock: Arc::new(TokioClock::starting_at(0)),
            each,
            free_at: Mutex::default(),
            stuck: watch::Sender::new(false),
        })
    }
}

impl Pace for Device {
    fn pause(&self) -> BoxFuture<'static, ()> {
        let (now, mut free_at) = (self.clock.elapsed(), self.free_at.lock());
        *free_at = now.max(*free_at) + self.each;
        let (wait, mut stuck) = (self.clock.sleep(*free_at - now), self.stuck.subscribe());
        Box::pin(async move {
            wait.await;
            stuck.wait_for(|is_stuck| !is_stuck).await.unwrap();
        })
    }
}

/// A cache of some cells on a device.
async fn on_device(device: &Arc<Device>, keys: &[CellKey]) -> Running {
    let handle = DiskHandle::paced(Arc::new(disk(15).mount()), Arc::<Device>::clone(device));
    let running = Running::start_with(handle, 64 << 20, 0).await;
    device.clock.sleep(Duration::from_secs(1)).await;
    for key in keys {
        running.cache.put(*key, cell(*key, CELL));
    }
    for _ in 0..100 {
        device.clock.sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(running.cache.stats().cells, keys.len() as u64);
    running
}

/// What a read finds, and how long it takes.
async fn timed(running: &Running, keys: &[CellKey]) -> (usize, Duration) {
    let began = tokio::time::Instant::now();
    let found = running.cache.get(keys).await;
    (found.iter().flatten().count(), began.elapsed())
}

/// Longest wait for the disk.
const WAIT_MAX: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_busy_disk_is_not_taken_for_a_dead_one_and_no_read_waits_for_it_for_long() {
    let device = Device::new(Duration::from_millis(20));
    let keys: Vec<_> = (0..200).map(|i| key(1, i)).collect();
    let running = on_device(&device, &keys).await;
    for round in 0..3 {
        let reads = keys.iter().map(|key| timed(&running, std::slice::from_ref(key)));
        let reads = join_all(reads).await;
        let found: usize = reads.iter().map(|(found, _)| found).sum();
        let longest = reads.iter().map(|(_, took)| *took).max().unwrap();
        assert!(longest <= WAIT_MAX, "round {round}: {longest:?}");
        let stats = running.cache.stats();
        assert!(found >= 10 && !stats.is_resting, "round {round}: {stats:?}");
        assert_eq!(stats.read_failures, 0);
        assert!(stats.not_read_busy > 0, "{stats:?}");
        // What comes next is read.
        device.clock.sleep(Duration::from_secs(20)).await;
        assert_eq!(timed(&running, &keys[..1]).await.0, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_much_is_read_as_far_as_there_is_time() {
    // 512 cells are eight times 4 MiB.
    let device = Device::new(Duration::from_millis(80));
    let keys: Vec<_> = (0..512).map(|i| key(1, i)).collect();
    let running = on_device(&device, &keys).await;
    let (found, took) = timed(&running, &keys).await;
    assert!(took <= WAIT_MAX, "{took:?}");
    assert!((100..512).contains(&found), "{found} cells");
    assert!(!running.cache.stats().is_resting);
    // Others are let in between.
    device.clock.sleep(Duration::from_secs(100)).await;
    let long = timed(&running, &keys);
    let short = async {
        device.clock.sleep(Duration::from_millis(1)).await;
        timed(&running, &keys[..1]).await
    };
    let (_, (found, _)) = futures::join!(long, short);
    assert_eq!(found, 1);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_stuck_is_left_alone_and_comes_back_by_itself() {
    let device = Device::new(Duration::ZERO);
    let keys: Vec<_> = (0..40).map(|i| key(1, i)).collect();
    let running = on_device(&device, &keys).await;
    // For a moment: nothing is made of it.
    device.stuck.send_replace(true);
    let reads = keys.iter().map(|key| timed(&running, std::slice::from_ref(key)));
    for (found, took) in join_all(reads).await {
        assert!(found == 0 && took <= WAIT_MAX, "{took:?}");
    }
    device.stuck.send_replace(false);
    assert_eq!(timed(&running, &keys).await.0, 40);
    // For good: each read costs a second at most, until it is known.
    device.stuck.send_replace(true);
    let mut waited = Duration::ZERO;
    for _ in 0..20 {
        let (found, took) = timed(&running, &keys).await;
        assert_eq!(found, 0);
        waited += took;
    }
    assert!(running.cache.stats().is_resting);
    assert!(waited <= 3 * WAIT_MAX, "{waited:?}");
    // It is looked at now and then, however many readers are stuck.
    for _ in 0..60 {
        device.clock.sleep(Duration::from_secs(10)).await;
        waited += timed(&running, &keys).await.1;
    }
    assert!(waited <= 20 * WAIT_MAX, "{waited:?}");
    device.stuck.send_replace(false);
    device.clock.sleep(Duration::from_secs(61)).await;
    let (found, _) = timed(&running, &keys[..1]).await;
    assert_eq!((found, timed(&running, &keys).await.0), (1, 40));
}

#[tokio::test(start_paused = true)]
async fn i6_cells_that_are_read_again_stay_however_much_is_read_once() {
    let disk = disk(16);
    let mut running = Running::start(&disk, 4 << 20).await;
    let dashboard: Vec<_> = (0..16).map(|i| key(1, i)).collect();
    for key in &dashboard {
        running.put(*key, &cell(*key, CELL)).await;
        assert_eq!(running.get(*key).await, Some(cell(*key, CELL)));
        settle().await;
    }
    // Another tenant reads five times as much as the cache holds, once; the process starts again meanwhile.
    for i in 0..320 {
        if i == 160 {
            running.stop().await;
            running = Running::start(&disk, 4 << 20).await;
        }
        running.put(key(2, i), &cell(key(2, i), CELL)).await;
        assert!(bytes_on(&disk) <= 4 << 20, "after {i}");
    }
    let found = running.cache.get(&dashboard).await;
    assert_eq!(found.iter().flatten().count(), 16);
    assert!(running.get(key(2, 319)).await.is_some());
    // What nobody reads any more goes when others are read again.
    for i in 0..160 {
        running.put(key(3, i), &cell(key(3, i), CELL)).await;
        running.get(key(3, i)).await;
        settle().await;
        assert!(bytes_on(&disk) <= 4 << 20, "after {i}");
    }
    let found = running.cache.get(&dashboard).await;
    assert_eq!(found.iter().flatten().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_read_all_the_time_is_not_written_all_the_time() {
    let disk = disk(17);
    let running = Running::start(&disk, 4 << 20).await;
    let keys: Vec<_> = (0..40).map(|i| key(1, i)).collect();
    for key in &keys {
        running.put(*key, &cell(*key, CELL)).await;
    }
    for _ in 0..50 {
        assert_eq!(running.cache.get(&keys).await.iter().flatten().count(), 40);
        settle().await;
    }
    let stats = running.cache.stats();
    assert_eq!(stats.kept_again, 40, "{stats:?}");
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
async fn dead_blocks_make_room_and_a_second_process_is_kept_out() {
    let disk = disk(6);
    let running = Running::start(&disk, 16 << 20).await;
    for n in 1..=4 {
        for i in 0..16 {
            running.put(key(n, i), &cell(key(n, i), CELL)).await;
        }
    }
    let before = bytes_on(&disk);
    for n in 1..=3 {
        running.cache.forget_block(id(n));
    }
    assert_eq!(running.get(key(2, 5)).await, None);
    assert_eq!(running.get(key(4, 5)).await, Some(cell(key(4, 5), CELL)));
    running.put(key(5, 0), &cell(key(5, 0), CELL)).await;
    assert!(
        bytes_on(&disk) < before / 2,
        "{} of {before} bytes",
        bytes_on(&disk)
    );
    let second = Running::start(&disk, 16 << 20).await;
    assert_eq!(second.cache.stats().cells, 0);
    second.put(key(9, 0), &cell(key(9, 0), CELL)).await;
    assert_eq!(second.get(key(9, 0)).await, None);
    assert_eq!(running.get(key(4, 5)).await, Some(cell(key(4, 5), CELL)));
    // Until the first one is gone.
    running.stop().await;
    tokio::time::advance(Duration::from_secs(61)).await;
    settle().await;
    assert_eq!(second.get(key(4, 5)).await, Some(cell(key(4, 5), CELL)));
}

/// Whatever happens, what is found is what was put.
#[tokio::test(start_paused = true)]
async fn i3_no_crash_and_no_damage_makes_it_give_out_other_bytes() {
    for seed in 0..40 {
        let (disk, rng) = (disk(seed), RngHandle::from_seed(seed));
        let mut put = BTreeMap::new();
        let mut running = Running::start(&disk, 2 << 20).await;
        for _ in 0..150 {
            let key = key(rng.below(3), u32::try_from(rng.below(30)).unwrap());
            match rng.below(20) {
                0 => {
                    running.stop().await;
                    disk.crash();
                    running = Running::start(&disk, 2 << 20).await;
                }
                1 => {
                    running.stop().await;
                    running = Running::start(&disk, 2 << 20).await;
                }
                2 => {
                    let files = disk.files_under(Path::new(FOLDER));
                    let written: Vec<_> = files.iter().filter(|(_, bytes)| *bytes > 0).collect();
                    if let Some((path, bytes)) = written.get(key.cell as usize % written.len().max(1)) {
                        let at = usize::try_from(rng.below(*bytes as u64)).unwrap();
                        disk.flip_bit(path, at, 5);
                    }
                }
                3 => running.cache.forget(key),
                4 => running.cache.forget_block(key.block),
                5..12 => {
                    let bytes = cell(key, 1000 + 2000 * key.cell as usize);
                    running.put(key, &bytes).await;
                    put.insert(key, bytes);
                }
                _ => {
                    if let Some(found) = running.get(key).await {
                        assert_eq!(Some(&found), put.get(&key), "seed {seed}");
                    }
                }
            }
        }
        running.stop().await;
    }
}

async fn read(
    blocks: &Blocks,
    parts: &koios_block::BlockParts,
) -> koios_bucket::Result<Vec<(Labels, Vec<f64>)>> {
    let block: BlockReader = blocks.open(&tenant(), &entry(&parts.meta)).await?;
    let series = block.select(&Matchers::default(), TimeRange::ALL).await?;
    let samples = block.read_samples(&series, TimeRange::ALL).await?;
    let all = series.into_iter().zip(samples);
    Ok(all
        .map(|(series, samples)| (series.labels, samples.values))
        .collect())
}

#[tokio::test(start_paused = true)]
async fn a_block_that_was_read_can_be_read_without_the_bucket() {
    let (disk, parts) = (disk(7), block(1, 3000));
    let objects = Arc::new(InMemory::new());
    let store = Faulty::over(&objects, StoreFault::None);
    // It is known to be away: nothing is gained by asking it for long.
    let bucket = bucket_over(Arc::<Faulty>::clone(&store), 1).with_retry(RetryPolicy {
        attempt_timeout: Duration::from_secs(2),
        deadline: Duration::from_secs(2),
        backoff_min: Duration::from_millis(1),
        backoff_max: Duration::from_millis(2),
    });
    bucket.upload_block(&tenant(), &parts).await.unwrap();
    let blocks = |cache: &DiskCache| {
        let memory = BlockCache::new(64 << 20, 1 << 20).with_cell_store(Arc::new(cache.clone()));
        Blocks::new(bucket.clone(), Arc::new(memory), 1 << 20)
    };
    let running = Running::start(&disk, 16 << 20).await;
    let expected = read(&blocks(&running.cache), &parts).await.unwrap();
    assert_eq!(expected.len(), 3000);
    settle().await;
    running.stop().await;
    // When the process starts again, and the bucket is away.
    store.go_down();
    let running = Running::start(&disk, 16 << 20).await;
    assert_eq!(read(&blocks(&running.cache), &parts).await.unwrap(), expected);
    assert_eq!(running.cache.stats().misses, 0);
    // Damage is what only the bucket can mend.
    for (path, bytes) in disk.files_under(Path::new(FOLDER)) {
        for at in (0..bytes).step_by(1000) {
            disk.flip_bit(&path, at, 0);
        }
    }
    assert!(read(&blocks(&running.cache), &parts).await.is_err());
}
