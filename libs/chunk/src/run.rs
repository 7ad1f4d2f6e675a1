//! Samples of one series in whatever form they are kept, so that nothing is encoded only to be decoded.

use std::sync::Arc;

use koios_model::{Histogram, Summary, TimeRange};

use crate::view::{FLOAT_BYTES, START_BYTES};
use crate::{Chunk, Encoder, Error, OpenRun, Starts};

/// Decoded samples of one series: strictly ascending times in milliseconds, and as many values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlainRun {
    timestamps: Vec<i64>,
    values: Vec<f64>,
    starts: Starts,
}

impl PlainRun {
    /// Takes two columns.
    ///
    /// # Errors
    /// [`Error::Lengths`], [`Error::Count`] when they are empty, [`Error::NotAscending`].
    pub fn new(timestamps: Vec<i64>, values: Vec<f64>) -> Result<Self, Error> {
        if timestamps.len() != values.len() {
            return Err(Error::Lengths {
                timestamps: timestamps.len(),
                values: values.len(),
            });
        }
        if timestamps.is_empty() {
            return Err(Error::Count { count: 0 });
        }
        match timestamps.windows(2).position(|w| w[0] >= w[1]) {
            Some(at) => Err(Error::NotAscending { at: at + 1 }),
            None => Ok(Self {
                timestamps,
                values,
                starts: Starts::default(),
            }),
        }
    }

    /// Gives the samples start timestamps.
    #[must_use]
    pub fn with_starts(mut self, starts: Starts) -> Self {
        self.starts = starts;
        self
    }

    /// The times.
    pub fn timestamps(&self) -> &[i64] {
        &self.timestamps
    }

    /// The values.
    pub fn values(&self) -> &[f64] {
        &self.values
    }
}

/// A run of samples of one kind on its way from where it is kept to where it is evaluated. Between processes only chunks travel.
#[derive(Clone, Debug)]
pub enum Run {
    /// Encoded.
    Chunk(Chunk),
    /// The open samples of a head.
    Open(OpenRun),
    /// Decoded.
    Plain(PlainRun),
}

impl Run {
    /// Its first and last timestamp.
    pub fn time_range(&self) -> TimeRange {
        match self {
            Self::Chunk(chunk) => chunk.time_range(),
            Self::Open(open) => open.time_range(),
            Self::Plain(plain) => match (plain.timestamps.first(), plain.timestamps.last()) {
                (Some(&first), Some(&last)) => TimeRange::new(first, last),
                _ => TimeRange { min: 1, max: 0 },
            },
        }
    }

    /// How many samples it has.
    pub fn count(&self) -> usize {
        match self {
            Self::Chunk(chunk) => chunk.count(),
            Self::Open(open) => open.count(),
            Self::Plain(plain) => plain.timestamps.len(),
        }
    }

