//! The real read path as a storage for scripts: an ingester, stores and a querier's cluster over a bucket in memory.

mod layout;
#[cfg(test)]
mod levels;
mod twin;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use koios_bucket::{Bucket, TenantManifests, Tombstone};
use koios_control::{
    ClusterId, ClusterState, Command, Incarnation, Member, Partition, Replica, Role, StateHandle,
};
use koios_ingester::{ControlProposer, Deps, Ingester, Peers, Settings};
use koios_model::{BatchColumns, Labels, PartitionId, SeriesHash, StreamId, TenantId, TenantSeed};
use koios_promql::{Queryable, SampleValue};
use koios_querier::{BucketManifests, Budget, Cluster, ClusterQueryable, ClusterTopology, Members, Patience};
use koios_runtime::{
    CancellationToken, ClockHandle, Cpu, DiskHandle, MemoryWatch, RealNet, RngHandle, Runtime, TaskGroup,
    TokioClock,
};
use koios_server::Metrics;
use koios_store::{
    Announced, BlockStore, CompactionDeps, CompactionDuty, CompactionSettings, Compactor, DeletionWitness,
    StoreSettings,
};
use koios_testkit::promqltest::{MemoryStorage, Point, Storage};
use koios_testkit::sim_disk::SimDisk;
use koios_wal::Identity;
use koios_wire::{Batch, BatchHeader, FlushRequest, IngesterService, ServiceError, StoreService};
use object_store::memory::InMemory;
use parking_lot::Mutex;

pub(crate) use layout::{ALL, BLOCKS, COMPACTED, HEAD, Layout, MIDDLE, THREE_STORES};
use layout::{Place, STEPS_MAX};
use twin::Twin;

const PARTITION: PartitionId = PartitionId(0);
const MEMBER: &str = "all";
const CLUSTER: u128 = 7;
const INCARNATION: u128 = 8;
const EPOCH: u64 = 1;
/// Later than any sample of a script, so that the head forgets whatever is cut.
const NOW_MS: i64 = 253_000_000_000_000;
const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// The one ingester, and stores each with caches of its own.
#[derive(Clone, Debug)]
struct InProcess {
    ingester: Ingester,
    stores: BTreeMap<String, BlockStore>,
}

impl Members for InProcess {
    fn ingester(&self, _: &Member) -> Option<Arc<dyn IngesterService>> {
        Some(Arc::new(self.ingester.clone()))
    }

    fn store(&self, member: &Member) -> Option<Arc<dyn StoreService>> {
        Some(Arc::new(self.stores.get(&member.name)?.clone()))
    }
}

/// The names of the members that serve blocks.
fn store_names(stores: usize) -> impl Iterator<Item = String> {
    std::iter::once(MEMBER.to_owned()).chain((1..stores).map(|i| format!("store-{i}")))
}

/// There are no others.
#[derive(Debug)]
struct Alone;

impl Peers for Alone {
    fn ingester(&self, member: &Member) -> Arc<dyn IngesterService> {
        panic!("nobody should ask for {}", member.name)
    }
}

#[async_trait]
impl ControlProposer for Alone {
    async fn propose(&self, command: Command) -> Result<(), ServiceError> {
        Err(ServiceError::unavailable(format!("not now: {command:?}")))
    }
}

/// Keeps a script's samples as a [`Layout`] says, and the same in memory; a read that differs fails its query.
///
/// Each time it is cleared it goes on with a new tenant.
pub(crate) struct Stored {
    layout: Layout,
    clock: ClockHandle,
    ingester: Ingester,
    cluster: Arc<Cluster>,
    tasks: TaskGroup,
    tenants: u64,
    batches: u64,
    manifests: TenantManifests,
    compactor: Compactor,
    compacted: Arc<Mutex<TenantId>>,
    twin: Twin<MemoryStorage, ClusterQueryable>,
}

impl Stored {
    /// Must be called inside a tokio runtime whose time is paused.
    pub(crate) async fn start(layout: Layout) -> Self {
        Self::start_with(layout, CompactionSettings::default().block_range).await
    }

