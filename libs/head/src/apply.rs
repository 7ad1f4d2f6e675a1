//! Applying a batch: resolve its series, then append its samples.

use koios_model::merge::start_at;
use koios_model::{BatchColumns, BatchSeries, Sample, TimeRange};

use crate::conflicts::Conflict;
use crate::head::Head;
use crate::open::Hot;
use crate::resolve::{NEW, Resolved};
use crate::rows::Rows;
use crate::starts::StartOf;
use crate::windows::{Added, NOTHING};

/// Series whose memory is touched ahead at a time: few enough to stay in the first-level cache.
const STRIP: usize = 128;

/// Series, in the order in which they came, whose runs are sealed at the same times: those of one target, mostly, which
/// share timestamps, and whose chunks are read together.
const SEALED_TOGETHER: u32 = 256;
/// Turns in which series are sealed.
const TURNS: u32 = 8;

/// What applying a batch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Samples that are now held and were not before, winners over other values included, and late ones that were not
    /// compared yet.
    pub samples: u64,
    /// Series that are new.
    pub series_created: u64,
    /// Samples that came after a later one of their series, repetitions excluded as far as they are known for that.
    pub out_of_order: u64,
    /// Samples that repeat one already held, and tell no later start of it. Late ones of earlier batches that were compared
    /// now and went count here, too.
    pub duplicates: u64,
    /// Samples with a value different from the one held at the newest time of their series; the winner of the two stays.
    pub conflicts: u64,
    /// Those of them that are histograms.
    pub histogram_conflicts: u64,
    /// Conflicts in which what came stays, and replaces what an earlier batch brought.
    pub conflicts_kept: u64,
    /// Those of them that are histograms.
    pub histogram_conflicts_kept: u64,
    /// The first conflict.
    pub first_conflict: Option<Conflict>,
    /// Series skipped because they came without labels under a reference that could not be resolved.
    pub unknown_series: u64,
    /// Held samples that were decoded to compare late ones with them.
    pub compared: u64,
    /// Metrics whose metadata went because metadata took more than a head keeps.
    pub metadata_dropped: u64,
}

/// What the current run of samples adds to one window.
#[derive(Debug)]
pub(crate) struct Tally<'a> {
    /// The batch that they come with, if whoever sent it is told of conflicts.
    pub(crate) rows: Option<Rows<'a>>,
    pub(crate) window: TimeRange,
    samples: u64,
    seen: TimeRange,
    lsn: u64,
}

impl Head {
    /// Applies a batch entirely. `lsn` is its position in the log, `admission_ms` the time it was admitted at, which
    /// decides between different metadata. Samples may be in any order; batches too, and any number of times.
    pub fn apply(&mut self, batch: &BatchColumns, admission_ms: i64, lsn: u64) -> Applied {
        let mut resolved = self.resolve(batch);
        self.apply_resolved(batch, &mut resolved, admission_ms, lsn)
    }

    /// The same for a batch that was resolved before, by this head; each once, in that order.
    pub fn apply_resolved(
        &mut self,
        batch: &BatchColumns,
        resolved: &mut Resolved,
        admission_ms: i64,
        lsn: u64,
    ) -> Applied {
        let mut applied = Applied::default();
        self.create_new(batch, resolved, &mut applied);
        let mut tally = Tally::new(lsn);
        tally.rows = Some(Rows::new(batch, &resolved.indices));
        self.append(batch, &resolved.indices, &mut tally, &mut applied);
        self.append_histograms(batch, &resolved.indices, &mut tally, &mut applied);
        self.keep_exemplars(batch, &resolved.indices, lsn);
        applied.metadata_dropped += self.merge_metadata(batch, admission_ms);
        self.applied_lsn = self.applied_lsn.max(Some(lsn));
        self.resolution_ended(resolved);
        applied
    }

    /// First pass: the series of the batch that resolving did not find. A batch before may have brought them since.
    fn create_new(&mut self, batch: &BatchColumns, resolved: &mut Resolved, applied: &mut Applied) {
        applied.unknown_series += resolved.unknown;
        if resolved.new == 0 {
            return;
        }
        for (index, s) in resolved.indices.iter_mut().zip(batch.series()) {
            if *index != NEW {
                continue;
            }
            let Some(labels) = s.labels else { continue };
            let found = self.series.find_labels(s.hash, labels, &self.symbols);
            *index = found.unwrap_or_else(|| {
                applied.series_created += 1;
                self.create(s.hash, labels)
            });
        }
        self.created();
    }

