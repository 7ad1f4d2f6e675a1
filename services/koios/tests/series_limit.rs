//! The limit on a tenant's series: distributors and real ingesters in one process, over simulated disks and time.
#![allow(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::body::{Body, to_bytes};
use koios_bucket::{Bucket, TenantManifests};
use koios_control::{
    ClusterId, ClusterState, Command, Incarnation, Member, PairReport, Partition, Replica, Role, Ruling,
    Secret, StateHandle,
};
use koios_distributor::{Distributor, Members, Referee};
use koios_ingester::{ControlProposer, Ingester, Peers};
use koios_model::{Labels, PartitionId, Sample, TenantId};
use koios_runtime::{
    CancellationToken, ClockHandle, Cpu, Disk, DiskHandle, MemoryWatch, RealDisk, RealNet, RngHandle,
    Runtime, TaskGroup, TokioClock,
};
use koios_server::Metrics;
use koios_tenancy::{Limits, Overrides};
use koios_testkit::down::DownIngester;
use koios_testkit::remote_write;
use koios_testkit::sim_bucket::SimBucket;
use koios_testkit::sim_disk::SimDisk;
use koios_wal::Identity;
use koios_wire::{HeldSeriesRequest, IngesterService, ServiceError};
use parking_lot::Mutex;
use tower::ServiceExt as _;

const T0: i64 = 1_700_006_400_000;
const HOUR: Duration = Duration::from_secs(3600);
const CLUSTER: u128 = 77;
const PARTITIONS: u32 = 2;

type Running = BTreeMap<String, (Ingester, TaskGroup)>;

/// Whom everybody reaches.
#[derive(Clone, Debug)]
struct Network {
    running: Arc<Mutex<Running>>,
    state: StateHandle,
    /// No member gets to count.
    nobody_counts: Arc<AtomicBool>,
}

impl Network {
    fn client(&self, name: &str) -> Arc<dyn IngesterService> {
        match self.running.lock().get(name) {
            Some((ingester, _)) => Arc::new(ingester.clone()),
            None => Arc::new(DownIngester),
        }
    }

    fn change(&self, change: impl FnOnce(&mut ClusterState)) {
        let mut state = ClusterState::clone(&self.state.current());
        change(&mut state);
        state.version += 1;
        assert!(self.state.offer(state));
    }
}

impl Peers for Network {
    fn ingester(&self, member: &Member) -> Arc<dyn IngesterService> {
        self.client(&member.name)
    }
}

impl Members for Network {
    fn ingester(&self, name: &str, _: &str) -> Arc<dyn IngesterService> {
        self.client(name)
    }
}

#[async_trait]
impl ControlProposer for Network {
    async fn propose(&self, command: Command) -> Result<(), ServiceError> {
        let Command::SetCounting {
            partition, member, ..
        } = command
        else {
            return Err(ServiceError::unavailable("not now"));
        };
        if self.nobody_counts.load(Ordering::Relaxed) {
            return Err(ServiceError::unavailable("not yet"));
        }
        self.change(|state| {
            let partition = state.partitions.get_mut(&partition).unwrap();
            let of_member = partition.replicas.iter_mut().find(|r| r.member == member);
            of_member.unwrap().counts = true;
        });
        Ok(())
    }
}

#[async_trait]
impl Referee for Network {
    async fn report(&self, _: Vec<PairReport>) -> Result<Vec<Ruling>, ServiceError> {
        Err(ServiceError::unavailable("there are no pairs"))
    }
}

struct Cluster {
    clock: ClockHandle,
    rng: RngHandle,
    bucket: SimBucket,
    disks: Vec<SimDisk>,
    incarnations: Mutex<Vec<u128>>,
    network: Network,
    /// Of all distributors.
    limits: Overrides,
    tasks: TaskGroup,
}

fn limited(max_series: u64) -> Limits {
    Limits {
        max_series,
        ..Limits::default()
    }
}

fn name_of(member: usize) -> String {
    format!("m{member}")
}

fn member(name: String, role: Role, incarnation: u128) -> Member {
    Member {
        name,
        role,
        zone: String::new(),
        grpc_addr: String::new(),
        http_addr: String::new(),
        incarnation: Incarnation(incarnation),
        version: String::new(),
    }
}

fn first_state(members: usize, distributors: usize) -> ClusterState {
    let replica = |i: usize| Replica {
        member: name_of(i),
        zone: format!("z{i}"),
        incarnation: Incarnation(1000 + i as u128),
        counts: true,
    };
    let partition = |id| Partition {
        id: PartitionId(id),
        epoch: 1,
        replicas: (0..members).map(replica).collect(),
        formed_at_version: 1,
    };
    let ingesters = (0..members).map(|i| member(name_of(i), Role::Ingester, 1000 + i as u128));
    let distributors = (0..distributors).map(|i| member(format!("d{i}"), Role::Distributor, i as u128));
    ClusterState {
        version: 1,
        cluster_id: Some(ClusterId(CLUSTER)),
        secret: Secret(b"secret".to_vec()),
        members: ingesters
            .chain(distributors)
            .map(|m| (m.name.clone(), m))
            .collect(),
        partitions: (0..PARTITIONS).map(|p| (PartitionId(p), partition(p))).collect(),
        ..ClusterState::default()
    }
}

