//! What peers ask for: batch sets, and batches out of the log.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream;
use koios_model::{BatchSet, StreamId};
use koios_wal::{Lsn, Record, RecordKind};
use koios_wire::{
    Batch, BatchSetsReply, BatchSetsRequest, BatchStream, FetchBatchesRequest, LoggedBatch, ServiceError,
    ServiceErrorCode, TenantHoldings,
};

use crate::ingester::Inner;
use crate::push::queued_bytes;
use crate::references::Bindings;
use crate::replica::Replica;
use crate::segments::ReplicaKey;
use crate::{Error, Result};

/// Fetched batches that go to the log together, so that they share syncs.
const APPENDS_AT_A_TIME: usize = 16;
/// Part of a tenant's queue that they may take: the rest is for pushes.
const QUEUE_SHARE: usize = 4;

/// Fetched batches, in groups that go to the log together.
pub(crate) struct Groups {
    stream: BatchStream,
    /// What came last and has to wait for the next group.
    next: Option<Result<Arc<Batch>, ServiceError>>,
}

impl Groups {
    pub(crate) fn new(stream: BatchStream) -> Self {
        Self { stream, next: None }
    }

    /// The next ones, at least one; none at the end. An error comes after the batches before it, which who has a damaged log serves first.
    pub(crate) async fn next_group(&mut self, inner: &Inner) -> Result<Vec<Arc<Batch>>, ServiceError> {
        let bytes_max = inner.wal_settings().tenant_queue_bytes_max / QUEUE_SHARE;
        let (mut group, mut bytes) = (Vec::new(), 0usize);
        while group.len() < APPENDS_AT_A_TIME {
            let next = match self.next.take() {
                Some(next) => next,
                None => {
                    let next = inner.within_peer_deadline(async { Ok(self.stream.next().await) });
                    match next.await.transpose() {
                        Some(next) => next.flatten(),
                        None => break,
                    }
                }
            };
            let with_next = match &next {
                Ok(batch) => bytes.saturating_add(queued_bytes(batch)),
                Err(_) => usize::MAX,
            };
            if !group.is_empty() && with_next > bytes_max {
                self.next = Some(next);
                break;
            }
            bytes = with_next;
            group.push(next?);
        }
        Ok(group)
    }
}

/// A fetch under way.
struct Fetching {
    inner: Arc<Inner>,
    key: ReplicaKey,
    /// Segments to read, with the batches wanted from each.
    segments: VecDeque<(u32, BatchSet)>,
    /// Batches of the segment read last, with what tells their series.
    ready: VecDeque<Record>,
    bindings: Arc<Bindings>,
    /// Said once everything intact is served, of all segments.
    damaged: Option<Error>,
}

impl Inner {
    pub(crate) async fn batch_sets(&self, request: BatchSetsRequest) -> Result<BatchSetsReply, ServiceError> {
        if let Err(e) = self.wal() {
            return Err(self.refusal(ServiceErrorCode::Behind, e.to_string()));
        }
        // The adoption waited for all pushes of older epochs, so the answer is final for them.
        drop(self.enter(request.partition, request.epoch).await?);
        let replicas = self.store.replicas_of(request.partition);
        Ok(BatchSetsReply {
            tenants: replicas.iter().map(|r| self.holdings(r)).collect(),
            counts: self.counts(request.partition),
        })
    }

    /// What is held, then what of it is logged, then the floors: each can only be smaller, smaller and larger than it
    /// was when the one before was taken, so what is held and not logged is in listed blocks as the floors say.
    fn holdings(&self, replica: &Replica) -> TenantHoldings {
        let held = replica.state.read().told();
        let logged = self.store.segments.lock().logged(&replica.key);
        let state = replica.state.read();
        TenantHoldings {
            tenant: replica.key.1.clone(),
            held,
            logged,
            forgotten_below_ms: state.head.forgotten_below_ms(),
            manifest_floor: state.listed_version,
            log_forgotten_below_ms: state.log_forgotten_below_ms,
        }
    }

