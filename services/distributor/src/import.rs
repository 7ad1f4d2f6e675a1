//! Exposed metrics by HTTP: as text or in protobuf, and by Pushgateway's paths.
//!
//! **Source**: Prometheus' exposition formats; Pushgateway's README (grouping keys in paths, statuses); the parameters
//! `extra_label` and `timestamp` as VictoriaMetrics has them.

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{post, put};
use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use koios_model::STALE_NAN_BITS;
use koios_wire::compression::Compression;
use koios_wire::exposition::Dialect;

use crate::http_api::{ContentType, Form, answer, receive_and_push, refused};
use crate::message::{Exposed, Exposition, Format};
use crate::{Distributor, Error, Outcome};

/// Ends the name of a label whose value is written in base64.
const BASE64: &str = "@base64";
/// Most labels that a URL may add.
const LABELS_MAX: usize = 64;
/// The series that Pushgateway adds to each group.
const PUSH_TIME: &str = "push_time_seconds";

pub(crate) fn routes(router: Router<Distributor>) -> Router<Distributor> {
    let mut router = router;
    for prefix in ["", "/prometheus"] {
        router = router
            .route(&format!("{prefix}/api/v1/import/prometheus"), post(import))
            .route(
                &format!("{prefix}/metrics/{{job}}/{{*labels}}"),
                put(push_group).post(push_group).delete(end_group),
            );
    }
    router
}

/// `POST /api/v1/import/prometheus`.
async fn import(State(distributor): State<Distributor>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let now_ms = distributor.shared.clock().now_ms();
    let form = |headers: &HeaderMap| {
        let mut text = Exposition {
            exposed: exposed(headers.get(header::CONTENT_TYPE))?,
            now_ms,
            labels: Vec::new(),
            push_time: None,
        };
        text.read_parameters(&query)?;
        form(headers, text)
    };
    match receive_and_push(&distributor, &parts.headers, body, form).await {
        Ok(outcome) => answer(&outcome),
        Err(failure) => refused(&distributor, &failure),
    }
}

/// `PUT` or `POST /metrics/job/<job>{/<label>/<value>}`: both add samples, nothing that was pushed before goes away.
async fn push_group(
    State(distributor): State<Distributor>,
    Path((job, rest)): Path<(String, String)>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let now_ms = distributor.shared.clock().now_ms();
    let form = |headers: &HeaderMap| {
        let text = Exposition {
            exposed: exposed(headers.get(header::CONTENT_TYPE))?,
            now_ms,
            labels: group(&job, &rest)?,
            push_time: Some((PUSH_TIME, now_ms as f64 / 1000.0)),
        };
        form(headers, text)
    };
    match receive_and_push(&distributor, &parts.headers, body, form).await {
        Ok(outcome) => pushed(&outcome, StatusCode::OK),
        Err(failure) => refused(&distributor, &failure),
    }
}

/// `DELETE /metrics/job/<job>{/<label>/<value>}`: ends the series that says when the group was pushed. Which others the
/// group has is not kept; they end for queries as series do that nobody sends, and what they were stays.
async fn end_group(
    State(distributor): State<Distributor>,
    Path((job, rest)): Path<(String, String)>,
    request: Request,
) -> Response {
    let (parts, _) = request.into_parts();
    let now_ms = distributor.shared.clock().now_ms();
    let form = |headers: &HeaderMap| {
        let end = Exposition {
            exposed: Exposed::Text(Dialect::Prometheus),
            now_ms,
            labels: group(&job, &rest)?,
            push_time: Some((PUSH_TIME, f64::from_bits(STALE_NAN_BITS))),
        };
        Ok(Form {
            compression: Compression::Identity,
            ..form(headers, end)?
        })
    };
    match receive_and_push(&distributor, &parts.headers, Body::empty(), form).await {
        Ok(outcome) => pushed(&outcome, StatusCode::ACCEPTED),
        Err(failure) => refused(&distributor, &failure),
    }
}

/// Pushgateway's clients want just this status.
fn pushed(outcome: &Outcome, wanted: StatusCode) -> Response {
    match outcome.complaint() {
        None => wanted.into_response(),
        Some(_) => answer(outcome),
    }
}

fn form(headers: &HeaderMap, text: Exposition) -> Result<Form, Error> {
    Ok(Form {
        tenant: koios_tenancy::tenant_of_write(headers)?,
        format: Format::Exposition(text),
        compression: Compression::from_header(headers.get(header::CONTENT_ENCODING), Compression::Identity)?,
        framed: false,
    })
}

/// Text unless said otherwise; what `curl --data-binary` says by itself is taken for text, too.
fn exposed(content_type: Option<&HeaderValue>) -> Result<Exposed, Error> {
    const TEXT: [&str; 4] = [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/octet-stream",
    ];
    let content_type = ContentType::of(content_type);
    if TEXT.iter().any(|media_type| content_type.is(media_type)) {
        return Ok(Exposed::Text(Dialect::Prometheus));
    }
    if content_type.is("application/openmetrics-text") {
        return Ok(Exposed::Text(Dialect::OpenMetrics));
    }
    let is_delimited = content_type.parameter("encoding") == Some("delimited");
    if is_delimited && content_type.is("application/vnd.google.protobuf") {
        return Ok(Exposed::Families);
    }
    Err(Error::TextContentType {
        sent: content_type.to_tell(),
    })
}

