//! Native histograms: decoded, checked, and turned into the float form.
//!
//! **Source**: Prometheus `model/histogram` `Histogram.Validate`, `FloatHistogram.Validate`, `reduceResolution`;
//! `storage/remote/write_handler.go`, whose appender makes histograms coarser that are finer than any it keeps.

use koios_model::{CUSTOM_BOUNDS_SCHEMA, Histogram, ResetHint, STALE_NAN_BITS, Span, spans_of};

use super::{DecodeError, RawHistogram};
use crate::protobuf::{BYTES, FIXED64, Reader, VARINT, unzigzag};

/// Most buckets of one sign, and most spans and custom bounds.
const BUCKETS_MAX: usize = 4096;

/// Finest resolution that is kept.
const SCHEMA_MAX: i32 = 8;
/// Finest resolution that is taken.
const SCHEMA_TAKEN_MAX: i32 = 52;

/// What is wrong with a native histogram.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum HistogramFault {
    /// No such resolution.
    #[error("invalid native histogram: schema {0} is unknown, must be -4 to {SCHEMA_TAKEN_MAX} or -53")]
    Schema(i32),
    /// More buckets or bounds than any histogram has.
    #[error("invalid native histogram: more than {BUCKETS_MAX} {0}")]
    TooMany(&'static str),
    /// The spans' lengths do not add up to the buckets.
    #[error("invalid native histogram: {sign} spans need {spans} buckets, have {buckets} buckets")]
    SpanLength {
        /// Positive or negative.
        sign: &'static str,
        /// What the spans say.
        spans: u64,
        /// What was sent.
        buckets: usize,
    },
    /// A later span starts before the one before it ends.
    #[error("invalid native histogram: {sign} span number {span} has a negative offset {offset}")]
    SpanOffset {
        /// Positive or negative.
        sign: &'static str,
        /// From 1.
        span: usize,
        /// As sent.
        offset: i64,
    },
    /// Buckets at indices that there are none of.
    #[error("invalid native histogram: {sign} span number {span} is at an index out of range")]
    BucketIndex {
        /// Positive or negative.
        sign: &'static str,
        /// From 1.
        span: usize,
    },
    /// A bucket's count is below zero or not a number.
    #[error("invalid native histogram: {sign} bucket number {bucket} has a count of {count}")]
    BucketCount {
        /// Positive or negative.
        sign: &'static str,
        /// From 1.
        bucket: usize,
        /// What it comes to.
        count: f64,
    },
    /// A count leaves the range of numbers.
    #[error("invalid native histogram: {sign} bucket number {bucket} overflows")]
    Overflow {
        /// Positive or negative.
        sign: &'static str,
        /// From 1.
        bucket: usize,
    },
    /// The buckets hold another number of observations than the histogram says.
    #[error("invalid native histogram: {buckets} observations in buckets, but the count is {count}")]
    Count {
        /// In buckets.
        buckets: f64,
        /// As sent.
        count: f64,
    },
    /// The zero bucket's width is below zero or not a number.
    #[error("invalid native histogram: zero threshold is {0}")]
    ZeroThreshold(f64),
    /// The zero bucket's count is below zero or not a number.
    #[error("invalid native histogram: zero bucket has a count of {0}")]
    ZeroCount(f64),
    /// Bounds of a custom-bucket histogram.
    #[error(
        "invalid native histogram: custom bounds must be strictly increasing, bound number {bound} is {value}"
    )]
    CustomBounds {
        /// From 1.
        bound: usize,
        /// As sent.
        value: f64,
    },
    /// Fewer bounds than the spans reach.
    #[error("invalid native histogram: spans reach bucket {reach} of {bounds} custom bounds")]
    CustomSpan {
        /// The highest bucket.
        reach: i64,
        /// How many bounds were sent.
        bounds: usize,
    },
    /// A custom-bucket histogram has neither a zero bucket nor negative ones.
    #[error("invalid native histogram: custom buckets allow no zero bucket and no negative buckets")]
    CustomSides,
    /// Bounds of its own with a schema that has none.
    #[error("invalid native histogram: schema {0} allows no custom bounds")]
    UnexpectedBounds(i32),
}

/// One sign's buckets.
#[derive(Debug, Default)]
struct Side {
    spans: Vec<(i64, u64)>,
    deltas: Vec<i64>,
    counts: Vec<f64>,
    too_many: bool,
}

