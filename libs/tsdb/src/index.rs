//! The index: symbols and series.
//!
//! **Source**: Prometheus `tsdb/docs/format/index.md`, `tsdb/index/index.go`.

use std::sync::Arc;

use bytes::Bytes;
use koios_model::{Labels, LabelsRef, TimeRange, write_packed_bytes};

use crate::files::{Ahead, TsdbFiles};
use crate::parse::Parser;
use crate::{Error, Result};

pub(crate) const INDEX_FILE: &str = "index";
const MAGIC: u32 = 0xbaaa_d700;
const HEADER_BYTES: u64 = 5;
/// Six offsets and a checksum.
const TOC_BYTES: u64 = 6 * 8 + 4;
/// Symbols are kept in memory: those of some million series.
const SYMBOLS_BYTES_MAX: u64 = 256 << 20;
/// Bytes read at a time while they are fetched.
const SYMBOLS_STEP: u64 = 8 << 20;
/// One symbol of so many is found without going through others.
const SYMBOLS_PER_PLACE: usize = 32;
/// Largest series: a million chunks.
const SERIES_BYTES_MAX: u64 = 4 << 20;
/// Series begin at multiples of this, from version 2 on, and their reference counts in it.
const SERIES_ALIGN: u64 = 16;
/// Most labels of a series.
const LABELS_MAX: u64 = 4096;
/// Most bytes of the labels of a series: a few symbols, named again and again, would be any number.
const SERIES_LABEL_BYTES_MAX: usize = 64 << 10;

/// Where a chunk is, and when its samples are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkPlace {
    pub(crate) reference: u64,
    pub(crate) range: TimeRange,
}

/// A series as the index has it.
#[derive(Clone, Debug)]
pub(crate) struct IndexedSeries {
    /// Where it is in the file.
    pub(crate) at: u64,
    /// What tombstones call it.
    pub(crate) reference: u64,
    pub(crate) labels: Labels,
    pub(crate) chunks: Vec<ChunkPlace>,
}

/// An index that was opened: its symbols are here, its series are read one after the other.
#[derive(Debug)]
pub(crate) struct Index {
    version: u8,
    symbols: Symbols,
    /// The part of the file that holds the series.
    series: (u64, u64),
    size: u64,
}

impl Index {
    pub(crate) async fn open(files: &dyn TsdbFiles) -> Result<Self> {
        let Some(size) = files.size(INDEX_FILE).await? else {
            return Err(Error::Missing {
                file: INDEX_FILE.to_owned(),
            });
        };
        let Some(toc_at) = size.checked_sub(TOC_BYTES).filter(|at| *at >= HEADER_BYTES) else {
            return Err(Error::corrupt(
                INDEX_FILE,
                size,
                "it ends before its table of contents",
            ));
        };
        let header = files.read(INDEX_FILE, 0..HEADER_BYTES).await?;
        let mut parser = Parser::new(&header);
        if parser.be32() != Some(MAGIC) {
            return Err(Error::corrupt(
                INDEX_FILE,
                0,
                "it does not begin as an index does",
            ));
        }
        let version = match parser.take(1) {
            Some([version @ (1 | 2)]) => *version,
            other => {
                let reason = format!("its format version {other:?} is not known, only 1 and 2 are");
                return Err(Error::unsupported(INDEX_FILE, reason));
            }
        };
        let toc = Toc::read(&files.read(INDEX_FILE, toc_at..size).await?, toc_at)?;
        let symbols = Symbols::read(files, version, toc.symbols, toc_at).await?;
        Ok(Self {
            version,
            symbols,
            series: toc.series_span(toc_at),
            size,
        })
    }

