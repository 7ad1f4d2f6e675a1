//! What each live log segment holds, per (partition, tenant): what peers can fetch, and what goes with a segment.

use std::collections::BTreeMap;

use koios_model::{BatchSet, PartitionId, TenantId};

/// A (partition, tenant).
pub(crate) type ReplicaKey = (PartitionId, TenantId);

/// What one segment holds of one (partition, tenant).
#[derive(Clone, Debug, Default)]
pub(crate) struct SegmentShare {
    pub(crate) batches: BatchSet,
    /// The newest sample; unknown in a segment that a replay did not load.
    pub(crate) newest_ms: Option<i64>,
    bytes: u64,
}

/// One live segment.
#[derive(Clone, Debug, Default)]
struct SegmentEntry {
    shares: BTreeMap<ReplicaKey, SegmentShare>,
    /// When it was begun, by the member's clock.
    begun_ms: i64,
    bytes: u64,
}

/// All live segments.
#[derive(Debug, Default)]
pub(crate) struct SegmentIndex {
    segments: BTreeMap<u32, SegmentEntry>,
}

impl SegmentIndex {
    pub(crate) fn begin(&mut self, number: u32, at_ms: i64) {
        self.segments.entry(number).or_default().begun_ms = at_ms;
    }

    /// Notes a batch.
    pub(crate) fn add(
        &mut self,
        number: u32,
        key: &ReplicaKey,
        batch: (koios_model::StreamId, u64),
        newest_ms: Option<i64>,
        bytes: u64,
    ) {
        let segment = self.segments.entry(number).or_default();
        segment.bytes += bytes;
        let share = match segment.shares.get_mut(key) {
            Some(share) => share,
            None => segment.shares.entry(key.clone()).or_default(),
        };
        share.bytes += bytes;
        share.batches.insert(batch.0, batch.1);
        share.newest_ms = share.newest_ms.max(newest_ms);
    }

    /// Whether the log has the bytes of a batch.
    pub(crate) fn has(&self, key: &ReplicaKey, stream: koios_model::StreamId, sequence: u64) -> bool {
        let mut shares = self.segments.values().filter_map(|s| s.shares.get(key));
        shares.any(|share| share.batches.contains(stream, sequence))
    }

    /// The batches whose bytes the log has.
    pub(crate) fn logged(&self, key: &ReplicaKey) -> BatchSet {
        self.logged_from(key, 0)
    }

    /// The batches whose bytes segments from `number` on have.
    pub(crate) fn logged_from(&self, key: &ReplicaKey, number: u32) -> BatchSet {
        let mut all = BatchSet::default();
        let shares = self.segments.range(number..);
        for share in shares.filter_map(|(_, s)| s.shares.get(key)) {
            all.union_with(&share.batches);
        }
        all
    }

    /// The last segment from which on the log has all that it has of some batches; none when it has none of them.
    pub(crate) fn last_with_all(&self, key: &ReplicaKey, batches: &BatchSet) -> Option<u32> {
        let (mut left, mut from) = (batches.clone(), None);
        for (number, segment) in self.segments.iter().rev() {
            let Some(share) = segment.shares.get(key) else {
                continue;
            };
            let before = left.difference(&share.batches);
            if before.len() < left.len() {
                (left, from) = (before, Some(*number));
            }
        }
        from
    }

    /// Notes that of the places of a batch only the one in segment `number` is good.
    pub(crate) fn keep_only(&mut self, number: u32, key: &ReplicaKey, batch: (koios_model::StreamId, u64)) {
        let mut it = BatchSet::default();
        it.insert(batch.0, batch.1);
        let others = self.segments.iter_mut().filter(|(n, _)| **n != number);
        for share in others.filter_map(|(_, s)| s.shares.get_mut(key)) {
            if share.batches.contains(batch.0, batch.1) {
                share.batches = share.batches.difference(&it);
            }
        }
    }

    /// The segments that have some of the wanted batches, ascending, with which ones.
    pub(crate) fn having(&self, key: &ReplicaKey, wanted: &BatchSet) -> Vec<(u32, BatchSet)> {
        let common = |share: &SegmentShare| {
            let missing = wanted.difference(&share.batches);
            wanted.difference(&missing)
        };
        self.segments
            .iter()
            .filter_map(|(&n, s)| Some((n, common(s.shares.get(key)?))))
            .filter(|(_, common)| !common.is_empty())
            .collect()
    }

    /// When a segment was sealed: when the one after it was begun.
    pub(crate) fn sealed_ms(&self, number: u32) -> Option<i64> {
        let (_, next) = self.segments.range(number.saturating_add(1)..).next()?;
        Some(next.begun_ms)
    }

    /// The first segment that was not sealed by a time.
    pub(crate) fn first_sealed_after(&self, at_ms: i64) -> u32 {
        let begun = self.segments.iter().rev().find(|(_, s)| s.begun_ms <= at_ms);
        begun.map_or(0, |(&number, _)| number)
    }

