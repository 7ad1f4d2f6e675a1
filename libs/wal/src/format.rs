//! Bytes of segments and records (docs/formats/wal.md), little endian.

use crate::{Identity, Lsn};

/// Largest payload of a record, bytes.
pub const RECORD_BYTES_MAX: usize = 256 << 20;

pub(crate) const SEGMENT_MAGIC: [u8; 8] = *b"KOIOSWAL";
pub(crate) const SEGMENT_VERSION: u16 = 1;
pub(crate) const SEGMENT_HEADER_BYTES: usize = 64;
pub(crate) const RECORD_HEADER_BYTES: usize = 13;
pub(crate) const GROUP_PAYLOAD_BYTES: usize = 16;

/// What a record holds. The log reads none but its own group records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordKind {
    /// An encoded batch, verbatim.
    Batch,
    /// State carried forward: the first record of every segment.
    Checkpoint,
    /// A window was cut here: it holds what was applied before this record.
    CutBegun,
    /// A cut whose block is listed in the manifest.
    CutListed,
    /// Batches taken over from a peer as covered by listed blocks.
    TakenOver,
    /// Damage found before was made good from peers, or accepted by an operator.
    Reconciled,
    /// From here on, writes of a partition under lower epochs are refused.
    Adopted,
    /// Segments below a number hold nothing that is needed, and go.
    Truncated,
    /// A deletion, or what became of one: it deletes what was applied before this record.
    Deleted,
    /// Written by a newer version.
    Unknown(u8),
}

pub(crate) const GROUP_CODE: u8 = 1;

impl RecordKind {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Batch => 2,
            Self::Checkpoint => 3,
            Self::CutListed => 4,
            Self::TakenOver => 5,
            Self::Reconciled => 6,
            Self::CutBegun => 7,
            Self::Adopted => 8,
            Self::Truncated => 9,
            Self::Deleted => 10,
            Self::Unknown(code) => code,
        }
    }

    pub(crate) fn from_code(code: u8) -> Self {
        match code {
            2 => Self::Batch,
            3 => Self::Checkpoint,
            4 => Self::CutListed,
            5 => Self::TakenOver,
            6 => Self::Reconciled,
            7 => Self::CutBegun,
            8 => Self::Adopted,
            9 => Self::Truncated,
            10 => Self::Deleted,
            other => Self::Unknown(other),
        }
    }
}

/// What makes this log's bytes its own: the marker before each record and the seed of each checksum. Both derive from
/// the random incarnation, which clients cannot know, so no payload can imitate a record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys {
    pub(crate) marker: [u8; 4],
    seed: u32,
}

impl Keys {
    pub(crate) fn new(identity: Identity) -> Self {
        let seed = crc32c::crc32c(&identity.incarnation.to_le_bytes());
        let marker = crc32c::crc32c_append(seed, b"marker") | 1;
        Self {
            marker: marker.to_le_bytes(),
            seed,
        }
    }

    fn checksum(&self, lsn: Lsn, len: [u8; 4], code: u8, payload: &[u8]) -> u32 {
        let crc = crc32c::crc32c_append(self.seed, &lsn.0.to_le_bytes());
        let crc = crc32c::crc32c_append(crc, &len);
        let crc = crc32c::crc32c_append(crc, &[code]);
        crc32c::crc32c_append(crc, payload)
    }

    /// Appends a record that will stand at `lsn`, its payload in two parts.
    pub(crate) fn write_record(&self, out: &mut Vec<u8>, lsn: Lsn, code: u8, [start, end]: [&[u8]; 2]) {
        let len = ((start.len() + end.len()) as u32).to_le_bytes();
        out.extend_from_slice(&self.marker);
        out.extend_from_slice(&len);
        let crc = crc32c::crc32c_append(self.checksum(lsn, len, code, start), end);
        out.extend_from_slice(&crc.to_le_bytes());
        out.push(code);
        out.extend_from_slice(start);
        out.extend_from_slice(end);
    }

    /// The record that stands at the start of `bytes`, which is at `lsn`: its code and payload length. `None` when
    /// there is no intact record.
    pub(crate) fn read_record(&self, bytes: &[u8], lsn: Lsn) -> Option<(u8, usize)> {
        let (header, rest) = bytes.split_at_checked(RECORD_HEADER_BYTES)?;
        if header.get(..4)? != self.marker {
            return None;
        }
        let len: [u8; 4] = header.get(4..8)?.try_into().ok()?;
        let crc = u32::from_le_bytes(header.get(8..12)?.try_into().ok()?);
        let code = *header.get(12)?;
        let payload = rest.get(..u32::from_le_bytes(len) as usize)?;
        (self.checksum(lsn, len, code, payload) == crc).then_some((code, payload.len()))
    }
}

/// The first record of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GroupHead {
    /// Everything before this position was synced when the group was written.
    pub(crate) synced: Lsn,
    /// Bytes of the records that follow in the group.
    pub(crate) body_bytes: u32,
    /// How many they are.
    pub(crate) records: u32,
}

impl GroupHead {
    pub(crate) fn to_bytes(self) -> [u8; GROUP_PAYLOAD_BYTES] {
        let mut out = [0; GROUP_PAYLOAD_BYTES];
        out[..8].copy_from_slice(&self.synced.0.to_le_bytes());
        out[8..12].copy_from_slice(&self.body_bytes.to_le_bytes());
        out[12..].copy_from_slice(&self.records.to_le_bytes());
        out
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            synced: Lsn(u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?)),
            body_bytes: u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?),
            records: u32::from_le_bytes(bytes.get(12..16)?.try_into().ok()?),
        })
    }
}

/// The first bytes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) identity: Identity,
    pub(crate) number: u32,
    /// The segment before was synced up to this offset when this one was begun.
    pub(crate) previous_end: u32,
}

/// What the first bytes of a segment turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HeaderRead {
    Ok(SegmentHeader),
    /// A version this software does not know.
    Version(u16),
    Damaged,
}

impl SegmentHeader {
    pub(crate) fn to_bytes(self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut out = [0; SEGMENT_HEADER_BYTES];
        out[..8].copy_from_slice(&SEGMENT_MAGIC);
        out[8..10].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.number.to_le_bytes());
        out[16..32].copy_from_slice(&self.identity.cluster.to_le_bytes());
        out[32..48].copy_from_slice(&self.identity.incarnation.to_le_bytes());
        out[48..52].copy_from_slice(&self.previous_end.to_le_bytes());
        let crc = crc32c::crc32c(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn read(bytes: &[u8]) -> HeaderRead {
        let Some(b) = bytes.first_chunk::<SEGMENT_HEADER_BYTES>() else {
            return HeaderRead::Damaged;
        };
        let u32_at = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        let u128_at = |at: usize| b[at..at + 16].try_into().map_or(0, u128::from_le_bytes);
        if b[..8] != SEGMENT_MAGIC || u32_at(60) != crc32c::crc32c(&b[..60]) {
            return HeaderRead::Damaged;
        }
        let version = u16::from_le_bytes([b[8], b[9]]);
        if version != SEGMENT_VERSION {
            return HeaderRead::Version(version);
        }
        HeaderRead::Ok(Self {
            identity: Identity {
                cluster: u128_at(16),
                incarnation: u128_at(32),
            },
            number: u32_at(12),
            previous_end: u32_at(48),
        })
    }
}
