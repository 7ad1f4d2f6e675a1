//! Native histograms of a head: as floats are, but kept apart, so that series of floats don't pay for them.
//!
//! A series may have both; where both are at one time, reads choose (`koios_model::merge`).

use std::sync::Arc;

use koios_chunk::{Chunk, OpenHistograms, Run, Starts, encode_histograms};
use koios_model::merge::{histogram_winner, sort_and_dedup_histograms, start_at};
use koios_model::{BatchColumns, BatchHistogram, Histogram, TimeRange};

use crate::apply::{Applied, Tally};
use crate::conflicts::{Conflict, ConflictValue};
use crate::error::Error;
use crate::head::Head;
use crate::late::{Against, Checked, Unchecked};
use crate::series::{Cold, SeriesId};
use crate::starts::{StartOf, gained, starts_of};

/// A histogram and its time.
pub(crate) type At = (i64, Arc<Histogram>);

/// Histograms of a series that are not sealed.
#[derive(Debug, Default)]
pub(crate) struct HistogramSeries {
    /// In order.
    open: Option<OpenHistograms>,
    /// The newest ever in order, when it is sealed.
    sealed_last: Option<At>,
    /// Those that came late, strictly ascending in time.
    late: Vec<At>,
    /// Those of them that were not compared with the others.
    unchecked: Unchecked,
}

impl HistogramSeries {
    /// Whether all are sealed.
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_none() && self.late.is_empty()
    }

    /// The start of the newest histogram in order, if that is open.
    fn newest_start(&self) -> Option<i64> {
        let steps = self.open.as_ref()?.starts().steps();
        steps.last().map(|step| step.1)
    }

    /// The newest ever appended in order, and its time.
    fn last(&self) -> Option<(i64, &Histogram)> {
        match &self.open {
            Some(open) => Some(open.last()),
            None => self.sealed_last.as_ref().map(|(t, h)| (*t, h.as_ref())),
        }
    }

    /// The newest ever appended in order, or the late one of its time that is kept and not sealed.
    pub(crate) fn newest(&self) -> Option<(i64, &Histogram)> {
        let (t, last) = self.last()?;
        let at = self.late.binary_search_by_key(&t, |(t, _)| *t);
        let late = at.ok().and_then(|at| self.late.get(at));
        Some((t, late.map_or(last, |(_, late)| histogram_winner(last, late))))
    }

    /// Whether that is the one that came in order.
    fn keeps_last(&self) -> bool {
        let last = self.last().zip(self.newest());
        last.is_some_and(|((_, last), (_, newest))| last.bits_cmp(newest).is_eq())
    }

    /// Time of the newest ever appended in order.
    pub(crate) fn last_t(&self) -> Option<i64> {
        self.last().map(|(t, _)| t)
    }

    /// Whether an unsealed one may be in a closed range.
    pub(crate) fn may_have(&self, range: TimeRange) -> bool {
        self.open
            .as_ref()
            .is_some_and(|open| open.time_range().overlaps(&range))
            || self.late.iter().any(|(t, _)| range.contains(*t))
    }

    /// Whether one of a time came late and is not sealed.
    pub(crate) fn has_late(&self, t: i64) -> bool {
        self.late.binary_search_by_key(&t, |(t, _)| *t).is_ok()
    }

    /// The late one of a time that is not sealed.
    fn late_at(&self, t: i64) -> Option<Arc<Histogram>> {
        let at = self.late.binary_search_by_key(&t, |(t, _)| *t).ok()?;
        self.late.get(at).map(|(_, histogram)| Arc::clone(histogram))
    }

    fn heap_bytes(&self) -> usize {
        let late = |(_, h): &At| size_of::<At>() + size_of::<Histogram>() + h.heap_bytes();
        self.open.as_ref().map_or(0, OpenHistograms::heap_bytes)
            + self.late.iter().chain(&self.sealed_last).map(late).sum::<usize>()
    }

    /// The late ones of a closed range.
    fn late_in(&self, range: TimeRange) -> &[At] {
        let to = self.late.partition_point(|(t, _)| *t <= range.max);
        let from = self.late.partition_point(|(t, _)| *t < range.min);
        self.late.get(from..to).unwrap_or(&[])
    }
}

