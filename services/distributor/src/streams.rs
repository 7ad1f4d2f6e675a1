//! Sequence numbers: contiguous per (stream, partition, tenant), with what is settled.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use koios_model::{PartitionId, StreamId, TenantId};
use parking_lot::Mutex;

type Key = (PartitionId, TenantId);

/// This process' stream. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Streams {
    id: StreamId,
    sequences: Arc<Mutex<BTreeMap<Key, Sequences>>>,
}

#[derive(Debug, Default)]
struct Sequences {
    next: u64,
    /// Numbers whose sends have not all ended.
    open: BTreeSet<u64>,
}

/// A number in use; settled when dropped, which is when the last send of its batch has ended.
#[derive(Debug)]
pub(crate) struct Sequence {
    streams: Streams,
    key: Key,
    pub(crate) number: u64,
    pub(crate) settled_below: u64,
}

impl Streams {
    /// A stream with a new random id.
    pub(crate) fn new(id: StreamId) -> Self {
        Self {
            id,
            sequences: Arc::default(),
        }
    }

    pub(crate) fn id(&self) -> StreamId {
        self.id
    }

    /// The next number of a (partition, tenant).
    pub(crate) fn open(&self, partition: PartitionId, tenant: &TenantId) -> Sequence {
        let key = (partition, tenant.clone());
        let mut sequences = self.sequences.lock();
        let of_key = sequences.entry(key.clone()).or_default();
        let number = of_key.next;
        of_key.next += 1;
        of_key.open.insert(number);
        let settled_below = of_key.open.first().copied().unwrap_or(number);
        Sequence {
            streams: self.clone(),
            key,
            number,
            settled_below,
        }
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        if let Some(of_key) = self.streams.sequences.lock().get_mut(&self.key) {
            of_key.open.remove(&self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_contiguous_and_settle_from_below() {
        let streams = Streams::new(StreamId(1));
        let (p, t) = (PartitionId(0), TenantId::anonymous());
        let open = || streams.open(p, &t);
        let (a, b, c) = (open(), open(), open());
        assert_eq!((a.number, b.number, c.number), (0, 1, 2));
        assert_eq!(c.settled_below, 0);
        drop(b);
        assert_eq!(open().settled_below, 0, "0 is still open");
        drop(a);
        assert_eq!(open().settled_below, 2, "0 and 1 are settled, 2 is open");
        drop(c);
        let last = open();
        assert_eq!((last.number, last.settled_below), (5, 5));
        assert_eq!(
            streams.open(PartitionId(1), &t).number,
            0,
            "each partition counts for itself"
        );
    }
}
