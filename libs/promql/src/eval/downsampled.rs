//! Range functions and selectors over downsampled samples.
//!
//! Of downsampled samples a series' columns have the first and the last of each [`Summary`], as they were sent, and beside them
//! the summary itself. A summary is counted to the window that its last sample lies in, so that windows which share no
//! sample share no summary either; where a counter's window cuts one, its increase is divided by time.

use std::sync::Arc;

use koios_model::summary::{greater, lesser};
use koios_model::{Histogram, Summary};

use super::aggregate_histogram;
use super::range_call::Kernel;
use super::rate::{RateKind, Sampled, factor_of};
use super::rate_histogram;
use super::row::Point;
use super::window::{Samples, StepInfo};
use crate::ast::RangeEdges;
use crate::engine::EngineOptions;
use crate::error::QueryError;
use crate::kahan::Kahan;
use crate::signatures::FunctionId;

/// The summaries of a series that touch `(start, end]`.
fn touching(runs: &[Summary], start: i64, end: i64) -> &[Summary] {
    let from = runs.partition_point(|r| r.last_t <= start);
    let to = runs.partition_point(|r| r.first_t <= end).max(from);
    runs.get(from..to).unwrap_or_default()
}

/// One value of a range function from the window of a step, given all samples of the series; `None` where none of them is
/// downsampled, or where what is kept of them is what the function's own kernel needs.
pub(super) fn point(
    all: Samples<'_>,
    function: FunctionId,
    kernel: Kernel,
    options: &EngineOptions,
    s: &mut StepInfo<'_>,
) -> Result<Option<Point>, QueryError> {
    use FunctionId as F;
    let runs = touching(all.runs, s.start, s.end);
    if runs.is_empty() || s.edges != RangeEdges::Plain {
        return Ok(None);
    }
    let window = all.between(s.start, s.end);
    Ok(Some(match function {
        F::SumOverTime | F::AvgOverTime | F::CountOverTime | F::MinOverTime | F::MaxOverTime => {
            aggregated(window, runs, function, s)
        }
        F::Rate | F::Increase | F::Delta => {
            let Some(kind) = RateKind::of(function) else {
                return Ok(None);
            };
            rate(all, window, runs, s, kind)
        }
        F::PresentOverTime | F::AbsentOverTime if window.is_empty() => match begun(runs, s) {
            Some(_) => Point::Float(1.0),
            None => Point::Absent,
        },
        F::LastOverTime | F::FirstOverTime if window.is_empty() => match begun(runs, s) {
            Some(run) if run.count > 0 => Point::Float(run.first),
            _ => Point::Absent,
        },
        F::PresentOverTime | F::AbsentOverTime | F::LastOverTime | F::FirstOverTime => {
            return Ok(None);
        }
        _ => {
            let asked_for = options.summaries_asked_for;
            s.annotations
                .downsampled_samples(function.name(), s.labels.metric_name(), asked_for, s.span);
            return match window.is_empty() {
                true => Ok(Some(Point::Absent)),
                false => kernel(window, s).map(Some),
            };
        }
    }))
}

/// How many gaps there were between the native histograms of a window, of which not all are kept.
pub(super) fn histogram_gaps(window: Samples<'_>, s: &StepInfo<'_>) -> f64 {
    Total::of(window, touching(window.runs, s.start, s.end), s).histograms - 1.0
}

/// The summary that begins before the end of the window and ends after it.
fn begun<'r>(runs: &'r [Summary], s: &StepInfo<'_>) -> Option<&'r Summary> {
    runs.last().filter(|r| r.first_t <= s.end && r.last_t > s.end)
}

/// What a window adds up to.
#[derive(Clone, Debug)]
struct Total {
    floats: f64,
    histograms: f64,
    sum: Kahan,
    min: f64,
    max: f64,
    /// The sums of the histograms of summaries, and histograms by themselves.
    histogram_sums: Vec<Arc<Histogram>>,
    /// Whether of any summary the sum is not known.
    unsummed: bool,
}

impl Default for Total {
    fn default() -> Self {
        Self {
            floats: 0.0,
            histograms: 0.0,
            sum: Kahan::default(),
            min: f64::NAN,
            max: f64::NAN,
            histogram_sums: Vec::new(),
            unsummed: false,
        }
    }
}

impl Total {
    /// Adds a summary of histograms, or a share of one.
    fn add_histograms(&mut self, run: &Summary, share: f64) {
        self.histograms += f64::from(run.histograms) * share;
        match &run.histogram_sum {
            Some(sum) if share < 1.0 && !sum.is_stale() => {
                let part = aggregate_histogram::scaled(sum, share);
                self.histogram_sums.push(Arc::new(part));
            }
            Some(sum) => self.histogram_sums.push(Arc::clone(sum)),
            None => self.unsummed = true,
        }
    }

