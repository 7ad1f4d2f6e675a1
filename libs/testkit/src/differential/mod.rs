//! Differential fuzzing: random queries to Koios and to a real Prometheus that hold the same samples.
//!
//! **Data flow.** [`Peers`] starts both and feeds them the same remote write requests. [`run`] draws queries from a
//! [`QueryGenerator`](crate::query_gen::QueryGenerator), asks both, and compares: values, labels, order where it means
//! something, whether there is an error, its type and status. Where they differ, every step of the query is taken apart
//! into the parts that differ although their operands do not; each is either a [`Known`] difference, and counted, or
//! wrong, and made as small as it gets.
//!
//! **Invariants.** The same seed asks the same queries of the same samples. A known difference excuses one site, never a
//! whole query: every other site of the query, and the same one at every other step, is judged by itself. How much is
//! excused, and how much was too large to take apart whole, is counted, and bounded by [`Report::check`].
//!
//! **Deliberately absent.** Messages of errors, annotations and statistics, which differ between versions everywhere.
//!
//! **Failure behaviour.** A side that does not answer ends the run with an error that names what it was asked, and so
//! does a Prometheus of another version; differences are in the [`Report`].

mod answer;
mod histogram;
mod known;
mod peers;
mod run;
mod shrink;
mod site;
pub(crate) mod wire;

pub use answer::{Answer, Difference, Failure, Point, PointValue, Success};
pub use histogram::HistogramValue;
pub use known::{KNOWN, Known, Nature};
pub use peers::Peers;
pub use run::{Report, Wrong, judge, run};
