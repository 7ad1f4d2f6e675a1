//! What a head holds per window, and which cut has taken what.

use std::collections::BTreeMap;

use koios_model::{TimeRange, window_start};

use crate::error::SnapshotError;
use crate::series::{CutTag, UNCUT};
use crate::snapshot::{Reader, put_range};

/// What a head holds of one window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowState {
    /// Its start, which names it.
    pub start: i64,
    /// Its first and last millisecond.
    pub range: TimeRange,
    /// Samples that no cut has taken.
    pub uncut_samples: u64,
    /// Exemplars that no cut has taken; some of them may be gone since, for newer ones.
    pub uncut_exemplars: u64,
    /// Samples of cuts that are neither listed nor abandoned.
    pub cutting_samples: u64,
    /// Samples of listed cuts that are still held.
    pub listed_samples: u64,
    /// Time of the oldest sample seen since the window appeared; later than that of the newest where none was.
    pub min_t: i64,
    /// Time of the newest.
    pub max_t: i64,
    /// The first log position with a sample or an exemplar that no listed cut holds; the log is needed from there on.
    pub unlisted_from_lsn: Option<u64>,
}

#[derive(Clone, Debug)]
struct Window {
    range: TimeRange,
    uncut: u64,
    uncut_from_lsn: Option<u64>,
    seen: TimeRange,
}

#[derive(Clone, Debug)]
struct CutRecord {
    window: i64,
    samples: u64,
    from_lsn: Option<u64>,
    listed: bool,
}

/// The samples one batch adds to one window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Added {
    pub(crate) samples: u64,
    pub(crate) seen: TimeRange,
    pub(crate) lsn: u64,
}

/// The accounts of all windows and cuts.
#[derive(Debug)]
pub(crate) struct Windows {
    width_ms: i64,
    windows: BTreeMap<i64, Window>,
    cuts: BTreeMap<CutTag, CutRecord>,
    last_cut: CutTag,
}

/// A range that holds nothing and widens by union.
pub(crate) const NOTHING: TimeRange = TimeRange {
    min: i64::MAX,
    max: i64::MIN,
};

fn min_lsn(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.into_iter().chain(b).min()
}

impl Windows {
    pub(crate) fn new(width_ms: i64) -> Self {
        Self {
            width_ms: width_ms.max(1),
            windows: BTreeMap::new(),
            cuts: BTreeMap::new(),
            last_cut: UNCUT,
        }
    }

    /// How wide windows are.
    pub(crate) fn width_ms(&self) -> i64 {
        self.width_ms
    }

    /// The window that holds `t`. The first and the last of all time are cut short.
    pub(crate) fn range_of(&self, t: i64) -> TimeRange {
        let offset = t.rem_euclid(self.width_ms);
        TimeRange::new(
            window_start(t, self.width_ms),
            t.saturating_add(self.width_ms - 1 - offset),
        )
    }

    /// Notes samples that came into a window.
    pub(crate) fn add(&mut self, range: TimeRange, added: Added) {
        if added.samples == 0 {
            return;
        }
        let w = self.enter(range);
        w.uncut += added.samples;
        w.uncut_from_lsn = min_lsn(w.uncut_from_lsn, Some(added.lsn));
        w.seen = w.seen.union(&added.seen);
    }

    /// The window of a range, which is held from now on if it was not.
    fn enter(&mut self, range: TimeRange) -> &mut Window {
        self.windows.entry(range.min).or_insert(Window {
            range,
            uncut: 0,
            uncut_from_lsn: None,
            seen: NOTHING,
        })
    }

    /// Has a window, for something else than samples.
    pub(crate) fn hold(&mut self, range: TimeRange) {
        self.enter(range);
    }

    /// Drops a window of which no samples are held.
    pub(crate) fn let_go(&mut self, start: i64) {
        let is_cut = self.cuts.values().any(|c| c.window == start);
        if !is_cut && self.windows.get(&start).is_some_and(|w| w.uncut == 0) {
            self.windows.remove(&start);
        }
    }

