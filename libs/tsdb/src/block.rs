//! A block that was opened, and the way through its series.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use koios_model::merge::{settle_kinds, sort_and_dedup, sort_and_dedup_histograms, sort_and_dedup_starts};
use koios_model::{Histogram, Labels, Sample, TimeRange};

use crate::chunk::{Decoded, Samples, decode};
use crate::external::AddLabel;
use crate::files::TsdbFiles;
use crate::index::{INDEX_FILE, Index, IndexedSeries, SeriesScan};
use crate::meta::{META_FILE, TsdbMeta};
use crate::segments::{Segments, place_of};
use crate::tombstones::Tombstones;
use crate::{Error, Result};

/// Most floats of one series in the time that is asked for: one every 10 ms for a day.
const SERIES_FLOATS_MAX: usize = 8 << 20;
/// Most chunks of series that wait because of an added label until others are past: 48 MiB of places.
const WAITING_CHUNKS_MAX: usize = 2 << 20;

/// A block of a TSDB. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TsdbBlock {
    files: Arc<dyn TsdbFiles>,
    meta: Arc<TsdbMeta>,
    index: Arc<Index>,
    tombstones: Arc<Tombstones>,
}

/// One series, as much of it as was asked for.
#[derive(Clone, Debug)]
pub struct TsdbSeries {
    /// Its labels, external ones included.
    pub labels: Labels,
    /// Floats, strictly ascending in time.
    pub samples: Vec<Sample>,
    /// Native histograms, strictly ascending in time; none where a float is.
    pub histograms: Vec<(i64, Arc<Histogram>)>,
    /// Start timestamps, each with the time of its sample, strictly ascending.
    pub starts: Vec<(i64, i64)>,
}

/// What a reader went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadStats {
    /// Series of the index, with samples in time or without.
    pub series: u64,
    /// Samples of the chunks that begin in the time that was asked for.
    pub samples: u64,
    /// Samples in time that tombstones delete.
    pub deleted: u64,
    /// Samples in time that lost to another one of the same time.
    pub doubled: u64,
}

impl TsdbBlock {
    /// Opens a block: reads its metadata, symbols and tombstones.
    ///
    /// # Errors
    /// [`Error`] of any kind, naming the file.
    pub async fn open(files: Arc<dyn TsdbFiles>) -> Result<Self> {
        let Some(size) = files.size(META_FILE).await? else {
            return Err(Error::Missing {
                file: META_FILE.to_owned(),
            });
        };
        if size > crate::META_BYTES_MAX {
            return Err(Error::too_large(
                META_FILE,
                0,
                "a length",
                size,
                crate::META_BYTES_MAX,
            ));
        }
        let meta = TsdbMeta::from_json(&files.read(META_FILE, 0..size).await?)?;
        let index = Index::open(&*files).await?;
        let tombstones = Tombstones::read(&*files).await?;
        Ok(Self {
            files,
            meta: Arc::new(meta),
            index: Arc::new(index),
            tombstones: Arc::new(tombstones),
        })
    }

    /// What it says of itself.
    pub fn meta(&self) -> &TsdbMeta {
        &self.meta
    }

    /// Bytes of the index and of the chunks that it names: what an import goes through.
    ///
    /// # Errors
    /// [`Error::Read`].
    pub async fn bytes(&self) -> Result<u64> {
        let mut bytes = self.index.size();
        for segment in 0.. {
            let (file, _) = place_of(segment << 32);
            match self.files.size(&file).await? {
                Some(size) => bytes = bytes.saturating_add(size),
                None => break,
            }
        }
        Ok(bytes)
    }

    /// Goes through the index once, checking all of it: gives the time of every chunk to `chunk`, and how many series there are.
    ///
    /// # Errors
    /// Those of reading, and what `chunk` returns.
    pub async fn scan_chunks(&self, mut chunk: impl FnMut(TimeRange) -> Result<()> + Send) -> Result<u64> {
        let mut scan = SeriesScan::new(Arc::clone(&self.files), Arc::clone(&self.index));
        let mut series = 0;
        while let Some(next) = scan.next().await? {
            series += 1;
            next.chunks.iter().try_for_each(|c| chunk(c.range))?;
        }
        if self.meta.series.is_some_and(|said| said != series) {
            let reason = format!("it has {series} series, meta.json says {:?}", self.meta.series);
            return Err(Error::corrupt(INDEX_FILE, 0, reason));
        }
        Ok(series)
    }

