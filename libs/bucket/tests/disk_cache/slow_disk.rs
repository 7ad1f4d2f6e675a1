//! Claims about disks that are slow, stuck or broken: what they do not give in time is read from the bucket.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use koios_block::{CellKey, CellStore};
use koios_runtime::{ClockHandle, DiskHandle, Pace, TokioClock};
use koios_testkit::sim_disk::{Fault, FaultPlan};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{CELL, Running, cell, disk, key};

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

/// Fetches cells that are not kept from a bucket that takes so long.
async fn fetch(running: &Running, device: &Device, took: Duration) {
    for i in 0..64 {
        let key = key(2, i);
        assert!(running.get(key).await.is_none());
        device.clock.sleep(took).await;
        // One that will be evicted soon: what is put of it does not matter.
        running.cache.put(key, cell(key, 1));
        running.cache.forget(key);
    }
    // Until the writer is done with them.
    device.clock.sleep(Duration::from_secs(200)).await;
    running.cache.forget_block(key(2, 0).block);
}

#[tokio::test(start_paused = true)]
async fn a_slow_disk_is_used_where_the_bucket_is_slower() {
    let device = Device::new(Duration::from_millis(600));
    let keys: Vec<_> = (0..10).map(|i| key(1, i)).collect();
    let running = on_device(&device, &keys).await;
    let one_by_one = async || {
        let (mut found, mut longest) = (0, Duration::ZERO);
        for key in &keys {
            device.clock.sleep(Duration::from_secs(30)).await;
            let (one, took) = timed(&running, std::slice::from_ref(key)).await;
            (found, longest) = (found + one, longest.max(took));
        }
        (found, longest, running.cache.stats().is_resting)
    };
    for _ in 0..2 {
        // A bucket that is quicker than the disk: nobody gains by waiting for that.
        fetch(&running, &device, Duration::from_millis(100)).await;
        let (found, longest, is_resting) = one_by_one().await;
        assert!(
            found == 0 && longest <= WAIT_MAX && is_resting,
            "{found} {longest:?}"
        );
        // One that is slower: each cell is found, however often the disk was too slow before.
        fetch(&running, &device, Duration::from_secs(2)).await;
        device.clock.sleep(Duration::from_secs(60)).await;
        let (found, longest, is_resting) = one_by_one().await;
        assert!(found >= 9 && !is_resting, "{found} {longest:?}");
        assert!(longest <= Duration::from_secs(4), "{longest:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stuck_disk_is_not_waited_for_longer_than_a_slow_bucket_takes() {
    let device = Device::new(Duration::ZERO);
    let running = on_device(&device, &[key(1, 0)]).await;
    fetch(&running, &device, Duration::from_secs(60)).await;
    device.stuck.send_replace(true);
    let (found, took) = timed(&running, &[key(1, 0)]).await;
    assert!(found == 0 && took <= Duration::from_secs(10), "{took:?}");
}
