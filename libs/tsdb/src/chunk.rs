//! Samples of chunks, of every encoding.
//!
//! **Source**: Prometheus `tsdb/docs/format/chunks.md` and `tsdb/chunkenc`.

use std::sync::Arc;

use koios_model::{Histogram, STALE_NAN_BITS, Sample, is_stale};

use crate::bits::{Bits, XorValue};
use crate::histogram::{Changing, Counts, Layout, Number};

/// Most bytes of histograms of one series in the time that is asked for.
const SERIES_HISTOGRAM_BYTES_MAX: usize = 128 << 20;

/// Decoded samples, in the order of their chunks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples {
    pub(crate) floats: Vec<Sample>,
    pub(crate) histograms: Vec<(i64, Arc<Histogram>)>,
    /// Start timestamps with the time of their samples, where there are any.
    pub(crate) starts: Vec<(i64, i64)>,
    /// Bytes of the histograms.
    pub(crate) histogram_bytes: usize,
}

/// Why a chunk cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChunkError {
    #[error("it ends in the middle of sample {sample} of {of}, or holds a number that nobody writes")]
    Cut { sample: usize, of: usize },
    #[error("its encoding {0} is not known: a newer Prometheus wrote it")]
    Encoding(u8),
    #[error("its samples do not ascend in time")]
    Order,
    #[error("{0}")]
    Histogram(&'static str),
    #[error("the histograms of its series take more than {SERIES_HISTOGRAM_BYTES_MAX} bytes")]
    TooMuch,
}

/// How the samples of a chunk are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Xor,
    Histogram { starts: bool },
    FloatHistogram { starts: bool },
    Xor2,
}

impl Encoding {
    pub(crate) fn of(byte: u8) -> Result<Self, ChunkError> {
        Ok(match byte {
            1 => Self::Xor,
            2 => Self::Histogram { starts: false },
            3 => Self::FloatHistogram { starts: false },
            4 => Self::Xor2,
            5 => Self::Histogram { starts: true },
            6 => Self::FloatHistogram { starts: true },
            other => return Err(ChunkError::Encoding(other)),
        })
    }
}

/// Decodes a chunk. Gives the first and last time and how many samples there were; `None` for a chunk of none.
pub(crate) fn decode(encoding: u8, data: &[u8], out: &mut Samples) -> Result<Option<Decoded>, ChunkError> {
    let encoding = Encoding::of(encoding)?;
    let header = Header::read(encoding, data).ok_or(ChunkError::Cut { sample: 0, of: 0 })?;
    let mut seen = Seen::default();
    match encoding {
        Encoding::Xor => xor(&header, &mut seen, out),
        Encoding::Xor2 => xor2(&header, &mut seen, out),
        Encoding::Histogram { .. } => histograms::<Changing>(&header, &mut seen, out),
        Encoding::FloatHistogram { .. } => histograms::<XorValue>(&header, &mut seen, out),
    }?;
    Ok(seen.decoded)
}

/// What a chunk turned out to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decoded {
    pub(crate) first: i64,
    pub(crate) last: i64,
    pub(crate) count: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    decoded: Option<Decoded>,
}

impl Seen {
    #[inline]
    fn note(&mut self, t: i64) -> Result<(), ChunkError> {
        match &mut self.decoded {
            None => {
                self.decoded = Some(Decoded {
                    first: t,
                    last: t,
                    count: 1,
                });
            }
            Some(seen) if seen.last < t => {
                seen.last = t;
                seen.count += 1;
            }
            Some(_) => return Err(ChunkError::Order),
        }
        Ok(())
    }
}

/// What stands before the bits.
struct Header<'a> {
    count: usize,
    gauge: bool,
    starts: Starts,
    bits: Bits<'a>,
}

