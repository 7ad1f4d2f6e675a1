//! What this member holds of one (partition, tenant).

mod deleting;

use std::collections::{BTreeMap, BTreeSet};

use koios_block::BlockId;
use koios_head::{Applied, Cut, CutId, Head, HeadOptions, Resolved, Strip};
use koios_model::{BatchColumns, BatchSet, Exemplar, Labels, Matchers, Metadata, StreamId, window_start};
use koios_tenancy::Rate;
use koios_wal::Lsn;
use koios_wire::{BatchHeader, LoggedBatch, LoggedSeries, ReadEnd};
use parking_lot::{RwLock, RwLockWriteGuard};

use crate::deletions::{Deletions, have_common};
use crate::record::{PreparedBatch, ReplicaCheckpoint, TakenOver};
use crate::references::{self, LogIds};
use crate::segments::ReplicaKey;
use crate::snapshot::ReplicaAccounts;
use crate::streams::Streams;

/// Series whose late samples are compared under one hold of the lock: about a millisecond.
pub(crate) const LATE_PART: usize = 256;

/// One (partition, tenant). The lock is held briefly and never across an await.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) key: ReplicaKey,
    pub(crate) state: RwLock<ReplicaState>,
    /// One cut at a time: the batches that a listed block covers include those of every earlier cut.
    pub(crate) cutting: tokio::sync::Mutex<()>,
    /// Nothing is deleted while the head is copied into a snapshot. Taken after `cutting`, if both are.
    pub(crate) deleting: tokio::sync::Mutex<()>,
}

/// A cut that is neither listed nor abandoned.
#[derive(Debug)]
struct Pending {
    cut: CutId,
    window_start_ms: i64,
    batches: BatchSet,
    /// The manifest version up to which deletions were applied before.
    clean_up_to: u64,
    /// It may have samples of batches that nothing tells of.
    is_unaccounted: bool,
}

/// A cut as the cut task gets it.
#[derive(Debug)]
pub(crate) struct BegunCut {
    pub(crate) cut: Cut,
    /// The batches with samples or exemplars of the window that no listed cut holds; `None` when there may be samples of
    /// others.
    pub(crate) batches: Option<BatchSet>,
    /// All batches held when the cut was made: with its block listed, listed blocks hold all their samples of the
    /// window.
    pub(crate) held: BatchSet,
    /// The manifest version up to which deletions were applied before.
    pub(crate) clean_up_to: u64,
    pub(crate) metadata: BTreeMap<String, Metadata>,
    /// All that the head has of the window, in blocks already or not: a merge keeps each once.
    pub(crate) exemplars: Vec<(Labels, Vec<Exemplar>)>,
}

/// The mutable part of a [`Replica`].
#[derive(Debug)]
pub(crate) struct ReplicaState {
    pub(crate) head: Head,
    log_ids: LogIds,
    window_ms: i64,
    pub(crate) held: BatchSet,
    /// Those of them that are logged and were found to be unreadable there since the start: the head has them.
    pub(crate) unreadable: BatchSet,
    pub(crate) streams: Streams,
    /// Starts of the windows of which the head may have samples that no cut has taken, of batches that nothing tells of: a snapshot
    /// had them, or some of their series are not known, and their records are damaged.
    unaccounted: BTreeSet<i64>,
    /// What the checkpoint that the log begins with says is held: while a start replays, and from then on where it found that answered
    /// records are missing, with what its snapshot had. The head may have samples of these batches.
    held_before: BatchSet,
    /// While a start from a snapshot replays: the batches it has.
    pub(crate) in_snapshot: Option<BatchSet>,
    /// The newest sample logged.
    pub(crate) newest_ms: Option<i64>,
    /// Samples below it may be in no live log segment; listed blocks hold them, but for those of batches that were carried.
    pub(crate) log_forgotten_below_ms: i64,
    manifest_floor: u64,
    pub(crate) listed_version: u64,
    /// Per window: the batches with samples or exemplars that no cut has taken.
    uncut: BTreeMap<i64, BatchSet>,
    pending: BTreeMap<BlockId, Pending>,
    /// Cuts that were begun up to here in the log are in the state.
    pub(crate) cut_through: Lsn,
    /// Per window: when it was cut last, by the monotonic clock.
    pub(crate) cut_at: BTreeMap<i64, std::time::Duration>,
    /// Per window that could be cut: since when, by the monotonic clock.
    pub(crate) due_since: BTreeMap<i64, std::time::Duration>,
    /// Per window held: when samples or exemplars of it came last, by the monotonic clock.
    pub(crate) came_at: BTreeMap<i64, std::time::Duration>,
    /// How many samples distributors send per second, exemplars included.
    pub(crate) rate: Rate,
    /// When metadata that nobody sends was looked for last, by the monotonic clock.
    pub(crate) metadata_looked_at: std::time::Duration,
    pub(crate) deletions: Deletions,
    /// While a replay goes on in which something was deleted: keeps series without samples, whose places ids stand for.
    hold: Option<Resolved>,
}

