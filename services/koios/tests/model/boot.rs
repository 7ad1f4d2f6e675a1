//! Starts processes, on what those before left.

use std::sync::Arc;
use std::time::Duration;

use koios::AskedMembers;
use koios_ingester::{Deps, Ingester, Settings};
use koios_querier::{BucketManifests, Cluster, ClusterTopology, DeletionsApi, Members, Patience};
use koios_runtime::{CancellationToken, Cpu, DiskHandle, MemoryWatch, RealDisk, RealNet, Runtime, TaskGroup};
use koios_server::Metrics;
use koios_store::{BlockStore, CompactionDeps, CompactionSettings, Compactor, Downsampling, StoreSettings};
use koios_tenancy::{Limits, Overrides, RetentionLimits};
use koios_testkit::sim_bucket::BucketHandle;
use koios_wal::Identity;

use crate::network::{OnDuty, WithStore};
use crate::world::{Actor, CLUSTER, IngesterProcess, QuerierProcess, World, name_of};

const YEAR: Duration = Duration::from_secs(365 * 86_400);
const HOUR: Duration = Duration::from_secs(3600);

impl World {
    /// Starts a process, ending the one before where it stands.
    pub(crate) async fn start(&self, actor: Actor) {
        let _alone = self.starting.lock().await;
        self.end_alone(actor).await;
        let handle = self.bucket.handle(&format!("{actor:?}"));
        handle.set_faults(*self.faults.lock());
        let before = self.handles.lock().insert(actor, handle.clone());
        self.past.lock().extend(before);
        match actor {
            Actor::Ingester(i) => self.start_ingester(i, &handle).await,
            Actor::Store(i) => *self.stores[i].lock().await = Some(self.compactor(i, &handle)),
            Actor::Querier => *self.querier.lock() = Some(self.querier(&handle)),
            Actor::Reader | Actor::Operator => {}
        }
    }

    /// Ends a process: with the machine's power, or alone.
    pub(crate) async fn end(&self, actor: Actor) {
        let _alone = self.starting.lock().await;
        self.end_alone(actor).await;
    }

    async fn end_alone(&self, actor: Actor) {
        if let Some(handle) = self.handles.lock().get(&actor) {
            handle.die();
        }
        if let Actor::Ingester(i) = actor {
            let process = self.ingesters.lock()[i].take();
            if let Some(process) = process {
                self.network.directory.down(&name_of(i));
                match self.rng.below(2) {
                    0 => self.disks[i].kill(),
                    _ => self.disks[i].crash(),
                }
                process.tasks.stop().await;
            }
        }
    }

    fn runtime(&self, disk: DiskHandle) -> Runtime {
        Runtime {
            clock: Arc::clone(&self.clock),
            rng: self.rng.fork(),
            disk,
            cpu: Cpu::inline(),
            net: Arc::new(RealNet),
            memory: MemoryWatch::default(),
        }
    }

    async fn start_ingester(&self, i: usize, handle: &BucketHandle) {
        let tasks = TaskGroup::new(CancellationToken::new());
        let settings = Settings {
            disk_reserve_bytes: 0,
            head_keep: self.setup.head_keep,
            wal_segment_bytes: self.setup.segment_bytes,
            // Cuts happen when a step says so.
            cut_interval: YEAR,
            repair_interval: if self.setup.members == 1 {
                YEAR
            } else {
                300 * Duration::from_secs(1)
            },
            ..Settings::new("/data/wal")
        };
        let deps = Deps {
            runtime: self.runtime(DiskHandle::inline(Arc::new(self.disks[i].mount()))),
            member: name_of(i),
            identity: Identity {
                cluster: CLUSTER,
                incarnation: 1000 + i as u128,
            },
            state: self.network.state.clone(),
            manifests: self.client(handle),
            peers: Arc::new(self.network.clone()),
            control: Arc::new(self.network.clone()),
            limits: Default::default(),
            metrics: Metrics::new(),
            tasks: tasks.clone(),
        };
        let ingester = Ingester::start(settings, deps);
        self.network.directory.up(&name_of(i), &ingester);
        assert!(
            ingester.wait_running().await,
            "the ingester does not start: {:?}",
            tasks.failure()
        );
        self.ingesters.lock()[i] = Some(IngesterProcess { ingester, tasks });
    }

