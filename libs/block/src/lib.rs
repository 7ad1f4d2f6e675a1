//! The Parquet block format: schema, write, read, merge, verify.
//!
//! **Data flow.** The ingester pushes the series of a cut window into a [`BlockWriter`] and uploads the [`BlockParts`];
//! the store opens blocks as [`BlockReader`]s over any [`RangeRead`], selects series, streams samples, and compacts by
//! [`merge()`] and [`verify()`]. docs/formats/block.md describes the bytes for other readers: every part is a plain table.
//!
//! A reader keeps what it decodes in a shared [`BlockCache`], within budgets: label indexes, chunks of neighbouring
//! series, samples of whole series. A repeated query decodes nothing, a first one reads only pages with series it needs.
//!
//! **Invariants.** Series are in label order in both parts, a series' rows are contiguous, and row groups of samples end
//! at series boundaries. Times that several series have are written once, and a series names the rows they are in. A value read is bit-equal to the value written (I2). No byte is used before the checksum of
//! its cell was verified (I11). Bytes that nobody wrote give [`Error::Corrupt`] or [`Error::Samples`], never a panic (I12).
//!
//! **Deliberately absent.** Fetching, retrying and listing (`koios-bucket`); deciding what to compact (the store
//! service).
//!
//! **Failure behaviour.** An error names block and part. [`Error::Corrupt`] and [`Error::Samples`] are about the bytes and last
//! until they are repaired; [`Error::Read`] is about reaching them and may pass. Nothing is retried here.

mod cache;
mod cell_store;
mod chunk_read;
mod digest;
mod error;
mod exemplar_merge;
mod exemplars;
mod fetched_group;
mod group_rows;
mod held_cells;
mod histogram_rows;
mod histograms_ahead;
mod histograms_table;
mod holding;
#[cfg(test)]
mod hostile_test;
mod known_run;
mod label_column;
mod layout;
mod merge;
mod meta;
mod metadata;
mod part;
mod part_end;
mod part_writer;
mod reader;
mod row_chunk;
mod row_plan;
mod sample_rows;
mod samples;
mod samples_ahead;
mod samples_choice;
mod samples_table;
mod schema;
mod series;
mod series_ahead;
mod series_filters;
mod series_table;
mod shared_times;
mod small_cells;
mod source;
mod strings;
mod summaries_table;
mod summary_rows;
mod tail;
mod timed_pages;
mod times;
mod times_table;
mod used_up;
mod verify;
mod writer;

pub use cache::{BlockCache, CacheBytes};
pub use cell_store::{CellKey, CellStore};
pub use chunk_read::{ChunkRead, MissingUpTo};
pub use digest::Digest;
pub use error::{Error, Result};
pub use exemplar_merge::ExemplarMerge;
pub use exemplars::SeriesExemplars;
pub use held_cells::{HeldBudget, HeldCells, HeldRoom};
pub use holding::is_held_by;
pub use layout::{ColumnLayout, PartLayout};
pub use merge::{BlockMerge, Deletion, MergeInput, MergeStats, MergedSeries, MergedWriter, merge};
pub use meta::{
    BlockId, BlockMeta, CELL_BYTES, EXEMPLARS_PART, FORMAT_VERSION, HISTOGRAMS_PART, META_PART, PartMeta,
    PartSummary, RESOLUTION_1H_MS, RESOLUTION_5M_MS, SAMPLES_1H_PART, SAMPLES_5M_PART, SAMPLES_PART,
    SERIES_PART, SmallCells, TIMES_PART,
};
pub use metadata::{MetadataCursor, MetricMetadata};
pub use part_end::PartEnd;
pub use reader::{BlockReader, BlockSeries, SeriesCursor};
pub use samples::SeriesSamples;
pub use source::{MemoryBlock, RangeRead};
pub use strings::StringList;
pub use tail::{Subject, Tail};
pub use verify::{verified_digest, verify, verify_checksums};
pub use writer::{BlockOptions, BlockParts, BlockWriter, Layout, SeriesColumns};
