//! Native histograms in chunks.
//!
//! **Source**: Prometheus `tsdb/chunkenc/histogram_meta.go`, `histogram.go`, `float_histogram.go`.

use koios_model::{CUSTOM_BOUNDS_SCHEMA, Histogram, ResetHint, Span, is_stale};

use crate::bits::{Bits, XorValue};

/// Most buckets of one sign: a thousand times what clients send.
const BUCKETS_MAX: usize = 1 << 16;

/// Most custom bounds, which every histogram has a copy of.
const BOUNDS_MAX: u64 = 8192;

/// What all histograms of a chunk have in common.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    gauge: bool,
    schema: i32,
    zero_threshold: f64,
    positive: Vec<Span>,
    negative: Vec<Span>,
    custom_bounds: Vec<f64>,
    positive_count: usize,
    negative_count: usize,
}

impl Layout {
    /// Reads it; `None` where the bits end, an error where they say what cannot be.
    pub(crate) fn read(bits: &mut Bits<'_>, gauge: bool) -> Option<Result<Self, &'static str>> {
        let zero_threshold = zero_threshold(bits)?;
        let schema = bits.varbit_int()?;
        let Some(schema) = i32::try_from(schema)
            .ok()
            .filter(|s| (-4..=8).contains(s) || *s == CUSTOM_BOUNDS_SCHEMA)
        else {
            return Some(Err(
                "its histograms have a schema that is neither -4 to 8 nor -53",
            ));
        };
        let read = |bits: &mut Bits<'_>| spans(bits).map(|spans| spans.and_then(counted));
        let (positive, negative) = (read(bits)?, read(bits)?);
        let ((positive, positive_count), (negative, negative_count)) = match (positive, negative) {
            (Ok(positive), Ok(negative)) => (positive, negative),
            (Err(e), _) | (_, Err(e)) => return Some(Err(e)),
        };
        let mut custom_bounds = Vec::new();
        if schema == CUSTOM_BOUNDS_SCHEMA {
            let count = bits.varbit_uint()?;
            if count > BOUNDS_MAX {
                return Some(Err("its histograms have more than 8192 custom bounds"));
            }
            for _ in 0..count {
                custom_bounds.push(custom_bound(bits)?);
            }
            let ascend = custom_bounds.is_sorted_by(|a, b| a < b);
            if !ascend || !fit(&positive, custom_bounds.len()) || negative_count > 0 {
                return Some(Err(
                    "its histograms have custom buckets that do not fit their bounds",
                ));
            }
        }
        Some(Ok(Self {
            gauge,
            schema,
            zero_threshold,
            positive,
            negative,
            custom_bounds,
            positive_count,
            negative_count,
        }))
    }

    /// A histogram of this layout, in the form it is kept in.
    fn histogram(&self, numbers: [f64; 3], positive: Vec<f64>, negative: Vec<f64>) -> Histogram {
        let [count, zero_count, sum] = numbers;
        let mut histogram = Histogram {
            reset_hint: match self.gauge {
                true => ResetHint::Gauge,
                false => ResetHint::Unknown,
            },
            schema: self.schema,
            zero_threshold: self.zero_threshold,
            zero_count,
            count,
            sum,
            positive_spans: self.positive.clone(),
            negative_spans: self.negative.clone(),
            positive_buckets: positive,
            negative_buckets: negative,
            custom_bounds: self.custom_bounds.clone(),
        };
        histogram.make_canonical();
        histogram
    }
}

fn zero_threshold(bits: &mut Bits<'_>) -> Option<f64> {
    match bits.take(8)? {
        0 => Some(0.0),
        255 => bits.float(),
        // A power of two.
        exponent => Some(f64::powi(2.0, exponent as i32 - 244)),
    }
}

fn custom_bound(bits: &mut Bits<'_>) -> Option<f64> {
    match bits.varbit_uint()? {
        0 => bits.float(),
        thousandths => Some((thousandths - 1) as f64 / 1000.0),
    }
}

/// Spans, as many as are announced, without those of no bucket; every histogram of the chunk has a copy of them.
fn spans(bits: &mut Bits<'_>) -> Option<Result<Vec<Span>, &'static str>> {
    let mut spans: Vec<Span> = Vec::new();
    // What the spans of no bucket since the last one skipped.
    let mut skipped = 0i64;
    let announced = bits.varbit_uint()?;
    for i in 0..announced {
        let (length, offset) = (bits.varbit_uint()?, bits.varbit_int()?);
        if i > 0 && offset < 0 {
            return Some(Err("its histograms have spans that overlap"));
        }
        skipped = skipped.saturating_add(offset);
        let (Ok(length), Ok(offset)) = (u32::try_from(length), i32::try_from(skipped)) else {
            return Some(Err("its histograms have a span of more than 32 bits"));
        };
        if length > 0 {
            spans.push(Span { offset, length });
            skipped = 0;
        }
    }
    Some(Ok(spans))
}

/// How many buckets spans have, if they can be.
fn counted(spans: Vec<Span>) -> Result<(Vec<Span>, usize), &'static str> {
    let (mut index, mut count) = (0i64, 0usize);
    for span in &spans {
        index += i64::from(span.offset) + i64::from(span.length);
        count = count.saturating_add(span.length as usize);
        if i32::try_from(index).is_err() || count > BUCKETS_MAX {
            return Err("its histograms have more buckets than there can be");
        }
    }
    Ok((spans, count))
}

/// Whether spans that do not overlap are of buckets that so many bounds make: one more than there are bounds.
fn fit(spans: &[Span], bounds: usize) -> bool {
    let ends = spans.iter().map(|s| i64::from(s.offset) + i64::from(s.length));
    spans.first().is_none_or(|first| first.offset >= 0) && ends.sum::<i64>() <= bounds as i64 + 1
}

/// A whole number of which the change of the change is written.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Changing {
    now: i64,
    step: i64,
}

