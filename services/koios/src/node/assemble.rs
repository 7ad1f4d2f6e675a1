//! Builds the services of a target once the process knows its cluster.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use koios_bucket::TenantManifests;
use koios_control::{ClusterId, ClusterState, ControlPlane, Member, Role, StateHandle};
use koios_distributor::Distributor;
use koios_import::{ImportSettings, Importer, Uploads};
use koios_ingester::Ingester;
use koios_model::TenantId;
use koios_querier::{
    BucketManifests, CONCURRENT_QUERIES_DEFAULT, Cluster, ClusterTopology, DeletionsApi, Patience,
    QuerierApi, StoreReads,
};
use koios_runtime::{ClockHandle, TaskGroup};
use koios_server::config::Target;
use koios_server::{Component, with_cors, with_edge};
use koios_store::{
    BlockStore, CompactionDeps, CompactionDuty, CompactionSettings, Compactor, Downsampling, StoreSettings,
    UploadService,
};
use koios_wal::Identity as WalIdentity;
use koios_wire::grpc::{IngesterRpc, StoreRpc};
use koios_wire::{IngesterService, StoreService};
use parking_lot::Mutex;

use super::{NodeError, Refusal, Shared, Storage, disk_cache, own_bucket};
use crate::adapters::{OfTenants, Proposer};
use crate::duty::{AskedMembers, AssignedCompaction, Rounds};
use crate::operators::for_operators;
use crate::{self_metrics, versions};

/// How often an ingester looks whether it counts.
const READINESS_EVERY: Duration = Duration::from_millis(500);

/// The services that run, for the stop. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Services {
    ingester: Arc<Mutex<Option<Ingester>>>,
}

impl Services {
    /// Answers what is in flight and writes out what is queued.
    pub(super) async fn drain(&self) {
        let ingester = self.ingester.lock().take();
        if let Some(ingester) = ingester {
            ingester.stop().await;
        }
    }
}

/// Everything that services are built from.
pub(super) struct Assembly {
    pub(super) shared: Shared,
    pub(super) storage: Storage,
    pub(super) plane: Arc<ControlPlane>,
    pub(super) services: Services,
    pub(super) refusal: Refusal,
    pub(super) tasks: TaskGroup,
    pub(super) background: TaskGroup,
}

/// What the process serves once it is part of its cluster.
#[derive(Debug, Default)]
pub(super) struct Routers {
    pub(super) http: Router,
    pub(super) grpc: Router,
}

impl Assembly {
    fn runs(&self, service: Target) -> bool {
        let target = self.shared.target;
        target == service || target == Target::All
    }

    /// Joins the cluster and builds the services.
    pub(super) async fn run(self, joining: &Component) -> Result<Routers, NodeError> {
        self.plane.join(&self.tasks).await;
        let cluster = self.cluster().await;
        let clock = &self.shared.runtime.clock;
        own_bucket::require(&self.plane, clock, &self.tasks, &self.refusal).await?;
        joining.not_ready("registering with the control voters");
        self.keep_registered();
        if self.runs(Target::Ingester) || self.runs(Target::Store) {
            self.storage
                .spawn_self_test(&self.shared.runtime, &self.tasks, &self.refusal);
        }
        let mut routers = Routers::default();
        if self.runs(Target::Ingester) {
            self.add_ingester(cluster, &mut routers)?;
        }
        if self.runs(Target::Store) {
            self.add_store(&mut routers)?;
        }
        if self.runs(Target::Distributor) {
            self.follow_partitions();
            self.add_distributor(&mut routers);
        }
        if self.runs(Target::Querier) {
            self.add_querier(&mut routers)?;
        }
        let shared = &self.shared;
        let runtime = &shared.runtime;
        let (clock, rng) = (Arc::clone(&runtime.clock), runtime.rng.fork());
        routers.http = with_edge(routers.http, clock, rng, &shared.settings.http, &shared.metrics);
        if self.runs(Target::Store) {
            // After the edge: a file may take longer than its deadline.
            let uploads = self.take_uploads()?;
            routers.merge_http(uploads);
        }
        Ok(routers)
    }

