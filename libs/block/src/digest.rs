//! What tells the samples that were read from those that were written.

use std::sync::Arc;

use koios_model::{Histogram, Labels};
use xxhash_rust::xxh3::Xxh3;

use crate::MergedSeries;

/// Series with their samples, in order: times, values by their bits, native histograms and start timestamps. Of equal content it is equal,
/// of other content it is not, but for chance.
#[derive(Clone, Default)]
pub struct Digest {
    series: u64,
    samples: u64,
    /// Boxed: it is large, and passed from thread to thread.
    hash: Box<Xxh3>,
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Digest")
            .field("series", &self.series)
            .field("samples", &self.samples)
            .finish_non_exhaustive()
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        self.series == other.series
            && self.samples == other.samples
            && self.hash.digest128() == other.hash.digest128()
    }
}

impl Digest {
    /// Takes in the next series; one without samples, which no block has, is left out.
    pub fn add(&mut self, series: &MergedSeries) {
        let floats = series.samples.iter().map(|sample| (sample.t, sample.v));
        self.add_columns(&series.labels, floats, &series.histograms, &series.starts);
    }

    pub(crate) fn add_columns(
        &mut self,
        labels: &Labels,
        floats: impl ExactSizeIterator<Item = (i64, f64)>,
        histograms: &[(i64, Arc<Histogram>)],
        starts: &[(i64, i64)],
    ) {
        let count = (floats.len() + histograms.len()) as u64;
        if count == 0 {
            return;
        }
        self.series += 1;
        self.samples += count;
        let hash = &mut self.hash;
        let packed = labels.packed();
        hash.update(&(packed.len() as u64).to_le_bytes());
        hash.update(packed);
        hash.update(&(floats.len() as u64).to_le_bytes());
        for (t, v) in floats {
            add_pair(hash, t, v.to_bits());
        }
        hash.update(&(histograms.len() as u64).to_le_bytes());
        for (t, histogram) in histograms {
            hash.update(&t.to_le_bytes());
            add_histogram(hash, histogram);
        }
        hash.update(&(starts.len() as u64).to_le_bytes());
        for &(t, start) in starts {
            add_pair(hash, t, start as u64);
        }
    }

    /// How many samples were taken in, histograms included.
    pub fn samples(&self) -> u64 {
        self.samples
    }
}

/// At once: the hash is of many small pieces, and each has its price.
fn add_pair(hash: &mut Xxh3, t: i64, value: u64) {
    let mut pair = [0; 16];
    let (first, second) = pair.split_at_mut(8);
    first.copy_from_slice(&t.to_le_bytes());
    second.copy_from_slice(&value.to_le_bytes());
    hash.update(&pair);
}

fn add_histogram(hash: &mut Xxh3, h: &Histogram) {
    hash.update(&[h.reset_hint as u8]);
    hash.update(&h.schema.to_le_bytes());
    for number in [h.zero_threshold, h.zero_count, h.count, h.sum] {
        hash.update(&number.to_bits().to_le_bytes());
    }
    for buckets in [h.positive().collect::<Vec<_>>(), h.negative().collect()] {
        hash.update(&(buckets.len() as u64).to_le_bytes());
        for (index, count) in buckets {
            hash.update(&index.to_le_bytes());
            hash.update(&count.to_bits().to_le_bytes());
        }
    }
    hash.update(&(h.custom_bounds.len() as u64).to_le_bytes());
    for bound in &h.custom_bounds {
        hash.update(&bound.to_bits().to_le_bytes());
    }
}
