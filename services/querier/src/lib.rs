//! Querying: Prometheus' HTTP query API and PromQL over heads and blocks.
//!
//! **Data flow.** [`QuerierApi::router`] takes a request. *Prepare*: parameters are checked, the query is parsed and
//! planned. *Queue*: it waits for one of the process' places. *Fetch*: for each selector [`Cluster`] reads heads — every
//! partition from a majority of its counting members — and then, of a pinned manifest, the blocks that hold what the
//! heads may have forgotten; all sources are merged in label order, their samples still as they were
//! kept. What can be computed meanwhile is. *Evaluate*: the engine computes the result on the CPU pool. The answer is written as the client takes it.
//!
//! **Invariants.** An answer is complete, or an error or a warning names what is missing (I4): every read of a partition meets
//! every acknowledged batch, and blocks are read as of a manifest that lists all that any read head forgot. Each sample
//! comes once, with the value that `koios_model::merge` chooses (I2). What a query holds is charged to its [`Budget`].
//! A request's tenant is fixed before anything is read (I6).
//!
//! **Deliberately absent.** Result caching, sharding over queriers, federation, rules. Partial answers, but for
//! those of heads that have all that is asked for while no manifest of the tenant is known.
//!
//! **Failure behaviour.** One lost member per partition, or one lost store, changes nothing but latency (I7). Fewer
//! members, or a bucket that is away while old data is asked for, give 503; recent data needs no bucket (I9). A client
//! that goes away cancels its query; a deadline ends it with 503 `timeout`. A client that stops reading its answer, or
//! crawls, loses it, and what it held is free for others (I6).

mod cluster;
mod http;

pub use cluster::{
    BucketManifests, Budget, Charge, Cluster, ClusterQueryable, ClusterTopology, FoundExemplars, ListedBlock,
    ManifestView, Manifests, Members, PartitionTarget, Patience, ReadPlan, Replica, SourceResolution,
    StoreMember, StoreReads, Summarised, Topology,
};
pub use http::{CONCURRENT_QUERIES_DEFAULT, DeletionsApi, QuerierApi};
