//! The state and the ring built from it, swapped together.

use std::sync::Arc;

use koios_control::{ClusterState, Ring, StateHandle};
use parking_lot::RwLock;

/// A state with its ring.
#[derive(Debug)]
pub(crate) struct RouteTable {
    pub(crate) state: Arc<ClusterState>,
    pub(crate) ring: Arc<Ring>,
}

impl RouteTable {
    fn new(state: Arc<ClusterState>) -> Self {
        let ring = Arc::new(Ring::from_state(&state));
        Self { state, ring }
    }

    /// The table of a newer state. Most states differ in something else than their partitions.
    fn after(&self, state: Arc<ClusterState>) -> Self {
        match state.partitions.keys().eq(self.state.partitions.keys()) {
            true => Self {
                state,
                ring: Arc::clone(&self.ring),
            },
            false => Self::new(state),
        }
    }
}

/// The newest route table.
#[derive(Debug)]
pub(crate) struct Routes {
    handle: StateHandle,
    table: RwLock<Arc<RouteTable>>,
}

impl Routes {
    pub(crate) fn new(handle: StateHandle) -> Self {
        let table = RwLock::new(Arc::new(RouteTable::new(handle.current())));
        Self { handle, table }
    }

    pub(crate) fn handle(&self) -> &StateHandle {
        &self.handle
    }

    pub(crate) fn current(&self) -> Arc<RouteTable> {
        let state = self.handle.current();
        let known = Arc::clone(&self.table.read());
        if known.state.version == state.version {
            return known;
        }
        let newer = Arc::new(known.after(state));
        let mut table = self.table.write();
        if table.state.version < newer.state.version {
            *table = newer;
        }
        Arc::clone(&table)
    }
}
