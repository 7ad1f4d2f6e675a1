//! Compressed sample chunks: a run of float samples, or of native histograms, of one series in a small exact form; or what
//! downsampling keeps of them ([`encode_summaries`]).
//!
//! **Data flow.** Heads keep what still grows as open runs ([`OpenState`]) and seal them into chunks ([`encode`], or an
//! [`Encoder`] that keeps its scratch memory). Samples travel to queriers as [`Run`]s: chunks as they are, and within one
//! process copies of open runs and decoded columns, too. Whoever needs the samples decodes a time range into columns it
//! reuses. Blocks scale values with the same [`decimal`] functions, so that what a chunk
//! and what a block hold of one run agree. The bytes are described in `docs/formats/chunk.md`.
//!
//! **Invariants.** Decoding gives back the encoded timestamps and the bits of every value (NaN payloads, the sign of
//! zero and the stale marker included), and the start timestamps that samples were given ([`Starts`]). Timestamps are strictly ascending. A chunk never changes once written; a
//! fixture per format version is decoded by the tests.
//!
//! **Deliberately absent.** I/O, labels, merging of overlapping chunks (`koios_model::merge` has the rule), appending
//! to an encoded chunk.
//!
//! **Failure behaviour.** A checksum guards every chunk and is checked before anything else is believed. Arbitrary
//! bytes give an [`Error`], never a panic, and never more than [`SAMPLES_MAX`] decoded samples.

mod bits;
mod column;
pub mod decimal;
mod encode;
mod error;
mod histogram;
mod mask;
mod open;
mod recent_times;
mod run;
mod starts;
mod summaries;
mod view;

pub use encode::{Encoder, encode};
pub use error::Error;
pub use histogram::{OpenHistograms, encode_histograms, pack_histograms, unpack_histograms};
pub use open::{OpenEntry, OpenRun, OpenState, decode_open};
pub use run::{PlainRun, Run};
pub use starts::Starts;
pub use summaries::encode_summaries;
pub use view::Chunk;

/// The most samples one chunk may hold: it bounds what a reader allocates for a chunk of a few bytes.
pub const SAMPLES_MAX: usize = 1 << 16;

/// The version byte of chunks of floats.
pub(crate) const VERSION: u8 = 1;
/// The version byte of chunks of native histograms.
pub(crate) const VERSION_HISTOGRAMS: u8 = 2;
/// What either version byte is higher by where samples have start timestamps.
pub(crate) const VERSION_STARTS: u8 = 2;
/// The version byte of chunks of summaries.
pub(crate) const VERSION_SUMMARIES: u8 = 5;
/// The same where sums of native histograms are told.
pub(crate) const VERSION_SUMS: u8 = 6;
/// Bit of the second byte that says that some samples are not mantissas.
pub(crate) const FLAG_ESCAPES: u8 = 0x80;
/// Bits of the second byte that hold the decimal exponent.
pub(crate) const EXPONENT_MASK: u8 = 0x1f;
/// Length of the checksum at the end.
pub(crate) const CHECKSUM_BYTES: usize = 4;