impl Head {
    /// Third pass of applying a batch: its histograms.
    pub(crate) fn append_histograms(
        &mut self,
        batch: &BatchColumns,
        indices: &[u32],
        tally: &mut Tally<'_>,
        applied: &mut Applied,
    ) {
        for of_series in batch.histograms.chunk_by(|a, b| a.series == b.series) {
            let place = of_series.first().map_or(0, |h| h.series);
            let Some(&index) = indices.get(place as usize) else {
                continue;
            };
            tally.enter_row(place);
            self.append_histograms_beside_floats(index, of_series, tally, applied);
        }
        self.settle(tally);
    }

    /// Appends histograms of one series.
    pub(crate) fn append_histograms_of(
        &mut self,
        index: u32,
        histograms: &[BatchHistogram],
        tally: &mut Tally<'_>,
        applied: &mut Applied,
    ) {
        let run = histograms.iter().map(|h| (h.t, &h.histogram));
        self.append_histogram_series(index, run.collect(), &starts_of(histograms), tally, applied);
    }

    /// Appends what is later than the series' newest histogram; the rest is late. Any index that is no series is
    /// skipped. `starts` are those of the histograms that come with one, strictly ascending in time.
    pub(crate) fn append_histogram_series(
        &mut self,
        index: u32,
        mut histograms: Vec<(i64, &Histogram)>,
        starts: &[StartOf],
        tally: &mut Tally<'_>,
        applied: &mut Applied,
    ) {
        if self.series.cold.get(index as usize).is_none() {
            return;
        }
        histograms.sort_by_key(|(t, _)| *t);
        let before = self.histograms_mut(index).heap_bytes();
        let (mut late, samples, mut repeats_newest) = (Vec::new(), applied.samples, false);
        for (t, histogram) in histograms {
            let start = start_at(starts, t);
            if let Some((last_t, last)) = self.histograms_mut(index).last()
                && t <= last_t
            {
                let same = t == last_t && histogram.bits_cmp(last).is_eq();
                if same && (start == 0 || self.histograms_mut(index).newest_start() == Some(start)) {
                    applied.duplicates += 1;
                    repeats_newest = true;
                } else {
                    late.push((t, Arc::new(histogram.clone())));
                }
                continue;
            }
            self.enter_window(t, tally);
            let most = usize::from(self.samples_per_chunk);
            let held = self.histograms_mut(index);
            if held
                .open
                .as_ref()
                .is_some_and(|open| open.count() >= most || open.time_range().max < tally.window.min)
            {
                self.seal_open_histograms(index);
            }
            let held = self.histograms_mut(index);
            let histogram = histogram.clone();
            match &mut held.open {
                Some(open) => {
                    open.append(t, histogram);
                    open.set_last_start(start);
                }
                none => none
                    .insert(OpenHistograms::first(t, histogram))
                    .set_last_start(start),
            }
            held.sealed_last = None;
            tally.add_run(1, TimeRange::new(t, t));
            applied.samples += 1;
        }
        if !late.is_empty() {
            let newest_came = repeats_newest || applied.samples > samples;
            self.append_late_histograms(index, (late, starts), newest_came, tally, applied);
        }
        let after = self.histograms_mut(index).heap_bytes();
        self.count_histogram_bytes(before, after);
    }

