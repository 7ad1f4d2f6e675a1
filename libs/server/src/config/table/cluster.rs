//! The other processes, and the control plane.

use super::{Setting, VOTE};

const HEADING: &str = "Cluster";

pub(super) const SETTINGS: &[Setting] = &[
    setting!(
        "cluster.seeds",
        Vec<String>,
        cluster.seeds,
        &[],
        "gRPC addresses of processes from which to learn the cluster's state, separated by commas; the voters when empty"
    ),
    setting!(
        "control.voters",
        Vec<String>,
        control.voters,
        &[],
        "gRPC addresses of the control plane's voters, [name=]host:port, separated by commas; `koios all` may do without, as a cluster by itself"
    ),
    setting!(
        "control.replication-factor",
        u32,
        control.replication_factor,
        VOTE,
        "Members of each partition, 1 or 3; 0 for 3, or 1 when everything runs in one process"
    ),
    setting!(
        "control.partitions",
        u32,
        control.partitions,
        VOTE,
        "Partitions formed at first; 0 for as many as the ingesters allow"
    ),
];
