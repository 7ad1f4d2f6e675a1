//! HA pairs: replicas of a sender that send the same series, of which one is kept.
//!
//! **Data flow.** The [`Gate`] of a request says what becomes of each replica's samples; [`Deduplicated`] does it while the
//! request is decoded; what was seen goes into the [`Tracker`] once the request is acknowledged, and [`report_for_ever`] tells
//! it to the control leader and learns from there what other distributors saw.
//!
//! **Invariants.** A sample is dropped only if the elected replica was seen within the failover timeout and has covered the
//! sample's time, or is about to. Whenever that is not known, every replica's samples are taken.
//!
//! `docs/decisions/0009-ha-pairs.md` has the reasons.

mod dedup;
mod gate;
mod report;
mod tracker;

use async_trait::async_trait;
use koios_control::{PairReport, Ruling};
use koios_wire::ServiceError;

pub(crate) use dedup::Deduplicated;
pub(crate) use gate::{Gate, PairsSeen};
pub(crate) use report::report_for_ever;
pub(crate) use tracker::Tracker;

/// How a distributor reaches the control leader, which elects one replica of each HA pair.
#[async_trait]
pub trait Referee: Send + Sync + std::fmt::Debug + 'static {
    /// Tells the leader what was seen; gives a ruling for each pair, in their order.
    ///
    /// # Errors
    /// When no leader answers in time. The distributor goes on with the last elections that it knows.
    async fn report(&self, pairs: Vec<PairReport>) -> Result<Vec<Ruling>, ServiceError>;
}
