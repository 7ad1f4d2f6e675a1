//! From columns of samples to the bytes of a chunk.

use bytes::Bytes;

use crate::bits::{write_varint, write_zigzag};
use crate::{Chunk, Error, FLAG_ESCAPES, SAMPLES_MAX, VERSION, column, decimal};

/// Samples of a chunk of a long run: enough to compress, few enough to decode a part of the run.
const RUN_CHUNK_SAMPLES: usize = 1024;

/// Encodes runs of samples and keeps its scratch memory from one to the next.
#[derive(Debug, Default)]
pub struct Encoder {
    scratch: column::Scratch,
    offsets: Vec<i64>,
    mantissas: Vec<i64>,
    floats: Vec<i64>,
    /// Lengths of runs, in turn of mantissas and of floats, beginning with mantissas.
    runs: Vec<u64>,
    /// The encoded values.
    body: Vec<u8>,
    /// The values encoded in another way, to compare.
    other: Vec<u8>,
}

/// Encodes one run of samples into a chunk. `timestamps` are milliseconds, strictly ascending; `values` has the same
/// length, 1 to [`SAMPLES_MAX`].
///
/// # Errors
/// [`Error::Lengths`], [`Error::Count`] or [`Error::NotAscending`] when the columns are not such a run.
pub fn encode(timestamps: &[i64], values: &[f64]) -> Result<Vec<u8>, Error> {
    Encoder::default().encode(timestamps, values)
}

impl Encoder {
    /// As [`encode`]. The returned vector has no spare capacity.
    ///
    /// # Errors
    /// As [`encode`].
    pub fn encode(&mut self, timestamps: &[i64], values: &[f64]) -> Result<Vec<u8>, Error> {
        let mut out = self.start(timestamps, values, |encoder| encoder.encode_values(values))?;
        column::write(&mut out, &self.offsets, &mut self.scratch);
        let mut out = self.end(out);
        out.shrink_to_fit();
        Ok(out)
    }

    /// As [`encode`], for who decodes at once and keeps nothing: larger, and several times cheaper.
    ///
    /// # Errors
    /// As [`encode`].
    pub fn encode_fast(&mut self, timestamps: &[i64], values: &[f64]) -> Result<Vec<u8>, Error> {
        let mut out = self.start(timestamps, values, |encoder| encoder.encode_values_fast(values))?;
        column::write_fast(&mut out, &self.offsets);
        Ok(self.end(out))
    }

    /// Appends a run of any length, none included, as chunks by [`Self::encode_fast`].
    ///
    /// # Errors
    /// As [`encode`], and [`Error::NotAscending`] too where one chunk would meet the next.
    pub fn encode_run(
        &mut self,
        timestamps: &[i64],
        values: &[f64],
        out: &mut Vec<Chunk>,
    ) -> Result<(), Error> {
        if timestamps.len() != values.len() {
            return Err(Error::Lengths {
                timestamps: timestamps.len(),
                values: values.len(),
            });
        }
        let mut before = None;
        let columns = timestamps
            .chunks(RUN_CHUNK_SAMPLES)
            .zip(values.chunks(RUN_CHUNK_SAMPLES));
        for (i, (timestamps, values)) in columns.enumerate() {
            if before >= timestamps.first() && before.is_some() {
                return Err(Error::NotAscending {
                    at: i * RUN_CHUNK_SAMPLES,
                });
            }
            before = timestamps.last();
            let bytes = Bytes::from(self.encode_fast(timestamps, values)?);
            out.push(Chunk::parse(bytes)?);
        }
        Ok(())
    }

