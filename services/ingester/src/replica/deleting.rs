//! What deletions do to a replica.

use koios_bucket::TombstoneState;
use koios_head::{Applied, Resolved};
use koios_model::BatchColumns;
use koios_wal::Lsn;
use koios_wire::{Batch, BatchHeader};

use super::{BatchTimes, ReplicaState};
use crate::record::Deleted;

impl ReplicaState {
    /// Applies what no deletion deletes of a batch: one that covers it was made when others held it, or it was on its way. What is left out
    /// may have to come back, so it is noted where it is: in the log alone.
    pub(super) fn apply_undeleted(
        &mut self,
        header: &BatchHeader,
        columns: &BatchColumns,
        resolved: &mut Resolved,
        lsn: Lsn,
    ) -> Applied {
        let left = self.deletions.left_of(header, columns, &self.head, resolved);
        // What is held came before: whole, or it was noted then. What a checkpoint or snapshot had applied it noted.
        let is_new = !self.held.contains(header.stream, header.sequence) && lsn > self.deletions.through;
        if is_new && left.as_ref().is_some_and(|left| left.may_return) {
            self.deletions.late.insert(header.stream, header.sequence);
        }
        let columns = left.as_ref().map_or(columns, |left| &left.columns);
        let applied = self
            .head
            .apply_resolved(columns, resolved, header.admission_ms, lsn.0);
        if left.is_some() {
            self.head.drop_bare(resolved);
        }
        applied
    }

    /// Applies a deletion, or what became of one. Gives the newest sample that it keeps or puts back.
    pub(crate) fn apply_deletion(&mut self, lsn: Lsn, deleted: &Deleted) -> Option<i64> {
        // A replay's snapshot was made after it: its head has later samples, which must not go.
        if lsn <= self.deletions.through {
            return None;
        }
        self.deletions.through = lsn;
        let (head, deletion) = (&deleted.head, &deleted.head.deletion);
        if !head.backed_up.is_empty() {
            self.deletions.late = self.deletions.late.difference(&head.backed_up);
            return None;
        }
        if deleted.replayed && (head.removes || head.puts_back) {
            self.hold_series();
        }
        if head.puts_back {
            return self.put_in(lsn, &deleted.kept, true);
        }
        let is_undone = deletion.state == TombstoneState::Undone;
        if is_undone && self.deletions.has_deleted(deletion.id) {
            // Blocks have what went from here.
            let newest = self.newest_ms.unwrap_or(i64::MAX);
            let below = deletion.range.max.min(newest).saturating_add(1);
            self.head.mark_forgotten_below(below);
            self.manifest_floor = self.manifest_floor.max(deletion.known_from());
        }
        self.deletions.late.union_with(&head.late);
        let matchers = if head.part.is_some_and(|p| !p.is_last) {
            // Not known yet: the other parts follow.
            self.deletions.begin(deletion);
            deletion.matchers().ok()?
        } else {
            self.deletions.note_applied(deletion, head.applied_up_to);
            let matchers = self.deletions.learn(deletion);
            self.deletions.settle_late();
            matchers?
        };
        if !head.removes {
            return None;
        }
        self.head
            .delete(&matchers, head.part.map_or(deletion.range, |p| p.range));
        self.put_in(lsn, &deleted.kept, false)
    }

    /// Puts samples of batches that are held into the head. Gives the newest.
    fn put_in(&mut self, lsn: Lsn, batches: &[Batch], are_covered: bool) -> Option<i64> {
        let mut newest_ms = None;
        for batch in batches {
            let (header, columns) = (batch.header(), batch.columns());
            self.head.apply(columns, header.admission_ms, lsn.0);
            let times = BatchTimes::of(columns, self.window_ms);
            newest_ms = newest_ms.max(times.newest_ms);
            if are_covered {
                // Blocks that were cut meanwhile without them say that they have their batches.
                self.note_unaccounted(&times);
            }
            // Blocks that have them are masked.
            for start in times.windows {
                let uncut = self.uncut.entry(start).or_default();
                uncut.insert(header.stream, header.sequence);
            }
        }
        newest_ms
    }

    /// Until the replay ends no series is given up: ids of the log stand for their places.
    pub(super) fn hold_series(&mut self) {
        if self.hold.is_none() {
            self.hold = Some(self.head.resolve(&BatchColumns::default()));
        }
    }
}
