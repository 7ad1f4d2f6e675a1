//! The tombstones file: samples that were deleted and are still in the chunks.

use koios_model::TimeRange;

use crate::files::TsdbFiles;
use crate::parse::Parser;
use crate::{Error, Result};

pub(crate) const TOMBSTONES_FILE: &str = "tombstones";
const MAGIC: u32 = 0x0130_ba30;
const VERSION: u8 = 1;
/// Magic and version before, checksum after.
const FRAME_BYTES: u64 = 5 + 4;
/// Some millions of deletions.
const BYTES_MAX: u64 = 64 << 20;

/// What is deleted of each series, by its reference.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tombstones(Vec<(u64, TimeRange)>);

impl Tombstones {
    /// Reads the file; none is as good as an empty one.
    pub(crate) async fn read(files: &dyn TsdbFiles) -> Result<Self> {
        let Some(size) = files.size(TOMBSTONES_FILE).await? else {
            return Ok(Self::default());
        };
        if size > BYTES_MAX {
            return Err(Error::too_large(TOMBSTONES_FILE, 0, "a length", size, BYTES_MAX));
        }
        let bytes = files.read(TOMBSTONES_FILE, 0..size).await?;
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let corrupt =
            |offset: usize, reason: &str| Err(Error::corrupt(TOMBSTONES_FILE, offset as u64, reason));
        if (bytes.len() as u64) < FRAME_BYTES {
            return corrupt(bytes.len(), "it ends before its checksum");
        }
        let (front, crc) = bytes.split_at(bytes.len() - 4);
        let mut parser = Parser::new(front);
        if parser.be32() != Some(MAGIC) || parser.take(1) != Some(&[VERSION]) {
            return corrupt(0, "it does not begin as a tombstones file of version 1 does");
        }
        let stones = front.get(5..).unwrap_or_default();
        if crc != crc32c::crc32c(stones).to_be_bytes() {
            return corrupt(5, "it failed its checksum");
        }
        let mut all = Vec::new();
        let mut parser = Parser::new(stones);
        while !parser.is_at_end() {
            let at = parser.position() + 5;
            let (Some(series), Some(min), Some(max)) = (parser.uvarint(), parser.varint(), parser.varint())
            else {
                return corrupt(at, "a tombstone is cut short");
            };
            all.push((series, TimeRange::new(min, max)));
        }
        all.sort_unstable_by_key(|(series, range)| (*series, range.min, range.max));
        Ok(Self(all))
    }

    /// What is deleted of a series.
    pub(crate) fn of(&self, series: u64) -> impl Iterator<Item = TimeRange> + '_ {
        let first = self.0.partition_point(|(s, _)| *s < series);
        let rest = self.0.iter().skip(first);
        rest.take_while(move |(s, _)| *s == series)
            .map(|(_, range)| *range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deletions_are_found_by_series_and_damage_is_told() {
        // Two of series 3, one of series 1: reference, then both ends as zigzag.
        let stones = [3, 20, 40, 1, 0, 2, 3, 60, 80];
        let mut file = [&MAGIC.to_be_bytes()[..], &[VERSION], &stones].concat();
        file.extend(crc32c::crc32c(&stones).to_be_bytes());
        let all = Tombstones::parse(&file).unwrap();
        let of = |series| all.of(series).collect::<Vec<_>>();
        assert_eq!(of(3), [TimeRange::new(10, 20), TimeRange::new(30, 40)]);
        assert_eq!((of(1).len(), of(2).len()), (1, 0));
        for at in 0..file.len() {
            let mut wrong = file.clone();
            wrong[at] ^= 1;
            assert!(Tombstones::parse(&wrong).is_err(), "byte {at}");
        }
        assert!(Tombstones::parse(&file[..8]).is_err());
    }
}
