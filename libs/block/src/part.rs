//! One Parquet part: ranges are read in checked cells, footers and page indexes are parsed once.

mod cells;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use koios_model::Labels;
use koios_runtime::Cpu;
use parquet::DecodeResult;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, RowSelection};
use parquet::errors::ParquetError;
use parquet::file::metadata::{
    PageIndexPolicy, ParquetMetaData, ParquetMetaDataBuilder, ParquetMetaDataPushDecoder,
};

use crate::cache::{BlockCache, IndexKey};
use crate::held_cells::HeldCells;
use crate::meta::{BlockMeta, PartMeta, SAMPLES_PART};
use crate::source::RangeRead;
use crate::{BlockId, Error, Result};

/// A Parquet part of a block.
#[derive(Clone, Debug)]
pub(crate) struct PartFile {
    source: Arc<dyn RangeRead>,
    cache: Arc<BlockCache>,
    meta: Arc<BlockMeta>,
    index: u8,
    cpu: Cpu,
    /// What the read that this is for holds, if it holds any.
    held: Option<HeldCells>,
}

/// Rows to read from one row group.
#[derive(Debug)]
pub(crate) struct GroupRead {
    pub(crate) group: u32,
    pub(crate) columns: ProjectionMask,
    /// Relative to the row group; `None` for all rows.
    pub(crate) selection: Option<RowSelection>,
}

impl PartFile {
    pub(crate) fn new(
        source: Arc<dyn RangeRead>,
        cache: Arc<BlockCache>,
        meta: Arc<BlockMeta>,
        name: &str,
    ) -> Result<Self> {
        let index = meta
            .parts
            .iter()
            .position(|p| p.name == name)
            .and_then(|i| u8::try_from(i).ok())
            .ok_or_else(|| Error::corrupt(meta.block, name, "meta.json does not list the part"))?;
        Ok(Self {
            source,
            cache,
            meta,
            index,
            cpu: Cpu::inline(),
            held: None,
        })
    }

    /// Decodes on these threads from now on.
    pub(crate) fn set_cpu(&mut self, cpu: Cpu) {
        self.cpu = cpu;
    }

    /// Reads with what one read holds from now on.
    pub(crate) fn set_held(&mut self, held: HeldCells) {
        self.held = Some(held);
    }

    /// What the read that this is for holds of it.
    pub(crate) fn held(&self) -> Option<&HeldCells> {
        self.held.as_ref()
    }

    /// How many bytes so many of its rows take, as all do on average.
    pub(crate) fn bytes_of_rows(&self, rows: u64) -> u64 {
        let PartMeta { bytes, rows: all, .. } = self.part();
        let share = u128::from(rows) * u128::from(*bytes) / u128::from((*all).max(1));
        u64::try_from(share).unwrap_or(u64::MAX)
    }

