//! Servers that call the service traits.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use koios_model::PartitionId;
use koios_runtime::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::MESSAGE_BYTES_MAX;
use super::convert::{
    ack_to_pb, end_to_pb, exemplars_to_pb, held_from_pb, holdings_to_pb, labels_from_pb, matchers_from_pb,
    metadata_to_pb, range_from_pb, read_from_pb, select_from_pb, set_from_pb, set_to_pb, status_from_error,
    store_labels_from_pb, tenant_from_pb,
};
use super::expiry::KnownRules;
use super::push_answers::{PushAnswers, push};
use super::replies::{Readers, runs};
use crate::pb::v1;
use crate::pb::v1::ingester_server::{Ingester, IngesterServer};
use crate::pb::v1::store_server::{Store, StoreServer};
use crate::{
    BatchSetsRequest, DeletionsRequest, ExemplarsRequest, FetchBatchesRequest, FlushRequest, IngesterService,
    LabelsReply, MetadataRequest, ReadItem, ServiceError, StoreItem, StoreService,
};

type Reply<T> = Result<Response<T>, Status>;
type StreamReply<T> = BoxStream<'static, Result<T, Status>>;

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err takes")]
fn refuse(e: ServiceError) -> Status {
    status_from_error(&e)
}

/// A stream of one reply.
fn one<T>(reply: Result<T, Status>) -> stream::Iter<std::array::IntoIter<Result<T, Status>, 1>> {
    stream::iter([reply])
}

/// Serves an [`IngesterService`] over gRPC.
///
/// Streams of pushes stay open. A server that stops says so by a [`CancellationToken`] in its requests' extensions: what has
/// arrived is answered then, and the streams end.
#[derive(Clone, Debug)]
pub struct IngesterRpc {
    service: Arc<dyn IngesterService>,
    readers: Readers,
    rules: KnownRules,
}

impl IngesterRpc {
    /// The tonic service.
    pub fn server(service: Arc<dyn IngesterService>) -> IngesterServer<Self> {
        let readers = Readers::new();
        let rules = KnownRules::default();
        let this = Self {
            service,
            readers,
            rules,
        };
        IngesterServer::new(this)
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
    type PushManyStream = StreamReply<v1::PushManyReply>;
    type ReadStream = StreamReply<v1::ReadReply>;
    type FetchBatchesStream = StreamReply<v1::FetchBatchesReply>;

    async fn push(&self, request: Request<v1::PushRequest>) -> Reply<v1::PushReply> {
        let ack = push(&*self.service, request.into_inner().batch).await;
        Ok(Response::new(ack_to_pb(ack.map_err(refuse)?)))
    }

    async fn push_many(
        &self,
        request: Request<Streaming<v1::PushManyRequest>>,
    ) -> Reply<Self::PushManyStream> {
        let stopping = request.extensions().get::<CancellationToken>().cloned();
        let stopping = stopping.unwrap_or_default().cancelled_owned();
        let requests = request.into_inner().take_until(stopping).boxed();
        let answers = PushAnswers::new(Arc::clone(&self.service), requests);
        Ok(Response::new(answers.boxed()))
    }

    async fn held_series(&self, request: Request<v1::HeldSeriesRequest>) -> Reply<v1::HeldSeriesReply> {
        let request = held_from_pb(&request.into_inner()).map_err(refuse)?;
        let reply = self.service.held_series(request).await.map_err(refuse)?;
        Ok(Response::new(v1::HeldSeriesReply {
            held: reply.held,
            partition_series: reply.partition_series,
            counts: reply.counts,
            metric_series: reply.metric_series,
        }))
    }

    async fn read(&self, request: Request<v1::ReadRequest>) -> Reply<Self::ReadStream> {
        let request = read_from_pb(request.into_inner(), &self.rules).map_err(refuse)?;
        let stream = self.service.read(request).await.map_err(refuse)?;
        let reply = |series, end| v1::ReadReply { series, end };
        let replies = stream.flat_map(move |item| match item {
            Ok(ReadItem::Series(series)) => {
                let replies = runs(series).map(move |run| run.map(|series| reply(series, None)));
                stream::iter(replies).left_stream()
            }
            Ok(ReadItem::End(end)) => one(Ok(reply(Vec::new(), Some(end_to_pb(&end))))).right_stream(),
            Err(e) => one(Err(refuse(e))).right_stream(),
        });
        Ok(Response::new(self.readers.watch(replies)))
    }

    async fn label_names(&self, request: Request<v1::LabelsRequest>) -> Reply<v1::LabelsReply> {
        let request = labels_from_pb(request.into_inner(), &self.rules).map_err(refuse)?;
        self.service
            .label_names(request)
            .await
            .map(labels_reply)
            .map_err(refuse)
    }

    async fn label_values(&self, request: Request<v1::LabelsRequest>) -> Reply<v1::LabelsReply> {
        let request = labels_from_pb(request.into_inner(), &self.rules).map_err(refuse)?;
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
            deletions_version: r.deletions_version,
        };
        let metadata = self.service.metadata(request).await.map_err(refuse)?;
        Ok(Response::new(v1::MetadataReply {
            metadata: metadata.into_iter().map(metadata_to_pb).collect(),
        }))
    }

