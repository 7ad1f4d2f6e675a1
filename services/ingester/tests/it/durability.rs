//! What was acknowledged stays, whatever happens to one member's machine.

use std::path::Path;
use std::time::Duration;

use koios_model::{Matchers, TimeRange};
use koios_wire::{ExemplarsRequest, IngesterService, ServiceErrorCode};

use crate::harness::{MINUTE, PARTITION, T0, World, merge, tenant, without_starts};

#[tokio::test(start_paused = true)]
async fn i1_i5_acknowledged_samples_are_read_at_once_and_after_power_loss() {
    let mut w = World::start(1).await;
    for i in 0..300 {
        assert!(
            w.write(&[("a", T0 + i * 1000, i as f64), ("b", T0 + i * 1000, -1.5)])
                .await
        );
        if i % 50 == 0 {
            w.check(&w.read(0).await.unwrap().0);
        }
    }
    for _ in 0..3 {
        w.crash(0).await;
        assert!(w.boot(0).await);
        w.check(&w.read(0).await.unwrap().0);
        assert!(w.write(&[("c", T0 + w.acked.len() as i64, 3.0)]).await);
    }
}

#[tokio::test(start_paused = true)]
async fn i1_histograms_and_exemplars_survive_power_loss_flushes_and_repair() {
    let mut w = World::start(3).await;
    for round in 0..6 {
        for i in 0..20 {
            let t = T0 + round * 100_000 + i * 1000;
            assert!(w.write(&[("hist", t, i as f64), ("float", t, 1.0)]).await);
            // Late ones, and others at a time that is taken.
            assert!(
                w.write_to(&[0, 1], &[("hist", t - 500, 7.5), ("hist_b", t, 2.0)])
                    .await
            );
            assert!(w.write_to(&[0, 2], &[("hist", t, 3.0)]).await);
        }
        let member = round as usize % 3;
        match round {
            1 | 4 => drop(w.flush(0).await.unwrap()),
            2 => {
                w.wipe(member).await;
                assert!(w.boot(member).await);
            }
            _ => {
                w.crash(member).await;
                assert!(w.boot(member).await);
            }
        }
        w.until("all count", |w| (0..3).all(|i| w.counts(i))).await;
        // What one member was not sent, another has: a query reads two of them.
        for pair in [[0, 1], [1, 2], [2, 0]] {
            let mut found = w.query(pair[0]).await;
            merge(&mut found, w.query(pair[1]).await);
            w.check(&found);
        }
    }
    let request = ExemplarsRequest {
        tenant: tenant(),
        partition: PARTITION,
        epoch: w.epoch(),
        matchers: Matchers::default(),
        range: TimeRange::ALL,
        deletions_version: 0,
    };
    let found = w.node(0).exemplars(request).await.unwrap();
    let names: Vec<_> = found.iter().map(|(labels, _)| labels.metric_name()).collect();
    assert_eq!(names, ["hist", "hist_b"]);
    assert!(
        found
            .iter()
            .flat_map(|(_, all)| all)
            .all(|e| e.labels.get("trace_id") == Some("a"))
    );
    assert!(found[1].1.is_sorted_by(|a, b| a.t < b.t) && found[1].1.len() > 20);
    // Blocks have them, too.
    w.flush(0).await.unwrap();
    let in_blocks = w.exemplars_of_blocks().await;
    for (labels, all) in &found {
        for e in all {
            assert!(
                in_blocks.contains(&(labels.metric_name().to_owned(), e.t)),
                "{labels} @{}",
                e.t
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn i1_power_loss_of_all_members_at_once_loses_nothing_and_they_count_again() {
    let mut w = World::start(3).await;
    for round in 0..6 {
        for i in 0..20 {
            assert!(w.write(&[("a", T0 + round * 100_000 + i * 1000, i as f64)]).await);
        }
        // Pushes under way while the power goes.
        let torn = w.batch(&[("torn", T0 + round, 1.0)]);
        let pushes: Vec<_> = (0..3).map(|i| w.node(i).clone()).collect();
        let mut pushes: Vec<_> = pushes
            .iter()
            .map(|m| m.push(std::sync::Arc::clone(&torn)))
            .collect();
        for push in &mut pushes {
            let _ = futures::poll!(push.as_mut());
        }
        drop(pushes);
        for i in 0..3 {
            w.crash(i).await;
        }
        for i in 0..3 {
            assert!(w.boot(i).await);
        }
        w.until("all count", |w| (0..3).all(|i| w.counts(i))).await;
        for i in 0..3 {
            w.check(&w.read(i).await.unwrap().0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn i2_a_batch_may_come_any_number_of_times() {
    let mut w = World::start(1).await;
    let batch = w.batch(&[("a", T0, 1.0), ("a", T0 + 1000, 2.0)]);
    for _ in 0..3 {
        let ack = w.node(0).push(std::sync::Arc::clone(&batch)).await.unwrap();
        assert_eq!((ack.conflicts, ack.partition_series), (0, 1));
        assert!(ack.tenant_rate >= 100, "two samples in twenty seconds: {ack:?}");
    }
    assert!(w.write(&[("a", T0 + 1000, 9.0)]).await);
    let (found, end) = w.read(0).await.unwrap();
    assert_eq!(without_starts(&found), 2);
    assert_eq!(found[&("a".to_owned(), T0 + 1000)], 9.0f64.to_bits());
    assert_eq!(end.held.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn i2_a_conflict_is_reported_and_one_value_kept() {
    let mut w = World::start(1).await;
    assert!(w.write(&[("a", T0, 1.0)]).await);
    let batch = w.batch(&[("a", T0, 2.0)]);
    let ack = w.node(0).push(batch).await.unwrap();
    assert_eq!(ack.conflicts, 1);
    let told = format!(
        "duplicate sample for timestamp: series {{__name__=\"a\"}} has value 1 at {T0} already, and value 2 came"
    );
    assert!(ack.conflict.starts_with(&told), "{}", ack.conflict);
}

#[tokio::test(start_paused = true)]
async fn i1_a_failed_sync_ends_the_process_and_acknowledges_nothing() {
    let mut w = World::start(1).await;
    assert!(w.write(&[("a", T0, 1.0)]).await);
    w.nodes[0].disk.set_fail_syncs(true);
    assert!(!w.write(&[("a", T0 + 1, 2.0)]).await);
    w.nodes[0].tasks.token().cancelled().await;
    let failure = w.nodes[0].tasks.failure().unwrap().to_string();
    assert!(failure.contains("ingester committer"), "{failure}");
    w.nodes[0].disk.set_fail_syncs(false);
    w.crash(0).await;
    assert!(w.boot(0).await);
    w.until("counts", |w| w.counts(0)).await;
    w.check(&w.read(0).await.unwrap().0);
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_refuses_writes_answers_reads_and_heals() {
    let mut w = World::start(1).await;
    w.nodes[0].disk.set_capacity(Some(100 << 10));
    let mut refused = None;
    for i in 0..2000i64 {
        let batch = w.batch(&[("a", T0 + i, i as f64)]);
        match w.node(0).push(batch).await {
            Ok(_) => {
                w.acked.insert(("a".into(), T0 + i), (i as f64).to_bits());
            }
            Err(e) => {
                refused = Some(e);
                break;
            }
        }
    }
    let refused = refused.expect("the disk is full");
    assert_eq!(refused.code, ServiceErrorCode::Unavailable);
    assert!(
        refused.message.contains("storage is read-only: low disk space"),
        "{refused}"
    );
    w.check(&w.read(0).await.unwrap().0);
    // It starts on the full disk, too.
    w.crash(0).await;
    assert!(w.boot(0).await);
    w.check(&w.read(0).await.unwrap().0);
    w.nodes[0].disk.set_capacity(None);
    assert!(w.write(&[("b", T0, 1.0)]).await);
    w.crash(0).await;
    w.boot(0).await;
    w.check(&w.read(0).await.unwrap().0);
}

#[tokio::test(start_paused = true)]
async fn pushes_are_refused_while_less_than_the_reserve_is_free() {
    let mut w = World::start_with(1, |s| s.disk_reserve_bytes = 1 << 20).await;
    assert!(w.write(&[("a", T0, 1.0)]).await);
    w.nodes[0].disk.set_capacity(Some(512 << 10));
    w.sleep(Duration::from_secs(1)).await;
    let batch = w.batch(&[("a", T0 + 1, 1.0)]);
    let refused = w.node(0).push(batch).await.unwrap_err();
    assert_eq!(refused.code, ServiceErrorCode::Unavailable);
    assert!(
        refused
            .message
            .starts_with("storage is read-only: low disk space"),
        "{refused}"
    );
    for word in [
        "bytes free",
        "1048576 stay in reserve",
        "ingester.disk-reserve-bytes",
    ] {
        assert!(refused.message.contains(word), "{word:?}: {refused}");
    }
    // What frees space goes on.
    w.flush(0).await.unwrap();
    w.check(&w.read(0).await.unwrap().0);
    w.nodes[0].disk.set_capacity(None);
    w.sleep(Duration::from_secs(1)).await;
    assert!(w.write(&[("a", T0 + 2, 1.0)]).await);
}

#[tokio::test(start_paused = true)]
async fn i11_lost_records_of_a_single_member_stop_reads_until_an_operator_accepts() {
    let mut w = World::start(1).await;
    for i in 0..50 {
        assert!(w.write(&[("a", T0 + i, 1.0)]).await);
    }
    w.kill(0).await;
    w.damage_batch(0, 9);
    assert!(w.boot(0).await);
    w.sleep(Duration::from_secs(300)).await;
    let refused = w.read(0).await.unwrap_err();
    assert_eq!(refused.code, ServiceErrorCode::NotCounting);
    // Writes go on.
    assert!(w.write(&[("b", T0, 1.0)]).await);

    w.accept_loss();
    w.until("counts", |w| w.counts(0)).await;
    let (found, _) = w.read(0).await.unwrap();
    assert_eq!(without_starts(&found), 50);
    // It stays accepted.
    w.crash(0).await;
    w.boot(0).await;
    w.until("counts", |w| w.counts(0)).await;
}

/// What the log says once needs no second look: a damaged batch costs its own samples only, though it told what later ones
/// are of.
#[tokio::test(start_paused = true)]
async fn i11_damage_to_a_batch_that_names_series_costs_no_other() {
    for nth in [0, 1] {
        let mut w = World::start(1).await;
        for i in 0..50 {
            assert!(w.write(&[("a", T0 + i, 1.0), ("b", T0 + i, 1.0)]).await);
        }
        w.kill(0).await;
        w.damage_batch(0, nth);
        assert!(w.boot(0).await);
        w.accept_loss();
        w.until("counts", |w| w.counts(0)).await;
        let (found, _) = w.read(0).await.unwrap();
        assert_eq!(without_starts(&found), 2 * 49, "batch {nth}");
    }
}

#[tokio::test(start_paused = true)]
async fn i11_batches_whose_series_cannot_be_told_are_reported() {
    let mut w = World::start(1).await;
    for i in 0..50 {
        assert!(w.write(&[("a", T0 + i, 1.0)]).await);
    }
    // From here on both are named.
    for i in 50..60 {
        assert!(w.write(&[("b", T0 + i, 1.0), ("a", T0 + i, 1.0)]).await);
    }
    w.kill(0).await;
    w.damage_batch(0, 0);
    w.damage_batch(0, 1);
    assert!(w.boot(0).await);
    w.sleep(Duration::from_secs(300)).await;
    assert_eq!(w.read(0).await.unwrap_err().code, ServiceErrorCode::NotCounting);
    w.accept_loss();
    w.until("counts", |w| w.counts(0)).await;
    let (found, _) = w.read(0).await.unwrap();
    assert_eq!(without_starts(&found), 10, "what is known of a batch is kept");
    assert_eq!(w.holdings(0).await.0.len(), 0, "but it is not held");
    // Nor after starts from snapshots, which don't read those batches again.
    assert!(w.write(&[("b", T0 + 100, 1.0)]).await);
    for _ in 0..3 {
        w.kill(0).await;
        w.boot(0).await;
        w.sleep(Duration::from_secs(5)).await;
        assert_eq!(w.holdings(0).await.0.len(), 1);
        assert_eq!(without_starts(&w.read(0).await.unwrap().0), 11);
    }
}

#[tokio::test(start_paused = true)]
async fn i11_missing_first_segments_are_noticed() {
    use koios_runtime::Disk;
    let mut w = World::start(1).await;
    for i in 0..2000 {
        assert!(w.write(&[("a", T0 + i, 1.0)]).await);
    }
    assert!(w.wal_files(0).len() > 2);
    w.kill(0).await;
    w.nodes[0]
        .disk
        .remove_file(Path::new("/data/wal/0000000001.wal"))
        .unwrap();
    w.boot(0).await;
    w.sleep(Duration::from_secs(60)).await;
    assert_eq!(w.read(0).await.unwrap_err().code, ServiceErrorCode::NotCounting);
}

#[tokio::test(start_paused = true)]
async fn i1_i11_what_missing_first_segments_had_does_not_pass_for_being_listed() {
    use koios_runtime::Disk;
    let mut w = World::start(3).await;
    for i in 0..2000 {
        assert!(w.write(&[("a", T0 + i, 1.0)]).await);
    }
    for i in 0..3 {
        w.kill(i).await;
    }
    let first = Path::new("/data/wal/0000000001.wal");
    w.nodes[0].disk.remove_file(first).unwrap();
    // Later starts know of it, too.
    for _ in 0..3 {
        w.boot(0).await;
        w.sleep(Duration::from_secs(60)).await;
        assert_eq!(w.read(0).await.unwrap_err().code, ServiceErrorCode::NotCounting);
        w.crash(0).await;
    }
    for i in 0..3 {
        w.boot(i).await;
    }
    w.until("it has copied all from the others", |w| w.counts(0))
        .await;
    assert_eq!(w.holdings(0).await.1.len(), 2000, "no block has them");
    let (found, _) = w.read(0).await.unwrap();
    w.check(&found);
}

#[tokio::test(start_paused = true)]
async fn i1_i11_a_lost_log_of_a_single_member_stops_reads_until_an_operator_accepts() {
    // All of the log, and its end.
    for kept in [0, 2] {
        let mut w = World::start(1).await;
        // What was accepted of an earlier loss is not accepted of this one.
        w.accept_loss();
        w.until("adopted", |w| w.node(0).status().partitions[0].epoch == w.epoch())
            .await;
        for i in 0..2000 {
            assert!(w.write(&[("a", T0 + i, 1.0)]).await);
        }
        assert!(w.wal_files(0).len() > 3);
        w.kill(0).await;
        w.lose_segments(0, kept);
        for _ in 0..2 {
            assert!(w.boot(0).await);
            w.sleep(Duration::from_secs(300)).await;
            let refused = w.read(0).await.unwrap_err();
            assert_eq!(refused.code, ServiceErrorCode::NotCounting);
            assert!(w.node(0).status().partitions[0].damaged);
            w.crash(0).await;
        }
        assert!(w.boot(0).await);
        // Writes go on.
        assert!(w.write(&[("b", T0, 1.0)]).await);

        w.accept_loss();
        w.until("counts", |w| w.counts(0)).await;
        let (found, _) = w.read(0).await.unwrap();
        assert_eq!(without_starts(&found) > 1, kept > 0);
        assert!(found.contains_key(&("b".to_owned(), T0)));
        // It stays accepted.
        w.crash(0).await;
        w.boot(0).await;
        w.until("counts", |w| w.counts(0)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_loss_accepted_during_the_replay_is_accepted() {
    let mut w = World::start(1).await;
    for i in 0..50 {
        assert!(w.write(&[("a", T0 + i, 1.0)]).await);
    }
    w.kill(0).await;
    w.lose_segments(0, 0);
    let booting = w.boot_only(0);
    w.accept_loss();
    assert!(booting.wait_running().await);
    w.until("counts", |w| w.counts(0)).await;
    assert!(w.read(0).await.unwrap().0.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stop_drains_what_was_pushed() {
    let mut w = World::start(1).await;
    let pushes: Vec<_> = (0..20)
        .map(|i| w.batch(&[("a", T0 + i * MINUTE, i as f64)]))
        .collect();
    let m = w.node(0).clone();
    let pushes = futures::future::join_all(pushes.into_iter().map(|b| m.push(b)));
    let (acks, ()) = futures::join!(pushes, m.stop());
    let acked = acks.iter().filter(|a| a.is_ok()).count();
    let late = w.batch(&[("a", T0, 1.0)]);
    assert_eq!(
        m.push(late).await.unwrap_err().code,
        ServiceErrorCode::Unavailable
    );
    w.crash(0).await;
    w.boot(0).await;
    assert_eq!(without_starts(&w.read(0).await.unwrap().0), acked);
}

#[tokio::test(start_paused = true)]
async fn a_stop_during_the_replay_ends() {
    let mut w = World::start(1).await;
    assert!(w.write(&[("a", T0, 1.0)]).await);
    w.kill(0).await;
    let booting = w.boot_only(0);
    booting.stop().await;
    assert!(!booting.wait_running().await);
    w.nodes[0].tasks.stop().await;
    assert_eq!(w.nodes[0].tasks.failure(), None);
    assert!(w.boot(0).await);
    w.check(&w.read(0).await.unwrap().0);
}

#[tokio::test(start_paused = true)]
async fn i12_pushes_and_repair_wait_while_memory_is_short() {
    let mut w = World::start(3).await;
    assert!(w.write(&[("a", T0, 1.0)]).await);
    w.memory.use_percent(90);
    w.sleep(Duration::from_secs(1)).await;
    let batch = w.batch(&[("a", T0 + 1, 1.0)]);
    let refused = w.node(0).push(batch).await.unwrap_err();
    assert_eq!(refused.code, ServiceErrorCode::ResourceExhausted);
    assert!(refused.message.starts_with("memory is short"), "{refused}");
    w.check(&w.read(0).await.unwrap().0);
    w.memory.use_percent(84);
    w.sleep(Duration::from_secs(1)).await;
    assert!(w.write(&[("a", T0 + 2, 1.0)]).await);
    w.check(&w.read(0).await.unwrap().0);
}

#[tokio::test(start_paused = true)]
async fn requests_wait_while_the_log_is_replayed() {
    let mut w = World::start(1).await;
    assert!(w.write(&[("a", T0, 1.0)]).await);
    w.kill(0).await;
    let booting = w.boot_only(0);
    assert!(!booting.is_running());
    w.check(&w.read(0).await.unwrap().0);

    w.kill(0).await;
    assert!(!w.boot_only(0).is_running());
    assert!(w.write(&[("a", T0 + 1, 2.0)]).await);
    w.check(&w.read(0).await.unwrap().0);
}

#[tokio::test(start_paused = true)]
async fn whoever_waited_long_enough_for_the_replay_is_told_why() {
    let mut w = World::start_with(1, |s| s.replay_patience = Duration::ZERO).await;
    assert!(w.write(&[("a", T0, 1.0)]).await);
    w.kill(0).await;
    let batch = w.batch(&[("a", T0 + 1, 2.0)]);
    let booting = w.boot_only(0);
    let refused = booting.push(batch).await.unwrap_err();
    assert_eq!(refused.code, ServiceErrorCode::Unavailable);
    assert!(
        refused.message.contains("replays its log; retry shortly"),
        "{refused}"
    );
    let refused = w.read(0).await.unwrap_err();
    assert_eq!(refused.code, ServiceErrorCode::NotCounting);
}

#[tokio::test(start_paused = true)]
async fn reads_go_to_other_members_while_the_log_is_replayed() {
    let mut w = World::start(3).await;
    assert!(w.write(&[("a", T0, 1.0)]).await);
    w.kill(0).await;
    assert!(!w.boot_only(0).is_running());
    let refused = w.read(0).await.unwrap_err();
    assert_eq!(refused.code, ServiceErrorCode::NotCounting);
}

#[tokio::test(start_paused = true)]
async fn i12_no_more_than_the_queue_waits_for_the_replay() {
    let mut w = World::start_with(1, |s| s.push_queue_bytes = 1 << 10).await;
    assert!(w.write(&[("a", T0, 1.0)]).await);
    w.kill(0).await;
    let many: Vec<_> = (0..100).map(|i| ("a", T0 + 1 + i, 2.0)).collect();
    let batch = w.batch(&many);
    let refused = w.boot_only(0).push(batch).await.unwrap_err();
    assert_eq!(refused.code, ServiceErrorCode::Unavailable);
}
