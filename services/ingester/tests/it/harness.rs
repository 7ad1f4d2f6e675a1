//! A partition of ingesters, and an oracle of what was acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use koios_block::BlockCache;
use koios_bucket::{Blocks, Bucket, RetryPolicy, TenantManifests};
use koios_control::{
    ClusterId, ClusterState, Command, Incarnation, Member, Partition, Replica, Role, StateHandle,
};
use koios_ingester::{ControlProposer, Deps, Ingester, Peers, Settings};
use koios_model::merge::winner;
use koios_model::{
    BatchColumns, BatchSet, Exemplar, Histogram, Labels, Matchers, Metadata, PartitionId, SeriesHash,
    StreamId, TenantId, TenantSeed, TimeRange,
};
use koios_runtime::{
    CancellationToken, ClockHandle, Cpu, DiskHandle, RealDisk, RealNet, RngHandle, Runtime, TaskGroup,
    TokioClock,
};
use koios_server::Metrics;
use koios_testkit::memory::PretendedMemory;
use koios_testkit::sim_disk::SimDisk;
use koios_wal::Identity;
use koios_wire::{
    Batch, BatchHeader, BatchSetsReply, BatchSetsRequest, BatchStream, DeletionsReply, DeletionsRequest,
    ExemplarsRequest, FetchBatchesRequest, FlushReply, FlushRequest, IngesterService, LabelsReply,
    LabelsRequest, MetadataRequest, PushAck, ReadEnd, ReadItem, ReadRequest, ReadStream, SeriesExemplars,
    ServiceError,
};
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use parking_lot::Mutex;

pub(crate) const PARTITION: PartitionId = PartitionId(0);
/// The first moment of a window.
pub(crate) const T0: i64 = 1_700_006_400_000;
pub(crate) const MINUTE: i64 = 60_000;
pub(crate) const HOUR: i64 = 60 * MINUTE;
pub(crate) const CLUSTER: u128 = 77;

/// Samples by (series, time), values as bits.
pub(crate) type Samples = BTreeMap<(String, i64), u64>;

