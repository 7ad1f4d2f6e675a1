//! Which series a batch speaks of: looked up before it is logged, so that it can be refused while that is possible, and
//! used when it is applied.
//!
//! What was resolved stays valid until it is applied: a series that has no samples left is not given up before every batch
//! that was resolved while it could be found has been applied.

use std::collections::BTreeSet;

use koios_model::{BatchColumns, METRIC_NAME, SeriesHash};
use roaring::RoaringBitmap;

use crate::head::Head;
use crate::index::{Pair, Postings};
use crate::series::Found;

/// Place of a series that came without labels under an unknown reference, or is new and brings no samples.
pub(crate) const SKIPPED: u32 = u32::MAX;
/// Place of a series that the application must find by its labels, or create. Smaller numbers are series.
pub(crate) const NEW: u32 = u32::MAX - 1;

/// The series of a batch as a head knows them.
#[derive(Debug)]
pub struct Resolved {
    pub(crate) indices: Vec<u32>,
    pub(crate) new: usize,
    pub(crate) unknown: u64,
    ticket: u64,
}

impl Resolved {
    /// How many series came without labels under references that the head cannot resolve: such a batch must come again
    /// with labels.
    pub fn unknown(&self) -> u64 {
        self.unknown
    }

    fn push(&mut self, index: u32) {
        self.new += usize::from(index == NEW);
        self.indices.push(index);
    }

    /// The place in the head of each series of the batch, if it has one; of all that have samples once it was applied.
    pub fn places(&self) -> impl Iterator<Item = Option<u32>> + '_ {
        self.indices.iter().map(|i| (*i < NEW).then_some(*i))
    }

    /// The same for one series of the batch.
    pub fn place_of(&self, series: usize) -> Option<u32> {
        self.indices.get(series).copied().filter(|i| *i < NEW)
    }
}

/// Batches resolved and not applied yet, and the series that wait for them.
#[derive(Debug, Default)]
pub(crate) struct Resolutions {
    open: BTreeSet<u64>,
    next: u64,
    /// Series without samples, which no reference finds any more.
    doomed: RoaringBitmap,
    /// They may go when all resolutions before this one have ended.
    doomed_before: u64,
}

impl Resolutions {
    /// Whether nobody holds places of series.
    pub(crate) fn are_ended(&self) -> bool {
        self.open.is_empty() && self.doomed.is_empty()
    }

    fn begin(&mut self, series: usize) -> Resolved {
        let ticket = self.next;
        self.next += 1;
        self.open.insert(ticket);
        Resolved {
            indices: Vec::with_capacity(series),
            new: 0,
            unknown: 0,
            ticket,
        }
    }
}

impl Head {
    /// Finds the series of a batch. One that its sender takes for known, or that has no labels, is found by its reference
    /// alone if that is bound to one series only. The batch must then be applied or given up.
    pub fn resolve(&mut self, batch: &BatchColumns) -> Resolved {
        self.resolve_by(batch, |head, _, hash, expected| head.known(hash, expected))
    }

    /// The same for series without labels that are named by their places, as [`Resolved::places`] gave them.
    pub fn resolve_at(&mut self, batch: &BatchColumns, places: &[Option<u32>]) -> Resolved {
        self.resolve_by(batch, |head, at, _, _| {
            let place = places.get(at).copied().flatten();
            place.filter(|index| head.series.is_used(*index))
        })
    }

    /// The same where no series has labels: it is known by its place, or not at all. Nothing else of the batch is looked at.
    pub fn resolve_placed(&mut self, places: impl ExactSizeIterator<Item = Option<u32>>) -> Resolved {
        let mut out = self.resolutions.begin(places.len());
        for place in places {
            let index = place.filter(|index| self.series.is_used(*index));
            out.unknown += u64::from(index.is_none());
            out.push(index.unwrap_or(SKIPPED));
        }
        out
    }

