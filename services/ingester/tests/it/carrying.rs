//! A tenant whose blocks cannot be listed does not keep the log that all share (I9), and loses nothing (I1).

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use koios_ingester::Settings;
use koios_model::TimeRange;
use koios_runtime::Disk;
use koios_wire::{IngesterService, ServiceErrorCode};
use object_store::ObjectStoreExt;

use crate::harness::{World, tenant};
use crate::pinning::{push_much, small_segments};
use crate::snapshot::snapshots;

const A_MINUTE: Duration = Duration::from_secs(60);

/// Nothing is listed for the tenant from now on; gives what has to go again for that.
async fn damage_manifest(w: &World) -> object_store::path::Path {
    let next = w.manifests.probe(&tenant()).await.unwrap().version + 1;
    let path = object_store::path::Path::from(format!("{}/manifest/{next:020}.json", tenant()));
    w.store.put(&path, "damaged".into()).await.unwrap();
    path
}

async fn go_on(w: &mut World) {
    go_on_for(w, 10 * 60).await;
}

/// Minutes of much of another tenant, and now and then something of this one.
async fn go_on_for(w: &mut World, minutes: i32) {
    for minute in 0..minutes {
        push_much(w).await;
        if minute % 20 == 0 {
            let now = w.clock.now_ms();
            let (a, hist) = (f64::from(minute), f64::from(minute) + 0.5);
            // Late ones, too.
            let samples = [("a", now, a), ("hist", now, hist), ("late", now - 3_600_000, a)];
            assert!(w.write(&samples).await);
        }
        w.sleep(A_MINUTE).await;
    }
}

fn segments(w: &World, i: usize) -> (u32, u32) {
    let number = |name: &String| name.trim_end_matches(".wal").parse().unwrap();
    let files = w.wal_files(i);
    (number(&files[0]), number(files.last().unwrap()))
}

async fn begin(members: usize, tune: fn(&mut Settings)) -> World {
    let mut w = World::start_with(members, tune).await;
    let now = w.clock.now_ms();
    assert!(w.write(&[("a", now, 0.0), ("hist", now, 0.0)]).await);
    w.flush(0).await.unwrap();
    w
}

#[tokio::test(start_paused = true)]
async fn i1_i9_what_cannot_be_listed_for_one_tenant_keeps_no_log_of_others_and_is_not_lost() {
    for members in [1, 2] {
        let mut w = begin(members, small_segments).await;
        let damaged = damage_manifest(&w).await;
        go_on(&mut w).await;
        for i in 0..members {
            let (first, last) = segments(&w, i);
            assert!(
                first > 1 && last - first < last / 4 * 3,
                "{members} members: {first} of {last}"
            );
            w.crash(i).await;
            w.boot(i).await;
        }
        go_on(&mut w).await;
        for i in 0..members {
            w.kill(i).await;
            w.boot(i).await;
        }
        w.store.delete(&damaged).await.unwrap();
        w.sleep(2 * A_MINUTE).await;
        for i in 0..members {
            w.check(&w.query(i).await);
        }
        w.flush(0).await.unwrap();
        w.check(&w.blocks(0, TimeRange::ALL).await);
    }
}

#[tokio::test(start_paused = true)]
async fn i9_with_the_bucket_away_nothing_is_logged_twice() {
    let mut w = begin(1, small_segments).await;
    w.store.lists_nothing.store(true, Ordering::Relaxed);
    let (first, _) = segments(&w, 0);
    go_on(&mut w).await;
    assert_eq!(segments(&w, 0).0, first);
    w.store.lists_nothing.store(false, Ordering::Relaxed);
    w.sleep(10 * A_MINUTE).await;
    w.flush(0).await.unwrap();
    assert!(segments(&w, 0).0 > first);
    w.check(&w.query(0).await);
}

