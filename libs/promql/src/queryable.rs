//! The seam between the engine and storage: what the engine asks and how storage answers.
//!
//! A selector is fetched once, for the whole time range a query needs. Storage answers with a stream of series in
//! ascending label order, each label set once, whose samples stay as they are kept until the engine decodes them into
//! reused [`Columns`]. The stream's last item says whether the data is complete; a stream without it is an error.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use koios_model::{Histogram, Labels, Matchers, Summary, TimeRange};

use crate::error::QueryError;
use crate::memory::of_column;

/// What storage may use to read less. Every hint may be ignored, except `shard`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SelectHints {
    /// First sample time the selector itself needs, milliseconds.
    pub start_ms: i64,
    /// Last sample time the selector itself needs, milliseconds.
    pub end_ms: i64,
    /// The query's resolution, milliseconds; 0 for an instant query.
    pub step_ms: i64,
    /// The selector's range, milliseconds; 0 for an instant selector.
    pub range_ms: i64,
    /// The function or aggregation right around the selector.
    pub function: Option<&'static str>,
    /// Whether native histograms are added up over time: of downsampled ones that needs the sums.
    pub histogram_sums: bool,
    /// The labels the aggregation around the selector groups by (or without).
    pub grouping: Vec<String>,
    /// Whether `grouping` is `by` (else `without`).
    pub by: bool,
    /// Answer only with series whose hash modulo the second number equals the first. Must be obeyed.
    pub shard: Option<(u32, u32)>,
    /// Stop after this many series; 0 for no limit. Storage may return more.
    pub limit: usize,
    /// The labels the query needs: with `projection_include` only these, else all but these. Empty: all.
    pub projection: Vec<String>,
    /// How to read `projection`.
    pub projection_include: bool,
}

/// What to fetch: the series that match, with their samples of a closed range of times.
#[derive(Clone, Debug, PartialEq)]
pub struct SelectRequest {
    /// All must hold.
    pub matchers: Matchers,
    /// Closed, milliseconds.
    pub range: TimeRange,
    /// How to read less.
    pub hints: SelectHints,
}

/// The storage a query runs on.
#[async_trait]
pub trait Queryable: Send + Sync {
    /// Starts a read.
    ///
    /// # Errors
    /// Any [`QueryError`]; the stream can fail later, too.
    async fn select(&self, req: SelectRequest) -> Result<SeriesStream, QueryError>;
}

/// Batches of series in ascending label order (across batches, too), each label set once, then exactly one
/// [`StreamItem::End`]. A stream that stops without it broke off, and the query fails.
pub type SeriesStream = BoxStream<'static, Result<StreamItem, QueryError>>;

/// One step of a [`SeriesStream`].
#[derive(Debug)]
pub enum StreamItem {
    /// The next series.
    Series(Vec<Series>),
    /// Something the client should be told; becomes a warning of the answer.
    Warning(String),
    /// Nothing follows.
    End(Completeness),
}

/// Whether an answer holds everything there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Completeness {
    /// Nothing is missing.
    #[default]
    Complete,
    /// Data may be missing: never cached, never fed to a rule, always told to the client.
    Partial {
        /// What could not be read, for the client to see.
        missing: Vec<String>,
    },
}

impl Completeness {
    /// Takes in what another part of the answer lacks.
    pub fn merge(&mut self, other: Self) {
        match (&mut *self, other) {
            (_, Self::Complete) => {}
            (Self::Complete, partial) => *self = partial,
            (Self::Partial { missing }, Self::Partial { missing: more }) => {
                missing.extend(more);
                missing.sort();
                missing.dedup();
            }
        }
    }

    /// What a client is told when something may be missing.
    pub fn warning(&self) -> Option<String> {
        match self {
            Self::Complete => None,
            Self::Partial { missing } => {
                Some(format!("result is incomplete, missing: {}", missing.join(", ")))
            }
        }
    }

    /// Whether nothing is missing.
    pub fn is_complete(&self) -> bool {
        matches!(self, Self::Complete)
    }
}

/// One series of an answer.
#[derive(Debug)]
pub struct Series {
    /// Its labels, `__name__` included.
    pub labels: Labels,
    /// Its samples, as storage keeps them.
    pub data: Box<dyn SeriesData>,
}

/// The samples of one series, as storage keeps them: encoded, or decoded by someone before.
pub trait SeriesData: Send + Sync + fmt::Debug {
    /// Appends the samples of a closed range to `out`, in strictly ascending time. Stale markers are samples. Of downsampled
    /// ones see [`Columns::push_summary`].
    ///
    /// # Errors
    /// [`QueryError::Internal`] when what is kept is corrupt.
    fn decode(&self, range: TimeRange, out: &mut Columns) -> Result<(), QueryError>;

