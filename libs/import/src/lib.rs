//! Turns blocks of Prometheus' TSDB into blocks of a tenant, and lists them.
//!
//! **Data flow.** `koios ctl import` and the upload API open a block as [`koios_tsdb::TsdbFiles`] and hand it to an
//! [`Importer`]: it goes through the index once to see which windows have samples, then through the series once for each window,
//! writes blocks as compaction would, uploads each, reads it back, and lists all of them in one commit.
//!
//! **Invariants.** All of a block is listed or nothing, together with its name, which is not imported again unless that
//! is asked for, or what was left out as too old is kept by now. What came before a deletion is not listed after it as if it were new. What is listed
//! was read back from the bucket and is, to the bit, what was read from the source (I10, I11). Where samples meet others of
//! the same time, reads and compaction choose by the one rule (I2). Memory: the source's symbols, one series, and one block
//! of the size that compaction writes.
//!
//! **Deliberately absent.** Where a block comes from; who may import.
//!
//! **Failure behaviour.** A failed import lists nothing and can be tried again; what it uploaded is declared dead, or, after a
//! crash, found by compaction once it is a day old.

mod error;
mod import;
mod left_over;
mod settings;
mod upload_state;
mod uploads;
mod windows;

pub use error::ImportError;
pub use import::{Came, Imported, Importer, Outcome, Progress};
pub use settings::{ExternalLabels, ImportSettings, Kept, Retentions};
pub use upload_state::{UploadState, remove_uploads};
pub use uploads::{FILE_BYTES_MAX, UploadError, Uploads, check_size};
