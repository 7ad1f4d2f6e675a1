//! The samples of one series as columns, and the window of them that a step looks at.

use std::sync::Arc;

use koios_model::{Histogram, Labels, Summary, is_stale};

use super::cursor::{Bounds, Found};
use super::rate_slide::Reaches;
use super::stretches::Stretches;
use crate::annotations::Annotations;
use crate::ast::{RangeEdges, Span};
use crate::context::{QueryContext, check};
use crate::error::QueryError;
use crate::memory::{Lease, Memory};
use crate::queryable::Columns;

/// Samples of one series without stale markers, floats and histograms apart, each ascending in time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Samples<'a> {
    pub(crate) t: &'a [i64],
    pub(crate) v: &'a [f64],
    /// Start timestamps of the floats; empty if there are none.
    pub(crate) st: &'a [i64],
    pub(crate) ht: &'a [i64],
    pub(crate) h: &'a [Arc<Histogram>],
    /// Start timestamps of the histograms; empty if there are none.
    pub(crate) hst: &'a [i64],
    /// The sums of the whole series by stretches of time, if that helps.
    pub(crate) stretches: Option<&'a Stretches>,
    /// The number of the first float within the whole series.
    pub(crate) first: usize,
    /// The summaries of all that was downsampled of the series; floats and histograms have their ends.
    pub(crate) runs: &'a [Summary],
}

/// Holds the samples of one series after another, reusing its memory.
#[derive(Debug, Default)]
pub(crate) struct SampleBuffer {
    pub(crate) columns: Columns,
    t: Vec<i64>,
    v: Vec<f64>,
    st: Vec<i64>,
    ht: Vec<i64>,
    h: Vec<Arc<Histogram>>,
    hst: Vec<i64>,
    lease: Lease,
}

/// What the rows of some series are made in, one after the other.
#[derive(Debug)]
pub(super) struct Scratch {
    pub(super) buffer: SampleBuffer,
    pub(super) found: Found,
    pub(super) reaches: Reaches,
}

impl Scratch {
    /// Empty; its memory is a query's.
    pub(super) fn of(memory: &Arc<Memory>) -> Self {
        Self {
            buffer: SampleBuffer::of(memory),
            found: Found::of(memory),
            reaches: Reaches::of(memory),
        }
    }
}

impl SampleBuffer {
    /// An empty buffer whose memory is a query's.
    pub(crate) fn of(memory: &Arc<Memory>) -> Self {
        Self {
            lease: Lease::of(memory),
            ..Self::default()
        }
    }

    /// Takes the memory for samples that are to be decoded or pushed and have so many bytes.
    pub(crate) fn cover(&mut self, more_bytes: usize) -> Result<(), QueryError> {
        let copies = self.copies_bytes();
        self.lease.cover(copies.saturating_add(more_bytes))
    }

    /// Takes the memory of what was decoded, now that it is known how much that is.
    pub(crate) fn cover_decoded(&mut self) -> Result<(), QueryError> {
        self.cover(self.columns.bytes())
    }

    /// What samples without stale markers occupy, but for histograms.
    fn copies_bytes(&self) -> usize {
        let times = [&self.t, &self.st, &self.ht, &self.hst];
        let times: usize = times.into_iter().map(Vec::capacity).sum();
        (times + self.v.capacity() + self.h.capacity()) * 8
    }

