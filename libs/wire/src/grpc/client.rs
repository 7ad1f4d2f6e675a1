//! Clients that implement the service traits over gRPC.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use koios_model::Metadata;
use tonic::Streaming;
use tonic::transport::Channel;

use super::convert::{
    ack_from_pb, end_from_pb, error_from_status, exemplars_from_pb, held_to_pb, holdings_from_pb,
    labels_reply_from_pb, labels_to_pb, matchers_to_pb, metadata_from_pb, range_to_pb, read_to_pb,
    select_to_pb, series_from_pb, set_from_pb, set_to_pb, store_labels_to_pb,
};
use super::pushes::Pushes;
use super::{MESSAGE_BYTES_MAX, PeerChannel};
use crate::pb::v1;
use crate::pb::v1::ingester_client::IngesterClient as GrpcIngester;
use crate::pb::v1::store_client::StoreClient as GrpcStore;
use crate::{
    Batch, BatchSetsReply, BatchSetsRequest, BatchStream, DeletionsReply, DeletionsRequest, ExemplarsRequest,
    FetchBatchesRequest, FlushReply, FlushRequest, HeldSeriesReply, HeldSeriesRequest, IngesterService,
    LabelsReply, LabelsRequest, MetadataRequest, PushAck, ReadItem, ReadRequest, ReadStream, SeriesExemplars,
    ServiceError, ServiceErrorCode, StoreItem, StoreLabelsRequest, StoreSelectRequest, StoreService,
    StoreStream,
};

/// Series of a batch that goes with others on a stream whose labels it has, at most.
const STREAMED_LABELLED_MAX: usize = 256;
/// Bytes of its content before compression, at most.
const STREAMED_CONTENT_BYTES_MAX: usize = 512 << 10;

/// An ingester in another process.
#[derive(Clone, Debug)]
pub struct IngesterClient {
    channel: PeerChannel,
    pushes: Pushes,
}

impl IngesterClient {
    /// A client over a channel. Clones share the stream that batches go over.
    pub fn new(channel: PeerChannel) -> Self {
        let pushes = Pushes::new(channel.clone());
        Self { channel, pushes }
    }
}

