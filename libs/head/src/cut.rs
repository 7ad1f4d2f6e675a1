//! Cutting windows into blocks, and forgetting what listed blocks hold.

use std::sync::Arc;

use bytes::Bytes;
use koios_chunk::{Chunk, Run};
use koios_model::{Histogram, Labels, Sample, SeriesHash, TimeRange};
use roaring::RoaringBitmap;

use crate::head::Head;
use crate::histograms::merge_histogram_runs;
use crate::read::{merge_runs, merge_starts};
use crate::series::{CutTag, UNCUT, UNRANKED};

/// A cut of one head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CutId(CutTag);

/// The samples of one window that no earlier cut has taken, ready to become a block, with its exemplars
/// ([`Head::exemplars`]).
#[derive(Clone, Debug)]
pub struct Cut {
    /// What to report [`Head::cut_listed`] or [`Head::cut_abandoned`] for.
    pub id: CutId,
    /// The window: its first and last millisecond.
    pub window: TimeRange,
    /// In label order; empty when there were no samples to cut.
    pub series: Vec<CutSeries>,
    /// Samples taken. A time that came with several values counts once per value held.
    pub samples: u64,
    /// Exemplars that no earlier cut has taken; some of them may be gone, for newer ones.
    pub exemplars: u64,
}

impl Cut {
    fn empty(window: TimeRange) -> Self {
        Self {
            id: CutId(UNCUT),
            window,
            series: Vec::new(),
            samples: 0,
            exemplars: 0,
        }
    }

    /// Whether there was nothing to cut.
    pub fn is_empty(&self) -> bool {
        self.id.0 == UNCUT
    }
}

/// One series of a cut.
#[derive(Clone, Debug)]
pub struct CutSeries {
    /// The hash it came with.
    pub hash: SeriesHash,
    /// Its labels.
    pub labels: Labels,
    /// Its encoded chunks by first time, shared with the head; they may overlap each other.
    pub chunks: Vec<Bytes>,
}

impl CutSeries {
    /// Replaces `out` by the floats, each time once, ascending.
    ///
    /// # Errors
    /// [`koios_chunk::Error`] when memory is damaged.
    pub fn samples(&self, out: &mut Vec<Sample>) -> Result<(), koios_chunk::Error> {
        merge_runs(&self.runs()?, TimeRange::ALL, out)
    }

    /// Replaces `out` by the native histograms, each time once, ascending.
    ///
    /// # Errors
    /// [`koios_chunk::Error`] when memory is damaged.
    pub fn histograms(&self, out: &mut Vec<(i64, Arc<Histogram>)>) -> Result<(), koios_chunk::Error> {
        merge_histogram_runs(&self.runs()?, TimeRange::ALL, out)
    }

    /// Replaces `out` by the start timestamps, each with the time of its sample, each time once, ascending.
    ///
    /// # Errors
    /// [`koios_chunk::Error`] when memory is damaged.
    pub fn starts(&self, out: &mut Vec<(i64, i64)>) -> Result<(), koios_chunk::Error> {
        if !self.has_starts() {
            out.clear();
            return Ok(());
        }
        merge_starts(&self.runs()?, TimeRange::ALL, out)
    }

    /// Whether any sample has a start timestamp.
    pub fn has_starts(&self) -> bool {
        self.chunks.iter().any(|chunk| Chunk::is_started(chunk))
    }

    fn runs(&self) -> Result<Vec<Run>, koios_chunk::Error> {
        let parsed = self
            .chunks
            .iter()
            .map(|c| Chunk::parse(c.clone()).map(Run::Chunk));
        parsed.collect()
    }
}

impl Head {
    /// Takes all samples of a window that no cut has taken. They stay readable. Samples that arrive later belong to a
    /// later cut of the same window. Exemplars are taken, too, with or without samples of their window. A window of which
    /// nothing is uncut gives an empty cut, which needs no report.
    pub fn cut(&mut self, window_start: i64) -> Cut {
        self.check_all_late();
        let mut exemplars = self.exemplars.uncut(window_start);
        if exemplars > 0 && !self.exemplars.any_in(self.windows.range_of(window_start)) {
            // Newer ones have taken their place since.
            self.exemplars.give_up_window(window_start);
            self.windows.let_go(window_start);
            exemplars = 0;
        }
        let Some((tag, window)) = self.windows.begin_cut(window_start, exemplars > 0) else {
            return Cut::empty(self.windows.range_of(window_start));
        };
        let all: Vec<u32> = self.index.all.iter().collect();
        let mut taken = all.clone();
        taken.retain(|&index| self.take(index, window));
        let uncut = (window.min, UNCUT);
        let pages = &mut self.chunks.pages;
        pages.regroup(|group| (group == uncut).then_some((window.min, tag)));
        if taken.is_empty() && exemplars == 0 {
            // The account was too high, as that of a snapshot may be.
            self.windows.forget(&[tag], |_| false);
            return Cut::empty(window);
        }
        self.exemplars.begin_cut(tag, window.min);
        self.rank(all);
        taken.sort_unstable_by(|&a, &b| self.series.compare(a, b, &self.symbols));
        Cut {
            exemplars,
            ..self.collect(CutId(tag), window, &taken)
        }
    }

