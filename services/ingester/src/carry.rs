//! Carries what keeps the log. All tenants share it, and a segment goes once listed blocks hold all of it: one tenant whose blocks cannot
//! be listed, as its manifest is damaged until somebody mends it, would keep what all others logged, until the disk is full for
//! everybody. So the batches for which alone old segments stay are logged once more at the log's end, as repair logs what a peer has, and
//! the segments need not stay for them. Only where more goes than comes: with the bucket away all wait, and stay where they are.
//!
//! A batch that is carried was held before its copy was logged, so the checkpoint with which the log then begins says that it is held. Were the copy
//! damaged, it would pass for being in listed blocks. So a start that finds anything of the log missing holds no more than it found.

use std::sync::Arc;

use futures::future::try_join_all;
use koios_model::{BatchSet, PartitionId, TenantId};
use koios_wal::Lsn;
use koios_wire::{FetchBatchesRequest, ServiceError, ServiceErrorCode};

use crate::cut::longest_uncut_ms;
use crate::fetch::Groups;
use crate::ingester::Inner;
use crate::record::Origin;
use crate::replica::{Replica, ReplicaState};
use crate::segments::SegmentIndex;

/// What waits so many times as long as it takes to cut a window, where all goes on as usual, may be carried.
const WAITS: i64 = 2;
/// So many bytes go for each that is carried, at least.
const GAIN: u64 = 2;

/// A (partition, tenant) that keeps segments.
struct Keeping {
    replica: Arc<Replica>,
    /// The first segment that it keeps.
    from: u32,
    /// The batches that no listed cut has, and the late ones; `None` where it has more, or they are not all in the log.
    uncut: Option<BatchSet>,
}

impl Inner {
    /// Logs once more what alone keeps old segments.
    pub(crate) async fn carry(self: &Arc<Self>) {
        let Some((below, keeping)) = self.to_carry() else {
            return;
        };
        for replica in keeping {
            let (partition, tenant) = &replica.key;
            match self.carry_replica(&replica, below).await {
                Ok(0) => {}
                Ok(batches) => tracing::warn!(
                    %partition, %tenant, batches, below,
                    "nothing of it could be listed for hours: logged once more, so that other tenants' log segments can go"
                ),
                Err(error) => tracing::warn!(
                    %partition, %tenant, %error,
                    "nothing of it could be listed for hours, nor could it be logged once more: it keeps log segments of all tenants"
                ),
            }
        }
    }

    /// Below which segment all can be carried that waits there, and of whom; `None` where that gives back too little.
    fn to_carry(&self) -> Option<(u32, Vec<Arc<Replica>>)> {
        let active = *self.wal().ok()?.segments().last()?;
        if self.has_open_damage() {
            return None;
        }
        let waits = longest_uncut_ms(&self.settings).saturating_mul(WAITS);
        let since = self.deps.runtime.clock.now_ms().saturating_sub(waits);
        let mut below = self.store.segments.lock().first_sealed_after(since).min(active);
        let keeping = |replica| self.keeping(replica, below);
        let mut all: Vec<Keeping> = self.store.replicas().into_iter().filter_map(keeping).collect();
        let index = self.store.segments.lock();
        for k in &mut all {
            let is_logged = |uncut: &BatchSet| index.logged(&k.replica.key).includes(uncut);
            k.uncut = k.uncut.take().filter(is_logged);
            if k.uncut.is_none() {
                below = below.min(k.from);
            }
        }
        all.retain(|k| k.from < below);
        let first = all.iter().map(|k| k.from).min()?;
        let kept = |k: &Keeping| index.bytes_kept(&k.replica.key, k.uncut.as_ref()?, below);
        let carried: u64 = all.iter().filter_map(kept).sum();
        let is_worth_it = carried.saturating_mul(GAIN) <= index.bytes_within(first..below);
        is_worth_it.then(|| (below, all.into_iter().map(|k| k.replica).collect()))
    }