impl Replica {
    pub(crate) fn new(key: ReplicaKey, options: HeadOptions) -> Self {
        Self {
            key,
            state: RwLock::new(ReplicaState {
                head: Head::new(options),
                log_ids: LogIds::default(),
                window_ms: options.window_ms,
                held: BatchSet::default(),
                unreadable: BatchSet::default(),
                streams: Streams::default(),
                unaccounted: BTreeSet::new(),
                held_before: BatchSet::default(),
                in_snapshot: None,
                newest_ms: None,
                log_forgotten_below_ms: i64::MIN,
                manifest_floor: 0,
                listed_version: 0,
                uncut: BTreeMap::new(),
                pending: BTreeMap::new(),
                cut_through: Lsn(0),
                cut_at: BTreeMap::new(),
                due_since: BTreeMap::new(),
                came_at: BTreeMap::new(),
                rate: Rate::default(),
                metadata_looked_at: std::time::Duration::ZERO,
                deletions: Deletions::default(),
                hold: None,
            }),
            cutting: tokio::sync::Mutex::new(()),
            deleting: tokio::sync::Mutex::new(()),
        }
    }

    /// Copies a strip of the head while others read it. Only where its first series has late samples that were not compared, some
    /// are, while nobody does.
    pub(crate) fn snapshot(
        &self,
        from: u32,
        bytes_max: usize,
    ) -> Result<(Strip, Option<u32>), koios_head::Error> {
        let state = self.state.read();
        let (strip, next) = state.head.snapshot(from, bytes_max)?;
        if strip.series > 0 || next.is_none() {
            return Ok((strip, next));
        }
        drop(state);
        let mut state = self.state.write();
        state.head.check_late_from(from, LATE_PART);
        // No batch comes in between: it could bring the same series late samples again, for ever.
        let state = RwLockWriteGuard::downgrade(state);
        state.head.snapshot(from, bytes_max)
    }
}

impl ReplicaState {
    /// Finds the series of a batch and names them for a log segment.
    ///
    /// # Errors
    /// How many series came without labels and are not known.
    pub(crate) fn name(
        &mut self,
        segment: u32,
        columns: &BatchColumns,
    ) -> Result<(Resolved, LoggedSeries), u64> {
        let resolved = self.head.resolve(columns);
        if resolved.unknown() > 0 {
            let unknown = resolved.unknown();
            self.head.give_up(resolved);
            return Err(unknown);
        }
        let series = self.log_ids.name(segment, &self.head, columns, &resolved);
        Ok((resolved, series))
    }

    /// Applies a batch that was named.
    pub(crate) fn apply_prepared(
        &mut self,
        header: &BatchHeader,
        columns: &BatchColumns,
        prepared: PreparedBatch,
        lsn: Lsn,
        times: &BatchTimes,
    ) -> Applied {
        let PreparedBatch {
            mut resolved, series, ..
        } = prepared;
        let applied = self.apply_undeleted(header, columns, &mut resolved, lsn);
        references::mark(lsn.segment(), &mut self.head, &series, &resolved);
        self.note_held(header, times);
        applied
    }

    /// Applies a batch read from the log.
    pub(crate) fn replay(
        &mut self,
        batch: &LoggedBatch,
        columns: &mut BatchColumns,
        lsn: Lsn,
        times: &BatchTimes,
    ) -> Applied {
        let segment = lsn.segment();
        let mut resolved = self.log_ids.resolve(segment, &mut self.head, batch, columns);
        if !self.deletions.is_empty() {
            self.hold_series();
        }
        let applied = self.apply_undeleted(&batch.header, columns, &mut resolved, lsn);
        self.log_ids.replayed(batch, &resolved);
        if applied.unknown_series == 0 {
            self.note_held(&batch.header, times);
        }
        applied
    }

    fn note_held(&mut self, header: &BatchHeader, times: &BatchTimes) {
        self.held.insert(header.stream, header.sequence);
        self.streams.note(header);
        self.newest_ms = self.newest_ms.max(times.newest_ms);
        for &start in &times.windows {
            self.uncut
                .entry(start)
                .or_default()
                .insert(header.stream, header.sequence);
        }
    }

