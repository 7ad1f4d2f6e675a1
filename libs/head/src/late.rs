//! Late samples: those that came after a later one of their series.
//!
//! They lie beside the samples in order, ascending, and reads merge both. Whether a late one only repeats what is held can be
//! told by decoding what is held around it, a chunk or more. So it is kept as it comes, and compared when [`UNCHECKED_MAX`]
//! have gathered in its series, or when it matters: before samples are cut, copied into a snapshot, deleted or forgotten.
//! Only one at the very newest time of its series is compared at once, which mostly needs no decoding: whoever sends
//! different values for it is to be told.

use koios_model::merge::{histogram_winner, start_at, winner};
use koios_model::{Histogram, Sample, TimeRange};

use crate::apply::{Applied, Tally};
use crate::conflicts::Conflict;
use crate::head::Head;
use crate::starts::{StartOf, gained};
use crate::windows::NOTHING;

/// Late samples of a series that may wait to be compared, of each kind: so many share the cost of decoding what is held.
const UNCHECKED_MAX: u16 = 32;

/// How many late samples of one kind of a series were not compared yet, and where they lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unchecked {
    count: u16,
    range: TimeRange,
}

impl Default for Unchecked {
    fn default() -> Self {
        Self {
            count: 0,
            range: NOTHING,
        }
    }
}

impl Unchecked {
    /// Notes one more; true for the first.
    pub(crate) fn add(&mut self, t: i64) -> bool {
        self.count = self.count.saturating_add(1);
        self.range = self.range.union(&TimeRange::new(t, t));
        self.count == 1
    }

    /// Whether none waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether so many wait that they are to be compared now.
    pub(crate) fn is_full(&self) -> bool {
        self.count >= UNCHECKED_MAX
    }

    /// Where those lie that are to be compared, if there are any: none wait afterwards.
    pub(crate) fn take(&mut self) -> Option<TimeRange> {
        let taken = std::mem::take(self);
        (taken.count > 0).then_some(taken.range)
    }
}

/// What comparing late samples came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Checked {
    /// Samples that went, for what was held stays.
    pub(crate) dropped: u64,
    /// Held samples that were decoded for it.
    pub(crate) compared: u64,
}

impl Checked {
    pub(crate) fn note(self, applied: &mut Applied) {
        applied.duplicates += self.dropped;
        applied.compared += self.compared;
    }
}

/// What a late sample is to the one that is known to be held at its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Against {
    Nothing,
    Same,
    Winner,
    Loser,
}

impl Against {
    fn float(held: Option<f64>, new: f64) -> Self {
        match held {
            None => Self::Nothing,
            Some(held) if held.to_bits() == new.to_bits() => Self::Same,
            Some(held) if winner(held, new).to_bits() == held.to_bits() => Self::Loser,
            Some(_) => Self::Winner,
        }
    }

    pub(crate) fn histogram(held: Option<&Histogram>, new: &Histogram) -> Self {
        match held {
            None => Self::Nothing,
            Some(held) if held.bits_cmp(new).is_eq() => Self::Same,
            Some(held) if histogram_winner(held, new).bits_cmp(held).is_eq() => Self::Loser,
            Some(_) => Self::Winner,
        }
    }

    /// Whether both are known to be different, of which the sender is told.
    pub(crate) fn is_conflict(self, is_newest: bool) -> bool {
        is_newest && matches!(self, Self::Winner | Self::Loser)
    }

    /// Counts a late sample unless it is in conflict, and tells whether it changes what a read gives, as far as that is known.
    pub(crate) fn count(self, is_newest: bool, gains_start: bool, applied: &mut Applied) -> bool {
        match self {
            Self::Same if !gains_start => applied.duplicates += 1,
            Self::Same => {}
            Self::Winner | Self::Loser if is_newest => {}
            Self::Nothing | Self::Winner | Self::Loser => applied.out_of_order += 1,
        }
        let changes = gains_start || matches!(self, Self::Nothing | Self::Winner);
        applied.samples += u64::from(changes);
        changes
    }
}

