//! Labels, series and metadata.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use http::{HeaderMap, Request};
use koios_model::{Matchers, Metadata, TimeRange};
use koios_promql::QueryError;
use koios_tenancy::Limits;

use super::QuerierApi;
use super::admission::Place;
use super::envelope::{ARRAY, Held, Notes, OBJECT, Sending, streamed};
use super::error::ApiError;
use super::json::{write_array, write_labels, write_string};
use super::params::Params;
use super::query::panicked;
use crate::cluster::{Budget, Collected, Footprint, Selection, Wanted};

/// How far metadata is looked for when a request does not say: blocks of all time have very many series.
const METADATA_BACK_MS: i64 = 24 * 3_600_000;

/// `/api/v1/labels`.
pub(super) async fn label_names(
    State(api): State<Arc<QuerierApi>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let (headers, params) = Params::read(request).await?;
    api.labels(&headers, &params, "").await
}

/// `/api/v1/label/<name>/values`.
pub(super) async fn label_values(
    State(api): State<Arc<QuerierApi>>,
    name: Result<Path<String>, PathRejection>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    // The only way to get no name is bytes that are no text.
    let Path(name) = name.map_err(|_| ApiError::bad_data("invalid label name: it is not valid UTF-8"))?;
    let name = unescape(&name);
    let plain = name.chars().all(|c| !c.is_control());
    if name.is_empty() || name == "." || name == ".." || !plain {
        return Err(ApiError::bad_data(format!("invalid label name: {name:?}")));
    }
    let (headers, params) = Params::read(request).await?;
    api.labels(&headers, &params, &name).await
}

/// `/api/v1/series`.
pub(super) async fn series(
    State(api): State<Arc<QuerierApi>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let (headers, params) = Params::read(request).await?;
    let asked = api.selections(&headers, &params).await?;
    if asked.selections.iter().any(|s| s.matchers == Matchers::default()) {
        return Err(ApiError::bad_data("no match[] parameter provided"));
    }
    let budget = asked.budget();
    let read = api.cluster.series(&asked.selections, asked.limit, &budget);
    let (found, place) = api.within(&asked, read).await?;
    let write = |out: &mut Vec<u8>, labels: koios_model::Labels| write_labels(out, labels.as_ref());
    Ok(api.listing(&asked, found, place, write))
}

/// `/api/v1/metadata`.
pub(super) async fn metadata(
    State(api): State<Arc<QuerierApi>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let (headers, params) = Params::read(request).await?;
    let (limit, per_metric) = (params.most("limit")?, params.most("limit_per_metric")?);
    let metric = params.one("metric")?.unwrap_or("").to_owned();
    let asked = api.selections(&headers, &Params::default()).await?;
    let tenant = super::tenant_of(&headers)?;
    let range = metadata_range(&params, api.clock.now_ms())?;
    let budget = asked.budget();
    let read = api.cluster.metadata(&tenant, &metric, range, &budget);
    let (found, place) = api.within(&asked, read).await?;
    let mut notes = Notes::default();
    notes.warnings.extend(found.warning);
    let wanted = |(m, _): &(String, BTreeSet<Metadata>)| metric.is_empty() || *m == metric;
    let found_metrics = found.metrics.into_iter().filter(wanted);
    let metrics = found_metrics.take(limit.unwrap_or(usize::MAX)).collect();
    let per_metric = unless_zero(per_metric.unwrap_or(0));
    let write = move |out: &mut Vec<u8>, metric| write_metadata(out, &metric, per_metric);
    let sending = Sending {
        clients: &api.clients,
        held: Held::new(place, Some(found.charge)),
    };
    Ok(streamed(&OBJECT, metrics, write, &notes, sending))
}

/// Which blocks' metadata is told beside that of heads.
fn metadata_range(params: &Params, now_ms: i64) -> Result<TimeRange, ApiError> {
    let range = params.range()?;
    let start = params.time_or("start", now_ms.saturating_sub(METADATA_BACK_MS))?;
    Ok(TimeRange::new(start.min(range.max), range.max))
}

fn write_metadata(out: &mut Vec<u8>, (metric, entries): &(String, BTreeSet<Metadata>), per_metric: usize) {
    write_string(out, metric);
    out.push(b':');
    write_array(out, entries.iter().take(per_metric), |out, m| {
        for (name, value) in [
            ("{\"type\":", &m.kind),
            (",\"help\":", &m.help),
            (",\"unit\":", &m.unit),
        ] {
            out.extend_from_slice(name.as_bytes());
            write_string(out, value);
        }
        out.push(b'}');
    });
}

/// What to read, and within which bounds.
pub(super) struct Asked {
    selections: Vec<Selection>,
    limits: Arc<Limits>,
    limit: usize,
}

impl Asked {
    /// What it may hold and return.
    pub(super) fn budget(&self) -> Arc<Budget> {
        Budget::new(
            usize::try_from(self.limits.max_query_memory_bytes).unwrap_or(usize::MAX),
            usize::try_from(self.limits.max_query_series).unwrap_or(usize::MAX),
        )
    }

