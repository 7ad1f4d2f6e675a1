//! What an ingester is given.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use koios_bucket::TenantManifests;
use koios_control::{Command, Incarnation, Member, StateHandle};
use koios_runtime::{Runtime, TaskGroup};
use koios_server::Metrics;
use koios_tenancy::Overrides;
use koios_wal::Identity;
use koios_wire::{IngesterService, ServiceError};

/// Reaches the other members.
pub trait Peers: Send + Sync + Debug + 'static {
    /// The ingester service of a member. Calls through it have deadlines.
    fn ingester(&self, member: &Member) -> Arc<dyn IngesterService>;
}

/// Changes the control state.
#[async_trait]
pub trait ControlProposer: Send + Sync + Debug + 'static {
    /// Proposes a command and waits until it took effect or was refused.
    ///
    /// # Errors
    /// In words for the log; the caller tries again in its own time.
    async fn propose(&self, command: Command) -> Result<(), ServiceError>;
}

/// Everything an ingester needs from outside.
#[derive(Clone, Debug)]
pub struct Deps {
    /// Clock, disk, CPU and randomness.
    pub runtime: Runtime,
    /// This member's name in the control state.
    pub member: String,
    /// The data directory's incarnation and cluster; the log belongs to it.
    pub identity: Identity,
    /// The control state as this process knows it.
    pub state: StateHandle,
    /// Manifests and blocks.
    pub manifests: TenantManifests,
    /// The other members.
    pub peers: Arc<dyn Peers>,
    /// The control plane.
    pub control: Arc<dyn ControlProposer>,
    /// What tenants may hold.
    pub limits: Overrides,
    /// Where metrics go.
    pub metrics: Metrics,
    /// The ingester's tasks run here; a fatal error cancels the group, upon which the process must end.
    pub tasks: TaskGroup,
}

impl Deps {
    pub(crate) fn incarnation(&self) -> Incarnation {
        Incarnation(self.identity.incarnation)
    }
}
