//! Lets log segments go, once listed blocks hold everything in them.

use crate::ingester::Inner;
use crate::record::{Entry, Truncated};
use crate::settings::millis;
use koios_runtime::with_sources;

impl Inner {
    /// Removes the segments that nothing needs. Failures are logged; the next round tries again.
    pub(crate) async fn truncate(&self) {
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
        self.log(Entry::Truncated(Truncated { below })).await?;
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
        let removed = self.wal()?.remove_below(below).await?;
        tracing::info!(below, removed, "log segments removed");
        Ok(())
    }

    /// The first segment that must stay, unless it is the first of all: all before it hold only what listed blocks hold,
    /// and peers had their time to fetch from them.
    fn removable_below(&self) -> Option<u32> {
        let segments = self.wal().ok()?.segments();
        let active = *segments.last()?;
        let needed = self.store.first_unlisted().unwrap_or(active).min(active);
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

    /// Damaged segments stay until what they lost is made good.
    fn has_open_damage(&self) -> bool {
        let ledger = self.store.ledger.lock();
        ledger.adopted.keys().any(|&p| ledger.is_unreconciled(p))
    }
}
