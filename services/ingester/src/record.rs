//! What the ingester writes into the log beside batches: small JSON documents (docs/formats/wal.md).

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use koios_block::BlockId;
use koios_bucket::Tombstone;
use koios_head::Resolved;
use koios_model::{BatchColumns, BatchSet, Metadata, PartitionId, TenantId, TimeRange};
use koios_wal::{Lsn, Record, RecordKind};
use koios_wire::{Batch, LoggedBatch, LoggedSeries};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::deletions::DeletionsCheckpoint;
use crate::epochs::EpochGuard;
use crate::replica::BatchTimes;
use crate::{Error, Result};

/// The state of one (partition, tenant) that replaying later records cannot give.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ReplicaCheckpoint {
    pub(crate) partition: PartitionId,
    pub(crate) tenant: TenantId,
    pub(crate) held: BatchSet,
    /// The newest sample logged before.
    pub(crate) newest_ms: Option<i64>,
    /// As in `koios_wire::TenantHoldings`.
    pub(crate) log_forgotten_below_ms: i64,
    /// The greatest manifest version that lists one of this member's cuts, or was taken over.
    pub(crate) listed_version: u64,
    /// By metric, with admission time.
    pub(crate) metadata: Vec<(String, i64, Metadata)>,
    /// What was deleted.
    #[serde(default)]
    pub(crate) deletions: DeletionsCheckpoint,
}

/// The first record of a segment.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    /// When it was written, by the member's clock.
    pub(crate) at_ms: i64,
    pub(crate) adopted: BTreeMap<PartitionId, u64>,
    /// The last damage found before, as a log position.
    pub(crate) damaged_at: Option<u64>,
    /// The last of it that had been synced.
    pub(crate) lost_at: Option<u64>,
    /// Up to where damage was made good, per partition.
    pub(crate) reconciled_at: BTreeMap<PartitionId, u64>,
    /// Segments below it were not needed any more.
    pub(crate) truncated_below: u32,
    /// Segments below it hold only samples that are in listed blocks and older than what heads keep: a replay need not
    /// load them.
    #[serde(default)]
    pub(crate) heads_need_from: u32,
    pub(crate) replicas: Vec<ReplicaCheckpoint>,
}

/// A window is cut at this record's position.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CutBegun {
    pub(crate) partition: PartitionId,
    pub(crate) tenant: TenantId,
    pub(crate) window_start_ms: i64,
    /// The window's width when it was cut; a replay under another width must not take more or less than was taken. 0 in
    /// records of versions that did not note it: it equals no width, so their windows are cut again.
    #[serde(default)]
    pub(crate) window_ms: i64,
    /// Names the cut, and its block if one is written.
    pub(crate) block: BlockId,
}

/// Blocks listed in a manifest hold everything of a cut.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CutListed {
    pub(crate) partition: PartitionId,
    pub(crate) tenant: TenantId,
    pub(crate) block: BlockId,
    pub(crate) manifest_version: u64,
}

/// Batches of a peer whose bytes its log no longer has: listed blocks hold them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TakenOver {
    pub(crate) partition: PartitionId,
    pub(crate) tenant: TenantId,
    pub(crate) held: BatchSet,
    pub(crate) forgotten_below_ms: i64,
    pub(crate) manifest_version: u64,
}

/// Damage of the log found before this record is made good for a partition.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Reconciled {
    pub(crate) partition: PartitionId,
    /// Why, for people.
    pub(crate) by: String,
}

/// Writes of a partition under lower epochs are refused from here on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Adopted {
    pub(crate) partition: PartitionId,
    pub(crate) epoch: u64,
}

/// Segments below a number go: listed blocks hold their samples, or later segments do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Truncated {
    pub(crate) below: u32,
    /// What was below is missing, and no record had said that it may go.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) front_is_lost: bool,
}

/// A deletion as a manifest lists it. What was applied before this record and is covered goes; of the rest, `kept` has
/// what matches.
#[derive(Clone, Debug)]
pub(crate) struct Deleted {
    pub(crate) head: DeletedHead,
    /// Samples that match and stay, since they came after the deletion, or that are put back: with all labels.
    pub(crate) kept: Vec<Batch>,
    /// Whether it comes from the log.
    pub(crate) replayed: bool,
}

