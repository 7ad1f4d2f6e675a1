//! What senders are told of the limits that they reach: the value, the limit and the setting; and whose limits hold.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use axum::body::Body;
use futures::StreamExt as _;
use futures::stream;
use koios_distributor::Settings;
use koios_model::TenantId;
use koios_server::config::all_settings;
use koios_tenancy::Limits;
use koios_wire::ServiceErrorCode;

use crate::imports::FAMILIES;
use crate::messages::*;
use crate::otlp;
use crate::rig::{Answer, NOW, Next, Rig, state};

const TYPE: (&str, &str) = ("content-type", "application/x-protobuf");
const V2: (&str, &str) = (
    "content-type",
    "application/x-protobuf;proto=io.prometheus.write.v2.Request",
);
const JSON: (&str, &str) = ("content-type", "application/json");
const HOUR: i64 = 3_600_000;
/// The heading of the reference page under which the limits on writes stand.
const HEADING: &str = "Limits on writes";

/// A request.
struct Sent {
    path: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    body: Body,
}

fn sent(path: &'static str, headers: &[(&'static str, &'static str)], body: impl Into<Body>) -> Sent {
    Sent {
        path,
        headers: headers.to_vec(),
        body: body.into(),
    }
}

fn v1(series: &[Message]) -> Sent {
    sent("/api/v1/push", &[TYPE], snappy(&request(series)))
}

fn v2(symbols: &[&str], series: &[Message]) -> Sent {
    sent("/api/v1/push", &[V2], snappy(&request_v2(symbols, series)))
}

fn text(body: String) -> Sent {
    sent("/api/v1/import/prometheus", &[], body)
}

fn line_protocol(body: String) -> Sent {
    sent("/write", &[], body)
}

/// A series of a metric with some more labels, and a sample now.
fn up(labels: &[(&str, &str)]) -> Message {
    let name = [("__name__", "up")];
    let all: Vec<(&[u8], &[u8])> = name
        .iter()
        .chain(labels)
        .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
        .collect();
    series(&all, &[(NOW, 1.0)])
}

fn at(t: i64) -> Sent {
    v1(&[series(&[(b"__name__", b"up")], &[(t, 1.0)])])
}

/// So many samples of one series.
fn samples(n: i64) -> Sent {
    let samples: Vec<(i64, f64)> = (0..n).map(|i| (NOW + i, 1.0)).collect();
    v1(&[series(&[(b"__name__", b"up")], &samples)])
}

fn numbered(n: usize, line: impl Fn(usize) -> String) -> String {
    (0..n).map(line).collect()
}

/// One element over and over in a message of a field.
fn repeated(n: usize, field: u32, element: &Message) -> Message {
    (0..n).fold(Message::default(), |m, _| m.message(field, element))
}

/// A limit, a request beyond it, and what its sender is told.
struct Case {
    name: &'static str,
    limits: Limits,
    /// What is done to the cluster first.
    first: fn(&Rig),
    /// Of which the last is refused.
    requests: Vec<Sent>,
    code: u16,
    /// The value and the limit.
    words: &'static [&'static str],
    setting: &'static str,
}

fn case(
    name: &'static str,
    limits: Limits,
    request: Sent,
    code: u16,
    words: &'static [&'static str],
    setting: &'static str,
) -> Case {
    Case {
        name,
        limits,
        first: |_| {},
        requests: vec![request],
        code,
        words,
        setting,
    }
}

fn of_labels() -> Vec<Case> {
    let limits = || Limits {
        max_labels_per_series: 3,
        max_label_name_bytes: 10,
        max_label_value_bytes: 20,
        max_label_set_bytes: 40,
        ..Limits::default()
    };
    let long = "x".repeat(21);
    vec![
        case(
            "labels",
            limits(),
            v1(&[up(&[("a", "1"), ("b", "1"), ("c", "1")])]),
            400,
            &["actual: 4", "limit: 3"],
            "limits.max-labels-per-series",
        ),
        case(
            "name",
            limits(),
            v1(&[up(&[("eleven_long", "1")])]),
            400,
            &["actual: 11", "limit: 10"],
            "limits.max-label-name-bytes",
        ),
        case(
            "value",
            limits(),
            v1(&[up(&[("a", &long)])]),
            400,
            &["actual: 21", "limit: 20"],
            "limits.max-label-value-bytes",
        ),
        case(
            "label set",
            limits(),
            v1(&[up(&[("a", &long[1..]), ("b", &long[1..])])]),
            400,
            &["actual: 52", "limit: 40"],
            "limits.max-label-set-bytes",
        ),
    ]
}

