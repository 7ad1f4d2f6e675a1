//! A member that does not run.

use std::sync::Arc;

use async_trait::async_trait;
use koios_model::Metadata;
use koios_wire::{
    Batch, BatchSetsReply, BatchSetsRequest, BatchStream, DeletionsReply, DeletionsRequest, ExemplarsRequest,
    FetchBatchesRequest, FlushReply, FlushRequest, HeldSeriesReply, HeldSeriesRequest, IngesterService,
    LabelsReply, LabelsRequest, MetadataRequest, PushAck, ReadRequest, ReadStream, SeriesExemplars,
    ServiceError,
};

/// An ingester that is down: whatever it is asked, it is unavailable.
#[derive(Clone, Copy, Debug)]
pub struct DownIngester;

fn down<T>() -> Result<T, ServiceError> {
    Err(ServiceError::unavailable("the member is down"))
}

#[async_trait]
impl IngesterService for DownIngester {
    async fn push(&self, _: Arc<Batch>) -> Result<PushAck, ServiceError> {
        down()
    }
    async fn held_series(&self, _: HeldSeriesRequest) -> Result<HeldSeriesReply, ServiceError> {
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
    async fn flush(&self, _: FlushRequest) -> Result<FlushReply, ServiceError> {
        down()
    }
    async fn deletions(&self, _: DeletionsRequest) -> Result<DeletionsReply, ServiceError> {
        down()
    }
}
