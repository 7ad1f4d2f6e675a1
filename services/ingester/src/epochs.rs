//! Partition epochs: adopted durably, then older writes are refused (I14).

use std::sync::Arc;

use koios_control::Partition;
use koios_model::PartitionId;
use koios_wire::{ServiceError, ServiceErrorCode};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::ingester::{Inner, Phase};
use crate::record::{Adopted, Entry};

/// The adopted epoch of a partition, 0 before the first. Pushes hold it for reading until they are applied or refused, also
/// those whose sender has gone: the guard goes with the record. An adoption waits for them, so that after it nothing of a
/// lower epoch is held that was not held before, and nothing more of it is acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    adopted: Arc<RwLock<u64>>,
}

/// Holds an epoch in place.
pub(crate) type EpochGuard = OwnedRwLockReadGuard<u64>;

/// An adoption in one call is enough unless the epoch moves at the same time.
const ATTEMPTS: usize = 4;

impl Inner {
    fn gate(&self, partition: PartitionId) -> Arc<Gate> {
        let mut gates = self.gates.lock();
        let gate = gates.entry(partition).or_insert_with(|| {
            let adopted = self.store.ledger.lock().adopted.get(&partition).copied();
            Arc::new(Gate {
                adopted: Arc::new(RwLock::new(adopted.unwrap_or(0))),
            })
        });
        Arc::clone(gate)
    }

    /// Waits for the pushes under way and keeps others out while the guard lives.
    pub(crate) async fn hold_pushes(&self, partition: PartitionId) -> OwnedRwLockWriteGuard<u64> {
        let gate = self.gate(partition);
        Arc::clone(&gate.adopted).write_owned().await
    }

    /// As a push does, waits while pushes are held, and keeps others from holding them while the guard lives.
    pub(crate) async fn push_along(&self, partition: PartitionId) -> EpochGuard {
        let gate = self.gate(partition);
        Arc::clone(&gate.adopted).read_owned().await
    }

    /// Checks a request's epoch against the adopted one, adopting a newer one first if it is known or arrives shortly.
    /// The epoch stays while the guard lives.
    pub(crate) async fn enter(&self, partition: PartitionId, epoch: u64) -> Result<EpochGuard, ServiceError> {
        self.check_hosted(partition)?;
        let gate = self.gate(partition);
        for _ in 0..ATTEMPTS {
            let guard = Arc::clone(&gate.adopted).read_owned().await;
            let adopted = *guard;
            if adopted != 0 && epoch == adopted {
                return Ok(guard);
            }
            if epoch < adopted || epoch == 0 {
                let message = format!(
                    "FENCED epoch {epoch}<{adopted} of partition {partition} at member {}: fetch the control state",
                    self.deps.member
                );
                return Err(self.refusal(ServiceErrorCode::Stale, message));
            }
            drop(guard);
            self.adopt_at_least(partition, epoch).await?;
        }
        let message = format!("epoch of partition {partition} keeps changing; retry");
        Err(self.refusal(ServiceErrorCode::Behind, message))
    }

    fn check_hosted(&self, partition: PartitionId) -> Result<(), ServiceError> {
        let state = self.deps.state.current();
        let Some(p) = state.partition(partition) else {
            let message = format!(
                "partition {partition} is unknown to member {} at control state {}",
                self.deps.member, state.version
            );
            return Err(self.refusal(ServiceErrorCode::Behind, message));
        };
        if self.is_mine(p) {
            return Ok(());
        }
        let message = format!(
            "member {} with this data directory holds no replica of partition {partition} at control state {}",
            self.deps.member, state.version
        );
        Err(self.refusal(ServiceErrorCode::Stale, message))
    }

    pub(crate) fn is_mine(&self, p: &Partition) -> bool {
        p.replica(&self.deps.member)
            .is_some_and(|r| r.incarnation == self.deps.incarnation())
    }

    /// Waits for the control state to name the epoch, then adopts what it names.
    async fn adopt_at_least(&self, partition: PartitionId, epoch: u64) -> Result<(), ServiceError> {
        let clock = Arc::clone(&self.deps.runtime.clock);
        let known = |p: Option<&Partition>| p.is_some_and(|p| p.epoch >= epoch);
        let state = self
            .deps
            .state
            .wait_for(clock.as_ref(), self.settings.adopt_deadline, |s| {
                known(s.partition(partition))
            })
            .await
            .map_err(|have| {
                let message = format!(
                    "member {} knows control state {}, which has no epoch {epoch} of partition {partition} yet; retry",
                    self.deps.member, have.version
                );
                self.refusal(ServiceErrorCode::Behind, message)
            })?;
        match state.partition(partition) {
            Some(p) => self.adopt(p).await,
            None => Ok(()),
        }
    }

    /// Adopts a partition's epoch: logged and synced before any write under it is taken.
    async fn adopt(&self, p: &Partition) -> Result<(), ServiceError> {
        if !self.is_mine(p) {
            return self.check_hosted(p.id);
        }
        let gate = self.gate(p.id);
        let mut adopted = gate.adopted.write().await;
        if *adopted >= p.epoch {
            return Ok(());
        }
        // An operator's acceptance is told by its epoch being newer than the adopted one, so it is settled first: adopted
        // without it, it would count for nothing.
        let settled = self.accept_losses(&self.deps.state.current(), p).await;
        settled.map_err(|e| self.refuse(&e))?;
        let entry = Entry::Adopted(Adopted {
            partition: p.id,
            epoch: p.epoch,
        });
        self.log(entry).await.map_err(|e| self.refuse(&e))?;
        tracing::info!(partition = %p.id, from = *adopted, to = p.epoch, "adopted partition epoch");
        *adopted = p.epoch;
        Ok(())
    }

    /// Adopts every epoch that the control state brings.
    pub(crate) async fn follow_state(self: Arc<Self>) {
        let mut state = self.deps.state.clone();
        let mut current = state.current();
        loop {
            for p in current.partitions_of(&self.deps.member) {
                if let Err(error) = self.adopt(p).await
                    && self.phase() == Phase::Running
                {
                    tracing::warn!(partition = %p.id, %error, "partition epoch not adopted yet");
                }
            }
            self.wake_repair.notify_one();
            current = state.changed().await;
        }
    }
}