    /// Keeps late histograms, ascending in time, as [`Self::append_late`].
    fn append_late_histograms(
        &mut self,
        index: u32,
        (late, starts): (Vec<At>, &[StartOf]),
        newest_came: bool,
        tally: &mut Tally<'_>,
        applied: &mut Applied,
    ) {
        let newest = self.histograms_mut(index).last_t();
        let mut held_came = newest_came && self.histograms_mut(index).keeps_last();
        for (t, histogram) in late {
            let is_newest = newest == Some(t);
            let held = match is_newest {
                true => self.histogram_at_newest(index, t, applied),
                false => self.histograms_mut(index).late_at(t),
            };
            let start = self.gained_start(index, t, start_at(starts, t), is_newest);
            let against = Against::histogram(held.as_deref(), &histogram);
            if against.is_conflict(is_newest) {
                let conflict = Conflict {
                    series: self.series.id(index),
                    t,
                    held: ConflictValue::Histogram,
                    came: ConflictValue::Histogram,
                };
                let is_kept = against == Against::Winner && !held_came;
                let rows = tally.rows.as_mut().filter(|_| is_kept).zip(held.as_deref());
                let came_before = rows.is_some_and(|(rows, held)| rows.had_histogram(index, t, held));
                applied.note_conflict(conflict, is_kept && !came_before);
            }
            held_came |= is_newest && against != Against::Loser;
            if !against.count(is_newest, start.is_some(), applied) {
                continue;
            }
            let winner = match against {
                Against::Same | Against::Loser => held.unwrap_or(histogram),
                Against::Nothing | Against::Winner => histogram,
            };
            self.insert_late(index, (t, winner), !is_newest, tally);
            if let Some(start) = start {
                self.note_late_start(index, t, start);
            }
        }
        let most = usize::from(self.samples_per_chunk);
        let held = self.histograms_mut(index);
        if held.late.len() < most && !held.unchecked.is_full() {
            return;
        }
        self.settle(tally);
        self.drop_repeated_histograms(index).note(applied);
        if self.histograms_mut(index).late.len() < most {
            return;
        }
        while let Some(&(first, _)) = self.histograms_mut(index).late.first() {
            let window = self.windows.range_of(first);
            self.seal_late_histograms(index, window);
        }
    }

    /// What is held at the newest time of a series. Decodes nothing, unless the newest one in order is sealed, or a late one
    /// of its time may be.
    fn histogram_at_newest(&mut self, index: u32, t: i64, applied: &mut Applied) -> Option<Arc<Histogram>> {
        let newest = TimeRange::new(t, t);
        let may_be_sealed = self.sealed(index, newest).next().is_some();
        let held = self.histograms_mut(index);
        if let (Some(open), false) = (&held.open, may_be_sealed) {
            let mut at_newest = vec![(t, Arc::new(open.last().1.clone()))];
            at_newest.extend(held.late_at(t).map(|late| (t, late)));
            sort_and_dedup_histograms(&mut at_newest);
            return at_newest.pop().map(|(_, histogram)| histogram);
        }
        let (held, compared) = self.held_histograms(index, newest);
        applied.compared += compared;
        held.into_iter().next().map(|(_, histogram)| histogram)
    }

    /// What is held in a closed range, and how many samples were decoded for it. What does not decode counts as nothing, which
    /// can only make a repetition look new; reads merge it.
    fn held_histograms(&self, index: u32, range: TimeRange) -> (Vec<At>, u64) {
        let mut held = Vec::new();
        if self.merged_histograms(index, range, &mut held).is_err() {
            held.clear();
        }
        let sealed: u64 = self.sealed(index, range).map(|s| u64::from(s.samples())).sum();
        let open = self.cold(index).and_then(Cold::histograms);
        let open = open.and_then(|held| held.open.as_ref());
        let open = open.filter(|open| open.time_range().overlaps(&range));
        (held, sealed + open.map_or(0, OpenHistograms::count) as u64)
    }

    /// Compares the late histograms of a series that wait for it with what is held, and drops those that do not change what a
    /// read gives.
    pub(crate) fn check_late_histograms(&mut self, index: u32) {
        let Some(held) = self.cold(index).and_then(Cold::histograms) else {
            return;
        };
        // Late floats wait beside them: a series of nothing else must not become one that has histograms.
        if held.unchecked.is_empty() {
            return;
        }
        let before = held.heap_bytes();
        self.drop_repeated_histograms(index);
        let after = self.histograms_mut(index).heap_bytes();
        self.count_histogram_bytes(before, after);
    }

