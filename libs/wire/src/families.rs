//! Metric families as Prometheus' client libraries push them in protobuf, written as remote write 1.0.
//!
//! Each family comes with its length before it. Summaries and histograms become one series for each of their parts, as a
//! scrape makes them; a histogram with native buckets becomes a native one, and keeps its classic buckets beside if it has
//! any. Labels, spans and buckets are encoded alike in both messages and copied as they stand, so nothing is held but
//! what is written.
//! **Source**: Prometheus `prompb/io/prometheus/client/metrics.proto`, `model/textparse/protobufparse.go`.

use crate::numbers::number_text;
use crate::protobuf::{BYTES, FIXED64, Reader, Tag, VARINT};
use crate::protobuf_writer::Writer;
use crate::remote_write::DecodeError;

/// A bucket of a dozen bytes becomes a series with all labels.
const GROWTH_MAX: usize = 32;
/// What remote write calls a histogram that is a gauge.
const GAUGE_HINT: u64 = 3;

/// Fields of a metric.
mod metric {
    pub(super) const LABEL: u32 = 1;
    pub(super) const GAUGE: u32 = 2;
    pub(super) const COUNTER: u32 = 3;
    pub(super) const SUMMARY: u32 = 4;
    pub(super) const UNTYPED: u32 = 5;
    pub(super) const TIME: u32 = 6;
    pub(super) const HISTOGRAM: u32 = 7;
}

/// Fields of what is written.
mod written {
    pub(super) const SERIES: u32 = 1;
    pub(super) const METADATA: u32 = 3;

    pub(super) const LABEL: u32 = 1;
    pub(super) const SAMPLE: u32 = 2;
    pub(super) const EXEMPLAR: u32 = 3;
    pub(super) const HISTOGRAM: u32 = 4;
}

/// Why families are none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FamiliesError {
    /// Not such messages.
    #[error(transparent)]
    Protobuf(#[from] DecodeError),
    /// A type that this version does not know.
    #[error("metric family {family:?} is of unknown type {kind}, use 0 (counter) to 5 (gauge histogram)")]
    Kind {
        /// The family's name.
        family: String,
        /// As sent.
        kind: u64,
    },
    /// More than may be made of them.
    #[error(
        "metric families take more than {limit} bytes as series: push fewer at once or raise limits.max-request-bytes"
    )]
    TooLarge {
        /// The limit.
        limit: usize,
    },
}

/// Most bytes that [`to_remote_write`] makes of families.
pub fn bytes_max(families: &[u8]) -> usize {
    families.len().saturating_mul(GROWTH_MAX)
}

/// Writes families as a request of remote write 1.0, in at most about `limit` bytes. Metrics without a time are of
/// `now_ms`.
///
/// # Errors
/// [`FamiliesError`] says what cannot be read, or that it would be too large.
pub fn to_remote_write(families: &[u8], now_ms: i64, limit: usize) -> Result<Vec<u8>, FamiliesError> {
    let mut request = Request {
        writer: Writer {
            limit,
            ..Writer::default()
        },
        labels: Writer::default(),
        now_ms,
    };
    let mut all = Reader::new(families);
    while !all.done() {
        request.family(all.message()?)?;
    }
    Ok(request.writer.out)
}

/// What is said of a family beside its metrics.
#[derive(Default)]
struct Family<'a> {
    name: &'a [u8],
    help: &'a [u8],
    unit: &'a [u8],
    kind: u64,
}

impl<'a> Family<'a> {
    fn read(mut message: Reader<'a>) -> Result<Self, DecodeError> {
        let mut family = Self::default();
        while !message.done() {
            let tag = message.tag()?;
            match tag.field {
                1 => family.name = bytes(&mut message, tag)?,
                2 => family.help = bytes(&mut message, tag)?,
                3 => family.kind = number(&mut message, tag)?,
                5 => family.unit = bytes(&mut message, tag)?,
                _ => pass(&mut message, tag)?,
            }
        }
        Ok(family)
    }

    /// The number that remote write has for the type.
    fn kind(&self) -> Result<u64, FamiliesError> {
        const KINDS: [u64; 6] = [1, 2, 5, 0, 3, 4];
        let kind = usize::try_from(self.kind).ok().and_then(|kind| KINDS.get(kind));
        kind.copied().ok_or_else(|| FamiliesError::Kind {
            family: String::from_utf8_lossy(self.name).chars().take(128).collect(),
            kind: self.kind,
        })
    }

    fn is_gauge_histogram(&self) -> bool {
        self.kind == 5
    }
}

