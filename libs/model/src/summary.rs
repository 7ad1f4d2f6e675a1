//! Downsampling: what is kept of the samples of a bucket of time.
//!
//! A bucket of resolution `r` is `(k * r, (k + 1) * r]`: open on the left and closed on the right, as the windows of range
//! functions are, and counted from the epoch, so that buckets of different blocks and of aligned windows fall together.
//! Samples of a bucket that follow each other become one [`Summary`]. A stale marker, or a change between floats and native
//! histograms, ends one; so a bucket may have several.

use std::sync::Arc;

use crate::{Histogram, ResetHint, Sample, TimeRange, is_stale, stale_nan};

/// The end of the bucket that a time lies in: the least multiple of the resolution that is not before it.
pub fn bucket_end(t: i64, resolution_ms: i64) -> i64 {
    let resolution_ms = resolution_ms.max(1);
    t.saturating_add(t.wrapping_neg().rem_euclid(resolution_ms))
}

/// What is kept of consecutive samples of one bucket: floats, native histograms, or one stale marker.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Time of the first sample.
    pub first_t: i64,
    /// Time of the last sample.
    pub last_t: i64,
    /// How many floats there were. With no histograms either, it is a stale marker.
    pub count: u32,
    /// How many native histograms there were; those that are kept are kept elsewhere.
    pub histograms: u32,
    /// The first float.
    pub first: f64,
    /// The last float.
    pub last: f64,
    /// The sum of the floats.
    pub sum: f64,
    /// The least float; a NaN only when there is nothing else.
    pub min: f64,
    /// The greatest float; a NaN only when there is nothing else.
    pub max: f64,
    /// What a counter had counted whenever it began anew between the first and the last float: its increase is
    /// `last - first + resets`.
    pub resets: f64,
    /// The sum of the histograms, as PromQL adds them up; a stale marker where they cannot be added. `None` where there are none,
    /// where nobody has added them up, and where the sum would be larger than what is kept.
    pub histogram_sum: Option<Arc<Histogram>>,
}

impl PartialEq for Summary {
    /// Bit equality.
    fn eq(&self, other: &Self) -> bool {
        let whole = |s: &Self| (s.first_t, s.last_t, s.count, s.histograms);
        let same_sum = match (&self.histogram_sum, &other.histogram_sum) {
            (Some(a), Some(b)) => a.bits_cmp(b).is_eq(),
            (a, b) => a.is_none() && b.is_none(),
        };
        whole(self) == whole(other)
            && self.floats().map(f64::to_bits) == other.floats().map(f64::to_bits)
            && same_sum
    }
}

impl Eq for Summary {}

impl Summary {
    /// Of one float, or of a stale marker.
    pub fn of_float(sample: Sample) -> Self {
        let Sample { t, v } = sample;
        if is_stale(v) {
            return Self::stale(t);
        }
        Self {
            first_t: t,
            last_t: t,
            count: 1,
            first: v,
            last: v,
            sum: v,
            min: v,
            max: v,
            ..Self::default()
        }
    }

    fn of_histogram(t: i64) -> Self {
        Self {
            first_t: t,
            last_t: t,
            histograms: 1,
            ..Self::default()
        }
    }

    fn stale(t: i64) -> Self {
        Self {
            first_t: t,
            last_t: t,
            first: stale_nan(),
            last: stale_nan(),
            ..Self::default()
        }
    }

    /// Whether it is a stale marker.
    pub fn is_stale(&self) -> bool {
        self.count == 0 && self.histograms == 0
    }

    /// First to last sample.
    pub fn range(&self) -> TimeRange {
        TimeRange::new(self.first_t, self.last_t)
    }

    /// How much a counter rose from the first to the last sample.
    pub fn increase(&self) -> f64 {
        self.last - self.first + self.resets
    }

    /// All numbers that are floats, in the order in which they are kept.
    pub fn floats(&self) -> [f64; 6] {
        [self.first, self.last, self.sum, self.min, self.max, self.resets]
    }

    /// Takes in what overlaps it or follows it: samples that came when the bucket had been summarised. Where times
    /// interleave, resets are those seen by either. Where both have histograms, these are to be added by who knows how.
    pub fn absorb(&mut self, other: &Self) {
        if other.is_stale() || self.is_stale() {
            if self.is_stale() && !other.is_stale() {
                *self = other.clone();
            }
            return;
        }
        let histogram_sum = match (self.histograms, other.histograms) {
            (_, 0) => self.histogram_sum.take(),
            (0, _) => other.histogram_sum.clone(),
            _ => None,
        };
        self.absorb_samples(other);
        self.histogram_sum = histogram_sum;
    }

    fn absorb_samples(&mut self, other: &Self) {
        if other.count > 0 {
            if self.count == 0 {
                let histograms = self.histograms;
                let range = self.range().union(&other.range());
                *self = other.clone();
                (self.first_t, self.last_t) = (range.min, range.max);
                self.histograms = self.histograms.saturating_add(histograms);
                return;
            }
            self.resets += other.resets;
            if other.first_t > self.last_t && other.first < self.last {
                self.resets += self.last;
            }
            self.sum += other.sum;
            self.min = lesser(self.min, other.min);
            self.max = greater(self.max, other.max);
            self.count = self.count.saturating_add(other.count);
            if other.first_t < self.first_t {
                self.first = other.first;
            }
            if other.last_t > self.last_t {
                self.last = other.last;
            }
        }
        self.histograms = self.histograms.saturating_add(other.histograms);
        self.first_t = self.first_t.min(other.first_t);
        self.last_t = self.last_t.max(other.last_t);
    }
}