/// A histogram's fields, kept between histograms for their space.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    t: i64,
    start: i64,
    hint: u64,
    schema: i32,
    count_int: u64,
    count_float: Option<f64>,
    sum: f64,
    zero_threshold: f64,
    zero_int: u64,
    zero_float: Option<f64>,
    positive: Side,
    negative: Side,
    bounds: Vec<f64>,
    too_many_bounds: bool,
}

impl Scratch {
    fn clear(&mut self) {
        let mut old = std::mem::take(self);
        for side in [&mut old.positive, &mut old.negative] {
            side.spans.clear();
            side.deltas.clear();
            side.counts.clear();
            side.too_many = false;
        }
        old.bounds.clear();
        self.positive = old.positive;
        self.negative = old.negative;
        self.bounds = old.bounds;
    }

    /// Reads the fields; both versions number them alike, and only 2.0 has the last.
    pub(super) fn decode(&mut self, mut m: Reader<'_>) -> Result<(), DecodeError> {
        self.clear();
        while !m.done() {
            let tag = m.tag()?;
            match tag.field {
                1 | 4 | 6 | 14 | 15 | 17 => tag.expect(VARINT)?,
                2 | 3 | 5 | 7 => tag.expect(FIXED64)?,
                8 | 11 => tag.expect(BYTES)?,
                _ => {}
            }
            match tag.field {
                1 => self.count_int = m.varint()?,
                2 => self.count_float = Some(m.double()?),
                3 => self.sum = m.double()?,
                4 => self.schema = unzigzag(m.varint()?) as i32,
                5 => self.zero_threshold = m.double()?,
                6 => self.zero_int = m.varint()?,
                7 => self.zero_float = Some(m.double()?),
                8 => self.negative.span(m.message()?)?,
                9 => m.numbers(tag, VARINT, |r| self.negative.delta(r))?,
                10 => m.numbers(tag, FIXED64, |r| self.negative.count(r))?,
                11 => self.positive.span(m.message()?)?,
                12 => m.numbers(tag, VARINT, |r| self.positive.delta(r))?,
                13 => m.numbers(tag, FIXED64, |r| self.positive.count(r))?,
                14 => self.hint = m.varint()?,
                15 => self.t = m.varint()? as i64,
                16 => m.numbers(tag, FIXED64, |r| {
                    let bound = r.double()?;
                    if self.bounds.len() < BUCKETS_MAX {
                        self.bounds.push(bound);
                    } else {
                        self.too_many_bounds = true;
                    }
                    Ok(())
                })?,
                17 => self.start = m.varint()? as i64,
                _ => m.skip(tag)?,
            }
        }
        Ok(())
    }

    /// What was decoded.
    pub(super) fn raw(&self) -> RawHistogram {
        RawHistogram {
            t: self.t,
            start: self.start,
            histogram: self.check().map(|()| self.histogram()),
        }
    }

    /// The float form of what was found good.
    fn histogram(&self) -> Histogram {
        let is_float = self.count_float.is_some();
        if self.sum.to_bits() == STALE_NAN_BITS {
            return Histogram::stale();
        }
        let coarser = self.schema.saturating_sub(SCHEMA_MAX).max(0);
        let (positive_spans, positive_buckets) = self.positive.absolute(is_float, coarser);
        let (negative_spans, negative_buckets) = self.negative.absolute(is_float, coarser);
        let mut histogram = Histogram {
            reset_hint: match self.hint {
                1 => ResetHint::Reset,
                2 => ResetHint::NotReset,
                3 => ResetHint::Gauge,
                _ => ResetHint::Unknown,
            },
            schema: self.schema.min(SCHEMA_MAX),
            zero_threshold: self.zero_threshold,
            zero_count: if is_float {
                self.zero_float.unwrap_or(0.0)
            } else {
                self.zero_int as f64
            },
            count: self.count_float.unwrap_or(self.count_int as f64),
            sum: self.sum,
            positive_spans,
            negative_spans,
            positive_buckets,
            negative_buckets,
            custom_bounds: self.bounds.clone(),
        };
        histogram.make_canonical();
        histogram
    }