    /// Size of the file.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The labels whose symbols a series names.
    fn labels(&self, at: u64, parser: &mut Parser<'_>, packed: &mut Vec<u8>) -> Result<Labels> {
        let corrupt = |reason: &str| Error::corrupt(INDEX_FILE, at, reason);
        let cut = || corrupt("a series is cut short");
        let count = parser.uvarint().ok_or_else(cut)?;
        if count > LABELS_MAX {
            return Err(Error::too_large(
                INDEX_FILE,
                at,
                "a number of labels",
                count,
                LABELS_MAX,
            ));
        }
        packed.clear();
        for _ in 0..count {
            let (name, value) = (
                parser.uvarint().ok_or_else(cut)?,
                parser.uvarint().ok_or_else(cut)?,
            );
            let symbol = |reference| self.symbols.get(reference);
            let (Some(name), Some(value)) = (symbol(name), symbol(value)) else {
                return Err(corrupt("a series names a symbol that is not there"));
            };
            // A label without a value is none.
            if !value.is_empty() {
                write_packed_bytes(packed, name, value);
            }
            if packed.len() > SERIES_LABEL_BYTES_MAX {
                let (found, limit) = (packed.len() as u64, SERIES_LABEL_BYTES_MAX as u64);
                return Err(Error::too_large(
                    INDEX_FILE,
                    at,
                    "the labels of a series",
                    found,
                    limit,
                ));
            }
        }
        let labels = LabelsRef::from_packed(packed).map_err(|e| corrupt(&e.to_string()))?;
        Ok(labels.to_labels())
    }
}

/// Offsets of sections; 0 for those that are not there.
#[derive(Debug)]
struct Toc {
    symbols: u64,
    series: u64,
    /// Label indices, their table, postings, their table.
    others: [u64; 4],
}

impl Toc {
    fn read(bytes: &[u8], at: u64) -> Result<Self> {
        let corrupt = |reason: &str| Error::corrupt(INDEX_FILE, at, reason);
        let (front, crc) = bytes
            .split_last_chunk::<4>()
            .ok_or_else(|| corrupt("its table of contents is cut short"))?;
        if crc32c::crc32c(front) != u32::from_be_bytes(*crc) {
            return Err(corrupt("its table of contents failed its checksum"));
        }
        let mut parser = Parser::new(front);
        let mut offset = || match parser.be64() {
            Some(offset) if offset <= at => Ok(offset),
            _ => Err(corrupt("its table of contents points outside of the file")),
        };
        Ok(Self {
            symbols: offset()?,
            series: offset()?,
            others: [offset()?, offset()?, offset()?, offset()?],
        })
    }

    /// From the first series to the next section.
    fn series_span(&self, toc_at: u64) -> (u64, u64) {
        if self.series == 0 {
            return (toc_at, toc_at);
        }
        let after = self
            .others
            .iter()
            .chain([&self.symbols])
            .filter(|o| **o > self.series);
        (self.series, after.min().copied().unwrap_or(toc_at))
    }
}

/// All strings.
#[derive(Debug)]
struct Symbols {
    version: u8,
    /// Where `bytes` begins in the file: version 1 refers to symbols by their offset.
    offset: u64,
    bytes: Bytes,
    count: u64,
    /// Where every so-manieth symbol is in `bytes`.
    places: Vec<u32>,
}

