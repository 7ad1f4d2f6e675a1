//! The one binary: composes services into a process, all in one or one by one.
//!
//! **Data flow.** [`cli`] reads settings and builds the real [`koios_runtime::Runtime`]; [`Node::start`] opens the data
//! directory, joins the control plane, builds the services of its target, wires them by the traits of `koios_wire` (by
//! reference in one process, by gRPC across processes), and serves HTTP and gRPC; [`Node::stop`] ends everything in the
//! order of `koios_server::stop_in_order`.
//!
//! **Invariants.** Simulation starts the same [`Node`] over a simulated runtime: there is no second way to compose.
//!
//! **Deliberately absent.** Algorithms: what decides anything lives in the libraries and services.
//!
//! **Failure behaviour.** What a process was told wrongly, a data directory that is not its own, or a bucket that commits
//! cannot rely on ends it with exit code 2 and one sentence. A task that cannot go on ends the process with exit code 1; its supervisor starts it again.

#[macro_use]
mod output;

mod adapters;
mod banner;
pub mod cli;
mod ctl;
mod duty;
mod late;
mod members;
mod node;
mod operators;
mod self_metrics;
mod versions;

pub use duty::AskedMembers;
pub use node::{Node, NodeError, NodeOptions};
