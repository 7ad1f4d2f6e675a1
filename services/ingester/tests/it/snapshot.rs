//! Restarts from snapshots, and without them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use koios_model::TimeRange;
use koios_runtime::{Disk, OpenMode};

use crate::harness::{T0, World};

const DIR: &str = "/data/snapshot";

/// The whole snapshots of a member.
pub(crate) fn snapshots(w: &World, i: usize) -> Vec<PathBuf> {
    let names = w.nodes[i].disk.list(Path::new(DIR)).unwrap_or_default();
    let whole = names.into_iter().filter(|n| n.ends_with(".snapshot"));
    whole.map(|n| Path::new(DIR).join(n)).collect()
}

/// A member that has written a snapshot and more after it.
async fn with_snapshot() -> World {
    let mut w = World::start(1).await;
    for i in 0..1500 {
        assert!(w.write(&[("a", T0 + i, i as f64), ("hist", T0 + i, 2.0)]).await);
        // Some are late, some come twice.
        if i % 7 == 3 {
            assert!(w.write(&[("a", T0 + i - 2, 1.5), ("b", T0 + i, 1.0)]).await);
        }
    }
    assert!(w.wal_files(0).len() > 3);
    w.until("a snapshot was written", |w| !snapshots(w, 0).is_empty())
        .await;
    for i in 1500..1520 {
        assert!(w.write(&[("a", T0 + i, 7.0), ("c", T0 + i, 7.0)]).await);
    }
    w
}

#[tokio::test(start_paused = true)]
async fn a_restart_from_a_snapshot_loses_nothing_and_writes_the_next() {
    let mut w = with_snapshot().await;
    for life in 1..4 {
        let before = snapshots(&w, 0);
        assert_eq!(before.len(), 1, "older ones are removed");
        w.crash(0).await;
        w.boot(0).await;
        w.check(&w.read(0).await.unwrap().0);
        assert_eq!(
            w.holdings(0).await.0,
            w.holdings(0).await.1,
            "all is in the log still"
        );
        let from = T0 + life * 10_000;
        for i in 0..700 {
            assert!(w.write(&[("a", from + i, i as f64), ("d", from + i, 1.0)]).await);
        }
        w.until("the next snapshot was written", |w| {
            snapshots(w, 0).len() == 1 && snapshots(w, 0) != before
        })
        .await;
    }
}

/// What the log lost a snapshot may still have.
#[tokio::test(start_paused = true)]
async fn segments_before_a_snapshot_are_not_applied() {
    let mut w = with_snapshot().await;
    w.kill(0).await;
    w.damage_batch(0, 9);
    w.boot(0).await;
    w.accept_loss();
    w.until("counts", |w| w.counts(0)).await;
    w.check(&w.read(0).await.unwrap().0);
}

/// A start that could not read the snapshot cuts what is left in the log; the next one, from the snapshot, must not take these
/// cuts for ones of what it has.
#[tokio::test(start_paused = true)]
async fn i3_what_only_a_snapshot_has_stays() {
    let mut w = with_snapshot().await;
    w.kill(0).await;
    w.damage_batch(0, 9);
    let disk = w.nodes[0].disk.clone();
    let (snapshot, aside) = (snapshots(&w, 0).remove(0), Path::new("/data/aside"));
    disk.rename(&snapshot, aside).unwrap();
    w.boot(0).await;
    w.accept_loss();
    w.until("counts", |w| w.counts(0)).await;
    w.flush(0).await.unwrap();
    w.kill(0).await;
    for other in snapshots(&w, 0) {
        disk.remove_file(&other).unwrap();
    }
    disk.rename(aside, &snapshot).unwrap();

    w.boot(0).await;
    w.until("counts", |w| w.counts(0)).await;
    w.check(&w.read(0).await.unwrap().0);
    w.flush(0).await.unwrap();
    w.check(&w.blocks(0, TimeRange::ALL).await);
}

/// Starts without the snapshot, from which a part was taken, and waits for the next.
async fn start_without(w: &mut World, damage: impl Fn(&dyn Disk, &Path, usize)) {
    w.kill(0).await;
    let path = snapshots(w, 0).remove(0);
    let disk = w.nodes[0].disk.clone();
    let len = disk.read(&path).unwrap().len();
    damage(&disk, &path, len);
    w.boot(0).await;
    w.check(&w.read(0).await.unwrap().0);
    let others = |w: &World| !snapshots(w, 0).is_empty() && !snapshots(w, 0).contains(&path);
    w.until("another snapshot was written", others).await;
}

#[tokio::test(start_paused = true)]
async fn i11_a_damaged_snapshot_is_not_used() {
    let mut w = with_snapshot().await;
    for part in 0..8 {
        start_without(&mut w, |disk, path, len| {
            let mut bytes = disk.read(path).unwrap();
            bytes[(len - 1) * part / 7] ^= 32;
            disk.replace(path, &bytes).unwrap();
        })
        .await;
        start_without(&mut w, |disk, path, len| {
            let file = disk.open(path, OpenMode::ReadWrite).unwrap();
            file.set_len((len * part / 8) as u64).unwrap();
            file.sync_data().unwrap();
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_of_segments_that_are_gone_is_not_used() {
    let mut w = with_snapshot().await;
    w.kill(0).await;
    let old = snapshots(&w, 0).remove(0);
    w.nodes[0]
        .disk
        .rename(&old, &Path::new(DIR).join("0000009999.snapshot"))
        .unwrap();
    w.boot(0).await;
    w.sleep(Duration::from_secs(1)).await;
    w.check(&w.read(0).await.unwrap().0);
}

#[tokio::test(start_paused = true)]
async fn i9_what_the_next_snapshot_needs_is_said_for_caches_on_the_disk_to_make_room() {
    let mut w = with_snapshot().await;
    // Four segments of the log, and what heads are.
    let (log, before) = (4 * (64 << 10), w.nodes[0].needs.bytes());
    assert!(before > log, "{before} bytes");
    for i in 0..1500 {
        let name = format!("more{i}");
        assert!(w.write(&[(name.as_str(), T0 + 2000 + i, 1.0)]).await);
    }
    let after = w.nodes[0].needs.bytes();
    assert!(after > before + 10_000, "{before}, then {after} bytes");
    // Also right after a start.
    w.crash(0).await;
    w.boot(0).await;
    w.sleep(Duration::from_secs(1)).await;
    let again = w.nodes[0].needs.bytes();
    assert!(again > before + 10_000, "{again} bytes");
}