/// Where the first copy is damaged the second one is read, however little is put back at a time.
#[tokio::test(start_paused = true)]
async fn i1_what_a_deletion_took_comes_back_from_where_it_is_logged_once_more() {
    let tune = |s: &mut Settings| {
        small_segments(s);
        s.wal_keep = Duration::from_secs(24 * 3600);
        s.deletion_record_bytes = 64;
    };
    let mut w = World::start_with(2, tune).await;
    let now = w.clock.now_ms();
    let late: Vec<_> = (1..4).map(|i| ("a", now + i, i as f64)).collect();
    let on_their_way: Vec<_> = late.iter().map(|sample| w.batch(&[*sample])).collect();
    assert!(w.write(&[("a", now, 9.0), ("c", now, 9.0)]).await);
    let before = w.acked.clone();
    w.delete(1, "a", TimeRange::ALL).await;
    let damaged = damage_manifest(&w).await;
    for batch in on_their_way {
        for i in 0..2 {
            w.node(i).push(batch.clone()).await.unwrap();
        }
    }
    for _ in 0..10 * 60 {
        push_much(&mut w).await;
        w.sleep(A_MINUTE).await;
    }
    assert_eq!(segments(&w, 0).0, 1);
    w.damage_batch(0, 1);
    w.store.delete(&damaged).await.unwrap();
    let version = w.take_back(1).await;
    assert!(w.counts(0) && w.counts(1));
    w.acked.extend(before);
    w.acknowledged(&late);
    w.expect(version, "taken back").await;
    w.flush(0).await.unwrap();
    assert_eq!(w.blocks(0, TimeRange::ALL).await, w.acked);
}

#[tokio::test(start_paused = true)]
async fn i11_a_damaged_copy_does_not_pass_for_being_listed() {
    let mut w = begin(3, small_segments).await;
    damage_manifest(&w).await;
    go_on(&mut w).await;
    assert!(segments(&w, 0).0 > 1);
    lose_all_of_the_tenant(&mut w).await;
    check_copied_again(&w).await;
}

/// Three members with copies in the log of what waits, whose originals are not gone yet: they stay an hour longer.
async fn with_copies_beside_originals() -> World {
    let mut w = begin(3, |s| {
        small_segments(s);
        s.wal_keep = Duration::from_secs(6 * 3600);
    })
    .await;
    damage_manifest(&w).await;
    go_on_for(&mut w, 5 * 60 + 50).await;
    assert_eq!(segments(&w, 0).0, 1);
    w
}

/// The member has from its peers again what its log lost: what it held and no block has it did not take for listed.
async fn check_copied_again(w: &World) {
    w.until("it has copied all from the others", |w| w.counts(0))
        .await;
    let (found, _) = w.read(0).await.unwrap();
    w.check(&found);
    // Its log has again what no block has, whatever a snapshot had. The first batch is listed.
    let (_, logged) = w.holdings(0).await;
    let (_, of_another) = w.holdings(1).await;
    let missing = of_another.difference(&logged);
    assert!(missing.len() <= 1, "{missing:?}");
}

#[tokio::test(start_paused = true)]
async fn i1_i11_a_copy_of_before_a_restart_does_not_pass_for_being_listed_either() {
    let mut w = with_copies_beside_originals().await;
    w.crash(0).await;
    w.boot(0).await;
    for _ in 0..12 {
        if segments(&w, 0).0 == 1 {
            go_on_for(&mut w, 10).await;
        }
    }
    assert!(segments(&w, 0).0 > 1);
    lose_all_of_the_tenant(&mut w).await;
    check_copied_again(&w).await;
}

/// Nothing is copied after the restart, so that nothing but the log's first checkpoint tells of the copies.
#[tokio::test(start_paused = true)]
async fn i1_i11_nor_does_a_copy_of_a_tenant_that_sends_nothing_after_the_restart() {
    let mut w = with_copies_beside_originals().await;
    w.crash(0).await;
    w.boot(0).await;
    for _ in 0..120 {
        if segments(&w, 0).0 == 1 {
            push_much(&mut w).await;
            w.sleep(A_MINUTE).await;
        }
    }
    assert!(segments(&w, 0).0 > 1);
    lose_all_of_the_tenant(&mut w).await;
    check_copied_again(&w).await;
}