    /// Waits, for ever if need be, until the cluster exists and is known here.
    async fn cluster(&self) -> ClusterId {
        let mut state = self.plane.state().clone();
        loop {
            if let Some(cluster) = state.current().cluster_id {
                return cluster;
            }
            state.changed().await;
        }
    }

    fn member(&self) -> Member {
        let shared = &self.shared;
        let role = match shared.target {
            Target::All => Role::All,
            Target::Ingester => Role::Ingester,
            Target::Distributor => Role::Distributor,
            Target::Querier => Role::Querier,
            Target::Store => Role::Store,
            Target::Control => Role::Control,
        };
        Member {
            name: shared.name.clone(),
            role,
            zone: shared.settings.zone.clone(),
            grpc_addr: shared.grpc_addr.clone(),
            http_addr: shared.http_addr.clone(),
            incarnation: self.plane.identity().incarnation(),
            version: versions::VERSION.to_owned(),
        }
    }

    /// Keeps the process registered. One that the state knows already, as it is now, is ready without: its voters may
    /// all be away (I8).
    fn keep_registered(&self) {
        let (member, mut state) = (self.member(), self.plane.state().clone());
        self.plane.client().keep_registered(&self.tasks, member.clone());
        let following = versions::follow(state.clone(), self.shared.metrics.clone());
        self.tasks.spawn_cancelled("versions of the members", following);
        let registered = self.shared.readiness.component("registration");
        self.tasks.spawn_cancelled("registration readiness", async move {
            while !known(&state.current(), &member) {
                registered.not_ready("the control voters have not registered this process yet");
                state.changed().await;
            }
            registered.ready();
        });
    }

    fn add_ingester(&self, cluster: ClusterId, routers: &mut Routers) -> Result<(), NodeError> {
        let (shared, identity) = (&self.shared, self.plane.identity());
        let from = &shared.settings;
        let mut settings = koios_ingester::Settings::new(from.data_dir.join("wal"));
        settings.disk_reserve_bytes = from.ingester.disk_reserve_bytes;
        settings.block_window = from.blocks.range;
        settings.head_keep = from.ingester.head_retention;
        let deps = koios_ingester::Deps {
            runtime: shared.runtime.clone(),
            member: shared.name.clone(),
            identity: WalIdentity {
                cluster: cluster.0,
                incarnation: identity.incarnation().0,
            },
            state: self.plane.state().clone(),
            manifests: self.storage.manifests()?,
            peers: Arc::new(shared.members.clone()),
            control: Arc::new(Proposer(self.plane.client().clone())),
            limits: shared.overrides.clone(),
            metrics: shared.metrics.clone(),
            tasks: self.tasks.clone(),
        };
        let ingester = Ingester::start(settings, deps);
        *self.services.ingester.lock() = Some(ingester.clone());
        let service: Arc<dyn IngesterService> = Arc::new(ingester.clone());
        shared.members.set_ingester(Arc::clone(&service));
        routers.merge_grpc(IngesterRpc::server(service));
        routers.merge_http(for_operators(koios_ingester::router(ingester.clone())));
        let replaying = shared.readiness.component("ingester");
        replaying.not_ready("replaying the write-ahead log");
        let (clock, state) = (Arc::clone(&shared.runtime.clock), self.plane.state().clone());
        self.tasks.spawn_cancelled("ingester readiness", async move {
            if ingester.wait_running().await {
                follow_counting(&ingester, &state, &replaying, &clock).await;
            }
        });
        Ok(())
    }

    fn add_store(&self, routers: &mut Routers) -> Result<(), NodeError> {
        let shared = &self.shared;
        let (manifests, cpu) = (self.storage.manifests()?, shared.runtime.cpu.clone());
        let settings = StoreSettings::within(shared.settings.store.cache_bytes);
        let disk = disk_cache::open(shared, manifests.bucket(), &self.background)?;
        let store = BlockStore::with_disk_cache(manifests.clone(), settings, cpu, &shared.metrics, disk);
        self.compact(manifests);
        let service: Arc<dyn StoreService> = Arc::new(store);
        shared.members.set_store(Arc::clone(&service));
        routers.merge_grpc(StoreRpc::server(service));
        Ok(())
    }

