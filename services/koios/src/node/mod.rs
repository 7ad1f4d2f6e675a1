//! One process: what it listens on, what it is made of, how it starts and stops.
//!
//! Start order: data directory and lock, listeners, this process' vote, gRPC (peers may wait for it), HTTP (health first),
//! then, in the background, the cluster's state, registration, and the services. Stop order:
//! `koios_server::stop_in_order`.

mod assemble;
mod disk_cache;
mod error;
mod naming;
mod own_bucket;
mod storage;
mod storage_env;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::post_service;
use koios_control::{ControlOptions, ControlPlane, Settings as PartitionSettings, StateBackup, Voters};
use koios_distributor::OTLP_EXPORT;
use koios_runtime::{CancellationToken, Listener, Runtime, TaskGroup};
use koios_server::config::Target;
use koios_server::{
    Component, ConnectionLimits, GrpcServer, HttpServer, Metrics, Readiness, Settings, StopPlan, StopStage,
    common_routes, stop_in_order,
};
use koios_tenancy::Overrides;
use koios_wire::grpc::RpcSettings;

pub use error::NodeError;
use error::Refusal;
pub(crate) use storage::Storage;

use crate::adapters::BucketBackup;
use crate::late::LateRouter;
use crate::members::Members;

/// What differs between a real process and a simulated one.
#[derive(Clone, Debug, Default)]
pub struct NodeOptions {
    /// The object store to use instead of the one that the settings name.
    pub object_store: Option<Arc<dyn object_store::ObjectStore>>,
    /// Deadlines of calls to other processes.
    pub rpc: RpcSettings,
}

/// A running process.
#[derive(Debug)]
pub struct Node {
    target: Target,
    name: String,
    settings: Settings,
    overrides: Overrides,
    http_addr: String,
    grpc_addr: String,
    runtime: Runtime,
    readiness: Readiness,
    servers: Servers,
    plane: Arc<ControlPlane>,
    services: assemble::Services,
    refusal: Refusal,
    background: TaskGroup,
    tasks: TaskGroup,
}

/// The tasks that serve, and the tokens that end them.
#[derive(Debug)]
struct Servers {
    tasks: TaskGroup,
    http: CancellationToken,
    grpc: CancellationToken,
}

/// What all parts of a node share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) target: Target,
    pub(crate) name: String,
    pub(crate) settings: Settings,
    pub(crate) overrides: Overrides,
    pub(crate) runtime: Runtime,
    pub(crate) metrics: Metrics,
    pub(crate) readiness: Readiness,
    pub(crate) members: Members,
    pub(crate) http_addr: String,
    pub(crate) grpc_addr: String,
}

