//! Which cells of a part are small: those of what reads take a few kilobytes of here and there.
//!
//! Of `series.parquet` a read takes a page or two of each of a dozen columns, and of every part its footer and the page indexes of
//! some row groups. Of samples it takes pages that stand side by side, for which the checksums of large cells do.
//!
//! And which parts have their end in `meta.json`.

use bytes::Bytes;

use crate::meta::{CELL_BYTES, PartMeta, SERIES_PART};
use crate::part_end::{PartEnd, ends};

/// Size of small cells.
const SMALL_BYTES: u64 = 8 << 10;
/// Most of them, so that their checksums stay as few as those of large cells: they are larger where there would be more.
const SMALL_CELLS_MAX: u64 = 1 << 11;
/// A part of up to so many bytes has none: it is read whole.
const WHOLE_BYTES_MAX: u64 = CELL_BYTES;

/// What `meta.json` tells of a part that has just been written.
pub(crate) fn part_meta(name: &str, rows: u64, bytes: &Bytes) -> PartMeta {
    let mut meta = PartMeta::of(name, rows, bytes);
    if meta.bytes <= WHOLE_BYTES_MAX {
        return meta;
    }
    let ends = ends(bytes);
    let from = match name {
        SERIES_PART => Some(0),
        _ => ends
            .as_ref()
            .and_then(|ends| Some(ends.indexes? / CELL_BYTES * CELL_BYTES)),
    };
    if let Some(from) = from.filter(|&from| from < meta.bytes) {
        let mut size = SMALL_BYTES;
        while (meta.bytes - from).div_ceil(size) > SMALL_CELLS_MAX {
            size *= 2;
        }
        if size < CELL_BYTES {
            meta = meta.with_small_cells(from, size, bytes);
        }
    }
    // What comes whole with its end needs no other.
    if meta.tail().start > 0 {
        meta.end = ends.and_then(|ends| PartEnd::of(bytes, &ends));
    }
    meta
}
