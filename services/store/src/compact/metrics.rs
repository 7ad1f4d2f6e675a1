//! What compaction tells about itself.

use std::time::Duration;

use koios_model::TenantId;
use koios_runtime::with_sources;
use koios_server::Metrics;
use koios_server::metrics::{Counter, Family, Gauge};
use prometheus_client::metrics::histogram::Histogram;

use super::downsample::Summarised;
use super::error::CompactError;
use super::job::Merged;

type ByTenant = Family<Vec<(&'static str, String)>, Gauge>;

/// `koios_compaction_*`.
#[derive(Clone, Debug)]
pub(crate) struct CompactionMetrics {
    merges: Counter,
    pub(crate) failures: Counter,
    samples: Counter,
    bytes: Counter,
    seconds: Histogram,
    pub(crate) retired: Counter,
    pub(crate) deleted: Counter,
    blocks: ByTenant,
    due: ByTenant,
    due_downsamplings: ByTenant,
    downsamplings: Counter,
    downsampled_samples: Counter,
    downsampling_seconds: Histogram,
    due_seconds: ByTenant,
    due_downsampling_seconds: ByTenant,
    bad: ByTenant,
    pub(crate) lost: ByTenant,
    unknown: ByTenant,
}

/// How a tenant stands.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Standing {
    pub(crate) blocks: usize,
    /// Whether anything of what is due can be done now.
    pub(crate) has_work: bool,
    /// How many merges are due, those included whose blocks are left alone for a while.
    pub(crate) due: usize,
    /// The same of windows to downsample.
    pub(crate) due_downsamplings: usize,
    /// For how long nothing was done about what is due first, as far as this process knows.
    pub(crate) due_for: Duration,
    /// For how long the merge has been due that has been for longest.
    pub(crate) oldest_due: Duration,
    /// The same of downsampling.
    pub(crate) oldest_due_downsampling: Duration,
    pub(crate) bad: usize,
}

impl CompactionMetrics {
    pub(crate) fn new(m: &Metrics) -> Self {
        let name = |n: &str| format!("koios_compaction_{n}");
        let counter = |n, help| m.counter(&name(n), help);
        let gauge = |n, help| m.register(&name(n), help, ByTenant::default());
        Self {
            merges: counter("merges_total", "Merges whose blocks are listed"),
            failures: counter(
                "failures_total",
                "Merges and clean-ups that failed and will be tried again",
            ),
            samples: counter("samples_total", "Samples that merges read"),
            bytes: counter("written_bytes_total", "Bytes of blocks that merges wrote"),
            seconds: m.durations(&name("merge_seconds"), "What a merge took"),
            retired: counter("blocks_expired_total", "Blocks deleted because of their age"),
            deleted: counter("blocks_deleted_total", "Dead blocks whose bytes were deleted"),
            blocks: gauge("blocks", "Live blocks"),
            due: gauge("due_merges", "Merges that are due"),
            due_downsamplings: gauge("due_downsamplings", "Windows that are to be downsampled"),
            downsamplings: counter("downsamplings_total", "Windows that were downsampled"),
            downsampled_samples: counter("downsampled_samples_total", "Samples that downsampling read"),
            downsampling_seconds: m
                .durations(&name("downsampling_seconds"), "What downsampling a window took"),
            due_seconds: gauge(
                "due_seconds",
                "How long the merge has been due that has been for longest",
            ),
            due_downsampling_seconds: gauge(
                "due_downsampling_seconds",
                "How long the window has been to be downsampled that has for longest",
            ),
            bad: gauge(
                "bad_blocks",
                "Blocks that are damaged or cannot be read, and are left alone: see the log",
            ),
            lost: gauge(
                "manifest_lost",
                "1 while versions of the tenant's manifest are lost and nothing is done for it: see the log",
            ),
            unknown: gauge(
                "unknown_blocks",
                "Whole blocks from before the manifest began that it does not list: they are kept",
            ),
        }
    }

    pub(crate) fn merged(&self, merged: &Merged, took: Duration) {
        self.merges.inc();
        self.samples.inc_by(merged.stats.samples_in);
        self.bytes.inc_by(merged.bytes);
        self.seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn downsampled(&self, done: &Summarised, took: Duration) {
        self.downsamplings.inc();
        self.downsampled_samples.inc_by(done.samples);
        self.bytes.inc_by(done.bytes);
        self.downsampling_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn stands(&self, tenant: &TenantId, standing: &Standing) {
        let label = vec![("tenant", tenant.to_string())];
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.blocks.get_or_create(&label).set(number(standing.blocks));
        self.due.get_or_create(&label).set(number(standing.due));
        let due = number(standing.due_downsamplings);
        self.due_downsamplings.get_or_create(&label).set(due);
        self.bad.get_or_create(&label).set(number(standing.bad));
        let seconds = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
        let ages = [
            (&self.due_seconds, standing.oldest_due),
            (&self.due_downsampling_seconds, standing.oldest_due_downsampling),
        ];
        for (family, age) in ages {
            family.get_or_create(&label).set(seconds(age));
        }
    }

    /// Whether versions of the manifest are lost.
    pub(crate) fn manifest_lost(&self, tenant: &TenantId, is_lost: bool) {
        let label = vec![("tenant", tenant.to_string())];
        self.lost.get_or_create(&label).set(i64::from(is_lost));
    }

    /// How many blocks are kept of which the manifest cannot say what they are.
    pub(crate) fn unknown_blocks(&self, tenant: &TenantId, blocks: usize) {
        let label = vec![("tenant", tenant.to_string())];
        let blocks = i64::try_from(blocks).unwrap_or(i64::MAX);
        self.unknown.get_or_create(&label).set(blocks);
    }

    /// Reports what was not done, and goes on without.
    pub(crate) fn note_left<T>(
        &self,
        tenant: &TenantId,
        what: &'static str,
        done: Result<T, CompactError>,
    ) -> Option<T> {
        match done {
            Ok(done) => Some(done),
            Err(error) => {
                self.failures.inc();
                let error = with_sources(&error);
                tracing::warn!(%tenant, error, "{what}, trying again");
                None
            }
        }
    }

    /// Another process looks after the tenant.
    pub(crate) fn forget(&self, tenant: &TenantId) {
        let label = vec![("tenant", tenant.to_string())];
        for family in [
            &self.blocks,
            &self.due,
            &self.due_downsamplings,
            &self.bad,
            &self.due_seconds,
            &self.due_downsampling_seconds,
            &self.lost,
            &self.unknown,
        ] {
            family.remove(&label);
        }
    }
}
