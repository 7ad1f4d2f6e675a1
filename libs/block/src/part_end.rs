//! The end of a part as `meta.json` repeats it: whoever has that needs no request to learn where in the part anything is.
//!
//! What stands there are the page indexes and the footer, or the footer alone where the indexes are many: of these a read needs those of
//! a row group or two, and fetches them by themselves.

use std::io;
use std::ops::Range;

use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaDataReader};

/// Most bytes that page indexes and footer may take in `meta.json` before they are written as text there: it is read of every block that
/// may hold something, and most hold nothing that is looked for.
const WHOLE_BYTES_MAX: usize = 12 << 10;
/// The same of a footer alone.
const FOOTER_BYTES_MAX: usize = 24 << 10;
/// Most bytes that an end may have once it is decompressed.
const END_BYTES_MAX: u64 = 4 << 20;
/// The length of a footer, and the magic that ends a Parquet file.
const FOOTER_END_BYTES: usize = 8;
/// How hard ends are compressed: they are small, and read much more often than written.
const ZSTD_LEVEL: i32 = 9;
/// Where a frame of zstd, after its magic, says what it has, …
const FRAME_FLAGS_AT: usize = 4;
/// … and the bit for a checksum of its content.
const FRAME_HAS_CHECKSUM: u8 = 1 << 2;
/// What compresses to a twelfth at best is not worth the attempt where it is larger than so many times what it may take.
const COMPRESSED_TO: u64 = 12;

/// Where the last bytes of a part begin.
pub(crate) struct Ends {
    /// Its page indexes, if it has any; they go up to its footer.
    pub(crate) indexes: Option<u64>,
    /// Its footer.
    pub(crate) footer: u64,
}

/// Where the end of a part begins.
pub(crate) fn ends(bytes: &Bytes) -> Option<Ends> {
    let reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Skip);
    let metadata = reader.parse_and_finish(bytes).ok()?;
    let columns = metadata.row_groups().iter().flat_map(|group| group.columns());
    let offsets = columns.flat_map(|column| [column.column_index_offset(), column.offset_index_offset()]);
    let indexes = offsets.flatten().min().and_then(|at| u64::try_from(at).ok());
    // The length of the footer, and a magic, are its last bytes.
    let end = bytes.len().checked_sub(FOOTER_END_BYTES)?;
    let length = bytes.get(end..)?.first_chunk().copied()?;
    let footer = (end as u64).checked_sub(u64::from(u32::from_le_bytes(length)))?;
    Some(Ends { indexes, footer })
}

/// The end of a part from a place on, compressed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PartEnd {
    /// Where it begins.
    pub from: u64,
    /// Its bytes, as one frame of zstd.
    #[serde(with = "as_base64")]
    pub zstd: Bytes,
}

impl PartEnd {
    /// As much of the end of a part as is worth it, if any is.
    pub(crate) fn of(part: &Bytes, ends: &Ends) -> Option<Self> {
        let from = |from: u64, most: usize| {
            let bytes = part.get(usize::try_from(from).ok()?..)?;
            if bytes.len() as u64 > END_BYTES_MAX.min(most as u64 * COMPRESSED_TO) {
                return None;
            }
            let zstd = Bytes::from(compressed(bytes).ok()?);
            (zstd.len() <= most).then_some(Self { from, zstd })
        };
        let whole = ends.indexes.and_then(|indexes| from(indexes, WHOLE_BYTES_MAX));
        whole.or_else(|| from(ends.footer, FOOTER_BYTES_MAX))
    }

    /// Why it cannot be that of a part of a size.
    pub(crate) fn flaw(&self, size: u64) -> Option<String> {
        let is_sound = size
            .checked_sub(self.from)
            .is_some_and(|length| (1..=END_BYTES_MAX).contains(&length));
        (!is_sound).then(|| format!("an end from byte {} of its {size}", self.from))
    }

    /// The bytes of ranges of the part, which has `size` bytes; `None` where one of them begins before the end does, or that is
    /// no such end, or one of which nobody can say whether it is still what was written.
    ///
    /// A manifest has the checksum of `meta.json`, but one that was rebuilt has that of what was found.
    pub(crate) fn read(&self, size: u64, ranges: &[Range<u64>]) -> Option<Vec<Bytes>> {
        if ranges.iter().any(|range| range.start < self.from) || !self.has_checksum() {
            return None;
        }
        let all = self.bytes(size)?;
        let place = |at: u64| usize::try_from(at.checked_sub(self.from)?).ok();
        let slice = |range: &Range<u64>| {
            let range = place(range.start)?..place(range.end)?;
            (range.start <= range.end && range.end <= all.len()).then(|| all.slice(range))
        };
        ranges.iter().map(slice).collect()
    }

