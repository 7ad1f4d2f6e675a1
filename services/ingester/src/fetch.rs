//! What peers ask for: batch sets, and batches out of the log.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream;
use koios_model::BatchSet;
use koios_wal::RecordKind;
use koios_wire::{
    Batch, BatchSetsReply, BatchSetsRequest, BatchStream, FetchBatchesRequest, ServiceError,
    ServiceErrorCode, TenantHoldings,
};

use crate::ingester::Inner;
use crate::replica::Replica;
use crate::segments::ReplicaKey;
use crate::{Error, Result};

/// A fetch under way.
struct Fetching {
    inner: Arc<Inner>,
    key: ReplicaKey,
    /// Segments to read, with the batches wanted from each.
    segments: VecDeque<(u32, BatchSet)>,
    ready: VecDeque<Arc<Batch>>,
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
        let end = replica.state.read().end();
        let logged = self.store.segments.lock().logged(&replica.key);
        let state = replica.state.read();
        TenantHoldings {
            tenant: replica.key.1.clone(),
            held: end.held,
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
        };
        Ok(stream::try_unfold(fetching, Fetching::step).boxed())
    }
}

impl Fetching {
    async fn step(mut self) -> Result<Option<(Arc<Batch>, Self)>, ServiceError> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(Some((batch, self)));
            }
            let Some((number, wanted)) = self.segments.pop_front() else {
                return Ok(None);
            };
            let read = self.read(number, wanted).await;
            self.ready = read.map_err(|e| self.inner.refuse(&e))?;
        }
    }

    /// The wanted batches of one segment; none when it is gone by now.
    async fn read(&self, number: u32, wanted: BatchSet) -> Result<VecDeque<Arc<Batch>>> {
        let Ok(_permit) = self.inner.segment_reads.acquire().await else {
            return Ok(VecDeque::new());
        };
        let Some(content) = self.inner.wal()?.read_segment(number).await? else {
            return Ok(VecDeque::new());
        };
        let key = self.key.clone();
        let decode = move || {
            let (mut found, mut had) = (VecDeque::new(), BatchSet::default());
            for record in content.records.iter().filter(|r| r.kind == RecordKind::Batch) {
                let lsn = record.lsn;
                let unreadable = |source| Error::Batch { lsn, source };
                let header = Batch::peek_header(&record.payload).map_err(unreadable)?;
                if header.partition != key.0
                    || header.tenant != key.1
                    || !wanted.contains(header.stream, header.sequence)
                {
                    continue;
                }
                let batch = Batch::decode(record.payload.clone()).map_err(unreadable)?;
                had.insert(header.stream, header.sequence);
                found.push_back(Arc::new(batch));
            }
            match content.damage.first() {
                Some(damage) if !had.includes(&wanted) => Err(Error::Record {
                    lsn: damage.lsn,
                    reason: format!("{} bytes of the segment are damaged", damage.bytes),
                }),
                _ => Ok(found),
            }
        };
        self.inner.pools.long.run(decode).await?
    }
}
