//! A distributor between a client and mock members.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, to_bytes};
use http::{HeaderMap, StatusCode};
use koios_control::{
    ClusterId, ClusterState, Incarnation, Member, PairReport, Partition, Replica, Role, Ruling, Secret,
    StateHandle,
};
use koios_distributor::{Deps, Distributor, Members, Referee, Settings};
use koios_model::{Metadata, PartitionId, SeriesHash};
use koios_runtime::{
    CancellationToken, ClockHandle, Cpu, DiskHandle, RealDisk, RealNet, RngHandle, Runtime, TaskGroup,
    TokioClock,
};
use koios_server::Metrics;
use koios_tenancy::{Limits, Overrides, Rate};
use koios_testkit::memory::PretendedMemory;
use koios_wire::{
    Batch, BatchSetsReply, BatchSetsRequest, BatchStream, DeletionsReply, DeletionsRequest, ExemplarsRequest,
    FetchBatchesRequest, FlushReply, FlushRequest, HeldSeriesReply, HeldSeriesRequest, IngesterService,
    LabelsReply, LabelsRequest, MetadataRequest, PushAck, ReadRequest, ReadStream, SeriesExemplars,
    ServiceError, ServiceErrorCode,
};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tower::ServiceExt as _;

use crate::messages;

/// When the tests take place.
pub(crate) const NOW: i64 = 1_760_000_000_000;

/// What a member does with its next batch.
#[derive(Clone, Debug)]
pub(crate) enum Next {
    Refuse(ServiceErrorCode, u64),
    Hang,
    /// It takes the batch when it is told to.
    Wait(Arc<Notify>),
    Panic,
}

/// A member that remembers what it was sent.
#[derive(Debug, Default)]
pub(crate) struct MockMember {
    pub(crate) next: Mutex<VecDeque<Next>>,
    /// What it does when `next` is empty; takes the batch when unset.
    pub(crate) always: Mutex<Option<Next>>,
    pub(crate) batches: Mutex<Vec<Arc<Batch>>>,
    /// What it does when it is asked which series it has; answers when unset.
    pub(crate) asked: Mutex<Option<Next>>,
    /// Whether what came last stays in a conflict, as it tells.
    pub(crate) keeps_last: Mutex<bool>,
    /// Whether it does not count yet.
    pub(crate) is_new: Mutex<bool>,
    /// The version of the control state that it knows.
    pub(crate) state_version: Mutex<u64>,
    /// Labels by tenant and reference.
    pub(crate) known: Mutex<BTreeMap<(String, SeriesHash), String>>,
    /// How fast samples come in each partition, by the clock; not told without one.
    pub(crate) rates: Mutex<(BTreeMap<PartitionId, Rate>, Option<ClockHandle>)>,
    /// Bits by (tenant, labels, time).
    pub(crate) head: Mutex<BTreeMap<(String, String, i64), u64>>,
}

impl MockMember {
    fn apply(&self, batch: &Arc<Batch>) -> Result<PushAck, ServiceError> {
        // What arrives must be what could have come over the network.
        let decoded = Batch::decode(batch.encoded().clone()).unwrap();
        let tenant = decoded.header().tenant.to_string();
        let mut known = self.known.lock();
        for series in decoded.columns().series() {
            let reference = (tenant.clone(), series.hash);
            match series.labels {
                Some(labels) => drop(known.insert(reference, labels.to_string())),
                None if known.contains_key(&reference) => {}
                None => {
                    return Err(ServiceError::new(
                        ServiceErrorCode::UnknownSeries,
                        "send it with labels",
                    ));
                }
            }
        }
        let mut head = self.head.lock();
        let mut ack = PushAck {
            state_version: *self.state_version.lock(),
            ..PushAck::default()
        };
        for series in decoded.columns().series() {
            let labels = known[&(tenant.clone(), series.hash)].clone();
            for (t, v) in series.timestamps.iter().zip(series.values) {
                let key = (tenant.clone(), labels.clone(), *t);
                let old = head.insert(key, v.to_bits());
                if old.is_some_and(|old| old != v.to_bits()) {
                    ack.conflicts += 1;
                    ack.conflicts_kept += u64::from(*self.keeps_last.lock());
                    ack.conflict = format!("series {labels} at {t}");
                }
            }
        }
        let series: std::collections::BTreeSet<&String> = head.keys().map(|(_, labels, _)| labels).collect();
        ack.partition_series = series.len() as u64;
        let (rates, clock) = &mut *self.rates.lock();
        if let Some(clock) = clock {
            let rate = rates.entry(batch.header().partition).or_default();
            let columns = batch.columns();
            let samples = columns.sample_count() + columns.exemplars.len();
            rate.add(samples as u64, clock.elapsed());
            ack.tenant_rate = rate.thousandths(clock.elapsed());
        }
        self.batches.lock().push(Arc::clone(batch));
        Ok(ack)
    }

    pub(crate) fn metadata(&self) -> Vec<(String, Metadata)> {
        let batches = self.batches.lock();
        batches
            .iter()
            .flat_map(|b| b.columns().metadata.clone())
            .collect()
    }
}

