//! Start timestamps of samples that are not sealed: apart from the samples, so that series without any don't pay. Those
//! of sealed samples lie in their chunks.
//!
//! A start belongs to a series and a time: of several the largest counts, whatever value is there (`koios_model::merge`).

use hashbrown::HashMap;
use koios_chunk::{Chunk, Run, Starts};
use koios_model::merge::sort_and_dedup_starts;
use koios_model::{BatchHistogram, BatchSeries, Sample, TimeRange};

use crate::apply::{Applied, Tally};
use crate::head::Head;
use crate::open::Hot;

/// A start and, before it, the time of its sample.
pub(crate) type StartOf = (i64, i64);

/// Those of one series.
#[derive(Debug, Default)]
struct SeriesStarts {
    /// Of floats in order.
    open: Starts,
    /// Of samples of either kind that came late, strictly ascending in time.
    late: Vec<StartOf>,
}

impl SeriesStarts {
    fn heap_bytes(&self) -> usize {
        self.open.heap_bytes() + self.late.capacity() * size_of::<StartOf>()
    }
}

/// Of all series that ever had a start, by index. What is left of a series that is gone is cleared when another one gets
/// its first start under the index.
#[derive(Debug, Default)]
pub(crate) struct StartsTable {
    series: HashMap<u32, SeriesStarts>,
    heap_bytes: usize,
}

impl StartsTable {
    /// Whether no series has any.
    pub(crate) fn is_empty(&self) -> bool {
        self.series.is_empty()
    }

    fn change<T>(&mut self, index: u32, change: impl FnOnce(&mut SeriesStarts) -> T) -> T {
        let series = self.series.entry(index).or_default();
        let before = series.heap_bytes();
        let out = change(series);
        self.heap_bytes = (self.heap_bytes + series.heap_bytes()).saturating_sub(before);
        out
    }

    fn remove(&mut self, index: u32) {
        if let Some(series) = self.series.remove(&index) {
            self.heap_bytes = self.heap_bytes.saturating_sub(series.heap_bytes());
        }
    }

    /// Estimate of the memory held.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.heap_bytes + self.series.capacity() * (size_of::<(u32, SeriesStarts)>() + 1)
    }
}

impl Head {
    /// As [`Self::append_series`], for a series that has starts or gets some.
    pub(crate) fn append_started_series(
        &mut self,
        index: u32,
        series: &BatchSeries<'_>,
        tally: &mut Tally<'_>,
        applied: &mut Applied,
    ) {
        let mut samples = std::mem::take(&mut self.scratch.started);
        let mut starts = std::mem::take(&mut self.scratch.starts);
        samples.clear();
        starts.clear();
        let pairs = series.timestamps.iter().zip(series.values);
        samples.extend(pairs.map(|(&t, &v)| Sample { t, v }));
        samples.sort_by_key(|s| s.t);
        let pairs = series.timestamps.iter().zip(series.starts);
        starts.extend(pairs.map(|(&t, &start)| (t, start)).filter(|s| s.1 != 0));
        sort_and_dedup_starts(&mut starts);
        self.append_series::<true>(index, samples.iter().copied(), &starts, tally, applied);
        (self.scratch.started, self.scratch.starts) = (samples, starts);
    }

    /// Notes the start of the float that is appended next in order; 0 is none.
    pub(crate) fn note_start(&mut self, index: u32, t: i64, start: i64) {
        if start != 0 || self.has_starts(index) {
            self.change_starts(index, |starts| starts.open.push(t, start));
        }
    }

    /// Notes the start of a late sample, which is held now.
    pub(crate) fn note_late_start(&mut self, index: u32, t: i64, start: i64) {
        self.change_starts(index, |starts| {
            match starts.late.binary_search_by_key(&t, |s| s.0) {
                Ok(at) => {
                    if let Some(held) = starts.late.get_mut(at) {
                        held.1 = start.max(held.1);
                    }
                }
                Err(at) => starts.late.insert(at, (t, start)),
            }
        });
    }

    /// Takes the starts of the open floats, which are about to be sealed.
    pub(crate) fn take_open_starts(&mut self, index: u32) -> Starts {
        if !self.has_starts(index) {
            return Starts::default();
        }
        self.change_starts(index, |starts| std::mem::take(&mut starts.open))
    }