    fn has_checksum(&self) -> bool {
        let flags = self.zstd.get(FRAME_FLAGS_AT).copied().unwrap_or(0);
        flags & FRAME_HAS_CHECKSUM != 0
    }

    /// All of it, with a checksum or without.
    pub(crate) fn bytes(&self, size: u64) -> Option<Bytes> {
        let length = size
            .checked_sub(self.from)
            .filter(|&length| length <= END_BYTES_MAX)?;
        let length = usize::try_from(length).ok()?;
        let bytes = zstd::bulk::decompress(&self.zstd, length).ok()?;
        (bytes.len() == length).then(|| bytes.into())
    }
}

/// One frame of zstd, with a checksum.
fn compressed(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL)?;
    compressor.include_checksum(true)?;
    compressor.compress(bytes)
}

mod as_base64 {
    use base64::Engine as _;

    use super::{Bytes, STANDARD};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &Bytes, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Bytes, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        let bytes = STANDARD
            .decode(text.as_bytes())
            .map_err(serde::de::Error::custom)?;
        Ok(bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(from: u64, bytes: &[u8]) -> PartEnd {
        PartEnd {
            from,
            zstd: compressed(bytes).unwrap().into(),
        }
    }

    #[test]
    fn i11_no_bit_of_an_end_that_flips_makes_a_reader_take_other_bytes() {
        // Some of it compresses, some does not.
        let byte = |i: u32| {
            if i.is_multiple_of(3) {
                i.wrapping_mul(2_654_435_761) >> 24
            } else {
                i / 100
            }
        };
        let bytes: Vec<u8> = (0..2_000).map(|i| byte(i) as u8).collect();
        let size = 100_000;
        let from = size - bytes.len() as u64;
        let footer = [size - 8..size, from + 700..size - 8];
        let right = end(from, &bytes).read(size, &footer).unwrap();
        let json = serde_json::to_vec(&end(from, &bytes)).unwrap();
        let mut others = 0;
        for bit in 0..json.len() * 8 {
            let mut json = json.clone();
            json[bit / 8] ^= 1 << (bit % 8);
            let Ok(end) = serde_json::from_slice::<PartEnd>(&json) else {
                continue;
            };
            if end.flaw(size).is_none() {
                let read = end.read(size, &footer);
                assert!(read.is_none_or(|read| read == right), "bit {bit}");
                others += 1;
            }
        }
        assert!(others > 1_000, "{others} ends");
    }

    #[test]
    fn i11_an_end_without_a_checksum_is_not_read() {
        let bytes = b"0123456789";
        let end = PartEnd {
            from: 90,
            zstd: zstd::bulk::compress(bytes, 1).unwrap().into(),
        };
        assert_eq!(end.read(100, &[93..95; 1]), None);
        // Who compares it with the part does.
        assert_eq!(end.bytes(100).as_deref(), Some(&bytes[..]));
    }

    #[test]
    fn ranges_come_out_of_an_end_that_holds_them_and_out_of_no_other() {
        let end = end(90, b"0123456789");
        let read = |ranges: &[Range<u64>]| end.read(100, ranges);
        let all = read(&[90..100, 93..95, 100..100]).unwrap();
        assert_eq!(all, [&b"0123456789"[..], b"34", b""]);
        assert_eq!(read(&[89..95; 1]), None);
        assert_eq!(read(&[95..101; 1]), None);
        // Of a part of another size it is no end.
        assert_eq!(end.read(99, &[93..95; 1]), None);
        assert_eq!(end.read(101, &[93..95; 1]), None);
        assert_eq!(end.read(10, &[93..95; 1]), None);
        let garbage = PartEnd {
            from: 90,
            zstd: Bytes::from_static(b"no frame"),
        };
        assert_eq!(garbage.read(100, &[93..95; 1]), None);
    }

    #[test]
    fn i12_an_end_that_claims_much_is_refused() {
        assert_eq!(end(90, b"").flaw(100), None);
        for (from, size) in [
            (100, 100),
            (101, 100),
            (u64::MAX, 100),
            (0, u64::MAX),
            (1, END_BYTES_MAX + 2),
        ] {
            assert!(end(from, b"").flaw(size).is_some(), "{from} of {size}");
            assert_eq!(end(from, &[0; 1 << 16]).bytes(size), None);
        }
    }
}
