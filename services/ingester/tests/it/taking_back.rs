//! What was on its way when a deletion was made, and acknowledged then, comes back when the deletion is taken back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use koios_bucket::{Nonce, TombstoneState};
use koios_ingester::Settings;
use koios_model::TimeRange;
use koios_testkit::sim_disk::{Fault, FaultPlan};
use koios_wire::{Batch, IngesterService};

use crate::harness::{HOUR, MINUTE, Samples, T0, World, tenant};
use crate::pinning::{push_much, small_segments};
use crate::snapshot::snapshots;

/// Longer than a look at what is late.
const A_WHILE: Duration = Duration::from_secs(60);

type Sample = (&'static str, i64, f64);

/// What is on its way.
const LATE: [Sample; 4] = [
    ("a", T0 + MINUTE, 7.0),
    ("hist", T0 + MINUTE, 7.0),
    ("c", T0 + MINUTE, 7.0),
    ("a", T0 + 3 * HOUR, 8.0),
];

impl World {
    async fn arrive(&self, batch: &Arc<Batch>) {
        for i in self.up() {
            self.node(i).push(Arc::clone(batch)).await.unwrap();
        }
    }

    /// A batch that is numbered, but not sent before the next one of its stream is there.
    async fn on_its_way(&mut self, samples: &[Sample]) -> Arc<Batch> {
        let batch = self.batch(samples);
        assert!(
            self.write(&[("a", T0, 1.0), ("hist", T0, 1.0), ("c", T0, 1.0)])
                .await
        );
        batch
    }

    /// Deletes "a" and "hist", and has a batch arrive that was on its way. Gives the last version.
    async fn with_late(&mut self, batch: &Arc<Batch>, samples: &[Sample]) -> u64 {
        self.delete(1, "a", TimeRange::ALL).await;
        let version = self.delete(2, "hist", TimeRange::ALL).await;
        for i in self.up() {
            self.deletions(i, version).await.unwrap();
        }
        self.arrive(batch).await;
        let left: Vec<Sample> = samples.iter().filter(|s| s.0 == "c").copied().collect();
        self.acknowledged(&left);
        self.expect(version, "left out").await;
        version
    }

    /// Takes both deletions back: all that was acknowledged is there.
    async fn expect_back(&mut self, before: &Samples, samples: &[Sample]) -> u64 {
        self.take_back(1).await;
        let version = self.take_back(2).await;
        self.acked.extend(before.clone());
        self.acknowledged(samples);
        self.expect(version, "taken back").await;
        version
    }

    async fn restart_all(&mut self) {
        for i in 0..self.nodes.len() {
            self.crash(i).await;
            self.boot(i).await;
        }
        self.until("all count", |w| (0..w.nodes.len()).all(|i| w.counts(i)))
            .await;
    }

    async fn holdings_of(&self, i: usize) -> u64 {
        let request = koios_wire::BatchSetsRequest {
            partition: crate::harness::PARTITION,
            epoch: self.epoch(),
        };
        let reply = self.node(i).batch_sets(request).await.unwrap();
        reply.tenants.iter().map(|t| t.held.len()).sum()
    }

    /// How many blocks deletions have listed.
    async fn backups(&self) -> usize {
        let manifest = self.manifests.probe(&tenant()).await.unwrap();
        manifest.blocks.iter().filter(|b| b.covers.is_empty()).count()
    }
}

#[tokio::test(start_paused = true)]
async fn i1_i10_what_came_late_is_uploaded_and_comes_back() {
    for members in [1, 3] {
        let mut w = World::start(members).await;
        let batch = w.on_its_way(&LATE).await;
        let before = w.acked.clone();
        let version = w.with_late(&batch, &LATE).await;
        let blocks = w.backups().await;
        w.sleep(A_WHILE).await;
        let uploaded = w.backups().await;
        assert!(uploaded >= blocks + 2 * members, "two windows");
        w.sleep(A_WHILE).await;
        assert_eq!(w.backups().await, uploaded, "once");
        w.restart_all().await;
        w.sleep(A_WHILE).await;
        assert_eq!(w.backups().await, uploaded, "nor after a restart");
        w.expect(version, "masked").await;
        w.expect_back(&before, &LATE).await;
        w.restart_all().await;
        let version = w.manifests.probe(&tenant()).await.unwrap().version;
        w.expect(version, "after a restart").await;
    }
}

#[tokio::test(start_paused = true)]
async fn i1_i10_what_came_late_comes_back_before_it_is_uploaded() {
    fn in_parts(s: &mut Settings) {
        s.deletion_record_bytes = 64;
    }
    for (members, tune) in [(1, in_parts as fn(&mut Settings)), (3, |_| {})] {
        for restarts in [false, true] {
            let mut w = World::start_with(members, tune).await;
            let (first, second) = (w.batch(&LATE), w.batch(&[("a", T0 + 9, 2.0)]));
            let batch = w.on_its_way(&LATE).await;
            let before = w.acked.clone();
            let blocks = w.store.blocks.clone();
            w.with_late(&batch, &LATE).await;
            w.arrive(&first).await;
            w.arrive(&second).await;
            let no_blocks = blocks.write().await;
            if restarts {
                w.restart_all().await;
            }
            let mut late = LATE.to_vec();
            late.push(("a", T0 + 9, 2.0));
            let version = w.expect_back(&before, &late).await;
            w.restart_all().await;
            w.expect(version, "after a restart").await;
            drop(no_blocks);
            for i in 0..members {
                w.flush(i).await.unwrap();
            }
            w.expect(version, "cut").await;
            assert_eq!(w.blocks(0, TimeRange::ALL).await, w.acked, "blocks have it");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn i1_i10_what_comes_while_a_deletion_is_applied_comes_back() {
    for uploads in [true, false] {
        let mut w = World::start(1).await;
        let batch = w.on_its_way(&LATE).await;
        let before = w.acked.clone();
        let version = w.list_deletion(1, "a", TimeRange::ALL).await;
        let version = version.max(w.list_deletion(2, "hist", TimeRange::ALL).await);
        let puts = w.store.block_puts.load(Ordering::Relaxed);
        let no_blocks = Arc::clone(&w.store.blocks).write_owned().await;
        // What the head had is copied, and waits for the bucket.
        let arriving = async {
            while w.store.block_puts.load(Ordering::Relaxed) == puts {
                tokio::task::yield_now().await;
            }
            w.arrive(&batch).await;
            drop(no_blocks);
        };
        let (applied, ()) = futures::join!(w.deletions(0, version), arriving);
        applied.unwrap();
        w.acknowledged(&[LATE[2]]);
        w.expect(version, "deleted").await;
        if uploads {
            w.sleep(A_WHILE).await;
        }
        w.restart_all().await;
        w.expect_back(&before, &LATE).await;
    }
}

#[tokio::test(start_paused = true)]
async fn i10_what_came_late_never_comes_back_once_its_deletion_is_final() {
    for waits in [Duration::ZERO, A_WHILE] {
        let mut w = World::start(3).await;
        let batch = w.on_its_way(&LATE).await;
        w.with_late(&batch, &LATE).await;
        w.sleep(waits).await;
        let finish = |m: &mut koios_bucket::Manifest| {
            for id in [1, 2] {
                m.set_tombstone_state(Nonce(id), TombstoneState::Final);
            }
        };
        let version = w.change_manifest(finish).await;
        let blocks = w.backups().await;
        for _ in 0..2 {
            w.sleep(A_WHILE).await;
            assert_eq!(w.backups().await, blocks, "nothing more is uploaded");
            w.expect(version, "final").await;
            w.restart_all().await;
        }
    }
}

/// A member that crashed while it applied a deletion, and then hears that it is taken back.
struct Interrupted {
    w: World,
    /// What was there before, but for what came late.
    before: Samples,
    /// The version that says so.
    version: u64,
    /// It had applied all of it.
    is_whole: bool,
}

impl Interrupted {
    /// The power goes at the `n`-th operation of the disk from when all is uploaded that the head had.
    async fn at(n: u64, hears_later: bool) -> Self {
        let tune = |s: &mut Settings| {
            small_segments(s);
            s.deletion_record_bytes = 64;
        };
        let mut w = World::start_with(1, tune).await;
        let batch = w.on_its_way(&LATE).await;
        let before = w.acked.clone();
        let version = w.list_deletion(1, "a", TimeRange::ALL).await;
        for i in 0..4 {
            assert!(w.write(&[("a", T0 + i * HOUR + 3, 2.0)]).await);
        }
        let puts = w.store.block_puts.load(Ordering::Relaxed);
        let no_blocks = Arc::clone(&w.store.blocks).write_owned().await;
        let arriving = async {
            while w.store.block_puts.load(Ordering::Relaxed) == puts {
                tokio::task::yield_now().await;
            }
            w.arrive(&batch).await;
            let power_loss = FaultPlan::default().with(n, Fault::PowerLoss);
            w.nodes[0].disk.set_faults(power_loss);
            drop(no_blocks);
        };
        let (applied, ()) = futures::join!(w.deletions(0, version), arriving);
        w.nodes[0].disk.set_faults(FaultPlan::default());
        w.crash(0).await;
        let version = w.take_back(1).await;
        if hears_later {
            // It starts twice, from a snapshot then.
            w.store.down.store(true, Ordering::Relaxed);
            w.boot(0).await;
            for _ in 0..10_000 {
                if !snapshots(&w, 0).is_empty() {
                    break;
                }
                push_much(&mut w).await;
            }
            w.until("a snapshot was written", |w| !snapshots(w, 0).is_empty())
                .await;
            w.crash(0).await;
            w.store.down.store(false, Ordering::Relaxed);
        }
        w.boot(0).await;
        w.until("counts", |w| w.counts(0)).await;
        w.deletions(0, version).await.unwrap();
        Self {
            w,
            before,
            version,
            is_whole: applied.is_ok(),
        }
    }
}

/// The deletion is known with the last of its parts.
#[tokio::test(start_paused = true)]
async fn i1_i10_what_parts_of_a_deletion_took_comes_back_although_the_others_never_came() {
    for n in 0.. {
        let mut is_whole = true;
        for hears_later in [false, true] {
            let mut at = Interrupted::at(n, hears_later).await;
            let (w, what) = (&mut at.w, format!("{n}, {hears_later}"));
            w.acked.extend(at.before);
            w.acknowledged(&LATE);
            w.expect(at.version, &format!("taken back, {what}")).await;
            w.check(&w.query(0).await);
            w.restart_all().await;
            w.expect(at.version, &format!("after a restart, {what}")).await;
            w.check(&w.query(0).await);
            w.flush(0).await.unwrap();
            assert_eq!(w.blocks(0, TimeRange::ALL).await, w.acked, "cut, {what}");
            is_whole &= at.is_whole;
        }
        if is_whole {
            assert!(n > 5);
            return;
        }
    }
}

/// Nothing masks it there, and the tombstone does not come again.
#[tokio::test(start_paused = true)]
async fn i10_what_came_late_is_not_listed_where_versions_of_the_manifest_are_lost() {
    let mut w = World::start(1).await;
    let batch = w.on_its_way(&LATE).await;
    let before = w.acked.clone();
    w.flush(0).await.unwrap();
    let first = w.manifests.probe(&tenant()).await.unwrap().version;
    let version = w.with_late(&batch, &LATE).await;
    w.crash(0).await;
    let aside = w.lose_versions_above(first).await;
    let bucket = w.manifests.bucket().clone();
    let uploaded = bucket.uploaded_blocks(&tenant()).await.unwrap();
    w.boot(0).await;
    w.sleep(A_WHILE).await;
    w.flush(0).await.unwrap_err();
    assert_eq!(w.manifests.probe(&tenant()).await.unwrap().version, first);
    assert_eq!(bucket.uploaded_blocks(&tenant()).await.unwrap(), uploaded);
    w.bring_back(aside).await;
    let blocks = w.backups().await;
    w.sleep(A_WHILE).await;
    assert!(w.backups().await > blocks, "it goes on");
    w.expect(version, "masked").await;
    w.expect_back(&before, &LATE).await;
}

/// Another member replaced this one meanwhile, so that nobody waited for it.
#[tokio::test(start_paused = true)]
async fn i10_what_came_late_never_comes_back_once_its_deletion_is_forgotten() {
    fn forget(m: &mut koios_bucket::Manifest) {
        m.tombstones.clear();
        let backups = m.blocks.iter().filter(|b| b.covers.is_empty());
        let backups: Vec<_> = backups.map(|b| b.block).collect();
        for block in backups {
            m.remove_block(block);
        }
    }
    fn finish(m: &mut koios_bucket::Manifest) {
        for id in [1, 2] {
            m.set_tombstone_state(Nonce(id), TombstoneState::Final);
        }
    }
    for is_uploading in [false, true] {
        let mut w = World::start_with(2, small_segments).await;
        let now = w.clock.now_ms();
        let late = [("a", now, 7.0), ("hist", now + 1, 7.0)];
        let batch = w.on_its_way(&late).await;
        let version = w.with_late(&batch, &late).await;
        for i in 0..2 {
            w.crash(i).await;
        }
        let gate = Arc::clone(&w.store.blocks);
        let no_blocks = gate.write().await;
        if !is_uploading {
            w.change_manifest(finish).await;
            w.change_manifest(forget).await;
        }
        let puts = w.store.block_puts.load(Ordering::Relaxed);
        for i in 0..2 {
            w.boot(i).await;
        }
        if is_uploading {
            while w.store.block_puts.load(Ordering::Relaxed) == puts {
                w.sleep(Duration::from_millis(100)).await;
            }
            w.change_manifest(finish).await;
            w.change_manifest(forget).await;
        }
        drop(no_blocks);
        w.sleep(A_WHILE).await;
        assert_eq!(w.backups().await, 0);
        w.expect(version, "gone").await;
        while w.wal_files(0).len() < 5 {
            push_much(&mut w).await;
        }
        for i in 0..2 {
            w.flush(i).await.unwrap();
            assert_ne!(w.wal_files(i)[0], "0000000001.wal", "nor does the log keep it");
        }
        w.expect(version, "cut").await;
    }
}

/// Of two deletions that delete the same, either may be taken back first.
#[tokio::test(start_paused = true)]
async fn i10_what_two_deletions_took_comes_back_with_the_second() {
    for (first, second) in [(1, 3), (3, 1)] {
        for uploads in [true, false] {
            let mut w = World::start(3).await;
            let batch = w.on_its_way(&LATE).await;
            let before = w.acked.clone();
            w.with_late(&batch, &LATE).await;
            let kept = w.acked.clone();
            let version = w.delete(3, "a", TimeRange::ALL).await;
            w.expect(version, "deleted twice").await;
            if uploads {
                w.sleep(A_WHILE).await;
            }
            let version = w.take_back(first).await;
            w.expect(version, "the other one deletes it still").await;
            assert_eq!(w.acked, kept);
            w.restart_all().await;
            w.take_back(second).await;
            let version = w.take_back(2).await;
            w.acked.extend(before);
            w.acknowledged(&LATE);
            w.expect(version, "both are taken back").await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn i10_the_log_keeps_what_came_late_until_it_is_uploaded() {
    let mut w = World::start_with(2, small_segments).await;
    let late = [("a", w.clock.now_ms(), 7.0), ("hist", w.clock.now_ms() + 1, 7.0)];
    let batch = w.on_its_way(&late).await;
    let before = w.acked.clone();
    w.with_late(&batch, &late).await;
    // What is late waits then, and what is cut does not.
    w.store.alters_all.store(true, Ordering::Relaxed);
    w.sleep(Duration::from_secs(20)).await;
    w.store.alters_all.store(false, Ordering::Relaxed);
    let first = "0000000001.wal";
    while w.wal_files(0).len() < 5 {
        push_much(&mut w).await;
    }
    for i in 0..2 {
        w.flush(i).await.unwrap();
        assert_eq!(w.wal_files(i)[0], first, "it is there alone");
    }
    w.expect_back(&before, &late).await;
    // Blocks that were cut while the deletions stood say that they have the batch.
    for i in 0..2 {
        w.flush(i).await.unwrap();
        assert_ne!(w.wal_files(i)[0], first);
    }
    assert_eq!(w.blocks(0, TimeRange::ALL).await, w.acked);
}

#[tokio::test(start_paused = true)]
async fn i10_a_snapshot_knows_what_is_late() {
    for uploads in [true, false] {
        let mut w = World::start_with(1, small_segments).await;
        let late = [("a", w.clock.now_ms(), 7.0), ("hist", w.clock.now_ms() + 1, 7.0)];
        let batch = w.on_its_way(&late).await;
        let before = w.acked.clone();
        w.with_late(&batch, &late).await;
        let blocks = w.backups().await;
        let gate = Arc::clone(&w.store.blocks);
        let no_blocks = gate.write().await;
        for _ in 0..10_000 {
            if !snapshots(&w, 0).is_empty() {
                break;
            }
            push_much(&mut w).await;
        }
        w.until("a snapshot was written", |w| !snapshots(w, 0).is_empty())
            .await;
        w.crash(0).await;
        w.boot(0).await;
        drop(no_blocks);
        if uploads {
            w.sleep(A_WHILE).await;
            assert!(w.backups().await > blocks);
        }
        w.expect_back(&before, &late).await;
    }
}

/// A member that was away copies what it lacks once it knows of the deletion.
#[tokio::test(start_paused = true)]
async fn i10_what_comes_late_by_repair_comes_back() {
    for uploads in [true, false] {
        let mut w = World::start_with(3, |s| s.deletion_record_bytes = 300).await;
        let mut late = Vec::new();
        w.crash(2).await;
        for i in 0..20 {
            let sample = [("a", T0 + i * MINUTE, i as f64), ("hist", T0 + i * MINUTE, 1.0)];
            assert!(w.write(&sample).await);
            late.extend(sample);
        }
        let before = w.acked.clone();
        w.delete(1, "a", TimeRange::ALL).await;
        let version = w.delete(2, "hist", TimeRange::ALL).await;
        w.cut_off(2, true);
        w.boot(2).await;
        w.deletions(2, version).await.unwrap();
        w.cut_off(2, false);
        let no_blocks = Arc::clone(&w.store.blocks).write_owned().await;
        while w.holdings_of(2).await < 20 {
            w.sleep(Duration::from_secs(1)).await;
        }
        let backups = w.backups().await;
        if uploads {
            drop(no_blocks);
            w.sleep(A_WHILE).await;
            assert!(w.backups().await > backups + 2, "in portions");
        }
        w.expect(version, "masked").await;
        w.expect_back(&before, &late).await;
    }
}

/// Listed blocks have it, so that its log never does.
#[tokio::test(start_paused = true)]
async fn i10_what_is_taken_over_while_a_deletion_is_applied_is_not_lost_when_it_is_taken_back() {
    let mut w = World::start_with(3, small_segments).await;
    let now = w.clock.now_ms();
    assert!(w.write(&[("a", now, 1.0)]).await);
    // One member lacks what the others have in blocks alone.
    w.cut_off(2, true);
    let elsewhere = [("a", now + 1, 2.0)];
    let batch = w.batch(&elsewhere);
    for i in 0..2 {
        w.node(i).push(Arc::clone(&batch)).await.unwrap();
    }
    w.acknowledged(&elsewhere);
    let before = w.acked.clone();
    while w.wal_files(0).len() < 5 {
        push_much(&mut w).await;
    }
    for i in 0..2 {
        w.flush(i).await.unwrap();
        assert_ne!(w.wal_files(i)[0], "0000000001.wal");
    }
    let held = w.holdings_of(2).await;
    let version = w.list_deletion(1, "a", TimeRange::ALL).await;
    let puts = w.store.block_puts.load(Ordering::Relaxed);
    let no_blocks = Arc::clone(&w.store.blocks).write_owned().await;
    let comparing = async {
        while w.store.block_puts.load(Ordering::Relaxed) == puts {
            tokio::task::yield_now().await;
        }
        w.cut_off(2, false);
        w.change_state(|_| {});
        while w.holdings_of(2).await == held {
            tokio::task::yield_now().await;
        }
        drop(no_blocks);
    };
    let (applied, ()) = futures::join!(w.deletions(2, version), comparing);
    applied.unwrap();
    let held = w.holdings_of(2).await;
    let version = w.take_back(1).await;
    assert_eq!(w.holdings_of(2).await, held);
    assert!(w.counts(2));
    w.acked = before;
    w.expect(version, "taken back").await;
    w.check(&w.query(2).await);
}