    /// Compacts blocks in the background, unless the settings say otherwise.
    fn compact(&self, manifests: TenantManifests) {
        let shared = &self.shared;
        let from = &shared.settings;
        if !from.store.compaction {
            return;
        }
        let settings = CompactionSettings {
            block_range: from.blocks.range,
            settle: from.store.compaction_delay,
            interval: from.store.compaction_interval,
            retention: from.retention,
            retention_given: from.given.contains("retention"),
            dead_grace: from.store.deletion_delay,
            downsampling: downsampling(from),
            undelete_window: from.store.undelete_window,
            ..CompactionSettings::default()
        };
        let deps = CompactionDeps {
            runtime: shared.runtime.clone(),
            member: shared.name.clone(),
            manifests,
            duty: self.compaction_duty(),
            witness: Arc::new(AskedMembers::new(
                self.plane.state().clone(),
                Arc::new(shared.members.clone()),
                Arc::clone(&shared.runtime.clock),
            )),
            overrides: shared.overrides.clone(),
            metrics: shared.metrics.clone(),
        };
        let compactor = Compactor::new(settings, deps);
        self.background.spawn_cancelled("compaction", compactor.run());
    }

    fn compaction_duty(&self) -> Arc<dyn CompactionDuty> {
        Arc::new(AssignedCompaction {
            member: self.shared.name.clone(),
            state: self.plane.state().clone(),
            control: self.plane.client().clone(),
            compacts: self.shared.settings.store.compaction,
            rounds: Rounds::new(Arc::clone(&self.shared.runtime.clock)),
        })
    }

    /// Takes blocks of Prometheus, and imports them in the background.
    fn take_uploads(&self) -> Result<Router, NodeError> {
        let shared = &self.shared;
        let runtime = &shared.runtime;
        let importer = Importer {
            bucket: self.storage.manifests()?.bucket().clone(),
            settings: ImportSettings {
                block_range: shared.settings.blocks.range,
                retention: shared.settings.retention,
                retentions: Some(Arc::new(OfTenants {
                    default: shared.settings.retention,
                    overrides: shared.overrides.clone(),
                })),
                ..ImportSettings::default()
            },
            writer: shared.name.clone(),
            clock: Arc::clone(&runtime.clock),
            rng: runtime.rng.fork(),
            cpu: runtime.cpu.clone(),
            memory: runtime.memory.clone(),
        };
        let service = UploadService::new(Uploads::new(importer), Arc::clone(&runtime.clock));
        let router = service.router();
        self.background
            .spawn_cancelled("imports", service.run(self.compaction_duty()));
        Ok(router)
    }

    /// Without partitions no write is taken. Only of a distributor that is told: ingesters, of which all-in-one is one, form the
    /// partitions, and may be started one by one as each is ready.
    fn follow_partitions(&self) {
        let shared = &self.shared;
        if shared.target != Target::Distributor {
            return;
        }
        let (component, mut state) = (
            shared.readiness.component("distributor"),
            self.plane.state().clone(),
        );
        self.tasks.spawn_cancelled("distributor readiness", async move {
            while state.current().partitions.is_empty() {
                component.not_ready(NO_PARTITIONS);
                state.changed().await;
            }
            component.ready();
        });
    }

    fn add_distributor(&self, routers: &mut Routers) {
        let shared = &self.shared;
        let distributor = Distributor::new(koios_distributor::Deps {
            runtime: shared.runtime.clone(),
            state: self.plane.state().clone(),
            members: Arc::new(shared.members.clone()),
            limits: shared.overrides.clone(),
            metrics: shared.metrics.clone(),
            tasks: self.background.clone(),
            referee: Arc::new(Proposer(self.plane.client().clone())),
            settings: koios_distributor::Settings {
                bytes_in_flight_max: shared.settings.http.max_write_bytes_in_flight,
                ..koios_distributor::Settings::default()
            },
        });
        routers.merge_http(distributor.router());
        routers.grpc = std::mem::take(&mut routers.grpc).merge(distributor.grpc_router());
        let own = &shared.settings.self_metrics;
        let tenant = TenantId::new(&own.tenant);
        if shared.target == Target::All
            && !own.interval.is_zero()
            && let Ok(tenant) = tenant
        {
            let writing = self_metrics::run(
                distributor,
                shared.metrics.clone(),
                Arc::clone(&shared.runtime.clock),
                tenant,
                shared.http_addr.clone(),
                own.interval,
            );
            self.background.spawn_cancelled("self metrics", writing);
        }
    }

