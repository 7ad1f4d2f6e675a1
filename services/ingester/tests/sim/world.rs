//! What outlives a process: its disk, the bucket, the control state, and what was promised.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;
use futures::TryStreamExt;
use koios_block::{BlockCache, BlockId};
use koios_bucket::{Blocks, Bucket, ManifestBlock, RetryPolicy, TenantManifests};
use koios_chunk::Run;
use koios_control::{
    AcceptedLoss, ClusterId, ClusterState, Command, Incarnation, LossId, Member, Partition, Replica, Role,
    StateHandle,
};
use koios_ingester::{ControlProposer, Deps, Ingester, Peers, Settings};
use koios_model::{Matchers, PartitionId, TenantId, TimeRange};
use koios_runtime::{
    CancellationToken, ClockHandle, Cpu, Disk, DiskHandle, MemoryWatch, RealNet, RngHandle, Runtime,
    TaskGroup,
};
use koios_server::Metrics;
use koios_testkit::sim_disk::SimDisk;
use koios_testkit::sim_pace::SimPace;
use koios_wal::Identity;
use koios_wire::{IngesterService, ServiceError};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use parking_lot::Mutex;

use crate::bucket::{SimBucket, Switches};
use crate::clock::SimClock;
use crate::deletions::Deletions;
use crate::judge::Judge;
use crate::trace::Trace;
use crate::traffic::{HOUR, Sent, T0, Traffic, places};
use crate::values::{Collected, Found, put_exemplars};

pub(crate) const DATA_DIR: &str = "/data";
pub(crate) const WAL_DIR: &str = "/data/wal";
const MEMBER: &str = "m0";
const CLUSTER: u128 = 77;
const INCARNATION: u128 = 1000;
/// How wrong the member's wall clock may be. With a sender's it stays below a day, after which metadata that nobody sends goes.
const WRONG_MS: i64 = 16 * HOUR;

/// Everything of a run. Shared by what acts in it.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) clock: ClockHandle,
    /// The same: the member's, and nobody else looks at its wall clock.
    pub(crate) wall: Arc<SimClock>,
    pub(crate) rng: RngHandle,
    pub(crate) trace: Trace,
    pub(crate) disk: SimDisk,
    objects: Arc<InMemory>,
    /// The tester's view of the bucket, to which nothing happens.
    pub(crate) manifests: TenantManifests,
    pub(crate) state: StateHandle,
    pub(crate) judge: Mutex<Judge>,
    pub(crate) traffic: Mutex<Traffic>,
    /// Sent and not acknowledged; to be sent again.
    pub(crate) pending: Mutex<Vec<Sent>>,
    pub(crate) deletions: Mutex<Deletions>,
    /// Since the last start.
    pub(crate) spare_flipped: AtomicBool,
    reader: Blocks,
    blocks: Mutex<BTreeMap<BlockId, Arc<Found>>>,
}

/// A process that runs.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) ingester: Ingester,
    pub(crate) tasks: TaskGroup,
    pub(crate) metrics: Metrics,
    pub(crate) bucket: Arc<Switches>,
    /// The run of the disk's host that it is.
    pub(crate) boot: u64,
    /// Syncs of log segments that had failed before.
    pub(crate) failed_syncs_before: usize,
}

/// There are no others.
#[derive(Debug)]
struct NoPeers;

impl Peers for NoPeers {
    fn ingester(&self, member: &Member) -> Arc<dyn IngesterService> {
        panic!("a single member asked for peer {}", member.name)
    }
}

#[derive(Debug)]
struct NoControl;

#[async_trait]
impl ControlProposer for NoControl {
    async fn propose(&self, _: Command) -> Result<(), ServiceError> {
        Err(ServiceError::unavailable("no control plane"))
    }
}

fn first_state() -> ClusterState {
    let member = Member {
        name: MEMBER.to_owned(),
        role: Role::Ingester,
        zone: "z".to_owned(),
        grpc_addr: String::new(),
        http_addr: String::new(),
        incarnation: Incarnation(INCARNATION),
        version: String::new(),
    };
    let partition = |id: PartitionId| Partition {
        id,
        epoch: 1,
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
        members: BTreeMap::from([(MEMBER.to_owned(), member)]),
        partitions: places().into_iter().map(|(p, _)| (p, partition(p))).collect(),
        ..ClusterState::default()
    }
}

