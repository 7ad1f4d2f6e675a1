//! OTLP by HTTP, in protobuf and in JSON, and by gRPC.

use axum::body::Body;
use http::HeaderMap;
use koios_tenancy::Limits;
use rstest::rstest;
use tower::ServiceExt as _;

use crate::messages::{Message, snappy};
use crate::rig::{NOW, Next, Rig, state};

pub(crate) const PATH: &str = "/otlp/v1/metrics";
pub(crate) const PROTOBUF: (&str, &str) = ("content-type", "application/x-protobuf");
const JSON: (&str, &str) = ("content-type", "application/json");
const EXPORT: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";

pub(crate) fn point(t: i64, v: f64) -> Message {
    Message::default().fixed(3, t as u64 * 1_000_000).double(4, v)
}

pub(crate) fn gauge(name: &str, points: &[Message]) -> Message {
    let gauge = points.iter().fold(Message::default(), |m, p| m.message(1, p));
    Message::default().bytes(1, name).message(5, &gauge)
}

/// A request of a service named `shop`.
pub(crate) fn request(metrics: &[Message]) -> Vec<u8> {
    let name = Message::default().bytes(1, "service.name");
    let name = name.message(2, &Message::default().bytes(1, "shop"));
    let resource = Message::default().message(1, &name);
    let scope = metrics
        .iter()
        .fold(Message::default(), |m, metric| m.message(2, metric));
    let of_resource = Message::default().message(1, &resource).message(2, &scope);
    Message::default().message(1, &of_resource).0
}

fn stored(rig: &Rig) -> Vec<String> {
    let all = rig.stored();
    all.into_iter()
        .map(|(labels, t, v)| format!("{labels} {v} {t}"))
        .collect()
}

fn gzip(data: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    let mut out = vec![flag];
    out.extend_from_slice(&(message.len() as u32).to_be_bytes());
    out.extend_from_slice(message);
    out
}

/// The reply's message, and its status with what was said: in the trailers or, without a message, in the headers.
pub(crate) async fn by_grpc(
    rig: &Rig,
    headers: &[(&str, &str)],
    body: impl Into<Body>,
) -> (Vec<u8>, HeaderMap) {
    let mut request = http::Request::post(EXPORT).header("content-type", "application/grpc");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(body.into()).unwrap();
    let response = rig.distributor.grpc_router().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut said = response.headers().clone();
    let body = http_body_util::BodyExt::collect(response.into_body())
        .await
        .unwrap();
    said.extend(body.trailers().cloned().unwrap_or_default());
    (body.to_bytes().to_vec(), said)
}

#[rstest]
#[case::plain(PATH, &[PROTOBUF], |m: &[u8]| m.to_vec())]
#[case::other_path("/prometheus/api/v1/otlp/v1/metrics", &[PROTOBUF], |m: &[u8]| m.to_vec())]
#[case::gzip("/prometheus/otlp/v1/metrics", &[PROTOBUF, ("content-encoding", "gzip")], gzip)]
#[case::snappy("/api/v1/otlp/v1/metrics", &[PROTOBUF, ("content-encoding", "snappy")], snappy)]
#[case::zstd(PATH, &[PROTOBUF, ("content-encoding", "zstd")], |m: &[u8]| zstd::bulk::compress(m, 1).unwrap())]
#[tokio::test(start_paused = true)]
async fn requests_are_written(
    #[case] path: &str,
    #[case] headers: &[(&str, &str)],
    #[case] pack: fn(&[u8]) -> Vec<u8>,
) {
    let rig = Rig::single();
    let body = pack(&request(&[gauge("queue.size", &[point(NOW, 3.0)])]));
    let answer = rig.request("POST", path, headers, body).await;
    answer.assert(200, "");
    assert_eq!(answer.body, "");
    assert_eq!(answer.header("content-type"), "application/x-protobuf");
    assert_eq!(
        stored(&rig),
        [format!("{{__name__=\"queue_size\", job=\"shop\"}} 3 {NOW}")]
    );
    let metadata = rig.members[0].metadata();
    assert_eq!(
        (metadata[0].0.as_str(), metadata[0].1.kind.as_str()),
        ("queue_size", "gauge")
    );
}

