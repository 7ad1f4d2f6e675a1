//! What streams of one connection that nobody reads do to the other calls on it.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::sync::Arc;

use futures::StreamExt;
use futures::stream;
use koios_model::{Labels, Matchers, Metadata, TenantId, TimeRange};
use koios_runtime::{CancellationToken, ClockHandle, Net as _, RealClock, RealNet, TaskGroup};
use koios_server::{ConnectionLimits, GrpcServer};
use koios_wire::grpc::{MESSAGE_BYTES_MAX, PeerChannel, RpcSettings, StoreClient, StoreRpc};
use koios_wire::{
    SeriesExemplars, SeriesRuns, ServiceError, StoreItem, StoreLabelsRequest, StoreSelectRequest,
    StoreService, StoreStream,
};
use tonic::service::Routes;

/// Series in a message, and messages in a stream: far more than what a stream may send ahead.
const SERIES: usize = 1000;
const MESSAGES: usize = 16;

/// About a thousand bytes.
fn long(i: usize) -> String {
    format!("{i:01000}")
}

#[derive(Debug)]
struct Store;

#[tonic::async_trait]
impl StoreService for Store {
    async fn select(&self, _: StoreSelectRequest) -> Result<StoreStream, ServiceError> {
        let message = |m: usize| {
            let series = (0..SERIES).map(|i| SeriesRuns {
                labels: Labels::from_pairs([("i", long(m * SERIES + i))]),
                runs: Vec::new(),
            });
            Ok(StoreItem::Series(series.collect()))
        };
        let messages = stream::iter((0..MESSAGES).map(message));
        Ok(messages.chain(stream::iter([Ok(StoreItem::End)])).boxed())
    }

    async fn label_names(&self, request: StoreLabelsRequest) -> Result<Vec<String>, ServiceError> {
        self.label_values(request).await
    }

    async fn label_values(&self, _: StoreLabelsRequest) -> Result<Vec<String>, ServiceError> {
        Ok((0..SERIES).map(long).collect())
    }

    async fn exemplars(&self, _: StoreLabelsRequest) -> Result<Vec<SeriesExemplars>, ServiceError> {
        Ok(Vec::new())
    }

    async fn metadata(&self, _: StoreLabelsRequest) -> Result<Vec<(String, Metadata)>, ServiceError> {
        Ok(Vec::new())
    }
}

fn select() -> StoreSelectRequest {
    StoreSelectRequest {
        tenant: TenantId::anonymous(),
        manifest_version: 1,
        blocks: Vec::new(),
        matchers: Matchers::default(),
        range: TimeRange::ALL,
        labels_only: true,
        limit: 0,
        histogram_sums: false,
    }
}

fn values() -> StoreLabelsRequest {
    StoreLabelsRequest {
        tenant: TenantId::anonymous(),
        manifest_version: 1,
        blocks: Vec::new(),
        matchers: Matchers::default(),
        range: TimeRange::ALL,
        name: "i".to_owned(),
        limit: 0,
    }
}

/// Series up to the end.
async fn count(mut stream: StoreStream) -> usize {
    let mut series = 0;
    loop {
        match stream.next().await.unwrap().unwrap() {
            StoreItem::Series(batch) => series += batch.len(),
            StoreItem::End => return series,
        }
    }
}

#[tokio::test]
async fn i6_streams_that_nobody_reads_hold_up_no_other_call_of_the_connection() {
    let clock: ClockHandle = Arc::new(RealClock::new());
    let listener = RealNet.bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let routes = Routes::new(StoreRpc::server(Arc::new(Store)));
    let (cancel, tasks) = (CancellationToken::new(), TaskGroup::new(CancellationToken::new()));
    let bytes_max = u64::try_from(MESSAGE_BYTES_MAX).unwrap();
    let server = GrpcServer::new(Arc::clone(&clock), ConnectionLimits::default(), bytes_max);
    let token = cancel.clone();
    tasks.spawn(
        "server",
        async move { server.serve(listener, routes, token).await },
    );
    let client = StoreClient::new(PeerChannel::new(
        Arc::new(RealNet),
        clock,
        addr,
        RpcSettings::default(),
    ));

    let mut unread = Vec::new();
    for _ in 0..16 {
        let mut stream = client.select(select()).await.unwrap();
        stream.next().await.unwrap().unwrap();
        unread.push(stream);
    }
    for _ in 0..4 {
        assert_eq!(client.label_values(values()).await.unwrap().len(), SERIES);
    }
    let whole = client.select(select()).await.unwrap();
    assert_eq!(count(whole).await, MESSAGES * SERIES);
    for stream in unread {
        assert_eq!(count(stream).await, (MESSAGES - 1) * SERIES);
    }
    cancel.cancel();
    tasks.stop().await;
}
