//! The batch: header and columns, encoded once for the wire and the write-ahead log alike.
//!
//! Layout (docs/formats/batch.md), little endian:
//! `"KB" version:u8=1 flags:u8=0 | stream:u128 sequence:u64 settled_below:u64 partition:u32 epoch:u64 admission_ms:i64 |
//! tenant_len:u8 tenant | raw_len:u32 zstd_len:u32 zstd | crc32c:u32` where zstd holds the sections
//! `tag:u8 len:u32 bytes` and the checksum covers everything before it.

use std::sync::OnceLock;

use bytes::Bytes;
use koios_model::{
    BatchColumns, BatchExemplar, BatchHistogram, Exemplar, LabelsRef, Metadata, PartitionId, SeriesHash,
    StreamId, TenantId,
};

/// Largest decoded batch, bytes.
pub const DECODED_BYTES_MAX: usize = 128 << 20;

const MAGIC: [u8; 2] = *b"KB";
const VERSION: u8 = 1;
const ZSTD_LEVEL: i32 = 1;

const TAG_HASHES: u8 = 1;
const TAG_LABEL_LENS: u8 = 2;
const TAG_LABEL_BYTES: u8 = 3;
const TAG_SAMPLE_COUNTS: u8 = 4;
const TAG_TIMESTAMPS: u8 = 5;
const TAG_VALUES: u8 = 6;
const TAG_METADATA: u8 = 7;
const TAG_HISTOGRAM_SERIES: u8 = 8;
const TAG_HISTOGRAMS: u8 = 9;
const TAG_EXEMPLARS: u8 = 10;

/// What identifies a batch and the circumstances it was admitted under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// The tenant.
    pub tenant: TenantId,
    /// The distributor's stream.
    pub stream: StreamId,
    /// Position in the stream, per (partition, tenant), from 0.
    pub sequence: u64,
    /// Every lower sequence is acknowledged or given up: below it a missing one may arrive only by repair.
    pub settled_below: u64,
    /// The partition.
    pub partition: PartitionId,
    /// The partition's epoch under which the batch was sent.
    pub epoch: u64,
    /// When it was admitted, milliseconds; limits and windows were counted from it.
    pub admission_ms: i64,
}

/// A batch with its encoded form, made at most once.
#[derive(Debug)]
pub struct Batch {
    header: BatchHeader,
    columns: BatchColumns,
    encoded: OnceLock<Bytes>,
}

/// Why bytes are no batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// They end too early.
    #[error("batch ends early at byte {at}")]
    Truncated {
        /// Where.
        at: usize,
    },
    /// Another format.
    #[error("not a batch of version {VERSION}: starts with {start:02x?}")]
    Format {
        /// The first bytes.
        start: Vec<u8>,
    },
    /// The checksum differs.
    #[error("batch checksum is {got:08x}, its bytes say {want:08x}")]
    Checksum {
        /// Computed.
        got: u32,
        /// Stored.
        want: u32,
    },
    /// It declares too much.
    #[error("batch declares {declared} decoded bytes, limit {DECODED_BYTES_MAX}")]
    TooLarge {
        /// Declared length.
        declared: usize,
    },
    /// A column is malformed.
    #[error("batch column {column} is malformed: {reason}")]
    Column {
        /// Which.
        column: &'static str,
        /// Why.
        reason: String,
    },
}

impl Batch {
    /// Whether it is best encoded on the caller's thread: handing a small one over costs more.
    pub fn is_encoded_inline(&self) -> bool {
        const SAMPLES_MAX: usize = 512;
        const HISTOGRAMS_MAX: usize = 32;
        let c = &self.columns;
        c.timestamps.len() + c.exemplars.len() < SAMPLES_MAX && c.histograms.len() < HISTOGRAMS_MAX
    }

    /// A new batch.
    pub fn new(header: BatchHeader, columns: BatchColumns) -> Self {
        Self {
            header,
            columns,
            encoded: OnceLock::new(),
        }
    }

    /// The header.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The content.
    pub fn columns(&self) -> &BatchColumns {
        &self.columns
    }

    /// The encoded form; made on first use, shared afterwards.
    pub fn encoded(&self) -> &Bytes {
        self.encoded.get_or_init(|| encode(&self.header, &self.columns))
    }

