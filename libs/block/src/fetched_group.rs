//! Row groups on their way from bytes to rows.

use std::ops::Range;

use arrow_array::RecordBatch;
use parquet::DecodeResult;
use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use parquet::arrow::push_decoder::{ParquetPushDecoder, ParquetPushDecoderBuilder};
use parquet::errors::ParquetError;

use crate::Result;
use crate::part::{GroupRead, PartFile};

/// Rows of a row group whose bytes have been fetched.
pub(crate) struct FetchedGroup {
    decoder: ParquetPushDecoder,
    /// What the decoder said last, unless it has been done.
    next: Option<DecodeResult<RecordBatch>>,
}

impl PartFile {
    /// Fetches what decoding the chosen rows of one row group begins with, in batches of at most `batch_rows`: all there is to
    /// fetch, unless it is very much.
    pub(crate) async fn fetch_group(
        &self,
        footer: &ArrowReaderMetadata,
        read: GroupRead,
        batch_rows: usize,
    ) -> Result<FetchedGroup> {
        let group = read.group;
        let fetched = self.fetch_groups(footer, vec![read], batch_rows).await?;
        let fetched = fetched.into_iter().next();
        fetched.ok_or_else(|| self.corrupt(format!("it lacks row group {group}")))
    }

    /// The same of several row groups, in their order: what is not cached of their indexes is fetched together, and so
    /// is what decoding them begins with.
    pub(crate) async fn fetch_groups(
        &self,
        footer: &ArrowReaderMetadata,
        reads: Vec<GroupRead>,
        batch_rows: usize,
    ) -> Result<Vec<FetchedGroup>> {
        let groups: Vec<u32> = reads.iter().map(|read| read.group).collect();
        let indexes = self.group_indexes(footer, &groups).await?;
        self.fetch_indexed(reads.into_iter().zip(indexes).collect(), batch_rows)
            .await
    }

    /// The same of row groups each of which comes alone (it is number 0), with its page index where rows are chosen.
    pub(crate) async fn fetch_indexed(
        &self,
        reads: Vec<(GroupRead, ArrowReaderMetadata)>,
        batch_rows: usize,
    ) -> Result<Vec<FetchedGroup>> {
        let mut fetched = Vec::with_capacity(reads.len());
        let mut needed: Vec<Range<u64>> = Vec::new();
        for (read, index) in reads {
            let rows = usize::try_from(index.metadata().row_group(0).num_rows()).unwrap_or(0);
            let mut decoder = self.guarded(|| build_decoder(index, read, rows.min(batch_rows)))?;
            // The first step only tells what to read.
            let next = self.guarded(|| decoder.try_decode())?;
            if let DecodeResult::NeedsData(ranges) = &next {
                needed.extend(ranges.iter().cloned());
            }
            fetched.push(FetchedGroup {
                decoder,
                next: Some(next),
            });
        }
        let mut bytes = self.fetch(&needed).await?.into_iter();
        for FetchedGroup { decoder, next } in &mut fetched {
            match next.take() {
                Some(DecodeResult::NeedsData(ranges)) => {
                    let of_group = bytes.by_ref().take(ranges.len()).collect();
                    self.guarded(|| decoder.push_ranges(ranges, of_group))?;
                }
                known => *next = known,
            }
        }
        Ok(fetched)
    }

    /// Fetches what decoding rows of several row groups begins with, each of which comes alone with its page index, for this read to
    /// hold until it does.
    pub(crate) async fn fetch_groups_ahead(
        &self,
        reads: Vec<(GroupRead, ArrowReaderMetadata)>,
    ) -> Result<()> {
        let mut needed: Vec<Range<u64>> = Vec::new();
        for (read, index) in reads {
            let mut decoder = self.guarded(|| build_decoder(index, read, 1))?;
            if let DecodeResult::NeedsData(ranges) = self.guarded(|| decoder.try_decode())? {
                needed.extend(ranges);
            }
        }
        self.fetch_ahead(&needed).await
    }

    /// Folds the chosen rows of one row group, in batches of at most `batch_rows`, into `state`. All of them are decoded
    /// in one go on the decoding threads.
    pub(crate) async fn fold_group<S: Send + 'static>(
        &self,
        footer: &ArrowReaderMetadata,
        read: GroupRead,
        batch_rows: usize,
        state: S,
        step: fn(&Self, &mut S, RecordBatch) -> Result<()>,
    ) -> Result<S> {
        let fetched = self.fetch_group(footer, read, batch_rows).await?;
        self.fold_fetched(fetched, state, step).await
    }

    /// The same, of what was fetched.
    pub(crate) async fn fold_fetched<S: Send + 'static>(
        &self,
        fetched: FetchedGroup,
        mut state: S,
        step: fn(&Self, &mut S, RecordBatch) -> Result<()>,
    ) -> Result<S> {
        let FetchedGroup {
            mut decoder,
            mut next,
        } = fetched;
        loop {
            match next {
                Some(DecodeResult::NeedsData(ranges)) => {
                    let bytes = self.fetch(&ranges).await?;
                    self.guarded(|| decoder.push_ranges(ranges, bytes))?;
                }
                Some(DecodeResult::Data(batch)) => step(self, &mut state, batch)?,
                Some(DecodeResult::Finished) => return Ok(state),
                None => {}
            }
            let part = self.clone();
            let decoding = self.compute(move || {
                let next = part.decode_on(&mut decoder, &mut state, step);
                (decoder, state, next)
            });
            let after;
            (decoder, state, after) = decoding.await?;
            next = Some(after?);
        }
    }

    /// Decodes until more bytes are needed or all is done.
    fn decode_on<S>(
        &self,
        decoder: &mut ParquetPushDecoder,
        state: &mut S,
        step: fn(&Self, &mut S, RecordBatch) -> Result<()>,
    ) -> Result<DecodeResult<RecordBatch>> {
        loop {
            match decoder.try_decode().map_err(|e| self.corrupt(e))? {
                DecodeResult::Data(batch) => step(self, state, batch)?,
                other => return Ok(other),
            }
        }
    }
}

fn build_decoder(
    index: ArrowReaderMetadata,
    read: GroupRead,
    batch_rows: usize,
) -> Result<ParquetPushDecoder, ParquetError> {
    let mut builder = ParquetPushDecoderBuilder::new_with_metadata(index)
        .with_projection(read.columns)
        .with_batch_size(batch_rows.max(1));
    if let Some(selection) = read.selection {
        builder = builder.with_row_selection(selection);
    }
    builder.build()
}
