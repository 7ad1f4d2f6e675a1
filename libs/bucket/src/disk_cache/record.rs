//! The bytes of a segment file: docs/formats/disk-cache.md.

use koios_block::{BlockId, CellKey};

/// Starts each record.
const RECORD: [u8; 4] = *b"KCR1";
/// Ends a segment that is complete.
const SEALED: [u8; 4] = *b"KCS1";
/// Bytes before a cell.
pub(super) const HEADER_BYTES: usize = 40;
/// Bytes at the end of a segment that is complete.
pub(super) const TRAILER_BYTES: usize = 24;
/// Longest cell; `meta.json` may be longer than others.
pub(super) const CELL_BYTES_MAX: usize = 1 << 20;

/// What stands before a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) key: CellKey,
    pub(super) bytes: u32,
    /// CRC-32C of the cell.
    pub(super) crc32c: u32,
}

impl Header {
    /// That of a cell; `None` for one too long to be kept.
    pub(super) fn of(key: CellKey, cell: &[u8]) -> Option<Self> {
        let bytes = u32::try_from(cell.len()).ok()?;
        (cell.len() <= CELL_BYTES_MAX).then(|| Self {
            key,
            bytes,
            crc32c: crc32c::crc32c(cell),
        })
    }

    /// Bytes of the whole record.
    pub(super) fn record_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.bytes)
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&RECORD);
        out.extend_from_slice(&self.key.block.to_bits().to_le_bytes());
        out.extend_from_slice(&u32::from(self.key.part).to_le_bytes());
        out.extend_from_slice(&self.key.cell.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&self.crc32c.to_le_bytes());
        let own = crc32c::crc32c(out.get(start..).unwrap_or(&[]));
        out.extend_from_slice(&own.to_le_bytes());
    }

    /// The header that `bytes` begin with; `None` when it is none, or damaged.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let (header, own) = bytes.get(..HEADER_BYTES)?.split_last_chunk::<4>()?;
        if !header.starts_with(&RECORD) || crc32c::crc32c(header) != u32::from_le_bytes(*own) {
            return None;
        }
        let number = |at: usize| Some(u32::from_le_bytes(header.get(at..at + 4)?.try_into().ok()?));
        let block = u128::from_le_bytes(header.get(4..20)?.try_into().ok()?);
        let header = Self {
            key: CellKey {
                block: BlockId::from_bits(block),
                part: u8::try_from(number(20)?).ok()?,
                cell: number(24)?,
            },
            bytes: number(28)?,
            crc32c: number(32)?,
        };
        (header.bytes as usize <= CELL_BYTES_MAX).then_some(header)
    }
}

/// The end of a segment: where the list of its headers begins, and how long that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trailer {
    pub(super) list_at: u64,
    pub(super) records: u32,
    /// CRC-32C of the list.
    pub(super) crc32c: u32,
}

impl Trailer {
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&SEALED);
        out.extend_from_slice(&self.list_at.to_le_bytes());
        out.extend_from_slice(&self.records.to_le_bytes());
        out.extend_from_slice(&self.crc32c.to_le_bytes());
        let own = crc32c::crc32c(out.get(start..).unwrap_or(&[]));
        out.extend_from_slice(&own.to_le_bytes());
    }

    /// The trailer that `bytes` are; `None` when they are none, or damaged.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let (trailer, own) = bytes.get(..TRAILER_BYTES)?.split_last_chunk::<4>()?;
        if !trailer.starts_with(&SEALED) || crc32c::crc32c(trailer) != u32::from_le_bytes(*own) {
            return None;
        }
        let number = |at: usize| Some(u32::from_le_bytes(trailer.get(at..at + 4)?.try_into().ok()?));
        Some(Self {
            list_at: u64::from_le_bytes(trailer.get(4..12)?.try_into().ok()?),
            records: number(12)?,
            crc32c: number(16)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i11_headers_and_trailers_survive_and_no_other_bytes_pass() {
        for (block, part, cell, payload) in [
            (0, 0, 0, &b""[..]),
            (u128::MAX, 255, u32::MAX, &b"x"[..]),
            (
                0x0192_3456_789a_bcde_f012_3456_789a_bcde,
                3,
                70_000,
                &[7; 300][..],
            ),
        ] {
            let block = BlockId::from_bits(block);
            let header = Header::of(CellKey { block, part, cell }, payload).unwrap();
            let mut bytes = Vec::new();
            header.write(&mut bytes);
            assert_eq!(bytes.len(), HEADER_BYTES);
            assert_eq!(Header::read(&bytes), Some(header));
            let trailer = Trailer {
                list_at: u64::from(cell) << 8,
                records: cell,
                crc32c: 7,
            };
            let mut end = Vec::new();
            trailer.write(&mut end);
            assert_eq!(end.len(), TRAILER_BYTES);
            assert_eq!(Trailer::read(&end), Some(trailer));
            for bit in 0..HEADER_BYTES * 8 {
                let mut damaged = bytes.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Header::read(&damaged), None, "bit {bit}");
            }
            for bit in 0..TRAILER_BYTES * 8 {
                let mut damaged = end.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Trailer::read(&damaged), None, "bit {bit}");
            }
            assert_eq!(Header::read(&bytes[..HEADER_BYTES - 1]), None);
        }
        let key = CellKey::meta(BlockId::from_bits(1));
        assert_eq!(Header::of(key, &vec![0; CELL_BYTES_MAX + 1]), None);
    }
}
