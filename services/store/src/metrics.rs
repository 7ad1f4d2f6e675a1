//! What the store tells about itself.

use koios_block::HeldBudget;
use koios_bucket::Blocks;
use koios_server::Metrics;
use koios_server::metrics::{ByWord, Counter, Family};
use koios_wire::{ServiceError, ServiceErrorCode};
use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;

/// What the caches hold when metrics are gathered: to find out is work that no read should wait for.
#[derive(Clone, Debug)]
struct CacheBytes(Blocks, HeldBudget);

impl EncodeMetric for CacheBytes {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let held = [("held", self.1.used())];
        for (cache, bytes) in self.0.bytes().into_iter().chain(held) {
            let label = [("cache", cache)];
            let mut of_cache = encoder.encode_family(&label)?;
            of_cache.encode_gauge(&i64::try_from(bytes).unwrap_or(i64::MAX))?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

/// The store's counters.
#[derive(Clone, Debug)]
pub(crate) struct StoreMetrics {
    pub(crate) reads: Counter,
    pub(crate) blocks: Counter,
    pub(crate) series: Counter,
    pub(crate) samples: Counter,
    failures: ByWord<Counter>,
}

impl StoreMetrics {
    pub(crate) fn new(metrics: &Metrics, blocks: &Blocks, held: &HeldBudget) -> Self {
        let failures = Family::default();
        metrics.register(
            "koios_store_cache_bytes",
            "Memory that what was read of blocks takes, by cache: cells are checked bytes, samples are chunks; held is what reads under way have of cells, mostly the same ones",
            CacheBytes(blocks.clone(), held.clone()),
        );
        Self {
            reads: metrics.counter("koios_store_reads_total", "Reads of blocks that were asked for"),
            blocks: metrics.counter("koios_store_blocks_read_total", "Blocks opened for reads"),
            series: metrics.counter("koios_store_series_read_total", "Series sent to queriers"),
            samples: metrics.counter("koios_store_samples_read_total", "Samples sent to queriers"),
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
