//! The file: a header and frames, each with its own checksum (docs/formats/snapshot.md).

use koios_head::Strip;
use koios_wal::Identity;

/// Bytes of the header.
pub(super) const HEADER_BYTES: usize = 64;
/// Bytes before a frame's payload.
pub(super) const FRAME_HEADER_BYTES: usize = 9;
/// Longest payload that is believed: a strip is some MiB, the accounts of a head may be more.
const PAYLOAD_BYTES_MAX: u32 = 1 << 30;

/// Least bytes of a series in a strip: its reference, and its state without samples.
const SERIES_BYTES_MIN: usize = 16 + 24;

const MAGIC: [u8; 8] = *b"KOIOSSNP";
const VERSION: u16 = 2;
/// Written before; what its open entries look like still reads.
const VERSION_BEFORE: u16 = 1;
const ZSTD_LEVEL: i32 = 1;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameKind {
    /// Some series of the replica whose accounts come next.
    Strip,
    /// The end of a replica: its accounts.
    Accounts,
    /// What the log's segments hold.
    Segments,
    /// The end of the file.
    End,
}

impl FrameKind {
    fn code(self) -> u8 {
        match self {
            Self::Strip => 1,
            Self::Accounts => 2,
            Self::Segments => 3,
            Self::End => 4,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Strip, Self::Accounts, Self::Segments, Self::End]
            .into_iter()
            .find(|kind| kind.code() == code)
    }
}

/// Checksums depend on the data directory and on the place, so that no other bytes pass for a frame.
fn checksum(identity: Identity, at: u64, kind: u8, payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&identity.incarnation.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &at.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(crc, &[kind]), payload)
}

/// The header of a snapshot of everything before a segment.
pub(super) fn header(identity: Identity, segment: u32) -> [u8; HEADER_BYTES] {
    header_of(VERSION, identity, segment)
}

/// Whether a snapshot that begins so can be read.
pub(super) fn is_header(start: &[u8; HEADER_BYTES], identity: Identity, segment: u32) -> bool {
    let versions = [VERSION, VERSION_BEFORE];
    versions
        .iter()
        .any(|version| *start == header_of(*version, identity, segment))
}

fn header_of(version: u16, identity: Identity, segment: u32) -> [u8; HEADER_BYTES] {
    let mut out = [0; HEADER_BYTES];
    out[..8].copy_from_slice(&MAGIC);
    out[8..10].copy_from_slice(&version.to_le_bytes());
    out[12..16].copy_from_slice(&segment.to_le_bytes());
    out[16..32].copy_from_slice(&identity.cluster.to_le_bytes());
    out[32..48].copy_from_slice(&identity.incarnation.to_le_bytes());
    let crc = crc32c::crc32c(&out[..60]);
    out[60..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// A frame that will stand at an offset.
pub(super) fn frame(identity: Identity, at: u64, kind: FrameKind, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(FRAME_HEADER_BYTES + payload.len());
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&checksum(identity, at, kind.code(), payload).to_le_bytes());
    out.push(kind.code());
    out.extend_from_slice(payload);
    out
}

/// The beginning of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameHeader {
    pub(super) len: usize,
    crc: u32,
    code: u8,
}

impl FrameHeader {
    /// Reads it; none when it cannot be one.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let len = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?);
        let crc = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?);
        (len <= PAYLOAD_BYTES_MAX).then_some(Self {
            len: len as usize,
            crc,
            code: *bytes.get(8)?,
        })
    }

    /// What the frame at an offset is; none when its payload is damaged.
    pub(super) fn check(&self, identity: Identity, at: u64, payload: &[u8]) -> Option<FrameKind> {
        let intact = checksum(identity, at, self.code, payload) == self.crc;
        intact.then(|| FrameKind::from_code(self.code))?
    }
}

/// Bytes of the beginning of a frame that [`peek_strip`] looks at.
pub(super) const PEEKED_BYTES: usize = FRAME_HEADER_BYTES + 4;

