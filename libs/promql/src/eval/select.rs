//! Instant selectors: at each step the newest sample within the lookback.

use std::sync::Arc;

use koios_model::{Histogram, Labels, ResetHint, TimeRange, is_stale};

use super::cursor::{BLOCK, Blocks, Found};
use super::matrix::WindowSpec;
use super::rate::interpolate;
use super::rate_histogram::interpolate_histograms;
use super::row::{Point, Row, histogram_weight};
use super::window::{SampleBuffer, Samples, Scratch, Slider};
use super::{Evaluator, Shared, downsampled};
use crate::annotations::Annotations;
use crate::ast::{RangeEdges, Span};
use crate::context::{QueryContext, check};
use crate::error::QueryError;
use crate::histogram::StatisticsOnly;
use crate::memory::of_histogram;
use crate::plan::SelectNode;
use crate::queryable::{Columns, Series, SeriesData};
use crate::steps::Steps;
use crate::work::Work;

/// What of a selected sample becomes the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// Its value.
    Value,
    /// Its time in seconds.
    Time,
    /// Its time in milliseconds; histograms are an error.
    InfoTime,
    /// Its start timestamp in seconds.
    Start,
}

/// The times a selector's samples are wanted for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SelectTimes {
    pub(crate) steps: Steps,
    pub(crate) at: Option<i64>,
    pub(crate) offset_ms: i64,
    pub(crate) lookback_ms: i64,
    /// Only counts and sums of histograms matter.
    pub(crate) statistics_only: bool,
}

/// Decodes a series' samples of a closed range into `columns`, replacing what was there.
///
/// Takes the memory first, and asks in between whether to go on.
pub(crate) fn decode(
    ctx: &dyn QueryContext,
    series: &Series,
    range: TimeRange,
    statistics_only: bool,
    buffer: &mut SampleBuffer,
) -> Result<(), QueryError> {
    buffer.columns.clear();
    let bytes = series.data.decoded_bytes(range);
    buffer.cover(bytes)?;
    // Columns that grow as they are filled would take up to twice what they hold.
    buffer.columns.reserve(series.data.samples_max(range));
    if bytes <= DECODED_BYTES_PER_CHECK {
        series.data.decode(range, &mut buffer.columns)?;
    } else {
        decode_in_pieces(ctx, series, range, &mut buffer.columns)?;
    }
    buffer.cover_decoded()?;
    if statistics_only && buffer.columns.histograms().is_some() {
        let mut statistics = StatisticsOnly::default();
        buffer.columns.map_histograms(|h| statistics.reduce(h));
    }
    Ok(())
}

/// Ranges that decode to no more than this are decoded at once: some milliseconds of work.
const DECODED_BYTES_PER_CHECK: usize = 16 << 20;

/// Decodes a range piece by piece, each as long as it may be.
fn decode_in_pieces(
    ctx: &dyn QueryContext,
    series: &Series,
    range: TimeRange,
    columns: &mut Columns,
) -> Result<(), QueryError> {
    let mut min = range.min;
    loop {
        check(ctx)?;
        let piece = piece_of(series.data.as_ref(), TimeRange::new(min, range.max));
        series.data.decode(piece, columns)?;
        if piece.max >= range.max {
            return Ok(());
        }
        min = piece.max.saturating_add(1);
    }
}

/// The beginning of a range that is decoded at once: halved as long as that helps. Storage tells no more than a bound, so
/// that a range may seem to hold as much as one half of it; then both are decoded together.
fn piece_of(data: &dyn SeriesData, range: TimeRange) -> TimeRange {
    let mut piece = range;
    let mut bytes = data.decoded_bytes(piece);
    while bytes > DECODED_BYTES_PER_CHECK && piece.max > piece.min {
        let middle = piece.min.saturating_add(piece.max.saturating_sub(piece.min) / 2);
        let half = TimeRange::new(piece.min, middle);
        let other = TimeRange::new(middle.saturating_add(1), piece.max);
        let bytes_of_half = data.decoded_bytes(half);
        if bytes_of_half >= bytes && data.decoded_bytes(other) >= bytes {
            break;
        }
        (piece, bytes) = (half, bytes_of_half);
    }
    piece
}

impl SelectTimes {
    /// The time step `i` looks at.
    fn reference(&self, i: usize) -> i64 {
        self.at
            .unwrap_or_else(|| self.steps.at(i))
            .saturating_sub(self.offset_ms)
    }

    /// The samples that matter to each step: of a window, the newest.
    fn window(&self) -> WindowSpec {
        WindowSpec {
            range_ms: self.lookback_ms,
            offset_ms: self.offset_ms,
            at: self.at,
            edges: RangeEdges::Plain,
            lookback_ms: self.lookback_ms,
            statistics_only: self.statistics_only,
            span: Span::default(),
        }
    }

    /// All sample times that can matter.
    fn range(&self) -> TimeRange {
        let last = self.reference(self.steps.count().saturating_sub(1));
        TimeRange::new(
            self.reference(0)
                .saturating_sub(self.lookback_ms)
                .saturating_add(1),
            last,
        )
    }
}

