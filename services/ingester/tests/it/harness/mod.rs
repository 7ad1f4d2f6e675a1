//! A partition of ingesters, and an oracle of what was acknowledged.

mod damage;
mod pace;
mod reading;
mod samples;
mod store;
mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use koios_bucket::{Bucket, RetryPolicy, TenantManifests};
use koios_control::{
    ClusterId, ClusterState, Command, Incarnation, Member, Partition, Replica, Role, StateHandle,
};
use koios_ingester::{ControlProposer, Deps, Ingester, Peers, Settings};
use koios_model::{BatchSet, PartitionId, TenantId};
use koios_runtime::{
    CancellationToken, ClockHandle, Cpu, DiskHandle, DiskNeeds, PaceHandle, RealDisk, RealNet, RngHandle,
    Runtime, TaskGroup, TokioClock,
};
use koios_server::Metrics;
use koios_testkit::down::DownIngester;
use koios_testkit::memory::PretendedMemory;
use koios_testkit::sim_disk::SimDisk;
use koios_wal::Identity;
use koios_wire::{BatchSetsRequest, FlushReply, FlushRequest, IngesterService, ServiceError};
use object_store::ObjectStore;
use parking_lot::Mutex;

use store::FaultyStore;

pub(crate) use pace::TestPace;
pub(crate) use samples::{Samples, collect, merge, without_starts};

pub(crate) const PARTITION: PartitionId = PartitionId(0);
/// The first moment of a window.
pub(crate) const T0: i64 = 1_700_006_400_000;
pub(crate) const MINUTE: i64 = 60_000;
pub(crate) const HOUR: i64 = 60 * MINUTE;
pub(crate) const CLUSTER: u128 = 77;

/// Where peers find each other; a member that is down is absent.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    members: Mutex<BTreeMap<String, Ingester>>,
    /// Those that reach nobody, though they are reached.
    cut_off: Mutex<BTreeSet<String>>,
}

/// The directory as one member sees it.
#[derive(Debug)]
struct Seen {
    directory: Arc<Directory>,
    by: String,
}

impl Peers for Seen {
    fn ingester(&self, member: &Member) -> Arc<dyn IngesterService> {
        let cut_off = self.directory.cut_off.lock().contains(&self.by);
        match self.directory.members.lock().get(&member.name) {
            Some(ingester) if !cut_off => Arc::new(ingester.clone()),
            _ => Arc::new(DownIngester),
        }
    }
}

/// The control plane: applies what is proposed.
#[derive(Debug)]
struct Control(StateHandle);

#[async_trait]
impl ControlProposer for Control {
    async fn propose(&self, command: Command) -> Result<(), ServiceError> {
        let Command::SetCounting {
            partition,
            epoch,
            member,
            incarnation,
        } = command
        else {
            return Err(ServiceError::invalid("unexpected command"));
        };
        let mut state = ClusterState::clone(&self.0.current());
        let p = state.partitions.get_mut(&partition).unwrap();
        assert_eq!(p.epoch, epoch);
        let replica = p.replicas.iter_mut().find(|r| r.member == member).unwrap();
        assert_eq!(replica.incarnation, incarnation);
        replica.counts = true;
        state.version += 1;
        self.0.offer(state);
        Ok(())
    }
}

pub(crate) struct Node {
    pub(crate) disk: SimDisk,
    /// What it says to need of the disk, of its last start.
    pub(crate) needs: DiskNeeds,
    pub(crate) incarnation: u128,
    pub(crate) ingester: Option<Ingester>,
    pub(crate) tasks: TaskGroup,
}

pub(crate) struct World {
    pub(crate) clock: ClockHandle,
    pub(crate) rng: RngHandle,
    pub(crate) state: StateHandle,
    pub(crate) store: Arc<FaultyStore>,
    pub(crate) manifests: TenantManifests,
    pub(crate) directory: Arc<Directory>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) acked: Samples,
    pub(crate) sent: BTreeMap<(String, i64), Vec<u64>>,
    pub(crate) tune: fn(&mut Settings),
    /// Of all members.
    pub(crate) memory: PretendedMemory,
    /// Of the disks of members that start.
    pub(crate) pace: Option<Arc<TestPace>>,
    machine: Option<PathBuf>,
    /// The sender's stream, and what it says to be settled of it.
    pub(crate) stream: u128,
    pub(crate) settled_below: u64,
    pub(crate) next: u64,
}

pub(crate) fn tenant() -> TenantId {
    TenantId::anonymous()
}

/// A data directory that stays.
fn with_data_dir(disk: SimDisk) -> SimDisk {
    use koios_runtime::Disk;
    disk.create_dir_all(Path::new("/data")).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    disk
}