    /// Notes that a batch is logged anew; whether it could not be read where it was logged before.
    pub(crate) fn is_readable_again(&mut self, stream: StreamId, sequence: u64) -> bool {
        let was_unreadable = self.unreadable.contains(stream, sequence);
        if was_unreadable {
            let mut again = BatchSet::default();
            again.insert(stream, sequence);
            self.unreadable = self.unreadable.difference(&again);
        }
        was_unreadable
    }

    /// Notes when samples or exemplars came. What has neither, metadata alone, keeps no window from being quiet.
    pub(crate) fn note_came(&mut self, times: &BatchTimes, now: std::time::Duration) {
        for &start in &times.windows {
            self.came_at.insert(start, now);
        }
    }

    pub(crate) fn begin_cut(&mut self, window_start_ms: i64, block: BlockId) -> BegunCut {
        let cut = self.head.cut(window_start_ms);
        let batches = self.uncut.remove(&window_start_ms).unwrap_or_default();
        let is_unaccounted = self.unaccounted.remove(&window_start_ms);
        if !cut.is_empty() {
            let pending = Pending {
                cut: cut.id,
                window_start_ms,
                batches: batches.clone(),
                clean_up_to: self.deletions.clean_up_to(),
                is_unaccounted,
            };
            self.pending.insert(block, pending);
        }
        let metadata = self.head.metadata();
        let exemplars = match cut.is_empty() {
            true => Vec::new(),
            false => self.head.exemplars(&Matchers::default(), cut.window),
        };
        BegunCut {
            exemplars,
            cut,
            batches: (!is_unaccounted).then_some(batches),
            held: self.told(),
            clean_up_to: self.deletions.clean_up_to(),
            metadata: metadata
                .map(|(name, _, m)| (name.to_owned(), m.clone()))
                .collect(),
        }
    }

    /// Listed blocks hold everything of a cut. One begun in a segment that is gone is known no more, and holds nothing
    /// that was replayed.
    pub(crate) fn cut_listed(&mut self, block: BlockId, manifest_version: u64) {
        self.listed_version = self.listed_version.max(manifest_version);
        if let Some(p) = self.pending.remove(&block) {
            self.head.cut_listed(p.cut);
        }
    }

    /// The first manifest version whose deletions a block may lack that is not listed yet: until it is, they must not be
    /// forgotten.
    pub(crate) fn unclean_from(&self) -> Option<u64> {
        let versions = self.pending.values().map(|p| p.clean_up_to.saturating_add(1));
        versions.min()
    }

    /// Gives the samples of a cut back.
    pub(crate) fn abandon(&mut self, block: BlockId) {
        if let Some(p) = self.pending.remove(&block) {
            self.head.cut_abandoned(p.cut);
            self.uncut
                .entry(p.window_start_ms)
                .or_default()
                .union_with(&p.batches);
            self.unaccounted
                .extend(p.is_unaccounted.then_some(p.window_start_ms));
        }
    }

    /// Gives the samples of every cut back: what a replay does with cuts that a crash interrupted.
    pub(crate) fn abandon_all(&mut self) {
        let blocks: Vec<BlockId> = self.pending.keys().copied().collect();
        blocks.into_iter().for_each(|b| self.abandon(b));
    }

    pub(crate) fn take_over(&mut self, r: &TakenOver) {
        self.held.union_with(&r.held);
        self.raise_floors(r.forgotten_below_ms, r.manifest_version);
    }

    /// Samples below a time may be missing from the head and the log; blocks listed in `manifest_version` hold them.
    pub(crate) fn raise_floors(&mut self, forgotten_below_ms: i64, manifest_version: u64) {
        self.head.mark_forgotten_below(forgotten_below_ms);
        self.log_forgotten_below_ms = self.log_forgotten_below_ms.max(forgotten_below_ms);
        self.listed_version = self.listed_version.max(manifest_version);
        self.manifest_floor = self.manifest_floor.max(manifest_version);
    }

