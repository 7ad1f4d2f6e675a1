//! Which cells of a part are small: those of what reads take a few kilobytes of here and there.
//!
//! Of `series.parquet` a read takes a page or two of each of a dozen columns, and of every part its footer and the page indexes of
//! some row groups. Of samples it takes pages that stand side by side, for which the checksums of large cells do.

use bytes::Bytes;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaDataReader};

use crate::meta::{CELL_BYTES, PartMeta, SERIES_PART};

/// Size of small cells.
const SMALL_BYTES: u64 = 8 << 10;
/// Most of them, so that their checksums stay as few as those of large cells: they are larger where there would be more.
const SMALL_CELLS_MAX: u64 = 1 << 11;
/// A part of up to so many bytes has none: it is read whole.
const WHOLE_BYTES_MAX: u64 = CELL_BYTES;

/// What `meta.json` tells of a part that has just been written.
pub(crate) fn part_meta(name: &str, rows: u64, bytes: &Bytes) -> PartMeta {
    let meta = PartMeta::of(name, rows, bytes);
    if meta.bytes <= WHOLE_BYTES_MAX {
        return meta;
    }
    let from = match name {
        SERIES_PART => Some(0),
        _ => first_index(bytes).map(|at| at / CELL_BYTES * CELL_BYTES),
    };
    let Some(from) = from.filter(|&from| from < meta.bytes) else {
        return meta;
    };
    let mut size = SMALL_BYTES;
    while (meta.bytes - from).div_ceil(size) > SMALL_CELLS_MAX {
        size *= 2;
    }
    match size < CELL_BYTES {
        true => meta.with_small_cells(from, size, bytes),
        false => meta,
    }
}

/// Where the page indexes of a part begin; they go up to its footer.
fn first_index(bytes: &Bytes) -> Option<u64> {
    let reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Skip);
    let metadata = reader.parse_and_finish(bytes).ok()?;
    let columns = metadata.row_groups().iter().flat_map(|group| group.columns());
    let offsets = columns.flat_map(|column| [column.column_index_offset(), column.offset_index_offset()]);
    offsets.flatten().min().and_then(|at| u64::try_from(at).ok())
}
