//! Remote write 1.0 and 2.0, decoded by hand: borrowed from the request, series by series, without an allocation per
//! label.
//!
//! [`decode`] walks the message once and hands every series to a [`Sink`] while its parts lie in scratch space that the
//! next series overwrites; nothing of the request's size is ever held beside the request itself (I12).
//! **Source**: Prometheus `prompb/types.proto`, `prompb/io/prometheus/write/v2/types.proto`.

mod histogram;
mod v1;
mod v2;

pub use histogram::HistogramFault;

use std::ops::Range;

use koios_model::{Histogram, Sample, SeriesHash};

use crate::protobuf::Reader;
use v2::SYMBOLS_PER_SERIES;

/// Which message a request holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `prometheus.WriteRequest`.
    V1,
    /// `io.prometheus.write.v2.Request`.
    V2,
}

/// Bounds of one request.
#[derive(Clone, Copy, Debug)]
pub struct DecodeLimits {
    /// Most series, and most metadata entries.
    pub series: usize,
    /// Most samples, histograms included.
    pub samples: usize,
    /// Labels of one series kept for the sink; further ones are only counted.
    pub labels_per_series: usize,
}

/// Why bytes are no such message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A field reaches beyond the end of its message.
    #[error("invalid protobuf: unexpected end at byte {at}")]
    UnexpectedEnd {
        /// Where the bytes end.
        at: usize,
    },
    /// A number longer than 64 bits.
    #[error("invalid protobuf: number too long at byte {at}")]
    NumberTooLong {
        /// Where it starts.
        at: usize,
    },
    /// A tag that no message can have.
    #[error("invalid protobuf: wrong tag {tag} at byte {at}")]
    Tag {
        /// The tag.
        tag: u64,
        /// Where it stands.
        at: usize,
    },
    /// A known field of another type.
    #[error("invalid protobuf: field {field} has wire type {wire_type} at byte {at}")]
    WireType {
        /// The field's number.
        field: u32,
        /// As sent.
        wire_type: u8,
        /// Where it stands.
        at: usize,
    },
    /// Groups in groups, or more unknown fields than any sender has reason for.
    #[error("invalid protobuf: nesting too deep or too many unknown fields at byte {at}")]
    TooDeep {
        /// Where it got too much.
        at: usize,
    },
    /// Fields that only the message of the other version has: without them nothing would be left of it, and be taken.
    #[error(
        "request has fields of {is}, which its content type does not say: send it with content-type \
         application/x-protobuf;proto={is}"
    )]
    OtherVersion {
        /// What it is.
        is: &'static str,
    },
    /// The symbol table does not start with the empty string.
    #[error("invalid symbol table: symbols[0] must be the empty string, is {len} bytes long")]
    FirstSymbol {
        /// Its length.
        len: usize,
    },
    /// More symbols than [`DecodeLimits`] could ever need.
    #[error(
        "too many symbols in request (limit: {limit}, {SYMBOLS_PER_SERIES} for each series of \
         limits.max-series-per-request), which has more than {limit}: send smaller batches or raise it"
    )]
    TooManySymbols {
        /// The limit.
        limit: usize,
    },
    /// More series than allowed.
    #[error(
        "too many series in request (limit: {limit}), which has more than {limit}: send smaller batches or raise \
         limits.max-series-per-request"
    )]
    TooManySeries {
        /// The limit.
        limit: usize,
    },
    /// More metrics that something is said of than there may be series.
    #[error(
        "too many metrics with metadata in request (limit: {limit}), which has more than {limit}: send smaller batches or \
         raise limits.max-series-per-request"
    )]
    TooManyMetrics {
        /// The limit.
        limit: usize,
    },
    /// More samples than allowed.
    #[error(
        "too many samples in request (limit: {limit}), which has more than {limit}: send smaller batches or raise \
         limits.max-samples-per-request"
    )]
    TooManySamples {
        /// The limit.
        limit: usize,
    },
    /// More exemplars than there may be samples.
    #[error(
        "too many exemplars in request (limit: {limit}), which has more than {limit}: send smaller batches or raise \
         limits.max-samples-per-request"
    )]
    TooManyExemplars {
        /// The limit.
        limit: usize,
    },
}

