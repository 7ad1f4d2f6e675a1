//! Test tools: simulated disk, object store and network, an oracle, process and peer harnesses, the promqltest runner, the bodies of
//! fuzz targets, and comparison with a real Prometheus by random queries.
//!
//! **Data flow.** Tests build requests with [`remote_write`], send them with [`http::HttpClient`] over a real or
//! simulated network, tell the [`oracle::Oracle`] what was sent and acknowledged, and let it judge what queries return.
//! [`promqltest`] runs scripts, [`fuzz`] any bytes, and [`differential`] the queries of [`query_gen`] against the engine.
//!
//! **Invariants.** Nothing here is linked into a product. Simulated parts draw every decision from the run's seed.
//!
//! **Deliberately absent.** Mocks of services: tests run the real code over simulated surroundings. Only a member that does not
//! run is here ([`down`]).
//!
//! **Failure behaviour.** Harness errors say what was started, where its log is, and what was being waited for.

#![expect(clippy::expect_used, reason = "a harness that cannot go on fails its test")]

#[cfg(feature = "cluster")]
pub mod cloud;
#[cfg(feature = "cluster")]
pub mod differential;
#[cfg(feature = "cluster")]
pub mod distant;
#[cfg(feature = "cluster")]
pub mod down;
#[cfg(feature = "cluster")]
pub mod families;
pub mod fuzz;
#[cfg(feature = "cluster")]
pub mod http;
pub mod memory;
#[cfg(feature = "cluster")]
pub mod moto;
#[cfg(feature = "cluster")]
pub mod oracle;
#[cfg(feature = "cluster")]
pub mod peers;
#[cfg(feature = "cluster")]
pub mod process;
pub mod promqltest;
#[cfg(feature = "cluster")]
#[cfg(feature = "cluster")]
pub mod query;
pub mod query_gen;
pub mod random;
#[cfg(feature = "cluster")]
pub mod remote_write;
#[cfg(feature = "cluster")]
pub mod sim_bucket;
pub mod sim_disk;
#[cfg(feature = "cluster")]
pub mod sim_net;
#[cfg(feature = "cluster")]
pub mod sim_pace;
pub mod tsdb;
