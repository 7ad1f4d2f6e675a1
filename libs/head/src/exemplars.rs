//! The newest exemplars of a head, whatever their series: which are kept depends on what came, not on its order (I2).

use std::collections::{BTreeMap, BTreeSet};

use koios_model::{BatchColumns, Exemplar, Labels, Matchers, TimeRange};

use crate::error::SnapshotError;
use crate::head::Head;
use crate::snapshot::{Reader, put_bytes};

/// Longest labels, in packed form, of a series whose exemplars are kept: what bounds the memory of all.
const SERIES_LABELS_MAX: usize = 2 << 10;
/// What an exemplar occupies beside its labels, roughly.
const ENTRY_BYTES: usize = 96;

/// An exemplar of a series, in order of time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    t: i64,
    series: Labels,
    labels: Labels,
    /// The bits of its value.
    bits: u64,
}

impl Entry {
    fn bytes(&self) -> usize {
        self.series.packed().len() + self.labels.packed().len() + ENTRY_BYTES
    }
}

/// The newest exemplars.
#[derive(Debug, Default)]
pub(crate) struct Exemplars {
    all: BTreeSet<Entry>,
    bytes: usize,
}

impl Exemplars {
    /// Keeps an exemplar while it is among the `most` newest; the same one again changes nothing.
    fn add(&mut self, entry: Entry, most: usize) {
        let bytes = entry.bytes();
        if self.all.insert(entry) {
            self.bytes += bytes;
        }
        while self.all.len() > most
            && let Some(oldest) = self.all.pop_first()
        {
            self.bytes = self.bytes.saturating_sub(oldest.bytes());
        }
    }

    /// Drops those of matching series in a closed range.
    pub(crate) fn delete(&mut self, matchers: &Matchers, range: TimeRange) {
        let mut gone = 0;
        self.all.retain(|e| {
            let stays = !range.contains(e.t) || !matchers.matches(e.series.as_ref());
            gone += if stays { 0 } else { e.bytes() };
            stays
        });
        self.bytes = self.bytes.saturating_sub(gone);
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.bytes
    }

    /// Appends them all.
    pub(crate) fn copy_out(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.all.len() as u32).to_le_bytes());
        for e in &self.all {
            out.extend_from_slice(&e.t.to_le_bytes());
            out.extend_from_slice(&e.bits.to_le_bytes());
            put_bytes(out, e.series.packed());
            put_bytes(out, e.labels.packed());
        }
    }

    /// Adds what [`Self::copy_out`] wrote.
    ///
    /// # Errors
    /// [`SnapshotError`] when it is malformed.
    pub(crate) fn copy_in(&mut self, r: &mut Reader<'_>) -> Result<(), SnapshotError> {
        let count = r.u32()?;
        for _ in 0..count {
            let entry = Entry {
                t: r.i64()?,
                bits: r.u64()?,
                series: r.labels()?,
                labels: r.labels()?,
            };
            self.add(entry, count as usize);
        }
        Ok(())
    }
}

impl Head {
    /// Last pass of applying a batch: its exemplars. Those of a series that came without labels take its labels here.
    pub(crate) fn keep_exemplars(&mut self, batch: &BatchColumns, indices: &[u32]) {
        if batch.exemplars.is_empty() {
            return;
        }
        let mut exemplars = batch.exemplars.iter().peekable();
        for (place, series) in batch.series().enumerate() {
            if exemplars.peek().is_none_or(|e| e.series as usize != place) {
                continue;
            }
            let known = indices.get(place).filter(|i| self.series.is_used(**i));
            let labels = series.labels.map(|l| l.to_labels());
            let labels = labels.or_else(|| known.map(|i| self.series.labels(*i, &self.symbols)));
            let labels = labels.filter(|l| l.packed().len() <= SERIES_LABELS_MAX);
            while let Some(e) = exemplars.next_if(|e| e.series as usize == place) {
                // One copy for all of the batch.
                let Some(series) = labels.clone() else { continue };
                let Exemplar { t, v, labels } = e.exemplar.clone();
                let entry = Entry {
                    t,
                    series,
                    labels,
                    bits: v.to_bits(),
                };
                self.exemplars.add(entry, self.exemplars_max);
            }
        }
    }

    /// The exemplars kept of matching series in a closed range, by series in label order, each ascending in time.
    pub fn exemplars(&self, matchers: &Matchers, range: TimeRange) -> Vec<(Labels, Vec<Exemplar>)> {
        let mut found: BTreeMap<&Labels, Vec<Exemplar>> = BTreeMap::new();
        let mut verdicts: BTreeMap<&Labels, bool> = BTreeMap::new();
        for entry in self.exemplars.all.iter().filter(|e| range.contains(e.t)) {
            let matches = verdicts
                .entry(&entry.series)
                .or_insert_with(|| matchers.matches(entry.series.as_ref()));
            if *matches {
                found.entry(&entry.series).or_default().push(Exemplar {
                    t: entry.t,
                    v: f64::from_bits(entry.bits),
                    labels: entry.labels.clone(),
                });
            }
        }
        found
            .into_iter()
            .map(|(labels, all)| (labels.clone(), all))
            .collect()
    }
}
