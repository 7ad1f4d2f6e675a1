//! Claims about what is refused, and who is told what: bad requests, limits, clients that leave.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use futures::StreamExt;
use http::{Request, StatusCode};
use koios_runtime::{ClockHandle, TokioClock};
use koios_tenancy::Limits;
use rstest::rstest;
use tower::ServiceExt;

use super::http_test::{api, api_on, api_with};
use crate::cluster::mock::{Mode, data, labels};

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
#[case("metadata?limit=x", 400, "limit must be a number")]
#[case("metadata?limit_per_metric=1.5", 400, "limit_per_metric must be a number")]
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