fn of_times() -> Vec<Case> {
    let limits = || Limits {
        out_of_order_time_window: Duration::from_secs(3600),
        too_far_in_future: Duration::from_secs(60),
        ..Limits::default()
    };
    vec![
        case(
            "too old",
            limits(),
            at(NOW - 2 * HOUR),
            400,
            &["window: 1h", "was 2h before"],
            "limits.out-of-order-time-window",
        ),
        case(
            "too far ahead",
            limits(),
            at(NOW + HOUR),
            400,
            &["limit: 1m", "was 1h ahead"],
            "limits.too-far-in-future",
        ),
    ]
}

/// Limits on how many of something a request has. Counting ends at the limit.
fn of_counts() -> Vec<Case> {
    const SERIES: &[&str] = &["limit: 2", "more than 2"];
    const SYMBOLS: &[&str] = &["limit: 32", "more than 32"];
    const SAMPLES: &[&str] = &["limit: 5", "more than 5"];
    let of_series = "limits.max-series-per-request";
    let of_samples = "limits.max-samples-per-request";
    let limits = || Limits {
        max_series_per_request: 2,
        max_samples_per_request: 5,
        ..Limits::default()
    };
    let case = |name, request, words, setting| case(name, limits(), request, 400, words, setting);
    let three = || vec![up(&[("a", "1")]), up(&[("a", "2")]), up(&[("a", "3")])];
    let points = otlp::gauge("up", &vec![otlp::point(NOW, 1.0); 6]);
    let exemplars = |n| repeated(n, 3, &Message::default().double(2, 1.0).number(3, NOW as u64));
    vec![
        case("series", v1(&three()), SERIES, of_series),
        case(
            "series of text",
            text(numbered(3, |i| format!("up{{a=\"{i}\"}} 1\n"))),
            SERIES,
            of_series,
        ),
        case(
            "series of line protocol",
            line_protocol(numbered(3, |i| format!("up,a={i} f=1\n"))),
            SERIES,
            of_series,
        ),
        case(
            "metadata",
            sent(
                "/api/v1/push",
                &[TYPE],
                snappy(&repeated(3, 3, &Message::default().number(1, 1)).0),
            ),
            SERIES,
            of_series,
        ),
        case(
            "metadata of text",
            text(numbered(3, |i| format!("# TYPE m{i} gauge\n"))),
            SERIES,
            of_series,
        ),
        case("symbols", v2(&[""; 33], &[]), SYMBOLS, of_series),
        case("samples", samples(6), SAMPLES, of_samples),
        case(
            "samples of text",
            text(numbered(6, |i| format!("up 1 {}\n", NOW + i as i64))),
            SAMPLES,
            of_samples,
        ),
        case(
            "samples of line protocol",
            line_protocol(numbered(6, |i| format!("up f=1 {}\n", NOW + i as i64))),
            SAMPLES,
            of_samples,
        ),
        case(
            "data points",
            sent(otlp::PATH, &[TYPE], otlp::request(&[points])),
            SAMPLES,
            of_samples,
        ),
        case("exemplars", v1(&[exemplars(6)]), SAMPLES, of_samples),
    ]
}

/// Ways to be larger than a request may be.
fn of_bytes() -> Vec<Case> {
    const BYTES: usize = 10_000;
    let limits = || Limits {
        max_request_bytes: BYTES as u64,
        ..Limits::default()
    };
    let case = |name, request, words| case(name, limits(), request, 413, words, "limits.max-request-bytes");
    let more: &[&str] = &["more than 10000", "limit"];
    let written_out: &[&str] = &["take more than 10000 bytes"];
    let zeros = vec![0u8; BYTES + 1];
    let pieces = zeros.chunks(100).map(|c| Ok::<_, std::io::Error>(c.to_vec()));
    let pieces = Body::from_stream(stream::iter(pieces.collect::<Vec<_>>()));
    let long = "x".repeat(BYTES / 2);
    let same: Vec<Message> = (0..3).map(|i| series_v2(&[1, 2], &[(NOW + i, 1.0)])).collect();
    let counts = "1,".repeat(BYTES / 4) + "1";
    let json = format!(
        r#"{{"resourceMetrics":[{{"scopeMetrics":[{{"metrics":[{{"name":"a","histogram":{{"dataPoints":[{{"bucketCounts":[{counts}]}}]}}}}]}}]}}]}}"#
    );
    let attribute = |i: u64| {
        Message::default()
            .bytes(1, "k")
            .message(2, &Message::default().number(3, i))
    };
    let points: Vec<Message> = (0..280)
        .map(|i| otlp::point(NOW, 1.0).message(7, &attribute(i)))
        .collect();
    vec![
        case(
            "declared body",
            sent(
                "/api/v1/push",
                &[TYPE, ("content-length", "10001")],
                zeros.clone(),
            ),
            &["actual: 10001", "larger than 10000"],
        ),
        case(
            "body in pieces",
            sent("/api/v1/push", &[TYPE], pieces),
            &["actual: more than 10000", "larger than 10000"],
        ),
        case(
            "declared contents",
            sent("/api/v1/push", &[TYPE], snappy(&zeros)),
            &["declared decoded length 10001", "limit 10000"],
        ),
        case(
            "contents",
            sent(
                "/api/v1/push",
                &[TYPE, ("content-encoding", "zstd")],
                zstd::bulk::compress(&zeros, 3).unwrap(),
            ),
            more,
        ),
        case(
            "labels",
            v2(&["", "__name__", &long], &same),
            &["take more than 10000 bytes", "actual: at least 1"],
        ),
        case(
            "metric families",
            sent("/metrics/job/batch", &[FAMILIES], vec![0; BYTES / 2]),
            written_out,
        ),
        case(
            "tags",
            line_protocol(numbered(300, |i| format!("measurement{i} f=1\n"))),
            written_out,
        ),
        case(
            "JSON",
            sent(otlp::PATH, &[JSON], json),
            &["takes more than 10000 bytes"],
        ),
        case(
            "attributes",
            sent(otlp::PATH, &[TYPE], otlp::request(&[otlp::gauge("up", &points)])),
            written_out,
        ),
    ]
}