pub(super) fn ingester(channel: Channel) -> GrpcIngester<Channel> {
    GrpcIngester::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

fn store(channel: Channel) -> GrpcStore<Channel> {
    GrpcStore::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// Turns a gRPC stream into a trait stream: each message within the idle deadline, the connection dropped when not.
fn messages<P, T>(
    peer: PeerChannel,
    stream: Streaming<P>,
    convert: impl Fn(P) -> Result<T, ServiceError> + Send + 'static,
) -> BoxStream<'static, Result<T, ServiceError>>
where
    P: Send + 'static,
    T: Send + 'static,
{
    let state = Some((peer, stream, convert));
    futures::stream::unfold(state, |state| async move {
        let (peer, mut stream, convert) = state?;
        let idle = peer.settings().stream_idle;
        let item = match peer.clock().timeout(idle, stream.message()).await {
            Ok(Ok(Some(message))) => convert(message),
            Ok(Ok(None)) => return None,
            Ok(Err(status)) => Err(error_from_status(&status, peer.addr())),
            Err(_) => {
                peer.reset();
                let message = format!("{} sent nothing for {idle:?}", peer.addr());
                Err(ServiceError::new(ServiceErrorCode::DeadlineExceeded, message))
            }
        };
        let next = item.is_ok().then_some((peer, stream, convert));
        Some((item, next))
    })
    // A reader that asks once more after the end, or after an error, hears of the end again.
    .fuse()
    .boxed()
}

/// Whether a batch is read soon enough not to hold up those behind it on a stream, which are read one after the other:
/// labels of many series, and what compresses well, take long and little room before.
fn fits_stream(batch: &Batch) -> bool {
    let columns = batch.columns();
    let labelled = match batch.leaves_labels_out() {
        true => columns.known.iter().filter(|known| !**known).count(),
        false => columns.hashes.len(),
    };
    labelled <= STREAMED_LABELLED_MAX && batch.content_bytes() <= STREAMED_CONTENT_BYTES_MAX
}

#[async_trait]
impl IngesterService for IngesterClient {
    async fn push(&self, batch: Arc<Batch>) -> Result<PushAck, ServiceError> {
        let encoded = batch.encoded();
        if fits_stream(&batch)
            && let Some(answer) = self.pushes.push(encoded).await
        {
            return answer;
        }
        let request = v1::PushRequest {
            batch: encoded.clone(),
            state_version: 0,
        };
        let reply = self
            .channel
            .call(|c| async move { ingester(c).push(request).await })
            .await?;
        Ok(ack_from_pb(reply.into_inner()))
    }

    async fn held_series(&self, request: HeldSeriesRequest) -> Result<HeldSeriesReply, ServiceError> {
        let request = held_to_pb(&request);
        let reply = self
            .channel
            .call(|c| async move { ingester(c).held_series(request).await })
            .await?
            .into_inner();
        Ok(HeldSeriesReply {
            held: reply.held,
            partition_series: reply.partition_series,
            counts: reply.counts,
            metric_series: reply.metric_series,
        })
    }

    async fn read(&self, request: ReadRequest) -> Result<ReadStream, ServiceError> {
        let request = read_to_pb(&request);
        let stream = self
            .channel
            .call(|c| async move { ingester(c).read(request).await })
            .await?
            .into_inner();
        Ok(messages(
            self.channel.clone(),
            stream,
            |m: v1::ReadReply| match m.end {
                Some(end) => end_from_pb(end).map(ReadItem::End),
                None => m
                    .series
                    .into_iter()
                    .map(series_from_pb)
                    .collect::<Result<_, _>>()
                    .map(ReadItem::Series),
            },
        ))
    }

    async fn label_names(&self, request: LabelsRequest) -> Result<LabelsReply, ServiceError> {
        let request = labels_to_pb(request);
        let reply = self
            .channel
            .call(|c| async move { ingester(c).label_names(request).await })
            .await?;
        labels_reply_from_pb(reply.into_inner())
    }

    async fn label_values(&self, request: LabelsRequest) -> Result<LabelsReply, ServiceError> {
        let request = labels_to_pb(request);
        let reply = self
            .channel
            .call(|c| async move { ingester(c).label_values(request).await })
            .await?;
        labels_reply_from_pb(reply.into_inner())
    }

    async fn metadata(&self, request: MetadataRequest) -> Result<Vec<(String, Metadata)>, ServiceError> {
        let request = v1::MetadataRequest {
            tenant: request.tenant.to_string(),
            partition: request.partition.0,
            epoch: request.epoch,
            metric: request.metric,
            deletions_version: request.deletions_version,
        };
        let reply = self
            .channel
            .call(|c| async move { ingester(c).metadata(request).await })
            .await?;
        Ok(reply
            .into_inner()
            .metadata
            .into_iter()
            .map(metadata_from_pb)
            .collect())
    }

    async fn exemplars(&self, request: ExemplarsRequest) -> Result<Vec<SeriesExemplars>, ServiceError> {
        let request = v1::ExemplarsRequest {
            tenant: request.tenant.to_string(),
            partition: request.partition.0,
            epoch: request.epoch,
            matchers: matchers_to_pb(&request.matchers),
            range: Some(range_to_pb(request.range)),
            deletions_version: request.deletions_version,
        };
        let reply = self
            .channel
            .call(|c| async move { ingester(c).exemplars(request).await })
            .await?;
        reply
            .into_inner()
            .series
            .into_iter()
            .map(exemplars_from_pb)
            .collect()
    }

    async fn batch_sets(&self, request: BatchSetsRequest) -> Result<BatchSetsReply, ServiceError> {
        let request = v1::BatchSetsRequest {
            partition: request.partition.0,
            epoch: request.epoch,
        };
        let reply = self
            .channel
            .call(|c| async move { ingester(c).batch_sets(request).await })
            .await?;
        holdings_from_pb(reply.into_inner())
    }

    async fn fetch_batches(&self, request: FetchBatchesRequest) -> Result<BatchStream, ServiceError> {
        let request = v1::FetchBatchesRequest {
            partition: request.partition.0,
            tenant: request.tenant.to_string(),
            wanted: Some(set_to_pb(&request.wanted)),
        };
        let stream = self
            .channel
            .call(|c| async move { ingester(c).fetch_batches(request).await })
            .await?;
        Ok(messages(
            self.channel.clone(),
            stream.into_inner(),
            |m: v1::FetchBatchesReply| {
                Batch::decode(m.batch)
                    .map(Arc::new)
                    .map_err(|e| ServiceError::new(ServiceErrorCode::Corruption, e.to_string()))
            },
        ))
    }

    async fn deletions(&self, request: DeletionsRequest) -> Result<DeletionsReply, ServiceError> {
        let request = v1::DeletionsRequest {
            tenant: request.tenant.to_string(),
            partition: request.partition.0,
            epoch: request.epoch,
            version: request.version,
            with_held: request.with_held,
        };
        let reply = self
            .channel
            .call(|c| async move { ingester(c).deletions(request).await })
            .await?
            .into_inner();
        Ok(DeletionsReply {
            held: set_from_pb(reply.held)?,
            version: reply.version,
            logged_from: reply.logged_from,
            manifest_version: reply.manifest_version,
        })
    }

    async fn flush(&self, request: FlushRequest) -> Result<FlushReply, ServiceError> {
        let tenant = request.tenant.map(|t| t.to_string()).unwrap_or_default();
        let request = v1::FlushRequest {
            tenant,
            wait: request.wait,
        };
        let reply = self
            .channel
            .call(|c| async move { ingester(c).flush(request).await })
            .await?
            .into_inner();
        Ok(FlushReply {
            blocks: reply.blocks,
            samples: reply.samples,
        })
    }
}

/// A store in another process.
#[derive(Clone, Debug)]
pub struct StoreClient {
    channel: PeerChannel,
}

impl StoreClient {
    /// A client over a channel.
    pub fn new(channel: PeerChannel) -> Self {
        Self { channel }
    }
}

#[async_trait]
impl StoreService for StoreClient {
    async fn select(&self, request: StoreSelectRequest) -> Result<StoreStream, ServiceError> {
        let request = select_to_pb(&request);
        let stream = self
            .channel
            .call(|c| async move { store(c).select(request).await })
            .await?
            .into_inner();
        Ok(messages(
            self.channel.clone(),
            stream,
            |m: v1::StoreSelectReply| {
                if m.end {
                    return Ok(StoreItem::End);
                }
                m.series
                    .into_iter()
                    .map(series_from_pb)
                    .collect::<Result<_, _>>()
                    .map(StoreItem::Series)
            },
        ))
    }

    async fn label_names(&self, request: StoreLabelsRequest) -> Result<Vec<String>, ServiceError> {
        let request = store_labels_to_pb(request);
        let reply = self
            .channel
            .call(|c| async move { store(c).label_names(request).await })
            .await?;
        Ok(reply.into_inner().names)
    }

    async fn label_values(&self, request: StoreLabelsRequest) -> Result<Vec<String>, ServiceError> {
        let request = store_labels_to_pb(request);
        let reply = self
            .channel
            .call(|c| async move { store(c).label_values(request).await })
            .await?;
        Ok(reply.into_inner().names)
    }

    async fn exemplars(&self, request: StoreLabelsRequest) -> Result<Vec<SeriesExemplars>, ServiceError> {
        let request = store_labels_to_pb(request);
        let reply = self
            .channel
            .call(|c| async move { store(c).exemplars(request).await })
            .await?;
        let series = reply.into_inner().series.into_iter();
        series.map(exemplars_from_pb).collect()
    }

    async fn metadata(&self, request: StoreLabelsRequest) -> Result<Vec<(String, Metadata)>, ServiceError> {
        let request = store_labels_to_pb(request);
        let reply = self
            .channel
            .call(|c| async move { store(c).metadata(request).await })
            .await?;
        let metadata = reply.into_inner().metadata.into_iter();
        Ok(metadata.map(metadata_from_pb).collect())
    }
}