impl Head {
    /// Keeps late samples. `newest_came` says whether the series' newest sample in order came, or came again, with them: of
    /// what comes together one sample is lost in a conflict, whichever it is.
    pub(crate) fn append_late(
        &mut self,
        index: u32,
        (late, starts): (&mut [Sample], &[StartOf]),
        newest_came: bool,
        tally: &mut Tally<'_>,
        applied: &mut Applied,
    ) {
        late.sort_by_key(|s| s.t);
        let hot = &self.series.hot[index as usize];
        let (newest, last_v) = (hot.last_t, hot.last_v);
        // Whether what is held at the newest time came with them.
        let mut held_came = newest_came
            && self
                .side_at(index, newest)
                .is_none_or(|late| winner(late, last_v).to_bits() == last_v.to_bits());
        for s in late.iter() {
            let is_newest = s.t == newest;
            let held = match is_newest {
                true => self.held_at_newest(index, applied),
                false => self.side_at(index, s.t),
            };
            let start = self.gained_start(index, s.t, start_at(starts, s.t), is_newest);
            let against = Against::float(held, s.v);
            if let Some(held) = held.filter(|_| against.is_conflict(is_newest)) {
                let conflict = Conflict {
                    series: self.series.id(index),
                    t: s.t,
                    held: held.into(),
                    came: s.v.into(),
                };
                let is_kept = against == Against::Winner && !held_came;
                let rows = tally.rows.as_mut().filter(|_| is_kept);
                let came_before = rows.is_some_and(|rows| rows.had_float(index, s.t, held));
                applied.note_conflict(conflict, is_kept && !came_before);
            }
            held_came |= is_newest && against != Against::Loser;
            if !against.count(is_newest, start.is_some(), applied) {
                continue;
            }
            let v = held.map_or(s.v, |held| winner(held, s.v));
            self.insert_side(index, Sample { t: s.t, v }, !is_newest, tally);
            if let Some(start) = start {
                self.note_late_start(index, s.t, start);
            }
        }
        let Some(side) = &self.series.cold[index as usize].side else {
            return;
        };
        let is_large = side.samples.len() >= usize::from(self.samples_per_chunk);
        if is_large || side.unchecked.is_full() {
            self.settle(tally);
            self.check_late_floats(index).note(applied);
            self.spill_side(index);
        }
    }

    /// The value held at the newest time of a series. Decodes nothing, unless the newest sample in order is sealed, or a late
    /// one of its time may be.
    fn held_at_newest(&mut self, index: u32, applied: &mut Applied) -> Option<f64> {
        let hot = &self.series.hot[index as usize];
        let newest = TimeRange::new(hot.last_t, hot.last_t);
        if hot.count > 0 && self.sealed(index, newest).next().is_none() {
            let late = self.side_at(index, hot.last_t);
            return Some(late.map_or(hot.last_v, |late| winner(late, hot.last_v)));
        }
        let mut existing = std::mem::take(&mut self.scratch.existing);
        applied.compared += self.decoded_for(index, newest);
        self.held(index, newest, &mut existing);
        let found = existing.first().map(|s| s.v);
        self.scratch.existing = existing;
        found
    }

    /// The value of the unsealed late sample of a time.
    pub(crate) fn side_at(&self, index: u32, t: i64) -> Option<f64> {
        let side = self.series.cold[index as usize].side();
        let at = side.binary_search_by_key(&t, |s| s.t).ok()?;
        side.get(at).map(|s| s.v)
    }

    /// The start that a late sample came with, 0 for none, if it is more than what is known to be held.
    pub(crate) fn gained_start(&self, index: u32, t: i64, start: i64, is_newest: bool) -> Option<i64> {
        if start == 0 {
            return None;
        }
        let came = [(t, start)];
        match is_newest {
            true => gained(&came, &self.held_starts(index, TimeRange::new(t, t)), t),
            false => gained(&came, self.late_starts(index), t),
        }
    }

    /// Puts a sample into the side buffer, over the value there if there is one.
    fn insert_side(&mut self, index: u32, s: Sample, is_unchecked: bool, tally: &mut Tally<'_>) {
        let side = self.series.cold[index as usize].side.get_or_insert_default();
        match side.samples.binary_search_by_key(&s.t, |x| x.t) {
            Ok(at) => {
                if let Some(x) = side.samples.get_mut(at) {
                    x.v = s.v;
                }
            }
            Err(at) => {
                side.samples.insert(at, s);
                if is_unchecked && side.unchecked.add(s.t) {
                    self.unchecked.insert(index);
                }
                self.side_samples += 1;
                self.enter_window(s.t, tally);
                tally.add_run(1, TimeRange::new(s.t, s.t));
            }
        }
    }

