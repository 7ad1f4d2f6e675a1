//! One request's view of the HA pairs.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use koios_control::ClusterState;
use koios_model::TenantId;
use koios_tenancy::Limits;

use super::Tracker;
use super::tracker::{Brought, Verdict};
use crate::Written;

/// Decides for one request, with the elections as they were when it was admitted.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(super) tracker: Arc<Tracker>,
    pub(super) tenant: TenantId,
    pub(super) limits: Arc<Limits>,
    pub(super) state: Arc<ClusterState>,
    /// Monotonic.
    pub(super) now: Duration,
    /// Sample times that are taken at all.
    pub(super) accepted_ms: RangeInclusive<i64>,
    /// When the request was admitted: later sample times tell nothing about how far a replica is.
    pub(super) admission_ms: i64,
}

impl Gate {
    /// The gate of a request that is admitted at the monotonic time `now`.
    pub(crate) fn new(
        tracker: &Arc<Tracker>,
        (tenant, limits): (&TenantId, &Arc<Limits>),
        state: &Arc<ClusterState>,
        accepted_ms: RangeInclusive<i64>,
        (now, admission_ms): (Duration, i64),
    ) -> Self {
        Self {
            tracker: Arc::clone(tracker),
            tenant: tenant.clone(),
            limits: Arc::clone(limits),
            state: Arc::clone(state),
            now,
            accepted_ms,
            admission_ms,
        }
    }

    pub(super) fn decide(&self, cluster: &str, replica: &str) -> Verdict {
        let whose = (&self.tenant, self.limits.as_ref());
        self.tracker
            .decide(whose, (cluster, replica), &self.state, self.now)
    }
}

impl Gate {
    /// Notes that what a request brought is lost: it was refused, and is not sent again.
    pub(crate) fn lose(&self, lost: &[Brought]) {
        self.tracker.lose(&self.tenant, lost, &self.state, self.now);
    }
}

/// What a request had to do with HA pairs.
#[derive(Debug, Default)]
pub(crate) struct PairsSeen {
    pub(crate) brought: Vec<Brought>,
    /// What was dropped because another replica is elected.
    pub(crate) deduplicated: Written,
    /// Samples, histograms included, that were taken because nothing could be decided, by reason.
    pub(crate) undecided: BTreeMap<&'static str, u64>,
}
