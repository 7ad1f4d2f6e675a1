//! Puts summaries of downsampled samples between the samples of a series.

use std::sync::Arc;

use koios_model::{Histogram, Sample, Summary, TimeRange};

use crate::queryable::Columns;

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
        points.out.push_summary(*summary);
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
