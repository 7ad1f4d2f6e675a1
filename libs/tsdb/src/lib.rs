//! Reads blocks of Prometheus' TSDB, as Prometheus, Thanos and Mimir write them.
//!
//! **Data flow.** An import opens a [`TsdbBlock`] over any [`TsdbFiles`] (a folder, or objects in a bucket), looks at its
//! [`TsdbMeta`], and goes through its series in label order with a [`SeriesReader`], for one range of time after the other.
//! docs/formats/tsdb.md says what is read and what is checked.
//!
//! **Invariants.** Nothing is used before its checksum was right: table of contents, symbols, every series, every chunk,
//! tombstones (I11). No bytes abort, recurse, or allocate beyond the limits here: symbols are kept in memory, and of series
//! one at a time (I12). Values are bit-equal to those written; where chunks overlap, the one rule of the house chooses (I2).
//!
//! **Deliberately absent.** Writing; looking something up (postings and label indices are not read); exemplars and metadata,
//! which blocks do not hold.
//!
//! **Failure behaviour.** An error names the file and the byte. Nothing is retried here, and nothing is left out: a block
//! that is damaged anywhere is refused.

mod bits;
mod block;
mod chunk;
mod error;
mod external;
mod files;
mod histogram;
mod index;
mod meta;
mod parse;
mod segments;
mod tombstones;

pub use block::{ReadStats, SeriesReader, TsdbBlock, TsdbSeries};
pub use error::{Error, Result};
pub use files::{DiskFiles, MemoryFiles, TsdbFiles};
pub use meta::{META_BYTES_MAX, META_FILE, TsdbMeta};
