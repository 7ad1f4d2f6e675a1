//! Starting, stopping, and what the parts share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use koios_bucket::Error as BucketError;
use koios_model::PartitionId;
use koios_runtime::{CancellationToken, Cpu, TaskError, watch};
use koios_wal::{Append, Committer, ReserveUse, Wal, WalSettings};
use koios_wire::{ServiceError, ServiceErrorCode};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::apply::Answer;
use crate::deps::Deps;
use crate::epochs::Gate;
use crate::record::{Entry, Reconciled};
use crate::snapshot::Kept;
use crate::store::Store;
use crate::stored_otherwise::StoredOtherwise;
use crate::{Error, Result, Settings};
use koios_runtime::with_sources;

/// Where an ingester is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Replaying,
    Running,
    Stopping,
    Stopped,
}

/// An ingester. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ingester {
    pub(crate) inner: Arc<Inner>,
}

/// What the parts of an ingester share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) settings: Settings,
    pub(crate) deps: Deps,
    pub(crate) store: Arc<Store>,
    pub(crate) pools: Pools,
    wal: OnceLock<Wal<Store>>,
    pub(crate) gates: Mutex<BTreeMap<PartitionId, Arc<Gate>>>,
    phase: watch::Sender<Phase>,
    /// KiB of batches that may wait for the replay of the log.
    waiting_kib: tokio::sync::Semaphore,
    /// Ends the background tasks, not the committer.
    pub(crate) background: CancellationToken,
    pub(crate) wake_repair: Notify,
    /// Segments are read one by one: each is held in memory whole.
    pub(crate) segment_reads: tokio::sync::Semaphore,
    /// Shared by deletions that read the log, while segments must not go.
    pub(crate) log_kept: tokio::sync::RwLock<()>,
    pub(crate) bucket_down: AtomicBool,
    pub(crate) disk: Mutex<DiskSpace>,
    pub(crate) kept_snapshot: Mutex<Kept>,
    pub(crate) stored_otherwise: StoredOtherwise,
}

/// What was last seen of the log's disk.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DiskSpace {
    /// When, by the monotonic clock.
    pub(crate) looked_at: Option<Duration>,
    /// Bytes free then, where that could be told.
    pub(crate) free: Option<u64>,
}

/// Threads of their own: applying must not wait for reads and blocks, nor these for each other.
#[derive(Debug)]
pub(crate) struct Pools {
    /// Applies what is replayed; hosts the committer then.
    pub(crate) apply: Cpu,
    /// Encodes blocks, decodes segments for peers: seconds at a time.
    pub(crate) long: Cpu,
}

impl Pools {
    fn new(cpu: &Cpu) -> Self {
        let separate = |name| {
            cpu.separate(name, 1).unwrap_or_else(|error| {
                tracing::warn!(%error, name, "no threads of its own; sharing");
                cpu.clone()
            })
        };
        Self {
            apply: separate("koios-apply"),
            long: separate("koios-cut"),
        }
    }
}

/// One hosted partition, for operators.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PartitionStatus {
    /// The partition.
    pub partition: PartitionId,
    /// The adopted epoch.
    pub epoch: u64,
    /// Whether this member answers reads of it.
    pub counts: bool,
    /// Whether a damaged log waits for repair or for an operator.
    pub damaged: bool,
    /// Tenants with data.
    pub tenants: usize,
    /// Series in memory.
    pub series: usize,
}

/// An ingester's state, for operators.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct IngesterStatus {
    /// The member's name.
    pub member: String,
    /// Whether the log is replayed and pushes are taken.
    pub running: bool,
    /// Live log segments.
    pub segments: usize,
    /// Bytes of batches in them.
    pub log_bytes: u64,
    /// Whether all that the last start found in the log is known to be on disk. Only a disk so full that nothing can be
    /// written in place leaves doubt, about a last group that was never answered.
    pub log_settled: bool,
    /// Whether the bucket failed last time.
    pub bucket_down: bool,
    /// Hosted partitions, ascending.
    pub partitions: Vec<PartitionStatus>,
}

impl Ingester {
    /// Starts an ingester: it replays its log in the background, then takes pushes and answers reads. A replay that
    /// fails, like every later fatal error, fails the task group.
    pub fn start(settings: Settings, deps: Deps) -> Self {
        let inner = Arc::new(Inner {
            background: deps.tasks.token().child_token(),
            store: Arc::new(Store::new(&deps, &settings)),
            wal: OnceLock::new(),
            gates: Mutex::default(),
            phase: watch::Sender::new(Phase::Replaying),
            waiting_kib: tokio::sync::Semaphore::new(settings.push_queue_bytes >> 10),
            pools: Pools::new(&deps.runtime.cpu),
            wake_repair: Notify::new(),
            segment_reads: tokio::sync::Semaphore::new(1),
            log_kept: tokio::sync::RwLock::default(),
            bucket_down: AtomicBool::new(false),
            disk: Mutex::default(),
            kept_snapshot: Mutex::default(),
            stored_otherwise: StoredOtherwise::default(),
            settings,
            deps,
        });
        // Before the replay, which may take long: what an operator accepts meanwhile is accepted of what it finds.
        let state = inner.deps.state.current();
        let epochs = state.partitions.values().map(|p| (p.id, p.epoch)).collect();
        let starting = Arc::clone(&inner);
        inner
            .deps
            .tasks
            .spawn("ingester start", async move { starting.run(epochs).await });
        Self { inner }
    }

