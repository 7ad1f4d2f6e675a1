//! The service traits: one seam for one process and for many.
//!
//! A service is called through these traits only. In one process the implementation is the service; across processes
//! it is a client from [`crate::grpc`]; in tests it may be a mock.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use koios_chunk::{Encoder, Run};
use koios_model::{
    BatchSet, Exemplar, Expiry, Labels, Matchers, Metadata, PartitionId, SeriesHash, TenantId, TimeRange,
};

use crate::{Batch, ServiceError, ServiceErrorCode};

/// A member's answer to a durable push.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PushAck {
    /// The control-state version the member has adopted.
    pub state_version: u64,
    /// Active series of the batch's tenant in the partition.
    pub partition_series: u64,
    /// Samples whose timestamp already had another value; the merge rule chose.
    pub conflicts: u64,
    /// Those of them that are native histograms; 0 from a member that does not tell.
    pub histogram_conflicts: u64,
    /// In how many of them what came stays; 0 from a member that does not tell.
    pub conflicts_kept: u64,
    /// Those of these that are native histograms.
    pub histogram_conflicts_kept: u64,
    /// The first of them, in words for the sender.
    pub conflict: String,
    /// Thousandths of samples per second that come of the tenant in the partition, from all distributors; 0 from a member
    /// that does not tell.
    pub tenant_rate: u64,
}

/// A question which series there are.
#[derive(Clone, Debug)]
pub struct HeldSeriesRequest {
    /// The tenant.
    pub tenant: TenantId,
    /// The partition.
    pub partition: PartitionId,
    /// Answered only by a member that has adopted this epoch.
    pub epoch: u64,
    /// The references of the series; without any only their number is asked for.
    pub references: Arc<[SeriesHash]>,
    /// Metrics whose series are to be counted.
    pub metrics: Arc<[String]>,
}

/// Which of them a member has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldSeriesReply {
    /// For each reference, in the order asked.
    pub held: Vec<bool>,
    /// As in [`PushAck`].
    pub partition_series: u64,
    /// Whether the member counts for the partition: otherwise it may lack series that exist.
    pub counts: bool,
    /// How many series each metric has, in the order asked.
    pub metric_series: Vec<u64>,
}

/// Which series of one (partition, tenant) to read.
#[derive(Clone, Debug)]
pub struct ReadRequest {
    /// The tenant.
    pub tenant: TenantId,
    /// The partition.
    pub partition: PartitionId,
    /// Its epoch as the caller knows it; a member that knows a higher one answers `Stale`.
    pub epoch: u64,
    /// All must match.
    pub matchers: Matchers,
    /// Which samples.
    pub range: TimeRange,
    /// Leave the samples away.
    pub labels_only: bool,
    /// Chunks only: whoever asks is in another process.
    pub encoded: bool,
    /// Most series, 0 for no limit.
    pub limit: u64,
    /// The member answers only once deletions listed up to this manifest version are applied; 0 for none.
    pub deletions_version: u64,
    /// Series are left out of which all that may be in range is too old; of others their samples are not.
    pub expiry: Expiry,
}

/// A series with its samples in runs, which may overlap and may hold samples outside the asked range.
#[derive(Clone, Debug)]
pub struct SeriesRuns {
    /// The label set.
    pub labels: Labels,
    /// Its samples, in the form they were kept or asked for in.
    pub runs: Vec<Run>,
}

impl SeriesRuns {
    /// Makes chunks of all runs.
    ///
    /// # Errors
    /// `Corruption` when samples are damaged.
    pub fn encode(self, encoder: &mut Encoder) -> Result<Self, ServiceError> {
        let mut chunks = Vec::with_capacity(self.runs.len());
        for run in self.runs {
            run.into_chunks(encoder, &mut chunks)
                .map_err(|e| damaged(&self.labels, &e))?;
        }
        Ok(Self {
            labels: self.labels,
            runs: chunks.into_iter().map(Run::Chunk).collect(),
        })
    }
}

/// What is said of a series whose samples cannot be decoded.
pub(crate) fn damaged(labels: &Labels, e: &koios_chunk::Error) -> ServiceError {
    let text = format!("the samples of series {labels}: {e}");
    ServiceError::new(ServiceErrorCode::Corruption, text)
}