#[tokio::test(start_paused = true)]
async fn json_is_written_and_answered_in_json() {
    let rig = Rig::single();
    let json = format!(
        r#"{{"resourceMetrics":[{{"scopeMetrics":[{{"metrics":[
            {{"name":"a","unit":"s","sum":{{"isMonotonic":true,"aggregationTemporality":2,
              "dataPoints":[{{"timeUnixNano":"{NOW}000000","asInt":"7"}}]}}}},
            {{"name":"b","sum":{{"dataPoints":[{{"timeUnixNano":"{NOW}000000","asInt":1}},{{}}]}}}}
        ]}}]}}]}}"#
    );
    let answer = rig.request("POST", PATH, &[JSON], json).await;
    answer.assert(200, r#""rejectedDataPoints":"2""#);
    answer.assert(200, "unspecified aggregation temporality");
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(
        stored(&rig),
        [format!("{{__name__=\"a_seconds_total\"}} 7 {NOW}")]
    );
}

#[tokio::test(start_paused = true)]
async fn a_tenant_has_its_own_translation() {
    let mut limits = Limits::default();
    limits.otlp.translation_strategy = "NoTranslation".parse().unwrap();
    limits.otlp.promote_resource_attributes = vec!["service.name".to_owned()];
    let rig = Rig::new(state(1, 1, 1, 1), limits);
    let body = request(&[gauge("queue.size", &[point(NOW, 3.0)])]);
    rig.request("POST", PATH, &[PROTOBUF], body).await.assert(200, "");
    assert_eq!(
        stored(&rig),
        [format!(
            "{{__name__=\"queue.size\", job=\"shop\", \"service.name\"=\"shop\"}} 3 {NOW}"
        )]
    );
}

#[tokio::test(start_paused = true)]
async fn bad_data_points_are_told_and_the_others_written() {
    let rig = Rig::single();
    let points = [point(NOW, 1.0), point(NOW - 86_400_000, 1.0), point(1, 1.0)];
    let tenant = Message::default()
        .bytes(1, "__tenant__")
        .message(2, &Message::default().bytes(1, "x"));
    let reserved = gauge("b", &[point(NOW, 1.0).message(7, &tenant)]);
    let body = request(&[gauge("a", &points), reserved]);
    let answer = rig.request("POST", PATH, &[PROTOBUF], body).await;
    answer.assert(200, "too old sample (window: 6h)");
    assert!(
        answer.body.contains("\u{8}\u{3}\u{12}"),
        "three are rejected: {answer:?}"
    );
    assert_eq!(
        stored(&rig),
        [format!("{{__name__=\"a\", job=\"shop\"}} 1 {NOW}")]
    );
}

#[rstest]
#[case::no_type(&[], "", 415, "unsupported content type \"\", use application/x-protobuf or application/json")]
#[case::brotli(&[PROTOBUF, ("content-encoding", "br")], "", 415, "unsupported content encoding \"br\"")]
#[case::cut(&[PROTOBUF], "\n\x09", 400, "invalid protobuf: unexpected end at byte")]
#[case::not_json(&[JSON], "{\n\"resourceMetrics\": [}", 400, "invalid OTLP JSON at line 2 column 21")]
#[case::wrong_type(&[JSON], "{\"resourceMetrics\": true}", 400, "invalid OTLP JSON at line 1")]
#[case::tenant(&[PROTOBUF, ("x-scope-orgid", "a/b")], "", 400, "tenant ID \"a/b\" contains")]
#[tokio::test(start_paused = true)]
async fn bad_requests_are_refused_with_a_status(
    #[case] headers: &[(&str, &str)],
    #[case] body: &'static str,
    #[case] code: u16,
    #[case] message: &str,
) {
    let rig = Rig::single();
    let answer = rig.request("POST", PATH, headers, body).await;
    assert_eq!(answer.status, code, "{answer:?}");
    let json = headers.contains(&JSON);
    let said = answer.body.replace("\\\"", "\"");
    assert!(said.contains(message), "{answer:?}");
    assert_eq!(said.starts_with("{\"code\":3"), json, "{answer:?}");
    assert_eq!(
        answer.header("content-type"),
        if json {
            "application/json"
        } else {
            "application/x-protobuf"
        }
    );
}

