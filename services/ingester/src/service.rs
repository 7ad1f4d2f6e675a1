//! The service trait, by delegation.

use std::sync::Arc;

use async_trait::async_trait;
use koios_model::Metadata;
use koios_wire::{
    Batch, BatchSetsReply, BatchSetsRequest, BatchStream, DeletionsReply, DeletionsRequest, ExemplarsRequest,
    FetchBatchesRequest, FlushReply, FlushRequest, HeldSeriesReply, HeldSeriesRequest, IngesterService,
    LabelsReply, LabelsRequest, MetadataRequest, PushAck, ReadRequest, ReadStream, SeriesExemplars,
    ServiceError,
};

use crate::Ingester;

#[async_trait]
impl IngesterService for Ingester {
    async fn push(&self, batch: Arc<Batch>) -> Result<PushAck, ServiceError> {
        self.inner.push(batch).await
    }

    async fn held_series(&self, request: HeldSeriesRequest) -> Result<HeldSeriesReply, ServiceError> {
        self.inner.held_series(request).await
    }

    async fn read(&self, request: ReadRequest) -> Result<ReadStream, ServiceError> {
        self.inner.read(request).await
    }

    async fn label_names(&self, request: LabelsRequest) -> Result<LabelsReply, ServiceError> {
        let names = |s: &crate::replica::ReplicaState, r: &LabelsRequest| {
            s.head.label_names(&r.matchers, r.range, &r.expiry)
        };
        self.inner.labels(request, names).await
    }

    async fn label_values(&self, request: LabelsRequest) -> Result<LabelsReply, ServiceError> {
        let values = |s: &crate::replica::ReplicaState, r: &LabelsRequest| {
            s.head.label_values(&r.name, &r.matchers, r.range, &r.expiry)
        };
        self.inner.labels(request, values).await
    }

    async fn exemplars(&self, request: ExemplarsRequest) -> Result<Vec<SeriesExemplars>, ServiceError> {
        self.inner.exemplars(request).await
    }

    async fn metadata(&self, request: MetadataRequest) -> Result<Vec<(String, Metadata)>, ServiceError> {
        self.inner.metadata(request).await
    }

    async fn batch_sets(&self, request: BatchSetsRequest) -> Result<BatchSetsReply, ServiceError> {
        self.inner.batch_sets(request).await
    }

    async fn fetch_batches(&self, request: FetchBatchesRequest) -> Result<BatchStream, ServiceError> {
        self.inner.fetch_batches(request)
    }

    async fn deletions(&self, request: DeletionsRequest) -> Result<DeletionsReply, ServiceError> {
        self.inner.deletions(request).await
    }

    async fn flush(&self, request: FlushRequest) -> Result<FlushReply, ServiceError> {
        self.inner.flush(request).await
    }
}
