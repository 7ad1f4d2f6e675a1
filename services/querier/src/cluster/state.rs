//! The cluster as the control state describes it.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use koios_control::{Member, Role, StateHandle};
use koios_model::TenantId;
use koios_runtime::ClockHandle;
use koios_wire::{IngesterService, StoreService};

use super::topology::{PartitionTarget, ReadPlan, Replica, StoreMember, Topology};

/// Longest wait for a newer control state that some member already has.
const CATCH_UP: Duration = Duration::from_secs(1);

/// Clients of registered members: local services in one process, remote ones in a cluster.
pub trait Members: Send + Sync + Debug + 'static {
    /// How to reach an ingester; `None` while its address cannot be used.
    fn ingester(&self, member: &Member) -> Option<Arc<dyn IngesterService>>;

    /// How to reach a store.
    fn store(&self, member: &Member) -> Option<Arc<dyn StoreService>>;
}

/// A [`Topology`] that follows the control state.
#[derive(Debug)]
pub struct ClusterTopology {
    state: StateHandle,
    members: Arc<dyn Members>,
    clock: ClockHandle,
}

impl ClusterTopology {
    /// Follows `state`; members are reached through `members`.
    pub fn new(state: StateHandle, members: Arc<dyn Members>, clock: ClockHandle) -> Self {
        Self {
            state,
            members,
            clock,
        }
    }
}

#[async_trait]
impl Topology for ClusterTopology {
    /// All partitions: any of them may hold samples of any tenant, from when its shard was another one.
    fn plan(&self, _tenant: &TenantId) -> ReadPlan {
        let state = self.state.current();
        let replica = |r: &koios_control::Replica| Replica {
            name: r.member.clone(),
            counts: r.counts,
            client: state
                .members
                .get(&r.member)
                .and_then(|m| self.members.ingester(m)),
        };
        let target = |p: &koios_control::Partition| PartitionTarget {
            partition: p.id,
            epoch: p.epoch,
            quorum: p.read_quorum(),
            replicas: p.replicas.iter().map(replica).collect(),
        };
        ReadPlan {
            state_version: state.version,
            partitions: state.partitions.values().map(target).collect(),
            history_unknown: !state.accepted_losses.is_empty(),
        }
    }

    fn stores(&self) -> Vec<StoreMember> {
        let state = self.state.current();
        let member = |m: &Member| {
            Some(StoreMember {
                name: m.name.clone(),
                client: self.members.store(m)?,
            })
        };
        state
            .members_with(Role::serves_blocks)
            .filter_map(member)
            .collect()
    }

    async fn catch_up(&self, version: u64) {
        if let Err(error) = self.state.at_least(version, &*self.clock, CATCH_UP).await {
            tracing::debug!(%error, "control state not caught up");
        }
    }
}