    /// The series with samples in a closed range of time, in label order, with labels added.
    pub fn series(&self, range: TimeRange, external: &BTreeMap<String, String>) -> SeriesReader {
        let add = |(name, value): (&String, &String)| AddLabel::new(name.clone(), value.clone());
        let adding: Vec<_> = external.iter().map(add).collect();
        SeriesReader {
            scan: Some(SeriesScan::new(Arc::clone(&self.files), Arc::clone(&self.index))),
            segments: Segments::new(Arc::clone(&self.files)),
            tombstones: Arc::clone(&self.tombstones),
            range,
            ready: VecDeque::new(),
            adding,
            stats: ReadStats::default(),
        }
    }
}

/// Goes through the series of a block.
#[derive(Debug)]
pub struct SeriesReader {
    /// Until the index is at its end.
    scan: Option<SeriesScan>,
    segments: Segments,
    tombstones: Arc<Tombstones>,
    range: TimeRange,
    adding: Vec<AddLabel<IndexedSeries>>,
    /// Series whose turn it is.
    ready: VecDeque<(Labels, IndexedSeries)>,
    stats: ReadStats,
}

impl SeriesReader {
    /// The next series that has samples in the range; `None` at the end.
    ///
    /// # Errors
    /// [`Error`] of any kind, naming the file and the place in it. The reader is over then.
    pub async fn next(&mut self) -> Result<Option<TsdbSeries>> {
        loop {
            let Some((labels, indexed)) = self.next_indexed().await? else {
                return Ok(None);
            };
            let series = self.read(labels, &indexed).await?;
            if !series.samples.is_empty() || !series.histograms.is_empty() {
                return Ok(Some(series));
            }
        }
    }

    /// What was gone through so far.
    pub fn stats(&self) -> ReadStats {
        self.stats
    }

    /// How much of the index was gone through, between 0 and 1.
    pub fn progress(&self) -> f64 {
        match self.scan.as_ref().map(SeriesScan::progress) {
            Some((at, of)) if of > 0 => at as f64 / of as f64,
            Some(_) => 0.0,
            None => 1.0,
        }
    }

    async fn next_indexed(&mut self) -> Result<Option<(Labels, IndexedSeries)>> {
        loop {
            if let Some(next) = self.ready.pop_front() {
                return Ok(Some(next));
            }
            let Some(scan) = &mut self.scan else {
                return Ok(None);
            };
            match scan.next().await? {
                Some(mut series) => {
                    self.stats.series += 1;
                    series.chunks.retain(|c| c.range.overlaps(&self.range));
                    series.chunks.shrink_to_fit();
                    // Others are not held back for long, nor for nothing.
                    if !series.chunks.is_empty() {
                        self.add_labels(series)?;
                    }
                }
                None => {
                    self.scan = None;
                    self.add_last()?;
                }
            }
        }
    }

    fn add_labels(&mut self, series: IndexedSeries) -> Result<()> {
        let at = series.at;
        let mut given = VecDeque::from([(series.labels.clone(), series)]);
        for add in &mut self.adding {
            given = pass_through(add, given)?;
        }
        self.ready.extend(given);
        let waiting = self.adding.iter().flat_map(AddLabel::waiting);
        let waiting = waiting.map(|series| series.chunks.len()).sum::<usize>();
        if waiting > WAITING_CHUNKS_MAX {
            let what = "series that begin with one another, with a number of chunks";
            let (found, limit) = (waiting as u64, WAITING_CHUNKS_MAX as u64);
            return Err(Error::too_large(INDEX_FILE, at, what, found, limit));
        }
        Ok(())
    }

    fn add_last(&mut self) -> Result<()> {
        let mut given = VecDeque::new();
        for add in &mut self.adding {
            given = pass_through(add, given)?;
            add.finish(&mut given);
        }
        self.ready.extend(given);
        Ok(())
    }