    /// Decodes and checks a batch.
    ///
    /// # Errors
    /// [`BatchError`]; arbitrary bytes are safe.
    pub fn decode(bytes: Bytes) -> Result<Self, BatchError> {
        let (header, columns) = decode(&bytes)?;
        Ok(Self {
            header,
            columns,
            encoded: OnceLock::from(bytes),
        })
    }

    /// Reads the header alone, without checking the checksum or decompressing.
    ///
    /// # Errors
    /// [`BatchError`] when the header is cut or of another format.
    pub fn peek_header(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        read_header(&mut Reader { bytes, at: 0 })
    }
}

fn encode(h: &BatchHeader, c: &BatchColumns) -> Bytes {
    let raw = encode_sections(c);
    // Compression to memory fails only for lack of memory; storing raw bytes as one incompressible frame is then moot.
    let packed = zstd::bulk::compress(&raw, ZSTD_LEVEL).unwrap_or_default();
    let tenant = h.tenant.as_str().as_bytes();
    let mut out = Vec::with_capacity(packed.len() + tenant.len() + 72);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[VERSION, 0]);
    out.extend_from_slice(&h.stream.0.to_le_bytes());
    out.extend_from_slice(&h.sequence.to_le_bytes());
    out.extend_from_slice(&h.settled_below.to_le_bytes());
    out.extend_from_slice(&h.partition.0.to_le_bytes());
    out.extend_from_slice(&h.epoch.to_le_bytes());
    out.extend_from_slice(&h.admission_ms.to_le_bytes());
    out.push(tenant.len() as u8);
    out.extend_from_slice(tenant);
    out.extend_from_slice(&(raw.len() as u32).to_le_bytes());
    out.extend_from_slice(&(packed.len() as u32).to_le_bytes());
    out.extend_from_slice(&packed);
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out.into()
}

fn section(out: &mut Vec<u8>, tag: u8, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let len = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&len.to_le_bytes());
}

fn encode_sections(c: &BatchColumns) -> Vec<u8> {
    let mut out = Vec::with_capacity(c.hashes.len() * 18 + c.label_bytes.len() + c.values.len() * 10 + 64);
    section(&mut out, TAG_HASHES, |o| {
        c.hashes
            .iter()
            .for_each(|h| o.extend_from_slice(&h.0.to_le_bytes()))
    });
    if !c.label_ends.is_empty() {
        section(&mut out, TAG_LABEL_LENS, |o| {
            let mut start = 0;
            for &end in &c.label_ends {
                write_varint(o, u64::from(end.saturating_sub(start)));
                start = end;
            }
        });
        section(&mut out, TAG_LABEL_BYTES, |o| o.extend_from_slice(&c.label_bytes));
    }
    section(&mut out, TAG_SAMPLE_COUNTS, |o| {
        c.sample_counts
            .iter()
            .for_each(|&n| write_varint(o, u64::from(n)))
    });
    section(&mut out, TAG_TIMESTAMPS, |o| {
        let mut last = 0i64;
        for &t in &c.timestamps {
            write_varint(o, zigzag(t.wrapping_sub(last)));
            last = t;
        }
    });
    section(&mut out, TAG_VALUES, |o| {
        c.values
            .iter()
            .for_each(|v| o.extend_from_slice(&v.to_bits().to_le_bytes()))
    });
    if !c.histograms.is_empty() {
        section(&mut out, TAG_HISTOGRAM_SERIES, |o| {
            c.histograms
                .iter()
                .for_each(|h| write_varint(o, u64::from(h.series)))
        });
        let packed = koios_chunk::pack_histograms(c.histograms.iter().map(|h| (h.t, &h.histogram)));
        section(&mut out, TAG_HISTOGRAMS, |o| o.extend_from_slice(&packed));
    }
    if !c.exemplars.is_empty() {
        section(&mut out, TAG_EXEMPLARS, |o| {
            for BatchExemplar { series, exemplar } in &c.exemplars {
                write_varint(o, u64::from(*series));
                write_varint(o, zigzag(exemplar.t));
                o.extend_from_slice(&exemplar.v.to_bits().to_le_bytes());
                write_varint(o, exemplar.labels.packed().len() as u64);
                o.extend_from_slice(exemplar.labels.packed());
            }
        });
    }
    if !c.metadata.is_empty() {
        section(&mut out, TAG_METADATA, |o| {
            for (metric, m) in &c.metadata {
                for s in [metric, &m.kind, &m.help, &m.unit] {
                    write_varint(o, s.len() as u64);
                    o.extend_from_slice(s.as_bytes());
                }
            }
        });
    }
    out
}

