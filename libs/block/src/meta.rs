//! `meta.json`: what a block is and what its parts must look like.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use bytes::Bytes;
use koios_model::{PartitionId, TenantId, TimeRange};
use ulid::Ulid;

use crate::part_end::PartEnd;
use crate::tail::Tail;
use crate::{Error, Result};

/// The newest format version this crate writes.
pub const FORMAT_VERSION: u32 = FORMAT_TIMES;
/// The version of blocks whose series share their times, which older readers look for beside the samples.
pub(crate) const FORMAT_TIMES: u32 = 5;
/// The version of downsampled blocks, which have no samples as older readers know them.
pub(crate) const FORMAT_DOWNSAMPLED: u32 = 4;
/// The version of blocks that may have start timestamps, which older readers would lose.
pub(crate) const FORMAT_STARTS: u32 = 3;
/// The version of blocks with histograms, which older readers would miss.
pub(crate) const FORMAT_HISTOGRAMS: u32 = 2;
/// The version of blocks of floats alone.
pub(crate) const FORMAT_FLOATS: u32 = 1;
/// Name of the metadata part.
pub const META_PART: &str = "meta.json";
/// Name of the part with one row per series.
pub const SERIES_PART: &str = "series.parquet";
/// Name of the part with one row per sample.
pub const SAMPLES_PART: &str = "samples.parquet";
/// Name of the part with the times of samples.
pub const TIMES_PART: &str = "times.parquet";

/// Name of the part of a downsampled block with what is kept of floats, 5 minutes at a time.
pub const SAMPLES_5M_PART: &str = "samples-5m.parquet";
/// The same, an hour at a time.
pub const SAMPLES_1H_PART: &str = "samples-1h.parquet";
/// The resolutions that there are: 5 minutes, …
pub const RESOLUTION_5M_MS: i64 = 300_000;
/// … and an hour.
pub const RESOLUTION_1H_MS: i64 = 3_600_000;

/// The part that holds what is known of floats in a block of a resolution; `None` for one that there is not.
pub(crate) fn samples_part(resolution_ms: i64) -> Option<&'static str> {
    match resolution_ms {
        0 => Some(SAMPLES_PART),
        RESOLUTION_5M_MS => Some(SAMPLES_5M_PART),
        RESOLUTION_1H_MS => Some(SAMPLES_1H_PART),
        _ => None,
    }
}

/// Name of the part with one row per native histogram; only where there are any.
pub const HISTOGRAMS_PART: &str = "histograms.parquet";
/// Name of the part with one row per exemplar; only where there are any.
pub const EXEMPLARS_PART: &str = "exemplars.parquet";

/// Size of the cells that are checksummed one by one: small enough that a query for one series reads little beside its
/// pages, large enough that the checksums of a block stay in the kilobytes.
pub const CELL_BYTES: u64 = 64 * 1024;
/// Largest `meta.json` accepted: cells of 64 GB of parts, and room.
const META_BYTES_MAX: usize = 16 << 20;
/// Most parts in a block.
const PARTS_MAX: usize = 64;

/// A block's name: a ULID, so names sort by the time of writing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(Ulid);

impl BlockId {
    /// A new name from the time and fresh randomness, both injected by the caller.
    pub fn new(now_ms: i64, random: u128) -> Self {
        Self(Ulid::from_parts(u64::try_from(now_ms).unwrap_or(0), random))
    }

    /// When the block was named, milliseconds since the epoch, by its writer's clock.
    pub fn time_ms(&self) -> i64 {
        i64::try_from(self.0.timestamp_ms()).unwrap_or(i64::MAX)
    }

    /// The name as a number; names sort as these do.
    pub fn to_bits(self) -> u128 {
        self.0.0
    }

    /// The name that a number is.
    pub fn from_bits(bits: u128) -> Self {
        Self(Ulid(bits))
    }
}

impl From<Ulid> for BlockId {
    fn from(ulid: Ulid) -> Self {
        Self(ulid)
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for BlockId {
    type Err = ulid::DecodeError;

    fn from_str(s: &str) -> std::result::Result<Self, Self::Err> {
        Ulid::from_string(s).map(Self)
    }
}

impl serde::Serialize for BlockId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for BlockId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        let s = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        s.parse().map_err(serde::de::Error::custom)
    }
}

