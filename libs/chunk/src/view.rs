//! Reading a chunk.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use koios_model::{Histogram, Summary, TimeRange};

use crate::bits::Cursor;
use crate::column::{Flaw, Reader};
use crate::decimal::{EXPONENT_MAX, power_of_ten};
use crate::histogram::{Described, decoded_bytes as histogram_bytes, read_cells};
use crate::recent_times::RecentTimes;
use crate::{
    CHECKSUM_BYTES, EXPONENT_MASK, Error, FLAG_ESCAPES, SAMPLES_MAX, Starts, VERSION, VERSION_HISTOGRAMS,
    VERSION_STARTS, VERSION_SUMMARIES, VERSION_SUMS, summaries,
};

/// What a decoded float occupies.
pub(crate) const FLOAT_BYTES: usize = size_of::<i64>() + size_of::<f64>();
/// What a decoded start timestamp occupies: with the time of its sample, and among those of the series.
pub(crate) const START_BYTES: usize = size_of::<(i64, i64)>() + size_of::<i64>();
/// The versions of chunks whose samples have start timestamps.
const STARTED: u8 = VERSION + VERSION_STARTS;
const STARTED_HISTOGRAMS: u8 = VERSION_HISTOGRAMS + VERSION_STARTS;
const STARTS_FLAW: Flaw = "start timestamps end early, or are out of order or range";

/// An encoded chunk whose checksum and header have been checked. Cloning shares the bytes.
#[derive(Clone, Debug)]
pub struct Chunk {
    bytes: Bytes,
    count: usize,
    range: TimeRange,
    exponent: u8,
    escapes: bool,
    /// Where the columns start.
    body: usize,
    /// How many bytes before them hold start timestamps; none when no sample has one.
    starts: Option<usize>,
    /// Of histograms: the most cells that one of them has.
    cells: Option<usize>,
    /// Whether it holds summaries instead.
    summaries: bool,
    /// The sums of native histograms that these tell.
    sums: Option<Box<Self>>,
}

impl Chunk {
    /// Opens a chunk: checks length, checksum, version and header. What the columns hold is checked as they are
    /// decoded. The bytes must be one chunk and nothing more.
    ///
    /// # Errors
    /// [`Error::Checksum`] when the bytes changed, [`Error::Version`] for a format this program does not know,
    /// [`Error::Malformed`] or [`Error::Count`] when they never were a chunk.
    pub fn parse(bytes: Bytes) -> Result<Self, Error> {
        let len = bytes.len();
        let malformed = |at, what| Error::Malformed { len, at, what };
        let Some((content, sum)) = bytes.split_last_chunk::<CHECKSUM_BYTES>() else {
            return Err(malformed(len, "shorter than its checksum"));
        };
        let (stored, actual) = (u32::from_le_bytes(*sum), crc32c::crc32c(content));
        if stored != actual {
            return Err(Error::Checksum { len, actual, stored });
        }
        let mut c = Cursor::new(content);
        let version = c.u8().ok_or_else(|| malformed(0, "empty"))?;
        let (is_started, kind) = match version {
            VERSION | VERSION_HISTOGRAMS | VERSION_SUMMARIES | VERSION_SUMS => (false, version),
            STARTED | STARTED_HISTOGRAMS => (true, version - VERSION_STARTS),
            _ => return Err(Error::Version { version }),
        };
        let header = read_header(&mut c).map_err(|what| malformed(c.pos(), what))?;
        let cells = if kind == VERSION_HISTOGRAMS {
            Some(read_cells(&mut c).ok_or_else(|| malformed(c.pos(), "header of histograms"))?)
        } else {
            None
        };
        if header.count == 0 || header.count > SAMPLES_MAX as u64 {
            return Err(Error::Count { count: header.count });
        }
        let starts = match is_started {
            true => Some(read_starts_len(&mut c).ok_or_else(|| malformed(c.pos(), STARTS_FLAW))?),
            false => None,
        };
        let sums = match kind {
            VERSION_SUMS => {
                let sums = summaries::parse_sums(&bytes, &mut c);
                Some(Box::new(
                    sums.ok_or_else(|| malformed(c.pos(), summaries::SUMS_FLAW))??,
                ))
            }
            _ => None,
        };
        let body = c.pos();
        Ok(Self {
            starts,
            count: header.count as usize,
            range: header.range,
            exponent: header.flags & EXPONENT_MASK,
            escapes: header.flags & FLAG_ESCAPES != 0,
            body,
            cells,
            summaries: matches!(kind, VERSION_SUMMARIES | VERSION_SUMS),
            sums,
            bytes,
        })
    }