impl Changing {
    fn starting_with(now: i64) -> Self {
        Self { now, step: 0 }
    }
}

/// How an encoding writes the counts of a histogram.
pub(crate) trait Number: Sized {
    /// Least bits that the first histogram's count of a bucket takes.
    const BUCKET_BITS_MIN: usize;

    /// Reads the first histogram's count, of all observations or of those in the zero bucket.
    fn first(bits: &mut Bits<'_>) -> Option<Self>;

    /// Reads the first histogram's count of a bucket, or what is written in its stead.
    fn first_bucket(bits: &mut Bits<'_>) -> Option<Self>;

    /// Reads the next histogram's.
    fn next(&mut self, bits: &mut Bits<'_>) -> Option<()>;

    fn value(&self) -> f64;

    /// The counts of buckets in a row; `None` when there are fewer than no observations in one.
    fn counts(buckets: &[Self]) -> Option<Vec<f64>>;
}

/// Whole numbers; buckets hold what they differ by from the one before.
impl Number for Changing {
    const BUCKET_BITS_MIN: usize = 1;

    fn first(bits: &mut Bits<'_>) -> Option<Self> {
        Some(Self::starting_with(bits.varbit_uint()?.cast_signed()))
    }

    fn first_bucket(bits: &mut Bits<'_>) -> Option<Self> {
        bits.varbit_int().map(Self::starting_with)
    }

    #[inline]
    fn next(&mut self, bits: &mut Bits<'_>) -> Option<()> {
        self.step = self.step.wrapping_add(bits.varbit_int()?);
        self.now = self.now.wrapping_add(self.step);
        Some(())
    }

    fn value(&self) -> f64 {
        self.now.cast_unsigned() as f64
    }

    fn counts(buckets: &[Self]) -> Option<Vec<f64>> {
        let mut now = 0i64;
        let absolute = |delta: &Self| {
            now = now.wrapping_add(delta.now);
            (now >= 0).then_some(now as f64)
        };
        buckets.iter().map(absolute).collect()
    }
}

impl Number for XorValue {
    const BUCKET_BITS_MIN: usize = 64;

    fn first(bits: &mut Bits<'_>) -> Option<Self> {
        bits.float().map(Self::starting_with)
    }

    fn first_bucket(bits: &mut Bits<'_>) -> Option<Self> {
        Self::first(bits)
    }

    #[inline]
    fn next(&mut self, bits: &mut Bits<'_>) -> Option<()> {
        Self::next(self, bits)
    }

    fn value(&self) -> f64 {
        Self::value(self)
    }

    fn counts(buckets: &[Self]) -> Option<Vec<f64>> {
        let counts = buckets.iter().map(Self::value);
        counts.map(|count| (count >= 0.0).then_some(count)).collect()
    }
}

/// Counts of one histogram after the other, as its encoding writes them.
#[derive(Clone, Debug)]
pub(crate) struct Counts<N> {
    count: N,
    zero_count: N,
    sum: XorValue,
    positive: Vec<N>,
    negative: Vec<N>,
}

impl<N: Number> Counts<N> {
    /// Reads the first histogram's.
    pub(crate) fn first(bits: &mut Bits<'_>, layout: &Layout) -> Option<Self> {
        let (count, zero_count) = (N::first(bits)?, N::first(bits)?);
        let sum = XorValue::starting_with(bits.float()?);
        let side = |bits: &mut Bits<'_>, count: usize| -> Option<Vec<N>> {
            if count > bits.left() / N::BUCKET_BITS_MIN {
                return None;
            }
            (0..count).map(|_| N::first_bucket(bits)).collect()
        };
        Some(Self {
            count,
            zero_count,
            sum,
            positive: side(bits, layout.positive_count)?,
            negative: side(bits, layout.negative_count)?,
        })
    }

    /// Reads the next one's.
    pub(crate) fn next(&mut self, bits: &mut Bits<'_>) -> Option<()> {
        self.count.next(bits)?;
        self.zero_count.next(bits)?;
        self.sum.next(bits)?;
        if is_stale(self.sum.value()) {
            return Some(());
        }
        let mut buckets = self.positive.iter_mut().chain(&mut self.negative);
        buckets.try_for_each(|bucket| bucket.next(bits))
    }

    /// The histogram as it is now.
    pub(crate) fn histogram(&self, layout: &Layout) -> Result<Histogram, &'static str> {
        if is_stale(self.sum.value()) {
            return Ok(Histogram::stale());
        }
        let side = |buckets: &[N]| {
            let counts = N::counts(buckets);
            counts.ok_or("its histograms have a bucket with fewer than no observations")
        };
        let numbers = [self.count.value(), self.zero_count.value(), self.sum.value()];
        Ok(layout.histogram(numbers, side(&self.positive)?, side(&self.negative)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn custom_buckets_are_as_many_as_bounds_and_one() {
        let spans = |all: &[(i32, u32)]| -> Vec<Span> {
            let span = |(offset, length): &(i32, u32)| Span {
                offset: *offset,
                length: *length,
            };
            all.iter().map(span).collect()
        };
        for (of, bounds, fits) in [
            (&[][..], 0, true),
            (&[(0, 3)], 2, true),
            (&[(0, 4)], 2, false),
            (&[(2, 1)], 2, true),
            (&[(3, 1)], 2, false),
            (&[(-1, 1)], 2, false),
            (&[(0, 1), (1, 1)], 2, true),
            (&[(0, 1), (2, 1)], 2, false),
            (&[(0, 65536)], 2, false),
        ] {
            assert_eq!(fit(&spans(of), bounds), fits, "{of:?} of {bounds} bounds");
        }
    }
}
