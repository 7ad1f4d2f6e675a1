//! A batch as the write-ahead log keeps it: series by small ids that are bound to labels within the same segment.
//!
//! Layout (docs/formats/batch.md), little endian: `"KL" version:u8 flags:u8=0 | header | series:u32 runs:u32 (ids as runs:
//! zigzag of the distance to the id expected, length)* | frame of what is bound | frame of the content`.

use bytes::Bytes;
use koios_model::{BatchColumns, LabelsRef, SeriesHash};

use super::bytes::{Reader, section, unzigzag, write_frame, write_varint, zigzag};
use super::{BatchError, BatchHeader, VERSION, content, labels, read_start, write_header};

const MAGIC: [u8; 2] = *b"KL";
const TAG_PLACES: u8 = 3;
const TAG_HASHES: u8 = 4;
const TAG_LABELS: u8 = 5;
/// Most series of a batch: what a record of the largest size could name.
const SERIES_MAX: usize = 1 << 24;

/// Ids of a batch's series, with the labels of those that a log must be able to tell from this record on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoggedSeries {
    /// The id of each series, meant within one segment and one (partition, tenant).
    pub ids: Vec<u32>,
    /// The places of the series whose ids are bound here, ascending.
    pub places: Vec<u32>,
    /// Their references.
    pub hashes: Vec<SeriesHash>,
    /// Ends of their packed labels.
    pub label_ends: Vec<u32>,
    /// Their packed labels, one after the other.
    pub label_bytes: Vec<u8>,
}

/// A series whose id a record binds.
#[derive(Clone, Copy, Debug)]
pub struct BoundSeries<'a> {
    /// Its place in the batch.
    pub place: usize,
    /// Its id.
    pub id: u32,
    /// Its reference.
    pub hash: SeriesHash,
    /// Its labels.
    pub labels: LabelsRef<'a>,
}

impl LoggedSeries {
    /// Binds the id at a place, which must be greater than those before; `write` appends the packed labels.
    pub fn bind(&mut self, place: usize, hash: SeriesHash, write: impl FnOnce(&mut Vec<u8>)) {
        self.places.push(place as u32);
        self.hashes.push(hash);
        write(&mut self.label_bytes);
        self.label_ends.push(self.label_bytes.len() as u32);
    }

    /// Bytes of what is bound, before compression.
    pub fn memory_bytes(&self) -> usize {
        self.label_bytes.len() + self.places.len() * (size_of::<SeriesHash>() + 2 * size_of::<u64>())
    }

    /// What is bound, by place.
    pub fn bound(&self) -> impl Iterator<Item = BoundSeries<'_>> + '_ {
        let mut start = 0usize;
        let places = self.places.iter().zip(&self.hashes).zip(&self.label_ends);
        places.filter_map(move |((&place, &hash), &end)| {
            let packed = self.label_bytes.get(start..end as usize)?;
            start = end as usize;
            Some(BoundSeries {
                place: place as usize,
                id: *self.ids.get(place as usize)?,
                hash,
                labels: LabelsRef::from_trusted(packed),
            })
        })
    }