    /// Checks what was decoded.
    fn check(&self) -> Result<(), HistogramFault> {
        if self.too_many_bounds {
            return Err(HistogramFault::TooMany("custom bounds"));
        }
        match self.schema {
            CUSTOM_BOUNDS_SCHEMA => self.check_custom()?,
            -4..=SCHEMA_TAKEN_MAX if self.bounds.is_empty() => {}
            -4..=SCHEMA_TAKEN_MAX => return Err(HistogramFault::UnexpectedBounds(self.schema)),
            other => return Err(HistogramFault::Schema(other)),
        }
        if !(self.zero_threshold >= 0.0 && self.zero_threshold.is_finite()) {
            return Err(HistogramFault::ZeroThreshold(self.zero_threshold));
        }
        if self.count_float.is_some() {
            self.check_float()
        } else {
            self.check_integer()
        }
    }

    fn check_custom(&self) -> Result<(), HistogramFault> {
        let mut last = f64::NEG_INFINITY;
        for (i, &value) in self.bounds.iter().enumerate() {
            // Also false for NaN; +Inf is implied and must not be sent.
            let ascends = (i == 0 && !value.is_nan()) || value > last;
            if !ascends || value == f64::INFINITY {
                return Err(HistogramFault::CustomBounds { bound: i + 1, value });
            }
            last = value;
        }
        let empty = self.negative.spans.is_empty()
            && self.negative.deltas.is_empty()
            && self.negative.counts.is_empty();
        if !empty
            || self.zero_int != 0
            || self.zero_float.is_some_and(|z| z != 0.0)
            || self.zero_threshold != 0.0
        {
            return Err(HistogramFault::CustomSides);
        }
        if self.positive.spans.first().is_some_and(|(offset, _)| *offset < 0) {
            return Err(HistogramFault::BucketIndex {
                sign: "positive",
                span: 1,
            });
        }
        let spans = self.positive.spans.iter();
        let reach = spans.fold(0i64, |at, (offset, len)| {
            at.saturating_add(*offset)
                .saturating_add(i64::try_from(*len).unwrap_or(i64::MAX))
        });
        // One bucket more than bounds: the last reaches to +Inf.
        if reach > self.bounds.len() as i64 + 1 {
            let bounds = self.bounds.len();
            return Err(HistogramFault::CustomSpan { reach, bounds });
        }
        Ok(())
    }

    fn check_integer(&self) -> Result<(), HistogramFault> {
        self.positive
            .check_spans("positive", self.positive.deltas.len())?;
        self.negative
            .check_spans("negative", self.negative.deltas.len())?;
        let in_buckets = self
            .positive
            .integer_total("positive")?
            .saturating_add(self.negative.integer_total("negative")?)
            .saturating_add(u128::from(self.zero_int));
        let count = u128::from(self.count_int);
        // Observations of NaN are in the count and in no bucket.
        let fits = if self.sum.is_nan() {
            in_buckets <= count
        } else {
            in_buckets == count
        };
        if fits || self.sum.to_bits() == STALE_NAN_BITS {
            return Ok(());
        }
        Err(HistogramFault::Count {
            buckets: in_buckets as f64,
            count: count as f64,
        })
    }

    fn check_float(&self) -> Result<(), HistogramFault> {
        self.positive
            .check_spans("positive", self.positive.counts.len())?;
        self.negative
            .check_spans("negative", self.negative.counts.len())?;
        let zero = self.zero_float.unwrap_or(0.0);
        if !(zero >= 0.0 && zero.is_finite()) {
            return Err(HistogramFault::ZeroCount(zero));
        }
        let buckets = self.positive.float_total("positive")? + self.negative.float_total("negative")? + zero;
        let count = self.count_float.unwrap_or(0.0);
        // Sums of floats depend on their order, so only a sign or a NaN is a mistake for certain.
        if !(count >= 0.0 && count.is_finite()) {
            return Err(HistogramFault::Count { buckets, count });
        }
        Ok(())
    }
}

impl Side {
    fn span(&mut self, mut m: Reader<'_>) -> Result<(), DecodeError> {
        let (mut offset, mut length) = (0, 0);
        while !m.done() {
            let tag = m.tag()?;
            match tag.field {
                1 => {
                    tag.expect(VARINT)?;
                    offset = i64::from(unzigzag(m.varint()?) as i32);
                }
                2 => {
                    tag.expect(VARINT)?;
                    length = u64::from(m.varint()? as u32);
                }
                _ => m.skip(tag)?,
            }
        }
        if self.spans.len() < BUCKETS_MAX {
            self.spans.push((offset, length));
        } else {
            self.too_many = true;
        }
        Ok(())
    }

