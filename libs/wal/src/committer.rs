//! Group commit: appends queue, the committer writes, syncs, applies and answers.

mod rolling;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use koios_model::TenantId;
use koios_runtime::{CancellationToken, ClockHandle, Cpu, Disk, DiskHandle};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::error::NoRoom;
use crate::format::{Keys, RECORD_HEADER_BYTES};
use crate::queue::FairQueue;
use crate::replay::{Reader, SegmentContent};
use crate::segment::{Active, GroupBuffer, path_of};
use crate::{Error, Lsn, RECORD_BYTES_MAX, RecordKind, Result, WalSettings};

/// What a group's commit took, for metrics.
#[derive(Clone, Copy, Debug)]
pub struct GroupStats {
    /// From the submission to the disk until the sync returned.
    pub sync: Duration,
    /// Bytes written.
    pub bytes: usize,
    /// Records in the group.
    pub records: usize,
}

/// What is done with records. Called by the committer only; records are prepared while those before them are applied.
pub trait Apply: Send + Sync + 'static {
    /// What an append carries beside its bytes.
    type Entry: Send + 'static;
    /// What an append is answered with.
    type Answer: Send + 'static;
    /// Why a record is not written.
    type Refusal: Send + 'static;

    /// Gives what stands in the record before its payload, which may depend on the segment it is written to; called in log
    /// order, again when it is written to a later segment after all. Records of segments before are durable then, and
    /// those of this one come before it.
    ///
    /// # Errors
    /// The refusal, upon which nothing of the record is written.
    fn prepare(&self, segment: u32, entry: &mut Self::Entry) -> Result<Vec<u8>, Self::Refusal>;

    /// A prepared record is not written.
    fn give_up(&self, entry: Self::Entry);

    /// Applies a durable record; called in log order. Its append is answered at once.
    fn apply(&self, lsn: Lsn, entry: Self::Entry) -> Self::Answer;

    /// The state after everything applied so far, to be carried into a new segment, whose checkpoint stands at `lsn`.
    fn checkpoint(&self, lsn: Lsn) -> Vec<u8>;

    /// The log has begun a segment: everything applied so far is before it.
    fn begun(&self, _segment: u32) {}

    /// Bytes that the next segment should have beside its checkpoint, if the settings say less; a GiB at most.
    fn segment_bytes(&self) -> u64 {
        0
    }

    /// A group is durable.
    fn synced(&self, _stats: GroupStats) {}
}

/// A record to append.
#[derive(Debug)]
pub struct Append<E> {
    /// Whose queue it waits in; `None` for the system's own records, which go first.
    pub tenant: Option<TenantId>,
    /// How much of the disk reserve it may use.
    pub reserve: ReserveUse,
    /// What it holds.
    pub kind: RecordKind,
    /// Its content, or the end of it, before which [`Apply::prepare`] puts the rest.
    pub payload: Bytes,
    /// Memory that the entry holds beside the payload, bytes: counted while it waits.
    pub weight: usize,
    /// What is applied once it is durable.
    pub entry: E,
}

/// How much of the disk reserve a record may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReserveUse {
    /// Nothing: what tenants send.
    None,
    /// Half of it: what must be logged before space can be given back, and may be much.
    Half,
    /// All: what gives space back.
    All,
}

/// What waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Records.
    pub records: usize,
    /// Bytes of memory.
    pub bytes: usize,
}

/// What an append is answered with: the refusal stands beside the log's own errors.
type Reply<A> = Result<Result<<A as Apply>::Answer, <A as Apply>::Refusal>>;

struct Waiting<A: Apply> {
    append: Append<A::Entry>,
    reply: oneshot::Sender<Reply<A>>,
}

/// A record that is ready for a segment.
struct Prepared<A: Apply> {
    prefix: Vec<u8>,
    waiting: Waiting<A>,
}

impl<A: Apply> Prepared<A> {
    fn len(&self) -> usize {
        self.prefix
            .len()
            .saturating_add(self.waiting.append.payload.len())
    }

    fn parts(&self) -> [&[u8]; 2] {
        [&self.prefix, &self.waiting.append.payload]
    }

    fn reserve(&self) -> ReserveUse {
        self.waiting.append.reserve
    }
}

enum Gate {
    Open,
    /// What is queued is still written.
    Closing,
    /// The committer has ended.
    Closed,
    Poisoned(String),
}

struct State<A: Apply> {
    queue: FairQueue<Waiting<A>>,
    gate: Gate,
    /// Live segments, the active one last.
    segments: Vec<u32>,
    /// Everything before it is durable.
    synced: Lsn,
}