fn unused<T>() -> Result<T, ServiceError> {
    Err(ServiceError::internal("the distributor does not call this"))
}

#[async_trait]
impl IngesterService for MockMember {
    async fn push(&self, batch: Arc<Batch>) -> Result<PushAck, ServiceError> {
        let next = self
            .next
            .lock()
            .pop_front()
            .or_else(|| self.always.lock().clone());
        match next {
            None => self.apply(&batch),
            Some(Next::Refuse(code, version)) => {
                Err(ServiceError::new(code, "refused by the test").with_state_version(version))
            }
            Some(Next::Hang) => std::future::pending().await,
            Some(Next::Wait(go_on)) => {
                go_on.notified().await;
                self.apply(&batch)
            }
            Some(Next::Panic) => panic!("by the test"),
        }
    }

    async fn held_series(&self, request: HeldSeriesRequest) -> Result<HeldSeriesReply, ServiceError> {
        if let Some(Next::Refuse(code, version)) = *self.asked.lock() {
            return Err(ServiceError::new(code, "refused by the test").with_state_version(version));
        }
        let (known, tenant) = (self.known.lock(), request.tenant.to_string());
        let has = |hash: &SeriesHash| known.contains_key(&(tenant.clone(), *hash));
        let series_of = |metric: &String| {
            let name = format!("__name__={metric:?}");
            let of_metric = |((of, _), labels): &(&(String, SeriesHash), &String)| {
                *of == tenant && labels.contains(&name)
            };
            known.iter().filter(of_metric).count() as u64
        };
        Ok(HeldSeriesReply {
            held: request.references.iter().map(has).collect(),
            partition_series: known.keys().filter(|(of, _)| *of == tenant).count() as u64,
            counts: !*self.is_new.lock(),
            metric_series: request.metrics.iter().map(series_of).collect(),
        })
    }

    async fn read(&self, _: ReadRequest) -> Result<ReadStream, ServiceError> {
        unused()
    }

    async fn label_names(&self, _: LabelsRequest) -> Result<LabelsReply, ServiceError> {
        unused()
    }

    async fn label_values(&self, _: LabelsRequest) -> Result<LabelsReply, ServiceError> {
        unused()
    }

    async fn metadata(&self, _: MetadataRequest) -> Result<Vec<(String, Metadata)>, ServiceError> {
        unused()
    }

    async fn exemplars(&self, _: ExemplarsRequest) -> Result<Vec<SeriesExemplars>, ServiceError> {
        unused()
    }
    async fn batch_sets(&self, _: BatchSetsRequest) -> Result<BatchSetsReply, ServiceError> {
        unused()
    }

    async fn fetch_batches(&self, _: FetchBatchesRequest) -> Result<BatchStream, ServiceError> {
        unused()
    }

    async fn deletions(&self, _: DeletionsRequest) -> Result<DeletionsReply, ServiceError> {
        unused()
    }

    async fn flush(&self, _: FlushRequest) -> Result<FlushReply, ServiceError> {
        unused()
    }
}

#[derive(Debug, Default)]
struct MockMembers(BTreeMap<String, Arc<MockMember>>);

impl Members for MockMembers {
    fn ingester(&self, name: &str, addr: &str) -> Arc<dyn IngesterService> {
        assert_eq!(addr, format!("{name}:9095"));
        Arc::clone(&self.0[name]) as Arc<dyn IngesterService>
    }
}

/// A control leader that is away unless it is told what to say.
#[derive(Debug, Default)]
pub(crate) struct MockReferee {
    pub(crate) ruling: Mutex<Option<Ruling>>,
    pub(crate) heard: Mutex<Vec<PairReport>>,
}

#[async_trait]
impl Referee for MockReferee {
    async fn report(&self, pairs: Vec<PairReport>) -> Result<Vec<Ruling>, ServiceError> {
        self.heard.lock().clone_from(&pairs);
        let ruling = self.ruling.lock().clone();
        let ruling = ruling.ok_or_else(|| ServiceError::unavailable("away"))?;
        Ok(pairs.iter().map(|_| ruling.clone()).collect())
    }
}

/// A state with `partitions` of one replica in each of `zones`.
pub(crate) fn state(version: u64, epoch: u64, zones: usize, partitions: u32) -> ClusterState {
    let name = |zone: usize| format!("m{zone}");
    let member = |zone: usize| Member {
        name: name(zone),
        role: Role::Ingester,
        zone: format!("z{zone}"),
        grpc_addr: format!("m{zone}:9095"),
        http_addr: String::new(),
        incarnation: Incarnation(zone as u128),
        version: String::new(),
    };
    let replica = |zone: usize| Replica {
        member: name(zone),
        zone: format!("z{zone}"),
        incarnation: Incarnation(zone as u128),
        counts: true,
    };
    let partition = |id: u32| Partition {
        id: PartitionId(id),
        epoch,
        replicas: (0..zones).map(replica).collect(),
        formed_at_version: 1,
    };
    ClusterState {
        version,
        cluster_id: Some(ClusterId(1)),
        secret: Secret(b"secret".to_vec()),
        members: (0..zones).map(|z| (name(z), member(z))).collect(),
        partitions: (0..partitions).map(|p| (PartitionId(p), partition(p))).collect(),
        ..ClusterState::default()
    }
}

