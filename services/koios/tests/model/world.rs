//! What outlives processes: disks, the bucket, the control state, what was promised; and the processes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use koios_bucket::{Bucket, RetryPolicy, TenantManifests};
use koios_control::{ClusterId, ClusterState, Incarnation, Member, Partition, Replica, Role, StateHandle};
use koios_ingester::Ingester;
use koios_model::{PartitionId, StreamId, TenantId};
use koios_querier::{Cluster, DeletionsApi};
use koios_runtime::{ClockHandle, Disk, RngHandle, TaskGroup, TokioClock};
use koios_store::Compactor;
use koios_testkit::sim_bucket::{BucketFaults, BucketHandle, SimBucket};
use koios_testkit::sim_disk::SimDisk;
use parking_lot::Mutex;

use crate::network::{Directory, Network};
use crate::oracle::{About, Oracle};
use crate::steps::Step;

/// The first moment of a day.
pub(crate) const T0: i64 = 1_700_006_400_000;
pub(crate) const MINUTE: i64 = 60_000;
pub(crate) const HOUR: i64 = 60 * MINUTE;
pub(crate) const PARTITION: PartitionId = PartitionId(0);
pub(crate) const CLUSTER: u128 = 77;
pub(crate) const STORES: usize = 2;

/// How a run is set up.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) members: usize,
    /// Histograms, start timestamps and exemplars are sent, too: twice as many parts, and as many reads.
    pub(crate) is_rich: bool,
    /// Heads keep what is in listed blocks for so long.
    pub(crate) head_keep: Duration,
    /// Summaries are made of old samples.
    pub(crate) downsampling: bool,
    /// Samples older than this go; zero for never.
    pub(crate) retention: Duration,
    /// The tenant says so itself, and not the stores.
    pub(crate) is_own_retention: bool,
    /// The manifest is lost now and then.
    pub(crate) is_rebuilt: bool,
    /// Parts of blocks that are larger go in pieces.
    pub(crate) piece_bytes: usize,
    /// Small segments, so that the log is truncated.
    pub(crate) segment_bytes: u64,
    /// How long an operation on the bucket is waited for.
    pub(crate) patience: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            members: 1,
            is_rich: false,
            head_keep: Duration::ZERO,
            downsampling: false,
            retention: Duration::ZERO,
            is_own_retention: false,
            is_rebuilt: false,
            piece_bytes: 16 << 20,
            segment_bytes: 64 << 10,
            patience: Duration::from_secs(20),
        }
    }
}

impl Setup {
    /// What there is to read.
    pub(crate) fn all(&self) -> &'static [About] {
        match self.is_rich {
            true => &[About::Samples, About::Exemplars],
            false => &[About::Samples],
        }
    }

    /// Whether readers leave out what is older than the retention, before compaction does.
    pub(crate) fn hides_old(&self) -> bool {
        self.is_own_retention && !self.downsampling
    }
}

/// Whoever uses the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Actor {
    Ingester(usize),
    Store(usize),
    /// Takes deletions.
    Querier,
    /// Reads, with nothing in its caches.
    Reader,
    /// Rebuilds manifests.
    Operator,
}

/// An ingester's process.
#[derive(Debug)]
pub(crate) struct IngesterProcess {
    pub(crate) ingester: Ingester,
    pub(crate) tasks: TaskGroup,
}

/// What takes deletions.
#[derive(Debug)]
pub(crate) struct QuerierProcess {
    pub(crate) api: Arc<DeletionsApi>,
}

/// A batch that was not acknowledged yet.
pub(crate) type Unanswered = (u64, Arc<koios_wire::Batch>);