/// What a member held when it had sent everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadEnd {
    /// The batches it holds, taken after the read started.
    pub held: BatchSet,
    /// It may have forgotten samples below this time; `i64::MIN` when it never forgot any.
    pub forgotten_below_ms: i64,
    /// What it forgot is in blocks listed in this manifest version or a later one.
    pub manifest_floor: u64,
    /// Deletions listed up to this manifest version are applied in what was read; later ones may be.
    pub deletions_version: u64,
}

/// One item of a read.
#[derive(Clone, Debug)]
pub enum ReadItem {
    /// Some series, in label order over the whole stream.
    Series(Vec<SeriesRuns>),
    /// The last item. A stream without it is incomplete and must count as failed.
    End(ReadEnd),
}

/// A read's answer.
pub type ReadStream = BoxStream<'static, Result<ReadItem, ServiceError>>;

/// Label names or values of one (partition, tenant).
#[derive(Clone, Debug)]
pub struct LabelsRequest {
    /// The tenant.
    pub tenant: TenantId,
    /// The partition.
    pub partition: PartitionId,
    /// Its epoch as the caller knows it.
    pub epoch: u64,
    /// Only series that match all of these.
    pub matchers: Matchers,
    /// Only series with samples possibly in this range.
    pub range: TimeRange,
    /// The label whose values are asked for; empty when names are.
    pub name: String,
    /// Most names or values, 0 for no limit.
    pub limit: u64,
    /// As in [`ReadRequest`].
    pub deletions_version: u64,
    /// As in [`ReadRequest`].
    pub expiry: Expiry,
}

/// Names or values, sorted, with what the member held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelsReply {
    /// Sorted, no duplicates.
    pub names: Vec<String>,
    /// What the member held.
    pub end: ReadEnd,
}

/// Metadata of one (partition, tenant).
#[derive(Clone, Debug)]
pub struct MetadataRequest {
    /// The tenant.
    pub tenant: TenantId,
    /// The partition.
    pub partition: PartitionId,
    /// Its epoch as the caller knows it.
    pub epoch: u64,
    /// One metric, or all when empty.
    pub metric: String,
    /// As in [`ReadRequest`].
    pub deletions_version: u64,
}

/// Exemplars of one (partition, tenant).
#[derive(Clone, Debug)]
pub struct ExemplarsRequest {
    /// The tenant.
    pub tenant: TenantId,
    /// The partition.
    pub partition: PartitionId,
    /// Its epoch as the caller knows it.
    pub epoch: u64,
    /// Of which series.
    pub matchers: Matchers,
    /// From when, both ends included.
    pub range: TimeRange,
    /// As in [`ReadRequest`].
    pub deletions_version: u64,
}

/// The labels of a series, and its exemplars.
pub type SeriesExemplars = (Labels, Vec<Exemplar>);

/// What a peer holds of a partition.
#[derive(Clone, Copy, Debug)]
pub struct BatchSetsRequest {
    /// The partition.
    pub partition: PartitionId,
    /// Answered only by a member that has adopted this epoch: it then refuses older writes, so the answer is final
    /// for them.
    pub epoch: u64,
}

/// What a member holds of one (partition, tenant).
#[derive(Clone, Debug)]
pub struct TenantHoldings {
    /// The tenant.
    pub tenant: TenantId,
    /// Every batch it has applied or taken over as covered by blocks.
    pub held: BatchSet,
    /// Those whose bytes [`IngesterService::fetch_batches`] can still serve.
    pub logged: BatchSet,
    /// As in [`ReadEnd`].
    pub forgotten_below_ms: i64,
    /// As in [`ReadEnd`].
    pub manifest_floor: u64,
    /// Samples below this time may be missing from the logged batches; they are in listed blocks.
    pub log_forgotten_below_ms: i64,
}

/// A member's holdings, tenants ascending.
#[derive(Clone, Debug, Default)]
pub struct BatchSetsReply {
    /// Per tenant.
    pub tenants: Vec<TenantHoldings>,
    /// Whether the member counts for reads of the partition.
    pub counts: bool,
}

