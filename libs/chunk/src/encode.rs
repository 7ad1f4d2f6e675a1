//! From columns of samples to the bytes of a chunk.

use bytes::Bytes;

use crate::bits::{write_varint, write_zigzag};
use crate::{Chunk, Error, FLAG_ESCAPES, SAMPLES_MAX, Starts, VERSION, column, decimal};

/// Samples of a chunk of a long run: enough to compress, few enough to decode a part of the run.
const RUN_CHUNK_SAMPLES: usize = 1024;
/// Runs of mantissas and of floats are short when they have fewer samples on average.
const SHORT_RUN: usize = 8;

/// Encodes runs of samples and keeps its scratch memory from one to the next.
#[derive(Debug, Default)]
pub struct Encoder {
    scratch: column::Scratch,
    offsets: Vec<i64>,
    mantissas: Vec<i64>,
    floats: Vec<i64>,
    /// Lengths of runs, in turn of mantissas and of floats, beginning with mantissas.
    runs: Vec<u64>,
    /// The times encoded last, and what they are of: series of one target follow each other and share them.
    times: Vec<u8>,
    times_of: Vec<i64>,
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
        let mut out = Vec::new();
        self.encode_onto(timestamps, values, &mut out)?;
        out.shrink_to_fit();
        Ok(out)
    }

    /// As [`Self::encode`], appended to what is in `out`; nothing is on failure.
    ///
    /// # Errors
    /// As [`encode`].
    pub fn encode_onto(
        &mut self,
        timestamps: &[i64],
        values: &[f64],
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let from = out.len();
        self.start(timestamps, values.len(), out, |encoder| {
            encoder.encode_values(values)
        })?;
        if self.times.is_empty() || self.times_of != self.offsets {
            self.times.clear();
            column::write(&mut self.times, &self.offsets, &mut self.scratch);
            self.times_of.clone_from(&self.offsets);
        }
        out.extend_from_slice(&self.times);
        self.end(from, out);
        Ok(())
    }

    /// As [`encode`], for what is encoded on demand: larger, and several times cheaper.
    ///
    /// # Errors
    /// As [`encode`].
    pub fn encode_fast(&mut self, timestamps: &[i64], values: &[f64]) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        self.start(timestamps, values.len(), &mut out, |encoder| {
            encoder.encode_values_fast(values)
        })?;
        column::write_times_fast(&mut out, &self.offsets);
        self.end(0, &mut out);
        Ok(out)
    }

    /// Appends a run of any length, none included, as chunks by [`Self::encode_fast`].
    ///
    /// # Errors
    /// As [`encode`].
    pub fn encode_run(
        &mut self,
        timestamps: &[i64],
        values: &[f64],
        out: &mut Vec<Chunk>,
    ) -> Result<(), Error> {
        self.each_chunk(timestamps, values, out, Self::encode_fast)
    }

    /// As [`Self::encode_run`], of samples that may have start timestamps.
    ///
    /// # Errors
    /// As [`encode`].
    pub fn encode_started_run(
        &mut self,
        timestamps: &[i64],
        values: &[f64],
        starts: &Starts,
        out: &mut Vec<Chunk>,
    ) -> Result<(), Error> {
        let had = out.len();
        self.encode_run(timestamps, values, out)?;
        if !starts.is_empty() {
            let chunks = out.split_off(had);
            for chunk in chunks {
                out.push(chunk.with_starts(starts)?);
            }
        }
        Ok(())
    }

    /// As [`Self::encode_run`], of values that are known to be `mantissas` divided by ten to the `exponent`.
    ///
    /// # Errors
    /// As [`encode`].
    pub fn encode_decimals(
        &mut self,
        timestamps: &[i64],
        mantissas: &[i64],
        exponent: u8,
        out: &mut Vec<Chunk>,
    ) -> Result<(), Error> {
        if exponent > decimal::EXPONENT_MAX {
            let values = mantissas.iter().map(|&m| decimal::from_mantissa(m, exponent));
            let values: Vec<f64> = values.collect();
            return self.encode_run(timestamps, &values, out);
        }
        self.each_chunk(timestamps, mantissas, out, |encoder, timestamps, mantissas| {
            let mut out = Vec::new();
            encoder.start(timestamps, mantissas.len(), &mut out, |encoder| {
                encoder.body.clear();
                column::write_fast(&mut encoder.body, mantissas);
                exponent
            })?;
            column::write_times_fast(&mut out, &encoder.offsets);
            encoder.end(0, &mut out);
            Ok(out)
        })
    }

    /// Encodes a run chunk by chunk.
    fn each_chunk<T>(
        &mut self,
        timestamps: &[i64],
        values: &[T],
        out: &mut Vec<Chunk>,
        mut encode: impl FnMut(&mut Self, &[i64], &[T]) -> Result<Vec<u8>, Error>,
    ) -> Result<(), Error> {
        same_length(timestamps, values.len())?;
        let mut before = None;
        let columns = timestamps
            .chunks(RUN_CHUNK_SAMPLES)
            .zip(values.chunks(RUN_CHUNK_SAMPLES));
        for (i, (timestamps, values)) in columns.enumerate() {
            if before.is_some() && before >= timestamps.first() {
                return Err(Error::NotAscending {
                    at: i * RUN_CHUNK_SAMPLES,
                });
            }
            before = timestamps.last();
            let mut bytes = encode(self, timestamps, values).map_err(|e| match e {
                Error::NotAscending { at } => Error::NotAscending {
                    at: i * RUN_CHUNK_SAMPLES + at,
                },
                e => e,
            })?;
            bytes.shrink_to_fit();
            out.push(Chunk::parse(Bytes::from(bytes))?);
        }
        Ok(())
    }

    /// Leaves the encoded values in `body` and the times in `offsets`; appends a chunk that ends before its times.
    fn start(
        &mut self,
        timestamps: &[i64],
        count: usize,
        out: &mut Vec<u8>,
        encode_values: impl FnOnce(&mut Self) -> u8,
    ) -> Result<(), Error> {
        let (first, last) = check(timestamps, count)?;
        let flags = encode_values(self);
        self.offsets.clear();
        self.offsets
            .extend(timestamps.iter().map(|t| t.wrapping_sub(first)));
        out.reserve(64 + self.body.len() + count);
        out.push(VERSION);
        out.push(flags);
        write_varint(out, count as u64);
        write_zigzag(out, first);
        write_varint(out, last.wrapping_sub(first) as u64);
        Ok(())
    }

    /// Ends the chunk that begins at `from`.
    fn end(&self, from: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.body);
        let sum = crc32c::crc32c(out.get(from..).unwrap_or_default());
        out.extend_from_slice(&sum.to_le_bytes());
    }

    /// As [`Self::encode_values`], with columns that are written in one way only.
    fn encode_values_fast(&mut self, values: &[f64]) -> u8 {
        // Floats alone are sooner decoded than very short runs of either.
        let floats_alone = |e: &Self| e.runs.len() * SHORT_RUN > values.len();
        self.encode_either(values, Self::write_split_fast, floats_alone)
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
        let floats_alone = |e: &Self| e.floats.len() * 8 > values.len();
        self.encode_either(values, Self::write_split, floats_alone)
    }

    /// Writes mantissas and floats; or, where it is worth a try, floats alone if they are not larger: values of 16 digits have
    /// a mantissa by luck, now and then.
    fn encode_either(
        &mut self,
        values: &[f64],
        write: fn(&mut Self, &mut Vec<u8>),
        worth_a_try: impl FnOnce(&Self) -> bool,
    ) -> u8 {
        let exponent = decimal::exponent_for_run(values);
        self.split(values, Some(exponent));
        let mut body = std::mem::take(&mut self.body);
        body.clear();
        write(self, &mut body);
        let mut flags = exponent | if self.floats.is_empty() { 0 } else { FLAG_ESCAPES };
        if !self.floats.is_empty() && !self.mantissas.is_empty() && worth_a_try(self) {
            let mut floats = std::mem::take(&mut self.other);
            floats.clear();
            self.split(values, None);
            write(self, &mut floats);
            if floats.len() < body.len() {
                std::mem::swap(&mut floats, &mut body);
                flags = FLAG_ESCAPES;
            }
            self.other = floats;
        }
        self.body = body;
        flags
    }

    fn write_runs(&self, out: &mut Vec<u8>) {
        if !self.floats.is_empty() {
            for &run in &self.runs {
                write_varint(out, run);
            }
        }
    }

    fn write_split(&mut self, out: &mut Vec<u8>) {
        self.write_runs(out);
        column::write(out, &self.mantissas, &mut self.scratch);
        column::write(out, &self.floats, &mut self.scratch);
    }

    fn write_split_fast(&mut self, out: &mut Vec<u8>) {
        self.write_runs(out);
        column::write_fast(out, &self.mantissas);
        column::write_fast(out, &self.floats);
    }
}