pub(crate) struct World {
    pub(crate) setup: Setup,
    pub(crate) clock: ClockHandle,
    pub(crate) rng: RngHandle,
    pub(crate) bucket: SimBucket,
    /// The tester's view, to which nothing happens.
    pub(crate) manifests: TenantManifests,
    pub(crate) network: Network,
    pub(crate) disks: Vec<SimDisk>,
    /// One process starts at a time: two of one member would share its disk.
    pub(crate) starting: tokio::sync::Mutex<()>,
    pub(crate) tenant: TenantId,
    pub(crate) stream: StreamId,
    pub(crate) oracle: Mutex<Oracle>,
    pub(crate) trace: Mutex<Vec<String>>,
    pub(crate) handles: Mutex<BTreeMap<Actor, BucketHandle>>,
    /// Those of processes that ended.
    pub(crate) past: Mutex<Vec<BucketHandle>>,
    /// Faults that processes have from their start on.
    pub(crate) faults: Mutex<BucketFaults>,
    pub(crate) ingesters: Mutex<Vec<Option<IngesterProcess>>>,
    pub(crate) stores: [tokio::sync::Mutex<Option<Compactor>>; STORES],
    pub(crate) querier: Mutex<Option<QuerierProcess>>,
    pub(crate) reader: Mutex<Option<Arc<Cluster>>>,
    pub(crate) sequence: Mutex<u64>,
    pub(crate) unanswered: Mutex<Vec<Unanswered>>,
    /// The manifest version up to which deletions were noted.
    pub(crate) noted: Mutex<u64>,
    pub(crate) deletions: Mutex<u64>,
    /// The first promise that was broken in the middle of a step.
    pub(crate) violation: Mutex<Option<String>>,
}

fn first_state(members: usize) -> ClusterState {
    let member = |i: usize| Member {
        name: name_of(i),
        role: Role::All,
        zone: format!("z{i}"),
        grpc_addr: String::new(),
        http_addr: String::new(),
        incarnation: Incarnation(1000 + i as u128),
        version: String::new(),
    };
    let replica = |i: usize| Replica {
        member: name_of(i),
        zone: format!("z{i}"),
        incarnation: Incarnation(1000 + i as u128),
        counts: true,
    };
    let partition = Partition {
        id: PARTITION,
        epoch: 1,
        replicas: (0..members).map(replica).collect(),
        formed_at_version: 1,
    };
    ClusterState {
        version: 1,
        cluster_id: Some(ClusterId(CLUSTER)),
        members: (0..members).map(|i| (name_of(i), member(i))).collect(),
        partitions: BTreeMap::from([(PARTITION, partition)]),
        ..ClusterState::default()
    }
}

pub(crate) fn name_of(member: usize) -> String {
    format!("m{member}")
}

impl World {
    /// Must be called inside a runtime whose time is paused.
    pub(crate) async fn new(seed: u64, setup: Setup) -> Self {
        let clock: ClockHandle = Arc::new(TokioClock::starting_at(T0 + 26 * HOUR));
        let rng = RngHandle::from_seed(seed);
        let bucket = SimBucket::new(Arc::clone(&clock), rng.fork());
        let tester = bucket.handle("tester");
        let disk = |_| {
            let disk = SimDisk::new(rng.fork());
            disk.create_dir_all(Path::new("/data")).unwrap();
            disk.sync_dir(Path::new("/")).unwrap();
            disk
        };
        let disks: Vec<SimDisk> = (0..setup.members).map(disk).collect();
        let network = Network {
            directory: Arc::<Directory>::default(),
            state: StateHandle::new(first_state(setup.members)),
        };
        let world = Self {
            manifests: client(&tester, &clock, rng.fork(), &setup),
            ingesters: Mutex::new((0..setup.members).map(|_| None).collect()),
            stores: Default::default(),
            querier: Mutex::default(),
            reader: Mutex::default(),
            tenant: TenantId::new("model").unwrap(),
            stream: StreamId(rng.u128()),
            oracle: Mutex::default(),
            trace: Mutex::default(),
            handles: Mutex::default(),
            past: Mutex::default(),
            faults: Mutex::default(),
            sequence: Mutex::default(),
            unanswered: Mutex::default(),
            noted: Mutex::default(),
            deletions: Mutex::default(),
            violation: Mutex::default(),
            setup,
            clock,
            rng,
            bucket,
            network,
            disks,
            starting: tokio::sync::Mutex::default(),
        };
        world.start_reader();
        for actor in world.actors() {
            world.start(actor).await;
        }
        world
    }