impl Exposition {
    /// Takes `extra_label=name=value`, as often as it comes, and `timestamp`, in milliseconds.
    fn read_parameters(&mut self, query: &str) -> Result<(), Error> {
        for (name, value) in parameters(query) {
            match name {
                "extra_label" => {
                    let Some((name, value)) = value.split_once('=') else {
                        return Err(parameter("extra_label", &value, "name=value"));
                    };
                    if self.labels.len() >= LABELS_MAX {
                        return Err(parameter("extra_label", value, "at most 64 of them"));
                    }
                    self.labels.push((name.to_owned(), value.to_owned()));
                }
                "timestamp" => {
                    self.now_ms = value
                        .parse()
                        .map_err(|_| parameter("timestamp", &value, "milliseconds since the Unix epoch"))?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The parameters of a URL that have a value.
pub(crate) fn parameters(query: &str) -> impl Iterator<Item = (&str, String)> {
    let fields = query.split('&').filter_map(|field| field.split_once('='));
    fields.map(|(name, value)| (name, decoded(value)))
}

fn decoded(value: &str) -> String {
    let spaced = value.replace('+', " ");
    percent_encoding::percent_decode_str(&spaced)
        .decode_utf8_lossy()
        .into_owned()
}

pub(crate) fn parameter(name: &'static str, sent: &str, wanted: &'static str) -> Error {
    Error::Parameter {
        name,
        sent: sent.chars().take(128).collect(),
        wanted,
    }
}

/// The labels of a group: the job, then pairs of names and values. `job` is the first segment: `job` or `job@base64`.
fn group(job: &str, rest: &str) -> Result<Vec<(String, String)>, Error> {
    // As for Pushgateway, a job may end with a slash, and labels may not.
    let rest = match rest.strip_suffix('/') {
        Some(of_job) if !of_job.contains('/') => of_job,
        _ => rest,
    };
    let mut segments = std::iter::once(job).chain(rest.split('/'));
    let mut labels: Vec<(String, String)> = Vec::new();
    while let Some(name) = segments.next() {
        let value = segments
            .next()
            .ok_or_else(|| parameter("path", name, "pairs of /<label>/<value>"))?;
        let (name, value) = match name.strip_suffix(BASE64) {
            Some(name) => (name, from_base64(value)?),
            None => (name, value.to_owned()),
        };
        let first = labels.is_empty();
        if first != (name == "job") {
            return Err(parameter("path", name, "/metrics/job/<job>{/<label>/<value>}"));
        }
        if first && value.is_empty() {
            return Err(parameter("path", "", "the name of a job"));
        }
        if name.starts_with("__") || labels.iter().any(|(known, _)| known == name) {
            return Err(parameter(
                "path",
                name,
                "labels that do not begin with \"__\", each once",
            ));
        }
        if labels.len() >= LABELS_MAX {
            return Err(parameter("path", name, "at most 64 labels"));
        }
        labels.push((name.to_owned(), value));
    }
    Ok(labels)
}

fn from_base64(text: &str) -> Result<String, Error> {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    // A lone "=" stands for nothing: paths have no empty segments.
    let text = if text == "=" { "" } else { text };
    let bytes = GeneralPurpose::new(&base64::alphabet::URL_SAFE, config).decode(text);
    bytes
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| parameter("path", text, "UTF-8 in base64url after @base64"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_from_paths() {
        let pairs = |job, rest| {
            let labels = group(job, rest).unwrap();
            labels
                .into_iter()
                .map(|(n, v)| format!("{n}={v}"))
                .collect::<Vec<_>>()
                .join(",")
        };
        assert_eq!(pairs("job", "batch"), "job=batch");
        assert_eq!(pairs("job", "batch/"), "job=batch");
        assert_eq!(pairs("job", "batch/instance/a:1"), "job=batch,instance=a:1");
        // As in Pushgateway's README.
        assert_eq!(
            pairs("job", "titan/name@base64/zqDPgc6_zrzOt864zrXPjc-C"),
            "job=titan,name=Προμηθεύς"
        );
        assert_eq!(pairs("job@base64", "L3Zhci90bXA"), "job=/var/tmp");
        assert_eq!(pairs("job", "x/empty@base64/="), "job=x,empty=");
        for (job, rest) in [
            ("nojob", "x"),
            ("job", ""),
            ("job", "/"),
            ("job", "x/instance/a/"),
            ("job", "x/instance"),
            ("job", "x/a/1/a/2"),
            ("job", "x/job/y"),
            ("job", "x/__name__/y"),
            ("job@base64", "!!"),
        ] {
            assert!(group(job, rest).is_err(), "{job}/{rest}");
        }
    }
}
