//! What every HTTP request passes before its handler: id, span, bounds, a place in flight, a deadline, a net for panics.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody as _};
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use futures::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use koios_runtime::{ClockHandle, RngHandle};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use tracing::Instrument as _;

use crate::api_error::{ErrorType, api_error, with_retry_after};
use crate::metrics::{Metrics, duration_histogram};
use crate::places::Places;
use crate::settings::HttpSettings;

/// Longest path and query together that reach a handler, bytes.
pub const URI_BYTES_MAX: usize = 60 << 10;

/// Longest accepted request id, bytes; others are replaced.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Whose requests they are that name no tenants, or none there can be; no tenant has this name.
const INVALID_TENANT: &str = "(invalid)";

/// The header that carries a request's id.
pub const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// A request's id, found in its extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(pub Arc<str>);

/// What is said when a request takes too long, found in its extensions: a handler that knows better than what is said of
/// all requests sets it.
#[derive(Clone, Debug, Default)]
pub struct DeadlineAdvice(Arc<OnceLock<&'static str>>);

impl DeadlineAdvice {
    /// Sets what can be done; the first to do so is heard.
    pub fn set(&self, advice: &'static str) {
        self.0.get_or_init(|| advice);
    }

    fn told(&self) -> &'static str {
        let of_all = "send less at once, ask for less, or raise http.request-timeout";
        self.0.get().copied().unwrap_or(of_all)
    }
}

/// Routes are templates, so there are few; codes are few anyway.
type RouteLabels = Vec<(&'static str, String)>;

#[derive(Clone, Debug)]
struct HttpMetrics {
    requests: Family<RouteLabels, Counter>,
    duration: Family<RouteLabels, Histogram, fn() -> Histogram>,
    in_flight: Gauge,
    shed: Counter,
}

impl HttpMetrics {
    fn new(metrics: &Metrics) -> Self {
        Self {
            requests: metrics.register(
                "koios_http_requests_total",
                "HTTP requests answered",
                Family::default(),
            ),
            duration: metrics.register(
                "koios_http_request_duration_seconds",
                "Time from a request's head to its answer's head",
                Family::new_with_constructor(duration_histogram as fn() -> Histogram),
            ),
            in_flight: metrics.gauge("koios_http_requests_in_flight", "HTTP requests being answered"),
            shed: metrics.counter(
                "koios_http_requests_shed_total",
                "HTTP requests refused for overload",
            ),
        }
    }
}

#[derive(Debug)]
struct Edge {
    clock: ClockHandle,
    rng: RngHandle,
    deadline: Duration,
    places: Arc<Places>,
    metrics: HttpMetrics,
}

/// Puts the edge around a router. Health and metrics must be merged after it, lest overload hides them.
pub fn with_edge(
    router: Router,
    clock: ClockHandle,
    rng: RngHandle,
    settings: &HttpSettings,
    metrics: &Metrics,
) -> Router {
    let edge = Arc::new(Edge {
        clock,
        rng,
        deadline: settings.request_timeout,
        places: Arc::new(Places::new(settings.max_requests_in_flight)),
        metrics: HttpMetrics::new(metrics),
    });
    router
        .fallback(|| async { StatusCode::NOT_FOUND })
        .layer(from_fn_with_state(edge, pass))
}

async fn pass(State(edge): State<Arc<Edge>>, mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers(), &edge.rng);
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "none".to_owned(), |p| p.as_str().to_owned());
    let tenants: Vec<Arc<str>> = match koios_tenancy::tenants_of_read(request.headers()) {
        Ok(tenants) => tenants.iter().map(|tenant| tenant.as_str().into()).collect(),
        Err(_) => vec![INVALID_TENANT.into()],
    };
    let tenant = tenants.join("|");
    let span = tracing::info_span!("http", method = %request.method(), route, tenant, request_id = %id.0);
    let asked = (request.method().clone(), request.uri().path().to_owned());
    request.extensions_mut().insert(id.clone());

    let started = edge.clock.elapsed();
    let answer = edge.answer(tenants, request, next);
    let mut response = explain(answer.instrument(span.clone()).await, &asked);
    let took = edge.clock.elapsed().saturating_sub(started);
    if response.status().is_server_error() {
        // Handlers log the cause; this ties it to the request.
        span.in_scope(|| tracing::debug!(status = response.status().as_u16(), ?took, "request failed"));
    }
    let code = response.status().as_u16().to_string();
    edge.metrics
        .requests
        .get_or_create(&vec![("code", code), ("route", route.clone())])
        .inc();
    edge.metrics
        .duration
        .get_or_create(&vec![("route", route)])
        .observe(took.as_secs_f64());
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        response.headers_mut().insert(REQUEST_ID_HEADER, value);
    }
    response
}

