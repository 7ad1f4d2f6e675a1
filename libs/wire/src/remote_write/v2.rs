//! `io.prometheus.write.v2.Request`: strings stand once in a table and are referred to by number.

use koios_model::Sample;

use super::{DecodeError, DecodeLimits, RawLabel, RawMetadata, Scratch, SeriesFault, Sink, kind_word};
use crate::protobuf::{BYTES, FIXED64, Reader, VARINT};

const REQUEST_SYMBOLS: u32 = 4;
const REQUEST_TIMESERIES: u32 = 5;

/// Fields of the message of version 1, which this one leaves free.
const OTHER_TIMESERIES: u32 = 1;
const OTHER_METADATA: u32 = 3;

const SERIES_LABEL_REFS: u32 = 1;
const SERIES_SAMPLES: u32 = 2;
const SERIES_HISTOGRAMS: u32 = 3;
const SERIES_EXEMPLARS: u32 = 4;
const SERIES_METADATA: u32 = 5;

/// Symbols a series may bring on average: more than any label set has.
pub(super) const SYMBOLS_PER_SERIES: usize = 16;

pub(super) fn decode<'a>(
    bytes: &'a [u8],
    limits: DecodeLimits,
    sink: &mut impl Sink<'a>,
) -> Result<(), DecodeError> {
    // Fields may come in any order, so the table is read first.
    let symbols = symbols(bytes, limits.series.saturating_mul(SYMBOLS_PER_SERIES))?;
    let mut request = Reader::new(bytes);
    let mut scratch = Scratch::new(limits);
    while !request.done() {
        let tag = request.tag()?;
        match tag.field {
            REQUEST_TIMESERIES => {
                tag.expect(BYTES)?;
                let message = request.message()?;
                scratch.start_series()?;
                series(message, &symbols, &mut scratch, sink)?;
                sink.series(scratch.raw());
                if sink.is_over() {
                    return Ok(());
                }
            }
            REQUEST_SYMBOLS => drop(request.bytes()?),
            _ => request.skip(tag)?,
        }
    }
    Ok(())
}

fn symbols(bytes: &[u8], limit: usize) -> Result<Vec<&[u8]>, DecodeError> {
    let mut request = Reader::new(bytes);
    let mut symbols: Vec<&[u8]> = Vec::new();
    while !request.done() {
        let tag = request.tag()?;
        match tag.field {
            REQUEST_SYMBOLS => {
                tag.expect(BYTES)?;
                if symbols.len() >= limit {
                    return Err(DecodeError::TooManySymbols { limit });
                }
                symbols.push(request.bytes()?);
            }
            REQUEST_TIMESERIES => {
                tag.expect(BYTES)?;
                request.bytes()?;
            }
            OTHER_TIMESERIES | OTHER_METADATA if tag.wire_type == BYTES => {
                return Err(DecodeError::OtherVersion {
                    is: "prometheus.WriteRequest",
                });
            }
            _ => request.skip(tag)?,
        }
    }
    match symbols.first() {
        Some(first) if !first.is_empty() => Err(DecodeError::FirstSymbol { len: first.len() }),
        _ => Ok(symbols),
    }
}

fn series<'a>(
    mut message: Reader<'a>,
    symbols: &[&'a [u8]],
    scratch: &mut Scratch<'a>,
    sink: &mut impl Sink<'a>,
) -> Result<(), DecodeError> {
    let mut refs = References {
        symbols,
        name: None,
        count: 0,
    };
    while !message.done() {
        let tag = message.tag()?;
        match tag.field {
            SERIES_LABEL_REFS => message.numbers(tag, VARINT, |r| {
                if let Some(label) = refs.next(r.varint()?, &mut scratch.fault) {
                    scratch.push_label(label);
                }
                Ok(())
            })?,
            SERIES_SAMPLES => {
                tag.expect(BYTES)?;
                let (sample, start) = sample(message.message()?)?;
                scratch.push_sample(sample)?;
                scratch.push_start(start);
            }
            SERIES_HISTOGRAMS => {
                tag.expect(BYTES)?;
                scratch.push_histogram(message.message()?, sink)?;
                if sink.is_over() {
                    return Ok(());
                }
            }
            SERIES_EXEMPLARS => {
                tag.expect(BYTES)?;
                exemplar(message.message()?, symbols, scratch, sink)?;
                if sink.is_over() {
                    return Ok(());
                }
            }
            SERIES_METADATA => {
                tag.expect(BYTES)?;
                scratch.metadata = metadata(message.message()?, &refs, &mut scratch.fault)?;
            }
            _ => message.skip(tag)?,
        }
    }
    refs.end(&mut scratch.fault);
    // Prometheus as a receiver wants a sample with exemplars, too; as a sender it sends them in series of their own.
    if scratch.samples.is_empty() && scratch.histograms.is_empty() && scratch.exemplars.is_empty() {
        scratch.fault.get_or_insert(SeriesFault::Empty);
    }
    Ok(())
}