impl Node {
    /// Starts a process. It returns when it listens; `/ready` tells when it takes part.
    ///
    /// # Errors
    /// [`NodeError`], most of which are an operator's to mend.
    pub async fn start(
        target: Target,
        settings: Settings,
        runtime: Runtime,
        options: NodeOptions,
    ) -> Result<Self, NodeError> {
        let tasks = TaskGroup::new(CancellationToken::new());
        let metrics = Metrics::new();
        metrics.register_process(runtime.clock.now_ms());
        if let Some(limit) = runtime.memory.limit_bytes() {
            let gauge = metrics.gauge("koios_memory_limit_bytes", "Memory that this process may use");
            gauge.set(i64::try_from(limit).unwrap_or(i64::MAX));
        }
        let readiness = Readiness::default();
        let joining = readiness.component("cluster");
        joining.not_ready("waiting for the cluster's state from the control voters");

        let voters = naming::voters(&settings.control.voters)?;
        if voters.is_empty() && target != Target::All {
            return Err(NodeError::Settings(naming::no_voters(target)));
        }
        let storage = Storage::open(target, &settings, &runtime, options.object_store).await?;
        let http_listener = bind(&runtime, "http.listen", &settings.http.listen).await?;
        let grpc_listener = bind(&runtime, "grpc.listen", &settings.grpc.listen).await?;
        let otlp_listener = match settings.otlp_listen.as_str() {
            "" => None,
            addr => Some(bind(&runtime, "otlp.listen", addr).await?),
        };
        let http_addr = naming::reachable(&settings.http.listen, http_listener.as_ref(), "")?;
        let grpc_addr = naming::reachable(
            &settings.grpc.listen,
            grpc_listener.as_ref(),
            &settings.grpc.advertise,
        )?;
        let name = naming::node_name(target, &settings, &voters, &grpc_addr, &runtime).await?;

        let control = ControlOptions {
            data_dir: settings.data_dir.clone(),
            node: name.clone(),
            own_addr: grpc_addr.clone(),
            seeds: settings.cluster.seeds.clone(),
            settings: partition_settings(target, &settings, &voters),
            voters,
            backup: storage
                .bucket()
                .map(|b| Arc::new(BucketBackup(b.clone())) as Arc<dyn StateBackup>),
        };
        let plane = Arc::new(ControlPlane::start(&runtime, &tasks, control).await?);
        let members = Members::new(
            &name,
            Arc::clone(&runtime.net),
            Arc::clone(&runtime.clock),
            options.rpc,
        );
        let overrides = settings.tenant_limits();
        let shared = Shared {
            target,
            name: name.clone(),
            settings: settings.clone(),
            overrides: overrides.clone(),
            runtime: runtime.clone(),
            metrics: metrics.clone(),
            readiness: readiness.clone(),
            members,
            http_addr: http_addr.clone(),
            grpc_addr: grpc_addr.clone(),
        };
        let late = LateRouters {
            http: LateRouter::new(not_started),
            grpc: LateRouter::new(grpc_not_started),
        };
        let listeners = Listeners {
            http: http_listener,
            grpc: grpc_listener,
            otlp: otlp_listener,
        };
        let servers = serve(&shared, &plane, &late, listeners);
        let background = tasks.child();
        let (services, refusal) = (assemble::Services::default(), Refusal::default());
        let assembly = assemble::Assembly {
            shared,
            storage,
            plane: Arc::clone(&plane),
            services: services.clone(),
            refusal: refusal.clone(),
            tasks: tasks.clone(),
            background: background.clone(),
        };
        start_assembly(&tasks, assembly, joining, late);
        Ok(Self {
            target,
            name,
            settings,
            overrides,
            http_addr,
            grpc_addr,
            runtime,
            readiness,
            servers,
            plane,
            services,
            refusal,
            background,
            tasks,
        })
    }

    /// What it runs.
    pub fn target(&self) -> Target {
        self.target
    }

    /// Its name in the cluster.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it was told.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Takes the limits over that it is told now, of all tenants and of each; whatever else is other than at its start is left as it was.
    pub fn reload(&self, told: &Settings) {
        self.overrides
            .replace(told.limits.clone(), told.overrides.clone());
        tracing::info!(
            tenants = told.overrides.len(),
            "limits and overrides are taken over; other settings are from the next start on"
        );
    }

    /// `host:port` of its HTTP listener.
    pub fn http_addr(&self) -> &str {
        &self.http_addr
    }

    /// `host:port` at which other processes reach it.
    pub fn grpc_addr(&self) -> &str {
        &self.grpc_addr
    }

    /// Returns when the process cannot go on.
    pub async fn failed(&self) {
        self.tasks.token().cancelled().await;
    }

    /// Stops in the one order there is. Everything acknowledged is durable whether this is called or not.
    ///
    /// # Errors
    /// The fatal error that made the process end, if one did.
    pub async fn stop(self) -> Result<(), NodeError> {
        let mut plan = StopPlan::default();
        plan.cancel(StopStage::StopAccepting, "http", &self.servers.http);
        let services = self.services.clone();
        plan.step(
            StopStage::Drain,
            "services",
            async move { services.drain().await },
        );
        let background = self.background.clone();
        plan.step(StopStage::StopBackground, "background", async move {
            background.stop().await
        });
        let plane = Arc::clone(&self.plane);
        plan.step(StopStage::Leave, "control plane", async move {
            plane.shutdown().await
        });
        plan.cancel(StopStage::CloseServers, "grpc", &self.servers.grpc);
        let servers = self.servers.tasks.clone();
        plan.step(StopStage::CloseServers, "connections", async move {
            servers.stop().await
        });
        stop_in_order(
            &self.runtime.clock,
            &self.readiness,
            plan,
            self.settings.node.shutdown_timeout,
        )
        .await;
        let failure = self.tasks.failure();
        self.tasks.stop().await;
        // Only now does nothing write there any more.
        self.plane.release();
        match failure {
            None => Ok(()),
            Some(failure) => Err(self.refusal.or(failure)),
        }
    }
}