struct Shared<A: Apply> {
    settings: WalSettings,
    reader: Reader,
    state: Mutex<State<A>>,
    settled: bool,
    wake: Notify,
}

/// The log's handle. Cheap to clone.
pub struct Wal<A: Apply> {
    shared: Arc<Shared<A>>,
}

impl<A: Apply> Clone for Wal<A> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<A: Apply> std::fmt::Debug for Wal<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.shared.state.lock();
        f.debug_struct("Wal")
            .field("segments", &state.segments)
            .field("synced", &state.synced)
            .field("queued", &state.queue.len())
            .finish_non_exhaustive()
    }
}

impl<A: Apply> Wal<A> {
    /// Appends a record: `Ok` of an answer when it is durable and applied, of a refusal when it was refused.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::QueueFull`] and [`Error::TooLarge`] when it was not written; [`Error::Poisoned`] and
    /// [`Error::Closed`] when that is unknown.
    ///
    /// # Cancel safety
    /// A dropped future does not take the record back.
    pub async fn append(&self, append: Append<A::Entry>) -> Result<Result<A::Answer, A::Refusal>> {
        let reply = self.enqueue(append)?;
        reply.await.unwrap_or(Err(Error::Closed))
    }

    fn enqueue(&self, append: Append<A::Entry>) -> Result<oneshot::Receiver<Reply<A>>> {
        let bytes = append.payload.len().saturating_add(RECORD_HEADER_BYTES);
        if bytes > RECORD_BYTES_MAX {
            return Err(Error::TooLarge { bytes });
        }
        let mut state = self.shared.state.lock();
        match &state.gate {
            Gate::Open => {}
            Gate::Poisoned(reason) => {
                return Err(Error::Poisoned {
                    reason: reason.clone(),
                });
            }
            Gate::Closing | Gate::Closed => return Err(Error::Closed),
        }
        let weight = bytes.saturating_add(append.weight);
        self.check_room(&state.queue, append.tenant.as_ref(), weight)?;
        let (reply, receiver) = oneshot::channel();
        let key = append.tenant.clone();
        state.queue.push(key, bytes, weight, Waiting { append, reply });
        drop(state);
        self.shared.wake.notify_one();
        Ok(receiver)
    }

    /// The system's records always find room: they are few, small, and what frees space.
    fn check_room(
        &self,
        queue: &FairQueue<Waiting<A>>,
        tenant: Option<&TenantId>,
        weight: usize,
    ) -> Result<()> {
        let Some(id) = tenant else { return Ok(()) };
        let settings = &self.shared.settings;
        let key = Some(id.clone());
        for (waiting, limit) in [
            (queue.weight_of(&key), settings.tenant_queue_bytes_max),
            (queue.weight(), settings.queue_bytes_max),
        ] {
            // An empty queue takes a record of any size, else a large one could never pass.
            if waiting > 0 && waiting.saturating_add(weight) > limit {
                return Err(Error::QueueFull {
                    queue: Error::queue_name(tenant),
                    waiting,
                    limit,
                });
            }
        }
        Ok(())
    }

    /// What waits for the committer.
    pub fn queue_stats(&self) -> QueueStats {
        let state = self.shared.state.lock();
        QueueStats {
            records: state.queue.len(),
            bytes: state.queue.weight(),
        }
    }

    /// The live segments, ascending; the last one takes appends.
    pub fn segments(&self) -> Vec<u32> {
        self.shared.state.lock().segments.clone()
    }

    /// Whether all that was replayed is known to be durable. The disk had no room to store the last group again otherwise: if a
    /// sync of it had failed, it is in memory only. It was never answered then.
    pub fn is_settled(&self) -> bool {
        self.shared.settled
    }

    /// Everything before it is durable.
    pub fn synced(&self) -> Lsn {
        self.shared.state.lock().synced
    }

    /// Reads a live segment up to what is durable; `None` when it is gone.
    ///
    /// # Errors
    /// [`Error::Disk`]. Damage is no error but part of the content.
    pub async fn read_segment(&self, number: u32) -> Result<Option<SegmentContent>> {
        self.shared.reader.read(number, self.synced()).await
    }

    /// Removes the segments below `number`, oldest first; the active one always stays. Returns how many went.
    ///
    /// # Errors
    /// [`Error::Disk`]; what was removed before stays removed.
    pub async fn remove_below(&self, number: u32) -> Result<usize> {
        let doomed: Vec<u32> = {
            let state = self.shared.state.lock();
            let active = state.segments.last().copied().unwrap_or(0);
            let below = |n: &u32| *n < number && *n != active;
            state.segments.iter().copied().filter(below).collect()
        };
        for &segment in &doomed {
            let dir = self.shared.reader.dir.clone();
            self.shared
                .reader
                .disk
                .run(move |d| {
                    match d.remove_file(&path_of(&dir, segment)) {
                        // By a call before, whose sync failed.
                        Err(e) if !e.is_not_found() => Err(e),
                        _ => d.sync_dir(&dir),
                    }
                })
                .await?;
            self.shared.state.lock().segments.retain(|&s| s != segment);
        }
        Ok(doomed.len())
    }

