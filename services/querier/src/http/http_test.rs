//! Claims about the HTTP API: goldens, and what bad input gets.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use futures::StreamExt;
use http::{Request, StatusCode};
use koios_model::Labels;
use koios_runtime::{ClockHandle, Cpu, MemoryWatch, RealClock, TokioClock};
use koios_server::Metrics;
use koios_tenancy::{Limits, Overrides};
use rstest::rstest;
use tower::ServiceExt;

use super::QuerierApi;
use crate::cluster::mock::{Mode, World, data, labels};

struct Api {
    world: World,
    querier: Arc<QuerierApi>,
    metrics: Metrics,
    router: Router,
}

fn api_with(limits: Limits) -> Api {
    api_on(limits, Arc::new(RealClock::new()))
}

fn api_on(limits: Limits, clock: ClockHandle) -> Api {
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

fn api() -> Api {
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
    async fn send(&self, request: Request<Body>) -> (StatusCode, http::HeaderMap, String) {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = to_bytes(body, 1 << 30).await.unwrap();
        (
            head.status,
            head.headers,
            String::from_utf8(body.to_vec()).unwrap(),
        )
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        let (status, _, body) = self.send(Request::get(path).body(Body::empty()).unwrap()).await;
        (status, body)
    }

    async fn post(&self, path: &str, form: impl Into<Body>) -> (StatusCode, String) {
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

#[rstest]
#[case::query("query=a%2B", "1:3: parse error: unexpected end of input")]
#[case::times("query=a&start=5&end=1", "end timestamp must not be before start timestamp")]
#[case::start(
    "query=a&start=x",
    r#"invalid parameter \"start\": cannot parse \"x\" to a valid timestamp"#
)]
#[tokio::test]
async fn mistakes_in_queries_for_exemplars_are_told_as_prometheus_does(
    #[case] query: &str,
    #[case] expected: &str,
) {
    let (status, body) = api().get(&format!("/api/v1/query_exemplars?{query}")).await;
    let expected = format!(r#"{{"status":"error","errorType":"bad_data","error":"{expected}"}}"#);
    assert_eq!((status, body), (StatusCode::BAD_REQUEST, expected));
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

#[tokio::test]
async fn buildinfo_makes_no_client_expect_rule_editing() {
    let (_, body) = api().get("/api/v1/status/buildinfo").await;
    let value: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert!(value["data"]["version"].as_str().unwrap().starts_with("3."));
    assert!(value["data"].get("features").is_none());
}

const POINTS: &str =
    "exceeded maximum resolution of 11,000 points per timeseries. Try decreasing the query resolution";
const STEP: &str =
    r#"invalid parameter "step": zero or negative query resolution step widths are not accepted"#;

#[rstest]
#[case("query", 400, r#"invalid parameter "query": "#)]
#[case("query", 400, "parse error: no expression found in input")]
#[case("query?query=", 400, "parse error: no expression found in input")]
#[case(
    "query?query=%23only+a+comment",
    400,
    "parse error: no expression found in input"
)]
#[case("query?query=sum(", 400, "parse error: ")]
#[case(
    "query?query=rate(x)",
    400,
    "parse error: expected type range vector in call to function"
)]
#[case("query?query=foo%7B", 400, "parse error: ")]
#[case(
    "query?query=%7B%7D",
    400,
    "vector selector must contain at least one non-empty matcher"
)]
#[case("query?query=foo%7Ba%3D~%22(%22%7D", 400, "regex parse error")]
#[case(
    "query?query=foo%7Ba%3D~%22(x%7B1000%7D)%7B1000%7D%7B1000%7D%22%7D",
    400,
    "regex exceeds size limit"
)]
#[case(
    "query?query=m&time=abc",
    400,
    r#"invalid parameter "time": cannot parse "abc" to a valid timestamp"#
)]
#[case(
    "query?query=m&timeout=-1",
    400,
    r#"invalid parameter "timeout": timeout must be non-negative"#
)]
#[case("query?query=m&timeout=x", 400, r#"cannot parse "x" to a valid duration"#)]
#[case(
    "query?query=m&limit=-1",
    400,
    r#"invalid parameter "limit": limit must be non-negative"#
)]
#[case("query?query=m&limit=x", 400, r#"invalid parameter "limit""#)]
#[case(
    "query?query=m&lookback_delta=x",
    400,
    r#"cannot parse "x" to a valid duration"#
)]
#[case("query?query=m&query=n", 400, r#"parameter "query" given twice"#)]
#[case(
    "query_range?query=m",
    400,
    r#"invalid parameter "start": cannot parse "" to a valid timestamp"#
)]
#[case(
    "query_range?query=m&start=0&end=1",
    400,
    r#"invalid parameter "step": cannot parse "" to a valid duration"#
)]
#[case("query_range?query=m&start=0&end=1&step=0", 400, STEP)]
#[case("query_range?query=m&start=0&end=1&step=-1", 400, STEP)]
#[case(
    "query_range?query=m&start=0&end=1&step=1e300",
    400,
    "to a valid duration. It overflows int64"
)]
#[case(
    "query_range?query=m&start=2&end=1&step=1",
    400,
    r#"invalid parameter "end": end timestamp must not be before start time"#
)]
#[case("query_range?query=m&start=0&end=11001&step=1", 400, POINTS)]
#[case(
    "query_range?query=m[5m]&start=0&end=1&step=1",
    400,
    "invalid expression type"
)]
#[case("query_range?query=m&start=-1e300&end=1e300&step=0.001", 400, POINTS)]
#[case("series", 400, "no match[] parameter provided")]
#[case("series?match[]=%7B%7D", 400, "must contain at least one non-empty matcher")]
#[case(
    "series?match[]=%7Ba%3D~%22.*%22%7D",
    400,
    "must contain at least one non-empty matcher"
)]
#[case("series?match[]=a%7B", 400, r#"invalid parameter "match[]""#)]
#[case("series?match[]=m&limit=-1", 400, "limit must be non-negative")]
#[case("labels?match[]=%7B%7D", 400, "must contain at least one non-empty matcher")]
#[case("labels?start=2&end=1", 400, "end timestamp must not be before start time")]
#[case("label/%00/values", 400, "invalid label name")]
#[case("label/../values", 400, "invalid label name")]
#[case("label/%2e%2e/values", 400, "invalid label name")]
#[case("label/a%0ab/values", 400, "invalid label name")]
#[case("label/%ff/values", 400, "invalid label name: it is not valid UTF-8")]
#[case("format_query?query=sum(", 400, r#"invalid parameter "query""#)]
#[case("query?query=m%ff", 400, "not valid UTF-8")]
#[tokio::test]
async fn i13_bad_requests_are_told_what_is_wrong(#[case] path: &str, #[case] code: u16, #[case] text: &str) {
    let (status, body) = api().get(&format!("/api/v1/{path}")).await;
    let value: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status.as_u16(), code, "{body}");
    assert_eq!(value["errorType"], "bad_data");
    assert!(value["error"].as_str().unwrap().contains(text), "{body}");
}