    /// Whether samples of an encoded chunk have start timestamps, told by its first byte alone.
    pub fn is_started(encoded: &[u8]) -> bool {
        matches!(encoded.first(), Some(&(STARTED | STARTED_HISTOGRAMS)))
    }

    /// How many samples it holds, at least 1.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Its first and last timestamp.
    pub fn time_range(&self) -> TimeRange {
        self.range
    }

    /// The encoded bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Gives the encoded bytes back.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// Whether its samples are native histograms, and none are floats.
    pub fn has_histograms(&self) -> bool {
        self.cells.is_some()
    }

    /// Whether it holds summaries of downsampled samples, and no samples.
    pub fn has_summaries(&self) -> bool {
        self.summaries
    }

    /// Appends the summaries that overlap a closed range, ascending and not overlapping. A chunk of samples has none.
    ///
    /// # Errors
    /// [`Error`] when the chunk holds something impossible; then nothing has been appended.
    pub fn decode_summaries(&self, range: TimeRange, out: &mut Vec<Summary>) -> Result<(), Error> {
        if !self.summaries || !range.overlaps(&self.range) || range.min > range.max {
            return Ok(());
        }
        summaries::decode(self, (self.body, self.sums.as_deref()), range, out)
    }

    /// At most how many bytes its samples take, decoded.
    pub fn decoded_bytes(&self) -> usize {
        let float = if self.summaries {
            size_of::<Summary>()
        } else {
            FLOAT_BYTES
        };
        let each = self.cells.map_or(float, histogram_bytes);
        let starts = self.starts.map_or(0, |_| START_BYTES);
        let sums = self.sums.as_ref().map_or(0, |sums| sums.decoded_bytes());
        let samples = self.count.saturating_mul(each.saturating_add(starts));
        samples.saturating_add(sums)
    }

    /// Whether any sample has a start timestamp.
    pub fn has_starts(&self) -> bool {
        self.starts.is_some()
    }

