//! Clients of other members by address, with this process' own services by reference.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use koios_runtime::{ClockHandle, NetHandle};
use koios_wire::grpc::{IngesterClient, PeerChannel, RpcSettings, StoreClient};
use koios_wire::{IngesterService, StoreService};
use parking_lot::Mutex;

/// Most addresses whose connections are kept.
const CLIENTS_MAX: usize = 1024;

/// Finds the service of a member: itself when it lives in this process, else a client. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Members {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    net: NetHandle,
    clock: ClockHandle,
    settings: RpcSettings,
    /// This process' name and services.
    node: String,
    local_ingester: Mutex<Option<Arc<dyn IngesterService>>>,
    local_store: Mutex<Option<Arc<dyn StoreService>>>,
    ingesters: Mutex<BTreeMap<String, Arc<dyn IngesterService>>>,
    stores: Mutex<BTreeMap<String, Arc<dyn StoreService>>>,
}

impl Members {
    pub(crate) fn new(node: &str, net: NetHandle, clock: ClockHandle, settings: RpcSettings) -> Self {
        Self {
            shared: Arc::new(Shared {
                net,
                clock,
                settings,
                node: node.to_owned(),
                local_ingester: Mutex::default(),
                local_store: Mutex::default(),
                ingesters: Mutex::default(),
                stores: Mutex::default(),
            }),
        }
    }

    /// Longest wait for a store's answer.
    pub(crate) fn blocks_wait(&self) -> Duration {
        self.shared.settings.for_blocks().deadline
    }

    /// Makes this process' ingester reachable by reference.
    pub(crate) fn set_ingester(&self, service: Arc<dyn IngesterService>) {
        *self.shared.local_ingester.lock() = Some(service);
    }

    /// Makes this process' store reachable by reference.
    pub(crate) fn set_store(&self, service: Arc<dyn StoreService>) {
        *self.shared.local_store.lock() = Some(service);
    }

    /// The ingester of `member` at `addr`.
    pub(crate) fn ingester_of(&self, member: &str, addr: &str) -> Arc<dyn IngesterService> {
        if member == self.shared.node
            && let Some(local) = self.shared.local_ingester.lock().as_ref()
        {
            return Arc::clone(local);
        }
        cached(&self.shared.ingesters, addr, || {
            Arc::new(IngesterClient::new(self.channel(addr, self.shared.settings)))
        })
    }

    /// The store of `member` at `addr`.
    pub(crate) fn store_of(&self, member: &str, addr: &str) -> Arc<dyn StoreService> {
        if member == self.shared.node
            && let Some(local) = self.shared.local_store.lock().as_ref()
        {
            return Arc::clone(local);
        }
        cached(&self.shared.stores, addr, || {
            Arc::new(StoreClient::new(
                self.channel(addr, self.shared.settings.for_blocks()),
            ))
        })
    }

    fn channel(&self, addr: &str, settings: RpcSettings) -> PeerChannel {
        let shared = &self.shared;
        PeerChannel::new(Arc::clone(&shared.net), Arc::clone(&shared.clock), addr, settings)
    }
}

fn cached<T: ?Sized>(
    clients: &Mutex<BTreeMap<String, Arc<T>>>,
    addr: &str,
    dial: impl FnOnce() -> Arc<T>,
) -> Arc<T> {
    let mut clients = clients.lock();
    if let Some(client) = clients.get(addr) {
        return Arc::clone(client);
    }
    if clients.len() >= CLIENTS_MAX {
        clients.pop_first();
    }
    let client = dial();
    clients.insert(addr.to_owned(), Arc::clone(&client));
    client
}