#[rstest]
#[case("query", format!("query={}m", "(".repeat(100_000)), 400, "query too complex")]
#[case("query", format!("query={}1", "-".repeat(100_000)), 400, "query too complex")]
#[case("query", format!("query=1{}", "%2b1".repeat(200_000)), 400, "query too complex")]
#[case("query", format!("query={}", "a".repeat(2 << 20)), 413, "query longer than")]
#[case("query", format!("query=m{}", "&k=v".repeat(1_000_000)), 400, "too many form fields")]
#[case("query", format!("query=m{{a=~\"{}\"}}", "a".repeat(1 << 20)), 400, "regex exceeds size limit")]
#[case("series", "match[]=m{a=~\"b.c\"}&".repeat(201), 400, "too many regular expression matchers")]
#[case("query", "a".repeat(17 << 20), 413, "request body larger than")]
#[case("series", "match[]=m&".repeat(10_000), 400, "too many matchers")]
#[tokio::test]
async fn i12_large_requests_are_refused(
    #[case] path: &str,
    #[case] form: String,
    #[case] code: u16,
    #[case] text: &str,
) {
    let (status, body) = api().post(&format!("/api/v1/{path}"), form).await;
    assert_eq!(status.as_u16(), code, "{body}");
    assert!(body.contains(text), "{body}");
}

#[tokio::test]
async fn other_methods_are_told_which_are_allowed() {
    let api = api();
    for (method, path, allowed) in [
        ("PUT", "/api/v1/query", "GET,HEAD,POST"),
        ("DELETE", "/prometheus/api/v1/series", "GET,HEAD,POST"),
        ("POST", "/api/v1/label/i/values", "GET,HEAD"),
    ] {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .body(Body::empty())
            .unwrap();
        let (status, headers, _) = api.send(request).await;
        assert_eq!(
            (status, headers["allow"].to_str().unwrap()),
            (StatusCode::METHOD_NOT_ALLOWED, allowed)
        );
    }
}

#[rstest]
#[case(&["../../etc"], 400, "tenant ID")]
#[case(&[""], 400, "tenant ID")]
#[case(&["__markers__"], 400, "tenant ID")]
#[case(&["a", "a"], 400, "header must appear once")]
#[case(&["a|b"], 403, r#"not allowed for tenant \"b\""#)]
#[tokio::test]
async fn i6_a_request_belongs_to_one_tenant(#[case] ids: &[&str], #[case] code: u16, #[case] text: &str) {
    let api = api();
    for path in [
        "query?query=m",
        "query_range?query=m&start=0&end=1&step=1",
        "labels",
        "series?match[]=m",
        "metadata",
    ] {
        let mut request = Request::get(format!("/api/v1/{path}"));
        for id in ids {
            request = request.header("X-Scope-OrgID", *id);
        }
        let (status, _, body) = api.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(status.as_u16(), code, "{path}: {body}");
        assert!(body.contains(text), "{path}: {body}");
    }
}