    pub(crate) fn fetch_batches(
        self: &Arc<Self>,
        request: FetchBatchesRequest,
    ) -> Result<BatchStream, ServiceError> {
        self.wal().map_err(|e| self.refuse(&e))?;
        let key = (request.partition, request.tenant);
        let segments = self.store.segments.lock().having(&key, &request.wanted);
        let fetching = Fetching {
            inner: Arc::clone(self),
            key,
            segments: segments.into(),
            ready: VecDeque::new(),
            bindings: Arc::default(),
            damaged: None,
        };
        Ok(stream::try_unfold(fetching, Fetching::step).boxed())
    }
}

impl Inner {
    /// Gives out batches of the own log that can be read, until that is enough; returns those that were found not to be. Whoever asks keeps
    /// segments from being removed meanwhile: one that is not there is lost.
    pub(crate) async fn each_logged(
        &self,
        key: &ReplicaKey,
        wanted: &BatchSet,
        mut each: impl FnMut(Batch) -> ControlFlow<()> + Send,
    ) -> Result<BatchSet> {
        let mut unread = BatchSet::default();
        let segments = self.store.segments.lock().having(key, wanted);
        for (number, wanted) in segments {
            let Ok(_permit) = self.segment_reads.acquire().await else {
                return Err(self.not_running());
            };
            let Some(content) = self.wal()?.read_segment(number).await? else {
                unread.union_with(&wanted);
                continue;
            };
            let (key, all) = (key.clone(), wanted.clone());
            let select = move || select(content.records, &key, &all);
            let (ready, had, bindings) = self.pools.long.run(select).await?;
            if !had.includes(&wanted) {
                tracing::error!(segment = number, "batches of the log cannot be read");
                unread.union_with(&wanted.difference(&had));
            }
            let bindings = Arc::new(bindings);
            for record in ready {
                let bindings = Arc::clone(&bindings);
                let name = LoggedBatch::peek_header(&record.payload);
                let decode = move || bindings.batch(LoggedBatch::decode(&record.payload)?);
                let decoded = self.pools.long.run(decode).await?;
                if let Ok(Some(batch)) = decoded {
                    if each(batch).is_break() {
                        return Ok(unread);
                    }
                    continue;
                }
                let error = decoded.err().map(|e| e.to_string()).unwrap_or_default();
                tracing::error!(segment = number, error, "a batch of the log cannot be read");
                if let Ok(header) = name {
                    unread.insert(header.stream, header.sequence);
                }
            }
        }
        Ok(unread)
    }
}

impl Inner {
    /// Notes batches that the log cannot give any more. They stay held, for the head has their samples, and reads go on; repair
    /// fetches them from peers and logs them again. Where no peer has them, a cut brings them into a block.
    pub(crate) fn note_unreadable(&self, key: &ReplicaKey, batches: &BatchSet, error: &Error) {
        let Some(replica) = self.store.replica(key.0, &key.1) else {
            return;
        };
        let new = {
            let mut state = replica.state.write();
            let new = batches.difference(&state.unreadable);
            state.unreadable.union_with(&new);
            new
        };
        if new.is_empty() {
            return;
        }
        self.store.metrics.damage.inc_by(new.len());
        let first = first_of(&new);
        tracing::error!(
            partition = %key.0, tenant = %key.1, %error, batches = new.len(), ?first,
            "batches of the log that are needed cannot be read any more"
        );
    }
}

/// One batch of some, to be named.
pub(crate) fn first_of(batches: &BatchSet) -> Option<(StreamId, u64)> {
    let (stream, sequences) = batches.streams().next()?;
    let (first, _) = sequences.runs().next()?;
    Some((stream, first))
}

