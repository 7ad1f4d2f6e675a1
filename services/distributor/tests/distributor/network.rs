//! Batches between processes: gRPC over TCP.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::{Next as Handler, from_fn_with_state};
use axum::response::Response;
use futures::future::{join, join_all};
use koios_model::{BatchColumns, Labels, PartitionId, SeriesHash, StreamId, TenantId};
use koios_runtime::{CancellationToken, ClockHandle, Net as _, RealClock, RealNet, TaskGroup};
use koios_server::{ConnectionLimits, GrpcServer};
use koios_wire::grpc::{IngesterClient, IngesterRpc, PeerChannel, RpcSettings};
use koios_wire::{Batch, BatchHeader, IngesterService as _, ServiceErrorCode};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tonic::Status;
use tonic::service::Routes;

use crate::rig::{MockMember, Next};

/// Far longer than anything here takes that does not wait for ever.
const LONG: Duration = Duration::from_secs(20);

fn batch(sequence: u64, samples: i64) -> Arc<Batch> {
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
        sequence,
        settled_below: 0,
        partition: PartitionId(0),
        epoch: 1,
        admission_ms: 0,
    };
    Arc::new(Batch::new(header, columns))
}

/// Names of the calls that reached a member, and whether it is of a version that does not know streams of pushes.
#[derive(Debug, Default)]
struct Calls {
    seen: Mutex<Vec<String>>,
    is_old: bool,
}

impl Calls {
    fn count(&self, name: &str) -> usize {
        self.seen.lock().iter().filter(|seen| *seen == name).count()
    }
}

async fn note(State(calls): State<Arc<Calls>>, request: Request, next: Handler) -> Response {
    let name = request
        .uri()
        .path()
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_owned();
    let is_unknown = calls.is_old && name == "PushMany";
    calls.seen.lock().push(name);
    match is_unknown {
        true => Status::unimplemented("unknown method").into_http(),
        false => next.run(request).await,
    }
}

/// A member behind a listener, and who sends to it.
struct Served {
    clock: ClockHandle,
    addr: String,
    member: Arc<MockMember>,
    calls: Arc<Calls>,
    client: IngesterClient,
    cancel: CancellationToken,
    tasks: TaskGroup,
}

impl Served {
    async fn start() -> Self {
        Self::with(RpcSettings::default(), Calls::default(), 64 << 20).await
    }

    async fn with(settings: RpcSettings, calls: Calls, message_bytes_max: u64) -> Self {
        let clock: ClockHandle = Arc::new(RealClock::new());
        let listener = RealNet.bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let (member, calls) = (Arc::new(MockMember::default()), Arc::new(calls));
        let routes = Routes::new(IngesterRpc::server(Arc::clone(&member) as _)).into_axum_router();
        let routes = Routes::from(routes.layer(from_fn_with_state(Arc::clone(&calls), note)));
        let (cancel, tasks) = (CancellationToken::new(), TaskGroup::new(CancellationToken::new()));
        let server = GrpcServer::new(Arc::clone(&clock), ConnectionLimits::default(), message_bytes_max);
        let token = cancel.clone();
        tasks.spawn(
            "server",
            async move { server.serve(listener, routes, token).await },
        );
        let channel = PeerChannel::new(Arc::new(RealNet), Arc::clone(&clock), addr.clone(), settings);
        Self {
            clock,
            addr,
            member,
            calls,
            client: IngesterClient::new(channel),
            cancel,
            tasks,
        }
    }

    /// What the member does with the batches to come.
    fn then(&self, next: impl IntoIterator<Item = Next>) {
        self.member.next.lock().extend(next);
    }

    /// Sequences that the member took, in its order.
    fn taken(&self) -> Vec<u64> {
        let batches = self.member.batches.lock();
        batches.iter().map(|b| b.header().sequence).collect()
    }

    /// Whether the server ends soon after it is told to.
    async fn stops(&self) -> bool {
        self.cancel.cancel();
        self.clock.timeout(LONG, self.tasks.stop()).await.is_ok()
    }
}