/// Small segments and short waits, so that everything happens often.
fn settings(rng: &RngHandle) -> Settings {
    let second = Duration::from_secs(1);
    Settings {
        // One log is replayed under different ones.
        block_window: [7200 * second, 7200 * second, 7200 * second, 3600 * second][rng.below(4) as usize],
        wal_segment_bytes: [4 << 10, 16 << 10, 64 << 10][rng.below(3) as usize],
        disk_reserve_bytes: [0, 0, 8 << 10][rng.below(3) as usize],
        deletion_record_bytes: [64, 16 << 20][rng.below(2) as usize],
        push_queue_bytes: [8 << 10, 128 << 20][rng.below(2) as usize],
        head_keep: [600 * second, 2 * 3600 * second][rng.below(2) as usize],
        quiet_after: 2 * second,
        cut_interval: second / 4,
        cut_settle: second / 2,
        late_cut_interval: second,
        bucket_backoff: (second / 10, second),
        repair_interval: second / 2,
        repair_retry: second / 4,
        adopt_deadline: second / 4,
        ..Settings::new(WAL_DIR)
    }
}

/// A bucket client that gives up soon.
fn client(store: Arc<dyn ObjectStore>, clock: &ClockHandle, rng: RngHandle) -> TenantManifests {
    let policy = RetryPolicy {
        deadline: Duration::from_millis(500),
        ..RetryPolicy::default()
    };
    let bucket = Bucket::new(store, "", Arc::clone(clock), rng).with_retry(policy);
    TenantManifests::new(bucket, Duration::ZERO)
}

impl World {
    /// Must be called inside a runtime whose time is simulated.
    pub(crate) fn new(seed: u64) -> Self {
        let wall = Arc::new(SimClock::starting_at(T0));
        let clock: ClockHandle = Arc::clone(&wall) as _;
        let rng = RngHandle::from_seed(seed);
        let disk = SimDisk::new(rng.fork());
        disk.create_dir_all(Path::new(DATA_DIR)).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        let objects: Arc<InMemory> = Arc::default();
        let manifests = client(Arc::clone(&objects) as Arc<dyn ObjectStore>, &clock, rng.fork());
        let cache = Arc::new(BlockCache::new(1 << 20, 1 << 20));
        Self {
            trace: Trace::new(Arc::clone(&clock)),
            reader: Blocks::new(manifests.bucket().clone(), cache, 1 << 20),
            manifests,
            objects,
            disk,
            state: StateHandle::new(first_state()),
            judge: Mutex::default(),
            traffic: Mutex::new(Traffic::new(rng.fork())),
            pending: Mutex::default(),
            deletions: Mutex::default(),
            spare_flipped: AtomicBool::default(),
            blocks: Mutex::default(),
            clock,
            wall,
            rng,
        }
    }

    /// Starts the ingester on what the one before left.
    pub(crate) fn boot(&self) -> Process {
        let mount = self.disk.mount();
        let switches = Arc::<Switches>::default();
        let bucket = SimBucket {
            inner: Arc::clone(&self.objects),
            switches: Arc::clone(&switches),
            rng: self.rng.fork(),
            clock: Arc::clone(&self.clock),
        };
        let tasks = TaskGroup::new(CancellationToken::new());
        let metrics = Metrics::new();
        let pace = SimPace::new(self.rng.fork(), Arc::clone(&self.clock));
        let deps = Deps {
            runtime: Runtime {
                clock: Arc::clone(&self.clock),
                rng: self.rng.fork(),
                disk: DiskHandle::paced(Arc::new(mount), Arc::clone(&pace) as _),
                cpu: Cpu::paced(pace),
                net: Arc::new(RealNet),
                memory: MemoryWatch::default(),
            },
            member: MEMBER.to_owned(),
            identity: Identity {
                cluster: CLUSTER,
                incarnation: INCARNATION,
            },
            state: self.state.clone(),
            manifests: client(Arc::new(bucket), &self.clock, self.rng.fork()),
            peers: Arc::new(NoPeers),
            control: Arc::new(NoControl),
            limits: Default::default(),
            metrics: metrics.clone(),
            tasks: tasks.clone(),
        };
        self.judge.lock().totals.lives += 1;
        Process {
            ingester: Ingester::start(settings(&self.rng), deps),
            tasks,
            metrics,
            bucket: switches,
            boot: self.disk.boots(),
            failed_syncs_before: self.failed_syncs(),
        }
    }

    /// Somebody sets the member's wall clock: to the time, or so that it is wrong by up to many hours.
    pub(crate) fn set_clock(&self) {
        let by_hours = |hours: i64| self.rng.below(2 * (hours * HOUR) as u64) as i64 - hours * HOUR;
        let ahead_ms = match self.rng.below(4) {
            0 => 0,
            1 => by_hours(WRONG_MS / HOUR),
            _ => by_hours(1),
        };
        self.wall.set_ahead(ahead_ms);
        self.judge.lock().totals.clock_steps += 1;
        self.trace.note(format!("the wall clock is {ahead_ms} ms ahead"));
    }

    /// The first segment of the log.
    pub(crate) fn first_segment(&self) -> u64 {
        let files = self.disk.files_under(Path::new(WAL_DIR));
        let number = |p: &PathBuf| p.file_name()?.to_str()?.strip_suffix(".wal")?.parse().ok();
        files.iter().find_map(|(p, _)| number(p)).unwrap_or(1)
    }