impl Cluster {
    async fn start(members: usize, distributors: usize, max_series: u64) -> Self {
        let clock: ClockHandle = Arc::new(TokioClock::starting_at(T0));
        let rng = RngHandle::from_seed(33);
        let disk = |_| {
            let disk = SimDisk::new(rng.fork());
            disk.create_dir_all(Path::new("/data")).unwrap();
            disk.sync_dir(Path::new("/")).unwrap();
            disk
        };
        let cluster = Self {
            bucket: SimBucket::new(Arc::clone(&clock), rng.fork()),
            disks: (0..members).map(disk).collect(),
            incarnations: Mutex::new((0..members as u128).map(|i| 1000 + i).collect()),
            network: Network {
                running: Arc::default(),
                state: StateHandle::new(first_state(members, distributors)),
                nobody_counts: Arc::default(),
            },
            limits: Overrides::new(limited(max_series), BTreeMap::new()),
            tasks: TaskGroup::new(CancellationToken::new()),
            clock,
            rng,
        };
        for i in 0..members {
            cluster.start_ingester(i).await;
        }
        cluster
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

    async fn start_ingester(&self, i: usize) {
        let tasks = TaskGroup::new(CancellationToken::new());
        let bucket = Arc::new(self.bucket.handle(&name_of(i)));
        let bucket = Bucket::new(bucket, "", Arc::clone(&self.clock), self.rng.fork());
        let settings = koios_ingester::Settings {
            disk_reserve_bytes: 0,
            wal_segment_bytes: 64 << 10,
            ..koios_ingester::Settings::new("/data/wal")
        };
        let deps = koios_ingester::Deps {
            runtime: self.runtime(DiskHandle::inline(Arc::new(self.disks[i].mount()))),
            member: name_of(i),
            identity: Identity {
                cluster: CLUSTER,
                incarnation: self.incarnations.lock()[i],
            },
            state: self.network.state.clone(),
            manifests: TenantManifests::new(bucket, Duration::ZERO),
            peers: Arc::new(self.network.clone()),
            control: Arc::new(self.network.clone()),
            limits: Default::default(),
            metrics: Metrics::new(),
            tasks: tasks.clone(),
        };
        let ingester = Ingester::start(settings, deps);
        assert!(ingester.wait_running().await, "{:?}", tasks.failure());
        let mut running = self.network.running.lock();
        running.insert(name_of(i), (ingester, tasks));
    }

    async fn stop_ingester(&self, i: usize) {
        let stopped = self.network.running.lock().remove(&name_of(i));
        self.disks[i].kill();
        stopped.unwrap().1.stop().await;
    }

    /// Starts a member with an empty disk in the place of one.
    async fn replace_ingester(&self, i: usize) {
        self.stop_ingester(i).await;
        self.disks[i].wipe();
        let disk = self.disks[i].mount();
        disk.create_dir_all(Path::new("/data")).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        let incarnation = {
            let mut incarnations = self.incarnations.lock();
            incarnations[i] += 1000;
            Incarnation(incarnations[i])
        };
        self.network.change(|state| {
            state.members.get_mut(&name_of(i)).unwrap().incarnation = incarnation;
            for partition in state.partitions.values_mut() {
                partition.epoch += 1;
                let replica = partition.replicas.iter_mut().find(|r| r.member == name_of(i));
                let replica = replica.unwrap();
                (replica.incarnation, replica.counts) = (incarnation, false);
            }
        });
        self.start_ingester(i).await;
    }

    /// One that knows nothing yet.
    fn distributor(&self) -> Distributor {
        Distributor::new(koios_distributor::Deps {
            runtime: self.runtime(DiskHandle::inline(Arc::new(RealDisk))),
            state: self.network.state.clone(),
            members: Arc::new(self.network.clone()),
            limits: self.limits.clone(),
            metrics: Metrics::new(),
            tasks: self.tasks.clone(),
            referee: Arc::new(self.network.clone()),
            settings: koios_distributor::Settings::default(),
        })
    }

    /// Sends a sample of each of some series, as of now. Gives the status and the answer's text.
    async fn push(&self, distributor: &Distributor, numbers: Range<u32>) -> (u16, String) {
        let t = self.clock.now_ms();
        let series = |n: u32| {
            let labels = Labels::from_pairs([("__name__", "m".to_owned()), ("n", n.to_string())]);
            (labels, vec![Sample { t, v: f64::from(n) }])
        };
        let message = remote_write::request(&numbers.map(series).collect::<Vec<_>>());
        let request = http::Request::post("/api/v1/push")
            .header("content-type", "application/x-protobuf")
            .body(Body::from(remote_write::body(&message)));
        let answer = distributor.router().oneshot(request.unwrap()).await.unwrap();
        let (parts, body) = answer.into_parts();
        let body = to_bytes(body, 1 << 20).await.unwrap();
        (parts.status.as_u16(), String::from_utf8_lossy(&body).into_owned())
    }

    /// All of these series are stored.
    async fn takes(&self, distributor: &Distributor, numbers: Range<u32>) {
        let (status, text) = self.push(distributor, numbers.clone()).await;
        assert_eq!(status, 204, "series {numbers:?}: {text}");
    }

    /// None of these series is stored.
    async fn refuses(&self, distributor: &Distributor, numbers: Range<u32>) {
        let (status, text) = self.push(distributor, numbers.clone()).await;
        let wanted = format!("rejected: {0} samples of {0} series, written: 0", numbers.len());
        assert_eq!(status, 400, "series {numbers:?}: {text}");
        assert!(
            text.starts_with("series limit ") && text.contains(&wanted),
            "{text}"
        );
    }

    /// How many series a member has.
    async fn series_at(&self, i: usize) -> u64 {
        let mut sum = 0;
        for partition in self.network.state.current().partitions.values() {
            let request = HeldSeriesRequest {
                metrics: Arc::default(),
                tenant: TenantId::anonymous(),
                partition: partition.id,
                epoch: partition.epoch,
                references: Arc::default(),
            };
            let held = self.network.client(&name_of(i)).held_series(request).await;
            sum += held.unwrap().partition_series;
        }
        sum
    }
}

// Row 33.
#[tokio::test(start_paused = true)]
async fn a_restarted_distributor_at_the_limit_refuses_no_series_that_exists() {
    let cluster = Cluster::start(3, 1, 500).await;
    cluster.takes(&cluster.distributor(), 0..500).await;
    for round in 1..4 {
        let distributor = cluster.distributor();
        // Slices, while others try to take what room there may seem to be.
        for slice in 0..20 {
            cluster
                .refuses(
                    &distributor,
                    10_000 * round + slice * 50..10_000 * round + slice * 50 + 50,
                )
                .await;
            cluster.takes(&distributor, slice * 25..slice * 25 + 25).await;
        }
    }
    assert_eq!(cluster.series_at(0).await, 500);
}

// Row 33.
#[tokio::test(start_paused = true)]
async fn senders_may_move_to_another_distributor_at_the_limit() {
    let cluster = Cluster::start(3, 2, 500).await;
    let (one, two) = (cluster.distributor(), cluster.distributor());
    cluster.takes(&one, 0..250).await;
    cluster.takes(&two, 250..500).await;
    cluster.takes(&one, 200..500).await;
    cluster.takes(&two, 0..300).await;
    cluster.refuses(&one, 500..600).await;
    cluster.refuses(&two, 500..600).await;
    cluster.takes(&two, 0..500).await;
}

// Row 33.
#[tokio::test(start_paused = true)]
async fn a_limit_below_what_there_is_refuses_new_series_only() {
    let cluster = Cluster::start(3, 1, 0).await;
    let distributor = cluster.distributor();
    cluster.takes(&distributor, 0..500).await;
    cluster.limits.replace(limited(100), BTreeMap::new());
    for slice in (0..500).step_by(50) {
        cluster.takes(&distributor, slice..slice + 50).await;
        cluster.refuses(&distributor, 1000 + slice..1050 + slice).await;
    }
    cluster.limits.replace(limited(510), BTreeMap::new());
    cluster.takes(&distributor, 1000..1010).await;
    cluster.refuses(&distributor, 1010..1011).await;
    cluster.takes(&distributor, 0..500).await;
}

#[tokio::test(start_paused = true)]
async fn a_small_limit_is_not_exceeded_at_a_start() {
    for members in [1, 3] {
        let cluster = Cluster::start(members, 1, 50).await;
        let distributor = cluster.distributor();
        for _ in 0..10 {
            let pushes = (0..20).map(|n| cluster.push(&distributor, n * 40..n * 40 + 40));
            for (status, text) in futures::future::join_all(pushes).await {
                assert!([204, 400, 503].contains(&status), "{status} {text}");
            }
        }
        assert_eq!(cluster.series_at(0).await, 50);
    }
}

// Row 33.
#[tokio::test(start_paused = true)]
async fn a_tenant_that_rested_goes_on_with_its_series() {
    let cluster = Cluster::start(3, 1, 300).await;
    let distributor = cluster.distributor();
    cluster.takes(&distributor, 0..300).await;
    for hours in [1, 2, 1, 3] {
        cluster.clock.sleep(hours * HOUR).await;
        cluster.refuses(&distributor, 1000..1010).await;
        // Some are scraped rarely.
        cluster.takes(&distributor, 0..150).await;
        cluster.takes(&distributor, 100..300).await;
    }
    // Members forget what rests longer, which then no longer counts: there is room for other series.
    cluster.clock.sleep(12 * HOUR).await;
    assert_eq!(cluster.series_at(0).await, 0);
    cluster.takes(&distributor, 1000..1200).await;
    let (status, text) = loop {
        let answer = cluster.push(&distributor, 0..300).await;
        assert!(cluster.series_at(0).await <= 300);
        if answer.0 != 503 {
            break answer;
        }
        cluster.clock.sleep(Duration::from_secs(1)).await;
    };
    assert_eq!(status, 400, "{text}");
    assert!(
        text.contains("rejected: 200 samples of 200 series, written: 100"),
        "{text}"
    );
    assert_eq!(cluster.series_at(0).await, 300);
    cluster.takes(&distributor, 1000..1200).await;
}

// Row 33.
#[tokio::test(start_paused = true)]
async fn a_member_that_was_replaced_makes_no_series_new() {
    let cluster = Cluster::start(3, 1, 300).await;
    cluster.takes(&cluster.distributor(), 0..300).await;
    cluster.network.nobody_counts.store(true, Ordering::Relaxed);
    cluster.replace_ingester(2).await;
    let distributor = cluster.distributor();
    cluster.refuses(&distributor, 1000..1010).await;
    cluster.takes(&distributor, 0..150).await;
    // With another member away nobody can say that a series does not exist.
    cluster.stop_ingester(1).await;
    cluster.takes(&distributor, 100..300).await;
    let (status, text) = cluster.push(&distributor, 1000..1010).await;
    assert_eq!(status, 503, "{text}");
    cluster.start_ingester(1).await;
    cluster.network.nobody_counts.store(false, Ordering::Relaxed);
    cluster.clock.sleep(Duration::from_secs(120)).await;
    let state = cluster.network.state.current();
    assert!(state.partitions.values().all(|p| p.counting().count() == 3));
    for old in [0, 1] {
        cluster.stop_ingester(old).await;
        let distributor = cluster.distributor();
        cluster.takes(&distributor, 0..300).await;
        cluster.refuses(&distributor, 1000..1010).await;
        cluster.start_ingester(old).await;
    }
    assert_eq!(cluster.series_at(2).await, 300);
}

#[tokio::test(start_paused = true)]
async fn everybody_may_restart_at_the_limit() {
    let cluster = Cluster::start(3, 1, 300).await;
    cluster.takes(&cluster.distributor(), 0..300).await;
    for i in 0..3 {
        cluster.stop_ingester(i).await;
    }
    let distributor = cluster.distributor();
    let (status, text) = cluster.push(&distributor, 0..300).await;
    assert_eq!(status, 503, "{text}");
    for i in 0..3 {
        cluster.start_ingester(i).await;
    }
    cluster.takes(&distributor, 0..300).await;
    cluster.refuses(&distributor, 1000..1010).await;
}

#[tokio::test(start_paused = true)]
async fn the_limit_on_samples_is_for_all_distributors_together() {
    let cluster = Cluster::start(3, 2, 0).await;
    let distributors = [cluster.distributor(), cluster.distributor()];
    let limits = Limits {
        ingestion_rate: 100,
        ingestion_burst: 100,
        ..Limits::default()
    };
    cluster.limits.replace(limits, BTreeMap::new());
    // Three times as much comes to each for the first two minutes, then less than all may have to one of them.
    let mut admitted = [[0; 2]; 4];
    for (minute, of_minute) in admitted.iter_mut().enumerate() {
        for _ in 0..240 {
            let coming = if minute < 2 { [75, 75] } else { [22, 0] };
            for ((distributor, n), admitted) in distributors.iter().zip(coming).zip(&mut *of_minute) {
                for from in (0..n).step_by(11) {
                    let numbers = from..(from + 11).min(n);
                    let samples = numbers.len();
                    match cluster.push(distributor, numbers).await.0 {
                        204 => *admitted += samples,
                        status => assert_eq!(status, 429),
                    }
                }
            }
            cluster.clock.sleep(Duration::from_millis(250)).await;
        }
    }
    let [_, [one, two], _, alone] = admitted;
    assert!((5700..=6600).contains(&(one + two)), "{admitted:?}");
    assert!(one.min(two) > 2400, "{admitted:?}");
    assert_eq!(alone, [5280, 0], "{admitted:?}");
}
