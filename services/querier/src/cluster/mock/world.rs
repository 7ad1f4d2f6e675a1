//! A cluster of mocks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use koios_model::{BatchSet, PartitionId, TenantId, TimeRange};
use koios_runtime::{Clock as _, ClockHandle, RealClock, TokioClock};
use koios_server::Metrics;
use koios_wire::{ServiceError, ServiceErrorCode};
use parking_lot::Mutex;

use super::super::{
    Cluster, ListedBlock, ManifestView, Manifests, PartitionTarget, Patience, ReadPlan, Replica, StoreMember,
    StoreReads, Topology,
};
use super::{Blocks, Data, MockIngester, MockStore, batch};

#[derive(Debug, Default)]
pub(crate) struct MockManifests {
    pub(crate) view: Mutex<ManifestView>,
    pub(crate) down: Mutex<bool>,
    pub(crate) damaged: Mutex<bool>,
    pub(crate) calls: AtomicU64,
    /// How late the next look-ups are answered, in order.
    pub(crate) late: Mutex<VecDeque<Duration>>,
}

#[async_trait]
impl Manifests for MockManifests {
    async fn latest(
        &self,
        _: &TenantId,
        _: Option<&Arc<ManifestView>>,
    ) -> Result<Arc<ManifestView>, ServiceError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let late = self.late.lock().pop_front();
        if let Some(late) = late {
            TokioClock::starting_at(0).sleep(late).await;
        }
        if *self.down.lock() {
            return Err(ServiceError::unavailable("bucket down"));
        }
        if *self.damaged.lock() {
            let text = "object manifest/2.json is corrupt";
            return Err(ServiceError::new(ServiceErrorCode::Corruption, text));
        }
        Ok(Arc::new(self.view.lock().clone()))
    }
}

#[derive(Debug, Default)]
pub(crate) struct MockTopology {
    pub(crate) plan: Mutex<ReadPlan>,
    /// What `catch_up` brings.
    pub(crate) newer: Mutex<Option<ReadPlan>>,
    pub(crate) stores: Mutex<Vec<StoreMember>>,
}

#[async_trait]
impl Topology for MockTopology {
    fn plan(&self, _: &TenantId) -> ReadPlan {
        self.plan.lock().clone()
    }

    fn stores(&self) -> Vec<StoreMember> {
        self.stores.lock().clone()
    }

    async fn catch_up(&self, _: u64) {
        if let Some(newer) = self.newer.lock().take() {
            *self.plan.lock() = newer;
        }
    }
}

/// One partition of three members, and stores over one bucket.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) members: Vec<Arc<MockIngester>>,
    pub(crate) stores: Vec<Arc<MockStore>>,
    pub(crate) blocks: Blocks,
    pub(crate) manifests: Arc<MockManifests>,
    pub(crate) topology: Arc<MockTopology>,
    pub(crate) cluster: Arc<Cluster>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with_stores(2, StoreReads::default(), Arc::new(RealClock::new()))
    }

    /// For where time is paused.
    pub(crate) fn paused(stores: usize) -> Self {
        Self::with_stores(
            stores,
            StoreReads::default(),
            Arc::new(TokioClock::starting_at(0)),
        )
    }

    pub(crate) fn with_stores(count: usize, reads: StoreReads, clock: ClockHandle) -> Self {
        let members: Vec<_> = (0..3).map(|_| Arc::new(MockIngester::default())).collect();
        let blocks = Blocks::default();
        let stores: Vec<_> = (0..count).map(|_| MockStore::over(&blocks)).collect();
        let member = |(i, s): (usize, &Arc<MockStore>)| StoreMember {
            name: format!("store-{i}"),
            client: Arc::<MockStore>::clone(s),
        };
        let topology = Arc::new(MockTopology {
            plan: Mutex::new(plan(&members, 0)),
            newer: Mutex::default(),
            stores: Mutex::new(stores.iter().enumerate().map(member).collect()),
        });
        let manifests = Arc::new(MockManifests::default());
        let patience = Patience {
            member: Duration::from_millis(300),
            hedge: Duration::from_millis(10),
            retry: Duration::from_millis(1),
            retries: 3,
            ..Patience::default()
        };
        let cluster = Cluster::with_stores(
            Arc::<MockTopology>::clone(&topology),
            Arc::<MockManifests>::clone(&manifests),
            clock,
            patience,
            reads,
            &Metrics::new(),
        );
        Self {
            members,
            stores,
            blocks,
            manifests,
            topology,
            cluster,
        }
    }

    /// Every member holds the same.
    pub(crate) fn hold(&self, data: &Data) {
        for m in &self.members {
            m.hold(data.clone());
        }
    }

    /// Lists a block under the next manifest version, of batches that no member of now held.
    pub(crate) fn upload_foreign(&self, id: &str, data: Data) {
        self.list(id, data, batch(1));
    }

    /// Lists a block under the next manifest version.
    pub(crate) fn upload(&self, id: &str, data: Data) {
        self.list(id, data, batch(0));
    }

    fn list(&self, id: &str, data: Data, covers: BatchSet) {
        let times = || data.values().flat_map(|s| s.keys().copied());
        let range = TimeRange::new(times().min().unwrap(), times().max().unwrap());
        self.blocks.lock().insert(id.to_owned(), data);
        let mut view = self.manifests.view.lock();
        view.version += 1;
        view.blocks.push(ListedBlock {
            id: id.to_owned(),
            range,
            window: range,
            partitions: vec![PartitionId(0)],
            covers: BTreeMap::from([(PartitionId(0), covers)]),
            summarised: None,
        });
    }
}

pub(crate) fn plan(members: &[Arc<MockIngester>], epoch: u64) -> ReadPlan {
    let replica = |(i, m): (usize, &Arc<MockIngester>)| Replica {
        name: format!("ingester-{i}"),
        counts: true,
        client: Some(Arc::<MockIngester>::clone(m)),
    };
    ReadPlan {
        history_unknown: false,
        state_version: epoch,
        partitions: vec![PartitionTarget {
            partition: PartitionId(0),
            epoch,
            quorum: members.len() / 2 + 1,
            replicas: members.iter().enumerate().map(replica).collect(),
        }],
    }
}
