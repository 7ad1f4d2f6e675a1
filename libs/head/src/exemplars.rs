//! The newest exemplars of a head, whatever their series: which are kept depends on what came, not on its order (I2).
//!
//! A cut's block gets all that are there of its window. Those that come later make their window be cut once more, although
//! no sample may have come with them, nor be held of it at all.

use std::collections::{BTreeMap, BTreeSet};

use koios_model::{BatchColumns, Exemplar, Labels, Matchers, TimeRange};

use crate::error::SnapshotError;
use crate::head::Head;
use crate::series::CutTag;
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

/// The exemplars of a window that came since its last cut was begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Uncut {
    count: u64,
    /// Where in the log the first of them is.
    from_lsn: Option<u64>,
}

impl Uncut {
    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.from_lsn = self.from_lsn.into_iter().chain(other.from_lsn).min();
    }
}

/// The newest exemplars.
#[derive(Debug, Default)]
pub(crate) struct Exemplars {
    all: BTreeSet<Entry>,
    bytes: usize,
    /// Those that no cut has taken, by the start of their window.
    uncut: BTreeMap<i64, Uncut>,
    /// Those of cuts that are neither listed nor abandoned, and their window.
    cutting: BTreeMap<CutTag, (i64, Uncut)>,
}

impl Exemplars {
    /// Keeps an exemplar while it is among the `most` newest; the same one again changes nothing. Tells whether it is new.
    fn add(&mut self, entry: Entry, most: usize) -> bool {
        let is_full = self.all.len() >= most;
        if is_full && self.all.first().is_none_or(|oldest| entry < *oldest) {
            return false;
        }
        let bytes = entry.bytes();
        let is_new = self.all.insert(entry);
        if is_new {
            self.bytes += bytes;
        }
        self.keep(most);
        is_new
    }

    /// Lets go of all but the `most` newest.
    fn keep(&mut self, most: usize) {
        while self.all.len() > most
            && let Some(oldest) = self.all.pop_first()
        {
            self.bytes = self.bytes.saturating_sub(oldest.bytes());
        }
    }

    /// How many of a window no cut has taken; some of them may be gone.
    pub(crate) fn uncut(&self, window_start: i64) -> u64 {
        self.uncut.get(&window_start).map_or(0, |uncut| uncut.count)
    }

    /// Whether some of a window are in no listed cut.
    pub(crate) fn has_unlisted(&self, window_start: i64) -> bool {
        self.uncut(window_start) > 0 || self.cutting.values().any(|(window, _)| *window == window_start)
    }

    /// The first log position with an exemplar of a window that is in no listed cut.
    pub(crate) fn unlisted_from_lsn(&self, window_start: i64) -> Option<u64> {
        let cutting = self.cutting.values();
        let cutting = cutting.filter(|(window, _)| *window == window_start);
        let all = self.uncut.get(&window_start).into_iter();
        let all = all.chain(cutting.map(|(_, uncut)| uncut));
        all.filter_map(|uncut| uncut.from_lsn).min()
    }

    /// Notes that the log has those in no listed cut from `lsn` on, and nowhere before.
    pub(crate) fn log_begins_at(&mut self, lsn: u64) {
        let cutting = self.cutting.values_mut().map(|(_, uncut)| uncut);
        for from in self
            .uncut
            .values_mut()
            .chain(cutting)
            .filter_map(|u| u.from_lsn.as_mut())
        {
            *from = lsn.max(*from);
        }
    }

    /// Has those of a window that no cut has taken, if there are any, taken by one.
    pub(crate) fn begin_cut(&mut self, cut: CutTag, window_start: i64) {
        if let Some(uncut) = self.uncut.remove(&window_start) {
            self.cutting.insert(cut, (window_start, uncut));
        }
    }

    pub(crate) fn cut_listed(&mut self, cut: CutTag) {
        self.cutting.remove(&cut);
    }

    pub(crate) fn cut_abandoned(&mut self, cut: CutTag) {
        if let Some((window, uncut)) = self.cutting.remove(&cut) {
            self.uncut.entry(window).or_default().add(uncut);
        }
    }

    /// Forgets that some of a window are in no cut.
    pub(crate) fn give_up_window(&mut self, window_start: i64) {
        self.uncut.remove(&window_start);
    }

    /// Whether there are any in a closed range.
    pub(crate) fn any_in(&self, range: TimeRange) -> bool {
        self.all.iter().any(|e| range.contains(e.t))
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

    /// Drops all, where none is missing in listed cuts.
    pub(crate) fn clear(&mut self) {
        if self.uncut.is_empty() && self.cutting.is_empty() {
            self.all.clear();
            self.bytes = 0;
        }
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
    pub(crate) fn keep_exemplars(&mut self, batch: &BatchColumns, indices: &[u32], lsn: u64) {
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
                if self.exemplars.add(entry, self.exemplars_max) {
                    let range = self.windows.range_of(t);
                    self.windows.hold(range);
                    let came = Uncut {
                        count: 1,
                        from_lsn: Some(lsn),
                    };
                    self.exemplars.uncut.entry(range.min).or_default().add(came);
                }
            }
        }
    }

    /// Keeps so many exemplars from now on, the newest.
    pub fn bound_exemplars(&mut self, most: usize) {
        if most != self.exemplars_max {
            self.exemplars_max = most;
            self.exemplars.keep(most);
        }
    }

    /// Notes that exemplars of a window may be in no cut, as after a restart from a snapshot, which does not tell, nor from
    /// where on the log has them: all of it stays until they are cut, lest the snapshot is the only one to have them.
    pub fn mark_exemplars_uncut(&mut self, window_start: i64) {
        let window = self.windows.range_of(window_start);
        if window.min == window_start && self.exemplars.any_in(window) {
            self.windows.hold(window);
            let some = Uncut {
                count: 1,
                from_lsn: Some(0),
            };
            self.exemplars.uncut.entry(window_start).or_default().add(some);
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