    /// The same with windows of another width.
    async fn start_with(layout: Layout, window: Duration) -> Self {
        let clock: ClockHandle = Arc::new(TokioClock::starting_at(NOW_MS));
        let rng = RngHandle::from_seed(3);
        let bucket = Bucket::new(Arc::new(InMemory::new()), "", Arc::clone(&clock), rng.fork());
        let manifests = || TenantManifests::new(bucket.clone(), Duration::ZERO);
        let metrics = Metrics::new();
        let state = StateHandle::new(ClusterState::default());
        state.offer(one_partition(layout.stores));
        let tasks = TaskGroup::new(CancellationToken::new());
        let mut settings = Settings::new("/data/wal");
        settings.wal_segment_bytes = 1 << 20;
        settings.disk_reserve_bytes = 0;
        settings.head_keep = Duration::ZERO;
        settings.block_window = window;
        // Cuts happen when the layout says so.
        settings.cut_interval = YEAR;
        let runtime = Runtime {
            clock: Arc::clone(&clock),
            disk: DiskHandle::inline(Arc::new(SimDisk::new(rng.fork()))),
            rng,
            cpu: Cpu::inline(),
            net: Arc::new(RealNet),
            memory: MemoryWatch::default(),
        };
        let ingester = Ingester::start(
            settings,
            Deps {
                runtime: runtime.clone(),
                member: MEMBER.to_owned(),
                identity: Identity {
                    cluster: CLUSTER,
                    incarnation: INCARNATION,
                },
                state: state.clone(),
                manifests: manifests(),
                peers: Arc::new(Alone),
                control: Arc::new(Alone),
                limits: Default::default(),
                metrics: metrics.clone(),
                tasks: tasks.clone(),
            },
        );
        assert!(ingester.wait_running().await);
        let store = || {
            BlockStore::new(
                manifests(),
                StoreSettings::default(),
                Cpu::inline(),
                &Metrics::new(),
            )
        };
        let members = InProcess {
            ingester: ingester.clone(),
            stores: store_names(layout.stores).map(|name| (name, store())).collect(),
        };
        let topology = ClusterTopology::new(state, Arc::new(members), Arc::clone(&clock));
        let cluster = Cluster::new(
            Arc::new(topology),
            Arc::new(BucketManifests::new(manifests())),
            Arc::clone(&clock),
            Patience::default(),
        );
        let twin = twin_of(&cluster, 0);
        let compacted = Arc::new(Mutex::new(tenant(0)));
        let deps = CompactionDeps {
            runtime: runtime.clone(),
            member: MEMBER.to_owned(),
            manifests: manifests(),
            duty: Arc::new(OneTenant(Arc::clone(&compacted))),
            witness: Arc::new(NothingDeleted),
            overrides: Default::default(),
            metrics,
        };
        let settings = CompactionSettings {
            retention: Duration::ZERO,
            interval: Duration::ZERO,
            block_range: window,
            ..CompactionSettings::default()
        };
        Self {
            manifests: manifests(),
            compactor: Compactor::new(settings, deps),
            compacted,
            layout,
            clock,
            ingester,
            cluster,
            tasks,
            tenants: 0,
            batches: 0,
            twin,
        }
    }

    pub(crate) async fn stop(self) {
        self.tasks.stop().await;
    }

    /// Series of all scripts that are still in heads.
    pub(crate) fn head_series(&self) -> usize {
        let status = self.ingester.status();
        status.partitions.iter().map(|p| p.series).sum()
    }

    /// Live blocks of the current script.
    pub(crate) async fn blocks(&self) -> usize {
        let manifest = self.manifests.probe(&tenant(self.tenants)).await;
        manifest.expect("a bucket in memory").blocks.len()
    }

    async fn push(&mut self, samples: &[(&Labels, &Point)]) -> Result<(), ServiceError> {
        let tenant = tenant(self.tenants);
        let seed = TenantSeed::new(b"", &tenant);
        let mut columns = BatchColumns::default();
        let mut last = None;
        for &(labels, point) in samples {
            if last != Some(labels) {
                columns.push_series(SeriesHash::new(seed, labels.as_ref()), labels.as_ref());
                last = Some(labels);
            }
            match &point.value {
                SampleValue::Float(v) => {
                    columns.push_sample(point.t_ms, *v);
                    columns.set_last_start(point.start_ms);
                }
                SampleValue::Histogram(h) => {
                    let mut histogram = h.as_ref().clone();
                    histogram.make_canonical();
                    columns.push_started_histogram(point.t_ms, point.start_ms, histogram);
                }
            }
        }
        let header = BatchHeader {
            tenant,
            stream: StreamId(5),
            sequence: self.batches,
            settled_below: 0,
            partition: PARTITION,
            epoch: EPOCH,
            admission_ms: self.clock.now_ms(),
        };
        self.batches += 1;
        self.ingester
            .push(Arc::new(Batch::new(header, columns)))
            .await
            .map(|_| ())
    }