    /// What keeps segments below a number for a (partition, tenant).
    fn keeping(&self, replica: Arc<Replica>, below: u32) -> Option<Keeping> {
        let late_from = self.store.first_late_of(&replica);
        let (from, uncut) = {
            let state = replica.state.read();
            let unlisted_from = state.head.unlisted_from_lsn().map(|lsn| Lsn(lsn).segment());
            let from = unlisted_from.into_iter().chain(late_from).min()?;
            (from < below).then(|| (from, state.carriable()))?
        };
        Some(Keeping { replica, from, uncut })
    }

    /// Logs once more what keeps segments below a number; gives how many batches that took.
    async fn carry_replica(
        self: &Arc<Self>,
        replica: &Arc<Replica>,
        below: u32,
    ) -> Result<u64, ServiceError> {
        // What no cut has stays as it is meanwhile, and so do the segments.
        let _no_cut = replica.cutting.lock().await;
        let _no_deletion = replica.deleting.lock().await;
        let _log = self.log_kept.read().await;
        let Some(uncut) = replica.state.read().carriable() else {
            return Ok(0);
        };
        let wanted = self.store.segments.lock().only_below(&replica.key, &uncut, below);
        self.log_again(replica, &wanted).await?;
        let is_there = {
            let index = self.store.segments.lock();
            index.logged_from(&replica.key, below).includes(&uncut)
        };
        if !is_there {
            let message = "some of its batches could not be read from the log".to_owned();
            return Err(ServiceError::new(ServiceErrorCode::Corruption, message));
        }
        let mut state = replica.state.write();
        state.head.log_begins_at(Lsn::new(below, 0).0);
        Ok(wanted.len())
    }

    async fn log_again(self: &Arc<Self>, replica: &Replica, wanted: &BatchSet) -> Result<(), ServiceError> {
        if wanted.is_empty() {
            return Ok(());
        }
        let mut batches = Groups::new(self.fetch_batches(FetchBatchesRequest {
            partition: replica.key.0,
            tenant: replica.key.1.clone(),
            wanted: wanted.clone(),
        })?);
        loop {
            // What is left is logged when there is room for it; what was logged again need not be, the next time.
            self.check_memory().map_err(|e| self.refuse(&e.into()))?;
            let group = batches.next_group(self).await?;
            if group.is_empty() {
                return Ok(());
            }
            let count = group.len() as u64;
            let appends = group
                .into_iter()
                .map(|batch| self.log_when_there_is_room(batch, Origin::Log));
            try_join_all(appends).await.map_err(|e| self.refuse(&e))?;
            self.store.metrics.batches_carried.inc_by(count);
        }
    }
}

impl ReplicaState {
    fn all_uncut(&self) -> BatchSet {
        let mut all = BatchSet::default();
        self.uncut()
            .iter()
            .for_each(|(_, batches)| all.union_with(batches));
        all
    }

    /// The batches that no listed cut has, or of which deletions took what no block has; `None` where there may be samples of others, or
    /// the log cannot give them.
    fn carriable(&self) -> Option<BatchSet> {
        let mut all = self.all_uncut();
        all.union_with(&self.deletions.late);
        let is_readable = all.difference(&self.unreadable).includes(&all);
        (is_readable && self.unaccounted().is_empty()).then_some(all)
    }
}

impl SegmentIndex {
    /// Bytes that segments below `number` have of a (partition, tenant), of those in which some of the batches are.
    fn bytes_kept(&self, key: &(PartitionId, TenantId), batches: &BatchSet, number: u32) -> Option<u64> {
        let in_segments = self.having(key, batches).into_iter().filter(|(n, _)| *n < number);
        let bytes = in_segments.map(|(n, _)| self.bytes_of_share(n, key));
        Some(bytes.sum())
    }

    /// Those of the batches that are logged in segments below `number` alone.
    fn only_below(&self, key: &(PartitionId, TenantId), batches: &BatchSet, number: u32) -> BatchSet {
        batches.difference(&self.logged_from(key, number))
    }
}