fn zigzag(v: i64) -> u64 {
    ((v << 1) ^ (v >> 63)) as u64
}

fn unzigzag(v: u64) -> i64 {
    ((v >> 1) as i64) ^ -((v & 1) as i64)
}

fn write_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push((v as u8) | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], BatchError> {
        let end = self
            .at
            .checked_add(n)
            .ok_or(BatchError::Truncated { at: self.at })?;
        let out = self
            .bytes
            .get(self.at..end)
            .ok_or(BatchError::Truncated { at: self.at })?;
        self.at = end;
        Ok(out)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BatchError> {
        let at = self.at;
        self.take(N)?.try_into().map_err(|_| BatchError::Truncated { at })
    }

    fn u32(&mut self) -> Result<u32, BatchError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, BatchError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn varint(&mut self) -> Result<u64, BatchError> {
        let mut v = 0u64;
        for shift in (0..64).step_by(7) {
            let [b] = self.array()?;
            v |= u64::from(b & 0x7f) << shift;
            if b < 0x80 {
                return Ok(v);
            }
        }
        Err(BatchError::Truncated { at: self.at })
    }

    fn string(&mut self, column: &'static str) -> Result<String, BatchError> {
        let len = usize::try_from(self.varint()?).map_err(|_| BatchError::Truncated { at: self.at })?;
        let bytes = self.take(len)?;
        String::from_utf8(bytes.to_vec()).map_err(|e| BatchError::Column {
            column,
            reason: e.to_string(),
        })
    }

    /// The place of a series.
    fn place(&mut self) -> Result<u32, BatchError> {
        let place = self.varint()?;
        u32::try_from(place).map_err(|_| BatchError::Truncated { at: self.at })
    }

    fn exemplar(&mut self) -> Result<BatchExemplar, BatchError> {
        let series = self.place()?;
        let (t, v) = (unzigzag(self.varint()?), f64::from_bits(self.u64()?));
        let len = usize::try_from(self.varint()?).map_err(|_| BatchError::Truncated { at: self.at })?;
        let labels = LabelsRef::from_packed(self.take(len)?).map_err(|e| BatchError::Column {
            column: "exemplars",
            reason: e.to_string(),
        })?;
        let labels = labels.to_labels();
        Ok(BatchExemplar {
            series,
            exemplar: Exemplar { t, v, labels },
        })
    }

    fn done(&self) -> bool {
        self.at >= self.bytes.len()
    }
}

fn read_header(r: &mut Reader<'_>) -> Result<BatchHeader, BatchError> {
    let start: [u8; 4] = r.array()?;
    if start[..2] != MAGIC || start[2] != VERSION {
        return Err(BatchError::Format {
            start: start.to_vec(),
        });
    }
    let stream = StreamId(u128::from_le_bytes(r.array()?));
    let (sequence, settled_below) = (r.u64()?, r.u64()?);
    let partition = PartitionId(r.u32()?);
    let (epoch, admission_ms) = (r.u64()?, i64::from_le_bytes(r.array()?));
    let [tenant_len] = r.array()?;
    let tenant = std::str::from_utf8(r.take(usize::from(tenant_len))?).unwrap_or("");
    let tenant = TenantId::new(tenant).map_err(|e| BatchError::Column {
        column: "tenant",
        reason: e.to_string(),
    })?;
    Ok(BatchHeader {
        tenant,
        stream,
        sequence,
        settled_below,
        partition,
        epoch,
        admission_ms,
    })
}

