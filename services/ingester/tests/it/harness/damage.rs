//! What goes wrong for good.

use std::path::Path;

use super::{PARTITION, World};

impl World {
    /// Flips a bit in the nth batch of a member's first log segment, from 0.
    pub(crate) fn damage_batch(&self, i: usize, nth: usize) {
        use koios_runtime::Disk;
        let (disk, path) = (&self.nodes[i].disk, Path::new("/data/wal/0000000001.wal"));
        let bytes = disk.read(path).unwrap();
        let starts = bytes.windows(4).enumerate().filter(|(_, w)| *w == b"KL\x02\0");
        let at = starts.map(|(at, _)| at).nth(nth).unwrap();
        assert!(disk.flip_bit(path, at + 20, 3));
    }

    /// Removes a member's log segments but for the first `kept`.
    pub(crate) fn lose_segments(&self, i: usize, kept: usize) {
        use koios_runtime::Disk;
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