/// The part of it that is JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DeletedHead {
    pub(crate) partition: PartitionId,
    pub(crate) tenant: TenantId,
    pub(crate) deletion: Tombstone,
    /// Whether samples go: otherwise it is only known from here on.
    pub(crate) removes: bool,
    /// With this record all deletions are applied that a manifest lists up to this version; 0 where that is not said.
    #[serde(default)]
    pub(crate) applied_up_to: u64,
    /// Samples of a part of the range go, where what is kept of all of it would be too much for one record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) part: Option<Part>,
    /// Covered batches that came after what goes was copied for the bucket: what goes of them is in the log alone.
    #[serde(default, skip_serializing_if = "BatchSet::is_empty")]
    pub(crate) late: BatchSet,
    /// Nothing is deleted by this record: blocks have by now what was in the log alone of these batches.
    #[serde(default, skip_serializing_if = "BatchSet::is_empty")]
    pub(crate) backed_up: BatchSet,
    /// Nothing is deleted by this record: the deletion is about to be taken back, and what stands here was in the log alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) puts_back: bool,
}

impl DeletedHead {
    pub(crate) fn new(partition: PartitionId, tenant: TenantId, deletion: Tombstone) -> Self {
        Self {
            partition,
            tenant,
            deletion,
            removes: false,
            applied_up_to: 0,
            part: None,
            late: BatchSet::default(),
            backed_up: BatchSet::default(),
            puts_back: false,
        }
    }
}

/// A part of a deletion's range. Pushes wait until all parts are logged; a start that finds some of them applies the
/// deletion once more.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) range: TimeRange,
    /// The deletion is known from this one on.
    pub(crate) is_last: bool,
}

impl Deleted {
    /// JSON, then encoded batches, each after its length.
    fn payload(&self) -> Bytes {
        let mut out = Vec::new();
        let mut put = |part: &[u8]| {
            out.extend_from_slice(&(part.len() as u32).to_le_bytes());
            out.extend_from_slice(part);
        };
        put(&json(&self.head));
        self.kept
            .iter()
            .for_each(|batch| put(batch.with_labels().encoded()));
        Bytes::from(out)
    }

    fn read(lsn: Lsn, bytes: &Bytes) -> Result<Self> {
        let refused = |reason: &str| Error::Record {
            lsn,
            reason: reason.to_owned(),
        };
        let mut rest = bytes.clone();
        let mut parts = Vec::new();
        while !rest.is_empty() {
            let len = rest.first_chunk().map(|len| u32::from_le_bytes(*len) as usize);
            let end = len.and_then(|len| len.checked_add(size_of::<u32>()));
            let end = end.filter(|end| *end <= rest.len());
            let part = rest.split_to(end.ok_or_else(|| refused("it ends early"))?);
            parts.push(part.slice(size_of::<u32>()..));
        }
        let mut parts = parts.into_iter();
        let head = parts.next().ok_or_else(|| refused("it is empty"))?;
        // Copied: a batch keeps what it was decoded from, which may be a part of a whole segment.
        let kept = parts.map(|part| {
            let part = Bytes::copy_from_slice(&part);
            Batch::decode(part).map_err(|source| Error::Batch { lsn, source })
        });
        Ok(Self {
            head: parse(lsn, &head)?,
            kept: kept.collect::<Result<_>>()?,
            replayed: true,
        })
    }
}

/// Where a batch comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Whoever made it, and may wait for an answer.
    Sender,
    /// Another member, which has it.
    Member,
    /// This member's own log, whose old segments are to go.
    Log,
}

/// A batch on its way into the log.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) batch: Arc<Batch>,
    pub(crate) origin: Origin,
    /// Once it is prepared for a segment.
    pub(crate) prepared: Option<PreparedBatch>,
    /// Until it is applied or will not be written. Who waits for the answer may be gone long before.
    pub(crate) _pushing: EpochGuard,
}

/// A batch whose series are found and named.
#[derive(Debug)]
pub(crate) struct PreparedBatch {
    pub(crate) resolved: Resolved,
    pub(crate) series: LoggedSeries,
    /// Bytes of its record.
    pub(crate) bytes: u64,
}

/// A batch read back from the log.
#[derive(Debug)]
pub(crate) struct Replayed {
    pub(crate) batch: LoggedBatch,
    /// Whose series are not told yet.
    pub(crate) columns: BatchColumns,
    /// When its samples are, if that was looked at already.
    pub(crate) times: Option<BatchTimes>,
}

