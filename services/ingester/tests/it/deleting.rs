//! What is deleted goes at once and never comes back; what is written later stays.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use koios_bucket::{Manifest, Nonce, Tombstone, TombstoneState, Writer};
use koios_model::{BatchSet, Matcher, Matchers, PartitionId, TimeRange};
use koios_runtime::RngHandle;
use koios_wire::{DeletionsReply, DeletionsRequest, IngesterService, ServiceError};

use crate::harness::{HOUR, MINUTE, PARTITION, Samples, T0, World, merge, tenant};
use crate::pinning::{push_much, small_segments};
use crate::snapshot::snapshots;

const METRICS: [&str; 4] = ["a", "b", "hist", "c"];

fn of_metric(name: &str) -> Matchers {
    Matchers(vec![Matcher::equal("__name__", name)])
}

impl World {
    pub(crate) async fn deletions(&self, i: usize, version: u64) -> Result<DeletionsReply, ServiceError> {
        self.ask_deletions(i, version, true).await
    }

    async fn ask_deletions(
        &self,
        i: usize,
        version: u64,
        with_held: bool,
    ) -> Result<DeletionsReply, ServiceError> {
        let request = DeletionsRequest {
            tenant: tenant(),
            partition: PARTITION,
            epoch: self.epoch(),
            version,
            with_held,
        };
        self.node(i).deletions(request).await
    }

    pub(crate) fn up(&self) -> Vec<usize> {
        let is_up = |i: &usize| self.nodes[*i].ingester.as_ref().is_some_and(|m| m.is_running());
        (0..self.nodes.len()).filter(is_up).collect()
    }

    pub(crate) async fn change_manifest(&self, change: impl Fn(&mut Manifest) + Send + Sync) -> u64 {
        let writer = Writer {
            name: "querier".to_owned(),
            resource: "deletions".to_owned(),
            epoch: 0,
        };
        let changed = |m: &mut Manifest| {
            change(m);
            Ok(())
        };
        let committed = self.manifests.commit(&tenant(), &writer, changed).await;
        committed.unwrap().version
    }

    /// Lists a deletion that covers what members held, and forgets what it deletes.
    pub(crate) async fn list_deletion(&mut self, id: u128, metric: &str, range: TimeRange) -> u64 {
        let mut held = BatchSet::default();
        for i in self.up() {
            held.union_with(&self.deletions(i, 0).await.unwrap().held);
        }
        let version = self.list_deletion_of(id, metric, range, held).await;
        let is_deleted = |(name, t): &(String, i64)| {
            name.strip_suffix(" start").unwrap_or(name) == metric && range.contains(*t)
        };
        self.acked.retain(|at, _| !is_deleted(at));
        version
    }

    /// Lists a deletion that covers some batches.
    pub(crate) async fn list_deletion_of(
        &self,
        id: u128,
        metric: &str,
        range: TimeRange,
        batches: BatchSet,
    ) -> u64 {
        let covers: BTreeMap<PartitionId, BatchSet> = BTreeMap::from([(PARTITION, batches)]);
        let deletion = Tombstone {
            covers,
            ..Tombstone::new(Nonce(id), &of_metric(metric), range)
        };
        self.change_manifest(|m| m.add_tombstone(deletion.clone())).await
    }

    /// Deletes as a querier does: some members apply it before it is answered.
    pub(crate) async fn delete(&mut self, id: u128, metric: &str, range: TimeRange) -> u64 {
        let version = self.list_deletion(id, metric, range).await;
        let majority = self.nodes.len() / 2 + 1;
        for i in self.up().into_iter().take(majority) {
            assert!(self.deletions(i, version).await.unwrap().version >= version);
        }
        version
    }

    pub(crate) async fn take_back(&self, id: u128) -> u64 {
        let undo = |m: &mut Manifest| {
            m.set_tombstone_state(Nonce(id), TombstoneState::Undone);
        };
        let version = self.change_manifest(undo).await;
        for i in self.up() {
            self.deletions(i, version).await.unwrap();
        }
        version
    }