    /// Forgets listed samples of windows that end at or before `keep_from_ms`. The floor rises with it, so that a read
    /// that missed them says where they are.
    pub(crate) fn forget(&mut self, keep_from_ms: i64) -> u64 {
        let dropped = self.head.forget(keep_from_ms);
        // Late samples of a window that was forgotten before are in a later version than the others.
        if dropped > 0 {
            self.manifest_floor = self.manifest_floor.max(self.listed_version);
            // Exemplars that newer ones displaced may be of windows that are not held, which are never cut.
            let held: Vec<i64> = self.head.windows().iter().map(|w| w.start).collect();
            let below = self.head.forgotten_below_ms();
            self.uncut
                .retain(|start, _| *start >= below || held.binary_search(start).is_ok());
        }
        dropped
    }

    /// The newest manifest version that this replica knows to have been there.
    pub(crate) fn announced(&self) -> u64 {
        let listed = self.listed_version.max(self.manifest_floor);
        listed
            .max(self.deletions.clean_up_to())
            .max(self.deletions.newest())
    }

    /// What the member holds, taken at once.
    pub(crate) fn end(&self) -> ReadEnd {
        self.end_with(self.held.clone())
    }

    /// The same with batches noted earlier: a read notes them before it copies and the floors after it, so that the
    /// data has everything of these batches that the floors don't exclude.
    pub(crate) fn end_with(&self, held: BatchSet) -> ReadEnd {
        ReadEnd {
            held,
            forgotten_below_ms: self.head.forgotten_below_ms(),
            manifest_floor: self.manifest_floor,
            deletions_version: self.deletions.version,
        }
    }

    pub(crate) fn checkpoint(&self, key: &ReplicaKey) -> ReplicaCheckpoint {
        let metadata = self.head.metadata();
        ReplicaCheckpoint {
            partition: key.0,
            tenant: key.1.clone(),
            held: self.held.clone(),
            newest_ms: self.newest_ms,
            log_forgotten_below_ms: self.log_forgotten_below_ms,
            listed_version: self.listed_version,
            metadata: metadata.map(|(n, at, m)| (n.to_owned(), at, m.clone())).collect(),
            deletions: self.deletions.checkpoint(),
        }
    }

    /// Starts from the checkpoint of the first live segment: whatever was logged before it is in listed blocks, or carried.
    pub(crate) fn restore(&mut self, c: &ReplicaCheckpoint, with_held: bool) {
        if with_held {
            self.held_before.union_with(&c.held);
        }
        self.newest_ms = self.newest_ms.max(c.newest_ms);
        let gone = c.newest_ms.map_or(i64::MIN, |t| t.saturating_add(1));
        let below = c.log_forgotten_below_ms.max(gone);
        self.listed_version = self.listed_version.max(c.listed_version);
        self.log_forgotten_below_ms = self.log_forgotten_below_ms.max(below);
        self.restore_metadata(c);
        self.deletions.restore(&c.deletions);
    }

    /// Per window: the batches with samples that no listed cut holds.
    pub(crate) fn uncut(&self) -> Vec<(i64, BatchSet)> {
        let mut all = self.uncut.clone();
        for p in self.pending.values() {
            all.entry(p.window_start_ms).or_default().union_with(&p.batches);
        }
        all.into_iter().collect()
    }

    /// Whether no listed cut holds some batch of a stream.
    pub(crate) fn is_uncut(&self, stream: StreamId) -> bool {
        let pending = self.pending.values().map(|p| &p.batches);
        self.uncut.values().chain(pending).any(|b| b.has_stream(stream))
    }

    /// Takes a head from a snapshot.
    pub(crate) fn install(&mut self, head: Head, accounts: ReplicaAccounts) {
        self.head = head;
        self.uncut = accounts.uncut.into_iter().collect();
        for start in self.uncut.keys() {
            self.head.mark_exemplars_uncut(*start);
        }
        self.manifest_floor = accounts.manifest_floor;
        self.cut_through = Lsn(accounts.cut_through);
        self.unaccounted = accounts.unaccounted.into_iter().collect();
        // A version before tells no more.
        if accounts.has_unaccounted && self.unaccounted.is_empty() {
            let unlisted = self.unlisted_windows();
            self.unaccounted.extend(unlisted);
        }
        self.in_snapshot = Some(accounts.checkpoint.held.clone());
        self.restore_beside(&accounts.checkpoint);
    }

    /// Takes over what a head from a snapshot does not tell. The batches it has are read from the log.
    fn restore_beside(&mut self, c: &ReplicaCheckpoint) {
        self.newest_ms = self.newest_ms.max(c.newest_ms);
        self.listed_version = self.listed_version.max(c.listed_version);
        self.log_forgotten_below_ms = self.log_forgotten_below_ms.max(c.log_forgotten_below_ms);
        self.restore_metadata(c);
        self.deletions.restore(&c.deletions);
    }

