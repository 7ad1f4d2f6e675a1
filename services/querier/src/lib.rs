//! Querying: the HTTP query API and PromQL execution over heads and blocks.

mod cluster;

pub use cluster::{
    Budget, Charge, Cluster, ClusterQueryable, ClusterTopology, ListedBlock, ManifestView, Manifests,
    Members, PartitionTarget, Patience, ReadPlan, Replica, StoreMember, Topology,
};