    /// What a member has once it knows of the deletions of a version.
    async fn has(&self, i: usize, version: u64) -> Samples {
        let (found, end) = self.read_knowing(i, version).await.unwrap();
        assert!(end.deletions_version >= version);
        found
    }

    /// Whatever two members and all blocks have.
    pub(crate) async fn everything(&self, version: u64) -> Samples {
        let mut all = self.blocks(0, TimeRange::ALL).await;
        let up = self.up();
        let counting: Vec<usize> = up.into_iter().filter(|i| self.counts(*i)).collect();
        let quorum = self.nodes.len() / 2 + 1;
        assert!(counting.len() >= quorum);
        // The last ones: they are not those that were asked to apply it.
        for i in counting.into_iter().rev().take(quorum) {
            merge(&mut all, self.has(i, version).await);
        }
        all
    }

    pub(crate) async fn expect(&self, version: u64, what: &str) {
        assert_eq!(self.everything(version).await, self.acked, "{what}");
    }
}

async fn some_minutes(w: &mut World, from: i64, minutes: i64) {
    for i in 0..minutes {
        let t = from + i * MINUTE;
        let v = i as f64;
        assert!(
            w.write(&[("a", t, v), ("b", t, v), ("hist", t, v), ("c", t, v)])
                .await
        );
    }
}