    /// Takes no more appends; what is queued is still committed, then the committer ends.
    pub fn close(&self) {
        let mut state = self.shared.state.lock();
        if matches!(state.gate, Gate::Open) {
            state.gate = Gate::Closing;
        }
        drop(state);
        self.shared.wake.notify_one();
    }
}

/// The task that commits.
pub struct Committer<A: Apply> {
    shared: Arc<Shared<A>>,
    disk: DiskHandle,
    keys: Keys,
    active: Active,
    apply: Arc<A>,
    cpu: Cpu,
    clock: ClockHandle,
}

impl<A: Apply> std::fmt::Debug for Committer<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Committer")
            .field("active", &self.active)
            .finish_non_exhaustive()
    }
}

/// A durable group that is not applied yet.
struct Durable<A: Apply> {
    lsns: Vec<Lsn>,
    records: Vec<Prepared<A>>,
}

fn size_of<A: Apply>(group: &[Prepared<A>]) -> usize {
    GroupBuffer::size(group.iter().map(Prepared::len))
}

pub(crate) fn start<A: Apply>(
    settings: WalSettings,
    reader: Reader,
    mut segments: Vec<u32>,
    (active, settled): (Active, bool),
    apply: Arc<A>,
    cpu: Cpu,
    clock: ClockHandle,
) -> (Wal<A>, Committer<A>) {
    segments.push(active.number());
    apply.begun(active.number());
    let (disk, keys) = (reader.disk.clone(), Keys::new(reader.identity));
    let shared = Arc::new(Shared {
        settings,
        reader,
        state: Mutex::new(State {
            queue: FairQueue::default(),
            gate: Gate::Open,
            segments,
            synced: active.position(),
        }),
        settled,
        wake: Notify::new(),
    });
    let wal = Wal {
        shared: Arc::clone(&shared),
    };
    let committer = Committer {
        shared,
        disk,
        keys,
        active,
        apply,
        cpu,
        clock,
    };
    (wal, committer)
}

/// However it ends, nobody waits for it afterwards.
impl<A: Apply> Drop for Committer<A> {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        if matches!(state.gate, Gate::Open) {
            state.gate = Gate::Poisoned("its committer ended before it was closed".to_owned());
        }
        let left = state.queue.take(usize::MAX);
        drop(state);
        // Their receivers answer with [`Error::Closed`].
        drop(left);
    }
}