    fn add_querier(&self, routers: &mut Routers) -> Result<(), NodeError> {
        let shared = &self.shared;
        let clock = Arc::clone(&shared.runtime.clock);
        let members = Arc::new(shared.members.clone());
        let topology = ClusterTopology::new(self.plane.state().clone(), members, Arc::clone(&clock));
        let manifests = self.storage.manifests()?;
        let reads = StoreReads {
            replication: usize::try_from(shared.settings.store.replication).unwrap_or(usize::MAX),
            wait: shared.members.blocks_wait(),
            silence_min: shared.settings.store.stream_silence,
            ..StoreReads::default()
        };
        let cluster = Cluster::with_stores(
            Arc::new(topology),
            Arc::new(BucketManifests::new(manifests.clone())),
            Arc::clone(&clock),
            Patience {
                manifest_age: shared.settings.blocks.manifest_max_age,
                ..Patience::default()
            },
            reads,
            &shared.metrics,
        );
        let deletions = DeletionsApi::new(
            Arc::clone(&cluster),
            manifests,
            Arc::clone(&clock),
            shared.runtime.rng.fork(),
            shared.name.clone(),
        );
        routers.merge_http(deletions.router());
        routers.merge_http(for_operators(deletions.operators_router()));
        let querier = QuerierApi::new(
            cluster,
            shared.overrides.clone(),
            clock,
            shared.runtime.cpu.clone(),
            shared.runtime.memory.clone(),
            CONCURRENT_QUERIES_DEFAULT,
            &shared.metrics,
        );
        let origins = &shared.settings.http.cors_origin;
        routers.merge_http(with_cors(querier.router(), origins));
        Ok(())
    }
}

/// Ready means that another member may go: this one counts in every partition that the state gives it.
async fn follow_counting(
    ingester: &Ingester,
    state: &StateHandle,
    component: &Component,
    clock: &ClockHandle,
) {
    loop {
        let (state, status) = (state.current(), ingester.status());
        let counts = |id| status.partitions.iter().any(|p| p.partition == id && p.counts);
        match state.partitions_of(&status.member).find(|p| !counts(p.id)) {
            None => component.ready(),
            Some(p) => component.not_ready(format!(
                "partition {} does not count here yet: copying from its other members, see `koios ctl status`",
                p.id
            )),
        }
        clock.sleep(READINESS_EVERY).await;
    }
}

/// Why a distributor takes no writes yet.
const NO_PARTITIONS: &str = "the cluster has no partitions yet, so that no write is taken: they are formed once ingesters of enough zones \
                             are registered, see `koios ctl status`";

/// Which summaries the settings ask for.
fn downsampling(from: &koios_server::settings::Settings) -> Vec<Downsampling> {
    let (store, is_given) = (&from.store, |key: &str| from.given.contains(key));
    vec![
        Downsampling {
            after_given: is_given("store.downsample-after-5m"),
            retention_given: is_given("store.downsampled-retention-5m"),
            ..Downsampling::by_5m(store.downsample_after_5m, store.downsampled_retention_5m)
        },
        Downsampling {
            after_given: is_given("store.downsample-after-1h"),
            retention_given: is_given("store.downsampled-retention-1h"),
            ..Downsampling::by_1h(store.downsample_after_1h, store.downsampled_retention_1h)
        },
    ]
}

/// Whether the state has the process as it is now.
fn known(state: &ClusterState, member: &Member) -> bool {
    state
        .members
        .get(&member.name)
        .is_some_and(|known| known == member)
}

impl Routers {
    fn merge_http(&mut self, router: Router) {
        self.http = std::mem::take(&mut self.http).merge(router);
    }

    fn merge_grpc<S>(&mut self, service: S)
    where
        S: tower::Service<http::Request<tonic::body::Body>, Error = std::convert::Infallible>
            + tonic::server::NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Response: axum::response::IntoResponse,
        S::Future: Send + 'static,
    {
        let routes = tonic::service::Routes::new(service).into_axum_router();
        // Each carries tonic's fallback; only one may stay.
        self.grpc = std::mem::take(&mut self.grpc).merge(routes.reset_fallback());
    }
}
