//! The batch: header and columns, and how they travel and are logged.
//!
//! Layout on the wire (docs/formats/batch.md), little endian:
//! `"KB" version:u8=2 flags:u8=0 | stream:u128 sequence:u64 settled_below:u64 partition:u32 epoch:u64 admission_ms:i64 |
//! tenant_len:u8 tenant | series:u32 references:u128* | frame of labels | frame of the content | crc32c:u32` where a frame is
//! `raw_len:u32 zstd_len:u32 zstd` of sections `tag:u8 len:u32 bytes`, and the checksum covers everything before it.

mod bytes;
mod content;
mod labels;
mod logged;
mod values;

use std::sync::{Arc, OnceLock};

use ::bytes::Bytes;
use koios_model::{BatchColumns, BatchExemplar, PartitionId, SeriesHash, StreamId, TenantId};

use self::bytes::{Reader, write_frame};
pub use self::logged::{BoundSeries, LoggedBatch, LoggedSeries};

/// Largest decoded batch, bytes.
pub const DECODED_BYTES_MAX: usize = 128 << 20;

const MAGIC: [u8; 2] = *b"KB";
const VERSION: u8 = 2;

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

/// A batch with its encoded forms, each made at most once. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Batch {
    header: BatchHeader,
    columns: Arc<BatchColumns>,
    /// Whether labels of known series are left out of the encoded form.
    by_reference: bool,
    content: Arc<OnceLock<Bytes>>,
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

impl BatchError {
    fn unknown_section(tag: u8) -> Self {
        Self::Column {
            column: "section",
            reason: format!(
                "unknown tag {tag}: the sender is of a newer version, replace this process first"
            ),
        }
    }
}

impl Batch {
    /// A new batch. Encoded, it leaves out the labels of series that the receiver is taken to know.
    pub fn new(header: BatchHeader, columns: BatchColumns) -> Self {
        Self {
            header,
            columns: Arc::new(columns),
            by_reference: true,
            content: Arc::default(),
            encoded: OnceLock::new(),
        }
    }

    /// The same with its content encoded before, by [`encode_content`] from the same columns.
    #[must_use]
    pub fn with_content(self, content: Bytes) -> Self {
        Self {
            content: Arc::new(OnceLock::from(content)),
            ..self
        }
    }

    /// The same batch with all labels it has, for a receiver that does not know a series.
    #[must_use]
    pub fn with_labels(&self) -> Self {
        Self {
            by_reference: false,
            encoded: OnceLock::new(),
            ..self.clone()
        }
    }

    /// Whether the encoded form lacks labels that [`Self::with_labels`] has.
    pub fn leaves_labels_out(&self) -> bool {
        self.by_reference && self.columns.known.contains(&true)
    }

    /// Whether it is best encoded on the caller's thread: most of it is encoded already, or it is small and handing it over
    /// costs more.
    pub fn is_encoded_inline(&self) -> bool {
        const SAMPLES_MAX: usize = 512;
        const HISTOGRAMS_MAX: usize = 32;
        const BYTES_MAX: usize = 64 << 10;
        let c = &self.columns;
        if let Some(content) = self.content.get() {
            let rest = c.label_bytes.len() + size_of_val(&c.hashes[..]);
            return content.len() + rest < BYTES_MAX;
        }
        c.timestamps.len() + c.exemplars.len() < SAMPLES_MAX && c.histograms.len() < HISTOGRAMS_MAX
    }

    /// The header.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// What it holds.
    pub fn columns(&self) -> &BatchColumns {
        &self.columns
    }

    /// The content's frame, which all encodings end with; made on first use, shared afterwards.
    pub fn content(&self) -> &Bytes {
        self.content.get_or_init(|| encode_content(&self.columns))
    }

    /// Bytes of the content before compression, or of its largest column in memory where these are more: of each a reader takes
    /// [`DECODED_BYTES_MAX`] at most.
    pub fn largest_bytes(&self) -> usize {
        self.content_bytes().max(content::largest_column(&self.columns))
    }

    /// Bytes of the content before compression.
    pub fn content_bytes(&self) -> usize {
        let content = self.content().first_chunk();
        content.map_or(0, |len| u32::from_le_bytes(*len) as usize)
    }

    /// The form on the wire; made on first use, shared afterwards.
    pub fn encoded(&self) -> &Bytes {
        self.encoded.get_or_init(|| self.encode())
    }

    /// Whether [`Self::content`] costs nothing.
    pub fn has_content(&self) -> bool {
        self.content.get().is_some()
    }

    /// The length of [`Self::encoded`], once that was made.
    pub fn encoded_len(&self) -> Option<usize> {
        self.encoded.get().map(Bytes::len)
    }

