//! Writes one part of a block: a Parquet file in memory, each of whose errors names the block and the part.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::SchemaRef;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{
    DeltaBinaryPackedEncoderOptions, EnabledStatistics, WriterProperties, WriterPropertiesBuilder,
};

use crate::meta::FORMAT_VERSION;
use crate::writer::Layout;
use crate::{BlockId, Error, Result};

/// A part on its way into a file.
pub(crate) struct PartWriter {
    block: BlockId,
    part: &'static str,
    schema: SchemaRef,
    file: ArrowWriter<Vec<u8>>,
}

impl std::fmt::Debug for PartWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartWriter")
            .field("block", &self.block)
            .field("part", &self.part)
            .finish_non_exhaustive()
    }
}

impl PartWriter {
    pub(crate) fn new(
        block: BlockId,
        part: &'static str,
        schema: SchemaRef,
        properties: WriterProperties,
    ) -> Result<Self> {
        let options = ArrowWriterOptions::new()
            .with_properties(properties)
            .with_skip_arrow_metadata(true);
        let file = ArrowWriter::try_new_with_options(Vec::new(), Arc::clone(&schema), options)
            .map_err(|e| encode_error(block, part, e))?;
        Ok(Self {
            block,
            part,
            schema,
            file,
        })
    }

    /// Appends rows, as the columns of the schema.
    pub(crate) fn write(&mut self, columns: Vec<ArrayRef>) -> Result<()> {
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns).map_err(|e| self.error(e))?;
        self.file.write(&batch).map_err(|e| self.error(e))
    }

    /// Ends a row group, if any rows came since the last one.
    pub(crate) fn end_group(&mut self) -> Result<()> {
        self.file.flush().map_err(|e| self.error(e))
    }

    /// Bytes of the row groups that were ended.
    pub(crate) fn bytes_written(&self) -> usize {
        self.file.bytes_written()
    }

    /// The same, and roughly those of the rows since.
    pub(crate) fn bytes_so_far(&self) -> usize {
        self.file.bytes_written() + self.file.in_progress_size()
    }

    /// That the part cannot be encoded.
    pub(crate) fn error(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        encode_error(self.block, self.part, source)
    }

    /// The part's bytes.
    pub(crate) fn finish(self) -> Result<Bytes> {
        let Self {
            block, part, file, ..
        } = self;
        let bytes = file.into_inner().map_err(|e| encode_error(block, part, e))?;
        Ok(Bytes::from(bytes))
    }
}

/// Properties that all parts share.
pub(crate) fn base_properties(
    block: BlockId,
    part: &'static str,
    layout: Layout,
) -> Result<WriterPropertiesBuilder> {
    let level = ZstdLevel::try_new(layout.zstd_level).map_err(|e| encode_error(block, part, e))?;
    Ok(WriterProperties::builder()
        .set_created_by(concat!("koios ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(level))
        .set_statistics_enabled(EnabledStatistics::None)
        .set_max_row_group_row_count(None)
        .set_key_value_metadata(Some(vec![
            KeyValue::new("koios.format".to_owned(), FORMAT_VERSION.to_string()),
            KeyValue::new("koios.block".to_owned(), block.to_string()),
        ])))
}

/// The smallest blocks there are: the fewer values suffer from a large step.
pub(crate) fn small_delta_blocks(
    block: BlockId,
    part: &'static str,
) -> Result<DeltaBinaryPackedEncoderOptions> {
    let blocks = DeltaBinaryPackedEncoderOptions::try_new(128, 4);
    blocks.map_err(|e| encode_error(block, part, e))
}

pub(crate) fn encode_error(
    block: BlockId,
    part: &'static str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    Error::Encode {
        block,
        part,
        source: source.into(),
    }
}