    /// Failed syncs of log segments. One that has no name yet is thrown away; nothing was promised of it.
    pub(crate) fn failed_syncs(&self) -> usize {
        let failed = self.disk.failed_syncs();
        let of_log = |p: &&PathBuf| p.starts_with(WAL_DIR) && p.extension().is_some_and(|e| e == "wal");
        failed.iter().filter(of_log).count()
    }

    pub(crate) fn epoch(&self, partition: PartitionId) -> u64 {
        self.state.current().partition(partition).map_or(0, |p| p.epoch)
    }

    fn change_state(&self, change: impl FnOnce(&mut ClusterState)) {
        let mut state = ClusterState::clone(&self.state.current());
        state.version += 1;
        change(&mut state);
        self.state.offer(state);
    }

    /// A new epoch of a partition, as after a change of its members.
    pub(crate) fn raise_epoch(&self, partition: PartitionId) {
        self.change_state(|s| {
            if let Some(p) = s.partitions.get_mut(&partition) {
                p.epoch += 1;
            }
        });
    }

    /// An operator accepts what was lost.
    pub(crate) fn accept_losses(&self) {
        self.change_state(|s| {
            for p in s.partitions.values_mut() {
                p.epoch += 1;
                s.accepted_losses.push(AcceptedLoss {
                    partition: p.id,
                    epoch: p.epoch,
                    at_version: s.version,
                    note: "simulated".to_owned(),
                    lost: Vec::new(),
                    id: LossId(u128::from(s.version) << 8 | u128::from(p.id.0)),
                });
            }
        });
    }

    /// The listed blocks of a tenant, in a version that is not below `floor`.
    pub(crate) async fn listed(&self, tenant: &TenantId, floor: u64) -> Vec<ManifestBlock> {
        let manifest = match floor {
            0 => self.manifests.probe(tenant).await.unwrap(),
            _ => self.manifests.at_least(tenant, floor).await.unwrap(),
        };
        manifest.overlapping(TimeRange::ALL).cloned().collect()
    }

    /// What readers see of a block.
    pub(crate) async fn masked_block(&self, tenant: &TenantId, block: &ManifestBlock) -> Found {
        let mut all = Found::clone(&*self.block(tenant, block).await);
        let manifest = self.manifests.known(tenant).unwrap();
        for t in manifest.masking(block) {
            let matchers = t.matchers().unwrap();
            for (labels, points) in &mut all {
                if matchers.matches(labels.as_ref()) {
                    points.retain(|s| !t.range.contains(s.t));
                }
            }
        }
        all
    }

    /// What is in a block.
    async fn block(&self, tenant: &TenantId, block: &ManifestBlock) -> Arc<Found> {
        let known = self.blocks.lock().get(&block.block).cloned();
        if let Some(known) = known {
            return known;
        }
        let reader = self.reader.open(tenant, block).await.unwrap();
        let series = reader.select(&Matchers::default(), TimeRange::ALL).await.unwrap();
        let chunks = reader.read_chunks(&series, TimeRange::ALL).await.unwrap();
        let mut all = Found::new();
        for (s, chunks) in series.iter().zip(chunks) {
            let mut collected = Collected::default();
            for chunk in chunks {
                if let Err(e) = collected.add(&Run::Chunk(chunk)) {
                    self.trace
                        .violated(format!("block {}: {}: {e} (I2)", block.block, s.labels));
                }
            }
            collected.put(&mut all, &s.labels);
        }
        let exemplars = reader.scan_exemplars(Matchers::default(), TimeRange::ALL);
        let exemplars: Vec<_> = exemplars.try_collect().await.unwrap();
        for (labels, of_series) in exemplars.iter().flatten() {
            put_exemplars(&mut all, labels, of_series);
        }
        let all = Arc::new(all);
        self.blocks.lock().insert(block.block, Arc::clone(&all));
        all
    }
}

impl Process {
    /// Damaged places of the log that were reported since it started.
    pub(crate) fn damage(&self) -> u64 {
        self.counted("koios_ingester_wal_damage_total ")
    }

    /// Snapshots that were not used or not written since it started.
    pub(crate) fn snapshot_failures(&self) -> u64 {
        self.counted("koios_ingester_snapshot_failures_total ")
    }

    fn counted(&self, name: &str) -> u64 {
        let text = self.metrics.encode();
        let line = text.lines().find_map(|l| l.strip_prefix(name));
        line.and_then(|v| v.parse().ok()).unwrap()
    }

    /// Whether reads may be waiting for an operator.
    pub(crate) fn is_damaged(&self) -> bool {
        self.ingester.status().partitions.iter().any(|p| p.damaged)
    }
}