/// How long the payload of a strip is and how many series it has, as far as they can be told from its beginning, which nothing has
/// checked; none of another frame.
pub(super) fn peek_strip(start: &[u8]) -> Option<(u64, usize)> {
    let head =
        FrameHeader::read(start).filter(|head| FrameKind::from_code(head.code) == Some(FrameKind::Strip))?;
    let series = start.get(FRAME_HEADER_BYTES..)?.first_chunk()?;
    let series = u32::from_le_bytes(*series) as usize;
    Some((head.len as u64, series.min(head.len / SERIES_BYTES_MIN)))
}

/// A strip as a payload: `series:u32 labels:u32 zstd:u32 zstd(labels) data`.
pub(super) fn pack(strip: &Strip) -> std::io::Result<Vec<u8>> {
    let labels = zstd::bulk::compress(&strip.labels, ZSTD_LEVEL)?;
    let mut out = Vec::with_capacity(12 + labels.len() + strip.data.len());
    out.extend_from_slice(&strip.series.to_le_bytes());
    out.extend_from_slice(&(strip.labels.len() as u32).to_le_bytes());
    out.extend_from_slice(&(labels.len() as u32).to_le_bytes());
    out.extend_from_slice(&labels);
    out.extend_from_slice(&strip.data);
    Ok(out)
}

/// Reads what [`pack`] wrote; none when it is malformed.
pub(super) fn unpack(mut payload: Vec<u8>) -> Option<Strip> {
    let number = |at: usize| -> Option<u32> {
        let bytes = payload.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let (series, labels, packed) = (number(0)?, number(4)?, number(8)? as usize);
    let data_at = packed.checked_add(12)?;
    let packed = payload.get(12..data_at)?;
    let labels = zstd::bulk::decompress(packed, labels as usize).ok()?;
    payload.drain(..data_at);
    Some(Strip {
        series,
        labels,
        data: payload,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Identity = Identity {
        cluster: 7,
        incarnation: 8,
    };

    #[test]
    fn i11_a_frame_is_intact_at_its_own_place_only() {
        let bytes = frame(ID, 640, FrameKind::Strip, b"payload");
        let (head, payload) = bytes.split_at(FRAME_HEADER_BYTES);
        let head = FrameHeader::read(head).unwrap();
        assert_eq!(head.len, payload.len());
        assert_eq!(head.check(ID, 640, payload), Some(FrameKind::Strip));
        assert_eq!(head.check(ID, 641, payload), None);
        let other = Identity { incarnation: 9, ..ID };
        assert_eq!(head.check(other, 640, payload), None);
        assert_eq!(head.check(ID, 640, b"pay1oad"), None);
    }

    #[test]
    fn snapshots_of_this_version_and_the_one_before_are_read() {
        let reads = |version| is_header(&header_of(version, ID, 3), ID, 3);
        assert_eq!([0, 1, 2, 3].map(reads), [false, true, true, false]);
        assert!(!is_header(&header(ID, 3), ID, 4));
    }

    #[test]
    fn the_beginning_of_a_strip_tells_how_many_series_it_may_have() {
        let peek = |kind, series: u32, len: usize| {
            let payload = [&series.to_le_bytes()[..], &vec![0; len - 4]].concat();
            let bytes = frame(ID, 640, kind, &payload);
            assert_eq!(peek_strip(&bytes[..PEEKED_BYTES - 1]), None);
            peek_strip(&bytes[..PEEKED_BYTES])
        };
        assert_eq!(peek(FrameKind::Strip, 3, 200), Some((200, 3)));
        assert_eq!(
            peek(FrameKind::Strip, u32::MAX, 200),
            Some((200, 5)),
            "no more than fit"
        );
        assert_eq!(peek(FrameKind::Accounts, 3, 200), None);
    }

    #[test]
    fn a_strip_reads_back() {
        let strip = Strip {
            series: 3,
            labels: b"labels labels labels".to_vec(),
            data: vec![1, 2, 3],
        };
        let packed = pack(&strip).unwrap();
        assert_eq!(unpack(packed.clone()), Some(strip));
        assert!((0..packed.len()).all(|cut| unpack(packed[..cut].to_vec()).is_none_or(|s| s.data.len() < 3)));
    }
}