/// What a tenant may have, and how fast it may send.
fn of_tenants() -> Vec<Case> {
    let limits = || Limits {
        max_series: 1,
        ..Limits::default()
    };
    let per_metric = || Limits {
        max_series_per_metric: 1,
        ..Limits::default()
    };
    let two = || v1(&[up(&[("a", "1")]), up(&[("a", "2")])]);
    let members_away = |rig: &Rig| {
        *rig.members[0].asked.lock() = Some(Next::Refuse(ServiceErrorCode::Unavailable, 1));
    };
    let rate = || Limits {
        ingestion_rate: 10,
        ingestion_burst: 20,
        ..Limits::default()
    };
    let too_fast = |setting| Case {
        requests: vec![samples(20), samples(7)],
        ..case(
            "rate",
            rate(),
            samples(1),
            429,
            &["10/s", "7 samples", "burst: 20"],
            setting,
        )
    };
    let few_exemplars = Limits {
        max_exemplars: 0,
        ..Limits::default()
    };
    let exemplar = Message::default().double(2, 1.0).number(3, NOW as u64);
    vec![
        case(
            "series",
            limits(),
            two(),
            400,
            &["series limit 1", "now 1"],
            "limits.max-series",
        ),
        case(
            "series of a metric",
            per_metric(),
            two(),
            400,
            &["series limit 1", "now 1", "\"up\""],
            "limits.max-series-per-metric",
        ),
        Case {
            first: members_away,
            ..case(
                "undecided series",
                limits(),
                two(),
                503,
                &["2 series", "series limit 1"],
                "limits.max-series",
            )
        },
        Case {
            first: members_away,
            ..case(
                "undecided series of a metric",
                per_metric(),
                two(),
                503,
                &["2 series", "series limit 1"],
                "limits.max-series-per-metric",
            )
        },
        too_fast("limits.ingestion-rate"),
        too_fast("limits.ingestion-burst"),
        case(
            "exemplars",
            few_exemplars,
            v1(&[up(&[]).message(3, &exemplar)]),
            204,
            &["dropped: 1"],
            "limits.max-exemplars",
        ),
        Case {
            first: |rig| rig.memory.use_percent(90),
            ..case(
                "memory",
                Limits::default(),
                samples(1),
                503,
                &["900 of 1000 MiB"],
                "node.memory-limit-bytes",
            )
        },
    ]
}

/// The answer to the last of some requests, with the warning in its headers.
async fn answer_to(rig: &Rig, requests: Vec<Sent>) -> Answer {
    let mut last = None;
    for Sent { path, headers, body } in requests {
        last = Some(rig.request("POST", path, &headers, body).await);
    }
    let mut last = last.unwrap();
    last.body = format!("{} {}", last.body, last.header("warning"));
    last
}