/// The lesser of two floats, the first of equal ones; a NaN only when both are.
pub fn lesser(a: f64, b: f64) -> f64 {
    if b < a || a.is_nan() { b } else { a }
}

/// The greater of two floats, the first of equal ones; a NaN only when both are.
pub fn greater(a: f64, b: f64) -> f64 {
    if b > a || a.is_nan() { b } else { a }
}

/// A series, downsampled.
#[derive(Clone, Debug, Default)]
pub struct Downsampled {
    /// In time order, not overlapping.
    pub summaries: Vec<Summary>,
    /// Of the native histograms, as they were sent: the first and the last of each summary, and both sides of each reset, so
    /// that what a counter counted between two of them is their difference. A stale marker among them stays, too.
    pub histograms: Vec<(i64, Arc<Histogram>)>,
}

/// Downsamples a series: floats and histograms, each strictly ascending in time, none of one at a time of the other. Histograms
/// are not added up.
pub fn downsample(
    floats: &[Sample],
    histograms: &[(i64, Arc<Histogram>)],
    resolution_ms: i64,
) -> Downsampled {
    let mut open = Open::new(resolution_ms);
    let mut floats = floats.iter().peekable();
    for (t, histogram) in histograms {
        while let Some(float) = floats.next_if(|f| f.t < *t) {
            open.push_float(*float);
        }
        open.push_histogram(*t, histogram);
    }
    floats.for_each(|float| open.push_float(*float));
    open.finish()
}

/// A series on its way.
struct Open {
    resolution_ms: i64,
    out: Downsampled,
    /// The summary being made, and the end of its bucket.
    summary: Option<(i64, Summary)>,
    /// What rounding took from its sum.
    lost: f64,
    /// The last histogram, unless it is kept already.
    before: Option<(i64, Arc<Histogram>)>,
}

impl Open {
    fn new(resolution_ms: i64) -> Self {
        Self {
            resolution_ms,
            out: Downsampled::default(),
            summary: None,
            lost: 0.0,
            before: None,
        }
    }

    /// The open summary if a sample at `t` goes on in it.
    fn going_on(&mut self, t: i64, histograms: bool) -> Option<&mut Summary> {
        let (end, summary) = self.summary.as_mut()?;
        let goes_on = t <= *end && !summary.is_stale() && (summary.histograms > 0) == histograms;
        goes_on.then_some(summary)
    }

    fn push_float(&mut self, sample: Sample) {
        let Sample { t, v } = sample;
        if !is_stale(v)
            && let Some(s) = self.going_on(t, false)
        {
            if v < s.last {
                s.resets += s.last;
            }
            (s.last_t, s.last) = (t, v);
            s.count = s.count.saturating_add(1);
            s.min = lesser(s.min, v);
            s.max = greater(s.max, v);
            // Neumaier's sum: what is lost is added in the end.
            let sum = s.sum + v;
            let lost = if s.sum.abs() >= v.abs() {
                (s.sum - sum) + v
            } else {
                (v - sum) + s.sum
            };
            s.sum = sum;
            self.lost += lost;
            return;
        }
        self.close();
        self.summary = Some((bucket_end(t, self.resolution_ms), Summary::of_float(sample)));
    }

    fn push_histogram(&mut self, t: i64, histogram: &Arc<Histogram>) {
        let stale = is_stale(histogram.sum);
        if !stale && let Some(s) = self.going_on(t, true) {
            s.last_t = t;
            s.histograms = s.histograms.saturating_add(1);
            let before = self
                .before
                .as_ref()
                .map(|(_, b)| b)
                .or_else(|| self.out.histograms.last().map(|(_, b)| b));
            let gauge = histogram.reset_hint == ResetHint::Gauge;
            let begins_anew = !gauge && before.is_some_and(|b| !histogram.continues(b));
            if begins_anew {
                self.out.histograms.extend(self.before.take());
                self.out.histograms.push((t, Arc::clone(histogram)));
            } else {
                self.before = Some((t, Arc::clone(histogram)));
            }
            return;
        }
        self.close();
        let summary = if stale {
            Summary::stale(t)
        } else {
            Summary::of_histogram(t)
        };
        self.summary = Some((bucket_end(t, self.resolution_ms), summary));
        self.out.histograms.push((t, Arc::clone(histogram)));
    }

    /// Ends the open summary.
    fn close(&mut self) {
        self.out.histograms.extend(self.before.take());
        let lost = std::mem::take(&mut self.lost);
        if let Some((_, mut summary)) = self.summary.take() {
            if summary.sum.is_finite() && lost.is_finite() {
                summary.sum += lost;
            }
            self.out.summaries.push(summary);
        }
    }

    fn finish(mut self) -> Downsampled {
        self.close();
        self.out
    }
}

#[cfg(test)]
#[path = "summary_test.rs"]
mod tests;
