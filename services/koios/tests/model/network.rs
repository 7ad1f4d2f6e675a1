//! Who reaches whom: processes that run, by reference.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use koios_bucket::Tombstone;
use koios_control::{ClusterState, Command, Member, StateHandle};
use koios_ingester::{ControlProposer, Ingester, Peers};
use koios_model::{Metadata, TenantId};
use koios_querier::Members;
use koios_store::{BlockStore, CompactionDuty, DeletionWitness};
use koios_wire::{
    Batch, BatchSetsReply, BatchSetsRequest, BatchStream, DeletionsReply, DeletionsRequest, ExemplarsRequest,
    FetchBatchesRequest, FlushReply, FlushRequest, IngesterService, LabelsReply, LabelsRequest,
    MetadataRequest, PushAck, ReadRequest, ReadStream, SeriesExemplars, ServiceError, StoreService,
};
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
            None => Arc::new(Down),
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

/// A deletion is forgotten when all members say that they have applied it and that their logs have nothing of it.
#[async_trait]
impl DeletionWitness for Network {
    async fn is_forgotten(&self, tenant: &TenantId, deletion: &Tombstone) -> bool {
        let state = self.state.current();
        for partition in deletion.covers.keys() {
            let Some(p) = state.partition(*partition) else {
                return false;
            };
            for replica in &p.replicas {
                let request = DeletionsRequest {
                    tenant: tenant.clone(),
                    partition: p.id,
                    epoch: p.epoch,
                    version: deletion.known_from(),
                    with_held: false,
                };
                let client = self.directory.client(&replica.member);
                let Ok(reply) = client.deletions(request).await else {
                    return false;
                };
                let is_logged = reply.logged_from != 0 && reply.logged_from <= deletion.version;
                if reply.version < deletion.known_from() || is_logged {
                    return false;
                }
            }
        }
        true
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

/// A member that does not run.
#[derive(Debug)]
struct Down;

fn down<T>() -> Result<T, ServiceError> {
    Err(ServiceError::unavailable("the member is down"))
}

#[async_trait]
impl IngesterService for Down {
    async fn push(&self, _: Arc<Batch>) -> Result<PushAck, ServiceError> {
        down()
    }
    async fn read(&self, _: ReadRequest) -> Result<ReadStream, ServiceError> {
        down()
    }
    async fn label_names(&self, _: LabelsRequest) -> Result<LabelsReply, ServiceError> {
        down()
    }
    async fn label_values(&self, _: LabelsRequest) -> Result<LabelsReply, ServiceError> {
        down()
    }
    async fn metadata(&self, _: MetadataRequest) -> Result<Vec<(String, Metadata)>, ServiceError> {
        down()
    }
    async fn exemplars(&self, _: ExemplarsRequest) -> Result<Vec<SeriesExemplars>, ServiceError> {
        down()
    }
    async fn batch_sets(&self, _: BatchSetsRequest) -> Result<BatchSetsReply, ServiceError> {
        down()
    }
    async fn fetch_batches(&self, _: FetchBatchesRequest) -> Result<BatchStream, ServiceError> {
        down()
    }
    async fn flush(&self, _: FlushRequest) -> Result<FlushReply, ServiceError> {
        down()
    }
    async fn deletions(&self, _: DeletionsRequest) -> Result<DeletionsReply, ServiceError> {
        down()
    }
}
