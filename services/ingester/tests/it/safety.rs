//! What is held up, by whom, and for how long.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use koios_control::Partition;
use koios_model::{BatchSet, PartitionId, StreamId, TenantId, TimeRange};
use koios_testkit::sim_disk::{Fault, FaultPlan};
use koios_wire::{
    Batch, BatchHeader, BatchSetsRequest, FetchBatchesRequest, IngesterService, ServiceErrorCode,
};

use crate::harness::{HOUR, MINUTE, PARTITION, T0, TestPace, World, tenant};

impl World {
    /// From now on a member's disk has a pace.
    async fn set_pace(&mut self, i: usize) -> Arc<TestPace> {
        let pace = TestPace::new(&self.clock);
        self.pace = Some(Arc::clone(&pace));
        self.kill(i).await;
        self.boot(i).await;
        pace
    }

    /// A batch like the tenant's own, of another one.
    fn batch_of(&mut self, tenant: &TenantId, samples: &[(&str, i64, f64)]) -> Arc<Batch> {
        let batch = self.batch(samples);
        let header = BatchHeader {
            tenant: tenant.clone(),
            ..batch.header().clone()
        };
        Arc::new(Batch::new(header, batch.columns().clone()))
    }
}

fn other() -> TenantId {
    TenantId::new("other").unwrap()
}

/// Blocks that were listed before it are no substitute: it masks them.
#[tokio::test(start_paused = true)]
async fn i1_no_segment_goes_while_a_deletion_reads_what_it_has_to_leave() {
    let mut w = World::start_with(1, |s| s.wal_segment_bytes = 4 << 10).await;
    let disk = w.set_pace(0).await;
    // Given batches in listed blocks and in many segments, and a deletion that covers the first batch only.
    let mut covered = BatchSet::default();
    covered.insert(StreamId(w.stream), w.next);
    for batch in 0..40 {
        let times = (0..200).map(|i| T0 + batch * 200 + i);
        let samples: Vec<_> = times.map(|t| ("a", t, (t as f64 * 0.731).sin())).collect();
        assert!(w.write(&samples).await);
    }
    w.flush(0).await.unwrap();
    let files = w.wal_files(0);
    assert!(files.len() > 15, "{files:?}");
    let version = w.list_deletion_of(1, "a", TimeRange::ALL, covered).await;
    w.acked.retain(|(_, t), _| *t >= T0 + 200);
    // When the head's time for them ends while the log is read for the deletion, and for others as well, which makes that slow.
    w.sleep(3 * Duration::from_secs(3600) - Duration::from_secs(10))
        .await;
    assert_eq!(w.wal_files(0)[0], files[0]);
    disk.slow(Duration::from_secs(10));
    let held = w.holdings(0).await.0;
    let fetch = || async {
        let wanted = FetchBatchesRequest {
            partition: PARTITION,
            tenant: tenant(),
            wanted: held.clone(),
        };
        let batches = w.node(0).fetch_batches(wanted).await.unwrap();
        batches.count().await
    };
    let (applied, ..) = futures::join!(w.deletions(0, version), fetch(), fetch(), fetch());
    // Then nothing is lost,
    applied.unwrap();
    disk.slow(Duration::ZERO);
    assert!(w.counts(0));
    assert_eq!(w.everything(version).await, w.acked);
    // and they go later.
    w.until("the log was truncated", |w| w.wal_files(0)[0] != files[0])
        .await;
    w.crash(0).await;
    assert!(w.boot(0).await);
    assert!(w.counts(0));
    assert_eq!(w.everything(version).await, w.acked);
}

#[tokio::test(start_paused = true)]
async fn i1_a_deletion_leaves_a_batch_that_waits_for_the_log_when_its_sender_has_gone() {
    let mut w = World::start(1).await;
    let disk = w.set_pace(0).await;
    assert!(w.write(&[("a", T0, 1.0), ("b", T0, 1.0)]).await);
    let version = w.list_deletion(1, "a", TimeRange::ALL).await;
    let m = w.node(0).clone();
    let mut push = m.push(w.batch(&[("a", T0 + 1, 2.0)]));
    // Its record waits in the queue then.
    assert!(futures::poll!(push.as_mut()).is_pending());
    disk.hold(true);
    drop(push);
    let (applied, ()) = futures::join!(w.deletions(0, version), async {
        w.sleep(Duration::from_secs(1)).await;
        disk.hold(false);
    });
    applied.unwrap();
    let (found, end) = w.read_knowing(0, version).await.unwrap();
    assert_eq!(end.held.len(), 2, "the record was queued");
    assert!(!found.contains_key(&("a".to_owned(), T0)));
    assert!(found.contains_key(&("a".to_owned(), T0 + 1)), "{found:?}");
}

#[tokio::test(start_paused = true)]
async fn i6_pushes_go_on_while_a_deletion_reads_the_log() {
    let mut w = World::start_with(1, |s| s.wal_segment_bytes = 16 << 10).await;
    let disk = w.set_pace(0).await;
    assert!(w.write(&[("a", T0, 1.0)]).await);
    let version = w.list_deletion(1, "a", TimeRange::ALL).await;
    for i in 1..1500 {
        assert!(w.write(&[("a", T0 + i, 1.0)]).await);
    }
    assert!(w.wal_files(0).len() > 10);
    let pushes: Vec<_> = (0..1000)
        .map(|i| w.batch_of(&other(), &[("b", T0 + i, 1.0)]))
        .collect();
    disk.slow(Duration::from_millis(500));
    let (m, ended, longest) = (w.node(0).clone(), Cell::new(false), Cell::new(Duration::ZERO));
    let deleting = async {
        w.deletions(0, version).await.unwrap();
        ended.set(true);
    };
    let pushing = async {
        for push in pushes {
            let started = w.clock.elapsed();
            m.push(push).await.unwrap();
            longest.set(longest.get().max(w.clock.elapsed() - started));
            if ended.get() {
                return;
            }
        }
        panic!("it never ended");
    };
    futures::join!(deleting, pushing);
    // Of ten and more segments, each of which takes a second, some are read while pushes wait.
    assert!(longest.get() < Duration::from_secs(8), "{:?}", longest.get());
    let (found, _) = w.read_knowing(0, version).await.unwrap();
    let left = found.keys().filter(|(name, _)| name == "a").count();
    assert_eq!(left, 1499);
}

