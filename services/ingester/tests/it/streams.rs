//! What is held is told in few words, however long and however badly it came.

use std::time::Duration;

use koios_ingester::Settings;
use koios_model::BatchSet;
use koios_wire::{IngesterService, ServiceErrorCode};

use crate::harness::{PARTITION, T0, World, tenant};

const A_MINUTE: Duration = Duration::from_secs(60);

fn runs(set: &BatchSet) -> usize {
    set.streams().map(|(_, sequences)| sequences.runs().count()).sum()
}

/// Writes one sample, all batches before which are settled.
async fn write_settled(w: &mut World, to: &[usize], t: i64) -> bool {
    w.settled_below = w.next;
    w.write_to(to, &[("a", t, t as f64)]).await
}

#[tokio::test(start_paused = true)]
async fn batches_that_nobody_acknowledged_leave_no_gaps_for_good() {
    for members in [1, 3] {
        let mut w = World::start(members).await;
        let all: Vec<usize> = (0..members).collect();
        for i in 0..200 {
            assert!(write_settled(&mut w, &all, T0 + i).await);
            // Every second one is refused by all.
            w.next += 1;
        }
        // The last is not known to be settled.
        assert!(write_settled(&mut w, &all, T0 + 200).await);
        w.sleep(3 * A_MINUTE).await;
        for i in 0..members {
            let (held, logged) = w.holdings(i).await;
            assert_eq!(runs(&held), 1, "member {i} of {members}");
            assert_eq!((held.len(), logged.len()), (401, 201));
        }
        w.crash(0).await;
        w.boot(0).await;
        w.until("counts", |w| w.counts(0)).await;
        assert_eq!(runs(&w.holdings(0).await.0), 1, "{members} members");
        w.check(&w.query(0).await);
    }
}

#[tokio::test(start_paused = true)]
async fn i1_a_gap_that_others_hold_is_repaired_and_one_of_a_member_away_stays() {
    let mut w = World::start(3).await;
    assert!(write_settled(&mut w, &[0, 1, 2], T0).await);
    // Acknowledged by two, and settled before the third has looked for it.
    assert!(write_settled(&mut w, &[0, 1], T0 + 10).await);
    assert!(write_settled(&mut w, &[0, 1, 2], T0 + 11).await);
    w.sleep(3 * A_MINUTE).await;
    assert_eq!(w.holdings(2).await.1.len(), 3);
    w.crash(2).await;
    // Acknowledged while a member is away, and refused by the others.
    assert!(write_settled(&mut w, &[0, 1], T0 + 12).await);
    w.next += 1;
    assert!(write_settled(&mut w, &[0, 1], T0 + 13).await);
    w.sleep(3 * A_MINUTE).await;
    assert_eq!(runs(&w.holdings(0).await.0), 2, "the member away might hold it");
    w.boot(2).await;
    assert!(write_settled(&mut w, &[0, 1, 2], T0 + 14).await);
    w.sleep(3 * A_MINUTE).await;
    for i in 0..3 {
        let (held, logged) = w.holdings(i).await;
        assert_eq!((runs(&held), held.len(), logged.len()), (1, 7, 6), "member {i}");
        w.check(&w.read(i).await.unwrap().0);
    }
}

#[tokio::test(start_paused = true)]
async fn i1_what_a_member_lacks_is_told_until_it_has_heard_of_it() {
    let mut w = World::start_with(3, small_segments).await;
    assert!(write_settled(&mut w, &[0, 1, 2], T0).await);
    assert!(write_settled(&mut w, &[0, 1], T0 + 10).await);
    assert!(write_settled(&mut w, &[0, 1, 2], T0 + 11).await);
    // Away before it has looked for the second one, until the others have it in blocks only.
    w.crash(2).await;
    w.sleep(12 * 60 * A_MINUTE).await;
    for i in [0, 1] {
        w.crash(i).await;
        w.boot(i).await;
    }
    w.sleep(12 * 60 * A_MINUTE).await;
    assert_eq!(w.holdings(0).await.1.len(), 0, "the log has nothing of it");
    // The others hear what it holds before it hears them.
    w.cut_off(2, true);
    w.boot(2).await;
    w.sleep(3 * A_MINUTE).await;
    w.cut_off(2, false);
    w.sleep(3 * A_MINUTE).await;
    for i in 0..3 {
        assert_eq!(w.read(i).await.unwrap().1.held.len(), 3, "member {i}");
        w.check(&w.query(i).await);
    }
}