    /// Bytes its samples take in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Chunk(chunk) => chunk.bytes().len(),
            Self::Open(open) => open.bytes().len() + open.starts().heap_bytes(),
            Self::Plain(plain) => {
                plain.timestamps.len() * (size_of::<i64>() + size_of::<f64>()) + plain.starts.heap_bytes()
            }
        }
    }

    /// Whether any of its samples has a start timestamp.
    pub fn has_starts(&self) -> bool {
        match self {
            Self::Chunk(chunk) => chunk.has_starts(),
            Self::Open(open) => !open.starts().is_empty(),
            Self::Plain(plain) => !plain.starts.is_empty(),
        }
    }

    /// Appends the start timestamps of the samples of a closed range that have one, each with the time of its sample, in
    /// strictly ascending time.
    ///
    /// # Errors
    /// [`Error`] when they are damaged.
    pub fn decode_starts(&self, range: TimeRange, out: &mut Vec<(i64, i64)>) -> Result<(), Error> {
        if !self.has_starts() {
            return Ok(());
        }
        match self {
            Self::Chunk(chunk) => chunk.decode_starts(range, out)?,
            Self::Open(open) => {
                let (mut timestamps, mut values) = (Vec::new(), Vec::new());
                open.decode_range(range, &mut timestamps, &mut values)?;
                open.starts().append_at(&timestamps, out);
            }
            Self::Plain(plain) => {
                let inside = range.places_in(&plain.timestamps);
                let timestamps = plain.timestamps.get(inside).unwrap_or_default();
                plain.starts.append_at(timestamps, out);
            }
        }
        Ok(())
    }

    /// Whether its samples are native histograms, and none are floats.
    pub fn has_histograms(&self) -> bool {
        matches!(self, Self::Chunk(chunk) if chunk.has_histograms())
    }

    /// Whether it holds summaries of downsampled samples, and no samples.
    pub fn has_summaries(&self) -> bool {
        matches!(self, Self::Chunk(chunk) if chunk.has_summaries())
    }

    /// Appends the summaries that overlap a closed range, ascending and not overlapping.
    ///
    /// # Errors
    /// [`Error`] when they are damaged; then nothing has been appended.
    pub fn decode_summaries(&self, range: TimeRange, out: &mut Vec<Summary>) -> Result<(), Error> {
        match self {
            Self::Chunk(chunk) => chunk.decode_summaries(range, out),
            Self::Open(_) | Self::Plain(_) => Ok(()),
        }
    }

    /// At most how many bytes its samples take, decoded.
    pub fn decoded_bytes(&self) -> usize {
        match self {
            Self::Chunk(chunk) => chunk.decoded_bytes(),
            Self::Open(_) | Self::Plain(_) => {
                let starts = if self.has_starts() { START_BYTES } else { 0 };
                self.count() * (FLOAT_BYTES + starts)
            }
        }
    }

    /// Appends the histograms of a closed range, in strictly ascending time.
    ///
    /// # Errors
    /// [`Error`] when they are damaged; then nothing has been appended.
    pub fn decode_histograms(
        &self,
        range: TimeRange,
        out: &mut Vec<(i64, Arc<Histogram>)>,
    ) -> Result<(), Error> {
        match self {
            Self::Chunk(chunk) => chunk.decode_histograms(range, out),
            Self::Open(_) | Self::Plain(_) => Ok(()),
        }
    }

    /// Appends the floats of a closed range, in strictly ascending time; both columns grow by the same count.
    ///
    /// # Errors
    /// [`Error`] when the samples are damaged; then nothing has been appended.
    pub fn decode_range(
        &self,
        range: TimeRange,
        timestamps: &mut Vec<i64>,
        values: &mut Vec<f64>,
    ) -> Result<(), Error> {
        match self {
            Self::Chunk(chunk) => chunk.decode_range(range, timestamps, values),
            Self::Open(open) => open.decode_range(range, timestamps, values),
            Self::Plain(plain) => {
                let inside = range.places_in(&plain.timestamps);
                timestamps.extend_from_slice(plain.timestamps.get(inside.clone()).unwrap_or_default());
                values.extend_from_slice(plain.values.get(inside).unwrap_or_default());
                Ok(())
            }
        }
    }

    /// Appends the run as chunks, for who is in another process: cheaply encoded, not in their smallest form.
    ///
    /// # Errors
    /// As [`Self::decode_range`].
    pub fn into_chunks(self, encoder: &mut Encoder, out: &mut Vec<Chunk>) -> Result<(), Error> {
        match self {
            Self::Plain(plain) => {
                encoder.encode_started_run(&plain.timestamps, &plain.values, &plain.starts, out)
            }
            Self::Open(open) => {
                let (mut timestamps, mut values) = (Vec::new(), Vec::new());
                open.decode_range(TimeRange::ALL, &mut timestamps, &mut values)?;
                encoder.encode_started_run(&timestamps, &values, open.starts(), out)
            }
            Self::Chunk(chunk) => {
                out.push(chunk);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_run_gives_the_same_samples_plain_and_as_chunks(
            samples in proptest::collection::btree_map(0i64..1000, any::<u64>(), 1..100),
            min in 0i64..1000, len in 0i64..1000,
        ) {
            let times: Vec<i64> = samples.keys().copied().collect();
            let values: Vec<f64> = samples.values().map(|&b| f64::from_bits(b)).collect();
            // Some have no start, neighbours share one.
            let starts: Vec<(i64, i64)> = samples.iter().filter(|(_, b)| **b % 3 > 0).map(|(&t, b)| (t, (*b % 3) as i64)).collect();
            let plain = PlainRun::new(times.clone(), values).unwrap();
            let plain = Run::Plain(plain.with_starts(Starts::of(&times, &starts)));
            let range = TimeRange::new(min, min + len);
            let mut chunks = Vec::new();
            plain.clone().into_chunks(&mut Encoder::default(), &mut chunks).unwrap();
            let decoded = |runs: &[Run]| {
                let (mut ts, mut vs) = (Vec::new(), Vec::new());
                runs.iter().for_each(|r| r.decode_range(range, &mut ts, &mut vs).unwrap());
                ts.into_iter().zip(vs.into_iter().map(f64::to_bits)).collect::<Vec<_>>()
            };
            let chunks: Vec<Run> = chunks.into_iter().map(Run::Chunk).collect();
            for runs in [std::slice::from_ref(&plain), &chunks] {
                let mut back = Vec::new();
                runs.iter().for_each(|r| r.decode_starts(range, &mut back).unwrap());
                let wanted: Vec<_> = starts.iter().copied().filter(|s| range.contains(s.0)).collect();
                prop_assert_eq!(back, wanted);
            }
            let wanted: Vec<_> = samples.range(min..=min + len).map(|(&t, &b)| (t, b)).collect();
            prop_assert_eq!(&decoded(&[plain]), &wanted);
            prop_assert_eq!(decoded(&chunks), wanted);
        }
    }

    #[test]
    fn plain_columns_must_ascend() {
        assert_eq!(
            PlainRun::new(vec![1, 1], vec![0.0; 2]),
            Err(Error::NotAscending { at: 1 })
        );
        assert_eq!(
            PlainRun::new(Vec::new(), Vec::new()),
            Err(Error::Count { count: 0 })
        );
        assert!(PlainRun::new(vec![1], Vec::new()).is_err());
    }
}
