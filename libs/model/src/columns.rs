//! The content of a batch as columns: what travels from distributor to ingester, is logged, and is applied to heads.

use crate::{Histogram, Labels, LabelsRef, Metadata, SeriesHash};

/// Series and samples as columns. `hashes`, `sample_counts` and (when labels travel) `label_ends` have one entry per
/// series; `timestamps` and `values` hold the samples of series 0, then of series 1, and so on. A series without labels
/// stands for the one that its receiver knows under the reference.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BatchColumns {
    /// The reference of each series.
    pub hashes: Vec<SeriesHash>,
    /// End of each series' packed labels in `label_bytes`, that of the series before where it has none; empty when no
    /// series has.
    pub label_ends: Vec<u32>,
    /// The packed label sets, one after the other.
    pub label_bytes: Vec<u8>,
    /// Whether the sender takes each series for known to the receiver, so that its labels need not travel; empty when none
    /// is.
    pub known: Vec<bool>,
    /// How many samples each series has.
    pub sample_counts: Vec<u32>,
    /// Milliseconds since the Unix epoch.
    pub timestamps: Vec<i64>,
    /// Values, bit-exact.
    pub values: Vec<f64>,
    /// The start timestamps of the first samples, milliseconds, 0 where none is known; those beyond have none.
    pub starts: Vec<i64>,
    /// Native histograms, by series.
    pub histograms: Vec<BatchHistogram>,
    /// Exemplars, by series.
    pub exemplars: Vec<BatchExemplar>,
    /// Metadata by metric name.
    pub metadata: Vec<(String, Metadata)>,
}

/// A native histogram of a series of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchHistogram {
    /// The place of its series in the batch.
    pub series: u32,
    /// Milliseconds since the Unix epoch.
    pub t: i64,
    /// Its start timestamp, milliseconds; 0 when none is known.
    pub start: i64,
    /// The histogram, in canonical form.
    pub histogram: Histogram,
}

/// An exemplar of a series of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchExemplar {
    /// The place of its series in the batch.
    pub series: u32,
    /// What it was observed with.
    pub exemplar: Exemplar,
}

/// A sample of what a series counted, with what it was observed with: most often the id of a trace.
#[derive(Clone, Debug)]
pub struct Exemplar {
    /// Milliseconds since the Unix epoch.
    pub t: i64,
    /// The value observed, bit-exact.
    pub v: f64,
    /// Its own labels, those of its series left out.
    pub labels: Labels,
}

impl PartialEq for Exemplar {
    /// Bit equality.
    fn eq(&self, other: &Self) -> bool {
        self.t == other.t && self.v.to_bits() == other.v.to_bits() && self.labels == other.labels
    }
}

/// One series of a batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchSeries<'a> {
    /// The reference.
    pub hash: SeriesHash,
    /// The labels; `None` when only the reference travelled.
    pub labels: Option<LabelsRef<'a>>,
    /// Whether the sender takes it for known to the receiver.
    pub known: bool,
    /// Milliseconds, in the order sent, `values.len()` of them.
    pub timestamps: &'a [i64],
    /// Values.
    pub values: &'a [f64],
    /// Start timestamps of the first samples, 0 where none is known; those beyond have none.
    pub starts: &'a [i64],
}

impl BatchColumns {
    /// Appends a series without samples; samples follow by [`Self::push_sample`].
    pub fn push_series(&mut self, hash: SeriesHash, labels: LabelsRef<'_>) {
        self.push(hash, labels);
        if !self.known.is_empty() {
            self.known.push(false);
        }
    }

    /// The same for a series that the receiver is taken to know.
    pub fn push_known_series(&mut self, hash: SeriesHash, labels: LabelsRef<'_>) {
        self.known.resize(self.hashes.len(), false);
        self.known.push(true);
        self.push(hash, labels);
    }

    /// The same for a known series whose labels are not here.
    pub fn push_reference(&mut self, hash: SeriesHash) {
        self.known.resize(self.hashes.len(), false);
        self.known.push(true);
        self.hashes.push(hash);
        if !self.label_ends.is_empty() {
            self.label_ends.push(self.label_bytes.len() as u32);
        }
        self.sample_counts.push(0);
    }

    fn push(&mut self, hash: SeriesHash, labels: LabelsRef<'_>) {
        // Those before it have none, where none has been put down.
        self.label_ends.resize(self.hashes.len(), 0);
        self.hashes.push(hash);
        self.label_bytes.extend_from_slice(labels.packed());
        self.label_ends.push(self.label_bytes.len() as u32);
        self.sample_counts.push(0);
    }

    /// Appends a sample to the last series; nothing happens when there is none.
    pub fn push_sample(&mut self, t: i64, v: f64) {
        if let Some(n) = self.sample_counts.last_mut() {
            *n += 1;
            self.timestamps.push(t);
            self.values.push(v);
        }
    }

    /// Sets the start timestamp of the sample appended last; 0, for none, is what it has.
    pub fn set_last_start(&mut self, start: i64) {
        if start != 0 && !self.timestamps.is_empty() {
            self.starts.resize(self.timestamps.len() - 1, 0);
            self.starts.push(start);
        }
    }