    fn restore_metadata(&mut self, c: &ReplicaCheckpoint) {
        for (name, at, m) in &c.metadata {
            let columns = BatchColumns {
                metadata: vec![(name.clone(), m.clone())],
                ..BatchColumns::default()
            };
            self.head.apply(&columns, *at, 0);
        }
    }

    /// Ends a replay: interrupted cuts are given back, and the floors say what the log no longer has.
    pub(crate) fn replayed(&mut self, found: Found) {
        self.head.seal_waiting();
        self.abandon_all();
        if found.unaccounted && self.in_snapshot.is_some() {
            let unlisted = self.unlisted_windows();
            self.unaccounted.extend(unlisted);
        }
        let in_snapshot = self.in_snapshot.take().unwrap_or_default();
        if found.lost {
            self.held_before.union_with(&in_snapshot);
        } else {
            self.held.union_with(&std::mem::take(&mut self.held_before));
        }
        // What the log repeats of a snapshot would take memory till the next cut.
        self.head.check_late(usize::MAX);
        self.log_ids.replay_ended();
        if let Some(hold) = self.hold.take() {
            self.head.give_up(hold);
        }
        if self.log_forgotten_below_ms > i64::MIN {
            self.raise_floors(self.log_forgotten_below_ms, self.listed_version);
        }
    }

    /// Starts of the windows of which the head has what no listed cut holds.
    fn unlisted_windows(&self) -> Vec<i64> {
        let windows = self.head.windows().into_iter();
        let unlisted = windows.filter(|w| w.unlisted_from_lsn.is_some());
        unlisted.map(|w| w.start).collect()
    }

    /// Whether the head may have samples of some of these batches.
    pub(crate) fn may_have(&self, batches: &BatchSet) -> bool {
        have_common(batches, &self.held)
            || have_common(batches, &self.held_before)
            || !self.unaccounted().is_empty()
    }

    /// Notes that the head has samples of a batch that does not count as held, or of which blocks that say to have it lack them.
    pub(crate) fn note_unaccounted(&mut self, times: &BatchTimes) {
        self.unaccounted.extend(&times.windows);
    }

    /// Starts of the windows of which it may have samples that no listed cut holds, of batches that nothing tells of.
    pub(crate) fn unaccounted(&self) -> Vec<i64> {
        let of_cuts = self.pending.values().filter(|p| p.is_unaccounted);
        let of_cuts: BTreeSet<i64> = of_cuts.map(|p| p.window_start_ms).collect();
        let is_so = |start: &i64| self.unaccounted.contains(start) || of_cuts.contains(start);
        self.unlisted_windows().into_iter().filter(is_so).collect()
    }

    pub(crate) fn window_ms(&self) -> i64 {
        self.window_ms
    }
}

/// What a replay found of damage.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Found {
    /// Answered records are missing. Held is then what the log has, or a peer said to be in listed blocks: what the checkpoint says
    /// that the log begins with may have been in them alone, as batches are logged again when segments go. What is in listed blocks
    /// after all is taken over from peers again.
    pub(crate) lost: bool,
    /// Records are missing of which a snapshot may have samples.
    pub(crate) unaccounted: bool,
}

/// When the samples of a batch are.
#[derive(Debug)]
pub(crate) struct BatchTimes {
    pub(crate) newest_ms: Option<i64>,
    /// The starts of the windows that it has samples or exemplars of, ascending.
    windows: Vec<i64>,
}

impl BatchTimes {
    pub(crate) fn of(columns: &BatchColumns, window_ms: i64) -> Self {
        let mut times = Self {
            newest_ms: None,
            windows: Vec::new(),
        };
        let mut current = None;
        for t in columns.sample_times() {
            times.newest_ms = times.newest_ms.max(Some(t));
            times.note_window(&mut current, t, window_ms);
        }
        for e in &columns.exemplars {
            times.note_window(&mut current, e.exemplar.t, window_ms);
        }
        times
    }

    /// Notes the window of a time, mostly that of the time before.
    fn note_window(&mut self, current: &mut Option<i64>, t: i64, window_ms: i64) {
        let inside = current.is_some_and(|s| t >= s && t.saturating_sub(s) < window_ms);
        if inside {
            return;
        }
        let start = window_start(t, window_ms);
        *current = Some(start);
        if let Err(at) = self.windows.binary_search(&start) {
            self.windows.insert(at, start);
        }
    }
}

#[cfg(test)]
#[path = "replica_test.rs"]
mod tests;
