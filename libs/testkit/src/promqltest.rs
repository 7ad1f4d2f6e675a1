//! Runs scripts in Prometheus' promqltest language against the engine.
//!
//! **Data flow.** [`parse_script`] turns a text into [`Command`]s; [`run`] loads samples into a [`MemoryStorage`],
//! or [`run_on`] into any other [`Storage`], evaluates, and compares. Each instant query is also evaluated with `@` on
//! every selector at other times, and each of these again as the middle step of a range query: the answer must stay the
//! same.
//!
//! **Invariants.** A failing command never hides the commands after it: [`Report`] lists every failure by line.
//!
//! **Deliberately absent.** Exemplars and metadata: the language has none.
//!
//! **Failure behaviour.** A script that is not in the language is a [`ScriptError`] with its line; everything else is
//! part of the report.
//!
//! **Source:** the language is described in Prometheus' `promql/promqltest` folder.

mod compare;
mod histogram;
mod notation;
mod runner;
mod script;
mod scripts;
mod storage;

pub use notation::{Sequence, SequencePoint, parse_series};
pub use runner::{Failure, Report, run, run_on};
pub use script::{Command, Eval, Load, ScriptError, parse_script};
pub use scripts::{evaluations, own_scripts, suite_scripts};
pub use storage::{MemoryStorage, Point, Storage};
