//! Claims about what is kept, for how long, and that it is what was put.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use koios_block::{BlockCache, BlockReader, CellStore};
use koios_bucket::{Blocks, DiskCache, RetryPolicy};
use koios_model::{Labels, Matchers, TimeRange};
use koios_runtime::RngHandle;
use koios_testkit::sim_disk::{Fault, FaultPlan};
use object_store::memory::InMemory;

use super::common::{Fault as StoreFault, Faulty, block, bucket_over, entry, id, tenant};
use super::{CELL, FOLDER, Running, bytes_on, cell, disk, key, settle};

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

#[tokio::test(start_paused = true)]
async fn what_several_readers_bring_at_once_waits_once() {
    let disk = disk(20);
    let running = Running::start(&disk, 128 << 20).await;
    let keys: Vec<_> = (0..800).map(|i| key(1, i)).collect();
    let bytes = cell(keys[0], CELL);
    for _ in 0..3 {
        keys.iter().for_each(|key| running.cache.put(*key, bytes.clone()));
    }
    for _ in 0..20 {
        settle().await;
    }
    let stats = running.cache.stats();
    assert_eq!((stats.cells, stats.dropped), (800, 0));
    // Nor does what waited once take room from what comes later.
    for n in 2..6 {
        (0..800).for_each(|i| running.cache.put(key(n, i), bytes.clone()));
        for _ in 0..20 {
            settle().await;
        }
    }
    assert_eq!(running.cache.stats().dropped, 0);
}
