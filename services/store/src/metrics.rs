//! What the store tells about itself.

use koios_server::Metrics;
use koios_server::metrics::{ByWord, Counter, Family, Gauge};
use koios_wire::{ServiceError, ServiceErrorCode};

/// The store's counters.
#[derive(Clone, Debug)]
pub(crate) struct StoreMetrics {
    pub(crate) reads: Counter,
    pub(crate) blocks: Counter,
    pub(crate) series: Counter,
    pub(crate) samples: Counter,
    /// As of the last read.
    pub(crate) cache_bytes: Gauge,
    failures: ByWord<Counter>,
}

impl StoreMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let failures = Family::default();
        Self {
            reads: metrics.counter("koios_store_reads_total", "Reads of blocks that were asked for"),
            blocks: metrics.counter("koios_store_blocks_read_total", "Blocks opened for reads"),
            series: metrics.counter("koios_store_series_read_total", "Series sent to queriers"),
            samples: metrics.counter("koios_store_samples_read_total", "Samples sent to queriers"),
            cache_bytes: metrics.gauge(
                "koios_store_cache_bytes",
                "Memory that what was read of blocks takes in caches",
            ),
            failures: metrics.register(
                "koios_store_read_failures_total",
                "Reads that failed, by what the caller must do",
                failures,
            ),
        }
    }

    /// Counts a failure, and logs damage, which somebody must look at.
    pub(crate) fn failed(&self, e: ServiceError) -> ServiceError {
        if e.code == ServiceErrorCode::Corruption {
            tracing::error!(error = %e, "damaged block");
        }
        self.failures.get_or_create(&[("code", e.code.as_str())]).inc();
        e
    }
}