/// A sample and its start timestamp.
fn sample(mut message: Reader<'_>) -> Result<(Sample, i64), DecodeError> {
    let (mut sample, mut start) = (Sample { t: 0, v: 0.0 }, 0);
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
            3 => {
                tag.expect(VARINT)?;
                start = message.varint()? as i64;
            }
            _ => message.skip(tag)?,
        }
    }
    Ok((sample, start))
}

fn exemplar<'a>(
    mut message: Reader<'a>,
    symbols: &[&'a [u8]],
    scratch: &mut Scratch<'a>,
    sink: &mut impl Sink<'a>,
) -> Result<(), DecodeError> {
    let first_label = scratch.exemplar_labels.len();
    let mut refs = References {
        symbols,
        name: None,
        count: 0,
    };
    let (mut t, mut v, mut fault) = (0, 0.0, None);
    while !message.done() {
        let tag = message.tag()?;
        match tag.field {
            1 => message.numbers(tag, VARINT, |r| {
                if let Some(label) = refs.next(r.varint()?, &mut fault) {
                    scratch.push_exemplar_label(label, first_label);
                }
                Ok(())
            })?,
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
    refs.end(&mut fault);
    if fault.is_some() {
        // A label without a name: the exemplar is dropped, and its series is not.
        scratch.exemplar_labels.push((&[], &[]));
    }
    scratch.push_exemplar((t, v), first_label, sink)
}

struct References<'a, 's> {
    symbols: &'s [&'a [u8]],
    /// A label's name that waits for its value.
    name: Option<&'a [u8]>,
    count: usize,
}

impl<'a> References<'a, '_> {
    fn resolve(&self, reference: u64, fault: &mut Option<SeriesFault>) -> &'a [u8] {
        let found = usize::try_from(reference).ok().and_then(|i| self.symbols.get(i));
        found.copied().unwrap_or_else(|| {
            let symbols = self.symbols.len();
            fault.get_or_insert(SeriesFault::SymbolOutOfRange { reference, symbols });
            &[]
        })
    }

    /// The label that a reference completes.
    fn next(&mut self, reference: u64, fault: &mut Option<SeriesFault>) -> Option<RawLabel<'a>> {
        self.count += 1;
        let symbol = self.resolve(reference, fault);
        match self.name.take() {
            None => {
                self.name = Some(symbol);
                None
            }
            Some(name) => Some((name, symbol)),
        }
    }

    /// Notes a name that got no value.
    fn end(&self, fault: &mut Option<SeriesFault>) {
        if self.name.is_some() {
            let count = self.count;
            fault.get_or_insert(SeriesFault::OddReferences { count });
        }
    }
}

/// `None` when it says nothing.
fn metadata<'a>(
    mut message: Reader<'a>,
    refs: &References<'a, '_>,
    fault: &mut Option<SeriesFault>,
) -> Result<Option<RawMetadata<'a>>, DecodeError> {
    let mut kind = 0;
    let mut out = RawMetadata::default();
    while !message.done() {
        let tag = message.tag()?;
        if matches!(tag.field, 1 | 3 | 4) {
            tag.expect(VARINT)?;
        }
        match tag.field {
            1 => kind = message.varint()?,
            3 => out.help = refs.resolve(message.varint()?, fault),
            4 => out.unit = refs.resolve(message.varint()?, fault),
            _ => message.skip(tag)?,
        }
    }
    out.kind = kind_word(kind);
    let silent = kind == 0 && out.help.is_empty() && out.unit.is_empty();
    Ok((!silent).then_some(out))
}