/// What is wrong with one series, so that it cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeriesFault {
    /// A reference beyond the symbol table.
    #[error("symbol reference {reference} out of range ({symbols} symbols)")]
    SymbolOutOfRange {
        /// As sent.
        reference: u64,
        /// How many symbols there are.
        symbols: usize,
    },
    /// Nothing but labels, which remote write 2.0 does not allow.
    #[error("TimeSeries must contain at least one sample or histogram")]
    Empty,
    /// Labels come in pairs.
    #[error("odd number of label references ({count})")]
    OddReferences {
        /// How many there are.
        count: usize,
    },
}

/// A label's bytes as sent.
pub type RawLabel<'a> = (&'a [u8], &'a [u8]);

/// One series as sent; valid until the next one.
#[derive(Clone, Copy, Debug, Default)]
pub struct RawSeries<'a, 's> {
    /// In the order sent; at most [`DecodeLimits::labels_per_series`] of them.
    pub labels: &'s [RawLabel<'a>],
    /// How many labels were sent; 0 when they were left out.
    pub label_count: usize,
    /// All labels as the message has them, where they stand together at the series' beginning; else empty.
    pub encoded_labels: EncodedLabels<'a>,
    /// What [`Sink::known`] said of them; the labels above are left out then.
    pub known: Option<SeriesHash>,
    /// In the order sent.
    pub samples: &'s [Sample],
    /// Start timestamps of the first samples, milliseconds, 0 for none; those beyond have none.
    pub starts: &'s [i64],
    /// In the order sent.
    pub histograms: &'s [RawHistogram],
    /// In the order sent.
    pub exemplars: &'s [RawExemplar],
    /// The labels of the exemplars, one after the other.
    pub exemplar_labels: &'s [RawLabel<'a>],
    /// Metadata, which remote write 2.0 sends with each series.
    pub metadata: Option<RawMetadata<'a>>,
    /// Why the series cannot be taken at all.
    pub fault: Option<&'s SeriesFault>,
}

/// Labels as a message has them.
#[derive(Clone, Copy, Debug, Default)]
pub struct EncodedLabels<'a> {
    /// Where they stand in the message.
    pub at: u32,
    /// What stands there, for [`decode_labels`].
    pub bytes: &'a [u8],
}

impl EncodedLabels<'_> {
    /// Where they stand in the message.
    pub fn range(&self) -> Range<u32> {
        self.at
            ..self
                .at
                .saturating_add(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX))
    }
}

/// A native histogram as sent.
#[derive(Clone, Debug, PartialEq)]
pub struct RawHistogram {
    /// Milliseconds since the Unix epoch.
    pub t: i64,
    /// When what it counts began, milliseconds; 0 for unknown.
    pub start: i64,
    /// In canonical form ([`Histogram::make_canonical`]), or why it cannot be taken.
    pub histogram: Result<Histogram, HistogramFault>,
}

/// An exemplar as sent.
#[derive(Clone, Debug, PartialEq)]
pub struct RawExemplar {
    /// Milliseconds since the Unix epoch.
    pub t: i64,
    /// Its value.
    pub v: f64,
    /// Where its labels are among [`RawSeries::exemplar_labels`].
    pub labels: Range<usize>,
}

/// Metadata as sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawMetadata<'a> {
    /// The metric; empty when it is the series' own.
    pub metric: &'a [u8],
    /// The type in Prometheus' words.
    pub kind: &'static str,
    /// The help text.
    pub help: &'a [u8],
    /// The unit.
    pub unit: &'a [u8],
}

