//! Applying a batch: resolve its series, then append its samples.

use koios_model::merge::start_at;
use koios_model::{BatchColumns, BatchSeries, Sample, TimeRange};

use crate::head::Head;
use crate::resolve::{NEW, Resolved};
use crate::starts::StartOf;
use crate::windows::{Added, NOTHING};

/// Series whose memory is touched ahead at a time: few enough to stay in the first-level cache.
const STRIP: usize = 128;

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
    /// Series skipped because they came without labels under a reference that could not be resolved.
    pub unknown_series: u64,
    /// Held samples that were decoded to compare late ones with them.
    pub compared: u64,
}

/// What the current run of samples adds to one window.
#[derive(Debug)]
pub(crate) struct Tally {
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
        self.append(batch, &resolved.indices, lsn, &mut applied);
        self.append_histograms(&batch.histograms, &resolved.indices, lsn, &mut applied);
        self.keep_exemplars(batch, &resolved.indices, lsn);
        self.merge_metadata(batch, admission_ms);
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
    fn append(&mut self, batch: &BatchColumns, indices: &[u32], lsn: u64, applied: &mut Applied) {
        let mut tally = Tally::new(lsn);
        let mut series = batch.series();
        for strip in indices.chunks(STRIP) {
            self.touch(strip);
            for (&index, s) in strip.iter().zip(series.by_ref()) {
                if index < NEW && !s.timestamps.is_empty() {
                    self.append_batch_series(index, &s, &mut tally, applied);
                }
            }
        }
        self.settle(&mut tally);
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
        tally: &mut Tally,
        applied: &mut Applied,
    ) {
        if self.has_starts(index) || series.starts.iter().any(|start| *start != 0) {
            return self.append_started_series(index, series, tally, applied);
        }
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
        tally: &mut Tally,
        applied: &mut Applied,
    ) {
        let i = index as usize;
        let mut late = std::mem::take(&mut self.scratch.late);
        late.clear();
        for s in samples {
            let hot = &self.series.hot[i];
            let start = if STARTED { start_at(starts, s.t) } else { 0 };
            if hot.has_last() && s.t <= hot.last_t {
                let same = s.t == hot.last_t && s.v.to_bits() == hot.last_v.to_bits();
                if same && (start == 0 || self.newest_start(index) == Some(start)) {
                    applied.duplicates += 1;
                } else {
                    late.push(s);
                }
                continue;
            }
            self.enter_window(s.t, tally);
            let hot = &self.series.hot[i];
            if hot.count > 0 && (hot.count >= self.samples_per_chunk || hot.last_t < tally.window.min) {
                self.seal_open(index);
            }
            if STARTED {
                self.note_start(index, s.t, start);
            }
            self.pool.append(&mut self.series.hot[i], s.t, s.v);
            tally.add(s.t);
            applied.samples += 1;
        }
        if !late.is_empty() {
            self.append_late(index, &mut late, starts, tally, applied);
        }
        self.scratch.late = late;
    }

    /// Makes the tally that of the window that holds `t`.
    pub(crate) fn enter_window(&mut self, t: i64, tally: &mut Tally) {
        if !tally.window.contains(t) {
            self.settle(tally);
            tally.window = self.windows.range_of(t);
        }
    }

    /// Books what the tally has gathered.
    pub(crate) fn settle(&mut self, tally: &mut Tally) {
        let added = Added {
            samples: std::mem::take(&mut tally.samples),
            seen: std::mem::replace(&mut tally.seen, NOTHING),
            lsn: tally.lsn,
        };
        self.windows.add(tally.window, added);
    }

    /// Of different metadata for one metric the later admitted stays; of equally late ones the greater.
    fn merge_metadata(&mut self, batch: &BatchColumns, admission_ms: i64) {
        for (name, metadata) in &batch.metadata {
            match self.metadata.get_mut(name) {
                Some((at, held)) => {
                    if (*at, &*held) < (admission_ms, metadata) {
                        *at = admission_ms;
                        held.clone_from(metadata);
                    }
                }
                None => {
                    self.metadata
                        .insert(name.clone(), (admission_ms, metadata.clone()));
                }
            }
        }
    }
}

impl Tally {
    pub(crate) fn new(lsn: u64) -> Self {
        Self {
            window: NOTHING,
            samples: 0,
            seen: NOTHING,
            lsn,
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
