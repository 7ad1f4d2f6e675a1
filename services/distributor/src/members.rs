//! How a distributor reaches ingesters.

use std::fmt::Debug;
use std::sync::Arc;

use koios_wire::IngesterService;

/// Gives the service of a member: the ingester itself in one process, a pooled client across processes.
pub trait Members: Send + Sync + Debug + 'static {
    /// The ingester called `name`, whose gRPC listener is at `addr`. Called for every batch, so it must be cheap; calls
    /// to what it returns are bounded by the caller's deadline.
    fn ingester(&self, name: &str, addr: &str) -> Arc<dyn IngesterService>;
}
