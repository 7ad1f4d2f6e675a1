//! The ingester's self-metrics.

use koios_head::Applied;
use koios_server::Metrics;
use koios_server::metrics::{Counter, Gauge};
use koios_wal::GroupStats;
use prometheus_client::metrics::histogram::Histogram;

/// `koios_ingester_*`.
#[derive(Clone, Debug)]
pub(crate) struct IngesterMetrics {
    samples: Counter,
    out_of_order: Counter,
    duplicates: Counter,
    compared: Counter,
    conflicts: Counter,
    metadata_dropped: Counter,
    series_created: Counter,
    fsync: Histogram,
    wal_bytes: Counter,
    wal_groups: Counter,
    pub(crate) push: Histogram,
    pub(crate) pushes_refused: Counter,
    pub(crate) queue_records: Gauge,
    pub(crate) queue_bytes: Gauge,
    pub(crate) segments: Gauge,
    pub(crate) log_bytes: Gauge,
    pub(crate) series: Gauge,
    pub(crate) head_bytes: Gauge,
    pub(crate) damage: Counter,
    pub(crate) cuts: Counter,
    pub(crate) cut_samples: Counter,
    pub(crate) cut_failures: Counter,
    pub(crate) cut_seconds: Histogram,
    pub(crate) samples_forgotten: Counter,
    pub(crate) batches_repaired: Counter,
    pub(crate) batches_taken_over: Counter,
    pub(crate) batches_carried: Counter,
    pub(crate) repair_failures: Counter,
    pub(crate) replay_seconds: Histogram,
    pub(crate) reads: Histogram,
    pub(crate) snapshot_failures: Counter,
    pub(crate) snapshot_seconds: Histogram,
}

impl IngesterMetrics {
    pub(crate) fn new(m: &Metrics) -> Self {
        let name = |n: &str| format!("koios_ingester_{n}");
        let counter = |n, help| m.counter(&name(n), help);
        let gauge = |n, help| m.gauge(&name(n), help);
        let durations = |n, help| m.durations(&name(n), help);
        Self {
            samples: counter(
                "samples_applied_total",
                "Samples newly held, and late ones that may yet turn out to repeat one held",
            ),
            out_of_order: counter(
                "samples_out_of_order_total",
                "Samples older than their series' newest",
            ),
            duplicates: counter("samples_duplicate_total", "Samples that repeated one held"),
            compared: counter(
                "samples_compared_total",
                "Held samples decoded to compare late ones with them",
            ),
            conflicts: counter(
                "samples_conflicting_total",
                "Samples with another value at the newest time of their series",
            ),
            metadata_dropped: counter(
                "metadata_dropped_total",
                "Metrics whose metadata was dropped because a head had too much of it",
            ),
            series_created: counter("series_created_total", "Series that appeared"),
            fsync: durations("wal_fsync_duration_seconds", "Write and sync of one log group"),
            wal_bytes: counter("wal_written_bytes_total", "Bytes written to the log"),
            wal_groups: counter("wal_groups_total", "Groups written to the log"),
            push: durations("push_duration_seconds", "A push, from its arrival to its answer"),
            pushes_refused: counter("pushes_refused_total", "Pushes that were not logged"),
            queue_records: gauge("wal_queue_records", "Records waiting for the log"),
            queue_bytes: gauge("wal_queue_bytes", "Bytes waiting for the log"),
            segments: gauge("wal_segments", "Live log segments"),
            log_bytes: gauge("wal_batch_bytes", "Bytes of batches in live log segments"),
            series: gauge("series", "Series in memory"),
            head_bytes: gauge("head_bytes", "Estimated memory of the heads"),
            damage: counter("wal_damage_total", "Damaged places found in the log"),
            cuts: counter("cuts_listed_total", "Cuts whose block is listed"),
            cut_samples: counter("cut_samples_total", "Samples of listed cuts"),
            cut_failures: counter("cut_failures_total", "Cuts that failed and will be tried again"),
            cut_seconds: durations("cut_duration_seconds", "A cut, from its begin to its listing"),
            samples_forgotten: counter(
                "samples_forgotten_total",
                "Samples dropped from memory once listed",
            ),
            batches_repaired: counter("batches_repaired_total", "Batches fetched from peers"),
            batches_taken_over: counter(
                "batches_taken_over_total",
                "Batches adopted from peers as held by listed blocks",
            ),
            batches_carried: counter(
                "batches_carried_total",
                "Batches logged once more, so that old log segments can go",
            ),
            repair_failures: counter(
                "repair_failures_total",
                "Calls to peers that failed during repair",
            ),
            replay_seconds: durations("replay_duration_seconds", "Replay of the log at start"),
            snapshot_failures: counter(
                "snapshot_failures_total",
                "Snapshots that could not be written or used",
            ),
            snapshot_seconds: durations("snapshot_duration_seconds", "Writing of a snapshot of the heads"),
            reads: durations("read_select_duration_seconds", "Selection of a read's series"),
        }
    }

    pub(crate) fn applied(&self, a: &Applied) {
        self.samples.inc_by(a.samples);
        self.out_of_order.inc_by(a.out_of_order);
        self.duplicates.inc_by(a.duplicates);
        self.compared.inc_by(a.compared);
        self.conflicts.inc_by(a.conflicts);
        self.metadata_dropped.inc_by(a.metadata_dropped);
        self.series_created.inc_by(a.series_created);
    }

    pub(crate) fn synced(&self, s: GroupStats) {
        self.fsync.observe(s.sync.as_secs_f64());
        self.wal_bytes.inc_by(s.bytes as u64);
        self.wal_groups.inc();
    }
}

/// A count as a gauge takes it.
pub(crate) fn gauge_value(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