#[tokio::test]
async fn i4_lost_members_are_503_and_say_who() {
    let api = api();
    for m in &api.world.members[1..] {
        m.set(Mode::Fails(koios_wire::ServiceErrorCode::Unavailable));
    }
    for path in [
        "query?query=m",
        "labels",
        "label/i/values",
        "series?match[]=m",
        "metadata",
    ] {
        let request = Request::get(format!("/api/v1/{path}"))
            .body(Body::empty())
            .unwrap();
        let (status, headers, body) = api.send(request).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{path}: {body}");
        assert!(body.contains(r#""errorType":"unavailable""#), "{path}: {body}");
        assert!(
            body.contains("partition 0: 1 of 2 needed members answered: ingester-1"),
            "{path}: {body}"
        );
        assert!(headers.contains_key("retry-after"));
    }
}

#[tokio::test]
async fn a_query_over_its_limits_is_422() {
    let limits = Limits {
        max_query_series: 2,
        ..Limits::default()
    };
    let api = api_with(limits);
    api.world
        .hold(&data((0..9).map(|i| (labels("m", i), vec![(1000, 1.0)]))));
    for path in ["/api/v1/query?query=m&time=1", "/api/v1/series?match[]=m"] {
        let (status, body) = api.get(path).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
        assert!(body.contains("query fetched too many series (limit 2)"), "{body}");
    }
    let api = api_with(Limits {
        max_query_memory_bytes: 500,
        ..Limits::default()
    });
    api.world
        .hold(&data((0..9).map(|i| (labels("m", i), vec![(1000, 1.0)]))));
    let (status, body) = api.get("/api/v1/query?query=m&time=1").await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
    assert!(
        body.contains("query memory limit of 500 bytes exceeded"),
        "{body}"
    );
}

#[rstest]
#[case(
    "count_over_time(vector(1)[10y:1ms])",
    422,
    "query would load too many samples (limit "
)]
#[case(
    "sum_over_time(sum_over_time(m[10y:1ms])[10y:1ms])",
    422,
    "query would load too many samples (limit "
)]
#[case("m offset 1e15s", 400, "parse error")]
#[case("m @ 1e300", 400, "parse error")]
#[case("m offset 1000000y", 400, "parse error")]
#[case("m + on(i) group_left vector(1)", 200, "success")]
#[case("m * on() m", 422, "found duplicate series for the match group")]
#[case(
    "quantile(NaN, m)",
    200,
    "PromQL warning: quantile value should be between 0 and 1, got NaN"
)]
#[case("histogram_quantile(2, m)", 200, "warnings")]
#[case("label_replace(m, \"__name__\", \"x\", \"i\", \".*\") + 1", 200, "success")]
#[tokio::test]
async fn i12_hostile_queries_are_bounded(#[case] query: &str, #[case] code: u16, #[case] text: &str) {
    let query = percent_encoding::utf8_percent_encode(query, percent_encoding::NON_ALPHANUMERIC);
    let (status, body) = api().get(&format!("/api/v1/query?time=5&query={query}")).await;
    assert_eq!(status.as_u16(), code, "{body}");
    assert!(body.contains(text), "{body}");
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place_and_memory() {
    let api = api();
    api.world.members[0].set(Mode::HangsAfter(1));
    api.world.members[1].set(Mode::HangsAfter(1));
    for path in ["/api/v1/query?query=m", "/api/v1/series?match[]=m"] {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let mut waiting = Box::pin(api.router.clone().oneshot(request));
        assert!(futures::poll!(&mut waiting).is_pending());
        assert!(!api.querier.admission.is_idle());
        drop(waiting);
        assert!(api.querier.admission.is_idle(), "{path}");
    }
    let canceled = r#"koios_querier_queries_total{outcome="canceled"} 1"#;
    assert!(
        api.metrics.encode().contains(canceled),
        "{}",
        api.metrics.encode()
    );
}

#[tokio::test(start_paused = true)]
async fn i6_a_client_that_stops_reading_frees_its_place_and_memory() {
    let clock: ClockHandle = Arc::new(TokioClock::starting_at(0));
    let api = api_on(Limits::default(), Arc::clone(&clock));
    let series = (0..4000).map(|i| (labels("m", i), vec![(1000, 1.0)]));
    api.world.hold(&data(series));
    for path in ["/api/v1/query?query=m&time=1", "/api/v1/series?match[]=m"] {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = api.router.clone().oneshot(request).await.unwrap();
        let mut pieces = response.into_body().into_data_stream();
        // Given a client that took the first piece and then nothing more.
        pieces.next().await.unwrap().unwrap();
        clock.sleep(Duration::from_secs(29)).await;
        assert!(!api.querier.admission.is_idle(), "{path}: still being sent");
        clock.sleep(Duration::from_secs(2)).await;
        assert!(api.querier.admission.is_idle(), "{path}");
        // Then what it got is broken off, not ended.
        assert!(pieces.next().await.unwrap().is_err(), "{path}");
    }
}

#[tokio::test]
async fn a_query_past_its_deadline_is_503_timeout() {
    let api = api();
    api.world.members.iter().for_each(|m| m.set(Mode::Hangs));
    let (status, body) = api.get("/api/v1/query?query=m&timeout=0.02").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        body.contains(r#""errorType":"timeout","#) || body.contains("timed out"),
        "{body}"
    );
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