fn same_length(timestamps: &[i64], values: usize) -> Result<(), Error> {
    if timestamps.len() == values {
        return Ok(());
    }
    Err(Error::Lengths {
        timestamps: timestamps.len(),
        values,
    })
}

/// The first and last timestamp of a run that can be encoded.
fn check(timestamps: &[i64], values: usize) -> Result<(i64, i64), Error> {
    same_length(timestamps, values)?;
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoded(chunks: &[Chunk]) -> (Vec<i64>, Vec<u64>) {
        let (mut times, mut values) = (Vec::new(), Vec::new());
        for chunk in chunks {
            chunk.decode(&mut times, &mut values).unwrap();
        }
        (times, values.into_iter().map(f64::to_bits).collect())
    }

    proptest! {
        #[test]
        fn decimals_and_their_values_decode_to_the_same_bits(
            mantissas in proptest::collection::vec(any::<i64>().prop_map(|m| m >> (m & 63)), 0..3000),
            exponent in 0u8..=22,
            step in 1i64..100_000,
        ) {
            let times: Vec<i64> = (0..mantissas.len() as i64).map(|i| i * step).collect();
            let values: Vec<f64> = mantissas.iter().map(|&m| decimal::from_mantissa(m, exponent)).collect();
            let (mut a, mut b) = (Vec::new(), Vec::new());
            let mut encoder = Encoder::default();
            encoder.encode_decimals(&times, &mantissas, exponent, &mut a).unwrap();
            encoder.encode_run(&times, &values, &mut b).unwrap();
            let bits: Vec<u64> = values.iter().map(|v| v.to_bits()).collect();
            prop_assert_eq!(decoded(&a), (times.clone(), bits.clone()));
            prop_assert_eq!(decoded(&b), (times, bits));
        }
    }

    proptest! {
        #[test]
        fn an_encoder_that_has_encoded_gives_the_bytes_of_a_new_one(
            runs in proptest::collection::vec((0usize..3, any::<u32>(), 1usize..200), 1..20),
        ) {
            let mut used = Encoder::default();
            for (kind, seed, len) in runs {
                let step = |i: i64| [15_000, 15_000 + i * i % 7, 1 + i % 3][kind];
                let times: Vec<i64> = (0..len as i64).map(|i| i * 20_000 + step(i)).collect();
                let values: Vec<f64> = (0..len).map(|i| f64::from(seed >> (i % 32))).collect();
                prop_assert_eq!(used.encode(&times, &values), encode(&times, &values));
            }
        }
    }

    #[test]
    fn long_runs_must_ascend_from_chunk_to_chunk() {
        let mut times: Vec<i64> = (0..2000).collect();
        times[RUN_CHUNK_SAMPLES..].iter_mut().for_each(|t| *t -= 1);
        let mut out = Vec::new();
        let e = Encoder::default().encode_run(&times, &[1.0; 2000], &mut out);
        assert_eq!(
            e,
            Err(Error::NotAscending {
                at: RUN_CHUNK_SAMPLES
            })
        );
    }

    #[test]
    fn a_fall_is_told_by_its_place_in_the_whole_run() {
        for at in [
            3,
            RUN_CHUNK_SAMPLES - 1,
            RUN_CHUNK_SAMPLES,
            RUN_CHUNK_SAMPLES + 5,
            1999,
        ] {
            let mut times: Vec<i64> = (0..2000).collect();
            times[at] = times[at - 1];
            let mut encoder = Encoder::default();
            let e = Err(Error::NotAscending { at });
            assert_eq!(encoder.encode_run(&times, &[1.5; 2000], &mut Vec::new()), e);
            assert_eq!(
                encoder.encode_decimals(&times, &[15; 2000], 1, &mut Vec::new()),
                e
            );
        }
    }
}
