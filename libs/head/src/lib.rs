//! The ingester's in-memory series: one [`Head`] holds the recent samples of one tenant in one partition.
//!
//! **Data flow.** The ingester's committer asks which series a batch speaks of ([`Head::resolve`]), logs it, and has it
//! applied ([`Head::apply_resolved`]): new series are created, samples appended. Queries call [`Head::select`] and then [`Head::read`] or [`Head::samples`] per
//! series. Window by window the ingester calls [`Head::cut`], writes the block from the result, and reports
//! [`Head::cut_listed`] or [`Head::cut_abandoned`]; [`Head::forget`] then drops what listed blocks hold.
//!
//! **Layout.** A series is a `u32`, the index into dense arrays. What every sample touches (last time, last value, write
//! position) is 32 bytes per series; its open samples lie in a chain of 64-byte blocks from a slab; full runs are
//! sealed as `koios_chunk` chunks. These lie one after the other in pages, of one window and one cut each, which reads and
//! cuts share and which go as a whole. Label sets are packed symbol ids, one after the other; symbols are interned
//! per head; postings are compressed bitmaps per (name, value). Start timestamps of open samples lie in a table of their own.
//! Late samples lie in a small buffer per series, and are compared with what is held some dozens at a time.
//!
//! **Invariants.** A series' identity is its label set; its hash only finds it. The content of a head depends on the
//! set of batches applied, not on their order or number (I2): `koios_model::merge::winner` decides between values. A
//! chunk lies within one window and belongs to at most one cut that is not abandoned, so the listed cuts and what the
//! head holds always add up to what it accepted (I10), and a read gives every sample once, whatever cut is under way.
//! Every live series has at least one sample, but for those that wait for batches that may speak of them.
//!
//! **Deliberately absent.** Locks, I/O, clocks, limits (the distributor's), admission (the batch was logged), the WAL.
//! A head has one owner; readers go through it.
//!
//! **Failure behaviour.** [`Head::apply_resolved`] cannot fail: what was logged is applied entirely. Series that come
//! without labels under a reference that the head does not know are skipped and counted; [`Resolved::unknown`] tells
//! beforehand.

mod apply;
mod chunks;
mod conflicts;
mod create;
mod cut;
mod delete;
mod error;
mod exemplars;
mod head;
mod histograms;
mod index;
mod late;
mod load;
mod memory;
mod metadata;
mod open;
mod packed;
mod pages;
mod read;
mod resolve;
mod rows;
mod select;
mod series;
mod shrink;
mod slab;
mod snapshot;
mod starts;
mod symbols;
mod varint;
mod waiting;
mod windows;

pub use apply::Applied;
pub use conflicts::{Conflict, ConflictValue};
pub use cut::{Cut, CutId, CutSeries};
pub use delete::HeldSamples;
pub use error::{Error, SnapshotError};
pub use head::{Head, HeadOptions};
pub use histograms::merge_histogram_runs;
pub use load::{Holdings, OpenedStrip};
pub use memory::HeadMemory;
pub use metadata::deletes_metric;
pub use read::{merge_runs, merge_starts};
pub use resolve::Resolved;
pub use series::SeriesId;
pub use snapshot::Strip;
pub use waiting::Sealing;
pub use windows::WindowState;
