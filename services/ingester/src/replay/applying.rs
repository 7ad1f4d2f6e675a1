//! Applies what was decoded of the log. Batches of floats, nearly all there is, are applied while what they or others filled before is
//! sealed on another core; whatever else comes waits until all is sealed.

use std::collections::BTreeMap;
use std::sync::Arc;

use koios_head::Sealing;
use koios_runtime::Cpu;
use koios_wal::Lsn;
use parking_lot::Mutex;

use crate::record::Entry;
use crate::replica::Replica;
use crate::store::Store;

/// A replica whose full runs are being sealed.
type Lent = (Arc<Replica>, Mutex<Sealing>);

impl Store {
    /// Applies entries in their order. Full runs may wait afterwards to be sealed.
    pub(super) fn replay_entries(&self, cpu: &Cpu, entries: Vec<(Lsn, Entry)>) {
        let mut entries = entries.into_iter().peekable();
        loop {
            let deferring = std::iter::from_fn(|| entries.next_if(|(_, entry)| self.may_defer(entry)));
            let deferring: Vec<(Lsn, Entry)> = deferring.collect();
            if !deferring.is_empty() {
                self.replay_deferring(cpu, deferring);
            }
            let Some((lsn, entry)) = entries.next() else {
                return;
            };
            self.seal_waiting(&entry);
            self.apply_entry(lsn, entry);
        }
    }

    /// Seals what waits in the head that an entry is of. What waits in others is nothing to it.
    fn seal_waiting(&self, entry: &Entry) {
        let (partition, tenant) = match entry {
            Entry::Replayed(r) => (r.batch.header.partition, &r.batch.header.tenant),
            Entry::CutBegun(r) => (r.partition, &r.tenant),
            Entry::CutListed(r) => (r.partition, &r.tenant),
            Entry::TakenOver(r) => (r.partition, &r.tenant),
            Entry::Deleted(r) => (r.head.partition, &r.head.tenant),
            Entry::Reconciled(_) | Entry::Adopted(_) | Entry::Truncated(_) => return,
            // None comes from a log as it came from a sender; it would have to wait for its head, too.
            Entry::Batch(r) => (r.batch.header().partition, &r.batch.header().tenant),
        };
        if let Some(replica) = self.replica(partition, tenant) {
            replica.state.write().head.seal_waiting();
        }
    }

    /// Whether sealing may be left for later while an entry is applied.
    fn may_defer(&self, entry: &Entry) -> bool {
        let Entry::Replayed(replayed) = entry else {
            return false;
        };
        let (header, columns) = (&replayed.batch.header, &replayed.columns);
        let is_plain = columns.histograms.is_empty() && columns.starts.is_empty();
        is_plain && {
            let replica = self.replica_or_new(&(header.partition, header.tenant.clone()));
            let state = replica.state.read();
            state.deletions.is_empty() && state.head.may_defer()
        }
    }

    fn replay_deferring(&self, cpu: &Cpu, entries: Vec<(Lsn, Entry)>) {
        let lent = self.lend(&entries);
        // A thread more would take longer to begin than there is to do.
        if lent.iter().all(|(_, sealing)| sealing.lock().is_empty()) {
            for (lsn, entry) in entries {
                self.apply_entry(lsn, entry);
            }
        } else {
            let entries = Mutex::new(entries);
            cpu.each(2, &|part| match part {
                0 => {
                    for (lsn, entry) in std::mem::take(&mut *entries.lock()) {
                        self.apply_entry(lsn, entry);
                    }
                }
                _ => lent.iter().for_each(|(_, sealing)| sealing.lock().run()),
            });
        }
        for (replica, sealing) in lent {
            let applied = replica.state.write().head.end_deferring(sealing.into_inner());
            self.metrics.applied(&applied);
        }
    }

    /// What waits in the heads that entries are of.
    fn lend(&self, entries: &[(Lsn, Entry)]) -> Vec<Lent> {
        let mut lent = BTreeMap::new();
        for (_, entry) in entries {
            let Entry::Replayed(replayed) = entry else {
                continue;
            };
            let header = &replayed.batch.header;
            let key = (header.partition, header.tenant.clone());
            lent.entry(key).or_insert_with_key(|key| {
                let replica = self.replica_or_new(key);
                let sealing = replica.state.write().head.begin_deferring();
                (replica, Mutex::new(sealing))
            });
        }
        lent.into_values().collect()
    }
}