fn decode(bytes: &[u8]) -> Result<(BatchHeader, BatchColumns), BatchError> {
    let body_len = bytes
        .len()
        .checked_sub(4)
        .ok_or(BatchError::Truncated { at: bytes.len() })?;
    let (body, crc) = bytes.split_at(body_len);
    let want = Reader { bytes: crc, at: 0 }.u32()?;
    let got = crc32c::crc32c(body);
    if got != want {
        return Err(BatchError::Checksum { got, want });
    }
    let mut r = Reader { bytes: body, at: 0 };
    let header = read_header(&mut r)?;
    let (raw_len, packed_len) = (r.u32()? as usize, r.u32()? as usize);
    if raw_len > DECODED_BYTES_MAX {
        return Err(BatchError::TooLarge { declared: raw_len });
    }
    let raw = zstd::bulk::decompress(r.take(packed_len)?, raw_len).map_err(|e| BatchError::Column {
        column: "zstd",
        reason: e.to_string(),
    })?;
    let columns = decode_sections(&raw)?;
    check(&columns)?;
    Ok((header, columns))
}

fn decode_sections(raw: &[u8]) -> Result<BatchColumns, BatchError> {
    let mut c = BatchColumns::default();
    let (mut histogram_series, mut histograms): (Vec<u32>, &[u8]) = (Vec::new(), &[]);
    let mut r = Reader { bytes: raw, at: 0 };
    while !r.done() {
        let [tag] = r.array()?;
        let len = r.u32()? as usize;
        let mut s = Reader {
            bytes: r.take(len)?,
            at: 0,
        };
        match tag {
            TAG_HASHES => {
                while !s.done() {
                    c.hashes.push(SeriesHash(u128::from_le_bytes(s.array()?)));
                }
            }
            TAG_LABEL_LENS => {
                let mut end = 0u64;
                while !s.done() {
                    end = end.saturating_add(s.varint()?);
                    c.label_ends
                        .push(u32::try_from(end).map_err(|_| BatchError::Truncated { at: s.at })?);
                }
            }
            TAG_LABEL_BYTES => c.label_bytes = s.bytes.to_vec(),
            TAG_SAMPLE_COUNTS => {
                while !s.done() {
                    let n = s.varint()?;
                    c.sample_counts
                        .push(u32::try_from(n).map_err(|_| BatchError::Truncated { at: s.at })?);
                }
            }
            TAG_TIMESTAMPS => {
                let mut t = 0i64;
                while !s.done() {
                    t = t.wrapping_add(unzigzag(s.varint()?));
                    c.timestamps.push(t);
                }
            }
            TAG_VALUES => {
                while !s.done() {
                    c.values.push(f64::from_bits(s.u64()?));
                }
            }
            TAG_METADATA => {
                while !s.done() {
                    let metric = s.string("metadata")?;
                    let (kind, help, unit) = (
                        s.string("metadata")?,
                        s.string("metadata")?,
                        s.string("metadata")?,
                    );
                    c.metadata.push((metric, Metadata { kind, help, unit }));
                }
            }
            TAG_HISTOGRAM_SERIES => {
                while !s.done() {
                    histogram_series.push(s.place()?);
                }
            }
            TAG_HISTOGRAMS => histograms = s.bytes,
            TAG_EXEMPLARS => {
                while !s.done() {
                    c.exemplars.push(s.exemplar()?);
                }
            }
            // A section this version does not know holds samples it would lose: refuse.
            other => {
                return Err(BatchError::Column {
                    column: "section",
                    reason: format!("unknown tag {other}"),
                });
            }
        }
    }
    let unpacked = koios_chunk::unpack_histograms(histograms, histogram_series.len());
    let unpacked = unpacked.map_err(|e| BatchError::Column {
        column: "histograms",
        reason: e.to_string(),
    })?;
    let placed = histogram_series.into_iter().zip(unpacked);
    c.histograms = placed
        .map(|(series, (t, histogram))| BatchHistogram { series, t, histogram })
        .collect();
    Ok(c)
}

