//! Lets log segments go, once listed blocks hold everything in them.

use std::sync::Arc;
use std::time::Duration;

use koios_model::PartitionId;
use koios_runtime::with_sources;
use koios_wal::Lsn;

use crate::ingester::Inner;
use crate::record::{Entry, Truncated};
use crate::replica::Replica;
use crate::settings::millis;
use crate::store::Store;

/// How long a round waits for deletions that read the log.
const DELETIONS_WAIT: Duration = Duration::from_secs(5);

impl Inner {
    /// Removes the segments that nothing needs. Failures are logged; the next round tries again.
    pub(crate) async fn truncate(self: &Arc<Self>) {
        self.carry().await;
        // What a deletion has to put back it finds in the log alone. That listed blocks hold the same samples does not help: they were
        // listed by members that did not know of the deletion, so that it masks them whole. The next round removes what goes.
        let clock = &self.deps.runtime.clock;
        // Who waits comes before deletions that come later.
        let Ok(_no_deletion) = clock.timeout(DELETIONS_WAIT, self.log_kept.write()).await else {
            return;
        };
        let Some(below) = self.removable_below() else {
            return;
        };
        if let Err(e) = self.remove_segments(below).await {
            tracing::warn!(
                below,
                error = with_sources(&e),
                "log segments could not be removed"
            );
        }
    }

    async fn remove_segments(&self, below: u32) -> crate::Result<()> {
        // Logged first: a start that misses segments without this would take them for lost.
        let truncated = Truncated {
            below,
            front_is_lost: false,
        };
        self.log(Entry::Truncated(truncated)).await?;
        // The floors rise before peers can see the batches as no longer logged.
        let newest = self.store.segments.lock().newest_below(below);
        for ((partition, tenant), newest_ms) in newest {
            if let Some(replica) = self.store.replica(partition, &tenant) {
                let mut state = replica.state.write();
                let gone = newest_ms.saturating_add(1);
                state.log_forgotten_below_ms = state.log_forgotten_below_ms.max(gone);
            }
        }
        self.store.segments.lock().remove_below(below);
        self.forget_unreadable();
        let removed = self.wal()?.remove_below(below).await?;
        tracing::info!(below, removed, "log segments removed");
        Ok(())
    }

    /// What could not be read of segments that are gone is in blocks.
    fn forget_unreadable(&self) {
        for replica in self.store.replicas() {
            if replica.state.read().unreadable.is_empty() {
                continue;
            }
            let logged = self.store.segments.lock().logged(&replica.key);
            let mut state = replica.state.write();
            let gone = state.unreadable.difference(&logged);
            state.unreadable = state.unreadable.difference(&gone);
        }
    }

    /// The first segment that must stay, unless it is the first of all: all before it hold only what listed blocks hold,
    /// and peers had their time to fetch from them.
    fn removable_below(&self) -> Option<u32> {
        let segments = self.wal().ok()?.segments();
        let active = *segments.last()?;
        let needed = self.store.first_unlisted().unwrap_or(active).min(active);
        // Later: what a deletion takes from a head is late before it is gone.
        let needed = self.store.first_late().unwrap_or(active).min(needed);
        if self.has_open_damage() {
            return None;
        }
        // Without peers nobody fetches: only a restart needs the log, for what heads keep.
        let alone = self.is_alone();
        let needed = match alone {
            true => self.store.heads_need_from(active).min(needed),
            false => needed,
        };
        let now = self.deps.runtime.clock.now_ms();
        let keep = millis(self.settings.wal_keep);
        let index = self.store.segments.lock();
        let mut bytes = index.bytes();
        let mut below = None;
        for &number in segments.iter().filter(|n| **n < needed) {
            let sealed = index.sealed_ms(number).unwrap_or(now);
            let old = alone || now.saturating_sub(sealed) >= keep;
            if !old && bytes <= self.settings.wal_keep_bytes {
                break;
            }
            bytes = bytes.saturating_sub(index.bytes_of(number));
            below = Some(number.saturating_add(1));
        }
        below
    }

    /// Whether no hosted partition has another replica.
    fn is_alone(&self) -> bool {
        let state = self.deps.state.current();
        let mut hosted = state.partitions_of(&self.deps.member).peekable();
        hosted.peek().is_some() && hosted.all(|p| p.replicas.len() == 1)
    }

    /// Damaged segments stay until what they lost is made good: of the partitions that are not known to have left this
    /// member. Where one comes back, the damage is open again, as the ledger says.
    pub(crate) fn has_open_damage(&self) -> bool {
        let state = self.deps.state.current();
        // A state that is older than the adopted epoch does not tell.
        let has_left = |partition: PartitionId, adopted: u64| {
            let known = state.partition(partition);
            known.is_some_and(|p| p.epoch > adopted && !self.is_mine(p))
        };
        let ledger = self.store.ledger.lock();
        let mut adopted = ledger.adopted.iter();
        adopted.any(|(&p, &epoch)| ledger.is_unreconciled(p) && !has_left(p, epoch))
    }
}

impl Store {
    /// The first segment that alone has what a deletion that may be taken back took.
    fn first_late(&self) -> Option<u32> {
        let replicas = self.replicas();
        replicas.iter().filter_map(|r| self.first_late_of(r)).min()
    }

    /// The same of a (partition, tenant).
    pub(crate) fn first_late_of(&self, replica: &Replica) -> Option<u32> {
        let late = replica.state.read().deletions.late.clone();
        match late.is_empty() {
            true => None,
            false => self.segments.lock().last_with_all(&replica.key, &late),
        }
    }

    /// Notes which segments may go.
    pub(crate) fn apply_truncated(&self, lsn: Lsn, r: &Truncated) {
        {
            let mut ledger = self.ledger.lock();
            ledger.truncated_below = ledger.truncated_below.max(r.below);
        }
        let first = self.segments.lock().first();
        if first.is_some_and(|first| r.below < first) {
            // A later one let more go.
            return;
        }
        if r.front_is_lost {
            self.ledger.lock().lost(lsn);
        }
    }
}
