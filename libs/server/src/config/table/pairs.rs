//! Several senders of the same series.

use std::time::Duration;

use super::{Setting, WRITE};

const HEADING: &str = "HA pairs";

pub(super) const SETTINGS: &[Setting] = &[
    setting!(
        "limits.ha-dedup",
        bool,
        limits.ha_dedup,
        WRITE,
        "Whether one of several senders of the same series is elected and the others' samples are dropped (Mimir's accept_ha_samples); series without both of the labels below are taken as they are"
    ),
    setting!(
        "limits.ha-cluster-label",
        String,
        limits.ha_cluster_label,
        WRITE,
        "Label that names the pair: equal for all replicas, kept on the series"
    ),
    setting!(
        "limits.ha-replica-label",
        String,
        limits.ha_replica_label,
        WRITE,
        "Label that names the replica: another one for each, taken off the series"
    ),
    setting!(
        "limits.ha-failover-timeout",
        Duration,
        limits.ha_failover_timeout,
        WRITE,
        "How long the elected replica may be away, or its newest samples behind the others', before another one is elected; longer than the longest scrape interval, 5s to 10m"
    ),
    setting!(
        "limits.ha-max-clusters",
        usize,
        limits.ha_max_clusters,
        WRITE,
        "Most pairs of a tenant; of further ones the samples of all replicas are kept"
    ),
];