/// What a log record asks the state to do.
#[derive(Debug)]
pub(crate) enum Entry {
    Batch(Box<Pending>),
    Replayed(Box<Replayed>),
    CutBegun(CutBegun),
    CutListed(CutListed),
    TakenOver(TakenOver),
    Reconciled(Reconciled),
    Adopted(Adopted),
    Truncated(Truncated),
    Deleted(Box<Deleted>),
}

impl Entry {
    pub(crate) fn kind(&self) -> RecordKind {
        match self {
            Self::Batch(_) | Self::Replayed(_) => RecordKind::Batch,
            Self::CutBegun(_) => RecordKind::CutBegun,
            Self::CutListed(_) => RecordKind::CutListed,
            Self::TakenOver(_) => RecordKind::TakenOver,
            Self::Reconciled(_) => RecordKind::Reconciled,
            Self::Adopted(_) => RecordKind::Adopted,
            Self::Truncated(_) => RecordKind::Truncated,
            Self::Deleted(_) => RecordKind::Deleted,
        }
    }

    /// What stands in its record, for a batch the end of it.
    pub(crate) fn payload(&self) -> Bytes {
        match self {
            Self::Batch(pending) => pending.batch.content().clone(),
            Self::Replayed(_) => Bytes::new(),
            Self::CutBegun(r) => json(r),
            Self::CutListed(r) => json(r),
            Self::TakenOver(r) => json(r),
            Self::Reconciled(r) => json(r),
            Self::Adopted(r) => json(r),
            Self::Truncated(r) => json(r),
            Self::Deleted(r) => r.payload(),
        }
    }

    /// Reads a record other than a checkpoint; `None` for a checkpoint.
    pub(crate) fn read(record: &Record) -> Result<Option<Self>> {
        let (lsn, bytes) = (record.lsn, &record.payload);
        Ok(Some(match record.kind {
            RecordKind::Checkpoint => return Ok(None),
            RecordKind::Batch => {
                let failed = |source| Error::Batch { lsn, source };
                let batch = LoggedBatch::decode(bytes).map_err(failed)?;
                let columns = batch.columns().map_err(failed)?;
                let times = None;
                Self::Replayed(Box::new(Replayed {
                    batch,
                    columns,
                    times,
                }))
            }
            RecordKind::CutBegun => Self::CutBegun(parse(lsn, bytes)?),
            RecordKind::CutListed => Self::CutListed(parse(lsn, bytes)?),
            RecordKind::TakenOver => Self::TakenOver(parse(lsn, bytes)?),
            RecordKind::Reconciled => Self::Reconciled(parse(lsn, bytes)?),
            RecordKind::Adopted => Self::Adopted(parse(lsn, bytes)?),
            RecordKind::Truncated => Self::Truncated(parse(lsn, bytes)?),
            RecordKind::Deleted => Self::Deleted(Box::new(Deleted::read(lsn, bytes)?)),
            RecordKind::Unknown(code) => {
                let reason = format!("it has the unknown type {code}; start the version that wrote it");
                return Err(Error::Record { lsn, reason });
            }
        }))
    }
}

pub(crate) fn json<T: Serialize>(value: &T) -> Bytes {
    // These types hold nothing that JSON cannot; an empty document would be refused on replay.
    Bytes::from(serde_json::to_vec(value).unwrap_or_default())
}

pub(crate) fn parse<T: DeserializeOwned>(lsn: Lsn, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::Record {
        lsn,
        reason: e.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_earlier_versions_are_read() {
        let block = serde_json::to_value(BlockId::new(1, 1)).unwrap();
        let old = serde_json::json!({
            "partition": 0,
            "tenant": "anonymous",
            "window_start_ms": 7_200_000,
            "block": block,
        });
        let record = Record {
            lsn: Lsn::new(1, 64),
            kind: RecordKind::CutBegun,
            payload: Bytes::from(old.to_string()),
        };
        let Some(Entry::CutBegun(cut)) = Entry::read(&record).unwrap() else {
            panic!("a cut");
        };
        assert_eq!((cut.window_start_ms, cut.window_ms), (7_200_000, 0));
    }
}
