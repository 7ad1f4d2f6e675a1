//! A log whose last group is damaged: a crash may have torn it before anybody was answered, or the disk damaged what was answered.

use std::path::Path;
use std::time::Duration;

use koios_runtime::Disk;
use koios_wal::DamageKind;
use koios_wire::{BatchSetsRequest, IngesterService, ServiceErrorCode};

use crate::harness::{PARTITION, T0, World, without_starts};

impl World {
    /// That a member that runs answers no reads, and tells its peers and operators why.
    async fn assert_waits(&self, i: usize) {
        assert_eq!(
            self.read(i).await.unwrap_err().code,
            ServiceErrorCode::NotCounting
        );
        let request = BatchSetsRequest {
            partition: PARTITION,
            epoch: self.epoch(),
        };
        assert!(!self.node(i).batch_sets(request).await.unwrap().counts);
        let status = self.node(i).status().partitions.remove(0);
        assert!(status.damaged && !status.counts);
    }

    /// Damages the tail of a member that does not run.
    async fn tear(&self, i: usize) {
        self.damage_tail(i);
        assert_eq!(self.log_damage(i).await, [DamageKind::Tail]);
    }
}

#[tokio::test(start_paused = true)]
async fn i7_i11_a_member_with_a_damaged_tail_does_not_count_until_it_has_compared_itself_with_its_peers() {
    let mut w = World::start(3).await;
    for i in 0..50 {
        assert!(w.write(&[("a", T0 + i, i as f64)]).await);
    }
    // Acknowledged by two, of which one loses it.
    assert!(w.write_to(&[0, 1], &[("a", T0 + 50, 50.0)]).await);
    w.kill(0).await;
    w.tear(0).await;
    w.kill(1).await;
    // The one peer that is left does not know of it.
    assert!(w.boot(0).await);
    w.sleep(Duration::from_secs(300)).await;
    w.assert_waits(0).await;
    // Writes go on.
    assert!(w.write_to(&[0, 2], &[("b", T0, 1.0)]).await);
    // Nothing is forgotten of it over restarts.
    for _ in 0..2 {
        w.crash(0).await;
        assert!(w.boot(0).await);
        w.sleep(Duration::from_secs(120)).await;
        w.assert_waits(0).await;
    }

    w.boot(1).await;
    w.until("it counts", |w| w.counts(0)).await;
    w.check(&w.read(0).await.unwrap().0);
    // It stays so, also when no peer is there.
    w.kill(1).await;
    w.kill(2).await;
    w.crash(0).await;
    assert!(w.boot(0).await);
    w.until("it counts", |w| w.counts(0)).await;
    w.check(&w.read(0).await.unwrap().0);
}

/// That a peer counted when it answered is enough for a tail: else none would count again.
#[tokio::test(start_paused = true)]
async fn i7_members_of_which_each_has_a_damaged_tail_count_again_once_all_are_compared() {
    let mut w = World::start(3).await;
    for i in 0..50 {
        assert!(w.write(&[("a", T0 + i, i as f64)]).await);
    }
    // What each logs last it has alone, so that it was not acknowledged.
    for i in 0..3 {
        assert!(!w.write_to(&[i], &[("torn", T0 + i as i64, 1.0)]).await);
    }
    for i in 0..3 {
        w.kill(i).await;
        w.tear(i).await;
    }
    for i in 0..2 {
        assert!(w.boot(i).await);
    }
    w.sleep(Duration::from_secs(300)).await;
    for i in 0..2 {
        w.assert_waits(i).await;
    }
    assert!(w.boot(2).await);
    w.until("all count", |w| (0..3).all(|i| w.counts(i))).await;
    for i in 0..3 {
        w.check(&w.read(i).await.unwrap().0);
    }
}

/// Nobody can say more of it.
#[tokio::test(start_paused = true)]
async fn i11_a_single_member_keeps_a_copy_of_its_damaged_tail_and_counts() {
    let mut w = World::start(1).await;
    for i in 0..50 {
        assert!(w.write(&[("a", T0 + i, i as f64)]).await);
    }
    w.kill(0).await;
    w.tear(0).await;
    assert!(w.boot(0).await);
    w.until("it counts", |w| w.counts(0)).await;
    assert_eq!(without_starts(&w.read(0).await.unwrap().0), 49);
    let aside = w.nodes[0].disk.list(Path::new("/data/wal/quarantine")).unwrap();
    assert_eq!(aside.len(), 1, "{aside:?}");
}