    /// Appends a histogram to the last series; nothing happens when there is none.
    pub fn push_histogram(&mut self, t: i64, histogram: Histogram) {
        self.push_started_histogram(t, 0, histogram);
    }

    /// The same for a histogram with a start timestamp; 0 for none.
    pub fn push_started_histogram(&mut self, t: i64, start: i64, histogram: Histogram) {
        if let Some(series) = self.last_series() {
            let histogram = BatchHistogram {
                series,
                t,
                start,
                histogram,
            };
            self.histograms.push(histogram);
        }
    }

    /// Appends an exemplar to the last series; nothing happens when there is none.
    pub fn push_exemplar(&mut self, exemplar: Exemplar) {
        if let Some(series) = self.last_series() {
            self.exemplars.push(BatchExemplar { series, exemplar });
        }
    }

    fn last_series(&self) -> Option<u32> {
        self.hashes.len().checked_sub(1).map(|last| last as u32)
    }

    /// How many series.
    pub fn series_count(&self) -> usize {
        self.hashes.len()
    }

    /// How many samples, histograms included.
    pub fn sample_count(&self) -> usize {
        self.timestamps.len() + self.histograms.len()
    }

    /// The times of all samples, those of histograms last.
    pub fn sample_times(&self) -> impl Iterator<Item = i64> + '_ {
        let histograms = self.histograms.iter().map(|h| h.t);
        self.timestamps.iter().copied().chain(histograms)
    }

    /// The same without the series at some places and what belongs to them.
    #[must_use]
    pub fn without(&self, is_out: impl Fn(usize) -> bool) -> Self {
        let mut out = Self {
            metadata: self.metadata.clone(),
            ..Self::default()
        };
        let mut histograms = self.histograms.iter().peekable();
        let mut exemplars = self.exemplars.iter().peekable();
        for (at, series) in self.series().enumerate() {
            let stays = !is_out(at);
            if stays {
                match series.labels {
                    Some(labels) if series.known => out.push_known_series(series.hash, labels),
                    Some(labels) => out.push_series(series.hash, labels),
                    None => out.push_reference(series.hash),
                }
                for (i, (t, v)) in series.timestamps.iter().zip(series.values).enumerate() {
                    out.push_sample(*t, *v);
                    out.set_last_start(series.starts.get(i).copied().unwrap_or(0));
                }
            }
            while let Some(h) = histograms.next_if(|h| h.series as usize == at) {
                if stays {
                    out.push_started_histogram(h.t, h.start, h.histogram.clone());
                }
            }
            while let Some(e) = exemplars.next_if(|e| e.series as usize == at) {
                if stays {
                    out.push_exemplar(e.exemplar.clone());
                }
            }
        }
        out
    }

    /// What it occupies, spare room and metadata left out.
    pub fn memory_bytes(&self) -> usize {
        let per_series = size_of::<SeriesHash>() + 2 * size_of::<u32>() + size_of::<bool>();
        let per_sample = size_of::<i64>() + size_of::<f64>();
        let histogram = |h: &BatchHistogram| size_of::<BatchHistogram>() + h.histogram.heap_bytes();
        let exemplar = |e: &BatchExemplar| size_of::<BatchExemplar>() + e.exemplar.labels.packed().len();
        let rare = self.histograms.iter().map(histogram).sum::<usize>()
            + self.exemplars.iter().map(exemplar).sum::<usize>();
        let samples = self.timestamps.len() * per_sample + self.starts.len() * size_of::<i64>();
        self.label_bytes.len() + self.hashes.len() * per_series + samples + rare
    }

    /// The labels of the series at a place, if they are here.
    pub fn labels_at(&self, place: usize) -> Option<LabelsRef<'_>> {
        let start = match place.checked_sub(1) {
            Some(before) => *self.label_ends.get(before)? as usize,
            None => 0,
        };
        let packed = self
            .label_bytes
            .get(start..*self.label_ends.get(place)? as usize)?;
        (!packed.is_empty()).then(|| LabelsRef::from_trusted(packed))
    }

    /// Whether it carries nothing.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty() && self.metadata.is_empty()
    }

    /// The series in order. Columns whose lengths disagree yield fewer series, never a panic.
    pub fn series(&self) -> impl Iterator<Item = BatchSeries<'_>> + '_ {
        let (mut label_start, mut sample_start) = (0usize, 0usize);
        self.hashes
            .iter()
            .zip(&self.sample_counts)
            .enumerate()
            .map_while(move |(i, (&hash, &n))| {
                let labels = if self.label_ends.is_empty() {
                    None
                } else {
                    let end = *self.label_ends.get(i)? as usize;
                    let packed = self.label_bytes.get(label_start..end)?;
                    label_start = end;
                    (!packed.is_empty()).then(|| LabelsRef::from_trusted(packed))
                };
                let sample_end = sample_start.checked_add(n as usize)?;
                let timestamps = self.timestamps.get(sample_start..sample_end)?;
                let values = self.values.get(sample_start..sample_end)?;
                let started = self.starts.len();
                let starts = self
                    .starts
                    .get(sample_start.min(started)..sample_end.min(started))?;
                sample_start = sample_end;
                Some(BatchSeries {
                    hash,
                    labels,
                    known: self.known.get(i).is_some_and(|known| *known),
                    timestamps,
                    values,
                    starts,
                })
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Labels;

    #[test]
    fn starts_take_room_only_once_one_is_set() {
        let mut c = BatchColumns::default();
        let labels = Labels::from_pairs([("a", "1")]);
        c.push_series(SeriesHash(1), labels.as_ref());
        c.push_sample(10, 1.0);
        c.set_last_start(0);
        assert!(c.starts.is_empty() && c.series().all(|s| s.starts.is_empty()));
        c.push_series(SeriesHash(2), labels.as_ref());
        c.push_sample(10, 1.0);
        c.set_last_start(7);
        c.push_sample(20, 1.0);
        let starts: Vec<_> = c.series().map(|s| s.starts.to_vec()).collect();
        assert_eq!(starts, [vec![0], vec![7]]);
    }

    #[test]
    fn labels_stand_beside_series_that_have_none_here() {
        let labels = Labels::from_pairs([("a", "1")]);
        let mut c = BatchColumns::default();
        c.push_reference(SeriesHash(1));
        assert!(c.label_ends.is_empty());
        c.push_series(SeriesHash(2), labels.as_ref());
        c.push_reference(SeriesHash(3));
        c.push_known_series(SeriesHash(4), labels.as_ref());
        let got: Vec<(u128, bool, bool)> = c
            .series()
            .map(|s| (s.hash.0, s.known, s.labels.is_some()))
            .collect();
        assert_eq!(
            got,
            [
                (1, true, false),
                (2, false, true),
                (3, true, false),
                (4, true, true)
            ]
        );
        let at = |place| c.labels_at(place).map(|l| l.to_labels());
        assert_eq!(
            [at(0), at(1), at(2), at(3)],
            [None, Some(labels.clone()), None, Some(labels)]
        );
    }

    #[test]
    fn a_series_goes_with_all_that_belongs_to_it() {
        let labels = |n: u128| Labels::from_pairs([("a", n.to_string())]);
        let exemplar = |t| Exemplar {
            t,
            v: 1.0,
            labels: labels(7),
        };
        let add = |c: &mut BatchColumns, n: u128| {
            match n {
                1 => c.push_reference(SeriesHash(n)),
                2 => c.push_known_series(SeriesHash(n), labels(n).as_ref()),
                _ => c.push_series(SeriesHash(n), labels(n).as_ref()),
            }
            let t = n as i64 * 10;
            for i in 0..n as i64 {
                c.push_sample(t + i, i as f64);
                c.set_last_start(if n == 3 { 0 } else { t });
            }
            c.push_started_histogram(t, 5, Histogram::default());
            c.push_exemplar(exemplar(t));
        };
        let of = |series: &[u128]| {
            let mut c = BatchColumns::default();
            series.iter().for_each(|n| add(&mut c, *n));
            c.metadata.push(("m".to_owned(), Metadata::default()));
            c
        };
        let all = of(&[1, 2, 3, 4]);
        assert_eq!(all.without(|_| false), all);
        for left in [&[1, 2, 3][..], &[1, 3], &[2, 4], &[3], &[]] {
            let out = |at: usize| !left.contains(&(at as u128 + 1));
            let (got, wanted) = (all.without(out), of(left));
            assert!(got.series().map(|s| s.hash.0).eq(left.iter().copied()));
            assert_eq!(got.histograms, wanted.histograms);
            assert_eq!(got.exemplars, wanted.exemplars);
            let parts = |c: &BatchColumns| -> Vec<_> {
                let part =
                    |s: BatchSeries<'_>| (s.known, s.labels.map(|l| l.to_labels()), s.timestamps.to_vec());
                c.series().map(part).collect()
            };
            assert_eq!(parts(&got), parts(&wanted));
            assert_eq!((got.starts, got.metadata), (wanted.starts, wanted.metadata));
        }
    }

    #[test]
    fn yields_each_series_with_its_own_samples() {
        let mut c = BatchColumns::default();
        let (a, b) = (Labels::from_pairs([("a", "1")]), Labels::from_pairs([("b", "2")]));
        c.push_series(SeriesHash(1), a.as_ref());
        c.push_sample(10, 1.0);
        c.push_sample(20, 2.0);
        c.push_series(SeriesHash(2), b.as_ref());
        c.push_sample(30, 3.0);
        let got: Vec<_> = c
            .series()
            .map(|s| (s.labels.unwrap().to_labels(), s.timestamps.to_vec()))
            .collect();
        for (place, (labels, _)) in got.iter().enumerate() {
            assert_eq!(c.labels_at(place).map(|l| l.to_labels()).as_ref(), Some(labels));
        }
        assert_eq!(c.labels_at(2), None);
        assert_eq!(got, [(a, vec![10, 20]), (b, vec![30])]);
        c.sample_counts[1] = 9;
        assert_eq!(c.series().count(), 1);
    }
}