fn check(c: &BatchColumns) -> Result<(), BatchError> {
    let fail = |column, reason: String| Err(BatchError::Column { column, reason });
    if c.sample_counts.len() != c.hashes.len() {
        return fail(
            "sample counts",
            format!("{} for {} series", c.sample_counts.len(), c.hashes.len()),
        );
    }
    let samples: u64 = c.sample_counts.iter().map(|&n| u64::from(n)).sum();
    if samples != c.timestamps.len() as u64 || samples != c.values.len() as u64 {
        let reason = format!(
            "{} timestamps, {} values, counts say {samples}",
            c.timestamps.len(),
            c.values.len()
        );
        return fail("samples", reason);
    }
    let places = |places: &mut dyn Iterator<Item = u32>| {
        let places: Vec<u32> = places.collect();
        places.is_sorted() && places.last().is_none_or(|last| (*last as usize) < c.hashes.len())
    };
    let of_histograms = places(&mut c.histograms.iter().map(|h| h.series));
    if !of_histograms || !places(&mut c.exemplars.iter().map(|e| e.series)) {
        return fail(
            "series of histograms and exemplars",
            "out of order, or beyond the last".to_owned(),
        );
    }
    if !c.label_ends.is_empty() {
        if c.label_ends.len() != c.hashes.len() {
            return fail(
                "labels",
                format!("{} for {} series", c.label_ends.len(), c.hashes.len()),
            );
        }
        let mut start = 0usize;
        for &end in &c.label_ends {
            let packed = c.label_bytes.get(start..end as usize);
            let checked = packed
                .ok_or_else(|| "lengths pass the end".to_owned())
                .and_then(|p| LabelsRef::from_packed(p).map_err(|e| e.to_string()));
            if let Err(reason) = checked {
                return fail("labels", reason);
            }
            start = end as usize;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use koios_model::{Histogram, Labels};
    use proptest::prelude::*;

    use super::*;

    fn header() -> BatchHeader {
        BatchHeader {
            tenant: TenantId::anonymous(),
            stream: StreamId(7 << 100),
            sequence: 3,
            settled_below: 2,
            partition: PartitionId(1),
            epoch: 9,
            admission_ms: -5,
        }
    }

    proptest! {
        #[test]
        fn round_trips_bit_exact(series in proptest::collection::vec(
            ("[a-z]{1,5}", "\\PC{1,9}", proptest::collection::vec((any::<i64>(), any::<u64>()), 0..5)), 0..8)) {
            let mut c = BatchColumns::default();
            for (i, (n, v, samples)) in series.iter().enumerate() {
                c.push_series(SeriesHash(i as u128), Labels::from_pairs([(n, v)]).as_ref());
                samples.iter().for_each(|&(t, bits)| c.push_sample(t, f64::from_bits(bits)));
                for &(t, bits) in samples.iter().skip(2) {
                    c.push_histogram(t, Histogram { count: f64::from_bits(bits), ..Histogram::default() });
                }
                let labels = Labels::from_pairs([("trace_id", v)]);
                c.push_exemplar(Exemplar { t: i as i64, v: 0.5, labels });
            }
            c.metadata.push(("up".into(), Metadata { kind: "gauge".into(), ..Metadata::default() }));
            let batch = Batch::new(header(), c);
            let back = Batch::decode(batch.encoded().clone()).unwrap();
            prop_assert_eq!(back.header(), batch.header());
            let bits = |b: &Batch| b.columns().values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&back), bits(&batch));
            prop_assert_eq!(&back.columns().timestamps, &batch.columns().timestamps);
            prop_assert_eq!(&back.columns().label_bytes, &batch.columns().label_bytes);
            prop_assert_eq!(&back.columns().metadata, &batch.columns().metadata);
            prop_assert_eq!(&back.columns().exemplars, &batch.columns().exemplars);
            let [got, sent] = [&back, &batch].map(|b| &b.columns().histograms);
            prop_assert_eq!(got.len(), sent.len());
            let same = |(a, b): (&BatchHistogram, &BatchHistogram)| {
                (a.series, a.t) == (b.series, b.t) && a.histogram.bits_cmp(&b.histogram).is_eq()
            };
            prop_assert!(got.iter().zip(sent).all(same));
        }

        #[test]
        fn i12_arbitrary_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Batch::decode(bytes.into()).is_err());
        }

        #[test]
        fn i11_any_flipped_bit_is_noticed(at in 0usize..1000, bit in 0u8..8) {
            let mut bytes = Batch::new(header(), BatchColumns::default()).encoded().to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(Batch::decode(bytes.into()).is_err());
        }
    }
}