/// An error says what is too much, how much there may be, and which setting says so.
#[tokio::test(start_paused = true)]
async fn i13_every_limit_names_value_limit_and_setting() {
    let settings: BTreeMap<&str, &str> = all_settings().map(|s| (s.key, s.group)).collect();
    let (mut seen, mut wrong) = (BTreeSet::new(), Vec::new());
    let cases = [of_labels(), of_times(), of_counts(), of_bytes(), of_tenants()];
    for case in cases.into_iter().flatten() {
        let rig = Rig::new(state(1, 1, 1, 1), case.limits);
        (case.first)(&rig);
        let answer = answer_to(&rig, case.requests).await;
        let name = case.name;
        let mut words = case.words.iter().chain([&case.setting]);
        if answer.status.as_u16() != case.code || words.any(|word| !answer.body.contains(word)) {
            let wanted = (case.code, case.words, case.setting);
            wrong.push(format!(
                "{name}: {} {}, wanted {wanted:?}",
                answer.status, answer.body
            ));
        }
        assert!(settings.contains_key(case.setting), "{name}: {}", case.setting);
        seen.insert(case.setting);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let all = settings.iter().filter(|(_, group)| **group == HEADING);
    let untried: Vec<&&str> = all
        .map(|(key, _)| key)
        .filter(|key| !seen.contains(*key))
        .collect();
    assert!(
        untried.is_empty(),
        "limits without a request beyond them: {untried:?}"
    );
    assert!(
        seen.len() > 10,
        "the heading of the limits on writes is another one: {seen:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn i13_bytes_in_flight_name_value_limit_and_setting() {
    const SETTING: &str = "http.max-write-bytes-in-flight";
    let settings = Settings {
        bytes_in_flight_max: 10_000,
        ..Settings::default()
    };
    let rig = Rig::with_settings(state(1, 1, 1, 1), Limits::default(), settings);
    let push = |tenant: &'static str, bytes: usize, ends: bool| {
        let first = stream::once(async move { Ok::<_, std::io::Error>(vec![0; bytes]) });
        let body = match ends {
            true => Body::from_stream(first),
            false => Body::from_stream(first.chain(stream::pending())),
        };
        let headers = [TYPE, ("x-scope-orgid", tenant)];
        let rig = &rig;
        async move { rig.send(&headers, body).await }
    };
    let refused = |answer: &Answer, code: u16, words: &[&str]| {
        for word in words.iter().chain([&SETTING]) {
            answer.assert(code, word);
        }
    };
    let alone = push("a", 5_001, true).await;
    refused(&alone, 413, &["takes 5001 bytes", "limit: 5000"]);
    let held = futures::future::join(push("a", 4_000, false), push("b", 3_000, false));
    let asked = async {
        rig.clock.sleep(Duration::from_secs(1)).await;
        let of_tenant = push("a", 1_001, true).await;
        refused(
            &of_tenant,
            503,
            &["actual: 5001, limit: 5000", "for one tenant half of"],
        );
        let of_all = push("c", 3_001, true).await;
        refused(
            &of_all,
            503,
            &["actual: more than 10000, limit: 10000", "for all tenants"],
        );
    };
    let ((a, b), ()) = futures::join!(held, asked);
    for answer in [a, b] {
        answer.assert(408, "request body stopped for more than 30s");
    }
    assert!(all_settings().any(|setting| setting.key == SETTING));
}

// Row 23.
#[tokio::test(start_paused = true)]
async fn a_tenant_may_have_an_out_of_order_window_of_its_own() {
    let rig = Rig::single();
    let of = |hours: u64| Limits {
        out_of_order_time_window: Duration::from_secs(hours * 3600),
        ..Limits::default()
    };
    let tenants = [("strict", of(1)), ("archive", of(24))];
    let tenants = tenants.map(|(tenant, limits)| (TenantId::new(tenant).unwrap(), limits));
    rig.limits.replace(Limits::default(), tenants.into());
    for (tenant, hours, refused) in [
        ("strict", 0, None),
        ("strict", 2, Some("too old sample (window: 1h)")),
        ("other", 2, None),
        ("other", 12, Some("too old sample (window: 6h)")),
        ("archive", 12, None),
        ("archive", 25, Some("too old sample (window: 1d)")),
    ] {
        let Sent {
            path,
            mut headers,
            body,
        } = at(NOW - hours * HOUR);
        headers.push(("x-scope-orgid", tenant));
        let answer = rig.request("POST", path, &headers, body).await;
        answer.assert(refused.map_or(204, |_| 400), refused.unwrap_or(""));
    }
    let kept: BTreeSet<(String, i64)> = rig.members[0]
        .head
        .lock()
        .keys()
        .map(|(tenant, _, t)| (tenant.clone(), (NOW - t) / HOUR))
        .collect();
    let wanted = [("archive", 12), ("other", 2), ("strict", 0)];
    assert_eq!(
        kept,
        wanted.map(|(tenant, hours)| (tenant.to_owned(), hours)).into()
    );
}