/// A partition that the member holds beside the other, and then not any more.
const MOVED: PartitionId = PartitionId(1);

#[tokio::test(start_paused = true)]
async fn i11_damage_does_not_keep_the_log_for_a_partition_that_has_left() {
    let mut w = World::start(1).await;
    w.change_state(|s| {
        let p = s.partitions[&PARTITION].clone();
        s.partitions.insert(MOVED, Partition { id: MOVED, ..p });
    });
    w.until("both are adopted", |w| w.node(0).status().partitions.len() == 2)
        .await;
    for i in 0..50 {
        assert!(w.write(&[("a", T0 + i, 1.0)]).await);
    }
    let move_to = |w: &World, member: &str, counts: bool| {
        w.change_state(|s| {
            let p = s.partitions.get_mut(&MOVED).unwrap();
            p.epoch += 1;
            p.replicas[0].member = member.to_owned();
            p.replicas[0].counts = counts;
        });
    };
    move_to(&w, "elsewhere", true);
    w.kill(0).await;
    w.damage_batch(0, 9);
    assert!(w.boot(0).await);
    w.sleep(Duration::from_secs(60)).await;
    w.accept_loss();
    w.until("counts", |w| w.counts(0)).await;
    assert!(w.write(&[("a", T0 + 8 * HOUR, 1.0)]).await);
    w.flush(0).await.unwrap();
    w.until("the damaged segment goes", |w| {
        !w.wal_files(0).contains(&"0000000001.wal".to_owned())
    })
    .await;
    // What it has of the other does not pass for whole, should that come back.
    move_to(&w, "m0", true);
    w.sleep(Duration::from_secs(60)).await;
    let status = w.node(0).status();
    let moved = status.partitions.iter().find(|p| p.partition == MOVED).unwrap();
    assert!(moved.damaged && !moved.counts, "{moved:?}");
}

#[tokio::test(start_paused = true)]
async fn an_accepted_loss_counts_although_the_log_refuses_its_record_once() {
    let mut w = World::start(1).await;
    for i in 0..50 {
        assert!(w.write(&[("a", T0 + i, 1.0)]).await);
    }
    w.kill(0).await;
    w.damage_batch(0, 9);
    assert!(w.boot(0).await);
    w.sleep(Duration::from_secs(60)).await;
    w.nodes[0]
        .disk
        .set_faults(FaultPlan::default().with(1, Fault::Full));
    w.accept_loss();
    w.until("counts", |w| w.counts(0)).await;
    let struck = w.nodes[0].disk.take_struck();
    assert!(
        struck.len() == 1 && struck[0].contains("Write /data/wal/"),
        "{struck:?}"
    );
    assert!(w.write(&[("a", T0 + MINUTE, 1.0)]).await);
}

#[tokio::test(start_paused = true)]
async fn i6_i11_a_batch_that_a_peer_cannot_read_does_not_stop_the_repair_of_others() {
    // A segment takes some of the batches.
    let mut w = World::start_with(2, |s| s.wal_segment_bytes = 8 << 10).await;
    w.kill(1).await;
    let m = w.node(0).clone();
    for i in 0..200 {
        let batch = w.batch(&[("a", T0 + i, 1.0)]);
        m.push(batch).await.unwrap();
    }
    for i in 0..10 {
        let batch = w.batch_of(&other(), &[("a", T0 + i, 1.0)]);
        m.push(batch).await.unwrap();
    }
    assert!(w.wal_files(0).len() > 2);
    w.damage_batch(0, 9);
    w.boot(1).await;
    w.sleep(Duration::from_secs(120)).await;
    let request = BatchSetsRequest {
        partition: PARTITION,
        epoch: w.epoch(),
    };
    let reply = w.node(1).batch_sets(request).await.unwrap();
    let held: Vec<_> = reply.tenants.iter().map(|t| (&t.tenant, t.held.len())).collect();
    assert_eq!(held, [(&tenant(), 199), (&other(), 10)]);
}

#[tokio::test(start_paused = true)]
async fn i11_a_running_member_logs_again_what_it_cannot_read_any_more() {
    let mut w = World::start(3).await;
    w.kill(2).await;
    for i in 0..20 {
        assert!(w.write(&[("a", T0 + i, 1.0)]).await);
    }
    w.damage_batch(0, 9);
    let wanted = w.holdings(0).await.0;
    let fetch = async |w: &World| {
        use futures::StreamExt;
        let request = FetchBatchesRequest {
            partition: PARTITION,
            tenant: tenant(),
            wanted: wanted.clone(),
        };
        let stream = w.node(0).fetch_batches(request).await.unwrap();
        let answers: Vec<_> = stream.collect().await;
        let error = answers.iter().find_map(|a| a.as_ref().err()).map(|e| e.code);
        (answers.iter().filter(|a| a.is_ok()).count(), error)
    };
    assert_eq!(fetch(&w).await, (19, Some(ServiceErrorCode::Corruption)));
    w.sleep(Duration::from_secs(120)).await;
    assert_eq!(fetch(&w).await, (20, None));
    assert!(w.counts(0), "the head had it all the time");
    w.check(&w.read(0).await.unwrap().0);
}