/// A store that can be switched off.
#[derive(Debug, Default)]
pub(crate) struct FaultyStore {
    inner: InMemory,
    pub(crate) down: AtomicBool,
    pub(crate) puts: AtomicU64,
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

impl FaultyStore {
    fn check(&self) -> object_store::Result<()> {
        if self.down.load(Ordering::Relaxed) {
            return Err(object_store::Error::Generic {
                store: "faulty",
                source: "switched off".into(),
            });
        }
        Ok(())
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(
        &self,
        path: &ObjectPath,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.check()?;
        self.puts.fetch_add(1, Ordering::Relaxed);
        self.inner.put_opts(path, payload, options).await
    }
    async fn put_multipart_opts(
        &self,
        path: &ObjectPath,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.check()?;
        self.inner.put_multipart_opts(path, options).await
    }
    async fn get_opts(&self, path: &ObjectPath, options: GetOptions) -> object_store::Result<GetResult> {
        self.check()?;
        self.inner.get_opts(path, options).await
    }
    async fn get_ranges(&self, path: &ObjectPath, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        self.check()?;
        self.inner.get_ranges(path, ranges).await
    }
    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<ObjectPath>>,
    ) -> BoxStream<'static, object_store::Result<ObjectPath>> {
        self.inner.delete_stream(paths)
    }
    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }
    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> object_store::Result<ListResult> {
        self.check()?;
        self.inner.list_with_delimiter(prefix).await
    }
    async fn copy_opts(
        &self,
        from: &ObjectPath,
        to: &ObjectPath,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// Where peers find each other; a member that is down is absent.
#[derive(Debug, Default)]
pub(crate) struct Directory(Mutex<BTreeMap<String, Ingester>>);

impl Peers for Directory {
    fn ingester(&self, member: &Member) -> Arc<dyn IngesterService> {
        match self.0.lock().get(&member.name) {
            Some(ingester) => Arc::new(ingester.clone()),
            None => Arc::new(Down),
        }
    }
}

#[derive(Debug)]
struct Down;

fn down<T>() -> Result<T, ServiceError> {
    Err(ServiceError::unavailable("member is down"))
}

#[async_trait]
impl IngesterService for Down {
    async fn push(&self, _: Arc<Batch>) -> Result<PushAck, ServiceError> {
        down()
    }
    async fn read(&self, _: ReadRequest) -> Result<ReadStream, ServiceError> {
        down()
    }
    async fn label_names(&self, _: LabelsRequest) -> Result<LabelsReply, ServiceError> {
        down()
    }
    async fn label_values(&self, _: LabelsRequest) -> Result<LabelsReply, ServiceError> {
        down()
    }
    async fn metadata(&self, _: MetadataRequest) -> Result<Vec<(String, Metadata)>, ServiceError> {
        down()
    }
    async fn exemplars(&self, _: ExemplarsRequest) -> Result<Vec<SeriesExemplars>, ServiceError> {
        down()
    }
    async fn batch_sets(&self, _: BatchSetsRequest) -> Result<BatchSetsReply, ServiceError> {
        down()
    }
    async fn fetch_batches(&self, _: FetchBatchesRequest) -> Result<BatchStream, ServiceError> {
        down()
    }
    async fn deletions(&self, _: DeletionsRequest) -> Result<DeletionsReply, ServiceError> {
        down()
    }

    async fn flush(&self, _: FlushRequest) -> Result<FlushReply, ServiceError> {
        down()
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
    machine: Option<PathBuf>,
    next: u64,
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
            machine,
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
        let deps = Deps {
            runtime: Runtime {
                clock: Arc::clone(&self.clock),
                rng: self.rng.fork(),
                disk: match &self.machine {
                    Some(_) => DiskHandle::threaded(Arc::new(RealDisk), 2).unwrap(),
                    None => DiskHandle::inline(Arc::new(node.disk.mount())),
                },
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
            peers: Arc::clone(&self.directory) as Arc<dyn Peers>,
            control: Arc::new(Control(self.state.clone())),
            metrics: Metrics::new(),
            tasks: node.tasks.clone(),
        };
        let ingester = Ingester::start(settings, deps);
        node.ingester = Some(ingester.clone());
        self.directory.0.lock().insert(name_of(i), ingester.clone());
        ingester
    }

    /// Ends a member's tasks where they stand.
    async fn halt(&mut self, i: usize) {
        self.directory.0.lock().remove(&name_of(i));
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

    pub(crate) fn node(&self, i: usize) -> &Ingester {
        self.nodes[i].ingester.as_ref().unwrap()
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.state.current().partition(PARTITION).unwrap().epoch
    }

    /// A batch of samples under the current epoch, each of its own stream. Series that begin with "hist" are of histograms
    /// with such sums, and an exemplar for each.
    pub(crate) fn batch(&mut self, samples: &[(&str, i64, f64)]) -> Arc<Batch> {
        self.next += 1;
        let seed = TenantSeed::new(b"", &tenant());
        let mut columns = BatchColumns::default();
        for &(series, t, v) in samples {
            let labels = Labels::from_pairs([("__name__", series)]);
            columns.push_series(SeriesHash::new(seed, labels.as_ref()), labels.as_ref());
            if series.starts_with("hist") {
                columns.push_started_histogram(
                    t,
                    start_of(series, t),
                    Histogram {
                        sum: v,
                        ..Histogram::default()
                    },
                );
                let labels = Labels::from_pairs([("trace_id", "a")]);
                columns.push_exemplar(Exemplar { t, v, labels });
            } else {
                columns.push_sample(t, v);
                columns.set_last_start(start_of(series, t));
            }
            if start_of(series, t) != 0 {
                let bits = start_of(series, t).cast_unsigned();
                self.sent
                    .entry((format!("{series} start"), t))
                    .or_default()
                    .push(bits);
            }
            self.sent
                .entry((series.to_owned(), t))
                .or_default()
                .push(v.to_bits());
        }
        Arc::new(Batch::new(self.header(), columns))
    }

    /// Of the batch that was begun last.
    fn header(&self) -> BatchHeader {
        BatchHeader {
            tenant: tenant(),
            stream: StreamId(5),
            sequence: self.next - 1,
            settled_below: 0,
            partition: PARTITION,
            epoch: self.epoch(),
            admission_ms: self.clock.now_ms(),
        }
    }

    /// Pushes an exemplar without any sample to a member.
    pub(crate) async fn push_exemplar(&mut self, i: usize, series: &str, t: i64) {
        self.next += 1;
        let mut columns = BatchColumns::default();
        let labels = Labels::from_pairs([("__name__", series)]);
        let seed = TenantSeed::new(b"", &tenant());
        columns.push_series(SeriesHash::new(seed, labels.as_ref()), labels.as_ref());
        let labels = Labels::from_pairs([("trace_id", "late")]);
        columns.push_exemplar(Exemplar { t, v: 1.0, labels });
        let batch = Arc::new(Batch::new(self.header(), columns));
        self.node(i).push(batch).await.unwrap();
    }

    /// Pushes to all members; acknowledged when a majority synced it.
    pub(crate) async fn write(&mut self, samples: &[(&str, i64, f64)]) -> bool {
        let to: Vec<usize> = (0..self.nodes.len()).collect();
        self.write_to(&to, samples).await
    }

    pub(crate) async fn write_to(&mut self, to: &[usize], samples: &[(&str, i64, f64)]) -> bool {
        self.write_while(to, samples, async {}).await
    }

    /// Pushes while something else happens.
    pub(crate) async fn write_while(
        &mut self,
        to: &[usize],
        samples: &[(&str, i64, f64)],
        meanwhile: impl Future<Output = ()>,
    ) -> bool {
        let batch = self.batch(samples);
        let pushes = to
            .iter()
            .filter_map(|&i| self.nodes[i].ingester.clone())
            .map(|m| {
                let batch = Arc::clone(&batch);
                async move { m.push(batch).await }
            });
        let (acks, ()) = futures::join!(futures::future::join_all(pushes), meanwhile);
        let acked = acks.iter().filter(|a| a.is_ok()).count() > self.nodes.len() / 2;
        if acked {
            for &(series, t, v) in samples {
                let kept = self
                    .acked
                    .entry((series.to_owned(), t))
                    .or_insert_with(|| v.to_bits());
                *kept = winner(f64::from_bits(*kept), v).to_bits();
                put_start(&mut self.acked, series, (t, start_of(series, t)));
            }
        }
        acked
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

    /// Reads a member's head.
    pub(crate) async fn read(&self, i: usize) -> Result<(Samples, ReadEnd), ServiceError> {
        let request = ReadRequest {
            tenant: tenant(),
            partition: PARTITION,
            epoch: self.epoch(),
            matchers: Matchers::default(),
            range: TimeRange::ALL,
            labels_only: false,
            encoded: false,
            limit: 0,
            deletions_version: 0,
        };
        collect(self.node(i).read(request).await?).await
    }

    /// What a querier answers: the head, and blocks where the head may have forgotten.
    pub(crate) async fn query(&self, i: usize) -> Samples {
        let (mut all, end) = self.read(i).await.unwrap();
        if end.forgotten_below_ms > i64::MIN {
            let below = TimeRange::new(i64::MIN, end.forgotten_below_ms - 1);
            merge(&mut all, self.blocks(end.manifest_floor, below).await);
        }
        all
    }

    /// The samples of all live blocks, as of a manifest version not below `floor`; as of the newest when it is 0.
    pub(crate) async fn blocks(&self, floor: u64, range: TimeRange) -> Samples {
        let manifest = match floor {
            0 => self.manifests.probe(&tenant()).await.unwrap(),
            _ => self.manifests.at_least(&tenant(), floor).await.unwrap(),
        };
        let blocks = Blocks::new(
            self.manifests.bucket().clone(),
            Arc::new(BlockCache::new(1 << 20, 1 << 20)),
            1 << 20,
        );
        let mut all = Samples::new();
        for block in manifest.overlapping(range) {
            let masks: Vec<_> = manifest
                .masking(block)
                .map(|t| (t.matchers().unwrap(), t.range))
                .collect();
            let reader = blocks.open(&tenant(), block).await.unwrap();
            let series = reader.select(&Matchers::default(), range).await.unwrap();
            let samples = reader.read_samples(&series, range).await.unwrap();
            let histograms = reader.read_histograms(&series).await.unwrap();
            for ((s, columns), chunks) in series.iter().zip(samples).zip(histograms) {
                let name = s.labels.metric_name().to_owned();
                let masked = |t: i64| {
                    let of_series =
                        |(m, r): &(Matchers, TimeRange)| r.contains(t) && m.matches(s.labels.as_ref());
                    masks.iter().any(of_series)
                };
                let (mut decoded, mut starts) = (Vec::new(), columns.starts.clone());
                for chunk in chunks {
                    chunk.decode_histograms(range, &mut decoded).unwrap();
                    chunk.decode_starts(range, &mut starts).unwrap();
                }
                starts.retain(|start| range.contains(start.0) && !masked(start.0));
                starts
                    .into_iter()
                    .for_each(|start| put_start(&mut all, &name, start));
                for (t, h) in decoded.into_iter().filter(|(t, _)| !masked(*t)) {
                    put(&mut all, (name.clone(), t), h.sum.to_bits());
                }
                for (&t, v) in columns.timestamps.iter().zip(&columns.values) {
                    if range.contains(t) && !masked(t) {
                        put(&mut all, (name.clone(), t), v.to_bits());
                    }
                }
            }
        }
        all
    }

    /// Metrics and times of all exemplars in listed blocks.
    pub(crate) async fn exemplars_of_blocks(&self) -> BTreeSet<(String, i64)> {
        let manifest = self.manifests.probe(&tenant()).await.unwrap();
        let cache = Arc::new(BlockCache::new(1 << 20, 1 << 20));
        let blocks = Blocks::new(self.manifests.bucket().clone(), cache, 1 << 20);
        let mut found = BTreeSet::new();
        for block in &manifest.blocks {
            let reader = blocks.open(&tenant(), block).await.unwrap();
            let scan = reader.scan_exemplars(Matchers::default(), TimeRange::ALL);
            let batches: Vec<_> = scan.try_collect().await.unwrap();
            for (labels, all) in batches.into_iter().flatten() {
                found.extend(all.iter().map(|e| (labels.metric_name().to_owned(), e.t)));
            }
        }
        found
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

    /// Nothing acknowledged is missing, and nothing is there that was not sent (I1, I2, I3).
    pub(crate) fn check(&self, found: &Samples) {
        for (at, bits) in &self.acked {
            let got = found.get(at);
            assert!(got.is_some(), "acknowledged sample {at:?} is missing");
            if self.sent[at].len() == 1 {
                assert_eq!(got, Some(bits), "{at:?}");
            }
        }
        for (at, bits) in found {
            assert!(self.sent[at].contains(bits), "phantom {at:?}");
        }
    }

    pub(crate) fn wal_files(&self, i: usize) -> Vec<String> {
        use koios_runtime::Disk;
        let names = self.nodes[i].disk.list(Path::new("/data/wal")).unwrap();
        names.into_iter().filter(|n| n.ends_with(".wal")).collect()
    }
}

impl World {
    /// Flips a bit in the nth batch of a member's first log segment, from 0.
    pub(crate) fn damage_batch(&self, i: usize, nth: usize) {
        use koios_runtime::Disk;
        let (disk, path) = (&self.nodes[i].disk, Path::new("/data/wal/0000000001.wal"));
        let bytes = disk.read(path).unwrap();
        let starts = bytes.windows(4).enumerate().filter(|(_, w)| *w == b"KL\x02\0");
        let at = starts.map(|(at, _)| at).nth(nth).unwrap();
        assert!(disk.flip_bit(path, at + 20, 3));
    }

    /// Removes a member's log segments but for the first `kept`.
    pub(crate) fn lose_segments(&self, i: usize, kept: usize) {
        use koios_runtime::Disk;
        let (disk, dir) = (&self.nodes[i].disk, Path::new("/data/wal"));
        for name in self.wal_files(i).into_iter().skip(kept) {
            disk.remove_file(&dir.join(name)).unwrap();
        }
        disk.sync_dir(dir).unwrap();
    }

    /// An operator accepts the loss of the partition.
    pub(crate) fn accept_loss(&self) {
        self.change_state(|s| {
            let p = s.partitions.get_mut(&PARTITION).unwrap();
            p.epoch += 1;
            let loss = koios_control::AcceptedLoss {
                partition: PARTITION,
                epoch: p.epoch,
                at_version: s.version + 1,
                note: "test".into(),
                lost: Vec::new(),
                id: koios_control::LossId(u128::from(s.version)),
            };
            s.accepted_losses.push(loss);
        });
    }
}

fn put(all: &mut Samples, at: (String, i64), bits: u64) {
    let kept = all.entry(at).or_insert(bits);
    *kept = winner(f64::from_bits(*kept), f64::from_bits(bits)).to_bits();
}

/// What a sample is sent with as its start timestamp; 0 for none.
fn start_of(series: &str, t: i64) -> i64 {
    match series {
        "a" | "b" | "hist" => (t.div_euclid(64) * 64 - 1).max(1),
        _ => 0,
    }
}

/// Puts a start timestamp among samples, as one of a series of its own; of several the largest stays, as of values.
fn put_start(all: &mut Samples, series: &str, (t, start): (i64, i64)) {
    if start != 0 {
        put(all, (format!("{series} start"), t), start.cast_unsigned());
    }
}

/// How many there are, start timestamps not counted.
pub(crate) fn without_starts(all: &Samples) -> usize {
    all.keys().filter(|(name, _)| !name.ends_with(" start")).count()
}

pub(crate) fn merge(all: &mut Samples, more: Samples) {
    more.into_iter().for_each(|(at, bits)| put(all, at, bits));
}

pub(crate) async fn collect(mut stream: ReadStream) -> Result<(Samples, ReadEnd), ServiceError> {
    let mut all = Samples::new();
    let mut last: Option<Labels> = None;
    while let Some(item) = stream.next().await {
        match item? {
            ReadItem::Series(series) => {
                for s in series {
                    assert!(last.as_ref().is_none_or(|l| *l < s.labels), "label order");
                    for run in s.runs {
                        let (mut ts, mut vs) = (Vec::new(), Vec::new());
                        run.decode_range(TimeRange::ALL, &mut ts, &mut vs).unwrap();
                        let mut histograms = Vec::new();
                        run.decode_histograms(TimeRange::ALL, &mut histograms).unwrap();
                        let mut starts = Vec::new();
                        run.decode_starts(TimeRange::ALL, &mut starts).unwrap();
                        let name = s.labels.metric_name();
                        starts
                            .into_iter()
                            .for_each(|start| put_start(&mut all, name, start));
                        let sums = histograms.into_iter().map(|(t, h)| (t, h.sum));
                        for (t, v) in ts.into_iter().zip(vs).chain(sums) {
                            put(&mut all, (s.labels.metric_name().to_owned(), t), v.to_bits());
                        }
                    }
                    last = Some(s.labels);
                }
            }
            ReadItem::End(end) => return Ok((all, end)),
        }
    }
    panic!("stream without end");
}
