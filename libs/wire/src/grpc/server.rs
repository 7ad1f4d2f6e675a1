//! Servers that call the service traits.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use koios_model::PartitionId;
use tonic::{Request, Response, Status};

use super::MESSAGE_BYTES_MAX;
use super::convert::{
    end_to_pb, holdings_to_pb, labels_from_pb, metadata_to_pb, read_from_pb, select_from_pb, series_to_pb,
    set_from_pb, status_from_error, store_labels_from_pb, tenant_from_pb,
};
use crate::pb::v1;
use crate::pb::v1::ingester_server::{Ingester, IngesterServer};
use crate::pb::v1::store_server::{Store, StoreServer};
use crate::{
    Batch, BatchSetsRequest, FetchBatchesRequest, FlushRequest, IngesterService, LabelsReply,
    MetadataRequest, ReadItem, ServiceError, StoreItem, StoreService,
};

type Reply<T> = Result<Response<T>, Status>;
type StreamReply<T> = BoxStream<'static, Result<T, Status>>;

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err takes")]
fn refuse(e: ServiceError) -> Status {
    status_from_error(&e)
}

/// Serves an [`IngesterService`] over gRPC.
#[derive(Clone, Debug)]
pub struct IngesterRpc {
    service: Arc<dyn IngesterService>,
}