    async fn cut(&self) -> Result<(), ServiceError> {
        let request = FlushRequest {
            tenant: Some(tenant(self.tenants)),
            wait: true,
        };
        self.ingester.flush(request).await.map(|_| ())
    }

    /// Compacts until nothing is due.
    async fn compact(&mut self) {
        while self.visit().await {}
    }

    /// Merges a few blocks; whether there is more.
    async fn visit(&mut self) -> bool {
        *self.compacted.lock() = tenant(self.tenants);
        self.compactor.visit_all().await
    }
}

/// Nobody else compacts, and scripts that are over are of no interest.
#[derive(Debug)]
struct OneTenant(Arc<Mutex<TenantId>>);

#[async_trait]
impl CompactionDuty for OneTenant {
    async fn epoch(&self, tenant: &TenantId, _: bool) -> Option<u64> {
        (*self.0.lock() == *tenant).then_some(1)
    }
}

/// Scripts delete nothing.
#[derive(Debug)]
struct NothingDeleted;

#[async_trait]
impl DeletionWitness for NothingDeleted {
    async fn is_forgotten(&self, _: &TenantId, _: &Tombstone) -> bool {
        false
    }

    async fn announced(&self, _: &TenantId) -> Announced {
        Announced::NONE
    }
}

fn tenant(number: u64) -> TenantId {
    TenantId::new(&format!("script-{number}")).expect("a valid name")
}

fn twin_of(cluster: &Arc<Cluster>, number: u64) -> Twin<MemoryStorage, ClusterQueryable> {
    let budget = Budget::new(1 << 40, 1 << 40);
    Twin {
        model: MemoryStorage::default(),
        real: ClusterQueryable::new(Arc::clone(cluster), tenant(number), budget),
    }
}

fn one_partition(stores: usize) -> ClusterState {
    let member = |name: String| Member {
        role: if name == MEMBER { Role::All } else { Role::Store },
        name,
        zone: "z".to_owned(),
        grpc_addr: String::new(),
        http_addr: String::new(),
        incarnation: Incarnation(INCARNATION),
        version: String::new(),
    };
    let partition = Partition {
        id: PARTITION,
        epoch: EPOCH,
        replicas: vec![Replica {
            member: MEMBER.to_owned(),
            zone: "z".to_owned(),
            incarnation: Incarnation(INCARNATION),
            counts: true,
        }],
        formed_at_version: 1,
    };
    ClusterState {
        version: 1,
        cluster_id: Some(ClusterId(CLUSTER)),
        members: store_names(stores)
            .map(|name| (name.clone(), member(name)))
            .collect(),
        partitions: BTreeMap::from([(PARTITION, partition)]),
        ..ClusterState::default()
    }
}

/// How far `t` is into a range, in thousandths.
fn permille(t: i64, min: i64, max: i64) -> i64 {
    let (into, length) = (i128::from(t) - i128::from(min), i128::from(max) - i128::from(min));
    i64::try_from(into * 1000 / length.max(1)).unwrap_or(0)
}

#[async_trait]
impl Storage for Stored {
    async fn clear(&mut self) -> Result<(), String> {
        self.tenants += 1;
        self.twin = twin_of(&self.cluster, self.tenants);
        Ok(())
    }

    async fn add(&mut self, series: &BTreeMap<Labels, Vec<Point>>) -> Result<(), String> {
        let times = || series.values().flatten().map(|point| point.t_ms);
        let (Some(min), Some(max)) = (times().min(), times().max()) else {
            return Ok(());
        };
        let mut steps: [Vec<(&Labels, &Point)>; STEPS_MAX] = Default::default();
        for (i, (labels, points)) in series.iter().enumerate() {
            for (sample, point) in points.iter().enumerate() {
                let place = Place {
                    series: i,
                    sample,
                    permille: permille(point.t_ms, min, max),
                };
                for &step in (self.layout.steps_of)(place) {
                    steps[step].push((labels, point));
                }
            }
        }
        let steps: Vec<_> = steps.into_iter().filter(|step| !step.is_empty()).collect();
        let last = steps.len().saturating_sub(1);
        for (at, step) in steps.iter().enumerate() {
            self.push(step).await.map_err(|e| e.to_string())?;
            if at < last || self.layout.all_cut {
                self.cut().await.map_err(|e| e.to_string())?;
            }
        }
        if self.layout.compacted {
            self.compact().await;
        }
        self.twin.model.add(series).await
    }

    fn queryable(&self) -> &dyn Queryable {
        &self.twin
    }
}