    fn add(&mut self, count: f64, sum: f64, min: f64, max: f64) {
        self.floats += count;
        self.sum = self.sum.plus(sum);
        self.min = lesser(self.min, min);
        self.max = greater(self.max, max);
    }

    /// Of the samples of a window and the summaries that touch it.
    fn of(window: Samples<'_>, runs: &[Summary], s: &StepInfo<'_>) -> Self {
        let mut total = Self::default();
        let mut at = runs.iter().peekable();
        for (&t, &v) in window.t.iter().zip(window.v) {
            while at.next_if(|r| r.last_t < t).is_some() {}
            match at.peek().filter(|r| r.first_t <= t && r.count > 0) {
                Some(r) if r.last_t == t => total.add(f64::from(r.count), r.sum, r.min, r.max),
                // Its last sample speaks for it.
                Some(_) => {}
                None => total.add(1.0, v, v, v),
            }
        }
        let mut at = runs.iter().peekable();
        for (&t, h) in window.ht.iter().zip(window.h) {
            while at.next_if(|r| r.last_t < t).is_some() {}
            match at.peek().filter(|r| r.first_t <= t && r.histograms > 0) {
                Some(r) if r.last_t == t => total.add_histograms(r, 1.0),
                Some(_) => {}
                None => {
                    total.histograms += 1.0;
                    total.histogram_sums.push(Arc::clone(h));
                }
            }
        }
        if total.floats + total.histograms == 0.0
            && let Some(run) = begun(runs, s)
        {
            // The window is narrower than what is known: it has its share.
            let lasted = run.last_t.saturating_sub(run.first_t) as f64;
            let share = s.end.saturating_sub(s.start.max(run.first_t)) as f64 / lasted;
            if run.histograms > 0 {
                total.add_histograms(run, share);
            }
            if run.count > 0 {
                total.add(f64::from(run.count) * share, run.sum * share, run.min, run.max);
            }
        }
        total
    }
}

fn aggregated(window: Samples<'_>, runs: &[Summary], function: FunctionId, s: &mut StepInfo<'_>) -> Point {
    let total = Total::of(window, runs, s);
    if function == FunctionId::CountOverTime {
        let count = total.floats + total.histograms;
        return if count > 0.0 {
            Point::Float(count)
        } else {
            Point::Absent
        };
    }
    let sums = matches!(function, FunctionId::SumOverTime | FunctionId::AvgOverTime);
    if total.histograms > 0.0 {
        if total.floats > 0.0 && sums {
            s.mixed();
            return Point::Absent;
        }
        if sums {
            return aggregated_histograms(window, &total, function, s);
        }
        if total.floats > 0.0 {
            s.histograms_ignored();
        }
    }
    if total.floats == 0.0 {
        return Point::Absent;
    }
    let sum = match total.sum.sum.is_finite() {
        true => total.sum.total(),
        false => total.sum.sum,
    };
    Point::Float(match function {
        FunctionId::SumOverTime => sum,
        FunctionId::AvgOverTime => sum / total.floats,
        FunctionId::MinOverTime => total.min,
        _ => total.max,
    })
}

/// The sum or the mean of all histograms of a window, by the sums of its summaries.
fn aggregated_histograms(
    window: Samples<'_>,
    total: &Total,
    function: FunctionId,
    s: &mut StepInfo<'_>,
) -> Point {
    if total.unsummed {
        s.annotations
            .downsampled_histograms(function.name(), s.labels.metric_name(), s.span);
        return Point::Absent;
    }
    if total.histogram_sums.iter().any(|h| h.is_stale()) {
        s.incompatible();
        return Point::Absent;
    }
    let Point::Histogram(sum) = aggregate_histogram::sum_over_time(&total.histogram_sums, s) else {
        return Point::Absent;
    };
    // What differs between the histograms of one summary shows in those that are kept beside their sum.
    aggregate_histogram::note_bounds(window.h.iter().chain(&total.histogram_sums), s);
    match function {
        FunctionId::AvgOverTime => {
            Point::Histogram(Arc::new(aggregate_histogram::divided(&sum, total.histograms)))
        }
        _ => Point::Histogram(sum),
    }
}

fn rate(
    all: Samples<'_>,
    window: Samples<'_>,
    runs: &[Summary],
    s: &mut StepInfo<'_>,
    kind: RateKind,
) -> Point {
    let has = |of: fn(&Summary) -> u32| runs.iter().any(|r| of(r) > 0);
    let floats = !window.t.is_empty() || has(|r| r.count);
    let histograms = !window.ht.is_empty() || has(|r| r.histograms);
    match (floats, histograms) {
        (true, true) => {
            s.mixed();
            Point::Absent
        }
        (true, false) => float_rate(window, runs, s, kind).map_or(Point::Absent, Point::Float),
        _ => histogram_rate(all, window, runs, s, kind),
    }
}

