//! Deleting samples: they go at once, and what comes later is not touched.

use std::sync::Arc;

use bytes::Bytes;
use koios_chunk::Chunk;
use koios_model::{Histogram, Matchers, Sample, TimeRange};
use roaring::RoaringBitmap;

use crate::chunks::New;
use crate::error::Error;
use crate::head::Head;
use crate::pages::Group;
use crate::resolve::{NEW, Resolved};
use crate::series::SeriesId;

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
        self.gather_chunks();
        gone
    }

    /// Takes the samples of a range out of the sealed chunks of a series. A chunk that does not decode stays, for reads to
    /// report.
    fn delete_sealed(&mut self, index: u32, range: TimeRange) -> u64 {
        let overlapping = self.sealed(index, range);
        let overlapping = overlapping.map(|s| (s.id(), s.group(), s.samples(), s.shared()));
        let overlapping: Vec<(u32, Group, u32, Bytes)> = overlapping.collect();
        let mut gone = 0;
        for (id, group, samples, bytes) in overlapping {
            let left = Chunk::parse(bytes).and_then(|c| c.without(&[range], &mut self.encoder));
            let left = match left {
                Ok(Some(chunk)) if chunk.count() >= samples as usize => continue,
                Ok(left) => left,
                Err(_) => continue,
            };
            self.remove_sealed(index, id);
            gone += u64::from(samples);
            if let Some(chunk) = left {
                gone -= chunk.count() as u64;
                let new = New {
                    group,
                    range: chunk.time_range(),
                    samples: chunk.count() as u32,
                    bytes: chunk.bytes(),
                };
                self.insert_sealed(index, new);
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
