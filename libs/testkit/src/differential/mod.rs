//! Differential fuzzing: random queries to Koios and to a real Prometheus that hold the same samples.
//!
//! **Data flow.** [`Peers`] starts both and feeds them the same remote write requests. [`run`] draws queries from a
//! [`QueryGenerator`](crate::query_gen::QueryGenerator), asks both, and compares: values, labels, order where it means
//! something, whether there is an error and its type. Where they differ, [`sites`] finds the parts that differ although
//! their operands do not; each is either a [`Known`] difference between Prometheus 2.42 and 3.14, and counted, or wrong,
//! and made as small as it gets.
//!
//! **Invariants.** The same seed asks the same queries of the same samples. A known difference excuses one site, never a
//! whole query: every other site of the query is judged by itself.
//!
//! **Deliberately absent.** Messages of errors, annotations and statistics, which differ between versions everywhere.
//!
//! **Failure behaviour.** A side that does not answer ends the run with an error; differences are in the [`Report`].

mod answer;
mod histogram;
mod known;
mod peers;
mod run;
mod site;
mod wire;

pub use answer::{Answer, Difference, Failure, Point, PointValue, Success, TOLERANCE, close};
pub use histogram::HistogramValue;
pub use known::{KNOWN, Known, known};
pub use peers::Peers;
pub use run::{Report, Spelled, Wrong, judge, run};
pub use site::{Operand, Site, as_site, sites};