    /// What stands before [`Self::content`] in the record that a log keeps.
    pub fn log_prefix(&self, series: &LoggedSeries) -> Vec<u8> {
        series.encode(&self.header)
    }

    fn encode(&self) -> Bytes {
        let (c, content) = (&self.columns, self.content());
        let mut raw = Vec::new();
        let travelling = c.series().map(|s| match s.labels {
            Some(labels) if !(self.by_reference && s.known) => labels.packed(),
            _ => &[],
        });
        labels::encode(travelling.collect::<Vec<_>>().into_iter(), &mut raw);
        let mut out = Vec::with_capacity(content.len() + c.hashes.len() * size_of::<SeriesHash>() + 192);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, 0]);
        write_header(&mut out, &self.header);
        out.extend_from_slice(&(c.hashes.len() as u32).to_le_bytes());
        c.hashes
            .iter()
            .for_each(|h| out.extend_from_slice(&h.0.to_le_bytes()));
        write_frame(&mut out, &raw);
        out.extend_from_slice(content);
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out.into()
    }

    /// Decodes and checks a batch.
    ///
    /// # Errors
    /// [`BatchError`]; arbitrary bytes are safe.
    pub fn decode(encoded: Bytes) -> Result<Self, BatchError> {
        let body = check_sum(&encoded)?;
        let mut r = Reader::new(body);
        let header = read_start(&mut r, MAGIC)?;
        let series = r.u32()? as usize;
        let (hashes, _) = r
            .take(series.saturating_mul(size_of::<SeriesHash>()))?
            .as_chunks();
        let hashes = hashes.iter().map(|h| SeriesHash(u128::from_le_bytes(*h)));
        let hashes: Vec<SeriesHash> = hashes.collect();
        let (label_ends, label_bytes) = labels::decode(&r.frame()?)?;
        if !label_ends.is_empty() && label_ends.len() != hashes.len() {
            return Err(BatchError::Column {
                column: "labels",
                reason: format!("{} for {} series", label_ends.len(), hashes.len()),
            });
        }
        let from = r.at();
        let raw = r.frame()?;
        let packed = encoded.slice(from..r.at());
        let columns = BatchColumns {
            hashes,
            label_ends,
            label_bytes,
            ..content::decode(&raw, series)?
        };
        Ok(Self {
            header,
            columns: Arc::new(columns),
            by_reference: true,
            content: Arc::new(OnceLock::from(packed)),
            encoded: OnceLock::from(encoded),
        })
    }
}

/// The content's frame of a batch of these columns.
pub fn encode_content(columns: &BatchColumns) -> Bytes {
    let mut out = Vec::new();
    write_frame(&mut out, &content::encode(columns));
    out.into()
}

/// The bytes before a valid checksum.
fn check_sum(encoded: &[u8]) -> Result<&[u8], BatchError> {
    let (body, crc) = encoded
        .split_last_chunk()
        .ok_or(BatchError::Truncated { at: encoded.len() })?;
    let (want, got) = (u32::from_le_bytes(*crc), crc32c::crc32c(body));
    if got != want {
        return Err(BatchError::Checksum { got, want });
    }
    Ok(body)
}

/// Reads the header of an encoding.
fn read_start(r: &mut Reader<'_>, magic: [u8; 2]) -> Result<BatchHeader, BatchError> {
    let start: [u8; 4] = r.array()?;
    if start[..2] != magic || start[2] != VERSION {
        return Err(BatchError::Format {
            start: start.to_vec(),
        });
    }
    read_header(r)
}

fn write_header(out: &mut Vec<u8>, h: &BatchHeader) {
    let tenant = h.tenant.as_str().as_bytes();
    out.extend_from_slice(&h.stream.0.to_le_bytes());
    out.extend_from_slice(&h.sequence.to_le_bytes());
    out.extend_from_slice(&h.settled_below.to_le_bytes());
    out.extend_from_slice(&h.partition.0.to_le_bytes());
    out.extend_from_slice(&h.epoch.to_le_bytes());
    out.extend_from_slice(&h.admission_ms.to_le_bytes());
    out.push(tenant.len() as u8);
    out.extend_from_slice(tenant);
}