/// Takes what [`decode`] finds.
pub trait Sink<'a> {
    /// A series.
    fn series(&mut self, series: RawSeries<'a, '_>);

    /// The series that labels in the message's encoding belong to, if it is known: its labels then need not be decoded.
    fn known(&mut self, _encoded_labels: EncodedLabels<'a>) -> Option<SeriesHash> {
        None
    }

    /// Metadata of a metric.
    fn metadata(&mut self, metadata: RawMetadata<'a>);

    /// How many series were not taken, or not whole, so far: for formats that make several series of one thing.
    fn refused(&self) -> u64 {
        0
    }

    /// Notes how many bytes are held for the series that is being decoded, where they may be many more than were sent.
    fn hold(&mut self, _bytes: usize) {}

    /// Whether the request is to be refused, whatever is still to come.
    fn is_over(&self) -> bool {
        false
    }

    /// Series that come from now on are of this data point, or of none: for formats that make several series of one thing.
    fn point(&mut self, _number: Option<u32>) {}
}

/// Decodes a decompressed request.
///
/// # Errors
/// [`DecodeError`] when the bytes are no such message or exceed the limits. The sink may have been handed series before
/// that; its owner must throw them away.
pub fn decode<'a>(
    version: Version,
    bytes: &'a [u8],
    limits: DecodeLimits,
    sink: &mut impl Sink<'a>,
) -> Result<(), DecodeError> {
    match version {
        Version::V1 => v1::decode(bytes, limits, sink),
        Version::V2 => v2::decode(bytes, limits, sink),
    }
}

/// Decodes what [`EncodedLabels`] holds.
///
/// # Errors
/// [`DecodeError`] when a label is malformed.
pub fn decode_labels(encoded: &[u8]) -> Result<Vec<RawLabel<'_>>, DecodeError> {
    let mut labels = Vec::new();
    v1::each_label(Reader::new(encoded), |label| labels.push(label))?;
    Ok(labels)
}

/// The words for the metadata types, which both versions number alike.
fn kind_word(kind: u64) -> &'static str {
    match kind {
        1 => "counter",
        2 => "gauge",
        3 => "histogram",
        4 => "gaugehistogram",
        5 => "summary",
        6 => "info",
        7 => "stateset",
        _ => "unknown",
    }
}

/// More labels than an exemplar can have: each has a character at least, and all together 128.
const EXEMPLAR_LABELS_MAX: usize = 128;

/// The parts of one series while it is decoded, and what has been counted so far.
struct Scratch<'a> {
    limits: DecodeLimits,
    series_seen: usize,
    samples_seen: usize,
    labels: Vec<RawLabel<'a>>,
    label_count: usize,
    encoded_labels: EncodedLabels<'a>,
    known: Option<SeriesHash>,
    samples: Vec<Sample>,
    starts: Vec<i64>,
    histograms: Vec<RawHistogram>,
    histogram: histogram::Scratch,
    exemplars_seen: usize,
    exemplars: Vec<RawExemplar>,
    exemplar_labels: Vec<RawLabel<'a>>,
    /// What the series' histograms and exemplars occupy, which may be many times what was sent of them.
    held_bytes: usize,
    metadata: Option<RawMetadata<'a>>,
    fault: Option<SeriesFault>,
}

impl<'a> Scratch<'a> {
    fn new(limits: DecodeLimits) -> Self {
        Self {
            limits,
            series_seen: 0,
            samples_seen: 0,
            labels: Vec::new(),
            label_count: 0,
            encoded_labels: EncodedLabels::default(),
            known: None,
            samples: Vec::new(),
            starts: Vec::new(),
            histograms: Vec::new(),
            histogram: histogram::Scratch::default(),
            exemplars_seen: 0,
            exemplars: Vec::new(),
            exemplar_labels: Vec::new(),
            held_bytes: 0,
            metadata: None,
            fault: None,
        }
    }