    fn drop_repeated_histograms(&mut self, index: u32) -> Checked {
        let of_series = self.histograms_mut(index);
        let Some(range) = of_series.unchecked.take() else {
            return Checked::default();
        };
        // Out of their place, so that what is held is found without them.
        let mut late = std::mem::take(&mut of_series.late);
        let (held, compared) = self.held_histograms(index, range);
        let starts = self.late_starts(index).to_vec();
        let held_starts = match starts.is_empty() {
            true => Vec::new(),
            false => self.held_starts(index, range),
        };
        let came = late.len();
        late.retain(|(t, histogram)| {
            let place = held.binary_search_by_key(t, |(t, _)| *t).ok();
            let there = place.and_then(|at| held.get(at)).map(|(_, held)| held.as_ref());
            let against = Against::histogram(there, histogram);
            let is_beaten = matches!(against, Against::Same | Against::Loser);
            let goes = is_beaten && gained(&starts, &held_starts, *t).is_none();
            if goes {
                self.windows.take_back(*t);
            }
            !goes
        });
        let dropped = (came - late.len()) as u64;
        self.histograms_mut(index).late = late;
        if dropped > 0 {
            self.prune_late_starts(index);
        }
        Checked { dropped, compared }
    }

    fn insert_late(&mut self, index: u32, (t, histogram): At, is_unchecked: bool, tally: &mut Tally<'_>) {
        let of_series = self.histograms_mut(index);
        match of_series.late.binary_search_by_key(&t, |(t, _)| *t) {
            Ok(at) => {
                if let Some(place) = of_series.late.get_mut(at) {
                    place.1 = histogram;
                }
            }
            Err(at) => {
                of_series.late.insert(at, (t, histogram));
                if is_unchecked && of_series.unchecked.add(t) {
                    self.unchecked.insert(index);
                }
                self.enter_window(t, tally);
                tally.add_run(1, TimeRange::new(t, t));
            }
        }
    }

    /// Seals what a series has in a window.
    pub(crate) fn seal_histograms(&mut self, index: u32, window: TimeRange) {
        let Some(held) = self.cold(index).and_then(Cold::histograms) else {
            return;
        };
        if held.is_empty() {
            return;
        }
        let before = held.heap_bytes();
        if held
            .open
            .as_ref()
            .is_some_and(|open| window.contains(open.time_range().max))
        {
            self.seal_open_histograms(index);
        }
        self.seal_late_histograms(index, window);
        let after = self.histograms_mut(index).heap_bytes();
        self.count_histogram_bytes(before, after);
    }

    fn seal_open_histograms(&mut self, index: u32) {
        let held = self.histograms_mut(index);
        let Some(open) = held.open.take() else { return };
        let (t, last) = open.last();
        held.sealed_last = Some((t, Arc::new(last.clone())));
        self.seal(index, open.time_range(), open.count(), &open.chunk());
    }

    /// Seals the late ones that lie in `range`, which is within one window.
    fn seal_late_histograms(&mut self, index: u32, range: TimeRange) {
        let late_starts = self.late_starts(index).to_vec();
        let held = self.histograms_mut(index);
        let from = held.late.partition_point(|(t, _)| *t < range.min);
        let to = held.late.partition_point(|(t, _)| *t <= range.max);
        let sealed: Vec<At> = held.late.drain(from..to).collect();
        let most = usize::from(self.samples_per_chunk) * 2;
        for run in sealed.chunks(most) {
            let mut run = run.iter().map(|(t, h)| (*t, h.as_ref().clone()));
            let Some((t, first)) = run.next() else { continue };
            let mut open = OpenHistograms::first(t, first);
            open.set_last_start(start_at(&late_starts, t));
            for (t, histogram) in run {
                open.append(t, histogram);
                open.set_last_start(start_at(&late_starts, t));
            }
            self.seal(index, open.time_range(), open.count(), &open.chunk());
        }
        self.prune_late_starts(index);
    }

    /// Notes the newest histogram of a chunk taken over as it is.
    pub(crate) fn sealed_through(&mut self, index: u32, last: At) {
        let before = self.histograms_mut(index).heap_bytes();
        self.seal_open_histograms(index);
        self.histograms_mut(index).sealed_last = Some(last);
        let after = self.histograms_mut(index).heap_bytes();
        self.count_histogram_bytes(before, after);
    }

