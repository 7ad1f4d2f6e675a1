//! Why a series or a sample was not taken while others of its request were.

use std::collections::BTreeMap;
use std::time::Duration;

use koios_server::config::format_duration;
use koios_wire::influx::{LineFault, Precision};
use koios_wire::otlp::PointFault;
use koios_wire::remote_write::{HistogramFault, SeriesFault};

use crate::influx;

/// What is wrong with a series or a sample. A retry cannot help.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Rejection {
    /// A wrong symbol reference.
    #[error(transparent)]
    Symbols(SeriesFault),
    /// Too many labels.
    #[error(
        "series has too many labels (actual: {actual}, limit: {limit}): drop some or raise limits.max-labels-per-series"
    )]
    TooManyLabels {
        /// Sent.
        actual: usize,
        /// The limit.
        limit: usize,
    },
    /// A label name that is no text.
    #[error("label name or label value is not valid UTF-8")]
    NameNotUtf8,
    /// A label value that is no text.
    #[error("label value is not valid UTF-8 (label {name:?})")]
    ValueNotUtf8 {
        /// The label.
        name: String,
    },
    /// A label without a name.
    #[error("empty label name")]
    EmptyName,
    /// A long label name.
    #[error(
        "label name too long (actual: {actual}, limit: {limit}): shorten it or raise limits.max-label-name-bytes"
    )]
    NameTooLong {
        /// Bytes sent.
        actual: usize,
        /// The limit.
        limit: usize,
    },
    /// A long label value.
    #[error(
        "label value too long (actual: {actual}, limit: {limit}, label {name:?}): shorten it or raise limits.max-label-value-bytes"
    )]
    ValueTooLong {
        /// The label.
        name: String,
        /// Bytes sent.
        actual: usize,
        /// The limit.
        limit: usize,
    },
    /// A name that Koios keeps for itself.
    #[error("label name {name:?} is reserved")]
    Reserved {
        /// The label.
        name: String,
    },
    /// A name that occurs twice.
    #[error("duplicate label name: {name:?}")]
    DuplicateName {
        /// The label.
        name: String,
    },
    /// Many long labels.
    #[error(
        "label set too large (actual: {actual}, limit: {limit}): drop labels or raise limits.max-label-set-bytes"
    )]
    LabelSetTooLarge {
        /// Bytes sent.
        actual: usize,
        /// The limit.
        limit: usize,
    },
    /// No metric name.
    #[error("missing metric name")]
    MissingMetricName,
    /// A new series beyond the tenant's limit.
    #[error(
        "series limit {limit} exceeded (now {now}): drop labels with many values or raise limits.max-series"
    )]
    SeriesLimit {
        /// The limit.
        limit: u64,
        /// Active series.
        now: u64,
    },
    /// A new series of a metric that has too many.
    #[error(
        "series limit {limit} of metric {metric:?} exceeded (now {now}): drop labels with many values or raise \
         limits.max-series-per-metric"
    )]
    MetricSeriesLimit {
        /// The metric.
        metric: String,
        /// The limit.
        limit: u64,
        /// Its active series.
        now: u64,
    },
    /// A timestamp in other units.
    #[error("timestamp too old or too far in the future: {}", implausible(*.timestamp, *.precision))]
    Implausible {
        /// In milliseconds.
        timestamp: i64,
        /// The unit that it was sent in, where senders choose it.
        precision: Option<Precision>,
    },
    /// Behind the window.
    #[error(
        "too old sample (window: {}): timestamp {timestamp} was {} before it arrived: send samples sooner or raise \
         limits.out-of-order-time-window",
        format_duration(*.window), format_duration(*.age)
    )]
    TooOld {
        /// As sent.
        timestamp: i64,
        /// The window.
        window: Duration,
        /// How old it was.
        age: Duration,
    },
    /// Ahead of time.
    #[error(
        "timestamp too far in the future (limit: {}): timestamp {timestamp} was {} ahead: set the sender's clock or raise \
         limits.too-far-in-future",
        format_duration(*.limit), format_duration(*.ahead)
    )]
    TooFarAhead {
        /// As sent.
        timestamp: i64,
        /// The limit.
        limit: Duration,
        /// How far.
        ahead: Duration,
    },
    /// A wrong native histogram.
    #[error(transparent)]
    Histogram(HistogramFault),
    /// A data point of OTLP that makes no series.
    #[error(transparent)]
    Point(PointFault),
    /// A line that is no line protocol.
    #[error(transparent)]
    Line(LineFault),
}

