//! The distributor as its clients and its members see it: what bad input gets, and when a write is acknowledged.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod bad_inputs;
mod bounded_work;
mod imports;
mod influx;
mod known;
mod limits;
mod memory;
mod messages;
mod network;
mod otlp;
mod otlp_limits;
mod pairs;
mod quorum;
mod rates;
mod rig;
mod series_limit;
mod slow_bodies;