// Row 39.
#[tokio::test(start_paused = true)]
async fn attributes_without_bounds_are_refused() {
    let rig = Rig::single();
    let nested = (0..200).fold(Message::default().number(3, 1), |m, _| {
        let item = Message::default().bytes(1, "k").message(2, &m);
        Message::default().message(6, &Message::default().message(1, &item))
    });
    let attribute = |value: &Message| Message::default().bytes(1, "a").message(2, value);
    let of_resource = |resource: Message| {
        let of_resource = Message::default().message(1, &resource);
        Message::default().message(1, &of_resource).0
    };
    let deep = of_resource(Message::default().message(1, &attribute(&nested)));
    rig.request("POST", PATH, &[PROTOBUF], deep)
        .await
        .assert(400, "attribute nesting exceeds 16");
    let one = attribute(&Message::default().bytes(1, "v"));
    let many = of_resource((0..5_000).fold(Message::default(), |m, _| m.message(1, &one)));
    rig.request("POST", PATH, &[PROTOBUF], many)
        .await
        .assert(400, "more than 1024 attributes");
}

#[tokio::test(start_paused = true)]
async fn what_may_succeed_later_says_when() {
    let rig = Rig::single();
    *rig.members[0].always.lock() = Some(Next::Refuse(koios_wire::ServiceErrorCode::Unavailable, 1));
    let body = request(&[gauge("a", &[point(NOW, 1.0)])]);
    let answer = rig.request("POST", PATH, &[PROTOBUF], body.clone()).await;
    answer.assert(503, "not enough replicas acknowledged (0/1)");
    assert_eq!(answer.header("retry-after"), "1");
    let (_, said) = by_grpc(&rig, &[], framed(0, &body)).await;
    assert_eq!(said["grpc-status"], "14");
    assert!(said.contains_key("grpc-status-details-bin"), "{said:?}");
}

#[rstest]
#[case::plain(0, &[], |m: &[u8]| m.to_vec())]
#[case::gzip(1, &[("grpc-encoding", "gzip")], gzip)]
#[case::zstd(1, &[("grpc-encoding", "zstd")], |m: &[u8]| zstd::bulk::compress(m, 1).unwrap())]
#[case::not_this_one(0, &[("grpc-encoding", "gzip")], |m: &[u8]| m.to_vec())]
#[tokio::test(start_paused = true)]
async fn grpc_is_written(
    #[case] flag: u8,
    #[case] headers: &[(&str, &str)],
    #[case] pack: fn(&[u8]) -> Vec<u8>,
) {
    let rig = Rig::single();
    let message = request(&[gauge("a", &[point(NOW, 1.0)])]);
    let headers = [headers, &[("x-scope-orgid", "team")]].concat();
    let (reply, said) = by_grpc(&rig, &headers, framed(flag, &pack(&message))).await;
    assert_eq!(
        (said["grpc-status"].as_bytes(), reply.as_slice()),
        (&b"0"[..], &[0; 5][..])
    );
    let head = rig.members[0].head.lock();
    assert_eq!(
        head.keys()
            .map(|(tenant, ..)| tenant.as_str())
            .collect::<Vec<_>>(),
        ["team"]
    );
}