#[tokio::test(start_paused = true)]
async fn i10_what_is_deleted_goes_from_heads_and_blocks_and_can_be_written_again() {
    for members in [1, 3] {
        let mut w = World::start(members).await;
        some_minutes(&mut w, T0, 200).await;
        // One window is listed, another is not.
        w.flush(0).await.unwrap();
        some_minutes(&mut w, T0 + 200 * MINUTE, 20).await;
        let range = TimeRange::new(T0 + 50 * MINUTE, T0 + 210 * MINUTE);
        let version = w.delete(1, "a", range).await;
        w.expect(version, "deleted").await;
        let version = w.delete(2, "hist", TimeRange::ALL).await;
        w.expect(version, "a whole metric").await;
        // The very same samples again, the newest among them, and others.
        some_minutes(&mut w, T0 + 205 * MINUTE, 15).await;
        w.expect(version, "written again").await;
        for i in 0..members {
            w.kill(i).await;
            w.boot(i).await;
        }
        w.until("all count", |w| (0..w.nodes.len()).all(|i| w.counts(i)))
            .await;
        w.expect(version, "after a restart").await;
        for i in 0..members {
            w.flush(i).await.unwrap();
        }
        w.expect(version, "cut").await;
        assert_eq!(
            w.blocks(0, TimeRange::ALL).await,
            w.acked,
            "blocks have what is left"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn i10_what_is_taken_back_is_all_there_again() {
    for members in [1, 3] {
        let mut w = World::start(members).await;
        some_minutes(&mut w, T0, 100).await;
        w.flush(0).await.unwrap();
        some_minutes(&mut w, T0 + 100 * MINUTE, 50).await;
        let all = w.acked.clone();
        let version = w.delete(1, "b", TimeRange::ALL).await;
        w.expect(version, "deleted").await;
        w.crash(0).await;
        w.boot(0).await;
        w.until("counts", |w| w.counts(0)).await;
        let version = w.take_back(1).await;
        w.acked = all;
        w.expect(version, "taken back").await;
        // Readers are led to the blocks.
        let (_, end) = w.read(0).await.unwrap();
        assert!(end.forgotten_below_ms > T0 + 149 * MINUTE && end.manifest_floor >= version);
        w.crash(0).await;
        w.boot(0).await;
        w.until("counts", |w| w.counts(0)).await;
        w.expect(version, "after a restart").await;
    }
}

#[tokio::test(start_paused = true)]
async fn i10_what_existed_before_a_deletion_and_comes_after_it_is_left_out() {
    let mut w = World::start(3).await;
    assert!(w.write(&[("a", T0, 1.0), ("b", T0, 1.0)]).await);
    // The third member is away while this is written and deleted.
    w.crash(2).await;
    assert!(w.write(&[("a", T0 + 1, 1.0), ("b", T0 + 1, 1.0)]).await);
    let version = w.delete(1, "a", TimeRange::ALL).await;
    assert!(w.write(&[("a", T0 + 2, 1.0)]).await);
    w.boot(2).await;
    // Batches come to it by repair before it has heard of the deletion, or after.
    w.until("repaired", |w| w.counts(2)).await;
    w.sleep(Duration::from_secs(120)).await;
    let found = w.has(2, version).await;
    assert_eq!(found, w.acked);
    w.crash(2).await;
    w.boot(2).await;
    w.until("counts", |w| w.counts(2)).await;
    assert_eq!(w.has(2, version).await, w.acked);
    // A member with a new disk copies what its peers' logs have.
    w.wipe(1).await;
    w.boot(1).await;
    w.until("copied", |w| w.counts(1)).await;
    assert_eq!(w.has(1, version).await, w.acked);
    w.flush(1).await.unwrap();
    w.expect(version, "cut by the copy").await;
}

#[tokio::test(start_paused = true)]
async fn i1_what_was_written_before_a_member_learnt_of_a_deletion_stays() {
    let mut w = World::start(1).await;
    some_minutes(&mut w, T0, 30).await;
    // Listed, but not told.
    let version = w.list_deletion(1, "a", TimeRange::ALL).await;
    some_minutes(&mut w, T0 + 20 * MINUTE, 20).await;
    let expected = w.acked.clone();
    w.crash(0).await;
    w.boot(0).await;
    assert_eq!(w.has(0, version).await, expected);
    w.crash(0).await;
    w.boot(0).await;
    assert_eq!(w.has(0, version).await, expected);
    w.flush(0).await.unwrap();
    assert_eq!(w.blocks(0, TimeRange::ALL).await, expected);
}

#[tokio::test(start_paused = true)]
async fn i10_a_member_that_was_away_applies_all_deletions_that_came_meanwhile() {
    let mut w = World::start_with(3, |s| s.deletion_record_bytes = 64).await;
    some_minutes(&mut w, T0, 30).await;
    w.kill(2).await;
    let mut version = 0;
    for id in 0..10u128 {
        let from = T0 + id as i64 * 2 * MINUTE;
        // Of each, something was there before, and something comes again after it.
        version = w
            .delete(
                id + 1,
                METRICS[id as usize % 3],
                TimeRange::new(from, from + 9 * MINUTE),
            )
            .await;
        some_minutes(&mut w, from + 4 * MINUTE, 4).await;
        if id == 7 {
            // All of another.
            version = w.delete(90, "c", TimeRange::ALL).await;
        }
    }
    w.boot(2).await;
    w.until("repaired", |w| w.counts(2)).await;
    w.sleep(Duration::from_secs(120)).await;
    assert_eq!(w.has(2, version).await, w.acked);
    w.crash(2).await;
    w.boot(2).await;
    w.until("counts", |w| w.counts(2)).await;
    assert_eq!(w.has(2, version).await, w.acked);
    w.flush(2).await.unwrap();
    w.expect(version, "cut").await;
}

/// Else two members may agree that there is nothing to know: one that has not heard of a deletion, and one that has forgotten
/// that it applied it.
#[tokio::test(start_paused = true)]
async fn i10_a_member_knows_after_a_restart_which_deletions_it_has_applied() {
    let mut w = World::start(3).await;
    some_minutes(&mut w, T0, 10).await;
    let all = w.acked.clone();
    let version = w.delete(1, "a", TimeRange::ALL).await;
    w.crash(0).await;
    w.boot(0).await;
    w.until("counts", |w| w.counts(0)).await;
    let (_, end) = w.read(0).await.unwrap();
    assert!(end.deletions_version >= version, "{end:?}");
    let version = w.take_back(1).await;
    w.acked = all;
    w.kill(0).await;
    w.boot(0).await;
    w.until("counts", |w| w.counts(0)).await;
    let (_, end) = w.read(0).await.unwrap();
    assert!(end.deletions_version >= version, "{end:?}");
}

/// It was answered by an error, and sent again, as senders do: what was sent before the deletion is deleted, whoever has it.
#[tokio::test(start_paused = true)]
async fn i10_what_one_member_alone_took_is_deleted_although_it_is_away() {
    let mut w = World::start(3).await;
    let sample = [("a", T0, 1.0)];
    let refused = w.batch(&sample);
    w.node(0).push(refused).await.unwrap();
    w.crash(0).await;
    assert!(w.write(&sample).await);
    let version = w.delete(1, "a", TimeRange::ALL).await;
    assert_eq!(w.everything(version).await, Samples::new());
    w.boot(0).await;
    w.until("it has copied what it lacks", |w| w.counts(0)).await;
    w.sleep(Duration::from_secs(120)).await;
    for _ in 0..2 {
        for i in 0..3 {
            assert_eq!(w.has(i, version).await, Samples::new(), "{i}");
        }
        w.flush(0).await.unwrap();
    }
    w.expect(version, "nothing is left").await;
}

/// Its log has lost records, so that it does not go by what its first checkpoint says is held. The head, of a snapshot, is of that still.
#[tokio::test(start_paused = true)]
async fn i10_what_is_deleted_goes_from_a_head_of_batches_that_a_damaged_log_tells_no_more_of() {
    let mut w = World::start_with(3, small_segments).await;
    let now = w.clock.now_ms();
    assert!(w.write(&[("a", now, 1.0), ("b", now, 1.0)]).await);
    w.flush(0).await.unwrap();
    let (mut is_gone, mut has_snapshot) = (false, false);
    for minute in 0..240 {
        if is_gone && has_snapshot {
            break;
        }
        push_much(&mut w).await;
        w.sleep(Duration::from_secs(60)).await;
        if minute % 30 == 0 {
            w.flush(0).await.unwrap();
        }
        is_gone = w.wal_files(0)[0] != "0000000001.wal";
        has_snapshot = !snapshots(&w, 0).is_empty();
    }
    assert!(is_gone && has_snapshot);
    let (before, _) = w.read(0).await.unwrap();
    w.check(&before);
    for _ in 0..3 {
        push_much(&mut w).await;
    }
    let version = w.list_deletion(1, "a", TimeRange::ALL).await;
    w.crash(0).await;
    let newest = w.wal_files(0).pop().unwrap();
    w.damage_batch_in(0, &newest, 0);
    w.cut_off(0, true);
    w.boot(0).await;
    assert!(!w.counts(0), "it has copied nothing yet");
    let told = w.ask_deletions(0, version, false).await.unwrap();
    assert!(told.version >= version);
    w.cut_off(0, false);
    w.until("it has copied what it lost", |w| w.counts(0)).await;
    assert_eq!(w.has(0, version).await, w.acked);
}

#[tokio::test(start_paused = true)]
async fn i9_a_deletion_waits_for_the_bucket() {
    let mut w = World::start(1).await;
    some_minutes(&mut w, T0, 10).await;
    let version = w.list_deletion(1, "a", TimeRange::ALL).await;
    w.store.down.store(true, Ordering::Relaxed);
    assert!(
        w.deletions(0, version).await.is_err(),
        "it cannot know what to delete"
    );
    assert!(w.read(0).await.is_ok(), "other reads go on");
    w.store.down.store(false, Ordering::Relaxed);
    assert_eq!(w.has(0, version).await, w.acked);
}

#[tokio::test(start_paused = true)]
async fn i9_what_a_deletion_takes_and_is_stored_otherwise_is_not_sent_again_at_each_read() {
    let mut w = World::start(1).await;
    some_minutes(&mut w, T0, 10).await;
    let version = w.list_deletion(1, "a", TimeRange::ALL).await;
    w.store.alters_all.store(true, Ordering::Relaxed);
    let bucket = w.manifests.bucket().clone();
    for _ in 0..20 {
        assert!(w.deletions(0, version).await.is_err());
        assert!(w.read(0).await.is_ok(), "other reads go on");
    }
    let uploaded = bucket.uploaded_blocks(&tenant()).await.unwrap();
    assert_eq!(uploaded.len(), 1);
    let manifest = w.manifests.probe(&tenant()).await.unwrap();
    assert!(uploaded.iter().all(|(block, _)| manifest.is_dead(*block)));
    w.store.alters_all.store(false, Ordering::Relaxed);
    let told = w.deletions(0, version).await.unwrap_err().to_string();
    assert!(told.contains("it is sent again in"), "{told}");
    w.sleep(Duration::from_secs(10)).await;
    assert_eq!(w.has(0, version).await, w.acked);
}

/// Deletions among everything that happens to a partition.
#[tokio::test(start_paused = true)]
async fn i10_i1_deletions_hold_whatever_happens_in_whatever_order() {
    for seed in 0..8 {
        let members = if seed % 3 == 0 { 3 } else { 1 };
        let tune = |s: &mut koios_ingester::Settings| {
            s.wal_segment_bytes = 16 << 10;
            s.deletion_record_bytes = 300;
        };
        let mut w = World::start_with(members, tune).await;
        let rng = RngHandle::from_seed(seed);
        let below = |n: u64| rng.below(n) as i64;
        let (mut version, mut next, mut newest) = (0, 0, T0);
        let mut can_take_back: Option<(u128, Samples)> = None;
        for step in 0..40 {
            let what = below(20);
            match what {
                0..9 => {
                    newest += below(10) * MINUTE;
                    for _ in 0..1 + below(30) {
                        newest += below(20_000);
                        let late = if below(4) == 0 { below(3 * HOUR as u64) } else { 0 };
                        let metric = METRICS[below(4) as usize];
                        let t = newest - late;
                        // The same at the same time, so that what is written again is what was deleted.
                        assert!(w.write(&[(metric, t - t % 30_000, (t % 7) as f64)]).await);
                    }
                    can_take_back = None;
                }
                9..12 => {
                    next += 1;
                    let metric = METRICS[below(4) as usize];
                    let from = newest - below(4 * HOUR as u64);
                    let range = match below(3) {
                        0 => TimeRange::ALL,
                        _ => TimeRange::new(from, from + below(2 * HOUR as u64)),
                    };
                    let before = w.acked.clone();
                    version = w.delete(next, metric, range).await;
                    can_take_back = Some((next, before));
                }
                12 => {
                    if let Some((id, before)) = can_take_back.take() {
                        version = w.take_back(id).await;
                        w.acked = before;
                    }
                }
                13..16 => {
                    let i = below(members as u64) as usize;
                    w.flush(i).await.unwrap();
                }
                16 => w.sleep(Duration::from_secs(below(1200) as u64)).await,
                _ => {
                    let i = below(members as u64) as usize;
                    w.crash(i).await;
                    if members > 1 && below(2) == 0 {
                        next += 1;
                        version = w.delete(next, METRICS[below(4) as usize], TimeRange::ALL).await;
                        can_take_back = None;
                    }
                    w.boot(i).await;
                    w.until("all count", |w| (0..w.nodes.len()).all(|i| w.counts(i)))
                        .await;
                }
            }
            w.expect(version, &format!("seed {seed}, step {step}: {what}"))
                .await;
        }
    }
}
