//! What a replica knows of the streams its batches come in, beside which of them it holds: what is settled, and which streams
//! are over. Without it the sets of batches, which reads, blocks and checkpoints carry, would only grow.
//!
//! **Gaps.** A batch is settled once its sender waits for no member any more: it was acknowledged, which a majority of the
//! members then holds, or never will be. One that is settled and missing here is filled in, held without being there, when
//! no member holds it ([`crate::settle`]): then it was never acknowledged. As long as some member is away, or does not count, or
//! holds it, it stays a gap, so that repair finds it. After that it must not come from its sender: what is filled passes for
//! being in listed blocks. So a settled batch, and one that is held and not logged, is taken from members only.
//!
//! What was filled in is told to nobody for a while, lest others, who fill it in as well, take it for something in blocks
//! and follow this member's floors.
//!
//! **Streams that are over.** Of a stream of which no batch is in the log, all of which listed blocks hold, of which the
//! head has forgotten all samples, and of which all members that tell of it told the same when that began, nothing is told
//! to other members, nor by new blocks: nobody needs anything of it. A member that lacked a batch would not hear of it any
//! more, and take it for one that was never acknowledged, so as long as one tells something else, all is told. When no
//! member tells of it either, and the head has forgotten what is in blocks that do, it is dropped: a head that does not hold
//! what a block covers makes readers read the block. What a deletion must delete here is never of a stream that was dropped.
//!
//! **What stays.** Gaps that no later batch of their stream says to be settled, those sent under an older epoch than the
//! newest, and those of a partition while a member is away or does not count: until their stream is over. And one race: of a
//! batch that was given up, which a slow member applies (a broken connection delivered it late, or a disk stood still) after
//! all members have said to lack it, before it hears what the others took for held. It holds, then, what they pass for holding. It was never
//! acknowledged, so nothing that must be kept is lost with it; but blocks of the others pass for having it.

use std::collections::{BTreeMap, BTreeSet};

use koios_model::{BatchSet, StreamId};
use koios_wire::BatchHeader;

use crate::replica::ReplicaState;

/// What is settled of a stream.
#[derive(Clone, Copy, Debug)]
struct Settled {
    /// The newest epoch under which batches of it came.
    epoch: u64,
    /// The first of them. What went before was sent to other members, maybe.
    from: u64,
    /// All before it are settled.
    below: u64,
}

/// The streams of a replica.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    settled: BTreeMap<StreamId, Settled>,
    /// Those of which the log has no batch.
    left: BTreeMap<StreamId, Left>,
    /// What was filled in since all members were heard last, and what was before that since the time before.
    filled: [BatchSet; 2],
}

/// A stream of which the log has no batch.
#[derive(Clone, Copy, Debug)]
struct Left {
    /// The newest sample of the replica when that was seen first.
    newest_ms: Option<i64>,
    /// The same of when the stream was over: what is cut from then on does not cover it.
    over_at: Option<i64>,
}

impl Streams {
    /// Learns what the header of a logged batch says of those before it.
    pub(crate) fn note(&mut self, header: &BatchHeader) {
        let new = Settled {
            epoch: header.epoch,
            from: header.sequence,
            below: header.settled_below,
        };
        // It is in the log again.
        self.left.remove(&header.stream);
        let known = self.settled.entry(header.stream).or_insert(new);
        if new.epoch > known.epoch {
            let below = known.below.max(new.below);
            *known = Settled { below, ..new };
        } else if new.epoch == known.epoch {
            known.from = known.from.min(new.from);
            known.below = known.below.max(new.below);
        }
    }

    /// Whether the sender of a batch waits for it no more.
    pub(crate) fn is_settled(&self, header: &BatchHeader) -> bool {
        let known = self.settled.get(&header.stream);
        known.is_some_and(|known| header.sequence < known.below)
    }
}

impl ReplicaState {
    /// The batches sent under an epoch that are settled and not held.
    pub(crate) fn gaps(&self, epoch: u64) -> BatchSet {
        let mut settled = BatchSet::default();
        for (stream, known) in &self.streams.settled {
            if known.epoch == epoch {
                settled.insert_run(*stream, known.from, known.below);
            }
        }
        settled.difference(&self.held)
    }