#[tokio::test]
async fn a_batch_travels_whole_or_is_refused_for_its_size() {
    let served = Served::with(RpcSettings::default(), Calls::default(), 4096).await;
    let small = batch(0, 10);
    served.client.push(Arc::clone(&small)).await.unwrap();
    let error = served.client.push(batch(1, 10_000)).await.unwrap_err();
    assert!(error.message.contains("frame too large"), "{error}");
    served.client.push(batch(2, 11)).await.unwrap();
    assert_eq!(
        served.taken(),
        [0, 2],
        "the large one did not arrive, others go on"
    );
    assert_eq!(served.member.batches.lock()[0].encoded(), small.encoded());
    assert!(served.stops().await);
}

#[tokio::test]
async fn i1_batches_under_way_together_are_each_answered_for_themselves() {
    let served = Served::start().await;
    let go_on = Arc::new(Notify::new());
    served.then([
        Next::Wait(Arc::clone(&go_on)),
        Next::Refuse(ServiceErrorCode::UnknownSeries, 7),
        Next::Panic,
    ]);
    let mut first = Box::pin(served.client.push(batch(0, 10)));
    assert!(futures::poll!(first.as_mut()).is_pending());

    let refused = served.client.push(batch(1, 10)).await.unwrap_err();
    assert_eq!(
        (refused.code, refused.state_version),
        (ServiceErrorCode::UnknownSeries, 7)
    );
    assert_eq!(
        refused.message,
        format!("refused by the test (from {})", served.addr)
    );
    let broken = served.client.push(batch(2, 10)).await.unwrap_err();
    assert_eq!(broken.code, ServiceErrorCode::Internal, "{broken}");
    served.client.push(batch(3, 10)).await.unwrap();
    assert!(
        futures::poll!(first.as_mut()).is_pending(),
        "acknowledged by another's answer"
    );
    go_on.notify_one();
    first.await.unwrap();
    assert_eq!(served.taken(), [3, 0]);
    assert_eq!(
        (served.calls.count("PushMany"), served.calls.count("Push")),
        (1, 0)
    );
    assert!(served.stops().await);
}

#[tokio::test]
async fn i7_a_silent_stream_is_left_though_all_who_waited_gave_up() {
    let settings = RpcSettings {
        deadline: Duration::from_secs(2),
        ..RpcSettings::default()
    };
    let served = Served::with(settings, Calls::default(), 64 << 20).await;
    served.client.push(batch(0, 10)).await.unwrap();
    served.then([Next::Hang]);
    let mut given_up = Box::pin(served.client.push(batch(1, 10)));
    assert!(futures::poll!(given_up.as_mut()).is_pending());
    while !served.member.next.lock().is_empty() {
        served.clock.sleep(Duration::from_millis(1)).await;
    }
    drop(given_up);
    served.clock.sleep(settings.deadline).await;
    served.client.push(batch(2, 10)).await.unwrap();
    assert_eq!(served.calls.count("PushMany"), 2);
    assert_eq!(served.taken(), [0, 2]);
    assert!(served.stops().await);
}

#[tokio::test]
async fn many_at_once_share_a_stream_and_all_arrive() {
    let served = Served::start().await;
    let pushes = (0..600).map(|i| served.client.push(batch(i, 100)));
    for answer in join_all(pushes).await {
        answer.unwrap();
    }
    let mut taken = served.taken();
    taken.sort_unstable();
    assert!(taken.into_iter().eq(0..600));
    assert_eq!(
        (served.calls.count("PushMany"), served.calls.count("Push")),
        (1, 0)
    );
    assert!(served.stops().await);
}

#[tokio::test]
async fn a_sender_that_goes_away_takes_nobody_with_it() {
    let served = Served::start().await;
    served.then([Next::Hang]);
    let mut gone = Box::pin(served.client.push(batch(0, 10)));
    assert!(futures::poll!(gone.as_mut()).is_pending());
    served.client.push(batch(1, 10)).await.unwrap();
    let go_on = Arc::new(Notify::new());
    served.then([Next::Wait(Arc::clone(&go_on))]);
    let stays = served.client.push(batch(2, 10));
    let leaves = async {
        served.client.push(batch(3, 10)).await.unwrap();
        drop(gone);
        served.client.push(batch(4, 10)).await.unwrap();
        go_on.notify_one();
    };
    join(stays, leaves).await.0.unwrap();
    assert_eq!(served.taken(), [1, 3, 4, 2]);
    assert_eq!(served.calls.count("PushMany"), 1);
}