impl IngesterRpc {
    /// The tonic service.
    pub fn server(service: Arc<dyn IngesterService>) -> IngesterServer<Self> {
        IngesterServer::new(Self { service })
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

fn labels_reply(reply: LabelsReply) -> Response<v1::LabelsReply> {
    Response::new(v1::LabelsReply {
        end: Some(end_to_pb(&reply.end)),
        names: reply.names,
    })
}

#[tonic::async_trait]
impl Ingester for IngesterRpc {
    type ReadStream = StreamReply<v1::ReadReply>;
    type FetchBatchesStream = StreamReply<v1::FetchBatchesReply>;

    async fn push(&self, request: Request<v1::PushRequest>) -> Reply<v1::PushReply> {
        let batch = Batch::decode(request.into_inner().batch)
            .map_err(|e| refuse(ServiceError::invalid(format!("push: {e}"))))?;
        let ack = self.service.push(Arc::new(batch)).await.map_err(refuse)?;
        Ok(Response::new(v1::PushReply {
            state_version: ack.state_version,
            partition_series: ack.partition_series,
            conflicts: ack.conflicts,
            conflict: ack.conflict,
        }))
    }

    async fn read(&self, request: Request<v1::ReadRequest>) -> Reply<Self::ReadStream> {
        let request = read_from_pb(request.into_inner()).map_err(refuse)?;
        let stream = self.service.read(request).await.map_err(refuse)?;
        let replies = stream.map(|item| match item.map_err(refuse)? {
            ReadItem::Series(s) => Ok(v1::ReadReply {
                series: s.into_iter().map(series_to_pb).collect(),
                end: None,
            }),
            ReadItem::End(end) => Ok(v1::ReadReply {
                series: Vec::new(),
                end: Some(end_to_pb(&end)),
            }),
        });
        Ok(Response::new(replies.boxed()))
    }

    async fn label_names(&self, request: Request<v1::LabelsRequest>) -> Reply<v1::LabelsReply> {
        let request = labels_from_pb(request.into_inner()).map_err(refuse)?;
        self.service
            .label_names(request)
            .await
            .map(labels_reply)
            .map_err(refuse)
    }

    async fn label_values(&self, request: Request<v1::LabelsRequest>) -> Reply<v1::LabelsReply> {
        let request = labels_from_pb(request.into_inner()).map_err(refuse)?;
        self.service
            .label_values(request)
            .await
            .map(labels_reply)
            .map_err(refuse)
    }

    async fn metadata(&self, request: Request<v1::MetadataRequest>) -> Reply<v1::MetadataReply> {
        let r = request.into_inner();
        let request = MetadataRequest {
            tenant: tenant_from_pb(&r.tenant).map_err(refuse)?,
            partition: PartitionId(r.partition),
            epoch: r.epoch,
            metric: r.metric,
        };
        let metadata = self.service.metadata(request).await.map_err(refuse)?;
        Ok(Response::new(v1::MetadataReply {
            metadata: metadata.into_iter().map(metadata_to_pb).collect(),
        }))
    }

    async fn batch_sets(&self, request: Request<v1::BatchSetsRequest>) -> Reply<v1::BatchSetsReply> {
        let r = request.into_inner();
        let request = BatchSetsRequest {
            partition: PartitionId(r.partition),
            epoch: r.epoch,
        };
        let reply = self.service.batch_sets(request).await.map_err(refuse)?;
        Ok(Response::new(holdings_to_pb(&reply)))
    }

    async fn fetch_batches(
        &self,
        request: Request<v1::FetchBatchesRequest>,
    ) -> Reply<Self::FetchBatchesStream> {
        let r = request.into_inner();
        let request = FetchBatchesRequest {
            partition: PartitionId(r.partition),
            tenant: tenant_from_pb(&r.tenant).map_err(refuse)?,
            wanted: set_from_pb(r.wanted).map_err(refuse)?,
        };
        let stream = self.service.fetch_batches(request).await.map_err(refuse)?;
        let replies = stream.map(|batch| match batch {
            Ok(batch) => Ok(v1::FetchBatchesReply {
                batch: batch.encoded().clone(),
            }),
            Err(e) => Err(refuse(e)),
        });
        Ok(Response::new(replies.boxed()))
    }

    async fn flush(&self, request: Request<v1::FlushRequest>) -> Reply<v1::FlushReply> {
        let r = request.into_inner();
        let tenant = (!r.tenant.is_empty())
            .then(|| tenant_from_pb(&r.tenant))
            .transpose()
            .map_err(refuse)?;
        let done = self
            .service
            .flush(FlushRequest { tenant, wait: r.wait })
            .await
            .map_err(refuse)?;
        Ok(Response::new(v1::FlushReply {
            blocks: done.blocks,
            samples: done.samples,
        }))
    }
}

/// Serves a [`StoreService`] over gRPC.
#[derive(Clone, Debug)]
pub struct StoreRpc {
    service: Arc<dyn StoreService>,
}

impl StoreRpc {
    /// The tonic service.
    pub fn server(service: Arc<dyn StoreService>) -> StoreServer<Self> {
        StoreServer::new(Self { service })
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

#[tonic::async_trait]
impl Store for StoreRpc {
    type SelectStream = StreamReply<v1::StoreSelectReply>;

    async fn select(&self, request: Request<v1::StoreSelectRequest>) -> Reply<Self::SelectStream> {
        let request = select_from_pb(request.into_inner()).map_err(refuse)?;
        let stream = self.service.select(request).await.map_err(refuse)?;
        let replies = stream.map(|item| match item.map_err(refuse)? {
            StoreItem::Series(s) => Ok(v1::StoreSelectReply {
                series: s.into_iter().map(series_to_pb).collect(),
                end: false,
            }),
            StoreItem::End => Ok(v1::StoreSelectReply {
                series: Vec::new(),
                end: true,
            }),
        });
        Ok(Response::new(replies.boxed()))
    }

    async fn label_names(&self, request: Request<v1::StoreLabelsRequest>) -> Reply<v1::StoreLabelsReply> {
        let request = store_labels_from_pb(request.into_inner()).map_err(refuse)?;
        let names = self.service.label_names(request).await.map_err(refuse)?;
        Ok(Response::new(v1::StoreLabelsReply { names }))
    }

    async fn label_values(&self, request: Request<v1::StoreLabelsRequest>) -> Reply<v1::StoreLabelsReply> {
        let request = store_labels_from_pb(request.into_inner()).map_err(refuse)?;
        let names = self.service.label_values(request).await.map_err(refuse)?;
        Ok(Response::new(v1::StoreLabelsReply { names }))
    }
}
