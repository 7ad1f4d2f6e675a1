//! Test tools: simulated disk and network, an oracle, process and peer harnesses, the promqltest runner.
//!
//! **Data flow.** Tests build requests with [`remote_write`], send them with [`http::HttpClient`] over a real or
//! simulated network, tell the [`oracle::Oracle`] what was sent and acknowledged, and let it judge what queries return.
//!
//! **Invariants.** Nothing here is linked into a product. Simulated parts draw every decision from the run's seed.
//!
//! **Deliberately absent.** Mocks of services: tests run the real code over simulated surroundings.
//!
//! **Failure behaviour.** Harness errors say what was started, where its log is, and what was being waited for.

#![expect(clippy::expect_used, reason = "a harness that cannot go on fails its test")]

pub mod fuzz;
pub mod http;
pub mod moto;
pub mod oracle;
pub mod peers;
pub mod process;
pub mod promqltest;
pub mod proxy;
pub mod query;
pub mod query_gen;
pub mod random;
pub mod remote_write;
pub mod sim_disk;
pub mod sim_net;