    async fn read(&mut self, labels: Labels, indexed: &IndexedSeries) -> Result<TsdbSeries> {
        let last = indexed.chunks.last().map_or(0, |c| c.reference);
        let mut read = Samples::default();
        for place in &indexed.chunks {
            let raw = self.segments.chunk(place.reference, last).await?;
            let (file, offset) = place_of(place.reference);
            let decoded =
                decode(raw.encoding, &raw.data, &mut read).map_err(|e| Error::corrupt(&file, offset, e))?;
            let announced = |d: &Decoded| d.first == place.range.min && d.last == place.range.max;
            let Some(decoded) = decoded.filter(announced) else {
                let reason = format!(
                    "its samples of {labels} are not when the index says, {:?}",
                    place.range
                );
                return Err(Error::corrupt(&file, offset, reason));
            };
            if self.range.contains(place.range.min) {
                self.stats.samples += decoded.count as u64;
            }
            if read.floats.len() > SERIES_FLOATS_MAX {
                let floats = read.floats.len() as u64;
                return Err(Error::too_large(
                    &file,
                    offset,
                    "a series with samples",
                    floats,
                    SERIES_FLOATS_MAX as u64,
                ));
            }
        }
        Ok(self.settle(labels, indexed.reference, read))
    }

    /// Leaves out what is out of time or deleted, and chooses where chunks overlap.
    fn settle(&mut self, labels: Labels, reference: u64, read: Samples) -> TsdbSeries {
        let Samples {
            floats: mut samples,
            mut histograms,
            mut starts,
            ..
        } = read;
        let range = self.range;
        samples.retain(|s| range.contains(s.t));
        histograms.retain(|(t, _)| range.contains(*t));
        starts.retain(|(t, _)| range.contains(*t));
        let in_time = samples.len() + histograms.len();
        for deleted in self.tombstones.of(reference) {
            samples.retain(|s| !deleted.contains(s.t));
            histograms.retain(|(t, _)| !deleted.contains(*t));
            starts.retain(|(t, _)| !deleted.contains(*t));
        }
        let left = samples.len() + histograms.len();
        if !samples.is_sorted_by(|a, b| a.t < b.t) {
            sort_and_dedup(&mut samples);
        }
        sort_and_dedup_histograms(&mut histograms);
        settle_kinds(&mut samples, &mut histograms);
        sort_and_dedup_starts(&mut starts);
        self.stats.deleted += (in_time - left) as u64;
        self.stats.doubled += (left - samples.len() - histograms.len()) as u64;
        TsdbSeries {
            labels,
            samples,
            histograms,
            starts,
        }
    }
}

fn pass_through(
    add: &mut AddLabel<IndexedSeries>,
    series: VecDeque<(Labels, IndexedSeries)>,
) -> Result<VecDeque<(Labels, IndexedSeries)>> {
    let mut out = VecDeque::new();
    for (labels, of) in series {
        add.push(labels, of, &mut out).map_err(|labels| {
            let reason = format!(
                "series {labels} has a label of its own that the block's external labels in meta.json set, too: leave \
                 that external label out"
            );
            Error::unsupported(INDEX_FILE, reason)
        })?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use koios_testkit::tsdb::TsdbContent;

    use super::*;
    use crate::MemoryFiles;
    use crate::index::ChunkPlace;

    #[tokio::test]
    async fn i12_series_that_wait_for_their_turn_do_not_keep_any_number_of_chunks() {
        let content = TsdbContent::default().with_floats(Labels::from_pairs([("a", "b")]), &[(1, 1.0)], 1);
        let files = Arc::new(MemoryFiles::new(content.files()));
        let block = TsdbBlock::open(files).await.unwrap();
        let external = BTreeMap::from([("z".to_owned(), "x".to_owned())]);
        let mut reader = block.series(TimeRange::ALL, &external);
        let chunk = ChunkPlace {
            reference: 8,
            range: TimeRange::new(0, 1),
        };
        // Each begins with the one before.
        let mut series = |labels: &[(&str, &str)], at| {
            reader.add_labels(IndexedSeries {
                at,
                reference: at,
                labels: Labels::from_pairs(labels.iter().copied()),
                chunks: vec![chunk; WAITING_CHUNKS_MAX / 2],
            })
        };
        series(&[("a", "1")], 16).unwrap();
        series(&[("a", "1"), ("b", "1")], 32).unwrap();
        let error = series(&[("a", "1"), ("b", "1"), ("c", "1")], 48).unwrap_err();
        assert_eq!(
            error.to_string(),
            "index has series that begin with one another, with a number of chunks of 3145728 at byte 48, the limit is 2097152"
        );
    }
}