    /// The start timestamps of its samples.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn starts(&self) -> Result<Starts, Error> {
        let Some(len) = self.starts else {
            return Ok(Starts::default());
        };
        let section = self.bytes.get(self.body.saturating_sub(len)..self.body);
        let starts = Starts::read(section.unwrap_or_default(), self.range, self.count());
        starts.ok_or(Error::Malformed {
            len: self.bytes.len(),
            at: self.body,
            what: STARTS_FLAW,
        })
    }

    /// The same samples with start timestamps, which may be those of a longer run. A chunk that has some keeps them.
    ///
    /// # Errors
    /// As [`Self::parse`], never of a chunk that was parsed.
    pub fn with_starts(self, starts: &Starts) -> Result<Self, Error> {
        let starts = match self.starts {
            Some(_) => Starts::default(),
            None => starts.within(self.range),
        };
        if starts.is_empty() {
            return Ok(self);
        }
        let (header, columns) = self.bytes.split_at_checked(self.body).unwrap_or_default();
        let mut out = Vec::with_capacity(self.bytes.len() + 16);
        out.extend_from_slice(header);
        if let Some(version) = out.first_mut() {
            *version += VERSION_STARTS;
        }
        starts.write(self.range.min, &mut out);
        let end = columns.len().saturating_sub(CHECKSUM_BYTES);
        out.extend_from_slice(columns.get(..end).unwrap_or_default());
        let sum = crc32c::crc32c(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out.shrink_to_fit();
        Self::parse(Bytes::from(out))
    }

    /// Appends the start timestamps of the samples of a closed range that have one, each with the time of its sample.
    ///
    /// # Errors
    /// As [`Self::decode_range`] and [`Self::decode_histograms`].
    pub fn decode_starts(&self, range: TimeRange, out: &mut Vec<(i64, i64)>) -> Result<(), Error> {
        if self.starts.is_none() || !range.overlaps(&self.range) || range.min > range.max {
            return Ok(());
        }
        let starts = self.starts()?;
        let mut times = Vec::new();
        if self.cells.is_some() {
            let mut histograms = Vec::new();
            self.decode_histograms(range, &mut histograms)?;
            times.extend(histograms.iter().map(|(t, _)| *t));
        } else {
            let content = self.content();
            let mut cursor = Cursor::new(content);
            cursor.take(self.body);
            self.decode_timestamps(content, &mut cursor, range, &mut times)?;
        }
        starts.append_at(&times, out);
        Ok(())
    }

    fn content(&self) -> &[u8] {
        self.bytes.get(..self.bytes.len() - CHECKSUM_BYTES).unwrap_or(&[])
    }

    /// Appends the histograms of a closed range, in strictly ascending time. A chunk of floats has none.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the chunk holds something impossible; then nothing has been appended.
    pub fn decode_histograms(
        &self,
        range: TimeRange,
        out: &mut Vec<(i64, Arc<Histogram>)>,
    ) -> Result<(), Error> {
        let Some(cells) = self.cells else { return Ok(()) };
        if !range.overlaps(&self.range) || range.min > range.max {
            return Ok(());
        }
        let described = Described {
            bytes: &self.bytes,
            body: self.body,
            count: self.count,
            range: self.range,
            cells,
        };
        described.decode(range, out)
    }

    /// Appends all floats, in strictly ascending time. A chunk of histograms has none.
    ///
    /// # Errors
    /// As [`Self::decode_range`].
    pub fn decode(&self, timestamps: &mut Vec<i64>, values: &mut Vec<f64>) -> Result<(), Error> {
        self.decode_range(TimeRange::ALL, timestamps, values)
    }

    /// Appends the floats of a closed range, in strictly ascending time; both columns grow by the same count.
    ///
    /// # Errors
    /// [`Error::Malformed`] or [`Error::NotAscending`] when the columns hold something impossible; then nothing has
    /// been appended.
    pub fn decode_range(
        &self,
        range: TimeRange,
        timestamps: &mut Vec<i64>,
        values: &mut Vec<f64>,
    ) -> Result<(), Error> {
        let no_floats = self.cells.is_some() || self.summaries;
        if no_floats || !range.overlaps(&self.range) || range.min > range.max {
            return Ok(());
        }
        let (had_timestamps, had_values) = (timestamps.len(), values.len());
        let content = self.content();
        let mut cursor = Cursor::new(content);
        let result = (|| {
            cursor.take(self.body);
            let (from, to) = self.decode_timestamps(content, &mut cursor, range, timestamps)?;
            self.decode_values(&mut cursor, from, to, values)
                .map_err(|what| self.malformed(&cursor, what))?;
            if to == self.count && !cursor.at_end() {
                return Err(self.malformed(&cursor, "bytes follow the last column"));
            }
            Ok(())
        })();
        if result.is_err() {
            timestamps.truncate(had_timestamps);
            values.truncate(had_values);
        }
        result
    }

    /// Appends the timestamps in range and says which samples they are, `from..to`.
    fn decode_timestamps(
        &self,
        content: &[u8],
        cursor: &mut Cursor<'_>,
        range: TimeRange,
        out: &mut Vec<i64>,
    ) -> Result<(usize, usize), Error> {
        RecentTimes::with(self.count, self.range, |recent| {
            let rest = content.get(cursor.pos()..).unwrap_or_default();
            if let Some(len) = recent.holds(self.count, self.range, rest) {
                cursor.take(len);
            } else {
                recent.clear();
                let start = cursor.pos();
                self.decode_all_timestamps(cursor, &mut recent.times)?;
                let column = content.get(start..cursor.pos()).unwrap_or_default();
                recent.were_decoded_from(self.range, column);
            }
            let Range { start: from, end: to } = range.places_in(&recent.times);
            out.extend_from_slice(recent.times.get(from..to).unwrap_or_default());
            Ok((from, to))
        })
    }

    /// Decodes all timestamps into an empty column.
    fn decode_all_timestamps(&self, cursor: &mut Cursor<'_>, all: &mut Vec<i64>) -> Result<(), Error> {
        let mut reader = Reader::open(cursor, self.count).map_err(|what| self.malformed(cursor, what))?;
        all.reserve(self.count);
        while all.len() < self.count {
            let run = reader
                .run(cursor, usize::MAX)
                .map_err(|what| self.malformed(cursor, what))?;
            all.extend(run.iter().map(|offset| self.range.min.wrapping_add(*offset)));
        }
        if let Some(at) = first_fall(all) {
            return Err(Error::NotAscending { at });
        }
        if all.first() != Some(&self.range.min) {
            return Err(self.malformed(cursor, "first timestamp differs from the header's"));
        }
        if all.last() != Some(&self.range.max) {
            return Err(self.malformed(cursor, "last timestamp differs from the header's"));
        }
        Ok(())
    }

    /// Appends the values of samples `from..to`.
    fn decode_values(
        &self,
        cursor: &mut Cursor<'_>,
        from: usize,
        to: usize,
        out: &mut Vec<f64>,
    ) -> Result<(), Flaw> {
        out.reserve(to - from);
        if !self.escapes {
            let mantissas = Reader::open(cursor, self.count)?;
            let wanted = from..to;
            return extend(mantissas, cursor, wanted, out, |out, run| {
                extend_decimals(out, run, self.exponent);
            });
        }
        self.decode_escaped(cursor, from, to, out)
    }

    /// Values as runs of mantissas and of floats, in turn.
    fn decode_escaped(
        &self,
        cursor: &mut Cursor<'_>,
        from: usize,
        to: usize,
        out: &mut Vec<f64>,
    ) -> Result<(), Flaw> {
        let mut runs = *cursor;
        let float_count = count_floats(cursor, self.count)?;
        let mut mantissa_at = *cursor;
        let mantissa_count = self.count - float_count;
        Reader::open(cursor, mantissa_count)?.skip(cursor)?;
        let mut mantissas = Reader::open(&mut mantissa_at, mantissa_count)?;
        let mut floats = Reader::open(cursor, float_count)?;
        if mantissa_count == 0 {
            return extend(floats, cursor, from..to, out, extend_floats);
        }
        let (mut i, mut in_floats) = (0usize, false);
        while i < to {
            // Counted before, so they add up; only the first may be empty.
            let run = runs.varint().unwrap_or(0) as usize;
            if run == 0 && in_floats {
                return Err("runs end early");
            }
            let end = i.saturating_add(run);
            while i < end.min(to) {
                let most = end.min(to) - i;
                let skipped = from.saturating_sub(i);
                let run = match in_floats {
                    true => floats.run(cursor, most)?,
                    false => mantissas.run(&mut mantissa_at, most)?,
                };
                let wanted = run.get(skipped..).unwrap_or_default();
                match in_floats {
                    true => extend_floats(out, wanted),
                    false => extend_decimals(out, wanted, self.exponent),
                }
                i += run.len();
            }
            in_floats = !in_floats;
        }
        Ok(())
    }

    fn malformed(&self, cursor: &Cursor<'_>, what: Flaw) -> Error {
        Error::Malformed {
            len: self.bytes.len(),
            at: cursor.pos(),
            what,
        }
    }
}