impl<'a> Header<'a> {
    fn read(encoding: Encoding, data: &'a [u8]) -> Option<Self> {
        let (count, rest) = data.split_first_chunk::<2>()?;
        let count = u16::from_be_bytes(*count);
        let third = || rest.split_first();
        let (count, gauge, starts, rest) = match encoding {
            Encoding::Xor => (count, false, 0, rest),
            Encoding::Xor2 => {
                let (starts, rest) = third()?;
                (count, false, *starts, rest)
            }
            Encoding::Histogram { starts: false } | Encoding::FloatHistogram { starts: false } => {
                let (flags, rest) = third()?;
                (count, flags >> 6 == 3, 0, rest)
            }
            // What the chunk says of resets is where the count has room for it.
            Encoding::Histogram { starts: true } | Encoding::FloatHistogram { starts: true } => {
                let (starts, rest) = third()?;
                (count & 0x3fff, count >> 14 == 3, *starts, rest)
            }
        };
        Some(Self {
            count: usize::from(count),
            gauge,
            starts: Starts::new(starts),
            bits: Bits::new(rest),
        })
    }

    fn cut(&self, sample: usize) -> ChunkError {
        ChunkError::Cut {
            sample,
            of: self.count,
        }
    }
}

/// Start timestamps, as what lies between each and the sample before.
#[derive(Clone, Copy, Debug, Default)]
struct Starts {
    first_known: bool,
    /// The first sample, from 1, that says something of its own; 0 for none.
    changes_on: usize,
    start: i64,
    before: i64,
}

impl Starts {
    fn new(header: u8) -> Self {
        Self {
            first_known: header & 0x80 != 0,
            changes_on: usize::from(header & 0x7f),
            ..Self::default()
        }
    }

    /// Reads what follows sample `i`, at time `t`, the one before it being at `previous`.
    #[inline]
    fn read(&mut self, bits: &mut Bits<'_>, i: usize, t: i64, previous: i64) -> Option<()> {
        if i == 0 {
            if self.first_known {
                self.before = bits.varint()?;
                self.start = t.wrapping_sub(self.before);
            }
        } else if self.changes_on > 0 && i >= self.changes_on {
            let change = bits.varbit_int()?;
            self.before = match i == self.changes_on {
                true => change,
                false => self.before.wrapping_add(change),
            };
            self.start = previous.wrapping_sub(self.before);
        }
        Some(())
    }

    #[inline]
    fn keep(&self, t: i64, out: &mut Vec<(i64, i64)>) {
        if self.start != 0 {
            out.push((t, self.start));
        }
    }
}

fn xor(header: &Header<'_>, seen: &mut Seen, out: &mut Samples) -> Result<(), ChunkError> {
    let mut bits = header.bits.clone();
    let (mut t, mut step, mut value) = (0i64, 0i64, XorValue::default());
    let mut next = |i: usize| -> Option<Sample> {
        match i {
            0 => {
                t = bits.varint()?;
                value = XorValue::starting_with(bits.float()?);
            }
            1 => {
                step = bits.uvarint()?.cast_signed();
                t = t.wrapping_add(step);
                value.next(&mut bits)?;
            }
            _ => {
                let change = match bits.ones(4)? {
                    0 => 0,
                    1 => bits.signed(14)?,
                    2 => bits.signed(17)?,
                    3 => bits.signed(20)?,
                    _ => bits.take(64)?.cast_signed(),
                };
                step = step.wrapping_add(change);
                t = t.wrapping_add(step);
                value.next(&mut bits)?;
            }
        }
        Some(Sample { t, v: value.value() })
    };
    for i in 0..header.count {
        let sample = next(i).ok_or_else(|| header.cut(i))?;
        seen.note(sample.t)?;
        out.floats.push(sample);
    }
    Ok(())
}

/// Reads the floats of an XOR2 chunk: stale markers leave the value that the next one is compared with.
struct Xor2<'a> {
    bits: Bits<'a>,
    t: i64,
    step: i64,
    value: XorValue,
    starts: Starts,
}

