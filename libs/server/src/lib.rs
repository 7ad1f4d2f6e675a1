//! The process shell: configuration, listeners, tower layers, readiness, self-metrics, tracing.
//!
//! **Data flow.** The binary [`config::load`]s [`settings::Settings`], [`start_logging`]s, builds the services, puts
//! [`with_edge`] around their routers, merges [`common_routes`], serves them by [`HttpServer`] and [`GrpcServer`],
//! reports their state through [`Readiness`], and at a signal stops everything by [`stop_in_order`].
//!
//! **Invariants.** Every request has an id, a deadline and a place among a bounded number in flight; no handler's panic
//! ends the process (I12). Listeners come from `koios_runtime::Net`, so that the shell runs in simulation (I15).
//!
//! **Deliberately absent.** Any knowledge of what a service does; TLS; when settings are read again.
//!
//! **Failure behaviour.** What a process was told wrongly is refused at start, with its place ([`config::ConfigError`]).
//! Overload is answered 503 with `Retry-After`; a stop drains for a bounded time and then cuts.

mod api_error;
mod common_routes;
pub mod config;
mod cors;
mod doubts;
mod edge;
mod grpc_server;
mod http_server;
mod logging;
pub mod metrics;
mod places;
mod readiness;
mod refusals;
pub mod settings;
mod shutdown;

pub use api_error::{ErrorType, api_error, plain_error, with_retry_after};
pub use common_routes::common_routes;
pub use cors::{CorsOrigin, with_cors};
pub use edge::{DeadlineAdvice, REQUEST_ID_HEADER, RequestId, URI_BYTES_MAX, with_edge};
pub use grpc_server::GrpcServer;
pub use http_server::{ConnectionLimits, HttpServer};
pub use logging::{LogError, lost_log_lines, start_logging};
pub use metrics::Metrics;
pub use readiness::{Component, Readiness};
pub use settings::Settings;
pub use shutdown::{StopPlan, StopStage, stop_in_order};