impl Fetching {
    /// The next batch. Records wait encoded: decoded they are many times as large.
    async fn step(mut self) -> Result<Option<(Arc<Batch>, Self)>, ServiceError> {
        loop {
            if let Some(record) = self.ready.pop_front() {
                let (lsn, bindings) = (record.lsn, Arc::clone(&self.bindings));
                let header = LoggedBatch::peek_header(&record.payload);
                let decode = move || bindings.batch(LoggedBatch::decode(&record.payload)?);
                let decoded = self.inner.pools.long.run(decode).await;
                let decoded = decoded.map_err(|e| self.inner.refuse(&Error::Panicked(e)))?;
                let error = match decoded {
                    Ok(Some(batch)) => return Ok(Some((Arc::new(batch), self))),
                    Ok(None) => Error::Record {
                        lsn,
                        reason: "the labels of some series were in a damaged part of the segment".to_owned(),
                    },
                    Err(source) => Error::Batch { lsn, source },
                };
                let mut lacking = BatchSet::default();
                if let Ok(header) = header {
                    lacking.insert(header.stream, header.sequence);
                }
                self.lacks(&lacking, error);
                continue;
            }
            let Some((number, wanted)) = self.segments.pop_front() else {
                let damaged = self.damaged.take();
                return damaged.map_or(Ok(None), |damaged| Err(self.inner.refuse(&damaged)));
            };
            if let Err(e) = self.read(number, &wanted).await {
                return Err(self.inner.refuse(&e));
            }
        }
    }

    /// Finds the wanted batches of one segment; none when it is gone by now.
    async fn read(&mut self, number: u32, wanted: &BatchSet) -> Result<()> {
        let inner = Arc::clone(&self.inner);
        let Ok(_permit) = inner.segment_reads.acquire().await else {
            return Ok(());
        };
        let Some(content) = inner.wal()?.read_segment(number).await? else {
            return Ok(());
        };
        let damage = content.damage.clone();
        let (key, all) = (self.key.clone(), wanted.clone());
        let select = move || select(content.records, &key, &all);
        let (ready, had, bindings) = inner.pools.long.run(select).await?;
        self.ready = ready.into();
        self.bindings = Arc::new(bindings);
        // What is intact is served first. Without damage a record is lacking that cannot be decoded.
        let lacking = wanted.difference(&had);
        if !lacking.is_empty() {
            let error = match damage.first() {
                Some(d) => Error::Record {
                    lsn: d.lsn,
                    reason: format!("{} bytes of the segment are damaged", d.bytes),
                },
                None => Error::Record {
                    lsn: Lsn::new(number, 0),
                    reason: "a batch of the segment that begins there cannot be decoded".to_owned(),
                },
            };
            self.lacks(&lacking, error);
        }
        Ok(())
    }

    fn lacks(&mut self, batches: &BatchSet, error: Error) {
        self.inner.note_unreadable(&self.key, batches, &error);
        self.damaged.get_or_insert(error);
    }
}

/// The wanted batches of a segment, encoded still, which they are, and what their ids are bound to. What cannot be read is
/// left out, and so not among those that are there.
fn select(records: Vec<Record>, key: &ReplicaKey, wanted: &BatchSet) -> (Vec<Record>, BatchSet, Bindings) {
    let (mut ready, mut had, mut bindings) = (Vec::new(), BatchSet::default(), Bindings::default());
    for record in records.into_iter().filter(|r| r.kind == RecordKind::Batch) {
        let of_key = LoggedBatch::peek_header(&record.payload)
            .is_ok_and(|header| header.partition == key.0 && header.tenant == key.1);
        let Some(logged) = of_key
            .then(|| LoggedBatch::decode(&record.payload).ok())
            .flatten()
        else {
            continue;
        };
        bindings.add(&logged.series);
        let header = logged.header;
        if wanted.contains(header.stream, header.sequence) {
            had.insert(header.stream, header.sequence);
            ready.push(record);
        }
    }
    (ready, had, bindings)
}