pub(crate) struct Rig {
    pub(crate) distributor: Distributor,
    pub(crate) router: Router,
    pub(crate) members: Vec<Arc<MockMember>>,
    pub(crate) state: StateHandle,
    pub(crate) metrics: Metrics,
    pub(crate) tasks: TaskGroup,
    pub(crate) clock: ClockHandle,
    pub(crate) referee: Arc<MockReferee>,
    /// None is used, unless a test says so.
    pub(crate) memory: PretendedMemory,
    pub(crate) limits: Overrides,
}

impl Rig {
    pub(crate) fn new(initial: ClusterState, limits: Limits) -> Self {
        Self::with_settings(initial, limits, Settings::default())
    }

    /// One that behaves otherwise.
    pub(crate) fn with_settings(initial: ClusterState, limits: Limits, settings: Settings) -> Self {
        Self::of(
            initial,
            limits,
            (0..3).map(|_| Arc::default()).collect(),
            settings,
        )
    }

    /// Another distributor to the same members.
    pub(crate) fn with_members(other: &Self, limits: Limits) -> Self {
        let state = (*other.state.current()).clone();
        Self::of(state, limits, other.members.clone(), Settings::default())
    }

    fn of(initial: ClusterState, limits: Limits, members: Vec<Arc<MockMember>>, settings: Settings) -> Self {
        let limits = Overrides::new(limits, BTreeMap::new());
        let by_name = members.iter().enumerate();
        let by_name = by_name.map(|(i, m)| (format!("m{i}"), Arc::clone(m))).collect();
        let (state, metrics) = (StateHandle::new(initial), Metrics::new());
        let tasks = TaskGroup::new(CancellationToken::new());
        let clock: ClockHandle = Arc::new(TokioClock::starting_at(NOW));
        let referee: Arc<MockReferee> = Arc::new(MockReferee::default());
        let memory = PretendedMemory::default();
        let distributor = Distributor::new(Deps {
            runtime: Runtime {
                clock: Arc::clone(&clock),
                rng: RngHandle::from_seed(7),
                disk: DiskHandle::inline(Arc::new(RealDisk)),
                cpu: Cpu::inline(),
                net: Arc::new(RealNet),
                memory: memory.watch(),
            },
            state: state.clone(),
            members: Arc::new(MockMembers(by_name)),
            limits: limits.clone(),
            metrics: metrics.clone(),
            tasks: tasks.clone(),
            referee: Arc::clone(&referee) as Arc<dyn Referee>,
            settings,
        });
        Self {
            router: distributor.router(),
            distributor,
            referee,
            memory,
            members,
            state,
            metrics,
            tasks,
            clock,
            limits,
        }
    }

    /// One member, one partition, default limits.
    pub(crate) fn single() -> Self {
        Self::new(state(1, 1, 1, 1), Limits::default())
    }

    /// Three zones, one partition.
    pub(crate) fn three_zones() -> Self {
        Self::new(state(1, 1, 3, 1), Limits::default())
    }

    /// Sends a remote write request with just these headers.
    pub(crate) async fn send(&self, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        self.request("POST", "/api/v1/push", headers, body).await
    }

    /// Sends any request.
    pub(crate) async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let mut request = http::Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body.into()).unwrap();
        let (parts, body) = self.router.clone().oneshot(request).await.unwrap().into_parts();
        let body = to_bytes(body, 1 << 20).await.unwrap();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: String::from_utf8_lossy(&body).into_owned(),
        }
    }

    /// Sends a message of version 1, compressed with snappy.
    pub(crate) async fn push(&self, message: &[u8]) -> Answer {
        self.send(
            &[("content-type", "application/x-protobuf")],
            messages::snappy(message),
        )
        .await
    }

    /// Sends a message of version 2.
    pub(crate) async fn push_v2(&self, message: &[u8]) -> Answer {
        let kind = "application/x-protobuf;proto=io.prometheus.write.v2.Request";
        let headers = [("content-type", kind), ("content-encoding", "snappy")];
        self.send(&headers, messages::snappy(message)).await
    }

    /// What member 0 holds of a series: its labels' text, then (time, bits).
    pub(crate) fn stored(&self) -> Vec<(String, i64, f64)> {
        let head = self.members[0].head.lock();
        head.iter()
            .map(|((_, labels, t), bits)| (labels.clone(), *t, f64::from_bits(*bits)))
            .collect()
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    #[track_caller]
    pub(crate) fn assert(&self, code: u16, message: &str) {
        assert_eq!(self.status.as_u16(), code, "{self:?}");
        assert!(self.body.contains(message), "wanted {message:?}: {self:?}");
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }
}