#[tokio::test(start_paused = true)]
async fn bad_requests_by_grpc_have_a_code() {
    let rig = Rig::single();
    let bad = request(&[gauge("a", &[point(1, 1.0)])]);
    let (reply, said) = by_grpc(&rig, &[], framed(0, &bad)).await;
    assert_eq!(said["grpc-status"], "0");
    let one_rejected = reply.windows(3).any(|w| w == [0x08, 1, 0x12]);
    assert!(one_rejected, "{reply:?}");
    let zeros = vec![0; 40 << 20];
    for (headers, body, code, message) in [
        (&[][..], vec![], "3", "request is not one message"),
        (&[], framed(0, b"\n\x09"), "3", "invalid protobuf"),
        (&[], framed(2, b""), "3", "request is not one message"),
        (&[], vec![0, 0, 0, 0, 9, 1], "3", "request is not one message"),
        (
            &[("grpc-encoding", "br")],
            framed(1, b"x"),
            "12",
            "unsupported content encoding",
        ),
        (&[("x-scope-orgid", "a/b")], framed(0, b""), "3", "tenant ID"),
        (
            &[("grpc-encoding", "gzip")],
            framed(1, &gzip(&zeros)),
            "8",
            "message larger than max",
        ),
        (&[], framed(0, &zeros), "8", "message larger than max"),
    ] {
        let (_, said) = by_grpc(&rig, headers, body).await;
        assert_eq!(said["grpc-status"], code, "{said:?}");
        let text = said["grpc-message"].to_str().unwrap().replace("%20", " ");
        assert!(text.contains(message), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_the_listener_refuses_is_too_large() {
    let rig = Rig::single();
    let refused = tonic::Status::resource_exhausted("frame too large");
    let body = Body::from_stream(futures::stream::iter([Err::<Vec<u8>, _>(refused)]));
    let (_, said) = by_grpc(&rig, &[], body).await;
    assert_eq!(said["grpc-status"], "8");
}

#[tokio::test(start_paused = true)]
async fn i2_a_delta_whose_request_failed_is_counted_once_when_it_comes_again() {
    let rig = Rig::single();
    let delta = |start: i64, end: i64, n: u64| {
        let point = Message::default().fixed(2, start as u64 * 1_000_000);
        let point = point.fixed(3, end as u64 * 1_000_000).fixed(6, n);
        let sum = Message::default().message(1, &point).number(2, 1).number(3, 1);
        request(&[Message::default().bytes(1, "a").message(7, &sum)])
    };
    let first = delta(NOW - 2_000, NOW - 1_000, 3);
    rig.request("POST", PATH, &[PROTOBUF], first)
        .await
        .assert(200, "");
    let second = delta(NOW - 1_000, NOW, 4);
    let refuse = Next::Refuse(koios_wire::ServiceErrorCode::Unavailable, 1);
    *rig.members[0].always.lock() = Some(refuse);
    rig.request("POST", PATH, &[PROTOBUF], second.clone())
        .await
        .assert(503, "");
    *rig.members[0].always.lock() = None;
    for _ in 0..2 {
        rig.request("POST", PATH, &[PROTOBUF], second.clone())
            .await
            .assert(200, "");
    }
    let stored: Vec<_> = rig.stored().into_iter().map(|(_, t, v)| (t - NOW, v)).collect();
    assert_eq!(stored, [(-1_999, 0.0), (-1_000, 3.0), (0, 7.0)]);
}

#[tokio::test(start_paused = true)]
async fn i2_several_deltas_of_a_series_whose_request_failed_are_all_written_when_it_comes_again() {
    let rig = Rig::single();
    let point = |start: i64, end: i64, n: u64| {
        let point = Message::default().fixed(2, start as u64 * 1_000_000);
        point.fixed(3, end as u64 * 1_000_000).fixed(6, n)
    };
    let sum = Message::default()
        .message(1, &point(NOW - 2_000, NOW - 1_000, 5))
        .message(1, &point(NOW - 1_000, NOW, 2));
    let sum = sum.number(2, 1).number(3, 1);
    let body = request(&[Message::default().bytes(1, "a").message(7, &sum)]);
    let refuse = Next::Refuse(koios_wire::ServiceErrorCode::Unavailable, 1);
    *rig.members[0].always.lock() = Some(refuse);
    rig.request("POST", PATH, &[PROTOBUF], body.clone())
        .await
        .assert(503, "");
    *rig.members[0].always.lock() = None;
    for _ in 0..2 {
        let answer = rig.request("POST", PATH, &[PROTOBUF], body.clone()).await;
        answer.assert(200, "");
        assert_eq!(answer.body, "");
    }
    let stored: Vec<_> = rig.stored().into_iter().map(|(_, t, v)| (t - NOW, v)).collect();
    assert_eq!(stored, [(-1_999, 0.0), (-1_000, 5.0), (0, 7.0)]);
}

#[tokio::test(start_paused = true)]
async fn data_points_in_conflict_are_no_more_than_came() {
    let rig = Rig::single();
    let histogram = |first: u64| {
        let counts: Vec<u8> = [first, 1, 1].iter().flat_map(|n| n.to_le_bytes()).collect();
        let bounds: Vec<u8> = [1f64, 2.0].iter().flat_map(|b| b.to_le_bytes()).collect();
        let point = Message::default()
            .fixed(3, NOW as u64 * 1_000_000)
            .fixed(4, first + 2)
            .double(5, first as f64)
            .bytes(6, counts)
            .bytes(7, bounds);
        let data = Message::default().message(1, &point).number(2, 2);
        request(&[Message::default().bytes(1, "sizes").message(9, &data)])
    };
    rig.request("POST", PATH, &[PROTOBUF], histogram(1))
        .await
        .assert(200, "");
    let answer = rig.request("POST", PATH, &[PROTOBUF], histogram(2)).await;
    answer.assert(200, "(samples in conflict: 5)");
    assert!(
        answer.body.contains("\u{8}\u{1}\u{12}"),
        "one is rejected: {answer:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn i13_a_data_point_that_replaces_another_is_not_rejected() {
    let rig = Rig::single();
    *rig.members[0].keeps_last.lock() = true;
    let export = async |v: f64| {
        let body = request(&[gauge("a", &[point(NOW, v)])]);
        rig.request("POST", PATH, &[PROTOBUF], body).await
    };
    export(1.0).await.assert(200, "");
    let answer = export(2.0).await;
    answer.assert(200, "duplicate sample for timestamp");
    answer.assert(200, "(samples in conflict: 1)");
    let said = answer.body.as_bytes();
    assert!(!said.windows(3).any(|bytes| bytes == [8, 1, 0x12]), "{answer:?}");
    assert_eq!(rig.stored()[0].2, 2.0);
}

#[tokio::test(start_paused = true)]
async fn an_exemplars_trace_stays_before_an_attribute_of_its_name() {
    let rig = Rig::single();
    let attribute = Message::default().bytes(1, "trace_id");
    let attribute = attribute.message(2, &Message::default().bytes(1, "other"));
    let exemplar = Message::default()
        .double(3, 1.5)
        .bytes(5, [0xab; 16])
        .message(7, &attribute);
    let sum = Message::default()
        .message(1, &point(NOW, 1.0).message(5, &exemplar))
        .number(2, 2)
        .number(3, 1);
    let body = request(&[Message::default().bytes(1, "a").message(7, &sum)]);
    rig.request("POST", PATH, &[PROTOBUF], body).await.assert(200, "");
    let batches = rig.members[0].batches.lock();
    let exemplars = &batches[0].columns().exemplars;
    assert_eq!(exemplars.len(), 1);
    let trace = "ab".repeat(16);
    assert_eq!(exemplars[0].exemplar.labels.get("trace_id"), Some(trace.as_str()));
}

#[tokio::test(start_paused = true)]
async fn native_histograms_and_exemplars_are_written() {
    let rig = Rig::single();
    let time = NOW as u64 * 1_000_000;
    let exemplar = |trace: &[u8], time: u64| Message::default().double(3, 1.5).fixed(2, time).bytes(5, trace);
    let point = Message::default()
        .fixed(3, time)
        .fixed(4, 3)
        .double(5, 4.5)
        .message(8, &Message::default().packed(2, &[1, 2]))
        .message(11, &exemplar(&[0xab; 16], time))
        .message(11, &exemplar(&[0xcd; 16], 1_000_000));
    let data = Message::default().message(1, &point).number(2, 2);
    let body = request(&[Message::default().bytes(1, "sizes").message(10, &data)]);
    let answer = rig.request("POST", PATH, &[PROTOBUF], body).await;
    answer.assert(200, "");
    assert_eq!(answer.body, "");
    assert!(answer.header("warning").contains("(dropped: 1)"), "{answer:?}");
    let batches = rig.members[0].batches.lock();
    let columns = batches[0].columns();
    assert_eq!(columns.histograms[0].histogram.positive_buckets, [1.0, 2.0]);
    let trace = "ab".repeat(16);
    assert_eq!(columns.exemplars.len(), 1);
    assert_eq!(
        columns.exemplars[0].exemplar.labels.get("trace_id"),
        Some(trace.as_str())
    );
}