/// A metric; its labels are [`Request::labels`].
#[derive(Clone, Copy)]
struct Metric<'a> {
    name: &'a [u8],
    t: i64,
}

/// One series of a metric.
struct Part<'p> {
    /// Ends the name.
    suffix: &'p str,
    /// A label that the metric itself does not have.
    label: Option<(&'p str, f64)>,
}

impl Part<'_> {
    const WHOLE: Self = Self::named("");

    const fn named(suffix: &'static str) -> Self {
        Part { suffix, label: None }
    }
}

/// A request that is being written.
struct Request {
    writer: Writer,
    /// Those of the metric at hand, as each of its series has them.
    labels: Writer,
    now_ms: i64,
}

impl Request {
    fn family(&mut self, mut message: Reader<'_>) -> Result<(), FamiliesError> {
        let family = Family::read(message)?;
        let metadata = self.writer.open(written::METADATA);
        self.writer.number(1, family.kind()?);
        self.writer.bytes(2, family.name);
        self.writer.bytes(4, family.help);
        self.writer.bytes(5, family.unit);
        self.close(metadata)?;
        while !message.done() {
            let tag = message.tag()?;
            if tag.field != 4 {
                pass(&mut message, tag)?;
                continue;
            }
            tag.expect(BYTES)?;
            self.metric(&family, message.message()?)?;
        }
        Ok(())
    }

    fn metric(&mut self, family: &Family<'_>, fields: Reader<'_>) -> Result<(), FamiliesError> {
        let mut metric = Metric {
            name: family.name,
            t: self.now_ms,
        };
        self.labels.out.clear();
        let mut rest = fields;
        while !rest.done() {
            let tag = rest.tag()?;
            match tag.field {
                metric::LABEL => self.labels.bytes(written::LABEL, bytes(&mut rest, tag)?),
                metric::TIME => metric.t = number(&mut rest, tag)? as i64,
                _ => pass(&mut rest, tag)?,
            }
        }
        let mut rest = fields;
        while !rest.done() {
            let tag = rest.tag()?;
            match tag.field {
                metric::GAUGE | metric::COUNTER | metric::UNTYPED => {
                    tag.expect(BYTES)?;
                    self.value(metric, rest.message()?)?;
                }
                metric::SUMMARY => {
                    tag.expect(BYTES)?;
                    self.summary(metric, rest.message()?)?;
                }
                metric::HISTOGRAM => {
                    tag.expect(BYTES)?;
                    self.histogram(metric, rest.message()?, family.is_gauge_histogram())?;
                }
                _ => pass(&mut rest, tag)?,
            }
        }
        Ok(())
    }

    /// Of gauges, counters and what has no type; counters may have an exemplar.
    fn value(&mut self, metric: Metric<'_>, mut message: Reader<'_>) -> Result<(), FamiliesError> {
        let (mut v, mut exemplar) = (0.0, None);
        while !message.done() {
            let tag = message.tag()?;
            match tag.field {
                1 => v = double(&mut message, tag)?,
                2 => {
                    tag.expect(BYTES)?;
                    exemplar = Some(message.message()?);
                }
                _ => pass(&mut message, tag)?,
            }
        }
        self.sample(metric, &Part::WHOLE, v, exemplar)
    }

    fn summary(&mut self, metric: Metric<'_>, mut message: Reader<'_>) -> Result<(), FamiliesError> {
        let (mut count, mut sum) = (0, 0.0);
        while !message.done() {
            let tag = message.tag()?;
            match tag.field {
                1 => count = number(&mut message, tag)?,
                2 => sum = double(&mut message, tag)?,
                3 => {
                    tag.expect(BYTES)?;
                    let (quantile, v) = quantile(message.message()?)?;
                    let part = Part {
                        suffix: "",
                        label: Some(("quantile", quantile)),
                    };
                    self.sample(metric, &part, v, None)?;
                }
                _ => pass(&mut message, tag)?,
            }
        }
        self.sample(metric, &Part::named("_count"), count as f64, None)?;
        self.sample(metric, &Part::named("_sum"), sum, None)
    }