/// Batches to copy.
#[derive(Clone, Debug)]
pub struct FetchBatchesRequest {
    /// The partition.
    pub partition: PartitionId,
    /// The tenant.
    pub tenant: TenantId,
    /// Which batches; those the peer does not have are left out of the answer.
    pub wanted: BatchSet,
}

/// Batches in no particular order.
pub type BatchStream = BoxStream<'static, Result<Arc<Batch>, ServiceError>>;

/// A request to cut and upload.
#[derive(Clone, Debug, Default)]
pub struct FlushRequest {
    /// One tenant, or all.
    pub tenant: Option<TenantId>,
    /// Answer only when the blocks are listed in the manifest.
    pub wait: bool,
}

/// What a flush did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlushReply {
    /// Blocks listed.
    pub blocks: u64,
    /// Samples in them.
    pub samples: u64,
}

/// A question about deletions of one (partition, tenant).
#[derive(Clone, Debug)]
pub struct DeletionsRequest {
    /// The tenant.
    pub tenant: TenantId,
    /// The partition.
    pub partition: PartitionId,
    /// Answered only by a member that has adopted this epoch.
    pub epoch: u64,
    /// Deletions up to this manifest version are applied first; 0 for none.
    pub version: u64,
    /// Whether the batches held are wanted.
    pub with_held: bool,
}

/// How a member stands with deletions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeletionsReply {
    /// The batches held, and all before them in their streams, when they were asked for.
    pub held: BatchSet,
    /// Deletions listed up to this manifest version are applied.
    pub version: u64,
    /// The version of the first deletion that covers a batch in the member's log; 0 for none.
    pub logged_from: u64,
    /// The newest manifest version of the tenant that the member knows to have been there, whatever partition told it of it; 0 for none.
    pub manifest_version: u64,
}

impl DeletionsReply {
    /// The newest manifest version that the member tells of: a manifest that is older has lost versions. Members of earlier versions of
    /// the program tell of those only whose deletions they have applied.
    pub fn announced(&self) -> u64 {
        self.manifest_version.max(self.version)
    }
}

/// A member of partitions: takes batches, answers for recent samples.
#[async_trait]
pub trait IngesterService: Send + Sync + Debug + 'static {
    /// Logs, syncs and applies a batch. Ok means that it is durable at this member (I1) and visible to reads (I5).
    ///
    /// # Errors
    /// `Stale` or `Behind` when epochs differ, `ResourceExhausted` or `Unavailable` when shedding; nothing of the batch
    /// was logged then.
    async fn push(&self, batch: Arc<Batch>) -> Result<PushAck, ServiceError>;

    /// Which series this member has, whoever asks and whatever for.
    ///
    /// # Errors
    /// `Stale` or `Behind` when epochs differ, `Unavailable` while the log is replayed.
    async fn held_series(&self, request: HeldSeriesRequest) -> Result<HeldSeriesReply, ServiceError>;

    /// Reads series in label order.
    ///
    /// # Errors
    /// `NotCounting` when the member may lack acknowledged samples, `Stale`/`Behind` when epochs differ.
    async fn read(&self, request: ReadRequest) -> Result<ReadStream, ServiceError>;

    /// Label names of matching series.
    ///
    /// # Errors
    /// As [`Self::read`].
    async fn label_names(&self, request: LabelsRequest) -> Result<LabelsReply, ServiceError>;

    /// Values of one label of matching series.
    ///
    /// # Errors
    /// As [`Self::read`].
    async fn label_values(&self, request: LabelsRequest) -> Result<LabelsReply, ServiceError>;

    /// Metric metadata, ascending by metric.
    ///
    /// # Errors
    /// As [`Self::read`].
    async fn metadata(&self, request: MetadataRequest) -> Result<Vec<(String, Metadata)>, ServiceError>;

    /// Exemplars by series, in label order, each series' ascending in time.
    ///
    /// # Errors
    /// As [`Self::read`].
    async fn exemplars(&self, request: ExemplarsRequest) -> Result<Vec<SeriesExemplars>, ServiceError>;

    /// What this member holds of a partition.
    ///
    /// # Errors
    /// `Behind` when it has not adopted the epoch.
    async fn batch_sets(&self, request: BatchSetsRequest) -> Result<BatchSetsReply, ServiceError>;

    /// Batches out of the write-ahead log.
    ///
    /// # Errors
    /// `Corruption` when a logged batch is damaged.
    async fn fetch_batches(&self, request: FetchBatchesRequest) -> Result<BatchStream, ServiceError>;

    /// Cuts everything held into blocks and lists them.
    ///
    /// # Errors
    /// `Unavailable` when the bucket is; nothing is forgotten then.
    async fn flush(&self, request: FlushRequest) -> Result<FlushReply, ServiceError>;

    /// Applies deletions that the manifest lists: what was held before is deleted, durably, what came since is not.
    ///
    /// # Errors
    /// `Unavailable` when the bucket is, `Stale`/`Behind` when epochs differ.
    async fn deletions(&self, request: DeletionsRequest) -> Result<DeletionsReply, ServiceError>;
}