impl Symbols {
    async fn read(files: &dyn TsdbFiles, version: u8, at: u64, end: u64) -> Result<Self> {
        let corrupt = |reason: &str| Error::corrupt(INDEX_FILE, at, reason);
        if end.saturating_sub(at) < 12 || at < HEADER_BYTES {
            return Err(corrupt("it has no room for its symbols"));
        }
        let head = files.read(INDEX_FILE, at..at + 8).await?;
        let mut parser = Parser::new(&head);
        let (Some(len), Some(count)) = (parser.be32(), parser.be32()) else {
            return Err(corrupt("its symbols are cut short"));
        };
        let (len, count) = (u64::from(len), u64::from(count));
        if len > SYMBOLS_BYTES_MAX {
            return Err(Error::too_large(
                INDEX_FILE,
                at,
                "symbols",
                len,
                SYMBOLS_BYTES_MAX,
            ));
        }
        if len < 4 || at + 4 + len + 4 > end {
            return Err(corrupt("its symbols end outside of it"));
        }
        let mut bytes = Vec::new();
        let (mut from, until) = (at + 4, at + 4 + len + 4);
        while from < until {
            let to = until.min(from + SYMBOLS_STEP);
            bytes.extend_from_slice(&files.read(INDEX_FILE, from..to).await?);
            from = to;
        }
        let crc = bytes.split_off(bytes.len().saturating_sub(4));
        if crc != crc32c::crc32c(&bytes).to_be_bytes() {
            return Err(corrupt("its symbols failed their checksum"));
        }
        let mut parser = Parser::new(&bytes);
        let mut places = Vec::new();
        // The number of symbols, which was read.
        let _ = parser.be32();
        for i in 0..count {
            let place = parser.position();
            let read = parser
                .uvarint()
                .and_then(|len| parser.take(usize::try_from(len).ok()?));
            if read.is_none() {
                let reason = format!("symbol {i} of {count} is cut short");
                return Err(Error::corrupt(INDEX_FILE, at + 4 + place as u64, reason));
            }
            if i % SYMBOLS_PER_PLACE as u64 == 0 {
                places.push(u32::try_from(place).unwrap_or(u32::MAX));
            }
        }
        Ok(Self {
            version,
            offset: at + 4,
            bytes: bytes.into(),
            count,
            places,
        })
    }

    fn get(&self, reference: u64) -> Option<&[u8]> {
        let (from, skip) = if self.version == 1 {
            (usize::try_from(reference.checked_sub(self.offset)?).ok()?, 0)
        } else {
            if reference >= self.count {
                return None;
            }
            let reference = usize::try_from(reference).ok()?;
            let place = self.places.get(reference / SYMBOLS_PER_PLACE)?;
            (*place as usize, reference % SYMBOLS_PER_PLACE)
        };
        let mut parser = Parser::new(self.bytes.get(from..)?);
        for _ in 0..skip {
            let len = parser.uvarint()?;
            parser.take(usize::try_from(len).ok()?)?;
        }
        let len = parser.uvarint()?;
        parser.take(usize::try_from(len).ok()?)
    }
}

/// Goes through the series of an index, in label order.
#[derive(Debug)]
pub(crate) struct SeriesScan {
    files: Arc<dyn TsdbFiles>,
    index: Arc<Index>,
    at: u64,
    ahead: Ahead,
    previous: Option<Labels>,
    last_chunk: Option<u64>,
    packed: Vec<u8>,
}

impl SeriesScan {
    pub(crate) fn new(files: Arc<dyn TsdbFiles>, index: Arc<Index>) -> Self {
        Self {
            files,
            at: index.series.0,
            index,
            ahead: Ahead::default(),
            previous: None,
            last_chunk: None,
            packed: Vec::new(),
        }
    }

    /// How many bytes of series were read, and how many there are.
    pub(crate) fn progress(&self) -> (u64, u64) {
        let (start, end) = self.index.series;
        (self.at - start, end - start)
    }

    async fn bytes(&mut self, len: u64) -> Result<Bytes> {
        let end = self.index.series.1;
        self.ahead.fill(&*self.files, INDEX_FILE, self.at, len, end).await
    }

