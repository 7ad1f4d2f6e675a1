//! What a tenant may send and ask.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use koios_model::{METRIC_NAME, TenantId};
use koios_wire::otlp;
use parking_lot::RwLock;

use crate::retention::RetentionLimits;

/// Shortest failover timeout: distributors tell each other only every few seconds whom they saw.
const HA_FAILOVER_TIMEOUT_MIN: Duration = Duration::from_secs(5);
/// Longest failover timeout: what the elected replica may lack for good, and how long a gap of it goes unnoticed.
const HA_FAILOVER_TIMEOUT_MAX: Duration = Duration::from_secs(10 * 60);

/// Limits of one tenant. A limit of 0 means "no limit" where the field says so.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Samples older than the admission time minus this are refused (`too old sample`).
    pub out_of_order_time_window: Duration,
    /// Samples later than the admission time plus this are refused.
    pub too_far_in_future: Duration,
    /// Most labels of a series, the metric name included.
    pub max_labels_per_series: usize,
    /// Longest label name, bytes.
    pub max_label_name_bytes: usize,
    /// Longest label value, bytes.
    pub max_label_value_bytes: usize,
    /// Most bytes of all names and values of a series together.
    pub max_label_set_bytes: usize,
    /// Most series in one write request.
    pub max_series_per_request: usize,
    /// Most samples in one write request.
    pub max_samples_per_request: usize,
    /// Largest write request, bytes, compressed and decompressed alike.
    pub max_request_bytes: u64,
    /// Most active series; 0 for no limit.
    pub max_series: u64,
    /// Most active series of one metric; 0 for no limit.
    pub max_series_per_metric: u64,
    /// How many exemplars each partition keeps in memory, the newest; 0 for none.
    pub max_exemplars: usize,
    /// Samples per second that all distributors together admit for the tenant; 0 for no limit.
    pub ingestion_rate: u64,
    /// Samples that may come at once above the rate.
    pub ingestion_burst: u64,
    /// Whether of several replicas that send the same series one is kept, told by the next two labels.
    pub ha_dedup: bool,
    /// The label that tells which senders are replicas of each other.
    pub ha_cluster_label: String,
    /// The label that tells a replica from the others; taken off the series.
    pub ha_replica_label: String,
    /// How long the elected replica may be away, or behind the others, before another one is elected.
    pub ha_failover_timeout: Duration,
    /// Most values of [`Self::ha_cluster_label`]; of further ones all replicas are kept.
    pub ha_max_clusters: usize,
    /// Longest query text, bytes. Room for the longest pattern that is refused as such, and some.
    pub max_query_bytes: u64,
    /// Most samples a query may hold at once.
    pub max_query_samples: u64,
    /// Most series a query may fetch.
    pub max_query_series: u64,
    /// Most bytes a query may hold at once: what it fetched, decoded samples, labels, intermediate results and output. What
    /// has come from sources and waits to be merged is counted apart, by the same limit.
    pub max_query_memory_bytes: u64,
    /// Most points per series of a range query.
    pub max_query_points: u64,
    /// Longest run of a query, also the default of its `timeout`.
    pub query_timeout: Duration,
    /// How far back an instant looks for a sample.
    pub lookback_delta: Duration,
    /// Most queries of the tenant that run at once in one querier.
    pub max_concurrent_queries: usize,
    /// Whether queries may use what Prometheus keeps behind feature flags: experimental functions and aggregations,
    /// duration expressions, `anchored` and `smoothed`, `fill`.
    pub experimental_promql: bool,
    /// How OTLP becomes Prometheus' model.
    pub otlp: otlp::Settings,
    /// How long samples are kept, and when they are summarised. Of a tenant with exceptions what it says itself alone.
    pub retention: RetentionLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            out_of_order_time_window: Duration::from_secs(6 * 3600),
            too_far_in_future: Duration::from_secs(600),
            max_labels_per_series: 60,
            max_label_name_bytes: 1024,
            max_label_value_bytes: 64 << 10,
            max_label_set_bytes: 256 << 10,
            max_series_per_request: 100_000,
            max_samples_per_request: 2_000_000,
            max_request_bytes: 32 << 20,
            max_series: 0,
            max_series_per_metric: 0,
            max_exemplars: 20_000,
            ingestion_rate: 0,
            ingestion_burst: 1_000_000,
            ha_dedup: false,
            ha_cluster_label: "cluster".to_owned(),
            ha_replica_label: "__replica__".to_owned(),
            ha_failover_timeout: Duration::from_secs(30),
            ha_max_clusters: 100,
            max_query_bytes: 1536 << 10,
            max_query_samples: 50_000_000,
            max_query_series: 500_000,
            max_query_memory_bytes: 1 << 30,
            max_query_points: 11_000,
            query_timeout: Duration::from_secs(120),
            lookback_delta: Duration::from_secs(300),
            max_concurrent_queries: 20,
            experimental_promql: true,
            otlp: otlp::Settings::default(),
            retention: RetentionLimits::default(),
        }
    }
}