impl Xor2<'_> {
    fn next(&mut self, i: usize) -> Option<Sample> {
        let previous = self.t;
        let v = match i {
            0 => {
                self.t = self.bits.varint()?;
                let first = self.bits.float()?;
                if !is_stale(first) {
                    self.value = XorValue::starting_with(first);
                }
                first
            }
            1 => {
                self.step = self.bits.uvarint()?.cast_signed();
                self.t = self.t.wrapping_add(self.step);
                self.value()?
            }
            _ => self.joint()?,
        };
        self.starts.read(&mut self.bits, i, self.t, previous)?;
        Some(Sample { t: self.t, v })
    }

    /// Time and value of the third sample and later ones, which have a prefix in common.
    #[inline]
    fn joint(&mut self) -> Option<f64> {
        let kind = self.bits.ones(5)?;
        let change = match kind {
            2 => self.bits.twos_complement(13)?,
            3 => self.bits.twos_complement(20)?,
            4 => self.bits.take(64)?.cast_signed(),
            _ => 0,
        };
        self.step = self.step.wrapping_add(change);
        self.t = self.t.wrapping_add(self.step);
        match kind {
            0 => Some(self.value.value()),
            1 => {
                if self.bits.bit()? {
                    self.value.read_window(&mut self.bits)?;
                }
                self.value.change(&mut self.bits)?;
                Some(self.value.value())
            }
            5 => Some(f64::from_bits(STALE_NAN_BITS)),
            _ => self.value(),
        }
    }

    /// A value with a prefix of its own.
    #[inline]
    fn value(&mut self) -> Option<f64> {
        match self.bits.ones(3)? {
            0 => {}
            1 => self.value.change(&mut self.bits)?,
            2 => {
                self.value.read_window(&mut self.bits)?;
                self.value.change(&mut self.bits)?;
            }
            _ => return Some(f64::from_bits(STALE_NAN_BITS)),
        }
        Some(self.value.value())
    }
}

fn xor2(header: &Header<'_>, seen: &mut Seen, out: &mut Samples) -> Result<(), ChunkError> {
    let mut reader = Xor2 {
        bits: header.bits.clone(),
        t: 0,
        step: 0,
        value: XorValue::default(),
        starts: header.starts,
    };
    for i in 0..header.count {
        let sample = reader.next(i).ok_or_else(|| header.cut(i))?;
        seen.note(sample.t)?;
        reader.starts.keep(sample.t, &mut out.starts);
        out.floats.push(sample);
    }
    Ok(())
}

fn histograms<N: Number>(header: &Header<'_>, seen: &mut Seen, out: &mut Samples) -> Result<(), ChunkError> {
    let mut bits = header.bits.clone();
    if header.count == 0 {
        return Ok(());
    }
    let cut = |i| header.cut(i);
    let layout = Layout::read(&mut bits, header.gauge)
        .ok_or_else(|| cut(0))?
        .map_err(ChunkError::Histogram)?;
    let mut t = bits.varbit_int().ok_or_else(|| cut(0))?;
    let mut step = 0i64;
    let mut buckets = Counts::<N>::first(&mut bits, &layout).ok_or_else(|| cut(0))?;
    let mut starts = header.starts;
    for i in 0..header.count {
        let previous = t;
        if i > 0 {
            step = step.wrapping_add(bits.varbit_int().ok_or_else(|| cut(i))?);
            t = t.wrapping_add(step);
            buckets.next(&mut bits).ok_or_else(|| cut(i))?;
        }
        starts.read(&mut bits, i, t, previous).ok_or_else(|| cut(i))?;
        seen.note(t)?;
        starts.keep(t, &mut out.starts);
        let histogram = buckets.histogram(&layout).map_err(ChunkError::Histogram)?;
        out.histogram_bytes += size_of::<Histogram>() + histogram.heap_bytes();
        if out.histogram_bytes > SERIES_HISTOGRAM_BYTES_MAX {
            return Err(ChunkError::TooMuch);
        }
        out.histograms.push((t, Arc::new(histogram)));
    }
    Ok(())
}