#[tokio::test]
async fn i7_a_member_that_does_not_answer_is_dialled_afresh() {
    let settings = RpcSettings {
        deadline: Duration::from_secs(2),
        ..RpcSettings::default()
    };
    let served = Served::with(settings, Calls::default(), 64 << 20).await;
    served.then([Next::Hang]);
    let error = served.client.push(batch(0, 10)).await.unwrap_err();
    assert_eq!(error.code, ServiceErrorCode::DeadlineExceeded);
    assert!(error.message.starts_with(&served.addr), "{error}");
    served.client.push(batch(1, 10)).await.unwrap();
    assert_eq!(served.calls.count("PushMany"), 2);
    // What was given up is not waited for.
    assert!(served.stops().await);
}

#[tokio::test]
async fn i16_a_member_of_a_version_without_streams_of_pushes_gets_calls() {
    let old = Calls {
        is_old: true,
        ..Calls::default()
    };
    let served = Served::with(RpcSettings::default(), old, 64 << 20).await;
    let pushes = (0..10).map(|i| served.client.push(batch(i, 10)));
    for answer in join_all(pushes).await {
        answer.unwrap();
    }
    served.then([Next::Refuse(ServiceErrorCode::Stale, 3)]);
    let refused = served.client.push(batch(10, 10)).await.unwrap_err();
    assert_eq!(
        (refused.code, refused.state_version),
        (ServiceErrorCode::Stale, 3)
    );
    let mut taken = served.taken();
    taken.sort_unstable();
    assert!(taken.into_iter().eq(0..10));
    assert_eq!(
        (served.calls.count("PushMany"), served.calls.count("Push")),
        (1, 11)
    );
    assert!(served.stops().await);
}

#[tokio::test]
async fn a_large_batch_has_a_call_of_its_own() {
    let served = Served::start().await;
    served.client.push(batch(0, 100_000)).await.unwrap();
    assert_eq!(
        (served.calls.count("PushMany"), served.calls.count("Push")),
        (0, 1)
    );
    assert!(served.stops().await);
}

#[tokio::test]
async fn a_server_that_stops_answers_what_came_and_waits_for_no_open_stream() {
    let served = Served::start().await;
    served.client.push(batch(0, 10)).await.unwrap();
    let go_on = Arc::new(Notify::new());
    served.then([Next::Wait(Arc::clone(&go_on))]);
    let mut under_way = Box::pin(served.client.push(batch(1, 10)));
    assert!(futures::poll!(under_way.as_mut()).is_pending());
    // By now the stream has brought the one before, too.
    served.client.push(batch(2, 10)).await.unwrap();
    served.cancel.cancel();
    go_on.notify_one();
    under_way.await.unwrap();
    assert!(served.stops().await);
    let error = served.client.push(batch(3, 10)).await.unwrap_err();
    assert_eq!(error.code, ServiceErrorCode::Unavailable, "{error}");
    assert_eq!(served.taken(), [0, 2, 1]);
}

#[tokio::test]
async fn i7_senders_find_a_member_that_came_back() {
    let served = Served::start().await;
    served.client.push(batch(0, 10)).await.unwrap();
    assert!(served.stops().await);
    let error = served.client.push(batch(1, 10)).await.unwrap_err();
    assert_eq!(error.code, ServiceErrorCode::Unavailable, "{error}");

    let listener = RealNet.bind(&served.addr).await.unwrap();
    let routes = Routes::new(IngesterRpc::server(Arc::clone(&served.member) as _));
    let server = GrpcServer::new(Arc::clone(&served.clock), ConnectionLimits::default(), 64 << 20);
    let (cancel, tasks) = (CancellationToken::new(), TaskGroup::new(CancellationToken::new()));
    let token = cancel.clone();
    tasks.spawn(
        "server",
        async move { server.serve(listener, routes, token).await },
    );
    served.client.push(batch(2, 10)).await.unwrap();
    assert_eq!(served.taken(), [0, 2]);
    cancel.cancel();
    assert!(served.clock.timeout(LONG, tasks.stop()).await.is_ok());
}
