//! Who reaches whom: processes that run, by reference.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use koios_control::{ClusterState, Command, Member, StateHandle};
use koios_ingester::{ControlProposer, Ingester, Peers};
use koios_model::TenantId;
use koios_querier::Members;
use koios_store::{BlockStore, CompactionDuty};
use koios_testkit::down::DownIngester;
use koios_wire::{IngesterService, ServiceError, StoreService};
use parking_lot::Mutex;

/// The ingesters that run, and the store that reads.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    ingesters: Mutex<BTreeMap<String, Ingester>>,
    store: Mutex<Option<BlockStore>>,
}

impl Directory {
    pub(crate) fn up(&self, name: &str, ingester: &Ingester) {
        self.ingesters.lock().insert(name.to_owned(), ingester.clone());
    }

    pub(crate) fn down(&self, name: &str) {
        self.ingesters.lock().remove(name);
    }

    pub(crate) fn ingester_called(&self, name: &str) -> Option<Ingester> {
        self.ingesters.lock().get(name).cloned()
    }

    /// Those that run, by name.
    pub(crate) fn all(&self) -> Vec<Ingester> {
        self.ingesters.lock().values().cloned().collect()
    }

    pub(crate) fn set_store(&self, store: BlockStore) {
        *self.store.lock() = Some(store);
    }

    fn client(&self, name: &str) -> Arc<dyn IngesterService> {
        match self.ingester_called(name) {
            Some(ingester) => Arc::new(ingester),
            None => Arc::new(DownIngester),
        }
    }
}

/// A view of the directory for all who ask it.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) directory: Arc<Directory>,
    pub(crate) state: StateHandle,
}

impl Peers for Network {
    fn ingester(&self, member: &Member) -> Arc<dyn IngesterService> {
        self.directory.client(&member.name)
    }
}

impl Members for Network {
    fn ingester(&self, member: &Member) -> Option<Arc<dyn IngesterService>> {
        Some(self.directory.client(&member.name))
    }

    fn store(&self, _: &Member) -> Option<Arc<dyn StoreService>> {
        let store = self.directory.store.lock().clone()?;
        Some(Arc::new(store))
    }
}

/// The same with a store of one's own.
#[derive(Debug)]
pub(crate) struct WithStore {
    pub(crate) network: Network,
    pub(crate) store: BlockStore,
}

impl Members for WithStore {
    fn ingester(&self, member: &Member) -> Option<Arc<dyn IngesterService>> {
        Members::ingester(&self.network, member)
    }

    fn store(&self, _: &Member) -> Option<Arc<dyn StoreService>> {
        Some(Arc::new(self.store.clone()))
    }
}

/// The control plane: applies what members propose of themselves.
#[async_trait]
impl ControlProposer for Network {
    async fn propose(&self, command: Command) -> Result<(), ServiceError> {
        let Command::SetCounting {
            partition, member, ..
        } = command
        else {
            return Err(ServiceError::unavailable(format!("not now: {command:?}")));
        };
        let mut state = ClusterState::clone(&self.state.current());
        let replicas = state.partitions.get_mut(&partition).map(|p| &mut p.replicas);
        for replica in replicas.into_iter().flatten().filter(|r| r.member == member) {
            replica.counts = true;
        }
        state.version += 1;
        self.state.offer(state);
        Ok(())
    }
}

/// On duty under one epoch.
#[derive(Debug)]
pub(crate) struct OnDuty(pub(crate) u64);

#[async_trait]
impl CompactionDuty for OnDuty {
    async fn epoch(&self, _: &TenantId, _: bool) -> Option<u64> {
        Some(self.0)
    }
}