#[tokio::test(start_paused = true)]
async fn i2_a_batch_that_its_sender_gave_up_comes_from_members_only() {
    let mut w = World::start(3).await;
    w.settled_below = 0;
    let late = w.batch(&[("a", T0, 1.0)]);
    w.node(0).push(late.clone()).await.unwrap();
    w.node(1).push(late.clone()).await.unwrap();
    assert!(write_settled(&mut w, &[0, 1, 2], T0 + 1).await);
    let refused = w.node(2).push(late).await.unwrap_err();
    assert_eq!(refused.code, ServiceErrorCode::Stale, "{refused}");
    w.sleep(3 * A_MINUTE).await;
    assert_eq!(w.holdings(2).await.1.len(), 2);
    assert_eq!(w.read(2).await.unwrap().0, w.read(0).await.unwrap().0);
}

#[tokio::test(start_paused = true)]
async fn i2_a_batch_that_passes_for_being_in_blocks_comes_from_members_only() {
    let mut w = World::start_with(1, small_segments).await;
    let first = w.batch(&[("a", T0, 1.0)]);
    w.node(0).push(first.clone()).await.unwrap();
    w.node(0).push(first.clone()).await.unwrap();
    for i in 0..8 * 60 {
        assert!(w.write(&[("a", T0 + i * 60_000, 1.0), ("b", T0, i as f64)]).await);
        w.sleep(A_MINUTE).await;
    }
    let (held, logged) = w.holdings(0).await;
    let header = first.header();
    let is_in = |set: &BatchSet| set.contains(header.stream, header.sequence);
    assert!(is_in(&held) && !is_in(&logged));
    let refused = w.node(0).push(first).await.unwrap_err();
    assert_eq!(refused.code, ServiceErrorCode::Stale, "{refused}");
}

fn small_segments(s: &mut Settings) {
    s.wal_segment_bytes = 4 << 10;
    s.wal_keep = Duration::ZERO;
}

#[tokio::test(start_paused = true)]
async fn streams_that_are_over_go() {
    for members in [1, 3] {
        let mut w = World::start_with(members, small_segments).await;
        let hours = 30;
        for _ in 0..hours {
            // A distributor starts anew.
            (w.stream, w.next) = (w.stream + 1, 0);
            for _ in 0..60 {
                let (now, next) = (w.clock.now_ms(), w.next);
                w.settled_below = next;
                let samples = [("a", now, 1.0), ("b", now, 2.0), ("c", now, next as f64)];
                assert!(w.write(&samples).await);
                w.sleep(A_MINUTE).await;
            }
        }
        for i in 0..members {
            let (held, _) = w.holdings(i).await;
            let all = w.read(i).await.unwrap().1.held;
            let (told, held) = (held.streams().count(), all.streams().count());
            assert!(
                told <= held && held <= 18,
                "member {i} of {members}: {told}, {held}"
            );
        }
        let manifest = w.manifests.probe(&tenant()).await.unwrap();
        let newest = manifest.blocks.iter().max_by_key(|b| b.range.max).unwrap();
        let covered = newest.covers[&PARTITION].streams().count();
        assert!(covered <= 13, "{covered}");
        w.check(&w.query(0).await);
        if members > 1 {
            w.sleep(12 * 60 * A_MINUTE).await;
            // All that is left of the others are streams that the log has whole.
            for _ in 0..60 {
                (w.stream, w.next, w.settled_below) = (w.stream + 1, 0, 0);
                let batch = w.metadata_batch(&["a", "b"]);
                for i in 0..members {
                    w.node(i).push(batch.clone()).await.unwrap();
                }
            }
            w.sleep(12 * 60 * A_MINUTE).await;
            let (held, logged) = w.holdings(0).await;
            assert_eq!(held, logged);
            // One that begins anew learns where what it never had is.
            w.wipe(2).await;
            w.boot(2).await;
            w.until("the new member counts", |w| w.counts(2)).await;
            let end = w.read(2).await.unwrap().1;
            assert!(end.manifest_floor > 0 && end.forgotten_below_ms > T0);
            w.check(&w.query(2).await);
        }
        w.crash(0).await;
        w.boot(0).await;
        w.until("counts", |w| w.counts(0)).await;
        w.check(&w.query(0).await);
    }
}