    /// The decoded columns without stale markers. In the common case, floats without stale markers, nothing is copied.
    pub(crate) fn samples(&mut self) -> Result<Samples<'_>, QueryError> {
        let clean =
            self.columns.histograms().is_none() && !self.columns.values().iter().any(|&v| is_stale(v));
        if clean {
            return Ok(Samples {
                t: self.columns.timestamps(),
                v: self.columns.values(),
                st: self.columns.start_timestamps().unwrap_or_default(),
                runs: self.columns.summaries(),
                ..Samples::default()
            });
        }
        self.split()?;
        Ok(Samples {
            runs: self.columns.summaries(),
            ..self.view()
        })
    }

    /// Sorts the decoded samples into floats and histograms.
    fn split(&mut self) -> Result<(), QueryError> {
        self.clear();
        let histograms = self.columns.histograms().unwrap_or_default();
        let histograms = histograms.iter().filter(|h| h.is_some()).count();
        let floats = self.columns.len() - histograms;
        let starts = self.columns.start_timestamps().is_some();
        let slots = self.columns.len() * if starts { 3 } else { 2 };
        self.cover(self.columns.bytes().saturating_add(slots * 8))?;
        self.t.reserve_exact(floats);
        self.v.reserve_exact(floats);
        self.ht.reserve_exact(histograms);
        self.h.reserve_exact(histograms);
        if starts {
            self.st.reserve_exact(floats);
            self.hst.reserve_exact(histograms);
        }
        let columns = &self.columns;
        let starts = columns.start_timestamps();
        for (i, (&t, &v)) in columns.timestamps().iter().zip(columns.values()).enumerate() {
            let start = starts.and_then(|s| s.get(i)).copied();
            match columns
                .histograms()
                .and_then(|h| h.get(i))
                .and_then(Option::as_ref)
            {
                Some(h) if !is_stale(h.sum) => {
                    self.ht.push(t);
                    self.h.push(Arc::clone(h));
                    self.hst.extend(start);
                }
                None if !is_stale(v) => {
                    self.t.push(t);
                    self.v.push(v);
                    self.st.extend(start);
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) fn clear(&mut self) {
        self.t.clear();
        self.v.clear();
        self.st.clear();
        self.ht.clear();
        self.h.clear();
        self.hst.clear();
    }

    pub(crate) fn push_float(&mut self, t: i64, v: f64) {
        self.t.push(t);
        self.v.push(v);
    }

    pub(crate) fn push_histogram(&mut self, t: i64, h: Arc<Histogram>) {
        self.ht.push(t);
        self.h.push(h);
    }

    /// What was pushed.
    pub(crate) fn view(&self) -> Samples<'_> {
        Samples {
            t: &self.t,
            v: &self.v,
            st: &self.st,
            ht: &self.ht,
            h: &self.h,
            hst: &self.hst,
            ..Samples::default()
        }
    }
}

pub(super) fn cut<T>(all: &[T], lo: usize, hi: usize) -> &[T] {
    all.get(lo..hi).unwrap_or_default()
}

impl<'a> Samples<'a> {
    /// The samples in `(after, until]`.
    pub(crate) fn between(self, after: i64, until: i64) -> Self {
        let (lo, hi) = (
            self.t.partition_point(|&t| t <= after),
            self.t.partition_point(|&t| t <= until),
        );
        let (hlo, hhi) = (
            self.ht.partition_point(|&t| t <= after),
            self.ht.partition_point(|&t| t <= until),
        );
        self.slice(lo, hi, hlo, hhi)
    }

    pub(super) fn slice(self, lo: usize, hi: usize, hlo: usize, hhi: usize) -> Self {
        Self {
            t: cut(self.t, lo, hi),
            v: cut(self.v, lo, hi),
            st: cut(self.st, lo, hi),
            ht: cut(self.ht, hlo, hhi),
            h: cut(self.h, hlo, hhi),
            hst: cut(self.hst, hlo, hhi),
            stretches: self.stretches,
            first: self.first.saturating_add(lo),
            runs: self.runs,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.t.is_empty() && self.ht.is_empty()
    }

    /// Whether there are floats and histograms.
    pub(crate) fn is_mixed(&self) -> bool {
        !self.t.is_empty() && !self.ht.is_empty()
    }

    /// How many samples there are; a histogram counts as much as it weighs.
    pub(crate) fn weight(&self) -> usize {
        self.t.len()
            + self
                .h
                .iter()
                .map(|h| super::row::histogram_weight(h))
                .sum::<usize>()
    }

    /// The start timestamp of float `i`; 0 for unknown.
    pub(crate) fn start_of(&self, i: usize) -> i64 {
        self.st.get(i).copied().unwrap_or(0)
    }

    /// The start timestamp of histogram `i`; 0 for unknown.
    pub(crate) fn histogram_start_of(&self, i: usize) -> i64 {
        self.hst.get(i).copied().unwrap_or(0)
    }
}

/// Moves a window over samples; both ends only ever move forward, so that all windows together cost one pass.
#[derive(Debug)]
pub(crate) struct Slider<'a> {
    samples: Samples<'a>,
    floats: Bounds<'a>,
    histograms: Bounds<'a>,
}

impl<'a> Slider<'a> {
    pub(crate) fn new(samples: Samples<'a>) -> Self {
        Self {
            samples,
            floats: Bounds::new(samples.t),
            histograms: Bounds::new(samples.ht),
        }
    }

    /// The samples in `(after, until]`; neither may be less than before.
    pub(crate) fn advance(&mut self, after: i64, until: i64) -> Samples<'a> {
        let (lo, hi) = self.floats.advance(after, until);
        let (hlo, hhi) = self.histograms.advance(after, until);
        self.samples.slice(lo, hi, hlo, hhi)
    }
}

