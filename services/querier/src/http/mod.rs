//! Prometheus' HTTP query API.

mod admission;
mod cost;
mod deletions;
mod envelope;
mod error;
mod histogram;
mod json;
mod metrics;
mod params;
mod query;
mod result;
mod series;
mod status;
mod time;
mod tree;

#[cfg(test)]
mod http_test;
#[cfg(test)]
mod refusals_test;

use std::sync::Arc;

use axum::Router;
use axum::routing::{MethodRouter, get};
use http::HeaderMap;
use koios_model::TenantId;
use koios_promql::ParseOptions;
use koios_runtime::{ClockHandle, Cpu, MemoryWatch};
use koios_server::{ErrorType, Metrics};
use koios_tenancy::{Limits, Overrides, tenants_of_read};
use tower_http::compression::CompressionLayer;

pub use deletions::DeletionsApi;

use crate::cluster::Cluster;
use admission::{Admission, Place};
use envelope::Clients;
use error::ApiError;
use metrics::QuerierMetrics;

/// Queries one process runs at once unless told otherwise.
pub const CONCURRENT_QUERIES_DEFAULT: usize = 40;

/// Fewest threads that evaluate queries, so that two long ones of one tenant leave some to others.
const THREADS_MIN: usize = 4;

/// The query API of one process.
#[derive(Debug)]
pub struct QuerierApi {
    cluster: Arc<Cluster>,
    overrides: Overrides,
    clock: ClockHandle,
    /// Where queries are evaluated.
    cpu: Cpu,
    /// As wide as one evaluation may spread.
    cores: Cpu,
    memory: MemoryWatch,
    admission: Arc<Admission>,
    clients: Clients,
    metrics: QuerierMetrics,
}

impl QuerierApi {
    /// Answers from `cluster`, at most `concurrent_max` queries at once.
    pub fn new(
        cluster: Arc<Cluster>,
        overrides: Overrides,
        clock: ClockHandle,
        cpu: Cpu,
        memory: MemoryWatch,
        concurrent_max: usize,
        metrics: &Metrics,
    ) -> Arc<Self> {
        // Evaluations last up to minutes; what receives samples must not wait behind them.
        let threads = cpu.parallelism().max(THREADS_MIN);
        let cores = cpu.clone();
        let cpu = cpu.separate("koios-query", threads).unwrap_or_else(|error| {
            tracing::warn!(%error, "no threads of their own for queries, they share those of writes");
            cpu
        });
        Arc::new(Self {
            cluster,
            overrides,
            clients: Clients::new(&clock),
            clock,
            cpu,
            cores,
            memory,
            admission: Admission::new(concurrent_max, threads),
            metrics: QuerierMetrics::new(metrics),
        })
    }

    /// Waits until a query of `tenant` may start; refuses it while memory is short.
    async fn admit(&self, tenant: &TenantId, limit: usize) -> Result<Place, ApiError> {
        let place = self.admission.enter(tenant, limit).await?;
        self.memory
            .check(self.clock.elapsed())
            .map_err(|short| ApiError::new(ErrorType::Unavailable, short.to_string()))?;
        Ok(place)
    }

    /// The endpoints, at `/` and under `/prometheus`; answers are compressed when the client accepts it.
    pub fn router(self: &Arc<Self>) -> Router {
        let routes = self.routes();
        Router::new()
            .merge(routes.clone())
            .nest("/prometheus", routes)
            .layer(CompressionLayer::new())
    }

    fn routes(self: &Arc<Self>) -> Router {
        fn form<H, T>(handler: H) -> MethodRouter<Arc<QuerierApi>>
        where
            H: axum::handler::Handler<T, Arc<QuerierApi>>,
            T: 'static,
        {
            get(handler.clone()).post(handler)
        }
        Router::new()
            .route("/api/v1/query", form(query::instant))
            .route("/api/v1/query_range", form(query::range))
            .route("/api/v1/query_exemplars", form(status::exemplars))
            .route("/api/v1/labels", form(series::label_names))
            .route("/api/v1/label/{name}/values", get(series::label_values))
            .route("/api/v1/series", form(series::series))
            .route("/api/v1/metadata", get(series::metadata))
            .route("/api/v1/format_query", form(status::format_query))
            .route("/api/v1/parse_query", form(status::parse_query))
            .route("/api/v1/status/buildinfo", get(status::buildinfo))
            .route("/api/v1/rules", get(status::rules))
            .route("/api/v1/alerts", get(status::alerts))
            .with_state(Arc::clone(self))
    }
}

/// The tenant that asks.
fn tenant_of(headers: &HeaderMap) -> Result<TenantId, ApiError> {
    let tenants = tenants_of_read(headers).map_err(|e| ApiError::bad_data(e.to_string()))?;
    match tenants.as_slice() {
        [tenant] => Ok(tenant.clone()),
        // Nobody can grant a tenant's data to another yet (I6).
        [.., last] => {
            let text = format!(
                "a query over several tenants is not allowed for tenant {:?}",
                last.as_str()
            );
            Err(ApiError::forbidden(text))
        }
        [] => Ok(TenantId::anonymous()),
    }
}

/// The language as the tenant may use it.
fn language_of(limits: &Limits) -> ParseOptions {
    if limits.experimental_promql {
        ParseOptions::default()
    } else {
        ParseOptions::stable()
    }
}

fn check_length(query: &str, limits: &Limits) -> Result<(), ApiError> {
    if query.len() as u64 <= limits.max_query_bytes {
        return Ok(());
    }
    let text = format!(
        "query longer than {} bytes (actual: {})",
        limits.max_query_bytes,
        query.len()
    );
    Err(ApiError::new(ErrorType::TooLarge, text))
}

/// The start of a query, for logs.
fn shortened(query: &str) -> &str {
    const LOGGED_BYTES_MAX: usize = 500;
    let end = query
        .char_indices()
        .map(|(i, _)| i)
        .find(|i| *i >= LOGGED_BYTES_MAX);
    query.get(..end.unwrap_or(query.len())).unwrap_or(query)
}