    fn histogram(
        &mut self,
        metric: Metric<'_>,
        fields: Reader<'_>,
        gauge: bool,
    ) -> Result<(), FamiliesError> {
        let histogram = HistogramHead::read(fields)?;
        if histogram.native {
            self.native(metric, fields, &histogram, gauge)?;
            if !histogram.classic {
                return Ok(());
            }
        }
        let mut infinite = false;
        let mut message = fields;
        while !message.done() {
            let tag = message.tag()?;
            if tag.field != 3 {
                pass(&mut message, tag)?;
                continue;
            }
            tag.expect(BYTES)?;
            let bucket = Bucket::read(message.message()?)?;
            infinite |= bucket.bound == f64::INFINITY;
            self.sample(metric, &Bucket::part(bucket.bound), bucket.count, bucket.exemplar)?;
        }
        if !infinite {
            self.sample(metric, &Bucket::part(f64::INFINITY), histogram.count, None)?;
        }
        self.sample(metric, &Part::named("_count"), histogram.count, None)?;
        self.sample(metric, &Part::named("_sum"), histogram.sum, None)
    }

    fn native(
        &mut self,
        metric: Metric<'_>,
        fields: Reader<'_>,
        head: &HistogramHead,
        gauge: bool,
    ) -> Result<(), FamiliesError> {
        let series = self.open_series(metric, &Part::WHOLE);
        let histogram = self.writer.open(written::HISTOGRAM);
        let mut message = fields;
        while !message.done() {
            let tag = message.tag()?;
            match (tag.field, head.float) {
                (1, false) => self.copy(1, &mut message, tag)?,
                (4, true) => self.copy(2, &mut message, tag)?,
                (2, _) => self.copy(3, &mut message, tag)?,
                (7, false) => self.copy(6, &mut message, tag)?,
                (8, true) => self.copy(7, &mut message, tag)?,
                // Schema and width of the zero bucket; spans, deltas and counts of each sign.
                (field @ (5 | 6 | 9..=14), _) => self.copy(field - 1, &mut message, tag)?,
                _ => pass(&mut message, tag)?,
            }
        }
        if gauge {
            self.writer.number(14, GAUGE_HINT);
        }
        self.writer.number(15, metric.t as u64);
        self.writer.close(histogram);
        let mut message = fields;
        while !message.done() {
            let tag = message.tag()?;
            if tag.field == 16 {
                tag.expect(BYTES)?;
                self.exemplar(message.message()?, metric.t)?;
            } else {
                pass(&mut message, tag)?;
            }
        }
        self.close(series)
    }

    /// Copies a field's content under another number.
    fn copy(&mut self, field: u32, message: &mut Reader<'_>, tag: Tag) -> Result<(), DecodeError> {
        match tag.wire_type {
            VARINT => self.writer.number(field, message.varint()?),
            FIXED64 => self.writer.fixed64(field, message.fixed64()?),
            _ => self.writer.bytes(field, bytes(message, tag)?),
        }
        Ok(())
    }

    fn sample(
        &mut self,
        metric: Metric<'_>,
        part: &Part<'_>,
        v: f64,
        exemplar: Option<Reader<'_>>,
    ) -> Result<(), FamiliesError> {
        let series = self.open_series(metric, part);
        let sample = self.writer.open(written::SAMPLE);
        self.writer.fixed64(1, v.to_bits());
        self.writer.number(2, metric.t as u64);
        self.writer.close(sample);
        if let Some(exemplar) = exemplar {
            self.exemplar(exemplar, metric.t)?;
        }
        self.close(series)
    }

    fn open_series(&mut self, metric: Metric<'_>, part: &Part<'_>) -> usize {
        let series = self.writer.open(written::SERIES);
        let name = self.writer.open(written::LABEL);
        self.writer.bytes(1, b"__name__");
        match part.suffix {
            "" => self.writer.bytes(2, metric.name),
            suffix => self.writer.bytes(2, &[metric.name, suffix.as_bytes()].concat()),
        }
        self.writer.close(name);
        self.writer.out.extend_from_slice(&self.labels.out);
        if let Some((name, value)) = part.label {
            let label = self.writer.open(written::LABEL);
            self.writer.bytes(1, name.as_bytes());
            self.writer.bytes(2, number_text(value).as_bytes());
            self.writer.close(label);
        }
        series
    }

    /// Ends a series, or what is said of a family.
    fn close(&mut self, start: usize) -> Result<(), FamiliesError> {
        self.writer.close(start);
        let limit = self.writer.limit;
        if self.writer.is_full() {
            return Err(FamiliesError::TooLarge { limit });
        }
        Ok(())
    }

    /// An exemplar; without a time it is that of its sample.
    fn exemplar(&mut self, mut message: Reader<'_>, sampled_at: i64) -> Result<(), DecodeError> {
        let exemplar = self.writer.open(written::EXEMPLAR);
        let mut t = sampled_at;
        while !message.done() {
            let tag = message.tag()?;
            match tag.field {
                1 => self.writer.bytes(1, bytes(&mut message, tag)?),
                2 => self.writer.fixed64(2, double(&mut message, tag)?.to_bits()),
                3 => {
                    tag.expect(BYTES)?;
                    t = milliseconds(message.message()?)?;
                }
                _ => pass(&mut message, tag)?,
            }
        }
        self.writer.number(3, t as u64);
        self.writer.close(exemplar);
        Ok(())
    }
}