/// The range `(start, end]` that a value is computed over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RangeTimes {
    pub(crate) start: i64,
    pub(crate) end: i64,
    pub(crate) seconds: f64,
}

/// What a range function needs to know of the step beside the samples.
pub(crate) struct StepInfo<'a> {
    /// The evaluation time.
    pub(crate) at: i64,
    /// The range: `(start, end]`.
    pub(crate) start: i64,
    pub(crate) end: i64,
    pub(crate) range_ms: i64,
    pub(crate) edges: RangeEdges,
    /// The scalar arguments.
    pub(crate) params: [f64; 2],
    /// The labels of the series.
    pub(crate) labels: &'a Labels,
    /// Where the range argument stands in the query.
    pub(crate) span: Span,
    /// Where the function's first argument stands.
    pub(crate) first_span: Span,
    pub(crate) annotations: &'a mut Annotations,
    pub(crate) ctx: &'a dyn QueryContext,
}

/// How many samples of one window are looked at before the caller is asked whether to go on.
pub(super) const WINDOW_PIECE: usize = 1 << 17;

impl StepInfo<'_> {
    /// Asks whether to go on, before piece number `piece` of a window: most windows have but one.
    #[inline]
    pub(crate) fn go_on(&self, piece: usize) -> Result<(), QueryError> {
        if piece == 0 { Ok(()) } else { check(self.ctx) }
    }

    /// The range.
    pub(crate) fn range(&self) -> RangeTimes {
        RangeTimes {
            start: self.start,
            end: self.end,
            seconds: self.range_seconds(),
        }
    }

    /// The range in seconds.
    pub(crate) fn range_seconds(&self) -> f64 {
        self.range_ms as f64 / 1000.0
    }

    /// Notes that floats and histograms cannot be taken together.
    pub(crate) fn mixed(&mut self) {
        self.annotations
            .mixed_floats_histograms(self.labels.metric_name(), self.span);
    }

    /// Notes that histograms were left out.
    pub(crate) fn histograms_ignored(&mut self) {
        self.annotations
            .histogram_ignored_in_mixed_range(self.labels.metric_name(), self.first_span);
    }

    /// Notes that the bucket layouts do not go together.
    pub(crate) fn incompatible(&mut self) {
        self.annotations
            .mixed_exponential_custom(self.labels.metric_name(), self.span);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_open_on_the_left_and_closed_on_the_right() {
        let t = [10, 20, 30, 40];
        let v = [1.0, 2.0, 3.0, 4.0];
        let all = Samples {
            t: &t,
            v: &v,
            ..Samples::default()
        };
        let mut slider = Slider::new(all);
        assert_eq!(slider.advance(10, 30).t, [20, 30]);
        assert_eq!(slider.advance(15, 35).t, [20, 30]);
        assert_eq!(slider.advance(90, 95).t, [0i64; 0]);
        assert_eq!(all.between(0, 20).v, [1.0, 2.0]);
    }

    #[test]
    fn stale_markers_are_no_samples_of_a_range() {
        let mut b = SampleBuffer::default();
        b.columns.push_float(1, 1.0);
        b.columns.push_float(2, koios_model::stale_nan());
        b.columns.push_histogram(3, Arc::new(Histogram::default()));
        let s = b.samples().unwrap();
        assert_eq!((s.t, s.ht), (&[1][..], &[3][..]));
    }
}