/// Limits that contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("limits.{key} is {value}, must be {rule}")]
pub struct LimitError {
    /// The key, as in the configuration.
    pub key: &'static str,
    /// Its value.
    pub value: String,
    /// What it must be.
    pub rule: String,
}

impl Limits {
    /// Checks that the limits can be met together.
    ///
    /// # Errors
    /// [`LimitError`] naming the first that cannot.
    pub fn validate(&self) -> Result<(), LimitError> {
        let positive = [
            ("max-labels-per-series", self.max_labels_per_series as u64),
            ("max-label-name-bytes", self.max_label_name_bytes as u64),
            ("max-label-value-bytes", self.max_label_value_bytes as u64),
            ("max-series-per-request", self.max_series_per_request as u64),
            ("max-samples-per-request", self.max_samples_per_request as u64),
            ("max-request-bytes", self.max_request_bytes),
            ("ha-max-clusters", self.ha_max_clusters as u64),
            ("max-query-bytes", self.max_query_bytes),
            ("max-query-samples", self.max_query_samples),
            ("max-query-series", self.max_query_series),
            ("max-query-memory-bytes", self.max_query_memory_bytes),
            ("max-query-points", self.max_query_points),
            ("query-timeout", self.query_timeout.as_millis() as u64),
            ("lookback-delta", self.lookback_delta.as_millis() as u64),
            ("max-concurrent-queries", self.max_concurrent_queries as u64),
        ];
        if let Some((key, _)) = positive.into_iter().find(|(_, v)| *v == 0) {
            return Err(LimitError {
                key,
                value: "0".to_owned(),
                rule: "positive".to_owned(),
            });
        }
        if self.max_label_set_bytes < self.max_label_value_bytes {
            return Err(LimitError {
                key: "max-label-set-bytes",
                value: self.max_label_set_bytes.to_string(),
                rule: format!(
                    "at least limits.max-label-value-bytes ({})",
                    self.max_label_value_bytes
                ),
            });
        }
        self.validate_ha()?;
        self.retention.validate()
    }

    fn validate_ha(&self) -> Result<(), LimitError> {
        let wrong = |key, value: &str, rule: String| {
            let value = value.to_owned();
            Err(LimitError { key, value, rule })
        };
        for (key, name) in [
            ("ha-cluster-label", &self.ha_cluster_label),
            ("ha-replica-label", &self.ha_replica_label),
        ] {
            if name.is_empty() || name == METRIC_NAME {
                return wrong(
                    key,
                    &format!("{name:?}"),
                    format!("a label name other than {METRIC_NAME}"),
                );
            }
        }
        if self.ha_cluster_label == self.ha_replica_label {
            let rule = "another label than limits.ha-cluster-label".to_owned();
            return wrong("ha-replica-label", &self.ha_replica_label, rule);
        }
        let range = HA_FAILOVER_TIMEOUT_MIN..=HA_FAILOVER_TIMEOUT_MAX;
        if !range.contains(&self.ha_failover_timeout) {
            let value = format!("{:?}", self.ha_failover_timeout);
            let rule =
                format!("at least {HA_FAILOVER_TIMEOUT_MIN:?} and at most {HA_FAILOVER_TIMEOUT_MAX:?}");
            return wrong("ha-failover-timeout", &value, rule);
        }
        Ok(())
    }
}

/// The limits of every tenant: one default, and exceptions by tenant. Cheap to clone; clones see what one of them is told.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    current: Arc<RwLock<Table>>,
}

/// What is in force.
#[derive(Clone, Debug, Default)]
struct Table {
    default: Arc<Limits>,
    tenants: Arc<BTreeMap<TenantId, Arc<Limits>>>,
}

impl Overrides {
    /// The same limits for every tenant but those listed.
    pub fn new(default: Limits, tenants: BTreeMap<TenantId, Limits>) -> Self {
        let overrides = Self::default();
        overrides.replace(default, tenants);
        overrides
    }

