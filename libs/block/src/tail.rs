//! The ends of parts, fetched together with `meta.json`: footers lie there, and before them the page indexes. Who fetches
//! one after the other waits three times for the storage where once is enough.

use bytes::Bytes;

use crate::Result;
use crate::meta::{CELL_BYTES, SAMPLES_1H_PART, SAMPLES_5M_PART, SAMPLES_PART, SERIES_PART, TIMES_PART};
use crate::source::RangeRead;

/// Least and most bytes of a tail. Footer and page indexes take about a hundredth of a part.
const TAIL_BYTES: std::ops::RangeInclusive<u64> = CELL_BYTES..=8 * CELL_BYTES;
/// The share of a part that its tail is.
const TAIL_SHARE: u64 = 128;
/// The same of times. They are small for their number, and their page index holds the ends of each page: footer and page index
/// take up to an eightieth.
const TIMES_TAIL_SHARE: u64 = 48;
/// Times are fetched whole up to so many bytes: any samples need some of them, and another request would cost as much.
const WHOLE_TIMES_BYTES_MAX: u64 = 4 * CELL_BYTES;

/// The end of a part, whose checksums are not known yet.
#[derive(Clone, Debug)]
pub struct Tail {
    part: String,
    /// Where it begins: a cell does there.
    pub(crate) from: u64,
    pub(crate) bytes: Bytes,
}

impl Tail {
    /// Whether nearly every read of a block needs the footer of this part.
    pub fn is_worthwhile(part: &str) -> bool {
        let needed = [
            SERIES_PART,
            TIMES_PART,
            SAMPLES_PART,
            SAMPLES_5M_PART,
            SAMPLES_1H_PART,
        ];
        needed.contains(&part)
    }

    /// Reads the end of a part that has `size` bytes.
    ///
    /// # Errors
    /// [`crate::Error::Read`] when the bytes cannot be had, [`crate::Error::Corrupt`] when the part is shorter.
    pub async fn read(source: &dyn RangeRead, part: &str, size: u64) -> Result<Self> {
        let within = |share: u64| share.clamp(*TAIL_BYTES.start(), *TAIL_BYTES.end());
        let wanted = match part {
            TIMES_PART if size <= WHOLE_TIMES_BYTES_MAX => size,
            TIMES_PART => within(size / TIMES_TAIL_SHARE),
            _ => within(size / TAIL_SHARE),
        };
        let from = size.saturating_sub(wanted) / CELL_BYTES * CELL_BYTES;
        let read = source.read(part, &[from..size; 1]).await?;
        Ok(Self {
            part: part.to_owned(),
            from,
            bytes: read.into_iter().next().unwrap_or_default(),
        })
    }

    /// The part it is the end of.
    pub(crate) fn part(&self) -> &str {
        &self.part
    }
}
