//! Puts summaries of downsampled samples between the samples of a series, and adds up the native histograms that they speak for.

use std::sync::Arc;

use koios_model::{HISTOGRAM_LIST_MAX, Histogram, Sample, Summary, TimeRange};

use crate::histogram::HistogramSum;
use crate::queryable::Columns;

/// Most buckets and bounds of a sum: those of a series' day are read at once, and no list of a histogram may have more.
const SUM_ENTRIES_MAX: usize = HISTOGRAM_LIST_MAX;

/// Gives summaries of native histograms their sum, as `sum_over_time` has it, given all histograms that they speak for, ascending in
/// time. Where it would have none, as they cannot be added, the sum is a stale marker; one that is larger than what can be kept is none.
pub fn add_histograms(summaries: &mut [Summary], histograms: &[(i64, Arc<Histogram>)]) {
    let mut rest = histograms;
    for summary in summaries.iter_mut().filter(|s| s.histograms > 0) {
        rest = rest
            .split_at(rest.partition_point(|(t, _)| *t < summary.first_t))
            .1;
        let (of_summary, later) = rest.split_at(rest.partition_point(|(t, _)| *t <= summary.last_t));
        rest = later;
        summary.histogram_sum = sum_of(of_summary.iter().map(|(_, h)| h));
    }
}

/// The sum of histograms; a stale marker where they cannot be added or one is. `None` where there are none, and where the sum would not
/// be readable again: what is summarised beside it must not suffer from that.
fn sum_of<'a>(mut all: impl Iterator<Item = &'a Arc<Histogram>>) -> Option<Arc<Histogram>> {
    let first = all.next()?;
    let Some(second) = all.next() else {
        return Some(Arc::clone(first)).filter(|sum| sum.can_be_kept());
    };
    let mut sum = HistogramSum::new(first);
    let mut is_stale = first.is_stale();
    for h in std::iter::once(second).chain(all) {
        if is_stale || h.is_stale() || sum.push(h).is_err() {
            is_stale = true;
            break;
        }
        if sum.entries() > SUM_ENTRIES_MAX {
            return None;
        }
    }
    let sum = match is_stale {
        true => Histogram::stale(),
        false => sum.value(),
    };
    sum.can_be_kept().then(|| Arc::new(sum))
}

/// Takes a summary into one that it overlaps or follows: see [`Summary::absorb`]; of native histograms the sum is that of both.
pub fn unite_summaries(summary: &mut Summary, other: &Summary) {
    let sum = match (&summary.histogram_sum, &other.histogram_sum) {
        (Some(a), Some(b)) if summary.histograms > 0 && other.histograms > 0 => sum_of([a, b].into_iter()),
        _ => None,
    };
    summary.absorb(other);
    summary.histogram_sum = summary.histogram_sum.take().or(sum);
}

/// Appends summaries, which ascend and do not overlap, with their ends, and samples of the same time and around to the columns
/// of a series: see [`Columns::push_summary`]. Floats inside of a summary are spoken for by
/// it; native histograms are what is kept of it.
pub fn merge_summaries(summaries: &[Summary], samples: &Columns, range: TimeRange, out: &mut Columns) {
    let mut points = Points { range, out };
    let histograms = samples.histograms();
    let rows = samples.timestamps().iter().zip(samples.values()).enumerate();
    let mut rows = rows
        .map(|(i, (&t, &v))| {
            let histogram = histograms.and_then(|h| h.get(i)).and_then(Option::as_ref);
            (Sample { t, v }, histogram)
        })
        .peekable();
    for summary in summaries {
        while let Some((sample, histogram)) = rows.next_if(|(s, _)| s.t < summary.first_t) {
            points.push(sample, histogram);
        }
        points.out.push_summary(summary.clone());
        if summary.count > 0 {
            points.push(first_of(summary), None);
        }
        let mut kept = false;
        while let Some((sample, histogram)) = rows.next_if(|(s, _)| s.t <= summary.last_t) {
            if histogram.is_some() {
                points.push_around(sample.t, histogram);
                kept = true;
            }
        }
        let is_one = summary.first_t == summary.last_t;
        if summary.count > 0 && !is_one || summary.is_stale() && !kept {
            points.push(last_of(summary), None);
        }
    }
    for (sample, histogram) in rows {
        points.push(sample, histogram);
    }
}

fn first_of(summary: &Summary) -> Sample {
    Sample {
        t: summary.first_t,
        v: summary.first,
    }
}

fn last_of(summary: &Summary) -> Sample {
    Sample {
        t: summary.last_t,
        v: summary.last,
    }
}

/// Samples on their way into columns.
struct Points<'a> {
    range: TimeRange,
    out: &'a mut Columns,
}

impl Points<'_> {
    /// Appends a sample that lies in range.
    fn push(&mut self, sample: Sample, histogram: Option<&Arc<Histogram>>) {
        if !self.range.contains(sample.t) {
            return;
        }
        match histogram {
            Some(_) => self.push_around(sample.t, histogram),
            None if self.is_next(sample.t) => self.out.push_float(sample.t, sample.v),
            None => {}
        }
    }

    /// Appends a histogram, in range or not.
    fn push_around(&mut self, t: i64, histogram: Option<&Arc<Histogram>>) {
        if let Some(histogram) = histogram.filter(|_| self.is_next(t)) {
            self.out.push_histogram(t, Arc::clone(histogram));
        }
    }

    /// Whether it was not appended already, with the piece of the range before.
    fn is_next(&self, t: i64) -> bool {
        self.out.timestamps().last().is_none_or(|last| *last < t)
    }
}
