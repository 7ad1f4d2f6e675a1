//! Members make each other whole.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use koios_runtime::Disk;
use koios_wire::{BatchSetsRequest, IngesterService, ServiceErrorCode};

use crate::harness::{HOUR, MINUTE, PARTITION, T0, World};

#[tokio::test(start_paused = true)]
async fn i7_a_member_that_was_away_is_repaired_and_serves_everything() {
    let mut w = World::start(3).await;
    for i in 0..50 {
        assert!(w.write(&[("a", T0 + i * 1000, i as f64)]).await);
    }
    w.kill(2).await;
    for i in 50..100 {
        assert!(w.write(&[("a", T0 + i * 1000, i as f64)]).await);
    }
    w.boot(2).await;
    w.sleep(Duration::from_secs(120)).await;
    w.check(&w.read(2).await.unwrap().0);
    assert_eq!(w.holdings(2).await, w.holdings(0).await);
    // Even the other two may go now.
    w.kill(0).await;
    w.kill(1).await;
    w.check(&w.read(2).await.unwrap().0);
}

#[tokio::test(start_paused = true)]
async fn i7_a_wiped_member_does_not_count_until_it_copied_from_a_read_quorum() {
    let mut w = World::start(3).await;
    for i in 0..100i64 {
        // One of the three misses each batch.
        let skip = (i % 3) as usize;
        let to: Vec<usize> = (0..3).filter(|m| *m != skip).collect();
        assert!(w.write_to(&to, &[("a", T0 + i * 1000, i as f64)]).await);
    }
    w.wipe(1).await;
    w.kill(0).await;
    w.boot(1).await;
    assert!(w.write(&[("b", T0, 1.0)]).await, "a majority is up");
    w.sleep(Duration::from_secs(300)).await;
    assert_eq!(w.read(1).await.unwrap_err().code, ServiceErrorCode::NotCounting);
    w.boot(0).await;
    w.until("the wiped member counts", |w| w.counts(1)).await;
    w.check(&w.read(1).await.unwrap().0);
}

#[tokio::test(start_paused = true)]
async fn i7_large_batches_are_repaired_and_leave_room_for_pushes() {
    // A tenant's queue takes a dozen of the batches.
    let mut w = World::start_with(3, |s| s.push_queue_bytes = 64 << 10).await;
    w.kill(2).await;
    for i in 0..100i64 {
        let samples: Vec<_> = (0..40)
            .map(|k| ("a", T0 + i * 1000 + k, (i + k) as f64 * 0.1))
            .collect();
        assert!(w.write(&samples).await);
    }
    w.boot(2).await;
    for i in 0..10_000i64 {
        let push = w.batch(&[("b", T0 + i, 1.0)]);
        for m in 0..3 {
            w.node(m).push(Arc::clone(&push)).await.unwrap();
        }
        w.sleep(Duration::from_millis(10)).await;
        if w.holdings(2).await.0 == w.holdings(0).await.0 {
            break;
        }
    }
    w.check(&w.read(2).await.unwrap().0);
}

#[tokio::test(start_paused = true)]
async fn i7_what_a_peer_serves_before_it_reports_damage_is_kept() {
    let mut w = World::start(3).await;
    w.kill(2).await;
    for i in 0..20 {
        assert!(w.write(&[("a", T0 + i, 1.0)]).await);
    }
    w.kill(1).await;
    w.damage_batch(0, 9);
    w.boot(2).await;
    w.sleep(Duration::from_secs(120)).await;
    assert_eq!(w.holdings(2).await.0.len(), 19);
}

#[tokio::test(start_paused = true)]
async fn i11_damage_in_the_log_is_made_good_from_peers() {
    let mut w = World::start(3).await;
    for i in 0..50 {
        assert!(w.write(&[("a", T0 + i, i as f64)]).await);
    }
    w.kill(0).await;
    w.damage_batch(0, 9);
    w.kill(1).await;
    w.boot(0).await;
    w.sleep(Duration::from_secs(120)).await;
    assert_eq!(w.read(0).await.unwrap_err().code, ServiceErrorCode::NotCounting);
    w.boot(1).await;
    w.until("repaired", |w| w.counts(0)).await;
    w.check(&w.read(0).await.unwrap().0);
    // It stays repaired.
    w.crash(0).await;
    w.boot(0).await;
    w.until("counts", |w| w.counts(0)).await;
    w.check(&w.read(0).await.unwrap().0);
}