    fn start_series(&mut self) -> Result<(), DecodeError> {
        self.series_seen += 1;
        if self.series_seen > self.limits.series {
            let limit = self.limits.series;
            return Err(DecodeError::TooManySeries { limit });
        }
        self.labels.clear();
        self.label_count = 0;
        self.encoded_labels = EncodedLabels::default();
        self.known = None;
        self.samples.clear();
        self.starts.clear();
        self.histograms.clear();
        self.exemplars.clear();
        self.exemplar_labels.clear();
        self.held_bytes = 0;
        self.metadata = None;
        self.fault = None;
        Ok(())
    }

    fn push_label(&mut self, label: RawLabel<'a>) {
        self.label_count += 1;
        if self.labels.len() < self.limits.labels_per_series {
            self.labels.push(label);
        }
    }

    fn push_sample(&mut self, sample: Sample) -> Result<(), DecodeError> {
        self.count_sample()?;
        self.samples.push(sample);
        Ok(())
    }

    /// Notes the start timestamp of the newest sample; 0 is none.
    fn push_start(&mut self, start: i64) {
        if start != 0 && !self.samples.is_empty() {
            self.starts.resize(self.samples.len() - 1, 0);
            self.starts.push(start);
        }
    }

    /// Decodes and checks a native histogram, whose buckets may take a byte each until then.
    fn push_histogram(&mut self, message: Reader<'a>, sink: &mut impl Sink<'a>) -> Result<(), DecodeError> {
        self.count_sample()?;
        self.histogram.decode(message)?;
        let raw = self.histogram.raw();
        let heap_bytes = raw.histogram.as_ref().map_or(0, Histogram::heap_bytes);
        self.held_bytes += size_of::<RawHistogram>() + heap_bytes;
        self.histograms.push(raw);
        sink.hold(self.held_bytes);
        Ok(())
    }

    /// Adds a label to the exemplar whose labels begin at `first_label`. Of more than any exemplar may have only so many
    /// are kept that this shows.
    fn push_exemplar_label(&mut self, label: RawLabel<'a>, first_label: usize) {
        if self.exemplar_labels.len() - first_label.min(self.exemplar_labels.len()) <= EXEMPLAR_LABELS_MAX {
            self.exemplar_labels.push(label);
        }
    }

    /// Adds an exemplar whose labels, which may take two bytes each until then, are those from `first_label` on.
    fn push_exemplar(
        &mut self,
        (t, v): (i64, f64),
        first_label: usize,
        sink: &mut impl Sink<'a>,
    ) -> Result<(), DecodeError> {
        self.exemplars_seen += 1;
        if self.exemplars_seen > self.limits.samples {
            let limit = self.limits.samples;
            return Err(DecodeError::TooManyExemplars { limit });
        }
        let labels = first_label..self.exemplar_labels.len();
        self.held_bytes += size_of::<RawExemplar>() + labels.len() * size_of::<RawLabel<'_>>();
        self.exemplars.push(RawExemplar { t, v, labels });
        sink.hold(self.held_bytes);
        Ok(())
    }

    fn count_sample(&mut self) -> Result<(), DecodeError> {
        self.samples_seen += 1;
        if self.samples_seen > self.limits.samples {
            let limit = self.limits.samples;
            return Err(DecodeError::TooManySamples { limit });
        }
        Ok(())
    }

    fn raw(&self) -> RawSeries<'a, '_> {
        RawSeries {
            labels: &self.labels,
            label_count: self.label_count,
            encoded_labels: self.encoded_labels,
            known: self.known,
            samples: &self.samples,
            starts: &self.starts,
            histograms: &self.histograms,
            exemplars: &self.exemplars,
            exemplar_labels: &self.exemplar_labels,
            metadata: self.metadata,
            fault: self.fault.as_ref(),
        }
    }
}

#[cfg(test)]
#[path = "remote_write/remote_write_test.rs"]
mod tests;