impl<A: Apply> Committer<A> {
    /// Commits until [`Wal::close`] was called and the queue is drained, or until `cancel`, after which nothing more is
    /// written.
    ///
    /// # Errors
    /// A failed write, sync or apply: the log is poisoned and the process must end.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<()> {
        let result = self.commit_all(&cancel).await;
        let gate = match &result {
            Ok(()) => Gate::Closed,
            Err(e) => Gate::Poisoned(e.to_string()),
        };
        self.shared.state.lock().gate = gate;
        result
    }

    async fn commit_all(&mut self, cancel: &CancellationToken) -> Result<()> {
        let mut durable: Option<Durable<A>> = None;
        loop {
            let group = if cancel.is_cancelled() {
                Vec::new()
            } else {
                let mut state = self.shared.state.lock();
                state.queue.take(self.shared.settings.group_bytes_max)
            };
            durable = match (group.is_empty(), durable.take()) {
                (true, Some(d)) => {
                    self.apply_and_answer(d).await?;
                    None
                }
                (true, None) => {
                    if !self.wait(cancel).await {
                        return Ok(());
                    }
                    None
                }
                (false, before) => self.commit(group, before).await?,
            };
        }
    }

    /// Waits for appends; false when there will be none.
    async fn wait(&self, cancel: &CancellationToken) -> bool {
        let drained = {
            let state = self.shared.state.lock();
            !matches!(state.gate, Gate::Open) && state.queue.len() == 0
        };
        if drained {
            return false;
        }
        tokio::select! {
            biased;
            () = cancel.cancelled() => false,
            () = self.shared.wake.notified() => true,
        }
    }

    /// Writes and syncs `group` while `before`, durable already, is applied.
    async fn commit(
        &mut self,
        group: Vec<Waiting<A>>,
        before: Option<Durable<A>>,
    ) -> Result<Option<Durable<A>>> {
        let (written, applied) =
            futures::future::join(self.write_here(group), self.apply_if_any(before)).await;
        applied?;
        let (mut group, mut written) = written?;
        if group.is_empty() {
            return Ok(None);
        }
        if written.is_none() && !self.goes_here(&group) {
            // The checkpoint of a new segment states what was applied, so that came first.
            group = self.roll(group).await?;
            if group.is_empty() {
                return Ok(None);
            }
            written = self.write(&group).await?;
        }
        let Some((lsns, bytes)) = written else {
            let needed = size_of(&group) as u64;
            self.refuse(group, NoRoom::Disk { free: 0, needed });
            return Ok(None);
        };
        self.active.advance(bytes);
        self.shared.state.lock().synced = self.active.position();
        Ok(Some(Durable { lsns, records: group }))
    }

    /// Prepares a group for the active segment and writes it if it fits.
    async fn write_here(
        &self,
        group: Vec<Waiting<A>>,
    ) -> Result<(Vec<Prepared<A>>, Option<(Vec<Lsn>, usize)>)> {
        let group = self.prepare(group, self.active.number()).await?;
        if group.is_empty() || !self.goes_here(&group) {
            return Ok((group, None));
        }
        let written = self.write(&group).await?;
        Ok((group, written))
    }

    /// Whether the active segment has room for a group and takes all of it.
    fn goes_here(&self, group: &[Prepared<A>]) -> bool {
        let takes = self.active.takes_all() || group.iter().all(|p| p.reserve() > ReserveUse::None);
        takes && self.active.fits(size_of(group))
    }

    /// Gives every record its beginning; those that are refused are answered and left out.
    async fn prepare(&self, group: Vec<Waiting<A>>, segment: u32) -> Result<Vec<Prepared<A>>> {
        let apply = Arc::clone(&self.apply);
        let work = move || {
            let mut out = Vec::with_capacity(group.len());
            for mut waiting in group {
                let answer = match apply.prepare(segment, &mut waiting.append.entry) {
                    Ok(prefix) => {
                        let prepared = Prepared { prefix, waiting };
                        let bytes = prepared.len().saturating_add(RECORD_HEADER_BYTES);
                        if bytes <= RECORD_BYTES_MAX {
                            out.push(prepared);
                            continue;
                        }
                        waiting = prepared.waiting;
                        apply.give_up(waiting.append.entry);
                        Err(Error::TooLarge { bytes })
                    }
                    Err(refusal) => Ok(Err(refusal)),
                };
                // The caller may have gone.
                let _ = waiting.reply.send(answer);
            }
            out
        };
        Ok(self.cpu.run(work).await?)
    }

    async fn apply_if_any(&self, durable: Option<Durable<A>>) -> Result<()> {
        match durable {
            Some(d) => self.apply_and_answer(d).await,
            None => Ok(()),
        }
    }

    /// Writes and syncs a group that fits; `None` when the disk had no room after all (file systems that cannot
    /// reserve), in which case the same place is written again by the next group.
    async fn write(&self, group: &[Prepared<A>]) -> Result<Option<(Vec<Lsn>, usize)>> {
        let records = group.iter().map(|p| (p.waiting.append.kind, p.parts()));
        let buffer = GroupBuffer::build(&self.keys, self.active.position(), records);
        let (active, bytes, clock) = (self.active.clone(), buffer.bytes, Arc::clone(&self.clock));
        let (len, started) = (bytes.len(), clock.elapsed());
        // When it ended is noted there: here it is seen once the group before has been applied.
        let write = move |_: &dyn Disk| {
            active
                .write(&bytes)
                .map(|written| written.then(|| clock.elapsed()))
        };
        let Some(ended) = self.disk.run(write).await? else {
            return Ok(None);
        };
        self.apply.synced(GroupStats {
            sync: ended.saturating_sub(started),
            bytes: len,
            records: group.len(),
        });
        Ok(Some((buffer.lsns, len)))
    }

    /// Applies a durable group. Each append is answered as soon as it is applied: one tenant's large records don't hold
    /// up the answers of those before them in the fair order.
    async fn apply_and_answer(&self, durable: Durable<A>) -> Result<()> {
        let apply = Arc::clone(&self.apply);
        let work = move || {
            for (lsn, Prepared { waiting, .. }) in durable.lsns.into_iter().zip(durable.records) {
                let answer = apply.apply(lsn, waiting.append.entry);
                // The caller may have gone; the record stays.
                let _ = waiting.reply.send(Ok(Ok(answer)));
            }
        };
        Ok(self.cpu.run(work).await?)
    }
}
