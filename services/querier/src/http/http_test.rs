//! Claims about the HTTP API: goldens.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use http::{Request, StatusCode};
use koios_model::Labels;
use koios_runtime::{ClockHandle, Cpu, MemoryWatch, RealClock};
use koios_server::Metrics;
use koios_tenancy::{Limits, Overrides};
use rstest::rstest;
use tower::ServiceExt;

use super::QuerierApi;
use crate::cluster::mock::{World, data, labels};

pub(super) struct Api {
    pub(super) world: World,
    pub(super) querier: Arc<QuerierApi>,
    pub(super) metrics: Metrics,
    pub(super) router: Router,
}

pub(super) fn api_with(limits: Limits) -> Api {
    api_on(limits, Arc::new(RealClock::new()))
}

pub(super) fn api_on(limits: Limits, clock: ClockHandle) -> Api {
    api_within(limits, clock, MemoryWatch::default())
}

fn api_within(limits: Limits, clock: ClockHandle, memory: MemoryWatch) -> Api {
    let world = World::new();
    let overrides = Overrides::new(limits, Default::default());
    let metrics = Metrics::new();
    let api = QuerierApi::new(
        Arc::clone(&world.cluster),
        overrides,
        clock,
        Cpu::inline(),
        memory,
        8,
        &metrics,
    );
    Api {
        router: api.router(),
        querier: api,
        metrics,
        world,
    }
}

pub(super) fn api() -> Api {
    let api = api_with(Limits::default());
    let series = (0..3).map(|i| {
        (
            labels("m", i),
            (0..20).map(|t| (t * 1000, f64::from(i) + 0.5)).collect(),
        )
    });
    api.world.hold(&data(series));
    api
}

impl Api {
    pub(super) async fn send(&self, request: Request<Body>) -> (StatusCode, http::HeaderMap, String) {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = to_bytes(body, 1 << 30).await.unwrap();
        (
            head.status,
            head.headers,
            String::from_utf8(body.to_vec()).unwrap(),
        )
    }

    pub(super) async fn get(&self, path: &str) -> (StatusCode, String) {
        let (status, _, body) = self.send(Request::get(path).body(Body::empty()).unwrap()).await;
        (status, body)
    }

    pub(super) async fn post(&self, path: &str, form: impl Into<Body>) -> (StatusCode, String) {
        let request = Request::post(path).header("content-type", "application/x-www-form-urlencoded");
        let (status, _, body) = self.send(request.body(form.into()).unwrap()).await;
        (status, body)
    }
}