    fn delta(&mut self, r: &mut Reader<'_>) -> Result<(), DecodeError> {
        let delta = unzigzag(r.varint()?);
        if self.deltas.len() < BUCKETS_MAX {
            self.deltas.push(delta);
        } else {
            self.too_many = true;
        }
        Ok(())
    }

    fn count(&mut self, r: &mut Reader<'_>) -> Result<(), DecodeError> {
        let count = r.double()?;
        if self.counts.len() < BUCKETS_MAX {
            self.counts.push(count);
        } else {
            self.too_many = true;
        }
        Ok(())
    }

    fn check_spans(&self, sign: &'static str, buckets: usize) -> Result<(), HistogramFault> {
        if self.too_many {
            return Err(HistogramFault::TooMany("buckets or spans"));
        }
        let later = self.spans.iter().enumerate().skip(1);
        if let Some((i, &(offset, _))) = later.clone().find(|(_, (offset, _))| *offset < 0) {
            return Err(HistogramFault::SpanOffset {
                sign,
                span: i + 1,
                offset,
            });
        }
        let spans: u64 = self.spans.iter().map(|(_, len)| *len).sum();
        if spans != buckets as u64 {
            return Err(HistogramFault::SpanLength { sign, spans, buckets });
        }
        let indices = i64::from(i32::MIN)..=i64::from(i32::MAX);
        let mut next = 0i64;
        for (i, &(offset, length)) in self.spans.iter().enumerate() {
            let first = next.saturating_add(offset);
            next = first.saturating_add_unsigned(length);
            if !indices.contains(&first) || !indices.contains(&next.saturating_sub(1)) {
                return Err(HistogramFault::BucketIndex { sign, span: i + 1 });
            }
        }
        Ok(())
    }

    fn integer_total(&self, sign: &'static str) -> Result<u128, HistogramFault> {
        let (mut current, mut total) = (0i64, 0u128);
        for (i, delta) in self.deltas.iter().enumerate() {
            let bucket = i + 1;
            current = current
                .checked_add(*delta)
                .ok_or(HistogramFault::Overflow { sign, bucket })?;
            let Ok(count) = u64::try_from(current) else {
                let count = current as f64;
                return Err(HistogramFault::BucketCount { sign, bucket, count });
            };
            total += u128::from(count);
        }
        Ok(total)
    }

    /// Spans and absolute counts, `2^coarser` buckets merged into one.
    fn absolute(&self, is_float: bool, coarser: i32) -> (Vec<Span>, Vec<f64>) {
        let mut current = 0i64;
        let counts = (0..).map_while(|i| {
            if is_float {
                return self.counts.get(i).copied();
            }
            current = current.wrapping_add(*self.deltas.get(i)?);
            Some(current as f64)
        });
        let mut next = 0i64;
        let indices = self.spans.iter().flat_map(|&(offset, length)| {
            let first = next.wrapping_add(offset);
            next = first.wrapping_add(length.cast_signed());
            first..next
        });
        let filled = indices.zip(counts).filter(|(_, count)| *count != 0.0);
        if coarser == 0 {
            return spans_of(filled.map(|(index, count)| (index as i32, count)));
        }
        let mut merged: Vec<(i32, f64)> = Vec::new();
        for (index, count) in filled {
            // Bucket 0 ends at 1 at every resolution.
            let index = (((index - 1) >> coarser) + 1) as i32;
            match merged.last_mut() {
                Some(last) if last.0 == index => last.1 += count,
                _ => merged.push((index, count)),
            }
        }
        spans_of(merged)
    }

    fn float_total(&self, sign: &'static str) -> Result<f64, HistogramFault> {
        for (i, &count) in self.counts.iter().enumerate() {
            if !(count >= 0.0 && count.is_finite()) {
                let bucket = i + 1;
                return Err(HistogramFault::BucketCount { sign, bucket, count });
            }
        }
        Ok(self.counts.iter().sum())
    }
}