    /// Waits until the log is replayed; false when the ingester ended instead.
    pub async fn wait_running(&self) -> bool {
        let mut phase = self.inner.phase.subscribe();
        let ended = self.inner.deps.tasks.token();
        let running = async {
            // The sender lives in `self`, so the channel cannot be closed.
            let found = phase.wait_for(|p| *p != Phase::Replaying).await;
            found.is_ok_and(|p| *p == Phase::Running)
        };
        tokio::select! {
            biased;
            running = running => running,
            () = ended.cancelled() => false,
        }
    }

    /// Whether pushes are taken and reads answered, as far as this member is concerned.
    pub fn is_running(&self) -> bool {
        self.inner.phase() == Phase::Running
    }

    /// Stops: takes no more pushes, writes and applies what has queued, ends the tasks. To be called before the task
    /// group is stopped.
    pub async fn stop(&self) {
        let inner = &self.inner;
        inner.phase.send_if_modified(|p| {
            let stops = *p != Phase::Stopped;
            if stops {
                *p = Phase::Stopping;
            }
            stops
        });
        inner.background.cancel();
        if let Some(wal) = inner.wal.get() {
            wal.close();
        }
        let mut phase = inner.phase.subscribe();
        // The sender lives in `self`, so the channel cannot be closed.
        let _ = phase.wait_for(|p| *p == Phase::Stopped).await;
    }

    /// The state, for operators.
    pub fn status(&self) -> IngesterStatus {
        self.inner.status()
    }
}

impl Inner {
    async fn run(self: Arc<Self>, epochs: BTreeMap<PartitionId, u64>) {
        let (wal, committer) = match self.replay(&epochs).await {
            Ok(started) => started,
            Err(_) if self.background.is_cancelled() => {
                self.phase.send_replace(Phase::Stopped);
                return;
            }
            Err(e) => return self.fail("ingester replay", &e),
        };
        if !wal.is_settled() {
            let dir = self.settings.wal_dir.display();
            tracing::warn!(%dir, "the disk has no room to store the log's last group again; if a sync had failed before, it is lost with the power");
        }
        let _ = self.wal.set(wal.clone());
        // Looked at after the log is in place: a stop either finds it there or is seen here.
        if self.background.is_cancelled() {
            wal.close();
        }
        let this = Arc::clone(&self);
        self.deps
            .tasks
            .spawn("ingester committer", async move { this.commit(committer).await });
        match self.after_replay().await {
            Err(e) if !self.background.is_cancelled() => return self.fail("ingester start", &e),
            _ => {}
        }
        self.phase.send_if_modified(|p| {
            let runs = *p == Phase::Replaying;
            if runs {
                *p = Phase::Running;
            }
            runs
        });
        self.spawn("ingester epochs", Self::follow_state);
        self.spawn("ingester repair", Self::repair_forever);
        self.spawn("ingester cut", Self::cut_forever);
        self.spawn("ingester snapshot", Self::snapshot_forever);
    }

    fn spawn<F>(self: &Arc<Self>, name: &'static str, task: impl FnOnce(Arc<Self>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (end, work) = (self.background.clone(), task(Arc::clone(self)));
        self.deps.tasks.spawn(name, async move {
            tokio::select! {
                biased;
                () = end.cancelled() => {}
                () = work => {}
            }
        });
    }

    async fn commit(&self, committer: Committer<Store>) {
        // It prepares and applies every batch: handing each over to another thread and back would cost more wake-ups than the
        // rest of a write.
        let committing = committer.run(self.deps.tasks.token().clone());
        let ended = self.pools.apply.host("koios-commit", committing).await;
        let ended = ended.map_err(koios_wal::Error::from).flatten();
        self.phase.send_replace(Phase::Stopped);
        if let Err(e) = ended {
            self.fail("ingester committer", &Error::Wal(e));
        }
    }