    /// Appends the unsealed histograms that may be in a closed range, as chunks.
    pub(crate) fn read_unsealed_histograms(
        &self,
        index: u32,
        range: TimeRange,
        out: &mut Vec<Run>,
    ) -> Result<(), Error> {
        let Some(held) = self.cold(index).and_then(Cold::histograms) else {
            return Ok(());
        };
        let open = held
            .open
            .as_ref()
            .filter(|open| open.time_range().overlaps(&range));
        if let Some(open) = open {
            out.push(Run::Chunk(Chunk::parse(open.chunk())?));
        }
        let late = held.late_in(range);
        let times: Vec<i64> = late.iter().map(|(t, _)| *t).collect();
        let starts = Starts::of(&times, self.late_starts(index));
        let most = usize::from(self.samples_per_chunk);
        let late = late.iter().map(|(t, h)| (*t, h.as_ref().clone()));
        for chunk in encode_histograms(late, most)? {
            out.push(Run::Chunk(Chunk::parse(chunk)?.with_starts(&starts)?));
        }
        Ok(())
    }

    /// Replaces `out` by the histograms of a series in a closed range, each time once, ascending.
    ///
    /// # Errors
    /// [`Error::SeriesForgotten`] when the id is no longer valid, [`Error::Chunk`] when memory is damaged.
    pub fn histograms(&self, id: SeriesId, range: TimeRange, out: &mut Vec<At>) -> Result<(), Error> {
        if !self.series.is_current(id) {
            return Err(Error::SeriesForgotten { index: id.index });
        }
        self.merged_histograms(id.index, range, out)
    }

    fn merged_histograms(&self, index: u32, range: TimeRange, out: &mut Vec<At>) -> Result<(), Error> {
        let mut runs = Vec::new();
        for sealed in self.sealed(index, range) {
            runs.push(Run::Chunk(Chunk::parse(sealed.shared())?));
        }
        self.read_unsealed_histograms(index, range, &mut runs)?;
        merge_histogram_runs(&runs, range, out)?;
        Ok(())
    }

    /// Remembers an earlier histogram as the newest in order of a series when that is sealed and lies in a range: it was
    /// deleted.
    pub(crate) fn unremember_histogram(&mut self, index: u32, range: TimeRange) {
        let remembered = self.sealed_last_histogram(index);
        if remembered.is_some_and(|(t, _)| range.contains(t)) {
            // The newest must be in a chunk.
            for window in self.windows.overlapping(TimeRange::ALL) {
                self.seal_histograms(index, window);
            }
            let mut left = Vec::new();
            // What does not decode counts as nothing, as for late ones.
            if self.merged_histograms(index, TimeRange::ALL, &mut left).is_err() {
                left.clear();
            }
            let before = self.histograms_mut(index).heap_bytes();
            self.histograms_mut(index).sealed_last = left.pop();
            let after = self.histograms_mut(index).heap_bytes();
            self.count_histogram_bytes(before, after);
        }
    }

    /// The newest histogram in order of a series, when it is sealed.
    pub(crate) fn sealed_last_histogram(&self, index: u32) -> Option<At> {
        self.cold(index)?.histograms()?.sealed_last.clone()
    }

    fn cold(&self, index: u32) -> Option<&Cold> {
        self.series.cold.get(index as usize)
    }

    /// The unsealed histograms of a series that exists.
    fn histograms_mut(&mut self, index: u32) -> &mut HistogramSeries {
        self.series.hot[index as usize].set_has_histograms();
        let cold = &mut self.series.cold[index as usize];
        &mut cold.side.get_or_insert_default().histograms
    }

    fn count_histogram_bytes(&mut self, before: usize, after: usize) {
        self.histogram_bytes = (self.histogram_bytes + after).saturating_sub(before);
    }

    /// Drops what is remembered of a series' sealed histograms, with the series.
    pub(crate) fn forget_histograms(&mut self, index: u32) {
        let held = self
            .cold(index)
            .and_then(Cold::histograms)
            .map(HistogramSeries::heap_bytes);
        self.count_histogram_bytes(held.unwrap_or(0), 0);
    }
}

/// Replaces `out` by the histograms of runs in a closed range, each time once, ascending, whatever overlaps.
///
/// # Errors
/// [`koios_chunk::Error`] when a run is damaged.
pub fn merge_histogram_runs(
    runs: &[Run],
    range: TimeRange,
    out: &mut Vec<(i64, Arc<Histogram>)>,
) -> Result<(), koios_chunk::Error> {
    out.clear();
    for run in runs {
        run.decode_histograms(range, out)?;
    }
    sort_and_dedup_histograms(out);
    Ok(())
}
