//! Data points, decoded one at a time into space that the next one overwrites.

use super::OtlpError;
use super::value::{self, Attribute};
use crate::protobuf::{BYTES, FIXED64, Reader, Tag, VARINT, unzigzag};

/// Most buckets, bounds or quantiles of a data point.
pub(super) const BUCKETS_MAX: usize = 4096;
/// Most exemplars kept of a data point; further ones are left out.
const EXEMPLARS_MAX: usize = 256;
const NO_RECORDED_VALUE: u64 = 1;

/// A measured number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Int(i64),
    Double(f64),
}

impl Number {
    pub(super) fn value(self) -> f64 {
        match self {
            Self::Int(n) => n as f64,
            Self::Double(v) => v,
        }
    }
}

/// What a metric is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Number,
    Explicit,
    Exponential,
    Summary,
}

/// Buckets with bounds of their own.
#[derive(Clone, Debug, Default)]
pub(super) struct Explicit {
    pub(super) count: u64,
    pub(super) sum: Option<f64>,
    pub(super) counts: Vec<u64>,
    pub(super) bounds: Vec<f64>,
}

/// One sign's buckets of an exponential histogram.
#[derive(Clone, Debug, Default)]
pub(super) struct Side {
    pub(super) offset: i32,
    pub(super) counts: Vec<u64>,
}

/// Buckets whose bounds grow by a factor.
#[derive(Clone, Debug, Default)]
pub(super) struct Exponential {
    pub(super) count: u64,
    pub(super) sum: Option<f64>,
    pub(super) scale: i32,
    pub(super) zero_count: u64,
    pub(super) positive: Side,
    pub(super) negative: Side,
}

/// A data point of any shape; parts that its shape does not have are empty.
#[derive(Debug)]
pub(super) struct Point<'a> {
    pub(super) attributes: Vec<Attribute<'a>>,
    pub(super) exemplars: Vec<Reader<'a>>,
    /// Nanoseconds since the Unix epoch; 0 when unknown.
    pub(super) start: u64,
    pub(super) time: u64,
    flags: u64,
    pub(super) number: Number,
    pub(super) explicit: Explicit,
    pub(super) exponential: Exponential,
    /// Count and sum of a summary.
    pub(super) summary: (u64, f64),
    pub(super) quantiles: Vec<(f64, f64)>,
    /// More parts came than any data point has.
    pub(super) too_many: bool,
}

impl<'a> Point<'a> {
    pub(super) fn new() -> Self {
        Self {
            attributes: Vec::new(),
            exemplars: Vec::new(),
            start: 0,
            time: 0,
            flags: 0,
            number: Number::Double(0.0),
            explicit: Explicit::default(),
            exponential: Exponential::default(),
            summary: (0, 0.0),
            quantiles: Vec::new(),
            too_many: false,
        }
    }

    /// Whether nothing was recorded: the series has ended for now.
    pub(super) fn is_stale(&self) -> bool {
        self.flags & NO_RECORDED_VALUE != 0
    }

    /// Milliseconds since the Unix epoch.
    pub(super) fn time_ms(&self) -> i64 {
        millis(self.time)
    }

    /// When what it counts began, milliseconds since the Unix epoch; 0 when unknown.
    pub(super) fn start_ms(&self) -> i64 {
        millis(self.start)
    }

    fn clear(&mut self) {
        self.attributes.clear();
        self.exemplars.clear();
        (self.start, self.time, self.flags) = (0, 0, 0);
        self.number = Number::Double(0.0);
        self.summary = (0, 0.0);
        self.quantiles.clear();
        self.too_many = false;
        let e = &mut self.explicit;
        (e.count, e.sum) = (0, None);
        e.counts.clear();
        e.bounds.clear();
        let e = &mut self.exponential;
        (e.count, e.sum, e.scale, e.zero_count) = (0, None, 0, 0);
        for side in [&mut e.positive, &mut e.negative] {
            side.offset = 0;
            side.counts.clear();
        }
    }

    /// Reads a data point over the last one.
    pub(super) fn decode(&mut self, shape: Shape, mut m: Reader<'a>) -> Result<(), OtlpError> {
        self.clear();
        // Fields of the same meaning have other numbers in each.
        let (attributes, exemplars, flags) = match shape {
            Shape::Number => (7, 5, 8),
            Shape::Explicit => (9, 8, 10),
            Shape::Exponential => (1, 11, 10),
            Shape::Summary => (7, 0, 8),
        };
        while !m.done() {
            let tag = m.tag()?;
            match tag.field {
                2 => {
                    tag.expect(FIXED64)?;
                    self.start = m.fixed64()?;
                }
                3 => {
                    tag.expect(FIXED64)?;
                    self.time = m.fixed64()?;
                }
                n if n == attributes => {
                    tag.expect(BYTES)?;
                    value::collect(m.message()?, &mut self.attributes)?;
                }
                n if n == exemplars => {
                    tag.expect(BYTES)?;
                    let exemplar = m.message()?;
                    if self.exemplars.len() < EXEMPLARS_MAX {
                        self.exemplars.push(exemplar);
                    }
                }
                n if n == flags => {
                    tag.expect(VARINT)?;
                    self.flags = m.varint()?;
                }
                _ => match shape {
                    Shape::Number => self.number_field(tag, &mut m)?,
                    Shape::Explicit => self.explicit_field(tag, &mut m)?,
                    Shape::Exponential => self.exponential_field(tag, &mut m)?,
                    Shape::Summary => self.summary_field(tag, &mut m)?,
                },
            }
        }
        Ok(())
    }

