//! Reading series: encoded chunks that may overlap, or merged samples.

use bytes::Bytes;
use koios_chunk::{Chunk, Encoder};
use koios_model::merge::sort_and_dedup;
use koios_model::{Labels, Sample, TimeRange};

use crate::error::Error;
use crate::head::Head;
use crate::series::{Sealed, SeriesId};

impl Head {
    /// The labels of a series; `None` when it was forgotten since it was selected.
    pub fn labels(&self, id: SeriesId) -> Option<Labels> {
        self.series
            .is_current(id)
            .then(|| self.series.labels(id.index, &self.symbols))
    }

    /// The hash a series came with; `None` when it was forgotten since it was selected.
    pub fn hash(&self, id: SeriesId) -> Option<koios_model::SeriesHash> {
        self.series
            .is_current(id)
            .then(|| self.series.hashes.get(id.index as usize).copied())?
    }

    /// Appends the encoded chunks of a series that overlap a closed range. They may overlap each other and hold samples
    /// outside the range; [`merge_chunks`] makes one run of them. Sealed chunks are shared, open and late samples are
    /// encoded now, those in range only.
    ///
    /// # Errors
    /// [`Error::SeriesForgotten`] when the id is no longer valid.
    pub fn read(&self, id: SeriesId, range: TimeRange, out: &mut Vec<Bytes>) -> Result<(), Error> {
        self.check(id)?;
        out.extend(self.sealed(id.index, range).map(|s| s.bytes.clone()));
        self.read_unsealed(id.index, range, out)
    }

    /// Appends the encoded chunks of a series that no listed cut holds: what a snapshot must keep. They may overlap each
    /// other. See [`Self::restore`].
    ///
    /// # Errors
    /// [`Error::SeriesForgotten`] when the id is no longer valid.
    pub fn read_unlisted(&self, id: SeriesId, out: &mut Vec<Bytes>) -> Result<(), Error> {
        self.check(id)?;
        let sealed = self.sealed(id.index, TimeRange::ALL);
        out.extend(
            sealed
                .filter(|s| !self.windows.is_listed(s.cut))
                .map(|s| s.bytes.clone()),
        );
        self.read_unsealed(id.index, TimeRange::ALL, out)
    }

    /// Encodes open and late samples in range.
    fn read_unsealed(&self, index: u32, range: TimeRange, out: &mut Vec<Bytes>) -> Result<(), Error> {
        let (mut ts, mut vs) = (Vec::new(), Vec::new());
        let mut encoder = Encoder::default();
        self.open_in(index, range, &mut ts, &mut vs);
        if !ts.is_empty() {
            out.push(encoder.encode_fast(&ts, &vs)?.into());
        }
        // A side buffer is sealed before it grows past one chunk.
        let side = in_range(self.series.cold[index as usize].side(), range);
        if !side.is_empty() {
            let (ts, vs): (Vec<i64>, Vec<f64>) = side.iter().map(|s| (s.t, s.v)).unzip();
            out.push(encoder.encode_fast(&ts, &vs)?.into());
        }
        Ok(())
    }

    /// Replaces `out` by the samples of a series in a closed range, each time once, ascending.
    ///
    /// # Errors
    /// [`Error::SeriesForgotten`] when the id is no longer valid, [`Error::Chunk`] when memory is damaged.
    pub fn samples(&self, id: SeriesId, range: TimeRange, out: &mut Vec<Sample>) -> Result<(), Error> {
        self.check(id)?;
        self.merged(id.index, range, out)
    }

    fn check(&self, id: SeriesId) -> Result<(), Error> {
        if self.series.is_current(id) {
            Ok(())
        } else {
            Err(Error::SeriesForgotten { index: id.index })
        }
    }

    fn sealed(&self, index: u32, range: TimeRange) -> impl Iterator<Item = &Sealed> {
        self.series.cold[index as usize]
            .sealed
            .iter()
            .filter(move |s| s.range.overlaps(&range))
    }

    /// Appends the open samples in range.
    fn open_in(&self, index: u32, range: TimeRange, ts: &mut Vec<i64>, vs: &mut Vec<f64>) {
        let hot = &self.series.hot[index as usize];
        if hot.count == 0 || hot.last_t < range.min || self.windows.range_of(hot.last_t).min > range.max {
            return;
        }
        self.pool.decode(hot, ts, vs);
        let to = ts.partition_point(|t| *t <= range.max);
        let from = ts.partition_point(|t| *t < range.min).min(to);
        ts.truncate(to);
        vs.truncate(to);
        ts.drain(..from);
        vs.drain(..from);
    }

    /// All samples of a series in range, merged.
    fn merged(&self, index: u32, range: TimeRange, out: &mut Vec<Sample>) -> Result<(), Error> {
        out.clear();
        let (mut ts, mut vs) = (Vec::new(), Vec::new());
        for s in self.sealed(index, range) {
            Chunk::parse(s.bytes.clone())?.decode_range(range, &mut ts, &mut vs)?;
        }
        out.extend(ts.iter().zip(&vs).map(|(&t, &v)| Sample { t, v }));
        ts.clear();
        vs.clear();
        self.open_in(index, range, &mut ts, &mut vs);
        out.extend(ts.iter().zip(&vs).map(|(&t, &v)| Sample { t, v }));
        out.extend_from_slice(in_range(self.series.cold[index as usize].side(), range));
        settle(out);
        Ok(())
    }

    /// As [`Self::merged`] for the head's own use: a chunk that does not decode counts as nothing, which can only make
    /// a repetition look new; the merge on read takes care of that.
    pub(crate) fn held(&self, index: u32, range: TimeRange, out: &mut Vec<Sample>) {
        if self.merged(index, range, out).is_err() {
            out.clear();
        }
    }
}

/// The part of ascending samples that lies in a closed range.
fn in_range(samples: &[Sample], range: TimeRange) -> &[Sample] {
    let to = samples.partition_point(|s| s.t <= range.max);
    let from = samples.partition_point(|s| s.t < range.min);
    samples.get(from..to).unwrap_or(&[])
}

/// Makes one strictly ascending run of several.
fn settle(samples: &mut Vec<Sample>) {
    if samples.windows(2).any(|w| w[0].t >= w[1].t) {
        sort_and_dedup(samples);
    }
}

/// Replaces `out` by the samples of chunks in a closed range, each time once, ascending, whatever overlaps.
///
/// # Errors
/// [`koios_chunk::Error`] when a chunk is damaged.
pub fn merge_chunks(
    chunks: &[Bytes],
    range: TimeRange,
    out: &mut Vec<Sample>,
) -> Result<(), koios_chunk::Error> {
    out.clear();
    let (mut ts, mut vs) = (Vec::new(), Vec::new());
    for bytes in chunks {
        Chunk::parse(bytes.clone())?.decode_range(range, &mut ts, &mut vs)?;
    }
    out.extend(ts.into_iter().zip(vs).map(|(t, v)| Sample { t, v }));
    settle(out);
    Ok(())
}
