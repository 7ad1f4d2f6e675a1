//! Small requests that name large things often: what they cost is bounded by the limits. Each has a size that takes
//! minutes, for which nextest does not wait, or more memory than there is, when it is not.

use koios_distributor::Settings;
use koios_tenancy::Limits;
use rstest::rstest;

use crate::messages::*;
use crate::otlp;
use crate::rig::{NOW, Rig, state};

const MIB: usize = 1 << 20;
const TOO_OLD: i64 = NOW - 24 * 3_600_000;

#[tokio::test(start_paused = true)]
async fn i12_labels_beyond_their_limits_are_not_read() {
    let rig = Rig::single();
    let names: Vec<String> = (0..50).map(|i| format!("l{i}")).collect();
    let huge = "x".repeat(8 * MIB);
    let mut symbols = vec!["", "__name__", "up", &huge];
    symbols.extend(names.iter().map(String::as_str));
    let refs: Vec<u64> = (0..50).flat_map(|i| [4 + i, 3]).collect();
    let bad = series_v2(&[&[1, 2], &refs[..]].concat(), &[(NOW, 1.0)]);
    let answer = rig.push_v2(&request_v2(&symbols, &vec![bad; 2_000])).await;
    answer.assert(
        400,
        "label value too long (actual: 8388608, limit: 65536, label \"l0\")",
    );
    answer.assert(400, "rejected: 2000 samples of 2000 series");
    // As a name, and where no label is too long by itself.
    let bad = series_v2(&[1, 2, 3, 2], &[(NOW, 1.0)]);
    let answer = rig.push_v2(&request_v2(&symbols, &vec![bad; 20_000])).await;
    answer.assert(400, "label name too long (actual: 8388608, limit: 1024)");
    let long = "x".repeat(64 << 10);
    symbols[3] = &long;
    let bad = series_v2(&[&[1, 2], &refs[..]].concat(), &[(NOW, 1.0)]);
    let answer = rig.push_v2(&request_v2(&symbols, &vec![bad; 20_000])).await;
    answer.assert(400, "label set too large (actual: 3276");
    assert_eq!(rig.stored(), []);
}

