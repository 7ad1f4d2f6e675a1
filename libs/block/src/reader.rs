//! Opens a block and finds its series.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use koios_model::{Labels, Matchers, Metadata, TimeRange};
use koios_runtime::Cpu;

use crate::Result;
use crate::cache::BlockCache;
use crate::meta::{BlockMeta, SAMPLES_PART, SERIES_PART};
use crate::part::PartFile;
use crate::samples::{self, SeriesSamples};
use crate::series::{GroupRows, SeriesTable};
use crate::source::RangeRead;

/// Row groups that are fetched and decoded at the same time by one reader.
const GROUPS_AHEAD: usize = 4;

/// A series of a block: its labels and where its samples are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockSeries {
    /// The labels.
    pub labels: Labels,
    /// Its row in `series.parquet`, and its number in `samples.parquet`.
    pub id: u32,
    /// The row of its first sample.
    pub first_row: u64,
    /// How many samples it has.
    pub row_count: u32,
    /// Its first and last sample time.
    pub range: TimeRange,
    /// What is known of the metric, if anything.
    pub metadata: Option<Arc<Metadata>>,
}

/// An open block. Cheap to clone; nothing is read before it is asked for.
#[derive(Clone, Debug)]
pub struct BlockReader {
    meta: Arc<BlockMeta>,
    series: SeriesTable,
    samples: PartFile,
}

impl BlockReader {
    /// Opens a block whose `meta.json` was read and checked. Footers and indexes are fetched at first use, through the
    /// cache.
    ///
    /// # Errors
    /// [`crate::Error::Corrupt`] when the metadata lacks a part.
    pub fn open(source: Arc<dyn RangeRead>, meta: Arc<BlockMeta>, cache: Arc<BlockCache>) -> Result<Self> {
        let series = PartFile::new(
            Arc::clone(&source),
            Arc::clone(&cache),
            Arc::clone(&meta),
            SERIES_PART,
        )?;
        let samples = PartFile::new(source, cache, Arc::clone(&meta), SAMPLES_PART)?;
        Ok(Self {
            series: SeriesTable::new(series, meta.range),
            samples,
            meta,
        })
    }

    /// The same block, decoded on `cpu`'s threads instead of inline.
    #[must_use]
    pub fn with_cpu(mut self, cpu: Cpu) -> Self {
        self.series.set_cpu(cpu.clone());
        self.samples.set_cpu(cpu);
        self
    }

    /// What the block is.
    pub fn meta(&self) -> &Arc<BlockMeta> {
        &self.meta
    }

    pub(crate) fn samples_part(&self) -> &PartFile {
        &self.samples
    }

    /// The series that match and have samples around `range` (first to last sample overlaps it), in label order.
    ///
    /// # Errors
    /// [`crate::Error::Corrupt`] or [`crate::Error::Read`].
    pub async fn select(&self, matchers: &Matchers, range: TimeRange) -> Result<Vec<BlockSeries>> {
        self.stream_series(matchers.clone(), range).try_concat().await
    }

    /// As [`Self::select`], but in batches as they are read, never all at once in memory.
    pub fn stream_series(
        &self,
        matchers: Matchers,
        range: TimeRange,
    ) -> BoxStream<'static, Result<Vec<BlockSeries>>> {
        let table = self.series.clone();
        stream::once(async move {
            let footer = table.footer().await?;
            let groups = stream::iter(0..table.group_count(&footer)?);
            Ok(groups
                .map(move |group| {
                    let (table, footer, matchers) = (table.clone(), footer.clone(), matchers.clone());
                    async move { table.select_in_group(&footer, group, &matchers, range).await }
                })
                .buffered(GROUPS_AHEAD))
        })
        .try_flatten()
        .boxed()
    }

    /// As [`Self::stream_series`], but in batches as small as their reader wants them and without reading ahead: for
    /// those who read many blocks side by side.
    pub fn series_cursor(&self, matchers: Matchers, range: TimeRange) -> SeriesCursor {
        SeriesCursor {
            table: self.series.clone(),
            matchers,
            range,
            group: 0,
            rows: None,
        }
    }

    /// The samples of `series` inside `range`, one entry per series in the order given, empty where there are none.
    /// All is in memory at once: [`Self::stream_samples`] is for more than a few series.
    ///
    /// # Errors
    /// [`crate::Error::Corrupt`] or [`crate::Error::Read`].
    pub async fn read_samples(&self, series: &[BlockSeries], range: TimeRange) -> Result<Vec<SeriesSamples>> {
        self.stream_samples(series.to_vec(), range).try_collect().await
    }

    /// The samples of `series`, which must be in the block's order, one item per series in the same order. Only pages
    /// with rows of the series inside the range are fetched; a few row groups are in memory at a time.
    pub fn stream_samples(
        &self,
        series: Vec<BlockSeries>,
        range: TimeRange,
    ) -> BoxStream<'static, Result<SeriesSamples>> {
        samples::stream(self.samples.clone(), series, range, GROUPS_AHEAD)
    }

    /// The names of the labels of matching series with samples around `range`.
    ///
    /// # Errors
    /// [`crate::Error::Corrupt`] or [`crate::Error::Read`].
    pub async fn label_names(&self, matchers: &Matchers, range: TimeRange) -> Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        let mut batches = self.stream_series(matchers.clone(), range);
        while let Some(batch) = batches.try_next().await? {
            for (name, _) in batch.iter().flat_map(|s| s.labels.iter()) {
                if !names.contains(name) {
                    names.insert(name.to_owned());
                }
            }
        }
        Ok(names)
    }

    /// The values of one label among matching series with samples around `range`.
    ///
    /// # Errors
    /// [`crate::Error::Corrupt`] or [`crate::Error::Read`].
    pub async fn label_values(
        &self,
        name: &str,
        matchers: &Matchers,
        range: TimeRange,
    ) -> Result<BTreeSet<String>> {
        let mut values = BTreeSet::new();
        let footer = self.series.footer().await?;
        for group in 0..self.series.group_count(&footer)? {
            self.series
                .label_values_in_group(&footer, group, name, matchers, range, &mut values)
                .await?;
        }
        Ok(values)
    }
}

/// A place among the matching series of a block. Between two batches it holds a bit for each row of one row group.
#[derive(Debug)]
pub struct SeriesCursor {
    table: SeriesTable,
    matchers: Matchers,
    range: TimeRange,
    /// The row group to begin after `rows`.
    group: u32,
    /// What is left of the row group before it.
    rows: Option<GroupRows>,
}

impl SeriesCursor {
    /// The next series, in label order: at least one and at most `series_max` (at least 1); `None` at the end.
    ///
    /// # Errors
    /// [`crate::Error::Corrupt`] or [`crate::Error::Read`].
    pub async fn next(&mut self, series_max: usize) -> Result<Option<Vec<BlockSeries>>> {
        // Not held between batches: footers of many blocks are large, and cached.
        let footer = self.table.footer().await?;
        let groups = self.table.group_count(&footer)?;
        loop {
            if let Some(rows) = &mut self.rows {
                let found = self
                    .table
                    .select_some(&footer, rows, series_max, &self.matchers)
                    .await?;
                if rows.done() {
                    self.rows = None;
                }
                if !found.is_empty() {
                    return Ok(Some(found));
                }
            } else if self.group < groups {
                self.rows = self
                    .table
                    .group_rows(&footer, self.group, &self.matchers, self.range)
                    .await?;
                self.group += 1;
            } else {
                return Ok(None);
            }
        }
    }
}