    /// Seals what a series has in the window; false when there is nothing uncut.
    fn take(&mut self, index: u32, window: TimeRange) -> bool {
        self.seal_window(index, window);
        self.sealed(index, window)
            .any(|s| s.group() == (window.min, UNCUT))
    }

    /// Seals all that a series has in a window.
    pub(crate) fn seal_window(&mut self, index: u32, window: TimeRange) {
        let hot = &self.series.hot[index as usize];
        if hot.count > 0 && window.contains(hot.last_t) {
            self.seal_open(index);
        }
        if !self.series.cold[index as usize].side().is_empty() {
            self.seal_side(index, window);
        }
        self.seal_histograms(index, window);
    }

    /// Ranks all series in label order when many came since the last ranking; selects sort by rank, then.
    fn rank(&mut self, mut all: Vec<u32>) {
        let unranked = all
            .iter()
            .filter(|&&i| self.series.ranks[i as usize] == UNRANKED)
            .count();
        if unranked * 8 <= all.len() {
            return;
        }
        // Strings are compared once per symbol here, not once per pair of series.
        let ranks = self.symbols.ranks();
        let order = |x: u32, y: u32| ranks[x as usize].cmp(&ranks[y as usize]);
        all.sort_unstable_by(|&a, &b| self.series.compare_labels(a, b, order));
        for (rank, index) in all.into_iter().enumerate() {
            self.series.ranks[index as usize] = rank as u32;
        }
    }

    fn collect(&self, id: CutId, window: TimeRange, taken: &[u32]) -> Cut {
        let mut samples = 0;
        let series = taken
            .iter()
            .map(|&index| CutSeries {
                hash: self.series.hashes[index as usize],
                labels: self.series.labels(index, &self.symbols),
                chunks: self
                    .sealed(index, window)
                    .filter(|s| s.cut() == id.0)
                    .map(|s| {
                        samples += u64::from(s.samples());
                        s.shared()
                    })
                    .collect(),
            })
            .collect();
        Cut {
            id,
            window,
            series,
            samples,
            exemplars: 0,
        }
    }

    /// Notes that the block of a cut is listed: from now on its samples may be forgotten. A cut that was abandoned or
    /// is unknown is ignored.
    pub fn cut_listed(&mut self, id: CutId) {
        if self.windows.list(id.0) {
            self.exemplars.cut_listed(id.0);
        }
    }

    /// Gives the samples of a cut back: a later cut will take them. A listed cut stays listed.
    pub fn cut_abandoned(&mut self, id: CutId) {
        if !self.windows.abandon(id.0) {
            return;
        }
        self.exemplars.cut_abandoned(id.0);
        let pages = &mut self.chunks.pages;
        pages.regroup(|(window, cut)| (cut == id.0).then_some((window, UNCUT)));
    }

    /// Drops the samples of listed cuts whose window ends at or before `keep_from_ms`, then series without samples that no
    /// resolved batch may speak of.
    /// Gives how many samples were dropped.
    pub fn forget(&mut self, keep_from_ms: i64) -> u64 {
        let cuts = self.windows.forgettable(keep_from_ms);
        if cuts.is_empty() {
            self.shrink();
            return 0;
        }
        // While what they may repeat is here.
        self.check_all_late();
        self.chunks.pages.leave(&cuts);
        let mut dead = RoaringBitmap::new();
        for index in &self.index.all.clone() {
            let i = index as usize;
            let cold = &mut self.series.cold[i];
            self.chunks.drop_leaving(&mut cold.sealed);
            if self.series.hot[i].count == 0 && cold.is_empty() {
                dead.insert(index);
            }
        }
        let dropped = self.chunks.pages.drop_leaving();
        self.gather_chunks();
        self.doom(&dead);
        let exemplars = &self.exemplars;
        let windows = &mut self.windows;
        if let Some(end) = windows.forget(&cuts, |window| exemplars.has_unlisted(window)) {
            self.mark_forgotten_below(end);
        }
        self.shrink();
        dropped
    }

    pub(crate) fn drop_series(&mut self, dead: &RoaringBitmap) {
        let pairs = dead
            .iter()
            .flat_map(|index| self.series.label_ids(index))
            .collect();
        self.index.remove(dead, pairs, &mut self.symbols);
        self.unshrunk |= !dead.is_empty();
        for index in dead {
            self.forget_histograms(index);
            self.forget_starts(index);
            self.series.remove(index);
        }
    }
}