/// Which series to read from blocks.
#[derive(Clone, Debug)]
pub struct StoreSelectRequest {
    /// The tenant.
    pub tenant: TenantId,
    /// The pinned manifest version.
    pub manifest_version: u64,
    /// ULIDs of blocks listed there; empty for all that overlap the range.
    pub blocks: Vec<String>,
    /// All must match.
    pub matchers: Matchers,
    /// Which samples.
    pub range: TimeRange,
    /// Leave the samples away.
    pub labels_only: bool,
    /// Most series, 0 for no limit.
    pub limit: u64,
    /// With summaries, the sums of their native histograms.
    pub histogram_sums: bool,
}

/// Label names or values from blocks.
#[derive(Clone, Debug)]
pub struct StoreLabelsRequest {
    /// The tenant.
    pub tenant: TenantId,
    /// The pinned manifest version.
    pub manifest_version: u64,
    /// ULIDs of blocks listed there; empty for all that overlap the range.
    pub blocks: Vec<String>,
    /// Only series that match all of these.
    pub matchers: Matchers,
    /// Only blocks that overlap this range.
    pub range: TimeRange,
    /// The label whose values are asked for; empty when names are.
    pub name: String,
    /// Most names or values, 0 for no limit.
    pub limit: u64,
}

/// One item of a store read.
#[derive(Clone, Debug)]
pub enum StoreItem {
    /// Some series, in label order over the whole stream, each label set once.
    Series(Vec<SeriesRuns>),
    /// The last item. A stream without it is incomplete and must count as failed.
    End,
}

/// A store's answer.
pub type StoreStream = BoxStream<'static, Result<StoreItem, ServiceError>>;

/// Reads of blocks as of one manifest version.
#[async_trait]
pub trait StoreService: Send + Sync + Debug + 'static {
    /// Reads series in label order.
    ///
    /// # Errors
    /// `BucketUnavailable` when the bucket is, `Corruption` when a block is damaged, `NotFound` when the version or a block
    /// is gone.
    async fn select(&self, request: StoreSelectRequest) -> Result<StoreStream, ServiceError>;

    /// Label names of matching series, sorted.
    ///
    /// # Errors
    /// As [`Self::select`].
    async fn label_names(&self, request: StoreLabelsRequest) -> Result<Vec<String>, ServiceError>;

    /// Values of one label of matching series, sorted.
    ///
    /// # Errors
    /// As [`Self::select`].
    async fn label_values(&self, request: StoreLabelsRequest) -> Result<Vec<String>, ServiceError>;

    /// Exemplars of matching series, by series in label order, each series' ascending in time; name and limit are of no
    /// meaning.
    ///
    /// # Errors
    /// As [`Self::select`], and `ResourceExhausted` when there are too many for an answer.
    async fn exemplars(&self, request: StoreLabelsRequest) -> Result<Vec<SeriesExemplars>, ServiceError>;

    /// Metadata of the metrics of matching series, ascending by metric, each entry once; name and limit are of no meaning.
    ///
    /// # Errors
    /// As [`Self::select`], and `ResourceExhausted` when there is too much for an answer.
    async fn metadata(&self, request: StoreLabelsRequest) -> Result<Vec<(String, Metadata)>, ServiceError>;
}
