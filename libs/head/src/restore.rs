//! Filling a head from encoded chunks: a snapshot, or a peer's head.

use bytes::Bytes;
use koios_chunk::Chunk;
use koios_model::{LabelsRef, Sample, SeriesHash, TimeRange};

use crate::apply::{Applied, Tally};
use crate::error::Error;
use crate::head::Head;
use crate::histograms::At;

impl Head {
    /// Adds the samples of encoded chunks to a series, new or not, by the same merge as [`Self::apply`]. `lsn` is the log
    /// position that stands for them. Chunks in order of time are taken over as they are, copied out of `chunks`.
    ///
    /// # Errors
    /// [`Error::Chunk`] when a chunk is damaged; then nothing has been added.
    pub fn restore(
        &mut self,
        hash: SeriesHash,
        labels: LabelsRef<'_>,
        chunks: &[Bytes],
        lsn: u64,
    ) -> Result<Applied, Error> {
        let mut applied = Applied::default();
        let mut decoded = Vec::with_capacity(chunks.len());
        for bytes in chunks {
            let chunk = Chunk::parse(bytes.clone())?;
            let (mut ts, mut vs) = (Vec::new(), Vec::new());
            chunk.decode(&mut ts, &mut vs)?;
            let mut histograms = Vec::new();
            chunk.decode_histograms(TimeRange::ALL, &mut histograms)?;
            decoded.push((chunk, ts, vs, histograms));
        }
        if decoded.is_empty() {
            return Ok(applied);
        }
        let index = self
            .series
            .find_labels(hash, labels, &self.symbols)
            .unwrap_or_else(|| {
                applied.series_created += 1;
                self.create(hash, labels)
            });
        let mut tally = Tally::new(lsn);
        for (chunk, ts, vs, histograms) in decoded {
            if chunk.has_histograms() {
                self.restore_histograms(index, &chunk, histograms, &mut tally, &mut applied);
                continue;
            }
            if !self.take_over(index, &chunk, &vs, &mut tally) {
                let samples = ts.into_iter().zip(vs).map(|(t, v)| Sample { t, v });
                self.append_series(index, samples, &mut tally, &mut applied);
                continue;
            }
            applied.samples += chunk.count() as u64;
        }
        self.settle(&mut tally);
        self.applied_lsn = self.applied_lsn.max(Some(lsn));
        Ok(applied)
    }

    fn restore_histograms(
        &mut self,
        index: u32,
        chunk: &Chunk,
        histograms: Vec<At>,
        tally: &mut Tally,
        applied: &mut Applied,
    ) {
        let range = chunk.time_range();
        let cold = self.series.cold.get(index as usize);
        let newest = cold.and_then(|cold| cold.histograms()?.last_t());
        let after = newest.is_none_or(|newest| newest < range.min);
        match histograms.last() {
            Some(last) if after && self.windows.range_of(range.min).contains(range.max) => {
                let last = last.clone();
                self.enter_window(range.min, tally);
                tally.add_run(chunk.count() as u64, range);
                self.sealed_through(index, last);
                self.insert_sealed(index, Bytes::copy_from_slice(chunk.bytes()), range, chunk.count());
                applied.samples += chunk.count() as u64;
            }
            _ => self.append_histogram_series(index, histograms, tally, applied),
        }
    }

    /// Takes a chunk as it is when it lies within one window and after all the series has.
    fn take_over(&mut self, index: u32, chunk: &Chunk, values: &[f64], tally: &mut Tally) -> bool {
        let range = chunk.time_range();
        let hot = &self.series.hot[index as usize];
        let after = !hot.has_last || hot.last_t < range.min;
        let Some(&last) = values.last() else { return false };
        if !after || !self.windows.range_of(range.min).contains(range.max) {
            return false;
        }
        if hot.count > 0 {
            self.seal_open(index);
        }
        self.enter_window(range.min, tally);
        tally.add_run(chunk.count() as u64, range);
        // A copy: the bytes may be a small part of a large buffer.
        self.insert_sealed(index, Bytes::copy_from_slice(chunk.bytes()), range, chunk.count());
        let hot = &mut self.series.hot[index as usize];
        (hot.last_t, hot.last_v, hot.has_last) = (range.max, last, true);
        true
    }
}