    /// Runs heavy work off the async threads; like [`Self::guarded`], a panic means corruption.
    pub(crate) async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let done = self.cpu.run(work).await;
        done.map_err(|panic| self.corrupt(format!("the Parquet decoder gave up on it: {panic}")))
    }

    /// The block it belongs to.
    pub(crate) fn block(&self) -> BlockId {
        self.meta.block
    }

    /// The cache it reads through.
    pub(crate) fn cache(&self) -> &BlockCache {
        &self.cache
    }

    pub(crate) fn part(&self) -> &PartMeta {
        // `new` took the index from this very list.
        &self.meta.parts[usize::from(self.index)]
    }

    pub(crate) fn corrupt(&self, reason: impl std::fmt::Display) -> Error {
        Error::corrupt(self.meta.block, &self.part().name, reason)
    }

    pub(crate) fn corrupt_samples(&self, series: &Labels, source: koios_chunk::Error) -> Error {
        Error::Samples {
            block: self.meta.block,
            part: self.part().name.clone(),
            series: series.clone(),
            source,
        }
    }

    /// Runs the Parquet decoder, which on bytes nobody wrote may panic as well as fail: both mean corruption.
    pub(crate) fn guarded<T>(&self, decode: impl FnOnce() -> Result<T, ParquetError>) -> Result<T> {
        match catch_unwind(AssertUnwindSafe(decode)) {
            Ok(Ok(v)) => Ok(v),
            Ok(Err(e)) => Err(self.corrupt(e)),
            Err(_) => Err(self.corrupt("the Parquet decoder gave up on it")),
        }
    }

    /// The footer: schema and row groups, without page indexes. `adapt` may change the Arrow types columns are read as.
    pub(crate) async fn footer(&self, adapt: fn(&SchemaRef) -> SchemaRef) -> Result<ArrowReaderMetadata> {
        let key = self.index_key(None);
        if let Some(hit) = self.cache.index(&key) {
            return Ok(hit);
        }
        let part = self.part();
        let mut decoder = self
            .guarded(|| ParquetMetaDataPushDecoder::try_new(part.bytes))?
            .with_page_index_policy(PageIndexPolicy::Skip);
        // The footer, and before it the page indexes, at once: none of them has to be waited for alone.
        let tail = part.tail();
        match self.fetch(std::slice::from_ref(&tail)).await {
            Ok(bytes) => self.guarded(|| decoder.push_ranges(vec![tail; 1], bytes))?,
            // Damage need not be where the footer is: what that needs is asked for by itself.
            Err(e) if e.is_corrupt() => {}
            Err(e) => return Err(e),
        }
        let metadata = self.parse_metadata(&mut decoder).await?;
        let footer = self.guarded(|| {
            let plain = ArrowReaderMetadata::try_new(Arc::new(metadata), reader_options())?;
            let schema = adapt(plain.schema());
            ArrowReaderMetadata::try_new(Arc::clone(plain.metadata()), reader_options().with_schema(schema))
        })?;
        self.cache.put_index(key, footer.clone());
        Ok(footer)
    }

    fn index_key(&self, group: Option<u32>) -> IndexKey {
        IndexKey {
            block: self.meta.block,
            part: self.index,
            group,
        }
    }

    async fn parse_metadata(&self, decoder: &mut ParquetMetaDataPushDecoder) -> Result<ParquetMetaData> {
        loop {
            match self.guarded(|| decoder.try_decode())? {
                DecodeResult::NeedsData(ranges) => {
                    let bytes = self.fetch(&ranges).await?;
                    self.guarded(|| decoder.push_ranges(ranges, bytes))?;
                }
                DecodeResult::Data(metadata) => return Ok(metadata),
                DecodeResult::Finished => return Err(self.corrupt("its footer ends early")),
            }
        }
    }

    /// One row group alone (it is number 0 of the result) with its page index.
    pub(crate) async fn group_index(
        &self,
        footer: &ArrowReaderMetadata,
        group: u32,
    ) -> Result<ArrowReaderMetadata> {
        let indexes = self.group_indexes(footer, &[group]).await?;
        let index = indexes.into_iter().next();
        index.ok_or_else(|| self.corrupt(format!("it lacks row group {group}")))
    }

    /// The same of several row groups, in their order: what is not cached is fetched together.
    pub(crate) async fn group_indexes(
        &self,
        footer: &ArrowReaderMetadata,
        groups: &[u32],
    ) -> Result<Vec<ArrowReaderMetadata>> {
        let mut indexes: Vec<Option<ArrowReaderMetadata>> = Vec::with_capacity(groups.len());
        let mut missing = Vec::new();
        let mut needed: Vec<Range<u64>> = Vec::new();
        for (place, &group) in groups.iter().enumerate() {
            let hit = self.cache.index(&self.index_key(Some(group)));
            if hit.is_none() {
                let mut decoder = self.index_decoder(footer, group)?;
                let first = self.guarded(|| decoder.try_decode())?;
                if let DecodeResult::NeedsData(ranges) = &first {
                    needed.extend(ranges.iter().cloned());
                }
                missing.push((place, group, decoder, first));
            }
            indexes.push(hit);
        }
        let mut bytes = self.fetch(&needed).await?.into_iter();
        for (place, group, mut decoder, first) in missing {
            let metadata = match first {
                DecodeResult::Data(metadata) => metadata,
                DecodeResult::NeedsData(ranges) => {
                    let of_group = bytes.by_ref().take(ranges.len()).collect();
                    self.guarded(|| decoder.push_ranges(ranges, of_group))?;
                    self.parse_metadata(&mut decoder).await?
                }
                DecodeResult::Finished => return Err(self.corrupt("its footer ends early")),
            };
            let schema = Arc::clone(footer.schema());
            let index = self.guarded(|| {
                ArrowReaderMetadata::try_new(Arc::new(metadata), reader_options().with_schema(schema))
            })?;
            self.cache.put_index(self.index_key(Some(group)), index.clone());
            if let Some(slot) = indexes.get_mut(place) {
                *slot = Some(index);
            }
        }
        Ok(indexes.into_iter().flatten().collect())
    }

    fn index_decoder(&self, footer: &ArrowReaderMetadata, group: u32) -> Result<ParquetMetaDataPushDecoder> {
        let alone = self.group_alone(footer, group)?;
        let decoder =
            self.guarded(|| ParquetMetaDataPushDecoder::try_new_with_metadata(self.part().bytes, alone))?;
        // Where the ticks of a range are, times tell (see `row_plan`), and so nobody looks at what is said of pages of ticks.
        let has_ticks = self.meta.has_times_part() && self.part().name == SAMPLES_PART;
        let ends = match has_ticks {
            true => PageIndexPolicy::Skip,
            false => PageIndexPolicy::Optional,
        };
        let decoder = decoder.with_page_index_policy(PageIndexPolicy::Optional);
        Ok(decoder.with_column_index_policy(ends))
    }

    /// One row group alone, without its page index.
    fn group_alone(&self, footer: &ArrowReaderMetadata, group: u32) -> Result<ParquetMetaData> {
        let file = footer.metadata();
        let row_group = file
            .row_groups()
            .get(group as usize)
            .ok_or_else(|| self.corrupt(format!("it lacks row group {group}")))?;
        let alone =
            ParquetMetaDataBuilder::new(file.file_metadata().clone()).add_row_group(row_group.clone());
        Ok(alone.build())
    }

    /// Some columns of one row group, all of their rows. It takes no page index.
    pub(crate) async fn read_columns(
        &self,
        footer: &ArrowReaderMetadata,
        group: u32,
        columns: ProjectionMask,
    ) -> Result<Vec<RecordBatch>> {
        let alone = Arc::new(self.group_alone(footer, group)?);
        let options = reader_options().with_schema(Arc::clone(footer.schema()));
        let alone = self.guarded(|| ArrowReaderMetadata::try_new(alone, options))?;
        let read = GroupRead {
            group,
            columns,
            selection: None,
        };
        let fetched = self.fetch_indexed(vec![(read, alone)], usize::MAX).await?;
        let mut batches = Vec::new();
        for fetched in fetched {
            let add = |_: &Self, batches: &mut Vec<RecordBatch>, batch| {
                batches.push(batch);
                Ok(())
            };
            batches = self.fold_fetched(fetched, batches, add).await?;
        }
        Ok(batches)
    }
}

fn reader_options() -> ArrowReaderOptions {
    ArrowReaderOptions::new().with_skip_arrow_metadata(true)
}