    async fn exemplars(&self, request: Request<v1::ExemplarsRequest>) -> Reply<v1::ExemplarsReply> {
        let r = request.into_inner();
        let request = ExemplarsRequest {
            tenant: tenant_from_pb(&r.tenant).map_err(refuse)?,
            partition: PartitionId(r.partition),
            epoch: r.epoch,
            matchers: matchers_from_pb(r.matchers).map_err(refuse)?,
            range: range_from_pb(r.range).map_err(refuse)?,
            deletions_version: r.deletions_version,
        };
        let series = self.service.exemplars(request).await.map_err(refuse)?;
        Ok(Response::new(v1::ExemplarsReply {
            series: series.into_iter().map(exemplars_to_pb).collect(),
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
        Ok(Response::new(self.readers.watch(replies)))
    }

    async fn deletions(&self, request: Request<v1::DeletionsRequest>) -> Reply<v1::DeletionsReply> {
        let r = request.into_inner();
        let request = DeletionsRequest {
            tenant: tenant_from_pb(&r.tenant).map_err(refuse)?,
            partition: PartitionId(r.partition),
            epoch: r.epoch,
            version: r.version,
            with_held: r.with_held,
        };
        let reply = self.service.deletions(request).await.map_err(refuse)?;
        Ok(Response::new(v1::DeletionsReply {
            held: Some(set_to_pb(&reply.held)),
            version: reply.version,
            logged_from: reply.logged_from,
            manifest_version: reply.manifest_version,
        }))
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
    readers: Readers,
}

impl StoreRpc {
    /// The tonic service.
    pub fn server(service: Arc<dyn StoreService>) -> StoreServer<Self> {
        let readers = Readers::new();
        StoreServer::new(Self { service, readers })
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
        let reply = |series, end| v1::StoreSelectReply { series, end };
        let replies = stream.flat_map(move |item| match item {
            Ok(StoreItem::Series(series)) => {
                let replies = runs(series).map(move |run| run.map(|series| reply(series, false)));
                stream::iter(replies).left_stream()
            }
            Ok(StoreItem::End) => one(Ok(reply(Vec::new(), true))).right_stream(),
            Err(e) => one(Err(refuse(e))).right_stream(),
        });
        Ok(Response::new(self.readers.watch(replies)))
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

    async fn exemplars(&self, request: Request<v1::StoreLabelsRequest>) -> Reply<v1::ExemplarsReply> {
        let request = store_labels_from_pb(request.into_inner()).map_err(refuse)?;
        let series = self.service.exemplars(request).await.map_err(refuse)?;
        Ok(Response::new(v1::ExemplarsReply {
            series: series.into_iter().map(exemplars_to_pb).collect(),
        }))
    }

    async fn metadata(&self, request: Request<v1::StoreLabelsRequest>) -> Reply<v1::MetadataReply> {
        let request = store_labels_from_pb(request.into_inner()).map_err(refuse)?;
        let metadata = self.service.metadata(request).await.map_err(refuse)?;
        Ok(Response::new(v1::MetadataReply {
            metadata: metadata.into_iter().map(metadata_to_pb).collect(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use koios_model::{Labels, Matchers, Metadata, TimeRange};
    use prost::Message;

    use super::super::convert::select_to_pb;
    use super::super::test_runs::runs_of;
    use super::*;
    use crate::{SeriesExemplars, SeriesRuns, StoreLabelsRequest, StoreSelectRequest, StoreStream};

    /// Sends ten series of a mebibyte each in one item, holding on to something.
    #[derive(Debug, Default)]
    struct Megabytes {
        held: Arc<()>,
    }

    #[async_trait::async_trait]
    impl StoreService for Megabytes {
        async fn select(&self, _: StoreSelectRequest) -> Result<StoreStream, ServiceError> {
            let runs = runs_of(1 << 20);
            let series = |i: u32| SeriesRuns {
                labels: Labels::from_pairs([("i", i.to_string())]),
                runs: runs.clone(),
            };
            let held = Arc::clone(&self.held);
            let items = [StoreItem::Series((0..10).map(series).collect()), StoreItem::End];
            let items = items.into_iter().map(move |item| {
                let _held = &held;
                Ok(item)
            });
            Ok(stream::iter(items).boxed())
        }

        async fn label_names(&self, _: StoreLabelsRequest) -> Result<Vec<String>, ServiceError> {
            Ok(Vec::new())
        }

        async fn label_values(&self, _: StoreLabelsRequest) -> Result<Vec<String>, ServiceError> {
            Ok(Vec::new())
        }

        async fn exemplars(&self, _: StoreLabelsRequest) -> Result<Vec<SeriesExemplars>, ServiceError> {
            Ok(Vec::new())
        }

        async fn metadata(&self, _: StoreLabelsRequest) -> Result<Vec<(String, Metadata)>, ServiceError> {
            Ok(Vec::new())
        }
    }

    async fn select(service: &Arc<Megabytes>) -> StreamReply<v1::StoreSelectReply> {
        let rpc = StoreRpc {
            service: Arc::<Megabytes>::clone(service),
            readers: Readers::new(),
        };
        let request = select_to_pb(&StoreSelectRequest {
            tenant: koios_model::TenantId::anonymous(),
            manifest_version: 1,
            blocks: Vec::new(),
            matchers: Matchers::default(),
            range: TimeRange::ALL,
            labels_only: false,
            limit: 0,
            histogram_sums: false,
        });
        rpc.select(Request::new(request)).await.unwrap().into_inner()
    }

    #[tokio::test(start_paused = true)]
    async fn i12_one_item_becomes_several_messages() {
        let mut replies = select(&Arc::default()).await;
        let mut lengths = Vec::new();
        while let Some(reply) = replies.next().await {
            let reply = reply.unwrap();
            assert!(reply.encoded_len() <= 4 << 20);
            lengths.push((reply.series.len(), reply.end));
        }
        assert_eq!(
            lengths,
            [(3, false), (3, false), (3, false), (1, false), (0, true)]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn i6_a_peer_that_stops_reading_frees_what_its_read_holds() {
        let service = Arc::<Megabytes>::default();
        let mut replies = select(&service).await;
        replies.next().await.unwrap().unwrap();
        assert_eq!(Arc::strong_count(&service.held), 2);
        tokio::time::advance(Duration::from_secs(601)).await;
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&service.held), 1);
        let status = replies.next().await.unwrap().unwrap_err();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded, "{status}");
    }
}