    /// Second pass: the samples.
    fn append(
        &mut self,
        batch: &BatchColumns,
        indices: &[u32],
        tally: &mut Tally<'_>,
        applied: &mut Applied,
    ) {
        let mut series = (0..).zip(batch.series());
        for strip in indices.chunks(STRIP) {
            self.touch(strip);
            for (&index, (place, s)) in strip.iter().zip(series.by_ref()) {
                if index < NEW && !s.timestamps.is_empty() {
                    tally.enter_row(place);
                    self.append_batch_series(index, &s, tally, applied);
                }
            }
        }
        self.settle(tally);
    }

    /// Reads what the appends of a strip will touch. The loads of each loop don't depend on each other, so the processor
    /// waits for many at a time instead of for one after the other.
    fn touch(&self, strip: &[u32]) {
        let mut sum = 0u32;
        for &index in strip {
            sum ^= self
                .series
                .hot
                .get(index as usize)
                .map_or(0, |hot| u32::from(hot.count));
        }
        for &index in strip {
            sum ^= self
                .series
                .hot
                .get(index as usize)
                .map_or(0, |hot| self.pool.touch(hot));
        }
        std::hint::black_box(sum);
    }

    fn append_batch_series(
        &mut self,
        index: u32,
        series: &BatchSeries<'_>,
        tally: &mut Tally<'_>,
        applied: &mut Applied,
    ) {
        if !self.has_plain_floats(index) {
            return self.append_beside_others(index, series, tally, applied);
        }
        if series.starts.iter().any(|start| *start != 0) {
            return self.append_started_series(index, series, tally, applied);
        }
        self.append_plain_series(index, series, tally, applied);
    }

    /// Appends floats to a series that may have start timestamps.
    pub(crate) fn append_floats(
        &mut self,
        index: u32,
        series: &BatchSeries<'_>,
        tally: &mut Tally<'_>,
        applied: &mut Applied,
    ) {
        if self.has_starts(index) || series.starts.iter().any(|start| *start != 0) {
            return self.append_started_series(index, series, tally, applied);
        }
        self.append_plain_series(index, series, tally, applied);
    }

    fn append_plain_series(
        &mut self,
        index: u32,
        series: &BatchSeries<'_>,
        tally: &mut Tally<'_>,
        applied: &mut Applied,
    ) {
        let samples = series
            .timestamps
            .iter()
            .zip(series.values)
            .map(|(&t, &v)| Sample { t, v });
        if series.timestamps.windows(2).all(|w| w[0] <= w[1]) {
            self.append_series::<false>(index, samples, &[], tally, applied);
        } else {
            let mut samples: Vec<Sample> = samples.collect();
            samples.sort_by_key(|s| s.t);
            self.append_series::<false>(index, samples.into_iter(), &[], tally, applied);
        }
    }

    /// Appends what is later than the series' newest sample; the rest is late. Where the series has `STARTED`, `starts` are
    /// those of the samples that come with one, strictly ascending in time; else it is empty.
    pub(crate) fn append_series<const STARTED: bool>(
        &mut self,
        index: u32,
        samples: impl Iterator<Item = Sample>,
        starts: &[StartOf],
        tally: &mut Tally<'_>,
        applied: &mut Applied,
    ) {
        let i = index as usize;
        let mut late = std::mem::take(&mut self.scratch.late);
        late.clear();
        let mut open = None;
        let (before, mut repeats_newest) = (applied.samples, false);
        for s in samples {
            let hot = &self.series.hot[i];
            let start = if STARTED { start_at(starts, s.t) } else { 0 };
            if hot.has_last() && s.t <= hot.last_t {
                let same = s.t == hot.last_t && s.v.to_bits() == hot.last_v.to_bits();
                let repeats = same && (start == 0 || self.newest_start(index) == Some(start));
                repeats_newest |= repeats;
                if repeats || (self.waiting.is_open && self.repeats_open(index, s, &mut open)) {
                    applied.duplicates += 1;
                } else {
                    late.push(s);
                }
                continue;
            }
            self.enter_window(s.t, tally);
            let hot = &self.series.hot[i];
            let opens_window = hot.last_t < tally.window.min;
            if hot.count > 0 && (opens_window || hot.count >= self.run_length(index, hot)) {
                self.seal_open(index);
            }
            if STARTED {
                self.note_start(index, s.t, start);
            }
            let hot = &mut self.series.hot[i];
            if hot.count == 0 {
                hot.set_opens_window(opens_window);
            }
            self.pool.append(hot, s.t, s.v);
            tally.add(s.t);
            applied.samples += 1;
        }
        if let Some((ts, vs)) = open {
            self.give_columns(ts, vs);
        }
        if !late.is_empty() && self.waiting.is_open {
            self.waiting.take_late(index, &late, tally.lsn);
        } else if !late.is_empty() {
            let newest_came = repeats_newest || applied.samples > before;
            self.append_late(index, (&mut late, starts), newest_came, tally, applied);
        }
        self.scratch.late = late;
    }