    fn compactor(&self, i: usize, handle: &BucketHandle) -> Compactor {
        let (of_stores, of_tenant) = match self.setup.is_own_retention {
            true => (Duration::ZERO, Some(self.setup.retention)),
            false => (self.setup.retention, None),
        };
        let mut settings = CompactionSettings {
            retention: of_stores,
            interval: Duration::ZERO,
            downsampling: Vec::new(),
            ..CompactionSettings::default()
        };
        if self.setup.downsampling {
            settings.downsampling = vec![Downsampling::by_1h(HOUR, Duration::ZERO)];
        }
        let deps = CompactionDeps {
            runtime: self.runtime(DiskHandle::inline(Arc::new(RealDisk))),
            member: format!("store-{i}"),
            manifests: self.client(handle),
            // The second takes over from the first.
            duty: Arc::new(OnDuty(1 + i as u64)),
            witness: Arc::new(AskedMembers::new(
                self.network.state.clone(),
                Arc::new(self.network.clone()),
                Arc::clone(&self.clock),
            )),
            overrides: self.overrides(of_tenant),
            metrics: Metrics::new(),
        };
        Compactor::new(settings, deps)
    }

    /// What the tenant says of its own.
    fn overrides(&self, retention: Option<Duration>) -> Overrides {
        let overrides = Overrides::default();
        if retention.is_some() {
            let limits = Limits {
                retention: RetentionLimits {
                    samples: retention,
                    ..RetentionLimits::default()
                },
                ..Limits::default()
            };
            overrides.replace(Limits::default(), [(self.tenant.clone(), limits)].into());
        }
        overrides
    }

    fn cluster(&self, handle: &BucketHandle) -> Arc<Cluster> {
        self.cluster_of(handle, Arc::new(self.network.clone()))
    }

    /// A querier and a store that have read nothing yet.
    pub(crate) fn new_reader(&self, handle: &BucketHandle) -> Arc<Cluster> {
        let store = BlockStore::new(
            self.client(handle),
            StoreSettings::default(),
            Cpu::inline(),
            &Metrics::new(),
        );
        let network = self.network.clone();
        self.cluster_of(handle, Arc::new(WithStore { network, store }))
    }

    fn cluster_of(&self, handle: &BucketHandle, members: Arc<dyn Members>) -> Arc<Cluster> {
        let topology = ClusterTopology::new(self.network.state.clone(), members, Arc::clone(&self.clock));
        let manifests = self.client(handle);
        Cluster::new(
            Arc::new(topology),
            Arc::new(BucketManifests::new(manifests)),
            Arc::clone(&self.clock),
            Patience::default(),
        )
    }

    fn querier(&self, handle: &BucketHandle) -> QuerierProcess {
        let manifests = self.client(handle);
        let api = DeletionsApi::new(
            self.cluster(handle),
            manifests,
            Arc::clone(&self.clock),
            self.rng.fork(),
            "querier".to_owned(),
        );
        QuerierProcess { api }
    }

    /// A querier and a store that only read, and to which nothing happens: what they have cached stays.
    pub(crate) fn start_reader(&self) {
        let handle = self.bucket.handle("reader");
        let manifests = self.client(&handle);
        let metrics = Metrics::new();
        let store = BlockStore::new(manifests, StoreSettings::default(), Cpu::inline(), &metrics);
        self.network.directory.set_store(store);
        *self.reader.lock() = Some(self.cluster(&handle));
    }

    /// A member's ingester, which runs.
    pub(crate) fn ingester(&self, i: usize) -> Ingester {
        let ingesters = self.ingesters.lock();
        ingesters[i]
            .as_ref()
            .expect("members are started")
            .ingester
            .clone()
    }
}
