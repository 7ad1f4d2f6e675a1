//! What the store tells about its cache on disk.

use koios_bucket::{DiskCache, DiskCacheStats};
use koios_server::Metrics;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// A value and the words it is told by; without words for a metric that has one value only.
type Value = (&'static str, fn(&DiskCacheStats) -> u64);

/// A metric that is read when metrics are gathered.
#[derive(Clone, Debug)]
struct Read {
    disk: DiskCache,
    kind: MetricType,
    label: &'static str,
    values: &'static [Value],
}

impl Read {
    fn value(&self, mut encoder: MetricEncoder<'_>, value: u64) -> Result<(), std::fmt::Error> {
        match self.kind {
            MetricType::Counter => encoder.encode_counter::<NoLabelSet, u64, u64>(&value, None),
            _ => encoder.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX)),
        }
    }
}

impl EncodeMetric for Read {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let stats = self.disk.stats();
        for (word, value) in self.values {
            if self.label.is_empty() {
                return self.value(encoder, value(&stats));
            }
            let label = [(self.label, *word)];
            self.value(encoder.encode_family(&label)?, value(&stats))?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        self.kind
    }
}

/// Adds the metrics of a cache.
pub(crate) fn register(metrics: &Metrics, disk: &DiskCache) {
    let add = |name: &str, help: &str, kind, label, values| {
        let disk = disk.clone();
        metrics.register(
            name,
            help,
            Read {
                disk,
                kind,
                label,
                values,
            },
        );
    };
    add(
        "koios_store_disk_cache_bytes",
        "Bytes of the files of the cache on disk",
        MetricType::Gauge,
        "",
        &[("", |s| s.bytes)],
    );
    add(
        "koios_store_disk_cache_cells",
        "Cells of blocks, 64 KiB each at most, that the cache on disk holds",
        MetricType::Gauge,
        "",
        &[("", |s| s.cells)],
    );
    add(
        "koios_store_disk_cache_reads_total",
        "Cells that memory did not have, by whether the cache on disk did",
        MetricType::Counter,
        "result",
        &[("hit", |s| s.hits), ("miss", |s| s.misses)],
    );
    add(
        "koios_store_disk_cache_written_bytes_total",
        "Bytes written to the cache on disk",
        MetricType::Counter,
        "",
        &[("", |s| s.written_bytes)],
    );
    add(
        "koios_store_disk_cache_evicted_total",
        "Cells that the cache on disk gave up for others",
        MetricType::Counter,
        "",
        &[("", |s| s.evicted)],
    );
    add(
        "koios_store_disk_cache_kept_again_total",
        "Cells that were written to the cache on disk once more because they were read once more",
        MetricType::Counter,
        "",
        &[("", |s| s.kept_again)],
    );
    add(
        "koios_store_disk_cache_dropped_total",
        "Cells that were not written to the cache on disk because more than 64 MiB waited to be",
        MetricType::Counter,
        "",
        &[("", |s| s.dropped)],
    );
    add(
        "koios_store_disk_cache_not_read_total",
        "Cells that the cache on disk has and did not give, which count as misses: it was busy with others, they did not come in time, or it is left alone because it does not answer",
        MetricType::Counter,
        "why",
        &[
            ("busy", |s| s.not_read_busy),
            ("late", |s| s.not_read_late),
            ("resting", |s| s.not_read_resting),
        ],
    );
    add(
        "koios_store_disk_cache_resting",
        "Whether the cache on disk is left alone because it does not answer",
        MetricType::Gauge,
        "",
        &[("", |s| u64::from(s.is_resting))],
    );
    add(
        "koios_store_disk_cache_failures_total",
        "What the cache on disk failed: cells that failed their checksum, reads that failed or got no answer, and writes that failed",
        MetricType::Counter,
        "what",
        &[
            ("damaged", |s| s.damaged),
            ("read", |s| s.read_failures),
            ("write", |s| s.write_failures),
        ],
    );
}