    /// Cuts to the limit.
    fn truncate<T>(&self, found: &mut Vec<T>) -> Notes {
        let more = found.len() > unless_zero(self.limit);
        found.truncate(unless_zero(self.limit));
        Notes::truncated(more)
    }
}

fn unless_zero(limit: usize) -> usize {
    if limit == 0 { usize::MAX } else { limit }
}

impl QuerierApi {
    async fn labels(&self, headers: &HeaderMap, params: &Params, name: &str) -> Result<Response, ApiError> {
        let asked = self.selections(headers, params).await?;
        let budget = asked.budget();
        let read = self.cluster.labels(&asked.selections, name, &budget);
        let (found, place) = self.within(&asked, read).await?;
        let write = |out: &mut Vec<u8>, text: String| write_string(out, &text);
        Ok(self.listing(&asked, found, place, write))
    }

    /// The answer to a lookup. It keeps the place, and its memory charged, until it was sent.
    fn listing<T: Footprint + Ord + Send + 'static>(
        &self,
        asked: &Asked,
        found: Collected<T>,
        place: Place,
        write: impl FnMut(&mut Vec<u8>, T) + Send + 'static,
    ) -> Response {
        let incomplete = found.completeness().warning();
        let (mut found, charge) = found.into_parts();
        let mut notes = asked.truncate(&mut found);
        notes.warnings.extend(incomplete);
        let sending = Sending {
            clients: &self.clients,
            held: Held::new(place, Some(charge)),
        };
        streamed(&ARRAY, found, write, &notes, sending)
    }

    /// One selection per `match[]`; one of everything without.
    pub(super) async fn selections(&self, headers: &HeaderMap, params: &Params) -> Result<Asked, ApiError> {
        let tenant = super::tenant_of(headers)?;
        let range = params.range()?;
        let limit = params.count("limit")?;
        let selectors = if params.has_selectors() {
            let params = params.clone();
            let parsed = self.cpu.run(move || params.selectors()).await;
            parsed.map_err(|e| panicked(&e))??
        } else {
            vec![Matchers::default()]
        };
        let wanted = Wanted {
            // One more tells that there are more.
            limit: if limit == 0 { 0 } else { limit.saturating_add(1) },
            ..Wanted::default()
        };
        let selection = |matchers| Selection {
            tenant: tenant.clone(),
            matchers,
            range,
            labels_only: true,
            wanted: wanted.clone(),
        };
        Ok(Asked {
            selections: selectors.into_iter().map(selection).collect(),
            limits: self.overrides.of(&tenant),
            limit,
        })
    }

    /// Reads with a place, which comes with the answer, and within the tenant's query timeout.
    pub(super) async fn within<T>(
        &self,
        asked: &Asked,
        read: impl Future<Output = Result<T, QueryError>>,
    ) -> Result<(T, Place), ApiError> {
        let admitted = async {
            let tenant = asked.selections.first().map(|s| s.tenant.clone());
            let tenant = tenant.unwrap_or_else(koios_model::TenantId::anonymous);
            let place = self.admit(&tenant, asked.limits.max_concurrent_queries).await?;
            Ok((read.await?, place))
        };
        match self.clock.timeout(asked.limits.query_timeout, admitted).await {
            Ok(result) => result,
            Err(_) => Err(QueryError::Timeout("series lookup").into()),
        }
    }
}

/// Undoes `U__` escaping, by which names with any character fit into a path segment.
///
/// **Source:** Prometheus common `model.UnescapeName`.
fn unescape(name: &str) -> String {
    let Some(escaped) = name.strip_prefix("U__") else {
        return name.to_owned();
    };
    let mut out = String::with_capacity(escaped.len());
    let mut rest = escaped;
    while let Some((before, after)) = rest.split_once('_') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('_') {
            out.push('_');
            rest = after;
            continue;
        }
        let decoded = after.split_once('_').and_then(|(hex, tail)| {
            let valid = !hex.is_empty() && hex.len() <= 6 && hex.bytes().all(|b| b.is_ascii_hexdigit());
            let c = valid
                .then(|| u32::from_str_radix(hex, 16).ok())
                .flatten()
                .and_then(char::from_u32)?;
            Some((c, tail))
        });
        let Some((c, tail)) = decoded else {
            return name.to_owned();
        };
        out.push(c);
        rest = tail;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_names_are_read_as_written() {
        for (escaped, name) in [
            ("job", "job"),
            ("U__http_2e_status:code", "http.status:code"),
            ("U__a__b", "a_b"),
            ("U___1f600_", "\u{1f600}"),
            ("U__a_zz_", "U__a_zz_"),
            ("U__a_2e", "U__a_2e"),
            ("U__", ""),
        ] {
            assert_eq!(unescape(escaped), name, "{escaped}");
        }
    }
}