    fn fail(&self, task: &'static str, error: &Error) {
        let message = with_sources(error);
        self.phase.send_replace(Phase::Stopped);
        self.deps.tasks.fail(TaskError::Failed { task, message });
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub(crate) fn wal_settings(&self) -> WalSettings {
        let s = &self.settings;
        WalSettings {
            segment_bytes: s.wal_segment_bytes,
            reserve_bytes: s.disk_reserve_bytes,
            queue_bytes_max: s.push_queue_bytes,
            tenant_queue_bytes_max: s.push_queue_bytes / 2,
            ..WalSettings::new(&s.wal_dir)
        }
    }

    /// Why nothing can be asked of this member now.
    pub(crate) fn not_running(&self) -> Error {
        let what = match self.phase() {
            Phase::Replaying => "replays its log; retry shortly",
            Phase::Running => "has no log",
            Phase::Stopping | Phase::Stopped => "is stopping; use another member",
        };
        Error::NotRunning {
            member: self.deps.member.clone(),
            what,
        }
    }

    /// The log, once it is replayed and until the ingester stops.
    pub(crate) fn wal(&self) -> Result<&Wal<Store>> {
        if self.phase() != Phase::Running {
            return Err(self.not_running());
        }
        self.wal.get().ok_or_else(|| self.not_running())
    }

    /// Waits, for a bounded time, while the log is replayed: who is refused would only come again.
    pub(crate) async fn replayed(&self) {
        let mut phase = self.phase.subscribe();
        let replayed = phase.wait_for(|p| *p != Phase::Replaying);
        // What came of it is seen by the phase.
        let _ = self
            .deps
            .runtime
            .clock
            .timeout(self.settings.replay_patience, replayed)
            .await;
    }

    /// The same with what takes so many bytes, as long as not too much waits already.
    pub(crate) async fn replayed_with(&self, bytes: usize) {
        if self.phase() != Phase::Replaying {
            return;
        }
        let kib = bytes.div_ceil(1 << 10);
        let kib = u32::try_from(kib).unwrap_or(u32::MAX);
        if let Ok(_held) = self.waiting_kib.try_acquire_many(kib) {
            self.replayed().await;
        }
    }

    /// Appends one of the ingester's own records.
    pub(crate) async fn log(&self, entry: Entry) -> Result<Answer> {
        let wal = self.wal.get().ok_or_else(|| self.not_running())?;
        let append = Append {
            tenant: None,
            reserve: ReserveUse::All,
            kind: entry.kind(),
            payload: entry.payload(),
            weight: 0,
            entry,
        };
        wal.append(append).await?
    }

    /// Notes that damage found so far is made good for a partition.
    pub(crate) async fn log_reconciled(&self, partition: PartitionId, by: &str) -> Result<()> {
        tracing::warn!(%partition, by, "damage of the write-ahead log is made good");
        let by = by.to_owned();
        self.log(Entry::Reconciled(Reconciled { partition, by })).await?;
        Ok(())
    }

    /// Whether this member answers reads of a partition: the control state says that this very data directory counts,
    /// and nothing acknowledged may be missing from it.
    pub(crate) fn counts(&self, partition: PartitionId) -> bool {
        let state = self.deps.state.current();
        let in_state = state
            .partition(partition)
            .is_some_and(|p| p.counts(&self.deps.member, self.deps.incarnation()));
        in_state && self.phase() == Phase::Running && !self.is_damaged(partition)
    }

    /// Whether acknowledged batches of a partition may be missing because the log was damaged.
    pub(crate) fn is_damaged(&self, partition: PartitionId) -> bool {
        self.store.ledger.lock().is_unreconciled(partition)
    }

    /// An error of this member, with the control state it knows.
    pub(crate) fn refusal(&self, code: ServiceErrorCode, message: impl Into<String>) -> ServiceError {
        ServiceError::new(code, message).with_state_version(self.deps.state.current().version)
    }

    /// What a caller is told of an error.
    pub(crate) fn refuse(&self, error: &Error) -> ServiceError {
        error
            .to_service()
            .with_state_version(self.deps.state.current().version)
    }

    /// Notes how a request to the bucket ended: one that is of no use to repeat was answered, and so was one whose body was altered.
    pub(crate) fn note_bucket(&self, failure: Option<&BucketError>) {
        let is_down = failure.is_some_and(BucketError::is_outage);
        self.bucket_down.store(is_down, Ordering::Relaxed);
    }

    fn status(&self) -> IngesterStatus {
        let ledger = self.store.ledger.lock().clone();
        let partition = |(&partition, &epoch): (&PartitionId, &u64)| {
            let replicas = self.store.replicas_of(partition);
            PartitionStatus {
                partition,
                epoch,
                counts: self.counts(partition),
                damaged: ledger.is_unreconciled(partition),
                tenants: replicas.len(),
                series: replicas.iter().map(|r| r.state.read().head.series_count()).sum(),
            }
        };
        IngesterStatus {
            member: self.deps.member.clone(),
            running: self.phase() == Phase::Running,
            segments: self.wal.get().map_or(0, |w| w.segments().len()),
            log_bytes: self.store.segments.lock().bytes(),
            log_settled: self.wal.get().is_none_or(Wal::is_settled),
            bucket_down: self.bucket_down.load(Ordering::Relaxed),
            partitions: ledger.adopted.iter().map(partition).collect(),
        }
    }
}