    /// The first live segment.
    pub(crate) fn first(&self) -> Option<u32> {
        self.segments.keys().next().copied()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.segments.values().map(|s| s.bytes).sum()
    }

    pub(crate) fn bytes_of(&self, number: u32) -> u64 {
        self.segments.get(&number).map_or(0, |s| s.bytes)
    }

    /// Bytes of the batches that a segment has of a (partition, tenant).
    pub(crate) fn bytes_of_share(&self, number: u32, key: &ReplicaKey) -> u64 {
        let share = self.segments.get(&number).and_then(|s| s.shares.get(key));
        share.map_or(0, |share| share.bytes)
    }

    /// The newest samples of each (partition, tenant) in segments below `number`.
    pub(crate) fn newest_below(&self, number: u32) -> BTreeMap<ReplicaKey, i64> {
        let mut newest = BTreeMap::new();
        for (key, share) in self.segments.range(..number).flat_map(|(_, s)| &s.shares) {
            if let Some(ms) = share.newest_ms {
                let entry = newest.entry(key.clone()).or_insert(ms);
                *entry = ms.max(*entry);
            }
        }
        newest
    }

    /// The first segment that has samples of some (partition, tenant) from its time in `keep_from` on.
    pub(crate) fn first_newer_than(&self, keep_from: &BTreeMap<ReplicaKey, i64>) -> Option<u32> {
        let newer = |(key, share): (&ReplicaKey, &SegmentShare)| {
            let from = keep_from.get(key);
            from.is_some_and(|from| share.newest_ms.is_some_and(|t| t >= *from))
        };
        let found = self.segments.iter().find(|(_, s)| s.shares.iter().any(newer));
        found.map(|(&n, _)| n)
    }

    /// The newest samples of what each segment below `number` holds.
    pub(crate) fn newest_of_each(&self, number: u32) -> Vec<(u32, PartitionId, TenantId, i64)> {
        let shares = self.segments.range(..number);
        let shares = shares.flat_map(|(n, s)| s.shares.iter().map(move |(key, share)| (*n, key, share)));
        shares
            .filter_map(|(n, key, share)| Some((n, key.0, key.1.clone(), share.newest_ms?)))
            .collect()
    }

    /// Notes the newest sample of a segment that is not read.
    pub(crate) fn note_newest(&mut self, number: u32, key: &ReplicaKey, newest_ms: i64) {
        let segment = self.segments.entry(number).or_default();
        let share = segment.shares.entry(key.clone()).or_default();
        share.newest_ms = share.newest_ms.max(Some(newest_ms));
    }

    /// Bytes of the batches in some segments.
    pub(crate) fn bytes_within(&self, numbers: std::ops::Range<u32>) -> u64 {
        if numbers.is_empty() {
            return 0;
        }
        self.segments.range(numbers).map(|(_, s)| s.bytes).sum()
    }

    /// Drops the segments below `number`.
    pub(crate) fn remove_below(&mut self, number: u32) {
        self.segments = self.segments.split_off(&number);
    }
}

#[cfg(test)]
mod tests {
    use koios_model::StreamId;

    use super::*;

    #[test]
    fn logged_shrinks_as_segments_go() {
        let key = (PartitionId(0), TenantId::anonymous());
        let mut index = SegmentIndex::default();
        for (segment, sequence) in [(1, 0), (1, 1), (2, 2), (3, 3)] {
            index.begin(segment, i64::from(segment) * 10);
            index.add(segment, &key, (StreamId(1), sequence), Some(sequence as i64), 5);
        }
        assert_eq!(index.logged(&key).len(), 4);
        assert!(index.has(&key, StreamId(1), 0));
        assert_eq!(index.sealed_ms(1), Some(20));
        let first = |at| index.first_sealed_after(at);
        assert_eq!((first(9), first(10), first(19), first(20)), (0, 1, 1, 2));
        assert_eq!(index.newest_below(3).get(&key), Some(&2));
        let mut wanted = BatchSet::default();
        wanted.insert_run(StreamId(1), 1, 3);
        let having: Vec<_> = index
            .having(&key, &wanted)
            .into_iter()
            .map(|(n, s)| (n, s.len()))
            .collect();
        assert_eq!(having, [(1, 1), (2, 1)]);
        assert_eq!(index.last_with_all(&key, &wanted), Some(1));
        index.add(3, &key, (StreamId(1), 1), Some(1), 5);
        assert_eq!(
            index.last_with_all(&key, &wanted),
            Some(2),
            "it is logged once more"
        );
        let mut gone = BatchSet::default();
        gone.insert(StreamId(2), 0);
        assert_eq!(index.last_with_all(&key, &gone), None);
        index.remove_below(3);
        assert!(!index.has(&key, StreamId(1), 0) && index.has(&key, StreamId(1), 3));
        assert_eq!((index.logged(&key).len(), index.bytes()), (2, 10));
    }
}