/// What is wrong with a time, in terms of what was sent.
fn implausible(timestamp: i64, precision: Option<Precision>) -> String {
    match precision {
        None => format!("{timestamp} is no plausible time in milliseconds (did you send seconds?)"),
        Some(precision) => influx::implausible(timestamp, precision),
    }
}

impl Rejection {
    /// Its word in metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Symbols(SeriesFault::Empty) => "no_samples",
            Self::Symbols(_) => "symbols",
            Self::TooManyLabels { .. } => "too_many_labels",
            Self::NameNotUtf8 | Self::ValueNotUtf8 { .. } => "not_utf8",
            Self::EmptyName => "empty_label_name",
            Self::NameTooLong { .. } => "label_name_too_long",
            Self::ValueTooLong { .. } => "label_value_too_long",
            Self::Reserved { .. } => "reserved_label",
            Self::DuplicateName { .. } => "duplicate_label",
            Self::LabelSetTooLarge { .. } => "label_set_too_large",
            Self::MissingMetricName => "missing_metric_name",
            Self::SeriesLimit { .. } => "series_limit",
            Self::MetricSeriesLimit { .. } => "metric_series_limit",
            Self::Implausible { .. } | Self::TooOld { .. } => "too_old",
            Self::TooFarAhead { .. } => "too_far_in_future",
            Self::Histogram(_) => "invalid_histogram",
            Self::Point(_) => "otlp",
            Self::Line(_) => "line_protocol",
        }
    }
}

/// What was rejected of one request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RejectionReport {
    /// The first rejection with the series it concerns; lines without series come before all others.
    pub first: Option<(Rejection, String)>,
    /// Lines that could not be read.
    pub lines: u64,
    /// Series with at least one rejection.
    pub series: u64,
    /// Samples, histograms included.
    pub samples: u64,
    /// Samples by the metric word; those of a series without samples count as one.
    pub by_reason: BTreeMap<&'static str, u64>,
}

impl RejectionReport {
    /// Counts a rejection of `samples` samples; `describe` is called for the first one only.
    pub(crate) fn add(&mut self, rejection: Rejection, samples: u64, describe: impl FnOnce() -> String) {
        *self.by_reason.entry(rejection.reason()).or_default() += samples.max(1);
        self.samples += samples;
        if self.first.is_none() {
            self.first = Some((rejection, describe()));
        }
    }

    /// Counts lines that are no line protocol, of which `first` came first.
    pub(crate) fn add_lines(&mut self, lines: u64, first: LineFault) {
        let rejection = Rejection::Line(first);
        *self.by_reason.entry(rejection.reason()).or_default() += lines;
        self.lines += lines;
        self.first = Some((rejection, String::new()));
    }

    /// Of a format whose senders choose the unit of times: says it of the one that is told.
    pub(crate) fn sent_in(&mut self, unit: Precision) {
        if let Some((Rejection::Implausible { precision, .. }, _)) = &mut self.first {
            *precision = Some(unit);
        }
    }

    /// Adds another report.
    pub(crate) fn merge(&mut self, other: Self) {
        self.series += other.series;
        self.samples += other.samples;
        self.lines += other.lines;
        for (reason, samples) in other.by_reason {
            *self.by_reason.entry(reason).or_default() += samples;
        }
        self.first = self.first.take().or(other.first);
    }

    /// The sentence for the sender; `None` when nothing was rejected.
    pub fn message(&self, written: u64) -> Option<String> {
        let (rejection, series) = self.first.as_ref()?;
        let (samples, of) = (self.samples, self.series);
        Some(match self.lines {
            0 => format!(
                "{rejection}: series {series} (rejected: {samples} samples of {of} series, written: {written} samples)"
            ),
            lines => format!(
                "{rejection} (rejected: {lines} lines, and {samples} samples of {of} series in others, written: {written} \
                 samples)"
            ),
        })
    }
}
