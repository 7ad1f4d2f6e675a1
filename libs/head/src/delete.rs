//! Deleting samples: they go at once, and what comes later is not touched.

use std::sync::Arc;

use koios_chunk::Chunk;
use koios_model::{Histogram, Matchers, Sample, TimeRange};
use roaring::RoaringBitmap;

use crate::error::Error;
use crate::head::Head;
use crate::resolve::{NEW, Resolved};
use crate::series::{Sealed, SeriesId};

/// All that is held of a series in a range, each time once, ascending.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeldSamples {
    /// Floats.
    pub samples: Vec<Sample>,
    /// Native histograms.
    pub histograms: Vec<(i64, Arc<Histogram>)>,
    /// Start timestamps, each after the time of its sample.
    pub starts: Vec<(i64, i64)>,
}

impl Head {
    /// Removes the samples and exemplars of matching series in a closed range, and series of which nothing is left; and
    /// metadata that came until its end, of metrics of which every series matches. What a cut has taken stays in the cut.
    /// Gives how many samples went; one that was held twice may count twice.
    pub fn delete(&mut self, matchers: &Matchers, range: TimeRange) -> u64 {
        self.exemplars.delete(matchers, range);
        self.delete_metadata(matchers, range);
        let windows = self.windows.overlapping(range);
        let (mut gone, mut dead) = (0, RoaringBitmap::new());
        for index in &self.matching_in(matchers, range) {
            self.check_late_of(index);
            for window in &windows {
                self.seal_window(index, *window);
            }
            gone += self.delete_sealed(index, range);
            self.unremember_histogram(index, range);
            let hot = &self.series.hot[index as usize];
            if hot.has_last() && range.contains(hot.last_t) {
                // The same sample again is no repetition any more.
                let mut left = Vec::new();
                self.held(index, TimeRange::ALL, &mut left);
                self.series.hot[index as usize].set_last(left.last().copied());
            }
            if self.is_bare(index) {
                dead.insert(index);
            }
        }
        self.doom(&dead);
        gone
    }

    /// Takes the samples of a range out of the sealed chunks of a series. A chunk that does not decode stays, for reads to
    /// report.
    fn delete_sealed(&mut self, index: u32, range: TimeRange) -> u64 {
        let sealed = std::mem::take(&mut self.series.cold[index as usize].sealed);
        let mut gone = 0;
        for s in sealed {
            let left = match s.range.overlaps(&range) {
                true => Chunk::parse(s.bytes.clone()).and_then(|c| c.without(&[range], &mut self.encoder)),
                false => {
                    self.series.cold[index as usize].insert_sealed(s);
                    continue;
                }
            };
            match left {
                Ok(Some(chunk)) if chunk.count() < s.samples as usize => {
                    let left = Sealed {
                        range: chunk.time_range(),
                        samples: chunk.count() as u32,
                        cut: s.cut,
                        bytes: chunk.into_bytes(),
                    };
                    gone += u64::from(s.samples - left.samples);
                    self.dropped_sealed(1, s.bytes.len());
                    self.count_sealed(left.bytes.len());
                    self.series.cold[index as usize].insert_sealed(left);
                }
                Ok(None) => {
                    gone += u64::from(s.samples);
                    self.dropped_sealed(1, s.bytes.len());
                }
                Ok(Some(_)) | Err(_) => self.series.cold[index as usize].insert_sealed(s),
            }
        }
        gone
    }

    /// Whether a series has no samples.
    fn is_bare(&self, index: u32) -> bool {
        let i = index as usize;
        self.series.hot[i].count == 0 && self.series.cold[i].is_empty()
    }

    /// Drops the series of a batch that was applied without some of its samples, if they have none at all.
    pub fn drop_bare(&mut self, resolved: &Resolved) {
        let of_batch = resolved.indices.iter().copied().filter(|i| *i < NEW);
        let bare = of_batch.filter(|&i| self.series.is_used(i) && self.is_bare(i));
        let bare: RoaringBitmap = bare.collect();
        self.doom(&bare);
    }

    /// Everything that is held of a series in a closed range.
    ///
    /// # Errors
    /// [`Error::SeriesForgotten`] when the id is no longer valid, [`Error::Chunk`] when memory is damaged.
    pub fn held_samples(&self, id: SeriesId, range: TimeRange) -> Result<HeldSamples, Error> {
        let mut held = HeldSamples::default();
        self.samples(id, range, &mut held.samples)?;
        self.histograms(id, range, &mut held.histograms)?;
        held.starts = self.held_starts(id.index, range);
        Ok(held)
    }
}