    /// Samples of the open run of a series after which it is sealed. The first run of a window is shorter for some: else
    /// all series that begin together, as all do in each window, would be sealed at once, time and again. Then the blocks of
    /// open runs, which take twice the memory of chunks, would have to suffice for all of them at their longest, instead of
    /// at half of that, and some requests would wait for all the sealing.
    fn run_length(&self, index: u32, hot: &Hot) -> u16 {
        let full = self.samples_per_chunk;
        if !hot.opens_window() {
            return full;
        }
        let turn = index / SEALED_TOGETHER % TURNS;
        full - (u32::from(full) * turn / TURNS) as u16
    }

    /// Makes the tally that of the window that holds `t`.
    pub(crate) fn enter_window(&mut self, t: i64, tally: &mut Tally<'_>) {
        if !tally.window.contains(t) {
            self.settle(tally);
            tally.window = self.windows.range_of(t);
        }
    }

    /// Books what the tally has gathered.
    pub(crate) fn settle(&mut self, tally: &mut Tally<'_>) {
        let added = Added {
            samples: std::mem::take(&mut tally.samples),
            seen: std::mem::replace(&mut tally.seen, NOTHING),
            lsn: tally.lsn,
        };
        self.windows.add(tally.window, added);
    }
}

impl Tally<'_> {
    pub(crate) fn new(lsn: u64) -> Self {
        Self {
            rows: None,
            window: NOTHING,
            samples: 0,
            seen: NOTHING,
            lsn,
        }
    }

    /// Goes on to a row of the batch.
    pub(crate) fn enter_row(&mut self, place: u32) {
        if let Some(rows) = &mut self.rows {
            rows.enter(place);
        }
    }

    fn add(&mut self, t: i64) {
        self.add_run(1, TimeRange::new(t, t));
    }

    pub(crate) fn add_run(&mut self, samples: u64, range: TimeRange) {
        self.samples += samples;
        self.seen = self.seen.union(&range);
    }
}

#[cfg(test)]
mod tests {
    use koios_model::{Labels, Matchers, SeriesHash};

    use super::*;
    use crate::HeadOptions;

    /// Batches of one sample for each of as many series as take all turns.
    fn scrape(t: i64) -> BatchColumns {
        let mut batch = BatchColumns::default();
        for i in 0..SEALED_TOGETHER * TURNS {
            let labels =
                Labels::from_pairs([("__name__", "up".to_owned()), ("instance", format!("host-{i}"))]);
            batch.push_series(SeriesHash(u128::from(i)), labels.as_ref());
            batch.push_sample(t, f64::from(i) + (t % 7) as f64);
        }
        batch
    }

    #[test]
    fn series_that_begin_together_are_sealed_by_turns_in_every_window() {
        let full = 2 * i64::from(TURNS);
        let options = HeadOptions {
            samples_per_chunk: full as usize,
            ..HeadOptions::default()
        };
        let window = options.window_ms;
        let (step, count) = (window / 100, i64::from(SEALED_TOGETHER * TURNS));
        let mut head = Head::new(options);
        let mut sent = 0;
        for start in [0, window] {
            let mut most_sealed = 0;
            for n in 0..3 * full {
                let open = |head: &Head| head.series.hot.iter().map(|h| i64::from(h.count)).sum::<i64>();
                let before = open(&head);
                head.apply(&scrape(start + n * step), 0, n as u64 + 1);
                sent += 1;
                // What the blocks of open runs must suffice for, once some were sealed.
                assert!(open(&head) <= count * full * 5 / 8, "{} open at {n}", open(&head));
                if n > 0 {
                    most_sealed = most_sealed.max(before + count - open(&head));
                }
            }
            assert!(
                most_sealed <= count * full / i64::from(TURNS),
                "{most_sealed} sealed at once"
            );
        }
        let mut samples = Vec::new();
        for id in head.select(&Matchers::default(), TimeRange::ALL) {
            samples.clear();
            head.samples(id, TimeRange::ALL, &mut samples).unwrap();
            assert_eq!(samples.len(), sent);
        }
    }
}
