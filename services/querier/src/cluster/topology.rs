//! Who holds a tenant's recent samples, and who reads blocks.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use koios_model::{PartitionId, TenantId};
use koios_wire::{IngesterService, StoreService};

/// One member of a partition. `client` is `None` when its address is not known yet: it then counts as unreachable.
#[derive(Clone, Debug)]
pub struct Replica {
    /// The member's name, for errors.
    pub name: String,
    /// Whether it can serve everything it ever acknowledged.
    pub counts: bool,
    /// How to reach it.
    pub client: Option<Arc<dyn IngesterService>>,
}

/// A partition to read.
#[derive(Clone, Debug)]
pub struct PartitionTarget {
    /// The partition.
    pub partition: PartitionId,
    /// Its epoch in the state the plan was made from.
    pub epoch: u64,
    /// How many counting members must answer completely.
    pub quorum: usize,
    /// Its members.
    pub replicas: Vec<Replica>,
}

/// Every partition that may hold samples of a tenant, as of one control state.
#[derive(Clone, Debug, Default)]
pub struct ReadPlan {
    /// The version of that state.
    pub state_version: u64,
    /// Ascending by partition.
    pub partitions: Vec<PartitionTarget>,
    /// Members may have started empty after samples were listed in blocks, without knowing it: a loss was accepted.
    pub history_unknown: bool,
}

/// A store member.
#[derive(Clone, Debug)]
pub struct StoreMember {
    /// Its name, which decides which blocks it serves.
    pub name: String,
    /// How to reach it.
    pub client: Arc<dyn StoreService>,
}

/// What the fan-out needs to know of the cluster.
#[async_trait]
pub trait Topology: Send + Sync + Debug + 'static {
    /// Where to read a tenant's recent samples.
    fn plan(&self, tenant: &TenantId) -> ReadPlan;

    /// The store members.
    fn stores(&self) -> Vec<StoreMember>;

    /// Waits, for a bounded time, until the control state is at least `version`; returns whatever is had then.
    async fn catch_up(&self, version: u64);
}
