//! The seam between heads and blocks: which blocks hold samples that the heads just read may lack.

use std::collections::BTreeMap;

use koios_model::{BatchSet, PartitionId, TimeRange};
use koios_wire::ReadEnd;

use super::manifests::ListedBlock;

/// What the read members held and may have forgotten.
#[derive(Debug, Default)]
pub(crate) struct Seam {
    members: BTreeMap<PartitionId, Vec<ReadEnd>>,
}

impl Seam {
    /// Takes note of a member's end.
    pub(crate) fn add(&mut self, partition: PartitionId, end: ReadEnd) {
        self.members.entry(partition).or_default().push(end);
    }

    /// The manifest version that lists whatever any read member forgot or deleted.
    pub(crate) fn floor(&self) -> u64 {
        self.members
            .values()
            .flatten()
            .map(|e| e.manifest_floor.max(e.deletions_version))
            .max()
            .unwrap_or(0)
    }

    /// The manifest version that lists the deletions which the read members have applied.
    pub(crate) fn deletions_version(&self) -> u64 {
        let members = self.members.values().flatten();
        members.map(|e| e.deletions_version).max().unwrap_or(0)
    }

    /// Whether a read member may have forgotten samples of the range, so that the answer needs a manifest.
    pub(crate) fn needs_blocks(&self, range: TimeRange) -> bool {
        self.members
            .values()
            .flatten()
            .any(|e| range.min < e.forgotten_below_ms)
    }

    /// Whether a block may hold samples of the range that the heads lack: unless, of each of its partitions, the read
    /// members that forgot nothing of the range together held every batch it covers. Heads do not hold what was
    /// written before their time (a rebuilt cluster), however recent it is.
    pub(crate) fn needs_block(&self, block: &ListedBlock, range: TimeRange) -> bool {
        let from = range.min.max(block.range.min);
        let held = |p: &PartitionId| {
            let Some(members) = self.members.get(p) else {
                return false;
            };
            let mut union: Option<BatchSet> = None;
            for end in members.iter().filter(|e| from >= e.forgotten_below_ms) {
                union.get_or_insert_default().union_with(&end.held);
            }
            // A block that does not say what it covers did not come from a head.
            let covers = block.covers.get(p).filter(|c| !c.is_empty());
            union
                .zip(covers)
                .is_some_and(|(union, covers)| union.includes(covers))
        };
        block.range.overlaps(&range) && (block.partitions.is_empty() || !block.partitions.iter().all(held))
    }

    /// Whether that is so of any of them.
    pub(crate) fn needs_any_of(&self, blocks: &[ListedBlock], range: TimeRange) -> bool {
        blocks.iter().any(|block| self.needs_block(block, range))
    }
}

#[cfg(test)]
mod tests {
    use koios_model::StreamId;

    use super::*;

    fn set(sequences: &[u64]) -> BatchSet {
        let mut set = BatchSet::default();
        for &s in sequences {
            set.insert(StreamId(1), s);
        }
        set
    }

    fn end(held: &[u64], forgotten_below_ms: i64, manifest_floor: u64) -> ReadEnd {
        ReadEnd {
            held: set(held),
            forgotten_below_ms,
            manifest_floor,
            deletions_version: 0,
        }
    }

    fn block(min: i64, max: i64, covers: &[u64]) -> ListedBlock {
        let partition = PartitionId(0);
        ListedBlock {
            id: "A".to_owned(),
            range: TimeRange::new(min, max),
            window: TimeRange::new(min, max),
            summarised: None,
            partitions: vec![partition],
            covers: BTreeMap::from([(partition, set(covers))]),
        }
    }

    #[test]
    fn i4_a_block_is_left_out_only_when_heads_had_all_of_it() {
        let mut seam = Seam::default();
        seam.add(PartitionId(0), end(&[1, 2, 4], 10, 3));
        seam.add(PartitionId(0), end(&[1, 2, 3], 20, 5));
        let needs = |b: &ListedBlock, min, max| seam.needs_block(b, TimeRange::new(min, max));
        // Forgotten by both, by one, by none.
        assert!(needs(&block(0, 50, &[1]), 5, 100));
        assert!(!needs(&block(0, 50, &[1]), 15, 100));
        assert!(!needs(&block(0, 50, &[1]), 25, 100));
        // Held only by the one that forgot; held by the one that did not; by both together; by neither.
        assert!(needs(&block(0, 50, &[3]), 15, 100));
        assert!(!needs(&block(0, 50, &[3]), 20, 100));
        assert!(!needs(&block(0, 50, &[3, 4]), 20, 100));
        assert!(needs(&block(0, 50, &[9]), 25, 100));
        assert!(needs(&block(0, 50, &[]), 25, 100));
        // Outside of the range; of a partition that was not read.
        assert!(!needs(&block(0, 50, &[9]), 51, 100));
        let foreign = ListedBlock {
            partitions: vec![PartitionId(0), PartitionId(1)],
            ..block(0, 50, &[1])
        };
        assert!(needs(&foreign, 25, 100));
        assert_eq!(
            (seam.floor(), seam.needs_blocks(TimeRange::new(20, 30))),
            (5, false)
        );
        assert!(seam.needs_blocks(TimeRange::new(19, 30)));
        let knows = ReadEnd {
            deletions_version: 9,
            ..end(&[], i64::MIN, 2)
        };
        seam.add(PartitionId(2), knows);
        assert_eq!((seam.floor(), seam.deletions_version()), (9, 9));
    }
}