    /// The next series, checked, or `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<IndexedSeries>> {
        if self.index.version >= 2 {
            self.at = self.at.next_multiple_of(SERIES_ALIGN);
        }
        let (at, end) = (self.at, self.index.series.1);
        let corrupt = |reason: &str| Error::corrupt(INDEX_FILE, at, reason);
        if at >= end {
            self.at = end;
            return Ok(None);
        }
        let head = self.bytes(10).await?;
        let mut parser = Parser::new(&head);
        let len = parser.uvarint().ok_or_else(|| corrupt("a series is cut short"))?;
        if len == 0 {
            self.only_padding().await?;
            return Ok(None);
        }
        if len > SERIES_BYTES_MAX {
            return Err(Error::too_large(
                INDEX_FILE,
                at,
                "a series",
                len,
                SERIES_BYTES_MAX,
            ));
        }
        let from = parser.position();
        let whole = from as u64 + len + 4;
        if at + whole > end {
            return Err(corrupt("a series ends outside of its section"));
        }
        let bytes = self.bytes(whole).await?;
        let mut parser = Parser::new(bytes.get(from..).unwrap_or_default());
        // Both lie inside of what was read.
        let (Some(entry), Some(crc)) = (parser.take(len as usize), parser.be32()) else {
            return Err(corrupt("a series is cut short"));
        };
        if crc32c::crc32c(entry) != crc {
            return Err(corrupt("a series failed its checksum"));
        }
        let mut parser = Parser::new(entry);
        let labels = self.index.labels(at, &mut parser, &mut self.packed)?;
        if self.previous.as_ref().is_some_and(|previous| *previous >= labels) {
            return Err(corrupt(&format!("series {labels} is not in label order")));
        }
        let chunks = self.chunks(at, &mut parser)?;
        self.previous = Some(labels.clone());
        self.at = at + whole;
        Ok(Some(IndexedSeries {
            at,
            reference: if self.index.version >= 2 {
                at / SERIES_ALIGN
            } else {
                at
            },
            labels,
            chunks,
        }))
    }

    /// The chunks of a series. Their places ascend through the whole index, so that no chunk is read twice.
    fn chunks(&mut self, at: u64, parser: &mut Parser<'_>) -> Result<Vec<ChunkPlace>> {
        let cut = || Error::corrupt(INDEX_FILE, at, "the chunks of a series are cut short");
        let count = parser.uvarint().ok_or_else(cut)?;
        let mut chunks: Vec<ChunkPlace> = Vec::new();
        for _ in 0..count {
            let place = match chunks.last() {
                None => {
                    let min = parser.varint().ok_or_else(cut)?;
                    let max = min.wrapping_add(parser.uvarint().ok_or_else(cut)?.cast_signed());
                    ChunkPlace {
                        reference: parser.uvarint().ok_or_else(cut)?,
                        range: TimeRange::new(min, max),
                    }
                }
                // Where chunks overlap, differences are below zero and come as very large numbers.
                Some(last) => {
                    let min = last
                        .range
                        .max
                        .wrapping_add(parser.uvarint().ok_or_else(cut)?.cast_signed());
                    let max = min.wrapping_add(parser.uvarint().ok_or_else(cut)?.cast_signed());
                    ChunkPlace {
                        reference: last
                            .reference
                            .wrapping_add_signed(parser.varint().ok_or_else(cut)?),
                        range: TimeRange::new(min, max),
                    }
                }
            };
            if place.range.min > place.range.max {
                return Err(Error::corrupt(INDEX_FILE, at, "a chunk ends before it begins"));
            }
            if self.last_chunk.is_some_and(|last| last >= place.reference) {
                return Err(Error::corrupt(
                    INDEX_FILE,
                    at,
                    "chunks of series are not in order",
                ));
            }
            self.last_chunk = Some(place.reference);
            chunks.push(place);
        }
        if !parser.is_at_end() {
            return Err(Error::corrupt(
                INDEX_FILE,
                at,
                "a series goes on after its chunks",
            ));
        }
        Ok(chunks)
    }

    /// Zeros may stand between sections, and nothing else: a series that was zeroed is not the end.
    async fn only_padding(&mut self) -> Result<()> {
        let end = self.index.series.1;
        while self.at < end {
            let bytes = self.bytes(1).await?;
            if let Some(place) = bytes.iter().position(|b| *b != 0) {
                let at = self.at + place as u64;
                return Err(Error::corrupt(
                    INDEX_FILE,
                    at,
                    "something follows a series of no length",
                ));
            }
            self.at += bytes.len() as u64;
        }
        Ok(())
    }
}
