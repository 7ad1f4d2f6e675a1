//! What the distributor tells about itself.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use koios_model::TenantId;
use koios_server::metrics::{ByWord, Counter, Family, Gauge, Metrics, duration_histogram};
use parking_lot::Mutex;
use prometheus_client::metrics::histogram::Histogram;

use crate::RejectionReport;
use crate::pairs::PairsSeen;

/// Most tenants that a metric names.
const TENANTS_MAX: usize = 1_000;
/// Stands for the others; no tenant can be called so.
const OTHER_TENANTS: &str = "__other__";

type Durations = Family<[(&'static str, &'static str); 1], Histogram, fn() -> Histogram>;

/// Metrics of one distributor.
#[derive(Clone, Debug)]
pub(crate) struct DistributorMetrics {
    stage: Durations,
    pub(crate) samples_written: Counter,
    samples_rejected: ByWord<Counter>,
    requests_refused: ByWord<Counter>,
    pub(crate) exemplars_dropped: Counter,
    pub(crate) conflicts: Counter,
    pub(crate) bytes_in_flight: Gauge,
    pub(crate) stragglers: Gauge,
    pub(crate) stragglers_dropped: Counter,
    send_failures: ByWord<Counter>,
    pub(crate) resends: Counter,
    /// A member in this process counts, too, when the batch was encoded for others.
    pub(crate) sent_bytes: Counter,
    pub(crate) sent_with_labels: Counter,
    pub(crate) limit_asks: Counter,
    deduplicated: Family<[(&'static str, String); 1], Counter>,
    deduplicated_tenants: Arc<Mutex<BTreeSet<TenantId>>>,
    undecided: ByWord<Counter>,
    pub(crate) ha_pairs: Gauge,
    pub(crate) ha_report_failures: Counter,
}

impl DistributorMetrics {
    pub(crate) fn new(m: &Metrics) -> Self {
        Self {
            stage: m.register(
                "koios_distributor_stage_duration_seconds",
                "Time a write request spends in each stage",
                Family::new_with_constructor(duration_histogram as fn() -> Histogram),
            ),
            samples_written: m.counter("koios_distributor_samples_written_total", "Samples acknowledged"),
            samples_rejected: m.register(
                "koios_distributor_samples_rejected_total",
                "Samples not taken while their request was",
                Family::default(),
            ),
            requests_refused: m.register(
                "koios_distributor_requests_refused_total",
                "Write requests not acknowledged as a whole",
                Family::default(),
            ),
            exemplars_dropped: m.counter(
                "koios_distributor_exemplars_dropped_total",
                "Exemplars that were not taken",
            ),
            conflicts: m.counter(
                "koios_distributor_conflicting_samples_total",
                "Samples whose timestamp had another value already",
            ),
            bytes_in_flight: m.gauge(
                "koios_distributor_request_bytes_in_flight",
                "Bytes of write requests held",
            ),
            stragglers: m.gauge(
                "koios_distributor_background_sends",
                "Batches still being sent to slower members after their majority",
            ),
            stragglers_dropped: m.counter(
                "koios_distributor_background_sends_dropped_total",
                "Batches whose slower members were left to repair",
            ),
            send_failures: m.register(
                "koios_distributor_send_failures_total",
                "Batches that a member did not acknowledge",
                Family::default(),
            ),
            resends: m.counter(
                "koios_distributor_resends_total",
                "Batches sent again under a newer state",
            ),
            sent_bytes: m.counter(
                "koios_distributor_sent_bytes_total",
                "Bytes of encoded batches, once for each member that they were sent to",
            ),
            sent_with_labels: m.counter(
                "koios_distributor_sent_with_labels_total",
                "Batches sent again with all labels, as a member did not know a series",
            ),
            limit_asks: m.counter(
                "koios_distributor_series_limit_asks_total",
                "Times members were asked which series of a tenant exist, for a limit on series",
            ),
            deduplicated: m.register(
                "koios_distributor_ha_samples_deduplicated_total",
                "Samples dropped because another replica of their HA pair is elected",
                Family::default(),
            ),
            deduplicated_tenants: Arc::default(),
            undecided: m.register(
                "koios_distributor_ha_samples_undecided_total",
                "Samples of HA pairs taken because it was not known whether another replica brings them",
                Family::default(),
            ),
            ha_pairs: m.gauge("koios_distributor_ha_pairs", "HA pairs that send to this process"),
            ha_report_failures: m.counter(
                "koios_distributor_ha_report_failures_total",
                "Reports of HA pairs that no control leader answered",
            ),
        }
    }

    pub(crate) fn observe(&self, stage: &'static str, took: Duration) {
        self.stage
            .get_or_create(&[("stage", stage)])
            .observe(took.as_secs_f64());
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        self.requests_refused.get_or_create(&[("reason", reason)]).inc();
    }

    pub(crate) fn rejected(&self, report: &RejectionReport) {
        for (reason, samples) in &report.by_reason {
            self.samples_rejected
                .get_or_create(&[("reason", reason)])
                .inc_by(*samples);
        }
    }

    /// Counts what became of the samples of HA pairs.
    pub(crate) fn pairs(&self, tenant: &TenantId, pairs: &PairsSeen) {
        let deduplicated = pairs.deduplicated.all_samples();
        if deduplicated > 0 {
            let mut named = self.deduplicated_tenants.lock();
            let tenant = if named.len() < TENANTS_MAX || named.contains(tenant) {
                named.insert(tenant.clone());
                tenant.to_string()
            } else {
                OTHER_TENANTS.to_owned()
            };
            self.deduplicated
                .get_or_create(&[("tenant", tenant)])
                .inc_by(deduplicated);
        }
        for (reason, samples) in &pairs.undecided {
            self.undecided
                .get_or_create(&[("reason", reason)])
                .inc_by(*samples);
        }
    }

    pub(crate) fn send_failed(&self, code: &'static str) {
        self.send_failures.get_or_create(&[("code", code)]).inc();
    }
}