/// One part as `meta.json` describes it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PartMeta {
    /// File name inside the block.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// CRC-32C of the whole part.
    pub crc32c: u32,
    /// Rows, for Parquet parts.
    pub rows: u64,
    /// CRC-32C of each [`CELL_BYTES`] cell, the last one shorter; so any range is checked without reading the rest.
    #[serde(with = "cells_as_hex")]
    pub cells: Vec<u32>,
    /// The same of smaller cells, of what few bytes here and there are read of; absent where there is no such thing, and in blocks of
    /// earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub small_cells: Option<SmallCells>,
    /// Its end, with which nobody has to fetch that; absent where the part is small or its end large, and in blocks of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<PartEnd>,
}

/// Checksums of the small cells of a part, which go up to its end.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SmallCells {
    /// Where the first begins: a larger one would begin there, too.
    pub from: u64,
    /// Size of each but the last: a power of two.
    pub bytes: u64,
    /// CRC-32C of each.
    #[serde(with = "cells_as_hex")]
    pub crc32c: Vec<u32>,
}

impl SmallCells {
    /// Why they cannot be those of a part of a size.
    fn flaw(&self, size: u64) -> Option<String> {
        let Self { from, bytes, crc32c } = self;
        if !from.is_multiple_of(CELL_BYTES) || *from >= size || !is_small(*bytes) {
            return Some(format!(
                "small cells of {bytes} bytes from byte {from} of its {size}"
            ));
        }
        let cells = (size - from).div_ceil(*bytes);
        (crc32c.len() as u64 != cells)
            .then(|| format!("{} checksums of small cells, it needs {cells}", crc32c.len()))
    }
}

/// Whether small cells may have so many bytes.
pub(crate) fn is_small(bytes: u64) -> bool {
    bytes.is_power_of_two() && (1 << 10..CELL_BYTES).contains(&bytes)
}

/// The cells that it is read by: small ones, and before them others. They are numbered from 0.
impl PartMeta {
    pub(crate) fn of(name: &str, rows: u64, bytes: &[u8]) -> Self {
        Self {
            name: name.to_owned(),
            bytes: bytes.len() as u64,
            crc32c: crc32c::crc32c(bytes),
            rows,
            cells: checksums(bytes, CELL_BYTES),
            small_cells: None,
            end: None,
        }
    }

    /// The same with small cells from a place on, a multiple of [`CELL_BYTES`], of the part with these bytes.
    #[must_use]
    pub(crate) fn with_small_cells(mut self, from: u64, size: u64, bytes: &[u8]) -> Self {
        let rest = usize::try_from(from).ok().and_then(|from| bytes.get(from..));
        self.small_cells = rest.map(|rest| SmallCells {
            from,
            bytes: size,
            crc32c: checksums(rest, size),
        });
        self
    }

    /// Its end that is fetched at once: whole cells, or what of it is known.
    pub(crate) fn tail(&self) -> Range<u64> {
        if let Some(end) = &self.end {
            return end.from..self.bytes;
        }
        let end_cell_bytes = self.small_cells.as_ref().map(|small| small.bytes);
        let tail = Tail::of(&self.name, self.bytes, self.rows, end_cell_bytes);
        // Page indexes are in small cells, if there are any: what comes before is not worth one that is not.
        let first = self.cell_range(self.cell_at(tail.start));
        match first.start < tail.start {
            true => first.end..tail.end,
            false => tail,
        }
    }

    /// The cell with a byte.
    fn cell_at(&self, byte: u64) -> u64 {
        match &self.small_cells {
            Some(small) if byte >= small.from => {
                small.from / CELL_BYTES + (byte - small.from) / small.bytes.max(1)
            }
            _ => byte / CELL_BYTES,
        }
    }

    /// The cells that some bytes are in.
    pub(crate) fn cells_of(&self, bytes: &Range<u64>) -> Range<u64> {
        let end = bytes.end.checked_sub(1).map_or(0, |last| self.cell_at(last) + 1);
        self.cell_at(bytes.start)..end
    }