    /// Takes other limits from now on. Those of a tenant that stay as they are remain the very same.
    pub fn replace(&self, default: Limits, tenants: BTreeMap<TenantId, Limits>) {
        let mut current = self.current.write();
        let before = current.clone();
        let kept = |old: Option<&Arc<Limits>>, new: Limits| match old {
            Some(old) if **old == new => Arc::clone(old),
            _ => Arc::new(new),
        };
        let tenants = tenants.into_iter().map(|(tenant, limits)| {
            let limits = kept(before.tenants.get(&tenant), limits);
            (tenant, limits)
        });
        *current = Table {
            tenants: Arc::new(tenants.collect()),
            default: kept(Some(&before.default), default),
        };
    }

    /// The limits of one tenant.
    pub fn of(&self, tenant: &TenantId) -> Arc<Limits> {
        let current = self.current.read();
        Arc::clone(current.tenants.get(tenant).unwrap_or(&current.default))
    }

    /// The limits of tenants without exceptions.
    pub fn default_limits(&self) -> Arc<Limits> {
        Arc::clone(&self.current.read().default)
    }

    /// How long samples of a tenant are kept: what it says of its own, if it has exceptions, and what is said of all.
    pub fn retention(&self, tenant: &TenantId) -> (RetentionLimits, RetentionLimits) {
        let current = self.current.read();
        let own = current.tenants.get(tenant).map(|l| l.retention.clone());
        (own.unwrap_or_default(), current.default.retention.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_consistent() {
        assert_eq!(Limits::default().validate(), Ok(()));
    }

    #[test]
    fn refuses_a_label_set_smaller_than_one_value() {
        let limits = Limits {
            max_label_set_bytes: 10,
            ..Limits::default()
        };
        assert_eq!(
            limits.validate().unwrap_err().to_string(),
            "limits.max-label-set-bytes is 10, must be at least limits.max-label-value-bytes (65536)"
        );
    }

    #[test]
    fn refuses_labels_and_timeouts_that_cannot_tell_replicas_apart() {
        let refused = |change: fn(&mut Limits)| {
            let mut limits = Limits::default();
            change(&mut limits);
            limits.validate().unwrap_err().to_string()
        };
        assert_eq!(
            refused(|l| l.ha_replica_label = "cluster".to_owned()),
            "limits.ha-replica-label is cluster, must be another label than limits.ha-cluster-label"
        );
        assert_eq!(
            refused(|l| l.ha_cluster_label.clear()),
            "limits.ha-cluster-label is \"\", must be a label name other than __name__"
        );
        assert_eq!(
            refused(|l| l.ha_failover_timeout = Duration::from_secs(1)),
            "limits.ha-failover-timeout is 1s, must be at least 5s and at most 600s"
        );
        assert_eq!(
            refused(|l| l.ha_failover_timeout = Duration::from_secs(601)),
            "limits.ha-failover-timeout is 601s, must be at least 5s and at most 600s"
        );
        assert_eq!(
            refused(|l| l.ha_max_clusters = 0),
            "limits.ha-max-clusters is 0, must be positive"
        );
    }

    #[test]
    fn a_tenant_has_its_own_limits_or_the_default() {
        let special = TenantId::new("special").unwrap();
        let strict = Limits {
            max_labels_per_series: 3,
            ..Limits::default()
        };
        let overrides = Overrides::new(Limits::default(), [(special.clone(), strict)].into());
        assert_eq!(overrides.of(&special).max_labels_per_series, 3);
        assert_eq!(overrides.of(&TenantId::anonymous()).max_labels_per_series, 60);
    }

    #[test]
    fn what_is_told_anew_holds_for_all_who_look() {
        let special = TenantId::new("special").unwrap();
        let strict = |max_labels_per_series| Limits {
            max_labels_per_series,
            ..Limits::default()
        };
        let overrides = Overrides::new(Limits::default(), [(special.clone(), strict(3))].into());
        let (copy, before) = (overrides.clone(), overrides.of(&special));
        overrides.replace(Limits::default(), [(special.clone(), strict(3))].into());
        assert!(
            Arc::ptr_eq(&copy.of(&special), &before),
            "what stays is the very same"
        );
        overrides.replace(strict(9), [(special.clone(), strict(4))].into());
        assert_eq!(copy.of(&special).max_labels_per_series, 4);
        assert_eq!(copy.of(&TenantId::anonymous()).max_labels_per_series, 9);
        overrides.replace(strict(9), BTreeMap::new());
        assert_eq!(copy.of(&special).max_labels_per_series, 9);
    }
}
