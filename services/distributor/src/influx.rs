//! Influx' line protocol by HTTP.
//!
//! **Source**: `InfluxDB`'s write API (`/write` of version 1, `/api/v2/write`) and its errors, as Telegraf's outputs of both read them;
//! the label `db` as `VictoriaMetrics` has it.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{HeaderMap, HeaderName, StatusCode, header};
use koios_server::{plain_error, with_retry_after};
use koios_wire::compression::Compression;
use koios_wire::influx::Precision;
use serde_json::json;

use crate::checks::PLAUSIBLE_MS;
use crate::http_api::{Form, answer, note_refusal, receive_and_push};
use crate::import::{parameter, parameters};
use crate::message::{Format, LineProtocol};
use crate::{Distributor, Error, Written};

const VERSION: HeaderName = HeaderName::from_static("x-influxdb-version");

pub(crate) fn routes(router: Router<Distributor>) -> Router<Distributor> {
    let mut router = router;
    for prefix in ["", "/prometheus"] {
        for path in ["/write", "/api/v1/push/influx/write"] {
            router = router.route(&format!("{prefix}{path}"), post(write_1));
        }
        router = router.route(&format!("{prefix}/api/v2/write"), post(write_2));
        router = router.route(&format!("{prefix}/ping"), get(ping));
    }
    router
}

/// Clients ask it whether there is anyone.
async fn ping() -> (StatusCode, [(HeaderName, &'static str); 1]) {
    (StatusCode::NO_CONTENT, [(VERSION, "koios")])
}

/// Whose errors a client expects.
#[derive(Clone, Copy, Debug)]
enum Api {
    Version1,
    Version2,
}

async fn write_1(State(distributor): State<Distributor>, request: Request) -> Response {
    write(&distributor, request, Api::Version1).await
}

async fn write_2(State(distributor): State<Distributor>, request: Request) -> Response {
    write(&distributor, request, Api::Version2).await
}

async fn write(distributor: &Distributor, request: Request, api: Api) -> Response {
    let (parts, body) = request.into_parts();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let now_ms = distributor.shared.clock().now_ms();
    let form = |headers: &HeaderMap| {
        Ok(Form {
            tenant: koios_tenancy::tenant_of_write(headers)?,
            format: Format::Influx(line_protocol(&query, now_ms)?),
            compression: Compression::from_header(
                headers.get(header::CONTENT_ENCODING),
                Compression::Identity,
            )?,
            framed: false,
        })
    };
    match receive_and_push(distributor, &parts.headers, body, form).await {
        Ok(outcome) => match outcome.complaint() {
            None => answer(&outcome),
            Some(complaint) => {
                tracing::debug!(?complaint, "write request accepted in part");
                let message = match outcome.written == Written::default() {
                    true => complaint,
                    false => format!("partial write: {complaint}"),
                };
                api.error(StatusCode::BAD_REQUEST, &message, None)
            }
        },
        Err(failure) => {
            note_refusal(distributor, &failure.error);
            let error = &failure.error;
            api.error(error.status(), &error.to_string(), error.retry_after())
        }
    }
}

impl Api {
    /// An error as clients of the version read it: they drop what cannot be written, and name the reason.
    fn error(self, status: StatusCode, message: &str, retry_after: Option<Duration>) -> Response {
        let may_pass = matches!(
            status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS
        );
        let response = match self {
            // What this version has no status for is read as text is: else clients drop it like any 4xx.
            Self::Version1 if may_pass => plain_error(status, message),
            Self::Version1 => (status, Json(json!({ "error": message }))).into_response(),
            Self::Version2 => {
                let code = code_of(status);
                (status, Json(json!({ "code": code, "message": message }))).into_response()
            }
        };
        match retry_after {
            Some(after) => with_retry_after(response, after),
            None => response,
        }
    }
}

/// What version 2 calls errors of a status.
fn code_of(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "unauthorized",
        StatusCode::FORBIDDEN => "forbidden",
        StatusCode::PAYLOAD_TOO_LARGE => "request too large",
        StatusCode::TOO_MANY_REQUESTS => "too many requests",
        StatusCode::SERVICE_UNAVAILABLE => "unavailable",
        status if status.is_server_error() => "internal error",
        _ => "invalid",
    }
}

/// Units by what `precision` calls them, with their nanoseconds; those that are sent most come first.
const UNITS: [(Precision, &str, i128); 6] = [
    (Precision::Seconds, "s", 1_000_000_000),
    (Precision::Milliseconds, "ms", 1_000_000),
    (Precision::Microseconds, "us", 1_000),
    (Precision::Nanoseconds, "ns", 1),
    (Precision::Minutes, "m", 60_000_000_000),
    (Precision::Hours, "h", 3_600_000_000_000),
];

/// What is said of a time that, read with a precision, is so many milliseconds.
pub(crate) fn implausible(t_ms: i64, precision: Precision) -> String {
    let read = UNITS.iter().find(|(unit, ..)| *unit == precision);
    let (name, nanos) = read.map_or(("ns", 1), |(_, name, nanos)| (*name, *nanos));
    let is_likely = |other: i128| {
        let t_ms = i64::try_from(i128::from(t_ms) * other / nanos);
        t_ms.is_ok_and(|t_ms| PLAUSIBLE_MS.contains(&t_ms))
    };
    let likely = UNITS.iter().find(|(.., other)| is_likely(*other));
    let what = format!("read with precision={name} it is {t_ms} ms after 1970");
    match likely {
        Some((_, unit, _)) => format!("{what}: as it was sent it fits precision={unit}"),
        None => {
            format!("{what}: give the unit of times, precision=s, ms, us or ns, and set the sender's clock")
        }
    }
}

/// `precision`, and `db`, which becomes a label of that name where it is not a tag.
fn line_protocol(query: &str, now_ms: i64) -> Result<LineProtocol, Error> {
    let mut text = LineProtocol {
        precision: Precision::default(),
        now_ms,
        database: None,
    };
    for (name, value) in parameters(query) {
        match name {
            "precision" => {
                text.precision = Precision::from_parameter(&value)
                    .ok_or_else(|| parameter("precision", &value, "one of ns, us, ms, s, m, h"))?;
            }
            "db" if !value.is_empty() => text.database = Some(value),
            _ => {}
        }
    }
    Ok(text)
}