    /// The bytes of a cell.
    pub(crate) fn cell_range(&self, cell: u64) -> Range<u64> {
        let (first, from, size) = match &self.small_cells {
            Some(small) if self.has_small(cell) => (small.from / CELL_BYTES, small.from, small.bytes),
            _ => (0, 0, CELL_BYTES),
        };
        let start = from.saturating_add((cell - first).saturating_mul(size));
        start.min(self.bytes)..start.saturating_add(size).min(self.bytes)
    }

    /// Whether a cell is a small one.
    pub(crate) fn has_small(&self, cell: u64) -> bool {
        let small = self.small_cells.as_ref();
        small.is_some_and(|small| cell >= small.from / CELL_BYTES)
    }

    /// CRC-32C of a cell.
    pub(crate) fn checksum(&self, cell: u64) -> Option<u32> {
        let (cells, first) = match &self.small_cells {
            Some(small) if self.has_small(cell) => (&small.crc32c, small.from / CELL_BYTES),
            _ => (&self.cells, 0),
        };
        let place = usize::try_from(cell - first).ok()?;
        cells.get(place).copied()
    }
}

fn checksums(bytes: &[u8], size: u64) -> Vec<u32> {
    let size = usize::try_from(size).unwrap_or(usize::MAX).max(1);
    bytes.chunks(size).map(crc32c::crc32c).collect()
}

/// A part as the manifest lists it: enough to fetch and check it whole.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PartSummary {
    /// File name inside the block.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// CRC-32C of the whole part.
    pub crc32c: u32,
    /// Size of the cells at its end, where these are small ones: see [`PartMeta::small_cells`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_cell_bytes: Option<u64>,
    /// Whether `meta.json` has its end, so that nobody fetches it beside that: see [`PartMeta::end`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub end_in_meta: bool,
}

/// `meta.json`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BlockMeta {
    /// Format version.
    pub format: u32,
    /// The block's name.
    pub block: BlockId,
    /// Whose samples.
    pub tenant: TenantId,
    /// The partitions whose samples it holds, ascending.
    pub partitions: Vec<PartitionId>,
    /// The epoch its writer acted under.
    pub epoch: u64,
    /// Times of the first and the last sample or exemplar; of blocks of earlier versions of the samples alone.
    pub range: TimeRange,
    /// The window it was cut for; samples lie inside it.
    pub window: TimeRange,
    /// 0 for samples as sent, else the width of the downsampling buckets in milliseconds.
    pub resolution_ms: i64,
    /// 0 as cut from a head, one more for each compaction.
    pub level: u32,
    /// Which slice of the tenant's series it holds: `(index, of)` by the block-split hash; `(0, 1)` for all.
    pub split: (u32, u32),
    /// Whether samples may have start timestamps; of format 3 they may although this does not say so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub starts: bool,
    /// How many series.
    pub series: u64,
    /// How many samples.
    pub samples: u64,
    /// The parts, without `meta.json`.
    pub parts: Vec<PartMeta>,
    /// The blocks it was merged from, ascending; empty for a block cut from a head.
    pub sources: Vec<BlockId>,
    /// The one block that it was written from again without some of what that has, where `sources` are those of that block; earlier
    /// versions do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrites: Option<BlockId>,
    /// Tombstones made at this manifest version or before are applied.
    pub clean_up_to: u64,
    /// Software and version that wrote it.
    pub writer: String,
    /// The bytes that it was read from, if it was.
    #[serde(skip)]
    pub(crate) read_from: ReadFrom,
}

/// Size and CRC-32C of the `meta.json` that was read; none of one that is to be written. Another version of the program may have written
/// what this one does not know, and leaves out where it writes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ReadFrom(Option<(u64, u32)>);

/// What was read says the same as what was written.
impl PartialEq for ReadFrom {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for ReadFrom {}

impl BlockMeta {
    /// The bytes of `meta.json`.
    pub fn to_json(&self) -> Bytes {
        // The types hold nothing JSON cannot; an empty document would be refused by every reader.
        Bytes::from(serde_json::to_vec(self).unwrap_or_default())
    }

    /// Whether samples may have start timestamps; a block that this one is merged into must be able to, too.
    pub fn may_have_starts(&self) -> bool {
        self.resolution_ms == 0 && (self.starts || self.format == FORMAT_STARTS)
    }