    /// Leaves the encoded values in `body` and the times in `offsets`; gives a chunk that ends before its times.
    fn start(
        &mut self,
        timestamps: &[i64],
        values: &[f64],
        encode_values: impl FnOnce(&mut Self) -> u8,
    ) -> Result<Vec<u8>, Error> {
        let (first, last) = check(timestamps, values)?;
        let flags = encode_values(self);
        self.offsets.clear();
        self.offsets
            .extend(timestamps.iter().map(|t| t.wrapping_sub(first)));
        let mut out = Vec::with_capacity(64 + self.body.len() + values.len());
        out.push(VERSION);
        out.push(flags);
        write_varint(&mut out, values.len() as u64);
        write_zigzag(&mut out, first);
        write_varint(&mut out, last.wrapping_sub(first) as u64);
        Ok(out)
    }

    fn end(&self, mut out: Vec<u8>) -> Vec<u8> {
        out.extend_from_slice(&self.body);
        let sum = crc32c::crc32c(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    /// As [`Self::encode_values`], trying one way only.
    fn encode_values_fast(&mut self, values: &[f64]) -> u8 {
        let exponent = decimal::exponent_for_run(values);
        self.split(values, Some(exponent));
        self.body.clear();
        if !self.floats.is_empty() {
            for &run in &self.runs {
                write_varint(&mut self.body, run);
            }
        }
        column::write_fast(&mut self.body, &self.mantissas);
        column::write_fast(&mut self.body, &self.floats);
        exponent | if self.floats.is_empty() { 0 } else { FLAG_ESCAPES }
    }

    /// Divides values into mantissas at `exponent` and floats; all into floats without one.
    fn split(&mut self, values: &[f64], exponent: Option<u8>) {
        self.mantissas.clear();
        self.floats.clear();
        self.runs.clear();
        let (mut in_floats, mut run) = (false, 0u64);
        for &v in values {
            let mantissa = exponent.and_then(|e| decimal::to_mantissa(v, e));
            if mantissa.is_none() != in_floats {
                self.runs.push(run);
                (in_floats, run) = (!in_floats, 0);
            }
            run += 1;
            match mantissa {
                Some(m) => self.mantissas.push(m),
                None => self.floats.push(v.to_bits() as i64),
            }
        }
        self.runs.push(run);
    }

    /// Leaves the encoded values in `body` and gives the flags byte.
    fn encode_values(&mut self, values: &[f64]) -> u8 {
        let exponent = decimal::exponent_for_run(values);
        self.split(values, Some(exponent));
        let mut body = std::mem::take(&mut self.body);
        body.clear();
        self.write_split(&mut body);
        let mut flags = exponent | if self.floats.is_empty() { 0 } else { FLAG_ESCAPES };
        // Values of 16 digits have a mantissa by luck, now and then: floats alone may be smaller.
        if self.floats.len() * 8 > values.len() && !self.mantissas.is_empty() {
            let mut floats = std::mem::take(&mut self.other);
            floats.clear();
            self.split(values, None);
            self.write_split(&mut floats);
            if floats.len() < body.len() {
                std::mem::swap(&mut floats, &mut body);
                flags = FLAG_ESCAPES;
            }
            self.other = floats;
        }
        self.body = body;
        flags
    }

    fn write_split(&mut self, out: &mut Vec<u8>) {
        if !self.floats.is_empty() {
            for &run in &self.runs {
                write_varint(out, run);
            }
        }
        column::write(out, &self.mantissas, &mut self.scratch);
        column::write(out, &self.floats, &mut self.scratch);
    }
}

/// The first and last timestamp of a run that can be encoded.
fn check(timestamps: &[i64], values: &[f64]) -> Result<(i64, i64), Error> {
    if timestamps.len() != values.len() {
        return Err(Error::Lengths {
            timestamps: timestamps.len(),
            values: values.len(),
        });
    }
    let (Some(&first), Some(&last)) = (timestamps.first(), timestamps.last()) else {
        return Err(Error::Count { count: 0 });
    };
    if timestamps.len() > SAMPLES_MAX {
        return Err(Error::Count {
            count: timestamps.len() as u64,
        });
    }
    match timestamps.windows(2).position(|w| w[0] >= w[1]) {
        Some(i) => Err(Error::NotAscending { at: i + 1 }),
        None => Ok((first, last)),
    }
}
