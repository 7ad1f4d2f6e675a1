//! What tells the samples that were read from those that were written.

use koios_block::MergedSeries;
use koios_model::Histogram;
use xxhash_rust::xxh3::Xxh3;

/// Series, samples and their values, in order.
#[derive(Clone, Default)]
pub(crate) struct Digest {
    pub(crate) series: u64,
    pub(crate) samples: u64,
    hash: Xxh3,
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
    pub(crate) fn add(&mut self, series: &MergedSeries) {
        self.series += 1;
        self.samples += (series.samples.len() + series.histograms.len()) as u64;
        let hash = &mut self.hash;
        let packed = series.labels.packed();
        hash.update(&(packed.len() as u64).to_le_bytes());
        hash.update(packed);
        hash.update(&(series.samples.len() as u64).to_le_bytes());
        for sample in &series.samples {
            hash.update(&sample.t.to_le_bytes());
            hash.update(&sample.v.to_bits().to_le_bytes());
        }
        hash.update(&(series.histograms.len() as u64).to_le_bytes());
        for (t, histogram) in &series.histograms {
            hash.update(&t.to_le_bytes());
            add_histogram(hash, histogram);
        }
        hash.update(&(series.starts.len() as u64).to_le_bytes());
        for (t, start) in &series.starts {
            hash.update(&t.to_le_bytes());
            hash.update(&start.to_le_bytes());
        }
    }
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
    for bound in &h.custom_bounds {
        hash.update(&bound.to_bits().to_le_bytes());
    }
}
