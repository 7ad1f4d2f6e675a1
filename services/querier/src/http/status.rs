//! What clients ask before they query: who answers, and how a query reads.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, Request};
use koios_model::{Matchers, TimeRange};
use koios_promql::{CancelContext, Query, QueryError, pretty};
use koios_wire::SeriesExemplars;

use super::QuerierApi;
use super::envelope::{ARRAY, Held, Notes, Sending, streamed, whole};
use super::error::ApiError;
use super::json::{write_array, write_labels, write_string, write_time, write_value};
use super::params::Params;
use super::query::{CancelOnDrop, panicked};
use super::time::{MAX_TIME_MS, MIN_TIME_MS};
use super::tree::write_tree;

/// The Prometheus release whose API and query language are served: clients enable features by it.
const PROMETHEUS_VERSION: &str = "3.14.0";

/// `/api/v1/status/buildinfo`; docs/decisions/0002-buildinfo.md says why these values.
pub(super) async fn buildinfo() -> Response {
    let revision = concat!("koios-", env!("CARGO_PKG_VERSION"));
    let info = serde_json::json!({
        "version": PROMETHEUS_VERSION,
        "revision": revision,
        "branch": "",
        "buildUser": "",
        "buildDate": "",
        "goVersion": "",
        "application": "Koios",
    });
    whole(
        |out| out.extend_from_slice(info.to_string().as_bytes()),
        &Notes::default(),
    )
}

/// `/api/v1/format_query`.
pub(super) async fn format_query(
    State(api): State<Arc<QuerierApi>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let (headers, params) = Params::read(request).await?;
    let parsed = api.parsed(&headers, &params).await?;
    let query = parsed.map_err(|e| ApiError::invalid("query", e))?;
    let text = pretty(query.ast());
    Ok(whole(|out| write_string(out, &text), &Notes::default()))
}

/// `/api/v1/parse_query`.
pub(super) async fn parse_query(
    State(api): State<Arc<QuerierApi>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let (headers, params) = Params::read(request).await?;
    let parsed = api.parsed(&headers, &params).await?;
    let query = parsed.map_err(|e| ApiError::invalid("query", e))?;
    Ok(whole(|out| write_tree(out, query.ast()), &Notes::default()))
}

/// Most different selectors in a query for exemplars: each is asked of every partition.
const EXEMPLAR_SELECTORS_MAX: usize = 32;

/// `/api/v1/query_exemplars`: those of the series that the query's selectors match. Mistakes are told in this endpoint's
/// words, which are not those of the others.
pub(super) async fn exemplars(
    State(api): State<Arc<QuerierApi>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let (headers, params) = Params::read(request).await?;
    let (start, end) = (
        params.time_or("start", MIN_TIME_MS)?,
        params.time_or("end", MAX_TIME_MS)?,
    );
    if end < start {
        return Err(ApiError::bad_data(
            "end timestamp must not be before start timestamp",
        ));
    }
    let parsed = api.parsed(&headers, &params).await?;
    let query = parsed.map_err(ApiError::bad_data)?;
    let mut selections: Vec<Matchers> = Vec::new();
    for (selector, _) in query.ast().selectors() {
        let matchers = Matchers(selector.matchers.to_vec());
        if !selections.contains(&matchers) {
            selections.push(matchers);
        }
    }
    if selections.len() > EXEMPLAR_SELECTORS_MAX {
        return Err(ApiError::bad_data(format!(
            "the query has {} different selectors, limit {EXEMPLAR_SELECTORS_MAX}: ask for fewer at a time",
            selections.len()
        )));
    }
    let asked = api.selections(&headers, &Params::default()).await?;
    let tenant = super::tenant_of(&headers)?;
    let budget = asked.budget();
    let range = TimeRange::new(start, end);
    let read = api.cluster.exemplars(&tenant, &selections, range, &budget);
    let (found, place) = api.within(&asked, read).await?;
    let (found, charge) = found.into_parts();
    let sending = Sending {
        clients: &api.clients,
        held: Held::new(place, Some(charge)),
    };
    let write = |out: &mut Vec<u8>, series: SeriesExemplars| write_exemplars(out, &series);
    Ok(streamed(&ARRAY, found, write, &Notes::default(), sending))
}

fn write_exemplars(out: &mut Vec<u8>, (labels, exemplars): &SeriesExemplars) {
    out.extend_from_slice(br#"{"seriesLabels":"#);
    write_labels(out, labels.as_ref());
    out.extend_from_slice(br#","exemplars":"#);
    write_array(out, exemplars.iter(), |out, exemplar| {
        out.extend_from_slice(br#"{"labels":"#);
        write_labels(out, exemplar.labels.as_ref());
        out.extend_from_slice(br#","value":"#);
        write_value(out, exemplar.v);
        out.extend_from_slice(br#","timestamp":"#);
        write_time(out, exemplar.t);
        out.push(b'}');
    });
    out.push(b'}');
}

/// `/api/v1/rules`: there are none.
pub(super) async fn rules() -> Response {
    whole(
        |out| out.extend_from_slice(br#"{"groups":[]}"#),
        &Notes::default(),
    )
}

/// `/api/v1/alerts`: there are none.
pub(super) async fn alerts() -> Response {
    whole(
        |out| out.extend_from_slice(br#"{"alerts":[]}"#),
        &Notes::default(),
    )
}

impl QuerierApi {
    /// The query, or what is wrong with its text.
    async fn parsed(&self, headers: &HeaderMap, params: &Params) -> Result<Result<Query, String>, ApiError> {
        let limits = self.overrides.of(&super::tenant_of(headers)?);
        let text = params.one("query")?.unwrap_or("");
        super::check_length(text, &limits)?;
        let text = text.to_owned();
        let options = super::language_of(&limits);
        let ctx = CancelContext::new(|| false);
        let _cancel = CancelOnDrop(ctx.clone());
        let parse = move || Query::parse_within(&text, &options, &ctx);
        match self.cpu.run(parse).await.map_err(|e| panicked(&e))? {
            Ok(query) => Ok(Ok(query)),
            Err(QueryError::BadData(mistake)) => Ok(Err(mistake)),
            Err(e) => Err(e.into()),
        }
    }
}