impl Evaluator<'_> {
    pub(super) fn select_times(&self, node: &SelectNode, steps: Steps) -> SelectTimes {
        SelectTimes {
            steps,
            at: node.at,
            offset_ms: node.offset_ms,
            lookback_ms: self.options.lookback_delta_ms,
            statistics_only: node.statistics_only,
        }
    }
}

/// One series at all steps, `take` of each newest sample.
pub(super) fn instant_row(
    shared: &Shared<'_>,
    series: &Series,
    times: SelectTimes,
    take: Take,
    scratch: &mut Scratch,
) -> Result<Row, QueryError> {
    let Scratch { buffer, found, .. } = scratch;
    decode(shared.ctx, series, times.range(), times.statistics_only, buffer)?;
    let mut row = newest_within_lookback(
        &mut shared.work(),
        &series.labels,
        &buffer.columns,
        times,
        take,
        found,
    )?;
    if !buffer.columns.summaries().is_empty() {
        newest_inside_summaries(&mut shared.work(), &buffer.columns, times, take, &mut row)?;
    }
    Ok(row)
}

/// Where samples are summarised a series has no gap: at a time inside a summary it has its first sample, however long ago
/// that was.
fn newest_inside_summaries(
    work: &mut Work<'_>,
    columns: &Columns,
    times: SelectTimes,
    take: Take,
    row: &mut Row,
) -> Result<(), QueryError> {
    for i in 0..times.steps.count() {
        work.spend(1)?;
        let t = times.reference(i);
        let Some(run) = downsampled::covering(columns.summaries(), t) else {
            continue;
        };
        let newest = columns.timestamps().partition_point(|&at| at <= t).checked_sub(1);
        let newest = newest.filter(|&at| columns.timestamps().get(at) >= Some(&run.first_t));
        let point = match (newest, take) {
            (Some(at), _) => {
                let t = columns.timestamps().get(at).copied().unwrap_or_default();
                taken(&row.labels, columns, at, t, take)?
            }
            // Its first sample lies before what was decoded.
            (None, Take::Value) if run.count > 0 => Point::Float(run.first),
            (None, Take::Time) => Point::Float(run.first_t as f64 / 1000.0),
            (None, Take::InfoTime) if run.count > 0 => Point::Float(run.first_t as f64),
            (None, _) => continue,
        };
        if let Point::Histogram(h) = &point {
            work.hold(of_histogram(h))?;
        }
        row.set(i, point);
    }
    Ok(())
}

/// One series at all steps, interpolated between the samples around each.
pub(super) fn smoothed_row(
    shared: &Shared<'_>,
    series: &Series,
    node: &SelectNode,
    times: SelectTimes,
    buffer: &mut SampleBuffer,
    annotations: &mut Annotations,
) -> Result<Row, QueryError> {
    let lookback = times.lookback_ms;
    let base = times.range();
    let range = TimeRange::new(base.min, base.max.saturating_add(lookback));
    decode(shared.ctx, series, range, times.statistics_only, buffer)?;
    let mut work = shared.work();
    let mut row = Row::blank(series.labels.clone(), false, times.steps.count(), &mut work)?;
    let mut slider = Slider::new(buffer.samples()?);
    for i in 0..times.steps.count() {
        let t = times.reference(i);
        let near = slider.advance(t.saturating_sub(lookback), t.saturating_add(lookback));
        let point = smooth(near, t, &series.labels, node, annotations);
        if let Point::Histogram(h) = &point {
            work.spend(histogram_weight(h))?;
            work.hold(of_histogram(h))?;
        }
        work.spend(1)?;
        row.set(i, point);
    }
    Ok(row)
}

fn smooth(
    near: Samples<'_>,
    t: i64,
    labels: &Labels,
    node: &SelectNode,
    annotations: &mut Annotations,
) -> Point {
    if near.is_mixed() {
        annotations.mixed_floats_histograms(labels.metric_name(), node.span);
        return Point::Absent;
    }
    if near.ht.is_empty() {
        return smooth_float(near, t);
    }
    let next = near.ht.partition_point(|&ht| ht < t);
    if near.ht.get(next) == Some(&t) {
        return near
            .h
            .get(next)
            .map_or(Point::Absent, |h| Point::Histogram(Arc::clone(h)));
    }
    let Some(i) = next.checked_sub(1) else {
        return Point::Absent;
    };
    let (Some(before), Some(&bt)) = (near.h.get(i), near.ht.get(i)) else {
        return Point::Absent;
    };
    let (Some(after), Some(&at)) = (near.h.get(next), near.ht.get(next)) else {
        let mut carried = Histogram::clone(before);
        carried.reset_hint = ResetHint::Unknown;
        return Point::Histogram(Arc::new(carried));
    };
    let both_gauges = [before, after].iter().all(|h| h.reset_hint == ResetHint::Gauge);
    let pair = [(bt, before.as_ref()), (at, after.as_ref())];
    match interpolate_histograms(pair, t, !both_gauges, node.span, annotations) {
        Some(h) => Point::Histogram(Arc::new(h)),
        None => {
            annotations.mixed_exponential_custom(labels.metric_name(), node.span);
            Point::Absent
        }
    }
}