/// What is known of a histogram once all its fields were seen.
#[derive(Default)]
struct HistogramHead {
    count: f64,
    sum: f64,
    /// Whether its native form has counts that need not be whole.
    float: bool,
    native: bool,
    classic: bool,
}

impl HistogramHead {
    fn read(mut message: Reader<'_>) -> Result<Self, DecodeError> {
        let mut head = Self::default();
        let mut count_float = 0.0;
        while !message.done() {
            let tag = message.tag()?;
            match tag.field {
                1 => head.count = number(&mut message, tag)? as f64,
                2 => head.sum = double(&mut message, tag)?,
                3 => {
                    head.classic = true;
                    pass(&mut message, tag)?;
                }
                4 => count_float = double(&mut message, tag)?,
                6 => head.native |= double(&mut message, tag)? > 0.0,
                7 => head.native |= number(&mut message, tag)? > 0,
                8 => {
                    let zeros = double(&mut message, tag)?;
                    head.native |= zeros > 0.0;
                    head.float |= zeros > 0.0;
                }
                9 | 12 => {
                    head.native = true;
                    pass(&mut message, tag)?;
                }
                _ => pass(&mut message, tag)?,
            }
        }
        if count_float > 0.0 {
            head.count = count_float;
            head.float = true;
        }
        Ok(head)
    }
}

/// A classic bucket.
struct Bucket<'a> {
    bound: f64,
    count: f64,
    exemplar: Option<Reader<'a>>,
}

impl<'a> Bucket<'a> {
    fn read(mut message: Reader<'a>) -> Result<Self, DecodeError> {
        let mut bucket = Self {
            bound: 0.0,
            count: 0.0,
            exemplar: None,
        };
        let mut count_float = 0.0;
        while !message.done() {
            let tag = message.tag()?;
            match tag.field {
                1 => bucket.count = number(&mut message, tag)? as f64,
                2 => bucket.bound = double(&mut message, tag)?,
                3 => {
                    tag.expect(BYTES)?;
                    bucket.exemplar = Some(message.message()?);
                }
                4 => count_float = double(&mut message, tag)?,
                _ => pass(&mut message, tag)?,
            }
        }
        if count_float > 0.0 {
            bucket.count = count_float;
        }
        Ok(bucket)
    }

    fn part(bound: f64) -> Part<'static> {
        Part {
            suffix: "_bucket",
            label: Some(("le", bound)),
        }
    }
}

fn quantile(mut message: Reader<'_>) -> Result<(f64, f64), DecodeError> {
    let (mut quantile, mut v) = (0.0, 0.0);
    while !message.done() {
        let tag = message.tag()?;
        match tag.field {
            1 => quantile = double(&mut message, tag)?,
            2 => v = double(&mut message, tag)?,
            _ => pass(&mut message, tag)?,
        }
    }
    Ok((quantile, v))
}

/// A `google.protobuf.Timestamp`.
fn milliseconds(mut message: Reader<'_>) -> Result<i64, DecodeError> {
    let (mut seconds, mut nanos) = (0i64, 0i64);
    while !message.done() {
        let tag = message.tag()?;
        match tag.field {
            1 => seconds = number(&mut message, tag)? as i64,
            2 => nanos = number(&mut message, tag)? as i64,
            _ => pass(&mut message, tag)?,
        }
    }
    Ok(seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000))
}

/// Passes over a field.
fn pass(message: &mut Reader<'_>, tag: Tag) -> Result<(), DecodeError> {
    match tag.wire_type {
        VARINT => message.varint().map(drop),
        FIXED64 => message.fixed64().map(drop),
        BYTES => message.bytes().map(drop),
        _ => message.skip(tag),
    }
}

fn bytes<'a>(message: &mut Reader<'a>, tag: Tag) -> Result<&'a [u8], DecodeError> {
    tag.expect(BYTES)?;
    message.bytes()
}

fn double(message: &mut Reader<'_>, tag: Tag) -> Result<f64, DecodeError> {
    tag.expect(FIXED64)?;
    message.double()
}

fn number(message: &mut Reader<'_>, tag: Tag) -> Result<u64, DecodeError> {
    tag.expect(VARINT)?;
    message.varint()
}

#[cfg(test)]
#[path = "families_test.rs"]
mod tests;
