//! Applies durable records to the state: the only way it changes, while running and on replay alike.

use std::sync::Arc;

use koios_head::Applied;
use koios_wal::{Apply, GroupStats, Lsn};
use koios_wire::BatchHeader;
use koios_wire::batch::DECODED_BYTES_MAX;

use crate::conflict;
use crate::record::{Checkpoint, Deleted, Entry, Origin, Pending, PreparedBatch, Replayed, json};
use crate::replica::{BatchTimes, BegunCut, Replica};
use crate::store::Store;
use crate::{Error, Result};

/// Least bytes of a segment per series: twice what binding a series twice takes, so that no more than half of a segment says
/// who its samples are of.
const SEGMENT_BYTES_PER_SERIES: u64 = 108;

/// What a push learns from its batch's application.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pushed {
    pub(crate) applied: Applied,
    /// Its first conflict in words; empty when it has none.
    pub(crate) conflict: String,
    /// Active series of the tenant in the partition.
    pub(crate) series: u64,
    /// Samples of the tenant per second in the partition, thousandths.
    pub(crate) rate: u64,
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
    pub(crate) fn apply_entry(&self, lsn: Lsn, entry: Entry) -> Answer {
        match entry {
            Entry::Batch(pending) => return Answer::Pushed(self.apply_batch(lsn, *pending)),
            Entry::Replayed(replayed) => self.replay_batch(lsn, *replayed),
            // Its samples stay uncut, and its listing finds no cut to end: they are cut again, as the merge allows.
            Entry::CutBegun(r) if r.window_ms != self.window_ms => {}
            Entry::CutBegun(r) => {
                let replica = self.replica_or_new(&(r.partition, r.tenant.clone()));
                let mut state = replica.state.write();
                // A replay's snapshot was made after this cut: its head has later samples, which the cut must not take.
                if lsn > state.cut_through {
                    state.cut_through = lsn;
                    let begun = state.begin_cut(r.window_start_ms, r.block);
                    return Answer::Cut(Box::new(begun));
                }
            }
            Entry::CutListed(r) => {
                let replica = self.replica_or_new(&(r.partition, r.tenant.clone()));
                replica.state.write().cut_listed(r.block, r.manifest_version);
            }
            Entry::TakenOver(r) => {
                let replica = self.replica_or_new(&(r.partition, r.tenant.clone()));
                replica.state.write().take_over(&r);
            }
            Entry::Reconciled(r) => self.ledger.lock().reconcile(r.partition, lsn),
            Entry::Adopted(r) => self.ledger.lock().adopt(r.partition, r.epoch),
            Entry::Truncated(r) => self.apply_truncated(lsn, &r),
            Entry::Deleted(r) => self.apply_deletion(lsn, &r),
        }
        Answer::Done
    }

    fn apply_deletion(&self, lsn: Lsn, deleted: &Deleted) {
        let key = (deleted.head.partition, deleted.head.tenant.clone());
        let replica = self.replica_or_new(&key);
        let newest_ms = replica.state.write().apply_deletion(lsn, deleted);
        // What was kept is logged here, and nowhere else that a start is sure to load.
        if let Some(newest_ms) = newest_ms {
            self.segments.lock().note_newest(lsn.segment(), &key, newest_ms);
        }
    }

    /// Finds and names the series of a batch before it is logged. Gives the beginning of its record.
    fn prepare_batch(&self, segment: u32, pending: &mut Pending) -> Result<Vec<u8>> {
        let (header, columns) = (pending.batch.header(), pending.batch.columns());
        let replica = self.replica_or_new(&(header.partition, header.tenant.clone()));
        let is_given_up = pending.origin == Origin::Sender && self.is_given_up(&replica, header);
        let mut state = replica.state.write();
        if let Some(before) = pending.prepared.take() {
            state.head.give_up(before.resolved);
        }
        if is_given_up {
            return Err(Error::Settled {
                stream: header.stream,
                sequence: header.sequence,
            });
        }
        let named = state.name(segment, columns);
        drop(state);
        let (resolved, series) = named.map_err(|unknown| Error::UnknownSeries {
            stream: header.stream,
            sequence: header.sequence,
            unknown,
        })?;
        let bound = series.memory_bytes();
        if bound > DECODED_BYTES_MAX {
            replica.state.write().head.give_up(resolved);
            return Err(Error::BatchTooLarge { bytes: bound });
        }
        let prefix = pending.batch.log_prefix(&series);
        pending.prepared = Some(PreparedBatch {
            resolved,
            series,
            bytes: (prefix.len() + pending.batch.content().len()) as u64,
        });
        Ok(prefix)
    }

    /// Whether a batch passes for being in listed blocks, or may any time, as it does not come from its sender any more.
    fn is_given_up(&self, replica: &Replica, header: &BatchHeader) -> bool {
        let (stream, sequence) = (header.stream, header.sequence);
        let (is_settled, is_held) = {
            let state = replica.state.read();
            (
                state.streams.is_settled(header),
                state.held.contains(stream, sequence),
            )
        };
        let is_logged = || self.segments.lock().has(&replica.key, stream, sequence);
        is_settled || (is_held && !is_logged())
    }

    fn apply_batch(&self, lsn: Lsn, pending: Pending) -> Pushed {
        // The committer applies only what it has prepared.
        let Some(prepared) = pending.prepared else {
            return Pushed::default();
        };
        let (header, columns) = (pending.batch.header(), pending.batch.columns());
        let replica = self.replica_or_new(&(header.partition, header.tenant.clone()));
        let times = BatchTimes::of(columns, self.window_ms);
        self.note_logged(lsn, header, times.newest_ms, prepared.bytes);
        let mut state = replica.state.write();
        if !columns.exemplars.is_empty() {
            let limits = self.limits.of(&header.tenant);
            state.head.bound_exemplars(limits.max_exemplars);
        }
        let applied = state.apply_prepared(header, columns, prepared, lsn, &times);
        let now = self.clock.elapsed();
        state.note_came(&times, now);
        if pending.origin == Origin::Sender {
            let samples = columns.sample_count() + columns.exemplars.len();
            state.rate.add(samples as u64, now);
        }
        let rate = state.rate.thousandths(now);
        let series = state.head.series_count() as u64;
        let conflict = conflict::message(&applied, &state.head);
        let again = state.is_readable_again(header.stream, header.sequence);
        drop(state);
        if again {
            let batch = (header.stream, header.sequence);
            self.segments.lock().keep_only(lsn.segment(), &replica.key, batch);
        }
        self.metrics.applied(&applied);
        Pushed {
            applied,
            conflict,
            series,
            rate,
        }
    }

    /// Applies a batch from the log. One of whose series some cannot be told, for damage took what bound their ids, is
    /// applied without them and does not count as held.
    fn replay_batch(&self, lsn: Lsn, replayed: Replayed) {
        let Replayed {
            batch,
            mut columns,
            times,
        } = replayed;
        let header = &batch.header;
        let replica = self.replica_or_new(&(header.partition, header.tenant.clone()));
        let times = times.unwrap_or_else(|| BatchTimes::of(&columns, self.window_ms));
        let mut state = replica.state.write();
        let applied = state.replay(&batch, &mut columns, lsn, &times);
        if applied.unknown_series > 0 {
            state.note_unaccounted(&times);
        }
        drop(state);
        self.metrics.applied(&applied);
        if applied.unknown_series == 0 {
            self.note_logged(lsn, header, times.newest_ms, batch.len as u64);
            return;
        }
        tracing::error!(
            %lsn,
            series = applied.unknown_series,
            "a logged batch has samples of series whose labels were in a damaged part of the log"
        );
        self.metrics.damage.inc();
        self.ledger.lock().lost(lsn);
    }

    /// Notes where a batch is logged; before it shows as held: what is held and not logged passes for being in listed
    /// blocks.
    fn note_logged(&self, lsn: Lsn, header: &BatchHeader, newest_ms: Option<i64>, bytes: u64) {
        let key = (header.partition, header.tenant.clone());
        let id = (header.stream, header.sequence);
        self.segments
            .lock()
            .add(lsn.segment(), &key, id, newest_ms, bytes);
    }

    /// Notes a batch of a segment that a replay does not load: listed blocks or a snapshot hold its samples.
    pub(crate) fn note_batch(&self, lsn: Lsn, header: &BatchHeader, bytes: u64) {
        let replica = self.replica_or_new(&(header.partition, header.tenant.clone()));
        let mut state = replica.state.write();
        // A snapshot lacks what could not be read when it was made: a peer has it, or it is lost.
        let (stream, sequence) = (header.stream, header.sequence);
        if state
            .in_snapshot
            .as_ref()
            .is_some_and(|has| !has.contains(stream, sequence))
        {
            return;
        }
        self.note_logged(lsn, header, None, bytes);
        state.held.insert(stream, sequence);
        state.streams.note(header);
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
    type Refusal = Error;

    fn prepare(&self, segment: u32, entry: &mut Entry) -> Result<Vec<u8>> {
        match entry {
            Entry::Batch(pending) => self.prepare_batch(segment, pending),
            _ => Ok(Vec::new()),
        }
    }

    fn give_up(&self, entry: Entry) {
        let Entry::Batch(pending) = entry else { return };
        let header = pending.batch.header();
        let replica = self.replica_or_new(&(header.partition, header.tenant.clone()));
        if let Some(prepared) = pending.prepared {
            replica.state.write().head.give_up(prepared.resolved);
        }
    }

    fn apply(&self, lsn: Lsn, entry: Entry) -> Answer {
        self.apply_entry(lsn, entry)
    }

    fn checkpoint(&self, lsn: Lsn) -> Vec<u8> {
        let checkpoint = self.make_checkpoint(lsn);
        self.segments.lock().begin(lsn.segment(), checkpoint.at_ms);
        json(&checkpoint).to_vec()
    }

    fn begun(&self, segment: u32) {
        self.begun.send_replace(segment);
    }

    fn segment_bytes(&self) -> u64 {
        let series = |r: &Arc<Replica>| r.state.read().head.series_count() as u64;
        self.replicas().iter().map(series).sum::<u64>() * SEGMENT_BYTES_PER_SERIES
    }

    fn synced(&self, stats: GroupStats) {
        self.metrics.synced(stats);
    }
}
