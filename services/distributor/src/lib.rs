//! Ingestion: receive, validate, limit, shard, replicate.
//!
//! **Data flow.** [`Distributor::router`] takes remote write requests, text, OTLP and line protocol: *receive* (tenant,
//! admission of bytes, body), *decode* (decompress, walk the message, validate each series, hash and pack it into its
//! partition's columns), *admit series* where the tenant has a limit on them (members are asked which of the new ones exist),
//! *replicate* (one batch per partition to all its members, done when a majority has synced it). The stages have the same
//! names in `koios_distributor_stage_duration_seconds`. Of HA pairs the elected replica's samples are kept while decoding; a
//! [`Referee`], the control leader, elects it from what all distributors tell it.
//!
//! **Invariants.** A 2xx means that a majority of every partition's members synced its part under one epoch (I1, I14).
//! What is admitted is decided here, once, from one admission time, so that replicas cannot differ. Sequences are
//! contiguous per (stream, partition, tenant). Bytes held for requests are bounded, and one tenant gets at most half of
//! them (I6, I12).
//!
//! **Deliberately absent.** References without labels.
//!
//! **Failure behaviour.** Good series of a request are written, bad ones are reported with 400, which a retry cannot
//! help; a partition without a majority gives 503, and a retry of the whole request is harmless (I2, I13). Whenever it is
//! not known whether the elected replica of an HA pair brings a sample, that of every replica is taken.

mod admission;
mod checks;
mod distributor;
mod error;
mod extra_labels;
mod http_api;
mod import;
mod influx;
mod intake;
mod known_series;
mod left_out;
mod limiter;
mod members;
mod message;
mod metric_limit;
mod metrics;
mod otlp;
mod outcome;
mod pairs;
mod points;
mod rate_limit;
mod rejection;
mod replicate;
mod routes;
mod series_limit;
mod streams;
mod taken;
mod taken_out;

pub use distributor::{Deps, Distributor, Settings};
pub use error::{Error, InFlight};
pub use members::Members;
pub use otlp::EXPORT as OTLP_EXPORT;
pub use outcome::{Outcome, Written};
pub use pairs::Referee;
pub use rejection::{Rejection, RejectionReport};