    /// Takes a sample off the account that turned out to be held already.
    pub(crate) fn take_back(&mut self, t: i64) {
        let start = self.range_of(t).min;
        let Some(w) = self.windows.get_mut(&start) else {
            return;
        };
        w.uncut = w.uncut.saturating_sub(1);
        if w.uncut == 0 {
            w.uncut_from_lsn = None;
        }
    }

    /// The range of the window that starts at `start`, if anything of it is held.
    pub(crate) fn get(&self, start: i64) -> Option<TimeRange> {
        self.windows.get(&start).map(|w| w.range)
    }

    /// The ranges of the windows that overlap a range and of which anything is held.
    pub(crate) fn overlapping(&self, range: TimeRange) -> Vec<TimeRange> {
        let ranges = self.windows.values().map(|w| w.range);
        ranges.filter(|r| r.overlaps(&range)).collect()
    }

    /// Opens a cut that takes all uncut samples of a window, if there are any or something else is to be cut.
    pub(crate) fn begin_cut(&mut self, start: i64, has_others: bool) -> Option<(CutTag, TimeRange)> {
        let w = self.windows.get_mut(&start);
        let w = w.filter(|w| w.uncut > 0 || has_others)?;
        self.last_cut += 1;
        self.cuts.insert(
            self.last_cut,
            CutRecord {
                window: start,
                samples: w.uncut,
                from_lsn: w.uncut_from_lsn.take(),
                listed: false,
            },
        );
        w.uncut = 0;
        Some((self.last_cut, w.range))
    }

    /// Notes that a cut's block is listed; false when there is no such cut.
    pub(crate) fn list(&mut self, cut: CutTag) -> bool {
        self.cuts.get_mut(&cut).map(|c| c.listed = true).is_some()
    }

    /// Gives a cut's samples back to its window; false when there is no such cut or it is listed.
    pub(crate) fn abandon(&mut self, cut: CutTag) -> bool {
        if self.cuts.get(&cut).is_none_or(|c| c.listed) {
            return false;
        }
        let Some(record) = self.cuts.remove(&cut) else {
            return false;
        };
        if let Some(w) = self.windows.get_mut(&record.window) {
            w.uncut += record.samples;
            w.uncut_from_lsn = min_lsn(w.uncut_from_lsn, record.from_lsn);
        }
        true
    }

    /// Notes that the log has what no listed cut holds from `lsn` on, and nowhere before.
    pub(crate) fn log_begins_at(&mut self, lsn: u64) {
        let uncut = self.windows.values_mut().map(|w| &mut w.uncut_from_lsn);
        let cut = self.cuts.values_mut().map(|cut| &mut cut.from_lsn);
        for from in uncut.chain(cut).flatten() {
            *from = lsn.max(*from);
        }
    }

    /// Whether a chunk's cut is listed.
    pub(crate) fn is_listed(&self, cut: CutTag) -> bool {
        self.cuts.get(&cut).is_some_and(|c| c.listed)
    }

    /// The listed cuts of windows that end at or before `keep_from_ms`, ascending.
    pub(crate) fn forgettable(&self, keep_from_ms: i64) -> Vec<CutTag> {
        self.cuts
            .iter()
            .filter(|(_, c)| c.listed)
            .filter(|(_, c)| self.get(c.window).is_some_and(|r| r.max < keep_from_ms))
            .map(|(tag, _)| *tag)
            .collect()
    }

    /// Drops the accounts of forgotten cuts, and those of their windows that nothing else holds. Gives the end of the last
    /// window of which samples went.
    pub(crate) fn forget(&mut self, cuts: &[CutTag], is_held: impl Fn(i64) -> bool) -> Option<i64> {
        let mut end = None;
        for cut in cuts {
            let Some(record) = self.cuts.remove(cut) else {
                continue;
            };
            if record.samples > 0 {
                let below = self.get(record.window).map(|r| r.max.saturating_add(1));
                end = end.max(below);
            }
            if !is_held(record.window) {
                self.let_go(record.window);
            }
        }
        end
    }