    /// The starts of the open floats.
    pub(crate) fn open_starts(&self, index: u32) -> Option<&Starts> {
        let starts = self.starts.series.get(&index);
        starts
            .filter(|_| self.has_starts(index))
            .map(|starts| &starts.open)
    }

    /// The start of the newest float in order, if that is open.
    pub(crate) fn newest_start(&self, index: u32) -> Option<i64> {
        let is_open = self
            .series
            .hot
            .get(index as usize)
            .is_some_and(|hot| hot.count > 0);
        let starts = self.open_starts(index).filter(|_| is_open)?;
        starts.steps().last().map(|step| step.1)
    }

    /// The starts of late samples, ascending.
    pub(crate) fn late_starts(&self, index: u32) -> &[StartOf] {
        let starts = self.starts.series.get(&index);
        let starts = starts.filter(|_| self.has_starts(index));
        starts.map_or(&[], |starts| &starts.late)
    }

    /// Forgets the starts of late samples that are sealed now.
    pub(crate) fn prune_late_starts(&mut self, index: u32) {
        if self.late_starts(index).is_empty() {
            return;
        }
        let cold = &self.series.cold[index as usize];
        self.starts.change(index, |starts| {
            starts.late.retain(|(t, _)| {
                let float = cold.side().binary_search_by_key(t, |s| s.t).is_ok();
                float || cold.histograms().is_some_and(|held| held.has_late(*t))
            });
            starts.late.shrink_to_fit();
        });
    }

    /// The starts of a series in a closed range, as far as they can be read.
    pub(crate) fn held_starts(&self, index: u32, range: TimeRange) -> Vec<StartOf> {
        let mut runs = Vec::new();
        for sealed in self.sealed(index, range) {
            runs.extend(Chunk::parse(sealed.shared()).map(Run::Chunk));
        }
        let unsealed = self.read_unsealed(index, range, &mut runs);
        // What does not decode counts as nothing, which can only make a repetition look new; reads merge it.
        let mut starts = Vec::new();
        if unsealed.is_ok() {
            for run in &runs {
                let had = starts.len();
                if run.decode_starts(range, &mut starts).is_err() {
                    starts.truncate(had);
                }
            }
        }
        sort_and_dedup_starts(&mut starts);
        starts
    }

    /// Whether a series may have starts that are not sealed.
    pub(crate) fn has_starts(&self, index: u32) -> bool {
        self.series
            .hot
            .get(index as usize)
            .is_some_and(|hot| hot.has_starts())
    }

    /// Whether a series has nothing beside its floats that is to be looked at when some are appended.
    pub(crate) fn has_plain_floats(&self, index: u32) -> bool {
        let hot = self.series.hot.get(index as usize);
        hot.is_none_or(Hot::has_plain_floats)
    }

    /// Drops the starts of a series that goes.
    pub(crate) fn forget_starts(&mut self, index: u32) {
        if self.has_starts(index) {
            self.starts.remove(index);
        }
    }

    /// Changes the starts of a series that exists.
    fn change_starts<T>(&mut self, index: u32, change: impl FnOnce(&mut SeriesStarts) -> T) -> T {
        let hot = &mut self.series.hot[index as usize];
        if !hot.has_starts() {
            self.starts.remove(index);
            hot.set_has_starts();
        }
        self.starts.change(index, change)
    }
}

/// The starts of histograms of one series, each time once, ascending.
pub(crate) fn starts_of(histograms: &[BatchHistogram]) -> Vec<StartOf> {
    let starts = histograms.iter().map(|h| (h.t, h.start));
    let mut starts: Vec<StartOf> = starts.filter(|s| s.1 != 0).collect();
    sort_and_dedup_starts(&mut starts);
    starts
}

/// Whether a start that a sample came with is more than what is held: `starts` are those that came, both ascend.
pub(crate) fn gained(starts: &[StartOf], held: &[StartOf], t: i64) -> Option<i64> {
    let at = |all: &[StartOf]| {
        let place = all.binary_search_by_key(&t, |s| s.0).ok()?;
        all.get(place).map(|s| s.1)
    };
    at(starts).filter(|start| at(held).is_none_or(|held| held < *start))
}
