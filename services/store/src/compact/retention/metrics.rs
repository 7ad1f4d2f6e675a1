//! What retention tells about itself.

use koios_model::TenantId;
use koios_server::Metrics;
use koios_server::metrics::{Counter, Family, Gauge};

type ByTenant = Family<Vec<(&'static str, String)>, Gauge>;

/// `koios_retention_*`.
#[derive(Clone, Debug)]
pub(crate) struct RetentionMetrics {
    pub(crate) samples: Counter,
    pub(crate) rewrites: Counter,
    pub(crate) looked_through: Counter,
    pub(crate) ahead: Gauge,
    due: ByTenant,
    held: ByTenant,
}

impl RetentionMetrics {
    pub(crate) fn new(m: &Metrics) -> Self {
        let name = |n: &str| format!("koios_retention_{n}");
        let counter = |n, help| m.counter(&name(n), help);
        let gauge = |n, help| m.register(&name(n), help, ByTenant::default());
        Self {
            samples: counter(
                "samples_removed_total",
                "Samples, and summaries of them, that went because of their age",
            ),
            rewrites: counter(
                "rewrites_total",
                "Blocks written again without series that are past their retention",
            ),
            looked_through: counter(
                "blocks_looked_through_total",
                "Blocks looked through for series that are past their retention",
            ),
            ahead: m.gauge(
                &name("clock_ahead_seconds"),
                "How far this machine's clock is ahead of the storage's; the earlier one counts",
            ),
            due: gauge(
                "due_blocks",
                "Blocks that are to be looked through for series past their retention",
            ),
            held: gauge(
                "held",
                "1 while a tenant's retention is not shortened because its overrides are not known any more",
            ),
        }
    }

    pub(crate) fn stands(&self, tenant: &TenantId, is_held: bool, due: usize) {
        let label = vec![("tenant", tenant.to_string())];
        self.held.get_or_create(&label).set(i64::from(is_held));
        let due = i64::try_from(due).unwrap_or(i64::MAX);
        self.due.get_or_create(&label).set(due);
    }

    /// Another process looks after the tenant.
    pub(crate) fn forget(&self, tenant: &TenantId) {
        let label = vec![("tenant", tenant.to_string())];
        self.held.remove(&label);
        self.due.remove(&label);
    }
}