/// The first of some times that is not later than the one before.
fn first_fall(times: &[i64]) -> Option<usize> {
    const NEAR: i64 = 1 << 61;
    let pairs = || times.iter().zip(times.iter().skip(1));
    // Of times that are near to each other a difference tells by its sign, and all can be looked at at once: processors have
    // had comparisons of several 64-bit integers for less long than differences.
    let (far, falls) = pairs().fold((0, 0), |(far, falls), (a, b)| {
        let far = far | b.wrapping_add(NEAR) as u64;
        (far, falls | b.wrapping_sub(*a).wrapping_sub(1))
    });
    let first = times.first().map_or(0, |t| t.wrapping_add(NEAR) as u64);
    if (far | first) < 2 * NEAR as u64 && falls >= 0 {
        return None;
    }
    pairs().position(|(a, b)| a >= b).map(|before| before + 1)
}

/// Appends those values of a column that lie in `wanted`; what follows them is not read.
fn extend(
    mut column: Reader,
    cursor: &mut Cursor<'_>,
    wanted: Range<usize>,
    out: &mut Vec<f64>,
    extend: impl Fn(&mut Vec<f64>, &[i64]),
) -> Result<(), Flaw> {
    let mut at = 0;
    while at < wanted.end {
        let run = column.run(cursor, usize::MAX)?;
        let skipped = wanted.start.saturating_sub(at).min(run.len());
        let taken = (wanted.end - at).min(run.len());
        extend(out, run.get(skipped..taken).unwrap_or_default());
        at += run.len();
    }
    Ok(())
}

