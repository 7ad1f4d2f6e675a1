//! The ends of parts: footers lie there, and before them the page indexes. They are fetched at once, and those that every read
//! begins with together with `meta.json`: who fetches one after the other waits three times for the storage where once is enough.

use std::ops::Range;

use bytes::Bytes;

use crate::Result;
use crate::meta::{
    CELL_BYTES, EXEMPLARS_PART, SAMPLES_1H_PART, SAMPLES_5M_PART, SAMPLES_PART, SERIES_PART, TIMES_PART,
    is_small,
};
use crate::series_table::SERIES_GROUP_ROWS;
use crate::source::RangeRead;

/// Least bytes of a tail, and most with page indexes: of larger ones the footer comes alone. The indexes of the row groups that
/// something is read of are then fetched by themselves, while there is something else to wait for.
const TAIL_BYTES: std::ops::RangeInclusive<u64> = CELL_BYTES / 4..=4 * CELL_BYTES;
/// Most bytes that a footer is taken to have.
const FOOTER_BYTES_MAX: u64 = 16 * CELL_BYTES;
/// The share of a part that its tail is, unless something better is known: footer and page indexes take about a hundredth.
const TAIL_SHARE: u64 = 128;
/// The same of times. They are small for their number, and their page index holds the ends of each page: footer and page index
/// take up to an eightieth.
const TIMES_TAIL_SHARE: u64 = 48;
/// Times are fetched whole up to so many bytes: any samples need some of them, and another request would cost as much.
const WHOLE_TIMES_BYTES_MAX: u64 = 4 * CELL_BYTES;
/// Series are, too: whoever looks for some reads a column of them and a page of others.
const WHOLE_SERIES_BYTES_MAX: u64 = 2 * CELL_BYTES;
/// What row groups of series take, with a dozen columns of labels.
const SERIES_TAIL: TailBytes = TailBytes {
    group_rows: SERIES_GROUP_ROWS as u64,
    footer: 4 << 10,
    indexes: 4 << 10,
    together_max: CELL_BYTES / 2,
};
/// What row groups of samples take, with all columns.
const SAMPLES_TAIL: TailBytes = TailBytes {
    group_rows: 512 << 10,
    footer: 700,
    indexes: 3 << 10,
    together_max: *TAIL_BYTES.end(),
};

/// How much of a tail is of each row group.
struct TailBytes {
    group_rows: u64,
    footer: u64,
    indexes: u64,
    /// Most bytes of footer and page indexes that come together where cells are small: those of one row group alone are few then.
    together_max: u64,
}

impl TailBytes {
    /// What so many rows take, or the footer alone where that would be much.
    fn of(&self, rows: u64, cells_are_small: bool) -> u64 {
        let groups = rows.div_ceil(self.group_rows);
        let most = match cells_are_small {
            true => self.together_max,
            false => *TAIL_BYTES.end(),
        };
        match groups.saturating_mul(self.footer + self.indexes) {
            all if all <= most => all,
            _ => groups.saturating_mul(self.footer).min(FOOTER_BYTES_MAX),
        }
    }
}

/// The end of a part, whose checksums are not known yet.
#[derive(Clone, Debug)]
pub struct Tail {
    part: String,
    /// Where it begins.
    pub(crate) from: u64,
    pub(crate) bytes: Bytes,
}

/// What reads of a block are about, and so which of its parts they begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Series and their samples.
    Samples,
    /// Series, and none of their samples: labels and what is known of metrics.
    Series,
    /// Exemplars alone.
    Exemplars,
}

impl Subject {
    /// Whether the end of a part is fetched before anything is known of it. Series come first: of many blocks they have none that
    /// are looked for, and while those are read there is time to fetch the ends of other parts. Only where all series of the block
    /// come with their end it saves a round trip to fetch them together.
    pub fn begins_with(self, part: &str, all_series_come: bool) -> bool {
        match (self, part) {
            (Self::Samples | Self::Series, SERIES_PART) | (Self::Exemplars, EXEMPLARS_PART) => true,
            (Self::Samples, TIMES_PART | SAMPLES_PART | SAMPLES_5M_PART | SAMPLES_1H_PART) => all_series_come,
            _ => false,
        }
    }
}