#[tokio::test(start_paused = true)]
async fn i6_i11_damage_is_made_good_on_a_disk_with_no_room_for_tenants() {
    let mut w = World::start_with(3, |s| s.disk_reserve_bytes = 1 << 20).await;
    for i in 0..50 {
        assert!(w.write(&[("a", T0 + i, i as f64)]).await);
    }
    w.kill(0).await;
    w.damage_batch(0, 9);
    let disk = w.nodes[0].disk.clone();
    let used = (1 << 40) - disk.free_bytes(Path::new("/")).unwrap();
    disk.set_capacity(Some(used + (768 << 10)));
    w.boot(0).await;
    w.until("repaired", |w| w.counts(0)).await;
    w.check(&w.read(0).await.unwrap().0);
    let batch = w.batch(&[("a", T0 + 50, 50.0)]);
    let refused = w.node(0).push(batch).await.unwrap_err();
    assert!(refused.message.contains("low disk space"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn i1_i11_a_lost_log_is_made_good_from_peers() {
    let mut w = World::start(3).await;
    for i in 0..100i64 {
        // One of the three misses each batch.
        let skip = (i % 3) as usize;
        let to: Vec<usize> = (0..3).filter(|m| *m != skip).collect();
        assert!(w.write_to(&to, &[("a", T0 + i, i as f64)]).await);
    }
    w.kill(0).await;
    w.lose_segments(0, 0);
    w.kill(1).await;
    w.boot(0).await;
    w.sleep(Duration::from_secs(120)).await;
    assert_eq!(w.read(0).await.unwrap_err().code, ServiceErrorCode::NotCounting);
    w.boot(1).await;
    w.until("repaired", |w| w.counts(0)).await;
    w.check(&w.read(0).await.unwrap().0);
    // It stays repaired.
    w.crash(0).await;
    w.boot(0).await;
    w.until("counts", |w| w.counts(0)).await;
    w.check(&w.read(0).await.unwrap().0);
}

#[tokio::test(start_paused = true)]
async fn i11_a_batch_damaged_in_a_running_members_log_is_reported_and_the_others_served() {
    use futures::StreamExt;
    let mut w = World::start(1).await;
    for i in 0..20 {
        assert!(w.write(&[("a", T0 + i, 1.0)]).await);
    }
    w.damage_batch(0, 9);
    let request = koios_wire::FetchBatchesRequest {
        partition: PARTITION,
        tenant: crate::harness::tenant(),
        wanted: w.holdings(0).await.0,
    };
    let stream = w.node(0).fetch_batches(request).await.unwrap();
    let answers: Vec<_> = stream.collect().await;
    assert_eq!(answers.iter().filter(|a| a.is_ok()).count(), 19);
    let error = answers.last().unwrap().as_ref().unwrap_err();
    assert_eq!(error.code, ServiceErrorCode::Corruption);
}

/// A batch whose series cannot be told is not held, so that a peer gives it.
#[tokio::test(start_paused = true)]
async fn i11_batches_whose_series_cannot_be_told_are_made_good_from_peers() {
    let mut w = World::start(3).await;
    for i in 0..50 {
        assert!(w.write(&[("a", T0 + i, i as f64)]).await);
    }
    w.kill(0).await;
    w.damage_batch(0, 0);
    w.damage_batch(0, 1);
    w.boot(0).await;
    w.until("repaired", |w| w.counts(0)).await;
    w.check(&w.read(0).await.unwrap().0);
    assert_eq!(w.holdings(0).await.0.len(), 50);
}

#[tokio::test(start_paused = true)]
async fn i7_beyond_the_peers_logs_a_wiped_member_takes_over_what_blocks_hold() {
    let mut w = World::start_with(3, |s| {
        s.wal_keep = Duration::ZERO;
        s.cut_stagger = Duration::from_secs(30);
    })
    .await;
    for i in 0..1500i64 {
        assert!(
            w.write(&[("a", T0 + i * 1000, i as f64), ("b", T0 + i * 1000, 2.0)])
                .await
        );
    }
    w.sleep(Duration::from_secs(2 * 3600)).await;
    assert!(w.write(&[("a", T0 + 9 * HOUR, 1.0)]).await);
    w.until("the log was truncated", |w| {
        [0, 2]
            .iter()
            .all(|&i| !w.wal_files(i).contains(&"0000000001.wal".to_owned()))
    })
    .await;
    w.wipe(1).await;
    w.boot(1).await;
    w.until("the wiped member counts", |w| w.counts(1)).await;
    assert_eq!(w.holdings(1).await.0, w.holdings(0).await.0);
    let (head, end) = w.read(1).await.unwrap();
    assert!(head.len() < w.acked.len());
    assert!(end.manifest_floor > 0);
    w.check(&w.query(1).await);
    // And so after a restart.
    w.crash(1).await;
    w.boot(1).await;
    w.check(&w.query(1).await);
}

#[tokio::test(start_paused = true)]
async fn i14_an_adopted_epoch_refuses_older_writes_also_after_a_restart() {
    let mut w = World::start(3).await;
    let old = w.batch(&[("a", T0, 1.0)]);
    w.change_partition(|p| p.epoch = 5);
    w.until("adopted", |w| w.node(0).status().partitions[0].epoch == 5)
        .await;
    let refused = w.node(0).push(Arc::clone(&old)).await.unwrap_err();
    assert_eq!(refused.code, ServiceErrorCode::Stale);
    assert_eq!(refused.state_version, w.state.current().version);
    w.crash(0).await;
    w.boot(0).await;
    assert_eq!(
        w.node(0).push(old).await.unwrap_err().code,
        ServiceErrorCode::Stale
    );
    assert!(w.write(&[("a", T0, 1.0)]).await);
}

#[tokio::test(start_paused = true)]
async fn i14_a_newer_epoch_waits_for_the_control_state() {
    let mut w = World::start(1).await;
    let mut request = BatchSetsRequest {
        partition: PARTITION,
        epoch: 2,
    };
    let behind = w.node(0).batch_sets(request).await.unwrap_err();
    assert_eq!(behind.code, ServiceErrorCode::Behind);
    request.epoch = 3;
    let m = w.node(0).clone();
    let (answer, ()) = futures::join!(m.batch_sets(request), async {
        w.sleep(Duration::from_secs(1)).await;
        w.change_partition(|p| p.epoch = 3);
    });
    assert!(answer.unwrap().counts);
    assert!(w.write(&[("a", T0, 1.0)]).await);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_not_mine_is_refused() {
    let mut w = World::start(3).await;
    w.change_partition(|p| p.replicas[0].member = "other".into());
    let batch = w.batch(&[("a", T0 + MINUTE, 1.0)]);
    assert_eq!(
        w.node(0).push(batch).await.unwrap_err().code,
        ServiceErrorCode::Stale
    );
}
