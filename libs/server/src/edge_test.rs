use axum::body::to_bytes;
use axum::routing::{get, post};
use koios_runtime::TokioClock;
use tower::ServiceExt as _;

use super::*;

fn router() -> Router {
    with_places(1)
}

fn with_places(max_requests_in_flight: usize) -> Router {
    let clock: ClockHandle = Arc::new(TokioClock::starting_at(0));
    let settings = HttpSettings {
        request_timeout: Duration::from_secs(5),
        max_requests_in_flight,
        ..crate::settings::Settings::default().http
    };
    let routes = Router::new()
        .route(
            "/ok",
            get(|id: axum::Extension<RequestId>| async move { id.0.0.to_string() }),
        )
        .route(
            "/panics",
            get(|| async {
                if true {
                    panic!("boom")
                }
            }),
        )
        .route("/hangs", post(std::future::pending::<()>));
    with_edge(routes, clock, RngHandle::from_seed(1), &settings, &Metrics::new())
}

async fn ask(router: &Router, method: &str, uri: &str, id: Option<&str>) -> (Response, String) {
    let mut request = http::Request::builder().method(method).uri(uri);
    if let Some(id) = id {
        request = request.header(REQUEST_ID_HEADER, id);
    }
    let response = router
        .clone()
        .oneshot(request.body(Body::empty()).unwrap())
        .await
        .unwrap();
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    (parts.into_response(), String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn a_request_keeps_its_id_or_gets_one() {
    let router = router();
    let (response, body) = ask(&router, "GET", "/ok", Some("abc-1")).await;
    assert_eq!(
        (body.as_str(), &response.headers()[REQUEST_ID_HEADER]),
        ("abc-1", &HeaderValue::from_static("abc-1"))
    );
    let (response, made) = ask(&router, "GET", "/ok", Some("a b\"")).await;
    assert_eq!(response.headers()[REQUEST_ID_HEADER].to_str().unwrap(), made);
    assert_eq!(made.len(), 16);
}

#[tokio::test]
async fn i12_a_panic_is_answered_500() {
    let router = router();
    let (response, body) = ask(&router, "GET", "/panics", None).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(body.contains(r#""errorType":"internal""#), "{body}");
    assert_eq!(ask(&router, "GET", "/ok", None).await.0.status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_request_beyond_its_deadline_is_answered_503_and_one_too_many_is_shed() {
    let router = router();
    let (slow, shed) = tokio::join!(
        ask(&router, "POST", "/hangs", None),
        ask(&router, "GET", "/ok", None)
    );
    for (response, body, word) in [
        (
            &slow.0,
            &slow.1,
            "longer than 5s: send less at once, ask for less, or raise http.request-timeout",
        ),
        (
            &shed.0,
            &shed.1,
            "too many requests in flight (limit: 1, as many are answered now): try again or raise http.max-requests-in-flight",
        ),
    ] {
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        assert!(body.contains(word), "{body}");
    }
    assert_eq!(ask(&router, "GET", "/ok", None).await.0.status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn i6_a_read_of_several_tenants_takes_a_place_of_each() {
    let router = with_places(8);
    let of = async |tenants: &str, method: &str, uri: &str| {
        let request = http::Request::builder().method(method).uri(uri);
        let request = request.header(koios_tenancy::TENANT_HEADER, tenants);
        let request = request.body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, 1 << 20).await.unwrap();
        (parts.status, String::from_utf8(body.to_vec()).unwrap())
    };
    let others: Vec<String> = (0..7).map(|i| format!("b{i}|a")).collect();
    let stalled = others.iter().map(|tenants| of(tenants, "POST", "/hangs"));
    let ((), stalled) = tokio::join!(
        biased;
        async {
            tokio::task::yield_now().await;
            for tenants in ["a", "a|b1", "c|a"] {
                let (status, body) = of(tenants, "GET", "/ok").await;
                assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
                assert!(
                    body.contains(
                        "too many requests of the tenant in flight (limit: 4 while 1 of 8 or fewer are free): try \
                         again, send fewer at once, or raise http.max-requests-in-flight"
                    ),
                    "{body}"
                );
            }
            for tenants in ["b1", "c", "b2|c"] {
                assert_eq!(of(tenants, "GET", "/ok").await.0, StatusCode::OK, "{tenants}");
            }
        },
        futures::future::join_all(stalled)
    );
    assert!(stalled.iter().all(|(_, body)| body.contains("longer than 5s")));
}

#[tokio::test]
async fn the_router_s_own_refusals_are_json() {
    let router = router();
    let (response, body) = ask(&router, "GET", "/hangs", None).await;
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(response.headers()[header::ALLOW], "POST");
    assert!(body.contains("method GET is not allowed"), "{body}");
    let (response, body) = ask(&router, "GET", "/nowhere", None).await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert!(
        body.starts_with(r#"{"status":"error","errorType":"not_found","error":"#)
            && body.contains("no such endpoint"),
        "{body}"
    );
    let long = format!("/ok?{}", "x".repeat(61 << 10));
    let (response, body) = ask(&router, "GET", &long, None).await;
    assert_eq!(response.status(), StatusCode::URI_TOO_LONG);
    assert!(body.contains("URI too long"), "{body}");
}