    /// Writes a record up to the content's frame, which follows as it is.
    pub(super) fn encode(&self, header: &BatchHeader) -> Vec<u8> {
        let mut out = Vec::with_capacity(160);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, 0]);
        write_header(&mut out, header);
        out.extend_from_slice(&(self.ids.len() as u32).to_le_bytes());
        let at = out.len();
        out.extend_from_slice(&[0; 4]);
        let (mut runs, mut expected) = (0u32, 0u32);
        for run in self.ids.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
            let Some(&first) = run.first() else { continue };
            write_varint(&mut out, zigzag(i64::from(first) - i64::from(expected)));
            write_varint(&mut out, run.len() as u64);
            expected = first.wrapping_add(run.len() as u32);
            runs += 1;
        }
        out[at..at + 4].copy_from_slice(&runs.to_le_bytes());
        let mut bound = Vec::new();
        if !self.places.is_empty() {
            section(&mut bound, TAG_PLACES, |o| {
                let mut last = 0;
                for &place in &self.places {
                    write_varint(o, u64::from(place - last));
                    last = place;
                }
            });
            section(&mut bound, TAG_HASHES, |o| {
                self.hashes
                    .iter()
                    .for_each(|h| o.extend_from_slice(&h.0.to_le_bytes()));
            });
            let packed = self.bound().map(|b| b.labels.packed());
            section(&mut bound, TAG_LABELS, |o| {
                labels::encode(packed.collect::<Vec<_>>().into_iter(), o);
            });
        }
        write_frame(&mut out, &bound);
        out
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, BatchError> {
        let (series, runs) = (r.u32()? as usize, r.u32()?);
        if series > SERIES_MAX {
            return Err(BatchError::TooLarge { declared: series });
        }
        let mut out = Self::default();
        let mut expected = 0i64;
        for _ in 0..runs {
            let first = expected.saturating_add(unzigzag(r.varint()?));
            let end = i64::try_from(r.varint()?).ok().and_then(|n| first.checked_add(n));
            let end = end.filter(|end| (end - first) as u64 <= (series - out.ids.len()) as u64);
            let range = u32::try_from(first)
                .ok()
                .zip(end.and_then(|e| u32::try_from(e).ok()));
            let (first, end) = range.ok_or_else(|| malformed("ids", "beyond what they may be"))?;
            out.ids.extend(first..end);
            expected = i64::from(end);
        }
        if out.ids.len() != series {
            return Err(malformed("ids", "fewer than there are series"));
        }
        let bound = r.frame()?;
        let mut r = Reader::new(&bound);
        while !r.done() {
            match r.section()? {
                (TAG_PLACES, mut s) => {
                    let mut place = 0u32;
                    while !s.done() {
                        place = place.saturating_add(s.varint_u32()?);
                        out.places.push(place);
                    }
                }
                (TAG_HASHES, mut s) => {
                    while !s.done() {
                        out.hashes.push(SeriesHash(u128::from_le_bytes(s.array()?)));
                    }
                }
                (TAG_LABELS, mut s) => (out.label_ends, out.label_bytes) = labels::decode(s.rest())?,
                (tag, _) => return Err(BatchError::unknown_section(tag)),
            }
        }
        out.check()?;
        Ok(out)
    }

    fn check(&self) -> Result<(), BatchError> {
        let bound = self.places.len();
        if self.hashes.len() != bound || self.label_ends.len() != bound {
            return Err(malformed("bound series", "columns differ in length"));
        }
        let ascending = self.places.is_sorted_by(|a, b| a < b);
        if !ascending || self.places.last().is_some_and(|p| *p as usize >= self.ids.len()) {
            return Err(malformed("bound series", "out of order, or beyond the last"));
        }
        if !self.label_ends.is_sorted_by(|a, b| a < b) || self.label_ends.first() == Some(&0) {
            return Err(malformed("bound series", "without labels"));
        }
        Ok(())
    }
}

fn malformed(column: &'static str, reason: &str) -> BatchError {
    BatchError::Column {
        column,
        reason: reason.to_owned(),
    }
}

/// A batch out of the log.
#[derive(Clone, Debug)]
pub struct LoggedBatch {
    /// Its header.
    pub header: BatchHeader,
    /// Who its samples are of.
    pub series: LoggedSeries,
    content: Bytes,
    /// Bytes of the whole record.
    pub len: usize,
}

impl LoggedBatch {
    /// Reads all but the content, which stays compressed.
    ///
    /// # Errors
    /// [`BatchError`]; arbitrary bytes are safe. There is no checksum of its own: log records have one.
    pub fn decode(record: &Bytes) -> Result<Self, BatchError> {
        let mut r = Reader::new(record);
        let header = read_start(&mut r, MAGIC)?;
        let series = LoggedSeries::decode(&mut r)?;
        let from = r.at();
        r.frame_bytes()?;
        Ok(Self {
            header,
            series,
            content: record.slice(from..r.at()),
            len: record.len(),
        })
    }

    /// Reads the header alone.
    ///
    /// # Errors
    /// [`BatchError`] when it is cut or of another format.
    pub fn peek_header(record: &[u8]) -> Result<BatchHeader, BatchError> {
        read_start(&mut Reader::new(record), MAGIC)
    }

    /// The content's frame, as it travels. It does not keep what was read with it in memory.
    pub fn content(&self) -> Bytes {
        Bytes::copy_from_slice(&self.content)
    }

    /// The content: columns whose series have neither references nor labels yet.
    ///
    /// # Errors
    /// [`BatchError`]; arbitrary bytes are safe.
    pub fn columns(&self) -> Result<BatchColumns, BatchError> {
        let raw = Reader::new(&self.content).frame()?;
        content::decode(&raw, self.series.ids.len())
    }
}