    fn number_field(&mut self, tag: Tag, m: &mut Reader<'a>) -> Result<(), OtlpError> {
        match tag.field {
            4 => {
                tag.expect(FIXED64)?;
                self.number = Number::Double(m.double()?);
            }
            6 => {
                tag.expect(FIXED64)?;
                self.number = Number::Int(m.fixed64()?.cast_signed());
            }
            _ => m.skip(tag)?,
        }
        Ok(())
    }

    fn explicit_field(&mut self, tag: Tag, m: &mut Reader<'a>) -> Result<(), OtlpError> {
        let (e, too_many) = (&mut self.explicit, &mut self.too_many);
        match tag.field {
            4 | 5 => tag.expect(FIXED64)?,
            _ => {}
        }
        match tag.field {
            4 => e.count = m.fixed64()?,
            5 => e.sum = Some(m.double()?),
            6 => m.numbers(tag, FIXED64, |r| {
                push(&mut e.counts, r.fixed64()?, too_many);
                Ok(())
            })?,
            7 => m.numbers(tag, FIXED64, |r| {
                push(&mut e.bounds, r.double()?, too_many);
                Ok(())
            })?,
            _ => m.skip(tag)?,
        }
        Ok(())
    }

    fn exponential_field(&mut self, tag: Tag, m: &mut Reader<'a>) -> Result<(), OtlpError> {
        let (e, too_many) = (&mut self.exponential, &mut self.too_many);
        match tag.field {
            4 | 5 | 7 => tag.expect(FIXED64)?,
            6 => tag.expect(VARINT)?,
            8 | 9 => tag.expect(BYTES)?,
            _ => {}
        }
        match tag.field {
            4 => e.count = m.fixed64()?,
            5 => e.sum = Some(m.double()?),
            6 => e.scale = unzigzag(m.varint()?) as i32,
            7 => e.zero_count = m.fixed64()?,
            8 => e.positive.decode(m.message()?, too_many)?,
            9 => e.negative.decode(m.message()?, too_many)?,
            _ => m.skip(tag)?,
        }
        Ok(())
    }

    fn summary_field(&mut self, tag: Tag, m: &mut Reader<'a>) -> Result<(), OtlpError> {
        match tag.field {
            4 => {
                tag.expect(FIXED64)?;
                self.summary.0 = m.fixed64()?;
            }
            5 => {
                tag.expect(FIXED64)?;
                self.summary.1 = m.double()?;
            }
            6 => {
                tag.expect(BYTES)?;
                let quantile = quantile(m.message()?)?;
                push(&mut self.quantiles, quantile, &mut self.too_many);
            }
            _ => m.skip(tag)?,
        }
        Ok(())
    }
}

impl Side {
    fn decode(&mut self, mut m: Reader<'_>, too_many: &mut bool) -> Result<(), OtlpError> {
        self.counts.clear();
        self.offset = 0;
        while !m.done() {
            let tag = m.tag()?;
            match tag.field {
                1 => {
                    tag.expect(VARINT)?;
                    self.offset = unzigzag(m.varint()?) as i32;
                }
                2 => m.numbers(tag, VARINT, |r| {
                    push(&mut self.counts, r.varint()?, too_many);
                    Ok(())
                })?,
                _ => m.skip(tag)?,
            }
        }
        Ok(())
    }
}

fn push<T>(all: &mut Vec<T>, item: T, too_many: &mut bool) {
    if all.len() < BUCKETS_MAX {
        all.push(item);
    } else {
        *too_many = true;
    }
}

fn quantile(mut m: Reader<'_>) -> Result<(f64, f64), OtlpError> {
    let mut quantile = (0.0, 0.0);
    while !m.done() {
        let tag = m.tag()?;
        match tag.field {
            1 => {
                tag.expect(FIXED64)?;
                quantile.0 = m.double()?;
            }
            2 => {
                tag.expect(FIXED64)?;
                quantile.1 = m.double()?;
            }
            _ => m.skip(tag)?,
        }
    }
    Ok(quantile)
}

/// From nanoseconds, both since the Unix epoch.
pub(super) fn millis(nanos: u64) -> i64 {
    const NANOS: i64 = 1_000_000;
    nanos.cast_signed() / NANOS
}