    fn resolve_by(
        &mut self,
        batch: &BatchColumns,
        reference: impl Fn(&Self, usize, SeriesHash, u32) -> Option<u32>,
    ) -> Resolved {
        let mut out = self.resolutions.begin(batch.hashes.len());
        let mut with_histograms = batch.histograms.iter().map(|h| h.series).peekable();
        let (mut expected, mut before) = (0, None);
        for (at, s) in batch.series().enumerate() {
            let mut has_samples = !s.timestamps.is_empty();
            while with_histograms.next_if_eq(&(at as u32)).is_some() {
                has_samples = true;
            }
            let by_reference = match (s.known, s.labels) {
                (false, Some(_)) => None,
                _ => reference(self, at, s.hash, expected),
            };
            let index = match (by_reference, s.labels) {
                (Some(index), _) => index,
                (None, Some(_)) if !has_samples => SKIPPED,
                (None, Some(labels)) => {
                    let series = &self.series;
                    let found = series.find_labels_at(s.hash, labels, expected, before, &self.symbols);
                    before = found.map(|index| (index, labels)).or(before);
                    // A doomed one may be gone when the batch is applied; it is looked for again then.
                    let stays = found.filter(|index| !self.resolutions.doomed.contains(*index));
                    stays.unwrap_or(NEW)
                }
                (None, None) => {
                    out.unknown += 1;
                    SKIPPED
                }
            };
            if index < NEW {
                expected = index + 1;
            }
            out.push(index);
        }
        out
    }

    /// Ends a resolution whose batch is not applied.
    #[expect(clippy::needless_pass_by_value, reason = "it must not be used again")]
    pub fn give_up(&mut self, resolved: Resolved) {
        self.resolution_ended(&resolved);
    }

    pub(crate) fn resolution_ended(&mut self, resolved: &Resolved) {
        self.resolutions.open.remove(&resolved.ticket);
        self.bury();
    }

    /// The series of a reference that stands for one only.
    fn known(&self, hash: SeriesHash, expected: u32) -> Option<u32> {
        match self.series.find_at(hash, expected) {
            Found::One(index) if !self.resolutions.doomed.contains(index) => Some(index),
            _ => None,
        }
    }

    /// Whether a series is found under a reference, or several are.
    pub fn has(&self, hash: SeriesHash) -> bool {
        match self.series.find(hash) {
            Found::One(index) => !self.resolutions.doomed.contains(index),
            Found::Ambiguous => true,
            Found::None => false,
        }
    }

    /// Whether series ever came under a reference that another had.
    pub fn shares_hashes(&self) -> bool {
        self.series.shares_hashes()
    }

    /// How many series a metric has.
    pub fn metric_series_count(&self, metric: &str) -> u64 {
        let id = |text| self.symbols.get(text);
        let pair = id(METRIC_NAME).zip(id(metric));
        let postings = pair.and_then(|(name, value)| self.index.postings(Pair { name, value }));
        postings.map_or(0, Postings::count)
    }

    /// Gives up series without samples, as soon as no resolved batch may speak of them.
    pub(crate) fn doom(&mut self, dead: &RoaringBitmap) {
        let r = &mut self.resolutions;
        r.doomed |= dead;
        r.doomed_before = r.next;
        self.bury();
    }

    /// Drops doomed series whose time has come, but for those that got samples since.
    fn bury(&mut self) {
        let r = &self.resolutions;
        let is_waiting = r.open.first().is_some_and(|oldest| *oldest < r.doomed_before);
        if r.doomed.is_empty() || is_waiting {
            return;
        }
        let doomed = std::mem::take(&mut self.resolutions.doomed);
        let dead = doomed.into_iter().filter(|&index| {
            let i = index as usize;
            self.series.is_used(index) && self.series.hot[i].count == 0 && self.series.cold[i].is_empty()
        });
        let dead: RoaringBitmap = dead.collect();
        self.drop_series(&dead);
    }

    /// The reference of a series.
    pub fn hash_at(&self, place: u32) -> Option<SeriesHash> {
        let used = self.series.is_used(place);
        used.then(|| self.series.hashes[place as usize])
    }

    /// Appends the packed labels of a series.
    pub fn write_labels_at(&self, place: u32, out: &mut Vec<u8>) {
        if self.series.is_used(place) {
            self.series.write_labels(place, &self.symbols, out);
        }
    }

    /// A word that whoever logs may keep beside a series; 0 for a new one.
    pub fn mark_at(&self, place: u32) -> u64 {
        self.series.marks.get(place as usize).copied().unwrap_or(0)
    }

    /// Sets it.
    pub fn set_mark_at(&mut self, place: u32, mark: u64) {
        if let Some(held) = self.series.marks.get_mut(place as usize) {
            *held = mark;
        }
    }
}
