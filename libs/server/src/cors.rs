//! Scripts of other origins, such as dashboards in a browser: they may read an answer only if it says so.
//!
//! **Source:** Prometheus `util/httputil/cors.go`; beside what it names, scripts may send the tenant's header.

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use koios_model::{MatchOp, Matcher, MatcherError};

/// The pattern of every origin.
const EVERY: &str = ".*";

/// What answers to requests with an origin say, whatever it is.
const SAID_TO_ALL: [(HeaderName, &str); 3] = [
    (
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        "Accept, Authorization, Content-Type, Origin, X-Scope-OrgID",
    ),
    (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, OPTIONS"),
    (header::ACCESS_CONTROL_EXPOSE_HEADERS, "Date"),
];

/// The origins whose scripts may read answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum CorsOrigin {
    /// No other than that of the answer.
    None,
    /// Every one.
    #[default]
    Every,
    /// Those that a pattern matches as a whole.
    Matching(Matcher),
}

impl CorsOrigin {
    /// Those that a pattern matches as a whole; none for an empty one.
    ///
    /// # Errors
    /// [`MatcherError`] when the pattern is malformed or over the size limits.
    pub fn of(pattern: &str) -> Result<Self, MatcherError> {
        match pattern {
            "" => Ok(Self::None),
            EVERY => Ok(Self::Every),
            _ => Matcher::new(MatchOp::Regex, "origin", pattern).map(Self::Matching),
        }
    }

    /// The pattern.
    pub fn pattern(&self) -> &str {
        match self {
            Self::None => "",
            Self::Every => EVERY,
            Self::Matching(matcher) => matcher.value(),
        }
    }

    /// What an answer to a script of `origin` says of who may read it.
    fn allowed(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        match self {
            Self::None => None,
            Self::Every => Some(HeaderValue::from_static("*")),
            Self::Matching(matcher) => {
                let matches = origin.to_str().is_ok_and(|origin| matcher.matches(origin));
                matches.then(|| origin.clone())
            }
        }
    }

    fn tell(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
        let Some(origin) = origin.filter(|origin| !origin.is_empty()) else {
            return;
        };
        for (name, value) in SAID_TO_ALL {
            headers.insert(name, HeaderValue::from_static(value));
        }
        if let Some(allowed) = self.allowed(origin) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        }
    }
}

/// Lets scripts of these origins use a router's endpoints: what browsers ask beforehand, by `OPTIONS`, is answered with 204.
pub fn with_cors(router: Router, origins: &CorsOrigin) -> Router {
    match origins {
        CorsOrigin::None => router,
        _ => router.layer(from_fn_with_state(origins.clone(), pass)),
    }
}

async fn pass(State(origins): State<CorsOrigin>, request: Request, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let mut response = match *request.method() {
        Method::OPTIONS => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
        _ => next.run(request).await,
    };
    origins.tell(origin.as_ref(), response.headers_mut());
    response
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tower::ServiceExt as _;

    use super::*;

    async fn ask(pattern: &str, method: &str, path: &str, origin: Option<&str>) -> (StatusCode, HeaderMap) {
        let routes = Router::new().route(
            "/read",
            get(|| async { ([(header::VARY, "accept-encoding")], "read") }),
        );
        let router = with_cors(routes, &CorsOrigin::of(pattern).unwrap());
        let router = router.merge(Router::new().route("/write", axum::routing::post(|| async { "written" })));
        let mut request = http::Request::builder().method(method).uri(path);
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        let response = router
            .oneshot(request.body(Body::empty()).unwrap())
            .await
            .unwrap();
        let (head, _) = response.into_parts();
        (head.status, head.headers)
    }

    fn said(headers: &HeaderMap) -> Vec<(&str, &str)> {
        let headers = headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap()));
        headers
            .filter(|(n, _)| n.starts_with("access-control-"))
            .collect()
    }

    const TO_ALL: [(&str, &str); 3] = [
        (
            "access-control-allow-headers",
            "Accept, Authorization, Content-Type, Origin, X-Scope-OrgID",
        ),
        ("access-control-allow-methods", "GET, POST, OPTIONS"),
        ("access-control-expose-headers", "Date"),
    ];

    #[tokio::test]
    async fn answers_say_which_origins_may_read_them() {
        const ORIGIN: &str = "https://a.example";
        for (pattern, allowed) in [
            (".*", Some("*")),
            ("https?://(a|b)[.]example", Some(ORIGIN)),
            // The whole origin must match.
            ("a[.]example", None),
        ] {
            for (method, status) in [
                ("GET", StatusCode::OK),
                ("OPTIONS", StatusCode::NO_CONTENT),
                ("PUT", StatusCode::METHOD_NOT_ALLOWED),
            ] {
                let (got, headers) = ask(pattern, method, "/read", Some(ORIGIN)).await;
                let mut expected = TO_ALL.to_vec();
                expected.extend(allowed.map(|origin| ("access-control-allow-origin", origin)));
                assert_eq!((got, said(&headers)), (status, expected), "{pattern} {method}");
            }
        }
    }

    #[tokio::test]
    async fn answers_vary_with_the_origin_also_where_there_is_none() {
        for origin in [None, Some("")] {
            let (_, headers) = ask(".*", "GET", "/read", origin).await;
            assert_eq!(said(&headers), []);
            let varies: Vec<_> = headers.get_all("vary").iter().collect();
            assert_eq!(varies, ["accept-encoding", "Origin"]);
            assert_eq!(
                ask(".*", "OPTIONS", "/read", origin).await.0,
                StatusCode::NO_CONTENT
            );
        }
    }

    #[tokio::test]
    async fn it_can_be_switched_off_and_other_routers_do_without() {
        for (pattern, path) in [("", "/read"), (".*", "/write"), (".*", "/nowhere")] {
            let (status, headers) = ask(pattern, "OPTIONS", path, Some("https://a.example")).await;
            assert_ne!(status, StatusCode::NO_CONTENT, "{path}");
            assert_eq!(said(&headers), [], "{path}");
            assert!(!headers.contains_key("vary"), "{path}");
        }
    }
}