/// A segment may have the copies and what says that the originals went.
#[tokio::test(start_paused = true)]
async fn i1_i11_nor_do_copies_in_a_segment_that_is_missing() {
    let mut w = begin(3, small_segments).await;
    damage_manifest(&w).await;
    go_on(&mut w).await;
    assert!(segments(&w, 0).0 > 1);
    w.crash(0).await;
    let files = w.wal_files(0);
    for file in &files[1..files.len() - 1] {
        w.nodes[0]
            .disk
            .remove_file(&Path::new("/data/wal").join(file))
            .unwrap();
    }
    w.boot(0).await;
    check_copied_again(&w).await;
}

#[tokio::test(start_paused = true)]
async fn i11_an_accepted_loss_of_copies_stays_accepted() {
    let mut w = begin(1, small_segments).await;
    damage_manifest(&w).await;
    go_on(&mut w).await;
    assert!(segments(&w, 0).0 > 1);
    lose_all_of_the_tenant(&mut w).await;
    w.sleep(A_MINUTE).await;
    assert_eq!(w.read(0).await.unwrap_err().code, ServiceErrorCode::NotCounting);
    w.accept_loss();
    w.until("counts", |w| w.counts(0)).await;
    for _ in 0..2 {
        w.crash(0).await;
        w.boot(0).await;
        w.sleep(A_MINUTE).await;
        assert!(w.read(0).await.is_ok());
    }
}

/// A snapshot may have samples of records that were lost after it. Once blocks have what was there, all is told again.
#[tokio::test(start_paused = true)]
async fn i9_what_a_snapshot_had_of_lost_records_keeps_no_log_for_ever() {
    let mut w = begin(3, small_segments).await;
    let is_of_later = |path: &PathBuf| !path.ends_with("0000000001.snapshot");
    go_on_for(&mut w, 90).await;
    w.until("a snapshot was written", |w| {
        snapshots(w, 0).iter().any(is_of_later)
    })
    .await;
    for minute in 0..3 {
        let now = w.clock.now_ms();
        assert!(w.write(&[("a", now, f64::from(minute))]).await);
        w.sleep(A_MINUTE).await;
    }
    w.crash(0).await;
    let newest = w.wal_files(0).pop().unwrap();
    w.damage_batch_in(0, &newest, 0);
    w.boot(0).await;
    w.until("it has copied what it lost", |w| w.counts(0)).await;
    // The windows of before are listed, and it starts from a later snapshot.
    go_on(&mut w).await;
    w.crash(0).await;
    w.boot(0).await;
    let listed = segments(&w, 0).0;
    damage_manifest(&w).await;
    go_on(&mut w).await;
    let (first, last) = segments(&w, 0);
    assert!(
        last - first < (last - listed) / 4 * 3,
        "{first} of {listed} to {last}"
    );
    w.check(&w.query(0).await);
}

/// The member starts without any batch of the tenant.
async fn lose_all_of_the_tenant(w: &mut World) {
    w.crash(0).await;
    damage_all_of_the_tenant(w, 0);
    w.boot(0).await;
}

/// Flips a bit in each record of a batch of the tenant.
fn damage_all_of_the_tenant(w: &World, i: usize) {
    let disk = &w.nodes[i].disk;
    let name = tenant().to_string();
    let mut damaged = 0;
    for file in w.wal_files(i) {
        let path = Path::new("/data/wal").join(file);
        let bytes = disk.read(&path).unwrap();
        let starts: Vec<usize> = (0..bytes.len())
            .filter(|at| bytes[*at..].starts_with(b"KL\x02\0"))
            .collect();
        for (n, &at) in starts.iter().enumerate() {
            let end = starts.get(n + 1).copied().unwrap_or(bytes.len());
            let record = &bytes[at..end.min(at + 256)];
            if record.windows(name.len()).any(|w| w == name.as_bytes()) {
                assert!(disk.flip_bit(&path, at + 20, 3));
                damaged += 1;
            }
        }
    }
    assert!(damaged > 10, "{damaged}");
}
