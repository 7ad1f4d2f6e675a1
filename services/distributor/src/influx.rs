//! Influx' line protocol by HTTP.
//!
//! **Source**: `InfluxDB`'s write API (`/write` of version 1, `/api/v2/write`); the label `db` as `VictoriaMetrics` has it.

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::{get, post};
use http::{HeaderMap, HeaderName, StatusCode, header};
use koios_wire::compression::Compression;
use koios_wire::influx::Precision;

use crate::http_api::{Form, answer, receive_and_push, refused};
use crate::import::{parameter, parameters};
use crate::message::{Format, LineProtocol};
use crate::{Distributor, Error};

const VERSION: HeaderName = HeaderName::from_static("x-influxdb-version");

pub(crate) fn routes(router: Router<Distributor>) -> Router<Distributor> {
    let mut router = router;
    for prefix in ["", "/prometheus"] {
        for path in ["/write", "/api/v2/write", "/api/v1/push/influx/write"] {
            router = router.route(&format!("{prefix}{path}"), post(write));
        }
        router = router.route(&format!("{prefix}/ping"), get(ping));
    }
    router
}

/// Clients ask it whether there is anyone.
async fn ping() -> (StatusCode, [(HeaderName, &'static str); 1]) {
    (StatusCode::NO_CONTENT, [(VERSION, "koios")])
}

async fn write(State(distributor): State<Distributor>, request: Request) -> Response {
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
    match receive_and_push(&distributor, &parts.headers, body, form).await {
        Ok(outcome) => answer(&outcome),
        Err(failure) => refused(&distributor, &failure),
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