impl Tail {
    /// Where the end of a part begins that is fetched at once: the part has `size` bytes, and as many rows, or more, as it is of
    /// series or of samples; `cell_bytes` are those of a cell at its end, where that is a small one.
    pub fn of(part: &str, size: u64, rows: u64, cell_bytes: Option<u64>) -> Range<u64> {
        let small = cell_bytes.filter(|&bytes| is_small(bytes));
        let wanted = match part {
            TIMES_PART if size <= WHOLE_TIMES_BYTES_MAX => size,
            SERIES_PART if size <= WHOLE_SERIES_BYTES_MAX => size,
            TIMES_PART => size / TIMES_TAIL_SHARE,
            SERIES_PART => SERIES_TAIL.of(rows, small.is_some()),
            SAMPLES_PART => SAMPLES_TAIL.of(rows, small.is_some()),
            _ => (size / TAIL_SHARE).min(8 * CELL_BYTES),
        };
        let cell_bytes = small.unwrap_or(CELL_BYTES);
        let wanted = wanted.clamp(*TAIL_BYTES.start(), FOOTER_BYTES_MAX);
        size.saturating_sub(wanted) / cell_bytes * cell_bytes..size
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`crate::Error::Read`] when the bytes cannot be had, [`crate::Error::Corrupt`] when the part is shorter.
    pub async fn read(
        source: &dyn RangeRead,
        part: &str,
        size: u64,
        rows: u64,
        cell_bytes: Option<u64>,
    ) -> Result<Self> {
        let range = Self::of(part, size, rows, cell_bytes);
        let from = range.start;
        let read = source.read(part, &[range; 1]).await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_begins_with_a_cell_and_grows_slower_than_its_part() {
        const MIB: u64 = 1 << 20;
        let length = |part, size, rows| {
            let tail = Tail::of(part, size, rows, None);
            assert!(
                tail.end == size && tail.start.is_multiple_of(CELL_BYTES),
                "{tail:?}"
            );
            let of_small = Tail::of(part, size, rows, Some(CELL_BYTES / 8));
            assert!(of_small.start.is_multiple_of(CELL_BYTES / 8), "{of_small:?}");
            assert!(
                (0..CELL_BYTES).contains(&(of_small.start - tail.start)),
                "{of_small:?}"
            );
            // Whatever somebody claims.
            for bytes in [0, 7, CELL_BYTES, u64::MAX] {
                assert_eq!(Tail::of(part, size, rows, Some(bytes)), tail);
            }
            tail.end - tail.start
        };
        // Whole where it is small.
        assert_eq!(length(SERIES_PART, CELL_BYTES + 7, 1000), CELL_BYTES + 7);
        assert_eq!(length(TIMES_PART, 4 * CELL_BYTES, 0), 4 * CELL_BYTES);
        assert_eq!(length(SAMPLES_PART, 0, 0), 0);
        // With page indexes, and without.
        assert!(length(SAMPLES_PART, 10 * MIB, 8 * MIB) >= 16 * 3700);
        assert!(length(SAMPLES_PART, 120 * MIB, 100 * MIB) < 4 * CELL_BYTES);
        assert!(length(SAMPLES_PART, 120 * MIB, 100 * MIB) >= 200 * 700);
        // Whatever somebody claims.
        for part in [SERIES_PART, SAMPLES_PART, TIMES_PART, SAMPLES_1H_PART] {
            assert!(length(part, u64::MAX, u64::MAX) <= FOOTER_BYTES_MAX + CELL_BYTES);
            assert!(length(part, 10, u64::MAX) <= 10);
        }
    }
}
