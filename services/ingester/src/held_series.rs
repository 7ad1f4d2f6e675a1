//! Which series there are: distributors ask before they refuse one.

use koios_wire::{HeldSeriesReply, HeldSeriesRequest, ServiceError};

use crate::Error;
use crate::ingester::Inner;

/// Series looked for under one hold of the lock: far below a millisecond, for which writes may have to wait.
const PART: usize = 1024;

impl Inner {
    /// What is acknowledged when it is asked for shows in the answer.
    pub(crate) async fn held_series(
        &self,
        request: HeldSeriesRequest,
    ) -> Result<HeldSeriesReply, ServiceError> {
        self.replayed_with(size_of_val(&*request.references)).await;
        self.wal().map_err(|e| self.refuse(&e))?;
        drop(self.enter(request.partition, request.epoch).await?);
        let counts = self.counts(request.partition);
        let Some(replica) = self.store.replica(request.partition, &request.tenant) else {
            return Ok(HeldSeriesReply {
                held: vec![false; request.references.len()],
                partition_series: 0,
                counts,
                metric_series: vec![0; request.metrics.len()],
            });
        };
        let look = move || {
            let mut held = Vec::with_capacity(request.references.len());
            for part in request.references.chunks(PART) {
                let head = &replica.state.read().head;
                held.extend(part.iter().map(|hash| head.has(*hash)));
            }
            let mut metric_series = Vec::with_capacity(request.metrics.len());
            for part in request.metrics.chunks(PART) {
                let head = &replica.state.read().head;
                metric_series.extend(part.iter().map(|metric| head.metric_series_count(metric)));
            }
            HeldSeriesReply {
                held,
                partition_series: replica.state.read().head.series_count() as u64,
                counts,
                metric_series,
            }
        };
        let looked = self.deps.runtime.cpu.run(look).await;
        looked.map_err(|e| self.refuse(&Error::Panicked(e)))
    }
}