    /// Appends the accounts; those of cuts that are not listed are given back to their windows.
    pub(crate) fn copy_out(&self, out: &mut Vec<u8>) {
        let mut copy = Self {
            windows: self.windows.clone(),
            cuts: self.cuts.clone(),
            ..*self
        };
        for tag in self.cuts.keys() {
            copy.abandon(*tag);
        }
        let lsn = |lsn: Option<u64>| lsn.map_or(0, |l| l.saturating_add(1)).to_le_bytes();
        out.extend_from_slice(&copy.width_ms.to_le_bytes());
        out.extend_from_slice(&copy.last_cut.to_le_bytes());
        out.extend_from_slice(&(copy.windows.len() as u32).to_le_bytes());
        for w in copy.windows.values() {
            put_range(out, w.range);
            out.extend_from_slice(&w.uncut.to_le_bytes());
            out.extend_from_slice(&lsn(w.uncut_from_lsn));
            put_range(out, w.seen);
        }
        out.extend_from_slice(&(copy.cuts.len() as u32).to_le_bytes());
        for (tag, cut) in &copy.cuts {
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&cut.window.to_le_bytes());
            out.extend_from_slice(&cut.samples.to_le_bytes());
        }
    }

    /// Replaces the accounts by what [`Self::copy_out`] wrote.
    ///
    /// # Errors
    /// [`SnapshotError`] when it is malformed, or of windows of another width.
    pub(crate) fn copy_in(&mut self, r: &mut Reader<'_>) -> Result<(), SnapshotError> {
        let (width_ms, last_cut) = (r.i64()?, r.u32()?);
        if width_ms != self.width_ms {
            return Err(SnapshotError);
        }
        let mut new = Self::new(width_ms);
        new.last_cut = last_cut;
        for _ in 0..r.u32()? {
            let (range, uncut) = (r.range()?, r.u64()?);
            let (uncut_from_lsn, seen) = (r.u64()?.checked_sub(1), r.range()?);
            let window = Window {
                range,
                uncut,
                uncut_from_lsn,
                seen,
            };
            new.windows.insert(range.min, window);
        }
        for _ in 0..r.u32()? {
            let (tag, window, samples) = (r.u32()?, r.i64()?, r.u64()?);
            let record = CutRecord {
                window,
                samples,
                from_lsn: None,
                listed: true,
            };
            new.cuts.insert(tag, record);
        }
        *self = new;
        Ok(())
    }

    /// Whether nothing is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    /// The range that all samples held lie in.
    pub(crate) fn seen(&self) -> Option<TimeRange> {
        let seen = self.windows.values().fold(NOTHING, |all, w| all.union(&w.seen));
        (seen.min <= seen.max).then_some(seen)
    }

    /// The state of every window, ascending.
    pub(crate) fn states(&self) -> Vec<WindowState> {
        self.windows
            .iter()
            .map(|(&start, w)| self.state(start, w))
            .collect()
    }

    fn state(&self, start: i64, w: &Window) -> WindowState {
        let mut state = WindowState {
            start,
            range: w.range,
            uncut_samples: w.uncut,
            uncut_exemplars: 0,
            cutting_samples: 0,
            listed_samples: 0,
            min_t: w.seen.min,
            max_t: w.seen.max,
            unlisted_from_lsn: w.uncut_from_lsn,
        };
        for cut in self.cuts.values().filter(|c| c.window == start) {
            if cut.listed {
                state.listed_samples += cut.samples;
            } else {
                state.cutting_samples += cut.samples;
                state.unlisted_from_lsn = min_lsn(state.unlisted_from_lsn, cut.from_lsn);
            }
        }
        state
    }
}