async fn bind(runtime: &Runtime, key: &'static str, addr: &str) -> Result<Box<dyn Listener>, NodeError> {
    runtime.net.bind(addr).await.map_err(|source| NodeError::Listen {
        key,
        addr: addr.to_owned(),
        source,
    })
}

/// All-in-one is one partition with one member; a cluster forms what its settings ask for.
fn partition_settings(target: Target, settings: &Settings, voters: &Voters) -> PartitionSettings {
    let alone = target == Target::All && voters.len() <= 1;
    let replication_factor = match settings.control.replication_factor {
        0 if alone => 1,
        0 => 3,
        n => n,
    };
    PartitionSettings {
        replication_factor,
        partitions: settings.control.partitions.max(1),
        ingesters_per_zone: 1,
    }
}

/// Where clients and other processes reach this one.
struct Listeners {
    http: Box<dyn Listener>,
    grpc: Box<dyn Listener>,
    otlp: Option<Box<dyn Listener>>,
}

/// What answers there, once the process has joined its cluster.
struct LateRouters {
    http: LateRouter,
    grpc: LateRouter,
}

fn serve(shared: &Shared, plane: &ControlPlane, late: &LateRouters, listeners: Listeners) -> Servers {
    let tasks = TaskGroup::new(CancellationToken::new());
    let (http, grpc) = (CancellationToken::new(), CancellationToken::new());
    let clock = Arc::clone(&shared.runtime.clock);

    let common = common_routes(shared.readiness.clone(), shared.metrics.clone());
    let router = common.fallback_service(late.http.clone().into_router());
    let server = HttpServer::new(Arc::clone(&clock), ConnectionLimits::default());
    let token = http.clone();
    tasks.spawn("http", async move {
        server.serve(listeners.http, router, token).await
    });
    if let Some(listener) = listeners.otlp {
        let server = HttpServer::new(Arc::clone(&clock), ConnectionLimits::default());
        let router = Router::new().route(OTLP_EXPORT, post_service(late.http.clone().into_router()));
        let token = http.clone();
        tasks.spawn("otlp", async move { server.serve(listener, router, token).await });
    }

    let control = plane.rpc().into_server();
    let routes = tonic::service::Routes::from(
        tonic::service::Routes::new(control)
            .into_axum_router()
            .fallback_service(late.grpc.clone().into_router()),
    );
    let server = GrpcServer::new(
        clock,
        ConnectionLimits::default(),
        shared.settings.grpc.max_message_bytes,
    );
    let token = grpc.clone();
    tasks.spawn("grpc", async move {
        server.serve(listeners.grpc, routes, token).await
    });
    Servers { tasks, http, grpc }
}

fn start_assembly(tasks: &TaskGroup, assembly: assemble::Assembly, joining: Component, late: LateRouters) {
    let (group, refusal) = (tasks.clone(), assembly.refusal.clone());
    tasks.spawn_cancelled("assembly", async move {
        match assembly.run(&joining).await {
            Ok(routers) => {
                late.http.set(routers.http);
                late.grpc.set(routers.grpc);
                joining.ready();
            }
            Err(e) => refusal.fail(&group, "assembly", e),
        }
    });
}

fn not_started() -> axum::response::Response {
    let refusal = koios_server::plain_error(
        http::StatusCode::SERVICE_UNAVAILABLE,
        "starting: the process has not joined its cluster yet, see /ready",
    );
    koios_server::with_retry_after(refusal, Duration::from_secs(1))
}

fn grpc_not_started() -> axum::response::Response {
    tonic::Status::unavailable("starting: the process has not joined its cluster yet").into_http()
}