#[rstest]
#[case::vector(
    "/api/v1/query?query=m&time=5",
    r#"{"resultType":"vector","result":[{"metric":{"__name__":"m","i":"0"},"value":[5,"0.5"]},{"metric":{"__name__":"m","i":"1"},"value":[5,"1.5"]},{"metric":{"__name__":"m","i":"2"},"value":[5,"2.5"]}]}"#
)]
#[case::under_prefix(
    "/prometheus/api/v1/query?query=m%7Bi%3D%222%22%7D&time=1970-01-01T00:00:05.500Z",
    r#"{"resultType":"vector","result":[{"metric":{"__name__":"m","i":"2"},"value":[5.500,"2.5"]}]}"#
)]
#[case::scalar(
    "/api/v1/query?query=1%2F0&time=0.25",
    r#"{"resultType":"scalar","result":[0.250,"+Inf"]}"#
)]
#[case::string(
    "/api/v1/query?query=%22a%5C%22b%22&time=1",
    r#"{"resultType":"string","result":[1,"a\"b"]}"#
)]
#[case::samples(
    "/api/v1/query?query=m%7Bi%3D%221%22%7D%5B2s%5D&time=3",
    r#"{"resultType":"matrix","result":[{"metric":{"__name__":"m","i":"1"},"values":[[2,"1.5"],[3,"1.5"]]}]}"#
)]
#[case::range(
    "/api/v1/query_range?query=m%7Bi%3D%221%22%7D&start=1&end=3&step=1s",
    r#"{"resultType":"matrix","result":[{"metric":{"__name__":"m","i":"1"},"values":[[1,"1.5"],[2,"1.5"],[3,"1.5"]]}]}"#
)]
#[case::empty("/api/v1/query?query=nope", r#"{"resultType":"vector","result":[]}"#)]
#[case::labels("/api/v1/labels", r#"["__name__","i"]"#)]
#[case::values("/api/v1/label/i/values?match[]=m&start=0&end=100", r#"["0","1","2"]"#)]
#[case::escaped_name("/api/v1/label/U___69_/values", r#"["0","1","2"]"#)]
#[case::series(
    "/api/v1/series?match[]=m%7Bi%3D%221%22%7D&match[]=m%7Bi%3D~%221%7C2%22%7D",
    r#"[{"__name__":"m","i":"1"},{"__name__":"m","i":"2"}]"#
)]
#[case::format("/api/v1/format_query?query=sum(m)by(i)", r#""sum by (i) (m)""#)]
#[case::parse(
    "/api/v1/parse_query?query=(1)",
    r#"{"expr":{"type":"numberLiteral","val":"1"},"type":"parenExpr"}"#
)]
#[case::exemplars("/api/v1/query_exemplars?query=m&start=0&end=1", "[]")]
#[case::rules("/api/v1/rules", r#"{"groups":[]}"#)]
#[case::unknown_parameters("/api/v1/labels?nocache=1&dedup=x&dedup=y&match[]=m", r#"["__name__","i"]"#)]
#[tokio::test]
async fn answers_as_prometheus_does(#[case] path: &str, #[case] expected: &str) {
    let (status, body) = api().get(path).await;
    assert_eq!(body, format!(r#"{{"status":"success","data":{expected}}}"#));
    assert_eq!(status, StatusCode::OK);
}

#[rstest]
#[case::function("max_of(1, 2)", r#"1:1: parse error: function \"max_of\" is not enabled"#)]
#[case::within(
    "sum(mad_over_time(m[1m]))",
    r#"1:5: parse error: function \"mad_over_time\" is not enabled"#
)]
#[case::aggregation(
    "limitk(1, m)",
    "1:1: parse error: limitk() is experimental and must be enabled with --enable-feature=promql-experimental-functions"
)]
#[case::duration(
    "m offset (1m + 2m)",
    "1:11: parse error: experimental duration expression is not enabled"
)]
#[case::anchored(
    "rate(m[1m] anchored)",
    "1:6: parse error: anchored modifier is experimental and not enabled"
)]
#[case::fill(
    "m + fill(0) m",
    "1:1: parse error: binop fill modifiers are experimental and not enabled"
)]
#[tokio::test]
async fn what_is_experimental_can_be_switched_off(#[case] query: &str, #[case] expected: &str) {
    let off = api_with(Limits {
        experimental_promql: false,
        ..Limits::default()
    });
    let form = format!("query={}", query.replace(' ', "%20").replace('+', "%2B"));
    let expected = format!(
        r#"{{"status":"error","errorType":"bad_data","error":"invalid parameter \"query\": {expected}"}}"#
    );
    for endpoint in ["query", "format_query", "parse_query"] {
        let path = format!("/api/v1/{endpoint}");
        assert_eq!(
            off.post(&path, form.clone()).await,
            (StatusCode::BAD_REQUEST, expected.clone())
        );
        let (status, body) = api().post(&path, form.clone()).await;
        assert_eq!(status, StatusCode::OK, "{body}");
    }
    let range = format!("{form}&start=0&end=1&step=1");
    assert_eq!(
        off.post("/api/v1/query_range", range).await,
        (StatusCode::BAD_REQUEST, expected)
    );
}

#[tokio::test]
async fn a_series_longer_than_a_piece_is_written_whole() {
    let api = api_with(Limits::default());
    let samples = |i: u32| {
        (0..30_000)
            .map(move |t| (t, f64::from(i) + t as f64 / 2.0))
            .collect()
    };
    api.world
        .hold(&data((0..2).map(|i| (labels("m", i), samples(i)))));
    let (_, body) = api.get("/api/v1/query?query=m%5B1y%5D&time=30").await;
    let answer: serde_json::Value = serde_json::from_str(&body).unwrap();
    let result = answer["data"]["result"].as_array().unwrap();
    assert_eq!(result.len(), 2);
    for (i, series) in result.iter().enumerate() {
        let values = series["values"].as_array().unwrap();
        assert_eq!(values.len(), 30_000);
        for (t, value) in values.iter().enumerate() {
            let expected = (i as f64 + t as f64 / 2.0).to_string();
            assert_eq!(
                (value[0].as_f64(), value[1].as_str()),
                (Some(t as f64 / 1000.0), Some(expected.as_str()))
            );
        }
    }
}