/// How much of a summary's time lies before `t`, as a fraction.
fn part_before(run: &Summary, t: i64) -> f64 {
    let lasted = run.last_t.saturating_sub(run.first_t) as f64;
    t.saturating_sub(run.first_t) as f64 / lasted
}

/// The summary that begins at or before a time and ends after it.
fn cut_at(runs: &[Summary], t: i64) -> Option<&Summary> {
    let run = runs.get(runs.partition_point(|r| r.last_t <= t))?;
    (run.first_t <= t).then_some(run)
}

/// What a series rose by from the first to the last sample of a summary, as the function sees it.
fn change_of(run: &Summary, kind: RateKind) -> f64 {
    if kind.counter {
        run.increase()
    } else {
        run.last - run.first
    }
}

fn float_rate(window: Samples<'_>, runs: &[Summary], s: &StepInfo<'_>, kind: RateKind) -> Option<f64> {
    let floats: Vec<&Summary> = runs.iter().filter(|r| r.count > 0).collect();
    let (left, right) = (cut_at(runs, s.start), cut_at(runs, s.end));
    let (left, right) = (
        left.filter(|r| r.count > 0),
        right.filter(|r| r.count > 0 && r.last_t > s.end),
    );
    let (Some((&first_t, &last_t)), Some((&first, &last))) = (
        window.t.first().zip(window.t.last()),
        window.v.first().zip(window.v.last()),
    ) else {
        // All of it lies inside one summary.
        let run = left.or(right)?;
        let from = s.start.max(run.first_t);
        let part = part_before(run, s.end) - part_before(run, from);
        let sampled = Sampled {
            first: from,
            last: s.end,
            gaps: f64::from(run.count) * part,
        };
        return Some(change_of(run, kind) * part * factor_of(sampled, None, s.range(), kind)?);
    };
    let mut change = last - first;
    let mut count = 0.0;
    let mut at = floats.iter().peekable();
    let mut before: Option<f64> = None;
    for (&t, &v) in window.t.iter().zip(window.v) {
        while at.next_if(|r| r.last_t < t).is_some() {}
        let run = at.peek().filter(|r| r.first_t <= t);
        match run {
            Some(r) if r.last_t == t && r.first_t > s.start => {
                count += f64::from(r.count);
                if kind.counter && r.first_t < t {
                    change += r.resets;
                }
            }
            Some(_) => {}
            None => count += 1.0,
        }
        let begins = run.is_none_or(|r| r.first_t == t);
        if kind.counter
            && begins
            && let Some(before) = before
            && v < before
        {
            change += before;
        }
        before = Some(v);
    }
    let mut sampled = Sampled {
        first: first_t,
        last: last_t,
        gaps: 0.0,
    };
    if let Some(run) = left {
        let part = 1.0 - part_before(run, s.start);
        change += change_of(run, kind) * part;
        count += f64::from(run.count) * part;
        sampled.first = s.start;
    }
    if let Some(run) = right {
        let part = part_before(run, s.end);
        change += change_of(run, kind) * part;
        count += f64::from(run.count) * part;
        sampled.last = s.end;
    }
    sampled.gaps = count - 1.0;
    let zero_point = kind.counter && left.is_none() && change > 0.0 && first >= 0.0;
    let zero_point = zero_point.then(|| first / change);
    Some(change * factor_of(sampled, zero_point, s.range(), kind)?)
}

/// The kept histograms are as they were sent and have both sides of every reset, so that their differences are right. Where
/// a summary is cut, the histogram at the edge is interpolated.
fn histogram_rate(
    all: Samples<'_>,
    window: Samples<'_>,
    runs: &[Summary],
    s: &mut StepInfo<'_>,
    kind: RateKind,
) -> Point {
    let cut = |t: i64| cut_at(runs, t).filter(|r| r.histograms > 0 && r.last_t > t);
    let (left, right) = (cut(s.start).is_some(), cut(s.end).is_some());
    if !left && !right {
        return rate_histogram::extrapolated(window, s, kind);
    }
    let lo = all.ht.partition_point(|&t| t <= s.start);
    let hi = all.ht.partition_point(|&t| t <= s.end);
    let lo = if left { lo.saturating_sub(1) } else { lo };
    let hi = if right {
        hi.saturating_add(1).min(all.ht.len())
    } else {
        hi
    };
    let wider = all.slice(0, 0, lo, hi.max(lo));
    let edges = std::mem::replace(&mut s.edges, RangeEdges::Smoothed);
    let point = rate_histogram::between_edges(wider, s, kind);
    s.edges = edges;
    point
}

/// The summary that has samples before and after a time, or at it and after.
pub(super) fn covering(runs: &[Summary], t: i64) -> Option<&Summary> {
    cut_at(runs, t).filter(|r| !r.is_stale())
}
