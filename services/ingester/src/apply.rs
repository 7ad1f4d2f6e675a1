//! Applies durable records to the state: the only way it changes, while running and on replay alike.

use koios_head::Applied;
use koios_wal::{Apply, GroupStats, Lsn};
use koios_wire::{Batch, BatchHeader};

use crate::record::{Checkpoint, Entry, json};
use crate::replica::{BegunCut, newest, windows_of};
use crate::store::Store;

/// What a push learns from its batch's application.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pushed {
    pub(crate) applied: Applied,
    /// Active series of the tenant in the partition.
    pub(crate) series: u64,
}

/// What an entry's append is answered with.
#[derive(Debug)]
pub(crate) enum Answer {
    Pushed(Pushed),
    Cut(Box<BegunCut>),
    Done,
}

impl Store {
    /// Applies one record.
    pub(crate) fn apply_entry(&self, lsn: Lsn, entry: &Entry) -> Answer {
        match entry {
            Entry::Batch(batch) => return Answer::Pushed(self.apply_batch(lsn, batch)),
            // Its samples stay uncut, and its listing finds no cut to end: they are cut again, as the merge allows.
            Entry::CutBegun(r) if r.window_ms != self.window_ms => {}
            Entry::CutBegun(r) => {
                let replica = self.replica_or_new(&(r.partition, r.tenant.clone()));
                let begun = replica.state.write().begin_cut(r.window_start_ms, r.block);
                return Answer::Cut(Box::new(begun));
            }
            Entry::CutListed(r) => {
                let replica = self.replica_or_new(&(r.partition, r.tenant.clone()));
                replica.state.write().cut_listed(r.block, r.manifest_version);
            }
            Entry::TakenOver(r) => {
                let replica = self.replica_or_new(&(r.partition, r.tenant.clone()));
                replica.state.write().take_over(r);
            }
            Entry::Reconciled(r) => self.ledger.lock().reconcile(r.partition, lsn),
            Entry::Adopted(r) => self.ledger.lock().adopt(r.partition, r.epoch),
            Entry::Truncated(r) => {
                let mut ledger = self.ledger.lock();
                ledger.truncated_below = ledger.truncated_below.max(r.below);
            }
        }
        Answer::Done
    }

    fn apply_batch(&self, lsn: Lsn, batch: &Batch) -> Pushed {
        let header = batch.header();
        let key = (header.partition, header.tenant.clone());
        let replica = self.replica_or_new(&key);
        // Before the batch shows as held: what is held and not logged passes for being in listed blocks.
        self.segments.lock().add(
            lsn.segment(),
            &key,
            (header.stream, header.sequence),
            newest(batch),
            batch.encoded().len() as u64,
        );
        let windows = windows_of(batch, self.window_ms);
        let mut state = replica.state.write();
        let applied = state.apply(batch, lsn, &windows);
        state.applied_at = self.clock.elapsed();
        let series = state.head.series_count() as u64;
        drop(state);
        self.metrics.applied(&applied);
        Pushed { applied, series }
    }

    /// Notes a batch of a segment that a replay does not load: listed blocks hold its samples.
    pub(crate) fn note_batch(&self, lsn: Lsn, header: &BatchHeader, bytes: u64) {
        let key = (header.partition, header.tenant.clone());
        let replica = self.replica_or_new(&key);
        let id = (header.stream, header.sequence);
        self.segments.lock().add(lsn.segment(), &key, id, None, bytes);
        replica.state.write().held.insert(header.stream, header.sequence);
    }

    /// The state as it is carried into a new segment.
    fn make_checkpoint(&self, lsn: Lsn) -> Checkpoint {
        let ledger = self.ledger.lock().clone();
        let replicas = self.replicas();
        Checkpoint {
            at_ms: self.clock.now_ms(),
            adopted: ledger.adopted,
            damaged_at: ledger.damaged_at.map(|l| l.0),
            lost_at: ledger.lost_at.map(|l| l.0),
            reconciled_at: ledger.reconciled_at.into_iter().map(|(p, l)| (p, l.0)).collect(),
            truncated_below: ledger.truncated_below,
            heads_need_from: self.heads_need_from(lsn.segment()),
            replicas: replicas
                .iter()
                .map(|r| r.state.read().checkpoint(&r.key))
                .collect(),
        }
    }
}

impl Apply for Store {
    type Entry = Entry;
    type Answer = Answer;

    fn apply(&self, lsn: Lsn, entry: Entry) -> Answer {
        self.apply_entry(lsn, &entry)
    }

    fn checkpoint(&self, lsn: Lsn) -> Vec<u8> {
        let checkpoint = self.make_checkpoint(lsn);
        self.segments.lock().begin(lsn.segment(), checkpoint.at_ms);
        json(&checkpoint).to_vec()
    }

    fn synced(&self, stats: GroupStats) {
        self.metrics.synced(stats);
    }
}