pub(crate) fn name_of(node: usize) -> String {
    format!("m{node}")
}

impl World {
    /// `members` running ingesters that all count.
    pub(crate) async fn start(members: usize) -> Self {
        Self::start_with(members, |_| {}).await
    }

    pub(crate) async fn start_with(members: usize, tune: fn(&mut Settings)) -> Self {
        Self::start_on(None, members, tune).await
    }

    /// On the real disk, under `machine`, and on threads; or simulated.
    pub(crate) async fn start_on(machine: Option<PathBuf>, members: usize, tune: fn(&mut Settings)) -> Self {
        let clock: ClockHandle = Arc::new(TokioClock::starting_at(T0));
        let rng = RngHandle::from_seed(7);
        let store = Arc::new(FaultyStore::default());
        let bucket = Bucket::new(
            Arc::clone(&store) as Arc<dyn ObjectStore>,
            "",
            Arc::clone(&clock),
            rng.fork(),
        );
        let bucket = bucket.with_retry(RetryPolicy {
            deadline: Duration::from_secs(5),
            ..RetryPolicy::default()
        });
        let nodes = (0..members)
            .map(|i| Node {
                disk: with_data_dir(SimDisk::new(rng.fork())),
                needs: DiskNeeds::default(),
                incarnation: 1000 + i as u128,
                ingester: None,
                tasks: TaskGroup::new(CancellationToken::new()),
            })
            .collect();
        let mut world = Self {
            clock,
            rng,
            state: StateHandle::new(ClusterState::default()),
            store,
            manifests: TenantManifests::new(bucket, Duration::ZERO),
            directory: Arc::default(),
            nodes,
            acked: Samples::new(),
            sent: BTreeMap::new(),
            tune,
            memory: PretendedMemory::default(),
            pace: None,
            machine,
            stream: 5,
            settled_below: 0,
            next: 0,
        };
        world.state.offer(world.first_state());
        for i in 0..members {
            world.boot(i).await;
        }
        world
    }

    fn first_state(&self) -> ClusterState {
        let member = |i: usize| Member {
            name: name_of(i),
            role: Role::Ingester,
            zone: format!("z{i}"),
            grpc_addr: String::new(),
            http_addr: String::new(),
            incarnation: Incarnation(self.nodes[i].incarnation),
            version: String::new(),
        };
        let replicas = (0..self.nodes.len()).map(|i| Replica {
            member: name_of(i),
            zone: format!("z{i}"),
            incarnation: Incarnation(self.nodes[i].incarnation),
            counts: true,
        });
        let partition = Partition {
            id: PARTITION,
            epoch: 1,
            replicas: replicas.collect(),
            formed_at_version: 1,
        };
        ClusterState {
            version: 1,
            cluster_id: Some(ClusterId(CLUSTER)),
            members: (0..self.nodes.len()).map(|i| (name_of(i), member(i))).collect(),
            partitions: BTreeMap::from([(PARTITION, partition)]),
            ..ClusterState::default()
        }
    }

    /// Changes the control state, as its leader would.
    pub(crate) fn change_state(&self, change: impl FnOnce(&mut ClusterState)) {
        let mut state = ClusterState::clone(&self.state.current());
        change(&mut state);
        state.version += 1;
        self.state.offer(state);
    }

    pub(crate) fn change_partition(&self, change: impl FnOnce(&mut Partition)) {
        self.change_state(|s| change(s.partitions.get_mut(&PARTITION).unwrap()));
    }

    /// Starts a member and waits until its log is replayed.
    pub(crate) async fn boot(&mut self, i: usize) -> bool {
        let ingester = self.boot_only(i);
        ingester.wait_running().await
    }