    /// How many bytes this holds in memory as long as it lives, encoded or not.
    fn encoded_bytes(&self) -> usize;

    /// At most how many bytes [`Self::decode`] appends for a closed range, and needs for it: 16 for a float, all of a
    /// histogram unless it is shared. A query is refused before it decodes more than it may hold, and decodes a long range in pieces.
    fn decoded_bytes(&self, range: TimeRange) -> usize;

    /// At most how many samples [`Self::decode`] appends for a closed range.
    fn samples_max(&self, range: TimeRange) -> usize {
        self.decoded_bytes(range) / FLOAT_BYTES
    }
}

/// What a decoded float occupies: its time and its value.
const FLOAT_BYTES: usize = size_of::<i64>() + size_of::<f64>();

/// Decoded samples, column by column. Cleared and reused from series to series.
///
/// `values` always has one entry per timestamp (0 where the sample is a histogram); the other columns are either empty
/// (no such sample so far) or as long as `timestamps`.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    timestamps: Vec<i64>,
    values: Vec<f64>,
    start_timestamps: Vec<i64>,
    histograms: Vec<Option<Arc<Histogram>>>,
    summaries: Vec<Summary>,
}

impl Columns {
    /// Forgets the samples and keeps the memory.
    pub fn clear(&mut self) {
        self.timestamps.clear();
        self.values.clear();
        self.start_timestamps.clear();
        self.histograms.clear();
        self.summaries.clear();
    }

    /// Makes room for so many samples, and no more.
    pub(crate) fn reserve(&mut self, samples: usize) {
        self.timestamps.reserve_exact(samples);
        self.values.reserve_exact(samples);
    }

    /// How many samples there are.
    pub fn len(&self) -> usize {
        self.timestamps.len()
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.timestamps.is_empty()
    }

    /// Appends a float. The caller keeps times strictly ascending.
    pub fn push_float(&mut self, t: i64, v: f64) {
        self.timestamps.push(t);
        self.values.push(v);
        if !self.start_timestamps.is_empty() {
            self.start_timestamps.push(0);
        }
        if !self.histograms.is_empty() {
            self.histograms.push(None);
        }
    }

    /// Appends a histogram. The caller keeps times strictly ascending.
    pub fn push_histogram(&mut self, t: i64, h: Arc<Histogram>) {
        let before = self.timestamps.len();
        self.timestamps.push(t);
        self.values.push(0.0);
        if !self.start_timestamps.is_empty() {
            self.start_timestamps.push(0);
        }
        if self.histograms.is_empty() {
            self.histograms.resize(before, None);
        }
        self.histograms.push(Some(h));
    }

    /// Appends a summary of samples that are kept no more, ascending and not overlapping; one that was appended already is
    /// left out. Its first and last sample, where in range, are to be appended as samples, too; of native histograms both,
    /// in range or not, and what was kept between them. No other samples may lie inside.
    pub fn push_summary(&mut self, summary: Summary) {
        if self
            .summaries
            .last()
            .is_none_or(|last| last.last_t < summary.first_t)
        {
            self.summaries.push(summary);
        }
    }

    /// The summaries of what was downsampled.
    pub fn summaries(&self) -> &[Summary] {
        &self.summaries
    }

    /// Sets the start timestamp of the newest sample: when its counter began, milliseconds; 0 for unknown.
    pub fn set_last_start(&mut self, start_ms: i64) {
        if self.start_timestamps.is_empty() {
            if start_ms == 0 {
                return;
            }
            self.start_timestamps.resize(self.timestamps.len(), 0);
        }
        if let Some(last) = self.start_timestamps.last_mut() {
            *last = start_ms;
        }
    }

    /// Sets the start timestamps of samples from the place `from` on: each given with the time of its sample, ascending;
    /// those of other times are left out.
    pub fn set_starts(&mut self, from: usize, starts: &[(i64, i64)]) {
        if starts.is_empty() {
            return;
        }
        self.start_timestamps.resize(self.timestamps.len(), 0);
        let times = self.timestamps.iter().zip(&mut self.start_timestamps).skip(from);
        let mut starts = starts.iter().peekable();
        for (t, set) in times {
            while starts.next_if(|start| start.0 < *t).is_some() {}
            if let Some(start) = starts.next_if(|start| start.0 == *t) {
                *set = start.1;
            }
        }
    }

