//! The nouns of the field: labels, samples, matchers, time ranges, tenants, batch sets.
//!
//! **Data flow.** Everything above uses these types and nothing here calls anything: the distributor packs request
//! labels into [`Labels`]' canonical form and hashes them ([`SeriesHash`]); heads, blocks and the querier compare and
//! merge samples with [`merge::winner`]; replicas compare what they hold as [`BatchSet`]s.
//!
//! **Invariants.** A [`Labels`] is sorted by name, has no duplicate and no empty name or value. Times are milliseconds
//! since the Unix epoch, ranges closed at both ends.
//!
//! **Deliberately absent.** I/O, clocks, async, any wire or file format but the packed label form.

mod batch_set;
mod columns;
mod describe;
mod go_regex;
mod hash;
mod histogram;
mod labels;
mod matcher;
pub mod merge;
mod retention;
mod sample;
pub mod summary;
mod tenant;
mod time;
mod universal;

pub use batch_set::{BatchSet, SequenceSet, StreamId};
pub use columns::{BatchColumns, BatchExemplar, BatchHistogram, BatchSeries, Exemplar};
pub use describe::describe_labels;
pub use go_regex::{GoRegexError, from_go_regex};
pub use hash::{HashPurpose, SeriesHash, TenantSeed, random_weight};
pub use histogram::{CUSTOM_BOUNDS_SCHEMA, HISTOGRAM_LIST_MAX, Histogram, ResetHint, Span, spans_of};
pub use labels::{
    Labels, LabelsBuilder, LabelsRef, METRIC_NAME, PackedError, is_utf8, write_packed_bytes,
    write_packed_pair,
};
pub use matcher::{MatchOp, Matcher, MatcherError, Matchers};
pub use retention::{Expiry, RetentionRule, SeriesClasses};
pub use sample::{STALE_NAN_BITS, Sample, is_stale, stale_nan};
pub use summary::Summary;
pub use tenant::{DEFAULT_TENANT, TenantId, TenantIdError};
pub use time::{TimeRange, window_start};

/// A partition: one replication group of ingesters, numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct PartitionId(pub u32);

impl std::fmt::Display for PartitionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What is known of a metric beside its samples.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Metadata {
    /// The type in Prometheus' words: `counter`, `gauge`, `histogram`, `summary`, `info`, `stateset`, `unknown`.
    pub kind: String,
    /// The help text.
    pub help: String,
    /// The unit, often empty.
    pub unit: String,
}