    /// Everybody.
    pub(crate) fn actors(&self) -> Vec<Actor> {
        let ingesters = (0..self.setup.members).map(Actor::Ingester);
        let stores = (0..STORES).map(Actor::Store);
        ingesters
            .chain(stores)
            .chain([Actor::Querier, Actor::Reader, Actor::Operator])
            .collect()
    }

    pub(crate) fn handle(&self, actor: Actor) -> BucketHandle {
        self.handles.lock()[&actor].clone()
    }

    pub(crate) fn note(&self, what: impl AsRef<str>) {
        let line = format!("{:>9} ms  {}", self.clock.elapsed().as_millis(), what.as_ref());
        self.trace.lock().push(line);
    }

    /// What all processes asked for of the objects of which something has gone wrong.
    pub(crate) fn journal_of(&self, violation: &str) -> Vec<String> {
        let folder = violation
            .split_once("/blocks/")
            .and_then(|(_, rest)| rest.split('/').next());
        let Some(block) = folder else { return Vec::new() };
        let handles = self.handles.lock();
        let past = self.past.lock();
        let all = past
            .iter()
            .chain(handles.values())
            .flat_map(BucketHandle::journal);
        all.filter(|line| line.contains(block)).collect()
    }

    pub(crate) async fn sleep(&self, seconds: u64) {
        self.clock.sleep(Duration::from_secs(seconds)).await;
    }

    /// Whoever died; returns when somebody did.
    pub(crate) async fn somebody_died(&self) -> Actor {
        let handles = self.handles.lock().clone();
        let deaths = handles.into_iter().map(|(actor, handle)| {
            Box::pin(async move {
                handle.died().await;
                actor
            })
        });
        futures::future::select_all(deaths).await.0
    }

    /// Does a step, again and again where its actors die or the bucket fails, until it is done.
    pub(crate) async fn until_done(&self, step: &Step) -> Result<(), String> {
        const TRIES: usize = 60;
        let mut last = String::new();
        if let Step::Restart(_) = step {
            // Who dies then is started there.
            self.perform(step).await?;
            return self.check_read(&format!("after {step:?}")).await;
        }
        for _ in 0..TRIES {
            tokio::select! {
                biased;
                actor = self.somebody_died() => self.bury(actor, step).await?,
                done = self.perform(step) => match done {
                    Ok(()) => {
                        self.note(format!("{step:?} is done"));
                        return self.check_read(&format!("after {step:?}")).await;
                    }
                    Err(failure) => {
                        self.note(format!("{step:?}: {failure}"));
                        last = failure;
                        self.sleep(5).await;
                    }
                },
            }
        }
        Err(format!("{step:?} is never done: {last}"))
    }

    /// Starts a dead process again and looks that nothing is wrong meanwhile.
    pub(crate) async fn bury(&self, actor: Actor, during: &Step) -> Result<(), String> {
        self.note(format!("{actor:?} dies during {during:?}"));
        self.start(actor).await;
        self.check_read(&format!("after {actor:?} died during {during:?}"))
            .await
    }

    /// A bucket client that gives up in good time.
    pub(crate) fn client(&self, handle: &BucketHandle) -> TenantManifests {
        client(handle, &self.clock, self.rng.fork(), &self.setup)
    }

    /// What is older may be gone.
    pub(crate) fn kept_from(&self) -> Option<i64> {
        let kept = i64::try_from(self.setup.retention.as_millis()).unwrap();
        (kept > 0).then(|| self.clock.now_ms() - kept)
    }
}

fn client(handle: &BucketHandle, clock: &ClockHandle, rng: RngHandle, setup: &Setup) -> TenantManifests {
    let patience = setup.patience;
    let policy = RetryPolicy {
        attempt_timeout: patience,
        deadline: 3 * patience / 2,
        ..RetryPolicy::default()
    };
    let bucket = Bucket::new(Arc::new(handle.clone()), "", Arc::clone(clock), rng);
    let bucket = bucket.with_retry(policy).with_pieces_of(setup.piece_bytes);
    TenantManifests::new(bucket, Duration::ZERO)
}
