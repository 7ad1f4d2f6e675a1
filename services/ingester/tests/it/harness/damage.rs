//! What goes wrong for good.

use std::path::Path;
use std::sync::Arc;

use koios_runtime::{Disk, DiskHandle};
use koios_wal::{DamageKind, Identity, Replay, WalSettings};

use super::{CLUSTER, PARTITION, World};

impl World {
    /// Flips a bit in the nth batch of a member's first log segment, from 0.
    pub(crate) fn damage_batch(&self, i: usize, nth: usize) {
        self.damage_batch_in(i, "0000000001.wal", nth);
    }

    /// The same in any of its segments.
    pub(crate) fn damage_batch_in(&self, i: usize, segment: &str, nth: usize) {
        let (disk, path) = (&self.nodes[i].disk, Path::new("/data/wal").join(segment));
        let bytes = disk.read(&path).unwrap();
        let starts = bytes.windows(4).enumerate().filter(|(_, w)| *w == b"KL\x02\0");
        let at = starts.map(|(at, _)| at).nth(nth).unwrap();
        assert!(disk.flip_bit(&path, at + 20, 3));
    }

    /// Flips a bit of what a member that does not run logged last.
    pub(crate) fn damage_tail(&self, i: usize) {
        let disk = &self.nodes[i].disk;
        let path = Path::new("/data/wal").join(self.wal_files(i).pop().unwrap());
        let bytes = disk.read(&path).unwrap();
        let last = bytes.iter().rposition(|b| *b != 0).unwrap();
        assert!(disk.flip_bit(&path, last, 3));
    }

    /// What a scan of the log of a member that does not run says of its damage.
    pub(crate) async fn log_damage(&self, i: usize) -> Vec<DamageKind> {
        let disk = DiskHandle::inline(Arc::new(self.nodes[i].disk.mount()));
        let identity = Identity {
            cluster: CLUSTER,
            incarnation: self.nodes[i].incarnation,
        };
        let settings = WalSettings::new("/data/wal");
        let mut replay = Replay::open(disk, settings, identity).await.unwrap();
        let mut found = Vec::new();
        for segment in replay.segments().to_vec() {
            let content = replay.read(segment).await.unwrap();
            found.extend(content.damage.iter().map(|d| d.kind));
        }
        found
    }

    /// Removes a member's log segments but for the first `kept`.
    pub(crate) fn lose_segments(&self, i: usize, kept: usize) {
        let (disk, dir) = (&self.nodes[i].disk, Path::new("/data/wal"));
        for name in self.wal_files(i).into_iter().skip(kept) {
            disk.remove_file(&dir.join(name)).unwrap();
        }
        disk.sync_dir(dir).unwrap();
    }

    /// An operator accepts the loss of the partition.
    pub(crate) fn accept_loss(&self) {
        self.change_state(|s| {
            let p = s.partitions.get_mut(&PARTITION).unwrap();
            p.epoch += 1;
            let loss = koios_control::AcceptedLoss {
                partition: PARTITION,
                epoch: p.epoch,
                at_version: s.version + 1,
                note: "test".into(),
                lost: Vec::new(),
                id: koios_control::LossId(u128::from(s.version)),
            };
            s.accepted_losses.push(loss);
        });
    }
}