fn read_header(r: &mut Reader<'_>) -> Result<BatchHeader, BatchError> {
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

#[cfg(test)]
mod tests {
    use koios_model::{BatchHistogram, Exemplar, Histogram, Labels, Metadata};
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
        fn round_trips_bit_exact(
            series in proptest::collection::vec(
                ("[a-z]{1,5}", "\\PC{1,9}", proptest::collection::vec((any::<i64>(), any::<u64>()), 0..5)), 0..8),
            starts in proptest::collection::vec(prop_oneof![3 => Just(0i64), 1 => Just(1_700_000_000_000), 1 => any::<i64>()], 1..9),
        ) {
            let mut starts = starts.into_iter().cycle();
            let mut next = || starts.next().unwrap_or(0);
            let mut c = BatchColumns::default();
            for (i, (n, v, samples)) in series.iter().enumerate() {
                c.push_series(SeriesHash(i as u128), Labels::from_pairs([(n, v)]).as_ref());
                for &(t, bits) in samples {
                    c.push_sample(t, f64::from_bits(bits));
                    c.set_last_start(next());
                }
                for &(t, bits) in samples.iter().skip(2) {
                    c.push_started_histogram(t, next(), Histogram { count: f64::from_bits(bits), ..Histogram::default() });
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
            prop_assert_eq!(&back.columns().starts, &batch.columns().starts);
            prop_assert_eq!(&back.columns().label_bytes, &batch.columns().label_bytes);
            prop_assert_eq!(&back.columns().metadata, &batch.columns().metadata);
            prop_assert_eq!(&back.columns().exemplars, &batch.columns().exemplars);
            let [got, sent] = [&back, &batch].map(|b| &b.columns().histograms);
            prop_assert_eq!(got.len(), sent.len());
            let same = |(a, b): (&BatchHistogram, &BatchHistogram)| {
                (a.series, a.t, a.start) == (b.series, b.t, b.start) && a.histogram.bits_cmp(&b.histogram).is_eq()
            };
            prop_assert!(got.iter().zip(sent).all(same));
        }

        #[test]
        fn known_series_travel_without_labels_and_come_with_them_when_asked(known in proptest::collection::vec(any::<bool>(), 0..20)) {
            let mut c = BatchColumns::default();
            for (i, known) in known.iter().enumerate() {
                let labels = Labels::from_pairs([("__name__", format!("m{i}"))]);
                match known {
                    true => c.push_known_series(SeriesHash(i as u128), labels.as_ref()),
                    false => c.push_series(SeriesHash(i as u128), labels.as_ref()),
                }
                c.push_sample(i as i64, 1.0);
            }
            let batch = Batch::new(header(), c);
            prop_assert_eq!(batch.leaves_labels_out(), known.contains(&true));
            let travelled = |batch: &Batch| {
                let back = Batch::decode(batch.encoded().clone()).unwrap();
                back.columns().series().map(|s| s.labels.is_some()).collect::<Vec<_>>()
            };
            let unknown: Vec<bool> = known.iter().map(|known| !known).collect();
            prop_assert_eq!(travelled(&batch), unknown);
            prop_assert!(travelled(&batch.with_labels()).into_iter().all(|labels| labels));
        }

        #[test]
        fn logged_batches_read_back(ids in proptest::collection::vec((any::<u32>(), any::<bool>()), 0..30), runs in 0u32..100) {
            let mut ids: Vec<(u32, bool)> = ids;
            ids.extend((0..runs).map(|i| (i + 7, false)));
            let (mut c, mut logged) = (BatchColumns::default(), LoggedSeries::default());
            for (place, &(id, bound)) in ids.iter().enumerate() {
                let labels = Labels::from_pairs([("__name__", format!("m{id}"))]);
                c.push_series(SeriesHash(place as u128), labels.as_ref());
                c.push_sample(place as i64, f64::from(id));
                logged.ids.push(id);
                if bound {
                    logged.bind(place, SeriesHash(place as u128), |out| out.extend_from_slice(labels.packed()));
                }
            }
            let batch = Batch::new(header(), c);
            let record = [&batch.log_prefix(&logged)[..], batch.content()].concat().into();
            let back = LoggedBatch::decode(&record).unwrap();
            prop_assert_eq!(&back.header, batch.header());
            prop_assert_eq!(&LoggedBatch::peek_header(&record).unwrap(), &back.header);
            prop_assert_eq!(&back.series, &logged);
            let columns = back.columns().unwrap();
            prop_assert_eq!(&columns.values, &batch.columns().values);
            prop_assert_eq!(&columns.timestamps, &batch.columns().timestamps);
        }

        #[test]
        fn i12_arbitrary_log_records_are_safe(mut bytes in proptest::collection::vec(any::<u8>(), 80..300)) {
            bytes[..4].copy_from_slice(&[b'K', b'L', VERSION, 0]);
            bytes[56] = 1;
            bytes[57] = b'a';
            if let Ok(batch) = LoggedBatch::decode(&bytes.into()) {
                let _ = batch.columns();
            }
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