    /// Notes that batches were filled in.
    pub(crate) fn note_filled(&mut self, batches: &BatchSet) {
        let [new, _] = &mut self.streams.filled;
        new.union_with(batches);
    }

    /// All members were heard once more: what was filled in before the last time is told from now on.
    pub(crate) fn age_filled(&mut self) {
        let [new, old] = &mut self.streams.filled;
        *old = std::mem::take(new);
    }

    /// The streams of which another member, which tells `theirs`, holds something else.
    pub(crate) fn differing(&self, theirs: &BatchSet) -> Vec<StreamId> {
        let theirs = theirs.streams();
        let differ = theirs.filter(|(stream, set)| self.held.of_stream(*stream) != Some(*set));
        differ.map(|(stream, _)| stream).collect()
    }

    /// Notes which streams the log has batches of, or other members tell something else of.
    pub(crate) fn note_logged(&mut self, logged: &BatchSet, differing: &BTreeSet<StreamId>) {
        let newest_ms = self.newest_ms;
        for (stream, _) in self.held.streams() {
            if logged.has_stream(stream) || differing.contains(&stream) {
                self.streams.left.remove(&stream);
            } else {
                let new = Left {
                    newest_ms,
                    over_at: None,
                };
                self.streams.left.entry(stream).or_insert(new);
            }
        }
    }

    /// Whether blocks have all of a stream, and neither the log nor the head anything.
    fn is_over(&self, stream: StreamId) -> bool {
        let left = self.streams.left.get(&stream);
        left.is_some_and(|left| self.has_forgotten(left.newest_ms)) && !self.is_uncut(stream)
    }

    /// Whether the head has nothing up to a time.
    fn has_forgotten(&self, newest_ms: Option<i64>) -> bool {
        match newest_ms {
            Some(newest_ms) => self.head.forgotten_below_ms() > newest_ms,
            None => self.head.windows().is_empty(),
        }
    }

    /// The batches held that other members and blocks are told of.
    pub(crate) fn told(&self) -> BatchSet {
        let [new, old] = &self.streams.filled;
        let mut told = self.held.difference(new).difference(old);
        let left = self.streams.left.keys();
        left.filter(|stream| self.is_over(**stream))
            .for_each(|stream| told.remove_stream(*stream));
        told
    }

    /// Drops the streams that are over, but for those that others tell of.
    pub(crate) fn drop_streams(&mut self, told: &BTreeSet<StreamId>) {
        let left = self.streams.left.keys().copied();
        let over: Vec<StreamId> = left
            .filter(|stream| !told.contains(stream) && self.is_over(*stream))
            .collect();
        let newest_ms = self.newest_ms;
        let newest_or_none = newest_ms.unwrap_or(i64::MIN);
        for stream in over {
            let Some(left) = self.streams.left.get_mut(&stream) else {
                continue;
            };
            let over_at = *left.over_at.get_or_insert(newest_or_none);
            if !self.has_forgotten(newest_ms.and(Some(over_at))) {
                continue;
            }
            self.held.remove_stream(stream);
            self.streams.left.remove(&stream);
            self.streams.settled.remove(&stream);
            for filled in &mut self.streams.filled {
                filled.remove_stream(stream);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use koios_model::{PartitionId, TenantId};

    use super::*;

    fn header(epoch: u64, sequence: u64, settled_below: u64) -> BatchHeader {
        BatchHeader {
            tenant: TenantId::anonymous(),
            stream: StreamId(1),
            sequence,
            settled_below,
            partition: PartitionId(0),
            epoch,
            admission_ms: 0,
        }
    }

    #[test]
    fn what_was_sent_under_an_older_epoch_is_no_gap_of_the_new_one() {
        let mut streams = Streams::default();
        streams.note(&header(1, 3, 2));
        streams.note(&header(1, 2, 0));
        let known = streams.settled[&StreamId(1)];
        assert_eq!((known.epoch, known.from, known.below), (1, 2, 2));
        streams.note(&header(2, 9, 8));
        streams.note(&header(1, 4, 20));
        let known = streams.settled[&StreamId(1)];
        assert_eq!((known.epoch, known.from, known.below), (2, 9, 8));
        assert!(streams.is_settled(&header(2, 7, 0)) && !streams.is_settled(&header(2, 8, 0)));
    }
}