    /// Whether the times of samples are in a part of their own.
    pub(crate) fn has_times_part(&self) -> bool {
        self.resolution_ms == 0 && self.format >= FORMAT_TIMES
    }

    /// Reads `meta.json` of the block `expected`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it is malformed, of another block, or contradicts itself; [`Error::Version`] when it is
    /// newer than this reader.
    pub fn from_json(expected: BlockId, json: &[u8]) -> Result<Self> {
        let corrupt = |reason: String| Error::corrupt(expected, META_PART, reason);
        if json.len() > META_BYTES_MAX {
            return Err(corrupt(format!("{} bytes, limit {META_BYTES_MAX}", json.len())));
        }
        #[derive(serde::Deserialize)]
        struct Versioned {
            format: u32,
        }
        let Versioned { format } = serde_json::from_slice(json).map_err(|e| corrupt(e.to_string()))?;
        if format == 0 || format > FORMAT_VERSION {
            return Err(Error::Version {
                block: expected,
                found: format,
                supported: FORMAT_VERSION,
            });
        }
        let mut meta: Self = serde_json::from_slice(json).map_err(|e| corrupt(e.to_string()))?;
        meta.read_from = ReadFrom(Some((json.len() as u64, crc32c::crc32c(json))));
        if meta.block != expected {
            return Err(corrupt(format!("names block {}", meta.block)));
        }
        if meta.parts.len() > PARTS_MAX {
            return Err(corrupt(format!("{} parts, limit {PARTS_MAX}", meta.parts.len())));
        }
        for part in &meta.parts {
            let cells = part.bytes.div_ceil(CELL_BYTES);
            if part.cells.len() as u64 != cells {
                return Err(corrupt(format!(
                    "part {} has {} cell checksums, its {} bytes need {cells}",
                    part.name,
                    part.cells.len(),
                    part.bytes
                )));
            }
            if let Some(flaw) = part.small_cells.as_ref().and_then(|s| s.flaw(part.bytes)) {
                return Err(corrupt(format!("part {} has {flaw}", part.name)));
            }
            if let Some(flaw) = part.end.as_ref().and_then(|end| end.flaw(part.bytes)) {
                return Err(corrupt(format!("part {} has {flaw}", part.name)));
            }
        }
        Ok(meta)
    }

    /// The part called `name`.
    pub fn part(&self, name: &str) -> Option<&PartMeta> {
        self.parts.iter().find(|p| p.name == name)
    }

    /// All parts, `meta.json` last, as a manifest lists them: that as it was read, or as it is written where it was not.
    pub fn summaries(&self) -> Vec<PartSummary> {
        let (bytes, crc32c) = self.read_from.0.unwrap_or_else(|| {
            let json = self.to_json();
            (json.len() as u64, crc32c::crc32c(&json))
        });
        let mut all: Vec<_> = self
            .parts
            .iter()
            .map(|p| PartSummary {
                name: p.name.clone(),
                bytes: p.bytes,
                crc32c: p.crc32c,
                end_cell_bytes: p.small_cells.as_ref().map(|small| small.bytes),
                end_in_meta: p.end.is_some(),
            })
            .collect();
        all.push(PartSummary {
            name: META_PART.to_owned(),
            bytes,
            crc32c,
            end_cell_bytes: None,
            end_in_meta: false,
        });
        all
    }
}

/// Eight hex digits per cell, most significant first, without separators.
mod cells_as_hex {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(cells: &[u32], s: S) -> Result<S::Ok, S::Error> {
        use std::fmt::Write;
        let mut hex = String::with_capacity(cells.len() * 8);
        for c in cells {
            // Writing to a string cannot fail.
            let _ = write!(hex, "{c:08x}");
        }
        s.serialize_str(&hex)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u32>, D::Error> {
        let hex = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        let bad = || serde::de::Error::custom("cell checksums are not groups of eight hex digits");
        if hex.len() % 8 != 0 {
            return Err(bad());
        }
        hex.as_bytes()
            .chunks_exact(8)
            .map(|c| {
                let s = std::str::from_utf8(c).map_err(|_| bad())?;
                if !s.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(bad());
                }
                u32::from_str_radix(s, 16).map_err(|_| bad())
            })
            .collect()
    }
}