impl Edge {
    async fn answer(&self, tenants: Vec<Arc<str>>, mut request: Request, next: Next) -> Response {
        let uri_bytes = request.uri().path_and_query().map_or(0, |p| p.as_str().len());
        if uri_bytes > URI_BYTES_MAX {
            let message = format!("URI too long (actual: {uri_bytes}, limit: {URI_BYTES_MAX}); use POST");
            return api_error(ErrorType::UriTooLong, message);
        }
        let _place = match self.places.take(tenants) {
            Ok(place) => place,
            Err(full) => {
                self.metrics.shed.inc();
                let busy = api_error(ErrorType::Unavailable, full.to_string());
                return with_retry_after(busy, Duration::from_secs(1));
            }
        };
        let _in_flight = InFlight::enter(&self.metrics.in_flight);
        let advice = DeadlineAdvice::default();
        request.extensions_mut().insert(advice.clone());
        let answer = AssertUnwindSafe(next.run(request)).catch_unwind();
        match self.clock.timeout(self.deadline, answer).await {
            Ok(Ok(response)) => response,
            Ok(Err(panic)) => {
                tracing::error!(panic = panic_text(&*panic), "a handler panicked");
                api_error(
                    ErrorType::Internal,
                    "internal error: a handler panicked, see the log",
                )
            }
            Err(late) => {
                let message = format!("request took longer than {:?}: {}", late.0, advice.told());
                let response = api_error(ErrorType::Timeout, message);
                with_retry_after(response, Duration::from_secs(1))
            }
        }
    }
}

/// Counts a request while it lives, also when its future is dropped.
struct InFlight(Gauge);

impl InFlight {
    fn enter(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("unknown panic")
}

/// The client's id when it is short and plain, else a new one.
fn request_id(headers: &HeaderMap, rng: &RngHandle) -> RequestId {
    let plain = |id: &&str| {
        !id.is_empty()
            && id.len() <= REQUEST_ID_BYTES_MAX
            && id
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.:/+=".contains(&b))
    };
    let sent = headers
        .get(REQUEST_ID_HEADER)
        .and_then(|v| v.to_str().ok())
        .filter(plain);
    RequestId(sent.map_or_else(|| format!("{:016x}", rng.u64()).into(), Arc::from))
}

/// Fills the router's own empty answers.
fn explain(response: Response, (method, path): &(Method, String)) -> Response {
    let empty = response.body().size_hint().exact() == Some(0);
    let explained = match response.status() {
        StatusCode::NOT_FOUND if empty => {
            api_error(ErrorType::NotFound, format!("no such endpoint: {path:?}"))
        }
        StatusCode::METHOD_NOT_ALLOWED if empty => {
            let message = format!("method {method} is not allowed for {path:?}, see the Allow header");
            api_error(ErrorType::MethodNotAllowed, message)
        }
        _ => return response,
    };
    let (mut parts, _) = response.into_parts();
    let (explained_parts, body) = explained.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.extend(explained_parts.headers);
    (parts, Body::new(body)).into_response()
}

#[cfg(test)]
#[path = "edge_test.rs"]
mod tests;