#[tokio::test(start_paused = true)]
async fn i12_exemplars_beyond_their_limits_are_not_read() {
    let rig = Rig::single();
    let huge = "x".repeat(8 * MIB);
    let exemplar = Message::default()
        .packed(1, &[3, 4])
        .double(2, 0.5)
        .number(3, NOW as u64);
    let with = (0..200_000).fold(series_v2(&[1, 2], &[(NOW, 1.0)]), |m, _| m.message(4, &exemplar));
    let answer = rig
        .push_v2(&request_v2(&["", "__name__", "up", "trace_id", &huge], &[with]))
        .await;
    answer.assert(204, "");
    assert_eq!(answer.header("x-prometheus-remote-write-exemplars-written"), "0");
    assert!(answer.header("warning").contains("dropped: 200000"), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn i12_labels_of_what_is_refused_count_too() {
    let rig = Rig::single();
    let tag = "x".repeat(60_000);
    let fields: Vec<String> = (0..16_000).map(|i| format!("f{i}=1")).collect();
    let line = format!("m,a={tag},b={tag},c={tag} {} {TOO_OLD}000000\n", fields.join(","));
    let answer = rig.request("POST", "/write", &[], line.into_bytes()).await;
    answer.assert(413, "limits.max-request-bytes");
    // And so do those of series that have no name.
    let bad = series_v2(&[1, 2, 3, 2, 4, 2], &[(NOW, 1.0)]);
    let answer = rig
        .push_v2(&request_v2(&["", "a", &tag, "b", "c"], &vec![bad; 16_000]))
        .await;
    answer.assert(413, "limits.max-request-bytes");
    assert_eq!(rig.stored(), []);
}

#[tokio::test(start_paused = true)]
async fn i12_a_tag_is_not_read_for_each_field() {
    let rig = Rig::single();
    let fields: Vec<String> = (0..16_000).map(|i| format!("f{i}=1")).collect();
    let line = format!("m,a={} {}\n", "x".repeat(8 * MIB), fields.join(","));
    let answer = rig.request("POST", "/write", &[], line.into_bytes()).await;
    answer.assert(400, "label value too long (actual: 8388608, limit: 65536");
}

/// Native histograms of 4,096 buckets, one byte each until they are decoded.
pub(crate) fn many_buckets(n: usize) -> impl Iterator<Item = Message> {
    let deltas: Vec<u64> = std::iter::once(2).chain(vec![0; 4_095]).collect();
    let common = Message::default()
        .number(1, 4_096)
        .double(3, 1.0)
        .span(11, 0, 4_096)
        .packed(12, &deltas);
    (0..n).map(move |i| common.clone().number(15, (NOW + i as i64) as u64))
}

// The last of the request is no message at all: nobody looks at it.
#[rstest]
#[case::of_one_series(true)]
#[case::of_many_series(false)]
#[tokio::test(start_paused = true)]
async fn i12_memory_for_histograms_is_asked_for_as_it_is_needed(#[case] is_one: bool) {
    let settings = Settings {
        bytes_in_flight_max: 64 * MIB as u64,
        ..Settings::default()
    };
    let rig = Rig::with_settings(state(1, 1, 1, 1), Limits::default(), settings);
    let of = |n: usize| match is_one {
        true => vec![many_buckets(n).fold(series(&[(b"__name__", b"h")], &[]), |m, h| m.message(4, &h))],
        false => many_buckets(n)
            .map(|h| series(&[(b"__name__", b"h")], &[]).message(4, &h))
            .collect(),
    };
    let mut body = request(&of(2_000));
    body.extend_from_slice(&[0xff; 20]);
    rig.push(&body).await.assert(413, "bytes while it is decoded");
    assert!(rig.stored().is_empty());
    // All was given back, and what fits is taken.
    for _ in 0..3 {
        rig.push(&request(&of(400))).await.assert(204, "");
    }
    assert!(
        rig.metrics
            .encode()
            .contains("koios_distributor_request_bytes_in_flight 0")
    );
}

/// A series with so many exemplars, each with so many times this label.
fn many_exemplars(exemplars: usize, labels: usize, label: &Message) -> Message {
    let labels = (0..labels).fold(Message::default(), |m, _| m.message(1, label));
    (0..exemplars).fold(series(&[(b"__name__", b"e")], &[]), |m, i| {
        m.message(3, &labels.clone().number(3, (NOW + i as i64) as u64))
    })
}

// The last of the request is no message at all: nobody looks at it.
#[rstest]
#[case::of_many_labels_of_two_bytes(64 * MIB, 1, 20_000, 129, Message::default())]
#[case::that_are_taken(16 * MIB, 20, 10_000, 1, Message::default().bytes(1, "a").bytes(2, "b"))]
#[tokio::test(start_paused = true)]
async fn i12_memory_for_exemplars_is_asked_for_as_it_is_needed(
    #[case] bytes_in_flight_max: usize,
    #[case] series: usize,
    #[case] exemplars: usize,
    #[case] labels: usize,
    #[case] label: Message,
) {
    let settings = Settings {
        bytes_in_flight_max: bytes_in_flight_max as u64,
        ..Settings::default()
    };
    let rig = Rig::with_settings(state(1, 1, 1, 1), Limits::default(), settings);
    let mut body = request(&vec![many_exemplars(exemplars, labels, &label); series]);
    let itself = body.len() + snappy(&body).len();
    assert!(
        itself < bytes_in_flight_max / 2,
        "{itself}: not for what is decoded"
    );
    body.extend_from_slice(&[0xff; 20]);
    rig.push(&body).await.assert(413, "bytes while it is decoded");
    assert!(rig.stored().is_empty());
    // All was given back, and what fits is taken.
    rig.push(&request(&[many_exemplars(100, 1, &label)]))
        .await
        .assert(204, "");
    assert!(
        rig.metrics
            .encode()
            .contains("koios_distributor_request_bytes_in_flight 0")
    );
}

fn attribute(name: &str, value: &str) -> Message {
    let value = Message::default().bytes(1, value);
    Message::default().bytes(1, name).message(2, &value)
}

/// A request of OTLP with these attributes of its resource and its scope.
fn of_resource(resource: &[(&str, &str)], scope: &str, metrics: &[Message]) -> Vec<u8> {
    let attributes = resource.iter();
    let resource = attributes.fold(Message::default(), |m, (k, v)| m.message(1, &attribute(k, v)));
    let scope = Message::default().message(1, &Message::default().message(3, &attribute("q", scope)));
    let scope = metrics.iter().fold(scope, |m, metric| m.message(2, metric));
    Message::default()
        .message(1, &Message::default().message(1, &resource).message(2, &scope))
        .0
}

fn delta(name: &str, points: usize) -> Message {
    let nanos = |t: i64| t as u64 * 1_000_000;
    let point = |i: usize| {
        Message::default()
            .fixed(2, nanos(NOW - 10_000))
            .fixed(3, nanos(NOW - i as i64))
            .fixed(6, 1)
    };
    let sum = (0..points).fold(Message::default(), |m, i| m.message(1, &point(i)));
    Message::default()
        .bytes(1, name)
        .message(7, &sum.number(2, 1).number(3, 1))
}

#[tokio::test(start_paused = true)]
async fn i12_attributes_of_resources_and_scopes_are_not_read_for_each_metric_or_point() {
    let rig = Rig::single();
    let huge = "x".repeat(4 * MIB);
    let instance = [("service.name", "shop"), ("service.instance.id", &huge)];
    let points: Vec<Message> = (0..20_000).map(|i| otlp::point(NOW + i, 1.0)).collect();
    let deltas: Vec<Message> = (0..20_000).map(|i| delta(&format!("d{i}"), 1)).collect();
    for body in [
        of_resource(&instance, "", &[otlp::gauge("g", &points)]),
        of_resource(&instance, "", &[delta("d", 8_000)]),
        of_resource(&[("service.name", "shop"), ("other", &huge)], "", &deltas),
        of_resource(&[("service.name", "shop")], &huge, &deltas),
    ] {
        let answer = rig.request("POST", otlp::PATH, &[otlp::PROTOBUF], body).await;
        answer.assert(200, "");
    }
    // Of the third a zero and a value each, to which the fourth adds those of another stream.
    assert_eq!(rig.stored().len(), 60_000);
}

// The first is the newest, so that all others are refused before they are any series.
#[tokio::test(start_paused = true)]
async fn i12_labels_of_deltas_that_are_refused_count_too() {
    let rig = Rig::single();
    let long = "x".repeat(60_000);
    let resource = [("service.name", long.as_str()), ("service.instance.id", &long)];
    let body = of_resource(&resource, "", &[delta("d", 9_000)]);
    let answer = rig.request("POST", otlp::PATH, &[otlp::PROTOBUF], body).await;
    answer.assert(413, "raise limits.max-request-bytes");
    assert!(rig.stored().is_empty());
}