/// Appends floats of which these are the bits.
fn extend_floats(out: &mut Vec<f64>, run: &[i64]) {
    out.extend(run.iter().map(|&bits| f64::from_bits(bits as u64)));
}

/// Appends the values of mantissas.
fn extend_decimals(out: &mut Vec<f64>, run: &[i64], exponent: u8) {
    let had = out.len();
    extend_integers(out, run);
    // Dividing by one is exact, and costs as much as the rest.
    if exponent > 0 {
        let power = power_of_ten(exponent);
        out.iter_mut().skip(had).for_each(|v| *v /= power);
    }
}

/// Appends integers as floats. Those below 2^51 are exact when they are put among the bits of 1.5 * 2^52 and that is
/// taken away again, which processors do for several at once, unlike conversions.
fn extend_integers(out: &mut Vec<f64>, run: &[i64]) {
    const BOUND: i64 = 1 << 51;
    const BASE: f64 = 6_755_399_441_055_744.0;
    let beyond = run.iter().fold(0, |any, m| any | m.wrapping_add(BOUND) as u64);
    if beyond >= 2 * BOUND as u64 {
        out.extend(run.iter().map(|&m| m as f64));
        return;
    }
    let base = BASE.to_bits() as i64;
    out.extend(
        run.iter()
            .map(|&m| f64::from_bits(base.wrapping_add(m) as u64) - BASE),
    );
}

/// Reads the lengths of all runs, which must add up to `count`, and gives how many samples are floats.
fn count_floats(cursor: &mut Cursor<'_>, count: usize) -> Result<usize, Flaw> {
    let (mut left, mut floats, mut in_floats, mut first) = (count, 0usize, false, true);
    while left > 0 {
        let run = cursor.varint().ok_or("runs end early")?;
        if run > left as u64 || (run == 0 && !first) {
            return Err("runs do not add up to the count");
        }
        let run = run as usize;
        left -= run;
        if in_floats {
            floats += run;
        }
        (in_floats, first) = (!in_floats, false);
    }
    Ok(floats)
}

/// Passes over the start timestamps and tells how many bytes they are.
fn read_starts_len(c: &mut Cursor<'_>) -> Option<usize> {
    let len = usize::try_from(c.varint()?).ok()?;
    c.take(len)?;
    Some(len)
}

struct Header {
    flags: u8,
    count: u64,
    range: TimeRange,
}

fn read_header(c: &mut Cursor<'_>) -> Result<Header, Flaw> {
    const ENDS: Flaw = "header ends early";
    let flags = c.u8().ok_or(ENDS)?;
    if flags & !(FLAG_ESCAPES | EXPONENT_MASK) != 0 || flags & EXPONENT_MASK > EXPONENT_MAX {
        return Err("unknown flags or exponent");
    }
    let count = c.varint().ok_or(ENDS)?;
    let first = c.zigzag().ok_or(ENDS)?;
    let span = c.varint().ok_or(ENDS)?;
    let last = first.checked_add_unsigned(span).ok_or("last time overflows")?;
    Ok(Header {
        flags,
        count,
        range: TimeRange::new(first, last),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_time() -> impl Strategy<Value = i64> {
        prop_oneof![
            4 => -3i64..3,
            1 => any::<i64>(),
            1 => prop::sample::select(vec![i64::MIN, i64::MAX, 1 << 61, -(1 << 61), (1 << 61) - 1, i64::MIN + 1]),
        ]
    }

    proptest! {
        #[test]
        fn the_first_time_that_is_not_later_is_found(
            mut times in proptest::collection::vec(any_time(), 0..12), sorted in any::<bool>(),
        ) {
            if sorted {
                times.sort_unstable();
            }
            let wanted = times.windows(2).position(|w| w[0] >= w[1]).map(|before| before + 1);
            prop_assert_eq!(first_fall(&times), wanted);
        }
    }
}
