//! The process shell: configuration, listeners, tower layers, readiness, self-metrics, tracing.
//!
//! **Data flow.** The binary [`config::load`]s [`settings::Settings`], starts tracing, builds the services, hands their
//! routers to [`HttpServer`] and [`GrpcServer`], reports their state through [`Readiness`], and at a signal stops
//! everything in the order of [`shutdown::stop_in_order`].
//!
//! **Invariants.** Every request has an id, a deadline and a place among a bounded number in flight; no handler's panic
//! ends the process (I12). Listeners come from `koios_runtime::Net`, so that the shell runs in simulation (I15).
//!
//! **Deliberately absent.** Any knowledge of what a service does; TLS; live reload.
//!
//! **Failure behaviour.** What a process was told wrongly is refused at start, with its place ([`config::ConfigError`]).
//! Overload is answered 503 with `Retry-After`; a stop drains for a bounded time and then cuts.

pub mod config;
pub mod settings;
