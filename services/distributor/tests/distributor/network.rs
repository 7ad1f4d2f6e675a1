//! Batches between processes: gRPC over TCP.

use std::sync::Arc;

use koios_model::{BatchColumns, Labels, PartitionId, SeriesHash, StreamId, TenantId};
use koios_runtime::{CancellationToken, ClockHandle, Net as _, RealClock, RealNet, TaskGroup};
use koios_server::{ConnectionLimits, GrpcServer};
use koios_wire::grpc::{IngesterClient, IngesterRpc, PeerChannel, RpcSettings};
use koios_wire::{Batch, BatchHeader, IngesterService as _};
use tonic::service::Routes;

use crate::rig::MockMember;

const MESSAGE_BYTES_MAX: u64 = 4096;

fn batch(samples: i64) -> Arc<Batch> {
    let mut columns = BatchColumns::default();
    columns.push_series(SeriesHash(1), Labels::from_pairs([("__name__", "up")]).as_ref());
    // Values that do not compress.
    let mut bits = 1u64;
    for t in 0..samples {
        bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        columns.push_sample(t, f64::from_bits(bits));
    }
    let header = BatchHeader {
        tenant: TenantId::anonymous(),
        stream: StreamId(1),
        sequence: 0,
        settled_below: 0,
        partition: PartitionId(0),
        epoch: 1,
        admission_ms: 0,
    };
    Arc::new(Batch::new(header, columns))
}

#[tokio::test]
async fn a_batch_travels_whole_or_is_refused_for_its_size() {
    let clock: ClockHandle = Arc::new(RealClock::new());
    let listener = RealNet.bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let member = Arc::new(MockMember::default());
    let routes = Routes::new(IngesterRpc::server(Arc::clone(&member) as _));
    let (cancel, tasks) = (CancellationToken::new(), TaskGroup::new(CancellationToken::new()));
    let server = GrpcServer::new(Arc::clone(&clock), ConnectionLimits::default(), MESSAGE_BYTES_MAX);
    let token = cancel.clone();
    tasks.spawn(
        "server",
        async move { server.serve(listener, routes, token).await },
    );

    let channel = PeerChannel::new(Arc::new(RealNet), clock, addr, RpcSettings::default());
    let client = IngesterClient::new(channel);
    let small = batch(10);
    client.push(Arc::clone(&small)).await.unwrap();
    let error = client.push(batch(10_000)).await.unwrap_err();
    assert!(error.message.contains("frame too large"), "{error}");
    client.push(batch(11)).await.unwrap();

    let received = member.batches.lock().clone();
    assert_eq!(
        received.len(),
        2,
        "the large one did not arrive, the connection goes on"
    );
    assert_eq!(received[0].encoded(), small.encoded());
    cancel.cancel();
    tasks.stop().await;
}