    /// Starts a member.
    pub(crate) fn boot_only(&mut self, i: usize) -> Ingester {
        let mut settings = Settings::new(match &self.machine {
            Some(dir) => dir.join(name_of(i)),
            None => "/data/wal".into(),
        });
        settings.wal_segment_bytes = 64 << 10;
        settings.disk_reserve_bytes = 0;
        (self.tune)(&mut settings);
        let node = &mut self.nodes[i];
        node.tasks = TaskGroup::new(CancellationToken::new());
        let disk = match &self.machine {
            Some(_) => DiskHandle::threaded(Arc::new(RealDisk), 2).unwrap(),
            None => {
                let disk = Arc::new(node.disk.mount());
                match &self.pace {
                    Some(pace) => DiskHandle::paced(disk, Arc::clone(pace) as PaceHandle),
                    None => DiskHandle::inline(disk),
                }
            }
        };
        node.needs = disk.needs().clone();
        let deps = Deps {
            runtime: Runtime {
                clock: Arc::clone(&self.clock),
                rng: self.rng.fork(),
                disk,
                cpu: match &self.machine {
                    Some(_) => Cpu::threaded(3).unwrap(),
                    None => Cpu::inline(),
                },
                net: Arc::new(RealNet),
                memory: self.memory.watch(),
            },
            member: name_of(i),
            identity: Identity {
                cluster: CLUSTER,
                incarnation: node.incarnation,
            },
            state: self.state.clone(),
            manifests: TenantManifests::new(self.manifests.bucket().clone(), Duration::ZERO),
            peers: Arc::new(Seen {
                directory: Arc::clone(&self.directory),
                by: name_of(i),
            }),
            control: Arc::new(Control(self.state.clone())),
            limits: Default::default(),
            metrics: Metrics::new(),
            tasks: node.tasks.clone(),
        };
        let ingester = Ingester::start(settings, deps);
        node.ingester = Some(ingester.clone());
        self.directory.members.lock().insert(name_of(i), ingester.clone());
        ingester
    }

    /// Ends a member's tasks where they stand.
    async fn halt(&mut self, i: usize) {
        self.directory.members.lock().remove(&name_of(i));
        let node = &mut self.nodes[i];
        node.tasks.stop().await;
        node.ingester = None;
    }

    /// Power loss of one member.
    pub(crate) async fn crash(&mut self, i: usize) {
        self.nodes[i].disk.crash();
        self.halt(i).await;
    }

    /// Ends a member whose disk has crashed, and starts it again.
    pub(crate) async fn reboot(&mut self, i: usize) -> bool {
        self.halt(i).await;
        self.boot(i).await
    }

    /// The process of one member dies.
    pub(crate) async fn kill(&mut self, i: usize) {
        self.nodes[i].disk.kill();
        self.halt(i).await;
    }

    /// A member's disk is replaced: a new incarnation, registered, not counting, under a new epoch.
    pub(crate) async fn wipe(&mut self, i: usize) {
        self.halt(i).await;
        self.nodes[i].disk.wipe();
        with_data_dir(self.nodes[i].disk.clone());
        self.nodes[i].incarnation += 1000;
        let incarnation = Incarnation(self.nodes[i].incarnation);
        self.change_state(|s| {
            s.members.get_mut(&name_of(i)).unwrap().incarnation = incarnation;
            let p = s.partitions.get_mut(&PARTITION).unwrap();
            p.epoch += 1;
            p.replicas[i].incarnation = incarnation;
            p.replicas[i].counts = false;
        });
    }

    /// Lets a member reach no other, or all again.
    pub(crate) fn cut_off(&self, i: usize, cut_off: bool) {
        let mut members = self.directory.cut_off.lock();
        match cut_off {
            true => members.insert(name_of(i)),
            false => members.remove(&name_of(i)),
        };
    }

    pub(crate) fn node(&self, i: usize) -> &Ingester {
        self.nodes[i].ingester.as_ref().unwrap()
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.state.current().partition(PARTITION).unwrap().epoch
    }

    pub(crate) async fn sleep(&self, duration: Duration) {
        self.clock.sleep(duration).await;
    }

    /// Waits, in simulated time, until `true`.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        for _ in 0..100_000 {
            if condition(self) {
                return;
            }
            self.sleep(Duration::from_secs(1)).await;
        }
        panic!("never happened: {what}");
    }

    pub(crate) fn counts(&self, i: usize) -> bool {
        let status = self.node(i).status();
        status.partitions.first().is_some_and(|p| p.counts)
    }

    pub(crate) async fn flush(&self, i: usize) -> Result<FlushReply, ServiceError> {
        let request = FlushRequest {
            tenant: None,
            wait: true,
        };
        self.node(i).flush(request).await
    }

    /// A member's view of what is held and logged.
    pub(crate) async fn holdings(&self, i: usize) -> (BatchSet, BatchSet) {
        let request = BatchSetsRequest {
            partition: PARTITION,
            epoch: self.epoch(),
        };
        let mut reply = self.node(i).batch_sets(request).await.unwrap();
        let t = reply.tenants.remove(0);
        (t.held, t.logged)
    }

    pub(crate) fn wal_files(&self, i: usize) -> Vec<String> {
        use koios_runtime::Disk;
        let names = self.nodes[i].disk.list(Path::new("/data/wal")).unwrap();
        names.into_iter().filter(|n| n.ends_with(".wal")).collect()
    }
}
