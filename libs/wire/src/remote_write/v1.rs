//! `prometheus.WriteRequest`.

use koios_model::Sample;

use super::{DecodeError, DecodeLimits, EncodedLabels, RawLabel, RawMetadata, Scratch, Sink, kind_word};
use crate::protobuf::{BYTES, FIXED64, Reader, VARINT};

const REQUEST_TIMESERIES: u32 = 1;
const REQUEST_METADATA: u32 = 3;

/// Fields of the message of version 2.
const OTHER_SYMBOLS: u32 = 4;
const OTHER_TIMESERIES: u32 = 5;

const SERIES_LABELS: u32 = 1;
const SERIES_SAMPLES: u32 = 2;
const SERIES_EXEMPLARS: u32 = 3;
const SERIES_HISTOGRAMS: u32 = 4;

/// The tags of a label as every sender writes it: the message, its name, its value.
const SHORT_LABEL: [u8; 3] = [(SERIES_LABELS as u8) << 3 | BYTES, 1 << 3 | BYTES, 2 << 3 | BYTES];

pub(super) fn decode<'a>(
    bytes: &'a [u8],
    limits: DecodeLimits,
    sink: &mut impl Sink<'a>,
) -> Result<(), DecodeError> {
    let mut request = Reader::new(bytes);
    let mut scratch = Scratch::new(limits);
    let mut metadata_seen = 0usize;
    while !request.done() {
        let tag = request.tag()?;
        match tag.field {
            REQUEST_TIMESERIES => {
                tag.expect(BYTES)?;
                let message = request.message()?;
                scratch.start_series()?;
                series(message, &mut scratch, sink)?;
                sink.series(scratch.raw());
                if sink.is_over() {
                    return Ok(());
                }
            }
            REQUEST_METADATA => {
                tag.expect(BYTES)?;
                metadata_seen += 1;
                if metadata_seen > limits.series {
                    return Err(DecodeError::TooManyMetrics { limit: limits.series });
                }
                sink.metadata(metadata(request.message()?)?);
            }
            OTHER_SYMBOLS | OTHER_TIMESERIES if tag.wire_type == BYTES => {
                return Err(DecodeError::OtherVersion {
                    is: "io.prometheus.write.v2.Request",
                });
            }
            _ => request.skip(tag)?,
        }
    }
    Ok(())
}

fn series<'a>(
    mut message: Reader<'a>,
    scratch: &mut Scratch<'a>,
    sink: &mut impl Sink<'a>,
) -> Result<(), DecodeError> {
    let labels = message.leading(SHORT_LABEL[0]);
    scratch.encoded_labels = labels.encoded();
    scratch.known = sink.known(scratch.encoded_labels);
    if scratch.known.is_none() {
        each_label(labels, |label| scratch.push_label(label))?;
    }
    while !message.done() {
        let tag = message.tag()?;
        match tag.field {
            SERIES_LABELS => {
                tag.expect(BYTES)?;
                // One that does not stand with the others, so that those were not all.
                if scratch.known.take().is_some() {
                    let left_out = Reader::new(scratch.encoded_labels.bytes);
                    each_label(left_out, |label| scratch.push_label(label))?;
                }
                scratch.encoded_labels = EncodedLabels::default();
                scratch.push_label(label(message.message()?)?);
            }
            SERIES_SAMPLES => {
                tag.expect(BYTES)?;
                scratch.push_sample(sample(message.message()?)?)?;
            }
            SERIES_EXEMPLARS => {
                tag.expect(BYTES)?;
                exemplar(message.message()?, scratch, sink)?;
                if sink.is_over() {
                    return Ok(());
                }
            }
            SERIES_HISTOGRAMS => {
                tag.expect(BYTES)?;
                scratch.push_histogram(message.message()?, sink)?;
                if sink.is_over() {
                    return Ok(());
                }
            }
            _ => message.skip(tag)?,
        }
    }
    Ok(())
}

/// Decodes fields that are all labels.
pub(super) fn each_label<'a>(
    mut labels: Reader<'a>,
    mut each: impl FnMut(RawLabel<'a>),
) -> Result<(), DecodeError> {
    while !labels.done() {
        if let Some(label) = labels.short_pair(SHORT_LABEL) {
            each(label);
            continue;
        }
        let tag = labels.tag()?;
        tag.expect(BYTES)?;
        each(label(labels.message()?)?);
    }
    Ok(())
}

fn label<'a>(mut message: Reader<'a>) -> Result<RawLabel<'a>, DecodeError> {
    let (mut name, mut value): (&[u8], &[u8]) = (&[], &[]);
    while !message.done() {
        let tag = message.tag()?;
        match tag.field {
            1 => {
                tag.expect(BYTES)?;
                name = message.bytes()?;
            }
            2 => {
                tag.expect(BYTES)?;
                value = message.bytes()?;
            }
            _ => message.skip(tag)?,
        }
    }
    Ok((name, value))
}

fn exemplar<'a>(
    mut message: Reader<'a>,
    scratch: &mut Scratch<'a>,
    sink: &mut impl Sink<'a>,
) -> Result<(), DecodeError> {
    let first_label = scratch.exemplar_labels.len();
    let (mut t, mut v) = (0, 0.0);
    while !message.done() {
        let tag = message.tag()?;
        match tag.field {
            1 => {
                tag.expect(BYTES)?;
                let label = label(message.message()?)?;
                scratch.push_exemplar_label(label, first_label);
            }
            2 => {
                tag.expect(FIXED64)?;
                v = message.double()?;
            }
            3 => {
                tag.expect(VARINT)?;
                t = message.varint()? as i64;
            }
            _ => message.skip(tag)?,
        }
    }
    scratch.push_exemplar((t, v), first_label, sink)
}

/// A sample; remote write 2.0 has the same fields and a start timestamp.
fn sample(mut message: Reader<'_>) -> Result<Sample, DecodeError> {
    let mut sample = Sample { t: 0, v: 0.0 };
    while !message.done() {
        let tag = message.tag()?;
        match tag.field {
            1 => {
                tag.expect(FIXED64)?;
                sample.v = message.double()?;
            }
            2 => {
                tag.expect(VARINT)?;
                sample.t = message.varint()? as i64;
            }
            _ => message.skip(tag)?,
        }
    }
    Ok(sample)
}

fn metadata<'a>(mut message: Reader<'a>) -> Result<RawMetadata<'a>, DecodeError> {
    let mut out = RawMetadata {
        kind: kind_word(0),
        ..RawMetadata::default()
    };
    while !message.done() {
        let tag = message.tag()?;
        match tag.field {
            1 => {
                tag.expect(VARINT)?;
                out.kind = kind_word(message.varint()?);
            }
            2 => {
                tag.expect(BYTES)?;
                out.metric = message.bytes()?;
            }
            4 => {
                tag.expect(BYTES)?;
                out.help = message.bytes()?;
            }
            5 => {
                tag.expect(BYTES)?;
                out.unit = message.bytes()?;
            }
            _ => message.skip(tag)?,
        }
    }
    Ok(out)
}