    /// Appends a run of floats at once; of unequal columns the longer one is cut.
    pub fn extend_floats(&mut self, timestamps: &[i64], values: &[f64]) {
        let n = timestamps.len().min(values.len());
        self.timestamps.extend_from_slice(&timestamps[..n]);
        self.values.extend_from_slice(&values[..n]);
        if !self.start_timestamps.is_empty() {
            self.start_timestamps.resize(self.timestamps.len(), 0);
        }
        if !self.histograms.is_empty() {
            self.histograms.resize(self.timestamps.len(), None);
        }
    }

    /// Lets `fill` append floats to the times and values; when it fails, nothing has been appended.
    ///
    /// # Errors
    /// That of `fill`.
    pub fn append_floats<E>(
        &mut self,
        fill: impl FnOnce(&mut Vec<i64>, &mut Vec<f64>) -> Result<(), E>,
    ) -> Result<(), E> {
        let had = self.timestamps.len();
        let filled = fill(&mut self.timestamps, &mut self.values);
        let n = match &filled {
            Ok(()) => self.timestamps.len().min(self.values.len()),
            Err(_) => had,
        };
        self.timestamps.truncate(n);
        self.values.truncate(n);
        if !self.start_timestamps.is_empty() {
            self.start_timestamps.resize(n, 0);
        }
        if !self.histograms.is_empty() {
            self.histograms.resize(n, None);
        }
        filled
    }

    /// The times, strictly ascending.
    pub fn timestamps(&self) -> &[i64] {
        &self.timestamps
    }

    /// The float values; 0 where the sample is a histogram.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The start timestamps, if any sample has one; 0 for unknown.
    pub fn start_timestamps(&self) -> Option<&[i64]> {
        (!self.start_timestamps.is_empty()).then_some(&self.start_timestamps)
    }

    /// The histograms, if there are any; `None` where the sample is a float.
    pub fn histograms(&self) -> Option<&[Option<Arc<Histogram>>]> {
        (!self.histograms.is_empty()).then_some(&self.histograms)
    }

    /// Replaces each histogram by what `f` makes of it.
    pub(crate) fn map_histograms(&mut self, mut f: impl FnMut(&Arc<Histogram>) -> Arc<Histogram>) {
        for h in self.histograms.iter_mut().flatten() {
            *h = f(h);
        }
    }

    /// The bytes the columns occupy. Of histograms, one that repeats counts once.
    pub fn bytes(&self) -> usize {
        let times = self.timestamps.capacity() + self.start_timestamps.capacity();
        let slots = times + self.values.capacity() + self.histograms.capacity();
        let summaries = self.summaries.capacity() * size_of::<Summary>();
        let sums = self.summaries.iter().filter_map(|s| s.histogram_sum.as_ref());
        slots * 8 + summaries + of_column(self.histograms.iter().flatten().chain(sums))
    }
}

/// A whole answer as a stream: what tests, caches and merges with everything in memory use.
pub fn stream_of(series: Vec<Series>, completeness: Completeness) -> SeriesStream {
    stream::iter([Ok(StreamItem::Series(series)), Ok(StreamItem::End(completeness))]).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn optional_columns_are_empty_or_as_long_as_the_times() {
        let mut c = Columns::default();
        c.push_float(1, 1.0);
        assert!(c.histograms().is_none() && c.start_timestamps().is_none());
        c.push_histogram(2, Arc::new(Histogram::default()));
        c.set_last_start(1);
        c.push_float(3, 2.0);
        c.extend_floats(&[4, 5], &[3.0, 4.0]);
        assert_eq!(c.histograms().map(<[_]>::len), Some(5));
        assert_eq!(c.start_timestamps(), Some(&[0, 1, 0, 0, 0][..]));
        c.set_starts(2, &[(1, 7), (3, 8), (5, 9), (6, 1)]);
        assert_eq!(c.start_timestamps(), Some(&[0, 1, 8, 0, 9][..]));
        let failed = c.append_floats(|t, _| {
            t.push(6);
            Err(())
        });
        assert!(failed.is_err() && c.len() == 5 && c.values().len() == 5);
        let filled = c.append_floats(|t, v| {
            t.push(6);
            v.push(5.0);
            Ok::<(), ()>(())
        });
        assert!(filled.is_ok() && c.histograms().map(<[_]>::len) == Some(6));
        c.clear();
        assert!(c.is_empty() && c.histograms().is_none());
    }

    #[test]
    fn i4_partial_stays_partial_when_merged() {
        let mut c = Completeness::Partial {
            missing: vec!["b".into()],
        };
        c.merge(Completeness::Complete);
        c.merge(Completeness::Partial {
            missing: vec!["a".into(), "b".into()],
        });
        assert_eq!(
            c,
            Completeness::Partial {
                missing: vec!["a".into(), "b".into()]
            }
        );
    }
}