    /// Seals a side buffer that has grown to a chunk's size, so that inserting stays cheap.
    fn spill_side(&mut self, index: u32) {
        let most = usize::from(self.samples_per_chunk);
        if self.series.cold[index as usize].side().len() < most {
            return;
        }
        while let Some(first) = self.series.cold[index as usize].side().first() {
            let window = self.windows.range_of(first.t);
            self.seal_side(index, window);
        }
    }

    /// Compares late samples that wait for it, of at most so many series; true when there may be more.
    pub fn check_late(&mut self, series_max: usize) -> bool {
        self.check_late_from(0, series_max);
        !self.unchecked.is_empty()
    }

    /// The same of series from a place of a snapshot on.
    pub fn check_late_from(&mut self, place: u32, series_max: usize) {
        let mut unchecked = self.unchecked.iter();
        unchecked.advance_to(place);
        let some: Vec<u32> = unchecked.take(series_max).collect();
        for &index in &some {
            self.check_late_of(index);
        }
    }

    /// The same of all series.
    pub(crate) fn check_all_late(&mut self) {
        self.check_late(usize::MAX);
    }

    /// The same of one.
    pub(crate) fn check_late_of(&mut self, index: u32) {
        if self.unchecked.remove(index) {
            self.check_late_floats(index);
            self.check_late_histograms(index);
        }
    }

    /// Drops late floats that do not change what a read gives.
    fn check_late_floats(&mut self, index: u32) -> Checked {
        let i = index as usize;
        // Out of its place, so that what is held is found without it.
        let Some(mut side) = self.series.cold[i].side.take() else {
            return Checked::default();
        };
        let range = side.unchecked.take();
        let checked = range.map(|range| self.drop_repeated(index, &mut side.samples, range));
        let is_needed = !side.holds_no_sample() || side.histograms.last_t().is_some();
        self.series.cold[i].side = is_needed.then_some(side);
        let checked = checked.unwrap_or_default();
        if checked.dropped > 0 {
            self.prune_late_starts(index);
        }
        checked
    }

    fn drop_repeated(&mut self, index: u32, late: &mut Vec<Sample>, range: TimeRange) -> Checked {
        let mut held = std::mem::take(&mut self.scratch.existing);
        let compared = self.decoded_for(index, range);
        self.held(index, range, &mut held);
        let starts = self.late_starts(index).to_vec();
        let held_starts = match starts.is_empty() {
            true => Vec::new(),
            false => self.held_starts(index, range),
        };
        let (before, mut at) = (late.len(), 0);
        late.retain(|s| {
            while held.get(at).is_some_and(|e| e.t < s.t) {
                at += 1;
            }
            let there = held.get(at).filter(|e| e.t == s.t).map(|e| e.v);
            let is_beaten = matches!(Against::float(there, s.v), Against::Same | Against::Loser);
            let goes = is_beaten && gained(&starts, &held_starts, s.t).is_none();
            if goes {
                self.windows.take_back(s.t);
            }
            !goes
        });
        let dropped = before - late.len();
        self.side_samples = self.side_samples.saturating_sub(dropped);
        self.scratch.existing = held;
        Checked {
            dropped: dropped as u64,
            compared,
        }
    }

    /// How many samples have to be decoded to know what is held in a range, unsealed late ones aside.
    fn decoded_for(&self, index: u32, range: TimeRange) -> u64 {
        let sealed: u64 = self.sealed(index, range).map(|s| u64::from(s.samples())).sum();
        let hot = &self.series.hot[index as usize];
        let open = self.pool.range(hot).is_some_and(|open| open.overlaps(&range));
        sealed + if open { u64::from(hot.count) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use koios_model::{BatchColumns, Labels, SeriesHash};

    use crate::{Head, HeadOptions};

    #[test]
    fn late_floats_leave_a_series_one_of_plain_floats() {
        let mut head = Head::new(HeadOptions::default());
        for (lsn, t) in [1000, 3000, 2000, 4000].into_iter().enumerate() {
            let mut batch = BatchColumns::default();
            let labels = Labels::from_pairs([("__name__", "up".to_owned())]);
            batch.push_series(SeriesHash(1), labels.as_ref());
            batch.push_sample(t, 1.0);
            head.apply(&batch, 0, lsn as u64);
            head.check_late(usize::MAX);
            assert!(head.series.hot[0].has_plain_floats(), "after {t}");
        }
        assert_eq!(head.series.cold[0].side().len(), 1);
    }
}
