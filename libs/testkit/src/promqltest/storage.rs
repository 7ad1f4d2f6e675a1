//! Where a script's samples are kept: behind the engine's own trait, in memory unless a test brings a real storage.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use koios_model::{Histogram, Labels, METRIC_NAME, ResetHint, TimeRange};
use koios_promql::{
    Columns, Completeness, QueryError, Queryable, SampleValue, SelectRequest, Series, SeriesData,
    SeriesStream, stream_of,
};

use super::histogram::Classic;

/// One sample.
#[derive(Clone, Debug)]
pub struct Point {
    /// Its time, milliseconds.
    pub t_ms: i64,
    /// When its counter began, milliseconds; 0 for unknown.
    pub start_ms: i64,
    /// Its value.
    pub value: SampleValue,
}

/// What a script loads its samples into, and reads them from.
#[async_trait]
pub trait Storage: Send + Sync {
    /// Forgets all samples.
    ///
    /// # Errors
    /// What failed, for the report.
    async fn clear(&mut self) -> Result<(), String>;

    /// Adds samples to those that are there.
    ///
    /// # Errors
    /// What failed, for the report.
    async fn add(&mut self, series: &BTreeMap<Labels, Vec<Point>>) -> Result<(), String>;

    /// What queries read.
    fn queryable(&self) -> &dyn Queryable;
}

/// Series in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryStorage {
    series: BTreeMap<Labels, BTreeMap<i64, Point>>,
}

impl MemoryStorage {
    /// Adds samples; a sample at a time that is taken replaces the old one.
    pub fn insert(&mut self, labels: &Labels, points: &[Point]) {
        let series = self.series.entry(labels.clone()).or_default();
        series.extend(points.iter().map(|point| (point.t_ms, point.clone())));
    }

    fn answer(&self, request: &SelectRequest) -> Vec<Series> {
        let matching = self
            .series
            .iter()
            .filter(|(labels, _)| request.matchers.matches(labels.as_ref()));
        let series = matching.filter_map(|(labels, points)| {
            let mut points = with_reset_hints(points);
            points.retain(|point| request.range.contains(point.t_ms));
            let data = Box::new(Points(points));
            (!data.0.is_empty()).then(|| Series {
                labels: labels.clone(),
                data,
            })
        });
        series.collect()
    }
}

/// For every classic histogram among the series, the same as a histogram with custom buckets.
///
/// # Errors
/// What is wrong with a classic histogram.
pub(super) fn custom_of(
    loaded: &BTreeMap<Labels, Vec<Point>>,
) -> Result<BTreeMap<Labels, Vec<Point>>, String> {
    let mut classics: BTreeMap<Labels, BTreeMap<i64, Classic>> = BTreeMap::new();
    for (labels, points) in loaded {
        let Some((part, base)) = Part::of(labels) else {
            continue;
        };
        let times = classics.entry(base).or_default();
        for point in points {
            let SampleValue::Float(value) = point.value else {
                continue;
            };
            let classic = times.entry(point.t_ms).or_default();
            match part {
                Part::Bucket(bound) => classic.buckets.push((bound, value)),
                Part::Count => classic.count = Some(value),
                Part::Sum => classic.sum = value,
            }
        }
    }
    let point = |(t_ms, classic): (i64, Classic)| {
        let value = SampleValue::Histogram(Arc::new(classic.into_custom()?));
        Ok(Point {
            t_ms,
            start_ms: 0,
            value,
        })
    };
    let series = |(labels, times): (Labels, BTreeMap<i64, Classic>)| {
        let points: Result<Vec<Point>, String> = times.into_iter().map(point).collect();
        Ok((labels, points?))
    };
    classics.into_iter().map(series).collect()
}

/// Which part of a classic histogram a series holds.
#[derive(Clone, Copy)]
enum Part {
    Bucket(f64),
    Count,
    Sum,
}

impl Part {
    /// The part, and the labels of the histogram it is part of.
    fn of(labels: &Labels) -> Option<(Self, Labels)> {
        let name = labels.metric_name();
        let (part, base) = if let Some(base) = name.strip_suffix("_bucket") {
            let bound: f64 = labels.get("le")?.parse().ok()?;
            (Self::Bucket(bound), base)
        } else if let Some(base) = name.strip_suffix("_count") {
            (Self::Count, base)
        } else {
            (Self::Sum, name.strip_suffix("_sum")?)
        };
        if matches!(part, Self::Bucket(bound) if bound.is_nan()) {
            return None;
        }
        let mut builder = labels.to_builder();
        builder.set(METRIC_NAME, base).remove("le");
        Some((part, builder.build()))
    }
}

/// The samples with the hints a store gives: within a run without resets "not reset", at the start of a run "unknown", unless a
/// reset is told.
fn with_reset_hints(series: &BTreeMap<i64, Point>) -> Vec<Point> {
    let mut previous: Option<&Histogram> = None;
    let mut points: Vec<Point> = Vec::with_capacity(series.len());
    for point in series.values() {
        let mut point_out = point.clone();
        match &point.value {
            SampleValue::Histogram(h) if h.reset_hint != ResetHint::Gauge => {
                let goes_on = previous.is_some_and(|previous| h.continues(previous));
                let hint = match h.reset_hint {
                    ResetHint::Reset => ResetHint::Reset,
                    _ if goes_on => ResetHint::NotReset,
                    _ => ResetHint::Unknown,
                };
                let hinted = Histogram {
                    reset_hint: hint,
                    ..Histogram::clone(h)
                };
                point_out.value = SampleValue::Histogram(Arc::new(hinted));
                previous = Some(h);
            }
            _ => previous = None,
        }
        points.push(point_out);
    }
    points
}

#[async_trait]
impl Storage for MemoryStorage {
    async fn clear(&mut self) -> Result<(), String> {
        self.series.clear();
        Ok(())
    }

    async fn add(&mut self, series: &BTreeMap<Labels, Vec<Point>>) -> Result<(), String> {
        for (labels, points) in series {
            self.insert(labels, points);
        }
        Ok(())
    }

    fn queryable(&self) -> &dyn Queryable {
        self
    }
}

#[async_trait]
impl Queryable for MemoryStorage {
    async fn select(&self, request: SelectRequest) -> Result<SeriesStream, QueryError> {
        Ok(stream_of(self.answer(&request), Completeness::Complete))
    }
}

/// The samples of one series.
#[derive(Debug)]
struct Points(Vec<Point>);

impl SeriesData for Points {
    fn decode(&self, range: TimeRange, out: &mut Columns) -> Result<(), QueryError> {
        for point in self.0.iter().filter(|point| range.contains(point.t_ms)) {
            match &point.value {
                SampleValue::Float(v) => out.push_float(point.t_ms, *v),
                SampleValue::Histogram(h) => out.push_histogram(point.t_ms, Arc::clone(h)),
            }
            out.set_last_start(point.start_ms);
        }
        Ok(())
    }

    fn encoded_bytes(&self) -> usize {
        self.0.len() * size_of::<Point>()
    }

    fn decoded_bytes(&self, _: TimeRange) -> usize {
        self.0.len() * 32
    }
}
