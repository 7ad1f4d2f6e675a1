//! The bodies of the fuzz targets: what must hold of any bytes. `fuzz/` feeds them without end, a test feeds them the
//! seeds there and mutations of these.
//!
//! A body panics when something does not hold; the bytes replay it.

mod choices;
mod data;
mod eval;
mod expression;
mod ingest;
mod mutate;
mod parse;
mod tsdb;
mod tsdb_seal;
mod wal;

pub use eval::{Evaluated, promql_eval};
pub use ingest::{decompress, exposition, families, influx, otlp_json, otlp_protobuf, remote_write};
pub use mutate::Mutator;
pub use parse::promql_parse;
pub use tsdb::{TsdbRead, tsdb_input, tsdb_read};
pub use wal::{WalRead, wal_read};