#[tokio::test]
async fn forms_and_query_strings_are_the_same() {
    let api = api();
    let (_, by_get) = api.get("/api/v1/query_range?query=m&start=0&end=9&step=3").await;
    let (status, by_post) = api
        .post("/api/v1/query_range", "query=m&start=0&end=9&step=3")
        .await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(by_get, by_post);
    let (_, by_both) = api
        .post(
            "/api/v1/query_range?query=nope&start=0&end=5",
            "query=m&end=9&step=3",
        )
        .await;
    assert_eq!(by_get, by_both);
    let (_, selected) = api
        .post(
            "/api/v1/series?match[]=m%7Bi%3D%220%22%7D",
            "match[]=m%7Bi%3D%221%22%7D",
        )
        .await;
    let expected = r#"[{"__name__":"m","i":"0"},{"__name__":"m","i":"1"}]"#;
    assert_eq!(selected, format!(r#"{{"status":"success","data":{expected}}}"#));
}

#[tokio::test]
async fn forms_of_files_are_told_what_to_be_instead() {
    let request = Request::post("/api/v1/query").header("content-type", "multipart/form-data; boundary=x");
    let (status, _, body) = api().send(request.body(Body::from("--x")).unwrap()).await;
    assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let expected = r#"{"status":"error","errorType":"bad_data","error":"unsupported content type \"multipart/form-data\", send parameters as application/x-www-form-urlencoded"}"#;
    assert_eq!(body, expected);
}

#[tokio::test]
async fn limits_truncate_with_a_warning() {
    let api = api();
    let warning = r#""warnings":["results truncated due to limit"]"#;
    for (path, count) in [
        ("/api/v1/query?query=m&time=5&limit=2", 2),
        ("/api/v1/query_range?query=m&start=1&end=2&step=1&limit=1", 1),
    ] {
        let (_, body) = api.get(path).await;
        assert!(body.contains(warning), "{body}");
        assert_eq!(body.matches("metric").count(), count, "{body}");
    }
    for path in [
        "/api/v1/labels?limit=1",
        "/api/v1/label/i/values?limit=2",
        "/api/v1/series?match[]=m&limit=2",
    ] {
        let (_, body) = api.get(path).await;
        assert!(body.contains(warning), "{path}: {body}");
    }
    let (_, body) = api.get("/api/v1/series?match[]=m&limit=3").await;
    assert!(!body.contains("warnings"), "{body}");
}

#[tokio::test]
async fn statistics_come_when_asked_for() {
    let (_, body) = api().get("/api/v1/query?query=m&time=5&stats=all").await;
    let value: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        value["data"]["stats"]["samples"]["totalQueryableSamples"], 3,
        "{body}"
    );
    assert!(value["data"]["stats"]["timings"]["execTotalTime"].is_number());
}

#[tokio::test]
async fn metadata_is_grouped_by_metric() {
    let api = api();
    api.world.members.iter().for_each(|m| m.describe("m", "counter"));
    let (status, body) = api
        .get("/api/v1/metadata?metric=m&limit=5&limit_per_metric=1")
        .await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        body,
        r#"{"status":"success","data":{"m":[{"type":"counter","help":"","unit":""}]}}"#
    );
    assert_eq!(
        api.get("/api/v1/metadata?metric=x").await.1,
        r#"{"status":"success","data":{}}"#
    );
}

#[rstest]
#[case("", r#"{"a":[C,G],"b":[C,G]}"#)]
#[case("limit=-1&limit_per_metric=-1", r#"{"a":[C,G],"b":[C,G]}"#)]
#[case("limit=&limit_per_metric=0", r#"{"a":[C,G],"b":[C,G]}"#)]
#[case("limit=1&limit_per_metric=1", r#"{"a":[C]}"#)]
#[case("limit=0", "{}")]
#[tokio::test]
async fn metadata_is_limited_as_by_prometheus(#[case] limits: &str, #[case] expected: &str) {
    let api = api();
    for (metric, kind) in [("a", "counter"), ("a", "gauge"), ("b", "counter"), ("b", "gauge")] {
        api.world.members.iter().for_each(|m| m.describe(metric, kind));
    }
    let (_, body) = api.get(&format!("/api/v1/metadata?{limits}")).await;
    let expected = expected
        .replace('C', r#"{"type":"counter","help":"","unit":""}"#)
        .replace('G', r#"{"type":"gauge","help":"","unit":""}"#);
    assert_eq!(body, format!(r#"{{"status":"success","data":{expected}}}"#));
}

#[tokio::test]
async fn buildinfo_makes_no_client_expect_rule_editing() {
    let (_, body) = api().get("/api/v1/status/buildinfo").await;
    let value: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert!(value["data"]["version"].as_str().unwrap().starts_with("3."));
    assert!(value["data"].get("features").is_none());
}

#[tokio::test]
async fn i13_control_characters_in_labels_are_escaped() {
    let api = api();
    let hostile = Labels::from_pairs([("__name__", "m"), ("x", "\0\r\n\u{1b}[31m\"\\<script>\u{2028}")]);
    api.world.hold(&data([(hostile, vec![(1000, 1.0)])]));
    let (_, body) = api.get("/api/v1/query?query=m&time=1").await;
    assert!(body.bytes().all(|b| b >= 0x20), "{body:?}");
    let value: serde_json::Value = serde_json::from_str(&body).unwrap();
    let x = value["data"]["result"][0]["metric"]["x"].as_str().unwrap();
    assert_eq!(x, "\0\r\n\u{1b}[31m\"\\<script>\u{2028}");
}

#[tokio::test]
async fn answers_are_compressed_when_accepted() {
    let api = api();
    let request = Request::get("/api/v1/query?query=m&time=5").header("accept-encoding", "gzip");
    let response = api
        .router
        .clone()
        .oneshot(request.body(Body::empty()).unwrap())
        .await
        .unwrap();
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let head = Request::head("/api/v1/query?query=m")
        .body(Body::empty())
        .unwrap();
    assert_eq!(api.send(head).await.0, StatusCode::OK);
}