fn smooth_float(near: Samples<'_>, t: i64) -> Point {
    let next = near.t.partition_point(|&st| st < t);
    if near.t.get(next) == Some(&t) {
        return near.v.get(next).map_or(Point::Absent, |&v| Point::Float(v));
    }
    let Some(i) = next.checked_sub(1) else {
        return Point::Absent;
    };
    match (
        near.t.get(i).zip(near.v.get(i)),
        near.t.get(next).zip(near.v.get(next)),
    ) {
        (Some((&bt, &bv)), Some((&at, &av))) => Point::Float(interpolate((bt, bv), (at, av), t, false)),
        (Some((_, &v)), None) => Point::Float(v),
        (None, _) => Point::Absent,
    }
}

/// One pass over a series' samples that fills one row.
fn newest_within_lookback(
    work: &mut Work<'_>,
    labels: &Labels,
    columns: &Columns,
    times: SelectTimes,
    take: Take,
    found: &mut Found,
) -> Result<Row, QueryError> {
    let mut row = Row::blank(labels.clone(), false, times.steps.count(), work)?;
    let (timestamps, values) = (columns.timestamps(), columns.values());
    let spec = times.window();
    let mut blocks = Blocks::new(timestamps, &spec, times.steps, found)?;
    if take == Take::Value && columns.histograms().is_none() {
        for out in row.values.chunks_mut(BLOCK) {
            work.spend(out.len())?;
            blocks.advance(out.len());
            for (out, (lo, hi)) in out.iter_mut().zip(blocks.iter()) {
                // The stale marker is what marks a step without a value, too.
                if let Some(&value) = values.get(hi.wrapping_sub(1)).filter(|_| lo < hi) {
                    *out = value;
                }
            }
        }
        return Ok(row);
    }
    let mut step = 0;
    while step < times.steps.count() {
        let len = (times.steps.count() - step).min(BLOCK);
        work.spend(len)?;
        blocks.advance(len);
        for (lo, hi) in blocks.iter().take(len) {
            if let Some(newest) = hi.checked_sub(1).filter(|_| lo < hi)
                && let Some(&t) = timestamps.get(newest)
            {
                row.set(step, taken(labels, columns, newest, t, take)?);
            }
            step += 1;
        }
    }
    Ok(row)
}

fn taken(labels: &Labels, columns: &Columns, i: usize, t: i64, take: Take) -> Result<Point, QueryError> {
    let histogram = columns
        .histograms()
        .and_then(|h| h.get(i))
        .and_then(Option::as_ref);
    let value = columns.values().get(i).copied().unwrap_or_default();
    let stale = histogram.map_or_else(|| is_stale(value), |h| is_stale(h.sum));
    if stale {
        return Ok(Point::Absent);
    }
    Ok(match (take, histogram) {
        (Take::Value, Some(h)) => Point::Histogram(Arc::clone(h)),
        (Take::Value, None) => Point::Float(value),
        (Take::Time, _) => Point::Float(t as f64 / 1000.0),
        (Take::InfoTime, None) => Point::Float(t as f64),
        (Take::InfoTime, Some(_)) => {
            return Err(QueryError::execution(format!(
                "this should be an info metric, with float samples: {labels}"
            )));
        }
        (Take::Start, _) => {
            let start = columns
                .start_timestamps()
                .and_then(|s| s.get(i))
                .copied()
                .unwrap_or(0);
            Point::Float(start as f64 / 1000.0)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Data that says of any range that it may decode to this.
    #[derive(Debug)]
    struct Bound(fn(TimeRange) -> usize);

    impl SeriesData for Bound {
        fn decode(&self, _: TimeRange, _: &mut Columns) -> Result<(), QueryError> {
            Ok(())
        }

        fn encoded_bytes(&self) -> usize {
            0
        }

        fn decoded_bytes(&self, range: TimeRange) -> usize {
            (self.0)(range)
        }
    }

    #[test]
    fn ranges_are_halved_as_long_as_that_makes_less_to_decode() {
        let all = TimeRange::new(0, 1 << 40);
        let of = |bound| piece_of(&Bound(bound), all).max;
        assert_eq!(of(|_| DECODED_BYTES_PER_CHECK), 1 << 40);
        assert_eq!(of(|_| 2 * DECODED_BYTES_PER_CHECK), 1 << 40);
        assert_eq!(of(|r| (r.max - r.min) as usize), DECODED_BYTES_PER_CHECK as i64);
        // What is less than an hour is told as an hour.
        let hour = |r: TimeRange| ((r.max - r.min) as usize * 100).max(360_000_000);
        assert!((1_800_000..=3_600_000).contains(&of(hour)));
        // All there is lies at the beginning.
        let early = |r: TimeRange| (r.max.min(1 << 30) - r.min.min(1 << 30)) as usize;
        assert_eq!(of(early), DECODED_BYTES_PER_CHECK as i64);
    }
}
